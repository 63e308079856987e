//! Medians with their spread, ratios, tables.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::load::{LOADS, Run};
use crate::targets::{DIRECT, FLOOR, PGBOUNCER};

/// All that was measured.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub machine: String,
    pub versions: BTreeMap<String, String>,
    pub notes: Vec<String>,
    pub rounds: Vec<Round>,
    pub calls: Vec<Calls>,
    pub idle_bytes: BTreeMap<String, f64>,
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

/// The middle of some figures, and how far they reach.
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Spread { median, low, high })
    }

    fn show(values: Vec<f64>, digits: usize) -> String {
        match Spread::of(values) {
            Some(Spread { median, low, high }) => format!("{median:.digits$} ({low:.digits$}–{high:.digits$})"),
            None => "–".into(),
        }
    }
}

impl Report {
    fn runs<'a>(&'a self, load: &'a str, target: &'a str) -> impl Iterator<Item = &'a Round> {
        self.rounds.iter().filter(move |round| round.load == load && round.target == target)
    }

    /// A figure of one target over the same figure of another in the same round.
    fn ratios(&self, load: &str, target: &str, base: &str, figure: fn(&Run) -> Option<f64>) -> Vec<f64> {
        self.beside(load, target, base, figure).into_iter().map(|(own, of_base)| own / of_base).collect()
    }

    /// A figure of one target, and the same figure of another in the same round.
    fn beside(&self, load: &str, target: &str, base: &str, figure: fn(&Run) -> Option<f64>) -> Vec<(f64, f64)> {
        let of_base = |round| self.runs(load, base).find(|run| run.round == round);
        self.runs(load, target).filter_map(|run| Some((figure(&run.run)?, figure(&of_base(run.round)?.run)?))).collect()
    }

    /// A figure of one target under one load; `None` where it was not measured.
    pub fn spread(&self, load: &str, target: &str, figure: fn(&Run) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.runs(load, target).filter_map(|run| figure(&run.run)).collect())
    }

    /// In the order in which they were measured.
    pub fn targets(&self) -> Vec<&str> {
        let mut targets = Vec::new();
        for round in &self.rounds {
            if !targets.contains(&round.target.as_str()) {
                targets.push(&round.target);
            }
        }
        targets
    }

    /// Tables in Markdown.
    pub fn markdown(&self) -> String {
        let mut text = format!("{}\n\n", self.machine);
        for (name, version) in &self.versions {
            let _ = writeln!(text, "- {name} {version}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "- Note: {note}");
        }
        for load in LOADS.iter().filter(|load| self.rounds.iter().any(|round| round.load == load.name)) {
            let _ = write!(text, "\n### {}, {} client(s)\n\n", load.name, load.clients);
            text += "| | tx/s | mean ms | p50 | p95 | p99 | p99 ÷ p50 | p95 above direct | proxy CPU µs/tx | of it in user space | × floor | × PgBouncer | tx/s × direct | Postgres CPU µs/tx | calls/tx |\n";
            text += "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
            self.targets().into_iter().for_each(|target| self.row(&mut text, load.name, target));
        }
        if !self.idle_bytes.is_empty() {
            text += "\n### Resident KiB for each idle client\n\n";
            for (target, bytes) in &self.idle_bytes {
                let _ = writeln!(text, "- {target}: {:.2}", bytes / 1024.0);
            }
        }
        text
    }

    fn row(&self, text: &mut String, load: &str, target: &str) {
        if self.runs(load, target).next().is_none() {
            return;
        }
        let all = |figure: fn(&Run) -> Option<f64>, digits| {
            Spread::show(self.runs(load, target).filter_map(|run| figure(&run.run)).collect(), digits)
        };
        let ratio = |base, figure: fn(&Run) -> Option<f64>| match target == base {
            true => self.spread(load, target, figure).map_or("–", |_| "1").into(),
            false => Spread::show(self.ratios(load, target, base, figure), 2),
        };
        let calls = self.calls.iter().find(|calls| calls.load == load && calls.target == target);
        // What is added to what each transaction takes: under full load it would say how the processors are shared.
        let above = match LOADS.iter().any(|known| known.name == load && known.pauses) {
            true => {
                let p95s = self.beside(load, target, DIRECT, |run| Some(run.p95 / 1000.0));
                Spread::show(p95s.into_iter().map(|(own, direct)| own - direct).collect(), 2)
            }
            false => "–".into(),
        };
        let cells = [
            target.to_owned(),
            all(|run| Some(run.tps), 0),
            all(|run| Some(run.mean / 1000.0), 2),
            all(|run| Some(run.p50 / 1000.0), 2),
            all(|run| Some(run.p95 / 1000.0), 2),
            all(|run| Some(run.p99 / 1000.0), 2),
            all(|run| Some(run.p99 / run.p50), 1),
            above,
            all(|run| run.proxy_cpu, 1),
            all(|run| run.proxy_user_cpu, 1),
            ratio(FLOOR, |run| run.proxy_cpu),
            ratio(PGBOUNCER, |run| run.proxy_cpu),
            ratio(DIRECT, |run| Some(run.tps)),
            all(|run| run.server_cpu, 1),
            calls.map_or("–".into(), |calls| format!("{:.2}", calls.total)),
        ];
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
}
