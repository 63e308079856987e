//! Signals to child processes, and the end of them.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::programs::output;

const POLL: Duration = Duration::from_millis(20);

/// The child's number while it runs; reaps it otherwise.
pub fn living(slot: &mut Option<Child>) -> Option<Pid> {
    let child = slot.as_mut()?;
    match child.try_wait() {
        Ok(None) => Some(Pid::from_child(child)),
        _ => {
            *slot = None;
            None
        }
    }
}

/// Signals the child and reaps it; false if it lives on after `limit`.
pub fn end(slot: &mut Option<Child>, signal: Signal, limit: Duration) -> bool {
    let Some(pid) = living(slot) else { return true };
    signal_all([pid], signal);
    let deadline = Instant::now() + limit;
    while living(slot).is_some() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(POLL);
    }
    true
}

pub fn signal_all(pids: impl IntoIterator<Item = Pid>, signal: Signal) {
    for pid in pids {
        // One that has just ended needs no signal.
        let _ = kill_process(pid, signal);
    }
}

/// The processes whose parent is `parent`. A postmaster's children have none themselves.
pub fn children(parent: Pid) -> Vec<Pid> {
    let mut command = Command::new("ps");
    command.args(["-A", "-o", "pid=,ppid="]).stdin(Stdio::null());
    let listed = proc_parents().unwrap_or_else(|| output(command).map(|text| parse_parents(&text)).unwrap_or_default());
    let wanted = parent.as_raw_nonzero().get();
    listed.into_iter().filter(|(_, ppid)| *ppid == wanted).filter_map(|(pid, _)| Pid::from_raw(pid)).collect()
}

/// `(pid, parent)` of all processes from Linux's `/proc`, which is there without any package; `None` elsewhere.
fn proc_parents() -> Option<Vec<(i32, i32)>> {
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let parents: Vec<_> = entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // proc(5): `pid (name) state ppid …`, where the name may hold spaces and brackets.
            let ppid = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, ppid))
        })
        .collect();
    (!parents.is_empty()).then_some(parents)
}

fn parse_parents(text: &str) -> Vec<(i32, i32)> {
    let pair = |line: &str| {
        let mut fields = line.split_whitespace();
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_those_of_the_parent() {
        let own = rustix::process::getpid();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let found = children(own).contains(&Pid::from_child(&child));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found);
    }

    #[test]
    fn ps_lines_are_pairs() {
        assert_eq!(parse_parents("  1     0\n 77     1\nbad\n"), [(1, 0), (77, 1)]);
    }
}
