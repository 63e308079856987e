//! A throw-away PostgreSQL cluster: a primary and streaming replicas on free ports of 127.0.0.1, in a temporary folder.
//!
//! ```no_run
//! use pgweir::demo::cluster::Cluster;
//!
//! let cluster = Cluster::builder().replicas(2).setting("log_statement", "all").start()?;
//! cluster.primary().psql("CREATE TABLE t (a int)")?;
//! # Ok::<(), pgweir::demo::error::Error>(())
//! ```
//!
//! Dropping the cluster stops the servers and removes the folder. If this process ends without dropping (a static, a
//! signal, SIGKILL), the folder's keeper does the same. When run as root, servers run as the account `postgres`.

mod process;
mod programs;
mod scratch;
mod server;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

pub use process::{children, end, living};
pub use programs::{Account, BIN_VARIABLE, Programs};
pub use scratch::{Scratch, random_hex};
pub use server::{HOST, SUPERUSER, Server, Shutdown, free_port};

use crate::demo::error::Error;
use programs::output;
use server::Place;

const STREAMING_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// Before the caller's own settings. Without fsync a commit survives the death of the server, not that of the machine.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", HOST),
    ("wal_level", "logical"),
    ("max_wal_senders", "20"),
    ("max_replication_slots", "20"),
    // Replicas that were down for a while must find what they missed.
    ("wal_keep_size", "256MB"),
    ("hot_standby", "on"),
    ("hot_standby_feedback", "off"),
    ("wal_retrieve_retry_interval", "200ms"),
    ("password_encryption", "scram-sha-256"),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("max_connections", "300"),
    ("shared_buffers", "32MB"),
    // In the data folder, so that a killed server leaves nothing in /dev/shm.
    ("dynamic_shared_memory_type", "mmap"),
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("log_line_prefix", "%m [%p] %q%u@%d %a "),
];

/// What to start; made by [`Cluster::builder`].
#[derive(Debug, Default)]
pub struct Builder {
    replicas: usize,
    settings: Vec<(String, String)>,
    hba: Vec<String>,
    tls: Option<(PathBuf, PathBuf)>,
    programs: Option<Programs>,
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    // In the order in which they must be dropped: replicas, primary, folder.
    replicas: Vec<Server>,
    primary: Server,
    scratch: Scratch,
    programs: Arc<Programs>,
}

impl Builder {
    /// The number of streaming replicas; 0 unless said.
    pub fn replicas(mut self, count: usize) -> Self {
        self.replicas = count;
        self
    }

    /// A line of postgresql.conf on every server, over this module's own.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// A line of pg_hba.conf, before the usual ones (`trust` on the socket, `scram-sha-256` over TCP).
    pub fn hba(mut self, line: &str) -> Self {
        self.hba.push(line.into());
        self
    }

    /// Offers TLS on every server with this certificate and key (PEM files, which are copied).
    pub fn tls(mut self, certificate: &Path, key: &Path) -> Self {
        self.tls = Some((certificate.into(), key.into()));
        self
    }

    /// Another installation than the one that [`Programs::find`] finds.
    pub fn programs(mut self, programs: Programs) -> Self {
        self.programs = Some(programs);
        self
    }

    /// Starts all servers and waits until every replica streams.
    ///
    /// # Errors
    /// [`Error::Missing`] if PostgreSQL is not installed; [`Error::Failed`] if a server does not start. Nothing is left
    /// behind then.
    pub fn start(mut self) -> Result<Cluster, Error> {
        let programs = Arc::new(self.programs.take().map_or_else(Programs::find, Ok)?);
        let scratch = Scratch::create(programs.account())?;
        let place = Place { folder: scratch.path().to_owned(), password: random_hex(12)?, programs };
        own_folder(&place.sockets(), &place)?;
        self.prepare_primary(&place)?;
        let primary = Server::launch("primary", &place)?;
        let replicas = start_replicas(self.replicas, &primary, &place)?;
        let cluster = Cluster { replicas, primary, scratch, programs: place.programs };
        cluster.wait_streaming()?;
        Ok(cluster)
    }

    fn prepare_primary(&self, place: &Place) -> Result<(), Error> {
        let data = place.data("primary");
        let password_file = place.folder.join("password");
        write_owned(&password_file, &place.password, place)?;
        let mut initdb = place.programs.server("initdb", &place.folder)?;
        initdb.args(["--no-sync", "--encoding=UTF8", "--locale=C", "-A", "scram-sha-256", "-U", SUPERUSER]);
        initdb.arg("--pwfile").arg(&password_file).arg("-D").arg(&data);
        output(initdb)?;

        if let Some((certificate, key)) = &self.tls {
            for (from, to) in [(certificate, "server.crt"), (key, "server.key")] {
                let text = fs::read_to_string(from).map_err(Error::io(format!("cannot read {}", from.display())))?;
                write_owned(&data.join(to), &text, place)?;
            }
        }
        let conf = data.join("postgresql.conf");
        let mut file = OpenOptions::new().append(true).open(&conf).map_err(Error::io("cannot open postgresql.conf"))?;
        file.write_all(self.conf(&place.sockets()).as_bytes()).map_err(Error::io("cannot write postgresql.conf"))?;
        write_owned(&data.join("pg_hba.conf"), &self.hba_conf(), place)
    }

    fn conf(&self, sockets: &Path) -> String {
        let mut text = String::from("\n");
        let mut line = |name: &str, value: &str| text.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        for (name, value) in SETTINGS {
            line(name, value);
        }
        line("unix_socket_directories", &sockets.display().to_string());
        if self.tls.is_some() {
            line("ssl", "on");
        }
        for (name, value) in &self.settings {
            line(name, value);
        }
        text
    }

    fn hba_conf(&self) -> String {
        let mut text: String = self.hba.iter().map(|line| format!("{line}\n")).collect();
        // The socket's folder may be entered by the owner of the cluster alone.
        text.push_str("local all,replication all trust\n");
        text.push_str("host all,replication all 127.0.0.1/32 scram-sha-256\n");
        text
    }
}

impl Cluster {
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The server that was the primary at the start.
    pub fn primary(&self) -> &Server {
        &self.primary
    }

    /// The servers that were replicas at the start.
    pub fn replicas(&self) -> &[Server] {
        &self.replicas
    }

    /// The primary, then the replicas.
    pub fn servers(&self) -> impl Iterator<Item = &Server> {
        std::iter::once(&self.primary).chain(&self.replicas)
    }

    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The folder that goes with the cluster; other files of a test or the demo may be put there.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Waits until every running replica has replayed all that the primary has written so far.
    ///
    /// # Errors
    /// [`Error::Failed`] after `limit`, or if the primary does not answer.
    pub fn wait_replayed(&self, limit: Duration) -> Result<(), Error> {
        // All that was committed is flushed; replicas are sent no more than that.
        let written = self.primary.psql("SELECT pg_current_wal_flush_lsn()")?;
        let replayed = format!("SELECT NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() >= '{written}'");
        let deadline = Instant::now() + limit;
        for replica in self.replicas.iter().filter(|replica| replica.is_running()) {
            while replica.psql(&replayed)? != "t" {
                if Instant::now() > deadline {
                    return Err(Error::failed(format!("{} has not replayed {written} in time", replica.name()), ""));
                }
                thread::sleep(POLL);
            }
        }
        Ok(())
    }

    /// Leaves the servers running and the folder in place, also after this process. Returns the folder.
    pub fn keep(self) -> PathBuf {
        let Cluster { replicas, primary, scratch, .. } = self;
        // Not dropped: that would stop them.
        std::mem::forget((replicas, primary));
        scratch.keep()
    }

    fn wait_streaming(&self) -> Result<(), Error> {
        let wanted = self.replicas.len().to_string();
        let deadline = Instant::now() + STREAMING_LIMIT;
        while self.primary.psql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")? != wanted {
            if Instant::now() > deadline {
                return Err(Error::failed("the replicas do not stream", ""));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }
}

/// All at once, since a copy of the primary takes its time. If one fails, those that started are stopped.
fn start_replicas(count: usize, primary: &Server, place: &Place) -> Result<Vec<Server>, Error> {
    thread::scope(|scope| {
        let starting: Vec<_> = (1..=count)
            .map(|number| scope.spawn(move || start_replica(&format!("replica{number}"), primary, place)))
            .collect();
        let ended: Vec<_> = starting.into_iter().map(|thread| thread.join()).collect();
        ended
            .into_iter()
            .map(|ended| ended.unwrap_or_else(|_| Err(Error::failed("a replica's start panicked", ""))))
            .collect()
    })
}

fn start_replica(name: &str, primary: &Server, place: &Place) -> Result<Server, Error> {
    let mut backup = place.programs.server("pg_basebackup", &place.folder)?;
    backup.args(["--no-sync", "--no-password", "-X", "stream", "-c", "fast", "-R"]);
    backup.arg("-d").arg(primary.conninfo(name)).arg("-D").arg(place.data(name));
    output(backup)?;
    Server::launch(name, place)
}

fn own_folder(path: &Path, place: &Place) -> Result<(), Error> {
    fs::create_dir(path).map_err(Error::io(format!("cannot make {}", path.display())))?;
    hand_over(path, 0o700, place)
}

fn write_owned(path: &Path, text: &str, place: &Place) -> Result<(), Error> {
    fs::write(path, text).map_err(Error::io(format!("cannot write {}", path.display())))?;
    hand_over(path, 0o600, place)
}

fn hand_over(path: &Path, mode: u32, place: &Place) -> Result<(), Error> {
    let owner = match place.programs.account() {
        Some(Account { uid, gid }) => chown(path, Some(uid), Some(gid)),
        None => Ok(()),
    };
    owner
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(Error::io(format!("cannot hand over {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_quoted_and_the_callers_come_last() {
        let builder = Cluster::builder().setting("max_connections", "20").setting("cluster_name", "it's");
        let conf = builder.conf(Path::new("/tmp/s"));
        assert!(conf.rfind("max_connections = '20'").unwrap() > conf.rfind("max_connections = '300'").unwrap());
        assert!(conf.contains("cluster_name = 'it''s'\n"));
        assert!(conf.contains("unix_socket_directories = '/tmp/s'\n"));
        assert!(!conf.contains("ssl = "));
    }

    #[test]
    fn own_rules_precede_the_usual_ones() {
        let text = Cluster::builder().hba("host all bob all reject").hba_conf();
        assert!(text.starts_with("host all bob all reject\nlocal"));
    }
}
