//! Reaching a server: addresses, the socket, and the question whether it speaks TLS.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};

use super::stream::{Peer, Stream};
use super::tls::{Connector, TlsError};
use crate::config::TlsMode;

/// SSLRequest: its length, and 1234.5679 (protocol documentation, "Message Formats").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Why a server was not reached. Nothing was sent that a retry could repeat.
#[derive(Debug)]
pub enum ConnectError {
    /// The name has no address.
    Resolve(String),
    /// The socket: refused, unreachable, closed during the TLS question.
    Refused(io::Error),
    Timeout,
    /// TLS is demanded and not to be had, or its handshake failed.
    Tls(String),
    /// An answer that no Postgres gives.
    Protocol(String),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Resolve(why) => write!(f, "cannot resolve the host name: {why}"),
            ConnectError::Refused(error) => write!(f, "cannot connect: {error}"),
            ConnectError::Timeout => f.write_str("cannot connect: timeout"),
            ConnectError::Tls(why) | ConnectError::Protocol(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ConnectError {}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        ConnectError::Refused(error)
    }
}

impl From<TlsError> for ConnectError {
    fn from(error: TlsError) -> Self {
        ConnectError::Tls(error.to_string())
    }
}

/// Connects to a server, TLS included, within `timeout`. A `host` with a leading `/` is the directory of a unix
/// socket, on which, as in libpq, there is no TLS whatever the mode.
///
/// # Errors
/// Of the last address tried, where a name has several.
pub async fn connect(host: &str, port: u16, tls: &Connector, timeout: Duration) -> Result<Stream, ConnectError> {
    let deadline = Instant::now() + timeout;
    if host.starts_with('/') {
        let path = format!("{host}/.s.PGSQL.{port}");
        return Ok(Stream::unix(within(deadline, UnixStream::connect(path)).await??));
    }
    let addresses = match within(deadline, tls.names().addresses(host, port)).await? {
        Ok(addresses) => addresses,
        Err(error) => return Err(ConnectError::Resolve(format!("{host}: {error}"))),
    };
    let mut last = ConnectError::Resolve(format!("{host} has no address"));
    for (index, address) in addresses.iter().enumerate() {
        // an address that swallows packets leaves their share of the time to those behind it
        let now = Instant::now();
        let share = deadline.saturating_duration_since(now) / (addresses.len() - index) as u32;
        match connect_tcp(host, *address, tls, now + share).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Connects to where a connection to this host has led, wherever its name may lead now.
///
/// # Errors
/// As of [`connect`].
pub async fn connect_again(
    peer: Peer,
    (host, port): (&str, u16),
    tls: &Connector,
    timeout: Duration,
) -> Result<Stream, ConnectError> {
    match peer {
        Peer::Tcp(address) => connect_tcp(host, address, tls, Instant::now() + timeout).await,
        Peer::Unix => connect(host, port, tls, timeout).await,
    }
}

async fn within<T>(deadline: Instant, future: impl Future<Output = T>) -> Result<T, ConnectError> {
    timeout_at(deadline, future).await.map_err(|_| ConnectError::Timeout)
}

async fn connect_tcp(
    host: &str,
    address: SocketAddr,
    tls: &Connector,
    deadline: Instant,
) -> Result<Stream, ConnectError> {
    let attempt = async { negotiate(open(address).await?, host, tls).await };
    match within(deadline, attempt).await? {
        // libpq's `prefer` tries again in the clear after a failed handshake
        Err(ConnectError::Tls(_)) if matches!(tls.mode(), TlsMode::Allow | TlsMode::Prefer) => {
            within(deadline, open(address)).await?
        }
        other => other,
    }
}

async fn open(address: SocketAddr) -> Result<Stream, ConnectError> {
    Ok(Stream::tcp(TcpStream::connect(address).await?, address)?)
}

/// Protocol documentation, "SSL Session Encryption".
async fn negotiate(mut stream: Stream, host: &str, tls: &Connector) -> Result<Stream, ConnectError> {
    if tls.mode() == TlsMode::Disable {
        return Ok(stream);
    }
    let name = server_name(host, &stream, tls.mode())?;
    stream.write_all(&SSL_REQUEST).await?;
    // room for one byte more than the answer has: what comes before the handshake is not protected by it, and must not
    // be taken for the server's (CVE-2021-23222)
    let mut answer = [0; 2];
    match (stream.read(&mut answer).await?, answer[0]) {
        (1, b'S') => Ok(tls.handshake(stream, name).await?),
        (1, b'N') if tls.mode() <= TlsMode::Prefer => Ok(stream),
        (1, b'N') => Err(ConnectError::Tls("TLS is demanded, and the server does not offer it".into())),
        (0, _) => Err(ConnectError::Refused(io::ErrorKind::UnexpectedEof.into())),
        (1, other) => {
            Err(ConnectError::Protocol(format!("answer to SSLRequest is 0x{other:02x}: not a Postgres server?")))
        }
        _ => Err(ConnectError::Protocol("unencrypted bytes behind the answer to SSLRequest".into())),
    }
}

/// What the certificate must be for, and what the server is told (SNI). A name that no certificate can have is an
/// error only where names count.
fn server_name(host: &str, stream: &Stream, mode: TlsMode) -> Result<ServerName<'static>, ConnectError> {
    match (ServerName::try_from(host.to_owned()), stream.peer()) {
        (Ok(name), _) => Ok(name),
        (Err(_), Peer::Tcp(address)) if mode < TlsMode::VerifyFull => Ok(ServerName::from(address.ip())),
        (Err(error), _) => Err(ConnectError::Tls(format!("{host} cannot be in a certificate: {error}"))),
    }
}
