//! What can go wrong while a throw-away cluster or the demo runs.

use std::fmt;
use std::io;

/// Each variant carries a text for a person; nothing here is retried by its kind.
#[derive(Debug)]
pub enum Error {
    /// Something that must be installed or set; the text says how.
    Missing(String),
    /// A program or server did not do what it was started for.
    Failed { what: String, detail: String },
    /// The operating system refused.
    Io { what: String, source: io::Error },
}

impl Error {
    pub(crate) fn failed(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Error::Failed { what: what.into(), detail: detail.into() }
    }

    /// For `map_err`: names what was attempted.
    pub(crate) fn io(what: impl fmt::Display) -> impl FnOnce(io::Error) -> Self {
        let what = what.to_string();
        move |source| Error::Io { what, source }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Missing(text) => f.write_str(text),
            Error::Failed { what, detail } if detail.trim().is_empty() => f.write_str(what),
            Error::Failed { what, detail } => write!(f, "{what}: {}", detail.trim_end()),
            Error::Io { what, source } => write!(f, "{what}: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
