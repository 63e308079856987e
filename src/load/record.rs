//! What a load has shown, counted.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::stats::latency::Latency;

/// Errors of one SQLSTATE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors {
    pub count: u64,
    /// What the first of them said.
    pub message: String,
}

/// The counts of one stage, or of a whole run.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// Turns that succeeded.
    pub done: u64,
    /// Turns that failed, and logins.
    pub failed: u64,
    /// Statements of the turns that succeeded.
    pub statements: u64,
    /// Of all turns, the failed ones too; of a turn that was cut off, what it had taken by then.
    pub latency: Latency<u64>,
    /// By SQLSTATE.
    pub errors: BTreeMap<String, Errors>,
}

impl Totals {
    pub fn finished(&mut self, time: Duration, statements: u64) {
        self.done += 1;
        self.statements += statements;
        self.latency.record(time);
    }

    /// `time`: of a turn; a login that failed has none, as nothing waited for its answer.
    pub fn failed(&mut self, code: &str, message: &str, time: Option<Duration>) {
        self.failed += 1;
        if let Some(time) = time {
            self.latency.record(time);
        }
        match self.errors.get_mut(code) {
            Some(errors) => errors.count += 1,
            None => drop(self.errors.insert(code.into(), Errors { count: 1, message: message.into() })),
        }
    }

    /// Failed turns and logins among all; `None` where there was neither.
    pub fn error_rate(&self) -> Option<f64> {
        let all = self.done + self.failed;
        (all > 0).then(|| self.failed as f64 / all as f64)
    }

    pub fn add(&mut self, other: &Totals) {
        self.done += other.done;
        self.failed += other.failed;
        self.statements += other.statements;
        self.latency.add(&other.latency);
        for (code, theirs) in &other.errors {
            match self.errors.get_mut(code) {
                Some(ours) => ours.count += theirs.count,
                None => drop(self.errors.insert(code.clone(), theirs.clone())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_parts() {
        let (mut one, mut other) = (Totals::default(), Totals::default());
        one.finished(Duration::from_millis(1), 3);
        one.failed("53300", "full", Some(Duration::from_millis(5)));
        other.failed("53300", "still full", None);
        other.failed("57P01", "ended", None);
        one.add(&other);
        assert_eq!((one.done, one.failed, one.statements, one.latency.count()), (1, 3, 3, 2));
        assert_eq!(one.errors["53300"], Errors { count: 2, message: "full".into() });
        assert_eq!(one.errors["57P01"].count, 1);
        assert_eq!(one.error_rate(), Some(0.75));
        assert_eq!(Totals::default().error_rate(), None);
    }
}
