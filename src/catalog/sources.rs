//! The tables from whose rows a read's result follows, where it follows from nothing else.

use std::sync::Arc;

use super::judge::{self, Walk};
use super::path::Path;
use super::publication::Publication;
use super::{Catalog, Oid, RelationKind, Table};
use crate::sql::{Facts, Name, Reason};

/// Why a result does not follow from rows of tables, of whose changes one can be told, and from settings alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Elusive {
    /// Something is not known, or has to run on the primary.
    Unknown,
    /// The clock, the session or chance have a part in it.
    Transient,
    /// Which rows of a table count depends on who asks.
    Secured,
    /// A function of which nobody knows at what it looks.
    Hidden,
    /// A relation of a kind that no change is told of.
    Relation,
    /// A table of whose changes the publication does not tell.
    Unpublished,
}

impl Elusive {
    /// The tables are all there are, though more than their rows makes the result.
    fn names_all_tables(self) -> bool {
        matches!(self, Elusive::Transient | Elusive::Secured | Elusive::Unpublished)
    }
}

/// What a read looks at, through views and functions, down to partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    tables: Arc<[Table]>,
    elusive: Option<Elusive>,
}

impl Sources {
    /// Why it follows from more than the rows of tables; `None`: it does not.
    pub fn elusive(&self) -> Option<Elusive> {
        self.elusive
    }

    /// Where changes are told of what this publication covers.
    #[must_use]
    pub fn told_by(self, publication: &Publication, catalog: &Catalog) -> Sources {
        let untold = self.elusive.is_none() && !self.tables.iter().all(|table| publication.covers(catalog, *table));
        if untold { Sources { elusive: Some(Elusive::Unpublished), ..self } } else { self }
    }

    /// The tables from which the result follows, and from nothing else.
    ///
    /// # Errors
    /// There is more to it.
    pub fn alone(self) -> Result<Arc<[Table]>, Elusive> {
        self.elusive.map_or(Ok(self.tables), Err)
    }

    /// All tables whose rows it may read, whatever else it looks at. `None`: there may be others.
    pub fn tables(self) -> Option<Arc<[Table]>> {
        self.elusive.is_none_or(Elusive::names_all_tables).then_some(self.tables)
    }
}

/// What a read looks at.
pub fn sources(catalog: &Catalog, path: &Path, facts: &Facts) -> Sources {
    let mut walk = Walk::new(catalog, path);
    match tables(&mut walk, facts) {
        Ok(tables) => Sources { tables: tables.into(), elusive: walk.elusive },
        Err(why) => Sources { tables: [].into(), elusive: walk.elusive.max(Some(why)) },
    }
}

fn tables(walk: &mut Walk, facts: &Facts) -> Result<Vec<Table>, Elusive> {
    let catalog = walk.catalog;
    walk.run(facts).map_err(|found| match found.reason {
        Reason::Unlogged | Reason::Foreign | Reason::NodeLocal | Reason::Sequence => Elusive::Relation,
        _ => Elusive::Unknown,
    })?;
    let holds_rows = |oid: &Oid| catalog.relations.get(oid).is_some_and(|found| found.kind == RelationKind::Table);
    let mut tables: Vec<_> = walk.relations().filter(holds_rows).map(Table).collect();
    tables.sort_unstable();
    tables.dedup();
    Ok(tables)
}

/// What a text says it writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Targets {
    /// With their partitions and heirs.
    pub tables: Arc<[Table]>,
    /// It writes no others: not by triggers, rules and cascades, nor by functions.
    pub alone: bool,
}

/// What a text says it writes.
pub fn targets(catalog: &Catalog, path: &Path, facts: &Facts) -> Targets {
    let named = |name| catalog.relations_named(name, path).collect::<Vec<_>>();
    let all_known = facts.written.iter().all(|name| !named(name).is_empty());
    let tables: Arc<[Table]> = catalog.with_all_behind(facts.written.iter().flat_map(named).collect()).into();
    let plain = facts.primary == Some(Reason::Write)
        && facts.statements == 1
        && facts.relations_exact
        && facts.effects.is_empty()
        && facts.control.is_empty();
    let leads_on = |table: &Table| {
        let is_table = catalog.relations.get(&table.0).is_some_and(|found| found.kind == RelationKind::Table);
        !is_table || catalog.leading_on.contains(&table.0)
    };
    let alone = plain && all_known && !tables.iter().any(leads_on);
    Targets { alone: alone && judge::judge(catalog, path, facts).primary.is_none(), tables }
}

impl Catalog {
    /// The table of this name, with its schema.
    pub fn table(&self, name: &Name) -> Option<Table> {
        self.relations_named(name, &Path::Unknown).next().map(Table)
    }

    /// The tables of `schema.name`, or of a name in any schema, with their partitions and heirs; of a view all behind it.
    pub fn tables_named(&self, name: &str) -> Vec<Table> {
        let (schema, name) =
            name.split_once('.').map_or((None, name), |(schema, name)| (Some(schema.to_owned()), name));
        let name = Name { schema, name: name.to_owned() };
        self.with_all_behind(self.relations_named(&name, &Path::Unknown).collect())
    }

    /// The table of this name, with its schema, and its partitions and heirs. Empty: there is none.
    pub fn family(&self, name: &Name) -> Vec<Table> {
        let is_table = |oid: &Oid| self.relations.get(oid).is_some_and(|found| found.kind == RelationKind::Table);
        self.with_all_behind(self.relations_named(name, &Path::Unknown).filter(is_table).collect())
    }

    fn with_all_behind(&self, mut found: Vec<Oid>) -> Vec<Table> {
        let mut at = 0;
        while let Some(oid) = found.get(at) {
            let relation = self.relations.get(oid);
            let rules = relation.and_then(|relation| relation.rule.as_ref());
            let behind = rules.map_or(&[][..], |rule| &rule.relations).iter();
            let behind = behind.chain(relation.map_or(&[][..], |relation| &relation.children));
            let new: Vec<Oid> = behind.filter(|oid| !found.contains(oid)).copied().collect();
            found.extend(new);
            at += 1;
        }
        found.into_iter().map(Table).collect()
    }

    /// Whether the table is one of these definitions.
    pub fn has_table(&self, table: Table) -> bool {
        self.relations.contains_key(&table.0)
    }
}
