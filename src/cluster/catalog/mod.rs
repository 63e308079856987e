//! Reading a database's definitions, and noticing when they change: at once where a change passes through this pgweir,
//! else by a check at each `probe_interval`, and sooner where someone waits for it.
//!
//! The check costs a microsecond while nothing at all is committed, else a pass over the catalogs' rows of users'
//! objects; where that takes long, it is made less often.

mod query;
mod rows;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::backend::connect;
use crate::backend::connection::{Connection, Row};
use crate::catalog::{Catalog, Size};
use crate::cluster::node::Node;
use crate::cluster::probe::Prober;
use crate::cluster::{Cluster, stay_away};

/// Of the time between two checks, the checks themselves take this part at most, however many wait for the next.
const CHECK_SHARE: u32 = 50;
/// The same where results are kept that rely on them, for a check that nobody waits for.
const RELIED_SHARE: u32 = 10;
/// What a check costs without doubt.
const QUICK: Duration = Duration::from_millis(10);
/// Between two checks a change of definitions goes unseen for so long at least.
const INTERVAL: Duration = Duration::from_secs(1);
/// For reading everything.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// What the reading of definitions has cost.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Snapshots read since the start.
    pub refreshes: u64,
    pub failures: u64,
    /// Of the last snapshot.
    pub duration: Duration,
    pub size: Size,
    /// When the snapshot was last known to hold; `None`: there is none.
    pub verified: Option<Instant>,
    /// Why the last attempt failed.
    pub fault: Option<String>,
}

/// The definitions of one database, as far as they are known.
#[derive(Debug, Default)]
pub struct Definitions {
    current: ArcSwapOption<Catalog>,
    /// Changes seen by this pgweir.
    changed: AtomicU64,
    /// Those of them that the snapshot has.
    covered: AtomicU64,
    /// Moves whenever [`Definitions::snapshot`] may answer otherwise.
    version: AtomicU64,
    attempted: AtomicBool,
    /// Results are kept by them.
    relied: AtomicBool,
    wake: Notify,
    urged: Notify,
    figures: Mutex<Figures>,
}

impl Definitions {
    /// The snapshot; `None`: there is none, or a change is known that it may lack.
    pub fn snapshot(&self) -> Option<Arc<Catalog>> {
        let outdated = self.covered.load(Ordering::Acquire) < self.changed.load(Ordering::Acquire);
        if outdated { None } else { self.current.load_full() }
    }

    /// The last snapshot, whether or not a change is known that it may lack.
    pub fn latest(&self) -> Option<Arc<Catalog>> {
        self.current.load_full()
    }

    /// Equal numbers: the same snapshot.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Definitions have changed, or may have.
    pub fn outdate(&self) {
        self.changed.fetch_add(1, Ordering::AcqRel);
        self.version.fetch_add(1, Ordering::AcqRel);
        self.wake.notify_one();
    }

    /// Someone waits for the next look.
    pub fn urge(&self) {
        self.urged.notify_one();
    }

    /// The snapshot holds all that was defined by then. Whoever has read [`Definitions::version`] before may have an older one.
    pub fn have_all_by(&self, by: Instant) -> bool {
        self.verified().is_some_and(|verified| verified > by)
    }

    /// Results are kept by them from now on.
    pub fn rely(&self) {
        self.relied.store(true, Ordering::Relaxed);
    }

    /// When the snapshot was last known to hold; `None`: there is none.
    pub fn verified(&self) -> Option<Instant> {
        self.figures.lock().verified
    }

    /// They have been read once, or could not be.
    pub fn is_attempted(&self) -> bool {
        self.attempted.load(Ordering::Relaxed)
    }

    /// Nobody can read them.
    pub fn give_up(&self) {
        self.attempted.store(true, Ordering::Relaxed);
    }

    pub fn figures(&self) -> Figures {
        self.figures.lock().clone()
    }

    /// The snapshot holds all changes up to this one.
    fn verify(&self, changed: u64, now: Instant) {
        self.figures.lock().verified = Some(now);
        if self.covered.swap(changed, Ordering::AcqRel) != changed {
            self.version.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn publish(&self, catalog: Catalog, changed: u64, took: Duration, now: Instant) {
        {
            let mut figures = self.figures.lock();
            figures.refreshes += 1;
            (figures.duration, figures.size) = (took, catalog.size);
        }
        self.current.store(Some(Arc::new(catalog)));
        // Whoever takes it for verified sees that it is another.
        self.version.fetch_add(1, Ordering::AcqRel);
        self.verify(changed, now);
    }

    fn note_outcome(&self, database: &str, outcome: Result<(), String>) {
        let mut figures = self.figures.lock();
        let fault = outcome.err();
        if let Some(why) = fault.as_ref() {
            figures.failures += 1;
            if figures.fault != fault {
                tracing::warn!(database, why, "the definitions cannot be read");
            }
        }
        figures.fault = fault;
        drop(figures);
        self.give_up();
    }
}

/// How long a snapshot may be relied on that has not been verified since: two checks, where they come in time.
pub fn longest_unverified(probe_interval: Duration) -> Duration {
    probe_interval.max(INTERVAL) * 2
}

/// Reads the definitions of a cluster's database once.
///
/// # Errors
/// No node can be asked, or its answer not be understood.
pub async fn read_once(cluster: &Cluster, prober: Prober) -> Result<(), String> {
    Reader::new(prober).round(cluster).await
}

/// Keeps the definitions of a cluster's database until it is gone.
pub async fn follow(cluster: Weak<Cluster>, prober: Prober) {
    let mut reader = Reader::new(prober);
    let Some(mut vacancies) = cluster.upgrade().map(|cluster| cluster.vacancies()) else { return };
    while let Some(found) = cluster.upgrade() {
        let outcome = reader.round(&found).await;
        if outcome.is_err() {
            reader.forget();
        }
        found.definitions.note_outcome(&found.database, outcome);
        let share = reader.check * CHECK_SHARE;
        let unasked = if found.definitions.relied.load(Ordering::Relaxed) { RELIED_SHARE } else { CHECK_SHARE };
        let pause = found.routing.probe_interval.max(reader.check * unasked);
        let soonest = tokio::time::Instant::now() + share;
        let urged = async |definitions: &Definitions| {
            definitions.urged.notified().await;
            tokio::time::sleep_until(soonest).await;
        };
        let definitions = found.definitions.clone();
        drop(found);
        tokio::select! {
            () = definitions.wake.notified() => {}
            () = tokio::time::sleep(pause) => {}
            () = urged(&definitions) => {}
            _ = vacancies.changed() => {
                reader.forget();
                stay_away(&mut vacancies).await;
            }
        }
    }
}

/// A connection on which the server's own search_path shows, or not.
struct Open {
    node: u16,
    connection: Connection,
    server_path: bool,
    version: u32,
}

struct Reader {
    prober: Prober,
    connection: Option<Open>,
    /// The answers behind the snapshot, on this connection.
    moment: Option<Row>,
    digest: Option<Row>,
    generation: u64,
    /// How long the last check took.
    check: Duration,
}

impl Reader {
    fn new(prober: Prober) -> Reader {
        Reader { prober, connection: None, moment: None, digest: None, generation: 0, check: Duration::ZERO }
    }

    fn forget(&mut self) {
        (self.connection, self.moment, self.digest) = (None, None, None);
    }

    /// Checks, and reads everything anew if anything is new.
    async fn round(&mut self, cluster: &Cluster) -> Result<(), String> {
        let definitions = &cluster.definitions;
        let known = definitions.current.load().is_some();
        let changed = definitions.changed.load(Ordering::Acquire);
        let Some(is_primary) = self.reach(cluster, known).await? else { return Ok(()) };
        let covers = if is_primary { changed } else { 0 };
        let (asked, timeout) = (Instant::now(), self.prober.timeout);
        let moment = self.ask(query::MOMENT, timeout).await?.pop();
        if known && moment.is_some() && self.moment == moment {
            definitions.verify(covers, asked);
            return Ok(());
        }
        let began = Instant::now();
        let digest = self.ask(query::DIGEST, READ_TIMEOUT).await?.pop();
        // One that has waited for a lock says nothing of the next.
        self.check = began.elapsed().min(self.check * 2 + QUICK);
        // its search_path may be another, which no digest tells
        let reloaded = query::loaded(self.moment.as_ref()) != query::loaded(moment.as_ref());
        if known && !reloaded && digest.is_some() && self.digest == digest {
            self.moment = moment;
            definitions.verify(covers, asked);
            return Ok(());
        }
        let mut catalog = self.read().await?;
        // From before it was read: a change in between shows at the next check.
        catalog.digest = digest.as_ref().map(|row| row.iter().flatten().cloned().collect::<Vec<_>>().join(" ").into());
        definitions.publish(catalog, covers, began.elapsed(), asked);
        (self.moment, self.digest) = (moment, digest);
        Ok(())
    }

    /// Connects to the primary, or where it does not answer to another node, if that can add to what is known: a standby
    /// may be behind it. Whether it is the primary; `None`: nobody is to be asked.
    async fn reach(&mut self, cluster: &Cluster, known: bool) -> Result<Option<bool>, String> {
        let mut failed = None;
        let nodes: Vec<_> = cluster.by_preference().filter(|node| node.is_up()).cloned().collect();
        for node in nodes {
            let is_primary = cluster.primary().is_some_and(|primary| primary.index == node.index);
            if known && !is_primary {
                break;
            }
            match self.connect(&node).await {
                Ok(()) => return Ok(Some(is_primary)),
                Err(why) => failed = Some(why),
            }
        }
        match failed {
            Some(why) => Err(why),
            None if known => Ok(None),
            None => Err("no node is up".to_owned()),
        }
    }

    async fn read(&mut self) -> Result<Catalog, String> {
        let open = self.connection.as_ref().ok_or("not connected")?;
        let sql = query::everything(open.version, open.server_path);
        let rows = self.ask(&sql, READ_TIMEOUT).await?;
        self.generation += 1;
        let generation = self.generation;
        // bodies of functions are parsed: not on the runtime that probes
        let made = tokio::task::spawn_blocking(move || {
            let bytes = rows::bytes(&rows);
            rows::parts(&rows).map(|parts| parts.finish(generation, bytes))
        });
        made.await
            .map_err(|error| error.to_string())?
            .ok_or_else(|| "the server's rows cannot be understood".to_owned())
    }

    async fn connect(&mut self, node: &Arc<Node>) -> Result<(), String> {
        if self.connection.as_ref().is_some_and(|open| open.node == node.index) {
            return Ok(());
        }
        self.forget();
        let Prober { login, tls, timeout, .. } = &self.prober;
        let timeout = *timeout;
        let connecting = connect::connect(&node.config, tls, login, timeout);
        let connection = match tokio::time::timeout(timeout * 2, connecting).await {
            Ok(Ok(made)) => made,
            Ok(Err(failure)) => {
                if failure.refusal().is_some() {
                    self.prober.pass();
                }
                return Err(failure.to_string());
            }
            Err(_) => return Err("timed out while connecting".to_owned()),
        };
        let version = connection.statuses.iter().find(|(name, _)| **name == *"server_version");
        let version = version.and_then(|(_, text)| text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
        let version = version.ok_or("the server does not say its version")?;
        self.connection = Some(Open { node: node.index, connection, server_path: false, version });
        let origin = self.ask(query::ORIGIN, timeout).await?;
        let origin = origin.first().and_then(|row| row.first()?.as_deref()).unwrap_or_default();
        let server_path = !matches!(origin, "database" | "user" | "database user" | "client" | "session" | "");
        self.ask(query::SETTLE, timeout).await?;
        if let Some(open) = &mut self.connection {
            open.server_path = server_path;
        }
        Ok(())
    }

    async fn ask(&mut self, sql: &str, timeout: Duration) -> Result<Vec<Row>, String> {
        let open = self.connection.as_mut().ok_or("not connected")?;
        match tokio::time::timeout(timeout, open.connection.query(sql)).await {
            Ok(rows) => rows.map_err(|error| error.to_string()),
            Err(_) => Err("timed out while reading the definitions".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_seen_voids_the_snapshot_until_it_is_read_again() {
        let definitions = Definitions::default();
        assert!(definitions.snapshot().is_none());
        let now = Instant::now();
        definitions.publish(Catalog::default(), 0, Duration::ZERO, now);
        let version = definitions.version();
        assert!(definitions.snapshot().is_some());
        definitions.outdate();
        assert!(definitions.snapshot().is_none() && definitions.version() != version);
        // begun before the second change
        definitions.outdate();
        definitions.verify(1, now);
        assert!(definitions.snapshot().is_none());
        let version = definitions.version();
        definitions.verify(2, now);
        assert!(definitions.snapshot().is_some() && definitions.version() != version);
    }
}
