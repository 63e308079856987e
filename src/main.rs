//! Arguments → configuration → the command → exit code.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use pgweir::cli::{CheckArgs, Cli, Command, DemoArgs, Exit, ExplainArgs, HealthArgs, LoadArgs, LogArgs};
use pgweir::config::{self, Config};
use pgweir::{app, check, demo, explain, health, load, logging};

fn main() -> ExitCode {
    // a panic is a fault of pgweir's own, and says so to whoever supervises it
    let exit = std::panic::catch_unwind(start).unwrap_or(Exit::Fault);
    ExitCode::from(exit as u8)
}

/// Usage errors, `--help` and `--version` end the process within.
fn start() -> Exit {
    let cli = Cli::parse();
    let log = cli.log.clone();
    let command = cli.into_command().unwrap_or_else(|e| e.exit());
    start_log(&log);
    match command {
        Command::Run(args) => run(&args.config),
        Command::Check(args) => run_check(&args),
        Command::Health(args) => run_health(&args),
        Command::Demo(args) => run_demo(&args),
        Command::Explain(args) => run_explain(&args),
        Command::Load(args) => run_load(&args),
        Command::Top(_) => not_built("top", Exit::Usage),
        Command::Import(_) => not_built("import", Exit::Usage),
    }
}

/// `--log-level` counts before `RUST_LOG`; a fault in either is one of usage.
fn start_log(args: &LogArgs) {
    let from_env = || std::env::var("RUST_LOG").ok().filter(|directives| !directives.is_empty());
    let directives = args.log_level.clone().or_else(from_env).unwrap_or_else(|| "info".to_owned());
    let usage = |text| Cli::command().error(clap::error::ErrorKind::InvalidValue, text).exit();
    let filter = logging::filter(&directives).unwrap_or_else(usage);
    if let Err(e) = logging::init(args.log_format, filter) {
        say(&format!("the log cannot be started: {e}"));
    }
}

fn run(path: &Path) -> Exit {
    match Config::load(path) {
        Ok((config, found)) => {
            found.iter().for_each(|diagnostic| say(&diagnostic.to_string()));
            match app::run(path, config) {
                Ok(()) => Exit::Done,
                Err(e) => {
                    say(&format!("pgweir: {e}"));
                    Exit::Refused
                }
            }
        }
        Err(found) => {
            found.iter().for_each(|diagnostic| say(&diagnostic.to_string()));
            Exit::Refused
        }
    }
}

fn run_demo(args: &DemoArgs) -> Exit {
    match demo::run(demo::Options { keep: args.keep, port: args.port }) {
        Ok(()) => Exit::Done,
        Err(e) => {
            say(&format!("pgweir demo: {e}"));
            // What it needs is missing, or taken: nothing that pgweir did wrong.
            Exit::Refused
        }
    }
}

fn run_load(args: &LoadArgs) -> Exit {
    match load::run(args) {
        Ok(true) => Exit::Done,
        Ok(false) => Exit::Refused,
        Err(e) => {
            say(&format!("pgweir load: {e}"));
            match e {
                load::Error::Usage(_) => Exit::Usage,
                load::Error::Failed(_) => Exit::Fault,
            }
        }
    }
}

fn run_check(args: &CheckArgs) -> Exit {
    let try_nodes: Option<check::TryNodes<'_>> = if args.offline { None } else { Some(&check::try_nodes) };
    match check::check(&args.config.config, try_nodes, &mut std::io::stdout().lock()) {
        Ok(true) => Exit::Done,
        Ok(false) => Exit::Refused,
        Err(e) => {
            say(&format!("pgweir check: {e}"));
            Exit::Fault
        }
    }
}

fn run_explain(args: &ExplainArgs) -> Exit {
    let config = match Config::load(&args.config.config) {
        Ok((config, _)) => config,
        Err(found) => {
            found.iter().for_each(|diagnostic| say(&diagnostic.to_string()));
            return Exit::Refused;
        }
    };
    match explain::explain(&config, &args.sql, args.json, &mut std::io::stdout().lock()) {
        Ok(faults) => {
            faults.iter().for_each(|fault| say(fault));
            Exit::Done
        }
        Err(e) => {
            say(&format!("pgweir explain: {e}"));
            Exit::Fault
        }
    }
}

fn run_health(args: &HealthArgs) -> Exit {
    let path = if args.ready { "/readyz" } else { "/livez" };
    let answer = match admin_authority(args) {
        Ok(authority) => {
            health::ask(&authority, path, health::TIMEOUT).map_err(|e| format!("http://{authority}{path}: {e}"))
        }
        Err(exit) => return exit,
    };
    match answer {
        Ok(answer) if answer.is_well() => Exit::Done,
        Ok(answer) => {
            say(&format!("{path} answers {}: {}", answer.status, answer.body));
            Exit::Refused
        }
        Err(why) => {
            say(&why);
            Exit::Refused
        }
    }
}

/// The host and port to ask: of `--admin`, of the configuration, or the default ones.
fn admin_authority(args: &HealthArgs) -> Result<String, Exit> {
    if let Some(url) = &args.admin {
        return health::authority_of(url).map_err(|e| {
            say(&e.to_string());
            Exit::Usage
        });
    }
    let http = match &args.config {
        None => config::Admin::default().http,
        Some(path) => config::admin_address(path).map_err(|faults| {
            faults.iter().for_each(|fault| say(&fault.to_string()));
            Exit::Refused
        })?,
    };
    http.map(|http| health::reachable(http).to_string()).ok_or_else(|| {
        say("admin.http is off in the configuration, so there is nothing to ask");
        Exit::Refused
    })
}

fn not_built(command: &str, exit: Exit) -> Exit {
    say(&format!("pgweir {command} is not built in this version"));
    exit
}

/// To standard error; when that is gone there is no one to tell.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
