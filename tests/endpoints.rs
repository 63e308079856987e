//! The HTTP endpoints with real figures: what was done is what they say.

mod support;

use std::collections::BTreeSet;
use std::fs;

use pgweir::demo::cluster::{Cluster, Shutdown};
use pgweir::demo::sample::{self, DATABASE};
use rustix::process::Signal;
use serde_json::Value;
use support::client::{connect, spawn, wait};
use support::http::TOKEN;
use support::prometheus::Samples;
use support::{LIMIT, Pgweir, wait_until};

fn pgweir() -> Pgweir {
    Pgweir::builder().cluster(support::cluster(), &[1, 2]).operator().start()
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn stats_is_the_document_of_the_contract() {
    let pgweir = pgweir();
    let stats = pgweir.json("/stats");
    let expected = [
        ("", "timestamp uptime version cpu memory database application"),
        ("/cpu", "usage load"),
        ("/memory", "used total free resident"),
        ("/database", "connections activeQueries slowQueries cacheHitRate waiting nodes nodesUp"),
        ("/application", "responseTime p50 p95 p99 throughput errorRate activeUsers availability"),
    ];
    for (path, names) in expected {
        assert_eq!(keys(stats.pointer(path).unwrap()), names.split_whitespace().collect(), "{path}");
    }
    let timestamp = stats["timestamp"].as_str().unwrap();
    assert!(timestamp.len() == "2026-01-15T10:00:00.000Z".len() && timestamp.ends_with('Z'), "{timestamp}");
    assert_eq!(stats["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&stats["database"]["nodes"], &stats["database"]["nodesUp"]), (&3.into(), &3.into()));
    let memory = |name: &str| stats["memory"][name].as_u64().unwrap();
    assert_eq!(memory("used") + memory("free"), memory("total"));
    assert!(memory("resident") > 1 << 20 && memory("resident") < memory("total"));
    assert_eq!(stats["cpu"]["load"].as_array().unwrap().len(), 3);
    wait_until(LIMIT, "a later uptime", || pgweir.json("/stats")["uptime"].as_f64() > stats["uptime"].as_f64());
}

#[test]
fn stats_are_of_the_statements_that_ran() {
    // Far above what a new connection costs.
    let builder = Pgweir::builder().cluster(support::cluster(), &[1, 2]).set("statements.slow_threshold", "1400ms");
    let pgweir = builder.start();
    let clients = [connect(&pgweir.url()), connect(&pgweir.url())];
    for n in 0..19 {
        wait(clients[n % 2].simple_query("SELECT 1")).unwrap();
    }
    wait(clients[0].simple_query("SELECT 1/0")).unwrap_err();
    let failed = || pgweir.json("/stats")["application"]["errorRate"] == 5.0;
    wait_until(LIMIT, "one error in twenty", failed);
    let stats = pgweir.json("/stats");
    let application = |name: &str| stats["application"][name].as_f64().unwrap();
    assert_eq!(application("activeUsers"), 2.0);
    // The span is the time since the start until that is ten seconds.
    let seconds = 20.0 / application("throughput");
    assert!((0.1..=10.5).contains(&seconds), "{seconds}");
    assert!(application("p50") > 0.0 && application("p50") <= application("p95"));
    assert!(application("p95") <= application("p99"));
    for _ in 0..30 {
        wait(clients[0].simple_query("SELECT pg_sleep(0.02)")).unwrap();
    }
    let running = spawn({
        let [_, client] = clients;
        async move { client.simple_query("SELECT pg_sleep(1.5)").await.map(drop) }
    });
    wait_until(LIMIT, "an active query", || pgweir.json("/stats")["database"]["activeQueries"] == 1);
    wait(running).unwrap().unwrap();
    let stats = pgweir.json("/stats");
    let application = |name: &str| stats["application"][name].as_f64().unwrap();
    assert!(application("p99") >= 1_485.0, "{stats:#}");
    assert!(application("responseTime") > 1_500.0 / 51.0, "{stats:#}");
    assert_eq!(stats["database"]["slowQueries"], 1);
    wait_until(LIMIT, "one client left", || pgweir.json("/stats")["application"]["activeUsers"] == 1);
}

#[test]
fn statements_are_ordered_limited_and_without_literals() {
    let pgweir = pgweir();
    let client = connect(&pgweir.url());
    let secret = "s3cret-4711";
    let texts = [
        format!("SELECT '{secret}'::text, E'{secret}\\n', $${secret}$$, $x${secret}$x$, U&'{secret}'"),
        format!("SELECT id FROM users WHERE name = '{secret}' OR email IN ('{secret}', 'b') -- {secret}"),
        format!("SELECT /* {secret} */ count(*) FROM evaluations WHERE score > 4711 AND score < 0x4711"),
        format!("INSERT INTO no_such_table VALUES ('{secret}')"),
        // Not of SQL's syntax, and cut short within a literal.
        format!("SELEKT '{secret}' FROM"),
        format!("SELECT '{secret}"),
        format!("SELECT $a${secret}"),
        format!("SELECT 1 /* {secret}"),
        format!("SELECT \"{secret}\" FROM users"),
        format!("SET application_name = '{secret}'"),
        format!("SELECT '{}'", format!("{secret} ").repeat(20_000)),
        format!("SELECT length('{}')", format!("{secret} ").repeat(200_000)),
    ];
    for text in &texts {
        let _ = wait(client.simple_query(text));
    }
    wait_until(LIMIT, "all of them", || pgweir.json("/statements").as_array().unwrap().len() >= texts.len() - 1);
    let (_, page) = pgweir.get("/statements?limit=1000");
    // An identifier is no literal.
    assert_eq!(page.matches("4711").count(), 1, "{page}");
    assert!(page.contains(r#"SELECT \"s3cret-4711\" FROM users"#), "{page}");
    assert!(!pgweir.get("/metrics").1.contains("4711"));

    for n in 0..5 {
        wait(client.simple_query(&format!("SELECT {n} AS often"))).unwrap();
    }
    wait(client.simple_query("SELECT pg_sleep(2) AS long")).unwrap();
    wait(client.simple_query("SELECT generate_series(1, 5000) AS many")).unwrap();
    let first = |order: &str| {
        let list = pgweir.json(&format!("/statements?limit=1&order={order}"));
        assert_eq!(list.as_array().unwrap().len(), 1);
        list[0]["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(first("calls"), "SELECT $1 AS often");
    assert_eq!(first("rows"), "SELECT generate_series($1, $2) AS many");
    for order in ["total_time", "p95", "mean"] {
        assert_eq!(first(order), "SELECT pg_sleep($1) AS long", "{order}");
    }
    for wrong in ["/statements?order=size", "/statements?limit=-1", "/slow?limit=x"] {
        assert_eq!(pgweir.get(wrong).0, 400, "{wrong}");
    }
    wait(connect(&pgweir.console_url()).simple_query("RESET STATEMENTS")).unwrap();
    assert_eq!(pgweir.json("/statements"), Value::Array(Vec::new()));
}

#[test]
fn statements_beyond_the_bound_are_counted_together() {
    let builder = Pgweir::builder().cluster(support::cluster(), &[]).set("statements.max", 3);
    let pgweir = builder.set("statements.slow_threshold", "0s").start();
    let client = connect(&pgweir.url());
    for n in 0..10 {
        wait(client.simple_query(&format!("SELECT 1 AS a{n}"))).unwrap();
    }
    let list = pgweir.json("/statements");
    let by_calls = |fingerprint: &str| {
        let of = list.as_array().unwrap().iter().filter(|s| s["fingerprint"] == fingerprint);
        of.map(|s| s["calls"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!((list.as_array().unwrap().len(), by_calls("other")), (4, 7), "{list:#}");
    // In the log each keeps its own text and fingerprint.
    wait_until(LIMIT, "ten lines", || pgweir.slow_log().len() == 10);
    let texts: BTreeSet<String> = pgweir.slow_log().iter().map(|e| e["statement"].as_str().unwrap().into()).collect();
    assert_eq!(texts, (0..10).map(|n| format!("SELECT $1 AS a{n}")).collect());
}

#[test]
fn nodes_and_pools_tell_where_statements_ran() {
    let pgweir = pgweir();
    let client = connect(&pgweir.url());
    for _ in 0..30 {
        wait(client.simple_query("SELECT count(*) FROM users")).unwrap();
    }
    for _ in 0..6 {
        wait(client.simple_query("UPDATE users SET name = name WHERE id = 1")).unwrap();
    }
    let nodes = pgweir.json("/nodes");
    let ports: Vec<u16> = support::cluster().servers().map(|server| server.port()).collect();
    let node = |at: usize| {
        let name = format!("127.0.0.1:{}", ports[at]);
        nodes.as_array().unwrap().iter().find(|n| n["name"] == name).unwrap()
    };
    assert_eq!((&node(0)["role"], &node(0)["writes"]), (&"primary".into(), &6.into()), "{nodes:#}");
    let reads: Vec<u64> = (0..3).map(|at| node(at)["reads"].as_u64().unwrap()).collect();
    assert_eq!((reads.iter().sum::<u64>(), reads[0]), (30, 0));
    assert_eq!((node(1)["writes"].as_u64(), node(2)["writes"].as_u64()), (Some(0), Some(0)));
    for (at, reads) in reads.iter().enumerate() {
        assert_eq!((&node(at)["status"], &node(at)["database"]), (&"up".into(), &DATABASE.into()));
        let share = node(at)["share"].as_f64().unwrap();
        let queries = (reads + if at == 0 { 6 } else { 0 }) as f64;
        assert!((share - queries / 36.0 * 100.0).abs() < 0.01, "{share}");
    }
    let statements = pgweir.json("/statements?order=calls");
    let read = &statements[0];
    assert_eq!((&read["calls"], &read["writes"]), (&30.into(), &0.into()), "{statements:#}");
    let ran: u64 = read["nodes"].as_object().unwrap().values().map(|calls| calls.as_u64().unwrap()).sum();
    assert_eq!(ran, 30);
    let pools = pgweir.json("/pools");
    let pool = pools.as_array().unwrap().iter().find(|p| p["user"] == sample::USER).unwrap();
    let idle: u64 = pool["nodes"].as_array().unwrap().iter().map(|p| p["sv_idle"].as_u64().unwrap()).sum();
    assert_eq!(pool["sv_idle"], idle);
    assert_eq!(pool["cl_active"], 1);
    assert!(idle >= 2, "{pools:#}");
}

#[test]
fn metrics_are_valid_and_agree_with_the_rest() {
    let pgweir = pgweir();
    let client = connect(&format!("{}?application_name=a%22b%5Cc", pgweir.url()));
    for n in 0..7 {
        wait(client.simple_query(&format!("SELECT {n}, pg_sleep(0.01)"))).unwrap();
    }
    let reply = pgweir.request("GET", "/metrics", &[]);
    assert!(reply.head.contains("content-type: text/plain; version=0.0.4"), "{}", reply.head);
    let samples = Samples::read(&reply.body);
    assert_eq!(samples.sum("pgweir_queries_total", &["database=\"app\""]), 7.0);
    assert_eq!(samples.sum("pgweir_statement_duration_seconds_count", &[]), 7.0);
    assert!(samples.sum("pgweir_statement_duration_seconds_sum", &[]) >= 0.07);
    assert_eq!(samples.sum("pgweir_node_up", &[]), 3.0);
    assert_eq!(samples.sum("pgweir_node_queries_total", &[]), 7.0);
    assert_eq!(samples.sum("pgweir_pool_clients", &["user=\"app\"", "state=\"active\""]), 1.0);
    assert!(samples.sum("pgweir_received_bytes_total", &[]) > 7.0 * 25.0);
    // OpenMetrics for who asks for it.
    let open = pgweir.request("GET", "/metrics", &[("Accept", "application/openmetrics-text; version=1.0.0")]);
    assert!(open.head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{}", open.head);
    assert!(open.body.ends_with("# EOF\n"));
}

#[test]
fn posts_need_the_token() {
    let pgweir = pgweir();
    for headers in [&[][..], &[("Authorization", "Bearer wrong")], &[("Authorization", TOKEN)]] {
        let refused = pgweir.request("POST", "/reload", headers);
        assert_eq!(refused.status, 401, "{headers:?}");
        assert!(refused.head.contains("www-authenticate: bearer"), "{}", refused.head);
    }
    assert_eq!(pgweir.request("GET", "/reload", &[]).status, 405);
    assert_eq!(pgweir.request("POST", "/stats", &[]).status, 405);
    assert_eq!(pgweir.request("POST", "/nowhere", &[]).status, 404);
    assert!(!pgweir.stderr().contains("configuration reloaded"));
    assert_eq!(pgweir.post("/reload").status, 200);
    wait_until(LIMIT, "the reload", || pgweir.stderr().contains("configuration reloaded"));
    assert_eq!(pgweir.post("/cache/evict").status, 200);
    let without = Pgweir::builder().cluster(support::cluster(), &[]).start();
    assert_eq!(without.post("/quitquitquit").status, 403);
    assert_eq!(without.get("/livez").0, 200);
}

#[test]
fn quit_ends_with_success_once_clients_are_gone() {
    let pgweir = pgweir();
    let client = connect(&pgweir.url());
    wait(client.simple_query("BEGIN")).unwrap();
    assert_eq!(pgweir.post("/quitquitquit").status, 200);
    not_ready(&pgweir, "draining");
    assert_eq!(pgweir.get("/livez").0, 200);
    // Or it would never end; who operates it may still look.
    let refused = wait(tokio_postgres::connect(&pgweir.url(), tokio_postgres::NoTls)).map(drop).unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "57P03");
    assert_eq!(pgweir.console("SHOW CLIENTS").rows.len(), 1);
    wait(client.simple_query("COMMIT")).unwrap();
    drop(client);
    assert_eq!(pgweir.wait_exit(LIMIT).code(), Some(0));
}

#[test]
fn signals_end_it_when_they_should_and_not_before() {
    let pgweir =
        Pgweir::builder().cluster(support::cluster(), &[]).operator().set("listen.shutdown_grace", "1s").start();
    let client = connect(&pgweir.url());
    // What a reload does not do, it says.
    let config = fs::read_to_string(pgweir.config_path()).unwrap();
    let elsewhere = config.replace(&format!(":{}\"", pgweir.admin_address().port()), ":1\"");
    fs::write(pgweir.config_path(), elsewhere).unwrap();
    pgweir.signal(Signal::HUP);
    wait_until(LIMIT, "a word on the address", || pgweir.stderr().contains("a change of admin.http takes effect"));
    pgweir.signal(Signal::USR2);
    wait_until(LIMIT, "a word", || pgweir.stderr().contains("SIGUSR2"));
    wait(client.simple_query("BEGIN; SELECT 1")).unwrap();
    // The grace that SIGTERM has given is over in its time, whatever is asked for then.
    pgweir.signal(Signal::TERM);
    not_ready(&pgweir, "draining");
    assert_eq!(pgweir.post("/quitquitquit").status, 200);
    assert_eq!(pgweir.wait_exit(LIMIT).code(), Some(0));
}

#[test]
fn readiness_follows_the_nodes_and_the_drain() {
    let cluster = Cluster::builder().replicas(1).start().unwrap();
    sample::install(cluster.primary()).unwrap();
    let pgweir = Pgweir::builder().cluster(&cluster, &[1]).set("listen.shutdown_grace", "60s").start();
    cluster.replicas()[0].stop(Shutdown::Immediate).unwrap();
    let status = |at: usize| pgweir.json("/nodes")[at]["status"].clone();
    wait_until(LIMIT, "the replica down", || status(1) == "down");
    assert_eq!(pgweir.get("/readyz").0, 200);
    assert_eq!(pgweir.json("/stats")["database"]["nodesUp"], 1);
    assert!(pgweir.json("/nodes")[1]["reason"].is_string());
    cluster.primary().stop(Shutdown::Immediate).unwrap();
    not_ready(&pgweir, DATABASE);
    assert_eq!(pgweir.get("/livez").0, 200);
    let metrics = Samples::read(&pgweir.get("/metrics").1);
    assert_eq!(metrics.sum("pgweir_node_up", &[]), 0.0);
    cluster.primary().start().unwrap();
    wait_until(LIMIT, "readiness", || pgweir.get("/readyz").0 == 200);
    let client = connect(&pgweir.url());
    pgweir.signal(Signal::TERM);
    not_ready(&pgweir, "draining");
    drop(client);
    assert_eq!(pgweir.wait_exit(LIMIT).code(), Some(0));
}

fn not_ready(pgweir: &Pgweir, reason: &str) {
    wait_until(LIMIT, "503", || pgweir.get("/readyz").0 == 503);
    let (_, body) = pgweir.get("/readyz");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["status"], "not ready");
    assert!(body["reason"].as_str().unwrap().contains(reason), "{body}");
}
