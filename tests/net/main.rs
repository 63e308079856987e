//! Sockets and TLS on loopback: each TLS mode against each kind of certificate, moves between runtimes, stale connections.

mod certificates;
mod connections;
mod modes;
mod sockets;
