//! Why a statement would run where: what EXPLAIN ROUTE and `pgweir explain` tell.

use crate::catalog::judge;
use crate::catalog::path::Scope;
use crate::route::decide::{self, Demand, Target, Why};
use crate::sql::{Facts, Fingerprint, Reason, classify, fingerprint};

/// The decision on one statement outside any transaction, with its reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub target: Target,
    pub fingerprint: Fingerprint,
    /// From what the statement names to what decides, outermost first; empty: its text alone decides.
    pub via: Vec<String>,
    /// There was a snapshot of the definitions to ask.
    pub known: bool,
    /// Why its result is not kept; `None`: it is.
    pub not_cached: Option<&'static str>,
    /// The cache's rules that count for it, in words.
    pub rules: Vec<String>,
}

/// Explains a text as a session with this scope would have it, but for the cache: `not_cached` and `rules`.
pub fn explain(text: &str, scope: Option<&Scope>, not_cached: Option<&'static str>, rules: Vec<String>) -> Explanation {
    let facts = classify::classify(text);
    let (primary, via) = reasons(&facts, scope);
    let mut demand = Demand::default();
    demand.take(&facts, primary, || false);
    let target = decide::decide(&demand, None);
    let fingerprint = fingerprint::fingerprint(text).fingerprint;
    Explanation { target, fingerprint, via, known: scope.is_some(), not_cached, rules }
}

fn reasons(facts: &Facts, scope: Option<&Scope>) -> (Option<Reason>, Vec<String>) {
    if !facts.is_open() {
        return (facts.primary, Vec::new());
    }
    match scope {
        Some(scope) => {
            let (verdict, trail) = judge::explain(&scope.catalog, &scope.path, facts);
            (verdict.primary, trail)
        }
        None => (super::plan::without_catalog(facts), Vec::new()),
    }
}

impl Explanation {
    /// `primary`, or `replica` for any that is fresh enough.
    pub fn node(&self) -> &'static str {
        match self.target {
            Target::Primary(_) => "primary",
            Target::Replica => "replica",
        }
    }

    /// One of the closed list.
    pub fn reason(&self) -> &'static str {
        match self.target {
            Target::Primary(why) => why.as_str(),
            Target::Replica => Why::Read.as_str(),
        }
    }

    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!("node: {}", self.node()),
            format!("reason: {}", self.reason()),
            self.not_cached.map_or("cached: yes".to_owned(), |why| format!("cached: no ({why})")),
            format!("fingerprint: {}", self.fingerprint),
        ];
        lines.extend(self.rules.iter().map(|rule| format!("rule: {rule}")));
        if !self.via.is_empty() {
            lines.push(format!("via: {}", self.via.join(" -> ")));
        }
        if !self.known {
            lines.push("definitions: not known".to_owned());
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_text_alone_where_nothing_else_is_known() {
        let of = |text: &str| {
            let explanation = explain(text, None, None, Vec::new());
            (explanation.node(), explanation.reason())
        };
        assert_eq!(of("select 1"), ("replica", "read"));
        assert_eq!(of("insert into t values (1)"), ("primary", "write"));
        assert_eq!(of("/* pgweir: primary */ select 1"), ("primary", "hint"));
        assert_eq!(of("/* pgweir: replica */ delete from t"), ("primary", "write"));
        assert_eq!(of("select 1 from t"), ("primary", "catalog"));
        assert!(explain("select 1", None, None, Vec::new()).lines().contains(&"definitions: not known".to_owned()));
    }
}
