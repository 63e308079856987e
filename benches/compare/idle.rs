//! What an idle client costs: many connections, each with one query behind it, some seconds later.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use tokio_postgres::{Config, NoTls};

use crate::process;
use crate::targets::NAME;

/// Logins under way at a time.
const AT_ONCE: usize = 50;
/// Opened before the first look, so that what is allocated once is not counted.
const WARM_UP: usize = 100;
/// How long they have been idle at least when they are looked at.
const IDLE: Duration = Duration::from_secs(5);

/// Resident bytes for each of `clients` idle connections.
pub fn bytes_per_client(address: SocketAddr, pid: u32, clients: usize) -> Result<f64, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let _warm = open(address, WARM_UP).await?;
        tokio::time::sleep(IDLE).await;
        let before = process::resident(pid);
        let _idle = open(address, clients).await?;
        tokio::time::sleep(IDLE).await;
        let after = process::resident(pid);
        Ok(after.saturating_sub(before) as f64 / clients as f64)
    })
}

async fn open(address: SocketAddr, count: usize) -> Result<Vec<tokio_postgres::Client>, Box<dyn Error>> {
    let mut clients = Vec::with_capacity(count);
    while clients.len() < count {
        let wanted = AT_ONCE.min(count - clients.len());
        let opening: Vec<_> = (0..wanted).map(|_| tokio::spawn(open_one(address))).collect();
        for one in opening {
            clients.push(one.await??);
        }
    }
    Ok(clients)
}

async fn open_one(address: SocketAddr) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let mut config = Config::new();
    config.host(address.ip().to_string()).port(address.port()).user(NAME).password(NAME).dbname(NAME);
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    client.simple_query("SELECT 1").await?;
    Ok(client)
}
