//! pgweir: a PostgreSQL proxy that runs beside an application. (The architecture text comes with its rooms.)
#![forbid(unsafe_code)]

// L0 values
pub mod config;
pub mod sql;

// L1 decisions
pub mod route;

// L3 servers
pub mod pool;
