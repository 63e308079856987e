//! currval and lastval: what a session has drawn itself, and never what another client drew on the same connection.
//!
//! What a connection has drawn cannot be moved to another. A session that asks for it once keeps its connection
//! whenever it draws from then on; one that never asks, which is nearly every session, costs nothing.

use crate::catalog::judge::Verdict;
use crate::frontend::session::{Leased, Session};
use crate::session::pins::Pin;
use crate::session::pipeline::Expect;
use crate::sql::{Effect, Facts, Reason};
use crate::wire::write;

impl Session {
    /// Ahead of a statement that is run.
    pub fn note_sequences(&mut self, facts: &Facts, verdict: Verdict, leased: &mut Leased) {
        self.forget_sequences(facts, leased);
        if may_draw(facts, verdict) {
            leased.drew = true;
            if self.asks_sequences {
                self.pins.insert(Pin::Sequence);
            }
        }
    }

    /// Ahead of a statement, be it only prepared: what earlier clients have drawn on the connection is forgotten where
    /// it could show.
    pub fn forget_sequences(&mut self, facts: &Facts, leased: &mut Leased) {
        // Where nothing may pin, it can only ask for what it has drawn on this lease.
        if facts.asks_sequences() && !self.refuses_pins {
            self.asks_sequences = true;
            let kept = leased.drew || self.pins.contains(Pin::Sequence);
            if !kept && self.status != b'E' && !self.pipeline.is_unsynced() {
                write::query(&mut leased.lease.outbox, "DISCARD SEQUENCES");
                leased.lease.unnamed = None;
                self.pipeline.push(Expect::Aside);
                leased.drew = true;
            }
        }
    }
}

/// nextval and setval, and what may call them by a default, a trigger or out of sight.
fn may_draw(facts: &Facts, verdict: Verdict) -> bool {
    let executes = facts.effects.iter().any(|effect| matches!(effect, Effect::Execute(_)));
    let draws = matches!(verdict.primary, Some(Reason::Sequence | Reason::Catalog));
    draws || verdict.opaque || executes || !facts.written.is_empty()
}
