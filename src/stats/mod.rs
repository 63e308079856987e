//! What pgweir knows of its own work: counters, latencies, statements, slow ones, the process.
//!
//! Everything here is written to from the query path, so it is sharded by worker or guarded by a lock that is
//! held for some tens of nanoseconds; reading copies first and computes afterwards. Time is an argument.
//!
//! [`Stats`] is the one value that the rest of the program holds.

pub mod counters;
pub mod latency;
pub mod process;
pub mod sharded;
pub mod slow;
pub mod slow_log;
pub mod statements;
pub mod window;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::config;
use counters::{Counters, Databases};
use process::Process;
use slow_log::SlowLog;
use statements::{Statement, Statements};
use window::{Request, Window};

/// Texts are kept up to this many bytes; a longer one ends in `…`.
pub const MAX_TEXT: usize = 8 * 1024;

/// How a request ended, seen by whose fault it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The statement was at fault: syntax, a violated constraint, a missing right.
    ClientFault,
    /// Servers or pgweir were: no node, no connection in time, a lost connection, a server shutting down.
    ServerFault,
}

/// What the result cache had to do with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheUse {
    /// The statement is not one that the cache may answer.
    NotAsked,
    Hit,
    Miss,
    /// A miss whose result is not kept, for the reason of this place in the cache's list of them.
    Unkept(u8),
    /// Past the cache, for the reason of this place in the cache's list of them.
    Refused(u8),
}

/// One statement that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Waiting for a server connection.
    pub wait: Duration,
    /// From sending to the last byte of the answer.
    pub execute: Duration,
    pub rows: u64,
    /// Of the answer, as sent to the client.
    pub bytes: u64,
    pub outcome: Outcome,
    pub cache: CacheUse,
    /// Index of the node that ran it; `None`: no server did.
    pub node: Option<u16>,
    pub is_write: bool,
}

impl Sample {
    /// What the client waited in all.
    pub fn elapsed(&self) -> Duration {
        self.wait + self.execute
    }
}

/// All statistics of the process.
#[derive(Debug)]
pub struct Stats {
    pub statements: Statements,
    pub databases: Databases,
    pub window: Window,
    pub slow: SlowLog,
    pub process: Process,
    /// Microseconds; `u64::MAX`: nothing is slow.
    slow_threshold: AtomicU64,
    /// Slow statements are shown with their literals and bound values.
    shows_parameters: AtomicBool,
}

impl Stats {
    /// Starts counting at `now` for `workers` shards, and opens the slow-query log.
    ///
    /// # Errors
    /// The log file cannot be opened, or its thread not be started.
    pub fn new(config: &config::Statements, workers: usize, now: Instant) -> io::Result<Stats> {
        Ok(Stats {
            statements: Statements::new(config.max, workers),
            databases: Databases::new(workers, now),
            window: Window::new(workers, now),
            slow: SlowLog::open(&config.slow_log)?,
            process: Process::new(now),
            slow_threshold: AtomicU64::new(micros(config.slow_threshold)),
            shows_parameters: AtomicBool::new(config.slow_log_parameters),
        })
    }

    /// Takes over reloaded settings. Records that exist stay, also above a smaller `max`.
    ///
    /// # Errors
    /// The new log cannot be opened; the old one is kept then.
    pub fn reconfigure(&self, config: &config::Statements) -> io::Result<()> {
        // First what can fail: the old log is not to get what the new one was meant for.
        self.slow.reconfigure(&config.slow_log)?;
        self.statements.set_max(config.max);
        self.slow_threshold.store(micros(config.slow_threshold), Ordering::Relaxed);
        self.shows_parameters.store(config.slow_log_parameters, Ordering::Relaxed);
        Ok(())
    }

    /// `statements.slow_log_parameters`
    pub fn shows_parameters(&self) -> bool {
        self.shows_parameters.load(Ordering::Relaxed)
    }

    /// Counts one ended statement everywhere; true where it was slow, so that the caller writes a
    /// [`slow::SlowEntry`]. Two short locks, no allocation once the worker and the record are warm.
    pub fn record(
        &self,
        worker: usize,
        now: Instant,
        statement: &Statement,
        counters: &Counters,
        sample: &Sample,
    ) -> bool {
        let elapsed = sample.elapsed();
        let slow = micros(elapsed) >= self.slow_threshold.load(Ordering::Relaxed);
        statement.observe(worker, sample, slow);
        counters.query(sample.execute);
        self.window.record(worker, now, &Request { elapsed, outcome: sample.outcome, cache: sample.cache, slow });
        slow
    }

    /// Once a second or so: moves the averages' period on.
    pub fn tick(&self, now: Instant) {
        self.databases.tick(now);
    }
}

/// Whole microseconds, saturating.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Milliseconds to the microsecond, as JSON shows them.
pub(crate) fn millis(micros: f64) -> f64 {
    micros.round() / 1000.0
}

/// At most [`MAX_TEXT`] bytes of a text, cut between characters.
pub(crate) fn bounded_text(text: impl Into<String>) -> String {
    let mut text = text.into();
    if text.len() > MAX_TEXT {
        let mut end = MAX_TEXT - '…'.len_utf8();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
        text.shrink_to_fit();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sql::Fingerprint;

    #[test]
    fn one_record_reaches_statement_counters_and_window() {
        let start = Instant::now();
        let config = config::Statements {
            max: 10,
            slow_threshold: Duration::from_millis(100),
            slow_log: config::SlowLog::Off,
            slow_log_parameters: false,
            capture_plans: false,
        };
        let stats = Stats::new(&config, 2, start).unwrap();
        let database: Arc<str> = "app".into();
        let statement = stats.statements.record(Fingerprint(7), || "select ?".into(), &database);
        let counters = stats.databases.database(&database);
        let mut sample = Sample {
            wait: Duration::from_millis(1),
            execute: Duration::from_millis(98),
            rows: 3,
            bytes: 40,
            outcome: Outcome::Done,
            cache: CacheUse::NotAsked,
            node: Some(1),
            is_write: false,
        };
        assert!(!stats.record(0, start, &statement, counters.at(0), &sample));
        sample.execute = Duration::from_millis(99);
        assert!(stats.record(1, start, &statement, counters.at(1), &sample));

        let snapshot = statement.snapshot();
        assert_eq!((snapshot.calls, snapshot.slow, snapshot.rows), (2, 1, 6));
        assert_eq!(counters.totals().query_count, 2);
        assert_eq!(counters.totals().query_time, 197_000);
        let figures = stats.window.figures(start);
        assert_eq!((figures.requests, figures.slow), (2, 1));
    }

    #[test]
    fn what_cannot_be_taken_over_whole_is_not_taken_over() {
        let config = config::Statements {
            max: 10,
            slow_threshold: Duration::from_secs(1),
            slow_log: config::SlowLog::Off,
            slow_log_parameters: false,
            capture_plans: false,
        };
        let stats = Stats::new(&config, 1, Instant::now()).unwrap();
        let folder = config::SlowLog::File(std::env::temp_dir());
        let changed = config::Statements { slow_log_parameters: true, ..config };
        assert!(stats.reconfigure(&config::Statements { slow_log: folder, ..changed.clone() }).is_err());
        assert!(!stats.shows_parameters());
        stats.reconfigure(&changed).unwrap();
        assert!(stats.shows_parameters());
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let text = bounded_text("ä".repeat(MAX_TEXT));
        assert!(text.len() <= MAX_TEXT && text.ends_with('…'), "{}", text.len());
        assert_eq!(bounded_text("short"), "short");
    }
}
