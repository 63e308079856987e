//! READ ONLY transaction blocks on replicas: what opens one, and what runs in it as it would on the primary.
//!
//! A statement that a standby runs otherwise than the primary does within a READ ONLY transaction is for the primary: a lock
//! that only the primary's sessions see, LISTEN, a node's own answer. What both refuse alike with 25006 (writes, definitions,
//! nextval: `PreventCommandIfReadOnly`) is not.

use crate::catalog::path::Scope;
use crate::route::plan::Plan;
use crate::sql::functions;
use crate::sql::settings::{is_of_transaction, truth};
use crate::sql::{Control, Effect, Facts, Name, Reason, RouteHint, SetValue};

/// How a statement fits into a READ ONLY block on a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    Read,
    /// COMMIT or ROLLBACK: the block is over where it succeeds.
    Ends,
    /// No read, but the same there as on the primary.
    Alike,
    /// For the primary alone.
    Primary(Reason),
}

/// The statement opens a READ ONLY block that a replica may run.
pub fn opens(facts: &Facts, defaults_to_read_only: impl Fn() -> bool) -> bool {
    let [begin] = &facts.control[..] else { return false };
    begin.begins_plainly() && begin.says_read_only().unwrap_or_else(defaults_to_read_only) && stands_alone(facts)
}

/// The statement begins a block that [`turns`] may make one for a replica. A standby refuses to begin a READ WRITE one.
pub fn may_turn(facts: &Facts) -> bool {
    let [begin] = &facts.control[..] else { return false };
    let plain = begin.begins_plainly() && begin.says_read_only().is_none();
    plain && facts.hints.route != Some(RouteHint::Primary) && stands_alone(facts)
}

/// The statement makes READ ONLY the block that begins with it.
pub fn turns(facts: &Facts) -> bool {
    let says_so = match (&facts.control[..], &facts.effects[..]) {
        ([control], []) => control.says_read_only() == Some(true),
        ([], [effect]) => is_read_only(effect),
        _ => false,
    };
    says_so && prepares(facts)
}

/// It looks at no rows, and leaves nothing behind its block: said again elsewhere it does the same.
pub fn prepares(facts: &Facts) -> bool {
    let local = |effect: &Effect| is_read_only(effect) || matches!(effect, Effect::Set { local: true, .. });
    let goes_on = |control: &Control| {
        matches!(control, Control::Savepoint(_) | Control::Release(_) | Control::SetTransaction { .. })
    };
    let alike = match facts.primary {
        Some(Reason::Transaction) => facts.control.iter().all(|control| goes_on(control) && is_alike(control)),
        // FETCH, of which the relations are not known, is among these.
        Some(Reason::Session) if facts.relations_exact && facts.relations.is_empty() => {
            facts.effects.iter().all(local) && is_session_alike(facts)
        }
        _ => false,
    };
    alike && facts.statements == 1 && !moves_names(facts)
}

/// The statement ends a block, and no other follows by itself.
pub fn ends(facts: &Facts) -> bool {
    matches!(&facts.control[..], [end] if end.ends()) && stands_alone(facts)
}

/// The first of several statements ends a block, as far as a look at its first word tells.
pub fn ends_first(facts: &Facts, text: &str) -> bool {
    let word = text.trim_start().split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
    let ends = ["commit", "end", "rollback", "abort"].iter().any(|end| word.eq_ignore_ascii_case(end));
    ends && facts.control.first().is_some_and(Control::ends) && facts.statements > 1
}

/// BEGIN, COMMIT and their like, and nothing else.
pub fn stands_alone(facts: &Facts) -> bool {
    facts.statements == 1 && facts.effects.is_empty() && facts.primary == Some(Reason::Transaction)
}

/// How the statement fits, as its names are meant now.
pub fn fit(plan: &Plan, scope: Option<&Scope>) -> Fit {
    let facts = &*plan.facts;
    let Some(reason) = plan.verdict(scope).primary else { return Fit::Read };
    if ends(facts) {
        return Fit::Ends;
    }
    let alike = match reason {
        _ if facts.statements != 1 => false,
        Reason::Transaction => facts.control.iter().all(is_alike),
        Reason::Session if facts.effects.iter().any(is_cursor) => {
            is_settled(facts, is_cursor) && plan.names_ask(scope).is_none()
        }
        Reason::Session => is_session_alike(facts),
        Reason::Write => !facts.written.is_empty(),
        // EXPLAIN ANALYZE of such a thing runs its query first.
        Reason::Ddl | Reason::Into => !facts.transient,
        // Refused before anything of it runs, or having run nothing else.
        Reason::Sequence | Reason::Locking => {
            let functions = facts.functions.iter().all(|call| draws(&call.function) || is_harmless(&call.function));
            functions && is_settled(facts, |_| false) && plan.names_ask(scope).is_none()
        }
        _ => false,
    };
    if alike { Fit::Alike } else { Fit::Primary(reason) }
}

fn is_alike(control: &Control) -> bool {
    match control {
        Control::Savepoint(_) | Control::RollbackTo(_) | Control::Release(_) => true,
        Control::Commit { .. } | Control::Rollback { .. } => true,
        // Warned of; but its modes are taken over.
        Control::Begin { read_only, serializable, .. } => *read_only != Some(false) && *serializable != Some(true),
        // With neither it is a snapshot of another session, which its node alone has, or DEFERRABLE.
        Control::SetTransaction { read_only, serializable } => {
            *read_only != Some(false) && *serializable != Some(true) && (read_only.is_some() || serializable.is_some())
        }
        Control::PrepareTransaction | Control::FinishPrepared => false,
    }
}

/// All its effects are known ones of this kind, or fall with what the catalog knows.
fn is_settled(facts: &Facts, known: fn(&Effect) -> bool) -> bool {
    let by_name = facts.unknown_by_name;
    facts.control.is_empty()
        && facts.effects.iter().all(|effect| known(effect) || (by_name && *effect == Effect::Unknown))
}

fn is_cursor(effect: &Effect) -> bool {
    matches!(effect, Effect::Declare { hold: false, .. })
}

/// SET, SHOW, FETCH and kin, where the session's end of them is followed.
fn is_session_alike(facts: &Facts) -> bool {
    let sets = facts.calls_any(&["set_config"]);
    let plain = facts.functions.is_empty() || (sets && facts.functions.len() == 1 && !facts.effects.is_empty());
    plain && !facts.asks_node && facts.effects.iter().all(is_effect_alike)
}

/// With another promise than that by which the node was chosen.
const PROMISES: [&str; 2] = ["pgweir.freshness", "pgweir.lsn"];

fn is_effect_alike(effect: &Effect) -> bool {
    match effect {
        _ if is_read_only(effect) => true,
        Effect::Set { name, value, .. } => {
            *value != SetValue::Opaque && !PROMISES.contains(&&**name) && !is_of_transaction(name)
        }
        Effect::Role { .. } | Effect::ResetAll | Effect::Close(_) | Effect::Deallocate(_) => true,
        _ => false,
    }
}

fn is_read_only(effect: &Effect) -> bool {
    match effect {
        Effect::Set { name, value: SetValue::Sql(value) | SetValue::Flat(value), .. } => {
            name == "transaction_read_only" && truth(value.trim_matches('\'').as_bytes()) == Some(true)
        }
        _ => false,
    }
}

/// What runs in the block behind one that fits may find other things under its names.
pub fn moves_names(facts: &Facts) -> bool {
    let moves = |effect: &Effect| match effect {
        Effect::Set { name, .. } => name.is_empty() || name == "search_path",
        Effect::Role { .. } | Effect::ResetAll | Effect::Configure { .. } => true,
        _ => false,
    };
    facts.effects.iter().any(moves)
}

fn draws(function: &Name) -> bool {
    matches!(function.name.as_str(), "nextval" | "setval")
}

fn is_harmless(function: &Name) -> bool {
    functions::class(&function.name).is_none_or(functions::Class::is_harmless)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::plan::Plans;
    use crate::sql::classify::classify;

    #[test]
    fn only_what_a_standby_runs_opens_there() {
        for sql in [
            "BEGIN READ ONLY",
            "begin transaction read only;",
            "START TRANSACTION READ ONLY",
            "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY",
            "BEGIN READ WRITE, READ ONLY NOT DEFERRABLE",
        ] {
            assert!(opens(&classify(sql), || false), "{sql}");
        }
        for sql in [
            "BEGIN",
            "BEGIN READ WRITE",
            "BEGIN READ ONLY, READ WRITE",
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
            "BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
            "BEGIN READ ONLY DEFERRABLE",
            "BEGIN READ ONLY; SELECT 1",
            "SET TRANSACTION READ ONLY",
            "COMMIT",
        ] {
            assert!(!opens(&classify(sql), || false), "{sql}");
        }
        assert!(opens(&classify("BEGIN"), || true) && !opens(&classify("BEGIN READ WRITE"), || true));
        assert!(ends(&classify("COMMIT WORK")) && ends(&classify("ABORT")));
        assert!(!ends(&classify("COMMIT AND CHAIN")) && !ends(&classify("COMMIT; SELECT 1")));
        for (sql, first) in [
            ("ROLLBACK; SELECT 1", true),
            (" commit;begin", true),
            ("ROLLBACK", false),
            ("ROLLBACK TO a; ROLLBACK", false),
            ("ROLLBACK AND CHAIN; SELECT 1", false),
            ("SELECT 1; ROLLBACK", false),
            ("ROLLBACK PREPARED 'a'; ROLLBACK", false),
        ] {
            assert_eq!(ends_first(&classify(sql), sql), first, "{sql}");
        }
    }

    fn of(plans: &Plans, sql: &str) -> Fit {
        fit(&plans.plan(sql.as_bytes()), None)
    }

    #[test]
    fn what_the_primary_would_do_otherwise_does_not_fit() {
        let plans = Plans::for_tests();
        for (sql, fit) in [
            ("SELECT 1", Fit::Read),
            ("", Fit::Read),
            ("ROLLBACK", Fit::Ends),
            ("SAVEPOINT a", Fit::Alike),
            ("ROLLBACK TO a", Fit::Alike),
            ("COMMIT AND CHAIN", Fit::Alike),
            ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", Fit::Alike),
            ("SET LOCAL work_mem = '1MB'", Fit::Alike),
            ("SELECT set_config('work_mem', '1MB', true)", Fit::Alike),
            ("SET ROLE app", Fit::Alike),
            ("SHOW transaction_isolation", Fit::Alike),
            ("SHOW TimeZone", Fit::Alike),
            ("DECLARE c CURSOR FOR SELECT 1", Fit::Alike),
            ("FETCH ALL FROM c", Fit::Alike),
            ("MOVE 1 FROM c", Fit::Alike),
            ("CLOSE c", Fit::Alike),
            ("DEALLOCATE p", Fit::Alike),
            ("SELECT 1; SELECT 2", Fit::Read),
            ("SET LOCAL transaction_read_only = on", Fit::Alike),
            ("SELECT set_config('transaction_read_only', 'on', true)", Fit::Alike),
            ("INSERT INTO t VALUES (1)", Fit::Alike),
            ("WITH w AS (DELETE FROM t RETURNING 1) SELECT pg_notify('a', 'b') FROM w", Fit::Alike),
            ("CREATE TEMP TABLE t (n int)", Fit::Alike),
            ("SELECT 1 INTO t", Fit::Alike),
        ] {
            assert_eq!(of(&plans, sql), fit, "{sql}");
        }
        for sql in [
            "SELECT pg_advisory_xact_lock(1)",
            "LOCK TABLE t",
            "LISTEN a",
            "NOTIFY a",
            "SELECT pg_notify('a', 'b')",
            "SELECT txid_current()",
            "SELECT pg_is_in_recovery()",
            "SELECT count(*) FROM pg_stat_activity",
            "SET TRANSACTION READ WRITE",
            "SET transaction_read_only = off",
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SET TRANSACTION SNAPSHOT '1'",
            "BEGIN READ WRITE",
            "PREPARE TRANSACTION 'a'",
            "SET pgweir.lsn = '0/1'",
            "SET work_mem FROM CURRENT",
            "SELECT set_config('a', 'b', true), pg_advisory_lock(1)",
            "SELECT set_config($1, $2, true)",
            "SHOW port",
            "SHOW ALL",
            "SHOW in_hot_standby",
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            "DECLARE c CURSOR FOR SELECT pg_advisory_lock(1)",
            "DECLARE c CURSOR FOR SELECT f()",
            "PREPARE p AS SELECT 1",
            "EXECUTE p",
            "DISCARD ALL",
            "LOAD 'x'",
            "DO $$ BEGIN END $$",
            "COPY t TO STDOUT",
            "SELECT f()",
            "SELECT 1; SELECT f()",
            "SELECT 1; COMMIT",
            "COMMIT; SELECT 1",
            "INSERT INTO t VALUES (1); COMMIT",
            "SELECT pg_advisory_lock(1), nextval('s')",
            "SELECT lastval()",
            "SELEC 1",
        ] {
            assert!(matches!(of(&plans, sql), Fit::Primary(_)), "{sql}: {:?}", of(&plans, sql));
        }
    }

    #[test]
    fn what_turns_a_block_and_what_leaves_it_undecided() {
        for sql in [
            "SET TRANSACTION READ ONLY",
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
            "SET LOCAL transaction_read_only = on",
            "SET transaction_read_only TO 'true'",
            "SELECT set_config('transaction_read_only', 'on', true)",
        ] {
            assert!(turns(&classify(sql)) && prepares(&classify(sql)), "{sql}");
        }
        for sql in [
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
            "SET LOCAL work_mem = '1MB'",
            "SELECT set_config('work_mem', '1MB', true)",
            "SHOW TimeZone",
            "SHOW transaction_isolation",
            "SAVEPOINT a",
            "RELEASE a",
        ] {
            assert!(!turns(&classify(sql)) && prepares(&classify(sql)), "{sql}");
        }
        for sql in [
            "SET TRANSACTION READ WRITE",
            "SET TRANSACTION READ ONLY, READ WRITE",
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY",
            "SET TRANSACTION SNAPSHOT '1'",
            "SET transaction_read_only = off",
            "SET transaction_read_only = DEFAULT",
            "SET work_mem = '1MB'",
            "SET LOCAL search_path = a",
            "SET LOCAL ROLE app",
            "SET LOCAL work_mem FROM CURRENT",
            "SELECT set_config($1, 'on', true)",
            "SHOW port",
            "FETCH 1 FROM c",
            "DECLARE c CURSOR FOR SELECT 1",
            "EXPLAIN DECLARE c CURSOR FOR SELECT 1 FROM t",
            "ROLLBACK TO a",
            "COMMIT AND CHAIN",
            "ROLLBACK",
            "BEGIN READ ONLY",
            "SELECT 1",
            "SET TRANSACTION READ ONLY; SELECT 1",
        ] {
            assert!(!turns(&classify(sql)) && !prepares(&classify(sql)), "{sql}");
        }
        assert!(may_turn(&classify("BEGIN")) && may_turn(&classify("BEGIN ISOLATION LEVEL REPEATABLE READ")));
        for sql in
            ["BEGIN ISOLATION LEVEL SERIALIZABLE", "BEGIN DEFERRABLE", "/* pgweir: primary */ BEGIN", "BEGIN; SELECT 1"]
        {
            assert!(!may_turn(&classify(sql)), "{sql}");
        }
    }

    #[test]
    fn what_was_learned_of_a_block_holds_for_its_first_statement() {
        let plans = Plans::for_tests();
        assert_eq!(plans.plan(b"select 1 where 1 = 2").blocked(None), None);
        plans.plan(b"select 1 where 1 = 2").note_blocked(None, Reason::Lock);
        assert_eq!(plans.plan(b"select 2 where 1 = 3").blocked(None), Some(Reason::Lock));
        assert_eq!(plans.plan(b"select 2").blocked(None), None);
    }
}
