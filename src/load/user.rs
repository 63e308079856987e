//! A virtual user: logs in, and takes turns until it is told to stop.
//!
//! The loop is closed: a user sends nothing before its last turn is answered, and thinks in between. So a slow server
//! is asked less often, as by people; latencies are those of turns that were sent, and a throughput that the server
//! cannot hold shows as longer turns, never as a queue that only the load knows.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    present: AtomicUsize,
    tally: Mutex<Tally>,
}

/// What is counted: turns and logins that began in the window of the time, whenever they end.
#[derive(Debug)]
struct Tally {
    totals: Totals,
    /// Its number: what began in an earlier one is not counted any more.
    window: u64,
    /// What begins now is counted.
    open: bool,
    /// Turns of the window that have not ended.
    under_way: u64,
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
        let tally = Tally { totals: Totals::default(), window: 0, open: true, under_way: 0 };
        Crew {
            target,
            script,
            think,
            logins: Semaphore::new(LOGINS),
            present: AtomicUsize::new(0),
            tally: tally.into(),
        }
    }

    /// What was counted since the last call.
    pub fn take(&self) -> Totals {
        std::mem::take(&mut self.tally.lock().totals)
    }

    /// The same, and it stays.
    pub fn add_to(&self, sum: &mut Totals) {
        sum.add(&self.tally.lock().totals);
    }

    /// Begins a window: nothing counts that began before.
    pub fn open(&self) {
        let mut tally = self.tally.lock();
        *tally = Tally { totals: Totals::default(), window: tally.window + 1, open: true, under_way: 0 };
    }

    /// Ends it: what begins now is not counted; what began in it is, when it ends.
    pub fn close(&self) {
        self.tally.lock().open = false;
    }

    /// Turns of the window that have not ended.
    pub fn under_way(&self) -> u64 {
        self.tally.lock().under_way
    }

    /// Counts those as failed by now, `late` after the window's end.
    pub fn give_up(&self, late: Duration) {
        let mut tally = self.tally.lock();
        for _ in 0..std::mem::take(&mut tally.under_way) {
            tally.totals.failed(UNFINISHED, "the step ended long before the turn did", Some(late));
        }
        tally.window += 1;
    }

    /// Users that are not gone.
    pub fn present(&self) -> usize {
        self.present.load(Ordering::Relaxed)
    }

    /// The window in which what begins now is counted.
    fn window(&self) -> Option<u64> {
        let tally = self.tally.lock();
        tally.open.then_some(tally.window)
    }

    fn login_failed(&self, window: Option<u64>, failure: &ConnectFailure) {
        let code = match failure {
            ConnectFailure::Backend(BackendError::Server(error)) => &error.code,
            ConnectFailure::Login(_) => sqlstate::INVALID_AUTHORIZATION,
            _ => sqlstate::CANNOT_CONNECT,
        };
        let mut tally = self.tally.lock();
        if window == Some(tally.window) {
            tally.totals.failed(code, &format!("login: {failure}"), None);
        }
    }

    async fn log_in(&self) -> Result<Box<Connection>, ConnectFailure> {
        // It is never closed.
        let _turn = self.logins.acquire().await;
        self.target.connect().await.map(Box::new)
    }
}

impl Tally {
    /// The counts, if a turn of that window is among them.
    fn ended(&mut self, window: u64) -> Option<&mut Totals> {
        if window != self.window {
            return None;
        }
        self.under_way -= 1;
        Some(&mut self.totals)
    }
}

/// One user, as long as it is there.
pub struct Present {
    crew: Arc<Crew>,
    _alive: mpsc::Sender<()>,
}

impl Present {
    /// `alive` is dropped with the user.
    pub fn new(crew: Arc<Crew>, alive: mpsc::Sender<()>) -> Present {
        crew.present.fetch_add(1, Ordering::Relaxed);
        Present { crew, _alive: alive }
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.crew.present.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A turn under way; one that is dropped unfinished was cut off.
struct Turn<'a> {
    crew: &'a Crew,
    began: Instant,
    /// `None`: it is not counted, or was.
    window: Option<u64>,
}

impl<'a> Turn<'a> {
    fn begin(crew: &'a Crew) -> Turn<'a> {
        let mut tally = crew.tally.lock();
        tally.under_way += u64::from(tally.open);
        Turn { crew, began: Instant::now(), window: tally.open.then_some(tally.window) }
    }

    /// Counts it; whether the connection is usable.
    fn end(mut self, outcome: Result<u64, Failure>) -> bool {
        let usable = matches!(outcome, Ok(_) | Err(Failure::Statement(_)));
        let (window, time) = (self.window.take(), self.began.elapsed());
        let mut tally = self.crew.tally.lock();
        let Some(totals) = window.and_then(|window| tally.ended(window)) else { return usable };
        match outcome {
            Ok(statements) => totals.finished(time, statements),
            Err(Failure::Statement(error) | Failure::Connection(BackendError::Server(error))) => {
                totals.failed(&error.code, &error.message, Some(time));
            }
            Err(Failure::Connection(error)) => {
                totals.failed(sqlstate::CONNECTION_FAILURE, &error.to_string(), Some(time));
            }
        }
        usable
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut tally = self.crew.tally.lock();
        if let Some(totals) = self.window.and_then(|window| tally.ended(window)) {
            totals.failed(UNFINISHED, "the load ended before the turn did", Some(self.began.elapsed()));
        }
    }
}

/// Takes turns until told to stop, with a turn under way finished.
pub async fn run(present: Present, mut stop: Stop, seed: u64) {
    let (crew, mut random) = (&present.crew, Random::new(seed));
    loop {
        let window = crew.window();
        let connected = tokio::select! {
            _ = &mut stop => return,
            connected = crew.log_in() => connected,
        };
        match connected {
            Ok(mut connection) => {
                if take_turns(crew, &mut connection, &mut stop, &mut random).await {
                    // One that is not waited for any longer is closed without a word.
                    let _ = tokio::time::timeout(GOODBYE, connection.terminate()).await;
                    return;
                }
            }
            Err(failure) => crew.login_failed(window, &failure),
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

#[cfg(test)]
mod tests {
    use super::super::target::Environment;
    use super::*;

    fn crew() -> Crew {
        let target = Target::parse("postgres://a@127.0.0.1:1/a", &Environment::default()).unwrap();
        Crew::new(target, Arc::new(Script::parse("SELECT 1").unwrap()), Duration::ZERO)
    }

    #[test]
    fn a_step_counts_the_turns_that_began_in_it() {
        let crew = crew();
        let of_the_step_before = Turn::begin(&crew);
        crew.open();
        let (first, long, hung) = (Turn::begin(&crew), Turn::begin(&crew), Turn::begin(&crew));
        // The queue of the step before would have broken this one's thresholds.
        assert!(of_the_step_before.end(Ok(1)) && first.end(Ok(1)));
        let login = crew.window();
        crew.close();
        let later = Turn::begin(&crew);
        assert_eq!(crew.under_way(), 2);
        assert!(long.end(Ok(1)) && later.end(Ok(1)));
        crew.login_failed(login, &ConnectFailure::Backend(BackendError::Closed));
        crew.login_failed(crew.window(), &ConnectFailure::Backend(BackendError::Closed));
        assert_eq!(crew.under_way(), 1);
        crew.give_up(Duration::from_secs(5));
        assert_eq!(crew.under_way(), 0);
        drop(hung);
        let totals = crew.take();
        assert_eq!((totals.done, totals.failed, totals.latency.count()), (2, 2, 3));
        assert_eq!(totals.errors[UNFINISHED].count, 1);
    }
}
