//! `freshness = "table"`: a read goes to replicas that have the last change of its tables, whoever made it, and no other.

mod support;

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use pgweir::demo::cluster::{Cluster, Server};
use pgweir::demo::sample;
use support::sessions::{block_on, connect, value, wait_for};
use support::{Builder, LIMIT, Pgweir, logged, wait_until};

const TABLES: &str = "
    SET ROLE app;
    CREATE TABLE ft_a (n int);
    INSERT INTO ft_a VALUES (0);
    CREATE TABLE ft_b (n int);
    INSERT INTO ft_b VALUES (0);
    CREATE VIEW ft_view AS SELECT n FROM ft_a;
    CREATE FUNCTION ft_function() RETURNS int STABLE LANGUAGE sql AS 'SELECT max(n) FROM ft_a';
    CREATE TABLE ft_parts (n int, part int) PARTITION BY LIST (part);
    CREATE TABLE ft_part PARTITION OF ft_parts FOR VALUES IN (1);
    INSERT INTO ft_parts VALUES (0, 1);
    CREATE TABLE ft_secured (n int);
    INSERT INTO ft_secured VALUES (0);
    ALTER TABLE ft_secured ENABLE ROW LEVEL SECURITY;
    CREATE MATERIALIZED VIEW ft_materialized AS SELECT n FROM ft_a;";

fn start(settings: &[(&str, &str)]) -> Cluster {
    // No definitions change but by the tests: of what such a commit has changed, all tables may be.
    let builder = Cluster::builder().replicas(2).setting("log_statement", "all").setting("autovacuum", "off");
    let cluster = settings.iter().fold(builder, |builder, (name, value)| builder.setting(name, value)).start().unwrap();
    sample::install(cluster.primary()).unwrap();
    cluster.primary().psql_in(sample::DATABASE, TABLES).unwrap();
    cluster.wait_replayed(LIMIT).unwrap();
    cluster
}

/// A primary and two replicas, one test at a time, all of them level at its start.
fn cluster() -> MutexGuard<'static, Cluster> {
    static SHARED: OnceLock<Mutex<Cluster>> = OnceLock::new();
    let cluster = SHARED.get_or_init(|| Mutex::new(start(&[]))).lock().unwrap_or_else(PoisonError::into_inner);
    resume(&cluster);
    cluster.wait_replayed(LIMIT).unwrap();
    cluster
}

fn stall(cluster: &Cluster) {
    for replica in cluster.replicas() {
        replica.psql("SELECT pg_wal_replay_pause()").unwrap();
        wait_until(LIMIT, "replay to stop", || {
            replica.psql("SELECT pg_get_wal_replay_pause_state()").unwrap() == "paused"
        });
    }
}

fn resume(cluster: &Cluster) {
    for replica in cluster.replicas() {
        replica.psql("SELECT pg_wal_replay_resume()").unwrap();
    }
}

fn builder(cluster: &Cluster) -> Builder {
    // A replica that is stalled stays in use.
    Pgweir::builder().cluster(cluster, &[1, 1]).set("routing.max_lag", "1h").set("routing.probe_interval", "100ms")
}

fn by_table(cluster: &Cluster) -> Pgweir {
    builder(cluster).set("routing.freshness", "table").start()
}

/// Past pgweir.
fn around(cluster: &Cluster, sql: &str) {
    cluster.primary().psql_in(sample::DATABASE, sql).unwrap();
}

/// How often statements with the marker ran on the primary and on the replicas.
fn runs(cluster: &Cluster, marker: &str) -> (usize, usize) {
    let on = |servers: &[Server]| servers.iter().map(|server| logged(server, marker)).sum();
    (logged(cluster.primary(), marker), on(cluster.replicas()))
}

/// In sessions of their own, which have seen nothing yet, until one is read on a replica.
async fn until_on_replica(cluster: &Cluster, pgweir: &Pgweir, sql: &str, marker: &str) {
    let mut number = 0;
    wait_for(sql, async || {
        number += 1;
        let marker = format!("{marker}-{number}-end");
        value(&connect(&pgweir.url()).await, &format!("{sql} /* {marker} */")).await;
        runs(cluster, &marker).1 > 0
    })
    .await;
}

/// With a publication, changes of other tables are not told of.
#[test]
fn what_a_publication_does_not_cover_is_read_on_the_primary() {
    let cluster = cluster();
    around(&cluster, "CREATE PUBLICATION ft FOR TABLE ft_a WITH (publish = 'insert, update, delete, truncate')");
    around(&cluster, "ALTER TABLE ft_a REPLICA IDENTITY FULL");
    cluster.wait_replayed(LIMIT).unwrap();
    let pgweir = builder(&cluster).set("routing.freshness", "table").set("cache.publication", "ft").start();
    block_on(async {
        until_on_replica(&cluster, &pgweir, "SELECT n FROM ft_view", "covered").await;
        let uncovered = "SELECT n FROM ft_b /* uncovered */";
        for _ in 0..10 {
            value(&connect(&pgweir.url()).await, uncovered).await;
        }
        assert_eq!(runs(&cluster, "uncovered").1, 0);
        stall(&cluster);
        let written = cluster.primary().psql_in(sample::DATABASE, "UPDATE ft_a SET n = n + 1 RETURNING n").unwrap();
        let written = written.lines().next().unwrap();
        let read = "SELECT n FROM ft_a";
        wait_for(read, async || value(&connect(&pgweir.url()).await, read).await == written).await;
        assert_eq!(value(&connect(&pgweir.url()).await, read).await, written);
        resume(&cluster);
    });
    around(&cluster, "DROP PUBLICATION ft; ALTER TABLE ft_a REPLICA IDENTITY DEFAULT");
}

/// Reads of tables that others have changed, around pgweir, see that; those of other tables stay where they were.
#[test]
fn a_read_is_where_the_last_change_of_its_tables_is() {
    let cluster = cluster();
    let pgweir = by_table(&cluster);
    block_on(async {
        until_on_replica(&cluster, &pgweir, "SELECT n FROM ft_a", "begin-a").await;
        until_on_replica(&cluster, &pgweir, "SELECT n FROM ft_b", "begin-b").await;
        for (change, reads) in [
            (
                "UPDATE ft_a SET n = n + 1 RETURNING n",
                &[
                    "SELECT n FROM ft_a",
                    "SELECT n FROM ft_view",
                    "SELECT ft_function() AS n",
                    "SELECT n FROM ft_a, now()",
                ][..],
            ),
            ("UPDATE ft_part SET n = n + 1 RETURNING n", &["SELECT n FROM ft_parts", "SELECT n FROM ft_part"]),
            ("UPDATE ft_secured SET n = n + 1 RETURNING n", &["SELECT n FROM ft_secured"]),
        ] {
            stall(&cluster);
            let written = cluster.primary().psql_in(sample::DATABASE, change).unwrap();
            let written = written.lines().next().unwrap().to_owned();
            for sql in reads {
                // Once the change is known, nobody misses it any more.
                wait_for(sql, async || value(&connect(&pgweir.url()).await, sql).await == written).await;
                let marker = format!("changed {sql}");
                for _ in 0..5 {
                    let client = connect(&pgweir.url()).await;
                    assert_eq!(value(&client, &format!("{sql} /* {marker} */")).await, written);
                    let row = client.query_one(&format!("{sql} /* {marker} */"), &[]).await.unwrap();
                    assert_eq!(row.get::<_, i32>(0).to_string(), written);
                }
                assert_eq!(runs(&cluster, &marker).1, 0, "{sql}");
            }
            until_on_replica(&cluster, &pgweir, "SELECT n FROM ft_b", &format!("beside {change}")).await;
            until_on_replica(&cluster, &pgweir, "SELECT 1", &format!("constant {change}")).await;
            // One statement that reads both.
            let marker = format!("both {change}");
            let both = format!("SELECT 1 FROM ft_b; {} /* {marker} */", reads[0]);
            connect(&pgweir.url()).await.simple_query(&both).await.unwrap();
            assert_eq!(runs(&cluster, &marker).1, 0, "{change}");
            resume(&cluster);
            for sql in reads {
                until_on_replica(&cluster, &pgweir, sql, &format!("back {sql}")).await;
            }
        }
    });
}

/// A session's own writes, as with `session`; and what it has read.
#[test]
fn a_session_reads_its_own_writes_whatever_the_stream_has_told() {
    let cluster = cluster();
    let pgweir = by_table(&cluster);
    block_on(async {
        until_on_replica(&cluster, &pgweir, "SELECT n FROM ft_b", "own-begin").await;
        stall(&cluster);
        let client = connect(&pgweir.url()).await;
        for _ in 0..20 {
            let written = value(&client, "UPDATE ft_b SET n = n + 1 RETURNING n").await;
            assert_eq!(value(&client, "SELECT n FROM ft_b").await, written);
        }
        resume(&cluster);
    });
}

/// What may look at tables of which nobody tells, and blocks, of which it is not known what they will read.
#[test]
fn what_is_not_known_to_be_fresh_is_read_on_the_primary() {
    let cluster = cluster();
    let pgweir = builder(&cluster).set("routing.freshness", "table").set("statements.slow_threshold", "0ms").start();
    block_on(async {
        until_on_replica(&cluster, &pgweir, "SELECT n FROM ft_a", "unknown-begin").await;
        let reads = ["SELECT n FROM ft_materialized LIMIT 1", "SELECT relname FROM pg_class LIMIT 1"];
        for (number, sql) in reads.iter().enumerate() {
            let marker = format!("unknown-{number}-end");
            value(&connect(&pgweir.url()).await, &format!("{sql} /* {marker} */")).await;
            assert_eq!(runs(&cluster, &marker), (1, 0), "{sql}");
        }
        let client = connect(&pgweir.url()).await;
        for sql in ["BEGIN READ ONLY", "SELECT n AS unknown_block FROM ft_a", "COMMIT"] {
            client.simple_query(sql).await.unwrap();
        }
        assert_eq!(runs(&cluster, "unknown_block"), (1, 0));
    });
    let entry =
        || pgweir.slow_log().into_iter().find(|entry| entry["statement"].as_str().unwrap().contains("ft_materialized"));
    wait_until(LIMIT, "the slow log", || entry().is_some());
    assert_eq!(entry().unwrap()["route_reason"], "freshness");
}

/// Without `routing.freshness = "table"` the stream begins when the first session asks.
#[test]
fn a_session_asks_for_it() {
    let cluster = cluster();
    let pgweir = builder(&cluster).set("routing.freshness", "eventual").start();
    let follows =
        || cluster.primary().psql("SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical'").unwrap();
    block_on(async {
        until_on_replica(&cluster, &pgweir, "SELECT n FROM ft_a", "asks-begin").await;
        // That of an earlier test ends with its connection.
        wait_for("nobody to follow", async || follows() == "0").await;
        let url = format!("{}?options=-c%20pgweir.freshness%3Dtable", pgweir.url());
        let mut number = 0;
        wait_for("its reads to be on a replica", async || {
            number += 1;
            let marker = format!("asks-{number}-end");
            value(&connect(&url).await, &format!("SELECT n FROM ft_a /* {marker} */")).await;
            runs(&cluster, &marker).1 > 0
        })
        .await;
        assert_eq!(follows(), "1");
        stall(&cluster);
        around(&cluster, "UPDATE ft_a SET n = 1000");
        wait_for("the change to be known", async || value(&connect(&url).await, "SELECT n FROM ft_a").await == "1000")
            .await;
        let eventual = connect(&pgweir.url()).await;
        assert_ne!(value(&eventual, "SELECT n FROM ft_a").await, "1000");
        eventual.simple_query("SET pgweir.freshness = 'table'").await.unwrap();
        assert_eq!(value(&eventual, "SELECT n FROM ft_a").await, "1000");
        eventual.simple_query("SET pgweir.freshness = 'eventual'").await.unwrap();
        assert_ne!(value(&eventual, "SELECT n FROM ft_a").await, "1000");
        resume(&cluster);
    });
}

/// The stream is cut: until it is whole again nothing is known of what it has not told.
#[test]
fn while_the_stream_is_cut_reads_are_on_the_primary() {
    let cluster = cluster();
    let pgweir = by_table(&cluster);
    block_on(async {
        until_on_replica(&cluster, &pgweir, "SELECT n FROM ft_a", "cut-begin").await;
        stall(&cluster);
        for round in 0..3 {
            around(
                &cluster,
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_type = 'logical'",
            );
            around(&cluster, &format!("UPDATE ft_a SET n = {}", 2000 + round));
            // Before the cut is seen, what was told before it may be read; then all of it is, the replicas being behind.
            wait_for("the change", async || {
                value(&connect(&pgweir.url()).await, "SELECT n FROM ft_a").await == (2000 + round).to_string()
            })
            .await;
            for _ in 0..20 {
                let read = value(&connect(&pgweir.url()).await, "SELECT n FROM ft_a /* cut */").await;
                assert_eq!(read, (2000 + round).to_string());
            }
        }
        assert_eq!(runs(&cluster, "/* cut */").1, 0);
        resume(&cluster);
        until_on_replica(&cluster, &pgweir, "SELECT n FROM ft_a", "cut-back").await;
    });
}

#[test]
fn without_a_stream_all_such_reads_are_on_the_primary() {
    let cluster = start(&[("wal_level", "replica")]);
    let pgweir = by_table(&cluster);
    wait_until(LIMIT, "the warning", || pgweir.stderr().contains("no change stream"));
    block_on(async {
        let client = connect(&pgweir.url()).await;
        for _ in 0..5 {
            value(&client, "SELECT n FROM ft_a /* none */").await;
        }
        assert_eq!(runs(&cluster, "/* none */"), (5, 0));
        client.simple_query("SET pgweir.freshness = 'eventual'").await.unwrap();
        until_on_replica(&cluster, &pgweir, "SELECT 1", "none-constant").await;
        value(&client, "SELECT n FROM ft_a /* none-eventual */").await;
        assert_eq!(runs(&cluster, "none-eventual"), (0, 1));
    });
}
