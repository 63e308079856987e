//! Accepting clients, on TCP and on unix sockets.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UnixListener, lookup_host};

use super::stream::{Peer, Stream};

/// Clients that may wait to be accepted; the kernel's `somaxconn` is a further bound.
const BACKLOG: i32 = 4096;
/// How long accepting rests when there is no file descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// A socket that clients connect to.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

impl Listener {
    /// Binds every address that `address` stands for: `host:port`, where `*` is all interfaces. As in Postgres, one
    /// that is bound is enough.
    ///
    /// # Errors
    /// The text is no address, or none could be bound.
    pub async fn bind_tcp(address: &str) -> io::Result<Vec<Listener>> {
        let mut last = io::Error::new(io::ErrorKind::InvalidInput, format!("{address}: no such address"));
        let mut bound = Vec::new();
        for address in addresses(address).await? {
            match bind(address) {
                Ok(listener) => bound.push(Listener::Tcp(listener)),
                Err(error) => {
                    last = io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
                    tracing::warn!("{last}");
                }
            }
        }
        if bound.is_empty() { Err(last) } else { Ok(bound) }
    }

    /// Binds `.s.PGSQL.<port>` in `directory`, open to every user as Postgres's is. A file that a dead process left is
    /// replaced.
    ///
    /// # Errors
    /// Somebody listens there, the file is no socket, or the directory does not allow it.
    pub fn bind_unix(directory: &Path, port: u16) -> io::Result<Listener> {
        let path = directory.join(format!(".s.PGSQL.{port}"));
        remove_stale(&path).map_err(|error| named(&path, &error))?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(&path)?).map_err(|error| named(&path, &error))?;
        // from here on the file is ours, and goes with us
        let file = SocketFile::new(path)?;
        fs::set_permissions(&file.path, fs::Permissions::from_mode(0o777))?;
        socket.set_nonblocking(true)?;
        socket.listen(BACKLOG)?;
        Ok(Listener::Unix(UnixListener::from_std(socket.into())?, file))
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn local(&self) -> io::Result<Peer> {
        match self {
            Listener::Tcp(listener) => Ok(Peer::Tcp(listener.local_addr()?)),
            Listener::Unix(..) => Ok(Peer::Unix),
        }
    }

    /// The next client. Failures of single connections are passed over, and a lack of descriptors or memory is waited
    /// out. May be dropped between two clients without losing one.
    ///
    /// # Errors
    /// The listening socket itself is broken.
    pub async fn accept(&self) -> io::Result<Stream> {
        loop {
            let error = match self.accept_socket().await {
                // a socket that cannot be set up is a client that has hung up
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => {
                    tracing::debug!("a client was gone before it was served: {error}");
                    continue;
                }
                Err(error) => error,
            };
            match Fate::of(&error) {
                Fate::Next => tracing::debug!("a client was gone before it was accepted: {error}"),
                Fate::Rest => {
                    tracing::warn!("cannot accept clients for the moment: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
                Fate::End => return Err(error),
            }
        }
    }

    /// Errors of accepting outside, of setting up inside.
    async fn accept_socket(&self) -> io::Result<io::Result<Stream>> {
        Ok(match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Stream::tcp(stream, peer)
            }
            Listener::Unix(listener, _) => Ok(Stream::unix(listener.accept().await?.0)),
        })
    }
}

/// What an error of `accept` means for the next one.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// It was about that one connection.
    Next,
    /// No descriptor or memory is left, or nobody knows: the client may still be in the queue, and trying at once
    /// would spin.
    Rest,
    /// The listening socket is none.
    End,
}

impl Fate {
    /// `accept(2)`, "Error handling".
    fn of(error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(
                Errno::CONNABORTED
                | Errno::INTR
                | Errno::PROTO
                | Errno::NOPROTOOPT
                | Errno::NETDOWN
                | Errno::NETUNREACH
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH
                | Errno::PERM,
            ) => Fate::Next,
            Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::FAULT) => Fate::End,
            _ => Fate::Rest,
        }
    }
}

async fn addresses(text: &str) -> io::Result<Vec<SocketAddr>> {
    let Some(port) = text.strip_prefix("*:") else {
        return lookup_host(text)
            .await
            .map(Iterator::collect)
            .map_err(|error| io::Error::new(error.kind(), format!("{text}: {error}")));
    };
    let port = port.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{text}: no port")))?;
    Ok(vec![(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()])
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // a restart need not wait for the old connections' TIME_WAIT
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // IPv4 has a socket of its own
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {}: {error}", path.display()))
}

/// Removes a socket on which nobody listens.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(_) => {}
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // a listener whose queue is full would make us wait
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// The file of a unix socket; removed when dropped, unless another process has put its own in its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn new(path: PathBuf) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(&path)?;
        Ok(SocketFile { path, device: metadata.dev(), inode: metadata.ino() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = |found: fs::Metadata| (found.dev(), found.ino()) == (self.device, self.inode);
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            // whoever cannot remove it finds it stale later
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_accept() {
        let fate = |errno: Errno| Fate::of(&errno.into());
        assert_eq!(fate(Errno::MFILE), Fate::Rest);
        assert_eq!(fate(Errno::NFILE), Fate::Rest);
        assert_eq!(fate(Errno::CONNABORTED), Fate::Next);
        assert_eq!(fate(Errno::BADF), Fate::End);
        assert_eq!(fate(Errno::INVAL), Fate::End);
        assert_eq!(Fate::of(&io::Error::other("x")), Fate::Rest);
    }
}
