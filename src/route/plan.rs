//! What is known of each statement text, worked out once: facts, fingerprint, statistics record.
//!
//! Looked up by text first, by fingerprint second; parsed last.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use quick_cache::sync::Cache;

use crate::sql::fingerprint::{self, Fingerprinted};
use crate::sql::{Effect, Facts, Fingerprint, Reason, classify};
use crate::stats::statements::Statement;
use crate::stats::{Stats, bounded_text};

/// Plans kept by text and by fingerprint; the least used go first.
const KEPT: usize = 10_000;

/// Texts longer than this are classified each time rather than kept.
const MAX_KEPT_TEXT: usize = 16 * 1024;

/// The fingerprint of all texts that are not looked at, and what stands for them.
const OPAQUE: Fingerprint = Fingerprint(0);
const UNREADABLE: &str = "(not readable as text)";

/// All that routing and statistics need to know of one text.
#[derive(Debug)]
pub struct Plan {
    pub facts: Arc<Facts>,
    pub fingerprint: Fingerprint,
    pub record: Arc<Statement>,
    /// As the client sent it, literals and all; of one that is too long to keep, the part that a log shows.
    pub text: Arc<str>,
    /// W3C trace context, from a comment.
    pub traceparent: Option<String>,
    /// A standby refused it, whatever its text promises; shared with the texts that share the facts.
    refused_by_standby: Arc<AtomicBool>,
}

impl Plan {
    fn new(facts: Arc<Facts>, fingerprint: Fingerprint, record: Arc<Statement>, text: Arc<str>) -> Plan {
        Plan { facts, fingerprint, record, text, traceparent: None, refused_by_standby: Arc::default() }
    }

    /// The same statement with what one Bind of it makes known.
    pub fn with_facts(&self, facts: Facts) -> Plan {
        Plan {
            facts: Arc::new(facts),
            fingerprint: self.fingerprint,
            record: self.record.clone(),
            text: self.text.clone(),
            traceparent: self.traceparent.clone(),
            refused_by_standby: self.refused_by_standby.clone(),
        }
    }

    /// The statement as a log shows it without its literals; also where the record is the shared one.
    pub fn normalized(&self) -> String {
        match self.record.fingerprint {
            // A literal that is cut off would not be seen for one.
            None if self.text.len() <= MAX_KEPT_TEXT && self.fingerprint != OPAQUE => {
                fingerprint::normalize(&self.text)
            }
            _ => self.record.text.clone(),
        }
    }

    /// Nothing but a plain read: any fresh enough node may answer.
    pub fn is_read(&self) -> bool {
        self.facts.primary.is_none()
    }

    /// Why it must run on the primary.
    pub fn primary(&self) -> Option<Reason> {
        self.facts.primary.or(self.is_refused().then_some(Reason::SideEffect))
    }

    /// A standby has found that it writes.
    pub fn is_refused(&self) -> bool {
        self.refused_by_standby.load(Ordering::Relaxed)
    }

    /// From now on it runs on the primary.
    pub fn note_refusal(&self) {
        self.refused_by_standby.store(true, Ordering::Relaxed);
    }
}

/// What texts of one fingerprint have in common: their facts, and whether a standby has refused one of them.
type Known = (Arc<Facts>, Arc<AtomicBool>);

/// The plans of one database.
#[derive(Debug)]
pub struct Plans {
    database: Arc<str>,
    stats: Arc<Stats>,
    by_text: Cache<Arc<str>, Arc<Plan>>,
    by_fingerprint: Cache<Fingerprint, Known>,
    /// For texts that cannot be read: primary, and the session's state unknown. Made at first use, as it takes a
    /// record.
    opaque: OnceLock<Arc<Plan>>,
}

impl Plans {
    pub fn new(database: Arc<str>, stats: Arc<Stats>) -> Plans {
        Plans { database, stats, by_text: Cache::new(KEPT), by_fingerprint: Cache::new(KEPT), opaque: OnceLock::new() }
    }

    /// The plan of a statement's text as the client sent it.
    pub fn plan(&self, text: &[u8]) -> Arc<Plan> {
        let Ok(text) = std::str::from_utf8(text) else { return self.opaque() };
        if let Some(plan) = self.by_text.get(text) {
            return plan;
        }
        let plan = Arc::new(self.work_out(text));
        if text.len() <= MAX_KEPT_TEXT {
            self.by_text.insert(plan.text.clone(), plan.clone());
        }
        plan
    }

    /// The plan of what is not looked at: too large to hold, or in an encoding that lexes otherwise.
    pub fn opaque(&self) -> Arc<Plan> {
        let make = || {
            let facts = Facts {
                statements: 1,
                primary: Some(Reason::Unparsable),
                effects: vec![Effect::Unknown],
                by_literal: true,
                ..Facts::default()
            };
            let record = self.stats.statements.record(OPAQUE, || UNREADABLE.to_owned(), &self.database);
            Arc::new(Plan::new(Arc::new(facts), OPAQUE, record, UNREADABLE.into()))
        };
        self.opaque.get_or_init(make).clone()
    }

    fn work_out(&self, text: &str) -> Plan {
        let Fingerprinted { fingerprint, by_literal } = fingerprint::fingerprint(text);
        let known = if by_literal { None } else { self.by_fingerprint.get(&fingerprint) };
        let (facts, refused_by_standby) = known.unwrap_or_else(|| {
            let known: Known = (Arc::new(classify::classify(text)), Arc::default());
            if !known.0.by_literal && !by_literal {
                self.by_fingerprint.insert(fingerprint, known.clone());
            }
            known
        });
        let record = self.stats.statements.record(fingerprint, || fingerprint::normalize(text), &self.database);
        let traceparent = fingerprint::traceparent(text).map(str::to_owned);
        let kept: Arc<str> = match text.len() <= MAX_KEPT_TEXT {
            true => text.into(),
            false => bounded_text(text).into(),
        };
        Plan { traceparent, refused_by_standby, ..Plan::new(facts, fingerprint, record, kept) }
    }
}

#[cfg(test)]
impl Plan {
    pub fn unknown() -> Plan {
        let plans = tests::plans();
        let Plan { facts, fingerprint, record, text, .. } = &*plans.opaque();
        Plan::new(facts.clone(), *fingerprint, record.clone(), text.clone())
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
    fn what_a_standby_refused_is_known_of_all_its_literals() {
        let plans = plans();
        plans.plan(b"select n from v where n = 1").note_refusal();
        for text in ["select n from v where n = 1", "select n from v where n = 2"] {
            assert_eq!(plans.plan(text.as_bytes()).primary(), Some(Reason::SideEffect), "{text}");
        }
        assert_eq!(plans.plan(b"select m from v where n = 1").primary(), None);
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
