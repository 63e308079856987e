//! Real drivers in other languages, directly at Postgres and through pgweir: both must pass the same scripts.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pgweir::demo::sample;
use support::Pgweir;

/// What `make setup` installed.
fn installed(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/drivers").join(path);
    assert!(path.exists(), "{} is missing: run `make setup`", path.display());
    path
}

fn run(mut command: Command, script: &str, url: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drivers").join(script);
    let output = command.arg(&script).arg(url).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {}\n{said}", script.display(), output.status);
}

fn psycopg(url: &str) {
    run(Command::new(installed("venv/bin/python")), "psycopg_basic.py", url);
}

fn node(url: &str) {
    let mut node = Command::new("node");
    node.env("NODE_PATH", installed("node_modules"));
    run(node, "node_basic.js", url);
}

fn direct() -> String {
    let port = support::cluster().primary().port();
    format!("postgresql://{}:{}@127.0.0.1:{port}/{}", sample::USER, sample::PASSWORD, sample::DATABASE)
}

/// Psycopg's crowd of 20 sets a parameter to a bound value each, which pins them: the pool has room for all.
fn pgweir() -> Pgweir {
    Pgweir::builder().cluster(support::cluster(), &[1, 2]).set("pool.max", 22).start()
}

/// What a script expects is what Postgres does.
#[test]
fn psycopg_at_postgres() {
    psycopg(&direct());
}

#[test]
fn node_at_postgres() {
    node(&direct());
}

#[test]
fn psycopg_through_pgweir() {
    psycopg(&pgweir().url());
}

#[test]
fn node_through_pgweir() {
    node(&pgweir().url());
}

/// With -M prepared, pgbench's thread waits for each Parse with the transactions of its other clients open, which on a
/// pool smaller than its clients would wait for one another; so there without transactions.
#[test]
fn pgbench_in_every_mode() {
    let pgweir = Pgweir::builder().cluster(support::cluster(), &[1, 2]).set("pool.max", 4).start();
    let reads = "\\set n random(1, 100)\nSELECT :n + 1;\nSELECT :n /* pgweir: primary */;\n";
    let block = format!("{reads}BEGIN;\nSELECT :n;\nSELECT :n + 2;\nEND;\n");
    for (mode, text) in [("simple", block.as_str()), ("extended", &block), ("prepared", reads)] {
        let script = pgweir.folder().join(mode);
        fs::write(&script, text).unwrap();
        let printed = pgweir.pgbench(&["-M", mode, "-c", "32", "-j", "2", "-t", "25", "-f", script.to_str().unwrap()]);
        assert!(printed.contains("actually processed: 800/800"), "{mode}: {printed}");
    }
}
