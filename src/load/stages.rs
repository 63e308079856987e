//! Stages: how many virtual users there are at which time.

use std::time::Duration;

use crate::config::parse_duration;

/// One stage: the number of users changes linearly to its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    pub length: Duration,
    /// Users at its end.
    pub target: usize,
}

/// More users than one process and one address have sockets for.
pub const MOST_USERS: usize = 60_000;

/// The guide's own stages: up to 100 users, then to 200, each held for five minutes, and down again.
const USUAL: [(u64, usize); 5] = [(2, 100), (5, 100), (2, 200), (5, 200), (2, 0)];

/// The stages where none is given.
pub fn usual() -> Vec<Stage> {
    USUAL.iter().map(|&(minutes, target)| Stage { length: Duration::from_secs(minutes * 60), target }).collect()
}

impl Stage {
    /// Reads `2m:100`. A length of 0 is a jump.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn parse(text: &str) -> Result<Stage, String> {
        let wrong = |why: String| format!("--stage {text}: {why}; expected DURATION:USERS, as 2m:100");
        let (length, target) = text.split_once(':').ok_or_else(|| wrong("no colon".into()))?;
        let length = parse_duration(length).map_err(|e| wrong(format!("the duration {e}")))?;
        let target: usize = target.trim().parse().map_err(|_| wrong("the users are no whole number".into()))?;
        if target > MOST_USERS {
            return Err(wrong(format!("{target} users are more than {MOST_USERS}")));
        }
        Ok(Stage { length, target })
    }
}

/// Stages one after the other.
#[derive(Debug, Clone)]
pub struct Plan {
    stages: Vec<Stage>,
    /// Users before the first.
    start: usize,
}

impl Plan {
    pub fn new(start: usize, stages: Vec<Stage>) -> Plan {
        Plan { stages, start }
    }

    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// Users at the start and at the end of a stage.
    pub fn ends(&self, stage: usize) -> (usize, usize) {
        let from = stage.checked_sub(1).map_or(self.start, |before| self.stages[before].target);
        (from, self.stages[stage].target)
    }

    /// How long all stages are.
    pub fn length(&self) -> Duration {
        self.stages.iter().map(|stage| stage.length).sum()
    }

    /// The most users at any time.
    pub fn most_users(&self) -> usize {
        self.stages.iter().map(|stage| stage.target).max().unwrap_or(0).max(self.start)
    }

    /// Users at this time; behind the end, none.
    pub fn users_at(&self, elapsed: Duration) -> usize {
        let mut begun = Duration::ZERO;
        for (at, stage) in self.stages.iter().enumerate() {
            let within = elapsed.saturating_sub(begun);
            if within < stage.length {
                let (from, to) = self.ends(at);
                let part = within.as_secs_f64() / stage.length.as_secs_f64();
                // between two numbers of users, and so itself one
                return (from as f64 + (to as f64 - from as f64) * part).round() as usize;
            }
            begun += stage.length;
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(stages: &[&str]) -> Plan {
        Plan::new(0, stages.iter().map(|text| Stage::parse(text).unwrap()).collect())
    }

    fn users(plan: &Plan, seconds: f64) -> usize {
        plan.users_at(Duration::from_secs_f64(seconds))
    }

    #[test]
    fn users_change_linearly() {
        let plan = plan(&["10s:100", "5s:100", "10s:0"]);
        for (seconds, expected) in
            [(0.0, 0), (1.0, 10), (5.0, 50), (9.99, 100), (10.0, 100), (14.9, 100), (20.0, 50), (24.0, 10), (25.0, 0)]
        {
            assert_eq!(users(&plan, seconds), expected, "at {seconds} s");
        }
        assert_eq!((plan.length(), plan.most_users()), (Duration::from_secs(25), 100));
        assert_eq!((plan.ends(0), plan.ends(2)), ((0, 100), (100, 0)));
    }

    #[test]
    fn a_stage_without_length_is_a_jump() {
        let plan = plan(&["0s:50", "10s:50"]);
        assert_eq!((users(&plan, 0.0), users(&plan, 9.0), users(&plan, 10.0)), (50, 50, 0));
    }

    #[test]
    fn the_usual_stages_are_the_guides() {
        let plan = Plan::new(0, usual());
        assert_eq!(plan.length(), Duration::from_secs(16 * 60));
        assert_eq!(plan.most_users(), 200);
        assert_eq!(users(&plan, 60.0), 50);
    }

    #[test]
    fn what_is_no_stage_is_said() {
        for (text, why) in [
            ("2m", "no colon"),
            (":5", "does not begin with a whole number"),
            ("2:5", "has no unit"),
            ("2m:", "no whole number"),
            ("2m:-1", "no whole number"),
            ("2m:1.5", "no whole number"),
            ("2m:1000000", "more than"),
        ] {
            let error = Stage::parse(text).unwrap_err();
            assert!(error.contains(why) && error.contains(text), "{error}");
        }
    }
}
