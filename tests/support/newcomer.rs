//! A client on its way in, which says each byte itself: opening packets, the login, and what the server greets it with.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use bytes::BytesMut;
use pgweir::auth::{ClientAuth, Credentials, Nonce, Password, Reply};
use pgweir::wire::startup::{CANCEL_REQUEST, GSSENC_REQUEST, SSL_REQUEST};
use pgweir::wire::{scan, write};

use super::LIMIT;

/// A message of the server: its type and body.
pub type Frame = (u8, Vec<u8>);

/// Fields of an ErrorResponse or NoticeResponse by their letter, without those that name places in the server's source.
pub type Fields = BTreeMap<char, String>;

/// What a server says from AuthenticationOk to the first ReadyForQuery.
#[derive(Debug, Default)]
pub struct Greeting {
    pub statuses: BTreeMap<String, String>,
    pub notices: Vec<Fields>,
    /// The cancel key.
    pub pid: i32,
    pub secret: Vec<u8>,
    /// The version and the options of NegotiateProtocolVersion.
    pub negotiated: Option<(u32, Vec<String>)>,
}

pub struct Newcomer<S = TcpStream> {
    pub stream: S,
    /// The channel binding data of the TLS connection.
    pub end_point: Option<Vec<u8>>,
}

impl Newcomer {
    pub fn connect(port: u16) -> Newcomer {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Newcomer { stream, end_point: None }
    }

    /// Logged in by protocol 3.0.
    pub fn login(port: u16, parameters: &[(&str, &str)], password: &str) -> Result<(Newcomer, Greeting), Fields> {
        let mut client = Newcomer::connect(port);
        client.startup(0, parameters);
        client.authenticate(parameters[0].1, password).map(|greeting| (client, greeting))
    }
}

impl<S: Read + Write> Newcomer<S> {
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
        self.stream.flush().unwrap();
    }

    #[track_caller]
    pub fn ssl_request(&mut self) -> u8 {
        self.send(&opening(SSL_REQUEST, &[]));
        self.byte()
    }

    #[track_caller]
    pub fn gssenc_request(&mut self) -> u8 {
        self.send(&opening(GSSENC_REQUEST, &[]));
        self.byte()
    }

    pub fn cancel(&mut self, pid: i32, secret: &[u8]) {
        self.send(&opening(CANCEL_REQUEST, &[&pid.to_be_bytes(), secret].concat()));
    }

    #[track_caller]
    pub fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).unwrap();
        byte[0]
    }

    pub fn startup(&mut self, minor: u16, parameters: &[(&str, &str)]) {
        let mut out = BytesMut::new();
        write::startup(&mut out, minor, parameters.iter().copied());
        self.send(&out);
    }

    /// Answers whatever is asked, up to the first ReadyForQuery or the refusal; a refusal without a word has no fields.
    pub fn authenticate(&mut self, user: &str, password: &str) -> Result<Greeting, Fields> {
        let credentials = Credentials::Plain(Password::new(password));
        let mut auth = ClientAuth::new(user, credentials, None, Nonce::draw().unwrap(), self.end_point.clone());
        let mut greeting = Greeting::default();
        loop {
            let Some((tag, body)) = self.frame() else { return Err(Fields::new()) };
            match tag {
                b'R' => match auth.step(&body) {
                    Reply::Send(answer) => {
                        let mut out = BytesMut::new();
                        write::password(&mut out, &answer);
                        self.send(&out);
                    }
                    Reply::Wait | Reply::Done => {}
                    Reply::Fail(error) => panic!("{error}"),
                },
                b'E' => return Err(fields(&body)),
                b'N' => greeting.notices.push(fields(&body)),
                b'S' => {
                    let mut parts = strings(&body);
                    greeting.statuses.insert(parts.remove(0), parts.remove(0));
                }
                b'K' => {
                    greeting.pid = i32::from_be_bytes(body[..4].try_into().unwrap());
                    greeting.secret = body[4..].to_vec();
                }
                b'v' => {
                    let version = u32::from_be_bytes(body[..4].try_into().unwrap());
                    greeting.negotiated = Some((version, strings(&body[8..])));
                }
                b'Z' => return Ok(greeting),
                other => panic!("{} during the login", char::from(other)),
            }
        }
    }

    /// The next message; `None` at the end of the connection, however it came.
    #[track_caller]
    pub fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; scan::HEADER];
        match self.stream.read_exact(&mut head) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => panic!("no message within {LIMIT:?}"),
            Err(_) => return None,
        }
        let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
        let mut body = vec![0; length - 4];
        self.stream.read_exact(&mut body).ok()?;
        Some((head[0], body))
    }

    /// Runs a simple Query; its messages up to ReadyForQuery, or to the end of the connection.
    pub fn query(&mut self, sql: &str) -> Vec<Frame> {
        let mut out = BytesMut::new();
        write::query(&mut out, sql);
        self.send(&out);
        let mut frames = Vec::new();
        while let Some(frame) = self.frame() {
            frames.push(frame);
            if frames.last().is_some_and(|(tag, _)| *tag == b'Z') {
                break;
            }
        }
        frames
    }

    /// The first column of the first row of a query.
    pub fn value(&mut self, sql: &str) -> String {
        let frames = self.query(sql);
        let row = frames.iter().find(|(tag, _)| *tag == b'D').unwrap_or_else(|| panic!("{sql}: {}", told(&frames)));
        String::from_utf8(row.1[6..].to_vec()).unwrap()
    }

    /// The connection must end with an error, which is returned; or silently (`None`).
    #[track_caller]
    pub fn refused(&mut self) -> Option<Fields> {
        let (tag, body) = self.frame()?;
        assert_eq!(char::from(tag), 'E');
        assert_eq!(self.frame(), None, "still open behind its error");
        Some(fields(&body))
    }
}

/// An opening packet with this code.
pub fn opening(code: u32, rest: &[u8]) -> Vec<u8> {
    [&(rest.len() as u32 + 8).to_be_bytes(), &code.to_be_bytes(), rest].concat()
}

/// The values that ParameterStatus messages tell.
pub fn statuses(frames: &[Frame]) -> Vec<(String, String)> {
    let told = frames.iter().filter(|(tag, _)| *tag == b'S').map(|(_, body)| strings(body));
    told.map(|mut parts| (parts.remove(0), parts.remove(0))).collect()
}

/// Messages for people.
fn told(frames: &[Frame]) -> String {
    frames.iter().map(|(tag, body)| format!("{} {} ", char::from(*tag), String::from_utf8_lossy(body))).collect()
}

pub fn fields(body: &[u8]) -> Fields {
    let all = strings(body).into_iter().filter(|field| !field.is_empty());
    let by_letter = all.map(|field| (field.chars().next().unwrap(), field[1..].to_owned()));
    by_letter.filter(|(letter, _)| !"FLR".contains(*letter)).collect()
}

fn strings(body: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(body);
    let mut parts: Vec<String> = text.split('\0').map(str::to_owned).collect();
    parts.pop();
    parts
}
