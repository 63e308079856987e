//! Users asked of a server by `auth.query`, and the rules of who may log in how.

mod support;

use pgweir::auth::Verifier;
use pgweir::demo::sample;

use support::newcomer::Newcomer;
use support::{Builder, LIMIT, Pgweir, cluster, wait_until};

fn builder() -> Builder {
    Pgweir::builder().cluster(cluster(), &[])
}

/// With users looked up as the superuser; further keys of `[auth]` may follow.
fn querying() -> Builder {
    builder()
        .set("auth.query", "SELECT usename, passwd FROM pg_shadow WHERE usename = $1")
        .set("auth.query_user", "postgres")
}

/// What a login as this user comes to: its name, or the error.
fn log_in(pgweir: &Pgweir, user: &str, password: &str) -> Result<String, String> {
    let url = pgweir.url_of(user, password, sample::DATABASE);
    let output = pgweir.psql_output(&["-c", "SELECT current_user", &url]);
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn refused(pgweir: &Pgweir, user: &str, password: &str, expected: &str) {
    let error = log_in(pgweir, user, password).unwrap_err();
    assert!(error.contains(expected), "{user}: {error}");
}

fn on_primary(sql: &str) {
    cluster().primary().psql_in(sample::DATABASE, sql).unwrap();
}

#[test]
fn a_user_of_the_servers_alone_logs_in_by_its_verifier() {
    on_primary("CREATE ROLE \"it's\" LOGIN PASSWORD 'first'; CREATE ROLE silent LOGIN");
    let pgweir = querying().start();
    assert_eq!(log_in(&pgweir, "it's", "first"), Ok("it's".into()));
    for (user, password) in [("it's", "wrong"), ("silent", "x"), ("nobody", "x")] {
        refused(&pgweir, user, password, "password authentication failed");
    }
    // Of the configuration, whatever the servers say.
    assert_eq!(log_in(&pgweir, sample::USER, sample::PASSWORD), Ok(sample::USER.into()));

    on_primary("ALTER ROLE \"it's\" PASSWORD 'second'");
    refused(&pgweir, "it's", "first", "password authentication failed");
    assert_eq!(log_in(&pgweir, "it's", "second"), Ok("it's".into()));
    assert!(!pgweir.stderr().contains("SCRAM-SHA-256$"), "no verifier in the log");
}

#[test]
fn a_query_that_fails_refuses_and_says_why_in_the_log_alone() {
    let pgweir = querying().set("auth.query", "SELECT nothing FROM nowhere WHERE $1 = $1").start();
    refused(&pgweir, "nobody", "x", "cannot be looked up");
    support::wait_until(support::LIMIT, "the reason in the log", || pgweir.stderr().contains("nowhere"));
    assert_eq!(log_in(&pgweir, sample::USER, sample::PASSWORD), Ok(sample::USER.into()));
}

#[test]
fn the_first_rule_that_fits_decides_and_none_is_a_refusal() {
    let rules = r#"
        [[auth.rules]]
        connection = "local"
        method = "trust"
        [[auth.rules]]
        users = ["postgres"]
        method = "reject"
        [[auth.rules]]
        address = "127.0.0.0/8"
        users = ["app", "plain"]
        databases = ["app"]
        method = "scram-sha-256"
    "#;
    let pgweir = builder().user("plain", "plain").more(rules).start();
    assert_eq!(log_in(&pgweir, sample::USER, sample::PASSWORD), Ok(sample::USER.into()));
    refused(&pgweir, sample::USER, "wrong", "password authentication failed");
    refused(&pgweir, "postgres", cluster().primary().password(), "a rule rejects host \"127.0.0.1\"");
    refused(&pgweir, "nobody", "x", "no rule allows");
}

#[test]
fn trust_asks_nothing_and_md5_asks_for_md5() {
    let rules = r#"
        [[auth.rules]]
        users = ["app"]
        method = "trust"
        [[auth.rules]]
        users = ["postgres"]
        method = "md5"
    "#;
    let pgweir = builder().more(rules).start();
    assert_eq!(log_in(&pgweir, sample::USER, "whatever"), Ok(sample::USER.into()));
    assert_eq!(log_in(&pgweir, "postgres", cluster().primary().password()), Ok("postgres".into()));
    refused(&pgweir, "postgres", "wrong", "password authentication failed");
    refused(&pgweir, "nobody", "x", "no rule allows");
}

/// A hash tells who has the password, and logs in to no server that keeps another hash of it: the password does.
#[test]
fn a_password_that_is_shown_in_clear_serves_at_the_servers() {
    on_primary("CREATE ROLE salted LOGIN PASSWORD 'salted'");
    let verifier = Verifier::build(b"salted", vec![7; 16], std::num::NonZeroU32::new(4096).unwrap());
    let rules = "[[auth.rules]]\nusers = [\"salted\", \"app\"]\nmethod = \"password\"\n";
    let hash =
        cluster().primary().psql(&format!("SELECT 'md5' || md5('{}{}')", sample::PASSWORD, sample::USER)).unwrap();
    let pgweir = Builder::without_users().cluster(cluster(), &[]).user("salted", &verifier.to_string());
    let pgweir = pgweir.user(sample::USER, &hash).more(rules).start();
    for (user, password) in [("salted", "salted"), (sample::USER, sample::PASSWORD)] {
        refused(&pgweir, user, "wrong", "password authentication failed");
        assert_eq!(log_in(&pgweir, user, password), Ok(user.into()));
    }
}

#[test]
fn a_certificate_needs_tls() {
    let pgweir = builder().more("[[auth.rules]]\nmethod = \"cert\"\n").start();
    refused(&pgweir, sample::USER, sample::PASSWORD, "certificate authentication failed");
}

/// Who has proven nothing sets nothing up; what no server knows is not kept.
#[test]
fn names_of_databases_that_are_none_come_to_nothing() {
    on_primary("CREATE ROLE wanderer LOGIN PASSWORD 'wanderer'");
    cluster().primary().psql("CREATE DATABASE fleeting").unwrap();
    let pgweir = querying().set("database.name", "*").operator().start_unready();
    let names = || pgweir.console("SHOW DATABASES").column("name").iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    let log_in = |user: &str, database: &str, name: &str| {
        let parameters = [("user", user), ("database", database), ("application_name", name)];
        Newcomer::login(pgweir.port(), &parameters, user).map(|_| ())
    };
    let before = names();
    for n in 0..20 {
        log_in(["nobody", "postgres", "wanderer"][n % 3], &format!("junk{n}"), "").unwrap_err();
    }
    assert_eq!(names(), before);
    for user in ["wanderer", sample::USER] {
        let refused = log_in(user, "no such database", "").unwrap_err();
        assert_eq!(refused[&'C'], if user == "wanderer" { "08006" } else { "3D000" }, "{refused:?}");
    }
    assert_eq!(names(), before);
    log_in("wanderer", "fleeting", "").unwrap();
    assert_eq!(names().len(), before.len() + 1);
    // One that is dropped later goes with the next login that learns of it.
    cluster().primary().psql("DROP DATABASE fleeting WITH (FORCE)").unwrap();
    wait_until(LIMIT, "3D000", || log_in(sample::USER, "fleeting", "anew").is_err_and(|e| e[&'C'] == "3D000"));
    wait_until(LIMIT, "its end", || names() == before);
}

/// What an earlier client has set on the connection is not in force for the question.
#[test]
fn users_are_asked_for_as_in_a_fresh_session() {
    on_primary("CREATE ROLE late LOGIN PASSWORD 'late'");
    let pgweir = querying().set("pool.max", 1).start();
    let url = pgweir.url_of("postgres", cluster().primary().password(), sample::DATABASE);
    let output = pgweir.psql_output(&["-c", "SET ROLE app", "-c", "SELECT current_user", &url]);
    assert_eq!(output.stdout, b"app\n");
    assert_eq!(log_in(&pgweir, "late", "late"), Ok("late".into()));
}
