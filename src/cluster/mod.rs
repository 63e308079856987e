//! The servers of one database: which is the primary, which replicas may answer, and the probes that find out; and the
//! database's definitions.

pub mod addresses;
pub mod catalog;
pub mod demand;
pub mod node;
pub mod probe;
pub mod view;
pub mod changes;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::cluster::catalog::Definitions;
use crate::cluster::demand::Demand;
use crate::cluster::node::{Node, Role};
use crate::cluster::view::{Found, Version, View};
use crate::config::{self, LoadBalancing, PrimaryReads};
use crate::freshness::positions::Positions;
use crate::freshness::{LastWrite, Need};
use crate::random::Random;
use crate::route::balance::{Balancer, Load};
use crate::route::decide::Why;

/// A node that comes back takes its full share after so many probes.
const WARMING: u32 = 10;

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

/// Where a read goes.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    pub node: &'a Arc<Node>,
    pub why: Why,
    /// A replica serves that is not known to have what the session needs.
    pub passed_over: bool,
}

/// How reads are dealt: one choice at a time.
#[derive(Debug)]
struct Dealer {
    view: View,
    balancer: Balancer,
}

/// The nodes of one database.
#[derive(Debug)]
pub struct Cluster {
    pub database: Arc<str>,
    pub nodes: Vec<Arc<Node>>,
    pub routing: config::Routing,
    pub definitions: Arc<Definitions>,
    /// For samples that come sooner than each `probe_interval`.
    pub demand: Arc<Demand>,
    pub last_write: LastWrite,
    dealer: Mutex<Dealer>,
    version: Version,
    positions: Mutex<Positions>,
    /// Numbers the draws of randomness.
    draws: AtomicU64,
    changes: watch::Sender<u64>,
    /// Counts the samples of replicas.
    samples: watch::Sender<u64>,
    /// Until then none of pgweir's own connections is open; in the past mostly.
    vacant_until: watch::Sender<Instant>,
}

impl Cluster {
    pub fn new(database: Arc<str>, nodes: &[config::Node], routing: &config::Routing, epoch: Instant) -> Cluster {
        let (changes, version) = (watch::Sender::new(0), Version::default());
        let node = |(i, n): (usize, &config::Node)| {
            Arc::new(Node::new(i as u16, n.clone(), epoch, (changes.clone(), version.clone())))
        };
        let balancer = Balancer::new(routing.load_balancing, nodes.iter().map(|n| n.weight));
        Cluster {
            database,
            nodes: nodes.iter().enumerate().map(node).collect(),
            routing: routing.clone(),
            definitions: Arc::default(),
            demand: Arc::new(Demand::new(epoch)),
            last_write: LastWrite::new(epoch),
            dealer: Mutex::new(Dealer { view: View::default(), balancer }),
            positions: Mutex::default(),
            draws: AtomicU64::new(0),
            changes,
            version,
            samples: watch::Sender::new(0),
            vacant_until: watch::Sender::new(epoch),
        }
    }

    /// A statement wants the database to itself: what asks nodes on its own leaves it for that time. A later word counts.
    pub fn vacate(&self, until: Instant) {
        self.vacant_until.send_replace(until);
    }

    /// For those that connect on their own: each change tells them to leave at once, and then to [`stay_away`].
    pub fn vacancies(&self) -> watch::Receiver<Instant> {
        self.vacant_until.subscribe()
    }

    /// Whenever a replica has said how far it is.
    pub fn samples(&self) -> watch::Receiver<u64> {
        self.samples.subscribe()
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

    /// All nodes, those that are up and in use first, and among them the primary.
    pub fn by_preference(&self) -> impl Iterator<Item = &Arc<Node>> {
        let mut nodes: Vec<_> = self.nodes.iter().collect();
        nodes.sort_by_key(|node| {
            let replica = node.role() != Role::Primary;
            (!node.is_up(), replica && node.is_ejected(), replica, node.role() == Role::Unknown)
        });
        nodes.into_iter()
    }

    /// The node for a plain read of a session that needs `need`, with the reason.
    ///
    /// It is none of `tried`, which have failed, nor of `outdated`, which may have fallen back. Nodes are weighed for the
    /// balancer as they are at `now`; `random` is drawn for each read.
    pub fn reader(
        &self,
        need: &Need,
        (tried, outdated): (Tried, Tried),
        now: Instant,
        random: u64,
    ) -> Option<Choice<'_>> {
        let mut dealer = self.dealer();
        let found = dealer.view.find(need, (tried, outdated));
        let field = dealer.view.field(found, now);
        // Where there is none to pick from, nothing is owed either.
        let picked = found.is_any_fresh().then(|| dealer.balancer.pick(random, field, self.loads(now))).flatten();
        drop(dealer);
        let stale = found.is_any_stale();
        if stale {
            self.demand.raise(now);
        }
        if let Some(i) = picked {
            let node = &self.nodes[i];
            let why = if node.role() == Role::Primary { Why::PrimaryTurn } else { Why::Read };
            return Some(Choice { node, why, passed_over: stale });
        }
        let why = match (tried.is_empty(), stale) {
            (false, _) => Why::Retry,
            (true, true) => Why::Freshness,
            (true, false) => Why::NoReplica,
        };
        // What a session has seen is worth more than sparing the primary.
        let refused = self.routing.primary_reads == PrimaryReads::Never && !stale;
        let primary = self.primary().filter(|_| !refused)?;
        Some(Choice { node: primary, why, passed_over: stale })
    }

    /// Undoes the choice of a replica by [`Cluster::reader`] that comes to nothing: what it is owed is dealt anew.
    pub fn give_back(&self, node: u16, need: &Need, tried: Tried, now: Instant) {
        let mut dealer = self.dealer();
        let field = dealer.view.field(dealer.view.find(need, (tried, Tried::default())), now);
        dealer.balancer.give_back(usize::from(node), field, self.loads(now));
    }

    /// The replicas that serve, and those of them that have what a session needs.
    pub fn replicas(&self, need: &Need, without: (Tried, Tried)) -> Found {
        self.dealer().view.find(need, without)
    }

    /// With a view of the nodes as they are.
    fn dealer(&self) -> MutexGuard<'_, Dealer> {
        let mut dealer = self.dealer.lock();
        let always = self.routing.primary_reads == PrimaryReads::Always;
        let turn = || self.primary().filter(|node| always && node.is_up());
        dealer.view.refresh(&self.version, &self.nodes, (self.routing.max_lag, self.warming()), turn);
        dealer
    }

    /// What the balancer is told of each node.
    fn loads(&self, now: Instant) -> impl Fn(usize) -> Load {
        let (warming, policy) = (self.warming(), self.routing.load_balancing);
        move |i| self.nodes[i].load(now, warming, policy)
    }

    /// For the balancer, which needs no better randomness.
    pub fn draw(&self) -> u64 {
        if self.routing.load_balancing != LoadBalancing::Latency {
            return 0;
        }
        Random::new(self.draws.fetch_add(1, Ordering::Relaxed)).draw()
    }

    /// How long a node takes to come to its full share after it was gone.
    fn warming(&self) -> Duration {
        self.routing.probe_interval * WARMING
    }

    /// Some node can serve: the condition of readiness.
    pub fn can_serve(&self) -> bool {
        self.nodes.iter().any(|node| node.can_serve())
    }
}

/// Until the database need not be left any more.
pub async fn stay_away(vacancies: &mut watch::Receiver<Instant>) {
    loop {
        let until = *vacancies.borrow_and_update();
        let Ok(Ok(())) = tokio::time::timeout_at(until.into(), vacancies.changed()).await else { return };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use super::*;
    use crate::config::{Freshness, NodeRole};
    use crate::freshness::{Lsn, Sample, Seen};

    pub(super) fn routing(primary_reads: PrimaryReads) -> config::Routing {
        config::Routing {
            load_balancing: LoadBalancing::Weighted,
            failover: true,
            freshness: Freshness::Session,
            max_lag: Duration::from_secs(10),
            primary_reads,
            probe_interval: Duration::from_secs(1),
        }
    }

    fn cluster(primary_reads: PrimaryReads) -> Cluster {
        let node = |port, role, weight| config::Node { host: "h".into(), port, role, weight };
        let nodes = [
            node(0, NodeRole::Primary, 1),
            node(1, NodeRole::Replica, 1),
            node(2, NodeRole::Replica, 1),
            node(3, NodeRole::Replica, 2),
        ];
        Cluster::new("app".into(), &nodes, &routing(primary_reads), Instant::now())
    }

    fn anything() -> Need {
        Need::new(Freshness::Session, Seen::default(), None)
    }

    fn read(cluster: &Cluster) -> Option<Choice<'_>> {
        cluster.reader(&anything(), <(Tried, Tried)>::default(), Instant::now(), 0)
    }

    fn shares(cluster: &Cluster, picks: usize) -> HashMap<u16, usize> {
        let mut shares = HashMap::new();
        for _ in 0..picks {
            *shares.entry(read(cluster).unwrap().node.index).or_default() += 1;
        }
        shares
    }

    #[test]
    fn reads_spread_by_weight_and_move_from_a_dead_replica() {
        let cluster = cluster(PrimaryReads::Fallback);
        assert_eq!(shares(&cluster, 400), HashMap::from([(1, 100), (2, 100), (3, 200)]));
        cluster.nodes[3].eject("test");
        assert_eq!(shares(&cluster, 100), HashMap::from([(1, 50), (2, 50)]));
        let now = Instant::now();
        cluster.nodes[3].admit(now);
        // It warms up: a sixteenth of its weight at first, half of it at half time.
        let share = |after: u64| {
            let reads = (0..340).map(|_| {
                let at = now + Duration::from_secs(after);
                cluster.reader(&anything(), <(Tried, Tried)>::default(), at, 0).unwrap().node.index
            });
            reads.filter(|index| *index == 3).count()
        };
        assert_eq!([0, 5, 10].map(share), [20, 113, 170]);
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
            assert_eq!(read(&cluster).map(|c| (c.node.index, c.why)), expected);
        }
    }

    /// Also where it has been tried there: when the primary has died under the read, for one.
    #[test]
    fn what_a_session_has_seen_is_worth_more_than_sparing_the_primary() {
        let cluster = cluster(PrimaryReads::Never);
        let mut seen = Seen::default();
        seen.on_primary(Instant::now());
        let need = Need::new(Freshness::Session, seen, None);
        let mut tried = Tried::default();
        tried.insert(0);
        let reader =
            || cluster.reader(&need, (tried, Tried::default()), Instant::now(), 0).map(|c| (c.node.index, c.why));
        assert_eq!(reader(), Some((0, Why::Retry)));
        cluster.nodes[1..].iter().for_each(|n| n.eject("test"));
        assert_eq!(reader(), None, "no replica serves that could come to have it");
    }

    #[test]
    fn a_session_that_wrote_waits_for_a_replica_that_has_replayed_it() {
        let cluster = cluster(PrimaryReads::Fallback);
        let wrote = Instant::now();
        let mut seen = Seen::default();
        seen.on_primary(wrote);
        let need = Need::new(Freshness::Session, seen, None);
        let reader =
            |c: &Cluster| c.reader(&need, <(Tried, Tried)>::default(), wrote, 0).map(|c| (c.node.index, c.why));
        let fresh = |until| Sample { asked: Some(until), position: Lsn(1), proven: true, until: Some(until) };
        assert_eq!(reader(&cluster), Some((0, Why::Freshness)));
        cluster.nodes[2].note_sample(fresh(wrote), Some(Duration::ZERO));
        assert_eq!(reader(&cluster), Some((0, Why::Freshness)), "asked at the very instant of the write");
        let later = wrote + Duration::from_millis(1);
        cluster.nodes[2].note_sample(fresh(later), Some(Duration::ZERO));
        assert_eq!(reader(&cluster), Some((2, Why::Read)));
        let may_read = |created| need.is_met_by(created, 2, || cluster.nodes[2].sample());
        assert!(may_read(later) && !may_read(later + Duration::from_millis(1)), "of a server that started anew");
        cluster.nodes[2].eject("test");
        cluster.nodes[2].admit(later);
        assert_eq!(reader(&cluster), Some((0, Why::Freshness)), "what it had before it was gone");
    }

    /// One that follows the primary that was replaced, or was it.
    #[test]
    fn a_replica_on_a_history_that_the_primary_has_left_serves_nothing() {
        let cluster = cluster(PrimaryReads::Fallback);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let ahead = Sample { asked: Some(at(5)), position: Lsn(20), proven: false, until: None };
        let readers = || shares(&cluster, 40).into_keys().collect::<std::collections::BTreeSet<_>>();
        cluster.nodes[3].note_sample(ahead, None);
        // Looked at before, the primary may have written it since.
        cluster.nodes[3].note_written(at(5), Lsn(10));
        assert_eq!(readers(), [1, 2, 3].into());
        cluster.nodes[3].note_written(at(6), Lsn(20));
        assert_eq!(readers(), [1, 2, 3].into());
        cluster.nodes[3].note_written(at(6), Lsn(19));
        assert_eq!(readers(), [1, 2].into());
        // The primary has come as far, elsewhere.
        cluster.nodes[3].note_written(at(9), Lsn(90));
        cluster.nodes[3].note_sample(Sample { asked: Some(at(10)), ..ahead }, Some(Duration::ZERO));
        assert_eq!(readers(), [1, 2].into());
        cluster.nodes[3].note_sample(Sample { asked: Some(at(11)), proven: true, ..ahead }, Some(Duration::ZERO));
        assert_eq!(readers(), [1, 2, 3].into());
    }

    /// Sessions that read, faster than samples come, and some that write: most choices are forced, and by the weights still.
    #[test]
    fn reads_spread_by_weight_whatever_sessions_have_seen() {
        let cluster = cluster(PrimaryReads::Fallback);
        let start = Instant::now();
        let mut sessions = [Seen::default(); 8];
        let mut counts = [0usize; 4];
        for ms in 1..=20_000u64 {
            let now = start + Duration::from_millis(ms);
            // Each replica is sampled each 20 ms, always in the same order.
            if let Some(node @ 1..=3) = (ms % 20).checked_sub(2).map(|late| late as usize) {
                let asked = now - Duration::from_micros(500);
                let sample = Sample { asked: Some(asked), position: Lsn(ms), proven: true, until: Some(asked) };
                cluster.nodes[node].note_sample(sample, Some(Duration::ZERO));
            }
            // At its own pace, from each 7 ms to each 28 ms.
            for (i, seen) in sessions.iter_mut().enumerate().filter(|(i, _)| ms % (7 + 3 * *i as u64) == 0) {
                if i >= 6 && ms % 5 == 0 {
                    seen.on_primary(now);
                    continue;
                }
                let need = Need::new(Freshness::Session, *seen, None);
                let node = cluster.reader(&need, <(Tried, Tried)>::default(), now, 0).unwrap().node.index;
                counts[usize::from(node)] += 1;
                if node == 0 { seen.on_primary(now) } else { seen.on_replica(now, node) }
            }
        }
        let all: usize = counts[1..].iter().sum();
        assert!(all > 8_000 && counts[0] < all / 10, "{counts:?}");
        for (count, share) in counts[1..].iter().zip([4, 4, 2]) {
            assert!(count.abs_diff(all / share) <= 8, "{counts:?}");
        }
    }

    /// Whoever stands beside it in the file.
    #[test]
    fn what_one_node_may_not_answer_is_spread_by_weight() {
        let cluster = cluster(PrimaryReads::Fallback);
        let mut without = Tried::default();
        without.insert(1);
        let counts = |kept_from: (Tried, Tried)| {
            let mut counts = [0i32; 4];
            for read in 0..12_000 {
                let is_kept = Random::new(read).draw().is_multiple_of(3);
                let from = if is_kept { kept_from } else { Default::default() };
                let node = cluster.reader(&anything(), from, Instant::now(), 0).unwrap().node.index;
                assert!(!is_kept || node != 1);
                counts[usize::from(node)] += 1;
            }
            counts
        };
        // It serves others, and makes up for it there.
        let [_, counted @ ..] = counts((Tried::default(), without));
        assert!(
            counted.iter().zip([3_000, 3_000, 6_000]).all(|(count, share)| count.abs_diff(share) <= 5),
            "{counted:?}"
        );
        // It has failed: the others have the reads that it is kept from.
        let [_, counted @ ..] = counts((without, Tried::default()));
        let shares = [2_000, 2_000 + 4_000 / 3, 4_000 + 8_000 / 3];
        assert!(counted.iter().zip(shares).all(|(count, share)| count.abs_diff(share) <= 150), "{counted:?}");
    }

    #[test]
    fn of_two_primaries_the_one_on_the_later_timeline_counts() {
        let cluster = cluster(PrimaryReads::Fallback);
        let auto = |index, port| {
            let config = config::Node { host: "h".into(), port, role: NodeRole::Auto, weight: 1 };
            Arc::new(Node::new(index, config, Instant::now(), (cluster.changes.clone(), cluster.version.clone())))
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
        cluster.nodes[1].note_sample(Sample::default(), Some(Duration::from_secs(11)));
        assert_eq!(shares(&cluster, 300), HashMap::from([(2, 100), (3, 200)]));
    }

    #[test]
    fn a_retry_goes_elsewhere_and_at_last_to_the_primary() {
        let cluster = cluster(PrimaryReads::Fallback);
        let mut tried = Tried::default();
        let mut seen = Vec::new();
        while let Some(Choice { node, why, .. }) =
            cluster.reader(&anything(), (tried, Tried::default()), Instant::now(), 0)
        {
            seen.push(node.index);
            if why == Why::Retry {
                break;
            }
            tried.insert(node.index);
        }
        assert_eq!((seen.len(), seen.last()), (4, Some(&0)));
    }
}
