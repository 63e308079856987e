//! The JSON of the endpoints.

use std::collections::BTreeMap;
use std::time::Instant;

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::Admin;
use super::rows::{NodeRow, NodeStatus, PoolRow};
use crate::cache::admit::REFUSALS;
use crate::stats::latency::{BOUNDS, Latency};
use crate::stats::millis;
use crate::stats::slow::{SlowEntry, rfc3339};
use crate::stats::statements::{Order, Snapshot};

/// `/stats`. Times in milliseconds, memory in bytes, rates in percent.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct StatsDocument {
    #[serde(serialize_with = "timestamp")]
    pub timestamp: Timestamp,
    /// Seconds.
    pub uptime: f64,
    pub version: &'static str,
    pub cpu: Cpu,
    pub memory: Memory,
    pub database: DatabaseFigures,
    pub application: ApplicationFigures,
}

#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct Cpu {
    /// Of the container's quota.
    pub usage: f64,
    pub load: [f64; 3],
}

#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct Memory {
    pub used: u64,
    pub total: u64,
    pub free: u64,
    pub resident: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseFigures {
    /// Server connections in any state.
    pub connections: u64,
    /// Server connections lent to a client.
    pub active_queries: u64,
    /// Slow statements within the window.
    pub slow_queries: u64,
    /// Within the window.
    pub cache_hit_rate: f64,
    /// Clients that wait for a server connection.
    pub waiting: u64,
    pub nodes: u64,
    /// Nodes that answer and are not ejected.
    pub nodes_up: u64,
}

/// All within the window, but `active_users`.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct ApplicationFigures {
    pub response_time: f64,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    /// Per second.
    pub throughput: f64,
    pub error_rate: f64,
    /// Connected clients.
    pub active_users: u64,
    pub availability: f64,
}

impl StatsDocument {
    /// The figures of this moment.
    pub fn collect(admin: &Admin, now: Instant) -> StatsDocument {
        let usage = admin.stats.process.usage(now);
        let figures = admin.stats.window.figures(now);
        let pools = (admin.sources.pools)();
        let nodes = (admin.sources.nodes)();
        let sum = |of: fn(&PoolRow) -> u32| pools.iter().map(|pool| u64::from(of(pool))).sum();
        StatsDocument {
            timestamp: Timestamp::now(),
            uptime: rounded(usage.uptime.as_secs_f64()),
            version: env!("CARGO_PKG_VERSION"),
            cpu: Cpu { usage: rounded(usage.cpu), load: usage.load },
            memory: Memory {
                used: usage.memory_used,
                total: usage.memory_total,
                free: usage.memory_free(),
                resident: usage.resident,
            },
            database: DatabaseFigures {
                connections: sum(PoolRow::servers),
                active_queries: sum(|pool| pool.sv_active),
                slow_queries: figures.slow,
                cache_hit_rate: rounded(figures.cache_hit_rate),
                waiting: sum(|pool| pool.cl_waiting),
                nodes: nodes.len() as u64,
                nodes_up: nodes.iter().filter(|node| is_up(node)).count() as u64,
            },
            application: ApplicationFigures {
                response_time: rounded(figures.mean),
                p50: rounded(figures.p50),
                p95: rounded(figures.p95),
                p99: rounded(figures.p99),
                throughput: rounded(figures.throughput),
                error_rate: rounded(figures.error_rate),
                active_users: (admin.sources.lists)().used_clients,
                availability: rounded(figures.availability),
            },
        }
    }
}

/// A lagging node is up: it answers, and serves who does not mind.
pub(super) fn is_up(node: &NodeRow) -> bool {
    matches!(node.status, NodeStatus::Up | NodeStatus::Lagging)
}

/// One of `/statements`.
#[derive(Debug, Serialize)]
pub struct StatementDocument {
    /// 16 hex digits, or "other".
    pub fingerprint: String,
    pub database: String,
    /// `None`: not for who asks.
    pub text: Option<String>,
    pub calls: u64,
    pub errors: u64,
    pub rows: u64,
    pub bytes: u64,
    pub cache_hits: u64,
    /// Calls that ran, and whose result could have been kept.
    pub cache_misses: u64,
    /// Calls past the cache, and results that were not kept, by reason.
    pub cache_refused: BTreeMap<&'static str, u64>,
    pub writes: u64,
    pub slow: u64,
    /// Milliseconds of execution in all.
    pub total_time: f64,
    pub exec: LatencyDocument,
    pub wait: LatencyDocument,
    /// Calls by the node's name.
    pub nodes: BTreeMap<String, u64>,
}

/// A distribution in milliseconds.
#[derive(Debug, Serialize)]
pub struct LatencyDocument {
    pub mean: f64,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
    /// Cumulative; the last bucket, of all times, has no bound.
    pub histogram: Vec<Bucket>,
}

#[derive(Debug, Serialize)]
pub struct Bucket {
    /// Upper bound in milliseconds, itself included.
    pub le: Option<f64>,
    pub count: u64,
}

impl LatencyDocument {
    fn new(latency: &Latency) -> LatencyDocument {
        let summary = latency.summary();
        let ms = |micros: u64| millis(micros as f64);
        let bounded = BOUNDS.iter().zip(latency.cumulative());
        let buckets = bounded.map(|(bound, count)| Bucket { le: Some(ms(*bound)), count });
        LatencyDocument {
            mean: millis(summary.mean),
            p50: ms(summary.p50),
            p95: ms(summary.p95),
            p99: ms(summary.p99),
            max: ms(summary.max),
            histogram: buckets.chain([Bucket { le: None, count: summary.count }]).collect(),
        }
    }
}

/// The first `limit` of `/statements` in `order`.
pub fn statements(admin: &Admin, order: Order, limit: usize) -> Vec<StatementDocument> {
    let names = node_names(admin);
    let top = admin.stats.statements.top(order, limit);
    top.into_iter().map(|snapshot| statement(snapshot, &names)).collect()
}

fn statement(snapshot: Snapshot, names: &BTreeMap<u16, String>) -> StatementDocument {
    StatementDocument {
        fingerprint: fingerprint(&snapshot),
        database: snapshot.database.to_string(),
        calls: snapshot.calls,
        errors: snapshot.errors,
        rows: snapshot.rows,
        bytes: snapshot.bytes,
        cache_hits: snapshot.cache_hits,
        cache_misses: snapshot.cache_misses,
        cache_refused: refused_by_name(&snapshot),
        writes: snapshot.writes,
        slow: snapshot.slow,
        total_time: millis(snapshot.execute.sum() as f64),
        exec: LatencyDocument::new(&snapshot.execute),
        wait: LatencyDocument::new(&snapshot.wait),
        nodes: calls_by_name(&snapshot, names),
        text: Some(snapshot.text),
    }
}

/// One of `/slow` without anything of the statement's text.
pub(super) fn slow_without_sql(entry: &SlowEntry) -> Value {
    let mut document = json!(entry.without_literals());
    (document["statement"], document["plan"], document["advice"]) = (Value::Null, Value::Null, json!([]));
    document
}

/// How often it went past the cache, or its result was not kept, by reason.
pub(super) fn refused_by_name(snapshot: &Snapshot) -> BTreeMap<&'static str, u64> {
    let name = |reason: u8| REFUSALS.get(usize::from(reason)).map(|(_, name)| *name);
    snapshot.cache_refused.iter().filter_map(|(reason, times)| Some((name(*reason)?, *times))).collect()
}

/// As it stands in every place that names a statement.
pub(super) fn fingerprint(snapshot: &Snapshot) -> String {
    snapshot.fingerprint.map_or_else(|| "other".to_owned(), |fingerprint| fingerprint.to_string())
}

/// The names of the nodes that there are now.
pub(super) fn node_names(admin: &Admin) -> BTreeMap<u16, String> {
    (admin.sources.nodes)().into_iter().map(|node| (node.index, node.name)).collect()
}

/// Calls by node; a node that a reload has removed shows as its index.
pub(super) fn calls_by_name(snapshot: &Snapshot, names: &BTreeMap<u16, String>) -> BTreeMap<String, u64> {
    let mut by_name = BTreeMap::new();
    for (index, calls) in &snapshot.nodes {
        let name = names.get(index).cloned().unwrap_or_else(|| format!("#{index}"));
        *by_name.entry(name).or_default() += calls;
    }
    by_name
}

/// One of `/nodes`.
#[derive(Debug, Serialize)]
pub struct NodeDocument {
    #[serde(flatten)]
    pub node: NodeRow,
    /// Percent of its database's statements since the start.
    pub share: f64,
}

/// `/nodes`.
pub fn nodes(admin: &Admin) -> Vec<NodeDocument> {
    let nodes = (admin.sources.nodes)();
    let mut queries: BTreeMap<String, u64> = BTreeMap::new();
    for node in &nodes {
        *queries.entry(node.database.clone()).or_default() += node.queries;
    }
    let share = |node: &NodeRow| match queries.get(&node.database) {
        Some(all) if *all > 0 => rounded(100.0 * node.queries as f64 / *all as f64),
        _ => 0.0,
    };
    nodes.into_iter().map(|node| NodeDocument { share: share(&node), node }).collect()
}

/// One of `/pools`: a database and a user, as SHOW POOLS, and the pools at each node.
#[derive(Debug, Serialize)]
pub struct PoolDocument {
    #[serde(flatten)]
    pub pool: PoolRow,
    pub nodes: Vec<PoolRow>,
}

/// Pools by database and user: PgBouncer's tools take these two for unique.
pub fn pools(admin: &Admin) -> Vec<PoolDocument> {
    let mut merged: BTreeMap<(String, String), PoolDocument> = BTreeMap::new();
    for row in (admin.sources.pools)() {
        let key = (row.database.clone(), row.user.clone());
        match merged.get_mut(&key) {
            Some(document) => {
                document.pool.merge(&row);
                document.nodes.push(row);
            }
            None => {
                let pool = PoolRow { node: None, ..row.clone() };
                merged.insert(key, PoolDocument { pool, nodes: vec![row] });
            }
        }
    }
    merged.into_values().collect()
}

fn timestamp<S: Serializer>(ts: &Timestamp, out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(&rfc3339(*ts))
}

/// To three digits behind the point.
fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}
