//! Of which tables a publication tells all changes.

use std::collections::HashSet;

use super::{Catalog, Oid, Table};

/// A publication (`pg_publication`) that tells of inserts, updates, deletes and truncations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Publication {
    /// Another where it has been altered, or partitions of what it names have come or gone.
    pub state: u64,
    /// FOR ALL TABLES.
    pub all: bool,
    /// Changes of partitions are told as those of the table that they are partitions of.
    pub via_root: bool,
    /// Named, and their partitions down to the last.
    pub tables: HashSet<Oid>,
    /// Of which it does not tell all rows; where it is for all tables, those that it leaves out.
    pub partial: HashSet<Oid>,
    /// FOR TABLES IN SCHEMA.
    pub schemas: HashSet<Oid>,
}

impl Publication {
    /// Every change of the table's rows is told as one of this table. A partition whose parent's schema is published does not
    /// count: when the parent leaves or joins that schema, the partition is not locked, and old changes of it may go untold.
    pub fn covers(&self, catalog: &Catalog, table: Table) -> bool {
        let Some(relation) = catalog.relations.get(&table.0) else { return false };
        if relation.partitioned {
            return true;
        }
        let named = self.all || self.tables.contains(&table.0) || self.schemas.contains(&relation.schema);
        named && !self.partial.contains(&table.0) && !(self.via_root && relation.partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::build::Parts;
    use crate::catalog::{FIRST_USER_OID, Relation};

    fn relation(schema: Oid, partitioned: bool, partition: bool) -> Relation {
        Relation { partitioned, partition, ..Relation::for_tests(schema) }
    }

    /// A table (0), a partitioned one (1) and its partition in another schema (2).
    fn catalog() -> Catalog {
        let relations = [(100, false, false), (100, true, false), (200, false, true)];
        let made = relations.map(|(schema, partitioned, partition)| relation(schema, partitioned, partition));
        let relations = (FIRST_USER_OID..).zip(made).collect();
        Parts { relations, ..Parts::default() }.finish(1, 0)
    }

    /// Which of the three are covered, and one that nobody knows.
    fn covered(publication: &Publication) -> [bool; 4] {
        let catalog = catalog();
        [0, 1, 2, 3].map(|n| publication.covers(&catalog, Table(FIRST_USER_OID + n)))
    }

    fn oids(numbers: &[u32]) -> HashSet<Oid> {
        numbers.iter().map(|n| FIRST_USER_OID + n).collect()
    }

    #[test]
    fn a_table_is_covered_where_all_its_changes_are_told_as_its_own() {
        let none = Publication::default();
        // A partitioned table has no rows of its own.
        assert_eq!(covered(&none), [false, true, false, false]);
        let all = Publication { all: true, ..none.clone() };
        assert_eq!(covered(&all), [true, true, true, false]);
        assert_eq!(covered(&Publication { via_root: true, ..all.clone() }), [true, true, false, false]);
        assert_eq!(covered(&Publication { partial: oids(&[0]), ..all }), [false, true, true, false]);
        let named = Publication { tables: oids(&[0, 1, 2]), ..none.clone() };
        assert_eq!(covered(&named), [true, true, true, false]);
        assert_eq!(covered(&Publication { partial: oids(&[2]), ..named }), [true, true, false, false]);
        let of = |schema| covered(&Publication { schemas: [schema].into(), ..none.clone() });
        assert_eq!(of(100), [true, true, false, false]);
        assert_eq!(of(200), [false, true, true, false]);
    }
}
