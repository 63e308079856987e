//! What is measured: Postgres itself, and each proxy in front of it.

use std::error::Error;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgweir::demo::cluster::{Cluster, Scratch, end, free_port};
use rustix::process::Signal;

use crate::process::{self, Cpu};

/// Role, password and database of all load.
pub const NAME: &str = "bench";
/// Server connections of each pooling proxy.
pub const POOL: usize = 20;
/// Clients that Pgpool-II has processes for.
pub const CHILDREN: usize = 40;
/// pgbench's scale.
const SCALE: &str = "10";

pub const DIRECT: &str = "direct";
pub const FLOOR: &str = "floor";
pub const PGBOUNCER: &str = "pgbouncer";
pub const PGWEIR: &str = "pgweir";
/// With a replica beside the primary, and results kept.
pub const PGWEIR_ALL: &str = "pgweir-all";
pub const PGPOOL: &str = "pgpool";
pub const PGPOOL_CACHE: &str = "pgpool-cache";
/// Another build of pgweir, with all that pgweir-all has.
pub const PGWEIR_OTHER: &str = "pgweir-other";
/// Answers from memory: the limit of what is kept.
pub const ECHO: &str = "echo";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// One address to send load to.
#[derive(Debug, Clone)]
pub struct Target {
    pub name: String,
    pub address: SocketAddr,
    /// The processes whose CPU, and that of those they have forked, is the proxy's; none: there is no proxy.
    pub pids: Vec<u32>,
    pub version: String,
    pub may_prepare: bool,
    /// Ours to stop.
    running: Vec<Arc<Running>>,
}

/// A child process that is stopped when dropped.
#[derive(Debug)]
pub struct Running(pub Option<Child>);

impl Target {
    /// A proxy that somebody else has started: `name=host:port,pid`.
    pub fn parse(text: &str) -> std::result::Result<Target, String> {
        let parts = text.split_once('=').and_then(|(name, rest)| Some((name, rest.rsplit_once(',')?)));
        let Some((name, (address, pid))) = parts else { return Err("expected name=host:port,pid".into()) };
        let address: SocketAddr = address.parse().map_err(|_| "expected an address such as 127.0.0.1:6432")?;
        if !address.ip().is_loopback() {
            return Err("only loopback addresses are measured".into());
        }
        let pid = pid.parse().map_err(|_| "expected a process id")?;
        Ok(Target { pids: vec![pid], ..Target::new(name, address) })
    }

    /// Whether it can serve nothing but repeated reads, or is there for them alone.
    pub fn only_repeats(&self) -> bool {
        [ECHO, PGPOOL_CACHE].contains(&self.name.as_str())
    }

    /// The process that does all its work: Pgpool-II has one for each client.
    pub fn only_process(&self) -> Option<u32> {
        match self.pids[..] {
            [pid] if !self.name.starts_with(PGPOOL) => Some(pid),
            _ => None,
        }
    }

    pub fn cpu(&self) -> Cpu {
        self.pids.iter().map(|pid| process::cpu(*pid)).sum()
    }

    fn new(name: &str, address: SocketAddr) -> Target {
        let (version, may_prepare) = (String::new(), true);
        Target { name: name.into(), address, pids: Vec::new(), version, may_prepare, running: Vec::new() }
    }

    fn spawned(name: &str, port: u16, version: &str, cluster: &Cluster, command: &mut Command) -> Result<Target> {
        let log = cluster.scratch().path().join(format!("{name}.log"));
        let file = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn().map_err(|error| format!("cannot start {name}: {error}"))?;
        cluster.scratch().watch(name, child.id())?;
        let address = local(port);
        let (pids, version, running) = (vec![child.id()], version.to_owned(), vec![Arc::new(Running(Some(child)))]);
        wait_listening(address).map_err(|error| {
            format!("{name} does not listen: {error}\n{}", fs::read_to_string(&log).unwrap_or_default())
        })?;
        Ok(Target { pids, version, running, ..Target::new(name, address) })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !end(&mut self.0, Signal::TERM, Duration::from_secs(10)) {
            end(&mut self.0, Signal::KILL, Duration::from_secs(10));
        }
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn wait_listening(address: SocketAddr) -> std::io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        match TcpStream::connect(address) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The certificate of all that offers TLS, in the folder of the cluster.
fn certificate(cluster: &Cluster) -> (PathBuf, PathBuf) {
    let folder = cluster.scratch().path();
    (folder.join("bench.crt"), folder.join("bench.key"))
}

/// A primary and a replica with pgbench's tables.
pub fn start_postgres() -> Result<Cluster> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let (chain, private) = (made.cert.pem(), made.signing_key.serialize_pem());
    let folder = Scratch::create(None)?;
    let (chain_path, private_path) = (folder.path().join("crt"), folder.path().join("key"));
    fs::write(&chain_path, &chain)?;
    fs::write(&private_path, &private)?;
    let cluster = Cluster::builder()
        .replicas(1)
        .tls(&chain_path, &private_path)
        .setting("max_connections", "1400")
        .setting("shared_buffers", "256MB")
        .setting("synchronous_commit", "off")
        .setting("autovacuum", "off")
        .setting("max_wal_size", "4GB")
        .start()?;
    let (chain_path, private_path) = certificate(&cluster);
    write_readable(&chain_path, &chain)?;
    write_readable(&private_path, &private)?;
    cluster.primary().psql(&format!("CREATE ROLE {NAME} LOGIN REPLICATION PASSWORD '{NAME}'"))?;
    cluster.primary().psql(&format!("CREATE DATABASE {NAME} OWNER {NAME}"))?;
    let mut fill = pgbench(&cluster, local(cluster.primary().port()))?;
    let filled = process::output(fill.args(["-i", "-q", "-s", SCALE, NAME]), Duration::from_secs(120))?;
    if !filled.status.success() {
        return Err(format!("pgbench -i: {}", String::from_utf8_lossy(&filled.stderr)).into());
    }
    cluster.primary().psql_in(NAME, "VACUUM FREEZE ANALYZE")?;
    cluster.wait_replayed(Duration::from_secs(60))?;
    Ok(cluster)
}

/// pgbench as the role of the load, without a database yet.
pub fn pgbench(cluster: &Cluster, address: SocketAddr) -> Result<Command> {
    let mut command = cluster.programs().client("pgbench")?;
    command.env("PGPASSWORD", NAME).env("PGSSLMODE", "disable");
    command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string(), "-U", NAME]);
    Ok(command)
}

pub fn direct(cluster: &Cluster) -> Result<Target> {
    let version = cluster.primary().psql("SHOW server_version")?;
    Ok(Target { version, ..Target::new(DIRECT, local(cluster.primary().port())) })
}

/// This executable once more, so that its CPU time is its own.
pub fn floor(cluster: &Cluster, workers: usize) -> Result<Target> {
    let server = local(cluster.primary().port()).to_string();
    ourselves(FLOOR, "tokio, 16 KiB buffers", cluster, &["relay", &server, &workers.to_string()])
}

/// The same, on one thread.
pub fn echo(cluster: &Cluster) -> Result<Target> {
    ourselves(ECHO, "tokio, answers from memory", cluster, &["echo"])
}

fn ourselves(name: &str, version: &str, cluster: &Cluster, mode: &[&str]) -> Result<Target> {
    let port = free_port()?;
    let mut command = Command::new(std::env::current_exe()?);
    // The keeper of the folder knows it by the folder's name.
    command.args(mode).arg(local(port).to_string()).arg(cluster.scratch().path());
    Target::spawned(name, port, version, cluster, &mut command)
}

/// The pgweir that was built with this, seen from the repository.
pub fn own_build() -> &'static Path {
    let built = Path::new(env!("CARGO_BIN_EXE_pgweir"));
    built.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(built)
}

pub fn pgweir(cluster: &Cluster, name: &str, workers: usize, executable: &Path) -> Result<Target> {
    let port = free_port()?;
    let config = cluster.scratch().path().join(format!("{name}.toml"));
    let mut nodes =
        format!("nodes = [{{ host = \"127.0.0.1\", port = {}, role = \"primary\" }}", cluster.primary().port());
    if name != PGWEIR {
        let ports = cluster.replicas().iter().map(|replica| replica.port());
        ports.for_each(|port| nodes += &format!(", {{ host = \"127.0.0.1\", port = {port}, role = \"replica\" }}"));
    }
    let (chain, private) = certificate(cluster);
    let text = format!(
        "[listen]\naddress = \"127.0.0.1:{port}\"\nworkers = {workers}\nshutdown_grace = \"1s\"\nmax_clients = 20000\n\
         tls = {{ mode = \"allow\", certificate = \"{}\", private_key = \"{}\" }}\n\
         [cache]\nenabled = {}\n\
         [admin]\nhttp = \"\"\n[pool]\nmin = {POOL}\nmax = {POOL}\n\
         [statements]\nslow_threshold = \"10s\"\n\
         [[users]]\nname = \"{NAME}\"\npassword = \"{NAME}\"\n\
         [[databases]]\nname = \"{NAME}\"\ntls = \"disable\"\n{nodes}]\n",
        chain.display(),
        private.display(),
        name != PGWEIR
    );
    fs::write(&config, text)?;
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(executable));
    command.args(["run", "--config"]).arg(&config);
    let version = format!("{} ({})", env!("CARGO_PKG_VERSION"), executable.display());
    Target::spawned(name, port, &version, cluster, &mut command)
}

/// As many processes as workers. `None`: it is not installed.
pub fn pgbouncer(cluster: &Cluster, workers: usize) -> Result<Option<Target>> {
    let Some(version) = pgbouncer_version() else { return Ok(None) };
    let port = free_port()?;
    let folder = cluster.scratch().path();
    let (config, users) = (folder.join("pgbouncer.ini"), folder.join("users.txt"));
    // Below 1.21 there are no prepared statements in transaction pooling.
    let may_prepare = version >= (1, 21);
    let prepared = if may_prepare { "max_prepared_statements = 500\n" } else { "" };
    let (chain, private) = certificate(cluster);
    write_readable(&users, &format!("\"{NAME}\" \"{NAME}\"\n"))?;
    write_readable(
        &config,
        &format!(
            "[databases]\n{NAME} = host=127.0.0.1 port={} dbname={NAME}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\n\
             pool_mode = transaction\ndefault_pool_size = {}\nmax_client_conn = 20000\n\
             client_tls_sslmode = allow\nclient_tls_cert_file = {}\nclient_tls_key_file = {}\n\
             server_tls_sslmode = disable\nso_reuseport = {}\n\
             ignore_startup_parameters = extra_float_digits\n{prepared}",
            cluster.primary().port(),
            users.display(),
            POOL / workers,
            chain.display(),
            private.display(),
            u8::from(workers > 1)
        ),
    )?;
    let version = format!("{}.{}", version.0, version.1);
    let mut target = Target { may_prepare, version, ..Target::new(PGBOUNCER, local(port)) };
    for at in 0..workers {
        let mut command = Command::new("pgbouncer");
        command.arg("-q").arg(&config);
        as_account(&mut command, cluster);
        let one = Target::spawned(&format!("{PGBOUNCER}-{at}"), port, "", cluster, &mut command)?;
        target.pids.extend(one.pids);
        target.running.extend(one.running);
    }
    Ok(Some(target))
}

/// For what refuses to run as root.
fn as_account(command: &mut Command, cluster: &Cluster) {
    if let Some(account) = cluster.programs().account() {
        command.uid(account.uid).gid(account.gid);
    }
}

/// Pgpool-II in front of the primary and, where it `caches`, with results kept in shared memory. `None`: it is not
/// installed.
pub fn pgpool(cluster: &Cluster, name: &str) -> Result<Option<Target>> {
    let Some(version) = pgpool_version() else { return Ok(None) };
    let port = free_port()?;
    let folder = cluster.scratch().path().join(name);
    fs::create_dir(&folder)?;
    if let Some(account) = cluster.programs().account() {
        std::os::unix::fs::chown(&folder, Some(account.uid), Some(account.gid))?;
    }
    let [config, hba, passwords] = ["pgpool.conf", "pool_hba.conf", "pool_passwd"].map(|file| folder.join(file));
    write_readable(&hba, "host all all 127.0.0.1/32 scram-sha-256\n")?;
    write_readable(&passwords, &format!("{NAME}:TEXT{NAME}\n"))?;
    let (place, caches) = (folder.display(), if name == PGPOOL_CACHE { "on" } else { "off" });
    write_readable(
        &config,
        &format!(
            "backend_clustering_mode = 'streaming_replication'\nlisten_addresses = '127.0.0.1'\nport = {port}\n\
             socket_dir = '{place}'\npcp_socket_dir = '{place}'\npcp_listen_addresses = ''\npcp_port = {}\n\
             pid_file_name = '{place}/pgpool.pid'\nlogdir = '{place}'\n\
             backend_hostname0 = '127.0.0.1'\nbackend_port0 = {}\nbackend_weight0 = 1\nbackend_flag0 = 'ALWAYS_PRIMARY'\n\
             enable_pool_hba = on\npool_passwd = '{}'\nnum_init_children = {CHILDREN}\nmax_pool = 1\n\
             sr_check_period = 0\nhealth_check_period = 0\nload_balance_mode = on\n\
             memory_cache_enabled = {caches}\nmemqcache_method = 'shmem'\nmemqcache_oiddir = '{place}/oid'\n",
            free_port()?,
            cluster.primary().port(),
            passwords.display()
        ),
    )?;
    let mut command = Command::new("pgpool");
    command.arg("-n").arg("-f").arg(&config).arg("-a").arg(&hba);
    as_account(&mut command, cluster);
    Target::spawned(name, port, &version, cluster, &mut command).map(Some)
}

/// `pgpool-II version 4.3.5 (tamahomeboshi)`
fn pgpool_version() -> Option<String> {
    let output = Command::new("pgpool").arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let version = text.lines().next()?.strip_prefix("pgpool-II version ")?.split_whitespace().next()?.to_owned();
    Some(version)
}

/// `PgBouncer 1.18.0` as (1, 18).
fn pgbouncer_version() -> Option<(u32, u32)> {
    let output = Command::new("pgbouncer").arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut numbers = text.lines().next()?.strip_prefix("PgBouncer ")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// For the account that a server runs as.
fn write_readable(path: &Path, text: &str) -> std::io::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}
