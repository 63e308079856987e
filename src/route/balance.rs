//! Weighted rotation over the nodes that may answer.
//!
//! Each node has a credit, as in nginx's smooth weighted round robin: every pick adds a node's weight to its
//! credit and takes the sum of the weights from the node picked. Picking simply the highest credit, as nginx does, can
//! leave a node more than one pick behind its due once there are seven nodes or so. Here the node picked is the one whose
//! credit would be the first to run over, among those that are owed enough: Tijdeman's solution of the chairman
//! assignment problem (Discrete Mathematics 32, 1980), which keeps every node less than one pick from its exact
//! share after any number of picks.

use std::cmp::Ordering;

/// Deals reads to nodes in proportion to their weights.
///
/// With the same nodes usable throughout, each node's count of picks is, at every moment, less than one away from
/// its exact share, and exact after each full round (a number of picks equal to the sum of the weights).
#[derive(Debug, Clone)]
pub struct Balancer {
    nodes: Vec<Node>,
    /// The sum of all weights: no credit goes beyond it in either direction.
    bound: i64,
}

#[derive(Debug, Clone)]
struct Node {
    weight: i64,
    /// What the node is owed, in picks times the sum of the weights.
    credit: i64,
    /// Takes part in the pick under way.
    usable: bool,
}

impl Balancer {
    /// A rotation over nodes `0..weights.len()`. A node of weight 0 is never picked.
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let nodes: Vec<Node> =
            weights.into_iter().map(|weight| Node { weight: i64::from(weight), credit: 0, usable: false }).collect();
        let bound = nodes.iter().map(|node| node.weight).sum();
        Self { nodes, bound }
    }

    /// The next node among those that `usable` admits; `None` if it admits none with a weight.
    ///
    /// `usable` is asked once for each node with a weight. A node left out keeps the credit it had, neither more
    /// nor less, so that it returns to its share and not to a burst.
    pub fn pick(&mut self, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let mut count = 0;
        let mut total = 0;
        for (index, node) in self.nodes.iter_mut().enumerate() {
            node.usable = node.weight > 0 && usable(index);
            if node.usable {
                count += 1;
                total += node.weight;
                node.credit += node.weight;
            }
        }
        let picked = self.most_urgent(count, total).or_else(|| self.most_owed())?;
        self.nodes[picked].credit -= total;
        for node in self.nodes.iter_mut().filter(|node| node.usable) {
            // Without effect while the usable nodes stay the same. When they change from pick to pick, it keeps a
            // node from saving up more than about one pick.
            node.credit = node.credit.clamp(-self.bound, self.bound);
        }
        Some(picked)
    }

    /// Of the nodes owed at least `total / (2n - 2)`, the one that would first be owed `total * (2n - 3) / (2n - 2)`.
    fn most_urgent(&self, count: i128, total: i64) -> Option<usize> {
        let total = i128::from(total);
        let scale = 2 * count - 2;
        let slack = |node: &Node| total * (scale - 1) - i128::from(node.credit) * scale;
        let sooner = |a: &Node, b: &Node| -> Ordering {
            (slack(a) * i128::from(b.weight)).cmp(&(slack(b) * i128::from(a.weight)))
        };
        self.among_usable(|node| i128::from(node.credit) * scale >= total)
            .min_by(|a, b| sooner(a.1, b.1))
            .map(|(index, _)| index)
    }

    /// Needed for a single usable node, and after the usable nodes changed, when those left may all be in debt.
    fn most_owed(&self) -> Option<usize> {
        self.among_usable(|_| true).min_by_key(|(_, node)| -node.credit).map(|(index, _)| index)
    }

    fn among_usable(&self, admit: impl Fn(&Node) -> bool) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter(move |(_, node)| node.usable && admit(node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn picks(balancer: &mut Balancer, count: usize, usable: impl Fn(usize) -> bool) -> Vec<usize> {
        (0..count).map(|_| balancer.pick(&usable).expect("a usable node")).collect()
    }

    fn share(picks: &[usize], node: usize) -> usize {
        picks.iter().filter(|&&picked| picked == node).count()
    }

    #[test]
    fn every_window_of_a_round_holds_the_exact_shares() {
        let sequence = picks(&mut Balancer::new([1, 1, 2]), 64, |_| true);
        for rounds in 1..=4 {
            for window in sequence.windows(4 * rounds) {
                let shares = [0, 1, 2].map(|node| share(window, node));
                assert_eq!(shares, [rounds, rounds, 2 * rounds], "{window:?}");
            }
        }
    }

    #[test]
    fn a_heavy_node_is_spread_out_and_not_served_in_a_row() {
        let sequence = picks(&mut Balancer::new([5, 1, 1]), 14, |_| true);
        assert_eq!(sequence, [0, 0, 1, 0, 0, 2, 0, 0, 0, 1, 0, 0, 2, 0]);
    }

    #[test]
    fn with_one_down_the_rest_keep_their_proportion() {
        let mut balancer = Balancer::new([1, 1, 2]);
        picks(&mut balancer, 5, |_| true);
        let sequence = picks(&mut balancer, 300, |node| node != 0);
        assert_eq!(share(&sequence, 0), 0);
        assert!(share(&sequence, 1).abs_diff(100) <= 1);
        assert!(share(&sequence, 2).abs_diff(200) <= 1);
    }

    #[test]
    fn a_node_that_comes_back_gets_no_burst() {
        for before in 0..4 {
            let mut balancer = Balancer::new([1, 1, 2]);
            picks(&mut balancer, before, |_| true);
            picks(&mut balancer, 1000, |node| node != 2);
            let sequence = picks(&mut balancer, 40, |_| true);
            for window in sequence.windows(8) {
                assert!((3..=5).contains(&share(window, 2)), "{sequence:?}");
            }
        }
    }

    #[test]
    fn nothing_usable_is_nothing_picked() {
        assert_eq!(Balancer::new([]).pick(|_| true), None);
        assert_eq!(Balancer::new([0, 0]).pick(|_| true), None);
        assert_eq!(Balancer::new([1, 2]).pick(|_| false), None);
        assert_eq!(Balancer::new([0, 3]).pick(|_| true), Some(1));
    }

    #[test]
    fn the_largest_weights_do_not_overflow() {
        let mut balancer = Balancer::new([u32::MAX; 16]);
        let sequence = picks(&mut balancer, 1600, |_| true);
        assert!((0..16).all(|node| share(&sequence, node) == 100));
    }

    proptest! {
        #[test]
        fn shares_are_within_one_pick_of_exact_after_any_number_of_picks(
            weights in prop::collection::vec(prop_oneof![0u32..5, 0u32..100], 1..16),
            down in prop::collection::vec(any::<bool>(), 16),
            picks in 1usize..500,
        ) {
            let mut balancer = Balancer::new(weights.iter().copied());
            let total: u64 = (0..weights.len()).filter(|&i| !down[i]).map(|i| u64::from(weights[i])).sum();
            let mut counts = vec![0u64; weights.len()];
            for made in 1..=picks as u64 {
                let Some(node) = balancer.pick(|i| !down[i]) else {
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
            let mut balancer = Balancer::new(weights.iter().copied());
            for mask in masks {
                if let Some(node) = balancer.pick(|i| mask & (1 << i) != 0) {
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
