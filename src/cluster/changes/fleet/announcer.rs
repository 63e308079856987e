//! A leader's connection: it holds the fleet's lock, announces, and posts how far the leader has come.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::backend::connection::{BackendError, Connection, ServerError};
use crate::catalog::publication::Publication;
use crate::cluster::changes::fleet::desk::{Desk, Said};
use crate::cluster::changes::fleet::seat::Seat;
use crate::cluster::changes::task::{SILENCE, silence};
use crate::session::parameters::literal;
use crate::wire::tag::backend;
use crate::wire::write;

/// Something is said so often at most.
const SAY_AGAIN: Duration = Duration::from_millis(10);

/// What has become of the leader's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// There is something to say: [`Announcer::say`].
    Due,
    /// Changes have been announced, which has moved the WAL's end.
    Announced,
    /// How far the leader is has been posted.
    Posted,
}

#[derive(Debug)]
pub struct Announcer {
    connection: Connection,
    channel: String,
    publication: Option<Arc<Publication>>,
    pub desk: Desk,
    said: Instant,
}

impl Announcer {
    pub fn new(seat: Seat) -> Announcer {
        let (channel, publication) = (seat.channel(), seat.publication().cloned());
        let connection = seat.into_connection();
        Announcer { connection, channel, publication, desk: Desk::default(), said: Instant::now() }
    }

    /// What those follow by who are told.
    pub fn publication(&self) -> Option<&Publication> {
        self.publication.as_deref()
    }

    /// Since when what was said has not been answered.
    pub fn owed(&self) -> Duration {
        if self.desk.is_saying() { self.said.elapsed() } else { Duration::ZERO }
    }

    /// Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// The connection has ended, and the lead with it.
    pub async fn turn(&mut self) -> Result<Turn, BackendError> {
        if self.desk.is_due() {
            sleep_until(self.said + SAY_AGAIN).await;
            return Ok(Turn::Due);
        }
        loop {
            match self.connection.receive().await? {
                (backend::ERROR, body) => return Err(BackendError::Server(ServerError::read(&body)?)),
                (backend::READY, _) if self.desk.is_said() => return Ok(Turn::Announced),
                (backend::READY, _) => return Ok(Turn::Posted),
                _ => {}
            }
        }
    }

    /// # Errors
    /// The connection has ended.
    pub async fn say(&mut self) -> Result<(), BackendError> {
        let Said { post, payloads } = self.desk.say();
        self.said = Instant::now();
        let mut sql = format!("SELECT pg_catalog.set_config('application_name', {}, false)", literal(&post));
        if !payloads.is_empty() {
            // A commit that has written something else besides is flushed at once, and its end told of soon.
            sql.push_str(", pg_catalog.pg_logical_emit_message(false, 'pgweir', '')");
        }
        for payload in &payloads {
            sql.push_str(&format!(", pg_catalog.pg_notify({}, {})", literal(&self.channel), literal(payload)));
        }
        write::query(&mut self.connection.outbox, &sql);
        tokio::time::timeout(SILENCE, self.connection.send()).await.unwrap_or_else(|_| Err(silence()))
    }
}
