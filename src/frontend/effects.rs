//! What statements do to the session: noted when they are sent, taken over when they have succeeded.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::catalog::judge::Verdict;
use crate::frontend::session::{Leased, Session};
use crate::route::plan::Plan;
use crate::session::channels::Change;
use crate::session::datestyle;
use crate::session::parameters::{Settings, Value};
use crate::session::pins::Pin;
use crate::session::pipeline::Expect;
use crate::session::prepared::{Statement, UNKNOWN};
use crate::sql::settings::is_of_transaction;
use crate::sql::{Control, Effect, Facts, Reason, SetValue};

impl Session {
    /// Before a statement is sent: what holds even if it fails.
    pub fn note_plan(&mut self, plan: &Plan, leased: &mut Leased) {
        let facts = &plan.facts;
        let verdict = self.verdict(plan);
        self.note_sequences(facts, verdict, leased);
        if may_write(facts, verdict) {
            self.writing = true;
            self.note_targets(plan, verdict.opaque);
        }
        self.reading |= may_read(facts, verdict);
        self.opens_block |= !facts.control.is_empty();
        self.note_listen(facts, leased);
        leased.suspect |= verdict.opaque;
        leased.unsure |= verdict.opaque;
        // Held by the session from within a statement that then fails; or not, where it was only tried.
        if facts.effects.contains(&Effect::AdvisoryLock) {
            self.pins.insert(Pin::AdvisoryLock);
            leased.unsure = true;
        }
        if !self.pins.is_empty() {
            leased.unsure |= may_end_pin(facts);
        }
        let defines = may_define(facts);
        self.defining |= defines;
        let resets = !self.parameters.base().is_empty() && facts.effects.iter().any(is_reset);
        self.settling |= resets || facts.effects.iter().any(is_of_names);
        let (client, sent) = (self.client.id, &mut self.sent_apart);
        self.environment.note(facts, defines || verdict.opaque, || {
            *sent += 1;
            format!("{client}:{sent}")
        });
    }

    /// A statement has succeeded, with this command tag.
    pub fn apply(&mut self, plan: &Arc<Plan>, tag: &[u8]) {
        let facts = &plan.facts;
        if !facts.is_felt() {
            return;
        }
        facts.control.iter().for_each(|control| self.apply_control(control, tag));
        if !facts.effects.is_empty() && self.status == b'I' {
            // Until the Sync the implicit transaction may still fail, and undo it.
            self.parameters.begin();
        }
        let Some(mut leased) = self.leased.take() else { return };
        facts.effects.iter().for_each(|effect| self.apply_effect(effect, &mut leased));
        self.leased = Some(leased);
        self.client.pins.store(self.pins.bits(), Ordering::Relaxed);
    }

    /// A string of several statements has ended. Which of them have counted, a failure or a COMMIT among them decides.
    pub fn apply_several(&mut self, plan: &Arc<Plan>) {
        let facts = &plan.facts;
        if let Some(leased) = self.leased.as_mut().filter(|_| self.failed || !facts.control.is_empty()) {
            let sets = facts.effects.iter().any(|effect| !matches!(effect, Effect::Execute(_)));
            leased.unsure |= sets;
            // The server is not asked for these.
            if facts.effects.iter().any(is_custom) {
                self.pins.insert(Pin::Set);
            }
        }
        if !self.failed {
            self.apply(plan, b"");
        }
    }

    fn apply_control(&mut self, control: &Control, tag: &[u8]) {
        match control {
            Control::Begin { .. } => self.parameters.begin(),
            // That of a failed transaction says ROLLBACK.
            Control::Commit { chain } if tag != b"ROLLBACK" => {
                self.parameters.commit();
                self.channels.commit();
                if *chain {
                    self.parameters.begin();
                }
            }
            Control::Commit { chain } | Control::Rollback { chain } => {
                self.rolled_back();
                if *chain {
                    self.parameters.begin();
                }
            }
            Control::Savepoint(name) => {
                self.parameters.savepoint(name);
                self.channels.savepoint(name);
            }
            Control::RollbackTo(name) => {
                // The first may be among what is undone.
                self.makes_temporary = false;
                self.parameters.rollback_to(name);
                self.channels.rollback_to(name);
                self.settle_actual();
            }
            Control::Release(name) => {
                self.parameters.release(name);
                self.channels.release(name);
            }
            Control::PrepareTransaction => self.parameters.commit(),
            Control::SetTransaction { .. } | Control::FinishPrepared => {}
        }
    }

    /// Settings are as they were at BEGIN, here and on the server.
    pub fn rolled_back(&mut self) {
        self.makes_temporary = false;
        self.channels.rollback();
        self.parameters.rollback();
        self.settle_actual();
    }

    fn settle_actual(&mut self) {
        if let Some(leased) = &mut self.leased {
            leased.lease.settings = self.parameters.current().clone();
        }
    }

    fn apply_effect(&mut self, effect: &Effect, leased: &mut Leased) {
        match effect {
            Effect::Set { local: true, .. } | Effect::Role { local: true, .. } => {}
            // The Bind did not tell: it may have been a custom parameter.
            Effect::Configure { local, .. } if !local.is_true() => {
                self.pins.insert(Pin::Set);
                leased.unsure = true;
            }
            Effect::Set { name, value, .. } => self.apply_set(name, value, leased),
            Effect::Role { session_authorization, value, .. } => {
                let name = if *session_authorization { "session_authorization" } else { "role" };
                if *session_authorization {
                    self.parameters.reset("role");
                    leased.lease.settings.remove("role");
                }
                let value = value.clone().map_or(SetValue::Default, SetValue::Sql);
                self.apply_set(name, &value, leased);
            }
            Effect::ResetAll => {
                let identity = keep_identity(&leased.lease.settings);
                leased.lease.settings = identity;
                self.parameters.reset_all();
            }
            Effect::DiscardAll => {
                self.apply_names(effect, leased);
                self.pins.clear();
                self.change_channels(Change::UnlistenAll);
                self.parameters.discard_all();
                leased.lease.settings = Settings::default();
                leased.suspect = false;
            }
            Effect::Prepare(_) => {
                self.pins.insert(Pin::Prepare);
                self.apply_names(effect, leased);
            }
            Effect::Deallocate(_) => self.apply_names(effect, leased),
            effect => self.apply_pin(effect, leased),
        }
    }

    /// State that cannot be said again elsewhere binds the session to its connection until its cause ends.
    fn apply_pin(&mut self, effect: &Effect, leased: &mut Leased) {
        match effect {
            Effect::SessionCharacteristics => leased.unsure = true,
            Effect::DiscardTemp => self.pins.remove(Pin::TemporaryTable),
            Effect::DiscardSequences => self.pins.remove(Pin::Sequence),
            Effect::Listen(name) => self.change_channels(Change::Listen(name.as_str().into())),
            Effect::Unlisten(Some(name)) => self.change_channels(Change::Unlisten(name.as_str().into())),
            Effect::Unlisten(None) => self.change_channels(Change::UnlistenAll),
            Effect::Declare { hold: true, .. } => {
                self.pins.insert(Pin::HoldCursor);
                leased.unsure = true;
            }
            Effect::Close(None) => self.pins.remove(Pin::HoldCursor),
            // Gone again with its transaction, perhaps.
            Effect::Temporary => {
                self.pins.insert(Pin::TemporaryTable);
                leased.unsure = true;
                // A session's first temporary object may hide another, so its server plans all statements anew; not so
                // where other clients had some before. There they are prepared again.
                if !self.had_temporary && !self.makes_temporary {
                    leased.lease.held.doubt_all();
                }
                self.makes_temporary = true;
            }
            Effect::AdvisoryLock => self.pins.insert(Pin::AdvisoryLock),
            Effect::AdvisoryUnlockAll => self.pins.remove(Pin::AdvisoryLock),
            Effect::Load => self.pins.insert(Pin::Load),
            _ => {}
        }
    }

    fn apply_set(&mut self, name: &str, value: &SetValue, leased: &mut Leased) {
        match value {
            _ if is_of_transaction(name) => {}
            SetValue::Sql(text) => self.apply_value(name, Value::Sql(text.clone()), leased),
            SetValue::Flat(text) => self.apply_value(name, Value::Flat(text.clone()), leased),
            SetValue::Default => {
                self.parameters.reset(name);
                leased.lease.settings.remove(name);
            }
            // Of custom ones, and of one without a name that may be one, the server does not tell.
            SetValue::Opaque if name.contains('.') || name.is_empty() => self.pins.insert(Pin::Set),
            SetValue::Opaque => leased.unsure = true,
        }
    }

    fn apply_value(&mut self, name: &str, mut value: Value, leased: &mut Leased) {
        if name.eq_ignore_ascii_case(datestyle::NAME) {
            let all = datestyle::after(value.clone(), leased.lease.settings.value(datestyle::NAME));
            leased.unsure |= all.is_none();
            value = all.unwrap_or(value);
        }
        // Found by today's search_path; the server knows by which name it is found by any.
        leased.unsure |= name.eq_ignore_ascii_case("default_text_search_config");
        leased.lease.settings.set(name, value.clone());
        self.parameters.set(name, value);
    }

    /// Takes back what dropped messages had changed, last first.
    pub fn undo(&mut self, dropped: Vec<Expect>) {
        if let Some(leased) = self.leased.as_mut().filter(|_| !dropped.is_empty()) {
            leased.named.clear();
        }
        for expect in dropped {
            let undo = match expect {
                Expect::Parse { statement, undo, .. } => {
                    self.doubt(statement);
                    undo.into_iter().collect()
                }
                Expect::Close { evicted: Some(statement), .. } | Expect::Description { statement, .. } => {
                    self.doubt(Some(statement));
                    Vec::new()
                }
                Expect::ParsedHere { undo } | Expect::ClosedHere { undo } | Expect::Close { undo, .. } => {
                    undo.into_iter().collect()
                }
                Expect::Execute { undo, .. } => undo,
                // It would have ended the server's unnamed statement.
                Expect::Query { .. } => {
                    self.doubt(None);
                    Vec::new()
                }
                _ => Vec::new(),
            };
            for undo in undo {
                if let Some(undo) = self.pipeline.take_back(undo) {
                    self.restore_name(undo);
                }
            }
        }
    }

    /// Whether a Parse or Close had its effect on the server is not known. One of no statement may have been of the
    /// unnamed one.
    fn doubt(&mut self, statement: Option<Arc<Statement>>) {
        let Some(leased) = &mut self.leased else { return };
        match statement {
            Some(statement) => leased.lease.held.doubt(statement),
            None => leased.lease.unnamed = Some(UNKNOWN),
        }
    }
}

fn keep_identity(settings: &Settings) -> Settings {
    let mut kept = Settings::default();
    for (name, value) in settings.iter().filter(|(name, _)| matches!(*name, "role" | "session_authorization")) {
        kept.set(name, value.clone());
    }
    kept
}

/// A parameter of which the server does not tell in pg_settings.
fn is_custom(effect: &Effect) -> bool {
    matches!(effect, Effect::Set { name, local: false, .. } if name.contains('.'))
}

/// What pins the session may be gone afterwards.
fn may_end_pin(facts: &Facts) -> bool {
    let ends = |effect: &Effect| {
        matches!(effect, Effect::Deallocate(_) | Effect::Close(_) | Effect::Unlisten(_) | Effect::DiscardTemp)
    };
    matches!(facts.primary, Some(Reason::Ddl | Reason::Lock)) || facts.effects.iter().any(ends)
}

/// It may change what other texts mean, for all clients.
fn may_define(facts: &Facts) -> bool {
    let temporary = facts.effects.contains(&Effect::Temporary);
    match facts.primary {
        Some(Reason::Ddl | Reason::Into) => !temporary || facts.statements > 1,
        Some(Reason::Utility | Reason::Unparsable) => facts.effects.contains(&Effect::Unknown),
        None => false,
        // Behind the first of several statements another may stand, which leaves the relations inexact.
        Some(_) => facts.statements > 1 && !facts.relations_exact,
    }
}

/// It makes or ends statements by SQL.
fn is_of_names(effect: &Effect) -> bool {
    matches!(effect, Effect::Prepare(_) | Effect::Deallocate(_) | Effect::DiscardAll)
}

/// Back to the values of startup, which pgweir says again behind it.
fn is_reset(effect: &Effect) -> bool {
    matches!(effect, Effect::Set { value: SetValue::Default, .. } | Effect::ResetAll | Effect::DiscardAll)
}

/// It may have looked into the database.
fn may_read(facts: &Facts, verdict: Verdict) -> bool {
    // What names nothing calls nothing that could look.
    let relations = !facts.relations.is_empty() || !facts.relations_exact;
    let calls = !(facts.functions.is_empty() && facts.attributes.is_empty() && facts.operators.is_empty());
    let names = relations || calls || !facts.types.is_empty();
    match verdict.primary {
        _ if facts.statements > 1 => true,
        None => names,
        Some(Reason::Transaction | Reason::Session) => verdict.opaque,
        Some(_) => true,
    }
}

/// It may leave a trace in the database that the session then expects to read.
fn may_write(facts: &Facts, verdict: Verdict) -> bool {
    let executes = verdict.opaque || facts.effects.iter().any(|e| matches!(e, Effect::Execute(_)));
    // COMMIT PREPARED shows what another session wrote.
    let shows = facts.control.contains(&Control::FinishPrepared);
    match verdict.primary {
        // The reason of the first of several statements says nothing of the others.
        None if !executes => false,
        _ if facts.statements > 1 => true,
        None | Some(Reason::Transaction | Reason::Session | Reason::NodeLocal | Reason::Foreign | Reason::Unlogged) => {
            executes || shows
        }
        Some(_) => true,
    }
}
