//! Transactions in every form, with another client between them and each on another connection.

use pgweir::demo::cluster::Cluster;
use pgweir::demo::sample;

use crate::support::differential::{Arena, step};
use crate::support::wire::{Frames, Login, Wire};
use crate::support::{LIMIT, Pgweir, cluster, wait_until};

fn frames() -> Frames {
    Frames::new()
}

fn query(sql: &str) -> Frames {
    frames().query(sql)
}

#[test]
fn blocks_savepoints_and_chains() {
    Arena::new()
        .setup("DROP TABLE IF EXISTS blocks; CREATE TABLE blocks (n int); GRANT ALL ON blocks TO app")
        .same_after(
            "TRUNCATE blocks",
            &[
                step(
                    query("BEGIN; INSERT INTO blocks VALUES (1); SAVEPOINT a; INSERT INTO blocks VALUES (2)"),
                    "CCCCZ",
                ),
                step(query("SELECT 1/0"), "EZ"),
                step(query("ROLLBACK TO a; INSERT INTO blocks VALUES (3); RELEASE a"), "CCCZ"),
                step(query("COMMIT AND CHAIN"), "CZ"),
                step(query("INSERT INTO blocks VALUES (4)"), "CZ"),
                step(query("ROLLBACK AND CHAIN"), "CZ"),
                step(query("SET LOCAL work_mem = '7MB'; SHOW work_mem"), "CTDCZ"),
                step(frames().run("INSERT INTO blocks VALUES (5)", &[]).run("COMMIT AND CHAIN", &[]).sync(), "12C12CZ"),
                step(query("SHOW work_mem"), "TDCZ"),
                step(query("COMMIT"), "CZ"),
                step(query("SELECT array_agg(n ORDER BY n) FROM blocks"), "TDCZ"),
                step(query("COMMIT"), "NCZ"),
                step(query("SAVEPOINT outside"), "EZ"),
                step(query("SHOW work_mem"), "TDCZ"),
            ],
        );
}

#[test]
fn failures_at_commit() {
    let setup = "DROP TABLE IF EXISTS child, parent; CREATE TABLE parent (id int PRIMARY KEY);
                 CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
                 GRANT ALL ON parent, child TO app";
    let orphan = || frames().run("INSERT INTO child VALUES (1)", &[]);
    Arena::new().setup(setup).same_after(
        "TRUNCATE child, parent",
        &[
            step(query("BEGIN; SET work_mem = '7MB'; INSERT INTO child VALUES (1)"), "CCCZ"),
            step(query("COMMIT"), "EZ"),
            step(query("SHOW work_mem"), "TDCZ"),
            // An implicit transaction fails at its Sync, a string at its end.
            step(orphan().run("SET work_mem = '7MB'", &[]).sync(), "12C12CEZ"),
            step(query("SET work_mem = '8MB'; INSERT INTO child VALUES (2)"), "CEZ"),
            step(query("SHOW work_mem"), "TDCZ"),
            step(query("BEGIN; INSERT INTO child VALUES (3); SET CONSTRAINTS ALL IMMEDIATE"), "CCEZ"),
            step(query("COMMIT"), "CZ"),
            step(query("BEGIN; INSERT INTO child VALUES (4); INSERT INTO parent VALUES (4); COMMIT"), "CCCCZ"),
            step(query("SELECT * FROM child"), "TDCZ"),
        ],
    );
}

#[test]
fn serialization_failures_are_told_to_the_one_who_has_one() {
    let pgweir = Pgweir::builder().cluster(cluster(), &[]).set("pool.max", 2).start();
    let setup = "CREATE TABLE serial_sum (n int); INSERT INTO serial_sum VALUES (1); GRANT ALL ON serial_sum TO app";
    cluster().primary().psql_in(sample::DATABASE, setup).unwrap();
    let [mut one, mut two] = [(); 2].map(|()| Wire::connect(pgweir.port()));
    for client in [&mut one, &mut two] {
        client.ask(&query("BEGIN ISOLATION LEVEL SERIALIZABLE"), "CZ");
        client.value("SELECT sum(n) FROM serial_sum");
    }
    one.ask(&query("INSERT INTO serial_sum VALUES (2)"), "CZ");
    two.ask(&query("INSERT INTO serial_sum VALUES (3)"), "CZ");
    one.ask(&query("COMMIT"), "CZ");
    assert_eq!(two.ask(&query("COMMIT"), "EZ")[0].sqlstate(), "40001");
    for client in [&mut one, &mut two] {
        assert_eq!(client.value("SELECT sum(n) FROM serial_sum"), "3");
    }
}

#[test]
fn what_is_local_to_a_transaction_ends_with_it() {
    let made = |schema: &str| format!("SELECT count(*) FROM pg_class WHERE relname = '{schema}'");
    Arena::new().same(&[
        step(query("BEGIN; SET LOCAL TimeZone = 'Asia/Tokyo'; SHOW TimeZone"), "CCTDCSZ"),
        step(query("COMMIT"), "CSZ"),
        step(query("SHOW TimeZone"), "TDCZ"),
        step(query("SET LOCAL work_mem = '7MB'"), "NCZ"),
        step(query("SHOW work_mem"), "TDCZ"),
        step(query("SET work_mem = '6MB'; BEGIN; SET LOCAL work_mem = '7MB'; COMMIT; SHOW work_mem"), "CCCCTDCZ"),
        step(query("SHOW work_mem"), "TDCZ"),
        step(query("BEGIN; CREATE TEMP TABLE for_now (n int) ON COMMIT DROP; INSERT INTO for_now VALUES (1)"), "CCCZ"),
        step(query("SELECT n + 0 FROM for_now"), "TDCZ"),
        step(query("COMMIT"), "CZ"),
        step(query("SELECT * FROM for_now"), "EZ"),
        step(query(&made("for_now")), "TDCZ"),
    ]);
}

#[test]
fn what_may_not_stand_in_a_transaction_does_not() {
    let setup = "DROP TABLE IF EXISTS vacuumed; CREATE TABLE vacuumed (n int); ALTER TABLE vacuumed OWNER TO app";
    Arena::new().setup(setup).same_after(
        "DROP INDEX IF EXISTS vacuumed_n",
        &[
            step(query("VACUUM vacuumed"), "CZ"),
            step(frames().run("VACUUM (ANALYZE) vacuumed", &[]).sync(), "12CZ"),
            step(query("CREATE INDEX CONCURRENTLY vacuumed_n ON vacuumed (n)"), "CZ"),
            step(query("REINDEX INDEX CONCURRENTLY vacuumed_n"), "CZ"),
            step(frames().run("DROP INDEX CONCURRENTLY vacuumed_n", &[]).sync(), "12CZ"),
            step(query("BEGIN; VACUUM vacuumed"), "CEZ"),
            step(query("ROLLBACK"), "CZ"),
            step(query("SELECT 1; VACUUM vacuumed"), "TDCEZ"),
        ],
    );
}

#[test]
fn cursors_by_sql() {
    Arena::new().same(&[
        step(query("BEGIN; DECLARE c SCROLL CURSOR FOR SELECT * FROM generate_series(1, 9)"), "CCZ"),
        step(query("FETCH 2 c; MOVE 3 c; FETCH PRIOR c"), "TDCCTDCZ"),
        step(frames().run("FETCH 2 FROM c", &[]).describe(b'P', "c").sync(), "12DCTZ"),
        step(query("CLOSE c; FETCH c"), "CEZ"),
        step(query("ROLLBACK"), "CZ"),
        step(query("DECLARE c CURSOR FOR SELECT 1"), "EZ"),
        step(
            query(
                "BEGIN; DO $$ DECLARE r refcursor := 'named'; BEGIN OPEN r FOR SELECT 7; END $$; FETCH ALL FROM named",
            ),
            "CCTDCZ",
        ),
        step(query("COMMIT; FETCH ALL FROM named"), "CEZ"),
    ]);
    // The last part keeps its connection.
    Arena::new().same_pinned(&[
        step(query("BEGIN; DECLARE h CURSOR WITH HOLD FOR SELECT * FROM generate_series(1, 5); COMMIT"), "CCCZ"),
        step(query("FETCH 2 h"), "TDCZ"),
        step(query("FETCH 2 h"), "TDCZ"),
        step(query("CLOSE h"), "CZ"),
        step(query("FETCH 2 h"), "EZ"),
    ]);
}

/// A prepared transaction holds no connection: any client may end it, over any.
#[test]
fn a_prepared_transaction_frees_its_connection() {
    let own = Cluster::builder().setting("max_prepared_transactions", "5").start().unwrap();
    sample::install(own.primary()).unwrap();
    let pgweir = Pgweir::builder().cluster(&own, &[]).set("pool.max", 1).start();
    let [mut one, mut two] = [(); 2].map(|()| Wire::connect(pgweir.port()));
    one.ask(&query("CREATE TABLE in_two_phases (n int)"), "CZ");
    for (end, count) in [("ROLLBACK PREPARED 'x'", "0"), ("COMMIT PREPARED 'x'", "1")] {
        one.ask(&query("BEGIN; SET work_mem = '7MB'; INSERT INTO in_two_phases VALUES (1)"), "CCCZ");
        assert_eq!(one.ask(&query("PREPARE TRANSACTION 'x'"), "CZ")[1].body, b"I");
        assert_eq!(two.value("SELECT count(*) FROM in_two_phases"), "0");
        assert_eq!(two.value("SHOW work_mem"), "4MB");
        assert_eq!(one.value("SHOW work_mem"), "7MB");
        two.ask(&query(end), "CZ");
        assert_eq!(one.value("SELECT count(*) FROM in_two_phases"), count);
    }
    // One that cannot be prepared is rolled back.
    one.ask(&query("BEGIN; CREATE TEMP TABLE not_so (n int)"), "CCZ");
    assert_eq!(one.ask(&query("PREPARE TRANSACTION 'y'"), "EZ")[0].sqlstate(), "0A000");
    assert_eq!(two.value("SELECT 'free'"), "free");
}

/// Until the server says that no transaction is open, no other client has its connection.
#[test]
fn a_connection_is_held_to_the_end_of_its_transaction() {
    let pgweir =
        Pgweir::builder().cluster(cluster(), &[]).set("pool.max", 1).set("pool.acquire_timeout", "500ms").start();
    let [mut one, mut two] = [(); 2].map(|()| Wire::log_in(pgweir.port(), &Login::default()));
    let begun = [
        query("BEGIN"),
        query("BEGIN; SELECT 1/0"),
        query("SELECT 1; BEGIN; SELECT 2"),
        frames().run("BEGIN", &[]).sync(),
        frames().run("START TRANSACTION READ WRITE", &[]).run("SAVEPOINT a", &[]).sync(),
    ];
    for begin in begun {
        one.send(&begin);
        assert_ne!(one.until(b'Z').last().unwrap().body, b"I");
        one.query("SELECT 1");
        assert_eq!(two.query("SELECT 1")[0].sqlstate(), "53300", "{begin:?}");
        one.query("ROLLBACK");
        wait_until(LIMIT, "the connection", || two.query("SELECT 1")[0].tag == b'T');
    }
}
