//! What "auto" stands for: the CPUs and the memory that this process may use.

use std::path::{Path, PathBuf};

/// The share of the machine that this process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Container {
    /// At least 1.
    pub cpus: usize,
    /// Bytes.
    pub memory: u64,
}

impl Container {
    /// Used where the machine is not to be asked, or does not say: one CPU and 256 MiB.
    pub const SMALLEST: Container = Container { cpus: 1, memory: 256 << 20 };

    /// Asks the kernel: CPU affinity and cgroup quota, cgroup memory limit and the machine's memory.
    #[must_use]
    pub fn detect() -> Container {
        let fallback = std::thread::available_parallelism().map_or(1, usize::from);
        Container::from_files(&|path| std::fs::read_to_string(path).ok(), fallback)
    }

    /// [`Container::detect`] over any reader of files; `cpus` is taken when the affinity cannot be read.
    ///
    /// The affinity is read here because `available_parallelism` rounds a quota down, and one and a half CPUs
    /// are better used by two workers.
    fn from_files(read: &dyn Fn(&Path) -> Option<String>, cpus: usize) -> Container {
        let status = read(Path::new("/proc/self/status"));
        let allowed = status.and_then(|s| count_cpus(field(&s, "Cpus_allowed_list:")?)).unwrap_or(cpus);
        let total = read(Path::new("/proc/meminfo")).and_then(|s| kilobytes(field(&s, "MemTotal:")?));

        let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
        let quota = cpu_quota(&groups, read).unwrap_or(usize::MAX);
        let limit = memory_limit(&groups, read).unwrap_or(u64::MAX);
        let memory = limit.min(total.unwrap_or(u64::MAX));
        Container {
            cpus: allowed.min(quota).max(1),
            memory: if memory == u64::MAX { Container::SMALLEST.memory } else { memory },
        }
    }
}

/// The least quota of the process's group and of the groups around it, in whole CPUs, rounded up.
fn cpu_quota(groups: &str, read: &dyn Fn(&Path) -> Option<String>) -> Option<usize> {
    let unified = group_dirs(groups, "").into_iter().filter_map(|dir| {
        let text = read(&dir.join("cpu.max"))?;
        let (quota, period) = text.trim().split_once(' ')?;
        whole_cpus(quota, period)
    });
    let legacy = group_dirs(groups, "cpu").into_iter().filter_map(|dir| {
        let quota = read(&dir.join("cpu.cfs_quota_us"))?;
        whole_cpus(quota.trim(), read(&dir.join("cpu.cfs_period_us"))?.trim())
    });
    unified.chain(legacy).min()
}

/// "max" (cgroup v2) and -1 (v1) are no quota, and no number here.
fn whole_cpus(quota: &str, period: &str) -> Option<usize> {
    let (quota, period) = (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?);
    if period == 0 {
        return None;
    }
    usize::try_from(quota.div_ceil(period)).ok()
}

/// The least memory limit of the process's group and of the groups around it, in bytes.
fn memory_limit(groups: &str, read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let unified = group_dirs(groups, "").into_iter().map(|dir| dir.join("memory.max"));
    let legacy = group_dirs(groups, "memory").into_iter().map(|dir| dir.join("memory.limit_in_bytes"));
    unified.chain(legacy).filter_map(|file| read(&file)?.trim().parse::<u64>().ok()).filter(|&limit| limit > 0).min()
}

/// The directories of the process's group and of its ancestors, for a v1 controller, or for v2 (`""`).
///
/// The path in /proc/self/cgroup may be the host's while only the container's part is mounted; walking up to the
/// mount's root finds the limit in both cases.
fn group_dirs(groups: &str, controller: &str) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        if !controllers.split(',').any(|c| c == controller) {
            continue;
        }
        let root = Path::new("/sys/fs/cgroup");
        let mounts = match controller {
            "" => vec![root.to_owned(), root.join("unified")],
            _ => vec![root.join(controllers), root.join(controller)],
        };
        for mount in mounts {
            dirs.extend(Path::new(path.trim_start_matches('/')).ancestors().map(|group| mount.join(group)));
        }
    }
    dirs
}

fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Counts a kernel CPU list such as `0-3,8`.
fn count_cpus(list: &str) -> Option<usize> {
    let mut count = 0usize;
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        count = count.checked_add(last.checked_sub(first)?)?.checked_add(1)?;
    }
    Some(count)
}

fn kilobytes(text: &str) -> Option<u64> {
    text.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(files: &[(&str, &str)]) -> Container {
        let read =
            |path: &Path| files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned());
        Container::from_files(&read, 7)
    }

    const MACHINE: [(&str, &str); 2] = [
        ("/proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-3,8\n"),
        ("/proc/meminfo", "MemTotal:        2097152 kB\nMemFree: 1 kB\n"),
    ];

    fn with(files: &[(&'static str, &'static str)]) -> Container {
        container(&[&MACHINE, files].concat())
    }

    #[test]
    fn without_a_container_it_is_the_machine() {
        assert_eq!(with(&[]), Container { cpus: 5, memory: 2 << 30 });
        assert_eq!(container(&[]), Container { cpus: 7, memory: 256 << 20 });
    }

    #[test]
    fn cgroup_v2_rounds_a_quota_up() {
        let found = with(&[
            ("/proc/self/cgroup", "0::/\n"),
            ("/sys/fs/cgroup/cpu.max", "150000 100000\n"),
            ("/sys/fs/cgroup/memory.max", "268435456\n"),
        ]);
        assert_eq!(found, Container { cpus: 2, memory: 256 << 20 });
    }

    #[test]
    fn cgroup_v2_without_limits() {
        let found = with(&[
            ("/proc/self/cgroup", "0::/\n"),
            ("/sys/fs/cgroup/cpu.max", "max 100000\n"),
            ("/sys/fs/cgroup/memory.max", "max\n"),
        ]);
        assert_eq!(found, Container { cpus: 5, memory: 2 << 30 });
    }

    #[test]
    fn the_tightest_group_counts() {
        let found = with(&[
            ("/proc/self/cgroup", "0::/kubepods/pod1/app\n"),
            ("/sys/fs/cgroup/kubepods/pod1/app/cpu.max", "400000 100000\n"),
            ("/sys/fs/cgroup/kubepods/pod1/cpu.max", "20000 100000\n"),
            ("/sys/fs/cgroup/kubepods/memory.max", "1048576\n"),
        ]);
        assert_eq!(found, Container { cpus: 1, memory: 1 << 20 });
    }

    #[test]
    fn cgroup_v1_mounted_at_the_containers_own_root() {
        let found = with(&[
            ("/proc/self/cgroup", "5:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "250000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "134217728\n"),
        ]);
        assert_eq!(found, Container { cpus: 3, memory: 128 << 20 });
    }

    #[test]
    fn cgroup_v1_without_limits() {
        let found = with(&[
            ("/proc/self/cgroup", "5:memory:/\n4:cpu:/\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(found, Container { cpus: 5, memory: 2 << 30 });
    }

    #[test]
    fn detection_gives_usable_values() {
        let here = Container::detect();
        assert!(here.cpus >= 1 && here.memory > 0);
    }
}
