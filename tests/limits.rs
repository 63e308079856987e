//! What a client may not do before it is logged in, and what it may: odd packets, silence, crowds, the unix socket, and
//! logins while servers are down.

mod support;

use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use pgweir::demo::cluster::{Cluster, Scratch, Shutdown, end, free_port};
use pgweir::demo::sample;
use pgweir::wire::startup::{GSSENC_REQUEST, SSL_REQUEST};
use rustix::process::Signal;
use support::newcomer::{Fields, Greeting, Newcomer, fields, opening};
use support::{Builder, Gate, LIMIT, Mode, Pgweir, wait_until};

const APP: [(&str, &str); 2] = [("user", sample::USER), ("database", sample::DATABASE)];

fn builder() -> Builder {
    Pgweir::builder().cluster(support::cluster(), &[1, 1])
}

fn direct() -> u16 {
    support::cluster().primary().port()
}

fn login(port: u16) -> Result<(Newcomer, Greeting), Fields> {
    Newcomer::login(port, &APP, sample::PASSWORD)
}

fn startup_packet(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut out = bytes::BytesMut::new();
    pgweir::wire::write::startup(&mut out, 0, parameters.iter().copied());
    out.to_vec()
}

#[test]
fn malformed_opening_packets_are_refused_and_hurt_nobody() {
    let pgweir = builder().start();
    let mut unterminated = startup_packet(&APP);
    *unterminated.last_mut().unwrap() = b'x';
    let long = "x".repeat(10_000);
    let layout = "invalid startup packet layout: expected terminator as last byte";
    let length = "invalid length of startup packet";
    for (packet, code, message) in [
        (&[0, 0, 0, 0][..], "08P01", length),
        (&[0, 0, 0, 7], "08P01", length),
        (&[0xff, 0xff, 0xff, 0xff], "08P01", length),
        (&startup_packet(&[("user", &long)]), "08P01", length),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "08P01", length),
        // A TLS ClientHello where no TLS is offered.
        (&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], "08P01", length),
        (&[b'x'; 100_000], "08P01", length),
        (&unterminated, "08P01", layout),
        (&startup_packet(&[("database", "app")]), "28000", "no PostgreSQL user name specified in startup packet"),
        (&startup_packet(&[("user", "")]), "28000", "no PostgreSQL user name specified in startup packet"),
        (&opening(2 << 16, &[0; 288]), "0A000", "unsupported frontend protocol 2.0: server supports 3.0 to 3.2"),
        (&opening(4 << 16, b"user\0a\0\0"), "0A000", "unsupported frontend protocol 4.0: server supports 3.0 to 3.2"),
    ] {
        let mut client = Newcomer::connect(pgweir.port());
        client.send(packet);
        let fields = client.refused().expect("told why");
        let got = (fields[&'S'].as_str(), fields[&'C'].as_str(), fields[&'M'].as_str());
        assert_eq!(got, ("FATAL", code, message), "{:?}", &packet[..packet.len().min(20)]);
    }
    assert_eq!(pgweir.psql("SELECT 1"), "1");
}

#[test]
fn encryption_is_asked_for_once_each_and_nothing_may_follow_unasked() {
    let pgweir = builder().start();
    let port = pgweir.port();
    // libpq's order with gssencmode=prefer, and the other way round.
    for gss_first in [true, false] {
        let mut client = Newcomer::connect(port);
        for gss in [gss_first, !gss_first] {
            assert_eq!(if gss { client.gssenc_request() } else { client.ssl_request() }, b'N');
        }
        client.startup(0, &APP);
        client.authenticate(sample::USER, sample::PASSWORD).unwrap();
    }
    // A Postgres that knows Kerberos would go on with it.
    for (port, code) in [(direct(), SSL_REQUEST), (port, SSL_REQUEST), (port, GSSENC_REQUEST)] {
        let mut client = Newcomer::connect(port);
        client.send(&opening(code, &[]));
        assert_eq!(client.byte(), b'N');
        client.send(&opening(code, &[]));
        assert_eq!(client.refused().unwrap()[&'C'], "0A000", "asked twice");
    }
    for code in [SSL_REQUEST, GSSENC_REQUEST] {
        let mut client = Newcomer::connect(port);
        client.send(&[opening(code, &[]), startup_packet(&APP)].concat());
        assert_eq!(client.refused().unwrap()[&'C'], "08P01", "something behind the request");
    }
}

#[test]
fn a_packet_may_come_byte_by_byte() {
    let pgweir = builder().start();
    let mut client = Newcomer::connect(pgweir.port());
    for byte in opening(SSL_REQUEST, &[]) {
        client.send(&[byte]);
    }
    assert_eq!(client.byte(), b'N');
    for byte in startup_packet(&APP) {
        client.send(&[byte]);
    }
    client.authenticate(sample::USER, sample::PASSWORD).unwrap();
    assert_eq!(client.value("SELECT 2"), "2");
}

/// A SASLInitialResponse.
fn sasl(mechanism: &str, data: &str) -> Vec<u8> {
    let length = (data.len() as u32).to_be_bytes();
    let body = [mechanism.as_bytes(), &[0], &length, data.as_bytes()].concat();
    [b"p", &(body.len() as u32 + 4).to_be_bytes()[..], &body].concat()
}

#[test]
fn what_is_no_password_is_refused_as_directly() {
    let pgweir = builder().start();
    let answer = |port, message: &[u8]| {
        let mut client = Newcomer::connect(port);
        client.startup(0, &APP);
        assert_eq!(client.frame().unwrap().0, b'R');
        client.send(message);
        client.refused().map(|fields| (fields[&'S'].clone(), fields[&'C'].clone()))
    };
    for message in [
        &b"Q\0\0\0\x0dSELECT 1\0"[..],
        b"p\0\0\0\x04",
        b"p\0\0\0\x08junk",
        &sasl("SCRAM-SHA-1", "n,,n=,r=x"),
        &sasl("SCRAM-SHA-256-PLUS", "p=tls-server-end-point,,n=,r=x"),
        &sasl("SCRAM-SHA-256", "n,,"),
    ] {
        let expected = answer(direct(), message).expect("Postgres says why");
        assert_eq!(answer(pgweir.port(), message), Some(expected), "{}", String::from_utf8_lossy(message));
    }
    // Postgres closes without a word; here the client is told.
    for message in [&b"p\x7f\xff\xff\xff"[..], b"p\0\x02\0\0", b"p\0\0\0\0"] {
        assert_eq!(answer(pgweir.port(), message).expect("told why").1, "08P01");
    }
    assert_eq!(pgweir.psql("SELECT 1"), "1");
}

#[test]
fn clients_that_never_log_in_are_sent_away() {
    let pgweir = builder().set("listen.login_timeout", "1s").set("listen.max_clients", 5).start();
    let begun = startup_packet(&APP);
    let silent: [&[u8]; 5] = [b"", &[0], &begun[..begun.len() - 1], &begun, &opening(SSL_REQUEST, &[])];
    let clients = silent.map(|bytes| {
        let mut client = Newcomer::connect(pgweir.port());
        client.send(bytes);
        client
    });
    for mut client in clients {
        let mut frames = std::iter::from_fn(|| client.frame()).collect::<Vec<_>>();
        if let Some((b'N', _)) = frames.first() {
            frames.remove(0);
        }
        assert!(frames.iter().all(|(tag, _)| b"RE".contains(tag)), "{frames:?}");
    }
    login(pgweir.port()).expect("their places are free again");
}

/// The time to log in is the client's: a connection is waited for as long as one is otherwise.
#[test]
fn a_login_that_waits_for_a_connection_is_not_sent_away() {
    let pgweir = builder().set("listen.login_timeout", "1s").set("pool.max", 1).start();
    let mut holder = login(pgweir.port()).unwrap().0;
    holder.query("BEGIN; SELECT 1");
    let mut waiting = Newcomer::connect(pgweir.port());
    waiting.startup(0, &[&APP[..], &[("application_name", "waits")]].concat());
    let waiting = std::thread::spawn(move || waiting.authenticate(sample::USER, sample::PASSWORD).map(|_| ()));
    // It came before the one that never says who it is.
    let mut silent = Newcomer::connect(pgweir.port());
    assert_eq!(silent.frame().map(|(tag, _)| tag), Some(b'E'));
    holder.query("COMMIT");
    waiting.join().unwrap().unwrap();
}

#[test]
fn clients_that_never_log_in_cost_little() {
    let pgweir = builder().start();
    let resident = || pgweir.json("/stats")["memory"]["resident"].as_u64().unwrap();
    let crowd = 400;
    let before = resident();
    let clients: Vec<Newcomer> = (0..crowd)
        .map(|_| {
            let mut client = Newcomer::connect(pgweir.port());
            // One byte short of the longest packet there may be.
            client.send(&[&10_000u32.to_be_bytes()[..], &[0, 3, 0, 0], &[b'a'; 9_991]].concat());
            client
        })
        .collect();
    // Behind them in the queue: when it is served, they have been read.
    assert_eq!(pgweir.psql("SELECT 1"), "1");
    let grown = resident().saturating_sub(before) / crowd;
    assert!(grown < 64 * 1024, "{grown} bytes each");
    drop(clients);
}

#[test]
fn one_client_too_many_is_told_and_a_place_that_is_freed_is_taken_again() {
    let pgweir = builder().set("listen.max_clients", 2).operator().start();
    let mut stay = login(pgweir.port()).unwrap().0;
    let leave = login(pgweir.port()).unwrap().0;
    let told = login(pgweir.port()).map(|_| ()).unwrap_err();
    assert_eq!((told[&'S'].as_str(), told[&'C'].as_str()), ("FATAL", "53300"));
    assert_eq!(told[&'M'], "sorry, too many clients already");
    // The operator can look who they are; others cannot.
    assert_eq!(pgweir.console("SHOW CLIENTS").rows.len(), 2);
    let other = [("user", sample::USER), ("database", "pgweir")];
    assert_eq!(Newcomer::login(pgweir.port(), &other, sample::PASSWORD).map(|_| ()).unwrap_err()[&'C'], "28000");
    drop(leave);
    // Whoever has no place takes none, however long it stays.
    let lingering: Vec<Newcomer> = (0..5).map(|_| Newcomer::connect(pgweir.port())).collect();
    wait_until(LIMIT, "the place is free", || login(pgweir.port()).is_ok());
    drop(lingering);
    assert_eq!(stay.value("SELECT 'still here'"), "still here");
}

#[test]
fn a_crowd_at_the_door_is_turned_away_and_those_inside_are_served() {
    let pgweir = builder().set("listen.max_clients", 3).start();
    let mut inside = login(pgweir.port()).unwrap().0;
    let crowd: Vec<Newcomer> = (0..300).map(|_| Newcomer::connect(pgweir.port())).collect();
    assert_eq!(inside.value("SELECT 'served'"), "served");
    assert!(login(pgweir.port()).is_err());
    drop(crowd);
    wait_until(LIMIT, "the places are free", || login(pgweir.port()).is_ok());
}

#[test]
fn a_failed_login_frees_its_place() {
    let pgweir = builder().set("listen.max_clients", 2).start();
    for _ in 0..6 {
        let refused = Newcomer::login(pgweir.port(), &APP, "wrong").map(|_| ()).unwrap_err();
        assert!(["28P01", "53300"].contains(&refused[&'C'].as_str()), "{refused:?}");
    }
    wait_until(LIMIT, "the places are free", || login(pgweir.port()).is_ok());
}

#[test]
fn the_unix_socket_serves_and_goes_with_the_process() {
    let folder = Scratch::create(None).unwrap();
    let pgweir = builder().set("listen.unix_socket_dir", folder.path().to_str().unwrap()).passthrough("through");
    let pgweir = pgweir.set("admin.users", vec!["through"]).start();
    support::cluster().primary().psql("CREATE ROLE through LOGIN PASSWORD 'through-word'").unwrap();
    let path = folder.path().join(format!(".s.PGSQL.{}", pgweir.port()));
    let enter = |user: &str, password: &str, database: &str| {
        let mut client = Newcomer { stream: UnixStream::connect(&path).unwrap(), end_point: None };
        assert_eq!(client.ssl_request(), b'N', "no TLS on unix sockets");
        client.startup(0, &[("user", user), ("database", database)]);
        client.authenticate(user, password).map(|_| client)
    };
    let at_socket = |user: &str, password: &str| enter(user, password, sample::DATABASE);
    let mut client = at_socket(sample::USER, sample::PASSWORD).unwrap();
    assert_eq!(client.value("SELECT current_user"), sample::USER);

    // A password that pgweir does not know is tried on the server, and may come in clear, since nobody can listen.
    for _ in 0..2 {
        assert_eq!(at_socket("through", "through-word").unwrap().value("SELECT current_user"), "through");
        assert_eq!(at_socket("through", "wrong").map(|_| ()).unwrap_err()[&'C'], "28P01");
    }
    // Changed on the server, and the old one refused there once: from then on it is refused here too.
    let role = |sql: &str| support::cluster().primary().psql(sql).unwrap();
    role("ALTER ROLE through PASSWORD 'another-word'");
    role("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'through'");
    let connected = || role("SELECT count(*) FROM pg_stat_activity WHERE usename = 'through'");
    wait_until(LIMIT, "their end", || connected() == "0");
    let mut late = at_socket("through", "through-word").unwrap();
    assert_eq!(fields(&late.query("BEGIN; SELECT 1")[0].1)[&'C'], "28P01");
    assert_eq!(at_socket("through", "through-word").map(|_| ()).unwrap_err()[&'C'], "28P01");
    assert_eq!(at_socket("through", "another-word").unwrap().value("SELECT current_user"), "through");

    // No server stands behind the console, that could check it.
    for (console, password) in [("pgweir", "wrong"), ("pgbouncer", "another-word")] {
        assert_eq!(enter("through", password, console).map(|_| ()).unwrap_err()[&'C'], "28000");
    }

    let over_tcp =
        Newcomer::login(pgweir.port(), &[("user", "through"), ("database", sample::DATABASE)], "through-word");
    assert_eq!(over_tcp.map(|_| ()).unwrap_err()[&'C'], "28000");

    pgweir.signal(Signal::TERM);
    assert!(pgweir.wait_exit(LIMIT).success());
    assert!(!path.exists());
}

/// Whoever waits for a proof that another one gets needs none.
#[test]
fn first_logins_of_a_crowd_are_no_storm() {
    let folder = Scratch::create(None).unwrap();
    let gate = Gate::new(support::cluster().primary().port());
    gate.set(Mode::Slow(Duration::from_millis(2)));
    let pgweir = Builder::without_users().passthrough("crowd").node(gate.port, "primary", None);
    let pgweir = pgweir.set("listen.unix_socket_dir", folder.path().to_str().unwrap()).start();
    support::cluster().primary().psql("CREATE ROLE crowd LOGIN PASSWORD 'crowd-word'").unwrap();
    let path = folder.path().join(format!(".s.PGSQL.{}", pgweir.port()));
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                let mut client = Newcomer { stream: UnixStream::connect(&path).unwrap(), end_point: None };
                client.startup(0, &[("user", "crowd"), ("database", sample::DATABASE)]);
                client.authenticate("crowd", "crowd-word").map(|_| client).unwrap();
            });
        }
    });
    // One proof, the pool, the probe, and who reads the definitions.
    assert!(gate.most_logins() <= 12, "{}", gate.most_logins());
}

#[test]
fn clients_log_in_and_read_while_only_a_replica_is_up() {
    let cluster = Cluster::builder().replicas(1).start().unwrap();
    sample::install(cluster.primary()).unwrap();
    cluster.wait_replayed(LIMIT).unwrap();
    let folder = Scratch::create(None).unwrap();
    let pgweir = Pgweir::builder()
        .cluster(&cluster, &[1])
        .passthrough("through")
        .set("listen.unix_socket_dir", folder.path().to_str().unwrap())
        .set("routing.probe_interval", "1h")
        .start();
    cluster.primary().psql("CREATE ROLE through LOGIN PASSWORD 'through-word'").unwrap();
    cluster.wait_replayed(LIMIT).unwrap();
    cluster.primary().stop(Shutdown::Fast).unwrap();
    // No probe has noticed yet: the login does.
    let (mut client, greeting) = login(pgweir.port()).unwrap();
    // Whichever node was asked: writes are taken.
    assert_eq!(greeting.statuses["in_hot_standby"], "off");
    assert_eq!(client.value("SELECT count(*) FROM users"), "1000");
    let path = folder.path().join(format!(".s.PGSQL.{}", pgweir.port()));
    let mut client = Newcomer { stream: UnixStream::connect(path).unwrap(), end_point: None };
    client.startup(0, &[("user", "through"), ("database", sample::DATABASE)]);
    client.authenticate("through", "through-word").unwrap();
    assert_eq!(client.value("SELECT current_user"), "through");
}

#[test]
fn roles_left_open_are_waited_for() {
    let cluster = support::cluster();
    let stored = "SELECT rolpassword FROM pg_authid WHERE rolname = 'app'";
    let verifier = cluster.primary().psql(stored).unwrap();
    // Nobody can ask the node what it is until the first client has shown its password.
    let pgweir =
        Builder::without_users().node(cluster.primary().port(), "auto", None).user(sample::USER, &verifier).start();
    assert_eq!(pgweir.psql("SELECT 1"), "1");
    drop(pgweir);
    // The first user that it might be asked as is one that the server does not know.
    let builder = Builder::without_users().node(cluster.primary().port(), "auto", None).user("absent", &verifier);
    let builder = builder.user(sample::USER, &verifier).set("pool.acquire_timeout", "1h").set("database.name", "*");
    let pgweir = builder.start();
    let absent = [("user", sample::USER), ("database", "no such database")];
    assert_eq!(Newcomer::login(pgweir.port(), &absent, sample::PASSWORD).map(|_| ()).unwrap_err()[&'C'], "3D000");
    assert_eq!(login(pgweir.port()).unwrap().0.value("SELECT 1"), "1");
}

/// The low limit that shells give is raised as far as it goes; what does not fit then is said.
#[test]
fn open_files_are_allowed_as_far_as_the_system_lets() {
    let (folder, sql, admin) = (Scratch::create(None).unwrap(), free_port().unwrap(), free_port().unwrap());
    let config = folder.path().join("pgweir.toml");
    let log = folder.path().join("stderr.log");
    let logged = || std::fs::read_to_string(&log).unwrap_or_default();
    for (clients, fits) in [(100, true), (600, false)] {
        let builder = builder().set("listen.max_clients", clients);
        std::fs::write(&config, builder.toml(sql, admin, folder.path())).unwrap();
        let child = Command::new("sh")
            .args([
                "-c",
                "ulimit -Sn 80; ulimit -Hn 500; exec \"$0\" run --config \"$1\"",
                env!("CARGO_BIN_EXE_pgweir"),
            ])
            .arg(&config)
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut child = Some(child);
        let pid = child.as_ref().map(std::process::Child::id).unwrap();
        folder.watch("pgweir", pid).unwrap();
        wait_until(LIMIT, "serving", || logged().contains("\"serving\""));
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        assert_eq!(line.split_whitespace().nth(3), Some("500"), "{line}");
        assert_eq!(logged().contains("ulimit -n"), !fits, "{}", logged());
        let mut clients: Vec<_> = (0..90).map(|_| login(sql).unwrap().0).collect();
        assert_eq!(clients[89].value("SELECT 1"), "1");
        assert!(end(&mut child, Signal::KILL, LIMIT));
    }
}
