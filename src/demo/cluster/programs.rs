//! Where PostgreSQL's programs are, and the account that may run them.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::demo::error::Error;

/// The environment variable that names the folder of `postgres`, before any search.
pub const BIN_VARIABLE: &str = "PGWEIR_PG_BIN";

const HOW_TO_INSTALL: &str = "PostgreSQL's server programs (initdb, postgres) were not found. Install them \
(Debian, Ubuntu: apt-get install postgresql; Fedora: dnf install postgresql-server; macOS: brew install postgresql), \
or set PGWEIR_PG_BIN to the folder that holds them.";

/// The programs of one PostgreSQL installation.
#[derive(Debug, Clone)]
pub struct Programs {
    folder: PathBuf,
    account: Option<Account>,
}

/// Whom servers run as when this process is root: `initdb` and `postgres` refuse root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
}

impl Programs {
    /// Looks at `$PGWEIR_PG_BIN`, `pg_config --bindir`, the usual folders (newest version first) and `PATH`.
    ///
    /// # Errors
    /// [`Error::Missing`], which says what to install. A folder named by `$PGWEIR_PG_BIN` that has no server is an
    /// error as well: another version in its stead would surprise.
    pub fn find() -> Result<Self, Error> {
        if let Some(named) = env::var_os(BIN_VARIABLE).filter(|value| !value.is_empty()) {
            return Programs::of(Path::new(&named)).map_err(|error| match error {
                Error::Missing(what) => Error::Missing(format!("{BIN_VARIABLE}={what}")),
                other => other,
            });
        }
        let found = candidates().into_iter().find(|folder| has_server(folder));
        Programs::of(&found.ok_or_else(|| Error::Missing(HOW_TO_INSTALL.into()))?)
    }

    /// Those of this folder.
    ///
    /// # Errors
    /// [`Error::Missing`] if no server is there.
    pub fn of(folder: &Path) -> Result<Self, Error> {
        if !has_server(folder) {
            return Err(Error::Missing(format!("{} has no initdb and postgres", folder.display())));
        }
        let account = match rustix::process::geteuid().is_root() {
            true => Some(unprivileged_account()?),
            false => None,
        };
        Ok(Programs { folder: folder.to_owned(), account })
    }

    /// `None` when this process is not root.
    pub fn account(&self) -> Option<Account> {
        self.account
    }

    /// The program of this installation, else the one in `PATH` (client programs may be packaged apart).
    ///
    /// # Errors
    /// [`Error::Missing`] when neither exists.
    pub fn path(&self, name: &str) -> Result<PathBuf, Error> {
        let here = self.folder.join(name);
        if here.is_file() {
            return Ok(here);
        }
        search_path().into_iter().map(|folder| folder.join(name)).find(|path| path.is_file()).ok_or_else(|| {
            let shown = self.folder.display();
            Error::Missing(format!("{name} is neither in {shown} nor in PATH (postgresql-client, postgresql-contrib)"))
        })
    }

    /// A client program (psql, pgbench), run as this process, with none of libpq's environment.
    ///
    /// # Errors
    /// As [`Programs::path`].
    pub fn client(&self, name: &str) -> Result<Command, Error> {
        let mut command = Command::new(self.path(name)?);
        for (key, _) in env::vars_os().filter(|(key, _)| key.as_encoded_bytes().starts_with(b"PG")) {
            command.env_remove(key);
        }
        // Messages are compared and searched: no translations.
        command.env("LC_ALL", "C").stdin(Stdio::null());
        Ok(command)
    }

    /// A server program, run in `folder` as the unprivileged account.
    ///
    /// # Errors
    /// As [`Programs::path`].
    pub fn server(&self, name: &str, folder: &Path) -> Result<Command, Error> {
        let mut command = self.client(name)?;
        command.current_dir(folder).env("HOME", folder);
        if let Some(account) = self.account {
            command.uid(account.uid).gid(account.gid);
        }
        Ok(command)
    }
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// [`Error::Failed`] with its stderr when it could not be run or did not exit with 0.
pub fn output(mut command: Command) -> Result<String, Error> {
    let name = Path::new(command.get_program()).file_name().unwrap_or(OsStr::new("?")).display().to_string();
    let output = command.output().map_err(Error::io(format!("cannot run {name}")))?;
    if !output.status.success() {
        let mut detail = String::from_utf8_lossy(&output.stderr).into_owned();
        if detail.is_empty() {
            detail = String::from_utf8_lossy(&output.stdout).into_owned();
        }
        return Err(Error::failed(format!("{name} failed ({})", output.status), detail));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn has_server(folder: &Path) -> bool {
    ["initdb", "postgres"].iter().all(|name| folder.join(name).is_file())
}

fn candidates() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Ok(printed) = Command::new("pg_config").arg("--bindir").stderr(Stdio::null()).output() {
        folders.push(PathBuf::from(String::from_utf8_lossy(&printed.stdout).trim()));
    }
    folders.extend(newest_first(subfolders(Path::new("/usr/lib/postgresql"), "")));
    folders.extend(newest_first(subfolders(Path::new("/usr"), "pgsql-")));
    for prefix in ["/opt/homebrew/opt", "/usr/local/opt"] {
        folders.extend(newest_first(subfolders(Path::new(prefix), "postgresql@")));
    }
    folders.extend(search_path());
    folders
}

fn search_path() -> Vec<PathBuf> {
    env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default()
}

/// `(version, bin folder)` of each `<parent>/<prefix><version>`.
fn subfolders(parent: &Path, prefix: &str) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect()
}

fn newest_first(mut folders: Vec<(u32, PathBuf)>) -> impl Iterator<Item = PathBuf> {
    folders.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    folders.into_iter().map(|(_, folder)| folder)
}

fn unprivileged_account() -> Result<Account, Error> {
    let passwd = fs::read_to_string("/etc/passwd").map_err(Error::io("cannot read /etc/passwd"))?;
    ["postgres", "nobody"].iter().find_map(|name| account_of(&passwd, name)).ok_or_else(|| {
        Error::Missing(
            "PostgreSQL refuses to run as root, and there is no account postgres or nobody to run it as".into(),
        )
    })
}

/// passwd(5): `name:password:uid:gid:…`
fn account_of(passwd: &str, name: &str) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_read_from_its_own_line() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\npostgresql:x:7:8::/:\npostgres:x:104:106:,,,:/var/lib:/bin/bash\n";
        assert_eq!(account_of(passwd, "postgres"), Some(Account { uid: 104, gid: 106 }));
        assert_eq!(account_of(passwd, "nobody"), None);
        assert_eq!(account_of("postgres:x:no", "postgres"), None);
    }

    #[test]
    fn versions_are_ordered_as_numbers() {
        let folders = vec![(9, "nine".into()), (18, "eighteen".into()), (16, "sixteen".into())];
        let ordered: Vec<PathBuf> = newest_first(folders).collect();
        assert_eq!(ordered, ["eighteen", "sixteen", "nine"].map(PathBuf::from));
    }

    #[test]
    fn a_failing_program_reports_its_stderr() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo reason >&2; exit 3"]);
        let error = output(command).unwrap_err().to_string();
        assert!(error.contains("sh failed") && error.ends_with("reason"), "{error}");
    }
}
