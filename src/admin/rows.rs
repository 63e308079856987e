//! Plain rows that the rest of the program hands to the console, the endpoints and the metrics.
//!
//! Fields are PgBouncer's columns; what pgweir adds stands at the end.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::config::{NodeRole, PoolMode};

/// One pool: a database, a user, a node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PoolRow {
    pub database: String,
    pub user: String,
    /// Connected clients that wait for nothing, also those without a server.
    pub cl_active: u32,
    pub cl_waiting: u32,
    pub cl_active_cancel_req: u32,
    pub cl_waiting_cancel_req: u32,
    /// Server connections lent to a client.
    pub sv_active: u32,
    pub sv_active_cancel: u32,
    pub sv_being_canceled: u32,
    pub sv_idle: u32,
    /// Idle, and to be checked before their next use.
    pub sv_used: u32,
    /// Being checked or reset.
    pub sv_tested: u32,
    /// Being connected.
    pub sv_login: u32,
    /// Age of the oldest waiter.
    #[serde(rename = "maxwait_ms", serialize_with = "milliseconds")]
    pub max_wait: Duration,
    #[serde(serialize_with = "pool_mode")]
    pub pool_mode: PoolMode,
    /// `None`: clients that are not bound to a node, such as idle ones.
    pub node: Option<String>,
    /// `pool.max` of this pool; 0 where there is no node.
    pub max: u32,
}

impl PoolRow {
    /// Server connections in any state.
    pub fn servers(&self) -> u32 {
        self.sv_active
            + self.sv_active_cancel
            + self.sv_being_canceled
            + self.sv_idle
            + self.sv_used
            + self.sv_tested
            + self.sv_login
    }

    /// Lays another pool of the same database and user over this one.
    pub fn merge(&mut self, other: &PoolRow) {
        self.cl_active += other.cl_active;
        self.cl_waiting += other.cl_waiting;
        self.cl_active_cancel_req += other.cl_active_cancel_req;
        self.cl_waiting_cancel_req += other.cl_waiting_cancel_req;
        self.sv_active += other.sv_active;
        self.sv_active_cancel += other.sv_active_cancel;
        self.sv_being_canceled += other.sv_being_canceled;
        self.sv_idle += other.sv_idle;
        self.sv_used += other.sv_used;
        self.sv_tested += other.sv_tested;
        self.sv_login += other.sv_login;
        self.max_wait = self.max_wait.max(other.max_wait);
        self.max += other.max;
        self.node = None;
    }
}

/// Which end of pgweir a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// One client or server connection.
#[derive(Debug, Clone, PartialEq)]
pub struct SocketRow {
    pub side: Side,
    /// `None`: not logged in yet.
    pub user: Option<String>,
    /// `None`: not logged in yet.
    pub database: Option<String>,
    /// PgBouncer's: none, logical, physical.
    pub replication: &'static str,
    /// PgBouncer's: active, waiting, active_cancel_req, waiting_cancel_req of clients; active, idle, used, tested,
    /// new, active_cancel, being_canceled of servers.
    pub state: &'static str,
    pub addr: String,
    pub port: u16,
    pub local_addr: String,
    pub local_port: u16,
    pub connect_time: Timestamp,
    /// When its last request began.
    pub request_time: Timestamp,
    /// How long it has been waiting for a server; zero: it is not.
    pub wait: Duration,
    pub close_needed: bool,
    /// Unique for the life of the process; what KILL_CLIENT takes.
    pub id: u64,
    /// The id of the connection on the other side that it is paired with.
    pub link: Option<u64>,
    /// Of the server process, or of the client behind a unix socket; 0: not known.
    pub remote_pid: i32,
    /// Protocol and cipher; empty: no TLS.
    pub tls: String,
    pub application_name: String,
    pub prepared_statements: u32,
    /// Clients: why they keep their server connection (temporary table, advisory lock, …).
    pub pinned_by: Option<String>,
    /// Servers: the node.
    pub node: Option<String>,
}

/// One database as clients see it.
#[derive(Debug, Clone, PartialEq)]
pub struct DatabaseRow {
    pub name: String,
    /// Of its primary.
    pub host: Option<String>,
    pub port: u16,
    /// Its name on the servers.
    pub database: String,
    /// `None`: the client's own user.
    pub force_user: Option<String>,
    pub pool_size: u32,
    pub min_pool_size: u32,
    pub server_lifetime: Duration,
    pub pool_mode: PoolMode,
    /// 0: no limit of its own.
    pub max_connections: u32,
    pub current_connections: u32,
    /// 0: no limit of its own.
    pub max_client_connections: u32,
    pub current_client_connections: u32,
    pub paused: bool,
    pub disabled: bool,
}

/// Whether a node is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    Up,
    /// Answers, but is further behind than `routing.max_lag`.
    Lagging,
    /// Taken out by an operator; probed still.
    Ejected,
    /// Does not answer.
    Down,
}

impl NodeStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            NodeStatus::Up => "up",
            NodeStatus::Lagging => "lagging",
            NodeStatus::Ejected => "ejected",
            NodeStatus::Down => "down",
        }
    }
}

/// One node of one database.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeRow {
    /// The index that [`crate::stats::Sample::node`] names it by; never given to another node.
    pub index: u16,
    pub database: String,
    /// host:port
    pub name: String,
    /// As known now: `Auto` only until the server has been asked.
    #[serde(serialize_with = "node_role")]
    pub role: NodeRole,
    pub status: NodeStatus,
    pub weight: u32,
    /// How far replay is behind; `None`: not known, or a primary.
    #[serde(rename = "lag_ms", serialize_with = "optional_milliseconds")]
    pub lag: Option<Duration>,
    pub lag_bytes: Option<u64>,
    /// Written (primary) or replayed (replica), as Postgres prints LSNs.
    pub lsn: Option<String>,
    /// Server connections in any state.
    pub connections: u32,
    /// Server connections lent to a client.
    pub active: u32,
    /// Statements run since the start.
    pub queries: u64,
    /// Of these, plain reads.
    pub reads: u64,
    /// Of these, all others.
    pub writes: u64,
    /// Connection and probe failures since the start.
    pub errors: u64,
    /// In which its last probe was answered.
    #[serde(rename = "probe_ms", serialize_with = "optional_milliseconds")]
    pub probe: Option<Duration>,
    /// Why it is not up.
    pub reason: Option<String>,
    /// Its host, where that is a name, and the addresses that it leads to.
    #[serde(skip)]
    pub host: Option<(String, Vec<IpAddr>)>,
}

/// One user.
#[derive(Debug, Clone, PartialEq)]
pub struct UserRow {
    pub name: String,
    /// `None`: the database's.
    pub pool_size: Option<u32>,
    /// `None`: the database's.
    pub pool_mode: Option<PoolMode>,
    /// 0: no limit of its own.
    pub max_user_connections: u32,
    pub current_connections: u32,
    /// 0: no limit of its own.
    pub max_user_client_connections: u32,
    pub current_client_connections: u32,
}

/// What the reading of a database's definitions has cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefinitionsRow {
    pub database: String,
    pub refreshes: u64,
    pub failures: u64,
    /// Of the last reading.
    pub duration: Duration,
    pub entries: usize,
    pub bytes: usize,
    /// Since they were last known to hold; `None`: there are none.
    pub age: Option<Duration>,
}

/// The result cache of one database, with the caches beside it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CacheRow {
    pub database: String,
    /// What invalidates: `wal`, `writes`, `ttl`; `closed`: nothing is kept.
    pub mode: &'static str,
    /// Why it is not what the configuration asks for.
    pub reason: Option<String>,
    pub entries: u64,
    /// With all overhead.
    pub bytes: u64,
    /// Of all databases together.
    pub max_entries: u64,
    pub max_bytes: u64,
    pub hits: u64,
    pub misses: u64,
    /// Percent.
    pub hit_rate: f64,
    /// Of the hits: answered by the run of another at the same time.
    pub shared: u64,
    /// Of the hits: they may lack a change, as a rule allows.
    pub stale: u64,
    pub stored: u64,
    pub evicted: u64,
    pub expired: u64,
    /// Entries by cause.
    pub invalidated: BTreeMap<&'static str, u64>,
    /// Reads by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Hits that were compared with what the primary says, and those of them that were other than that.
    pub verified: u64,
    pub differences: u64,
    /// The catalog's snapshot.
    pub definitions: u64,
    pub definitions_bytes: u64,
    /// Texts whose plan is kept.
    pub plans: u64,
    /// With `cache.fleet`.
    pub fleet: Option<FleetRow>,
    /// With `cache.shared`.
    pub shared_store: Option<SharedRow>,
    /// Tables that have a rule and are not there.
    pub rules_missing: Vec<String>,
}

/// What the cache's second level did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SharedRow {
    /// `up`: reads ask it; `down`.
    pub state: &'static str,
    /// Why it is down, or takes nothing.
    pub reason: Option<String>,
    pub hits: u64,
    pub misses: u64,
    /// Asked in vain: no answer in time, or an error.
    pub failed: u64,
    /// Found and of no use, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    pub stored: u64,
    /// Not stored, for want of room.
    pub dropped: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
}

/// A pgweir's part in its fleet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FleetRow {
    /// `leader`, `follower`, `alone`; `None`: none just now, and nothing is kept.
    pub part: Option<&'static str>,
    /// Where the leader of a follower is.
    pub leader: Option<String>,
    /// Why it is alone.
    pub reason: Option<&'static str>,
    /// How often it took the lead over from one it had followed.
    pub takeovers: u64,
}

/// How many of each there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lists {
    pub databases: u64,
    pub users: u64,
    pub pools: u64,
    /// Clients that `listen.max_clients` still allows.
    pub free_clients: u64,
    /// Connected clients, logged in or not.
    pub used_clients: u64,
    /// Of these, the ones that are logging in.
    pub login_clients: u64,
    /// Of the used ones those idle for a while.
    pub resting_clients: u64,
    /// Server connections that the pools still allow.
    pub free_servers: u64,
    pub used_servers: u64,
}

/// One key of the configuration in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigRow {
    pub key: String,
    pub value: String,
    pub default: String,
    /// A reload applies it.
    pub changeable: bool,
}

/// PgBouncer's SHOW STATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    #[default]
    Active,
    Paused,
    Suspended,
}

/// The configuration's word.
pub fn mode_name(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Transaction => "transaction",
        PoolMode::Session => "session",
        PoolMode::Statement => "statement",
    }
}

/// The configuration's word.
pub fn role_name(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Primary => "primary",
        NodeRole::Replica => "replica",
        NodeRole::Auto => "auto",
    }
}

fn milliseconds<S: Serializer>(value: &Duration, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_f64(crate::stats::millis(crate::stats::micros(*value) as f64))
}

fn optional_milliseconds<S: Serializer>(value: &Option<Duration>, out: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => milliseconds(value, out),
        None => out.serialize_none(),
    }
}

fn pool_mode<S: Serializer>(mode: &PoolMode, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(mode_name(*mode))
}

fn node_role<S: Serializer>(role: &NodeRole, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(role_name(*role))
}
