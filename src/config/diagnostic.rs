//! What is said of a configuration file: one line each, as compilers write it.

use std::fmt;

/// How much a diagnostic weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// Accepted, but it will hardly do what its writer wants.
    Warning,
    /// Accepted, and worth knowing.
    Note,
}

/// One finding about a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    /// The file's name as the caller gave it.
    pub file: String,
    /// From 1. Zero only where there is no text to point into: the file could not be read.
    pub line: usize,
    /// Dotted, as in `databases.nodes.host`; empty for a fault of the file as a whole.
    pub key: String,
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        f.write_str(match self.severity {
            Severity::Error => ": ",
            Severity::Warning => ": warning: ",
            Severity::Note => ": note: ",
        })?;
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity, line: usize, hint: Option<&str>) -> String {
        Diagnostic {
            severity,
            file: "conf/pgweir.toml".into(),
            line,
            key: "pool.idle_timout".into(),
            message: "unknown key \"idle_timout\" in [pool]".into(),
            hint: hint.map(str::to_owned),
        }
        .to_string()
    }

    #[test]
    fn an_error_names_the_place_then_the_fault_then_the_hint() {
        assert_eq!(
            finding(Severity::Error, 12, Some("did you mean \"idle_timeout\"?")),
            "conf/pgweir.toml:12: unknown key \"idle_timout\" in [pool]; did you mean \"idle_timeout\"?"
        );
    }

    #[test]
    fn lesser_findings_say_what_they_are() {
        assert_eq!(
            finding(Severity::Warning, 3, None),
            "conf/pgweir.toml:3: warning: unknown key \"idle_timout\" in [pool]"
        );
        assert!(finding(Severity::Note, 0, None).starts_with("conf/pgweir.toml: note: "));
    }
}
