//! What is not certain while segments are under way.

use std::collections::VecDeque;

use super::expect::Expect;

/// Which changes stand in segments whose end has not been seen: an error may have skipped them, and messages of a later
/// segment must not rely on them.
#[derive(Debug, Default)]
pub(super) struct Segments {
    sent: u64,
    resolved: u64,
    /// By the segment that changed them, in order.
    names: VecDeque<(u64, Box<[u8]>)>,
    /// Those of them that are not the empty one.
    named: usize,
    statements: VecDeque<(u64, u64)>,
    /// The last in which the unnamed statement of the server was parsed.
    unnamed: u64,
}

impl Segments {
    pub(super) fn note(&mut self, expect: &Expect) {
        // What ends a segment changes nothing in the next.
        for undo in expect.undo() {
            self.named += usize::from(!undo.name.is_empty());
            self.names.push_back((self.sent, undo.name.clone()));
        }
        match expect {
            Expect::Parse { statement: Some(s), .. } | Expect::Close { evicted: Some(s), .. } => {
                self.statements.push_back((self.sent, s.id));
            }
            Expect::Parse { statement: None, .. } => self.unnamed = self.sent,
            _ => {}
        }
    }

    pub(super) fn end(&mut self) {
        self.sent += 1;
    }

    pub(super) fn resolve(&mut self, count: u64) {
        self.resolved += count;
        while self.names.front().is_some_and(|(segment, _)| *segment < self.resolved) {
            let gone = self.names.pop_front();
            self.named -= usize::from(gone.is_some_and(|(_, name)| !name.is_empty()));
        }
        while self.statements.front().is_some_and(|(segment, _)| *segment < self.resolved) {
            self.statements.pop_front();
        }
    }

    pub(super) fn statement_done(&mut self, id: u64) {
        if let Some(at) = self.statements.iter().position(|(_, known)| *known == id) {
            self.statements.remove(at);
        }
    }

    pub(super) fn in_flight(&self) -> bool {
        self.resolved < self.sent
    }

    /// False where no name but the empty one can be uncertain.
    pub(super) fn has_named(&self) -> bool {
        self.named > 0 && self.in_flight()
    }

    /// The last change of a name counts.
    pub(super) fn is_name_uncertain(&self, name: &[u8]) -> bool {
        self.in_flight() && self.names.iter().rev().find(|(_, n)| **n == *name).is_some_and(|(s, _)| *s < self.sent)
    }

    pub(super) fn is_unnamed_uncertain(&self) -> bool {
        self.in_flight() && self.unnamed < self.sent
    }

    pub(super) fn is_statement_uncertain(&self, id: u64) -> bool {
        self.in_flight() && self.statements.iter().rev().find(|(_, n)| *n == id).is_some_and(|(s, _)| *s < self.sent)
    }
}
