//! tokio-postgres clients, for tests that need one session over many statements or many sessions at once.

use std::future::Future;
use std::time::Instant;

use super::{LIMIT, POLL};
use tokio_postgres::{Client, Error, NoTls, SimpleQueryMessage};

/// Runs a test's asynchronous part, on this thread alone.
pub fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// A session, whose connection is served in the background until the client is dropped.
pub async fn connect(url: &str) -> Client {
    try_connect(url).await.unwrap_or_else(|error| panic!("{url}: {error:?}"))
}

pub async fn try_connect(url: &str) -> Result<Client, Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(async move {
        // Its end is seen by the client's next request.
        let _ = connection.await;
    });
    Ok(client)
}

/// The first column of the rows of a simple Query, NULL as an empty text.
pub async fn column(client: &Client, sql: &str) -> Result<Vec<String>, Error> {
    let messages = client.simple_query(sql).await?;
    let first = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    };
    Ok(messages.into_iter().filter_map(first).collect())
}

/// The first column of the one row of a simple Query that must succeed.
pub async fn value(client: &Client, sql: &str) -> String {
    let rows = column(client, sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    assert_eq!(rows.len(), 1, "{sql}");
    rows.into_iter().next().unwrap()
}

/// The SQLSTATE of an error that a server or pgweir sent.
pub fn sqlstate(error: &Error) -> &str {
    error.code().map_or("(none)", |code| code.code())
}

/// Polls until the condition holds, and lets other tasks run meanwhile.
pub async fn wait_for(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}
