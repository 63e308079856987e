//! search_path: from the session's settings, the role, the database or the server to the schemas it names
//! (`recomputeNamespacePath`).

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Catalog, Oid};

/// Paths kept per snapshot; sessions with yet others are judged each time.
const SCOPES: usize = 4096;

/// `PG_CATALOG_NAMESPACE` (`pg_namespace.dat`): on every path, also with what users and extensions add to it.
const PG_CATALOG: Oid = 11;

/// Where unqualified names are looked up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Path {
    /// It cannot be told: any schema may be on it.
    Unknown,
    Known {
        schemas: Vec<Oid>,
        /// Those that come before pg_catalog; it comes first unless it is named.
        ahead: usize,
    },
}

impl Path {
    pub fn reaches(&self, schema: Oid) -> bool {
        match self {
            Path::Unknown => true,
            Path::Known { schemas, .. } => schema == PG_CATALOG || schemas.contains(&schema),
        }
    }

    /// Objects of pg_catalog are found before those of this schema.
    pub fn comes_after_built_ins(&self, schema: Oid) -> bool {
        match self {
            Path::Unknown => false,
            Path::Known { schemas, ahead } => !schemas.iter().take(*ahead).any(|found| *found == schema),
        }
    }

    /// The same with these schemas, wherever on it they may be.
    pub(super) fn with(&self, more: &[Oid]) -> Path {
        let Path::Known { schemas, ahead } = self else { return Path::Unknown };
        // behind pg_catalog where all others are
        let place = if *ahead > 0 { &schemas[..*ahead] } else { schemas };
        let mut more: Vec<Oid> = more.iter().copied().filter(|schema| !place.contains(schema)).collect();
        let ahead = if *ahead > 0 { ahead + more.len() } else { 0 };
        more.extend(schemas);
        Path::Known { schemas: more, ahead }
    }

    /// The schemas whose objects hide those of pg_catalog; `None`: any may.
    pub fn ahead_of_built_ins(&self) -> Option<&[Oid]> {
        match self {
            Path::Unknown => None,
            Path::Known { schemas, ahead } => Some(schemas.get(..*ahead).unwrap_or(schemas)),
        }
    }
}

/// search_path as ALTER ROLE, ALTER DATABASE or the server's configuration sets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Default {
    /// `None`: of all roles.
    pub role: Option<Box<str>>,
    /// Only in this database.
    pub here: bool,
    pub value: Box<str>,
}

/// search_path as a session has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Setting {
    /// What role, database or server say.
    Inherited,
    /// As startup packets and `set_config` take it: `"$user", public`.
    Flat(String),
    /// As it stands behind `SET search_path =`: each item a schema.
    Sql(String),
}

/// What a session's names mean: by which snapshot, along which path.
#[derive(Debug)]
pub struct Scope {
    pub catalog: Arc<Catalog>,
    pub path: Path,
    /// Names snapshot and path; 0: not to be remembered.
    pub id: u64,
}

#[derive(Debug, std::default::Default)]
pub(super) struct Scopes(Mutex<HashMap<Path, u64>>);

impl Catalog {
    /// Where a session's unqualified names are looked up. `login` is who it logged in as, `role` who it is now.
    pub fn scope(self: &Arc<Self>, setting: &Setting, login: &str, role: &str) -> Scope {
        let items = match setting {
            Setting::Inherited => self.inherited(login).and_then(flat),
            Setting::Flat(value) => flat(value),
            Setting::Sql(value) => sql(value),
        };
        let path = items.map_or(Path::Unknown, |items| self.path(&items, role));
        let mut known = self.scopes.0.lock();
        let next = known.len() as u64 + 1;
        let id = match known.get(&path) {
            Some(id) => *id,
            None if known.len() < SCOPES => {
                let id = (self.generation << 16) | next;
                known.insert(path.clone(), id);
                id
            }
            None => 0,
        };
        drop(known);
        Scope { catalog: self.clone(), path, id }
    }

    /// The most particular setting counts (`ApplySetting`'s order, from last to first).
    fn inherited(&self, login: &str) -> Option<&str> {
        let of = |mine: bool, here: bool| {
            let fits = |d: &&Default| d.here == here && d.role.as_deref() == mine.then_some(login);
            self.defaults.iter().find(fits).map(|d| &*d.value)
        };
        of(true, true).or_else(|| of(true, false)).or_else(|| of(false, true)).or_else(|| of(false, false))
    }

    /// Names of schemas to a path; those that are not there are passed over.
    pub(super) fn path(&self, items: &[String], role: &str) -> Path {
        let mut schemas = Vec::new();
        let mut ahead = 0;
        for item in items {
            let name = if item == "$user" { role } else { item };
            if name == "pg_catalog" {
                ahead = schemas.len();
            } else if let Some(schema) = self.schema(name) {
                schemas.push(schema);
            }
        }
        Path::Known { schemas, ahead }
    }

    /// The path of a function that sets its own.
    pub(super) fn path_of(&self, value: &str) -> Path {
        // whose it is then is the owner or the caller, as SECURITY says
        let names_user = |items: &[String]| items.iter().any(|item| item == "$user");
        match flat(value) {
            Some(items) if !names_user(&items) => self.path(&items, ""),
            _ => Path::Unknown,
        }
    }
}

/// The role that `SET role =` or a startup packet names.
pub fn role(value: &Setting) -> Option<String> {
    match value {
        Setting::Inherited => None,
        Setting::Flat(name) => Some(name.clone()),
        Setting::Sql(value) => sql(value)?.pop(),
    }
}

/// The items of a list of identifiers (`SplitIdentifierString`); `None` where it is none.
pub(super) fn flat(value: &str) -> Option<Vec<String>> {
    let mut items = Vec::new();
    let mut rest = value.trim();
    if rest.is_empty() {
        return Some(items);
    }
    loop {
        let (item, behind) = if let Some(quoted) = rest.strip_prefix('"') {
            unquoted(quoted, '"')?
        } else {
            let end = rest.find([',', ' ', '\t', '\n', '\r']).unwrap_or(rest.len());
            let (item, behind) = rest.split_at(end);
            (item.to_ascii_lowercase(), behind)
        };
        if item.is_empty() {
            // a schema of no name is passed over
            items.push(String::new());
        } else {
            items.push(item);
        }
        let behind = behind.trim_start();
        if behind.is_empty() {
            return Some(items);
        }
        rest = behind.strip_prefix(',')?.trim_start();
    }
}

/// The items behind `SET search_path =`: identifiers and plain strings, each the name of a schema.
fn sql(value: &str) -> Option<Vec<String>> {
    let mut items = Vec::new();
    let mut rest = value.trim();
    loop {
        let (item, behind) = if let Some(string) = rest.strip_prefix('\'') {
            let (item, behind) = unquoted(string, '\'')?;
            if item.contains('\\') {
                return None;
            }
            (item, behind)
        } else if let Some(quoted) = rest.strip_prefix('"') {
            unquoted(quoted, '"')?
        } else {
            let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).unwrap_or(rest.len());
            let (item, behind) = rest.split_at(end);
            if item.is_empty() {
                return None;
            }
            (item.to_ascii_lowercase(), behind)
        };
        items.push(item);
        let behind = behind.trim_start();
        if behind.is_empty() {
            return Some(items);
        }
        rest = behind.strip_prefix(',')?.trim_start();
    }
}

/// What stands before the closing quote, doubled quotes undone, and what is left.
fn unquoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut item = String::new();
    let mut rest = text;
    loop {
        let (before, behind) = rest.split_once(quote)?;
        item.push_str(before);
        match behind.strip_prefix(quote) {
            Some(more) => {
                item.push(quote);
                rest = more;
            }
            None => return Some((item, behind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog(defaults: &[(Option<&str>, bool, &str)]) -> Arc<Catalog> {
        let schemas = [("public", 20001), ("app", 20002), ("Odd", 20003), ("reader", 20004)];
        Arc::new(Catalog {
            generation: 3,
            schemas: schemas.into_iter().map(|(name, oid)| (name.into(), oid)).collect(),
            defaults: defaults
                .iter()
                .map(|(role, here, value)| Default { role: role.map(Into::into), here: *here, value: (*value).into() })
                .collect(),
            ..Catalog::default()
        })
    }

    fn known(schemas: &[Oid], ahead: usize) -> Path {
        Path::Known { schemas: schemas.to_vec(), ahead }
    }

    #[test]
    fn reads_settings_as_the_server_does() {
        let catalog = catalog(&[]);
        let path = |setting: Setting| catalog.scope(&setting, "app", "reader").path.clone();
        let flat = |value: &str| path(Setting::Flat(value.into()));
        let sql = |value: &str| path(Setting::Sql(value.into()));
        assert_eq!(flat("\"$user\", public"), known(&[20004, 20001], 0));
        assert_eq!(flat("App, pg_catalog ,public"), known(&[20002, 20001], 1));
        assert_eq!(flat("\"Odd\",missing"), known(&[20003], 0));
        assert_eq!(flat(""), known(&[], 0));
        assert_eq!(flat("a b"), Path::Unknown);
        assert_eq!(sql("app, 'Odd', \"public\""), known(&[20002, 20003, 20001], 0));
        // one schema of that odd name
        assert_eq!(sql("'app, public'"), known(&[], 0));
        assert_eq!(sql("E'app'"), Path::Unknown);
        assert_eq!(sql("''"), known(&[], 0));
        assert_eq!(path(Setting::Inherited), Path::Unknown);
    }

    #[test]
    fn the_most_particular_default_counts() {
        let server = (None, false, "public");
        let cases: [(&[_], _); 4] = [
            (&[server], 20001),
            (&[server, (None, true, "app")], 20002),
            (&[server, (None, true, "app"), (Some("app"), false, "reader")], 20004),
            (&[(Some("app"), true, "\"Odd\""), (Some("app"), false, "reader"), (Some("x"), true, "app")], 20003),
        ];
        for (defaults, schema) in cases {
            let scope = catalog(defaults).scope(&Setting::Inherited, "app", "app");
            assert_eq!(scope.path, known(&[schema], 0), "{defaults:?}");
        }
    }

    #[test]
    fn more_schemas_count_where_they_may_be() {
        assert_eq!(known(&[1, 2], 0).with(&[2, 3]), known(&[3, 1, 2], 0));
        assert_eq!(known(&[1, 2], 1).with(&[2, 3]), known(&[2, 3, 1, 2], 3));
        assert_eq!(Path::Unknown.with(&[1]), Path::Unknown);
        for path in [known(&[1, 2], 0), known(&[1, 2], 1), known(&[], 0)] {
            let once = path.with(&[2, 3]);
            assert_eq!(once.with(&[3, 2]), once);
        }
    }

    #[test]
    fn equal_paths_are_one_scope() {
        let catalog = catalog(&[]);
        let id = |value: &str| catalog.scope(&Setting::Flat(value.into()), "a", "a").id;
        assert_eq!(id("public, gone"), id("\"public\""));
        assert_ne!(id("public"), id("app"));
        assert_eq!(id("app") >> 16, 3);
    }
}
