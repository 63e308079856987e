//! Clients: accepted, logged in, served.

pub mod admission;
pub mod batch;
pub mod client;
pub mod console;
pub mod database;
pub mod directory;
pub mod effects;
pub mod failover;
pub mod io;
pub mod login;
pub mod names;
pub mod notifications;
pub mod nudge;
pub mod peers;
pub mod proxy;
pub mod record;
pub mod refusal;
pub mod replies;
pub mod replication;
pub mod requests;
pub mod sequences;
pub mod serve;
pub mod session;
pub mod sight;
pub mod statements;
pub mod survey;
