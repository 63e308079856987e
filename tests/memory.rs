//! Memory: pgweir stays within its container's, and no client suffers from that.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use support::wire::Wire;
use support::{LIMIT, Pgweir, wait_until};

/// What the container may have: less than the results that are asked for, and than `cache.max_bytes`.
const MEMORY: u64 = 256 << 20;

/// A control group of the test's own, with a limit of memory; gone with the test.
struct Group(PathBuf);

impl Group {
    /// `None` where the system does not let us make one.
    fn new() -> Option<Group> {
        let of_ours = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = of_ours.lines().find_map(|line| line.split_once(":memory:")).map_or("", |(_, path)| path);
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let places = [v1.join(own.trim_start_matches('/')), v1.to_owned(), "/sys/fs/cgroup".into()];
        places.iter().find_map(|place| {
            let group = Group(place.join(format!("pgweir-test-{}", std::process::id())));
            fs::create_dir(&group.0).ok()?;
            let limits = ["memory.limit_in_bytes", "memory.max"].map(|file| group.0.join(file));
            // Without swap, as containers mostly are.
            let _ = fs::write(group.0.join("memory.swap.max"), "0");
            let set = |file: &PathBuf| file.exists() && fs::write(file, MEMORY.to_string()).is_ok();
            limits.iter().any(set).then_some(group)
        })
    }

    /// How often the kernel has killed for want of memory.
    fn kills(&self) -> u64 {
        let told = ["memory.oom_control", "memory.events"].map(|file| fs::read_to_string(self.0.join(file)));
        let told = told.into_iter().flatten().collect::<String>();
        told.lines().find_map(|line| line.strip_prefix("oom_kill ")).map_or(0, |count| count.trim().parse().unwrap())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn results_that_do_not_fit_the_container_end_neither_pgweir_nor_a_client() {
    const CLIENTS: usize = 8;
    const READS: usize = 120;
    const SIZE: usize = 500_000;
    let group = Group::new();
    let builder = Pgweir::builder().cluster(support::cluster(), &[]).set("cache.enabled", true);
    let builder = builder.set("cache.invalidation", "writes").set("cache.max_bytes", "1GiB");
    let builder = builder.set("cache.max_entries", 100_000).set("pool.max", CLIENTS as i64);
    let builder = match &group {
        Some(group) => builder.in_group(&group.0),
        None => {
            println!("the system lets us make no control group: held to memory.limit alone");
            builder.set("memory.limit", "256MiB")
        }
    };
    let pgweir = builder.start();
    assert_eq!(pgweir.json("/stats")["memory"]["total"].as_u64() == Some(MEMORY), group.is_some());
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let pgweir = &pgweir;
            scope.spawn(move || {
                let mut wire = Wire::connect(pgweir.port());
                // What comes once only is not kept.
                for read in (0..READS).flat_map(|read| [read, read]) {
                    let answer = wire.value(&format!("SELECT repeat('{client}', {SIZE}) || '{read}'"));
                    assert_eq!(answer.len(), SIZE + read.to_string().len());
                    assert!(answer.ends_with(&read.to_string()) && answer.starts_with(&client.to_string()));
                }
            });
        }
    });
    let cache = pgweir.cache();
    println!("kept {} bytes, evicted {}, memory {}", cache["bytes"], cache["evicted"], pgweir.json("/stats")["memory"]);
    assert!(cache["evicted"].as_u64() > Some(0), "{cache}");
    assert_eq!(group.as_ref().map_or(0, Group::kills), 0);
    // What is freed need not go back to the system, and then the cache gives back all that it has.
    let measured = if group.is_some() { "used" } else { "resident" };
    let calm = || pgweir.json("/stats")["memory"][measured].as_u64() < Some(MEMORY / 10 * 8);
    wait_until(LIMIT, "memory below the threshold, or an empty cache", || calm() || pgweir.cache()["bytes"] == 0);
    drop(pgweir);
}
