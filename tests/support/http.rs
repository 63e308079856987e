//! Requests to the admin address that are more than a plain GET.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::{LIMIT, Pgweir};

/// The bearer token of [`super::Builder::operator`].
pub const TOKEN: &str = "a token of the tests";

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// Its lines, in lower case.
    pub head: String,
    pub body: String,
}

impl Pgweir {
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut stream = TcpStream::connect(self.admin_address()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request = format!("{method} {path} HTTP/1.0\r\nHost: pgweir\r\nContent-Length: 0\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Reply { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    /// A POST as whoever knows the token.
    pub fn post(&self, path: &str) -> Reply {
        self.request("POST", path, &[("Authorization", &format!("Bearer {TOKEN}"))])
    }
}
