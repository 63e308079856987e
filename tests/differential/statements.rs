//! Statements that a session may say: what they change is seen by later ones of the same session, and by nobody else.

use crate::random::Random;

/// Tables, data and a sequence of one client, and who may use them.
pub fn schema(who: &str) -> String {
    format!(
        "DROP TABLE IF EXISTS public.made_by_{who}; DROP SCHEMA IF EXISTS {who} CASCADE; CREATE SCHEMA {who};
         SET LOCAL search_path = {who};
         CREATE TABLE t (id int PRIMARY KEY, v text, n int);
         INSERT INTO t SELECT n, '{who}-' || n, n * 10 FROM generate_series(1, 5) AS n;
         CREATE TABLE u (id int, x {kind}); INSERT INTO u VALUES (1, 10), (2, 20);
         CREATE SEQUENCE q;
         CREATE FUNCTION hidden(name text, value text) RETURNS text LANGUAGE plpgsql AS
             $$BEGIN RETURN set_config(name, value, false); END$$;
         GRANT USAGE ON SCHEMA {who} TO diff_reader; GRANT SELECT ON ALL TABLES IN SCHEMA {who} TO diff_reader;
         ALTER TABLE t OWNER TO app; ALTER TABLE u OWNER TO app; ALTER SEQUENCE q OWNER TO app;
         ALTER SCHEMA {who} OWNER TO app",
        // The same text means something else to each client.
        kind = if who == "alpha" { "int" } else { "bigint" },
    )
}

/// What a session can be told of itself. A custom parameter that was set and taken back is empty rather than missing
/// on the connection where that happened, so both count as nothing.
pub const PROBE: &str = "SELECT current_user, session_user, current_schema(), current_setting('search_path'), \
    current_setting('work_mem'), current_setting('DateStyle'), current_setting('IntervalStyle'), \
    current_setting('TimeZone'), current_setting('application_name'), current_setting('extra_float_digits'), \
    current_setting('bytea_output'), current_setting('client_min_messages'), current_setting('lock_timeout'), \
    current_setting('statement_timeout'), current_setting('enable_seqscan'), current_setting('transaction_isolation'), \
    current_setting('transaction_read_only'), current_setting('default_transaction_isolation'), \
    current_setting('role'), nullif(current_setting('my.first', true), ''), nullif(current_setting('my.other', true), '')";

/// What follows from tables, and from how the session has things written.
pub const READS: &[&str] = &[
    "SELECT id, v, n FROM t ORDER BY id",
    "SELECT x FROM u ORDER BY id",
    "SELECT timestamptz '2020-01-01 12:00+00', interval '26 hours', '\\xff00'::bytea FROM u WHERE id = 1",
    "SELECT id * 0.1::float8 FROM u ORDER BY id",
];

/// Texts for Parse with values for their parameters.
pub const PARAMETERIZED: &[(&str, &[&str])] = &[
    ("SELECT id, v FROM t WHERE id = $1", &["2"]),
    ("SELECT $1::int + $2::int", &["2", "3"]),
    ("SELECT 10 / $1::int", &["0"]),
    ("INSERT INTO t (id, v) VALUES ($1, $2) RETURNING id, v", &["7", "seven"]),
    ("UPDATE t SET v = $2 WHERE id = $1", &["3", "changed"]),
    ("DELETE FROM t WHERE id > $1", &["6"]),
    ("SELECT set_config('work_mem', $1, false)", &["5MB"]),
    ("SELECT set_config($1, $2, false)", &["my.other", "bound"]),
    ("SELECT current_setting($1)", &["work_mem"]),
    ("SELECT count(*) FROM t WHERE n < $1", &["not a number"]),
];

const VALUES: &[(&str, &[&str])] = &[
    ("work_mem", &["'1MB'", "'2MB'", "65", "'-5'"]),
    ("DateStyle", &["ISO, DMY", "'German'", "nonsense"]),
    ("IntervalStyle", &["iso_8601", "'postgres_verbose'"]),
    ("TimeZone", &["'UTC'", "'Asia/Tokyo'", "'+03'", "-7"]),
    ("application_name", &["'it''s'", "'b\\c'", "\"Quoted\"", "plain"]),
    ("extra_float_digits", &["-2", "3"]),
    ("bytea_output", &["escape"]),
    ("client_min_messages", &["warning", "error", "notice"]),
    ("lock_timeout", &["'3s'", "1000"]),
    ("statement_timeout", &["'40s'"]),
    ("enable_seqscan", &["off", "on"]),
    ("default_transaction_isolation", &["'repeatable read'", "serializable"]),
    ("search_path", &["public", "pg_catalog, public", "\"$user\", public"]),
    ("my.first", &["'1'", "two"]),
    ("my.other", &["'x y'", "3"]),
    ("no_such_parameter", &["1"]),
];

type Choice = fn(&mut Random, &str) -> String;

/// One statement, or a few that only make sense together.
pub fn statement(random: &mut Random, who: &str, superuser: bool) -> String {
    if superuser && random.one_in(12) {
        return session_authorization(random);
    }
    // Often used kinds stand more than once.
    let choices: &[Choice] = &[
        set,
        set,
        set,
        reset,
        reset,
        set_config,
        transaction,
        transaction,
        transaction,
        transaction,
        transaction,
        rows,
        rows,
        rows,
        error,
        prepare,
        prepare,
        cursor,
        temporary,
        temporary,
        listen,
        advisory,
        role,
        discard,
        block,
        sequence,
        definition,
    ];
    random.pick(choices)(random, who)
}

fn assignment(random: &mut Random) -> (&'static str, &'static str) {
    let (name, values) = random.pick(VALUES);
    (name, random.pick(values))
}

fn set(random: &mut Random, _: &str) -> String {
    let (name, value) = assignment(random);
    let scope = random.pick(&["", "", "", "SESSION ", "LOCAL "]);
    let to = random.pick(&["=", "TO"]);
    match random.below(12) {
        0 => format!("SET {scope}TIME ZONE 'Europe/Paris'"),
        1 => "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ".to_owned(),
        2 => format!("SET {scope}{name} TO DEFAULT"),
        _ => format!("SET {scope}{name} {to} {value}"),
    }
}

pub fn show(random: &mut Random) -> String {
    // A custom one is missing, or empty where it has been before.
    let (name, _) =
        random.pick(VALUES.iter().filter(|(n, _)| !n.contains('.')).copied().collect::<Vec<_>>().as_slice());
    format!("SHOW {name}")
}

fn reset(random: &mut Random, _: &str) -> String {
    let (name, _) = random.pick(VALUES);
    random.pick(&[
        "RESET ALL".to_owned(),
        format!("RESET {name}"),
        format!("RESET {name}"),
        "RESET TIME ZONE".to_owned(),
    ])
}

/// Back to the values of startup, at the text's own or at any place of a description.
pub fn is_reset(text: &str) -> bool {
    ["RESET", "DISCARD ALL", "TO DEFAULT"].iter().any(|reset| text.contains(reset))
}

/// Makes or ends statements by SQL.
pub fn is_of_names(text: &str) -> bool {
    text.starts_with("PREPARE") || text.starts_with("DEALLOCATE")
}

/// Runs by SQL what may be any statement.
pub fn is_by_name(text: &str) -> bool {
    text.contains("EXECUTE")
}

fn set_config(random: &mut Random, _: &str) -> String {
    let (name, value) = random.pick(&[
        ("work_mem", "6MB"),
        ("my.other", "it''s"),
        ("application_name", "b\\c"),
        ("search_path", "public"),
        ("search_path", ""),
        ("DateStyle", "SQL, DMY"),
        ("work_mem", "much"),
    ]);
    let local = random.pick(&["false", "false", "true"]);
    // A custom parameter that a function has set is left behind on its connection (docs/compatibility.md, "Settings").
    let hidden = if name.contains('.') { "work_mem" } else { name };
    random.pick(&[
        format!("SELECT set_config('{name}', '{value}', {local})"),
        format!("SELECT id, set_config('{name}', '{value}', {local}) FROM t WHERE id < 3 ORDER BY id"),
        format!("SELECT hidden('{hidden}', '{value}')"),
    ])
}

fn transaction(random: &mut Random, _: &str) -> String {
    let text = random.pick(&[
        "BEGIN",
        "BEGIN",
        "BEGIN",
        "START TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "BEGIN READ ONLY",
        "COMMIT",
        "COMMIT",
        "COMMIT",
        "END",
        "ROLLBACK",
        "ROLLBACK",
        "ABORT",
        "COMMIT AND CHAIN",
        "ROLLBACK AND CHAIN",
        "SAVEPOINT a",
        "SAVEPOINT a",
        "SAVEPOINT b",
        "ROLLBACK TO a",
        "ROLLBACK TO SAVEPOINT b",
        "RELEASE a",
        "RELEASE SAVEPOINT b",
        "SET TRANSACTION READ ONLY",
    ]);
    text.to_owned()
}

fn rows(random: &mut Random, who: &str) -> String {
    random.pick(&[
        "SELECT * FROM t ORDER BY id".to_owned(),
        "SELECT id, x FROM u ORDER BY id".to_owned(),
        "SELECT count(*), max(v) FROM t".to_owned(),
        format!("SELECT v FROM {who}.t WHERE id = 2"),
        "INSERT INTO t (id, v) VALUES (6, 'six')".to_owned(),
        "INSERT INTO t (id, v) VALUES (1, 'again')".to_owned(),
        "UPDATE t SET n = n + 1 RETURNING id, n".to_owned(),
        "DELETE FROM t WHERE id = 5".to_owned(),
        "WITH gone AS (DELETE FROM t WHERE id = 4 RETURNING *) SELECT id FROM gone".to_owned(),
        "TABLE u".to_owned(),
        "SELECT timestamptz '2024-02-03 04:05:06+00', interval '1 day 2 hours', 1.1::float8, bytea '\\x41ff'"
            .to_owned(),
        String::new(),
        "SELECT id FROM t WHERE id = 1 FOR UPDATE".to_owned(),
    ])
}

fn error(random: &mut Random, _: &str) -> String {
    random
        .pick(&["SELEC 1", "SELECT 1/0", "SELECT * FROM nowhere", "SELECT nofunction(1)", "SELECT 'x'::int"])
        .to_owned()
}

fn prepare(random: &mut Random, _: &str) -> String {
    let name = random.pick(&["p1", "p2", "s1"]);
    random.pick(&[
        format!("PREPARE {name} AS SELECT id, v FROM t WHERE id < 3 ORDER BY id"),
        format!("PREPARE {name} (int) AS SELECT $1 + 1"),
        format!("EXECUTE {name}"),
        format!("EXECUTE {name}"),
        format!("EXECUTE {name}(4)"),
        format!("DEALLOCATE {name}"),
        format!("DEALLOCATE PREPARE {name}"),
        "DEALLOCATE ALL".to_owned(),
        "SELECT name, statement, from_sql FROM pg_prepared_statements WHERE from_sql ORDER BY name".to_owned(),
    ])
}

fn cursor(random: &mut Random, _: &str) -> String {
    let name = random.pick(&["k1", "k2"]);
    random.pick(&[
        format!("DECLARE {name} CURSOR FOR SELECT id, v FROM t ORDER BY id"),
        format!("DECLARE {name} CURSOR WITH HOLD FOR SELECT id, v FROM t ORDER BY id"),
        format!("DECLARE {name} SCROLL CURSOR WITH HOLD FOR SELECT id FROM t ORDER BY id"),
        format!("FETCH 2 FROM {name}"),
        format!("FETCH 2 FROM {name}"),
        format!("MOVE 1 IN {name}"),
        format!("CLOSE {name}"),
        "CLOSE ALL".to_owned(),
        "SELECT name, is_holdable FROM pg_cursors WHERE name LIKE 'k%' ORDER BY name".to_owned(),
    ])
}

fn temporary(random: &mut Random, _: &str) -> String {
    random
        .pick(&[
            "CREATE TEMP TABLE w (id int)",
            "CREATE TEMP TABLE w (id int) ON COMMIT DROP",
            "CREATE TEMP TABLE w AS SELECT id FROM t",
            "INSERT INTO w VALUES (1)",
            "SELECT * FROM w ORDER BY id",
            "SELECT * FROM w ORDER BY id",
            "SELECT count(*) FROM pg_temp.w",
            "DROP TABLE w",
            // Hides the table of this name behind it.
            "CREATE TEMP TABLE t (id int, v text, n int)",
            "DROP TABLE IF EXISTS w",
            "SELECT id INTO TEMP w FROM t",
            "CREATE TEMP VIEW w AS SELECT id FROM t",
            "DO $$BEGIN CREATE TEMP TABLE w AS SELECT 1 AS id; END$$",
        ])
        .to_owned()
}

fn listen(random: &mut Random, who: &str) -> String {
    random.pick(&[
        format!("LISTEN {who}"),
        format!("LISTEN \"{who} 2\""),
        format!("NOTIFY {who}, 'payload'"),
        format!("SELECT pg_notify('{who} 2', 'x')"),
        format!("UNLISTEN {who}"),
        "UNLISTEN *".to_owned(),
        // pg_listening_channels() tells of the connection, not of the client (docs/listen.md).
        format!("NOTIFY {who}"),
    ])
}

fn advisory(random: &mut Random, who: &str) -> String {
    let key = if who == "alpha" { 1000 } else { 2000 } + random.below(2);
    random.pick(&[
        format!("SELECT pg_advisory_lock({key})"),
        format!("SELECT pg_try_advisory_lock({key})"),
        format!("SELECT pg_advisory_xact_lock({key})"),
        format!("SELECT pg_advisory_unlock({key})"),
        format!("SELECT pg_advisory_unlock({key})"),
        "SELECT pg_advisory_unlock_all()".to_owned(),
    ])
}

fn role(random: &mut Random, _: &str) -> String {
    random
        .pick(&[
            "SET ROLE diff_reader",
            "SET LOCAL ROLE diff_reader",
            "SET ROLE NONE",
            "RESET ROLE",
            "SET ROLE nobody",
            "SELECT set_config('role', 'diff_reader', false)",
            "SELECT current_user, session_user",
        ])
        .to_owned()
}

fn session_authorization(random: &mut Random) -> String {
    random
        .pick(&[
            "SET SESSION AUTHORIZATION diff_reader",
            "SET LOCAL SESSION AUTHORIZATION diff_reader",
            "SET SESSION AUTHORIZATION DEFAULT",
            "RESET SESSION AUTHORIZATION",
        ])
        .to_owned()
}

fn discard(random: &mut Random, _: &str) -> String {
    random
        .pick(&[
            "DISCARD ALL",
            "DISCARD PLANS",
            "DISCARD TEMP",
            "DISCARD SEQUENCES",
            "DISCARD TEMPORARY",
            "DEALLOCATE ALL",
        ])
        .to_owned()
}

fn block(random: &mut Random, _: &str) -> String {
    random
        .pick(&[
            "DO $$BEGIN PERFORM set_config('work_mem', '7MB', false); END$$",
            "DO $$BEGIN PERFORM set_config('my.other', 'from a block', false); END$$",
            "DO $$BEGIN PERFORM set_config('work_mem', '8MB', true); END$$",
            "DO $$BEGIN SET application_name = 'block'; END$$",
            "DO $$BEGIN RAISE NOTICE 'a notice'; END$$",
            "DO $$BEGIN RAISE EXCEPTION 'an exception' USING ERRCODE = 'P1234', DETAIL = 'd', HINT = 'h'; END$$",
            "DO $$BEGIN PERFORM 1/0; EXCEPTION WHEN division_by_zero THEN RAISE WARNING 'caught'; END$$",
        ])
        .to_owned()
}

fn sequence(random: &mut Random, _: &str) -> String {
    random
        .pick(&[
            "SELECT nextval('q')",
            "SELECT nextval('q')",
            "SELECT nextval('q'), currval('q'), lastval()",
            "SELECT setval('q', 40)",
        ])
        .to_owned()
}

fn definition(random: &mut Random, who: &str) -> String {
    random.pick(&[
        "ALTER TABLE u ADD COLUMN more int DEFAULT 1".to_owned(),
        "ALTER TABLE u DROP COLUMN IF EXISTS more".to_owned(),
        // It may come to be in the schema of all.
        format!("CREATE TABLE made_by_{who} (id int)"),
        format!("DROP TABLE made_by_{who}"),
        "CREATE INDEX ON t (v)".to_owned(),
        "TRUNCATE u".to_owned(),
    ])
}
