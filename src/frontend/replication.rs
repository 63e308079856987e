//! Replication connections (`replication` in the startup packet): each on a server connection of its own to the
//! primary, logged in as the user, and from then on a relay of bytes.

use std::future::poll_fn;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, split};

use crate::backend::connect::{self, ConnectFailure, Login};
use crate::backend::connection::{BackendError, Connection};
use crate::config::Config;
use crate::error::{Fault, sqlstate};
use crate::frontend::client::{Activity, Client, Entered, NewClient, Stop};
use crate::frontend::database::Database;
use crate::frontend::io::part;
use crate::frontend::login::Opening;
use crate::frontend::serve::stop_fault;
use crate::frontend::users::User;
use crate::net::Stream;
use crate::wire::startup::Startup;
use crate::wire::{scan, write};

/// A client and its server, ready to be relayed.
#[derive(Debug)]
pub struct Relay {
    opening: Opening,
    connection: Box<Connection>,
    client: Entered,
}

/// What SHOW CLIENTS calls a connection with this `replication` parameter.
fn kind(replication: &str) -> &'static str {
    if replication.eq_ignore_ascii_case("database") { "logical" } else { "physical" }
}

/// Whether the user may have replication connections at all.
///
/// # Errors
/// It may not.
pub fn admit(user: &User) -> Result<(), Fault> {
    if user.replication {
        return Ok(());
    }
    let message = format!("user \"{}\" may not have replication connections", user.name);
    let fault = Fault::fatal(sqlstate::INSUFFICIENT_PRIVILEGE, message);
    Err(fault.with_hint("Set replication = true for the user in pgweir's configuration."))
}

/// The name of the database whose primary is meant. Physical replication is of a whole server, and libpq then names a
/// database of its own choice: the only one there is will do.
pub fn database<'a>(config: &'a Config, startup: &'a Startup) -> &'a str {
    let named = config.databases.iter().any(|database| database.name == startup.database);
    match (&config.databases[..], startup.replication.as_deref().map(kind)) {
        ([only], Some("physical")) if !named && only.name != "*" => &only.name,
        _ => &startup.database,
    }
}

/// Logs in to the primary with the client's own parameters.
///
/// # Errors
/// The server refuses, in its own words, or cannot be reached.
pub async fn dial(database: &Database, login: &Login, startup: &Startup) -> Result<Box<Connection>, Fault> {
    let config = database.pools.config();
    let unreachable =
        |why: &str| Fault::fatal(sqlstate::CANNOT_CONNECT_NOW, "the primary cannot be reached").with_detail(why);
    let node = database.cluster.primary().ok_or_else(|| unreachable("No node is known to be the primary."))?;
    let replication = startup.replication.iter().map(|value| ("replication", value.as_str()));
    let options = startup.options.iter().map(|value| ("options", value.as_str()));
    let parameters = startup.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let more: Vec<_> = replication.chain(options).chain(parameters).collect();
    let dialing = connect::connect_with(&node.config, &database.tls, login, config.connection_timeout, &more);
    match tokio::time::timeout(config.create_timeout, dialing).await {
        Ok(Ok(connection)) => Ok(Box::new(connection)),
        Ok(Err(ConnectFailure::Backend(BackendError::Server(error)))) => Err(error.into_fatal()),
        Ok(Err(failure)) => Err(unreachable(&failure.to_string())),
        Err(_) => Err(unreachable("It did not answer in time.")),
    }
}

impl Relay {
    /// Enters the client, and leaves in its outbox what a server says first.
    pub fn new(
        mut opening: Opening,
        login: &Login,
        database: &Database,
        startup: &Startup,
        connection: Box<Connection>,
    ) -> Relay {
        let status = connection.statuses.iter().find(|(name, _)| **name == *"application_name");
        let new = NewClient {
            user: login.user.clone(),
            database: database.name.clone(),
            peer: opening.stream.peer(),
            local: opening.stream.local(),
            tls: opening.stream.tls_info().map(|tls| format!("{}/{}", tls.version, tls.cipher)).unwrap_or_default(),
            key_length: if startup.agreed_minor() >= 2 { 32 } else { 4 },
            application_name: status.map(|(_, value)| value.to_string()).unwrap_or_default(),
            server_pid: Some(connection.identity.pid),
            replication: startup.replication.as_deref().map_or("none", kind),
        };
        let client = Entered::new(&opening.proxy, new);
        connection.identity.serve(client.id);
        let _ = client.server.set(connection.identity.clone());
        client.set_activity(Activity::Active, client.connected);
        for (name, value) in &connection.statuses {
            write::parameter_status(&mut opening.outbox, name, value);
        }
        write::backend_key_data(&mut opening.outbox, client.pid, &client.secret);
        write::ready(&mut opening.outbox, b'I');
        database.counters.at(opening.worker.index).client_login();
        Relay { opening, connection, client }
    }

    /// Passes bytes on both ways until one side ends, or the client is stopped: then it is told, behind a whole frame.
    pub async fn run(self) {
        let Relay { mut opening, mut connection, client } = self;
        let mut frames = Frames::default();
        frames.note(&opening.outbox);
        let stopped = {
            let (client_in, client_out) = split(&mut opening.stream);
            let (server_in, server_out) = split(&mut connection.stream);
            tokio::select! {
                _ = pass_up(&mut opening.inbox, client_in, server_out) => false,
                _ = pass_down(&mut opening.outbox, &mut frames, server_in, client_out) => false,
                () = stopped(&client) => true,
            }
        };
        if stopped {
            let rest = frames.finish(&mut connection.stream, &mut opening.outbox);
            if matches!(tokio::time::timeout(LAST_FRAME, rest).await, Ok(Ok(()))) {
                write::error(&mut opening.outbox, &stop_fault(client.stop_reason()));
            }
        }
        let _ = connection.stream.shutdown().await;
        drop(client);
        part(&mut opening.stream, &mut opening.outbox).await;
    }
}

/// How long the rest of a frame that the client has the beginning of may take to come.
const LAST_FRAME: Duration = Duration::from_secs(1);

/// Where in a frame a stream of the server's bytes stands.
#[derive(Debug, Default)]
struct Frames {
    /// Of a frame whose length is not all there.
    head: Vec<u8>,
    /// Bytes still to come of a frame whose length is known.
    rest: usize,
}

impl Frames {
    fn note(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let n = match self.rest {
                0 => (scan::HEADER - self.head.len()).min(bytes.len()),
                rest => rest.min(bytes.len()),
            };
            let (here, behind) = bytes.split_at(n);
            bytes = behind;
            if self.rest > 0 {
                self.rest -= n;
                continue;
            }
            self.head.extend_from_slice(here);
            // What is no frame is passed on all the same, for the client to see.
            if let [_, length @ ..] = &self.head[..]
                && let Ok(length) = <[u8; 4]>::try_from(length)
            {
                self.rest = (u32::from_be_bytes(length) as usize).saturating_sub(length.len());
                self.head.clear();
            }
        }
    }

    /// Bytes without which what has come is no whole frame.
    fn missing(&self) -> usize {
        match (self.rest, self.head.len()) {
            (0, 0) => 0,
            (0, known) => scan::HEADER - known,
            (rest, _) => rest,
        }
    }

    /// Reads on to the end of the frame that has begun.
    async fn finish(&mut self, from: &mut Stream, out: &mut BytesMut) -> std::io::Result<()> {
        while self.missing() > 0 {
            let before = out.len();
            let mut more = (&mut *from).take(self.missing() as u64);
            if more.read_buf(out).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            self.note(&out[before..]);
        }
        Ok(())
    }
}

/// Passes on what has been read already, and then what comes, to its end.
async fn pass_up(
    first: &mut BytesMut,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) -> std::io::Result<()> {
    to.write_all_buf(first).await?;
    to.flush().await?;
    copy(&mut from, &mut to).await.map(drop)
}

/// The same towards the client; what has been read and not been sent stays in `buffer`.
async fn pass_down(
    buffer: &mut BytesMut,
    frames: &mut Frames,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) -> std::io::Result<()> {
    loop {
        to.write_all_buf(buffer).await?;
        to.flush().await?;
        buffer.reserve(BUFFER);
        if from.read_buf(buffer).await? == 0 {
            return Ok(());
        }
        frames.note(buffer);
    }
}

/// Bytes that are read at a time.
const BUFFER: usize = 16 * 1024;

async fn stopped(client: &Client) {
    while client.stop_reason() == Stop::None {
        poll_fn(|cx| client.nudged.poll(cx)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_end_where_they_end_however_they_come() {
        let mut bytes = BytesMut::new();
        write::ready(&mut bytes, b'I');
        write::frame(&mut bytes, b'd', |out| out.extend_from_slice(&[7; 300]));
        write::parse_complete(&mut bytes);
        let ends = [6, 6 + 305, 6 + 305 + 5];
        for chunk in [1, 2, 5, 7, 400] {
            let (mut frames, mut at) = (Frames::default(), 0);
            for part in bytes.chunks(chunk) {
                frames.note(part);
                at += part.len();
                let whole = ends.contains(&at);
                assert_eq!(frames.missing() == 0, whole, "{at} by {chunk}");
            }
        }
    }
}
