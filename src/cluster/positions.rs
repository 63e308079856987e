//! Positions in the WAL: what the primary had written when, so that a replica's replay position tells up to which
//! instant it is fresh.

use std::collections::VecDeque;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// A position in the WAL, as `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl FromStr for Lsn {
    type Err = ();

    fn from_str(text: &str) -> Result<Lsn, ()> {
        let (high, low) = text.split_once('/').ok_or(())?;
        let part = |s: &str| u32::from_str_radix(s, 16).map_err(|_| ());
        Ok(Lsn((u64::from(part(high)?) << 32) | u64::from(part(low)?)))
    }
}

impl std::fmt::Display for Lsn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

/// Samples kept: older ones are worth nothing, a replica that far behind serves nothing.
const KEPT: usize = 256;

/// The primary's recent write positions, each with the instant at which it was asked for.
#[derive(Debug, Default)]
pub struct Positions {
    samples: VecDeque<(Instant, Lsn)>,
}

impl Positions {
    /// Everything committed before `asked` lies at or before `written`. A position that falls back (a promotion)
    /// voids what was known.
    pub fn note_primary(&mut self, asked: Instant, written: Lsn) {
        if self.samples.back().is_some_and(|(_, last)| *last > written) {
            self.samples.clear();
        }
        if self.samples.len() == KEPT {
            self.samples.pop_front();
        }
        self.samples.push_back((asked, written));
    }

    /// Up to which instant a replica that has replayed to `replayed` is fresh, and how far it is behind at `now`: as long
    /// as what it lacks is known to have been written, and nothing where it has all of the newest sample. `None`: not
    /// known.
    pub fn replica(&self, replayed: Lsn, now: Instant) -> (Option<Instant>, Option<Duration>) {
        let at = self.samples.partition_point(|(_, written)| *written <= replayed);
        let until = at.checked_sub(1).map(|i| self.samples[i].0);
        let lag = match self.samples.get(at) {
            Some((lacking, _)) => Some(now.saturating_duration_since(*lacking)),
            None => until.map(|_| Duration::ZERO),
        };
        (until, lag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_positions() {
        assert_eq!("16/B374D848".parse(), Ok(Lsn(0x16_b374_d848)));
        assert_eq!(Lsn(0x16_b374_d848).to_string(), "16/B374D848");
        assert!("16B374".parse::<Lsn>().is_err() && "x/1".parse::<Lsn>().is_err());
    }

    #[test]
    fn a_replica_is_fresh_up_to_the_last_sample_it_has() {
        let t = Instant::now();
        let at = |s| t + Duration::from_secs(s);
        let mut positions = Positions::default();
        assert_eq!(positions.replica(Lsn(9), at(0)), (None, None));
        positions.note_primary(at(1), Lsn(10));
        positions.note_primary(at(2), Lsn(20));
        positions.note_primary(at(3), Lsn(20));
        assert_eq!(positions.replica(Lsn(5), at(4)), (None, Some(Duration::from_secs(3))));
        assert_eq!(positions.replica(Lsn(15), at(4)), (Some(at(1)), Some(Duration::from_secs(2))));
        assert_eq!(positions.replica(Lsn(20), at(4)), (Some(at(3)), Some(Duration::ZERO)));
        positions.note_primary(at(5), Lsn(7));
        assert_eq!(positions.replica(Lsn(20), at(6)).0, Some(at(5)));
    }
}
