//! What the process costs, against what its container may use: from /proc and the control group (v2, v1).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Ticks a second in /proc/self/stat: USER_HZ, which Linux fixes at 100 for user space.
const USER_HZ: f64 = 100.0;

/// Usage over a shorter time would be noise, at ticks of 10 ms.
const SHORTEST: Duration = Duration::from_secs(1);

/// Limits at and above this are the kernel's way of saying "none" in control groups v1.
const UNLIMITED: u64 = 1 << 60;

/// Samples the process.
#[derive(Debug)]
pub struct Process {
    start: Instant,
    proc: PathBuf,
    cgroup: PathBuf,
    last: Mutex<Last>,
}

#[derive(Debug)]
struct Last {
    at: Instant,
    ticks: u64,
    usage: f64,
}

/// One look at the process. What the system does not tell is 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    pub uptime: Duration,
    /// Percent of the CPU time that the container may use, since the sample before (a second ago or more).
    pub cpu: f64,
    /// CPUs that the container may use.
    pub cpus: f64,
    /// Over 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// Bytes of the container's limit, or of the machine.
    pub memory_total: u64,
    /// Bytes of the container (page cache that can be dropped left out), or of the machine.
    pub memory_used: u64,
    /// The limit is the container's.
    pub contained: bool,
    /// Bytes of this process.
    pub resident: u64,
}

impl Usage {
    /// Bytes left below the limit.
    pub fn memory_free(&self) -> u64 {
        self.memory_total.saturating_sub(self.memory_used)
    }
}

impl Process {
    /// A sampler for this process, started at `now`.
    pub fn new(now: Instant) -> Process {
        Process::under(Path::new("/proc"), Path::new("/sys/fs/cgroup"), now)
    }

    fn under(proc: &Path, cgroup: &Path, now: Instant) -> Process {
        let last = Last { at: now, ticks: cpu_ticks(proc), usage: 0.0 };
        Process { start: now, proc: proc.into(), cgroup: cgroup.into(), last: Mutex::new(last) }
    }

    /// Reads a handful of small files.
    pub fn usage(&self, now: Instant) -> Usage {
        let group = Group::of(&self.proc, &self.cgroup);
        let allowed = allowed_cpus(&self.proc);
        let cpus = group.cpus().map_or(allowed, |quota| quota.min(allowed));
        let (machine_total, machine_used) = machine_memory(&self.proc);
        let limit = group.memory_limit().filter(|limit| *limit < machine_total);
        let (memory_total, memory_used) = match limit {
            Some(limit) => (limit, group.memory_used().unwrap_or(0)),
            None => (machine_total, machine_used),
        };
        Usage {
            uptime: now.saturating_duration_since(self.start),
            cpu: self.cpu(now, cpus),
            cpus,
            load: load(&self.proc),
            memory_total,
            memory_used,
            contained: limit.is_some(),
            resident: kibibytes(&self.proc.join("self/status"), "VmRSS:").unwrap_or(0),
        }
    }

    /// Several readers share one figure, however often each of them asks.
    fn cpu(&self, now: Instant, cpus: f64) -> f64 {
        let mut last = self.last.lock();
        let elapsed = now.saturating_duration_since(last.at);
        if elapsed >= SHORTEST {
            let ticks = cpu_ticks(&self.proc);
            let used = ticks.saturating_sub(last.ticks) as f64 / USER_HZ;
            last.usage = 100.0 * used / (elapsed.as_secs_f64() * cpus);
            (last.at, last.ticks) = (now, ticks);
        }
        last.usage
    }
}

/// utime + stime: fields 14 and 15 of proc_pid_stat(5), counted behind the command's closing parenthesis.
fn cpu_ticks(proc: &Path) -> u64 {
    let stat = fs::read_to_string(proc.join("self/stat")).unwrap_or_default();
    let Some((_, fields)) = stat.rsplit_once(')') else {
        return 0;
    };
    fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

fn load(proc: &Path) -> [f64; 3] {
    let text = fs::read_to_string(proc.join("loadavg")).unwrap_or_default();
    let mut load = [0.0; 3];
    for (slot, field) in load.iter_mut().zip(text.split_whitespace()) {
        *slot = field.parse().unwrap_or(0.0);
    }
    load
}

/// CPUs that the process may run on. `available_parallelism` would not do: it rounds the quota to whole CPUs.
fn allowed_cpus(proc: &Path) -> f64 {
    let status = fs::read_to_string(proc.join("self/status")).unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.and_then(cpus_in).unwrap_or_else(|| std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64))
}

/// How many a list such as `0-3,7` has; `None`: it is no such list.
fn cpus_in(list: &str) -> Option<f64> {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        Some(f64::from(last.checked_sub(first)?) + 1.0)
    };
    list.trim().split(',').map(range).sum()
}

/// (total, used) bytes.
fn machine_memory(proc: &Path) -> (u64, u64) {
    let meminfo = proc.join("meminfo");
    let total = kibibytes(&meminfo, "MemTotal:").unwrap_or(0);
    let available = kibibytes(&meminfo, "MemAvailable:").unwrap_or(0);
    (total, total.saturating_sub(available))
}

/// The value, in bytes, of a line `name   12 kB`.
fn kibibytes(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// The directories of this process's control groups and their ancestors, innermost first. Within a container the
/// path that /proc tells may not exist, as the group is mounted at the root.
struct Group {
    version2: bool,
    cpu: Vec<PathBuf>,
    memory: Vec<PathBuf>,
}

impl Group {
    fn of(proc: &Path, root: &Path) -> Group {
        let text = fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
        if root.join("cgroup.controllers").exists() {
            let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
            let dirs = ancestors(root, path);
            return Group { version2: true, cpu: dirs.clone(), memory: dirs };
        }
        let of = |controller: &str| {
            let path = text.lines().find_map(|line| {
                let (_, line) = line.split_once(':')?;
                let (controllers, path) = line.split_once(':')?;
                controllers.split(',').any(|name| name == controller).then_some(path)
            });
            ancestors(&root.join(controller), path.unwrap_or("/"))
        };
        Group { version2: false, cpu: of("cpu"), memory: of("memory") }
    }

    /// CPUs of the tightest quota; `None`: no quota.
    fn cpus(&self) -> Option<f64> {
        let quota = |dir: &PathBuf| {
            let (quota, period) = if self.version2 {
                let text = fs::read_to_string(dir.join("cpu.max")).ok()?;
                let (quota, period) = text.trim().split_once(' ')?;
                (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?)
            } else {
                (number(&dir.join("cpu.cfs_quota_us"))?, number(&dir.join("cpu.cfs_period_us"))?)
            };
            (quota > 0.0 && period > 0.0).then_some(quota / period)
        };
        self.cpu.iter().filter_map(quota).min_by(f64::total_cmp)
    }

    /// Bytes of the tightest limit; `None`: no limit.
    fn memory_limit(&self) -> Option<u64> {
        let file = if self.version2 { "memory.max" } else { "memory.limit_in_bytes" };
        let limits = self.memory.iter().filter_map(|dir| number::<u64>(&dir.join(file)));
        limits.filter(|limit| *limit < UNLIMITED).min()
    }

    /// Bytes in use without inactive page cache: the "working set" by which Kubernetes evicts.
    fn memory_used(&self) -> Option<u64> {
        let (file, inactive) = if self.version2 {
            ("memory.current", "inactive_file ")
        } else {
            ("memory.usage_in_bytes", "total_inactive_file ")
        };
        self.memory.iter().find_map(|dir| {
            let used: u64 = number(&dir.join(file))?;
            let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
            let inactive = stat.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse().ok());
            Some(used.saturating_sub(inactive.unwrap_or(0)))
        })
    }
}

fn ancestors(root: &Path, path: &str) -> Vec<PathBuf> {
    let innermost = root.join(path.trim_matches('/'));
    innermost.ancestors().take_while(|dir| dir.starts_with(root)).map(Path::to_path_buf).collect()
}

fn number<N: std::str::FromStr>(file: &Path) -> Option<N> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A made-up /proc and /sys/fs/cgroup.
    struct System(PathBuf);

    impl System {
        fn new(name: &str) -> System {
            let root = std::env::temp_dir().join(format!("pgweir-proc-{}-{name}", std::process::id()));
            let system = System(root);
            system.write("proc/self/stat", "42 (a b) c) S 1 1 1 0 -1 4194560 1 0 0 0 100 50 0 0 20 0 9");
            system.write("proc/self/status", "Name:\tpgweir\nVmRSS:\t    2048 kB\nCpus_allowed_list:\t0-2,7\n");
            system.write("proc/loadavg", "1.20 1.50 1.80 1/92 11963\n");
            system.write("proc/meminfo", "MemTotal: 4096 kB\nMemFree: 1 kB\nMemAvailable: 1024 kB\n");
            system
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn process(&self, now: Instant) -> Process {
            Process::under(&self.0.join("proc"), &self.0.join("cgroup"), now)
        }
    }

    impl Drop for System {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn version_2_with_limits() {
        let system = System::new("v2");
        system.write("proc/self/cgroup", "0::/pod/pgweir\n");
        system.write("cgroup/cgroup.controllers", "cpu memory\n");
        system.write("cgroup/pod/cpu.max", "50000 100000\n");
        system.write("cgroup/pod/pgweir/cpu.max", "max 100000\n");
        system.write("cgroup/pod/pgweir/memory.max", "1048576\n");
        system.write("cgroup/pod/pgweir/memory.current", "700000\n");
        system.write("cgroup/pod/pgweir/memory.stat", "anon 1\ninactive_file 200000\n");
        let start = Instant::now();
        let process = system.process(start);
        system.write("proc/self/stat", "42 (a b) c) S 1 1 1 0 -1 4194560 1 0 0 0 120 55 0 0 20 0 9");
        let usage = process.usage(start + Duration::from_secs(1));
        // 25 ticks are 0.25 s of the half second that half a CPU has
        assert_eq!((usage.cpus, usage.cpu), (0.5, 50.0));
        assert_eq!((usage.memory_total, usage.memory_used), (1_048_576, 500_000));
        assert_eq!((usage.memory_free(), usage.resident), (548_576, 2_097_152));
        assert_eq!(usage.load, [1.2, 1.5, 1.8]);
        assert_eq!(usage.uptime, Duration::from_secs(1));
    }

    #[test]
    fn a_quota_is_taken_as_it_is_and_bound_by_affinity() {
        let system = System::new("quota");
        system.write("proc/self/cgroup", "0::/\n");
        system.write("cgroup/cgroup.controllers", "cpu\n");
        let start = Instant::now();
        let cpus = |quota: &str| {
            system.write("cgroup/cpu.max", quota);
            system.process(start).usage(start).cpus
        };
        assert_eq!((cpus("150000 100000\n"), cpus("350000 100000\n")), (1.5, 3.5));
        assert_eq!((cpus("800000 100000\n"), cpus("max 100000\n")), (4.0, 4.0));
        for (list, count) in [("\t0\n", Some(1.0)), (" 0-1,4-7,9", Some(7.0)), ("", None), ("3-1", None)] {
            assert_eq!(cpus_in(list), count, "{list:?}");
        }
    }

    #[test]
    fn version_1_without_limits_shows_the_machine() {
        let system = System::new("v1");
        system.write("proc/self/cgroup", "4:memory:/docker/x\n2:cpu,cpuacct:/\n");
        system.write("cgroup/cpu/cpu.cfs_quota_us", "-1\n");
        system.write("cgroup/cpu/cpu.cfs_period_us", "100000\n");
        system.write("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        let start = Instant::now();
        let usage = system.process(start).usage(start);
        assert_eq!(usage.cpus, 4.0);
        assert_eq!((usage.memory_total, usage.memory_used), (4096 * 1024, 3072 * 1024));
    }

    #[test]
    fn version_1_limits_by_the_controllers_path() {
        let system = System::new("v1-limits");
        system.write("proc/self/cgroup", "4:memory:/docker/x\n2:cpu,cpuacct:/docker/x\n");
        system.write("cgroup/cpu/docker/x/cpu.cfs_quota_us", "25000\n");
        system.write("cgroup/cpu/docker/x/cpu.cfs_period_us", "100000\n");
        system.write("cgroup/memory/docker/x/memory.limit_in_bytes", "2097152\n");
        system.write("cgroup/memory/docker/x/memory.usage_in_bytes", "1000000\n");
        system.write("cgroup/memory/docker/x/memory.stat", "total_inactive_file 400000\n");
        let start = Instant::now();
        let usage = system.process(start).usage(start);
        assert_eq!(usage.cpus, 0.25);
        assert_eq!((usage.memory_total, usage.memory_used), (2_097_152, 600_000));
    }

    #[test]
    fn frequent_readers_share_one_cpu_figure() {
        let system = System::new("shared");
        let start = Instant::now();
        let process = system.process(start);
        system.write("proc/self/stat", "42 (x) S 1 1 1 0 -1 4194560 1 0 0 0 200 50 0 0 20 0 9");
        assert_eq!(process.usage(start + Duration::from_millis(999)).cpu, 0.0);
        let figure = process.usage(start + Duration::from_secs(2)).cpu;
        assert!(figure > 0.0);
        assert_eq!(process.usage(start + Duration::from_millis(2_001)).cpu, figure);
    }

    #[test]
    fn a_system_that_tells_nothing_gives_zeros() {
        let start = Instant::now();
        let nowhere = Path::new("/nonexistent");
        let usage = Process::under(nowhere, nowhere, start).usage(start + Duration::from_secs(5));
        assert_eq!((usage.cpu, usage.memory_total, usage.resident), (0.0, 0, 0));
    }

    #[test]
    fn the_real_system_is_read() {
        let start = Instant::now();
        let usage = Process::new(start).usage(start);
        assert!(usage.memory_total > 0 && usage.resident > 0 && usage.cpus > 0.0, "{usage:?}");
    }
}
