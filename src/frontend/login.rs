//! From an accepted socket to a session: startup, TLS, authentication, the first ReadyForQuery.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::auth::{AUTHENTICATION_OK, Credentials, Entropy, MAX_PASSWORD_LEN, Method, ServerAuth, Step};
use crate::backend::connect::{self, Login};
use crate::backend::connection::BackendError;
use crate::cluster::Tried;
use crate::config::PoolMode;
use crate::error::{Fault, sqlstate};
use crate::frontend::admission;
use crate::frontend::client::NewClient;
use crate::frontend::database::{Database, Statuses};
use crate::frontend::peers;
use crate::frontend::proxy::{Proxy, User};
use crate::frontend::session::{Request, Session, Worker};
use crate::net::Stream;
use crate::pool::checkout::Pool;
use crate::pool::lease::{Lease, Return};
use crate::route::decide::Why;
use crate::session::parameters::{Parameters, Settings, Value};
use crate::session::pins::Pins;
use crate::session::pipeline::Pipeline;
use crate::session::prepared::Names;
use crate::sql::RouteHint;
use crate::wire::startup::{self, Packet, Startup};
use crate::wire::{scan, tag, write};

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
    /// Logs the client in; a failure is told to it here.
    pub async fn open(mut self) -> Opened {
        let failed = match self.startup().await {
            Ok(None) => return Opened::Nothing,
            Ok(Some(startup)) => match self.log_in(startup).await {
                Ok(LoggedIn::Console) => return Opened::Console(Box::new(self)),
                Ok(LoggedIn::Session(parts)) => return Opened::Session(Box::new(parts.into_session(self))),
                Err(failed) => failed,
            },
            Err(failed) => failed,
        };
        if let Failed::Fault(fault) = failed {
            tracing::info!(client = %self.stream.peer(), %fault, "login refused");
            self.outbox.clear();
            write::error(&mut self.outbox, &fault);
            let _ = self.flush().await;
            let _ = self.stream.shutdown().await;
        }
        Opened::Nothing
    }

    /// The packets ahead of a StartupMessage, and the message.
    async fn startup(&mut self) -> Result<Option<Startup>, Failed> {
        let acceptor = self.proxy.acceptor.load_full();
        if acceptor.is_direct(&self.stream).await? {
            self.secure(|acceptor, stream| Box::pin(async move { acceptor.accept_direct(stream).await })).await?;
        }
        loop {
            let packet = loop {
                if let Some((packet, length)) = startup::packet(&self.inbox)? {
                    let _ = self.inbox.split_to(length);
                    break packet;
                }
                self.receive().await?;
            };
            match packet {
                Packet::Ssl => {
                    // Bytes behind the request would be taken for encrypted ones (CVE-2021-23214).
                    if !self.inbox.is_empty() {
                        return Err(Fault::protocol("received unencrypted data after SSL request").into());
                    }
                    let answer = acceptor.answer(&self.stream);
                    self.stream.write_all(&[answer]).await?;
                    self.stream.flush().await?;
                    if answer == b'S' {
                        self.secure(|acceptor, stream| Box::pin(async move { acceptor.accept(stream).await })).await?;
                    }
                }
                Packet::GssEnc => {
                    self.stream.write_all(b"N").await?;
                    self.stream.flush().await?;
                }
                Packet::Cancel { pid, secret } => {
                    peers::cancel(&self.proxy, pid, &secret).await;
                    return Ok(None);
                }
                Packet::Startup(startup) => return Ok(Some(startup)),
            }
        }
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
        if proxy.acceptor.load().refuses(&self.stream) {
            return Err(Fault::fatal(sqlstate::INVALID_AUTHORIZATION, "SSL connection is required").into());
        }
        if startup.replication.is_some() {
            let message = "replication connections are not passed through";
            return Err(Fault::fatal(sqlstate::FEATURE_NOT_SUPPORTED, message).into());
        }
        let user = proxy.find_user(&startup.user, &startup.database, self.worker.index).await?;
        let credentials = self.authenticate(&startup, user.as_deref()).await?;
        let user = user.ok_or(Failed::Gone)?;
        if CONSOLE.contains(&&*startup.database) {
            self.enter_console(&user).await?;
            return Ok(LoggedIn::Console);
        }
        let database = proxy.database(&startup.database).ok_or_else(|| {
            Fault::fatal(sqlstate::INVALID_CATALOG_NAME, format!("database \"{}\" does not exist", startup.database))
        })?;
        let login =
            Login { user: user.name.clone(), database: database.dbname.clone(), credentials: user.credentials.clone() };
        match credentials {
            Credentials::Plain(_) if matches!(user.method(), Method::Passthrough) => {
                self.prove(&database, &login, credentials).await?;
            }
            Credentials::Scram(_) if !user.is_known() => user.credentials.learn(credentials),
            _ => {}
        }
        write::authentication(&mut self.outbox, &AUTHENTICATION_OK);
        Ok(LoggedIn::Session(Box::new(self.greet(startup, database, login).await?)))
    }

    /// Who the client is. A user that is not known is asked all the same, and refused as for a wrong password.
    async fn authenticate(&mut self, startup: &Startup, user: Option<&User>) -> Result<Credentials, Failed> {
        let method = admission::method(&self.proxy.config.load().auth.rules, &self.stream, startup, user)?;
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
                    step = auth.step(&self.password().await?);
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
        let (Credentials::Plain(password), current) = (&given, login.credentials.current()) else { return Ok(()) };
        if matches!(&current, Credentials::Plain(known) if known.matches(password.as_bytes())) {
            return Ok(());
        }
        let node = database.cluster.primary().ok_or_else(no_server)?;
        let trial = Login { credentials: connect::ServerCredentials::new(given.clone()), ..login.clone() };
        let config = database.pools.config();
        let attempt = connect::connect(&node.config, &database.tls, &trial, config.connection_timeout);
        match tokio::time::timeout(config.create_timeout, attempt).await {
            Ok(Ok(connection)) => {
                tokio::spawn(tokio::time::timeout(config.destroy_timeout, Box::new(connection).terminate()));
                login.credentials.learn(given);
                Ok(())
            }
            Ok(Err(failure)) => Err(match failure.refusal() {
                Some((code, message)) if code.starts_with("3D") => {
                    Fault::fatal(sqlstate::INVALID_CATALOG_NAME, message)
                }
                Some(_) => Fault::fatal(
                    sqlstate::INVALID_PASSWORD,
                    format!("password authentication failed for user \"{}\"", login.user),
                ),
                None => no_server(),
            }
            .into()),
            Err(_) => Err(no_server().into()),
        }
    }

    /// The settings the client asks for, tried on a server; the ParameterStatus values, the cancel key, ReadyForQuery.
    async fn greet(&mut self, startup: Startup, database: Arc<Database>, login: Login) -> Result<Parts, Failed> {
        let base = settings(&startup)?;
        let pools = database.pools_of(&login);
        let statuses = self.statuses(&database, &login, &pools, &base).await?;
        let application_name = status(&statuses, "application_name").unwrap_or_default().to_owned();
        let client = self.proxy.clients.enter(NewClient {
            user: login.user.clone(),
            database: database.name.clone(),
            peer: self.stream.peer(),
            local: self.stream.local(),
            tls: self.stream.tls_info().map(|tls| format!("{}/{}", tls.version, tls.cipher)).unwrap_or_default(),
            key_length: if startup.agreed_minor() >= 2 { 32 } else { 4 },
            application_name,
        });
        let parts = Parts { client, database, login, pools, base, readable: is_readable(&statuses) };
        for (name, value) in statuses.iter() {
            write::parameter_status(&mut self.outbox, name, value);
        }
        write::backend_key_data(&mut self.outbox, parts.client.pid, &parts.client.secret);
        write::ready(&mut self.outbox, b'I');
        if self.flush().await.is_err() {
            self.proxy.clients.leave(&parts.client);
            return Err(Failed::Gone);
        }
        parts.database.counters.at(self.worker.index).client_login();
        Ok(parts)
    }

    /// What a fresh session with these settings reports. Settings are proven on a server: what it refuses ends the
    /// login, as it would there.
    async fn statuses(
        &mut self,
        database: &Database,
        login: &Login,
        pools: &[Arc<Pool>],
        base: &Settings,
    ) -> Result<Statuses, Failed> {
        if let (true, Some(known)) = (base.is_empty(), database.statuses(&login.user)) {
            return Ok(known);
        }
        let mut lease = self.any_lease(database, pools).await?;
        if let Some(sql) = lease.settings.difference(&Settings::default()) {
            lease.begin();
            lease.query(&sql).await.map_err(fatal)?;
            lease.settings = Settings::default();
        }
        let fresh: Statuses = lease.statuses.clone().into();
        database.set_statuses(login.user.clone(), fresh.clone());
        let Some(sql) = lease.settings.difference(base) else {
            lease.give_back(Return::default());
            return Ok(fresh);
        };
        lease.begin();
        lease.query(&sql).await.map_err(fatal)?;
        lease.settings = base.clone();
        let statuses = lease.statuses.clone().into();
        lease.give_back(Return::default());
        Ok(statuses)
    }

    /// A connection to the primary, or to whatever node serves.
    async fn any_lease(&self, database: &Database, pools: &[Arc<Pool>]) -> Result<Lease, Failed> {
        let primary = database.cluster.primary().map(|node| node.index);
        let reader = || database.cluster.reader(None, Tried::default()).map(|(node, _)| node.index);
        let up = primary.filter(|&i| database.cluster.nodes[usize::from(i)].is_up());
        let index = up.or_else(reader).or(primary).ok_or_else(no_server)?;
        let pool = &pools[usize::from(index)];
        let timeout = pool.config.load().acquire_timeout;
        let refused = |r: crate::pool::checkout::Refused| {
            let fault = r.fault(timeout);
            Failed::Fault(Fault { severity: crate::error::Severity::Fatal, ..fault })
        };
        pool.checkout(self.worker.index).await.map_err(refused)
    }

    async fn enter_console(&mut self, user: &User) -> Result<(), Failed> {
        let admins = self.proxy.config.load().admin.users.clone();
        if !admins.iter().any(|name| **name == *user.name) {
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
    Console,
}

/// What a login has found out, for the session.
#[derive(Debug)]
struct Parts {
    client: Arc<crate::frontend::client::Client>,
    database: Arc<Database>,
    login: Login,
    pools: Vec<Arc<Pool>>,
    base: Settings,
    readable: bool,
}

impl Parts {
    fn into_session(self, opening: Opening) -> Session {
        let Parts { client, database, login, pools, base, readable } = self;
        let now = client.connected;
        let route = match base.value("pgweir.route") {
            Some(Value::Flat(route)) if route == "primary" => Some(RouteHint::Primary),
            Some(Value::Flat(route)) if route == "replica" => Some(RouteHint::Replica),
            _ => None,
        };
        let mode: PoolMode = database.pools.config().mode;
        Session {
            proxy: opening.proxy,
            worker: opening.worker,
            client,
            database,
            login,
            pools,
            mode,
            stream: opening.stream,
            inbox: opening.inbox,
            outbox: opening.outbox,
            client_rest: 0,
            server_rest: 0,
            leased: None,
            pipeline: Pipeline::default(),
            request: Request::new(now, Why::Read),
            tried: Tried::default(),
            scanned: VecDeque::new(),
            names: Names::default(),
            portals: Vec::new(),
            parameters: Parameters::new(base),
            pins: Pins::default(),
            status: b'I',
            failed: false,
            skipping: false,
            terminating: false,
            writing: false,
            wrote: None,
            route,
            readable,
            transaction_began: None,
        }
    }
}

/// The session settings of a startup packet: `options` first, then the parameters, as Postgres applies them.
fn settings(startup: &Startup) -> Result<Settings, Fault> {
    let mut settings = Settings::default();
    for (name, value) in startup.options.as_deref().map_or(Ok(Vec::new()), startup::options)? {
        settings.set(&name, Value::Flat(value));
    }
    for (name, value) in &startup.parameters {
        settings.set(name, Value::Flat(value.clone()));
    }
    Ok(settings)
}

fn status<'a>(statuses: &'a [(Box<str>, Box<str>)], name: &str) -> Option<&'a str> {
    statuses.iter().find(|(n, _)| **n == *name).map(|(_, v)| &**v)
}

/// Encodings whose multi-byte characters may hold ASCII bytes, quotes and backslashes among them.
const UNSAFE_ENCODINGS: [&str; 7] = ["SJIS", "BIG5", "GBK", "UHC", "GB18030", "JOHAB", "SHIFT_JIS_2004"];

/// Texts of a session with these parameters read as pgweir reads them.
fn is_readable(statuses: &[(Box<str>, Box<str>)]) -> bool {
    let encoding = status(statuses, "client_encoding").unwrap_or("UTF8");
    status(statuses, "standard_conforming_strings") != Some("off") && !UNSAFE_ENCODINGS.contains(&encoding)
}

impl Session {
    /// After client_encoding or standard_conforming_strings has changed.
    pub fn note_readable(&mut self) {
        if let Some(leased) = &self.leased {
            self.readable = is_readable(&leased.lease.statuses);
        }
    }
}

fn no_server() -> Fault {
    Fault::fatal(sqlstate::CANNOT_CONNECT_NOW, "no server can be reached")
}

/// A server's refusal of the client's own settings, as the client would see it there.
fn fatal(error: BackendError) -> Failed {
    let fault = match error {
        BackendError::Server(e) => Fault::fatal(known_code(&e.code), e.message),
        other => Fault::fatal(sqlstate::CONNECTION_FAILURE, other.to_string()),
    };
    Failed::Fault(fault)
}

fn known_code(code: &str) -> &'static str {
    const CODES: [&str; 6] = ["22023", "42704", "42501", "55P02", "42601", "22P02"];
    CODES.into_iter().find(|c| *c == code).unwrap_or(sqlstate::CONNECTION_FAILURE)
}
