//! Several pgweirs before one primary: one reads its changes and tells the others, who keep the same promise whatever
//! becomes of it.

mod support;

use std::time::{Duration, Instant};

use pgweir::cache::MOST_BEHIND;
use pgweir::demo::cluster::{Cluster, SUPERUSER, Server};
use pgweir::demo::sample;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::wire::{Login, Wire};
use support::{Builder, LIMIT, Pgweir, lone_primary, wait_until};

fn builder(cluster: &Cluster) -> Builder {
    let builder = Pgweir::builder().cluster(cluster, &[]);
    builder.set("cache.enabled", true).set("cache.invalidation", "wal").set("cache.fleet", true)
}

/// As the superuser in the sample's database, past pgweir.
fn around(server: &Server, sql: &str) -> String {
    server.psql_in(sample::DATABASE, sql).unwrap().trim().to_owned()
}

fn part(pgweir: &Pgweir) -> String {
    pgweir.cache()["fleet"]["part"].as_str().unwrap_or_default().to_owned()
}

fn takeovers(pgweirs: &[Pgweir]) -> u64 {
    pgweirs.iter().map(|pgweir| pgweir.cache()["fleet"]["takeovers"].as_u64().unwrap()).sum()
}

fn slots(cluster: &Cluster) -> String {
    around(cluster.primary(), "SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical'")
}

/// One leads, the others follow, all keep results, and the primary has one slot for all of them.
fn wait_for_fleet(cluster: &Cluster, pgweirs: &[Pgweir]) {
    let is_fleet = || {
        let count = |what: &str| pgweirs.iter().filter(|pgweir| part(pgweir) == what).count();
        let is_open = |pgweir: &Pgweir| pgweir.cache()["mode"] == "wal";
        count("leader") == 1 && count("follower") == pgweirs.len() - 1 && pgweirs.iter().all(is_open)
    };
    wait_until(LIMIT, "a leader and followers", is_fleet);
    wait_until(LIMIT, "one slot", || slots(cluster) == "1");
}

fn leader(pgweirs: &[Pgweir]) -> usize {
    pgweirs.iter().position(|pgweir| part(pgweir) == "leader").unwrap()
}

/// Clients of all that keep the row of one table, which only grows.
struct Readers {
    clients: Vec<Wire>,
    sql: String,
    table: String,
}

impl Readers {
    fn new(cluster: &Cluster, pgweirs: &[Pgweir], table: &str) -> Readers {
        let make = format!("CREATE TABLE {table} (n int); INSERT INTO {table} VALUES (0); GRANT ALL ON {table} TO app");
        around(cluster.primary(), &make);
        let clients = pgweirs.iter().map(|pgweir| Wire::connect(pgweir.port())).collect();
        Readers { clients, sql: format!("SELECT n FROM {table}"), table: table.to_owned() }
    }

    fn update(&self, n: u32) -> String {
        format!("UPDATE {} SET n = {n}", self.table)
    }

    fn warm(&mut self, pgweirs: &[Pgweir]) {
        for (client, pgweir) in self.clients.iter_mut().zip(pgweirs) {
            pgweir.warm(client, &self.sql);
        }
    }

    /// Somebody was told of `n` at `told`: each sees it soon, and at the latest within the bound.
    fn see(&mut self, n: u32, told: Instant) {
        for client in &mut self.clients {
            wait_until(LIMIT, "the change", || {
                let asked = Instant::now();
                let sees = client.value(&self.sql) == n.to_string();
                assert!(sees || asked - told < MOST_BEHIND, "{n} was written {:?} before", asked - told);
                sees
            });
        }
    }
}

/// Backends of the server by what they show as.
fn backends(cluster: &Cluster, condition: &str) -> Vec<Pid> {
    let pids = around(cluster.primary(), &format!("SELECT pid FROM pg_stat_activity WHERE {condition}"));
    pids.lines().map(|pid| Pid::from_raw(pid.trim().parse().unwrap()).unwrap()).collect()
}

const ANNOUNCER: &str = "application_name LIKE 'pgweir fleet %'";
const STREAM: &str = "application_name = 'pgweir changes' AND backend_type = 'walsender'";
const FOLLOWERS: &str = "application_name = 'pgweir changes' AND query LIKE '%pg_stat_get_activity%'";

#[test]
fn five_share_one_slot_and_see_what_anybody_writes() {
    let cluster = lone_primary();
    let pgweirs: Vec<_> = (0..5).map(|_| builder(&cluster).start()).collect();
    wait_for_fleet(&cluster, &pgweirs);
    let mut readers = Readers::new(&cluster, &pgweirs, "shared");
    let mut writers: Vec<_> = pgweirs.iter().map(|pgweir| Wire::connect(pgweir.port())).collect();
    for (n, writer) in (1..).zip(&mut writers) {
        readers.warm(&pgweirs);
        writer.query(&readers.update(n));
        readers.see(n, Instant::now());
    }
    for n in 11..16 {
        readers.warm(&pgweirs);
        around(cluster.primary(), &readers.update(n));
        readers.see(n, Instant::now());
    }
    assert_eq!(slots(&cluster), "1");
    // More tables at once than one notification takes.
    let make = "DO $$ BEGIN FOR i IN 1..300 LOOP EXECUTE format('CREATE TABLE many_%s_%s (n int)', i, repeat('x', 40)); \
                END LOOP; END $$";
    around(cluster.primary(), make);
    readers.warm(&pgweirs);
    let insert = format!(
        "BEGIN; DO $$ BEGIN FOR i IN 1..300 LOOP EXECUTE format('INSERT INTO many_%s_%s VALUES (1)', i, repeat('x', 40)); \
         END LOOP; END $$; {}; COMMIT",
        readers.update(20)
    );
    around(cluster.primary(), &insert);
    readers.see(20, Instant::now());

    let pid = backends(&cluster, ANNOUNCER)[0].as_raw_nonzero();
    for pgweir in &pgweirs {
        let fleet = pgweir.cache()["fleet"].clone();
        let expected = (fleet["part"] == "follower").then(|| format!("127.0.0.1, process {pid}"));
        assert_eq!(fleet["leader"].as_str(), expected.as_deref());
    }
    let admin = builder(&cluster).set("admin.users", vec![toml::Value::from("app")]).start();
    wait_until(LIMIT, "the sixth", || part(&admin) == "follower");
    let mut console = Wire::log_in(admin.port(), &Login { database: "pgweir", ..Login::default() });
    let shown = console.query("SHOW CACHE");
    assert!(shown.iter().any(|frame| frame.tag == b'D' && frame.body.windows(8).any(|w| w == b"follower")));
}

/// Announcements and posts do not keep one another awake.
#[test]
fn a_fleet_at_rest_writes_nothing() {
    let cluster = lone_primary();
    let pgweirs: Vec<_> = (0..2).map(|_| builder(&cluster).start()).collect();
    wait_for_fleet(&cluster, &pgweirs);
    let mut readers = Readers::new(&cluster, &pgweirs, "resting");
    readers.warm(&pgweirs);
    around(cluster.primary(), &readers.update(1));
    readers.see(1, Instant::now());
    readers.warm(&pgweirs);
    let end = || around(cluster.primary(), "SELECT pg_current_wal_insert_lsn()");
    let (mut last, mut since) = (end(), Instant::now());
    wait_until(LIMIT, "two seconds without WAL", || {
        let now = end();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_secs(2)
    });
    assert!(pgweirs.iter().all(|pgweir| pgweir.cache()["mode"] == "wal"));
    readers.warm(&pgweirs);
}

#[test]
fn when_the_leader_dies_another_takes_over() {
    let cluster = lone_primary();
    let mut pgweirs: Vec<_> = (0..5).map(|_| builder(&cluster).start()).collect();
    wait_for_fleet(&cluster, &pgweirs);
    let mut readers = Readers::new(&cluster, &pgweirs, "taken_over");
    readers.warm(&pgweirs);
    let dead = leader(&pgweirs);
    pgweirs[dead].signal(Signal::KILL);
    pgweirs[dead].wait_exit(LIMIT);
    drop((pgweirs.remove(dead), readers.clients.remove(dead)));
    around(cluster.primary(), &readers.update(1));
    readers.see(1, Instant::now());
    wait_for_fleet(&cluster, &pgweirs);
    assert!(takeovers(&pgweirs) > 0);

    // Its connection, its stream, the others' connections.
    for (n, condition) in (2..).zip([ANNOUNCER, STREAM, FOLLOWERS]) {
        readers.warm(&pgweirs);
        let closed = |pgweirs: &[Pgweir]| {
            let closed = |pgweir: &Pgweir| pgweir.cache()["invalidated"]["closed"].as_u64().unwrap();
            pgweirs.iter().map(closed).sum::<u64>()
        };
        let before = closed(&pgweirs);
        for pid in backends(&cluster, condition) {
            around(cluster.primary(), &format!("SELECT pg_terminate_backend({})", pid.as_raw_nonzero()));
        }
        around(cluster.primary(), &readers.update(n));
        readers.see(n, Instant::now());
        wait_until(LIMIT, "the loss to be noticed", || closed(&pgweirs) > before);
        wait_for_fleet(&cluster, &pgweirs);
    }
    readers.warm(&pgweirs);
}

/// Any role may send on any channel, call itself what it likes, and take a lock.
fn forge(cluster: &Cluster) -> String {
    let role = around(cluster.primary(), &format!("SELECT oid FROM pg_roles WHERE rolname = '{SUPERUSER}'"));
    format!(
        "SET application_name = 'pgweir fleet 1 ffff ffffffffffffffff 0'; \
         SELECT pg_notify('pgweir_fleet_{role}_0', n || ' ffffffffffffffff *') FROM generate_series(1, 9) AS n; \
         SELECT pg_notify('pgweir_fleet_{role}_0', 'nonsense')"
    )
}

#[test]
fn a_leader_that_stands_still_is_not_believed_and_loses_its_lead() {
    let cluster = lone_primary();
    let pgweirs: Vec<_> = (0..3).map(|_| builder(&cluster).start()).collect();
    wait_for_fleet(&cluster, &pgweirs);
    let mut readers = Readers::new(&cluster, &pgweirs, "stopped");
    readers.warm(&pgweirs);
    let stopped = leader(&pgweirs);
    let others = || pgweirs.iter().enumerate().filter(|(n, _)| *n != stopped).map(|(_, pgweir)| pgweir);
    let asleep = readers.clients.remove(stopped);
    let mut stranger = Wire::connect(cluster.primary().port());
    stranger.query(&forge(&cluster));
    pgweirs[stopped].signal(Signal::STOP);
    let mut n = 0;
    wait_until(LIMIT, "another leader", || {
        n += 1;
        around(cluster.primary(), &readers.update(n));
        let told = Instant::now();
        stranger.query(&forge(&cluster));
        readers.see(n, told);
        others().any(|pgweir| part(pgweir) == "leader")
    });
    pgweirs[stopped].signal(Signal::CONT);
    readers.clients.insert(stopped, asleep);
    readers.see(n, Instant::now());
    wait_for_fleet(&cluster, &pgweirs);
    assert!(takeovers(&pgweirs) > 0);
    readers.warm(&pgweirs);
    around(cluster.primary(), &readers.update(n + 1));
    readers.see(n + 1, Instant::now());
}

/// Its connection stands still, or that of one who follows: the server does not answer there.
#[test]
fn a_connection_that_stands_still_is_not_relied_on() {
    let cluster = lone_primary();
    let pgweirs: Vec<_> = (0..2).map(|_| builder(&cluster).start()).collect();
    wait_for_fleet(&cluster, &pgweirs);
    let mut readers = Readers::new(&cluster, &pgweirs, "stuck");
    for (n, condition) in (1..).zip([ANNOUNCER, FOLLOWERS, STREAM]) {
        readers.warm(&pgweirs);
        let pids = backends(&cluster, condition);
        assert!(!pids.is_empty(), "{condition}");
        pids.iter().for_each(|pid| kill_process(*pid, Signal::STOP).unwrap());
        around(cluster.primary(), &readers.update(n));
        readers.see(n, Instant::now());
        pids.iter().for_each(|pid| kill_process(*pid, Signal::CONT).unwrap());
        wait_for_fleet(&cluster, &pgweirs);
    }
    readers.warm(&pgweirs);
}

#[test]
fn what_others_send_is_not_heard() {
    let cluster = lone_primary();
    let pgweirs: Vec<_> = (0..2).map(|_| builder(&cluster).start()).collect();
    wait_for_fleet(&cluster, &pgweirs);
    let mut readers = Readers::new(&cluster, &pgweirs, "forged");
    readers.warm(&pgweirs);
    let closed = || pgweirs.iter().map(|pgweir| pgweir.cache()["invalidated"]["closed"].clone()).collect::<Vec<_>>();
    let before = closed();
    let mut stranger = Wire::connect(cluster.primary().port());
    for n in 1..20 {
        stranger.query(&forge(&cluster));
        around(cluster.primary(), &readers.update(n));
        readers.see(n, Instant::now());
    }
    readers.warm(&pgweirs);
    assert_eq!(closed(), before);
}

#[test]
fn with_the_lock_in_other_hands_each_goes_alone() {
    let cluster = lone_primary();
    let mut thief = Wire::connect(cluster.primary().port());
    let role = around(cluster.primary(), &format!("SELECT oid FROM pg_roles WHERE rolname = '{SUPERUSER}'"));
    thief.query(&format!("SELECT pg_advisory_lock({}::bigint << 32 | {role}::bigint)", 0x7077_6569));
    thief.query(&forge(&cluster));
    let pgweirs: Vec<_> = (0..2).map(|_| builder(&cluster).start()).collect();
    wait_until(LIMIT, "both to go alone", || pgweirs.iter().all(|pgweir| part(pgweir) == "alone"));
    assert_eq!(pgweirs[0].cache()["fleet"]["reason"], "another role holds the fleet's lock");
    let mut readers = Readers::new(&cluster, &pgweirs, "alone_each");
    readers.warm(&pgweirs);
    around(cluster.primary(), &readers.update(1));
    readers.see(1, Instant::now());
    drop(thief);
    wait_for_fleet(&cluster, &pgweirs);
    readers.warm(&pgweirs);
    around(cluster.primary(), &readers.update(2));
    readers.see(2, Instant::now());
}

#[test]
fn roles_that_may_not_replicate_make_no_fleet() {
    let cluster = lone_primary();
    let users = Builder::default().node(cluster.primary().port(), "primary", None).set("cache.enabled", true);
    let pgweir = users.set("cache.fleet", true).start();
    wait_until(LIMIT, "the mode", || pgweir.cache()["mode"] == "ttl");
    let cache = pgweir.cache();
    assert!(cache["reason"].as_str().unwrap().to_lowercase().contains("replication"), "{cache}");
    assert_eq!(cache["fleet"]["part"], Value::Null);
}
