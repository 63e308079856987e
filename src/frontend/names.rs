//! One namespace for statements, whichever way they were made: a client may EXECUTE or DEALLOCATE by SQL what it has
//! prepared by the protocol, and the other way round.
//!
//! On servers a protocol-level statement goes by a name of pgweir's own. Where SQL speaks of it by the client's name, it
//! is prepared under that name as well, on the connection at hand, just ahead of the SQL.

use crate::frontend::session::{Leased, Session};
use crate::session::pipeline::{Expect, Undo};
use crate::sql::{Effect, Facts};
use crate::wire::tag::frontend;
use crate::wire::write;

impl Session {
    /// Makes the client's protocol-level statements known to the server by the names that this statement uses.
    pub fn name_for_sql(&mut self, facts: &Facts, leased: &mut Leased) {
        if self.names.is_empty() || self.status == b'E' || self.keeps_names() {
            return;
        }
        for effect in &facts.effects {
            match effect {
                Effect::Execute(name) => self.name_on_server(name.as_bytes(), true, leased),
                Effect::Deallocate(Some(name)) | Effect::Prepare(name) => {
                    self.name_on_server(name.as_bytes(), false, leased);
                }
                _ => {}
            }
        }
    }

    /// A text that runs by name is described as what the name stands for when it is parsed: it is prepared for this
    /// client alone, and ends with the connection's reset.
    pub fn name_for_parse(&mut self, facts: &Facts, leased: &mut Leased) {
        if runs_by_name(facts) && !self.keeps_names() {
            (leased.suspect, leased.prepared) = (true, true);
            self.name_for_sql(facts, leased);
        }
    }

    /// Prepares a protocol-level statement under the client's own name too; empty where it only matters that the name is
    /// taken. Its failure shows in the SQL that follows.
    pub fn name_on_server(&mut self, name: &[u8], whole: bool, leased: &mut Leased) {
        let Some(statement) = self.names.find(name).filter(|_| !name.is_empty()) else { return };
        if leased.named.iter().any(|known| **known == *name) {
            return;
        }
        // They end with DISCARD ALL when the connection changes hands.
        (leased.suspect, leased.prepared) = (true, true);
        let (text, types): (&[u8], &[u8]) =
            if whole { (&statement.text, statement.fixed_types()) } else { (b"", b"\0\0") };
        if whole {
            leased.named.push(name.into());
        }
        let out = &mut leased.lease.outbox;
        // It may be there: an error makes pgweir forget. A Close never fails.
        write::of_statement(out, frontend::CLOSE, name);
        write::parse(out, name, text, types);
        if self.pipeline.is_unsynced() {
            self.pipeline.push(Expect::Close { shown: false, evicted: None, undo: None });
            self.pipeline.push(Expect::Parse { statement: None, shown: false, undo: None, describes: None });
        } else {
            write::sync(out);
            self.pipeline.push(Expect::Aside);
        }
    }

    /// The client closes a name: the server, where it may know it too, closes it as well. Behind an error it is not
    /// known which names it has; a Close never fails.
    pub fn close_name(&mut self, name: &[u8], leased: &mut Leased) {
        if leased.prepared && !name.is_empty() {
            leased.named.retain(|known| **known != *name);
            write::of_statement(&mut leased.lease.outbox, frontend::CLOSE, name);
            self.pipeline.push(Expect::Close { shown: false, evicted: None, undo: None });
        }
    }

    /// The name stands for a statement of SQL's PREPARE, which only the server has.
    pub fn is_of_sql(&self, name: &[u8]) -> bool {
        self.sql_names.iter().any(|known| known.as_bytes() == name)
    }

    /// An Execute of DEALLOCATE or kin is sent: what follows it in its segment finds the names gone, and may make them
    /// anew.
    pub fn deallocate(&mut self, facts: &Facts, leased: &mut Leased) -> Vec<Undo> {
        if facts.effects.is_empty() {
            return Vec::new();
        }
        let mut gone: Vec<Box<[u8]>> = Vec::new();
        for effect in &facts.effects {
            match effect {
                Effect::Deallocate(Some(name)) => gone.push(name.as_bytes().into()),
                Effect::Deallocate(None) | Effect::DiscardAll => {
                    gone.extend(self.names.named().map(Box::from));
                    gone.extend(self.sql_names.iter().map(|name| name.as_bytes().into()));
                    leased.named.clear();
                    leased.lease.held.doubt_all();
                }
                _ => {}
            }
        }
        let take = |name: Box<[u8]>| {
            let of_sql = self.is_of_sql(&name);
            let previous = self.names.replace(&name, None);
            self.forget_name(&name, leased);
            self.keep_undo(Undo { name, previous, of_sql })
        };
        gone.into_iter().map(take).collect()
    }

    /// A name stands again for what it stood for.
    pub fn restore_name(&mut self, Undo { name, previous, of_sql }: Undo) {
        self.names.replace(&name, previous);
        if let (true, Ok(name)) = (of_sql, String::from_utf8(name.into())) {
            self.sql_names.push(name);
        }
    }

    /// PREPARE, DEALLOCATE and kin have succeeded.
    pub fn apply_names(&mut self, effect: &Effect, leased: &mut Leased) {
        // The names that an Execute ends were taken when it was sent.
        let taken = matches!(self.pipeline.front(), Some(Expect::Execute { .. }));
        match effect {
            // A DO does not tell the name; the survey sees that there is one.
            Effect::Prepare(name) if !name.is_empty() && !self.is_of_sql(name.as_bytes()) => {
                self.names.changed_by_sql();
                self.sql_names.push(name.clone());
            }
            Effect::Deallocate(_) | Effect::DiscardAll if taken => {}
            Effect::Deallocate(Some(name)) => {
                self.names.replace(name.as_bytes(), None);
                self.forget_name(name.as_bytes(), leased);
            }
            Effect::Deallocate(None) | Effect::DiscardAll => {
                self.names.clear_named();
                self.sql_names.clear();
                leased.named.clear();
                leased.lease.held.clear();
                leased.lease.unnamed = None;
            }
            _ => {}
        }
    }

    /// The server has the name no more.
    pub fn forget_name(&mut self, name: &[u8], leased: &mut Leased) {
        self.names.changed_by_sql();
        self.sql_names.retain(|known| known.as_bytes() != name);
        leased.named.retain(|known| **known != *name);
    }
}

/// EXECUTE, alone or within another statement.
pub fn runs_by_name(facts: &Facts) -> bool {
    facts.effects.iter().any(|effect| matches!(effect, Effect::Execute(_)))
}
