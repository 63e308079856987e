//! Which node a batch is for.

use crate::cluster::{Cluster, Tried};
use crate::config::{Freshness, PoolMode};
use crate::freshness::Need;
use crate::frontend::batch::Batch;
use crate::frontend::session::Session;
use crate::frontend::tables::Floor;
use crate::route::decide::{self, Target, Why};

/// The node for a batch, by its index.
#[derive(Debug, Clone, Copy)]
pub struct Chosen {
    pub node: u16,
    pub why: Why,
    /// As [`crate::cluster::Choice::passed_over`].
    pub passed_over: bool,
}

impl Session {
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
}
