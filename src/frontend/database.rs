//! One database as clients know it: its nodes, pools, plans and counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quick_cache::sync::Cache;

use crate::backend::connect::Login;
use crate::cache::Change;
use crate::cluster::Cluster;
use crate::cluster::node::Node;
use crate::config;
use crate::error::{Fault, Severity, sqlstate};
use crate::frontend::invalidation::Cached;
use crate::frontend::tables::Tables;
use crate::net::tls::{Connector, TlsError};
use crate::notify::hub::{Hub, Reach};
use crate::pool::checkout::{Pool, Refused};
use crate::pool::lease::{Lease, Return};
use crate::pool::registry::Pools;
use crate::route::decide::Tally;
use crate::route::plan::Plans;
use crate::session::parameters::Settings;
use crate::session::prepared::Registry;
use crate::stats::{self, Stats};

/// ParameterStatus values of a fresh session, in the server's order.
pub type Statuses = Arc<[(Box<str>, Box<str>)]>;

/// Startup settings whose outcome is kept; the least used go first.
const STATUSES_KEPT: usize = 1000;

/// How long a server's word on startup settings holds: an ALTER ROLE … SET counts for logins after that.
const PROVEN_FOR: Duration = Duration::from_secs(30);

/// How often a login that waits looks for a node that serves it sooner.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub struct Database {
    /// As clients ask for it.
    pub name: Arc<str>,
    /// As the servers know it.
    pub dbname: Arc<str>,
    pub tls: Connector,
    pub cluster: Arc<Cluster>,
    pub pools: Pools,
    /// Listens for the clients.
    pub hub: Hub,
    pub plans: Plans,
    pub statements: Registry,
    pub counters: Arc<stats::counters::Database>,
    pub tally: Tally,
    pub tables: Arc<Tables>,
    /// `None`: no result of it is kept.
    pub cached: Option<Arc<Cached>>,
    /// By user, since roles may have settings of their own, and by what the startup packet sets; with the time.
    statuses: Cache<(Arc<str>, Settings), (Instant, Settings, Statuses)>,
    disabled: AtomicBool,
    /// Those that have left it to a statement and are not back.
    pub(super) leavings: Mutex<usize>,
}

impl Database {
    /// `name` is what the client asked for, which matters where the configuration says `*`.
    ///
    /// # Errors
    /// The certificate authorities cannot be read.
    pub fn new(
        name: Arc<str>,
        config: &config::Database,
        routing: &config::Routing,
        stats: &Arc<Stats>,
        (control, ids): (&tokio::runtime::Handle, &Arc<AtomicU64>),
        epoch: Instant,
    ) -> Result<Database, TlsError> {
        let dbname = config.dbname.as_deref().map_or_else(|| name.clone(), Arc::from);
        let tls = Connector::new(config.tls, config.ca.as_deref())?;
        let cluster = Arc::new(Cluster::new(name.clone(), &config.nodes, routing, epoch));
        let by_table = routing.freshness == config::Freshness::Table;
        let tables = Tables::new(name.clone(), cluster.definitions.clone(), by_table);
        let counters = stats.databases.database(&name);
        let reach = Reach {
            cluster: cluster.clone(),
            tls: tls.clone(),
            config: config.pool.clone(),
            counters: counters.clone(),
        };
        Ok(Database {
            dbname,
            cluster,
            hub: Hub::new(reach, control.clone()),
            pools: Pools::new(
                name.clone(),
                tls.clone(),
                config.pool.clone(),
                control.clone(),
                ids.clone(),
                counters.workers(),
            ),
            plans: Plans::new(name.clone(), stats.clone()),
            statements: Registry::default(),
            tally: Tally::new(counters.workers(), config.nodes.len()),
            counters,
            tables: Arc::new(tables),
            cached: None,
            statuses: Cache::new(STATUSES_KEPT),
            disabled: AtomicBool::new(false),
            leavings: Mutex::new(0),
            name,
            tls,
        })
    }

    /// DISABLE and ENABLE: whether more clients may log in.
    pub fn disable(&self, disabled: bool) {
        self.disabled.store(disabled, Ordering::Relaxed);
    }

    pub fn is_disabled(&self) -> bool {
        self.disabled.load(Ordering::Relaxed)
    }

    /// By another name: of the same name on a server of both.
    pub fn is_same_as(&self, other: &Database) -> bool {
        let places =
            |database: &Database| database.cluster.nodes.iter().map(|node| node.name.clone()).collect::<Vec<_>>();
        let others = places(other);
        self.dbname == other.dbname && places(self).iter().any(|name| others.contains(name))
    }

    /// Forgets the results that are kept, or those that read a table: `schema.name`, or a name in any schema. False where
    /// there is none of that name.
    ///
    /// # Errors
    /// The definitions are not known.
    pub fn evict(&self, table: Option<&str>) -> Result<bool, String> {
        let Some(cached) = &self.cached else { return Ok(table.is_none()) };
        let Some(name) = table else {
            cached.evict(Change::All);
            return Ok(true);
        };
        let catalog = self.cluster.definitions.snapshot();
        let catalog = catalog.ok_or_else(|| format!("the definitions of \"{}\" are not known now", self.name))?;
        let tables = catalog.tables_named(name);
        cached.evict(Change::Tables(&tables));
        Ok(!tables.is_empty())
    }

    /// The pools of one login, by node index.
    pub fn pools_of(&self, login: &Login) -> Vec<Arc<Pool>> {
        self.cluster.nodes.iter().map(|node| self.pools.pool(login, node)).collect()
    }

    /// A connection to the primary, or to whatever node serves, by the pools of one login. While none is known to, it is
    /// waited for.
    ///
    /// # Errors
    /// FATAL: the server refuses the login, or nobody serves within `acquire_timeout`.
    pub async fn any_lease(&self, worker: usize, pools: &[Arc<Pool>]) -> Result<Lease, Fault> {
        let timeout = self.pools.config().acquire_timeout;
        let fatal = |refused: &Refused| Fault { severity: Severity::Fatal, ..refused.fault(timeout) };
        let end = tokio::time::Instant::now() + timeout;
        let mut refused = None;
        while tokio::time::Instant::now() < end {
            let Some(node) = self.cluster.preferred() else {
                self.ask_roles(worker, pools).await.map_err(|refused| fatal(&refused))?;
                if self.cluster.preferred().is_none() {
                    tokio::time::sleep(LOOK).await;
                }
                continue;
            };
            tokio::select! {
                answer = pools[usize::from(node.index)].checkout(worker) => match answer {
                    Ok(lease) => return Ok(lease),
                    Err(Refused::Unavailable(why)) => {
                        refused = Some(Refused::Unavailable(why));
                        tokio::time::sleep(LOOK).await;
                    }
                    Err(refused) => return Err(fatal(&refused)),
                },
                () = worse_than_another(&self.cluster, node) => {}
            }
        }
        let none = || Fault::fatal(sqlstate::CANNOT_CONNECT_NOW, "no server can be reached");
        Err(refused.map_or_else(none, |refused| fatal(&refused)))
    }

    /// Asks by this login the nodes whose roles the configuration leaves open, and which let no probe in.
    ///
    /// # Errors
    /// None lets this login in either: what one of them said.
    async fn ask_roles(&self, worker: usize, pools: &[Arc<Pool>]) -> Result<(), Refused> {
        let mut refused = None;
        for node in self.cluster.nodes.iter().filter(|node| node.is_to_be_asked()) {
            let lease = tokio::select! {
                answer = pools[usize::from(node.index)].checkout(worker) => answer,
                () = until(|| !node.is_to_be_asked()) => continue,
            };
            match lease {
                Ok(mut lease) => {
                    lease.begin();
                    let asking = lease.query("SELECT pg_catalog.pg_is_in_recovery()");
                    let rows = tokio::time::timeout(self.pools.config().connection_timeout, asking).await;
                    if let Ok(Ok(rows)) = rows
                        && let Some(Some(answer)) = rows.first().and_then(|row| row.first())
                    {
                        node.note_role(answer == "t");
                        lease.give_back(Instant::now(), Return::default());
                    }
                }
                Err(why @ Refused::Login(_)) => refused = Some(why),
                Err(_) => {}
            }
        }
        match refused {
            Some(why) if self.cluster.preferred().is_none() => Err(why),
            _ => Ok(()),
        }
    }

    /// What a session of this user with these startup settings reports, where a server has said so lately: such a login
    /// needs no connection.
    /// Its settings are the copy that all such sessions share.
    pub fn statuses(&self, user: &Arc<str>, settings: &Settings) -> Option<(Settings, Statuses)> {
        let (told, settings, statuses) = self.statuses.get(&(user.clone(), settings.clone()))?;
        (told.elapsed() < PROVEN_FOR).then_some((settings, statuses))
    }

    pub fn set_statuses(&self, user: Arc<str>, settings: Settings, statuses: Statuses) {
        self.statuses.insert((user, settings.clone()), (Instant::now(), settings, statuses));
    }
}

/// Ready once a client that waits for this node had better wait for another one.
async fn worse_than_another(cluster: &Cluster, node: &Node) {
    until(|| !node.is_up() && cluster.preferred().is_some_and(|other| other.index != node.index)).await;
}

async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::time::sleep(LOOK).await;
    }
}
