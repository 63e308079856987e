//! Where the names of hosts lead.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::lookup_host;

/// Who is asked.
#[derive(Debug, Clone, Default)]
pub enum Names {
    /// As the system does (`getaddrinfo`), each time anew.
    #[default]
    System,
    /// What is written here, and may change.
    Table(Arc<Mutex<HashMap<String, Vec<IpAddr>>>>),
}

impl Names {
    /// The addresses of a host, in the order in which they are to be tried.
    ///
    /// # Errors
    /// It has none, or nobody can tell.
    pub async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        match self {
            Names::System => Ok(lookup_host((host, port)).await?.collect()),
            Names::Table(table) => {
                let found = table.lock().get(host).cloned().ok_or(io::ErrorKind::NotFound)?;
                Ok(found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
            }
        }
    }
}

/// Whether a host is a name, which may come to lead elsewhere: no address, nor the folder of a unix socket.
pub fn is_name(host: &str) -> bool {
    !host.starts_with('/') && host.parse::<IpAddr>().is_err()
}
