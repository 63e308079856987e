//! Sockets: listening, connecting, moving between runtimes, noticing what died idle.

use std::fs;
use std::future::poll_fn;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use pgweir::config::TlsMode::{Disable, Require};
use pgweir::net::{Acceptor, ConnectError, Connector, Listener, Peer, Stream, connect};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};

use crate::certificates::{Directory, self_signed};
use crate::connections::{PATIENCE, acceptor, echo, listen, reach, say, serve, welcome};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn plain() -> Connector {
    Connector::new(Disable, None).unwrap()
}

/// Both ends of a connection, server first.
async fn pair(tls: bool) -> (Stream, Stream) {
    let (listener, port) = listen().await;
    if !tls {
        let connector = plain();
        let (server, client) = tokio::join!(listener.accept(), connect("127.0.0.1", port, &connector, PATIENCE));
        return (server.unwrap(), client.unwrap());
    }
    let acceptor = acceptor(Require, &self_signed(&["localhost"]), None).unwrap();
    let connector = Connector::new(Require, None).unwrap();
    let serving = async { welcome(listener.accept().await.unwrap(), &acceptor).await.unwrap() };
    let (server, client) = tokio::join!(serving, connect("127.0.0.1", port, &connector, PATIENCE));
    (server, client.unwrap())
}

async fn unix_pair() -> (Stream, Stream) {
    let (a, b) = tokio::net::UnixStream::pair().unwrap();
    (Stream::unix(a), Stream::unix(b))
}

type Make = fn(&Runtime) -> (Stream, Stream);

/// Each kind of connection, made in a runtime.
fn kinds() -> [(&'static str, Make); 3] {
    [
        ("plain", |runtime| runtime.block_on(pair(false))),
        ("tls", |runtime| runtime.block_on(pair(true))),
        ("unix", |runtime| runtime.block_on(unix_pair())),
    ]
}

/// Lets the reactor run until it has seen something.
fn ask_reactor(runtime: &Runtime, stream: &mut Stream, buf: &mut [u8]) -> io::Result<usize> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match stream.try_read_seen(buf) {
            Some(result) => return result,
            None => assert!(Instant::now() < deadline, "nothing came"),
        }
        runtime.block_on(tokio::task::yield_now());
    }
}

/// Asks until there is something to say, without letting the reactor run.
fn ask(stream: &mut Stream, buf: &mut [u8]) -> io::Result<usize> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match stream.try_read_now(buf) {
            Some(result) => return result,
            None => assert!(Instant::now() < deadline, "nothing came"),
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_connection_moves_to_another_thread_and_outlives_its_first_runtime() {
    for (kind, make) in kinds() {
        let first = runtime();
        let (server, mut client) = make(&first);
        let (to_echo, echoed) = mpsc::channel::<Stream>();
        let serving = std::thread::spawn(move || {
            let mut server = echoed.recv().unwrap();
            runtime().block_on(async {
                server.rehome().unwrap();
                echo(server).await;
            });
        });
        to_echo.send(server).unwrap();
        first.block_on(say(&mut client, b"first"));

        let moved = std::thread::spawn(move || {
            let second = runtime();
            drop(first);
            second.block_on(async {
                client.rehome().unwrap();
                for _ in 0..3 {
                    say(&mut client, b"second").await;
                }
            });
        });
        moved.join().unwrap_or_else(|_| panic!("{kind}"));
        serving.join().unwrap();
    }
}

#[test]
fn without_a_move_a_connection_dies_with_its_runtime() {
    let first = runtime();
    let (_server, mut client) = first.block_on(pair(false));
    drop(first);
    let second = runtime();
    assert!(second.block_on(client.read_u8()).is_err());
}

#[test]
fn a_move_needs_a_runtime_and_leaves_the_connection_whole_without_one() {
    let first = runtime();
    let (mut server, mut client) = first.block_on(pair(false));
    assert!(client.rehome().is_err());
    first.block_on(async {
        client.write_all(b"x").await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'x');
    });
}

#[test]
fn bytes_that_came_before_a_move_are_read_after_it() {
    for (kind, make) in kinds() {
        let first = runtime();
        let (mut server, mut client) = make(&first);
        first.block_on(async {
            server.write_all(b"abc").await.unwrap();
            server.flush().await.unwrap();
            // leaves the rest in the TLS buffer
            assert_eq!(client.read_u8().await.unwrap(), b'a');
        });
        let second = runtime();
        second.block_on(async {
            client.rehome().unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'b', "{kind}");
            assert_eq!(client.read_u8().await.unwrap(), b'c', "{kind}");
        });
    }
}

#[test]
fn idle_connections_tell_what_became_of_them() {
    for (kind, make) in kinds() {
        let runtime = runtime();
        let (mut server, mut client) = make(&runtime);
        let mut buf = [0; 16];
        assert!(client.try_read_now(&mut buf).is_none(), "{kind}: alive");
        runtime.block_on(async {
            server.write_all(b"notice").await.unwrap();
            server.flush().await.unwrap();
        });
        assert_eq!(ask(&mut client, &mut buf).unwrap(), 6, "{kind}");
        assert_eq!(&buf[..6], b"notice");
        assert!(client.try_read_now(&mut buf).is_none(), "{kind}: alive again");

        // asking behind the reactor's back does not confuse it
        runtime.block_on(async {
            client.write_all(b"query").await.unwrap();
            client.flush().await.unwrap();
            let mut query = [0; 5];
            server.read_exact(&mut query).await.unwrap();
            server.write_all(b"reply").await.unwrap();
            server.flush().await.unwrap();
            client.read_exact(&mut query).await.unwrap();
            assert_eq!(&query, b"reply", "{kind}");
        });
        drop(server);
        assert_eq!(ask(&mut client, &mut buf).unwrap(), 0, "{kind}: closed");
    }
}

#[test]
fn a_reset_connection_is_an_error() {
    let runtime = runtime();
    let (mut server, mut client) = runtime.block_on(pair(false));
    runtime.block_on(client.write_all(b"unread")).unwrap();
    // closing with bytes unread sends a reset
    runtime.block_on(async { server.read_u8().await.unwrap() });
    drop(server);
    assert!(ask(&mut client, &mut [0; 4]).is_err());
}

#[tokio::test]
async fn tcp_sockets_are_set_up_and_named() {
    let (server, client) = pair(false).await;
    assert_eq!((server.peer(), server.local()), (client.local(), client.peer()));
    assert!(matches!(client.peer(), Peer::Tcp(address) if address.ip().is_loopback()));
    assert!(!client.is_unix());
    assert_eq!(unix_pair().await.0.peer().to_string(), "unix");
}

#[tokio::test]
async fn vectored_writes_arrive_in_order() {
    for tls in [false, true] {
        let (mut server, mut client) = pair(tls).await;
        assert!(client.is_write_vectored());
        let parts = [io::IoSlice::new(b"one,"), io::IoSlice::new(b"two")];
        assert_eq!(client.write_vectored(&parts).await.unwrap(), 7);
        client.flush().await.unwrap();
        let mut got = [0; 7];
        server.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"one,two");
    }
}

#[tokio::test]
async fn unix_sockets_are_found_by_directory_and_need_no_tls() {
    let directory = Directory::new();
    let listener = Listener::bind_unix(directory.path(), 6432).unwrap();
    let file = directory.path().join(".s.PGSQL.6432");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o777);
    let host = directory.path().to_str().unwrap().to_owned();
    let serving = async { echo(listener.accept().await.unwrap()).await };
    let client = async {
        let mut stream = connect(&host, 6432, &Connector::new(Require, None).unwrap(), PATIENCE).await.unwrap();
        assert!(stream.is_unix() && !stream.is_tls());
        say(&mut stream, b"hello").await;
    };
    tokio::join!(serving, client);
    drop(listener);
    assert!(!file.exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let directory = Directory::new();
    let file = directory.path().join(".s.PGSQL.1");
    drop(std::os::unix::net::UnixListener::bind(&file).unwrap());
    assert!(file.exists());
    // A process that another test starts has a copy of it until it has become another program.
    let deadline = Instant::now() + PATIENCE;
    while std::os::unix::net::UnixStream::connect(&file).is_ok() {
        assert!(Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    let listener = Listener::bind_unix(directory.path(), 1).unwrap();
    let error = Listener::bind_unix(directory.path(), 1).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(file.exists(), "a refused bind removes nothing");

    // another process has taken the place over
    fs::remove_file(&file).unwrap();
    let other = std::os::unix::net::UnixListener::bind(&file).unwrap();
    drop(listener);
    assert!(file.exists());
    drop(other);
    fs::remove_file(&file).unwrap();
    fs::write(&file, "precious").unwrap();
    assert!(Listener::bind_unix(directory.path(), 1).is_err());
    assert_eq!(fs::read(&file).unwrap(), b"precious");
}

#[tokio::test]
async fn listening_addresses() {
    for address in ["localhost:0", "*:0"] {
        assert!(!Listener::bind_tcp(address).await.unwrap().is_empty(), "{address}");
    }
    for address in ["127.0.0.1", "127.0.0.1:x", "*:x", "203.0.113.1:0"] {
        assert!(Listener::bind_tcp(address).await.is_err(), "{address}");
    }
    let (_taken, port) = listen().await;
    let error = Listener::bind_tcp(&format!("127.0.0.1:{port}")).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&port.to_string()), "{error}");
}

#[tokio::test]
async fn failures_have_their_names() {
    let (listener, port) = listen().await;
    drop(listener);
    let refused = connect("127.0.0.1", port, &plain(), PATIENCE).await;
    assert!(matches!(refused, Err(ConnectError::Refused(_))), "{refused:?}");
    let unknown = connect("no.such.host.invalid", port, &plain(), PATIENCE).await;
    assert!(matches!(unknown, Err(ConnectError::Resolve(_) | ConnectError::Timeout)), "{unknown:?}");
    let directory = Directory::new();
    let absent = connect(directory.path().to_str().unwrap(), 1, &plain(), PATIENCE).await;
    assert!(matches!(absent, Err(ConnectError::Refused(_))), "{absent:?}");
}

#[tokio::test]
async fn a_server_that_does_not_answer_times_out() {
    let (listener, port) = listen().await;
    let connector = Connector::new(Require, None).unwrap();
    let silent = connect("127.0.0.1", port, &connector, Duration::from_millis(50)).await;
    assert!(matches!(silent, Err(ConnectError::Timeout)), "{silent:?}");
    drop(listener);
}

#[tokio::test]
async fn every_address_of_a_name_is_tried() {
    // whichever address localhost has first, the server is on the IPv4 one
    let port = serve(
        Acceptor::new(&pgweir::config::ListenTls {
            mode: Disable,
            certificate: None,
            private_key: None,
            client_ca: None,
        })
        .unwrap(),
    )
    .await;
    assert!(reach("localhost", port, Disable, None).await.is_ok());
}

/// What TLS has taken and not yet written is still to be sent, although nothing is left of `out`.
#[test]
fn all_is_sent_to_who_reads_late() {
    for (kind, make) in kinds() {
        let runtime = runtime();
        let (mut server, mut client) = make(&runtime);
        runtime.block_on(async {
            let (mut out, mut total) = (BytesMut::new(), 0);
            // Until the sockets are full.
            while poll_fn(|cx| Poll::Ready(server.poll_send(&mut out, cx).is_ready())).await {
                out.extend_from_slice(&[7; 1000]);
                total += out.len();
                // The reactor says when there is room again.
                tokio::task::yield_now().await;
            }
            let reading = async { client.read_exact(&mut vec![0; total]).await.unwrap() };
            let sending = poll_fn(|cx| server.poll_send(&mut out, cx));
            let both = async { tokio::join!(reading, sending) };
            let (read, sent) =
                tokio::time::timeout(PATIENCE, both).await.unwrap_or_else(|_| panic!("{kind}: the rest"));
            sent.unwrap();
            assert_eq!((read, out.len()), (total, 0), "{kind}");
        });
    }
}

#[test]
fn the_reactor_tells_of_idle_connections_what_it_has_seen() {
    for (kind, make) in kinds() {
        let runtime = runtime();
        let (mut server, mut client) = make(&runtime);
        let mut buf = [0; 16];
        runtime.block_on(async {
            server.write_all(b"reply").await.unwrap();
            server.flush().await.unwrap();
            client.read_exact(&mut [0; 5]).await.unwrap();
        });
        assert!(client.try_read_seen(&mut buf).is_none(), "{kind}: alive");
        runtime.block_on(async {
            server.write_all(b"notice").await.unwrap();
            server.flush().await.unwrap();
        });
        assert_eq!(ask_reactor(&runtime, &mut client, &mut buf).unwrap(), 6, "{kind}");
        assert_eq!(&buf[..6], b"notice");
        assert!(client.try_read_seen(&mut buf).is_none(), "{kind}: alive again");
        drop(server);
        assert!(!matches!(ask_reactor(&runtime, &mut client, &mut buf), Ok(1..)), "{kind}: closed");
    }
}
