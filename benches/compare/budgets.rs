//! What pgweir may cost with everything switched on, and what it does.

use std::fmt::{self, Write};

use crate::idle::Idle;
use crate::load::LOADS;
use crate::report::{COLUMNS, Report, Spread};
use crate::targets::PGWEIR_ALL;

#[derive(Clone, Copy)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
    /// Shown for its own sake.
    None,
}
use Limit::{AtLeast, AtMost};

/// Load, column, limit.
const BUDGETS: [(&str, &str, Limit); 33] = [
    ("simple", "× floor", AtMost(1.15)),
    ("simple", "× PgBouncer", AtMost(1.03)),
    ("simple", "of it in user space", AtMost(3.0)),
    ("simple", "calls/tx", AtMost(4.8)),
    ("prepared", "× floor", AtMost(1.15)),
    ("prepared", "× PgBouncer", AtMost(0.82)),
    ("prepared", "of it in user space", AtMost(3.0)),
    ("prepared", "calls/tx", AtMost(4.8)),
    ("extended", "× floor", AtMost(1.2)),
    ("extended", "× PgBouncer", Limit::None),
    ("extended", "of it in user space", AtMost(3.0)),
    ("2 MB results", "× floor", AtMost(1.0)),
    ("2 MB results", "× PgBouncer", Limit::None),
    ("repeated reads, simple", "× floor", AtMost(0.6)),
    ("repeated reads, simple", "proxy CPU µs/tx", AtMost(10.0)),
    ("repeated reads, simple", "× pgpool-cache", AtMost(0.45)),
    ("repeated reads, simple", "× echo", Limit::None),
    ("repeated reads, simple", "tx/s × direct", AtLeast(3.0)),
    ("repeated reads, simple", "calls/tx", AtMost(3.0)),
    ("repeated reads, prepared", "× floor", AtMost(0.6)),
    ("repeated reads, prepared", "proxy CPU µs/tx", AtMost(10.0)),
    ("repeated reads, prepared", "× pgpool-cache", AtMost(0.45)),
    ("repeated reads, prepared", "× echo", Limit::None),
    ("repeated reads, prepared", "tx/s × direct", AtLeast(3.0)),
    ("repeated reads, prepared", "calls/tx", AtMost(3.0)),
    ("simple, TLS", "× PgBouncer", Limit::None),
    ("simple, 500 clients", "p99 ÷ p50", AtMost(2.0)),
    ("simple, 500 clients", "× PgBouncer", Limit::None),
    ("5,000 reads a second", "p95 above direct", AtMost(1.0)),
    ("5,000 reads a second", "× PgBouncer", Limit::None),
    ("TPC-B", "× PgBouncer", Limit::None),
    ("reconnect", "× PgBouncer", Limit::None),
    ("reconnect", "tx/s × direct", Limit::None),
];

/// With more workers than one, to a floor of as many threads.
const BUDGETS_WORKERS: [(&str, &str, Limit); 3] =
    [("simple", "× floor", AtMost(1.12)), ("prepared", "× floor", AtMost(1.12)), ("extended", "× floor", AtMost(1.12))];

impl Limit {
    fn verdict(self, median: f64) -> &'static str {
        let kept = match self {
            AtMost(limit) => median <= limit,
            AtLeast(limit) => median >= limit,
            Limit::None => return "",
        };
        if kept { "met" } else { "**not met**" }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AtMost(limit) => write!(f, "≤ {limit}"),
            AtLeast(limit) => write!(f, "≥ {limit}"),
            Limit::None => f.write_str("–"),
        }
    }
}

/// A row for each that was measured of pgweir-all, the median decides; nothing where that was left out.
pub fn table(report: &Report) -> String {
    let mut text = String::new();
    let budgets = if report.workers > 1 { &BUDGETS_WORKERS[..] } else { &BUDGETS };
    for (load, name, limit) in budgets {
        let column = COLUMNS.iter().find_map(|(known, column)| (known == name).then_some(column));
        let clients = LOADS.iter().find(|known| known.name == *load).map_or(0, |load| load.clients);
        let values = column.map_or(Vec::new(), |column| report.values(load, PGWEIR_ALL, column));
        let what = format!("{load}, {clients} client(s): {name}");
        row(&mut text, &what, *limit, values, column.map_or(2, |column| column.digits()));
    }
    for Idle { clients, bytes, tls, alone, beside, .. } in report.idle.iter().filter(|idle| idle.target == PGWEIR_ALL) {
        let kib = |bytes: f64| vec![bytes / 1024.0];
        row(&mut text, &format!("KiB for each of {clients} idle clients"), AtMost(2.0), kib(*bytes), 2);
        if let Some(tls) = tls {
            let what = format!("KiB for each of {} idle clients under TLS", tls.clients);
            row(&mut text, &what, AtMost(16.0), kib(tls.bytes), 1);
        }
        let fair = |runs: &[crate::load::Run]| runs.iter().map(|run| run.p99 / run.p50).collect();
        row(&mut text, "1,000 busy clients: p99 ÷ p50", AtMost(2.0), fair(alone), 2);
        let what = format!("1,000 busy clients beside {clients} idle ones: p99 ÷ p50");
        row(&mut text, &what, AtMost(2.0), fair(beside), 2);
    }
    if text.is_empty() {
        return text;
    }
    format!("\n### Budgets, {PGWEIR_ALL}\n\n| what | budget | measured | |\n| --- | --- | --- | --- |\n{text}")
}

fn row(text: &mut String, what: &str, limit: Limit, values: Vec<f64>, digits: usize) {
    if let Some(spread) = Spread::of(values) {
        let (shown, verdict) = (spread.show(digits), limit.verdict(spread.median));
        // Writing to a String does not fail.
        let _ = writeln!(text, "| {what} | {limit} | {shown} | {verdict} |");
    }
}
