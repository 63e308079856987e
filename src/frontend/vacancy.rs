//! Databases that are left, for a while, to a statement that wants them to itself (CREATE, ALTER and DROP DATABASE).
//!
//! Postgres lets such a statement wait five seconds for those who are connected (`CountOtherDBBackends`), and refuses it
//! at once to those who may not: so no client's connection goes before the statement has waited for a moment. For a change
//! stream nothing waits (`dropdb` counts the logical slots in use first), so pgweir's own goes ahead of the statement.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use crate::frontend::database::Database;
use crate::frontend::proxy::Proxy;
use crate::frontend::session::{Leased, Session};
use crate::route::plan::Plan;
use crate::session::parameters::literal;
use crate::session::pipeline::Expect;
use crate::wire::write;

/// A statement without an answer after that time is taken to wait for others to go.
const REFUSED_WITHIN: Duration = Duration::from_millis(100);

/// A little longer than it waits.
const VACANT_FOR: Duration = Duration::from_secs(6);

/// Ends when no slot of pgweir's on a database is in use, or after two seconds. `n > 0` has them looked at anew each time.
const AWAIT_SLOTS: &str = "WITH RECURSIVE wait(n) AS (SELECT 1 UNION ALL SELECT n OPERATOR(pg_catalog.+) 1 \
    FROM wait, LATERAL (SELECT pg_catalog.pg_sleep(0.01) WHERE n OPERATOR(pg_catalog.>) 0) AS slept \
    WHERE n OPERATOR(pg_catalog.<) 200 AND EXISTS (SELECT FROM pg_catalog.pg_replication_slots \
    WHERE active AND n OPERATOR(pg_catalog.>) 0 AND pg_catalog.starts_with(slot_name::text, 'pgweir') \
    AND database OPERATOR(pg_catalog.=) ";

/// A statement that wants a database to itself is under way; dropped, it is not any more.
#[derive(Debug)]
pub struct Leaving(AbortHandle);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A database that pgweir has left to a statement; taken up again when dropped.
#[derive(Debug)]
struct Left(Arc<Database>);

impl Left {
    fn new(database: Arc<Database>) -> Left {
        let mut leavings = database.leavings.lock();
        *leavings += 1;
        database.cluster.vacate(Instant::now() + REFUSED_WITHIN + VACANT_FOR);
        drop(leavings);
        Left(database)
    }

    /// To its end: the clients' connections too.
    fn wholly(&self) {
        let _leavings = self.0.leavings.lock();
        self.0.pools.vacate(Instant::now() + VACANT_FOR);
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        let mut leavings = self.0.leavings.lock();
        *leavings -= 1;
        if *leavings == 0 {
            self.0.pools.occupy();
            self.0.cluster.vacate(Instant::now());
        }
    }
}

impl Session {
    /// Before a statement is executed. One that has others ahead of it is no matter here: it would be taken to wait for
    /// others to go while it waits for its turn.
    pub fn leave(&mut self, plan: &Arc<Plan>, leased: &mut Leased) {
        let Some(name) = &plan.facts.alone_in else { return };
        if self.pipeline.is_about(plan) {
            self.leaving = self.proxy.leave(&self.database, name, true);
            self.await_slots(name, leased);
        }
    }

    /// Before the first message of a segment that names the statement: pgweir's own goes, for when it is executed it is too
    /// late for a Query.
    pub fn leave_ahead(&mut self, plan: &Arc<Plan>, leased: &mut Leased) {
        let Some(name) = &plan.facts.alone_in else { return };
        if !self.pipeline.is_unsynced() && self.pipeline.is_about(plan) {
            self.leaving = self.proxy.leave(&self.database, name, false);
            self.await_slots(name, leased);
        }
    }

    fn await_slots(&mut self, name: &str, leased: &mut Leased) {
        // Within a segment a Query would end it.
        if self.leaving.is_some() && self.status == b'I' && !self.pipeline.is_unsynced() {
            let wait = format!("{AWAIT_SLOTS}{}::name)) SELECT FROM wait", literal(name));
            write::query(&mut leased.lease.outbox, &wait);
            leased.lease.unnamed = None;
            self.pipeline.push(Expect::Aside);
        }
    }
}

impl Proxy {
    /// Leaves what of this name is on the servers of `beside`: pgweir itself at once, its clients once the statement, if it is
    /// `executed`, has waited.
    fn leave(&self, beside: &Database, name: &str, executed: bool) -> Option<Leaving> {
        let databases: Vec<_> = self.databases.iter().map(|entry| entry.value().clone()).collect();
        let wanted = |database: &Arc<Database>| *database.dbname == *name && shares_a_server(database, beside);
        let left: Vec<_> = databases.into_iter().filter(wanted).map(Left::new).collect();
        if left.is_empty() {
            return None;
        }
        let leaving = async move {
            tokio::time::sleep(REFUSED_WITHIN).await;
            if executed {
                left.iter().for_each(Left::wholly);
            }
            tokio::time::sleep(VACANT_FOR).await;
        };
        Some(Leaving(self.control.spawn(leaving).abort_handle()))
    }
}

fn shares_a_server(one: &Database, other: &Database) -> bool {
    one.cluster.nodes.iter().any(|node| other.cluster.nodes.iter().any(|there| node.name == there.name))
}
