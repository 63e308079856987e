//! A connection on loan, and how long it may live.

use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

/// A connection that is checked out. It counts against `max` until it is given back with
/// [`Ledger::checkin`](super::Ledger::checkin), so whoever holds it must do so on every path, panics included.
#[derive(Debug)]
#[must_use = "a connection that is not checked in is lost to its pool"]
pub struct Held<C> {
    pub connection: C,
    /// The worker whose reactor knows the socket. Whoever moves the socket to another worker sets it.
    pub home: usize,
    pub(super) life: Life,
}

impl<C> Held<C> {
    /// Of this generation, and not near its end: where nobody waits and there are not too many, it becomes idle.
    pub fn stays(&self, generation: u64, now: Instant) -> bool {
        self.life.generation == generation && !self.life.is_due(now)
    }
}

impl<C> Deref for Held<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.connection
    }
}

impl<C> DerefMut for Held<C> {
    fn deref_mut(&mut self) -> &mut C {
        &mut self.connection
    }
}

/// A replacement is asked for this share of the lifetime before its end …
const RENEWAL_SHARE: u32 = 20;
/// … but not sooner than this: time for a slow login, a few retries and the next reap.
const LONGEST_RENEWAL: Duration = Duration::from_secs(10);
/// The share of `max_lifetime` that jitter may take off, so that connections made together do not end together.
const JITTER_SHARE: u32 = 10;

/// What the ledger knows of one living connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Life {
    pub(super) id: u64,
    pub(super) generation: u64,
    /// From here on it is due: a successor is wanted. `None`: never (the sum does not fit an `Instant`).
    renew_at: Option<Instant>,
    /// From here on it is over: closed as soon as nobody uses it.
    retire_at: Option<Instant>,
}

impl Life {
    /// `jitter` from 0.0 (lives for all of `max_lifetime`) to 1.0 (for 90 % of it).
    pub(super) fn new(id: u64, generation: u64, born: Instant, max_lifetime: Duration, jitter: f64) -> Self {
        // Not `clamp`, which lets a NaN through.
        let jitter = if jitter > 0.0 { jitter.min(1.0) } else { 0.0 };
        let lifetime = max_lifetime - (max_lifetime / JITTER_SHARE).mul_f64(jitter);
        let renewal = (lifetime / RENEWAL_SHARE).min(LONGEST_RENEWAL);
        Self { id, generation, renew_at: born.checked_add(lifetime - renewal), retire_at: born.checked_add(lifetime) }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.renew_at.is_some_and(|at| now >= at)
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.retire_at.is_some_and(|at| now >= at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn life(max_lifetime: Duration, jitter: f64) -> (Instant, Life) {
        let born = Instant::now();
        (born, Life::new(0, 0, born, max_lifetime, jitter))
    }

    #[test]
    fn jitter_takes_off_a_tenth_at_most() {
        for (jitter, seconds) in [(0.0, 3600), (0.5, 3420), (1.0, 3240), (7.0, 3240), (-1.0, 3600), (f64::NAN, 3600)] {
            let (born, life) = life(HOUR, jitter);
            let end = born + Duration::from_secs(seconds);
            let moment = Duration::from_millis(1);
            assert!(!life.is_over(end - moment), "{jitter}");
            assert!(life.is_over(end + moment), "{jitter}");
        }
    }

    #[test]
    fn a_successor_is_wanted_shortly_before_the_end() {
        let (born, long) = life(HOUR, 0.0);
        assert!(!long.is_due(born + HOUR - Duration::from_secs(11)));
        assert!(long.is_due(born + HOUR - Duration::from_secs(10)));
        let (born, short) = life(Duration::from_secs(20), 0.0);
        assert!(!short.is_due(born + Duration::from_millis(18_999)));
        assert!(short.is_due(born + Duration::from_secs(19)));
    }

    #[test]
    fn a_lifetime_beyond_all_clocks_never_ends() {
        let (born, life) = life(Duration::MAX, 0.0);
        assert!(!life.is_due(born + 1000 * HOUR) && !life.is_over(born + 1000 * HOUR));
    }
}
