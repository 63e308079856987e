//! The server's messages on their way to the client: runs of raw frames, with what pgweir asked itself left out and what
//! it answers itself put in. HOT.

use std::sync::Arc;
use std::time::Instant;

use bytes::{BufMut, BytesMut};

use crate::cluster::Tried;
use crate::error::{Fault, Malformed};
use crate::frontend::retry::Again;
use crate::frontend::session::{Kept, Session};
use crate::net::buffers::drop_front;
use crate::session::pipeline::{Expect, Failed, Step};
use crate::session::prepared::as_client_says;
use crate::wire::read::ErrorFields;
use crate::wire::tag::backend;
use crate::wire::{read, scan, write};

/// What came of the bytes that the server sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Relayed {
    /// All of them are on their way.
    On,
    /// Nothing has reached the client, and the server's error is one that another node would not give.
    Retry { why: String, again: Again },
    /// The server ends the connection; its own error is on its way to the client.
    Fatal,
    /// The BEGIN of the client's block has failed, with this error and code, and nothing behind it has run.
    BeginFailed(Box<[u8]>, String),
    /// pgweir's own statement ahead of the client's has failed: the session's state cannot be had here.
    ReplayFailed(String),
}

/// A frame's place in the inbox, and the state of the copy to the client.
struct Copy {
    inbox: BytesMut,
    /// Frames up to here are looked at.
    at: usize,
    /// Frames from here on are not copied yet.
    from: usize,
    /// Bytes in the outbox when this began.
    before: usize,
    /// When the last statement that ends in it was counted.
    ended: Option<Instant>,
}

impl Copy {
    /// Copies what is owed to the client so far.
    fn flush(&mut self, out: &mut BytesMut) {
        out.put_slice(&self.inbox[self.from..self.at]);
        self.from = self.at;
    }
}

impl Session {
    /// Takes what the server has sent.
    ///
    /// # Errors
    /// The server breaks the protocol, or its replies are not those owed.
    pub fn relay(&mut self) -> Result<Relayed, Malformed> {
        let Some(leased) = &mut self.leased else { return Ok(Relayed::On) };
        let inbox = std::mem::take(&mut leased.lease.inbox);
        let mut copy = Copy { inbox, at: 0, from: 0, before: self.outbox.len(), ended: None };
        let relayed = self.relay_frames(&mut copy);
        if matches!(relayed, Ok(Relayed::Retry { .. })) {
            self.outbox.truncate(copy.before);
        } else {
            self.copy_out(&mut copy);
        }
        if let Some(leased) = &mut self.leased {
            leased.lease.inbox = copy.inbox;
        }
        relayed
    }

    /// Hands the looked-at bytes to the client; all of a buffer at once changes owner instead of being copied.
    fn copy_out(&mut self, copy: &mut Copy) {
        let forwarded = copy.at - copy.from;
        if forwarded > 0 {
            self.kept_no_more();
        }
        if copy.from == 0 && copy.at == copy.inbox.len() && self.outbox.is_empty() {
            std::mem::swap(&mut self.outbox, &mut copy.inbox);
            self.worker.buffers.give_back(&mut copy.inbox);
            return;
        }
        copy.flush(&mut self.outbox);
        drop_front(&mut copy.inbox, copy.at);
        if self.outbox.len() > copy.before {
            self.kept_no_more();
        }
        self.worker.buffers.give_back(&mut copy.inbox);
    }

    fn relay_frames(&mut self, copy: &mut Copy) -> Result<Relayed, Malformed> {
        self.relay_rest(copy);
        // Held back so far, while the request could still be said again elsewhere.
        self.emit_local();
        while let Some(head) = scan::head(&copy.inbox[copy.at..])? {
            let available = (copy.inbox.len() - copy.at).min(head.total);
            match head.tag {
                backend::DATA_ROW if self.pipeline.is_survey() => {
                    if available < head.total {
                        break;
                    }
                    self.note_survey(&copy.inbox[copy.at + scan::HEADER..copy.at + head.total])?;
                    self.pass(head, available, copy)?;
                    continue;
                }
                backend::DATA_ROW | backend::COPY_DATA => {
                    self.request.part += 1;
                    self.pass(head, available, copy)?;
                    self.pass_like(head.tag, copy);
                    continue;
                }
                _ if available < head.total => break,
                backend::NOTICE if self.request.kept == Kept::Read && is_farewell(head, copy)? && self.fails_over() => {
                    let why = "the server ends at once".to_owned();
                    return Ok(Relayed::Retry { why, again: Again::Elsewhere });
                }
                backend::NOTICE | backend::PARAMETER_STATUS | backend::NOTIFICATION => {
                    self.pass_aside(head, copy)?;
                }
                backend::READY if self.pipeline.is_stray() => self.pass(head, available, copy)?,
                backend::READY if self.holds(head, copy) => break,
                backend::ERROR if self.is_done_with_server() => break,
                backend::ERROR => {
                    if let Some(ended) = self.on_error(head, copy)? {
                        return Ok(ended);
                    }
                }
                backend::READY => self.pass_ready(head, copy)?,
                _ => {
                    self.complete(head, copy)?;
                    self.pass(head, available, copy)?;
                }
            }
            while let Some(local) = self.pipeline.next_local() {
                copy.flush(self.worker.buffers.make_room(&mut self.outbox));
                self.emit(local);
            }
        }
        Ok(Relayed::On)
    }

    /// The server ends right behind its last answer: that is no affair of a client whose session lives on without it.
    fn is_done_with_server(&self) -> bool {
        self.is_at_rest() && !self.keeps_lease()
    }

    /// The rest of a frame that is passed on as it arrives.
    fn relay_rest(&mut self, copy: &mut Copy) {
        let n = self.server_rest.min(copy.inbox.len());
        self.server_rest -= n;
        self.request.bytes += n as u64;
        copy.at = n;
        if self.pipeline.is_own() {
            copy.from = n;
        } else {
            self.fill(&copy.inbox[..n]);
        }
    }

    /// A frame that the pipeline owes to the client, or that pgweir asked for itself.
    fn pass(&mut self, head: scan::Head, available: usize, copy: &mut Copy) -> Result<(), Malformed> {
        match self.pipeline.step(head.tag) {
            Step::Forward => {
                self.fill(&copy.inbox[copy.at..copy.at + available]);
                copy.at += available;
                self.request.bytes += available as u64;
            }
            Step::Swallow => {
                copy.flush(&mut self.outbox);
                copy.at += available;
                copy.from = copy.at;
            }
            Step::Violation => return Err(Malformed("reply out of step")),
        }
        self.server_rest = head.total - available;
        Ok(())
    }

    /// The whole frames behind a row that are rows like it: they change nothing in what is owed.
    fn pass_like(&mut self, tag: u8, copy: &mut Copy) {
        if self.pipeline.is_own() {
            return;
        }
        let (frames, bytes) = scan::run(&copy.inbox[copy.at..], tag);
        self.fill(&copy.inbox[copy.at..copy.at + bytes]);
        copy.at += bytes;
        self.request.part += frames;
        self.request.bytes += bytes as u64;
    }

    /// What the statements of a string have done is taken over once; then whether the ReadyForQuery is to wait.
    fn holds(&mut self, head: scan::Head, copy: &mut Copy) -> bool {
        let resumed = self.subscription.as_mut().is_some_and(|subscription| subscription.resumes());
        let several = match self.pipeline.front() {
            Some(Expect::Query { plan: Some(plan), refused: None }) if plan.facts.statements > 1 => Some(plan.clone()),
            Some(Expect::Query { .. } | Expect::Function | Expect::Sync { shown: true }) => None,
            _ => return false,
        };
        if let Some(plan) = several.filter(|_| !resumed) {
            self.apply_several(&plan);
        }
        let status = copy.inbox[copy.at + head.total - 1];
        if !resumed && status == b'I' && self.holds_ready() {
            return true;
        }
        if status == b'I' && self.subscription.is_some() {
            copy.flush(&mut self.outbox);
            self.deliver();
        }
        false
    }

    fn pass_ready(&mut self, head: scan::Head, copy: &mut Copy) -> Result<(), Malformed> {
        let own = match self.pipeline.front_mut() {
            // What is owed for it ends here.
            Some(Expect::Query { plan, .. }) if plan.is_some() => {
                let plan = plan.take();
                copy.ended = plan.map(|plan| self.record(&plan));
                false
            }
            Some(Expect::Replay | Expect::Aside) => true,
            Some(Expect::Survey) => {
                self.finish_survey();
                true
            }
            Some(Expect::Sync { shown: false }) => {
                // The client's own Sync is still to come: up to it an error skips its messages.
                self.skipping = std::mem::take(&mut self.failed);
                true
            }
            _ => false,
        };
        if !own && !self.reported.is_empty() {
            copy.flush(&mut self.outbox);
            self.correct_reports();
        }
        self.pass(head, head.total, copy)?;
        if !own {
            self.on_ready(copy.inbox[copy.at - 1], copy.ended.unwrap_or_else(Instant::now));
            // One that was left to a statement that has not been executed.
            self.leaving.take_if(|_| self.pipeline.is_settled());
        }
        Ok(())
    }

    /// Messages that may come at any time.
    fn pass_aside(&mut self, head: scan::Head, copy: &mut Copy) -> Result<(), Malformed> {
        let own = self.pipeline.is_own();
        let frame = &mut copy.inbox[copy.at..copy.at + head.total];
        // A notification is the client's, whenever it comes.
        let passed = match head.tag {
            backend::PARAMETER_STATUS => !self.note_status(&frame[scan::HEADER..], own)? && !own,
            backend::NOTIFICATION => self.pass_notification(head, frame)?,
            _ => !own,
        };
        if !passed {
            copy.flush(&mut self.outbox);
            copy.from = copy.at + head.total;
        } else {
            self.spoil_fill();
        }
        copy.at += head.total;
        Ok(())
    }

    /// True where the report is kept back, to be corrected.
    fn note_status(&mut self, body: &[u8], own: bool) -> Result<bool, Malformed> {
        if let Some(leased) = &mut self.leased {
            leased.lease.note_status(body)?;
        }
        let mut r = read::Reader::new(body);
        let (name, value) = (r.str()?, r.str()?);
        let kept_back = !own && self.parameters.base().value(&name.to_ascii_lowercase()).is_some();
        if kept_back {
            self.reported.retain(|(reported, _)| **reported != *name);
            self.reported.push((name.into(), value.into()));
        }
        if name == "application_name" {
            value.clone_into(&mut self.client.application_name.lock());
        }
        if matches!(name, "client_encoding" | "standard_conforming_strings") {
            self.note_readable();
        }
        Ok(kept_back)
    }

    /// RESET brings a server back to its own values, the client to those of its startup packet, which are said again
    /// ahead of the next statement: the client is told those, and only of a change.
    fn correct_reports(&mut self) {
        let (base, current) = (self.parameters.base(), self.parameters.current());
        for (name, said) in self.reported.drain(..) {
            let lower = name.to_ascii_lowercase();
            let first = self.greeting.iter().find(|(first, _)| *first == name).map(|(_, value)| value.clone());
            let there = self.leased.as_ref().and_then(|leased| leased.lease.settings.value(&lower));
            let is_reset = there.is_none() && base.value(&lower) == current.value(&lower);
            let value = first.clone().filter(|_| is_reset).unwrap_or(said);
            if *name == *"application_name" {
                (*value).clone_into(&mut self.client.application_name.lock());
            }
            let told = self.told.iter_mut().find(|(told, _)| *told == name);
            let before = told.as_ref().map(|(_, value)| value.clone()).or(first);
            if before.as_ref() == Some(&value) {
                continue;
            }
            write::parameter_status(&mut self.outbox, &name, &value);
            match told {
                Some((_, told)) => *told = value,
                None => self.told.push((name, value)),
            }
        }
    }

    /// An ErrorResponse; `Some` where the way ends here.
    fn on_error(&mut self, head: scan::Head, copy: &mut Copy) -> Result<Option<Relayed>, Malformed> {
        self.spoil_fill();
        let fields = ErrorFields::read(&copy.inbox[copy.at + scan::HEADER..copy.at + head.total])?;
        if fields.is_changed_result() && self.on_changed_result() {
            return Ok(Some(Relayed::Retry { why: fields.message(), again: Again::Anew }));
        }
        self.doubt_text(fields.code);
        if let (b"26000", Some(leased)) = (fields.code, &mut self.leased) {
            // A statement was deallocated out of sight: no other is relied on.
            leased.lease.held.doubt_all();
        }
        let untouched = self.request.kept == Kept::Read || (is_shutdown(&fields) && self.may_leave_block());
        let on_replica = self.leased.as_ref().is_some_and(|leased| leased.replica);
        let again = match fields.is_fatal() {
            // Anywhere it would take as long.
            true => (fields.code != b"25P04").then_some(Again::Elsewhere),
            false => on_replica.then(|| Again::after(&fields)).flatten(),
        };
        let again = again.filter(|again| self.may_say_again(*again));
        // In a READ ONLY block that is what the primary says, too.
        if again == Some(Again::Write) && (untouched || self.block.is_none()) {
            self.note_refused_by_standby();
        }
        if let (true, Some(again)) = (untouched, again) {
            return Ok(Some(Relayed::Retry { why: fields.message(), again }));
        }
        if (self.pipeline.is_survey() || self.pipeline.is_aside()) && !fields.is_fatal() {
            if self.pipeline.is_aside() {
                self.aside_error = Some(copy.inbox[copy.at + scan::HEADER..copy.at + head.total].into());
            }
            self.fail_survey();
            copy.flush(&mut self.outbox);
            copy.at += head.total;
            copy.from = copy.at;
            return Ok(None);
        }
        if matches!(self.pipeline.front(), Some(Expect::Begin)) && !fields.is_fatal() {
            let body = copy.inbox[copy.at + scan::HEADER..copy.at + head.total].into();
            return Ok(Some(Relayed::BeginFailed(body, String::from_utf8_lossy(fields.code).into_owned())));
        }
        if self.pipeline.is_replay() {
            return Ok(Some(Relayed::ReplayFailed(fields.message())));
        }
        let fatal = fields.is_fatal();
        let refusal = self.refusal(fields.code);
        let code = refusal.as_ref().map_or(fields.code, |fault| fault.code.as_bytes()).try_into().ok();
        self.request.bytes += head.total as u64;
        match refusal {
            Some(fault) => self.replace_error(&fault, head, copy),
            None => self.pass_error(head, copy, fatal),
        }
        self.record_error(code, fatal);
        self.failed = true;
        let Failed { dropped, skips } = self.pipeline.fail();
        self.undo(dropped);
        self.skipping |= skips && !fatal;
        if fatal { Ok(Some(Relayed::Fatal)) } else { Ok(None) }
    }

    /// An error on its way to the client, in which a statement goes by the client's name for it.
    fn pass_error(&mut self, head: scan::Head, copy: &mut Copy, fatal: bool) {
        let body = copy.at + scan::HEADER..copy.at + head.total;
        if let Some(error) = self.error_of_aside(&copy.inbox[body.clone()]) {
            copy.flush(&mut self.outbox);
            write::frame(&mut self.outbox, backend::ERROR, |out| out.put_slice(&error));
            copy.at += head.total;
            copy.from = copy.at;
            return;
        }
        let describes = match self.pipeline.front() {
            Some(Expect::Parse { describes, .. } | Expect::Changed { describes, .. }) => describes.as_ref(),
            _ => None,
        };
        // In a failed transaction a Describe is refused before that.
        if let Some(statement) = describes.filter(|_| !fatal && self.status != b'E') {
            copy.flush(&mut self.outbox);
            write::parameter_description(&mut self.outbox, statement.fixed_types());
        }
        let changed = !fatal && matches!(self.pipeline.front(), Some(Expect::Changed { .. }));
        let name = self.pipeline.front().and_then(Expect::named).map_or(&[][..], |(name, _)| name);
        match as_client_says(&copy.inbox[body], name) {
            _ if changed => {
                copy.flush(&mut self.outbox);
                write::changed_result(&mut self.outbox);
            }
            Some(renamed) => {
                copy.flush(&mut self.outbox);
                write::frame(&mut self.outbox, backend::ERROR, |out| out.put_slice(&renamed));
            }
            None => {
                copy.at += head.total;
                return;
            }
        }
        copy.at += head.total;
        copy.from = copy.at;
    }

    /// A Query misses the name of a statement that could not be prepared ahead of it: why it could not is what
    /// Postgres says.
    fn error_of_aside(&mut self, body: &[u8]) -> Option<Box<[u8]>> {
        let by_query = matches!(self.pipeline.front(), Some(Expect::Query { .. }));
        let missing = |body| ErrorFields::read(body).is_ok_and(|fields| fields.code == b"26000");
        self.aside_error.take_if(|_| by_query && missing(body))
    }

    /// An error of pgweir's own in the place of the server's.
    fn replace_error(&mut self, fault: &Fault, head: scan::Head, copy: &mut Copy) {
        copy.flush(&mut self.outbox);
        write::error(&mut self.outbox, fault);
        copy.at += head.total;
        copy.from = copy.at;
    }

    /// The server finds a fault in a text that it, or another, has prepared before: the next Parse of it is for a server
    /// to answer.
    fn doubt_text(&self, code: &[u8]) {
        let Some(Expect::Parse { statement: Some(statement), .. } | Expect::Bind { statement: Some(statement), .. }) =
            self.pipeline.front()
        else {
            return;
        };
        // Syntax errors and violations of access rules.
        if code.starts_with(b"42") && statement.description().is_some() {
            self.database.statements.outdate(statement);
        }
    }

    /// The server refuses a statement whose result has changed. What else was prepared before may have changed as well:
    /// nobody is to run into that again. True where the client has said Parse since, for all that is known, and its
    /// request is to be said again.
    fn on_changed_result(&mut self) -> bool {
        let Some((name, statement)) = self.pipeline.front().and_then(Expect::named) else { return false };
        if statement.is_current() && statement.environment == *self.environment.key() {
            self.database.statements.definitions_have_changed();
        }
        let stands = self.names.find(name).is_some_and(|known| Arc::ptr_eq(known, statement));
        if !stands || self.names.is_proven(name) || self.request.kept == Kept::No {
            return false;
        }
        let (name, statement): (Box<[u8]>, _) = (name.into(), statement.clone());
        let now = self.statement(&statement.text, &statement.types);
        self.names.replace(&name, Some(now));
        self.names.doubt(&name);
        true
    }

    /// A frame that completes a statement, looked at before the pipeline moves on.
    fn complete(&mut self, head: scan::Head, copy: &mut Copy) -> Result<(), Malformed> {
        let body = &copy.inbox[copy.at + scan::HEADER..copy.at + head.total];
        match head.tag {
            // What pgweir asked itself is nobody's statement.
            _ if self.pipeline.is_own() => self.request.part = 0,
            backend::BIND_COMPLETE => self.prove(),
            backend::PARAMETER_DESCRIPTION => self.note_parameters(body),
            backend::ROW_DESCRIPTION => return self.described(Some(body)),
            backend::NO_DATA => return self.described(None),
            backend::COMMAND_COMPLETE => {
                let tag = read::Reader::new(body).cstr()?;
                // A simple Query has committed by now, and its client may be told before the ReadyForQuery comes.
                if self.writing && (self.status == b'I' || tag == b"COMMIT") {
                    self.invalidate();
                }
                self.request.rows += read::tag_rows(tag);
                match self.pipeline.front_mut() {
                    // What is owed for it ends here.
                    Some(Expect::Execute { plan, values, .. }) if plan.is_some() => {
                        self.request.values = values.take();
                        if let Some(plan) = plan.take() {
                            self.apply(&plan, tag);
                            copy.ended = Some(self.record(&plan));
                        }
                    }
                    Some(Expect::Query { plan: Some(plan), .. })
                        if plan.facts.statements == 1 && plan.facts.is_felt() =>
                    {
                        let plan = plan.clone();
                        self.apply(&plan, tag);
                    }
                    _ => {}
                }
            }
            backend::EMPTY_QUERY | backend::PORTAL_SUSPENDED => {
                self.request.rows += self.request.part;
                if let Some(Expect::Execute { plan: Some(plan), values, .. }) = self.pipeline.front() {
                    let plan = plan.clone();
                    self.request.values.clone_from(values);
                    // With as many rows as were asked for it may have done all that it does.
                    self.apply(&plan, b"");
                    self.record(&plan);
                }
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn on_ready(&mut self, status: u8, now: Instant) {
        if status == b'I' {
            match self.failed {
                true => self.rolled_back(),
                false => self.parameters.commit(),
            }
            self.had_temporary |= std::mem::take(&mut self.makes_temporary);
            if std::mem::take(&mut self.defining) {
                self.database.statements.definitions_changed();
                self.database.cluster.definitions.outdate();
            }
            if self.writing {
                self.invalidate();
            }
            self.note_seen(now);
            self.portals.truncate(1);
            let began = self.transaction_began.take().unwrap_or(self.request.started);
            self.counters().transaction(now.saturating_duration_since(began));
        } else if self.transaction_began.is_none() {
            self.transaction_began = Some(self.request.started);
        }
        self.status = status;
        self.note_block_ready(status);
        self.opens_block &= self.pipeline.in_flight();
        self.skipping &= !self.pipeline.is_settled();
        self.failed = false;
        self.aside_error = None;
        (self.tried, self.died) = (Tried::default(), false);
        self.land_fill();
    }

    /// A transaction has ended: what it has shown to the client, and what it has written, later reads must show too.
    fn note_seen(&mut self, now: Instant) {
        let (wrote, read) = (self.writing, self.reading);
        let Some(leased) = &self.leased else { return };
        match leased.replica {
            true if read => {
                self.seen.on_replica(now, leased.lease.pool.node.index);
            }
            false if wrote || read => {
                self.seen.on_primary(now);
                if wrote {
                    self.cluster().last_write.note(now);
                }
            }
            _ => {}
        }
        // Else a segment behind this one may write and read.
        if self.pipeline.is_settled() {
            (self.writing, self.reading) = (false, false);
            self.written.clear();
        }
    }

    /// Something has reached the client: the request cannot be said again elsewhere.
    pub(super) fn kept_no_more(&mut self) {
        if self.request.kept != Kept::No {
            self.request.kept = Kept::No;
            self.request.undo.clear();
            self.consume();
        }
    }
}

/// The server ends, or was told to end the connection, or replay needs what it holds.
fn is_shutdown(fields: &ErrorFields) -> bool {
    fields.is_fatal() && matches!(fields.code, b"57P01" | b"57P02" | b"40001")
}

/// On an immediate shutdown, and when a process of the server has crashed, a warning is all that comes before the end
/// (`quickdie`).
fn is_farewell(head: scan::Head, copy: &Copy) -> Result<bool, Malformed> {
    let fields = ErrorFields::read(&copy.inbox[copy.at + scan::HEADER..copy.at + head.total])?;
    Ok(matches!(fields.code, b"57P01" | b"57P02"))
}
