//! The `/stats` snapshots of the last day.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::documents::StatsDocument;

/// Between two snapshots.
const STEP: Duration = Duration::from_secs(5);

/// A day of them; about 4 MB.
const KEPT: usize = 24 * 60 * 60 / 5;

/// Snapshots of one answer at most: a long time is thinned out evenly.
const ANSWER: usize = 1_440;

/// A bounded ring of snapshots.
#[derive(Debug)]
pub struct History {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    next: Instant,
    snapshots: VecDeque<StatsDocument>,
}

impl History {
    /// The first snapshot is due at `now`.
    pub fn new(now: Instant) -> History {
        History { inner: Mutex::new(Inner { next: now, snapshots: VecDeque::new() }) }
    }

    /// Keeps a snapshot where one is due.
    pub fn tick(&self, now: Instant, collect: impl FnOnce() -> StatsDocument) {
        {
            let mut inner = self.inner.lock();
            if now < inner.next {
                return;
            }
            // after a pause of the process go on from here, and do not catch up
            inner.next = (inner.next + STEP).max(now);
        }
        let document = collect();
        let mut inner = self.inner.lock();
        if inner.snapshots.len() == KEPT {
            inner.snapshots.pop_front();
        }
        inner.snapshots.push_back(document);
    }

    /// The snapshots of the last `minutes`, oldest first, at most 1,440 of them.
    pub fn last(&self, minutes: usize) -> Vec<StatsDocument> {
        let inner = self.inner.lock();
        let wanted = (minutes.saturating_mul(60) / STEP.as_secs() as usize).min(inner.snapshots.len());
        let step = wanted.div_ceil(ANSWER).max(1);
        let newest_first = inner.snapshots.iter().rev().take(wanted).step_by(step);
        let mut snapshots: Vec<_> = newest_first.cloned().collect();
        snapshots.reverse();
        snapshots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(uptime: f64) -> StatsDocument {
        StatsDocument { uptime, ..StatsDocument::default() }
    }

    fn filled(seconds: u64) -> History {
        let start = Instant::now();
        let history = History::new(start);
        for second in 0..seconds {
            history.tick(start + Duration::from_secs(second), || document(second as f64));
        }
        history
    }

    #[test]
    fn one_snapshot_each_five_seconds() {
        let uptimes: Vec<_> = filled(31).last(60).iter().map(|d| d.uptime).collect();
        assert_eq!(uptimes, [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0]);
    }

    #[test]
    fn the_last_minutes_alone_and_thinned() {
        let history = filled(4 * 3600);
        assert_eq!(history.last(1).len(), 12);
        let all = history.last(24 * 60);
        assert_eq!(all.len(), 1_440);
        assert_eq!(all[1_439].uptime, 4.0 * 3600.0 - 5.0);
        assert_eq!(all[1].uptime - all[0].uptime, 10.0);
    }

    #[test]
    fn a_day_is_the_bound() {
        let history = filled(26 * 3600);
        assert_eq!(history.inner.lock().snapshots.len(), KEPT);
    }
}
