//! Who is served when: in the order of coming, by few connections, with nothing lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio_postgres::NoTls;

use crate::support::wire::{Frames, Wire};
use crate::support::{LIMIT, Pgweir, Raw, Role, cluster, wait_until};
use crate::wait_for_waiting;

#[test]
fn those_who_wait_are_served_in_the_order_in_which_they_came() {
    let role = Role::create(cluster().primary(), "share_fifo");
    role.directly("CREATE SEQUENCE share_turn; GRANT ALL ON SEQUENCE share_turn TO share_fifo");
    let builder = Pgweir::builder().cluster(cluster(), &[]).user(role.name, role.name);
    let pgweir = builder.set("pool.max", 1).set("listen.workers", 1).start();
    let mut holder = Raw::connect(pgweir.port(), role.name);
    holder.run("BEGIN; SELECT 1");
    let mut clients: Vec<_> = (0..8).map(|_| Raw::connect(pgweir.port(), role.name)).collect();
    for (at, client) in clients.iter_mut().enumerate() {
        client.query("SELECT nextval('share_turn')").flush();
        wait_for_waiting(&pgweir, &role, at as u64 + 1);
    }
    holder.run("COMMIT");
    let turns: Vec<_> = clients.iter_mut().map(|client| client.until(b'D')[6..].to_vec()).collect();
    assert_eq!(turns, (1..=8).map(|turn| turn.to_string().into_bytes()).collect::<Vec<_>>());
}

#[test]
fn what_a_client_says_while_it_waits_comes_behind() {
    let role = Role::create(cluster().primary(), "share_behind");
    let pgweir = Pgweir::builder().cluster(cluster(), &[]).user(role.name, role.name).set("pool.max", 1).start();
    let mut holder = Raw::connect(pgweir.port(), role.name);
    holder.run("BEGIN; SELECT 1");
    let mut client = Raw::connect(pgweir.port(), role.name);
    client.query("SELECT 'first'").flush();
    wait_for_waiting(&pgweir, &role, 1);
    // One that is whole, and one that is cut within its head.
    client.query("SELECT 'second'").bytes(b"Q\0\0").flush();
    let mut last = Raw::connect(pgweir.port(), role.name);
    last.query("SELECT 'last'").flush();
    wait_for_waiting(&pgweir, &role, 2);
    holder.run("COMMIT");
    let said = |client: &mut Raw| {
        let row = client.until(b'D')[6..].to_vec();
        client.until_ready();
        String::from_utf8(row).unwrap()
    };
    assert_eq!([said(&mut client), said(&mut client), said(&mut last)], ["first", "second", "last"]);
    client.bytes(b"\0\x16SELECT 'the rest'\0").flush();
    assert_eq!(said(&mut client), "the rest");
}

/// What is idle is another worker's each time, and nothing of the client's own worker will come free.
#[test]
fn one_connection_serves_the_clients_of_all_workers() {
    let role = Role::create(cluster().primary(), "share_workers");
    let builder = Pgweir::builder().cluster(cluster(), &[]).user(role.name, role.name);
    let pgweir = builder.set("pool.max", 1).set("listen.workers", 3).start();
    let mut clients: Vec<_> = (0..3).map(|_| Raw::connect(pgweir.port(), role.name)).collect();
    let pids = (0..30).map(|turn| {
        let client = &mut clients[turn % 3];
        client.query("SELECT pg_backend_pid()").flush();
        let row = client.until(b'D');
        client.until_ready();
        row
    });
    assert_eq!(pids.collect::<std::collections::HashSet<_>>().len(), 1);
}

/// A client that asks again at once does not get in ahead of one that waits.
#[test]
fn a_busy_client_starves_nobody() {
    let role = Role::create(cluster().primary(), "share_busy");
    let builder = Pgweir::builder().cluster(cluster(), &[]).user(role.name, role.name);
    let pgweir = builder.set("pool.max", 1).set("pool.acquire_timeout", "20s").start();
    let done = Arc::new(AtomicBool::new(false));
    let busy: Vec<_> = (0..3)
        .map(|_| {
            let (done, mut client) = (done.clone(), Raw::connect(pgweir.port(), role.name));
            std::thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    client.run("SELECT 1");
                }
            })
        })
        .collect();
    let mut client = Raw::connect(pgweir.port(), role.name);
    for _ in 0..100 {
        client.run("BEGIN; SELECT 1; COMMIT");
    }
    done.store(true, Ordering::Relaxed);
    busy.into_iter().for_each(|busy| busy.join().unwrap());
}

/// A block begins unasked where its first batch has no end yet, and stands in line for that as others do.
#[test]
fn a_block_that_begins_unasked_stands_in_line() {
    let pgweir = Pgweir::builder().cluster(cluster(), &[]).set("pool.max", 1).start();
    let (mut holder, mut client) = (Wire::connect(pgweir.port()), Wire::connect(pgweir.port()));
    holder.ask(&Frames::new().query("BEGIN").query("SELECT 1"), "CZTDCZ");
    client.ask(&Frames::new().query("BEGIN"), "CZ");
    client.send(&Frames::new().run("DO $$ BEGIN RAISE NOTICE 'n'; END $$", &[]));
    wait_until(LIMIT, "a place in line", || {
        let pools = pgweir.json("/pools");
        pools.as_array().unwrap().iter().any(|pool| pool["maxwait_ms"].as_f64().unwrap() > 50.0)
    });
    holder.ask(&Frames::new().query("COMMIT"), "CZ");
    client.expect("12N");
    client.ask(&Frames::new().sync().query("COMMIT"), "CZCZ");
}

#[test]
fn a_thousand_clients_share_fifty_connections() {
    const CLIENTS: usize = 1000;
    const ROUNDS: usize = 3;
    let role = Role::create(cluster().primary(), "share_thousand");
    role.directly("CREATE TABLE share_rows (client int, round int); GRANT ALL ON share_rows TO share_thousand");
    let builder = Pgweir::builder().cluster(cluster(), &[]).user(role.name, role.name);
    let pgweir = builder.set("pool.max", 50).start();
    let url = role.url(&pgweir);
    let done = Arc::new(AtomicBool::new(false));
    let most = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let clients = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(thousand(&url, CLIENTS, ROUNDS));
            done.store(true, Ordering::Relaxed);
        });
        while !clients.is_finished() {
            most.fetch_max(role.pids().len(), Ordering::Relaxed);
        }
    });
    assert!(done.load(Ordering::Relaxed), "a client failed");
    let rows = role.directly("SELECT count(*), count(DISTINCT (client, round)) FROM share_rows");
    assert_eq!(rows, format!("{0}|{0}", CLIENTS * ROUNDS));
    let most = most.into_inner();
    assert!((2..=50).contains(&most), "{most} server connections");
}

/// All are connected before the first asks for anything.
async fn thousand(url: &str, clients: usize, rounds: usize) {
    let together = Arc::new(tokio::sync::Barrier::new(clients));
    let one = |id: usize, url: String, together: Arc<tokio::sync::Barrier>| async move {
        let (mut client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        tokio::spawn(connection);
        together.wait().await;
        for round in 0..rounds {
            let transaction = client.transaction().await.unwrap();
            let row = [&(id as i32) as &(dyn tokio_postgres::types::ToSql + Sync), &(round as i32)];
            transaction.execute("INSERT INTO share_rows VALUES ($1, $2)", &row).await.unwrap();
            transaction.commit().await.unwrap();
            let seen = client.query_one("SELECT $1::int + $2::int", &row).await.unwrap();
            assert_eq!(seen.get::<_, i32>(0), (id + round) as i32);
        }
    };
    let all: Vec<_> = (0..clients).map(|id| tokio::spawn(one(id, url.to_owned(), together.clone()))).collect();
    for client in all {
        client.await.unwrap();
    }
}

#[test]
fn clients_that_come_and_go_for_each_transaction() {
    let builder = Pgweir::builder().cluster(cluster(), &[]);
    let pgweir = builder.set("pool.max", 3).start();
    let script = pgweir.folder().join("one.sql");
    std::fs::write(&script, "SELECT id FROM users WHERE id = 1;\n").unwrap();
    let script = script.to_str().unwrap().to_owned();
    for mode in ["simple", "prepared"] {
        let printed = pgweir.pgbench(&["-C", "-c", "8", "-t", "40", "-M", mode, "-f", &script]);
        assert!(printed.contains("320/320"), "{printed}");
    }
    wait_until_empty(&pgweir);
}

/// No client is left in the books, and no connection is in use.
fn wait_until_empty(pgweir: &Pgweir) {
    crate::support::wait_until(crate::support::LIMIT, "an empty house", || {
        let pools = pgweir.json("/pools");
        let sum = |key: &str| pools.as_array().unwrap().iter().map(|pool| pool[key].as_u64().unwrap()).sum::<u64>();
        (sum("cl_active"), sum("cl_waiting"), sum("sv_active")) == (0, 0, 0)
    });
}
