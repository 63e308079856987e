//! What the demo shows while it runs, made from the replies of the admin endpoint.

use std::fmt::Write;

use serde_json::Value;

const WIDTH: usize = 110;
const BAR: usize = 20;

/// The replies of one moment; [`Value::Null`] where one failed. Missing fields show as `-`.
#[derive(Debug, Default)]
pub struct Reading {
    /// `/stats`
    pub stats: Value,
    /// `/nodes`
    pub nodes: Value,
    /// `/slow`
    pub slow: Value,
    /// `/statements`
    pub statements: Value,
}

impl Reading {
    /// A screen of text.
    pub fn screen(&self) -> String {
        let mut out = String::new();
        self.summary(&mut out);
        self.nodes(&mut out);
        self.statements(&mut out);
        self.slow(&mut out);
        out.lines().map(|line| cut(line, WIDTH) + "\n").collect()
    }

    /// One line, for logs.
    pub fn line(&self) -> String {
        let shares: Vec<String> = self.shares().iter().map(|(name, share)| format!("{name} {share:.1}%")).collect();
        format!(
            "{}/s  p50 {} ms  p95 {} ms  errors {}%  slow {}  reads: {}",
            self.application("throughput"),
            self.application("p50"),
            self.application("p95"),
            self.application("errorRate"),
            number(&self.stats["database"]["slowQueries"]),
            if shares.is_empty() { "-".to_owned() } else { shares.join(", ") },
        )
    }

    fn summary(&self, out: &mut String) {
        let database = &self.stats["database"];
        let lines = [
            format!(
                "statements {}/s   p50 {} ms   p95 {} ms   p99 {} ms   errors {} %",
                self.application("throughput"),
                self.application("p50"),
                self.application("p95"),
                self.application("p99"),
                self.application("errorRate"),
            ),
            format!(
                "pool: {} server connections, {} active, {} clients, {} waiting   nodes up: {} of {}",
                number(&database["connections"]),
                number(&database["activeQueries"]),
                self.application("activeUsers"),
                number(&database["waiting"]),
                number(&database["nodesUp"]),
                number(&database["nodes"]),
            ),
        ];
        for line in lines {
            push(out, &line);
        }
    }

    fn nodes(&self, out: &mut String) {
        push(out, "");
        let header = format!(
            "{:<24} {:<8} {:<6} {:>6}  {:<w$}  {:>7} {:>6} {:>8}",
            "NODE",
            "ROLE",
            "STATE",
            "WEIGHT",
            "SHARE OF READS",
            "WRITES",
            "CONNS",
            "LAG ms",
            w = BAR + 7
        );
        push(out, &header);
        for (node, (_, share)) in list(&self.nodes, "nodes").iter().zip(self.shares()) {
            // Rounded, and within the bar whatever the reply says.
            let filled = ((share / 100.0 * BAR as f64).round() as usize).min(BAR);
            push(
                out,
                &format!(
                    "{:<24} {:<8} {:<6} {:>6}  {:>5.1}% {:<BAR$}  {:>7} {:>6} {:>8}",
                    text(&node["name"]),
                    text(&node["role"]),
                    text(&node["status"]),
                    number(&node["weight"]),
                    share,
                    "#".repeat(filled),
                    number(&node["writes"]),
                    number(&node["connections"]),
                    number(&node["lag_ms"]),
                ),
            );
        }
    }

    fn statements(&self, out: &mut String) {
        push(out, "");
        push(out, "STATEMENTS BY P95       CALLS   MEAN ms    P95 ms");
        for statement in list(&self.statements, "statements").iter().take(5) {
            let exec = &statement["exec"];
            let line = format!(
                "{:<20} {:>8} {:>9} {:>9}  {}",
                text(&statement["fingerprint"]),
                number(&statement["calls"]),
                number(&exec["mean"]),
                number(&exec["p95"]),
                one_line(&statement["text"]),
            );
            push(out, &line);
        }
    }

    fn slow(&self, out: &mut String) {
        push(out, "");
        push(out, "SLOW STATEMENTS, THE LAST ONES");
        for entry in list(&self.slow, "slow").iter().take(3) {
            let (took, waited) = (number(&entry["duration_ms"]), number(&entry["wait_ms"]));
            let node = text(&entry["node"]);
            push(out, &format!("{took:>9} ms (waited {waited}) on {node}  {}", one_line(&entry["statement"])));
        }
    }

    /// Each node's name and its percentage of all reads since the start.
    fn shares(&self) -> Vec<(&str, f64)> {
        let nodes = list(&self.nodes, "nodes");
        let reads = |node: &Value| node["reads"].as_f64().unwrap_or(0.0).max(0.0);
        let all: f64 = nodes.iter().map(reads).sum();
        let share = |node| if all > 0.0 { reads(node) / all * 100.0 } else { 0.0 };
        nodes.iter().map(|node| (text(&node["name"]), share(node))).collect()
    }

    fn application(&self, key: &str) -> String {
        number(&self.stats["application"][key])
    }
}

fn push(out: &mut String, line: &str) {
    // Writing to a String does not fail.
    let _ = writeln!(out, "{line}");
}

/// An array, or the array under `key` of an object.
fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.as_array().or_else(|| value[key].as_array()).map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// Whole numbers as they are, others with one digit, two below ten.
fn number(value: &Value) -> String {
    match (value.as_i64(), value.as_f64()) {
        (Some(whole), _) => whole.to_string(),
        (None, Some(number)) if number.abs() < 10.0 => format!("{number:.2}"),
        (None, Some(number)) => format!("{number:.1}"),
        (None, None) => "-".into(),
    }
}

fn one_line(value: &Value) -> String {
    text(value).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// At most `width` characters, and none that would steer the terminal: SQL text comes from anywhere.
fn cut(line: &str, width: usize) -> String {
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(width).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn reading() -> Reading {
        Reading {
            stats: json!({
                "database": {"connections": 25, "activeQueries": 5, "slowQueries": 2, "waiting": 0, "nodes": 4, "nodesUp": 4},
                "application": {"p50": 0.9, "p95": 4.13, "p99": 9.0, "throughput": 1000.04, "errorRate": 0.0, "activeUsers": 16}
            }),
            nodes: json!([
                {"name": "primary", "role": "primary", "status": "up", "weight": 1, "reads": 0, "writes": 20},
                {"name": "a", "role": "replica", "status": "up", "weight": 1, "reads": 25},
                {"name": "b", "role": "replica", "status": "up", "weight": 2, "reads": 75, "lag_ms": 1.5}
            ]),
            slow: json!([{"duration_ms": 150.3, "wait_ms": 0.0, "node": "primary", "statement": "SELECT\n\u{1b}[2J  pg_sleep($1)"}]),
            statements: json!({"statements": [{"fingerprint": "00ff", "text": "SELECT 1", "calls": 3, "exec": {"mean": 1.0, "p95": 2.0}}]}),
        }
    }

    #[test]
    fn shares_are_percentages_of_all_reads() {
        assert_eq!(reading().shares(), [("primary", 0.0), ("a", 25.0), ("b", 75.0)]);
        let line = reading().line();
        assert_eq!(
            line,
            "1000.0/s  p50 0.90 ms  p95 4.13 ms  errors 0.00%  slow 2  reads: primary 0.0%, a 25.0%, b 75.0%"
        );
    }

    #[test]
    fn the_screen_holds_each_part_and_no_control_characters() {
        let screen = reading().screen();
        let b = screen.lines().find(|line| line.starts_with("b ")).unwrap();
        assert!(b.contains(" 75.0% ###############       "), "{b}");
        assert!(screen.contains("00ff                        3      1.00      2.00  SELECT 1"), "{screen}");
        assert!(screen.contains("150.3 ms (waited 0.00) on primary  SELECT  [2J pg_sleep($1)"), "{screen}");
        assert!(screen.chars().all(|c| c == '\n' || !c.is_control()));
        assert!(screen.lines().all(|line| line.chars().count() <= WIDTH));
    }

    #[test]
    fn missing_replies_show_as_dashes() {
        let nothing = Reading::default();
        assert_eq!(nothing.line(), "-/s  p50 - ms  p95 - ms  errors -%  slow -  reads: -");
        assert!(nothing.screen().contains("nodes up: - of -"));
    }

    #[test]
    fn arrays_may_be_wrapped() {
        let wrapped = Reading { nodes: json!({"nodes": [{"name": "a", "reads": 1}]}), ..Reading::default() };
        assert_eq!(wrapped.shares(), [("a", 100.0)]);
    }
}
