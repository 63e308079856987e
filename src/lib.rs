//! pgweir: a PostgreSQL proxy that runs beside an application. (The architecture text comes with its rooms.)
#![forbid(unsafe_code)]

// L0 values
pub mod error;
pub mod config;
pub mod wire;
pub mod sql;

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

// L4 clients
pub mod admin;
pub mod frontend;

// L5 the program
pub mod workers;
pub mod app;
pub mod logging;
pub mod check;
pub mod health;
pub mod cli;
pub mod demo;
