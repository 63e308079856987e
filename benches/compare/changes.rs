//! What the change stream costs the primary: the same writes, past pgweir, with and without one that follows them.

use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

use pgweir::demo::cluster::Cluster;

use crate::process;
use crate::targets::{self, NAME, Target};

/// Writes a second, each a transaction.
const RATE: u32 = 5000;

const SCRIPT: &str =
    "\\set id random(1, 1000000)\nUPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :id;\n";

/// For each write.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    writes: f64,
    /// Microseconds of CPU of all of Postgres's processes.
    postgres: f64,
    pgweir: f64,
    wal: f64,
    /// Bytes that the slot has decoded.
    decoded: f64,
}

/// A table of `rounds` runs of `seconds`, each without the stream and with it.
pub fn measure(cluster: &Cluster, rounds: usize, seconds: u64) -> Result<String, Box<dyn Error>> {
    let script = cluster.scratch().path().join("changes.sql");
    fs::write(&script, SCRIPT)?;
    let script = script.to_str().ok_or("the scratch folder's name is not UTF-8")?;
    let mut text = format!(
        "### What following {RATE} writes a second costs the primary\n\n\
         | | writes/s | Postgres CPU µs/write | × without | WAL bytes/write | decoded bytes/write | pgweir CPU µs/write |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n"
    );
    for round in 0..rounds {
        eprintln!("changes, round {}", round + 1);
        let without = run(cluster, None, script, seconds)?;
        let pgweir = targets::pgweir(cluster, targets::PGWEIR_ALL, 1, targets::own_build())?;
        wait_for_slot(cluster)?;
        let with = run(cluster, Some(&pgweir), script, seconds)?;
        for (name, cost) in [("without", without), ("with", with)] {
            let ratio = cost.postgres / without.postgres;
            text += &format!(
                "| {name} | {:.0} | {:.1} | {ratio:.2} | {:.0} | {:.0} | {:.1} |\n",
                cost.writes, cost.postgres, cost.wal, cost.decoded, cost.pgweir
            );
        }
    }
    Ok(text)
}

fn run(cluster: &Cluster, pgweir: Option<&Target>, script: &str, seconds: u64) -> Result<Cost, Box<dyn Error>> {
    let primary = targets::direct(cluster)?;
    let pid = fs::read_to_string(cluster.primary().data_path().join("postmaster.pid"))?;
    let pid: u32 = pid.lines().next().unwrap_or_default().parse()?;
    let figures = || -> Result<[f64; 4], Box<dyn Error>> {
        let [wal, decoded] = [
            "SELECT pg_current_wal_lsn() - '0/0'",
            "SELECT coalesce(sum(total_bytes), 0) FROM pg_stat_replication_slots",
        ]
        .map(|sql| cluster.primary().psql(sql));
        let own = pgweir.map_or(Duration::ZERO, |pgweir| pgweir.cpu().all());
        let cpu = [process::cpu(pid).all(), own].map(|cpu| cpu.as_secs_f64() * 1e6);
        Ok([cpu[0], cpu[1], wal?.trim().parse()?, decoded?.trim().parse()?])
    };
    let before = figures()?;
    let began = Instant::now();
    let mut pgbench = targets::pgbench(cluster, primary.address)?;
    pgbench.args(["-n", "-M", "prepared", "-c", "8", "-f", script]);
    pgbench.args(["-R", &RATE.to_string(), "-T", &seconds.to_string(), NAME]);
    let output = process::output(&mut pgbench, Duration::from_secs(seconds + 30))?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let writes = printed.lines().find_map(|line| line.strip_prefix("number of transactions actually processed: "));
    let writes = writes.and_then(|count| count.split_whitespace().next()?.parse::<f64>().ok());
    let writes = writes.ok_or_else(|| format!("pgbench: {}", String::from_utf8_lossy(&output.stderr)))?;
    let elapsed = began.elapsed().as_secs_f64();
    let after = figures()?;
    let each = |at: usize| (after[at] - before[at]) / writes;
    Ok(Cost { writes: writes / elapsed, postgres: each(0), pgweir: each(1), wal: each(2), decoded: each(3) })
}

fn wait_for_slot(cluster: &Cluster) -> Result<(), Box<dyn Error>> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let sql = "SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical' AND active";
    while cluster.primary().psql(sql)?.trim() == "0" {
        if Instant::now() > deadline {
            return Err("pgweir follows no changes".into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
