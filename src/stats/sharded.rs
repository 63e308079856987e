//! What all workers add to, without going to and fro between their cores.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};

/// In lines of memory of its own: who writes to what lies beside it does not slow down who reads it on another core.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Apart<T>(pub T);

/// As many places as a [`Spread`] has.
const PLACES: usize = 16;

/// A count that each query may add to: workers whose numbers differ by less than 16 do it apart.
#[derive(Debug, Default)]
pub struct Spread([Apart<AtomicU64>; PLACES]);

impl Spread {
    pub fn count(&self, worker: usize) {
        self.0[worker % PLACES].0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn total(&self) -> u64 {
        self.0.iter().map(|place| place.0.load(Ordering::Relaxed)).sum()
    }
}

/// Two meetings with no more uses between them than this are often …
const OFTEN: u32 = 4096;
/// … and after so many in a row each worker is given a place of its own.
const MEETINGS: u32 = 16;

/// A value in one place, until workers meet there often; from then on in one more for each worker. Most are seldom
/// used, and cost the memory of one.
#[derive(Debug)]
pub struct Sharded<T> {
    first: Mutex<First<T>>,
    own: OnceLock<Box<[Apart<Mutex<T>>]>>,
    workers: usize,
}

#[derive(Debug, Default)]
struct First<T> {
    value: T,
    meetings: u32,
    /// Uses since the last meeting.
    alone: u32,
}

impl<T> First<T> {
    /// Another was waited for; true where such meetings have become too many.
    fn note_meeting(&mut self) -> bool {
        self.meetings = if self.alone <= OFTEN { self.meetings + 1 } else { 1 };
        self.alone = 0;
        self.meetings >= MEETINGS
    }
}

impl<T: Default> Sharded<T> {
    pub fn new(workers: usize) -> Self {
        Sharded { first: Mutex::default(), own: OnceLock::new(), workers }
    }

    /// The place for a worker.
    pub fn lock(&self, worker: usize) -> MappedMutexGuard<'_, T> {
        if let Some(own) = self.own.get() {
            return MutexGuard::map(own[worker % own.len()].0.lock(), |value| value);
        }
        let mut first = self.first.try_lock().unwrap_or_else(|| self.meet());
        first.alone = first.alone.wrapping_add(1);
        MutexGuard::map(first, |first| &mut first.value)
    }

    #[cold]
    fn meet(&self) -> MutexGuard<'_, First<T>> {
        let mut first = self.first.lock();
        if first.note_meeting() && self.workers > 1 {
            self.split();
        }
        first
    }

    pub(super) fn split(&self) {
        self.own.get_or_init(|| (0..self.workers).map(|_| Apart::default()).collect());
    }

    /// Each place in turn, locked.
    pub fn places(&self) -> impl Iterator<Item = MappedMutexGuard<'_, T>> {
        let own = self.own.get().into_iter().flatten();
        let first = std::iter::once_with(|| MutexGuard::map(self.first.lock(), |first| &mut first.value));
        first.chain(own.map(|own| MutexGuard::map(own.0.lock(), |value| value)))
    }

    /// Forgets what was added, and keeps the places.
    pub fn clear(&self) {
        self.places().for_each(|mut place| *place = T::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_meet_seldom_stay_together() {
        let judged = |alone: u32| {
            let mut first = First::<()>::default();
            (0..3 * MEETINGS).any(|_| {
                first.alone += alone;
                first.note_meeting()
            })
        };
        assert!(judged(1) && judged(OFTEN) && !judged(OFTEN + 1));
    }

    #[test]
    fn nothing_is_lost_while_a_place_becomes_many() {
        let sharded = Sharded::<u64>::new(2);
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let sharded = &sharded;
                scope.spawn(move || (0..10_000).for_each(|_| *sharded.lock(worker) += 1));
            }
            sharded.split();
        });
        let all: Vec<u64> = sharded.places().map(|place| *place).collect();
        assert_eq!((all.len(), all.iter().sum()), (3, 40_000));
        let before = all[2];
        *sharded.lock(3) += 1;
        assert_eq!(sharded.places().nth(2).map(|place| *place), Some(before + 1));
        sharded.clear();
        assert_eq!(sharded.places().map(|place| *place).sum::<u64>(), 0);
    }
}
