//! From an accepted socket to a session: startup, TLS, authentication, the first ReadyForQuery.

mod greet;
pub mod prove;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zeroize::Zeroize;

use crate::auth::{AUTHENTICATION_OK, Credentials, Entropy, MAX_PASSWORD_LEN, Method, ServerAuth, Step};
use crate::backend::connect::Login;
use crate::backend::connection::Connection;
use crate::config::AuthRule;
use crate::error::{Fault, sqlstate};
use crate::frontend::admission;
use crate::frontend::client::Place;
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
    Session(Box<Session>, Place),
    /// The admin console, for which there is always a place.
    Console(Box<Opening>),
    Replication(Box<Relay>, Place),
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
    /// Logs the client in: who it is, within `login_timeout`; then its session, which may wait for a connection. A failure is
    /// told to it here.
    pub async fn open(mut self) -> Opened {
        let limit = self.proxy.config.load().listen.login_timeout;
        let admitted = tokio::time::timeout(limit, self.establish()).await.unwrap_or_else(|_| {
            Err(Fault::fatal(sqlstate::QUERY_CANCELED, "canceling authentication due to timeout").into())
        });
        let outcome = match admitted {
            Ok(Some(Admitted::Guest(guest))) => self.enter(guest).await,
            Ok(Some(Admitted::Console)) => Ok(LoggedIn::Console),
            Ok(None) => Err(Failed::Gone),
            Err(failed) => Err(failed),
        };
        match outcome {
            Ok(LoggedIn::Console) => Opened::Console(Box::new(self)),
            Ok(LoggedIn::Session(parts, place)) => Opened::Session(Box::new(parts.into_session(self)), place),
            Ok(LoggedIn::Replication(relayed, place)) => {
                let (database, login, startup, connection) = *relayed;
                let relay = Relay::new(self, &login, &database, &startup, connection);
                Opened::Replication(Box::new(relay), place)
            }
            Err(Failed::Gone) => Opened::Nothing,
            Err(Failed::Fault(fault)) => {
                tracing::info!(client = %self.stream.peer(), %fault, "login refused");
                self.outbox.clear();
                write::error(&mut self.outbox, &fault);
                io::part(&mut self.stream, &mut self.outbox).await;
                Opened::Nothing
            }
        }
    }

    async fn establish(&mut self) -> Result<Option<Admitted>, Failed> {
        match self.startup().await? {
            Some(startup) => self.admit(startup).await.map(Some),
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

    async fn admit(&mut self, startup: Startup) -> Result<Admitted, Failed> {
        if startup.must_negotiate() {
            write::negotiate_protocol(&mut self.outbox, startup.agreed_minor(), startup.protocol_options.clone());
        }
        let proxy = self.proxy.clone();
        let config = proxy.config.load_full();
        // The operator comes in to see who has taken them all.
        let place = match CONSOLE.contains(&&*startup.database) {
            true => None,
            false => Some(
                proxy
                    .clients
                    .take_place(config.listen.max_clients)
                    .ok_or_else(|| Fault::fatal(sqlstate::TOO_MANY_CONNECTIONS, "sorry, too many clients already"))?,
            ),
        };
        if place.is_some() && proxy.closing.load(Ordering::Relaxed) {
            return Err(Fault::fatal(sqlstate::CANNOT_CONNECT_NOW, "pgweir is shutting down").into());
        }
        if proxy.acceptor.load().refuses(&self.stream) {
            return Err(Fault::fatal(sqlstate::INVALID_AUTHORIZATION, "SSL connection is required").into());
        }
        let rule = admission::rule(&config.auth.rules, &self.stream, &startup)?;
        let user = proxy.find_user(&startup.user, &startup.database, self.worker.index).await?;
        let shown = self.authenticate(&startup, rule, user.as_deref()).await?;
        let user = user.ok_or(Failed::Gone)?;
        if startup.replication.is_some() {
            replication::admit(&user)?;
        }
        let Some(place) = place else {
            self.enter_console(&user).await?;
            return Ok(Admitted::Console);
        };
        Ok(Admitted::Guest(self.invite(startup, user, shown, place).await?))
    }

    /// To a database that is there, as a user whom its servers let in.
    async fn invite(
        &self,
        startup: Startup,
        user: Arc<User>,
        shown: Credentials,
        place: Place,
    ) -> Result<Box<Guest>, Failed> {
        let (proxy, asked) = (&self.proxy, &startup.database);
        let unknown = || Fault::fatal(sqlstate::INVALID_CATALOG_NAME, format!("database \"{asked}\" does not exist"));
        let config = proxy.config.load_full();
        let name = match startup.replication {
            Some(_) => replication::database(&config, &startup),
            None => asked,
        };
        if proxy.databases.get(name).is_some_and(|database| database.is_disabled()) {
            let message = format!("database \"{asked}\" is not currently accepting connections");
            return Err(Fault::fatal(sqlstate::NOT_IN_PREREQUISITE_STATE, message).into());
        }
        let servers = proxy.servers(name).ok_or_else(unknown)?;
        let login =
            Login { user: user.name.clone(), database: servers.dbname.clone(), credentials: user.credentials.clone() };
        let given = match shown {
            Credentials::Plain(password) if matches!(user.method(), Method::Passthrough) => Some(password),
            // Who has shown the password itself, to be checked by a hash of it, can be logged in anywhere.
            Credentials::Plain(_) | Credentials::Md5(_) | Credentials::Scram(_) if !user.has_password() => {
                user.credentials.learn(shown);
                None
            }
            _ => None,
        };
        proxy.prove(&servers, &login, given.as_ref()).await?;
        let database = proxy.database(name).ok_or_else(unknown)?;
        Ok(Box::new(Guest { startup, user, database, login, place }))
    }

    /// From the admitted client to its session.
    async fn enter(&mut self, guest: Box<Guest>) -> Result<LoggedIn, Failed> {
        let Guest { startup, user, database, login, place } = *guest;
        write::authentication(&mut self.outbox, &AUTHENTICATION_OK);
        if startup.replication.is_some() {
            let connection = replication::dial(&database, &login, &startup).await?;
            return Ok(LoggedIn::Replication(Box::new((database, login, startup, connection)), place));
        }
        let greeted = self.greet(startup, database.clone(), login, &user).await;
        if matches!(&greeted, Err(Failed::Fault(fault)) if fault.code == sqlstate::INVALID_CATALOG_NAME) {
            self.proxy.forget(&database);
        }
        Ok(LoggedIn::Session(Box::new(greeted?), place))
    }

    /// Who the client is. A user that is not known is asked all the same, and refused as for a wrong password.
    async fn authenticate(
        &mut self,
        startup: &Startup,
        rule: Option<&AuthRule>,
        user: Option<&User>,
    ) -> Result<Credentials, Failed> {
        let method = admission::method(rule, &self.stream, startup, user)?;
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

/// Who has shown who it is.
enum Admitted {
    Guest(Box<Guest>),
    Console,
}

struct Guest {
    startup: Startup,
    user: Arc<User>,
    database: Arc<Database>,
    login: Login,
    place: Place,
}

enum LoggedIn {
    Session(Box<Parts>, Place),
    Replication(Box<(Arc<Database>, Login, Startup, Box<Connection>)>, Place),
    Console,
}
