//! Cancel requests to servers, and the wait for them to be settled.
//!
//! A cancel request names a server process, not a statement: one that arrives late hits whoever has the connection
//! then. So a connection is not handed on while a request for it is under way; the server closes the request's
//! connection once the signal is sent, and a signal that finds the process idle is ignored (`ProcessInterrupts`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::backend::connect::ConnectFailure;
use crate::config;
use crate::net::{Connector, Peer, Stream};
use crate::wire::write;

/// A server connection as others see it: what cancels its statements, whom it serves, and how many cancel requests are
/// under way for it.
#[derive(Debug)]
pub struct Identity {
    /// Unique for the life of the process; 0 until a pool has entered it.
    pub id: AtomicU64,
    pub node: config::Node,
    pub tls: Connector,
    /// Of this connection; empty: none.
    pub tls_version: &'static str,
    pub timeout: Duration,
    pub peer: Peer,
    pub local: Peer,
    pub created: Instant,
    /// The id of the client that has it; 0: none.
    serves: AtomicU64,
    /// Statements prepared on it: the count of its [`crate::session::prepared::Held`].
    pub prepared: Arc<AtomicUsize>,
    /// BackendKeyData.
    pub pid: i32,
    pub secret: Box<[u8]>,
    under_way: AtomicUsize,
    /// Requests that were sent, and of which nothing has told that the server has acted on them.
    unanswered: AtomicUsize,
    settled: Notify,
}

impl Identity {
    /// Of a connection just made, at the end of its login.
    pub fn new(
        endpoint: (config::Node, Connector),
        stream: &Stream,
        timeout: Duration,
        key: (i32, Box<[u8]>),
    ) -> Identity {
        Identity {
            id: AtomicU64::new(0),
            tls_version: stream.tls_info().map_or("", |tls| tls.version),
            node: endpoint.0,
            tls: endpoint.1,
            timeout,
            peer: stream.peer(),
            local: stream.local(),
            created: Instant::now(),
            serves: AtomicU64::new(0),
            prepared: Arc::default(),
            pid: key.0,
            secret: key.1,
            under_way: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(0),
            settled: Notify::new(),
        }
    }

    /// The client of this id has it, from here on.
    pub fn serve(&self, client: u64) {
        self.serves.store(client, Ordering::Relaxed);
    }

    /// The id of the client that has it; 0: none.
    pub fn serves(&self) -> u64 {
        self.serves.load(Ordering::Relaxed)
    }

    /// Its client has it no more. A request that is not seen to be under way behind this is not begun either.
    pub fn release(&self) {
        self.serves.store(0, Ordering::SeqCst);
    }

    /// Counts a request as under way until the result is dropped, if the connection serves this client.
    pub fn begin(self: &Arc<Self>, client: u64) -> Option<CancelRequest> {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let request = CancelRequest(self.clone());
        (self.serves.load(Ordering::SeqCst) == client).then_some(request)
    }

    pub fn is_settled(&self) -> bool {
        self.under_way.load(Ordering::SeqCst) == 0
    }

    /// Settled, and yet a request may still come to hit whoever has the connection then: nobody else is to have it.
    pub fn is_in_doubt(&self) -> bool {
        self.unanswered.load(Ordering::Acquire) > 0
    }

    pub async fn settled(&self) {
        loop {
            let notified = self.settled.notified();
            if self.is_settled() {
                return;
            }
            notified.await;
        }
    }
}

/// One request under way.
#[derive(Debug)]
pub struct CancelRequest(Arc<Identity>);

impl CancelRequest {
    /// Sends it to the connection's own server, and waits until that has closed its connection, which it does once the signal
    /// is sent (`processCancelRequest`).
    ///
    /// # Errors
    /// The server was not reached in time, or broke the connection.
    pub async fn send(self) -> Result<(), ConnectFailure> {
        let Identity { node, tls, timeout, peer, pid, secret, unanswered, .. } = &*self.0;
        let request = async {
            let connected = crate::net::connect_again(*peer, (&node.host, node.port), tls, *timeout).await;
            let mut stream = connected.map_err(ConnectFailure::Net)?;
            let mut out = BytesMut::new();
            write::cancel_request(&mut out, *pid, secret);
            unanswered.fetch_add(1, Ordering::AcqRel);
            let sent = async {
                stream.write_all(&out).await?;
                stream.flush().await?;
                // Postgres says nothing and closes.
                stream.read(&mut [0u8; 1]).await
            };
            sent.await.map_err(|e| ConnectFailure::Backend(e.into()))?;
            unanswered.fetch_sub(1, Ordering::AcqRel);
            Ok(())
        };
        tokio::time::timeout(*timeout, request).await.unwrap_or(Err(ConnectFailure::Timeout))
    }
}

impl Drop for CancelRequest {
    fn drop(&mut self) {
        if self.0.under_way.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.settled.notify_waiters();
        }
    }
}
