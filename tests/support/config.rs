//! The configuration a test gives pgweir.

use std::path::{Path, PathBuf};

use pgweir::demo::cluster::{Cluster, SUPERUSER};
use pgweir::demo::sample;
use toml::{Table, Value};

use super::Pgweir;

/// Defaults that suit tests, with the test's own settings over them.
#[derive(Debug, Clone)]
pub struct Builder {
    settings: Table,
    nodes: Vec<Value>,
    users: Vec<Value>,
    more: String,
    group: Option<PathBuf>,
}

impl Default for Builder {
    fn default() -> Self {
        Builder::without_users().user(sample::USER, sample::PASSWORD)
    }
}

impl Builder {
    pub fn without_users() -> Self {
        let empty =
            Builder { settings: Table::new(), nodes: Vec::new(), users: Vec::new(), more: String::new(), group: None };
        // A small pool, so that a few clients already share connections.
        // Statements are counted where they run: what is cached is tested by tests that turn it on.
        empty
            .set("cache.enabled", false)
            .set("pool.min", 0)
            .set("pool.max", 5)
            .set("listen.workers", 2)
            .set("listen.shutdown_grace", "2s")
            .set("routing.probe_interval", "200ms")
    }

    /// A value by its dotted key: `pool.mode`, `routing.freshness`; `database.pool.max` is of the one database.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        let mut table = &mut self.settings;
        let (sections, name) = key.rsplit_once('.').unwrap_or(("", key));
        for section in sections.split('.').filter(|section| !section.is_empty()) {
            let entry = table.entry(section).or_insert_with(|| Table::new().into());
            table = entry.as_table_mut().unwrap_or_else(|| panic!("{key}: {section} is a value"));
        }
        table.insert(name.into(), value.into());
        self
    }

    /// The primary, the replicas with these weights (fewer weights: fewer replicas), and the superuser.
    pub fn cluster(mut self, cluster: &Cluster, weights: &[i64]) -> Self {
        self = self.node(cluster.primary().port(), "primary", None);
        for (replica, weight) in cluster.replicas().iter().zip(weights) {
            self = self.node(replica.port(), "replica", Some(*weight));
        }
        self.user(SUPERUSER, cluster.primary().password())
    }

    /// A node on 127.0.0.1.
    pub fn node(self, port: u16, role: &str, weight: Option<i64>) -> Self {
        self.node_at("127.0.0.1", port, role, weight)
    }

    pub fn node_at(mut self, host: &str, port: u16, role: &str, weight: Option<i64>) -> Self {
        let mut node = Table::new();
        node.insert("host".into(), host.into());
        node.insert("port".into(), i64::from(port).into());
        node.insert("role".into(), role.into());
        if let Some(weight) = weight {
            node.insert("weight".into(), weight.into());
        }
        self.nodes.push(node.into());
        self
    }

    pub fn user(mut self, name: &str, password: &str) -> Self {
        let user = Table::from_iter([("name".into(), name.into()), ("password".into(), password.into())]);
        self.users.push(user.into());
        self
    }

    /// A user with one more key of its own.
    pub fn user_with(mut self, name: &str, key: &str, value: impl Into<Value>) -> Self {
        self = self.user(name, name);
        if let Some(user) = self.users.last_mut().and_then(Value::as_table_mut) {
            user.insert(key.into(), value.into());
        }
        self
    }

    /// A user whose password pgweir does not know: the client's own is passed through.
    pub fn passthrough(mut self, name: &str) -> Self {
        self.users.push(Table::from_iter([("name".into(), Value::from(name))]).into());
        self
    }

    /// Text at the end of the file, for what the other methods do not say.
    pub fn more(mut self, toml: &str) -> Self {
        self.more.push_str(toml);
        self
    }

    /// pgweir is to run in this control group.
    pub fn in_group(mut self, directory: &Path) -> Self {
        self.group = Some(directory.to_owned());
        self
    }

    pub(super) fn group(&self) -> Option<&Path> {
        self.group.as_deref()
    }

    /// Runs pgweir with it, on free ports, and waits until it can serve.
    pub fn start(&self) -> Pgweir {
        Pgweir::start(self, "/readyz")
    }

    /// The same where no node may be up: waits only until it listens.
    pub fn start_unready(&self) -> Pgweir {
        Pgweir::start(self, "/livez")
    }

    /// The file's text.
    pub fn toml(&self, sql: u16, admin: u16, folder: &Path) -> String {
        let mut file = self
            .clone()
            .set("listen.address", format!("127.0.0.1:{sql}"))
            .set("admin.http", format!("127.0.0.1:{admin}"))
            .set("statements.slow_log", slow_log(folder).to_str().unwrap());
        let mut database = Table::new();
        database.insert("name".into(), sample::DATABASE.into());
        database.insert("tls".into(), "disable".into());
        if let Some(overrides) = file.settings.remove("database") {
            database.extend(overrides.try_into::<Table>().unwrap());
        }
        database.insert("nodes".into(), file.nodes.into());
        file.settings.insert("databases".into(), vec![Value::from(database)].into());
        file.settings.insert("users".into(), file.users.into());
        toml::to_string(&file.settings).unwrap() + "\n" + &file.more
    }
}

pub fn slow_log(folder: &Path) -> PathBuf {
    folder.join("slow.log")
}
