//! A connection: plain TCP, unix socket, or TLS of either side.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice, Read};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use rustix::net::SendFlags;
use rustls::{ConnectionCommon, SideData};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{client, server};

use crate::net::buffers::{Buffers, drop_front};

/// The first probe comes before the idle timeouts of common load balancers and NATs (350 s and less), and a peer that is
/// gone without a word is noticed within two minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 5;

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Tcp(SocketAddr),
    Unix,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => address.fmt(f),
            Peer::Unix => f.write_str("unix"),
        }
    }
}

/// What a TLS handshake agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsInfo {
    /// As Postgres names it: `TLSv1.3`.
    pub version: &'static str,
    /// Its name in the IANA registry.
    pub cipher: String,
    /// Channel binding data tls-server-end-point (RFC 5929): the hash of the server's certificate. `None` where the
    /// certificate's signature has no hash that could be used (Ed25519).
    pub end_point: Option<Vec<u8>>,
    /// The common name of the certificate that the other end has shown. A client's is verified: it is asked for one in
    /// the modes that verify it, and in no other.
    pub peer_name: Option<String>,
}

impl fmt::Display for TlsInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.version, self.cipher)
    }
}

/// A connection to a client or to a server.
///
/// What is written to TLS may stay in its buffer until [`AsyncWrite::poll_flush`]; for the others a flush does nothing.
#[derive(Debug)]
pub struct Stream {
    transport: Transport,
    peer: Peer,
    local: Peer,
    tls: Option<Box<TlsInfo>>,
}

#[derive(Debug)]
enum Transport {
    Plain(Socket),
    /// We are the TLS client.
    TlsClient(Box<client::TlsStream<Socket>>),
    /// We are the TLS server.
    TlsServer(Box<server::TlsStream<Socket>>),
}

/// A socket, registered with the reactor of one runtime.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Lost in a failed move to another runtime.
    Gone,
}

/// Runs one expression on whatever a [`Socket`] is.
macro_rules! on_socket {
    ($socket:expr, $io:ident => $do:expr) => {
        match $socket {
            Socket::Tcp($io) => $do,
            Socket::Unix($io) => $do,
            Socket::Gone => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    };
}

/// Runs one expression on whatever a [`Transport`] is.
macro_rules! on_transport {
    ($transport:expr, $io:ident => $do:expr) => {
        match $transport {
            Transport::Plain($io) => $do,
            Transport::TlsClient($io) => $do,
            Transport::TlsServer($io) => $do,
        }
    };
}

impl Stream {
    /// Sets TCP_NODELAY and keepalive.
    ///
    /// # Errors
    /// The connection is already gone.
    pub fn tcp(stream: TcpStream, peer: SocketAddr) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        let local = Peer::Tcp(stream.local_addr()?);
        Ok(Self::plain(Socket::Tcp(stream), Peer::Tcp(peer), local))
    }

    pub fn unix(stream: UnixStream) -> Self {
        Self::plain(Socket::Unix(stream), Peer::Unix, Peer::Unix)
    }

    fn plain(socket: Socket, peer: Peer, local: Peer) -> Self {
        Stream { transport: Transport::Plain(socket), peer, local, tls: None }
    }

    /// Gives up the socket for a TLS handshake; `None` if there is TLS on it already.
    pub(super) fn into_socket(self) -> Option<(Socket, Peer, Peer)> {
        match self.transport {
            Transport::Plain(socket) => Some((socket, self.peer, self.local)),
            _ => None,
        }
    }

    pub(super) fn tls_client(stream: client::TlsStream<Socket>, peer: Peer, local: Peer, info: TlsInfo) -> Self {
        let transport = Transport::TlsClient(Box::new(stream));
        Stream { transport, peer, local, tls: Some(Box::new(info)) }
    }

    pub(super) fn tls_server(stream: server::TlsStream<Socket>, peer: Peer, local: Peer, info: TlsInfo) -> Self {
        let transport = Transport::TlsServer(Box::new(stream));
        Stream { transport, peer, local, tls: Some(Box::new(info)) }
    }

    /// The other end.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// This end.
    pub fn local(&self) -> Peer {
        self.local
    }

    pub fn is_unix(&self) -> bool {
        self.peer == Peer::Unix
    }

    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    pub fn tls_info(&self) -> Option<&TlsInfo> {
        self.tls.as_deref()
    }

    /// The protocol that both ends named in the TLS handshake.
    pub(super) fn alpn(&self) -> Option<&[u8]> {
        match &self.transport {
            Transport::Plain(_) => None,
            Transport::TlsClient(stream) => stream.get_ref().1.alpn_protocol(),
            Transport::TlsServer(stream) => stream.get_ref().1.alpn_protocol(),
        }
    }

    /// The first byte that waits to be read on plain TCP, left where it is; `None` at the end or on anything else.
    pub(super) async fn peek(&self) -> io::Result<Option<u8>> {
        let Transport::Plain(Socket::Tcp(stream)) = &self.transport else {
            return Ok(None);
        };
        let mut first = [0];
        Ok((stream.peek(&mut first).await? == 1).then_some(first[0]))
    }

    /// Moves the socket from the reactor it is registered with to that of the current runtime. Costs a few
    /// microseconds. Whoever waited on it under the old runtime is not woken again.
    ///
    /// # Errors
    /// There is no current runtime; or the kernel refused, then the connection is lost.
    ///
    /// # Panics
    /// The current runtime was built without I/O.
    pub fn rehome(&mut self) -> io::Result<()> {
        match &mut self.transport {
            Transport::Plain(socket) => socket.rehome(),
            Transport::TlsClient(stream) => stream.get_mut().0.rehome(),
            Transport::TlsServer(stream) => stream.get_mut().0.rehome(),
        }
    }

    /// Asks the kernel, without waiting, what an idle connection has: `None` is a live connection with nothing to
    /// read; `Some(Ok(0))` is one that the peer has closed; `Some(Ok(n))` are bytes, now in `buf`.
    ///
    /// It is one `recv`. A poll would not do: it believes the reactor, which may not have run since the peer closed.
    pub fn try_read_now(&mut self, buf: &mut [u8]) -> Option<io::Result<usize>> {
        let result = match &mut self.transport {
            Transport::Plain(socket) => socket.recv(buf),
            Transport::TlsClient(stream) => {
                let (socket, session) = stream.get_mut();
                recv_tls(socket, session, buf)
            }
            Transport::TlsServer(stream) => {
                let (socket, session) = stream.get_mut();
                recv_tls(socket, session, buf)
            }
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            other => Some(other),
        }
    }

    /// Reads what is there into `buffer`; while nothing is, an empty buffer holds no memory. Plain sockets leave the
    /// runtime's budget alone: who reads on without end gives way by itself.
    pub fn poll_receive(
        &mut self,
        buffer: &mut BytesMut,
        buffers: &Buffers,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let received = match &self.transport {
            Transport::Plain(socket) => socket.poll_receive(buffer, buffers, cx),
            Transport::TlsClient(_) | Transport::TlsServer(_) => {
                buffers.make_room(buffer);
                pin!(self.read_buf(buffer)).poll(cx)
            }
        };
        if received.is_pending() {
            buffers.give_back(buffer);
        }
        received
    }

    /// Writes all of `out`; ready where nothing is left, in TLS's own buffer either. As to the budget, see
    /// [`Stream::poll_receive`].
    pub fn poll_send(&mut self, out: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !out.is_empty() {
            let sent = match &self.transport {
                Transport::Plain(socket) => ready!(socket.poll_send(out, cx))?,
                Transport::TlsClient(_) | Transport::TlsServer(_) => ready!(Pin::new(&mut *self).poll_write(cx, out))?,
            };
            drop_front(out, sent);
        }
        Pin::new(self).poll_flush(cx)
    }

    /// As [`Stream::try_read_now`], without a system call where the reactor has not seen anything come. What has come
    /// since the reactor's last turn is not found; of TLS the kernel is asked all the same.
    pub fn try_read_seen(&mut self, buf: &mut [u8]) -> Option<io::Result<usize>> {
        let result = match &mut self.transport {
            Transport::Plain(Socket::Tcp(stream)) => stream.try_read(buf),
            Transport::Plain(Socket::Unix(stream)) => stream.try_read(buf),
            _ => return self.try_read_now(buf),
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            other => Some(other),
        }
    }
}

impl Socket {
    fn rehome(&mut self) -> io::Result<()> {
        // `from_std` would panic without one
        tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        *self = match std::mem::replace(self, Socket::Gone) {
            Socket::Tcp(stream) => Socket::Tcp(TcpStream::from_std(stream.into_std()?)?),
            Socket::Unix(stream) => Socket::Unix(UnixStream::from_std(stream.into_std()?)?),
            Socket::Gone => return Err(io::ErrorKind::NotConnected.into()),
        };
        Ok(())
    }

    /// Asks the kernel where the reactor has seen something come, and only then registers with it: half the work of
    /// [`AsyncRead::poll_read`], which does both each time.
    fn poll_receive(&self, buffer: &mut BytesMut, buffers: &Buffers, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            let received = self.transfer(Interest::READABLE, || {
                buffers.make_room(buffer);
                let room = buffer.capacity() - buffer.len();
                let received = match self {
                    Socket::Tcp(stream) => stream.try_read_buf(buffer),
                    Socket::Unix(stream) => stream.try_read_buf(buffer),
                    Socket::Gone => Ok(0),
                };
                Ok((received?, room))
            });
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(on_socket!(self, io => io.poll_read_ready(cx)))?;
                }
                received => return Poll::Ready(received),
            }
        }
    }

    /// As [`Socket::poll_receive`]. The system call is made without libc, for which it is a place where threads may be
    /// cancelled: as many instructions again.
    fn poll_send(&self, bytes: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            let sent = self.transfer(Interest::WRITABLE, || {
                let sent = match self {
                    Socket::Tcp(stream) => rustix::net::send(stream, bytes, SendFlags::NOSIGNAL),
                    Socket::Unix(stream) => rustix::net::send(stream, bytes, SendFlags::NOSIGNAL),
                    Socket::Gone => Ok(0),
                };
                Ok((sent?, bytes.len()))
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(on_socket!(self, io => io.poll_write_ready(cx)))?;
                }
                sent => return Poll::Ready(sent),
            }
        }
    }

    /// Moves bytes by `act`, which says how many, and how many it could have moved, unless the reactor knows that none
    /// can be. After fewer than could be nothing more can be moved, as tokio's own reads and writes take it: the next
    /// waits for the reactor without asking the kernel.
    fn transfer(&self, interest: Interest, act: impl FnOnce() -> io::Result<(usize, usize)>) -> io::Result<usize> {
        let mut short = None;
        let act = || match act()? {
            (moved, most) if 0 < moved && moved < most => {
                short = Some(moved);
                Err(io::ErrorKind::WouldBlock.into())
            }
            (moved, _) => Ok(moved),
        };
        let moved = match self {
            Socket::Tcp(stream) => stream.try_io(interest, act),
            Socket::Unix(stream) => stream.try_io(interest, act),
            Socket::Gone => Err(io::ErrorKind::NotConnected.into()),
        };
        short.map_or(moved, Ok)
    }

    /// Past the reactor. The socket is non-blocking, and the reactor's edges survive a read that it does not know of.
    fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let result = match self {
                Socket::Tcp(stream) => (&*SockRef::from(stream)).read(buf),
                Socket::Unix(stream) => (&*SockRef::from(stream)).read(buf),
                Socket::Gone => Err(io::ErrorKind::NotConnected.into()),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

struct Recv<'a>(&'a Socket);

impl Read for Recv<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buf)
    }
}

/// Lets TLS digest what has come: records without data (session tickets, key updates) are no reason to give up a
/// connection.
fn recv_tls<D: SideData>(socket: &Socket, session: &mut ConnectionCommon<D>, buf: &mut [u8]) -> io::Result<usize> {
    loop {
        match session.reader().read(buf) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
        if session.read_tls(&mut Recv(socket))? == 0 {
            return Ok(0);
        }
        session.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_socket!(&mut *self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        on_socket!(&mut *self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_socket!(&mut *self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_socket!(&mut *self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_socket!(&mut *self, io => Pin::new(io).poll_shutdown(cx))
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_transport!(&mut self.transport, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        on_transport!(&mut self.transport, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_transport!(&mut self.transport, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_transport!(&mut self.transport, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_transport!(&mut self.transport, io => Pin::new(io).poll_shutdown(cx))
    }
}
