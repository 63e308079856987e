//! The loop of a session: read a batch, choose a node, lease, relay, give back.

use std::future::{Future, poll_fn};
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use crate::cluster::Tried;
use crate::config::{LoadBalancing, PoolMode};
use crate::error::{Fault, sqlstate};
use crate::frontend::batch::{Batch, Head};
use crate::frontend::cached::Answer;
use crate::frontend::client::{Activity, Stop};
use crate::frontend::io::{self, Event};
use crate::frontend::leases::Search;
use crate::frontend::replies::Relayed;
use crate::frontend::requests::Forwarded;
use crate::frontend::retry::Again;
use crate::frontend::session::{Kept, Leased, Request, Scanned, Session, Unended};
use crate::net::buffers::drop_front;
use crate::pool::lease::Return;
use crate::route::decide::Why;
use crate::session::pins::Pin;
use crate::wire::tag::frontend;
use crate::wire::{read, scan, write};

/// How long a write may go on whose connection was left: what begins meanwhile is to see it.
const UNSEEN_COMMIT: Duration = Duration::from_secs(1);

/// What a client is told that begins a transaction block in statement mode.
const NO_BLOCKS: &str = "transaction blocks are not allowed in statement pooling mode";

/// Messages that a client has ready come in less time one after the other.
const PAUSE: Duration = Duration::from_millis(20);

/// Events of one session after which the others of its worker have their turn.
const EVENTS: usize = 32;

/// How a session ended.
#[derive(Debug)]
pub enum End {
    /// The client said Terminate, or is gone.
    Client,
    /// The client is told why.
    Fault(Fault),
    /// A server's own last words are on their way to the client.
    Server,
}

/// What a turn of the loop leaves to a future of its own, for which an idle client need not have room.
#[derive(Debug)]
pub(super) enum Later {
    Ended(End),
    /// To be put to rest.
    Rest,
    /// The block that the client has begun is to begin on a server.
    Begin,
    /// The cache has to be asked further, or gives its answer in pieces.
    Consult(Batch, Answer),
    /// More is to be waited for than a connection of the node that was chosen, or another node is.
    TakeOn(Batch, Search),
}

impl From<End> for Later {
    fn from(end: End) -> Later {
        Later::Ended(end)
    }
}

impl From<Fault> for Later {
    fn from(fault: Fault) -> Later {
        Later::Ended(End::Fault(fault))
    }
}

/// What a session waits for between two polls.
#[derive(Default)]
struct Awaited {
    /// As in [`Session::poll_event`]; `None` where what is there has not been looked at.
    need: Option<usize>,
    /// Ends when what has come is to be taken for all that comes.
    pause: Option<std::pin::Pin<Box<Sleep>>>,
}

impl Awaited {
    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(PAUSE))).as_mut().poll(cx)
    }
}

impl Session {
    /// Serves the client until one side ends, or (`None`) until it is to be put to rest.
    pub(super) async fn run(&mut self) -> Option<End> {
        let mut awaited = Awaited::default();
        let mut done = Ok(());
        loop {
            done = match done {
                Ok(()) => Err(poll_fn(|cx| self.poll_turn(&mut awaited, cx)).await),
                Err(Later::Ended(end)) => return Some(end),
                Err(Later::Rest) => return None,
                Err(Later::Begin) => Box::pin(self.begin_unasked()).await.map_err(Later::from),
                Err(Later::Consult(batch, answer)) => Box::pin(self.consult(batch, answer)).await,
                Err(Later::TakeOn(batch, search)) => Box::pin(self.take_on(batch, search)).await.map_err(Later::from),
            };
        }
    }

    /// Does what the events so far allow; ready with what it cannot do itself.
    fn poll_turn(&mut self, awaited: &mut Awaited, cx: &mut Context<'_>) -> Poll<Later> {
        for _ in 0..EVENTS {
            let need = match awaited.need.take().map_or_else(|| self.advance(), Ok) {
                Ok(need) => need,
                Err(later) => return Poll::Ready(later),
            };
            let Poll::Ready(event) = self.poll_event(need, cx) else {
                if self.unended == Unended::Waiting && awaited.poll_pause(cx).is_ready() {
                    self.unended = Unended::Paused;
                    continue;
                }
                awaited.need = Some(need);
                return Poll::Pending;
            };
            awaited.pause = None;
            if self.line.is_some() {
                match self.on_line_event(event) {
                    Ok(()) => continue,
                    Err(later) => return Poll::Ready(later),
                }
            }
            let later = match event {
                Event::Client | Event::Room | Event::Lease(_) => None,
                Event::Server => self.on_server().map(Later::from),
                Event::ClientGone => Some(Later::Ended(End::Client)),
                Event::ServerGone(error) => self.on_server_gone(&error.to_string()).map(Later::from),
                Event::Fault(fault) => Some(fault.into()),
                Event::Due => Some(Later::Begin),
                Event::Stopped => match self.client.stop_reason() {
                    Stop::None if self.may_rest() => Some(Later::Rest),
                    Stop::None => self.on_nudge().map(Later::from),
                    why => Some(stop_fault(why).into()),
                },
            };
            if let Some(later) = later.or_else(|| self.settle().map(Later::from)) {
                return Poll::Ready(later);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Does all that the received bytes allow; how many the next step needs.
    fn advance(&mut self) -> Result<usize, Later> {
        loop {
            if let Some(leased) = &self.leased {
                let awaits = self.pipeline.ends_in_own_sync() || self.pipeline.is_beginning();
                let own = awaits || self.pipeline.is_survey();
                if self.request.end.is_none() {
                    let reads = leased.replica && !self.is_in_block();
                    if reads || self.request.kept != Kept::No || self.terminating || own {
                        // What follows is decided when this is done. Behind Terminate no more CopyData comes.
                        let copying = self.pipeline.awaits_copy();
                        let owed = (self.pipeline.owes_ready() && !copying) || self.pipeline.is_survey();
                        return if self.terminating && !owed { Err(End::Client.into()) } else { Ok(0) };
                    }
                    if self.leaves_failed_block()? {
                        continue;
                    }
                    if self.is_in_fresh_block() {
                        if !self.drop_rest() {
                            return Ok(0);
                        }
                        match self.begin_in_block()? {
                            Some(need) => return Ok(need),
                            None => continue,
                        }
                    }
                    self.begin_request();
                }
                if self.inbox.is_empty() {
                    return Ok(scan::HEADER);
                }
                match self.forward()? {
                    Forwarded::All { need } => return Ok(need),
                    Forwarded::Terminate => self.terminating = true,
                }
                continue;
            }
            if self.line.is_some() || !self.drop_rest() {
                return Ok(0);
            }
            if self.inbox.is_empty() {
                self.scanned.clear();
                return Ok(scan::HEADER);
            }
            match self.scan()? {
                Head::Wait(need) => return Ok(need),
                Head::Here(bytes) => self.answer(bytes),
                Head::Terminate => return Err(End::Client.into()),
                Head::Batch(batch) => self.take(batch)?,
            }
        }
    }

    /// A batch of a client that holds no connection.
    fn take(&mut self, batch: Batch) -> Result<(), Later> {
        self.request = Request { floor: batch.floor, ..Request::new(Instant::now(), Why::Read) };
        if self.answer_alone(&batch) {
            return Ok(());
        }
        let answer = match batch.demand.in_block {
            true => Answer::Run,
            false => self.ask_cache(&batch),
        };
        match answer {
            Answer::Given => Ok(()),
            Answer::Run => self.run_batch(batch),
            answer => Err(Later::Consult(batch, answer)),
        }
    }

    async fn consult(&mut self, batch: Batch, answer: Answer) -> Result<(), Later> {
        let given = match answer {
            Answer::Given => true,
            Answer::Wait(sought, flight) => self.share(&batch, sought, flight).await?,
            Answer::Give(sought, entry, read) => self.give(&batch, &sought, &entry, read).await?,
            Answer::Seek(sought) => self.seek(&batch, sought).await?,
            Answer::Run => false,
        };
        if given { Ok(()) } else { self.run_batch(batch) }
    }

    fn run_batch(&mut self, batch: Batch) -> Result<(), Later> {
        match self.choose(&batch, Tried::default()) {
            Some(chosen) => self.send_or_queue(batch, chosen),
            None => Err(Later::TakeOn(batch, Search::Begins)),
        }
    }

    /// A statement within a transaction or on a pinned connection begins.
    pub(super) fn begin_request(&mut self) {
        if self.pipeline.is_settled() && self.client_rest == 0 && !self.inbox.is_empty() {
            let why = if self.status == b'I' { Why::Pinned } else { Why::InTransaction };
            let now = Instant::now();
            self.request = Request::new(now, why);
            if let Some(leased) = &mut self.leased {
                leased.why = why;
            }
            self.client.set_activity(Activity::Active, now);
            self.settling = false;
            if self.status == b'I' {
                self.environment.settle(self.parameters.current(), self.pins.contains(Pin::TemporaryTable));
            }
            // A Query within a segment would end it, and in a failed transaction none is heard.
            if !self.pipeline.is_unsynced() && self.status != b'E' {
                self.replay();
            }
        }
    }

    /// The rest of a message that no server is to have; false while there is more of it to come.
    fn drop_rest(&mut self) -> bool {
        let here = self.client_rest.min(self.inbox.len());
        drop_front(&mut self.inbox, here);
        self.client_rest -= here;
        self.client_rest == 0
    }

    /// Messages that concern pgweir alone: names closed or made again, Syncs of nothing, what an error skips.
    pub(super) fn answer(&mut self, bytes: usize) {
        let mut at = 0;
        while at < bytes {
            let Ok(Some(head)) = scan::head(&self.inbox[at..]) else { break };
            match head.tag {
                frontend::SYNC => {
                    self.skipping = false;
                    write::ready(&mut self.outbox, self.status);
                }
                frontend::PARSE if !self.skipping => {
                    self.counters().client_parse();
                    let body = &self.inbox[at + scan::HEADER..at + head.total];
                    if let (Ok(parse), Some(Scanned::Parse(statement))) = (read::parse(body), self.scanned.pop_front())
                    {
                        self.names.replace(parse.name, Some(statement));
                        self.names.doubt(parse.name);
                        write::parse_complete(&mut self.outbox);
                    }
                }
                frontend::CLOSE if !self.skipping => {
                    let body = &self.inbox[at + scan::HEADER..at + head.total];
                    if let Ok((_, name)) = read::kind_and_name(body) {
                        self.names.replace(name, None);
                        write::close_complete(&mut self.outbox);
                    }
                }
                _ => {}
            }
            at += head.total;
        }
        // A frame that is skipped need not all be here.
        let here = at.min(self.inbox.len());
        self.client_rest = at - here;
        drop_front(&mut self.inbox, here);
        self.worker.buffers.give_back(&mut self.inbox);
    }

    /// Finds a connection for a batch, on the node chosen for it or another, and sends it there.
    async fn take_on(&mut self, batch: Batch, search: Search) -> Result<(), End> {
        if batch.begins && self.mode == PoolMode::Statement {
            self.refuse(batch, &Fault::error(sqlstate::FEATURE_NOT_SUPPORTED, NO_BLOCKS));
            return Ok(());
        }
        match self.find_lease(&batch, search).await? {
            Ok(leased) => self.send(batch, leased).map_err(End::Fault),
            Err(fault) => {
                self.refuse(batch, &fault);
                Ok(())
            }
        }
    }

    pub(super) fn send(&mut self, batch: Batch, leased: Leased) -> Result<(), Fault> {
        if batch.demand.in_block && batch.end == 0 {
            // What comes as it comes is not to come before the block has begun.
            self.take_up(leased);
            self.begin_apart(true);
            return Ok(());
        }
        self.fill_from(&leased);
        // Behind the whole of it something may be on its way already, which then need not wait.
        let relies = batch.end == self.inbox.len() && (batch.parses || self.names.has_unproven()) && !batch.commits;
        self.request.kept = match leased.replica || self.outlives_primary(&batch, &leased.lease) {
            true => Kept::Read,
            false if relies && self.mode != PoolMode::Session && !batch.demand.in_block => Kept::Anew,
            false => Kept::No,
        };
        self.request.ends_own = batch.prepares_only && batch.end > 0;
        // Behind a BEGIN of which nobody knows yet whether it succeeds, nothing follows.
        let apart = self.request.kept != Kept::No || self.request.ends_own || batch.demand.in_block;
        self.request.end = apart.then_some(batch.end);
        let replica = leased.replica;
        self.take_up(leased);
        if batch.demand.in_block {
            self.note_opening();
        }
        self.open_block(&batch, replica);
        self.forward()?;
        Ok(())
    }

    /// Answers a batch with an error of pgweir's own, as a server would at its first message.
    pub(super) fn refuse(&mut self, batch: Batch, fault: &Fault) {
        write::error(&mut self.outbox, fault);
        self.end_refused(batch, &fault.code);
    }

    /// The error is said: the batch has failed with it, and what is left of its block.
    pub(super) fn end_refused(&mut self, batch: Batch, code: &str) {
        (self.tried, self.died) = (Tried::default(), false);
        // Who waits for its result is to wait no longer.
        self.filling = None;
        if self.is_in_block() {
            self.fail_block();
            self.client.set_activity(Activity::IdleInTransaction, self.request.mark);
        }
        if let Some(plan) = self.scanned_plan(batch.end) {
            self.request.error = code.as_bytes().try_into().ok();
            self.record(&plan);
        }
        // A large batch has not been held: its first message tells how it ends.
        let first = scan::head(&self.inbox).ok().flatten();
        let simple = first.is_some_and(|h| h.tag == frontend::QUERY);
        let end = match first {
            Some(head) if batch.end == 0 => head.total,
            _ => batch.end,
        };
        let answered = simple || !(batch.demand.open || batch.prepares_only);
        if answered {
            write::ready(&mut self.outbox, self.status);
        }
        self.skipping = !answered;
        let here = end.min(self.inbox.len());
        self.client_rest = end - here;
        drop_front(&mut self.inbox, here);
    }

    fn on_server(&mut self) -> Option<End> {
        match self.relay() {
            // Begun out of sight: behind a Flush, or in a text that cannot be read.
            Ok(Relayed::On) if self.mode == PoolMode::Statement && self.status != b'I' => {
                Some(End::Fault(Fault::fatal(sqlstate::FEATURE_NOT_SUPPORTED, NO_BLOCKS)))
            }
            Ok(Relayed::On) => None,
            Ok(Relayed::Retry { why, again }) => self.retry(&why, again),
            Ok(Relayed::Fatal) => {
                self.drop_lease();
                Some(End::Server)
            }
            Ok(Relayed::BeginFailed(error, code)) => {
                self.on_begin_failed(&error, &code);
                None
            }
            Ok(Relayed::ReplayFailed(why)) => {
                let message = "the session's settings cannot be restored on another server connection";
                self.drop_lease();
                Some(End::Fault(Fault::fatal(sqlstate::CONNECTION_FAILURE, message).with_detail(why)))
            }
            Err(malformed) => {
                tracing::error!(client = self.client.id, %malformed, "a server's reply cannot be understood");
                self.drop_lease();
                Some(End::Fault(Fault::fatal(sqlstate::PROTOCOL_VIOLATION, format!("server: {malformed}"))))
            }
        }
    }

    fn on_server_gone(&mut self, why: &str) -> Option<End> {
        if self.request.kept == Kept::Read && self.fails_over() && self.may_outlive() {
            self.died = true;
            return self.retry(why, Again::Elsewhere);
        }
        if self.may_leave_block() {
            self.lose_lease();
            return None;
        }
        self.record_broken_off(sqlstate::CONNECTION_FAILURE);
        self.drop_lease();
        let fault = Fault::fatal(sqlstate::CONNECTION_FAILURE, "server closed the connection unexpectedly");
        Some(End::Fault(fault.with_detail(why.to_owned())))
    }

    /// Gives the connection back once nothing more is owed on it and nothing holds the session to it. `Some` where
    /// something does that must not.
    fn settle(&mut self) -> Option<Fault> {
        self.client.pins.store(self.pins.bits(), Ordering::Relaxed);
        self.client.prepared.store(self.names.len(), Ordering::Relaxed);
        if self.pipeline.is_in_doubt() {
            self.ask_whether_all_has_come();
        }
        if self.leased.is_none() || !self.is_at_rest() {
            if self.leased.is_some() && self.pipeline.is_empty() && self.status != b'I' {
                self.client.set_activity(Activity::IdleInTransaction, self.request.mark);
            }
            return None;
        }
        self.client.set_activity(Activity::Idle, self.request.mark);
        if self.mode != PoolMode::Session && self.survey() {
            return None;
        }
        if !self.keeps_lease() {
            self.give_back();
            self.scanned.clear();
        } else if let Some(leased) = &mut self.leased {
            // What pins it now may be gone later; the traces stay until a reset.
            leased.suspect = true;
            leased.prepared |= self.pins.contains(Pin::Prepare) || self.mode == PoolMode::Session;
        }
        self.refusal_at_rest()
    }

    pub(super) fn give_back(&mut self) {
        let Some(leased) = self.leased.take() else { return };
        let Leased { mut lease, why, suspect, prepared, open, replica, .. } = leased;
        // Of single reads alone, which are alike on all nodes.
        if replica && why != Why::InTransaction && self.cluster().routing.load_balancing == LoadBalancing::Latency {
            lease.end_turn(Some(self.request.mark));
        }
        // Bytes behind the last ReadyForQuery belong to nobody: such a connection is dropped, and so closed.
        if lease.inbox.is_empty() && lease.outbox.is_empty() {
            lease.give_back(self.request.mark, Return { reset: suspect || prepared, prepared, open });
        }
    }

    pub(super) fn drop_lease(&mut self) {
        self.leased = None;
        self.filling = None;
        if self.writing {
            // Its end has not been seen: it may be committed a moment from now.
            let by = Instant::now() + UNSEEN_COMMIT;
            self.invalidate_by(by);
            self.cluster().last_write.note(by);
        }
    }

    /// … and what was sent to it has come to nothing.
    pub(super) fn lose_lease(&mut self) {
        let dropped = self.pipeline.abandon();
        self.drop_lease();
        self.undo(dropped);
    }

    pub(super) async fn finish(&mut self, end: End) {
        self.filling = None;
        self.line = None;
        match end {
            // It has said Terminate behind a request, and may still read what came of that.
            End::Client if self.terminating && !self.outbox.is_empty() => self.farewell().await,
            End::Client => {}
            End::Fault(fault) => {
                // Within a frame that the server has left unfinished, it would be taken for the frame's rest.
                if self.server_rest == 0 {
                    write::error(&mut self.outbox, &fault);
                }
                self.farewell().await;
            }
            End::Server => self.farewell().await,
        }
        self.leave_server();
    }

    /// What the client has left behind is undone: an idle transaction rolled back, a running statement cancelled and
    /// its connection closed.
    fn leave_server(&mut self) {
        let Some(leased) = &self.leased else { return };
        let quiet = self.pipeline.is_settled()
            && self.client_rest == 0
            && self.server_rest == 0
            && leased.lease.outbox.is_empty()
            && leased.lease.inbox.is_empty();
        if !quiet {
            let server = leased.lease.identity.clone();
            self.record_broken_off(sqlstate::QUERY_CANCELED);
            self.client.cancel(Some(&server));
            return self.drop_lease();
        }
        if self.failed {
            // The server skips everything up to a Sync, a rollback too (protocol documentation, "Extended Query").
            return self.drop_lease();
        }
        // What is unsure may have prepared something, too.
        let prepares = leased.unsure || self.pins.contains(Pin::Prepare) || self.pins.contains(Pin::Set);
        let prepared = leased.prepared || prepares || self.mode == PoolMode::Session;
        if let Some(leased) = self.leased.take() {
            let open = self.status != b'I';
            leased.lease.give_back(Instant::now(), Return { reset: true, prepared, open });
        }
    }

    async fn farewell(&mut self) {
        self.counters().sent(self.outbox.len() as u64);
        io::part(&mut self.stream, &mut self.outbox).await;
    }
}

pub(super) fn stop_fault(why: Stop) -> Fault {
    match why {
        Stop::IdleInTransaction => Fault::fatal(
            sqlstate::IDLE_IN_TRANSACTION_TIMEOUT,
            "terminating connection due to idle-in-transaction timeout",
        ),
        Stop::None | Stop::Shutdown | Stop::Killed => {
            Fault::fatal(sqlstate::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
        }
    }
}
