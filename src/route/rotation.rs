//! Turns in proportion to weights, without randomness: the credits of `weighted` ([`crate::route::balance`]).
//!
//! With each pick the credit of every node changes, yet as long as the same nodes take part each changes by the same: so it
//! is kept as of one pick, and worked out from the number of picks since. What a pick asks of the nodes is foreseen: from
//! which pick on one is owed enough, and when its credit runs over. Both hold until that node is picked, so that a pick
//! costs a comparison for each node, and arithmetic for one.

use std::cmp::Ordering;

/// How many picks a node may be behind or ahead because those that ask may not read everywhere. Made up for at once, so it
/// is also the longest run that a node gets when it has caught up.
const OWED: i64 = 64;

/// Picks after which credits are worked out for good, so that no number grows with time.
const SETTLED: i64 = 1 << 12;

/// The credits of up to 64 nodes.
#[derive(Debug, Clone)]
pub struct Rotation {
    nodes: Vec<Node>,
    /// No credit goes beyond it in either direction, but for what is [`OWED`].
    bound: i64,
    /// The nodes that take part, as bits by index.
    among: u64,
    /// What counts of their weights, in sum.
    total: i64,
    /// With `n` nodes `2n - 2`: who is owed less than `total / scale` is not picked, and credits run over at
    /// `total - total / scale`.
    scale: i64,
    /// Picks since the credits were worked out.
    picks: i64,
    /// Before so many no node is owed all that it can be.
    horizon: i64,
}

#[derive(Debug, Clone, Default)]
struct Node {
    /// What the node is owed, in picks times the sum of the weights, but for what it has come to since.
    credit: i64,
    /// What counts of its weight, and is added by each pick; 0: it takes no part.
    counts: i64,
    /// The number of picks after which it is owed enough.
    due: i64,
    /// The number of picks after which its credit runs over, times `scale`: what is whole of it, and the rest in parts
    /// of `counts`.
    over: (i64, i64),
}

impl Rotation {
    /// Of nodes `0..nodes` of which no more than `bound` counts in sum.
    pub fn new(nodes: usize, bound: i64) -> Rotation {
        let nodes = vec![Node::default(); nodes.min(64)];
        Rotation { nodes, bound, among: 0, total: 0, scale: 0, picks: 0, horizon: 0 }
    }

    /// From now on so much counts of each node; one of which nothing counts keeps the credit it has.
    pub fn line_up(&mut self, counts: impl Fn(usize) -> i64) {
        self.settle();
        (self.among, self.total) = (0, 0);
        for (i, node) in self.nodes.iter_mut().enumerate() {
            node.counts = counts(i);
            self.among |= u64::from(node.counts > 0) << i;
            self.total += node.counts;
        }
        self.scale = 2 * i64::from(self.among.count_ones()) - 2;
        self.foresee_all();
    }

    pub fn counts(&self, node: usize) -> i64 {
        self.nodes[node].counts
    }

    /// The nodes that take part.
    pub fn among(&self) -> u64 {
        self.among
    }

    /// The next node in turn. `barred` are not picked, and owed it.
    pub fn next(&mut self, barred: u64) -> Option<usize> {
        let (open, barred) = (self.among & !barred, self.among & barred);
        if self.picks >= self.horizon && self.picks > 0 {
            self.settle();
            self.foresee_all();
        }
        let urgent = self.most_urgent(open);
        let picked = urgent.or_else(|| self.most_owed(open))?;
        if !self.is_plain(picked, urgent.is_some(), barred != 0) {
            self.bound_credits(picked, barred);
            return Some(picked);
        }
        self.picks += 1;
        self.nodes[picked].credit -= self.total;
        self.foresee(picked);
        Some(picked)
    }

    /// Undoes a pick.
    pub fn give_back(&mut self, picked: usize) {
        self.settle();
        let most = self.bound * (OWED + 1);
        self.nodes[picked].credit += self.total;
        for i in bits(self.among | 1 << picked) {
            let node = &mut self.nodes[i];
            node.credit = (node.credit - node.counts).clamp(-most, most);
        }
        self.foresee_all();
    }

    /// Of the nodes owed at least `total / scale`, the one whose credit would be the first to run over.
    fn most_urgent(&self, open: u64) -> Option<usize> {
        let due = self.nodes.iter().enumerate().filter(|(i, node)| node.due <= self.picks && open & 1 << i != 0);
        due.reduce(|best, other| if other.1.is_over_before(best.1) { other } else { best }).map(|(i, _)| i)
    }

    /// Needed for a single node, and after the nodes changed, when those left may all be in debt.
    fn most_owed(&self, open: u64) -> Option<usize> {
        bits(open).min_by_key(|&i| -(self.credit(i) + self.nodes[i].counts))
    }

    /// No bound on credits has a say in the pick: the one picked pays, and each is owed what counts of its weight.
    fn is_plain(&self, picked: usize, urgent: bool, barred: bool) -> bool {
        let credit = self.credit(picked);
        // Before the horizon none is beyond what can be owed, nor will be by this pick.
        self.picks < self.horizon
            && match barred || credit > self.bound {
                true => credit > -self.bound * OWED,
                // In time: no credit has run over, nor one that would do so later.
                false if urgent => self.nodes[picked].over.0 >= self.picks * self.scale,
                false => credit + self.nodes[picked].counts - self.total >= -self.bound,
            }
    }

    /// A pick, with credits kept within bounds.
    fn bound_credits(&mut self, picked: usize, barred: u64) {
        let may_owe = self.may_owe(picked, barred);
        let moving = if may_owe { self.among } else { self.among & !barred };
        if moving == 1 << picked {
            // It pays what it is owed.
            return;
        }
        self.settle();
        let total: i64 = bits(moving).map(|i| self.nodes[i].counts).sum();
        // Without effect while the usable nodes stay the same. When they change from pick to pick, it keeps a node from
        // saving up more than about one pick, unless it is owed more.
        let owing = barred != 0 || self.nodes.iter().any(|node| node.credit.abs() > self.bound);
        let most = if owing { self.bound * (OWED + 1) } else { self.bound };
        for i in bits(moving) {
            let node = &mut self.nodes[i];
            let change = node.counts - if i == picked { total } else { 0 };
            node.credit = (node.credit + change).clamp(-most, most);
        }
        self.foresee_all();
    }

    /// Whether those barred may be owed one more pick, which `picked` gets ahead of them.
    fn may_owe(&self, picked: usize, barred: u64) -> bool {
        let most = self.bound * OWED;
        barred == 0 || self.credit(picked) > -most && !bits(barred).any(|i| self.credit(i) > most)
    }

    /// As of now.
    fn credit(&self, i: usize) -> i64 {
        self.nodes[i].credit + self.picks * self.nodes[i].counts
    }

    /// Works the credits out; what was foreseen holds no more.
    fn settle(&mut self) {
        for i in bits(self.among) {
            self.nodes[i].credit = self.credit(i);
        }
        self.picks = 0;
    }

    /// After credits were settled.
    fn foresee_all(&mut self) {
        let (mut credit, mut counts) = (0, 1);
        for i in bits(self.among) {
            (credit, counts) = (self.nodes[i].credit.max(credit), self.nodes[i].counts.max(counts));
            self.foresee(i);
        }
        self.horizon = SETTLED.min((self.bound * OWED - credit) / counts);
    }

    fn foresee(&mut self, i: usize) {
        let (total, scale, node) = (self.total, self.scale, &mut self.nodes[i]);
        if scale == 0 {
            // It is picked for want of others.
            node.due = i64::MAX;
            return;
        }
        // Of as many nodes as there may be, no number here needs more than 60 bits.
        let owed = node.credit + node.counts;
        let enough = (total + scale - 1) / scale;
        node.due = -(owed - enough).div_euclid(node.counts);
        let left = total * (scale - 1) - owed * scale;
        node.over = (left.div_euclid(node.counts), left.rem_euclid(node.counts));
    }
}

impl Node {
    fn is_over_before(&self, other: &Node) -> bool {
        match self.over.0.cmp(&other.over.0) {
            Ordering::Equal => by_product((self.over.1, other.counts), (other.over.1, self.counts)).is_lt(),
            unequal => unequal.is_lt(),
        }
    }
}

/// Compares two products, which seldom need more than 64 bits.
pub fn by_product((a, b): (i64, i64), (c, d): (i64, i64)) -> Ordering {
    match (a.checked_mul(b), c.checked_mul(d)) {
        (Some(left), Some(right)) => left.cmp(&right),
        _ => (i128::from(a) * i128::from(b)).cmp(&(i128::from(c) * i128::from(d))),
    }
}

/// The places of the bits that are set.
pub fn bits(mut set: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = set.trailing_zeros();
        set &= set.wrapping_sub(1);
        (place < u64::BITS).then_some(place as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rule, with each credit worked out at each pick.
    struct Rule {
        credits: Vec<i64>,
        bound: i64,
    }

    impl Rule {
        fn next(&mut self, counts: &[i64], barred: u64) -> Option<usize> {
            let among: Vec<usize> = (0..counts.len()).filter(|&i| counts[i] > 0).collect();
            let is_barred = |i: usize| barred & 1 << i != 0;
            let any_barred = among.iter().any(|&i| is_barred(i));
            let total: i64 = among.iter().map(|&i| counts[i]).sum();
            let (scale, credits) = (2 * among.len() as i64 - 2, self.credits.clone());
            let owed = |i: usize| credits[i] + counts[i];
            let slack = |i: usize| total * (scale - 1) - owed(i) * scale;
            let open = || among.iter().copied().filter(|&i| !is_barred(i));
            let by_slack = |a: &usize, b: &usize| (slack(*a) * counts[*b]).cmp(&(slack(*b) * counts[*a]));
            let urgent = open().filter(|&i| owed(i) * scale >= total).min_by(by_slack);
            let picked = urgent.or_else(|| open().min_by_key(|&i| -owed(i)))?;
            let most = self.bound * OWED;
            let may_owe = credits[picked] > -most && !among.iter().any(|&i| is_barred(i) && credits[i] > most);
            let moving: Vec<usize> = among.iter().copied().filter(|&i| may_owe || !is_barred(i)).collect();
            let total: i64 = moving.iter().map(|&i| counts[i]).sum();
            let owing = any_barred || credits.iter().any(|credit| credit.abs() > self.bound);
            let most = if owing { self.bound * (OWED + 1) } else { self.bound };
            for i in moving {
                let change = counts[i] - if i == picked { total } else { 0 };
                self.credits[i] = (credits[i] + change).clamp(-most, most);
            }
            Some(picked)
        }
    }

    /// So many picks with these nodes lined up, of which some are given back.
    #[derive(Debug, Clone)]
    struct Phase {
        among: u8,
        parts: bool,
        barred: Vec<u8>,
        times: usize,
        given_back: usize,
    }

    fn phase() -> impl Strategy<Value = Phase> {
        let barred = prop::collection::vec(prop_oneof![2 => Just(0u8), 1 => any::<u8>()], 1..5);
        let times = prop_oneof![4 => 1usize..20, 1 => 1usize..600];
        let all = prop_oneof![Just(u8::MAX), any::<u8>()];
        let phase = (all, any::<bool>(), barred, times, 1usize..60);
        phase.prop_map(|(among, parts, barred, times, given_back)| Phase { among, parts, barred, times, given_back })
    }

    proptest! {
        #[test]
        fn what_is_foreseen_picks_as_the_rule_does(
            weights in prop::collection::vec(prop_oneof![1i64..5, 1i64..100, 1i64..2_000_000], 1..8),
            phases in prop::collection::vec(phase(), 1..12),
        ) {
            let bound = 16 * weights.iter().sum::<i64>();
            let mut rotation = Rotation::new(weights.len(), bound);
            let mut rule = Rule { credits: vec![0; weights.len()], bound };
            for phase in &phases {
                let counts = |i: usize| match phase.among & 1 << i {
                    0 => 0,
                    _ if phase.parts => weights[i] * (1 + i as i64 * 2),
                    _ => weights[i] * 16,
                };
                let all: Vec<i64> = (0..weights.len()).map(counts).collect();
                rotation.line_up(counts);
                for time in 0..phase.times {
                    let barred = u64::from(phase.barred[time % phase.barred.len()]);
                    let picked = rotation.next(barred);
                    prop_assert_eq!(picked, rule.next(&all, barred), "{} of {:?}", time, phase);
                    if let Some(picked) = picked.filter(|_| time % 60 == phase.given_back) {
                        rotation.give_back(picked);
                        let most = bound * (OWED + 1);
                        rule.credits[picked] += all.iter().sum::<i64>();
                        let moved = rule.credits.iter().zip(&all).map(|(credit, counts)| credit - counts);
                        rule.credits = moved.map(|credit| credit.clamp(-most, most)).collect();
                    }
                    let credits: Vec<_> = (0..weights.len()).map(|i| rotation.credit(i)).collect();
                    prop_assert_eq!(&credits, &rule.credits, "{} of {:?}", time, phase);
                }
            }
        }
    }

    #[test]
    fn most_picks_are_foreseen() {
        let (mut rotation, mut settled) = (Rotation::new(3, 64), 0);
        rotation.line_up(|i| [16, 16, 32][i]);
        // A third of those that ask may read on one node alone, and the credits go up and down.
        for time in 0..10_000 {
            let barred = if time % 3 == 0 { !(1 << (time / 600 % 3)) } else { 0 };
            assert!(rotation.next(barred).is_some());
            settled += usize::from(rotation.picks == 0);
        }
        assert!(settled < 1_000, "{settled}");
    }
}
