//! `pool.pin = "refuse"`: what would bind a client to one server connection is an error; and so is what only the primary can
//! do within a READ ONLY block on a replica.
//!
//! The server raises it, so that it has its place in the order of replies and its effect on the transaction: instead of the
//! statement it is sent one that cannot succeed, and its error is replaced on the way back.

use crate::error::{Fault, sqlstate};
use crate::frontend::block;
use crate::frontend::session::{Leased, Session};
use crate::route::plan::Plan;
use crate::session::pins::Pin;
use crate::session::pipeline::{Expect, Refused};

/// What the server is sent instead of a Query, and the code of its error. In a failed transaction it gives 25P02, as it
/// would to the client's own.
pub const QUERY: &str = "SELECT \"refused by pgweir\"";
const UNDEFINED_COLUMN: &[u8] = b"42703";

/// … and the statement that a Bind is made to name: no client's is called so.
pub const STATEMENT: &[u8] = b"pgweir: refused";
const UNDEFINED_STATEMENT: &[u8] = b"26000";

impl Session {
    /// Whether a statement is refused.
    pub fn refused(&mut self, plan: &Plan, leased: &Leased) -> Option<Refused> {
        if let Some(pin) = self.refused_pin(plan, leased) {
            return Some(Refused::Pin(pin));
        }
        (leased.replica && self.is_refused_in_block(plan)).then_some(Refused::OnReplica)
    }

    /// What would pin the client, where that is not allowed. Nothing is refused in a transaction that has failed.
    fn refused_pin(&self, plan: &Plan, leased: &Leased) -> Option<Pin> {
        let facts = &*plan.facts;
        if !self.refuses_pins || self.status == b'E' {
            return None;
        }
        Pin::foreseen(facts)
            .or_else(|| self.needs_own_listener(facts, leased).then_some(Pin::Listen))
            // What was drawn elsewhere cannot be told here.
            .or_else(|| (facts.asks_sequences() && !leased.drew).then_some(Pin::Sequence))
    }

    /// The server's error at the front stands for a refusal.
    pub fn refusal(&self, code: &[u8]) -> Option<Fault> {
        let (refused, expected) = match self.pipeline.front()? {
            Expect::Query { refused, .. } => (*refused, UNDEFINED_COLUMN),
            Expect::Bind { refused, .. } => (*refused, UNDEFINED_STATEMENT),
            _ => return None,
        };
        match refused.filter(|_| code == expected)? {
            Refused::Pin(pin) => Some(fault(pin.name(), Fault::error)),
            Refused::OnReplica => Some(block::refusal()),
        }
    }

    /// At rest: the client has state on its connection that nothing foretold.
    pub fn refusal_at_rest(&self) -> Option<Fault> {
        (self.refuses_pins && !self.pins.is_empty()).then(|| fault(&self.pins.causes(), Fault::fatal))
    }
}

fn fault(cause: &str, make: fn(&'static str, String) -> Fault) -> Fault {
    let message = format!("session state that needs a server connection of its own is not allowed: {cause}");
    let hint = "pgweir's configuration says pool.pin = \"refuse\"; \"allow\", or session mode, would serve it.";
    make(sqlstate::FEATURE_NOT_SUPPORTED, message).with_hint(hint)
}
