//! The loop of a session: read a batch, choose a node, lease, relay, give back.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Tried};
use crate::config::{Freshness, PoolMode};
use crate::error::{Fault, sqlstate};
use crate::freshness::Need;
use crate::frontend::batch::{Batch, Head};
use crate::frontend::cached::Answer;
use crate::frontend::client::{Activity, Stop};
use crate::frontend::io::{self, Event};
use crate::frontend::replies::Relayed;
use crate::frontend::requests::Forwarded;
use crate::frontend::retry::Again;
use crate::frontend::session::{Kept, Leased, Request, Scanned, Session, Unended};
use crate::frontend::tables::Floor;
use crate::net::buffers::drop_front;
use crate::pool::lease::Return;
use crate::route::decide::{self, Target, Why};
use crate::session::pins::Pin;
use crate::wire::tag::frontend;
use crate::wire::{read, scan, write};

/// How long a write may go on whose connection was left: what begins meanwhile is to see it.
const UNSEEN_COMMIT: Duration = Duration::from_secs(1);

/// What a client is told that begins a transaction block in statement mode.
const NO_BLOCKS: &str = "transaction blocks are not allowed in statement pooling mode";

/// Messages that a client has ready come in less time one after the other.
const PAUSE: Duration = Duration::from_millis(20);

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

/// The node for a batch, by its index.
#[derive(Debug, Clone, Copy)]
pub struct Chosen {
    pub node: u16,
    pub why: Why,
    /// As [`crate::cluster::Choice::passed_over`].
    pub passed_over: bool,
}

impl Session {
    /// Serves the client until one side ends, or (`None`) until it is to be put to rest.
    pub(super) async fn run(&mut self) -> Option<End> {
        loop {
            let need = match self.advance().await {
                Ok(Some(need)) => need,
                Ok(None) => return Some(End::Client),
                Err(end) => return Some(end),
            };
            let event = match self.unended {
                Unended::Waiting => Box::pin(tokio::time::timeout(PAUSE, self.event(need))).await,
                Unended::No | Unended::Paused => Ok(self.event(need).await),
            };
            let Ok(event) = event else {
                self.unended = Unended::Paused;
                continue;
            };
            let ended = match event {
                Event::Client | Event::Room => None,
                Event::ClientGone => Some(End::Client),
                Event::Server => self.on_server(),
                Event::ServerGone(error) => self.on_server_gone(&error.to_string()),
                Event::Fault(fault) => Some(End::Fault(fault)),
                Event::Due => Box::pin(self.begin_unasked()).await.err(),
                Event::Stopped => match self.client.stop_reason() {
                    Stop::None if self.may_rest() => return None,
                    Stop::None => self.on_nudge(),
                    why => Some(End::Fault(stop_fault(why))),
                },
            };
            if ended.is_some() {
                return ended;
            }
            if let Some(fault) = self.settle() {
                return Some(End::Fault(fault));
            }
        }
    }

    /// Does all that the received bytes allow; how many the next step needs, or `None` at the client's Terminate.
    async fn advance(&mut self) -> Result<Option<usize>, End> {
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
                        return Ok((!self.terminating || owed).then_some(0));
                    }
                    if self.leaves_failed_block().map_err(End::Fault)? {
                        continue;
                    }
                    if self.is_in_fresh_block() {
                        if !self.drop_rest() {
                            return Ok(Some(0));
                        }
                        match self.begin_in_block().map_err(End::Fault)? {
                            Some(need) => return Ok(Some(need)),
                            None => continue,
                        }
                    }
                    self.begin_request();
                }
                if self.inbox.is_empty() {
                    return Ok(Some(scan::HEADER));
                }
                match self.forward().map_err(End::Fault)? {
                    Forwarded::All { need } => return Ok(Some(need)),
                    Forwarded::Terminate => self.terminating = true,
                }
                continue;
            }
            if !self.drop_rest() {
                return Ok(Some(0));
            }
            if self.inbox.is_empty() {
                self.scanned.clear();
                return Ok(Some(scan::HEADER));
            }
            match self.scan().map_err(End::Fault)? {
                Head::Wait(need) => return Ok(Some(need)),
                Head::Here(bytes) => self.answer(bytes),
                Head::Terminate => return Ok(None),
                Head::Batch(batch) => {
                    self.request = Request { floor: batch.floor, ..Request::new(Instant::now(), Why::Read) };
                    if self.answer_alone(&batch) {
                        continue;
                    }
                    let answer = match batch.demand.in_block {
                        true => Answer::Run,
                        false => self.ask_cache(&batch),
                    };
                    let given = match answer {
                        Answer::Given => true,
                        Answer::Wait(sought, flight) => Box::pin(self.share(&batch, sought, flight)).await?,
                        Answer::Give(sought, entry, read) => Box::pin(self.give(&batch, &sought, &entry, read)).await?,
                        Answer::Seek(sought) => Box::pin(self.seek(&batch, sought)).await?,
                        Answer::Run => false,
                    };
                    if given {
                        continue;
                    }
                    let chosen = self.choose(&batch, Tried::default());
                    match chosen.and_then(|chosen| self.lease_idle(chosen, &batch)) {
                        Some(leased) => self.send(batch, leased)?,
                        // Boxed, as all that is rare and large: an idle client's future has room for it otherwise.
                        None => Box::pin(self.take_on(batch, chosen)).await?,
                    }
                }
            }
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
    async fn take_on(&mut self, batch: Batch, chosen: Option<Chosen>) -> Result<(), End> {
        if batch.begins && self.mode == PoolMode::Statement {
            self.refuse(batch, &Fault::error(sqlstate::FEATURE_NOT_SUPPORTED, NO_BLOCKS));
            return Ok(());
        }
        match self.find_lease(&batch, chosen).await? {
            Ok(leased) => self.send(batch, leased),
            Err(fault) => {
                self.refuse(batch, &fault);
                Ok(())
            }
        }
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.database.cluster
    }

    pub(super) fn target(&self, batch: &Batch) -> Target {
        match self.mode {
            PoolMode::Session => Target::Primary(Why::SessionMode),
            _ if batch.demand.read_only && self.retries_block => Target::Primary(Why::Retry),
            _ if self.parameters.is_serializable() => Target::Primary(Why::Serializable),
            PoolMode::Transaction | PoolMode::Statement => match decide::decide(&batch.demand, self.parameters.route())
            {
                Target::Replica if batch.floor == Floor::Unknown => Target::Primary(Why::Freshness),
                target => target,
            },
        }
    }

    pub(super) fn choose(&self, batch: &Batch, outdated: Tried) -> Option<Chosen> {
        let cluster = self.cluster();
        match self.target(batch) {
            Target::Primary(why) => cluster.primary().map(|node| Chosen { node: node.index, why, passed_over: false }),
            Target::Replica => {
                let (now, random) = (self.request.mark, cluster.draw());
                let Some(choice) = cluster.reader(&self.need(), (self.tried, outdated), now, random) else {
                    // `primary_reads` is about reads, and what a block will be is not known.
                    let primary = cluster.primary().filter(|_| batch.demand.is_of_block())?;
                    return Some(Chosen { node: primary.index, why: Why::NoReplica, passed_over: false });
                };
                Some(Chosen { node: choice.node.index, why: choice.why, passed_over: choice.passed_over })
            }
        }
    }

    pub(super) fn is_replica(&self, node: u16) -> bool {
        !matches!(self.cluster().primary(), Some(primary) if primary.index == node)
    }

    /// What is promised to the session's reads.
    pub(super) fn promise(&self) -> Freshness {
        self.parameters.freshness().unwrap_or(self.cluster().routing.freshness)
    }

    /// What a replica must have for the read under way.
    pub(super) fn need(&self) -> Need {
        let token = self.parameters.token();
        let floor = match self.request.floor {
            Floor::At(floor) => token.max(Some(floor)),
            Floor::None | Floor::Unknown => token,
        };
        Need::new(self.promise(), self.seen, floor)
    }

    fn send(&mut self, batch: Batch, leased: Box<Leased>) -> Result<(), End> {
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
        self.forward().map_err(End::Fault)?;
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
        let Leased { mut lease, why, actual, suspect, prepared, open, replica, .. } = *leased;
        self.client.set_target(None);
        // Of single reads alone, which are alike on all nodes.
        if replica && why != Why::InTransaction {
            lease.end_turn(Some(self.request.mark));
        }
        // Bytes behind the last ReadyForQuery belong to nobody: such a connection is dropped, and so closed.
        if lease.inbox.is_empty() && lease.outbox.is_empty() {
            lease.settings = actual;
            lease.give_back(self.request.mark, Return { reset: suspect || prepared, prepared, open });
        }
    }

    pub(super) fn drop_lease(&mut self) {
        self.client.set_target(None);
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
            self.record_broken_off(sqlstate::QUERY_CANCELED);
            self.client.cancel();
            return self.drop_lease();
        }
        if self.failed {
            // The server skips everything up to a Sync, a rollback too (protocol documentation, "Extended Query").
            return self.drop_lease();
        }
        // What is unsure may have prepared something, too.
        let prepares = leased.unsure || self.pins.contains(Pin::Prepare) || self.pins.contains(Pin::Set);
        let prepared = leased.prepared || prepares || self.mode == PoolMode::Session;
        self.client.set_target(None);
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
