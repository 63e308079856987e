//! Long random histories of a pool, each step compared with a naive model that keeps plain lists.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const LIFETIME: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(200);
const CAP: usize = 3;
const PATIENCE: Duration = Duration::from_millis(700);

/// Numbers choose among what there is, modulo its count.
#[derive(Debug, Clone)]
enum Step {
    Checkout { worker: usize, patient: bool },
    TakeOwn { worker: usize },
    Checkin { which: usize, discard: bool, moved_to: usize },
    Created { which: usize, home: usize },
    CreateFailed { which: usize },
    Cancel { which: usize },
    Dismiss,
    Advance { ms: u32 },
    Reap,
    Retry,
    Lost { which: usize },
    Trim,
    Reconnect,
    Pause,
    Resume,
    Reconfigure { min: usize, max: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let any = 0usize..1000;
    prop_oneof![
        30 => (0usize..3, prop::bool::weighted(0.8)).prop_map(|(worker, patient)| Step::Checkout { worker, patient }),
        10 => (0usize..3).prop_map(|worker| Step::TakeOwn { worker }),
        24 => (any.clone(), prop::bool::weighted(0.03), 0usize..3)
            .prop_map(|(which, discard, moved_to)| Step::Checkin { which, discard, moved_to }),
        20 => (any.clone(), 0usize..3).prop_map(|(which, home)| Step::Created { which, home }),
        4 => any.clone().prop_map(|which| Step::CreateFailed { which }),
        5 => any.clone().prop_map(|which| Step::Cancel { which }),
        1 => Just(Step::Dismiss),
        20 => prop_oneof![0u32..50, 100u32..600, 600u32..3000].prop_map(|ms| Step::Advance { ms }),
        20 => Just(Step::Reap),
        4 => Just(Step::Retry),
        1 => any.prop_map(|which| Step::Lost { which }),
        1 => Just(Step::Trim),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Pause),
        6 => Just(Step::Resume),
        1 => (0usize..8, 1usize..8).prop_map(|(min, max)| Step::Reconfigure { min, max }),
    ]
}

fn limits(min: usize, max: usize) -> Limits {
    Limits {
        min,
        max,
        idle_timeout: IDLE_TIMEOUT,
        max_lifetime: LIFETIME,
        create_retry_interval: RETRY,
        concurrent_creates: CAP,
    }
}

#[derive(Debug, Clone, Copy)]
struct Alive {
    born: Instant,
    generation: u64,
}

impl Alive {
    fn over(&self, now: Instant) -> bool {
        now >= self.born + LIFETIME
    }

    fn due(&self, now: Instant) -> bool {
        now >= self.born + LIFETIME * 19 / 20
    }
}

/// What must be so, in plain lists; beside it what the clients and connectors hold.
struct World {
    ledger: Ledger<u32, u32>,
    now: Instant,
    min: usize,
    max: usize,
    paused: bool,
    generation: u64,
    /// Connection and home, in the order they became idle.
    idle: Vec<(u32, usize, Instant)>,
    queue: Vec<(u32, Ticket)>,
    /// For which worker each waits, and since when.
    waits: BTreeMap<u32, (usize, Instant)>,
    /// Until when each waits, and the looks that are planned.
    patience: BTreeMap<u32, Instant>,
    looks: BTreeSet<Instant>,
    alive: BTreeMap<u32, Alive>,
    closed: BTreeSet<u32>,
    pause: Option<(Duration, Instant)>,
    held: Vec<Held<u32>>,
    permits: Vec<Permit>,
    next: u32,
}

impl World {
    fn new(min: usize, max: usize) -> Self {
        Self {
            ledger: Ledger::new(limits(min, max)),
            now: Instant::now(),
            min,
            max,
            paused: false,
            generation: 0,
            idle: Vec::new(),
            queue: Vec::new(),
            waits: BTreeMap::new(),
            patience: BTreeMap::new(),
            looks: BTreeSet::new(),
            alive: BTreeMap::new(),
            closed: BTreeSet::new(),
            pause: None,
            held: Vec::new(),
            permits: Vec::new(),
            next: 0,
        }
    }

    fn total(&self) -> usize {
        self.alive.len() + self.permits.len()
    }

    fn floor(&self) -> usize {
        self.min.min(self.max)
    }

    fn count(&self, which: impl Fn(&Alive) -> bool) -> usize {
        self.alive.values().filter(|alive| which(alive)).count()
    }

    /// Takes the permits given, which must be as many as one-by-one reasoning allows.
    fn grant(&mut self, creates: Creates, missing: usize) {
        let granted = creates.len();
        let mut expected = 0;
        loop {
            let creating = self.permits.len() + expected;
            let (pausing, cap) = match self.pause {
                Some((_, until)) => (self.now < until, 1),
                None => (false, CAP),
            };
            let wanted = self.queue.len() > creating || missing > expected;
            let room = self.alive.len() + creating < self.max;
            if self.paused || pausing || creating >= cap || !room || !wanted {
                break;
            }
            expected += 1;
        }
        assert_eq!(granted, expected, "connections asked for");
        self.permits.extend(creates);
    }

    fn grant_min(&mut self, creates: Creates) {
        self.grant(creates, self.floor().saturating_sub(self.total()));
    }

    fn close(&mut self, connection: u32) {
        assert!(self.alive.remove(&connection).is_some(), "{connection} is not alive");
        assert!(self.closed.insert(connection), "{connection} closed twice");
        self.idle.retain(|&(idle, _, _)| idle != connection);
    }

    fn unwanted(&self, alive: &Alive) -> bool {
        self.paused || alive.generation != self.generation || self.total() > self.max
    }

    /// Follows a connection to where the ledger put it, which must be where it belongs.
    fn place(&mut self, connection: u32, home: usize, place: Place<u32, u32>, close: bool) {
        match place {
            Place::Close(closed) => {
                assert!(close, "{closed} had no reason to be closed");
                assert_eq!(closed, connection);
                self.close(connection);
            }
            Place::Handed { waiter, connection: held } => {
                assert!(!close, "{connection} should be closed");
                let (_, oldest) = self.waits[&self.queue[0].0];
                let leaps = |name: &u32| self.waits[name].0 == home && self.waits[name].1 - oldest < LEAP;
                let next = self.queue.iter().position(|(name, _)| leaps(name)).unwrap_or(0);
                assert_eq!((*held, waiter), (connection, self.queue.remove(next).0));
                self.held.push(held);
            }
            Place::Idle => {
                assert!(!close, "{connection} should be closed");
                assert!(self.queue.is_empty(), "idle past a waiter");
                self.idle.push((connection, home, self.now));
            }
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Checkout { worker, patient } => self.checkout(worker, if patient { PATIENCE } else { PATIENCE / 3 }),
            Step::TakeOwn { worker } => {
                let own = self.idle.iter().rposition(|idle| idle.1 == worker).map(|at| self.idle.remove(at).0);
                let taken = self.ledger.take_own(worker);
                assert_eq!(taken.as_ref().map(|held| **held), own);
                self.held.extend(taken);
            }
            Step::Checkin { which, discard, moved_to } => self.checkin(which, discard, moved_to),
            Step::Created { which, home } => self.created(which, home),
            Step::CreateFailed { which } => self.create_failed(which),
            Step::Cancel { which } => self.cancel(which),
            Step::Dismiss => {
                let expected: Vec<u32> = self.queue.drain(..).map(|(name, _)| name).collect();
                assert_eq!(self.ledger.dismiss_waiters(), expected);
            }
            Step::Advance { ms } => self.advance(ms * MS),
            Step::Reap => self.reap(),
            Step::Retry => {
                let creates = self.ledger.retry(self.now);
                self.grant_min(creates);
            }
            Step::Lost { which } => {
                let dead = |connection: &mut u32| *connection as usize % 7 == which % 7;
                let sweep = self.ledger.lost(self.now, dead);
                self.swept(sweep, |_, mut connection| dead(&mut connection));
            }
            Step::Trim => self.trim(),
            Step::Reconnect => {
                self.generation += 1;
                let sweep = self.ledger.reconnect(self.now);
                self.swept(sweep, |_, _| true);
            }
            Step::Pause => {
                self.paused = true;
                let mut closed = self.ledger.pause();
                closed.sort_unstable();
                let mut expected: Vec<u32> = self.idle.iter().map(|idle| idle.0).collect();
                expected.sort_unstable();
                assert_eq!(closed, expected);
                closed.into_iter().for_each(|connection| self.close(connection));
            }
            Step::Resume => {
                self.paused = false;
                let creates = self.ledger.resume(self.now);
                self.grant_min(creates);
            }
            Step::Reconfigure { min, max } => {
                (self.min, self.max) = (min, max);
                let surplus = self.total().saturating_sub(max);
                let sweep = self.ledger.reconfigure(self.now, limits(min, max));
                self.swept(sweep, |position, _| position < surplus);
            }
        }
    }

    fn checkout(&mut self, worker: usize, patience: Duration) {
        self.next += 1;
        let name = self.next;
        match self.ledger.checkout(self.now, || patience, worker, || name) {
            Checkout::Idle(held) => {
                let own = self.idle.iter().rev().find(|idle| idle.1 == worker);
                let &(expected, home, _) = own.or(self.idle.last()).expect("an idle one");
                assert_eq!((*held, held.home), (expected, home));
                self.idle.retain(|idle| idle.0 != expected);
                self.held.push(held);
            }
            Checkout::Wait { ticket, create, look_at } => {
                assert!(self.idle.is_empty(), "waits beside an idle connection");
                self.queue.push((name, ticket));
                self.waits.insert(name, (worker, self.now));
                self.patience.insert(name, self.now + patience);
                self.looks.extend(look_at);
                self.grant_min(create);
            }
            Checkout::Closed => panic!("was never closed"),
        }
    }

    /// Time passes; each planned look is taken in time, and whoever has waited long enough is told at that time.
    fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        while let Some(look) = self.looks.first().copied().filter(|look| *look <= end) {
            self.looks.remove(&look);
            self.now = look;
            let (ended, next) = self.ledger.give_up(look, look);
            self.looks.extend(next);
            let patience = &self.patience;
            let expected: Vec<u32> =
                self.queue.extract_if(.., |(name, _)| patience[name] <= look).map(|(name, _)| name).collect();
            assert_eq!(ended, expected);
        }
        self.now = end;
        assert!(self.queue.iter().all(|(name, _)| self.patience[name] > end), "waits past its time");
    }

    fn checkin(&mut self, which: usize, discard: bool, moved_to: usize) {
        if self.held.is_empty() {
            return;
        }
        let mut held = self.held.swap_remove(which % self.held.len());
        held.home = moved_to;
        let (connection, now) = (*held, self.now);
        let alive = self.alive[&connection];
        let successor = self.idle.iter().any(|idle| !self.alive[&idle.0].due(now))
            && self.count(|alive| !alive.due(now)) >= self.floor();
        let close = discard || self.unwanted(&alive) || alive.over(now) || (alive.due(now) && successor);
        let verdict = if discard { Verdict::Discard } else { Verdict::Clean };
        let Placement { place, create } = self.ledger.checkin(now, held, verdict);
        self.place(connection, moved_to, place, close);
        if close {
            self.grant_min(create);
        } else {
            assert_eq!(create.len(), 0);
        }
    }

    fn created(&mut self, which: usize, home: usize) {
        if self.permits.is_empty() {
            return;
        }
        let permit = self.permits.swap_remove(which % self.permits.len());
        self.next += 1;
        let connection = self.next;
        let alive = Alive { born: self.now, generation: permit.generation };
        self.alive.insert(connection, alive);
        self.pause = None;
        let close = self.unwanted(&alive);
        let Placement { place, create } = self.ledger.created(self.now, permit, connection, home, 0.0);
        self.place(connection, home, place, close);
        self.grant_min(create);
    }

    fn create_failed(&mut self, which: usize) {
        if self.permits.is_empty() {
            return;
        }
        let permit = self.permits.swap_remove(which % self.permits.len());
        let failed = self.ledger.create_failed(self.now, permit);
        let (delay, until) = match self.pause {
            Some(pause) if self.now < pause.1 => pause,
            Some((last, _)) => {
                let delay = (last * 2).min(Duration::from_secs(5));
                (delay, self.now + delay)
            }
            None => (RETRY, self.now + RETRY),
        };
        self.pause = Some((delay, until));
        let expected = CreateFailed { retry_at: until, waiting: self.queue.len() };
        assert_eq!(failed, expected);
    }

    fn cancel(&mut self, which: usize) {
        if self.queue.is_empty() {
            return;
        }
        let (name, ticket) = self.queue.remove(which % self.queue.len());
        assert_eq!(self.ledger.cancel_wait(ticket), Some(name));
        assert_eq!(self.ledger.cancel_wait(ticket), None);
    }

    fn reap(&mut self) {
        let now = self.now;
        let Sweep { close, create } = self.ledger.reap(now);
        let due_may_go = self.idle.iter().any(|idle| !self.alive[&idle.0].due(now))
            && self.count(|alive| !alive.due(now)) >= self.floor();
        let (ended, left): (Vec<_>, Vec<_>) = self.idle.iter().copied().partition(|idle| {
            let alive = self.alive[&idle.0];
            alive.over(now) || (alive.due(now) && due_may_go)
        });
        ended.iter().for_each(|idle| self.close(idle.0));
        let staying = self.count(|alive| !alive.due(now) || alive.over(now));
        let aged: Vec<_> = left
            .into_iter()
            .filter(|idle| now - idle.2 >= IDLE_TIMEOUT)
            .take(staying.saturating_sub(self.floor()))
            .collect();
        aged.iter().for_each(|idle| self.close(idle.0));
        let expected: Vec<u32> = ended.iter().chain(&aged).map(|idle| idle.0).collect();
        assert_eq!(close, expected);
        assert!(aged.is_empty() || self.alive.len() >= self.floor(), "reaped below min");
        let staying = self.count(|alive| !alive.due(now) || alive.over(now));
        let wanted = self.floor().max(self.held.len());
        self.grant(create, wanted.saturating_sub(staying + self.permits.len()));
    }

    fn trim(&mut self) {
        let spare = self.alive.len().saturating_sub(self.floor()).min(self.idle.len());
        let expected: Vec<u32> = self.idle[..spare].iter().map(|idle| idle.0).collect();
        let closed = self.ledger.trim();
        assert_eq!(closed, expected);
        closed.into_iter().for_each(|connection| self.close(connection));
    }

    /// `goes` tells by position among the idle ones and by name which are to be closed.
    fn swept(&mut self, sweep: Sweep<u32>, goes: impl Fn(usize, u32) -> bool) {
        let idle = self.idle.iter().enumerate();
        let expected: Vec<u32> = idle.filter(|(at, idle)| goes(*at, idle.0)).map(|(_, idle)| idle.0).collect();
        assert_eq!(sweep.close, expected);
        expected.into_iter().for_each(|connection| self.close(connection));
        self.grant_min(sweep.create);
    }

    /// What must hold after every step. `before`: the total before it, which only a lowered `max` lets stay above.
    fn check(&self, before: usize) {
        let figures = self.ledger.snapshot(self.now);
        assert_eq!(figures.active, self.held.len());
        assert_eq!(figures.idle, self.idle.len());
        assert_eq!(figures.creating, self.permits.len());
        assert_eq!(figures.waiting, self.queue.len());
        assert_eq!(figures.paused, self.paused);
        assert_eq!(figures.stale, self.count(|alive| alive.generation != self.generation));
        assert_eq!(self.ledger.is_empty(), self.total() == 0);

        assert!(self.total() <= self.max.max(before), "more than max");
        assert!(self.permits.len() <= CAP, "more connects at once than the cap");
        assert!(self.queue.is_empty() || self.idle.is_empty(), "waits beside an idle connection");

        let idle: Vec<u32> = self.ledger.idle.iter().map(|idle| *idle.held).collect();
        let expected: Vec<u32> = self.idle.iter().map(|idle| idle.0).collect();
        assert_eq!(idle, expected);
        let queue: Vec<u32> = self.ledger.waiters.iter().map(|waiter| waiter.waiter).collect();
        let expected: Vec<u32> = self.queue.iter().map(|waiter| waiter.0).collect();
        assert_eq!(queue, expected);
        let mut places: Vec<u32> = idle;
        places.extend(self.held.iter().map(|held| **held));
        places.sort_unstable();
        assert!(places.iter().eq(self.alive.keys()), "each living connection is in one place");
        assert!(places.iter().all(|place| !self.closed.contains(place)));
    }

    /// Once the server answers and clients give back what they hold, everyone who waits is served.
    fn settle(&mut self) {
        self.take(Step::Resume);
        let mut rounds = 0;
        while !self.queue.is_empty() {
            rounds += 1;
            assert!(rounds < 1000, "{} wait for ever", self.queue.len());
            self.now += Duration::from_secs(5);
            self.take(Step::Retry);
            self.take(Step::Created { which: 0, home: 0 });
            self.take(Step::Checkin { which: 0, discard: rounds % 3 == 0, moved_to: 0 });
        }
    }
}

proptest! {
    #[test]
    fn every_history_agrees_with_the_model(
        min in 0usize..8,
        max in 1usize..8,
        steps in prop::collection::vec(step(), 1..400),
    ) {
        let mut world = World::new(min, max);
        for step in steps {
            let before = world.total();
            world.take(step);
            world.check(before);
        }
        world.settle();
    }
}
