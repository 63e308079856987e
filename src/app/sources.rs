//! The rows behind SHOW, the endpoints and the metrics, read off the running parts.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;

use super::{Order, commands};
use crate::admin::rows::{
    CacheRow, ConfigRow, DatabaseRow, DefinitionsRow, FleetRow, Lists, NodeRow, NodeStatus, PoolRow, SharedRow, Side,
    SocketRow, State, UserRow,
};
use crate::admin::{ExplainRoute, Sources};
use crate::backend::cancel::Identity;
use crate::cache::admit::{self, InForce, Kept, REFUSALS};
use crate::cache::{INVALIDATIONS, UNFIT};
use crate::catalog::path::Setting;
use crate::cluster::changes::Part;
use crate::cluster::node::{Node, Role};
use crate::config::settings::SETTINGS;
use crate::config::{NodeRole, PoolMode};
use crate::frontend::client::{Activity, Client};
use crate::frontend::database::Database;
use crate::frontend::invalidation::Cached;
use crate::frontend::proxy::Proxy;
use crate::net::{Peer, names};
use crate::pool::checkout::{IdleServer, Pool};
use crate::route::explain;
use crate::session::pins::Pins;
use crate::shared::Figures;

pub(super) fn sources(proxy: &Arc<Proxy>, orders: mpsc::UnboundedSender<Order>) -> Sources {
    let with = |f: fn(&Proxy) -> Vec<PoolRow>| of(proxy, f);
    Sources {
        pools: with(pools),
        clients: of(proxy, clients),
        servers: of(proxy, servers),
        databases: of(proxy, databases),
        nodes: of(proxy, nodes),
        users: of(proxy, users),
        lists: of(proxy, lists),
        config: of(proxy, config),
        state: of(proxy, state),
        ready: of(proxy, Proxy::ready),
        command: commands::commands(proxy, orders),
        explain_route: explain_route(proxy),
        definitions: of(proxy, definitions),
        cache: of(proxy, cache),
        routed: of(proxy, routed),
    }
}

/// Of each database, as its first user has it.
fn explain_route(proxy: &Arc<Proxy>) -> ExplainRoute {
    let proxy = proxy.clone();
    Box::new(move |sql| {
        let databases = all(&proxy);
        let user = proxy.config.load().users.first().map(|user| user.name.clone()).unwrap_or_default();
        let several = databases.len() > 1;
        let mut lines = Vec::new();
        for database in databases {
            if several {
                lines.push(format!("database: {}", database.name));
            }
            let catalog = database.cluster.definitions.snapshot();
            let scope = catalog.map(|catalog| catalog.scope(&Setting::Inherited, &user, &user));
            let kept = match &database.cached {
                Some(cached) => {
                    let (rules, publication) = (cached.rules.load(), cached.publication.load());
                    let in_force = InForce {
                        choice: cached.mode().choice(),
                        rules: rules.as_deref(),
                        publication: publication.as_deref(),
                    };
                    admit::explain(sql, scope.as_ref(), in_force)
                }
                None => Kept { refused: Some("disabled"), ..Kept::default() },
            };
            lines.extend(explain::explain(sql, scope.as_ref(), kept.refused, kept.rules).lines());
        }
        Ok(lines)
    })
}

fn definitions(proxy: &Proxy) -> Vec<DefinitionsRow> {
    let row = |database: Arc<Database>| {
        let figures = database.cluster.definitions.figures();
        DefinitionsRow {
            database: database.name.to_string(),
            refreshes: figures.refreshes,
            failures: figures.failures,
            duration: figures.duration,
            entries: figures.size.entries,
            bytes: figures.size.bytes,
            age: figures.verified.map(|at| at.elapsed()),
        }
    };
    all(proxy).into_iter().map(row).collect()
}

/// A row for each database whose results may be cached.
fn cache(proxy: &Proxy) -> Vec<CacheRow> {
    let bounds = proxy.config.load().cache.clone();
    let row = |database: Arc<Database>| {
        let cached = database.cached.as_ref()?;
        let (counts, size) = (cached.results.counts(cached.id), database.cluster.definitions.figures().size);
        let asked = (counts.hits + counts.misses).max(1);
        Some(CacheRow {
            database: database.name.to_string(),
            mode: cached.mode().as_str(),
            reason: cached.why(),
            entries: counts.share.entries,
            bytes: counts.share.bytes,
            max_entries: bounds.max_entries as u64,
            max_bytes: bounds.max_bytes,
            hits: counts.hits,
            misses: counts.misses,
            hit_rate: (1e4 * counts.hits as f64 / asked as f64).round() / 100.0,
            shared: counts.shared,
            stale: counts.stale,
            stored: counts.stored,
            evicted: counts.share.evicted,
            expired: counts.share.expired,
            invalidated: INVALIDATIONS.iter().map(|(_, name)| *name).zip(counts.invalidated).collect(),
            refused: REFUSALS.iter().map(|(_, name)| *name).zip(counts.refused).collect(),
            verified: counts.verified,
            differences: counts.differences,
            definitions: size.entries as u64,
            definitions_bytes: size.bytes as u64,
            plans: database.plans.kept() as u64,
            fleet: cached.fleet().map(fleet),
            shared_store: cached.shared.as_ref().map(|place| shared_store(place.figures())),
            rules_missing: rules_missing(cached, &database),
        })
    };
    all(proxy).into_iter().filter_map(row).collect()
}

fn shared_store(figures: Figures) -> SharedRow {
    SharedRow {
        state: if figures.state.is_up { "up" } else { "down" },
        reason: figures.state.why,
        hits: figures.hits,
        misses: figures.misses,
        failed: figures.failed,
        refused: UNFIT.iter().map(|(_, name)| *name).zip(figures.unfit).collect(),
        stored: figures.stored,
        dropped: figures.dropped,
        bytes_read: figures.bytes_read,
        bytes_written: figures.bytes_written,
    }
}

/// Tables that have a rule of the cache and are not there.
fn rules_missing(cached: &Cached, database: &Database) -> Vec<String> {
    let (rules, catalog) = (cached.rules.load(), database.cluster.definitions.latest());
    let by_table = rules.as_ref().zip(catalog).map(|(rules, catalog)| rules.by_table(&catalog));
    by_table.iter().flat_map(|by_table| &by_table.missing).map(ToString::to_string).collect()
}

fn fleet((part, takeovers): (Option<Part>, u64)) -> FleetRow {
    let name = part.as_ref().map(Part::as_str);
    let (leader, reason) = match part {
        Some(Part::Follower(leader)) => (Some(leader), None),
        Some(Part::Alone(why)) => (None, Some(why)),
        Some(Part::Leader) | None => (None, None),
    };
    FleetRow { part: name, leader, reason, takeovers }
}

/// Batches by the reason of their node: database, reason, how many.
fn routed(proxy: &Proxy) -> Vec<(String, &'static str, u64)> {
    let of = |database: Arc<Database>| {
        let counts = database.tally.counts();
        counts.into_iter().map(move |(reason, count)| (database.name.to_string(), reason, count))
    };
    all(proxy).into_iter().flat_map(of).collect()
}

fn of<T: 'static>(proxy: &Arc<Proxy>, rows: fn(&Proxy) -> T) -> Box<dyn Fn() -> T + Send + Sync> {
    let proxy = proxy.clone();
    Box::new(move || rows(&proxy))
}

/// All databases, by name.
pub(super) fn all(proxy: &Proxy) -> Vec<Arc<Database>> {
    let mut all: Vec<_> = proxy.databases.iter().map(|entry| entry.value().clone()).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// One row for each pool, and one for each database and user with its clients.
fn pools(proxy: &Proxy) -> Vec<PoolRow> {
    let mut rows = Vec::new();
    let mut by_database = HashMap::<Arc<str>, BTreeMap<Arc<str>, (u32, u32)>>::new();
    for client in proxy.clients.all() {
        let of_user = by_database.entry(client.database.clone()).or_default().entry(client.user.clone()).or_default();
        match client.activity().0 {
            Activity::Waiting => of_user.1 += 1,
            _ => of_user.0 += 1,
        }
    }
    for database in all(proxy) {
        let mut by_user = by_database.remove(&database.name).unwrap_or_default();
        for pool in database.pools.all() {
            by_user.entry(pool.login.user.clone()).or_default();
            rows.push(PoolRow { pool_mode: mode_of(proxy, &database, &pool.login.user), ..pool_row(&pool) });
        }
        rows.extend(by_user.into_iter().map(|(user, (active, waiting))| PoolRow {
            cl_active: active,
            cl_waiting: waiting,
            ..empty_pool(&database.name, &user, mode_of(proxy, &database, &user))
        }));
    }
    rows
}

fn mode_of(proxy: &Proxy, database: &Database, user: &str) -> PoolMode {
    proxy.user(user).map_or(database.pools.config().mode, |user| user.mode_in(database))
}

fn empty_pool(database: &str, user: &str, pool_mode: PoolMode) -> PoolRow {
    PoolRow {
        database: database.to_owned(),
        user: user.to_owned(),
        cl_active: 0,
        cl_waiting: 0,
        cl_active_cancel_req: 0,
        cl_waiting_cancel_req: 0,
        sv_active: 0,
        sv_active_cancel: 0,
        sv_being_canceled: 0,
        sv_idle: 0,
        sv_used: 0,
        sv_tested: 0,
        sv_login: 0,
        max_wait: Duration::ZERO,
        pool_mode,
        node: None,
        max: 0,
    }
}

fn pool_row(pool: &Pool) -> PoolRow {
    let snapshot = pool.snapshot();
    let config = pool.config.load();
    PoolRow {
        sv_active: count(snapshot.active),
        sv_idle: count(snapshot.idle),
        sv_login: count(snapshot.creating),
        max_wait: snapshot.oldest_wait,
        node: Some(pool.node.name.to_string()),
        max: count(config.max),
        ..empty_pool(&pool.database, &pool.login.user, config.mode)
    }
}

/// Wall-clock time of a past instant.
fn time_of(instant: Instant) -> Timestamp {
    let ago = SignedDuration::try_from(instant.elapsed()).unwrap_or_default();
    Timestamp::now().checked_sub(ago).unwrap_or_default()
}

fn address(peer: &Peer) -> (String, u16) {
    match peer {
        Peer::Tcp(address) => (address.ip().to_string(), address.port()),
        Peer::Unix => ("unix".to_owned(), 0),
    }
}

fn clients(proxy: &Proxy) -> Vec<SocketRow> {
    let pools = all(proxy).into_iter().flat_map(|database| database.pools.all());
    let servers = pools.flat_map(|pool| pool.servers());
    let links: HashMap<u64, u64> = servers.map(|server| (server.serves(), server.id.load(Ordering::Relaxed))).collect();
    proxy.clients.all().iter().map(|client| client_row(client, links.get(&client.id).copied())).collect()
}

fn client_row(client: &Client, link: Option<u64>) -> SocketRow {
    let (activity, since) = client.activity();
    let pins = Pins::from_bits(client.pins.load(Ordering::Relaxed));
    let waiting = activity == Activity::Waiting;
    let (addr, port) = address(&client.peer);
    let (local_addr, local_port) = address(&client.local);
    SocketRow {
        side: Side::Client,
        user: Some(client.user.to_string()),
        database: Some(client.database.to_string()),
        replication: client.replication,
        state: if waiting { "waiting" } else { "active" },
        addr,
        port,
        local_addr,
        local_port,
        connect_time: time_of(client.connected),
        request_time: time_of(since),
        wait: if waiting { since.elapsed() } else { Duration::ZERO },
        close_needed: false,
        id: client.id,
        link,
        remote_pid: 0,
        tls: client.tls.clone(),
        application_name: client.application_name.lock().clone(),
        prepared_statements: count(client.prepared.load(Ordering::Relaxed)),
        pinned_by: (!pins.is_empty()).then(|| pins.causes()),
        node: None,
    }
}

fn servers(proxy: &Proxy) -> Vec<SocketRow> {
    let clients: HashMap<u64, Arc<Client>> = proxy.clients.all().into_iter().map(|c| (c.id, c)).collect();
    let mut rows = Vec::new();
    for pool in all(proxy).iter().flat_map(|d| d.pools.all()) {
        let idle: HashMap<u64, IdleServer> = pool.idle_servers().into_iter().map(|idle| (idle.id, idle)).collect();
        for server in pool.servers() {
            let client = clients.get(&server.serves());
            let idle = idle.get(&server.id.load(Ordering::Relaxed));
            rows.push(server_row(&pool, &server, client.map(|client| &**client), idle));
        }
    }
    rows
}

/// What is said on the connection is its client's doing; of an idle one, what the last left.
fn server_row(pool: &Pool, server: &Identity, client: Option<&Client>, idle: Option<&IdleServer>) -> SocketRow {
    let serves = server.serves();
    let (addr, port) = address(&server.peer);
    let (local_addr, local_port) = address(&server.local);
    let (asked, application_name) = match (client, idle) {
        (Some(client), _) => (client.activity().1, client.application_name.lock().clone()),
        (None, Some(idle)) => (idle.since, idle.application_name.clone()),
        (None, None) => (server.created, String::new()),
    };
    SocketRow {
        side: Side::Server,
        user: Some(pool.login.user.to_string()),
        database: Some(pool.database.to_string()),
        replication: "none",
        state: match (server.is_settled(), serves) {
            (false, _) => "being_canceled",
            (true, 0) => "idle",
            (true, _) => "active",
        },
        addr,
        port,
        local_addr,
        local_port,
        connect_time: time_of(server.created),
        request_time: time_of(asked.max(server.created)),
        wait: Duration::ZERO,
        close_needed: false,
        id: server.id.load(Ordering::Relaxed),
        link: Some(serves).filter(|&id| id != 0),
        remote_pid: server.pid,
        tls: server.tls_version.to_owned(),
        application_name,
        prepared_statements: count(server.prepared.load(Ordering::Relaxed)),
        pinned_by: None,
        node: Some(pool.node.name.to_string()),
    }
}

/// Clients by one of their names.
fn counted(proxy: &Proxy, by: fn(&Client) -> &Arc<str>) -> HashMap<Arc<str>, u32> {
    let mut counts = HashMap::new();
    proxy.clients.all().iter().for_each(|client| *counts.entry(by(client).clone()).or_default() += 1);
    counts
}

fn databases(proxy: &Proxy) -> Vec<DatabaseRow> {
    let clients = counted(proxy, |client| &client.database);
    let row = |database: Arc<Database>| {
        let config = database.pools.config();
        let primary = database.cluster.primary();
        let connections: usize = database.pools.all().iter().map(|p| p.snapshot()).map(|s| s.active + s.idle).sum();
        DatabaseRow {
            name: database.name.to_string(),
            host: primary.map(|node| node.config.host.clone()),
            port: primary.map_or(5432, |node| node.config.port),
            database: database.dbname.to_string(),
            force_user: None,
            pool_size: count(config.max),
            min_pool_size: count(config.min),
            server_lifetime: config.max_lifetime,
            pool_mode: config.mode,
            max_connections: 0,
            current_connections: count(connections),
            max_client_connections: 0,
            current_client_connections: clients.get(&database.name).copied().unwrap_or_default(),
            paused: database.pools.is_paused(),
            disabled: database.is_disabled(),
        }
    };
    all(proxy).into_iter().map(row).collect()
}

fn nodes(proxy: &Proxy) -> Vec<NodeRow> {
    all(proxy).iter().flat_map(|d| d.cluster.nodes.iter().map(|n| node_row(d, n)).collect::<Vec<_>>()).collect()
}

fn node_row(database: &Database, node: &Node) -> NodeRow {
    let snapshots: Vec<_> =
        database.pools.all().iter().filter(|p| p.node.index == node.index).map(|p| p.snapshot()).collect();
    let lagging = node.is_astray() || node.lag().is_some_and(|lag| lag > database.cluster.routing.max_lag);
    let replica = node.role() == Role::Replica;
    let (reads, writes) = database.tally.of_node(node.index);
    let (position, written) = (node.position(), database.cluster.primary().and_then(|primary| primary.position()));
    NodeRow {
        index: node.index,
        database: database.name.to_string(),
        name: node.name.to_string(),
        role: match node.role() {
            Role::Primary => NodeRole::Primary,
            Role::Replica => NodeRole::Replica,
            Role::Unknown => NodeRole::Auto,
        },
        status: match (node.is_up(), node.is_ejected() && replica, lagging) {
            (false, _, _) => NodeStatus::Down,
            (true, true, _) => NodeStatus::Ejected,
            (true, false, true) => NodeStatus::Lagging,
            (true, false, false) => NodeStatus::Up,
        },
        weight: node.config.weight,
        lag: node.lag().filter(|_| replica),
        lag_bytes: position.filter(|_| replica).and_then(|at| Some(written?.0.saturating_sub(at.0))),
        lsn: position.map(|at| at.to_string()),
        connections: count(snapshots.iter().map(|s| s.active + s.idle).sum()),
        active: count(snapshots.iter().map(|s| s.active).sum()),
        queries: reads + writes,
        reads,
        writes,
        errors: node.failures.load(Ordering::Relaxed),
        probe: node.probe(),
        reason: node.fault().or_else(|| {
            let astray = node.is_astray().then_some("on a history that the primary is not on");
            astray.or((node.is_ejected() && replica).then_some("by EJECT")).map(str::to_owned)
        }),
        host: names::is_name(&node.config.host).then(|| (node.config.host.clone(), node.addresses())),
    }
}

fn users(proxy: &Proxy) -> Vec<UserRow> {
    let clients = counted(proxy, |client| &client.user);
    let pools: Vec<_> = all(proxy).iter().flat_map(|d| d.pools.all()).collect();
    let row = |user: Arc<crate::frontend::users::User>| {
        let own = pools.iter().filter(|p| p.login.user == user.name);
        UserRow {
            name: user.name.to_string(),
            pool_size: None,
            pool_mode: user.mode,
            max_user_connections: 0,
            current_connections: count(own.map(|p| p.snapshot()).map(|s| s.active + s.idle).sum()),
            max_user_client_connections: 0,
            current_client_connections: clients.get(&user.name).copied().unwrap_or_default(),
        }
    };
    proxy.users().into_iter().map(row).collect()
}

fn lists(proxy: &Proxy) -> Lists {
    let databases = all(proxy);
    let pools: Vec<_> = databases.iter().flat_map(|d| d.pools.all()).collect();
    let snapshots: Vec<_> = pools.iter().map(|p| p.snapshot()).collect();
    // As PgBouncer counts them: those that there are, lent or not.
    let used: usize = snapshots.iter().map(|s| s.active + s.idle + s.creating).sum();
    let max: usize = pools.iter().map(|p| p.config.load().max).sum();
    let open = proxy.clients.connections.load(Ordering::Relaxed);
    let logged_in = proxy.clients.len();
    Lists {
        databases: databases.len() as u64,
        users: proxy.users().len() as u64,
        pools: pools.len() as u64,
        free_clients: proxy.config.load().listen.max_clients.saturating_sub(open) as u64,
        used_clients: logged_in as u64,
        login_clients: open.saturating_sub(logged_in) as u64,
        resting_clients: proxy.clients.resting() as u64,
        free_servers: max.saturating_sub(used) as u64,
        used_servers: used as u64,
    }
}

/// PgBouncer's names where its exporter asks for them, then pgweir's own.
fn config(proxy: &Proxy) -> Vec<ConfigRow> {
    let (config, empty) = (proxy.config.load(), crate::config::empty());
    let row = |key: &str, value: String, default: String, changeable| ConfigRow {
        key: key.to_owned(),
        value,
        default,
        changeable,
    };
    let of_pgbouncer = [
        row("max_client_conn", config.listen.max_clients.to_string(), empty.listen.max_clients.to_string(), true),
        row("max_user_connections", "0".to_owned(), "0".to_owned(), false),
    ];
    let own = SETTINGS.iter().map(|s| row(s.key, s.value(&config), s.default(&empty), s.changeable));
    of_pgbouncer.into_iter().chain(own).collect()
}

/// PAUSE without a name, which holds databases that are made later, too.
fn state(proxy: &Proxy) -> State {
    if proxy.paused.load(Ordering::Relaxed) { State::Paused } else { State::Active }
}
