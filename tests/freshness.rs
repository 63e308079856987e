//! What sessions read after they and others have written, while replicas stall, die and return. A checker: writers raise the
//! versions of rows, readers note what they have seen, and no session may ever see less than it has seen or written.
//!
//! A standby may show a commit before the primary does, which shows it once it is flushed and, at the latest, when it is
//! acknowledged. So what a session has seen must be seen again from the moment at which its writer was told.
//!
//! `PGWEIR_FRESHNESS_SECONDS` and `PGWEIR_FRESHNESS_SEED` make it longer, and another.

mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pgweir::cache::MOST_BEHIND;
use pgweir::demo::cluster::{Cluster, Server, Shutdown};
use pgweir::demo::sample;
use support::random::{Random, number};
use support::sessions::{block_on, connect, sqlstate, value, wait_for};
use support::wire::{Frames, Wire};
use support::{Builder, Gate, LIMIT, Mode, Pgweir, logged, wait_until};
use tokio_postgres::Client;

const KEYS: i64 = 4;

fn start() -> Cluster {
    let cluster = Cluster::builder()
        .replicas(2)
        .setting("log_statement", "all")
        .setting("max_prepared_transactions", "5")
        .start()
        .unwrap();
    sample::install(cluster.primary()).unwrap();
    let tables = format!(
        "SET ROLE app; CREATE TABLE versions (key bigint PRIMARY KEY, version bigint NOT NULL); \
         INSERT INTO versions SELECT key, 0 FROM generate_series(0, {KEYS}) AS key; \
         CREATE FUNCTION raise_version(bigint) RETURNS bigint LANGUAGE sql AS \
         'UPDATE versions SET version = version + 1 WHERE key = $1 RETURNING version'"
    );
    cluster.primary().psql_in(sample::DATABASE, &tables).unwrap();
    cluster.wait_replayed(LIMIT).unwrap();
    cluster
}

/// A primary and two replicas, one test at a time, all of them up and level at its start.
fn cluster() -> MutexGuard<'static, Cluster> {
    static SHARED: OnceLock<Mutex<Cluster>> = OnceLock::new();
    let cluster = SHARED.get_or_init(|| Mutex::new(start())).lock().unwrap_or_else(PoisonError::into_inner);
    for server in cluster.servers() {
        server.resume();
        server.start().unwrap();
    }
    cluster.replicas().iter().for_each(go_on);
    cluster.wait_replayed(LIMIT).unwrap();
    cluster
}

fn stall(replica: &Server) {
    let _ = replica.psql("SELECT pg_wal_replay_pause()");
}

fn go_on(replica: &Server) {
    let _ = replica.psql("SELECT pg_wal_replay_resume()");
}

fn builder(cluster: &Cluster) -> Builder {
    Pgweir::builder()
        .cluster(cluster, &[1, 1])
        .set("routing.probe_interval", "200ms")
        .set("pool.connection_timeout", "500ms")
        .set("pool.acquire_timeout", "20s")
}

#[derive(Default)]
struct Counts {
    reads: AtomicUsize,
    writes: AtomicUsize,
    /// Ended by a fault that the schedule has caused; the session begins anew.
    broken: AtomicUsize,
    /// Versions seen and then not seen before they were acknowledged.
    early: AtomicUsize,
    /// As [`Told`].
    told: [AtomicI64; KEYS as usize + 1],
    /// Answers may be from memory: no older than everybody's must be, and not than what their session wrote.
    cached: bool,
    /// The versions of each key with the instants at which their writers were told, where all readers must see them.
    acknowledged: Option<[Mutex<Acknowledged>; KEYS as usize + 1]>,
}

type Acknowledged = Vec<(Instant, i64)>;

/// Of each key, the version that some writer has been told of.
type Told = [i64; KEYS as usize + 1];

/// One session's view: the version that each key must have at least. Whatever it sees raises that.
struct View<'a> {
    client: Client,
    least: HashMap<i64, i64>,
    counts: &'a Counts,
}

impl View<'_> {
    /// The row is at `version`, in a read or write that began when writers had been told of `told`, and everybody must see
    /// `due`.
    fn saw(&mut self, key: i64, version: i64, (told, due): (&Told, &Told), how: &str) -> Result<(), String> {
        if version < due[key as usize] {
            return Err(format!("{how}: key {key} is at {version}, and should be at {} by now", due[key as usize]));
        }
        let least = self.least.entry(key).or_default();
        if version >= *least {
            if !self.counts.cached || how == "write" {
                *least = version;
            }
            return Ok(());
        }
        if version >= told[key as usize] {
            self.counts.early.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        Err(format!("{how}: key {key} is at {version}, and the session has seen {least}"))
    }

    fn told(&self) -> Told {
        std::array::from_fn(|key| self.counts.told[key].load(Ordering::SeqCst))
    }

    /// Of each key, what was acknowledged longer ago than the change stream may be behind.
    fn due(&self) -> Told {
        let Some(acknowledged) = &self.counts.acknowledged else { return Told::default() };
        let now = Instant::now();
        let is_due = |(at, version): &(Instant, i64)| (*at + MOST_BEHIND < now).then_some(*version);
        std::array::from_fn(|key| acknowledged[key].lock().unwrap().iter().filter_map(is_due).max().unwrap_or_default())
    }

    /// A READ ONLY block sees no less than its session, and no less from statement to statement. `Ok(false)`: the session is
    /// broken.
    async fn read_in_block(&mut self, key: i64, repeatable: bool) -> Result<bool, String> {
        let (told, due) = (self.told(), self.due());
        let level = if repeatable { "REPEATABLE READ" } else { "READ COMMITTED" };
        let sql = format!("SELECT version FROM versions WHERE key = {key}");
        let mut versions = Vec::new();
        for text in [&format!("BEGIN ISOLATION LEVEL {level}, READ ONLY"), &sql, &sql, "COMMIT"] {
            match support::sessions::column(&self.client, text).await {
                Ok(rows) => versions.extend(rows.iter().map(|version| version.parse::<i64>().unwrap())),
                Err(_) => return Ok(false),
            }
        }
        if repeatable && versions[0] != versions[1] {
            return Err(format!("a REPEATABLE READ block saw key {key} at {versions:?}"));
        }
        self.counts.reads.fetch_add(2, Ordering::Relaxed);
        versions.into_iter().try_for_each(|version| self.saw(key, version, (&told, &due), "block")).map(|()| true)
    }

    /// `Ok(false)`: the session is broken.
    async fn read(&mut self, key: i64, how: u64) -> Result<bool, String> {
        let (told, due) = (self.told(), self.due());
        let sql = "SELECT key, version FROM versions WHERE key = $1";
        let rows: Vec<(i64, i64)> = match how {
            0 => match self.client.query(sql, &[&key]).await {
                Ok(rows) => rows.iter().map(|row| (row.get(0), row.get(1))).collect(),
                Err(_) => return Ok(false),
            },
            1 => match self.client.query("SELECT key, version FROM versions ORDER BY key", &[]).await {
                Ok(rows) => rows.iter().map(|row| (row.get(0), row.get(1))).collect(),
                Err(_) => return Ok(false),
            },
            _ => {
                match support::sessions::column(&self.client, &sql.replace("$1", &key.to_string()).replace("key, ", ""))
                    .await
                {
                    Ok(rows) => rows.iter().map(|version| (key, version.parse().unwrap())).collect(),
                    Err(_) => return Ok(false),
                }
            }
        };
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        rows.into_iter().try_for_each(|(key, version)| self.saw(key, version, (&told, &due), "read")).map(|()| true)
    }

    /// Raises the version of a key in one of the forms in which a commit may come.
    async fn write(&mut self, key: i64, how: u64) -> Result<bool, String> {
        // What is updated is the newest version, whoever made it.
        let told = [i64::MAX; KEYS as usize + 1];
        let update = format!("UPDATE versions SET version = version + 1 WHERE key = {key} RETURNING version");
        let texts = match how {
            0 => vec![update],
            1 => vec!["BEGIN".to_owned(), update, "COMMIT".to_owned()],
            2 => vec![format!("WITH w AS ({update}) SELECT version FROM w")],
            3 => vec![format!("SELECT raise_version({key})")],
            4 => vec![format!("BEGIN; {update}; COMMIT")],
            _ => vec![format!("DO $$ BEGIN UPDATE versions SET version = version + 1 WHERE key = {key}; END $$")],
        };
        let mut version = None;
        for text in &texts {
            match support::sessions::column(&self.client, text).await {
                Ok(rows) => version = rows.first().and_then(|row| row.parse().ok()).or(version),
                Err(_) => return Ok(false),
            }
        }
        self.counts.writes.fetch_add(1, Ordering::Relaxed);
        // Of a DO the version is not known, but that it is one more than what was seen at least.
        let least = self.least.get(&key).copied().unwrap_or_default() + 1;
        let version = version.unwrap_or(least);
        self.counts.told[key as usize].fetch_max(version, Ordering::SeqCst);
        if let Some(acknowledged) = &self.counts.acknowledged {
            acknowledged[key as usize].lock().unwrap().push((Instant::now(), version));
        }
        self.saw(key, version, (&told, &Told::default()), "write").map(|()| true)
    }
}

/// One session after another until told to end; the first violation ends it.
async fn session(url: String, seed: u64, writes: bool, counts: Arc<Counts>, end: Arc<AtomicBool>) -> Option<String> {
    let mut random = Random::new(seed);
    while !end.load(Ordering::Relaxed) {
        let Ok(client) = support::sessions::try_connect(&url).await else { continue };
        let mut view = View { client, least: HashMap::new(), counts: &counts };
        while !end.load(Ordering::Relaxed) {
            let key = random.below(KEYS as u64) as i64;
            let done = match writes && random.below(4) == 0 {
                true => view.write(key, random.below(6)).await,
                false => match random.below(5) {
                    how @ 0..3 => view.read(key, how).await,
                    how => view.read_in_block(key, how == 3).await,
                },
            };
            match done {
                // By table, whoever only reads is a stranger each time, who has seen nothing.
                Ok(true) if !writes && counts.acknowledged.is_some() => break,
                Ok(true) => {}
                Ok(false) => {
                    counts.broken.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                Err(violation) => {
                    end.store(true, Ordering::Relaxed);
                    return Some(violation);
                }
            }
            if random.below(3) == 0 {
                tokio::time::sleep(Duration::from_millis(random.below(30))).await;
            }
        }
    }
    None
}

/// Faults of replicas by chance, until the time is over; each is over before the next one.
/// Replay stalls for `stalled` longer than the others last.
fn faults(cluster: &Cluster, seed: u64, stalled: Duration, until: Instant, end: &AtomicBool) -> [usize; 4] {
    let mut random = Random::new(seed);
    let mut counts = [0; 4];
    while Instant::now() < until && !end.load(Ordering::Relaxed) {
        let replica = &cluster.replicas()[random.below(2) as usize];
        let pause = Duration::from_millis(50 + random.below(400));
        let fault = random.below(4) as usize;
        let pause = if fault == 0 { stalled + pause } else { pause };
        counts[fault] += 1;
        match fault {
            0 => stall(replica),
            1 => replica.kill9(),
            2 => drop(replica.stop(Shutdown::Immediate)),
            _ => replica.pause(),
        }
        // Part of the schedule, not a wait for a state.
        thread::sleep(pause);
        match fault {
            0 => go_on(replica),
            3 => replica.resume(),
            _ => replica.start().unwrap(),
        }
        thread::sleep(Duration::from_millis(random.below(300)));
    }
    counts
}

#[test]
fn no_session_sees_less_than_it_has_seen_or_written() {
    check("session", false);
}

/// The same, and nobody misses what anybody has written, but for what the change stream may be behind.
#[test]
fn by_table_nobody_misses_what_anybody_has_written() {
    check("table", false);
}

/// Nor where what a replica has read answers others from memory.
#[test]
fn by_table_nobody_misses_it_in_what_is_kept_either() {
    check("table", true);
}

fn check(freshness: &str, cached: bool) {
    let cluster = cluster();
    let seed = number("PGWEIR_FRESHNESS_SEED", 1);
    let length = Duration::from_secs(number("PGWEIR_FRESHNESS_SECONDS", if cached { 3 } else { 6 }));
    // Two of them: each sees what the other's sessions write as a stranger's.
    let pgweirs =
        [(); 2].map(|()| builder(&cluster).set("routing.freshness", freshness).set("cache.enabled", cached).start());
    let acknowledged = (freshness == "table").then(Default::default);
    let counts = Arc::new(Counts { cached, acknowledged, ..Counts::default() });
    let end = Arc::<AtomicBool>::default();
    let runs = |server: &Server| logged(server, "FROM versions");
    let before: Vec<_> = cluster.servers().map(runs).collect();
    let (violations, faults) = thread::scope(|scope| {
        let sessions = scope.spawn(|| {
            block_on(async {
                let tasks: Vec<_> = (0..8)
                    .map(|i| {
                        let url = pgweirs[i % 2].url();
                        let (counts, end) = (counts.clone(), end.clone());
                        tokio::spawn(session(url, seed * 1000 + i as u64, i < 6, counts, end))
                    })
                    .collect();
                let mut violations = Vec::new();
                for task in tasks {
                    violations.extend(task.await.unwrap());
                }
                violations
            })
        });
        // Longer than the change stream may be behind: only what is known of tables keeps readers from such a replica.
        let stalled = if freshness == "table" { MOST_BEHIND } else { Duration::ZERO };
        let faults = faults(&cluster, seed, stalled, Instant::now() + length, &end);
        end.store(true, Ordering::Relaxed);
        (sessions.join().unwrap(), faults)
    });
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    let (reads, writes, broken) = (count(&counts.reads), count(&counts.writes), count(&counts.broken));
    let early = count(&counts.early);
    let ran: Vec<_> = cluster.servers().map(runs).zip(before).map(|(after, before)| after - before).collect();
    println!(
        "{freshness}, seed {seed}, {length:?}: {reads} reads and {writes} writes of 8 sessions through 2 pgweirs, {broken} broken; \
         replay stalled {}, killed {}, shut down {}, frozen {} times; statements on each server {ran:?}; \
         {early} versions seen before they were acknowledged and not the next time; violations {}",
        faults[0],
        faults[1],
        faults[2],
        faults[3],
        violations.len()
    );
    assert!(violations.is_empty(), "seed {seed}: {violations:?}");
    assert!(reads > 100 && writes > 20, "too little has happened");
    if cached {
        let hits: u64 = pgweirs.iter().map(|pgweir| pgweir.cache()["hits"].as_u64().unwrap()).sum();
        println!("{hits} of the reads were answered from memory");
        assert!(hits > 0);
    }
    // By table, a replica reads what nobody writes for a moment: which of them, chance says.
    let replicas_read = if freshness == "table" { ran[1] + ran[2] > 0 } else { ran[1] > 0 && ran[2] > 0 };
    assert!(replicas_read, "the replicas have read nothing: {ran:?}");
}

/// Replay stalls on one replica while somebody writes past pgweir: the session that has seen it on the other stays there.
#[test]
fn a_session_does_not_go_back_to_a_replica_that_is_behind() {
    let cluster = cluster();
    let [_, behind] = cluster.replicas() else { panic!("two replicas") };
    let pgweir = builder(&cluster).start();
    let write = "UPDATE versions SET version = version + 1 WHERE key = 0 RETURNING version";
    stall(behind);
    let written = cluster.primary().psql_in(sample::DATABASE, &format!("SET ROLE app; {write}")).unwrap();
    let written = written.lines().find(|line| line.parse::<i64>().is_ok()).unwrap().to_owned();
    let ahead = &cluster.replicas()[0];
    let sql = "SELECT version FROM versions WHERE key = 0";
    wait_until(LIMIT, "the other to replay it", || ahead.psql_in(sample::DATABASE, sql).unwrap() == written);
    block_on(async {
        for _ in 0..10 {
            let client = connect(&pgweir.url()).await;
            let (mut seen, mut new) = (Vec::new(), false);
            for _ in 0..20 {
                let version = value(&client, sql).await;
                new |= version == written;
                assert!(!new || version == written, "{seen:?} and then {version}");
                seen.push(version);
            }
        }
    });
    go_on(behind);
}

/// One that connects for each thing it does, as scripts and some frameworks do.
#[test]
fn a_session_begins_with_what_others_have_written() {
    let cluster = cluster();
    let pgweir = builder(&cluster).start();
    let sql = "SELECT version FROM versions WHERE key = 2";
    block_on(async {
        for update in [
            "UPDATE versions SET version = version + 1 WHERE key = 2 RETURNING version",
            "WITH u AS (UPDATE versions SET version = version + 1 WHERE key = 2 RETURNING version) SELECT * FROM u",
            "SELECT raise_version(2) AS version",
        ] {
            cluster.replicas().iter().for_each(stall);
            let written = value(&connect(&pgweir.url()).await, update).await;
            for _ in 0..3 {
                assert_eq!(value(&connect(&pgweir.url()).await, sql).await, written, "{update}");
            }
            cluster.replicas().iter().for_each(go_on);
            let on_replicas = || cluster.replicas().iter().map(|replica| logged(replica, "/* later */")).sum::<usize>();
            let before = on_replicas();
            wait_for("a replica to read it", async || {
                let later = connect(&pgweir.url()).await;
                assert_eq!(value(&later, &format!("{sql} /* later */")).await, written);
                on_replicas() > before
            })
            .await;
        }
    });
}

/// Its writer was told nothing: the answer was on its way when it went, and it looks from another session.
#[test]
fn a_session_begins_with_writes_whose_end_nobody_saw() {
    let cluster = cluster();
    let primary = cluster.primary();
    primary.psql_in(sample::DATABASE, "CREATE TABLE unseen (n int); GRANT ALL ON unseen TO app").unwrap();
    cluster.wait_replayed(LIMIT).unwrap();
    let gate = Gate::new(primary.port());
    let mut nodes = Pgweir::builder().node(gate.port, "primary", None);
    for replica in cluster.replicas() {
        nodes = nodes.node(replica.port(), "replica", None);
    }
    let pgweir = nodes.set("pool.min", 0).start();
    let mut client = Wire::connect(pgweir.port());
    // By now there is a connection.
    client.query("/* pgweir: primary */ SELECT 1");
    cluster.replicas().iter().for_each(stall);
    gate.set(Mode::Slow(Duration::from_secs(5)));
    client.send(&Frames::new().query("INSERT INTO unseen VALUES (1)"));
    wait_until(LIMIT, "the commit", || {
        primary.psql_in(sample::DATABASE, "SELECT count(*) FROM unseen").unwrap().trim() == "1"
    });
    gate.set(Mode::Open);
    drop(client);
    wait_until(LIMIT, "the client to be gone", || pgweir.json("/stats")["application"]["activeUsers"] == 0);
    let mut other = Wire::connect(pgweir.port());
    assert_eq!(other.value("SELECT count(*) FROM unseen"), "1");
    cluster.replicas().iter().for_each(go_on);
}

/// The token of one session, taken over by another through another pgweir.
#[test]
fn a_token_carries_what_was_written_to_another_session() {
    let cluster = cluster();
    let pgweirs = [builder(&cluster).start(), builder(&cluster).set("routing.freshness", "eventual").start()];
    cluster.replicas().iter().for_each(stall);
    block_on(async {
        let writer = connect(&pgweirs[0].url()).await;
        let update = "UPDATE versions SET version = version + 1 WHERE key = 1 RETURNING version";
        let written = value(&writer, update).await;
        let token = value(&writer, "SHOW pgweir.lsn").await;
        let prepared: String = writer.query_one("SHOW pgweir.lsn", &[]).await.unwrap().get("pgweir.lsn");
        assert!(prepared.contains('/') && token.contains('/'), "{prepared} {token}");
        let sql = "SELECT version FROM versions WHERE key = 1";
        let reader = connect(&pgweirs[1].url()).await;
        assert_ne!(value(&reader, sql).await, written, "without the token");
        reader.simple_query(&format!("SET pgweir.lsn = '{token}'")).await.unwrap();
        assert_eq!(value(&reader, sql).await, written);
        let started = connect(&format!("{}?options=-c%20pgweir.lsn%3D{token}", pgweirs[1].url())).await;
        assert_eq!(value(&started, sql).await, written);
        // Once a replica has it, a replica reads it.
        go_on(&cluster.replicas()[0]);
        let ran = || logged(&cluster.replicas()[0], "/* token */");
        wait_for("a replica to read it", async || {
            assert_eq!(value(&reader, &format!("{sql} /* token */")).await, written);
            ran() > 0
        })
        .await;
    });
    cluster.replicas().iter().for_each(go_on);
}

#[test]
fn a_token_that_is_none_is_refused_in_every_protocol() {
    let cluster = cluster();
    let pgweir = builder(&cluster).start();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        for bad in ["x", "0", "0/16B3748/1", "g/1"] {
            let sql = format!("SET pgweir.lsn = '{bad}'");
            let error = client.simple_query(&sql).await.unwrap_err();
            assert_eq!(sqlstate(&error), "22023", "{bad}");
            assert!(error.as_db_error().unwrap().message().contains("pgweir.lsn"), "{error:?}");
            assert_eq!(sqlstate(&client.execute(&sql, &[]).await.unwrap_err()), "22023", "{bad}");
        }
        // As any error it ends the transaction's luck.
        client.simple_query("BEGIN").await.unwrap();
        assert_eq!(sqlstate(&client.simple_query("SET pgweir.lsn = 'x'").await.unwrap_err()), "22023");
        assert_eq!(sqlstate(&client.simple_query("SELECT 1").await.unwrap_err()), "25P02");
        client.simple_query("ROLLBACK").await.unwrap();
        assert_eq!(value(&client, "SELECT 1").await, "1");
    });
}

/// What COMMIT PREPARED makes visible was written by another session.
#[test]
fn commits_in_two_phases_are_read_by_who_completes_them() {
    let cluster = cluster();
    let pgweir = builder(&cluster).start();
    cluster.replicas().iter().for_each(stall);
    block_on(async {
        let (first, second) = (connect(&pgweir.url()).await, connect(&pgweir.url()).await);
        let sql = "SELECT version FROM versions WHERE key = 2";
        let before: i64 = value(&second, sql).await.parse().unwrap();
        for text in ["BEGIN", "UPDATE versions SET version = version + 1 WHERE key = 2", "PREPARE TRANSACTION 'two'"] {
            first.simple_query(text).await.unwrap();
        }
        second.simple_query("COMMIT PREPARED 'two'").await.unwrap();
        assert_eq!(value(&second, sql).await, (before + 1).to_string());
    });
    cluster.replicas().iter().for_each(go_on);
}
