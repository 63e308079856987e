//! Which reads may be kept.

use std::time::Duration;

use crate::cache::changes::Reads;
use crate::catalog::path::Scope;
use crate::catalog::sources::{self, Elusive};
use crate::sql::{Effect, Facts, Name, classify};

/// Why a read goes past the cache, or its result is not kept: the closed list of SHOW CACHE and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// `pgweir.cache = 'off'`, or a hint.
    Asked,
    /// It looks at the clock, the session, the catalogs or chance.
    Transient,
    /// Only named reads are kept, and it is none.
    Unnamed,
    /// The catalog does not know, or not yet, what it reads and calls.
    Unresolved,
    /// A relation that it reads is of a kind that no change is known of, or whose rows depend on who asks.
    Relation,
    /// Asked for in a way that is not understood whole: several statements at once, a cursor, a flushed pipeline.
    Shape,
    /// The result is larger than `cache.max_entry_bytes`.
    TooLarge,
    /// The reply was an error, a part, or had something beside its rows.
    Incomplete,
    /// What it read has changed meanwhile.
    Changed,
    /// The replica that answered may have lacked the last change.
    Lagging,
    /// Changes may go unseen.
    Closed,
}

/// All of them, in the order of SHOW CACHE.
pub const REFUSALS: [(Refusal, &str); 11] = [
    (Refusal::Asked, "asked"),
    (Refusal::Transient, "transient"),
    (Refusal::Unnamed, "unnamed"),
    (Refusal::Unresolved, "unresolved"),
    (Refusal::Relation, "relation"),
    (Refusal::Shape, "shape"),
    (Refusal::TooLarge, "too_large"),
    (Refusal::Incomplete, "incomplete"),
    (Refusal::Changed, "changed"),
    (Refusal::Lagging, "lagging"),
    (Refusal::Closed, "closed"),
];

/// Whether reads are kept that nobody has named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Every read of which it is known what it depends on.
    Known,
    /// Those that a hint gives a time to live.
    Named,
}

/// What may be kept, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    pub reads: Reads,
    pub ttl: Duration,
}

/// Judges one statement that runs on its own, outside any transaction. `resolve` asks the catalog what it reads.
///
/// # Errors
/// The first reason why its result may not be kept.
pub fn admit(
    facts: &Facts,
    choice: Choice,
    ttl: Duration,
    resolve: impl FnOnce() -> Result<Reads, Refusal>,
) -> Result<Admitted, Refusal> {
    if facts.hints.no_cache {
        return Err(Refusal::Asked);
    }
    if facts.transient {
        return Err(Refusal::Transient);
    }
    if facts.relations.iter().any(is_system) {
        return Err(Refusal::Relation);
    }
    let harmless = match choice {
        Choice::Known => facts.is_open() && facts.effects.iter().all(|effect| *effect == Effect::Unknown),
        Choice::Named => facts.primary.is_none() && facts.effects.is_empty(),
    };
    if facts.statements != 1 || !facts.control.is_empty() || !harmless {
        return Err(Refusal::Shape);
    }
    let named = facts.hints.cache_ttl_ms.map(Duration::from_millis);
    let reads = match (choice, named) {
        (Choice::Named, None) => return Err(Refusal::Unnamed),
        // The operator answers for what it reads; any write may be one of it.
        (Choice::Named, Some(_)) => Reads::Anything,
        (Choice::Known, None) => resolve()?,
        // By its time to live, where it is not known what changes it. What changes by itself is not kept even so.
        (Choice::Known, Some(_)) => match resolve() {
            Err(Refusal::Relation) => Reads::Anything,
            resolved => resolved?,
        },
    };
    // No longer than the bound of all.
    Ok(Admitted { reads, ttl: named.map_or(ttl, |named| named.min(ttl)) })
}

/// Why the result of a text is not kept where a session with this scope asks for it alone; `None`: it is. `choice`:
/// `None` where nothing is kept.
pub fn explain(text: &str, scope: Option<&Scope>, choice: Option<Choice>) -> Option<&'static str> {
    let facts = classify::classify(text);
    let sources = || match scope.map(|scope| sources::sources(&scope.catalog, &scope.path, &facts)) {
        Some(sources) => sources.alone().map(Reads::Tables).map_err(Refusal::from),
        None => Err(Refusal::Unresolved),
    };
    let judged = choice.ok_or(Refusal::Closed).and_then(|choice| admit(&facts, choice, Duration::MAX, sources));
    judged.err().map(|why| REFUSALS[why as usize].1)
}

impl From<Elusive> for Refusal {
    fn from(why: Elusive) -> Refusal {
        match why {
            Elusive::Unknown => Refusal::Unresolved,
            Elusive::Transient | Elusive::Hidden => Refusal::Transient,
            Elusive::Secured | Elusive::Relation => Refusal::Relation,
        }
    }
}

/// A table of the server's own, of whose changes nobody tells. Names that begin with `pg_` are reserved for them.
fn is_system(name: &Name) -> bool {
    match name.schema.as_deref() {
        Some(schema) => schema == "information_schema" || schema.starts_with("pg_"),
        None => name.name.starts_with("pg_"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::classify::classify;

    fn judged(sql: &str, choice: Choice) -> Result<Admitted, Refusal> {
        admit(&classify(sql), choice, Duration::from_secs(300), || Err(Refusal::Unresolved))
    }

    #[test]
    fn what_does_not_follow_from_its_rows_is_refused() {
        for (sql, why) in [
            ("SELECT now()", Refusal::Transient),
            ("SELECT a FROM t WHERE b < current_timestamp", Refusal::Transient),
            ("SELECT 'now'::timestamp", Refusal::Transient),
            ("SELECT current_user", Refusal::Transient),
            ("SELECT current_setting('my.tenant')", Refusal::Transient),
            ("SELECT random() FROM t", Refusal::Transient),
            ("SELECT * FROM t TABLESAMPLE system (1)", Refusal::Transient),
            ("SELECT relname FROM pg_class", Refusal::Relation),
            ("SELECT relname FROM pg_catalog.pg_class", Refusal::Relation),
            ("SELECT * FROM information_schema.tables", Refusal::Relation),
            ("EXPLAIN SELECT 1", Refusal::Transient),
            ("SELECT has_table_privilege('t', 'select')", Refusal::Transient),
            ("SELECT 1; SELECT 2", Refusal::Shape),
            ("SELECT nextval('s')", Refusal::Transient),
            ("SELECT * FROM t FOR UPDATE", Refusal::Shape),
            ("INSERT INTO t VALUES (1)", Refusal::Shape),
            ("WITH w AS (DELETE FROM t RETURNING *) SELECT * FROM w", Refusal::Shape),
            ("SELECT a FROM pg_temp.t", Refusal::Relation),
            ("SHOW timezone", Refusal::Shape),
            ("", Refusal::Shape),
            ("/* pgweir: nocache */ SELECT 1", Refusal::Asked),
        ] {
            for choice in [Choice::Named, Choice::Known] {
                assert_eq!(judged(sql, choice), Err(why), "{sql}");
            }
        }
    }

    #[test]
    fn a_named_read_is_kept_as_long_as_it_says_and_no_longer_than_all() {
        let named = |ttl: &str| judged(&format!("/* pgweir: cache ttl={ttl} */ SELECT a FROM t"), Choice::Named);
        assert_eq!(named("5s"), Ok(Admitted { reads: Reads::Anything, ttl: Duration::from_secs(5) }));
        assert_eq!(named("1h").or(named("3600s")).map(|kept| kept.ttl), Ok(Duration::from_secs(300)));
        assert_eq!(judged("SELECT a FROM t", Choice::Named), Err(Refusal::Unnamed));
        // A name is no leave to keep what changes by itself.
        assert_eq!(judged("/* pgweir: cache ttl=5s */ SELECT now()", Choice::Named), Err(Refusal::Transient));
    }

    #[test]
    fn what_the_catalog_does_not_know_is_refused() {
        assert_eq!(judged("SELECT a FROM t", Choice::Known), Err(Refusal::Unresolved));
        assert_eq!(judged("SELECT f(1)", Choice::Known), Err(Refusal::Unresolved));
        assert_eq!(judged("SELECT f(1)", Choice::Named), Err(Refusal::Shape));
        let known = || Ok(Reads::Tables([crate::cache::Table(7)].into()));
        let kept = admit(&classify("SELECT a FROM t"), Choice::Known, Duration::from_secs(3), known);
        assert_eq!(kept.map(|kept| kept.ttl), Ok(Duration::from_secs(3)));
    }

    #[test]
    fn it_is_told_beforehand() {
        assert_eq!(explain("SELECT now()", None, Some(Choice::Known)), Some("transient"));
        assert_eq!(explain("SELECT a FROM t", None, Some(Choice::Known)), Some("unresolved"));
        assert_eq!(explain("/* pgweir: cache ttl=5s */ SELECT a FROM t", None, Some(Choice::Named)), None);
        assert_eq!(explain("SELECT 1", None, None), Some("closed"));
    }

    #[test]
    fn refusals_stand_in_their_order() {
        for (n, (refusal, _)) in REFUSALS.iter().enumerate() {
            assert_eq!(*refusal as usize, n);
        }
    }
}
