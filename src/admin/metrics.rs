//! `/metrics`: Prometheus text (0.0.4), or OpenMetrics (1.0.0) where the scraper asks for it.
//!
//! Base units: seconds, bytes, ratios. The two formats differ in the name of a counter's family and in the end.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::time::Instant;

use super::rows::{CacheRow, DefinitionsRow, NodeRow, PoolRow, SharedRow, role_name};
use super::{Admin, documents};
use crate::stats::counters::Totals;
use crate::stats::latency::{BOUNDS, Latency};
use crate::stats::statements::Order;

/// Statements with a histogram of their own, those of the most time in all: each costs a score of series.
const STATEMENTS: usize = 50;

/// The format of an exposition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Prometheus,
    OpenMetrics,
}

impl Format {
    /// By the Accept header.
    pub fn accepted(accept: Option<&str>) -> Format {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Format::OpenMetrics,
            _ => Format::Prometheus,
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Its name is given without `_total`.
    Counter,
    Gauge,
    Histogram,
}

/// The text as it grows. All samples of a family must follow its `family` at once.
struct Exposition {
    out: String,
    format: Format,
    name: &'static str,
    kind: Kind,
}

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Exposition {
    fn new(format: Format) -> Exposition {
        Exposition { out: String::with_capacity(16 * 1024), format, name: "", kind: Kind::Gauge }
    }

    fn family(&mut self, kind: Kind, name: &'static str, help: &str) {
        (self.name, self.kind) = (name, kind);
        let total = if kind == Kind::Counter && self.format == Format::Prometheus { "_total" } else { "" };
        let word = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        self.write(format_args!("# HELP {name}{total} {help}\n# TYPE {name}{total} {word}\n"));
    }

    fn sample(&mut self, labels: Labels<'_>, value: impl Display) {
        let suffix = if self.kind == Kind::Counter { "_total" } else { "" };
        self.line(suffix, labels, None, value);
    }

    /// Buckets, sum and count of one distribution, in seconds.
    fn histogram<C: hdrhistogram::Counter>(&mut self, labels: Labels<'_>, latency: &Latency<C>) {
        let seconds = |micros: u64| micros as f64 / 1e6;
        for (bound, count) in BOUNDS.iter().zip(latency.cumulative()) {
            self.line("_bucket", labels, Some(&bound_name(seconds(*bound))), count);
        }
        self.line("_bucket", labels, Some("+Inf"), latency.count());
        self.line("_sum", labels, None, seconds(latency.sum()));
        self.line("_count", labels, None, latency.count());
    }

    fn line(&mut self, suffix: &str, labels: Labels<'_>, le: Option<&str>, value: impl Display) {
        let name = self.name;
        self.write(format_args!("{name}{suffix}"));
        let mut opening = '{';
        for (name, text) in labels.iter().copied().chain(le.map(|bound| ("le", bound))) {
            self.write(format_args!("{opening}{name}=\"{}\"", escaped(text)));
            opening = ',';
        }
        let closing = if opening == ',' { "}" } else { "" };
        self.write(format_args!("{closing} {value}\n"));
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        // writing to a String cannot fail
        let _ = self.out.write_fmt(text);
    }
}

/// A float by OpenMetrics' canonical form, with a point; Prometheus reads it in either format.
fn bound_name(bound: f64) -> String {
    let text = bound.to_string();
    if text.contains('.') { text } else { text + ".0" }
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The whole page.
pub fn exposition(admin: &Admin, format: Format, now: Instant) -> String {
    let mut page = Exposition::new(format);
    process(&mut page, admin, now);
    requests(&mut page, admin);
    cache(&mut page, &(admin.sources.cache)());
    databases(&mut page, admin, now);
    pools(&mut page, &(admin.sources.pools)());
    nodes(&mut page, &(admin.sources.nodes)());
    routes(&mut page, &(admin.sources.routed)());
    definitions(&mut page, &(admin.sources.definitions)());
    statements(&mut page, admin);
    if format == Format::OpenMetrics {
        page.out.push_str("# EOF\n");
    }
    page.out
}

fn process(page: &mut Exposition, admin: &Admin, now: Instant) {
    let usage = admin.stats.process.usage(now);
    let lists = (admin.sources.lists)();
    page.family(Kind::Gauge, "pgweir_build_info", "The version that runs; always 1.");
    page.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    let mut gauge = |name, help, value: f64| {
        page.family(Kind::Gauge, name, help);
        page.sample(&[], value);
    };
    gauge("pgweir_uptime_seconds", "Time since the start.", usage.uptime.as_secs_f64());
    gauge("pgweir_cpu_usage_ratio", "CPU time used, of what the container may use.", usage.cpu / 100.0);
    gauge("pgweir_memory_used_bytes", "Memory in use in the container.", usage.memory_used as f64);
    gauge("pgweir_memory_limit_bytes", "Memory that the container may use.", usage.memory_total as f64);
    gauge("pgweir_resident_memory_bytes", "Resident memory of the process.", usage.resident as f64);
    gauge("pgweir_clients", "Connected clients.", lists.used_clients as f64);
    let ready = f64::from(u8::from((admin.sources.ready)().is_ok()));
    gauge("pgweir_ready", "1 where clients can be served.", ready);
}

fn requests(page: &mut Exposition, admin: &Admin) {
    let (counts, latency) = admin.stats.window.since_start();
    page.family(
        Kind::Histogram,
        "pgweir_query_duration_seconds",
        "From a client's statement to the end of its answer.",
    );
    page.histogram(&[], &latency);
    page.family(Kind::Counter, "pgweir_query_errors", "Statements that ended in an error, by whose fault it was.");
    page.sample(&[("fault", "client")], counts.client_faults);
    page.sample(&[("fault", "server")], counts.server_faults);
    page.family(Kind::Counter, "pgweir_cache_requests", "Reads that the cache was asked for.");
    page.sample(&[("result", "hit")], counts.cache_hits);
    page.sample(&[("result", "miss")], counts.cache_misses);
    page.family(Kind::Counter, "pgweir_slow_statements", "Statements at or above the slow threshold.");
    page.sample(&[], counts.slow);
    page.family(Kind::Counter, "pgweir_slow_log_dropped", "Lines of the slow-query log that could not be written.");
    page.sample(&[], admin.stats.slow.dropped());
}

fn cache(page: &mut Exposition, rows: &[CacheRow]) {
    type Value = fn(&CacheRow) -> u64;
    const GAUGES: [(&str, &str, Value); 2] = [
        ("pgweir_cache_entries", "Results that are kept.", |row| row.entries),
        ("pgweir_cache_bytes", "Bytes of the results that are kept, with all overhead.", |row| row.bytes),
    ];
    const COUNTERS: [(&str, &str, Value); 6] = [
        ("pgweir_cache_stored", "Results that were kept.", |row| row.stored),
        ("pgweir_cache_evicted", "Results gone for want of room.", |row| row.evicted),
        ("pgweir_cache_expired", "Results gone for their age.", |row| row.expired),
        ("pgweir_cache_stale", "Answers from the cache that may lack a change, as a rule allows.", |row| row.stale),
        ("pgweir_cache_verified", "Answers from the cache that were compared with the primary's.", |row| row.verified),
        ("pgweir_cache_differences", "Answers from the cache that were not what the primary said.", |row| {
            row.differences
        }),
    ];
    type Parts = fn(&CacheRow) -> &BTreeMap<&'static str, u64>;
    const PARTED: [(&str, &str, &str, Parts); 2] = [
        ("pgweir_cache_invalidated", "Results gone because something had changed.", "cause", |row| &row.invalidated),
        ("pgweir_cache_refused", "Reads whose results are not kept.", "reason", |row| &row.refused),
    ];
    let gauges = GAUGES.into_iter().map(|family| (Kind::Gauge, family));
    for (kind, (name, help, value)) in gauges.chain(COUNTERS.into_iter().map(|family| (Kind::Counter, family))) {
        page.family(kind, name, help);
        for row in rows {
            page.sample(&[("database", &*row.database)], value(row));
        }
    }
    for (name, help, label, parts) in PARTED {
        page.family(Kind::Counter, name, help);
        for row in rows {
            for (part, count) in parts(row) {
                page.sample(&[("database", &*row.database), (label, part)], *count);
            }
        }
    }
    shared_store(page, rows);
}

/// Families of the second level, where there is one.
fn shared_store(page: &mut Exposition, rows: &[CacheRow]) {
    type Value = fn(&SharedRow) -> u64;
    const FAMILIES: [(Kind, &str, &str, Value); 6] = [
        (Kind::Gauge, "pgweir_cache_store_up", "Whether reads ask the shared store.", |row| {
            u64::from(row.state == "up")
        }),
        (Kind::Counter, "pgweir_cache_store_stored", "Results put into the shared store.", |row| row.stored),
        (Kind::Counter, "pgweir_cache_store_dropped", "Results not put there, for want of room.", |row| row.dropped),
        (Kind::Counter, "pgweir_cache_store_failed", "Reads that asked the shared store in vain.", |row| row.failed),
        (Kind::Counter, "pgweir_cache_store_read_bytes", "Bytes from the shared store.", |row| row.bytes_read),
        (Kind::Counter, "pgweir_cache_store_written_bytes", "Bytes to the shared store.", |row| row.bytes_written),
    ];
    let stores: Vec<_> = rows.iter().filter_map(|row| Some((&*row.database, row.shared_store.as_ref()?))).collect();
    if stores.is_empty() {
        return;
    }
    for (kind, name, help, value) in FAMILIES {
        page.family(kind, name, help);
        for (database, store) in &stores {
            page.sample(&[("database", database)], value(store));
        }
    }
    page.family(Kind::Counter, "pgweir_cache_store_requests", "What the shared store had for reads.");
    for (database, store) in &stores {
        let refused = store.refused.iter().map(|(reason, count)| (*reason, *count));
        for (result, count) in [("hit", store.hits), ("miss", store.misses)].into_iter().chain(refused) {
            page.sample(&[("database", database), ("result", result)], count);
        }
    }
}

fn databases(page: &mut Exposition, admin: &Admin, now: Instant) {
    type Value = fn(&Totals) -> f64;
    const FAMILIES: &[(&str, &str, Value)] = &[
        ("pgweir_queries", "Statements.", |t| t.query_count as f64),
        ("pgweir_query_time_seconds", "Time statements ran.", |t| t.query_time as f64 / 1e6),
        ("pgweir_transactions", "Transactions.", |t| t.xact_count as f64),
        ("pgweir_transaction_time_seconds", "Time in transactions.", |t| t.xact_time as f64 / 1e6),
        ("pgweir_server_assignments", "Server connections given to clients.", |t| t.server_assignment_count as f64),
        ("pgweir_wait_time_seconds", "Time clients waited for a server connection.", |t| t.wait_time as f64 / 1e6),
        ("pgweir_received_bytes", "Bytes from clients.", |t| t.received as f64),
        ("pgweir_sent_bytes", "Bytes to clients.", |t| t.sent as f64),
        ("pgweir_client_parses", "Parse messages from clients.", |t| t.client_parse_count as f64),
        ("pgweir_server_parses", "Parse messages to servers.", |t| t.server_parse_count as f64),
        ("pgweir_binds", "Bind messages.", |t| t.bind_count as f64),
        ("pgweir_client_logins", "Logins.", |t| t.client_login_count as f64),
    ];
    let stats = admin.stats.databases.stats(now);
    for (name, help, value) in FAMILIES {
        page.family(Kind::Counter, name, help);
        for database in &stats {
            page.sample(&[("database", &*database.database)], value(&database.totals));
        }
    }
    let help = "Times that the connection which listens for clients was lost and made again.";
    page.family(Kind::Counter, "pgweir_listen_reconnects", help);
    for database in &stats {
        page.sample(&[("database", &*database.database)], database.listen_reconnects);
    }
}

fn pools(page: &mut Exposition, pools: &[PoolRow]) {
    type Value = fn(&PoolRow) -> u32;
    const CLIENTS: &[(&str, Value)] = &[("active", |p| p.cl_active), ("waiting", |p| p.cl_waiting)];
    const SERVERS: &[(&str, Value)] = &[
        ("active", |p| p.sv_active),
        ("canceling", |p| p.sv_active_cancel + p.sv_being_canceled),
        ("idle", |p| p.sv_idle),
        ("used", |p| p.sv_used),
        ("tested", |p| p.sv_tested),
        ("login", |p| p.sv_login),
    ];
    let mut by_state = |name, help, states: &[(&str, Value)]| {
        page.family(Kind::Gauge, name, help);
        for pool in pools {
            for (state, value) in states {
                let [database, user, node] = pool_labels(pool);
                page.sample(&[database, user, node, ("state", state)], value(pool));
            }
        }
    };
    by_state("pgweir_pool_clients", "Clients of a pool.", CLIENTS);
    by_state("pgweir_pool_servers", "Server connections of a pool.", SERVERS);
    page.family(Kind::Gauge, "pgweir_pool_max_servers", "Server connections that a pool may have.");
    for pool in pools {
        page.sample(&pool_labels(pool), pool.max);
    }
    page.family(Kind::Gauge, "pgweir_pool_max_wait_seconds", "Age of a pool's oldest waiter.");
    for pool in pools {
        page.sample(&pool_labels(pool), pool.max_wait.as_secs_f64());
    }
}

fn pool_labels(pool: &PoolRow) -> [(&str, &str); 3] {
    [("database", &pool.database), ("user", &pool.user), ("node", pool.node.as_deref().unwrap_or(""))]
}

fn nodes(page: &mut Exposition, nodes: &[NodeRow]) {
    type Value = fn(&NodeRow) -> Option<f64>;
    const FAMILIES: &[(Kind, &str, &str, Value)] = &[
        (Kind::Gauge, "pgweir_node_up", "1 where the node answers and is not ejected.", |n| {
            Some(f64::from(u8::from(documents::is_up(n))))
        }),
        (Kind::Gauge, "pgweir_node_weight", "Its weight among the replicas.", |n| Some(f64::from(n.weight))),
        (Kind::Gauge, "pgweir_node_lag_seconds", "How far replay is behind.", |n| n.lag.map(|lag| lag.as_secs_f64())),
        (Kind::Gauge, "pgweir_node_lag_bytes", "How far replay is behind.", |n| n.lag_bytes.map(|lag| lag as f64)),
        (Kind::Gauge, "pgweir_node_connections", "Connections to it.", |n| Some(f64::from(n.connections))),
        (Kind::Gauge, "pgweir_node_active_connections", "Connections lent to clients.", |n| Some(f64::from(n.active))),
        (Kind::Gauge, "pgweir_node_probe_seconds", "Time of the last probe.", |n| {
            n.probe.map(|time| time.as_secs_f64())
        }),
        (Kind::Counter, "pgweir_node_queries", "Statements that it ran.", |n| Some(n.queries as f64)),
        (Kind::Counter, "pgweir_node_errors", "Failed connections and probes.", |n| Some(n.errors as f64)),
    ];
    for (kind, name, help, value) in FAMILIES {
        page.family(*kind, name, help);
        for node in nodes {
            if let Some(value) = value(node) {
                page.sample(&[("database", &*node.database), ("node", &*node.name)], value);
            }
        }
    }
    // Apart, so that a promotion ends none of the series above.
    page.family(Kind::Gauge, "pgweir_node_info", "1, with what the node is now.");
    for node in nodes {
        let labels = [("database", &*node.database), ("node", &*node.name), ("role", role_name(node.role))];
        page.sample(&labels, 1);
    }
}

fn routes(page: &mut Exposition, routed: &[(String, &'static str, u64)]) {
    page.family(Kind::Counter, "pgweir_routed", "Batches by the reason for the node that they went to.");
    for (database, reason, count) in routed {
        page.sample(&[("database", database), ("reason", reason)], count);
    }
}

fn definitions(page: &mut Exposition, rows: &[DefinitionsRow]) {
    type Value = fn(&DefinitionsRow) -> Option<f64>;
    const FAMILIES: &[(Kind, &str, &str, Value)] = &[
        (Kind::Counter, "pgweir_catalog_refreshes", "Readings of a database's definitions.", |r| {
            Some(r.refreshes as f64)
        }),
        (Kind::Counter, "pgweir_catalog_failures", "Failed attempts to read or to check them.", |r| {
            Some(r.failures as f64)
        }),
        (Kind::Gauge, "pgweir_catalog_refresh_seconds", "Time of the last reading.", |r| {
            Some(r.duration.as_secs_f64())
        }),
        (Kind::Gauge, "pgweir_catalog_entries", "Objects known.", |r| Some(r.entries as f64)),
        (Kind::Gauge, "pgweir_catalog_bytes", "What the server sent of them.", |r| Some(r.bytes as f64)),
        (Kind::Gauge, "pgweir_catalog_age_seconds", "Since they were last known to hold.", |r| {
            r.age.map(|age| age.as_secs_f64())
        }),
    ];
    for (kind, name, help, value) in FAMILIES {
        page.family(*kind, name, help);
        for row in rows {
            if let Some(value) = value(row) {
                page.sample(&[("database", &*row.database)], value);
            }
        }
    }
}

fn statements(page: &mut Exposition, admin: &Admin) {
    page.family(Kind::Gauge, "pgweir_statements", "Fingerprints that have a record.");
    page.sample(&[], admin.stats.statements.len());
    let top = admin.stats.statements.top(Order::TotalTime, STATEMENTS);
    let mut by_statement = |name, help, of: fn(&crate::stats::statements::Snapshot) -> &Latency| {
        page.family(Kind::Histogram, name, help);
        for snapshot in &top {
            let fingerprint = documents::fingerprint(snapshot);
            page.histogram(&[("database", &*snapshot.database), ("fingerprint", &*fingerprint)], of(snapshot));
        }
    };
    by_statement(
        "pgweir_statement_duration_seconds",
        "Execution of the statements that took the most time in all.",
        |snapshot| &snapshot.execute,
    );
    by_statement("pgweir_statement_wait_seconds", "Wait for a server connection of the same statements.", |snapshot| {
        &snapshot.wait
    });
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
