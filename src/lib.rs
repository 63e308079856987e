//! pgweir: a PostgreSQL proxy that runs beside an application. (The architecture text comes with its rooms.)
#![forbid(unsafe_code)]

// L0 values
pub mod config;
pub mod error;
pub mod sql;
pub mod wire;

// L5 the executable
pub mod demo;
