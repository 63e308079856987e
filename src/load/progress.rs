//! The line that shows how far a load is, on a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::record::Totals;
use crate::stats::latency::Summary;

const INTERVAL: Duration = Duration::from_millis(500);
const BAR: usize = 24;
/// To the start of the line, and erase it (ECMA-48: EL).
const CLEAR: &str = "\r\x1b[K";

/// Writes to standard error, and only where that is a terminal.
#[derive(Debug)]
pub struct Progress {
    is_terminal: bool,
    last: Option<Instant>,
}

impl Progress {
    pub fn new() -> Progress {
        Progress { is_terminal: io::stderr().is_terminal(), last: None }
    }

    /// Shows the line again if it is time; `look` is asked only then.
    pub fn show(&mut self, now: Instant, look: impl FnOnce() -> String) {
        let due = self.last.is_none_or(|last| now.duration_since(last) >= INTERVAL);
        if self.is_terminal && due {
            self.last = Some(now);
            write(&format!("{CLEAR}{}", look()));
        }
    }

    /// Takes the line away, for other text in its place.
    pub fn clear(&mut self) {
        if self.is_terminal && self.last.take().is_some() {
            write(CLEAR);
        }
    }
}

fn write(text: &str) {
    // When nobody reads any more there is no one to show it to.
    let mut out = io::stderr().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// `[######······] 1m30s of 16m  75 users  p95 1.2 ms  0 errors`
pub fn line(elapsed: Duration, length: Duration, users: usize, totals: &Totals) -> String {
    let part = elapsed.as_secs_f64() / length.as_secs_f64().max(f64::MIN_POSITIVE);
    // Rounded, and within the bar.
    let filled = ((part * BAR as f64) as usize).min(BAR);
    format!(
        "[{}{}] {} of {}  {users} users  {} turns  p95 {} ms  {} errors",
        "#".repeat(filled),
        "·".repeat(BAR - filled),
        time(elapsed),
        time(length),
        totals.done + totals.failed,
        Summary::ms(totals.latency.quantile(0.95)),
        totals.failed
    )
}

/// `1m30s`, `12s`, `0.3s`
pub fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 60, seconds % 60) {
        (0, _) if time.subsec_millis() >= 100 && seconds < 10 => format!("{:.1}s", time.as_secs_f64()),
        (0, seconds) => format!("{seconds}s"),
        (minutes, 0) => format!("{minutes}m"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_it_is() {
        let mut totals = Totals::default();
        totals.finished(Duration::from_millis(2), 1);
        totals.failed("57P01", "ended", None);
        let minute = Duration::from_secs(60);
        let shown = line(minute / 2, minute, 7, &totals);
        assert_eq!(
            shown,
            "[############············] 30s of 1m  7 users  2 turns  p95 2.0 ms  1 errors"
                .replace("2.0", &Summary::ms(totals.latency.quantile(0.95)).to_string())
        );
        assert!(line(minute * 2, Duration::ZERO, 0, &totals).starts_with(&format!("[{}]", "#".repeat(BAR))));
    }

    #[test]
    fn times_are_short() {
        let shown = |millis| time(Duration::from_millis(millis));
        assert_eq!(
            [shown(0), shown(300), shown(12_900), shown(90_000), shown(960_000)],
            ["0s", "0.3s", "12s", "1m30s", "16m"]
        );
    }
}
