//! The cache against a naive model: whatever is done in whatever order, an answer is never older than the last change
//! that was known when it was asked for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::cache::changes::{Change, Reads, Table};
use crate::cache::entry::{Entry, Needs};
use crate::cache::results::{Asked, DatabaseId, Fill, Invalidation, Limits, Results, Wanted};

#[derive(Debug, Clone)]
enum Step {
    /// A read of this key begins; a fill stays open until it is landed or dropped.
    Ask {
        key: u8,
        describes: bool,
    },
    /// The oldest open fill ends, with a result of so many bytes.
    Land {
        size: usize,
    },
    Drop,
    /// These tables change, or all.
    Change {
        tables: Vec<u32>,
        all: bool,
    },
    Wait {
        seconds: u64,
    },
    Close,
    Open,
    Shrink {
        bytes: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..8, any::<bool>()).prop_map(|(key, describes)| Step::Ask { key, describes }),
        4 => (0usize..900).prop_map(|size| Step::Land { size }),
        1 => Just(Step::Drop),
        2 => (prop::collection::vec(0u32..4, 0..3), prop::bool::weighted(0.1))
            .prop_map(|(tables, all)| Step::Change { tables, all }),
        1 => (1u64..6).prop_map(|seconds| Step::Wait { seconds }),
        1 => prop_oneof![Just(Step::Close), Just(Step::Open)],
        1 => (0u64..4000).prop_map(|bytes| Step::Shrink { bytes }),
    ]
}

/// What a read of this key depends on.
fn reads(key: u8) -> Reads {
    match key {
        0 => Reads::Tables([].into()),
        1..=3 => Reads::Tables([Table(u32::from(key))].into()),
        4..=6 => Reads::Tables([Table(0), Table(u32::from(key) - 3)].into()),
        _ => Reads::Anything,
    }
}

/// The world: each table has a version, and a result says which versions it was read at.
struct World {
    versions: [u8; 4],
    /// Counts the changes of all.
    all: u8,
    now: Instant,
    open: bool,
}

impl World {
    /// A read's result, if it runs now.
    fn result(&self, key: u8, size: usize, describes: bool) -> Entry {
        let mut row = vec![key, self.all];
        match reads(key) {
            Reads::Tables(tables) => row.extend(tables.iter().map(|table| self.versions[table.0 as usize])),
            Reads::Anything => row.extend(self.versions),
        }
        row.resize(row.len() + size, 0);
        Entry::new(&[], if describes { b"T" } else { b"" }, &row, 0)
    }

    /// It says the versions of now.
    fn is_current(&self, key: u8, entry: &Entry) -> bool {
        [false, true].into_iter().any(|describes| {
            let bare = self.result(key, 0, describes);
            entry.len() >= bare.len() && {
                let padded = self.result(key, entry.len() - bare.len(), describes);
                *entry == padded
            }
        })
    }
}

struct Open {
    key: u8,
    describes: bool,
    fill: Fill,
    /// As the server read it when it began.
    read: World,
}

const TTL: Duration = Duration::from_secs(5);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_answer_is_older_than_a_change_that_was_known(steps in prop::collection::vec(step(), 1..80)) {
        let results = Arc::new(Results::new(Limits { max_entries: 4, max_bytes: 4000, max_entry_bytes: 800 }));
        let mut world = World { versions: [0; 4], all: 0, now: Instant::now(), open: false };
        let database = results.add_database(world.now);
        // A neighbour's changes are none of ours, nor ours its.
        let neighbour = results.add_database(world.now);
        results.open(neighbour, world.now);
        let mut open: Vec<Open> = Vec::new();
        let mut stored_at: std::collections::HashMap<u8, Instant> = Default::default();
        for step in steps {
            match step {
                Step::Ask { key, describes } => match results.ask(&wanted(database, &[key], describes), world.now) {
                    Asked::Hit(entry, _) => {
                        prop_assert!(world.open && world.is_current(key, &entry));
                        prop_assert!(world.now < stored_at[&key] + TTL);
                        let needs = Needs { rows: describes, ..Needs::default() };
                        prop_assert!(entry.has(needs));
                    }
                    Asked::Fill(fill) => {
                        prop_assert!(world.open);
                        let read = World { ..world };
                        open.push(Open { key, describes, fill, read });
                    }
                    Asked::Wait(_) => {
                        // Some run of the same read that no change has made old.
                        let joined = open.iter().any(|o| {
                            o.key == key && world.is_current(key, &o.read.result(key, 0, false))
                        });
                        prop_assert!(world.open && joined);
                    }
                    Asked::Closed => prop_assert!(!world.open),
                },
                Step::Land { size } if !open.is_empty() => {
                    let Open { key, describes, fill, read } = open.remove(0);
                    if fill.land(read.result(key, size, describes)).is_ok() {
                        stored_at.insert(key, read.now);
                    }
                }
                Step::Drop if !open.is_empty() => drop(open.remove(0)),
                Step::Land { .. } | Step::Drop => {}
                Step::Change { tables, all } => {
                    let tables: Vec<_> = tables.into_iter().map(Table).collect();
                    tables.iter().for_each(|table| world.versions[table.0 as usize] += 1);
                    world.all += u8::from(all);
                    let change = if all { Change::All } else { Change::Tables(&tables) };
                    results.change(database, change, Invalidation::Stream, world.now);
                }
                Step::Wait { seconds } => world.now += Duration::from_secs(seconds),
                Step::Close => {
                    results.close(database, world.now);
                    // Nobody tells of this one.
                    world.versions[1] += 1;
                    world.open = false;
                }
                Step::Open => {
                    results.open(database, world.now);
                    world.open = true;
                }
                Step::Shrink { bytes } => {
                    results.shrink_to(bytes);
                    prop_assert!(results.bytes() <= bytes);
                }
            }
            results.check();
        }
    }
}

fn wanted(database: DatabaseId, key: &[u8], describes: bool) -> Wanted<'_> {
    let needs = Needs { rows: describes, ..Needs::default() };
    Wanted { database, key, needs, brings: needs, reads: reads(key[0]), ttl: TTL, after: None }
}
