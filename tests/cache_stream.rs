//! The result cache under the change stream: what anybody commits is gone from it, and what is kept follows from tables.

mod support;

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use pgweir::demo::cluster::{Cluster, SUPERUSER, Server};
use pgweir::demo::sample;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use support::client::{connect, wait};
use support::http::TOKEN;
use support::wire::{Frames, Login, Wire, tags};
use support::{Builder, LIMIT, Pgweir, logged, wait_until};

fn start() -> Cluster {
    let cluster = Cluster::builder().replicas(1).setting("log_statement", "all").start().unwrap();
    sample::install(cluster.primary()).unwrap();
    cluster.wait_replayed(LIMIT).unwrap();
    cluster
}

/// A primary and a replica, one test at a time.
fn cluster() -> MutexGuard<'static, Cluster> {
    static SHARED: OnceLock<Mutex<Cluster>> = OnceLock::new();
    SHARED.get_or_init(|| Mutex::new(start())).lock().unwrap_or_else(PoisonError::into_inner)
}

fn builder(cluster: &Cluster, replicas: usize) -> Builder {
    Pgweir::builder()
        .cluster(cluster, &[1][..replicas])
        .set("cache.enabled", true)
        .set("pool.connection_timeout", "500ms")
}

/// pgweir before the primary alone, once the stream is whole.
fn pgweir(cluster: &Cluster) -> Pgweir {
    let pgweir = builder(cluster, 0).start();
    wait_for_mode(&pgweir, "wal");
    pgweir
}

fn wait_for_mode(pgweir: &Pgweir, mode: &str) {
    wait_until(LIMIT, mode, || pgweir.cache()["mode"] == mode);
}

/// As the superuser in the sample's database, past pgweir.
fn around(server: &Server, sql: &str) -> String {
    server.psql_in(sample::DATABASE, sql).unwrap()
}

/// Postgres refuses that at once where a logical slot is in use, WITH (FORCE) as well.
#[test]
fn a_database_is_dropped_though_its_changes_are_followed() {
    let cluster = cluster();
    let primary = cluster.primary();
    let (plain, forced) = ("DROP DATABASE followed", "DROP DATABASE followed WITH (FORCE)");
    let (parsed, bound) = (Frames::new().parse("", plain).bind("", "", &[]), Frames::new().bind("", "s", &[]));
    let (at_once, later) = (parsed.execute("", 0).sync(), bound.execute("", 0).sync());
    let earlier = || Frames::new().parse("s", forced).sync();
    for (mode, before, drop, expected) in [
        ("transaction", None, Frames::new().query(plain), "CZ"),
        ("session", None, Frames::new().query(forced), "CZ"),
        ("transaction", None, at_once.clone(), "12CZ"),
        ("session", None, at_once, "12CZ"),
        ("transaction", Some(earlier()), later.clone(), "2CZ"),
        ("session", Some(earlier()), later, "2CZ"),
    ] {
        primary.psql("CREATE DATABASE followed OWNER app").unwrap();
        let followed = format!(
            "[[databases]]\nname = \"followed\"\n[[databases.nodes]]\nhost = \"127.0.0.1\"\nport = {}\nrole = \"primary\"\n",
            primary.port()
        );
        let pgweir = builder(&cluster, 0).set("pool.mode", mode).operator().more(&followed).start();
        wait_until(LIMIT, "the stream of both", || {
            pgweir
                .json("/cache")
                .as_array()
                .is_some_and(|all| all.iter().all(|one| one["mode"] == "wal") && all.len() == 2)
        });
        let login = Login { user: SUPERUSER, password: primary.password(), ..Login::default() };
        let mut client = Wire::log_in(pgweir.port(), &login);
        if let Some(before) = before {
            client.ask(&before, "1Z");
        }
        assert_eq!(tags(&client.ask(&drop, expected)), expected, "{mode}");
    }
}

/// The stream's process on the primary.
fn sender(primary: &Server) -> Pid {
    let sql =
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgweir changes' AND backend_type = 'walsender'";
    let mut found = None;
    // That of a pgweir before may not have ended yet.
    wait_until(LIMIT, "one stream", || {
        found = primary.psql(sql).unwrap().trim().parse().ok().and_then(Pid::from_raw);
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn what_anybody_commits_is_gone_from_the_cache() {
    let cluster = cluster();
    let primary = cluster.primary();
    around(
        primary,
        "CREATE TABLE anyone (id int PRIMARY KEY, n int); INSERT INTO anyone VALUES (1, 0), (2, 0);
         CREATE VIEW any_view AS SELECT id, n FROM anyone;
         CREATE FUNCTION any_of(int) RETURNS int STABLE LANGUAGE sql AS 'SELECT n FROM anyone WHERE id = $1';
         CREATE TABLE any_p (id int, n int) PARTITION BY LIST (id);
         CREATE TABLE any_p1 PARTITION OF any_p FOR VALUES IN (1);
         INSERT INTO any_p VALUES (1, 0);
         CREATE TABLE any_parent (id int, n int); CREATE TABLE any_heir () INHERITS (any_parent);
         INSERT INTO any_heir VALUES (1, 0);
         CREATE FUNCTION any_copy() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN UPDATE any_p SET n = NEW.n WHERE id = NEW.id; UPDATE any_heir SET n = NEW.n; RETURN NEW; END';
         CREATE TRIGGER any_copy AFTER UPDATE ON anyone FOR EACH ROW EXECUTE FUNCTION any_copy();
         GRANT ALL ON anyone, any_view, any_p, any_parent TO app",
    );
    let pgweir = pgweir(&cluster);
    let mut client = Wire::connect(pgweir.port());
    let reads = [
        "SELECT n FROM anyone WHERE id = 1",
        "SELECT n FROM any_view WHERE id = 1",
        "SELECT any_of(1)",
        "SELECT n FROM any_p WHERE id = 1",
        "SELECT n FROM any_parent WHERE id = 1",
        "WITH w AS (SELECT max(n) AS n FROM anyone) SELECT n FROM w",
    ];
    for n in 1..4 {
        reads.iter().for_each(|sql| assert_eq!(pgweir.warm(&mut client, sql), (n - 1).to_string(), "{sql}"));
        around(primary, &format!("UPDATE anyone SET n = {n} WHERE id = 1"));
        for sql in reads {
            wait_until(LIMIT, sql, || client.value(sql) == n.to_string());
        }
    }
    let invalidated = pgweir.cache()["invalidated"]["stream"].as_u64().unwrap();
    assert!(invalidated >= 18, "{invalidated}");
}

#[test]
fn a_session_reads_what_it_wrote_and_others_soon_do() {
    let cluster = cluster();
    around(cluster.primary(), "CREATE TABLE own (n int); INSERT INTO own VALUES (0); GRANT ALL ON own TO app");
    let pgweir = pgweir(&cluster);
    let (mut writer, mut other) = (Wire::connect(pgweir.port()), Wire::connect(pgweir.port()));
    let sql = "SELECT n FROM own";
    for n in 1..200 {
        writer.query(&format!("UPDATE own SET n = {n}"));
        assert_eq!(writer.value(sql), n.to_string());
        assert_eq!(writer.value(sql), n.to_string());
        if n % 20 == 0 {
            wait_until(LIMIT, "the other to see it", || other.value(sql) == n.to_string());
        }
    }
    // And once it is told, it is a hit for the writer too.
    pgweir.warm(&mut writer, sql);
}

#[test]
fn many_who_ask_at_once_run_it_once_and_go_on_where_that_one_goes() {
    let cluster = cluster();
    let primary = cluster.primary();
    around(primary, "CREATE TABLE crowd (n int); INSERT INTO crowd VALUES (7); GRANT ALL ON crowd TO app");
    let pgweir = builder(&cluster, 0).set("admin.users", vec![toml::Value::from("app")]).start();
    wait_for_mode(&pgweir, "wal");
    let mut admin = Wire::log_in(pgweir.port(), &Login { database: "pgweir", ..Login::default() });
    pgweir.warm(&mut Wire::connect(pgweir.port()), "SELECT n FROM crowd");
    let locker = connect(&primary.url(sample::DATABASE));
    let count = |name: &str| pgweir.cache()[name].as_u64().unwrap();
    let hits = || count("hits");
    // The one that runs ends; it goes; it fails; it takes too long.
    for fate in ["ends", "leaves", "fails", "lasts"] {
        let sql = format!("SELECT n AS crowd_{fate} FROM crowd");
        let (before, missed) = (hits(), count("misses"));
        wait(locker.batch_execute("BEGIN; LOCK TABLE crowd")).unwrap();
        let ask = || {
            let mut client = Wire::connect(pgweir.port());
            client.send(&Frames::new().query(&sql));
            client
        };
        let mut first = ask();
        wait_until(LIMIT, "the first to run", || logged(primary, &sql) == 1);
        let mut others: Vec<_> = (0..5).map(|_| ask()).collect();
        wait_until(LIMIT, "the others to wait", || {
            let rows = admin.query("SHOW CLIENTS");
            rows.iter().filter(|row| row.body.windows(6).any(|word| word == b"active")).count() >= 6
        });
        match fate {
            "leaves" => drop(first),
            "fails" => {
                first.cancel();
                assert!(first.until(b'Z').iter().any(|frame| frame.tag == b'E' && frame.sqlstate() == "57014"));
            }
            _ => others.push(first),
        }
        if fate != "ends" {
            wait_until(LIMIT, "another to run", || logged(primary, &sql) > 1);
        }
        wait(locker.batch_execute("COMMIT")).unwrap();
        for client in &mut others {
            assert!(client.until(b'Z').iter().any(|frame| frame.tag == b'D' && frame.value() == "7"));
        }
        if fate == "ends" {
            assert_eq!((hits() - before, logged(primary, &sql)), (5, 1));
        }
        // Whoever waited in vain is counted too; who leaves may not have been.
        assert!(count("misses") + hits() >= missed + before + others.len() as u64, "{fate}");
    }
    assert!(pgweir.cache()["shared"].as_u64() > Some(0));
}

#[test]
fn nobody_waits_for_a_result_that_is_too_large() {
    let cluster = cluster();
    around(
        cluster.primary(),
        "CREATE TABLE large (w text); INSERT INTO large SELECT repeat('x', 1000) FROM generate_series(1, 30000); \
         GRANT ALL ON large TO app",
    );
    let pgweir = pgweir(&cluster);
    let sql = "SELECT w FROM large";
    let too_large = || pgweir.cache()["refused"]["too_large"].as_u64();
    // Who asked first does not read: its reply does not end.
    let mut stalled = Wire::connect(pgweir.port());
    wait_until(LIMIT, "the definitions", || {
        stalled.query("SELECT w FROM large LIMIT 1");
        pgweir.cache()["entries"].as_u64() > Some(0)
    });
    stalled.send(&Frames::new().query(sql));
    wait_until(LIMIT, "the stalled one's to be let go", || too_large() == Some(1));
    let mut other = Wire::connect(pgweir.port());
    assert_eq!(other.query(sql).iter().filter(|frame| frame.tag == b'D').count(), 30_000);
    assert_eq!(too_large(), Some(2));
}

#[test]
fn what_hardly_ever_comes_again_is_kept_from_its_second_time_on() {
    let cluster = cluster();
    let primary = cluster.primary();
    around(primary, "CREATE TABLE seldom AS SELECT n FROM generate_series(1, 2000) n; GRANT ALL ON seldom TO app");
    let pgweir = builder(&cluster, 0).start();
    wait_for_mode(&pgweir, "wal");
    let mut client = Wire::connect(pgweir.port());
    pgweir.warm(&mut client, "SELECT n AS warm FROM seldom LIMIT 1");
    let read = |n: u32| format!("SELECT n FROM seldom WHERE n = {n}");
    let count = |what: &str| pgweir.cache()[what].as_u64().unwrap();
    let once = || pgweir.cache()["refused"]["once"].as_u64().unwrap();
    let mut numbers = 1..2000;
    let mut ask_another = |client: &mut Wire| {
        let n = numbers.next().unwrap();
        assert_eq!(client.value(&read(n)), n.to_string());
        n
    };
    while once() == 0 {
        for _ in 0..50 {
            ask_another(&mut client);
        }
    }
    let (stored, refused) = (count("stored"), once());
    let n = (0..20).map(|_| ask_another(&mut client)).last().unwrap();
    assert_eq!((count("stored"), once()), (stored, refused + 20));
    client.value(&read(n));
    assert_eq!((count("stored"), once()), (stored + 1, refused + 20));
    let hits = count("hits");
    client.value(&read(n));
    assert_eq!(count("hits"), hits + 1);
    // The second of many runs it for the others.
    let n = ask_another(&mut client) + 1;
    let locker = connect(&primary.url(sample::DATABASE));
    wait(locker.batch_execute("BEGIN; LOCK TABLE seldom")).unwrap();
    let ask = || {
        let mut client = Wire::connect(pgweir.port());
        client.send(&Frames::new().query(&read(n)));
        client
    };
    let first = ask();
    wait_until(LIMIT, "the first to run", || logged(primary, &read(n)) == 1);
    let others: Vec<_> = (0..5).map(|_| ask()).collect();
    wait_until(LIMIT, "the second to run", || logged(primary, &read(n)) == 2);
    wait(locker.batch_execute("COMMIT")).unwrap();
    for mut client in others.into_iter().chain([first]) {
        assert!(client.until(b'Z').iter().any(|frame| frame.tag == b'D' && frame.value() == n.to_string()));
    }
    assert_eq!(logged(primary, &read(n)), 2);
    // Once its results are asked for again, they are kept at once.
    let n = ask_another(&mut client) + 1;
    (0..200).for_each(|_| drop(client.value(&read(n - 1))));
    let stored = count("stored");
    ask_another(&mut client);
    assert_eq!(count("stored"), stored + 1);
}

/// Before its client is told: whoever hears of it from that client reads it.
#[test]
fn what_a_write_says_it_changes_is_gone_for_others_at_once() {
    let cluster = cluster();
    around(
        cluster.primary(),
        "CREATE TABLE at_once (id int, n int) PARTITION BY LIST (id); CREATE TABLE at_once_1 PARTITION OF at_once DEFAULT;
         INSERT INTO at_once VALUES (1, 0); CREATE VIEW at_once_view AS SELECT * FROM at_once;
         GRANT ALL ON at_once, at_once_view TO app",
    );
    let pgweir = pgweir(&cluster);
    let (mut writer, mut other) = (Wire::connect(pgweir.port()), Wire::connect(pgweir.port()));
    let sql = "SELECT n FROM at_once_view WHERE id = 1";
    let relations = ["at_once", "at_once_view"];
    for n in 1..60 {
        pgweir.warm(&mut other, sql);
        // Else it may be as quick.
        let stream = sender(cluster.primary());
        kill_process(stream, Signal::STOP).unwrap();
        writer.query(&format!("UPDATE {} SET n = {n} WHERE id = 1", relations[n % 2]));
        assert_eq!(other.value(sql), n.to_string());
        kill_process(stream, Signal::CONT).unwrap();
    }
    assert!(pgweir.cache()["invalidated"]["write"].as_u64() > Some(0));
}

#[test]
fn what_follows_from_more_than_tables_is_not_kept() {
    let cluster = cluster();
    around(
        cluster.primary(),
        "CREATE TABLE more (id int, n int); INSERT INTO more VALUES (1, 1);
         CREATE VIEW more_clock AS SELECT n, current_date AS d FROM more;
         CREATE VIEW more_user AS SELECT n FROM more WHERE current_user <> 'x';
         CREATE VIEW more_catalog AS SELECT relname FROM pg_class;
         CREATE VIEW more_sample AS SELECT n FROM more TABLESAMPLE bernoulli (50);
         CREATE FUNCTION more_now() RETURNS timestamptz STABLE LANGUAGE sql AS 'SELECT now()';
         CREATE FUNCTION more_setting() RETURNS text STABLE LANGUAGE sql AS $$SELECT current_setting('TimeZone')$$;
         CREATE MATERIALIZED VIEW more_kept AS SELECT n FROM more;
         CREATE UNLOGGED TABLE more_unlogged (n int);
         CREATE TABLE more_secured (n int); ALTER TABLE more_secured ENABLE ROW LEVEL SECURITY;
         GRANT ALL ON more, more_clock, more_user, more_catalog, more_sample, more_kept, more_unlogged, more_secured TO app",
    );
    let pgweir = pgweir(&cluster);
    let mut client = Wire::connect(pgweir.port());
    for (sql, why) in [
        ("SELECT n, d FROM more_clock", "transient"),
        ("SELECT n FROM more_user", "transient"),
        ("SELECT relname FROM more_catalog", "relation"),
        ("SELECT n FROM more_sample", "transient"),
        ("SELECT more_now()", "transient"),
        ("SELECT more_setting()", "transient"),
        ("SELECT n FROM more_kept", "relation"),
        ("SELECT n FROM more_secured", "relation"),
        ("SELECT n FROM more WHERE random() < 2", "transient"),
    ] {
        pgweir.is_refused(&mut client, sql, why);
    }
    pgweir.warm(&mut client, "SELECT n FROM more WHERE id = 1");
}

#[test]
fn definitions_made_anywhere_are_seen_within_a_second_or_so() {
    let cluster = cluster();
    around(
        cluster.primary(),
        "CREATE TABLE defs (n int, m int); INSERT INTO defs VALUES (1, 2);
         CREATE VIEW defs_view AS SELECT n FROM defs; GRANT ALL ON defs, defs_view TO app",
    );
    let pgweir = pgweir(&cluster);
    let mut client = Wire::connect(pgweir.port());
    let sql = "SELECT * FROM defs_view";
    assert_eq!(pgweir.warm(&mut client, sql), "1");
    around(cluster.primary(), "CREATE OR REPLACE VIEW defs_view AS SELECT m AS n FROM defs");
    wait_until(LIMIT, "the view anew", || client.value(sql) == "2");
    pgweir.warm(&mut client, "SELECT * FROM defs");
    around(cluster.primary(), "ALTER TABLE defs RENAME COLUMN n TO k");
    wait_until(LIMIT, "the column's new name", || {
        let frames = client.query("SELECT * FROM defs");
        frames.iter().any(|frame| frame.tag == b'T' && frame.body.windows(2).any(|w| w == b"k\0"))
    });
    pgweir.warm(&mut client, "SELECT m FROM defs");
    around(cluster.primary(), "REVOKE ALL ON defs FROM app");
    wait_until(LIMIT, "the right to be gone", || client.query("SELECT m FROM defs").iter().any(|f| f.tag == b'E'));
    // A table of the same name in its place.
    around(cluster.primary(), "GRANT ALL ON defs TO app");
    pgweir.warm(&mut client, "SELECT m FROM defs");
    around(
        cluster.primary(),
        "BEGIN; DROP TABLE defs CASCADE; CREATE TABLE defs (m int); INSERT INTO defs VALUES (9); \
         GRANT ALL ON defs TO app; COMMIT",
    );
    wait_until(LIMIT, "the other table", || client.value("SELECT m FROM defs") == "9");
    pgweir.warm(&mut client, "SELECT m FROM defs");
    around(cluster.primary(), "TRUNCATE defs");
    wait_until(LIMIT, "no row", || client.query("SELECT m FROM defs").iter().all(|f| f.tag != b'D'));
}

#[test]
fn a_replica_that_lags_fills_nothing() {
    let cluster = cluster();
    let replica = &cluster.replicas()[0];
    around(cluster.primary(), "CREATE TABLE lags (n int); INSERT INTO lags VALUES (0); GRANT ALL ON lags TO app");
    cluster.wait_replayed(LIMIT).unwrap();
    let pgweir = builder(&cluster, 1).set("routing.max_lag", "60s").start();
    wait_for_mode(&pgweir, "wal");
    let mut client = Wire::connect(pgweir.port());
    let sql = "SELECT n FROM lags";
    pgweir.warm(&mut client, sql);
    replica.psql("SELECT pg_wal_replay_pause()").unwrap();
    let before = pgweir.cache()["invalidated"]["stream"].as_u64();
    around(cluster.primary(), "UPDATE lags SET n = 1");
    wait_until(LIMIT, "to be told", || pgweir.cache()["invalidated"]["stream"].as_u64() > before);
    let lagging = || pgweir.cache()["refused"]["lagging"].as_u64().unwrap();
    let (hits, refused) = (pgweir.cache()["hits"].clone(), lagging());
    for _ in 0..20 {
        // Sessions that have seen nothing: the replica may answer, and it has the old row.
        Wire::connect(pgweir.port()).value(sql);
    }
    assert_eq!(pgweir.cache()["hits"], hits);
    assert!(lagging() >= refused + 20);
    replica.psql("SELECT pg_wal_replay_resume()").unwrap();
    cluster.wait_replayed(LIMIT).unwrap();
    let mut fresh = Wire::connect(pgweir.port());
    assert_eq!(pgweir.warm(&mut fresh, sql), "1");
    assert!(logged(replica, sql) > 0);
}

#[test]
fn a_stream_that_breaks_or_falls_silent_closes_the_cache() {
    let cluster = cluster();
    around(cluster.primary(), "CREATE TABLE breaks (n int); INSERT INTO breaks VALUES (0); GRANT ALL ON breaks TO app");
    let pgweir = pgweir(&cluster);
    let mut client = Wire::connect(pgweir.port());
    let sql = "SELECT n FROM breaks";
    pgweir.warm(&mut client, sql);
    let closed = pgweir.cache()["invalidated"]["closed"].as_u64();
    kill_process(sender(cluster.primary()), Signal::TERM).unwrap();
    wait_until(LIMIT, "the loss to be noticed", || pgweir.cache()["invalidated"]["closed"].as_u64() > closed);
    around(cluster.primary(), "UPDATE breaks SET n = 1");
    assert_eq!(client.value(sql), "1");
    wait_for_mode(&pgweir, "wal");
    pgweir.warm(&mut client, sql);
    // Silent, and connected.
    let stream = sender(cluster.primary());
    kill_process(stream, Signal::STOP).unwrap();
    around(cluster.primary(), "UPDATE breaks SET n = 2");
    let began = std::time::Instant::now();
    let refused = || pgweir.cache()["refused"]["closed"].as_u64().unwrap();
    let before = refused();
    wait_until(LIMIT, "the silence to be noticed", || client.value(sql) == "2");
    assert!(refused() > before);
    println!("noticed after {:?}", began.elapsed());
    kill_process(stream, Signal::CONT).unwrap();
    pgweir.warm(&mut client, sql);
    assert_eq!(client.value(sql), "2");
}

#[test]
fn without_a_stream_only_what_is_named_is_kept_and_it_says_why() {
    let cluster = cluster();
    around(cluster.primary(), "CREATE TABLE alone (n int); INSERT INTO alone VALUES (0); GRANT ALL ON alone TO app");
    // The app's role may not replicate.
    let users = || Builder::default().node(cluster.primary().port(), "primary", None).set("cache.enabled", true);
    let pgweir = users().start();
    wait_for_mode(&pgweir, "ttl");
    let reason = pgweir.cache()["reason"].as_str().unwrap().to_owned();
    assert!(reason.to_lowercase().contains("replication"), "{reason}");
    let mut client = Wire::connect(pgweir.port());
    pgweir.is_refused(&mut client, "SELECT n FROM alone", "unnamed");
    pgweir.warm(&mut client, "/* pgweir: cache ttl=100s */ SELECT n FROM alone");
    let strict = users().set("cache.invalidation", "wal").start();
    wait_until(LIMIT, "the reason", || {
        strict.cache()["reason"].as_str().is_some_and(|why| why.to_lowercase().contains("replication"))
    });
    assert_eq!(strict.cache()["mode"], "closed");
    strict.is_refused(&mut Wire::connect(strict.port()), "SELECT n FROM alone", "closed");
}

#[test]
fn writes_that_pass_through_are_enough_where_nobody_else_writes() {
    let cluster = cluster();
    around(cluster.primary(), "CREATE TABLE lone (n int); INSERT INTO lone VALUES (0); GRANT ALL ON lone TO app");
    let pgweir = builder(&cluster, 0).set("cache.invalidation", "writes").start();
    assert_eq!(pgweir.cache()["mode"], "writes");
    let (mut one, mut two) = (Wire::connect(pgweir.port()), Wire::connect(pgweir.port()));
    for n in 0..20 {
        assert_eq!(pgweir.warm(&mut one, "SELECT n FROM lone"), n.to_string());
        two.query(&format!("UPDATE lone SET n = {}", n + 1));
        assert_eq!(one.value("SELECT n FROM lone"), (n + 1).to_string());
    }
}

#[test]
fn it_is_shown_and_can_be_evicted() {
    let cluster = cluster();
    around(
        cluster.primary(),
        "CREATE TABLE ev (n int); INSERT INTO ev VALUES (0); CREATE TABLE ev2 (n int); INSERT INTO ev2 VALUES (0);
         CREATE VIEW ev_view AS SELECT n FROM ev; GRANT ALL ON ev, ev2, ev_view TO app",
    );
    let pgweir =
        builder(&cluster, 0).set("admin.users", vec![toml::Value::from("app")]).set("admin.token", TOKEN).start();
    wait_for_mode(&pgweir, "wal");
    let mut client = Wire::connect(pgweir.port());
    let mut admin = Wire::log_in(pgweir.port(), &Login { database: "pgweir", ..Login::default() });
    let entries = || pgweir.cache()["entries"].as_u64().unwrap();
    for evict in ["EVICT CACHE ev", "EVICT CACHE public.ev_view", "EVICT CACHE"] {
        pgweir.warm(&mut client, "SELECT n FROM ev");
        pgweir.warm(&mut client, "SELECT n FROM ev2");
        assert_eq!(entries(), 2);
        let commanded = pgweir.cache()["invalidated"]["command"].as_u64().unwrap();
        let gone = if evict == "EVICT CACHE" { 2 } else { 1 };
        assert!(admin.query(evict).iter().any(|frame| frame.tag == b'C' && frame.body.starts_with(b"EVICT CACHE")));
        assert_eq!(entries(), 2 - gone, "{evict}");
        assert_eq!(pgweir.cache()["invalidated"]["command"], commanded + gone);
    }
    // What is not there is not evicted, in no way of asking.
    let wrong = admin.query("EVICT CACHE ev_wrong");
    assert_eq!(wrong.iter().find(|frame| frame.tag == b'E').map(|frame| frame.sqlstate()).as_deref(), Some("42P01"));
    pgweir.warm(&mut client, "SELECT n FROM ev");
    let entries_before = entries();
    assert_eq!(pgweir.post("/cache/evict?table=ev_wrong").status, 400);
    assert_eq!((pgweir.post("/cache/evict?table=public%2Eev").status, entries()), (200, entries_before - 1));
    let shown = admin.query("SHOW CACHE");
    assert!(shown.iter().any(|frame| frame.tag == b'D' && frame.body.windows(3).any(|w| w == b"wal")));
    // By statement too, before it runs and behind it.
    for _ in 0..2 {
        client.query("SELECT n, now() FROM ev");
        client.query("SELECT n, 1 / n FROM ev");
    }
    // In one write with a write, which has nothing to do with the cache.
    client.send(&Frames::new().query("SELECT n, n FROM ev").query("UPDATE ev2 SET n = n"));
    client.until(b'Z');
    client.until(b'Z');
    let statements = pgweir.json("/statements");
    let of = |text: &str| statements.as_array().unwrap().iter().find(|s| s["text"] == text).unwrap().clone();
    let (read, write) = (of("SELECT n, n FROM ev"), of("UPDATE ev2 SET n = n"));
    assert_eq!((&read["cache_misses"], &write["cache_misses"]), (&json!(1), &json!(0)), "{write}");
    assert_eq!(of("SELECT n, now() FROM ev")["cache_refused"], json!({ "transient": 2 }));
    let failing = of("SELECT n, $1 / n FROM ev");
    assert_eq!((&failing["cache_misses"], &failing["cache_refused"]), (&json!(2), &json!({ "incomplete": 2 })));
    assert!(of("SELECT n FROM ev")["cache_hits"].as_u64() > Some(0));
    pgweir.warm(&mut client, "SELECT n FROM ev");
    // The same figures everywhere.
    let cache = pgweir.cache();
    let asked = [&cache["hits"], &cache["misses"]].map(|count| count.as_f64().unwrap());
    let rate = (1e4 * asked[0] / (asked[0] + asked[1])).round() / 100.0;
    assert_eq!(cache["hit_rate"], json!(rate));
    assert!(cache["invalidated"]["command"].as_u64() > Some(0) && cache["bytes"].as_u64() > Some(0));
    let metrics = pgweir.get("/metrics").1;
    let label = |part: &str| format!("{{database=\"app\"{part}}}");
    for (name, value) in [
        (format!("entries{}", label("")), &cache["entries"]),
        (format!("bytes{}", label("")), &cache["bytes"]),
        (format!("stored_total{}", label("")), &cache["stored"]),
        (format!("evicted_total{}", label("")), &cache["evicted"]),
        (format!("invalidated_total{}", label(",cause=\"command\"")), &cache["invalidated"]["command"]),
        (format!("refused_total{}", label(",reason=\"transient\"")), &cache["refused"]["transient"]),
    ] {
        let line = format!("pgweir_cache_{name} {value}\n");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
}

/// Where memory runs short, nothing is kept, idle connections go, and clients notice nothing.
#[test]
fn memory_that_runs_short_empties_the_cache() {
    let cluster = cluster();
    let pgweir = builder(&cluster, 0).set("cache.invalidation", "writes").start();
    let mut clients: Vec<_> = (0..4).map(|_| Wire::connect(pgweir.port())).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        // At once, so that each has a connection.
        client.query("BEGIN");
        assert_eq!(client.value(&format!("SELECT {n}")), n.to_string());
    }
    clients.iter_mut().for_each(|client| drop(client.query("COMMIT")));
    pgweir.warm(&mut clients[0], "SELECT 7");
    assert!(pgweir.cache()["bytes"].as_u64() > Some(0));
    let idle = |pgweir: &Pgweir| {
        let pools = pgweir.json("/pools");
        let of_app = pools.as_array().unwrap().iter().find(|pool| pool["user"] == "app").unwrap().clone();
        of_app["sv_idle"].as_u64().unwrap()
    };
    assert!(idle(&pgweir) >= 4);
    let tight = builder(&cluster, 0).set("cache.invalidation", "writes").set("memory.limit", "1MiB");
    pgweir.reload(&tight);
    wait_until(LIMIT, "the cache to be emptied", || pgweir.cache()["bytes"] == 0);
    wait_until(LIMIT, "idle connections to go", || idle(&pgweir) == 0);
    assert!(pgweir.cache()["evicted"].as_u64() > Some(0));
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.value(&format!("SELECT {n}")), n.to_string());
    }
    pgweir.reload(&tight.set("memory.limit", "64GiB"));
    pgweir.warm(&mut clients[0], "SELECT 7");
}

/// The most memory that it has had so far, in KiB.
fn peak(pgweir: &Pgweir) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pgweir.pid().as_raw_nonzero())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_transaction_of_very_many_rows_takes_no_memory_and_what_it_changed_is_gone() {
    const MOST: u64 = 32 * 1024;
    let cluster = cluster();
    let primary = cluster.primary();
    around(primary, "CREATE TABLE burst (n int, t text); GRANT ALL ON burst TO app");
    let pgweir = pgweir(&cluster);
    let mut client = Wire::connect(pgweir.port());
    let sql = "SELECT count(*) FROM burst";
    assert_eq!(pgweir.warm(&mut client, sql), "0");
    let before = peak(&pgweir);
    around(primary, "INSERT INTO burst SELECT n, repeat('x', 300) FROM generate_series(1, 300000) n");
    let committed = std::time::Instant::now();
    // Until it is told, an answer may be one from before. Once it is, answers are kept as before.
    wait_until(LIMIT, "the new rows", || pgweir.warm(&mut client, sql) == "300000");
    let after = peak(&pgweir);
    println!("300,000 rows told in {:?}; memory {before} KiB before, {after} KiB at most", committed.elapsed());
    assert!(after < before + MOST, "{before} KiB before, {after} KiB at most");
    assert_eq!(pgweir.cache()["mode"], "wal");
    around(primary, "DROP TABLE burst");
}
