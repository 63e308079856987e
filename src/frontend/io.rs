//! The one place where a session waits: for its client, its server, or the word to stop.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cluster::node::Node;
use crate::error::Fault;
use crate::frontend::client::Stop;
use crate::frontend::session::Session;
use crate::net::Stream;
use crate::pool::checkout::{Answer, Pool};

/// Bytes of the client that may wait to be consumed; a frame that must be whole may be larger.
pub const MAX_WAITING: usize = 256 * 1024;

/// How long a client that is told of its end may take to read it.
const FAREWELL: Duration = Duration::from_secs(1);

/// What has happened.
#[derive(Debug)]
pub enum Event {
    /// The client sent something.
    Client,
    /// The client is gone.
    ClientGone,
    /// The server has taken all that was sent, and more may be sent.
    Room,
    /// The server sent something.
    Server,
    /// The server is gone.
    ServerGone(io::Error),
    /// The wait in line is over.
    Lease(Answer),
    /// The block that the client has begun is to begin on a server.
    Due,
    /// `client.stop` was called, or `client.nudge`: something has changed.
    Stopped,
    /// The session cannot go on; the client is to be told why.
    Fault(Fault),
}

/// How a wait for a connection ended.
#[derive(Debug)]
pub enum Wait {
    Answer(Answer),
    /// It can be had elsewhere, or not at all.
    InVain,
    ClientGone,
    /// By a cancel request.
    Cancelled,
    Stopped,
}

impl Session {
    /// Waits for a connection of `pool`, and watches the client meanwhile. `unasked`: what that says from now on ends the wait.
    pub async fn wait_for_lease(&mut self, pool: &Arc<Pool>, unasked: bool) -> Wait {
        let mut queued = match pool.checkout_or_queue(self.worker.index, Instant::now()) {
            Ok(lease) => return Wait::Answer(Ok(lease)),
            Err(queued) => queued,
        };
        let said = self.inbox.len();
        // The node may have gone since it was chosen.
        let mut nudged = true;
        poll_fn(|cx| {
            match Pin::new(&mut queued).poll(cx) {
                Poll::Ready(answer) => return Poll::Ready(Wait::Answer(answer)),
                Poll::Pending if queued.gives_way() => return Poll::Pending,
                Poll::Pending => {}
            }
            while self.client.nudged.poll(cx).is_ready() {
                nudged = true;
            }
            if std::mem::take(&mut nudged)
                && let Some(heard) = self.hear_in_line(&pool.node)
            {
                return Poll::Ready(heard);
            }
            match self.poll_waiting_client(cx) {
                Poll::Ready(()) => Poll::Ready(Wait::ClientGone),
                Poll::Pending if unasked && self.inbox.len() > said => Poll::Ready(Wait::InVain),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// What ends a wait for a connection of `node`, where something has changed.
    pub(super) fn hear_in_line(&self, node: &Node) -> Option<Wait> {
        match self.client.stop_reason() {
            Stop::None if self.client.is_cancelled() => Some(Wait::Cancelled),
            Stop::None => self.waits_in_vain(node).then_some(Wait::InVain),
            _ => Some(Wait::Stopped),
        }
    }

    /// Serves the client's socket while something else is waited for; ready when the client is gone.
    pub(super) fn poll_waiting_client(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if matches!(self.poll_send_client(cx), Poll::Ready(Err(_))) {
            return Poll::Ready(());
        }
        while self.inbox.len() < MAX_WAITING {
            match ready!(self.poll_receive_client(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    /// Sends what is to be sent; ready with the next event. `need`: the client's frame at the head of the inbox is complete
    /// at this many bytes, and of no use before.
    pub fn poll_event(&mut self, need: usize, cx: &mut Context<'_>) -> Poll<Event> {
        if let Some(line) = &mut self.line {
            match Pin::new(&mut line.queued).poll(cx) {
                Poll::Ready(answer) => return Poll::Ready(Event::Lease(answer)),
                Poll::Pending if line.queued.gives_way() => return Poll::Pending,
                Poll::Pending => {}
            }
        }
        if self.client.nudged.poll(cx).is_ready() {
            return Poll::Ready(Event::Stopped);
        }
        match self.poll_peers(need, cx) {
            Poll::Pending => self.poll_due(cx).map(|()| Event::Due),
            happened => happened,
        }
    }

    fn poll_peers(&mut self, need: usize, cx: &mut Context<'_>) -> Poll<Event> {
        match self.poll_mailbox(cx) {
            Ok(false) => {}
            // The ReadyForQuery that was held is the server's next.
            Ok(true) => return Poll::Ready(Event::Server),
            Err(fault) => return Poll::Ready(Event::Fault(fault)),
        }
        let mut server_full = false;
        if let Some(leased) = &mut self.leased {
            let server = &mut *leased.lease;
            // A server that no longer reads may still have said why.
            server_full = match server.stream.poll_send(&mut server.outbox, cx) {
                Poll::Pending => true,
                Poll::Ready(Err(_)) => {
                    server.outbox.clear();
                    false
                }
                Poll::Ready(Ok(())) => false,
            };
            if !server_full && std::mem::take(&mut self.held_back) {
                return Poll::Ready(Event::Room);
            }
        }
        // What stands before a held ReadyForQuery waits with it.
        let client_full = self.is_holding()
            || match self.poll_send_client(cx) {
                Poll::Pending => true,
                Poll::Ready(Err(_)) => return Poll::Ready(Event::ClientGone),
                Poll::Ready(Ok(())) => false,
            };
        if let (false, Some(leased)) = (client_full, &mut self.leased) {
            let server = &mut *leased.lease;
            match server.stream.poll_receive(&mut server.inbox, &self.worker.buffers, cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Event::ServerGone(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(Ok(_)) => return Poll::Ready(Event::Server),
                Poll::Ready(Err(e)) => return Poll::Ready(Event::ServerGone(e)),
                Poll::Pending => {}
            }
        }
        // A client that has said Terminate is not watched: it has left in order, and its last statement runs to its end.
        let unread = self.outbox.len() >= MAX_WAITING;
        if server_full || unread || self.terminating || self.inbox.len() >= MAX_WAITING.max(need) {
            return Poll::Pending;
        }
        match ready!(self.poll_receive_client(cx)) {
            Ok(0) | Err(_) => Poll::Ready(Event::ClientGone),
            Ok(_) => Poll::Ready(Event::Client),
        }
    }

    /// Sends the outbox, and behind it the notifications whose time it is.
    pub(super) fn poll_send_client(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outbox.is_empty() || self.stream.is_tls() || self.subscription.is_some() {
            let before = self.outbox.len();
            let polled = self.stream.poll_send(&mut self.outbox, cx);
            let sent = before - self.outbox.len();
            if sent > 0 {
                self.counters().sent(sent as u64);
            }
            ready!(polled)?;
            if !self.deliver_if_idle() {
                break;
            }
        }
        self.worker.buffers.give_back(&mut self.outbox);
        Poll::Ready(Ok(()))
    }

    fn poll_receive_client(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let polled = self.stream.poll_receive(&mut self.inbox, &self.worker.buffers, cx);
        if let Poll::Ready(Ok(received)) = polled {
            self.counters().received(received as u64);
        }
        polled
    }
}

/// Sends what is left, and closes so that the client can read it: a socket closed with unread bytes resets.
pub async fn part(stream: &mut Stream, out: &mut BytesMut) {
    let parting = async {
        stream.write_all_buf(out).await?;
        stream.flush().await?;
        stream.shutdown().await?;
        let mut sink = [0u8; 1024];
        while stream.read(&mut sink).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    let _ = tokio::time::timeout(FAREWELL, parting).await;
}
