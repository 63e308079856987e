//! The cases that go wrong elsewhere, one by one.

use std::time::{Duration, Instant};

use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);

/// A ledger of numbered connections, with a clock that moves when told.
struct Pool {
    ledger: Ledger<u32, &'static str>,
    now: Instant,
    made: u32,
}

impl Pool {
    fn new(min: usize, max: usize) -> Self {
        Self { ledger: Ledger::new(limits(min, max)), now: Instant::now(), made: 0 }
    }

    /// Makes connections for all permits, and for those that follow from them.
    fn make(&mut self, creates: Creates) -> Vec<Place<u32, &'static str>> {
        let mut places = Vec::new();
        let mut permits: VecDeque<Permit> = creates.collect();
        while let Some(permit) = permits.pop_front() {
            self.made += 1;
            let placement = self.ledger.created(self.now, permit, self.made, 0, 0.0);
            permits.extend(placement.create);
            places.push(placement.place);
        }
        places
    }

    fn reap(&mut self) -> Vec<u32> {
        let sweep = self.ledger.reap(self.now);
        self.make(sweep.create);
        sweep.close
    }

    fn idle(&mut self, worker: usize) -> Held<u32> {
        match self.ledger.checkout(self.now, || PATIENCE, worker, || "nobody") {
            Checkout::Idle(held) => held,
            other => panic!("not idle: {other:?}"),
        }
    }

    fn wait(&mut self, name: &'static str) -> (Ticket, Creates) {
        self.wait_at(0, name)
    }

    fn wait_at(&mut self, worker: usize, name: &'static str) -> (Ticket, Creates) {
        match self.ledger.checkout(self.now, || PATIENCE, worker, || name) {
            Checkout::Wait { ticket, create, .. } => (ticket, create),
            other => panic!("does not wait: {other:?}"),
        }
    }

    fn give_back(&mut self, held: Held<u32>) -> Place<u32, &'static str> {
        self.ledger.checkin(self.now, held, Verdict::Clean).place
    }

    fn figures(&self) -> (usize, usize, usize, usize) {
        let figures = self.ledger.snapshot(self.now);
        (figures.active, figures.idle, figures.creating, figures.waiting)
    }
}

fn limits(min: usize, max: usize) -> Limits {
    Limits {
        min,
        max,
        idle_timeout: 30 * SECOND,
        max_lifetime: 3600 * SECOND,
        create_retry_interval: 200 * MS,
        concurrent_creates: 4,
    }
}

fn handed(place: Place<u32, &'static str>) -> (&'static str, Held<u32>) {
    match place {
        Place::Handed { waiter, connection } => (waiter, connection),
        other => panic!("not handed over: {other:?}"),
    }
}

#[test]
fn a_new_pool_is_warmed_to_min_under_the_cap() {
    let mut pool = Pool::new(5, 50);
    let sweep = pool.ledger.reap(pool.now);
    assert_eq!(sweep.create.len(), 4, "as many as the cap allows at once");
    pool.make(sweep.create);
    assert_eq!(pool.figures(), (0, 5, 0, 0));
}

#[test]
fn the_last_one_in_is_the_first_out_and_ones_own_before_others() {
    let mut pool = Pool::new(3, 3);
    pool.reap();
    let [mut a, b, c] = [pool.idle(0), pool.idle(0), pool.idle(0)];
    let (a_id, b_id, c_id) = (*a, *b, *c);
    a.home = 1;
    for held in [a, b, c] {
        pool.give_back(held);
    }
    let first = pool.idle(1);
    assert_eq!((*first, first.home), (a_id, 1));
    assert_eq!(*pool.idle(1), c_id, "none of its own left: the hottest");
    assert_eq!(*pool.idle(1), b_id);
}

#[test]
fn a_waiter_that_gives_up_at_the_hand_over_passes_the_connection_on() {
    let mut pool = Pool::new(1, 1);
    pool.reap();
    let held = pool.idle(0);
    let (first, _) = pool.wait("first");
    pool.wait("second").1.for_each(drop);
    let (waiter, held) = handed(pool.give_back(held));
    assert_eq!(waiter, "first");
    assert_eq!(pool.ledger.cancel_wait(first), None, "too late: it was served");
    assert_eq!(handed(pool.give_back(held)).0, "second");
}

#[test]
fn a_cancelled_waiter_is_passed_over() {
    let mut pool = Pool::new(1, 1);
    pool.reap();
    let held = pool.idle(0);
    pool.wait("first").1.for_each(drop);
    let (second, _) = pool.wait("second");
    pool.wait("third").1.for_each(drop);
    assert_eq!(pool.ledger.cancel_wait(second), Some("second"));
    assert_eq!(pool.ledger.cancel_wait(second), None);
    let (waiter, held) = handed(pool.give_back(held));
    assert_eq!(waiter, "first");
    assert_eq!(handed(pool.give_back(held)).0, "third");
}

#[test]
fn a_connection_stays_with_its_worker_unless_that_makes_another_wait_much_longer() {
    let mut pool = Pool::new(1, 1);
    pool.reap();
    let mut held = pool.idle(0);
    let queue = [(1, "first", LEAP / 2), (0, "own", LEAP / 2), (0, "late", LEAP / 2), (1, "last", LEAP)];
    for (worker, name, pause) in queue {
        pool.wait_at(worker, name).1.for_each(drop);
        pool.now += pause;
    }
    for expected in ["own", "first", "late", "last"] {
        let waiter;
        (waiter, held) = handed(pool.give_back(held));
        assert_eq!(waiter, expected);
    }
}

#[test]
fn one_look_serves_all_who_wait_unless_it_comes_too_late() {
    let mut pool = Pool::new(0, 1);
    let wait = |pool: &mut Pool, name, patience| match pool.ledger.checkout(pool.now, || patience, 0, || name) {
        Checkout::Wait { look_at, .. } => look_at,
        other => panic!("does not wait: {other:?}"),
    };
    let began = pool.now;
    let planned = began + SECOND;
    assert_eq!(wait(&mut pool, "first", SECOND), Some(planned));
    pool.now += 10 * MS;
    assert_eq!(wait(&mut pool, "second", SECOND), None);
    // A reload has made it shorter.
    let sooner = pool.now + 100 * MS;
    assert_eq!(wait(&mut pool, "third", 100 * MS), Some(sooner));
    assert_eq!(pool.ledger.give_up(planned, planned), (vec![], None), "another look has taken its place");
    pool.now = sooner;
    assert_eq!(pool.ledger.give_up(pool.now, sooner), (vec!["third"], Some(planned)));
    pool.now = planned;
    assert_eq!(pool.ledger.give_up(pool.now, planned), (vec!["first"], Some(planned + 10 * MS)));
    assert_eq!(pool.ledger.give_up(pool.now + SECOND, planned + 10 * MS), (vec!["second"], None));
    pool.now += SECOND;
    assert_eq!(wait(&mut pool, "fourth", SECOND), Some(pool.now + SECOND), "none is planned any more");
}

#[test]
fn a_connection_nobody_waits_for_any_more_becomes_idle() {
    let mut pool = Pool::new(0, 5);
    let (ticket, create) = pool.wait("impatient");
    assert_eq!(create.len(), 1);
    assert_eq!(pool.ledger.cancel_wait(ticket), Some("impatient"));
    assert!(matches!(pool.make(create)[..], [Place::Idle]));
}

#[test]
fn failures_are_paused_between_and_then_tried_one_at_a_time() {
    let mut pool = Pool::new(5, 50);
    let mut permits: Vec<Permit> = pool.ledger.reap(pool.now).create.collect();
    for name in ["a", "b", "c", "d", "e", "f"] {
        assert_eq!(pool.wait(name).1.len(), 0, "the cap is reached");
    }
    for pause in [200, 400, 800, 1600, 3200, 5000, 5000] {
        let mut failed = None;
        for permit in permits.drain(..) {
            failed = Some(pool.ledger.create_failed(pool.now, permit));
        }
        let failed = failed.expect("a permit");
        assert_eq!((failed.retry_at - pool.now, failed.waiting), (pause * MS, 6));
        pool.now = failed.retry_at - MS;
        assert_eq!(pool.ledger.retry(pool.now).len(), 0);
        assert_eq!(pool.ledger.reap(pool.now).create.len(), 0);
        pool.now = failed.retry_at;
        permits.extend(pool.ledger.retry(pool.now));
        assert_eq!(permits.len(), 1, "one trial");
        assert_eq!(pool.ledger.retry(pool.now).len(), 0);
    }
    let success = pool.ledger.created(pool.now, permits.remove(0), 1, 0, 0.0);
    assert_eq!(handed(success.place).0, "a");
    assert_eq!(success.create.len(), 4, "the server is back: the others too");
}

#[test]
fn a_node_that_is_known_to_be_back_is_not_paused_for() {
    let mut pool = Pool::new(0, 5);
    for permit in pool.wait("a").1 {
        pool.ledger.create_failed(pool.now, permit);
    }
    assert_eq!(pool.wait("b").1.len(), 0, "the pause");
    assert_eq!(pool.ledger.forgive(pool.now).len(), 2);
}

#[test]
fn an_error_for_all_empties_the_queue_in_order() {
    let mut pool = Pool::new(0, 1);
    let (ticket, create) = pool.wait("a");
    pool.wait("b").1.for_each(drop);
    for permit in create {
        pool.ledger.create_failed(pool.now, permit);
    }
    assert_eq!(pool.ledger.dismiss_waiters(), ["a", "b"]);
    assert_eq!(pool.ledger.cancel_wait(ticket), None);
    assert_eq!(pool.figures(), (0, 0, 0, 0));
}

#[test]
fn idle_ones_above_min_end_after_the_timeout_coldest_first() {
    let mut pool = Pool::new(0, 4);
    pool.ledger.limits.min = 4;
    pool.reap();
    pool.ledger.limits.min = 2;
    let [a, b, c, d] = [0; 4].map(|_| pool.idle(0));
    let order = [*a, *b, *c];
    for held in [a, b, c] {
        pool.give_back(held);
        pool.now += SECOND;
    }
    pool.now += 27 * SECOND;
    assert_eq!(pool.reap(), [order[0]], "idle for 30 s, 29 s and 28 s");
    pool.give_back(d);
    pool.now += 3600 * SECOND / 2;
    assert_eq!(pool.reap(), [order[1]], "never below min");
    assert_eq!(pool.figures(), (0, 2, 0, 0));
}

#[test]
fn a_successor_comes_before_the_old_one_goes() {
    let mut pool = Pool::new(1, 2);
    pool.reap();
    pool.now += 3590 * SECOND;
    let sweep = pool.ledger.reap(pool.now);
    assert_eq!((sweep.close, sweep.create.len()), (vec![], 1));
    assert!(pool.ledger.reap(pool.now).create.next().is_none(), "asked for once");
    let old = pool.idle(0);
    assert!(matches!(pool.give_back(old), Place::Idle), "no successor yet");
    let permit = Permit { generation: 0 };
    pool.ledger.created(pool.now, permit, 2, 0, 0.0).create.for_each(drop);
    assert_eq!(pool.reap(), [1]);
    assert_eq!(pool.figures(), (0, 1, 0, 0));
}

#[test]
fn a_busy_connection_near_its_end_is_replaced_while_in_use() {
    let mut pool = Pool::new(0, 3);
    let (_, create) = pool.wait("busy");
    let (_, held) = handed(pool.make(create).remove(0));
    pool.now += 3595 * SECOND;
    pool.reap();
    assert_eq!(pool.figures(), (1, 1, 0, 0));
    assert!(matches!(pool.give_back(held), Place::Close(1)));
    assert_eq!(*pool.idle(0), 2);
}

#[test]
fn a_connection_kept_long_past_its_end_asks_for_no_idle_companions() {
    let mut pool = Pool::new(1, 3);
    pool.reap();
    let held = pool.idle(0);
    pool.now += 4000 * SECOND;
    for _ in 0..100 {
        pool.now += SECOND;
        pool.reap();
    }
    assert_eq!(pool.figures(), (1, 0, 0, 0));
    assert!(matches!(pool.give_back(held), Place::Close(1)));
}

#[test]
fn at_its_end_a_connection_is_closed_and_made_anew_for_the_one_who_waits() {
    let mut pool = Pool::new(1, 1);
    pool.reap();
    let held = pool.idle(0);
    pool.wait("next").1.for_each(drop);
    pool.now += 3600 * SECOND;
    let placement = pool.ledger.checkin(pool.now, held, Verdict::Clean);
    assert!(matches!(placement.place, Place::Close(1)));
    assert_eq!(handed(pool.make(placement.create).remove(0)).0, "next");
}

#[test]
fn a_lowered_max_is_reached_as_connections_come_back() {
    let mut pool = Pool::new(4, 4);
    pool.reap();
    let [a, b, c] = [0; 3].map(|_| pool.idle(0));
    let sweep = pool.ledger.reconfigure(pool.now, limits(4, 2));
    assert_eq!((sweep.close.len(), sweep.create.len()), (1, 0), "the idle one at once");
    pool.wait("y").1.for_each(drop);
    assert!(matches!(pool.give_back(a), Place::Close(_)), "y has to wait");
    assert_eq!(handed(pool.give_back(b)).0, "y");
    assert!(matches!(pool.give_back(c), Place::Idle));
    assert_eq!(pool.figures(), (1, 1, 0, 0));
}

#[test]
fn a_raised_max_makes_connections_for_those_who_wait() {
    let mut pool = Pool::new(0, 0);
    for name in ["a", "b", "c"] {
        assert_eq!(pool.wait(name).1.len(), 0);
    }
    let sweep = pool.ledger.reconfigure(pool.now, limits(0, 2));
    assert_eq!(sweep.create.len(), 2);
}

#[test]
fn pause_lets_go_of_everything_and_resume_serves_in_order() {
    let mut pool = Pool::new(2, 2);
    pool.reap();
    let busy = pool.idle(0);
    assert_eq!(pool.ledger.pause().len(), 1);
    assert_eq!(pool.wait("a").1.len(), 0);
    assert_eq!(pool.wait("b").1.len(), 0);
    assert!(!pool.ledger.is_empty());
    assert!(matches!(pool.give_back(busy), Place::Close(_)));
    assert!(pool.ledger.is_empty());
    assert!(pool.reap().is_empty() && pool.ledger.is_empty());
    let create = pool.ledger.resume(pool.now);
    let names: Vec<_> = pool.make(create).into_iter().map(|place| handed(place).0).collect();
    assert_eq!(names, ["a", "b"]);
}

#[test]
fn reconnect_refuses_what_was_begun_before_it() {
    let mut pool = Pool::new(0, 3);
    let (_, create) = pool.wait("a");
    let (_, busy) = handed(pool.make(create).remove(0));
    let (_, begun) = pool.wait("b");
    pool.ledger.reconnect(pool.now).create.for_each(drop);
    assert_eq!(pool.ledger.snapshot(pool.now).stale, 1);
    assert!(matches!(pool.give_back(busy), Place::Close(1)));
    let mut stale = pool.make(begun).into_iter();
    assert!(matches!(stale.next(), Some(Place::Close(2))));
    assert_eq!(handed(stale.next().expect("made anew")).0, "b");
}

#[test]
fn a_closed_pool_refuses_everyone() {
    let mut pool = Pool::new(1, 2);
    pool.reap();
    let busy = pool.idle(0);
    let (_, create) = pool.wait("a");
    let closed = pool.ledger.close();
    assert_eq!((closed.close.len(), closed.refuse), (0, vec!["a"]));
    assert!(matches!(pool.make(create)[..], [Place::Close(_)]));
    assert!(matches!(pool.give_back(busy), Place::Close(_)));
    assert!(matches!(pool.ledger.checkout(pool.now, || PATIENCE, 0, || "b"), Checkout::Closed));
    assert_eq!(pool.ledger.resume(pool.now).len(), 0, "for good");
    assert!(pool.ledger.is_empty());
}

#[test]
fn a_dead_idle_connection_is_removed_and_replaced() {
    let mut pool = Pool::new(2, 2);
    pool.reap();
    let sweep = pool.ledger.lost(pool.now, |connection| *connection == 1);
    assert_eq!((sweep.close, sweep.create.len()), (vec![1], 1));
}

#[test]
fn a_vacated_pool_serves_those_who_wait_and_keeps_no_stock() {
    let mut pool = Pool::new(2, 2);
    pool.reap();
    let busy = pool.idle(0);
    let until = pool.now + 6 * SECOND;
    let sweep = pool.ledger.vacate(pool.now, until);
    assert_eq!((sweep.close.len(), sweep.create.len()), (1, 0));
    assert!(matches!(pool.give_back(busy), Place::Close(_)));
    pool.reap();
    assert!(pool.ledger.is_empty());
    let (_, create) = pool.wait("a");
    let [place] = <[_; 1]>::try_from(pool.make(create)).unwrap();
    let (_, late) = handed(place);
    pool.now = until;
    pool.reap();
    pool.give_back(late);
    assert_eq!(pool.figures(), (0, 2, 0, 0));
}

#[test]
fn a_vacated_pool_that_is_taken_up_again_has_its_stock_at_once() {
    let mut pool = Pool::new(2, 2);
    pool.reap();
    let until = pool.now + 6 * SECOND;
    assert_eq!(pool.ledger.vacate(pool.now, until).close.len(), 2);
    let create = pool.ledger.occupy(pool.now);
    assert_eq!(create.len(), 2);
    pool.make(create);
    assert_eq!(pool.figures(), (0, 2, 0, 0));
}

#[test]
fn trim_leaves_min() {
    let mut pool = Pool::new(5, 5);
    pool.reap();
    pool.ledger.limits.min = 3;
    let busy = pool.idle(0);
    assert_eq!(pool.ledger.trim().len(), 2);
    pool.give_back(busy);
    assert_eq!(pool.figures(), (0, 3, 0, 0));
}

#[test]
fn the_wait_of_the_oldest_is_told() {
    let mut pool = Pool::new(0, 0);
    assert_eq!(pool.ledger.snapshot(pool.now).oldest_wait, Duration::ZERO);
    pool.wait("a").1.for_each(drop);
    pool.now += 3 * SECOND;
    pool.wait("b").1.for_each(drop);
    assert_eq!(pool.ledger.snapshot(pool.now).oldest_wait, 3 * SECOND);
}
