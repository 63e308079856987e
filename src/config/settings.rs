//! The configuration as SHOW CONFIG lists it: key by key, in the words of the file.

use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

use super::{Config, SlowLog};

/// One key of the file.
#[derive(Debug)]
pub struct Setting {
    pub key: &'static str,
    value: fn(&Config) -> String,
    /// What it is where the file leaves it out, if that is not a value; else that of an empty file counts.
    auto: bool,
    /// A reload applies it.
    pub changeable: bool,
}

impl Setting {
    pub fn value(&self, config: &Config) -> String {
        (self.value)(config)
    }

    /// What the file that `empty` was read from would have to say for the same.
    pub fn default(&self, empty: &Config) -> String {
        if self.auto { "auto".to_owned() } else { (self.value)(empty) }
    }
}

const fn live(key: &'static str, value: fn(&Config) -> String) -> Setting {
    Setting { key, value, auto: false, changeable: true }
}

const fn fixed(key: &'static str, value: fn(&Config) -> String) -> Setting {
    Setting { key, value, auto: false, changeable: false }
}

/// All keys but those of tables that may be given several times. A database's own pool is in SHOW DATABASES.
pub const SETTINGS: &[Setting] = &[
    fixed("listen.address", |c| c.listen.address.clone()),
    fixed("listen.unix_socket_dir", |c| path(&c.listen.unix_socket_dir)),
    live("listen.max_clients", |c| c.listen.max_clients.to_string()),
    live("listen.login_timeout", |c| duration(c.listen.login_timeout)),
    live("listen.shutdown_grace", |c| duration(c.listen.shutdown_grace)),
    Setting { auto: true, ..fixed("listen.workers", |c| c.listen.workers.to_string()) },
    fixed("listen.peer_id", |c| c.listen.peer_id.to_string()),
    live("listen.tls.mode", |c| word(&c.listen.tls.mode)),
    live("listen.tls.certificate", |c| path(&c.listen.tls.certificate)),
    live("listen.tls.private_key", |c| path(&c.listen.tls.private_key)),
    live("listen.tls.client_ca", |c| path(&c.listen.tls.client_ca)),
    fixed("admin.http", |c| c.admin.http.map(|http| http.to_string()).unwrap_or_default()),
    live("admin.users", |c| c.admin.users.join(",")),
    live("admin.token", |c| secret(c.admin.token.is_some())),
    live("auth.query", |c| c.auth.query.as_ref().map(|query| query.sql.clone()).unwrap_or_default()),
    live("auth.query_user", |c| c.auth.query.as_ref().map(|query| query.user.clone()).unwrap_or_default()),
    live("auth.query_database", |c| c.auth.query.as_ref().and_then(|query| query.database.clone()).unwrap_or_default()),
    fixed("pool.mode", |c| word(&c.pool.mode)),
    live("pool.pin", |c| word(&c.pool.pin)),
    live("pool.reset", |c| word(&c.pool.reset)),
    live("pool.min", |c| c.pool.min.to_string()),
    live("pool.max", |c| c.pool.max.to_string()),
    live("pool.idle_timeout", |c| duration(c.pool.idle_timeout)),
    live("pool.connection_timeout", |c| duration(c.pool.connection_timeout)),
    live("pool.acquire_timeout", |c| duration(c.pool.acquire_timeout)),
    live("pool.create_timeout", |c| duration(c.pool.create_timeout)),
    live("pool.destroy_timeout", |c| duration(c.pool.destroy_timeout)),
    live("pool.reap_interval", |c| duration(c.pool.reap_interval)),
    live("pool.create_retry_interval", |c| duration(c.pool.create_retry_interval)),
    live("pool.max_lifetime", |c| duration(c.pool.max_lifetime)),
    live("pool.unnamed_statements", |c| word(&c.pool.unnamed_statements)),
    live("pool.prepared_statements", |c| c.pool.prepared_statements.to_string()),
    live("pool.statement_timeout", |c| duration(c.pool.statement_timeout)),
    live("pool.idle_transaction_timeout", |c| duration(c.pool.idle_transaction_timeout)),
    fixed("routing.load_balancing", |c| word(&c.routing.load_balancing)),
    fixed("routing.failover", |c| c.routing.failover.to_string()),
    fixed("routing.freshness", |c| word(&c.routing.freshness)),
    fixed("routing.max_lag", |c| duration(c.routing.max_lag)),
    fixed("routing.primary_reads", |c| word(&c.routing.primary_reads)),
    fixed("routing.probe_interval", |c| duration(c.routing.probe_interval)),
    fixed("cache.enabled", |c| c.cache.enabled.to_string()),
    live("cache.max_entries", |c| c.cache.max_entries.to_string()),
    live("cache.max_bytes", |c| size(c.cache.max_bytes)),
    live("cache.max_entry_bytes", |c| size(c.cache.max_entry_bytes)),
    fixed("cache.ttl", |c| duration(c.cache.ttl)),
    fixed("cache.invalidation", |c| word(&c.cache.invalidation)),
    fixed("cache.publication", |c| c.cache.publication.clone().unwrap_or_default()),
    live("cache.verify", |c| format!("{:?}", c.cache.verify)),
    fixed("cache.fleet", |c| c.cache.fleet.to_string()),
    fixed("cache.shared", |c| secret(c.cache.shared.is_some())),
    fixed("cache.shared_timeout", |c| c.cache.shared.as_ref().map_or("20ms".to_owned(), |s| duration(s.timeout))),
    fixed("cache.shared_secret", |c| secret(c.cache.shared.as_ref().is_some_and(|shared| shared.secret.is_some()))),
    live("statements.max", |c| c.statements.max.to_string()),
    live("statements.slow_threshold", |c| duration(c.statements.slow_threshold)),
    live("statements.slow_log", |c| match &c.statements.slow_log {
        SlowLog::Off => String::new(),
        SlowLog::Stderr => "stderr".to_owned(),
        SlowLog::File(path) => path.display().to_string(),
    }),
    live("statements.slow_log_parameters", |c| c.statements.slow_log_parameters.to_string()),
    live("statements.capture_plans", |c| c.statements.capture_plans.to_string()),
    Setting { auto: true, ..live("memory.limit", |c| size(c.memory.limit)) },
    live("memory.threshold", |c| format!("{:?}", c.memory.threshold)),
    live("alerts.response_time", |c| duration(c.alerts.response_time)),
    live("alerts.error_rate", |c| format!("{:?}", c.alerts.error_rate)),
    live("alerts.cpu_usage", |c| format!("{:?}", c.alerts.cpu_usage)),
    live("alerts.memory_usage", |c| format!("{:?}", c.alerts.memory_usage)),
    live("alerts.window", |c| duration(c.alerts.window)),
    live("alerts.webhook", |c| secret(c.alerts.webhook.is_some())),
];

/// Set, and not to be read.
fn secret(is_set: bool) -> String {
    if is_set { "********".to_owned() } else { String::new() }
}

fn path(path: &Option<PathBuf>) -> String {
    path.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
}

/// The file's word for a variant: `LeastBusy` is `least-busy`.
fn word(variant: &impl Debug) -> String {
    let mut word = String::new();
    for c in format!("{variant:?}").chars() {
        if c.is_ascii_uppercase() && !word.is_empty() {
            word.push('-');
        }
        word.push(c.to_ascii_lowercase());
    }
    word
}

fn duration(duration: Duration) -> String {
    let micros = duration.as_micros();
    let units = [("h", 3_600_000_000), ("s", 1_000_000), ("ms", 1_000)];
    let (unit, per_unit) =
        units.into_iter().find(|(_, per_unit)| micros.is_multiple_of(*per_unit)).unwrap_or(("us", 1));
    if micros == 0 { "0s".to_owned() } else { format!("{}{unit}", micros / per_unit) }
}

fn size(bytes: u64) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, per_unit)| bytes > 0 && bytes.is_multiple_of(*per_unit)) {
        Some((unit, per_unit)) => format!("{}{unit}", bytes / per_unit),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::resolve;

    /// The keys of the documented file and what they are there: its values are the defaults.
    fn documented(table: &toml::Table, path: &str, found: &mut Vec<(String, String)>) {
        for (key, value) in table {
            let key = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match value {
                toml::Value::Table(table) => documented(table, &key, found),
                toml::Value::Array(items) if !items.is_empty() => {}
                toml::Value::Array(_) => found.push((key, String::new())),
                toml::Value::String(text) => found.push((key, text.clone())),
                other => found.push((key, other.to_string())),
            }
        }
    }

    #[test]
    fn every_documented_key_is_there_with_its_default() {
        let file = include_str!("../../conf/pgweir.toml").parse::<toml::Table>().unwrap();
        let (mut documents, empty) = (Vec::new(), resolve::empty());
        documented(&file, "", &mut documents);
        assert!(documents.len() > 50);
        let same =
            |one: &str, other: &str| match (crate::config::parse_duration(one), crate::config::parse_duration(other)) {
                (Ok(one), Ok(other)) => one == other,
                _ => one == other,
            };
        for (key, value) in &documents {
            let setting = SETTINGS.iter().find(|setting| setting.key == key).unwrap_or_else(|| panic!("no {key}"));
            assert!(same(&setting.default(&empty), value), "{key}: {} for {value}", setting.default(&empty));
        }
        assert_eq!(SETTINGS.len(), documents.len());
    }

    #[test]
    fn words_and_units_are_those_of_the_file() {
        use crate::config::{LoadBalancing, TlsMode};
        assert_eq!(
            (word(&LoadBalancing::LeastBusy), word(&TlsMode::VerifyCa)),
            ("least-busy".into(), "verify-ca".into())
        );
        let texts = [0, 1, 1_500, 90_000_000, 7_200_000_000].map(|micros| duration(Duration::from_micros(micros)));
        assert_eq!(texts, ["0s", "1us", "1500us", "90s", "2h"]);
        assert_eq!([0, 1_000, 3 << 10, 5 << 30].map(size), ["0", "1000", "3KiB", "5GiB"]);
    }
}
