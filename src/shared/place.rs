//! One database's part in the store: the names of its entries, what is asked for, and what is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::cache::sealed::{Carried, Epoch, OVERHEAD};
use crate::cache::{Landed, Table, UNFIT, Unfit};
use crate::catalog::path::{Path, Scope};
use crate::shared::link::{Job, Shared, State};

#[derive(Debug)]
pub struct Place {
    shared: Arc<Shared>,
    /// In whose history positions are, while the change stream is whole, and the name of the database's epoch.
    origin: Mutex<Option<Origin>>,
    /// Of the definitions by which changes have been read, and before which nothing is relied on.
    generation: AtomicU64,
    /// Asked for, and those of them that the store has taken.
    evictions: [AtomicU64; 2],
    counters: Counters,
}

#[derive(Debug, Clone)]
struct Origin {
    word: Arc<str>,
    epoch: Arc<str>,
}

/// What a result is stored by.
#[derive(Debug, Clone)]
pub struct Name {
    pub(super) entry: Arc<str>,
    pub(super) epoch: Arc<str>,
}

/// What the store has said.
#[derive(Debug)]
pub struct Fetched {
    /// With which the result may be stored that the read is about to bring.
    pub epoch: Epoch,
    /// And what its age was by then.
    pub found: Option<(Carried, Duration)>,
}

/// What has been counted since the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    pub state: State,
    pub hits: u64,
    pub misses: u64,
    /// Asked in vain: no answer in time, or an error.
    pub failed: u64,
    /// Found and of no use, in the order of [`UNFIT`].
    pub unfit: [u64; UNFIT.len()],
    pub stored: u64,
    /// Not stored, for want of room in the queue or in the store.
    pub dropped: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
}

#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    failed: AtomicU64,
    unfit: [AtomicU64; UNFIT.len()],
    stored: AtomicU64,
    dropped: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

impl Place {
    pub fn new(shared: &Arc<Shared>) -> Arc<Place> {
        let place = Arc::new(Place {
            shared: shared.clone(),
            origin: Mutex::default(),
            generation: AtomicU64::new(0),
            evictions: Default::default(),
            counters: Counters::default(),
        });
        shared.add(&place);
        place
    }

    /// The change stream tells by these positions from now on; `None`: it tells nothing.
    pub fn set_origin(&self, word: Option<&str>) {
        let epoch = |word: &str| self.shared.seal.name(&[b"epoch", word.as_bytes()]).into();
        *self.origin.lock() = word.map(|word| Origin { word: word.into(), epoch: epoch(word) });
        self.shared.look();
    }

    /// Changes are read by these definitions from now on; all that was kept is gone.
    ///
    /// A change names tables, and which those are, the definitions say. By older ones, one may have been taken for another's: what is
    /// read by newer definitions could then seem to have a change that it lacks.
    pub fn set_generation(&self, generation: u64) {
        self.generation.store(generation, Ordering::SeqCst);
    }

    /// What the result of a read is stored by: `key` is what the process's own cache finds it by, without what only this process
    /// knows. `None` where the store is not to be asked now.
    pub fn name(&self, scope: &Scope, tables: &[Table], key: &[&[u8]]) -> Option<Name> {
        let is_known = self.generation.load(Ordering::SeqCst) == scope.catalog.generation;
        if !self.shared.is_up() || self.owes_eviction() || !is_known {
            return None;
        }
        let Origin { word, epoch } = self.origin.lock().clone()?;
        let digest = scope.catalog.digest.as_deref()?;
        let Path::Known { schemas, ahead } = &scope.path else { return None };
        let bytes = |numbers: &mut dyn Iterator<Item = u32>| numbers.flat_map(u32::to_be_bytes).collect::<Vec<_>>();
        let path = bytes(&mut schemas.iter().copied().chain([*ahead as u32]));
        let mut tables: Vec<_> = tables.iter().map(|table| table.0).collect();
        tables.sort_unstable();
        let tables = bytes(&mut tables.into_iter());
        let known = [b"entry", word.as_bytes(), digest.as_bytes(), &path, &tables];
        let entry = self.shared.seal.name(&[&known, key].concat()).into();
        Some(Name { entry, epoch })
    }

    /// Asks the store. `most`: bytes of the largest entry. `None` where it does not say.
    pub async fn fetch(&self, name: &Name, most: usize) -> Option<Fetched> {
        let asked = Instant::now();
        let mut pipe = redis::pipe();
        // Of a foreign value not more than one byte too many.
        pipe.cmd("GETRANGE").arg(&*name.epoch).arg(0).arg(size_of::<Epoch>());
        // Before the entry: one that is stored in between is taken for older than it is.
        pipe.cmd("PTTL").arg(&*name.entry);
        pipe.cmd("GETRANGE").arg(&*name.entry).arg(0).arg(most.saturating_add(OVERHEAD));
        let answer: Option<(Vec<u8>, i64, Vec<u8>)> = self.shared.ask(&pipe).await;
        let Some((epoch, left, sealed)) = answer else {
            count(&self.counters.failed, 1);
            return None;
        };
        count(&self.counters.bytes_read, sealed.len() as u64);
        let Ok(epoch) = Epoch::try_from(epoch) else {
            self.shared.queue(Job::Begin(name.epoch.clone()));
            count(&self.counters.misses, 1);
            return None;
        };
        if sealed.is_empty() {
            count(&self.counters.misses, 1);
            return Some(Fetched { epoch, found: None });
        }
        let found = self.judge(name, (epoch, left, sealed)).map(|(carried, age)| (carried, age + asked.elapsed()));
        let found = found.map_err(|unfit| self.note_unfit(unfit)).ok();
        Some(Fetched { epoch, found })
    }

    fn judge(&self, name: &Name, (epoch, left, sealed): (Epoch, i64, Vec<u8>)) -> Result<(Carried, Duration), Unfit> {
        let carried = self.shared.seal.open(&name.entry, sealed).map_err(|_| Unfit::Broken)?;
        if carried.epoch != epoch {
            return Err(Unfit::Evicted);
        }
        let left = u64::try_from(left).map_err(|_| Unfit::Expired)?;
        let age = carried.lives.checked_sub(Duration::from_millis(left)).ok_or(Unfit::Broken)?;
        Ok((carried, age))
    }

    /// Stores what a read has brought that asked before and found nothing; without waiting for it.
    pub fn store(self: &Arc<Self>, name: Name, epoch: Epoch, landed: Landed) {
        if !self.shared.queue(Job::Store { place: self.clone(), name, landed, epoch }) {
            self.note_dropped();
        }
    }

    /// What is stored of this database is no answer any more: here at once, elsewhere as soon as the store can be told.
    pub fn evict(&self) {
        self.evictions[0].fetch_add(1, Ordering::SeqCst);
        self.shared.look();
    }

    fn owes_eviction(&self) -> bool {
        let [asked, done] = self.evictions.each_ref().map(|count| count.load(Ordering::SeqCst));
        asked != done
    }

    /// Where the epoch is that is to change, and up to which eviction that is done then.
    pub(super) fn owed_eviction(&self) -> Option<(Arc<str>, u64)> {
        let asked = self.evictions[0].load(Ordering::SeqCst);
        let epoch = self.origin.lock().as_ref().map(|origin| origin.epoch.clone())?;
        self.owes_eviction().then_some((epoch, asked))
    }

    pub(super) fn note_eviction(&self, eviction: u64) {
        self.evictions[1].store(eviction, Ordering::SeqCst);
    }

    /// What was found has answered a read.
    pub fn note_hit(&self) {
        count(&self.counters.hits, 1);
    }

    pub fn note_unfit(&self, unfit: Unfit) {
        count(&self.counters.unfit[unfit as usize], 1);
    }

    pub(super) fn note_stored(&self, bytes: usize) {
        count(&self.counters.stored, 1);
        count(&self.counters.bytes_written, bytes as u64);
    }

    pub(super) fn note_dropped(&self) {
        count(&self.counters.dropped, 1);
    }

    pub fn figures(&self) -> Figures {
        let Counters { hits, misses, failed, unfit, stored, dropped, bytes_read, bytes_written } = &self.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            state: self.shared.state(),
            hits: load(hits),
            misses: load(misses),
            failed: load(failed),
            unfit: unfit.each_ref().map(load),
            stored: load(stored),
            dropped: load(dropped),
            bytes_read: load(bytes_read),
            bytes_written: load(bytes_written),
        }
    }
}
