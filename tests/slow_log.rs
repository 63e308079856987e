//! The slow-query log as the DBA reads it: exact lines, no literals unless asked for, no line lost in a rotation.

mod support;

use std::fs;
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::client::{connect, spawn, wait};
use support::{Builder, LIMIT, Pgweir, wait_until};

/// Every statement is slow.
fn builder() -> Builder {
    Pgweir::builder().cluster(support::cluster(), &[1]).operator().set("statements.slow_threshold", "0s")
}

/// The entry of the statement with this text, once it is there.
fn entry(pgweir: &Pgweir, text: &str) -> Value {
    let find = || pgweir.slow_log().into_iter().find(|entry| entry["statement"].as_str().unwrap().contains(text));
    wait_until(LIMIT, text, || find().is_some());
    find().unwrap()
}

#[test]
fn a_line_has_the_fields_of_the_contract_in_their_order() {
    let pgweir = builder().start();
    let client = connect(&format!("{}?application_name=shop", pgweir.url()));
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let sql = format!("SELECT pg_sleep(0.15), 'secret' AS b /*traceparent='{traceparent}'*/");
    wait(client.simple_query(&sql)).unwrap();
    let entry = entry(&pgweir, "pg_sleep");
    let lines = fs::read_to_string(pgweir.folder().join("slow.log")).unwrap();
    let line = lines.lines().find(|line| line.contains("pg_sleep")).unwrap();
    let keys: Vec<&str> = line.match_indices("\":").map(|(end, _)| line[..end].rsplit('"').next().unwrap()).collect();
    let expected = "ts level database user application_name client fingerprint statement duration_ms wait_ms \
        execute_ms rows bytes node role cached route_reason transaction error traceparent plan advice";
    assert_eq!(keys, expected.split_whitespace().collect::<Vec<_>>(), "{line}");
    assert!(!line.contains("secret"), "{line}");

    let replica = format!("127.0.0.1:{}", support::cluster().replicas()[0].port());
    for (field, value) in [
        ("level", json!("slow")),
        ("database", json!("app")),
        ("user", json!("app")),
        ("application_name", json!("shop")),
        ("statement", json!("SELECT pg_sleep($1), $2 AS b")),
        ("rows", json!(1)),
        ("node", json!(replica)),
        ("role", json!("replica")),
        ("cached", json!(false)),
        ("transaction", json!(false)),
        ("error", Value::Null),
        ("traceparent", json!(traceparent)),
        ("plan", Value::Null),
    ] {
        assert_eq!(entry[field], value, "{field} of {line}");
    }
    let ms = |field: &str| entry[field].as_f64().unwrap();
    assert!(ms("execute_ms") >= 150.0 && (ms("duration_ms") - ms("wait_ms") - ms("execute_ms")).abs() < 0.01, "{line}");
    let fingerprint = entry["fingerprint"].as_str().unwrap();
    assert!(fingerprint.len() == 16 && fingerprint.bytes().all(|b| b.is_ascii_hexdigit()), "{line}");
    assert!(entry["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    // The same in memory, and under the same fingerprint.
    let slow = pgweir.json("/slow");
    assert!(slow.as_array().unwrap().contains(&entry), "{slow:#}");
    let statements = pgweir.json("/statements");
    assert!(statements.as_array().unwrap().iter().any(|s| s["fingerprint"] == fingerprint));
    let shown = pgweir.console("SHOW SLOW");
    assert_eq!(shown.row("fingerprint", fingerprint)["statement"], "SELECT pg_sleep($1), $2 AS b");
}

#[test]
fn it_says_where_and_why_and_how_it_ended() {
    let pgweir = builder().start();
    let client = connect(&pgweir.url());
    for sql in
        ["SELECT 1 AS read", "UPDATE users SET name = name WHERE id = 1", "BEGIN", "SELECT 2 AS within", "COMMIT"]
    {
        wait(client.simple_query(sql)).unwrap();
    }
    wait(client.simple_query("/* pgweir: primary */ SELECT 3 AS hinted")).unwrap();
    wait(client.simple_query("SELECT 1/0 AS failing")).unwrap_err();
    let primary = format!("127.0.0.1:{}", support::cluster().primary().port());
    let read = entry(&pgweir, "AS read");
    assert_eq!((&read["role"], &read["transaction"]), (&json!("replica"), &json!(false)));
    for (text, transaction) in [("UPDATE users", false), ("AS within", true), ("COMMIT", true), ("AS hinted", false)] {
        let entry = entry(&pgweir, text);
        assert_eq!((&entry["node"], &entry["role"]), (&json!(primary), &json!("primary")), "{entry}");
        assert_eq!(entry["transaction"], transaction, "{entry}");
    }
    let reasons: Vec<_> = ["AS read", "UPDATE users", "AS within", "AS hinted"]
        .map(|text| entry(&pgweir, text)["route_reason"].as_str().unwrap().to_owned())
        .into();
    assert_eq!(reasons, ["read", "write", "in_transaction", "hint"]);
    let failing = entry(&pgweir, "AS failing");
    assert_eq!((&failing["error"], &failing["rows"]), (&json!("22012"), &json!(0)));
}

#[test]
fn a_statement_that_waited_for_a_connection_is_slow_too() {
    let pgweir = builder().set("pool.max", 1).set("statements.slow_threshold", "1s").start();
    let (holder, waiter) = (connect(&pgweir.url()), connect(&pgweir.url()));
    wait(holder.batch_execute("BEGIN; LOCK TABLE users IN SHARE MODE")).unwrap();
    let waiting = spawn(async move { waiter.simple_query("UPDATE users SET id = id WHERE id = 0").await.map(drop) });
    wait_until(LIMIT, "a wait of 1.2 s", || {
        let table = pgweir.console("SHOW POOLS");
        let of = |column: &str| table.number("user", "app", column);
        of("maxwait") * 1_000_000 + of("maxwait_us") > 1_200_000
    });
    wait(holder.batch_execute("COMMIT")).unwrap();
    wait(waiting).unwrap().unwrap();
    let entry = entry(&pgweir, "UPDATE users");
    let ms = |field: &str| entry[field].as_f64().unwrap();
    assert!(ms("wait_ms") >= 1_200.0 && ms("execute_ms") < ms("wait_ms"), "{entry}");
    assert_eq!(pgweir.slow_log().len(), 1, "{:?}", pgweir.slow_log());
}

#[test]
fn literals_and_bound_values_are_there_where_asked_for() {
    let quiet = builder();
    let pgweir = quiet.clone().set("statements.slow_log_parameters", true).start();
    let client = connect(&pgweir.url());
    wait(client.simple_query("SELECT 'secret' AS simple")).unwrap();
    assert_eq!(entry(&pgweir, "AS simple")["statement"], "SELECT 'secret' AS simple");
    let statement = wait(client.prepare("SELECT $1::text, $2::int, $3::text, 'literal' AS bound")).unwrap();
    for n in [7, 8] {
        wait(client.query(&statement, &[&"secret", &n, &None::<&str>])).unwrap();
    }
    wait_until(LIMIT, "both", || pgweir.slow_log().len() == 3);
    let log = pgweir.slow_log();
    let entry = |at: usize| (log[at]["statement"].as_str().unwrap(), &log[at]["parameters"]);
    // tokio-postgres sends text values as binary too.
    for (at, number) in [(1, "\\x00000007"), (2, "\\x00000008")] {
        let text = "SELECT $1::text, $2::int, $3::text, 'literal' AS bound";
        assert_eq!(entry(at), (text, &json!(["\\x736563726574", number, null])));
    }
    assert!(log[0].get("parameters").is_none());
    // Not for everyone who reaches the port.
    let public = pgweir.request("GET", "/slow", &[]);
    assert!(public.status == 200 && public.body.contains("duration_ms"), "{public:?}");
    assert!(!public.body.contains("secret") && !public.body.contains("SELECT"), "{public:?}");
    assert!(pgweir.get("/slow").1.contains("SELECT 'secret' AS simple"));
    // Statistics stay without.
    assert!(!pgweir.get("/statements").1.contains("literal"));
    pgweir.reload(&quiet);
    wait_until(LIMIT, "the reload", || pgweir.stderr().contains("configuration reloaded"));
    wait(client.query(&statement, &[&"secret", &9, &None::<&str>])).unwrap();
    wait_until(LIMIT, "the next", || pgweir.slow_log().len() == 4);
    let last = pgweir.slow_log().remove(3);
    assert!(last.get("parameters").is_none() && last["statement"] == "SELECT $1::text, $2::int, $3::text, $4 AS bound");
}

#[test]
fn a_huge_statement_is_cut() {
    let pgweir = builder().set("statements.slow_log_parameters", true).start();
    let client = connect(&pgweir.url());
    for (size, name) in [(40_000, "large"), (3_000_000, "huge")] {
        wait(client.simple_query(&format!("SELECT length('{}') AS {name}", "x".repeat(size)))).unwrap();
    }
    wait(client.execute("SELECT length($1::text) AS bound", &[&"x".repeat(500_000)])).unwrap();
    wait_until(LIMIT, "three lines", || pgweir.slow_log().len() == 3);
    let line = |at: usize| pgweir.slow_log()[at].to_string();
    assert!((0..3).all(|at| line(at).len() < 12_000), "{}", line(0));
    assert!(line(2).contains("AS bound"), "{}", line(2));
}

#[test]
fn the_file_is_opened_anew_after_a_rotation() {
    let pgweir = builder().start();
    let client = connect(&pgweir.url());
    let (log, rotated) = (pgweir.folder().join("slow.log"), pgweir.folder().join("slow.log.1"));
    wait(client.simple_query("SELECT 1 AS before")).unwrap();
    entry(&pgweir, "AS before");
    fs::rename(&log, &rotated).unwrap();
    // However the configuration is by now.
    fs::write(pgweir.config_path(), "[listen]\nadress = 1").unwrap();
    pgweir.signal(Signal::HUP);
    wait_until(LIMIT, "the new file", || log.exists());
    assert!(pgweir.stderr().contains("the old configuration stays"), "{}", pgweir.stderr());
    wait(client.simple_query("SELECT 1 AS after")).unwrap();
    entry(&pgweir, "AS after");
    let both = fs::read_to_string(&rotated).unwrap() + &fs::read_to_string(&log).unwrap();
    assert_eq!(both.lines().count(), 2, "{both}");
}

#[test]
fn a_path_that_cannot_be_written_is_reported() {
    let pgweir = builder().start();
    // A folder: found out by opening it, whoever the tests run as. The other is found out by looking at it.
    let folder = pgweir.folder().to_str().unwrap().to_owned();
    let good = pgweir.folder().join("slow.log");
    let original = fs::read_to_string(pgweir.config_path()).unwrap();
    for (reports, bad) in [&*folder, "/nowhere/slow.log"].into_iter().enumerate() {
        // At a reload the old log goes on.
        let config = original.replace(good.to_str().unwrap(), bad);
        fs::write(pgweir.config_path(), &config).unwrap();
        pgweir.signal(Signal::HUP);
        let reported = || pgweir.stderr().matches("the old configuration stays").count() > reports;
        wait_until(LIMIT, "the report", reported);
        assert!(pgweir.stderr().contains(bad), "{}", pgweir.stderr());
        wait(connect(&pgweir.url()).simple_query(&format!("SELECT 1 AS still{reports}"))).unwrap();
        entry(&pgweir, &format!("AS still{reports}"));
        // At the start it is refused.
        let [sql, admin] = [pgweir.port(), pgweir.admin_address().port()].map(|port| format!(":{port}\""));
        let path = pgweir.folder().join("bad.toml");
        fs::write(&path, config.replace(&sql, ":0\"").replace(&admin, ":0\"")).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_pgweir")).args(["run", "--config"]).arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(bad), "{}: {said}", output.status);
    }
}
