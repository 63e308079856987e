//! A connection for a batch: on the node chosen for it, or on another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cluster::Tried;
use crate::config::PoolMode;
use crate::error::Fault;
use crate::freshness::Seen;
use crate::frontend::batch::Batch;
use crate::frontend::choice::Chosen;
use crate::frontend::client::Activity;
use crate::frontend::io::Wait;
use crate::frontend::serve::{End, stop_fault};
use crate::frontend::session::{Leased, Session};
use crate::pool::checkout::{Pool, Refused};
use crate::pool::lease::Lease;
use crate::route::decide::Why;
use crate::sql::Reason;

impl Session {
    /// An idle connection to the node chosen for a batch: the common case, in which nothing is waited for.
    pub(super) fn lease_idle(&mut self, chosen: Chosen, batch: &Batch) -> Option<Box<Leased>> {
        if self.is_unsettled(&chosen) {
            return None;
        }
        let Chosen { node, why, .. } = chosen;
        let replica = self.is_replica(node);
        if batch.begins && self.mode == PoolMode::Statement || !replica && self.awaits_fence(batch) {
            return None;
        }
        let lease = self.pools[usize::from(node)].try_checkout(self.worker.index, self.request.mark)?;
        if replica && !self.may_read(&lease) {
            return None;
        }
        self.waited(Duration::ZERO, true);
        self.client.set_activity(Activity::Active, self.request.mark);
        let fenced = !replica && batch.may_write();
        Some(Box::new(Leased { fenced, ..Leased::new(lease, why, replica) }))
    }

    /// A connection for a batch, or what its client is to be told.
    pub(super) async fn find_lease(
        &mut self,
        batch: &Batch,
        mut chosen: Option<Chosen>,
    ) -> Result<Result<Box<Leased>, Fault>, End> {
        let mut outdated = Tried::default();
        loop {
            let Some(mut next) = chosen.take().or_else(|| self.choose(batch, outdated)) else {
                let Some(fault) = Box::pin(self.wait_for_primary(batch)).await? else { continue };
                return Ok(Err(fault));
            };
            if self.is_unsettled(&next) {
                next = Box::pin(self.wait_for_sample(batch, next)).await;
            }
            let Chosen { node, why, .. } = next;
            let replica = self.is_replica(node);
            let pool = self.pools[usize::from(node)].clone();
            match self.lease(&pool).await? {
                // Dropped unused, the connection goes back as it is.
                Ok(lease) if replica && !self.may_read(&lease) => {
                    self.undeal(&next);
                    outdated.insert(node);
                }
                Ok(lease) => {
                    let fenced = !replica && self.fence_before(batch).await.map_err(End::Fault)?;
                    return Ok(Ok(Box::new(Leased { fenced, ..Leased::new(lease, why, replica) })));
                }
                Err(Refused::Unavailable(_)) if replica && self.fails_over() => self.tried.insert(node),
                // Another node is the primary now.
                Err(Refused::Unavailable(_)) if self.fails_over() => {}
                Err(refused) => {
                    let timeout = pool.config.load().acquire_timeout;
                    return Ok(Err(refused.fault(timeout)));
                }
            }
        }
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
        let need = self.need();
        need.is_nothing() || need.is_met_by(lease.created, node.index, &node.sample())
    }

    async fn lease(&mut self, pool: &Arc<Pool>) -> Result<Result<Lease, Refused>, End> {
        let began = self.request.mark;
        self.client.set_activity(Activity::Waiting, began);
        self.client.begin_wait();
        let waited = self.wait_for_lease(pool, false).await;
        self.client.end_wait();
        let answer = match waited {
            Wait::Answer(answer) => answer,
            Wait::ClientGone => {
                self.waited(began.elapsed(), false);
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
        let now = Instant::now();
        self.waited(now.saturating_duration_since(began), answer.is_ok());
        self.request.mark = now;
        self.client.set_activity(Activity::Active, now);
        Ok(answer)
    }

    /// The session has a connection from here on.
    pub(super) fn take_up(&mut self, mut leased: Box<Leased>) {
        self.database.tally.count(leased.why);
        leased.lease.begin_turn(self.request.mark);
        self.request.why = leased.why;
        self.client.set_target(Some(&leased.lease.identity));
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
