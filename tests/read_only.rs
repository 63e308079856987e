//! READ ONLY transaction blocks: where they run, read off the servers' own logs, and that nothing in them is otherwise than on
//! the primary.

mod support;

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use pgweir::demo::cluster::{Cluster, Shutdown};
use pgweir::demo::sample;
use support::sessions::{block_on, column, connect, sqlstate, value, wait_for};
use support::{Builder, LIMIT, Pgweir, Raw, Role, logged, wait_until};
use tokio_postgres::Client;

fn start(settings: &[(&str, &str)]) -> Cluster {
    let builder = Cluster::builder().replicas(2).setting("log_statement", "all");
    let cluster = settings.iter().fold(builder, |builder, (name, value)| builder.setting(name, value)).start().unwrap();
    sample::install(cluster.primary()).unwrap();
    cluster.wait_replayed(LIMIT).unwrap();
    cluster
}

/// A primary and two replicas; nobody stops or stalls them.
fn cluster() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| start(&[]))
}

/// Others, which tests stop, stall and kill, one at a time; all of them up and level at its start.
fn suffering() -> MutexGuard<'static, Cluster> {
    static SHARED: OnceLock<Mutex<Cluster>> = OnceLock::new();
    // Replay does not wait for readers, and only the tests give it reason to.
    let settings = [("max_standby_streaming_delay", "0"), ("autovacuum", "off")];
    let cluster = SHARED.get_or_init(|| Mutex::new(start(&settings))).lock().unwrap_or_else(PoisonError::into_inner);
    for server in cluster.servers() {
        server.resume();
        server.start().unwrap();
    }
    for replica in cluster.replicas() {
        replica.psql("SELECT pg_wal_replay_resume()").unwrap();
    }
    cluster.wait_replayed(LIMIT).unwrap();
    cluster
}

/// Where freshness has no say in where a block runs.
fn builder() -> Builder {
    Pgweir::builder().cluster(cluster(), &[1, 1]).set("routing.freshness", "eventual")
}

/// SQL on the primary, past pgweir, seen by all replicas when it returns.
fn directly(sql: &str) {
    cluster().primary().psql_in(sample::DATABASE, sql).unwrap();
    cluster().wait_replayed(LIMIT).unwrap();
}

/// How often statements with the marker ran on each server: the primary, then the replicas.
fn runs(cluster: &Cluster, marker: &str) -> Vec<usize> {
    cluster.servers().map(|server| logged(server, marker)).collect()
}

/// All statements with the marker have run on one replica.
#[track_caller]
fn assert_on_one_replica(marker: &str) {
    let runs = runs(cluster(), marker);
    assert!(runs[0] == 0 && (runs[1] == 0) != (runs[2] == 0), "{marker}: {runs:?}");
}

#[track_caller]
fn assert_on_primary(marker: &str) {
    let runs = runs(cluster(), marker);
    assert!(runs[0] > 0 && runs[1..] == [0, 0], "{marker}: {runs:?}");
}

/// Runs statements that must succeed.
async fn run(client: &Client, statements: &[&str]) {
    for sql in statements {
        client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
}

// ---- where they run --------------------------------------------------------------------------------------------

#[test]
fn a_block_runs_on_one_replica_to_its_end() {
    let pgweir = builder().start();
    let begins = [
        "BEGIN READ ONLY",
        "begin transaction read only",
        "START TRANSACTION READ ONLY;",
        "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY",
        "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY NOT DEFERRABLE",
    ];
    for (number, begin) in begins.iter().enumerate() {
        block_on(async {
            let client = connect(&pgweir.url()).await;
            let marker = format!("whole-{number}-end");
            for end in ["COMMIT", "ROLLBACK", "END"] {
                run(
                    &client,
                    &[
                        &format!("{begin} /* {marker} */"),
                        &format!("SELECT count(*) FROM users /* {marker} */"),
                        &format!("SELECT name FROM users WHERE id = 1 /* {marker} */"),
                        &format!("{end} /* {marker} */"),
                    ],
                )
                .await;
            }
            assert_eq!(runs(cluster(), &marker)[0], 0, "{begin}");
            // The same by the extended protocol.
            let marker = format!("extended-{number}-end");
            client.execute(&format!("{} /* {marker} */", begin.trim_end_matches(';')), &[]).await.unwrap();
            client.query(&format!("SELECT name FROM users WHERE id = $1 /* {marker} */"), &[&1i64]).await.unwrap();
            client.query(&format!("SELECT count(*) FROM users /* {marker} */"), &[]).await.unwrap();
            client.execute(&format!("COMMIT /* {marker} */"), &[]).await.unwrap();
            assert_eq!(runs(cluster(), &marker)[0], 0, "{begin}");
            // One block, one node.
            run(&client, &[begin]).await;
            for _ in 0..4 {
                value(&client, &format!("SELECT 1 /* one-{number}-end */")).await;
            }
            run(&client, &["COMMIT"]).await;
        });
        assert_on_one_replica(&format!("one-{number}-end"));
    }
}

#[test]
fn blocks_are_dealt_as_reads_are() {
    let pgweir = builder().start();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        for _ in 0..8 {
            run(&client, &["BEGIN READ ONLY", "SELECT 1 /* dealt */", "SELECT 2 /* dealt */", "COMMIT"]).await;
        }
    });
    assert_eq!(runs(cluster(), "dealt"), [0, 8, 8]);
}

#[test]
fn a_session_whose_transactions_are_read_only_by_default() {
    let pgweir = builder().start();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        run(&client, &["SET default_transaction_read_only = on"]).await;
        for _ in 0..2 {
            run(&client, &["BEGIN /* by-default */", "SELECT 1 /* by-default */", "COMMIT /* by-default */"]).await;
        }
        run(&client, &["BEGIN READ WRITE /* not-by-default */", "SELECT 1 /* not-by-default */", "COMMIT"]).await;
    });
    let runs = runs(cluster(), " by-default */");
    assert_eq!((runs[0], runs.iter().sum::<usize>()), (0, 6), "{runs:?}");
    assert_on_primary("not-by-default */");
}

#[test]
fn what_no_replica_can_be_trusted_with_opens_on_the_primary() {
    let pgweir = builder().start();
    let begins = [
        "BEGIN",
        "BEGIN READ WRITE",
        "BEGIN READ ONLY, READ WRITE",
        "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
        "START TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
        "BEGIN READ ONLY DEFERRABLE",
        "/* pgweir: primary */ BEGIN READ ONLY",
        "BEGIN READ ONLY; SELECT 1",
        "BEGIN; SET TRANSACTION READ ONLY",
    ];
    block_on(async {
        for (number, begin) in begins.iter().enumerate() {
            let marker = format!("trusted-{number}-end");
            let client = connect(&pgweir.url()).await;
            run(&client, &[&format!("{begin} /* {marker} */"), &format!("SELECT 1 /* {marker} */"), "COMMIT"]).await;
            assert_on_primary(&marker);
        }
        let client = connect(&pgweir.url()).await;
        run(&client, &["SET default_transaction_isolation = 'serializable'"]).await;
        run(&client, &["BEGIN READ ONLY /* by-session */", "SELECT 1 /* by-session */", "COMMIT"]).await;
        assert_on_primary("by-session");
        run(&client, &["RESET default_transaction_isolation", "SET pgweir.route = 'primary'"]).await;
        run(&client, &["BEGIN READ ONLY /* by-route */", "SELECT 1 /* by-route */", "COMMIT"]).await;
        assert_on_primary("by-route");
    });
}

/// BEGIN and what follows in one segment, as drivers send it.
#[test]
fn a_pipeline_that_begins_a_block_is_judged_as_a_whole() {
    let pgweir = builder().start();
    let mut raw = Raw::connect(pgweir.port(), sample::USER);
    let sync: (u8, &[u8]) = (b'S', b"");
    raw.execute("BEGIN READ ONLY /* piped-a */").execute("SELECT 1 /* piped-a */").frame(sync.0, sync.1).flush();
    assert_eq!(raw.until_ready(), b'T');
    raw.execute("SELECT 2 /* piped-a */").execute("COMMIT /* piped-a */").frame(sync.0, sync.1).flush();
    assert_eq!(raw.until_ready(), b'I');
    assert_on_one_replica("piped-a");
    raw.execute("BEGIN READ ONLY /* piped-b */").execute("SELECT 1 /* piped-b */").execute("COMMIT /* piped-b */");
    raw.frame(sync.0, sync.1).flush();
    assert_eq!(raw.until_ready(), b'I');
    assert_on_one_replica("piped-b");
    // One of them is for the primary.
    raw.execute("BEGIN READ ONLY /* piped-c */").execute("SELECT 1 /* piped-c */");
    raw.execute("SELECT pg_advisory_xact_lock(7001) /* piped-c */").frame(sync.0, sync.1).flush();
    assert_eq!(raw.until_ready(), b'T');
    assert_eq!(raw.run("COMMIT /* piped-c */"), b'I');
    assert_on_primary("piped-c");
    // Behind a Flush anything may follow.
    raw.execute("BEGIN READ ONLY /* piped-d */").frame(b'H', b"").flush().until(b'C');
    raw.execute("NOTIFY piped_d /* piped-d */").frame(sync.0, sync.1).flush();
    assert_eq!(raw.until_ready(), b'T');
    assert_eq!(raw.run("ROLLBACK /* piped-d */"), b'I');
    assert_on_primary("piped-d");
}

/// What comes behind the end of a block, sent ahead of its answer, is no part of it.
#[test]
fn what_follows_the_end_of_a_block_is_decided_anew() {
    let pgweir = builder().start();
    pgweir.psql("CREATE TABLE behind_end (n int)");
    for ends_by in ["query", "execute"] {
        let mut raw = Raw::connect(pgweir.port(), sample::USER);
        assert_eq!(raw.run("BEGIN READ ONLY"), b'T');
        raw.query("SELECT 1 /* behind-end-a */");
        match ends_by {
            "query" => raw.query("COMMIT"),
            _ => raw.execute("COMMIT").frame(b'S', b""),
        };
        raw.query("INSERT INTO behind_end VALUES (1) /* behind-end-b */");
        raw.execute("INSERT INTO behind_end VALUES (2) /* behind-end-b */").frame(b'S', b"");
        raw.query("BEGIN READ ONLY").query("SELECT 1 /* behind-end-a */").query("COMMIT").flush();
        for status in [b'T', b'I', b'I', b'I', b'T', b'T', b'I'] {
            assert_eq!(raw.until_ready(), status, "{ends_by}");
        }
        // In one segment with the end, it is too late for another server. In a session that has not been on the primary:
        let mut raw = Raw::connect(pgweir.port(), sample::USER);
        let first = format!("SELECT 1 AS behind_end_{ends_by}");
        assert_eq!((raw.run("BEGIN READ ONLY"), raw.run(&first)), (b'T', b'T'));
        raw.execute("COMMIT").execute("INSERT INTO behind_end VALUES (3) /* behind-end-c */").frame(b'S', b"").flush();
        assert_eq!(raw.until_error(), "40001");
        assert_eq!(raw.until_ready(), b'I');
        assert_eq!((raw.run("BEGIN READ ONLY"), raw.run(&first)), (b'T', b'T'));
        raw.execute("COMMIT").execute("INSERT INTO behind_end VALUES (3)").frame(b'S', b"").flush();
        assert_eq!(raw.until_ready(), b'I');
    }
    assert_on_primary("behind-end-b");
    assert_eq!(pgweir.psql("/* pgweir: primary */ SELECT count(*), sum(n) FROM behind_end"), "6|12");
    assert_eq!(runs(cluster(), "behind-end-c"), [0, 0, 0]);
}

// ---- blocks that say it later ----------------------------------------------------------------------------------

/// What makes a block READ ONLY that has begun as any other.
const TURNS: [&str; 5] = [
    "SET TRANSACTION READ ONLY",
    "set transaction isolation level repeatable read, read only",
    "SET LOCAL transaction_read_only = on",
    "SET transaction_read_only TO 'on'",
    "SELECT set_config('transaction_read_only', 'on', true)",
];

#[test]
fn a_block_that_its_first_statement_makes_read_only_runs_on_a_replica() {
    let pgweir = builder().start();
    for (number, turn) in TURNS.iter().enumerate() {
        for (begin, extended) in [("BEGIN", false), ("BEGIN ISOLATION LEVEL READ COMMITTED", true)] {
            let marker = format!("turned-{number}-{extended}-end");
            let mut raw = Raw::connect(pgweir.port(), sample::USER);
            assert_eq!(raw.run(begin), b'T');
            match extended {
                true => raw.execute(turn).frame(b'S', b"").flush(),
                false => raw.query(turn).flush(),
            };
            assert_eq!(raw.until_ready(), b'T', "{turn}");
            assert_eq!(raw.run(&format!("SELECT count(*) FROM users /* {marker} */")), b'T');
            assert_eq!(raw.value(&format!("SELECT 1 /* {marker} */")), "1");
            let repeatable = turn.contains("repeatable");
            let isolation = if repeatable { "repeatable read" } else { "read committed" };
            assert_eq!(raw.value("SHOW transaction_isolation"), isolation, "{turn}");
            assert_eq!(raw.value("SHOW transaction_read_only"), "on", "{turn}");
            assert_eq!(raw.run("COMMIT"), b'I');
            assert_on_one_replica(&marker);
            // Nothing of it is left.
            assert_eq!(raw.value("/* pgweir: primary */ SHOW transaction_read_only"), "off");
            assert_eq!(raw.run("BEGIN"), b'T');
            assert_eq!((raw.value("SHOW transaction_read_only").as_str(), raw.run("ROLLBACK")), ("off", b'I'));
        }
    }
}

#[test]
fn a_block_is_not_turned_that_has_done_something_or_has_to_stay() {
    directly("SET ROLE app; CREATE TABLE not_turned (n int)");
    let pgweir = builder().start();
    let mut raw = Raw::connect(pgweir.port(), sample::USER);
    let ahead = [
        "INSERT INTO not_turned VALUES (1)",
        "SELECT 1",
        "SAVEPOINT a",
        "SET LOCAL work_mem = '7MB'",
        "SELECT 1; SELECT 2",
    ];
    for sql in ahead {
        for statement in ["BEGIN", sql, "SET TRANSACTION READ ONLY", "SELECT 1 /* not-turned */", "COMMIT"] {
            raw.run(statement);
        }
    }
    // In one segment with the BEGIN.
    raw.execute("BEGIN").execute("INSERT INTO not_turned VALUES (1)").frame(b'S', b"").flush();
    assert_eq!(raw.until_ready(), b'T');
    assert_eq!((raw.run("SET TRANSACTION READ ONLY"), raw.run("SELECT 1 /* not-turned */")), (b'T', b'T'));
    assert_eq!(raw.run("COMMIT"), b'I');
    // Within a transaction, which that does not begin.
    let within = ["BEGIN", "INSERT INTO not_turned VALUES (3)", "BEGIN", "SET TRANSACTION READ ONLY"];
    for sql in within {
        assert_eq!(raw.run(sql), b'T');
    }
    assert_eq!(raw.run("COMMIT"), b'I');
    for sql in within.into_iter().chain(["COMMIT"]) {
        raw.query(sql);
    }
    raw.flush();
    for status in [b'T', b'T', b'T', b'T', b'I'] {
        assert_eq!(raw.until_ready(), status);
    }
    raw.execute("INSERT INTO not_turned VALUES (3)").query("BEGIN").flush();
    assert_eq!((raw.until_ready(), raw.run("SET TRANSACTION READ ONLY"), raw.run("COMMIT")), (b'T', b'T', b'I'));
    for begin in ["BEGIN ISOLATION LEVEL SERIALIZABLE", "/* pgweir: primary */ BEGIN", "BEGIN DEFERRABLE"] {
        assert_eq!((raw.run(begin), raw.run("SET TRANSACTION READ ONLY")), (b'T', b'T'), "{begin}");
        assert_eq!((raw.run("SELECT 1 /* not-turned */"), raw.run("COMMIT")), (b'T', b'I'), "{begin}");
    }
    // It is pinned to its connection.
    assert_eq!(raw.run("CREATE TEMP TABLE not_turned_temp (n int)"), b'I');
    assert_eq!((raw.run("BEGIN"), raw.run("SET TRANSACTION READ ONLY")), (b'T', b'T'));
    assert_eq!((raw.run("SELECT * FROM not_turned_temp /* not-turned */"), raw.run("COMMIT")), (b'T', b'I'));
    assert_on_primary("not-turned */");
    assert_eq!(pgweir.psql("/* pgweir: primary */ SELECT count(*) FROM not_turned"), "5");
    // Turned, and then for the primary: READ ONLY there too, at the level that was set.
    let mut raw = Raw::connect(pgweir.port(), sample::USER);
    assert_eq!((raw.run("BEGIN"), raw.run(TURNS[1]), raw.run("NOTIFY not_turned")), (b'T', b'T', b'T'));
    assert_eq!(raw.value("SHOW transaction_isolation"), "repeatable read");
    raw.query("INSERT INTO not_turned VALUES (1)").flush();
    assert_eq!((raw.until_error().as_str(), raw.until_ready(), raw.run("ROLLBACK")), ("25006", b'E', b'I'));
    // … or to be written in after all.
    assert_eq!((raw.run("BEGIN"), raw.run(TURNS[0]), raw.run("SET TRANSACTION READ WRITE")), (b'T', b'T', b'T'));
    assert_eq!((raw.run("INSERT INTO not_turned VALUES (2)"), raw.run("COMMIT")), (b'T', b'I'));
    assert_eq!(pgweir.psql("/* pgweir: primary */ SELECT count(*) FROM not_turned"), "6");
}

#[test]
fn what_is_set_ahead_of_the_first_statement_goes_where_the_block_goes() {
    let pgweir = builder().start();
    let settings =
        ["SET LOCAL extra_float_digits = -3", "SAVEPOINT a", "SET LOCAL my.own = 'x'", "SHOW transaction_isolation"];
    let read = "SELECT current_setting('my.own', true)";
    for (begin, turn) in [("BEGIN READ ONLY", None), ("BEGIN", Some(TURNS[0]))] {
        for extended in [false, true] {
            let mut raw = Raw::connect(pgweir.port(), sample::USER);
            let open = |raw: &mut Raw| {
                assert_eq!(raw.run(begin), b'T');
                for sql in turn.iter().chain(&settings) {
                    match extended {
                        true => raw.execute(sql).frame(b'S', b"").flush(),
                        false => raw.query(sql).flush(),
                    };
                    assert_eq!(raw.until_ready(), b'T', "{sql}");
                }
            };
            let marker = format!("prelude-{}-{extended}-end", turn.is_some());
            open(&mut raw);
            assert_eq!(raw.value(&format!("{read} /* {marker}-a */")), "x");
            assert_eq!((raw.value("SHOW extra_float_digits").as_str(), raw.run("ROLLBACK TO a")), ("-3", b'T'));
            assert_eq!(
                raw.value(&format!("SELECT count(*) FROM users /* {marker}-a */")),
                pgweir.psql("SELECT count(*) FROM users")
            );
            assert_ne!(raw.value(&format!("{read} /* {marker}-a */")), "x");
            assert_eq!(raw.run("COMMIT"), b'I');
            assert_on_one_replica(&format!("{marker}-a */"));
            assert_eq!(raw.value("SHOW extra_float_digits"), "1");
            open(&mut raw);
            assert_eq!(raw.run(&format!("SELECT pg_advisory_xact_lock(7009) /* {marker}-b */")), b'T');
            assert_eq!(raw.value(&format!("{read} /* {marker}-b */")), "x");
            assert_eq!((raw.value("SHOW extra_float_digits").as_str(), raw.run("ROLLBACK TO a")), ("-3", b'T'));
            assert_eq!(raw.run("COMMIT"), b'I');
            assert_on_primary(&format!("{marker}-b */"));
            assert_eq!(raw.value("/* pgweir: primary */ SHOW extra_float_digits"), "1");
        }
    }
}

/// What fails ahead of the first statement, or stands behind a name that cannot be said again.
#[test]
fn what_goes_wrong_ahead_of_the_first_statement_is_not_said_again() {
    let pgweir = builder().start();
    let mut raw = Raw::connect(pgweir.port(), sample::USER);
    assert_eq!((raw.run("BEGIN READ ONLY"), raw.run("SAVEPOINT a")), (b'T', b'T'));
    raw.query("SET LOCAL work_mem = 'much'").flush();
    assert_eq!((raw.until_error().as_str(), raw.until_ready(), raw.run("ROLLBACK TO a")), ("22023", b'E', b'T'));
    assert_eq!(raw.run("SELECT count(*) FROM users /* went-wrong */"), b'T');
    raw.query("NOTIFY went_wrong").flush();
    assert_eq!((raw.until_error().as_str(), raw.until_ready(), raw.run("ROLLBACK")), ("40001", b'E', b'I'));
    // The next one begins on the primary, as after any such.
    assert_eq!((raw.run("BEGIN READ ONLY"), raw.run("NOTIFY went_wrong"), raw.run("COMMIT")), (b'T', b'T', b'I'));
    // A portal that is bound and never run.
    let mut raw = Raw::connect(pgweir.port(), sample::USER);
    assert_eq!(raw.run("BEGIN READ ONLY"), b'T');
    raw.frame(b'P', b"\0SET LOCAL statement_timeout = '72s'\0\0\0")
        .frame(b'B', b"\0\0\0\0\0\0\0\0")
        .frame(b'S', b"")
        .flush();
    assert_eq!((raw.until_ready(), raw.run("NOTIFY went_wrong")), (b'T', b'T'));
    assert_eq!((raw.value("SHOW statement_timeout").as_str(), raw.run("COMMIT")), ("0", b'I'));
    assert_on_one_replica("went-wrong */");
}

#[test]
fn a_string_that_is_a_whole_block_runs_on_a_replica() {
    directly("SET ROLE app; CREATE UNLOGGED TABLE whole_unlogged (n int); CREATE TABLE whole_rows (n int)");
    let pgweir = builder().start();
    let mut raw = Raw::connect(pgweir.port(), sample::USER);
    for (number, sql) in [
        "BEGIN READ ONLY; SELECT count(*) FROM users; SELECT 1 /* whole-string */; COMMIT",
        "START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; TABLE users /* whole-string */; ROLLBACK;",
        "SELECT 1; SELECT count(*) FROM users /* whole-string */",
    ]
    .iter()
    .enumerate()
    {
        assert_eq!(raw.run(sql), b'I', "{number}");
    }
    // It fails in the middle: the block is open until the client ends it.
    raw.query("BEGIN READ ONLY; SELECT 1; SELECT 1/0 /* whole-string */; COMMIT").flush();
    assert_eq!((raw.until_error().as_str(), raw.until_ready()), ("22012", b'E'));
    raw.query("SELECT 1").flush();
    assert_eq!((raw.until_error().as_str(), raw.until_ready()), ("25P02", b'E'));
    assert_eq!((raw.run("ROLLBACK"), raw.value("SELECT 4").as_str()), (b'I', "4"));
    raw.query("SELECT 1; SELECT 1/0 /* whole-string */; SELECT 2").flush();
    assert_eq!((raw.until_error().as_str(), raw.until_ready()), ("22012", b'I'));
    let there = runs(cluster(), "whole-string");
    assert!(there[0] == 0 && there[1] + there[2] >= 5, "{there:?}");
    // One of them is for the primary.
    for sql in [
        "BEGIN READ ONLY; SELECT 1; SELECT pg_advisory_xact_lock(7010) /* whole-primary */; COMMIT",
        "BEGIN READ ONLY; SELECT count(*) FROM whole_unlogged /* whole-primary */; COMMIT",
        "BEGIN; INSERT INTO whole_rows VALUES (1) /* whole-primary */; COMMIT",
        "BEGIN READ ONLY; SELECT 1; COMMIT; INSERT INTO whole_rows VALUES (1) /* whole-primary */",
        "SELECT 1; INSERT INTO whole_rows VALUES (1) /* whole-primary */",
        "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY; SELECT 1 /* whole-primary */; COMMIT",
    ] {
        assert_eq!(raw.run(sql), b'I', "{sql}");
    }
    assert_on_primary("whole-primary");
    raw.query("BEGIN READ ONLY; INSERT INTO whole_rows VALUES (1); COMMIT").flush();
    assert_eq!((raw.until_error().as_str(), raw.until_ready(), raw.run("ROLLBACK")), ("25006", b'E', b'I'));
    assert_eq!(pgweir.psql("/* pgweir: primary */ SELECT count(*) FROM whole_rows"), "3");
}

// ---- what only the primary can do ------------------------------------------------------------------------------

const VOLATILE: &str = "
    SET ROLE app;
    CREATE TABLE moved_rows (n int);
    CREATE UNLOGGED TABLE moved_unlogged (n int);
    CREATE FUNCTION moved_report() RETURNS int LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_advisory_xact_lock(7002); RETURN 1; END $$;";

/// The primary runs these in a READ ONLY transaction; a standby fails, or does something else.
const FOR_THE_PRIMARY: [&str; 12] = [
    "LISTEN moved",
    "NOTIFY moved",
    "SELECT pg_notify('moved', 'x')",
    "SELECT pg_advisory_xact_lock(7003)",
    "SELECT txid_current()",
    "LOCK TABLE moved_rows IN SHARE MODE",
    "SELECT moved_report()",
    "SELECT count(*) FROM moved_unlogged",
    "SELECT pg_is_in_recovery()",
    "SHOW in_hot_standby",
    "DO $$ BEGIN PERFORM pg_advisory_xact_lock(7004); END $$",
    "DECLARE moved_cursor CURSOR WITH HOLD FOR SELECT 1",
];

#[test]
fn a_block_whose_first_statement_is_for_the_primary_runs_there() {
    directly(VOLATILE);
    let pgweir = builder().start();
    block_on(async {
        for (number, sql) in FOR_THE_PRIMARY.iter().enumerate() {
            let marker = format!("first-{number}-end");
            let client = connect(&pgweir.url()).await;
            let statement = format!("{sql} /* {marker} */");
            run(&client, &["BEGIN READ ONLY", &statement, &format!("SELECT 1 /* {marker} */"), "COMMIT"]).await;
            // The block is a block there, and READ ONLY.
            let client = connect(&pgweir.url()).await;
            run(&client, &["BEGIN READ ONLY", &statement]).await;
            let error = client.simple_query("INSERT INTO moved_rows VALUES (1)").await.unwrap_err();
            assert_eq!(sqlstate(&error), "25006", "{sql}");
            let error = client.simple_query("SELECT 1").await.unwrap_err();
            assert_eq!(sqlstate(&error), "25P02", "{sql}");
            run(&client, &["ROLLBACK"]).await;
            // By the extended protocol.
            let client = connect(&pgweir.url()).await;
            run(&client, &["BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"]).await;
            client.query(&statement, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
            client.query(&format!("SELECT 1 /* {marker} */"), &[]).await.unwrap();
            assert_eq!(value(&client, &format!("SHOW transaction_isolation /* {marker} */")).await, "repeatable read");
            run(&client, &["COMMIT"]).await;
            assert_on_primary(&marker);
        }
    });
    assert_eq!(pgweir.psql("/* pgweir: primary */ SELECT count(*) FROM moved_rows"), "0");
}

#[test]
fn a_block_that_turns_to_writing_before_its_first_query_writes() {
    directly("SET ROLE app; CREATE TABLE turned (n int)");
    let pgweir = builder().start();
    let turns = ["SET TRANSACTION READ WRITE", "SET transaction_read_only = off", "BEGIN READ WRITE"];
    block_on(async {
        for turn in turns {
            let client = connect(&pgweir.url()).await;
            run(&client, &["BEGIN READ ONLY", turn, "INSERT INTO turned VALUES (1)", "COMMIT"]).await;
            client.execute("BEGIN READ ONLY", &[]).await.unwrap();
            client.query(turn, &[]).await.unwrap();
            client.execute("INSERT INTO turned VALUES (1)", &[]).await.unwrap();
            client.execute("COMMIT", &[]).await.unwrap();
        }
    });
    assert_eq!(pgweir.psql("/* pgweir: primary */ SELECT count(*) FROM turned"), (2 * turns.len()).to_string());
    // What was set for that transaction alone is not said again elsewhere.
    let sets = |sql: &str| cluster().servers().map(|server| logged(server, sql)).sum::<usize>();
    assert_eq!((sets("SET \"transaction_read_only\""), sets("RESET \"transaction_read_only\"")), (0, 0));
}

#[test]
fn what_comes_too_late_for_the_primary_is_refused_and_runs_there_the_next_time() {
    directly("SET ROLE app; CREATE UNLOGGED TABLE late_unlogged (n int); CREATE TABLE late_rows (n int)");
    // Its picture of the database stays as it is: what is learned of unlogged tables holds as long.
    let pgweir = builder().set("routing.probe_interval", "1h").start();
    let late = [
        "LISTEN late",
        "NOTIFY late",
        "SELECT pg_advisory_xact_lock(7005)",
        "SELECT pg_try_advisory_lock(7006)",
        "SELECT txid_current()",
        "LOCK TABLE late_rows IN SHARE MODE",
        "SELECT count(*) FROM late_unlogged",
        "PREPARE late_statement AS SELECT 1",
        "DECLARE late_cursor CURSOR WITH HOLD FOR SELECT 1",
        "SHOW port",
    ];
    block_on(async {
        for (number, sql) in late.iter().enumerate() {
            let first = format!("SELECT {number} AS late_first_{number}");
            let marked = format!("{sql} /* late-{number}-end */");
            for extended in [false, true] {
                // One that has not been on the primary.
                let client = connect(&pgweir.url()).await;
                // Another first statement, of which nothing is learned yet.
                let first = if extended { format!("{first}, 1 AS more") } else { first.clone() };
                let say = async |sql: &str| match extended {
                    true => client.query(sql, &[]).await.map(drop),
                    false => client.simple_query(sql).await.map(drop),
                };
                run(&client, &["BEGIN READ ONLY", &first]).await;
                let error = say(&marked).await.unwrap_err();
                assert_eq!(sqlstate(&error), "40001", "{sql}");
                assert_eq!(sqlstate(&client.simple_query("SELECT 1").await.unwrap_err()), "25P02", "{sql}");
                run(&client, &["ROLLBACK"]).await;
                // As a driver does, it runs the transaction again; and another session does.
                let other = connect(&pgweir.url()).await;
                for client in [&client, &other] {
                    run(client, &["BEGIN READ ONLY", &first, &marked, "COMMIT"]).await;
                }
            }
        }
    });
    for number in 0..late.len() {
        assert_on_primary(&format!("late-{number}-end"));
    }
}

#[test]
fn a_call_by_oid_runs_on_the_primary() {
    let pgweir = builder().start();
    let oid: i32 = pgweir.psql("SELECT 'pg_catalog.pg_is_in_recovery()'::regprocedure::oid::int").parse().unwrap();
    let mut call = oid.to_be_bytes().to_vec();
    // No argument formats, no arguments, a result as text.
    call.extend([0, 0, 0, 0, 0, 0]);
    let mut raw = Raw::connect(pgweir.port(), sample::USER);
    assert_eq!(raw.run("BEGIN READ ONLY"), b'T');
    let result = raw.frame(b'F', &call).flush().until(b'V');
    assert_eq!((&result[4..], raw.until_ready()), (&b"f"[..], b'T'));
    assert_eq!(raw.run("COMMIT"), b'I');
    let mut raw = Raw::connect(pgweir.port(), sample::USER);
    assert_eq!((raw.run("BEGIN READ ONLY"), raw.run("SELECT 1 AS call_by_oid")), (b'T', b'T'));
    raw.frame(b'F', &call).flush();
    assert_eq!(raw.until_error(), "40001");
    assert_eq!((raw.until_ready(), raw.run("ROLLBACK")), (b'E', b'I'));
}

/// A Query that is larger than what is looked into.
#[test]
fn a_statement_too_large_to_look_at_is_for_the_primary() {
    let pgweir = builder().start();
    let large = format!("SELECT length('{}') /* large-statement */", "x".repeat(3 << 20));
    let mut raw = Raw::connect(pgweir.port(), sample::USER);
    assert_eq!((raw.run("BEGIN READ ONLY"), raw.run(&large), raw.run("COMMIT")), (b'T', b'T', b'I'));
    let mut raw = Raw::connect(pgweir.port(), sample::USER);
    assert_eq!((raw.run("BEGIN READ ONLY"), raw.run("SELECT 1 AS large_late")), (b'T', b'T'));
    raw.query(&large).query("SELECT 2").flush();
    assert_eq!((raw.until_error().as_str(), raw.until_ready()), ("40001", b'E'));
    assert_eq!((raw.until_error().as_str(), raw.until_ready()), ("25P02", b'E'));
    assert_eq!((raw.run("ROLLBACK"), raw.value("SELECT 5").as_str()), (b'I', "5"));
    let mut raw = Raw::connect(pgweir.port(), sample::USER);
    // A BEGIN that is too long to be said again.
    let begin = format!("BEGIN READ ONLY /* {} */", "x".repeat(20 << 10));
    assert_eq!((raw.run(&begin), raw.run("NOTIFY large_begin"), raw.run("COMMIT")), (b'T', b'T', b'I'));
}

#[test]
fn what_no_read_only_transaction_may_do_fails_as_on_the_primary() {
    directly("SET ROLE app; CREATE TABLE alike (n int); CREATE SEQUENCE alike_id");
    let pgweir = builder().start();
    let refused = [
        "INSERT INTO alike VALUES (1)",
        "UPDATE alike SET n = 1",
        "WITH d AS (DELETE FROM alike RETURNING n) SELECT * FROM d",
        "SELECT nextval('alike_id')",
        "SELECT setval('alike_id', 3)",
        "SELECT * FROM alike FOR UPDATE",
        "CREATE TABLE alike_made (n int)",
        "CREATE TEMP TABLE alike_temp (n int)",
        "SELECT 1 AS n INTO alike_into",
        "DROP TABLE alike",
        "TRUNCATE alike",
        "COPY alike FROM STDIN",
    ];
    block_on(async {
        for (number, sql) in refused.iter().enumerate() {
            let mut told = Vec::new();
            for (begin, marker) in [
                ("BEGIN READ ONLY", format!("alike-there-{number}-end")),
                ("/* pgweir: primary */ BEGIN READ ONLY", format!("alike-primary-{number}-end")),
            ] {
                // One that has not been on the primary.
                let client = connect(&pgweir.url()).await;
                run(&client, &[begin, "SELECT 1 AS alike_first"]).await;
                let error = client.simple_query(&format!("{sql} /* {marker} */")).await.unwrap_err();
                let error = error.as_db_error().unwrap();
                told.push((error.code().code().to_owned(), error.message().to_owned()));
                run(&client, &["ROLLBACK"]).await;
                assert_eq!(value(&client, "SELECT 1").await, "1");
            }
            assert_eq!(told[0].0, "25006", "{sql}");
            // A standby has words of its own for COPY.
            assert!(told[0] == told[1] || sql.starts_with("COPY"), "{sql}: {told:?}");
            assert_on_one_replica(&format!("alike-there-{number}-end"));
        }
    });
}

/// Its transactions are serializable by the role's own default, of which pgweir is not told.
#[test]
fn a_block_that_is_serializable_out_of_sight_runs_on_the_primary() {
    let role = Role::create(cluster().primary(), "ro_serializable");
    directly("ALTER ROLE ro_serializable SET default_transaction_isolation = 'serializable'");
    let pgweir = builder().user(role.name, role.name).set("routing.primary_reads", "never").start();
    block_on(async {
        let client = connect(&role.url(&pgweir)).await;
        for _ in 0..2 {
            run(&client, &["BEGIN READ ONLY"]).await;
            assert_eq!(value(&client, "SELECT 7 /* out-of-sight-a */").await, "7");
            assert_eq!(value(&client, "SELECT 8 /* out-of-sight-b */").await, "8");
            run(&client, &["COMMIT"]).await;
        }
        let mut raw = Raw::connect(pgweir.port(), role.name);
        raw.execute("BEGIN READ ONLY").execute("SELECT 9").frame(b'S', b"").flush();
        assert_eq!(raw.until_ready(), b'T');
        assert_eq!(raw.run("COMMIT"), b'I');
    });
    assert_on_primary("out-of-sight-b");
}

// ---- the session in a block ------------------------------------------------------------------------------------

#[test]
fn the_sessions_settings_hold_in_the_block_and_those_of_the_block_behind_it() {
    directly("SET ROLE app; CREATE FUNCTION settings_hold() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1'");
    let pgweir = builder().start();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        run(&client, &["SET statement_timeout = '77s'", "SET extra_float_digits = 1"]).await;
        for begin in ["BEGIN READ ONLY", "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"] {
            run(&client, &[begin]).await;
            let read = "SELECT current_setting('statement_timeout') || ' ' || current_setting('extra_float_digits')";
            assert_eq!(value(&client, read).await, "77s 1");
            run(&client, &["SAVEPOINT a", "SET statement_timeout = '78s'", "SET LOCAL extra_float_digits = 0"]).await;
            assert_eq!(value(&client, read).await, "78s 0");
            run(&client, &["ROLLBACK TO a"]).await;
            assert_eq!(value(&client, read).await, "77s 1");
            run(&client, &["SET statement_timeout = '79s'", "COMMIT"]).await;
            assert_eq!(value(&client, read).await, "79s 1");
            assert_eq!(value(&client, "/* pgweir: primary */ SHOW statement_timeout").await, "79s");
            run(&client, &["BEGIN READ ONLY", "SELECT 1", "SET statement_timeout = '1s'", "ROLLBACK"]).await;
            assert_eq!(value(&client, "SHOW statement_timeout").await, "79s");
            run(&client, &["SET statement_timeout = '77s'"]).await;
        }
        // A function of the user's own that only reads is no change.
        let reads = "SELECT settings_hold() FROM users LIMIT 1";
        run(&client, &["BEGIN READ ONLY", reads, reads, "SELECT count(*) FROM users", "COMMIT"]).await;
        // What changes how rows are shown leaves names what they are; what changes names does not.
        run(&client, &["BEGIN READ ONLY", "SELECT 1 AS names_first", "SET LOCAL TimeZone = 'Asia/Tokyo'"]).await;
        run(&client, &["SELECT count(*) FROM users", "SET LOCAL search_path = public"]).await;
        let error = client.simple_query("SELECT count(*) FROM users").await.unwrap_err();
        assert_eq!(sqlstate(&error), "40001");
        run(&client, &["ROLLBACK"]).await;
        // As the first statement, it is followed to the primary.
        run(&client, &["BEGIN READ ONLY", "SET LOCAL search_path = pg_catalog /* set-first */"]).await;
        assert_eq!(value(&client, "SELECT current_schema() /* set-first */").await, "pg_catalog");
        run(&client, &["COMMIT"]).await;
    });
    assert_on_primary("set-first");
}

#[test]
fn statements_cursors_and_savepoints_work_in_the_block() {
    let pgweir = builder().start();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        let before = client.prepare("SELECT $1::int + 1 /* in-block */").await.unwrap();
        run(&client, &["BEGIN READ ONLY"]).await;
        assert_eq!(client.query_one(&before, &[&1]).await.unwrap().get::<_, i32>(0), 2);
        let within = client.prepare("SELECT $1::int + 2 /* in-block */").await.unwrap();
        assert_eq!(client.query_one(&within, &[&1]).await.unwrap().get::<_, i32>(0), 3);
        run(&client, &["DECLARE c CURSOR FOR SELECT id FROM users ORDER BY id /* in-block */"]).await;
        assert_eq!(column(&client, "FETCH 2 FROM c").await.unwrap(), ["1", "2"]);
        run(&client, &["SAVEPOINT a"]).await;
        let error = client.simple_query("SELECT 1/0 /* in-block */").await.unwrap_err();
        assert_eq!(sqlstate(&error), "22012");
        run(&client, &["ROLLBACK TO a"]).await;
        assert_eq!(column(&client, "FETCH 1 FROM c").await.unwrap(), ["3"]);
        assert_eq!(client.query_one(&within, &[&2]).await.unwrap().get::<_, i32>(0), 4);
        assert_eq!(value(&client, "SHOW transaction_read_only").await, "on");
        run(&client, &["CLOSE c", "COMMIT AND CHAIN", "SELECT 2 /* in-block */", "COMMIT"]).await;
        for statement in [&before, &within] {
            client.query_one(statement, &[&1]).await.unwrap();
        }
        let runs = runs(cluster(), "in-block */");
        assert!(runs[0] == 0 && runs[1] + runs[2] > 0, "{runs:?}");
        // Prepared in a block that then leaves the replica.
        run(&client, &["BEGIN READ ONLY"]).await;
        let moved = client.prepare("SELECT pg_advisory_xact_lock($1) /* in-block-moved */").await.unwrap();
        client.query(&moved, &[&7007i64]).await.unwrap();
        assert_eq!(client.query_one(&before, &[&4]).await.unwrap().get::<_, i32>(0), 5);
        run(&client, &["COMMIT"]).await;
    });
    assert_on_primary("in-block-moved */");
}

#[test]
fn a_cursor_of_the_protocol_is_read_in_parts() {
    let pgweir = builder().start();
    block_on(async {
        let mut client = connect(&pgweir.url()).await;
        let transaction = client.build_transaction().read_only(true).start().await.unwrap();
        let portal = transaction.bind("SELECT id FROM users ORDER BY id /* in-parts */", &[]).await.unwrap();
        for part in 0..3i64 {
            let rows = transaction.query_portal(&portal, 2).await.unwrap();
            let ids: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
            assert_eq!(ids, [2 * part + 1, 2 * part + 2]);
        }
        transaction.commit().await.unwrap();
    });
    assert_on_one_replica("in-parts");
}

#[test]
fn a_statement_in_the_block_is_cancelled() {
    let pgweir = builder().start();
    let mut raw = Raw::connect(pgweir.port(), sample::USER);
    for begun in [false, true] {
        assert_eq!(raw.run("BEGIN READ ONLY"), b'T');
        if begun {
            assert_eq!(raw.run("SELECT 1"), b'T');
        }
        let marker = format!("cancelled-{begun}-end");
        raw.query(&format!("SELECT pg_sleep(600) /* {marker} */")).flush();
        wait_until(LIMIT, "the statement to run", || runs(cluster(), &marker).iter().sum::<usize>() > 0);
        raw.cancel();
        assert_eq!((raw.until_error().as_str(), raw.until_ready()), ("57014", b'E'));
        assert_eq!(raw.run("ROLLBACK"), b'I');
        assert_on_one_replica(&marker);
    }
}

#[test]
fn a_failed_block_is_over_when_it_is_ended() {
    let pgweir = builder().start();
    let mut raw = Raw::connect(pgweir.port(), sample::USER);
    for bad in ["SELECT 1/0", "SELECT nowhere FROM users"] {
        for extended in [false, true] {
            assert_eq!(raw.run("BEGIN READ ONLY"), b'T');
            match extended {
                true => raw.execute(bad).frame(b'S', b"").flush(),
                false => raw.query(bad).flush(),
            };
            raw.until_error();
            assert_eq!(raw.until_ready(), b'E', "{bad}");
            raw.query("INSERT INTO users VALUES (1)").flush();
            assert_eq!((raw.until_error().as_str(), raw.until_ready()), ("25P02", b'E'), "{bad}");
            // A COMMIT of a failed block is a ROLLBACK.
            assert_eq!(&raw.query("COMMIT").flush().until(b'C')[..], b"ROLLBACK\0");
            assert_eq!(raw.until_ready(), b'I');
        }
    }
    assert_eq!(raw.value("SELECT 3"), "3");
}

/// What stands behind the end of a failed block, in one string or one segment with it.
#[test]
fn a_failed_block_is_left_for_what_needs_the_primary() {
    let pgweir = builder().start();
    pgweir.psql("CREATE TABLE left_for (n int)");
    let failed = |number: i32| {
        let mut raw = Raw::connect(pgweir.port(), sample::USER);
        assert_eq!((raw.run("BEGIN READ ONLY"), raw.run(&format!("SELECT 1 AS left_for_{number}"))), (b'T', b'T'));
        raw.query("SELECT 1/0").flush();
        assert_eq!((raw.until_error().as_str(), raw.until_ready()), ("22012", b'E'));
        raw
    };
    let mut raw = failed(1);
    assert_eq!(raw.run("ROLLBACK; INSERT INTO left_for VALUES (1)"), b'I');
    assert_eq!(raw.value("/* pgweir: primary */ SELECT count(*) FROM left_for"), "1");
    let mut raw = failed(2);
    assert_eq!(raw.run("rollback;BEGIN"), b'T');
    assert_eq!((raw.run("INSERT INTO left_for VALUES (2)"), raw.run("COMMIT")), (b'T', b'I'));
    let mut raw = failed(3);
    raw.execute("ROLLBACK").execute("INSERT INTO left_for VALUES (3)").frame(b'S', b"").flush();
    assert_eq!((raw.until_error().as_str(), raw.until_ready()), ("40001", b'I'));
    assert_eq!(raw.run("INSERT INTO left_for VALUES (3)"), b'I');
    // Refused, and then run again as a driver may say it.
    let mut raw = Raw::connect(pgweir.port(), sample::USER);
    assert_eq!((raw.run("BEGIN READ ONLY"), raw.run("SELECT 1 AS left_for_4")), (b'T', b'T'));
    raw.query("NOTIFY left_for").flush();
    assert_eq!((raw.until_error().as_str(), raw.until_ready()), ("40001", b'E'));
    assert_eq!(raw.run("ROLLBACK; BEGIN READ ONLY"), b'T');
    assert_eq!((raw.run("SELECT 1 AS left_for_4"), raw.run("NOTIFY left_for"), raw.run("COMMIT")), (b'T', b'T', b'I'));
    // What stands ahead of the end fails it.
    let mut raw = failed(5);
    raw.query("SELECT 1; ROLLBACK").flush();
    assert_eq!((raw.until_error().as_str(), raw.until_ready()), ("25P02", b'E'));
    assert_eq!(raw.run("ROLLBACK"), b'I');
    assert_eq!(pgweir.psql("/* pgweir: primary */ SELECT count(*), sum(n) FROM left_for"), "3|6");
}

/// A Parse that fails ahead of everything else, behind a Flush and behind a Sync.
#[test]
fn a_text_that_cannot_be_prepared_fails_the_block() {
    let pgweir = builder().start();
    let mut raw = Raw::connect(pgweir.port(), sample::USER);
    for ended in [b'H', b'S'] {
        assert_eq!(raw.run("BEGIN READ ONLY"), b'T');
        raw.frame(b'P', b"bad\0SELECT 1 +\0\0\0").frame(ended, b"").flush();
        assert_eq!(raw.until_error(), "42601");
        if ended == b'H' {
            raw.frame(b'P', b"skipped\0SELECT 1\0\0\0").frame(b'S', b"").flush();
        }
        assert_eq!(raw.until_ready(), b'E');
        raw.query("SELECT 1").flush();
        assert_eq!((raw.until_error().as_str(), raw.until_ready()), ("25P02", b'E'));
        assert_eq!(raw.run("ROLLBACK"), b'I');
    }
    // What was prepared behind a Flush is bound behind the next.
    assert_eq!(raw.run("BEGIN READ ONLY"), b'T');
    raw.frame(b'P', b"good\0SELECT 4 /* behind-flush */\0\0\0").frame(b'H', b"").flush().until(b'1');
    raw.frame(b'B', b"\0good\0\0\0\0\0\0\0").frame(b'E', b"\0\0\0\0\0").frame(b'S', b"").flush();
    assert_eq!((&raw.until(b'D')[6..], raw.until_ready()), (&b"4"[..], b'T'));
    assert_eq!(raw.run("COMMIT"), b'I');
    assert_on_one_replica("behind-flush");
}

#[test]
fn a_client_that_leaves_a_block_leaves_nothing_behind() {
    let role = Role::create(cluster().primary(), "ro_leaving");
    let pgweir = builder().user(role.name, role.name).set("pool.max", 1).start();
    for statements in [&["BEGIN READ ONLY"][..], &["BEGIN READ ONLY", "SELECT 1", "SET work_mem = '7MB'"]] {
        for how in ["terminates", "dies"] {
            let mut raw = Raw::connect(pgweir.port(), role.name);
            for sql in statements {
                assert_eq!(raw.run(sql), b'T');
            }
            if how == "terminates" {
                raw.frame(b'X', b"").flush();
                raw.until_closed();
            }
            drop(raw);
            // Of one connection to each node: the next client's block waits for it.
            for _ in 0..2 {
                let mut raw = Raw::connect(pgweir.port(), role.name);
                assert_eq!(raw.run("BEGIN READ ONLY"), b'T', "{statements:?} {how}");
                assert_eq!(raw.value("SELECT current_setting('statement_timeout')"), "0");
                assert_eq!(raw.run("COMMIT"), b'I');
            }
        }
    }
}

// ---- what is told of them --------------------------------------------------------------------------------------

#[test]
fn each_decision_has_its_reason() {
    let pgweir = builder().set("admin.users", vec!["postgres"]).set("statements.slow_threshold", "0ms").start();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        run(&client, &["BEGIN READ ONLY", "SELECT 1 AS reason_read", "COMMIT"]).await;
        run(&client, &["BEGIN READ ONLY", "SELECT pg_advisory_xact_lock(7008) AS reason_lock", "COMMIT"]).await;
    });
    let url = pgweir.url_of("postgres", cluster().primary().password(), "pgweir");
    let explained = |sql: &str| {
        let output = pgweir.psql_output(&["-c", &format!("EXPLAIN ROUTE {sql}"), &url]);
        String::from_utf8(output.stdout).unwrap().lines().take(2).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(explained("BEGIN READ ONLY"), "node: replica, reason: read");
    assert_eq!(explained("BEGIN"), "node: primary, reason: transaction");
    assert_eq!(explained("COMMIT"), "node: primary, reason: transaction");
    assert_eq!(explained("BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY"), "node: primary, reason: transaction");
    let reason = |name: &str| {
        let mut found = None;
        wait_until(LIMIT, name, || {
            let entry = pgweir.slow_log().into_iter().find(|e| e["statement"].as_str().unwrap().contains(name));
            found = entry.map(|e| (e["role"].clone(), e["route_reason"].clone()));
            found.is_some()
        });
        found.unwrap()
    };
    assert_eq!(reason("reason_read"), ("replica".into(), "in_transaction".into()));
    assert_eq!(reason("reason_lock"), ("primary".into(), "lock".into()));
}

// ---- freshness -------------------------------------------------------------------------------------------------

fn stall(cluster: &Cluster) {
    for replica in cluster.replicas() {
        replica.psql("SELECT pg_wal_replay_pause()").unwrap();
        wait_until(LIMIT, "replay to stop", || {
            replica.psql("SELECT pg_get_wal_replay_pause_state()").unwrap() == "paused"
        });
    }
}

#[test]
fn a_block_sees_what_its_session_wrote_whatever_the_replicas_lack() {
    let cluster = suffering();
    let pgweir = Pgweir::builder().cluster(&cluster, &[1, 1]).start();
    pgweir.psql("CREATE TABLE ro_fresh (n int); INSERT INTO ro_fresh VALUES (0)");
    cluster.wait_replayed(LIMIT).unwrap();
    stall(&cluster);
    block_on(async {
        let client = connect(&pgweir.url()).await;
        let (mut n, mut number) = (0, 0);
        for begin in ["BEGIN READ ONLY", "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"] {
            for _ in 0..5 {
                n += 1;
                run(&client, &[&format!("UPDATE ro_fresh SET n = {n}"), begin]).await;
                assert_eq!(value(&client, "SELECT n FROM ro_fresh /* ro-fresh */").await, n.to_string());
                run(&client, &["COMMIT"]).await;
            }
        }
        // Another session that is told of it, by the token.
        let token = value(&client, "SHOW pgweir.lsn").await;
        let other = connect(&pgweir.url()).await;
        run(&other, &[&format!("SET pgweir.lsn = '{token}'"), "BEGIN READ ONLY"]).await;
        assert_eq!(value(&other, "SELECT n FROM ro_fresh /* ro-fresh */").await, n.to_string());
        run(&other, &["COMMIT"]).await;
        // In the block, before its first statement and behind it.
        let third = connect(&pgweir.url()).await;
        run(&third, &["BEGIN READ ONLY", &format!("SET pgweir.lsn = '{token}'")]).await;
        assert_eq!(value(&third, "SELECT n FROM ro_fresh /* ro-fresh */").await, n.to_string());
        run(&third, &["COMMIT", "RESET pgweir.lsn"]).await;
        let fourth = connect(&pgweir.url()).await;
        run(&fourth, &["SET pgweir.freshness = 'eventual'", "BEGIN READ ONLY", "SELECT 1 AS ro_fresh_late"]).await;
        let error = fourth.simple_query(&format!("SET pgweir.lsn = '{token}'")).await.unwrap_err();
        assert_eq!(sqlstate(&error), "40001");
        run(&fourth, &["ROLLBACK"]).await;
        assert_eq!(runs(&cluster, "ro-fresh */")[1..], [0, 0]);
        for replica in cluster.replicas() {
            replica.psql("SELECT pg_wal_replay_resume()").unwrap();
        }
        wait_for("blocks to return to the replicas", async || {
            number += 1;
            let marker = format!("ro-back-{number}-end");
            run(&client, &["BEGIN READ ONLY"]).await;
            assert_eq!(value(&client, &format!("SELECT n FROM ro_fresh /* {marker} */")).await, n.to_string());
            run(&client, &["COMMIT"]).await;
            runs(&cluster, &marker)[0] == 0
        })
        .await;
    });
}

// ---- replicas that fail ----------------------------------------------------------------------------------------

#[test]
fn a_replica_that_dies_in_a_block_is_told_of_and_the_next_block_is_unharmed() {
    let cluster = suffering();
    let victim = &cluster.replicas()[0];
    let pgweir = Pgweir::builder()
        .cluster(&cluster, &[1])
        .set("routing.probe_interval", "100ms")
        .set("pool.connection_timeout", "500ms")
        .start();
    for (round, how) in [Some(Shutdown::Fast), Some(Shutdown::Immediate), None].into_iter().enumerate() {
        wait_until(LIMIT, "the replica to be up", || pgweir.node(victim)["status"] == "up");
        let mut idle = Raw::connect(pgweir.port(), sample::USER);
        let mut busy = Raw::connect(pgweir.port(), sample::USER);
        let marker = format!("dying-{round}-end");
        assert_eq!(idle.run(&format!("BEGIN READ ONLY /* {marker} */")), b'T');
        assert_eq!(idle.run("SET LOCAL statement_timeout = '73s'"), b'T');
        assert_eq!(busy.run(&format!("BEGIN READ ONLY /* {marker} */")), b'T');
        assert_eq!(busy.run("SELECT 1"), b'T');
        assert_eq!(logged(victim, &marker), 2);
        match how {
            Some(how) => victim.stop(how).unwrap(),
            None => victim.kill9(),
        }
        // The one that had read is told, and is served when it comes again.
        let told = busy.until_closed();
        assert!(matches!(told.as_deref(), Some("57P01" | "57P02" | "08006")), "{told:?}");
        let mut again = Raw::connect(pgweir.port(), sample::USER);
        assert_eq!((again.run("BEGIN READ ONLY"), again.value("SELECT 2").as_str()), (b'T', "2"));
        assert_eq!(again.run("COMMIT"), b'I');
        // The one that had not has lost nothing.
        assert_eq!(
            (idle.value("SELECT current_setting('statement_timeout')").as_str(), idle.run("COMMIT")),
            ("73s", b'I')
        );
        victim.start().unwrap();
    }
}

#[test]
fn a_conflict_with_recovery_is_the_clients_to_know() {
    let cluster = suffering();
    let pgweir = Pgweir::builder().cluster(&cluster, &[1, 1]).start();
    pgweir.psql("CREATE TABLE ro_conflict (n int); INSERT INTO ro_conflict SELECT generate_series(1, 100)");
    cluster.wait_replayed(LIMIT).unwrap();
    let mut raw = Raw::connect(pgweir.port(), sample::USER);
    raw.run("SET pgweir.freshness = 'eventual'");
    assert_eq!(raw.run("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"), b'T');
    assert_eq!(raw.value("SELECT count(*) FROM ro_conflict"), "100");
    raw.query("SELECT pg_sleep(600) /* ro-conflict */").flush();
    wait_until(LIMIT, "the statement to run", || runs(&cluster, "ro-conflict */")[1..].iter().sum::<usize>() > 0);
    cluster.primary().psql_in(sample::DATABASE, "DELETE FROM ro_conflict").unwrap();
    cluster.primary().psql_in(sample::DATABASE, "VACUUM ro_conflict").unwrap();
    assert_eq!(raw.until_error(), "40001");
    // The server may end the connection as well.
    match raw.receive() {
        Some((b'Z', status)) => assert_eq!((&status[..], raw.run("ROLLBACK")), (&b"E"[..], b'I')),
        _ => raw = Raw::connect(pgweir.port(), sample::USER),
    }
    assert_eq!((raw.run("BEGIN READ ONLY"), raw.value("SELECT 1").as_str(), raw.run("COMMIT")), (b'T', "1", b'I'));
}
