//! The faces for people and their tools: the admin console, the HTTP endpoints, metrics, the dashboard.
//!
//! It knows the rest of the program only through [`Sources`]: closures that hand out plain rows and take commands.

pub mod columns;
pub mod command;
pub mod console;
pub mod documents;
pub mod history;
pub mod http;
pub mod metrics;
pub mod rows;
mod show;
mod show_own;

#[cfg(test)]
mod fixture;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::config;
use crate::stats::Stats;
use command::{Command, CommandError};
use documents::StatsDocument;
use history::History;
use rows::{CacheRow, ConfigRow, DatabaseRow, DefinitionsRow, Lists, NodeRow, PoolRow, SocketRow, State, UserRow};

/// Hands out rows, as they are at the moment of asking.
pub type Source<T> = Box<dyn Fn() -> T + Send + Sync>;

/// What a command comes to: its CommandComplete tag.
pub type CommandResult = Pin<Box<dyn Future<Output = Result<String, CommandError>> + Send>>;

/// Lines about a statement.
pub type ExplainRoute = Box<dyn Fn(&str) -> Result<Vec<String>, CommandError> + Send + Sync>;

/// Where rows come from and commands go to.
pub struct Sources {
    pub pools: Source<Vec<PoolRow>>,
    pub clients: Source<Vec<SocketRow>>,
    pub servers: Source<Vec<SocketRow>>,
    pub databases: Source<Vec<DatabaseRow>>,
    pub nodes: Source<Vec<NodeRow>>,
    pub users: Source<Vec<UserRow>>,
    pub lists: Source<Lists>,
    pub definitions: Source<Vec<DefinitionsRow>>,
    pub cache: Source<Vec<CacheRow>>,
    /// Database, reason, how many batches.
    pub routed: Source<Vec<(String, &'static str, u64)>>,
    pub config: Source<Vec<ConfigRow>>,
    pub state: Source<State>,
    /// Listening, and some node can serve each database; else the reason.
    pub ready: Source<Result<(), String>>,
    /// Lines that explain where a statement would run and why.
    pub explain_route: ExplainRoute,
    /// Commands may take long (PAUSE waits for transactions to end), hence the future.
    pub command: Box<dyn Fn(Command) -> CommandResult + Send + Sync>,
}

impl Sources {
    /// No rows, never ready, every command "not built yet": to be overlaid piece by piece.
    pub fn none() -> Sources {
        Sources {
            pools: Box::new(Vec::new),
            clients: Box::new(Vec::new),
            servers: Box::new(Vec::new),
            databases: Box::new(Vec::new),
            nodes: Box::new(Vec::new),
            users: Box::new(Vec::new),
            lists: Box::new(Lists::default),
            definitions: Box::new(Vec::new),
            cache: Box::new(Vec::new),
            routed: Box::new(Vec::new),
            config: Box::new(Vec::new),
            state: Box::new(State::default),
            ready: Box::new(|| Err("starting".into())),
            explain_route: Box::new(|_| Err(CommandError::not_built("EXPLAIN ROUTE"))),
            command: Box::new(|command| Box::pin(std::future::ready(Err(CommandError::not_built(command.name()))))),
        }
    }
}

/// What all faces share.
pub struct Admin {
    stats: Arc<Stats>,
    sources: Sources,
    settings: ArcSwap<config::Admin>,
    history: History,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

impl Admin {
    pub fn new(stats: Arc<Stats>, sources: Sources, settings: config::Admin, now: Instant) -> Admin {
        let settings = ArcSwap::from_pointee(settings);
        Admin { stats, sources, settings, history: History::new(now) }
    }

    /// Takes over reloaded settings: the token, the users.
    pub fn reconfigure(&self, settings: config::Admin) {
        self.settings.store(Arc::new(settings));
    }

    /// May this user log in to the console?
    pub fn is_admin(&self, user: &str) -> bool {
        self.settings.load().users.iter().any(|name| name == user)
    }

    /// To be called each second: turns the averages' period and keeps the history.
    pub fn tick(&self, now: Instant) {
        self.stats.tick(now);
        self.history.tick(now, || StatsDocument::collect(self, now));
    }
}
