//! pgweir: a PostgreSQL proxy that runs beside an application. (The architecture text comes with its rooms.)
#![forbid(unsafe_code)]

// L0 values
pub mod config;
pub mod error;
pub mod sql;
pub mod wire;

// L1 decisions
pub mod auth;
pub mod stats;
pub mod route;
pub mod session;

// L2 sockets
pub mod net;

// L3 servers
pub mod backend;
pub mod cluster;
pub mod pool;
