//! The hot rooms: what a query passes through in pgweir's own code, each as one operation to be repeated.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgweir::cache::entry::{Entry, Needs, Part};
use pgweir::cache::key::{Formats, Read};
use pgweir::cache::{Asked, Limits as Bounds, Reads, Results, Table, Wanted};
use pgweir::cluster::Cluster;
use pgweir::config;
use pgweir::freshness::{Need, Seen};
use pgweir::pool::books::Books;
use pgweir::pool::ledger::{Checkout, Ledger, Limits, Verdict};
use pgweir::route::decide::{Demand, decide};
use pgweir::route::plan::Plans;
use pgweir::sql::fingerprint::fingerprint;
use pgweir::stats::{CacheUse, Outcome, Sample, Stats};
use pgweir::wire::scan;

/// pgbench's select, as the simple protocol sends it.
const QUERY: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = 4711;";

/// The answer to it: RowDescription, DataRow, CommandComplete, ReadyForQuery.
const ANSWER: &[u8] = b"T\0\0\0\x21\0\x01abalance\0\0\0\x40\x05\0\x03\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0\
    D\0\0\0\x0b\0\x01\0\0\0\x010C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";

/// One room: its name, and the operation.
pub struct Room {
    pub name: &'static str,
    pub once: Box<dyn FnMut()>,
}

fn room(name: &'static str, once: impl FnMut() + 'static) -> Room {
    Room { name, once: Box::new(once) }
}

pub fn rooms() -> Vec<Room> {
    vec![
        room("scan", scan_answer),
        room("fingerprint", || _ = black_box(fingerprint(black_box(QUERY)))),
        plan_lookup(1),
        plan_of_new_literal(1),
        route(3),
        drawer(20),
        ledger(20),
        cached_read(1),
        record(),
    ]
}

/// A room, and what there is more and more of in it.
#[allow(dead_code)] // One of the two benches shows it.
pub struct Growth {
    pub room: fn(usize) -> Room,
    pub of: &'static str,
    pub sizes: [usize; 3],
}

#[allow(dead_code)] // One of the two benches shows it.
impl Growth {
    /// Of its room.
    pub fn name(&self) -> String {
        (self.room)(1).name.into()
    }
}

#[allow(dead_code)] // One of the two benches shows it.
pub const GROWTHS: [Growth; 6] = [
    Growth { room: plan_lookup, of: "statements", sizes: [10, 1_000, 5_000] },
    Growth { room: plan_of_new_literal, of: "statements", sizes: [10, 1_000, 5_000] },
    Growth { room: route, of: "replicas", sizes: [1, 4, 16] },
    Growth { room: route_of_session, of: "replicas", sizes: [1, 4, 16] },
    Growth { room: ledger, of: "connections", sizes: [20, 200, 2_000] },
    Growth { room: cached_read, of: "results kept", sizes: [10, 1_000, 100_000] },
];

/// The room of this name alone, so that setting up the others is not measured.
#[allow(dead_code)] // One of the two benches asks for it.
pub fn find(name: &str) -> Option<Room> {
    rooms().into_iter().find(|room| room.name == name)
}

/// The frames of one answer.
fn scan_answer() {
    let mut at = 0;
    while let Ok(Some(head)) = scan::head(&black_box(ANSWER)[at..]) {
        black_box(head.tag);
        at += head.total;
    }
    assert_eq!(at, ANSWER.len());
}

fn plans() -> Plans {
    Plans::new("app".into(), stats())
}

fn stats() -> Arc<Stats> {
    let statements = config::Statements {
        max: 1000,
        slow_threshold: Duration::from_secs(60),
        slow_log: config::SlowLog::Off,
        slow_log_parameters: false,
        capture_plans: false,
    };
    Arc::new(Stats::new(&statements, 1, Instant::now()).expect("without a log there is nothing to fail"))
}

/// Plans of so many other statements, which have come often enough to be kept.
fn plans_among(statements: usize) -> Plans {
    let plans = plans();
    for n in (0..statements).flat_map(|n| [n; 3]) {
        plans.plan(format!("SELECT column_{n} FROM pgbench_accounts WHERE aid = {n};").as_bytes());
    }
    plans
}

/// A text that has been seen.
fn plan_lookup(statements: usize) -> Room {
    let plans = plans_among(statements);
    room("plan", move || drop(black_box(plans.plan(black_box(QUERY.as_bytes())))))
}

/// A text that has been seen with other literals only.
fn plan_of_new_literal(statements: usize) -> Room {
    let plans = plans_among(statements);
    let mut literal = 0u32;
    room("plan of a new literal", move || {
        literal += 1;
        let text = format!("SELECT abalance FROM pgbench_accounts WHERE aid = {literal};");
        drop(black_box(plans.plan(text.as_bytes())));
    })
}

fn cluster(replicas: usize) -> Cluster {
    let node = |port: usize, role, weight| config::Node { host: "h".into(), port: port as u16, role, weight };
    let replicas = (0..replicas).map(|n| node(2 + n, config::NodeRole::Replica, 1 + n as u32 / 2));
    let nodes: Vec<_> = [node(1, config::NodeRole::Primary, 1)].into_iter().chain(replicas).collect();
    let routing = config::Routing {
        load_balancing: config::LoadBalancing::Weighted,
        failover: true,
        freshness: config::Freshness::Session,
        max_lag: Duration::from_secs(10),
        primary_reads: config::PrimaryReads::Fallback,
        probe_interval: Duration::from_secs(1),
    };
    Cluster::new("app".into(), &nodes, &routing, Instant::now())
}

/// Of a read: the decision, and the choice among replicas.
fn route(replicas: usize) -> Room {
    let (cluster, now) = (cluster(replicas), Instant::now());
    let need = Need::new(config::Freshness::Session, Seen::default(), None);
    room("route", move || {
        black_box(decide(black_box(&Demand::default()), None));
        let node = cluster.reader(&need, Default::default(), now, 0).map(|choice| choice.node.index);
        assert!(black_box(node).is_some());
    })
}

/// The same of sessions that read again sooner than is known of any other node than their last: eight reads of each.
#[allow(dead_code)] // One of the two benches shows it.
fn route_of_session(replicas: usize) -> Room {
    let (cluster, now) = (cluster(replicas), Instant::now());
    let (mut seen, mut reads) = (Seen::default(), 0u32);
    room("route of a session", move || {
        black_box(decide(black_box(&Demand::default()), None));
        let need = Need::new(config::Freshness::Session, seen, None);
        let node = cluster.reader(&need, Default::default(), now, 0).map(|choice| choice.node.index);
        reads += 1;
        match black_box(node).filter(|_| reads % 8 != 0) {
            Some(node) => seen.on_replica(now, node),
            None => seen = Seen::default(),
        }
    })
}

fn limits(connections: usize) -> Limits {
    Limits {
        min: connections,
        max: connections,
        idle_timeout: Duration::from_secs(3600),
        max_lifetime: Duration::from_secs(3600),
        create_retry_interval: Duration::from_millis(200),
        concurrent_creates: connections,
    }
}

/// One checkout and checkin in a pool's ledger.
fn ledger(connections: usize) -> Room {
    let now = Instant::now();
    let mut ledger: Ledger<usize, ()> = Ledger::new(limits(connections));
    for (connection, permit) in ledger.reap(now).create.enumerate() {
        drop(ledger.created(now, permit, connection, 0, 0.5));
    }
    room("ledger", move || {
        let Checkout::Idle(held) = ledger.checkout(now, || Duration::ZERO, 0, || ()) else { panic!("all are idle") };
        drop(black_box(ledger.checkin(now, held, Verdict::Clean)));
    })
}

/// The same by a worker that has an idle connection in its drawer, with the locks.
fn drawer(connections: usize) -> Room {
    let now = Instant::now();
    let books: Books<u32, ()> = Books::new(limits(connections), 2);
    let create = books.lock().reap(now).create;
    for (connection, permit) in create.enumerate() {
        drop(books.lock().created(now, permit, connection as u32, 0, 0.5));
    }
    room("drawer", move || {
        let held = books.take_own(0).expect("all are idle");
        drop(black_box(books.checkin(now, held, Verdict::Clean)));
    })
}

/// A result that is kept: its key, the look-up, and the answer into a buffer.
fn cached_read(entries: usize) -> Room {
    let now = Instant::now();
    let results =
        Arc::new(Results::new(Bounds { max_entries: entries, max_bytes: u64::MAX, max_entry_bytes: 1 << 20 }));
    let database = results.add_database(now);
    results.open(database, now);
    let reads = Reads::Tables([Table(1)].into());
    let ask = move |n: usize| {
        let text = format!("SELECT abalance FROM pgbench_accounts WHERE aid = {n};");
        let read = Read { text: text.as_bytes(), types: &[], parameters: &[], formats: Formats::Text };
        let (needs, ttl) = (Needs::default(), Duration::from_secs(3600));
        let key = read.key(b"app\0");
        let wanted = Wanted {
            database,
            key: &key,
            needs,
            brings: needs,
            reads: reads.clone(),
            ttl,
            stale: Duration::ZERO,
            after: None,
        };
        results.ask(&wanted, now)
    };
    for n in 0..entries {
        let Asked::Fill(fill) = ask(n) else { panic!("not kept yet") };
        fill.land(Entry::new(&[], b"", ANSWER, 1)).expect("nothing has changed meanwhile");
    }
    room("cached read", move || {
        let Asked::Hit(entry, _) = ask(black_box(entries / 2)) else { panic!("it is kept") };
        let mut out = bytes::BytesMut::with_capacity(1024);
        entry.write(&[Part::Rows, Part::Result, Part::Ready], &mut out);
        black_box(out);
    })
}

/// What is counted of one statement: its histograms, the database's counters, the window.
fn record() -> Room {
    let stats = stats();
    let statement = stats.statements.record(fingerprint(QUERY).fingerprint, || QUERY.into(), &"app".into());
    let database = stats.databases.database(&"app".into());
    let now = Instant::now();
    let mut micros = 0;
    room("record", move || {
        micros = micros % 1000 + 1;
        let sample = Sample {
            wait: Duration::from_micros(micros / 2),
            execute: Duration::from_micros(micros),
            rows: 1,
            bytes: 80,
            outcome: Outcome::Done,
            cache: CacheUse::NotAsked,
            node: Some(0),
            is_write: false,
        };
        black_box(stats.record(0, now, &statement, database.at(0), &sample));
    })
}
