//! A checker of the result cache: sessions write through pgweir and around it, in all forms in which rows may change, others
//! read in all forms in which a result may follow from those rows, and streams, servers and replicas fail meanwhile.
//!
//! Each row has a version. No answer may lack what its own session wrote, and none may lack what anybody's writer had been
//! told of [`MOST_BEHIND`] before it was asked for, or what rules allow instead; none may be another role's, another path's or
//! another time zone's.
//! How old answers were is printed.
//!
//! `PGWEIR_CACHE_SECONDS` and `PGWEIR_CACHE_SEED` make it longer, and another.

mod support;

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::SinkExt;
use pgweir::cache::MOST_BEHIND;
use pgweir::demo::cluster::{Cluster, Server, Shutdown};
use pgweir::demo::sample;
use rustix::process::{Pid, Signal, kill_process};
use support::random::{Random, number};
use support::sessions::{block_on, column, sqlstate, try_connect, value, wait_for};
use support::{LIMIT, Pgweir, Store, wait_until};
use tokio_postgres::Client;

const KEYS: i64 = 3;

/// As keys: a table that is truncated and filled again in one transaction, and one that is dropped and made again.
const EMPTIED: i64 = KEYS;
const AGAIN: i64 = KEYS + 1;

const SCHEMA: &str = "
    CREATE TABLE versions (key bigint PRIMARY KEY, version bigint NOT NULL);
    CREATE VIEW seen AS SELECT key, version FROM versions;
    CREATE FUNCTION version_of(bigint) RETURNS bigint STABLE LANGUAGE sql AS
        'SELECT version FROM seen WHERE key = $1';
    CREATE TABLE parted (key bigint PRIMARY KEY, version bigint) PARTITION BY LIST (key);
    CREATE TABLE parted_low PARTITION OF parted FOR VALUES IN (0, 1);
    CREATE TABLE parted_high PARTITION OF parted DEFAULT;
    CREATE TABLE parent (key bigint, version bigint, PRIMARY KEY (key, version));
    CREATE TABLE child (key bigint PRIMARY KEY, version bigint,
        FOREIGN KEY (key, version) REFERENCES parent ON UPDATE CASCADE);
    CREATE FUNCTION follow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
        UPDATE parted SET version = NEW.version WHERE key = NEW.key;
        UPDATE parent SET version = NEW.version WHERE key = NEW.key;
        RETURN NULL;
    END$$;
    CREATE TRIGGER follow AFTER UPDATE ON versions FOR EACH ROW EXECUTE FUNCTION follow();
    CREATE FUNCTION raise_version(bigint) RETURNS bigint LANGUAGE sql AS
        'UPDATE versions SET version = version + 1 WHERE key = $1 RETURNING version';
    CREATE TABLE inbox (key bigint, version bigint);
    CREATE FUNCTION take_in() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN NEW.version := raise_version(NEW.key); RETURN NEW; END$$;
    CREATE TRIGGER take_in BEFORE INSERT ON inbox FOR EACH ROW EXECUTE FUNCTION take_in();
    CREATE TABLE each_own (name text); INSERT INTO each_own VALUES ('app'), ('blue');
    ALTER TABLE each_own ENABLE ROW LEVEL SECURITY; ALTER TABLE each_own FORCE ROW LEVEL SECURITY;
    CREATE POLICY own ON each_own USING (name = current_user); GRANT SELECT ON each_own TO blue;
    CREATE TABLE moment (at timestamptz); INSERT INTO moment VALUES ('2020-01-01 00:00+00');
    CREATE SCHEMA north; CREATE TABLE north.place (name text); INSERT INTO north.place VALUES ('north');
    CREATE SCHEMA south; CREATE TABLE south.place (name text); INSERT INTO south.place VALUES ('south');
    CREATE SEQUENCE raised; CREATE TABLE again (version bigint); INSERT INTO again VALUES (0);
    CREATE TABLE emptied (version bigint); INSERT INTO emptied VALUES (0);
    CREATE FUNCTION of_emptied() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT version FROM emptied';";

/// For each truncation there are so many writes of each other kind: as definitions change, all that is kept goes by it.
const RARE: u64 = 4;

/// The sequence is asked while nobody else can change the table: later commits have higher versions.
const EMPTY: [&str; 4] =
    ["BEGIN", "TRUNCATE emptied", "INSERT INTO emptied SELECT nextval('raised') RETURNING version", "COMMIT"];
const MAKE_AGAIN: [&str; 5] = [
    "BEGIN",
    "DROP TABLE again",
    "CREATE TABLE again (version bigint)",
    "INSERT INTO again SELECT nextval('raised') RETURNING version",
    "COMMIT",
];

fn start(replicas: usize) -> Cluster {
    let mut builder = Cluster::builder().replicas(replicas);
    if replicas > 0 {
        // Commits are seen once one of the replicas shows them.
        builder = builder.setting("synchronous_standby_names", "*").setting("synchronous_commit", "remote_apply");
    }
    let cluster = builder.start().unwrap();
    sample::install(cluster.primary()).unwrap();
    let rows = format!(
        "INSERT INTO versions SELECT key, 0 FROM generate_series(0, {KEYS} - 1) AS key;
         INSERT INTO parted SELECT key, version FROM versions; INSERT INTO parent SELECT key, version FROM versions;
         INSERT INTO child SELECT key, version FROM versions;"
    );
    let roles = "CREATE ROLE blue; ALTER ROLE app NOINHERIT; GRANT blue TO app;
         CREATE TABLE blue_only (name text); INSERT INTO blue_only VALUES ('blue'); GRANT SELECT ON blue_only TO blue;
         GRANT CREATE ON DATABASE app TO app; GRANT ALL ON SCHEMA public TO app;";
    cluster.primary().psql_in(sample::DATABASE, &format!("{roles} SET ROLE app; {SCHEMA} {rows}")).unwrap();
    cluster.wait_replayed(LIMIT).unwrap();
    cluster
}

/// What all sessions have in common.
struct World {
    began: Instant,
    /// Of each key the versions that some writer was told of, and when.
    told: Mutex<HashMap<i64, Vec<(i64, Instant)>>>,
    /// From when until when a truncation may have been committed.
    emptied: Mutex<Vec<(Instant, Option<Instant>)>>,
    /// Of each read of which somebody had been told more: for how long, in microseconds.
    ages: Mutex<Vec<u64>>,
    reads: AtomicUsize,
    writes: AtomicUsize,
    /// Ended by a fault that the schedule has caused; the session begins anew.
    broken: AtomicUsize,
    end: AtomicBool,
    /// No more writes begin; those under way are counted.
    quiet: AtomicBool,
    writing: AtomicUsize,
    /// Replicas may answer, as old as they are.
    replicas: bool,
    /// Rules let answers from these tables be old.
    rules: bool,
}

/// With rules: how old they may be, where all that they are read from may.
const OLD: Duration = Duration::from_secs(2);

/// `child` has no rule.
fn rules() -> String {
    let rule = |table| format!("[[cache.rules]]\ntable = \"public.{table}\"\nstale = \"{OLD:?}\"\n");
    ["versions", "parted"].map(rule).concat()
}

impl World {
    fn new(replicas: bool, rules: bool) -> World {
        World {
            began: Instant::now(),
            told: Mutex::default(),
            emptied: Mutex::default(),
            ages: Mutex::default(),
            reads: AtomicUsize::default(),
            writes: AtomicUsize::default(),
            broken: AtomicUsize::default(),
            end: AtomicBool::default(),
            quiet: AtomicBool::default(),
            writing: AtomicUsize::default(),
            replicas,
            rules,
        }
    }

    /// Until then, and on a machine that is slow until something has happened.
    fn goes_on(&self, until: Instant) -> bool {
        let is_little = || !self.is_enough() && Instant::now() < until + LIMIT;
        !self.end.load(Ordering::Relaxed) && (Instant::now() < until || is_little())
    }

    fn is_enough(&self) -> bool {
        self.reads.load(Ordering::Relaxed) > 100 && self.writes.load(Ordering::Relaxed) > 20
    }

    /// Writes come in bursts: between them, answers are kept.
    fn is_busy(&self) -> bool {
        (self.began.elapsed().as_millis() / 100).is_multiple_of(4)
    }

    fn tell(&self, key: i64, version: i64) {
        let told = (version, Instant::now());
        self.told.lock().unwrap().entry(key).or_default().push(told);
    }

    /// The highest version that had been told by then.
    fn told_by(&self, key: i64, at: Instant) -> i64 {
        let told = self.told.lock().unwrap();
        let versions = told.get(&key).into_iter().flatten().filter(|told| told.1 <= at);
        versions.map(|told| told.0).max().unwrap_or(0)
    }

    /// An answer that was asked for at `asked` says `version`; `bound`: how old it may be.
    fn judge(&self, key: i64, version: i64, asked: Instant, bound: Duration) -> Result<(), String> {
        let told = self.told.lock().unwrap();
        let newer = told.get(&key).into_iter().flatten().filter(|told| told.0 > version && told.1 < asked);
        let age = newer.map(|told| asked - told.1).max().unwrap_or_default();
        self.ages.lock().unwrap().push(age.as_micros() as u64);
        if age > bound && !self.replicas {
            return Err(format!("key {key} is at {version}, and another version was known {age:?} before"));
        }
        Ok(())
    }
}

impl World {
    /// TRUNCATE is not MVCC-safe: who has a snapshot from before it, and looks at the table behind it, finds it empty. An
    /// answer kept from such a read is as old as any may be.
    fn may_be_empty(&self, asked: Instant) -> bool {
        let emptied = self.emptied.lock().unwrap();
        emptied.iter().any(|(_, ended)| ended.is_none_or(|ended| asked < ended + MOST_BEHIND))
    }
}

/// Ends the sessions.
struct End<'a>(&'a World);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end.store(true, Ordering::Relaxed);
    }
}

struct Session<'a> {
    client: Client,
    world: &'a World,
    /// The versions that it wrote itself.
    own: HashMap<i64, i64>,
    role: Option<&'static str>,
    place: &'static str,
    zone: usize,
}

/// A violation; `Ok(false)`: the session is broken.
type Done = Result<bool, String>;

const ZONES: [(&str, &str); 2] = [("UTC", "2020-01-01 00:00:00+00"), ("Asia/Tokyo", "2020-01-01 09:00:00+09")];

impl<'a> Session<'a> {
    /// Who only reads shares no answer with those who write: they read past the cache after a write, and renew what it keeps.
    async fn new(url: &str, world: &'a World, writes: bool) -> Option<Session<'a>> {
        let client = try_connect(url).await.ok()?;
        let digits = format!("SET extra_float_digits = {}", if writes { 1 } else { 2 });
        // One by one: several at once may have written something.
        for text in ["SET TimeZone = 'UTC'", "SET search_path = public, north", &digits] {
            client.simple_query(text).await.ok()?;
        }
        Some(Session { client, world, own: HashMap::new(), role: None, place: "north", zone: 0 })
    }

    async fn read(&mut self, key: i64, how: u64) -> Done {
        let asked = Instant::now();
        let of = |relation: &str| format!("SELECT version FROM {relation} WHERE key = {key}");
        let text = match how {
            0 | 1 => {
                let sql = ["SELECT version FROM versions WHERE key = $1", "SELECT version FROM seen WHERE key = $1"];
                let Ok(row) = self.client.query_one(sql[how as usize], &[&key]).await else { return Ok(false) };
                return self.saw(key, row.get(0), asked, sql[how as usize]);
            }
            2 => of("versions"),
            3 => of("seen"),
            4 => format!("SELECT version_of({key})"),
            5 => of("parted"),
            6 => of("child"),
            8 => return self.read_alone(EMPTIED, "SELECT version FROM emptied").await,
            9 => return self.read_alone(EMPTIED, "SELECT of_emptied()").await,
            10 => return self.read_alone(AGAIN, "SELECT version FROM again").await,
            _ => format!("SELECT max(version) FROM ({} UNION ALL {}) AS u", of("versions"), of("parted")),
        };
        match column(&self.client, &text).await {
            Ok(rows) if rows.len() == 1 => self.saw(key, rows[0].parse().unwrap(), asked, &text),
            Ok(rows) => Err(format!("{text}: {rows:?}")),
            Err(_) => Ok(false),
        }
    }

    /// Of a table of one row, which a read by its name, locked before it has its snapshot, never finds empty.
    async fn read_alone(&mut self, key: i64, text: &str) -> Done {
        let asked = Instant::now();
        match self.client.query(text, &[]).await {
            Ok(rows) if rows.len() == 1 => match rows[0].get(0) {
                Some(version) => self.saw(key, version, asked, text),
                None if self.world.may_be_empty(asked) => Ok(true),
                None => Err(format!("{text}: empty, and nobody emptied it")),
            },
            Ok(rows) => Err(format!("{text}: {rows:?}")),
            // Between two of them, or one that is gone now.
            Err(error) if key == AGAIN && ["42P01", "XX000"].contains(&sqlstate(&error)) => Ok(true),
            Err(_) => Ok(false),
        }
    }

    fn saw(&mut self, key: i64, version: i64, asked: Instant, how: &str) -> Done {
        self.world.reads.fetch_add(1, Ordering::Relaxed);
        let own = self.own.get(&key).copied().unwrap_or(0);
        if version < own {
            return Err(format!("{how}: {version}, and the session wrote {own}"));
        }
        let ruled = key < KEYS && !how.contains("child");
        let bound = if self.world.rules && ruled { OLD } else { MOST_BEHIND };
        self.world.judge(key, version, asked, bound).map_err(|why| format!("{how}: {why}")).map(|()| true)
    }

    /// Raises the version of a key in one of the forms in which a commit may come, or seems to.
    async fn write(&mut self, key: i64, how: u64) -> Done {
        let world = self.world;
        world.writing.fetch_add(1, Ordering::SeqCst);
        let done = if world.quiet.load(Ordering::SeqCst) { Ok(true) } else { self.write_now(key, how).await };
        world.writing.fetch_sub(1, Ordering::SeqCst);
        done
    }

    async fn write_now(&mut self, key: i64, how: u64) -> Done {
        let update = format!("UPDATE versions SET version = version + 1 WHERE key = {key} RETURNING version");
        let texts = match how {
            0 => vec![update],
            1 => vec!["BEGIN".to_owned(), update, "COMMIT".to_owned()],
            2 => vec![format!("WITH w AS ({update}) SELECT version FROM w")],
            3 => vec![format!("SELECT raise_version({key})")],
            4 => vec![format!("BEGIN; {update}; SAVEPOINT s; DELETE FROM child; ROLLBACK TO s; COMMIT")],
            5 => vec![format!("INSERT INTO inbox VALUES ({key}) RETURNING version")],
            6 => return self.copy(key).await,
            8 => return self.empty().await,
            9 => return self.make_anew(AGAIN, &MAKE_AGAIN).await,
            _ => vec!["BEGIN".to_owned(), update, "ROLLBACK".to_owned()],
        };
        let mut version = None;
        for text in &texts {
            match column(&self.client, text).await {
                Ok(rows) => version = rows.first().and_then(|row| row.parse().ok()).or(version),
                Err(_) => return Ok(false),
            }
        }
        self.wrote(key, version.filter(|_| how < 6));
        Ok(true)
    }

    async fn empty(&mut self) -> Done {
        let number = {
            let mut emptied = self.world.emptied.lock().unwrap();
            emptied.push((Instant::now(), None));
            emptied.len() - 1
        };
        let done = self.make_anew(EMPTIED, &EMPTY).await;
        // Where the answer has been lost, it may be committed a while later.
        let ended = Instant::now() + if done == Ok(true) { Duration::ZERO } else { LIMIT };
        self.world.emptied.lock().unwrap()[number].1 = Some(ended);
        done
    }

    /// The table has another row.
    async fn make_anew(&mut self, key: i64, texts: &[&str]) -> Done {
        let mut version = None;
        for text in texts {
            match column(&self.client, text).await {
                Ok(rows) => version = rows.first().and_then(|row| row.parse().ok()).or(version),
                Err(_) => return Ok(false),
            }
        }
        self.wrote(key, version);
        Ok(true)
    }

    /// A row of a COPY raises it.
    async fn copy(&mut self, key: i64) -> Done {
        let copied = async {
            self.client.batch_execute("BEGIN").await?;
            let mut sink = pin!(self.client.copy_in("COPY inbox (key) FROM STDIN").await?);
            sink.send(Bytes::from(format!("{key}\n"))).await?;
            sink.finish().await?;
            let row = self.client.query_one("SELECT version FROM versions WHERE key = $1", &[&key]).await?;
            self.client.batch_execute("COMMIT").await?;
            Ok::<i64, tokio_postgres::Error>(row.get(0))
        };
        let Ok(version) = copied.await else { return Ok(false) };
        self.wrote(key, Some(version));
        Ok(true)
    }

    fn wrote(&mut self, key: i64, version: Option<i64>) {
        self.world.writes.fetch_add(1, Ordering::Relaxed);
        if let Some(version) = version {
            self.world.tell(key, version);
            self.own.insert(key, version);
        }
    }

    /// Becomes another in some way.
    async fn turn(&mut self, how: u64) -> Done {
        let text = match how {
            0 => {
                self.role = if self.role == Some("blue") { None } else { Some("blue") };
                self.role.map_or("RESET ROLE".to_owned(), |role| format!("SET ROLE {role}"))
            }
            1 => {
                self.place = if self.place == "north" { "south" } else { "north" };
                format!("SET search_path = public, {}", self.place)
            }
            _ => {
                self.zone = 1 - self.zone;
                format!("SET TimeZone = '{}'", ZONES[self.zone].0)
            }
        };
        Ok(self.client.simple_query(&text).await.is_ok())
    }

    /// Reads what depends on who and where it is.
    async fn look(&mut self, how: u64) -> Done {
        if how == 0 && self.role.is_none() {
            // For a moment, another table of that name.
            let texts = ["CREATE TEMP TABLE place AS SELECT 'temp' AS name", "SELECT name FROM place", "DISCARD TEMP"];
            for text in texts {
                match column(&self.client, text).await {
                    Ok(rows) if rows.iter().any(|name| name != "temp") => return Err(format!("{text}: {rows:?}")),
                    Ok(_) => {}
                    Err(_) => return Ok(false),
                }
            }
            return Ok(true);
        }
        let (text, expected) = match how {
            1 => ("SELECT at FROM moment", Some(ZONES[self.zone].1)),
            2 => ("SELECT name FROM blue_only", self.role),
            3 => ("SELECT name FROM each_own", Some(self.role.unwrap_or(sample::USER))),
            _ => ("SELECT name FROM place", Some(self.place)),
        };
        // The other role may read nothing but what is its own.
        if self.role.is_some() && ![2, 3].contains(&how) {
            return Ok(true);
        }
        match (column(&self.client, text).await, expected) {
            (Ok(rows), Some(expected)) if rows == [expected] => Ok(true),
            (Ok(rows), expected) => Err(format!("{text}: {rows:?}, not {expected:?}")),
            (Err(error), None) if sqlstate(&error) == "42501" => Ok(true),
            (Err(_), _) => Ok(false),
        }
    }

    async fn step(&mut self, random: &mut Random, writes: bool) -> Done {
        let key = random.below(KEYS as u64) as i64;
        match random.below(60) {
            0 => self.turn(random.below(3)).await,
            // Who makes a table has written.
            1 | 2 => self.look(if writes { 0 } else { 1 } + random.below(4)).await,
            _ if self.role.is_some() => self.turn(0).await,
            3..=6 if writes && self.world.is_busy() => self.write(key, random.below(8 * RARE + 1) / RARE).await,
            _ => self.read(key, random.below(11)).await,
        }
    }
}

/// One session after another until told to end; the first violation ends it.
async fn session(url: String, seed: u64, writes: bool, world: Arc<World>) -> Option<String> {
    let mut random = Random::new(seed);
    while !world.end.load(Ordering::Relaxed) {
        let Some(mut session) = Session::new(&url, &world, writes).await else { continue };
        while !world.end.load(Ordering::Relaxed) {
            match session.step(&mut random, writes).await {
                Ok(true) => {}
                Ok(false) => {
                    world.broken.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                Err(violation) => {
                    world.end.store(true, Ordering::Relaxed);
                    return Some(format!("session {seed}: {violation}"));
                }
            }
            if random.below(4) == 0 {
                tokio::time::sleep(Duration::from_millis(random.below(10))).await;
            }
        }
    }
    None
}

/// Writes past pgweir: rows, and now and then definitions.
async fn stranger(url: String, seed: u64, world: Arc<World>) -> Option<String> {
    let mut random = Random::new(seed);
    while !world.end.load(Ordering::Relaxed) {
        let Some(mut session) = Session::new(&url, &world, true).await else { continue };
        while !world.end.load(Ordering::Relaxed) {
            let done = match random.below(150) {
                0 => session.write(AGAIN, 9).await.unwrap(),
                2 | 3 => session.write(EMPTIED, 8).await.unwrap(),
                1 => {
                    // By a trigger they say the same.
                    let from = ["versions", "parted"][random.below(2) as usize];
                    let sql = format!("CREATE OR REPLACE VIEW seen AS SELECT key, version FROM {from}");
                    session.client.simple_query(&sql).await.is_ok()
                }
                _ => session.write(random.below(KEYS as u64) as i64, random.below(8 * RARE + 1) / RARE).await.unwrap(),
            };
            if !done {
                break;
            }
            tokio::time::sleep(Duration::from_millis(random.below(300))).await;
        }
    }
    None
}

/// The streams' processes on the primary; of a fleet those, or the one that announces, or those that are told.
fn senders(primary: &Server, which: u64) -> Vec<Pid> {
    let condition = match which {
        0 => "application_name = 'pgweir changes' AND backend_type = 'walsender'",
        1 => "application_name LIKE 'pgweir fleet %'",
        _ => "application_name = 'pgweir changes' AND query LIKE '%pg_stat_get_activity%'",
    };
    let pids = primary.psql(&format!("SELECT pid FROM pg_stat_activity WHERE {condition}")).unwrap_or_default();
    pids.lines().filter_map(|pid| Pid::from_raw(pid.trim().parse().ok()?)).collect()
}

/// A part of the schedule, not a wait for a state.
fn pass(milliseconds: u64) {
    thread::sleep(Duration::from_millis(milliseconds));
}

/// Streams end, streams fall silent, and the primary restarts by chance, until the time is over; each fault is over before
/// the next one.
fn faults(cluster: &Cluster, seed: u64, until: Instant, world: &World, fleet: bool) -> [usize; 3] {
    let mut random = Random::new(seed);
    let mut counts = [0; 3];
    let primary = cluster.primary();
    let signal = |pids: &[Pid], signal| pids.iter().for_each(|pid| kill_process(*pid, signal).unwrap_or_default());
    while world.goes_on(until) {
        let fault = random.below(5) / 2;
        counts[fault as usize] += 1;
        let pids = senders(primary, if fleet { random.below(3) } else { 0 });
        match fault {
            0 => signal(&pids, Signal::TERM),
            1 => {
                signal(&pids, Signal::STOP);
                pass(500 + random.below(2500));
                signal(&pids, Signal::CONT);
            }
            _ => {
                primary.stop(Shutdown::Immediate).unwrap();
                primary.start().unwrap();
            }
        }
        pass(random.below(1000));
    }
    counts
}

/// A replica stalls while rows change, and reads go on when they no longer do: what is kept then must not be what the
/// replica had. A commit that waits for it has been streamed, and cannot be seen yet.
fn stalls(cluster: &Cluster, seed: u64, until: Instant, world: &World, pgweirs: &[Pgweir]) -> usize {
    let mut random = Random::new(seed);
    let mut count = 0;
    while world.goes_on(until) {
        let replica = &cluster.replicas()[random.below(2) as usize];
        replica.psql("SELECT pg_wal_replay_pause()").unwrap();
        pass(200 + random.below(400));
        world.quiet.store(true, Ordering::SeqCst);
        pass(random.below(400));
        replica.psql("SELECT pg_wal_replay_resume()").unwrap();
        wait_until(LIMIT, "the last write", || world.writing.load(Ordering::SeqCst) == 0);
        cluster.wait_replayed(LIMIT).unwrap();
        pgweirs.iter().for_each(|pgweir| block_on(settles(&pgweir.url(), world)));
        world.quiet.store(false, Ordering::SeqCst);
        pass(random.below(300));
        count += 1;
    }
    count
}

fn cache(pgweir: &Pgweir, field: &str) -> u64 {
    pgweir.json("/cache")[0][field].as_u64().unwrap()
}

fn hits(pgweirs: &[Pgweir]) -> u64 {
    pgweirs.iter().map(|pgweir| cache(pgweir, "hits")).sum()
}

/// Answers that they had from the store.
fn from_store(pgweirs: &[Pgweir]) -> u64 {
    pgweirs.iter().filter_map(|pgweir| pgweir.cache()["shared_store"]["hits"].as_u64()).sum()
}

/// When nobody writes any more, every answer is soon the last version, however it is asked for.
async fn settles(url: &str, world: &World) {
    let mut session = Session::new(url, world, false).await.unwrap();
    for key in 0..KEYS {
        let last: i64 =
            value(&session.client, &format!("/* pgweir: primary */ SELECT version FROM versions WHERE key = {key}"))
                .await
                .parse()
                .unwrap();
        assert!(last >= world.told_by(key, Instant::now()));
        // What has been acknowledged to nobody may be there all the same.
        world.tell(key, last);
        for how in 0..8 {
            wait_for("the last version", async || {
                session.own.clear();
                session.own.insert(key, last);
                matches!(session.read(key, how).await, Ok(true))
            })
            .await;
        }
    }
    for text in ["SELECT version FROM again", "SELECT version FROM emptied", "SELECT of_emptied()"] {
        wait_for("the last of the tables", async || {
            let last = column(&session.client, &format!("/* pgweir: primary */ {text}")).await;
            let kept = column(&session.client, text).await;
            kept.is_ok_and(|kept| last.is_ok_and(|last| last == kept))
        })
        .await;
    }
}

/// The store of the second level stands still, loses all that it has, or ends, and is there again each time.
fn store_faults(store: &mut Store, seed: u64, until: Instant, world: &World) -> usize {
    let mut random = Random::new(seed);
    let mut count = 0;
    while world.goes_on(until) {
        match random.below(3) {
            0 => {
                store.signal(Signal::STOP);
                pass(random.below(1500));
                store.signal(Signal::CONT);
            }
            1 => store.flush(),
            _ => {
                store.kill();
                pass(random.below(500));
                store.restart();
            }
        }
        pass(500 + random.below(1500));
        count += 1;
    }
    count
}

#[derive(Default)]
struct Case {
    replicas: usize,
    fleet: bool,
    rules: bool,
    /// Changes are followed by one of all tables.
    publication: bool,
    store: Option<Store>,
}

fn check(case: Case) {
    let Case { replicas, fleet, rules: with_rules, publication, mut store } = case;
    let cluster = start(replicas);
    let seed = number("PGWEIR_CACHE_SEED", 1);
    let length = Duration::from_secs(number("PGWEIR_CACHE_SECONDS", if publication { 3 } else { 6 }));
    if publication {
        cluster.primary().psql_in(sample::DATABASE, "CREATE PUBLICATION checker FOR ALL TABLES").unwrap();
    }
    let mut builder = Pgweir::builder()
        .cluster(&cluster, &vec![1; replicas])
        .set("cache.enabled", true)
        .set("cache.invalidation", "wal")
        .set("cache.verify", 0.5)
        .set("cache.fleet", fleet)
        .set("cache.publication", if publication { "checker" } else { "" })
        .set("pool.connection_timeout", "1s")
        .set("pool.acquire_timeout", "20s")
        .more(&if with_rules { rules() } else { String::new() });
    if let Some(store) = &store {
        builder = builder.set("cache.shared", store.url()).set("cache.shared_timeout", "200ms");
    }
    // Two of them: each sees what the other's sessions write as a stranger's.
    let pgweirs = [builder.start(), builder.start()];
    for pgweir in &pgweirs {
        wait_until(LIMIT, "the stream", || pgweir.json("/cache")[0]["mode"] == "wal");
    }
    let world = Arc::new(World::new(replicas > 0, with_rules));
    let direct = pgweirs[0].url().replace(&pgweirs[0].port().to_string(), &cluster.primary().port().to_string());
    let (until, has_store) = (Instant::now() + length, store.is_some());
    let (violations, faults) = thread::scope(|scope| {
        let sessions = scope.spawn(|| {
            block_on(async {
                let mut tasks: Vec<_> = (0..8u64)
                    .map(|i| session(pgweirs[i as usize % 2].url(), seed * 1000 + i, i < 4, world.clone()))
                    .map(tokio::spawn)
                    .collect();
                tasks.push(tokio::spawn(stranger(direct.clone(), seed * 1000 + 8, world.clone())));
                let mut violations = Vec::new();
                for task in tasks {
                    violations.extend(task.await.unwrap());
                }
                violations
            })
        });
        // However it ends, so do the sessions.
        let end = End(&world);
        let world = &*world;
        let of_store = store.as_mut().map(|store| scope.spawn(move || store_faults(store, seed, until, world)));
        let faults = match replicas {
            0 => faults(&cluster, seed, until, world, fleet),
            _ => [stalls(&cluster, seed, until, world, &pgweirs), 0, 0],
        };
        let faults = (faults, of_store.map_or(0, |faults| faults.join().unwrap()));
        // On a machine that is slow. Who has found a violation has ended.
        let is_enough = || hits(&pgweirs) > 20 && (!has_store || from_store(&pgweirs) > 0);
        wait_until(LIMIT, "answers that are kept", || world.end.load(Ordering::Relaxed) || is_enough());
        drop(end);
        (sessions.join().unwrap(), faults)
    });
    let mut ages = std::mem::take(&mut *world.ages.lock().unwrap());
    ages.sort_unstable();
    let age = |share: f64| Duration::from_micros(ages.get((ages.len() as f64 * share) as usize).copied().unwrap_or(0));
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    let hits = hits(&pgweirs);
    let shared = from_store(&pgweirs);
    let stale: u64 = pgweirs.iter().map(|pgweir| cache(pgweir, "stale")).sum();
    let verified: u64 = pgweirs.iter().map(|pgweir| cache(pgweir, "verified")).sum();
    println!(
        "seed {seed}, {length:?}, {replicas} replicas, fleet {fleet}, rules {with_rules}, publication {publication}: {} reads, {hits} hits ({verified} verified, {stale} behind a change), {shared} found in the store, {} writes, {} broken sessions; faults {faults:?}; age of answers p50 {:?} p90 {:?} p99 {:?} p99.9 {:?} \
         max {:?}; violations {}",
        count(&world.reads),
        count(&world.writes),
        count(&world.broken),
        age(0.5),
        age(0.9),
        age(0.99),
        age(0.999),
        age(1.0 - f64::EPSILON),
        violations.len()
    );
    assert!(violations.is_empty(), "seed {seed}: {violations:?}");
    assert!(world.is_enough(), "too little has happened");
    assert_eq!(stale > 0, with_rules);
    cluster.wait_replayed(LIMIT).unwrap();
    pgweirs.iter().for_each(|pgweir| block_on(settles(&pgweir.url(), &world)));
    let differences: Vec<_> = pgweirs.iter().map(|pgweir| cache(pgweir, "differences")).collect();
    assert_eq!(differences, [0, 0], "seed {seed}");
}

#[test]
fn no_answer_is_older_than_promised_nor_anothers() {
    check(Case::default());
}

#[test]
fn replicas_that_stall_leave_nothing_old_behind() {
    check(Case { replicas: 2, ..Case::default() });
}

#[test]
fn a_fleet_promises_the_same() {
    check(Case { fleet: true, ..Case::default() });
}

#[test]
fn a_fleet_before_replicas_that_stall_keeps_nothing_old() {
    check(Case { replicas: 2, fleet: true, ..Case::default() });
}

#[test]
fn rules_let_answers_be_so_old_and_no_older() {
    check(Case { rules: true, ..Case::default() });
}

#[test]
fn rules_before_replicas_that_stall_leave_nothing_old_behind() {
    check(Case { replicas: 2, rules: true, ..Case::default() });
}

#[test]
fn a_store_that_is_shared_hands_on_nothing_old() {
    check(Case { store: Some(Store::start()), ..Case::default() });
}

#[test]
fn a_store_before_a_fleet_and_replicas_that_stall_hands_on_nothing_old() {
    check(Case { replicas: 2, fleet: true, store: Some(Store::start()), ..Case::default() });
}

#[test]
fn a_publication_of_all_tables_promises_the_same() {
    check(Case { publication: true, ..Case::default() });
}
