//! What the rest of pgweir sees of a client: its row in SHOW CLIENTS, its cancel key, and the ways to stop it.

use std::ops::Deref;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::backend::cancel::Identity;
use crate::frontend::nudge::Nudge;
use crate::frontend::proxy::Proxy;
use crate::net::Peer;

/// What a client is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Activity {
    Idle = 0,
    Waiting = 1,
    Active = 2,
    /// In a transaction, with nothing asked.
    IdleInTransaction = 3,
}

impl Activity {
    fn from_u8(n: u8) -> Activity {
        match n {
            1 => Activity::Waiting,
            2 => Activity::Active,
            3 => Activity::IdleInTransaction,
            _ => Activity::Idle,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Activity::Idle => "idle",
            Activity::Waiting => "waiting",
            Activity::Active => "active",
            Activity::IdleInTransaction => "idle in transaction",
        }
    }
}

/// Why a client's session is ended from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stop {
    None = 0,
    /// The process ends.
    Shutdown = 1,
    /// KILL_CLIENT.
    Killed = 2,
    /// `idle_transaction_timeout`
    IdleInTransaction = 3,
}

/// What a client waits for where no server runs anything for it, in `waits`: nothing that could be cancelled; something; in vain.
const NOTHING: u8 = 0;
const WAITS: u8 = 1;
const CANCELLED: u8 = 2;

/// No time at which an activity begins.
const NEVER: u64 = u64::MAX;

/// One logged-in client.
#[derive(Debug)]
pub struct Client {
    pub id: u64,
    /// Its cancel key.
    pub pid: i32,
    pub secret: Vec<u8>,
    pub user: Arc<str>,
    pub database: Arc<str>,
    /// Version and cipher; empty: no TLS.
    pub tls: String,
    pub peer: Peer,
    pub local: Peer,
    pub connected: Instant,
    pub application_name: Mutex<String>,
    /// PgBouncer's: none, logical, physical.
    pub replication: &'static str,
    activity: AtomicU8,
    /// Microseconds after `connected` at which the activity began.
    since: AtomicU64,
    /// The `since` for which it was last nudged as idle.
    nudged_for: AtomicU64,
    /// [`crate::session::pins::Pins`] bits.
    pub pins: AtomicU16,
    pub prepared: AtomicUsize,
    /// The connection of no pool that serves it.
    pub server: OnceLock<Arc<Identity>>,
    waits: AtomicU8,
    stop: AtomicU8,
    /// Raised where it is to stop, or to look again at what it waits for.
    pub nudged: Nudge,
}

impl Client {
    pub fn set_activity(&self, activity: Activity, now: Instant) {
        self.since.store(now.saturating_duration_since(self.connected).as_micros() as u64, Ordering::Relaxed);
        self.activity.store(activity as u8, Ordering::Relaxed);
    }

    /// What it does, and since when.
    pub fn activity(&self) -> (Activity, Instant) {
        let activity = Activity::from_u8(self.activity.load(Ordering::Relaxed));
        (activity, self.connected + Duration::from_micros(self.since.load(Ordering::Relaxed)))
    }

    /// Its statement waits, for a connection or another's run: a cancel request reaches that.
    pub fn begin_wait(&self) {
        self.waits.store(WAITS, Ordering::Relaxed);
    }

    /// Whether it was cancelled while it waited.
    pub fn is_cancelled(&self) -> bool {
        self.waits.load(Ordering::Relaxed) == CANCELLED
    }

    /// True where it was cancelled, up to now.
    pub fn end_wait(&self) -> bool {
        self.waits.swap(NOTHING, Ordering::Relaxed) == CANCELLED
    }

    /// Cancels the statement that runs for this client on `server`, if one does, or its wait. The connection is not handed on to
    /// anyone while the request is under way, which goes on even if nobody waits for its end.
    pub fn cancel(&self, server: Option<&Arc<Identity>>) -> Option<JoinHandle<()>> {
        let Some(request) = server.and_then(|server| server.begin(self.id)) else {
            // Who hears the nudge sees it.
            let waits = self.waits.compare_exchange(WAITS, CANCELLED, Ordering::Relaxed, Ordering::Relaxed);
            waits.iter().for_each(|_| self.nudge());
            return None;
        };
        Some(tokio::spawn(async move {
            if let Err(failure) = request.send().await {
                tracing::warn!(%failure, "cannot cancel");
            }
        }))
    }

    pub fn stop(&self, why: Stop) {
        self.stop.store(why as u8, Ordering::Release);
        self.nudged.raise();
    }

    /// Has the session look again at what it waits for.
    pub fn nudge(&self) {
        self.nudged.raise();
    }

    pub fn stop_reason(&self) -> Stop {
        match self.stop.load(Ordering::Acquire) {
            1 => Stop::Shutdown,
            2 => Stop::Killed,
            3 => Stop::IdleInTransaction,
            _ => Stop::None,
        }
    }
}

/// A client's place among the clients, given up when this is dropped.
#[derive(Debug)]
pub struct Entered {
    proxy: Arc<Proxy>,
    client: Arc<Client>,
}

impl Entered {
    pub fn new(proxy: &Arc<Proxy>, new: NewClient) -> Entered {
        Entered { proxy: proxy.clone(), client: proxy.clients.enter(new) }
    }
}

impl Deref for Entered {
    type Target = Arc<Client>;

    fn deref(&self) -> &Arc<Client> {
        &self.client
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.proxy.clients.leave(&self.client);
    }
}

/// All logged-in clients, by the pid of their cancel key.
#[derive(Debug, Default)]
pub struct Clients {
    /// Processes of several servers may have the same pid: the secret tells them apart.
    by_pid: DashMap<i32, Vec<Arc<Client>>>,
    next: AtomicU64,
    /// Connections accepted and not yet closed, logged in or not.
    pub connections: AtomicUsize,
    /// Clients that are logged in, or about to be, at most `max_clients`.
    places: AtomicUsize,
    /// Sessions of which only a [`crate::frontend::rest::Rest`] is there.
    resting: AtomicUsize,
    /// `listen.peer_id`, which stands in the upper bits of each cancel key's pid.
    pub(super) peer_id: u8,
}

/// A client's place among `max_clients`; free again when it is dropped.
#[derive(Debug)]
pub struct Place(Arc<Clients>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.places.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where the peer's id stands in a cancel key's pid; the sign stays free. A server's own pid leaves it empty (Linux has
/// none above 2^22), and the id is the first byte of the secret instead.
const PEER_SHIFT: u32 = 24;

/// The `listen.peer_id` of the pgweir that gave out a cancel key.
pub fn peer_of(pid: i32, secret: &[u8]) -> u8 {
    match (pid >> PEER_SHIFT) as u8 {
        0 => secret.first().copied().unwrap_or(0),
        id => id,
    }
}

/// Who is to be entered.
#[derive(Debug)]
pub struct NewClient {
    pub user: Arc<str>,
    pub database: Arc<str>,
    pub peer: Peer,
    pub local: Peer,
    /// Version and cipher; empty: no TLS.
    pub tls: String,
    /// Bytes of the cancel key: 4 in protocol 3.0, 32 in 3.2.
    pub key_length: usize,
    pub application_name: String,
    /// Of the server process that serves it from first to last, where it has one.
    pub server_pid: Option<i32>,
    /// As in [`Client::replication`].
    pub replication: &'static str,
}

impl Clients {
    pub fn new(peer_id: u8) -> Clients {
        Clients { peer_id, ..Clients::default() }
    }

    /// One of at most `max` places; `None`: all are taken.
    pub fn take_place(self: &Arc<Self>, max: usize) -> Option<Place> {
        let taken = self.places.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < max).then_some(n + 1));
        taken.ok().map(|_| Place(self.clone()))
    }

    /// A pid for a cancel key, of random bits: all 31 for a pgweir that is alone, 24 beside its id for one of several.
    fn draw_pid(&self) -> i32 {
        let mut bytes = [0u8; 4];
        // A machine without randomness has failed at TLS and SCRAM before.
        let _ = aws_lc_rs::rand::fill(&mut bytes);
        let random = i32::from_be_bytes(bytes) & i32::MAX;
        match self.peer_id {
            0 => random.max(1),
            id => (random & ((1 << PEER_SHIFT) - 1)) | i32::from(id) << PEER_SHIFT,
        }
    }

    /// Enters a client, with a cancel key of its own.
    fn enter(&self, new: NewClient) -> Arc<Client> {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let mut secret = vec![0; new.key_length];
        let _ = aws_lc_rs::rand::fill(&mut secret);
        let server_pid = new.server_pid.filter(|pid| self.peer_id == 0 || *pid < 1 << PEER_SHIFT);
        if let (Some(_), 1.., Some(first)) = (server_pid, self.peer_id, secret.first_mut()) {
            *first = self.peer_id;
        }
        loop {
            let pid = server_pid.unwrap_or_else(|| self.draw_pid());
            let mut same = self.by_pid.entry(pid).or_default();
            if server_pid.is_none() && !same.is_empty() {
                continue;
            }
            let client = Arc::new(Client {
                id,
                pid,
                secret,
                user: new.user,
                database: new.database,
                tls: new.tls,
                peer: new.peer,
                local: new.local,
                connected: Instant::now(),
                application_name: Mutex::new(new.application_name),
                replication: new.replication,
                activity: AtomicU8::new(Activity::Idle as u8),
                since: AtomicU64::new(0),
                nudged_for: AtomicU64::new(NEVER),
                pins: AtomicU16::new(0),
                prepared: AtomicUsize::new(0),
                server: OnceLock::new(),
                waits: AtomicU8::new(NOTHING),
                stop: AtomicU8::new(0),
                nudged: Nudge::default(),
            });
            // Mostly alone: no room for more.
            same.reserve_exact(1);
            same.push(client.clone());
            return client;
        }
    }

    fn leave(&self, client: &Client) {
        self.by_pid.remove_if_mut(&client.pid, |_, same| {
            same.retain(|other| other.id != client.id);
            same.is_empty()
        });
    }

    /// Whose cancel key this is.
    pub fn of_key(&self, pid: i32, secret: &[u8]) -> Option<Arc<Client>> {
        let fits =
            |client: &&Arc<Client>| aws_lc_rs::constant_time::verify_slices_are_equal(&client.secret, secret).is_ok();
        self.by_pid.get(&pid).and_then(|same| same.iter().find(fits).cloned())
    }

    pub fn all(&self) -> Vec<Arc<Client>> {
        let mut all: Vec<_> = self.by_pid.iter().flat_map(|entry| entry.value().clone()).collect();
        all.sort_by_key(|client| client.id);
        all
    }

    /// Nudges all clients of a database that wait for something.
    pub fn nudge(&self, database: &str) {
        let waiting = |client: &&Arc<Client>| *client.database == *database && client.activity().0 != Activity::Idle;
        self.by_pid.iter().for_each(|entry| entry.value().iter().filter(waiting).for_each(|client| client.nudge()));
    }

    /// Nudges those that have been idle for so long, once each time.
    pub fn nudge_idle(&self, after: Duration, now: Instant) {
        let idle = |client: &&Arc<Client>| {
            let (activity, since) = client.activity();
            let began = client.since.load(Ordering::Relaxed);
            activity == Activity::Idle
                && now.saturating_duration_since(since) >= after
                && client.nudged_for.swap(began, Ordering::Relaxed) != began
        };
        self.by_pid.iter().for_each(|entry| entry.value().iter().filter(idle).for_each(|client| client.nudge()));
    }

    /// A session is put to rest.
    pub fn rests(&self) {
        self.resting.fetch_add(1, Ordering::Relaxed);
    }

    /// It goes on. Answers from memory do not show in its activity, so it is to be nudged again in any case.
    pub fn goes_on(&self, client: &Client) {
        self.resting.fetch_sub(1, Ordering::Relaxed);
        client.nudged_for.store(NEVER, Ordering::Relaxed);
    }

    /// How many sessions are at rest.
    pub fn resting(&self) -> usize {
        self.resting.load(Ordering::Relaxed)
    }

    pub fn len(&self) -> usize {
        self.by_pid.iter().map(|entry| entry.value().len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.by_pid.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(clients: &Clients, server_pid: Option<i32>, key_length: usize) -> (i32, Vec<u8>) {
        let client = clients.enter(NewClient {
            user: "u".into(),
            database: "d".into(),
            peer: Peer::Unix,
            local: Peer::Unix,
            tls: String::new(),
            key_length,
            application_name: String::new(),
            server_pid,
            replication: "none",
        });
        (client.pid, client.secret.clone())
    }

    #[test]
    fn a_wait_tells_at_its_end_whether_it_was_cancelled() {
        let clients = Clients::new(1);
        let (pid, secret) = key(&clients, None, 32);
        let client = clients.of_key(pid, &secret).expect("the one who entered");
        client.begin_wait();
        assert!(client.cancel(None).is_none() && client.end_wait());
        client.begin_wait();
        assert!(!client.end_wait());
        // Where nothing waits, nothing is cancelled.
        assert!(client.cancel(None).is_none());
        client.begin_wait();
        assert!(!client.end_wait());
    }

    #[test]
    fn a_key_tells_whose_it_is() {
        for id in [1, 127] {
            let clients = Clients::new(id);
            for length in [4, 32] {
                let (pid, secret) = key(&clients, None, length);
                assert!(pid > 0 && peer_of(pid, &secret) == id, "{pid:x}");
                let (pid, secret) = key(&clients, Some(4242), length);
                assert_eq!((pid, peer_of(pid, &secret), secret.len()), (4242, id, length));
                // One that would leave no room names this process instead.
                let (pid, secret) = key(&clients, Some(0x0123_4567), length);
                assert!(pid != 0x0123_4567 && peer_of(pid, &secret) == id, "{pid:x}");
            }
        }
        let alone = Clients::new(0);
        assert!((0..1000).all(|_| alone.draw_pid() > 0));
        assert_eq!(key(&alone, Some(0x0123_4567), 4).0, 0x0123_4567);
    }
}
