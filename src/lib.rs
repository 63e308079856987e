//! pgweir: a PostgreSQL proxy that runs beside an application.
//!
//! # The way of a query
//!
//! A client's socket is accepted on the control runtime ([`app`]) and dealt to a worker thread ([`workers`]), where it stays.
//! [`frontend::login`] takes it through TLS and authentication ([`auth`], [`net`]) and makes a
//! [`frontend::session::Session`] of it. From there the loop of [`frontend::serve`] is five steps:
//!
//! 1. [`frontend::batch`] looks at the client's messages up to a Query, Sync or Flush. Each text is looked up in
//!    [`route::plan`], which knows its facts (from [`sql`]), its fingerprint and its statistics record.
//! 2. [`route::plan`] has the names judged by the [`catalog`]'s snapshot, along the session's search_path;
//!    [`route::decide`] says primary or any replica, with the reason; [`cluster`] names the node, by weight, health and
//!    freshness.
//! 3. [`pool::checkout`] leases a connection to it: an idle one, or the next in turn.
//! 4. [`frontend::requests`] passes the messages on. Names of prepared statements are replaced by names that servers know
//!    ([`session::prepared`]); settings that differ from what the connection has are said first
//!    ([`session::parameters`]). Each message leaves an entry in the [`session::pipeline`]: what the client is owed for it.
//! 5. [`frontend::replies`] passes the server's frames back as raw runs. What pgweir asked itself is left out, what it answers
//!    itself is put in where its turn is. At rest, outside any transaction and with nothing that pins the session,
//!    the lease goes back.
//!
//! Of a session that has been idle for two seconds and has nothing open, only its [`frontend::rest::Rest`] stays.
//!
//! What clients LISTEN for comes over one connection per database ([`notify`]), not over the leases: a client that listens
//! is not bound to a connection.
//!
//! # The layers
//!
//! A module imports only from layers below it, or from lines above it in its own layer; `tests/layers.rs` holds that.
//! L0 and L1 are pure: no sockets, no tokio, time and randomness are arguments. There is no global state: each part is
//! handed its settings when it is built.
//!
//! # What holds it together
//!
//! - **Right answers first.** A statement that cannot be classified runs on the primary; a connection whose state may have
//!   changed out of sight is reset before the next client has it; one that is not at rest is closed.
//! - **Everything finds its way back.** A [`pool::lease::Lease`] checks its connection in on every path, panics included. A client
//!   that leaves the [`session::pipeline`] unfinished never has a Sync said for it, which would commit.
//! - **What a name means, the database says.** [`cluster::catalog`] reads its definitions and watches them for changes; while
//!   there is no snapshot, or it is older than a change seen here, what names an object goes to the primary.
//! - **Probes and admin work never run on a worker.** They live on the control runtime.
#![forbid(unsafe_code)]

// L0 values
pub mod error;
pub mod random;
pub mod config;
pub mod wire;
pub mod sql;

// L1 decisions
pub mod auth;
pub mod freshness;
pub mod stats;
pub mod catalog;
pub mod route;
pub mod session;
pub mod cache;

// L2 sockets
pub mod net;

// L3 servers
pub mod backend;
pub mod cluster;
pub mod pool;
pub mod notify;
pub mod shared;

// L4 clients
pub mod admin;
pub mod frontend;

// L5 the program
pub mod workers;
pub mod app;
pub mod logging;
pub mod check;
pub mod explain;
pub mod health;
pub mod cli;
pub mod demo;
pub mod load;
