//! Two pgweirs and the store that they share, against a naive model: commits are written, seen and told to each at their own times,
//! entries are stored late and found late, and streams begin anew. No answer lacks what was told to who gives it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::cache::changes::{Change, Reads, Table};
use crate::cache::entry::{Entry, Needs};
use crate::cache::results::{Asked, DatabaseId, Fill, Invalidation, Limits, MOST_BEHIND, Results, Wanted};
use crate::freshness::Lsn;

#[derive(Debug, Clone)]
enum Step {
    /// A transaction that changes these tables is in the WAL.
    Commit {
        tables: Vec<u32>,
    },
    /// The primary shows one commit more.
    Show,
    /// … to that pgweir, by its stream.
    Tell,
    /// … but in several announcements, of which this is the first.
    TellPart,
    /// All up to the last that was told has been.
    Reach,
    /// It looks at what the primary shows.
    Look,
    /// It has been told of all that was shown when it last looked.
    Catch,
    /// A session of it wrote the last commit shown, and is told so.
    Write,
    /// `wrote`: by a session whose last write is the last commit shown.
    Ask {
        key: u8,
        wrote: bool,
    },
    /// What the store had comes.
    Find,
    /// A read that ran ends; its result goes to the store.
    Land {
        stored: bool,
    },
    Wait,
    /// The stream begins anew.
    Break,
}

fn step() -> impl Strategy<Value = (usize, Step)> {
    let step = prop_oneof![
        3 => prop::collection::vec(0u32..3, 0..3).prop_map(|tables| Step::Commit { tables }),
        4 => Just(Step::Show),
        5 => Just(Step::Tell),
        2 => Just(Step::TellPart),
        3 => Just(Step::Reach),
        4 => Just(Step::Look),
        5 => Just(Step::Catch),
        1 => Just(Step::Write),
        12 => (0u8..4, prop::bool::weighted(0.2)).prop_map(|(key, wrote)| Step::Ask { key, wrote }),
        6 => Just(Step::Find),
        6 => prop::bool::weighted(0.8).prop_map(|stored| Step::Land { stored }),
        1 => Just(Step::Wait),
        1 => Just(Step::Break),
    ];
    (0usize..2, step)
}

/// Key 3 reads two tables.
fn reads(key: u8) -> Vec<Table> {
    if key == 3 { vec![Table(0), Table(1)] } else { vec![Table(u32::from(key))] }
}

/// Of each of its tables the number of the last commit among the first `commits` that changed it.
fn result(log: &[Vec<u32>], key: u8, commits: usize) -> Vec<u8> {
    let last = |table: &Table| log[..commits].iter().rposition(|tables| tables.contains(&table.0)).map_or(0, |n| n + 1);
    reads(key).iter().map(|table| last(table) as u8).collect()
}

fn lsn(commits: usize) -> Lsn {
    Lsn(10 * (commits as u64 + 1))
}

fn entry(result: &[u8]) -> Entry {
    Entry::new(&[], &[], result, 0)
}

/// One read of a pgweir that is not answered yet.
struct Open {
    key: u8,
    fill: Fill,
    /// Of its session's own writes.
    own: usize,
    /// What the store had; `None`: the read runs, and sees so many commits.
    found: Option<(Entry, Lsn)>,
    read: usize,
}

struct Pgweir {
    results: Arc<Results>,
    database: DatabaseId,
    told: usize,
    looked: (usize, Instant),
    /// Everything that was shown by then has been told.
    caught: Instant,
    /// Of each table the last commit whose writer it has told that it is done.
    noted: [usize; 3],
    open: Vec<Open>,
}

impl Pgweir {
    fn new(now: Instant) -> Pgweir {
        let results = Arc::new(Results::new(Limits { max_entries: 9, max_bytes: 9000, max_entry_bytes: 800 }));
        let database = results.add_database(now);
        let mut pgweir =
            Pgweir { results, database, told: 0, looked: (0, now), caught: now, noted: [0; 3], open: Vec::new() };
        pgweir.begin(0, now);
        pgweir
    }

    /// All that is in the WAL is shown, and told or gone by.
    fn begin(&mut self, shown: usize, now: Instant) {
        self.results.close(self.database, now);
        (self.told, self.looked, self.caught) = (shown, (shown, now), now);
        self.results.open_stream(self.database, lsn(shown), lsn(shown), now);
    }

    /// It is the result of some moment, and lacks nothing of what was told, nor of what its session or others wrote here.
    fn is_right(&self, log: &[Vec<u32>], key: u8, own: usize, found: &Entry) -> bool {
        let noted = || reads(key).into_iter().map(|table| self.noted[table.0 as usize]);
        let has_noted = |result: &[u8]| noted().zip(result).all(|(noted, has)| usize::from(*has) >= noted);
        let mut moments = (self.told.max(own)..=log.len()).map(|commits| result(log, key, commits));
        moments.any(|result| *found == entry(&result) && has_noted(&result))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn no_shared_answer_lacks_what_was_told_nor_what_was_written(steps in prop::collection::vec(step(), 1..150)) {
        let mut now = Instant::now();
        let mut pgweirs = [Pgweir::new(now), Pgweir::new(now)];
        let mut store: HashMap<u8, (Entry, Lsn)> = HashMap::new();
        let (mut log, mut shown): (Vec<Vec<u32>>, usize) = (Vec::new(), 0);
        for (who, step) in steps {
            now += Duration::from_millis(1);
            let pgweir = &mut pgweirs[who];
            let Pgweir { results, database, .. } = pgweir;
            let (results, database) = (results.clone(), *database);
            match step {
                Step::Commit { tables } if log.len() < 200 => log.push(tables),
                Step::Show => shown = (shown + 1).min(log.len()),
                Step::Tell if pgweir.told < log.len() => {
                    let tables: Vec<_> = log[pgweir.told].iter().copied().map(Table).collect();
                    pgweir.told += 1;
                    results.commit(database, Change::Tables(&tables), lsn(pgweir.told));
                }
                Step::TellPart if pgweir.told < log.len() => {
                    let first: Vec<_> = log[pgweir.told].iter().take(1).copied().map(Table).collect();
                    results.commit(database, Change::Tables(&first), lsn(pgweir.told + 1));
                }
                Step::Reach => results.note_reached(database, lsn(pgweir.told)),
                Step::Look => {
                    pgweir.looked = (shown, now);
                    results.note_visible(database, lsn(shown.min(pgweir.told)));
                }
                Step::Catch if pgweir.told >= pgweir.looked.0 => {
                    results.note_visible(database, lsn(pgweir.looked.0));
                    results.note_told(database, pgweir.looked.1);
                    pgweir.caught = pgweir.looked.1;
                }
                Step::Write if shown > 0 => {
                    let tables: Vec<_> = log[shown - 1].iter().copied().map(Table).collect();
                    results.change(database, Change::Tables(&tables), Invalidation::Write, now);
                    tables.iter().for_each(|table| pgweir.noted[table.0 as usize] = shown);
                }
                Step::Ask { key, wrote } => {
                    let (own, after) = if wrote { (shown, Some(now)) } else { (0, None) };
                    let wanted = Wanted {
                        database,
                        key: &[key],
                        needs: Needs::default(),
                        brings: Needs::default(),
                        reads: Reads::Tables(reads(key).into()),
                        stale: Duration::ZERO,
                        ttl: Duration::from_secs(5),
                        after,
                    };
                    match results.ask(&wanted, now) {
                        Asked::Hit(found, _) => {
                            prop_assert!(pgweir.is_right(&log, key, own, &found), "{found:?}");
                            prop_assert!(now - pgweir.caught <= MOST_BEHIND);
                        }
                        Asked::Fill(fill) => {
                            let found = store.get(&key).cloned().filter(|_| fill.shared_tables().is_some());
                            pgweir.open.push(Open { key, fill, own, found, read: shown });
                        }
                        Asked::Stale(..) => prop_assert!(false, "no rule allows it"),
                        Asked::Wait(_) | Asked::Closed => {}
                    }
                }
                Step::Find => {
                    let Some(at) = pgweir.open.iter().position(|open| open.found.is_some()) else { continue };
                    let mut open = pgweir.open.remove(at);
                    let Some((found, as_of)) = open.found.take() else { continue };
                    match open.fill.adopt(found, as_of, Duration::from_millis(1), now) {
                        Ok(found) => {
                            prop_assert!(pgweir.is_right(&log, open.key, open.own, &found), "{found:?}");
                            prop_assert!(now - pgweir.caught <= MOST_BEHIND);
                        }
                        // It runs now.
                        Err(refused) => pgweir.open.push(Open { fill: refused.0, read: shown, ..open }),
                    }
                }
                Step::Land { stored } => {
                    let Some(at) = pgweir.open.iter().position(|open| open.found.is_none()) else { continue };
                    let Open { key, fill, read, .. } = pgweir.open.remove(at);
                    if let Ok(Some(landed)) = fill.land(entry(&result(&log, key, read))) && stored {
                        store.insert(key, ((*landed.entry).clone(), landed.as_of));
                    }
                }
                Step::Wait => now += Duration::from_millis(600),
                Step::Break => {
                    shown = log.len();
                    pgweir.begin(shown, now);
                }
                Step::Commit { .. } | Step::Tell | Step::TellPart | Step::Catch | Step::Write => {}
            }
            results.check();
        }
    }
}
