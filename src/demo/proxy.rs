//! pgweir itself, as a child process in front of the demo's cluster.

use std::env;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::cluster::{Cluster, HOST, end, living};
use super::error::Error;
use super::sample;
use super::{http, screen::Reading};

/// The weights of the replicas, in order.
pub const WEIGHTS: [u32; 3] = [1, 1, 2];

const DEFAULT_PORT: u16 = 6432;
const DEFAULT_ADMIN_PORT: u16 = 9432;
const READY_LIMIT: Duration = Duration::from_secs(30);
const REPLY_LIMIT: Duration = Duration::from_secs(2);
const END_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// Where the demo's pgweir listens on 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    pub sql: u16,
    pub admin: u16,
}

/// Ports that nobody else can take while the cluster starts.
#[derive(Debug)]
pub struct Reserved {
    pub ports: Ports,
    /// Bound, until pgweir itself is about to.
    listeners: [TcpListener; 2],
}

impl Reserved {
    /// The asked-for port, else the usual ones or, where one is taken, a free one in its stead.
    ///
    /// # Errors
    /// When the asked-for port is taken, or none is free.
    pub fn choose(asked: Option<u16>) -> Result<Self, Error> {
        let sql = match asked {
            Some(port) => bind(port).map_err(|_| Error::failed(format!("port {port} of {HOST} is taken"), ""))?,
            None => this_or_other(DEFAULT_PORT)?,
        };
        let listeners = [sql, this_or_other(DEFAULT_ADMIN_PORT)?];
        let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
        let [sql, admin] = listeners.each_ref().map(port);
        let named = Error::io("cannot tell a port");
        match (sql, admin) {
            (Ok(sql), Ok(admin)) => Ok(Reserved { ports: Ports { sql, admin }, listeners }),
            (Err(e), _) | (_, Err(e)) => Err(named(e)),
        }
    }

    fn release(self) -> Ports {
        drop(self.listeners);
        self.ports
    }
}

impl Ports {
    /// What differs from the usual, for people who expect it.
    pub fn surprises(self, asked: Option<u16>) -> Vec<String> {
        let moved = |usual, now| (usual != now).then(|| format!("port {usual} is taken: using {now}"));
        let sql = if asked.is_some() { None } else { moved(DEFAULT_PORT, self.sql) };
        sql.into_iter().chain(moved(DEFAULT_ADMIN_PORT, self.admin)).collect()
    }
}

/// The running child; stopped with its value.
#[derive(Debug)]
pub struct Proxy {
    child: Option<Child>,
    ports: Ports,
    config: PathBuf,
    log: PathBuf,
}

impl Proxy {
    /// Writes a configuration into the cluster's folder, starts this executable with it and waits for `/readyz`.
    ///
    /// # Errors
    /// [`Error::Failed`] with the end of its log if it ends or is not ready within 30 s.
    pub fn start(cluster: &Cluster, reserved: Reserved) -> Result<Self, Error> {
        let folder = cluster.scratch().path();
        let (config, log) = (folder.join("pgweir.toml"), folder.join("pgweir.log"));
        fs::write(&config, configuration(cluster, reserved.ports, &slow_log(folder)))
            .map_err(Error::io("cannot write the configuration"))?;
        let stderr = File::options().create(true).append(true).mode(0o600).open(&log);
        let executable = env::current_exe().map_err(Error::io("cannot find this executable"))?;
        let stderr = stderr.map_err(Error::io("cannot make pgweir's log"))?;
        let ports = reserved.release();
        let child = Command::new(executable)
            .args(["run", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .map_err(Error::io("cannot start pgweir"))?;
        cluster.scratch().watch("pgweir", child.id())?;
        let mut proxy = Proxy { child: Some(child), ports, config, log };
        proxy.wait_ready()?;
        Ok(proxy)
    }

    pub fn ports(&self) -> Ports {
        self.ports
    }

    pub fn config(&self) -> &Path {
        &self.config
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Asks the admin endpoint; what it does not answer is null.
    pub fn read(&self) -> Reading {
        let json = |path| match http::get(self.admin(), path, REPLY_LIMIT) {
            Ok((200, body)) => serde_json::from_str(&body).unwrap_or_default(),
            _ => serde_json::Value::Null,
        };
        Reading {
            stats: json("/stats"),
            nodes: json("/nodes"),
            slow: json("/slow?limit=3"),
            statements: json("/statements?order=p95&limit=5"),
        }
    }

    /// # Errors
    /// [`Error::Failed`] with the end of its log if pgweir has ended.
    pub fn check(&mut self) -> Result<(), Error> {
        match living(&mut self.child) {
            Some(_) => Ok(()),
            None => Err(Error::failed("pgweir ended", self.last_words())),
        }
    }

    fn wait_ready(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            self.check()?;
            let answer = http::get(self.admin(), "/readyz", REPLY_LIMIT);
            if matches!(answer, Ok((200, _))) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::failed(format!("pgweir is not ready ({answer:?})"), self.last_words()));
            }
            thread::sleep(POLL);
        }
    }

    fn admin(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.admin))
    }

    fn last_words(&self) -> String {
        let text = fs::read(&self.log).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if !end(&mut self.child, Signal::TERM, END_LIMIT) {
            end(&mut self.child, Signal::KILL, END_LIMIT);
        }
    }
}

/// The slow-query log of a demo in `folder`.
pub fn slow_log(folder: &Path) -> PathBuf {
    folder.join("slow.log")
}

fn configuration(cluster: &Cluster, ports: Ports, slow_log: &Path) -> String {
    let mut text = format!(
        r#"[listen]
address = "{HOST}:{sql}"
shutdown_grace = "3s"

[admin]
http = "{HOST}:{admin}"
users = ["{user}"]

[pool]
min = 2
max = 20

[statements]
slow_threshold = "100ms"
slow_log = {slow_log}

[[users]]
name = "{user}"
password = "{password}"

# Follows what changes, so that results can be cached.
[[users]]
name = "{follower}"
password = "{follower}"

[[databases]]
name = "{database}"
tls = "disable"
"#,
        sql = ports.sql,
        admin = ports.admin,
        user = sample::USER,
        password = sample::PASSWORD,
        follower = sample::FOLLOWER,
        database = sample::DATABASE,
        // As a TOML string: a temporary folder may have any name.
        slow_log = toml::Value::String(slow_log.display().to_string()),
    );
    let weights = std::iter::once(None).chain(WEIGHTS.map(Some));
    for (server, weight) in cluster.servers().zip(weights) {
        let role = if weight.is_some() { "replica" } else { "primary" };
        let port = server.port();
        text += &format!("\n[[databases.nodes]]\nhost = \"{HOST}\"\nport = {port}\nrole = \"{role}\"\n");
        if let Some(weight) = weight {
            text += &format!("weight = {weight}\n");
        }
    }
    text
}

fn this_or_other(port: u16) -> Result<TcpListener, Error> {
    bind(port).or_else(|_| bind(0)).map_err(Error::io("no port is free"))
}

fn bind(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((HOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_refused_when_asked_for_and_avoided_otherwise() {
        let holder = TcpListener::bind((HOST, 0)).unwrap();
        let taken = holder.local_addr().unwrap().port();
        assert!(Reserved::choose(Some(taken)).unwrap_err().to_string().contains("is taken"));
        assert_ne!(this_or_other(taken).unwrap().local_addr().unwrap().port(), taken);
    }

    #[test]
    fn reserved_ports_cannot_be_taken() {
        let reserved = Reserved::choose(None).unwrap();
        assert!(bind(reserved.ports.sql).is_err() && bind(reserved.ports.admin).is_err());
    }

    #[test]
    fn only_moved_ports_surprise() {
        assert_eq!(Ports { sql: DEFAULT_PORT, admin: DEFAULT_ADMIN_PORT }.surprises(None), Vec::<String>::new());
        assert_eq!(Ports { sql: 7, admin: DEFAULT_ADMIN_PORT }.surprises(Some(7)), Vec::<String>::new());
        assert_eq!(Ports { sql: 7, admin: 8 }.surprises(None).len(), 2);
    }
}
