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

const LIMITS: Limits = Limits { max_entries: 4, max_bytes: 4000, max_entry_bytes: 800 };
const TTL: Duration = Duration::from_secs(5);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_answer_is_older_than_a_change_that_was_known(steps in prop::collection::vec(step(), 1..80)) {
        let results = Arc::new(Results::new(LIMITS));
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
                    Asked::Stale(..) => prop_assert!(false, "no rule allows it"),
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
                    results.set_limits(Limits { max_bytes: bytes, ..LIMITS });
                    prop_assert!(results.bytes() <= bytes);
                    results.set_limits(LIMITS);
                }
            }
            results.check();
        }
    }
}

fn wanted(database: DatabaseId, key: &[u8], describes: bool) -> Wanted<'_> {
    let needs = Needs { rows: describes, ..Needs::default() };
    Wanted { database, key, needs, brings: needs, reads: reads(key[0]), ttl: TTL, stale: Duration::ZERO, after: None }
}

/// The same under a change stream: commits are written, told and seen each at their own time, and replicas replay them
/// at theirs.
mod streamed {
    use super::*;
    use crate::cache::MOST_BEHIND;
    use crate::freshness::{Lsn, Sample};

    #[derive(Debug, Clone)]
    enum Step {
        /// A transaction that changes these tables is in the WAL.
        Commit {
            tables: Vec<u32>,
        },
        /// The primary shows one commit more.
        Show,
        /// The stream tells of one commit more.
        Tell,
        /// The stream has looked at what the primary shows.
        Look,
        /// The stream has told of all that was shown when it last looked.
        Catch,
        Replay,
        /// The replica's position is asked for.
        Sample,
        /// `wrote`: by a session whose last write is the last commit shown.
        Ask {
            key: u8,
            replica: bool,
            wrote: bool,
        },
        Land,
        Wait,
        Break,
        /// The stream is lost, and for a while there is none.
        Lose,
        Resume,
        /// Somebody has other definitions.
        Define,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => prop::collection::vec(0u32..4, 0..3).prop_map(|tables| Step::Commit { tables }),
            4 => Just(Step::Show),
            4 => Just(Step::Tell),
            4 => Just(Step::Look),
            3 => Just(Step::Catch),
            3 => Just(Step::Replay),
            2 => Just(Step::Sample),
            9 => (0u8..7, any::<bool>(), any::<bool>())
                .prop_map(|(key, replica, wrote)| Step::Ask { key, replica, wrote }),
            5 => Just(Step::Land),
            1 => Just(Step::Wait),
            1 => Just(Step::Break),
            1 => Just(Step::Lose),
            1 => Just(Step::Resume),
            1 => Just(Step::Define),
        ]
    }

    /// Counts of commits: in the WAL, shown by the primary, and so on.
    #[derive(Default)]
    struct Counts {
        shown: usize,
        told: usize,
        looked: usize,
        replayed: usize,
    }

    struct Under {
        key: u8,
        fill: Fill,
        read: usize,
        definitions: usize,
    }

    /// What rules say of a key.
    fn stale(key: u8) -> Duration {
        Duration::from_millis(match key {
            2 | 5 => 20,
            3 => 3000,
            _ => 0,
        })
    }

    fn lsn(commits: usize) -> Lsn {
        Lsn(10 * (commits as u64 + 1))
    }

    /// Of each table the number of the last commit among the first `commits` that changed it.
    fn result(log: &[Vec<u32>], key: u8, commits: usize) -> Vec<usize> {
        let last =
            |table: &Table| log[..commits].iter().rposition(|tables| tables.contains(&table.0)).map_or(0, |n| n + 1);
        match reads(key) {
            Reads::Tables(tables) => tables.iter().map(last).collect(),
            Reads::Anything => unreachable!("of no key here"),
        }
    }

    fn entry(definitions: usize, result: &[usize]) -> Entry {
        let row = [definitions].iter().chain(result).map(|n| *n as u8).collect::<Vec<_>>();
        Entry::new(&[], &[], &row, 0)
    }

    /// It is what some read has brought that lacked none of the first `must` commits.
    fn has(log: &[Vec<u32>], key: u8, definitions: usize, must: usize, found: &Entry) -> bool {
        let least = result(log, key, must);
        let possible = (0..=log.len()).map(|commits| result(log, key, commits));
        let mut right = possible.filter(|found| found.iter().zip(&least).all(|(a, b)| a >= b));
        right.any(|right| *found == entry(definitions, &right))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]
        #[test]
        fn no_answer_lacks_what_was_told_nor_what_was_written(steps in prop::collection::vec(step(), 1..120)) {
            let results = Arc::new(Results::new(Limits { max_entries: 9, max_bytes: 9000, max_entry_bytes: 800 }));
            let mut now = Instant::now();
            let database = results.add_database(now);
            results.open_stream(database, lsn(0), lsn(0), now);
            let mut tick = || { now += Duration::from_millis(1); now };
            let mut log: Vec<Vec<u32>> = Vec::new();
            let mut at = Counts::default();
            // When each commit was shown: its writer is told then.
            let mut shown_at: Vec<Instant> = Vec::new();
            let (mut looked_at, mut caught) = (tick(), tick());
            let mut sample = Sample { asked: Some(tick()), position: lsn(0), proven: true, until: Some(tick()) };
            let mut under: Vec<Under> = Vec::new();
            let (mut definitions, mut lost) = (0, false);
            for step in steps {
                let now = tick();
                match step {
                    Step::Commit { tables } if log.len() < 200 => log.push(tables),
                    Step::Show if at.shown < log.len() => {
                        at.shown += 1;
                        shown_at.push(now);
                    }
                    Step::Tell if !lost && at.told < log.len() => {
                        at.told += 1;
                        let tables: Vec<_> = log[at.told - 1].iter().copied().map(Table).collect();
                        results.commit(database, Change::Tables(&tables), lsn(at.told));
                    }
                    Step::Look if !lost => {
                        (at.looked, looked_at) = (at.shown, now);
                        results.note_visible(database, lsn(at.looked.min(at.told)));
                    }
                    Step::Catch if !lost && at.told >= at.looked => {
                        results.note_visible(database, lsn(at.looked));
                        results.note_told(database, looked_at);
                        caught = looked_at;
                    }
                    Step::Replay => at.replayed = (at.replayed + 1).min(log.len()),
                    Step::Sample => {
                        // All that was shown when the primary was last looked at, if it has that.
                        let until = if at.replayed >= at.looked { Some(looked_at) } else { sample.until };
                        sample = Sample { asked: Some(now), position: lsn(at.replayed), proven: true, until };
                    }
                    Step::Ask { key, replica, wrote } => {
                        let own = at.shown.checked_sub(1).filter(|_| wrote);
                        let after = own.map(|n| shown_at[n]);
                        let key_bytes = [key];
                        let wanted = Wanted { after, stale: stale(key), ..wanted(database, &key_bytes, false) };
                        match if lost { results.left(&wanted, now) } else { results.ask(&wanted, now) } {
                            Asked::Stale(found, _) => {
                                // Whatever was shown so long ago is in it, and what its session wrote.
                                let by = now.checked_sub(stale(key)).unwrap();
                                let must = shown_at.partition_point(|shown| *shown <= by).max(own.map_or(0, |n| n + 1));
                                prop_assert!(has(&log, key, definitions, must, &found), "{found:?} {must}");
                                prop_assert!(!stale(key).is_zero());
                            }
                            Asked::Hit(found, _) => {
                                let must = at.told.max(own.map_or(0, |n| n + 1));
                                prop_assert!(!lost && has(&log, key, definitions, must, &found), "{found:?} {must}");
                                prop_assert!(after.is_none_or(|after| after < caught));
                                prop_assert!(now.saturating_duration_since(caught) <= MOST_BEHIND);
                            }
                            Asked::Fill(fill) => {
                                let read = if replica { at.replayed } else { at.shown };
                                if !replica || fill.may_come_from(&sample) {
                                    under.push(Under { key, fill, read, definitions });
                                }
                            }
                            Asked::Wait(_) => {
                                // As old as any answer may be.
                                let by = now.checked_sub(MOST_BEHIND.max(stale(key))).unwrap();
                                let must = shown_at.partition_point(|shown| *shown <= by);
                                let least = result(&log, key, must.max(own.map_or(0, |n| n + 1)));
                                // The last that began.
                                let joined = under.iter().rfind(|under| under.key == key);
                                let found = joined.map(|under| result(&log, key, under.read)).unwrap_or_default();
                                prop_assert!(found.iter().zip(&least).all(|(a, b)| a >= b));
                                prop_assert_eq!(joined.map(|under| under.definitions), Some(definitions));
                            }
                            Asked::Closed => {
                                prop_assert!(lost || now.saturating_duration_since(caught) > MOST_BEHIND);
                            }
                        }
                    }
                    Step::Land if !under.is_empty() => {
                        let Under { key, fill, read, definitions } = under.remove(0);
                        let _ = fill.land(entry(definitions, &result(&log, key, read)));
                    }
                    Step::Wait => drop((0..600).map(|_| tick()).last()),
                    Step::Define => {
                        definitions += 1;
                        results.change(database, Change::All, Invalidation::Definitions, now);
                    }
                    Step::Lose => {
                        lost = true;
                        results.close(database, now);
                    }
                    Step::Break | Step::Resume if lost || matches!(step, Step::Break) => {
                        // Made anew: all that is in the WAL was told or is gone by, and is shown.
                        results.close(database, now);
                        prop_assert!(matches!(results.ask(&wanted(database, &[1], false), now), Asked::Closed));
                        lost = false;
                        while at.shown < log.len() {
                            at.shown += 1;
                            shown_at.push(now);
                        }
                        at.told = log.len();
                        at.looked = log.len();
                        (looked_at, caught) = (tick(), now);
                        results.open_stream(database, lsn(log.len()), lsn(log.len()), caught);
                    }
                    Step::Commit { .. } | Step::Show | Step::Tell | Step::Look | Step::Catch | Step::Land => {}
                    Step::Break | Step::Resume => {}
                }
                results.check();
            }
        }
    }
}
