//! The floor: a relay that only copies bytes. One client connection to one server connection, one read and one write in
//! each direction, no pooling, no look at what passes. What it costs, any proxy on this kernel costs.

use std::io;
use std::net::SocketAddr;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpSocket, TcpStream};

const BUFFER: usize = 16 * 1024;

/// Relays from `listen` to `server`, on so many threads, until the process is ended.
pub fn run(listen: SocketAddr, server: SocketAddr, threads: usize) -> io::Result<()> {
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(|| serve(listen, server))));
        serve(listen, server)
    })
}

/// The kernel spreads the clients over the threads' sockets.
fn serve(listen: SocketAddr, server: SocketAddr) -> io::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseport(true)?;
        socket.set_reuseaddr(true)?;
        socket.bind(listen)?;
        let listener = socket.listen(1024)?;
        loop {
            let (client, _) = listener.accept().await?;
            tokio::spawn(relay(client, server));
        }
    })
}

async fn relay(mut client: TcpStream, server: SocketAddr) -> io::Result<()> {
    let mut server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await.map(drop)
}
