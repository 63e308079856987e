//! Settings of a session (`SET`, `RESET`, startup options): followed with the transaction's semantics, and said
//! again as a difference to whichever server serves the session next.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Freshness;
use crate::freshness::Lsn;
use crate::session::datestyle;
use crate::sql::RouteHint;
use crate::sql::settings::truth;

/// A setting's value, in the form in which it can be said again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Value {
    /// The flat string that startup packets and `set_config` take.
    Flat(String),
    /// What stands behind `SET name =`.
    Sql(String),
}

impl Value {
    /// The value without the quotes that SET may have around it, in lower case: enough for keywords.
    pub fn keyword(&self) -> String {
        let (Value::Flat(text) | Value::Sql(text)) = self;
        text.trim().trim_matches(['\'', '"']).to_ascii_lowercase()
    }
}

/// Settings that change neither what a text means nor what a read returns. Sorted.
pub const HARMLESS: [&str; 15] = [
    "application_name",
    "client_min_messages",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "lock_timeout",
    "log_min_duration_statement",
    "maintenance_work_mem",
    "statement_timeout",
    "synchronous_commit",
    "temp_buffers",
    "transaction_timeout",
    "work_mem",
];

/// Settings by lower-case name. Cheap to clone; equal maps are mostly the same allocation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Settings(Arc<Inner>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Inner {
    values: BTreeMap<String, Value>,
    routing: Routing,
}

/// What the settings ask of each statement's routing and of the cache, read once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Routing {
    route: Option<RouteHint>,
    freshness: Option<Freshness>,
    token: Option<Lsn>,
    serializable: bool,
    uncached: bool,
}

impl Routing {
    fn of(values: &BTreeMap<String, Value>) -> Routing {
        let keyword = |name| values.get(name).map(Value::keyword);
        Routing {
            route: match keyword("pgweir.route").as_deref() {
                Some("primary") => Some(RouteHint::Primary),
                Some("replica") => Some(RouteHint::Replica),
                _ => None,
            },
            freshness: match keyword("pgweir.freshness").as_deref() {
                Some("eventual") => Some(Freshness::Eventual),
                Some("session") => Some(Freshness::Session),
                Some("table") => Some(Freshness::Table),
                _ => None,
            },
            token: keyword("pgweir.lsn")
                .filter(|token| !token.is_empty())
                .map(|token| token.parse().unwrap_or(Lsn::MAX)),
            serializable: keyword("default_transaction_isolation").as_deref() == Some("serializable"),
            uncached: keyword("pgweir.cache").as_deref() == Some("off"),
        }
    }
}

impl Settings {
    pub fn is_empty(&self) -> bool {
        self.0.values.is_empty()
    }

    pub fn set(&mut self, name: &str, value: Value) {
        self.change(|values| _ = values.insert(name.to_ascii_lowercase(), value));
    }

    pub fn remove(&mut self, name: &str) {
        if self.0.values.contains_key(name) {
            self.change(|values| _ = values.remove(name));
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut BTreeMap<String, Value>)) {
        let inner = Arc::make_mut(&mut self.0);
        change(&mut inner.values);
        inner.routing = Routing::of(&inner.values);
    }

    pub fn value(&self, name: &str) -> Option<&Value> {
        self.0.values.get(name)
    }

    /// What the session has said; a role's own is not known. `None`: nothing that can be read, or no bound.
    pub fn statement_timeout(&self) -> Option<Duration> {
        let said = self.value("statement_timeout")?.keyword();
        let digits = said.find(|c: char| !c.is_ascii_digit()).unwrap_or(said.len());
        let (number, unit) = said.split_at(digits);
        let number = number.parse::<u32>().ok().filter(|number| *number > 0)?;
        let unit = match unit.trim() {
            "" | "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "min" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            "d" => Duration::from_secs(86400),
            _ => return None,
        };
        Some(unit * number)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.values.iter().map(|(n, v)| (n.as_str(), v))
    }

    /// The strings of SQL that bring a server in state `self` to `wanted`, in this order; none when it is there already.
    ///
    /// A server reads the whole of a string before it runs any of it, so what decides how it reads one has a string of its
    /// own: the encoding is `wanted`'s there, and plain strings are as the standard has them until all else is said.
    /// Who the session is comes first when it falls back (privileges return, which the others may need) and last when it
    /// is taken up; setting session_authorization resets role, so it stands before role.
    pub fn difference(&self, wanted: &Settings) -> Vec<String> {
        if Arc::ptr_eq(&self.0, &wanted.0) || self.0 == wanted.0 {
            return Vec::new();
        }
        [self.syntax(wanted), self.others(wanted)].into_iter().filter(|sql| !sql.is_empty()).collect()
    }

    fn syntax(&self, wanted: &Settings) -> String {
        let mut sql = String::new();
        match wanted.value(ENCODING) {
            value if self.value(ENCODING) == value => {}
            Some(value) => say(&mut sql, ENCODING, value),
            None => sql.push_str("RESET client_encoding;"),
        }
        if self.value(STRINGS).is_some() {
            sql.push_str("RESET standard_conforming_strings;");
        }
        sql
    }

    fn others(&self, wanted: &Settings) -> String {
        let mut sql = String::new();
        let is_other = |n: &str| !is_identity(n) && n != ENCODING && n != STRINGS;
        let identity_differs = IDENTITY.iter().any(|n| self.value(n) != wanted.value(n));
        let some_differ =
            |of: &Settings, other: &Settings| of.iter().any(|(n, value)| is_other(n) && other.value(n) != Some(value));
        let others_differ = some_differ(self, wanted) || some_differ(wanted, self);
        let identity_left = (identity_differs || others_differ) && IDENTITY.iter().any(|n| self.value(n).is_some());
        if identity_left {
            sql.push_str("RESET SESSION AUTHORIZATION;RESET ROLE;");
        }
        for (name, _) in self.iter().filter(|(n, _)| is_other(n) && wanted.value(n).is_none()) {
            let _ = write!(sql, "RESET {};", quoted(name));
        }
        let differs = |(n, v): &(&str, &Value)| is_other(n) && self.value(n) != Some(v);
        // Others name what is found by it (default_text_search_config).
        let (path, others) = (wanted.0.values.get_key_value(PATH), wanted.iter().filter(|(n, _)| *n != PATH));
        let path = path.map(|(n, v)| (n.as_str(), v));
        for (name, value) in path.into_iter().chain(others).filter(differs) {
            // What it does not name would stay as the connection has it.
            if name == datestyle::NAME && self.value(name).is_some() {
                let _ = write!(sql, "RESET {name};");
            }
            say(&mut sql, name, value);
        }
        if let Some(value) = wanted.value(STRINGS) {
            say(&mut sql, STRINGS, value);
        }
        for name in IDENTITY.iter().filter(|_| identity_differs || identity_left) {
            if let Some(value) = wanted.value(name) {
                say(&mut sql, name, value);
            }
        }
        sql
    }
}

const PATH: &str = "search_path";
const ENCODING: &str = "client_encoding";
const STRINGS: &str = "standard_conforming_strings";
const IDENTITY: [&str; 2] = ["session_authorization", "role"];

fn is_identity(name: &str) -> bool {
    IDENTITY.contains(&name)
}

fn say(sql: &mut String, name: &str, value: &Value) {
    let _ = match value {
        Value::Sql(text) => write!(sql, "SET {} = {text};", quoted(name)),
        Value::Flat(text) => write!(sql, "SELECT pg_catalog.set_config({}, {}, false);", literal(name), literal(text)),
    };
}

/// A setting's name as SQL: each part of a custom `a.b` name quoted for itself.
fn quoted(name: &str) -> String {
    let part = |p: &str| format!("\"{}\"", p.replace('"', "\"\""));
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// A string literal that reads the same whatever standard_conforming_strings says.
pub fn literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if text.contains('\\') { format!(" E'{}'", doubled.replace('\\', "\\\\")) } else { format!("'{doubled}'") }
}

/// The settings of one client, through its transactions.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    /// As the client asked at startup: what RESET and DISCARD ALL return to.
    base: Settings,
    current: Settings,
    /// As they were at BEGIN and at each savepoint since.
    saved: Vec<(Option<String>, Settings)>,
}

impl Parameters {
    pub fn new(base: Settings) -> Parameters {
        Parameters { current: base.clone(), base, saved: Vec::new() }
    }

    pub fn base(&self) -> &Settings {
        &self.base
    }

    pub fn current(&self) -> &Settings {
        &self.current
    }

    pub fn set(&mut self, name: &str, value: Value) {
        self.current.set(name, value);
    }

    /// Where `pgweir.route` sends the session's reads.
    pub fn route(&self) -> Option<RouteHint> {
        self.current.0.routing.route
    }

    /// What `pgweir.freshness` promises to the session's reads.
    pub fn freshness(&self) -> Option<Freshness> {
        self.current.0.routing.freshness
    }

    /// `pgweir.lsn`: what a node must have replayed for the session's reads. One that cannot be read is beyond all nodes.
    pub fn token(&self) -> Option<Lsn> {
        self.current.0.routing.token
    }

    /// Each of its transactions is serializable, which no standby offers.
    pub fn is_serializable(&self) -> bool {
        self.current.0.routing.serializable
    }

    /// It wants to know nothing of the cache.
    pub fn is_uncached(&self) -> bool {
        self.current.0.routing.uncached
    }

    /// Its transactions are READ ONLY where they do not say otherwise.
    pub fn defaults_to_read_only(&self) -> bool {
        let value = self.current.value("default_transaction_read_only");
        value.is_some_and(|value| truth(value.keyword().as_bytes()) == Some(true))
    }

    /// Back to what the client asked for at startup.
    pub fn reset(&mut self, name: &str) {
        match self.base.value(name) {
            Some(value) => self.current.set(name, value.clone()),
            None => self.current.remove(name),
        }
    }

    pub fn reset_all(&mut self) {
        // RESET ALL leaves the session's identity alone (GUC_NO_RESET_ALL).
        let mut settings = self.base.clone();
        for name in IDENTITY {
            match self.current.value(name) {
                Some(value) => settings.set(name, value.clone()),
                None => settings.remove(name),
            }
        }
        self.current = settings;
    }

    /// DISCARD ALL: RESET ALL and the identity too.
    pub fn discard_all(&mut self) {
        self.current = self.base.clone();
    }

    /// What the server says of a session at rest.
    pub fn learn(&mut self, settings: Settings) {
        self.current = settings;
        self.saved.clear();
    }

    /// A transaction block opens; again within one, Postgres only warns.
    pub fn begin(&mut self) {
        if self.saved.is_empty() {
            self.saved.push((None, self.current.clone()));
        }
    }

    pub fn commit(&mut self) {
        self.saved.clear();
    }

    pub fn rollback(&mut self) {
        if let Some((_, settings)) = self.saved.drain(..).next() {
            self.current = settings;
        }
    }

    pub fn savepoint(&mut self, name: &str) {
        self.saved.push((Some(name.to_owned()), self.current.clone()));
    }

    /// Undoes what came after the savepoint and keeps the savepoint.
    pub fn rollback_to(&mut self, name: &str) {
        if let Some(at) = self.position(name) {
            self.current = self.saved[at].1.clone();
            self.saved.truncate(at + 1);
        }
    }

    pub fn release(&mut self, name: &str) {
        if let Some(at) = self.position(name) {
            self.saved.truncate(at);
        }
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.saved.iter().rposition(|(n, _)| n.as_deref() == Some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(text: &str) -> Value {
        Value::Sql(text.to_owned())
    }

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let mut s = Settings::default();
        pairs.iter().for_each(|(n, v)| s.set(n, sql(v)));
        s
    }

    #[test]
    fn says_only_the_difference() {
        let a = settings(&[("work_mem", "'4MB'"), ("geqo", "off")]);
        let b = settings(&[("geqo", "off"), ("my.x", "1")]);
        assert!(a.difference(&a.clone()).is_empty());
        assert!(a.difference(&settings(&[("geqo", "off"), ("work_mem", "'4MB'")])).is_empty());
        assert_eq!(a.difference(&b), ["RESET \"work_mem\";SET \"my\".\"x\" = 1;"]);
    }

    #[test]
    fn flat_values_go_through_set_config() {
        let mut s = Settings::default();
        s.set("Search_Path", Value::Flat("a, \"B'\\\"".into()));
        let said = Settings::default().difference(&s);
        let want = "SELECT pg_catalog.set_config('search_path',  E'a, \"B''\\\\\"', false);";
        assert_eq!(said, [want]);
    }

    #[test]
    fn the_path_comes_first_and_half_a_datestyle_begins_anew() {
        let a = settings(&[("datestyle", "'sql, dmy'")]);
        let b = settings(&[("search_path", "s"), ("default_text_search_config", "c"), ("datestyle", "iso")]);
        let want = "SET \"search_path\" = s;RESET datestyle;SET \"datestyle\" = iso;\
                    SET \"default_text_search_config\" = c;";
        assert_eq!(a.difference(&b), [want]);
    }

    #[test]
    fn identity_falls_back_first_and_is_taken_up_last() {
        let a = settings(&[("role", "low"), ("z", "1")]);
        let b = settings(&[("role", "r"), ("session_authorization", "s"), ("a", "1")]);
        let want = "RESET SESSION AUTHORIZATION;RESET ROLE;RESET \"z\";SET \"a\" = 1;\
                    SET \"session_authorization\" = s;SET \"role\" = r;";
        assert_eq!(a.difference(&b), [want]);
        // The role may not change what the session may.
        let c = settings(&[("role", "low")]);
        let want = "RESET SESSION AUTHORIZATION;RESET ROLE;RESET \"z\";SET \"role\" = low;";
        assert_eq!(a.difference(&c), [want]);
    }

    #[test]
    fn what_decides_how_the_rest_is_read_is_said_first_and_apart() {
        let sjis = settings(&[("client_encoding", "sjis"), ("standard_conforming_strings", "off")]);
        let plain = settings(&[("a.b", "'\\'")]);
        let apart = "RESET client_encoding;RESET standard_conforming_strings;";
        assert_eq!(sjis.difference(&plain), [apart, "SET \"a\".\"b\" = '\\';"]);
        assert_eq!(sjis.difference(&Settings::default()), [apart]);
        let back = ["SET \"client_encoding\" = sjis;", "RESET \"a\".\"b\";SET \"standard_conforming_strings\" = off;"];
        assert_eq!(plain.difference(&sjis), back);
        let both = settings(&[("standard_conforming_strings", "off"), ("a.b", "'\\'")]);
        let other = settings(&[("standard_conforming_strings", "off")]);
        let want =
            ["RESET standard_conforming_strings;", "SET \"a\".\"b\" = '\\';SET \"standard_conforming_strings\" = off;"];
        assert_eq!(other.difference(&both), want);
    }

    #[test]
    fn rollback_undoes_and_commit_keeps() {
        let mut p = Parameters::new(settings(&[("a", "0")]));
        p.begin();
        p.set("a", sql("1"));
        p.rollback();
        assert_eq!(p.current().value("a"), Some(&sql("0")));
        p.begin();
        p.set("a", sql("2"));
        p.commit();
        p.rollback();
        assert_eq!(p.current().value("a"), Some(&sql("2")));
        p.reset("a");
        assert_eq!(p.current().value("a"), Some(&sql("0")));
    }

    #[test]
    fn savepoints_nest_and_shadow() {
        let mut p = Parameters::default();
        p.begin();
        p.set("a", sql("1"));
        p.savepoint("s");
        p.set("a", sql("2"));
        p.savepoint("s");
        p.set("a", sql("3"));
        p.rollback_to("s");
        assert_eq!(p.current().value("a"), Some(&sql("2")));
        p.release("s");
        p.set("a", sql("4"));
        p.rollback_to("s");
        assert_eq!(p.current().value("a"), Some(&sql("1")));
        p.rollback();
        assert!(p.current().is_empty());
    }

    #[test]
    fn reset_all_keeps_the_role_and_discard_all_does_not() {
        let mut p = Parameters::default();
        p.set("role", sql("r"));
        p.set("a", sql("1"));
        p.reset_all();
        assert_eq!((p.current().value("role"), p.current().value("a")), (Some(&sql("r")), None));
        p.discard_all();
        assert!(p.current().is_empty());
    }
}
