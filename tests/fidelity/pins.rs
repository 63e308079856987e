//! `pool.pin = "refuse"`: what would pin a client is an error, and nothing of it is left on any connection.

use pgweir::demo::sample;

use crate::support::wire::{Frames, Login, Wire};
use crate::support::{Builder, Pgweir, cluster};

/// A pool of one: who holds the connection keeps the other from it.
fn refusing() -> Pgweir {
    base().set("pool.pin", "refuse").start()
}

fn base() -> Builder {
    Pgweir::builder().cluster(cluster(), &[]).set("pool.max", 1).set("pool.acquire_timeout", "10s")
}

const PINNING: &[(&str, &str)] = &[
    ("CREATE TEMP TABLE t (n int)", "temporary table"),
    ("CREATE VIEW pg_temp.v AS SELECT 1", "temporary table"),
    ("SELECT 1 AS n INTO TEMP t", "temporary table"),
    ("PREPARE p AS SELECT 1", "prepare"),
    ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "hold cursor"),
    ("SELECT pg_advisory_lock(7)", "advisory lock"),
    ("SELECT pg_try_advisory_lock(7)", "advisory lock"),
    ("LOAD 'plpgsql'", "load"),
    ("SET my.own FROM CURRENT", "set"),
    ("SELECT lastval()", "sequence"),
];

const LEFT: &str = "SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema())
    + (SELECT count(*) FROM pg_prepared_statements WHERE from_sql) + (SELECT count(*) FROM pg_cursors WHERE is_holdable)
    + (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())";

fn frames() -> Frames {
    Frames::new()
}

#[test]
fn what_would_pin_is_an_error_and_has_no_effect() {
    let pgweir = refusing();
    let mut client = Wire::connect(pgweir.port());
    let mut other = Wire::connect(pgweir.port());
    for (sql, cause) in PINNING {
        for (messages, replies) in [
            (frames().query(sql), "EZ"),
            (frames().run(sql, &[]).sync(), "1EZ"),
            (frames().run("SELECT 1", &[]).run(sql, &[]).run("SELECT 2", &[]).sync(), "12DC1EZ"),
        ] {
            let told = client.ask(&messages, replies);
            let error = told.iter().find(|frame| frame.tag == b'E').unwrap();
            assert_eq!(error.sqlstate(), "0A000", "{sql}");
            assert!(error.field(b'M').ends_with(&format!(": {cause}")), "{sql}: {}", error.field(b'M'));
            assert!(error.field(b'H').contains("pool.pin"), "{sql}: {}", error.field(b'H'));
            assert_eq!(told.last().unwrap().body, b"I");
            assert_eq!(other.value(LEFT), "0", "{sql}");
        }
    }
    assert_eq!(client.value("SELECT 'and it goes on'"), "and it goes on");
}

#[test]
fn a_refusal_fails_its_transaction() {
    let pgweir = refusing();
    let mut client = Wire::connect(pgweir.port());
    client.ask(&frames().query("BEGIN"), "CZ");
    let told = client.ask(&frames().query("CREATE TEMP TABLE t (n int)"), "EZ");
    assert_eq!((told[0].sqlstate().as_str(), &*told[1].body), ("0A000", &b"E"[..]));
    // As of any statement then.
    for sql in ["SELECT 1", "CREATE TEMP TABLE t (n int)"] {
        assert_eq!(client.ask(&frames().query(sql), "EZ")[0].sqlstate(), "25P02");
    }
    client.ask(&frames().query("ROLLBACK TO a"), "EZ");
    client.ask(&frames().query("ROLLBACK"), "CZ");
    client.ask(&frames().query("BEGIN; SAVEPOINT a"), "CCZ");
    client.ask(&frames().run("SELECT pg_advisory_lock(7)", &[]).sync(), "1EZ");
    client.ask(&frames().query("ROLLBACK TO a"), "CZ");
    client.ask(&frames().query("COMMIT"), "CZ");
    let mut other = Wire::connect(pgweir.port());
    assert_eq!(other.value(LEFT), "0");
}

#[test]
fn what_follows_its_client_or_ends_with_its_transaction_is_allowed() {
    let pgweir = refusing();
    cluster()
        .primary()
        .psql_in(sample::DATABASE, "CREATE TABLE drawn (n serial); GRANT ALL ON drawn, drawn_n_seq TO app")
        .unwrap();
    let mut client = Wire::connect(pgweir.port());
    let mut other = Wire::connect(pgweir.port());
    for (sql, replies) in [
        ("SET work_mem = '7MB'", "CZ"),
        ("SET my.own = 'mine'", "CZ"),
        ("LISTEN news", "CZ"),
        ("BEGIN; CREATE TEMP TABLE t (n int) ON COMMIT DROP; INSERT INTO t VALUES (1); COMMIT", "CCCCZ"),
        ("BEGIN; SELECT pg_advisory_xact_lock(7); COMMIT", "CTDCCZ"),
        ("BEGIN; DECLARE c CURSOR FOR SELECT 1; FETCH c; COMMIT", "CCTDCCZ"),
        ("DO $$ BEGIN /* no temporary table, nothing to hold */ END $$", "CZ"),
        ("DROP TABLE IF EXISTS pg_temp.t", "NCZ"),
    ] {
        client.ask(&frames().query(sql), replies);
        assert_eq!(other.value(LEFT), "0", "{sql}");
    }
    assert_eq!(client.value("SHOW work_mem") + &client.value("SHOW my.own"), "7MBmine");
    // What it has drawn itself it can ask for while it has the connection.
    client.ask(&frames().query("BEGIN"), "CZ");
    client.ask(&frames().query("INSERT INTO drawn DEFAULT VALUES"), "CZ");
    assert_eq!(client.value("SELECT lastval()"), "1");
    client.ask(&frames().query("COMMIT"), "CZ");
    assert_eq!(other.value("SELECT 1"), "1", "and is not pinned for it");
    assert_eq!(client.ask(&frames().query("SELECT currval('drawn_n_seq')"), "EZ")[0].sqlstate(), "0A000");
}

#[test]
fn what_only_the_server_sees_ends_the_client_and_leaves_nothing() {
    let pgweir = refusing();
    cluster()
        .primary()
        .psql_in(
            sample::DATABASE,
            "CREATE FUNCTION hides_a_table() RETURNS void LANGUAGE plpgsql AS 'BEGIN CREATE TEMP TABLE t (n int); END';
             CREATE FUNCTION hides_a_lock() RETURNS void LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_lock(7); END'",
        )
        .unwrap();
    for (sql, cause) in [
        ("SELECT hides_a_table()", "temporary table"),
        ("SELECT hides_a_lock()", "advisory lock"),
        ("DO $$ BEGIN EXECUTE 'CREATE TE' || 'MP TABLE t (n int)'; END $$", "temporary table"),
        ("BEGIN; SELECT hides_a_table(); COMMIT", "temporary table"),
    ] {
        let mut client = Wire::connect(pgweir.port());
        client.query(sql);
        let end = client.rest();
        let error = end.last().unwrap();
        assert_eq!((error.sqlstate().as_str(), error.field(b'S').as_str()), ("0A000", "FATAL"), "{sql}");
        assert!(error.field(b'M').ends_with(cause), "{sql}: {}", error.field(b'M'));
        let mut next = Wire::connect(pgweir.port());
        assert_eq!(next.value(LEFT), "0", "{sql}");
    }
    // One that has ended with its cause is none.
    let mut client = Wire::connect(pgweir.port());
    client.query("BEGIN; SELECT hides_a_table(); DROP TABLE t; COMMIT");
    assert_eq!(client.value("SELECT 1"), "1");
}

#[test]
fn a_database_and_a_user_decide_for_themselves() {
    let make = |role: &str| {
        let sql = format!("CREATE ROLE {role} LOGIN PASSWORD '{role}'; GRANT app TO {role}");
        cluster().primary().psql(&sql).unwrap();
    };
    ["pin_allow", "pin_refuse"].iter().for_each(|role| make(role));
    let pin = |port, user: &str| {
        let mut client = Wire::log_in(port, &Login { user, password: user, ..Login::default() });
        client.query("CREATE TEMP TABLE t (n int)")[0].tag == b'C'
    };
    let users = base().user_with("pin_allow", "pool_pin", "allow").user_with("pin_refuse", "pool_pin", "refuse");
    let pgweir = users.start();
    let app = |port| Wire::connect(port).query("CREATE TEMP TABLE t (n int)")[0].tag == b'C';
    assert_eq!((app(pgweir.port()), pin(pgweir.port(), "pin_refuse")), (true, false));
    let pgweir = users.clone().set("database.pool.pin", "refuse").start();
    assert_eq!((app(pgweir.port()), pin(pgweir.port(), "pin_allow")), (false, true));
    // A session of its own needs no pin.
    let pgweir = users.set("pool.pin", "refuse").set("pool.mode", "session").start();
    assert!(app(pgweir.port()));
}
