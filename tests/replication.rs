//! Replication connections pass through to the primary, for those who may have them.

mod support;

use std::fs;
use std::process::{Child, Command, Stdio};

use pgweir::demo::sample;
use rustix::process::{Pid, Signal, kill_process};
use support::wire::{Frames, Login, Wire};
use support::{LIMIT, Pgweir, Role, wait_until};

/// A role that may replicate, on the server and through pgweir.
fn replicator(name: &'static str) -> (Role<'static>, Pgweir) {
    let primary = support::cluster().primary();
    let role = Role::create(primary, name);
    primary.psql(&format!("ALTER ROLE {name} REPLICATION")).unwrap();
    let builder = Pgweir::builder().cluster(support::cluster(), &[1]).operator();
    (role, builder.user_with(name, "replication", true).start())
}

/// Asks a server who it is, as a client with this `replication` parameter: what psql printed, or its error.
fn identify(pgweir: &Pgweir, role: &Role<'_>, replication: &str) -> Result<String, String> {
    let url = format!("{}?replication={replication}", role.url(pgweir));
    let output = pgweir.psql_output(&["-c", "IDENTIFY_SYSTEM", &url]);
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap().trim_end().to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// A program that replicates until it is told to stop.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Running {
        Running(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

/// The walsenders of a role.
fn walsenders(role: &Role<'_>) -> String {
    let sql = format!("SELECT count(*) FROM pg_stat_replication WHERE usename = '{}'", role.name);
    support::cluster().primary().psql(&sql).unwrap()
}

#[test]
fn the_primary_answers_who_may_and_pgweir_refuses_others() {
    let (role, pgweir) = replicator("replicator_asks");
    let system = support::cluster().primary().psql("SELECT system_identifier FROM pg_control_system()").unwrap();
    let logical = identify(&pgweir, &role, "database").unwrap();
    assert!(logical.starts_with(&format!("{system}|")) && logical.ends_with(&format!("|{}", sample::DATABASE)));
    let physical = identify(&pgweir, &role, "true").unwrap();
    assert!(physical.starts_with(&format!("{system}|")), "{physical}");
    // An ordinary connection of the same user is as ever.
    assert!(pgweir.psql_output(&["-c", "SELECT 1", &role.url(&pgweir)]).status.success());
    let url = format!("{}?replication=database", pgweir.url());
    let output = pgweir.psql_output(&["-c", "IDENTIFY_SYSTEM", &url]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("may not have replication connections"), "{error}");
}

#[test]
fn the_servers_own_refusals_are_passed_on() {
    let (role, pgweir) = replicator("replicator_refused");
    support::cluster().primary().psql("ALTER ROLE replicator_refused NOREPLICATION").unwrap();
    let error = identify(&pgweir, &role, "database").unwrap_err();
    // In one word or two, by the server's version.
    assert!(error.to_lowercase().replace(' ', "").contains("startwalsender"), "{error}");
    let error = identify(&pgweir, &role, "nonsense").unwrap_err();
    assert!(error.contains("invalid value for parameter \"replication\""), "{error}");
}

#[test]
fn a_logical_stream_flows_and_ends_with_its_client() {
    let (role, pgweir) = replicator("replicator_logical");
    let file = pgweir.folder().join("changes");
    let url = role.url(&pgweir);
    let recvlogical = || {
        let mut command = pgweir.program("pg_recvlogical");
        command.args(["-d", &url, "--slot", "through_pgweir"]);
        command
    };
    let made = recvlogical().args(["--create-slot", "-P", "test_decoding"]).status().unwrap();
    assert!(made.success());
    let mut start = recvlogical();
    start.args(["--start", "-F", "0", "-f"]).arg(&file);
    let running = Running::start(&mut start);
    pgweir.psql("CREATE TABLE replicated (t text)");
    for n in 0..100 {
        pgweir.psql(&format!("INSERT INTO replicated SELECT repeat('{n} ', 1000)"));
    }
    let streamed = || fs::read_to_string(&file).unwrap_or_default();
    wait_until(LIMIT, "all changes", || streamed().matches("table public.replicated: INSERT").count() == 100);
    let clients = pgweir.console("SHOW CLIENTS");
    assert_eq!(clients.row("user", role.name)["replication"], "logical");
    assert_eq!(walsenders(&role), "1");
    running.signal(Signal::KILL);
    wait_until(LIMIT, "the walsender's end", || walsenders(&role) == "0");
    let left = || pgweir.console("SHOW CLIENTS").rows.iter().any(|row| row["user"] == role.name);
    wait_until(LIMIT, "the client's end", || !left());
    assert!(recvlogical().arg("--drop-slot").status().unwrap().success());
    pgweir.psql("DROP TABLE replicated");
}

/// Told so in the middle of what streams, behind a whole frame.
#[test]
fn a_client_is_told_when_pgweir_stops() {
    let (role, pgweir) = replicator("replicator_stopped");
    let connect = || {
        let parameters = &[("replication", "database")];
        Wire::log_in(pgweir.port(), &Login { user: role.name, password: role.name, parameters, ..Login::default() })
    };
    let mut idle = connect();
    let mut streaming = connect();
    let slot = streaming.query("CREATE_REPLICATION_SLOT stopped TEMPORARY LOGICAL test_decoding NOEXPORT_SNAPSHOT");
    assert_eq!(slot.last().unwrap().tag, b'Z', "{slot:?}");
    streaming.send(&Frames::new().query("START_REPLICATION SLOT stopped LOGICAL 0/0"));
    streaming.until(b'W');
    let row =
        |n| format!("CREATE TABLE IF NOT EXISTS streamed (t text); INSERT INTO streamed SELECT repeat('{n}', 900000)");
    for n in 0..9 {
        support::cluster().primary().psql_in(sample::DATABASE, &row(n)).unwrap();
    }
    streaming.until(b'd');
    pgweir.signal(Signal::TERM);
    for client in [&mut streaming, &mut idle] {
        let end = client.rest();
        let error = end.last().expect("a word");
        assert_eq!((error.tag, error.sqlstate().as_str()), (b'E', "57P01"));
    }
    assert!(pgweir.wait_exit(LIMIT).success());
}

#[test]
fn wal_is_received_and_a_terminated_walsender_ends_its_client() {
    let (role, pgweir) = replicator("replicator_physical");
    let folder = pgweir.folder().join("wal");
    fs::create_dir(&folder).unwrap();
    let mut receive = pgweir.program("pg_receivewal");
    receive.args(["--no-loop", "-d", &role.url(&pgweir), "-D"]).arg(&folder);
    let mut running = Running::start(&mut receive);
    let received = || fs::read_dir(&folder).unwrap().flatten().any(|f| f.file_name().to_string_lossy().len() >= 24);
    wait_until(LIMIT, "a segment of the WAL", received);
    let sql = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE usename = '{}'", role.name);
    assert_eq!(support::cluster().primary().psql(&sql).unwrap(), "t");
    let mut status = None;
    wait_until(LIMIT, "the end of pg_receivewal", || {
        status = running.0.try_wait().unwrap();
        status.is_some()
    });
    assert!(!status.unwrap().success());
}
