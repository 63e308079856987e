//! The last change of each table of a database, as the change stream tells it: what `freshness = "table"` asks of replicas.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::cache::{Change, Changes, MOST_BEHIND, Mark, Reads, Table};
use crate::catalog::publication::Publication;
use crate::cluster::catalog::Definitions;
use crate::cluster::changes::{Event, Lsn};
use crate::frontend::invalidation;

/// What of it a batch's tables ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Floor {
    /// No more than its session has seen.
    #[default]
    None,
    /// A replica must have replayed up to here.
    At(Lsn),
    /// It is not known: only the primary has it for certain.
    Unknown,
}

impl Floor {
    pub fn and(self, other: Floor) -> Floor {
        match (self, other) {
            (Floor::Unknown, _) | (_, Floor::Unknown) => Floor::Unknown,
            (Floor::At(one), Floor::At(other)) => Floor::At(one.max(other)),
            (Floor::None, floor) | (floor, Floor::None) => floor,
        }
    }
}

/// Fed by the change stream, whether or not results are cached.
#[derive(Debug)]
pub struct Tables {
    database: Arc<str>,
    definitions: Arc<Definitions>,
    /// Somebody has asked.
    wanted: AtomicBool,
    asked: Notify,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Where the last commit ends that was told; at first where the stream begins. `None`: it is not whole.
    end: Option<Lsn>,
    /// Of whose tables changes are told; `None`: of all.
    publication: Option<Arc<Publication>>,
    /// Everything that was committed by then has been told.
    by: Option<Instant>,
    /// Kept once somebody has asked.
    changes: Option<Changes>,
    /// Of the definitions by which the last names were read.
    generation: u64,
    epoch: Instant,
}

impl Tables {
    /// `wanted`: at once, else when the first session asks.
    pub fn new(database: Arc<str>, definitions: Arc<Definitions>, wanted: bool) -> Tables {
        let state =
            State { end: None, publication: None, by: None, changes: None, generation: 0, epoch: Instant::now() };
        Tables {
            database,
            definitions,
            wanted: AtomicBool::new(wanted),
            asked: Notify::new(),
            state: Mutex::new(state),
        }
    }

    /// Ends when somebody has asked; false where everything that `lives` has ended before.
    pub async fn asked(&self, mut lives: watch::Receiver<u64>) -> bool {
        loop {
            let asked = self.asked.notified();
            if self.wanted.load(Ordering::Relaxed) {
                return true;
            }
            tokio::select! {
                () = asked => {}
                change = lives.changed() => if change.is_err() { return false },
            }
        }
    }

    /// What a read at `now` needs that may look at these tables.
    pub fn floor(&self, tables: &Arc<[Table]>, now: Instant) -> Floor {
        if !self.wanted.swap(true, Ordering::Relaxed) {
            self.asked.notify_one();
        }
        if tables.is_empty() {
            return Floor::None;
        }
        let state = &mut *self.state.lock();
        self.settle(state);
        let told = state.by.is_some_and(|by| now.saturating_duration_since(by) <= MOST_BEHIND);
        let Some(end) = state.end.filter(|_| told && self.are_covered(state, tables)) else { return Floor::Unknown };
        let changes = state.changes.get_or_insert_with(|| Changes::new(mark(state.epoch, end)));
        Floor::At(changes.last(&Reads::Tables(tables.clone())).end)
    }

    fn are_covered(&self, state: &State, tables: &[Table]) -> bool {
        let Some(publication) = &state.publication else { return true };
        let latest = self.definitions.latest();
        latest.is_some_and(|catalog| tables.iter().all(|table| publication.covers(&catalog, *table)))
    }

    pub fn take(&self, event: &Event) {
        let state = &mut *self.state.lock();
        match event {
            Event::Whole { from } => (state.end, state.by, state.changes) = (Some(*from), None, None),
            Event::Lost(cause) => {
                (state.end, state.by, state.changes) = (None, None, None);
                if self.wanted.load(Ordering::Relaxed) {
                    let why = cause.to_string();
                    let database = &*self.database;
                    tracing::warn!(
                        database,
                        why,
                        "no change stream: freshness \"table\" reads on the primary until it is whole"
                    );
                }
            }
            Event::Publication(publication) => state.publication.clone_from(publication),
            Event::Told(by) => state.by = Some(*by),
            Event::Commit(commit) => {
                state.end = Some(commit.end);
                if let Some(changes) = &mut state.changes {
                    let latest = self.definitions.latest();
                    let tables = invalidation::tables(&commit.changed, latest.as_deref());
                    // One that shows nothing has changed definitions, for all that is known: of views, for one.
                    let change = match tables.as_deref().filter(|_| !commit.is_empty()) {
                        Some(tables) => Change::Tables(tables),
                        None => Change::All,
                    };
                    changes.note(change, mark(state.epoch, commit.end));
                }
            }
            Event::Part(_) | Event::Origin(_) | Event::Reached(_) | Event::Visible(_) => {}
        }
        self.settle(state);
    }

    /// By the definitions of now.
    fn settle(&self, state: &mut State) {
        // Names and sources may mean others now.
        let generation = self.definitions.latest().map_or(0, |catalog| catalog.generation);
        if std::mem::replace(&mut state.generation, generation) != generation
            && let (Some(changes), Some(end)) = (&mut state.changes, state.end)
        {
            changes.note(Change::All, mark(state.epoch, end));
        }
    }
}

/// By its position alone.
fn mark(epoch: Instant, end: Lsn) -> Mark {
    Mark { number: 0, at: epoch, end }
}
