//! The ledger behind its lock, and a drawer for each worker: what a worker gives back it takes again first, and mostly
//! no other worker's core has touched what it looks at for that.
//!
//! A drawer is open only while the ledger [is at ease](Ledger::at_ease): nobody waits, nothing else is to be done with a
//! connection that comes back. To the ledger those in drawers are in use. Whoever asks or changes it otherwise, [locks](Books::lock)
//! it, which shuts all drawers and empties them into it first; they are opened again when a few have been given back since. So
//! the rules of the ledger hold as if there were no drawers.

use std::ops::{Deref, DerefMut};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

use crate::pool::ledger::{Creates, Held, Ledger, Limits, Place, Placement, Verdict};
use crate::stats::sharded::Apart;

/// A ledger for all workers at once.
#[derive(Debug)]
pub struct Books<C, W> {
    main: Mutex<Main<C, W>>,
    /// Lock order: `main` before any of these.
    drawers: Box<[Apart<Mutex<Drawer<C>>>]>,
}

#[derive(Debug)]
struct Main<C, W> {
    ledger: Ledger<C, W>,
    drawers_are_open: bool,
    /// Given back since the drawers were shut. Who shuts them looks at each, so they are not opened for less than as many.
    since_shut: usize,
}

#[derive(Debug)]
struct Drawer<C> {
    /// For connections of this generation; `None`: it is shut, and empty.
    open_for: Option<u64>,
    /// Hottest last, with when they were given back.
    idle: Vec<(Held<C>, Instant)>,
}

/// The ledger, with all that is idle in it.
pub struct Locked<'a, C, W> {
    main: MutexGuard<'a, Main<C, W>>,
}

impl<C, W> Books<C, W> {
    pub fn new(limits: Limits, workers: usize) -> Self {
        let drawer = |_| Apart(Mutex::new(Drawer { open_for: None, idle: Vec::new() }));
        Books {
            main: Mutex::new(Main { ledger: Ledger::new(limits), drawers_are_open: false, since_shut: 0 }),
            drawers: (0..workers).map(drawer).collect(),
        }
    }

    /// For whatever is not done for each query.
    pub fn lock(&self) -> Locked<'_, C, W> {
        let mut main = self.main.lock();
        if main.drawers_are_open {
            main.drawers_are_open = false;
            main.since_shut = 0;
            let mut kept_back = Vec::new();
            for drawer in &self.drawers {
                let mut drawer = drawer.0.lock();
                drawer.open_for = None;
                kept_back.append(&mut drawer.idle);
            }
            main.ledger.put_down(kept_back);
        }
        Locked { main }
    }

    /// The hottest idle connection of `worker`, or nothing.
    pub fn take_own(&self, worker: usize) -> Option<Held<C>> {
        self.take_from_drawer(worker).or_else(|| self.main.lock().ledger.take_own(worker))
    }

    /// An idle connection, of `worker` if there is one.
    pub fn take_any(&self, worker: usize) -> Option<Held<C>> {
        self.take_from_drawer(worker).or_else(|| {
            let mut main = self.main.lock();
            let idle = main.ledger.take_idle(worker);
            if idle.is_some() || !main.drawers_are_open {
                return idle;
            }
            (0..self.drawers.len()).find_map(|other| self.take_from_drawer(other))
        })
    }

    fn take_from_drawer(&self, worker: usize) -> Option<Held<C>> {
        self.drawers.get(worker)?.0.lock().idle.pop().map(|(held, _)| held)
    }

    /// Takes a connection back.
    pub fn checkin(&self, now: Instant, held: Held<C>, verdict: Verdict) -> Placement<C, W> {
        if verdict == Verdict::Clean
            && let Some(drawer) = self.drawers.get(held.home)
        {
            let mut drawer = drawer.0.lock();
            if drawer.open_for.is_some_and(|generation| held.stays(generation, now)) {
                drawer.idle.push((held, now));
                return Placement { place: Place::Idle, create: Creates::none() };
            }
        }
        let Locked { mut main } = self.lock();
        let placement = main.ledger.checkin(now, held, verdict);
        main.since_shut += 1;
        if main.since_shut >= self.drawers.len()
            && let Some(generation) = main.ledger.at_ease()
        {
            main.drawers_are_open = true;
            self.drawers.iter().for_each(|drawer| drawer.0.lock().open_for = Some(generation));
        }
        placement
    }
}

impl<C, W> Deref for Locked<'_, C, W> {
    type Target = Ledger<C, W>;

    fn deref(&self) -> &Ledger<C, W> {
        &self.main.ledger
    }
}

impl<C, W> DerefMut for Locked<'_, C, W> {
    fn deref_mut(&mut self) -> &mut Ledger<C, W> {
        &mut self.main.ledger
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use super::*;
    use crate::pool::ledger::Checkout;

    const WORKERS: usize = 3;

    type Hand = Held<usize>;

    /// With so many connections, all idle and of worker 0.
    fn books<W>(connections: usize, max_lifetime: Duration) -> Books<usize, W> {
        let limits = Limits {
            min: connections,
            max: connections,
            idle_timeout: Duration::from_secs(60),
            max_lifetime,
            create_retry_interval: Duration::from_secs(1),
            concurrent_creates: connections,
        };
        let books = Books::new(limits, WORKERS);
        let now = Instant::now();
        let create = books.lock().reap(now).create;
        create.enumerate().for_each(|(n, permit)| drop(books.lock().created(now, permit, n, 0, 0.0)));
        books
    }

    /// Gives it back, as worker `home` does.
    fn give<W>(books: &Books<usize, W>, mut held: Hand, home: usize) -> Place<usize, W> {
        held.home = home;
        books.checkin(Instant::now(), held, Verdict::Clean).place
    }

    fn in_drawers<W>(books: &Books<usize, W>) -> [usize; WORKERS] {
        std::array::from_fn(|worker| books.drawers[worker].0.lock().idle.len())
    }

    /// As many are given back and taken again as open the drawers.
    fn open<W>(books: &Books<usize, W>) {
        for _ in 0..WORKERS {
            let held = books.take_any(0).unwrap();
            give(books, held, 0);
        }
        assert!(books.main.lock().drawers_are_open);
    }

    #[test]
    fn what_a_worker_gives_back_it_takes_again_and_others_after_it() {
        let books = books::<()>(3, Duration::MAX);
        let held: Vec<_> = (0..3).map(|_| books.take_own(0).unwrap()).collect();
        assert!(books.take_any(0).is_none());
        for held in held {
            give(&books, held, 1);
        }
        assert_eq!(in_drawers(&books), [0, 0, 0], "they open with the third");
        open(&books);
        let [a, b] = [(); 2].map(|()| books.take_any(1).unwrap());
        let hot = b.connection;
        give(&books, a, 1);
        give(&books, b, 1);
        assert_eq!(in_drawers(&books)[1], 2);
        assert_eq!(books.take_own(1).map(|held| held.connection), Some(hot));
        assert!(books.take_own(2).is_none() && books.take_any(2).is_some());
    }

    #[test]
    fn whoever_looks_finds_all_that_is_idle() {
        let books = books::<()>(3, Duration::MAX);
        open(&books);
        let [a, b] = [(); 2].map(|()| books.take_any(0).unwrap());
        let last = a.connection;
        give(&books, b, 2);
        give(&books, a, 1);
        assert_ne!(in_drawers(&books), [0, 0, 0]);
        let locked = books.lock();
        assert_eq!((locked.snapshot(Instant::now()).idle, in_drawers(&books)), (3, [0, 0, 0]));
        assert_eq!(locked.idle().last().map(|(held, _)| held.connection), Some(last), "the hottest");
    }

    #[test]
    fn what_comes_back_while_drawers_are_shut_goes_where_the_ledger_says() {
        let books = books::<&str>(2, Duration::MAX);
        open(&books);
        let [a, b] = [(); 2].map(|()| books.take_any(0).unwrap());
        let patience = || Duration::from_secs(9);
        assert!(matches!(books.lock().checkout(Instant::now(), patience, 1, || "waiter"), Checkout::Wait { .. }));
        let Place::Handed { waiter: "waiter", connection } = give(&books, a, 0) else { panic!("it was waited for") };
        give(&books, b, 0);
        books.lock().pause();
        assert!(matches!(give(&books, connection, 0), Place::Close(_)));
        assert!(books.take_any(0).is_none() && books.lock().is_empty());
    }

    #[test]
    fn what_is_to_go_is_not_kept_in_a_drawer() {
        let all = books::<()>(2, Duration::MAX);
        open(&all);
        let old = all.take_any(0).unwrap();
        let hidden = all.take_any(0).unwrap();
        give(&all, hidden, 0);
        assert_eq!(in_drawers(&all), [1, 0, 0]);
        let sweep = all.lock().reconnect(Instant::now());
        assert_eq!(sweep.close.len(), 1, "also what lay in a drawer");
        sweep.create.for_each(|permit| drop(all.lock().created(Instant::now(), permit, 9, 0, 0.0)));
        open(&all);
        assert!(matches!(give(&all, old, 0), Place::Close(_)), "it is of an older generation");

        let hour = Duration::from_secs(3600);
        let books = books::<()>(1, hour);
        open(&books);
        let held = books.take_any(0).unwrap();
        assert!(matches!(books.checkin(Instant::now() + hour, held, Verdict::Clean).place, Place::Close(_)));
    }

    #[test]
    fn nobody_waits_in_vain_while_others_come_and_go() {
        const CONNECTIONS: usize = 3;
        let books = books::<Sender<Hand>>(CONNECTIONS, Duration::MAX);
        open(&books);
        let (stop, waits) = (AtomicBool::new(false), AtomicUsize::new(0));
        let take = |worker: usize| -> Hand {
            if let Some(held) = books.take_own(worker).or_else(|| books.take_any(worker)) {
                return held;
            }
            let (sender, receiver): (_, Receiver<Hand>) = channel();
            let checkout = books.lock().checkout(Instant::now(), || Duration::from_secs(99), worker, || sender);
            match checkout {
                Checkout::Idle(held) => held,
                Checkout::Wait { .. } => {
                    waits.fetch_add(1, Ordering::Relaxed);
                    receiver.recv_timeout(Duration::from_secs(20)).expect("a connection came free")
                }
                Checkout::Closed => unreachable!(),
            }
        };
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..6)
                .map(|client| {
                    let (take, books) = (&take, &books);
                    scope.spawn(move || {
                        for turn in 0..5_000 {
                            let held = take(client % WORKERS);
                            if turn % 64 == 0 {
                                std::thread::yield_now();
                            }
                            if let Place::Handed { waiter, connection } = give(books, held, client % WORKERS) {
                                waiter.send(connection).expect("who waits stays");
                            }
                        }
                    })
                })
                .collect();
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let figures = books.lock().snapshot(Instant::now());
                    assert!(figures.idle == 0 || figures.waiting == 0, "{figures:?}");
                    std::thread::yield_now();
                }
            });
            let ended: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
            stop.store(true, Ordering::Relaxed);
            assert!(ended.iter().all(Result::is_ok));
        });
        assert_eq!(books.lock().snapshot(Instant::now()).idle, CONNECTIONS);
        assert!(waits.load(Ordering::Relaxed) > 0);
    }
}
