//! A client cannot tell: random programs of two clients, interleaved through pgweir on shared connections, and each
//! alone directly at Postgres. Every message that comes back must be the same.
//!
//! `DIFFERENTIAL_PROGRAMS=5000` runs more; `DIFFERENTIAL_SEED=17` runs that seed alone.

mod support;
#[path = "differential/program.rs"]
mod program;
#[path = "differential/random.rs"]
mod random;
#[path = "differential/run.rs"]
mod run;
#[path = "differential/statements.rs"]
mod statements;

use run::Bench;

/// Those that once found a fault that the others do not.
const FOUND: [u64; 9] = [217, 248, 331, 426, 657, 660, 1_000_121, 1_000_215, 1_000_299];

/// Pairs of programs for each mode; twice as many programs.
const PAIRS: u64 = 100;

fn seeds(first: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    match number("DIFFERENTIAL_SEED") {
        Some(seed) => vec![seed],
        None => {
            let count = number("DIFFERENTIAL_PROGRAMS").map_or(PAIRS, |n| n.div_ceil(4));
            FOUND.into_iter().chain(first..first + count).collect()
        }
    }
}

/// Connections are shared, and change hands at every chance.
#[test]
fn two_clients_on_shared_connections() {
    let bench = Bench::start("primary", &[], false);
    bench.compare(seeds(1));
}

/// Reads go to replicas, and still see all that the session wrote.
#[test]
fn two_clients_with_replicas() {
    let bench = Bench::start("replicas", &[1, 2], false);
    bench.compare(seeds(1_000_001));
}

/// Clients who read the same again, as whom and however they are then, have it from memory where it is.
#[test]
fn two_clients_and_what_is_kept_of_their_reads() {
    let bench = Bench::start("cached", &[1], true);
    let seeds = seeds(2_000_001);
    let few = seeds.len().div_ceil(7);
    bench.compare(seeds.into_iter().rev().take(few));
    // One of them before each pair.
    let hits = bench.hits() - few as u64;
    println!("{hits} answers from memory");
    assert!(few < 10 || hits > 20, "{hits}");
}
