//! Which of the nodes that may answer is asked next (`routing.load_balancing`).
//!
//! # `weighted`
//!
//! Each node has a credit, as in nginx's smooth weighted round robin: every pick adds a node's weight to its
//! credit and takes the sum of the weights from the node picked. Picking simply the highest credit, as nginx does, can
//! leave a node more than one pick behind its due once there are seven nodes or so. Here the node picked is the one whose
//! credit would be the first to run over, among those that are owed enough: Tijdeman's solution of the chairman
//! assignment problem (Discrete Mathematics 32, 1980), which keeps every node less than one pick from its exact
//! share after any number of picks.
//!
//! A node that serves, and is merely not fresh enough for the session that asks, is owed the pick that it does not get, up to
//! [`OWED`]: others ask later that may read there.
//!
//! # `least-busy`
//!
//! The node with the fewest requests under way for its weight; among equals the rotation decides, so that an idle system
//! spreads its reads as `weighted` does.
//!
//! # `latency`
//!
//! Two nodes are drawn by weight, and the one takes it that costs less: its recent latency ([`Peak`]) times the requests
//! under way on it. Two choices are enough to keep the worst node from being chosen, and few enough not to send
//! everybody to the one that looks best (Mitzenmacher, IEEE TPDS 12, 2001).

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use crate::config::LoadBalancing;

/// All of a node's weight counts; a node that has just come back has less, to warm up.
pub const WHOLE: u32 = 16;

/// How many picks a node may be behind or ahead because those that ask may not read everywhere. Made up for at once, so it
/// is also the longest run that a node gets when it has caught up.
const OWED: i64 = 64;

/// How long a high latency is remembered: after this long without another one, a third is left of it.
const MEMORY: Duration = Duration::from_secs(5);

/// What is known of a node at the moment of a pick.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Load {
    /// How much of its weight counts, of [`WHOLE`]; 0: it takes no part.
    pub part: u32,
    /// It serves others, and is not to be picked.
    pub barred: bool,
    /// Requests under way.
    pub outstanding: u32,
    /// As [`Peak::at`] says.
    pub latency: Duration,
}

/// A node's latency as a moving average that follows a rise at once and forgets it slowly.
#[derive(Debug, Clone, Copy, Default)]
pub struct Peak {
    /// The average in seconds, and when it was that.
    last: Option<(f64, Instant)>,
}

impl Peak {
    /// A request has taken so long.
    pub fn note(&mut self, now: Instant, took: Duration) {
        let took = took.as_secs_f64();
        let average = match self.last {
            Some((average, at)) if average > took => {
                let kept = decay(now.saturating_duration_since(at));
                average * kept + took * (1.0 - kept)
            }
            _ => took,
        };
        self.last = Some((average, now));
    }

    /// What is left of it: without requests it sinks, so that a node that was slow is tried again.
    pub fn at(&self, now: Instant) -> Duration {
        let left = |(average, at): (f64, Instant)| average * decay(now.saturating_duration_since(at));
        Duration::from_secs_f64(self.last.map_or(0.0, left))
    }
}

fn decay(passed: Duration) -> f64 {
    (-passed.as_secs_f64() / MEMORY.as_secs_f64()).exp()
}

/// Deals reads to nodes in proportion to their weights.
///
/// With the same nodes usable throughout, each node's count of picks is, at every moment, less than one away from
/// its exact share, and exact after each full round (a number of picks equal to the sum of the weights).
#[derive(Debug, Clone)]
pub struct Balancer {
    policy: LoadBalancing,
    nodes: Vec<Node>,
    /// The sum of all weights: no credit goes beyond it in either direction, but for what is [`OWED`].
    bound: i64,
}

#[derive(Debug, Clone)]
struct Node {
    weight: i64,
    /// What the node is owed, in picks times the sum of the weights.
    credit: i64,
    /// What counts of its weight in the pick under way; 0: it takes no part.
    counts: i64,
    load: Load,
}

impl Balancer {
    /// For nodes `0..weights.len()`. A node of weight 0 is never picked.
    pub fn new(policy: LoadBalancing, weights: impl IntoIterator<Item = u32>) -> Self {
        let node = |weight| Node { weight: i64::from(weight), credit: 0, counts: 0, load: Load::default() };
        let nodes: Vec<Node> = weights.into_iter().map(node).collect();
        let bound = nodes.iter().map(|node| node.weight * i64::from(WHOLE)).sum();
        Self { policy, nodes, bound }
    }

    /// The next node among those with a part that are not barred; `None` if none has one and a weight. `random` is drawn
    /// for each pick.
    ///
    /// `load` is asked once for each node with a weight. A node without a part keeps the credit it had, neither more
    /// nor less, so that it returns to its share and not to a burst.
    pub fn pick(&mut self, random: u64, load: impl Fn(usize) -> Load) -> Option<usize> {
        self.weigh(load);
        match self.policy {
            LoadBalancing::Weighted | LoadBalancing::LeastBusy => self.rotate(),
            LoadBalancing::Latency => self.cheaper_of_two(random),
        }
    }

    /// Undoes a pick of which nothing has come, where `load` is what it was then.
    pub fn give_back(&mut self, picked: usize, load: impl Fn(usize) -> Load) {
        if self.policy == LoadBalancing::Latency {
            // It was drawn.
            return;
        }
        self.weigh(load);
        let mut total = 0;
        for node in self.nodes.iter_mut().filter(|node| node.counts > 0) {
            total += node.counts;
            node.credit -= node.counts;
        }
        self.nodes[picked].credit += total;
        let most = self.bound * (OWED + 1);
        self.nodes.iter_mut().for_each(|node| node.credit = node.credit.clamp(-most, most));
    }

    /// What counts of each node, and for `least-busy` of the least busy alone.
    fn weigh(&mut self, load: impl Fn(usize) -> Load) {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            node.load = if node.weight > 0 { load(index) } else { Load::default() };
            node.counts = node.weight * i64::from(node.load.part.min(WHOLE));
        }
        if self.policy == LoadBalancing::LeastBusy {
            self.keep_least_busy();
        }
    }

    /// Leaves those in the pick that are the least busy for their weight.
    fn keep_least_busy(&mut self) {
        let busier = |a: &Node, b: &Node| {
            by_product((i64::from(a.load.outstanding), b.counts), (i64::from(b.load.outstanding), a.counts))
        };
        let Some((_, least)) = self.among_usable(|_| true).min_by(|a, b| busier(a.1, b.1)) else { return };
        let least = least.clone();
        for node in self.nodes.iter_mut().filter(|node| node.counts > 0 && busier(node, &least) != Ordering::Equal) {
            node.counts = 0;
        }
    }

    fn cheaper_of_two(&self, random: u64) -> Option<usize> {
        let first = self.draw(random & u64::from(u32::MAX), None)?;
        let Some(second) = self.draw(random >> 32, Some(first)) else { return Some(first) };
        let cost = |at: usize| {
            let node = &self.nodes[at];
            // In proportion to what counts of its weight, a heavy node may have more under way.
            let share = f64::from(node.load.outstanding) / (node.counts as f64 / f64::from(WHOLE));
            node.load.latency.as_secs_f64() * (share + 1.0)
        };
        Some(if cost(second) < cost(first) { second } else { first })
    }

    /// One of the usable nodes but `not`, by weight; `random` is below 2³².
    fn draw(&self, random: u64, not: Option<usize>) -> Option<usize> {
        let among = || self.among_usable(|_| true).filter(|(index, _)| Some(*index) != not);
        let total: i64 = among().map(|(_, node)| node.counts).sum();
        let mut rest = ((i128::from(random) * i128::from(total)) >> 32) as i64;
        among()
            .find(|(_, node)| {
                rest -= node.counts;
                rest < 0
            })
            .map(|(index, _)| index)
    }

    fn rotate(&mut self) -> Option<usize> {
        let (mut count, mut total, mut barred) = (0, 0, 0);
        for node in self.nodes.iter().filter(|node| node.counts > 0) {
            count += 1;
            total += node.counts;
            barred += if node.load.barred { node.counts } else { 0 };
        }
        let picked = self.most_urgent(count, total).or_else(|| self.most_owed())?;
        if barred > 0 && !self.may_owe(picked) {
            total -= barred;
            self.nodes.iter_mut().filter(|node| node.load.barred).for_each(|node| node.counts = 0);
        }
        // Without effect while the usable nodes stay the same. When they change from pick to pick, it keeps a node from
        // saving up more than about one pick, unless it is owed more.
        let owing = barred > 0 || self.nodes.iter().any(|node| node.credit.abs() > self.bound);
        let most = if owing { self.bound * (OWED + 1) } else { self.bound };
        for (index, node) in self.nodes.iter_mut().enumerate() {
            if node.counts > 0 {
                let change = node.counts - if index == picked { total } else { 0 };
                node.credit = (node.credit + change).clamp(-most, most);
            }
        }
        Some(picked)
    }

    /// Whether those barred may be owed one more pick, which `picked` gets ahead of them.
    fn may_owe(&self, picked: usize) -> bool {
        let most = self.bound * OWED;
        let full = |node: &Node| node.load.barred && node.credit > most;
        self.nodes[picked].credit > -most && !self.nodes.iter().any(full)
    }

    /// Of the nodes owed at least `total / (2n - 2)`, the one that would first be owed `total * (2n - 3) / (2n - 2)`.
    fn most_urgent(&self, count: i64, total: i64) -> Option<usize> {
        let scale = 2 * count - 2;
        let owed = |node: &Node| node.credit + node.counts;
        // Of as many nodes as a cluster has, no number here needs more than 60 bits.
        let slack = |node: &Node| total * (scale - 1) - owed(node) * scale;
        self.among_usable(|node| owed(node) * scale >= total)
            .min_by(|(_, a), (_, b)| by_product((slack(a), b.counts), (slack(b), a.counts)))
            .map(|(index, _)| index)
    }

    /// Needed for a single usable node, and after the usable nodes changed, when those left may all be in debt.
    fn most_owed(&self) -> Option<usize> {
        self.among_usable(|_| true).min_by_key(|(_, node)| -(node.credit + node.counts)).map(|(index, _)| index)
    }

    fn among_usable(&self, admit: impl Fn(&Node) -> bool) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter(move |(_, node)| node.usable() && admit(node))
    }
}

impl Node {
    /// To be picked.
    fn usable(&self) -> bool {
        self.counts > 0 && !self.load.barred
    }
}

/// Compares two products, which seldom need more than 64 bits.
fn by_product((a, b): (i64, i64), (c, d): (i64, i64)) -> Ordering {
    match (a.checked_mul(b), c.checked_mul(d)) {
        (Some(left), Some(right)) => left.cmp(&right),
        _ => (i128::from(a) * i128::from(b)).cmp(&(i128::from(c) * i128::from(d))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn weighted(weights: impl IntoIterator<Item = u32>) -> Balancer {
        Balancer::new(LoadBalancing::Weighted, weights)
    }

    fn pick(balancer: &mut Balancer, usable: impl Fn(usize) -> bool) -> Option<usize> {
        balancer.pick(0, |node| Load { part: if usable(node) { WHOLE } else { 0 }, ..Load::default() })
    }

    fn picks(balancer: &mut Balancer, count: usize, usable: impl Fn(usize) -> bool) -> Vec<usize> {
        (0..count).map(|_| pick(balancer, &usable).expect("a usable node")).collect()
    }

    fn share(picks: &[usize], node: usize) -> usize {
        picks.iter().filter(|&&picked| picked == node).count()
    }

    #[test]
    fn every_window_of_a_round_holds_the_exact_shares() {
        let sequence = picks(&mut weighted([1, 1, 2]), 64, |_| true);
        for rounds in 1..=4 {
            for window in sequence.windows(4 * rounds) {
                let shares = [0, 1, 2].map(|node| share(window, node));
                assert_eq!(shares, [rounds, rounds, 2 * rounds], "{window:?}");
            }
        }
    }

    #[test]
    fn a_heavy_node_is_spread_out_and_not_served_in_a_row() {
        let sequence = picks(&mut weighted([5, 1, 1]), 14, |_| true);
        assert_eq!(sequence, [0, 0, 1, 0, 0, 2, 0, 0, 0, 1, 0, 0, 2, 0]);
    }

    #[test]
    fn with_one_down_the_rest_keep_their_proportion() {
        let mut balancer = weighted([1, 1, 2]);
        picks(&mut balancer, 5, |_| true);
        let sequence = picks(&mut balancer, 300, |node| node != 0);
        assert_eq!(share(&sequence, 0), 0);
        assert!(share(&sequence, 1).abs_diff(100) <= 1);
        assert!(share(&sequence, 2).abs_diff(200) <= 1);
    }

    #[test]
    fn a_node_that_comes_back_gets_no_burst() {
        for before in 0..4 {
            let mut balancer = weighted([1, 1, 2]);
            picks(&mut balancer, before, |_| true);
            picks(&mut balancer, 1000, |node| node != 2);
            let sequence = picks(&mut balancer, 40, |_| true);
            for window in sequence.windows(8) {
                assert!((3..=5).contains(&share(window, 2)), "{sequence:?}");
            }
        }
    }

    #[test]
    fn what_a_node_was_barred_from_is_made_up_for() {
        let mut balancer = weighted([1, 1, 2]);
        let barring = |balancer: &mut Balancer, barred: [bool; 3]| {
            balancer.pick(0, |node| Load { part: WHOLE, barred: barred[node], ..Load::default() }).unwrap()
        };
        let mut sequence: Vec<_> = (0..60).map(|_| barring(&mut balancer, [false, true, true])).collect();
        assert_eq!(share(&sequence, 0), 60);
        sequence.extend(picks(&mut balancer, 180, |_| true));
        assert_eq!([0, 1, 2].map(|node| share(&sequence, node)), [60, 60, 120]);
        // What is owed has a bound, and so has the run that pays it.
        (0..10_000).for_each(|_| assert_eq!(barring(&mut balancer, [true, false, true]), 1));
        let sequence = picks(&mut balancer, 1000, |_| true);
        assert!(share(&sequence[..500], 1) > 0, "{sequence:?}");
        let last = share(&sequence[800..], 1);
        assert!(last.abs_diff(50) <= 1, "{last}");
        assert_eq!(balancer.pick(0, |_| Load { part: WHOLE, barred: true, ..Load::default() }), None);
    }

    #[test]
    fn a_pick_given_back_was_none() {
        let (mut plain, mut other) = (weighted([3, 1, 2]), weighted([3, 1, 2]));
        for _ in 0..50 {
            let load = |_| Load { part: WHOLE, ..Load::default() };
            let lost = other.pick(0, load).unwrap();
            other.give_back(lost, load);
            assert_eq!(plain.pick(0, load), other.pick(0, load));
        }
    }

    #[test]
    fn nothing_usable_is_nothing_picked() {
        assert_eq!(pick(&mut weighted([]), |_| true), None);
        assert_eq!(pick(&mut weighted([0, 0]), |_| true), None);
        assert_eq!(pick(&mut weighted([1, 2]), |_| false), None);
        assert_eq!(pick(&mut weighted([0, 3]), |_| true), Some(1));
    }

    #[test]
    fn the_largest_weights_do_not_overflow() {
        let mut balancer = weighted([u32::MAX; 16]);
        let sequence = picks(&mut balancer, 1600, |_| true);
        assert!((0..16).all(|node| share(&sequence, node) == 100));
    }

    /// Draws that look random, the same each time.
    fn draws() -> impl FnMut() -> u64 {
        let mut state = 1u64;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state ^ (state >> 32)
        }
    }

    #[test]
    fn a_node_that_warms_up_has_its_part_of_its_share() {
        let mut balancer = weighted([1, 1]);
        let load = |node| Load { part: if node == 1 { WHOLE / 4 } else { WHOLE }, ..Load::default() };
        let sequence: Vec<_> = (0..100).map(|_| balancer.pick(0, load).unwrap()).collect();
        assert_eq!(share(&sequence, 1), 20);
    }

    #[test]
    fn the_least_busy_for_its_weight_is_next_and_equals_take_turns() {
        let mut balancer = Balancer::new(LoadBalancing::LeastBusy, [1, 1, 2]);
        let mut next = |outstanding: [u32; 3]| {
            balancer.pick(0, |node| Load { part: WHOLE, outstanding: outstanding[node], ..Load::default() }).unwrap()
        };
        assert_eq!((next([1, 0, 1]), next([1, 2, 1]), next([1, 1, 3])), (1, 2, 0));
        let idle: Vec<_> = (0..40).map(|_| next([0, 0, 0])).collect();
        assert!(share(&idle, 2).abs_diff(20) <= 1, "{idle:?}");
    }

    /// Each node serves one request at a time; node 1 takes ten times as long.
    #[test]
    fn a_slow_node_loses_share_by_load_and_by_latency() {
        for policy in [LoadBalancing::LeastBusy, LoadBalancing::Latency, LoadBalancing::Weighted] {
            let (mut balancer, mut draw, start) = (Balancer::new(policy, [1, 1]), draws(), Instant::now());
            let mut peaks = [Peak::default(); 2];
            // When each request under way ends: its node, its begin and end, in ms.
            let (mut under_way, mut counts): (Vec<(usize, u64, u64)>, _) = (Vec::new(), [0usize; 2]);
            let at = |ms| start + Duration::from_millis(ms);
            for ms in 0..2000 {
                for &(node, began, _) in under_way.iter().filter(|request| request.2 == ms) {
                    peaks[node].note(at(ms), Duration::from_millis(ms - began));
                }
                under_way.retain(|request| request.2 > ms);
                let outstanding = |node| under_way.iter().filter(|request| request.0 == node).count() as u32;
                let load = |node: usize| Load {
                    part: WHOLE,
                    outstanding: outstanding(node),
                    latency: peaks[node].at(at(ms)),
                    ..Load::default()
                };
                let node = balancer.pick(draw(), load).unwrap();
                counts[node] += 1;
                under_way.push((node, ms, ms + [2, 20][node]));
            }
            match policy {
                LoadBalancing::Weighted => assert_eq!(counts, [1000, 1000]),
                _ => assert!(counts[1] > 0 && counts[1] < 400, "{policy:?}: {counts:?}"),
            }
        }
    }

    #[test]
    fn by_latency_equal_nodes_share_by_weight() {
        let (mut balancer, mut draw) = (Balancer::new(LoadBalancing::Latency, [1, 1, 2]), draws());
        let load = |_| Load { part: WHOLE, outstanding: 0, latency: Duration::from_millis(3), ..Load::default() };
        let sequence: Vec<_> = (0..4000).map(|_| balancer.pick(draw(), load).unwrap()).collect();
        assert!(share(&sequence, 2).abs_diff(2000) < 150, "{}", share(&sequence, 2));
        let only = |node| Load { part: if node == 1 { WHOLE } else { 0 }, ..Load::default() };
        assert_eq!(balancer.pick(draw(), only), Some(1));
        assert_eq!(balancer.pick(draw(), |_| Load::default()), None);
    }

    #[test]
    fn a_peak_rises_at_once_and_sinks_slowly() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut peak = Peak::default();
        assert_eq!(peak.at(at(0)), Duration::ZERO);
        peak.note(at(0), Duration::from_millis(2));
        peak.note(at(0), Duration::from_millis(100));
        peak.note(at(0), Duration::from_millis(2));
        assert_eq!(peak.at(at(0)), Duration::from_millis(100));
        assert!(peak.at(at(5)) < Duration::from_millis(40) && peak.at(at(5)) > Duration::from_millis(30));
        peak.note(at(60), Duration::from_millis(2));
        assert!(peak.at(at(60)) < Duration::from_millis(3));
    }

    proptest! {
        #[test]
        fn shares_are_within_one_pick_of_exact_after_any_number_of_picks(
            weights in prop::collection::vec(prop_oneof![0u32..5, 0u32..100], 1..16),
            down in prop::collection::vec(any::<bool>(), 16),
            picks in 1usize..500,
        ) {
            let mut balancer = weighted(weights.iter().copied());
            let total: u64 = (0..weights.len()).filter(|&i| !down[i]).map(|i| u64::from(weights[i])).sum();
            let mut counts = vec![0u64; weights.len()];
            for made in 1..=picks as u64 {
                let Some(node) = pick(&mut balancer, |i| !down[i]) else {
                    prop_assert_eq!(total, 0);
                    return Ok(());
                };
                prop_assert!(!down[node] && weights[node] > 0);
                counts[node] += 1;
                for (i, &count) in counts.iter().enumerate().filter(|&(i, _)| !down[i]) {
                    let exact = made * u64::from(weights[i]);
                    prop_assert!((count * total).abs_diff(exact) < total.max(1), "{weights:?} {counts:?}");
                }
            }
        }

        #[test]
        fn changing_nodes_neither_starve_nor_flood_a_node(
            weights in prop::collection::vec(1u32..10, 2..8),
            masks in prop::collection::vec(1u8..=255, 1..400),
        ) {
            let mut balancer = weighted(weights.iter().copied());
            for mask in masks {
                if let Some(node) = pick(&mut balancer, |i| mask & (1 << i) != 0) {
                    prop_assert!(mask & (1 << node) != 0);
                }
            }
            // Whatever came before, a round later each node has its share, give or take the pick or two it was owed.
            let total: u32 = weights.iter().sum();
            let sequence = picks(&mut balancer, 4 * total as usize, |_| true);
            for (i, &weight) in weights.iter().enumerate() {
                prop_assert!(share(&sequence, i).abs_diff(4 * weight as usize) <= 2, "{weights:?} {sequence:?}");
            }
        }
    }
}
