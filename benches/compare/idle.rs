//! What idle clients cost: memory for each, and the time of those that are busy beside them.

use std::error::Error;
use std::fs::File;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use pgweir::demo::cluster::Cluster;
use serde::Serialize;

use crate::crowd::{self, Crowd};
use crate::load::Run;
use crate::process;
use crate::targets::{Running, Target};

/// Opened before the first look, so that what is allocated once is not counted.
const WARM_UP: usize = 100;
/// How long they have been idle at least when they are looked at.
const IDLE: Duration = Duration::from_secs(5);
/// Logins that are asked for in a second.
const LOGINS: usize = 1000;
/// When all must have come, or gone.
const LIMIT: Duration = Duration::from_secs(120);
/// Each has read once and reads never again.
const FOREVER: Duration = Duration::from_secs(3600);

/// The clients that are busy.
const BUSY: Crowd = Crowd { clients: 1000, pauses: false };
/// Runs with the idle clients, and as many without.
const RUNS: usize = 3;

/// What one target has shown.
#[derive(Debug, Serialize)]
pub struct Idle {
    pub target: String,
    pub clients: usize,
    /// Resident bytes for each.
    pub bytes: f64,
    pub tls: Option<Tls>,
    /// A thousand busy clients beside them.
    pub beside: Vec<Run>,
    /// And without them.
    pub alone: Vec<Run>,
}

#[derive(Debug, Serialize)]
pub struct Tls {
    pub clients: usize,
    pub bytes: f64,
}

/// `make`: starts the target, which is ended before it is started again.
pub fn measure(
    make: impl Fn() -> Result<Option<Target>, Box<dyn Error>>,
    cluster: &Cluster,
    postmasters: &[u32],
    clients: usize,
    time: Duration,
) -> Result<Option<Idle>, Box<dyn Error>> {
    let Some(target) = make()? else { return Ok(None) };
    let (sleepers, bytes) = bytes_for_each(&target, cluster, clients, "disable")?;
    let busy = || (0..RUNS).map(|_| BUSY.run(&target, cluster, postmasters, time)).collect::<Result<Vec<_>, _>>();
    let beside = busy()?;
    let pid = pid(&target)?;
    let crowded = process::open_files(pid);
    drop(sleepers);
    wait("the idle clients do not go", || process::open_files(pid) + clients <= crowded)?;
    let alone = busy()?;
    let name = target.name.clone();
    drop(target);
    // Under TLS a client costs more: fewer do.
    let tls = match make()? {
        Some(fresh) => {
            let clients = clients.div_ceil(5);
            let (_sleepers, bytes) = bytes_for_each(&fresh, cluster, clients, "require")?;
            Some(Tls { clients, bytes })
        }
        None => None,
    };
    Ok(Some(Idle { target: name, clients, bytes, tls, beside, alone }))
}

/// The clients, still there, and the resident bytes that each costs.
fn bytes_for_each(
    target: &Target,
    cluster: &Cluster,
    clients: usize,
    sslmode: &str,
) -> Result<([Running; 2], f64), Box<dyn Error>> {
    let pid = pid(target)?;
    let open = |clients| -> Result<(Running, u64), Box<dyn Error>> {
        Ok((open(target, cluster, clients, sslmode)?, process::resident(pid)))
    };
    let (warm, before) = open(WARM_UP)?;
    let (idle, after) = open(clients)?;
    Ok(([warm, idle], after.saturating_sub(before) as f64 / clients as f64))
}

/// So many clients more, which have come and are idle.
pub fn open(target: &Target, cluster: &Cluster, clients: usize, sslmode: &str) -> Result<Running, Box<dyn Error>> {
    let pid = pid(target)?;
    let wanted = process::open_files(pid) + clients;
    let running = sleepers(target, cluster, clients, sslmode)?;
    wait("the idle clients do not come", || process::open_files(pid) >= wanted)?;
    thread::sleep(IDLE);
    Ok(running)
}

fn sleepers(target: &Target, cluster: &Cluster, clients: usize, sslmode: &str) -> Result<Running, Box<dyn Error>> {
    let script = crowd::write_script(cluster, "idle.sql", "SELECT 1;\n")?;
    let mut command = crowd::load(target.address, sslmode, &script, FOREVER);
    let coming = Duration::from_millis((clients * 1000 / LOGINS) as u64);
    crowd::stages(&mut command, [(coming, clients), (FOREVER, clients)]);
    let log = File::create(cluster.scratch().path().join("idle.log"))?;
    let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
    let pid = child.id();
    let running = Running(Some(child));
    cluster.scratch().watch(&format!("idle-{clients}"), pid)?;
    Ok(running)
}

fn pid(target: &Target) -> Result<u32, Box<dyn Error>> {
    Ok(target.only_process().ok_or_else(|| format!("{} is more than one process", target.name))?)
}

fn wait(what: &str, reached: impl Fn() -> bool) -> Result<(), String> {
    let deadline = Instant::now() + LIMIT;
    while !reached() {
        if Instant::now() > deadline {
            return Err(what.into());
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
