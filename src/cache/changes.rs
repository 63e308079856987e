//! What has changed in a database, in the order in which it became known.

use std::collections::HashMap;
use std::time::Instant;

/// A table, by its OID in its database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table(pub u32);

/// What a read depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reads {
    /// These tables, and no others; none for a read of constants.
    Tables(Box<[Table]>),
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

/// The number of a change, and when it became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub number: u64,
    pub at: Instant,
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

    pub fn note(&mut self, change: Change<'_>, mark: Mark) {
        match change {
            Change::Tables([]) => return,
            Change::Tables(tables) => {
                if self.tables.len() + tables.len() > REMEMBERED {
                    self.tables.clear();
                    self.all = self.any;
                }
                if tables.len() > REMEMBERED {
                    self.all = mark;
                } else {
                    self.tables.extend(tables.iter().map(|table| (*table, mark)));
                }
            }
            Change::All => {
                self.tables.clear();
                self.all = mark;
            }
        }
        self.any = mark;
    }

    /// The last change of what is read.
    pub fn last(&self, reads: &Reads) -> Mark {
        match reads {
            Reads::Anything => self.any,
            Reads::Tables(tables) => {
                let marks = tables.iter().filter_map(|table| self.tables.get(table));
                marks.chain([&self.all]).max_by_key(|mark| mark.number).copied().unwrap_or(self.all)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(number: u64) -> Mark {
        Mark { number, at: Instant::now() }
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
