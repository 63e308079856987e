//! The tables of SHOW that are pgweir's own: nodes, statements, slow statements.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::rows::{CacheRow, NodeRow, SharedRow, role_name};
use super::show::{LISTED, Row, Table, cell, of};
use super::{Admin, columns, documents};
use crate::stats::latency::Summary;
use crate::stats::slow::{SlowEntry, rfc3339};
use crate::stats::statements::Order;

pub(super) fn node(row: NodeRow, share: f64) -> Row {
    let ms = |duration: std::time::Duration| Summary::ms(crate::stats::micros(duration)).to_string();
    vec![
        Some(row.database),
        Some(row.name),
        cell(role_name(row.role)),
        cell(row.status.as_str()),
        cell(row.weight),
        cell(share),
        row.lag.map(ms),
        row.lag_bytes.map(|bytes| bytes.to_string()),
        row.lsn,
        cell(row.connections),
        cell(row.active),
        cell(row.queries),
        cell(row.errors),
        row.probe.map(ms),
        row.reason,
    ]
}

/// `name=count`, without those of none.
fn counted<N: Display>(counts: BTreeMap<N, u64>) -> Option<String> {
    let some = counts.into_iter().filter(|(_, count)| *count > 0);
    cell(some.map(|(name, count)| format!("{name}={count}")).collect::<Vec<_>>().join(" "))
}

pub(super) fn cache(row: CacheRow) -> Row {
    let (fleet, store) = (row.fleet.as_ref(), row.shared_store);
    let of_store = |count: fn(&SharedRow) -> u64| store.as_ref().and_then(|store| cell(count(store)));
    vec![
        Some(row.database),
        cell(row.mode),
        row.reason,
        cell(row.entries),
        cell(row.bytes),
        cell(row.max_entries),
        cell(row.max_bytes),
        cell(row.hits),
        cell(row.misses),
        cell(row.hit_rate),
        cell(row.shared),
        cell(row.stored),
        cell(row.evicted),
        cell(row.expired),
        counted(row.invalidated),
        counted(row.refused),
        cell(row.verified),
        cell(row.differences),
        cell(row.definitions),
        cell(row.definitions_bytes),
        cell(row.plans),
        fleet.and_then(|fleet| fleet.part).and_then(cell),
        fleet.and_then(|fleet| fleet.leader.clone()),
        fleet.and_then(|fleet| cell(fleet.takeovers)),
        store.as_ref().and_then(|store| cell(store.state)),
        store.as_ref().and_then(|store| store.reason.clone()),
        of_store(|store| store.hits),
        of_store(|store| store.misses),
        of_store(|store| store.failed),
        store.as_ref().and_then(|store| counted(store.refused.clone())),
        of_store(|store| store.stored),
        of_store(|store| store.dropped),
        of_store(|store| store.bytes_read),
        of_store(|store| store.bytes_written),
        cell(row.stale),
        cell(row.rules_missing.join(" ")),
    ]
}

pub(super) fn statements(admin: &Admin) -> Table {
    let names = documents::node_names(admin);
    of(admin.stats.statements.top(Order::TotalTime, LISTED), &[columns::STATEMENTS], |snapshot| {
        let (execute, wait) = (snapshot.execute.summary(), snapshot.wait.summary());
        let mean = |summary: &Summary| cell(crate::stats::millis(summary.mean));
        let ms = |micros: u64| cell(Summary::ms(micros));
        vec![
            cell(documents::fingerprint(&snapshot)),
            cell(&snapshot.database),
            cell(snapshot.calls),
            cell(snapshot.errors),
            cell(snapshot.rows),
            cell(snapshot.bytes),
            cell(snapshot.cache_hits),
            cell(snapshot.slow),
            ms(execute.sum),
            mean(&execute),
            ms(execute.p50),
            ms(execute.p95),
            ms(execute.p99),
            ms(execute.max),
            mean(&wait),
            ms(wait.p95),
            counted(documents::calls_by_name(&snapshot, &names)),
            cell(snapshot.cache_misses),
            counted(documents::refused_by_name(&snapshot)),
            Some(snapshot.text),
        ]
    })
}

pub(super) fn slow(entry: &SlowEntry) -> Row {
    let ms = |duration| cell(Summary::ms(crate::stats::micros(duration)));
    vec![
        cell(rfc3339(entry.ts)),
        cell(&entry.database),
        cell(&entry.user),
        cell(&entry.application_name),
        cell(&entry.client),
        cell(entry.fingerprint),
        ms(entry.duration),
        ms(entry.wait),
        ms(entry.execute),
        cell(entry.rows),
        cell(entry.bytes),
        entry.node.clone(),
        entry.role.clone(),
        cell(entry.cached),
        cell(&entry.route_reason),
        cell(entry.transaction),
        entry.error.clone(),
        entry.traceparent.clone(),
        cell(&entry.statement),
    ]
}
