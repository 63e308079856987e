//! Databases that are left, for a while, to a statement that wants them to itself (CREATE, ALTER and DROP DATABASE).
//!
//! Postgres lets such a statement wait five seconds for those who are connected (`CountOtherDBBackends`), and refuses it
//! at once to those who may not: so nobody goes before the statement has waited for a moment.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use crate::frontend::database::Database;
use crate::frontend::proxy::Proxy;
use crate::frontend::session::Session;
use crate::route::plan::Plan;

/// A statement without an answer after that time is taken to wait for others to go.
const REFUSED_WITHIN: Duration = Duration::from_millis(100);

/// A little longer than it waits.
const VACANT_FOR: Duration = Duration::from_secs(6);

/// A statement that wants a database to itself is under way; dropped, it is not any more.
#[derive(Debug)]
pub struct Leaving(AbortHandle);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A database that is left to a statement; taken up again when dropped.
#[derive(Debug)]
struct Left(Arc<Database>);

impl Left {
    fn new(database: Arc<Database>) -> Left {
        let mut leavings = database.leavings.lock();
        *leavings += 1;
        let until = Instant::now() + VACANT_FOR;
        database.pools.vacate(until);
        database.cluster.vacate(until);
        drop(leavings);
        Left(database)
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
    pub fn leave(&mut self, plan: &Arc<Plan>) {
        let Some(name) = &plan.facts.alone_in else { return };
        if self.pipeline.is_about(plan) {
            self.leaving = self.proxy.leave(&self.database, name);
        }
    }
}

impl Proxy {
    /// Leaves what of this name is on the servers of `beside`, once the statement has waited.
    fn leave(&self, beside: &Database, name: &str) -> Option<Leaving> {
        let databases: Vec<_> = self.databases.iter().map(|entry| entry.value().clone()).collect();
        let wanted = |database: &Arc<Database>| *database.dbname == *name && shares_a_server(database, beside);
        let databases: Vec<_> = databases.into_iter().filter(wanted).collect();
        if databases.is_empty() {
            return None;
        }
        let leaving = async move {
            tokio::time::sleep(REFUSED_WITHIN).await;
            let _left: Vec<_> = databases.into_iter().map(Left::new).collect();
            tokio::time::sleep(VACANT_FOR).await;
        };
        Some(Leaving(self.control.spawn(leaving).abort_handle()))
    }
}

fn shares_a_server(one: &Database, other: &Database) -> bool {
    one.cluster.nodes.iter().any(|node| other.cluster.nodes.iter().any(|there| node.name == there.name))
}
