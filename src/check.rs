//! `pgweir check`: every finding about a file, then how each of its nodes answers.

mod nodes;

use std::io::{self, Write};
use std::path::Path;

use crate::config::{Config, Diagnostic, Severity};

pub use nodes::{login, try_nodes};

/// How the trial of one node went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTrial {
    pub database: String,
    /// Host and port.
    pub node: String,
    /// What was found there, or why it does not serve.
    pub outcome: Result<String, String>,
    /// Why changes cannot be followed there by the publication that is configured.
    pub unpublished: Option<String>,
}

/// How the trials of all that a configuration names went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trials {
    pub nodes: Vec<NodeTrial>,
    /// Of the cache's shared store, where there is one: without it pgweir serves all the same.
    pub store: Option<Result<String, String>>,
}

/// Tries every node of a configuration, and the shared store.
pub type TryNodes<'a> = &'a dyn Fn(&Config) -> io::Result<Trials>;

/// Writes the findings about the file at `path` to `out`, a line each, and then a summary. An accepted file's nodes
/// are tried when there is a `try_nodes`. True: the file is accepted, and every node tried serves.
///
/// # Errors
/// Those of `out` and of `try_nodes`.
pub fn check(path: &Path, try_nodes: Option<TryNodes<'_>>, out: &mut dyn Write) -> io::Result<bool> {
    let file = path.display();
    let (config, found) = match Config::load(path) {
        Ok((config, found)) => (Some(config), found),
        Err(found) => (None, found),
    };
    for diagnostic in &found {
        writeln!(out, "{diagnostic}")?;
    }
    let Some(config) = config else {
        writeln!(out, "{file}: refused: {}", tally(&found))?;
        return Ok(false);
    };
    let trials = try_nodes.map(|try_nodes| try_nodes(&config)).transpose()?;
    let Trials { nodes: trials, store } = trials.unwrap_or(Trials { nodes: Vec::new(), store: None });
    let mut down = 0;
    for NodeTrial { database, node, outcome, unpublished } in &trials {
        let (word, what) = match outcome {
            Ok(what) => ("ok", what),
            Err(why) => {
                down += 1;
                ("failed", why)
            }
        };
        writeln!(out, "{database} {node}: {word}: {what}")?;
        if let Some(why) = unpublished {
            writeln!(out, "{database} {node}: warning: changes cannot be followed: {why}")?;
        }
    }
    match store {
        Some(Ok(what)) => writeln!(out, "cache.shared: ok: {what}")?,
        Some(Err(why)) => writeln!(out, "cache.shared: warning: reads do without it: {why}")?,
        None => {}
    }
    if down > 0 {
        let tried = trials.len();
        writeln!(out, "{file}: refused: nodes that do not serve: {down} of {tried}")?;
        return Ok(false);
    }
    let nodes = config.databases.iter().map(|database| database.nodes.len()).sum();
    let (databases, users) = (config.databases.len(), config.users.len());
    let (databases, nodes) = (count(databases, "database"), count(nodes, "node"));
    write!(out, "{file}: ok: {databases}, {nodes}, {}", count(users, "user"))?;
    let said = tally(&found);
    if said.is_empty() { writeln!(out) } else { writeln!(out, "; {said}") }?;
    Ok(true)
}

/// `2 errors, 1 note`; empty when nothing was found.
fn tally(found: &[Diagnostic]) -> String {
    let kinds = [(Severity::Error, "error"), (Severity::Warning, "warning"), (Severity::Note, "note")];
    let counted = kinds.into_iter().filter_map(|(severity, word)| {
        let number = found.iter().filter(|d| d.severity == severity).count();
        (number > 0).then(|| count(number, word))
    });
    counted.collect::<Vec<_>>().join(", ")
}

fn count(number: usize, word: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {word}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_minimal(outcome: Result<String, String>) -> (bool, String) {
        // this process may not have the variable
        let text = include_str!("../conf/minimal.toml").replace("${APP_DB_PASSWORD}", "x");
        let name = format!("pgweir-check-{}-{}.toml", std::process::id(), outcome.is_ok());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        let try_nodes = |config: &Config| {
            let database = &config.databases[0];
            let node = &database.nodes[0];
            let trial = NodeTrial {
                database: database.name.clone(),
                node: format!("{}:{}", node.host, node.port),
                outcome: outcome.clone(),
                unpublished: None,
            };
            Ok(Trials { nodes: vec![trial], store: None })
        };
        let mut out = Vec::new();
        let passed = check(&path, Some(&try_nodes), &mut out).unwrap();
        std::fs::remove_file(&path).unwrap();
        (passed, String::from_utf8(out).unwrap())
    }

    #[test]
    fn each_nodes_trial_is_told() {
        let (passed, said) = check_minimal(Ok("primary, PostgreSQL 18".into()));
        assert!(passed, "{said}");
        assert!(said.starts_with("app db-primary:5432: ok: primary, PostgreSQL 18\n"), "{said}");
        assert!(said.ends_with(": ok: 1 database, 1 node, 1 user\n"), "{said}");
    }

    #[test]
    fn a_node_that_does_not_serve_refuses() {
        let (passed, said) = check_minimal(Err("connection refused".into()));
        assert!(!passed, "{said}");
        assert!(said.starts_with("app db-primary:5432: failed: connection refused\n"), "{said}");
        assert!(said.ends_with(": refused: nodes that do not serve: 1 of 1\n"), "{said}");
    }
}
