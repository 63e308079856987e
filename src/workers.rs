//! The threads that serve clients: each a runtime of its own, so that a client never changes its thread.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::mpsc;

use crate::frontend::console;
use crate::frontend::login::{Opened, Opening};
use crate::frontend::proxy::Proxy;
use crate::frontend::rest;
use crate::frontend::session::Worker;
use crate::net::Stream;

/// Above `max_clients`, so many more may be told so; others are closed at once.
const TOLD: usize = 100;

const BEAT: Duration = Duration::from_secs(1);

/// The worker threads, as the acceptor sees them.
#[derive(Debug)]
pub struct Workers {
    proxy: Arc<Proxy>,
    workers: Vec<(mpsc::UnboundedSender<Stream>, Arc<AtomicUsize>)>,
}

impl Workers {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// The system does not give a thread or a reactor.
    pub fn start(proxy: &Arc<Proxy>, count: usize) -> std::io::Result<Workers> {
        let mut workers = Vec::new();
        for index in 0..count {
            let (sender, accepted) = mpsc::unbounded_channel();
            let load = Arc::new(AtomicUsize::new(0));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let work = work(proxy.clone(), index, accepted, load.clone());
            std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || runtime.block_on(work))?;
            workers.push((sender, load));
        }
        Ok(Workers { proxy: proxy.clone(), workers })
    }

    /// Deals a client to the least loaded worker.
    pub fn deal(&self, stream: Stream) {
        let connections = &self.proxy.clients.connections;
        let max = self.proxy.config.load().listen.max_clients;
        if connections.load(Ordering::Relaxed) >= max + TOLD {
            return;
        }
        let Some((sender, load)) = self.workers.iter().min_by_key(|(_, load)| load.load(Ordering::Relaxed)) else {
            return;
        };
        connections.fetch_add(1, Ordering::Relaxed);
        load.fetch_add(1, Ordering::Relaxed);
        if sender.send(stream).is_err() {
            connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

async fn work(proxy: Arc<Proxy>, index: usize, mut accepted: mpsc::UnboundedReceiver<Stream>, load: Arc<AtomicUsize>) {
    tokio::spawn(beat());
    let worker = Arc::new(Worker { index, buffers: Default::default() });
    while let Some(mut stream) = accepted.recv().await {
        let counted = Counted { proxy: proxy.clone(), load: load.clone() };
        if stream.rehome().is_err() {
            continue;
        }
        let (proxy, worker) = (proxy.clone(), worker.clone());
        let opening = Opening { proxy, worker, stream, inbox: BytesMut::new(), outbox: BytesMut::new() };
        // Boxed: a login is large and short, a session small and long.
        tokio::spawn(client(counted, Box::pin(opening.open())));
    }
}

/// A timer that is always near. One that is set to end before all others makes tokio wake the reactor, by a write to an
/// eventfd; behind this one, a session sets its own (a block that is to begin, a pause) without a system call.
async fn beat() {
    let mut beat = tokio::time::interval(BEAT);
    loop {
        beat.tick().await;
    }
}

/// One client, from its socket to its end. A panic in it ends this client alone.
async fn client(counted: Counted, login: Pin<Box<impl Future<Output = Opened>>>) {
    match login.await {
        Opened::Session(session, _place) => rest::serve(session).await,
        Opened::Console(opening) => Box::pin(console::serve(*opening)).await,
        Opened::Replication(relay, _place) => Box::pin(relay.run()).await,
        Opened::Nothing => {}
    }
    drop(counted);
}

/// Counts a client as long as it lasts.
struct Counted {
    proxy: Arc<Proxy>,
    load: Arc<AtomicUsize>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.proxy.clients.connections.fetch_sub(1, Ordering::Relaxed);
        self.load.fetch_sub(1, Ordering::Relaxed);
    }
}
