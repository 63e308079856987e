//! Sessions that have been idle for a while, of which little is kept: nobody can tell.

mod support;

use pgweir::demo::sample;
use support::client::{connect, wait};
use support::wire::Frames;
use support::{Builder, LIMIT, Pgweir, Raw, wait_until};

/// One server connection, which each client leaves behind in a state of its own.
fn builder() -> Builder {
    Pgweir::builder().cluster(support::cluster(), &[]).operator().set("pool.max", 1).set("pool.min", 0)
}

fn client(pgweir: &Pgweir) -> Raw {
    Raw::connect(pgweir.port(), sample::USER)
}

fn resting(pgweir: &Pgweir) -> u64 {
    pgweir.console("SHOW LISTS").number("list", "resting_clients", "items")
}

fn wait_for_rest(pgweir: &Pgweir, clients: u64) {
    wait_until(LIMIT, "idle clients at rest", || resting(pgweir) == clients);
}

#[test]
fn what_a_session_has_it_has_after_a_rest() {
    let pgweir = builder().start();
    let (mut one, mut other) = (client(&pgweir), client(&pgweir));
    let zone = one.value("SHOW TimeZone");
    for (client, zone, value) in [(&mut one, "Asia/Tokyo", "1"), (&mut other, "Asia/Kolkata", "2")] {
        client.run(&format!("SET TimeZone = '{zone}'; SET application_name = 'rests in {zone}'; SET a.b = '{value}'"));
        client.bytes(Frames::new().parse("kept", &format!("SELECT {value}::text")).sync().bytes()).flush();
        assert_eq!(client.until_ready(), b'I');
    }
    wait_for_rest(&pgweir, 2);
    for _ in 0..2 {
        for (client, zone, value) in [(&mut one, "Asia/Tokyo", "1"), (&mut other, "Asia/Kolkata", "2")] {
            client.bytes(Frames::new().bind("", "kept", &[]).execute("", 0).sync().bytes()).flush();
            assert_eq!(&client.until(b'D')[6..], value.as_bytes());
            client.until_ready();
            assert_eq!(client.value("SHOW TimeZone"), zone);
            assert_eq!(client.value("SHOW application_name"), format!("rests in {zone}"));
            assert_eq!(client.value("SELECT current_setting('a.b')"), value);
        }
        wait_for_rest(&pgweir, 2);
    }
    one.run("RESET TimeZone");
    assert_eq!(one.value("SHOW TimeZone"), zone);
}

#[test]
fn who_is_answered_from_memory_rests_again() {
    let pgweir = builder().set("cache.enabled", true).set("cache.invalidation", "writes").start();
    let mut client = client(&pgweir);
    wait_until(LIMIT, "a hit", || client.value("SELECT 7") == "7" && pgweir.cache()["hits"].as_u64() > Some(0));
    for _ in 0..2 {
        wait_for_rest(&pgweir, 1);
        let hits = pgweir.cache()["hits"].as_u64();
        assert_eq!(client.value("SELECT 7"), "7");
        assert!(pgweir.cache()["hits"].as_u64() > hits);
    }
    wait_for_rest(&pgweir, 1);
}

#[test]
fn what_is_open_stays_open() {
    let pgweir = builder().set("pool.max", 4).start();
    let [mut listening, mut pinned, mut busy, mut idle] = std::array::from_fn(|_| client(&pgweir));
    listening.run("LISTEN rests");
    pinned.run("CREATE TEMPORARY TABLE rests AS SELECT 7 AS a");
    busy.run("BEGIN");
    busy.run("DECLARE c CURSOR FOR SELECT generate_series(1, 3)");
    // Whoever was idle before it has been looked at when this one rests.
    assert_eq!(idle.value("SELECT 1"), "1");
    wait_for_rest(&pgweir, 1);
    assert_eq!(busy.value("FETCH c"), "1");
    assert_eq!(pinned.value("SELECT a FROM rests"), "7");
    idle.run("NOTIFY rests");
    listening.until(b'A');
    busy.run("COMMIT");
    pinned.run("DROP TABLE rests");
    wait_for_rest(&pgweir, 3);
    assert_eq!(pinned.value("SELECT to_regclass('rests') IS NULL"), "t");
}

#[test]
fn a_cancel_key_holds_and_whoever_rests_can_be_ended() {
    let pgweir = builder().start();
    let [mut cancelled, mut killed, mut gone] = std::array::from_fn(|_| client(&pgweir));
    wait_for_rest(&pgweir, 3);
    cancelled.cancel();
    cancelled.query("SELECT pg_sleep(600)").flush();
    wait_until(LIMIT, "a statement under way", || {
        pgweir.console("SHOW CLIENTS").rows.iter().any(|row| row["state"] == "active" && !row["link"].is_empty())
    });
    cancelled.cancel();
    assert_eq!(cancelled.until_error(), "57014");
    cancelled.until_ready();

    gone.hang_up();
    wait_until(LIMIT, "one that has left", || pgweir.console("SHOW CLIENTS").rows.len() == 2);
    let clients = pgweir.console("SHOW CLIENTS");
    let id = clients.rows.iter().map(|row| row["id"].parse::<u64>().unwrap()).max().unwrap();
    wait(connect(&pgweir.console_url()).simple_query(&format!("KILL_CLIENT {id}"))).unwrap();
    assert_eq!(killed.until_closed().as_deref(), Some("57P01"));
    wait_for_rest(&pgweir, 1);
    assert_eq!(cancelled.value("SELECT 1"), "1");
}
