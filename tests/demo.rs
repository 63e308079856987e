//! `pgweir demo` as a stranger runs it: what it shows, and that nothing of it stays.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;
use std::time::Duration;

use pgweir::demo::{cluster::free_port, http};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::processes::processes_of;
use support::wait_until;

/// A primary, three replicas, fifty thousand rows, on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A demo and what it has printed.
struct Demo {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Demo {
    fn start(mut command: Command) -> Demo {
        LazyLock::force(&USUAL);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let said = Arc::<Mutex<String>>::default();
        let (lines, heard) = (BufReader::new(child.stdout.take().unwrap()), said.clone());
        thread::spawn(move || {
            for line in lines.split(b'\n').map_while(Result::ok) {
                *heard.lock().unwrap() += &(String::from_utf8_lossy(&line) + "\n");
            }
        });
        Demo { child, said }
    }

    fn plain(arguments: &[&str]) -> Demo {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgweir"));
        command.arg("demo").args(arguments);
        Demo::start(command)
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    fn wait_for(&mut self, text: &str) {
        wait_until(LIMIT, text, || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the demo ended ({ended:?}):\n{}", self.said());
            self.said().contains(text)
        });
    }

    /// The rest of the first line that holds `before`, behind it.
    fn after(&self, before: &str) -> String {
        let said = self.said();
        let line =
            said.lines().find_map(|line| line.split_once(before)).unwrap_or_else(|| panic!("{before} in {said}"));
        line.1.trim().to_owned()
    }

    fn folder(&self) -> PathBuf {
        PathBuf::from(self.after("slow-query log ")).parent().unwrap().to_owned()
    }

    fn admin(&self) -> SocketAddr {
        let address = self.after("curl http://");
        address.split('/').next().unwrap().parse().unwrap()
    }

    fn nodes(&self) -> Value {
        let (status, body) = http::get(self.admin(), "/nodes", support::LIMIT).unwrap();
        assert_eq!(status, 200);
        serde_json::from_str(&body).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn wait_exit(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until(LIMIT, "the demo's end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Ends the cluster too: its keeper outlives the demo for that.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn assert_gone(folder: &Path) {
    assert_eq!(processes_of(folder), Vec::<String>::new());
    assert!(!folder.exists(), "{} is still there", folder.display());
}

/// The usual ports, taken by these tests or by somebody else: of two demos that begin at a time both would have one, which
/// each gives up for a moment to its pgweir.
static USUAL: LazyLock<[Option<TcpListener>; 2]> =
    LazyLock::new(|| [6432, 9432].map(|port| TcpListener::bind(("127.0.0.1", port)).ok()));

#[test]
fn replicas_get_their_shares_and_the_end_leaves_nothing() {
    let mut demo = Demo::plain(&[]);
    demo.wait_for("port 6432 is taken: using ");
    demo.wait_for("port 9432 is taken: using ");
    demo.wait_for("pgweir's log ");
    let folder = demo.folder();
    assert!(!processes_of(&folder).is_empty());
    // By weight 1, 1, 2. What sessions' freshness keeps a replica from is made up for.
    let mut reads = Vec::new();
    wait_until(LIMIT, "four thousand reads", || {
        let nodes = demo.nodes();
        let replicas = nodes.as_array().unwrap().iter().filter(|node| node["role"] == "replica");
        reads = replicas.map(|node| node["reads"].as_f64().unwrap()).collect();
        reads.iter().sum::<f64>() >= 4_000.0
    });
    let all: f64 = reads.iter().sum();
    // A node that missed a probe on a machine this busy comes back to its share slowly.
    let failed = demo.nodes().as_array().unwrap().iter().any(|node| node["errors"].as_u64().unwrap() > 0);
    for (read, due) in reads.iter().zip([0.25, 0.25, 0.5]) {
        assert!(failed || (read / all - due).abs() < 0.05, "{reads:?}");
    }
    demo.wait_for("reads: 127.0.0.1:");
    demo.signal(Signal::INT);
    assert_eq!(demo.wait_exit().code(), Some(0), "{}", demo.said());
    assert_gone(&folder);
}

#[test]
fn a_terminal_shows_one_live_screen_until_ctrl_c() {
    let port = free_port().unwrap().to_string();
    let mut command = Command::new("script");
    // `exec`: a shell that stays would be interrupted too, and end with 130.
    let demo = format!("exec '{}' demo --port {port}", env!("CARGO_BIN_EXE_pgweir"));
    command.args(["-qefc", &demo, "/dev/null"]);
    let mut demo = Demo::start(command);
    for text in ["SHARE OF READS", "STATEMENTS BY P95", "SLOW STATEMENTS", "Ctrl-C ends the demo."] {
        demo.wait_for(text);
    }
    demo.wait_for("nodes up: 4 of 4");
    assert!(demo.said().contains("\x1b[H\x1b[J"), "the screen is drawn over");
    assert!(demo.said().contains(&format!("127.0.0.1:{port}/app")));
    // A statement of the load, with its figures.
    demo.wait_for("SELECT u.id, u.name");
    let folder = demo.folder();
    demo.child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    assert_eq!(demo.wait_exit().code(), Some(0), "{}", demo.said());
    assert_gone(&folder);
}

#[test]
fn an_asked_for_port_that_is_taken_is_refused_at_once() {
    let holder = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = holder.local_addr().unwrap().port().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_pgweir")).args(["demo", "--port", &port]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains(&format!("port {port} of 127.0.0.1 is taken")), "{said}");
    assert!(output.stdout.is_empty());
}

#[test]
fn an_end_while_it_starts_leaves_nothing() {
    let temporary = pgweir::demo::cluster::Scratch::create(None).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgweir"));
    let port = free_port().unwrap().to_string();
    command.args(["demo", "--port", &port]).env("TMPDIR", temporary.path());
    let mut demo = Demo::start(command);
    demo.wait_for("starting a primary and three replicas");
    demo.signal(Signal::TERM);
    assert_eq!(demo.wait_exit().code(), Some(0), "{}", demo.said());
    let left: Vec<_> = std::fs::read_dir(temporary.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("pgweir-")), "{left:?}");
}
