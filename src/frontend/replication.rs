//! Replication connections (`replication` in the startup packet): each on a server connection of its own to the
//! primary, logged in as the user, and from then on a relay of bytes.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy, split};

use crate::backend::connect::{self, ConnectFailure, Login};
use crate::backend::connection::{BackendError, Connection};
use crate::error::{Fault, sqlstate};
use crate::frontend::client::{Activity, Client, NewClient, Stop};
use crate::frontend::database::Database;
use crate::frontend::io::part;
use crate::frontend::login::Opening;
use crate::frontend::proxy::{Proxy, User};
use crate::wire::startup::Startup;
use crate::wire::write;

/// A client and its server, ready to be relayed.
#[derive(Debug)]
pub struct Relay {
    opening: Opening,
    connection: Box<Connection>,
    entry: Entry,
}

/// A client's place among the clients, given up when dropped.
#[derive(Debug)]
struct Entry {
    proxy: Arc<Proxy>,
    client: Arc<Client>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.client.set_target(None);
        self.proxy.clients.leave(&self.client);
    }
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

/// The database whose primary is meant. Physical replication is of a whole server, and libpq then names a database
/// of its own choice: the only one there is will do.
pub fn database(proxy: &Proxy, startup: &Startup) -> Option<Arc<Database>> {
    let config = proxy.config.load();
    let named = config.databases.iter().any(|database| database.name == startup.database);
    match (&config.databases[..], startup.replication.as_deref().map(kind)) {
        ([only], Some("physical")) if !named && only.name != "*" => proxy.database(&only.name),
        _ => proxy.database(&startup.database),
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
        let client = opening.proxy.clients.enter(NewClient {
            user: login.user.clone(),
            database: database.name.clone(),
            peer: opening.stream.peer(),
            local: opening.stream.local(),
            tls: opening.stream.tls_info().map(|tls| format!("{}/{}", tls.version, tls.cipher)).unwrap_or_default(),
            key_length: if startup.agreed_minor() >= 2 { 32 } else { 4 },
            application_name: status.map(|(_, value)| value.to_string()).unwrap_or_default(),
            server_pid: Some(connection.identity.pid),
            replication: startup.replication.as_deref().map_or("none", kind),
        });
        client.set_target(Some(connection.identity.clone()));
        client.set_activity(Activity::Active, client.connected);
        for (name, value) in &connection.statuses {
            write::parameter_status(&mut opening.outbox, name, value);
        }
        write::backend_key_data(&mut opening.outbox, client.pid, &client.secret);
        write::ready(&mut opening.outbox, b'I');
        database.counters.at(opening.worker.index).client_login();
        let entry = Entry { proxy: opening.proxy.clone(), client };
        Relay { opening, connection, entry }
    }

    /// Passes bytes on both ways until one side ends, or the client is stopped.
    pub async fn run(self) {
        let Relay { mut opening, mut connection, entry } = self;
        {
            let (client_in, client_out) = split(&mut opening.stream);
            let (server_in, server_out) = split(&mut connection.stream);
            tokio::select! {
                _ = pass(&mut opening.inbox, client_in, server_out) => {}
                _ = pass(&mut opening.outbox, server_in, client_out) => {}
                () = stopped(&entry.client) => {}
            }
        }
        let _ = connection.stream.shutdown().await;
        drop(entry);
        part(&mut opening.stream, &mut opening.outbox).await;
    }
}

/// Passes on what has been read already, and then what comes, to its end.
async fn pass(
    first: &mut BytesMut,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) -> std::io::Result<()> {
    to.write_all_buf(first).await?;
    to.flush().await?;
    copy(&mut from, &mut to).await.map(drop)
}

async fn stopped(client: &Client) {
    while client.stop_reason() == Stop::None {
        client.stopped.notified().await;
    }
}
