//! What the operator says of results, by the tables that they follow from or by their statement (`[[cache.rules]]`).
//!
//! A rule for a table counts for its partitions and heirs too, and the strictest of several counts. What is looked up
//! for a read is numbers: names are resolved once for each snapshot of the definitions, fingerprints at the start.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;

use crate::catalog::{Catalog, Table};
use crate::config::{CacheRule, RuledBy, Terms};
use crate::sql::{Fingerprint, Name};

/// One database's rules.
#[derive(Debug)]
pub struct Rules {
    statements: HashMap<Fingerprint, Terms>,
    tables: Vec<(Name, Terms)>,
    /// By the last snapshot that was asked about.
    resolved: ArcSwapOption<ByTable>,
}

/// What rules say of tables, by the definitions of one snapshot.
#[derive(Debug, Default)]
pub struct ByTable {
    generation: u64,
    terms: HashMap<Table, Terms>,
    /// Some table is one from which no result is kept.
    forbids: bool,
    /// Tables that have a rule and are not there.
    pub missing: Vec<Name>,
}

/// What rules say of one statement.
#[derive(Debug, Clone, Default)]
pub struct Ruled {
    pub statement: Terms,
    pub tables: ByTables,
}

/// What rules say of the tables behind a statement.
#[derive(Debug, Clone, Default)]
pub enum ByTables {
    /// There are none for tables.
    #[default]
    Nothing,
    /// The definitions are not known.
    Unknown,
    This(Arc<ByTable>),
}

/// What rules say of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    pub never: bool,
    pub ttl: Option<Duration>,
    /// Zero: it is given behind no change.
    pub stale: Duration,
    /// Rules alone say that it is kept: one for its statement with a `ttl`, or one for each of its tables.
    pub named: bool,
}

impl Rules {
    /// Those that are for a database; `None`: there are none.
    pub fn new(rules: &[CacheRule], database: &str) -> Option<Rules> {
        let (mut statements, mut tables) = (HashMap::new(), Vec::new());
        for rule in rules.iter().filter(|rule| rule.database.as_deref().is_none_or(|name| name == database)) {
            match &rule.of {
                RuledBy::Table { schema, name } => {
                    tables.push((Name { schema: Some(schema.clone()), name: name.clone() }, rule.terms));
                }
                RuledBy::Fingerprint(number) => add(&mut statements, Fingerprint(*number), rule.terms),
            }
        }
        let is_any = !(statements.is_empty() && tables.is_empty());
        is_any.then(|| Rules { statements, tables, resolved: ArcSwapOption::empty() })
    }

    /// What they say of a statement, by these definitions.
    pub fn ruled(&self, statement: Fingerprint, catalog: Option<&Catalog>) -> Ruled {
        let tables = match catalog {
            _ if self.tables.is_empty() => ByTables::Nothing,
            None => ByTables::Unknown,
            Some(catalog) => ByTables::This(self.by_table(catalog)),
        };
        Ruled { statement: self.statements.get(&statement).copied().unwrap_or_default(), tables }
    }

    /// What they say of tables.
    pub fn by_table(&self, catalog: &Catalog) -> Arc<ByTable> {
        let known = self.resolved.load();
        if let Some(known) = known.as_ref().filter(|known| known.generation == catalog.generation) {
            return known.clone();
        }
        let mut found = ByTable { generation: catalog.generation, ..ByTable::default() };
        for (name, terms) in &self.tables {
            let family = catalog.family(name);
            if family.is_empty() {
                found.missing.push(name.clone());
            }
            found.forbids |= terms.never && !family.is_empty();
            family.into_iter().for_each(|table| add(&mut found.terms, table, *terms));
        }
        let found = Arc::new(found);
        // Who still has older definitions leaves the newer ones to the others.
        if known.as_ref().is_none_or(|known| known.generation < found.generation) {
            self.resolved.store(Some(found.clone()));
        }
        found
    }

    /// Each that counts for a statement over these tables, in words.
    pub fn tell(&self, statement: Fingerprint, tables: &[Table], catalog: Option<&Catalog>) -> Vec<String> {
        let of_statement = self.statements.get(&statement).map(|terms| format!("{statement} {}", in_words(*terms)));
        let counts = |name: &Name| catalog.is_some_and(|found| found.family(name).iter().any(|t| tables.contains(t)));
        let of_tables = self.tables.iter().filter(|(name, _)| counts(name));
        let of_tables = of_tables.map(|(name, terms)| format!("{} {}", name, in_words(*terms)));
        of_statement.into_iter().chain(of_tables).collect()
    }
}

fn in_words(terms: Terms) -> String {
    let never = terms.never.then(|| "never".to_owned());
    let ttl = terms.ttl.map(|ttl| format!("ttl={ttl:?}"));
    let stale = terms.stale.map(|stale| format!("stale={stale:?}"));
    never.into_iter().chain(ttl).chain(stale).collect::<Vec<_>>().join(" ")
}

/// The strictest of all counts.
fn add<K: Hash + Eq>(to: &mut HashMap<K, Terms>, key: K, terms: Terms) {
    let both = to.entry(key).or_default();
    both.never |= terms.never;
    both.ttl = shortest(both.ttl, terms.ttl);
    both.stale = shortest(both.stale, terms.stale);
}

pub(super) fn shortest(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

impl Ruled {
    /// Of a result that follows from these tables. It may be old only where each of them allows it, unless its statement
    /// has a rule of its own for that.
    pub fn of(&self, tables: &[Table]) -> Sum {
        let Terms { never, ttl, stale } = self.statement;
        let mut sum = Sum { never, ttl, stale: stale.unwrap_or_default(), named: ttl.is_some() };
        let (ByTables::This(ruled), [first, others @ ..]) = (&self.tables, tables) else { return sum };
        let terms = |table| ruled.terms.get(table).copied().unwrap_or_default();
        let mut all = terms(first);
        let mut each_has_ttl = all.ttl.is_some();
        for table in others {
            let Terms { never, ttl, stale } = terms(table);
            all.never |= never;
            all.ttl = shortest(all.ttl, ttl);
            all.stale = all.stale.zip(stale).map(|(one, other)| one.min(other));
            each_has_ttl &= ttl.is_some();
        }
        sum.never |= all.never;
        sum.ttl = shortest(sum.ttl, all.ttl);
        sum.stale = stale.or(all.stale).unwrap_or_default();
        sum.named |= each_has_ttl;
        sum
    }

    /// Some rule is for a table.
    pub fn is_by_table(&self) -> bool {
        !matches!(self.tables, ByTables::Nothing)
    }

    /// Of a result that may follow from any table; `None`: from one of which none is kept, for all that is known.
    pub fn of_any(&self) -> Option<Sum> {
        let forbids = match &self.tables {
            ByTables::Nothing => false,
            ByTables::Unknown => true,
            ByTables::This(ruled) => ruled.forbids,
        };
        (!forbids).then(|| self.of(&[]))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::catalog::build::Parts;
    use crate::catalog::{FIRST_USER_OID, Relation, RelationKind};

    fn relation(name: &str, kind: RelationKind) -> Relation {
        Relation { name: name.into(), kind, ..Relation::for_tests(2200) }
    }

    /// orders (1) with a partition (2), users (3), a view (4) and a materialised one (5), by the numbers of [`table`].
    pub fn catalog(generation: u64) -> Catalog {
        let kind = RelationKind::Table;
        let parts = Parts {
            schemas: vec![("public".into(), 2200)],
            relations: vec![
                (table(1).0, relation("orders", kind)),
                (table(2).0, relation("orders_1", kind)),
                (table(3).0, relation("users", kind)),
                (table(4).0, relation("view", RelationKind::View)),
                (table(5).0, relation("kept", RelationKind::Materialized)),
            ],
            inherits: vec![(table(1).0, table(2).0)],
            ..Parts::default()
        };
        parts.finish(generation, 0)
    }

    pub fn table(n: u32) -> Table {
        Table(FIRST_USER_OID + n)
    }

    const fn seconds(n: u64) -> Option<Duration> {
        Some(Duration::from_secs(n))
    }

    pub fn of(name: &str, terms: Terms) -> CacheRule {
        CacheRule { database: None, of: RuledBy::Table { schema: "public".into(), name: name.into() }, terms }
    }

    fn sum(rules: &[CacheRule], tables: &[u32]) -> Sum {
        let tables: Vec<_> = tables.iter().copied().map(table).collect();
        Rules::new(rules, "app").unwrap().ruled(Fingerprint(7), Some(&catalog(1))).of(&tables)
    }

    pub const STALE: Terms = Terms { never: false, ttl: None, stale: seconds(30) };
    pub const TTL: Terms = Terms { never: false, ttl: seconds(5), stale: None };
    pub const NEVER: Terms = Terms { never: true, ttl: None, stale: None };

    #[test]
    fn one_table_is_enough_to_forbid_and_to_shorten() {
        let rules = [of("orders", NEVER), of("users", TTL)];
        assert!(sum(&rules, &[1]).never && sum(&rules, &[2]).never && sum(&rules, &[2, 3]).never);
        assert_eq!(sum(&rules, &[3]), Sum { ttl: seconds(5), named: true, ..Sum::default() });
        assert_eq!(sum(&rules, &[]), Sum::default());
        assert_eq!(sum(&rules, &[9, 3]), Sum { ttl: seconds(5), ..Sum::default() }, "not all are named");
    }

    #[test]
    fn each_table_must_allow_an_old_answer() {
        let shorter = Terms { stale: seconds(3), ..STALE };
        let rules = [of("orders", STALE), of("users", shorter)];
        for (tables, stale) in [(&[1][..], 30), (&[1, 2], 30), (&[1, 3], 3), (&[1, 9], 0), (&[9], 0), (&[], 0)] {
            assert_eq!(sum(&rules, tables).stale, Duration::from_secs(stale), "{tables:?}");
        }
        // Of a partition with a rule of its own, the strictest.
        assert_eq!(sum(&[of("orders", STALE), of("orders_1", shorter)], &[1, 2]).stale, Duration::from_secs(3));
        let of_statement = CacheRule { of: RuledBy::Fingerprint(7), ..of("", shorter) };
        assert_eq!(sum(std::slice::from_ref(&of_statement), &[9]).stale, Duration::from_secs(3));
        assert_eq!(sum(&[of("orders", STALE), of_statement], &[1]).stale, Duration::from_secs(3));
    }

    #[test]
    fn a_rule_is_for_one_database_or_for_all() {
        let elsewhere = CacheRule { database: Some("other".into()), ..of("orders", NEVER) };
        assert!(Rules::new(std::slice::from_ref(&elsewhere), "app").is_none() && Rules::new(&[], "app").is_none());
        assert!(Rules::new(&[elsewhere], "other").is_some());
    }

    #[test]
    fn names_are_looked_for_again_in_each_snapshot() {
        let rules = Rules::new(&[of("orders", NEVER), of("view", NEVER)], "app").unwrap();
        let empty = Parts::default().finish(1, 0);
        let missing =
            |catalog: &Catalog| rules.by_table(catalog).missing.iter().map(Name::to_string).collect::<Vec<_>>();
        assert_eq!(missing(&empty), ["public.orders", "public.view"]);
        assert_eq!(missing(&catalog(2)), ["public.view"], "a view is no table");
        assert!(rules.ruled(Fingerprint(7), Some(&catalog(2))).of(&[table(2)]).never);
        // Behind the others, and they do not lose theirs.
        assert_eq!(missing(&empty).len(), 2);
        assert_eq!(rules.resolved.load().as_ref().unwrap().generation, 2);
    }

    #[test]
    fn what_may_read_a_forbidden_table_is_forbidden() {
        let catalog = catalog(1);
        let any =
            |name, catalog| Rules::new(&[of(name, NEVER)], "app").unwrap().ruled(Fingerprint(7), catalog).of_any();
        assert_eq!(any("orders", Some(&catalog)), None);
        assert_eq!(any("orders", None), None);
        assert_eq!(any("gone", Some(&catalog)), Some(Sum::default()));
        assert_eq!(Ruled::default().of_any(), Some(Sum::default()));
    }

    #[test]
    fn it_is_told_which_count() {
        let statement = CacheRule { of: RuledBy::Fingerprint(7), ..of("", Terms { ttl: seconds(5), ..STALE }) };
        let rules = Rules::new(&[of("orders", NEVER), of("users", TTL), statement], "app").unwrap();
        let told = rules.tell(Fingerprint(7), &[table(2)], Some(&catalog(1)));
        assert_eq!(told, ["0000000000000007 ttl=5s stale=30s", "public.orders never"]);
        assert_eq!(rules.tell(Fingerprint(8), &[], None), [""; 0]);
    }
}
