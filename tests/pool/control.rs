//! The operator's hand on the pool: PAUSE, RESUME, RECONNECT, reload, and the end.

use pgweir::demo::cluster::SUPERUSER;
use rustix::process::Signal;

use crate::support::client::{spawn, wait};
use crate::support::{Builder, LIMIT, Pgweir, Raw, Role, cluster, wait_until};
use crate::wait_for_waiting;

fn builder(role: &Role<'_>) -> Builder {
    let builder = Pgweir::builder().cluster(cluster(), &[]).user(role.name, role.name);
    builder.set("admin.users", vec![SUPERUSER])
}

fn console(pgweir: &Pgweir, command: &str) {
    let url = pgweir.url_of(SUPERUSER, cluster().primary().password(), "pgweir");
    let output = pgweir.psql_output(&["-c", command, &url]);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn pause_lets_transactions_end_and_resume_lets_them_begin() {
    let role = Role::create(cluster().primary(), "control_pause");
    let pgweir = builder(&role).set("pool.min", 2).start();
    let mut busy = Raw::connect(pgweir.port(), role.name);
    let mut idle = Raw::connect(pgweir.port(), role.name);
    idle.run("SELECT 1");
    busy.run("BEGIN; SELECT 1");
    // Like PgBouncer's, it returns when the last server connection is gone.
    let done = std::thread::scope(|scope| {
        let pausing = scope.spawn(|| console(&pgweir, "PAUSE"));
        role.wait_for(1);
        idle.query("SELECT 1").flush();
        wait_for_waiting(&pgweir, &role, 1);
        let early = pausing.is_finished();
        busy.run("SELECT 1");
        busy.run("COMMIT");
        role.wait_for(0);
        !early
    });
    assert!(done, "PAUSE returned while a transaction was open");
    busy.query("SELECT 1").flush();
    wait_for_waiting(&pgweir, &role, 2);
    assert_eq!(role.pids().len(), 0);
    // One who comes only now waits as well.
    let mut late = Raw::connect(pgweir.port(), role.name);
    late.query("SELECT 1").flush();
    wait_for_waiting(&pgweir, &role, 3);

    console(&pgweir, "RESUME");
    for client in [&mut busy, &mut idle, &mut late] {
        client.until_ready();
    }
}

#[test]
fn reconnect_replaces_connections_as_they_come_free() {
    let role = Role::create(cluster().primary(), "control_reconnect");
    let pgweir = builder(&role).set("pool.min", 2).start();
    let mut busy = Raw::connect(pgweir.port(), role.name);
    busy.run("BEGIN; SELECT 1");
    let held = busy.value("SELECT pg_backend_pid()");
    role.wait_for(2);
    let before = role.pids();
    console(&pgweir, "RECONNECT");
    wait_until(LIMIT, "the end of the idle connection", || {
        let now = role.pids();
        before.iter().filter(|pid| now.contains(pid)).collect::<Vec<_>>() == [&held]
    });
    assert_eq!(busy.value("SELECT pg_backend_pid()"), held);
    busy.run("COMMIT");
    wait_until(LIMIT, "new connections", || {
        let now = role.pids();
        now.len() == 2 && before.iter().all(|pid| !now.contains(pid))
    });
}

/// The SQLSTATE of a login that is refused.
fn refused(pgweir: &Pgweir, role: &Role<'_>) -> String {
    let url = pgweir.url_of(role.name, role.name, "app");
    let error = wait(tokio_postgres::connect(&url, tokio_postgres::NoTls)).map(drop).unwrap_err();
    error.code().unwrap().code().to_owned()
}

/// While `done` has not happened `command` does not return; then it does.
fn returns_behind(pgweir: &Pgweir, command: &str, done: impl FnOnce()) {
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| pgweir.console(command));
        wait_until(LIMIT, command, || pgweir.stderr().contains(&format!("\"command\":\"{command}\"")));
        // Long enough for one that does not wait.
        pgweir.console("SHOW STATE");
        assert!(!waiting.is_finished(), "{command} came too early");
        done();
    });
}

#[test]
fn databases_are_taken_out_and_back() {
    let role = Role::create(cluster().primary(), "control_out");
    let port = cluster().primary().port();
    let others = format!(
        "[[databases]]\nname = \"*\"\ndbname = \"app\"\ntls = \"disable\"\n\
         nodes = [{{ host = \"127.0.0.1\", port = {port}, role = \"primary\" }}]\n"
    );
    let pgweir = builder(&role).operator().more(&others).start();
    let flag = |database: &str, flag: &str| {
        let rows = pgweir.console("SHOW DATABASES").rows;
        rows.iter().any(|row| row["name"] == database && row[flag] == "1")
    };
    // Nobody else comes in; who is there stays.
    let mut client = Raw::connect(pgweir.port(), role.name);
    pgweir.console("DISABLE app");
    assert_eq!(refused(&pgweir, &role), "55000");
    assert!(flag("app", "disabled") && client.run("BEGIN; SELECT 1") == b'T');
    pgweir.console("ENABLE app");
    assert!(!flag("app", "disabled"));
    // What was open before RECONNECT is gone.
    pgweir.console("RECONNECT app");
    returns_behind(&pgweir, "WAIT_CLOSE", || assert_eq!(client.run("COMMIT"), b'I'));
    // Everybody goes at once, and who comes waits.
    client.run("BEGIN; SELECT 1");
    pgweir.console("KILL app");
    assert_eq!(client.until_closed().as_deref(), Some("57P01"));
    role.wait_for(0);
    let mut client = Raw::connect(pgweir.port(), role.name);
    client.query("SELECT 1").flush();
    wait_for_waiting(&pgweir, &role, 1);
    pgweir.console("RESUME app");
    client.until_ready();
    // Databases that are made only now as well.
    let state = |state: &str| pgweir.console("SHOW STATE").row("key", state)["value"] == "yes";
    pgweir.console("PAUSE");
    let url = pgweir.url_of(role.name, role.name, "later");
    let later = spawn(async move { tokio_postgres::connect(&url, tokio_postgres::NoTls).await.map(drop) });
    wait_until(LIMIT, "the new database", || flag("later", "paused"));
    assert!(state("paused") && !state("active") && role.pids().is_empty());
    pgweir.console("RESUME");
    wait(later).unwrap().unwrap();
    assert!(state("active") && !flag("later", "paused"));
}

#[test]
fn shutdown_waits_for_servers_and_nobody_waits_for_one() {
    let role = Role::create(cluster().primary(), "control_servers");
    let pgweir = builder(&role).operator().set("pool.max", 1).start();
    let [mut busy, mut waiting] = [(); 2].map(|()| Raw::connect(pgweir.port(), role.name));
    busy.run("BEGIN; SELECT 1");
    waiting.query("SELECT 1").flush();
    wait_for_waiting(&pgweir, &role, 1);
    pgweir.console("SHUTDOWN WAIT_FOR_SERVERS");
    assert_eq!(waiting.until_closed().as_deref(), Some("57P01"));
    assert_eq!(refused(&pgweir, &role), "57P03");
    busy.run("COMMIT");
    assert_eq!(pgweir.wait_exit(LIMIT).code(), Some(0));
    role.wait_for(0);
}

#[test]
fn a_reload_changes_max_under_its_clients() {
    let role = Role::create(cluster().primary(), "control_reload");
    let builder = builder(&role).set("pool.reap_interval", "50ms").set("pool.max", 1);
    let pgweir = builder.start();
    let mut clients: Vec<_> = (0..3).map(|_| Raw::connect(pgweir.port(), role.name)).collect();
    for (at, client) in clients.iter_mut().enumerate() {
        client.query("BEGIN; SELECT 1").flush();
        wait_for_waiting(&pgweir, &role, at as u64);
    }
    pgweir.reload(&builder.clone().set("pool.max", 3));
    clients.iter_mut().for_each(|client| assert_eq!(client.until_ready(), b'T'));
    assert_eq!(role.pids().len(), 3);

    pgweir.reload(&builder);
    clients.iter_mut().for_each(|client| assert_eq!(client.run("COMMIT"), b'I'));
    role.wait_for(1);
    clients.iter_mut().for_each(|client| assert_eq!(client.run("SELECT 1"), b'I'));
    assert_eq!(role.pids().len(), 1);
}

#[test]
fn sigterm_lets_transactions_end_and_then_exits() {
    let role = Role::create(cluster().primary(), "control_term");
    role.directly("CREATE TABLE control_term (n int); GRANT ALL ON control_term TO control_term");
    let pgweir = builder(&role).set("listen.shutdown_grace", "1h").start();
    let mut client = Raw::connect(pgweir.port(), role.name);
    client.run("BEGIN");
    client.run("INSERT INTO control_term VALUES (1)");
    pgweir.signal(Signal::TERM);
    wait_until(LIMIT, "unreadiness", || pgweir.get("/readyz").0 == 503);
    // Within the grace it goes on serving, newcomers too.
    Raw::connect(pgweir.port(), role.name).run("SELECT 1");
    client.run("INSERT INTO control_term VALUES (2)");
    client.run("COMMIT");
    client.frame(b'X', b"").flush();
    drop(client);
    assert_eq!(pgweir.wait_exit(LIMIT).code(), Some(0));
    assert_eq!(role.directly("SELECT count(*) FROM control_term"), "2");
    role.wait_for(0);
}

#[test]
fn clients_that_stay_are_told_and_leave_nothing_running() {
    let role = Role::create(cluster().primary(), "control_grace");
    let pgweir = builder(&role).set("listen.shutdown_grace", "100ms").start();
    let mut clients: Vec<_> = (0..3).map(|_| Raw::connect(pgweir.port(), role.name)).collect();
    let [idle, open, running] = &mut clients[..] else { unreachable!() };
    idle.run("SELECT 1");
    open.run("BEGIN; SELECT 1");
    running.query("SELECT pg_sleep(3600)").flush();
    wait_until(LIMIT, "the statement", || !role.activity_where("pid", "state = 'active'").is_empty());
    pgweir.signal(Signal::TERM);
    for client in &mut clients {
        assert_eq!(client.until_closed().as_deref(), Some("57P01"));
    }
    assert_eq!(pgweir.wait_exit(LIMIT).code(), Some(0));
    role.wait_for(0);
}
