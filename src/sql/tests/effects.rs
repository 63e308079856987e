use crate::sql::classify::classify;
use crate::sql::procedural;
use crate::sql::{Argument, Boundary, Call, Control, Effect, Name, SetValue};

fn effects(text: &str) -> Vec<Effect> {
    classify(text).effects
}

fn set(name: &str, value: &str) -> Effect {
    Effect::Set { name: name.into(), value: SetValue::Sql(value.into()), local: false }
}

fn other(name: &str, value: SetValue, local: bool) -> Effect {
    Effect::Set { name: name.into(), value, local }
}

fn role(session_authorization: bool, value: Option<&str>, local: bool) -> Effect {
    Effect::Role { session_authorization, value: value.map(Into::into), local }
}

#[test]
fn set_and_reset() {
    let local = |name, value: &str| other(name, SetValue::Sql(value.into()), true);
    let cases = [
        ("SET search_path TO a, 'b';", set("search_path", "a, 'b'")),
        ("SET SESSION \"TimeZone\" = 'UTC'", set("timezone", "'UTC'")),
        ("SET LOCAL work_mem = '1MB' -- x", local("work_mem", "'1MB'")),
        ("set extra_float_digits=-1", set("extra_float_digits", "-1")),
        ("SET app.user_id TO 5", set("app.user_id", "5")),
        ("SET session = 1", set("session", "1")),
        ("SET x TO DEFAULT", other("x", SetValue::Default, false)),
        ("SET x FROM CURRENT", other("x", SetValue::Opaque, false)),
        ("RESET x", other("x", SetValue::Default, false)),
        ("RESET app.x", other("app.x", SetValue::Default, false)),
        ("RESET ALL", Effect::ResetAll),
        ("SET TIME ZONE 'UTC'", set("timezone", "'UTC'")),
        ("SET LOCAL TIME ZONE -7", local("timezone", "-7")),
        ("SET TIME ZONE LOCAL", other("timezone", SetValue::Default, false)),
        ("SET TIME ZONE DEFAULT", other("timezone", SetValue::Default, false)),
        ("SET TIME ZONE INTERVAL '-08:00' HOUR TO MINUTE", other("timezone", SetValue::Opaque, false)),
        ("RESET TIME ZONE", other("timezone", SetValue::Default, false)),
        ("SET NAMES 'LATIN1'", set("client_encoding", "'LATIN1'")),
        ("SET NAMES", other("client_encoding", SetValue::Default, false)),
        ("SET SCHEMA 'a'", set("search_path", "'a'")),
        ("SET XML OPTION DOCUMENT", set("xmloption", "DOCUMENT")),
        ("SET transaction_isolation = 'serializable'", set("transaction_isolation", "'serializable'")),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Effect::SessionCharacteristics),
        ("RESET TRANSACTION ISOLATION LEVEL", other("transaction_isolation", SetValue::Default, false)),
        ("SET ROLE a", role(false, Some("a"), false)),
        ("SET LOCAL ROLE 'b'", role(false, Some("'b'"), true)),
        ("SET ROLE NONE", role(false, None, false)),
        ("SET role = 'a'", role(false, Some("'a'"), false)),
        ("SET role TO none", role(false, None, false)),
        ("SET ROLE 'none'", role(false, None, false)),
        ("SET ROLE \"none\"", role(false, None, false)),
        ("SET role = 'none'", role(false, None, false)),
        ("SET ROLE 'None'", role(false, Some("'None'"), false)),
        ("SET role = 'NONE'", role(false, Some("'NONE'"), false)),
        ("SET SESSION AUTHORIZATION 'none'", role(true, Some("'none'"), false)),
        ("RESET ROLE", role(false, None, false)),
        ("SET SESSION AUTHORIZATION a", role(true, Some("a"), false)),
        ("SET SESSION SESSION AUTHORIZATION a", role(true, Some("a"), false)),
        ("SET LOCAL SESSION AUTHORIZATION DEFAULT", role(true, None, true)),
        ("RESET SESSION AUTHORIZATION", role(true, None, false)),
        ("SET session_authorization TO a", role(true, Some("a"), false)),
    ];
    for (text, expected) in cases {
        assert_eq!(effects(text), [expected], "{text}");
        assert_eq!(classify(text).by_literal, !text.starts_with("RESET"), "{text}");
    }
    assert_eq!(effects("SET CONSTRAINTS ALL IMMEDIATE"), []);
    assert_eq!(effects("SHOW x"), []);
}

#[test]
fn set_config() {
    let local = |name, value| other(name, value, true);
    let unseen = vec![Effect::Unknown, other("", SetValue::Opaque, false)];
    let unseen_a = vec![Effect::Unknown, other("a", SetValue::Opaque, false)];
    let flat = |name, value: &str| other(name, SetValue::Flat(value.into()), false);
    let text = |text: &str| Argument::Text(text.into());
    let configure = |name, value, local| vec![Effect::Configure { name, value, local }];
    let cases = [
        ("SELECT set_config('A.b', 'c', false)", vec![flat("a.b", "c")]),
        ("SELECT pg_catalog.set_config('x', 'it''s', 'f') AS y;", vec![flat("x", "it's")]),
        ("SELECT set_config('x', 'y'::text, false)", vec![flat("x", "y")]),
        ("SELECT set_config('x', E'y\\\\', false)", vec![set("x", "E'y\\\\'")]),
        ("SELECT set_config('x', $1, true)", configure(text("x"), Argument::Parameter(1), text("true"))),
        ("SELECT set_config('x', NULL, true)", vec![local("x", SetValue::Default)]),
        ("SELECT set_config('role', 'a', false)", vec![role(false, Some("'a'"), false)]),
        ("SELECT set_config('role', 'none', false)", vec![role(false, None, false)]),
        (
            "SELECT set_config('search_path', '\"$user\", Public', false)",
            vec![flat("search_path", "\"$user\", Public")],
        ),
        ("SELECT set_config('search_path', '', false)", vec![flat("search_path", "")]),
        (
            "SELECT set_config('a', '1', true), set_config('b', '2', false)",
            vec![local("a", SetValue::Flat("1".into())), flat("b", "2")],
        ),
        ("SELECT set_config($1, 'a', false)", configure(Argument::Parameter(1), text("a"), text("false"))),
        ("SELECT set_config('a', 'b', $1)", configure(text("a"), text("b"), Argument::Parameter(1))),
        ("SELECT set_config('a', $1::varchar, false)", configure(text("a"), Argument::Parameter(1), text("false"))),
        ("SELECT set_config('a', $1::name, false)", unseen_a.clone()),
        ("SELECT set_config('a', 'b' || c, false)", unseen_a.clone()),
        ("SELECT set_config('a', 'b', false) FROM t", unseen_a.clone()),
        ("SELECT set_config('a.b', 'b', false) FROM t", unseen.clone()),
        ("SELECT set_config('a' || b, 'b', false)", unseen.clone()),
        ("SELECT set_config('a', 'b', false) WHERE false", unseen_a.clone()),
        ("SELECT set_config('a', 'b', false), 1", unseen_a.clone()),
        ("INSERT INTO t SELECT set_config('a', 'b', false)", unseen_a),
        ("SELECT set_config($1, $2, true), 1", vec![]),
        ("SELECT set_config($1, $2, not true)", unseen.clone()),
        ("UPDATE pg_settings SET setting = '1'", unseen),
        ("SELECT public.set_config('a', 'b', false)", vec![Effect::Unknown]),
    ];
    for (text, expected) in cases {
        assert_eq!(effects(text), expected, "{text}");
    }
    assert!(!classify("SELECT set_config($1, 'a', false), 1").unknown_by_name);
}

#[test]
fn other_state() {
    let name = |name: &str| Some(name.to_owned());
    let cases = [
        ("DISCARD ALL", vec![Effect::DiscardAll]),
        ("DISCARD PLANS", vec![Effect::DiscardPlans]),
        ("DISCARD TEMPORARY", vec![Effect::DiscardTemp]),
        ("DISCARD SEQUENCES", vec![Effect::DiscardSequences]),
        ("PREPARE \"P\" (int) AS SELECT $1", vec![Effect::Prepare("P".into())]),
        ("PREPARE p AS SELECT set_config('a', 'b', false)", vec![Effect::Prepare("p".into()), Effect::Unknown]),
        ("EXECUTE p(1, lower('a'))", vec![Effect::Execute("p".into())]),
        ("EXECUTE p(f(1))", vec![Effect::Unknown, Effect::Execute("p".into())]),
        ("DEALLOCATE PREPARE p", vec![Effect::Deallocate(name("p"))]),
        ("DEALLOCATE prepare", vec![Effect::Deallocate(name("prepare"))]),
        ("DEALLOCATE ALL", vec![Effect::Deallocate(None)]),
        ("LISTEN Ch", vec![Effect::Listen("ch".into())]),
        ("UNLISTEN ch", vec![Effect::Unlisten(name("ch"))]),
        ("UNLISTEN *", vec![Effect::Unlisten(None)]),
        ("DECLARE c CURSOR FOR SELECT 1", vec![Effect::Declare { name: "c".into(), hold: false }]),
        (
            "DECLARE c BINARY NO SCROLL CURSOR WITH HOLD FOR SELECT 1",
            vec![Effect::Declare { name: "c".into(), hold: true }],
        ),
        ("CLOSE ALL", vec![Effect::Close(None)]),
        ("CLOSE c", vec![Effect::Close(name("c"))]),
        ("CREATE TEMP TABLE t (a int)", vec![Effect::Temporary]),
        ("CREATE LOCAL TEMPORARY TABLE t AS SELECT 1", vec![Effect::Temporary]),
        ("CREATE TEMP TABLE t (a int) ON COMMIT DROP", vec![Effect::Temporary, Effect::DroppedAtCommit]),
        ("CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 1", vec![Effect::Temporary, Effect::DroppedAtCommit]),
        ("CREATE TEMP TABLE t (a int) ON COMMIT DELETE ROWS", vec![Effect::Temporary]),
        ("CREATE OR REPLACE TEMP VIEW v AS SELECT 1", vec![Effect::Temporary]),
        ("CREATE TABLE pg_temp.t (a int)", vec![Effect::Temporary]),
        ("CREATE TABLE temp (a int)", vec![]),
        ("SELECT 1 INTO TEMP t", vec![Effect::Temporary]),
        ("SELECT * FROM pg_temp.t", vec![Effect::Temporary]),
        ("SELECT pg_advisory_lock(1)", vec![Effect::AdvisoryLock]),
        ("SELECT pg_advisory_xact_lock(1)", vec![]),
        ("SELECT pg_advisory_unlock_all()", vec![Effect::AdvisoryUnlockAll]),
        ("LOAD 'x'", vec![Effect::Load]),
        ("DO $$ BEGIN END $$", vec![Effect::Unknown]),
        ("CALL p()", vec![Effect::Unknown]),
        ("SELECT f(1)", vec![Effect::Unknown]),
        ("SELECT query_to_xml('a', true, true, '')", vec![Effect::Unknown]),
        ("INSERT INTO t (a, b) VALUES (1, now()) ON CONFLICT (a) DO UPDATE SET (b) = ROW(1) RETURNING (a)", vec![]),
        ("UPDATE t SET (a, b) = (SELECT 1, 2) WHERE c IN (1)", vec![]),
        ("MERGE INTO t USING u ON a = b WHEN NOT MATCHED THEN INSERT (a) VALUES (1)", vec![]),
        ("INSERT INTO temp (a) VALUES (1)", vec![]),
        ("COPY t (a) FROM STDIN WITH (FORMAT csv, DELIMITER ',', NULL '')", vec![]),
        ("COPY t FROM STDIN WHERE f(a)", vec![Effect::Unknown]),
        ("COPY (SELECT f(1)) TO STDOUT", vec![Effect::Unknown]),
        ("EXPLAIN SELECT set_config('a', 'b', false)", vec![]),
        ("EXPLAIN ANALYZE SELECT set_config('a', 'b', false)", vec![other("a", SetValue::Flat("b".into()), false)]),
        ("EXPLAIN SELECT f(1)", vec![Effect::Unknown]),
        ("EXPLAIN SELECT setseed(1)", vec![]),
        ("EXPLAIN SELECT f(1), setseed(1)", vec![Effect::Unknown]),
        ("ALTER TABLE t ADD COLUMN a int DEFAULT f()", vec![Effect::Unknown]),
        ("SET a = 1; LISTEN b; SELECT 1", vec![set("a", "1"), Effect::Listen("b".into())]),
        ("NOTIFY a", vec![]),
        ("VACUUM t", vec![]),
    ];
    for (text, expected) in cases {
        assert_eq!(effects(text), expected, "{text}");
    }
}

#[test]
fn whose_unknown() {
    for text in ["SELECT f(1)", "INSERT INTO t VALUES (f(1))", "SELECT a::mood", "COPY (SELECT f(1)) TO STDOUT"] {
        assert!(classify(text).unknown_by_name, "{text}");
    }
    for text in ["SELECT 1", "DO 'x'", "SELECT f(1), setseed(1)", "SELECT f(1), set_config(a, b, c)"] {
        assert!(!classify(text).unknown_by_name, "{text}");
    }
}

#[test]
fn transaction_control() {
    let begin = |read_only, serializable, deferrable| vec![Control::Begin { read_only, serializable, deferrable }];
    let cases = [
        ("BEGIN", begin(None, None, None)),
        ("BEGIN TRANSACTION READ ONLY", begin(Some(true), None, None)),
        ("START TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ WRITE", begin(Some(false), Some(true), None)),
        ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY NOT DEFERRABLE", begin(Some(true), Some(false), Some(false))),
        ("begin work deferrable", begin(None, None, Some(true))),
        ("BEGIN READ ONLY, READ WRITE", begin(Some(false), None, None)),
        ("SET TRANSACTION READ WRITE", vec![Control::SetTransaction { read_only: Some(false), serializable: None }]),
        ("SET TRANSACTION SNAPSHOT 'x'", vec![Control::SetTransaction { read_only: None, serializable: None }]),
        ("COMMIT", vec![Control::Commit { chain: false }]),
        ("END WORK AND CHAIN", vec![Control::Commit { chain: true }]),
        ("COMMIT AND NO CHAIN", vec![Control::Commit { chain: false }]),
        ("ABORT", vec![Control::Rollback { chain: false }]),
        ("ROLLBACK TRANSACTION AND CHAIN", vec![Control::Rollback { chain: true }]),
        ("SAVEPOINT A", vec![Control::Savepoint("a".into())]),
        ("ROLLBACK WORK TO SAVEPOINT \"A\"", vec![Control::RollbackTo("A".into())]),
        ("ROLLBACK TO a", vec![Control::RollbackTo("a".into())]),
        ("RELEASE SAVEPOINT a", vec![Control::Release("a".into())]),
        ("RELEASE a", vec![Control::Release("a".into())]),
        ("PREPARE TRANSACTION 'x'", vec![Control::PrepareTransaction]),
        ("ROLLBACK PREPARED 'x'", vec![Control::FinishPrepared]),
        (
            "BEGIN; INSERT INTO t VALUES (1); COMMIT",
            vec![
                Control::Begin { read_only: None, serializable: None, deferrable: None },
                Control::Commit { chain: false },
            ],
        ),
    ];
    for (text, expected) in cases {
        let facts = classify(text);
        assert_eq!(facts.control, expected, "{text}");
        assert_eq!(facts.effects, [], "{text}");
    }
    assert_eq!(classify("BEGIN; INSERT INTO t VALUES (1); COMMIT").statements, 3);
    assert_eq!(classify(";; SELECT 1;").statements, 1);
    assert_eq!(classify(";").statements, 0);
}

/// In whose words Postgres finds no fault.
#[test]
fn boundaries() {
    for (text, tag) in [
        ("BEGIN", "BEGIN"),
        ("begin work;", "BEGIN"),
        ("/* a */ Begin Transaction -- b", "BEGIN"),
        ("BEGIN READ ONLY", "BEGIN"),
        ("BEGIN ISOLATION LEVEL READ COMMITTED, READ WRITE NOT DEFERRABLE, DEFERRABLE", "BEGIN"),
        ("START TRANSACTION", "START TRANSACTION"),
        ("START TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY", "START TRANSACTION"),
        ("COMMIT", "COMMIT"),
        ("END WORK AND NO CHAIN", "COMMIT"),
        ("ROLLBACK TRANSACTION", "ROLLBACK"),
        ("ABORT", "ROLLBACK"),
    ] {
        assert_eq!(classify(text).boundary.map(Boundary::tag), Some(tag), "{text}");
    }
    for text in [
        "START",
        "START WORK",
        "BEGIN WORK TRANSACTION",
        "BEGIN WORK WORK",
        "BEGIN READ",
        "BEGIN ONLY",
        "BEGIN READ ONLY,",
        "BEGIN, READ ONLY",
        "BEGIN READ ONLY,, DEFERRABLE",
        "BEGIN \"work\"",
        "BEGIN ISOLATION LEVEL",
        "BEGIN ISOLATION LEVEL SNAPSHOT",
        "BEGIN NOT READ ONLY",
        "BEGIN 1",
        "BEGIN (READ ONLY)",
        "COMMIT AND CHAIN",
        "COMMIT AND",
        "COMMIT NOW",
        "COMMIT PREPARED 'a'",
        "ROLLBACK TO a",
        "SAVEPOINT a",
        "RELEASE a",
        "SELECT 1",
    ] {
        assert_eq!(classify(text).boundary, None, "{text}");
    }
}

#[test]
fn relations() {
    fn names(names: &[Name]) -> Vec<String> {
        let shown = |name: &Name| match &name.schema {
            Some(schema) => format!("{schema}.{}", name.name),
            None => name.name.clone(),
        };
        names.iter().map(shown).collect()
    }
    // text, read and written, written, exact
    let cases: [(&str, &[&str], &[&str], bool); 22] = [
        ("SELECT * FROM A, s.\"B\" JOIN c ON true", &["a", "s.B", "c"], &[], true),
        ("WITH x AS (SELECT * FROM a) SELECT * FROM x JOIN b ON true", &["a", "b"], &[], true),
        ("WITH a AS (SELECT * FROM a) SELECT * FROM a", &["a"], &[], true),
        ("WITH RECURSIVE a AS (SELECT 1 UNION SELECT * FROM a) SELECT * FROM a", &[], &[], true),
        ("WITH x AS (SELECT 1), y AS (SELECT * FROM x, z) SELECT * FROM y", &["z"], &[], true),
        ("SELECT * FROM (WITH x AS (SELECT 1) SELECT * FROM x) q, x", &["x"], &[], true),
        ("SELECT (SELECT max(a) FROM b) FROM c WHERE d IN (SELECT 1 FROM e)", &["b", "c", "e"], &[], true),
        ("SELECT * FROM generate_series(1, 2), unnest(a)", &[], &[], true),
        ("INSERT INTO t SELECT * FROM u", &["t", "u"], &["t"], true),
        ("UPDATE t SET a = u.a FROM u", &["t", "u"], &["t"], true),
        ("DELETE FROM s.t", &["s.t"], &["s.t"], true),
        ("TRUNCATE a, b", &["a", "b"], &["a", "b"], true),
        ("COPY t FROM STDIN", &["t"], &["t"], true),
        ("COPY (SELECT * FROM a) TO STDOUT", &["a"], &[], true),
        // by tokens
        ("TABLE a", &["a"], &[], false),
        ("DELETE FROM ONLY t USING u", &["only", "t", "u"], &["t"], false),
        ("SELECT * FROM ONLY t", &["only", "t"], &[], false),
        ("SELECT EXTRACT(year FROM a), b IS DISTINCT FROM c FROM d JOIN e USING (f, g)", &["d", "e"], &[], true),
        ("SELECT DISTINCT FROM a", &["a"], &[], true),
        (
            "SELECT trim(x FROM (SELECT a FROM b)) FROM c x, d AS y (z, w) WHERE v IN (SELECT 1 FROM e)",
            &["b", "c", "d", "e"],
            &[],
            true,
        ),
        (
            "SELECT concat(VARIADIC b) FROM (a JOIN ONLY c ON x = y), LATERAL (SELECT 1 FROM d) e, f(1), g",
            &["a", "c", "d", "g"],
            &[],
            false,
        ),
        ("DROP TABLE a", &[], &[], false),
    ];
    for (text, all, written, exact) in cases {
        let facts = classify(text);
        let mut found = names(&facts.relations);
        found.sort();
        let mut all = all.to_vec();
        all.sort_unstable();
        assert_eq!(found, all, "{text}");
        assert_eq!(names(&facts.written), written, "{text}");
        assert_eq!(facts.relations_exact, exact, "{text}");
    }
}

/// Where there is no tree, and in bodies, the tokens stand alone.
#[test]
fn no_relation_is_missed_by_tokens() {
    for (text, expected) in [
        // words of the grammar that name tables without quotes (`ColId`)
        ("SELECT count(*) FROM position", &["position"][..]),
        ("TABLE position", &["position"]),
        ("SELECT 1 FROM time, row JOIN character ON true", &["character", "row", "time"]),
        ("SELECT 1 FROM a JOIN values ON true", &["a", "values"]),
        // what does not end FROM
        ("SELECT 1 FROM a JOIN b ON CASE WHEN a.k = b.k THEN true END, c", &["a", "b", "c"]),
        ("SELECT 1 FROM a JOIN b ON a.set = b.set, c", &["a", "b", "c"]),
        ("SELECT 1 FROM a JOIN b ON set = 1, c", &["a", "b", "c"]),
        ("SELECT 1 FROM a JOIN b ON a.limit < b.offset, c", &["a", "b", "c"]),
        ("SELECT 1 FROM a JOIN b ON a.select, c", &["a", "b", "c"]),
    ] {
        let body = procedural::body(&format!("BEGIN RETURN ({text}); END"));
        for facts in [classify(text), body] {
            let found: Vec<_> = facts.relations.iter().map(|name| name.name.as_str()).collect();
            expected.iter().for_each(|name| assert!(found.contains(name), "{name} of {text}: {found:?}"));
        }
    }
    assert_eq!(classify("SELECT 1 FROM (VALUES (1), (2)) AS v").relations, []);
}

#[test]
fn names_and_flags() {
    let facts = classify("SELECT t.a, S.F(1), \"G\"(2), lower(b) FROM t WHERE a <=> b");
    let name = |schema: Option<&str>, name: &str| Name { schema: schema.map(Into::into), name: name.into() };
    let call = |schema, function| Call { function: name(schema, function), arguments: Some(1) };
    assert_eq!(facts.functions, [call(Some("s"), "f"), call(None, "G"), call(None, "lower")]);
    assert_eq!(facts.attributes, ["a"]);
    assert_eq!(facts.operators, ["<=>"]);
    assert_eq!(classify("SELECT a::S.mood").types, [name(Some("s"), "mood")]);
    // locks and updates that are rolled back move them
    let hidden = ["SELECT xmax FROM t", "SELECT t.cmin FROM t", "SELECT a FROM t WHERE \"cmax\" = '0'"];
    let clocks = ["SELECT now()", "SELECT current_date", "SELECT random()", "SELECT 'now'::date", "EXPLAIN SELECT 1"];
    for text in hidden.into_iter().chain(clocks) {
        assert!(classify(text).transient, "{text}");
    }
    for text in ["SELECT lower(a)", "SELECT to_char(a, 'x') FROM t", "SELECT '2020-01-01'::date"] {
        assert!(!classify(text).transient, "{text}");
    }
    assert!(classify("SELECT '\\'").backslash && !classify("SELECT E'\\''").backslash);
    assert!(classify("/* pgweir: replica */ SELECT 1").by_literal && !classify("SELECT 1").by_literal);
    let long = format!("SAVEPOINT {}é", "a".repeat(62));
    assert_eq!(classify(&long).control, [Control::Savepoint("a".repeat(62))]);
}

#[test]
fn arguments_are_counted_where_that_is_certain() {
    for (arguments, count) in [
        ("()", Some(0)),
        ("(*)", Some(0)),
        ("(1)", Some(1)),
        ("(DISTINCT a, b)", Some(2)),
        ("(a, (SELECT b, c FROM t), ARRAY[d, e], g(h, i))", Some(4)),
        ("(')', E'\\'),(', $$,$$, \"a,b\")", Some(4)),
        ("(a /* , */, b) FILTER (WHERE c) OVER (ORDER BY d, e)", Some(2)),
        ("(a => 1, b := 2)", Some(2)),
        ("(a, b ORDER BY c, d)", Some(2)),
        // the column of that name
        ("(t.order, b)", Some(2)),
        ("(a, VARIADIC b)", None),
        ("(a) WITHIN GROUP (ORDER BY b, c)", None),
        ("(a, b", None),
        ("(a], b)", None),
    ] {
        let facts = classify(&format!("SELECT f{arguments} FROM t"));
        let call = facts.functions.iter().find(|call| call.function.name == "f").unwrap();
        assert_eq!(call.arguments, count, "{arguments}");
    }
    let long = format!("SELECT f({}1)", "1, ".repeat(100));
    assert_eq!(classify(&long).functions[0].arguments, None);
    assert_eq!(classify("SELECT (a).f FROM t").functions[0].arguments, Some(1));
}
