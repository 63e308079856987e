//! Servers that die, freeze, stop and return, with clients at work: what may fail and what must not.

#[path = "../support/mod.rs"]
mod support;

mod patroni;

use std::fs;
use std::pin::pin;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use futures_util::StreamExt;
use pgweir::demo::cluster::{Cluster, Server, Shutdown};
use pgweir::demo::sample;
use serde_json::Value;
use support::sessions::{block_on, column, connect, sqlstate, try_connect, value, wait_for};
use support::{Builder, Gate, LIMIT, Mode, Pgweir, logged, wait_until};
use tokio_postgres::Client;

fn start(replicas: usize) -> Cluster {
    let cluster = Cluster::builder().replicas(replicas).setting("log_statement", "all").start().unwrap();
    sample::install(cluster.primary()).unwrap();
    cluster.primary().psql_in(sample::DATABASE, "SET ROLE app; CREATE TABLE kept (n int)").unwrap();
    cluster.wait_replayed(LIMIT).unwrap();
    cluster
}

/// A primary and two replicas, one test at a time, all of them up and level at its start.
fn cluster() -> MutexGuard<'static, Cluster> {
    static SHARED: OnceLock<Mutex<Cluster>> = OnceLock::new();
    let cluster = SHARED.get_or_init(|| Mutex::new(start(2))).lock().unwrap_or_else(PoisonError::into_inner);
    for server in cluster.servers() {
        server.resume();
        server.start().unwrap();
    }
    cluster.wait_replayed(LIMIT).unwrap();
    cluster
}

/// Quick to notice, so that tests are quick.
fn quick() -> Builder {
    Pgweir::builder().set("routing.probe_interval", "100ms").set("pool.connection_timeout", "500ms")
}

fn builder(cluster: &Cluster) -> Builder {
    quick().cluster(cluster, &[1, 1])
}

fn wait_status(pgweir: &Pgweir, server: &Server, status: &str) {
    wait_until(LIMIT, &format!("{} to be {status}", server.name()), || pgweir.node(server)["status"] == status);
}

// ---- load ------------------------------------------------------------------------------------------------------

const MODES: [&str; 3] = ["simple", "extended", "prepared"];

/// Clients that read without pause, two in each protocol mode, until stopped.
struct Load {
    reads: Arc<[AtomicUsize; 6]>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<String>>,
}

impl Load {
    fn start(pgweir: &Pgweir) -> Load {
        let reads: Arc<[AtomicUsize; 6]> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (url, counts, end) = (pgweir.url(), reads.clone(), stop.clone());
        let thread = thread::spawn(move || {
            block_on(async {
                let clients = (0..counts.len()).map(|i| {
                    let (url, counts, end) = (url.clone(), counts.clone(), end.clone());
                    tokio::spawn(async move {
                        let failure = read_on(&connect(&url).await, MODES[i % 3], &counts[i], &end).await;
                        // After one failure there is nothing to wait for.
                        end.fetch_or(failure.is_some(), Ordering::Relaxed);
                        failure
                    })
                });
                let mut failures = Vec::new();
                for client in clients.collect::<Vec<_>>() {
                    failures.extend(client.await.unwrap());
                }
                failures
            })
        });
        let load = Load { reads, stop, thread };
        load.wait_progress(20);
        load
    }

    fn counts(&self) -> [usize; 6] {
        std::array::from_fn(|i| self.reads[i].load(Ordering::Relaxed))
    }

    /// Until each of the clients has read so many times more.
    fn wait_progress(&self, reads: usize) {
        let before = self.counts();
        wait_until(LIMIT, "every client to read on", || {
            self.thread.is_finished() || self.counts().iter().zip(before).all(|(now, before)| *now >= before + reads)
        });
    }

    /// No read has failed and none was lost on the way.
    fn stop(self, what: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let counts = self.counts();
        let failures = self.thread.join().unwrap();
        println!(
            "{what}: {} reads ({MODES:?} twice: {counts:?}), {} failed",
            counts.iter().sum::<usize>(),
            failures.len()
        );
        assert!(failures.is_empty(), "{failures:?}");
    }
}

/// Reads and checks what it reads; ends with the first failure or when told.
async fn read_on(client: &Client, mode: &str, count: &AtomicUsize, end: &AtomicBool) -> Option<String> {
    const SQL: &str = "SELECT name, $1::bigint FROM users WHERE id = $1 /* load */";
    let prepared = client.prepare(SQL).await.unwrap();
    for id in (1..=1000i64).cycle() {
        if end.load(Ordering::Relaxed) {
            break;
        }
        let read = match mode {
            "simple" => column(client, &SQL.replace("$1", &id.to_string())).await.map(|rows| rows[0].clone()),
            "extended" => client.query_one(SQL, &[&id]).await.map(|row| row.get(0)),
            _ => client.query_one(&prepared, &[&id]).await.map(|row| row.get(0)),
        };
        match read {
            Ok(name) if name == format!("User {id}") => count.fetch_add(1, Ordering::Relaxed),
            Ok(name) => return Some(format!("{mode}: {name} for {id}")),
            Err(error) => return Some(format!("{mode}: {error:?}")),
        };
        // Leaves the machine to the others for a moment.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    None
}

/// Runs pgbench in one mode while something happens; it ends at the first error of any client.
fn pgbench_during(pgweir: &Pgweir, mode: &str, happen: impl FnOnce()) {
    let script = pgweir.folder().join("read.sql");
    fs::write(&script, "\\set id random(1, 1000)\nSELECT name AS during FROM users WHERE id = :id;\n").unwrap();
    thread::scope(|scope| {
        let file = script.to_str().unwrap();
        let bench = scope.spawn(move || pgweir.pgbench(&["-M", mode, "-c", "4", "-t", "300", "-f", file]));
        happen();
        let printed = bench.join().unwrap();
        let processed = printed.lines().find(|line| line.contains("actually processed")).unwrap();
        println!("pgbench -M {mode}: {processed}");
        assert!(processed.contains("1200/1200"), "{printed}");
    });
}

// ---- replicas --------------------------------------------------------------------------------------------------

#[test]
fn a_replica_killed_and_restarted_fails_no_read() {
    let cluster = cluster();
    let pgweir = builder(&cluster).start();
    let replica = &cluster.replicas()[0];
    let load = Load::start(&pgweir);
    for _ in 0..2 {
        replica.kill9();
        load.wait_progress(50);
        wait_status(&pgweir, replica, "down");
        replica.start().unwrap();
        wait_status(&pgweir, replica, "up");
        let before = logged(replica, "/* load */");
        load.wait_progress(50);
        wait_until(LIMIT, "the replica that came back to read", || logged(replica, "/* load */") > before);
    }
    load.stop("killed");
}

#[test]
fn a_replica_killed_under_pgbench_fails_no_read() {
    let cluster = cluster();
    // Each replica reads from the start: sessions that read without pause stay on their node otherwise, and may be done there.
    let pgweir = builder(&cluster).set("routing.freshness", "eventual").start();
    for (mode, replica) in MODES.iter().zip([0, 1, 0]) {
        let replica = &cluster.replicas()[replica];
        let before = logged(replica, "during");
        pgbench_during(&pgweir, mode, || {
            wait_until(LIMIT, "reads on the replica", || logged(replica, "during") > before);
            replica.kill9();
            replica.start().unwrap();
        });
        wait_status(&pgweir, replica, "up");
    }
}

#[test]
fn a_replica_shut_down_mid_read_fails_none() {
    let cluster = cluster();
    let pgweir = builder(&cluster).start();
    let replica = &cluster.replicas()[1];
    let load = Load::start(&pgweir);
    for how in [Shutdown::Fast, Shutdown::Immediate] {
        replica.stop(how).unwrap();
        load.wait_progress(50);
        replica.start().unwrap();
        wait_status(&pgweir, replica, "up");
        load.wait_progress(50);
    }
    load.stop("shut down");
}

/// Starts this read on each replica in turn and has `happen` befall them; all must come back with their rows.
fn long_reads_during(cluster: &Cluster, pgweir: &Pgweir, marker: &str, happen: impl FnOnce()) -> Vec<String> {
    let url = pgweir.url();
    let sql = format!("SELECT 'row', pg_sleep(1) /* {marker} */");
    let running = || cluster.servers().map(|server| logged(server, marker)).sum::<usize>();
    thread::scope(|scope| {
        let read = |extended: bool| {
            let (url, sql) = (&url, &sql);
            scope.spawn(move || {
                block_on(async {
                    let client = connect(url).await;
                    match extended {
                        true => client.query_one(sql, &[]).await.unwrap().get::<_, String>(0),
                        false => value(&client, sql).await,
                    }
                })
            })
        };
        let reads = [read(false), read(true), read(false), read(true)];
        wait_until(LIMIT, "the reads to run", || running() == reads.len());
        happen();
        reads.map(|read| read.join().unwrap()).to_vec()
    })
}

#[test]
fn reads_cut_off_before_their_first_row_run_elsewhere() {
    let cluster = cluster();
    let pgweir = builder(&cluster).start();
    let replica = &cluster.replicas()[0];
    let rows = long_reads_during(&cluster, &pgweir, "long-shutdown", || replica.stop(Shutdown::Fast).unwrap());
    assert_eq!(rows, ["row"; 4]);
    replica.start().unwrap();
    wait_status(&pgweir, replica, "up");
    // Without a past: the replica would have to warm up first.
    let pgweir = builder(&cluster).start();
    let rows = long_reads_during(&cluster, &pgweir, "long-terminated", || {
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE '%long-term%' AND pid <> pg_backend_pid()";
        assert_ne!(replica.psql(end).unwrap(), "0");
    });
    assert_eq!(rows, ["row"; 4]);
}

#[test]
fn a_frozen_replica_leaves_the_rotation_and_its_reads_go_elsewhere() {
    let cluster = cluster();
    let pgweir = builder(&cluster).start();
    let replica = &cluster.replicas()[0];
    let load = Load::start(&pgweir);
    let rows = long_reads_during(&cluster, &pgweir, "long-frozen", || replica.pause());
    assert_eq!(rows, ["row"; 4]);
    assert_eq!(pgweir.node(replica)["status"], "down");
    load.wait_progress(50);
    // Clients that come meanwhile have nothing to wait for either.
    block_on(async { assert_eq!(value(&connect(&pgweir.url()).await, "SELECT 1").await, "1") });
    replica.resume();
    wait_status(&pgweir, replica, "up");
    let before = logged(replica, "/* load */");
    load.wait_progress(50);
    wait_until(LIMIT, "the replica that came back to read", || logged(replica, "/* load */") > before);
    load.stop("frozen");
}

/// The pool on the frozen replica has no connection yet: making one hangs in the login.
#[test]
fn a_replica_frozen_from_the_start_holds_nobody_up() {
    let cluster = cluster();
    let replica = &cluster.replicas()[0];
    replica.pause();
    let pgweir = builder(&cluster).start();
    let load = Load::start(&pgweir);
    wait_status(&pgweir, replica, "down");
    load.wait_progress(50);
    load.stop("frozen from the start");
    replica.resume();
}

/// A network that swallows what is sent: connections old and new hang, and none is refused or closed.
#[test]
fn a_replica_behind_a_black_hole_fails_no_read() {
    let cluster = cluster();
    let [hidden, other] = cluster.replicas() else { panic!("two replicas") };
    let gate = Gate::new(hidden.port());
    let pgweir = quick()
        .node(cluster.primary().port(), "primary", None)
        .node(gate.port, "replica", Some(1))
        .node(other.port(), "replica", Some(1))
        .start();
    let wait_status = |status: &str| wait_until(LIMIT, status, || pgweir.node_at(gate.port)["status"] == status);
    let reads = || pgweir.node_at(gate.port)["reads"].as_u64().unwrap();
    let load = Load::start(&pgweir);
    wait_until(LIMIT, "the hidden replica to read", || reads() > 0);
    gate.set(Mode::Silent);
    wait_status("down");
    load.wait_progress(50);
    block_on(async { assert_eq!(value(&connect(&pgweir.url()).await, "SELECT 1").await, "1") });
    gate.set(Mode::Open);
    // What was swallowed never comes.
    gate.cut();
    wait_status("up");
    let before = reads();
    wait_until(LIMIT, "the replica that came back to read", || reads() > before);
    load.wait_progress(50);
    load.stop("behind a black hole");
}

/// A tenth of a second later than the other, and never down.
#[test]
fn a_slow_replica_loses_its_share_by_load_and_by_latency() {
    let cluster = cluster();
    let [slow, fast] = cluster.replicas() else { panic!("two replicas") };
    for policy in ["least-busy", "latency"] {
        let gate = Gate::new(slow.port());
        gate.set(Mode::Slow(Duration::from_millis(100)));
        let pgweir = Pgweir::builder()
            .node(cluster.primary().port(), "primary", None)
            .node(gate.port, "replica", Some(1))
            .node(fast.port(), "replica", Some(1))
            .set("routing.load_balancing", policy)
            .set("routing.freshness", "eventual")
            .start();
        let load = Load::start(&pgweir);
        load.wait_progress(100);
        load.stop(policy);
        let [slow, fast] = [gate.port, fast.port()].map(|port| pgweir.node_at(port));
        let reads = [&slow, &fast].map(|node| node["reads"].as_u64().unwrap());
        assert!(reads[0] > 0 && 2 * reads[0] < reads[1], "{policy}: {reads:?}");
        assert_eq!((&slow["status"], &slow["errors"]), (&"up".into(), &0.into()), "{policy}");
    }
}

/// A replica of a replica: when the one between dies it falls behind, and no session misses what it wrote.
#[test]
fn a_cascading_replica_serves_and_falls_behind_with_its_upstream() {
    let cluster = start(2);
    let [upstream, cascading] = cluster.replicas() else { panic!("two replicas") };
    let primary = cluster.primary();
    primary.psql_in(sample::DATABASE, "SET ROLE app; CREATE TABLE cascaded AS SELECT 0 AS n").unwrap();
    let [from, to] = [primary.port(), upstream.port()].map(|port| format!("port={port}"));
    let conninfo = cascading.psql("SHOW primary_conninfo").unwrap();
    assert_eq!(conninfo.matches(&from).count(), 1, "{conninfo}");
    let conninfo = conninfo.replace(&from, &to).replace('\'', "''");
    cascading.psql(&format!("ALTER SYSTEM SET primary_conninfo = '{conninfo}'")).unwrap();
    cascading.psql("SELECT pg_reload_conf()").unwrap();
    let followers = |server: &Server| server.psql("SELECT count(*) FROM pg_stat_replication").unwrap();
    wait_until(LIMIT, "the cascade", || followers(primary) == "1" && followers(upstream) == "1");

    let pgweir = builder(&cluster).set("routing.max_lag", "1s").start();
    let reads_on = |what: &str| {
        let before = logged(cascading, "/* load */");
        wait_until(LIMIT, what, || logged(cascading, "/* load */") > before);
    };
    let write_and_read = |from: i32| {
        block_on(async {
            let client = connect(&pgweir.url()).await;
            for n in from..from + 50 {
                client.simple_query(&format!("UPDATE cascaded SET n = {n}")).await.unwrap();
                assert_eq!(value(&client, "SELECT n FROM cascaded").await, n.to_string());
            }
        })
    };
    let load = Load::start(&pgweir);
    reads_on("the cascading replica to read");
    write_and_read(0);
    upstream.kill9();
    wait_status(&pgweir, upstream, "down");
    write_and_read(100);
    // As long as the upstream is gone, nothing that was written since is there.
    assert_ne!(cascading.psql_in(sample::DATABASE, "SELECT n FROM cascaded").unwrap(), "149");
    wait_until(LIMIT, "the lag to be known", || {
        pgweir.node(cascading)["lag_ms"].as_f64().is_some_and(|ms| ms > 1000.0)
    });
    load.wait_progress(50);
    upstream.start().unwrap();
    wait_until(LIMIT, "the cascade to catch up", || {
        cascading.psql_in(sample::DATABASE, "SELECT n FROM cascaded").unwrap() == "149"
    });
    write_and_read(200);
    reads_on("the cascading replica to read again");
    load.stop("a cascade");
}

#[test]
fn rows_that_a_frozen_replica_owes_end_in_an_error() {
    let cluster = cluster();
    let pgweir = builder(&cluster).start();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        // Rows flow at once and go on for longer than the test.
        let sql = "SELECT n, repeat('x', 10000), pg_sleep(0.02) FROM generate_series(1, 100000) AS n /* partial */";
        let mut rows = pin!(client.query_raw(sql, Vec::<String>::new()).await.unwrap());
        rows.next().await.unwrap().unwrap();
        let running = |replica: &&Server| logged(replica, "/* partial */") > 0;
        let replica = cluster.replicas().iter().find(running).unwrap();
        replica.pause();
        let error = loop {
            if let Err(error) = rows.next().await.unwrap() {
                break error;
            }
        };
        // Within a row nothing can be told, for it would be read as the row's rest.
        assert!(error.is_closed() || sqlstate(&error) == "08006", "{error:?}");
        replica.resume();
    });
}

#[test]
fn without_any_replica_the_primary_reads() {
    let cluster = cluster();
    // Not for freshness, by which a session that has read there may stay a moment.
    let pgweir = builder(&cluster).set("routing.freshness", "eventual").start();
    // The servers' logs have other tests' loads too.
    let before = logged(cluster.primary(), "/* load */");
    let load = Load::start(&pgweir);
    assert_eq!(logged(cluster.primary(), "/* load */"), before);
    cluster.replicas().iter().for_each(Server::kill9);
    load.wait_progress(50);
    assert!(logged(cluster.primary(), "/* load */") > before);
    for replica in cluster.replicas() {
        wait_status(&pgweir, replica, "down");
        assert!(pgweir.node(replica)["reason"].as_str().unwrap().contains("refused"));
        replica.start().unwrap();
        wait_status(&pgweir, replica, "up");
    }
    load.wait_progress(20);
    let before = logged(cluster.primary(), "/* load */");
    load.wait_progress(50);
    // One read may have been under way to the primary, not more.
    assert!(logged(cluster.primary(), "/* load */") <= before + 6, "reads stay on the primary");
    load.stop("all replicas gone");
}

#[test]
fn pgweir_starts_with_a_replica_down_and_takes_it_in_later() {
    let cluster = cluster();
    let replica = &cluster.replicas()[1];
    replica.stop(Shutdown::Fast).unwrap();
    let pgweir = builder(&cluster).start();
    let load = Load::start(&pgweir);
    wait_status(&pgweir, replica, "down");
    let before = logged(replica, "/* load */");
    replica.start().unwrap();
    wait_status(&pgweir, replica, "up");
    load.wait_progress(50);
    wait_until(LIMIT, "the replica that came to read", || logged(replica, "/* load */") > before);
    load.stop("started without a replica");
}

// ---- the primary -----------------------------------------------------------------------------------------------

#[test]
fn without_the_primary_reads_go_on_and_writes_wait_for_it() {
    let cluster = cluster();
    let primary = cluster.primary();
    let pgweir = builder(&cluster).set("pool.acquire_timeout", "20s").start();
    let load = Load::start(&pgweir);
    primary.stop(Shutdown::Fast).unwrap();
    load.wait_progress(50);
    wait_status(&pgweir, primary, "down");
    block_on(async {
        // A new session, with settings that are proven on a server.
        let url = format!("{}?application_name=late", pgweir.url());
        let client = connect(&url).await;
        assert_eq!(value(&client, "SELECT 1").await, "1");
        let writing = tokio::spawn(async move {
            client
                .simple_query("INSERT INTO kept VALUES (1) /* waited */")
                .await
                .map(drop)
                .map_err(|e| format!("{e:?}"))
        });
        wait_waiting(&pgweir, 1).await;
        primary.start().unwrap();
        writing.await.unwrap().unwrap();
    });
    assert_eq!(logged(primary, "/* waited */"), 1);
    load.wait_progress(50);
    load.stop("primary gone");
}

/// Until so many clients wait for a server connection.
async fn wait_waiting(pgweir: &Pgweir, clients: u64) {
    let waiting = || pgweir.json("/stats")["database"]["waiting"].as_u64();
    wait_for("clients to wait", async || waiting() == Some(clients)).await;
}

#[test]
fn a_write_that_waits_too_long_is_told_why_and_the_session_lives() {
    let cluster = cluster();
    let primary = cluster.primary();
    let pgweir = builder(&cluster).set("pool.acquire_timeout", "1s").start();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        client.simple_query("INSERT INTO kept VALUES (2)").await.unwrap();
        primary.stop(Shutdown::Immediate).unwrap();
        for _ in 0..2 {
            let error = client.simple_query("INSERT INTO kept VALUES (3)").await.unwrap_err();
            assert_eq!(sqlstate(&error), "53300");
            let detail = error.as_db_error().unwrap().detail().unwrap_or_default().to_owned();
            assert!(detail.contains("refused"), "{error:?}");
            let error = client.query("INSERT INTO kept VALUES (3)", &[]).await.unwrap_err();
            assert_eq!(sqlstate(&error), "53300");
        }
        let reader = connect(&pgweir.url()).await;
        assert_eq!(value(&reader, "SELECT 1").await, "1");
        primary.start().unwrap();
        wait_status(&pgweir, primary, "up");
        client.simple_query("INSERT INTO kept VALUES (4)").await.unwrap();
        assert_eq!(value(&client, "SELECT count(*) FROM kept WHERE n = 3").await, "0");
    });
}

#[test]
fn a_write_in_flight_when_the_primary_dies_is_not_repeated() {
    let cluster = cluster();
    let primary = cluster.primary();
    let pgweir = builder(&cluster).start();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        let writing = tokio::spawn(async move {
            client.simple_query("INSERT INTO kept SELECT 5 FROM pg_sleep(30) /* in-flight */").await.map(drop)
        });
        wait_for("the write to run", async || logged(primary, "in-flight") == 1).await;
        primary.kill9();
        let error = writing.await.unwrap().unwrap_err();
        assert_eq!(sqlstate(&error), "08006", "{error:?}");
        primary.start().unwrap();
        wait_status(&pgweir, primary, "up");
        let client = connect(&pgweir.url()).await;
        assert_eq!(value(&client, "SELECT count(*) FROM kept WHERE n = 5").await, "0");
    });
    assert_eq!(logged(primary, "in-flight"), 1);
}

/// As a session reads there for freshness, or where it asks to.
#[test]
fn a_read_on_the_primary_outlives_it() {
    let cluster = cluster();
    let primary = cluster.primary();
    let pgweir = builder(&cluster).set("pool.acquire_timeout", "30s").start();
    let sql = "/* pgweir: primary */ SELECT 'row', pg_sleep(1) /* outlives */";
    // Of a failed one the log has another line.
    let runs = || logged(primary, &format!("statement: {sql}"));
    let end = |how: &dyn Fn()| {
        let (before, url) = (runs(), pgweir.url());
        let reading = thread::spawn(move || block_on(async { column(&connect(&url).await, sql).await }));
        wait_until(LIMIT, "the read to run", || runs() > before);
        how();
        let read = reading.join().unwrap();
        (read, runs() - before)
    };
    for how in [&|| primary.stop(Shutdown::Fast).unwrap(), &|| primary.kill9()] as [&dyn Fn(); 2] {
        let (read, runs) = end(&|| {
            how();
            primary.start().unwrap();
        });
        assert_eq!((read.unwrap(), runs), (vec!["row".to_owned()], 2));
    }
    // It may be the read that ends its server: twice is enough.
    let terminate = || {
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
            WHERE query LIKE '%outlives%' AND state = 'active' AND pid <> pg_backend_pid()";
        wait_until(LIMIT, "the read to be ended", || primary.psql(sql).unwrap() == "1");
    };
    let (read, runs) = end(&|| (0..2).for_each(|_| terminate()));
    assert_eq!((sqlstate(&read.unwrap_err()), runs), ("57P01", 2));
}

#[test]
fn a_read_that_brings_servers_down_is_run_twice() {
    let cluster = cluster();
    let pgweir = builder(&cluster).start();
    let sql = "SELECT pg_sleep(30) /* brings down */";
    let url = pgweir.url();
    let reading = thread::spawn(move || block_on(async { column(&connect(&url).await, sql).await }));
    let running = "SELECT pid FROM pg_stat_activity \
        WHERE query LIKE '%brings down%' AND state = 'active' AND pid <> pg_backend_pid()";
    for _ in 0..2 {
        let mut pids = Vec::new();
        wait_until(LIMIT, "the read to run", || {
            // A server that starts anew tells none.
            pids = cluster
                .servers()
                .filter_map(|server| server.psql(running).ok())
                .filter(|pid| !pid.is_empty())
                .collect();
            !pids.is_empty()
        });
        let killed = Command::new("kill").args(["-9", pids[0].trim()]).status().unwrap();
        assert!(killed.success());
    }
    assert_eq!(sqlstate(&reading.join().unwrap().unwrap_err()), "08006");
    let runs: Vec<_> = cluster.servers().map(|server| logged(server, &format!("statement: {sql}"))).collect();
    assert_eq!(
        (runs.iter().sum::<usize>(), logged(cluster.primary(), &format!("statement: {sql}"))),
        (2, 0),
        "{runs:?}"
    );
}

#[test]
fn pgweir_starts_without_the_primary() {
    let cluster = cluster();
    let primary = cluster.primary();
    primary.stop(Shutdown::Fast).unwrap();
    let pgweir = builder(&cluster).start();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        assert_eq!(value(&client, "SELECT count(*) FROM users").await, "1000");
    });
    // libpq asks for a server that takes writes by what is reported at login; pgweir takes them, or waits to.
    let url = format!("{}?target_session_attrs=read-write", pgweir.url());
    let output = pgweir.psql_output(&["-c", "SELECT 1", &url]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    primary.start().unwrap();
    wait_status(&pgweir, primary, "up");
    pgweir.psql("INSERT INTO kept VALUES (6)");
}

// ---- promotion -------------------------------------------------------------------------------------------------

/// All nodes `auto`: each says itself what it is.
fn auto(cluster: &Cluster) -> Builder {
    cluster.servers().fold(quick(), |builder, server| builder.node(server.port(), "auto", Some(1)))
}

#[test]
fn writes_follow_a_promotion_and_never_go_back() {
    let cluster = start(2);
    let (old, new, other) = (cluster.primary(), &cluster.replicas()[0], &cluster.replicas()[1]);
    let pgweir = auto(&cluster).set("pool.acquire_timeout", "30s").start();
    // The very first statement: roles are known by then, or it waits for them.
    pgweir.psql("INSERT INTO kept VALUES (1)");
    assert_eq!(pgweir.node(old)["role"], "primary");
    cluster.wait_replayed(LIMIT).unwrap();
    let load = Load::start(&pgweir);
    // Those that begin read there until replicas are known to have what was written.
    let mut begun = 0;
    wait_until(LIMIT, "the load to be the replicas' alone", || {
        begun = logged(old, "/* load */");
        load.wait_progress(20);
        logged(old, "/* load */") == begun
    });
    old.kill9();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        let writing = tokio::spawn(async move {
            client
                .simple_query("INSERT INTO kept VALUES (2) /* promoted */")
                .await
                .map(drop)
                .map_err(|e| format!("{e:?}"))
        });
        wait_waiting(&pgweir, 1).await;
        new.promote().unwrap();
        writing.await.unwrap().unwrap();
    });
    assert_eq!(logged(new, "/* promoted */"), 1);
    assert_eq!(pgweir.node(new)["role"], "primary");
    other.follow(new).unwrap();
    load.wait_progress(50);

    // The old primary returns and still believes in itself.
    old.start().unwrap();
    wait_status(&pgweir, old, "up");
    block_on(async {
        let client = connect(&pgweir.url()).await;
        for n in 3..6 {
            let sql = format!("INSERT INTO kept VALUES ({n}) /* after-return */");
            client.simple_query(&sql).await.unwrap();
            assert_eq!(value(&client, "SELECT count(*) FROM kept").await, n.to_string());
        }
    });
    assert_eq!((logged(old, "after-return"), logged(new, "after-return")), (0, 3));
    load.wait_progress(20);
    assert_eq!(logged(old, "/* load */"), begun, "reads on a primary that was replaced");
    load.stop("promotion");
}

/// Two primaries at once: what the older would commit is lost, so nobody commits there any more.
#[test]
fn a_primary_that_another_has_replaced_is_fenced() {
    let cluster = start(1);
    let (old, new) = (cluster.primary(), &cluster.replicas()[0]);
    let pgweir = auto(&cluster).set("pool.acquire_timeout", "30s").start();
    pgweir.psql("INSERT INTO kept VALUES (1)");
    cluster.wait_replayed(LIMIT).unwrap();
    // By their last statements those of clients: pgweir's own questions go on.
    let connected = || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND query LIKE '%kept%'";
        old.psql(sql).unwrap()
    };
    block_on(async {
        let client = connect(&pgweir.url()).await;
        client.simple_query("BEGIN").await.unwrap();
        client.simple_query("INSERT INTO kept VALUES (2)").await.unwrap();
        assert_ne!(connected(), "0");
        new.promote().unwrap();
        wait_until(LIMIT, "the new primary to be known", || pgweir.node(new)["role"] == "primary");
        assert_eq!(pgweir.node(old)["role"], "primary", "it believes in itself still");
        wait_for("the transaction to be ended", async || client.is_closed()).await;
        client.simple_query("COMMIT").await.unwrap_err();
        let client = connect(&pgweir.url()).await;
        client.simple_query("INSERT INTO kept VALUES (3) /* behind-the-fence */").await.unwrap();
        assert_eq!(value(&client, "SELECT string_agg(n::text, ' ' ORDER BY n) FROM kept").await, "1 3");
    });
    assert_eq!((logged(old, "behind-the-fence"), logged(new, "behind-the-fence")), (0, 1));
    wait_until(LIMIT, "idle connections to it to be closed", || connected() == "0");
    assert_eq!(old.psql_in(sample::DATABASE, "SELECT count(*) FROM kept").unwrap(), "1");
}

/// The network swallows what the old primary says: a write under way there ends once another was promoted, a read is said
/// to that one, and later writes run on that one alone.
#[test]
fn a_write_in_flight_into_a_black_hole_ends_with_the_promotion() {
    let cluster = start(1);
    let (old, new) = (cluster.primary(), &cluster.replicas()[0]);
    let gate = Gate::new(old.port());
    let pgweir = quick()
        .node(gate.port, "auto", Some(1))
        .node(new.port(), "auto", Some(1))
        .set("pool.acquire_timeout", "30s")
        .start();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        let writing = tokio::spawn(async move {
            client.simple_query("INSERT INTO kept SELECT 5 FROM pg_sleep(60) /* swallowed */").await.map(drop)
        });
        wait_for("the write to run", async || logged(old, "swallowed") == 1).await;
        let client = connect(&pgweir.url()).await;
        let sql = "/* pgweir: primary */ SELECT 'row', pg_sleep(1) /* read-anew */";
        let reading = tokio::spawn(async move { value(&client, sql).await });
        wait_for("the read to run", async || logged(old, "read-anew") == 1).await;
        gate.set(Mode::Silent);
        wait_until(LIMIT, "the old primary to be down", || pgweir.node_at(gate.port)["status"] == "down");
        new.promote().unwrap();
        let error = writing.await.unwrap().unwrap_err();
        assert_eq!(sqlstate(&error), "08006", "{error:?}");
        assert_eq!(reading.await.unwrap(), "row");
        let client = connect(&pgweir.url()).await;
        client.simple_query("INSERT INTO kept VALUES (6) /* past-the-hole */").await.unwrap();
        assert_eq!(value(&client, "SELECT string_agg(n::text, ' ' ORDER BY n) FROM kept").await, "6");
    });
    assert_eq!((logged(old, "swallowed"), logged(new, "swallowed")), (1, 0));
    assert_eq!((logged(old, "past-the-hole"), logged(new, "past-the-hole")), (0, 1));
}

#[test]
fn a_write_waits_until_some_node_says_that_it_is_the_primary() {
    let cluster = cluster();
    let primary = cluster.primary();
    primary.stop(Shutdown::Fast).unwrap();
    let pgweir = auto(&cluster).set("pool.acquire_timeout", "1s").start();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        assert_eq!(value(&client, "SELECT 1").await, "1");
        let error = client.simple_query("INSERT INTO kept VALUES (7)").await.unwrap_err();
        assert_eq!(sqlstate(&error), "53300", "{error:?}");
        assert!(error.as_db_error().unwrap().message().contains("primary"), "{error:?}");
        primary.start().unwrap();
        wait_until(LIMIT, "the primary to be known", || pgweir.node(primary)["role"] == "primary");
        client.simple_query("INSERT INTO kept VALUES (7)").await.unwrap();
    });
}

// ---- routing.failover = false ----------------------------------------------------------------------------------

/// Nothing is moved or made to wait: the client hears of the failure at once, and decides.
#[test]
fn without_failover_a_failure_is_told_at_once() {
    let cluster = cluster();
    let pgweir = builder(&cluster).set("routing.failover", false).start();
    let (primary, replica) = (cluster.primary(), &cluster.replicas()[0]);
    block_on(async {
        let clients = [connect(&pgweir.url()).await, connect(&pgweir.url()).await];
        let reading = clients.map(|client| {
            tokio::spawn(async move { client.simple_query("SELECT pg_sleep(1) /* no-failover */").await.map(drop) })
        });
        // Two reads, two replicas of the same weight.
        let reads = |replica: &Server| logged(replica, "no-failover") == 1;
        wait_for("a read on each", async || cluster.replicas().iter().all(reads)).await;
        replica.stop(Shutdown::Fast).unwrap();
        let mut failed = Vec::new();
        for read in reading {
            failed.extend(read.await.unwrap().err());
        }
        assert_eq!(failed.iter().map(sqlstate).collect::<Vec<_>>(), ["57P01"]);
        wait_status(&pgweir, replica, "down");
        // What is known to be down is asked nothing more.
        let client = connect(&pgweir.url()).await;
        for _ in 0..4 {
            assert_eq!(value(&client, "SELECT 1").await, "1");
        }
        // A write that only a standby recognises is no failure of a node.
        primary.stop(Shutdown::Fast).unwrap();
        let error = client.simple_query("INSERT INTO kept VALUES (8)").await.unwrap_err();
        assert_eq!(sqlstate(&error), "08001", "{error:?}");
        primary.start().unwrap();
        wait_status(&pgweir, primary, "up");
        client.simple_query("INSERT INTO kept VALUES (8)").await.unwrap();
    });
    assert!(try_login(&pgweir));
}

fn try_login(pgweir: &Pgweir) -> bool {
    block_on(async { try_connect(&pgweir.url()).await.is_ok() })
}

// ---- what is told ----------------------------------------------------------------------------------------------

#[test]
fn nodes_tell_when_they_go_and_come() {
    let cluster = cluster();
    let pgweir = builder(&cluster).set("admin.users", vec!["postgres"]).start();
    let replica = &cluster.replicas()[0];
    let url = pgweir.url_of("postgres", cluster.primary().password(), "pgweir");
    let shown = |status: &str| {
        let output = pgweir.psql_output(&["-c", "SHOW NODES", &url]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines()
            .any(|line| line.contains(&format!(":{}|", replica.port())) && line.contains(&format!("|{status}|")))
    };
    assert!(shown("up"));
    replica.kill9();
    wait_until(LIMIT, "SHOW NODES to say down", || shown("down"));
    assert_eq!(pgweir.json("/stats")["database"]["nodesUp"], 2);
    assert_eq!(pgweir.get("/readyz").0, 200);
    replica.start().unwrap();
    wait_until(LIMIT, "SHOW NODES to say up", || shown("up"));
    assert_eq!(pgweir.node(replica)["reason"], Value::Null);
    assert_eq!(pgweir.json("/stats")["database"]["nodesUp"], 3);
    cluster.servers().for_each(Server::kill9);
    wait_until(LIMIT, "not to be ready", || pgweir.get("/readyz").0 == 503);
    cluster.primary().start().unwrap();
    wait_until(LIMIT, "to be ready", || pgweir.get("/readyz").0 == 200);
}
