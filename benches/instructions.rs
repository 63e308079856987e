//! How many instructions each hot room takes, counted by valgrind and held against a budget: `make instructions`.
//!
//! Unlike times, counts hardly wobble. A room runs twice, many times and twice as many; the difference is the room
//! without its setting-up. `--write` makes today's counts the budget. They hold for the compiler and the architecture
//! they were counted with: on another, counts are shown and hold nobody. `--growth` shows what becomes of them as there
//! is more of everything.

mod hot;

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::error::Error;
use std::fs;
use std::process::{Command, ExitCode};

use serde::{Deserialize, Serialize};

/// How far a count may lie above its budget. Below by more, and the budget is to be lowered.
const TOLERANCE: f64 = 0.05;
const TIMES: u32 = 2_000;
/// Setting up where there is much takes millions of instructions, by chance some thousands more or fewer.
const TIMES_AMONG_MANY: u32 = 20_000;
const BUDGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.toml");

const HEAD: &str = "# Instructions of one pass through each hot room. Written by `make instructions-budget`.\n";

/// What counts may be, and what they were counted with.
#[derive(Debug, Serialize, Deserialize)]
struct Budget {
    /// As `rustc --version` says.
    compiler: String,
    architecture: String,
    rooms: BTreeMap<String, u64>,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [mode, name, times] if mode == "room" => run(hot::find(name).ok_or("no such room")?, times),
        [mode, growth, size, times] if mode == "growth" => {
            let growth = hot::GROWTHS.get(growth.parse::<usize>()?).ok_or("no such room")?;
            run((growth.room)(size.parse()?), times)
        }
        // `cargo test --all-targets` runs this as well: an unoptimised build has no budget.
        _ if !arguments.iter().any(|argument| argument == "--bench") => Ok(ExitCode::SUCCESS),
        _ if arguments.iter().any(|argument| argument == "--growth") => show_growth(),
        _ => check(arguments.iter().any(|argument| argument == "--write")),
    }
}

fn run(mut room: hot::Room, times: &str) -> Result<ExitCode, Box<dyn Error>> {
    let times: u32 = times.parse()?;
    (0..times).for_each(|_| (room.once)());
    Ok(ExitCode::SUCCESS)
}

/// A table in Markdown.
fn show_growth() -> Result<ExitCode, Box<dyn Error>> {
    println!("| room | as there are more | instructions |\n| --- | --- | --- |");
    for (index, growth) in hot::GROWTHS.iter().enumerate() {
        let mut shown = Vec::new();
        for size in growth.sizes {
            let count = count(&["growth", &index.to_string(), &size.to_string()], TIMES_AMONG_MANY)?;
            shown.push(format!("{size}: {count}"));
        }
        println!("| {} | {} | {} |", (growth.room)(1).name, growth.of, shown.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

fn check(write: bool) -> Result<ExitCode, Box<dyn Error>> {
    let rooms: BTreeMap<String, u64> = hot::rooms()
        .iter()
        .map(|room| Ok((room.name.into(), count(&["room", room.name], TIMES)?)))
        .collect::<Result<_, String>>()?;
    let counted = Budget { compiler: compiler()?, architecture: ARCH.into(), rooms };
    if write {
        fs::write(BUDGET, format!("{HEAD}{}", toml::to_string(&counted)?))?;
    }
    let budget: Budget = toml::from_str(&fs::read_to_string(BUDGET)?)?;
    let mut kept = true;
    for (name, count) in &counted.rooms {
        let (verdict, ok) = judge(*count, budget.rooms.get(name).copied());
        println!("{name:24} {count:7}   {verdict}");
        kept &= ok;
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

fn judge(count: u64, budget: Option<u64>) -> (String, bool) {
    let Some(budget) = budget else { return ("has no budget".into(), false) };
    let ratio = count as f64 / budget as f64;
    match ratio {
        _ if ratio > 1.0 + TOLERANCE => {
            (format!("OVER the budget of {budget} by {:.0} %", (ratio - 1.0) * 100.0), false)
        }
        _ if ratio < 1.0 - TOLERANCE => (format!("below the budget of {budget}: lower it"), true),
        _ => (format!("budget {budget}"), true),
    }
}

/// Instructions of one pass through what these arguments name.
fn count(which: &[&str], times: u32) -> Result<u64, String> {
    let (few, many) = (total(which, times)?, total(which, 2 * times)?);
    Ok(many.saturating_sub(few) / u64::from(times))
}

fn total(which: &[&str], times: u32) -> Result<u64, String> {
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(this)
        .args(which)
        .arg(times.to_string())
        .output()
        .map_err(|error| format!("cannot run valgrind ({error}); Debian, Ubuntu: apt-get install valgrind"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let collected = said.lines().find_map(|line| line.rsplit_once("Collected : ")?.1.trim().parse().ok());
    collected.filter(|_| output.status.success()).ok_or(format!("valgrind counted nothing:\n{said}"))
}
