//! A relay in front of a server that can refuse, delay, garble, fall silent, and count who comes and what is said.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// What a gate does with connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Bytes go through.
    Open,
    /// Bytes go through, those of the server each so much later.
    Slow(Duration),
    /// New connections are closed at once.
    Refusing,
    /// Whatever is sent disappears, on connections new and old; nothing is answered and nothing closed.
    Silent,
}

/// How long a reader waits before it looks at the mode again.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug)]
struct State {
    upstream: SocketAddr,
    mode: Mutex<Mode>,
    arrivals: Mutex<Vec<Instant>>,
    clients: Mutex<Vec<TcpStream>>,
    open: AtomicUsize,
    /// Connections whose login is not over: now, and at most.
    logins: AtomicUsize,
    most_logins: AtomicUsize,
    goodbyes: AtomicUsize,
    /// Writes of clients that have come through.
    said: AtomicUsize,
    /// What is put in the place of as many bytes that clients say.
    garbled: Mutex<Option<(&'static [u8], &'static [u8])>>,
}

/// A listening relay; its threads end with the test process.
#[derive(Debug)]
pub struct Gate {
    pub port: u16,
    state: Arc<State>,
}

impl Gate {
    /// In front of a port of 127.0.0.1, open.
    pub fn new(upstream: u16) -> Gate {
        Gate::at(([127, 0, 0, 1], 0).into(), upstream)
    }

    /// The same at an address of its own.
    pub fn at(address: SocketAddr, upstream: u16) -> Gate {
        let listener = TcpListener::bind(address).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            upstream: SocketAddr::from(([127, 0, 0, 1], upstream)),
            mode: Mutex::new(Mode::Open),
            arrivals: Mutex::default(),
            clients: Mutex::default(),
            open: AtomicUsize::new(0),
            logins: AtomicUsize::new(0),
            most_logins: AtomicUsize::new(0),
            goodbyes: AtomicUsize::new(0),
            said: AtomicUsize::new(0),
            garbled: Mutex::default(),
        });
        let accepting = state.clone();
        thread::spawn(move || listener.incoming().flatten().for_each(|client| accepting.arrived(client)));
        Gate { port, state }
    }

    pub fn set(&self, mode: Mode) {
        *self.state.mode.lock().unwrap() = mode;
    }

    /// When each connection came, the refused ones too.
    pub fn arrivals(&self) -> Vec<Instant> {
        self.state.arrivals.lock().unwrap().clone()
    }

    /// Connections that their client has not closed.
    pub fn open(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }

    /// How many logins were under way at once, at most.
    pub fn most_logins(&self) -> usize {
        self.state.most_logins.load(Ordering::SeqCst)
    }

    /// How many clients have said Terminate.
    pub fn goodbyes(&self) -> usize {
        self.state.goodbyes.load(Ordering::SeqCst)
    }

    /// How often a client has said something; who waits for each answer says one thing at a time.
    pub fn said(&self) -> usize {
        self.state.said.load(Ordering::SeqCst)
    }

    /// From now on, `said` reaches the server as other bytes, as many.
    pub fn garble(&self, said: &'static [u8], heard: &'static [u8]) {
        assert_eq!(said.len(), heard.len());
        *self.state.garbled.lock().unwrap() = Some((said, heard));
    }

    /// Breaks all connections.
    pub fn cut(&self) {
        for client in self.state.clients.lock().unwrap().drain(..) {
            let _ = client.shutdown(Shutdown::Both);
        }
    }
}

impl State {
    fn mode(&self) -> Mode {
        *self.mode.lock().unwrap()
    }

    fn arrived(self: &Arc<Self>, client: TcpStream) {
        self.arrivals.lock().unwrap().push(Instant::now());
        if self.mode() == Mode::Refusing {
            return;
        }
        self.clients.lock().unwrap().push(client.try_clone().unwrap());
        let state = self.clone();
        thread::spawn(move || state.relay(client));
    }

    fn relay(self: Arc<Self>, client: TcpStream) {
        let server = match self.mode() {
            Mode::Open | Mode::Slow(_) => match TcpStream::connect(self.upstream) {
                Ok(server) => Some(server),
                Err(_) => {
                    let _ = client.shutdown(Shutdown::Both);
                    return;
                }
            },
            _ => None,
        };
        self.open.fetch_add(1, Ordering::SeqCst);
        let login = Login::begin(&self);
        if let Some(server) = &server {
            let (state, from, to) = (self.clone(), server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || state.pump(from, Some(to), Some(login)));
        }
        self.pump(client, server, None);
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    fn hear(&self, chunk: &mut [u8]) {
        self.said.fetch_add(1, Ordering::SeqCst);
        let Some((said, heard)) = *self.garbled.lock().unwrap() else { return };
        for at in 0..(chunk.len() + 1).saturating_sub(said.len()) {
            if chunk[at..].starts_with(said) {
                chunk[at..at + said.len()].copy_from_slice(heard);
            }
        }
    }

    /// Passes bytes on until their sender closes, which closes the other side too, unless the gate is silent. The login
    /// is over at the server's first ReadyForQuery, or at its refusal.
    fn pump(&self, mut from: TcpStream, to: Option<TcpStream>, mut login: Option<Login>) {
        from.set_read_timeout(Some(LOOK)).unwrap();
        let of_server = login.is_some();
        let mut chunk = [0; 16 * 1024];
        loop {
            match from.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => {
                    if !of_server {
                        self.hear(&mut chunk[..n]);
                    }
                    let chunk = &chunk[..n];
                    let refused = || chunk.windows(7).any(|part| part == b"SFATAL\0");
                    login.take_if(|_| chunk.ends_with(b"Z\0\0\0\x05I") || refused());
                    self.goodbyes.fetch_add(usize::from(chunk.ends_with(b"X\0\0\0\x04")), Ordering::SeqCst);
                    let mode = self.mode();
                    if let (Mode::Slow(delay), true) = (mode, of_server) {
                        thread::sleep(delay);
                    }
                    let through = to.as_ref().filter(|_| matches!(mode, Mode::Open | Mode::Slow(_)));
                    if through.is_some_and(|mut to| to.write_all(chunk).is_err()) {
                        break;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        if let Some(to) = to {
            let _ = to.shutdown(Shutdown::Both);
        }
    }
}

/// A login under way.
struct Login(Arc<State>);

impl Login {
    fn begin(state: &Arc<State>) -> Login {
        let now = state.logins.fetch_add(1, Ordering::SeqCst) + 1;
        state.most_logins.fetch_max(now, Ordering::SeqCst);
        Login(state.clone())
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        self.0.logins.fetch_sub(1, Ordering::SeqCst);
    }
}
