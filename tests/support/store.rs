//! A Redis of a test's own, in which pgweirs share results.

use std::fs;
use std::process::{Child, Command, Stdio};

use pgweir::demo::cluster::{Scratch, free_port};
use rustix::process::{Pid, Signal, kill_process};

use super::{LIMIT, PORT_TRIES, wait_until};

/// A running redis-server, on 127.0.0.1.
#[derive(Debug)]
pub struct Store {
    pub port: u16,
    child: Child,
    scratch: Scratch,
}

impl Store {
    pub fn start() -> Store {
        Store::start_with("")
    }

    /// With these lines in its configuration, where `PORT` stands for its port.
    pub fn start_with(lines: &str) -> Store {
        // Another process may take a port between our look and its bind.
        for _ in 0..PORT_TRIES {
            let (scratch, port) = (Scratch::create(None).unwrap(), free_port().unwrap());
            let folder = scratch.path().display();
            let lines = lines.replace("PORT", &port.to_string());
            let config = format!(
                "port {port}\nbind 127.0.0.1\nsave \"\"\nappendonly no\ndir {folder}\nset-proc-title no\n{lines}\n"
            );
            fs::write(scratch.path().join("redis.conf"), config).unwrap();
            let child = spawn(&scratch);
            let mut store = Store { port, child, scratch };
            if store.answers() {
                return store;
            }
        }
        panic!("no free port for redis-server");
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A connection as a test's own; waits until there may be one.
    pub fn connection(&self, url: &str) -> redis::Connection {
        let client = redis::Client::open(url).unwrap();
        let mut made = None;
        wait_until(LIMIT, "redis-server", || {
            made = client.get_connection().ok();
            made.is_some()
        });
        made.unwrap()
    }

    /// Its keys that a pgweir has made.
    pub fn keys(&self) -> Vec<String> {
        redis::cmd("KEYS").arg("pgweir:*").query(&mut self.connection(&self.url())).unwrap()
    }

    /// Forgets everything.
    pub fn flush(&self) {
        redis::cmd("FLUSHALL").query::<()>(&mut self.connection(&self.url())).unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// On the same port, with nothing in it.
    pub fn restart(&mut self) {
        self.child = spawn(&self.scratch);
        assert!(self.answers(), "redis-server's port was taken");
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// False if it ended instead.
    fn answers(&mut self) -> bool {
        let mut ended = false;
        wait_until(LIMIT, "redis-server's port", || {
            ended = self.child.try_wait().unwrap().is_some();
            ended || std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
        !ended
    }
}

fn spawn(scratch: &Scratch) -> Child {
    let log = fs::File::create(scratch.path().join("redis.log")).unwrap();
    let child = Command::new("redis-server")
        .arg(scratch.path().join("redis.conf"))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server, which `make setup` installs");
    scratch.watch("redis", child.id()).unwrap();
    child
}

impl Drop for Store {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
