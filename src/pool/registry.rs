//! The pools of one database: made when first asked for, reaped while they live.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use dashmap::DashMap;

use crate::backend::connect::Login;
use crate::cluster::node::Node;
use crate::config;
use crate::net::tls::Connector;
use crate::pool::checkout::Pool;

/// The worker index of the control runtime, on which pools are reaped and warmed.
pub const CONTROL: usize = usize::MAX;

/// Until ADMIT, in effect.
const LONG: Duration = Duration::from_secs(365 * 24 * 3600);

#[derive(Debug)]
pub struct Pools {
    database: Arc<str>,
    tls: Connector,
    config: ArcSwap<config::Pool>,
    /// Of `config`, for each Parse and Bind to see.
    forwards_unnamed: AtomicBool,
    control: tokio::runtime::Handle,
    ids: Arc<AtomicU64>,
    workers: usize,
    pools: DashMap<(Arc<str>, u16), Arc<Pool>>,
    /// Pools that are made now begin with a pause.
    paused: AtomicBool,
}

impl Pools {
    pub fn new(
        database: Arc<str>,
        tls: Connector,
        config: Arc<config::Pool>,
        control: tokio::runtime::Handle,
        ids: Arc<AtomicU64>,
        workers: usize,
    ) -> Pools {
        Pools {
            database,
            tls,
            forwards_unnamed: AtomicBool::new(forwards_unnamed(&config)),
            config: ArcSwap::new(config),
            control,
            ids,
            workers,
            pools: DashMap::new(),
            paused: AtomicBool::new(false),
        }
    }

    pub fn config(&self) -> Arc<config::Pool> {
        self.config.load_full()
    }

    /// Unnamed statements are the server's, too.
    pub fn forwards_unnamed(&self) -> bool {
        self.forwards_unnamed.load(Ordering::Relaxed)
    }

    /// The pool of a login on a node.
    pub fn pool(&self, login: &Login, node: &Arc<Node>) -> Arc<Pool> {
        let key = (login.user.clone(), node.index);
        if let Some(pool) = self.pools.get(&key) {
            return pool.clone();
        }
        let make = || {
            let (database, login, node) = (self.database.clone(), login.clone(), node.clone());
            let (tls, config, ids) = (self.tls.clone(), self.config.load_full(), self.ids.clone());
            let pool = Arc::new(Pool::new(database, login, node, tls, config, ids, self.workers));
            if self.paused.load(Ordering::Acquire) {
                pool.pause();
            }
            self.control.spawn(reap(Arc::downgrade(&pool)));
            pool
        };
        self.pools.entry(key).or_insert_with(make).clone()
    }

    pub fn all(&self) -> Vec<Arc<Pool>> {
        self.pools.iter().map(|entry| entry.value().clone()).collect()
    }

    /// Those there are, and those to come until [`Pools::resume`].
    pub fn pause(&self) {
        self.paused.store(true, Ordering::Release);
        self.all().iter().for_each(Pool::pause);
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    pub fn resume(&self) {
        self.paused.store(false, Ordering::Release);
        self.all().iter().for_each(|pool| pool.resume(CONTROL));
    }

    /// Leaves the database to a statement that wants it to itself: until then, or [`Pools::occupy`].
    pub fn vacate(&self, until: Instant) {
        let _entered = self.control.enter();
        self.all().iter().for_each(|pool| pool.vacate(until, CONTROL));
    }

    pub fn occupy(&self) {
        let _entered = self.control.enter();
        self.all().iter().for_each(|pool| pool.occupy(CONTROL));
    }

    /// A node is out of use, or in use again: no more connections are kept there than are needed.
    pub fn use_node(&self, node: u16, used: bool) {
        let _entered = self.control.enter();
        for pool in self.all().iter().filter(|pool| pool.node.index == node) {
            match used {
                true => pool.occupy(CONTROL),
                false => pool.vacate(Instant::now() + LONG, CONTROL),
            }
        }
    }

    /// Takes reloaded settings. Of a user that is none any more, no connection is kept but those in use.
    pub fn reconfigure(&self, config: Arc<config::Pool>, is_user: impl Fn(&str) -> bool) {
        self.forwards_unnamed.store(forwards_unnamed(&config), Ordering::Relaxed);
        self.config.store(config.clone());
        let deserted = Arc::new(config::Pool { min: 0, ..(*config).clone() });
        let _entered = self.control.enter();
        for pool in self.all() {
            let config = if is_user(&pool.login.user) { &config } else { &deserted };
            pool.reconfigure(config.clone(), CONTROL);
        }
    }

    pub fn shut(&self) {
        let _entered = self.control.enter();
        self.all().iter().for_each(Pool::shut);
    }
}

fn forwards_unnamed(config: &config::Pool) -> bool {
    config.unnamed_statements == config::UnnamedStatements::Forward
}

/// The first round warms the pool to `min`; the next follow each `reap_interval` and each reload, until the pool is gone.
async fn reap(pool: Weak<Pool>) {
    while let Some(pool) = pool.upgrade() {
        pool.reap(CONTROL);
        let (interval, reconfigured) = (pool.config.load().reap_interval, pool.reconfigured.clone());
        drop(pool);
        // Reloaded or not: the next round is due.
        let _ = tokio::time::timeout(interval, reconfigured.notified()).await;
    }
}
