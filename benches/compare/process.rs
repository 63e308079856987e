//! What the kernel says of a process: CPU time, resident memory, system calls.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::iter::Sum;
use std::ops::{Add, Sub};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use pgweir::demo::cluster::end;
use rustix::process::{Pid, Signal, kill_process};

/// proc(5) counts in clock ticks; USER_HZ is 100 on every Linux architecture that Rust knows.
const TICK: Duration = Duration::from_millis(10);

/// Processes that have come or gone within this time are waited for, up to the limit.
const SETTLED: Duration = Duration::from_millis(50);
const SETTLING: Duration = Duration::from_secs(10);

/// CPU time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu {
    pub user: Duration,
    pub system: Duration,
}

impl Cpu {
    pub fn all(self) -> Duration {
        self.user + self.system
    }
}

impl Add for Cpu {
    type Output = Cpu;

    fn add(self, other: Cpu) -> Cpu {
        Cpu { user: self.user + other.user, system: self.system + other.system }
    }
}

impl Sub for Cpu {
    type Output = Cpu;

    fn sub(self, other: Cpu) -> Cpu {
        let [user, system] = [(self.user, other.user), (self.system, other.system)].map(|(a, b)| a.saturating_sub(b));
        Cpu { user, system }
    }
}

impl Sum for Cpu {
    fn sum<I: Iterator<Item = Cpu>>(cpus: I) -> Cpu {
        cpus.fold(Cpu::default(), Add::add)
    }
}

/// What a process and all it has forked have used, all threads included: its own, the ended ones', and the living ones'.
/// One that ends meanwhile would count twice or not at all, so it is read when none has come or gone for a while.
pub fn cpu(parent: u32) -> Cpu {
    let deadline = Instant::now() + SETTLING;
    loop {
        let before = children(parent);
        thread::sleep(SETTLED);
        let living = before.iter().map(|pid| Cpu { user: ticks(*pid, &[14]), system: ticks(*pid, &[15]) });
        let all = Cpu { user: ticks(parent, &[14, 16]), system: ticks(parent, &[15, 17]) } + living.sum();
        if children(parent) == before || Instant::now() > deadline {
            return all;
        }
    }
}

fn children(parent: u32) -> Vec<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let listed = fs::read_to_string(path).unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The sum of some fields of `/proc/PID/stat`, numbered as in proc(5). A process that is gone has used nothing more.
fn ticks(pid: u32, fields: &[usize]) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which may hold spaces and brackets, stands field 3.
    let Some((_, rest)) = stat.rsplit_once(')') else { return Duration::ZERO };
    let values: Vec<&str> = rest.split_whitespace().collect();
    let sum: u32 = fields.iter().filter_map(|field| values.get(field - 3)?.parse::<u32>().ok()).sum();
    TICK * sum
}

/// Resident bytes.
pub fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Open files and sockets.
pub fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// A child process that runs for a bounded time.
pub struct Bounded {
    pid: Pid,
    ended: Receiver<io::Result<Output>>,
}

impl Bounded {
    pub fn start(command: &mut Command) -> io::Result<Bounded> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (pid, (ending, ended)) = (Pid::from_child(&child), mpsc::channel());
        // Nobody listens any more when the bench itself is at its end.
        thread::spawn(move || ending.send(child.wait_with_output()));
        Ok(Bounded { pid, ended })
    }

    /// What it has printed, once it has ended; it is killed at the limit, and that is an error.
    pub fn finish(self, limit: Duration) -> io::Result<Output> {
        self.ended.recv_timeout(limit).unwrap_or_else(|_| {
            // Should it end just now, there is nobody to be killed.
            let _ = kill_process(self.pid, Signal::KILL);
            Err(io::Error::other(format!("it had not ended after {} s", limit.as_secs())))
        })
    }
}

/// Runs a command to its end, or kills it at the limit.
pub fn output(command: &mut Command, limit: Duration) -> io::Result<Output> {
    Bounded::start(command)?.finish(limit)
}

/// strace attached to a process and all its threads, counting.
pub struct Strace {
    child: Option<Child>,
    report: std::path::PathBuf,
}

impl Strace {
    pub fn is_installed() -> bool {
        Command::new("strace").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    }

    /// Attaches, and returns once the kernel says that the process is traced.
    pub fn attach(pid: u32, folder: &Path) -> io::Result<Strace> {
        let report = folder.join("strace.txt");
        let mut command = Command::new("strace");
        command.args(["-c", "-f", "-q", "-p", &pid.to_string(), "-o"]).arg(&report);
        let child = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_traced(pid) {
            if Instant::now() > deadline {
                return Err(io::Error::other("strace does not attach"));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(Strace { child, report })
    }

    /// Detaches; the calls counted, by name.
    pub fn finish(mut self) -> io::Result<BTreeMap<String, u64>> {
        end(&mut self.child, Signal::INT, Duration::from_secs(10));
        Ok(parse(&fs::read_to_string(&self.report)?))
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        end(&mut self.child, Signal::INT, Duration::from_secs(10));
    }
}

fn is_traced(pid: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    tasks.flatten().all(|task| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
    })
}

/// Lines of `strace -c`: `% time, seconds, usecs/call, calls, [errors,] syscall`.
fn parse(report: &str) -> BTreeMap<String, u64> {
    let call = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let name = *fields.last()?;
        let calls = fields.get(3)?.parse().ok()?;
        (name != "total" && fields[0].parse::<f64>().is_ok()).then(|| (name.to_owned(), calls))
    };
    report.lines().filter_map(call).collect()
}
