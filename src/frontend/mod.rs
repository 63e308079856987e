//! Clients: accepted, logged in, served.

pub mod batch;
pub mod client;
pub mod console;
pub mod database;
pub mod effects;
pub mod io;
pub mod login;
pub mod peers;
pub mod proxy;
pub mod record;
pub mod replies;
pub mod requests;
pub mod serve;
pub mod session;
