//! A client that says exactly what a test wants, frame by frame, and can die at any point.

use std::io::{Read, Write};
use std::net::TcpStream;

use bytes::{BufMut, BytesMut};
use pgweir::auth::{ClientAuth, Credentials, Nonce, Password, Reply};
use pgweir::demo::sample;
use pgweir::wire::read::ErrorFields;
use pgweir::wire::{scan, write};

use super::LIMIT;

/// A logged-in connection. Dropping it closes the socket without a Terminate, as the death of a client does.
#[derive(Debug)]
pub struct Raw {
    /// Of its cancel key.
    pub pid: i32,
    secret: Vec<u8>,
    stream: TcpStream,
    inbox: BytesMut,
    outbox: BytesMut,
}

impl Raw {
    /// Logs in to the sample database; the role's password is its name.
    pub fn connect(port: u16, user: &str) -> Raw {
        let mut raw = Raw::proven(port, user, &[]);
        let key = raw.until(b'K');
        (raw.pid, raw.secret) = (i32::from_be_bytes(key[..4].try_into().unwrap()), key[4..].to_vec());
        raw.until_ready();
        raw
    }

    /// Has proven who it is, and waits for the rest of its login. With parameters a server connection is needed for it.
    pub fn proven(port: u16, user: &str, parameters: &[(&str, &str)]) -> Raw {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut raw = Raw { pid: 0, secret: Vec::new(), stream, inbox: BytesMut::new(), outbox: BytesMut::new() };
        let names = [("user", user), ("database", sample::DATABASE)];
        write::startup(&mut raw.outbox, 0, names.iter().chain(parameters).copied());
        raw.flush();
        let password = Credentials::Plain(Password::new(user));
        let mut auth = ClientAuth::new(user, password, None, Nonce::draw().unwrap(), None);
        // SCRAM asks twice, and is answered together with the rest.
        for _ in 0..2 {
            let (tag, body) = raw.receive().expect("an answer to the login");
            assert_eq!(tag, b'R', "{}", String::from_utf8_lossy(&body));
            let Reply::Send(answer) = auth.step(&body) else { panic!("no SCRAM") };
            write::password(&mut raw.outbox, &answer);
            raw.flush();
        }
        raw
    }

    /// Sends a cancel request for this client, and waits until it has been taken.
    pub fn cancel(&self) {
        let mut other = TcpStream::connect(self.stream.peer_addr().unwrap()).unwrap();
        let mut request = BytesMut::new();
        write::cancel_request(&mut request, self.pid, &self.secret);
        other.write_all(&request).unwrap();
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
    }

    /// Ends its half of the connection, as the system does for a client that has died.
    pub fn hang_up(&mut self) -> &mut Self {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
        self
    }

    /// Adds a Query to what the next [`Raw::flush`] sends.
    pub fn query(&mut self, sql: &str) -> &mut Self {
        write::query(&mut self.outbox, sql);
        self
    }

    /// Adds Parse, Bind and Execute of an unnamed statement without parameters.
    pub fn execute(&mut self, sql: &str) -> &mut Self {
        write::parse(&mut self.outbox, b"", sql.as_bytes(), b"\0\0");
        self.frame(b'B', b"\0\0\0\0\0\0\0\0").frame(b'E', b"\0\0\0\0\0")
    }

    /// Adds any frame.
    pub fn frame(&mut self, tag: u8, body: &[u8]) -> &mut Self {
        write::frame(&mut self.outbox, tag, |out| out.put_slice(body));
        self
    }

    /// Adds bytes as they are: half a frame, for instance.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.outbox.put_slice(bytes);
        self
    }

    /// Sends what was added.
    pub fn flush(&mut self) -> &mut Self {
        self.stream.write_all(&self.outbox).unwrap();
        self.outbox.clear();
        self
    }

    /// The next frame's tag and body; `None` where the connection was closed.
    pub fn receive(&mut self) -> Option<(u8, BytesMut)> {
        loop {
            if let Some(head) = scan::head(&self.inbox).unwrap()
                && self.inbox.len() >= head.total
            {
                let mut frame = self.inbox.split_to(head.total);
                return Some((head.tag, frame.split_off(scan::HEADER)));
            }
            let mut chunk = [0; 8192];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(n) => self.inbox.put_slice(&chunk[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing came: {error}"),
            }
        }
    }

    /// Reads up to a frame of this tag.
    pub fn until(&mut self, wanted: u8) -> BytesMut {
        loop {
            match self.receive() {
                Some((tag, body)) if tag == wanted => return body,
                Some((b'E', body)) => panic!("{}", ErrorFields::read(&body).unwrap().message()),
                Some(_) => {}
                None => panic!("closed while waiting for {}", wanted as char),
            }
        }
    }

    /// Reads to ReadyForQuery: its status.
    pub fn until_ready(&mut self) -> u8 {
        self.until(b'Z')[0]
    }

    /// Reads to an ErrorResponse: its SQLSTATE.
    pub fn until_error(&mut self) -> String {
        ErrorFields::read(&self.until_error_body()).unwrap().code()
    }

    /// Reads to an ErrorResponse: all its fields.
    pub fn until_error_body(&mut self) -> BytesMut {
        loop {
            match self.receive() {
                Some((b'E', body)) => return body,
                Some(_) => {}
                None => panic!("closed without an error"),
            }
        }
    }

    /// Reads until the connection is closed: the SQLSTATE of the last ErrorResponse.
    pub fn until_closed(&mut self) -> Option<String> {
        let mut last = None;
        while let Some((tag, body)) = self.receive() {
            if tag == b'E' {
                last = Some(ErrorFields::read(&body).unwrap().code());
            }
        }
        last
    }

    /// Runs a simple Query of one value, which must not be NULL.
    pub fn value(&mut self, sql: &str) -> String {
        let row = self.query(sql).flush().until(b'D');
        self.until_ready();
        // Int16 count of columns, Int32 length of the value.
        String::from_utf8_lossy(&row[6..]).into_owned()
    }

    /// Runs a simple Query that must succeed; the status of its ReadyForQuery.
    pub fn run(&mut self, sql: &str) -> u8 {
        self.query(sql).flush().until_ready()
    }
}
