//! A pool: its books, and the tasks that do what they say.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::backend::cancel::Identity;
use crate::backend::connect::{ConnectFailure, Login};
use crate::backend::connection::Connection;
use crate::cluster::node::Node;
use crate::config;
use crate::error::{Fault, Severity, sqlstate};
use crate::net::tls::Connector;
use crate::pool::books::Books;
use crate::pool::lease::{Lease, is_left};
use crate::pool::ledger::{Checkout, Held, Place, Placement, Snapshot, Sweep, Ticket, Verdict};

/// A connection in the books.
pub type Pooled = Held<Box<Connection>>;

/// What a waiter is sent: a lease, or why there will be none.
pub type Answer = Result<Lease, Refused>;

/// Why a checkout failed.
#[derive(Debug, Clone)]
pub enum Refused {
    /// `acquire_timeout` has passed; with the last error of making a connection.
    Timeout(Option<String>),
    /// The node cannot be reached: another may.
    Unavailable(String),
    /// The server refuses this login, in its own words.
    Login(Fault),
    /// The pool is closed.
    Closed,
    /// The client has asked for it.
    Cancelled,
}

impl Refused {
    /// What the client is told, where nothing else can be tried.
    pub fn fault(&self, acquire_timeout: Duration) -> Fault {
        match self {
            Refused::Timeout(last) => {
                let message = format!("no server connection became free within {} ms", acquire_timeout.as_millis());
                let fault = Fault::error(sqlstate::TOO_MANY_CONNECTIONS, message);
                match last {
                    Some(last) => fault.with_detail(format!("The last attempt to make one failed: {last}")),
                    None => fault.with_hint("Raise pool.max, shorten transactions, or raise pool.acquire_timeout."),
                }
            }
            Refused::Unavailable(why) => {
                Fault::error(sqlstate::CANNOT_CONNECT, "no server can be reached").with_detail(why.clone())
            }
            Refused::Login(fault) => Fault { severity: Severity::Error, ..fault.clone() },
            Refused::Cancelled => Fault::error(sqlstate::QUERY_CANCELED, "canceling statement due to user request"),
            Refused::Closed => Fault::error(sqlstate::ADMIN_SHUTDOWN, "pgweir is shutting down"),
        }
    }
}

/// The connections of one database, user and node.
#[derive(Debug)]
pub struct Pool {
    pub database: Arc<str>,
    pub login: Login,
    pub node: Arc<Node>,
    pub tls: Connector,
    pub config: ArcSwap<config::Pool>,
    pub(super) books: Books<Box<Connection>, oneshot::Sender<Answer>>,
    pub(super) last_error: Mutex<Option<String>>,
    /// Every connection of the pool that still lives, for SHOW SERVERS.
    servers: Mutex<Vec<Weak<Identity>>>,
    ids: Arc<AtomicU64>,
    /// Ends the reaper's pause, whose length may have changed.
    pub(super) reconfigured: Arc<Notify>,
}

/// A connection at rest.
#[derive(Debug)]
pub struct IdleServer {
    pub id: u64,
    /// Its last client gave it back, or it was made.
    pub since: Instant,
    /// As the server reported it last.
    pub application_name: String,
}

impl Pool {
    /// `ids` numbers connections, for the whole process; so many workers lease them.
    pub fn new(
        database: Arc<str>,
        login: Login,
        node: Arc<Node>,
        tls: Connector,
        config: Arc<config::Pool>,
        ids: Arc<AtomicU64>,
        workers: usize,
    ) -> Pool {
        Pool {
            database,
            login,
            node,
            tls,
            books: Books::new((&*config).into(), workers),
            config: ArcSwap::new(config),
            last_error: Mutex::new(None),
            servers: Mutex::default(),
            ids,
            reconfigured: Arc::default(),
        }
    }

    /// A connection for a client of `worker`: an idle one, or the next that comes free within `acquire_timeout`.
    ///
    /// Dropping the future gives up the place in the queue; a connection already on its way goes back to the pool.
    pub async fn checkout(self: &Arc<Self>, worker: usize) -> Answer {
        match self.checkout_or_queue(worker, Instant::now()) {
            Ok(lease) => Ok(lease),
            Err(queued) => queued.await,
        }
    }

    /// An idle connection of `worker`, or the way to any that is idle or comes free.
    ///
    /// # Errors
    /// `worker` has none that is idle.
    pub fn checkout_or_queue(self: &Arc<Self>, worker: usize, now: Instant) -> Result<Lease, Queued> {
        let own = self.first_alive(worker, now, || self.books.take_own(worker));
        own.ok_or_else(|| Queued { pool: self.clone(), worker, stage: Stage::Early })
    }

    /// An idle connection for a client of `worker`, or none.
    pub fn try_checkout(self: &Arc<Self>, worker: usize, now: Instant) -> Option<Lease> {
        self.first_alive(worker, now, || self.books.take_any(worker))
    }

    fn first_alive(self: &Arc<Self>, worker: usize, now: Instant, take: impl Fn() -> Option<Pooled>) -> Option<Lease> {
        loop {
            let held = take()?;
            if let Some(lease) = self.lease(held, worker, now) {
                return Some(lease);
            }
        }
    }

    /// A connection that has died idle is never leased; it is closed instead.
    fn lease(self: &Arc<Self>, held: Pooled, worker: usize, now: Instant) -> Option<Lease> {
        let mut lease = Lease::new(held, self.clone());
        lease.settle_on(worker, now).then_some(lease)
    }

    /// Takes a connection back from a lease.
    pub(super) fn checkin(self: &Arc<Self>, now: Instant, held: Pooled, verdict: Verdict) {
        let home = held.home;
        let placement = self.books.checkin(now, held, verdict);
        self.place(placement, home);
    }

    /// Does what the ledger said of a connection; one whose waiter has gone comes back at once.
    pub(super) fn place(self: &Arc<Self>, placement: Placement<Box<Connection>, oneshot::Sender<Answer>>, home: usize) {
        let Placement { place, create } = placement;
        self.start(create, home);
        match place {
            // An undelivered lease checks itself in when it is dropped.
            Place::Handed { waiter, connection } => drop(waiter.send(Ok(Lease::new(connection, self.clone())))),
            Place::Close(connection) => self.close(connection),
            Place::Idle => {}
        }
    }

    /// Those who wait are told; a replica's clients go elsewhere at once.
    pub(super) fn dismiss(&self, refused: &Refused) {
        let waiters = self.books.lock().dismiss_waiters();
        for waiter in waiters {
            let _ = waiter.send(Err(refused.clone()));
        }
    }

    /// Each `reap_interval`: closes what is dead, old or too long idle, and makes what is missing.
    pub fn reap(self: &Arc<Self>, home: usize) {
        let now = Instant::now();
        let lost = self.books.lock().lost(now, |c| is_left(c, &self.node) || !c.is_usable());
        self.sweep(lost, home);
        let sweep = self.books.lock().reap(now);
        self.sweep(sweep, home);
    }

    /// The node serves again: what failed while it was down delays nobody any more.
    pub fn node_returned(self: &Arc<Self>, home: usize) {
        let create = self.books.lock().forgive(Instant::now());
        self.start(create, home);
    }

    /// Memory runs short: closes what is idle above `min`.
    pub fn trim(&self) {
        let idle = self.books.lock().trim();
        idle.into_iter().for_each(|c| self.close(c));
    }

    /// RECONNECT; also when the node is known to be gone.
    pub fn reconnect(self: &Arc<Self>, home: usize) {
        let sweep = self.books.lock().reconnect(Instant::now());
        self.sweep(sweep, home);
    }

    /// A statement wants the database to itself.
    pub fn vacate(self: &Arc<Self>, until: Instant, home: usize) {
        let sweep = self.books.lock().vacate(Instant::now(), until);
        self.sweep(sweep, home);
    }

    /// It has the database no more.
    pub fn occupy(self: &Arc<Self>, home: usize) {
        let create = self.books.lock().occupy(Instant::now());
        self.start(create, home);
    }

    pub fn pause(self: &Arc<Self>) {
        let idle = self.books.lock().pause();
        idle.into_iter().for_each(|c| self.close(c));
    }

    /// A pause is complete, or over: no connection is left that was open before it.
    pub fn has_paused(&self) -> bool {
        let books = self.books.lock();
        books.is_empty() || !books.snapshot(Instant::now()).paused
    }

    pub fn resume(self: &Arc<Self>, home: usize) {
        let create = self.books.lock().resume(Instant::now());
        self.start(create, home);
    }

    /// Takes reloaded settings.
    pub fn reconfigure(self: &Arc<Self>, config: Arc<config::Pool>, home: usize) {
        let sweep = self.books.lock().reconfigure(Instant::now(), (&*config).into());
        self.config.store(config);
        self.sweep(sweep, home);
        self.reconfigured.notify_one();
    }

    /// Ends the pool; connections in use are closed as they come back.
    pub fn shut(self: &Arc<Self>) {
        let closed = self.books.lock().close();
        closed.close.into_iter().for_each(|c| self.close(c));
        for waiter in closed.refuse {
            let _ = waiter.send(Err(Refused::Closed));
        }
    }

    fn sweep(self: &Arc<Self>, sweep: Sweep<Box<Connection>>, home: usize) {
        sweep.close.into_iter().for_each(|c| self.close(c));
        self.start(sweep.create, home);
    }

    /// Parts politely within `destroy_timeout`; then the socket is dropped.
    pub(super) fn close(&self, connection: Box<Connection>) {
        let timeout = self.config.load().destroy_timeout;
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(timeout, connection.terminate()));
        }
    }

    /// Notes a connection that was just made.
    pub(super) fn enter(&self, server: &Arc<Identity>) {
        let mut servers = self.servers.lock();
        servers.retain(|known| known.strong_count() > 0);
        server.id.store(self.ids.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        servers.push(Arc::downgrade(server));
    }

    pub fn servers(&self) -> Vec<Arc<Identity>> {
        self.servers.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Those that nobody has, for SHOW SERVERS.
    pub fn idle_servers(&self) -> Vec<IdleServer> {
        let books = self.books.lock();
        let reported = |held: &Pooled, wanted: &str| {
            let status = held.statuses.iter().find(|(name, _)| **name == *wanted);
            status.map(|(_, value)| value.to_string()).unwrap_or_default()
        };
        let idle = books.idle().map(|(held, since)| IdleServer {
            id: held.identity.id.load(Ordering::Relaxed),
            since,
            application_name: reported(held, "application_name"),
        });
        idle.collect()
    }

    pub fn snapshot(&self) -> Snapshot {
        self.books.lock().snapshot(Instant::now())
    }

    /// Notes why no connection could be made, for those who wait in vain.
    pub(super) fn note_failure(&self, failure: &ConnectFailure) {
        *self.last_error.lock() = Some(failure.to_string());
    }
}

/// Ends the waits for `pool` that have lasted `acquire_timeout`, until nobody waits.
async fn give_up(pool: Weak<Pool>, mut look_at: Instant) {
    loop {
        tokio::time::sleep_until(look_at.into()).await;
        let Some(pool) = pool.upgrade() else { return };
        let (waiters, next) = pool.books.lock().give_up(Instant::now(), look_at);
        for waiter in waiters {
            let _ = waiter.send(Err(Refused::Timeout(pool.last_error.lock().clone())));
        }
        match next {
            Some(next) => look_at = next,
            None => return,
        }
    }
}

/// The way to a connection that is not at hand, a future of what comes of it. Dropped, a place in the queue is given up; a
/// connection already on its way goes back to the pool.
///
/// At first it lets those go ahead whom the worker can serve already, and what has come meanwhile: one of them may give back
/// a connection of the worker's own. To move another's to its reactor costs some microseconds.
#[derive(Debug)]
pub struct Queued {
    pub pool: Arc<Pool>,
    worker: usize,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Early,
    GivesWay,
    Waits {
        ticket: Ticket,
        answer: oneshot::Receiver<Answer>,
    },
    /// It has its answer: there is nothing to give up.
    Called,
}

impl Queued {
    /// It will be polled again soon, and what else can happen can wait as long.
    pub fn gives_way(&self) -> bool {
        matches!(self.stage, Stage::GivesWay)
    }

    /// Takes any idle connection, or a place in the queue for the next that comes free.
    fn enter(&mut self, now: Instant) -> Option<Answer> {
        let Queued { pool, worker, .. } = self;
        loop {
            if let Some(lease) = pool.try_checkout(*worker, now) {
                return Some(Ok(lease));
            }
            let mut receiver = None;
            let patience = || pool.config.load().acquire_timeout;
            let checkout = pool.books.lock().checkout(now, patience, *worker, || {
                let (sender, queued) = oneshot::channel();
                receiver = Some(queued);
                sender
            });
            match checkout {
                Checkout::Idle(held) => {
                    if let Some(lease) = pool.lease(held, *worker, now) {
                        return Some(Ok(lease));
                    }
                }
                Checkout::Wait { ticket, create, look_at } => {
                    self.stage = receiver.map_or(Stage::Called, |answer| Stage::Waits { ticket, answer });
                    pool.start(create, *worker);
                    if let Some(look_at) = look_at {
                        tokio::spawn(give_up(Arc::downgrade(pool), look_at));
                    }
                    return None;
                }
                Checkout::Closed => return Some(Err(Refused::Closed)),
            }
        }
    }
}

impl Future for Queued {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        loop {
            let answer = match &mut self.stage {
                Stage::Early => {
                    self.stage = Stage::GivesWay;
                    // Its first poll has the runtime wake the task behind all that are ready and what has come meanwhile.
                    let _ = pin!(tokio::task::yield_now()).poll(cx);
                    return Poll::Pending;
                }
                Stage::GivesWay => {
                    self.stage = Stage::Called;
                    self.enter(Instant::now())
                }
                Stage::Waits { answer, .. } => {
                    let answer = ready!(Pin::new(answer).poll(cx)).unwrap_or(Err(Refused::Closed));
                    self.stage = Stage::Called;
                    let now = Instant::now();
                    match answer {
                        Ok(mut lease) => match lease.settle_on(self.worker, now) {
                            true => Some(Ok(lease)),
                            false => {
                                // It has died on the way.
                                drop(lease);
                                self.enter(now)
                            }
                        },
                        refused => Some(refused),
                    }
                }
                Stage::Called => Some(Err(Refused::Closed)),
            };
            if let Some(answer) = answer {
                return Poll::Ready(answer);
            }
        }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        if let Stage::Waits { ticket, .. } = self.stage {
            self.pool.books.lock().cancel_wait(ticket);
        }
    }
}
