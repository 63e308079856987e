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
//! a bound: others ask later that may read there. How it is kept is told in [`crate::route::rotation`].
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
use crate::route::rotation::{Rotation, bits, by_product};

/// All of a node's weight counts; a node that has just come back has less, to warm up.
pub const WHOLE: u32 = 16;

/// How long a high latency is remembered: after this long without another one, a third is left of it.
const MEMORY: Duration = Duration::from_secs(5);

/// The nodes of a pick, as bits by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Field {
    /// The others take no part.
    pub serving: u64,
    /// They serve others, and are not to be picked.
    pub barred: u64,
    /// All the weight of those that serve counts: none of them warms up.
    pub whole: bool,
}

/// What is known of a node at the moment of a pick.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Load {
    /// How much of its weight counts, of [`WHOLE`]; 0: it takes no part.
    pub part: u32,
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
    weights: Vec<u32>,
    rotation: Rotation,
    /// The nodes in the rotation, where all of their weight counts: whatever their load, it stays as it is for them.
    standing: Option<u64>,
    /// Requests under way on each, as they were for the pick.
    outstanding: Vec<u32>,
}

impl Balancer {
    /// For nodes `0..weights.len()`. A node of weight 0 is never picked.
    pub fn new(policy: LoadBalancing, weights: impl IntoIterator<Item = u32>) -> Self {
        let weights: Vec<u32> = weights.into_iter().collect();
        let bound = weights.iter().map(|weight| i64::from(*weight) * i64::from(WHOLE)).sum();
        let (rotation, outstanding) = (Rotation::new(weights.len(), bound), vec![0; weights.len()]);
        Self { policy, weights, rotation, standing: None, outstanding }
    }

    /// The next node among those that serve and are not barred; `None` if none of these has a weight. `random` is drawn
    /// for each pick.
    ///
    /// `load` is asked of those alone of which it may matter. A node without a part keeps the credit it had, neither more
    /// nor less, so that it returns to its share and not to a burst.
    pub fn pick(&mut self, random: u64, field: Field, load: impl Fn(usize) -> Load) -> Option<usize> {
        self.line_up(field, &load);
        match self.policy {
            LoadBalancing::Weighted | LoadBalancing::LeastBusy => self.rotation.next(field.barred),
            LoadBalancing::Latency => self.cheaper_of_two(random, self.rotation.among() & !field.barred, load),
        }
    }

    /// Undoes a pick of which nothing has come, where `field` and `load` are what they were then.
    pub fn give_back(&mut self, picked: usize, field: Field, load: impl Fn(usize) -> Load) {
        if self.policy == LoadBalancing::Latency {
            // It was drawn.
            return;
        }
        self.line_up(field, &load);
        self.rotation.give_back(picked);
    }

    /// Those take part that serve, for `least-busy` the least busy of them alone.
    fn line_up(&mut self, field: Field, load: &impl Fn(usize) -> Load) {
        let Self { policy, weights, rotation, standing, outstanding } = self;
        let by_load = *policy == LoadBalancing::LeastBusy;
        let standing_before = std::mem::replace(standing, (field.whole && !by_load).then_some(field.serving));
        if standing.is_some() && *standing == standing_before {
            return;
        }
        let mut counts = [0; 64];
        for i in bits(field.serving) {
            let load = load(i);
            counts[i] = i64::from(weights[i]) * i64::from(load.part.min(WHOLE));
            outstanding[i] = load.outstanding;
        }
        if by_load {
            keep_least_busy(&mut counts, outstanding, field.barred);
        }
        rotation.line_up(|i| counts[i]);
    }

    fn cheaper_of_two(&self, random: u64, open: u64, load: impl Fn(usize) -> Load) -> Option<usize> {
        let first = self.draw(random & u64::from(u32::MAX), open)?;
        let Some(second) = self.draw(random >> 32, open & !(1 << first)) else { return Some(first) };
        let cost = |at: usize| {
            let load = load(at);
            // In proportion to what counts of its weight, a heavy node may have more under way.
            let share = f64::from(load.outstanding) / (self.rotation.counts(at) as f64 / f64::from(WHOLE));
            load.latency.as_secs_f64() * (share + 1.0)
        };
        Some(if cost(second) < cost(first) { second } else { first })
    }

    /// One of these nodes, by weight; `random` is below 2³².
    fn draw(&self, random: u64, open: u64) -> Option<usize> {
        let total: i64 = bits(open).map(|i| self.rotation.counts(i)).sum();
        let mut rest = ((i128::from(random) * i128::from(total)) >> 32) as i64;
        bits(open).find(|&i| {
            rest -= self.rotation.counts(i);
            rest < 0
        })
    }
}

/// Leaves those in the pick that are as busy for their weight as the least busy that may be picked.
fn keep_least_busy(counts: &mut [i64; 64], outstanding: &[u32], barred: u64) {
    let among = (0..64).filter(|&i| counts[i] > 0).fold(0, |among, i| among | 1 << i);
    let busier = |(i, counts_of_i), (j, counts_of_j)| {
        let under_way = |i: usize| i64::from(outstanding[i]);
        by_product((under_way(i), counts_of_j), (under_way(j), counts_of_i))
    };
    let Some(least) = bits(among & !barred).min_by(|&i, &j| busier((i, counts[i]), (j, counts[j]))) else { return };
    let least = (least, counts[least]);
    for i in bits(among).filter(|&i| i != least.0) {
        if busier((i, counts[i]), least) != Ordering::Equal {
            counts[i] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn weighted(weights: impl IntoIterator<Item = u32>) -> Balancer {
        Balancer::new(LoadBalancing::Weighted, weights)
    }

    const UNLOADED: Load = Load { part: WHOLE, outstanding: 0, latency: Duration::ZERO };

    fn pick(balancer: &mut Balancer, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let part = |node| if usable(node) { WHOLE } else { 0 };
        pick_loaded(balancer, 0, |node| Load { part: part(node), ..UNLOADED })
    }

    fn pick_loaded(balancer: &mut Balancer, random: u64, load: impl Fn(usize) -> Load) -> Option<usize> {
        let (mut field, nodes) = (Field { whole: true, ..Field::default() }, balancer.weights.len());
        for part in (0..nodes).map(|node| (node, load(node).part)).filter(|(_, part)| *part > 0) {
            field.serving |= 1 << part.0;
            field.whole &= part.1 == WHOLE;
        }
        balancer.pick(random, field, load)
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
        let barring = |balancer: &mut Balancer, barred| {
            balancer.pick(0, Field { serving: 0b111, barred, whole: true }, |_| UNLOADED)
        };
        let mut sequence: Vec<_> = (0..60).map(|_| barring(&mut balancer, 0b110).unwrap()).collect();
        assert_eq!(share(&sequence, 0), 60);
        sequence.extend(picks(&mut balancer, 180, |_| true));
        assert_eq!([0, 1, 2].map(|node| share(&sequence, node)), [60, 60, 120]);
        // What is owed has a bound, and so has the run that pays it.
        (0..10_000).for_each(|_| assert_eq!(barring(&mut balancer, 0b101), Some(1)));
        let sequence = picks(&mut balancer, 1000, |_| true);
        assert!(share(&sequence[..500], 1) > 0, "{sequence:?}");
        let last = share(&sequence[800..], 1);
        assert!(last.abs_diff(50) <= 1, "{last}");
        assert_eq!(barring(&mut balancer, 0b111), None);
    }

    #[test]
    fn a_pick_given_back_was_none() {
        let (mut plain, mut other) = (weighted([3, 1, 2]), weighted([3, 1, 2]));
        for _ in 0..50 {
            let field = Field { serving: 0b111, barred: 0, whole: true };
            let lost = other.pick(0, field, |_| UNLOADED).unwrap();
            other.give_back(lost, field, |_| UNLOADED);
            assert_eq!(plain.pick(0, field, |_| UNLOADED), other.pick(0, field, |_| UNLOADED));
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
        let load = |node| Load { part: if node == 1 { WHOLE / 4 } else { WHOLE }, ..UNLOADED };
        let sequence: Vec<_> = (0..100).map(|_| pick_loaded(&mut balancer, 0, load).unwrap()).collect();
        assert_eq!(share(&sequence, 1), 20);
    }

    #[test]
    fn the_least_busy_for_its_weight_is_next_and_equals_take_turns() {
        let mut balancer = Balancer::new(LoadBalancing::LeastBusy, [1, 1, 2]);
        let mut next = |outstanding: [u32; 3]| {
            pick_loaded(&mut balancer, 0, |node| Load { outstanding: outstanding[node], ..UNLOADED }).unwrap()
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
                let load =
                    |node: usize| Load { part: WHOLE, outstanding: outstanding(node), latency: peaks[node].at(at(ms)) };
                let node = pick_loaded(&mut balancer, draw(), load).unwrap();
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
        let load = |_| Load { latency: Duration::from_millis(3), ..UNLOADED };
        let sequence: Vec<_> = (0..4000).map(|_| pick_loaded(&mut balancer, draw(), load).unwrap()).collect();
        assert!(share(&sequence, 2).abs_diff(2000) < 150, "{}", share(&sequence, 2));
        let only = |node| Load { part: if node == 1 { WHOLE } else { 0 }, ..Load::default() };
        assert_eq!(pick_loaded(&mut balancer, draw(), only), Some(1));
        assert_eq!(pick_loaded(&mut balancer, draw(), |_| Load::default()), None);
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
