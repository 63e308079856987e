//! A connection by which a pgweir takes part in a fleet, and what is seen of the fleet by it.
//!
//! The lead is an advisory lock, of this database, and of the role and the publication that changes are followed by, as that is at the
//! time: who has seen it altered joins those who have, too. Anybody may take the lock, and send on any channel: so only who holds it by that very role is believed, and the server says who that is.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::connect::{self, ConnectFailure, Login};
use crate::backend::connection::{Connection, Row};
use crate::catalog::publication::Publication;
use crate::cluster::changes::fleet::notice::Post;
use crate::cluster::changes::origin::origin;
use crate::cluster::changes::stream::{cause, cause_of_failure};
use crate::cluster::changes::task::{Follow, NAME, SILENCE, silence};
use crate::cluster::changes::{Cause, publication};
use crate::cluster::node::Node;
use crate::error::Malformed;

/// The high half of the lock's key, with the publication's number; the low one is the role's.
const LOCK: u32 = 0x7077_6569;

/// Nothing ends it while it is idle; announcements wait for no standby; and one whose pgweir takes nothing more does not hold
/// up the queue of notifications for ever.
const PREPARE: &str = "SELECT pg_catalog.set_config(name, CASE name WHEN 'synchronous_commit' THEN 'local' \
    WHEN 'tcp_user_timeout' THEN '30s' WHEN 'client_encoding' THEN 'UTF8' ELSE '0' END, false) \
    FROM pg_catalog.pg_settings WHERE name IN ('idle_session_timeout', 'statement_timeout', 'lock_timeout', \
    'synchronous_commit', 'tcp_user_timeout', 'client_encoding')";

#[derive(Debug)]
pub struct Seat {
    connection: Connection,
    /// The session's role.
    role: u32,
    publication: Option<Arc<Publication>>,
}

/// A backend of the server's, which is no other's by its number and its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    pub pid: i32,
    pub started: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    pub backend: Backend,
    /// Where its pgweir is.
    pub address: String,
    pub post: Post,
}

/// Who holds the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    Nobody,
    /// One of the fleet, and its stream has yet to begin.
    Beginner,
    Leader(Leader),
    /// Somebody who is not to be followed, for this reason.
    Other(&'static str),
}

impl Seat {
    /// # Errors
    /// No connection, or the role may not follow changes: then whoever has it is not to be believed either.
    pub async fn open(node: &Node, how: &Follow, login: &Login) -> Result<Seat, Cause> {
        let connection = connected(node, how, login, &[("application_name", NAME)]).await?;
        let mut seat = Seat { connection, role: 0, publication: None };
        seat.query(PREPARE).await?;
        let sql = "SELECT oid, rolreplication OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = session_user";
        let rows = seat.query(sql).await?;
        let (role, may_replicate) = rows.first().map(|row| (text(row, 0).parse(), text(row, 1) == "t")).unzip();
        seat.role = role.and_then(Result::ok).ok_or_else(|| cause(Malformed("the session's role").into()))?;
        if may_replicate != Some(true) {
            // Managed services let roles replicate by other means.
            connected(node, how, login, &[("replication", "database"), ("application_name", NAME)]).await?;
        }
        if let Some(name) = &how.publication {
            seat.publication = Some(Arc::new(publication::read(&mut seat.connection, name).await?));
        }
        Ok(seat)
    }

    pub fn into_connection(self) -> Connection {
        self.connection
    }

    /// Of the fleet's announcements.
    pub fn channel(&self) -> String {
        format!("pgweir_fleet_{}_{}", self.role, self.state())
    }

    pub fn role(&self) -> u32 {
        self.role
    }

    pub fn publication(&self) -> Option<&Arc<Publication>> {
        self.publication.as_ref()
    }

    /// What is followed by besides the role; 0: nothing.
    fn state(&self) -> u32 {
        self.publication.as_ref().map_or(0, |publication| (publication.state ^ publication.state >> 32) as u32)
    }

    /// `columns` as a question to be asked again and again, with the publication's state behind them.
    pub async fn question(&mut self, columns: &str, from: &str, name: Option<&str>) -> Result<String, Cause> {
        publication::question(&mut self.connection, (columns, from), name).await
    }

    /// The halves of the lock's key.
    fn lock(&self) -> (u32, u32) {
        (LOCK ^ self.state(), self.role)
    }

    /// Takes the lock, for as long as the connection lasts; false: another has it.
    pub async fn lead(&mut self) -> Result<bool, Cause> {
        let (high, low) = self.lock();
        let sql = format!("SELECT pg_catalog.pg_try_advisory_lock({high}::bigint << 32 | {low}::bigint)");
        Ok(self.query(&sql).await?.first().is_some_and(|row| text(row, 0) == "t"))
    }

    pub async fn listen(&mut self) -> Result<(), Cause> {
        self.query(&format!("LISTEN {}", self.channel())).await.map(drop)
    }

    pub async fn unlisten(&mut self) -> Result<(), Cause> {
        self.query("UNLISTEN *").await.map(drop)
    }

    pub async fn holder(&mut self) -> Result<Holder, Cause> {
        let (high, low) = self.lock();
        let sql = format!(
            "SELECT l.pid, a.backend_start, a.usesysid = l.objid, l.mode = 'ExclusiveLock', a.application_name, \
             pg_catalog.host(a.client_addr) FROM pg_catalog.pg_locks AS l, \
             LATERAL pg_catalog.pg_stat_get_activity(l.pid) AS a \
             WHERE l.locktype = 'advisory' AND l.granted AND l.classid = {high} AND l.objid = {low} AND l.objsubid = 1 \
             AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())"
        );
        let rows = self.query(&sql).await?;
        Ok(match rows.as_slice() {
            [] => Holder::Nobody,
            [row] => holder(row),
            _ => Holder::Other("the fleet's lock is shared by others"),
        })
    }

    /// Ends a leader that does not go on; whether it did end.
    pub async fn end(&mut self, leader: &Backend) -> Result<bool, Cause> {
        let sql = format!(
            "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_get_activity({}) \
             WHERE usesysid = {} AND backend_start::text = '{}'",
            leader.pid, self.role, leader.started
        );
        self.query(&sql).await?;
        for _ in 0..20 {
            match self.holder().await? {
                Holder::Leader(still) if still.backend == *leader => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                _ => return Ok(true),
            }
        }
        Ok(false)
    }

    /// In whose history its positions are.
    pub async fn origin(&mut self) -> Result<Option<Box<str>>, Cause> {
        let asked = tokio::time::timeout(SILENCE, origin(&mut self.connection)).await;
        asked.unwrap_or_else(|_| Err(silence())).map_err(cause)
    }

    async fn query(&mut self, sql: &str) -> Result<Vec<Row>, Cause> {
        let asked = tokio::time::timeout(SILENCE, self.connection.query(sql)).await;
        asked.unwrap_or_else(|_| Err(silence())).map_err(cause)
    }
}

async fn connected(node: &Node, how: &Follow, login: &Login, parameters: &[(&str, &str)]) -> Result<Connection, Cause> {
    let connecting = connect::connect_with(&node.config, &how.tls, login, how.timeout, parameters);
    let made = tokio::time::timeout(how.timeout * 2, connecting).await;
    made.unwrap_or(Err(ConnectFailure::Timeout)).map_err(cause_of_failure)
}

fn text(row: &Row, n: usize) -> &str {
    row.get(n).and_then(|value| value.as_deref()).unwrap_or_default()
}

fn holder(row: &Row) -> Holder {
    let (is_ours, name) = (text(row, 2) == "t" && text(row, 3) == "t", text(row, 4));
    let Some(pid) = text(row, 0).parse().ok().filter(|_| is_ours) else {
        return Holder::Other("another role holds the fleet's lock");
    };
    if name == NAME {
        return Holder::Beginner;
    }
    match Post::read(name) {
        Some(post) => Holder::Leader(Leader {
            backend: Backend { pid, started: text(row, 1).to_owned() },
            address: match text(row, 5) {
                "" => format!("process {pid}"),
                host => format!("{host}, process {pid}"),
            },
            post,
        }),
        None => Holder::Other("the fleet's leader is of another version"),
    }
}
