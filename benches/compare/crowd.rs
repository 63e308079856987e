//! Many clients of which few ask at a time, as `pgweir load` drives them: each reads, and pauses.
//!
//! Not pgbench: its threads look at each of their connections again for every answer, and with a thousand of them on two
//! processors that is most of what it measures.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;

use crate::load::Run;
use crate::targets::{DIRECT, NAME, Target};

const READ: &str = "\\set aid random(1, 1000000)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n";

/// Between two reads of a client: a thousand clients read 5,000 times a second.
const PAUSE: &str = "199ms";

/// Logins are spread over the first of these times, and done by the end of the second.
const UNMEASURED: [&str; 2] = ["4s", "1s"];
/// At Postgres itself, where each is a process begun.
const UNMEASURED_DIRECT: [&str; 2] = ["9s", "2s"];

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

/// Latencies alone: CPU time would be that of the logins.
pub fn run(target: &Target, clients: usize, folder: &Path, time: Duration) -> Result<Run, Box<dyn Error>> {
    let address = target.address;
    let unmeasured = if target.name == DIRECT { UNMEASURED_DIRECT } else { UNMEASURED };
    let script = folder.join("read.sql");
    fs::write(&script, READ)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgweir"));
    command.env("PGPASSWORD", NAME).args(["load", "--json", "--think", PAUSE, "--script"]).arg(script);
    command.args(["--to", &format!("postgres://{NAME}@{address}/{NAME}?sslmode=disable")]);
    for stage in unmeasured.map(str::to_owned).into_iter().chain([format!("{}s", time.as_secs().max(1))]) {
        command.args(["--stage", &format!("{stage}:{clients}")]);
    }
    let output = command.output()?;
    let read: Result<Printed, _> = serde_json::from_slice(&output.stdout);
    let printed = read.map_err(|error| format!("pgweir load: {error}: {}", String::from_utf8_lossy(&output.stderr)))?;
    let [_, _, Stage { turns, failed: 0, throughput, latency_ms }] = &printed.stages[..] else {
        return Err(format!("pgweir load on {address}: {printed:?}").into());
    };
    let [mean, p50, p95, p99] = [latency_ms.mean, latency_ms.p50, latency_ms.p95, latency_ms.p99].map(|ms| ms * 1000.0);
    Ok(Run {
        transactions: *turns,
        tps: *throughput,
        mean,
        p50,
        p95,
        p99,
        proxy_cpu: None,
        proxy_user_cpu: None,
        server_cpu: None,
    })
}
