//! Logging in, compared with a direct connection where it can be: who is let in, what is refused and how, and what
//! the startup packet's settings do.

mod support;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use pgweir::auth::Verifier;
use pgweir::demo::cluster::{Cluster, SUPERUSER};
use pgweir::demo::sample;
use support::newcomer::{Fields, Greeting, Newcomer, opening, statuses};
use support::{Builder, LIMIT, Pgweir, wait_until};

/// One for all these tests: each way in which a server may ask for a password, chosen by the role's name.
fn cluster() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| {
        let cluster = Cluster::builder()
            .replicas(1)
            .hba("host all hashed 127.0.0.1/32 md5")
            .hba("host all clear 127.0.0.1/32 password")
            .hba("host all trusted 127.0.0.1/32 trust")
            .hba("host all barred 127.0.0.1/32 reject")
            .start()
            .unwrap();
        sample::install(cluster.primary()).unwrap();
        let roles = "CREATE ROLE clear LOGIN PASSWORD 'clear-word'; CREATE ROLE trusted LOGIN; \
                     CREATE ROLE barred LOGIN; CREATE ROLE sleeper NOLOGIN PASSWORD 'sleeper-word'; \
                     CREATE ROLE scram LOGIN PASSWORD 'scram-word'; CREATE ROLE returner LOGIN PASSWORD 'returner-word'; \
                     CREATE ROLE through LOGIN PASSWORD 'through-word'; \
                     SET password_encryption = 'md5'; CREATE ROLE hashed LOGIN PASSWORD 'hashed-word'";
        cluster.primary().psql(roles).unwrap();
        cluster.wait_replayed(LIMIT).unwrap();
        cluster
    })
}

fn builder() -> Builder {
    Pgweir::builder().cluster(cluster(), &[1])
}

/// The one that most tests share; it is stopped with the process.
fn direct() -> u16 {
    cluster().primary().port()
}

/// Logs in as the application with these further parameters.
fn login(port: u16, parameters: &[(&str, &str)]) -> Result<(Newcomer, Greeting), Fields> {
    login_as(port, sample::USER, sample::PASSWORD, parameters)
}

fn login_as(
    port: u16,
    user: &str,
    password: &str,
    parameters: &[(&str, &str)],
) -> Result<(Newcomer, Greeting), Fields> {
    let all = [&[("user", user), ("database", sample::DATABASE)], parameters].concat();
    Newcomer::login(port, &all, password)
}

#[track_caller]
fn refusal(outcome: Result<(Newcomer, Greeting), Fields>) -> Fields {
    match outcome {
        Ok(_) => panic!("let in"),
        Err(fields) => fields,
    }
}

/// Whoever is let in is that user on the primary and on the replica.
#[track_caller]
fn works(pgweir: &Pgweir, user: &str, password: &str) {
    let (mut client, _) = login_as(pgweir.port(), user, password, &[]).unwrap_or_else(|e| panic!("{user}: {e:?}"));
    for node in ["primary", "replica"] {
        assert_eq!(client.value(&format!("/* pgweir: {node} */ SELECT current_user")), user, "{node}");
    }
}

fn stored_verifier(role: &str) -> String {
    cluster().primary().psql(&format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'")).unwrap()
}

#[test]
fn every_kind_of_stored_password_logs_in_and_on() {
    let pgweir = builder()
        .user("scram", &stored_verifier("scram"))
        .user("hashed", &stored_verifier("hashed"))
        .user("clear", "clear-word")
        .user("trusted", "made up for pgweir alone")
        .start();
    for (user, password) in [
        (sample::USER, sample::PASSWORD),
        ("scram", "scram-word"),
        ("hashed", "hashed-word"),
        ("clear", "clear-word"),
        ("trusted", "made up for pgweir alone"),
    ] {
        works(&pgweir, user, password);
        let fields = refusal(login_as(pgweir.port(), user, "wrong", &[]));
        assert_eq!(fields, refusal(login_as(direct(), sample::USER, "wrong", &[])).renamed(sample::USER, user));
    }
}

trait Renamed {
    fn renamed(self, from: &str, to: &str) -> Self;
}

impl Renamed for Fields {
    fn renamed(mut self, from: &str, to: &str) -> Fields {
        self.values_mut().for_each(|value| *value = value.replace(from, to));
        self
    }
}

#[test]
fn an_unknown_user_looks_like_a_wrong_password() {
    let pgweir = builder().start();
    let asked = |user: &str| {
        let mut client = Newcomer::connect(pgweir.port());
        client.startup(0, &[("user", user), ("database", "no such database")]);
        client.frame().unwrap()
    };
    assert_eq!(asked("nobody"), asked(sample::USER));
    let unknown = refusal(login_as(pgweir.port(), "nobody", "x", &[]));
    let wrong = refusal(login_as(pgweir.port(), sample::USER, "x", &[]));
    assert_eq!(unknown, wrong.renamed(&format!("\"{}\"", sample::USER), "\"nobody\""));
    assert_eq!(unknown, refusal(login_as(direct(), "nobody", "x", &[])));
}

#[test]
fn an_unknown_database_is_told_only_behind_the_password() {
    let pgweir = builder().start();
    let at = |port, password| {
        let parameters = [("user", sample::USER), ("database", "no such database")];
        refusal(Newcomer::login(port, &parameters, password))
    };
    assert_eq!(at(pgweir.port(), sample::PASSWORD), at(direct(), sample::PASSWORD));
    assert_eq!(at(pgweir.port(), sample::PASSWORD)[&'C'], "3D000");
    assert_eq!(at(pgweir.port(), "wrong")[&'C'], "28P01");
}

#[test]
fn a_servers_own_refusal_reaches_the_client() {
    let pgweir =
        builder().user("barred", "x").user("sleeper", "sleeper-word").user("scram", "not the server's").start();
    for (user, password, code) in [("barred", "x", "28000"), ("sleeper", "sleeper-word", "28000")] {
        let told = refusal(login_as(pgweir.port(), user, password, &[]));
        assert_eq!(told, refusal(login_as(direct(), user, password, &[])));
        assert_eq!(told[&'C'], code);
    }
    // Here the client is right, and the configuration is not.
    let told = refusal(login_as(pgweir.port(), "scram", "not the server's", &[]));
    assert_eq!((told[&'S'].as_str(), told[&'C'].as_str()), ("FATAL", "28P01"));
    assert_eq!(told[&'M'], "password authentication failed for user \"scram\"");
}

#[test]
fn the_startup_packets_settings_work_and_are_reported_as_directly() {
    let pgweir = builder().start();
    let long = "name".repeat(20);
    let zones = [("TimeZone", "europe/paris"), ("DateStyle", "german"), ("IntervalStyle", "iso_8601")];
    for parameters in [
        &[][..],
        &[("application_name", "x"), ("client_encoding", "utf-8")],
        &[("client_encoding", "latin1")],
        &[("application_name", &long)],
        &[("application_name", "caf\u{e9}\n")],
        &zones,
        &[("search_path", "\"Odd\"\"Name\", pg_catalog"), ("statement_timeout", "5s")],
        &[("SEARCH_PATH", "b"), ("options", "-c search_path=a -c geqo=off")],
        &[("default_transaction_isolation", "repeatable read"), ("client_min_messages", "error")],
        &[("my.own", "it's \\ a 'value'"), ("other.x", "")],
        &[("options", "-c search_path=a,\\ b --work-mem=5MB -cextra_float_digits=-1")],
        &[("options", "-e -S 5000 -fs -f h -Ec geqo=off -v3 -jTnb -C x -D x -r x --")],
        &[("options", "")],
        &[("default_transaction_read_only", "on"), ("standard_conforming_strings", "off")],
        &[("idle_in_transaction_session_timeout", "1min"), ("synchronous_commit", "off")],
    ] {
        let (mut here, told) = login(pgweir.port(), parameters).unwrap_or_else(|e| panic!("{parameters:?}: {e:?}"));
        let (mut there, expected) = login(direct(), parameters).unwrap();
        assert_eq!(told.statuses, expected.statuses, "{parameters:?}");
        assert_eq!(told.notices, expected.notices, "{parameters:?}");
        // The settings that a client can set, as this session has them.
        let settings = "SELECT string_agg(name || '=' || setting, E'\\n' ORDER BY name) FROM pg_settings \
                        WHERE context IN ('user', 'superuser') AND name NOT LIKE 'transaction%'";
        assert_eq!(here.value(settings), there.value(settings), "{parameters:?}");
    }
}

#[test]
fn names_in_any_bytes_and_of_any_length() {
    let pgweir = builder().start();
    let with = |port, name: &str, value: &[u8]| {
        let mut body = Vec::new();
        let database = [("user", sample::USER.as_bytes()), ("database", sample::DATABASE.as_bytes())];
        for (name, value) in database.into_iter().filter(|(n, _)| *n != name).chain([(name, value)]) {
            body.extend([name.as_bytes(), b"\0", value, b"\0"].concat());
        }
        body.push(0);
        let mut client = Newcomer::connect(port);
        client.send(&opening(196_608, &body));
        client.authenticate(sample::USER, sample::PASSWORD).map(|greeting| (greeting.statuses, greeting.notices))
    };
    let same = |name, value: &[u8]| {
        assert_eq!(with(pgweir.port(), name, value), with(direct(), name, value), "{name}: {value:?}");
    };
    // As servers have written it since version 16; older ones put a question mark.
    let (told, _) = with(pgweir.port(), "application_name", b"caf\xe9").unwrap();
    let (expected, _) = with(direct(), "application_name", b"caf\xe9").unwrap();
    assert_eq!(told["application_name"], "caf\\xe9");
    assert!(["caf\\xe9", "caf?"].contains(&&*expected["application_name"]), "{expected:?}");
    same("database", &[b"no such database"[..].to_vec(), vec![b'x'; 80]].concat());
    // Directly it would be taken, and hurt whoever reads it.
    let refused = with(pgweir.port(), "my.own", b"\xff").unwrap_err();
    assert_eq!(refused[&'C'], "22021");
}

#[test]
fn bad_settings_are_refused_as_directly() {
    let pgweir = builder().set("pool.max", 2).start();
    for parameters in [
        &[("no_such_setting", "1")][..],
        &[("statement_timeout", "soon")],
        &[("client_min_messages", "loud")],
        &[("default_transaction_isolation", "none")],
        &[("client_encoding", "klingon")],
        &[("TimeZone", "Mars/Phobos")],
        &[("DateStyle", "stardate")],
        &[("log_statement", "none")],
        &[("shared_buffers", "1MB")],
        &[("server_version", "99")],
        &[("role", "postgres")],
        &[("role", "nobody")],
        &[("bad-name.x", "1")],
        &[("options", "-c")],
        &[("options", "-c geqo")],
        &[("options", "--geqo")],
        &[("options", "-Z")],
        &[("options", "-eZ")],
        &[("options", "-e -Z")],
        &[("options", "-Ze -e")],
        &[("options", "-e -Ze")],
        &[("options", "-f x")],
        &[("options", "-e -fx")],
        &[("options", "-t x")],
        &[("options", "-S")],
        &[("options", "-S much")],
        &[("options", "-O")],
        &[("options", "-s")],
        &[("options", "-te")],
        &[("options", "-d 1")],
        &[("options", "-d")],
        &[("options", "-F")],
        &[("options", "-B 100")],
        &[("options", "-i")],
        &[("options", "-l")],
        &[("options", "-N 3")],
        &[("options", "-p 1")],
        &[("options", "-h x")],
        &[("options", "-k x")],
        &[("options", "-")],
        &[("options", "-e -- stray")],
        &[("options", "stray")],
    ] {
        let told = refusal(login(pgweir.port(), parameters));
        assert_eq!(told, refusal(login(direct(), parameters)), "{parameters:?}");
    }
    // They cost no server connection.
    let pids = |_| login(pgweir.port(), &[]).unwrap().0.value("/* pgweir: primary */ SELECT pg_backend_pid()");
    let before = pids(());
    refusal(login(pgweir.port(), &[("TimeZone", "Mars/Phobos")]));
    assert_eq!(pids(()), before);
}

#[test]
fn reset_returns_to_the_clients_own_values_and_says_so() {
    let pgweir = builder().start();
    let asked = [("TimeZone", "Europe/Paris"), ("application_name", "mine"), ("my.own", "1"), ("work_mem", "5MB")];
    let zone = ("TimeZone".to_owned(), "Europe/Paris".to_owned());
    let name = ("application_name".to_owned(), "mine".to_owned());
    for reset in ["RESET ALL", "DISCARD ALL", "RESET TimeZone; RESET application_name; RESET my.own; RESET work_mem"] {
        let (mut client, _) = login(pgweir.port(), &asked).unwrap();
        client.query("SET TimeZone = 'Asia/Tokyo'");
        client.query("SET application_name = 'other'; SET my.own = '2'; SET work_mem = '6MB'");
        // A later report counts over an earlier one of the same name.
        let told: BTreeMap<String, String> = statuses(&client.query(reset)).into_iter().collect();
        assert_eq!(told, BTreeMap::from([zone.clone(), name.clone()]), "{reset}");
        for (setting, value) in asked {
            assert_eq!(client.value(&format!("SHOW {setting}")), value, "{reset}");
        }
    }
    // Within a transaction too, and undone with it.
    let (mut client, _) = login(pgweir.port(), &asked).unwrap();
    client.query("SET TimeZone = 'Asia/Tokyo'");
    client.query("BEGIN");
    assert_eq!(statuses(&client.query("RESET TimeZone")).last(), Some(&zone));
    assert_eq!(client.value("SHOW TimeZone"), "Europe/Paris");
    let told = statuses(&client.query("ROLLBACK"));
    assert_eq!(told.last(), Some(&("TimeZone".to_owned(), "Asia/Tokyo".to_owned())));
    assert_eq!(client.value("SHOW TimeZone"), "Asia/Tokyo");
}

#[test]
fn protocol_versions_are_negotiated() {
    let pgweir = builder().start();
    let parameters = [("user", sample::USER), ("database", sample::DATABASE)];
    let unknown = [("_pq_.wishes", "1"), ("_pq_.more", "2")];
    for (minor, options, negotiated, key) in [
        (0, false, None, 4),
        (1, false, Some(0), 4),
        (2, false, None, 32),
        (9999, false, Some(2), 32),
        (0, true, Some(0), 4),
        (2, true, Some(2), 32),
    ] {
        let mut client = Newcomer::connect(pgweir.port());
        let asked = [&parameters[..], if options { &unknown } else { &[] }].concat();
        client.startup(minor, &asked);
        let greeting = client.authenticate(sample::USER, sample::PASSWORD).unwrap();
        let names = unknown.iter().filter(|_| options).map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(greeting.negotiated, negotiated.map(|minor| ((3 << 16) | minor, names)), "3.{minor}");
        assert_eq!((greeting.secret.len(), client.value("SELECT 1")), (key, "1".to_owned()), "3.{minor}");
    }
    let mut client = Newcomer::connect(pgweir.port());
    client.send(&support::newcomer::opening(2 << 16, &[0; 288]));
    assert_eq!(client.refused().unwrap()[&'C'], "0A000");
}

#[test]
fn a_cancel_with_a_wrong_key_stops_nothing() {
    let pgweir = builder().start();
    let (mut client, greeting) = login(pgweir.port(), &[]).unwrap();
    let port = pgweir.port();
    let sleeper =
        std::thread::spawn(move || client.query("/* pgweir: primary */ SELECT pg_sleep(60) /* to be cancelled */"));
    let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%to be cancelled%' \
                   AND query NOT LIKE '%count%' AND state = 'active'";
    wait_until(LIMIT, "the statement runs", || cluster().primary().psql(running).unwrap() == "1");
    let cancel = |pid, secret: &[u8]| {
        let mut client = Newcomer::connect(port);
        client.cancel(pid, secret);
        assert_eq!(client.frame(), None, "a cancel request has no answer");
    };
    let mut wrong = greeting.secret.clone();
    wrong[0] ^= 1;
    cancel(greeting.pid, &wrong);
    cancel(greeting.pid, &[]);
    cancel(greeting.pid, &[greeting.secret.clone(), vec![0; 200]].concat());
    cancel(greeting.pid.wrapping_add(1), &greeting.secret);
    assert_eq!(cluster().primary().psql(running).unwrap(), "1");
    cancel(greeting.pid, &greeting.secret);
    let frames = sleeper.join().unwrap();
    let error = frames.iter().find(|(tag, _)| *tag == b'E').map(|(_, body)| support::newcomer::fields(body)).unwrap();
    assert_eq!(error[&'C'], "57014");
}

#[test]
fn a_verifier_serves_only_servers_that_store_the_same() {
    let other = Verifier::build(b"scram-word", vec![7; 16], std::num::NonZeroU32::new(4096).unwrap());
    let pgweir = builder().user("scram", &other.to_string()).start();
    let told = refusal(login_as(pgweir.port(), "scram", "scram-word", &[]));
    assert_eq!((told[&'S'].as_str(), told[&'C'].as_str()), ("FATAL", "28000"));
    assert!(told[&'M'].contains("verifier") || told[&'M'].contains("salt"), "{told:?}");
}

#[test]
fn a_reload_changes_passwords_and_removes_users() {
    let pool = |builder: Builder| builder.set("pool.idle_timeout", "100ms").set("pool.reap_interval", "50ms");
    let with = |password: &str| pool(builder().set("pool.min", 1)).user("trusted", password);
    let pgweir = with("first").user("clear", "clear-word").user("returner", "not the server's").start();
    refusal(login_as(pgweir.port(), "returner", "not the server's", &[]));
    let (mut client, _) = login_as(pgweir.port(), "clear", "clear-word", &[]).unwrap();
    pgweir.reload(&with("second"));
    wait_until(LIMIT, "the new password", || login_as(pgweir.port(), "trusted", "second", &[]).is_ok());
    for (user, password) in [("trusted", "first"), ("clear", "clear-word")] {
        assert_eq!(refusal(login_as(pgweir.port(), user, password, &[]))[&'C'], "28P01", "{user}");
    }
    assert_eq!(client.value("SELECT current_user"), "clear", "who is in stays in");
    // Its connections go once nobody uses them, whatever pool.min says.
    drop(client);
    wait_until(LIMIT, "no connection of a user that is none", || connections("clear") == "0");

    // One that comes back with another password is logged in to servers with that.
    pgweir.reload(&with("second").user("returner", "returner-word"));
    wait_until(LIMIT, "the right password", || login_as(pgweir.port(), "returner", "returner-word", &[]).is_ok());
}

fn connections(user: &str) -> String {
    let count = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{user}'");
    cluster().primary().psql(&count).unwrap()
}

#[test]
fn no_password_is_written_anywhere() {
    let pgweir = builder().user("scram", "scram-word").set("admin.users", vec![sample::USER]).start();
    refusal(login_as(pgweir.port(), sample::USER, "a wrong secret", &[]));
    works(&pgweir, "scram", "scram-word");
    let (mut console, _) =
        Newcomer::login(pgweir.port(), &[("user", sample::USER), ("database", "pgweir")], sample::PASSWORD).unwrap();
    let shown: String = ["SHOW CONFIG", "SHOW USERS", "SHOW DATABASES"]
        .into_iter()
        .flat_map(|show| console.query(show))
        .map(|(_, body)| String::from_utf8_lossy(&body).into_owned())
        .collect();
    for text in [pgweir.stderr(), shown] {
        for secret in ["a wrong secret", "scram-word", cluster().primary().password()] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
    assert_ne!(cluster().primary().password(), SUPERUSER);
}
