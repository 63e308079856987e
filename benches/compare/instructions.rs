//! What a transaction costs pgweir in instructions and heap allocations of the whole process, counted by callgrind:
//! they wobble by three percent, where time wobbles by thirty.

use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pgweir::demo::cluster::Cluster;

use crate::idle;
use crate::load::{BESIDE_IDLE, Load};
use crate::process;
use crate::targets::{self, PGWEIR_ALL};

/// Clients that are there besides, and idle.
const IDLE: [usize; 3] = [10, 300, 1000];

/// Runs are so many times as long as those in which system calls are counted: chores of the process weigh less.
const TIMES: u32 = 2;

/// By which memory is had; what one of them asks of another counts once.
const ALLOCATORS: [&str; 6] = ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "memalign"];

/// Writing down what was counted.
const DUMP: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Counts {
    instructions: u64,
    allocations: u64,
}

/// A table: a row for each load, two columns for each build. `beside_idle`: also as there are more clients connected.
pub fn measure(
    cluster: &Cluster,
    loads: &[&Load],
    beside_idle: bool,
    builds: &[&Path],
) -> Result<String, Box<dyn Error>> {
    let names = builds.iter().map(|build| format!(" {}: instructions | allocations |", build.display()));
    let mut text = format!("### For each transaction\n\n| |{}\n|", names.collect::<String>());
    text += &(" --- |".repeat(2 * builds.len() + 1) + "\n");
    let beside = IDLE.iter().filter(|_| beside_idle).map(|idle| (&BESIDE_IDLE, *idle));
    for (load, idle) in loads.iter().map(|load| (*load, 0)).chain(beside) {
        let name = match idle {
            0 => format!("{}, {} client(s)", load.name, load.clients),
            idle => format!("{}: {idle}, {} client(s)", load.name, load.clients),
        };
        text += &format!("| {name} |");
        for build in builds {
            eprintln!("instructions: {name} on {}", build.display());
            let [instructions, allocations] = each(cluster, load, idle, build)?;
            text += &format!(" {instructions:.0} | {allocations:.1} |");
        }
        text += "\n";
    }
    Ok(text)
}

/// From a short run and a long one of the same process; what both do besides falls out of the difference.
fn each(cluster: &Cluster, load: &Load, idle: usize, build: &Path) -> Result<[f64; 2], Box<dyn Error>> {
    let target = targets::pgweir(cluster, PGWEIR_ALL, 1, &counted(cluster, build)?)?;
    let pid = target.only_process().ok_or("it is one process")?;
    let _idle = if idle > 0 { Some(idle::open(&target, cluster, idle, "disable")?) } else { None };
    let [short, long] = load.counted(TIMES).ok_or("nothing of this load is counted")?;
    let run = |length| -> Result<(Counts, u64), Box<dyn Error>> {
        let transactions = load.run(&target, cluster, &[], length)?.transactions;
        Ok((dump(cluster, pid)?, transactions))
    };
    // Connections that are opened once, and a cache that fills, are part of no count.
    run(short)?;
    let [(few, short), (many, long)] = [run(short)?, run(long)?];
    let more = |few: u64, many: u64| (many as f64 - few as f64) / long.saturating_sub(short) as f64;
    Ok([more(few.instructions, many.instructions), more(few.allocations, many.allocations)])
}

/// A program that runs this build under callgrind.
fn counted(cluster: &Cluster, build: &Path) -> std::io::Result<PathBuf> {
    let path = cluster.scratch().path().join("counted");
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join(build);
    let valgrind =
        format!("valgrind --tool=callgrind --dump-line=no --callgrind-out-file='{}'", out(cluster).display());
    fs::write(&path, format!("#!/bin/sh\nexec {valgrind} --compress-strings=no '{}' \"$@\"\n", build.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

fn out(cluster: &Cluster) -> PathBuf {
    cluster.scratch().path().join("counts")
}

/// What this process has done since it was last asked.
fn dump(cluster: &Cluster, pid: u32) -> Result<Counts, Box<dyn Error>> {
    let said = process::output(Command::new("vgdb").args([&format!("--pid={pid}"), "dump"]), DUMP)?;
    // Of each process the first is `counts.1`; a file that was read is removed.
    let files = fs::read_dir(cluster.scratch().path())?.flatten().map(|entry| entry.path());
    let file = files.filter(|path| path.file_stem() == out(cluster).file_stem() && path.extension().is_some()).max();
    let file = file.ok_or_else(|| format!("callgrind wrote nothing: {}", String::from_utf8_lossy(&said.stderr)))?;
    let counts = parse(&fs::read_to_string(&file)?);
    fs::remove_file(&file)?;
    if counts.instructions == 0 || counts.allocations == 0 {
        return Err(format!("callgrind counted {counts:?}").into());
    }
    Ok(counts)
}

/// Callgrind's format: `fn=` names the function that the lines behind it are of, `cfn=` one that it calls, and behind that
/// `calls=` how often.
fn parse(text: &str) -> Counts {
    let (mut counts, mut function, mut called) = (Counts::default(), "", "");
    for (key, value) in text.lines().filter_map(|line| line.split_once('=').or(line.split_once(": "))) {
        match key {
            "fn" => function = value,
            "cfn" => called = value,
            "calls" if ALLOCATORS.contains(&called) && !ALLOCATORS.contains(&function) => {
                counts.allocations += value.split(' ').next().and_then(|calls| calls.parse().ok()).unwrap_or(0);
            }
            "summary" => counts.instructions = value.trim().parse().unwrap_or(0),
            _ => {}
        }
    }
    counts
}
