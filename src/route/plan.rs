//! What is known of each statement text, worked out once: facts, fingerprint, statistics record.
//!
//! Looked up by text first, by fingerprint second; parsed last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quick_cache::sync::Cache;

use crate::sql::fingerprint::{self, Fingerprinted};
use crate::sql::{Effect, Facts, Fingerprint, Reason, classify};
use crate::stats::Stats;
use crate::stats::statements::Statement;

/// Plans kept by text and by fingerprint; the least used go first.
const KEPT: usize = 10_000;

/// Texts longer than this are classified each time rather than kept.
const MAX_KEPT_TEXT: usize = 16 * 1024;

/// All that routing and statistics need to know of one text.
#[derive(Debug)]
pub struct Plan {
    pub facts: Arc<Facts>,
    pub fingerprint: Fingerprint,
    pub record: Arc<Statement>,
    /// W3C trace context, from a comment.
    pub traceparent: Option<String>,
    /// A standby refused it, whatever its text promises.
    pub refused_by_standby: AtomicBool,
}

impl Plan {
    fn new(facts: Arc<Facts>, fingerprint: Fingerprint, record: Arc<Statement>) -> Plan {
        Plan { facts, fingerprint, record, traceparent: None, refused_by_standby: AtomicBool::new(false) }
    }

    /// Nothing but a plain read: any fresh enough node may answer.
    pub fn is_read(&self) -> bool {
        self.facts.primary.is_none()
    }

    /// Why it must run on the primary.
    pub fn primary(&self) -> Option<Reason> {
        let refused = self.refused_by_standby.load(Ordering::Relaxed);
        self.facts.primary.or(refused.then_some(Reason::SideEffect))
    }
}

/// The plans of one database.
#[derive(Debug)]
pub struct Plans {
    database: Arc<str>,
    stats: Arc<Stats>,
    by_text: Cache<Box<str>, Arc<Plan>>,
    by_fingerprint: Cache<Fingerprint, Arc<Facts>>,
    /// For texts that cannot be read: primary, and the session's state unknown.
    opaque: Arc<Plan>,
}

impl Plans {
    pub fn new(database: Arc<str>, stats: Arc<Stats>) -> Plans {
        let facts = Facts {
            statements: 1,
            primary: Some(Reason::Unparsable),
            effects: vec![Effect::Unknown],
            by_literal: true,
            ..Facts::default()
        };
        let fingerprint = Fingerprint(0);
        let record = stats.statements.record(fingerprint, || "(not readable as text)".to_owned(), &database);
        let opaque = Arc::new(Plan::new(Arc::new(facts), fingerprint, record));
        Plans { database, stats, by_text: Cache::new(KEPT), by_fingerprint: Cache::new(KEPT), opaque }
    }

    /// The plan of a statement's text as the client sent it.
    pub fn plan(&self, text: &[u8]) -> Arc<Plan> {
        let Ok(text) = std::str::from_utf8(text) else { return self.opaque.clone() };
        if let Some(plan) = self.by_text.get(text) {
            return plan;
        }
        let plan = Arc::new(self.work_out(text));
        if text.len() <= MAX_KEPT_TEXT {
            self.by_text.insert(text.into(), plan.clone());
        }
        plan
    }

    /// The plan of what is not looked at: too large to hold, or in an encoding that lexes otherwise.
    pub fn opaque(&self) -> Arc<Plan> {
        self.opaque.clone()
    }

    fn work_out(&self, text: &str) -> Plan {
        let Fingerprinted { fingerprint, by_literal } = fingerprint::fingerprint(text);
        let known = if by_literal { None } else { self.by_fingerprint.get(&fingerprint) };
        let facts = known.unwrap_or_else(|| {
            let facts = Arc::new(classify::classify(text));
            if !facts.by_literal && !by_literal {
                self.by_fingerprint.insert(fingerprint, facts.clone());
            }
            facts
        });
        let record = self.stats.statements.record(fingerprint, || fingerprint::normalize(text), &self.database);
        let traceparent = fingerprint::traceparent(text).map(str::to_owned);
        Plan { traceparent, ..Plan::new(facts, fingerprint, record) }
    }
}

#[cfg(test)]
impl Plan {
    pub fn unknown() -> Plan {
        let plans = tests::plans();
        let Plan { facts, fingerprint, record, .. } = &*plans.opaque;
        Plan::new(facts.clone(), *fingerprint, record.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn plans() -> Plans {
        let statements = crate::config::Statements {
            max: 100,
            slow_threshold: std::time::Duration::MAX,
            slow_log: crate::config::SlowLog::Off,
            slow_log_parameters: false,
            capture_plans: false,
        };
        Plans::new("db".into(), Arc::new(Stats::new(&statements, 1, std::time::Instant::now()).unwrap()))
    }

    #[test]
    fn the_same_text_is_worked_out_once() {
        let plans = plans();
        assert!(Arc::ptr_eq(&plans.plan(b"select 1"), &plans.plan(b"select 1")));
    }

    #[test]
    fn literals_share_facts_unless_the_decision_depends_on_them() {
        let plans = plans();
        let (a, b) = (plans.plan(b"select 1 from t"), plans.plan(b"SELECT  2 from t"));
        assert_eq!(a.fingerprint, b.fingerprint);
        assert!(Arc::ptr_eq(&a.facts, &b.facts) && Arc::ptr_eq(&a.record, &b.record));
        let (a, b) = (plans.plan(b"set x = 1"), plans.plan(b"set x = 2"));
        assert_ne!(a.facts, b.facts);
    }

    #[test]
    fn hints_are_not_lost_behind_a_shared_fingerprint() {
        let plans = plans();
        let plain = plans.plan(b"select 1 from t");
        let hinted = plans.plan(b"/* pgweir: primary */ select 1 from t");
        assert_ne!(plain.facts.hints, hinted.facts.hints);
        assert_eq!(plans.plan(b"select 3 from t").facts.hints, plain.facts.hints);
    }

    #[test]
    fn what_is_not_utf8_goes_to_the_primary() {
        assert_eq!(plans().plan(b"select '\xff'").facts.primary, Some(Reason::Unparsable));
    }
}
