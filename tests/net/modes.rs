//! libpq's sslmodes.

use std::sync::Arc;

use pgweir::config::TlsMode::{self, Disable, Prefer, Require, VerifyCa, VerifyFull};
use pgweir::net::{Acceptor, ConnectError, Connector, Stream, connect};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::certificates::{Authority, Directory, Pair, ed25519, self_signed};
use crate::connections::{PATIENCE, acceptor, listen, reach, serve, tls_error, welcome};

async fn serve_pair(pair: &Pair) -> u16 {
    serve(acceptor(Prefer, pair, None).unwrap()).await
}

fn no_tls() -> Acceptor {
    let files = self_signed(&[]);
    acceptor(Disable, &files, None).unwrap()
}

#[tokio::test]
async fn plain_server() {
    let port = serve(no_tls()).await;
    let stream = reach("127.0.0.1", port, Prefer, None).await.unwrap();
    assert!(!stream.is_tls() && stream.tls_info().is_none());
    let why = tls_error(reach("127.0.0.1", port, Require, None).await);
    assert!(why.contains("does not offer"), "{why}");
    assert!(!reach("127.0.0.1", port, Disable, None).await.unwrap().is_tls());
}

#[test]
fn a_key_must_be_the_certificates() {
    let [one, two] = [self_signed(&["localhost"]), self_signed(&["localhost"])];
    let mixed = Pair { certificate: one.certificate, key: two.key };
    let error = acceptor(Prefer, &mixed, None).unwrap_err().to_string();
    assert!(error.contains("server.key") && error.contains("not the certificate's"), "{error}");
    let swapped = Pair { certificate: mixed.key, key: mixed.certificate };
    assert!(acceptor(Prefer, &swapped, None).is_err());
}

#[tokio::test]
async fn any_certificate_serves_where_none_is_checked() {
    let authority = Authority::new("ca");
    let kinds = [
        self_signed(&["elsewhere"]),
        authority.issue("elsewhere", &[]),
        authority.issue_expired(&["localhost"]),
        authority.issue_version_1("elsewhere"),
        ed25519(),
    ];
    for pair in &kinds {
        let port = serve_pair(pair).await;
        for mode in [Prefer, Require] {
            let stream = reach("localhost", port, mode, None).await.unwrap();
            assert_eq!(stream.tls_info().unwrap().version, "TLSv1.3");
        }
    }
}

#[tokio::test]
async fn verify_ca_wants_the_chain_alone() {
    let (authority, other) = (Authority::new("ca"), Authority::new("other"));
    let files = Directory::new();
    let ca = files.write("ca.crt", &authority.certificate);
    let wrong = files.write("wrong.crt", &other.certificate);
    let both = files.write("both.crt", &format!("{}{}", other.certificate, authority.certificate));
    for pair in [authority.issue("x", &["elsewhere"]), authority.issue("x", &[]), authority.issue_version_1("x")] {
        let port = serve_pair(&pair).await;
        for good in [&ca, &both] {
            assert!(reach("127.0.0.1", port, VerifyCa, Some(good)).await.unwrap().is_tls());
        }
        let why = tls_error(reach("127.0.0.1", port, VerifyCa, Some(&wrong)).await);
        assert!(why.contains("not signed by a trusted authority"), "{why}");
    }
    let port = serve_pair(&authority.issue_expired(&["localhost"])).await;
    let why = tls_error(reach("localhost", port, VerifyCa, Some(&ca)).await);
    assert!(why.contains("expired"), "{why}");
    // What is not understood is no certificate of version 1.
    let port = serve_pair(&authority.issue_with_critical_extension(&["localhost"])).await;
    let why = tls_error(reach("localhost", port, VerifyCa, Some(&ca)).await);
    assert!(why.contains("CriticalExtension"), "{why}");
}

#[tokio::test]
async fn an_authority_of_the_same_name_is_not_the_same() {
    let (authority, forger) = (Authority::new("ca"), Authority::new("ca"));
    let files = Directory::new();
    let ca = files.write("ca.crt", &authority.certificate);
    for pair in [forger.issue("localhost", &["localhost"]), forger.issue_version_1("localhost")] {
        let port = serve_pair(&pair).await;
        tls_error(reach("localhost", port, VerifyCa, Some(&ca)).await);
    }
}

#[tokio::test]
async fn a_self_signed_certificate_is_its_own_authority() {
    let (pair, other) = (self_signed(&["localhost"]), self_signed(&["localhost"]));
    let files = Directory::new();
    let ca = files.write("ca.crt", &pair.certificate);
    let port = serve_pair(&pair).await;
    assert!(reach("127.0.0.1", port, VerifyCa, Some(&ca)).await.is_ok());
    assert!(reach("localhost", port, VerifyFull, Some(&ca)).await.is_ok());
    tls_error(reach("127.0.0.1", port, VerifyFull, Some(&ca)).await);
    let port = serve_pair(&other).await;
    let why = tls_error(reach("localhost", port, VerifyCa, Some(&ca)).await);
    assert!(why.contains("put it into `ca`"), "{why}");
}

#[tokio::test]
async fn older_tls_and_older_certificates_go_together() {
    let authority = Authority::new("ca");
    let files = Directory::new();
    let ca = files.write("ca.crt", &authority.certificate);
    for pair in [authority.issue("localhost", &[]), authority.issue_version_1("localhost")] {
        let (listener, port) = listen().await;
        let server = server_of(&pair, &TLS12);
        let serving = async {
            let mut raw = listener.accept().await.unwrap();
            raw.read_exact(&mut [0; 8]).await.unwrap();
            raw.write_all(b"S").await.unwrap();
            server.accept(raw).await.unwrap()
        };
        let connector = Connector::new(VerifyFull, Some(&ca)).unwrap();
        let (_server, client) = tokio::join!(serving, connect("localhost", port, &connector, PATIENCE));
        assert_eq!(client.unwrap().tls_info().unwrap().version, "TLSv1.2");
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_checked_must_still_be_the_servers_own() {
    let authority = Authority::new("ca");
    for pair in [authority.issue("x", &[]), authority.issue_version_1("x")] {
        let stolen = Pair { certificate: pair.certificate, key: self_signed(&[]).key };
        for version in [&TLS12, &TLS13] {
            let (listener, port) = listen().await;
            let server = server_of(&stolen, version);
            let serving = async {
                let mut raw = listener.accept().await.unwrap();
                raw.read_exact(&mut [0; 8]).await.unwrap();
                raw.write_all(b"S").await.unwrap();
                server.accept(raw).await
            };
            let connector = Connector::new(Require, None).unwrap();
            let (_, client) = tokio::join!(serving, connect("localhost", port, &connector, PATIENCE));
            tls_error(client);
        }
    }
}

/// A server that does not care whether its key fits its certificate.
fn server_of(pair: &Pair, version: &'static rustls::SupportedProtocolVersion) -> tokio_rustls::TlsAcceptor {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let key = provider.key_provider.load_private_key(key).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key))));
    Arc::new(config).into()
}

#[tokio::test]
async fn verify_full_wants_the_name_too() {
    let authority = Authority::new("ca");
    let files = Directory::new();
    let ca = files.write("ca.crt", &authority.certificate);
    let good = [
        authority.issue("x", &["localhost"]),
        authority.issue("x", &["127.0.0.1", "localhost"]),
        authority.issue("localhost", &[]),
        // an alternative name of another kind leaves the common name in force
        authority.issue("LOCALHOST", &["10.0.0.1"]),
        authority.issue_version_1("localhost"),
    ];
    for pair in &good {
        let port = serve_pair(pair).await;
        assert!(reach("localhost", port, VerifyFull, Some(&ca)).await.is_ok());
    }
    let bad = [
        authority.issue("x", &["elsewhere"]),
        authority.issue("localhost", &["elsewhere"]),
        authority.issue("*", &[]),
        authority.issue_version_1("elsewhere"),
    ];
    for pair in &bad {
        let port = serve_pair(pair).await;
        assert!(reach("localhost", port, VerifyCa, Some(&ca)).await.is_ok());
        let why = tls_error(reach("localhost", port, VerifyFull, Some(&ca)).await);
        assert!(why.contains("not for host localhost"), "{why}");
    }
    let port = serve_pair(&authority.issue("x", &["127.0.0.1"])).await;
    assert!(reach("127.0.0.1", port, VerifyFull, Some(&ca)).await.is_ok());
}

#[tokio::test]
async fn both_ends_bind_to_the_servers_certificate() {
    let pair = self_signed(&["localhost"]);
    let acceptor = acceptor(Require, &pair, None).unwrap();
    let (listener, port) = listen().await;
    let serving = async { welcome(listener.accept().await.unwrap(), &acceptor).await.unwrap() };
    let connector = Connector::new(Require, None).unwrap();
    let (server, client) = tokio::join!(serving, connect("127.0.0.1", port, &connector, PATIENCE));
    // rcgen signs with ECDSA and SHA-256
    let der = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der).as_ref().to_vec();
    let client = client.unwrap();
    let end_point = |stream: &Stream| stream.tls_info().unwrap().end_point.clone();
    assert_eq!((end_point(&client), end_point(&server)), (Some(hash.clone()), Some(hash)));
    assert!(client.tls_info().unwrap().to_string().starts_with("TLSv1.3/TLS_"));

    let port = serve_pair(&ed25519()).await;
    assert_eq!(end_point(&reach("127.0.0.1", port, Require, None).await.unwrap()), None);
}

#[tokio::test]
async fn clients_are_answered_by_mode() {
    let pair = self_signed(&["localhost"]);
    let (listener, port) = listen().await;
    let raw = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let stream = listener.accept().await.unwrap();
    let unix = Stream::unix(tokio::net::UnixStream::pair().unwrap().0);
    let files = Directory::new();
    let client_ca = files.write("ca.crt", &Authority::new("ca").certificate);
    for (mode, answer, refuses) in [
        (Disable, b'N', false),
        (TlsMode::Allow, b'S', false),
        (Prefer, b'S', false),
        (Require, b'S', true),
        (VerifyCa, b'S', true),
        (VerifyFull, b'S', true),
    ] {
        let acceptor = acceptor(mode, &pair, Some(client_ca.clone())).unwrap();
        assert_eq!((acceptor.answer(&stream), acceptor.refuses(&stream)), (answer, refuses), "{mode:?}");
        assert_eq!((acceptor.answer(&unix), acceptor.refuses(&unix)), (b'N', false), "{mode:?}");
    }
    drop(raw);
    assert!(acceptor(VerifyCa, &pair, None).unwrap_err().to_string().contains("client_ca"));
}

#[tokio::test]
async fn clients_need_a_certificate_where_it_is_verified() {
    let pair = self_signed(&["localhost"]);
    let files = Directory::new();
    let client_ca = files.write("ca.crt", &Authority::new("ca").certificate);
    let acceptor = acceptor(VerifyCa, &pair, Some(client_ca)).unwrap();
    let (listener, port) = listen().await;
    let connector = Connector::new(Require, None).unwrap();
    let connecting = connect("127.0.0.1", port, &connector, PATIENCE);
    let serving = async { welcome(listener.accept().await.unwrap(), &acceptor).await };
    let (server, _client) = tokio::join!(serving, connecting);
    assert!(server.is_err());
}

#[tokio::test]
async fn tls_without_a_question_needs_alpn() {
    let acceptor = acceptor(Prefer, &self_signed(&["localhost"]), None).unwrap();
    let (listener, port) = listen().await;
    for (alpn, welcome) in [(true, true), (false, false)] {
        let raw = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let stream = listener.accept().await.unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = if alpn { vec![b"postgresql".to_vec()] } else { Vec::new() };
        config.dangerous().set_certificate_verifier(Arc::new(Anyone));
        let client = tokio_rustls::TlsConnector::from(Arc::new(config));
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let serving = async {
            assert!(acceptor.is_direct(&stream).await.unwrap());
            acceptor.accept_direct(stream).await
        };
        let (server, _client) = tokio::join!(serving, client.connect(name, raw));
        assert_eq!(server.is_ok(), welcome, "alpn {alpn}");
    }
    let mut raw = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut stream = listener.accept().await.unwrap();
    raw.write_all(&[0, 0, 0, 8]).await.unwrap();
    assert!(!acceptor.is_direct(&stream).await.unwrap());
    let mut read = [9; 4];
    stream.read_exact(&mut read).await.unwrap();
    assert_eq!(read, [0, 0, 0, 8], "the peek leaves the bytes");
}

#[tokio::test]
async fn odd_answers_to_the_question() {
    for (answer, mode, why) in [
        (&b"E"[..], Prefer, "0x45"),
        (b"H", Require, "0x48"),
        (b"Nx", Prefer, "unencrypted bytes"),
        (b"S\x16", Require, "unencrypted bytes"),
    ] {
        let (listener, port) = listen().await;
        let connector = Connector::new(mode, None).unwrap();
        let serving = async {
            let mut stream = listener.accept().await.unwrap();
            stream.read_exact(&mut [0; 8]).await.unwrap();
            stream.write_all(answer).await.unwrap();
            stream
        };
        let (_server, client) = tokio::join!(serving, connect("127.0.0.1", port, &connector, PATIENCE));
        match client {
            Err(ConnectError::Protocol(text)) => assert!(text.contains(why), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn prefer_falls_back_after_a_failed_handshake() {
    let (listener, port) = listen().await;
    for (mode, ok) in [(Prefer, true), (Require, false)] {
        let connector = Connector::new(mode, None).unwrap();
        let serving = async {
            let mut stream = listener.accept().await.unwrap();
            stream.read_exact(&mut [0; 8]).await.unwrap();
            stream.write_all(b"S").await.unwrap();
            drop(stream);
            if ok {
                listener.accept().await.unwrap();
            }
        };
        let ((), client) = tokio::join!(serving, connect("127.0.0.1", port, &connector, PATIENCE));
        match client {
            Ok(stream) => assert!(ok && !stream.is_tls()),
            Err(error) => assert!(!ok && matches!(error, ConnectError::Tls(_)), "{error:?}"),
        }
    }
}

/// Accepts every certificate.
#[derive(Debug)]
struct Anyone;

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
