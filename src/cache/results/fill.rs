//! A read under way: where its result lands, and what another pgweir's does instead.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{DatabaseId, Inner, Results};
use crate::cache::admit::Refusal;
use crate::cache::changes::{Mark, Reads, Table};
use crate::cache::entry::{Entry, Needs};
use crate::cache::flight::Flight;
use crate::cache::store::Stored;
use crate::freshness::{Lsn, Sample};

/// A read that runs, for the cache and for those that wait. Dropped without a result, they go on for themselves.
#[derive(Debug)]
pub struct Fill {
    pub(super) results: Arc<Results>,
    pub(super) flight: Arc<Flight>,
    pub(super) key: Arc<[u8]>,
    pub(super) database: DatabaseId,
    pub(super) reads: Reads,
    pub(super) ttl: Duration,
    pub(super) stale: Duration,
    pub(super) needs: Needs,
    pub(super) changed: Mark,
    pub(super) behind: bool,
    pub(super) shareable: bool,
}

/// A result that is kept, for others too.
#[derive(Debug, PartialEq, Eq)]
pub struct Landed {
    pub entry: Arc<Entry>,
    /// It reflects every commit to what it reads that ends here in the WAL, or before.
    pub as_of: Lsn,
    pub expires: Instant,
    pub ttl: Duration,
}

/// Why what another pgweir has kept is no answer here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unfit {
    /// Something that it reads has changed since, for all that is known here.
    Old,
    /// Something that it reads has changed while it was asked for, or changes may go unseen.
    Changed,
    /// It lacks a description that the reply needs.
    Lacking,
    /// It has reached its age.
    Expired,
    /// It was kept before an EVICT.
    Evicted,
    /// Cut, changed, sealed by another secret, or too large.
    Broken,
}

/// All of them, in the order of SHOW CACHE.
pub const UNFIT: [(Unfit, &str); 6] = [
    (Unfit::Old, "old"),
    (Unfit::Changed, "changed"),
    (Unfit::Lacking, "lacking"),
    (Unfit::Expired, "expired"),
    (Unfit::Evicted, "evicted"),
    (Unfit::Broken, "broken"),
];

impl Fill {
    /// Who asks must have what the change stream has yet to tell of.
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// Whether a replica's answer is of use: it has replayed the last change of what is read.
    pub fn may_come_from(&self, sample: &Sample) -> bool {
        self.changed.is_replayed(sample)
    }

    /// The tables that it reads, where another pgweir may have the answer: changes are told by their positions in the WAL, and all
    /// that is known of these tables has one.
    pub fn shared_tables(&self) -> Option<&[Table]> {
        match &self.reads {
            Reads::Tables(tables) if self.shareable => Some(tables),
            Reads::Tables(_) | Reads::Anything => None,
        }
    }

    /// The result has come. It is given to those that wait, and kept unless something that it reads has changed since
    /// it began.
    ///
    /// # Errors
    /// Why it is not kept.
    pub fn land(self, entry: Entry) -> Result<Option<Landed>, Refusal> {
        let now = Instant::now();
        let mut inner = self.results.inner.lock();
        let inner = &mut *inner;
        if entry.len() as u64 > self.results.max_entry_bytes.load(Ordering::Relaxed) {
            return Err(Refusal::TooLarge);
        }
        let began = self.flight.began;
        let standing = inner.databases.get(self.database.0 as usize).filter(|standing| standing.open);
        // Whoever waits asked before that change was known.
        let is_in = |mark: Mark| mark.is_in(began.at, began.number, began.visible);
        let whole = standing.filter(|standing| is_in(standing.changes.last(&self.reads)));
        // What has been told since is in it: nothing of its tables.
        let as_of = whole.map(|standing| standing.stream.map_or(Lsn(0), |told| told.reached.max(told.visible)));
        let allowed =
            || standing.is_some_and(|standing| is_in(standing.changes.all())) && now < began.as_of + self.stale;
        let kept = as_of.is_some() || allowed();
        let before = if kept { inner.store.peek(&self.key) } else { None };
        let newer = |before: &Stored| as_of.is_none() && before.lacks.is_none_or(|by| by > began.as_of);
        let is_newer = before.is_some_and(newer);
        let entry = Arc::new(match before {
            Some(before) => entry.completed_by(&before.entry),
            None => entry,
        });
        self.flight.end(Some(entry.clone()));
        if !kept {
            return Err(Refusal::Changed);
        }
        if is_newer {
            return Ok(None);
        }
        // It is as old as the snapshot that it was read with.
        let lacks = as_of.is_none().then_some(began.as_of);
        let expires = began.at + self.ttl;
        if !self.keep(inner, entry.clone(), (began.at, now), lacks) {
            return Err(Refusal::TooLarge);
        }
        if let Some(standing) = inner.databases.get(self.database.0 as usize) {
            standing.counters.stored.fetch_add(1, Ordering::Relaxed);
        }
        // What lacks a change is for nobody else.
        Ok(as_of.map(|as_of| Landed { entry, as_of, expires, ttl: self.ttl }))
    }

    /// Another pgweir has kept the result: given to those that wait, and kept, where it has all that is known here to have changed.
    /// `age`: what it has reached by `now`.
    ///
    /// # Errors
    /// Why it is no answer; the fill goes on.
    pub fn adopt(
        self,
        entry: Entry,
        as_of: Lsn,
        age: Duration,
        now: Instant,
    ) -> Result<Arc<Entry>, Box<(Fill, Unfit)>> {
        let results = self.results.clone();
        let inner = &mut *results.inner.lock();
        let began = self.flight.began;
        let standing = inner.databases.get(self.database.0 as usize).filter(|standing| standing.is_sound(now));
        let last = standing.map(|standing| standing.changes.last(&self.reads));
        let unfit = match last {
            None => Some(Unfit::Changed),
            Some(last) if last.number > began.number => Some(Unfit::Changed),
            Some(last) if last.end > as_of => Some(Unfit::Old),
            Some(_) if age >= self.ttl => Some(Unfit::Expired),
            Some(_) if !entry.has(self.needs) => Some(Unfit::Lacking),
            Some(_) => None,
        };
        if let Some(unfit) = unfit {
            return Err(Box::new((self, unfit)));
        }
        let entry = Arc::new(entry);
        self.flight.end(Some(entry.clone()));
        self.keep(inner, entry.clone(), (now.checked_sub(age).unwrap_or(now), now), None);
        Ok(entry)
    }

    fn keep(
        &self,
        inner: &mut Inner,
        entry: Arc<Entry>,
        (began, read): (Instant, Instant),
        lacks: Option<Instant>,
    ) -> bool {
        let (as_of, expires) = (self.flight.began.as_of, began + self.ttl);
        inner.store.insert(Stored {
            key: self.key.clone(),
            entry,
            database: self.database,
            reads: self.reads.clone(),
            expires: lacks.map_or(expires, |by| expires.min(by + self.stale)),
            read,
            began,
            as_of,
            stale: self.stale,
            lacks,
        })
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.flight.end(None);
        let mut inner = self.results.inner.lock();
        // Behind a change, another has taken its place.
        if inner.flights.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            inner.flights.remove(&self.key);
        }
    }
}
