//! The client's messages on their way to its server: names of statements rewritten, the rest as it came. HOT.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::BufMut;

use crate::error::Fault;
use crate::frontend::batch::{MAX_QUERY, check_size};
use crate::frontend::refusal;
use crate::frontend::session::{Kept, Leased, Portal, Scanned, Session};
use crate::frontend::statements::OnServer;
use crate::net::buffers::drop_front;
use crate::route::plan::Plan;
use crate::session::bound;
use crate::session::pipeline::{Expect, Local, Refused, Undo};
use crate::session::prepared::Statement;
use crate::session::token::in_other_words;
use crate::session::values::values;
use crate::sql::Effect;
use crate::wire::tag::frontend;
use crate::wire::{read, scan, write};

/// Bytes that may wait to be sent to a server before more is read from the client.
const MAX_UNSENT: usize = 256 * 1024;

/// A frame larger than this is passed on as it arrives where its head is enough to know.
const STREAMED: usize = 64 * 1024;

/// How far the translation got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarded {
    /// All that was there; the next frame needs so many bytes.
    All { need: usize },
    /// Terminate stands next.
    Terminate,
}

impl Session {
    /// Translates what the inbox holds, up to the end of the request's batch where it has one; consumed, unless the
    /// request keeps it for a retry.
    ///
    /// # Errors
    /// The client breaks the protocol.
    pub fn forward(&mut self) -> Result<Forwarded, Fault> {
        let Some(mut leased) = self.leased.take() else { return Ok(Forwarded::All { need: 0 }) };
        let inbox = std::mem::take(&mut self.inbox);
        leased.lease.begin();
        let before = self.request.sent;
        let forwarded = self.forward_frames(&inbox, &mut leased);
        self.inbox = inbox;
        self.leased = Some(leased);
        let (at, forwarded) = forwarded?;
        self.request.sent = at;
        if self.request.kept == Kept::No {
            self.consume();
        }
        let sent = self.request.sent;
        if self.request.end.take_if(|end| *end <= sent).is_some() {
            self.batch_sent();
        }
        // With a ReadyForQuery owed, the server answers soon, and they go to the client with its answer, in one write.
        if self.request.kept == Kept::No && !self.pipeline.owes_ready() {
            self.emit_local();
        }
        // What the server ignores, the end of a failed COPY for one, brings no reply that would show the rest.
        self.held_back |= at > before && self.is_at_rest();
        Ok(forwarded)
    }

    /// All of a batch that stands for itself is with its server.
    fn batch_sent(&mut self) {
        if self.request.ends_own {
            self.end_segment();
        }
        if self.request.kept == Kept::Anew && !self.names.has_unproven() {
            self.kept_no_more();
        }
    }

    /// What was sent of the inbox is not kept in it.
    pub(super) fn consume(&mut self) {
        let sent = std::mem::take(&mut self.request.sent);
        let here = sent.min(self.inbox.len());
        drop_front(&mut self.inbox, here);
        if let Some(end) = &mut self.request.end {
            *end -= sent;
        }
        self.worker.buffers.give_back(&mut self.inbox);
    }

    fn forward_frames(&mut self, inbox: &[u8], leased: &mut Leased) -> Result<(usize, Forwarded), Fault> {
        let mut at = self.request.sent + self.forward_rest(inbox, leased);
        let end = self.request.end.unwrap_or(usize::MAX).min(inbox.len());
        while at < end && leased.lease.outbox.len() < MAX_UNSENT {
            let Some(head) = scan::head(&inbox[at..])? else { break };
            check_size(head)?;
            let available = (inbox.len() - at).min(head.total);
            let frame = &inbox[at..at + available];
            if available < head.total && !may_stream(head, frame) && !self.skips(head.tag) {
                return Ok((at, Forwarded::All { need: head.total }));
            }
            match head.tag {
                frontend::TERMINATE => return Ok((at, Forwarded::Terminate)),
                // The server skips it too.
                tag if self.skips(tag) => leased.lease.outbox.put_slice(frame),
                tag if self.must_wait(tag, &frame[scan::HEADER..], leased)? => {
                    return Ok((at, Forwarded::All { need: 0 }));
                }
                _ if self.block.as_ref().is_some_and(|block| block.is_closing()) => {
                    return Ok((at, Forwarded::All { need: 0 }));
                }
                tag => {
                    if let Some(block) = &mut self.block {
                        block.drops_rest = false;
                    }
                    self.forward_frame(head, frame, leased)?;
                    if let Some(block) = &mut self.block {
                        block.note_frame(tag);
                    }
                }
            }
            self.client_rest = head.total - available;
            at += available;
        }
        self.held_back = at < end && leased.lease.outbox.len() >= MAX_UNSENT;
        Ok((at, Forwarded::All { need: scan::HEADER }))
    }

    /// Behind an error the server skips all messages up to a Sync.
    fn skips(&self, tag: u8) -> bool {
        self.skipping && !matches!(tag, frontend::SYNC | frontend::TERMINATE)
    }

    /// What the message's name stands for depends on a segment that may yet fail, or its statement is not as the client
    /// knows it on this connection, or not yet.
    fn must_wait(&mut self, tag: u8, body: &[u8], leased: &mut Leased) -> Result<bool, Fault> {
        let copies = matches!(tag, frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL);
        if self.settling && !copies && !self.pipeline.is_empty() && !self.pipeline.is_unsynced() {
            return Ok(true);
        }
        if self.keeps_names() {
            return Ok(false);
        }
        if self.pipeline.has_uncertain_names() && self.speaks_of_what_is_uncertain(tag, body)? {
            return Ok(true);
        }
        let name = match tag {
            // Without a name it takes the place of what is there.
            frontend::PARSE if body.first() == Some(&0) => return Ok(false),
            frontend::PARSE => read::parse(body)?.name,
            frontend::BIND => read::bind_names(body)?.1,
            frontend::DESCRIBE => match read::kind_and_name(body)? {
                (b'S', name) => name,
                _ => return Ok(false),
            },
            _ => return Ok(false),
        };
        if self.pipeline.in_flight() && self.pipeline.is_name_uncertain(name) {
            return Ok(true);
        }
        Ok(tag != frontend::PARSE && !self.provide(name, tag == frontend::DESCRIBE, leased))
    }

    /// The message speaks by SQL of a name whose statement a segment in flight may yet take back: what it stands for is to be
    /// prepared ahead of it.
    fn speaks_of_what_is_uncertain(&self, tag: u8, body: &[u8]) -> Result<bool, Fault> {
        let plan = match (tag, self.scanned.front()) {
            (frontend::QUERY, Some(Scanned::Query(plan))) => Some(plan.clone()),
            // Of one that has not come whole the statement is not known.
            (frontend::QUERY, _) => read::query(body).ok().map(|text| self.plan(text)),
            (frontend::PARSE, Some(Scanned::Parse(statement))) => Some(statement.plan.clone()),
            (frontend::PARSE, _) => Some(self.plan(read::parse(body)?.text)),
            (frontend::BIND, _) => self.names.find(read::bind_names(body)?.1).map(|known| known.plan.clone()),
            _ => None,
        };
        let uncertain = |effect: &Effect| match effect {
            Effect::Execute(name) | Effect::Prepare(name) | Effect::Deallocate(Some(name)) => {
                self.pipeline.is_name_uncertain(name.as_bytes())
            }
            _ => false,
        };
        Ok(plan.is_some_and(|plan| plan.facts.effects.iter().any(uncertain)))
    }

    /// The rest of a frame that is passed on as it arrives.
    fn forward_rest(&mut self, inbox: &[u8], leased: &mut Leased) -> usize {
        let n = self.client_rest.min(inbox.len());
        if !self.block.as_ref().is_some_and(|block| block.drops_rest) {
            leased.lease.outbox.put_slice(&inbox[..n]);
        }
        self.client_rest -= n;
        n
    }

    fn forward_frame(&mut self, head: scan::Head, frame: &[u8], leased: &mut Leased) -> Result<(), Fault> {
        let body = &frame[scan::HEADER..];
        match head.tag {
            frontend::QUERY => {
                let plan = self.query_plan(frame.len() == head.total, body)?;
                // A simple Query ends the unnamed statement, on the server as here.
                self.names.replace(b"", None);
                leased.lease.unnamed = None;
                let refused = self.refused(&plan, leased);
                if refused.is_some() {
                    self.drop_rest_in_block();
                    write::query(&mut leased.lease.outbox, refusal::QUERY);
                } else {
                    self.name_for_sql(&plan.facts, leased);
                    self.note_plan(&plan, leased);
                    self.leave(&plan, leased);
                    self.note_in_block(&plan, None);
                    match in_other_words(body.strip_suffix(b"\0").unwrap_or_default(), &plan.facts) {
                        Some(text) => write::query(&mut leased.lease.outbox, &text),
                        None => leased.lease.outbox.put_slice(frame),
                    }
                }
                self.pipeline.push(Expect::Query { plan: Some(plan), refused });
            }
            frontend::PARSE => self.forward_parse(read::parse(body)?, leased),
            frontend::BIND => self.forward_bind(head, frame, leased)?,
            frontend::DESCRIBE => self.forward_describe(frame, leased)?,
            frontend::EXECUTE => {
                let portal = read::execute_portal(body)?;
                let portal = self.portals.iter().find(|known| *known.name == *portal);
                let (plan, values) = portal.map(|p| (p.plan.clone(), p.values.clone())).unzip();
                let undo = plan.as_ref().map(|plan| self.deallocate(&plan.facts, leased)).unwrap_or_default();
                plan.iter().for_each(|plan| {
                    self.leave(plan, leased);
                    self.note_executed_in_block(plan);
                });
                leased.lease.outbox.put_slice(frame);
                self.pipeline.push(Expect::Execute { plan, values: values.flatten(), undo });
            }
            frontend::CLOSE => self.forward_close(frame, leased)?,
            frontend::SYNC => {
                self.skipping = false;
                leased.lease.outbox.put_slice(frame);
                self.pipeline.push(Expect::Sync { shown: true });
            }
            frontend::FUNCTION_CALL if leased.replica && self.refuses_call() => {
                self.drop_rest_in_block();
                write::query(&mut leased.lease.outbox, refusal::QUERY);
                self.pipeline.push(Expect::Query { plan: None, refused: Some(Refused::OnReplica) });
            }
            frontend::FUNCTION_CALL => {
                // By OID, so of unknown effect.
                self.writing = true;
                self.written.note(None);
                (leased.suspect, leased.unsure) = (true, true);
                leased.lease.outbox.put_slice(frame);
                self.pipeline.push(Expect::Function);
            }
            frontend::FLUSH => {
                leased.lease.outbox.put_slice(frame);
                if self.request.kept == Kept::No {
                    self.emit_local();
                }
            }
            frontend::COPY_DONE | frontend::COPY_FAIL => {
                leased.lease.outbox.put_slice(frame);
                self.pipeline.push(Expect::CopyEnd);
            }
            _ => leased.lease.outbox.put_slice(frame),
        }
        Ok(())
    }

    fn query_plan(&mut self, whole: bool, body: &[u8]) -> Result<Arc<Plan>, Fault> {
        if let Some(Scanned::Query(plan)) = self.scanned.pop_front() {
            return Ok(plan);
        }
        Ok(if whole { self.plan(read::query(body)?) } else { self.database.plans.opaque() })
    }

    fn forward_bind(&mut self, head: scan::Head, frame: &[u8], leased: &mut Leased) -> Result<(), Fault> {
        self.counters().bind();
        let body = &frame[scan::HEADER..];
        let (portal, name) = read::bind_names(body)?;
        let (there, shared) = self.standing(name, leased);
        let behind = portal.len() + 1 + name.len();
        let rest = &body[behind + 1..];
        if let OnServer::Same(statement) = &there
            && !self.is_unnamed_there(name)
        {
            self.leave_ahead(&statement.plan, leased);
        }
        let plan = match &there {
            OnServer::Same(statement) => Some(self.bound_plan(statement, rest)),
            OnServer::Missing | OnServer::Changed(_) => None,
        };
        let refused = plan.as_ref().and_then(|plan| self.refused(plan, leased));
        let new = match refused {
            Some(_) => refusal::STATEMENT.into(),
            None => self.name_there(name, &there, leased),
        };
        if let Some(plan) = plan.filter(|_| refused.is_none()) {
            self.name_for_sql(&plan.facts, leased);
            self.note_plan(&plan, leased);
            self.note_in_block(&plan, Some(portal));
            self.note_portal(portal, plan, rest);
        }
        let out = &mut leased.lease.outbox;
        write::header(out, head.tag, head.total - 1 - name.len() + new.len());
        out.put_slice(&body[..=portal.len()]);
        out.put_slice(&new);
        out.put_slice(&body[behind..]);
        self.pipeline.push(match there {
            OnServer::Missing => Expect::Bind { name: None, statement: None, refused },
            OnServer::Same(statement) => Expect::Bind { name: shared, statement: Some(statement), refused },
            OnServer::Changed(statement) => Expect::Changed { describes: None, plan: statement.plan.clone() },
        });
        Ok(())
    }

    /// The plan of a statement that is bound to these values.
    fn bound_plan<'a>(&self, statement: &'a Statement, rest: &[u8]) -> Cow<'a, Arc<Plan>> {
        let plan = &statement.plan;
        match bound::settled(&plan.facts, &statement.types, rest).filter(|_| self.readable) {
            Some(facts) => Cow::Owned(Arc::new(plan.with_facts(facts))),
            None => Cow::Borrowed(plan),
        }
    }

    fn forward_describe(&mut self, frame: &[u8], leased: &mut Leased) -> Result<(), Fault> {
        let (kind, name) = read::kind_and_name(&frame[scan::HEADER..])?;
        if kind != b'S' {
            leased.lease.outbox.put_slice(frame);
            self.pipeline.push(Expect::Describe { name: None, statement: None });
            return Ok(());
        }
        if let Some(parameters) = self.without_rows(name) {
            self.pipeline.push(Expect::DescribedHere { parameters: parameters.into() });
            return Ok(());
        }
        let (there, shared) = self.standing(name, leased);
        if let OnServer::Same(statement) = &there {
            self.name_for_sql(&statement.plan.facts, leased);
        }
        let new = self.name_there(name, &there, leased);
        write::of_statement(&mut leased.lease.outbox, frontend::DESCRIBE, &new);
        self.pipeline.push(match there {
            OnServer::Missing => Expect::Describe { name: None, statement: None },
            OnServer::Same(statement) => Expect::Describe { name: shared, statement: Some(statement) },
            OnServer::Changed(s) => Expect::Changed { plan: s.plan.clone(), describes: Some(s) },
        });
        Ok(())
    }

    fn forward_close(&mut self, frame: &[u8], leased: &mut Leased) -> Result<(), Fault> {
        let (kind, name) = read::kind_and_name(&frame[scan::HEADER..])?;
        let mut undo = None;
        if kind == b'S' && self.keeps_names() {
            self.names.replace(name, None);
        } else if kind == b'S' && self.is_of_sql(name) {
            self.forget_name(name, leased);
            leased.unsure = true;
            undo = Some(self.keep_undo(Undo { name: name.into(), previous: None, of_sql: true }));
        } else if kind == b'S' {
            self.close_name(name, leased);
            let previous = self.names.replace(name, None);
            let undo = Some(self.keep_undo(Undo { name: name.into(), previous, of_sql: false }));
            self.pipeline.push(Expect::ClosedHere { undo });
            return Ok(());
        }
        leased.lease.outbox.put_slice(frame);
        self.pipeline.push(Expect::Close { shown: true, evicted: None, undo });
        Ok(())
    }

    /// `bound`: of the Bind, behind its names; of one that is passed on as it arrives, not all.
    fn note_portal(&mut self, name: &[u8], plan: Cow<'_, Arc<Plan>>, bound: &[u8]) {
        let values = match self.proxy.stats.shows_parameters() {
            true => values(bound).ok().map(Arc::new),
            false => None,
        };
        match self.portals.iter_mut().find(|known| *known.name == *name) {
            Some(known) if Arc::ptr_eq(&known.plan, &plan) => known.values = values,
            Some(known) => (known.plan, known.values) = (plan.into_owned(), values),
            None => self.portals.push(Portal { name: name.into(), plan: plan.into_owned(), values }),
        }
    }

    /// Settings that differ between the client and its connection, said ahead of the client's own messages.
    pub fn replay(&mut self) {
        let Some(leased) = &mut self.leased else { return };
        let said = leased.lease.settings.difference(self.parameters.current());
        if said.is_empty() {
            return;
        }
        leased.lease.begin();
        leased.lease.unnamed = None;
        leased.lease.settings = self.parameters.current().clone();
        for sql in &said {
            write::query(&mut leased.lease.outbox, sql);
            self.pipeline.push(Expect::Replay);
        }
    }

    /// An empty Query: with the answer to it, all that came before has been answered.
    pub fn ask_whether_all_has_come(&mut self) {
        if let Some(leased) = &mut self.leased {
            write::query(&mut leased.lease.outbox, "");
            leased.lease.unnamed = None;
            self.pipeline.push(Expect::Aside);
        }
    }

    /// Ends a segment in which the client has only prepared: no transaction of its own can be open in it.
    pub fn end_segment(&mut self) {
        if let Some(leased) = &mut self.leased {
            write::sync(&mut leased.lease.outbox);
            self.pipeline.push(Expect::Sync { shown: false });
        }
    }

    /// Replies of pgweir's own whose turn has come.
    pub fn emit_local(&mut self) {
        while let Some(local) = self.pipeline.next_local() {
            self.emit(local);
        }
    }

    pub(super) fn emit(&mut self, local: Local) {
        let out = self.worker.buffers.make_room(&mut self.outbox);
        match local {
            Local::ParseComplete => write::parse_complete(out),
            Local::CloseComplete => write::close_complete(out),
            Local::NoRows(parameters) => {
                write::parameter_description(out, &parameters);
                write::no_data(out);
            }
        }
    }
}

/// Enough of the frame is here to know what it is; the rest may follow as it comes.
fn may_stream(head: scan::Head, frame: &[u8]) -> bool {
    match head.tag {
        frontend::COPY_DATA | frontend::FUNCTION_CALL => true,
        frontend::QUERY => head.total > MAX_QUERY,
        frontend::BIND => head.total > STREAMED && read::bind_names(&frame[scan::HEADER..]).is_ok(),
        _ => false,
    }
}
