//! What all clients share: configuration, databases, users, statistics.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::admin::Admin;
use crate::backend::cancel::Identity;
use crate::backend::connect::Login;
use crate::cache::{Limits, Results};
use crate::cluster::Cluster;
use crate::cluster::catalog;
use crate::cluster::changes::{self, Follow};
use crate::cluster::node::Node;
use crate::cluster::probe::{self, Prober};
use crate::config::{self, Config};
use crate::frontend::client::{Client, Clients};
use crate::frontend::database::Database;
use crate::frontend::failover;
use crate::frontend::invalidation::{Cached, Keeper};
use crate::frontend::login::prove::{Servers, Turn};
use crate::frontend::users::{User, Users};
use crate::net::tls::{Acceptor, Connector, TlsError};
use crate::shared::Shared;
use crate::stats::Stats;

/// Databases that clients may make pgweir set up, where the configuration says `*`.
const MAX_DATABASES: usize = 1000;

#[derive(Debug)]
pub struct Proxy {
    pub config: ArcSwap<Config>,
    pub stats: Arc<Stats>,
    pub results: Arc<Results>,
    /// The cache's second level.
    shared: Option<Arc<Shared>>,
    pub clients: Arc<Clients>,
    pub databases: DashMap<Arc<str>, Arc<Database>>,
    pub(super) users: Users,
    pub acceptor: ArcSwap<Acceptor>,
    pub control: tokio::runtime::Handle,
    pub admin: OnceLock<Arc<Admin>>,
    pub draining: AtomicBool,
    /// It ends when the last client has left, and no more may log in.
    pub closing: AtomicBool,
    /// PAUSE without a name: databases that are made later begin with a pause.
    pub paused: AtomicBool,
    /// For the salts that unknown users are shown.
    pub mock_nonce: [u8; 32],
    epoch: Instant,
    server_ids: Arc<AtomicU64>,
    /// Making a database starts its probes: once.
    making: Mutex<()>,
    /// By user and entry of `[[databases]]`.
    pub(super) proofs: DashMap<(Arc<str>, Arc<str>), Turn>,
}

impl Proxy {
    /// # Errors
    /// Certificates or keys cannot be read, or a password is a verifier that is none.
    pub fn new(
        config: Arc<Config>,
        stats: Arc<Stats>,
        control: tokio::runtime::Handle,
        epoch: Instant,
    ) -> Result<Arc<Proxy>, String> {
        let mut mock_nonce = [0; 32];
        // Without randomness no login succeeds anyway.
        let _ = aws_lc_rs::rand::fill(&mut mock_nonce);
        let proxy = Arc::new(Proxy {
            acceptor: ArcSwap::from_pointee(Acceptor::new(&config.listen.tls).map_err(|e| e.to_string())?),
            users: Users::new(&config.users)?,
            config: ArcSwap::new(config.clone()),
            stats,
            results: Arc::new(Results::new(limits(&config.cache))),
            shared: shared(&config.cache, &control)?,
            clients: Arc::new(Clients::new(config.listen.peer_id)),
            databases: DashMap::new(),
            control,
            admin: OnceLock::new(),
            draining: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            mock_nonce,
            epoch,
            server_ids: Arc::default(),
            making: Mutex::new(()),
            proofs: DashMap::new(),
        });
        for database in config.databases.iter().filter(|d| d.name != "*") {
            proxy.make(database.name.as_str().into(), database).map_err(|e| e.to_string())?;
        }
        Ok(proxy)
    }

    pub fn user(&self, name: &str) -> Option<Arc<User>> {
        self.users.configured(name)
    }

    pub fn users(&self) -> Vec<Arc<User>> {
        self.users.all()
    }

    /// Where a database is, whether it is set up or only `*` stands for it.
    pub fn servers(&self, name: &str) -> Option<Servers> {
        let config = self.config.load();
        let named = |name: &str| config.databases.iter().find(|d| d.name == name);
        if let Some(found) = self.databases.get(name) {
            return Some(Servers {
                name: found.name.clone(),
                dbname: found.dbname.clone(),
                entry: if named(name).is_some() { found.name.clone() } else { "*".into() },
                cluster: found.cluster.clone(),
                tls: found.tls.clone(),
                config: found.pools.config(),
            });
        }
        let wildcard = named("*")?;
        let tls = Connector::new(wildcard.tls, wildcard.ca.as_deref())
            .inspect_err(|error| tracing::error!(database = name, %error, "cannot set up the database"));
        let name: Arc<str> = name.into();
        Some(Servers {
            dbname: wildcard.dbname.as_deref().map_or_else(|| name.clone(), Arc::from),
            entry: "*".into(),
            cluster: Arc::new(Cluster::new(name.clone(), &wildcard.nodes, &config.routing, self.epoch)),
            tls: tls.ok()?,
            config: wildcard.pool.clone(),
            name,
        })
    }

    /// The servers do not know this database, or no more: one that only `*` stands for, and nobody is in, is not kept.
    pub fn forget(&self, database: &Arc<Database>) {
        let is_named = self.config.load().databases.iter().any(|named| *named.name == *database.name);
        if !is_named && self.clients.all().iter().all(|client| client.database != database.name) {
            self.databases.remove_if(&database.name, |_, known| Arc::ptr_eq(known, database));
        }
    }

    /// The database of this name; one that only `*` stands for is made when somebody is first let in.
    pub fn database(&self, name: &str) -> Option<Arc<Database>> {
        if let Some(found) = self.databases.get(name) {
            return Some(found.clone());
        }
        let config = self.config.load();
        let wildcard = config.databases.iter().find(|d| d.name == "*")?;
        if self.databases.len() >= MAX_DATABASES {
            tracing::error!(database = name, "too many databases");
            return None;
        }
        self.make(name.into(), wildcard)
            .inspect_err(|error| tracing::error!(database = name, %error, "cannot set up the database"))
            .ok()
    }

    fn make(&self, name: Arc<str>, config: &config::Database) -> Result<Arc<Database>, TlsError> {
        let _one_at_a_time = self.making.lock();
        if let Some(found) = self.databases.get(&name) {
            return Ok(found.clone());
        }
        let routing = self.config.load().routing.clone();
        let mut database =
            Database::new(name.clone(), config, &routing, &self.stats, (&self.control, &self.server_ids), self.epoch)?;
        database.cached = self.cached(&name);
        if let Some(cached) = &database.cached {
            let twins = self.databases.iter().filter(|other| other.is_same_as(&database));
            twins.filter_map(|other| other.cached.clone()).for_each(|other| cached.pair(&other));
        }
        let database = Arc::new(database);
        self.databases.insert(name, database.clone());
        // Behind the insert: whoever pauses all now finds it there, or has said so before.
        if self.paused.load(Ordering::SeqCst) {
            database.pools.pause();
        }
        for node in database.cluster.nodes.iter().filter(|node| self.is_ejected(&node.name)) {
            node.set_ejected(true, Instant::now());
            database.pools.use_node(node.index, false);
        }
        self.watch(&database);
        Ok(database)
    }

    /// An operator has taken the node out of use, in a database that has it too.
    fn is_ejected(&self, name: &str) -> bool {
        let in_one = |node: &Arc<Node>| *node.name == *name && node.is_ejected();
        self.databases.iter().any(|database| database.cluster.nodes.iter().any(in_one))
    }

    /// A database's part in the cache.
    fn cached(&self, name: &Arc<str>) -> Option<Arc<Cached>> {
        let config = &self.config.load().cache;
        config.enabled.then(|| Arc::new(Cached::new(name.clone(), self.results.clone(), config, self.shared.as_ref())))
    }

    /// Follows what changes in a database, where its results rely on that, or as soon as reads do.
    fn follow_changes(&self, database: &Arc<Database>, logins: Vec<Login>, timeout: Duration) {
        let cached = database.cached.as_ref().filter(|cached| cached.wants_stream());
        let definitions = &database.cluster.definitions;
        let unverified = catalog::longest_unverified(database.cluster.routing.probe_interval);
        let keeper =
            cached.map(|cached| Keeper::new(database.name.clone(), cached.clone(), definitions.clone(), unverified));
        if logins.is_empty() {
            return keeper.iter().for_each(Keeper::give_up);
        }
        let urge = cached.map(|cached| cached.urge.clone()).unwrap_or_default();
        let config::Cache { publication, fleet, .. } = self.config.load().cache.clone();
        let how = Follow { logins, tls: database.tls.clone(), timeout, publication, urge, fleet };
        let (cluster, lives, tables) =
            (Arc::downgrade(&database.cluster), database.cluster.changes(), database.tables.clone());
        self.control.spawn(async move {
            if keeper.is_none() && !tables.asked(lives).await {
                return;
            }
            let tell = |event| {
                tables.take(&event);
                if let Some(keeper) = &keeper {
                    keeper.take(event);
                }
            };
            changes::follow(cluster, how, tell).await;
        });
    }

    /// Starts the probes of a database's nodes, and warms the pools of the users that can log in on their own.
    fn watch(&self, database: &Arc<Database>) {
        let follow = failover::follow(Arc::downgrade(database), database.cluster.changes(), self.clients.clone());
        self.control.spawn(follow);
        let (known, learning): (Vec<_>, Vec<_>) =
            self.users().into_iter().filter(|u| !self.is_admin_only(u)).partition(|u| u.is_known());
        let timeout = database.pools.config().connection_timeout;
        let login = |user: &User| Login {
            user: user.name.clone(),
            database: database.dbname.clone(),
            credentials: user.credentials.clone(),
        };
        // A user that cannot log in yet still shows whether a node answers; its first client's login teaches the rest.
        let mut probing = if known.is_empty() { &learning } else { &known }.iter().map(|user| login(user));
        if let Some(first) = probing.next() {
            let prober = Prober { login: first, others: probing.collect(), tls: database.tls.clone(), timeout };
            for node in &database.cluster.nodes {
                let watch = probe::watch(Arc::downgrade(&database.cluster), node.clone(), prober.clone());
                self.control.spawn(watch);
            }
            self.control.spawn(catalog::follow(Arc::downgrade(&database.cluster), prober));
        } else {
            database.cluster.definitions.give_up();
            // Only clients' own logins can tell.
            database.cluster.nodes.iter().for_each(|node| node.note_probe(true));
        }
        let logins = known.iter().chain(&learning).map(|user| login(user)).collect();
        self.follow_changes(database, logins, timeout);
        for user in &known {
            database.pools_of(&login(user));
        }
    }

    fn is_admin_only(&self, user: &User) -> bool {
        let config = self.config.load();
        config.users.len() > 1 && config.admin.users.iter().any(|name| **name == *user.name)
    }

    /// Whom the servers' certificates must be signed by is read anew; with the databases that they are for.
    fn connectors(&self, config: &Config) -> Result<Vec<(Arc<Database>, Connector)>, TlsError> {
        let verified = |entry: &config::Database| entry.tls >= config::TlsMode::VerifyCa;
        let mut read = HashMap::new();
        for entry in config.databases.iter().filter(|entry| verified(entry)) {
            read.insert(&*entry.name, Connector::new(entry.tls, entry.ca.as_deref())?);
        }
        let of = |name: &str| read.get(entry(config, name)?.name.as_str()).cloned();
        Ok(self.databases.iter().filter_map(|d| Some((d.value().clone(), of(d.key())?))).collect())
    }

    /// Takes a reloaded configuration: users, certificates, pool settings. Nodes and databases that changed take effect
    /// with a restart, which is said in the log.
    ///
    /// # Errors
    /// Certificates or keys cannot be read, or the slow-query log not be opened: the old ones stay.
    pub fn reload(&self, config: Config) -> Result<(), String> {
        let acceptor = Acceptor::new(&config.listen.tls).map_err(|e| e.to_string())?;
        let users = self.users.read(&config.users)?;
        let connectors = self.connectors(&config).map_err(|e| e.to_string())?;
        self.stats.reconfigure(&config.statements).map_err(|e| e.to_string())?;
        self.stats.slow.reopen();
        let fixed = |c: &Config| {
            let databases: Vec<_> = c.databases.iter().map(shape).collect();
            (databases, lasting_listen(&c.listen), c.routing.clone(), lasting(&c.cache))
        };
        if fixed(&config) != fixed(&self.config.load()) {
            tracing::warn!(
                "changes of where [listen] is, of [routing], databases' nodes, and of [cache] but its bounds, rules and \
                 `verify` take effect with a restart"
            );
        }
        self.acceptor.store(Arc::new(acceptor));
        self.users.take(users);
        connectors.iter().for_each(|(database, connector)| database.tls.adopt(connector));
        for entry in &self.databases {
            if let Some(database) = self::entry(&config, entry.key()) {
                entry.value().pools.reconfigure(database.pool.clone(), |user| self.users.has(user));
            }
            if let Some(cached) = &entry.value().cached {
                cached.verifying.set_share(config.cache.verify);
                cached.set_rules(&config.cache.rules);
            }
        }
        self.results.set_limits(limits(&config.cache));
        self.config.store(Arc::new(config));
        Ok(())
    }

    /// Cancels the statement that runs for a client, or its wait; over once the signal is sent.
    pub fn cancel(&self, client: &Client) -> Option<JoinHandle<()>> {
        client.cancel(self.server_of(client).as_ref())
    }

    /// The server connection that serves a client now. Only the connection knows: so each statement says it in one place.
    fn server_of(&self, client: &Client) -> Option<Arc<Identity>> {
        if let Some(server) = client.server.get() {
            return Some(server.clone());
        }
        let database = self.databases.get(&client.database)?.clone();
        let servers = database.pools.all().into_iter().flat_map(|pool| pool.servers());
        servers.into_iter().find(|server| server.serves() == client.id)
    }

    /// A CancelRequest: nothing is said whether or not the key fits, as in Postgres. Over once the signal is sent, so that
    /// who waits for that and then sends another statement does not see it cancelled.
    pub async fn cancel_by_key(&self, pid: i32, secret: &[u8]) {
        if let Some(request) = self.clients.of_key(pid, secret).and_then(|client| self.cancel(&client)) {
            let _ = request.await;
        }
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Listening, and for each database some node can serve.
    ///
    /// # Errors
    /// Why it is not ready.
    pub fn ready(&self) -> Result<(), String> {
        if self.is_draining() {
            return Err("draining".to_owned());
        }
        let down = self.databases.iter().find(|entry| !entry.value().cluster.can_serve());
        if let Some(entry) = down {
            return Err(format!("no node of database \"{}\" can serve", entry.key()));
        }
        // without them all reads would go to the primary
        match self.databases.iter().find(|entry| !entry.value().cluster.definitions.is_attempted()) {
            Some(entry) => Err(format!("the definitions of database \"{}\" are not read yet", entry.key())),
            None => Ok(()),
        }
    }

    pub fn uptime(&self) -> Duration {
        self.epoch.elapsed()
    }
}

/// The cache's bounds, as configured.
pub fn limits(cache: &config::Cache) -> Limits {
    Limits { max_entries: cache.max_entries, max_bytes: cache.max_bytes, max_entry_bytes: cache.max_entry_bytes }
}

fn shared(cache: &config::Cache, control: &tokio::runtime::Handle) -> Result<Option<Arc<Shared>>, String> {
    let Some(config) = cache.shared.as_ref().filter(|_| cache.enabled) else { return Ok(None) };
    let shared = Shared::new(config)?;
    control.spawn(shared.clone().run());
    Ok(Some(shared))
}

/// What of `[listen]` a reload does not change.
fn lasting_listen(listen: &config::Listen) -> config::Listen {
    let (zero, tls) = (Duration::ZERO, config::ListenTls::default());
    config::Listen {
        max_clients: 0,
        login_timeout: zero,
        shutdown_grace: zero,
        peers: Vec::new(),
        tls,
        ..listen.clone()
    }
}

/// What of the cache a reload does not change.
fn lasting(cache: &config::Cache) -> config::Cache {
    let mut cache = cache.clone();
    (cache.max_entries, cache.max_bytes, cache.max_entry_bytes) = (0, 0, 0);
    (cache.verify, cache.rules) = (0.0, Vec::new());
    cache
}

/// What of a database a reload does not change.
fn shape(database: &config::Database) -> config::Database {
    let pool = Arc::new(config::Pool { mode: database.pool.mode, ..config::Pool::default() });
    config::Database { pool, ca: None, ..database.clone() }
}

/// What the configuration says of a database.
fn entry<'a>(config: &'a Config, name: &str) -> Option<&'a config::Database> {
    let named = |name: &str| config.databases.iter().find(|entry| entry.name == name);
    named(name).or_else(|| named("*"))
}
