//! The servers of one database: which is the primary, which replicas may answer, and the probes that find out; and the
//! database's definitions.

pub mod catalog;
pub mod node;
pub mod positions;
pub mod probe;
pub mod changes;

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::cluster::catalog::Definitions;
use crate::cluster::node::{Node, Role};
use crate::cluster::positions::Positions;
use crate::config::{self, Freshness, PrimaryReads};
use crate::route::balance::Balancer;
use crate::route::decide::Why;

/// Nodes that a request has tried already, by index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tried(u64);

impl Tried {
    pub fn insert(&mut self, node: u16) {
        self.0 |= 1 << (node % 64);
    }

    /// No replica is to be tried any more.
    pub fn all() -> Tried {
        Tried(u64::MAX)
    }

    pub fn contains(self, node: u16) -> bool {
        self.0 & (1 << (node % 64)) != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The nodes of one database.
#[derive(Debug)]
pub struct Cluster {
    pub database: Arc<str>,
    pub nodes: Vec<Arc<Node>>,
    pub routing: config::Routing,
    pub definitions: Arc<Definitions>,
    balancer: Mutex<Balancer>,
    positions: Mutex<Positions>,
    changes: watch::Sender<u64>,
}

impl Cluster {
    pub fn new(database: Arc<str>, nodes: &[config::Node], routing: &config::Routing, epoch: Instant) -> Cluster {
        let changes = watch::Sender::new(0);
        let node = |(i, n): (usize, &config::Node)| Arc::new(Node::new(i as u16, n.clone(), epoch, changes.clone()));
        Cluster {
            database,
            nodes: nodes.iter().enumerate().map(node).collect(),
            routing: routing.clone(),
            definitions: Arc::default(),
            balancer: Mutex::new(Balancer::new(nodes.iter().map(|n| n.weight))),
            positions: Mutex::new(Positions::default()),
            changes,
        }
    }

    /// Whenever a node has gone, come, or changed its role.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The primary: never banned, for writes have nowhere else to go. One that was replaced by a promotion, and comes
    /// back believing in itself, is on an older timeline. `None`: no node has said yet that it is the primary.
    pub fn primary(&self) -> Option<&Arc<Node>> {
        let primaries = self.nodes.iter().filter(|n| n.role() == Role::Primary);
        // Of equals the first in the file: `max_by_key` takes the last.
        primaries.rev().max_by_key(|n| (n.timeline(), n.is_up()))
    }

    /// The node that does what any node can: the primary while it is up, else a replica that is. `None`: no role is known
    /// yet.
    pub fn preferred(&self) -> Option<&Arc<Node>> {
        self.by_preference().next().filter(|node| node.role() != Role::Unknown)
    }

    /// All nodes, those that are up first, and among them the primary.
    pub fn by_preference(&self) -> impl Iterator<Item = &Arc<Node>> {
        let mut nodes: Vec<_> = self.nodes.iter().collect();
        nodes.sort_by_key(|node| (!node.is_up(), node.role() != Role::Primary, node.role() == Role::Unknown));
        nodes.into_iter()
    }

    /// The node for a plain read of a session that last wrote at `wrote`, with the reason.
    pub fn reader(&self, wrote: Option<Instant>, tried: Tried) -> Option<(&Arc<Node>, Why)> {
        let mut stale = false;
        let mut usable = 0u64;
        for (i, node) in self.nodes.iter().enumerate().take(64) {
            let serves = node.role() == Role::Replica
                && node.config.weight > 0
                && node.is_up()
                && !tried.contains(node.index)
                && node.lag().is_none_or(|lag| lag <= self.routing.max_lag);
            let fresh = serves && self.is_fresh(node, wrote);
            stale |= serves && !fresh;
            usable |= u64::from(fresh) << i;
        }
        let always = self.routing.primary_reads == PrimaryReads::Always;
        let with_primary = self.primary().filter(|node| always && node.is_up()).map(|node| usize::from(node.index));
        let may_pick = |i: usize| usable & (1 << i) != 0 || with_primary == Some(i);
        if let Some(i) = self.balancer.lock().pick(may_pick) {
            let node = &self.nodes[i];
            return Some((node, if node.role() == Role::Primary { Why::PrimaryTurn } else { Why::Read }));
        }
        let why = match (tried.is_empty(), stale) {
            (false, _) => Why::Retry,
            (true, true) => Why::Freshness,
            (true, false) => Why::NoReplica,
        };
        // A session's own writes are worth more than sparing the primary.
        let refused = self.routing.primary_reads == PrimaryReads::Never && why != Why::Freshness;
        if refused { None } else { self.primary().map(|node| (node, why)) }
    }

    fn is_fresh(&self, node: &Node, wrote: Option<Instant>) -> bool {
        match self.routing.freshness {
            Freshness::Eventual => true,
            Freshness::Session | Freshness::Table => wrote.is_none_or(|at| node.has_replayed(at)),
        }
    }

    /// Some node can serve: the condition of readiness.
    pub fn can_serve(&self) -> bool {
        self.nodes.iter().any(|node| node.can_serve())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use super::*;
    use crate::config::{LoadBalancing, NodeRole};

    fn cluster(primary_reads: PrimaryReads) -> Cluster {
        let node = |port, role, weight| config::Node { host: "h".into(), port, role, weight };
        let nodes = [
            node(0, NodeRole::Primary, 1),
            node(1, NodeRole::Replica, 1),
            node(2, NodeRole::Replica, 1),
            node(3, NodeRole::Replica, 2),
        ];
        let routing = config::Routing {
            load_balancing: LoadBalancing::Weighted,
            failover: true,
            freshness: Freshness::Session,
            max_lag: Duration::from_secs(10),
            primary_reads,
            probe_interval: Duration::from_secs(1),
        };
        Cluster::new("app".into(), &nodes, &routing, Instant::now())
    }

    fn shares(cluster: &Cluster, picks: usize) -> HashMap<u16, usize> {
        let mut shares = HashMap::new();
        for _ in 0..picks {
            *shares.entry(cluster.reader(None, Tried::default()).unwrap().0.index).or_default() += 1;
        }
        shares
    }

    #[test]
    fn reads_spread_by_weight_and_move_from_a_dead_replica() {
        let cluster = cluster(PrimaryReads::Fallback);
        assert_eq!(shares(&cluster, 400), HashMap::from([(1, 100), (2, 100), (3, 200)]));
        cluster.nodes[3].eject("test");
        assert_eq!(shares(&cluster, 100), HashMap::from([(1, 50), (2, 50)]));
        cluster.nodes[3].admit();
        assert_eq!(shares(&cluster, 400)[&3], 200);
    }

    #[test]
    fn the_primary_reads_in_turn_where_it_is_asked_to() {
        assert_eq!(
            shares(&cluster(PrimaryReads::Always), 500),
            HashMap::from([(0, 100), (1, 100), (2, 100), (3, 200)])
        );
    }

    #[test]
    fn with_no_replica_left_the_primary_reads_unless_never() {
        for (reads, expected) in [(PrimaryReads::Fallback, Some((0, Why::NoReplica))), (PrimaryReads::Never, None)] {
            let cluster = cluster(reads);
            cluster.nodes[1..].iter().for_each(|n| n.eject("test"));
            assert_eq!(cluster.reader(None, Tried::default()).map(|(n, why)| (n.index, why)), expected);
        }
    }

    #[test]
    fn a_session_that_wrote_waits_for_a_replica_that_has_replayed_it() {
        let cluster = cluster(PrimaryReads::Fallback);
        let wrote = Instant::now() + Duration::from_secs(1);
        let reader = |c: &Cluster| c.reader(Some(wrote), Tried::default()).map(|(n, why)| (n.index, why));
        assert_eq!(reader(&cluster), Some((0, Why::Freshness)));
        cluster.nodes[2].note_position(Some(wrote), Some(Duration::ZERO));
        assert_eq!(reader(&cluster), Some((0, Why::Freshness)), "asked at the very instant of the write");
        cluster.nodes[2].note_position(Some(wrote + Duration::from_millis(1)), Some(Duration::ZERO));
        assert_eq!(reader(&cluster), Some((2, Why::Read)));
    }

    #[test]
    fn of_two_primaries_the_one_on_the_later_timeline_counts() {
        let cluster = cluster(PrimaryReads::Fallback);
        let auto = |index, port| {
            let config = config::Node { host: "h".into(), port, role: NodeRole::Auto, weight: 1 };
            Arc::new(Node::new(index, config, Instant::now(), cluster.changes.clone()))
        };
        let cluster = Cluster { nodes: vec![auto(0, 0), auto(1, 1)], ..cluster };
        let primary = || cluster.primary().map(|node| node.index);
        assert_eq!((primary(), cluster.can_serve()), (None, false));
        cluster.nodes.iter().for_each(|node| node.note_role(false));
        assert_eq!(primary(), Some(0));
        cluster.nodes[0].note_timeline(1);
        cluster.nodes[1].note_timeline(2);
        assert_eq!(primary(), Some(1));
        cluster.nodes[1].eject("test");
        assert_eq!(primary(), Some(1), "writes never go back to a primary that was replaced");
    }

    #[test]
    fn a_replica_too_far_behind_serves_nothing() {
        let cluster = cluster(PrimaryReads::Fallback);
        cluster.nodes[1].note_position(None, Some(Duration::from_secs(11)));
        assert_eq!(shares(&cluster, 300), HashMap::from([(2, 100), (3, 200)]));
    }

    #[test]
    fn a_retry_goes_elsewhere_and_at_last_to_the_primary() {
        let cluster = cluster(PrimaryReads::Fallback);
        let mut tried = Tried::default();
        let mut seen = Vec::new();
        while let Some((node, why)) = cluster.reader(None, tried) {
            seen.push(node.index);
            if why == Why::Retry {
                break;
            }
            tried.insert(node.index);
        }
        assert_eq!((seen.len(), seen.last()), (4, Some(&0)));
    }
}
