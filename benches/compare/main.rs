//! `make bench`: what a query costs through pgweir, PgBouncer and a bare relay, on this machine in the same minutes.
//!
//! Starts a PostgreSQL of its own, each proxy in front of it, and drives them in turn with pgbench. All of it on
//! loopback, bounded in time, and stopped in the end. CPU time for each transaction is the figure that holds on a
//! noisy machine; ratios are taken within a round.

mod budgets;
mod changes;
mod crowd;
mod echo;
mod idle;
mod instructions;
mod load;
mod plot;
mod process;
mod relay;
mod report;
mod targets;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use pgweir::demo::cluster::Cluster;
use pgweir::net::descriptors;

use load::{LOADS, Length, Load};
use process::Strace;
use report::{Calls, Report, Round};
use targets::Target;

/// Of each run, unless said.
const SECONDS: u64 = 2;

#[derive(Debug, Parser)]
#[command(name = "compare", about = "Measures what a query costs through pgweir, its peers and a bare relay")]
struct Options {
    /// One short round without idle clients and system calls: about three minutes.
    #[arg(long)]
    quick: bool,
    /// Interleaved rounds.
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of each run.
    #[arg(long)]
    seconds: Option<u64>,
    /// No round begins that would not end within so many seconds of the start.
    #[arg(long, default_value_t = 1200)]
    limit: u64,
    /// Worker threads of pgweir and of the floor, and processes of PgBouncer.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Only loads whose name contains this, their clients with it: "simple, 32"; may be repeated.
    #[arg(long)]
    only: Vec<String>,
    /// Another proxy, already running: name=host:port,pid. It must know user, password and database `bench`.
    #[arg(long, value_parser = Target::parse)]
    proxy: Vec<Target>,
    /// The build of pgweir that is measured, in the place of the one made with this: `target/pgo/pgweir`.
    #[arg(long)]
    build: Option<PathBuf>,
    /// Another build of pgweir, to be measured beside this one as pgweir-other.
    #[arg(long)]
    other: Option<PathBuf>,
    /// Leave out direct, floor, echo, pgbouncer, pgpool, pgpool-cache, pgweir or pgweir-all; may be repeated.
    #[arg(long)]
    without: Vec<String>,
    /// Idle clients; 0: not measured.
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// Measures instead what the change stream costs the primary.
    #[arg(long)]
    changes: bool,
    /// Counts instead the instructions and allocations of each transaction, of this build and of the other one, also as there
    /// are more clients connected ("beside idle"): some minutes.
    #[arg(long)]
    instructions: bool,
    /// Runs instead each load once on this build of pgweir, which was made to write a profile (`make pgo`).
    #[arg(long)]
    train: Option<PathBuf>,
    /// Where the figures go, as JSON; a plot goes beside it.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "relay", server, threads, listen, ..] => {
            return Ok(relay::run(listen.parse()?, server.parse()?, threads.parse()?)?);
        }
        [_, "echo", listen, ..] => return Ok(echo::run(listen.parse()?)?),
        _ => {}
    }
    // `cargo test --all-targets` runs this as well, without the flag.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let options = Options::parse();
    descriptors::raise_limit();
    if options.changes {
        let cluster = targets::start_postgres()?;
        println!("{}", changes::measure(&cluster, options.rounds.unwrap_or(3), options.seconds.unwrap_or(10))?);
        return Ok(());
    }
    if options.instructions {
        let loads: Vec<_> = options.loads().into_iter().filter(|load| load.counted(1).is_some()).collect();
        let beside_idle = options.chooses(&load::BESIDE_IDLE);
        let builds: Vec<_> = [Some(options.build()), options.other.as_deref()].into_iter().flatten().collect();
        println!("{}", instructions::measure(&targets::start_postgres()?, &loads, beside_idle, &builds)?);
        return Ok(());
    }
    if let Some(executable) = &options.train {
        return train(executable, options.seconds.unwrap_or(3));
    }
    let report = measure(&options)?;
    println!("{}", report.markdown());
    let out = options.out.unwrap_or_else(default_out);
    if let Some(folder) = out.parent() {
        fs::create_dir_all(folder)?;
    }
    let plot = out.with_extension("svg");
    fs::write(&out, serde_json::to_string_pretty(&report)?)?;
    fs::write(&plot, plot::svg(&report))?;
    eprintln!("figures: {}, plot: {}", out.display(), plot.display());
    Ok(())
}

fn default_out() -> PathBuf {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("benches/results/{seconds}.json"))
}

fn measure(options: &Options) -> Result<Report, Box<dyn Error>> {
    let began = Instant::now();
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let mut report =
        Report { machine: machine(), commit: commit(), arguments, workers: options.workers, ..Report::default() };
    let cluster = targets::start_postgres()?;
    if options.idle > 0 && !options.quick {
        measure_idle(options, &cluster, &mut report);
    }
    let targets = start(options, &cluster, &mut report)?;
    let all: Vec<&Target> = targets.iter().chain(&options.proxy).collect();
    for target in &all {
        report.versions.insert(target.name.clone(), target.version.clone());
        report.targets.push(target.name.clone());
    }
    let loads = options.loads();
    if !options.quick {
        count_calls(&loads, &all, &cluster, &mut report);
    }
    run_rounds(options, began, &loads, &all, &cluster, &mut report)?;
    Ok(report)
}

/// What a build does at all that is measured of it.
fn train(executable: &Path, seconds: u64) -> Result<(), Box<dyn Error>> {
    let cluster = targets::start_postgres()?;
    for name in [targets::PGWEIR, targets::PGWEIR_ALL] {
        let target = targets::pgweir(&cluster, name, 1, executable)?;
        for load in LOADS.iter().filter(|load| load.suits(&target)) {
            eprintln!("{} on {name}", load.name);
            // A build that counts is slow: whether all that was offered was served is not the question.
            if let Err(error) = load.run(&target, &cluster, &[], Length::Time(Duration::from_secs(seconds))) {
                eprintln!("{error}");
            }
        }
    }
    Ok(())
}

const NAMES: [&str; 9] = [
    targets::DIRECT,
    targets::FLOOR,
    targets::ECHO,
    targets::PGBOUNCER,
    targets::PGPOOL,
    targets::PGPOOL_CACHE,
    targets::PGWEIR,
    targets::PGWEIR_ALL,
    targets::PGWEIR_OTHER,
];

impl Options {
    fn loads(&self) -> Vec<&'static Load> {
        LOADS.iter().filter(|load| self.chooses(load)).collect()
    }

    fn chooses(&self, load: &Load) -> bool {
        let title = format!("{}, {} clients", load.name, load.clients);
        self.only.is_empty() || self.only.iter().any(|only| title.contains(only.as_str()))
    }

    fn build(&self) -> &Path {
        self.build.as_deref().unwrap_or(targets::own_build())
    }

    fn wants(&self, name: &str) -> bool {
        let left_out = self.without.iter().any(|without| without == name);
        !left_out && (name != targets::PGWEIR_OTHER || self.other.is_some())
    }
}

/// Starts a target. `None`: it is not installed.
fn make(name: &str, options: &Options, cluster: &Cluster) -> Result<Option<Target>, Box<dyn Error>> {
    match name {
        targets::DIRECT => targets::direct(cluster).map(Some),
        targets::FLOOR => targets::floor(cluster, options.workers).map(Some),
        targets::ECHO => targets::echo(cluster).map(Some),
        targets::PGBOUNCER => targets::pgbouncer(cluster, options.workers),
        targets::PGPOOL | targets::PGPOOL_CACHE => targets::pgpool(cluster, name),
        _ => {
            let other = options.other.as_deref().filter(|_| name == targets::PGWEIR_OTHER);
            targets::pgweir(cluster, name, options.workers, other.unwrap_or(options.build())).map(Some)
        }
    }
}

fn start(options: &Options, cluster: &Cluster, report: &mut Report) -> Result<Vec<Target>, Box<dyn Error>> {
    let mut targets = Vec::new();
    for name in NAMES.into_iter().filter(|name| options.wants(name)) {
        match make(name, options, cluster) {
            Ok(Some(target)) => targets.push(target),
            Ok(None) => report.notes.push(format!("{name} is not installed (`make bench-setup` on Debian and Ubuntu)")),
            // A peer that does not start here keeps nobody else from being measured.
            Err(error) if name.starts_with(targets::PGPOOL) || name == targets::PGBOUNCER => {
                report.notes.push(error.to_string());
            }
            Err(error) => return Err(error),
        }
    }
    for target in targets.iter().filter(|target| !target.may_prepare) {
        let (name, version) = (&target.name, &target.version);
        report.notes.push(format!("{name} {version} has no prepared statements in transaction pooling: not measured"));
    }
    Ok(targets)
}

/// Of processes of their own, of which nothing else has been asked before.
fn measure_idle(options: &Options, cluster: &Cluster, report: &mut Report) {
    let (postmasters, time) = (postmasters(cluster), Duration::from_secs(options.seconds.unwrap_or(SECONDS)));
    for name in [targets::PGBOUNCER, targets::PGWEIR_ALL].into_iter().filter(|name| options.wants(name)) {
        eprintln!("{} idle clients of {name}", options.idle);
        match idle::measure(|| make(name, options, cluster), cluster, &postmasters, options.idle, time) {
            Ok(idle) => report.idle.extend(idle),
            Err(error) => report.notes.push(format!("idle clients of {name}: {error}")),
        }
    }
}

/// Apart from the rounds, as it makes everything slow.
fn count_calls(loads: &[&Load], targets: &[&Target], cluster: &Cluster, report: &mut Report) {
    if !Strace::is_installed() {
        report.notes.push("strace is not installed: no system calls counted".into());
        return;
    }
    for load in loads {
        let Some(lengths) = load.counted(1) else { continue };
        for target in targets.iter().filter(|target| load.suits(target)) {
            let Some(pid) = target.only_process() else { continue };
            eprintln!("system calls: {} on {}", load.name, target.name);
            let traced = |length| -> Result<_, Box<dyn Error>> {
                let strace = Strace::attach(pid, cluster.scratch().path())?;
                let run = load.run(target, cluster, &[], length)?;
                Ok((strace.finish()?, run.transactions))
            };
            let count = || -> Result<_, Box<dyn Error>> {
                // Connections that are opened once, and a cache that fills, are part of no count.
                load.run(target, cluster, &[], lengths[1])?;
                Ok(Calls::between(load.name, &target.name, &traced(lengths[0])?, &traced(lengths[1])?))
            };
            match count() {
                Ok(calls) => report.calls.push(calls),
                Err(error) => report.notes.push(format!("system calls: {error}")),
            }
        }
    }
}

fn run_rounds(
    options: &Options,
    began: Instant,
    loads: &[&Load],
    targets: &[&Target],
    cluster: &Cluster,
    report: &mut Report,
) -> Result<(), Box<dyn Error>> {
    let rounds = options.rounds.unwrap_or(if options.quick { 1 } else { 4 });
    let seconds = options.seconds.unwrap_or(if options.quick { 1 } else { SECONDS });
    let length = Length::Time(Duration::from_secs(seconds));
    let postmasters = postmasters(cluster);
    let mut longest = Duration::ZERO;
    for round in 0..rounds {
        let round_began = Instant::now();
        if round > 0 && (began.elapsed() + longest).as_secs() > options.limit {
            report.notes.push(format!("{round} of {rounds} rounds fitted into {} s", options.limit));
            break;
        }
        for load in loads {
            let suited: Vec<_> = targets.iter().filter(|target| load.suits(target)).collect();
            for target in order(round, suited.len()).map(|at| suited[at]) {
                eprintln!("round {} of {rounds}: {} on {}", round + 1, load.name, target.name);
                match load.run(target, cluster, &postmasters, length) {
                    Ok(run) => report.rounds.push(Round { round, load: load.name, target: target.name.clone(), run }),
                    Err(error) => report.notes.push(format!("round {}: {error}", round + 1)),
                }
            }
        }
        longest = longest.max(round_began.elapsed());
    }
    Ok(())
}

/// In which each of so many has its turn in a round: each at another place than in the last, behind another one. In as many
/// rounds as there are targets each stands at each place, and where that is an even number behind each other one once
/// (Williams 1949): 0 1 3 2, 1 2 0 3, ….
fn order(round: usize, count: usize) -> impl Iterator<Item = usize> {
    let first = move |place: usize| if place % 2 == 1 { place.div_ceil(2) } else { count - place / 2 };
    (0..count).map(move |place| (first(place) + round) % count)
}

/// The first line of each server's lock file.
fn postmasters(cluster: &Cluster) -> Vec<u32> {
    let pid = |folder: &Path| fs::read_to_string(folder.join("postmaster.pid")).ok()?.lines().next()?.parse().ok();
    cluster.servers().filter_map(|server| pid(server.data_path())).collect()
}

fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "HEAD"])?;
    let unchanged = git(&["diff", "--quiet", "HEAD", "--", "src", "Cargo.lock"]).is_some();
    Some(if unchanged { commit } else { commit + "-dirty" })
}

fn machine() -> String {
    let first = |path: &str, prefix: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(prefix)).unwrap_or_default();
        line.rsplit(':').next().unwrap_or_default().trim().to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = first("/proc/sys/kernel/osrelease", "");
    format!("{cores} × {}, Linux {kernel}", first("/proc/cpuinfo", "model name"))
}
