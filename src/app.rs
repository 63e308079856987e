//! The program: parts wired together, signals, reload, drain.

mod commands;
mod memory;
mod sources;
mod timeouts;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::admin::{self, Admin};
use crate::config::{Config, Diagnostic};
use crate::frontend::client::Stop;
use crate::frontend::proxy::Proxy;
use crate::net::{Listener, descriptors};
use crate::stats::Stats;
use crate::workers::Workers;

/// How often clients over their time are looked for.
const TICK: Duration = Duration::from_millis(100);

/// How long clients may take to read that pgweir ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// Open files that are neither clients nor servers: listeners, runtimes, logs, probes.
const OTHER_FILES: u64 = 64;

/// What the control loop is asked to do by the console and by HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Reload,
    Drain,
    /// Ends as soon as no client is left, and lets none log in; it gives them no grace to be over.
    DrainWithoutEnd,
    Stop,
}

/// Serves until a signal ends it.
///
/// # Errors
/// An address cannot be bound, a file not be read, a thread not be started.
pub fn run(path: &Path, config: Config) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let outcome = runtime.block_on(serve(path.to_owned(), Arc::new(config), handle));
    // Threads that still say goodbye are not waited for.
    runtime.shutdown_background();
    outcome
}

async fn serve(path: PathBuf, config: Arc<Config>, control: tokio::runtime::Handle) -> io::Result<()> {
    let now = Instant::now();
    check_open_files(&config, descriptors::raise_limit());
    let signals = Signals::new()?;
    let stats = Arc::new(Stats::new(&config.statements, config.listen.workers, now)?);
    let proxy = Proxy::new(config.clone(), stats.clone(), control, now).map_err(io::Error::other)?;
    let (orders, given) = mpsc::unbounded_channel();
    let sources = sources::sources(&proxy, orders);
    let admin = Arc::new(Admin::new(stats.clone(), sources, config.admin.clone(), now));
    // Set once, here.
    let _ = proxy.admin.set(admin.clone());

    let listeners = listen(&config).await?;
    let http = match config.admin.http {
        Some(address) => Some(TcpListener::bind(address).await.map_err(|e| named(&address.to_string(), &e))?),
        None => None,
    };
    let workers = Arc::new(Workers::start(&proxy, config.listen.workers)?);
    for listener in listeners {
        tokio::spawn(accept(listener, workers.clone()));
    }
    if let Some(listener) = http {
        let limits = admin::http::Limits::default();
        tokio::spawn(admin::http::serve(listener, admin.clone(), limits, std::future::pending()));
    }
    tokio::spawn(timeouts::watch(proxy.clone(), TICK));
    tokio::spawn(tick(admin.clone()));
    tokio::spawn(memory::watch(proxy.clone()));
    tracing::info!(address = config.listen.address, workers = config.listen.workers, "serving");
    Control { path, proxy, admin, signals, given }.run().await;
    stats.slow.flush(FAREWELL);
    Ok(())
}

/// Says where clients and servers at their most would not find room. Each user may have a pool of its own; one is
/// counted.
fn check_open_files(config: &Config, limit: Option<u64>) {
    let servers: usize = config.databases.iter().map(|database| database.pool.max * database.nodes.len()).sum();
    let wanted = (config.listen.max_clients + servers) as u64 + OTHER_FILES;
    if let Some(limit) = limit.filter(|limit| *limit < wanted) {
        tracing::warn!(
            limit,
            wanted,
            "listen.max_clients and the pools may need more open files than are allowed: raise ulimit -n, or lower them"
        );
    }
}

async fn listen(config: &Config) -> io::Result<Vec<Listener>> {
    let address = &config.listen.address;
    let mut listeners = Listener::bind_tcp(address).await.map_err(|e| named(address, &e))?;
    if let Some(directory) = &config.listen.unix_socket_dir {
        let port = address.rsplit(':').next().and_then(|p| p.parse().ok()).unwrap_or(6432);
        listeners.push(Listener::bind_unix(directory, port)?);
    }
    Ok(listeners)
}

fn named(address: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{address}: {error}"))
}

async fn accept(listener: Listener, workers: Arc<Workers>) {
    loop {
        match listener.accept().await {
            Ok(stream) => workers.deal(stream),
            Err(error) => {
                tracing::error!(%error, "a listening socket is broken");
                return;
            }
        }
    }
}

async fn tick(admin: Arc<Admin>) {
    let mut interval = tokio::time::interval(Duration::from_secs(1));
    loop {
        interval.tick().await;
        admin.tick(Instant::now());
    }
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    user2: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }
}

/// Whatever else is asked for, an end that was set does not move away.
fn earlier(end: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    end.into_iter().chain(other).min()
}

/// No client is left, or their grace is over.
async fn drained(proxy: &Proxy, end: Option<Instant>) {
    while !proxy.clients.is_empty() && end.is_none_or(|end| Instant::now() < end) {
        tokio::time::sleep(TICK).await;
    }
}

/// The control loop.
struct Control {
    path: PathBuf,
    proxy: Arc<Proxy>,
    admin: Arc<Admin>,
    signals: Signals,
    given: mpsc::UnboundedReceiver<Order>,
}

impl Control {
    async fn run(mut self) {
        let mut end = None;
        loop {
            let order = tokio::select! {
                _ = self.signals.hangup.recv() => Order::Reload,
                _ = self.signals.terminate.recv() => Order::Drain,
                _ = self.signals.interrupt.recv() => if self.proxy.is_draining() { Order::Stop } else { Order::Drain },
                // Left to its default it would kill.
                _ = self.signals.user2.recv() => {
                    tracing::warn!("SIGUSR2: the hand-over to a new binary is not built yet; nothing is changed");
                    continue;
                }
                Some(order) = self.given.recv() => order,
                () = drained(&self.proxy, end), if self.proxy.is_draining() => Order::Stop,
            };
            match order {
                Order::Reload => self.reload(),
                Order::Drain | Order::DrainWithoutEnd => {
                    let grace = self.proxy.config.load().listen.shutdown_grace;
                    tracing::info!(clients = self.proxy.clients.len(), "draining");
                    self.proxy.draining.store(true, Ordering::Relaxed);
                    match order {
                        Order::Drain => end = earlier(end, Some(Instant::now() + grace)),
                        // Whoever came anew would have it wait for ever.
                        _ => self.proxy.closing.store(true, Ordering::Relaxed),
                    }
                }
                Order::Stop => break,
            }
        }
        self.stop().await;
    }

    /// Ends the clients that are left, and closes the pools.
    async fn stop(&self) {
        let left = self.proxy.clients.all();
        tracing::info!(clients = left.len(), "stopping");
        left.iter().for_each(|client| client.stop(Stop::Shutdown));
        let end = Instant::now() + FAREWELL;
        while !self.proxy.clients.is_empty() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.proxy.databases.iter().for_each(|entry| entry.value().pools.shut());
        // Long enough for the goodbyes that were just begun to be sent.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    fn reload(&self) {
        let say = |found: &[Diagnostic]| found.iter().for_each(|d| tracing::warn!("{d}"));
        match Config::load(&self.path) {
            Ok((config, found)) => {
                say(&found);
                let (admin, before) = (config.admin.clone(), self.proxy.config.load_full());
                match self.proxy.reload(config) {
                    Ok(()) => {
                        if admin.http != before.admin.http {
                            tracing::warn!("a change of admin.http takes effect with a restart");
                        }
                        self.admin.reconfigure(admin);
                        tracing::info!("configuration reloaded");
                        return;
                    }
                    Err(why) => tracing::error!(why, "the old configuration stays"),
                }
            }
            Err(found) => {
                say(&found);
                tracing::error!("the old configuration stays");
            }
        }
        // A log that was rotated is let go all the same.
        self.proxy.stats.slow.reopen();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_only_ever_comes_earlier() {
        let now = Instant::now();
        let later = Some(now + Duration::from_secs(1));
        assert_eq!(earlier(None, later), later);
        assert_eq!(earlier(Some(now), later), Some(now));
        assert_eq!(earlier(later, None), later);
    }
}
