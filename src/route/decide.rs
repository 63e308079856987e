//! Facts and the session's situation to a decision: the primary with its reason, or any replica that is fresh enough.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::PrimaryReads;
use crate::route::block;
use crate::sql::{Facts, Reason, RouteHint};
use crate::stats::counters::add;

/// Why a batch went where it went: the closed list of logs, metrics and EXPLAIN ROUTE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// A plain read, on a replica.
    Read,
    /// The statement itself says so.
    Statement(Reason),
    /// An open transaction keeps its connection.
    InTransaction,
    /// State of the session keeps its connection.
    Pinned,
    /// A hint or `pgweir.route` asked for it.
    Hint,
    /// The client asked for session pooling.
    SessionMode,
    /// The session's transactions are serializable.
    Serializable,
    /// What follows is not known yet: a pipeline flushed before its Sync, or larger than is held.
    OpenPipeline,
    /// The session wrote, and no replica is known to have replayed it yet.
    Freshness,
    /// No replica can serve.
    NoReplica,
    /// `routing.primary_reads = "always"`, and it was the primary's turn.
    PrimaryTurn,
    /// A replica refused or died before its first byte.
    Retry,
}

impl Why {
    pub fn as_str(self) -> &'static str {
        match self {
            Why::Read => "read",
            Why::Statement(reason) => reason.as_str(),
            Why::InTransaction => "in_transaction",
            Why::Pinned => "pinned",
            Why::Hint => "hint",
            Why::SessionMode => "session_mode",
            Why::Serializable => "serializable",
            Why::OpenPipeline => "open_pipeline",
            Why::Freshness => "freshness",
            Why::NoReplica => "no_replica",
            Why::PrimaryTurn => "primary_turn",
            Why::Retry => "retry",
        }
    }
}

/// Reasons besides the statement's own.
const OTHERS: [Why; 11] = [
    Why::Read,
    Why::InTransaction,
    Why::Pinned,
    Why::Hint,
    Why::SessionMode,
    Why::Serializable,
    Why::OpenPipeline,
    Why::Freshness,
    Why::NoReplica,
    Why::PrimaryTurn,
    Why::Retry,
];

const REASONS: usize = Reason::ALL.len() + OTHERS.len();

/// Where the first of [`OTHERS`] is counted.
const READ: usize = Reason::ALL.len();

/// How often each reason has decided, and what each node has run, by the workers that counted it.
#[derive(Debug)]
pub struct Tally(Box<[Shard]>);

/// Of one worker, which alone counts in it. Aligned so that workers do not share cache lines.
#[derive(Debug)]
#[repr(align(128))]
struct Shard {
    reasons: [AtomicU64; REASONS],
    /// Reads and writes.
    nodes: Box<[[AtomicU64; 2]]>,
}

impl Tally {
    pub fn new(workers: usize, nodes: usize) -> Tally {
        let shard = |_| Shard {
            reasons: [const { AtomicU64::new(0) }; REASONS],
            nodes: (0..nodes).map(|_| Default::default()).collect(),
        };
        Tally((0..workers.max(1)).map(shard).collect())
    }

    /// A batch goes to its node for this reason.
    pub fn decided(&self, worker: usize, why: Why) {
        let at = match why {
            Why::Read => READ,
            Why::Statement(reason) => reason as usize,
            other => OTHERS.iter().position(|known| *known == other).map_or(0, |at| READ + at),
        };
        add(&self.at(worker).reasons[at], 1);
    }

    /// A statement has ended on a node.
    pub fn ran(&self, worker: usize, node: u16, write: bool) {
        if let Some(node) = self.at(worker).nodes.get(usize::from(node)) {
            add(&node[usize::from(write)], 1);
        }
    }

    fn at(&self, worker: usize) -> &Shard {
        self.0.get(worker).unwrap_or(&self.0[0])
    }

    /// Every reason that has decided anything.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let reasons = Reason::ALL.iter().map(|reason| reason.as_str()).chain(OTHERS.iter().map(|why| why.as_str()));
        let counts = (0..REASONS).map(|at| self.0.iter().map(|shard| shard.reasons[at].load(Ordering::Relaxed)).sum());
        reasons.zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    /// The reads and writes of a node.
    pub fn of_node(&self, node: u16) -> (u64, u64) {
        let nodes = || self.0.iter().filter_map(|shard| shard.nodes.get(usize::from(node)));
        let sum = |write: usize| nodes().map(|counts| counts[write].load(Ordering::Relaxed)).sum();
        (sum(0), sum(1))
    }
}

/// Where a batch may run as far as its texts and its session tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Primary(Why),
    /// Any replica that is fresh enough for the session; the primary by `primary_reads`.
    Replica,
}

/// What all statements of a batch together ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Demand {
    /// The first reason for the primary.
    pub primary: Option<Reason>,
    pub hint: Option<RouteHint>,
    /// The end of the implicit transaction has not been seen.
    pub open: bool,
    /// A transaction block is opened that a replica may run: [`block::opens`].
    pub read_only: bool,
    /// A transaction block is ended.
    pub ends: bool,
    /// A READ ONLY block is open of which nothing has been run yet: all that the batch is, the block will be.
    pub in_block: bool,
}

impl Demand {
    /// One statement more, with what the catalog says of it.
    pub fn take(&mut self, facts: &Facts, primary: Option<Reason>, defaults_to_read_only: impl Fn() -> bool) {
        let hint = facts.hints.route;
        if block::opens(facts, defaults_to_read_only) {
            self.read_only = true;
            self.add(None, hint);
        } else if facts.is_block {
            self.read_only = true;
            self.add(primary, hint);
        } else if block::ends(facts) {
            self.ends = true;
            self.add(None, hint);
        } else {
            self.add(primary, hint);
        }
    }

    /// Nothing of it is lost, and nothing done twice, if it is said again as long as nothing of its answer is known.
    pub fn is_read(&self) -> bool {
        self.primary.is_none() && !self.open && !self.ends && !self.is_of_block()
    }

    /// It is, or begins, a READ ONLY block: what follows in that is not known.
    pub fn is_of_block(&self) -> bool {
        self.read_only || self.in_block
    }

    pub fn add(&mut self, primary: Option<Reason>, hint: Option<RouteHint>) {
        self.primary = self.primary.or(primary);
        // Of two hints in one batch the safer one counts.
        match (self.hint, hint) {
            (Some(RouteHint::Primary), _) | (_, None) => {}
            (_, hint) => self.hint = hint,
        }
    }
}

/// Decides a batch outside any transaction, or the first in a READ ONLY block. `session_hint` is `pgweir.route`; a hint in
/// the text beats it. A hint never makes a read of what is none.
pub fn decide(demand: &Demand, session_hint: Option<RouteHint>) -> Target {
    if let Some(reason) = demand.primary {
        return Target::Primary(Why::Statement(reason));
    }
    if demand.open {
        return Target::Primary(Why::OpenPipeline);
    }
    if demand.ends && !demand.is_of_block() {
        return Target::Primary(Why::Statement(Reason::Transaction));
    }
    match demand.hint.or(session_hint) {
        Some(RouteHint::Primary) => Target::Primary(Why::Hint),
        Some(RouteHint::Replica) | None => Target::Replica,
    }
}

/// Whether the primary stands among the nodes that a plain read may use.
pub fn primary_may_read(reads: PrimaryReads, replica_usable: bool) -> bool {
    match reads {
        PrimaryReads::Always => true,
        PrimaryReads::Fallback => !replica_usable,
        PrimaryReads::Never => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_unsafe_statement_takes_all_to_the_primary() {
        let mut demand = Demand::default();
        demand.add(None, None);
        demand.add(Some(Reason::Write), None);
        demand.add(None, Some(RouteHint::Replica));
        assert_eq!(decide(&demand, None), Target::Primary(Why::Statement(Reason::Write)));
    }

    #[test]
    fn hints_send_reads_and_reads_alone() {
        let decide_one = |primary, hint, session| {
            let mut demand = Demand::default();
            demand.add(primary, hint);
            decide(&demand, session)
        };
        assert_eq!(decide_one(None, None, None), Target::Replica);
        assert_eq!(decide_one(None, Some(RouteHint::Primary), None), Target::Primary(Why::Hint));
        assert_eq!(decide_one(None, None, Some(RouteHint::Primary)), Target::Primary(Why::Hint));
        assert_eq!(decide_one(None, Some(RouteHint::Replica), Some(RouteHint::Primary)), Target::Replica);
        let write = Target::Primary(Why::Statement(Reason::Write));
        assert_eq!(decide_one(Some(Reason::Write), Some(RouteHint::Replica), None), write);
    }

    #[test]
    fn each_reason_is_counted_for_itself() {
        let tally = Tally::new(2, 3);
        let all = Reason::ALL.into_iter().map(Why::Statement).chain(OTHERS);
        for (at, why) in all.clone().enumerate() {
            tally.decided(at % 2, why);
        }
        let counts = tally.counts();
        assert_eq!(counts.len(), all.clone().count());
        assert!(counts.iter().zip(all).all(|((name, count), why)| *name == why.as_str() && *count == 1));
        for (worker, write) in [(0, true), (1, true), (1, false)] {
            tally.ran(worker, 2, write);
        }
        assert_eq!((tally.of_node(0), tally.of_node(2)), ((0, 0), (1, 2)));
    }

    #[test]
    fn an_open_pipeline_is_not_split() {
        let demand = Demand { open: true, ..Demand::default() };
        assert_eq!(decide(&demand, None), Target::Primary(Why::OpenPipeline));
    }

    #[test]
    fn the_primary_reads_as_configured() {
        assert!(primary_may_read(PrimaryReads::Always, true));
        assert!(!primary_may_read(PrimaryReads::Fallback, true) && primary_may_read(PrimaryReads::Fallback, false));
        assert!(!primary_may_read(PrimaryReads::Never, false));
    }
}
