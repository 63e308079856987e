//! Servers that end a connection, or themselves.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use pgweir::demo::cluster::Cluster;
use pgweir::demo::sample;
use rustix::process::Signal;
use tokio_postgres::NoTls;

use crate::support::{Gate, LIMIT, Pgweir, Raw, Role, cluster, wait_until};

fn terminate(role: &Role<'_>) {
    role.directly(&format!("SELECT pg_terminate_backend({})", role.pids()[0]));
}

#[test]
fn a_connection_that_dies_idle_is_not_used_again() {
    let role = Role::create(cluster().primary(), "server_idle");
    let builder = Pgweir::builder().cluster(cluster(), &[]).user(role.name, role.name);
    // The reaper is not to find it first.
    let pgweir = builder.set("pool.max", 1).set("pool.reap_interval", "1h").start();
    let mut client = Raw::connect(pgweir.port(), role.name);
    for _ in 0..10 {
        client.run("SELECT 1");
        terminate(&role);
        role.wait_for(0);
        client.run("SELECT 1");
        assert_eq!(role.pids().len(), 1);
    }
}

/// What it says then is there to be read together with the answer.
#[test]
fn a_connection_that_dies_right_behind_its_answer_is_no_affair_of_its_client() {
    let role = Role::create(cluster().primary(), "server_behind");
    let builder = Pgweir::builder().cluster(cluster(), &[]).user(role.name, role.name);
    let pgweir = builder.set("pool.max", 1).start();
    let mut client = Raw::connect(pgweir.port(), role.name);
    client.query("SELECT pg_sleep(0.5)").flush();
    wait_until(LIMIT, "the statement to run", || !role.activity_where("pid", "state = 'active'").is_empty());
    pgweir.signal(Signal::STOP);
    wait_until(LIMIT, "the statement's end", || !role.activity_where("pid", "state = 'idle'").is_empty());
    terminate(&role);
    role.wait_for(0);
    pgweir.signal(Signal::CONT);
    assert_eq!(client.until_ready(), b'I');
    assert_eq!(client.run("SELECT 1"), b'I');
}

#[test]
fn a_connection_that_dies_in_use_tells_its_client_and_the_pool_recovers() {
    let role = Role::create(cluster().primary(), "server_used");
    let builder = Pgweir::builder().cluster(cluster(), &[]).user(role.name, role.name);
    let pgweir = builder.set("pool.max", 1).start();
    for what in ["BEGIN; SELECT 1", "SELECT pg_sleep(3600)", "CREATE TEMP TABLE t (n int)"] {
        let mut client = Raw::connect(pgweir.port(), role.name);
        client.query(what).flush();
        if what.contains("sleep") {
            wait_until(LIMIT, what, || !role.activity_where("pid", "state = 'active'").is_empty());
        } else {
            client.until_ready();
        }
        terminate(&role);
        assert_eq!(client.until_closed().as_deref(), Some("57P01"), "{what}");
        Raw::connect(pgweir.port(), role.name).run("SELECT 1");
    }
}

/// Three pools of ten, all of which come back at once.
#[test]
fn a_restarted_primary_is_found_again_without_a_storm_of_logins() {
    const CLIENTS: usize = 10;
    let cluster = Cluster::builder().start().unwrap();
    sample::install(cluster.primary()).unwrap();
    let roles = ["storm_a", "storm_b", "storm_c"].map(|name| Role::create(cluster.primary(), name));
    let gate = Gate::new(cluster.primary().port());
    let builder = Pgweir::builder().node(gate.port, "primary", None).set("pool.max", CLIENTS as i64);
    let builder = roles.iter().fold(builder, |builder, role| builder.user(role.name, role.name));
    let pgweir = builder.start();
    let (stop, served) = (AtomicBool::new(false), [const { AtomicUsize::new(0) }; 3 * CLIENTS]);
    thread::scope(|scope| {
        for (at, served) in served.iter().enumerate() {
            let (url, stop) = (roles[at % 3].url(&pgweir), &stop);
            scope.spawn(move || busy(&url, stop, served));
        }
        let all_served = |what: &str| {
            let before: Vec<_> = served.iter().map(|count| count.load(Ordering::Relaxed)).collect();
            wait_until(LIMIT, what, || {
                served.iter().zip(&before).all(|(count, before)| count.load(Ordering::Relaxed) > before + 2)
            });
        };
        // However the test ends, the clients do.
        let _stopped = Stopped(&stop);
        all_served("service");
        cluster.primary().restart().unwrap();
        all_served("service after a restart");
        cluster.primary().kill9();
        cluster.primary().start().unwrap();
        all_served("service after a crash");
    });
    // Eight for the pools, and pgweir's own: the probe's and the catalog's.
    assert!(gate.most_logins() <= 10, "{} logins at once", gate.most_logins());
    roles.iter().for_each(|role| assert!(role.pids().len() <= CLIENTS));
}

struct Stopped<'a>(&'a AtomicBool);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// An application that connects again whenever its connection ends.
fn busy(url: &str, stop: &AtomicBool, served: &AtomicUsize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        while !stop.load(Ordering::Relaxed) {
            let Ok((client, connection)) = tokio_postgres::connect(url, NoTls).await else { continue };
            tokio::spawn(connection);
            while !stop.load(Ordering::Relaxed) && client.batch_execute("BEGIN; SELECT 1; COMMIT").await.is_ok() {
                served.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
}
