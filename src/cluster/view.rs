//! What the nodes are to reads of any session, looked at together: only after one has changed is each looked at again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::cluster::Tried;
use crate::cluster::node::{Node, Role};
use crate::freshness::{Need, Sample};
use crate::route::balance::Field;
use crate::route::rotation::bits;

/// No node's index, and so no session's home.
const ELSEWHERE: u16 = u16::MAX;

/// Counts the changes of a cluster's nodes; shared by these.
#[derive(Debug, Clone, Default)]
pub struct Version(Arc<AtomicU64>);

impl Version {
    /// A node has changed, before this is called: who sees the new number sees the change.
    pub fn raise(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Where a session may read, as bits by index.
#[derive(Debug, Clone, Copy, Default)]
pub struct Found {
    /// Replicas that serve, and the primary where it takes its turn.
    serving: u64,
    /// Those among them that are known to have what the session needs.
    fresh: u64,
}

impl Found {
    pub fn is_any_fresh(self) -> bool {
        self.fresh != 0
    }

    /// A replica serves that the session is not to read from yet.
    pub fn is_any_stale(self) -> bool {
        self.fresh != self.serving
    }
}

/// The nodes as they were at a version; sets are bits by index.
#[derive(Debug, Default)]
pub struct View {
    /// `None`: nothing has been looked at.
    version: Option<u64>,
    /// Replicas that serve.
    replicas: u64,
    /// The primary, where it takes its turn.
    primary: u64,
    samples: Vec<Sample>,
    /// Of the replicas that serve, the least and the most that is known of any: who needs no more than the one may read on
    /// all, who needs more than the other on none but its home.
    least: Sample,
    most: Sample,
    /// When the last of those that serve has warmed up. `None`: none of them was gone.
    warm: Option<Instant>,
}

impl View {
    /// Looks at the nodes if any has changed. `turn` tells which primary takes its turn.
    pub fn refresh<'a>(
        &mut self,
        version: &Version,
        nodes: &[Arc<Node>],
        (max_lag, warming): (Duration, Duration),
        turn: impl FnOnce() -> Option<&'a Arc<Node>>,
    ) {
        // First: what changes while it is looked at, is looked at once more.
        let current = Some(version.get());
        if self.version == current {
            return;
        }
        self.version = current;
        let nodes = &nodes[..nodes.len().min(64)];
        let serving = nodes.iter().enumerate().filter(|(_, node)| serves(node, max_lag));
        self.replicas = serving.fold(0, |set, (i, _)| set | 1 << i);
        self.primary = turn().map_or(0, |node| 1u64.checked_shl(node.index.into()).unwrap_or(0));
        self.samples.clear();
        self.samples.extend(nodes.iter().map(|node| node.sample()));
        let known = || bits(self.replicas).map(|i| self.samples[i]);
        let by_each = |pick: fn(Sample, Sample) -> Sample| known().reduce(pick).unwrap_or_default();
        (self.least, self.most) = (by_each(Sample::min), by_each(Sample::max));
        self.warm = bits(self.replicas | self.primary).filter_map(|i| nodes[i].warm_at(warming)).max();
    }

    /// Where a session that needs `need` may read: on none of `tried`, and of `outdated` it is known that they have not what
    /// is needed.
    pub fn find(&self, need: &Need, (tried, outdated): (Tried, Tried)) -> Found {
        let serving = self.replicas & !tried.0;
        let fresh = self.meeting(need, serving & !outdated.0);
        Found { serving: serving | self.primary, fresh: fresh | self.primary }
    }

    /// Those among these replicas that are known to have what is needed.
    fn meeting(&self, need: &Need, replicas: u64) -> u64 {
        if need.is_nothing() || need.is_met(ELSEWHERE, &self.least) {
            return replicas;
        }
        let home = need.home().map_or(0, |home| 1u64.checked_shl(home.into()).unwrap_or(0));
        let asked = if need.is_met(ELSEWHERE, &self.most) { replicas } else { replicas & home };
        bits(asked).filter(|&i| need.is_met(i as u16, &self.samples[i])).fold(0, |set, i| set | 1 << i)
    }

    /// For the balancer.
    pub fn field(&self, found: Found, now: Instant) -> Field {
        let Found { serving, fresh } = found;
        Field { serving, barred: serving & !fresh, whole: self.warm.is_none_or(|at| at <= now) }
    }
}

/// As a replica, whatever a session needs.
fn serves(node: &Node, max_lag: Duration) -> bool {
    node.role() == Role::Replica
        && node.config.weight > 0
        && node.is_up()
        && !node.is_ejected()
        && !node.is_astray()
        && node.lag().is_none_or(|lag| lag <= max_lag)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::Cluster;
    use crate::cluster::tests::routing;
    use crate::config::{self, Freshness, LoadBalancing, NodeRole, PrimaryReads};
    use crate::freshness::{Lsn, Seen};

    fn cluster(primary_reads: PrimaryReads, epoch: Instant) -> Cluster {
        let node = |port: u16| config::Node { host: "h".into(), port, role: NodeRole::Auto, weight: port.into() };
        // The first has no weight.
        let cluster = Cluster::new("app".into(), &[0, 1, 2, 3, 4].map(node), &routing(primary_reads), epoch);
        cluster.nodes.iter().for_each(|node| node.note_role(node.index != 4));
        cluster
    }

    /// As each node tells it.
    fn found(cluster: &Cluster, need: &Need, (tried, outdated): (Tried, Tried)) -> (u64, u64) {
        let always = cluster.routing.primary_reads == PrimaryReads::Always;
        let primary = cluster.primary().filter(|node| always && node.is_up()).map(|node| node.index);
        let in_turn = |node: &Node| primary == Some(node.index);
        let serving =
            |node: &Node| serves(node, cluster.routing.max_lag) && !tried.contains(node.index) || in_turn(node);
        let met = |node: &Node| !outdated.contains(node.index) && need.is_met(node.index, &node.sample());
        let fresh = |node: &Node| serving(node) && met(node) || in_turn(node);
        let set = |admits: &dyn Fn(&Node) -> bool| {
            cluster.nodes.iter().filter(|node| admits(node)).fold(0, |set, node| set | 1 << node.index)
        };
        (set(&serving), set(&fresh))
    }

    fn change(node: &Node, what: u8, at: impl Fn(u64) -> Instant, n: u64) {
        match what {
            0 => node.eject("test"),
            1 => node.admit(at(n)),
            2 | 3 => node.set_ejected(what == 2, at(n)),
            4 | 5 => node.note_role(what == 4),
            6 => node.note_timeline(n as u32),
            7 => node.note_written(at(n), Lsn(n / 2)),
            _ => {
                let (asked, proven) = (Some(at(n)), what.is_multiple_of(2));
                let sample = Sample { asked, position: Lsn(n), proven, until: asked.filter(|_| proven) };
                node.note_sample(sample, Some(Duration::from_secs(n)).filter(|_| what != 8));
            }
        }
    }

    proptest! {
        #[test]
        fn a_change_of_a_node_is_seen_by_the_next_look(
            always in any::<bool>(),
            steps in prop::collection::vec(((0usize..5, 0u8..14, 0u64..14), (0u64..14, 0u16..6, 0u64..20), 0u64..256), 1..60),
        ) {
            let epoch = Instant::now();
            let at = |n| epoch + Duration::from_secs(n);
            let cluster = cluster(if always { PrimaryReads::Always } else { PrimaryReads::Fallback }, epoch);
            for ((node, what, n), (until, home, floor), mask) in steps {
                change(&cluster.nodes[node], what, at, n);
                let mut seen = Seen::default();
                match home {
                    5 => {}
                    0 => seen.on_primary(at(until)),
                    home => seen.on_replica(at(until), home),
                }
                let need = Need::new(Freshness::Session, seen, Some(Lsn(floor)).filter(|_| floor < 14));
                let without = (Tried(mask & (mask >> 4) & 15), Tried(mask & (mask >> 3) & 31));
                let Found { serving, fresh } = cluster.replicas(&need, without);
                prop_assert_eq!((serving, fresh), found(&cluster, &need, without));
                // Whole as soon as each of them is, not sooner.
                let now = at(2 * until);
                let part = |i: usize| cluster.nodes[i].load(now, cluster.warming(), LoadBalancing::Weighted).part;
                let dealer = cluster.dealer();
                let whole = bits(dealer.view.replicas | dealer.view.primary).all(|i| part(i) == 16);
                prop_assert_eq!(dealer.view.field(Found { serving, fresh }, now).whole, whole);
            }
        }
    }
}
