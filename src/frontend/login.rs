//! From an accepted socket to a session: startup, TLS, authentication, the first ReadyForQuery.

mod greet;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zeroize::Zeroize;

use crate::auth::{AUTHENTICATION_OK, Credentials, Entropy, MAX_PASSWORD_LEN, Method, ServerAuth, Step};
use crate::backend::connect::{self, Login};
use crate::backend::connection::Connection;
use crate::error::{Fault, sqlstate};
use crate::frontend::admission;
use crate::frontend::database::Database;
use crate::frontend::io;
use crate::frontend::peers;
use crate::frontend::proxy::Proxy;
use crate::frontend::replication::{self, Relay};
use crate::frontend::session::{Session, Worker};
use crate::frontend::users::User;
use crate::net::Stream;
use crate::wire::startup::{self, Packet, Startup};
use crate::wire::{scan, tag, write};
use greet::Parts;

/// The databases of the admin console.
pub const CONSOLE: [&str; 2] = ["pgweir", "pgbouncer"];

/// A socket that is not logged in yet.
#[derive(Debug)]
pub struct Opening {
    pub proxy: Arc<Proxy>,
    pub worker: Arc<Worker>,
    pub stream: Stream,
    pub inbox: BytesMut,
    pub outbox: BytesMut,
}

/// What a login leads to.
#[derive(Debug)]
pub enum Opened {
    Session(Box<Session>),
    /// The admin console.
    Console(Box<Opening>),
    Replication(Box<Relay>),
    /// A cancel request, or a client that went away.
    Nothing,
}

/// Why a login ends: the client is told, or is gone.
#[derive(Debug)]
enum Failed {
    Fault(Fault),
    Gone,
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Failed {
        Failed::Fault(fault)
    }
}

impl From<std::io::Error> for Failed {
    fn from(_: std::io::Error) -> Failed {
        Failed::Gone
    }
}

impl Opening {
    /// Logs the client in within `login_timeout`; a failure is told to it here.
    pub async fn open(mut self) -> Opened {
        let limit = self.proxy.config.load().listen.login_timeout;
        let outcome = tokio::time::timeout(limit, self.establish()).await.unwrap_or_else(|_| {
            Err(Fault::fatal(sqlstate::QUERY_CANCELED, "canceling authentication due to timeout").into())
        });
        match outcome {
            Ok(None) | Err(Failed::Gone) => Opened::Nothing,
            Ok(Some(LoggedIn::Console)) => Opened::Console(Box::new(self)),
            Ok(Some(LoggedIn::Session(parts))) => Opened::Session(Box::new(parts.into_session(self))),
            Ok(Some(LoggedIn::Replication(r))) => {
                let (database, login, startup, connection) = *r;
                Opened::Replication(Box::new(Relay::new(self, &login, &database, &startup, connection)))
            }
            Err(Failed::Fault(fault)) => {
                tracing::info!(client = %self.stream.peer(), %fault, "login refused");
                self.outbox.clear();
                write::error(&mut self.outbox, &fault);
                io::part(&mut self.stream, &mut self.outbox).await;
                Opened::Nothing
            }
        }
    }

    async fn establish(&mut self) -> Result<Option<LoggedIn>, Failed> {
        match self.startup().await? {
            Some(startup) => self.log_in(startup).await.map(Some),
            None => Ok(None),
        }
    }

    /// The packets ahead of a StartupMessage, and the message. Each kind of encryption may be asked for once
    /// (`ProcessStartupPacket`); where TLS is on, neither any more.
    async fn startup(&mut self) -> Result<Option<Startup>, Failed> {
        let acceptor = self.proxy.acceptor.load_full();
        if acceptor.is_direct(&self.stream).await? {
            self.secure(|acceptor, stream| Box::pin(async move { acceptor.accept_direct(stream).await })).await?;
        }
        let (mut ssl_done, mut gss_done) = (self.stream.is_tls(), self.stream.is_tls());
        loop {
            match self.packet().await? {
                Packet::Ssl if !ssl_done => {
                    ssl_done = true;
                    self.refuse_early_bytes("SSL")?;
                    let answer = acceptor.answer(&self.stream);
                    self.answer(answer).await?;
                    if answer == b'S' {
                        gss_done = true;
                        self.secure(|acceptor, stream| Box::pin(async move { acceptor.accept(stream).await })).await?;
                    }
                }
                Packet::GssEnc if !gss_done => {
                    gss_done = true;
                    self.refuse_early_bytes("GSSAPI encryption")?;
                    self.answer(b'N').await?;
                }
                Packet::Ssl => return Err(startup::unsupported(startup::SSL_REQUEST).into()),
                Packet::GssEnc => return Err(startup::unsupported(startup::GSSENC_REQUEST).into()),
                Packet::Cancel { pid, secret } => {
                    peers::cancel(&self.proxy, pid, &secret).await;
                    return Ok(None);
                }
                Packet::Startup(startup) => return Ok(Some(startup)),
            }
        }
    }

    async fn packet(&mut self) -> Result<Packet, Failed> {
        loop {
            if let Some((packet, length)) = startup::packet(&self.inbox)? {
                let _ = self.inbox.split_to(length);
                return Ok(packet);
            }
            self.receive().await?;
        }
    }

    /// Bytes behind the request would be taken for encrypted ones (CVE-2021-23214).
    fn refuse_early_bytes(&self, request: &str) -> Result<(), Fault> {
        match self.inbox.is_empty() {
            true => Ok(()),
            false => Err(Fault::protocol(format!("received unencrypted data after {request} request"))),
        }
    }

    async fn answer(&mut self, byte: u8) -> std::io::Result<()> {
        self.stream.write_all(&[byte]).await?;
        self.stream.flush().await
    }

    async fn log_in(&mut self, startup: Startup) -> Result<LoggedIn, Failed> {
        if startup.must_negotiate() {
            write::negotiate_protocol(&mut self.outbox, startup.agreed_minor(), startup.protocol_options.clone());
        }
        let proxy = self.proxy.clone();
        let max = proxy.config.load().listen.max_clients;
        if proxy.clients.connections.load(Ordering::Relaxed) > max {
            return Err(Fault::fatal(sqlstate::TOO_MANY_CONNECTIONS, "sorry, too many clients already").into());
        }
        if proxy.closing.load(Ordering::Relaxed) && !CONSOLE.contains(&&*startup.database) {
            return Err(Fault::fatal(sqlstate::CANNOT_CONNECT_NOW, "pgweir is shutting down").into());
        }
        if proxy.acceptor.load().refuses(&self.stream) {
            return Err(Fault::fatal(sqlstate::INVALID_AUTHORIZATION, "SSL connection is required").into());
        }
        let user = proxy.find_user(&startup.user, &startup.database, self.worker.index).await?;
        let credentials = self.authenticate(&startup, user.as_deref()).await?;
        let user = user.ok_or(Failed::Gone)?;
        let replicates = startup.replication.is_some();
        if replicates {
            replication::admit(&user)?;
        }
        if CONSOLE.contains(&&*startup.database) {
            self.enter_console(&user).await?;
            return Ok(LoggedIn::Console);
        }
        let database = match replicates {
            true => replication::database(&proxy, &startup),
            false => proxy.database(&startup.database),
        };
        let database = database.ok_or_else(|| {
            Fault::fatal(sqlstate::INVALID_CATALOG_NAME, format!("database \"{}\" does not exist", startup.database))
        })?;
        if database.is_disabled() {
            let message = format!("database \"{}\" is not currently accepting connections", startup.database);
            return Err(Fault::fatal(sqlstate::NOT_IN_PREREQUISITE_STATE, message).into());
        }
        let login =
            Login { user: user.name.clone(), database: database.dbname.clone(), credentials: user.credentials.clone() };
        match credentials {
            Credentials::Plain(_) if matches!(user.method(), Method::Passthrough) => {
                self.prove(&database, &login, credentials).await?;
            }
            Credentials::None => {}
            // Who has shown the password itself, to be checked by a hash of it, can be logged in anywhere.
            shown if !user.has_password() => user.credentials.learn(shown),
            _ => {}
        }
        write::authentication(&mut self.outbox, &AUTHENTICATION_OK);
        if replicates {
            let connection = replication::dial(&database, &login, &startup).await?;
            return Ok(LoggedIn::Replication(Box::new((database, login, startup, connection))));
        }
        Ok(LoggedIn::Session(Box::new(self.greet(startup, database, login, &user).await?)))
    }

    /// Who the client is. A user that is not known is asked all the same, and refused as for a wrong password.
    async fn authenticate(&mut self, startup: &Startup, user: Option<&User>) -> Result<Credentials, Failed> {
        let method = admission::method(&self.proxy.config.load().auth.rules, &self.stream, startup, user)?;
        if matches!(method, Method::Passthrough) && CONSOLE.contains(&&*startup.database) {
            let fault = Fault::fatal(
                sqlstate::INVALID_AUTHORIZATION,
                "no server stands behind the admin console to check a password",
            );
            return Err(fault
                .with_hint("Set a password or a SCRAM verifier for this user in pgweir's configuration.")
                .into());
        }
        if matches!(method, Method::Passthrough) && !self.stream.is_tls() && !self.stream.is_unix() {
            let fault = Fault::fatal(sqlstate::INVALID_AUTHORIZATION, "a password in clear needs TLS or a unix socket")
                .with_hint("Set a password or a SCRAM verifier for this user in pgweir's configuration, or use TLS.");
            return Err(fault.into());
        }
        let entropy = Entropy::draw().map_err(|_| Fault::fatal(sqlstate::INTERNAL_ERROR, "no randomness"))?;
        let end_point = self.stream.tls_info().and_then(|tls| tls.end_point.clone());
        let mut auth = ServerAuth::new(&startup.user, method, entropy, end_point, self.proxy.mock_nonce);
        let mut step = auth.start();
        loop {
            match step {
                Step::Continue(body) => {
                    write::authentication(&mut self.outbox, &body);
                    self.flush().await?;
                    let mut answer = self.password().await?;
                    step = auth.step(&answer);
                    answer.as_mut().zeroize();
                }
                Step::Done { final_body, credentials } => {
                    if let Some(body) = final_body {
                        write::authentication(&mut self.outbox, &body);
                    }
                    return Ok(credentials);
                }
                Step::Fail(error) => {
                    let fault = Fault::fatal(error.sqlstate(), error.message(&startup.user));
                    return Err(match error.detail() {
                        Some(detail) => fault.with_detail(detail),
                        None => fault,
                    }
                    .into());
                }
            }
        }
    }

    /// The body of a message of type `p`.
    async fn password(&mut self) -> Result<BytesMut, Failed> {
        loop {
            if let Some(head) = scan::head(&self.inbox).map_err(Fault::from)? {
                if head.tag != tag::frontend::PASSWORD {
                    return Err(
                        Fault::protocol(format!("expected password response, got message type {}", head.tag)).into()
                    );
                }
                if head.total > MAX_PASSWORD_LEN {
                    return Err(Fault::protocol("invalid message length").into());
                }
                if self.inbox.len() >= head.total {
                    let mut frame = self.inbox.split_to(head.total);
                    return Ok(frame.split_off(scan::HEADER));
                }
            }
            self.receive().await?;
        }
    }

    /// A password that only a server can check: by logging in with it.
    async fn prove(&mut self, database: &Database, login: &Login, given: Credentials) -> Result<(), Failed> {
        let Credentials::Plain(password) = &given else { return Ok(()) };
        if login.credentials.is_proven(password, Instant::now()) {
            return Ok(());
        }
        let trial = Login { credentials: connect::ServerCredentials::new(given.clone()), ..login.clone() };
        let config = database.pools.config();
        for node in database.cluster.by_preference() {
            let attempt = connect::connect(&node.config, &database.tls, &trial, config.connection_timeout);
            match tokio::time::timeout(config.create_timeout, attempt).await {
                Ok(Ok(connection)) => {
                    tokio::spawn(tokio::time::timeout(config.destroy_timeout, Box::new(connection).terminate()));
                    login.credentials.prove(password.clone(), Instant::now());
                    return Ok(());
                }
                Ok(Err(failure)) => match failure.refusal() {
                    Some(fault) => return Err(fault.into()),
                    None => tracing::warn!(node = %node.name, %failure, "a password cannot be checked"),
                },
                Err(_) => tracing::warn!(node = %node.name, "a password cannot be checked in time"),
            }
        }
        Err(no_server().into())
    }

    async fn enter_console(&mut self, user: &User) -> Result<(), Failed> {
        if !self.proxy.admin.get().is_some_and(|admin| admin.is_admin(&user.name)) {
            let message = format!("user \"{}\" may not use the admin console", user.name);
            let fault = Fault::fatal(sqlstate::INVALID_AUTHORIZATION, message);
            return Err(fault.with_hint("Name the user in admin.users.").into());
        }
        write::authentication(&mut self.outbox, &AUTHENTICATION_OK);
        for (name, value) in CONSOLE_STATUSES {
            write::parameter_status(&mut self.outbox, name, value);
        }
        write::parameter_status(&mut self.outbox, "server_version", concat!(env!("CARGO_PKG_VERSION"), "/pgweir"));
        write::ready(&mut self.outbox, b'I');
        Ok(self.flush().await?)
    }

    async fn secure<F>(&mut self, accept: F) -> Result<(), Failed>
    where
        F: FnOnce(Arc<crate::net::Acceptor>, Stream) -> Accepting,
    {
        // The stream changes type underneath; a closed placeholder stands in meanwhile.
        let acceptor = self.proxy.acceptor.load_full();
        let (plain, _) = tokio::net::UnixStream::pair()?;
        let stream = std::mem::replace(&mut self.stream, Stream::unix(plain));
        self.stream = accept(acceptor, stream).await.map_err(|error| {
            tracing::info!(%error, "TLS handshake failed");
            Failed::Gone
        })?;
        Ok(())
    }

    async fn receive(&mut self) -> Result<(), Failed> {
        match self.stream.read_buf(&mut self.inbox).await? {
            0 => Err(Failed::Gone),
            _ => Ok(()),
        }
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        self.stream.write_all_buf(&mut self.outbox).await?;
        self.stream.flush().await
    }
}

type Accepting = std::pin::Pin<Box<dyn std::future::Future<Output = Result<Stream, crate::net::TlsError>> + Send>>;

/// What the console reports of itself.
const CONSOLE_STATUSES: [(&str, &str); 5] = [
    ("client_encoding", "UTF8"),
    ("server_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("TimeZone", "GMT"),
    ("standard_conforming_strings", "on"),
];

enum LoggedIn {
    Session(Box<Parts>),
    Replication(Box<(Arc<Database>, Login, Startup, Box<Connection>)>),
    Console,
}

fn no_server() -> Fault {
    Fault::fatal(sqlstate::CANNOT_CONNECT_NOW, "no server can be reached")
}
