//! The tables of SHOW, with PgBouncer's columns in PgBouncer's order (`admin.c`, `stats.c`) and pgweir's at the end.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::time::Instant;

use jiff::Timestamp;

use super::columns::{self, Column};
use super::rows::{ConfigRow, DatabaseRow, PoolRow, Side, SocketRow, State, UserRow, mode_name};
use super::{Admin, documents, show_own};
use crate::stats::counters::Totals;
use crate::stats::slow_log;

pub(super) type Row = Vec<Option<String>>;

/// Columns and rows.
#[derive(Debug)]
pub(super) struct Table {
    pub columns: Vec<Column>,
    pub rows: Vec<Row>,
}

/// What SHOW knows, for HELP and error messages.
pub(super) const SHOWS: &[&str] = &[
    "ACTIVE_SOCKETS",
    "CACHE",
    "CLIENTS",
    "CONFIG",
    "DATABASES",
    "DNS_HOSTS",
    "DNS_ZONES",
    "FDS",
    "HELP",
    "LISTS",
    "MEM",
    "NODES",
    "PEERS",
    "PEER_POOLS",
    "POOLS",
    "SERVERS",
    "SLOW",
    "SOCKETS",
    "STATE",
    "STATEMENTS",
    "STATS",
    "STATS_AVERAGES",
    "STATS_TOTALS",
    "TOTALS",
    "USERS",
    "VERSION",
];

/// What SHOW will know.
pub(super) const LATER: &[&str] = &["FRESHNESS", "ALERTS", "SCALING", "ADVICE"];

/// Statements and slow ones shown on the console.
pub(super) const LISTED: usize = 100;

/// The table of a name in lower case; `None`: there is none of that name.
pub(super) fn table(admin: &Admin, name: &str, now: Instant) -> Option<Table> {
    let sources = &admin.sources;
    Some(match name {
        "databases" => of((sources.databases)(), &[columns::DATABASES], database),
        "pools" => of(documents::pools(admin), &[columns::POOLS], |pool| self::pool(pool.pool)),
        "clients" => of((sources.clients)(), &[columns::SOCKETS, "pinned_by"], |row| {
            let pinned_by = row.pinned_by.clone();
            socket(&row).into_iter().chain([pinned_by]).collect()
        }),
        "servers" => of((sources.servers)(), &[columns::SOCKETS, "node"], |row| {
            let node = row.node.clone();
            socket(&row).into_iter().chain([node]).collect()
        }),
        "sockets" => sockets(admin, |_| true),
        "active_sockets" => sockets(admin, |row| row.state.starts_with("active")),
        "stats" => stats(admin, now),
        "stats_totals" => stats_totals(admin, now),
        "stats_averages" => stats_averages(admin, now),
        "totals" => totals(admin, now),
        "lists" => lists(admin),
        "users" => of((sources.users)(), &[columns::USERS], user),
        "config" => of((sources.config)(), &[columns::CONFIG], config),
        "version" => of(["pgweir ".to_owned() + env!("CARGO_PKG_VERSION")], &["version"], |v| vec![Some(v)]),
        "state" => state((sources.state)()),
        "mem" => mem(admin),
        "fds" => empty(columns::FDS),
        "dns_hosts" => of(names(admin), &[columns::DNS_HOSTS], host),
        "dns_zones" => empty(columns::DNS_ZONES),
        "peers" => empty(columns::PEERS),
        "peer_pools" => empty(columns::PEER_POOLS),
        "nodes" => of(documents::nodes(admin), &[columns::NODES], |node| show_own::node(node.node, node.share)),
        "cache" => of((sources.cache)(), &[columns::CACHE], show_own::cache),
        "statements" => show_own::statements(admin),
        "slow" => of(admin.stats.slow.last(LISTED), &[columns::SLOW], |entry| show_own::slow(&entry)),
        _ => return None,
    })
}

pub(super) fn of<R>(rows: impl IntoIterator<Item = R>, lists: &[&'static str], row: impl Fn(R) -> Row) -> Table {
    Table { columns: columns::columns(lists), rows: rows.into_iter().map(row).collect() }
}

fn empty(list: &'static str) -> Table {
    Table { columns: columns::columns(&[list]), rows: Vec::new() }
}

pub(super) fn cell(value: impl Display) -> Option<String> {
    Some(value.to_string())
}

fn flag(value: bool) -> Option<String> {
    cell(u8::from(value))
}

fn database(row: DatabaseRow) -> Row {
    vec![
        Some(row.name),
        row.host,
        cell(row.port),
        Some(row.database),
        row.force_user,
        cell(row.pool_size),
        cell(row.min_pool_size),
        // pgweir has no reserve
        cell(0),
        cell(row.server_lifetime.as_secs()),
        cell(mode_name(row.pool_mode)),
        None,
        cell(row.max_connections),
        cell(row.current_connections),
        cell(row.max_client_connections),
        cell(row.current_client_connections),
        flag(row.paused),
        flag(row.disabled),
    ]
}

fn pool(row: PoolRow) -> Row {
    vec![
        Some(row.database),
        Some(row.user),
        cell(row.cl_active),
        cell(row.cl_waiting),
        cell(row.cl_active_cancel_req),
        cell(row.cl_waiting_cancel_req),
        cell(row.sv_active),
        cell(row.sv_active_cancel),
        cell(row.sv_being_canceled),
        cell(row.sv_idle),
        cell(row.sv_used),
        cell(row.sv_tested),
        cell(row.sv_login),
        cell(row.max_wait.as_secs()),
        cell(row.max_wait.subsec_micros()),
        cell(mode_name(row.pool_mode)),
        None,
    ]
}

fn socket(row: &SocketRow) -> Row {
    let side = match row.side {
        Side::Client => "C",
        Side::Server => "S",
    };
    let pointer = |id: u64| format!("0x{id:x}");
    vec![
        cell(side),
        cell(row.user.as_deref().unwrap_or("(nouser)")),
        cell(row.database.as_deref().unwrap_or("(nodb)")),
        cell(row.replication),
        cell(row.state),
        cell(&row.addr),
        cell(row.port),
        cell(&row.local_addr),
        cell(row.local_port),
        cell(time(row.connect_time)),
        cell(time(row.request_time)),
        cell(row.wait.as_secs()),
        cell(row.wait.subsec_micros()),
        flag(row.close_needed),
        cell(pointer(row.id)),
        cell(row.link.map(pointer).unwrap_or_default()),
        cell(row.remote_pid),
        cell(&row.tls),
        cell(&row.application_name),
        cell(row.prepared_statements),
        cell(row.id),
    ]
}

fn time(at: Timestamp) -> impl Display {
    at.strftime("%Y-%m-%d %H:%M:%S UTC")
}

fn sockets(admin: &Admin, wanted: impl Fn(&SocketRow) -> bool) -> Table {
    let lists = [columns::SOCKETS, columns::SOCKET_BUFFERS, "node pinned_by"];
    let rows = (admin.sources.clients)().into_iter().chain((admin.sources.servers)());
    of(rows.filter(wanted), &lists, |row| {
        let mut cells = socket(&row);
        // the places of buffers are not published by the workers
        cells.extend(columns::columns(&[columns::SOCKET_BUFFERS]).iter().map(|_| None));
        cells.extend([row.node, row.pinned_by]);
        cells
    })
}

fn values(totals: &Totals) -> impl Iterator<Item = Option<String>> {
    totals.values().into_iter().map(cell)
}

fn stats(admin: &Admin, now: Instant) -> Table {
    of(admin.stats.databases.stats(now), &["database", columns::TOTALS, columns::AVERAGES], |row| {
        [cell(&row.database)].into_iter().chain(values(&row.totals)).chain(values(&row.averages)).collect()
    })
}

fn stats_totals(admin: &Admin, now: Instant) -> Table {
    of(admin.stats.databases.stats(now), &["database", columns::STATS_TOTALS], |row| {
        [cell(&row.database)].into_iter().chain(values(&row.totals)).collect()
    })
}

fn stats_averages(admin: &Admin, now: Instant) -> Table {
    of(admin.stats.databases.stats(now), &["database", columns::STATS_AVERAGES], |row| {
        [cell(&row.database)].into_iter().chain(values(&row.averages)).collect()
    })
}

fn totals(admin: &Admin, now: Instant) -> Table {
    let (totals, averages) = admin.stats.databases.overall(now);
    let named = |prefix: &'static str, of: Totals| {
        columns::TOTALS_NAMES
            .split_whitespace()
            .zip(of.values())
            .map(move |(name, value)| (format!("{prefix}_{name}"), value))
    };
    of(named("total", totals).chain(named("avg", averages)), &[columns::SHOW_TOTALS], |(name, value)| {
        vec![Some(name), cell(value)]
    })
}

/// Names of nodes' hosts, and where they lead.
fn names(admin: &Admin) -> BTreeMap<String, Vec<IpAddr>> {
    (admin.sources.nodes)().into_iter().filter_map(|node| node.host).collect()
}

fn host((name, addresses): (String, Vec<IpAddr>)) -> Row {
    let addresses: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
    // Each probe and each connection looks it up anew.
    vec![Some(name), cell(0), Some(addresses.join(","))]
}

fn lists(admin: &Admin) -> Table {
    let lists = (admin.sources.lists)();
    // peers, zones, and a queue of lookups pgweir has not
    let items = [
        ("databases", lists.databases),
        ("users", lists.users),
        ("peers", 0),
        ("pools", lists.pools),
        ("peer_pools", 0),
        ("free_clients", lists.free_clients),
        ("used_clients", lists.used_clients),
        ("login_clients", lists.login_clients),
        ("free_servers", lists.free_servers),
        ("used_servers", lists.used_servers),
        ("dns_names", names(admin).len() as u64),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
        ("resting_clients", lists.resting_clients),
    ];
    of(items, &[columns::LISTS], |(list, items)| vec![cell(list), cell(items)])
}

fn user(row: UserRow) -> Row {
    vec![
        Some(row.name),
        cell(row.pool_size.map(|size| size.to_string()).unwrap_or_default()),
        cell(""),
        row.pool_mode.map(|mode| mode_name(mode).to_owned()),
        cell(row.max_user_connections),
        cell(row.current_connections),
        cell(row.max_user_client_connections),
        cell(row.current_client_connections),
    ]
}

fn config(row: ConfigRow) -> Row {
    let changeable = if row.changeable { "yes" } else { "no" };
    vec![Some(row.key), Some(row.value), Some(row.default), cell(changeable)]
}

fn state(now: State) -> Table {
    let states = [("active", State::Active), ("paused", State::Paused), ("suspended", State::Suspended)];
    of(states, &[columns::STATE], |(name, state)| vec![cell(name), cell(if state == now { "yes" } else { "no" })])
}

/// The bounded registries, in PgBouncer's shape: mean bytes of one, how many are used and free, bytes in all.
fn mem(admin: &Admin) -> Table {
    let statements = &admin.stats.statements;
    let slow = admin.stats.slow.last(usize::MAX);
    let slow_bytes = slow.iter().map(|entry| entry.bytes()).sum();
    let rows = [
        ("statements", statements.len(), statements.max(), statements.bytes()),
        ("slow_entries", slow.len(), slow_log::KEPT, slow_bytes),
    ];
    of(rows, &[columns::MEM], |(name, used, max, bytes): (_, usize, usize, usize)| {
        let size = bytes.checked_div(used).unwrap_or(0);
        vec![cell(name), cell(size), cell(used), cell(max.saturating_sub(used)), cell(bytes)]
    })
}
