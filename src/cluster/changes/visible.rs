//! From when on commits are visible to every statement that begins on the primary: a commit is in the WAL before its
//! transaction leaves the list of those that run.

use std::collections::{HashSet, VecDeque};
use std::str::FromStr;

use crate::freshness::Lsn;

/// Commits looked at one by one; later ones are taken together.
const MAX_APART: usize = 16_384;

/// A snapshot of the primary (`pg_current_snapshot`), of each number the low half, as in the WAL.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// All before this have ended.
    xmin: u32,
    /// This and all later ones have not.
    xmax: u32,
    running: HashSet<u32>,
}

impl FromStr for Snapshot {
    type Err = ();

    /// From `xmin:xmax:xip,xip…`.
    fn from_str(text: &str) -> Result<Snapshot, ()> {
        let low = |text: &str| text.parse::<u64>().map(|xid| xid as u32).map_err(|_| ());
        let mut parts = text.splitn(3, ':');
        let (xmin, xmax) = (low(parts.next().ok_or(())?)?, low(parts.next().ok_or(())?)?);
        let running = parts.next().ok_or(())?;
        let running = running.split(',').filter(|xid| !xid.is_empty()).map(low).collect::<Result<_, _>>()?;
        Ok(Snapshot { xmin, xmax, running })
    }
}

/// Transaction numbers go round (`TransactionIdPrecedes`).
fn precedes(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

impl Snapshot {
    fn shows(&self, xid: u32) -> bool {
        precedes(xid, self.xmin) || (precedes(xid, self.xmax) && !self.running.contains(&xid))
    }

    /// That one and all that are older.
    fn shows_all_up_to(&self, xid: u32) -> bool {
        precedes(xid, self.xmin)
    }
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    end: Lsn,
    xid: u32,
    /// Stands for several commits, none of them younger.
    several: bool,
}

/// Commits told that may not be visible yet, in the order of the WAL.
#[derive(Debug, Default)]
pub struct Unseen {
    pending: VecDeque<Pending>,
}

impl Unseen {
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Some of what ends at or before `end` may not be visible.
    pub fn reaches_into(&self, end: Lsn) -> bool {
        self.pending.front().is_some_and(|first| first.end <= end || first.several)
    }

    /// Whatever ended at or before `end` is visible once all transactions before `next` have ended. A snapshot's upper bound is
    /// not enough: it is behind the last that has ended (`GetSnapshotData`), and one that waits to be visible may be younger.
    pub fn add_all_before(&mut self, end: Lsn, next: u32) {
        self.pending.push_back(Pending { end, xid: next.wrapping_sub(1), several: true });
    }

    pub fn add(&mut self, end: Lsn, xid: u32) {
        let full = self.pending.len() == MAX_APART;
        match self.pending.back_mut().filter(|_| full) {
            Some(last) => {
                last.xid = if precedes(last.xid, xid) { xid } else { last.xid };
                (last.end, last.several) = (end, true);
            }
            None => self.pending.push_back(Pending { end, xid, several: false }),
        }
    }

    /// The end of the last commit up to which all are visible; `None`: none more than before. What was added after the
    /// snapshot was asked for may stand in it as not begun, and waits for the next.
    pub fn settle(&mut self, snapshot: &Snapshot) -> Option<Lsn> {
        let mut settled = None;
        while let Some(first) = self.pending.front() {
            let shown = if first.several { snapshot.shows_all_up_to(first.xid) } else { snapshot.shows(first.xid) };
            if !shown {
                break;
            }
            settled = Some(first.end);
            self.pending.pop_front();
        }
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().unwrap()
    }

    #[test]
    fn a_commit_is_settled_when_no_transaction_older_in_the_wal_runs() {
        let mut unseen = Unseen::default();
        for (end, xid) in [(10, 5), (20, 3), (30, 7), (40, 9)] {
            unseen.add(Lsn(end), xid);
        }
        assert_eq!(unseen.settle(&snapshot("3:8:3")), Some(Lsn(10)));
        assert_eq!(unseen.settle(&snapshot("3:8:3")), None);
        assert_eq!(unseen.settle(&snapshot("4:8:4,6")), Some(Lsn(30)));
        assert_eq!(unseen.settle(&snapshot("9:9:")), None, "not begun, as far as the snapshot knows");
        assert_eq!(unseen.settle(&snapshot("10:10:")), Some(Lsn(40)));
        assert!(unseen.is_empty());
    }

    #[test]
    fn at_the_start_all_that_runs_must_end() {
        let mut unseen = Unseen::default();
        unseen.add_all_before(Lsn(10), 8);
        assert_eq!(unseen.settle(&snapshot("5:9:5,8")), None);
        // 7 is committed and not visible, the last that has ended is 6.
        assert_eq!(unseen.settle(&snapshot("7:7:")), None);
        assert_eq!(unseen.settle(&snapshot("8:9:8")), Some(Lsn(10)));
    }

    #[test]
    fn numbers_go_round() {
        let mut unseen = Unseen::default();
        unseen.add(Lsn(1), u32::MAX);
        unseen.add(Lsn(2), 3);
        // In the second epoch.
        assert_eq!(unseen.settle(&snapshot("4294967297:4294967299:4294967297")), Some(Lsn(1)));
        assert_eq!(unseen.settle(&snapshot("4294967300:4294967300:")), Some(Lsn(2)));
    }

    #[test]
    fn a_burst_is_bounded_and_settles_when_all_of_it_has() {
        let mut unseen = Unseen::default();
        let burst = MAX_APART as u32 + 5_000;
        for n in 0..burst {
            unseen.add(Lsn(u64::from(n)), 100_000 - n);
        }
        assert_eq!(unseen.pending.len(), MAX_APART);
        assert_eq!(unseen.settle(&snapshot("80000:200000:80000")), Some(Lsn(MAX_APART as u64 - 2)));
        assert_eq!(unseen.settle(&snapshot("90000:200000:")), Some(Lsn(u64::from(burst) - 1)));
    }

    #[test]
    fn what_is_no_snapshot_is_refused() {
        for text in ["", "1", "1:2", "a:2:", "1:2:x", "1:2:3,,x"] {
            assert!(text.parse::<Snapshot>().is_err(), "{text}");
        }
        assert_eq!(snapshot("1:2:").running.len(), 0);
    }
}
