//! What a client can tell: that it shares connections, and that somebody stands between it and Postgres.

#[path = "../support/mod.rs"]
mod support;

mod connection;
mod lazy;
mod pins;
mod state;
mod transactions;
