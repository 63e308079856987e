//! A blocking GET, enough for pgweir's own admin endpoint.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Bodies longer than this are cut: a screen shows no more.
const MAX_REPLY: u64 = 16 << 20;

/// The status and body of `path`. Speaks HTTP/1.0, in which a reply ends with the connection and is never chunked
/// (RFC 9112, section 6.3 and RFC 1945).
///
/// # Errors
/// When no connection is made or no complete head arrives; each step may take `limit`.
pub fn get(address: SocketAddr, path: &str, limit: Duration) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nAccept: */*\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut reply = Vec::new();
    stream.take(MAX_REPLY).read_to_end(&mut reply)?;
    parse(&String::from_utf8_lossy(&reply)).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no HTTP reply"))
}

fn parse(reply: &str) -> Option<(u16, String)> {
    let (head, body) = reply.split_once("\r\n\r\n")?;
    let mut status_line = head.lines().next()?.split(' ');
    if !status_line.next()?.starts_with("HTTP/1.") {
        return None;
    }
    Some((status_line.next()?.parse().ok()?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::thread;

    #[test]
    fn a_reply_is_status_and_body() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // All of it: closing over unread bytes would reset the connection.
            let lines = BufReader::new(&stream).lines().map(Result::unwrap);
            let asked: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            stream.write_all(b"HTTP/1.1 503 Not Ready\r\ncontent-length: 2\r\n\r\nno").unwrap();
            asked
        });
        assert_eq!(get(address, "/readyz", Duration::from_secs(5)).unwrap(), (503, "no".into()));
        assert_eq!(server.join().unwrap()[0], "GET /readyz HTTP/1.0");
    }

    #[test]
    fn other_protocols_are_no_reply() {
        assert_eq!(parse("SSH-2.0 200\r\n\r\n"), None);
        assert_eq!(parse("HTTP/1.1 200 OK\r\n"), None);
    }
}
