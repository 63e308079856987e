//! Blocks that begin lazily: nobody can tell, but by the round trip that is saved.

use std::thread;
use std::time::Duration;

use pgweir::demo::cluster::Server;
use pgweir::demo::sample;

use crate::support::differential::{Arena, step};
use crate::support::wire::{Frame, Frames, Wire};
use crate::support::{Builder, Gate, LIMIT, Pgweir, cluster, lone_primary, wait_until};

fn frames() -> Frames {
    Frames::new()
}

fn query(sql: &str) -> Frames {
    frames().query(sql)
}

/// A statement and its description, as libpq asks for them.
fn described(sql: &str) -> Frames {
    frames().parse("", sql).bind("", "", &[]).describe(b'P', "").execute("", 0).sync()
}

fn directly(server: &Server, sql: &str) -> String {
    server.psql_in(sample::DATABASE, sql).unwrap()
}

/// The status and the codes of errors in the replies up to the next ReadyForQuery.
fn outcome(client: &mut Wire) -> (char, Vec<String>) {
    let replies = client.until(b'Z');
    let errors = replies.iter().filter(|reply| reply.tag == b'E').map(Frame::sqlstate).collect();
    (char::from(replies.last().unwrap().body[0]), errors)
}

fn asked(client: &mut Wire, frames: &Frames) -> (char, Vec<String>) {
    client.send(frames);
    outcome(client)
}

fn fails(status: char, code: &str) -> (char, Vec<String>) {
    (status, vec![code.to_owned()])
}

fn fine(status: char) -> (char, Vec<String>) {
    (status, Vec::new())
}

/// One that idles in a transaction whose BEGIN has this marker.
fn is_shown(server: &Server, marker: &str) -> bool {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND query LIKE 'BEGIN%{marker} */'"
    );
    directly(server, &sql) == "1"
}

#[track_caller]
fn wait_until_shown(server: &Server, marker: &str) {
    wait_until(LIMIT, "the transaction on the server", || is_shown(server, marker));
}

/// Behind a gate, with one connection.
fn gated() -> (Gate, Builder) {
    let gate = Gate::new(cluster().primary().port());
    let builder = Pgweir::builder().node(gate.port, "primary", None).set("pool.max", 1);
    (gate, builder)
}

#[test]
fn every_form_is_answered_as_by_a_server() {
    let arena = Arena::new();
    arena.setup("DROP TABLE IF EXISTS lazy_forms; CREATE TABLE lazy_forms (n int); GRANT ALL ON lazy_forms TO app");
    let ends = ["COMMIT", "END WORK", "ROLLBACK", "ABORT TRANSACTION AND NO CHAIN"];
    let begins = ["BEGIN", "begin work isolation level repeatable read", "START TRANSACTION READ ONLY, DEFERRABLE;"];
    for begin in begins {
        let prepared = frames().parse("b", begin).describe(b'S', "b").sync();
        let bound = frames().bind("", "b", &[]).describe(b'P', "").execute("", 0).close(b'P', "").sync();
        let mut script = vec![step(prepared, "1tnZ")];
        for end in ends {
            script.extend([
                step(query(begin), "CZ"),
                step(query(end), "CZ"),
                step(described(begin), "12nCZ"),
                step(described(end), "12nCZ"),
                step(bound.clone(), "2nC3Z"),
                step(query("SHOW transaction_isolation"), "TDCZ"),
                step(described(end), "12nCZ"),
                step(frames().parse("", begin).describe(b'S', "").bind("", "", &[]).execute("", 1).sync(), "1tn2CZ"),
                step(frames().bind("", "b", &[]).execute("", 0).sync(), "2NCZ"),
                step(query("SAVEPOINT a; RELEASE a"), "CCZ"),
                step(query(end), "CZ"),
            ]);
        }
        arena.same(&script);
    }
    arena.same_after(
        "TRUNCATE lazy_forms",
        &[
            step(query("BEGIN"), "CZ"),
            step(query("BEGIN"), "NCZ"),
            step(query("COMMIT AND CHAIN"), "CZ"),
            step(query("COMMIT"), "CZ"),
            step(query("BEGIN"), "CZ"),
            step(query("INSERT INTO lazy_forms VALUES (1)"), "CZ"),
            step(query("COMMIT"), "CZ"),
            step(query("BEGIN READ"), "EZ"),
            step(query("BEGIN READ ONLY,"), "EZ"),
            step(query("COMMIT WORK NOW"), "EZ"),
            step(query("COMMIT"), "NCZ"),
            step(query("BEGIN"), "CZ"),
            step(query("SELEC 1"), "EZ"),
            step(query("SELECT 1"), "EZ"),
            step(query("COMMIT"), "CZ"),
            step(query("BEGIN"), "CZ"),
            step(query("VACUUM lazy_forms"), "EZ"),
            step(described("ROLLBACK"), "12nCZ"),
            step(query("BEGIN READ ONLY"), "CZ"),
            step(query("INSERT INTO lazy_forms VALUES (2)"), "EZ"),
            step(query("ROLLBACK TO a"), "EZ"),
            step(query("ROLLBACK"), "CZ"),
            step(query("START TRANSACTION"), "CZ"),
            step(query("FETCH 1 FROM none"), "EZ"),
            step(query("END"), "CZ"),
            // What cannot be bound, and a portal that has a name.
            step(frames().parse("", "BEGIN").bind("", "", &["1"]).execute("", 0).sync(), "1EZ"),
            step(frames().parse("", "BEGIN").bind("p", "", &[]).execute("p", 0).sync(), "12CZ"),
            step(frames().execute("p", 0).sync(), "EZ"),
            step(query("ROLLBACK"), "CZ"),
            step(query("BEGIN"), "CZ"),
            step(frames().sync(), "Z"),
            step(frames().run("INSERT INTO lazy_forms VALUES ($1::text::int)", &["3"]).sync(), "12CZ"),
            step(frames().run("SELECT 1/0", &[]).run("COMMIT", &[]).sync(), "1EZ"),
            step(query("COMMIT"), "CZ"),
            // Of pgweir's BEGIN there is no unnamed statement and no unnamed portal.
            step(query("BEGIN"), "CZ"),
            step(frames().bind("", "", &[]).execute("", 0).sync(), "EZ"),
            step(query("ROLLBACK"), "CZ"),
            step(query("BEGIN"), "CZ"),
            step(frames().describe(b'P', "").sync(), "EZ"),
            step(query("ROLLBACK"), "CZ"),
            step(query("BEGIN"), "CZ"),
            step(frames().execute("", 0).sync(), "EZ"),
            step(query("ROLLBACK"), "CZ"),
            // In one write.
            step(query("BEGIN").query("INSERT INTO lazy_forms VALUES (4)").query("COMMIT"), "CZCZCZ"),
            step(query("SELECT count(*), sum(n) FROM lazy_forms"), "TDCZ"),
            // The session's settings hold in it, and those of it behind it.
            step(query("SET work_mem = '6MB'; SET default_transaction_isolation = 'serializable'"), "CCZ"),
            step(query("BEGIN"), "CZ"),
            step(query("SELECT current_setting('work_mem'), current_setting('transaction_isolation')"), "TDCZ"),
            step(query("SET LOCAL work_mem = '7MB'; SET statement_timeout = '1min'"), "CCZ"),
            step(query("COMMIT"), "CZ"),
            step(query("SHOW work_mem"), "TDCZ"),
            step(query("SET default_transaction_read_only = on"), "CSZ"),
            step(query("BEGIN"), "CZ"),
            step(query("INSERT INTO lazy_forms VALUES (5)"), "EZ"),
            step(query("COMMIT"), "CZ"),
            step(query("BEGIN"), "CZ"),
            step(query("ROLLBACK"), "CZ"),
            step(query("SHOW statement_timeout"), "TDCZ"),
        ],
    );
}

/// `now()` and all that a server counts from BEGIN are off by little, whatever the client does.
#[test]
fn a_transaction_that_its_client_leaves_alone_begins_by_itself() {
    let cluster = cluster();
    let primary = cluster.primary();
    let pgweir = Pgweir::builder().cluster(cluster, &[]).start();
    let mut client = Wire::connect(pgweir.port());
    let forms = [|sql: &str| query(sql), |sql: &str| described(sql)];
    for (number, form) in forms.iter().enumerate() {
        let marker = format!("lazy-alone-{number}");
        assert_eq!(asked(&mut client, &form(&format!("BEGIN /* {marker} */"))), fine('T'));
        wait_until_shown(primary, &marker);
        let later = directly(primary, "SELECT clock_timestamp()");
        assert_eq!(client.value(&format!("SELECT now() < '{later}'")), "t");
        assert_eq!(asked(&mut client, &query("COMMIT")), fine('I'));
    }
    // A READ ONLY one where it may be read, and its first statement may still move it.
    let replicas = Pgweir::builder().cluster(cluster, &[1]).set("routing.freshness", "eventual").start();
    let mut client = Wire::connect(replicas.port());
    for (marker, statement) in [("lazy-ro-a", "SELECT 1"), ("lazy-ro-b", "SELECT pg_advisory_xact_lock(7301)")] {
        assert_eq!(asked(&mut client, &query(&format!("BEGIN READ ONLY /* {marker} */"))), fine('T'));
        wait_until_shown(&cluster.replicas()[0], marker);
        assert_eq!(asked(&mut client, &query(statement)), fine('T'));
        assert_eq!(asked(&mut client, &query("COMMIT")), fine('I'));
    }
}

/// One write to the server less in each transaction, and none for one of nothing. A client that is too slow for that is
/// tried again.
#[test]
fn a_quick_block_takes_one_round_trip_less() {
    let (gate, builder) = gated();
    let pgweir = builder.start();
    let mut client = Wire::connect(pgweir.port());
    directly(cluster().primary(), "CREATE TABLE lazy_quick (n int); GRANT ALL ON lazy_quick TO app");
    let inserts = ["INSERT INTO lazy_quick VALUES (1)"; 2];
    let work: [fn(&str) -> Frames; 2] = [query, described];
    for form in work {
        for (statements, trips) in [(&inserts[..], 3), (&[], 0)] {
            // Prepared by now, and what probes say in between is another connection's, but goes through the gate as well.
            wait_until(LIMIT, "a transaction that is quick", || {
                let before = gate.said();
                for sql in ["BEGIN"].iter().chain(statements).chain(&["COMMIT"]) {
                    let status = if *sql == "COMMIT" { 'I' } else { 'T' };
                    assert_eq!(asked(&mut client, &form(sql)), fine(status));
                }
                gate.said() - before == trips
            });
        }
    }
}

/// A client that says its statement in the moment in which its block begins by itself.
#[test]
fn a_statement_that_comes_as_the_block_begins_is_run_in_it() {
    let pgweir = Pgweir::builder().cluster(cluster(), &[]).set("pool.max", 1).start();
    directly(cluster().primary(), "CREATE TABLE lazy_moment (n int); GRANT ALL ON lazy_moment TO app");
    let [mut one, mut two] = [(); 2].map(|()| Wire::connect(pgweir.port()));
    for n in 0..40u64 {
        assert_eq!(asked(&mut one, &query("BEGIN")), fine('T'));
        thread::sleep(Duration::from_micros(9_000 + 100 * n));
        let insert = frames().run("INSERT INTO lazy_moment VALUES ($1::text::int)", &["1"]).sync();
        one.send(&insert.then(&query("ROLLBACK")));
        assert_eq!((outcome(&mut one), outcome(&mut one)), (fine('T'), fine('I')));
        assert_eq!(two.value("SELECT count(*) FROM lazy_moment"), "0");
    }
}

/// The statement behind a BEGIN that fails must not run on its own.
#[test]
fn nothing_runs_behind_a_begin_that_fails() {
    let (gate, builder) = gated();
    let pgweir = builder.operator().start();
    let primary = cluster().primary();
    directly(primary, "CREATE TABLE lazy_refused (n int); GRANT ALL ON lazy_refused TO app");
    let mut client = Wire::connect(pgweir.port());
    assert_eq!(client.value("SELECT 1"), "1");
    gate.garble(b"BEGIN", b"BEGUN");
    let insert = "INSERT INTO lazy_refused VALUES (1)";
    let extended = frames().run(insert, &[]);
    let large = format!("{insert} /* {} */", "x".repeat(2 << 20));
    let cases = [
        (query(insert), 1),
        (query(insert).query(insert), 2),
        (extended.clone().sync(), 1),
        (extended.clone().sync().then(&extended).sync().query(insert), 3),
        (extended.clone().flush().then(&extended).sync(), 1),
        (query(&large).query(insert), 2),
        (query("COPY lazy_refused FROM STDIN"), 1),
        (query("SELECT pg_advisory_lock(7302)"), 1),
    ];
    for (number, (sent, replies)) in cases.iter().enumerate() {
        for slowly in [false, true] {
            assert_eq!(asked(&mut client, &query("BEGIN")), fine('T'));
            if slowly {
                // What has been tried in vain meanwhile, the client does not hear of.
                let said = gate.said();
                wait_until(LIMIT, "the attempt", || gate.said() > said);
            }
            client.send(sent);
            assert_eq!(outcome(&mut client), fails('E', "42601"), "{number} {slowly}");
            (1..*replies).for_each(|_| assert_eq!(outcome(&mut client), fails('E', "25P02"), "{number} {slowly}"));
            assert_eq!(asked(&mut client, &query("SELECT 1")), fails('E', "25P02"));
            client.send(&query("COMMIT"));
            assert_eq!(client.expect("CZ")[0].body, b"ROLLBACK\0");
            assert_eq!(directly(primary, "SELECT count(*) FROM lazy_refused"), "0", "{number} {slowly}");
        }
    }
    // Nor is it pinned by the lock that it did not get.
    assert_eq!(client.value("SELECT 1"), "1");
    assert_eq!(pgweir.console("SHOW CLIENTS").row("user", sample::USER)["pinned_by"], "");
}

/// Where no connection can be had, the block has failed, as one has on a server.
#[test]
fn a_block_for_which_there_is_no_connection_has_failed() {
    let pgweir =
        Pgweir::builder().cluster(cluster(), &[]).set("pool.max", 1).set("pool.acquire_timeout", "100ms").start();
    let primary = cluster().primary();
    directly(primary, "CREATE TABLE lazy_full (n int); GRANT ALL ON lazy_full TO app");
    let [mut one, mut two] = [(); 2].map(|()| Wire::connect(pgweir.port()));
    let insert = frames().run("INSERT INTO lazy_full VALUES (1)", &[]);
    let ends =
        [query("ROLLBACK"), described("COMMIT"), query("ROLLBACK; SELECT 1"), query("END; BEGIN; SELECT 1; END")];
    for end in ends {
        assert_eq!(asked(&mut two, &query("BEGIN; SELECT 1")), fine('T'));
        assert_eq!(asked(&mut one, &query("BEGIN")), fine('T'));
        assert_eq!(asked(&mut one, &query("SELECT 1")), fails('E', "53300"));
        assert_eq!(asked(&mut two, &query("ROLLBACK")), fine('I'));
        // The connection is free again, and is of no use to the block.
        assert_eq!(asked(&mut one, &insert.clone().sync()), fails('E', "25P02"));
        one.send(&insert.clone().flush());
        assert_eq!(one.until(b'E')[0].sqlstate(), "25P02");
        assert_eq!(asked(&mut one, &insert.clone().sync()), fine('E'));
        assert_eq!(asked(&mut one, &frames().sync()), fine('E'));
        assert_eq!(asked(&mut one, &query("BEGIN")), fails('E', "25P02"));
        assert_eq!(asked(&mut one, &query("SAVEPOINT a; COMMIT")), fails('E', "25P02"));
        assert_eq!(asked(&mut one, &end), fine('I'));
        assert_eq!(asked(&mut one, &query("BEGIN")), fine('T'));
        assert_eq!(one.value("SELECT count(*) FROM lazy_full"), "0");
        assert_eq!(asked(&mut one, &query("COMMIT")), fine('I'));
    }
}

/// A thread of pgbench prepares in one block while another of its blocks has the connection: whoever made it wait for that
/// would wait forever. Over the time in which the block is tried to be begun unasked.
#[test]
fn what_needs_no_connection_waits_for_none() {
    let pgweir = Pgweir::builder().cluster(cluster(), &[]).set("pool.max", 1).set("pool.acquire_timeout", "1h").start();
    let [mut one, mut two] = [(); 2].map(|()| Wire::connect(pgweir.port()));
    let known = frames().parse("s", "SELECT 7").sync();
    two.ask(&known, "1Z");
    assert_eq!(asked(&mut two, &query("BEGIN; SELECT 1")), fine('T'));
    assert_eq!(asked(&mut one, &query("BEGIN /* lazy-known */")), fine('T'));
    for n in 0..20 {
        let known = frames().close(b'S', "s").then(&known);
        assert_eq!((asked(&mut one, &known), asked(&mut one, &frames().sync())), (fine('T'), fine('T')), "{n}");
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(asked(&mut one, &query("COMMIT")), fine('I'));
    assert_eq!(asked(&mut one, &query("BEGIN /* lazy-known */")), fine('T'));
    // It begins as soon as it can, for all that its client has said meanwhile.
    assert_eq!(asked(&mut one, &frames().sync()), fine('T'));
    assert_eq!(asked(&mut two, &query("COMMIT")), fine('I'));
    wait_until_shown(cluster().primary(), "lazy-known");
    assert_eq!(one.ask(&frames().bind("", "s", &[]).execute("", 0).sync(), "2DCZ")[1].value(), "7");
    assert_eq!(asked(&mut one, &query("COMMIT")), fine('I'));
}

/// Nobody waits for the connection of a block that has done nothing; and nothing is left of one whose client leaves.
#[test]
fn a_block_that_has_done_nothing_is_in_nobodys_way() {
    let (_gate, builder) = gated();
    let pgweir = builder.operator().start();
    let primary = cluster().primary();
    let mut other = Wire::connect(pgweir.port());
    let waits = || pgweir.console("SHOW CLIENTS").column("state").contains(&"waiting");
    for shown in [false, true] {
        for leaves in ["vanishes", "says so"] {
            let mut client = Wire::connect(pgweir.port());
            let marker = format!("lazy-way-{shown}-{leaves}");
            assert_eq!(asked(&mut client, &query(&format!("BEGIN /* {marker} */"))), fine('T'));
            if shown {
                wait_until_shown(primary, &marker);
            }
            client.cancel();
            if leaves == "says so" {
                client.send(&frames().frame(b'X', b""));
            }
            drop(client);
            assert_eq!(other.value("SELECT 1"), "1");
            assert_eq!(asked(&mut other, &query("COMMIT")), fine('I'));
            assert!(!is_shown(primary, &marker));
        }
    }
    // A cancel request finds no statement.
    let mut client = Wire::connect(pgweir.port());
    assert_eq!(asked(&mut client, &query("BEGIN")), fine('T'));
    client.cancel();
    assert_eq!(client.value("SELECT 1"), "1");
    assert_eq!(asked(&mut client, &query("COMMIT")), fine('I'));
    // PAUSE waits for no such block, and its statement for the end of the PAUSE.
    let counted = |what: &str| pgweir.console("SHOW STATS").number("database", sample::DATABASE, what);
    let before = (counted("total_query_count"), counted("total_xact_count"));
    assert_eq!(asked(&mut other, &query("BEGIN")), fine('T'));
    assert_eq!(asked(&mut other, &query("COMMIT")), fine('I'));
    assert_eq!(asked(&mut other, &query("BEGIN")), fine('T'));
    assert_eq!(other.value("SELECT 1"), "1");
    assert_eq!(asked(&mut other, &query("COMMIT")), fine('I'));
    assert_eq!((counted("total_query_count") - before.0, counted("total_xact_count") - before.1), (5, 2));
    let control =
        |sql: &str| assert!(pgweir.psql_output(&["-c", sql, &pgweir.console_url()]).status.success(), "{sql}");
    control("PAUSE");
    assert_eq!(asked(&mut client, &query("BEGIN")), fine('T'));
    control("RECONNECT");
    client.send(&query("SELECT 1"));
    wait_until(LIMIT, "the statement", waits);
    control("RESUME");
    assert_eq!(outcome(&mut client), fine('T'));
    assert_eq!(asked(&mut client, &query("COMMIT")), fine('I'));
}

/// A server that ends and comes back is nothing to a block that has done nothing.
#[test]
fn a_primary_that_restarts_before_the_first_statement_goes_unnoticed() {
    let cluster = lone_primary();
    let primary = cluster.primary();
    directly(primary, "CREATE TABLE lazy_restart (n int); GRANT ALL ON lazy_restart TO app");
    let pgweir = Pgweir::builder().cluster(&cluster, &[]).start();
    let mut clients = [(); 2].map(|()| Wire::connect(pgweir.port()));
    for crash in [false, true] {
        for (number, client) in clients.iter_mut().enumerate() {
            let marker = format!("lazy-restart-{crash}-{number}");
            assert_eq!(asked(client, &query(&format!("BEGIN /* {marker} */"))), fine('T'));
            if number == 1 {
                wait_until_shown(primary, &marker);
            }
        }
        if crash {
            primary.kill9();
            primary.start().unwrap();
        } else {
            primary.restart().unwrap();
        }
        for client in &mut clients {
            assert_eq!(asked(client, &query("INSERT INTO lazy_restart VALUES (1)")), fine('T'));
            assert_eq!(asked(client, &query("COMMIT")), fine('I'));
        }
    }
    assert_eq!(directly(primary, "SELECT count(*) FROM lazy_restart"), "4");
}
