//! The harness of the integration tests: a shared cluster, and the real pgweir in front of it.
//!
//! ```ignore
//! mod support;
//! let pgweir = support::Pgweir::builder().cluster(support::cluster(), &[1, 2]).set("pool.max", 4).start();
//! assert_eq!(pgweir.psql("SELECT 1"), "1");
//! ```

#![allow(dead_code, unused_imports)] // Each test binary uses a part of it.

pub mod chopper;
pub mod client;
mod config;
pub mod sessions;
mod store;
pub mod console;
pub mod differential;
mod gate;
pub mod newcomer;
pub mod random;
mod raw;
mod role;
pub mod http;
pub mod processes;
pub mod prometheus;
pub mod wire;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pgweir::demo::cluster::{Cluster, Programs, Scratch, Server, free_port};
use pgweir::demo::sample;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub use config::Builder;
pub use gate::{Gate, Mode};
pub use raw::Raw;
pub use role::Role;
pub use store::Store;

/// How long anything may take that a test waits for, on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
const PORT_TRIES: usize = 5;

/// One cluster for each test process: a primary and two replicas with the sample data, every statement logged. It is
/// a static, which nothing drops; its keeper ends it with the process. Tests that stop servers start their own.
pub fn cluster() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| {
        let cluster = Cluster::builder().replicas(2).setting("log_statement", "all").start().unwrap();
        sample::install(cluster.primary()).unwrap();
        cluster.wait_replayed(LIMIT).unwrap();
        cluster
    })
}

/// A primary alone, for one test of the process at a time: they may stop what serves it.
pub fn lone_primary() -> MutexGuard<'static, Cluster> {
    static SHARED: OnceLock<Mutex<Cluster>> = OnceLock::new();
    let start = || {
        let cluster = Cluster::builder().start().unwrap();
        sample::install(cluster.primary()).unwrap();
        Mutex::new(cluster)
    };
    SHARED.get_or_init(start).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Polls until the condition holds; panics with `what` after `limit`.
pub fn wait_until(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        thread::sleep(POLL);
    }
}

/// How many lines of a server's log hold the text. With a marker in a statement's comment: how often it ran there.
pub fn logged(server: &Server, text: &str) -> usize {
    let log = fs::read(server.log_path()).unwrap();
    String::from_utf8_lossy(&log).lines().filter(|line| line.contains(text)).count()
}

/// A running pgweir. Dropping it stops it with SIGTERM and fails the test if it panicked or ended badly.
pub struct Pgweir {
    child: Mutex<Child>,
    sql: u16,
    admin: u16,
    programs: Programs,
    scratch: Scratch,
    /// The end that the test has seen; it may be of any kind.
    seen_exit: Mutex<Option<ExitStatus>>,
}

impl Pgweir {
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Starts pgweir and waits until `path` of its admin address says that it is well.
    fn start(builder: &Builder, path: &str) -> Self {
        // Another process may take a port between our look and pgweir's bind.
        for _ in 0..PORT_TRIES {
            let pgweir = Pgweir::spawn(builder);
            if pgweir.wait_well(path) {
                return pgweir;
            }
            let status = pgweir.wait_exit(LIMIT);
            let stderr = pgweir.stderr();
            assert!(stderr.contains("in use"), "pgweir did not start ({status}):\n{stderr}");
        }
        panic!("no free port for pgweir");
    }

    fn spawn(builder: &Builder) -> Self {
        let sql = free_port().unwrap();
        let admin = std::iter::repeat_with(|| free_port().unwrap()).find(|&port| port != sql).unwrap();
        let scratch = Scratch::create(None).unwrap();
        let config = scratch.path().join("pgweir.toml");
        fs::write(&config, builder.toml(sql, admin, scratch.path())).unwrap();
        let stderr = File::create(scratch.path().join("stderr.log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgweir"));
        if let Some(group) = builder.group() {
            command = Command::new("sh");
            command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(group.join("cgroup.procs"));
            command.arg(env!("CARGO_BIN_EXE_pgweir"));
        }
        let child = command
            .args(["run", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        scratch.watch("pgweir", child.id()).unwrap();
        let programs = Programs::find().unwrap();
        Pgweir { child: Mutex::new(child), sql, admin, programs, scratch, seen_exit: Mutex::new(None) }
    }

    /// False if it ended instead.
    fn wait_well(&self, path: &str) -> bool {
        let deadline = Instant::now() + LIMIT;
        loop {
            if self.try_exit().is_some() {
                return false;
            }
            let answer = pgweir::demo::http::get(self.admin_address(), path, LIMIT);
            // An answer alone may be that of another pgweir, which was quicker to take the port.
            if matches!(answer, Ok((200, _))) && self.stderr().contains("\"serving\"") {
                return true;
            }
            assert!(Instant::now() < deadline, "{path}: {answer:?}");
            thread::sleep(POLL);
        }
    }

    /// Where clients connect, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.sql
    }

    /// For the application's role and database.
    pub fn url(&self) -> String {
        self.url_of(sample::USER, sample::PASSWORD, sample::DATABASE)
    }

    pub fn url_of(&self, user: &str, password: &str, database: &str) -> String {
        format!("postgresql://{user}:{password}@127.0.0.1:{}/{database}", self.sql)
    }

    pub fn admin_address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.admin))
    }

    /// Status and body of an admin path.
    pub fn get(&self, path: &str) -> (u16, String) {
        let reply = self.request("GET", path, &[("Authorization", &format!("Bearer {}", http::TOKEN))]);
        (reply.status, reply.body)
    }

    /// The JSON of an admin path that must answer 200.
    pub fn json(&self, path: &str) -> Value {
        let (status, body) = self.get(path);
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error} in {body}"))
    }

    /// The first database in `/cache`.
    pub fn cache(&self) -> Value {
        self.json("/cache")[0].clone()
    }

    /// Asks until the answer comes from the cache.
    pub fn warm(&self, client: &mut wire::Wire, sql: &str) -> String {
        let mut answer = String::new();
        wait_until(LIMIT, "a hit", || {
            let before = self.cache()["hits"].as_u64();
            answer = client.value(sql);
            self.cache()["hits"].as_u64() > before
        });
        answer
    }

    /// The statement's answer is never kept, for this reason, however often it is asked for.
    pub fn is_refused(&self, client: &mut wire::Wire, sql: &str, why: &str) {
        let count = || self.cache()["refused"][why].as_u64().unwrap();
        // What was just made, the definitions must first have; meanwhile, and while a stream begins, the reason is another.
        wait_until(LIMIT, &format!("{sql} refused as {why}"), || {
            let before = count();
            client.query(sql);
            count() > before
        });
        let hits = self.cache()["hits"].clone();
        (0..3).for_each(|_| drop(client.query(sql)));
        assert_eq!(self.cache()["hits"], hits, "{sql}");
    }

    /// The entry of a server in `/nodes`.
    pub fn node(&self, server: &Server) -> Value {
        self.node_at(server.port())
    }

    /// The entry of what stands at a port of 127.0.0.1.
    pub fn node_at(&self, port: u16) -> Value {
        let name = format!("127.0.0.1:{port}");
        let nodes = self.json("/nodes");
        let found = nodes.as_array().unwrap().iter().find(|node| node["name"] == name.as_str());
        found.unwrap_or_else(|| panic!("{name} in {nodes}")).clone()
    }

    /// Runs SQL as the application, in one simple Query; rows as `a|b`, a line each. It must succeed.
    pub fn psql(&self, sql: &str) -> String {
        let output = self.psql_output(&["-c", sql, &self.url()]);
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// One of PostgreSQL's client programs.
    pub fn program(&self, name: &str) -> Command {
        self.programs.client(name).unwrap()
    }

    /// psql with these arguments, the URL among them. Errors are verbose, so with their SQLSTATE.
    pub fn psql_output(&self, arguments: &[&str]) -> Output {
        let mut psql = self.programs.client("psql").unwrap();
        psql.args(["-XAtqw", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose"]).args(arguments).output().unwrap()
    }

    /// pgbench with these arguments as the application, without its vacuum. It must succeed; returns what it printed.
    pub fn pgbench(&self, arguments: &[&str]) -> String {
        let mut pgbench = self.programs.client("pgbench").unwrap();
        let output = pgbench.arg("-n").args(arguments).arg(self.url()).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "pgbench {arguments:?}: {printed}");
        printed.into_owned()
    }

    /// A folder for the test's own files.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// All it has said so far.
    pub fn stderr(&self) -> String {
        let text = fs::read(self.folder().join("stderr.log")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The entries of the slow-query log so far.
    pub fn slow_log(&self) -> Vec<Value> {
        let text = fs::read_to_string(config::slow_log(self.folder())).unwrap_or_default();
        // The last one may be half written.
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn config_path(&self) -> PathBuf {
        self.folder().join("pgweir.toml")
    }

    /// Writes another configuration for the same ports and has it read (SIGHUP).
    pub fn reload(&self, builder: &Builder) {
        fs::write(self.config_path(), builder.toml(self.sql, self.admin, self.folder())).unwrap();
        self.signal(Signal::HUP);
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child.lock().unwrap())
    }

    pub fn signal(&self, signal: Signal) {
        if self.try_exit().is_none() {
            kill_process(self.pid(), signal).unwrap();
        }
    }

    /// Waits for its end, for tests that bring it about. Dropping then no longer minds how it ended.
    pub fn wait_exit(&self, limit: Duration) -> ExitStatus {
        let mut status = None;
        wait_until(limit, "pgweir's end", || {
            status = self.try_exit();
            status.is_some()
        });
        *self.seen_exit.lock().unwrap() = status;
        status.unwrap()
    }

    fn try_exit(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().try_wait().unwrap()
    }

    /// Stops it; what was wrong with it, if anything.
    fn stop(&self) -> Result<(), String> {
        if self.seen_exit.lock().unwrap().is_none() {
            self.terminate()?;
        }
        match self.stderr().contains("panicked") {
            true => Err("pgweir panicked".into()),
            false => Ok(()),
        }
    }

    fn terminate(&self) -> Result<(), String> {
        if let Some(status) = self.try_exit() {
            return Err(format!("pgweir ended by itself: {status}"));
        }
        self.signal(Signal::TERM);
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.try_exit() {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("pgweir ended with {status}")),
                None if Instant::now() > deadline => {
                    self.signal(Signal::KILL);
                    return Err("pgweir did not end on SIGTERM".into());
                }
                None => thread::sleep(POLL),
            }
        }
    }
}

impl Drop for Pgweir {
    fn drop(&mut self) {
        let stopped = self.stop();
        if thread::panicking() || stopped.is_err() {
            eprintln!("--- pgweir's stderr ---\n{}--- end: {stopped:?} ---", self.stderr());
        }
        // A second panic would abort the process and hide the first.
        if !thread::panicking() {
            stopped.unwrap();
        }
    }
}
