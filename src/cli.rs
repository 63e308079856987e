//! The command line.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::logging::LogFormat;

/// What a run ended with, as its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    /// The configuration or a threshold said no.
    Refused = 1,
    Usage = 2,
    /// A fault of pgweir's own; the number is EX_SOFTWARE of sysexits.h.
    Fault = 70,
}

/// A PostgreSQL proxy that runs beside an application: pooling, replicas, statistics.
#[derive(Debug, Parser)]
#[command(name = "pgweir", version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The configuration, where no command is given: serve
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub log: LogArgs,
}

/// Options that every command takes.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// How log lines look; text at a terminal, JSON elsewhere
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// What is logged, as in RUST_LOG: info, or warn,pgweir::pool=debug
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
}

/// Where the configuration is.
#[derive(Debug, Clone, Args)]
pub struct ConfigArg {
    /// The configuration
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve (also without a command); SIGHUP reloads, SIGTERM drains
    Run(ConfigArg),
    /// Tell every fault of a configuration, then try each node
    Check(CheckArgs),
    /// Start a throw-away cluster with data, load and pgweir before it
    Demo(DemoArgs),
    /// Tell where a statement would run, and why
    Explain(ExplainArgs),
    /// Put a staged load on a server, with thresholds
    Load(LoadArgs),
    /// Show pools, nodes and statements live
    Top(TopArgs),
    /// Write a pgbouncer.ini as a configuration of pgweir
    Import(ImportArgs),
    /// Ask a running pgweir whether it is well; for container probes
    Health(HealthArgs),
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    pub config: ConfigArg,
    /// Check the file alone: connect to no node
    #[arg(long)]
    pub offline: bool,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Leave the cluster's directory behind
    #[arg(long)]
    pub keep: bool,
    /// Where pgweir listens; left out, a free port
    #[arg(long, value_name = "N")]
    pub port: Option<u16>,
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    pub config: ConfigArg,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
    /// The statement
    pub sql: String,
}

#[derive(Debug, Args)]
pub struct LoadArgs {
    /// The server, as postgres://user@host:port/database
    #[arg(long, value_name = "URL")]
    pub to: String,
    /// A stage: how long, and how many users at its end, as 2m:100; the number changes linearly. Without any: 2m:100,
    /// 5m:100, 2m:200, 5m:200, 2m:0
    #[arg(long = "stage", value_name = "DURATION:USERS")]
    pub stages: Vec<String>,
    /// The statements of a user's turn; '\set x random(1, 100)' before them draws a number for :x. Without it: SELECT 1
    #[arg(long, value_name = "FILE")]
    pub script: Option<PathBuf>,
    /// The pause after each turn; without it, 1s
    #[arg(long, value_name = "DURATION")]
    pub think: Option<String>,
    /// A bound whose breach ends in exit code 1: mean, p50, p95, p99 or max with a time, error_rate with a share,
    /// throughput for each second. Without any: 'p95<500ms' and 'error_rate<1%'
    #[arg(long = "threshold", value_name = "BOUND")]
    pub thresholds: Vec<String>,
    /// Add users, after the stages if there are any, until a threshold breaks or throughput stops growing
    #[arg(long)]
    pub find_breaking_point: bool,
    /// How long each number of users is tried in that search; without it, 10s
    #[arg(long, value_name = "DURATION", requires = "find_breaking_point")]
    pub step: Option<String>,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct TopArgs {
    /// The admin address of a running pgweir
    #[arg(long, value_name = "URL")]
    pub admin: Option<String>,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The pgbouncer.ini
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

#[derive(Debug, Args)]
pub struct HealthArgs {
    /// Ask whether it can serve, not only whether it lives
    #[arg(long)]
    pub ready: bool,
    /// The configuration whose admin.http is asked
    #[arg(short, long, value_name = "FILE", conflicts_with = "admin")]
    pub config: Option<PathBuf>,
    /// The admin address, as http://127.0.0.1:9432
    #[arg(long, value_name = "URL")]
    pub admin: Option<String>,
}

impl Cli {
    /// The command, which is `run` where none is given.
    ///
    /// # Errors
    /// Usage: no command and no configuration, or a configuration before a command, where it would do nothing.
    pub fn into_command(self) -> Result<Command, clap::Error> {
        let usage = |kind, text| Err(Cli::command().error(kind, text));
        match (self.command, self.config) {
            (None, Some(config)) => Ok(Command::Run(ConfigArg { config })),
            (None, None) => usage(ErrorKind::MissingRequiredArgument, "a configuration is needed: --config FILE"),
            (Some(command), None) => Ok(command),
            (Some(_), Some(_)) => usage(ErrorKind::ArgumentConflict, "--config FILE stands after the command"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, ErrorKind> {
        Cli::try_parse_from(line.split(' ')).and_then(Cli::into_command).map_err(|e| e.kind())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_is_the_default() {
        for line in ["pgweir --config f", "pgweir run --config f", "pgweir run -c f --log-level info"] {
            let Ok(Command::Run(run)) = parse(line) else { panic!("{line}") };
            assert_eq!(run.config, PathBuf::from("f"));
        }
    }

    #[test]
    fn every_command_of_the_interface_parses() {
        for line in [
            "pgweir --log-format json check --offline --config f",
            "pgweir demo --keep --port 6000",
            "pgweir explain --config f --json select",
            "pgweir load --to postgres://h --stage 2m:100 --stage 2m:0 --script f --think 1s \
             --threshold p95<500ms --find-breaking-point --json",
            "pgweir top --admin http://127.0.0.1:9432",
            "pgweir import pgbouncer.ini",
            "pgweir health --ready",
        ] {
            let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(parse(&line).is_ok(), "{line}");
        }
    }

    #[test]
    fn usage_is_refused() {
        for (line, kind) in [
            ("pgweir", ErrorKind::MissingRequiredArgument),
            ("pgweir run", ErrorKind::MissingRequiredArgument),
            ("pgweir check", ErrorKind::MissingRequiredArgument),
            ("pgweir --config f check --config f", ErrorKind::ArgumentConflict),
            ("pgweir --config f demo", ErrorKind::ArgumentConflict),
            ("pgweir health --config f --admin u", ErrorKind::ArgumentConflict),
            ("pgweir serve", ErrorKind::InvalidSubcommand),
            ("pgweir demo --log-format xml", ErrorKind::InvalidValue),
        ] {
            assert_eq!(parse(line).err(), Some(kind), "{line}");
        }
    }
}
