//! How a database's part in the result cache is kept true: by its change stream, or by what passes through.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use crate::cache::admit::Choice;
use crate::cache::rules::{Ruled, Rules};
use crate::cache::{Change, Counters, DatabaseId, Invalidation, Results, Table};
use crate::catalog::Catalog;
use crate::catalog::publication::Publication;
use crate::catalog::sources::Targets;
use crate::cluster::catalog::Definitions;
use crate::cluster::changes::{Cause, Changed, Commit, Event, Lsn, Part, Relation, Urge};
use crate::config;
use crate::frontend::verify::Verifying;
use crate::shared::{Place, Shared};
use crate::sql::Fingerprint;

/// What is in force for a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing is kept: changes may go unseen.
    Closed,
    /// What the operator has named, until its time is over or something is written here.
    Ttl,
    /// Everything of which the sources are known, until something is written here that they may be part of.
    Writes,
    /// The same, until the change stream tells of a change.
    Wal,
}

impl Mode {
    const ALL: [(Mode, &str); 4] =
        [(Mode::Closed, "closed"), (Mode::Ttl, "ttl"), (Mode::Writes, "writes"), (Mode::Wal, "wal")];

    pub fn as_str(self) -> &'static str {
        Mode::ALL[self as usize].1
    }

    /// Which reads are kept; `None`: none.
    pub fn choice(self) -> Option<Choice> {
        match self {
            Mode::Closed => None,
            Mode::Ttl => Some(Choice::Named),
            Mode::Writes | Mode::Wal => Some(Choice::Known),
        }
    }
}

/// What a transaction writes, as far as its statements say it.
#[derive(Debug, Default)]
pub struct Written {
    tables: Vec<Arc<[Table]>>,
    /// It may have written others, too.
    beyond: bool,
    /// … and defined something, of which no text tells.
    hidden: bool,
}

/// A session's last write.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wrote {
    pub at: Option<Instant>,
    /// The last of those of which no text tells what they defined, as long as that may be missing in the definitions.
    pub hidden: Option<Instant>,
}

/// Lists of tables kept for a transaction.
const MOST_WRITTEN: usize = 64;

impl Written {
    /// A statement is about to be sent; `None`: of which nothing is known.
    pub fn note(&mut self, targets: Option<Targets>) {
        let Some(Targets { tables, alone }) = targets else {
            return (self.beyond, self.hidden) = (true, true);
        };
        let known = self.tables.iter().any(|known| Arc::ptr_eq(known, &tables));
        let room = self.tables.len() < MOST_WRITTEN;
        self.beyond |= !alone || !(known || room);
        if !known && room {
            self.tables.push(tables);
        }
    }

    /// A statement that may define something, though its text does not say so.
    pub fn note_hidden(&mut self) {
        self.hidden = true;
    }

    pub fn hides_definitions(&self) -> bool {
        self.hidden
    }

    pub fn is_empty(&self) -> bool {
        self.tables.is_empty() && !self.beyond && !self.hidden
    }

    pub fn clear(&mut self) {
        self.tables.clear();
        (self.beyond, self.hidden) = (false, false);
    }
}

/// A database's part in the cache.
#[derive(Debug)]
pub struct Cached {
    pub database: Arc<str>,
    pub results: Arc<Results>,
    pub id: DatabaseId,
    pub counters: Arc<Counters>,
    pub ttl: Duration,
    /// `[[cache.rules]]` that are for it.
    pub rules: ArcSwapOption<Rules>,
    has_rules: AtomicBool,
    /// What the stream tells changes of; `None`: of everything.
    pub publication: ArcSwapOption<Publication>,
    /// For a session that waits to be told of its own write.
    pub urge: Urge,
    pub verifying: Verifying,
    wanted: config::Invalidation,
    mode: AtomicU8,
    /// Why it is that mode, where another is wanted.
    why: Mutex<Option<String>>,
    fleet: bool,
    /// Its part in the second level, where there is one.
    pub shared: Option<Arc<Place>>,
    /// While the stream is whole.
    part: Mutex<Option<Part>>,
    takeovers: AtomicU64,
    /// The parts of other databases of `[[databases]]` that are the same database of the same servers.
    twins: Mutex<Vec<Weak<Cached>>>,
}

impl Cached {
    pub fn new(
        database: Arc<str>,
        results: Arc<Results>,
        config: &config::Cache,
        shared: Option<&Arc<Shared>>,
    ) -> Cached {
        let id = results.add_database(Instant::now());
        let counters = results.counters(id).unwrap_or_default();
        let rules = Rules::new(&config.rules, &database);
        let cached = Cached {
            has_rules: AtomicBool::new(rules.is_some()),
            rules: ArcSwapOption::from_pointee(rules),
            publication: ArcSwapOption::empty(),
            database,
            results,
            id,
            counters,
            ttl: config.ttl,
            urge: Urge::default(),
            verifying: Verifying::new(config.verify),
            wanted: config.invalidation,
            mode: AtomicU8::new(Mode::Closed as u8),
            why: Mutex::new(None),
            fleet: config.fleet,
            shared: shared.map(Place::new),
            part: Mutex::new(None),
            takeovers: AtomicU64::new(0),
            twins: Mutex::default(),
        };
        match config.invalidation {
            config::Invalidation::Ttl => cached.open(Mode::Ttl),
            config::Invalidation::Writes => cached.open(Mode::Writes),
            config::Invalidation::Auto | config::Invalidation::Wal => {
                *cached.why.lock() = Some("the change stream has not begun".to_owned());
            }
        }
        cached
    }

    pub fn mode(&self) -> Mode {
        Mode::ALL[usize::from(self.mode.load(Ordering::Relaxed))].0
    }

    /// Why what is in force is not what the configuration would rather have.
    pub fn why(&self) -> Option<String> {
        self.why.lock().clone()
    }

    /// How changes are known where there may be a fleet, and how often the lead was taken over from another.
    pub fn fleet(&self) -> Option<(Option<Part>, u64)> {
        let is_one = self.fleet && self.wants_stream();
        is_one.then(|| (self.part.lock().clone(), self.takeovers.load(Ordering::Relaxed)))
    }

    /// Relies on a change stream where there is one.
    pub fn wants_stream(&self) -> bool {
        matches!(self.wanted, config::Invalidation::Auto | config::Invalidation::Wal)
    }

    /// Others from now on: they count for what is kept already, too.
    pub fn set_rules(&self, rules: &[config::CacheRule]) {
        let rules = Rules::new(rules, &self.database);
        let has_rules = rules.is_some();
        self.rules.store(rules.map(Arc::new));
        self.has_rules.store(has_rules, Ordering::Release);
    }

    pub fn has_rules(&self) -> bool {
        self.has_rules.load(Ordering::Acquire)
    }

    /// What the rules say of a statement, by these definitions.
    pub fn ruled(&self, statement: Fingerprint, catalog: Option<&Catalog>) -> Ruled {
        if !self.has_rules() {
            return Ruled::default();
        }
        self.rules.load().as_ref().map(|rules| rules.ruled(statement, catalog)).unwrap_or_default()
    }

    /// What is written to either, or evicted from it, is so from both.
    pub fn pair(self: &Arc<Self>, other: &Arc<Cached>) {
        self.twins.lock().push(Arc::downgrade(other));
        other.twins.lock().push(Arc::downgrade(self));
    }

    fn twins(&self) -> impl Iterator<Item = Arc<Cached>> {
        let twins = self.twins.lock().clone();
        twins.into_iter().filter_map(|twin| twin.upgrade())
    }

    /// Something that a session wrote is committed, perhaps. Where triggers, rules and cascades lead, the change stream tells;
    /// until it has, the session reads past the cache.
    /// `by`: when it is, at the latest. Where no stream tells, what begins before that is not kept.
    pub fn note_write(&self, written: &Written, by: Instant) {
        self.apply_write(written, by);
        self.twins().for_each(|twin| twin.apply_write(written, by));
    }

    fn apply_write(&self, written: &Written, by: Instant) {
        let now = Instant::now();
        let by = if self.mode() == Mode::Wal { now } else { by.max(now) };
        let change = |change| self.results.change_by(self.id, change, Invalidation::Write, now, by);
        let by_table = match self.mode() {
            Mode::Wal => true,
            Mode::Writes => !written.beyond,
            Mode::Closed | Mode::Ttl => false,
        };
        if by_table {
            written.tables.iter().for_each(|tables| change(Change::Tables(tables)));
        } else {
            change(Change::All);
        }
    }

    /// Another server is the primary, with a history of its own. Where a stream tells of changes, it breaks, too.
    pub fn note_promotion(&self) {
        if matches!(self.mode(), Mode::Ttl | Mode::Writes) {
            self.results.change(self.id, Change::All, Invalidation::Definitions, Instant::now());
        }
    }

    /// By an operator's command.
    pub fn evict(&self, change: Change<'_>) {
        let evict = |cached: &Cached| {
            cached.shared.iter().for_each(|shared| shared.evict());
            cached.results.change(cached.id, change, Invalidation::Command, Instant::now());
        };
        evict(self);
        self.twins().for_each(|twin| evict(&twin));
    }

    fn set_origin(&self, origin: Option<&str>) {
        self.shared.iter().for_each(|shared| shared.set_origin(origin));
    }

    fn open(&self, mode: Mode) {
        self.results.open(self.id, Instant::now());
        self.mode.store(mode as u8, Ordering::Relaxed);
    }

    fn close(&self) {
        self.mode.store(Mode::Closed as u8, Ordering::Relaxed);
        self.results.close(self.id, Instant::now());
    }
}

/// Applies what a change stream tells.
#[derive(Debug)]
pub struct Keeper {
    database: Arc<str>,
    cached: Arc<Cached>,
    definitions: Arc<Definitions>,
    /// For how long they are relied on since they were last known to hold.
    unverified: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The stream is whole.
    whole: bool,
    /// Where the last commit ends that was told; at first where the stream begins.
    told: Lsn,
    visible: Lsn,
    /// Of the definitions by which the last names were read.
    generation: u64,
    /// Where there may be a fleet, from the next [`Event::Whole`] on.
    part: Option<Part>,
    /// In whose history positions are.
    origin: Option<Box<str>>,
    publication: Option<Arc<Publication>>,
    /// The last whole stream was that of another.
    followed: bool,
}

impl Keeper {
    pub fn new(database: Arc<str>, cached: Arc<Cached>, definitions: Arc<Definitions>, unverified: Duration) -> Keeper {
        definitions.rely();
        Keeper { database, cached, definitions, unverified, state: Mutex::default() }
    }

    /// The database's definitions cannot be read, nor its changes followed, for nobody can log in.
    pub fn give_up(&self) {
        self.lose(&Cause::Refused("no user of the configuration can log in".to_owned()));
    }

    pub fn take(&self, event: Event) {
        let state = &mut *self.state.lock();
        match event {
            Event::Part(part) => state.part = Some(part),
            Event::Origin(origin) => state.origin = origin,
            Event::Publication(publication) => state.publication = publication,
            Event::Whole { from } => {
                // What was committed since an earlier one, nobody tells.
                if self.cached.mode() == Mode::Wal {
                    self.cached.close();
                }
                (state.whole, state.told, state.visible) = (true, from, from);
                self.begin(state);
            }
            Event::Commit(commit) => self.commit(state, &commit),
            Event::Reached(end) => self.cached.results.note_reached(self.cached.id, end),
            Event::Visible(end) => {
                state.visible = state.visible.max(end);
                self.cached.results.note_visible(self.cached.id, end);
            }
            Event::Told(by) => self.told(state, by),
            Event::Lost(cause) => {
                state.whole = false;
                self.lose(&cause);
            }
        }
        // Names and sources may mean others now. While there were no definitions, nothing was kept.
        let generation = self.definitions.latest().map_or(0, |catalog| catalog.generation);
        let before = std::mem::replace(&mut state.generation, generation);
        if before != 0 && before != generation && self.cached.mode() == Mode::Wal {
            self.cached.results.change(self.cached.id, Change::All, Invalidation::Definitions, Instant::now());
        }
        self.cached.shared.iter().for_each(|shared| shared.set_generation(generation));
    }

    fn begin(&self, state: &mut State) {
        if state.part == Some(Part::Leader) && state.followed {
            self.cached.takeovers.fetch_add(1, Ordering::Relaxed);
        }
        state.followed = matches!(state.part, Some(Part::Follower(_)));
        match &state.part {
            Some(Part::Alone(why)) => {
                tracing::warn!(database = &*self.database, why, "changes are followed without the fleet");
            }
            part => tracing::debug!(database = &*self.database, ?part, "changes are followed"),
        }
        self.cached.part.lock().clone_from(&state.part);
    }

    fn commit(&self, state: &mut State, commit: &Commit) {
        state.told = commit.end;
        let (results, id) = (&self.cached.results, self.cached.id);
        // It may have defined something. Of rows that are nobody's it tells nothing, either.
        if matches!(&commit.changed, Changed::These(relations) if relations.is_empty()) {
            self.definitions.urge();
        }
        // What a snapshot lacks, the next one makes good: then all that is kept goes.
        let Some(tables) = tables(&commit.changed, self.definitions.latest().as_deref()) else {
            return results.commit(id, Change::All, commit.end);
        };
        results.commit(id, Change::Tables(&tables), commit.end);
    }

    /// Where the definitions cannot be looked at, or not often enough, nothing is known of what they have become: as if the stream
    /// itself were behind.
    fn told(&self, state: &State, by: Instant) {
        let by = self.definitions.verified().map_or(by, |verified| by.min(verified + self.unverified));
        let Cached { results, id, .. } = &*self.cached;
        if self.cached.mode() == Mode::Wal {
            return results.note_told(*id, by);
        }
        if state.whole {
            // Before anything can be kept: who judges by another notices it then.
            self.cached.publication.store(state.publication.clone());
            results.open_stream(*id, state.told, state.visible, by);
            self.cached.mode.store(Mode::Wal as u8, Ordering::Relaxed);
            self.cached.set_origin(state.origin.as_deref());
            *self.cached.why.lock() = None;
            tracing::info!(database = &*self.database, "results are cached, and invalidated by the change stream");
        }
    }

    fn lose(&self, cause: &Cause) {
        self.cached.set_origin(None);
        self.cached.close();
        *self.cached.part.lock() = None;
        let why = cause.to_string();
        let database = &*self.database;
        // Not by the writes that pass through here: there may be others, and who is alone says so.
        if self.cached.wanted == config::Invalidation::Auto && !cause.passes() {
            self.cached.open(Mode::Ttl);
            tracing::warn!(database, why, "no change stream: only results that a hint or a rule names are cached");
        } else {
            tracing::warn!(database, why, "no change stream: no results are cached until it is whole again");
        }
        *self.cached.why.lock() = Some(why);
    }
}

/// The tables of a commit; `None` where one of them is not known.
pub(super) fn tables(changed: &Changed, catalog: Option<&Catalog>) -> Option<Vec<Table>> {
    let Changed::These(relations) = changed else { return None };
    if relations.is_empty() {
        // Definitions, or nothing that is kept. Definitions are watched in the catalog.
        return Some(Vec::new());
    }
    let catalog = catalog?;
    let table = |relation: &Relation| match relation {
        Relation::Named(name) => catalog.table(name),
        Relation::Oid(oid) => Some(Table(*oid)).filter(|table| catalog.has_table(*table)),
    };
    relations.iter().map(table).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Limits;

    #[test]
    fn a_stream_that_follows_another_begins_with_nothing() {
        let limits = Limits { max_entries: 10, max_bytes: 1 << 20, max_entry_bytes: 1 << 10 };
        let results = Arc::new(Results::new(limits));
        let config = config::Cache { invalidation: config::Invalidation::Wal, ..config::Cache::default() };
        let cached = Arc::new(Cached::new("d".into(), results, &config, None));
        let keeper = Keeper::new("d".into(), cached.clone(), Arc::default(), Duration::ZERO);
        keeper.take(Event::Whole { from: Lsn(10) });
        keeper.take(Event::Told(Instant::now()));
        assert_eq!(cached.mode(), Mode::Wal);
        // By the next login: what was committed in between nobody tells.
        keeper.take(Event::Whole { from: Lsn(20) });
        assert_eq!(cached.mode(), Mode::Closed);
        keeper.take(Event::Told(Instant::now()));
        assert_eq!(cached.mode(), Mode::Wal);
    }
}
