//! The result cache and definitions, where the change stream tells nothing of them: what means something else now is
//! asked for anew, whoever defined it, and by whoever defined it at once.

mod support;

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use pgweir::demo::cluster::{Cluster, SUPERUSER};
use pgweir::demo::sample;
use support::client::{connect, wait};
use support::wire::{Login, Wire};
use support::{LIMIT, Pgweir, wait_until};

fn start() -> Mutex<Cluster> {
    let cluster = Cluster::builder().setting("max_prepared_transactions", "5").start().unwrap();
    sample::install(cluster.primary()).unwrap();
    Mutex::new(cluster)
}

/// One test at a time: what another defines empties the cache.
fn cluster() -> MutexGuard<'static, Cluster> {
    static SHARED: OnceLock<Mutex<Cluster>> = OnceLock::new();
    SHARED.get_or_init(start).lock().unwrap_or_else(PoisonError::into_inner)
}

fn pgweir(cluster: &Cluster, probe_interval: &str) -> Pgweir {
    let builder = Pgweir::builder().cluster(cluster, &[]).set("cache.enabled", true);
    let pgweir = builder.set("routing.probe_interval", probe_interval).start();
    wait_until(LIMIT, "wal", || pgweir.cache()["mode"] == "wal");
    pgweir
}

/// As the superuser in the sample's database, past pgweir.
fn around(cluster: &Cluster, sql: &str) {
    cluster.primary().psql_in(sample::DATABASE, sql).unwrap();
}

/// The first value of an answer.
fn said(client: &mut Wire, sql: &str) -> String {
    let frames = client.query(sql);
    match frames.iter().find(|frame| matches!(frame.tag, b'D' | b'E')) {
        Some(row) if row.tag == b'D' => row.value(),
        Some(_) => "error".to_owned(),
        None => "nothing".to_owned(),
    }
}

#[test]
fn what_others_define_is_seen_within_a_second_or_so() {
    let cluster = cluster();
    around(
        &cluster,
        "CREATE TABLE def (n int, w text); INSERT INTO def VALUES (1, 'running dogs');
         CREATE TYPE def_mood AS ENUM ('sad');
         CREATE TABLE def_moods (m def_mood); INSERT INTO def_moods VALUES ('sad');
         CREATE TEXT SEARCH CONFIGURATION def_ts (COPY = simple);
         CREATE TEXT SEARCH DICTIONARY def_dict (TEMPLATE = simple);
         CREATE TEXT SEARCH CONFIGURATION def_by_dict (COPY = simple);
         ALTER TEXT SEARCH CONFIGURATION def_by_dict ALTER MAPPING FOR asciiword WITH def_dict;
         CREATE COLLATION def_collation (LOCALE = 'C');
         CREATE TABLE def_p (n int) PARTITION BY LIST (n);
         CREATE TABLE def_p1 PARTITION OF def_p FOR VALUES IN (1); INSERT INTO def_p VALUES (1);
         CREATE TABLE def_p2 (n int); INSERT INTO def_p2 VALUES (2);
         CREATE TABLE def_parent (n int); INSERT INTO def_parent VALUES (1);
         CREATE TABLE def_heir (n int); INSERT INTO def_heir VALUES (2);
         CREATE TABLE def_secured (n int); INSERT INTO def_secured VALUES (1);
         CREATE FUNCTION def_f() RETURNS int STABLE LANGUAGE sql AS 'SELECT n FROM def';
         CREATE TABLE def_granted (n int); INSERT INTO def_granted VALUES (1);
         CREATE ROLE def_role; GRANT SELECT ON def_granted TO def_role; GRANT def_role TO app;
         CREATE SCHEMA def_first; GRANT USAGE ON SCHEMA def_first TO app;
         GRANT ALL ON def, def_moods, def_p, def_parent, def_secured TO app",
    );
    let pgweir = pgweir(&cluster, "50ms");
    let mut client = Wire::connect(pgweir.port());
    client.query("SET search_path = def_first, public");
    for (sql, before, change, after) in [
        ("SELECT m FROM def_moods", "sad", "ALTER TYPE def_mood RENAME VALUE 'sad' TO 'blue'", "blue"),
        ("SELECT enum_last(NULL::def_mood)", "blue", "ALTER TYPE def_mood ADD VALUE 'glad'", "glad"),
        (
            "SELECT to_tsvector('public.def_ts', w) FROM def",
            "'dogs':2 'running':1",
            "ALTER TEXT SEARCH CONFIGURATION def_ts ALTER MAPPING FOR asciiword WITH english_stem",
            "'dog':2 'run':1",
        ),
        (
            "SELECT to_tsvector('public.def_by_dict', w) FROM def",
            "'dogs':2 'running':1",
            "ALTER TEXT SEARCH DICTIONARY def_dict (ACCEPT = false)",
            "",
        ),
        ("SELECT w COLLATE def_collation FROM def", "running dogs", "DROP COLLATION def_collation", "error"),
        ("SELECT sum(n) FROM def_p", "1", "ALTER TABLE def_p ATTACH PARTITION def_p2 FOR VALUES IN (2)", "3"),
        ("SELECT sum(n) FROM def_p", "3", "UPDATE def_p2 SET n = 2; ALTER TABLE def_p DETACH PARTITION def_p2", "1"),
        ("SELECT sum(n) FROM def_parent", "1", "ALTER TABLE def_heir INHERIT def_parent", "3"),
        ("SELECT n FROM def_secured", "1", "ALTER TABLE def_secured ENABLE ROW LEVEL SECURITY", "nothing"),
        (
            "SELECT def_f()",
            "1",
            "CREATE OR REPLACE FUNCTION def_f() RETURNS int STABLE LANGUAGE sql AS 'SELECT 2'",
            "2",
        ),
        ("SELECT n FROM def_granted", "1", "REVOKE def_role FROM app", "error"),
        (
            "SELECT n FROM def",
            "1",
            "BEGIN; CREATE TABLE def_first.def AS SELECT 2 AS n; GRANT SELECT ON def_first.def TO app; COMMIT",
            "2",
        ),
    ] {
        assert_eq!(pgweir.warm(&mut client, sql), before, "{sql}");
        around(&cluster, change);
        wait_until(LIMIT, change, || said(&mut client, sql) == after);
    }
    // What a role may is no row of a catalog that everybody reads, but of a view.
    let sql = "SELECT count(*) FROM def_p2";
    around(&cluster, "ALTER ROLE app SUPERUSER");
    wait_until(LIMIT, "the right to read it", || said(&mut client, sql) == "1");
    pgweir.warm(&mut client, sql);
    around(&cluster, "ALTER ROLE app NOSUPERUSER");
    wait_until(LIMIT, "the end of that right", || said(&mut client, sql) == "error");
}

/// The stream goes on, but what it tells may mean something else.
#[test]
fn definitions_that_cannot_be_looked_at_are_not_relied_on() {
    let cluster = cluster();
    around(&cluster, "CREATE TABLE unseen (n int); INSERT INTO unseen VALUES (1); GRANT SELECT ON unseen TO app");
    let pgweir = pgweir(&cluster, "50ms");
    let (mut client, sql) = (Wire::connect(pgweir.port()), "SELECT n FROM unseen");
    assert_eq!(pgweir.warm(&mut client, sql), "1");
    let locker = connect(&cluster.primary().url(sample::DATABASE));
    wait(locker.batch_execute("BEGIN; LOCK TABLE pg_catalog.pg_ts_dict IN ACCESS EXCLUSIVE MODE")).unwrap();
    around(&cluster, "REVOKE SELECT ON unseen FROM app");
    wait_until(LIMIT, "the end of the right to read it", || said(&mut client, sql) == "error");
    let closed = pgweir.cache()["refused"]["closed"].as_u64();
    assert!(closed > Some(0), "{closed:?}");
    wait(locker.batch_execute("ROLLBACK")).unwrap();
    around(&cluster, "GRANT SELECT ON unseen TO app");
    wait_until(LIMIT, "the right to read it", || said(&mut client, sql) == "1");
    pgweir.warm(&mut client, sql);
}

/// Two changes between two looks that leave the catalogs as they were.
#[test]
fn a_right_that_was_taken_back_at_once_is_no_right() {
    let cluster = cluster();
    around(
        &cluster,
        "CREATE TABLE brief (n int); INSERT INTO brief VALUES (1);
         CREATE ROLE brief_role; GRANT SELECT ON brief TO brief_role;
         CREATE TABLE brief_secured (n int); INSERT INTO brief_secured VALUES (1);
         ALTER TABLE brief_secured ENABLE ROW LEVEL SECURITY; GRANT SELECT ON brief_secured TO app",
    );
    let pgweir = pgweir(&cluster, "50ms");
    let mut client = Wire::connect(pgweir.port());
    let locker = connect(&cluster.primary().url(sample::DATABASE));
    for (sql, given, taken, without) in [
        ("SELECT n FROM brief", "ALTER ROLE app SUPERUSER", "ALTER ROLE app NOSUPERUSER", "error"),
        ("SELECT n FROM brief", "GRANT brief_role TO app", "REVOKE brief_role FROM app", "error"),
        (
            "SELECT n FROM brief_secured",
            "CREATE POLICY brief_policy ON brief_secured USING (true)",
            "DROP POLICY brief_policy ON brief_secured",
            "nothing",
        ),
    ] {
        wait_until(LIMIT, taken, || said(&mut client, sql) == without);
        wait(locker.batch_execute("BEGIN; LOCK TABLE pg_catalog.pg_ts_dict IN ACCESS EXCLUSIVE MODE")).unwrap();
        around(&cluster, given);
        wait_until(LIMIT, given, || said(&mut client, sql) == "1");
        around(&cluster, taken);
        wait(locker.batch_execute("ROLLBACK")).unwrap();
        wait_until(LIMIT, taken, || said(&mut client, sql) == without);
    }
}

/// The definitions are looked at by themselves every minute only.
#[test]
fn what_a_session_defines_it_sees_at_once() {
    let cluster = cluster();
    around(
        &cluster,
        "CREATE TABLE own (n int); INSERT INTO own VALUES (0); GRANT ALL ON own TO app;
         CREATE TYPE own_mood AS ENUM ('v0'); ALTER TYPE own_mood OWNER TO app;
         CREATE TABLE own_moods (m own_mood); INSERT INTO own_moods VALUES ('v0'); GRANT ALL ON own_moods TO app;
         CREATE VIEW own_view AS SELECT 0 AS n FROM own; ALTER VIEW own_view OWNER TO app;
         CREATE FUNCTION own_define(v int) RETURNS void LANGUAGE plpgsql AS
         $$BEGIN EXECUTE format('CREATE OR REPLACE VIEW own_view AS SELECT %s AS n FROM own', v); END$$",
    );
    let pgweir = pgweir(&cluster, "60s");
    let login = Login { user: SUPERUSER, password: cluster.primary().password(), ..Login::default() };
    let (mut client, mut other) = (Wire::connect(pgweir.port()), Wire::log_in(pgweir.port(), &login));
    for n in 1..4 {
        pgweir.warm(&mut client, "SELECT m FROM own_moods");
        client.query(&format!("ALTER TYPE own_mood RENAME VALUE 'v{}' TO 'v{n}'", n - 1));
        assert_eq!(said(&mut client, "SELECT m FROM own_moods"), format!("v{n}"));
        assert_eq!(pgweir.warm(&mut client, "SELECT m FROM own_moods"), format!("v{n}"));
    }
    for n in 1..4 {
        let (in_function, prepared) = (2 * n - 1, 2 * n);
        assert_eq!(pgweir.warm(&mut client, "SELECT n FROM own_view"), (in_function - 1).to_string());
        client.query(&format!("SELECT own_define({in_function})"));
        assert_eq!(said(&mut client, "SELECT n FROM own_view"), in_function.to_string());
        assert_eq!(pgweir.warm(&mut client, "SELECT n FROM own_view"), in_function.to_string());
        // By the end of a transaction that another has prepared.
        pgweir.warm(&mut other, "SELECT n FROM own_view");
        around(
            &cluster,
            &format!(
                "SET ROLE app; BEGIN; CREATE OR REPLACE VIEW own_view AS SELECT {prepared} AS n FROM own; \
                 PREPARE TRANSACTION 'own'"
            ),
        );
        other.query("COMMIT PREPARED 'own'");
        assert_eq!(said(&mut other, "SELECT n FROM own_view"), prepared.to_string());
        assert_eq!(pgweir.warm(&mut other, "SELECT n FROM own_view"), prepared.to_string());
    }
    // The stream tells of a transaction that changed no rows: what others define is looked for soon, too.
    let pgweir = self::pgweir(&cluster, "60s");
    let mut client = Wire::connect(pgweir.port());
    pgweir.warm(&mut client, "SELECT n FROM own_view");
    around(&cluster, "CREATE OR REPLACE VIEW own_view AS SELECT 77 AS n FROM own");
    wait_until(LIMIT, "what another has defined", || said(&mut client, "SELECT n FROM own_view") == "77");
}

#[test]
fn moments_and_locks_in_views_are_seen() {
    let cluster = cluster();
    around(
        &cluster,
        "CREATE TABLE moment (n int, w text); INSERT INTO moment VALUES (1, 'unknown');
         CREATE VIEW moment_now AS SELECT n, ('now'::text)::date AS d FROM moment;
         CREATE VIEW moment_day AS SELECT n FROM moment WHERE '2020-01-01'::date < (' Tomorrow '::text)::date;
         CREATE VIEW moment_lock AS SELECT xmax FROM moment;
         CREATE VIEW moment_none AS SELECT n FROM moment WHERE w = 'unknown' OR w = 'Snow';
         CREATE FUNCTION moment_bound() RETURNS date STABLE LANGUAGE sql
         BEGIN ATOMIC SELECT ('yesterday'::text)::date FROM moment; END;
         GRANT ALL ON moment, moment_now, moment_day, moment_lock, moment_none TO app",
    );
    let pgweir = pgweir(&cluster, "50ms");
    let mut client = Wire::connect(pgweir.port());
    for sql in [
        "SELECT d FROM moment_now",
        "SELECT n FROM moment_day",
        "SELECT xmax FROM moment",
        "SELECT * FROM moment_lock",
        "SELECT moment_bound()",
    ] {
        pgweir.is_refused(&mut client, sql, "transient");
    }
    assert_eq!(pgweir.warm(&mut client, "SELECT n FROM moment_none"), "1");
}
