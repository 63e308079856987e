//! Which nodes may answer a session's reads: what it has seen so far, and what each node is known to have replayed.
//!
//! The promises of `routing.freshness`:
//! - `eventual`: any replica within `max_lag`.
//! - `session`: a session reads its own writes, and what sessions before it have written ([`LastWrite`]), and never reads
//!   from a node that has replayed less than one it has read from.
//!   The primary shows a commit only after it has been flushed, when standbys may show it already: what has been seen there
//!   is seen again once it is acknowledged.
//!   Positions in the WAL are known by samples alone, so what a session may have seen is known as an instant: a node is
//!   fresh for it that has replayed a sample of the primary asked for after that instant ([`positions`]). The node of the
//!   session's last read is fresh by itself, as long as the connection is older than that read: a server that starts
//!   anew after a crash may serve from an earlier position than the one at which it died.
//! - `table`: the same, and a read goes only to replicas that have replayed the last change of its tables known to the change
//!   stream, whoever made it: a floor ([`Need::new`]) for each read.
//!
//! A causal token (`SET pgweir.lsn`) is a floor whatever the promise.

pub mod positions;

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::config::Freshness;

/// Between samples while reads wait for one; else they come each `routing.probe_interval`.
pub const TICK: Duration = Duration::from_millis(20);

/// A position in the WAL, as `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Beyond all that any node will replay.
    pub const MAX: Lsn = Lsn(u64::MAX);
}

impl FromStr for Lsn {
    type Err = ();

    /// As `pg_lsn_in` reads it: up to eight hexadecimal digits on each side.
    fn from_str(text: &str) -> Result<Lsn, ()> {
        let (high, low) = text.split_once('/').ok_or(())?;
        let part = |s: &str| match (1..=8).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_hexdigit()) {
            true => u32::from_str_radix(s, 16).map_err(|_| ()),
            false => Err(()),
        };
        Ok(Lsn((u64::from(part(high)?) << 32) | u64::from(part(low)?)))
    }
}

impl std::fmt::Display for Lsn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

/// What a session has seen of the database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// It may have seen all that was committed by then. `None`: nothing yet.
    until: Option<Instant>,
    /// The node, by index, that showed it the last of it.
    home: Option<u16>,
    /// It has seen nothing itself: others have written before it began.
    inherited: bool,
}

/// When a session last wrote something through this pgweir: a session that begins later is to see it, as one that is the
/// same program's is, connected anew.
#[derive(Debug)]
pub struct LastWrite {
    epoch: Instant,
    /// Microseconds since `epoch`, rounded up; 0: never.
    at: AtomicU64,
}

impl LastWrite {
    pub fn new(epoch: Instant) -> LastWrite {
        LastWrite { epoch, at: AtomicU64::new(0) }
    }

    /// Something is committed, and its session has not been told yet.
    pub fn note(&self, now: Instant) {
        let micros = now.saturating_duration_since(self.epoch).as_micros() as u64 + 1;
        self.at.fetch_max(micros, Ordering::Relaxed);
    }

    fn instant(&self) -> Option<Instant> {
        match self.at.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(self.epoch + Duration::from_micros(micros)),
        }
    }
}

impl Seen {
    /// A session begins.
    pub fn at_start(last_write: &LastWrite) -> Seen {
        let until = last_write.instant();
        Seen { until, inherited: until.is_some(), ..Seen::default() }
    }

    pub fn is_inherited(&self) -> bool {
        self.inherited
    }

    /// It has written, or read on the primary.
    pub fn on_primary(&mut self, now: Instant) {
        // What others write may be yet to be committed when a session begins.
        *self = Seen { until: self.until.max(Some(now)), ..Seen::default() };
    }

    /// A replica has shown it all that it has seen last.
    pub fn is_of_replica(&self) -> bool {
        self.home.is_some()
    }

    /// It has been given what another read by `at`.
    pub fn kept(&mut self, at: Instant) {
        if self.until.is_none_or(|until| until < at) {
            *self = Seen { until: Some(at), ..Seen::default() };
        }
    }

    /// It has read on a replica.
    pub fn on_replica(&mut self, now: Instant, node: u16) {
        *self = Seen { until: Some(now), home: Some(node), inherited: false };
    }
}

/// What a node must have for a session's next read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    freshness: Freshness,
    seen: Seen,
    floor: Option<Lsn>,
}

impl Need {
    /// `floor`: the session's causal token, or the last change of what is read.
    pub fn new(freshness: Freshness, seen: Seen, floor: Option<Lsn>) -> Need {
        let seen = if freshness == Freshness::Eventual { Seen::default() } else { seen };
        Need { freshness, seen, floor }
    }

    /// Whether the last sample of a replica shows that it has what is needed.
    pub fn is_met(&self, node: u16, sample: &Sample) -> bool {
        let floor = self.floor.is_none_or(|floor| sample.proven && sample.position >= floor);
        floor && (self.is_home(node) || self.seen.until.is_none_or(|until| sample.has(until)))
    }

    /// Whether the same holds for a connection to it made at `created`. What is known of a node is known of the server
    /// process that it then was: one that has started anew may have fallen back.
    pub fn is_met_by(&self, created: Instant, node: u16, sample: impl FnOnce() -> Sample) -> bool {
        let is_home = self.is_home(node) && self.seen.until.is_some_and(|until| created <= until);
        if self.is_nothing() || is_home && self.floor.is_none() {
            return true;
        }
        let sample = sample();
        let sampled = sample.asked.is_some_and(|asked| created <= asked);
        sampled && Need { seen: self.seen.away(!is_home), ..*self }.is_met(node, &sample)
    }

    /// Any node will do.
    pub fn is_nothing(&self) -> bool {
        self.seen.until.is_none() && self.floor.is_none()
    }

    /// The node of the session's last read.
    pub fn home(&self) -> Option<u16> {
        self.seen.home
    }

    fn is_home(&self, node: u16) -> bool {
        self.seen.home == Some(node)
    }
}

impl Seen {
    fn away(self, away: bool) -> Seen {
        Seen { home: self.home.filter(|_| !away), ..self }
    }
}

/// What the last probe of a replica has shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sample {
    /// When it was asked. `None`: never, or it has failed since.
    pub asked: Option<Instant>,
    /// What it had replayed then.
    pub position: Lsn,
    /// The position is one in the primary's own history.
    pub proven: bool,
    /// Commits that were complete then are replayed.
    pub until: Option<Instant>,
}

impl Sample {
    /// What was committed by `at` can be read here.
    pub fn has(&self, at: Instant) -> bool {
        // Asked at the very instant of the commit is not enough.
        self.until.is_some_and(|until| until > at)
    }

    /// No more than either has shown.
    pub fn min(self, other: Sample) -> Sample {
        Sample {
            asked: self.asked.min(other.asked),
            position: self.position.min(other.position),
            proven: self.proven && other.proven,
            until: self.until.min(other.until),
        }
    }

    /// No less than either has shown.
    pub fn max(self, other: Sample) -> Sample {
        Sample {
            asked: self.asked.max(other.asked),
            position: self.position.max(other.position),
            proven: self.proven || other.proven,
            until: self.until.max(other.until),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_positions() {
        assert_eq!("16/B374D848".parse(), Ok(Lsn(0x16_b374_d848)));
        assert_eq!(Lsn(0x16_b374_d848).to_string(), "16/B374D848");
        for bad in ["16B374", "x/1", "", "/", "1/", "+1/2", "1/+2", "123456789/0", "0/0/0", " 0/1"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }

    fn sample(asked: Instant, position: u64, until: Option<Instant>) -> Sample {
        Sample { asked: Some(asked), position: Lsn(position), proven: true, until }
    }

    /// Instants in the order of their numbers.
    fn clock() -> impl Fn(u64) -> Instant {
        let start = Instant::now();
        move |n| start + Duration::from_secs(n)
    }

    #[test]
    fn a_session_that_has_seen_nothing_needs_nothing() {
        let at = clock();
        let need = Need::new(Freshness::Session, Seen::default(), None);
        assert!(need.is_met(1, &Sample::default()));
        assert!(need.is_met_by(at(1), 1, Sample::default));
    }

    #[test]
    fn a_write_is_read_where_a_later_sample_is_replayed() {
        let at = clock();
        let mut seen = Seen::default();
        seen.on_primary(at(5));
        let need = Need::new(Freshness::Session, seen, None);
        assert!(!need.is_met(1, &sample(at(6), 10, Some(at(5)))));
        let fresh = sample(at(7), 10, Some(at(6)));
        assert!(need.is_met(1, &fresh));
        assert!(need.is_met_by(at(7), 1, || fresh));
        assert!(!need.is_met_by(at(8), 1, || fresh), "it may have started anew since it was asked");
        assert!(Need::new(Freshness::Eventual, seen, None).is_met(1, &Sample::default()));
    }

    #[test]
    fn a_session_begins_with_what_others_have_written() {
        let at = clock();
        let last_write = LastWrite::new(at(0));
        assert_eq!(Seen::at_start(&last_write), Seen::default());
        last_write.note(at(5) + Duration::from_nanos(1));
        last_write.note(at(4));
        let need = Need::new(Freshness::Session, Seen::at_start(&last_write), None);
        assert!(!need.is_met(1, &sample(at(6), 10, Some(at(5) + Duration::from_nanos(2)))), "rounded up");
        assert!(need.is_met(1, &sample(at(7), 10, Some(at(6)))));
    }

    #[test]
    fn a_session_stays_where_it_has_read_unless_another_has_as_much() {
        let at = clock();
        let mut seen = Seen::default();
        seen.on_replica(at(5), 1);
        let need = Need::new(Freshness::Session, seen, None);
        let behind = sample(at(4), 10, Some(at(4)));
        assert!(need.is_met(1, &behind) && need.is_met_by(at(5), 1, || behind));
        assert!(!need.is_met(2, &behind));
        // The server behind the connection is not the one that was read from.
        assert!(!need.is_met_by(at(6), 1, || behind));
        assert!(need.is_met_by(at(6), 1, || sample(at(7), 10, Some(at(6)))));
    }

    #[test]
    fn a_token_is_a_floor_everywhere_and_always() {
        let at = clock();
        let mut seen = Seen::default();
        seen.on_replica(at(5), 1);
        for freshness in [Freshness::Eventual, Freshness::Session] {
            let need = Need::new(freshness, seen, Some(Lsn(11)));
            assert!(!need.is_met(1, &sample(at(6), 10, Some(at(6)))));
            assert!(need.is_met(1, &sample(at(6), 11, Some(at(6)))));
            assert!(!need.is_met_by(at(7), 1, || sample(at(6), 11, Some(at(6)))));
            let other_history = Sample { proven: false, ..sample(at(6), 11, Some(at(6))) };
            assert!(!need.is_met(1, &other_history));
        }
    }
}
