//! The result cache under the stream of a publication: what that covers is kept and never stale, and nothing else is.

mod support;

use std::process::Command;

use pgweir::demo::cluster::{Cluster, Server};
use pgweir::demo::sample;
use support::client::{connect, wait};
use support::wire::Wire;
use support::{Builder, LIMIT, Pgweir, lone_primary, wait_until};

fn builder(cluster: &Cluster, publication: &str) -> Builder {
    Pgweir::builder()
        .cluster(cluster, &[])
        .set("cache.enabled", true)
        .set("cache.publication", publication)
        .set("routing.probe_interval", "100ms")
}

fn pgweir(cluster: &Cluster, publication: &str) -> Pgweir {
    let pgweir = builder(cluster, publication).start();
    wait_for_mode(&pgweir, "wal");
    pgweir
}

fn wait_for_mode(pgweir: &Pgweir, mode: &str) {
    wait_until(LIMIT, mode, || pgweir.cache()["mode"] == mode);
}

fn wait_for_reason(pgweir: &Pgweir, part: &str) {
    wait_until(LIMIT, part, || pgweir.cache()["reason"].as_str().is_some_and(|why| why.contains(part)));
}

/// As the superuser in the sample's database, past pgweir.
fn around(server: &Server, sql: &str) {
    server.psql_in(sample::DATABASE, sql).unwrap();
}

/// A table with one row, n = 0.
fn table(name: &str) -> String {
    format!(
        "CREATE TABLE {name} (id int PRIMARY KEY, n int); INSERT INTO {name} VALUES (1, 0); GRANT ALL ON {name} TO app; "
    )
}

fn read(table: &str) -> String {
    format!("SELECT n FROM {table} WHERE id = 1")
}

#[test]
fn what_it_covers_is_kept_until_anybody_changes_it_and_the_rest_is_not() {
    let cluster = lone_primary();
    let primary = cluster.primary();
    let tables = ["named", "outside"].map(table).concat();
    around(
        primary,
        &format!(
            "CREATE SCHEMA of_schema; GRANT USAGE ON SCHEMA of_schema TO app; {tables} {}
             CREATE TABLE root (id int PRIMARY KEY, n int) PARTITION BY LIST (id);
             CREATE TABLE root_1 PARTITION OF root FOR VALUES IN (1); INSERT INTO root VALUES (1, 0);
             CREATE TABLE root_2 PARTITION OF root FOR VALUES IN (2) PARTITION BY LIST (id);
             CREATE TABLE root_2_2 PARTITION OF root_2 FOR VALUES IN (2); INSERT INTO root VALUES (2, 0);
             CREATE TABLE loose (id int PRIMARY KEY, n int) PARTITION BY LIST (id);
             CREATE TABLE loose_1 PARTITION OF loose FOR VALUES IN (1); INSERT INTO loose VALUES (1, 0);
             CREATE VIEW both_kinds AS SELECT n FROM named WHERE id = 1 UNION SELECT n FROM outside WHERE id = 1;
             GRANT ALL ON root, root_1, root_2_2, loose, both_kinds TO app;
             CREATE PUBLICATION several FOR TABLE named, root, TABLES IN SCHEMA of_schema",
            table("of_schema.one")
        ),
    );
    let pgweir = pgweir(&cluster, "several");
    let mut client = Wire::connect(pgweir.port());
    let covered = ["named", "of_schema.one", "root", "root_1"];
    for n in 1..4 {
        for name in covered {
            assert_eq!(pgweir.warm(&mut client, &read(name)), (n - 1).to_string(), "{name}");
        }
        for name in &covered[..3] {
            around(primary, &format!("UPDATE {name} SET n = {n} WHERE id = 1"));
        }
        for name in covered {
            wait_until(LIMIT, name, || client.value(&read(name)) == n.to_string());
        }
    }
    let deep = "SELECT n FROM root_2_2";
    assert_eq!(pgweir.warm(&mut client, deep), "0");
    around(primary, "DELETE FROM root WHERE id = 2; TRUNCATE named");
    wait_until(LIMIT, "no row", || client.query(deep).iter().all(|frame| frame.tag != b'D'));
    wait_until(LIMIT, "no row", || client.query(&read("named")).iter().all(|frame| frame.tag != b'D'));
    for sql in [read("outside"), read("loose"), read("loose_1"), "SELECT n FROM both_kinds".into()] {
        pgweir.is_refused(&mut client, &sql, "unpublished");
    }
    // By its time to live, as what no change is known of.
    pgweir.warm(&mut client, &format!("/* pgweir: cache ttl=100s */ {}", read("outside")));
    around(primary, "DROP PUBLICATION several");
}

#[test]
fn of_all_tables_each_is_covered_also_one_that_is_made_later() {
    let cluster = lone_primary();
    let primary = cluster.primary();
    around(
        primary,
        &format!(
            "{} CREATE TABLE parted (id int PRIMARY KEY, n int) PARTITION BY LIST (id);
             CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1); INSERT INTO parted VALUES (1, 0);
             GRANT ALL ON parted, parted_1 TO app; CREATE PUBLICATION \"All 'of' them\" FOR ALL TABLES",
            table("before")
        ),
    );
    let pgweir = pgweir(&cluster, "All 'of' them");
    let mut client = Wire::connect(pgweir.port());
    around(primary, &table("made_later"));
    for name in ["before", "made_later", "parted"] {
        assert_eq!(pgweir.warm(&mut client, &read(name)), "0");
        around(primary, &format!("UPDATE {name} SET n = 1 WHERE id = 1"));
        wait_until(LIMIT, name, || client.value(&read(name)) == "1");
    }
    assert_eq!(pgweir.warm(&mut client, &read("parted_1")), "1");
    around(primary, "UPDATE parted SET n = 2 WHERE id = 1");
    wait_until(LIMIT, "the partition", || client.value(&read("parted_1")) == "2");
    // Changes of partitions come as the whole table's.
    pgweir.warm(&mut client, &read("before"));
    around(primary, "ALTER PUBLICATION \"All 'of' them\" SET (publish_via_partition_root = true)");
    pgweir.is_refused(&mut client, &read("parted_1"), "unpublished");
    pgweir.is_refused(&mut client, &read("parted"), "unpublished");
    pgweir.warm(&mut client, &read("before"));
    around(primary, "DROP PUBLICATION \"All 'of' them\"");
}

#[test]
fn some_columns_are_enough_and_some_rows_are_not() {
    let cluster = lone_primary();
    let primary = cluster.primary();
    let tables = ["columns", "filtered"].map(table).concat();
    around(primary, &format!("{tables} CREATE PUBLICATION parts FOR TABLE columns (id), filtered WHERE (id > 1)"));
    let pgweir = pgweir(&cluster, "parts");
    let mut client = Wire::connect(pgweir.port());
    assert_eq!(pgweir.warm(&mut client, &read("columns")), "0");
    around(primary, "UPDATE columns SET n = 1");
    wait_until(LIMIT, "a column that is not published", || client.value(&read("columns")) == "1");
    pgweir.is_refused(&mut client, &read("filtered"), "unpublished");
    for (name, said) in [("filtered", "cached: no (unpublished)"), ("columns", "cached: yes")] {
        let mut explain = Command::new(env!("CARGO_BIN_EXE_pgweir"));
        let explained =
            explain.arg("explain").arg("--config").arg(pgweir.config_path()).arg(read(name)).output().unwrap();
        let told = String::from_utf8(explained.stdout).unwrap();
        assert!(told.contains(said), "{told}{}", String::from_utf8_lossy(&explained.stderr));
    }
    around(primary, "DROP PUBLICATION parts");
}

#[test]
fn what_is_altered_counts_before_anybody_relies_on_it() {
    let cluster = lone_primary();
    let primary = cluster.primary();
    let tables = ["stays", "leaves", "comes"].map(table).concat();
    around(primary, &format!("{tables} CREATE PUBLICATION altered FOR TABLE stays, leaves"));
    let pgweir = pgweir(&cluster, "altered");
    let mut client = Wire::connect(pgweir.port());
    let lost = || pgweir.cache()["invalidated"]["closed"].as_u64().unwrap();

    assert_eq!(pgweir.warm(&mut client, &read("leaves")), "0");
    around(primary, "ALTER PUBLICATION altered DROP TABLE leaves");
    around(primary, "UPDATE leaves SET n = 1");
    wait_until(LIMIT, "what was written untold", || client.value(&read("leaves")) == "1");
    pgweir.is_refused(&mut client, &read("leaves"), "unpublished");

    // Written before it is covered, committed afterwards: that is never told.
    let writer = connect(&primary.url(sample::DATABASE));
    wait(writer.batch_execute("BEGIN; UPDATE comes SET n = 1")).unwrap();
    pgweir.warm(&mut client, &read("stays"));
    let before = lost();
    around(primary, "ALTER PUBLICATION altered ADD TABLE comes");
    wait_until(LIMIT, "the stream to end", || lost() > before);
    for _ in 0..50 {
        assert_eq!(client.value(&read("comes")), "0");
    }
    wait(writer.batch_execute("COMMIT")).unwrap();
    assert_eq!(client.value(&read("comes")), "1");
    assert_eq!(pgweir.warm(&mut client, &read("comes")), "1");
    around(primary, "UPDATE comes SET n = 2");
    wait_until(LIMIT, "what is told", || client.value(&read("comes")) == "2");

    // Before it is committed, as nobody can tell then when it is.
    pgweir.warm(&mut client, &read("stays"));
    let before = lost();
    wait(writer.batch_execute("BEGIN; ALTER PUBLICATION altered DROP TABLE stays")).unwrap();
    wait_until(LIMIT, "the stream to end", || lost() > before);
    wait(writer.batch_execute("ROLLBACK")).unwrap();
    pgweir.warm(&mut client, &read("stays"));
    around(primary, "DROP PUBLICATION altered");
    wait_for_reason(&pgweir, "publication \"altered\" does not exist");
    assert_eq!(pgweir.cache()["mode"], "ttl");
}

#[test]
fn one_that_is_not_there_or_tells_not_all_is_none_and_it_says_why() {
    let cluster = lone_primary();
    around(cluster.primary(), "CREATE PUBLICATION inserts FOR ALL TABLES WITH (publish = 'insert, update, delete')");
    let missing = builder(&cluster, "missing").start();
    wait_for_mode(&missing, "ttl");
    wait_for_reason(&missing, "publication \"missing\" does not exist");
    let strict = builder(&cluster, "inserts").set("cache.invalidation", "wal").start();
    wait_for_reason(&strict, "publication \"inserts\" does not publish all of insert, update, delete and truncate");
    assert_eq!(strict.cache()["mode"], "closed");
    let mut check = Command::new(env!("CARGO_BIN_EXE_pgweir"));
    let checked = check.args(["check", "--config"]).arg(missing.config_path()).output().unwrap();
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(said.contains("warning: changes cannot be followed: publication \"missing\" does not exist\n"), "{said}");
    around(cluster.primary(), "DROP PUBLICATION inserts");
}

#[test]
fn a_fleet_follows_it_as_it_is_now() {
    let cluster = lone_primary();
    let primary = cluster.primary();
    around(primary, &format!("{} {} CREATE PUBLICATION fleet FOR TABLE f_one, f_two", table("f_one"), table("f_two")));
    let pgweirs = [0, 1, 2].map(|_| builder(&cluster, "fleet").set("cache.fleet", true).start());
    let mut clients: Vec<_> = pgweirs.iter().map(|pgweir| Wire::connect(pgweir.port())).collect();
    let are_fleet = || {
        let parts: Vec<_> = pgweirs.iter().map(|pgweir| pgweir.cache()).collect();
        let count = |part: &str| parts.iter().filter(|cache| cache["fleet"]["part"] == part).count();
        count("leader") == 1 && count("follower") == 2 && parts.iter().all(|cache| cache["mode"] == "wal")
    };
    wait_until(LIMIT, "a fleet", are_fleet);
    for n in 1..4 {
        for (client, pgweir) in clients.iter_mut().zip(&pgweirs) {
            pgweir.warm(client, &read("f_one"));
            pgweir.warm(client, &read("f_two"));
        }
        around(primary, &format!("UPDATE f_one SET n = {n}; UPDATE f_two SET n = {n}"));
        for client in &mut clients {
            wait_until(LIMIT, "f_one", || client.value(&read("f_one")) == n.to_string());
            wait_until(LIMIT, "f_two", || client.value(&read("f_two")) == n.to_string());
        }
    }
    around(primary, "ALTER PUBLICATION fleet DROP TABLE f_two");
    around(primary, "UPDATE f_two SET n = 9");
    for (client, pgweir) in clients.iter_mut().zip(&pgweirs) {
        wait_until(LIMIT, "what was written untold", || client.value(&read("f_two")) == "9");
        pgweir.is_refused(client, &read("f_two"), "unpublished");
        pgweir.warm(client, &read("f_one"));
    }
    wait_until(LIMIT, "a fleet again", are_fleet);
    around(primary, "DROP PUBLICATION fleet");
}
