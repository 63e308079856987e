//! A switchover and a failover by a real Patroni, with clients reading and writing all the while.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pgweir::demo::cluster::{HOST, Programs, SUPERUSER, Scratch, children, random_hex};
use pgweir::demo::sample;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio_postgres::{Client, Error};

use super::support::sessions::{block_on, sqlstate, try_connect};
use super::support::{Pgweir, wait_until};
use super::{Load, quick};

/// Patroni takes its time: it notices a dead leader when its key expires ([`TTL`]).
const LIMIT: Duration = Duration::from_secs(90);
/// Of the leader's key, in seconds. Not less than `loop_wait` + 2 × `retry_timeout`, as Patroni wants it.
const TTL: u32 = 7;
const WRITERS: usize = 4;
/// To each node.
const CONNECTIONS: usize = 5;

// ---- Patroni ---------------------------------------------------------------------------------------------------

struct Node {
    name: String,
    port: u16,
    rest: u16,
    patroni: Mutex<Child>,
}

/// Three Patronis, each with its Postgres, and the etcd in which they agree on their leader.
struct Patroni {
    nodes: Vec<Node>,
    etcd: Child,
    scratch: Scratch,
    programs: Programs,
}

impl Patroni {
    fn start() -> Patroni {
        let programs = Programs::find().unwrap();
        let scratch = Scratch::create(programs.account()).unwrap();
        let [client, peer] = [free_port(), free_port()].map(|port| format!("http://{HOST}:{port}"));
        let arguments = [
            "--data-dir".to_owned(),
            scratch.path().join("etcd").display().to_string(),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
        ];
        let etcd = launch(&programs, &scratch, "etcd", "etcd", &arguments);
        let node = |number| {
            let (name, port, rest) = (format!("node{number}"), free_port(), free_port());
            let file = scratch.path().join(format!("{name}.yml"));
            fs::write(&file, conf(&name, port, rest, &client, &scratch, &programs)).unwrap();
            let patroni = launch(&programs, &scratch, &name, "patroni", &[file.display().to_string()]);
            Node { name, port, rest, patroni: Mutex::new(patroni) }
        };
        let nodes = (1..=3).map(node).collect();
        let patroni = Patroni { nodes, etcd, scratch, programs };
        // A synchronous one is named a moment later; the switchover waits for it.
        patroni.wait_running(|_| true);
        patroni
    }

    fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).unwrap()
    }

    /// What the first Patroni that answers says of each: its role, its state and its timeline.
    fn members(&self) -> BTreeMap<String, (String, String, u64)> {
        let document = self.nodes.iter().find_map(|node| {
            let (status, body) = request(node.rest, "GET", "/cluster", "").ok()?;
            let document: Value = (status == 200).then(|| serde_json::from_str(&body).ok()).flatten()?;
            // One that is alone in the world has nothing to tell.
            document["members"].is_array().then_some(document)
        });
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let members = document.iter().flat_map(|document| document["members"].as_array().unwrap());
        members
            .map(|m| (text(&m["name"]), (text(&m["role"]), text(&m["state"]), m["timeline"].as_u64().unwrap_or(0))))
            .collect()
    }

    fn leader(&self) -> Option<String> {
        self.members().into_iter().find(|(_, (role, ..))| role == "leader").map(|(name, _)| name)
    }

    /// Until all run on one timeline, one of them the leader, and their roles are as said.
    fn wait_running(&self, roles: impl Fn(&[&str]) -> bool) {
        wait_until(LIMIT, "all nodes to run", || {
            let members = self.members();
            let found: Vec<_> = members.values().map(|(role, ..)| role.as_str()).collect();
            let runs = |state: &str| matches!(state, "running" | "streaming");
            let timelines: Vec<_> = members.values().map(|(.., timeline)| timeline).collect();
            members.len() == self.nodes.len()
                && members.values().all(|(_, state, _)| runs(state))
                && timelines.iter().all(|timeline| *timeline == timelines[0])
                && found.contains(&"leader")
                && roles(&found)
        });
    }

    /// Asks the leader's Patroni for a switchover, until it agrees; to whom.
    fn switch_over(&self) -> String {
        let leader = self.leader().unwrap();
        let asked = format!("{{\"leader\": \"{leader}\"}}");
        wait_until(LIMIT, "Patroni to switch over", || {
            let answer = request(self.node(&leader).rest, "POST", "/switchover", &asked);
            println!("switchover: {answer:?}");
            matches!(answer, Ok((200, _)))
        });
        self.wait_leader_after(&leader)
    }

    fn wait_leader_after(&self, old: &str) -> String {
        let mut new = None;
        wait_until(LIMIT, "another leader", || {
            new = self.leader().filter(|leader| leader != old);
            new.is_some()
        });
        new.unwrap()
    }

    /// SIGKILL to a node's Patroni, its postmaster and all its processes, as if the machine had died.
    fn kill9(&self, node: &Node) {
        let mut patroni = node.patroni.lock().unwrap();
        patroni.kill().unwrap();
        patroni.wait().unwrap();
        let postmaster = self.postmaster(node);
        kill_process(postmaster, Signal::STOP).unwrap();
        for process in children(postmaster).into_iter().chain([postmaster]) {
            // One that has just ended needs no signal.
            let _ = kill_process(process, Signal::KILL);
        }
    }

    fn postmaster(&self, node: &Node) -> Pid {
        let file = self.scratch.path().join(&node.name).join("postmaster.pid");
        let text = fs::read_to_string(file).unwrap();
        Pid::from_raw(text.lines().next().unwrap().trim().parse().unwrap()).unwrap()
    }

    /// As the superuser, on one node itself.
    fn psql(&self, node: &Node, database: &str, sql: &str) -> String {
        let mut psql = self.programs.client("psql").unwrap();
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql]);
        psql.args(["-U", SUPERUSER, "-h", HOST, "-p", &node.port.to_string(), "-d", database]);
        let output = psql.output().unwrap();
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }
}

impl Drop for Patroni {
    fn drop(&mut self) {
        if thread::panicking() {
            for node in &self.nodes {
                let log = fs::read_to_string(self.scratch.path().join(format!("{}.log", node.name)));
                eprintln!("--- {} ---\n{}", node.name, log.unwrap_or_default());
            }
        }
        for node in &self.nodes {
            let mut patroni = node.patroni.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // Its Postgres is ended by the folder's keeper.
            let _ = patroni.kill();
            let _ = patroni.wait();
        }
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
    }
}

fn launch(programs: &Programs, scratch: &Scratch, name: &str, program: &str, arguments: &[String]) -> Child {
    let command = programs.server(program, scratch.path());
    let mut command = command.unwrap_or_else(|error| panic!("{error}: run `make setup`"));
    let log = File::create(scratch.path().join(format!("{name}.log"))).unwrap();
    let child = command.args(arguments).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    scratch.watch(name, child.id()).unwrap();
    child
}

/// With synchronous replication, so that a failover loses nothing that was acknowledged.
fn conf(name: &str, port: u16, rest: u16, etcd: &str, scratch: &Scratch, programs: &Programs) -> String {
    let folder = scratch.path().display();
    let bin = programs.path("postgres").unwrap();
    let bin = bin.parent().unwrap().display();
    let etcd = etcd.trim_start_matches("http://");
    format!(
        "scope: pgweir
name: {name}
restapi: {{listen: '{HOST}:{rest}', connect_address: '{HOST}:{rest}'}}
etcd3: {{host: '{etcd}'}}
bootstrap:
  dcs:
    ttl: {TTL}
    loop_wait: 1
    retry_timeout: 3
    synchronous_mode: true
    postgresql:
      use_pg_rewind: false
      parameters: {{fsync: 'off', full_page_writes: 'off', shared_buffers: 32MB, wal_level: logical,
        wal_keep_size: 64MB, wal_retrieve_retry_interval: 200ms, dynamic_shared_memory_type: mmap}}
  initdb: [no-sync, {{encoding: UTF8}}, {{locale: C}}, {{auth: trust}}]
  pg_hba: ['local all all trust', 'host all,replication all {HOST}/32 trust']
postgresql:
  listen: '{HOST}:{port}'
  connect_address: '{HOST}:{port}'
  data_dir: '{folder}/{name}'
  bin_dir: '{bin}'
  pgpass: '{folder}/{name}.pgpass'
  parameters: {{unix_socket_directories: '{folder}'}}
  authentication:
    superuser: {{username: {SUPERUSER}, password: unasked}}
    replication: {{username: {SUPERUSER}, password: unasked}}
  basebackup: [no-sync, {{checkpoint: fast}}]
"
    )
}

/// Not among those that other tests draw from: some are bound only seconds later.
fn free_port() -> u16 {
    std::iter::repeat_with(|| 10_000 + u16::from_str_radix(&random_hex(2).unwrap(), 16).unwrap() % 10_000)
        .find(|port| TcpListener::bind((HOST, *port)).is_ok())
        .unwrap()
}

fn request(port: u16, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n{body}")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    let status = reply.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = reply.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    status.zip(body).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

// ---- clients that write ----------------------------------------------------------------------------------------

#[derive(Debug, Default)]
struct Written {
    acknowledged: Vec<i64>,
    /// With the SQLSTATE.
    failed: Vec<(i64, String)>,
    /// Reads of what was acknowledged that failed, or found something else.
    misread: Vec<String>,
}

/// Clients that write rows, each with a number of its own, and read each again; until stopped.
struct Writers {
    written: Arc<[AtomicUsize; WRITERS]>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Written>>,
}

impl Writers {
    fn start(pgweir: &Pgweir) -> Writers {
        let written: Arc<[AtomicUsize; WRITERS]> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (url, counts, end) = (pgweir.url(), written.clone(), stop.clone());
        let thread = thread::spawn(move || {
            block_on(async {
                let ids = Arc::new(AtomicU64::new(1));
                let writers = (0..WRITERS).map(|i| {
                    let (url, counts, end, ids) = (url.clone(), counts.clone(), end.clone(), ids.clone());
                    tokio::spawn(async move {
                        let written = write_on(&url, i, &ids, &counts[i], &end).await;
                        // After one misread there is nothing to wait for.
                        end.fetch_or(!written.misread.is_empty(), Ordering::Relaxed);
                        written
                    })
                });
                let mut all = Vec::new();
                for writer in writers.collect::<Vec<_>>() {
                    all.push(writer.await.unwrap());
                }
                all
            })
        });
        Writers { written, stop, thread }
    }

    /// Until each of the clients has written so many rows more.
    fn wait_progress(&self, rows: usize) {
        let counts = || self.written.each_ref().map(|count| count.load(Ordering::Relaxed));
        let before = counts();
        wait_until(LIMIT, "every client to write on", || {
            self.thread.is_finished() || counts().iter().zip(before).all(|(now, before)| *now >= before + rows)
        });
    }

    fn stop(self) -> Vec<Written> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

async fn write_on(url: &str, writer: usize, ids: &AtomicU64, count: &AtomicUsize, end: &AtomicBool) -> Written {
    let mut written = Written::default();
    let mut client = None;
    for turn in writer.. {
        if end.load(Ordering::Relaxed) {
            break;
        }
        let session = match client.take().filter(|client: &Client| !client.is_closed()) {
            Some(session) => session,
            None => try_connect(url).await.unwrap(),
        };
        let id = i64::try_from(ids.fetch_add(1, Ordering::Relaxed)).unwrap();
        match write(&session, id, turn).await {
            Ok(()) => {
                written.acknowledged.push(id);
                let found = session.query_one("SELECT count(*) FROM written WHERE id = $1", &[&id]).await;
                match found.map(|row| row.get::<_, i64>(0)) {
                    Ok(1) => count.fetch_add(1, Ordering::Relaxed),
                    Ok(rows) => return written.with_misread(format!("{rows} rows of {id}")),
                    Err(error) => return written.with_misread(format!("{id}: {error:?}")),
                };
                client = Some(session);
            }
            // In a new session then: whether this one has ended is not the question here.
            Err(error) => written.failed.push((id, sqlstate(&error).to_owned())),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    written
}

/// By a simple Query, with bound parameters, in a transaction block.
async fn write(client: &Client, id: i64, turn: usize) -> Result<(), Error> {
    let insert = format!("INSERT INTO written VALUES ({id})");
    match turn % 3 {
        0 => client.simple_query(&insert).await.map(drop),
        1 => client.execute("INSERT INTO written VALUES ($1)", &[&id]).await.map(drop),
        _ => {
            client.simple_query("BEGIN").await?;
            client.simple_query(&insert).await?;
            client.simple_query("COMMIT").await.map(drop)
        }
    }
}

impl Written {
    fn with_misread(mut self, what: String) -> Written {
        self.misread.push(what);
        self
    }
}

// ---- the test --------------------------------------------------------------------------------------------------

/// Counted: no read fails; of writes those alone that were under way when their primary ended, each with an SQLSTATE, while
/// others wait for the next one; none is lost that was acknowledged, none applied twice.
#[test]
fn a_switchover_and_a_failover_by_patroni() {
    let began = Instant::now();
    let patroni = Patroni::start();
    let first = patroni.leader().unwrap();
    let leader = patroni.node(&first);
    patroni.psql(leader, "postgres", "CREATE ROLE app LOGIN");
    patroni.psql(leader, "postgres", "CREATE DATABASE app OWNER app");
    let tables = "SET ROLE app; CREATE TABLE written (id bigint); \
        CREATE TABLE users AS SELECT n::bigint AS id, 'User ' || n AS name FROM generate_series(1, 1000) AS n";
    patroni.psql(leader, sample::DATABASE, tables);
    println!("started: {:.1?}", began.elapsed());

    let pgweir = patroni.nodes.iter().fold(quick(), |builder, node| builder.node(node.port, "auto", Some(1)));
    let pgweir = pgweir.set("pool.acquire_timeout", "60s").set("pool.max", CONNECTIONS as i64).start();
    wait_until(LIMIT, "users on every replica", || pgweir.psql("SELECT count(*) FROM users") == "1000");
    let (load, writers) = (Load::start(&pgweir), Writers::start(&pgweir));
    writers.wait_progress(20);

    let second = patroni.switch_over();
    writers.wait_progress(20);
    load.wait_progress(20);
    println!("switched over from {first} to {second}: {:.1?}", began.elapsed());

    // Synchronous again: what is acknowledged from now on outlives the leader.
    patroni.wait_running(|roles| roles.contains(&"sync_standby"));
    writers.wait_progress(20);
    patroni.kill9(patroni.node(&second));
    let third = patroni.wait_leader_after(&second);
    writers.wait_progress(20);
    load.wait_progress(20);
    println!("failed over from {second} to {third}: {:.1?}", began.elapsed());

    let written = writers.stop();
    load.stop("a switchover and a failover");
    judge(&written, &patroni.psql(patroni.node(&third), sample::DATABASE, "SELECT id FROM written"));
}

fn judge(written: &[Written], rows: &str) {
    let mut found = HashMap::<i64, usize>::new();
    rows.lines().for_each(|id| *found.entry(id.parse().unwrap()).or_default() += 1);
    let acknowledged: Vec<_> = written.iter().flat_map(|w| &w.acknowledged).collect();
    let failed: Vec<_> = written.iter().flat_map(|w| &w.failed).collect();
    let misread: Vec<_> = written.iter().flat_map(|w| &w.misread).collect();
    let lost: Vec<_> = acknowledged.iter().filter(|id| !found.contains_key(id)).collect();
    let twice: Vec<_> = found.iter().filter(|(_, times)| **times > 1).collect();
    let applied = failed.iter().filter(|(id, _)| found.contains_key(id)).count();
    println!(
        "{} writes acknowledged, {} lost; {} failed in flight {:?}, {applied} of them applied; {} applied twice",
        acknowledged.len(),
        lost.len(),
        failed.len(),
        failed.iter().map(|(_, state)| state).collect::<Vec<_>>(),
        twice.len()
    );
    assert!(misread.is_empty(), "{misread:?}");
    assert!(lost.is_empty() && twice.is_empty(), "lost {lost:?}, twice {twice:?}");
    // One on each connection to a primary that ends, and two have ended.
    assert!(failed.len() <= 2 * CONNECTIONS, "{failed:?}");
    let is_clear = |state: &str| ["08006", "57P01", "57P02"].contains(&state);
    assert!(failed.iter().all(|(_, state)| is_clear(state)), "{failed:?}");
}
