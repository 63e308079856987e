//! What one database says of its functions, operators, casts, types, views and tables: an immutable snapshot, and what
//! follows from it for a statement.
//!
//! Held is what users made (OIDs from `FirstNormalObjectId` on). What the server brings along is known by name
//! ([`crate::sql::functions`]); the snapshot adds which of its functions are hazardous, for views refer to them by OID.
//!
//! A user's function counts as harmless by its label *and* its body: SQL and PL/pgSQL are read, C is believed, other
//! languages are not. Names resolve by the session's search_path, and where several objects may be meant, the worst
//! counts: overloads are told apart by the number of their arguments, not by types.

pub mod build;
pub mod judge;
pub mod path;
pub mod publication;
pub mod sources;

use std::collections::{HashMap, HashSet};

use crate::catalog::path::{Path, Scopes};
use crate::sql::{Facts, Name, Reason};

/// An object identifier of the server.
pub type Oid = u32;

/// A relation that holds rows, by its OID in its database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table(pub Oid);

/// `FirstNormalObjectId`: lower ones are the server's own.
pub const FIRST_USER_OID: Oid = 16384;

/// What a stored expression (view, policy, check, default, body) refers to, by OID.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refs {
    pub functions: Vec<Oid>,
    pub operators: Vec<Oid>,
    pub relations: Vec<Oid>,
    pub types: Vec<Oid>,
    /// It locks rows or changes them, or asks for what is a node's own.
    pub reason: Option<Reason>,
    /// It looks at the clock or the session by a keyword, or at a sample of rows.
    pub transient: bool,
}

/// `pg_proc.provolatile`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volatility {
    Immutable,
    Stable,
    Volatile,
}

/// What a function does when called, as far as it can be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// C: its label is believed.
    Trusted,
    /// Nothing can be concluded: a language that is not read, or code put together at run time.
    Opaque,
    /// SQL or PL/pgSQL as text: its names resolve when it runs.
    Text(Box<Facts>),
    /// `BEGIN ATOMIC`: resolved when it was made.
    Bound(Refs),
    /// The functions it is made of: an aggregate, or another name for one of the server's own.
    Parts(Vec<Oid>),
}

/// A function or aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    pub name: Box<str>,
    pub schema: Oid,
    pub volatility: Volatility,
    pub body: Body,
    /// Of its default arguments.
    pub defaults: Refs,
    /// User types among its arguments and results.
    pub types: Vec<Oid>,
    /// How many arguments a call has at least, and at most; `None`: any number.
    pub required: u16,
    pub most: Option<u16>,
    /// The type of its first argument; 0: none.
    pub first: Oid,
    /// Its own `SET search_path`.
    pub path: Option<Box<str>>,
    /// Without one: the schemas that `"$user"` means to it, besides the caller's (SECURITY DEFINER, `SET role`).
    pub user_schemas: Vec<Oid>,
    /// A function of pg_catalog has the same name and argument types.
    pub hidden: bool,
}

impl Function {
    /// A call with so many arguments may mean it (`FuncnameGetCandidates`); `None`: not known how many.
    pub fn takes(&self, arguments: Option<u16>) -> bool {
        arguments.is_none_or(|given| given >= self.required && self.most.is_none_or(|most| given <= most))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    pub name: Box<str>,
    pub schema: Oid,
    pub function: Oid,
    /// 0: a prefix operator.
    pub left: Oid,
    pub right: Oid,
    /// An operator of pg_catalog has the same name and operand types.
    pub hidden: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cast {
    pub source: Oid,
    pub target: Oid,
    pub function: Oid,
}

/// A domain, enum, range or base type. Row types stand with their relations, but here too where they have an operator class.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Type {
    pub name: Box<str>,
    pub schema: Oid,
    /// Of its input and output, its default operator classes, its range.
    pub functions: Vec<Oid>,
    /// What a domain rests on, what a range spans.
    pub types: Vec<Oid>,
    /// Checks of a domain.
    pub checks: Refs,
}

/// `pg_class.relkind`, of what can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelationKind {
    /// Also partitioned.
    Table,
    /// Read as a table is; what changes its rows is no write to it.
    Materialized,
    View,
    Sequence,
    Foreign,
    /// A row type that stands alone.
    Composite,
}

/// `pg_class.relpersistence`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    Permanent,
    Unlogged,
    Temporary,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    pub name: Box<str>,
    pub schema: Oid,
    pub kind: RelationKind,
    pub persistence: Persistence,
    /// It holds no rows itself.
    pub partitioned: bool,
    /// It is a partition of another.
    pub partition: bool,
    pub row_type: Oid,
    /// User types of its columns.
    pub types: Vec<Oid>,
    /// Partitions, and tables that inherit.
    pub children: Vec<Oid>,
    /// What its SELECT rule does; `None`: it has none.
    pub rule: Option<Refs>,
    /// Row-level security is on.
    pub secured: bool,
    pub policies: Refs,
}

#[cfg(test)]
impl Relation {
    /// An ordinary table that nothing else is known of.
    pub fn for_tests(schema: Oid) -> Relation {
        Relation {
            name: "r".into(),
            schema,
            kind: RelationKind::Table,
            persistence: Persistence::Permanent,
            partitioned: false,
            partition: false,
            row_type: 0,
            types: Vec::new(),
            children: Vec::new(),
            rule: None,
            secured: false,
            policies: Refs::default(),
        }
    }
}

/// What a snapshot cost, and how large it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    pub entries: usize,
    /// Of what the server sent.
    pub bytes: usize,
}

/// One database's definitions at one moment.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Tells snapshots of one database apart; 0 is none.
    pub generation: u64,
    /// Equal ones of one database, wherever they were read: the same definitions. `None`: not known.
    pub digest: Option<Box<str>>,
    pub size: Size,
    schemas: HashMap<Box<str>, Oid>,
    functions: HashMap<Oid, Function>,
    operators: HashMap<Oid, Operator>,
    casts: Vec<Cast>,
    types: HashMap<Oid, Type>,
    relations: HashMap<Oid, Relation>,
    /// Those from which a write may lead on to others.
    leading_on: HashSet<Oid>,
    functions_by_name: HashMap<Box<str>, Vec<Oid>>,
    operators_by_name: HashMap<Box<str>, Vec<Oid>>,
    types_by_name: HashMap<Box<str>, Vec<Oid>>,
    relations_by_name: HashMap<Box<str>, Vec<Oid>>,
    /// Relations, the server's own among them, by their row types.
    row_types: HashMap<Oid, Oid>,
    /// Casts and operators of built-in names that concern a user type, by that type.
    casts_by_type: HashMap<Oid, Vec<Oid>>,
    operators_by_type: HashMap<Oid, Vec<Oid>>,
    /// Types by the name of one of the server's own.
    shadowing_types: Vec<Oid>,
    /// Functions of casts among built-in types: any expression may use them.
    free_casts: Vec<Oid>,
    /// Operators of built-in names over built-in types.
    free_operators: Vec<Oid>,
    /// Functions of the server's own that no standby is to run, by OID.
    hazards: HashMap<Oid, (Box<str>, Reason)>,
    /// The server's own views whose rows are a node's own, by OID.
    node_local: HashSet<Oid>,
    /// Names of the server's own functions of which none is hazardous.
    harmless: HashSet<Box<str>>,
    /// Functions of the server's own whose results do not follow from their arguments and settings alone, by OID.
    transient: HashSet<Oid>,
    /// search_path as roles, databases and the server set it.
    defaults: Vec<path::Default>,
    scopes: Scopes,
}

impl Catalog {
    /// The schema of this name.
    pub fn schema(&self, name: &str) -> Option<Oid> {
        self.schemas.get(name).copied()
    }

    fn schema_name(&self, oid: Oid) -> &str {
        self.schemas.iter().find(|(_, found)| **found == oid).map_or("", |(name, _)| name)
    }

    /// The objects that a name may mean along the path.
    fn candidates<'a>(
        &'a self,
        by_name: &'a HashMap<Box<str>, Vec<Oid>>,
        name: &Name,
        path: &'a Path,
        schema_of: impl Fn(Oid) -> Option<Oid> + 'a,
    ) -> impl Iterator<Item = Oid> + 'a {
        let found = by_name.get(name.name.as_str()).map(Vec::as_slice).unwrap_or_default();
        let wanted = name.schema.as_deref().map(|schema| self.schema(schema));
        found.iter().copied().filter(move |&oid| match (wanted, schema_of(oid)) {
            (Some(wanted), schema) => schema.is_some() && wanted == schema,
            (None, Some(schema)) => path.reaches(schema),
            (None, None) => false,
        })
    }

    fn functions_named<'a>(&'a self, name: &Name, path: &'a Path) -> impl Iterator<Item = Oid> + 'a {
        let qualified = name.schema.is_some();
        let schema_of = |oid: Oid| self.functions.get(&oid).map(|f| f.schema);
        self.candidates(&self.functions_by_name, name, path, schema_of).filter(move |oid| {
            let Some(function) = self.functions.get(oid) else { return false };
            qualified || !(function.hidden && path.comes_after_built_ins(function.schema))
        })
    }

    fn operators_named<'a>(&'a self, name: &Name, path: &'a Path) -> impl Iterator<Item = Oid> + 'a {
        self.candidates(&self.operators_by_name, name, path, |oid| self.operators.get(&oid).map(|o| o.schema))
    }

    fn types_named<'a>(&'a self, name: &Name, path: &'a Path) -> impl Iterator<Item = Oid> + 'a {
        self.candidates(&self.types_by_name, name, path, |oid| self.types.get(&oid).map(|t| t.schema))
    }

    fn relations_named<'a>(&'a self, name: &Name, path: &'a Path) -> impl Iterator<Item = Oid> + 'a {
        self.candidates(&self.relations_by_name, name, path, |oid| self.relations.get(&oid).map(|r| r.schema))
    }

    /// An operator can be meant along the path.
    fn is_reachable(&self, operator: &Operator, path: &Path) -> bool {
        path.reaches(operator.schema) && !(operator.hidden && path.comes_after_built_ins(operator.schema))
    }
}
