//! When the next connection may be made: permits, and the pause after a failure.

use std::time::{Duration, Instant};

/// The pause after failures in a row doubles up to this (or stays `create_retry_interval` where that is longer).
pub const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// Leave to make one connection. It holds a place under `max` until it is given back with
/// [`Ledger::created`](super::Ledger::created) or [`Ledger::create_failed`](super::Ledger::create_failed).
#[derive(Debug)]
#[must_use = "a permit that is not given back keeps its place in the pool for ever"]
pub struct Permit {
    pub(super) generation: u64,
}

/// How many connections the caller has to start making now: an iterator of that many permits, often of none.
#[derive(Debug)]
#[must_use = "these permits hold places in the pool until each is given back"]
pub struct Creates {
    count: usize,
    generation: u64,
}

impl Creates {
    pub(super) fn new(count: usize, generation: u64) -> Self {
        Self { count, generation }
    }

    pub fn none() -> Self {
        Self { count: 0, generation: 0 }
    }
}

impl Iterator for Creates {
    type Item = Permit;

    fn next(&mut self) -> Option<Permit> {
        self.count = self.count.checked_sub(1)?;
        Some(Permit { generation: self.generation })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count, Some(self.count))
    }
}

impl ExactSizeIterator for Creates {}

/// The pause before the next attempt: `create_retry_interval` after the first failure, twice as long after each
/// further attempt that fails, [`LONGEST_RETRY`] at most.
#[derive(Debug)]
pub(super) struct Backoff {
    interval: Duration,
    /// After a failure: how long the pause is and when it ends.
    pause: Option<(Duration, Instant)>,
}

impl Backoff {
    pub(super) fn new(interval: Duration) -> Self {
        let mut backoff = Self { interval, pause: None };
        backoff.set_interval(interval);
        backoff
    }

    /// Kept between 10 ms (no busy loop) and an hour (no overflow of the clock).
    pub(super) fn set_interval(&mut self, interval: Duration) {
        self.interval = interval.clamp(Duration::from_millis(10), Duration::from_secs(3600));
    }

    pub(super) fn succeeded(&mut self) {
        self.pause = None;
    }

    /// Returns when the next attempt is allowed. Attempts that were under way together and fail together are one failure.
    pub(super) fn failed(&mut self, now: Instant) -> Instant {
        let delay = match self.pause {
            Some((_, until)) if now < until => return until,
            Some((last, _)) => (last * 2).min(LONGEST_RETRY.max(self.interval)),
            None => self.interval,
        };
        let until = now + delay;
        self.pause = Some((delay, until));
        until
    }

    /// How many connects may be under way at once. While the last one failed it is a single trial, so that a server that
    /// is just coming back is not met by a storm of logins.
    pub(super) fn allowed(&self, now: Instant, cap: usize) -> usize {
        match self.pause {
            Some((_, until)) if now < until => 0,
            Some(_) => cap.min(1),
            None => cap,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_pause_doubles_up_to_its_longest_and_starts_anew_after_success() {
        let mut now = Instant::now();
        let mut backoff = Backoff::new(200 * MS);
        for expected in [200, 400, 800, 1600, 3200, 5000, 5000] {
            assert_eq!(backoff.failed(now) - now, expected * MS);
            assert_eq!(backoff.allowed(now + (expected - 1) * MS, 4), 0);
            now += expected * MS;
            assert_eq!(backoff.allowed(now, 4), 1);
        }
        backoff.succeeded();
        assert_eq!(backoff.allowed(now, 4), 4);
        assert_eq!(backoff.failed(now) - now, 200 * MS);
    }

    #[test]
    fn attempts_that_fail_together_are_one_failure() {
        let now = Instant::now();
        let mut backoff = Backoff::new(200 * MS);
        let until = backoff.failed(now);
        assert_eq!(backoff.failed(now + 5 * MS), until);
        assert_eq!(backoff.failed(until - MS), until);
        assert_eq!(backoff.failed(until) - until, 400 * MS);
    }

    #[test]
    fn an_interval_above_the_longest_is_kept_and_zero_is_no_busy_loop() {
        let now = Instant::now();
        let mut slow = Backoff::new(20_000 * MS);
        let until = slow.failed(now);
        assert_eq!(until - now, 20_000 * MS);
        assert_eq!(slow.failed(until) - until, 20_000 * MS);
        assert_eq!(Backoff::new(Duration::ZERO).failed(now) - now, 10 * MS);
        assert!(Backoff::new(Duration::MAX).failed(now) > now);
    }
}
