//! What statements do to the session: noted when they are sent, taken over when they have succeeded.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::frontend::session::{Leased, Session};
use crate::route::plan::Plan;
use crate::session::channels::Change;
use crate::session::parameters::{Settings, Value};
use crate::session::pins::Pin;
use crate::session::pipeline::{Expect, Undo};
use crate::session::prepared::{Statement, UNKNOWN};
use crate::sql::{Control, Effect, Facts, Reason, SetValue};

impl Session {
    /// Before a statement is sent: what holds even if it fails.
    pub fn note_plan(&mut self, plan: &Plan, leased: &mut Leased) {
        let facts = &plan.facts;
        self.writing |= plan.is_refused() || may_write(facts);
        self.opens_block |= !facts.control.is_empty();
        self.note_listen(facts, leased);
        for effect in &facts.effects {
            match effect {
                Effect::Unknown => leased.suspect = true,
                // Held by the session from within a statement that then fails.
                Effect::AdvisoryLock => self.pins.insert(Pin::AdvisoryLock),
                _ => {}
            }
        }
    }

    /// A statement has succeeded, with this command tag.
    pub fn apply(&mut self, plan: &Arc<Plan>, tag: &[u8]) {
        let facts = &plan.facts;
        if facts.effects.is_empty() && facts.control.is_empty() {
            return;
        }
        if facts.statements > 1 && facts.effects.iter().any(is_setting) && !facts.control.is_empty() {
            // Which settings survive depends on where the COMMIT stands among them.
            self.pins.insert(Pin::Set);
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

    fn apply_control(&mut self, control: &Control, tag: &[u8]) {
        match control {
            Control::Begin { .. } => self.parameters.begin(),
            // A COMMIT of a failed transaction says ROLLBACK.
            Control::Commit { .. } if tag == b"ROLLBACK" => self.rolled_back(),
            Control::Commit { chain } => {
                self.parameters.commit();
                self.channels.commit();
                if *chain {
                    self.parameters.begin();
                }
            }
            Control::Rollback { chain } => {
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
        self.channels.rollback();
        self.parameters.rollback();
        self.settle_actual();
    }

    fn settle_actual(&mut self) {
        if let Some(leased) = &mut self.leased {
            leased.actual = self.parameters.current().clone();
        }
    }

    fn apply_effect(&mut self, effect: &Effect, leased: &mut Leased) {
        match effect {
            Effect::Set { local: true, .. } | Effect::Role { local: true, .. } => {}
            Effect::Set { name, value, .. } => self.apply_set(name, value, leased),
            Effect::Role { session_authorization, value, .. } => {
                let name = if *session_authorization { "session_authorization" } else { "role" };
                if *session_authorization {
                    self.parameters.reset("role");
                    leased.actual.remove("role");
                }
                let value = value.clone().map_or(SetValue::Default, SetValue::Sql);
                self.apply_set(name, &value, leased);
            }
            Effect::ResetAll => {
                let identity = keep_identity(&leased.actual);
                leased.actual = identity;
                self.parameters.reset_all();
            }
            Effect::DiscardAll => {
                self.names.clear();
                self.pins.clear();
                self.change_channels(Change::UnlistenAll);
                self.parameters.discard_all();
                leased.actual = Settings::default();
                leased.lease.held.clear();
                leased.lease.unnamed = None;
                leased.suspect = false;
            }
            Effect::Deallocate(None) => {
                self.names.clear();
                self.pins.remove(Pin::Prepare);
                leased.lease.held.clear();
            }
            effect => self.apply_pin(effect),
        }
    }

    /// State that cannot be said again elsewhere binds the session to its connection until its cause ends.
    fn apply_pin(&mut self, effect: &Effect) {
        match effect {
            Effect::SessionCharacteristics => self.pins.insert(Pin::Set),
            Effect::DiscardTemp => self.pins.remove(Pin::TemporaryTable),
            Effect::DiscardSequences => self.pins.remove(Pin::Sequence),
            Effect::Prepare(_) => self.pins.insert(Pin::Prepare),
            Effect::Listen(name) => self.change_channels(Change::Listen(name.as_str().into())),
            Effect::Unlisten(Some(name)) => self.change_channels(Change::Unlisten(name.as_str().into())),
            Effect::Unlisten(None) => self.change_channels(Change::UnlistenAll),
            Effect::Declare { hold: true, .. } => self.pins.insert(Pin::HoldCursor),
            Effect::Close(None) => self.pins.remove(Pin::HoldCursor),
            Effect::Temporary => self.pins.insert(Pin::TemporaryTable),
            Effect::AdvisoryLock => self.pins.insert(Pin::AdvisoryLock),
            Effect::AdvisoryUnlockAll => self.pins.remove(Pin::AdvisoryLock),
            Effect::Load => self.pins.insert(Pin::Load),
            _ => {}
        }
    }

    fn apply_set(&mut self, name: &str, value: &SetValue, leased: &mut Leased) {
        match value {
            SetValue::Sql(text) => {
                self.parameters.set(name, Value::Sql(text.clone()));
                leased.actual.set(name, Value::Sql(text.clone()));
            }
            SetValue::Default => {
                self.parameters.reset(name);
                leased.actual.remove(name);
            }
            SetValue::Opaque => self.pins.insert(Pin::Set),
        }
    }

    /// Takes back what dropped messages had changed, last first.
    pub fn undo(&mut self, dropped: Vec<Expect>) {
        for expect in dropped {
            let undo = match expect {
                Expect::Parse { statement, undo, .. } => {
                    self.doubt(statement);
                    undo
                }
                Expect::Close { evicted: Some(statement), .. } => {
                    self.doubt(Some(statement));
                    None
                }
                Expect::ParsedHere { undo } | Expect::ClosedHere { undo } => undo,
                // It would have ended the server's unnamed statement.
                Expect::Query { .. } => {
                    self.doubt(None);
                    None
                }
                _ => None,
            };
            if let Some(Undo { name, previous }) = undo.and_then(|undo| self.pipeline.take_back(undo)) {
                self.names.replace(&name, previous);
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

/// It changes settings for the session, if not rolled back.
fn is_setting(effect: &Effect) -> bool {
    match effect {
        Effect::Set { local, .. } | Effect::Role { local, .. } => !local,
        effect => matches!(effect, Effect::ResetAll | Effect::DiscardAll | Effect::SessionCharacteristics),
    }
}

fn keep_identity(settings: &Settings) -> Settings {
    let mut kept = Settings::default();
    for (name, value) in settings.iter().filter(|(name, _)| matches!(*name, "role" | "session_authorization")) {
        kept.set(name, value.clone());
    }
    kept
}

/// It may leave a trace in the database that the session then expects to read.
fn may_write(facts: &Facts) -> bool {
    let executes = facts.effects.iter().any(|e| matches!(e, Effect::Execute(_) | Effect::Unknown));
    // COMMIT PREPARED shows what another session wrote.
    let shows = facts.control.contains(&Control::FinishPrepared);
    match facts.primary {
        // The reason of the first of several statements says nothing of the others.
        _ if facts.statements > 1 => true,
        None | Some(Reason::Transaction | Reason::Session | Reason::NodeLocal) => executes || shows,
        Some(_) => true,
    }
}
