//! `pgweir check` and the exit codes, as a shell sees them.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Output;

use assert_cmd::Command;

/// A file that is gone when the test ends.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: impl AsRef<[u8]>) -> File {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&path, text).unwrap();
        File(path)
    }

    fn name(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn pgweir(args: &[&str]) -> Output {
    Command::cargo_bin("pgweir")
        .unwrap()
        .args(args)
        .env("APP_DB_PASSWORD", "secret")
        .env_remove("RUST_LOG")
        .env_remove("NO_SUCH_NAME")
        .output()
        .unwrap()
}

#[track_caller]
fn exits(output: &Output, code: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "stdout: {out}\nstderr: {err}");
    (out, err)
}

const MINIMAL: &str = include_str!("../conf/minimal.toml");

#[test]
fn the_files_that_come_along_are_accepted() {
    for (file, summary) in [
        ("conf/minimal.toml", "ok: 1 database, 1 node, 1 user\n"),
        ("conf/pgweir.toml", "ok: 1 database, 2 nodes, 1 user; "),
    ] {
        let (out, err) = exits(&pgweir(&["check", "--offline", "--config", file]), 0);
        assert!(out.contains(&format!("{file}: {summary}")), "{out}");
        assert_eq!(err, "");
    }
}

#[test]
fn a_key_that_does_nothing_yet_is_noted() {
    let (out, _) = exits(&pgweir(&["check", "--offline", "--config", "conf/pgweir.toml"]), 0);
    for row in pgweir::config::NOT_IN_EFFECT.iter().filter(|row| !row.contains('=')) {
        // the annotated file switches these off
        let off = *row == "statements.capture_plans";
        let noted = out.contains(&format!("note: {row} is not in effect yet"));
        assert_eq!(noted, !off, "{row}\n{out}");
    }
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_the_nearest_key() {
    let file = File::new("unknown.toml", format!("[pool]\nidle_timout = \"1s\"\n{MINIMAL}"));
    let (out, _) = exits(&pgweir(&["check", "--offline", "--config", file.name()]), 1);
    let line = format!("{}:2: unknown key \"idle_timout\" in [pool]", file.name());
    assert!(out.contains(&format!("{line}; did you mean \"idle_timeout\"?\n")), "{out}");
    assert!(out.ends_with("refused: 1 error\n"), "{out}");
    let (_, err) = exits(&pgweir(&["--config", file.name()]), 1);
    assert!(err.contains(&line), "run refuses it too: {err}");
}

#[test]
fn an_unset_variable_is_refused() {
    let text = MINIMAL.replace("APP_DB_PASSWORD", "NO_SUCH_NAME");
    let file = File::new("unset.toml", text);
    let (out, _) = exits(&pgweir(&["check", "--offline", "--config", file.name()]), 1);
    assert!(out.contains("unset.toml:12: "), "{out}");
    assert!(out.contains("the environment variable NO_SUCH_NAME is not set"), "{out}");
}

#[test]
fn files_that_are_not_there_are_told() {
    let (out, _) = exits(&pgweir(&["check", "--offline", "--config", "no/such.toml"]), 1);
    assert!(out.starts_with("no/such.toml: cannot be read: "), "{out}");
    let text = format!(
        "[listen]\nunix_socket_dir = \"no/dir\"\n[listen.tls]\nmode = \"require\"\n\
         certificate = \"no.pem\"\nprivate_key = \"src\"\n[statements]\nslow_log = \"no/slow.log\"\n{MINIMAL}"
    );
    let file = File::new("paths.toml", text);
    let (out, _) = exits(&pgweir(&["check", "--offline", "--config", file.name()]), 1);
    for part in [
        ":2: listen.unix_socket_dir: no/dir is no directory",
        ":5: listen.tls.certificate: no.pem cannot be read",
        ":6: listen.tls.private_key: src is a directory",
        ":8: statements.slow_log: no is no directory",
    ] {
        assert!(out.contains(part), "{part}\n{out}");
    }
}

#[test]
fn a_file_that_is_not_utf8_names_the_line() {
    let file = File::new("latin1.toml", b"# one\n# caf\xe9\n");
    let (out, _) = exits(&pgweir(&["check", "--offline", "--config", file.name()]), 1);
    assert!(out.contains("latin1.toml:2: is not UTF-8"), "{out}");
}

#[test]
fn usage_errors_exit_2() {
    for args in [
        &[][..],
        &["check"],
        &["check", "--config"],
        &["--config", "conf/minimal.toml", "check"],
        &["serve"],
        &["check", "--offline", "--config", "conf/minimal.toml", "--log-level", "pgweir=loud"],
        &["health", "--admin", "https://localhost"],
    ] {
        let (out, err) = exits(&pgweir(args), 2);
        assert_eq!(out, "", "{args:?}");
        assert!(!err.is_empty(), "{args:?}");
    }
}

#[test]
fn help_and_version_exit_0() {
    let (out, _) = exits(&pgweir(&["--version"]), 0);
    assert_eq!(out, concat!("pgweir ", env!("CARGO_PKG_VERSION"), "\n"));
    let (out, _) = exits(&pgweir(&["--help"]), 0);
    for command in ["run", "check", "demo", "explain", "load", "top", "import", "health"] {
        assert!(out.contains(&format!("\n  {command} ")), "{command}\n{out}");
    }
}

#[test]
fn a_command_that_is_not_built_says_so() {
    for args in [&["top"][..], &["import", "pgbouncer.ini"]] {
        let (_, err) = exits(&pgweir(args), 2);
        assert_eq!(err, format!("pgweir {} is not built in this version\n", args[0]));
    }
}

#[test]
fn health_asks_the_configured_address() {
    for (status, code) in [("200 OK", 0), ("503 Service Unavailable", 1)] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let mut byte = [0];
            while !asked.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                asked.push(byte[0]);
            }
            write!(stream, "HTTP/1.1 {status}\r\n\r\nthe reason").unwrap();
            asked
        });
        // the rest of the file is broken: it was edited after pgweir had read it
        let text = format!("[admin]\nhttp = \"0.0.0.0:{port}\"\n[pool]\nmax = x\n");
        let file = File::new(&format!("health-{code}.toml"), text);
        let (_, err) = exits(&pgweir(&["health", "--ready", "--config", file.name()]), code);
        assert!(server.join().unwrap().starts_with(b"GET /readyz HTTP/1.1\r\n"));
        assert_eq!(err.contains("503: the reason"), code == 1, "{err}");
    }
}

#[test]
fn health_fails_where_nothing_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (_, err) = exits(&pgweir(&["health", "--admin", &url]), 1);
    assert!(err.contains("no answer"), "{err}");
    let file = File::new("off.toml", "[admin]\nhttp = \"\"\n");
    let (_, err) = exits(&pgweir(&["health", "--config", file.name()]), 1);
    assert!(err.contains("admin.http is off"), "{err}");
}
