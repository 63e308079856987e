//! What `/statements` counts of each way in which a statement can run, end and fail.

mod support;

use futures_util::{SinkExt, TryStreamExt};
use pgweir::demo::cluster::Cluster;
use serde_json::Value;
use support::client::{connect, spawn, wait};
use support::{LIMIT, Pgweir, wait_until};
use tokio_postgres::NoTls;

fn pgweir() -> Pgweir {
    Pgweir::builder().cluster(support::cluster(), &[1, 2]).operator().start()
}

/// The record of a statement by its text without literals; null while there is none.
fn record(pgweir: &Pgweir, text: &str) -> Value {
    let statements = pgweir.json("/statements?limit=1000");
    let found = statements.as_array().unwrap().iter().filter(|s| s["text"] == text);
    let found: Vec<_> = found.collect();
    assert!(found.len() < 2, "{found:?}");
    found.first().map_or(Value::Null, |s| (*s).clone())
}

/// Its calls, errors and rows must be these. A client may have read an error before the statement's end came.
fn counted(pgweir: &Pgweir, text: &str, expected: (u64, u64, u64)) {
    let counts = || {
        let record = record(pgweir, text);
        let count = |name: &str| record[name].as_u64().unwrap_or(0);
        (count("calls"), count("errors"), count("rows"))
    };
    wait_until(LIMIT, text, || counts().0 >= expected.0);
    assert_eq!(counts(), expected, "{text}");
}

#[test]
fn each_execute_of_a_pipeline_is_counted_once_with_its_own_time() {
    let pgweir = pgweir();
    let client = connect(&pgweir.url());
    let slow = wait(client.prepare("SELECT pg_sleep(0.3), 1 AS slow")).unwrap();
    let quick = wait(client.prepare("SELECT generate_series(1, 3) AS quick")).unwrap();
    wait(async {
        let pipeline = (client.query(&quick, &[]), client.query(&slow, &[]), client.query(&quick, &[]));
        tokio::try_join!(pipeline.0, pipeline.1, pipeline.2).unwrap();
    });
    counted(&pgweir, "SELECT pg_sleep($1), $2 AS slow", (1, 0, 1));
    counted(&pgweir, "SELECT generate_series($1, $2) AS quick", (2, 0, 6));
    let exec = |text: &str| record(&pgweir, text)["exec"].clone();
    let slow = exec("SELECT pg_sleep($1), $2 AS slow");
    for figure in ["mean", "p50", "p95", "p99", "max"] {
        // Percentiles are exact to 1 %.
        let ms = slow[figure].as_f64().unwrap();
        assert!((297.0..10_000.0).contains(&ms), "{figure}: {slow}");
    }
    let histogram = slow["histogram"].as_array().unwrap();
    assert!(
        histogram.iter().all(|bucket| bucket["count"] == u64::from(bucket["le"].as_f64().is_none_or(|le| le >= 300.0)))
    );
    let quick = exec("SELECT generate_series($1, $2) AS quick");
    assert!(quick["p50"].as_f64() < slow["p50"].as_f64(), "{quick}");
}

#[test]
fn errors_are_counted_where_they_come() {
    let pgweir = pgweir();
    let client = connect(&pgweir.url());
    // At Parse.
    for _ in 0..2 {
        wait(client.prepare("SELECT missing_column AS at_parse")).unwrap_err();
    }
    counted(&pgweir, "SELECT missing_column AS at_parse", (2, 2, 0));
    // At Bind: text that is no number, behind a pipeline whose first statement runs well.
    let good = wait(client.prepare("SELECT 1 AS good")).unwrap();
    let bad = wait(client.prepare("SELECT ($1::text)::int AS at_bind")).unwrap();
    let (first, second, third) =
        wait(async { tokio::join!(client.query(&good, &[]), client.query(&bad, &[&"x"]), client.query(&good, &[])) });
    assert!(first.is_ok() && second.is_err() && third.is_ok());
    counted(&pgweir, "SELECT $1 AS good", (2, 0, 2));
    counted(&pgweir, "SELECT ($1::text)::int AS at_bind", (1, 1, 0));
    // At Execute, within a transaction; what follows in it fails too.
    wait(client.batch_execute("BEGIN")).unwrap();
    let divide = wait(client.prepare("SELECT 1 / $1::int AS at_execute")).unwrap();
    wait(client.query(&divide, &[&0])).unwrap_err();
    wait(client.batch_execute("SELECT 'late' AS aborted")).unwrap_err();
    wait(client.batch_execute("ROLLBACK")).unwrap();
    counted(&pgweir, "SELECT $2 / $1::int AS at_execute", (1, 1, 0));
    counted(&pgweir, "SELECT $1 AS aborted", (1, 1, 0));
    // In a simple Query.
    wait(client.simple_query("SELECT 1/0 AS simple")).unwrap_err();
    counted(&pgweir, "SELECT $1/$2 AS simple", (1, 1, 0));
    assert_eq!(pgweir.json("/stats")["application"]["availability"], 100.0);
}

#[test]
fn rows_are_those_of_every_kind_of_statement() {
    let pgweir = pgweir();
    let mut client = connect(&pgweir.url());
    wait(client.batch_execute("DROP TABLE IF EXISTS counted; CREATE TABLE counted (a int)")).unwrap();
    counted(&pgweir, "DROP TABLE IF EXISTS counted; CREATE TABLE counted (a int)", (1, 0, 0));
    // COPY both ways.
    wait(async {
        let sink = client.copy_in("COPY counted FROM STDIN").await.unwrap();
        let mut sink = std::pin::pin!(sink);
        sink.send(bytes::Bytes::from("1\n2\n3\n")).await.unwrap();
        assert_eq!(sink.finish().await.unwrap(), 3);
        let rows = client.copy_out("COPY counted TO STDOUT").await.unwrap();
        rows.try_collect::<Vec<_>>().await.unwrap();
    });
    counted(&pgweir, "COPY counted FROM STDIN", (1, 0, 3));
    counted(&pgweir, "COPY counted TO STDOUT", (1, 0, 3));
    // DML, and several statements in one string: one call, all rows.
    wait(client.execute("UPDATE counted SET a = a + 1", &[])).unwrap();
    counted(&pgweir, "UPDATE counted SET a = a + $1", (1, 0, 3));
    wait(client.simple_query("SELECT 1 AS x; SELECT a FROM counted; DELETE FROM counted")).unwrap();
    counted(&pgweir, "SELECT $1 AS x; SELECT a FROM counted; DELETE FROM counted", (1, 0, 7));
    // A portal in parts: each Execute is a call, with its rows.
    wait(async {
        let transaction = client.transaction().await.unwrap();
        let statement = transaction.prepare("SELECT generate_series(1, 7) AS part").await.unwrap();
        let portal = transaction.bind(&statement, &[]).await.unwrap();
        for expected in [3, 3, 1] {
            assert_eq!(transaction.query_portal(&portal, 3).await.unwrap().len(), expected);
        }
    });
    counted(&pgweir, "SELECT generate_series($1, $2) AS part", (3, 0, 7));
    wait(client.batch_execute("DROP TABLE counted")).unwrap();
}

#[test]
fn cancelled_and_abandoned_statements_count_as_errors() {
    let pgweir = pgweir();
    let client = connect(&pgweir.url());
    let token = client.cancel_token();
    let cancelled = spawn(async move { client.simple_query("SELECT pg_sleep(60) AS cancelled").await.map(drop) });
    let running = |text: &str| {
        let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = '{text}'");
        support::cluster().servers().any(|server| server.psql(&sql).unwrap() == "1")
    };
    wait_until(LIMIT, "the statement", || running("SELECT pg_sleep(60) AS cancelled"));
    wait(token.cancel_query(NoTls)).unwrap();
    let error = wait(cancelled).unwrap().unwrap_err();
    assert_eq!(error.code().unwrap().code(), "57014");
    counted(&pgweir, "SELECT pg_sleep($1) AS cancelled", (1, 1, 0));
    // A client that leaves its running statement, as one whose patience is at its end does.
    let client = connect(&pgweir.url());
    let abandoned = spawn(async move { client.simple_query("SELECT pg_sleep(60) AS abandoned").await.map(drop) });
    wait_until(LIMIT, "the statement", || running("SELECT pg_sleep(60) AS abandoned"));
    let id = pgweir.console("SHOW CLIENTS").rows[0]["id"].clone();
    wait(connect(&pgweir.console_url()).simple_query(&format!("KILL_CLIENT {id}"))).unwrap();
    wait(abandoned).unwrap().unwrap_err();
    counted(&pgweir, "SELECT pg_sleep($1) AS abandoned", (1, 1, 0));
    wait_until(LIMIT, "the statement's end", || !running("SELECT pg_sleep(60) AS abandoned"));
}

#[test]
fn faults_of_servers_lower_the_availability() {
    let cluster = Cluster::builder().start().unwrap();
    pgweir::demo::sample::install(cluster.primary()).unwrap();
    let pgweir = Pgweir::builder().cluster(&cluster, &[]).set("pool.acquire_timeout", "1s").set("pool.max", 1).start();
    let (victim, other) = (connect(&pgweir.url()), connect(&pgweir.url()));
    let prepared = wait(other.prepare("SELECT 1 AS prepared")).unwrap();
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%AS killed'";
    let killed = spawn(async move { victim.simple_query("SELECT pg_sleep(60) AS killed").await.map(drop) });
    let count = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%AS killed'";
    wait_until(LIMIT, "the statement", || cluster.primary().psql(count).unwrap() == "1");
    // No connection in time: for a simple Query, a Parse, a Bind.
    let error = wait(other.simple_query("SELECT 1 AS late")).unwrap_err();
    assert_eq!(error.code().unwrap().code(), "53300", "{error}");
    let error = wait(other.prepare("SELECT 2 AS late")).unwrap_err();
    assert_eq!(error.code().unwrap().code(), "53300", "{error}");
    counted(&pgweir, "SELECT $1 AS late", (2, 2, 0));
    let error = wait(other.query(&prepared, &[])).unwrap_err();
    assert_eq!(error.code().unwrap().code(), "53300", "{error}");
    let waited = record(&pgweir, "SELECT $1 AS late")["wait"]["p50"].as_f64().unwrap();
    assert!(waited >= 990.0, "{waited}");
    cluster.primary().psql(kill).unwrap();
    let error = wait(killed).unwrap().unwrap_err();
    assert_eq!(error.code().unwrap().code(), "57P01");
    counted(&pgweir, "SELECT pg_sleep($1) AS killed", (1, 1, 0));
    wait(other.query(&prepared, &[])).unwrap();
    counted(&pgweir, "SELECT $1 AS prepared", (2, 1, 1));
    // Five statements in all, four of which servers or pgweir have failed.
    let application = &pgweir.json("/stats")["application"];
    assert_eq!((&application["availability"], &application["errorRate"]), (&20.0.into(), &80.0.into()));
}
