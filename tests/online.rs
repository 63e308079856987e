//! `pgweir check` and `pgweir health` against what really runs.

mod support;

use std::process::{Command, Output};

use pgweir::demo::cluster::{Scratch, free_port};
use pgweir::demo::sample;
use support::{Builder, LIMIT, Pgweir, wait_until};

fn pgweir(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pgweir")).args(arguments).output().unwrap()
}

/// What `pgweir check` prints of this configuration, and whether it accepts it.
fn check(builder: &Builder) -> (bool, String) {
    let folder = Scratch::create(None).unwrap();
    let file = folder.path().join("pgweir.toml");
    std::fs::write(&file, builder.toml(free_port().unwrap(), free_port().unwrap(), folder.path())).unwrap();
    let output = pgweir(&["check", "--config", file.to_str().unwrap()]);
    assert_eq!(output.stderr, b"");
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(i32::from(!output.status.success())), "{said}");
    (output.status.success(), said)
}

fn port(replica: Option<usize>) -> u16 {
    let cluster = support::cluster();
    replica.map_or(cluster.primary().port(), |index| cluster.replicas()[index].port())
}

/// The line about the node of this port.
#[track_caller]
fn line(said: &str, port: u16) -> String {
    let start = format!("{} 127.0.0.1:{port}: ", sample::DATABASE);
    let line = said.lines().find_map(|line| line.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("nothing of {port} in {said}")).to_owned()
}

#[test]
fn check_says_what_each_node_is() {
    let (accepted, said) = check(&Pgweir::builder().cluster(support::cluster(), &[1, 2]));
    assert!(accepted, "{said}");
    for (replica, role) in [(None, "primary"), (Some(0), "replica"), (Some(1), "replica")] {
        let line = line(&said, port(replica));
        assert!(line.starts_with(&format!("ok: {role}, PostgreSQL ")) && line.ends_with(", as app"), "{line}");
    }
    assert!(said.ends_with(": ok: 1 database, 3 nodes, 2 users\n"), "{said}");
}

#[test]
fn check_refuses_nodes_that_do_not_serve_as_configured() {
    let closed = free_port().unwrap();
    let builder = Pgweir::builder()
        .node(port(Some(0)), "primary", None)
        .node(port(None), "replica", Some(1))
        .node(port(Some(1)), "auto", None)
        .node(closed, "replica", Some(1));
    let (accepted, said) = check(&builder);
    assert!(!accepted, "{said}");
    assert_eq!(line(&said, port(Some(0))), "failed: configured as the primary, and is a standby");
    assert_eq!(line(&said, port(None)), "failed: configured as a replica, and is no standby");
    assert!(line(&said, port(Some(1))).starts_with("ok: replica"), "{said}");
    assert!(line(&said, closed).starts_with("failed: cannot connect: "), "{said}");
    assert!(said.ends_with(": refused: nodes that do not serve: 3 of 4\n"), "{said}");
}

#[test]
fn check_says_why_it_is_not_let_in() {
    let node = |builder: Builder| builder.node(port(None), "primary", None);
    let wrong = node(Builder::without_users().user(sample::USER, "wrong"));
    let nowhere = node(Pgweir::builder()).set("database.dbname", "nowhere");
    let encrypted = node(Pgweir::builder()).set("database.tls", "require");
    for (builder, why) in [
        (wrong, "failed: password authentication failed for user \"app\" (28P01)"),
        (nowhere, "failed: database \"nowhere\" does not exist (3D000)"),
        (encrypted, "failed: TLS is demanded, and the server does not offer it"),
    ] {
        let (accepted, said) = check(&builder);
        assert!(!accepted, "{said}");
        assert_eq!(line(&said, port(None)), why);
    }
    let (accepted, said) = check(&node(Builder::without_users().passthrough(sample::USER)));
    assert!(accepted && line(&said, port(None)).starts_with("ok: answers; not logged in to"), "{said}");
}

#[test]
fn health_tells_alive_from_ready() {
    let health = |proxy: &Pgweir, more: &[&str]| {
        let url = format!("http://{}", proxy.admin_address());
        let output = pgweir(&[&["health", "--admin", &url], more].concat());
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let serving = Pgweir::builder().cluster(support::cluster(), &[1]).start();
    for more in [&[][..], &["--ready"]] {
        assert_eq!(health(&serving, more), (Some(0), String::new()));
    }
    let stranded = Pgweir::builder().node(free_port().unwrap(), "primary", None).start_unready();
    assert_eq!(health(&stranded, &[]).0, Some(0));
    wait_until(LIMIT, "a probe has failed", || health(&stranded, &["--ready"]).0 == Some(1));
    let (_, said) = health(&stranded, &["--ready"]);
    assert!(said.contains("no node of database") && said.contains("can serve"), "{said}");
}
