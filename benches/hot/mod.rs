//! The hot rooms: what a query passes through in pgweir's own code, each as one operation to be repeated.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgweir::cluster::Cluster;
use pgweir::config;
use pgweir::freshness::{Need, Seen};
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
        plan_lookup(),
        plan_of_new_literal(),
        route(),
        ledger(),
        record(),
    ]
}

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

/// A text that has been seen.
fn plan_lookup() -> Room {
    let plans = plans();
    room("plan", move || drop(black_box(plans.plan(black_box(QUERY.as_bytes())))))
}

/// A text that has been seen with other literals only: a fingerprint, and a place in the cache.
fn plan_of_new_literal() -> Room {
    let plans = plans();
    let mut literal = 0u32;
    room("plan of a new literal", move || {
        literal += 1;
        let text = format!("SELECT abalance FROM pgbench_accounts WHERE aid = {literal};");
        drop(black_box(plans.plan(text.as_bytes())));
    })
}

fn cluster() -> Cluster {
    let node = |port, role, weight| config::Node { host: "h".into(), port, role, weight };
    let nodes = [
        node(1, config::NodeRole::Primary, 1),
        node(2, config::NodeRole::Replica, 1),
        node(3, config::NodeRole::Replica, 1),
        node(4, config::NodeRole::Replica, 2),
    ];
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

/// Of a read: the decision, and the choice among three replicas.
fn route() -> Room {
    let (cluster, now) = (cluster(), Instant::now());
    let need = Need::new(config::Freshness::Session, Seen::default(), None);
    room("route", move || {
        black_box(decide(black_box(&Demand::default()), None));
        let node = cluster.reader(&need, Default::default(), now, 0).map(|choice| choice.node.index);
        assert!(black_box(node).is_some());
    })
}

/// One checkout and checkin in a pool of 20.
fn ledger() -> Room {
    const POOL: usize = 20;
    let limits = Limits {
        min: POOL,
        max: POOL,
        idle_timeout: Duration::from_secs(3600),
        max_lifetime: Duration::from_secs(3600),
        create_retry_interval: Duration::from_millis(200),
        concurrent_creates: POOL,
    };
    let now = Instant::now();
    let mut ledger: Ledger<usize, ()> = Ledger::new(limits);
    for (connection, permit) in ledger.reap(now).create.enumerate() {
        drop(ledger.created(now, permit, connection, 0, 0.5));
    }
    room("ledger", move || {
        let Checkout::Idle(held) = ledger.checkout(now, 0, || ()) else { panic!("all are idle") };
        drop(black_box(ledger.checkin(now, held, Verdict::Clean)));
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
