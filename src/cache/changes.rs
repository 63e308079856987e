//! What has changed in a database, in the order in which it became known.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

pub use crate::catalog::Table;
use crate::freshness::{Lsn, Sample};

/// What a read depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reads {
    /// These tables, and no others; none for a read of constants.
    Tables(Arc<[Table]>),
    /// Nobody knows: any change may change it.
    Anything,
}

/// What has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    Tables(&'a [Table]),
    /// Definitions, or something that is not known.
    All,
}

/// The last of several changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// In the order in which changes became known.
    pub number: u64,
    /// Those that passed through were committed by then.
    pub at: Instant,
    /// Those that the change stream has told end here in the WAL, or before.
    pub end: Lsn,
}

impl Mark {
    /// Both.
    fn and(self, other: Mark) -> Mark {
        Mark { number: self.number.max(other.number), at: self.at.max(other.at), end: self.end.max(other.end) }
    }

    /// Whether a read has them that began at `at`, behind change `number`, and misses nothing that ends at `visible` or before.
    pub fn is_in(&self, at: Instant, number: u64, visible: Lsn) -> bool {
        self.number <= number && self.end <= visible && self.at <= at
    }

    /// Whether a replica has replayed them, by its last sample.
    pub fn is_replayed(&self, sample: &Sample) -> bool {
        sample.has(self.at) && (self.end == Lsn(0) || (sample.proven && sample.position >= self.end))
    }
}

/// Tables whose last change is remembered one by one; of the rest it is as if they had changed when they were forgotten.
const REMEMBERED: usize = 10_000;

/// The last changes of one database.
#[derive(Debug)]
pub struct Changes {
    /// Of everything.
    all: Mark,
    /// Of anything.
    any: Mark,
    tables: HashMap<Table, Mark>,
}

impl Changes {
    /// Nothing is known of what changed before `mark`.
    pub fn new(mark: Mark) -> Changes {
        Changes { all: mark, any: mark, tables: HashMap::new() }
    }

    /// An instant by which all that passed through had.
    pub fn floor(&self) -> Instant {
        self.all.at
    }

    /// Of anything.
    pub fn any(&self) -> Mark {
        self.any
    }

    /// Of everything.
    pub fn all(&self) -> Mark {
        self.all
    }

    pub fn note(&mut self, change: Change<'_>, mark: Mark) {
        if change == Change::Tables(&[]) {
            return;
        }
        self.any = self.any.and(mark);
        match change {
            Change::Tables(tables) if tables.len() <= REMEMBERED => {
                if self.tables.len() + tables.len() > REMEMBERED {
                    self.tables.clear();
                    self.all = self.any;
                }
                for table in tables {
                    self.tables.entry(*table).and_modify(|last| *last = last.and(mark)).or_insert(mark);
                }
            }
            Change::Tables(_) | Change::All => {
                self.tables.clear();
                self.all = self.any;
            }
        }
    }

    /// The last change of what is read.
    pub fn last(&self, reads: &Reads) -> Mark {
        match reads {
            Reads::Anything => self.any,
            Reads::Tables(tables) => {
                let marks = tables.iter().filter_map(|table| self.tables.get(table));
                marks.fold(self.all, |last, mark| last.and(*mark))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(number: u64) -> Mark {
        Mark { number, at: Instant::now(), end: Lsn(0) }
    }

    fn reads(tables: &[u32]) -> Reads {
        Reads::Tables(tables.iter().map(|oid| Table(*oid)).collect())
    }

    #[test]
    fn the_last_change_of_any_table_counts() {
        let mut changes = Changes::new(mark(1));
        changes.note(Change::Tables(&[Table(7)]), mark(2));
        changes.note(Change::Tables(&[Table(8)]), mark(3));
        let last = |changes: &Changes, reads: Reads| changes.last(&reads).number;
        assert_eq!(last(&changes, reads(&[])), 1);
        assert_eq!(last(&changes, reads(&[7])), 2);
        assert_eq!(last(&changes, reads(&[7, 8, 9])), 3);
        assert_eq!(last(&changes, Reads::Anything), 3);
        changes.note(Change::All, mark(4));
        assert_eq!(last(&changes, reads(&[])), 4);
        changes.note(Change::Tables(&[]), mark(5));
        assert_eq!(last(&changes, Reads::Anything), 4);
    }

    #[test]
    fn a_change_that_passed_through_hides_none_that_was_told() {
        let start = Instant::now();
        let mut changes = Changes::new(Mark { number: 1, at: start, end: Lsn(5) });
        changes.note(Change::Tables(&[Table(7)]), Mark { number: 2, at: start, end: Lsn(9) });
        let later = start + std::time::Duration::from_secs(1);
        changes.note(Change::Tables(&[Table(7)]), Mark { number: 3, at: later, end: Lsn(0) });
        assert_eq!(changes.last(&reads(&[7])), Mark { number: 3, at: later, end: Lsn(9) });
        assert_eq!(changes.last(&reads(&[8])).end, Lsn(5));
        changes.note(Change::All, Mark { number: 4, at: start, end: Lsn(0) });
        assert_eq!(changes.last(&reads(&[8])), Mark { number: 4, at: later, end: Lsn(9) });
    }

    #[test]
    fn a_replica_has_a_change_by_the_position_or_by_the_time() {
        let start = Instant::now();
        let at = |seconds| start + std::time::Duration::from_secs(seconds);
        let sample = |until, position, proven| Sample {
            asked: Some(until),
            position: Lsn(position),
            proven,
            until: Some(until),
        };
        let mark = Mark { number: 1, at: at(5), end: Lsn(9) };
        assert!(mark.is_replayed(&sample(at(6), 9, true)));
        assert!(!mark.is_replayed(&sample(at(5), 9, true)) && !mark.is_replayed(&sample(at(6), 8, true)));
        assert!(!mark.is_replayed(&sample(at(6), 9, false)), "a position in another history");
        assert!(Mark { end: Lsn(0), ..mark }.is_replayed(&sample(at(6), 0, false)));
    }

    #[test]
    fn what_is_forgotten_counts_as_changed() {
        let mut changes = Changes::new(mark(1));
        changes.note(Change::Tables(&[Table(7)]), mark(2));
        let many: Vec<_> = (100..100 + REMEMBERED as u32).map(Table).collect();
        changes.note(Change::Tables(&many), mark(3));
        assert!(changes.tables.len() <= REMEMBERED);
        assert!(changes.last(&reads(&[7])).number >= 2 && changes.last(&reads(&[100])).number == 3);
        changes.note(Change::Tables(&[many, vec![Table(1)]].concat()), mark(4));
        assert!(changes.tables.len() <= REMEMBERED);
        assert_eq!(changes.last(&reads(&[1])).number, 4);
    }
}
