//! Connections that others see: idle ones in the way of a DROP DATABASE, those that are ended, COPY out cut short.

use std::time::{Duration, Instant};

use pgweir::demo::cluster::SUPERUSER;
use pgweir::demo::sample;

use crate::support::wire::{Frames, Login, Wire};
use crate::support::{Builder, LIMIT, Pgweir, cluster, wait_until};

fn frames() -> Frames {
    Frames::new()
}

/// A database of the test's own behind pgweir, in a pool like this.
fn database(name: &str, pool: &str) -> Builder {
    cluster().primary().psql(&format!("CREATE DATABASE {name} OWNER app")).unwrap();
    let port = cluster().primary().port();
    Pgweir::builder().cluster(cluster(), &[]).operator().more(&format!(
        "[[databases]]\nname = \"{name}\"\n[databases.pool]\n{pool}\n\
         [[databases.nodes]]\nhost = \"127.0.0.1\"\nport = {port}\nrole = \"primary\"\n"
    ))
}

fn use_it(pgweir: &Pgweir, database: &str) -> Wire {
    let mut client = Wire::log_in(pgweir.port(), &Login { database, ..Login::default() });
    assert_eq!(client.value("SELECT current_database()"), database);
    client
}

/// The connections to it, as the primary sees them.
fn held(database: &str) -> usize {
    let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'");
    cluster().primary().psql(&sql).unwrap().parse().unwrap()
}

/// pgweir's own: one probes the node, one reads the definitions.
const OWN: usize = 2;

/// What wants a database to itself, through pgweir: idle connections, those kept for stock, one under reset and pgweir's own
/// are gone before Postgres has waited for them in vain, which it does for five seconds.
#[test]
fn a_database_is_left_to_what_copies_renames_and_drops_it() {
    let primary = cluster().primary();
    for mode in ["transaction", "session"] {
        let (first, second) = (format!("vacated_{mode}"), format!("copied_{mode}"));
        primary.psql(&format!("CREATE DATABASE {first}")).unwrap();
        let any = format!(
            "[[databases]]\nname = \"*\"\ntls = \"disable\"\n[[databases.nodes]]\nhost = \"127.0.0.1\"\n\
             port = {}\nrole = \"primary\"\n",
            primary.port()
        );
        let builder = Pgweir::builder().cluster(cluster(), &[]).set("pool.mode", mode).set("pool.min", 2);
        let pgweir = builder.more(&any).start();
        let ask = |database: &str, sql: &str| {
            let url = pgweir.url_of(SUPERUSER, primary.password(), database);
            pgweir.psql_output(&["-c", sql, &url])
        };
        // The statement, and which of the two is there before it.
        for (statement, there) in [
            (format!("CREATE DATABASE {second} TEMPLATE {first}"), [true, false]),
            (format!("ALTER DATABASE {first} RENAME TO {first}_2; "), [true, true]),
            (format!("DROP DATABASE {second}"), [false, true]),
        ] {
            for (database, there) in [&first, &second].into_iter().zip(there) {
                let output = ask(database, "SELECT 1; SELECT pg_advisory_lock(1)");
                assert_eq!(output.status.success(), there, "{database} before {statement}");
            }
            let output = ask(sample::DATABASE, &statement);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{mode}: {statement}: {said}");
        }
        primary.psql(&format!("DROP DATABASE {first}_2")).unwrap();
    }
}

/// Whoever has no right to the database, and whoever waits for something else first, disturbs nobody there.
#[test]
fn a_database_is_left_to_nobody_who_may_not_have_it() {
    let primary = cluster().primary();
    let create = "CREATE ROLE has_no_database LOGIN PASSWORD 'has_no_database'";
    primary.psql(create).unwrap();
    let builder = database("is_not_left", "max = 1\nmin = 0").user("has_no_database", "has_no_database");
    let pgweir = builder.start();
    let mut inside = use_it(&pgweir, "is_not_left");
    let other = || {
        let login = Login { user: "has_no_database", password: "has_no_database", ..Login::default() };
        Wire::log_in(pgweir.port(), &login)
    };
    let mut stranger = other();
    let pid = |inside: &mut Wire| inside.value("SELECT pg_backend_pid()");
    let statements = [
        "DROP DATABASE is_not_left",
        "DROP DATABASE is_not_left WITH (FORCE)",
        "ALTER DATABASE is_not_left RENAME TO was_left",
        "ALTER DATABASE is_not_left SET TABLESPACE pg_default",
        "CREATE DATABASE was_copied TEMPLATE is_not_left",
        "DROP DATABASE is_not_left_at_all",
        "COMMENT ON DATABASE is_not_left IS 'is_not_left'",
    ];
    for sql in statements {
        for frames in [frames().query(sql), frames().run(sql, &[]).sync()] {
            // A machine so busy that a refusal takes as long as a wait shows nothing.
            wait_until(LIMIT, "an answer at once", || {
                let (before, began) = (pid(&mut inside), Instant::now());
                stranger.send(&frames);
                let answer = stranger.until(b'Z');
                let at_once = began.elapsed() < Duration::from_millis(100);
                assert!(answer.iter().any(|frame| frame.tag == b'E'), "{sql}: {answer:?}");
                let after = pid(&mut inside);
                assert!(!at_once || before == after, "{sql}");
                at_once
            });
        }
    }
    // Behind what takes its time, or as a part of it.
    for sql in ["DROP DATABASE is_not_left", "ALTER DATABASE is_not_left RENAME TO was_left"] {
        let slow = "SELECT pg_sleep(0.4)";
        let several = format!("{slow}; {sql}");
        for (frames, ends) in [
            (frames().query(slow).query(sql), 2),
            (frames().query(&several), 1),
            (frames().run(slow, &[]).run(sql, &[]).sync(), 1),
            (frames().run(slow, &[]).sync().run(sql, &[]).sync(), 2),
            (frames().parse("", sql).bind("p", "", &[]).run(slow, &[]).execute("p", 0).sync(), 1),
            (frames().query(&format!("DO 'BEGIN PERFORM pg_sleep(0.4); END'; {sql}")), 1),
            // Bound, and never executed.
            (frames().parse("", sql).bind("", "", &[]).flush().query(slow), 1),
        ] {
            let before = pid(&mut inside);
            stranger.send(&frames);
            let answers: Vec<_> = (0..ends).flat_map(|_| stranger.until(b'Z')).collect();
            assert!(!answers.is_empty());
            assert_eq!(before, pid(&mut inside), "{sql}: {answers:?}");
        }
    }
    primary.psql("DROP DATABASE is_not_left WITH (FORCE)").unwrap();
}

/// Whatever comes of the statement, the database is taken up again when it has ended.
#[test]
fn a_database_that_was_left_in_vain_is_taken_up_again() {
    let primary = cluster().primary();
    let pgweir = database("left_in_vain", "min = 2").start();
    let mut inside = use_it(&pgweir, "left_in_vain");
    let login = Login { user: SUPERUSER, password: primary.password(), ..Login::default() };
    let mut owner = Wire::log_in(pgweir.port(), &login);
    owner.query("SET statement_timeout = '900ms'");
    // What makes it wait is not pgweir's.
    let _blocker = Wire::log_in(primary.port(), &Login { database: "left_in_vain", ..login });
    let full = || held("left_in_vain") > OWN + 2;
    let began = Instant::now();
    const ROUNDS: u32 = 5;
    for round in 0..ROUNDS {
        wait_until(LIMIT, "the kept connections", full);
        let before = inside.value("SELECT pg_backend_pid()");
        let sql = "ALTER DATABASE left_in_vain RENAME TO left_for_good";
        let frames = if round % 2 == 0 { frames().query(sql) } else { frames().run(sql, &[]).sync() };
        owner.send(&frames);
        let answer = owner.until(b'Z');
        assert!(answer.iter().any(|frame| frame.tag == b'E' && frame.sqlstate() == "57014"), "{answer:?}");
        assert_ne!(before, inside.value("SELECT pg_backend_pid()"), "it was left");
    }
    wait_until(LIMIT, "the kept connections", full);
    // Postgres's own patience, each time, would be more.
    assert!(began.elapsed() < ROUNDS * Duration::from_secs(5));
    primary.psql("DROP DATABASE left_in_vain WITH (FORCE)").unwrap();
}

/// What is above `min` goes after `idle_timeout`, though its client stays. pgweir's own are left: past pgweir, DROP DATABASE
/// needs FORCE.
#[test]
fn idle_connections_leave_a_database_that_is_to_be_dropped() {
    let pgweir = database("soon_gone", "min = 0\nidle_timeout = \"100ms\"\nreap_interval = \"100ms\"").start();
    let _idle = use_it(&pgweir, "soon_gone");
    wait_until(LIMIT, "all but pgweir's own to go", || held("soon_gone") <= OWN);
    cluster().primary().psql("DROP DATABASE soon_gone WITH (FORCE)").unwrap();
}

/// Those that are kept go where the operator pauses the database.
#[test]
fn a_paused_database_keeps_no_pooled_connection() {
    let pgweir = database("paused_gone", "min = 2").start();
    let _idle = use_it(&pgweir, "paused_gone");
    wait_until(LIMIT, "the kept connections", || held("paused_gone") >= OWN + 2);
    pgweir.console("PAUSE paused_gone");
    wait_until(LIMIT, "their end", || held("paused_gone") <= OWN);
    cluster().primary().psql("DROP DATABASE paused_gone WITH (FORCE)").unwrap();
}

/// By itself or by another: the server's own words, then the end; and the next client is served.
#[test]
fn a_backend_that_is_ended_says_so_to_its_client() {
    let pgweir = Pgweir::builder().cluster(cluster(), &[]).set("pool.max", 1).start();
    let mut idle = Wire::connect(pgweir.port());
    for end in [
        frames().query("SELECT pg_terminate_backend(pg_backend_pid())"),
        frames().query("BEGIN").query("SELECT pg_terminate_backend(pg_backend_pid())"),
        frames().run("SELECT pg_terminate_backend(pg_backend_pid())", &[]).sync(),
    ] {
        let mut client = Wire::connect(pgweir.port());
        client.send(&end);
        let last = client.rest().pop().unwrap();
        assert_eq!((last.tag, last.sqlstate().as_str(), last.field(b'S').as_str()), (b'E', "57P01", "FATAL"));
        assert_eq!(idle.value("SELECT 'served'"), "served");
    }
}

#[test]
fn copy_out_with_notices_and_cancelled() {
    let function = "CREATE FUNCTION notices_in_copy(n int) RETURNS int LANGUAGE plpgsql AS \
                    'BEGIN RAISE NOTICE ''row %'', n; RETURN n; END'";
    cluster().primary().psql_in(sample::DATABASE, function).unwrap();
    let pgweir = Pgweir::builder().cluster(cluster(), &[]).set("pool.max", 1).start();
    let mut client = Wire::connect(pgweir.port());
    let mut other = Wire::connect(pgweir.port());
    let copy = frames().query("COPY (SELECT notices_in_copy(n) FROM generate_series(1, 3) n) TO STDOUT");
    client.send(&copy);
    let told: String = client.until(b'Z').iter().map(|frame| char::from(frame.tag)).collect();
    assert_eq!(told, "HNdNdNdcCZ");
    client.send(&frames().query("COPY (SELECT repeat('x', 1000) || generate_series(1, 100000000)) TO STDOUT"));
    client.until(b'd');
    client.cancel();
    let end = client.until(b'Z');
    assert_eq!(end[end.len() - 2].sqlstate(), "57014");
    assert_eq!(other.value("SELECT 'served'"), "served");
    assert_eq!(client.value("SELECT 'and goes on'"), "and goes on");
}

/// Each is served, whoever came first and however few connections there are.
#[test]
fn ninety_clients_on_two_connections() {
    let pgweir = Pgweir::builder().cluster(cluster(), &[]).set("pool.max", 2).start();
    let mut clients: Vec<_> = (0..90).map(|_| Wire::connect(pgweir.port())).collect();
    for client in &mut clients {
        client.send(&frames().query("BEGIN; SELECT pg_backend_pid(); COMMIT"));
    }
    let mut pids: Vec<_> = clients.iter_mut().map(|client| client.expect("CTDCCZ")[2].value()).collect();
    pids.sort();
    pids.dedup();
    assert!(pids.len() <= 2, "{pids:?}");
}
