//! Making a connection to a server: socket, TLS, login, and what the server says of itself.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use parking_lot::Mutex;
use zeroize::Zeroize;

use crate::auth::{ClientAuth, Credentials, LoginError, Nonce, Password, Reply, ScramKeys};
use crate::backend::cancel::Identity;
use crate::backend::connection::{BackendError, Connection, ServerError};
use crate::config;
use crate::error::{Fault, Malformed, sqlstate};
use crate::net::{ConnectError, Connector};
use crate::session::parameters::Settings;
use crate::session::prepared::Held;
use crate::wire::read::Reader;
use crate::wire::tag::backend;
use crate::wire::write;

/// How one user logs in to servers: learned from the configuration or from the client's own login.
#[derive(Debug)]
pub struct ServerCredentials {
    current: Mutex<Credentials>,
    /// Of the last SCRAM login: they save PBKDF2 on the next.
    keys: Mutex<Option<ScramKeys>>,
    /// When a server last took a password that only servers can check, and none has refused it since.
    proven: Mutex<Option<Instant>>,
    /// A server has refused them since they came.
    doubted: AtomicBool,
}

/// How long a password is taken without asking a server again: after that it may have been changed there.
const PROOF: Duration = Duration::from_secs(60);

impl ServerCredentials {
    pub fn new(credentials: Credentials) -> Arc<ServerCredentials> {
        Arc::new(ServerCredentials {
            current: Mutex::new(credentials),
            keys: Mutex::new(None),
            proven: Mutex::new(None),
            doubted: AtomicBool::new(false),
        })
    }

    /// What the configuration says now.
    pub fn replace(&self, credentials: Credentials) {
        *self.current.lock() = credentials;
        *self.keys.lock() = None;
        self.doubted.store(false, Ordering::Relaxed);
    }

    /// What a client's login has shown. A password serves where its SCRAM keys do not: it stays until a server refuses it.
    pub fn learn(&self, shown: Credentials) {
        let is_better = match (&*self.current.lock(), &shown) {
            (Credentials::Plain(known), Credentials::Plain(shown)) => !known.matches(shown.as_bytes()),
            (Credentials::Plain(_), _) => self.doubted.load(Ordering::Relaxed),
            _ => true,
        };
        if is_better {
            self.replace(shown);
        }
    }

    /// A server has taken this password.
    pub fn prove(&self, password: Password, now: Instant) {
        self.learn(Credentials::Plain(password));
        self.doubted.store(false, Ordering::Relaxed);
        *self.proven.lock() = Some(now);
    }

    /// It is the password that a server took a short while ago.
    pub fn is_proven(&self, password: &Password, now: Instant) -> bool {
        let fresh = self.proven.lock().is_some_and(|at| now.saturating_duration_since(at) < PROOF);
        fresh && matches!(&*self.current.lock(), Credentials::Plain(known) if known.matches(password.as_bytes()))
    }

    /// A server has refused what is known.
    fn doubt(&self) {
        *self.proven.lock() = None;
        self.doubted.store(true, Ordering::Relaxed);
    }

    pub fn current(&self) -> Credentials {
        self.current.lock().clone()
    }
}

/// Who logs in, and to which database of the server.
#[derive(Debug, Clone)]
pub struct Login {
    pub user: Arc<str>,
    pub database: Arc<str>,
    pub credentials: Arc<ServerCredentials>,
}

/// Why no connection could be made.
#[derive(Debug)]
pub enum ConnectFailure {
    Net(ConnectError),
    Login(LoginError),
    Backend(BackendError),
    Timeout,
}

impl ConnectFailure {
    /// The server answered and said no to this login for good: what it said.
    pub fn refusal(&self) -> Option<Fault> {
        match self {
            ConnectFailure::Backend(BackendError::Server(e)) if is_refusal(&e.code) => Some(e.clone().into_fatal()),
            ConnectFailure::Login(e) => Some(Fault::fatal(sqlstate::INVALID_AUTHORIZATION, e.to_string())),
            _ => None,
        }
    }

    /// What the server said to this login, for good or for now (no place is left, for one). `None`: it does not serve.
    pub fn answer(&self) -> Option<Fault> {
        match self {
            ConnectFailure::Backend(BackendError::Server(e)) if !self.is_node_fault() => Some(e.clone().into_fatal()),
            _ => self.refusal(),
        }
    }

    /// The node cannot be reached or does not serve now; it is no fault of this login, nor of too many connections.
    pub fn is_node_fault(&self) -> bool {
        match self {
            ConnectFailure::Backend(BackendError::Server(e)) => e.code.starts_with("57P") || e.code.starts_with("58"),
            ConnectFailure::Login(_) => false,
            ConnectFailure::Net(_) | ConnectFailure::Backend(_) | ConnectFailure::Timeout => true,
        }
    }
}

fn is_refusal(code: &str) -> bool {
    code.starts_with("28") || code.starts_with("3D") || code.starts_with("42") || code == "0A000" || code == "55000"
}

impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectFailure::Net(e) => write!(f, "{e}"),
            ConnectFailure::Login(e) => write!(f, "{e}"),
            ConnectFailure::Backend(e) => write!(f, "{e}"),
            ConnectFailure::Timeout => f.write_str("timed out"),
        }
    }
}

impl From<BackendError> for ConnectFailure {
    fn from(e: BackendError) -> ConnectFailure {
        ConnectFailure::Backend(e)
    }
}

impl From<Malformed> for ConnectFailure {
    fn from(m: Malformed) -> ConnectFailure {
        ConnectFailure::Backend(m.into())
    }
}

/// Connects within `timeout` (socket and TLS), then logs in; the caller bounds the whole.
pub async fn connect(
    node: &config::Node,
    tls: &Connector,
    login: &Login,
    timeout: Duration,
) -> Result<Connection, ConnectFailure> {
    connect_with(node, tls, login, timeout, &[]).await
}

/// The same with more parameters in the startup packet than who logs in and where.
pub async fn connect_with(
    node: &config::Node,
    tls: &Connector,
    login: &Login,
    timeout: Duration,
    more: &[(&str, &str)],
) -> Result<Connection, ConnectFailure> {
    let stream = crate::net::connect(&node.host, node.port, tls, timeout).await.map_err(ConnectFailure::Net)?;
    let end_point = stream.tls_info().and_then(|tls| tls.end_point.clone());
    // The key comes at the end of the login.
    let endpoint = || (node.clone(), tls.clone());
    let identity = Arc::new(Identity::new(endpoint(), &stream, timeout, (0, Box::default())));
    let mut connection = Connection {
        stream,
        inbox: BytesMut::with_capacity(4096),
        outbox: BytesMut::new(),
        statuses: Vec::new(),
        settings: Settings::default(),
        held: Held::default(),
        unnamed: None,
        suspect: false,
        moves: 0,
        in_transaction: false,
        created: Instant::now(),
        at_rest: Instant::now(),
        identity,
    };
    let parameters = [("user", &*login.user), ("database", &*login.database)];
    write::startup(&mut connection.outbox, 0, parameters.iter().chain(more).copied());
    connection.send().await?;
    authenticate(&mut connection, login, end_point).await?;
    let key = greet(&mut connection).await?;
    connection.identity = Arc::new(Identity::new(endpoint(), &connection.stream, timeout, key));
    connection.held = Held::counted(connection.identity.prepared.clone());
    Ok(connection)
}

async fn authenticate(
    connection: &mut Connection,
    login: &Login,
    end_point: Option<Vec<u8>>,
) -> Result<(), ConnectFailure> {
    let known = login.credentials.keys.lock().clone();
    let nonce = Nonce::draw().map_err(|_| Malformed("no randomness for the login"))?;
    let mut auth = ClientAuth::new(&login.user, login.credentials.current(), known, nonce, end_point);
    loop {
        let (tag, body) = connection.receive().await?;
        match tag {
            backend::AUTHENTICATION => match auth.step(&body) {
                Reply::Send(mut answer) => {
                    write::password(&mut connection.outbox, &answer);
                    answer.zeroize();
                    connection.send().await?;
                }
                Reply::Wait => {}
                Reply::Done => break,
                Reply::Fail(error) => return Err(ConnectFailure::Login(error)),
            },
            backend::ERROR => {
                let error = ServerError::read(&body)?;
                if error.code.starts_with("28") {
                    login.credentials.doubt();
                }
                return Err(BackendError::Server(error).into());
            }
            backend::NOTICE | backend::NEGOTIATE_PROTOCOL => {}
            _ => return Err(Malformed("unexpected message during login").into()),
        }
    }
    if let Some(keys) = auth.keys() {
        *login.credentials.keys.lock() = Some(keys.clone());
    }
    Ok(())
}

/// From AuthenticationOk to the first ReadyForQuery; the cancel key.
async fn greet(connection: &mut Connection) -> Result<(i32, Box<[u8]>), ConnectFailure> {
    let mut key = (0, Box::default());
    loop {
        let (tag, body) = connection.receive().await?;
        match tag {
            backend::BACKEND_KEY_DATA => {
                let mut r = Reader::new(&body);
                key = (r.i32()?, r.rest().into());
            }
            backend::PARAMETER_STATUS => connection.note_status(&body)?,
            backend::READY => return Ok(key),
            backend::ERROR => return Err(BackendError::Server(ServerError::read(&body)?).into()),
            backend::NOTICE => {}
            _ => return Err(Malformed("unexpected message during login").into()),
        }
    }
}

/// Evenly from 0.0 up to 1.0.
pub fn jitter() -> f64 {
    let mut bytes = [0u8; 4];
    // Without randomness there is no jitter, which is harmless.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_outlasts_keys_of_it_until_it_is_refused() {
        let keys = ScramKeys::derive(b"word", vec![7; 16], crate::auth::secret::DEFAULT_ITERATIONS);
        let credentials = ServerCredentials::new(Credentials::None);
        let is_plain = || matches!(credentials.current(), Credentials::Plain(_));
        credentials.learn(Credentials::Scram(keys.clone()));
        credentials.learn(Credentials::Plain(Password::new("word")));
        credentials.learn(Credentials::Scram(keys.clone()));
        assert!(is_plain());
        credentials.doubt();
        credentials.learn(Credentials::Scram(keys.clone()));
        assert!(!is_plain());
        credentials.learn(Credentials::Plain(Password::new("word")));
        credentials.learn(Credentials::Scram(keys));
        assert!(is_plain(), "what was refused was another");
        credentials.replace(Credentials::None);
        assert!(!is_plain());
    }

    #[test]
    fn a_proof_lasts_for_a_while_and_for_its_password_alone() {
        let credentials = ServerCredentials::new(Credentials::None);
        let (old, new, now) = (Password::new("old"), Password::new("new"), Instant::now());
        assert!(!credentials.is_proven(&old, now));
        credentials.prove(old.clone(), now);
        assert!(credentials.is_proven(&old, now) && !credentials.is_proven(&new, now));
        assert!(!credentials.is_proven(&old, now + PROOF));
        credentials.prove(new.clone(), now + PROOF);
        assert!(credentials.is_proven(&new, now + PROOF) && !credentials.is_proven(&old, now + PROOF));
        credentials.doubt();
        assert!(!credentials.is_proven(&new, now + PROOF));
    }
}
