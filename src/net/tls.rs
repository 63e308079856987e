//! TLS settings: [`Acceptor`] towards clients, [`Connector`] towards servers.
//!
//! The cryptography is named at each place; there is no default of the process.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, CommonState, ProtocolVersion, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::certificate;
use super::names::Names;
use super::stream::{Stream, TlsInfo};
use super::verify::{Authorities, Check, ServerVerifier};
use crate::config::{ListenTls, TlsMode};

/// Registered for Postgres; protocol documentation, "SSL Session Encryption".
const ALPN: &[u8] = b"postgresql";

/// What can be wrong with TLS.
#[derive(Debug)]
pub enum TlsError {
    /// A file of certificates or a key.
    File { path: PathBuf, error: String },
    /// Settings that do not fit each other.
    Settings(String),
    /// The handshake failed.
    Handshake(String),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsError::File { path, error } => write!(f, "{}: {error}", path.display()),
            TlsError::Settings(why) => f.write_str(why),
            TlsError::Handshake(why) => write!(f, "TLS handshake failed: {why}"),
        }
    }
}

impl std::error::Error for TlsError {}

/// TLS towards clients. Reloading is making another.
#[derive(Debug, Clone)]
pub struct Acceptor {
    mode: TlsMode,
    /// With the channel binding data of its certificate; `None`: no TLS.
    offer: Option<(Arc<ServerConfig>, Option<Vec<u8>>)>,
}

impl Acceptor {
    /// Reads the files named in the settings.
    ///
    /// # Errors
    /// A file is missing or malformed, or the settings do not fit each other.
    pub fn new(settings: &ListenTls) -> Result<Self, TlsError> {
        let mode = settings.mode;
        if mode == TlsMode::Disable {
            return Ok(Acceptor { mode, offer: None });
        }
        let chain = read_certificates(named(&settings.certificate, "certificate")?)?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let pair = read_key(named(&settings.private_key, "private_key")?, chain, &provider)?;
        let end_point = pair.cert.first().and_then(|first| certificate::end_point(first));
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(settings_error)?;
        let builder = match mode {
            TlsMode::VerifyCa | TlsMode::VerifyFull => {
                let ca = Authorities::read(named(&settings.client_ca, "client_ca")?)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(ca.roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(settings_error)?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // libpq never resumes a session; drivers on other libraries do. The tickets end with these settings: after a
        // reload each client shows what it has anew.
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(settings_error)?;
        config.send_tls13_tickets = 1;
        Ok(Acceptor { mode, offer: Some((Arc::new(config), end_point)) })
    }

    /// The answer to an SSLRequest: `S` or `N`. As in Postgres, there is no TLS on unix sockets.
    pub fn answer(&self, stream: &Stream) -> u8 {
        if self.offers(stream) { b'S' } else { b'N' }
    }

    fn offers(&self, stream: &Stream) -> bool {
        self.offer.is_some() && !stream.is_unix() && !stream.is_tls()
    }

    /// Whether the client begins with a TLS handshake at once, unasked (libpq 17's `sslnegotiation=direct`); if so, go on
    /// with [`Acceptor::accept_direct`]. Waits for the client's first byte and leaves it unread.
    ///
    /// # Errors
    /// Of the socket.
    pub async fn is_direct(&self, stream: &Stream) -> io::Result<bool> {
        const HANDSHAKE_RECORD: u8 = 22;
        Ok(self.offers(stream) && stream.peek().await? == Some(HANDSHAKE_RECORD))
    }

    /// Like [`Acceptor::accept`], without an SSLRequest. As in Postgres, ALPN is then required, which keeps browsers
    /// from being turned against the port.
    ///
    /// # Errors
    /// Those of `accept`, and the client names no protocol.
    pub async fn accept_direct(&self, stream: Stream) -> Result<Stream, TlsError> {
        let stream = self.accept(stream).await?;
        match stream.alpn() {
            Some(ALPN) => Ok(stream),
            _ => Err(TlsError::Handshake("direct TLS without the ALPN protocol \"postgresql\"".into())),
        }
    }

    /// Whether this client must be refused as long as it is not encrypted.
    pub fn refuses(&self, stream: &Stream) -> bool {
        self.mode >= TlsMode::Require && !stream.is_unix() && !stream.is_tls()
    }

    /// The server's side of the handshake, after `S` was sent. Bytes that the client sent behind its SSLRequest must
    /// have been refused by then (CVE-2021-23214).
    ///
    /// # Errors
    /// The handshake fails, the client's certificate included.
    pub async fn accept(&self, stream: Stream) -> Result<Stream, TlsError> {
        let (Some((config, end_point)), Some((socket, peer, local))) = (&self.offer, stream.into_socket()) else {
            return Err(TlsError::Settings("no TLS is offered on this connection".into()));
        };
        let stream = TlsAcceptor::from(config.clone()).accept(socket).await.map_err(|error| handshake(&error))?;
        let info = info(stream.get_ref().1, end_point.clone());
        Ok(Stream::tls_server(stream, peer, local, info))
    }
}

/// The way to servers: their names, and TLS. One for each database, shared by its connections, which so resume sessions.
#[derive(Debug, Clone)]
pub struct Connector {
    mode: TlsMode,
    /// `None`: no TLS. Of all clones.
    config: Option<Arc<ArcSwap<ClientConfig>>>,
    names: Names,
}

impl Connector {
    /// `ca` is a PEM file of authorities; without it the verifying modes use the system's.
    ///
    /// # Errors
    /// The file is missing or malformed, or the system has no authorities.
    pub fn new(mode: TlsMode, ca: Option<&Path>) -> Result<Self, TlsError> {
        let check = match mode {
            TlsMode::Disable => return Ok(Connector::plain()),
            TlsMode::Allow | TlsMode::Prefer | TlsMode::Require => Check::Nothing,
            TlsMode::VerifyCa => Check::Chain(Authorities::read_or_native(ca)?),
            TlsMode::VerifyFull => Check::ChainAndName(Authorities::read_or_native(ca)?),
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = ServerVerifier::new(check, &provider);
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(settings_error)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Connector { mode, config: Some(Arc::new(ArcSwap::from_pointee(config))), names: Names::System })
    }

    /// No TLS: for what never leaves the machine or its pod network, and carries no secret but its own.
    pub fn plain() -> Self {
        Connector { mode: TlsMode::Disable, config: None, names: Names::System }
    }

    /// From now on this one and its clones trust whom `other` does. One of another mode changes nothing.
    pub fn adopt(&self, other: &Connector) {
        if let (Some(own), Some(other), true) = (&self.config, &other.config, self.mode == other.mode) {
            own.store(other.load_full());
        }
    }

    /// With names looked up there.
    pub fn with_names(self, names: Names) -> Self {
        Connector { names, ..self }
    }

    pub fn names(&self) -> &Names {
        &self.names
    }

    pub fn mode(&self) -> TlsMode {
        self.mode
    }

    /// The client's side of the handshake, after the server's `S`.
    pub(super) async fn handshake(&self, stream: Stream, name: ServerName<'static>) -> Result<Stream, TlsError> {
        let (Some(config), Some((socket, peer, local))) = (&self.config, stream.into_socket()) else {
            return Err(TlsError::Settings("TLS is disabled".into()));
        };
        let connecting = TlsConnector::from(config.load_full()).connect(name, socket);
        let stream = connecting.await.map_err(|error| handshake(&error))?;
        let state = stream.get_ref().1;
        let end_point = state.peer_certificates().and_then(|chain| certificate::end_point(chain.first()?));
        let info = info(state, end_point);
        Ok(Stream::tls_client(stream, peer, local, info))
    }
}

impl Authorities {
    fn read(path: &Path) -> Result<Self, TlsError> {
        let certificates = read_certificates(path)?;
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots.add(certificate.clone()).map_err(|error| file_error(path, error))?;
        }
        Ok(Authorities { roots, certificates })
    }

    fn read_or_native(path: Option<&Path>) -> Result<Self, TlsError> {
        if let Some(path) = path {
            return Self::read(path);
        }
        let certificates = rustls_native_certs::load_native_certs().certs;
        let mut roots = RootCertStore::empty();
        // some of a system's are too old to read; the others serve
        if roots.add_parsable_certificates(certificates.iter().cloned()).0 == 0 {
            return Err(TlsError::Settings("no `ca` is set, and the system has no certificate authorities".into()));
        }
        Ok(Authorities { roots, certificates })
    }
}

fn named<'a>(path: &'a Option<PathBuf>, key: &str) -> Result<&'a Path, TlsError> {
    path.as_deref().ok_or_else(|| TlsError::Settings(format!("listen.tls.{key} is not set, and this mode needs it")))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match read {
        Ok(certificates) if certificates.is_empty() => Err(file_error(path, "no certificate in it")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(file_error(path, error)),
    }
}

/// rustls's own way to pair them refuses certificates of version 1, which Postgres serves with.
fn read_key(
    path: &Path,
    chain: Vec<CertificateDer<'static>>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let key = PrivateKeyDer::from_pem_file(path).map_err(|error| file_error(path, error))?;
    let key = provider.key_provider.load_private_key(key).map_err(|error| file_error(path, error))?;
    let certified = chain.first().and_then(|first| certificate::Certificate::read(first)).map(|first| first.key_info);
    match (certified, key.public_key()) {
        (Some(certified), Some(own)) if certified != own.as_ref() => {
            Err(file_error(path, "this key is not the certificate's"))
        }
        (None, _) => Err(TlsError::Settings("listen.tls.certificate: the first certificate is malformed".into())),
        _ => Ok(CertifiedKey::new(chain, key)),
    }
}

fn file_error(path: &Path, error: impl fmt::Display) -> TlsError {
    TlsError::File { path: path.to_owned(), error: error.to_string() }
}

fn settings_error(error: impl fmt::Display) -> TlsError {
    TlsError::Settings(error.to_string())
}

fn info(state: &CommonState, end_point: Option<Vec<u8>>) -> TlsInfo {
    let peer_name = state.peer_certificates().and_then(|chain| certificate::common_name(chain.first()?));
    let version = match state.protocol_version() {
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "TLS",
    };
    let cipher = state.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
    // rustls writes TLS13_ for what IANA and OpenSSL call TLS_
    let cipher = cipher.unwrap_or_default().replacen("TLS13_", "TLS_", 1);
    TlsInfo { version, cipher, end_point, peer_name }
}

/// Says what can be done about the errors that people meet.
fn handshake(error: &io::Error) -> TlsError {
    use rustls::CertificateError as Bad;

    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(bad)) = inner else {
        return TlsError::Handshake(error.to_string());
    };
    TlsError::Handshake(match bad {
        Bad::UnknownIssuer => "the certificate is not signed by a trusted authority; is the right one in `ca`?".into(),
        Bad::Expired | Bad::ExpiredContext { .. } => "the certificate has expired".into(),
        Bad::NotValidYet | Bad::NotValidYetContext { .. } => "the certificate is not valid yet".into(),
        Bad::NotValidForNameContext { expected, presented } => {
            format!("the certificate is for {}, not for host {}", presented.join(", "), expected.to_str())
        }
        Bad::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "the certificate is that of an authority, not of a server; to trust it as it is, put it into `ca`".into()
        }
        other => format!("the certificate is refused: {other}"),
    })
}
