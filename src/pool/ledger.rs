//! The books of one pool: who holds a connection, which are idle, who waits, and when to make or close one.
//!
//! A pure state machine over any connection `C` and any waiter `W`: it neither connects nor sleeps nor locks. It
//! says what to do and the caller does it, then reports. Rules:
//!
//! - In use, idle and being made together are never more than `max`. When a reload lowers `max`, the surplus goes as it
//!   becomes idle.
//! - Waiters are served in the order they came, but for [`LEAP`]. A connection that comes free is handed straight to the
//!   one whose turn it is and never passes through the idle ones, where a newcomer could take it. So nobody waits while
//!   one is idle.
//! - Idle connections are taken last in, first out, those of the asking worker before others; those alone, if the caller
//!   likes. What nobody needs gathers at the cold end and is closed there.
//! - A connection leaves the books in the moment it is given out to be closed.
//!
//! Checking out an idle connection and checking it in again allocates nothing.

mod create;
mod held;
mod sweep;

pub use create::{Creates, LONGEST_RETRY, Permit};
pub use held::Held;
pub use sweep::{Closed, Sweep};

#[cfg(test)]
mod cases;
#[cfg(test)]
mod model;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config;
use create::Backoff;
use held::Life;

/// The connects that one pool may have under way at once, unless [`Limits`] says otherwise.
pub const CONCURRENT_CREATES: usize = 4;

/// A waiter of a connection's own worker goes before those of others that came sooner by less than this: to move a socket
/// to another worker's reactor costs as much as a small query.
pub const LEAP: Duration = Duration::from_millis(1);

/// The settings the books are kept by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Living connections to keep even if nobody needs them. More than `max` is as good as `max`.
    pub min: usize,
    pub max: usize,
    pub idle_timeout: Duration,
    pub max_lifetime: Duration,
    /// Counts as 10 ms at least and an hour at most.
    pub create_retry_interval: Duration,
    /// At least 1.
    pub concurrent_creates: usize,
}

impl From<&config::Pool> for Limits {
    fn from(pool: &config::Pool) -> Self {
        Self {
            min: pool.min,
            max: pool.max,
            idle_timeout: pool.idle_timeout,
            max_lifetime: pool.max_lifetime,
            create_retry_interval: pool.create_retry_interval,
            concurrent_creates: CONCURRENT_CREATES,
        }
    }
}

/// The books of one pool.
#[derive(Debug)]
pub struct Ledger<C, W> {
    limits: Limits,
    state: State,
    /// Every living connection, idle or in use, in no order.
    lives: Vec<Life>,
    /// Coldest in front. Empty while anyone waits and while the pool is not open.
    idle: VecDeque<Idle<C>>,
    /// Oldest in front, tickets ascending.
    waiters: VecDeque<Waiter<W>>,
    creating: usize,
    backoff: Backoff,
    /// When the caller next asks who has waited long enough.
    looks_at: Option<Instant>,
    /// Until then none is made for stock.
    vacant_until: Option<Instant>,
    /// Raised by RECONNECT; a connection of an older one is not used again.
    generation: u64,
    next_id: u64,
    next_ticket: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Paused,
    Closed,
}

#[derive(Debug)]
struct Idle<C> {
    held: Held<C>,
    since: Instant,
}

#[derive(Debug)]
struct Waiter<W> {
    ticket: Ticket,
    waiter: W,
    worker: usize,
    since: Instant,
    until: Instant,
}

/// A place in the queue, for [`Ledger::cancel_wait`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// The answer to a request for a connection.
#[derive(Debug)]
pub enum Checkout<C> {
    Idle(Held<C>),
    /// The waiter is in the queue and will come back in a [`Place::Handed`].
    Wait {
        ticket: Ticket,
        create: Creates,
        /// [`Ledger::give_up`] is to be called then; `None`: it is soon enough as planned.
        look_at: Option<Instant>,
    },
    /// The pool was closed and serves nobody any more.
    Closed,
}

/// Where a connection went that was made or given back.
#[derive(Debug)]
pub enum Place<C, W> {
    /// Deliver it to this waiter. If the waiter is gone, check it in again.
    Handed {
        waiter: W,
        connection: Held<C>,
    },
    Idle,
    /// Close it; it is in the books no more.
    Close(C),
}

/// The answer to [`Ledger::created`] and [`Ledger::checkin`].
#[derive(Debug)]
#[must_use]
pub struct Placement<C, W> {
    pub place: Place<C, W>,
    pub create: Creates,
}

/// The state of a connection that is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Idle at the server, and its session as the next client expects it.
    Clean,
    /// Broken or of unknown state.
    Discard,
}

/// The answer to [`Ledger::create_failed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreateFailed {
    /// When [`Ledger::retry`] will allow the next attempt.
    pub retry_at: Instant,
    /// Those who still wait. With none, the next reap is soon enough.
    pub waiting: usize,
}

/// The figures of SHOW POOLS and SHOW DATABASES.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    pub active: usize,
    pub idle: usize,
    pub creating: usize,
    pub waiting: usize,
    /// How long the oldest waiter has waited; zero if nobody waits.
    pub oldest_wait: Duration,
    /// Connections in use from before the last RECONNECT, for WAIT_CLOSE.
    pub stale: usize,
    pub paused: bool,
}

impl<C, W> Ledger<C, W> {
    /// An empty pool. The first [`reap`](Self::reap) asks for the `min` connections.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Open,
            lives: Vec::new(),
            idle: VecDeque::new(),
            waiters: VecDeque::new(),
            creating: 0,
            backoff: Backoff::new(limits.create_retry_interval),
            looks_at: None,
            vacant_until: None,
            generation: 0,
            next_id: 0,
            next_ticket: 0,
        }
    }

    /// Takes an idle connection for `worker`, or queues what `waiter` makes, for as long as it has `patience`.
    ///
    /// If the connection's [`home`](Held::home) is another worker, the caller moves the socket and sets it.
    pub fn checkout(
        &mut self,
        now: Instant,
        patience: impl FnOnce() -> Duration,
        worker: usize,
        waiter: impl FnOnce() -> W,
    ) -> Checkout<C> {
        if self.state == State::Closed {
            return Checkout::Closed;
        }
        if let Some(held) = self.take_idle(worker) {
            return Checkout::Idle(held);
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let until = now + patience();
        self.waiters.push_back(Waiter { ticket, waiter: waiter(), worker, since: now, until });
        let look_at = Some(until).filter(|until| self.looks_at.is_none_or(|planned| *until < planned));
        self.looks_at = look_at.or(self.looks_at);
        let create = self.ask(now, self.below_min(now));
        Checkout::Wait { ticket, create, look_at }
    }

    /// Takes the hottest idle connection of `worker`, else the hottest of all, or nothing: while anyone waits, none is idle.
    pub fn take_idle(&mut self, worker: usize) -> Option<Held<C>> {
        self.take_own(worker).or_else(|| self.idle.pop_back().map(|idle| idle.held))
    }

    /// Takes the hottest idle connection of `worker`, or nothing.
    pub fn take_own(&mut self, worker: usize) -> Option<Held<C>> {
        let own = |idle: &Idle<C>| idle.held.home == worker;
        let idle = match self.idle.back() {
            // Mostly the hottest of all.
            Some(hottest) if own(hottest) => self.idle.pop_back(),
            _ => {
                let index = self.idle.iter().rposition(own)?;
                self.idle.remove(index)
            }
        };
        idle.map(|idle| idle.held)
    }

    /// Takes those out of the queue whose patience has ended, oldest first; and when to look again. `planned` is the time
    /// that was given for this look: another may have been planned since, and does its work.
    ///
    /// One timer for a whole queue: a wait that ends well costs none.
    pub fn give_up(&mut self, now: Instant, planned: Instant) -> (Vec<W>, Option<Instant>) {
        if self.looks_at != Some(planned) {
            return (Vec::new(), None);
        }
        // Mostly in order; a reload may have shortened the patience of the later ones.
        let (ended, waiting) = self.waiters.drain(..).partition(|waiter| waiter.until <= now);
        self.waiters = waiting;
        self.looks_at = self.waiters.iter().map(|waiter| waiter.until).min();
        let ended: VecDeque<Waiter<W>> = ended;
        (ended.into_iter().map(|waiter| waiter.waiter).collect(), self.looks_at)
    }

    /// Takes a waiter out of the queue that has gone.
    ///
    /// `None`: it is not in the queue any more. A connection has been handed to it; the one who waited uses that or
    /// checks it in.
    pub fn cancel_wait(&mut self, ticket: Ticket) -> Option<W> {
        let index = self.waiters.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()?;
        self.waiters.remove(index).map(|waiter| waiter.waiter)
    }

    /// Empties the queue, oldest first, when an error concerns all who wait (a refused password, say).
    pub fn dismiss_waiters(&mut self) -> Vec<W> {
        self.waiters.drain(..).map(|waiter| waiter.waiter).collect()
    }

    /// Enters a new connection, whose socket belongs to the worker `home`.
    ///
    /// `jitter`, drawn evenly from 0.0 to 1.0, shortens its life by up to a tenth of `max_lifetime`.
    pub fn created(
        &mut self,
        now: Instant,
        permit: Permit,
        connection: C,
        home: usize,
        jitter: f64,
    ) -> Placement<C, W> {
        self.creating -= 1;
        self.backoff.succeeded();
        let life = Life::new(self.next_id, permit.generation, now, self.limits.max_lifetime, jitter);
        self.next_id += 1;
        self.lives.push(life);
        let held = Held { connection, home, life };
        let place =
            if self.is_unwanted(&held.life) { Place::Close(self.forget(held)) } else { self.hand_over(now, held) };
        let create = self.ask(now, self.below_min(now));
        Placement { place, create }
    }

    /// Reports that a connection could not be made. The pause that follows is `create_retry_interval`, doubled
    /// with each further failure up to [`LONGEST_RETRY`].
    ///
    /// No permit is given before the pause is over; then call [`retry`](Self::retry) if anyone waits.
    pub fn create_failed(&mut self, now: Instant, _permit: Permit) -> CreateFailed {
        self.creating -= 1;
        CreateFailed { retry_at: self.backoff.failed(now), waiting: self.waiters.len() }
    }

    /// Asks for the connections that are wanted and allowed now, once the pause after a failure is over.
    pub fn retry(&mut self, now: Instant) -> Creates {
        self.ask(now, self.below_min(now))
    }

    /// Forgets the failures so far, since their cause is gone; asks as [`retry`](Self::retry) does.
    pub fn forgive(&mut self, now: Instant) -> Creates {
        self.backoff.succeeded();
        self.ask(now, self.below_min(now))
    }

    /// Takes a connection back into the ledger it came from.
    pub fn checkin(&mut self, now: Instant, held: Held<C>, verdict: Verdict) -> Placement<C, W> {
        let close = verdict == Verdict::Discard
            || self.is_unwanted(&held.life)
            || held.life.is_over(now)
            || (held.life.is_due(now) && self.has_successor(now));
        if close {
            let place = Place::Close(self.forget(held));
            let create = self.ask(now, self.below_min(now));
            return Placement { place, create };
        }
        Placement { place: self.hand_over(now, held), create: Creates::none() }
    }

    /// Of which generation a connection that is given back clean becomes idle, unless it nears its end; `None`: something else
    /// is to be done with it. It may be kept back then, as if in use, and be [put down](Self::put_down) later.
    pub fn at_ease(&self) -> Option<u64> {
        let plain = self.state == State::Open && self.waiters.is_empty() && self.total() <= self.limits.max;
        plain.then_some(self.generation)
    }

    /// Takes back what was kept back, with when it was given back. The ledger is at ease as it was then.
    pub fn put_down(&mut self, kept_back: Vec<(Held<C>, Instant)>) {
        if !kept_back.is_empty() {
            self.idle.extend(kept_back.into_iter().map(|(held, since)| Idle { held, since }));
            self.idle.make_contiguous().sort_unstable_by_key(|idle| idle.since);
        }
    }

    /// The figures of this moment.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let stale = |life: &&Life| life.generation != self.generation;
        Snapshot {
            active: self.active(),
            idle: self.idle.len(),
            creating: self.creating,
            waiting: self.waiters.len(),
            oldest_wait: self
                .waiters
                .front()
                .map_or(Duration::ZERO, |oldest| now.saturating_duration_since(oldest.since)),
            stale: self.lives.iter().filter(stale).count(),
            paused: self.state == State::Paused,
        }
    }

    /// The idle connections and since when they are, coldest first.
    pub fn idle(&self) -> impl Iterator<Item = (&Held<C>, Instant)> {
        self.idle.iter().map(|idle| (&idle.held, idle.since))
    }

    fn hand_over(&mut self, now: Instant, connection: Held<C>) -> Place<C, W> {
        if let Some(Waiter { waiter, .. }) = self.next_waiter(connection.home) {
            return Place::Handed { waiter, connection };
        }
        self.idle.push_back(Idle { held: connection, since: now });
        Place::Idle
    }

    /// Whose turn it is for a connection of the worker `home`.
    fn next_waiter(&mut self, home: usize) -> Option<Waiter<W>> {
        let before = self.waiters.front()?.since + LEAP;
        let mut near = self.waiters.iter().take_while(|waiter| waiter.since < before);
        let own = near.position(|waiter| waiter.worker == home);
        self.waiters.remove(own.unwrap_or(0))
    }

    /// True if this connection may not stay: the pool is not open, RECONNECT came, or there are too many.
    fn is_unwanted(&self, life: &Life) -> bool {
        self.state != State::Open || life.generation != self.generation || self.total() > self.limits.max
    }

    /// True if a connection that is due can go without a client having to wait for another to be made.
    fn has_successor(&self, now: Instant) -> bool {
        self.idle.iter().any(|idle| !idle.held.life.is_due(now)) && self.fresh(now) >= self.limits.min
    }

    /// Permits for what the waiters and `missing` want, as far as `max`, the cap and the pause allow.
    fn ask(&mut self, now: Instant, missing: usize) -> Creates {
        let for_waiters = self.waiters.len().saturating_sub(self.creating);
        let cap = self.backoff.allowed(now, self.limits.concurrent_creates.max(1));
        let count = match self.state {
            State::Open => for_waiters
                .max(missing)
                .min(cap.saturating_sub(self.creating))
                .min(self.limits.max.saturating_sub(self.total())),
            State::Paused | State::Closed => 0,
        };
        self.creating += count;
        Creates::new(count, self.generation)
    }

    fn forget(&mut self, held: Held<C>) -> C {
        if let Some(index) = self.lives.iter().position(|life| life.id == held.life.id) {
            self.lives.swap_remove(index);
        }
        held.connection
    }

    fn below_min(&self, now: Instant) -> usize {
        self.stock(now).saturating_sub(self.total())
    }

    /// Connections to keep even if nobody needs them.
    fn stock(&self, now: Instant) -> usize {
        if self.vacant_until.is_some_and(|until| now < until) { 0 } else { self.limits.min }
    }

    fn active(&self) -> usize {
        self.lives.len() - self.idle.len()
    }

    fn total(&self) -> usize {
        self.lives.len() + self.creating
    }

    fn fresh(&self, now: Instant) -> usize {
        self.lives.iter().filter(|life| !life.is_due(now)).count()
    }
}
