//! A temporary folder that is removed, with all that runs from it, however this process ends.

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::programs::Account;
use crate::demo::error::Error;

/// The longest temporary folder under which a socket's path still fits `sockaddr_un` (104 bytes on macOS and BSD).
const MAX_PARENT: usize = 60;

/// A folder and its keeper: a shell that waits for the end of a pipe held here. Statics are never dropped and a killed
/// process drops nothing; the pipe ends in those cases too.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    keeper: Child,
}

impl Scratch {
    /// Makes an empty folder that only its owner (`account`, else this user) may enter.
    ///
    /// # Errors
    /// When the folder cannot be made or no shell can be started.
    pub fn create(account: Option<Account>) -> Result<Self, Error> {
        let path = parent(account).join(format!("pgweir-{}", random_hex(6)?));
        DirBuilder::new().mode(0o700).create(&path).map_err(Error::io(format!("cannot make {}", path.display())))?;
        let keeper = Command::new("sh")
            .args(["-c", include_str!("scratch.sh"), "pgweir-keeper"])
            .arg(&path)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Its own group: Ctrl-C is for us alone.
            .process_group(0)
            .spawn();
        let keeper = keeper.inspect_err(|_| drop(fs::remove_dir(&path))).map_err(Error::io("cannot start sh"))?;
        let scratch = Scratch { path, keeper };
        if let Some(Account { uid, gid }) = account {
            chown(&scratch.path, Some(uid), Some(gid)).map_err(Error::io("cannot hand over the temporary folder"))?;
        }
        Ok(scratch)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has the keeper end this process too. Its command line must contain the folder's path, so that a number that was
    /// given to another process meanwhile is left alone.
    ///
    /// # Errors
    /// When the note cannot be written.
    pub fn watch(&self, name: &str, pid: u32) -> Result<(), Error> {
        let note = self.path.join(format!("{name}.pid"));
        fs::write(&note, format!("{pid}\n")).map_err(Error::io(format!("cannot write {}", note.display())))
    }

    /// Leaves the folder, and all that runs from it, where it is.
    pub fn keep(mut self) -> PathBuf {
        if let Some(pipe) = self.keeper.stdin.as_mut() {
            // A keeper that is gone keeps nothing from staying.
            let _ = pipe.write_all(b"keep\n");
        }
        self.path.clone()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // The keeper bounds its own time.
        let _ = self.keeper.wait();
    }
}

/// The temporary folder of the environment, unless sockets or the account would not fit in it.
fn parent(account: Option<Account>) -> PathBuf {
    let usual = env::temp_dir();
    let fits = usual.as_os_str().len() <= MAX_PARENT;
    if fits && (account.is_none() || usual.ancestors().all(everyone_may_enter)) { usual } else { "/tmp".into() }
}

fn everyone_may_enter(folder: &Path) -> bool {
    folder.as_os_str().is_empty() || folder.metadata().is_ok_and(|found| found.mode() & 0o001 != 0)
}

/// `bytes` random bytes as hexadecimal digits.
///
/// # Errors
/// When the system's random device cannot be read.
pub fn random_hex(bytes: usize) -> Result<String, Error> {
    let mut buffer = vec![0; bytes];
    let read = File::open("/dev/urandom").and_then(|mut device| device.read_exact(&mut buffer));
    read.map_err(Error::io("cannot read /dev/urandom"))?;
    Ok(buffer.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn dropping_ends_watched_processes_and_removes_the_folder() {
        let scratch = Scratch::create(None).unwrap();
        let path = scratch.path().to_owned();
        // The folder is an argument, which is what makes the process one of this folder's.
        let mut child =
            Command::new("sh").args(["-c", "read line", "sh"]).arg(&path).stdin(Stdio::piped()).spawn().unwrap();
        scratch.watch("child", child.id()).unwrap();
        drop(scratch);
        assert_eq!(child.wait().unwrap().signal(), Some(15));
        assert!(!path.exists());
    }

    #[test]
    fn a_process_that_is_not_of_the_folder_is_left_alone() {
        let scratch = Scratch::create(None).unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        scratch.watch("stranger", child.id()).unwrap();
        drop(scratch);
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn kept_stays() {
        let path = Scratch::create(None).unwrap().keep();
        assert!(path.is_dir());
        fs::remove_dir(path).unwrap();
    }
}
