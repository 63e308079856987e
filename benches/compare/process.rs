//! What the kernel says of a process: CPU time, resident memory, system calls.

use std::fs;
use std::io;
use std::iter::Sum;
use std::ops::{Add, Sub};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pgweir::demo::cluster::end;
use rustix::process::Signal;

/// proc(5) counts in clock ticks; USER_HZ is 100 on every Linux architecture that Rust knows.
const TICK: Duration = Duration::from_millis(10);

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
pub fn cpu(parent: u32) -> Cpu {
    let living = children(parent).into_iter().map(|pid| Cpu { user: ticks(pid, &[14]), system: ticks(pid, &[15]) });
    Cpu { user: ticks(parent, &[14, 16]), system: ticks(parent, &[15, 17]) } + living.sum()
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
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Strace { child, report })
    }

    /// Detaches; the calls counted, by name.
    pub fn finish(mut self) -> io::Result<Vec<(String, u64)>> {
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
fn parse(report: &str) -> Vec<(String, u64)> {
    let call = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let name = *fields.last()?;
        let calls = fields.get(3)?.parse().ok()?;
        (name != "total" && fields[0].parse::<f64>().is_ok()).then(|| (name.to_owned(), calls))
    };
    let mut calls: Vec<_> = report.lines().filter_map(call).collect();
    calls.sort_by_key(|(_, calls)| std::cmp::Reverse(*calls));
    calls
}
