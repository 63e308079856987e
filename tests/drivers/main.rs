//! What people connect with: drivers of several languages, and Postgres's own tools. Each does the same through pgweir as
//! at Postgres itself, in session mode and in transaction mode on two connections that others use as well.

#[path = "../support/mod.rs"]
mod support;

mod interleaved;
mod rust;
mod scripts;
mod tools;

use pgweir::demo::sample;
use support::{Builder, Pgweir};

/// The application's URL at the primary itself.
fn direct() -> String {
    direct_to(sample::DATABASE)
}

fn direct_to(database: &str) -> String {
    let port = support::cluster().primary().port();
    format!("postgresql://{}:{}@127.0.0.1:{port}/{database}", sample::USER, sample::PASSWORD)
}

fn builder() -> Builder {
    Pgweir::builder().cluster(support::cluster(), &[1, 2])
}

/// A server connection for each client, as many as any of these tests wants at once.
fn session_mode() -> Pgweir {
    builder().set("pool.mode", "session").set("pool.max", 40).start()
}

/// Two connections on each node.
fn transaction_mode() -> Pgweir {
    builder().set("pool.mode", "transaction").set("pool.max", 2).start()
}
