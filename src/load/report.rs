//! What a load has shown, for people and as JSON.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::progress::time;
use super::record::Totals;
use super::search::Search;
use super::threshold::Verdict;
use std::time::Duration;

/// One stage, or one step of the search, measured.
#[derive(Debug)]
pub struct Measured {
    /// Users at its start and at its end.
    pub users: (usize, usize),
    pub length: Duration,
    pub totals: Totals,
}

impl Measured {
    /// Turns a second that succeeded.
    pub fn throughput(&self) -> f64 {
        let seconds = self.length.as_secs_f64();
        if seconds > 0.0 { self.totals.done as f64 / seconds } else { 0.0 }
    }
}

/// All of it.
#[derive(Debug)]
pub struct Report {
    /// Without the password.
    pub target: String,
    pub stages: Vec<Measured>,
    pub total: Measured,
    pub verdicts: Vec<Verdict>,
    pub search: Option<(Vec<Measured>, Search)>,
    pub interrupted: bool,
}

/// The head of the table whose rows [`row`] makes.
pub fn head() -> String {
    format!(
        "{:<18} {:>11} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8}",
        "", "users", "turns", "turns/s", "mean ms", "p50", "p95", "p99", "max", "failed"
    )
}

/// A line of the table.
pub fn row(name: &str, measured: &Measured) -> String {
    let figures = measured.totals.latency.summary();
    let millis = |micros: f64| format!("{:.2}", micros / 1000.0);
    let (from, to) = measured.users;
    format!(
        "{name:<18} {:>11} {:>9} {:>9.1} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8}",
        if from == to { to.to_string() } else { format!("{from} → {to}") },
        measured.totals.done + measured.totals.failed,
        measured.throughput(),
        millis(figures.mean),
        millis(figures.p50 as f64),
        millis(figures.p95 as f64),
        millis(figures.p99 as f64),
        millis(figures.max as f64),
        measured.totals.failed,
    )
}

/// `stage 2, 5m`
pub fn stage_name(at: usize, length: Duration) -> String {
    format!("stage {}, {}", at + 1, time(length))
}

/// Errors by SQLSTATE, a line each: how many, and what the first said.
pub fn errors(totals: &Totals) -> String {
    let mut out = String::new();
    for (code, errors) in &totals.errors {
        // Writing to a String does not fail.
        let _ = writeln!(out, "    {code} × {}: {}", errors.count, one_line(&errors.message));
    }
    out
}

/// Text of a server on one line, without what would steer a terminal.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

impl Report {
    /// What follows the rows of the stages: the sum, thresholds, the breaking point.
    pub fn conclusion(&self) -> String {
        let mut out = String::new();
        if !self.stages.is_empty() {
            let _ = writeln!(out, "{}", row(&format!("all, {}", time(self.total.length)), &self.total));
        }
        for verdict in &self.verdicts {
            let _ = writeln!(out, "{verdict}");
        }
        if let Some((_, search)) = &self.search {
            out += &breaking_point(search);
        }
        if self.interrupted {
            out += "interrupted: these are the figures up to then\n";
        }
        out
    }

    pub fn json(&self) -> Value {
        json!({
            "to": self.target,
            "interrupted": self.interrupted,
            "stages": self.stages.iter().map(figures).collect::<Vec<_>>(),
            "total": figures(&self.total),
            "thresholds": self.verdicts.iter().map(|verdict| json!({
                "threshold": verdict.text, "kept": verdict.kept, "measured": verdict.measured,
            })).collect::<Vec<_>>(),
            "breaking_point": self.search.as_ref().map(|(steps, search)| json!({
                "steps": steps.iter().map(figures).collect::<Vec<_>>(),
                "good": search.good().map(|good| json!({"users": good.users, "throughput": good.throughput})),
                "users": search.broken().map(|(users, _)| users),
                "reason": search.broken().map(|(_, reason)| reason.to_string()),
            })),
        })
    }
}

/// Times in milliseconds.
fn figures(measured: &Measured) -> Value {
    let Measured { users: (from, to), length, totals } = measured;
    let latency = totals.latency.summary();
    let millis = |micros: f64| (micros / 10.0).round() / 100.0;
    let errors: Map<String, Value> = totals
        .errors
        .iter()
        .map(|(code, errors)| (code.clone(), json!({"count": errors.count, "message": errors.message})))
        .collect();
    json!({
        "users": {"from": from, "to": to},
        "seconds": length.as_secs_f64(),
        "turns": totals.done + totals.failed,
        "failed": totals.failed,
        "statements": totals.statements,
        "throughput": measured.throughput(),
        "error_rate": totals.error_rate(),
        "latency_ms": {
            "mean": millis(latency.mean), "p50": millis(latency.p50 as f64), "p95": millis(latency.p95 as f64),
            "p99": millis(latency.p99 as f64), "max": millis(latency.max as f64),
        },
        "errors": errors,
    })
}

fn breaking_point(search: &Search) -> String {
    let good = search.good().map(|good| format!("{} users go well ({:.1} turns/s)", good.users, good.throughput));
    match (search.broken(), good) {
        (Some((users, reason)), Some(good)) => format!("breaking point: {good}, {users} do not: {reason}\n"),
        (Some((users, reason)), None) => format!("breaking point: {users} users are too many already: {reason}\n"),
        (None, Some(good)) => format!("no breaking point found: {good}\n"),
        (None, None) => "no breaking point found: nothing was measured\n".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured() -> Measured {
        let mut totals = Totals::default();
        (1..=9).for_each(|n| totals.finished(Duration::from_millis(n), 2));
        totals.failed("53300", "too\nmany\u{1b}[2J", Some(Duration::from_millis(10)));
        Measured { users: (0, 5), length: Duration::from_secs(3), totals }
    }

    fn report() -> Report {
        let mut search = Search::new(1, 100);
        search.tell(1, 10.0, None);
        search.tell(2, 10.0, None);
        let verdicts =
            vec![super::super::threshold::Threshold::parse("error_rate<1%").unwrap().judge(&measured().totals, 3.0)];
        let search = Some((vec![measured()], search));
        Report {
            target: "u@h:1/d".into(),
            stages: vec![measured()],
            total: measured(),
            verdicts,
            search,
            interrupted: true,
        }
    }

    #[test]
    fn rows_stand_under_their_heads() {
        let row = row("stage 1, 3s", &measured());
        assert_eq!(row.chars().count(), head().chars().count());
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(cells[3..8], ["0", "→", "5", "10", "3.0"], "{row}");
        assert_eq!(cells.last(), Some(&"1"), "{row}");
    }

    #[test]
    fn text_says_all_and_steers_no_terminal() {
        let text = report().conclusion();
        for part in
            ["all, 3s", "error_rate<1%: 10.00 %, BROKEN", "1 users go well (10.0 turns/s), 2 do not", "interrupted"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(errors(&measured().totals), "    53300 × 1: too many [2J\n");
    }

    #[test]
    fn json_has_every_figure() {
        let json = report().json();
        let stage = &json["stages"][0];
        assert_eq!(stage["users"], json!({"from": 0, "to": 5}));
        assert_eq!((&stage["turns"], &stage["failed"], &stage["statements"]), (&json!(10), &json!(1), &json!(18)));
        assert_eq!((&stage["throughput"], &stage["error_rate"]), (&json!(3.0), &json!(0.1)));
        assert_eq!(stage["latency_ms"]["max"], json!(10.0));
        assert_eq!(stage["errors"]["53300"]["count"], 1);
        assert_eq!(json["thresholds"][0]["kept"], false);
        assert_eq!(json["breaking_point"]["users"], 2);
        assert_eq!(json["breaking_point"]["good"]["users"], 1);
        assert_eq!(json["interrupted"], true);
    }
}
