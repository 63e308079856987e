//! The configuration as the console has it: SHOW CONFIG key by key, in the words of the file, and SET.

use std::fmt::{Debug, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::file::Walk;
use super::{Config, Container, Pool, Severity, SlowLog, resolve};

/// One key of the file.
#[derive(Debug)]
pub struct Setting {
    pub key: &'static str,
    value: fn(&Config) -> String,
    /// What it is where the file leaves it out, if that is not a value; else that of an empty file counts.
    auto: bool,
    /// A reload applies it.
    pub changeable: bool,
    /// Takes it over from another configuration; `None`: SET does not.
    take: Option<fn(&mut Config, &Config)>,
}

/// Why SET does not.
#[derive(Debug, PartialEq, Eq)]
pub enum SetError {
    /// There is no such key.
    Unknown,
    /// It takes a reload of the file, or a restart.
    Fixed,
    /// What is wrong with the value.
    Value(String),
}

impl Setting {
    pub fn value(&self, config: &Config) -> String {
        (self.value)(config)
    }

    /// What the file that `empty` was read from would have to say for the same.
    pub fn default(&self, empty: &Config) -> String {
        if self.auto { "auto".to_owned() } else { (self.value)(empty) }
    }

    /// The table of the file that it stands in.
    fn table(&self) -> &'static str {
        self.key.rsplit_once('.').map_or("", |(table, _)| table)
    }
}

/// The configuration with one value changed, until the file is read again. One of `[pool]` is for the databases that have no
/// table of their own.
///
/// # Errors
/// [`SetError`]
pub fn set(config: &Config, key: &str, value: &str) -> Result<Config, SetError> {
    let key = if key == "max_client_conn" { "listen.max_clients" } else { key };
    let setting = SETTINGS.iter().find(|setting| setting.key == key).ok_or(SetError::Unknown)?;
    let take = setting.take.ok_or(SetError::Fixed)?;
    // Read as the file is, beside its neighbours, which it must agree with.
    let mut text = format!("[{}]\n", setting.table());
    for one in SETTINGS.iter().filter(|one| one.table() == setting.table() && one.take.is_some()) {
        let name = one.key.rsplit('.').next().unwrap_or_default();
        let text_of = if one.key == key { value.to_owned() } else { one.value(config) };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name} = {}", quoted(&text_of));
    }
    let (table, walk) = Walk::parse(&text, "SET", &|_| None);
    let read = resolve::config(&walk.root(table.get_ref()), &Container::SMALLEST);
    let findings = walk.finish().diagnostics;
    let wrong = |d: &&super::Diagnostic| d.severity == Severity::Error && d.key.starts_with(setting.table());
    if let Some(wrong) = findings.iter().find(wrong) {
        let hint = wrong.hint.iter().map(|hint| format!("; {hint}")).collect::<String>();
        return Err(SetError::Value(wrong.message.clone() + &hint));
    }
    let mut changed = config.clone();
    take(&mut changed, &read);
    Ok(changed)
}

/// As TOML has a value: what looks like a number or a boolean is one.
fn quoted(value: &str) -> String {
    match value.parse::<f64>().is_ok_and(f64::is_finite) || value == "true" || value == "false" {
        true => value.to_owned(),
        false => toml::Value::from(value).to_string(),
    }
}

/// For the databases that share it.
fn take_pool(to: &mut Config, take: impl Fn(&mut Pool)) {
    let before = to.pool.clone();
    let mut pool = Pool::clone(&before);
    take(&mut pool);
    to.pool = Arc::new(pool);
    for database in to.databases.iter_mut().filter(|database| Arc::ptr_eq(&database.pool, &before)) {
        database.pool = to.pool.clone();
    }
}

/// A reload applies it, and SET.
macro_rules! set {
    ($key:literal, $table:ident.$field:ident, $text:expr) => {
        Setting {
            key: $key,
            value: |c| ($text)(&c.$table.$field),
            auto: false,
            changeable: true,
            take: Some(|to, from| to.$table.$field = from.$table.$field.clone()),
        }
    };
}

macro_rules! set_pool {
    ($key:literal, $field:ident, $text:expr) => {
        Setting {
            key: $key,
            value: |c| ($text)(&c.pool.$field),
            auto: false,
            changeable: true,
            take: Some(|to, from| take_pool(to, |pool| pool.$field = from.pool.$field)),
        }
    };
}

/// A reload applies it.
const fn live(key: &'static str, value: fn(&Config) -> String) -> Setting {
    Setting { key, value, auto: false, changeable: true, take: None }
}

const fn fixed(key: &'static str, value: fn(&Config) -> String) -> Setting {
    Setting { key, value, auto: false, changeable: false, take: None }
}

/// All keys but those of tables that may be given several times. A database's own pool is in SHOW DATABASES.
pub const SETTINGS: &[Setting] = &[
    fixed("listen.address", |c| c.listen.address.clone()),
    fixed("listen.unix_socket_dir", |c| path(&c.listen.unix_socket_dir)),
    set!("listen.max_clients", listen.max_clients, plain),
    set!("listen.login_timeout", listen.login_timeout, duration),
    set!("listen.shutdown_grace", listen.shutdown_grace, duration),
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
    set_pool!("pool.pin", pin, word),
    set_pool!("pool.reset", reset, word),
    set_pool!("pool.min", min, plain),
    set_pool!("pool.max", max, plain),
    set_pool!("pool.idle_timeout", idle_timeout, duration),
    set_pool!("pool.connection_timeout", connection_timeout, duration),
    set_pool!("pool.acquire_timeout", acquire_timeout, duration),
    set_pool!("pool.create_timeout", create_timeout, duration),
    set_pool!("pool.destroy_timeout", destroy_timeout, duration),
    set_pool!("pool.reap_interval", reap_interval, duration),
    set_pool!("pool.create_retry_interval", create_retry_interval, duration),
    set_pool!("pool.max_lifetime", max_lifetime, duration),
    set_pool!("pool.unnamed_statements", unnamed_statements, word),
    set_pool!("pool.prepared_statements", prepared_statements, plain),
    set_pool!("pool.statement_timeout", statement_timeout, duration),
    set_pool!("pool.idle_transaction_timeout", idle_transaction_timeout, duration),
    fixed("routing.load_balancing", |c| word(&c.routing.load_balancing)),
    fixed("routing.failover", |c| c.routing.failover.to_string()),
    fixed("routing.freshness", |c| word(&c.routing.freshness)),
    fixed("routing.max_lag", |c| duration(&c.routing.max_lag)),
    fixed("routing.primary_reads", |c| word(&c.routing.primary_reads)),
    fixed("routing.probe_interval", |c| duration(&c.routing.probe_interval)),
    fixed("cache.enabled", |c| c.cache.enabled.to_string()),
    set!("cache.max_entries", cache.max_entries, plain),
    set!("cache.max_bytes", cache.max_bytes, size),
    set!("cache.max_entry_bytes", cache.max_entry_bytes, size),
    fixed("cache.ttl", |c| duration(&c.cache.ttl)),
    fixed("cache.invalidation", |c| word(&c.cache.invalidation)),
    fixed("cache.publication", |c| c.cache.publication.clone().unwrap_or_default()),
    set!("cache.verify", cache.verify, word),
    fixed("cache.fleet", |c| c.cache.fleet.to_string()),
    fixed("cache.shared", |c| secret(c.cache.shared.is_some())),
    fixed("cache.shared_timeout", |c| c.cache.shared.as_ref().map_or("20ms".to_owned(), |s| duration(&s.timeout))),
    fixed("cache.shared_secret", |c| secret(c.cache.shared.as_ref().is_some_and(|shared| shared.secret.is_some()))),
    set!("statements.max", statements.max, plain),
    set!("statements.slow_threshold", statements.slow_threshold, duration),
    set!("statements.slow_log", statements.slow_log, log),
    set!("statements.slow_log_parameters", statements.slow_log_parameters, plain),
    set!("statements.capture_plans", statements.capture_plans, plain),
    Setting { auto: true, ..set!("memory.limit", memory.limit, size) },
    set!("memory.threshold", memory.threshold, word),
    set!("alerts.response_time", alerts.response_time, duration),
    set!("alerts.error_rate", alerts.error_rate, word),
    set!("alerts.cpu_usage", alerts.cpu_usage, word),
    set!("alerts.memory_usage", alerts.memory_usage, word),
    set!("alerts.window", alerts.window, duration),
    live("alerts.webhook", |c| secret(c.alerts.webhook.is_some())),
];

/// Set, and not to be read.
fn secret(is_set: bool) -> String {
    if is_set { "********".to_owned() } else { String::new() }
}

fn plain(value: &impl ToString) -> String {
    value.to_string()
}

fn log(log: &SlowLog) -> String {
    match log {
        SlowLog::Off => String::new(),
        SlowLog::Stderr => "stderr".to_owned(),
        SlowLog::File(path) => path.display().to_string(),
    }
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

fn duration(duration: &Duration) -> String {
    let micros = duration.as_micros();
    let units = [("h", 3_600_000_000), ("s", 1_000_000), ("ms", 1_000)];
    let (unit, per_unit) =
        units.into_iter().find(|(_, per_unit)| micros.is_multiple_of(*per_unit)).unwrap_or(("us", 1));
    if micros == 0 { "0s".to_owned() } else { format!("{}{unit}", micros / per_unit) }
}

fn size(bytes: &u64) -> String {
    let bytes = *bytes;
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
    fn set_reads_a_value_as_the_file_does() {
        let mut config = resolve::empty();
        let own = Arc::new(Pool { max: 7, ..Pool::default() });
        let database = |name: &str, pool: &Arc<Pool>| crate::config::Database {
            name: name.to_owned(),
            dbname: None,
            tls: crate::config::TlsMode::Disable,
            ca: None,
            pool: pool.clone(),
            nodes: Vec::new(),
        };
        config.databases = vec![database("shares", &config.pool), database("own", &own)];
        let config = set(&config, "pool.max", "80").unwrap();
        assert_eq!(config.databases.iter().map(|d| d.pool.max).collect::<Vec<_>>(), [80, 7]);
        // Others are as they were set.
        let config = set(&config, "pool.idle_timeout", "90s").unwrap();
        assert_eq!((config.databases[0].pool.max, config.pool.idle_timeout), (80, Duration::from_secs(90)));
        assert_eq!(set(&config, "max_client_conn", "5").unwrap().listen.max_clients, 5);
        assert_eq!(set(&config, "statements.slow_log", "").unwrap().statements.slow_log, SlowLog::Off);
        assert_eq!(set(&config, "memory.limit", "64MiB").unwrap().memory.limit, 64 << 20);
        assert_eq!(set(&config, "cache.verify", "0.5").unwrap().cache.verify, 0.5);
        // It must agree with its neighbours, as they are now and not as they are by default.
        let small = set(&set(&config, "cache.max_entry_bytes", "1KiB").unwrap(), "cache.max_bytes", "2KiB").unwrap();
        assert_eq!(small.cache.max_bytes, 2048);
        for (key, value) in [
            ("cache.max_bytes", "1KiB"),
            ("pool.max", "many"),
            ("pool.max", "0"),
            ("pool.idle_timeout", "30 parsecs"),
            ("pool.idle_timeout", "\"\nmax = 3"),
            ("pool.pin", "perhaps"),
        ] {
            let refused = set(&config, key, value);
            assert!(matches!(refused, Err(SetError::Value(_))), "{key} = {value}: {refused:?}");
        }
        assert_eq!(set(&config, "pool.maximum", "1"), Err(SetError::Unknown));
        for fixed in ["listen.address", "routing.freshness", "admin.token", "pool.mode"] {
            assert_eq!(set(&config, fixed, "x"), Err(SetError::Fixed), "{fixed}");
        }
    }

    #[test]
    fn words_and_units_are_those_of_the_file() {
        use crate::config::{LoadBalancing, TlsMode};
        assert_eq!(
            (word(&LoadBalancing::LeastBusy), word(&TlsMode::VerifyCa)),
            ("least-busy".into(), "verify-ca".into())
        );
        let texts = [0, 1, 1_500, 90_000_000, 7_200_000_000].map(|micros| duration(&Duration::from_micros(micros)));
        assert_eq!(texts, ["0s", "1us", "1500us", "90s", "2h"]);
        assert_eq!([0, 1_000, 3 << 10, 5 << 30].map(|bytes| size(&bytes)), ["0", "1000", "3KiB", "5GiB"]);
    }
}
