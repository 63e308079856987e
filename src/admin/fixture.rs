//! An [`Admin`] over made-up rows, for tests.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::rows::{DatabaseRow, Lists, NodeRow, NodeStatus, PoolRow, Side, SocketRow, UserRow};
use super::{Admin, Sources};
use crate::config::{self, NodeRole, PoolMode};
use crate::sql::Fingerprint;
use crate::stats::slow::tests::entry;
use crate::stats::{CacheUse, Outcome, Sample, Stats};

pub const TOKEN: &str = "s3cret";

pub fn pool(user: &str, node: &str) -> PoolRow {
    PoolRow {
        database: "app".into(),
        user: user.into(),
        cl_active: 10,
        cl_waiting: 2,
        cl_active_cancel_req: 0,
        cl_waiting_cancel_req: 0,
        sv_active: 3,
        sv_active_cancel: 0,
        sv_being_canceled: 1,
        sv_idle: 4,
        sv_used: 0,
        sv_tested: 0,
        sv_login: 1,
        max_wait: Duration::from_micros(1_250_000),
        pool_mode: PoolMode::Transaction,
        node: Some(node.into()),
        max: 50,
    }
}

pub fn node(index: u16, name: &str, role: NodeRole, queries: u64) -> NodeRow {
    NodeRow {
        index,
        database: "app".into(),
        name: name.into(),
        role,
        status: if queries == 0 { NodeStatus::Down } else { NodeStatus::Up },
        weight: 1,
        lag: (role == NodeRole::Replica).then_some(Duration::from_millis(12)),
        lag_bytes: (role == NodeRole::Replica).then_some(4_096),
        lsn: Some("0/16B3748".into()),
        connections: 9,
        active: 3,
        queries,
        reads: queries,
        writes: 0,
        errors: 1,
        probe: Some(Duration::from_micros(750)),
        reason: (queries == 0).then(|| "connection refused".into()),
        host: Some(("db.test".into(), vec![IpAddr::from([127, 0, 0, 1])])),
    }
}

pub fn socket(side: Side, id: u64) -> SocketRow {
    let at: Timestamp = "2026-01-15T10:00:00Z".parse().unwrap();
    SocketRow {
        side,
        user: Some("alice".into()),
        database: Some("app".into()),
        replication: "none",
        state: "active",
        addr: "127.0.0.1".into(),
        port: 50_000,
        local_addr: "127.0.0.1".into(),
        local_port: 6_432,
        connect_time: at,
        request_time: at,
        wait: Duration::ZERO,
        close_needed: false,
        id,
        link: Some(id + 1),
        remote_pid: 0,
        tls: String::new(),
        application_name: "shop".into(),
        prepared_statements: 2,
        pinned_by: (side == Side::Client).then(|| "temporary table".into()),
        node: (side == Side::Server).then(|| "primary:5432".into()),
    }
}

fn database() -> DatabaseRow {
    DatabaseRow {
        name: "app".into(),
        host: Some("primary".into()),
        port: 5_432,
        database: "app".into(),
        force_user: None,
        pool_size: 50,
        min_pool_size: 5,
        server_lifetime: Duration::from_secs(3_600),
        pool_mode: PoolMode::Transaction,
        max_connections: 0,
        current_connections: 18,
        max_client_connections: 0,
        current_client_connections: 24,
        paused: false,
        disabled: true,
    }
}

fn sources() -> Sources {
    Sources {
        pools: Box::new(|| vec![pool("alice", "primary:5432"), pool("alice", "replica:5432")]),
        clients: Box::new(|| vec![socket(Side::Client, 16)]),
        servers: Box::new(|| vec![socket(Side::Server, 17)]),
        databases: Box::new(|| vec![database()]),
        nodes: Box::new(|| {
            vec![
                node(0, "primary:5432", NodeRole::Primary, 100),
                node(1, "replica:5432", NodeRole::Replica, 300),
                node(2, "gone:5432", NodeRole::Replica, 0),
            ]
        }),
        users: Box::new(|| {
            vec![UserRow {
                name: "alice".into(),
                pool_size: None,
                pool_mode: None,
                max_user_connections: 0,
                current_connections: 18,
                max_user_client_connections: 0,
                current_client_connections: 24,
            }]
        }),
        lists: Box::new(|| Lists { databases: 1, users: 1, pools: 2, used_clients: 24, ..Lists::default() }),
        explain_route: Box::new(|sql| Ok(vec![format!("about: {sql}")])),
        command: Box::new(|command| Box::pin(async move { Ok(command.name().to_owned()) })),
        ..Sources::none()
    }
}

/// With a hundred statements of 1 to 100 ms behind it, of which one failed.
pub fn admin(start: Instant) -> Admin {
    admin_of(start, sources())
}

pub fn admin_of(start: Instant, sources: Sources) -> Admin {
    let config = config::Statements {
        max: 10,
        slow_threshold: Duration::from_millis(100),
        slow_log: config::SlowLog::Off,
        slow_log_parameters: false,
        capture_plans: false,
    };
    let stats = Stats::new(&config, 1, start).unwrap();
    let app: Arc<str> = "app".into();
    let statement = stats.statements.record(Fingerprint(0xab), || "select \"a\" from t where b = $1".into(), &app);
    let counters = stats.databases.database(&app);
    counters.at(0).client_login();
    for n in 1..=100 {
        let sample = Sample {
            wait: Duration::ZERO,
            execute: Duration::from_millis(n),
            rows: 2,
            bytes: 100,
            outcome: if n == 1 { Outcome::ServerFault } else { Outcome::Done },
            cache: CacheUse::NotAsked,
            node: Some(1),
            is_write: false,
        };
        if stats.record(0, start, &statement, counters.at(0), &sample) {
            stats.slow.record(entry("select \"a\" from t where b = $1"));
        }
    }
    let settings = config::Admin { http: None, users: vec!["dba".into()], token: Some(config::Secret(TOKEN.into())) };
    Admin::new(Arc::new(stats), sources, settings, start)
}
