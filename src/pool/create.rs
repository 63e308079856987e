//! Making connections for a pool: capped, retried, backed off.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::connect::{self, ConnectFailure};
use crate::backend::connection::Connection;
use crate::cluster::node::Role;
use crate::pool::checkout::{Pool, Refused};
use crate::pool::ledger::{Creates, Permit};

impl Pool {
    /// Starts making connections; their sockets belong to the current runtime, which is `home`'s.
    pub(super) fn start(self: &Arc<Self>, creates: Creates, home: usize) {
        for permit in creates {
            tokio::spawn(self.clone().create(permit, home));
        }
    }

    async fn create(self: Arc<Self>, permit: Permit, home: usize) {
        let timeout = self.config.load().create_timeout;
        let made = tokio::time::timeout(timeout, self.make()).await.unwrap_or(Err(ConnectFailure::Timeout));
        let now = Instant::now();
        match made {
            Ok(connection) => {
                *self.last_error.lock() = None;
                self.enter(&connection.identity);
                let placement = self.books.lock().created(now, permit, Box::new(connection), home, connect::jitter());
                self.place(placement, home);
            }
            Err(failure) => {
                self.note_failure(&failure);
                let failed = self.books.lock().create_failed(now, permit);
                self.answer_failure(&failure);
                if failed.waiting > 0 {
                    tokio::time::sleep_until(failed.retry_at.into()).await;
                    let creates = self.books.lock().retry(Instant::now());
                    self.start(creates, home);
                }
            }
        }
    }

    /// Clients that another node may serve, or that no retry will help, are not left waiting.
    fn answer_failure(&self, failure: &ConnectFailure) {
        match failure.refusal() {
            Some(fault) => self.dismiss(&Refused::Login(fault)),
            None if failure.is_node_fault() && self.node.role() == Role::Replica => {
                self.dismiss(&Refused::Unavailable(failure.to_string()));
            }
            None => {}
        }
    }

    /// One connection: attempts of `connection_timeout` each, `create_retry_interval` apart while the primary cannot
    /// be reached. A replica is not waited for.
    async fn make(&self) -> Result<Connection, ConnectFailure> {
        let Ok(_permit) = self.node.connects.acquire().await else { return Err(ConnectFailure::Timeout) };
        loop {
            let (connect_timeout, retry) = self.intervals();
            let moves = self.node.moves();
            match connect::connect(&self.node.config, &self.tls, &self.login, connect_timeout).await {
                Ok(mut connection) => {
                    self.node.note_peer(connection.stream.peer());
                    connection.moves = moves;
                    return Ok(connection);
                }
                Err(failure) => {
                    tracing::debug!(node = %self.node.name, %failure, "cannot make a connection");
                    if failure.is_node_fault() {
                        self.node.eject(&failure.to_string());
                    }
                    if self.node.role() != Role::Primary || !failure.is_node_fault() {
                        return Err(failure);
                    }
                    self.note_failure(&failure);
                    tokio::time::sleep(retry).await;
                }
            }
        }
    }

    fn intervals(&self) -> (Duration, Duration) {
        let config = self.config.load();
        (config.connection_timeout, config.create_retry_interval)
    }
}
