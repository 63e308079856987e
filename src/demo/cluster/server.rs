//! One PostgreSQL server, a child of this process.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::process::{children, end, living, signal_all};
use super::programs::{Programs, output};
use super::scratch::random_hex;
use crate::demo::error::Error;

/// The superuser of every server.
pub const SUPERUSER: &str = "postgres";
/// Where servers listen for TCP.
pub const HOST: &str = "127.0.0.1";

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
const PORT_TRIES: usize = 20;
/// Below the ranges from which Linux (32768) and macOS (49152) give ports to outgoing connections: a server that is down
/// for a moment must find its port free again.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// How the postmaster is told to end ("Shutting Down the Server" in PostgreSQL's documentation).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// SIGINT: clients are disconnected, transactions rolled back, data written.
    Fast,
    /// SIGQUIT: at once; the next start recovers.
    Immediate,
}

/// A server of a cluster. All methods may be called from several threads.
#[derive(Debug)]
pub struct Server {
    name: String,
    port: u16,
    password: String,
    data: PathBuf,
    sockets: PathBuf,
    log: PathBuf,
    programs: Arc<Programs>,
    child: Mutex<Option<Child>>,
}

/// What a server needs besides its port.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The cluster's folder; data, log and sockets are in it.
    pub folder: PathBuf,
    pub password: String,
    pub programs: Arc<Programs>,
}

impl Place {
    pub fn data(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn sockets(&self) -> PathBuf {
        self.folder.join("s")
    }
}

impl Server {
    /// Starts a prepared data folder for the first time, on a port that it finds free.
    pub(super) fn launch(name: &str, place: &Place) -> Result<Self, Error> {
        let mut last = Error::failed("no free port", "");
        for _ in 0..PORT_TRIES {
            let server = Server {
                name: name.to_owned(),
                port: free_port()?,
                password: place.password.clone(),
                data: place.data(name),
                sockets: place.sockets(),
                log: place.folder.join(format!("{name}.log")),
                programs: Arc::clone(&place.programs),
                child: Mutex::new(None),
            };
            match server.start() {
                Ok(()) => return Ok(server),
                // Somebody took the port between our look and Postgres's bind.
                Err(Error::Failed { detail, .. }) if detail.contains("could not bind") => {
                    last = Error::failed(format!("{name} found no free port"), detail);
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// `primary`, `replica1`, `replica2`, …; also the replica's application_name. Promotion does not change it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn host(&self) -> &str {
        HOST
    }

    /// Stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The password of [`SUPERUSER`], for TCP.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// A libpq URL of the superuser.
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://{SUPERUSER}:{}@{HOST}:{}/{database}", self.password, self.port)
    }

    /// Everything the server logs, over all its starts.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    pub fn data_path(&self) -> &Path {
        &self.data
    }

    /// Whether the postmaster is there (possibly paused).
    pub fn is_running(&self) -> bool {
        self.pid().is_some()
    }

    /// Starts the server and waits until it takes connections. Does nothing if it runs.
    ///
    /// # Errors
    /// [`Error::Failed`] with the end of the log if it ends instead or is not ready within 60 s.
    pub fn start(&self) -> Result<(), Error> {
        let deadline = Instant::now() + STOP_LIMIT;
        loop {
            match self.start_once() {
                // A killed server's children are still on their way out.
                Err(Error::Failed { detail, .. })
                    if detail.contains("pre-existing shared memory block") && Instant::now() < deadline =>
                {
                    thread::sleep(POLL);
                }
                started => return started,
            }
        }
    }

    fn start_once(&self) -> Result<(), Error> {
        let mut slot = self.slot();
        if living(&mut slot).is_some() {
            return Ok(());
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.map_err(Error::io(format!("cannot open {}", self.log.display())))?;
        let logged = log.metadata().map_or(0, |found| found.len());
        let stdout = log.try_clone().map_err(Error::io("cannot share the log"))?;

        let mut command = self.programs.server("postgres", &self.sockets)?;
        command.arg("-D").arg(&self.data).args(["-p", &self.port.to_string()]).stdout(stdout).stderr(log);
        // Its own group: Ctrl-C in a terminal is for us, who then stop servers in order.
        let child = command.process_group(0).spawn().map_err(Error::io("cannot start postgres"))?;
        let pid = child.id();
        *slot = Some(child);

        let deadline = Instant::now() + START_LIMIT;
        while !self.says_ready(pid) {
            let ended = living(&mut slot).is_none();
            if ended || Instant::now() > deadline {
                let what = if ended { "ended while starting" } else { "was not ready in time" };
                end(&mut slot, Signal::KILL, Duration::from_secs(10));
                return Err(Error::failed(format!("{} {what}", self.name), self.log_since(logged)));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Stops the server, also a paused one, and waits for its end. Does nothing if it is stopped.
    ///
    /// # Errors
    /// [`Error::Failed`] if it had to be killed after 30 s.
    pub fn stop(&self, how: Shutdown) -> Result<(), Error> {
        self.resume();
        let signal = match how {
            Shutdown::Fast => Signal::INT,
            Shutdown::Immediate => Signal::QUIT,
        };
        if end(&mut self.slot(), signal, STOP_LIMIT) {
            return Ok(());
        }
        self.kill9();
        Err(Error::failed(format!("{} did not stop within {STOP_LIMIT:?} and was killed", self.name), ""))
    }

    /// SIGKILL to the postmaster and all its processes, as if the machine had died: nobody is told anything.
    pub fn kill9(&self) {
        let mut slot = self.slot();
        let Some(postmaster) = living(&mut slot) else { return };
        // Stopped first, it forks nothing after the look at its children.
        signal_all([postmaster], Signal::STOP);
        let children = children(postmaster);
        signal_all([postmaster], Signal::KILL);
        signal_all(children, Signal::KILL);
        end(&mut slot, Signal::KILL, STOP_LIMIT);
    }

    /// [`Server::stop`] fast, then [`Server::start`].
    ///
    /// # Errors
    /// As theirs.
    pub fn restart(&self) -> Result<(), Error> {
        self.stop(Shutdown::Fast)?;
        self.start()
    }

    /// SIGSTOP to all its processes: connections are still accepted by the kernel, and nothing answers.
    pub fn pause(&self) {
        if let Some(postmaster) = self.pid() {
            signal_all([postmaster], Signal::STOP);
            signal_all(children(postmaster), Signal::STOP);
        }
    }

    /// Undoes [`Server::pause`].
    pub fn resume(&self) {
        if let Some(postmaster) = self.pid() {
            signal_all(children(postmaster), Signal::CONT);
            signal_all([postmaster], Signal::CONT);
        }
    }

    /// Makes a replica a primary and waits until it takes writes.
    ///
    /// # Errors
    /// [`Error::Failed`] if it is none or does not become one within 30 s.
    pub fn promote(&self) -> Result<(), Error> {
        match self.psql("SELECT pg_promote(true, 30)")?.as_str() {
            "t" => Ok(()),
            _ => Err(Error::failed(format!("{} was not promoted", self.name), "")),
        }
    }

    /// Has a replica stream from `upstream` from now on.
    ///
    /// # Errors
    /// When the replica does not run.
    pub fn follow(&self, upstream: &Server) -> Result<(), Error> {
        let conninfo = upstream.conninfo(&self.name).replace('\'', "''");
        self.psql(&format!("ALTER SYSTEM SET primary_conninfo = '{conninfo}'; SELECT pg_reload_conf()")).map(drop)
    }

    /// Runs SQL in the database `postgres` as the superuser over the unix socket; rows as `a|b`, a line each.
    ///
    /// # Errors
    /// [`Error::Failed`] with psql's message at the first statement that fails.
    pub fn psql(&self, sql: &str) -> Result<String, Error> {
        self.psql_in("postgres", sql)
    }

    /// As [`Server::psql`], in another database. Each statement is its own transaction.
    ///
    /// # Errors
    /// As [`Server::psql`].
    pub fn psql_in(&self, database: &str, sql: &str) -> Result<String, Error> {
        let (reader, mut writer) = std::io::pipe().map_err(Error::io("cannot make a pipe"))?;
        let mut command = self.programs.client("psql")?;
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", SUPERUSER, "-d", database]);
        command.args(["-p", &self.port.to_string()]).arg("-h").arg(&self.sockets).stdin(reader);
        // On a thread of its own, since psql may print more than a pipe holds before it has read everything.
        let sql = sql.to_owned();
        let writing = thread::spawn(move || writer.write_all(sql.as_bytes()));
        let printed = output(command).map(|text| text.trim_end().to_owned());
        // It fails when psql stopped at an error, which `output` reports.
        let _ = writing.join();
        printed
    }

    /// The conninfo by which a replica of that name reaches this server.
    pub(super) fn conninfo(&self, application_name: &str) -> String {
        let sockets = self.sockets.display();
        format!("host={sockets} port={} user={SUPERUSER} application_name={application_name}", self.port)
    }

    fn slot(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pid(&self) -> Option<Pid> {
        living(&mut self.slot())
    }

    /// The lock file's first line is the postmaster's number, its eighth says "ready" once connections are served, on a
    /// hot standby as well (Postgres: `AddToDataDirLockFile`, as `pg_ctl` reads it).
    fn says_ready(&self, pid: u32) -> bool {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let mut lines = text.lines();
        lines.next().is_some_and(|line| line.trim() == pid.to_string())
            && lines.nth(6).is_some_and(|line| line.trim() == "ready")
    }

    fn log_since(&self, offset: u64) -> String {
        let mut text = Vec::new();
        let read = File::open(&self.log).and_then(|mut log| {
            log.seek(SeekFrom::Start(offset))?;
            log.read_to_end(&mut text)
        });
        match read {
            Ok(_) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) => format!("(no log: {error})"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Data that is about to be removed needs no orderly end.
        let _ = self.stop(Shutdown::Immediate);
    }
}

/// A port of 127.0.0.1 on which nobody listens now.
///
/// # Errors
/// [`Error::Failed`] if many random ports are all taken.
pub fn free_port() -> Result<u16, Error> {
    for _ in 0..200 {
        let random = u16::from_str_radix(&random_hex(2)?, 16).unwrap_or_default();
        let port = PORTS.start + random % (PORTS.end - PORTS.start);
        if TcpListener::bind((HOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Error::failed("no free port on 127.0.0.1", ""))
}
