//! Each of the nine knobs of `[pool]`, as the server sees it.

use std::time::Duration;

use crate::support::{Builder, Gate, LIMIT, Mode, Pgweir, Raw, Role, cluster, wait_until};

/// A pgweir for one role, with a gate between it and the primary. Only the first probe is made, and no connection but
/// on demand.
fn gated(role: &Role<'_>) -> (Gate, Builder) {
    let gate = Gate::new(cluster().primary().port());
    let builder = Pgweir::builder()
        .node(gate.port, "primary", None)
        .user(role.name, role.name)
        .set("routing.probe_interval", "1h")
        .set("pool.max", 1)
        .set("pool.reap_interval", "50ms");
    (gate, builder)
}

/// Opens so many transactions at once, and so as many server connections; then ends them.
fn fill(pgweir: &Pgweir, role: &Role<'_>, count: usize) -> Vec<Raw> {
    let mut clients: Vec<_> = (0..count).map(|_| Raw::connect(pgweir.port(), role.name)).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.run("BEGIN; SELECT 1"), b'T'));
    role.wait_for(count);
    clients.iter_mut().for_each(|client| assert_eq!(client.run("COMMIT"), b'I'));
    clients
}

fn role(name: &str) -> Role<'_> {
    Role::create(cluster().primary(), name)
}

#[test]
fn min_is_made_without_any_client_and_made_again() {
    let role = role("pool_min");
    let builder = Pgweir::builder().cluster(cluster(), &[]).user(role.name, role.name);
    let _pgweir = builder.set("pool.min", 3).set("pool.reap_interval", "50ms").start();
    role.wait_for(3);
    let first = role.pids();
    role.directly(&format!("SELECT pg_terminate_backend({})", first[0]));
    wait_until(LIMIT, "another connection in the place of the one that died", || {
        let now = role.pids();
        now.len() == 3 && now != first
    });
}

#[test]
fn max_is_never_exceeded() {
    let role = role("pool_max");
    let builder = Pgweir::builder().cluster(cluster(), &[]).user(role.name, role.name);
    let pgweir = builder.set("pool.max", 4).start();
    let port = pgweir.port();
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let name = role.name.to_owned();
            std::thread::spawn(move || {
                let mut client = Raw::connect(port, &name);
                for _ in 0..20 {
                    client.run("SELECT pg_sleep(0.01)");
                }
            })
        })
        .collect();
    let mut most = 0;
    while clients.iter().any(|client| !client.is_finished()) {
        most = most.max(role.pids().len());
    }
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert_eq!(most, 4);
}

#[test]
fn idle_timeout_reaps_what_is_above_min() {
    let role = role("pool_idle");
    let builder = Pgweir::builder()
        .cluster(cluster(), &[])
        .user(role.name, role.name)
        .set("pool.min", 2)
        .set("pool.reap_interval", "50ms")
        .set("pool.idle_timeout", "1h");
    let pgweir = builder.start();
    let _clients = fill(&pgweir, &role, 5);
    assert_eq!(role.pids().len(), 5);
    pgweir.reload(&builder.set("pool.idle_timeout", "100ms"));
    role.wait_for(2);
    // Long past the timeout, and many rounds later.
    wait_until(LIMIT, "a second of idleness", || role.activity_where("pid", "now() - state_change > '1s'").len() == 2);
}

#[test]
fn reap_interval_is_how_often_it_reaps() {
    let (often, seldom) = (role("pool_reap_often"), role("pool_reap_seldom"));
    let start = |role: &Role<'_>, interval: &str| {
        let builder = Pgweir::builder().cluster(cluster(), &[]).user(role.name, role.name);
        let builder = builder.set("pool.idle_timeout", "50ms").set("pool.reap_interval", interval);
        (builder.start(), builder)
    };
    let (seldom_pgweir, builder) = start(&seldom, "1h");
    let (often_pgweir, _) = start(&often, "50ms");
    let _clients = fill(&seldom_pgweir, &seldom, 2);
    let _others = fill(&often_pgweir, &often, 2);
    often.wait_for(0);
    assert_eq!(seldom.pids().len(), 2);
    seldom_pgweir.reload(&builder.set("pool.reap_interval", "50ms"));
    seldom.wait_for(0);
}

#[test]
fn acquire_timeout_ends_the_wait_and_not_the_client() {
    let role = role("pool_acquire");
    let builder = Pgweir::builder().cluster(cluster(), &[]).user(role.name, role.name);
    let pgweir = builder.set("pool.min", 1).set("pool.max", 1).set("pool.acquire_timeout", "200ms").start();
    role.wait_for(1);
    let mut holder = Raw::connect(pgweir.port(), role.name);
    let mut client = Raw::connect(pgweir.port(), role.name);
    holder.run("BEGIN; SELECT 1");
    assert_eq!(client.query("SELECT 1").flush().until_error(), "53300");
    assert_eq!(client.until_ready(), b'I');
    // In a pipeline, up to the Sync, as an error of the server's.
    client.execute("SELECT 1").execute("SELECT 2").frame(b'S', b"").flush();
    assert_eq!(client.until_error(), "53300");
    assert_eq!(client.receive().unwrap().0, b'Z');
    let told = client.query("SELECT 1").flush().until_error_body();
    let told = String::from_utf8_lossy(&told);
    assert!(told.contains("\0HRaise pool.max"), "no hint: {told}");
    client.until_ready();

    holder.run("COMMIT");
    client.run("SELECT 1");
    client.execute("SELECT 1").frame(b'S', b"").flush();
    assert_eq!(client.until_ready(), b'I');
}

/// The gate takes the connect and says nothing to the TLS request that follows.
#[test]
fn connection_timeout_ends_an_attempt_and_another_follows() {
    let role = role("pool_connect");
    let (gate, builder) = gated(&role);
    let builder = builder.set("pool.connection_timeout", "100ms").set("pool.create_timeout", "1h");
    let pgweir = builder.set("database.tls", "prefer").set("pool.acquire_timeout", "1h").start();
    let mut client = Raw::connect(pgweir.port(), role.name);
    gate.set(Mode::Silent);
    gate.cut();
    let before = gate.arrivals().len();
    client.query("SELECT 1").flush();
    wait_until(LIMIT, "further attempts", || gate.arrivals().len() >= before + 3);
    gate.set(Mode::Open);
    client.until_ready();
}

/// The gate takes the connect and says nothing to the login, which `connection_timeout` does not cover.
#[test]
fn create_timeout_ends_all_of_making_a_connection() {
    let role = role("pool_create");
    let (gate, builder) = gated(&role);
    let builder = builder.set("pool.connection_timeout", "50ms").set("pool.create_timeout", "1s");
    let pgweir = builder.set("pool.acquire_timeout", "1h").start();
    let mut client = Raw::connect(pgweir.port(), role.name);
    gate.set(Mode::Silent);
    gate.cut();
    let before = gate.arrivals().len();
    client.query("SELECT 1").flush();
    wait_until(LIMIT, "further attempts", || gate.arrivals().len() >= before + 3);
    let gaps: Vec<_> = gate.arrivals()[before..].windows(2).map(|pair| pair[1] - pair[0]).collect();
    // A busy machine may see an arrival late.
    assert!(gaps.iter().all(|gap| *gap > Duration::from_millis(500)), "{gaps:?}");
    gate.set(Mode::Open);
    client.until_ready();
}

#[test]
fn create_retry_interval_lies_between_attempts_at_a_refusing_server() {
    const INTERVAL: Duration = Duration::from_millis(500);
    let role = role("pool_retry");
    let (gate, builder) = gated(&role);
    let pgweir = builder.set("pool.create_retry_interval", "500ms").start();
    let mut client = Raw::connect(pgweir.port(), role.name);
    gate.set(Mode::Refusing);
    gate.cut();
    let before = gate.arrivals().len();
    client.query("SELECT 1").flush();
    wait_until(LIMIT, "five attempts", || gate.arrivals().len() >= before + 5);
    let span = gate.arrivals()[before + 4] - gate.arrivals()[before];
    // A busy machine may see the first one late.
    assert!(span > INTERVAL * 3, "{span:?}");
    gate.set(Mode::Open);
    client.until_ready();
    assert_eq!(role.pids().len(), 1);
}

#[test]
fn closing_is_polite_and_destroy_timeout_its_end() {
    let role = role("pool_destroy");
    let (gate, builder) = gated(&role);
    let builder = builder.set("pool.idle_timeout", "100ms").set("pool.destroy_timeout", "100ms");
    let pgweir = builder.start();
    let mut client = Raw::connect(pgweir.port(), role.name);
    client.run("SELECT 1");
    role.wait_for(0);
    let polite = gate.goodbyes();
    assert!(polite > 0, "closed without a Terminate");

    client.run("BEGIN; SELECT 1");
    let probe = gate.open() - 1;
    // The server never learns of the Terminate, and so never closes.
    gate.set(Mode::Silent);
    client.query("COMMIT").flush();
    drop(client);
    wait_until(LIMIT, "the socket's end", || gate.open() <= probe);
    gate.set(Mode::Open);
}

#[test]
fn max_lifetime_replaces_connections_and_cuts_nobody_off() {
    let role = role("pool_lifetime");
    let builder = Pgweir::builder().cluster(cluster(), &[]).user(role.name, role.name);
    let builder = builder.set("pool.min", 1).set("pool.max", 3).set("pool.reap_interval", "50ms");
    let pgweir = builder.set("pool.max_lifetime", "500ms").start();
    role.wait_for(1);
    let first = role.activity("backend_start");
    wait_until(LIMIT, "a younger connection", || {
        let now = role.activity("backend_start");
        now.len() == 1 && now != first
    });

    let mut client = Raw::connect(pgweir.port(), role.name);
    let pid = |client: &mut Raw| client.value("SELECT pg_backend_pid()");
    client.run("BEGIN");
    let held = pid(&mut client);
    wait_until(LIMIT, "the end of its lifetime", || {
        role.activity_where("pid", "now() - backend_start > '1s'") == [held.as_str()]
    });
    assert_eq!(pid(&mut client), held);
    client.run("COMMIT");
    wait_until(LIMIT, "the end of the old connection", || !role.pids().contains(&held));
    assert_ne!(pid(&mut client), held);
}
