//! Which reads may be kept.

use std::time::Duration;

use crate::cache::changes::Reads;
use crate::cache::rules::{Ruled, Rules, Sum, shortest};
use crate::catalog::path::Scope;
use crate::catalog::publication::Publication;
use crate::catalog::sources::{self, Elusive, Sources};
use crate::sql::{Effect, Facts, Name, classify, fingerprint};

/// Why a read goes past the cache, or its result is not kept: the closed list of SHOW CACHE and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// `pgweir.cache = 'off'`, or a hint.
    Asked,
    /// It looks at the clock, the session, the catalogs or chance.
    Transient,
    /// Only named reads are kept, and it is none.
    Unnamed,
    /// A rule says so.
    Rule,
    /// The catalog does not know, or not yet, what it reads and calls.
    Unresolved,
    /// A relation that it reads is of a kind that no change is known of, or whose rows depend on who asks.
    Relation,
    /// The publication does not tell of changes of a table that it reads.
    Unpublished,
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
    /// It is asked for the first time, and results of its statement are hardly ever asked for again.
    Once,
}

/// All of them, in the order of SHOW CACHE.
pub const REFUSALS: [(Refusal, &str); 14] = [
    (Refusal::Asked, "asked"),
    (Refusal::Transient, "transient"),
    (Refusal::Unnamed, "unnamed"),
    (Refusal::Rule, "rule"),
    (Refusal::Unresolved, "unresolved"),
    (Refusal::Relation, "relation"),
    (Refusal::Unpublished, "unpublished"),
    (Refusal::Shape, "shape"),
    (Refusal::TooLarge, "too_large"),
    (Refusal::Incomplete, "incomplete"),
    (Refusal::Changed, "changed"),
    (Refusal::Lagging, "lagging"),
    (Refusal::Closed, "closed"),
    (Refusal::Once, "once"),
];

/// Whether reads are kept that nobody has named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Every read of which it is known what it depends on.
    Known,
    /// Those that a hint or a rule gives a time to live.
    Named,
}

/// What may be kept, for how long, and how long behind a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    pub reads: Reads,
    pub ttl: Duration,
    pub stale: Duration,
}

/// Judges one statement that runs on its own, outside any transaction. `resolve` asks the catalog what it reads.
///
/// # Errors
/// The first reason why its result may not be kept.
pub fn admit(
    facts: &Facts,
    choice: Choice,
    ttl: Duration,
    ruled: &Ruled,
    resolve: impl FnOnce() -> Option<Sources>,
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
    let named = shortest(facts.hints.cache_ttl_ms.map(Duration::from_millis), ruled.statement.ttl);
    let (reads, sum) = match choice {
        Choice::Known => known(ruled, named.is_some(), resolve().ok_or(Refusal::Unresolved)?)?,
        Choice::Named if named.is_some() => (Reads::Anything, unknown(ruled, resolve)?),
        Choice::Named => by_tables(ruled, resolve)?,
    };
    if sum.never {
        return Err(Refusal::Rule);
    }
    // No longer than the bound of all.
    let ttl = shortest(named, sum.ttl).map_or(ttl, |named| named.min(ttl));
    // Of what changes nobody knows, none knows either how old an answer is.
    let stale = if choice == Choice::Known && reads != Reads::Anything { sum.stale } else { Duration::ZERO };
    Ok(Admitted { reads, ttl, stale })
}

/// A read where it is known what changes, `named` or not.
fn known(ruled: &Ruled, named: bool, sources: Sources) -> Result<(Reads, Sum), Refusal> {
    match sources.elusive().map(Refusal::from) {
        // By its time to live, where it is not known what changes it. What changes by itself is not kept even so.
        Some(Refusal::Relation | Refusal::Unpublished) if named => {
            Ok((Reads::Anything, unknown(ruled, || Some(sources))?))
        }
        Some(why) => Err(why),
        None => {
            let tables = sources.alone()?;
            let sum = ruled.of(&tables);
            Ok((Reads::Tables(tables), sum))
        }
    }
}

/// A named read. The operator answers for what it reads; any write may be one of it.
fn unknown(ruled: &Ruled, resolve: impl FnOnce() -> Option<Sources>) -> Result<Sum, Refusal> {
    if let Some(sum) = ruled.of_any() {
        return Ok(sum);
    }
    // What is never kept may be behind it.
    let tables = resolve().and_then(Sources::tables).ok_or(Refusal::Unresolved)?;
    Ok(ruled.of(&tables))
}

/// A read that is named by the rules for its tables, where each has one.
fn by_tables(ruled: &Ruled, resolve: impl FnOnce() -> Option<Sources>) -> Result<(Reads, Sum), Refusal> {
    let sources = if ruled.is_by_table() { resolve() } else { None };
    let tables = sources.and_then(|sources| sources.alone().ok()).ok_or(Refusal::Unnamed)?;
    let sum = ruled.of(&tables);
    if sum.named || sum.never { Ok((Reads::Tables(tables), sum)) } else { Err(Refusal::Unnamed) }
}

/// What becomes of a text's result, told beforehand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kept {
    /// Why it is not kept; `None`: it is.
    pub refused: Option<&'static str>,
    /// The rules that count for it, in words.
    pub rules: Vec<String>,
}

/// By what it is judged whether a result is kept.
#[derive(Debug, Clone, Copy, Default)]
pub struct InForce<'a> {
    /// `None`: nothing is kept.
    pub choice: Option<Choice>,
    pub rules: Option<&'a Rules>,
    /// `None`: changes of all tables are told.
    pub publication: Option<&'a Publication>,
}

/// What becomes of the result of a text where a session with this scope asks for it alone.
pub fn explain(text: &str, scope: Option<&Scope>, in_force: InForce<'_>) -> Kept {
    let InForce { choice, rules, publication } = in_force;
    let facts = classify::classify(text);
    let fingerprint = fingerprint::fingerprint(text).fingerprint;
    let catalog = scope.map(|scope| &*scope.catalog);
    let sources = scope.map(|scope| {
        let sources = sources::sources(&scope.catalog, &scope.path, &facts);
        let publication = publication.filter(|_| choice == Some(Choice::Known));
        publication.map_or(sources.clone(), |publication| sources.told_by(publication, &scope.catalog))
    });
    let tables = sources.clone().and_then(Sources::tables).unwrap_or_default();
    let ruled = rules.map(|rules| rules.ruled(fingerprint, catalog)).unwrap_or_default();
    let judge = |choice| admit(&facts, choice, Duration::MAX, &ruled, || sources);
    let judged = choice.ok_or(Refusal::Closed).and_then(judge);
    Kept {
        refused: judged.err().map(|why| REFUSALS[why as usize].1),
        rules: rules.map(|rules| rules.tell(fingerprint, &tables, catalog)).unwrap_or_default(),
    }
}

impl From<Elusive> for Refusal {
    fn from(why: Elusive) -> Refusal {
        match why {
            Elusive::Unknown => Refusal::Unresolved,
            Elusive::Transient | Elusive::Hidden => Refusal::Transient,
            Elusive::Secured | Elusive::Relation => Refusal::Relation,
            Elusive::Unpublished => Refusal::Unpublished,
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
    use std::sync::Arc;

    use super::*;
    use crate::cache::rules::tests::{NEVER, STALE, TTL, catalog, of, table};
    use crate::catalog::path::Setting;
    use crate::config::{CacheRule, RuledBy, Terms};
    use crate::sql::classify::classify;

    fn judged(sql: &str, choice: Choice) -> Result<Admitted, Refusal> {
        admit(&classify(sql), choice, Duration::from_secs(300), &Ruled::default(), || None)
    }

    #[test]
    fn what_does_not_follow_from_its_rows_is_refused() {
        for (sql, why) in [
            ("SELECT now()", Refusal::Transient),
            ("SELECT a FROM t WHERE b < current_timestamp", Refusal::Transient),
            ("SELECT 'now'::timestamp", Refusal::Transient),
            ("SELECT a::timetz FROM t", Refusal::Transient),
            ("SELECT CAST(a AS time(3) with time zone) FROM t", Refusal::Transient),
            ("SELECT timetz(a) FROM t", Refusal::Transient),
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
        assert_eq!(
            named("5s"),
            Ok(Admitted { reads: Reads::Anything, ttl: Duration::from_secs(5), stale: Duration::ZERO })
        );
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
    }

    /// A text by the catalog of the rules' tests, under these rules.
    fn ruled(sql: &str, choice: Choice, rules: &[CacheRule]) -> Result<Admitted, Refusal> {
        let catalog = Arc::new(catalog(1));
        let scope = catalog.scope(&Setting::Flat("public".into()), "a", "a");
        let facts = classify(sql);
        let ruled = Rules::new(rules, "app").unwrap().ruled(fingerprint::fingerprint(sql).fingerprint, Some(&catalog));
        let sources = || Some(sources::sources(&catalog, &scope.path, &facts));
        admit(&facts, choice, Duration::from_secs(300), &ruled, sources)
    }

    fn tables(numbers: &[u32]) -> Reads {
        Reads::Tables(numbers.iter().copied().map(table).collect())
    }

    #[test]
    fn rules_decide_by_what_is_read() {
        let rules = [of("orders", STALE), of("users", TTL)];
        let secs = Duration::from_secs;
        let read = |sql: &str| ruled(sql, Choice::Known, &rules);
        let kept = |oids: &[u32], ttl, stale| Ok(Admitted { reads: tables(oids), ttl: secs(ttl), stale: secs(stale) });
        assert_eq!(read("SELECT 1 FROM orders"), kept(&[1, 2], 300, 30));
        assert_eq!(read("SELECT 1 FROM users"), kept(&[3], 5, 0));
        assert_eq!(read("SELECT 1 FROM orders, users"), kept(&[1, 2, 3], 5, 0));
        assert_eq!(read("/* pgweir: cache ttl=2s */ SELECT 1 FROM users"), kept(&[3], 2, 0));
        assert_eq!(read("/* pgweir: nocache */ SELECT 1 FROM users"), Err(Refusal::Asked));
        for sql in ["SELECT 1 FROM orders_1", "/* pgweir: cache ttl=2s */ SELECT 1 FROM users, orders"] {
            for choice in [Choice::Known, Choice::Named] {
                assert_eq!(ruled(sql, choice, &[of("orders", NEVER), of("users", TTL)]), Err(Refusal::Rule), "{sql}");
            }
        }
    }

    #[test]
    fn rules_name_a_read_as_a_hint_does() {
        let rules = [of("orders", STALE), of("users", TTL)];
        let named = |sql: &str, rules: &[CacheRule]| ruled(sql, Choice::Named, rules);
        let kept = |reads, stale| Ok(Admitted { reads, ttl: Duration::from_secs(5), stale });
        assert_eq!(named("SELECT 1 FROM users", &rules), kept(tables(&[3]), Duration::ZERO));
        for sql in ["SELECT 1 FROM orders", "SELECT 1 FROM users, orders", "SELECT 1"] {
            assert_eq!(named(sql, &rules), Err(Refusal::Unnamed), "{sql}");
        }
        let sql = "SELECT 1 FROM orders WHERE 2 = 3";
        let fingerprint = fingerprint::fingerprint(sql).fingerprint.0;
        let statement =
            CacheRule { database: None, of: RuledBy::Fingerprint(fingerprint), terms: Terms { ttl: TTL.ttl, ..STALE } };
        // Nobody knows how old an answer is.
        assert_eq!(
            named("SELECT 7 FROM orders WHERE 8 = 9", std::slice::from_ref(&statement)),
            kept(Reads::Anything, Duration::ZERO)
        );
        let known = ruled(sql, Choice::Known, &[statement]);
        assert_eq!(known, kept(tables(&[1, 2]), Duration::from_secs(30)));
    }

    #[test]
    fn what_may_follow_from_a_forbidden_table_is_not_kept_though_it_is_named() {
        let sql = "/* pgweir: cache ttl=2s */ SELECT 1 FROM kept";
        for choice in [Choice::Known, Choice::Named] {
            assert_eq!(ruled(sql, choice, &[of("orders", NEVER)]), Err(Refusal::Unresolved));
            let kept = ruled(sql, choice, &[of("orders", TTL)]).map(|kept| (kept.reads, kept.ttl));
            assert_eq!(kept, Ok((Reads::Anything, Duration::from_secs(2))));
        }
    }

    #[test]
    fn it_is_told_beforehand() {
        let refused = |text: &str, choice| explain(text, None, InForce { choice, ..InForce::default() }).refused;
        assert_eq!(refused("SELECT now()", Some(Choice::Known)), Some("transient"));
        assert_eq!(refused("SELECT a FROM t", Some(Choice::Known)), Some("unresolved"));
        assert_eq!(refused("/* pgweir: cache ttl=5s */ SELECT a FROM t", Some(Choice::Named)), None);
        assert_eq!(refused("SELECT 1", None), Some("closed"));
    }

    #[test]
    fn refusals_stand_in_their_order() {
        for (n, (refusal, _)) in REFUSALS.iter().enumerate() {
            assert_eq!(*refusal as usize, n);
        }
    }
}
