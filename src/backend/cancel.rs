//! Cancel requests to servers, and the wait for them to be settled.
//!
//! A cancel request names a server process, not a statement: one that arrives late hits whoever has the connection
//! then. So a connection is not handed on while a request for it is under way; the server closes the request's
//! connection once the signal is sent, and a signal that finds the process idle is ignored (`ProcessInterrupts`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::backend::connect::ConnectFailure;
use crate::config;
use crate::net::tls::Connector;
use crate::wire::write;

/// Requests under way for one connection.
#[derive(Debug, Default)]
pub struct Cancels {
    under_way: AtomicUsize,
    settled: Notify,
}

impl Cancels {
    /// Counts a request until the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> CancelGuard {
        self.under_way.fetch_add(1, Ordering::AcqRel);
        CancelGuard(self.clone())
    }

    pub fn is_settled(&self) -> bool {
        self.under_way.load(Ordering::Acquire) == 0
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
pub struct CancelGuard(Arc<Cancels>);

impl Drop for CancelGuard {
    fn drop(&mut self) {
        if self.0.under_way.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.settled.notify_waiters();
        }
    }
}

/// Sends one cancel request and waits until the server has closed its connection, which it does once the signal is
/// sent (`processCancelRequest`).
pub async fn send(
    node: &config::Node,
    tls: &Connector,
    pid: i32,
    secret: &[u8],
    timeout: Duration,
) -> Result<(), ConnectFailure> {
    let request = async {
        let connected = crate::net::connect::connect(&node.host, node.port, tls, timeout).await;
        let mut stream = connected.map_err(ConnectFailure::Net)?;
        let mut out = BytesMut::new();
        write::cancel_request(&mut out, pid, secret);
        let sent = async {
            stream.write_all(&out).await?;
            stream.flush().await?;
            // Postgres says nothing and closes.
            let mut end = [0u8; 1];
            stream.read(&mut end).await
        };
        sent.await.map(drop).map_err(|e| ConnectFailure::Backend(e.into()))
    };
    tokio::time::timeout(timeout, request).await.unwrap_or(Err(ConnectFailure::Timeout))
}
