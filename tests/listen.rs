//! LISTEN and NOTIFY in transaction mode: over one connection for all clients, and nobody can tell.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};

use pgweir::demo::cluster::{Cluster, SUPERUSER, Shutdown};
use pgweir::demo::sample;

use support::wire::{Frames, Wire};
use support::{LIMIT, Pgweir, Raw, wait_until};

/// A NotificationResponse.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Notified {
    pid: i32,
    channel: String,
    payload: String,
}

fn read(body: &[u8]) -> Notified {
    let texts: Vec<_> = body[4..].split(|b| *b == 0).map(|text| String::from_utf8(text.to_vec()).unwrap()).collect();
    let pid = i32::from_be_bytes(body[..4].try_into().unwrap());
    Notified { pid, channel: texts[0].clone(), payload: texts[1].clone() }
}

/// Waits for the next one; nothing else may come before it.
fn next(client: &mut Raw) -> Notified {
    let (tag, body) = client.receive().expect("a notification");
    assert_eq!(tag, b'A', "{}", String::from_utf8_lossy(&body));
    read(&body)
}

fn next_payload(client: &mut Raw) -> String {
    next(client).payload
}

/// Runs a simple Query: the notifications that come before its ReadyForQuery.
fn run(client: &mut Raw, sql: &str) -> Vec<Notified> {
    client.query(sql).flush();
    let mut found = Vec::new();
    loop {
        match client.receive().expect("an answer") {
            (b'A', body) => found.push(read(&body)),
            (b'E', body) => panic!("{sql}: {}", String::from_utf8_lossy(&body)),
            (b'Z', _) => return found,
            _ => {}
        }
    }
}

fn run_payloads(client: &mut Raw, sql: &str) -> Vec<String> {
    run(client, sql).into_iter().map(|n| n.payload).collect()
}

/// Two server connections, so that nobody may hold one, and each statement runs on the other.
fn pgweir() -> Pgweir {
    pgweir_of(2)
}

fn pgweir_of(connections: i64) -> Pgweir {
    Pgweir::builder().cluster(support::cluster(), &[1, 1]).set("pool.max", connections).start()
}

fn client(pgweir: &Pgweir) -> Raw {
    Raw::connect(pgweir.port(), sample::USER)
}

fn listening(pgweir: &Pgweir, channels: &[&str]) -> Raw {
    let mut client = client(pgweir);
    for channel in channels {
        assert_eq!(run(&mut client, &format!("LISTEN {channel}")), []);
    }
    client
}

/// A channel that no other test uses.
fn channel() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("channel_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The processes of the connections that listen for pgweir's clients on channels of this name.
fn listeners(channel: &str) -> Vec<String> {
    let sql = format!(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgweir listen' AND query LIKE '%LISTEN \"{channel}\"%'"
    );
    support::cluster().primary().psql(&sql).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn reaches_idle_clients_that_hold_no_connection() {
    let pgweir = pgweir_of(1);
    let name = channel();
    let mut listeners: Vec<_> = (0..3).map(|_| listening(&pgweir, &[&name])).collect();
    let mut notifier = client(&pgweir);
    assert_eq!(run(&mut notifier, &format!("NOTIFY {name}, 'hello'")), []);
    for listener in &mut listeners {
        let found = next(listener);
        assert_eq!((&found.channel, found.payload.as_str()), (&name, "hello"));
        assert!(found.pid != listener.pid && found.pid > 0);
        assert_eq!(listener.value("SELECT 7"), "7");
    }
}

#[test]
fn answers_with_the_servers_own_tags_and_errors() {
    let pgweir = pgweir();
    let mut client = client(&pgweir);
    for sql in ["LISTEN tagged", "UNLISTEN tagged", "UNLISTEN *", "NOTIFY tagged"] {
        let tag = client.query(sql).flush().until(b'C');
        assert_eq!(&tag[..tag.len() - 1], sql.split(' ').next().unwrap().as_bytes());
        client.until_ready();
    }
    for (sql, code) in [("LISTEN", "42601"), ("LISTEN 'x'", "42601"), ("LISTEN a.b", "42601")] {
        assert_eq!(client.query(sql).flush().until_error(), code, "{sql}");
        client.until_ready();
    }
    client.run("BEGIN");
    client.query("SELECT 1/0").flush().until_error();
    client.until_ready();
    assert_eq!(client.query("LISTEN failed").flush().until_error(), "25P02");
    assert_eq!(client.until_ready(), b'E');
}

#[test]
fn takes_effect_at_commit_and_is_undone_by_rollback() {
    let pgweir = pgweir();
    let (kept, undone, rolled_back) = (channel(), channel(), channel());
    let mut listener = client(&pgweir);
    let mut notifier = client(&pgweir);
    let mut notify_all = |text: &str| {
        for name in [&undone, &rolled_back, &kept] {
            run(&mut notifier, &format!("NOTIFY {name}, '{text}'"));
        }
    };
    run(&mut listener, &format!("BEGIN; LISTEN {rolled_back}"));
    run(&mut listener, "ROLLBACK");
    run(&mut listener, "BEGIN");
    run(&mut listener, &format!("LISTEN {kept}"));
    run(&mut listener, "SAVEPOINT s");
    run(&mut listener, &format!("LISTEN {undone}"));
    run(&mut listener, &format!("UNLISTEN {kept}"));
    run(&mut listener, "ROLLBACK TO s");
    notify_all("before the commit");
    assert_eq!(run(&mut listener, "COMMIT"), []);
    notify_all("after it");
    assert_eq!((next(&mut listener).channel, listener.value("SELECT 1")), (kept.clone(), "1".to_owned()));
    // UNLISTEN waits for the commit as well, and a failed one changes nothing.
    run(&mut listener, "BEGIN");
    run(&mut listener, "UNLISTEN *");
    listener.query("SELECT 1/0").flush().until_error();
    listener.until_ready();
    run(&mut listener, "COMMIT");
    notify_all("once more");
    assert_eq!(next_payload(&mut listener), "once more");
}

#[test]
fn a_clients_own_notifications_come_before_its_ready_and_bear_its_pid() {
    let pgweir = pgweir();
    let name = channel();
    let mut other = listening(&pgweir, &[&name]);
    let mut own = listening(&pgweir, &[&name]);
    for round in 0..20 {
        // The connection has just notified for somebody else.
        run(&mut other, &format!("NOTIFY {name}, 'other {round}'"));
        let mut found = run(&mut own, &format!("SELECT pg_notify('{name}', 'own {round}')"));
        if found.len() == 1 {
            panic!("{found:?}");
        }
        let mine = found.pop().unwrap();
        assert_eq!((mine.pid, mine.payload), (own.pid, format!("own {round}")));
        assert_eq!(found[0].payload, format!("other {round}"));
        assert_ne!(found[0].pid, own.pid, "round {round}");
        let seen = next(&mut other);
        assert_ne!((seen.pid, seen.payload), (other.pid, format!("other {round}")), "it came with the ReadyForQuery");
    }
}

/// Neither waits for the answer to what stands ahead of it.
#[test]
fn a_notify_on_its_way_behind_a_listen_is_heard() {
    let pgweir = pgweir();
    for _ in 0..5 {
        let name = channel();
        let (listen, notify) = (format!("LISTEN {name}"), format!("NOTIFY {name}, 'on its way'"));
        let mut client = Wire::connect(pgweir.port());
        client.ask(&Frames::new().query(&listen).query(&notify), "CZCAZ");
        let other = channel();
        let (listen, notify) = (format!("BEGIN; LISTEN {other}; COMMIT"), format!("NOTIFY {other}"));
        client.ask(&Frames::new().query(&listen).run(&notify, &[]).sync(), "CCCZ12CAZ");
    }
}

/// The shared connection is yet to be made when they do.
#[test]
fn a_notify_on_its_way_behind_a_commit_is_heard() {
    let name = channel();
    let (listen, notify) = (format!("LISTEN {name}"), format!("NOTIFY {name}"));
    let simple = Frames::new().query("BEGIN").query(&listen).query("COMMIT").query(&notify);
    Wire::connect(pgweir().port()).ask(&simple, "CZCZCZCAZ");
    let extended = Frames::new().run("BEGIN", &[]).sync().run(&listen, &[]).sync().run("COMMIT", &[]).sync();
    Wire::connect(pgweir().port()).ask(&extended.run(&notify, &[]).sync(), "12CZ12CZ12CZ12CAZ");
}

/// A server that is signalled reads its queue before it says that it is ready, whatever it has been asked.
#[test]
fn what_others_have_notified_of_comes_with_the_next_answer() {
    let pgweir = pgweir();
    let name = channel();
    let mut listener = listening(&pgweir, &[&name]);
    let mut notifier = client(&pgweir);
    for round in 0..50 {
        run(&mut notifier, &format!("NOTIFY {name}, '{round}'"));
        let sql = ["SELECT 1", "BEGIN; SELECT 1; COMMIT", "SHOW work_mem", ""][round % 4];
        assert_eq!(run_payloads(&mut listener, sql), [round.to_string()], "{sql}");
    }
}

#[test]
fn a_transaction_hears_what_it_says_itself() {
    let pgweir = pgweir();
    let name = channel();
    let mut client = client(&pgweir);
    let together = format!("BEGIN; LISTEN {name}; NOTIFY {name}, 'first'; COMMIT");
    assert_eq!(run_payloads(&mut client, &together), ["first"]);
    run(&mut client, "UNLISTEN *");
    for (sql, expected) in [
        ("BEGIN".to_owned(), vec![]),
        (format!("LISTEN {name}"), vec![]),
        (format!("NOTIFY {name}, 'second'"), vec![]),
        ("COMMIT".to_owned(), vec!["second"]),
        (format!("NOTIFY {name}, 'third'"), vec!["third"]),
    ] {
        let found = run(&mut client, &sql);
        assert!(found.iter().all(|n| n.pid == client.pid), "{sql}: {found:?}");
        assert_eq!(found.into_iter().map(|n| n.payload).collect::<Vec<_>>(), expected, "{sql}");
    }
}

#[test]
fn names_and_payloads_are_postgres_own() {
    let pgweir = pgweir();
    let long = "l".repeat(70);
    let mut listener = listening(&pgweir, &["Folded_Name", r#""Quoted ""Name"" ä""#, &long]);
    let mut notifier = client(&pgweir);
    for (name, payload) in
        [("folded_name", ""), (r#"Quoted "Name" ä"#, "it's ä \\ {\"a\":1}\n"), (&long[..63], &*"p".repeat(7999))]
    {
        let quoted = payload.replace('\'', "''");
        run(&mut notifier, &format!("SELECT pg_notify('{name}', '{quoted}')"));
        let found = next(&mut listener);
        assert_eq!((found.channel.as_str(), found.payload.as_str()), (name, payload));
    }
}

#[test]
fn the_extended_protocol_listens_too() {
    let pgweir = pgweir();
    let name = channel();
    let mut listener = client(&pgweir);
    listener.execute(&format!("LISTEN {name}")).execute("SELECT 1").frame(b'S', b"").flush().until_ready();
    run(&mut client(&pgweir), &format!("NOTIFY {name}, 'x'"));
    assert_eq!(next_payload(&mut listener), "x");
    // An error behind it in the same implicit transaction undoes it.
    let undone = channel();
    listener.execute(&format!("LISTEN {undone}")).execute("SELECT 1/0").frame(b'S', b"").flush().until_error();
    listener.until_ready();
    run(&mut client(&pgweir), &format!("NOTIFY {undone}, 'y'; NOTIFY {name}, 'z'"));
    assert_eq!(next_payload(&mut listener), "z");
}

#[test]
fn unlisten_discard_and_leaving_end_it() {
    let pgweir = pgweir();
    let (a, b) = (channel(), channel());
    let mut listener = listening(&pgweir, &[&a, &b]);
    let mut notifier = client(&pgweir);
    let notify =
        |notifier: &mut Raw, text: &str| drop(run(notifier, &format!("NOTIFY {a}, '{text}'; NOTIFY {b}, '{text}'")));
    run(&mut listener, &format!("UNLISTEN {a}"));
    notify(&mut notifier, "1");
    assert_eq!(next(&mut listener).channel, b);
    for end in ["UNLISTEN *", "DISCARD ALL"] {
        run(&mut listener, end);
        notify(&mut notifier, end);
        run(&mut listener, &format!("LISTEN {a}"));
        notify(&mut notifier, "again");
        assert_eq!(
            (next(&mut listener).channel, listener.value("SELECT 3")),
            (a.clone(), "3".to_owned()),
            "after {end}"
        );
    }
}

#[test]
fn the_connection_ends_with_its_last_listener() {
    let pgweir = pgweir();
    let name = channel();
    let listener = listening(&pgweir, &[&name]);
    let other = listening(&pgweir, &[&name]);
    assert_eq!(listeners(&name).len(), 1);
    drop((listener, other));
    wait_until(LIMIT, "the end of the listening connection", || listeners(&name).is_empty());
    let mut again = listening(&pgweir, &[&name]);
    run(&mut client(&pgweir), &format!("NOTIFY {name}, 'again'"));
    assert_eq!(next_payload(&mut again), "again");
}

#[test]
fn clients_that_come_and_go_take_nothing_from_each_other() {
    let pgweir = pgweir_of(3);
    let name = channel();
    let churn = |id: usize| {
        let mut own = client(&pgweir);
        for round in 0..30 {
            let mine = format!("{id}/{round}");
            assert!(run(&mut own, &format!("LISTEN {name}")).iter().all(|n| n.pid != own.pid));
            let found = run(&mut own, &format!("NOTIFY {name}, '{mine}'"));
            let said: Vec<_> = found.iter().filter(|n| n.pid == own.pid).map(|n| &n.payload).collect();
            assert_eq!(said, [&mine], "{found:?}");
            match round % 3 {
                0 => drop(run(&mut own, &format!("UNLISTEN {name}"))),
                1 => drop(run(&mut own, "UNLISTEN *")),
                _ => own = client(&pgweir),
            }
        }
    };
    let churn = &churn;
    std::thread::scope(|scope| {
        for id in 0..6 {
            scope.spawn(move || churn(id));
        }
    });
}

#[test]
fn a_thousand_come_in_order_also_to_a_client_in_a_transaction() {
    let pgweir = pgweir();
    let name = channel();
    let mut idle = listening(&pgweir, &[&name]);
    let mut busy = listening(&pgweir, &[&name]);
    run(&mut busy, "BEGIN");
    let mut notifier = client(&pgweir);
    for block in 0..20 {
        let range = format!("generate_series({}, {})", block * 50, block * 50 + 49);
        run(&mut notifier, &format!("SELECT pg_notify('{name}', i::text) FROM {range} i"));
        assert_eq!(run(&mut busy, "SELECT 1"), [], "nothing comes within a transaction");
    }
    let expected: Vec<_> = (0..1000).map(|i| i.to_string()).collect();
    let received: Vec<_> = (0..1000).map(|_| next_payload(&mut idle)).collect();
    assert_eq!(received, expected);
    let mut received = run_payloads(&mut busy, "COMMIT");
    // What had not arrived by then comes behind it.
    while received.len() < 1000 {
        received.push(next_payload(&mut busy));
    }
    assert_eq!(received, expected);
}

#[test]
fn what_a_notification_tells_of_can_be_read_though_replicas_lag() {
    let cluster = Cluster::builder().replicas(1).start().unwrap();
    sample::install(cluster.primary()).unwrap();
    let pgweir = Pgweir::builder().cluster(&cluster, &[1]).set("routing.max_lag", "1h").operator().start();
    let (mut listener, mut writer) = (client(&pgweir), client(&pgweir));
    writer.run("CREATE TABLE told (n int); INSERT INTO told VALUES (0)");
    cluster.wait_replayed(LIMIT).unwrap();
    let read = |client: &mut Raw| client.value("SELECT max(n) FROM told");
    let on_replica = || pgweir.console("SHOW NODES").number("role", "replica", "queries");
    // Until the table is known, it is read on the primary.
    let mut other = client(&pgweir);
    wait_until(LIMIT, "reads on the replica", || {
        let before = on_replica();
        read(&mut other);
        on_replica() > before
    });
    let pause = || {
        let replica = &cluster.replicas()[0];
        replica.psql("SELECT pg_wal_replay_pause()").unwrap();
        wait_until(LIMIT, "replay to stop", || {
            replica.psql("SELECT pg_get_wal_replay_pause_state()").unwrap() == "paused"
        });
    };
    pause();
    writer.run("UPDATE told SET n = 1");
    assert_eq!(read(&mut listener), "0", "a session that has heard of nothing reads from the replica");
    // What was committed before the LISTEN is not notified of.
    listener.run("LISTEN told");
    assert_eq!(read(&mut listener), "1");
    cluster.replicas()[0].psql("SELECT pg_wal_replay_resume()").unwrap();
    cluster.wait_replayed(LIMIT).unwrap();
    wait_until(LIMIT, "reads on the replica", || {
        let before = on_replica();
        read(&mut listener);
        on_replica() > before
    });
    pause();
    writer.run("BEGIN; UPDATE told SET n = 2; NOTIFY told; COMMIT");
    next(&mut listener);
    assert_eq!(read(&mut listener), "2");
}

#[test]
fn when_the_connection_breaks_clients_are_told_and_go_on_listening() {
    let pgweir = pgweir();
    let name = channel();
    let mut first = listening(&pgweir, &[&name]);
    let mut second = listening(&pgweir, &[&name]);
    let mut bystander = client(&pgweir);
    let [pid] = &listeners(&name)[..] else { panic!("{:?}", listeners(&name)) };
    support::cluster().primary().psql(&format!("SELECT pg_terminate_backend({pid})")).unwrap();
    for listener in [&mut first, &mut second] {
        let (tag, body) = listener.receive().unwrap();
        let text = String::from_utf8_lossy(&body);
        assert!(tag == b'N' && text.contains("WARNING") && text.contains("may have been lost"), "{text}");
    }
    run(&mut bystander, &format!("NOTIFY {name}, 'after'"));
    assert_eq!((next_payload(&mut first), next_payload(&mut second)), ("after".to_owned(), "after".to_owned()));
    assert_eq!(bystander.value("SELECT 5"), "5");
    let metrics = pgweir.get("/metrics").1;
    let counted = format!("pgweir_listen_reconnects_total{{database=\"{}\"}} 1", sample::DATABASE);
    assert!(metrics.contains(&counted), "{metrics}");
}

#[test]
fn listening_outlasts_a_restart_of_the_primary() {
    let cluster = Cluster::builder().replicas(0).start().unwrap();
    sample::install(cluster.primary()).unwrap();
    let pgweir = Pgweir::builder().cluster(&cluster, &[]).start();
    let mut listener = listening(&pgweir, &["outlasting"]);
    cluster.primary().stop(Shutdown::Fast).unwrap();
    cluster.primary().start().unwrap();
    let (tag, body) = listener.receive().unwrap();
    assert!(tag == b'N' && String::from_utf8_lossy(&body).contains("may have been lost"));
    cluster.primary().psql_in(sample::DATABASE, "NOTIFY outlasting, 'back'").unwrap();
    assert_eq!(next_payload(&mut listener), "back");
}

#[test]
fn a_client_that_does_not_read_is_given_up_and_no_other() {
    let pgweir = pgweir();
    let name = channel();
    let mut slow = listening(&pgweir, &[&name]);
    let mut reader = listening(&pgweir, &[&name]);
    let mut notifier = client(&pgweir);
    let payload = "rpad(i::text, 7900, '.')";
    run(&mut slow, "BEGIN");
    for block in 0..10 {
        let range = format!("generate_series({}, {})", block * 100, block * 100 + 99);
        run(&mut notifier, &format!("SELECT pg_notify('{name}', {payload}) FROM {range} i"));
        for _ in 0..100 {
            next(&mut reader);
        }
    }
    assert_eq!(slow.until_closed().as_deref(), Some("54000"));
    run(&mut notifier, &format!("NOTIFY {name}, 'last'"));
    assert_eq!(next_payload(&mut reader), "last");
}

#[test]
fn another_encoding_gets_a_connection_of_its_own() {
    let pgweir = Pgweir::builder().cluster(support::cluster(), &[]).set("pool.max", 5).start();
    let name = channel();
    let mut listener = client(&pgweir);
    run(&mut listener, "SET client_encoding = 'LATIN1'");
    run(&mut listener, &format!("LISTEN {name}"));
    run(&mut client(&pgweir), &format!("NOTIFY {name}, 'ä'"));
    let body = listener.until(b'A');
    assert!(body.ends_with(b"\0\xe4\0"), "{body:?}");
}

/// No text tells of these: the client keeps the connection that listens for it until it unlistens all.
#[test]
fn a_listen_that_nobody_sees_holds_too() {
    let pgweir = pgweir();
    let (name, known) = (channel(), channel());
    let hides = format!("CREATE FUNCTION hides_a_listen() RETURNS void LANGUAGE plpgsql AS 'BEGIN LISTEN {name}; END'");
    support::cluster().primary().psql_in(sample::DATABASE, &hides).unwrap();
    let spelt = format!("LISTEN U&\"{}\"", name.replacen('c', "\\0063", 1));
    for hidden in ["SELECT hides_a_listen()", &format!("DO $$ BEGIN EXECUTE 'LISTEN {name}'; END $$"), &spelt] {
        let mut listener = listening(&pgweir, &[&known]);
        let mut notifier = client(&pgweir);
        run(&mut listener, "BEGIN");
        run(&mut listener, hidden);
        run(&mut listener, "ROLLBACK");
        run(&mut notifier, &format!("NOTIFY {name}, 'undone'"));
        run(&mut listener, hidden);
        for n in 0..3 {
            run(&mut notifier, &format!("NOTIFY {name}, 'hidden {n}'; NOTIFY {known}, 'known {n}'"));
            let mut found = [next_payload(&mut listener), next_payload(&mut listener)];
            found.sort();
            assert_eq!(found, [format!("hidden {n}"), format!("known {n}")], "{hidden}");
        }
        let own = run(&mut listener, &format!("NOTIFY {name}, 'own'"));
        assert_eq!(own, [Notified { pid: listener.pid, channel: name.clone(), payload: "own".into() }], "{hidden}");
        run(&mut listener, "UNLISTEN *");
        run(&mut notifier, &format!("NOTIFY {name}, 'over'; NOTIFY {known}, 'over'"));
        assert_eq!(run(&mut listener, "SELECT 1"), [], "{hidden}");
        let held = format!("SELECT count(*) FROM pg_listening_channels() WHERE pg_listening_channels = '{name}'");
        let mut others = [(); 2].map(|()| client(&pgweir));
        others.iter_mut().for_each(|other| drop(run(other, "BEGIN; SELECT 1")));
        others.iter_mut().for_each(|other| assert_eq!(other.value(&held), "0", "{hidden}"));
    }
}

#[test]
fn other_databases_and_roles_share_nothing_they_should_not() {
    let pgweir = pgweir();
    let name = channel();
    let mut listener = listening(&pgweir, &[&name]);
    // Any role of the same database may notify.
    let sql = format!("NOTIFY {name}, 'from the superuser'");
    let primary = support::cluster().primary();
    let url = pgweir.url_of(SUPERUSER, primary.password(), sample::DATABASE);
    assert!(pgweir.psql_output(&["-c", &sql, &url]).status.success());
    assert_eq!(next_payload(&mut listener), "from the superuser");
    // Another database's channel of the same name is another one.
    primary.psql(&sql).unwrap();
    run(&mut client(&pgweir), &format!("NOTIFY {name}, 'own database'"));
    assert_eq!(next_payload(&mut listener), "own database");
}
