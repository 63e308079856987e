//! A thousand clients at once, as `pgweir load` drives them: in a closed loop, with a pause between reads or without.
//!
//! Not pgbench: its threads look at each of their connections again for every answer, and with a thousand of them on two
//! processors that is most of what it measures.

use std::error::Error;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use pgweir::demo::cluster::Cluster;
use serde::Deserialize;

use crate::load::{Run, cpu};
use crate::process::Bounded;
use crate::targets::{DIRECT, NAME, Target};

const READ: &str = "\\set aid random(1, 1000000)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n";

/// Between two reads of a client that pauses; with a millisecond for the read a thousand clients read 5,000 times a second.
const PAUSE: Duration = Duration::from_millis(199);
const READING: Duration = Duration::from_millis(1);

/// A run in which less of what was offered was served is none.
const SERVED: f64 = 0.98;

/// Logins are spread over the first of these times, and done by the end of the second.
const LOGINS: [Duration; 2] = [Duration::from_secs(4), Duration::from_secs(1)];
/// At Postgres itself, where each is a process begun.
const LOGINS_DIRECT: [Duration; 2] = [Duration::from_secs(9), Duration::from_secs(3)];
/// All go on for so long after what is measured, which so is not lengthened by those that leave.
const AFTER: Duration = Duration::from_secs(1);
/// What leaving may take at most.
const GRACE: Duration = Duration::from_secs(30);

/// What `pgweir load --json` prints of each stage.
#[derive(Debug, Deserialize)]
struct Printed {
    stages: Vec<Stage>,
}

#[derive(Debug, Deserialize)]
struct Stage {
    turns: u64,
    failed: u64,
    throughput: f64,
    latency_ms: Latency,
}

#[derive(Debug, Deserialize)]
struct Latency {
    mean: f64,
    p50: f64,
    p95: f64,
    p99: f64,
}

/// Clients that read.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    pub clients: usize,
    /// They pause after each read; else they saturate what they read from.
    pub pauses: bool,
}

impl Crowd {
    /// Measured for this time, once all are logged in.
    pub fn run(
        self,
        target: &Target,
        cluster: &Cluster,
        postmasters: &[u32],
        time: Duration,
    ) -> Result<Run, Box<dyn Error>> {
        let logins = if target.name == DIRECT { LOGINS_DIRECT } else { LOGINS };
        let pause = if self.pauses { PAUSE } else { Duration::ZERO };
        let script = write_script(cluster, "crowd.sql", READ)?;
        let mut command = load(target.address, "disable", &script, pause);
        command.arg("--json");
        stages(&mut command, logins.into_iter().chain([time, AFTER]).map(|length| (length, self.clients)));
        let load = Bounded::start(&mut command)?;
        thread::sleep(logins.iter().sum());
        let (before, from) = (cpu(target, postmasters), Instant::now());
        thread::sleep(time.saturating_sub(Duration::from_millis(500)));
        let (after, seconds) = (cpu(target, postmasters), from.elapsed().as_secs_f64());
        let output = load.finish(time + AFTER + GRACE)?;
        let read: Result<Printed, _> = serde_json::from_slice(&output.stdout);
        let printed =
            read.map_err(|error| format!("pgweir load: {error}: {}", String::from_utf8_lossy(&output.stderr)))?;
        let [_, _, Stage { turns, failed: 0, throughput, latency_ms }, _] = &printed.stages[..] else {
            return Err(format!("pgweir load on {}: {printed:?}", target.name).into());
        };
        self.check(*throughput).map_err(|error| format!("pgweir load on {}: {error}", target.name))?;
        let [mean, p50, p95, p99] =
            [latency_ms.mean, latency_ms.p50, latency_ms.p95, latency_ms.p99].map(|ms| ms * 1000.0);
        let per_transaction = |time: Duration| time.as_secs_f64() * 1e6 / seconds / throughput;
        let proxied = !target.pids.is_empty();
        Ok(Run {
            transactions: *turns,
            tps: *throughput,
            mean,
            p50,
            p95,
            p99,
            proxy_cpu: proxied.then(|| per_transaction((after.0 - before.0).all())),
            proxy_user_cpu: proxied.then(|| per_transaction((after.0 - before.0).user)),
            server_cpu: Some(per_transaction((after.1 - before.1).all())),
        })
    }

    fn check(self, throughput: f64) -> Result<(), String> {
        let offered = self.clients as f64 / (PAUSE + READING).as_secs_f64();
        if !self.pauses || throughput >= SERVED * offered {
            return Ok(());
        }
        Err(format!("not valid: {throughput:.0} of the {offered:.0} reads a second that were offered were served"))
    }
}

/// `pgweir load`, without stages yet.
pub fn load(address: SocketAddr, sslmode: &str, script: &Path, pause: Duration) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgweir"));
    command.env("PGPASSWORD", NAME).arg("load").arg("--script").arg(script);
    command.args(["--think", &format!("{}ms", pause.as_millis())]);
    command.args(["--to", &format!("postgres://{NAME}@{address}/{NAME}?sslmode={sslmode}")]);
    command
}

/// So many clients at the end of each.
pub fn stages(command: &mut Command, stages: impl IntoIterator<Item = (Duration, usize)>) {
    for (length, clients) in stages {
        command.args(["--stage", &format!("{}ms:{clients}", length.as_millis())]);
    }
}

/// In the folder of the cluster, by which its keeper knows who reads it.
pub fn write_script(cluster: &Cluster, name: &str, text: &str) -> std::io::Result<std::path::PathBuf> {
    let path = cluster.scratch().path().join(name);
    fs::write(&path, text)?;
    Ok(path)
}
