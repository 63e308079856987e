//! pgweir's own log, to standard error: text for people at a terminal, JSON lines for whatever collects them.

use std::io::{self, IsTerminal, Write};

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
        LogFormat::Human => log.with_writer(|| OneLine(std::io::stderr())).finish().try_init(),
        LogFormat::Json => log.json().flatten_event(true).finish().try_init(),
    }
}

/// Takes an entry of the log with each write, as the subscriber writes it, and leaves it one line: what is quoted in it, such as
/// the name that somebody wanted to log in by, must not look like another entry. JSON escapes by itself.
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        let (text, end) = entry.strip_suffix(b"\n").map_or((entry, &b""[..]), |text| (text, b"\n"));
        if !text.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
            self.0.write_all(entry)?;
            return Ok(entry.len());
        }
        let mut line = Vec::with_capacity(entry.len() + 16);
        for byte in text {
            match byte {
                b'\n' => line.extend_from_slice(b"\\n"),
                b'\r' => line.extend_from_slice(b"\\r"),
                byte => line.push(*byte),
            }
        }
        line.extend_from_slice(end);
        self.0.write_all(&line)?;
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::{OneLine, filter, fmt};

    /// What the log was written to.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_writes_lines_of_their_own_into_the_log() {
        let written = Written::default();
        let to = written.clone();
        let log = fmt().with_ansi(false).with_writer(move || OneLine(to.clone())).finish();
        tracing::subscriber::with_default(log, || {
            let fault = "no user \"x\r\n2026-01-15T10:00:00Z  INFO pgweir: all is well\"";
            tracing::info!(%fault, "login refused");
            tracing::info!("another");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains(r"x\r\n2026") && text.ends_with("another\n"), "{text}");
    }

    #[test]
    fn directives_are_those_of_rust_log() {
        assert!(filter("info").is_ok());
        assert!(filter("warn,pgweir::pool=debug").is_ok());
        assert!(filter("pgweir=loud").unwrap_err().contains("pgweir=loud"));
    }
}
