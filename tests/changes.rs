//! The change stream on real servers: every commit told, whoever made it, and when no read can miss it any more.

mod support;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use pgweir::auth::{Credentials, Password};
use pgweir::backend::connect::{Login, ServerCredentials};
use pgweir::cluster::Cluster;
use pgweir::cluster::changes::{Cause, Changed, Commit, Event, Follow, Lsn, Relation, Urge, follow};
use pgweir::config::{Freshness, LoadBalancing, Node, NodeRole, PrimaryReads, Routing, TlsMode};
use pgweir::demo::cluster::{self as servers, SUPERUSER, Server, Shutdown};
use pgweir::demo::sample;
use pgweir::net::tls::Connector;
use pgweir::sql::Name;
use support::client::{connect, wait};
use support::{LIMIT, Pgweir, wait_until};

/// What a stream of one database tells; dropped, it ends with its cluster.
struct Told {
    events: Receiver<Event>,
    cluster: Arc<Cluster>,
}

struct Stream<'a> {
    servers: &'a [&'a Server],
    user: &'a str,
    publication: Option<&'a str>,
}

impl Stream<'_> {
    fn follow(&self) -> Told {
        let node = |server: &&Server| Node {
            host: server.host().into(),
            port: server.port(),
            role: NodeRole::Auto,
            weight: 1,
        };
        let nodes: Vec<_> = self.servers.iter().map(node).collect();
        let routing = Routing {
            load_balancing: LoadBalancing::Weighted,
            failover: true,
            freshness: Freshness::Session,
            max_lag: LIMIT,
            primary_reads: PrimaryReads::Fallback,
            probe_interval: LIMIT,
        };
        let cluster = Arc::new(Cluster::new("postgres".into(), &nodes, &routing, Instant::now()));
        cluster.nodes[0].note_role(false);
        let password = if self.user == SUPERUSER { self.servers[0].password() } else { self.user };
        let how = Follow {
            logins: vec![Login {
                user: self.user.into(),
                database: "postgres".into(),
                credentials: ServerCredentials::new(Credentials::Plain(Password::new(password))),
            }],
            tls: Connector::new(TlsMode::Disable, None).unwrap(),
            timeout: LIMIT,
            publication: self.publication.map(Into::into),
            fleet: false,
            urge: Urge::default(),
        };
        let (sender, events) = channel();
        // Nobody listens any more when the test is over.
        let following = follow(Arc::downgrade(&cluster), how, move |event| drop(sender.send(event)));
        std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(following);
        });
        Told { events, cluster }
    }
}

fn of(server: &Server) -> Told {
    Stream { servers: &[server], user: SUPERUSER, publication: None }.follow()
}

impl Told {
    /// The first event, from now on, of which `what` makes something.
    fn find<T>(&self, mut what: impl FnMut(&Event) -> Option<T>) -> T {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left).expect("the stream tells it in time");
            if let Some(found) = what(&event) {
                return found;
            }
        }
    }

    fn whole(&self) -> Lsn {
        self.find(|event| match event {
            Event::Whole { from } => Some(*from),
            _ => None,
        })
    }

    fn commit(&self) -> Commit {
        self.find(|event| match event {
            Event::Commit(commit) => Some(commit.clone()),
            _ => None,
        })
    }

    /// The next commit's relations, sorted.
    fn changed(&self) -> Vec<String> {
        let Changed::These(relations) = self.commit().changed else { return vec!["any".into()] };
        let name = |relation: &Relation| match relation {
            Relation::Named(Name { schema, name }) => format!("{}.{name}", schema.as_deref().unwrap()),
            Relation::Oid(oid) => oid.to_string(),
        };
        let mut names: Vec<_> = relations.iter().map(name).collect();
        names.sort();
        names
    }

    fn lost(&self) -> Cause {
        self.find(|event| match event {
            Event::Lost(cause) => Some(cause.clone()),
            _ => None,
        })
    }

    fn visible(&self, end: Lsn) {
        self.find(|event| matches!(event, Event::Visible(up_to) if *up_to >= end).then_some(()));
    }

    /// The commit is not said to be visible while the stream is seen to go on.
    fn is_held_back(&self, end: Lsn, primary: &Server) -> bool {
        let mut seen = false;
        for _ in 0..3 {
            primary.psql("SELECT pg_logical_emit_message(false, 'a', 'sign of life')").unwrap();
            self.find(|event| {
                seen |= matches!(event, Event::Visible(up_to) if *up_to >= end);
                matches!(event, Event::Reached(_)).then_some(())
            });
        }
        !seen
    }
}

fn single() -> servers::Cluster {
    servers::Cluster::builder().start().unwrap()
}

#[test]
fn every_commit_is_told_whoever_made_it_and_however() {
    let cluster = single();
    let sql = |sql: &str| cluster.primary().psql(sql).unwrap();
    sql("CREATE TABLE t (id int PRIMARY KEY, n int); CREATE TABLE \"O\"\"dd: x\" (id int); CREATE UNLOGGED TABLE u (id int);
         CREATE TABLE p (id int) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (9);
         CREATE TABLE child (t int REFERENCES t ON DELETE CASCADE);
         CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.\"O\"\"dd: x\" VALUES (1); RETURN NEW; END';
         CREATE TRIGGER f AFTER UPDATE ON t FOR EACH ROW EXECUTE FUNCTION f();");
    let told = of(cluster.primary());
    told.whole();
    let cases = [
        ("INSERT INTO t VALUES (1, 1)", "public.t"),
        ("UPDATE t SET n = 2", "public.O\"dd: x public.t"),
        (
            "BEGIN; INSERT INTO t VALUES (2, 2); SAVEPOINT a; INSERT INTO p VALUES (1); ROLLBACK TO a; COMMIT",
            "public.t",
        ),
        ("INSERT INTO p VALUES (1)", "public.p1"),
        ("INSERT INTO child VALUES (1)", "public.child"),
        ("DELETE FROM t WHERE id = 1", "public.child public.t"),
        ("TRUNCATE t, p CASCADE", "public.child public.p public.p1 public.t"),
        ("COPY child FROM PROGRAM 'true'; INSERT INTO t VALUES (7)", "public.t"),
        ("DO $$ BEGIN INSERT INTO t VALUES (8); COMMIT; END $$", "public.t"),
        // Definitions alone, of which nothing is shown.
        ("CREATE INDEX ON t (n)", ""),
        ("ALTER TABLE t ADD COLUMN more text", ""),
        ("GRANT SELECT ON t TO PUBLIC", ""),
        ("DROP TABLE child", ""),
    ];
    for (statement, expected) in cases {
        // Neither a rollback nor an unlogged table's row shows.
        sql("BEGIN; INSERT INTO t VALUES (99); ROLLBACK");
        sql("INSERT INTO u VALUES (1)");
        sql(statement);
        assert_eq!(told.changed().join(" "), expected, "{statement}");
    }
}

#[test]
fn a_commits_end_is_where_a_replica_shows_it() {
    let cluster = servers::Cluster::builder().replicas(1).start().unwrap();
    cluster.primary().psql("CREATE TABLE t (n int)").unwrap();
    let told = of(cluster.primary());
    told.whole();
    for n in 1..=20 {
        cluster.primary().psql(&format!("INSERT INTO t VALUES ({n})")).unwrap();
        let end = told.commit().end;
        let replayed = || cluster.replicas()[0].psql(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'")).unwrap();
        wait_until(LIMIT, "the replica has replayed it", || replayed().trim() == "t");
        assert_eq!(cluster.replicas()[0].psql("SELECT max(n) FROM t").unwrap().trim(), n.to_string());
        let flushed = cluster.primary().psql(&format!("SELECT pg_current_wal_lsn() >= '{end}'")).unwrap();
        assert_eq!(flushed.trim(), "t");
    }
}

#[test]
fn a_commit_that_waits_for_a_standby_is_told_and_not_yet_visible() {
    let cluster = single();
    let primary = cluster.primary();
    primary.psql("CREATE TABLE t (n int)").unwrap();
    let told = of(primary);
    let from = told.whole();
    told.visible(from);
    primary.psql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").unwrap();
    primary.psql("SELECT pg_reload_conf()").unwrap();
    wait_until(LIMIT, "the setting is in force", || {
        primary.psql("SHOW synchronous_standby_names").unwrap().contains("nobody")
    });
    let writer = connect(&primary.url("postgres"));
    let pid: i32 = wait(writer.query_one("SELECT pg_backend_pid()", &[])).unwrap().get(0);
    let writing = std::thread::spawn(move || wait(writer.batch_execute("INSERT INTO t VALUES (1)")));
    let commit = told.find(|event| match event {
        Event::Commit(commit) if !commit.is_empty() => Some(commit.clone()),
        _ => None,
    });
    assert_eq!(primary.psql("SELECT count(*) FROM t").unwrap().trim(), "0", "what makes the difference");
    assert!(told.is_held_back(commit.end, primary));
    // It stops waiting, and the commit stands.
    primary.psql(&format!("SELECT pg_cancel_backend({pid})")).unwrap();
    told.visible(commit.end);
    assert_eq!(primary.psql("SELECT count(*) FROM t").unwrap().trim(), "1");
    writing.join().unwrap().unwrap();
}

#[test]
fn the_stream_follows_a_restart_and_leaves_no_slot_behind() {
    let cluster = single();
    let primary = cluster.primary();
    primary.psql("CREATE TABLE t (n int)").unwrap();
    let told = of(primary);
    let before = told.whole();
    primary.restart().unwrap();
    assert!(matches!(told.lost(), Cause::Failed(_)));
    let after = told.whole();
    assert!(after > before);
    primary.psql("INSERT INTO t VALUES (1)").unwrap();
    assert_eq!(told.changed(), ["public.t"]);
    drop(told);
    let slots = || primary.psql("SELECT count(*) FROM pg_replication_slots").unwrap();
    wait_until(LIMIT, "no slot is left", || slots().trim() == "0");
}

#[test]
fn a_promotion_moves_the_stream_to_the_new_primary() {
    let cluster = servers::Cluster::builder().replicas(1).start().unwrap();
    let replica = &cluster.replicas()[0];
    cluster.primary().psql("CREATE TABLE t (n int)").unwrap();
    cluster.wait_replayed(LIMIT).unwrap();
    let told = Stream { servers: &[cluster.primary(), replica], user: SUPERUSER, publication: None }.follow();
    told.whole();
    cluster.primary().stop(Shutdown::Immediate).unwrap();
    replica.promote().unwrap();
    assert!(matches!(told.lost(), Cause::Failed(_)));
    // As the probes would find.
    told.cluster.nodes[0].note_role(true);
    told.cluster.nodes[1].note_role(false);
    told.whole();
    replica.psql("INSERT INTO t VALUES (1)").unwrap();
    assert_eq!(told.changed(), ["public.t"]);
}

/// Its slot would be in the way as well.
#[test]
fn a_database_is_left_with_its_slot_to_a_statement_that_wants_it() {
    let cluster = single();
    let primary = cluster.primary();
    primary.psql("CREATE TABLE t (n int)").unwrap();
    let told = of(primary);
    told.whole();
    let copy = "CREATE DATABASE copied_beside_the_stream TEMPLATE postgres";
    told.cluster.vacate(Instant::now() + LIMIT);
    assert_eq!(told.lost(), Cause::Left);
    wait_until(LIMIT, "the database to itself", || {
        let rest = "SELECT (SELECT count(*) FROM pg_replication_slots) + \
                    (SELECT count(*) FROM pg_stat_activity WHERE datname = 'postgres' AND pid <> pg_backend_pid())";
        primary.psql(rest).unwrap().trim() == "0"
    });
    primary.psql_in("template1", copy).unwrap();
    told.cluster.vacate(Instant::now());
    told.whole();
    primary.psql("INSERT INTO t VALUES (1)").unwrap();
    assert_eq!(told.changed(), ["public.t"]);
}

#[test]
fn why_there_is_no_stream_is_said() {
    let cluster = servers::Cluster::builder().setting("max_replication_slots", "1").start().unwrap();
    let primary = cluster.primary();
    primary.psql("CREATE ROLE plain LOGIN PASSWORD 'plain'; CREATE ROLE r LOGIN REPLICATION PASSWORD 'r'").unwrap();
    let lost = |user| Stream { servers: &[primary], user, publication: None }.follow().lost();
    let Cause::Refused(why) = lost("plain") else { panic!("without REPLICATION") };
    assert!(why.contains("42501"), "{why}");
    assert!(matches!(lost("nobody"), Cause::Refused(_)));
    primary.psql("SELECT pg_create_logical_replication_slot('taken', 'test_decoding')").unwrap();
    let Cause::Exhausted(why) = lost("r") else { panic!("with no slot free") };
    assert!(why.contains("53400"), "{why}");
    let minimal = servers::Cluster::builder().setting("wal_level", "replica").start().unwrap();
    assert_eq!(of(minimal.primary()).lost(), Cause::WalLevel);
    // And what the cache makes of it, which says so once.
    for (cluster, reason) in [(&cluster, "53400"), (&minimal, "wal_level")] {
        sample::install(cluster.primary()).unwrap();
        let pgweir = Pgweir::builder().cluster(cluster, &[]).set("cache.enabled", true).start();
        wait_until(LIMIT, reason, || pgweir.cache()["mode"] == "ttl");
        let cache = pgweir.cache();
        assert!(cache["reason"].as_str().is_some_and(|why| why.contains(reason)), "{cache}");
        let said = pgweir.stderr();
        assert_eq!(said.lines().filter(|line| line.contains("no change stream")).count(), 1, "{said}");
    }
}

#[test]
fn a_burst_of_changes_is_told_as_one_commit() {
    let cluster = single();
    let sql = |sql: &str| cluster.primary().psql(sql).unwrap();
    sql("CREATE TABLE t (n int, s text); CREATE TABLE wide (s text)");
    let told = of(cluster.primary());
    told.whole();
    sql("INSERT INTO t SELECT n, 'x' FROM generate_series(1, 200000) n");
    assert_eq!(told.changed(), ["public.t"]);
    // A row far larger than what is looked at of it.
    sql("INSERT INTO wide SELECT string_agg(md5(n::text), '') FROM generate_series(1, 100000) n");
    assert_eq!(told.changed(), ["public.wide"]);
    sql("BEGIN; SELECT format('CREATE TABLE many_%s (n int)', n) FROM generate_series(1, 1001) n \\gexec\nCOMMIT");
    told.commit();
    sql("DO $$ BEGIN FOR n IN 1..1001 LOOP EXECUTE format('INSERT INTO many_%s VALUES (1)', n); END LOOP; END $$");
    assert_eq!(told.changed(), ["any"]);
}

#[test]
fn with_a_publication_its_relations_are_told_by_number() {
    let cluster = single();
    let sql = |sql: &str| cluster.primary().psql(sql).unwrap();
    sql("CREATE TABLE t (n int); CREATE TABLE other (n int); CREATE PUBLICATION \"Pub\" FOR TABLE t");
    let oid = sql("SELECT 't'::regclass::oid").trim().to_owned();
    let told = Stream { servers: &[cluster.primary()], user: SUPERUSER, publication: Some("Pub") }.follow();
    told.whole();
    // Before version 15 what is not published is told as a commit of nothing.
    let changed = || std::iter::repeat_with(|| told.changed()).find(|names| !names.is_empty()).unwrap();
    sql("INSERT INTO other VALUES (1)");
    sql("INSERT INTO t VALUES (1)");
    assert_eq!(changed(), [oid.as_str()]);
    sql("TRUNCATE t");
    assert_eq!(changed(), [oid.as_str()]);
}
