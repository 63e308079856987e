//! A virtual user: logs in, and takes turns until it is told to stop.
//!
//! The loop is closed: a user sends nothing before its last turn is answered, and thinks in between. So a slow server
//! is asked less often, as by people; latencies are those of turns that were sent, and a throughput that the server
//! cannot hold shows as longer turns, never as a queue that only the load knows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Buf;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::record::Totals;
use super::script::Script;
use super::target::Target;
use crate::backend::connect::ConnectFailure;
use crate::backend::connection::{BackendError, Connection, ServerError};
use crate::error::sqlstate;
use crate::random::Random;
use crate::wire::tag::{backend, frontend};
use crate::wire::{scan, write};

/// A user whose connection failed comes back no sooner.
const COME_BACK: Duration = Duration::from_millis(100);
/// How long the server may take to close after Terminate.
const GOODBYE: Duration = Duration::from_secs(1);
/// Logins under way at a time, of one thread: more would overflow the server's queue of connections.
const LOGINS: usize = 64;
/// Room for a read.
const ROOM: usize = 4096;
/// What counts as the SQLSTATE of a turn that the end of the load cut off.
pub const UNFINISHED: &str = "unfinished";

/// What the users of one thread share.
#[derive(Debug)]
pub struct Crew {
    target: Target,
    script: Arc<Script>,
    think: Duration,
    logins: Semaphore,
    totals: Mutex<Totals>,
}

/// What a user is told once: to stop. The sender is dropped for that.
pub type Stop = oneshot::Receiver<()>;

/// Why a turn failed.
#[derive(Debug)]
enum Failure {
    /// The connection is usable still.
    Statement(ServerError),
    Connection(BackendError),
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Failure {
        match error {
            BackendError::Server(error) if !error.fatal => Failure::Statement(error),
            error => Failure::Connection(error),
        }
    }
}

impl Crew {
    pub fn new(target: Target, script: Arc<Script>, think: Duration) -> Crew {
        Crew { target, script, think, logins: Semaphore::new(LOGINS), totals: Mutex::default() }
    }

    /// What was counted since the last call.
    pub fn take(&self) -> Totals {
        std::mem::take(&mut self.totals.lock())
    }

    /// The same, and it stays.
    pub fn add_to(&self, sum: &mut Totals) {
        sum.add(&self.totals.lock());
    }

    fn login_failed(&self, failure: &ConnectFailure) {
        let code = match failure {
            ConnectFailure::Backend(BackendError::Server(error)) => &error.code,
            ConnectFailure::Login(_) => sqlstate::INVALID_AUTHORIZATION,
            _ => sqlstate::CANNOT_CONNECT,
        };
        self.totals.lock().failed(code, &format!("login: {failure}"), None);
    }

    async fn log_in(&self) -> Result<Box<Connection>, ConnectFailure> {
        // It is never closed.
        let _turn = self.logins.acquire().await;
        self.target.connect().await.map(Box::new)
    }
}

/// A turn under way; one that is dropped unfinished was cut off.
struct Turn<'a> {
    crew: &'a Crew,
    began: Option<Instant>,
}

impl<'a> Turn<'a> {
    fn begin(crew: &'a Crew) -> Turn<'a> {
        Turn { crew, began: Some(Instant::now()) }
    }

    /// Counts it; whether the connection is usable.
    fn end(mut self, outcome: Result<u64, Failure>) -> bool {
        let time = self.began.take().map(|began| began.elapsed());
        let mut totals = self.crew.totals.lock();
        match outcome {
            Ok(statements) => totals.finished(time.unwrap_or_default(), statements),
            Err(Failure::Statement(error)) => totals.failed(&error.code, &error.message, time),
            Err(Failure::Connection(BackendError::Server(error))) => {
                totals.failed(&error.code, &error.message, time);
                return false;
            }
            Err(Failure::Connection(error)) => {
                totals.failed(sqlstate::CONNECTION_FAILURE, &error.to_string(), time);
                return false;
            }
        }
        true
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(began) = self.began {
            self.crew.totals.lock().failed(UNFINISHED, "the load ended before the turn did", Some(began.elapsed()));
        }
    }
}

/// Takes turns until told to stop, with a turn under way finished; `_alive` is dropped at the end.
pub async fn run(crew: Arc<Crew>, mut stop: Stop, seed: u64, _alive: mpsc::Sender<()>) {
    let mut random = Random::new(seed);
    loop {
        let connected = tokio::select! {
            _ = &mut stop => return,
            connected = crew.log_in() => connected,
        };
        match connected {
            Ok(mut connection) => {
                if take_turns(&crew, &mut connection, &mut stop, &mut random).await {
                    // One that is not waited for any longer is closed without a word.
                    let _ = tokio::time::timeout(GOODBYE, connection.terminate()).await;
                    return;
                }
            }
            Err(failure) => crew.login_failed(&failure),
        }
        if pause(&mut stop, crew.think.max(COME_BACK)).await {
            return;
        }
    }
}

/// True: told to stop. False: the connection is gone.
async fn take_turns(crew: &Crew, connection: &mut Connection, stop: &mut Stop, random: &mut Random) -> bool {
    let mut statements = Vec::new();
    loop {
        crew.script.turn(random, &mut statements);
        let turn = Turn::begin(crew);
        let outcome = send_all(connection, &statements).await;
        if !turn.end(outcome) {
            return false;
        }
        if pause(stop, crew.think).await {
            return true;
        }
    }
}

/// True: told to stop meanwhile.
async fn pause(stop: &mut Stop, time: Duration) -> bool {
    if time.is_zero() {
        return !matches!(stop.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    }
    tokio::time::timeout(time, stop).await.is_ok()
}

/// One turn: its statements, one after the other. After an error the rest is left out, and a transaction that it
/// leaves open is rolled back.
async fn send_all(connection: &mut Connection, statements: &[String]) -> Result<u64, Failure> {
    for sql in statements {
        let (status, error) = ask(connection, sql).await?;
        if let Some(error) = error {
            if status != b'I' {
                ask(connection, "ROLLBACK").await?;
            }
            return Err(Failure::Statement(error));
        }
    }
    Ok(statements.len() as u64)
}

/// Sends a Query and reads to its ReadyForQuery: its status, and the error on the way if there was one. Rows are
/// received and let go.
async fn ask(connection: &mut Connection, sql: &str) -> Result<(u8, Option<ServerError>), BackendError> {
    write::query(&mut connection.outbox, sql);
    connection.send().await?;
    let mut failed = None;
    loop {
        while let Some((head, body)) = scan::frame(&connection.inbox)? {
            match head.tag {
                backend::ERROR => {
                    let error = ServerError::read(body)?;
                    if error.fatal {
                        return Err(BackendError::Server(error));
                    }
                    failed = Some(error);
                }
                backend::READY => {
                    let status = body.first().copied().unwrap_or(b'I');
                    connection.inbox.advance(head.total);
                    return Ok((status, failed));
                }
                // There are no data to send: the server is told so, and answers with an error.
                backend::COPY_IN => write::frame(&mut connection.outbox, frontend::COPY_FAIL, |out| {
                    out.extend_from_slice(b"a load has no data to copy\0");
                }),
                _ => {}
            }
            connection.inbox.advance(head.total);
        }
        if !connection.outbox.is_empty() {
            connection.send().await?;
        }
        let inbox = &mut connection.inbox;
        if inbox.capacity() - inbox.len() < ROOM / 4 {
            inbox.reserve(ROOM);
        }
        if connection.stream.read_buf(&mut connection.inbox).await? == 0 {
            return Err(BackendError::Closed);
        }
    }
}
