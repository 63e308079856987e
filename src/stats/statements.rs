//! One record for each fingerprint and database: how often, how long, with what result, where.
//!
//! A record is kept by the registry and by the plans of its statement. One that no plan holds makes room for a new statement
//! when all places are taken: the one with the fewest calls first, which are counted on under "other".

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use parking_lot::Mutex;

use super::latency::Latency;
use super::sharded::{Apart, Sharded};
use super::{CacheUse, Outcome, Sample, bounded_text};
use crate::sql::Fingerprint;

/// All records. Bounded: beyond `max` fingerprints the rest share the record "other".
#[derive(Debug)]
pub struct Statements {
    records: DashMap<(Arc<str>, Fingerprint), Arc<Statement>>,
    /// Places taken in `records`; it may run ahead of its length for a moment, never behind.
    taken: AtomicUsize,
    max: AtomicUsize,
    workers: usize,
    /// Since places were last looked for that can be given up.
    turned_away: AtomicUsize,
    other: Arc<Statement>,
}

/// The record of one statement.
#[derive(Debug)]
pub struct Statement {
    /// `None`: the shared record of all statements beyond the bound.
    pub fingerprint: Option<Fingerprint>,
    pub database: Arc<str>,
    /// The statement with its literals folded out.
    pub text: String,
    // Locks, and no atomics: they are needed for the histograms anyway, and so a reader sees calls, rows and times that
    // belong together.
    counts: Sharded<Counts>,
}

#[derive(Debug, Clone, Default)]
struct Counts {
    calls: u64,
    errors: u64,
    rows: u64,
    bytes: u64,
    cache_hits: u64,
    cache_misses: u64,
    /// By the reason's place in the cache's list.
    cache_refused: Vec<u64>,
    writes: u64,
    slow: u64,
    execute: Latency,
    wait: Latency,
    /// Calls by node index.
    nodes: Vec<u64>,
}

/// A copy of a record.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub fingerprint: Option<Fingerprint>,
    pub database: Arc<str>,
    pub text: String,
    pub calls: u64,
    /// Calls that ended in an error, whoever's fault.
    pub errors: u64,
    pub rows: u64,
    pub bytes: u64,
    pub cache_hits: u64,
    /// Calls that ran, and whose result could have been kept.
    pub cache_misses: u64,
    /// (the reason's place in the cache's list, times): calls past the cache, and results that were not kept.
    pub cache_refused: Vec<(u8, u64)>,
    pub writes: u64,
    /// Calls at or above `statements.slow_threshold`.
    pub slow: u64,
    /// Of the calls that a server ran: cached answers are left out, as they would hide its times.
    pub execute: Latency,
    pub wait: Latency,
    /// (node index, calls), the nodes with calls only.
    pub nodes: Vec<(u16, u64)>,
}

/// What a list of statements is ordered by, largest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    TotalTime,
    Calls,
    P95,
    Mean,
    Rows,
}

impl Order {
    /// The names of `/statements?order=`.
    pub fn parse(name: &str) -> Option<Order> {
        Some(match name {
            "total_time" => Order::TotalTime,
            "calls" => Order::Calls,
            "p95" => Order::P95,
            "mean" => Order::Mean,
            "rows" => Order::Rows,
            _ => return None,
        })
    }
}

impl Statements {
    /// An empty registry for at most `max` fingerprints, which so many workers count in.
    pub fn new(max: usize, workers: usize) -> Statements {
        Statements {
            records: DashMap::new(),
            taken: AtomicUsize::new(0),
            max: AtomicUsize::new(max),
            workers,
            turned_away: AtomicUsize::new(0),
            other: Arc::new(Statement::new(None, "".into(), "other".into(), workers)),
        }
    }

    /// The record of a statement, made at first sight; `text` is asked for then only. To be called once for each
    /// plan, which keeps the record: not once for each execution.
    pub fn record(
        &self,
        fingerprint: Fingerprint,
        text: impl FnOnce() -> String,
        database: &Arc<str>,
    ) -> Arc<Statement> {
        let key = (database.clone(), fingerprint);
        if let Some(found) = self.records.get(&key) {
            return found.clone();
        }
        if !(self.take_place() || self.evict() && self.take_place()) {
            return self.other.clone();
        }
        // outside of the map's lock: folding a long text takes its time
        let text = bounded_text(text());
        match self.records.entry(key) {
            Entry::Occupied(found) => {
                self.taken.fetch_sub(1, Ordering::Relaxed);
                found.get().clone()
            }
            Entry::Vacant(place) => {
                let record = Statement::new(Some(fingerprint), database.clone(), text, self.workers);
                place.insert(Arc::new(record)).clone()
            }
        }
    }

    /// The record that all statements beyond the bound share.
    pub fn other(&self) -> Arc<Statement> {
        self.other.clone()
    }

    /// Not all places are taken.
    pub fn has_room(&self) -> bool {
        self.taken.load(Ordering::Relaxed) < self.max.load(Ordering::Relaxed)
    }

    fn take_place(&self) -> bool {
        let max = self.max.load(Ordering::Relaxed);
        self.taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| (taken < max).then_some(taken + 1))
            .is_ok()
    }

    /// Gives up places of records that no plan holds, those with the fewest calls first; false: there are none, or it is not
    /// looked. A look at all of them frees a sixteenth, and as many must have been turned away before the next: on a worker
    /// that meets ever new statements each costs the same, however many records there are.
    fn evict(&self) -> bool {
        let share = (self.taken.load(Ordering::Relaxed) / 16).max(1);
        if self.turned_away.fetch_add(1, Ordering::Relaxed) + 1 < share {
            return false;
        }
        self.turned_away.store(0, Ordering::Relaxed);
        let unheld = self.records.iter().filter(|entry| is_unheld(entry.value()));
        let mut unheld: Vec<_> = unheld.map(|entry| (entry.value().calls(), entry.key().clone())).collect();
        unheld.sort_unstable_by_key(|(calls, _)| *calls);
        // Under the lock of its place nobody can take hold of one.
        let given_up = |(_, key)| self.records.remove_if(&key, |_, record| is_unheld(record));
        let gone = unheld.into_iter().take(share).filter_map(given_up).map(|(_, record)| {
            self.taken.fetch_sub(1, Ordering::Relaxed);
            self.other.add(&record.counts());
        });
        gone.count() > 0
    }

    /// Changes the bound; what is beyond a smaller one stays.
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// The bound.
    pub fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    /// Fingerprints kept, "other" not counted.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Memory of all records.
    pub fn bytes(&self) -> usize {
        self.records.iter().map(|entry| entry.value().bytes()).sum()
    }

    /// The `limit` first statements in `order`, those never called left out.
    pub fn top(&self, order: Order, limit: usize) -> Vec<Snapshot> {
        let mut keyed: Vec<(f64, Arc<Statement>)> = self
            .records
            .iter()
            .map(|entry| entry.value().clone())
            .chain([self.other.clone()])
            .filter_map(|statement| statement.key(order).map(|key| (key, statement)))
            .collect();
        keyed.sort_by(|(a, x), (b, y)| b.total_cmp(a).then_with(|| x.fingerprint.cmp(&y.fingerprint)));
        keyed.truncate(limit);
        keyed.into_iter().map(|(_, statement)| statement.snapshot()).collect()
    }

    /// Sets all counts back to zero, and gives up the places of records that no plan holds.
    pub fn reset(&self) {
        self.records.retain(|_, record| {
            let stays = !is_unheld(record);
            match stays {
                true => record.counts.clear(),
                false => drop(self.taken.fetch_sub(1, Ordering::Relaxed)),
            }
            stays
        });
        self.turned_away.store(0, Ordering::Relaxed);
        self.other.counts.clear();
    }
}

/// The registry alone has it.
fn is_unheld(record: &Arc<Statement>) -> bool {
    Arc::strong_count(record) == 1
}

impl Statement {
    fn new(fingerprint: Option<Fingerprint>, database: Arc<str>, text: String, workers: usize) -> Statement {
        Statement { fingerprint, database, text, counts: Sharded::new(workers) }
    }

    /// Counts one call that a worker has served.
    pub fn observe(&self, worker: usize, sample: &Sample, slow: bool) {
        let mut counts = self.counts.lock(worker);
        counts.calls += 1;
        counts.rows += sample.rows;
        counts.bytes += sample.bytes;
        counts.errors += u64::from(sample.outcome != Outcome::Done);
        counts.writes += u64::from(sample.is_write);
        counts.slow += u64::from(slow);
        match sample.cache {
            CacheUse::Hit => {
                counts.cache_hits += 1;
                return;
            }
            CacheUse::Miss => counts.cache_misses += 1,
            CacheUse::Unkept(reason) => {
                counts.cache_misses += 1;
                add_at(&mut counts.cache_refused, usize::from(reason));
            }
            CacheUse::Refused(reason) => add_at(&mut counts.cache_refused, usize::from(reason)),
            CacheUse::NotAsked => {}
        }
        counts.execute.record(sample.execute);
        counts.wait.record(sample.wait);
        if let Some(node) = sample.node {
            add_at(&mut counts.nodes, usize::from(node));
        }
    }

    /// A result of it was not kept, for the reason of this place in the cache's list.
    pub fn note_refused(&self, worker: usize, reason: u8) {
        add_at(&mut self.counts.lock(worker).cache_refused, usize::from(reason));
    }

    /// A consistent copy; figures are computed on it, after the locks.
    pub fn snapshot(&self) -> Snapshot {
        let counts = self.counts();
        let nodes = (0u16..).zip(&counts.nodes).filter(|(_, calls)| **calls > 0);
        let refused = (0u8..).zip(&counts.cache_refused).filter(|(_, times)| **times > 0);
        Snapshot {
            fingerprint: self.fingerprint,
            database: self.database.clone(),
            text: self.text.clone(),
            calls: counts.calls,
            errors: counts.errors,
            rows: counts.rows,
            bytes: counts.bytes,
            cache_hits: counts.cache_hits,
            cache_misses: counts.cache_misses,
            cache_refused: refused.map(|(reason, times)| (reason, *times)).collect(),
            writes: counts.writes,
            slow: counts.slow,
            nodes: nodes.map(|(node, calls)| (node, *calls)).collect(),
            execute: counts.execute,
            wait: counts.wait,
        }
    }

    /// What has been counted in all places.
    fn counts(&self) -> Counts {
        let mut places = self.counts.places();
        let mut all = places.next().map_or_else(Counts::default, |first| first.clone());
        places.for_each(|place| all.add(&place));
        all
    }

    fn calls(&self) -> u64 {
        self.counts.places().map(|counts| counts.calls).sum()
    }

    fn bytes(&self) -> usize {
        let grown = |counts: &Counts| {
            let buckets = counts.execute.bytes() + counts.wait.bytes();
            buckets + (counts.nodes.capacity() + counts.cache_refused.capacity()) * size_of::<u64>()
        };
        let (places, grown) = self.counts.places().fold((0, 0), |(n, sum), counts| (n + 1, sum + grown(&counts)));
        let more = (places - 1) * size_of::<Apart<Mutex<Counts>>>();
        size_of::<Statement>() + self.text.len() + grown + more
    }

    /// `None`: never called.
    fn key(&self, order: Order) -> Option<f64> {
        let sum = |of: fn(&Counts) -> u64| self.counts.places().map(|counts| of(&counts)).sum::<u64>() as f64;
        (self.calls() > 0).then(|| match order {
            Order::TotalTime => sum(|counts| counts.execute.sum()),
            Order::Calls => sum(|counts| counts.calls),
            Order::P95 => self.execute().quantile(0.95) as f64,
            Order::Mean => sum(|counts| counts.execute.sum()) / sum(|counts| counts.execute.count()).max(1.0),
            Order::Rows => sum(|counts| counts.rows),
        })
    }

    fn execute(&self) -> Latency {
        let mut all = Latency::default();
        self.counts.places().for_each(|counts| all.add(&counts.execute));
        all
    }

    /// Takes over the counts of one that is given up.
    fn add(&self, gone: &Counts) {
        self.counts.lock(0).add(gone);
    }
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        self.calls += other.calls;
        self.errors += other.errors;
        self.rows += other.rows;
        self.bytes += other.bytes;
        self.cache_hits += other.cache_hits;
        self.cache_misses += other.cache_misses;
        self.writes += other.writes;
        self.slow += other.slow;
        self.execute.add(&other.execute);
        self.wait.add(&other.wait);
        sum_up(&mut self.cache_refused, &other.cache_refused);
        sum_up(&mut self.nodes, &other.nodes);
    }
}

fn add_at(counts: &mut Vec<u64>, place: usize) {
    if counts.len() <= place {
        counts.resize(place + 1, 0);
    }
    counts[place] += 1;
}

fn sum_up(counts: &mut Vec<u64>, others: &[u64]) {
    counts.resize(counts.len().max(others.len()), 0);
    counts.iter_mut().zip(others).for_each(|(count, other)| *count += other);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sample(execute_us: u64) -> Sample {
        Sample {
            wait: Duration::ZERO,
            execute: Duration::from_micros(execute_us),
            rows: 1,
            bytes: 10,
            outcome: Outcome::Done,
            cache: CacheUse::NotAsked,
            node: Some(0),
            is_write: false,
        }
    }

    #[test]
    fn beyond_the_bound_all_share_other() {
        let statements = Statements::new(2, 2);
        let db: Arc<str> = "app".into();
        let hold = |n| statements.record(Fingerprint(n), || format!("q{n}"), &db);
        let held: Vec<_> = (0..5).map(hold).collect();
        held.iter().for_each(|record| record.observe(0, &sample(1), false));
        assert_eq!(statements.len(), 2);
        let top = statements.top(Order::Calls, 10);
        assert_eq!(top.len(), 3);
        assert_eq!((top[0].text.as_str(), top[0].calls, top[0].fingerprint), ("other", 3, None));
        // a known one is found although the registry is full, and its text is not made again
        let again = statements.record(Fingerprint(1), || unreachable!(), &db);
        assert_eq!(again.fingerprint, Some(Fingerprint(1)));
        statements.set_max(3);
        assert!(statements.record(Fingerprint(9), || "q9".into(), &db).fingerprint.is_some());
    }

    #[test]
    fn the_bound_holds_against_many_threads() {
        let statements = Statements::new(50, 2);
        let db: Arc<str> = "app".into();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let hold = |n| statements.record(Fingerprint(n), String::new, &db);
                    let held: Vec<_> = (0..100).map(hold).collect();
                    held.iter().for_each(|record| record.observe(0, &sample(1), false));
                    drop(held);
                    // And with places that are given up as well as taken.
                    (100..400).for_each(|n| drop(hold(n)));
                });
            }
        });
        assert!((30..=50).contains(&statements.len()), "{}", statements.len());
        assert_eq!(statements.taken.load(Ordering::Relaxed), statements.len());
        let calls: u64 = statements.top(Order::Calls, 100).iter().map(|s| s.calls).sum();
        assert_eq!(calls, 400);
    }

    #[test]
    fn the_same_text_in_two_databases_is_two_records() {
        let statements = Statements::new(10, 2);
        let a = statements.record(Fingerprint(1), String::new, &"a".into());
        let b = statements.record(Fingerprint(1), String::new, &"b".into());
        assert!(!Arc::ptr_eq(&a, &b));
    }

    #[test]
    fn counts_errors_hits_and_nodes() {
        let statements = Statements::new(10, 2);
        let statement = statements.record(Fingerprint(1), || "q".into(), &"a".into());
        statement.observe(0, &Sample { cache: CacheUse::Miss, ..sample(500) }, false);
        statement.observe(0, &Sample { node: Some(2), is_write: true, ..sample(1_500) }, true);
        let refused = CacheUse::Refused(1);
        statement.observe(0, &Sample { outcome: Outcome::ClientFault, cache: refused, ..sample(1_000) }, false);
        statement.observe(0, &Sample { cache: CacheUse::Hit, node: None, ..sample(3) }, false);
        statement.note_refused(1, 4);
        let s = statement.snapshot();
        assert_eq!((s.calls, s.errors, s.cache_hits, s.writes, s.slow), (4, 1, 1, 1, 1));
        assert_eq!((s.cache_misses, s.cache_refused), (1, vec![(1, 1), (4, 1)]));
        assert_eq!((s.rows, s.bytes), (4, 40));
        assert_eq!(s.nodes, [(0, 2), (2, 1)]);
        assert_eq!((s.execute.count(), s.execute.mean()), (3, 1_000.0));
        assert_eq!(s.wait.count(), 3);
        let bytes = statements.bytes();
        assert!((10_000..12_000).contains(&bytes), "one histogram alone: {bytes}");
    }

    /// As when workers have met at it often.
    #[test]
    fn what_is_counted_in_many_places_is_shown_as_one() {
        let statements = Statements::new(10, 2);
        let statement = statements.record(Fingerprint(1), || "q".into(), &"a".into());
        statement.observe(0, &sample(500), false);
        let alone = statements.bytes();
        statement.counts.split();
        statement.observe(0, &Sample { node: Some(2), ..sample(1_500) }, true);
        let refused =
            Sample { cache: CacheUse::Refused(1), outcome: Outcome::ServerFault, is_write: true, ..sample(1_000) };
        statement.observe(1, &refused, false);
        statement.note_refused(1, 1);
        assert!((alone + 20_000..alone + 22_000).contains(&statements.bytes()), "two more histograms");
        let s = statement.snapshot();
        assert_eq!((s.calls, s.errors, s.writes, s.slow, s.rows, s.bytes), (3, 1, 1, 1, 3, 30));
        assert_eq!((s.nodes, s.cache_refused), (vec![(0, 2), (2, 1)], vec![(1, 2)]));
        assert_eq!((s.execute.count(), s.execute.sum(), s.wait.count()), (3, 3_000, 3));
        for order in [Order::Calls, Order::Mean, Order::P95, Order::TotalTime, Order::Rows] {
            assert_eq!(statements.top(order, 1)[0].calls, 3);
        }
        assert_eq!((statement.key(Order::Mean), statement.key(Order::Rows)), (Some(1_000.0), Some(3.0)));
        assert_eq!(statement.key(Order::P95), Some(s.execute.quantile(0.95) as f64));
        statements.reset();
        assert!(statement.key(Order::Calls).is_none() && statement.snapshot().execute.count() == 0);
    }

    #[test]
    fn each_order_puts_its_largest_first() {
        let statements = Statements::new(10, 2);
        let db: Arc<str> = "a".into();
        let add = |n, times: &[u64], rows| {
            let statement = statements.record(Fingerprint(n), || format!("q{n}"), &db);
            for time in times {
                statement.observe(0, &Sample { rows, ..sample(*time) }, false);
            }
        };
        add(1, &[10; 100], 1);
        add(2, &[50_000], 0);
        add(3, &[1_000; 60], 1);
        add(4, &[20], 5_000);
        let first = |order| statements.top(order, 1)[0].fingerprint.map(|f| f.0);
        assert_eq!(first(Order::Calls), Some(1));
        assert_eq!(first(Order::P95), Some(2));
        assert_eq!(first(Order::Mean), Some(2));
        assert_eq!(first(Order::TotalTime), Some(3));
        assert_eq!(first(Order::Rows), Some(4));
        assert_eq!(Order::parse("p95"), Some(Order::P95));
        assert_eq!(Order::parse("nonsense"), None);
    }

    #[test]
    fn places_are_given_up_for_what_runs_now() {
        let statements = Statements::new(2, 2);
        let db: Arc<str> = "app".into();
        let record = |n| statements.record(Fingerprint(n), || format!("q{n}"), &db);
        let (first, second) = (record(1), record(2));
        for (record, calls) in [(&first, 3), (&second, 2)] {
            (0..calls).for_each(|_| record.observe(0, &Sample { cache: CacheUse::Refused(2), ..sample(5) }, true));
        }
        assert_eq!(record(3).fingerprint, None, "both places are held");
        drop((first, second));
        // The one with the fewest calls goes, and its calls are counted still.
        let third = record(3);
        assert_eq!(third.fingerprint, Some(Fingerprint(3)));
        let texts: Vec<_> = statements.top(Order::Calls, 9).iter().map(|s| (s.text.clone(), s.calls)).collect();
        assert_eq!(texts, [("q1".to_owned(), 3), ("other".to_owned(), 2)]);
        let other = statements.other.snapshot();
        assert_eq!((other.rows, other.bytes, other.slow, other.execute.count()), (2, 20, 2, 2));
        assert_eq!((other.nodes, other.cache_refused), (vec![(0, 2)], vec![(2, 2)]));
        // Who began anew has its places for what is there now.
        statements.reset();
        assert_eq!(statements.len(), 1, "the one that is held");
        let fourth = record(4);
        assert!(fourth.fingerprint.is_some() && record(5).fingerprint.is_none());
    }

    #[test]
    fn what_is_turned_away_is_not_looked_for_each_time() {
        let statements = Statements::new(48, 2);
        let db: Arc<str> = "app".into();
        let named = |n| statements.record(Fingerprint(n), String::new, &db).fingerprint.is_some();
        assert!((0..48).all(named));
        // One look frees a sixteenth of the places, and is due when as many have been turned away.
        let looked: Vec<_> = (100..112).map(named).collect();
        let expected = [false, false, true, true, true];
        assert_eq!(looked, [&expected[..], &expected[..], &expected[..2]].concat());
    }

    #[test]
    fn a_reset_reaches_records_that_plans_hold() {
        let statements = Statements::new(10, 2);
        let held = statements.record(Fingerprint(1), || "q".into(), &"a".into());
        held.observe(0, &sample(5), false);
        statements.reset();
        assert!(statements.top(Order::Calls, 10).is_empty());
        held.observe(0, &sample(5), false);
        assert_eq!(statements.top(Order::Calls, 10)[0].calls, 1);
    }
}
