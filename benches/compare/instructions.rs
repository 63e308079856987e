//! What a transaction costs pgweir in instructions of the whole process, counted by callgrind: they wobble by
//! three percent, where time wobbles by thirty.

use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pgweir::demo::cluster::Cluster;

use crate::load::{Length, Load};
use crate::targets::{self, PGWEIR_ALL};

/// Transactions of each client in a short run and a long one; what both do besides falls out of the difference.
const TRANSACTIONS: [u32; 2] = [100, 600];

/// A table: a row for each load, a column for each build.
pub fn measure(cluster: &Cluster, loads: &[&Load], builds: &[&Path]) -> Result<String, Box<dyn Error>> {
    let names: Vec<_> = builds.iter().map(|build| build.display().to_string()).collect();
    let mut text = format!("### Instructions for each transaction\n\n| | {} |\n|", names.join(" | "));
    text += &(" --- |".repeat(names.len() + 1) + "\n");
    for load in loads {
        text += &format!("| {}, {} client(s) |", load.name, load.clients);
        for build in builds {
            eprintln!("instructions: {} on {}", load.name, build.display());
            text += &format!(" {:.0} |", each(cluster, load, build)?);
        }
        text += "\n";
    }
    Ok(text)
}

fn each(cluster: &Cluster, load: &Load, build: &Path) -> Result<f64, Box<dyn Error>> {
    let program = counted(cluster, build)?;
    let run = |transactions: u32| -> Result<(f64, f64), Box<dyn Error>> {
        let target = targets::pgweir(cluster, PGWEIR_ALL, 1, &program)?;
        let done = load.run(&target, cluster, &[], Length::Transactions(transactions))?.transactions;
        let log = target.log.clone();
        // It prints the sum as it ends.
        drop(target);
        let log = fs::read_to_string(log)?;
        let counted = log.lines().rev().find_map(|line| line.split_once("Collected : "));
        let counted = counted.and_then(|(_, count)| count.trim().parse::<f64>().ok());
        Ok((counted.ok_or_else(|| format!("callgrind has counted nothing:\n{log}"))?, done as f64))
    };
    let [(short, few), (long, many)] = [run(TRANSACTIONS[0])?, run(TRANSACTIONS[1])?];
    Ok((long - short) / (many - few))
}

/// A program that runs this build under callgrind.
fn counted(cluster: &Cluster, build: &Path) -> std::io::Result<PathBuf> {
    let path = cluster.scratch().path().join("counted");
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join(build);
    let valgrind = "valgrind --tool=callgrind --callgrind-out-file=/dev/null";
    fs::write(&path, format!("#!/bin/sh\nexec {valgrind} '{}' \"$@\"\n", build.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}
