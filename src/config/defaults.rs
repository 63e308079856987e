//! The value of each key that a file leaves out.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::{
    Admin, Alerts, Cache, Freshness, Invalidation, ListenTls, LoadBalancing, PinPolicy, Pool, PoolMode, PrimaryReads,
    Reset, Routing, ScalingRule, SlowLog, Statements, TlsMode, UnnamedStatements,
};

/// Where applications connect.
pub(super) const LISTEN_ADDRESS: &str = "127.0.0.1:6432";
pub(super) const MAX_CLIENTS: usize = 10_000;
pub(super) const LOGIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Below the 30 s that Kubernetes gives a pod to end.
pub(super) const SHUTDOWN_GRACE: Duration = Duration::from_secs(25);
pub(super) const MEMORY_THRESHOLD: f64 = 0.8;
/// Postgres's own.
pub(super) const NODE_PORT: u16 = 5432;
pub(super) const NODE_WEIGHT: u32 = 1;

impl Default for ListenTls {
    fn default() -> Self {
        ListenTls { mode: TlsMode::Disable, certificate: None, private_key: None, client_ca: None }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Admin { http: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9432))), users: Vec::new(), token: None }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Pool {
            mode: PoolMode::Transaction,
            pin: PinPolicy::Allow,
            reset: Reset::Discard,
            min: 5,
            max: 50,
            idle_timeout: Duration::from_secs(30),
            connection_timeout: Duration::from_secs(2),
            acquire_timeout: Duration::from_secs(60),
            create_timeout: Duration::from_secs(30),
            destroy_timeout: Duration::from_secs(5),
            reap_interval: Duration::from_secs(1),
            create_retry_interval: Duration::from_millis(200),
            max_lifetime: Duration::from_secs(3600),
            unnamed_statements: UnnamedStatements::Named,
            prepared_statements: 500,
            statement_timeout: Duration::ZERO,
            idle_transaction_timeout: Duration::ZERO,
        }
    }
}

impl Default for Routing {
    fn default() -> Self {
        Routing {
            load_balancing: LoadBalancing::Weighted,
            failover: true,
            freshness: Freshness::Session,
            max_lag: Duration::from_secs(10),
            primary_reads: PrimaryReads::Fallback,
            probe_interval: Duration::from_secs(1),
        }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Cache {
            enabled: true,
            max_entries: 1000,
            max_bytes: 64 << 20,
            max_entry_bytes: 1 << 20,
            ttl: Duration::from_secs(300),
            invalidation: Invalidation::Auto,
            publication: None,
            verify: 0.0,
            fleet: false,
            shared: None,
            rules: Vec::new(),
        }
    }
}

impl Default for Statements {
    fn default() -> Self {
        Statements {
            max: 1000,
            slow_threshold: Duration::from_millis(100),
            slow_log: SlowLog::Stderr,
            slow_log_parameters: false,
            capture_plans: false,
        }
    }
}

impl Default for Alerts {
    fn default() -> Self {
        Alerts {
            response_time: Duration::from_millis(500),
            error_rate: 5.0,
            cpu_usage: 80.0,
            memory_usage: 85.0,
            window: Duration::from_secs(60),
            webhook: None,
        }
    }
}

impl Default for ScalingRule {
    /// The one rule of a file that names none.
    fn default() -> Self {
        ScalingRule {
            name: "High CPU Usage".to_owned(),
            condition: "cpu_usage > 80".to_owned(),
            action: "scale_up".to_owned(),
            cooldown: Duration::from_secs(300),
        }
    }
}
