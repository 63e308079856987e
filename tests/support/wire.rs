//! A client that sends whatever frames it is told to, and keeps every frame that it reads.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use bytes::{Buf, BufMut, BytesMut};
use pgweir::auth::{ClientAuth, Credentials, Nonce, Password, Reply};
use pgweir::demo::sample;
use pgweir::wire::{scan, write};

use super::LIMIT;

/// One message of a server.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    pub tag: u8,
    pub body: Vec<u8>,
}

impl Frame {
    /// A field of an ErrorResponse or NoticeResponse; empty where it is missing.
    pub fn field(&self, code: u8) -> String {
        let fields = self.body.split(|&b| b == 0);
        let found = fields.filter_map(|f| f.split_first()).find(|(c, _)| **c == code);
        found.map(|(_, text)| String::from_utf8_lossy(text).into_owned()).unwrap_or_default()
    }

    pub fn sqlstate(&self) -> String {
        assert_eq!(self.tag, b'E', "not an error: {self:?}");
        self.field(b'C')
    }

    /// The first column of a DataRow, as text.
    pub fn value(&self) -> String {
        assert_eq!(self.tag, b'D', "not a row: {self:?}");
        let length = i32::from_be_bytes(self.body[2..6].try_into().unwrap());
        String::from_utf8_lossy(&self.body[6..6 + length.max(0) as usize]).into_owned()
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.body[..self.body.len().min(300)];
        write!(f, "{}[{}] {}", char::from(self.tag), self.body.len(), shown.escape_ascii())
    }
}

/// The tags of frames in a row; several rows (D), or pieces of a COPY (d), count as one.
pub fn tags(frames: &[Frame]) -> String {
    let mut tags = String::new();
    for frame in frames {
        let tag = char::from(frame.tag);
        if !(matches!(tag, 'D' | 'd') && tags.ends_with(tag)) {
            tags.push(tag);
        }
    }
    tags
}

/// Messages of a client, one after the other.
#[derive(Debug, Clone, Default)]
pub struct Frames(pub BytesMut);

impl Frames {
    pub fn new() -> Frames {
        Frames::default()
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// A frame of any tag and body.
    pub fn frame(mut self, tag: u8, body: &[u8]) -> Frames {
        write::frame(&mut self.0, tag, |out| out.put_slice(body));
        self
    }

    /// Bytes that need not be a frame.
    pub fn raw(mut self, bytes: &[u8]) -> Frames {
        self.0.put_slice(bytes);
        self
    }

    pub fn query(mut self, sql: &str) -> Frames {
        write::query(&mut self.0, sql);
        self
    }

    pub fn parse(self, name: &str, sql: &str) -> Frames {
        self.parse_typed(name, sql, &[])
    }

    pub fn parse_typed(mut self, name: &str, sql: &str, oids: &[u32]) -> Frames {
        let mut types = (oids.len() as u16).to_be_bytes().to_vec();
        oids.iter().for_each(|oid| types.put_u32(*oid));
        write::parse(&mut self.0, name.as_bytes(), sql.as_bytes(), &types);
        self
    }

    /// Parameters and results as text.
    pub fn bind(self, portal: &str, name: &str, values: &[&str]) -> Frames {
        let values: Vec<_> = values.iter().map(|v| Some(v.as_bytes())).collect();
        self.bind_formats(portal, name, &[], &values, &[])
    }

    pub fn bind_formats(
        self,
        portal: &str,
        name: &str,
        formats: &[i16],
        values: &[Option<&[u8]>],
        results: &[i16],
    ) -> Frames {
        let mut body = [portal.as_bytes(), b"\0", name.as_bytes(), b"\0"].concat();
        body.put_u16(formats.len() as u16);
        formats.iter().for_each(|f| body.put_i16(*f));
        body.put_u16(values.len() as u16);
        for value in values {
            body.put_i32(value.map_or(-1, |v| v.len() as i32));
            body.put_slice(value.unwrap_or_default());
        }
        body.put_u16(results.len() as u16);
        results.iter().for_each(|f| body.put_i16(*f));
        self.frame(b'B', &body)
    }

    /// `what`: `S` a statement, `P` a portal.
    pub fn describe(self, what: u8, name: &str) -> Frames {
        self.frame(b'D', &[&[what], name.as_bytes(), b"\0"].concat())
    }

    /// `what`: `S` a statement, `P` a portal.
    pub fn close(self, what: u8, name: &str) -> Frames {
        self.frame(b'C', &[&[what], name.as_bytes(), b"\0"].concat())
    }

    /// At most `rows` rows; 0: all.
    pub fn execute(self, portal: &str, rows: i32) -> Frames {
        self.frame(b'E', &[portal.as_bytes(), b"\0", &rows.to_be_bytes()].concat())
    }

    /// Parse, Bind, Execute by the unnamed statement and portal.
    pub fn run(self, sql: &str, values: &[&str]) -> Frames {
        self.parse("", sql).bind("", "", values).execute("", 0)
    }

    pub fn sync(self) -> Frames {
        self.frame(b'S', b"")
    }

    pub fn flush(self) -> Frames {
        self.frame(b'H', b"")
    }

    pub fn copy_data(self, data: &[u8]) -> Frames {
        self.frame(b'd', data)
    }

    pub fn copy_done(self) -> Frames {
        self.frame(b'c', b"")
    }

    pub fn copy_fail(self, why: &str) -> Frames {
        self.frame(b'f', &[why.as_bytes(), b"\0"].concat())
    }

    /// FunctionCall with binary arguments and result.
    pub fn call(self, oid: u32, arguments: &[&[u8]]) -> Frames {
        let mut body = oid.to_be_bytes().to_vec();
        body.extend([0, 1, 0, 1]);
        body.put_u16(arguments.len() as u16);
        for argument in arguments {
            body.put_i32(argument.len() as i32);
            body.put_slice(argument);
        }
        body.put_i16(1);
        self.frame(b'F', &body)
    }

    pub fn then(mut self, other: &Frames) -> Frames {
        self.0.put_slice(&other.0);
        self
    }
}

/// Who logs in, and how.
#[derive(Debug, Clone)]
pub struct Login<'a> {
    pub user: &'a str,
    pub password: &'a str,
    pub database: &'a str,
    /// Of protocol 3.
    pub minor: u16,
    pub parameters: &'a [(&'a str, &'a str)],
}

impl Default for Login<'_> {
    fn default() -> Self {
        let (user, password, database) = (sample::USER, sample::PASSWORD, sample::DATABASE);
        Login { user, password, database, minor: 0, parameters: &[] }
    }
}

/// A logged-in connection to 127.0.0.1.
#[derive(Debug)]
pub struct Wire {
    pub stream: TcpStream,
    inbox: BytesMut,
    port: u16,
    pub pid: i32,
    pub secret: Vec<u8>,
    /// What the server said between authentication and its first ReadyForQuery, that among it.
    pub greeting: Vec<Frame>,
}

impl Wire {
    /// As the application.
    pub fn connect(port: u16) -> Wire {
        Wire::log_in(port, &Login::default())
    }

    pub fn log_in(port: u16, login: &Login<'_>) -> Wire {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut wire = Wire { stream, inbox: BytesMut::new(), port, pid: 0, secret: Vec::new(), greeting: Vec::new() };
        let mut out = BytesMut::new();
        let who = [("user", login.user), ("database", login.database)];
        write::startup(&mut out, login.minor, who.into_iter().chain(login.parameters.iter().copied()));
        wire.send_bytes(&out);
        wire.authenticate(login);
        wire.greeting = wire.until(b'Z');
        if let Some(key) = wire.greeting.iter().find(|f| f.tag == b'K') {
            let (pid, secret) = key.body.split_at(4);
            wire.secret = secret.to_vec();
            wire.pid = i32::from_be_bytes(pid.try_into().unwrap());
        }
        wire
    }

    fn authenticate(&mut self, login: &Login<'_>) {
        let password = Credentials::Plain(Password::new(login.password));
        let mut auth = ClientAuth::new(login.user, password, None, Nonce::draw().unwrap(), None);
        loop {
            let frame = self.frame();
            if frame.tag == b'v' {
                continue;
            }
            assert_eq!(frame.tag, b'R', "{frame:?}");
            match auth.step(&frame.body) {
                Reply::Send(body) => {
                    let mut out = BytesMut::new();
                    write::password(&mut out, &body);
                    self.send_bytes(&out);
                }
                Reply::Wait => {}
                Reply::Done => return,
                Reply::Fail(error) => panic!("login: {error}"),
            }
        }
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn send(&mut self, frames: &Frames) {
        self.send_bytes(&frames.0);
    }

    /// The next frame; it must come.
    pub fn frame(&mut self) -> Frame {
        self.next().unwrap_or_else(|| panic!("closed instead of a frame"))
    }

    /// The next frame; `None` where the connection is closed instead.
    pub fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some((head, body)) = scan::frame(&self.inbox).unwrap() {
                let frame = Frame { tag: head.tag, body: body.to_vec() };
                self.inbox.advance(head.total);
                return Some(frame);
            }
            let mut chunk = vec![0; 64 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(n) => self.inbox.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return None,
                Err(e) => panic!("no frame from port {}: {e}", self.port),
            }
        }
    }

    /// Frames up to the first of this tag.
    pub fn until(&mut self, tag: u8) -> Vec<Frame> {
        let mut frames = Vec::new();
        while frames.last().is_none_or(|f: &Frame| f.tag != tag) {
            match self.next() {
                Some(frame) => frames.push(frame),
                None => panic!("closed instead of {}, after {frames:?}", char::from(tag)),
            }
        }
        frames
    }

    /// Frames whose tags, as [`tags`] says them, are these.
    pub fn expect(&mut self, expected: &str) -> Vec<Frame> {
        let mut frames = Vec::new();
        while tags(&frames) != expected {
            match self.next() {
                Some(frame) => frames.push(frame),
                None => panic!("closed instead of {expected}, after {frames:#?}"),
            }
            let seen = tags(&frames);
            assert!(expected.starts_with(&seen), "port {}: expected {expected}, found {frames:#?}", self.port);
        }
        frames
    }

    /// All frames to the end of the connection.
    pub fn rest(&mut self) -> Vec<Frame> {
        std::iter::from_fn(|| self.next()).collect()
    }

    /// Sends the messages and reads what is owed for them.
    pub fn ask(&mut self, frames: &Frames, expected: &str) -> Vec<Frame> {
        self.send(frames);
        self.expect(expected)
    }

    /// One simple Query to its ReadyForQuery.
    pub fn query(&mut self, sql: &str) -> Vec<Frame> {
        self.send(&Frames::new().query(sql));
        self.until(b'Z')
    }

    /// The first value of a simple Query's first row.
    pub fn value(&mut self, sql: &str) -> String {
        let frames = self.query(sql);
        let row = frames.iter().find(|f| f.tag == b'D');
        row.unwrap_or_else(|| panic!("{sql}: no row in {frames:#?}")).value()
    }

    /// Sends a cancel request with this connection's key, and waits until the other side has closed.
    pub fn cancel(&self) {
        cancel(self.port, self.pid, &self.secret);
    }
}

/// Sends a cancel request, and waits until the other side has closed.
pub fn cancel(port: u16, pid: i32, secret: &[u8]) {
    let mut out = BytesMut::new();
    write::cancel_request(&mut out, pid, secret);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(&out).unwrap();
    let _ = stream.read(&mut [0; 1]);
}
