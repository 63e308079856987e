//! The search for the breaking point: how many users are too many, and why.
//!
//! The users double until a threshold breaks or throughput stops growing; then the gap to the last number that went
//! well is halved until it is a quarter of that number. Pure: what each step measured is told to it.

use std::fmt;

/// Throughput that grows by less than this share of the growth in users has stopped growing: twice the users must
/// bring three tenths more.
const GROWTH: f64 = 0.3;

/// Why a number of users is too many.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// This threshold broke, as it is told.
    Threshold(String),
    /// Turns a second with the number of users that went well, and with this one.
    Throughput { before: f64, now: f64 },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Threshold(verdict) => f.write_str(verdict),
            Reason::Throughput { before, now } => {
                write!(f, "throughput stops growing: {now:.1} turns/s, with fewer users {before:.1}")
            }
        }
    }
}

/// One step that went well.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Good {
    pub users: usize,
    /// Turns a second.
    pub throughput: f64,
}

/// The state of a search.
#[derive(Debug, Clone)]
pub struct Search {
    first: usize,
    /// More users than this are not tried.
    most: usize,
    good: Option<Good>,
    broken: Option<(usize, Reason)>,
}

impl Search {
    pub fn new(first: usize, most: usize) -> Search {
        Search { first: first.clamp(1, most.max(1)), most: most.max(1), good: None, broken: None }
    }

    /// Users of the next step; `None`: the search is over.
    pub fn next(&self) -> Option<usize> {
        match (&self.good, &self.broken) {
            (None, None) => Some(self.first),
            (None, Some((users, _))) => (*users > 1).then_some(users / 2),
            (Some(good), None) => (good.users < self.most).then(|| (good.users * 2).min(self.most)),
            (Some(good), Some((users, _))) => {
                let gap = users - good.users;
                (gap > (good.users / 4).max(1)).then_some(good.users + gap / 2)
            }
        }
    }

    /// What the step with `users` has shown: turns a second, and the threshold that broke.
    pub fn tell(&mut self, users: usize, throughput: f64, threshold: Option<String>) {
        match threshold.map(Reason::Threshold).or_else(|| self.stalled(users, throughput)) {
            Some(reason) => self.broken = Some((users, reason)),
            None => self.good = Some(Good { users, throughput }),
        }
    }

    fn stalled(&self, users: usize, throughput: f64) -> Option<Reason> {
        let before = self.good.filter(|good| good.throughput > 0.0 && users > good.users)?;
        let more_users = users as f64 / before.users as f64 - 1.0;
        let more = throughput / before.throughput - 1.0;
        (more < more_users * GROWTH).then_some(Reason::Throughput { before: before.throughput, now: throughput })
    }

    /// The most users that went well.
    pub fn good(&self) -> Option<Good> {
        self.good
    }

    /// The fewest users that were too many, and why.
    pub fn broken(&self) -> Option<&(usize, Reason)> {
        self.broken.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a search against a server; the steps it took.
    fn search(first: usize, most: usize, server: impl Fn(usize) -> (f64, bool)) -> (Search, Vec<usize>) {
        let (mut search, mut steps) = (Search::new(first, most), Vec::new());
        while let Some(users) = search.next() {
            steps.push(users);
            assert!(steps.len() < 50, "{steps:?}");
            let (throughput, breaks) = server(users);
            search.tell(users, throughput, breaks.then(|| "p95<5ms".to_owned()));
        }
        (search, steps)
    }

    #[test]
    fn a_threshold_is_closed_in_on() {
        let (search, steps) = search(1, 10_000, |users| (users as f64, users > 100));
        assert_eq!(steps, [1, 2, 4, 8, 16, 32, 64, 128, 96, 112]);
        assert_eq!(search.good().unwrap().users, 96);
        assert_eq!(search.broken(), Some(&(112, Reason::Threshold("p95<5ms".into()))));
    }

    #[test]
    fn throughput_that_no_longer_grows_is_a_breaking_point() {
        let (search, _) = search(1, 10_000, |users| (users.min(40) as f64 * 100.0, false));
        let good = search.good().unwrap().users;
        let Some((users, Reason::Throughput { before, now })) = search.broken() else { panic!("{search:?}") };
        assert!(good >= 32 && *users > 40 && *users <= 60 && *before <= 4000.0 && *now == 4000.0, "{search:?}");
    }

    #[test]
    fn it_goes_down_where_the_first_step_breaks() {
        let (search, steps) = search(64, 10_000, |users| (users as f64, users > 10));
        assert_eq!(steps, [64, 32, 16, 8, 12, 10]);
        assert_eq!((search.good().unwrap().users, search.broken().unwrap().0), (10, 12));
        let (search, steps) = self::search(4, 10, |_| (0.0, true));
        assert_eq!((steps, search.good(), search.broken().unwrap().0), (vec![4, 2, 1], None, 1));
    }

    #[test]
    fn it_ends_at_the_most_users() {
        let (search, steps) = search(3, 20, |users| (users as f64, false));
        assert_eq!(steps, [3, 6, 12, 20]);
        assert!(search.broken().is_none() && search.good().unwrap().users == 20);
    }

    #[test]
    fn a_server_that_answers_nothing_ends_the_search() {
        let (search, steps) = search(1, 8, |_| (0.0, false));
        assert_eq!(steps, [1, 2, 4, 8]);
        assert!(search.broken().is_none());
    }
}
