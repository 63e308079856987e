//! What a client has set is its own: it sees it on whichever connection serves it, and no other client ever does.

use crate::support::{LIMIT, Pgweir, Raw, Role, cluster, wait_until};

/// Something that a session keeps.
struct Case {
    set: &'static str,
    probe: &'static str,
    /// What the probe says where it is set, and where it is not.
    mine: &'static str,
    theirs: &'static str,
}

const fn case(set: &'static str, probe: &'static str, mine: &'static str, theirs: &'static str) -> Case {
    Case { set, probe, mine, theirs }
}

const WORK_MEM: &str = "SHOW work_mem";
const TEMPORARY: &str = "SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()";
const LISTENING: &str = "SELECT count(*) FROM pg_listening_channels()";
const ADVISORY: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()";
const PREPARED: &str = "SELECT count(*) FROM pg_prepared_statements WHERE from_sql";
const CURSORS: &str = "SELECT count(*) FROM pg_cursors WHERE is_holdable";

const CASES: &[Case] = &[
    case("SET work_mem = '7MB'", WORK_MEM, "7MB", "4MB"),
    case("BEGIN; SET work_mem = '7MB'; COMMIT", WORK_MEM, "7MB", "4MB"),
    case("BEGIN; SET work_mem = '7MB'; ROLLBACK", WORK_MEM, "4MB", "4MB"),
    case("BEGIN; SET LOCAL work_mem = '7MB'; COMMIT", WORK_MEM, "4MB", "4MB"),
    case("SELECT set_config('work_mem', '7MB', false)", WORK_MEM, "7MB", "4MB"),
    case("SELECT set_config('work_mem', '7MB', false) FROM generate_series(1, 2)", WORK_MEM, "7MB", "4MB"),
    case("WITH a AS (SELECT set_config('work_mem', '7MB', false)) SELECT * FROM a", WORK_MEM, "7MB", "4MB"),
    case("DO $$ BEGIN PERFORM set_config('work_mem', '7MB', false); END $$", WORK_MEM, "7MB", "4MB"),
    case("DO $$ BEGIN SET work_mem = '7MB'; END $$", WORK_MEM, "7MB", "4MB"),
    case("UPDATE pg_settings SET setting = '7168' WHERE name = 'work_mem'", WORK_MEM, "7MB", "4MB"),
    case("SET ROLE app", "SELECT current_user", "app", "state"),
    case("SET search_path = pg_catalog", "SHOW search_path", "pg_catalog", "\"$user\", public"),
    case("SET TIME ZONE 'Asia/Tokyo'", "SHOW timezone", "Asia/Tokyo", "Etc/UTC"),
    case("SET application_name = 'mine'", "SHOW application_name", "mine", ""),
    case("SET my.own = 'mine'", "SELECT coalesce(current_setting('my.own', true), '')", "mine", ""),
    case(
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SHOW transaction_isolation",
        "serializable",
        "read committed",
    ),
    case("SET default_transaction_read_only = on", "SHOW transaction_read_only", "on", "off"),
    case("CREATE TEMP TABLE t (n int)", TEMPORARY, "1", "0"),
    case("SELECT 1 AS n INTO TEMP t", TEMPORARY, "1", "0"),
    case("DO $$ BEGIN CREATE TEMP TABLE t (n int); END $$", TEMPORARY, "1", "0"),
    case("CREATE VIEW pg_temp.v AS SELECT 1", TEMPORARY, "1", "0"),
    case("DO $$ BEGIN EXECUTE 'LISTEN news'; END $$", LISTENING, "1", "0"),
    case("SELECT pg_advisory_lock(7)", ADVISORY, "1", "0"),
    case("BEGIN; SELECT pg_advisory_lock(7); ROLLBACK", ADVISORY, "1", "0"),
    case("SELECT pg_advisory_lock(n), 1 / (n - 7) FROM generate_series(7, 7) AS n", ADVISORY, "1", "0"),
    case("BEGIN; SELECT pg_advisory_xact_lock(7); COMMIT", ADVISORY, "0", "0"),
    case("PREPARE p AS SELECT 1", PREPARED, "1", "0"),
    case("BEGIN; PREPARE p AS SELECT 1; ROLLBACK", PREPARED, "1", "0"),
    case("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT", CURSORS, "1", "0"),
];

/// What a function does is not in the text of its call.
const HIDDEN: &[Case] = &[
    case("SELECT state_set_work_mem()", WORK_MEM, "7MB", "4MB"),
    case("SELECT state_make_temp()", TEMPORARY, "1", "0"),
];

const FUNCTIONS: &str = "
CREATE FUNCTION state_set_work_mem() RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN PERFORM set_config('work_mem', '7MB', false); END $$;
CREATE FUNCTION state_make_temp() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CREATE TEMP TABLE t (n int); END $$;
";

/// A pool of two, so that a second client can take the connection that the first one used last.
#[test]
fn state_follows_its_client_and_no_other() {
    let wrong = run("state", "", CASES);
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn state_that_a_function_leaves_follows_its_client_and_no_other() {
    let wrong = run("state_followed", FUNCTIONS, HIDDEN);
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// What goes wrong with these cases, once `setup` has run on the primary.
fn run(name: &str, setup: &str, cases: &[Case]) -> Vec<String> {
    let role = Role::create(cluster().primary(), name);
    let builder = Pgweir::builder().cluster(cluster(), &[]).user(role.name, role.name);
    let pgweir = builder.set("pool.max", 2).set("pool.acquire_timeout", "10s").start();
    role.directly(setup);
    cases.iter().flat_map(|case| wrong(&pgweir, &role, case)).collect()
}

/// What is seen where it must not be, or not seen where it must.
fn wrong(pgweir: &Pgweir, role: &Role<'_>, case: &Case) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut look = |who: &str, client: &mut Raw, expected: &str| {
        let seen = client.value(case.probe);
        if seen != expected {
            wrong.push(format!("{}: {who} sees {seen:?} instead of {expected:?}", case.set));
        }
    };
    let mut owner = Raw::connect(pgweir.port(), role.name);
    owner.query(case.set).flush();
    while owner.receive().is_some_and(|(tag, _)| tag != b'Z') {}
    look("its client", &mut owner, case.mine);
    let mut other = Raw::connect(pgweir.port(), role.name);
    other.run("BEGIN; SELECT 1");
    look("its client on another connection", &mut owner, case.mine);
    look("another client", &mut other, case.theirs);
    other.run("COMMIT");
    look("its client at last", &mut owner, case.mine);
    drop((owner, other));

    wait_until(LIMIT, "free connections", || role.activity_where("pid", "state <> 'idle'").is_empty());
    let mut next = [(); 2].map(|()| Raw::connect(pgweir.port(), role.name));
    for client in &mut next {
        client.run("BEGIN");
        look("a later client", client, case.theirs);
    }
    wrong
}

#[test]
fn a_pin_ends_with_its_cause() {
    let role = Role::create(cluster().primary(), "state_pin");
    let builder = Pgweir::builder().cluster(cluster(), &[]).user(role.name, role.name);
    let pgweir = builder.set("pool.min", 1).set("pool.max", 1).set("pool.acquire_timeout", "200ms").start();
    role.wait_for(1);
    let mut pinned = Raw::connect(pgweir.port(), role.name);
    let mut other = Raw::connect(pgweir.port(), role.name);
    for (cause, end) in [
        ("CREATE TEMP TABLE t (n int)", "DISCARD TEMP"),
        ("SELECT pg_advisory_lock(7)", "SELECT pg_advisory_unlock_all()"),
        ("PREPARE p AS SELECT 1", "DEALLOCATE ALL"),
        ("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT", "CLOSE ALL"),
        ("PREPARE p AS SELECT 1; CREATE TEMP TABLE t (n int)", "DISCARD ALL"),
    ] {
        pinned.run(cause);
        assert_eq!(other.query("SELECT 1").flush().until_error(), "53300", "{cause} does not pin");
        other.until_ready();
        pinned.run(end);
        assert_eq!(other.query("SELECT 1").flush().receive().unwrap().0, b'T', "{end} does not end the pin of {cause}");
        other.until_ready();
        for probe in [TEMPORARY, LISTENING, ADVISORY, PREPARED, CURSORS] {
            assert_eq!(other.value(probe), "0", "{cause}; {end}; {probe}");
        }
    }
    // Nor does the server's log complain of how a connection was made clean.
    let log = std::fs::read(cluster().primary().log_path()).unwrap();
    let warnings = String::from_utf8_lossy(&log);
    let mut warnings = warnings.lines().filter(|line| line.contains("state_pin@") && line.contains("WARNING"));
    assert_eq!(warnings.next(), None);
}
