//! The counters behind PgBouncer's SHOW STATS, by database and sharded by worker.
//!
//! Averages are PgBouncer's (`stats.c`, calc_average): since the last but one turn of the period, so over 60 to
//! 120 seconds; rates per second, times per query, transaction or server assignment.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use parking_lot::Mutex;

use super::micros;

/// PgBouncer's default `stats_period`.
pub const PERIOD: Duration = Duration::from_secs(60);

/// Counters of one database on one worker, which alone counts in them. Aligned so that workers do not share cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    server_assignment_count: AtomicU64,
    xact_count: AtomicU64,
    query_count: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    xact_time: AtomicU64,
    query_time: AtomicU64,
    wait_time: AtomicU64,
    client_parse_count: AtomicU64,
    server_parse_count: AtomicU64,
    bind_count: AtomicU64,
    client_login_count: AtomicU64,
}

/// A copy of counters, or averages made of two copies. Times in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    pub server_assignment_count: u64,
    pub xact_count: u64,
    pub query_count: u64,
    /// Bytes from clients.
    pub received: u64,
    /// Bytes to clients.
    pub sent: u64,
    pub xact_time: u64,
    pub query_time: u64,
    pub wait_time: u64,
    pub client_parse_count: u64,
    pub server_parse_count: u64,
    pub bind_count: u64,
    pub client_login_count: u64,
}

/// Adds to a counter that nobody else writes, so that no addition is lost, and none locks the bus.
pub fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

impl Counters {
    /// A statement ended that ran this long.
    pub fn query(&self, time: Duration) {
        add(&self.query_count, 1);
        add(&self.query_time, micros(time));
    }

    /// A transaction ended, a single statement outside of one included.
    pub fn transaction(&self, time: Duration) {
        add(&self.xact_count, 1);
        add(&self.xact_time, micros(time));
    }

    /// A client was given a server connection after this wait.
    pub fn server_assigned(&self, wait: Duration) {
        add(&self.server_assignment_count, 1);
        add(&self.wait_time, micros(wait));
    }

    /// A client gave up its wait for a server connection.
    pub fn wait_abandoned(&self, wait: Duration) {
        add(&self.wait_time, micros(wait));
    }

    pub fn received(&self, bytes: u64) {
        add(&self.received, bytes);
    }

    pub fn sent(&self, bytes: u64) {
        add(&self.sent, bytes);
    }

    /// A Parse from a client.
    pub fn client_parse(&self) {
        add(&self.client_parse_count, 1);
    }

    /// A Parse that pgweir sent to a server.
    pub fn server_parse(&self) {
        add(&self.server_parse_count, 1);
    }

    pub fn bind(&self) {
        add(&self.bind_count, 1);
    }

    pub fn client_login(&self) {
        add(&self.client_login_count, 1);
    }

    fn totals(&self) -> Totals {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            server_assignment_count: get(&self.server_assignment_count),
            xact_count: get(&self.xact_count),
            query_count: get(&self.query_count),
            received: get(&self.received),
            sent: get(&self.sent),
            xact_time: get(&self.xact_time),
            query_time: get(&self.query_time),
            wait_time: get(&self.wait_time),
            client_parse_count: get(&self.client_parse_count),
            server_parse_count: get(&self.server_parse_count),
            bind_count: get(&self.bind_count),
            client_login_count: get(&self.client_login_count),
        }
    }
}

impl Totals {
    /// The columns in PgBouncer's order.
    pub fn values(&self) -> [u64; 12] {
        [
            self.server_assignment_count,
            self.xact_count,
            self.query_count,
            self.received,
            self.sent,
            self.xact_time,
            self.query_time,
            self.wait_time,
            self.client_parse_count,
            self.server_parse_count,
            self.bind_count,
            self.client_login_count,
        ]
    }

    fn combine(self, other: Totals, f: impl Fn(u64, u64) -> u64) -> Totals {
        Totals {
            server_assignment_count: f(self.server_assignment_count, other.server_assignment_count),
            xact_count: f(self.xact_count, other.xact_count),
            query_count: f(self.query_count, other.query_count),
            received: f(self.received, other.received),
            sent: f(self.sent, other.sent),
            xact_time: f(self.xact_time, other.xact_time),
            query_time: f(self.query_time, other.query_time),
            wait_time: f(self.wait_time, other.wait_time),
            client_parse_count: f(self.client_parse_count, other.client_parse_count),
            server_parse_count: f(self.server_parse_count, other.server_parse_count),
            bind_count: f(self.bind_count, other.bind_count),
            client_login_count: f(self.client_login_count, other.client_login_count),
        }
    }

    /// The sum of two.
    pub fn plus(self, other: Totals) -> Totals {
        self.combine(other, u64::wrapping_add)
    }

    /// The averages of what came between `older` and these.
    fn average_since(self, older: Totals, elapsed: Duration) -> Totals {
        let elapsed = micros(elapsed);
        if elapsed == 0 {
            return Totals::default();
        }
        let gained = self.combine(older, u64::saturating_sub);
        let per_second = |n: u64| (u128::from(n) * 1_000_000 / u128::from(elapsed)) as u64;
        let rates = gained.combine(gained, |n, _| per_second(n));
        Totals {
            xact_time: gained.xact_time.checked_div(gained.xact_count).unwrap_or(0),
            query_time: gained.query_time.checked_div(gained.query_count).unwrap_or(0),
            wait_time: gained.wait_time.checked_div(gained.server_assignment_count).unwrap_or(0),
            ..rates
        }
    }
}

/// The counters of one database.
#[derive(Debug)]
pub struct Database {
    shards: Box<[Counters]>,
    turns: Mutex<Turns>,
    /// How often the connection that listens for the clients was made again, with notifications perhaps lost.
    pub listen_reconnects: AtomicU64,
}

/// Totals at the last turn of the period and at the one before.
#[derive(Debug, Default)]
struct Turns {
    newer: Totals,
    older: Totals,
}

impl Database {
    fn new(workers: usize) -> Database {
        let shards = (0..workers.max(1)).map(|_| Counters::default()).collect();
        Database { shards, turns: Mutex::default(), listen_reconnects: AtomicU64::new(0) }
    }

    pub fn workers(&self) -> usize {
        self.shards.len()
    }

    /// The counters to be used by a worker.
    pub fn at(&self, worker: usize) -> &Counters {
        self.shards.get(worker).unwrap_or(&self.shards[0])
    }

    /// The sum over the workers.
    pub fn totals(&self) -> Totals {
        self.shards.iter().map(Counters::totals).fold(Totals::default(), Totals::plus)
    }

    fn turn(&self) {
        let now = self.totals();
        let mut turns = self.turns.lock();
        turns.older = turns.newer;
        turns.newer = now;
    }
}

/// One row of SHOW STATS.
#[derive(Debug, Clone)]
pub struct DatabaseStats {
    pub database: Arc<str>,
    pub totals: Totals,
    pub averages: Totals,
    pub listen_reconnects: u64,
}

/// The databases that clients have used.
#[derive(Debug)]
pub struct Databases {
    workers: usize,
    databases: DashMap<Arc<str>, Arc<Database>>,
    stamps: Mutex<Stamps>,
}

#[derive(Debug)]
struct Stamps {
    newer: Instant,
    /// `None`: PgBouncer's beginning, a second before the first turn.
    older: Option<Instant>,
}

impl Databases {
    /// None yet; the first period begins at `now`.
    pub fn new(workers: usize, now: Instant) -> Databases {
        let stamps = Mutex::new(Stamps { newer: now, older: None });
        Databases { workers, databases: DashMap::new(), stamps }
    }

    /// The counters of a database, made at first sight. To be asked for after a login has succeeded, as they
    /// are kept for ever.
    pub fn database(&self, name: &Arc<str>) -> Arc<Database> {
        if let Some(found) = self.databases.get(name) {
            return found.clone();
        }
        let made = || Arc::new(Database::new(self.workers));
        self.databases.entry(name.clone()).or_insert_with(made).clone()
    }

    /// Turns the period where it has ended.
    pub fn tick(&self, now: Instant) {
        let mut stamps = self.stamps.lock();
        if now.saturating_duration_since(stamps.newer) < PERIOD {
            return;
        }
        stamps.older = Some(stamps.newer);
        stamps.newer = now;
        for entry in &self.databases {
            entry.value().turn();
        }
    }

    /// All databases by name.
    pub fn stats(&self, now: Instant) -> Vec<DatabaseStats> {
        let elapsed = self.elapsed(now);
        let mut stats: Vec<_> = self
            .databases
            .iter()
            .map(|entry| {
                let totals = entry.value().totals();
                let older = entry.value().turns.lock().older;
                let averages = totals.average_since(older, elapsed);
                let listen_reconnects = entry.value().listen_reconnects.load(Ordering::Relaxed);
                DatabaseStats { database: entry.key().clone(), totals, averages, listen_reconnects }
            })
            .collect();
        stats.sort_by(|a, b| a.database.cmp(&b.database));
        stats
    }

    /// Totals and averages over all databases, as SHOW TOTALS has them.
    pub fn overall(&self, now: Instant) -> (Totals, Totals) {
        let sum = |of: fn(&Database) -> Totals| {
            self.databases.iter().map(|e| of(e.value())).fold(Totals::default(), Totals::plus)
        };
        let totals = sum(Database::totals);
        let older = sum(|database| database.turns.lock().older);
        (totals, totals.average_since(older, self.elapsed(now)))
    }

    fn elapsed(&self, now: Instant) -> Duration {
        let stamps = self.stamps.lock();
        match stamps.older {
            Some(older) => now.saturating_duration_since(older),
            None => now.saturating_duration_since(stamps.newer) + Duration::from_secs(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn workers_add_up() {
        let databases = Databases::new(2, Instant::now());
        let app = databases.database(&"app".into());
        app.at(0).query(Duration::from_micros(10));
        app.at(1).query(Duration::from_micros(20));
        app.at(7).sent(5); // beyond the workers known at the start
        let totals = databases.database(&"app".into()).totals();
        assert_eq!((totals.query_count, totals.query_time, totals.sent), (2, 30, 5));
    }

    #[test]
    fn averages_follow_pgbouncer_turns() {
        let start = Instant::now();
        let databases = Databases::new(1, start);
        let app = databases.database(&"app".into());
        for _ in 0..600 {
            app.at(0).query(Duration::from_micros(500));
            app.at(0).server_assigned(Duration::from_micros(100));
            app.at(0).received(1_000);
        }
        let average = |at| databases.stats(at)[0].averages;
        // before the first turn: since a second before the start
        assert_eq!(average(start + 59 * SECOND).query_count, 10);
        databases.tick(start + 59 * SECOND);
        databases.tick(start + 60 * SECOND);
        let first = average(start + 60 * SECOND);
        assert_eq!((first.query_count, first.query_time, first.wait_time), (10, 500, 100));
        assert_eq!(first.received, 10_000);
        databases.tick(start + 120 * SECOND);
        assert_eq!(average(start + 120 * SECOND).query_count, 0, "idle for a whole period");
        assert_eq!(databases.stats(start + 120 * SECOND)[0].totals.query_count, 600);
    }

    #[test]
    fn nothing_counted_divides_nothing() {
        let start = Instant::now();
        let databases = Databases::new(1, start);
        assert!(databases.stats(start).is_empty());
        assert_eq!(databases.overall(start), (Totals::default(), Totals::default()));
    }

    #[test]
    fn overall_is_the_sum_of_the_databases() {
        let start = Instant::now();
        let databases = Databases::new(1, start);
        databases.database(&"a".into()).at(0).transaction(Duration::from_micros(4));
        databases.database(&"b".into()).at(0).transaction(Duration::from_micros(8));
        let (totals, averages) = databases.overall(start);
        assert_eq!((totals.xact_count, totals.xact_time), (2, 12));
        assert_eq!((averages.xact_count, averages.xact_time), (2, 6));
    }
}
