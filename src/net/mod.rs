//! Sockets and TLS, towards clients and towards servers.
//!
//! [`Stream`] is a connection of either side. [`Listener`] accepts clients and [`Acceptor`] takes them to TLS;
//! [`connect`] reaches a server, by the TLS mode of a [`Connector`].

pub mod buffers;
mod certificate;
mod stream;
mod verify;

pub mod connect;
pub mod descriptors;
pub mod listen;
pub mod names;
pub mod tls;

pub use connect::{ConnectError, connect, connect_again};
pub use listen::Listener;
pub use stream::{Peer, Stream, TlsInfo};
pub use tls::{Acceptor, Connector, TlsError};
