//! One connection to one server, with all that is known of its state.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::backend::cancel::Identity;
use crate::error::{Fault, Malformed};
use crate::net::Stream;
use crate::session::parameters::Settings;
use crate::session::prepared::Held;
use crate::wire::tag::backend;
use crate::wire::{read, scan, write};

/// Why a connection of ours failed.
#[derive(Debug)]
pub enum BackendError {
    Io(io::Error),
    /// The server closed the connection.
    Closed,
    Malformed(Malformed),
    /// An ErrorResponse.
    Server(ServerError),
}

/// An ErrorResponse of a server: the fields that matter.
#[derive(Debug, Clone)]
pub struct ServerError {
    pub fatal: bool,
    pub code: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl ServerError {
    pub fn read(body: &[u8]) -> Result<ServerError, Malformed> {
        let fields = read::ErrorFields::read(body)?;
        let text = |field: &[u8]| (!field.is_empty()).then(|| String::from_utf8_lossy(field).into_owned());
        Ok(ServerError {
            fatal: fields.is_fatal(),
            code: fields.code(),
            message: fields.message(),
            detail: text(fields.detail),
            hint: text(fields.hint),
        })
    }

    /// The same, told to a client as the end of its connection.
    pub fn into_fatal(self) -> Fault {
        let ServerError { code, message, detail, hint, .. } = self;
        Fault { detail, hint, ..Fault::fatal(code, message) }
    }
}

impl std::fmt::Display for BackendError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BackendError::Io(e) => write!(f, "{e}"),
            BackendError::Closed => f.write_str("server closed the connection unexpectedly"),
            BackendError::Malformed(m) => write!(f, "malformed message from server: {m}"),
            BackendError::Server(e) => write!(f, "{} ({})", e.message, e.code),
        }
    }
}

impl From<io::Error> for BackendError {
    fn from(e: io::Error) -> BackendError {
        BackendError::Io(e)
    }
}

impl From<Malformed> for BackendError {
    fn from(m: Malformed) -> BackendError {
        BackendError::Malformed(m)
    }
}

/// A logged-in connection. Between leases it is idle: nothing unread, nothing unsent, no transaction.
#[derive(Debug)]
pub struct Connection {
    pub stream: Stream,
    /// Received and not yet looked at.
    pub inbox: BytesMut,
    /// To be sent.
    pub outbox: BytesMut,
    /// ParameterStatus values, as last reported.
    pub statuses: Vec<(Box<str>, Box<str>)>,
    /// What SET has left on it.
    pub settings: Settings,
    /// Statements prepared on it.
    pub held: Held,
    /// The statement its unnamed name stands for (`unnamed_statements = "forward"`), by id.
    pub unnamed: Option<u64>,
    /// State may have changed out of sight: reset before the next client has it.
    pub suspect: bool,
    /// How often its node's name had come to lead elsewhere, when it was last looked at whether this one was left.
    pub moves: u32,
    pub created: Instant,
    /// When it was made, or last came to rest: it was alive then.
    pub at_rest: Instant,
    pub identity: Arc<Identity>,
    /// By the last ReadyForQuery to a [`Connection::query`].
    pub in_transaction: bool,
}

/// A row of text values.
pub type Row = Vec<Option<String>>;

impl Connection {
    /// Reads until one whole frame stands at the start of `inbox`; its length.
    async fn fill_frame(&mut self) -> Result<scan::Head, BackendError> {
        loop {
            if let Some((head, _)) = scan::frame(&self.inbox)? {
                return Ok(head);
            }
            if self.stream.read_buf(&mut self.inbox).await? == 0 {
                return Err(BackendError::Closed);
            }
        }
    }

    /// The next frame: its tag and body.
    pub async fn receive(&mut self) -> Result<(u8, BytesMut), BackendError> {
        let head = self.fill_frame().await?;
        let mut frame = self.inbox.split_to(head.total);
        let body = frame.split_off(scan::HEADER);
        Ok((head.tag, body))
    }

    /// Sends what `outbox` holds.
    pub async fn send(&mut self) -> Result<(), BackendError> {
        self.stream.write_all_buf(&mut self.outbox).await?;
        Ok(self.stream.flush().await?)
    }

    /// Runs SQL by the simple protocol, to its ReadyForQuery: the rows of all its statements.
    ///
    /// The connection stays usable after [`BackendError::Server`] that is not fatal, and after no other error.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Row>, BackendError> {
        self.query_noticed(sql, &mut BytesMut::new()).await
    }

    /// The same; the notices on the way are kept, as frames.
    ///
    /// # Errors
    /// As [`Connection::query`].
    pub async fn query_noticed(&mut self, sql: &str, notices: &mut BytesMut) -> Result<Vec<Row>, BackendError> {
        write::query(&mut self.outbox, sql);
        self.send().await?;
        let (mut rows, mut failed) = (Vec::new(), None);
        loop {
            let (tag, body) = self.receive().await?;
            match tag {
                backend::DATA_ROW => rows.push(text_row(&body)?),
                backend::ERROR => {
                    let error = ServerError::read(&body)?;
                    if error.fatal {
                        return Err(BackendError::Server(error));
                    }
                    failed = Some(error);
                }
                backend::PARAMETER_STATUS => self.note_status(&body)?,
                backend::NOTICE => write::frame(notices, tag, |out| out.extend_from_slice(&body)),
                backend::READY => {
                    self.in_transaction = body.first() != Some(&b'I');
                    return failed.map_or(Ok(rows), |e| Err(BackendError::Server(e)));
                }
                _ => {}
            }
        }
    }

    /// Says goodbye and waits for the server to close; a socket on another reactor is left to the drop.
    pub async fn terminate(mut self: Box<Self>) {
        self.outbox.clear();
        write::terminate(&mut self.outbox);
        if self.stream.rehome().is_err() || self.send().await.is_err() {
            return;
        }
        loop {
            self.inbox.clear();
            match self.stream.read_buf(&mut self.inbox).await {
                Ok(n) if n > 0 => {}
                _ => return,
            }
        }
    }

    /// Takes a ParameterStatus body.
    pub fn note_status(&mut self, body: &[u8]) -> Result<(), Malformed> {
        let mut r = read::Reader::new(body);
        let (name, value) = (r.str()?, r.str()?);
        match self.statuses.iter_mut().find(|(n, _)| **n == *name) {
            Some((_, v)) => *v = value.into(),
            None => self.statuses.push((name.into(), value.into())),
        }
        Ok(())
    }

    /// Whether an idle connection can still be used: alive, and nothing but notices and parameter reports unread.
    pub fn is_usable(&mut self) -> bool {
        self.is_usable_by(Stream::try_read_now)
    }

    /// The same of a connection that this worker's reactor has known all along and that has come to rest just now: no
    /// system call where the reactor has seen nothing. The turn in which the reactor saw the client's statement would
    /// have shown it all that had come from the server by then.
    pub fn is_still_usable(&mut self) -> bool {
        self.is_usable_by(Stream::try_read_seen)
    }

    fn is_usable_by(&mut self, try_read: fn(&mut Stream, &mut [u8]) -> Option<io::Result<usize>>) -> bool {
        // Small, as it is cleared each time and there is hardly ever anything.
        let mut chunk = [0u8; 64];
        loop {
            match try_read(&mut self.stream, &mut chunk) {
                None => break,
                Some(Ok(n)) if n > 0 => self.inbox.extend_from_slice(&chunk[..n]),
                Some(_) => return false,
            }
        }
        while let Ok(Some((head, body))) = scan::frame(&self.inbox) {
            let noted = match head.tag {
                backend::NOTICE => Ok(()),
                backend::PARAMETER_STATUS => {
                    let body = body.to_vec();
                    self.note_status(&body)
                }
                _ => return false,
            };
            if noted.is_err() {
                return false;
            }
            let _ = self.inbox.split_to(head.total);
        }
        self.inbox.is_empty()
    }
}

fn text_row(body: &[u8]) -> Result<Row, Malformed> {
    let mut r = read::Reader::new(body);
    let count = r.i16()?;
    let mut row = Vec::new();
    for _ in 0..count {
        let length = r.i32()?;
        row.push(match usize::try_from(length) {
            Ok(n) => Some(String::from_utf8_lossy(r.bytes(n)?).into_owned()),
            Err(_) => None,
        });
    }
    Ok(row)
}
