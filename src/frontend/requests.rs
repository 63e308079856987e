//! The client's messages on their way to its server: names of statements rewritten, the rest as it came. HOT.

use std::sync::Arc;

use bytes::{Buf, BufMut, BytesMut};

use crate::config::{PoolMode, UnnamedStatements};
use crate::error::Fault;
use crate::frontend::batch::{MAX_QUERY, check_size};
use crate::frontend::names::runs_by_name;
use crate::frontend::refusal;
use crate::frontend::session::{Leased, Portal, Scanned, Session};
use crate::route::plan::Plan;
use crate::session::bound;
use crate::session::pipeline::{Expect, Local, Undo};
use crate::session::prepared::{NAME_PREFIX, Statement};
use crate::session::values::values;
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
    /// Translates what the inbox holds, up to `end` or all of it; consumed, unless the request keeps it for a retry.
    ///
    /// # Errors
    /// The client breaks the protocol.
    pub fn forward(&mut self, end: Option<usize>) -> Result<Forwarded, Fault> {
        let Some(mut leased) = self.leased.take() else { return Ok(Forwarded::All { need: 0 }) };
        let mut inbox = std::mem::take(&mut self.inbox);
        leased.lease.begin();
        let forwarded = self.forward_frames(&inbox, end.unwrap_or(usize::MAX), &mut leased);
        if let (Ok((at, _)), 0) = (&forwarded, self.request.kept) {
            inbox.advance(*at);
            self.worker.buffers.give_back(&mut inbox);
        }
        self.inbox = inbox;
        self.leased = Some(leased);
        // With a ReadyForQuery owed, the server answers soon, and they go to the client with its answer, in one write.
        if self.request.kept == 0 && !self.pipeline.owes_ready() {
            self.emit_local();
        }
        // What the server ignores, the end of a failed COPY for one, brings no reply that would show the rest.
        self.held_back |= matches!(forwarded, Ok((1.., _))) && self.is_at_rest();
        forwarded.map(|(_, forwarded)| forwarded)
    }

    fn forward_frames(&mut self, inbox: &[u8], end: usize, leased: &mut Leased) -> Result<(usize, Forwarded), Fault> {
        let mut at = self.forward_rest(inbox, leased);
        let end = end.min(inbox.len());
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
                tag if self.must_wait(tag, &frame[scan::HEADER..])? => return Ok((at, Forwarded::All { need: 0 })),
                _ => self.forward_frame(head, frame, leased)?,
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

    /// What the message's name stands for depends on a segment that may yet fail.
    fn must_wait(&self, tag: u8, body: &[u8]) -> Result<bool, Fault> {
        if self.settling && !self.pipeline.is_empty() && !self.pipeline.is_unsynced() {
            return Ok(true);
        }
        if !self.pipeline.in_flight() || self.keeps_names() {
            return Ok(false);
        }
        let name = match tag {
            frontend::PARSE => read::parse(body)?.name,
            frontend::BIND => read::bind_names(body)?.1,
            frontend::DESCRIBE => match read::kind_and_name(body)? {
                (b'S', name) => name,
                _ => return Ok(false),
            },
            _ => return Ok(false),
        };
        let replaces = tag == frontend::PARSE && name.is_empty();
        Ok(!replaces && self.pipeline.is_name_uncertain(name))
    }

    /// The rest of a frame that is passed on as it arrives.
    fn forward_rest(&mut self, inbox: &[u8], leased: &mut Leased) -> usize {
        let n = self.client_rest.min(inbox.len());
        leased.lease.outbox.put_slice(&inbox[..n]);
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
                let refused = self.refused(&plan.facts, leased);
                if refused.is_some() {
                    write::query(&mut leased.lease.outbox, refusal::QUERY);
                } else {
                    self.name_for_sql(&plan.facts, leased);
                    self.note_sequences(&plan.facts, leased);
                    self.note_plan(&plan, leased);
                    leased.lease.outbox.put_slice(frame);
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
                leased.lease.outbox.put_slice(frame);
                self.pipeline.push(Expect::Execute { plan, values: values.flatten(), undo });
            }
            frontend::CLOSE => self.forward_close(frame, leased)?,
            frontend::SYNC => {
                self.skipping = false;
                leased.lease.outbox.put_slice(frame);
                self.pipeline.push(Expect::Sync { shown: true });
            }
            frontend::FUNCTION_CALL => {
                // By OID, so of unknown effect.
                self.writing = true;
                (leased.suspect, leased.unsure) = (true, true);
                leased.lease.outbox.put_slice(frame);
                self.pipeline.push(Expect::Function);
            }
            frontend::FLUSH => {
                leased.lease.outbox.put_slice(frame);
                if self.request.kept == 0 {
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

    fn forward_parse(&mut self, parse: read::Parse<'_>, leased: &mut Leased) {
        self.counters().client_parse();
        let statement = match self.scanned.pop_front() {
            Some(Scanned::Parse(statement)) if statement.environment == *self.environment.key() => statement,
            _ => self.statement(parse.text, parse.types),
        };
        self.forget_sequences(&statement.plan.facts, leased);
        let taken = self.names.find(parse.name).is_some() || self.is_of_sql(parse.name);
        if !parse.name.is_empty() && taken && !self.keeps_names() {
            return self.forward_duplicate(parse, leased);
        }
        let previous = self.names.replace(parse.name, Some(statement.clone()));
        let undo = Undo { name: parse.name.into(), previous, of_sql: false };
        let undo = Some(self.keep_undo(undo));
        if self.keeps_names() {
            write::parse(&mut leased.lease.outbox, parse.name, parse.text, parse.types);
            self.pipeline.push(Expect::Parse { statement: None, shown: true, undo });
        } else if parse.name.is_empty() && self.forwards_unnamed() {
            self.name_for_parse(&statement.plan.facts, leased);
            leased.lease.unnamed = Some(statement.id);
            write::parse(&mut leased.lease.outbox, b"", parse.text, parse.types);
            self.pipeline.push(Expect::Parse { statement: None, shown: true, undo });
        } else if self.may_answer_parse(&statement.plan) && self.has_for_certain(&statement, leased) {
            self.pipeline.push(Expect::ParsedHere { undo });
        } else {
            self.prepare(&statement, true, undo, leased);
        }
    }

    /// The server has the statement whatever becomes of the segments in flight.
    fn has_for_certain(&self, statement: &Statement, leased: &mut Leased) -> bool {
        leased.lease.held.renew(self.database.statements.definitions());
        leased.lease.held.touch(statement.id) && !self.pipeline.is_statement_uncertain(statement.id)
    }

    /// In a failed transaction the server refuses a Parse of anything but its end, and a text that runs by name has
    /// another description once the name stands for something else.
    fn may_answer_parse(&self, plan: &Plan) -> bool {
        let may_fail = self.pipeline.in_flight() && (self.status == b'T' || self.opens_block);
        let may_be_refused = (self.status == b'E' || may_fail) && plan.facts.control.is_empty();
        !may_be_refused && !runs_by_name(&plan.facts)
    }

    /// What an error takes back; kept apart as well while the whole batch may be said again.
    pub(super) fn keep_undo(&mut self, undo: Undo) -> Undo {
        if self.request.kept > 0 {
            self.request.undo.push(undo.clone());
        }
        undo
    }

    /// The name is taken: the server itself is to say so (42P05), in its place in the order.
    fn forward_duplicate(&mut self, parse: read::Parse<'_>, leased: &mut Leased) {
        self.name_on_server(parse.name, false, leased);
        let out = &mut leased.lease.outbox;
        write::parse(out, parse.name, parse.text, parse.types);
        self.pipeline.push(Expect::Parse { statement: None, shown: true, undo: None });
    }

    /// Prepares a statement on the server under its name there, closing the least recently used beyond the bound. Where
    /// the server may have it already, it is closed first: a Close never fails.
    fn prepare(&mut self, statement: &Arc<Statement>, shown: bool, undo: Option<Undo>, leased: &mut Leased) {
        self.counters().server_parse();
        self.name_for_parse(&statement.plan.facts, leased);
        let max = leased.lease.pool.config.load().prepared_statements;
        let held = &mut leased.lease.held;
        let known = held.touch(statement.id) || held.is_doubtful(statement.id);
        if known || self.pipeline.is_statement_uncertain(statement.id) {
            held.remove(statement.id);
            self.close_on_server(statement, leased);
        }
        while let Some(evicted) = leased.lease.held.make_room(max) {
            self.close_on_server(&evicted, leased);
        }
        leased.lease.held.insert(statement.clone());
        write::parse(&mut leased.lease.outbox, &statement.name, &statement.text, &statement.types);
        self.pipeline.push(Expect::Parse { statement: Some(statement.clone()), shown, undo });
    }

    fn close_on_server(&mut self, statement: &Arc<Statement>, leased: &mut Leased) {
        write::of_statement(&mut leased.lease.outbox, frontend::CLOSE, &statement.name);
        self.pipeline.push(Expect::Close { shown: false, evicted: Some(statement.clone()) });
    }

    /// The name by which the server knows the client's statement, prepared there where it was not; `None`: the client
    /// has no such statement, and the server is to say so.
    fn server_name(&mut self, name: &[u8], leased: &mut Leased) -> Option<Arc<Statement>> {
        let statement = self.names.find(name)?.clone();
        if self.keeps_names() {
            return Some(statement);
        }
        if name.is_empty() && self.forwards_unnamed() {
            if leased.lease.unnamed != Some(statement.id) || self.pipeline.is_unnamed_uncertain() {
                self.name_for_parse(&statement.plan.facts, leased);
                leased.lease.unnamed = Some(statement.id);
                write::parse(&mut leased.lease.outbox, b"", &statement.text, &statement.types);
                self.pipeline.push(Expect::Parse { statement: None, shown: false, undo: None });
            }
        } else if !self.can_use(&statement, leased) {
            return Some(self.prepare_again(statement, leased));
        }
        Some(statement)
    }

    /// In a failed transaction nothing can be prepared and nothing is run: one that is out of date will do.
    fn can_use(&self, statement: &Statement, leased: &mut Leased) -> bool {
        self.has_for_certain(statement, leased) || (self.status == b'E' && leased.lease.held.has(statement.id))
    }

    /// A statement that this connection has not: its text is read under the settings of now.
    fn prepare_again(&mut self, statement: Arc<Statement>, leased: &mut Leased) -> Arc<Statement> {
        let statement = match statement.environment == *self.environment.key() {
            true => statement,
            false => self.statement(&statement.text, &statement.types),
        };
        if !self.has_for_certain(&statement, leased) {
            self.prepare(&statement, false, None, leased);
        }
        statement
    }

    fn forward_bind(&mut self, head: scan::Head, frame: &[u8], leased: &mut Leased) -> Result<(), Fault> {
        self.counters().bind();
        let body = &frame[scan::HEADER..];
        let (portal, name) = read::bind_names(body)?;
        let statement = self.server_name(name, leased);
        let rest = &body[portal.len() + name.len() + 2..];
        let plan = statement.as_ref().map(|statement| self.bound_plan(statement, rest));
        let refused = plan.as_ref().and_then(|plan| self.refused(&plan.facts, leased));
        let new = match refused {
            Some(_) => refusal::STATEMENT.into(),
            None => self.name_there(name, statement.as_deref(), leased),
        };
        if let Some(plan) = plan.filter(|_| refused.is_none()) {
            self.name_for_sql(&plan.facts, leased);
            self.note_sequences(&plan.facts, leased);
            self.note_plan(&plan, leased);
            self.note_portal(portal, &plan, rest);
        }
        let out = &mut leased.lease.outbox;
        out.put_u8(head.tag);
        out.put_u32((head.total - 1 - name.len() + new.len()) as u32);
        out.put_slice(portal);
        out.put_u8(0);
        out.put_slice(&new);
        out.put_u8(0);
        out.put_slice(rest);
        let name = self.names.shared(name);
        self.pipeline.push(Expect::Bind { plan: statement.map(|s| s.plan.clone()), name, refused });
        Ok(())
    }

    /// The plan of a statement that is bound to these values.
    fn bound_plan(&self, statement: &Statement, rest: &[u8]) -> Arc<Plan> {
        let plan = &statement.plan;
        match bound::settled(&plan.facts, &statement.types, rest).filter(|_| self.readable) {
            Some(facts) => Arc::new(plan.with_facts(facts)),
            None => plan.clone(),
        }
    }

    fn forward_describe(&mut self, frame: &[u8], leased: &mut Leased) -> Result<(), Fault> {
        let (kind, name) = read::kind_and_name(&frame[scan::HEADER..])?;
        if kind == b'S' {
            let statement = self.server_name(name, leased);
            if let Some(statement) = &statement {
                self.name_for_sql(&statement.plan.facts, leased);
            }
            let new = self.name_there(name, statement.as_deref(), leased);
            write::of_statement(&mut leased.lease.outbox, frontend::DESCRIBE, &new);
            let name = self.names.shared(name);
            self.pipeline.push(Expect::Describe { name, plan: statement.map(|s| s.plan.clone()) });
        } else {
            leased.lease.outbox.put_slice(frame);
            self.pipeline.push(Expect::Describe { name: None, plan: None });
        }
        Ok(())
    }

    fn forward_close(&mut self, frame: &[u8], leased: &mut Leased) -> Result<(), Fault> {
        let (kind, name) = read::kind_and_name(&frame[scan::HEADER..])?;
        if kind == b'S' && self.keeps_names() {
            self.names.replace(name, None);
        } else if kind == b'S' && self.is_of_sql(name) {
            self.forget_name(name, leased);
            leased.unsure = true;
        } else if kind == b'S' {
            self.close_name(name, leased);
            let previous = self.names.replace(name, None);
            let undo = Some(self.keep_undo(Undo { name: name.into(), previous, of_sql: false }));
            self.pipeline.push(Expect::ClosedHere { undo });
            return Ok(());
        }
        leased.lease.outbox.put_slice(frame);
        self.pipeline.push(Expect::Close { shown: true, evicted: None });
        Ok(())
    }

    /// The name to use on the server. One that the client has not made goes as it is, to be missing there too; in
    /// forward mode another client's unnamed statement must not stand in for it.
    fn name_there(&mut self, name: &[u8], statement: Option<&Statement>, leased: &mut Leased) -> Box<[u8]> {
        match statement {
            _ if self.keeps_names() => name.into(),
            Some(_) if name.is_empty() && self.forwards_unnamed() => Box::default(),
            Some(statement) => statement.name.clone(),
            None if name.is_empty() => {
                if leased.lease.unnamed.take().is_some() {
                    write::of_statement(&mut leased.lease.outbox, frontend::CLOSE, b"");
                    self.pipeline.push(Expect::Close { shown: false, evicted: None });
                }
                Box::default()
            }
            None if name.starts_with(NAME_PREFIX.as_bytes()) => [name, b"?"].concat().into(),
            None => name.into(),
        }
    }

    /// The connection is the client's alone: its statements have the names it gave them, for SQL to use as well.
    pub(super) fn keeps_names(&self) -> bool {
        self.mode == PoolMode::Session
    }

    fn forwards_unnamed(&self) -> bool {
        self.database.pools.config().unnamed_statements == UnnamedStatements::Forward
    }

    /// `bound`: of the Bind, behind its names; of one that is passed on as it arrives, not all.
    fn note_portal(&mut self, name: &[u8], plan: &Arc<Plan>, bound: &[u8]) {
        let plan = plan.clone();
        let values = match self.proxy.stats.shows_parameters() {
            true => values(bound).ok().map(Arc::new),
            false => None,
        };
        match self.portals.iter_mut().find(|known| *known.name == *name) {
            Some(known) => (known.plan, known.values) = (plan, values),
            None => self.portals.push(Portal { name: name.into(), plan, values }),
        }
    }

    /// Settings that differ between the client and its connection, said ahead of the client's own messages.
    pub fn replay(&mut self) {
        let Some(leased) = &mut self.leased else { return };
        let Some(sql) = leased.actual.difference(self.parameters.current()) else { return };
        leased.lease.begin();
        write::query(&mut leased.lease.outbox, &sql);
        leased.lease.unnamed = None;
        leased.actual = self.parameters.current().clone();
        self.pipeline.push(Expect::Replay);
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
            emit(&mut self.outbox, local);
        }
    }
}

pub(super) fn emit(out: &mut BytesMut, local: Local) {
    match local {
        Local::ParseComplete => write::parse_complete(out),
        Local::CloseComplete => write::close_complete(out),
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
