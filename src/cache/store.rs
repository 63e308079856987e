//! The entries, within hard bounds, and which of them go first.
//!
//! Evicts as S3-FIFO does (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP
//! 2023): a new entry waits in a small queue, and reaches the main one only if it is asked for again while it waits, or
//! soon after it was evicted. A scan of reads that come once passes through the small queue.

use std::collections::hash_map::Entry as Place;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quick_cache::DefaultHashBuilder;

use crate::cache::changes::{Change, Reads, Table};
use crate::cache::entry::Entry;
use crate::cache::queue::{Index, Queue, Slab};
use crate::cache::results::DatabaseId;

/// One kept result.
#[derive(Debug)]
pub struct Stored {
    pub key: Arc<[u8]>,
    pub entry: Arc<Entry>,
    pub database: DatabaseId,
    pub reads: Reads,
    pub expires: Instant,
    /// By when it was read.
    pub read: Instant,
    /// When its read began.
    pub began: Instant,
    /// It has all that was committed by then.
    pub as_of: Instant,
    /// It may be given for so long behind a change.
    pub stale: Duration,
    /// It may lack what was committed after that instant; `None`: nothing of what is known.
    pub lacks: Option<Instant>,
}

#[derive(Debug)]
struct Slot {
    stored: Stored,
    /// Bytes with all overhead.
    cost: u64,
    /// Times it was asked for, up to [`MOST_VISITS`], since it came into its queue.
    visits: u8,
    main: bool,
}

const MOST_VISITS: u8 = 3;

/// The small queue's share of each bound is one of so many parts.
const SMALL_SHARE: u64 = 10;

/// Room for so many times the entries that are there is too much.
const SPARSE: usize = 4;
/// Less room than this many is not worth giving back.
const LEAST_ROOM: usize = 1024;

/// Bytes that an entry takes beside its key, its frames and its tables: its slot, the two references, its places in the
/// index, in the ghosts and in its database's set.
pub const OVERHEAD: u64 = 544;
/// Bytes for each table that it reads: the OID, and its place in the table's set.
pub const TABLE_OVERHEAD: u64 = 96;

/// What an invalidation asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Scope {
    Database(DatabaseId),
    /// Entries of which it is not known what they read.
    Anything(DatabaseId),
    Table(DatabaseId, Table),
}

/// One database's part of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    pub entries: u64,
    /// With all overhead.
    pub bytes: u64,
    /// Entries gone since the start, for want of room.
    pub evicted: u64,
    /// The same, for their age.
    pub expired: u64,
}

#[derive(Debug)]
pub struct Store {
    max_entries: u64,
    max_bytes: u64,
    index: HashMap<Arc<[u8]>, Index, DefaultHashBuilder>,
    slots: Slab<Slot>,
    small: Queue,
    main: Queue,
    small_bytes: u64,
    bytes: u64,
    /// Those that lack a change apart from the others: another change takes nothing from them.
    scopes: HashMap<(Scope, bool), HashSet<Index>>,
    ghosts: Ghosts,
    /// By the database's id.
    shares: Vec<Share>,
}

impl Store {
    pub fn new(max_entries: usize, max_bytes: u64) -> Store {
        Store {
            max_entries: max_entries as u64,
            max_bytes,
            index: HashMap::default(),
            slots: Slab::default(),
            small: Queue::default(),
            main: Queue::default(),
            small_bytes: 0,
            bytes: 0,
            scopes: HashMap::new(),
            ghosts: Ghosts::default(),
            shares: Vec::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Bytes of all entries, overhead included.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn share(&self, database: DatabaseId) -> Share {
        self.shares.get(database.0 as usize).copied().unwrap_or_default()
    }

    fn share_mut(&mut self, database: DatabaseId) -> &mut Share {
        let at = database.0 as usize;
        if self.shares.len() <= at {
            self.shares.resize(at + 1, Share::default());
        }
        &mut self.shares[at]
    }

    /// The entry of this key; one that has expired is gone.
    pub fn find(&mut self, key: &[u8], now: Instant) -> Option<&Stored> {
        let index = *self.index.get(key)?;
        let stored = &self.slots.value(index)?.stored;
        if stored.expires <= now {
            let database = stored.database;
            self.remove(index);
            self.share_mut(database).expired += 1;
            return None;
        }
        let slot = self.slots.value_mut(index)?;
        slot.visits = (slot.visits + 1).min(MOST_VISITS);
        Some(&slot.stored)
    }

    /// The entry of this key without its being asked for.
    pub fn peek(&self, key: &[u8]) -> Option<&Stored> {
        self.slots.value(*self.index.get(key)?).map(|slot| &slot.stored)
    }

    /// This very entry is the one of its key, has not expired, and lacks nothing.
    pub fn holds(&self, key: &[u8], entry: &Arc<Entry>, now: Instant) -> bool {
        let same = |stored: &&Stored| Arc::ptr_eq(&stored.entry, entry) && stored.expires > now;
        self.peek(key).filter(same).is_some_and(|stored| stored.lacks.is_none())
    }

    /// Keeps an entry; false where it alone exceeds the bound. Another of its key gives way.
    pub fn insert(&mut self, stored: Stored) -> bool {
        let cost = cost(&stored);
        if cost > self.max_bytes || self.max_entries == 0 {
            return false;
        }
        let mut visits = 0;
        let mut main = self.ghosts.remembers(&stored.key);
        if let Some(&index) = self.index.get(&stored.key) {
            // It keeps the standing of what it replaces.
            if let Some(slot) = self.slots.value(index) {
                (visits, main) = (slot.visits, slot.main);
            }
            self.remove(index);
        }
        self.make_room(1, cost);
        let key = stored.key.clone();
        let share = self.share_mut(stored.database);
        (share.entries, share.bytes) = (share.entries + 1, share.bytes + cost);
        let slot = Slot { stored, cost, visits, main };
        let queue = if main { &mut self.main } else { &mut self.small };
        let index = self.slots.push(queue, slot);
        self.index.insert(key, index);
        self.bytes += cost;
        self.small_bytes += if main { 0 } else { cost };
        self.file(index);
        true
    }

    /// Takes out what the change concerns; how many entries that were. `since`: it is a change of rows, and was committed
    /// after that instant; what may be given behind one stays for as long.
    pub fn purge(&mut self, database: DatabaseId, change: Change<'_>, since: Option<Instant>) -> usize {
        let mut concerned: Vec<Index> = Vec::new();
        let lacking: &[bool] = if since.is_some() { &[false] } else { &[false, true] };
        let mut take = |scope| {
            let found = lacking.iter().filter_map(|lacking| self.scopes.get(&(scope, *lacking)));
            concerned.extend(found.flatten());
        };
        match change {
            Change::Tables([]) => return 0,
            Change::Tables(tables) => {
                tables.iter().for_each(|table| take(Scope::Table(database, *table)));
                take(Scope::Anything(database));
            }
            Change::All => take(Scope::Database(database)),
        }
        concerned.into_iter().filter(|index| !self.outlasts(*index, since) && self.remove(*index).is_some()).count()
    }

    /// Whether the entry may still be given behind a change of rows that was committed after `since`.
    fn outlasts(&mut self, index: Index, since: Option<Instant>) -> bool {
        let may = self.slots.value(index).is_some_and(|slot| !slot.stored.stale.is_zero());
        let Some(since) = since.filter(|_| may) else { return false };
        self.unfile(index);
        if let Some(Slot { stored, .. }) = self.slots.value_mut(index) {
            let lacks = *stored.lacks.get_or_insert(stored.as_of.max(since));
            stored.expires = stored.expires.min(lacks + stored.stale);
        }
        self.file(index);
        true
    }

    fn file(&mut self, index: Index) {
        let Some(slot) = self.slots.value(index) else { return };
        for scope in scopes(&slot.stored) {
            self.scopes.entry(scope).or_default().insert(index);
        }
    }

    fn unfile(&mut self, index: Index) {
        let Some(slot) = self.slots.value(index) else { return };
        for scope in scopes(&slot.stored) {
            if let Place::Occupied(mut set) = self.scopes.entry(scope) {
                set.get_mut().remove(&index);
                if set.get().is_empty() {
                    set.remove();
                }
            }
        }
    }

    /// Other bounds; what exceeds them goes.
    pub fn set_bounds(&mut self, max_entries: usize, max_bytes: u64) {
        (self.max_entries, self.max_bytes) = (max_entries as u64, max_bytes);
        self.make_room(0, 0);
        self.shrink();
    }

    /// Gives back the room for entries where most of it is empty: their overhead is counted while they are there, not behind them.
    fn shrink(&mut self) {
        let len = self.len();
        self.ghosts.forget_beyond(len);
        if self.slots.room().max(self.index.capacity()) < LEAST_ROOM.max(len * SPARSE) {
            return;
        }
        self.slots.compact([&mut self.small, &mut self.main]);
        (self.index, self.scopes) = (HashMap::default(), HashMap::new());
        for index in self.slots.indexes() {
            let Some(key) = self.slots.value(index).map(|slot| slot.stored.key.clone()) else { continue };
            self.index.insert(key, index);
            self.file(index);
        }
    }

    fn make_room(&mut self, entries: u64, bytes: u64) {
        while self.len() as u64 + entries > self.max_entries || self.bytes + bytes > self.max_bytes {
            if !self.evict() {
                return;
            }
        }
    }

    /// One entry goes; false where there is none.
    fn evict(&mut self) -> bool {
        loop {
            let small_is_full = self.small.len() as u64 > self.max_entries / SMALL_SHARE
                || self.small_bytes > self.max_bytes / SMALL_SHARE;
            let from_small = small_is_full || self.main.oldest().is_none();
            let oldest = if from_small { self.small.oldest().or(self.main.oldest()) } else { self.main.oldest() };
            let Some(index) = oldest else { return false };
            let Some(slot) = self.slots.value_mut(index) else { return false };
            if slot.visits == 0 {
                let database = slot.stored.database;
                let forgotten = self.remove(index);
                self.share_mut(database).evicted += 1;
                if let Some(slot) = forgotten.filter(|slot| !slot.main) {
                    self.ghosts.add(&slot.stored.key, self.index.len());
                }
                return true;
            }
            if slot.main {
                slot.visits -= 1;
                self.slots.renew(&mut self.main, index);
            } else {
                (slot.main, slot.visits) = (true, 0);
                self.small_bytes -= slot.cost;
                self.slots.transfer(&mut self.small, &mut self.main, index);
            }
        }
    }

    fn remove(&mut self, index: Index) -> Option<Slot> {
        let main = self.slots.value(index)?.main;
        self.unfile(index);
        let slot = self.slots.remove(if main { &mut self.main } else { &mut self.small }, index)?;
        self.index.remove(&slot.stored.key);
        self.bytes -= slot.cost;
        let share = self.share_mut(slot.stored.database);
        (share.entries, share.bytes) = (share.entries - 1, share.bytes - slot.cost);
        self.small_bytes -= if main { 0 } else { slot.cost };
        Some(slot)
    }
}

fn cost(stored: &Stored) -> u64 {
    let tables = match &stored.reads {
        Reads::Tables(tables) => tables.len() as u64,
        Reads::Anything => 1,
    };
    OVERHEAD + tables * TABLE_OVERHEAD + (stored.key.len() + stored.entry.len()) as u64
}

fn scopes(stored: &Stored) -> Vec<(Scope, bool)> {
    let (database, lacking) = (stored.database, stored.lacks.is_some());
    let mut scopes = vec![(Scope::Database(database), lacking)];
    match &stored.reads {
        Reads::Tables(tables) => scopes.extend(tables.iter().map(|table| (Scope::Table(database, *table), lacking))),
        Reads::Anything => scopes.push((Scope::Anything(database), lacking)),
    }
    scopes
}

/// Keys that were evicted without having been asked for again, by their hash: as many as there are entries.
#[derive(Debug, Default)]
struct Ghosts {
    hasher: DefaultHashBuilder,
    /// With the number of the place in `order` that counts for it.
    known: HashMap<u64, u64>,
    order: VecDeque<(u64, u64)>,
    next: u64,
}

impl Ghosts {
    fn add(&mut self, key: &[u8], most: usize) {
        let hash = self.hasher.hash_one(key);
        self.next += 1;
        self.known.insert(hash, self.next);
        self.order.push_back((hash, self.next));
        self.trim(most);
    }

    fn trim(&mut self, most: usize) {
        while self.order.len() > most.max(1) {
            if let Some((hash, number)) = self.order.pop_front()
                && self.known.get(&hash) == Some(&number)
            {
                self.known.remove(&hash);
            }
        }
    }

    /// No more than `most`, and their room given back where it is much more than they need.
    fn forget_beyond(&mut self, most: usize) {
        self.trim(most);
        if self.order.capacity() >= LEAST_ROOM.max(self.order.len() * SPARSE) {
            self.order.shrink_to_fit();
            self.known.shrink_to_fit();
        }
    }

    /// It was evicted lately; asked once.
    fn remembers(&mut self, key: &[u8]) -> bool {
        self.known.remove(&self.hasher.hash_one(key)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATABASE: DatabaseId = DatabaseId(0);

    fn stored(key: &str, tables: &[u32], size: usize, expires: Instant) -> Stored {
        Stored {
            key: key.as_bytes().into(),
            entry: Arc::new(Entry::new(&[], &[], &vec![0; size], 0)),
            database: DATABASE,
            reads: Reads::Tables(tables.iter().map(|oid| Table(*oid)).collect()),
            expires,
            read: Instant::now(),
            began: Instant::now(),
            as_of: Instant::now(),
            stale: Duration::ZERO,
            lacks: None,
        }
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(100)
    }

    impl Store {
        /// All its books agree.
        pub fn check(&self) {
            let slots: Vec<_> = self.index.values().map(|index| self.slots.value(*index).unwrap()).collect();
            let sum = |small: bool| slots.iter().filter(|s| !(small && s.main)).map(|s| s.cost).sum::<u64>();
            assert_eq!((self.bytes, self.small_bytes), (sum(false), sum(true)));
            assert_eq!(self.small.len() + self.main.len(), slots.len());
            assert!(slots.len() as u64 <= self.max_entries && self.bytes <= self.max_bytes);
            let listed: usize = self.scopes.values().map(HashSet::len).sum();
            assert_eq!(listed, slots.iter().map(|slot| scopes(&slot.stored).len()).sum::<usize>());
            assert!(self.scopes.values().all(|set| !set.is_empty()));
            let share = |of: fn(&Share) -> u64| self.shares.iter().map(of).sum::<u64>();
            assert_eq!((share(|s| s.entries), share(|s| s.bytes)), (slots.len() as u64, self.bytes));
            assert!(self.ghosts.known.len() <= self.ghosts.order.len());
        }
    }

    #[test]
    fn both_bounds_hold_and_a_larger_one_is_refused() {
        let mut store = Store::new(4, 10_000);
        for n in 0..20 {
            assert!(store.insert(stored(&n.to_string(), &[1], 100, later())));
            store.check();
        }
        assert_eq!(store.len(), 4);
        assert!(!store.insert(stored("large", &[1], 10_000, later())));
        assert!(store.insert(stored("half", &[1], 6_000, later())));
        store.check();
        store.set_bounds(2, 10_000);
        store.check();
        store.set_bounds(usize::MAX, 0);
        assert_eq!((store.len(), store.bytes()), (0, 0));
    }

    #[test]
    fn room_that_is_not_needed_any_more_is_given_back() {
        let mut store = Store::new(usize::MAX, 1 << 30);
        for n in 0..20_000 {
            store.insert(stored(&n.to_string(), &[n % 5], 1, later()));
        }
        store.set_bounds(20_000, 1 << 30);
        assert!(store.slots.room() >= 20_000);
        store.set_bounds(100, 1 << 30);
        store.check();
        assert_eq!(store.len(), 100);
        let room = |store: &Store| {
            let Ghosts { known, order, .. } = &store.ghosts;
            [store.slots.room(), store.index.capacity(), store.scopes.capacity(), known.capacity(), order.capacity()]
        };
        assert!(room(&store).iter().all(|room| *room <= LEAST_ROOM), "{:?}", room(&store));
        assert!(store.find(b"19999", Instant::now()).is_some(), "what came last");
        assert_eq!(store.purge(DATABASE, Change::Tables(&[Table(4)]), None), 20);
        store.check();
    }

    #[test]
    fn a_change_takes_what_reads_it_and_nothing_else() {
        let mut store = Store::new(100, 1 << 20);
        store.insert(stored("a", &[1], 1, later()));
        store.insert(stored("b", &[1, 2], 1, later()));
        store.insert(stored("c", &[3], 1, later()));
        store.insert(stored("constant", &[], 1, later()));
        store.insert(Stored { reads: Reads::Anything, ..stored("unknown", &[], 1, later()) });
        store.insert(Stored { database: DatabaseId(1), ..stored("elsewhere", &[2], 1, later()) });
        let left = |store: &mut Store| {
            let keys = ["a", "b", "c", "constant", "unknown", "elsewhere"];
            keys.into_iter().filter(|key| store.find(key.as_bytes(), Instant::now()).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(store.purge(DATABASE, Change::Tables(&[Table(2), Table(9)]), None), 2);
        assert_eq!(left(&mut store), ["a", "c", "constant", "elsewhere"]);
        assert_eq!(store.purge(DATABASE, Change::All, None), 3);
        assert_eq!(left(&mut store), ["elsewhere"]);
        store.check();
    }

    #[test]
    fn what_may_be_given_behind_a_change_stays_for_as_long() {
        let mut store = Store::new(100, 1 << 20);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let stored = |key: &str, as_of, expires| Stored {
            stale: Duration::from_secs(10),
            as_of,
            ..stored(key, &[1], 1, expires)
        };
        let table = Change::Tables(&[Table(1)]);
        for (key, as_of, expires) in [("old", at(0), at(99)), ("new", at(5), at(99)), ("short", at(0), at(6))] {
            store.insert(stored(key, as_of, expires));
        }
        assert_eq!(store.purge(DATABASE, table, Some(at(2))), 0);
        store.check();
        let entry = store.peek(b"old").unwrap().entry.clone();
        assert!(!store.holds(b"old", &entry, at(3)), "it is not what the primary says");
        // The first change counts, and what had come later is as new as that.
        assert_eq!(store.purge(DATABASE, Change::All, Some(at(4))), 0);
        let is_there = |store: &mut Store, key: &str, second| store.find(key.as_bytes(), at(second)).is_some();
        assert!(is_there(&mut store, "short", 5) && !is_there(&mut store, "short", 6));
        assert!(is_there(&mut store, "old", 11) && !is_there(&mut store, "old", 12));
        assert!(is_there(&mut store, "new", 14) && !is_there(&mut store, "new", 15));
        for change in [table, Change::All] {
            store.insert(stored("again", at(0), at(99)));
            store.purge(DATABASE, table, Some(at(2)));
            assert_eq!(store.purge(DATABASE, change, None), 1, "{change:?}");
            store.check();
        }
    }

    #[test]
    fn what_has_expired_is_gone() {
        let mut store = Store::new(100, 1 << 20);
        let now = Instant::now();
        store.insert(stored("a", &[1], 1, now + Duration::from_secs(5)));
        assert!(store.find(b"a", now + Duration::from_millis(4999)).is_some());
        assert!(store.find(b"a", now + Duration::from_secs(5)).is_none());
        assert_eq!((store.len(), store.share(DatabaseId(0)).expired), (0, 1));
        store.check();
    }

    /// Numbers of a Zipf law with exponent 1 over `0..n`, from a small generator of its own.
    struct Zipf {
        sums: Vec<f64>,
        state: u64,
    }

    impl Zipf {
        fn new(n: usize) -> Zipf {
            let mut sum = 0.0;
            let sums = (1..=n).map(|rank| {
                sum += 1.0 / rank as f64;
                sum
            });
            Zipf { sums: sums.collect(), state: 42 }
        }

        fn next(&mut self) -> usize {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            let at = (self.state >> 11) as f64 / (1u64 << 53) as f64 * self.sums[self.sums.len() - 1];
            self.sums.partition_point(|sum| *sum < at)
        }
    }

    /// The hit rate of repeated reads, in percent, where a scan of one-off reads runs after each `period` of them.
    fn hit_rate(scan: usize, mut ask: impl FnMut(&str) -> bool) -> f64 {
        let (mut zipf, mut hits, mut once) = (Zipf::new(10_000), 0, 0);
        const READS: usize = 100_000;
        for n in 0..READS {
            hits += usize::from(ask(&zipf.next().to_string()));
            if n % 5_000 == 0 {
                for _ in 0..scan {
                    once += 1;
                    ask(&format!("once {once}"));
                }
            }
        }
        hits as f64 * 100.0 / READS as f64
    }

    fn of_store(scan: usize) -> f64 {
        let mut store = Store::new(500, 1 << 30);
        let (now, expires) = (Instant::now(), later());
        hit_rate(scan, |key| {
            let hit = store.find(key.as_bytes(), now).is_some();
            if !hit {
                store.insert(stored(key, &[], 1, expires));
            }
            hit
        })
    }

    /// Plain LRU of as many entries.
    fn of_lru(scan: usize) -> f64 {
        let (mut used, mut order) = (HashMap::new(), std::collections::BTreeMap::new());
        let mut clock = 0u64;
        hit_rate(scan, |key| {
            clock += 1;
            let before = used.insert(key.to_owned(), clock);
            if let Some(before) = before {
                order.remove(&before);
            }
            order.insert(clock, key.to_owned());
            if used.len() > 500
                && let Some((_, oldest)) = order.pop_first()
            {
                used.remove(&oldest);
            }
            before.is_some()
        })
    }

    #[test]
    fn a_scan_of_reads_that_come_once_does_not_flush_what_is_read_often() {
        let (quiet, scanned) = (of_store(0), of_store(2_000));
        let (lru_quiet, lru_scanned) = (of_lru(0), of_lru(2_000));
        println!("hit rate on a Zipf trace, 500 entries of 10,000 keys: {quiet:.1} % (LRU {lru_quiet:.1} %)");
        println!("with a scan of 2,000 after each 5,000 reads: {scanned:.1} % (LRU {lru_scanned:.1} %)");
        assert!(quiet > lru_quiet && scanned > lru_scanned, "{quiet} {lru_quiet} {scanned} {lru_scanned}");
        assert!(quiet - scanned < 3.0, "{quiet} {scanned}");
    }
}
