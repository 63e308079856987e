//! A connection for a batch: on the node chosen for it, or on another.

use std::time::{Duration, Instant};

use crate::cluster::Tried;
use crate::config::{LoadBalancing, PoolMode};
use crate::error::Fault;
use crate::freshness::Seen;
use crate::frontend::batch::Batch;
use crate::frontend::choice::Chosen;
use crate::frontend::client::Activity;
use crate::frontend::io::{Event, Wait};
use crate::frontend::serve::{End, Later, stop_fault};
use crate::frontend::session::{Leased, Session};
use crate::pool::checkout::{Answer, Pool, Queued, Refused};
use crate::pool::lease::Lease;
use crate::route::decide::Why;
use crate::sql::Reason;

/// A batch that waits for a connection of the node chosen for it.
#[derive(Debug)]
pub struct InLine {
    batch: Batch,
    chosen: Chosen,
    replica: bool,
    pub queued: Queued,
}

/// What came of asking the chosen node's pool for a connection.
#[derive(Debug)]
pub struct Asked {
    chosen: Chosen,
    replica: bool,
    answer: Answer,
}

/// How far the search for a batch's connection has come.
#[derive(Debug)]
pub enum Search {
    Begins,
    Chosen(Chosen),
    Asked(Box<Asked>),
}

impl Session {
    /// Sends a batch to the node chosen for it as soon as there is a connection: the common case, in which nothing else is
    /// waited for.
    pub(super) fn send_or_queue(&mut self, batch: Batch, chosen: Chosen) -> Result<(), Later> {
        if self.is_unsettled(&chosen) || batch.begins && self.mode == PoolMode::Statement {
            return Err(Later::TakeOn(batch, Search::Chosen(chosen)));
        }
        let replica = self.is_replica(chosen.node);
        match self.pools[usize::from(chosen.node)].checkout_or_queue(self.worker.index, self.request.mark) {
            Ok(lease) => {
                self.waited(Duration::ZERO, true);
                self.client.set_activity(Activity::Active, self.request.mark);
                self.send_by(batch, Asked { chosen, replica, answer: Ok(lease) })
            }
            Err(queued) => {
                self.begin_wait();
                self.line = Some(InLine { batch, chosen, replica, queued });
                // The node may have gone since it was chosen: to be heard once no connection is idle.
                if self.waits_in_vain(&self.pools[usize::from(chosen.node)].node) {
                    self.client.nudge();
                }
                Ok(())
            }
        }
    }

    /// What has happened while a batch waits in line.
    pub(super) fn on_line_event(&mut self, event: Event) -> Result<(), Later> {
        let waited = match event {
            Event::Lease(answer) => Wait::Answer(answer),
            Event::ClientGone => Wait::ClientGone,
            Event::Fault(fault) => return Err(fault.into()),
            Event::Stopped => {
                let heard = self.line.as_ref().and_then(|line| self.hear_in_line(&line.queued.pool.node));
                let Some(waited) = heard else { return Ok(()) };
                waited
            }
            Event::Client | Event::Room | Event::Server | Event::ServerGone(_) | Event::Due => return Ok(()),
        };
        self.leave_line(waited)
    }

    fn leave_line(&mut self, waited: Wait) -> Result<(), Later> {
        let Some(line) = self.line.take() else { return Ok(()) };
        let InLine { batch, chosen, replica, queued } = line;
        let answer = self.end_wait(&queued.pool, waited)?;
        self.send_by(batch, Asked { chosen, replica, answer })
    }

    fn send_by(&mut self, batch: Batch, asked: Asked) -> Result<(), Later> {
        let Asked { chosen, replica, answer } = asked;
        let suits = |lease: &Lease| if replica { self.may_read(lease) } else { !self.awaits_fence(&batch) };
        match answer {
            Ok(lease) if suits(&lease) => Ok(self.send(batch, leased(&batch, lease, chosen.why, replica))?),
            answer => Err(Later::TakeOn(batch, Search::Asked(Box::new(Asked { chosen, replica, answer })))),
        }
    }

    /// A connection for a batch, or what its client is to be told.
    pub(super) async fn find_lease(&mut self, batch: &Batch, mut search: Search) -> Result<Result<Leased, Fault>, End> {
        let mut outdated = Tried::default();
        loop {
            let Asked { chosen, replica, answer } = match std::mem::replace(&mut search, Search::Begins) {
                Search::Asked(asked) => *asked,
                Search::Chosen(chosen) => self.ask(batch, chosen).await?,
                Search::Begins => {
                    match self.choose(batch, outdated) {
                        Some(chosen) => search = Search::Chosen(chosen),
                        None => {
                            let fault = Box::pin(self.wait_for_primary(batch)).await?;
                            if let Some(fault) = fault {
                                return Ok(Err(fault));
                            }
                        }
                    }
                    continue;
                }
            };
            match answer {
                // Dropped unused, the connection goes back as it is.
                Ok(lease) if replica && !self.may_read(&lease) => {
                    self.undeal(&chosen);
                    outdated.insert(chosen.node);
                }
                Ok(lease) => {
                    if !replica {
                        self.fence_before(batch).await.map_err(End::Fault)?;
                    }
                    return Ok(Ok(leased(batch, lease, chosen.why, replica)));
                }
                Err(Refused::Unavailable(_)) if replica && self.fails_over() => self.tried.insert(chosen.node),
                // Another node is the primary now.
                Err(Refused::Unavailable(_)) if self.fails_over() => {}
                Err(refused) => {
                    let timeout = self.pools[usize::from(chosen.node)].config.load().acquire_timeout;
                    return Ok(Err(refused.fault(timeout)));
                }
            }
        }
    }

    async fn ask(&mut self, batch: &Batch, mut chosen: Chosen) -> Result<Asked, End> {
        if self.is_unsettled(&chosen) {
            chosen = Box::pin(self.wait_for_sample(batch, chosen)).await;
        }
        let replica = self.is_replica(chosen.node);
        let pool = self.pools[usize::from(chosen.node)].clone();
        self.begin_wait();
        let waited = self.wait_for_lease(&pool, false).await;
        Ok(Asked { chosen, replica, answer: self.end_wait(&pool, waited)? })
    }

    /// A replica that was chosen is not to be read from after all.
    pub(super) fn undeal(&self, chosen: &Chosen) {
        if chosen.why == Why::Read {
            self.cluster().give_back(chosen.node, &self.need(), self.tried, self.request.mark);
        }
    }

    /// Whether a lease on a replica leads to a server that is known to have what the session needs.
    pub(super) fn may_read(&self, lease: &Lease) -> bool {
        let node = &lease.pool.node;
        self.need().is_met_by(lease.created, node.index, || node.sample())
    }

    fn begin_wait(&self) {
        self.client.set_activity(Activity::Waiting, self.request.mark);
        self.client.begin_wait();
    }

    fn end_wait(&mut self, pool: &Pool, waited: Wait) -> Result<Answer, End> {
        let cancelled = self.client.end_wait();
        let now = Instant::now();
        let wait = now.saturating_duration_since(self.request.mark);
        let answer = match waited {
            // The connection goes back as it is.
            Wait::Answer(Ok(_)) if cancelled => Err(Refused::Cancelled),
            Wait::Answer(answer) => answer,
            Wait::ClientGone => {
                self.waited(wait, false);
                return Err(End::Client);
            }
            Wait::InVain => {
                if self.seen.is_inherited() && !self.is_replica(pool.node.index) {
                    // What others have written is not worth waiting for a primary that is down.
                    self.seen = Seen::default();
                }
                Err(Refused::Unavailable(pool.node.fault().unwrap_or_default()))
            }
            Wait::Cancelled => Err(Refused::Cancelled),
            Wait::Stopped => return Err(End::Fault(stop_fault(self.client.stop_reason()))),
        };
        self.waited(wait, answer.is_ok());
        self.request.mark = now;
        self.client.set_activity(Activity::Active, now);
        Ok(answer)
    }

    /// The session has a connection from here on.
    pub(super) fn take_up(&mut self, mut leased: Leased) {
        self.database.tally.decided(self.worker.index, leased.why);
        leased.lease.begin();
        if self.cluster().routing.load_balancing != LoadBalancing::Weighted {
            leased.lease.begin_turn(self.request.mark);
        }
        self.request.why = leased.why;
        leased.lease.identity.serve(self.client.id);
        self.settling = false;
        self.leased = Some(leased);
        self.replay();
    }

    /// The connection is for a block: why the block has this one is not why its first statement has.
    pub(super) fn note_opening(&mut self) {
        if let Some(leased) = &mut self.leased
            && !matches!(leased.why, Why::Statement(reason) if reason != Reason::Transaction)
        {
            leased.why = Why::InTransaction;
        }
    }
}

/// A connection for a batch, which a session that listens has fenced before.
pub(super) fn leased(batch: &Batch, lease: Lease, why: Why, replica: bool) -> Leased {
    Leased { fenced: !replica && batch.may_write(), ..Leased::new(lease, why, replica) }
}
