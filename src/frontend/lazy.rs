//! Blocks that begin lazily: pgweir answers a BEGIN that comes alone by itself, and says it to a server in one write with
//! the block's first statement. Who commits at once needs no server at all; and where nothing comes within [`BOUND`], the
//! block is begun unasked, so that what counts from BEGIN (`now()`, the server's timeouts, `pg_stat_activity`) is not
//! off by more.
//!
//! The BEGIN goes ahead by the extended protocol, without a Sync: should it fail, the server skips what stands behind it, a
//! Query too (`ignore_till_sync` in `PostgresMain`), so that nothing runs outside of the transaction it was meant for.

use std::future::Future;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BufMut;

use crate::cache::entry::Part;
use crate::cache::key::{NO_PARAMETERS, NO_TYPES};
use crate::cache::request::{Request as Asked, Source};
use crate::cluster::Tried;
use crate::config::PoolMode;
use crate::error::{Fault, sqlstate};
use crate::frontend::batch::Batch;
use crate::frontend::cached::Sought;
use crate::frontend::choice::Chosen;
use crate::frontend::client::Activity;
use crate::frontend::io::Wait;
use crate::frontend::leases;
use crate::frontend::serve::{End, stop_fault};
use crate::frontend::session::{Leased, Request, Session};
use crate::net::buffers::drop_front;
use crate::route::block;
use crate::route::decide::Why;
use crate::sql::Boundary;
use crate::wire::tag::{backend, frontend};
use crate::wire::{scan, write};

/// A client beside pgweir sends what it has to say within less; of those who see a transaction's time, none could tell.
const BOUND: Duration = Duration::from_millis(10);

const ABORTED: &str = "current transaction is aborted, commands ignored until end of transaction block";

impl Session {
    /// Answers a BEGIN, the end of a block that has not begun on any server, and what is said in one that has failed for
    /// want of a server. True where the batch is answered.
    pub(super) fn answer_alone(&mut self, batch: &Batch) -> bool {
        let failed = self.status == b'E';
        if !(batch.begins || batch.demand.ends || failed) || self.mode != PoolMode::Transaction || batch.end == 0 {
            return failed && self.refuse_in_failed_block(batch);
        }
        let inbox = std::mem::take(&mut self.inbox);
        let found = boundary(self, &inbox[..batch.end]);
        let answered = match &found {
            Some((asked, sought, boundary)) if boundary.begins() => {
                // What others notify of is delivered before the block of a client that listens, not within it.
                let may = self.status == b'I' && inbox.len() == batch.end && self.subscription.is_none();
                may && self.begin_lazily(asked, sought, *boundary)
            }
            Some((asked, sought, _)) if failed => self.say(asked, sought, Boundary::Rollback, b'I'),
            Some((asked, sought, boundary)) if self.is_untouched_block() => self.say(asked, sought, *boundary, b'I'),
            _ => false,
        };
        self.inbox = inbox;
        if !answered {
            return failed && self.refuse_in_failed_block(batch);
        }
        drop_front(&mut self.inbox, batch.end);
        self.worker.buffers.give_back(&mut self.inbox);
        true
    }

    fn begin_lazily(&mut self, asked: &Asked<'_>, sought: &Sought, boundary: Boundary) -> bool {
        self.hold_block(&sought.plan);
        self.say(asked, sought, boundary, b'T');
        self.await_first(self.request.mark);
        true
    }

    /// The block's first statement is to come within the bound.
    fn await_first(&mut self, now: Instant) {
        if let Some(block) = &mut self.block {
            block.await_first();
        }
        let at = (now + BOUND).into();
        match &mut self.due {
            Some(due) => due.as_mut().reset(at),
            None => self.due = Some(Box::pin(tokio::time::sleep_until(at))),
        }
    }

    /// The answer that a server would give.
    fn say(&mut self, asked: &Asked<'_>, sought: &Sought, boundary: Boundary, status: u8) -> bool {
        let out = self.worker.buffers.make_room(&mut self.outbox);
        let before = out.len();
        for part in asked.parts() {
            match part {
                Part::ParseComplete => write::parse_complete(out),
                Part::BindComplete => out.put_slice(&[backend::BIND_COMPLETE, 0, 0, 0, 4]),
                Part::CloseComplete => write::close_complete(out),
                Part::Statement => {
                    write::parameter_description(out, NO_TYPES);
                    write::no_data(out);
                }
                Part::Rows if matches!(asked.source, Source::Query(_)) => {}
                Part::Rows => write::no_data(out),
                Part::Result => write::command_complete(out, boundary.tag()),
                Part::Ready => write::ready(out, status),
            }
        }
        self.request.bytes = (self.outbox.len() - before) as u64;
        self.filling = None;
        self.note_names(asked, sought);
        self.apply(&sought.plan, boundary.tag().as_bytes());
        let now = self.record(&sought.plan);
        self.on_ready(status, now);
        self.client.set_activity(if status == b'I' { Activity::Idle } else { Activity::IdleInTransaction }, now);
        true
    }

    /// Refused as by a server, but for a string that ends the block and goes on behind it, which is run without the block.
    fn refuse_in_failed_block(&mut self, batch: &Batch) -> bool {
        let plan = self.scanned_plan(batch.end);
        if plan.is_some_and(|plan| block::ends_first(&plan.facts, &plan.text)) {
            self.give_up_block();
            return false;
        }
        self.refuse(*batch, &Fault::error(sqlstate::IN_FAILED_TRANSACTION, ABORTED));
        true
    }

    /// Ready when the block that has been begun lazily is to begin on a server.
    pub(super) fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.due {
            Some(due)
                if self.leased.is_none()
                    && self.line.is_none()
                    && self.block.as_ref().is_some_and(|block| block.is_awaited()) =>
            {
                due.as_mut().poll(cx)
            }
            _ => Poll::Pending,
        }
    }

    /// Begins the block on a server. Where that cannot be, its first statement will try, and its error is the client's.
    pub(super) async fn begin_unasked(&mut self) -> Result<(), End> {
        let Some(begin) = self.block.as_mut().and_then(|block| block.take_awaited()) else { return Ok(()) };
        // What the client has not asked for does not end its being idle.
        let (_, since) = self.client.activity();
        let mut batch = Batch::default();
        self.weigh(&begin, &mut batch);
        self.request = Request { floor: batch.floor, ..Request::new(Instant::now(), Why::Read) };
        let found = match self.choose(&batch, Tried::default()) {
            Some(chosen) => self.lease_unasked(chosen, &batch).await?,
            None => None,
        };
        if let Some(leased) = found {
            self.take_up(leased);
            self.begin_apart(false);
        }
        self.request.mark = since;
        self.client.set_activity(Activity::IdleInTransaction, since);
        Ok(())
    }

    async fn lease_unasked(&mut self, chosen: Chosen, batch: &Batch) -> Result<Option<Leased>, End> {
        let Chosen { node, why, .. } = chosen;
        let (replica, pool) = (self.is_replica(node), self.pools[usize::from(node)].clone());
        match self.wait_for_lease(&pool, true).await {
            Wait::Answer(Ok(lease)) if !replica || self.may_read(&lease) => {
                self.waited(Duration::ZERO, true);
                return Ok(Some(leases::leased(batch, lease, why, replica)));
            }
            Wait::ClientGone => return Err(End::Client),
            Wait::Stopped => return Err(End::Fault(stop_fault(self.client.stop_reason()))),
            Wait::Answer(_) | Wait::InVain | Wait::Cancelled => {}
        }
        self.undeal(&chosen);
        if !self.inbox.is_empty() {
            // What that is need not be for a server.
            self.await_first(Instant::now());
        }
        Ok(None)
    }

    /// The server has refused the BEGIN, and with it skips what came behind.
    pub(super) fn on_begin_failed(&mut self, error: &[u8], code: &str) {
        let (apart, ready) = (self.pipeline.only_begins(), self.pipeline.owes_ready());
        if !apart {
            self.record_broken_off(code);
        }
        self.kept_no_more();
        self.request.end = None;
        self.lose_lease();
        if apart && !self.block.as_ref().is_some_and(|block| block.is_asked()) {
            // Nobody has heard of it: the first statement tries again.
            return;
        }
        // What was noted of what was sent has not come to be.
        (self.writing, self.reading) = (false, false);
        self.written.clear();
        self.pins.clear();
        write::frame(&mut self.outbox, backend::ERROR, |out| out.put_slice(error));
        if apart {
            return self.end_refused(Batch::default(), code);
        }
        self.fail_block();
        match ready {
            true => write::ready(&mut self.outbox, self.status),
            false => self.skipping = true,
        }
    }
}

/// The batch is this and nothing else.
fn boundary<'a>(session: &Session, batch: &'a [u8]) -> Option<(Asked<'a>, Sought, Boundary)> {
    let asked = Asked::read(batch)?;
    let sought = session.sought(&asked)?;
    let facts = &sought.plan.facts;
    let boundary = facts.boundary.filter(|_| sought.plan.text.is_whole() && block::stands_alone(facts))?;
    let plain = match &sought.statement {
        None => true,
        Some(statement) => *statement.types == *NO_TYPES && asked.parameters == NO_PARAMETERS && names_no_portal(batch),
    };
    (plain && session.sql_names.is_empty()).then_some((asked, sought, boundary))
}

/// A named portal would outlast the answer.
fn names_no_portal(mut batch: &[u8]) -> bool {
    while let Ok(Some((head, body))) = scan::frame(batch) {
        if head.tag == frontend::BIND && body.first() != Some(&0) {
            return false;
        }
        batch = &batch[head.total..];
    }
    true
}
