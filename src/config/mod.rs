//! The configuration: `file` reads raw TOML with spans, `resolve` makes one cascade to the final values below.
//!
//! Keys, defaults and meanings are those of `conf/pgweir.toml`. Everything here is final: durations are
//! [`Duration`], sizes are bytes, "auto" is resolved, `${ENV}` is expanded.

mod auth;
mod container;
mod databases;
mod defaults;
mod diagnostic;
mod effect;
mod env;
mod file;
mod listen;
mod load;
mod number;
mod pool;
mod resolve;
mod rules;
mod section;
pub mod settings;
mod suggest;
#[cfg(test)]
mod tests;
mod units;

pub use container::Container;
pub use diagnostic::{Diagnostic, Severity};
pub use effect::NOT_IN_EFFECT;
pub use load::admin_address;
pub use resolve::{empty, known_keys};
pub use units::parse_duration;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A complete, validated configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub listen: Listen,
    pub admin: Admin,
    pub routing: Routing,
    pub cache: Cache,
    pub statements: Statements,
    pub memory: Memory,
    pub alerts: Alerts,
    pub scaling: Vec<ScalingRule>,
    /// Where a database has none of its own.
    pub pool: Arc<Pool>,
    pub databases: Vec<Database>,
    pub users: Vec<User>,
    pub auth: Auth,
}

/// Who may log in beside `[[users]]`, and how.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Auth {
    pub query: Option<AuthQuery>,
    /// Empty: everyone, by what their secret allows.
    pub rules: Vec<AuthRule>,
}

/// How a user that `[[users]]` does not name is looked up on a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthQuery {
    /// With `$1` for the name.
    pub sql: String,
    /// Of `[[users]]`.
    pub user: String,
    /// `None`: the database that the client asks for.
    pub database: Option<String>,
}

/// One line of who may log in how, as in pg_hba.conf.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthRule {
    pub connection: RuleConnection,
    /// `all`, `sameuser`, or names.
    pub databases: Vec<String>,
    /// `all`, or names.
    pub users: Vec<String>,
    /// `None`: from anywhere.
    pub network: Option<Network>,
    pub method: AuthMethod,
    /// For `cert`: the certificate's common name and the user it stands for, where they differ.
    pub map: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleConnection {
    Any,
    Local,
    Host,
    HostSsl,
    HostNoSsl,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMethod {
    /// By what the user's secret allows: SCRAM, md5, or passed through.
    Default,
    Scram,
    Md5,
    /// In clear.
    Password,
    /// The client's certificate.
    Cert,
    Trust,
    Reject,
}

/// Addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    pub address: std::net::IpAddr,
    pub prefix: u8,
}

/// Where clients connect.
#[derive(Debug, Clone, PartialEq)]
pub struct Listen {
    pub address: String,
    /// `None`: no unix socket.
    pub unix_socket_dir: Option<PathBuf>,
    pub max_clients: usize,
    pub login_timeout: Duration,
    pub shutdown_grace: Duration,
    /// At least 1.
    pub workers: usize,
    /// Which of several pgweirs behind one address this is; 0: there are no others.
    pub peer_id: u8,
    /// The others, to which cancel requests for their clients are passed on.
    pub peers: Vec<Peer>,
    pub tls: ListenTls,
}

/// Another pgweir behind the same address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its `listen.peer_id`.
    pub id: u8,
    pub host: String,
    pub port: u16,
}

/// TLS towards clients.
#[derive(Debug, Clone, PartialEq)]
pub struct ListenTls {
    pub mode: TlsMode,
    pub certificate: Option<PathBuf>,
    pub private_key: Option<PathBuf>,
    pub client_ca: Option<PathBuf>,
}

/// libpq's sslmode, towards clients and towards servers (where `Allow` is not offered).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// The console and the HTTP endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Admin {
    /// `None`: no HTTP.
    pub http: Option<SocketAddr>,
    pub users: Vec<String>,
    /// `None`: POST endpoints refuse.
    pub token: Option<Secret>,
}

/// The knobs of one pool: one for each database, user and node.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    pub mode: PoolMode,
    pub pin: PinPolicy,
    pub reset: Reset,
    pub min: usize,
    pub max: usize,
    pub idle_timeout: Duration,
    pub connection_timeout: Duration,
    pub acquire_timeout: Duration,
    pub create_timeout: Duration,
    pub destroy_timeout: Duration,
    pub reap_interval: Duration,
    pub create_retry_interval: Duration,
    pub max_lifetime: Duration,
    pub unnamed_statements: UnnamedStatements,
    pub prepared_statements: usize,
    /// Zero: none.
    pub statement_timeout: Duration,
    /// Zero: none.
    pub idle_transaction_timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    Transaction,
    Session,
    Statement,
}

/// What becomes of a statement that would bind its client to one server connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinPolicy {
    Allow,
    Refuse,
}

/// What becomes of a server connection on which a session may have left something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    Discard,
    Close,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnnamedStatements {
    Named,
    Forward,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    pub load_balancing: LoadBalancing,
    pub failover: bool,
    pub freshness: Freshness,
    pub max_lag: Duration,
    pub primary_reads: PrimaryReads,
    pub probe_interval: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadBalancing {
    Weighted,
    LeastBusy,
    Latency,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Freshness {
    Eventual,
    Session,
    Table,
}

/// When plain reads may use the primary: only with no replica left, in rotation with them, or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrimaryReads {
    Fallback,
    Always,
    Never,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Cache {
    pub enabled: bool,
    pub max_entries: usize,
    pub max_bytes: u64,
    pub max_entry_bytes: u64,
    pub ttl: Duration,
    pub invalidation: Invalidation,
    pub publication: Option<String>,
    /// The share of hits that are read again on the primary: 0.0 ..= 1.0
    pub verify: f64,
    pub fleet: bool,
    pub shared: Option<Shared>,
    pub rules: Vec<CacheRule>,
}

impl Cache {
    /// That by which results are invalidated.
    pub fn followed_publication(&self) -> Option<&str> {
        let follows = self.enabled && matches!(self.invalidation, Invalidation::Auto | Invalidation::Wal);
        self.publication.as_deref().filter(|_| follows)
    }
}

/// One `[[cache.rules]]`: what becomes of results that follow from a table, or of a statement's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheRule {
    /// `None`: each.
    pub database: Option<String>,
    pub of: RuledBy,
    pub terms: Terms,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuledBy {
    /// As the catalog has the names.
    Table {
        schema: String,
        name: String,
    },
    Fingerprint(u64),
}

/// What a rule says of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Terms {
    /// It is not kept.
    pub never: bool,
    /// It is kept no longer.
    pub ttl: Option<Duration>,
    /// It may be given for so long behind a change.
    pub stale: Option<Duration>,
}

/// The cache's second level, which several pgweirs share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// With the password.
    pub url: Secret,
    /// How long a read waits for it.
    pub timeout: Duration,
    /// What is stored is encrypted with; `None`: it is not.
    pub secret: Option<Secret>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalidation {
    Auto,
    Wal,
    Writes,
    Ttl,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Statements {
    pub max: usize,
    pub slow_threshold: Duration,
    pub slow_log: SlowLog,
    pub slow_log_parameters: bool,
    pub capture_plans: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlowLog {
    Off,
    Stderr,
    File(PathBuf),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    /// Bytes; "auto" resolved to the container's limit, or the machine's memory.
    pub limit: u64,
    /// 0.0 ..= 1.0
    pub threshold: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Alerts {
    pub response_time: Duration,
    /// Percent.
    pub error_rate: f64,
    pub cpu_usage: f64,
    pub memory_usage: f64,
    pub window: Duration,
    pub webhook: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ScalingRule {
    pub name: String,
    pub condition: String,
    pub action: String,
    pub cooldown: Duration,
}

/// One `[[databases]]`: what clients ask for, and the servers behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct Database {
    /// `"*"`: any other name.
    pub name: String,
    /// Its name on the servers; `None`: what the client asked for.
    pub dbname: Option<String>,
    pub tls: TlsMode,
    pub ca: Option<PathBuf>,
    /// `[pool]` with this database's own `pool` table laid over it.
    pub pool: Arc<Pool>,
    pub nodes: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// A name or address; a path (leading `/`) is a unix socket directory.
    pub host: String,
    pub port: u16,
    pub role: NodeRole,
    /// At least 1 for replicas that serve; 0 takes no reads.
    pub weight: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeRole {
    Primary,
    Replica,
    Auto,
}

#[derive(Debug, Clone, PartialEq)]
pub struct User {
    pub name: String,
    /// `None`: the client's own password is passed through.
    pub password: Option<Secret>,
    /// `None`: the database's.
    pub pool_mode: Option<PoolMode>,
    /// `None`: the database's.
    pub pool_pin: Option<PinPolicy>,
    /// May have replication connections passed through.
    pub replication: bool,
}

impl User {
    /// A user without a secret of its own.
    pub fn named(name: &str) -> User {
        User { name: name.to_owned(), password: None, pool_mode: None, pool_pin: None, replication: false }
    }
}

/// A password as configured (plain, `md5…` or a SCRAM-SHA-256 verifier), or a token. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl zeroize::ZeroizeOnDrop for Secret {}

impl Drop for Secret {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}
