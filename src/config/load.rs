//! The two ways to a [`Config`]: from a text, which is pure, and from a file.

use std::net::SocketAddr;
use std::path::Path;

use super::diagnostic::{Diagnostic, Severity};
use super::file::{Expect, NamedFile, Walk};
use super::{Config, Container, listen, resolve};

impl Config {
    /// Reads the configuration from a file, taking `${NAME}` from the environment and "auto" from the container,
    /// and trying the paths that it names.
    ///
    /// # Errors
    /// Every fault of the file, with whatever else is worth saying of it, by line. A configuration that is
    /// accepted comes with its warnings and notes.
    pub fn load(path: &Path) -> Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>> {
        let file = path.display().to_string();
        let text = read(path, &file).map_err(|fault| vec![fault])?;
        let env = |name: &str| std::env::var(name).ok();
        let (parsed, named) = resolve::resolve(&text, &file, &env, &Container::detect());
        let missing = named.iter().filter_map(|named| named.fault(&file));
        let (config, mut diagnostics) = match parsed {
            Ok((config, diagnostics)) => (Some(config), diagnostics),
            Err(diagnostics) => (None, diagnostics),
        };
        diagnostics.extend(missing);
        diagnostics.sort_by_key(|d| d.line);
        match config {
            Some(config) if diagnostics.iter().all(|d| d.severity != Severity::Error) => Ok((config, diagnostics)),
            _ => Err(diagnostics),
        }
    }

    /// Reads the configuration from `text`; pure. `file` is for messages only, and "auto" is
    /// [`Container::SMALLEST`].
    ///
    /// # Errors
    /// As [`Config::load`], but paths are not tried.
    pub fn parse(
        text: &str,
        file: &str,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>> {
        resolve::resolve(text, file, env, &Container::SMALLEST).0
    }
}

/// The `admin.http` of a file, whatever is wrong with the rest of it: a probe must not fail because a file was
/// edited badly after pgweir had read it.
///
/// # Errors
/// The faults of `admin.http` itself, or of the file when it cannot be read.
pub fn admin_address(path: &Path) -> Result<Option<SocketAddr>, Vec<Diagnostic>> {
    let file = path.display().to_string();
    let text = read(path, &file).map_err(|fault| vec![fault])?;
    let env = |name: &str| std::env::var(name).ok();
    let (table, walk) = Walk::parse(&text, &file, &env);
    let http = listen::admin_http(&walk.root(table.get_ref()).section("admin"));
    let mut faults = walk.finish().diagnostics;
    faults.retain(|d| d.severity == Severity::Error && d.key == "admin.http");
    if faults.is_empty() { Ok(http) } else { Err(faults) }
}

fn read(path: &Path, file: &str) -> Result<String, Diagnostic> {
    let fault = |line, message: String| Diagnostic {
        severity: Severity::Error,
        file: file.to_owned(),
        line,
        key: String::new(),
        message,
        hint: None,
    };
    let bytes = std::fs::read(path).map_err(|e| fault(0, format!("cannot be read: {e}")))?;
    String::from_utf8(bytes).map_err(|e| {
        let valid = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
        fault(line, "is not UTF-8 here".to_owned())
    })
}

impl NamedFile {
    fn fault(&self, file: &str) -> Option<Diagnostic> {
        let shown = self.path.display();
        let message = match self.expect {
            Expect::ReadableFile => match std::fs::File::open(&self.path).and_then(|f| f.metadata()) {
                Ok(metadata) if metadata.is_dir() => {
                    format!("{shown} is a directory, not a file")
                }
                Ok(_) => return None,
                Err(e) => format!("{shown} cannot be read: {e}"),
            },
            Expect::Directory if self.path.is_dir() => return None,
            Expect::Directory => format!("{shown} is no directory"),
            Expect::ParentDirectory => {
                let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
                let parent = parent.unwrap_or(Path::new("."));
                if parent.is_dir() {
                    return None;
                }
                format!("{} is no directory, so {shown} cannot be written", parent.display())
            }
        };
        Some(Diagnostic {
            severity: Severity::Error,
            file: file.to_owned(),
            line: self.line,
            key: self.key.clone(),
            message: format!("{}: {message}", self.key),
            hint: Some("paths are relative to where pgweir is started".to_owned()),
        })
    }
}
