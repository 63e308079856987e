//! Drivers of Python and Node.js: one script each. What a script expects is what Postgres does, so it must pass there
//! as well.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use pgweir::demo::cluster::Scratch;

use crate::interleaved::Interleaved;
use crate::{direct, session_mode, transaction_mode};

/// For one script; it takes seconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(120);

/// What `make setup` installed.
fn installed(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/drivers").join(path);
    assert!(path.exists(), "{} is missing: run `make setup`", path.display());
    path
}

fn interpreter(script: &str) -> Command {
    if script.ends_with(".py") {
        let mut python = Command::new(installed("venv/bin/python"));
        python.env("PYTHONDONTWRITEBYTECODE", "1");
        return python;
    }
    let mut node = Command::new("node");
    node.env("NODE_PATH", installed("node_modules"));
    node
}

fn run(script: &str, url: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drivers").join(script);
    let scratch = Scratch::create(None).unwrap();
    let said = scratch.path().join("said");
    let file = File::create(&said).unwrap();
    let mut command = interpreter(script);
    command.arg(path).arg(url).stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            None => break None,
        }
    };
    if status.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let said = fs::read_to_string(said).unwrap();
    assert!(status.is_some_and(|status| status.success()), "{script}: {status:?} (none: too slow)\n{said}");
}

fn everywhere(script: &str) {
    run(script, &direct());
    run(script, &session_mode().url());
    let pgweir = transaction_mode();
    let _other = Interleaved::with(&pgweir);
    run(script, &pgweir.url());
}

#[test]
fn psycopg() {
    everywhere("psycopg_basic.py");
}

#[test]
fn asyncpg() {
    everywhere("asyncpg_basic.py");
}

#[test]
fn sqlalchemy() {
    everywhere("sqlalchemy_basic.py");
}

#[test]
fn node_postgres() {
    everywhere("node_basic.js");
}

#[test]
fn postgres_js() {
    everywhere("postgresjs_basic.js");
}
