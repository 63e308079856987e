//! How many instructions each hot room takes, counted by valgrind and held against a budget: `make instructions`.
//!
//! Unlike times, counts hardly wobble. Counted are the passes alone, not what sets a room up. Held as well is how many
//! times as many there are where there is most of everything, which `--growth` shows at more sizes. `--write` makes today's
//! counts the budget. They hold for the compiler and the architecture they were counted with: on another, counts are shown
//! and hold nobody.

mod hot;

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::error::Error;
use std::fs;
use std::process::{Command, ExitCode};

use serde::{Deserialize, Serialize};

/// How far a count may lie above its budget. Below by more, and the budget is to be lowered.
const TOLERANCE: f64 = 0.05;
/// Passes before the first that counts.
const WARM_UP: u32 = 100;
const TIMES: u32 = 2_000;
const BUDGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.toml");

const HEAD: &str = "\
# Instructions of one pass through each hot room, and how many times as many it takes where there is most of everything
# as where there is least. Written by `make instructions-budget`.
";

/// What counts may be, and what they were counted with.
#[derive(Debug, Serialize, Deserialize)]
struct Budget {
    /// As `rustc --version` says.
    compiler: String,
    architecture: String,
    rooms: BTreeMap<String, u64>,
    growth: BTreeMap<String, f64>,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [mode, name] if mode == "room" => run(hot::find(name).ok_or("no such room")?),
        [mode, growth, size] if mode == "growth" => {
            let growth = hot::GROWTHS.get(growth.parse::<usize>()?).ok_or("no such room")?;
            run((growth.room)(size.parse()?))
        }
        // `cargo test --all-targets` runs this as well: an unoptimised build has no budget.
        _ if !arguments.iter().any(|argument| argument == "--bench") => Ok(ExitCode::SUCCESS),
        _ if arguments.iter().any(|argument| argument == "--growth") => show_growth(),
        _ => check(arguments.iter().any(|argument| argument == "--write")),
    }
}

fn run(mut room: hot::Room) -> Result<ExitCode, Box<dyn Error>> {
    (0..WARM_UP).for_each(|_| (room.once)());
    counted_passes(&mut room);
    Ok(ExitCode::SUCCESS)
}

/// What valgrind counts, which knows it by its name.
#[inline(never)]
fn counted_passes(room: &mut hot::Room) {
    (0..TIMES).for_each(|_| (room.once)());
}

/// A table in Markdown.
fn show_growth() -> Result<ExitCode, Box<dyn Error>> {
    println!("| room | as there are more | instructions |\n| --- | --- | --- |");
    for (index, growth) in hot::GROWTHS.iter().enumerate() {
        let counts = growth.sizes.iter().map(|size| Ok(format!("{size}: {}", count_among(index, *size)?)));
        println!("| {} | {} | {} |", growth.name(), growth.of, counts.collect::<Result<Vec<_>, String>>()?.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

/// Of the room of one of the growths, where there is so much.
fn count_among(growth: usize, size: usize) -> Result<u64, String> {
    count(&["growth", &growth.to_string(), &size.to_string()])
}

fn check(write: bool) -> Result<ExitCode, Box<dyn Error>> {
    let rooms: BTreeMap<_, _> = hot::rooms()
        .iter()
        .map(|room| Ok((room.name.to_owned(), count(&["room", room.name])?)))
        .collect::<Result<_, String>>()?;
    let growth: BTreeMap<_, _> = hot::GROWTHS
        .iter()
        .enumerate()
        .map(|(index, growth)| {
            let [least, .., most] = growth.sizes;
            let times = count_among(index, most)? as f64 / count_among(index, least)? as f64;
            Ok((growth.name(), (times * 100.0).round() / 100.0))
        })
        .collect::<Result<_, String>>()?;
    let counted = Budget { compiler: compiler()?, architecture: ARCH.into(), rooms, growth };
    if write {
        fs::write(BUDGET, format!("{HEAD}{}", toml::to_string(&counted)?))?;
    }
    let budget: Budget = toml::from_str(&fs::read_to_string(BUDGET)?)?;
    let mut kept = true;
    for (name, count) in &counted.rooms {
        let budget = budget.rooms.get(name).map(|budget| *budget as f64);
        kept &= show(name, *count as f64, budget);
    }
    println!("Where there is most, × where there is least:");
    for (name, times) in &counted.growth {
        kept &= show(name, *times, budget.growth.get(name).copied());
    }
    if (&budget.compiler, &budget.architecture) != (&counted.compiler, &counted.architecture) {
        let Budget { compiler, architecture, .. } = budget;
        println!("the budget is of {compiler} on {architecture}: it does not hold here");
        return Ok(ExitCode::SUCCESS);
    }
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn compiler() -> Result<String, Box<dyn Error>> {
    let output = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into())).arg("--version").output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A line of what was counted and what may be; whether it is kept.
fn show(name: &str, count: f64, budget: Option<f64>) -> bool {
    let (verdict, kept) = judge(count, budget);
    println!("{name:24} {count:7}   {verdict}");
    kept
}

fn judge(count: f64, budget: Option<f64>) -> (String, bool) {
    let Some(budget) = budget else { return ("has no budget".into(), false) };
    let ratio = count / budget;
    match ratio {
        _ if ratio > 1.0 + TOLERANCE => {
            (format!("OVER the budget of {budget} by {:.0} %", (ratio - 1.0) * 100.0), false)
        }
        _ if ratio < 1.0 - TOLERANCE => (format!("below the budget of {budget}: lower it"), true),
        _ => (format!("budget {budget}"), true),
    }
}

/// Instructions of one pass through what these arguments name.
fn count(which: &[&str]) -> Result<u64, String> {
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*counted_passes*"])
        .arg(this)
        .args(which)
        .output()
        .map_err(|error| format!("cannot run valgrind ({error}); Debian, Ubuntu: apt-get install valgrind"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let collected = said.lines().find_map(|line| line.rsplit_once("Collected : ")?.1.trim().parse::<u64>().ok());
    let collected = collected.filter(|count| *count > 0 && output.status.success());
    Ok(collected.ok_or(format!("valgrind counted nothing:\n{said}"))? / u64::from(TIMES))
}
