//! `pgweir load` against real servers, through pgweir.

mod support;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pgweir::demo::cluster::Cluster;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{Builder, LIMIT, Pgweir, wait_until};

fn builder() -> Builder {
    Pgweir::builder().cluster(support::cluster(), &[]).set("pool.max", 4)
}

fn load(url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgweir"));
    command.args(["load", "--to", url]).args(arguments).stdin(Stdio::null());
    command
}

struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ended {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}\n{}", self.out, self.err))
    }
}

fn run(url: &str, arguments: &[&str]) -> Ended {
    let output = load(url, arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    Ended { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

fn script(pgweir: &Pgweir, text: &str) -> PathBuf {
    let path = pgweir.folder().join("script.sql");
    fs::write(&path, text).unwrap();
    path
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

/// Clients of pgweir now, as its metrics say.
fn clients(pgweir: &Pgweir) -> u64 {
    count(&pgweir.json("/stats")["application"]["activeUsers"])
}

fn start(url: &str, arguments: &[&str], pgweir: &Pgweir) -> (Child, PathBuf) {
    let out = pgweir.folder().join("load.out");
    let child = load(url, arguments).stdout(File::create(&out).unwrap()).stderr(Stdio::piped()).spawn().unwrap();
    (child, out)
}

#[test]
fn stages_ramp_and_are_reported_one_by_one() {
    let pgweir = builder().start();
    let script = script(&pgweir, "\\set id random(1, 5)\nBEGIN;\nSELECT :id;\nCOMMIT;\n");
    let arguments = ["--stage", "2s:20", "--stage", "1s:20", "--stage", "1s:0", "--think", "20ms", "--json"];
    let (mut child, out) =
        start(&pgweir.url(), &[&arguments[..], &["--script", script.to_str().unwrap()]].concat(), &pgweir);
    // Not all at once: fewer than all are seen first.
    let mut seen = Vec::new();
    wait_until(LIMIT, "all users", || {
        seen.push(clients(&pgweir));
        seen.last() == Some(&20)
    });
    assert!(seen.iter().any(|&users| users > 0 && users < 20), "{seen:?}");
    wait_until(LIMIT, "no user", || clients(&pgweir) == 0);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let report: Value = serde_json::from_str(&fs::read_to_string(out).unwrap()).unwrap();
    let stages = report["stages"].as_array().unwrap();
    let users: Vec<_> = stages.iter().map(|s| (count(&s["users"]["from"]), count(&s["users"]["to"]))).collect();
    assert_eq!(users, [(0, 20), (20, 20), (20, 0)]);
    let sum: u64 = stages.iter().map(|stage| count(&stage["turns"])).sum();
    assert_eq!((count(&report["total"]["turns"]), count(&report["total"]["failed"])), (sum, 0), "{report}");
    assert!(stages.iter().all(|stage| count(&stage["turns"]) > 0), "{report}");
    assert_eq!(count(&report["total"]["statements"]), 3 * sum);
}

#[test]
fn thresholds_decide_the_exit_code() {
    let pgweir = builder().start();
    let stage = ["--stage", "0s:2", "--stage", "500ms:2", "--think", "1ms"];
    let with = |thresholds: &[&str]| {
        let given = thresholds.iter().flat_map(|threshold| ["--threshold", threshold]);
        run(&pgweir.url(), &stage.into_iter().chain(given).collect::<Vec<_>>())
    };
    let kept = with(&["p95<30s", "mean>0ms", "error_rate<1%", "throughput>0.1"]);
    assert_eq!(kept.code, Some(0), "{}{}", kept.out, kept.err);
    assert_eq!(kept.out.matches(", kept").count(), 4, "{}", kept.out);
    let broken = with(&["error_rate<1%", "max<1us"]);
    assert_eq!(broken.code, Some(1), "{}{}", broken.out, broken.err);
    assert!(broken.out.contains("error_rate<1%: 0.00 %, kept") && broken.out.contains("max<1us: "), "{}", broken.out);
    assert!(broken.out.contains("BROKEN"), "{}", broken.out);
}

#[test]
fn errors_are_counted_by_their_sqlstate() {
    let pgweir = builder().start();
    // The transaction that the error leaves is rolled back, or every later BEGIN would be in it still.
    let script = script(&pgweir, "\\set zero random(0, 1)\nBEGIN;\nSELECT 1 / :zero;\nCOPY t FROM STDIN;\nCOMMIT;\n");
    pgweir.psql("CREATE TABLE IF NOT EXISTS t (a int)");
    let path = script.to_str().unwrap();
    let ended = run(&pgweir.url(), &["--stage", "500ms:3", "--think", "5ms", "--json", "--script", path]);
    assert_eq!(ended.code, Some(1), "the usual threshold on errors is broken: {}", ended.err);
    let total = ended.json()["total"].clone();
    let (divided, copied) = (&total["errors"]["22012"], &total["errors"]["57014"]);
    assert_eq!(divided["message"], "division by zero");
    assert_eq!(count(&divided["count"]) + count(&copied["count"]), count(&total["failed"]), "{total}");
    assert_eq!(total["failed"], total["turns"]);
    assert_eq!(clients(&pgweir), 0);
}

#[test]
fn a_server_that_goes_away_is_an_error_and_users_come_back() {
    let cluster = Cluster::builder().replicas(0).start().unwrap();
    pgweir::demo::sample::install(cluster.primary()).unwrap();
    let pgweir = Pgweir::builder().cluster(&cluster, &[]).start();
    let url = cluster.primary().url(pgweir::demo::sample::DATABASE);
    let (mut child, out) = start(&url, &["--stage", "0s:4", "--stage", "60s:4", "--think", "10ms", "--json"], &pgweir);
    // Each is waited for: one that is ending yet must not be counted again.
    let kill =
        "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE application_name = 'pgweir load'";
    for _ in 0..2 {
        wait_until(LIMIT, "four users", || cluster.primary().psql(kill).unwrap() == "4");
    }
    // Who is back has met its error.
    let back = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgweir load'";
    wait_until(LIMIT, "four users again", || cluster.primary().psql(back).unwrap() == "4");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let report: Value = serde_json::from_str(&fs::read_to_string(out).unwrap()).unwrap();
    assert_eq!(report["interrupted"], true);
    let ended = count(&report["total"]["errors"]["57P01"]["count"]);
    assert!(ended >= 8, "{report}");
}

#[test]
fn a_login_that_is_refused_is_told() {
    let pgweir = builder().start();
    let url = pgweir.url_of("nobody", "x", "app");
    let ended = run(&url, &["--stage", "300ms:2"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.out.contains("28P01") || ended.out.contains("28000"), "{}", ended.out);
    assert!(ended.out.contains("p95<500ms: nothing measured, BROKEN"), "{}", ended.out);
    let nobody = run("postgres://app:app@127.0.0.1:1/app", &["--stage", "300ms:2", "--json"]);
    assert!(count(&nobody.json()["total"]["errors"]["08001"]["count"]) > 0, "{}", nobody.out);
}

#[test]
fn an_interrupt_prints_what_was_measured_and_cuts_hung_turns_off() {
    let pgweir = builder().start();
    let script = script(&pgweir, "SELECT pg_sleep(600);");
    let path = script.to_str().unwrap();
    let (mut child, out) = start(&pgweir.url(), &["--stage", "0s:3", "--stage", "600s:3", "--script", path], &pgweir);
    wait_until(LIMIT, "three users", || clients(&pgweir) == 3);
    wait_until(LIMIT, "three turns", || count(&pgweir.json("/stats")["database"]["activeQueries"]) == 3);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let printed = fs::read_to_string(out).unwrap();
    assert!(printed.contains("interrupted") && printed.contains("unfinished × 3"), "{printed}");
    wait_until(LIMIT, "no user", || clients(&pgweir) == 0);
}

#[test]
fn the_breaking_point_is_where_a_threshold_breaks() {
    let pgweir = builder().set("pool.max", 2).set("pool.acquire_timeout", "60s").start();
    // Two at a time: more users only wait for each other.
    let script = script(&pgweir, "SELECT pg_sleep(0.1);");
    let path = script.to_str().unwrap();
    let arguments = ["--find-breaking-point", "--step", "1s", "--think", "0s", "--script", path, "--json"];
    let ended = run(&pgweir.url(), &[&arguments[..], &["--threshold", "p50<30s"]].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let found = &ended.json()["breaking_point"];
    let reason = found["reason"].as_str().unwrap();
    assert!(reason.contains("throughput stops growing"), "{found}");
    assert!(count(&found["users"]) > 2 && count(&found["good"]["users"]) >= 1, "{found}");

    let ended = run(&pgweir.url(), &[&arguments[..], &["--threshold", "p50<1us"]].concat());
    let found = &ended.json()["breaking_point"];
    assert_eq!((count(&found["users"]), &found["good"]), (1, &Value::Null), "{found}");
    assert!(found["reason"].as_str().unwrap().contains("p50<1us"), "{found}");
}

#[test]
fn what_makes_no_sense_is_usage() {
    let script = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("load-nothing.sql");
    fs::write(&script, "-- nothing\n").unwrap();
    let url = "postgres://app@127.0.0.1:1/app";
    for (url, arguments, why) in [
        ("127.0.0.1", &[][..], "--to: it does not begin with postgres://"),
        (url, &["--stage", "2m"], "--stage 2m: no colon"),
        (url, &["--stage", "0s:5"], "last no time"),
        (url, &["--stage", "1s:59000"], "ulimit -n"),
        (url, &["--think", "5"], "--think 5 has no unit"),
        (url, &["--threshold", "p95=1ms"], "--threshold p95=1ms: no < or >"),
        (url, &["--script", "/no/such/file"], "--script /no/such/file: "),
        (url, &["--script", script.to_str().unwrap()], "there is no statement"),
        (url, &["--step", "1s"], "--find-breaking-point"),
        (url, &["--find-breaking-point", "--step", "1ms"], "at least 100ms"),
    ] {
        let mut command = Command::new("sh");
        // Fewer than the users need.
        command.args(["-c", "ulimit -n 1000; exec \"$0\" load --to \"$@\"", env!("CARGO_BIN_EXE_pgweir"), url]);
        let output = command.args(arguments).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {err}");
        assert!(err.contains(why), "{arguments:?}: {err}");
        assert!(output.stdout.is_empty());
    }
    let _ = fs::remove_file(script);
}

/// The same users from a quiet server to one with far too many, and back.
#[test]
fn an_overload_is_refused_in_bounds_and_passes() {
    let pgweir = builder().set("pool.max", 2).set("pool.acquire_timeout", "1s").start();
    let script = script(&pgweir, "SELECT pg_sleep(0.1);");
    let path = script.to_str().unwrap();
    let stages =
        |users: &str| ["--stage".to_owned(), format!("0s:{users}"), "--stage".to_owned(), "3s:".to_owned() + users];
    let play = |users: &str| {
        let stages = stages(users);
        let mut arguments: Vec<&str> = stages.iter().map(String::as_str).collect();
        arguments.extend(["--script", path, "--think", "0s", "--json"]);
        let total = run(&pgweir.url(), &arguments).json()["total"].clone();
        let done = count(&total["turns"]) - count(&total["failed"]);
        (done, total)
    };
    let (calm, total) = play("2");
    assert_eq!(count(&total["failed"]), 0, "{total}");
    // Twenty services fit into acquire_timeout, and so these cannot all be had: the last of a queue would wait for ten
    // seconds. Nobody does: the bound, and much for a busy machine.
    let (overloaded, total) = play("200");
    let longest = total["latency_ms"]["max"].as_f64().unwrap();
    assert!(longest < 5000.0, "somebody waited for {longest} ms: {total}");
    let refused = &total["errors"]["53300"];
    assert!(count(&refused["count"]) > 0, "{total}");
    assert_eq!(count(&refused["count"]), count(&total["failed"]), "nothing else fails: {total}");
    // Throughput holds: a collapse would be far below half, on any machine.
    assert!(overloaded * 2 > calm, "{overloaded} of {calm} turns");
    wait_until(LIMIT, "nobody waits", || count(&pgweir.json("/stats")["database"]["waiting"]) == 0);
    let (after, total) = play("2");
    assert!(count(&total["failed"]) == 0 && after * 2 > calm, "{after} of {calm}: {total}");
}

/// While some hold every connection, the others are told after acquire_timeout, with a hint; then they are served.
#[test]
fn who_waits_too_long_is_told_what_to_do_and_served_later() {
    let pgweir = builder().set("pool.max", 2).set("pool.acquire_timeout", "1s").start();
    let holders: Vec<_> = (0..2).map(|_| support::client::connect(&pgweir.url())).collect();
    for holder in &holders {
        support::client::wait(holder.batch_execute("BEGIN; SELECT 1")).unwrap();
    }
    let (refused, served, done) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let clients: Vec<_> = (0..10).map(|_| support::client::connect(&pgweir.url())).collect();
    std::thread::scope(|scope| {
        for client in &clients {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    match support::client::wait(client.simple_query("SELECT 1")) {
                        Ok(_) => served.fetch_add(1, Ordering::SeqCst),
                        Err(error) => {
                            let error = error.as_db_error().expect("the connection stays");
                            assert_eq!(error.code().code(), "53300");
                            assert!(error.hint().is_some_and(|hint| !hint.is_empty()), "{error:?}");
                            refused.fetch_add(1, Ordering::SeqCst)
                        }
                    };
                }
            });
        }
        wait_until(LIMIT, "each is refused twice", || refused.load(Ordering::SeqCst) >= 2 * clients.len());
        assert_eq!(served.load(Ordering::SeqCst), 0);
        for holder in &holders {
            support::client::wait(holder.batch_execute("COMMIT")).unwrap();
        }
        wait_until(LIMIT, "each is served", || served.load(Ordering::SeqCst) >= 10 * clients.len());
        done.store(true, Ordering::SeqCst);
    });
    assert_eq!(pgweir.psql("SELECT 2"), "2");
}
