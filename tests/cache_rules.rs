//! `[[cache.rules]]`: what follows from a table, or from a statement, is not kept, or for a shorter time, or may be old.
//!
//! Where an answer may be old, it is for as long as results are kept at all: that it ends is for tests of shorter ones.

mod support;

use pgweir::demo::cluster::{Cluster, Server};
use pgweir::demo::sample;
use rustix::process::{Pid, Signal, kill_process};
use support::wire::{Login, Wire};
use support::{Builder, LIMIT, Pgweir, lone_primary, wait_until};

fn builder(cluster: &Cluster, invalidation: &str, rules: &str) -> Builder {
    let users = Builder::default().node(cluster.primary().port(), "primary", None);
    users
        .user("rules_follower", "follower")
        .set("admin.users", vec![toml::Value::from("app")])
        .set("cache.enabled", true)
        .set("cache.invalidation", invalidation)
        .more(rules)
}

fn rule(of: &str, terms: &str) -> String {
    format!("[[cache.rules]]\n{of}\n{terms}\n")
}

fn table(name: &str, terms: &str) -> String {
    rule(&format!("table = \"public.{name}\""), terms)
}

fn wait_for_mode(pgweir: &Pgweir, mode: &str) {
    wait_until(LIMIT, mode, || pgweir.cache()["mode"] == mode);
}

fn start(cluster: &Cluster, invalidation: &str, rules: &str) -> Pgweir {
    // Its right to replicate is taken from it by one of the tests.
    around(
        cluster.primary(),
        "DO $$ BEGIN CREATE ROLE rules_follower LOGIN PASSWORD 'follower'; EXCEPTION WHEN duplicate_object THEN END $$;
         ALTER ROLE rules_follower REPLICATION",
    );
    let pgweir = builder(cluster, invalidation, rules).start();
    wait_for_mode(&pgweir, invalidation);
    pgweir
}

/// As the superuser in the sample's database, past pgweir.
fn around(server: &Server, sql: &str) -> String {
    server.psql_in(sample::DATABASE, sql).unwrap()
}

/// Tables of one row each, that 0 is in.
fn make(cluster: &Cluster, tables: &[&str]) {
    for name in tables {
        around(
            cluster.primary(),
            &format!("CREATE TABLE {name} (n int); INSERT INTO {name} VALUES (0); GRANT ALL ON {name} TO app"),
        );
    }
}

fn count(pgweir: &Pgweir, field: &str) -> u64 {
    pgweir.cache()[field].as_u64().unwrap()
}

fn explained(pgweir: &Pgweir, sql: &str) -> String {
    let mut admin = Wire::log_in(pgweir.port(), &Login { database: "pgweir", ..Login::default() });
    let rows = admin.query(&format!("EXPLAIN ROUTE {sql}"));
    let text: Vec<u8> = rows.iter().filter(|frame| frame.tag == b'D').flat_map(|frame| frame.body.to_vec()).collect();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn what_follows_from_a_forbidden_table_is_not_kept_however_it_is_read() {
    let cluster = lone_primary();
    make(&cluster, &["rule_free"]);
    around(
        cluster.primary(),
        "CREATE TABLE rule_never (n int) PARTITION BY LIST (n); CREATE TABLE rule_never_0 PARTITION OF rule_never DEFAULT;
         INSERT INTO rule_never VALUES (0);
         CREATE VIEW rule_view AS SELECT n FROM rule_never;
         CREATE FUNCTION rule_function() RETURNS int STABLE LANGUAGE sql AS 'SELECT n FROM rule_view';
         CREATE MATERIALIZED VIEW rule_kept AS SELECT n FROM rule_never;
         GRANT ALL ON rule_never, rule_never_0, rule_view, rule_kept TO app",
    );
    let never = table("rule_never", "never = true");
    let pgweir = start(&cluster, "wal", &never);
    let mut client = Wire::connect(pgweir.port());
    for sql in [
        "SELECT n FROM rule_never",
        "SELECT n FROM rule_never_0",
        "SELECT n FROM rule_view",
        "SELECT rule_function()",
        "SELECT a.n FROM rule_free a, rule_view",
        "/* pgweir: cache ttl=60s */ SELECT n FROM rule_view",
    ] {
        pgweir.is_refused(&mut client, sql, "rule");
    }
    // A named one of which nobody knows all that is behind it.
    pgweir.is_refused(&mut client, "/* pgweir: cache ttl=60s */ SELECT n FROM rule_kept", "unresolved");
    pgweir.warm(&mut client, "SELECT n FROM rule_free");
    // Another rule for the same table, and none any more.
    pgweir.reload(&builder(&cluster, "wal", ""));
    pgweir.warm(&mut client, "SELECT n FROM rule_view");
    pgweir.reload(&builder(&cluster, "wal", &never));
    pgweir.is_refused(&mut client, "SELECT n FROM rule_view", "rule");
}

#[test]
fn it_is_told_which_rule_counts_and_which_has_no_table() {
    let cluster = lone_primary();
    make(&cluster, &["rule_told"]);
    let rules = table("rule_told", "ttl = \"60s\"\nstale = \"2s\"") + &table("rule_later", "never = true");
    let pgweir = start(&cluster, "wal", &rules);
    let missing = |expected: &[&str]| {
        wait_until(LIMIT, "the table to be missing, or not", || {
            pgweir.cache()["rules_missing"] == serde_json::json!(expected)
        });
    };
    let told = explained(&pgweir, "SELECT n FROM rule_told");
    assert!(told.contains("cached: yes") && told.contains("rule: public.rule_told ttl=60s stale=2s"), "{told}");
    let mut client = Wire::connect(pgweir.port());
    // Found when it is made, and again when another is in its place.
    for _ in 0..2 {
        missing(&["public.rule_later"]);
        make(&cluster, &["rule_later"]);
        missing(&[]);
        pgweir.is_refused(&mut client, "SELECT n FROM rule_later", "rule");
        let told = explained(&pgweir, "SELECT n FROM rule_later");
        assert!(told.contains("cached: no (rule)") && told.contains("rule: public.rule_later never"), "{told}");
        around(cluster.primary(), "DROP TABLE rule_later");
    }
}

/// For as long as any result is kept.
const OLD: &str = "stale = \"300s\"";

/// Changes the rows of these tables past pgweir, and waits until that is told.
fn change(cluster: &Cluster, pgweir: &Pgweir, client: &mut Wire, tables: &[&str], witness: &str) {
    let sql = format!("SELECT n FROM {witness}");
    let before: u64 = pgweir.warm(client, &sql).parse().unwrap();
    let updates: Vec<_> = tables.iter().chain([&witness]).map(|name| format!("UPDATE {name} SET n = n + 1;")).collect();
    around(cluster.primary(), &format!("BEGIN; {} COMMIT", updates.concat()));
    wait_until(LIMIT, "the change", || client.value(&sql) == (before + 1).to_string());
}

#[test]
fn an_answer_may_be_old_where_each_of_its_tables_allows_it() {
    let cluster = lone_primary();
    make(&cluster, &["rule_old", "rule_old_too", "rule_new"]);
    let rules = table("rule_old", OLD) + &table("rule_old_too", OLD);
    let pgweir = builder_with_verify(&cluster, &rules);
    let mut client = Wire::connect(pgweir.port());
    let both = "SELECT a.n + b.n FROM rule_old a, rule_old_too b";
    let mixed = "SELECT a.n + b.n FROM rule_old a, rule_new b";
    for sql in ["SELECT n FROM rule_old", both, mixed] {
        assert_eq!(pgweir.warm(&mut client, sql), "0");
    }
    assert_eq!(count(&pgweir, "stale"), 0);
    change(&cluster, &pgweir, &mut client, &["rule_old", "rule_old_too"], "rule_new");
    assert_eq!(client.value("SELECT n FROM rule_old"), "0");
    assert_eq!(client.value(both), "0");
    assert_eq!(client.value(mixed), "2");
    assert!(count(&pgweir, "stale") >= 2);
    let metrics = pgweir.get("/metrics").1;
    let line = metrics.lines().find(|line| line.starts_with("pgweir_cache_stale_total{")).unwrap();
    assert!(!line.ends_with(" 0"), "{line}");
    // Who writes reads it, at once, and what came of that is for all.
    let mut writer = Wire::connect(pgweir.port());
    writer.query("UPDATE rule_old SET n = 7");
    assert_eq!((writer.value("SELECT n FROM rule_old"), writer.value(both)), ("7".into(), "8".into()));
    wait_until(LIMIT, "the newer one", || client.value(both) == "8");
    // A command ends it, and so do definitions.
    let mut admin = Wire::log_in(pgweir.port(), &Login { database: "pgweir", ..Login::default() });
    for (name, old) in [("rule_old", 7), ("rule_old_too", 1)] {
        let sql = format!("SELECT n FROM {name}");
        assert_eq!(pgweir.warm(&mut client, &sql), old.to_string());
        change(&cluster, &pgweir, &mut client, &[name], "rule_new");
        assert_eq!(client.value(&sql), old.to_string());
        if name == "rule_old" {
            admin.query("EVICT CACHE rule_old");
            assert_eq!(client.value(&sql), (old + 1).to_string());
        } else {
            around(cluster.primary(), "REVOKE SELECT ON rule_old_too FROM app");
            let is_error = |client: &mut Wire| client.query(&sql).iter().any(|frame| frame.tag == b'E');
            wait_until(LIMIT, "the right to be gone", || is_error(&mut client));
        }
    }
    // What it may be is no difference.
    let verified = count(&pgweir, "verified");
    wait_until(LIMIT, "a hit to be verified", || {
        client.value("SELECT n FROM rule_new");
        count(&pgweir, "verified") > verified
    });
    assert_eq!(count(&pgweir, "differences"), 0);
}

fn builder_with_verify(cluster: &Cluster, rules: &str) -> Pgweir {
    drop(start(cluster, "wal", ""));
    let pgweir = builder(cluster, "wal", rules).set("cache.verify", 1.0).start();
    wait_for_mode(&pgweir, "wal");
    pgweir
}

#[test]
fn an_answer_that_may_be_old_ends_when_it_is_too_old() {
    let cluster = lone_primary();
    make(&cluster, &["rule_ends"]);
    let pgweir = start(&cluster, "wal", &table("rule_ends", "stale = \"1s\""));
    let mut client = Wire::connect(pgweir.port());
    for n in 0..3 {
        assert_eq!(pgweir.warm(&mut client, "SELECT n FROM rule_ends"), n.to_string());
        around(cluster.primary(), "UPDATE rule_ends SET n = n + 1");
        wait_until(LIMIT, "the change", || client.value("SELECT n FROM rule_ends") == (n + 1).to_string());
    }
}

/// The stream's process on the primary.
fn sender(cluster: &Cluster) -> Pid {
    let sql =
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgweir changes' AND backend_type = 'walsender'";
    let mut found = None;
    // That of a pgweir before may not have ended yet.
    wait_until(LIMIT, "one stream", || {
        found = around(cluster.primary(), sql).trim().parse().ok().and_then(Pid::from_raw);
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn what_is_left_is_given_while_there_is_no_stream() {
    let cluster = lone_primary();
    make(&cluster, &["rule_left", "rule_left_not"]);
    let pgweir = start(&cluster, "wal", &table("rule_left", OLD));
    let (mut client, mut writer) = (Wire::connect(pgweir.port()), Wire::connect(pgweir.port()));
    let reads = ["SELECT n FROM rule_left", "SELECT n FROM rule_left_not"];
    // A change of rights ends all answers as soon as it is seen, which is not to be in the midst of what follows.
    let ended = || pgweir.cache()["invalidated"]["definitions"].as_u64();
    pgweir.warm(&mut client, reads[0]);
    let before = ended();
    around(cluster.primary(), "ALTER ROLE rules_follower NOREPLICATION");
    wait_until(LIMIT, "the change of rights", || ended() > before);
    reads.iter().for_each(|sql| assert_eq!(pgweir.warm(&mut client, sql), "0"));
    let stream = sender(&cluster);
    kill_process(stream, Signal::TERM).unwrap();
    wait_for_mode(&pgweir, "closed");
    around(cluster.primary(), "UPDATE rule_left SET n = 1; UPDATE rule_left_not SET n = 1");
    let answers = |client: &mut Wire| reads.map(|sql| client.value(sql));
    assert_eq!(answers(&mut client), ["0", "1"]);
    assert_eq!(answers(&mut Wire::connect(pgweir.port())), ["0", "1"]);
    writer.query("UPDATE rule_left SET n = 2");
    assert_eq!(answers(&mut writer), ["2", "1"]);
}

#[test]
fn what_is_kept_is_given_while_the_stream_is_silent() {
    let cluster = lone_primary();
    make(&cluster, &["rule_silent", "rule_silent_not"]);
    let pgweir = start(&cluster, "wal", &table("rule_silent", OLD));
    let (mut client, mut writer) = (Wire::connect(pgweir.port()), Wire::connect(pgweir.port()));
    let reads = ["SELECT n FROM rule_silent", "SELECT n FROM rule_silent_not"];
    reads.iter().for_each(|sql| assert_eq!(pgweir.warm(&mut client, sql), "0"));
    let stream = sender(&cluster);
    kill_process(stream, Signal::STOP).unwrap();
    around(cluster.primary(), "UPDATE rule_silent SET n = 1; UPDATE rule_silent_not SET n = 1");
    wait_until(LIMIT, "the silence to be noticed", || client.value(reads[1]) == "1");
    assert_eq!(client.value(reads[0]), "0");
    writer.query("UPDATE rule_silent SET n = 2");
    assert_eq!((writer.value(reads[0]), client.value(reads[0])), ("2".into(), "0".into()));
    kill_process(stream, Signal::CONT).unwrap();
    // What the writer reads is kept once all is told.
    wait_until(LIMIT, "the newer one", || {
        assert_eq!(writer.value(reads[0]), "2");
        client.value(reads[0]) == "2"
    });
}

#[test]
fn rules_name_what_is_kept_where_time_alone_counts() {
    let cluster = lone_primary();
    make(&cluster, &["rule_named", "rule_named_not"]);
    let pgweir = start(&cluster, "ttl", &table("rule_named", "ttl = \"200s\""));
    let mut client = Wire::connect(pgweir.port());
    assert_eq!(pgweir.warm(&mut client, "SELECT n FROM rule_named"), "0");
    around(cluster.primary(), "UPDATE rule_named SET n = 1");
    assert_eq!(client.value("SELECT n FROM rule_named"), "0");
    pgweir.is_refused(&mut client, "SELECT n FROM rule_named_not", "unnamed");
    pgweir.is_refused(&mut client, "SELECT a.n FROM rule_named a, rule_named_not b", "unnamed");
    // By its fingerprint, for any literal.
    client.query("SELECT n FROM rule_named_not WHERE n < 100");
    let statements = pgweir.json("/statements?limit=1000");
    let text = "SELECT n FROM rule_named_not WHERE n < $1";
    let shown = |one: &&serde_json::Value| one["text"].as_str().is_some_and(|shown| shown.eq_ignore_ascii_case(text));
    let found = statements.as_array().unwrap().iter().find(shown).unwrap_or_else(|| panic!("{statements}"));
    let digits = found["fingerprint"].as_str().unwrap();
    pgweir.reload(&builder(&cluster, "ttl", &rule(&format!("fingerprint = \"{digits}\""), "ttl = \"200s\"")));
    assert_eq!(pgweir.warm(&mut client, "SELECT n FROM rule_named_not WHERE n < 7"), "0");
    pgweir.is_refused(&mut client, "SELECT n FROM rule_named", "unnamed");
}

#[test]
fn what_passes_through_may_go_unheeded_for_a_while_but_not_by_its_writer() {
    let cluster = lone_primary();
    make(&cluster, &["rule_written", "rule_written_too"]);
    let pgweir = start(&cluster, "writes", &table("rule_written", OLD));
    let (mut client, mut writer) = (Wire::connect(pgweir.port()), Wire::connect(pgweir.port()));
    for name in ["rule_written", "rule_written_too"] {
        assert_eq!(pgweir.warm(&mut client, &format!("SELECT n FROM {name}")), "0");
        writer.query(&format!("UPDATE {name} SET n = 1"));
    }
    assert_eq!(client.value("SELECT n FROM rule_written"), "0");
    assert_eq!(client.value("SELECT n FROM rule_written_too"), "1");
    assert_eq!(writer.value("SELECT n FROM rule_written"), "1");
}
