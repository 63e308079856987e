//! The replies a client is owed, in order (protocol documentation, "Extended Query" and "Pipelining").
//!
//! Each message that goes to the server, and each that pgweir answers itself, leaves an entry. The server's replies
//! consume them: forwarded to the client, swallowed where pgweir asked on its own, or joined by replies of pgweir's
//! own where their turn comes. An error drops all entries up to the next Sync, as the server skips their messages.

mod expect;
mod queue;
mod segments;

use std::sync::Arc;

use queue::Queue;
use segments::Segments;

use crate::route::plan::Plan;
use crate::session::values::Values;
use crate::wire::tag::backend;

pub use expect::{Expect, Refused, Undo};

/// What to do with a frame of the server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Forward,
    Swallow,
    /// Not what was owed: the connection is out of step.
    Violation,
}

/// A reply of pgweir's own whose turn has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    ParseComplete,
    CloseComplete,
    /// ParameterDescription with this body, and NoData.
    NoRows(Box<[u8]>),
}

#[derive(Debug, Default)]
pub struct Pipeline {
    queue: Queue,
    /// The server waits for CopyData: it ignores Sync until CopyDone or CopyFail.
    copying_in: bool,
    /// Messages have gone to the server that no Sync has followed yet: an implicit transaction may be open, of which no
    /// ReadyForQuery tells, and all its replies may be here after a Flush.
    unsynced: bool,
    /// Syncs that a COPY by Query has swallowed; or, where it failed before it came to them, that are each answered by a
    /// ReadyForQuery of their own. The reply to anything sent behind them tells.
    doubtful: usize,
    /// The entry at the front has had some reply.
    begun: bool,
    /// Descriptions in the queue.
    describing: usize,
    segments: Segments,
}

impl Pipeline {
    /// No reply is owed. The server may still wait for more: see [`Pipeline::is_settled`].
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The server is within a segment of the extended protocol that its client has not ended.
    pub fn is_unsynced(&self) -> bool {
        self.unsynced
    }

    /// No reply is owed, and the last segment has ended.
    pub fn is_settled(&self) -> bool {
        self.queue.is_empty() && !self.unsynced && self.doubtful == 0
    }

    /// Whether more replies come is not known: something that is always answered must be sent.
    pub fn is_in_doubt(&self) -> bool {
        self.queue.is_empty() && self.doubtful > 0
    }

    /// A ReadyForQuery that comes now is that of a Sync behind the failure of a COPY.
    pub fn is_stray(&self) -> bool {
        self.doubtful > 0 && !self.begun && !matches!(self.queue.front(), Some(Expect::Sync { .. }))
    }

    /// What earlier segments have done is not known yet.
    pub fn in_flight(&self) -> bool {
        self.segments.in_flight()
    }

    /// Whether a client's name stands for what it is thought to is not known yet: an earlier segment, which may fail,
    /// has changed it.
    pub fn is_name_uncertain(&self, name: &[u8]) -> bool {
        self.segments.is_name_uncertain(name)
    }

    /// Some name may be.
    pub fn has_uncertain_names(&self) -> bool {
        self.segments.has_named()
    }

    /// The same of the server's unnamed statement.
    pub fn is_unnamed_uncertain(&self) -> bool {
        self.segments.is_unnamed_uncertain()
    }

    /// The same of a statement that the server has, or has no more.
    pub fn is_statement_uncertain(&self, id: u64) -> bool {
        self.segments.is_statement_uncertain(id)
    }

    /// A ReadyForQuery is owed to the client.
    pub fn owes_ready(&self) -> bool {
        let owes = |e: &Expect| matches!(e, Expect::Query { .. } | Expect::Function | Expect::Sync { shown: true });
        // It is mostly the last.
        self.queue.iter().rev().any(owes)
    }

    /// pgweir has ended a segment with a Sync of its own, and its outcome is not known yet.
    pub fn ends_in_own_sync(&self) -> bool {
        matches!(self.queue.last(), Some(Expect::Sync { shown: false }))
    }

    /// The server waits for the client's CopyData: until it has that or its end, it owes nothing.
    pub fn awaits_copy(&self) -> bool {
        self.copying_in
    }

    pub fn front(&self) -> Option<&Expect> {
        self.queue.front()
    }

    pub fn front_mut(&mut self) -> Option<&mut Expect> {
        self.queue.front_mut()
    }

    /// A server is about to describe a copy of this statement which is not that of the client's own Parse of this name.
    pub fn is_described_soon(&self, id: u64, name: &[u8]) -> bool {
        self.describing > 0
            && self.queue.iter().any(|expect| match expect {
                Expect::Description { statement, parsed, .. } => statement.id == id && parsed.as_deref() != Some(name),
                _ => false,
            })
    }

    /// The first statement whose end has not come.
    pub fn running(&self) -> Option<(Arc<Plan>, Option<Arc<Values>>)> {
        self.queue.iter().find_map(Expect::statement)
    }

    /// Nothing is owed that could keep the server from this statement: nothing of any other, nor of unknown ones.
    pub fn is_about(&self, plan: &Arc<Plan>) -> bool {
        self.queue.iter().all(|expect| match expect {
            Expect::Query { plan: None, .. } | Expect::Execute { plan: None, .. } | Expect::Function => false,
            expect => expect.statement().is_none_or(|(other, _)| Arc::ptr_eq(&other, plan)),
        })
    }

    pub fn push(&mut self, expect: Expect) {
        match &expect {
            Expect::Sync { shown: true } if self.copying_in => {
                self.doubtful += usize::from(self.copies_by_query());
                return;
            }
            Expect::CopyEnd => self.copying_in = false,
            ends if ends.ends_segment() => {
                self.unsynced = false;
                self.segments.end();
            }
            Expect::Parse { .. }
            | Expect::Bind { .. }
            | Expect::Describe { .. }
            | Expect::Execute { .. }
            | Expect::Description { .. }
            | Expect::Changed { .. }
            | Expect::Close { .. }
            | Expect::Begin => {
                self.unsynced = true;
            }
            _ => {}
        }
        self.segments.note(&expect);
        self.describing += usize::from(matches!(expect, Expect::Description { .. }));
        self.queue.push(expect);
    }

    /// Replies of pgweir's own whose turn it is, one at a time.
    pub fn next_local(&mut self) -> Option<Local> {
        loop {
            let local = match self.queue.front_mut()? {
                Expect::ParsedHere { .. } => Some(Local::ParseComplete),
                Expect::ClosedHere { .. } => Some(Local::CloseComplete),
                Expect::DescribedHere { parameters } => Some(Local::NoRows(std::mem::take(parameters))),
                Expect::CopyEnd => None,
                _ => return None,
            };
            self.queue.pop();
            if local.is_some() {
                return local;
            }
        }
    }

    /// Takes one frame of the server's, by its tag; entries it completes are gone afterwards. Errors go through
    /// [`Pipeline::fail`], and the asynchronous messages (notice, notification, parameter status) through
    /// [`Pipeline::is_own`].
    #[inline]
    pub fn step(&mut self, tag: u8) -> Step {
        if tag != backend::READY {
            self.note_reply(tag == backend::COMMAND_COMPLETE);
        } else if self.is_stray() {
            self.doubtful -= 1;
            return Step::Forward;
        }
        let Some(front) = self.queue.front() else {
            if tag == backend::READY {
                // For a Sync that stood behind a COPY which failed before it read anything.
                self.unsynced = false;
                return Step::Forward;
            }
            return Step::Violation;
        };
        let (matches, done) = match (front, tag) {
            (Expect::Query { .. } | Expect::Function, backend::READY) => (true, true),
            (Expect::Query { .. } | Expect::Execute { .. }, backend::COPY_IN) => {
                self.copy_in_begins();
                return Step::Forward;
            }
            (Expect::Query { .. }, _) => (true, false),
            (Expect::Execute { .. }, backend::COMMAND_COMPLETE | backend::EMPTY_QUERY | backend::PORTAL_SUSPENDED) => {
                (true, true)
            }
            (
                Expect::Execute { .. },
                backend::DATA_ROW | backend::COPY_DATA | backend::COPY_DONE | backend::COPY_OUT | backend::COPY_BOTH,
            ) => (true, false),
            (Expect::Bind { .. }, backend::BIND_COMPLETE)
            | (Expect::Sync { .. }, backend::READY)
            | (Expect::Describe { .. } | Expect::Description { .. }, backend::ROW_DESCRIPTION | backend::NO_DATA)
            | (Expect::Close { .. }, backend::CLOSE_COMPLETE)
            | (Expect::Parse { .. }, backend::PARSE_COMPLETE)
            | (Expect::Begin, backend::COMMAND_COMPLETE)
            | (Expect::Replay | Expect::Aside | Expect::Survey, backend::READY) => (true, true),
            (Expect::Begin, backend::PARSE_COMPLETE | backend::BIND_COMPLETE) => (true, false),
            (Expect::Describe { .. } | Expect::Description { .. }, backend::PARAMETER_DESCRIPTION) => (true, false),
            (Expect::Function, backend::FUNCTION_RESULT) | (Expect::Replay | Expect::Aside | Expect::Survey, _) => {
                (true, false)
            }
            _ => (false, false),
        };
        if !matches {
            return Step::Violation;
        }
        let shown = match front {
            Expect::Parse { shown, .. } | Expect::Close { shown, .. } | Expect::Sync { shown } => *shown,
            Expect::Begin | Expect::Replay | Expect::Aside | Expect::Survey | Expect::Description { .. } => false,
            _ => true,
        };
        if done && let Some(done) = self.queue.pop() {
            self.begun = false;
            self.done(&done);
        }
        if shown { Step::Forward } else { Step::Swallow }
    }

    /// A reply to something behind the Syncs in doubt, or the good end of the COPY, settles them.
    fn note_reply(&mut self, completes: bool) {
        if !std::mem::replace(&mut self.begun, true) || completes {
            self.doubtful = 0;
        }
    }

    fn copies_by_query(&self) -> bool {
        matches!(self.queue.front(), Some(Expect::Query { .. }))
    }

    fn done(&mut self, expect: &Expect) {
        match expect {
            Expect::Description { .. } => self.describing -= 1,
            // No error takes it back.
            Expect::Parse { statement: Some(s), .. } | Expect::Close { evicted: Some(s), .. } => {
                self.segments.statement_done(s.id);
            }
            expect if expect.ends_segment() => self.segments.resolve(1),
            _ => {}
        }
    }

    /// Frames that come at any time belong to pgweir while its own statements run.
    pub fn is_replay(&self) -> bool {
        matches!(self.queue.front(), Some(Expect::Replay))
    }

    /// A question of pgweir's own is being answered: until then it is not known what the session is.
    pub fn is_survey(&self) -> bool {
        matches!(self.queue.front(), Some(Expect::Survey))
    }

    pub fn is_aside(&self) -> bool {
        matches!(self.queue.front(), Some(Expect::Aside))
    }

    /// The frames that come now are pgweir's own affair.
    pub fn is_own(&self) -> bool {
        matches!(self.queue.front(), Some(Expect::Begin | Expect::Replay | Expect::Aside | Expect::Survey))
    }

    /// It is not known yet whether the block begins that what follows is meant for.
    pub fn is_beginning(&self) -> bool {
        match self.queue.front() {
            Some(Expect::Begin) => true,
            // The session's settings.
            Some(Expect::Replay) => self.queue.iter().take(2).any(|expect| matches!(expect, Expect::Begin)),
            _ => false,
        }
    }

    /// … and nothing follows.
    pub fn only_begins(&self) -> bool {
        let own = |e: &Expect| match e {
            Expect::Sync { shown } | Expect::Close { shown, .. } => !shown,
            e => matches!(e, Expect::Begin | Expect::Replay),
        };
        self.is_beginning() && self.queue.iter().all(own)
    }

    /// An ErrorResponse came: what the server now skips is dropped, and given back last first, so that names can be
    /// restored in that order. Within a simple Query nothing is skipped.
    pub fn fail(&mut self) -> Failed {
        self.copying_in = false;
        self.note_reply(false);
        if let Some(Expect::Query { .. } | Expect::Function | Expect::Replay | Expect::Aside | Expect::Survey) | None =
            self.queue.front()
        {
            return Failed { dropped: Vec::new(), skips: self.queue.is_empty() && self.unsynced };
        }
        // It had dropped the unnamed statement before it failed.
        if let Some(Expect::Parse { undo: Some(undo), .. }) = self.queue.front_mut()
            && undo.name.is_empty()
        {
            undo.previous = None;
        }
        let sync = self.queue.iter().position(|e| matches!(e, Expect::Sync { .. }));
        let mut dropped = self.queue.take_front(sync.unwrap_or(self.queue.len()));
        self.begun = false;
        self.segments.resolve(dropped.iter().filter(|e| e.ends_segment()).count() as u64);
        self.describing -= dropped.iter().filter(|e| matches!(e, Expect::Description { .. })).count();
        if sync.is_none() {
            self.unsynced = true;
        }
        dropped.reverse();
        Failed { dropped, skips: sync.is_none() }
    }

    /// What an error takes back of a name; `None` where a later message, which is not skipped, has changed the name
    /// again.
    pub fn take_back(&mut self, undo: Undo) -> Option<Undo> {
        for later in self.queue.iter_mut() {
            if matches!(later, Expect::Query { .. }) && undo.name.is_empty() {
                return None;
            }
            if let Some(again) = later.undo_mut().iter_mut().find(|again| again.name == undo.name) {
                *again = undo;
                return None;
            }
        }
        Some(undo)
    }

    /// Everything owed, last first: the connection is lost.
    pub fn abandon(&mut self) -> Vec<Expect> {
        let mut queue = std::mem::take(self).queue;
        let mut dropped = queue.take_front(queue.len());
        dropped.reverse();
        dropped
    }

    /// A COPY FROM STDIN began: Syncs sent before its end are ignored by the server (`CopyGetData`). One by Query ends
    /// with the Query's own ReadyForQuery.
    fn copy_in_begins(&mut self) {
        let by_query = self.copies_by_query();
        let ended = self.queue.iter().position(|e| matches!(e, Expect::CopyEnd));
        let (mut at, mut end) = (1, ended.unwrap_or(self.queue.len()));
        while at < end {
            if matches!(self.queue[at], Expect::Sync { shown: true }) {
                self.queue.remove(at);
                self.segments.resolve(1);
                self.doubtful += usize::from(by_query);
                end -= 1;
            } else {
                at += 1;
            }
        }
        self.copying_in = ended.is_none();
        self.unsynced |= !by_query && !self.queue.iter().skip(1).any(Expect::ends_segment);
    }
}

/// What became of the entries at an error.
#[derive(Debug)]
pub struct Failed {
    /// Last first.
    pub dropped: Vec<Expect>,
    /// The server skips what is yet to be sent, up to the next Sync.
    pub skips: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::prepared::{Registry, Statement};

    /// Which of the Syncs in a COPY came behind its failure, the replies tell, in whatever pieces they come.
    #[test]
    fn syncs_behind_the_failure_of_a_copy() {
        let begun = || {
            let mut p = Pipeline::default();
            p.push(Expect::Query { plan: None, refused: None });
            assert_eq!(p.step(b'G'), Forward);
            p.push(Expect::Sync { shown: true });
            p.push(Expect::Sync { shown: true });
            p
        };
        // Swallowed, the COPY having ended well.
        let mut p = begun();
        p.push(Expect::CopyEnd);
        assert_eq!(steps(&mut p, b"CZ"), [Forward; 2]);
        while p.next_local().is_some() {}
        assert!(p.is_settled());
        // One behind the failure, and one more that was sent later.
        let mut p = begun();
        p.fail();
        p.push(Expect::Sync { shown: true });
        assert_eq!(steps(&mut p, b"ZZ"), [Forward; 2]);
        assert!(p.is_in_doubt() && !p.is_settled());
        p.push(Expect::Aside);
        assert_eq!(steps(&mut p, b"ZIZ"), [Forward, Swallow, Swallow]);
        assert!(p.is_settled(), "the other was swallowed");
        // Something else tells as well.
        let mut p = begun();
        p.fail();
        p.push(Expect::Query { plan: None, refused: None });
        assert_eq!(steps(&mut p, b"ZZTDCZ"), [Forward; 6]);
        assert!(p.is_settled());
    }

    fn parse(shown: bool) -> Expect {
        Expect::Parse { statement: None, shown, undo: None, describes: None }
    }

    fn steps(p: &mut Pipeline, tags: &[u8]) -> Vec<Step> {
        tags.iter().map(|t| p.step(*t)).collect()
    }

    fn bind() -> Expect {
        Expect::Bind { statement: None, name: None, refused: None }
    }

    fn execute() -> Expect {
        Expect::Execute { plan: None, values: None, undo: Vec::new() }
    }

    use Step::{Forward, Swallow, Violation};

    #[test]
    fn an_extended_query_in_order() {
        let mut p = Pipeline::default();
        for e in [
            parse(true),
            bind(),
            Expect::Describe { name: None, statement: None },
            execute(),
            Expect::Sync { shown: true },
        ] {
            p.push(e);
        }
        assert_eq!(steps(&mut p, b"12TDDCZ"), [Forward; 7]);
        assert!(p.is_empty());
    }

    #[test]
    fn a_segment_lasts_to_the_sync_that_the_server_heeds() {
        let mut p = Pipeline::default();
        p.push(Expect::ParsedHere { undo: None });
        assert!(!p.is_unsynced(), "nothing has gone to the server");
        p.push(bind());
        p.push(execute());
        while p.next_local().is_some() {}
        assert_eq!(steps(&mut p, b"2C"), [Forward; 2]);
        assert!(p.is_empty() && p.is_unsynced(), "all is answered, and a transaction may be open");
        p.push(Expect::Sync { shown: true });
        assert!(!p.is_unsynced());

        p.push(execute());
        p.push(Expect::Sync { shown: true });
        assert_eq!(steps(&mut p, b"ZG"), [Forward; 2]);
        assert!(p.is_unsynced(), "the COPY has swallowed the Sync");
        p.fail();
        assert!(p.is_empty() && p.is_unsynced(), "the server skips to the next Sync");
    }

    #[test]
    fn what_pgweir_asked_is_swallowed_and_what_it_answers_is_put_in_place() {
        let mut p = Pipeline::default();
        p.push(Expect::Replay);
        p.push(Expect::ParsedHere { undo: None });
        p.push(parse(false));
        p.push(bind());
        p.push(Expect::ClosedHere { undo: None });
        p.push(Expect::Sync { shown: true });
        assert_eq!(p.next_local(), None);
        assert_eq!(steps(&mut p, b"CZ"), [Swallow; 2]);
        assert_eq!(p.next_local(), Some(Local::ParseComplete));
        assert_eq!(p.next_local(), None);
        assert_eq!(steps(&mut p, b"12"), [Swallow, Forward]);
        assert_eq!(p.next_local(), Some(Local::CloseComplete));
        assert_eq!(p.step(b'Z'), Forward);
    }

    #[test]
    fn a_begin_ahead_is_swallowed_and_what_follows_waits_for_it() {
        let mut p = Pipeline::default();
        p.push(Expect::Replay);
        p.push(Expect::Begin);
        assert!(p.is_unsynced() && p.only_begins());
        p.push(Expect::Query { plan: None, refused: None });
        assert!(!p.is_unsynced() && p.is_beginning() && !p.only_begins() && p.owes_ready());
        assert_eq!(steps(&mut p, b"CZ12C"), [Swallow; 5]);
        assert!(!p.is_beginning() && !p.is_own());
        assert_eq!(steps(&mut p, b"CZ"), [Forward; 2]);
        p.push(Expect::Begin);
        p.push(Expect::Close { shown: false, evicted: None, undo: None });
        p.push(Expect::Sync { shown: false });
        assert!(p.only_begins() && p.ends_in_own_sync());
        assert_eq!(steps(&mut p, b"12C3Z"), [Swallow; 5]);
        assert!(p.is_settled());
        p.push(Expect::Begin);
        assert_eq!(p.step(b'D'), Violation);
    }

    #[test]
    fn an_error_skips_to_sync_and_no_further() {
        let mut p = Pipeline::default();
        for e in [bind(), Expect::ParsedHere { undo: None }, Expect::Sync { shown: true }, bind()] {
            p.push(e);
        }
        let Failed { dropped, skips } = p.fail();
        assert!(!skips && matches!(dropped[..], [Expect::ParsedHere { .. }, Expect::Bind { .. }]), "{dropped:?}");
        assert_eq!(steps(&mut p, b"Z2"), [Forward; 2]);
    }

    #[test]
    fn a_simple_query_ends_at_ready_alone() {
        let mut p = Pipeline::default();
        p.push(Expect::Query { plan: None, refused: None });
        assert_eq!(steps(&mut p, b"TDC"), [Forward; 3]);
        assert!(p.fail().dropped.is_empty());
        assert_eq!(p.step(b'Z'), Forward);
        assert!(p.is_empty());
    }

    #[test]
    fn replies_out_of_step_are_seen() {
        let mut p = Pipeline::default();
        assert_eq!(p.step(b'C'), Violation);
        p.push(bind());
        assert_eq!(p.step(b'1'), Violation);
    }

    #[test]
    fn a_copy_swallows_the_syncs_before_its_end() {
        let mut p = Pipeline::default();
        p.push(execute());
        p.push(Expect::Sync { shown: true });
        assert_eq!(p.step(b'G'), Forward);
        p.push(Expect::Sync { shown: true });
        p.push(Expect::CopyEnd);
        p.push(Expect::Sync { shown: true });
        assert_eq!(p.step(b'C'), Forward);
        assert_eq!(p.next_local(), None);
        assert_eq!(p.step(b'Z'), Forward);
        assert!(p.is_empty());
    }

    #[test]
    fn a_copy_sent_ahead_of_its_begin_keeps_its_sync() {
        let mut p = Pipeline::default();
        for e in [execute(), Expect::CopyEnd, Expect::Sync { shown: true }] {
            p.push(e);
        }
        assert_eq!(steps(&mut p, b"GC"), [Forward; 2]);
        assert_eq!(p.next_local(), None);
        assert_eq!(p.step(b'Z'), Forward);
        assert!(p.is_empty());
    }

    fn closes(name: &[u8]) -> Expect {
        Expect::ClosedHere { undo: Some(Undo { name: name.into(), previous: None, of_sql: false }) }
    }

    #[test]
    fn a_name_is_uncertain_while_the_segment_that_changed_it_may_fail() {
        let mut p = Pipeline::default();
        p.push(closes(b"s"));
        assert!(!p.is_name_uncertain(b"s"), "within its own segment the order is certain");
        p.push(Expect::Sync { shown: true });
        assert!(p.in_flight() && p.is_name_uncertain(b"s") && !p.is_name_uncertain(b"t"));
        p.push(closes(b"s"));
        assert!(!p.is_name_uncertain(b"s"), "changed again");
        while p.next_local().is_some() {}
        p.step(b'Z');
        assert!(!p.in_flight() && !p.is_name_uncertain(b"s"));
    }

    fn statement(text: &str) -> Arc<Statement> {
        Registry::default().statement(text.as_bytes(), b"\0\0", &"".into(), || Arc::new(Plan::unknown()))
    }

    #[test]
    fn a_statement_is_certain_once_the_server_has_said_so() {
        let (mut p, s) = (Pipeline::default(), statement("a"));
        p.push(Expect::Parse { statement: Some(s.clone()), shown: true, undo: None, describes: None });
        p.push(Expect::Sync { shown: true });
        assert!(p.is_statement_uncertain(s.id));
        p.step(b'1');
        assert!(p.in_flight() && !p.is_statement_uncertain(s.id));
    }

    #[test]
    fn a_statement_is_described_soon_until_it_is_or_an_error_skips_it() {
        let (mut p, s) = (Pipeline::default(), statement("a"));
        let describe = || Expect::Description { statement: s.clone(), parsed: Some((*b"s").into()), parameters: None };
        p.push(describe());
        assert!(p.is_described_soon(s.id, b"t") && !p.is_described_soon(s.id, b"s") && !p.is_described_soon(7, b"t"));
        assert_eq!(steps(&mut p, b"tT"), [Swallow; 2]);
        assert!(p.is_empty() && p.is_unsynced() && !p.is_described_soon(s.id, b"t"));
        p.push(describe());
        assert_eq!(p.fail().dropped.len(), 1);
        assert!(!p.is_described_soon(s.id, b"t"));
    }

    #[test]
    fn a_skipped_change_is_taken_back_from_under_a_later_one() {
        let mut p = Pipeline::default();
        for e in [bind(), closes(b"s"), Expect::Sync { shown: true }, closes(b"s")] {
            p.push(e);
        }
        let Failed { dropped, skips } = p.fail();
        assert!(!skips && dropped.len() == 2);
        let undo = |name: &[u8]| Undo { name: name.into(), previous: None, of_sql: false };
        assert!(p.take_back(undo(b"s")).is_none() && p.take_back(undo(b"t")).is_some());
    }
}
