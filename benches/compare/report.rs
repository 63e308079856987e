//! Medians with their spread, ratios, tables.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::budgets;
use crate::idle::Idle;
use crate::load::{LOADS, Load, Run};
use crate::targets::{DIRECT, ECHO, FLOOR, PGBOUNCER, PGPOOL_CACHE};

/// All that was measured.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub machine: String,
    /// What was built, `-dirty` where it is not all of that.
    pub commit: Option<String>,
    pub arguments: Vec<String>,
    pub workers: usize,
    /// In the order of the tables.
    pub targets: Vec<String>,
    pub versions: BTreeMap<String, String>,
    pub notes: Vec<String>,
    pub rounds: Vec<Round>,
    pub calls: Vec<Calls>,
    pub idle: Vec<Idle>,
}

/// One run with its place in the order of things.
#[derive(Debug, Serialize)]
pub struct Round {
    pub round: usize,
    pub load: &'static str,
    pub target: String,
    #[serde(flatten)]
    pub run: Run,
}

/// System calls for each transaction.
#[derive(Debug, Serialize)]
pub struct Calls {
    pub load: &'static str,
    pub target: String,
    pub total: f64,
    pub by_name: Vec<(String, f64)>,
}

/// Calls by name, and the transactions of which they are.
type Counted = (BTreeMap<String, u64>, u64);

impl Calls {
    /// From a short run and a long one; what both do besides, as logins, falls out of the difference.
    pub fn between(load: &'static str, target: &str, (few, short): &Counted, (many, long): &Counted) -> Calls {
        let more = |(name, calls): (&String, &u64)| {
            let more = *calls as f64 - few.get(name).copied().unwrap_or(0) as f64;
            (name.clone(), more / long.saturating_sub(*short) as f64)
        };
        let mut by_name: Vec<_> = many.iter().map(more).collect();
        by_name.sort_by(|a, b| b.1.total_cmp(&a.1));
        Calls { load, target: target.into(), total: by_name.iter().map(|(_, calls)| calls).sum(), by_name }
    }
}

/// The middle of some figures, and how far they reach.
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    pub fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Spread { median, low, high })
    }

    pub fn show(&self, digits: usize) -> String {
        let Spread { median, low, high } = self;
        if low == high {
            format!("{median:.digits$}")
        } else {
            format!("{median:.digits$} ({low:.digits$}–{high:.digits$})")
        }
    }
}

impl Report {
    fn runs<'a>(&'a self, load: &'a str, target: &'a str) -> impl Iterator<Item = &'a Round> {
        self.rounds.iter().filter(move |round| round.load == load && round.target == target)
    }

    /// A figure of one target over the same figure of another in the same round.
    fn ratios(&self, load: &str, target: &str, base: &str, figure: Figure) -> Vec<f64> {
        self.beside(load, target, base, figure).into_iter().map(|(own, of_base)| own / of_base).collect()
    }

    /// A figure of one target, and the same figure of another in the same round.
    fn beside(&self, load: &str, target: &str, base: &str, figure: Figure) -> Vec<(f64, f64)> {
        let of_base = |round| self.runs(load, base).find(|run| run.round == round);
        self.runs(load, target).filter_map(|run| Some((figure(&run.run)?, figure(&of_base(run.round)?.run)?))).collect()
    }

    /// A figure of one target under one load; `None` where it was not measured.
    pub fn spread(&self, load: &str, target: &str, figure: Figure) -> Option<Spread> {
        Spread::of(figures(self.runs(load, target), figure))
    }

    /// Tables in Markdown.
    pub fn markdown(&self) -> String {
        let mut text = format!("{}, pgweir at {}\n\n", self.machine, self.commit.as_deref().unwrap_or("no commit"));
        let _ = writeln!(text, "    compare {}\n", self.arguments.join(" "));
        for (name, version) in &self.versions {
            let _ = writeln!(text, "- {name} {version}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "- Note: {note}");
        }
        for load in LOADS.iter().filter(|load| self.rounds.iter().any(|round| round.load == load.name)) {
            let columns: Vec<_> = COLUMNS.iter().filter(|(_, column)| column.suits(load)).collect();
            let _ = write!(text, "\n### {}, {} client(s)\n\n", load.name, load.clients);
            let names: Vec<_> = columns.iter().map(|(name, _)| *name).collect();
            let _ = writeln!(text, "| | {} |\n|{}", names.join(" | "), " --- |".repeat(names.len() + 1));
            for target in self.targets.iter().filter(|target| self.runs(load.name, target).next().is_some()) {
                let cells: Vec<_> = columns.iter().map(|(_, column)| self.cell(load.name, target, column)).collect();
                let _ = writeln!(text, "| {target} | {} |", cells.join(" | "));
            }
        }
        if !self.idle.is_empty() {
            text += &self.idle_tables();
        }
        text + &budgets::table(self)
    }

    fn cell(&self, load: &str, target: &str, column: &Column) -> String {
        let spread = Spread::of(self.values(load, target, column));
        match (column, spread) {
            (_, None) => "–".into(),
            (Column::Ratio(base, _), Some(_)) if target == *base => "1".into(),
            (_, Some(spread)) => spread.show(column.digits()),
        }
    }

    /// One for each round, or one for all.
    pub fn values(&self, load: &str, target: &str, column: &Column) -> Vec<f64> {
        match *column {
            Column::Figure(figure, _) => figures(self.runs(load, target), figure),
            Column::Ratio(base, figure) => self.ratios(load, target, base, figure),
            Column::AboveDirect => {
                let p95s = self.beside(load, target, DIRECT, |run| Some(run.p95 / 1000.0));
                p95s.into_iter().map(|(own, direct)| own - direct).collect()
            }
            Column::UserSpace => self.user_space(load, target).into_iter().collect(),
            Column::Calls => {
                let calls = self.calls.iter().filter(|calls| calls.load == load && calls.target == target);
                calls.map(|calls| calls.total).collect()
            }
        }
    }

    /// For each transaction of all rounds: the kernel tells user space from itself by samples, too few in one round.
    fn user_space(&self, load: &str, target: &str) -> Option<f64> {
        let runs: Vec<_> = self.runs(load, target).map(|round| &round.run).collect();
        let transactions: u64 = runs.iter().map(|run| run.transactions).sum();
        let micros = runs.iter().map(|run| Some(run.proxy_user_cpu? * run.transactions as f64)).sum::<Option<f64>>()?;
        (transactions > 0).then(|| micros / transactions as f64)
    }

    fn idle_tables(&self) -> String {
        let mut text = "\n### Resident KiB for each idle client\n\n| | clients | KiB | clients under TLS | KiB |\n\
                        | --- | --- | --- | --- | --- |\n"
            .to_owned();
        for Idle { target, clients, bytes, tls, .. } in &self.idle {
            let tls =
                tls.as_ref().map_or("– | –".into(), |tls| format!("{} | {:.1}", tls.clients, tls.bytes / 1024.0));
            let _ = writeln!(text, "| {target} | {clients} | {:.2} | {tls} |", bytes / 1024.0);
        }
        text += "\n### 1,000 busy clients, alone and beside idle ones\n\n\
                 | | idle | tx/s | p50 | p99 | p99 ÷ p50 | proxy CPU µs/tx |\n| --- | --- | --- | --- | --- | --- | --- |\n";
        for idle in &self.idle {
            for (clients, runs) in [(0, &idle.alone), (idle.clients, &idle.beside)] {
                let show = |figure: Figure, digits| {
                    let spread = Spread::of(runs.iter().filter_map(figure).collect());
                    spread.map_or("–".into(), |spread| spread.show(digits))
                };
                let cells = [
                    show(|run| Some(run.tps), 0),
                    show(|run| Some(run.p50 / 1000.0), 1),
                    show(|run| Some(run.p99 / 1000.0), 1),
                    show(|run| Some(run.p99 / run.p50), 2),
                    show(|run| run.proxy_cpu, 1),
                ];
                let _ = writeln!(text, "| {} | {clients} | {} |", idle.target, cells.join(" | "));
            }
        }
        text
    }
}

fn figures<'a>(runs: impl Iterator<Item = &'a Round>, figure: Figure) -> Vec<f64> {
    runs.filter_map(|round| figure(&round.run)).collect()
}

type Figure = fn(&Run) -> Option<f64>;

/// What is shown of a target under a load.
pub enum Column {
    /// With so many digits.
    Figure(Figure, usize),
    /// To that of another target.
    Ratio(&'static str, Figure),
    /// How far p95 is above Postgres's own: what is added to what each transaction takes.
    AboveDirect,
    UserSpace,
    Calls,
}

pub const COLUMNS: [(&str, Column); 16] = [
    ("tx/s", Column::Figure(|run| Some(run.tps), 0)),
    ("mean ms", Column::Figure(|run| Some(run.mean / 1000.0), 2)),
    ("p50", Column::Figure(|run| Some(run.p50 / 1000.0), 2)),
    ("p95", Column::Figure(|run| Some(run.p95 / 1000.0), 2)),
    ("p99", Column::Figure(|run| Some(run.p99 / 1000.0), 2)),
    ("p99 ÷ p50", Column::Figure(|run| Some(run.p99 / run.p50), 1)),
    ("p95 above direct", Column::AboveDirect),
    ("proxy CPU µs/tx", Column::Figure(|run| run.proxy_cpu, 1)),
    ("of it in user space", Column::UserSpace),
    ("× floor", Column::Ratio(FLOOR, |run| run.proxy_cpu)),
    ("× echo", Column::Ratio(ECHO, |run| run.proxy_cpu)),
    ("× pgpool-cache", Column::Ratio(PGPOOL_CACHE, |run| run.proxy_cpu)),
    ("× PgBouncer", Column::Ratio(PGBOUNCER, |run| run.proxy_cpu)),
    ("tx/s × direct", Column::Ratio(DIRECT, |run| Some(run.tps))),
    ("Postgres CPU µs/tx", Column::Figure(|run| run.server_cpu, 1)),
    ("calls/tx", Column::Calls),
];

impl Column {
    pub fn digits(&self) -> usize {
        match self {
            Column::Figure(_, digits) => *digits,
            Column::UserSpace => 1,
            _ => 2,
        }
    }

    /// Whether it says anything under a load.
    fn suits(&self, load: &Load) -> bool {
        match self {
            Column::Ratio(ECHO | PGPOOL_CACHE, _) => load.repeats,
            // Under full load it would say how the processors are shared.
            Column::AboveDirect => load.pauses,
            Column::Calls => load.counted(1).is_some(),
            _ => true,
        }
    }
}
