//! Connections that others see: idle ones in the way of a DROP DATABASE, those that are ended, COPY out cut short.

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
    client.send(&frames().query("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000000)) TO STDOUT"));
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
