//! A relay in front of a server that passes its bytes on in pieces of given sizes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

/// A listening relay; its threads end with the test process.
#[derive(Debug)]
pub struct Chopper {
    pub port: u16,
}

impl Chopper {
    /// In front of a port of 127.0.0.1; the sizes are used in turn.
    pub fn new(upstream: u16, pieces: Vec<usize>) -> Chopper {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let pieces: Arc<[usize]> = pieces.into();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)) else { continue };
                let ways = [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)];
                for (from, to) in ways {
                    let pieces = pieces.clone();
                    thread::spawn(move || pass(from, to, &pieces));
                }
            }
        });
        Chopper { port }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, pieces: &[usize]) {
    to.set_nodelay(true).unwrap();
    let mut sizes = pieces.iter().cycle();
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut chunk) {
        let mut rest = &chunk[..n];
        while !rest.is_empty() {
            let (piece, next) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
            if to.write_all(piece).is_err() {
                break;
            }
            rest = next;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
