//! What a statement reaches, and whether a standby may run it: all that its names may mean, and all that lies behind
//! those, each looked at once.

use std::collections::HashSet;

use super::path::Path;
use super::sources::Elusive;
use super::{Body, Catalog, FIRST_USER_OID, Function, Oid, Persistence, Refs, RelationKind, Volatility};
use crate::sql::functions::{self, Class};
use crate::sql::{Call, Effect, Facts, Name, Reason, builtins};

/// What the catalog says of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Why it must run on the primary; `None`: any fresh enough node may answer.
    pub primary: Option<Reason>,
    /// It may leave something behind in its session.
    pub opaque: bool,
}

/// Objects looked at for one statement; beyond that it goes to the primary.
const REACH: usize = 20_000;

/// C functions of extensions that come with Postgres, volatile by label: they make values up, and any node may.
const HARMLESS: [&str; 9] = [
    "gen_random_bytes",
    "gen_random_uuid",
    "gen_salt",
    "normal_rand",
    "pgp_pub_encrypt",
    "pgp_sym_encrypt",
    "uuid_generate_v1",
    "uuid_generate_v1mc",
    "uuid_generate_v4",
];

/// C functions of extensions that run a text, whatever their label says.
const RUN_TEXTS: [&str; 8] =
    ["connectby", "crosstab", "crosstab2", "crosstab3", "crosstab4", "crosstab_hash", "dblink", "xpath_table"];

/// How a statement came to what decides it: names of objects, outermost first.
pub type Trail = Vec<String>;

/// Judges a statement whose text alone does not send it to the primary.
pub fn judge(catalog: &Catalog, path: &Path, facts: &Facts) -> Verdict {
    Walk::over(catalog, path, facts).0
}

/// The same with the way to the object that decides.
pub fn explain(catalog: &Catalog, path: &Path, facts: &Facts) -> (Verdict, Trail) {
    Walk::over(catalog, path, facts)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Object {
    Function(Oid),
    Relation(Oid),
    Type(Oid),
    Operator(Oid),
}

/// An object to be looked at, under which path, and through which other it was reached.
struct Step {
    object: Object,
    path: usize,
    from: Option<usize>,
}

pub(super) struct Walk<'a> {
    pub(super) catalog: &'a Catalog,
    /// The session's, then those of functions that set their own.
    paths: Vec<Path>,
    seen: HashSet<(Object, usize)>,
    steps: Vec<Step>,
    /// The result follows from more than tables.
    pub(super) elusive: Option<Elusive>,
}

/// What decided, and where: the step, or a name that leads nowhere.
pub(super) struct Found {
    pub(super) reason: Reason,
    at: Option<usize>,
    name: Option<String>,
}

pub(super) type Looked = Result<(), Found>;

impl<'a> Walk<'a> {
    pub(super) fn new(catalog: &'a Catalog, path: &Path) -> Walk<'a> {
        let (seen, steps) = (HashSet::new(), Vec::new());
        Walk { catalog, paths: vec![path.clone()], seen, steps, elusive: None }
    }

    fn over(catalog: &'a Catalog, path: &Path, facts: &Facts) -> (Verdict, Trail) {
        let mut walk = Walk::new(catalog, path);
        match walk.run(facts) {
            Ok(()) => (Verdict { primary: None, opaque: false }, Vec::new()),
            Err(found) => {
                let trail = walk.trail(&found);
                (Verdict { primary: Some(found.reason), opaque: is_opaque(found.reason) }, trail)
            }
        }
    }

    pub(super) fn run(&mut self, facts: &Facts) -> Looked {
        self.facts(facts, 0, None)?;
        self.anywhere()?;
        let mut at = 0;
        while at < self.steps.len() {
            if at > REACH {
                return Err(Found { reason: Reason::TooLong, at: None, name: None });
            }
            self.look(at)?;
            at += 1;
        }
        Ok(())
    }

    fn push(&mut self, object: Object, path: usize, from: Option<usize>) {
        if self.seen.insert((object, path)) {
            self.steps.push(Step { object, path, from });
        }
    }

    /// Those that were looked at.
    pub(super) fn relations(&self) -> impl Iterator<Item = Oid> {
        self.steps.iter().filter_map(|step| match step.object {
            Object::Relation(oid) => Some(oid),
            _ => None,
        })
    }

    fn eludes(&mut self, why: Elusive) {
        self.elusive = self.elusive.max(Some(why));
    }

    /// A function that is called, and not merely behind an operator, a cast or a type: those of C that are stable there
    /// look at settings, or at tables.
    fn calls(&mut self, function: &Function) {
        if matches!(function.body, Body::Trusted) && function.volatility != Volatility::Immutable {
            self.eludes(Elusive::Hidden);
        }
    }

    /// What any expression may use without naming it.
    fn anywhere(&mut self) -> Looked {
        let catalog = self.catalog;
        for &function in &catalog.free_casts {
            self.function(function, 0, None)?;
        }
        for oid in &catalog.free_operators {
            if catalog.operators.get(oid).is_some_and(|operator| catalog.is_reachable(operator, &self.paths[0])) {
                self.push(Object::Operator(*oid), 0, None);
            }
        }
        // types that hide the server's own names
        let place = self.paths[0].clone();
        let ahead = place.ahead_of_built_ins();
        for oid in &catalog.shadowing_types {
            let schema = catalog.types.get(oid).map(|found| found.schema);
            if ahead.is_none_or(|ahead| schema.is_some_and(|schema| ahead.contains(&schema))) {
                self.push(Object::Type(*oid), 0, None);
            }
        }
        Ok(())
    }

    /// The names of a text.
    fn facts(&mut self, facts: &Facts, path: usize, from: Option<usize>) -> Looked {
        for call in &facts.functions {
            self.called(call, facts, path, from)?;
        }
        for name in &facts.attributes {
            self.attribute(name, path, from);
        }
        for raw in &facts.operators {
            self.operator(raw, path, from)?;
        }
        for name in &facts.types {
            self.type_named(name, path, from)?;
        }
        for name in &facts.relations {
            self.relation(name, facts, path, from)?;
        }
        Ok(())
    }

    fn called(&mut self, call: &Call, facts: &Facts, path: usize, from: Option<usize>) -> Looked {
        let catalog = self.catalog;
        let place = self.paths[path].clone();
        let name = &call.function;
        let mut known = false;
        for oid in catalog.functions_named(name, &place) {
            if catalog.functions.get(&oid).is_some_and(|function| function.takes(call.arguments)) {
                known = true;
                self.call(oid, path, from);
            }
        }
        // a cast in the notation of a call, which a function of that name need not hide (`func_get_detail`); a type's length
        let may_cast = !known || call.arguments.is_none_or(|given| given == 1);
        let of_own = name.schema.as_deref() == Some("pg_catalog");
        let casts = may_cast && self.type_named(name, path, from).is_ok();
        let casts =
            casts && (!of_own || builtins::is_type(&name.name) || catalog.types_named(name, &place).count() > 0);
        if of_own || name.schema.is_none() {
            match functions::class(&name.name) {
                // where it counts, the text has sent the statement to the primary
                Some(_) => return Ok(()),
                None if catalog.harmless.contains(name.name.as_str()) => {
                    known = true;
                    self.eludes(Elusive::Hidden);
                }
                None => {}
            }
        }
        if known {
            return Ok(());
        }
        // clauses of GROUP BY, where they stand behind a comma
        if name.schema.is_none() && matches!(name.name.as_str(), "cube" | "rollup") {
            return Ok(());
        }
        // or a column in the notation of an attribute
        if casts || facts.attributes.contains(&name.name) {
            return Ok(());
        }
        Err(Found { reason: Reason::UnknownFunction, at: from, name: Some(name.to_string()) })
    }

    fn call(&mut self, oid: Oid, path: usize, from: Option<usize>) {
        if let Some(function) = self.catalog.functions.get(&oid) {
            self.calls(function);
        }
        self.push(Object::Function(oid), path, from);
    }

    /// `row.name` may call a function that takes a row.
    fn attribute(&mut self, name: &str, path: usize, from: Option<usize>) {
        let catalog = self.catalog;
        let place = self.paths[path].clone();
        let name = Name { schema: None, name: name.to_owned() };
        for oid in catalog.functions_named(&name, &place) {
            let takes_row = catalog.functions.get(&oid).is_some_and(|function| {
                let row = catalog.row_types.contains_key(&function.first);
                // a domain over a row type, or a pseudo-type
                let any = function.first != 0 && !catalog.is_plain(function.first);
                function.takes(Some(1)) && (row || any)
            });
            if takes_row {
                self.call(oid, path, from);
            }
        }
    }

    /// An operator as written, `OPERATOR(schema.name` where its schema is said.
    fn operator(&mut self, raw: &str, path: usize, from: Option<usize>) -> Looked {
        let catalog = self.catalog;
        let place = self.paths[path].clone();
        let unknown = || Found { reason: Reason::UnknownOperator, at: from, name: Some(raw.to_owned()) };
        let name = operator_name(raw).ok_or_else(unknown)?;
        let mut known = false;
        for oid in catalog.operators_named(&name, &place) {
            known = true;
            self.push(Object::Operator(oid), path, from);
        }
        if known { Ok(()) } else { Err(unknown()) }
    }

    fn type_named(&mut self, name: &Name, path: usize, from: Option<usize>) -> Looked {
        let catalog = self.catalog;
        let place = self.paths[path].clone();
        let element = Name { name: name.name.trim_start_matches('_').to_owned(), ..name.clone() };
        let mut known = name.schema.as_deref().is_some_and(is_built_in_schema);
        for name in [name, &element] {
            for oid in catalog.types_named(name, &place) {
                known = true;
                self.push(Object::Type(oid), path, from);
            }
            for oid in catalog.relations_named(name, &place) {
                known = true;
                self.columns(oid, path, from);
            }
        }
        if known {
            return Ok(());
        }
        Err(Found { reason: Reason::UnknownOperator, at: from, name: Some(name.to_string()) })
    }

    /// The types of a relation's columns.
    fn columns(&mut self, relation: Oid, path: usize, from: Option<usize>) {
        let catalog = self.catalog;
        for oid in catalog.relations.get(&relation).into_iter().flat_map(|relation| &relation.types) {
            self.push(Object::Type(*oid), path, from);
        }
    }

    fn relation(&mut self, name: &Name, facts: &Facts, path: usize, from: Option<usize>) -> Looked {
        let catalog = self.catalog;
        let place = self.paths[path].clone();
        let mut known = false;
        for oid in catalog.relations_named(name, &place) {
            known = true;
            self.push(Object::Relation(oid), path, from);
        }
        let own = match name.schema.as_deref() {
            Some(schema) => is_built_in_schema(schema),
            None => name.name.starts_with("pg_"),
        };
        if own && !known {
            self.eludes(Elusive::Relation);
        }
        // one of the server's own, or the name of a common table
        if known || own || (name.schema.is_none() && !facts.relations_exact) {
            return Ok(());
        }
        Err(Found { reason: Reason::Catalog, at: from, name: Some(name.to_string()) })
    }

    fn refs(&mut self, refs: &Refs, path: usize, from: Option<usize>) -> Looked {
        if let Some(reason) = refs.reason {
            return Err(Found { reason, at: from, name: None });
        }
        if refs.transient {
            self.eludes(Elusive::Transient);
        }
        for &oid in &refs.functions {
            self.function(oid, path, from)?;
            if let Some(function) = self.catalog.functions.get(&oid) {
                self.calls(function);
            }
        }
        for &oid in &refs.operators {
            self.push(Object::Operator(oid), path, from);
        }
        for &oid in &refs.relations {
            self.push(Object::Relation(oid), path, from);
        }
        for &oid in &refs.types {
            self.push(Object::Type(oid), path, from);
        }
        Ok(())
    }

    /// A function by OID: the server's own is judged at once.
    fn function(&mut self, oid: Oid, path: usize, from: Option<usize>) -> Looked {
        if oid < FIRST_USER_OID {
            if self.catalog.transient.contains(&oid) {
                self.eludes(Elusive::Transient);
            }
            return match self.catalog.hazards.get(&oid) {
                Some((name, reason)) => Err(Found { reason: *reason, at: from, name: Some(name.to_string()) }),
                None => Ok(()),
            };
        }
        self.push(Object::Function(oid), path, from);
        Ok(())
    }

    fn look(&mut self, at: usize) -> Looked {
        let Step { object, path, .. } = self.steps[at];
        match object {
            Object::Function(oid) => self.look_at_function(oid, path, at),
            Object::Relation(oid) => self.look_at_relation(oid, path, at),
            Object::Type(oid) => self.look_at_type(oid, path, at),
            Object::Operator(oid) if oid < FIRST_USER_OID => Ok(()),
            Object::Operator(oid) => match self.catalog.operators.get(&oid) {
                Some(operator) => self.function(operator.function, path, Some(at)),
                None => Err(gone(Reason::UnknownOperator, at)),
            },
        }
    }

    fn look_at_function(&mut self, oid: Oid, path: usize, at: usize) -> Looked {
        let catalog = self.catalog;
        let Some(function) = catalog.functions.get(&oid) else { return Err(gone(Reason::UnknownFunction, at)) };
        let path = match &function.path {
            Some(value) => self.path(catalog.path_of(value)),
            None if function.user_schemas.is_empty() => path,
            None => self.path(self.paths[path].with(&function.user_schemas)),
        };
        self.refs(&function.defaults, path, Some(at))?;
        for oid in &function.types {
            self.push(Object::Type(*oid), path, Some(at));
        }
        let trusted = matches!(function.body, Body::Trusted);
        let harmless = trusted && HARMLESS.contains(&&*function.name);
        if trusted && RUN_TEXTS.contains(&&*function.name) {
            return Err(gone(Reason::UnknownFunction, at));
        }
        if function.volatility == Volatility::Volatile && !harmless {
            return Err(gone(Reason::UnknownFunction, at));
        }
        if function.volatility == Volatility::Volatile {
            self.eludes(Elusive::Transient);
        }
        match &function.body {
            Body::Trusted => Ok(()),
            Body::Opaque => Err(gone(Reason::UnknownFunction, at)),
            Body::Text(facts) => {
                if let Some(reason) = of_text(facts) {
                    return Err(gone(reason, at));
                }
                if facts.transient {
                    self.eludes(Elusive::Transient);
                }
                self.facts(facts, path, Some(at))
            }
            Body::Bound(refs) => self.refs(refs, path, Some(at)),
            Body::Parts(parts) => parts.iter().try_for_each(|oid| self.function(*oid, path, Some(at))),
        }
    }

    fn look_at_relation(&mut self, oid: Oid, path: usize, at: usize) -> Looked {
        if oid < FIRST_USER_OID {
            self.eludes(Elusive::Relation);
            return match self.catalog.node_local.contains(&oid) {
                true => Err(gone(Reason::NodeLocal, at)),
                false => Ok(()),
            };
        }
        let catalog = self.catalog;
        let Some(relation) = catalog.relations.get(&oid) else { return Err(gone(Reason::Catalog, at)) };
        match relation.persistence {
            Persistence::Permanent => {}
            Persistence::Unlogged => return Err(gone(Reason::Unlogged, at)),
            Persistence::Temporary => return Err(gone(Reason::NodeLocal, at)),
        }
        match relation.kind {
            RelationKind::Table | RelationKind::Composite => {}
            RelationKind::Materialized => self.eludes(Elusive::Relation),
            RelationKind::Sequence => return Err(gone(Reason::Sequence, at)),
            RelationKind::Foreign => return Err(gone(Reason::Foreign, at)),
            RelationKind::View => match &relation.rule {
                Some(rule) => self.refs(rule, path, Some(at))?,
                None => return Err(gone(Reason::Catalog, at)),
            },
        }
        if relation.secured {
            self.eludes(Elusive::Secured);
            self.refs(&relation.policies, path, Some(at))?;
        }
        for oid in &relation.children {
            self.push(Object::Relation(*oid), path, Some(at));
        }
        self.columns(oid, path, Some(at));
        Ok(())
    }

    fn look_at_type(&mut self, oid: Oid, path: usize, at: usize) -> Looked {
        let catalog = self.catalog;
        if oid < FIRST_USER_OID {
            return Ok(());
        }
        if let Some(relation) = catalog.row_types.get(&oid) {
            self.columns(*relation, path, Some(at));
        }
        for function in catalog.casts_by_type.get(&oid).into_iter().flatten() {
            self.function(*function, path, Some(at))?;
        }
        let place = self.paths[path].clone();
        for operator in catalog.operators_by_type.get(&oid).into_iter().flatten() {
            if catalog.operators.get(operator).is_some_and(|operator| catalog.is_reachable(operator, &place)) {
                self.push(Object::Operator(*operator), path, Some(at));
            }
        }
        // an array of one, or a row type: what it is made of stands elsewhere
        let Some(found) = catalog.types.get(&oid) else { return Ok(()) };
        for function in &found.functions {
            self.function(*function, path, Some(at))?;
        }
        for oid in &found.types {
            self.push(Object::Type(*oid), path, Some(at));
        }
        self.refs(&found.checks, path, Some(at))
    }

    /// The number of a path.
    fn path(&mut self, path: Path) -> usize {
        if let Some(at) = self.paths.iter().position(|known| *known == path) {
            return at;
        }
        self.paths.push(path);
        self.paths.len() - 1
    }

    fn trail(&self, found: &Found) -> Trail {
        let mut trail: Trail = found.name.iter().cloned().collect();
        let mut at = found.at;
        while let Some(step) = at.and_then(|at| self.steps.get(at)) {
            trail.push(self.shown(step.object));
            at = step.from;
        }
        trail.reverse();
        trail
    }

    fn shown(&self, object: Object) -> String {
        let catalog = self.catalog;
        let (kind, oid, named) = match object {
            Object::Function(oid) => ("function", oid, catalog.functions.get(&oid).map(|f| (f.schema, &f.name))),
            Object::Relation(oid) => ("relation", oid, catalog.relations.get(&oid).map(|r| (r.schema, &r.name))),
            Object::Type(oid) => ("type", oid, catalog.types.get(&oid).map(|t| (t.schema, &t.name))),
            Object::Operator(oid) => ("operator", oid, catalog.operators.get(&oid).map(|o| (o.schema, &o.name))),
        };
        match named {
            Some((schema, name)) => format!("{kind} {}.{name}", catalog.schema_name(schema)),
            None => format!("{kind} {oid}"),
        }
    }
}

impl Catalog {
    /// A type that is neither a row nor stands for any: no attribute is looked up on it.
    fn is_plain(&self, oid: Oid) -> bool {
        const PSEUDO: [Oid; 7] = [2249, 2276, 2283, 2776, 5077, 5079, 3500];
        !PSEUDO.contains(&oid) && (oid < FIRST_USER_OID || self.types.get(&oid).is_some_and(|t| t.types.is_empty()))
    }
}

/// Why the text of a body sends its callers to the primary.
fn of_text(facts: &Facts) -> Option<Reason> {
    let left_behind = facts.effects.iter().any(|effect| *effect != Effect::Unknown)
        || (facts.effects.contains(&Effect::Unknown) && !facts.unknown_by_name);
    match facts.primary {
        Some(Reason::UnknownFunction | Reason::UnknownOperator) | None => {
            left_behind.then_some(Reason::UnknownFunction)
        }
        reason => reason,
    }
}

/// Whether such code may change the session out of sight.
fn is_opaque(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::Catalog | Reason::Unlogged | Reason::Foreign | Reason::Sequence | Reason::NodeLocal | Reason::Locking
    )
}

fn gone(reason: Reason, at: usize) -> Found {
    Found { reason, at: Some(at), name: None }
}

fn is_built_in_schema(name: &str) -> bool {
    matches!(name, "pg_catalog" | "information_schema")
}

/// `<=>`, or `OPERATOR ( schema . <=>`.
fn operator_name(raw: &str) -> Option<Name> {
    let Some((_, qualified)) = raw.split_once('(') else {
        return Some(Name { schema: None, name: raw.to_owned() });
    };
    let (schema, name) = qualified.trim_end_matches(')').split_once('.')?;
    let schema = schema.trim();
    let schema = match schema.strip_prefix('"').and_then(|s| s.strip_suffix('"')) {
        Some(quoted) => quoted.replace("\"\"", "\""),
        None => schema.to_ascii_lowercase(),
    };
    Some(Name { schema: Some(schema), name: name.trim().to_owned() })
}

/// The reason that the class of one of the server's own functions gives.
pub(super) fn reason_of(class: Class) -> Option<Reason> {
    match class {
        Class::Immutable | Class::Stable | Class::Transient | Class::VolatileHarmless => None,
        Class::Sequence => Some(Reason::Sequence),
        Class::Lock | Class::SessionLock | Class::UnlockAll => Some(Reason::Lock),
        Class::SetConfig => Some(Reason::Session),
        Class::SideEffect | Class::Opaque => Some(Reason::SideEffect),
    }
}
