//! The kinds of load, and one run of pgbench with one of them.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::Duration;

use pgweir::demo::cluster::Cluster;
use serde::Serialize;

use crate::crowd::Crowd;
use crate::process::{self, Cpu};
use crate::targets::{CHILDREN, DIRECT, FLOOR, NAME, PGPOOL, PGWEIR, Target, pgbench};

/// 2,000 rows of 1,000 bytes.
const LARGE: &str = "SELECT repeat('x', 1000) FROM generate_series(1, 2000);\n";

/// What a run may take beyond its own time, logins included.
const GRACE: Duration = Duration::from_secs(30);
/// What a run of so many transactions may take, with system calls traced.
const TRACED: Duration = Duration::from_secs(120);

/// Few rows read often, and many seldom.
const REPEATED: &str =
    "\\set aid random_zipfian(1, 10000, 1.2)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n";

/// One kind of load.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub name: &'static str,
    pub clients: usize,
    arguments: &'static [&'static str],
    pub prepares: bool,
    /// Transactions of each client in the long run of two in which something is counted; 0: nothing is.
    counted: u32,
    /// The same rows again and again, which a cache keeps.
    pub repeats: bool,
    tls: bool,
    /// The clients pause between transactions, so that all that is offered is served.
    pub pauses: bool,
    script: Option<&'static str>,
}

const fn load(name: &'static str, clients: usize, arguments: &'static [&'static str]) -> Load {
    let (prepares, counted, repeats, tls, pauses, script) = (false, 400, false, false, false, None);
    Load { name, clients, arguments, prepares, counted, repeats, tls, pauses, script }
}

pub const LOADS: [Load; 13] = [
    load("simple", 32, &["-S", "-M", "simple"]),
    Load { prepares: true, ..load("prepared", 32, &["-S", "-M", "prepared"]) },
    load("extended", 32, &["-S", "-M", "extended"]),
    Load { counted: 40, script: Some(LARGE), ..load("2 MB results", 4, &["-M", "simple"]) },
    Load {
        counted: 1000,
        repeats: true,
        script: Some(REPEATED),
        ..load("repeated reads, simple", 32, &["-M", "simple"])
    },
    Load {
        prepares: true,
        counted: 1000,
        repeats: true,
        script: Some(REPEATED),
        ..load("repeated reads, prepared", 32, &["-M", "prepared"])
    },
    Load { tls: true, ..load("simple, TLS", 32, &["-S", "-M", "simple"]) },
    Load { counted: 4000, ..load("simple, 1 client", 1, &["-S", "-M", "simple"]) },
    Load { prepares: true, counted: 4000, ..load("prepared, 1 client", 1, &["-S", "-M", "prepared"]) },
    Load { counted: 24, ..load("simple, 500 clients", 500, &["-S", "-M", "simple"]) },
    // Nothing drives it by a number of transactions.
    Load { counted: 0, pauses: true, ..load("5,000 reads a second", 1000, &[]) },
    Load { counted: 100, ..load("TPC-B", 32, &["-M", "simple"]) },
    Load { counted: 40, ..load("reconnect", 8, &["-S", "-M", "simple", "-C"]) },
];

/// Of a few clients, while others are connected and idle.
pub const BESIDE_IDLE: Load = Load { counted: 1600, ..load("simple, beside idle", 8, &["-S", "-M", "simple"]) };

/// What one run has shown. Times in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Run {
    pub transactions: u64,
    pub tps: f64,
    pub mean: f64,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    /// The proxy's CPU time for each transaction; its logins are in it, spread over all.
    pub proxy_cpu: Option<f64>,
    /// Its part in user space: wrong by much in a single run, as the kernel divides a process's whole life by samples.
    pub proxy_user_cpu: Option<f64>,
    /// Postgres's.
    pub server_cpu: Option<f64>,
}

/// How long a run is.
#[derive(Debug, Clone, Copy)]
pub enum Length {
    Time(Duration),
    /// Of each client.
    Transactions(u32),
}

impl Load {
    pub fn suits(&self, target: &Target) -> bool {
        // Where nobody pools, each of many clients has a server process: another thing to measure, unless they pause.
        let many = self.clients > 100 && (target.name == FLOOR || target.name == DIRECT && !self.pauses);
        // It takes TLS towards its servers too where it offers it, and has a process for each client.
        let pgpool = target.name.starts_with(PGPOOL) && (self.tls || self.clients == 1 || self.clients > CHILDREN);
        // pgweir without a cache has shown in the first loads what it costs.
        let repeats = if self.repeats { target.name != PGWEIR } else { !target.only_repeats() };
        !many && !pgpool && repeats && (target.may_prepare || !self.prepares)
    }

    /// A short run and a long one, of which the difference is what transactions take. `times`: of as long runs.
    pub fn counted(&self, times: u32) -> Option<[Length; 2]> {
        (self.counted > 0).then_some([self.counted / 4, self.counted].map(|count| Length::Transactions(times * count)))
    }

    /// Sends it to the target once.
    pub fn run(
        &self,
        target: &Target,
        cluster: &Cluster,
        postmasters: &[u32],
        length: Length,
    ) -> Result<Run, Box<dyn Error>> {
        let folder = cluster.scratch().path();
        if let (true, Length::Time(time)) = (self.pauses, length) {
            let crowd = Crowd { clients: self.clients, pauses: true };
            return crowd.run(target, cluster, postmasters, time);
        }
        let prefix = "latency";
        let mut command = pgbench(cluster, target.address)?;
        let threads = if self.clients > 100 { "2" } else { "1" };
        command.args(["-n", "-c", &self.clients.to_string(), "-j", threads]).args(self.arguments);
        let limit = match length {
            Length::Time(time) => {
                // pgbench counts its logins as time.
                let seconds = time.as_secs().max(1) + self.clients as u64 / 100;
                command.args(["-T", &seconds.to_string()]);
                Duration::from_secs(seconds) + GRACE
            }
            Length::Transactions(count) => {
                command.args(["-t", &count.to_string()]);
                TRACED
            }
        };
        if let Some(text) = self.script {
            let script = folder.join("script.sql");
            fs::write(&script, text)?;
            command.arg("-f").arg(script);
        }
        if self.tls {
            command.env("PGSSLMODE", "require");
        }
        command.arg("-l").arg("--log-prefix").arg(folder.join(prefix)).arg(NAME);
        let before = cpu(target, postmasters);
        let output = process::output(&mut command, limit).map_err(|error| {
            // What it has logged is no part of the next run.
            let _ = take_latencies(folder, prefix);
            format!("{} on {}: {error}", self.name, target.name)
        })?;
        let after = cpu(target, postmasters);
        let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(format!("{} on {}: {printed}", self.name, target.name).into());
        }
        let latencies = take_latencies(folder, prefix)?;
        let transactions = latencies.len() as u64;
        let proxied = !target.pids.is_empty();
        let per_transaction = |time: Duration| time.as_secs_f64() * 1e6 / transactions as f64;
        Ok(Run {
            transactions,
            tps: tps(&printed).ok_or("pgbench printed no tps")?,
            mean: latencies.iter().sum::<f64>() / latencies.len() as f64,
            p50: quantile(&latencies, 0.50),
            p95: quantile(&latencies, 0.95),
            p99: quantile(&latencies, 0.99),
            proxy_cpu: proxied.then(|| per_transaction((after.0 - before.0).all())),
            proxy_user_cpu: proxied.then(|| per_transaction((after.0 - before.0).user)),
            server_cpu: Some(per_transaction((after.1 - before.1).all())),
        })
    }
}

/// The proxy's, and Postgres's.
pub fn cpu(target: &Target, postmasters: &[u32]) -> (Cpu, Cpu) {
    (target.cpu(), postmasters.iter().map(|pid| process::cpu(*pid)).sum())
}

/// `tps = 1234.5 (without initial connection time)`
fn tps(printed: &str) -> Option<f64> {
    let line = printed.lines().find_map(|line| line.strip_prefix("tps = "))?;
    line.split_whitespace().next()?.parse().ok()
}

/// All latencies of pgbench's logs, sorted; the logs are removed. A line is `client transaction latency …`.
fn take_latencies(folder: &Path, prefix: &str) -> Result<Vec<f64>, Box<dyn Error>> {
    let mut latencies = Vec::new();
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&format!("{prefix}.")) {
            let text = fs::read_to_string(entry.path())?;
            latencies.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok()));
            fs::remove_file(entry.path())?;
        }
    }
    if latencies.is_empty() {
        return Err("pgbench completed no transaction".into());
    }
    latencies.sort_by(f64::total_cmp);
    Ok(latencies)
}

fn quantile(sorted: &[f64], quantile: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * quantile).round() as usize]
}
