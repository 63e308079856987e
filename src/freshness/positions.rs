//! What the primary had written when, so that a replica's replay position tells up to which instant it is fresh.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Lsn, Sample};

/// Samples kept: older ones are worth nothing, a replica that far behind serves nothing.
const KEPT: usize = 256;

/// The primary's recent write positions, each with the instant at which it was asked for.
#[derive(Debug, Default)]
pub struct Positions {
    samples: VecDeque<(Instant, Lsn)>,
    /// The timeline they are on; 0: not known.
    timeline: u32,
    /// A promotion has been seen: positions of replicas say nothing without their timeline.
    promoted: bool,
}

impl Positions {
    /// Everything committed before `asked` lies at or before `written`. A position that falls back, or another timeline (a
    /// promotion), voids what was known.
    pub fn note_primary(&mut self, asked: Instant, written: Lsn, timeline: u32) {
        if timeline != 0 && timeline != self.timeline {
            self.promoted |= self.timeline != 0;
            self.timeline = timeline;
            self.samples.clear();
        }
        if self.samples.back().is_some_and(|(_, last)| *last > written) {
            self.samples.clear();
        }
        if self.samples.len() == KEPT {
            self.thin();
        }
        self.samples.push_back((asked, written));
    }

    /// Every other one of the older half goes: however often samples come, they reach back far enough to tell a lag.
    fn thin(&mut self) {
        let mut number = 0;
        self.samples.retain(|_| {
            number += 1;
            number > KEPT / 2 || number % 2 == 1
        });
    }

    /// What it says of a replica that it had replayed to `position` when it was `asked`, and how far it is behind at `now`: as
    /// long as what it lacks is known to have been written, and nothing where it has all of the newest sample. `None`: not
    /// known.
    pub fn replica(
        &self,
        asked: Instant,
        position: Lsn,
        timeline: Option<u32>,
        now: Instant,
    ) -> (Sample, Option<Duration>) {
        let at = self.samples.partition_point(|(_, written)| *written <= position);
        // Beyond the point at which its history left the primary's, its positions are not the primary's.
        let proven = self.timeline == timeline.unwrap_or(self.timeline) && (timeline.is_some() || !self.promoted);
        let until = at.checked_sub(1).filter(|_| proven).map(|i| self.samples[i].0);
        let lag = match self.samples.get(at) {
            Some((lacking, _)) => Some(now.saturating_duration_since(*lacking)),
            None => until.map(|_| Duration::ZERO),
        };
        (Sample { asked: Some(asked), position, proven, until }, lag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> impl Fn(u64) -> Instant {
        let start = Instant::now();
        move |n| start + Duration::from_secs(n)
    }

    #[test]
    fn a_replica_is_fresh_up_to_the_last_sample_it_has() {
        let at = clock();
        let mut positions = Positions::default();
        let replica = |positions: &Positions, lsn, now| {
            let (sample, lag) = positions.replica(at(now), Lsn(lsn), Some(1), at(now));
            (sample.until, lag)
        };
        assert_eq!(replica(&positions, 9, 0), (None, None));
        positions.note_primary(at(1), Lsn(10), 1);
        positions.note_primary(at(2), Lsn(20), 1);
        positions.note_primary(at(3), Lsn(20), 1);
        assert_eq!(replica(&positions, 5, 4), (None, Some(Duration::from_secs(3))));
        assert_eq!(replica(&positions, 15, 4), (Some(at(1)), Some(Duration::from_secs(2))));
        assert_eq!(replica(&positions, 20, 4), (Some(at(3)), Some(Duration::ZERO)));
        positions.note_primary(at(5), Lsn(7), 1);
        assert_eq!(replica(&positions, 20, 6).0, Some(at(5)));
    }

    #[test]
    fn a_position_in_another_history_proves_nothing() {
        let at = clock();
        let mut positions = Positions::default();
        let proven = |positions: &Positions, timeline| positions.replica(at(9), Lsn(99), timeline, at(9)).0.proven;
        positions.note_primary(at(1), Lsn(10), 1);
        assert!(proven(&positions, Some(1)) && proven(&positions, None));
        positions.note_primary(at(2), Lsn(12), 2);
        // It may follow the old primary, and have replayed what the new one has not.
        assert!(!proven(&positions, Some(1)) && !proven(&positions, None));
        assert_eq!(positions.replica(at(9), Lsn(99), Some(1), at(9)).0.until, None);
        assert!(proven(&positions, Some(2)));
    }

    #[test]
    fn old_samples_grow_sparse_and_new_ones_stay() {
        let at = clock();
        let mut positions = Positions::default();
        for n in 0..10_000 {
            positions.note_primary(at(n), Lsn(n), 1);
            assert!(positions.samples.len() <= KEPT);
        }
        let (until, _) = (positions.replica(at(10_000), Lsn(9_999), Some(1), at(10_000)).0.until, ());
        assert_eq!(until, Some(at(9_999)));
        assert_eq!(positions.samples.iter().rev().take(100).map(|s| s.1.0).min(), Some(9_900));
    }
}
