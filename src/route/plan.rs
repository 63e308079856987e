//! What is known of each statement text, worked out once: facts, fingerprint, statistics record.
//!
//! Looked up by text first where texts come again, compared with the templates of late, then looked up by template and by
//! fingerprint; parsed last. A text is kept from the second time on: most that have literals in them never come again.

use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use quick_cache::Equivalent;
use quick_cache::sync::Cache;

use crate::catalog::judge::{self, Verdict};
use crate::catalog::path::{Path, Scope};
use crate::catalog::sources::{self, Sources, Targets};
use crate::catalog::{Catalog, Table};
use crate::route::alike::Alike;
use crate::route::reuse::Reuse;
use crate::route::sighted::Sighted;
use crate::route::text::Text;
use crate::sql::fingerprint::{self, Fingerprinted};
use crate::sql::{Effect, Facts, Fingerprint, Reason, classify, template};
use crate::stats::statements::Statement;
use crate::stats::{Stats, bounded_text};

/// Plans kept by text and by fingerprint; the least used go first.
const KEPT: usize = 10_000;

/// Slots for the texts that have come once: 16 KiB.
const SIGHTED: usize = 1 << 14;

/// Of the texts that differ in constants alone, one in so many is noted: there are many that never come again, and each
/// note is likely to miss the processor's cache.
const NOTED: u8 = 8;

/// Of the texts of a statement for which there was no room among the records, one in so many asks for one again, while all are
/// taken: to look for one that can be given up costs as much as all the rest of a plan.
const ASKED: u8 = 64;

/// Texts longer than this are classified each time rather than kept.
const MAX_KEPT_TEXT: usize = 16 * 1024;

/// The fingerprint of all texts that are not looked at, and what stands for them.
const OPAQUE: Fingerprint = Fingerprint(0);
const UNREADABLE: &str = "(not readable as text)";

/// All that routing and statistics need to know of one text.
#[derive(Debug)]
pub struct Plan {
    known: Arc<Known>,
    /// As the client sent it, literals and all; of one that is too long to keep, the part that a log shows.
    pub text: Text,
    /// W3C trace context, from a comment.
    pub traceparent: Option<Box<str>>,
}

/// What texts of one fingerprint have in common.
#[derive(Debug)]
pub struct Known {
    pub facts: Arc<Facts>,
    pub fingerprint: Fingerprint,
    pub record: Arc<Statement>,
    /// Of any of them.
    learned: Arc<Learned>,
}

impl Known {
    /// Another that learns together with this one.
    fn share(&self) -> Known {
        let Known { facts, fingerprint, record, learned } = self;
        Known { facts: facts.clone(), fingerprint: *fingerprint, record: record.clone(), learned: learned.clone() }
    }
}

impl Deref for Plan {
    type Target = Known;

    fn deref(&self) -> &Known {
        &self.known
    }
}

/// What has been found out beyond the text; shared by the texts that share the facts.
#[derive(Debug, Default)]
struct Learned {
    /// The snapshot whose promise a standby has refuted; 0: none, [`FOREVER`]: that of the text alone.
    refuted: AtomicU64,
    /// Blocks that begin with it have needed the primary: by which snapshot, and the reason's place in the list and one.
    blocked: AtomicU64,
    /// The last verdicts, each with the scope that it holds in.
    verdicts: [AtomicU64; SCOPES],
    /// Texts without a record of their own; it wraps.
    shared: AtomicU8,
    sources: Latest<Sources>,
    /// Of [`Plan::targets`].
    targets: Latest<Targets>,
    reuse: Reuse,
}

/// The last answer to a question of the catalog, with the scope that it holds in.
#[derive(Debug)]
struct Latest<T>(ArcSwapOption<(u64, T)>);

impl<T> Default for Latest<T> {
    fn default() -> Latest<T> {
        Latest(ArcSwapOption::empty())
    }
}

impl<T: Clone> Latest<T> {
    fn get(&self, scope: &Scope, find: impl FnOnce(&Catalog, &Path) -> T) -> T {
        if let Some(known) = self.0.load().as_ref().filter(|known| known.0 == scope.id) {
            return known.1.clone();
        }
        let found = find(&scope.catalog, &scope.path);
        self.0.store(Some(Arc::new((scope.id, found.clone()))));
        found
    }
}

const FOREVER: u64 = u64::MAX;

/// Verdicts kept for each plan.
const SCOPES: usize = 4;

impl Plan {
    /// The same statement with what one Bind of it makes known.
    pub fn with_facts(&self, facts: Facts) -> Plan {
        Plan {
            known: Arc::new(Known { facts: Arc::new(facts), ..self.known.share() }),
            text: self.text.clone(),
            traceparent: self.traceparent.clone(),
        }
    }

    /// The statement as a log shows it without its literals; also where the record is the shared one.
    pub fn normalized(&self) -> String {
        match self.record.fingerprint {
            // A literal that is cut off would not be seen for one.
            None if self.text.is_whole() && self.fingerprint != OPAQUE => fingerprint::normalize(&self.text),
            _ => self.record.text.clone(),
        }
    }

    /// Where it may run, and whether it may change its session out of sight. Without a scope nothing is known of what
    /// its names mean.
    pub fn verdict(&self, scope: Option<&Scope>) -> Verdict {
        let facts = &*self.facts;
        let is_unknown = || facts.effects.contains(&Effect::Unknown);
        if !facts.is_open() {
            return Verdict { primary: facts.primary, opaque: is_unknown() };
        }
        if self.is_refuted(scope) {
            return Verdict { primary: Some(Reason::SideEffect), opaque: true };
        }
        match scope {
            Some(scope) => self.learned.verdict(scope, facts),
            None => Verdict { primary: without_catalog(facts), opaque: is_unknown() },
        }
    }

    /// What the result of a read follows from. `None`: nothing is known of it.
    pub fn sources(&self, scope: Option<&Scope>) -> Option<Sources> {
        let scope = scope.filter(|scope| scope.id != 0 && self.verdict(Some(scope)).primary.is_none())?;
        Some(self.learned.sources.get(scope, |catalog, path| sources::sources(catalog, path, &self.facts)))
    }

    /// Of the statement's results in the cache, whatever its literals.
    pub fn reuse(&self) -> &Reuse {
        &self.learned.reuse
    }

    /// Its results are hardly ever asked for again, and no hint says that they will be.
    pub fn is_rare(&self) -> bool {
        self.facts.hints.cache_ttl_ms.is_none() && self.learned.reuse.is_rare()
    }

    /// All tables whose rows it may read. `None`: there may be others.
    pub fn tables(&self, scope: Option<&Scope>) -> Option<Arc<[Table]>> {
        self.sources(scope)?.tables()
    }

    /// What it says it writes, as far as that is known.
    pub fn targets(&self, scope: Option<&Scope>) -> Option<Targets> {
        let scope = scope.filter(|scope| scope.id != 0 && !self.facts.written.is_empty())?;
        Some(self.learned.targets.get(scope, |catalog, path| sources::targets(catalog, path, &self.facts)))
    }

    /// A standby has found that it writes, by these definitions.
    fn is_refuted(&self, scope: Option<&Scope>) -> bool {
        let refuted = self.learned.refuted.load(Ordering::Relaxed);
        refuted != 0 && (refuted == FOREVER || scope.is_none_or(|scope| scope.catalog.generation == refuted))
    }

    /// What its names alone ask for, whatever else its text says.
    pub(super) fn names_ask(&self, scope: Option<&Scope>) -> Option<Reason> {
        match scope {
            Some(scope) => judge::judge(&scope.catalog, &scope.path, &self.facts).primary,
            None => names_objects(&self.facts).then_some(Reason::Catalog),
        }
    }

    /// A READ ONLY block that began with it on a replica has come to what needs the primary: those that begin with it
    /// run there from now on, or, where the `catalog` has said so, until definitions change.
    pub fn note_blocked(&self, catalog: Option<&Scope>, reason: Reason) {
        let blocked = (generation(catalog) << 8) | (reason as u64 + 1);
        self.learned.blocked.store(blocked, Ordering::Relaxed);
    }

    /// The catalog has a say in where it runs.
    pub fn asks_catalog(&self) -> bool {
        self.facts.is_open()
    }

    /// Why READ ONLY blocks that begin with it run on the primary, as far as it is known from earlier ones.
    pub fn blocked(&self, scope: Option<&Scope>) -> Option<Reason> {
        let blocked = self.learned.blocked.load(Ordering::Relaxed);
        let holds = blocked != 0 && (blocked >> 8 == NO_GENERATION || blocked >> 8 == generation(scope));
        decoded(blocked as u8).primary.filter(|_| holds)
    }

    /// A standby has refused it: it runs on the primary until definitions change.
    fn refute(&self, scope: Option<&Scope>) {
        let refuted = scope.map_or(FOREVER, |scope| scope.catalog.generation);
        self.learned.refuted.store(refuted, Ordering::Relaxed);
    }
}

impl Learned {
    /// For a record where there was no room for one: most likely there is still none.
    fn is_to_ask(&self) -> bool {
        // That two workers at once count as one does no harm.
        let shared = self.shared.load(Ordering::Relaxed);
        self.shared.store(shared.wrapping_add(1), Ordering::Relaxed);
        shared.is_multiple_of(ASKED)
    }

    /// Servers have taught it something.
    fn knows_more(&self) -> bool {
        self.refuted.load(Ordering::Relaxed) != 0 || self.blocked.load(Ordering::Relaxed) != 0
    }

    fn verdict(&self, scope: &Scope, facts: &Facts) -> Verdict {
        if scope.id == 0 {
            return judge::judge(&scope.catalog, &scope.path, facts);
        }
        let slot = &self.verdicts[scope.id as usize % SCOPES];
        let known = slot.load(Ordering::Relaxed);
        if known >> 8 == scope.id {
            return decoded(known as u8);
        }
        let verdict = judge::judge(&scope.catalog, &scope.path, facts);
        slot.store((scope.id << 8) | u64::from(encoded(verdict)), Ordering::Relaxed);
        verdict
    }
}

const OPAQUE_BIT: u8 = 0x80;

/// 0 for none, else the reason's place in the list and one.
fn encoded(verdict: Verdict) -> u8 {
    let reason = verdict.primary.map_or(0, |reason| reason as u8 + 1);
    reason | if verdict.opaque { OPAQUE_BIT } else { 0 }
}

fn decoded(code: u8) -> Verdict {
    let at = usize::from(code & !OPAQUE_BIT);
    let primary = at.checked_sub(1).and_then(|at| Reason::ALL.get(at)).copied();
    Verdict { primary, opaque: code & OPAQUE_BIT != 0 }
}

/// Without a snapshot, in the bits that there are for one: what was learned so holds for ever.
const NO_GENERATION: u64 = u64::MAX >> 8;

fn generation(scope: Option<&Scope>) -> u64 {
    scope.map_or(NO_GENERATION, |scope| scope.catalog.generation & NO_GENERATION)
}

/// Why a statement that the text leaves to the catalog runs on the primary while there is none.
pub(super) fn without_catalog(facts: &Facts) -> Option<Reason> {
    facts.primary.or_else(|| names_objects(facts).then_some(Reason::Catalog))
}

/// It names something that users can make. What it may mean otherwise, by operators alone, waits for a snapshot.
fn names_objects(facts: &Facts) -> bool {
    !(facts.functions.is_empty()
        && facts.relations.is_empty()
        && facts.attributes.is_empty()
        && facts.types.is_empty()
        && facts.operators.is_empty())
}

/// A text as it came, to look up what is the same as it.
struct Unread<'a>(&'a [u8]);

impl Hash for Unread<'_> {
    /// As of a [`Text`].
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.0);
    }
}

impl Equivalent<Text> for Unread<'_> {
    fn equivalent(&self, key: &Text) -> bool {
        key.as_bytes() == self.0
    }
}

/// The plans of one database.
#[derive(Debug)]
pub struct Plans {
    database: Arc<str>,
    stats: Arc<Stats>,
    by_text: Cache<Text, Arc<Plan>>,
    sighted: Sighted,
    alike: Alike<Arc<Known>>,
    by_template: Cache<Arc<[u8]>, Arc<Known>>,
    by_fingerprint: Cache<Fingerprint, Arc<Known>>,
    /// For texts that cannot be read: primary, and the session's state unknown. Made at first use, as it takes a
    /// record.
    opaque: OnceLock<Arc<Plan>>,
}

impl Plans {
    pub fn new(database: Arc<str>, stats: Arc<Stats>) -> Plans {
        Plans {
            database,
            stats,
            by_text: Cache::new(KEPT),
            sighted: Sighted::new(SIGHTED),
            alike: Alike::default(),
            by_template: Cache::new(KEPT),
            by_fingerprint: Cache::new(KEPT),
            opaque: OnceLock::new(),
        }
    }

    /// The plan of a statement's text as the client sent it.
    pub fn plan(&self, text: &[u8]) -> Arc<Plan> {
        // The lookup of a text that is not there costs as much as all else.
        let once = self.alike.come_once(text);
        if !once && let Some(plan) = self.by_text.get(&Unread(text)) {
            return plan;
        }
        let Ok(text) = std::str::from_utf8(text) else { return self.opaque() };
        let alike = self.alike.find(text.as_bytes());
        let noted = alike.as_ref().map_or(text.len() <= MAX_KEPT_TEXT, |(_, count)| count % NOTED == 0);
        // What is not to be noted now is either found by its template or too long to be kept.
        if once
            && noted
            && let Some(plan) = self.by_text.get(&Unread(text.as_bytes()))
        {
            self.alike.note_once(text.as_bytes(), false);
            return plan;
        }
        let plan = Arc::new(match alike {
            Some((known, _)) => self.of(self.with_record(known, text), text, None),
            None => self.work_out(text),
        });
        if noted {
            let again = self.sighted.again(text);
            if again {
                self.by_text.insert(plan.text.clone(), plan.clone());
            }
            self.alike.note_once(text.as_bytes(), !again);
        }
        plan
    }

    /// Texts whose plan is kept.
    pub fn kept(&self) -> usize {
        self.by_text.len()
    }

    /// Lets go of the records, so that those of statements that come no more can be given up; who comes again finds its own
    /// or takes a new one. What was found out of statements stays.
    pub fn release_records(&self) {
        let shared = self.stats.statements.other();
        let released = |known: Arc<Known>| Arc::new(Known { record: shared.clone(), ..known.share() });
        self.by_text.retain(|_, plan| plan.learned.knows_more());
        self.alike.clear();
        for (fingerprint, known) in self.by_fingerprint.iter() {
            self.by_fingerprint.insert(fingerprint, released(known));
        }
        // Filled anew by fingerprint.
        self.by_template.clear();
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
            let known = Known { fingerprint: OPAQUE, facts: Arc::new(facts), record, learned: Arc::default() };
            Arc::new(Plan { known: Arc::new(known), text: UNREADABLE.into(), traceparent: None })
        };
        self.opaque.get_or_init(make).clone()
    }

    /// A standby has refused the statement: it runs on the primary until definitions change, whatever its literals. Where
    /// these decide, its text alone stands for it, and is kept at once.
    pub fn note_refusal(&self, plan: &Plan, scope: Option<&Scope>) {
        plan.refute(scope);
        if plan.facts.by_literal && plan.text.is_whole() {
            // Not `plan` itself: it may have the facts of one Bind.
            let kept = self.by_text.get(&plan.text).unwrap_or_else(|| Arc::new(self.work_out(&plan.text)));
            kept.refute(scope);
            self.by_text.insert(kept.text.clone(), kept);
        }
    }

    fn work_out(&self, text: &str) -> Plan {
        let (known, comments) = self.find_out(text);
        let traceparent = comments.then(|| fingerprint::traceparent(text).map(Box::from)).flatten();
        self.of(known, text, traceparent)
    }

    /// What is known by template or fingerprint, with its own record in the place of the shared one where there is one by now,
    /// and so from then on.
    fn with_record(&self, known: Arc<Known>, text: &str) -> Arc<Known> {
        let asks = || self.stats.statements.has_room() || known.learned.is_to_ask();
        if known.record.fingerprint.is_some() || !asks() {
            return known;
        }
        let record = self.record(known.fingerprint, text);
        if record.fingerprint.is_none() {
            return known;
        }
        let known = Arc::new(Known { record, ..known.share() });
        let mut buffer = [0; template::LONGEST];
        if let Some(template) = template::template(text.as_bytes(), &mut buffer) {
            self.by_template.insert(template.into(), known.clone());
        }
        self.by_fingerprint.insert(known.fingerprint, known.clone());
        self.alike.forget(text.as_bytes());
        known
    }

    fn of(&self, known: Arc<Known>, text: &str, traceparent: Option<Box<str>>) -> Plan {
        let whole = text.len() <= MAX_KEPT_TEXT;
        let text = if whole { text.into() } else { Text::Cut(bounded_text(text).into()) };
        Plan { known, text, traceparent }
    }

    /// What is known by the text's template, or by its fingerprint, and whether there may be comments in it.
    fn find_out(&self, text: &str) -> (Arc<Known>, bool) {
        let mut buffer = [0; template::LONGEST];
        let Some(template) = template::template(text.as_bytes(), &mut buffer) else { return self.known(text, None) };
        match self.by_template.get(template) {
            Some(known) => {
                let known = self.with_record(known, text);
                self.alike.note(template, &known);
                (known, false)
            }
            None => self.known(text, Some(template)),
        }
    }

    /// What is known by the text's fingerprint, and whether there are comments in it.
    fn known(&self, text: &str, template: Option<&[u8]>) -> (Arc<Known>, bool) {
        let Fingerprinted { fingerprint, by_literal, comments } = fingerprint::fingerprint(text);
        let known = if by_literal { None } else { self.by_fingerprint.get(&fingerprint) };
        let known = known.map(|known| self.with_record(known, text));
        if let (Some(known), Some(template)) = (&known, template) {
            self.by_template.insert(template.into(), known.clone());
        }
        (known.unwrap_or_else(|| self.classify(text, fingerprint, by_literal)), comments)
    }

    fn classify(&self, text: &str, fingerprint: Fingerprint, by_literal: bool) -> Arc<Known> {
        let (facts, record) = (Arc::new(classify::classify(text)), self.record(fingerprint, text));
        let known = Arc::new(Known { fingerprint, facts, record, learned: Arc::default() });
        if !known.facts.by_literal && !by_literal {
            self.by_fingerprint.insert(fingerprint, known.clone());
        }
        known
    }

    fn record(&self, fingerprint: Fingerprint, text: &str) -> Arc<Statement> {
        self.stats.statements.record(fingerprint, || fingerprint::normalize(text), &self.database)
    }
}

#[cfg(test)]
impl Plans {
    pub fn for_tests() -> Plans {
        tests::plans()
    }
}

#[cfg(test)]
impl Plan {
    pub fn unknown() -> Plan {
        let plan = tests::plans().opaque();
        Arc::into_inner(plan).expect("the plans are gone that held it")
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
    fn a_text_that_comes_again_is_worked_out_no_more() {
        let plans = plans();
        let [first, second, third] = [(); 3].map(|()| plans.plan(b"select 1"));
        assert!(!Arc::ptr_eq(&first, &second) && Arc::ptr_eq(&second, &third));
        // With others in between, too.
        (0..100).for_each(|n| drop(plans.plan(format!("select {n} from t").as_bytes())));
        assert!(Arc::ptr_eq(&third, &plans.plan(b"select 1")));
        assert_eq!(plans.by_text.len(), 1);
    }

    #[test]
    fn a_text_is_found_among_those_that_come_once() {
        let plans = plans();
        let mut literals = 1000..;
        let mut others = |count: usize| {
            let texts = literals.by_ref().take(count).map(|n| format!("select a, b, c from t where a = {n}"));
            texts.for_each(|text| drop(plans.plan(text.as_bytes())));
        };
        let text = b"select a, b, c from t where a = 1";
        let refused = b"select a, b, c from v where t > 'now'";
        others(100);
        assert!(plans.alike.come_once(text));
        plans.note_refusal(&plans.plan(refused), None);
        others(100);
        assert_eq!(plans.plan(refused).verdict(None).primary, Some(Reason::SideEffect));
        // One that comes often is kept, and as long as nothing else comes it costs one lookup.
        (0..=2 * NOTED).for_each(|_| drop(plans.plan(text)));
        let kept = plans.plan(text);
        assert!(!plans.alike.come_once(text) && Arc::ptr_eq(&kept, &plans.plan(text)));
        others(100);
        assert!((0..=NOTED).any(|_| Arc::ptr_eq(&kept, &plans.plan(text))));
    }

    #[test]
    fn a_plan_of_a_short_text_takes_the_allocator_no_long_way() {
        // The counts of the Arc, and malloc's own word.
        assert!(size_of::<Plan>() + 24 <= 128);
    }

    #[test]
    fn a_registry_that_is_full_has_room_for_others_after_a_reset() {
        let plans = plans();
        let statements = &plans.stats.statements;
        statements.set_max(2);
        let named = |text: &str| plans.plan(text.as_bytes()).record.fingerprint.is_some();
        let refused = "select n from v where t > 'now'";
        plans.plan(b"select 1");
        plans.note_refusal(&plans.plan(refused.as_bytes()), None);
        (0..2).for_each(|_| drop(plans.plan(b"select 1, 2")));
        assert!(named("select 1") && !named("select 1, 2"));
        plans.release_records();
        statements.reset();
        assert_eq!(statements.len(), 1, "what servers have said of a statement is not forgotten");
        assert!(plans.plan(refused.as_bytes()).verdict(None).primary == Some(Reason::SideEffect));
        assert!(named("select 1, 2") && !named("select 1"));
    }

    #[test]
    fn a_statement_without_a_record_of_its_own_asks_for_one_now_and_then() {
        let plans = plans();
        let statements = &plans.stats.statements;
        statements.set_max(2);
        let mut literals = 0..;
        let mut plan =
            || plans.plan(format!("select a, b, c from t where a = {}", literals.next().unwrap()).as_bytes());
        let held = [plans.plan(b"select 1, 2"), plans.plan(b"select 1, 2, 3")];
        (0..100).for_each(|_| drop(plan()));
        // What is known of it is the same for each: none has asked for itself.
        let first = plan();
        let as_first = |plan: Arc<Plan>| Arc::ptr_eq(&plan.known, &first.known);
        assert!(first.record.fingerprint.is_none() && (0..200).all(|_| as_first(plan())));
        // A place that is given up it has within as many texts, and by each way it is found from then on.
        drop(held);
        plans.by_fingerprint.remove(&fingerprint::fingerprint("select 1, 2").fingerprint);
        plans.by_template.clear();
        let waited = (0..300).take_while(|_| plan().record.fingerprint.is_none()).count();
        assert!((1..=usize::from(ASKED)).contains(&waited), "{waited}");
        let own = |plan: &Plan| plan.record.fingerprint == Some(plan.fingerprint);
        assert!((0..100).all(|_| own(&plan())));
        assert!(plans.by_fingerprint.get(&first.fingerprint).unwrap().record.fingerprint.is_some());
        // Where there is room it asks at once.
        let other = |literal: u32| plans.plan(format!("select a, b, d from t where a = {literal}").as_bytes());
        assert!((0..100).all(|literal| !own(&other(literal))));
        statements.set_max(3);
        assert!(own(&other(100)));
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
        plans.note_refusal(&plans.plan(b"select n from v where n = 1"), None);
        for text in ["select n from v where n = 1", "select n from v where n = 2"] {
            let verdict = plans.plan(text.as_bytes()).verdict(None);
            assert_eq!(verdict, Verdict { primary: Some(Reason::SideEffect), opaque: true }, "{text}");
        }
        let other = plans.plan(b"select m from v where n = 1").verdict(None);
        assert_eq!(other, Verdict { primary: Some(Reason::Catalog), opaque: false });
    }

    #[test]
    fn what_a_standby_refused_for_its_literals_is_known_at_once() {
        let plans = plans();
        let refused = |text: &str| plans.plan(text.as_bytes()).verdict(None).primary == Some(Reason::SideEffect);
        let (now, then) = ("select n from v where t > 'now'", "select n from v where t > 'today'");
        let first = plans.plan(now.as_bytes());
        // Another client's, which is kept.
        let second = plans.plan(now.as_bytes());
        assert!(first.facts.by_literal && !Arc::ptr_eq(&first, &second));
        plans.note_refusal(&first, None);
        assert!(refused(now) && !refused(then));
        plans.note_refusal(&plans.plan(b"select m from v where t > 'now'"), None);
        assert!(refused("select m from v where t > 'now'"));
        let long = format!("select m from v where t > 'now' and s <> '{}'", "a".repeat(MAX_KEPT_TEXT));
        plans.note_refusal(&plans.plan(long.as_bytes()), None);
        assert_eq!(plans.by_text.len(), 2);
    }

    #[test]
    fn without_a_catalog_only_what_names_nothing_is_a_read() {
        let plans = plans();
        let primary = |sql: &str| plans.plan(sql.as_bytes()).verdict(None).primary;
        assert_eq!(primary("select 1"), None);
        for sql in ["select now()", "select 1 from t", "select x.f from (values (1)) x", "table t"] {
            assert_eq!(primary(sql), Some(Reason::Catalog), "{sql}");
        }
        assert_eq!(primary("select f()"), Some(Reason::UnknownFunction));
        assert_eq!(primary("insert into t values (1)"), Some(Reason::Write));
    }

    #[test]
    fn a_verdict_holds_in_its_scope_alone() {
        use crate::catalog::build::Parts;
        use crate::catalog::path::Setting;
        let plan = plans().plan(b"select 1 from gone");
        let scope = |generation| {
            let catalog = Arc::new(Parts::default().finish(generation, 0));
            catalog.scope(&Setting::Flat("public".into()), "a", "a")
        };
        let of_reads = Verdict { primary: None, opaque: false };
        let of_gone = Verdict { primary: Some(Reason::Catalog), opaque: false };
        let first = scope(1);
        assert_eq!(plan.verdict(Some(&first)), of_gone);
        // kept: what is in the slot counts
        plan.learned.verdicts[first.id as usize % SCOPES].store(first.id << 8, Ordering::Relaxed);
        assert_eq!(plan.verdict(Some(&first)), of_reads);
        assert_eq!(plan.verdict(Some(&scope(2))), of_gone);
        // so does a standby's refusal
        plan.refute(Some(&first));
        assert_eq!(plan.verdict(Some(&first)), Verdict { primary: Some(Reason::SideEffect), opaque: true });
        assert_eq!(plan.verdict(Some(&scope(2))), of_gone);
    }

    #[test]
    fn verdicts_are_kept_whole() {
        for (at, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at, "ALL is in the order of the enum");
            for opaque in [false, true] {
                let verdict = Verdict { primary: Some(reason), opaque };
                assert_eq!(decoded(encoded(verdict)), verdict);
            }
        }
        assert_eq!(decoded(encoded(Verdict { primary: None, opaque: false })).primary, None);
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
