//! Where statements run by what the database says of their names: objects made by psql, statements through pgweir, and the
//! servers' logs to tell the node.

#[path = "../support/mod.rs"]
mod support;

mod generated;
mod statements;

use std::sync::OnceLock;

use pgweir::demo::cluster::Cluster;
use pgweir::demo::sample;
use support::sessions::{block_on, connect, value, wait_for};
use support::{LIMIT, Pgweir, logged, wait_until};

use statements::{PRIMARY, REPLICA, SESSIONS};

/// A primary and one replica.
fn cluster() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| {
        let cluster = Cluster::builder().replicas(1).setting("log_statement", "all").start().unwrap();
        sample::install(cluster.primary()).unwrap();
        cluster.primary().psql_in(sample::DATABASE, include_str!("objects.sql")).unwrap();
        cluster.wait_replayed(LIMIT).unwrap();
        cluster
    })
}

/// Where what a session begins with, the writes of those before it, decides nothing.
fn pgweir() -> Pgweir {
    Pgweir::builder().cluster(cluster(), &[1]).set("routing.freshness", "eventual").start()
}

/// How often statements with the marker ran on the primary and on the replica.
fn runs(marker: &str) -> (usize, usize) {
    (logged(cluster().primary(), marker), logged(&cluster().replicas()[0], marker))
}

/// Runs `sql` behind `settings` in a session of its own; what is wrong with where it ran.
async fn misplaced(pgweir: &Pgweir, settings: &str, sql: &str, marker: &str, on_replica: bool) -> Option<String> {
    let client = connect(&pgweir.url()).await;
    if !settings.is_empty() {
        client.simple_query(settings).await.unwrap_or_else(|error| panic!("{settings}: {error:?}"));
    }
    let outcome = client.simple_query(&format!("{sql} /* {marker} */")).await;
    let (primary, replica) = runs(marker);
    // a failed statement is logged twice
    let right = if on_replica { primary == 0 && replica == 1 } else { primary > 0 && replica == 0 };
    let settings = if settings.is_empty() { String::new() } else { format!("{settings}; ") };
    match (right, outcome) {
        (false, outcome) => {
            let error = outcome.err().map(|error| format!(" ({error:?})")).unwrap_or_default();
            Some(format!("{settings}{sql}: {primary} times on the primary, {replica} on the replica{error}"))
        }
        (true, Err(error)) if on_replica => Some(format!("{settings}{sql}: {error:?}")),
        _ => None,
    }
}

#[test]
fn each_statement_runs_where_the_catalog_sends_it() {
    let pgweir = pgweir();
    let mut wrong = Vec::new();
    block_on(async {
        for (number, sql) in REPLICA.iter().enumerate() {
            wrong.extend(misplaced(&pgweir, "", sql, &format!("on-replica-{number}-end"), true).await);
        }
        for (number, sql) in PRIMARY.iter().enumerate() {
            wrong.extend(misplaced(&pgweir, "", sql, &format!("on-primary-{number}-end"), false).await);
        }
        for (number, (settings, sql, on_replica)) in SESSIONS.iter().enumerate() {
            wrong.extend(misplaced(&pgweir, settings, sql, &format!("in-session-{number}-end"), *on_replica).await);
        }
    });
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Behind pgweir's back, and within the second: what was harmless is not any more, and the other way about.
#[test]
fn definitions_that_change_elsewhere_count_soon() {
    let primary = cluster().primary();
    let psql = |sql: &str| primary.psql_in(sample::DATABASE, &format!("SET ROLE app; {sql}")).unwrap();
    psql("CREATE VIEW public.turning AS SELECT 1::bigint AS n");
    cluster().wait_replayed(LIMIT).unwrap();
    let pgweir = pgweir();
    block_on(async {
        let mut number = 0;
        let mut runs_on_replica = async || {
            number += 1;
            let marker = format!("turning-{number}-end");
            value(&connect(&pgweir.url()).await, &format!("SELECT n FROM turning /* {marker} */")).await;
            runs(&marker) == (0, 1)
        };
        assert!(runs_on_replica().await);
        psql("CREATE OR REPLACE VIEW public.turning AS SELECT nextval('public.numbers') AS n");
        cluster().wait_replayed(LIMIT).unwrap();
        wait_for("the replaced view to go to the primary", async || !runs_on_replica().await).await;
        psql("CREATE OR REPLACE VIEW public.turning AS SELECT 2::bigint AS n");
        wait_for("the view to return to the replica", async || runs_on_replica().await).await;
    });
}

/// The server's own search_path, of whose change nothing is committed.
#[test]
fn a_reload_of_the_server_counts_soon() {
    // nor does anything else
    let cluster = Cluster::builder().setting("autovacuum", "off").start().unwrap();
    sample::install(cluster.primary()).unwrap();
    let psql = |sql: &str| cluster.primary().psql_in(sample::DATABASE, sql).unwrap();
    psql("CREATE SCHEMA aside; CREATE VIEW aside.seen AS SELECT 1 AS n");
    let pgweir = Pgweir::builder().cluster(&cluster, &[]).operator().start();
    let is_found = || {
        let told = pgweir.console("EXPLAIN ROUTE SELECT n FROM seen").column("ROUTE").join("\n");
        assert!(told.contains("reason: "), "{told}");
        !told.contains("reason: catalog")
    };
    wait_until(LIMIT, "the definitions without it", || !is_found());
    psql("ALTER SYSTEM SET search_path = aside");
    psql("SELECT pg_reload_conf()");
    wait_until(LIMIT, "the new search_path", is_found);
}

/// Through pgweir: from the end of the change on, for every session.
#[test]
fn definitions_that_change_here_count_at_once() {
    let pgweir = pgweir();
    block_on(async {
        let (one, other) = (connect(&pgweir.url()).await, connect(&pgweir.url()).await);
        one.simple_query("CREATE VIEW turned AS SELECT 1::bigint AS n").await.unwrap();
        cluster().wait_replayed(LIMIT).unwrap();
        let mut number = 0;
        wait_for("the new view to be known", async || {
            number += 1;
            let marker = format!("turned-{number}-end");
            value(&other, &format!("SELECT n FROM turned /* {marker} */")).await;
            runs(&marker) == (0, 1)
        })
        .await;
        for round in 0..5 {
            one.simple_query("CREATE OR REPLACE VIEW turned AS SELECT pg_backend_pid()::bigint AS n").await.unwrap();
            value(&other, &format!("SELECT n FROM turned /* turned-pid-{round}-end */")).await;
            assert_eq!(runs(&format!("turned-pid-{round}-end")), (1, 0));
            one.simple_query("CREATE OR REPLACE VIEW turned AS SELECT 1::bigint AS n").await.unwrap();
        }
    });
}

/// The command line and the console tell the decision, and the way to what decides.
#[test]
fn decisions_are_explained() {
    let pgweir = Pgweir::builder().cluster(cluster(), &[1]).operator().start();
    let explain = |arguments: &[&str]| {
        let config = pgweir.config_path();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_pgweir"))
            .args(["explain", "--config", config.to_str().unwrap()])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    for (sql, node, reason, via) in [
        ("SELECT f_stable()", "replica", "read", ""),
        ("SELECT 1 FROM v_unlogged", "primary", "unlogged", "relation public.v_unlogged -> relation public.u_table"),
        (
            "SELECT f_deep_1()",
            "primary",
            "lock",
            "function public.f_deep_1 -> function public.f_deep_2 -> function public.f_lies_lock",
        ),
        (
            "SELECT line FROM v_foreign",
            "primary",
            "foreign_table",
            "relation public.v_foreign -> relation public.f_table",
        ),
        ("SELECT * FROM v_next", "primary", "sequence", "relation public.v_next -> nextval"),
        ("INSERT INTO plain VALUES (3)", "primary", "write", ""),
    ] {
        let mut expected =
            vec![format!("node: {node}"), format!("reason: {reason}"), "cached: no (disabled)".to_owned()];
        if !via.is_empty() {
            expected.push(format!("via: {via}"));
        }
        let command = explain(&[sql]);
        let console = pgweir.console(&format!("EXPLAIN ROUTE {sql}")).column("ROUTE").join("\n");
        for line in expected {
            assert!(command.lines().any(|told| told == line), "{line} in {command}");
            assert!(console.lines().any(|told| told == line), "{line} in {console}");
        }
        let json: serde_json::Value = serde_json::from_str(&explain(&["--json", sql])).unwrap();
        assert_eq!((json["node"].as_str(), json["reason"].as_str()), (Some(node), Some(reason)), "{json}");
    }
}

#[test]
fn cost_and_reasons_are_metrics() {
    let pgweir = pgweir();
    pgweir.psql("SELECT f_stable()");
    pgweir.psql("SELECT f_volatile()");
    let (_, page) = pgweir.get("/metrics");
    let value = |start: &str| -> f64 {
        let line = page.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start} in {page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!(value("pgweir_routed_total{database=\"app\",reason=\"read\"}"), 1.0);
    assert_eq!(value("pgweir_routed_total{database=\"app\",reason=\"unknown_function\"}"), 1.0);
    assert!(value("pgweir_catalog_refreshes_total{database=\"app\"}") >= 1.0);
    assert!(value("pgweir_catalog_entries{database=\"app\"}") > 100.0);
    assert!(value("pgweir_catalog_bytes{database=\"app\"}") > 10_000.0);
    assert!(value("pgweir_catalog_refresh_seconds{database=\"app\"}") > 0.0);
    assert!(value("pgweir_catalog_age_seconds{database=\"app\"}") >= 0.0);
}

/// Statements of a grammar, and mutations of them, judged by the catalog. What is judged a read runs on a real standby and is
/// never refused there for what it does; of those with a label none that is unsafe goes to a replica, and few that are
/// safe go to the primary. `PGWEIR_STATEMENTS` says how many, `PGWEIR_SEED` which.
#[test]
fn generated_statements_are_safe_on_a_standby_and_seldom_wasted() {
    let of = |name: &str, default| std::env::var(name).ok().map_or(default, |text| text.parse::<u64>().unwrap());
    let (count, seed) = (of("PGWEIR_STATEMENTS", 600), of("PGWEIR_SEED", 1));
    let (config, _) = pgweir::config::Config::load(&pgweir().config_path()).unwrap();
    let standby = &cluster().replicas()[0];
    let mut generator = generated::Generator::new(seed);
    let (mut unsafe_there, mut wasted, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    let (mut safe, mut reads) = (0, 0);
    block_on(async {
        let scope = pgweir::explain::scope(&config, &config.databases[0]).await.unwrap();
        let url = format!("postgresql://app:app@127.0.0.1:{}/app", standby.port());
        let client = connect(&url).await;
        client.simple_query("SET statement_timeout = '2s'").await.unwrap();
        let fixed = REPLICA.iter().map(|sql| (sql.to_string(), Some(true)));
        let fixed = fixed.chain(PRIMARY.iter().map(|sql| (sql.to_string(), Some(false)))).collect::<Vec<_>>();
        let made = (0..count).map(|_| generator.statement()).collect::<Vec<_>>();
        for (sql, label) in fixed.into_iter().chain(made) {
            let explanation = pgweir::route::explain::explain(&sql, Some(&scope), None, Vec::new());
            let read = explanation.node() == "replica";
            safe += usize::from(label == Some(true));
            match (label, read) {
                (Some(false), true) => unsafe_there.push(sql.clone()),
                (Some(true), false) => wasted.push(format!("{}: {sql}", explanation.lines().join(", "))),
                _ => {}
            }
            if !read {
                continue;
            }
            reads += 1;
            if let Err(error) = client.simple_query(&sql).await {
                // A string may have begun a block.
                client.simple_query("ROLLBACK").await.unwrap();
                let code = support::sessions::sqlstate(&error).to_owned();
                // in a statement that the generator made whole, nothing fails, but that it may take too long
                let fails = label == Some(true) && code != "57014";
                if matches!(code.as_str(), "25006" | "0A000" | "55000") || fails {
                    refused.push(format!("{code}: {sql}: {error}"));
                }
            }
        }
    });
    let share = 100.0 * wasted.len() as f64 / safe as f64;
    println!(
        "seed {seed}: {count} generated, {reads} judged reads, {} refused by the standby, {} unsafe on a replica, \
         {} of {safe} safe ones wasted ({share:.1} %)",
        refused.len(),
        unsafe_there.len(),
        wasted.len()
    );
    assert!(refused.is_empty(), "seed {seed}\n{}", refused.join("\n"));
    assert!(unsafe_there.is_empty(), "seed {seed}\n{}", unsafe_there.join("\n"));
    assert!(share <= 3.0, "seed {seed}\n{}", wasted.join("\n"));
}
