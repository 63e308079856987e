//! tokio-postgres for tests that are not async themselves.

use std::future::Future;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle};
use tokio_postgres::{Client, NoTls};

/// One thread that drives the connections of all tests.
fn runtime() -> &'static Handle {
    static RUNTIME: OnceLock<Handle> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        handle
    })
}

pub fn wait<T>(future: impl Future<Output = T>) -> T {
    runtime().block_on(future)
}

/// Runs it beside the test.
pub fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
    runtime().spawn(future)
}

/// A logged-in client; its connection ends when it is dropped.
pub fn connect(url: &str) -> Client {
    let (client, connection) = wait(tokio_postgres::connect(url, NoTls)).unwrap();
    // Servers that go away are what some tests are about; the client's calls tell.
    spawn(async { drop(connection.await) });
    client
}
