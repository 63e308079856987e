//! `pgweir health`: one GET to a running pgweir, without a runtime, so that a probe costs next to nothing.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// A probe's patience; Kubernetes's own default is 1 s.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// Of an answer no more is read.
const LONGEST_ANSWER: u64 = 64 * 1024;

/// What was asked of, and what it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    pub fn is_well(&self) -> bool {
        self.status == 200
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum HealthError {
    /// Not `http://host[:port]`.
    BadUrl(String),
    Io(io::Error),
    /// Something answered, but not in HTTP.
    NotHttp,
}

impl fmt::Display for HealthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HealthError::BadUrl(url) => {
                write!(f, "{url:?} is no admin address; write it like http://127.0.0.1:9432")
            }
            HealthError::Io(e) => write!(f, "no answer: {e}"),
            HealthError::NotHttp => f.write_str("what answers there does not speak HTTP"),
        }
    }
}

impl std::error::Error for HealthError {}

impl From<io::Error> for HealthError {
    fn from(e: io::Error) -> Self {
        HealthError::Io(e)
    }
}

/// The host and port of `http://host[:port][/]` or `host:port`; the port of plain HTTP is 80.
///
/// # Errors
/// [`HealthError::BadUrl`], also for https, which the admin address does not speak.
pub fn authority_of(url: &str) -> Result<String, HealthError> {
    let bad = || HealthError::BadUrl(url.to_owned());
    let (plain, rest) = match url.strip_prefix("http://") {
        Some(rest) => (true, rest),
        None => (false, url),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.is_empty() || authority.contains(['/', '@', '?', '#', ' ']) {
        return Err(bad());
    }
    // in brackets, colons are an IPv6 address's own
    let after_host = authority.rsplit_once(']').map_or(authority, |(_, after)| after);
    match after_host.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => Ok(authority.to_owned()),
        Some(_) => Err(bad()),
        None if plain => Ok(format!("{authority}:80")),
        None => Err(bad()),
    }
}

/// Where to ask a pgweir that listens at `address`: "every interface" is asked on the loopback one.
#[must_use]
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Asks for `path` of `authority` (host and port) and waits at most `timeout` for the whole answer.
///
/// # Errors
/// When nothing answers in time, or not in HTTP.
pub fn ask(authority: &str, path: &str, timeout: Duration) -> Result<Answer, HealthError> {
    let deadline = Instant::now() + timeout;
    let mut stream = connect(authority, deadline)?;
    stream.set_write_timeout(Some(remaining(deadline)?))?;
    // RFC 9112, section 9.6: with "close" the end of the answer is the end of the stream
    let request = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let answer = read_answer(stream, deadline)?;
    parse_answer(&answer).ok_or(HealthError::NotHttp)
}

fn connect(authority: &str, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in authority.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, remaining(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn read_answer(stream: TcpStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    let mut limited = stream.take(LONGEST_ANSWER);
    loop {
        limited.get_ref().set_read_timeout(Some(remaining(deadline)?))?;
        match limited.read(&mut chunk) {
            Ok(0) => return Ok(answer),
            Ok(read) => answer.extend_from_slice(&chunk[..read]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // once the head is whole, its status counts, however the stream ends
            Err(_) if head_end(&answer).is_some() => return Ok(answer),
            Err(e) => return Err(e),
        }
    }
}

fn head_end(answer: &[u8]) -> Option<usize> {
    answer.windows(4).position(|window| window == b"\r\n\r\n")
}

fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// RFC 9112, section 4: `HTTP/1.1 SP 3DIGIT`; the body is shown to people only, and taken as it comes.
fn parse_answer(answer: &[u8]) -> Option<Answer> {
    let (head, body) = answer.split_at(head_end(answer)?);
    let (head, body) = (String::from_utf8_lossy(head), String::from_utf8_lossy(body));
    let mut words = head.lines().next()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    let status = words.next().filter(|status| status.len() == 3)?.parse().ok()?;
    Some(Answer { status, body: body.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Serves one request with `answer` and gives back what was asked.
    fn serve(answer: &'static [u8]) -> (String, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let mut byte = [0];
            while !asked.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                asked.push(byte[0]);
            }
            stream.write_all(answer).unwrap();
            String::from_utf8(asked).unwrap()
        });
        (authority, server)
    }

    #[test]
    fn the_status_decides() {
        for (answer, well, body) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"[..], true, "ok"),
            (b"HTTP/1.1 503 Service Unavailable\r\n\r\napp: no node", false, "app: no node"),
            (b"HTTP/1.0 404 \r\n\r\n", false, ""),
        ] {
            let (authority, server) = serve(answer);
            let got = ask(&authority, "/readyz", TIMEOUT).unwrap();
            assert_eq!((got.is_well(), got.body.as_str()), (well, body));
            let asked = server.join().unwrap();
            assert!(asked.starts_with("GET /readyz HTTP/1.1\r\n"), "{asked}");
            assert!(asked.contains(&format!("\r\nHost: {authority}\r\n")), "{asked}");
        }
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for answer in [&b""[..], b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", b"HTTP/1.1\r\n\r\n"] {
            let (authority, server) = serve(answer);
            assert!(matches!(ask(&authority, "/livez", TIMEOUT), Err(HealthError::NotHttp)));
            server.join().unwrap();
        }
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let asked = ask(&authority, "/livez", Duration::from_millis(20));
        assert!(matches!(asked, Err(HealthError::Io(_))), "{asked:?}");
        drop(listener);
        assert!(matches!(ask(&authority, "/livez", TIMEOUT), Err(HealthError::Io(_))));
    }

    #[test]
    fn urls() {
        for (url, authority) in [
            ("http://127.0.0.1:9432", Some("127.0.0.1:9432")),
            ("http://localhost:9432/", Some("localhost:9432")),
            ("http://[::1]:9432", Some("[::1]:9432")),
            ("http://[::1]", Some("[::1]:80")),
            ("http://host", Some("host:80")),
            ("host:9432", Some("host:9432")),
            ("host", None),
            ("https://host:9432", None),
            ("http://", None),
            ("http://host:x", None),
            ("http://host:9432/stats", None),
            ("", None),
        ] {
            assert_eq!(authority_of(url).ok().as_deref(), authority, "{url:?}");
        }
    }

    #[test]
    fn every_interface_is_asked_on_loopback() {
        for (listening, asked) in [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.0.0.1:1", "10.0.0.1:1")] {
            assert_eq!(reachable(listening.parse().unwrap()).to_string(), asked);
        }
    }
}
