//! Protocol-level prepared statements: one name on servers for each distinct text and parameter types, one
//! namespace for each client ([`Names`]), and for each server connection a record of what it holds ([`Held`]).
//!
//! A statement is also what its server described it as: to Postgres the parameters and the columns of a prepared
//! statement are fixed when it is parsed, and it refuses to run it once definitions have changed its columns
//! (`RevalidateCachedQuery`). So each is described where it is prepared, all copies of one are alike, and what was
//! parsed before a change of definitions is another statement than what is parsed behind it.

mod held;
mod names;

use std::borrow::{Borrow, Cow};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use dashmap::DashMap;
use quick_cache::DefaultHashBuilder;

use crate::error::Malformed;
use crate::route::plan::Plan;
use crate::wire::read::Reader;

pub use held::Held;
pub use names::{Name, Names, as_client_says};

/// A statement as servers know it.
#[derive(Debug)]
pub struct Statement {
    pub id: u64,
    /// Its name on servers.
    pub name: Box<[u8]>,
    pub text: Box<[u8]>,
    /// Parameter types as in a Parse: Int16 count, Int32 each.
    pub types: Box<[u8]>,
    /// Under which settings the text was read: [`crate::session::environment::Environment::key`].
    pub environment: Arc<str>,
    pub plan: Arc<Plan>,
    /// As the first server that prepared it has described it.
    description: OnceLock<Description>,
    validity: AtomicU8,
}

/// Whether a Parse of now makes the statement, or what had another meaning then.
mod validity {
    pub const CURRENT: u8 = 0;
    /// Definitions have changed at some time before this was noticed.
    pub const IN_DOUBT: u8 = 1;
    /// Definitions have changed since it was parsed.
    pub const SUPERSEDED: u8 = 2;
}

impl Statement {
    /// What is parsed now, in the same environment, is this statement.
    pub fn is_current(&self) -> bool {
        self.validity.load(Ordering::Acquire) == validity::CURRENT
    }

    /// Definitions have changed since it was parsed.
    pub fn is_superseded(&self) -> bool {
        self.validity.load(Ordering::Acquire) == validity::SUPERSEDED
    }

    pub fn description(&self) -> Option<&Description> {
        self.description.get()
    }

    /// Takes a server's description of a copy of it; false where another copy was described otherwise.
    pub fn describe(&self, description: &Description) -> bool {
        self.description.get_or_init(|| description.clone()).agrees(description)
    }

    /// The types of its parameters, those that a server has inferred among them.
    pub fn fixed_types(&self) -> &[u8] {
        self.description().map_or(&self.types, |known| &known.parameters)
    }

    /// The types for another Parse of it, which must not infer others. Of `CAST($1 AS unknown)` Postgres infers text, and
    /// refuses it with that: where a text may have such a cast, it infers text again.
    pub fn types_for_copy(&self) -> Cow<'_, [u8]> {
        let fixed = self.fixed_types();
        if !self.text.windows(7).any(|word| word.eq_ignore_ascii_case(b"unknown")) {
            return Cow::Borrowed(fixed);
        }
        let mut types = fixed.to_vec();
        let mut declared = self.types.get(2..).unwrap_or_default().chunks_exact(4);
        for oid in types.get_mut(2..).unwrap_or_default().chunks_exact_mut(4) {
            let declared = declared.next();
            if oid == TEXT && declared != Some(&TEXT) {
                oid.fill(0);
            }
        }
        Cow::Owned(types)
    }

    /// A client that was given this statement cannot tell `other` from it.
    pub fn is_like(&self, other: &Statement) -> bool {
        match (self.description(), other.description()) {
            (Some(own), Some(others)) => own.agrees(others),
            // Of what was never described nothing is known that could differ.
            (own, _) => own.is_none() || self.id == other.id,
        }
    }
}

/// What a server says of a prepared statement.
#[derive(Debug, Clone)]
pub struct Description {
    /// Parameter types: Int16 count, Int32 each; a ParameterDescription's body.
    pub parameters: Box<[u8]>,
    /// Name, type, length and modifier of each column, behind their number; `None`: NoData.
    columns: Option<Box<[u8]>>,
}

impl Description {
    /// From the bodies of a ParameterDescription and a RowDescription, `None` for NoData. Which column of which table
    /// is shown, Postgres does not count as the result's type either (`equalTupleDescs`).
    pub fn new(parameters: &[u8], row: Option<&[u8]>) -> Result<Description, Malformed> {
        let columns = match row {
            None => None,
            Some(row) => {
                let mut r = Reader::new(row);
                let count = r.i16()?;
                let mut columns = count.to_be_bytes().to_vec();
                for _ in 0..count {
                    columns.extend(r.cstr()?);
                    columns.push(0);
                    // Int32 table, Int16 column; then Int32 type, Int16 length, Int32 modifier; Int16 format.
                    r.bytes(6)?;
                    columns.extend(r.bytes(10)?);
                    r.bytes(2)?;
                }
                Some(columns.into())
            }
        };
        Ok(Description { parameters: parameters.into(), columns })
    }

    /// It gives no rows.
    pub fn is_without_rows(&self) -> bool {
        self.columns.is_none()
    }

    fn agrees(&self, other: &Description) -> bool {
        self.parameters == other.parameters && self.columns == other.columns
    }
}

/// What the names of statements on servers begin with. The colon keeps it out of the way of names that drivers make.
pub const NAME_PREFIX: &str = "pgweir:";

/// The type `text` in a Parse.
const TEXT: [u8; 4] = 25_u32.to_be_bytes();

/// The id of no statement, where it is not known which one is meant.
pub const UNKNOWN: u64 = u64::MAX;

/// Above this many statements, those that no client holds are forgotten.
const SWEEP_AT: usize = 10_000;

/// What tells a statement from others.
#[derive(Hash, PartialEq, Eq)]
struct Identity<'a> {
    text: &'a [u8],
    types: &'a [u8],
    environment: &'a str,
}

/// A statement as a key; also what is not one yet, so that a lookup makes nothing.
trait Identified {
    fn identity(&self) -> Identity<'_>;
}

impl Identified for Identity<'_> {
    fn identity(&self) -> Identity<'_> {
        Identity { ..*self }
    }
}

#[derive(Debug)]
struct Entry(Arc<Statement>);

impl Identified for Entry {
    fn identity(&self) -> Identity<'_> {
        Identity { text: &self.0.text, types: &self.0.types, environment: &self.0.environment }
    }
}

impl<'a> Borrow<dyn Identified + 'a> for Entry {
    fn borrow(&self) -> &(dyn Identified + 'a) {
        self
    }
}

impl Hash for dyn Identified + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl PartialEq for dyn Identified + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for dyn Identified + '_ {}

impl Hash for Entry {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Entry {}

/// All statements of one database (of pgweir's configuration), shared by its clients: what a Parse of now makes.
#[derive(Debug, Default)]
pub struct Registry {
    statements: DashMap<Entry, (), DefaultHashBuilder>,
    next: AtomicU64,
}

impl Registry {
    /// Tables, functions or the like have changed just now: any text may have another meaning from here on. Clients keep
    /// what they have, and so do connections.
    pub fn definitions_changed(&self) {
        self.supersede(validity::SUPERSEDED);
    }

    /// The same, of a change that pgweir has not seen.
    pub fn definitions_have_changed(&self) {
        self.supersede(validity::IN_DOUBT);
    }

    fn supersede(&self, validity: u8) {
        self.statements.retain(|Entry(statement), ()| {
            statement.validity.store(validity, Ordering::Release);
            false
        });
    }

    /// The text of this statement has another meaning now.
    pub fn outdate(&self, statement: &Arc<Statement>) {
        self.statements.remove_if(&Entry(statement.clone()), |Entry(known), ()| Arc::ptr_eq(known, statement));
        statement.validity.fetch_max(validity::IN_DOUBT, Ordering::AcqRel);
    }

    /// The statement of this text and these types in this environment; `plan` is asked for where it is new.
    pub fn statement(
        &self,
        text: &[u8],
        types: &[u8],
        environment: &Arc<str>,
        plan: impl FnOnce() -> Arc<Plan>,
    ) -> Arc<Statement> {
        let identity: &dyn Identified = &Identity { text, types, environment };
        if let Some(found) = self.statements.get(identity) {
            return found.key().0.clone();
        }
        if self.statements.len() >= SWEEP_AT {
            self.statements.retain(|Entry(statement), ()| Arc::strong_count(statement) > 1);
        }
        let made = self.make(text, types, environment, plan(), validity::CURRENT);
        // Of two that make it at once, one comes first.
        self.statements.entry(Entry(made)).or_insert(()).key().0.clone()
    }

    /// A copy under another name, which no Parse is given.
    pub fn apart(&self, of: &Statement) -> Arc<Statement> {
        self.make(&of.text, &of.types, &of.environment, of.plan.clone(), validity::IN_DOUBT)
    }

    fn make(&self, text: &[u8], types: &[u8], environment: &Arc<str>, plan: Arc<Plan>, validity: u8) -> Arc<Statement> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("{NAME_PREFIX}{id:x}").into_bytes().into();
        let (text, types, environment) = (text.into(), types.into(), environment.clone());
        let (description, validity) = (OnceLock::new(), AtomicU8::new(validity));
        Arc::new(Statement { id, name, text, types, environment, plan, description, validity })
    }

    pub fn len(&self) -> usize {
        self.statements.len()
    }

    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn statement(registry: &Registry, text: &str) -> Arc<Statement> {
        registry.statement(text.as_bytes(), b"\0\0", &"".into(), || Arc::new(Plan::unknown()))
    }

    #[test]
    fn types_are_part_of_the_identity() {
        let registry = Registry::default();
        let a = statement(&registry, "select $1");
        let b = registry.statement(b"select $1", b"\0\x01\0\0\0\x17", &"".into(), || Arc::new(Plan::unknown()));
        assert!(Arc::ptr_eq(&a, &statement(&registry, "select $1")));
        assert_ne!(a.name, b.name);
        assert!(a.name.starts_with(NAME_PREFIX.as_bytes()));
    }

    #[test]
    fn those_who_ask_at_once_are_given_the_same() {
        let registry = Registry::default();
        for round in 0..100 {
            let start = std::sync::Barrier::new(4);
            let ask = || {
                start.wait();
                statement(&registry, &format!("select {round}"))
            };
            let given = std::thread::scope(|scope| [(); 4].map(|()| scope.spawn(ask)).map(|asks| asks.join().unwrap()));
            assert!(given.iter().all(|other| Arc::ptr_eq(other, &given[0])));
        }
        assert_eq!(registry.len(), 100);
    }

    #[test]
    fn what_is_out_of_date_is_made_anew() {
        let registry = Registry::default();
        let (a, b) = (statement(&registry, "a"), statement(&registry, "b"));
        registry.outdate(&a);
        let again = statement(&registry, "a");
        assert!(again.name != a.name && again.is_current() && !a.is_current());
        registry.outdate(&a);
        assert!(Arc::ptr_eq(&statement(&registry, "a"), &again) && Arc::ptr_eq(&statement(&registry, "b"), &b));
        assert!(!a.is_superseded());
        registry.definitions_changed();
        assert!(again.is_superseded() && b.is_superseded());
        assert!(!again.is_current() && !b.is_current() && registry.is_empty());
    }

    /// A RowDescription of one column.
    fn row(name: &str, table: u32, oid: u32) -> Vec<u8> {
        let mut row = [b"\0\x01", name.as_bytes(), b"\0"].concat();
        row.extend(table.to_be_bytes());
        row.extend(b"\0\x07");
        row.extend(oid.to_be_bytes());
        row.extend(b"\0\x04\xff\xff\xff\xff\0\0");
        row
    }

    #[test]
    fn copies_are_alike_in_all_that_postgres_compares() {
        let registry = Registry::default();
        let (a, b) = (statement(&registry, "a"), statement(&registry, "b"));
        let described = |row: Option<&[u8]>| Description::new(b"\0\0", row).unwrap();
        assert!(a.describe(&described(Some(&row("n", 1, 23)))), "the first");
        assert!(!a.is_like(&b) && a.is_like(&a) && b.is_like(&a));
        assert!(a.describe(&described(Some(&row("n", 2, 23)))), "another table");
        assert!(!a.describe(&described(Some(&row("m", 1, 23)))) && !a.describe(&described(Some(&row("n", 1, 20)))));
        assert!(!a.describe(&described(None)));
        assert!(b.describe(&described(Some(&row("n", 3, 23)))) && a.is_like(&b));
        assert!(Description::new(b"\0\0", Some(b"\0\x01n\0\0")).is_err());
    }

    #[test]
    fn what_a_server_has_inferred_stays() {
        let registry = Registry::default();
        let a = statement(&registry, "a");
        assert_eq!(a.fixed_types(), b"\0\0");
        a.describe(&Description::new(b"\0\x01\0\0\0\x17", None).unwrap());
        assert_eq!(a.fixed_types(), b"\0\x01\0\0\0\x17");
        assert_eq!(*a.types_for_copy(), *a.fixed_types());
    }

    #[test]
    fn text_is_inferred_again_where_it_may_be_cast_to_unknown() {
        let registry = Registry::default();
        let types = |oids: &[u32]| -> Vec<u8> {
            let count = oids.len() as u16;
            count.to_be_bytes().into_iter().chain(oids.iter().flat_map(|oid| oid.to_be_bytes())).collect()
        };
        let text = b"select $1::Unknown, $2, $3::unknown, $4::int4";
        let a = registry.statement(text, &types(&[0, 25, 705]), &"".into(), || Arc::new(Plan::unknown()));
        a.describe(&Description::new(&types(&[25, 25, 25, 23]), None).unwrap());
        assert_eq!(*a.types_for_copy(), types(&[0, 25, 0, 23]));
    }
}
