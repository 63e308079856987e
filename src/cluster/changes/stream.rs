//! The replication connection: its slot, its messages, and what it is told in return (protocol documentation,
//! "Streaming Replication Protocol").

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut};
use tokio::io::AsyncReadExt;

use crate::backend::connect::{self, ConnectFailure, Login};
use crate::backend::connection::{BackendError, Connection, ServerError};
use crate::cluster::changes::task::Follow;
use crate::cluster::changes::{Cause, Lsn, Relation, binary, text};
use crate::config;
use crate::error::{Malformed, sqlstate};
use crate::wire::read::Reader;
use crate::wire::tag::{backend, frontend};
use crate::wire::{scan, write};

/// How much of a message is looked at; rows may be far larger.
const LOOKED_AT: usize = 64 * 1024;

/// Making a slot waits for all transactions that run at the time.
const SLOT_LIMIT: Duration = Duration::from_secs(600);

/// From the Unix epoch to Postgres's own, 2000-01-01.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

/// One message of the output plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Begin {
        xid: u32,
    },
    Change(Vec<Relation>),
    /// A change of the relations that the last change was of.
    SameAgain,
    /// A change of more relations than are looked at.
    AnyChange,
    Commit,
    Other,
}

/// One message of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// At a commit, `at` is the end of its record.
    Data { at: Lsn, message: Message },
    KeepAlive {
        /// All up to here is decoded, and what there was to tell of it has been sent.
        end: Lsn,
        /// An answer is wanted at once.
        reply: bool,
    },
}

#[derive(Debug)]
enum Plugin {
    TestDecoding(text::Reader),
    Pgoutput,
}

/// An open stream.
#[derive(Debug)]
pub struct ChangeStream {
    connection: Connection,
    plugin: Plugin,
    /// Bytes still to come of a message whose head has been looked at.
    rest: usize,
}

impl ChangeStream {
    /// Connects, makes a temporary slot and starts it; with the position from which on commits are streamed.
    ///
    /// # Errors
    /// The server will not, for the reason given.
    pub async fn open(node: &config::Node, how: &Follow, login: &Login) -> Result<(ChangeStream, Lsn), Cause> {
        let more = [("replication", "database"), ("application_name", "pgweir changes")];
        let connecting = connect::connect_with(node, &how.tls, login, how.timeout, &more);
        let made = tokio::time::timeout(how.timeout * 2, connecting).await;
        let mut connection = made.unwrap_or(Err(ConnectFailure::Timeout)).map_err(cause_of_failure)?;
        let slot = slot_name()?;
        let (name, options) = match &how.publication {
            None => ("test_decoding", "\"include-xids\" '1', \"skip-empty-xacts\" '0'".to_owned()),
            Some(publication) => ("pgoutput", pgoutput_options(publication)),
        };
        let create = format!("CREATE_REPLICATION_SLOT \"{slot}\" TEMPORARY LOGICAL \"{name}\" NOEXPORT_SNAPSHOT");
        let rows = tokio::time::timeout(SLOT_LIMIT, connection.query(&create)).await;
        let rows = rows.map_err(|_| Cause::Failed("a long transaction kept the slot from being made".to_owned()))?;
        let rows = rows.map_err(cause)?;
        let from = rows.first().and_then(|row| row.get(1)?.as_deref()?.parse().ok());
        let from = from.ok_or_else(|| Cause::Failed("the new slot has no consistent point".to_owned()))?;
        let start = format!("START_REPLICATION SLOT \"{slot}\" LOGICAL 0/0 ({options})");
        write::query(&mut connection.outbox, &start);
        connection.send().await.map_err(cause)?;
        loop {
            match connection.receive().await.map_err(cause)? {
                (backend::COPY_BOTH, _) => break,
                (backend::NOTICE | backend::PARAMETER_STATUS, _) => {}
                (backend::ERROR, body) => {
                    let error = ServerError::read(&body).map_err(|m| cause(m.into()))?;
                    return Err(cause(BackendError::Server(error)));
                }
                _ => return Err(cause(Malformed("an unexpected answer to START_REPLICATION").into())),
            }
        }
        let plugin = match how.publication {
            None => Plugin::TestDecoding(text::Reader::default()),
            Some(_) => Plugin::Pgoutput,
        };
        Ok((ChangeStream { connection, plugin, rest: 0 }, from))
    }

    /// The next message. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// The stream has ended.
    pub async fn next(&mut self) -> Result<Received, BackendError> {
        loop {
            let inbox = &mut self.connection.inbox;
            let dropped = self.rest.min(inbox.len());
            inbox.advance(dropped);
            self.rest -= dropped;
            if let Some(received) = self.take()? {
                return Ok(received);
            }
            if self.connection.stream.read_buf(&mut self.connection.inbox).await? == 0 {
                return Err(BackendError::Closed);
            }
        }
    }

    /// The message at the head of the inbox; `None` while what is looked at of it is not all there.
    fn take(&mut self) -> Result<Option<Received>, BackendError> {
        let inbox = &mut self.connection.inbox;
        let Some(head) = scan::head(inbox)?.filter(|_| self.rest == 0) else { return Ok(None) };
        let looked_at = head.total.min(LOOKED_AT);
        let Some(frame) = inbox.get(..looked_at) else { return Ok(None) };
        let body = &frame[scan::HEADER..];
        let received = match head.tag {
            backend::COPY_DATA => read(body, looked_at < head.total, &mut self.plugin)?,
            backend::ERROR => return Err(BackendError::Server(ServerError::read(body)?)),
            backend::COPY_DONE => return Err(BackendError::Closed),
            // A notice or a parameter's report.
            _ => Received::Data { at: Lsn(0), message: Message::Other },
        };
        inbox.advance(looked_at);
        self.rest = head.total - looked_at;
        Ok(Some(received))
    }

    /// Tells the server how far the stream is taken in; with `ask`, to be told at once how far the server is.
    ///
    /// # Errors
    /// The stream has ended.
    pub async fn report(&mut self, up_to: Lsn, ask: bool) -> Result<(), BackendError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH + POSTGRES_EPOCH).unwrap_or_default();
        write::frame(&mut self.connection.outbox, frontend::COPY_DATA, |out| {
            out.put_u8(b'r');
            // Written, flushed, applied.
            (0..3).for_each(|_| out.put_u64(up_to.0));
            out.put_i64(now.as_micros() as i64);
            out.put_u8(u8::from(ask));
        });
        self.connection.send().await
    }
}

/// The body of a CopyData, of which the end may be cut off.
fn read(body: &[u8], cut: bool, plugin: &mut Plugin) -> Result<Received, Malformed> {
    let mut r = Reader::new(body);
    let lsn = |r: &mut Reader<'_>| r.bytes(8).map(|b| Lsn(b.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))));
    match r.u8()? {
        b'w' => {
            let at = lsn(&mut r)?;
            // The server's own position and time.
            r.bytes(16)?;
            let message = match plugin {
                Plugin::TestDecoding(reader) => reader.read(r.rest()),
                Plugin::Pgoutput => binary::read(r.rest()),
            };
            Ok(Received::Data { at, message: if cut { message.unwrap_or(Message::AnyChange) } else { message? } })
        }
        b'k' => {
            let end = lsn(&mut r)?;
            r.bytes(8)?;
            Ok(Received::KeepAlive { end, reply: r.u8()? != 0 })
        }
        _ => Err(Malformed("an unknown message in the change stream")),
    }
}

/// Of this stream alone: the slot ends with it, and until then the name is taken.
fn slot_name() -> Result<String, Cause> {
    let mut bytes = [0u8; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Cause::Failed("no randomness for the slot's name".to_owned()))?;
    Ok(format!("pgweir_{:016x}", u64::from_be_bytes(bytes)))
}

fn pgoutput_options(publication: &str) -> String {
    let name = publication.replace('"', "\"\"").replace('\'', "''");
    format!("proto_version '1', publication_names '\"{name}\"'")
}

/// What a failure to connect means for whoever waits for the stream.
pub fn cause_of_failure(failure: ConnectFailure) -> Cause {
    match failure {
        ConnectFailure::Backend(error) => cause(error),
        ConnectFailure::Login(error) => Cause::Refused(error.to_string()),
        failure => Cause::Failed(failure.to_string()),
    }
}

/// What an error means for whoever waits for the stream.
pub fn cause(error: BackendError) -> Cause {
    let mut text = error.to_string();
    let BackendError::Server(error) = error else { return Cause::Failed(text) };
    // Since version 16 only that names the attribute which a role lacks.
    error.detail.iter().for_each(|detail| text.extend([": ", detail]));
    match error.code.as_str() {
        // "logical decoding requires wal_level >= logical"
        "55000" if error.message.contains("wal_level") => Cause::WalLevel,
        "53400" | sqlstate::TOO_MANY_CONNECTIONS => Cause::Exhausted(text),
        sqlstate::INSUFFICIENT_PRIVILEGE => Cause::Refused(text),
        // The publication is gone, which the decoder is the first to see.
        "42704" if error.message.contains("publication") => Cause::Altered,
        // No file of the plugin's name is installed.
        "58P01" => Cause::Refused(text),
        code if code.starts_with("28") => Cause::Refused(text),
        _ => Cause::Failed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::Name;

    #[test]
    fn reads_data_and_signs_of_life() {
        let mut plugin = Plugin::TestDecoding(text::Reader::default());
        let data = |payload: &str| [&b"w\0\0\0\0\0\0\x01\x02"[..], &[0; 16], payload.as_bytes()].concat();
        let commit = Received::Data { at: Lsn(0x102), message: Message::Commit };
        assert_eq!(read(&data("COMMIT 7"), false, &mut plugin), Ok(commit));
        let alive = [&b"k\0\0\0\0\0\0\0\x09"[..], &[0; 8], &[1]].concat();
        assert_eq!(read(&alive, false, &mut plugin), Ok(Received::KeepAlive { end: Lsn(9), reply: true }));
        for cut in 0..alive.len() {
            assert!(read(&alive[..cut], false, &mut plugin).is_err(), "{cut}");
        }
        assert!(read(b"x", false, &mut plugin).is_err());
    }

    #[test]
    fn a_list_of_relations_that_is_too_long_is_a_change_of_any() {
        let mut plugin = Plugin::TestDecoding(text::Reader::default());
        let data = |payload: &str| [&b"w"[..], &[0; 24], payload.as_bytes()].concat();
        let cut = read(&data("table public.a, public.b"), true, &mut plugin);
        assert_eq!(cut, Ok(Received::Data { at: Lsn(0), message: Message::AnyChange }));
        let row = read(&data("table public.a: INSERT: t[text]:'long"), true, &mut plugin);
        let relation = Relation::Named(Name { schema: Some("public".into()), name: "a".into() });
        assert_eq!(row, Ok(Received::Data { at: Lsn(0), message: Message::Change(vec![relation]) }));
    }

    #[test]
    fn a_publications_name_is_quoted_twice() {
        assert_eq!(pgoutput_options("a\"b'c"), "proto_version '1', publication_names '\"a\"\"b''c\"'");
    }
}
