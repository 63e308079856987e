//! What is measured: Postgres itself, and each proxy in front of it.

use std::error::Error;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgweir::demo::cluster::{Cluster, end, free_port};
use rustix::process::Signal;

/// Role, password and database of all load.
pub const NAME: &str = "bench";
/// Server connections of each pooling proxy.
pub const POOL: usize = 20;
/// pgbench's scale.
const SCALE: &str = "10";

pub const DIRECT: &str = "direct";
pub const FLOOR: &str = "floor";
pub const PGBOUNCER: &str = "pgbouncer";
pub const PGWEIR: &str = "pgweir";
pub const PGWEIR_ROUTING: &str = "pgweir-routing";
/// Another build of pgweir.
pub const PGWEIR_OTHER: &str = "pgweir-other";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// One address to send load to.
#[derive(Debug, Clone)]
pub struct Target {
    pub name: String,
    pub address: SocketAddr,
    /// The process whose CPU is the proxy's; `None`: there is no proxy.
    pub pid: Option<u32>,
    pub version: String,
    pub may_prepare: bool,
    /// Ours to stop.
    _running: Option<Arc<Running>>,
}

/// A child process that is stopped when dropped.
#[derive(Debug)]
struct Running(Option<Child>);

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
        Ok(Target { pid: Some(pid), ..Target::new(name, address) })
    }

    fn new(name: &str, address: SocketAddr) -> Target {
        let (version, may_prepare) = (String::new(), true);
        Target { name: name.into(), address, pid: None, version, may_prepare, _running: None }
    }

    fn spawned(name: &str, port: u16, version: &str, cluster: &Cluster, command: &mut Command) -> Result<Target> {
        let log = File::create(cluster.scratch().path().join(format!("{name}.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn().map_err(|error| format!("cannot start {name}: {error}"))?;
        cluster.scratch().watch(name, child.id())?;
        let address = local(port);
        let (pid, version) = (Some(child.id()), version.to_owned());
        let target =
            Target { pid, version, _running: Some(Arc::new(Running(Some(child)))), ..Target::new(name, address) };
        wait_listening(address).map_err(|error| {
            let log = cluster.scratch().path().join(format!("{name}.log"));
            format!("{name} does not listen: {error}\n{}", fs::read_to_string(log).unwrap_or_default())
        })?;
        Ok(target)
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

/// A primary and a replica with pgbench's tables.
pub fn start_postgres() -> Result<Cluster> {
    let cluster = Cluster::builder()
        .replicas(1)
        .setting("max_connections", "700")
        .setting("shared_buffers", "256MB")
        .setting("synchronous_commit", "off")
        .setting("autovacuum", "off")
        .setting("max_wal_size", "4GB")
        .start()?;
    cluster.primary().psql(&format!("CREATE ROLE {NAME} LOGIN PASSWORD '{NAME}'"))?;
    cluster.primary().psql(&format!("CREATE DATABASE {NAME} OWNER {NAME}"))?;
    let filled = pgbench(&cluster, local(cluster.primary().port()))?.args(["-i", "-q", "-s", SCALE, NAME]).output()?;
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
pub fn floor(cluster: &Cluster) -> Result<Target> {
    let port = free_port()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["relay", &local(port).to_string(), &local(cluster.primary().port()).to_string()]);
    // Its keeper knows it by the folder's name.
    command.arg(cluster.scratch().path());
    Target::spawned(FLOOR, port, "tokio, 16 KiB buffers", cluster, &mut command)
}

/// `executable`: another one than was built with this.
pub fn pgweir(cluster: &Cluster, name: &str, workers: usize, executable: Option<&Path>) -> Result<Target> {
    let port = free_port()?;
    let config = cluster.scratch().path().join(format!("{name}.toml"));
    let mut nodes =
        format!("nodes = [{{ host = \"127.0.0.1\", port = {}, role = \"primary\" }}", cluster.primary().port());
    if name == PGWEIR_ROUTING {
        let ports = cluster.replicas().iter().map(|replica| replica.port());
        ports.for_each(|port| nodes += &format!(", {{ host = \"127.0.0.1\", port = {port}, role = \"replica\" }}"));
    }
    let text = format!(
        "[listen]\naddress = \"127.0.0.1:{port}\"\nworkers = {workers}\nshutdown_grace = \"1s\"\nmax_clients = 20000\n\
         [admin]\nhttp = \"\"\n[pool]\nmin = {POOL}\nmax = {POOL}\n\
         [statements]\nslow_threshold = \"10s\"\n\
         [[users]]\nname = \"{NAME}\"\npassword = \"{NAME}\"\n\
         [[databases]]\nname = \"{NAME}\"\ntls = \"disable\"\n{nodes}]\n"
    );
    fs::write(&config, text)?;
    let mut command = Command::new(executable.unwrap_or(Path::new(env!("CARGO_BIN_EXE_pgweir"))));
    command.args(["run", "--config"]).arg(&config);
    Target::spawned(name, port, env!("CARGO_PKG_VERSION"), cluster, &mut command)
}

/// `None`: it is not installed.
pub fn pgbouncer(cluster: &Cluster) -> Result<Option<Target>> {
    let Some(version) = pgbouncer_version() else { return Ok(None) };
    let port = free_port()?;
    let folder = cluster.scratch().path();
    let (config, users) = (folder.join("pgbouncer.ini"), folder.join("users.txt"));
    // Below 1.21 there are no prepared statements in transaction pooling.
    let may_prepare = version >= (1, 21);
    let prepared = if may_prepare { "max_prepared_statements = 500\n" } else { "" };
    write_readable(&users, &format!("\"{NAME}\" \"{NAME}\"\n"))?;
    write_readable(
        &config,
        &format!(
            "[databases]\n{NAME} = host=127.0.0.1 port={} dbname={NAME}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\n\
             pool_mode = transaction\ndefault_pool_size = {POOL}\nmax_client_conn = 20000\n\
             ignore_startup_parameters = extra_float_digits\n{prepared}",
            cluster.primary().port(),
            users.display()
        ),
    )?;
    let mut command = Command::new("pgbouncer");
    command.arg("-q").arg(&config);
    // It refuses to run as root.
    if let Some(account) = cluster.programs().account() {
        command.uid(account.uid).gid(account.gid);
    }
    let version = format!("{}.{}", version.0, version.1);
    let target = Target::spawned(PGBOUNCER, port, &version, cluster, &mut command)?;
    Ok(Some(Target { may_prepare, ..target }))
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
