//! pgweir's own log, to standard error: text for people at a terminal, JSON lines for whatever collects them.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Human,
    Json,
}

/// The directives of `RUST_LOG`, such as `info` or `warn,pgweir::pool=debug`.
///
/// # Errors
/// What is wrong with `directives`.
pub fn filter(directives: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(directives).map_err(|e| format!("{directives:?} is no log level: {e}"))
}

/// Starts the log; to be called once. Without a format, it is what standard error is good for.
///
/// # Errors
/// When a log was started before.
pub fn init(format: Option<LogFormat>, filter: EnvFilter) -> Result<(), TryInitError> {
    let terminal = std::io::stderr().is_terminal();
    let default = if terminal { LogFormat::Human } else { LogFormat::Json };
    let log = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal);
    match format.unwrap_or(default) {
        LogFormat::Human => log.finish().try_init(),
        LogFormat::Json => log.json().flatten_event(true).finish().try_init(),
    }
}

#[cfg(test)]
mod tests {
    use super::filter;

    #[test]
    fn directives_are_those_of_rust_log() {
        assert!(filter("info").is_ok());
        assert!(filter("warn,pgweir::pool=debug").is_ok());
        assert!(filter("pgweir=loud").unwrap_err().contains("pgweir=loud"));
    }
}
