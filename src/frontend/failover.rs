//! What happens to clients when a node goes or comes: those that wait for it, or for its answer, look again.

use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::time::Instant;

use tokio::sync::watch;

use crate::cluster::node::{Node, Role};
use crate::cluster::{Cluster, Tried};
use crate::config::PrimaryReads;
use crate::error::{Fault, sqlstate};
use crate::frontend::batch::Batch;
use crate::frontend::client::{Activity, Clients, Stop};
use crate::frontend::database::Database;
use crate::frontend::retry::Again;
use crate::frontend::serve::{End, stop_fault};
use crate::frontend::session::{Kept, Session};
use crate::pool::registry::CONTROL;
use crate::route::decide::Target;

/// Follows the nodes of one database until it is gone.
pub async fn follow(database: Weak<Database>, mut changes: watch::Receiver<u64>, clients: Arc<Clients>) {
    let mut useless = Tried::default();
    let Some(mut history) = database.upgrade().map(|database| history_of(&database)) else { return };
    while changes.changed().await.is_ok() {
        let Some(database) = database.upgrade() else { return };
        drop_useless(&database, &mut useless);
        note_history(&database, &mut history);
        clients.nudge(&database.name);
        let back: Vec<_> = database.cluster.nodes.iter().filter(|node| node.take_return()).map(|n| n.index).collect();
        for pool in database.pools.all().iter().filter(|pool| back.contains(&pool.node.index)) {
            pool.node_returned(CONTROL);
        }
    }
}

/// The primary, and its timeline.
type History = Option<(u16, u32)>;

fn history_of(database: &Database) -> History {
    database.cluster.primary().map(|primary| (primary.index, primary.timeline()))
}

/// What was read from a primary before another was promoted may never have been, for that one.
fn note_history(database: &Database, known: &mut History) {
    let now = history_of(database);
    // Its timeline is known a moment after itself.
    let is_other = |(before, now): ((u16, u32), (u16, u32))| before.0 != now.0 || before.1 != 0 && before.1 != now.1;
    if known.zip(now).is_some_and(is_other)
        && let Some(cached) = &database.cached
    {
        cached.note_promotion();
    }
    *known = now.or(*known);
}

/// Connections to a node that has gone, or that another has replaced as the primary, serve nobody: those that are idle
/// are closed at once, and the others when they come back. A primary that is merely silent keeps them: nobody else writes.
fn drop_useless(database: &Database, useless: &mut Tried) {
    let cluster = &database.cluster;
    let primary = cluster.primary().map(|primary| primary.index);
    let mut now = Tried::default();
    for node in &cluster.nodes {
        let is_primary = primary == Some(node.index);
        let kept = is_primary && node.is_silent();
        if is_replaced(cluster, node) || !(node.is_up() || kept) {
            now.insert(node.index);
        }
    }
    for pool in database.pools.all() {
        let node = pool.node.index;
        if now.contains(node) && !useless.contains(node) {
            pool.reconnect(CONTROL);
        }
    }
    *useless = now;
}

/// It believes to be the primary, and another is.
fn is_replaced(cluster: &Cluster, node: &Node) -> bool {
    node.role() == Role::Primary && cluster.primary().is_some_and(|primary| primary.index != node.index)
}

impl Session {
    /// `routing.failover`: a failure is hidden where another node can make it good.
    pub fn fails_over(&self) -> bool {
        self.cluster().routing.failover
    }

    /// No connection of this node need be waited for: it is down, and others serve, or writes have another primary.
    pub fn waits_in_vain(&self, node: &Node) -> bool {
        match self.cluster().primary() {
            Some(primary) if primary.index == node.index => {
                !node.is_up() && (!self.fails_over() || self.seen.is_inherited())
            }
            _ => !node.is_up() || node.role() == Role::Primary,
        }
    }

    /// A node has gone or come. What a replaced primary would commit is lost: the client is told. An answer that a silent one owes will not come: the read is said elsewhere if nothing of it
    /// has reached the client, else the client is told. One that is down and not silent closes its connections itself.
    pub fn on_nudge(&mut self) -> Option<End> {
        let leased = self.leased.as_ref()?;
        if !leased.replica && is_replaced(self.cluster(), &leased.lease.pool.node) {
            if self.request.kept == Kept::Read {
                return self.retry("the server is the primary no longer", Again::Elsewhere);
            }
            if self.may_leave_block() {
                self.lose_lease();
                return None;
            }
            self.record_broken_off(sqlstate::CONNECTION_FAILURE);
            self.drop_lease();
            let why = "the server is the primary no longer: another was promoted";
            return Some(End::Fault(Fault::fatal(sqlstate::CONNECTION_FAILURE, why)));
        }
        if !leased.replica || !leased.lease.pool.node.is_silent() {
            return None;
        }
        if self.request.kept == Kept::Read && self.fails_over() {
            return self.retry("the node does not answer", Again::Elsewhere);
        }
        if self.may_leave_block() {
            self.lose_lease();
            return None;
        }
        self.record_broken_off(sqlstate::CONNECTION_FAILURE);
        self.drop_lease();
        Some(End::Fault(Fault::fatal(sqlstate::CONNECTION_FAILURE, "the server does not answer any more")))
    }

    /// While no node has said that it is the primary, what needs one waits up to `acquire_timeout`; the fault, if none has
    /// said so by then or nothing is to be waited for.
    ///
    /// # Errors
    /// The session is to end.
    pub async fn wait_for_primary(&mut self, batch: &Batch) -> Result<Option<Fault>, End> {
        let database = self.database.clone();
        let mut changes = database.cluster.changes();
        let needs = batch.demand.is_of_block()
            || self.target(batch) != Target::Replica
            || database.cluster.routing.primary_reads != PrimaryReads::Never;
        if !needs || !self.fails_over() || database.cluster.primary().is_some() {
            return Ok(Some(Fault::error(sqlstate::CANNOT_CONNECT, "no server can take this statement")));
        }
        let (began, timeout) = (Instant::now(), database.pools.config().acquire_timeout);
        self.client.set_activity(Activity::Waiting, began);
        let client = self.client.clone();
        let found = loop {
            if database.cluster.primary().is_some() {
                break true;
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = poll_fn(|cx| client.nudged.poll(cx)) => if client.stop_reason() != Stop::None {
                    return Err(End::Fault(stop_fault(client.stop_reason())));
                },
                () = tokio::time::sleep_until((began + timeout).into()) => break false,
            }
        };
        self.waited(began.elapsed(), found);
        let message = format!("no server was found to be the primary within {} ms", timeout.as_millis());
        Ok((!found).then(|| Fault::error(sqlstate::TOO_MANY_CONNECTIONS, message)))
    }
}
