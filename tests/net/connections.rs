//! A small server that answers SSLRequest as Postgres does and then echoes, and ways to reach it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pgweir::config::{ListenTls, TlsMode};
use pgweir::net::{Acceptor, ConnectError, Connector, Listener, Peer, Stream, TlsError, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::certificates::{Directory, Pair};

/// Nothing on loopback takes this long.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn acceptor(mode: TlsMode, pair: &Pair, client_ca: Option<PathBuf>) -> Result<Acceptor, TlsError> {
    let files = Directory::new();
    Acceptor::new(&ListenTls {
        mode,
        certificate: Some(files.write("server.crt", &pair.certificate)),
        private_key: Some(files.write("server.key", &pair.key)),
        client_ca,
    })
}

pub async fn listen() -> (Listener, u16) {
    let listener = Listener::bind_tcp("127.0.0.1:0").await.unwrap().remove(0);
    match listener.local().unwrap() {
        Peer::Tcp(address) => (listener, address.port()),
        Peer::Unix => panic!(),
    }
}

/// Answers the client's question for TLS, if it has one.
pub async fn welcome(mut stream: Stream, acceptor: &Acceptor) -> Result<Stream, TlsError> {
    let mut request = [0; 8];
    stream.read_exact(&mut request).await.unwrap();
    assert_eq!(request, [0, 0, 0, 8, 4, 210, 22, 47]);
    let answer = acceptor.answer(&stream);
    stream.write_all(&[answer]).await.unwrap();
    if answer == b'S' { acceptor.accept(stream).await } else { Ok(stream) }
}

pub async fn echo(mut stream: Stream) {
    let mut buf = [0; 64];
    while let Ok(n @ 1..) = stream.read(&mut buf).await {
        stream.write_all(&buf[..n]).await.unwrap();
        stream.flush().await.unwrap();
    }
}

/// Serves every client of one listener until the runtime ends.
pub async fn serve(acceptor: Acceptor) -> u16 {
    let (listener, port) = listen().await;
    tokio::spawn(async move {
        loop {
            let stream = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(stream) = welcome(stream, &acceptor).await {
                    echo(stream).await;
                }
            });
        }
    });
    port
}

pub async fn say(stream: &mut Stream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    stream.flush().await.unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back, text);
}

/// Connects in `mode`, and has a word echoed.
pub async fn reach(host: &str, port: u16, mode: TlsMode, ca: Option<&Path>) -> Result<Stream, ConnectError> {
    let connector = Connector::new(mode, ca).unwrap();
    let mut stream = connect(host, port, &connector, PATIENCE).await?;
    if mode != TlsMode::Disable {
        say(&mut stream, b"hello").await;
    }
    Ok(stream)
}

pub fn tls_error(result: Result<Stream, ConnectError>) -> String {
    match result {
        Err(ConnectError::Tls(why)) => why,
        other => panic!("{other:?}"),
    }
}
