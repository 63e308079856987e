//! A connection on loan to one client, which finds its way back on every path.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::connection::{BackendError, Connection};
use crate::backend::reset;
use crate::cluster::node::Node;
use crate::config::Reset;
use crate::pool::checkout::{Pool, Pooled};
use crate::pool::ledger::Verdict;

/// A connection that was in use so shortly ago needs no question to the kernel whether it lives.
const BUSY: Duration = Duration::from_millis(5);

/// Dropped untouched, it goes back as it is; dropped in use, the connection is closed.
#[derive(Debug)]
pub struct Lease {
    held: Option<Pooled>,
    pub pool: Arc<Pool>,
    used: bool,
    /// A request is under way on its node since then, for the balancer.
    turn: Option<Instant>,
}

/// What is to be done before the next client may have the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Return {
    /// The session may have left something behind.
    pub reset: bool,
    /// … among it SQL-level prepared statements.
    pub prepared: bool,
    /// A transaction is open.
    pub open: bool,
}

impl Lease {
    pub(super) fn new(held: Pooled, pool: Arc<Pool>) -> Lease {
        Lease { held: Some(held), pool, used: false, turn: None }
    }

    /// Moves the socket to `worker`'s reactor where it is not there yet; false, and closed when dropped, where the
    /// connection is dead.
    pub(super) fn settle_on(&mut self, worker: usize, now: Instant) -> bool {
        let Some(held) = self.held.as_mut() else { return false };
        // What has come meanwhile, the reactor that has had it knows.
        let busy = now.saturating_duration_since(held.connection.at_rest) < BUSY;
        let alive = !busy || held.connection.is_still_usable();
        let here = held.home == worker || held.connection.stream.rehome().is_ok();
        held.home = worker;
        let usable = alive && here && (busy || held.connection.is_usable());
        let usable = usable && !is_left(&mut held.connection, &self.pool.node);
        self.used = !usable;
        usable
    }

    /// From here on the connection's state is the client's doing: dropping the lease closes it.
    pub fn begin(&mut self) {
        self.used = true;
    }

    /// A request begins on it, for the balancer.
    pub fn begin_turn(&mut self, now: Instant) {
        self.pool.node.begin_turn();
        self.turn = Some(now);
    }

    /// It has ended; where it ended well, by `now`, its time counts.
    pub fn end_turn(&mut self, now: Option<Instant>) {
        if let Some(began) = self.turn.take() {
            self.pool.node.end_turn(now.map(|now| (began, now)));
        }
    }

    /// Gives the connection back, idle at ReadyForQuery; a reset, a ROLLBACK or an unsettled cancel
    /// happens behind the client's back first.
    pub fn give_back(mut self, now: Instant, how: Return) {
        self.end_turn(None);
        let Some(mut held) = self.held.take() else { return };
        held.identity.release();
        let undisturbed = held.identity.is_settled() && !held.identity.is_in_doubt();
        if !how.reset && !how.open && !held.suspect && undisturbed {
            held.at_rest = now;
            return self.pool.checkin(now, held, Verdict::Clean);
        }
        self.used = true;
        let closes = (how.reset || held.suspect) && self.pool.config.load().reset == Reset::Close;
        self.held = Some(held);
        if !closes {
            tokio::spawn(self.clean(how));
        }
    }

    /// Dropping the lease on the way (an error, a timeout) closes the connection.
    async fn clean(mut self, how: Return) {
        let timeout = self.pool.config.load().create_timeout;
        let cleaned = tokio::time::timeout(timeout, async {
            self.identity.settled().await;
            if self.identity.is_in_doubt() {
                return Ok(false);
            }
            if how.open {
                reset::roll_back(&mut self).await?;
            }
            if how.reset || self.suspect {
                reset::reset(&mut self, how.prepared).await?;
            }
            Ok::<_, BackendError>(true)
        });
        if matches!(cleaned.await, Ok(Ok(true))) {
            self.used = false;
        }
    }
}

/// Whether the node's name leads to where the connection does no more.
pub(super) fn is_left(connection: &mut Connection, node: &Node) -> bool {
    let moves = node.moves();
    std::mem::replace(&mut connection.moves, moves) != moves && node.has_left(connection.stream.peer())
}

impl Deref for Lease {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        // Taken only by `give_back`, which consumes the lease.
        self.held.as_ref().expect("a lease holds its connection until it is given back")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Connection {
        self.held.as_mut().expect("a lease holds its connection until it is given back")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.end_turn(None);
        if let Some(held) = self.held.take() {
            held.identity.release();
            let verdict = if self.used { Verdict::Discard } else { Verdict::Clean };
            self.pool.checkin(Instant::now(), held, verdict);
        }
    }
}
