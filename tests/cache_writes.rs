//! The result cache where what passes through is all that is known of changes (`cache.invalidation = "writes"`): a write
//! ends what follows from its tables, and all where more may come of it.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pgweir::demo::cluster::{Cluster, SUPERUSER};
use pgweir::demo::sample;
use support::client::{connect, wait};
use support::wire::{self, Frames, Login, Wire};
use support::{Gate, LIMIT, Pgweir, lone_primary, wait_until};

fn start(cluster: &Cluster) -> Pgweir {
    Pgweir::builder().cluster(cluster, &[]).set("cache.enabled", true).set("cache.invalidation", "writes").start()
}

fn around(cluster: &Cluster, sql: &str) {
    cluster.primary().psql_in(sample::DATABASE, sql).unwrap();
}

#[test]
fn a_write_ends_what_follows_from_its_tables_and_nothing_else() {
    let cluster = lone_primary();
    around(
        &cluster,
        "CREATE TABLE narrow_parent (id int PRIMARY KEY); INSERT INTO narrow_parent VALUES (1), (2), (3);
         CREATE TABLE narrow_a (id serial, n int DEFAULT 0 CHECK (n >= 0), parent int REFERENCES narrow_parent);
         CREATE TABLE narrow_p (n int) PARTITION BY LIST (n); CREATE TABLE narrow_p0 PARTITION OF narrow_p DEFAULT;
         CREATE TABLE narrow_other (n int); INSERT INTO narrow_other VALUES (0);
         CREATE VIEW narrow_view AS SELECT count(*) AS n FROM narrow_a;
         GRANT ALL ON narrow_parent, narrow_a, narrow_p, narrow_p0, narrow_other, narrow_view TO app;
         GRANT ALL ON SEQUENCE narrow_a_id_seq TO app",
    );
    let pgweir = start(&cluster);
    let (mut writer, mut client) = (Wire::connect(pgweir.port()), Wire::connect(pgweir.port()));
    let other = "SELECT n FROM narrow_other";
    assert_eq!(pgweir.warm(&mut client, other), "0");
    // What shows that it is kept all the time.
    around(&cluster, "UPDATE narrow_other SET n = 9");
    let count = |of: &str| format!("SELECT n FROM {of}");
    let reads = [count("narrow_view"), "SELECT count(*) FROM narrow_p".into(), "SELECT sum(n) FROM narrow_a".into()];
    let writes = [
        ("INSERT INTO narrow_a (n, parent) VALUES (7, 1)", ["1", "0", "7"]),
        ("INSERT INTO narrow_p VALUES (1)", ["1", "1", "7"]),
        ("DELETE FROM narrow_p0", ["1", "0", "7"]),
        ("UPDATE narrow_a SET n = n + 1", ["1", "0", "8"]),
        ("WITH w AS (INSERT INTO narrow_p VALUES (3), (4) RETURNING n) UPDATE narrow_a SET n = 1", ["1", "2", "1"]),
        // What refers to it is not changed by that.
        ("DELETE FROM narrow_parent WHERE id = 3", ["1", "2", "1"]),
    ];
    for (write, expected) in writes {
        reads.iter().for_each(|sql| drop(pgweir.warm(&mut client, sql)));
        let tags: Vec<_> = writer.query(write).iter().map(|frame| frame.tag).collect();
        assert!(tags.contains(&b'C') && !tags.contains(&b'E'), "{write}");
        let came: Vec<_> = reads.iter().map(|sql| client.value(sql)).collect();
        assert_eq!(came, expected, "{write}");
        assert_eq!(client.value(other), "0", "{write}");
    }
    // Within a transaction, with values bound, and by COPY.
    reads.iter().for_each(|sql| drop(pgweir.warm(&mut client, sql)));
    writer.query("BEGIN");
    writer.ask(&Frames::new().run("INSERT INTO narrow_p VALUES ($1::int)", &["5"]).sync(), "12CZ");
    writer.query("UPDATE narrow_a SET n = 3");
    assert_eq!(client.value(&reads[2]), "1");
    writer.query("COMMIT");
    assert_eq!((client.value(&reads[1]), client.value(&reads[2])), ("3".into(), "3".into()));
    pgweir.warm(&mut client, &reads[1]);
    writer.send(&Frames::new().query("COPY narrow_p FROM STDIN"));
    writer.until(b'G');
    writer.send(&Frames::new().copy_data(b"6\n7\n").copy_done());
    writer.until(b'Z');
    assert_eq!(client.value(&reads[1]), "5");
    assert_eq!(client.value(other), "0");
    // Which ends all, for it changes definitions.
    pgweir.warm(&mut client, &reads[1]);
    writer.query("TRUNCATE narrow_p");
    assert_eq!(client.value(&reads[1]), "0");
}

/// Two names of `[[databases]]` for one database of one server.
#[test]
fn a_write_by_another_name_of_the_database_ends_it_too() {
    let cluster = lone_primary();
    around(&cluster, "CREATE TABLE twin (n int); INSERT INTO twin VALUES (0); GRANT ALL ON twin TO app");
    let port = cluster.primary().port();
    let reports = format!(
        "[[databases]]\nname = \"reports\"\ndbname = \"app\"\n[[databases.nodes]]\nhost = \"127.0.0.1\"\n\
         port = {port}\nrole = \"primary\"\n"
    );
    for invalidation in ["writes", "ttl"] {
        let builder = Pgweir::builder().cluster(&cluster, &[]).set("cache.enabled", true);
        let pgweir = builder.set("cache.invalidation", invalidation).more(&reports).start();
        let mut client = Wire::connect(pgweir.port());
        let mut other = Wire::log_in(pgweir.port(), &Login { database: "reports", ..Login::default() });
        let sql = "/* pgweir: cache ttl=60s */ SELECT n FROM twin";
        let before: u32 = pgweir.warm(&mut client, sql).parse().unwrap();
        other.query("UPDATE twin SET n = n + 1");
        assert_eq!(client.value(sql), (before + 1).to_string(), "{invalidation}");
    }
}

#[test]
fn a_write_of_which_more_may_come_ends_all() {
    let cluster = lone_primary();
    around(
        &cluster,
        "CREATE TABLE wide (n int); INSERT INTO wide VALUES (0);
         CREATE FUNCTION wide_raise() RETURNS int LANGUAGE sql AS 'UPDATE wide SET n = n + 1 RETURNING n';
         CREATE FUNCTION wide_trigger() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM wide_raise(); RETURN NULL; END';
         CREATE TABLE wide_t (n int); CREATE TRIGGER t AFTER INSERT ON wide_t FOR EACH STATEMENT EXECUTE FUNCTION wide_trigger();
         CREATE TABLE wide_p (n int) PARTITION BY LIST (n); CREATE TABLE wide_p0 PARTITION OF wide_p DEFAULT;
         CREATE TRIGGER t AFTER INSERT ON wide_p0 FOR EACH ROW EXECUTE FUNCTION wide_trigger();
         CREATE TABLE wide_r (n int); CREATE RULE r AS ON INSERT TO wide_r DO ALSO UPDATE wide SET n = n + 1;
         CREATE TABLE wide_d (n int, m int DEFAULT wide_raise());
         CREATE TABLE wide_c (n int CHECK (wide_raise() > 0));
         CREATE TABLE wide_k (n int PRIMARY KEY); INSERT INTO wide_k VALUES (1), (2);
         CREATE TABLE wide_f (n int REFERENCES wide_k ON DELETE CASCADE ON UPDATE CASCADE);
         CREATE TRIGGER t AFTER DELETE ON wide_f FOR EACH ROW EXECUTE FUNCTION wide_trigger();
         INSERT INTO wide_f VALUES (1);
         CREATE TABLE wide_x (n int); CREATE VIEW wide_v AS SELECT n FROM wide_x;
         CREATE TRIGGER t INSTEAD OF INSERT ON wide_v FOR EACH ROW EXECUTE FUNCTION wide_trigger();
         CREATE TABLE wide_late (n int);
         GRANT ALL ON wide, wide_t, wide_p, wide_p0, wide_r, wide_d, wide_c, wide_k, wide_f, wide_x, wide_v, wide_late TO app;
         ALTER TABLE wide_late OWNER TO app",
    );
    let pgweir = start(&cluster);
    let (mut writer, mut client) = (Wire::connect(pgweir.port()), Wire::connect(pgweir.port()));
    let sql = "SELECT n FROM wide";
    let writes = [
        "UPDATE wide SET n = n + 1",
        "INSERT INTO wide_t VALUES (1)",
        "INSERT INTO wide_p VALUES (1)",
        "INSERT INTO wide_r VALUES (1)",
        "INSERT INTO wide_d (n) VALUES (1)",
        "INSERT INTO wide_c VALUES (1)",
        "DELETE FROM wide_k WHERE n = 1",
        "INSERT INTO wide_v VALUES (1)",
        "INSERT INTO wide_x SELECT wide_raise()",
        "SELECT wide_raise()",
        "DO $$BEGIN PERFORM wide_raise(); END$$",
        "INSERT INTO wide_x VALUES (1); UPDATE wide SET n = n + 1",
        "PREPARE p AS UPDATE wide SET n = n + 1; EXECUTE p",
    ];
    for write in writes {
        let before: u64 = pgweir.warm(&mut client, sql).parse().unwrap();
        let came = writer.query(write);
        assert!(came.iter().all(|frame| frame.tag != b'E'), "{write}");
        assert_eq!(client.value(sql), (before + 1).to_string(), "{write}");
    }
    // A trigger that is made here is known at once; one that is made elsewhere at the next look, though by what it has
    // prepared this session holds a connection.
    let before: u64 = pgweir.warm(&mut client, sql).parse().unwrap();
    writer.query("CREATE TRIGGER t AFTER INSERT ON wide_late FOR EACH STATEMENT EXECUTE FUNCTION wide_trigger()");
    writer.query("INSERT INTO wide_late VALUES (1)");
    assert_eq!(client.value(sql), (before + 1).to_string());
    pgweir.warm(&mut client, sql);
    writer.query("DROP TRIGGER t ON wide_late");
    around(
        &cluster,
        "CREATE TRIGGER t AFTER INSERT ON wide_late FOR EACH STATEMENT EXECUTE FUNCTION wide_trigger();
         CREATE TRIGGER u AFTER DELETE ON wide_late FOR EACH STATEMENT EXECUTE FUNCTION wide_trigger()",
    );
    wait_until(LIMIT, "the trigger to be known", || {
        let before: u64 = pgweir.warm(&mut client, sql).parse().unwrap();
        writer.query("INSERT INTO wide_late VALUES (1)");
        client.value(sql) == (before + 1).to_string()
    });
}

/// The server hears late that nobody waits for it any more, and commits.
#[test]
fn a_write_whose_end_nobody_saw_ends_what_was_read_before_it() {
    let cluster = lone_primary();
    around(&cluster, "CREATE TABLE broken (n int); INSERT INTO broken VALUES (0); GRANT ALL ON broken TO app");
    let locker = connect(&cluster.primary().url(sample::DATABASE));
    for invalidation in ["writes", "ttl"] {
        let gate = Gate::new(cluster.primary().port());
        let builder = Pgweir::builder().node(gate.port, "primary", None).set("cache.enabled", true);
        let pgweir = builder.set("cache.invalidation", invalidation).start();
        let mut client = Wire::connect(pgweir.port());
        let sql = "/* pgweir: cache ttl=60s */ SELECT n FROM broken";
        let now = || cluster.primary().psql_in(sample::DATABASE, "SELECT n FROM broken").unwrap().trim().to_owned();
        // As often as it takes on a busy machine: what comes later than a second, nobody waits for.
        let in_time = (0..10).any(|_| {
            let next = (now().parse::<u32>().unwrap() + 1).to_string();
            pgweir.warm(&mut client, sql);
            wait(locker.batch_execute("BEGIN; LOCK TABLE broken IN SHARE ROW EXCLUSIVE MODE")).unwrap();
            let mut writer = Wire::connect(pgweir.port());
            writer.send(&Frames::new().query(&format!("UPDATE broken SET n = {next}")));
            let waiting =
                "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^UPDATE broken' AND wait_event_type = 'Lock'";
            wait_until(LIMIT, "the write", || cluster.primary().psql(waiting).unwrap().trim() == "1");
            let cut = Instant::now();
            gate.cut();
            writer.rest();
            wait_until(LIMIT, "the row of before", || client.query(sql).iter().any(|frame| frame.tag == b'D'));
            wait(locker.batch_execute("COMMIT")).unwrap();
            wait_until(LIMIT, "the commit", || now() == next);
            let in_time = cut.elapsed() < Duration::from_millis(900);
            wait_until(LIMIT, "the row to be seen", || !in_time || client.value(sql) == next);
            in_time
        });
        assert!(in_time, "{invalidation}");
    }
}

/// Sends cancel requests while `asked` runs: one that comes before anything is waited for is lost, as in Postgres.
fn cancelled<T>(pgweir: &Pgweir, (pid, secret): (i32, &[u8]), asked: impl FnOnce() -> T) -> T {
    let (port, done) = (pgweir.port(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                wire::cancel(port, pid, secret);
                thread::sleep(Duration::from_millis(20));
            }
        });
        let answer = asked();
        done.store(true, Ordering::Relaxed);
        answer
    })
}

#[test]
fn who_waits_for_anothers_run_or_for_a_connection_can_be_cancelled() {
    let cluster = lone_primary();
    around(&cluster, "CREATE TABLE held (n int); INSERT INTO held VALUES (7); GRANT ALL ON held TO app");
    let builder =
        Pgweir::builder().cluster(&cluster, &[]).set("cache.enabled", true).set("cache.invalidation", "writes");
    let pgweir = builder.set("pool.max", 2).set("pool.acquire_timeout", "1s").start();
    let misses = || pgweir.cache()["misses"].as_u64().unwrap();
    let errors = |frames: &[wire::Frame]| frames.iter().find(|frame| frame.tag == b'E').map(wire::Frame::sqlstate);
    let (mut first, mut other) = (Wire::connect(pgweir.port()), Wire::connect(pgweir.port()));
    let sql = "SELECT n FROM held";
    pgweir.warm(&mut first, "SELECT n + 1 FROM held");
    let locker = connect(&cluster.primary().url(sample::DATABASE));
    wait(locker.batch_execute("BEGIN; LOCK TABLE held")).unwrap();
    let before = misses();
    first.send(&Frames::new().query(sql));
    wait_until(LIMIT, "the first to run", || misses() == before + 1);
    let key = (other.pid, other.secret.clone());
    // What it asks in vain would be a miss, and run for itself.
    let came = cancelled(&pgweir, (key.0, &key.1), || other.query(sql));
    assert_eq!((errors(&came).as_deref(), misses()), (Some("57014"), before + 1));
    other.query("SET statement_timeout = '100ms'");
    let came = other.query(sql);
    assert_eq!((errors(&came).as_deref(), misses()), (Some("57014"), before + 1));
    other.query("RESET statement_timeout");
    wait(locker.batch_execute("COMMIT")).unwrap();
    assert_eq!(first.until(b'Z').iter().find(|frame| frame.tag == b'D').unwrap().value(), "7");
    assert_eq!(other.value(sql), "7");

    // One that is refused a connection has nothing to wait for.
    let mut holders = [Wire::connect(pgweir.port()), Wire::connect(pgweir.port())];
    holders.iter_mut().for_each(|holder| drop(holder.query("BEGIN; SELECT 1")));
    let (sql, before) = ("SELECT n + 2 FROM held", misses());
    assert_eq!(errors(&first.query(sql)).as_deref(), Some("53300"));
    holders.iter_mut().for_each(|holder| drop(holder.query("COMMIT")));
    other.send(&Frames::new().query(sql));
    wait_until(Duration::from_secs(3), "a run of its own", || misses() == before + 2);
    assert!(other.until(b'Z').iter().any(|frame| frame.tag == b'D' && frame.value() == "9"));
    // Nobody is left in the queue who has been cancelled.
    holders.iter_mut().for_each(|holder| drop(holder.query("BEGIN; SELECT 1")));
    let came = cancelled(&pgweir, (key.0, &key.1), || other.query("SELECT n + 3 FROM held"));
    assert_eq!(errors(&came).as_deref(), Some("57014"));
    holders.iter_mut().for_each(|holder| drop(holder.query("COMMIT")));
    assert_eq!(other.value("SELECT n + 3 FROM held"), "10");
}

/// What was read from the primary of before is not there for the one that has been promoted. Other definitions than those of before, which
/// are read then, do not concern a read of which nobody knows what is behind it.
#[test]
fn a_promotion_ends_what_was_read_before_it() {
    let cluster = Cluster::builder().replicas(1).start().unwrap();
    sample::install(cluster.primary()).unwrap();
    around(
        &cluster,
        "CREATE TABLE lost (n int); INSERT INTO lost VALUES (0); GRANT ALL ON lost TO app;
         ALTER TABLE lost ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON lost USING (true)",
    );
    cluster.wait_replayed(LIMIT).unwrap();
    let (primary, replica) = (cluster.primary(), &cluster.replicas()[0]);
    let pgweir = Pgweir::builder()
        .node(primary.port(), "auto", None)
        .node(replica.port(), "auto", None)
        .user(SUPERUSER, primary.password())
        .set("cache.enabled", true)
        .set("cache.invalidation", "ttl")
        .set("pool.connection_timeout", "500ms")
        .start();
    let (mut client, sql) = (Wire::connect(pgweir.port()), "/* pgweir: cache ttl=200s */ SELECT n FROM lost");
    // Which it will not have been sent.
    replica.psql("ALTER SYSTEM SET primary_conninfo = ''").unwrap();
    replica.psql("SELECT pg_reload_conf()").unwrap();
    wait_until(LIMIT, "the replica to be alone", || {
        replica.psql("SELECT count(*) FROM pg_stat_wal_receiver").unwrap().trim() == "0"
    });
    client.query("UPDATE lost SET n = 1");
    pgweir.warm(&mut client, sql);
    primary.kill9();
    let left = replica.psql_in(sample::DATABASE, sql).unwrap().trim().to_owned();
    replica.promote().unwrap();
    let mut client = Wire::connect(pgweir.port());
    wait_until(LIMIT, "what the new primary has", || {
        client.query(sql).iter().any(|frame| frame.tag == b'D' && frame.value() == left)
    });
    assert_eq!(left, "0");
}
