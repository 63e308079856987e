//! pgweir: a PostgreSQL proxy that runs beside an application. (The architecture text comes with its rooms.)
#![forbid(unsafe_code)]

pub mod config;
pub mod sql;
pub mod stats;

pub mod admin;
