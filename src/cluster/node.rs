//! One server: where it is, and what the last probes and connections told of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use crate::cluster::addresses::Addresses;
use crate::cluster::view::Version;
use crate::config::{self, LoadBalancing, NodeRole};
use crate::freshness::{Lsn, Sample};
use crate::net::Peer;
use crate::route::balance::{Load, Peak, WHOLE};

/// New connections made to one node at a time, over all pools: a restart of Postgres is no login storm.
const CONCURRENT_CONNECTS: usize = 8;

/// What a node is right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `auto`, and not asked yet.
    Unknown,
    Primary,
    Replica,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Unknown => "unknown",
            Role::Primary => "primary",
            Role::Replica => "replica",
        }
    }

    fn from_u8(n: u8) -> Role {
        match n {
            1 => Role::Primary,
            2 => Role::Replica,
            _ => Role::Unknown,
        }
    }
}

/// One node of one database. All fields that change are atomic: readers never wait.
#[derive(Debug)]
pub struct Node {
    /// Its place in the configuration's list.
    pub index: u16,
    /// `host:port`
    pub name: Arc<str>,
    pub config: config::Node,
    up: AtomicBool,
    /// By an operator's EJECT: as a replica it gets no reads until ADMIT.
    ejected: AtomicBool,
    /// It takes connections or bytes and gives no answer: what waits for one waits in vain.
    silent: AtomicBool,
    /// It has come back, and nobody has taken note.
    returned: AtomicBool,
    role: AtomicU8,
    /// It answers, and refuses the probe's login: its role stays open until a client's login has shown the password.
    refuses_probe: AtomicBool,
    /// Of its WAL: each promotion raises it. 0: not known. A standby tells of a new one late.
    timeline: AtomicU32,
    /// What its last probe has shown of a replica: together, for parts of two say nothing.
    sample: Mutex<Sample>,
    /// When it came back, in microseconds since `epoch`; 0: it was never gone.
    returned_at: AtomicU64,
    /// Requests under way.
    outstanding: AtomicU32,
    latency: Mutex<Peak>,
    /// Microseconds behind the primary; `u64::MAX` while not known.
    lag: AtomicU64,
    /// It has replayed what its primary never wrote.
    astray: AtomicBool,
    /// Microseconds in which its last probe was answered; `u64::MAX`: none was.
    probe: AtomicU64,
    epoch: Instant,
    addresses: Mutex<Addresses>,
    /// How often its name has come to lead elsewhere.
    moves: AtomicU32,
    /// Why it is down.
    fault: Mutex<Option<String>>,
    pub connects: Semaphore,
    /// Connections and requests that failed for a fault of the node.
    pub failures: AtomicU64,
    /// Counts what those who wait have to know.
    changes: watch::Sender<u64>,
    /// Counts all that may change where reads go, but for the load.
    version: Version,
}

impl Node {
    /// A node counts as up until something says otherwise, so that the first client need not wait for a probe.
    pub fn new(
        index: u16,
        config: config::Node,
        epoch: Instant,
        (changes, version): (watch::Sender<u64>, Version),
    ) -> Node {
        let role = match config.role {
            NodeRole::Primary => 1,
            NodeRole::Replica => 2,
            NodeRole::Auto => 0,
        };
        Node {
            index,
            name: format!("{}:{}", config.host, config.port).into(),
            config,
            up: AtomicBool::new(true),
            ejected: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            returned: AtomicBool::new(false),
            timeline: AtomicU32::new(0),
            role: AtomicU8::new(role),
            refuses_probe: AtomicBool::new(false),
            sample: Mutex::default(),
            returned_at: AtomicU64::new(0),
            outstanding: AtomicU32::new(0),
            latency: Mutex::default(),
            lag: AtomicU64::new(u64::MAX),
            astray: AtomicBool::new(false),
            probe: AtomicU64::new(u64::MAX),
            epoch,
            addresses: Mutex::default(),
            moves: AtomicU32::new(0),
            fault: Mutex::new(None),
            connects: Semaphore::new(CONCURRENT_CONNECTS),
            failures: AtomicU64::new(0),
            changes,
            version,
        }
    }

    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// By an operator.
    pub fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    /// EJECT and ADMIT. Who comes back comes to its share slowly, as after a failure.
    pub fn set_ejected(&self, ejected: bool, now: Instant) {
        if self.ejected.swap(ejected, Ordering::Relaxed) != ejected {
            let word = if ejected { "ejected" } else { "admitted" };
            tracing::info!(node = %self.name, "the node is {word} by an operator");
            self.returned_at.store(self.micros(now).max(1), Ordering::Relaxed);
            self.tell();
        }
    }

    pub fn role(&self) -> Role {
        Role::from_u8(self.role.load(Ordering::Relaxed))
    }

    /// A lookup of its name has shown these addresses.
    pub fn note_lookup(&self, found: &[IpAddr]) {
        if self.addresses.lock().note_lookup(found) {
            self.moves.fetch_add(1, Ordering::Relaxed);
            tracing::info!(node = %self.name, addresses = ?found, "the node's name leads elsewhere now");
            self.tell();
        }
    }

    /// Its name has led to `peer` just now.
    pub fn note_peer(&self, peer: Peer) {
        if let Peer::Tcp(address) = peer {
            self.addresses.lock().note(address.ip());
        }
    }

    /// Where its name leads, by the lookups of late.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.addresses.lock().current()
    }

    /// Equal numbers: its name has lost no address meanwhile.
    pub fn moves(&self) -> u32 {
        self.moves.load(Ordering::Relaxed)
    }

    /// Its name leads to `peer` no more.
    pub fn has_left(&self, peer: Peer) -> bool {
        matches!(peer, Peer::Tcp(address) if self.addresses.lock().is_gone(address.ip()))
    }

    /// What the server says it is; counts only where the configuration leaves it open.
    pub fn note_role(&self, in_recovery: bool) {
        let role = if in_recovery { 2 } else { 1 };
        if self.config.role == NodeRole::Auto && self.role.swap(role, Ordering::Relaxed) != role {
            tracing::info!(node = %self.name, role = self.role().as_str(), "node has this role");
            self.tell();
        }
    }

    /// Whether the probe may ask anything.
    pub fn note_probe(&self, refused: bool) {
        self.refuses_probe.store(refused, Ordering::Relaxed);
    }

    /// No probe can tell its role, but a client's own login may.
    pub fn is_to_be_asked(&self) -> bool {
        self.is_up() && self.role() == Role::Unknown && self.refuses_probe.load(Ordering::Relaxed)
    }

    /// As far as can be known without a login, it serves.
    pub fn can_serve(&self) -> bool {
        self.is_up() && (self.role() != Role::Unknown || self.refuses_probe.load(Ordering::Relaxed))
    }

    pub fn note_timeline(&self, timeline: u32) {
        if self.timeline.swap(timeline, Ordering::Relaxed) != timeline {
            self.tell();
        }
    }

    pub fn timeline(&self) -> u32 {
        self.timeline.load(Ordering::Relaxed)
    }

    fn tell(&self) {
        self.version.raise();
        self.changes.send_modify(|count| *count += 1);
    }

    /// As [`Node::eject`], for a node that does not answer at all.
    pub fn eject_silent(&self, why: &str) {
        self.silent.store(true, Ordering::Relaxed);
        self.eject(why);
    }

    pub fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// Whether it has come back since this was last asked.
    pub fn take_return(&self) -> bool {
        self.returned.swap(false, Ordering::Relaxed)
    }

    /// Takes the node out of the rotation; the next good probe brings it back. Told each time, for those who have come to
    /// wait meanwhile.
    pub fn eject(&self, why: &str) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        *self.fault.lock() = Some(why.to_owned());
        *self.sample.lock() = Sample::default();
        if self.up.swap(false, Ordering::Relaxed) {
            tracing::warn!(node = %self.name, why, "node is down");
        }
        self.tell();
    }

    pub fn admit(&self, now: Instant) {
        *self.fault.lock() = None;
        self.silent.store(false, Ordering::Relaxed);
        if !self.up.swap(true, Ordering::Relaxed) {
            tracing::info!(node = %self.name, "node is up");
            self.returned_at.store(self.micros(now).max(1), Ordering::Relaxed);
            *self.latency.lock() = Peak::default();
            self.returned.store(true, Ordering::Relaxed);
            self.tell();
        }
    }

    fn micros(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_micros() as u64
    }

    /// How much of its weight counts, of [`WHOLE`]: its caches are cold when it comes back, so its share grows with the time
    /// since then, to all of it after `warming`.
    fn part(&self, now: Instant, warming: Duration) -> u32 {
        let returned = self.returned_at.load(Ordering::Relaxed);
        if returned == 0 || warming.is_zero() {
            return WHOLE;
        }
        let up = self.micros(now).saturating_sub(returned);
        let part = up.saturating_mul(u64::from(WHOLE)) / (warming.as_micros() as u64).max(1);
        part.clamp(1, u64::from(WHOLE)) as u32
    }

    /// When it has warmed up. `None`: it was never gone.
    pub fn warm_at(&self, warming: Duration) -> Option<Instant> {
        let returned = Some(self.returned_at.load(Ordering::Relaxed)).filter(|&at| at != 0)?;
        Some(self.epoch + Duration::from_micros(returned) + warming)
    }

    /// For the balancer: what its policy asks for.
    pub fn load(&self, now: Instant, warming: Duration, policy: LoadBalancing) -> Load {
        let latency = match policy {
            LoadBalancing::Latency => self.latency.lock().at(now),
            LoadBalancing::Weighted | LoadBalancing::LeastBusy => Duration::ZERO,
        };
        let outstanding = self.outstanding.load(Ordering::Relaxed);
        Load { part: self.part(now, warming), outstanding, latency }
    }

    pub fn fault(&self) -> Option<String> {
        self.fault.lock().clone()
    }

    /// What a probe has shown; it is `lag` behind. Where less is known now than before, less is known.
    pub fn note_sample(&self, sample: Sample, lag: Option<Duration>) {
        *self.sample.lock() = sample;
        if sample.proven {
            self.astray.store(false, Ordering::Relaxed);
        }
        self.lag.store(lag.map_or(u64::MAX, |lag| lag.as_micros() as u64), Ordering::Relaxed);
        self.version.raise();
    }

    /// A probe was answered in that time.
    pub fn note_answered(&self, took: Duration) {
        self.probe.store(took.as_micros() as u64, Ordering::Relaxed);
    }

    /// The time in which the last probe that was answered was.
    pub fn probe(&self) -> Option<Duration> {
        Some(self.probe.load(Ordering::Relaxed)).filter(|&took| took != u64::MAX).map(Duration::from_micros)
    }

    /// The primary had written no more than up to `written` when it was `asked`. Who had replayed more before is on a history
    /// that the primary has left, until it says that it is on the primary's.
    pub fn note_written(&self, asked: Instant, written: Lsn) {
        let sample = self.sample();
        let before = sample.asked.is_some_and(|at| at < asked);
        if before && !sample.proven && sample.position > written && !self.astray.swap(true, Ordering::Relaxed) {
            self.version.raise();
            tracing::warn!(node = %self.name, "the replica is on a history that the primary is not on: nothing is read there");
        }
    }

    pub fn is_astray(&self) -> bool {
        self.astray.load(Ordering::Relaxed)
    }

    pub fn sample(&self) -> Sample {
        *self.sample.lock()
    }

    /// What it had replayed, or written, when it was last asked.
    pub fn position(&self) -> Option<Lsn> {
        let sample = self.sample();
        sample.asked.map(|_| sample.position)
    }

    /// A request is under way on it.
    pub fn begin_turn(&self) {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
    }

    /// It has ended; `took`: well, between these times.
    pub fn end_turn(&self, took: Option<(Instant, Instant)>) {
        self.outstanding.fetch_sub(1, Ordering::Relaxed);
        if let Some((began, ended)) = took {
            self.latency.lock().note(ended, ended.saturating_duration_since(began));
        }
    }

    pub fn lag(&self) -> Option<Duration> {
        Some(self.lag.load(Ordering::Relaxed)).filter(|&l| l != u64::MAX).map(Duration::from_micros)
    }
}
