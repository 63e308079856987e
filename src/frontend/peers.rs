//! Several pgweirs behind one address: a cancel request may reach one that does not know its client. The key says whose
//! it is, and the request is passed on as it came.

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::frontend::client::peer_of;
use crate::frontend::proxy::Proxy;
use crate::net::{self, Connector};
use crate::wire::write;

/// Settles a cancel request: here, or at the peer that gave out the key. A key of neither is dropped without a word, as
/// Postgres drops one that does not fit. What a peer passes on is its own client's and goes no further.
pub async fn cancel(proxy: &Proxy, pid: i32, secret: &[u8]) {
    let config = proxy.config.load_full();
    let id = peer_of(pid, secret);
    let peer = config.listen.peers.iter().find(|peer| peer.id == id && id != proxy.clients.peer_id);
    let Some(peer) = peer else { return proxy.cancel_by_key(pid, secret).await };
    let timeout = config.databases.first().map_or_else(Default::default, |d| d.pool.connection_timeout);
    let pass_on = async {
        let mut stream = net::connect(&peer.host, peer.port, &Connector::plain(), timeout).await?;
        let mut out = BytesMut::new();
        write::cancel_request(&mut out, pid, secret);
        stream.write_all(&out).await?;
        stream.flush().await?;
        // It closes once the request is settled there.
        Ok::<usize, net::ConnectError>(stream.read(&mut [0u8; 1]).await?)
    };
    match tokio::time::timeout(timeout, pass_on).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(peer = peer.id, %error, "cannot pass a cancel request on"),
        Err(_) => tracing::warn!(peer = peer.id, "cannot pass a cancel request on in time"),
    }
}
