//! Connections to servers: made, used for pgweir's own statements, reset, cancelled.

pub mod cancel;
pub mod connect;
pub mod connection;
pub mod reset;
