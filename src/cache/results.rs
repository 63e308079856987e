//! The process's cache: what is kept, what runs, what has changed.

mod fill;

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quick_cache::DefaultHashBuilder;

use crate::cache::admit::{REFUSALS, Refusal};
use crate::cache::changes::{Change, Changes, Mark, Reads};
use crate::cache::entry::{Entry, Needs};
use crate::cache::flight::{Began, Flight};
use crate::cache::store::{Share, Store, Stored};
use crate::freshness::Lsn;
use crate::route::sighted::Sighted;
use crate::stats::sharded::Spread;
pub use fill::{Fill, Landed, UNFIT, Unfit};

/// A database that has a place in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DatabaseId(pub u32);

/// `[cache]`'s bounds: entries, bytes of all, bytes of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub max_entries: usize,
    pub max_bytes: u64,
    pub max_entry_bytes: u64,
}

impl Limits {
    /// Bytes of the largest result that there can be room for.
    fn largest(&self) -> u64 {
        self.max_entry_bytes.min(self.max_bytes)
    }
}

/// A read that asks for its result.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    pub database: DatabaseId,
    pub key: &'a [u8],
    pub needs: Needs,
    /// Which descriptions the reply will have if it runs.
    pub brings: Needs,
    pub reads: Reads,
    pub ttl: Duration,
    /// It may be so long behind a change; zero: behind none.
    pub stale: Duration,
    /// The answer must have all that was committed by then, whether or not the change stream has told of it yet.
    pub after: Option<Instant>,
}

/// What the cache has for a read.
#[derive(Debug)]
pub enum Asked {
    /// Kept, and read by this instant.
    Hit(Arc<Entry>, Instant),
    /// The same, and it may lack a change, as a rule allows.
    Stale(Arc<Entry>, Instant),
    /// The same read runs already.
    Wait(Arc<Flight>),
    /// It is to run, and to bring its result.
    Fill(Fill),
    /// Changes may go unseen now.
    Closed,
}

/// By what entries were invalidated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalidation {
    /// A write that passed through.
    Write,
    /// Definitions have changed.
    Definitions,
    /// The change stream.
    Stream,
    /// EVICT CACHE.
    Command,
    /// The cache was closed, its change stream broken for one.
    Closed,
}

impl Invalidation {
    /// Rows have changed, perhaps, and nothing else.
    fn is_of_rows(self) -> bool {
        match self {
            Invalidation::Write | Invalidation::Stream | Invalidation::Closed => true,
            Invalidation::Definitions | Invalidation::Command => false,
        }
    }
}

/// All of them, in the order of SHOW CACHE.
pub const INVALIDATIONS: [(Invalidation, &str); 5] = [
    (Invalidation::Write, "write"),
    (Invalidation::Definitions, "definitions"),
    (Invalidation::Stream, "stream"),
    (Invalidation::Command, "command"),
    (Invalidation::Closed, "closed"),
];

/// What has been counted of one database since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub share: Share,
    /// Those shared among them.
    pub hits: u64,
    pub misses: u64,
    /// Answered by the run of another.
    pub shared: u64,
    /// Hits that may lack a change, as a rule allows.
    pub stale: u64,
    pub stored: u64,
    /// Entries, in the order of [`INVALIDATIONS`].
    pub invalidated: [u64; INVALIDATIONS.len()],
    /// In the order of [`REFUSALS`].
    pub refused: [u64; REFUSALS.len()],
    /// Hits that were compared with what the primary says.
    pub verified: u64,
    /// … and were other than that.
    pub differences: u64,
}

/// Those of one database, as they are counted.
#[derive(Debug, Default)]
pub struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    shared: AtomicU64,
    stale: AtomicU64,
    stored: AtomicU64,
    invalidated: [AtomicU64; INVALIDATIONS.len()],
    refused: [AtomicU64; REFUSALS.len()],
    /// Those for [`Refusal::Once`], each of which is a miss.
    once: Spread,
    verified: AtomicU64,
    differences: AtomicU64,
}

/// The cache of the whole process, its bounds being those of the process. One short lock.
#[derive(Debug)]
pub struct Results {
    inner: Mutex<Inner>,
    /// Reads that were asked for once, and those of them that were kept since; made with the first of them.
    sighted: OnceLock<Sighted<2>>,
    max_entry_bytes: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    /// By their id.
    databases: Vec<Standing>,
    flights: HashMap<Arc<[u8]>, Arc<Flight>, DefaultHashBuilder>,
    /// Of the last change.
    number: u64,
}

#[derive(Debug)]
struct Standing {
    changes: Changes,
    open: bool,
    stream: Option<Told>,
    counters: Arc<Counters>,
}

/// How far a change stream has told.
#[derive(Debug, Clone, Copy)]
struct Told {
    /// No statement that begins now misses what ends here, or before.
    visible: Lsn,
    /// Every commit that ends here, or before, has been told.
    reached: Lsn,
    /// Everything that was committed by then.
    by: Instant,
}

impl Standing {
    /// Answers may be given, and kept.
    fn is_sound(&self, now: Instant) -> bool {
        let behind = self.stream.is_some_and(|told| now.saturating_duration_since(told.by) > MOST_BEHIND);
        self.open && !behind
    }

    fn visible(&self) -> Lsn {
        self.stream.map_or(Lsn::MAX, |told| told.visible)
    }

    /// Everything is known that was committed by then; without a stream, that passed through.
    fn known_by(&self, now: Instant) -> Instant {
        self.stream.map_or(now, |told| told.by)
    }

    /// An entry that is found, as the answer. `lacks`: a change, perhaps.
    fn give(&self, found: &Stored, lacks: bool) -> Asked {
        self.counters.hits.fetch_add(1, Ordering::Relaxed);
        if lacks {
            self.counters.stale.fetch_add(1, Ordering::Relaxed);
            return Asked::Stale(found.entry.clone(), found.read);
        }
        Asked::Hit(found.entry.clone(), found.read)
    }

    /// What is kept may lack something that was committed by then.
    fn may_lack(&self, after: Option<Instant>) -> bool {
        after.is_some_and(|after| self.stream.is_some_and(|told| told.by <= after))
    }
}

impl Wanted<'_> {
    /// By its form and its age. Of its age, the rules of now decide too.
    fn fits(&self, found: &Stored, now: Instant) -> bool {
        found.entry.has(self.needs) && now < found.began + self.ttl
    }

    /// What was committed after `by` may be missing in its answer: by its age, and nothing of its session's own.
    fn may_lack_since(&self, by: Instant, now: Instant) -> bool {
        now < by + self.stale && self.after.is_none_or(|after| after < by)
    }
}

/// A change stream that is further behind, or silent for longer, is not relied on: the oldest that an answer can be.
pub const MOST_BEHIND: Duration = Duration::from_secs(1);

/// How long a read waits for another that asks the same, before it runs itself.
pub const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Slots for the reads that were asked for once, and for those that were kept: 8 KiB each. Of 256 KiB each look found a line
/// that no cache held: 0.2 µs for a read, and not 0.04.
const SIGHTED: usize = 1 << 13;
/// Its lanes: what has come once, and what was kept.
const ONCE: usize = 0;
const KEPT: usize = 1;

impl Results {
    pub fn new(limits: Limits) -> Results {
        Results {
            inner: Mutex::new(Inner {
                store: Store::new(limits.max_entries, limits.max_bytes),
                databases: Vec::new(),
                flights: HashMap::default(),
                number: 0,
            }),
            sighted: OnceLock::new(),
            max_entry_bytes: AtomicU64::new(limits.largest()),
        }
    }

    /// Takes over reloaded bounds; what exceeds them goes.
    pub fn set_limits(&self, limits: Limits) {
        self.max_entry_bytes.store(limits.largest(), Ordering::Relaxed);
        self.inner.lock().store.set_bounds(limits.max_entries, limits.max_bytes);
    }

    /// Bytes of the largest result that is kept; 0: none is.
    pub fn max_entry_bytes(&self) -> usize {
        usize::try_from(self.max_entry_bytes.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }

    /// A place for one more database; closed at first.
    pub fn add_database(&self, now: Instant) -> DatabaseId {
        let mut inner = self.inner.lock();
        let id = DatabaseId(inner.databases.len() as u32);
        let mark = Mark { number: inner.next(), at: now, end: Lsn(0) };
        inner.databases.push(Standing {
            changes: Changes::new(mark),
            open: false,
            stream: None,
            counters: Arc::default(),
        });
        id
    }

    /// From now on, each change in this database that passes through becomes known.
    pub fn open(&self, database: DatabaseId, now: Instant) {
        self.reopen(database, Lsn(0), None, now);
    }

    /// From now on, a change stream tells of each change that ends behind `end`: it has told of everything that was
    /// committed `by` then, and up to `visible` no statement that begins on the primary misses anything.
    pub fn open_stream(&self, database: DatabaseId, end: Lsn, visible: Lsn, by: Instant) {
        self.reopen(database, end, Some(Told { visible, reached: end, by }), Instant::now());
    }

    fn reopen(&self, database: DatabaseId, end: Lsn, stream: Option<Told>, now: Instant) {
        self.change(database, Change::All, Invalidation::Closed, now);
        let mut inner = self.inner.lock();
        let number = inner.next();
        let Some(standing) = inner.databases.get_mut(database.0 as usize) else { return };
        standing.changes = Changes::new(Mark { number, at: now, end });
        standing.stream = stream;
        standing.open = true;
    }

    /// Changes may go unseen: nothing is answered, and nothing kept that was asked for before.
    pub fn close(&self, database: DatabaseId, now: Instant) {
        self.change(database, Change::All, Invalidation::Closed, now);
        if let Some(standing) = self.inner.lock().databases.get_mut(database.0 as usize) {
            standing.open = false;
        }
    }

    /// The change stream tells of a commit that ends at `end`, or of a part of it.
    pub fn commit(&self, database: DatabaseId, change: Change<'_>, end: Lsn) {
        let mut inner = self.inner.lock();
        let number = inner.next();
        let Some(standing) = inner.databases.get_mut(database.0 as usize) else { return };
        let at = standing.changes.floor();
        standing.changes.note(change, Mark { number, at, end });
        self.purge(&mut inner, database, change, Invalidation::Stream, at);
    }

    /// The change stream tells that no statement which begins now misses what ends at `end`, or before.
    pub fn note_visible(&self, database: DatabaseId, end: Lsn) {
        self.tell(database, |told| told.visible = told.visible.max(end));
    }

    /// The change stream has told of every commit that ends at `end`, or before.
    pub fn note_reached(&self, database: DatabaseId, end: Lsn) {
        self.tell(database, |told| told.reached = told.reached.max(end));
    }

    /// The change stream has told of everything that was committed by then.
    pub fn note_told(&self, database: DatabaseId, by: Instant) {
        self.tell(database, |told| told.by = told.by.max(by));
    }

    fn tell(&self, database: DatabaseId, tell: impl FnOnce(&mut Told)) {
        let mut inner = self.inner.lock();
        inner.databases.get_mut(database.0 as usize).and_then(|standing| standing.stream.as_mut()).map(tell);
    }

    /// The answer for a read, or what is to be done for one. Who is to fill is the only one until that is dropped.
    pub fn ask(self: &Arc<Self>, wanted: &Wanted<'_>, now: Instant) -> Asked {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let Some(standing) = inner.databases.get(wanted.database.0 as usize) else { return Asked::Closed };
        if !standing.is_sound(now) {
            return inner.left(wanted, now);
        }
        let last = standing.changes.last(&wanted.reads);
        let visible = standing.visible();
        let behind = standing.may_lack(wanted.after);
        if let Some(found) = inner.store.find(wanted.key, now).filter(|found| wanted.fits(found, now)) {
            match found.lacks {
                None if !behind => return standing.give(found, false),
                Some(by) if wanted.may_lack_since(by, now) => return standing.give(found, true),
                _ => {}
            }
        }
        if !behind {
            // Who asks is sure to see what is visible by now; the one under way must be as sure.
            let seen = Mark { end: last.end.min(visible), ..last };
            let flight = inner.flights.get(wanted.key).filter(|flight| {
                let Began { at, number, visible, as_of } = flight.began;
                let allowed = || standing.changes.all().is_in(at, number, visible) && wanted.may_lack_since(as_of, now);
                // One that has stood still for so long is waited for in vain, perhaps by everybody.
                let young = now.saturating_duration_since(flight.began.at) < LONGEST_WAIT;
                young && (seen.is_in(at, number, visible) || allowed())
            });
            if let Some(flight) = flight.filter(|flight| flight.will_have(wanted.needs)) {
                return Asked::Wait(flight.clone());
            }
        }
        standing.counters.misses.fetch_add(1, Ordering::Relaxed);
        let began = Began { at: now, number: inner.number, visible, as_of: standing.known_by(now) };
        let flight = Arc::new(Flight::new(began, wanted.brings));
        let key: Arc<[u8]> = wanted.key.into();
        inner.flights.insert(key.clone(), flight.clone());
        Asked::Fill(Fill {
            results: self.clone(),
            flight,
            key,
            database: wanted.database,
            reads: wanted.reads.clone(),
            ttl: wanted.ttl,
            stale: wanted.stale,
            needs: wanted.needs,
            changed: last,
            behind,
            // A write that passed through has no position before the stream tells of it.
            shareable: !behind && standing.stream.is_some() && !standing.may_lack(Some(last.at)),
        })
    }

    /// What a read is known by, for [`Results::note_kept`]; `None` where it is the first of its kind, and so a miss that is not
    /// kept. `read` is what tells it from others; two that it does not tell apart are kept one time sooner.
    /// `counters` are the database's. No lock is taken.
    pub fn sight(&self, database: DatabaseId, counters: &Counters, worker: usize, read: impl Hash) -> Option<u64> {
        let sighted = self.sighted.get_or_init(|| Sighted::new(SIGHTED));
        let hash = sighted.hash((database, read));
        if sighted.note(hash, ONCE) || sighted.has(hash, KEPT) {
            return Some(hash);
        }
        counters.once.count(worker);
        None
    }

    /// The result of a read that was sighted before is kept: it is asked for again, however many others come once meanwhile.
    pub fn note_kept(&self, sight: u64) {
        if let Some(sighted) = self.sighted.get() {
            sighted.note(sight, KEPT);
        }
    }

    /// What was kept while changes were known, where it may be given still though they are not any more.
    pub fn left(self: &Arc<Self>, wanted: &Wanted<'_>, now: Instant) -> Asked {
        self.inner.lock().left(wanted, now)
    }

    /// A read has been answered by the run of another.
    pub fn note_shared(&self, database: DatabaseId) {
        let Some(counters) = self.counters(database) else { return };
        counters.shared.fetch_add(1, Ordering::Relaxed);
        counters.hits.fetch_add(1, Ordering::Relaxed);
    }

    /// A read has waited for the run of another in vain.
    pub fn note_miss(&self, database: DatabaseId) {
        let Some(counters) = self.counters(database) else { return };
        counters.misses.fetch_add(1, Ordering::Relaxed);
    }

    pub fn note_refusal(&self, database: DatabaseId, why: Refusal) {
        let Some(counters) = self.counters(database) else { return };
        counters.refused[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A hit has been compared with what the primary says.
    pub fn note_verified(&self, database: DatabaseId, differs: bool) {
        let Some(counters) = self.counters(database) else { return };
        counters.verified.fetch_add(1, Ordering::Relaxed);
        counters.differences.fetch_add(u64::from(differs), Ordering::Relaxed);
    }

    /// Still the answer for this key: nothing is known that changed it.
    pub fn holds(&self, key: &[u8], entry: &Arc<Entry>, now: Instant) -> bool {
        self.inner.lock().store.holds(key, entry, now)
    }

    /// Everything that was committed by then is known, and what it changed is gone. Where no stream tells, it is taken for
    /// known as late as a stream would tell at most: a write that passes through is noted as it is acknowledged.
    pub fn knows_all_by(&self, database: DatabaseId, by: Instant, now: Instant) -> bool {
        let inner = self.inner.lock();
        let Some(standing) = inner.databases.get(database.0 as usize) else { return false };
        standing.stream.map_or(now.saturating_duration_since(by) > MOST_BEHIND, |told| told.by > by)
    }

    pub fn counters(&self, database: DatabaseId) -> Option<Arc<Counters>> {
        Some(self.inner.lock().databases.get(database.0 as usize)?.counters.clone())
    }

    /// Something has changed. To be called once the change is committed, and before anyone is told of it.
    pub fn change(&self, database: DatabaseId, change: Change<'_>, by: Invalidation, now: Instant) {
        self.change_by(database, change, by, now, now);
    }

    /// The same where nobody sees when it is committed: `until` then, if at all. What begins before that is not kept.
    pub fn change_by(&self, database: DatabaseId, change: Change<'_>, by: Invalidation, now: Instant, until: Instant) {
        let mut inner = self.inner.lock();
        let number = inner.next();
        let Some(standing) = inner.databases.get_mut(database.0 as usize) else { return };
        // Definitions are as new as what has been told so far, at least.
        let end = if change == Change::All { standing.changes.any().end } else { Lsn(0) };
        standing.changes.note(change, Mark { number, at: until, end });
        self.purge(&mut inner, database, change, by, now);
    }

    fn purge(&self, inner: &mut Inner, database: DatabaseId, change: Change<'_>, by: Invalidation, now: Instant) {
        let Some(standing) = inner.databases.get(database.0 as usize) else { return };
        let since = by.is_of_rows().then(|| standing.known_by(now));
        let gone = inner.store.purge(database, change, since);
        standing.counters.invalidated[by as usize].fetch_add(gone as u64, Ordering::Relaxed);
    }

    pub fn counts(&self, database: DatabaseId) -> Counts {
        let inner = self.inner.lock();
        let Some(standing) = inner.databases.get(database.0 as usize) else { return Counts::default() };
        let (share, counters) = (inner.store.share(database), &standing.counters);
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let once = counters.once.total();
        let mut refused = counters.refused.each_ref().map(load);
        refused[Refusal::Once as usize] += once;
        Counts {
            share,
            hits: load(&counters.hits),
            misses: load(&counters.misses) + once,
            shared: load(&counters.shared),
            stale: load(&counters.stale),
            stored: load(&counters.stored),
            invalidated: counters.invalidated.each_ref().map(load),
            refused,
            verified: load(&counters.verified),
            differences: load(&counters.differences),
        }
    }

    /// Of all databases.
    pub fn bytes(&self) -> u64 {
        self.inner.lock().store.bytes()
    }

    #[cfg(test)]
    pub(super) fn check(&self) {
        self.inner.lock().store.check();
    }
}

impl Inner {
    fn left(&mut self, wanted: &Wanted<'_>, now: Instant) -> Asked {
        let Some(standing) = self.databases.get(wanted.database.0 as usize) else { return Asked::Closed };
        let Some(found) = self.store.find(wanted.key, now).filter(|found| wanted.fits(found, now)) else {
            return Asked::Closed;
        };
        let by = found.lacks.or(standing.stream.map(|told| told.by.max(found.as_of)));
        match by.filter(|by| wanted.may_lack_since(*by, now)) {
            Some(_) => standing.give(found, true),
            None => Asked::Closed,
        }
    }

    /// The next change's number.
    fn next(&mut self) -> u64 {
        self.number += 1;
        self.number
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::cache::changes::Table;

    fn results() -> (Arc<Results>, DatabaseId) {
        let limits = Limits { max_entries: 10, max_bytes: 1 << 20, max_entry_bytes: 1 << 10 };
        let results = Arc::new(Results::new(limits));
        let database = results.add_database(Instant::now());
        results.open(database, Instant::now());
        (results, database)
    }

    fn wanted(database: DatabaseId, key: &[u8]) -> Wanted<'_> {
        Wanted {
            database,
            key,
            needs: Needs::default(),
            brings: Needs::default(),
            reads: Reads::Tables([Table(7)].into()),
            ttl: Duration::from_secs(10),
            stale: Duration::ZERO,
            after: None,
        }
    }

    fn fill(results: &Arc<Results>, wanted: &Wanted<'_>) -> Fill {
        match results.ask(wanted, Instant::now()) {
            Asked::Fill(fill) => fill,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_of_its_kind_is_a_miss_that_is_not_kept() {
        let (results, database) = results();
        let counters = results.counters(database).unwrap();
        let asked = ["a", "a", "a"].map(|read| results.sight(database, &counters, 0, read).is_none());
        assert_eq!(asked, [true, false, false]);
        let counts = results.counts(database);
        assert_eq!((counts.misses, counts.refused[Refusal::Once as usize]), (1, 1));
        let kept = results.sight(database, &counters, 0, "a").unwrap();
        results.note_kept(kept);
        for n in 0..8 * SIGHTED {
            results.sight(database, &counters, 0, n);
        }
        assert_eq!(results.sight(database, &counters, 0, "a"), Some(kept));
    }

    #[test]
    fn what_begins_before_an_unseen_write_is_over_is_not_kept() {
        let (results, database) = results();
        let (wanted, now, table) = (wanted(database, b"k"), Instant::now(), [Table(7)]);
        let until = now + Duration::from_secs(1);
        results.change_by(database, Change::Tables(&table), Invalidation::Write, now, until);
        let ask = |at| match results.ask(&wanted, at) {
            Asked::Fill(fill) => fill,
            other => panic!("{other:?}"),
        };
        // Nor does anybody wait for it.
        let (early, other) = (ask(now), ask(now));
        assert_eq!(early.land(entry(1)), Err(Refusal::Changed));
        assert_eq!(other.land(entry(1)), Err(Refusal::Changed));
        assert!(ask(until).land(entry(2)).is_ok());
        assert!(matches!(results.ask(&wanted, until), Asked::Hit(..)));
    }

    #[test]
    fn no_result_is_held_for_a_cache_that_may_have_nothing() {
        let (results, _) = results();
        let limits = Limits { max_entries: 10, max_bytes: 1 << 20, max_entry_bytes: 1 << 10 };
        for (max_bytes, most) in [(0, 0), (100, 100), (1 << 20, 1 << 10)] {
            results.set_limits(Limits { max_bytes, ..limits });
            assert_eq!(results.max_entry_bytes(), most);
        }
    }

    fn wait(results: &Arc<Results>, wanted: &Wanted<'_>) -> Arc<Flight> {
        match results.ask(wanted, Instant::now()) {
            Asked::Wait(flight) => flight,
            other => panic!("{other:?}"),
        }
    }

    fn entry(n: u8) -> Entry {
        Entry::new(&[], &[], &[n], 0)
    }

    fn came(flight: &Flight) -> Poll<Option<Arc<Entry>>> {
        flight.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn hit(results: &Arc<Results>, wanted: &Wanted<'_>) -> Option<Arc<Entry>> {
        match results.ask(wanted, Instant::now()) {
            Asked::Hit(entry, _) => Some(entry),
            _ => None,
        }
    }

    const T: &[Table] = &[Table(7)];

    #[test]
    fn a_read_that_straddles_a_change_is_not_kept() {
        let (results, database) = results();
        let wanted = wanted(database, b"a");
        let straddling = fill(&results, &wanted);
        results.change(database, Change::Tables(T), Invalidation::Write, Instant::now());
        assert_eq!(straddling.land(entry(1)), Err(Refusal::Changed));
        assert_eq!(hit(&results, &wanted), None);
        fill(&results, &wanted).land(entry(2)).unwrap();
        assert_eq!(hit(&results, &wanted).as_deref(), Some(&entry(2)));
        results.change(database, Change::Tables(&[Table(8)]), Invalidation::Write, Instant::now());
        assert!(hit(&results, &wanted).is_some());
        results.change(database, Change::All, Invalidation::Definitions, Instant::now());
        assert_eq!(hit(&results, &wanted), None);
        let counts = results.counts(database);
        assert_eq!((counts.hits, counts.stored, counts.invalidated[..2].to_vec()), (2, 1, vec![0, 1]));
    }

    #[test]
    fn one_runs_and_the_others_wait_for_it() {
        let (results, database) = results();
        let wanted = wanted(database, b"a");
        let first = fill(&results, &wanted);
        let (second, third) = (wait(&results, &wanted), wait(&results, &wanted));
        assert_eq!(came(&second), Poll::Pending);
        first.land(entry(1)).unwrap();
        for flight in [second, third] {
            assert_eq!(came(&flight), Poll::Ready(Some(Arc::new(entry(1)))));
        }
        assert!(hit(&results, &wanted).is_some());
    }

    #[test]
    fn one_that_fails_leaves_the_others_to_themselves() {
        let (results, database) = results();
        let wanted = wanted(database, b"a");
        let first = fill(&results, &wanted);
        let second = wait(&results, &wanted);
        drop(first);
        assert_eq!(came(&second), Poll::Ready(None));
        drop(fill(&results, &wanted));
        assert!(results.inner.lock().flights.is_empty());
    }

    #[test]
    fn what_starts_after_a_change_does_not_join_what_began_before() {
        let (results, database) = results();
        let wanted = wanted(database, b"a");
        let before = fill(&results, &wanted);
        results.change(database, Change::Tables(T), Invalidation::Write, Instant::now());
        let after = fill(&results, &wanted);
        // The end of the one that was replaced is none of the other's.
        assert_eq!(before.land(entry(1)), Err(Refusal::Changed));
        let joined = wait(&results, &wanted);
        after.land(entry(2)).unwrap();
        assert_eq!(came(&joined), Poll::Ready(Some(Arc::new(entry(2)))));
    }

    #[test]
    fn nobody_joins_what_has_run_for_longer_than_a_read_waits() {
        let (results, database) = results();
        let wanted = wanted(database, b"a");
        let began = Instant::now();
        let ask = |at: Duration| results.ask(&wanted, began + at);
        let Asked::Fill(stalled) = ask(Duration::ZERO) else { panic!() };
        assert!(matches!(ask(LONGEST_WAIT / 2), Asked::Wait(_)));
        let Asked::Fill(next) = ask(LONGEST_WAIT) else { panic!("joined a flight as old as a wait") };
        drop(stalled);
        let Asked::Wait(joined) = ask(LONGEST_WAIT) else { panic!("the end of the other took this flight along") };
        next.land(entry(2)).unwrap();
        assert_eq!(came(&joined), Poll::Ready(Some(Arc::new(entry(2)))));
    }

    #[test]
    fn who_needs_a_description_does_not_join_one_that_brings_none() {
        let (results, database) = results();
        let bare = wanted(database, b"a");
        let needs = Needs { rows: true, ..Needs::default() };
        let described = Wanted { needs, brings: needs, ..bare.clone() };
        let first = fill(&results, &bare);
        let second = fill(&results, &described);
        first.land(entry(1)).unwrap();
        assert_eq!(hit(&results, &described), None);
        second.land(Entry::new(&[], &[9], &[2], 0)).unwrap();
        assert!(hit(&results, &described).is_some());
    }

    #[test]
    fn a_run_without_a_description_keeps_the_one_that_is_known() {
        let (results, database) = results();
        let bare = wanted(database, b"a");
        let limit = Needs { rows: true, limit: 1, ..Needs::default() };
        let limited = Wanted { needs: limit, ..bare.clone() };
        let described = Wanted { brings: Needs { rows: true, ..Needs::default() }, ..bare.clone() };
        fill(&results, &described).land(Entry::new(&[], &[9], &[2], 1)).unwrap();
        // Another wants what the entry cannot give, runs, and brings less.
        fill(&results, &limited).land(Entry::new(&[], &[], &[3], 0)).unwrap();
        assert_eq!(hit(&results, &limited).as_deref(), Some(&Entry::new(&[], &[9], &[3], 0)));
    }

    #[test]
    fn a_closed_cache_answers_nothing_and_keeps_nothing() {
        let (results, database) = results();
        let wanted = wanted(database, b"a");
        fill(&results, &wanted).land(entry(1)).unwrap();
        let under_way = fill(&results, &self::wanted(database, b"b"));
        results.close(database, Instant::now());
        assert!(matches!(results.ask(&wanted, Instant::now()), Asked::Closed));
        assert_eq!(under_way.land(entry(1)), Err(Refusal::Changed));
        results.open(database, Instant::now());
        assert_eq!(hit(&results, &wanted), None);
        assert_eq!(results.counts(database).invalidated[Invalidation::Closed as usize], 1);
    }

    #[test]
    fn an_entry_is_as_old_as_its_start() {
        let (results, database) = results();
        let wanted = wanted(database, b"a");
        let began = Instant::now();
        let Asked::Fill(fill) = results.ask(&wanted, began) else { panic!() };
        fill.land(entry(1)).unwrap();
        let at = |seconds| results.ask(&wanted, began + Duration::from_secs(seconds));
        assert!(matches!(at(9), Asked::Hit(..)));
        assert!(matches!(at(10), Asked::Fill(_)));
    }

    #[test]
    fn too_large_a_result_is_not_kept() {
        let (results, database) = results();
        let wanted = wanted(database, b"a");
        let large = Entry::new(&[], &[], &[0; 1025], 0);
        assert_eq!(fill(&results, &wanted).land(large), Err(Refusal::TooLarge));
        assert_eq!((results.counts(database).share.entries, results.inner.lock().flights.len()), (0, 0));
    }

    #[test]
    fn invalidations_stand_in_their_order() {
        for (n, (invalidation, _)) in INVALIDATIONS.iter().enumerate() {
            assert_eq!(*invalidation as usize, n);
        }
    }
}
