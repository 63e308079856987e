use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use super::*;
use crate::admin::Sources;
use crate::admin::fixture::{self, TOKEN};
use crate::stats::slow::tests::entry as slow_entry;

/// A running server; dropping it shuts it down.
struct Server {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

async fn server_with(admin: Admin, limits: Limits) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(serve(listener, Arc::new(admin), limits, async {
        let _ = stopped.await;
    }));
    Server { address, _stop: stop }
}

async fn server() -> Server {
    server_with(fixture::admin(Instant::now()), Limits::default()).await
}

struct Got {
    status: u16,
    head: String,
    body: String,
}

impl Got {
    fn json(&self) -> Value {
        assert!(self.head.contains("content-type: application/json"), "{}", self.head);
        serde_json::from_str(&self.body).unwrap()
    }
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends raw bytes and reads until the server closes.
    async fn raw(&self, request: &str) -> Got {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = Vec::new();
        timeout(Duration::from_secs(20), stream.read_to_end(&mut text)).await.expect("an end").unwrap();
        let text = String::from_utf8(text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Got { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    async fn request(&self, method: &str, path: &str, headers: &str) -> Got {
        self.raw(&format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n")).await
    }

    async fn get(&self, path: &str) -> Got {
        self.request("GET", path, "").await
    }
}

/// Reads until the server closes; true if it does so in time.
async fn closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await.is_ok()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn sorted(names: &str) -> Vec<&str> {
    let mut names: Vec<_> = names.split(' ').collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn stats_are_the_contract_name_by_name() {
    let got = server().await.get("/stats").await;
    assert_eq!(got.status, 200);
    let stats = got.json();
    assert_eq!(keys(&stats), sorted("timestamp uptime version cpu memory database application"));
    assert_eq!(keys(&stats["cpu"]), sorted("usage load"));
    assert_eq!(keys(&stats["memory"]), sorted("used total free resident"));
    let database = sorted("connections activeQueries slowQueries cacheHitRate waiting nodes nodesUp");
    assert_eq!(keys(&stats["database"]), database);
    let application = sorted("responseTime p50 p95 p99 throughput errorRate activeUsers availability");
    assert_eq!(keys(&stats["application"]), application);
    let timestamp = stats["timestamp"].as_str().unwrap();
    assert!(timestamp.len() == 24 && timestamp.ends_with('Z') && timestamp.as_bytes()[19] == b'.', "{timestamp}");
    timestamp.parse::<jiff::Timestamp>().unwrap();
    assert_eq!(stats["cpu"]["load"].as_array().unwrap().len(), 3);
    assert_eq!(stats["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn stats_are_computed_from_what_happened() {
    let stats = server().await.get("/stats").await.json();
    let (database, application) = (&stats["database"], &stats["application"]);
    assert_eq!((&database["connections"], &database["activeQueries"]), (&18.into(), &6.into()));
    assert_eq!((&database["slowQueries"], &database["waiting"]), (&1.into(), &4.into()));
    assert_eq!((&database["nodes"], &database["nodesUp"]), (&3.into(), &2.into()));
    assert_eq!(application["responseTime"], 50.5);
    assert_eq!((&application["errorRate"], &application["availability"]), (&1.0.into(), &99.0.into()));
    assert_eq!(application["activeUsers"], 24);
    let p95 = application["p95"].as_f64().unwrap();
    assert!((94.0..96.5).contains(&p95), "{p95}");
    let throughput = application["throughput"].as_f64().unwrap();
    assert!(throughput > 0.0 && throughput <= 100.0, "{throughput}");
}

#[tokio::test]
async fn statements_have_text_times_and_nodes() {
    let server = server().await;
    let all = server.request("GET", "/statements?order=p95&limit=5", &bearer(TOKEN)).await.json();
    let statement = &all[0];
    assert_eq!((&statement["fingerprint"], &statement["calls"]), (&"00000000000000ab".into(), &100.into()));
    assert_eq!(statement["text"], "select \"a\" from t where b = $1");
    assert_eq!((&statement["rows"], &statement["errors"]), (&200.into(), &1.into()));
    assert_eq!((&statement["total_time"], &statement["exec"]["mean"]), (&5050.0.into(), &50.5.into()));
    assert_eq!(statement["nodes"]["replica:5432"], 100);
    let names = sorted("mean p50 p95 p99 max histogram");
    assert_eq!((keys(&statement["exec"]), keys(&statement["wait"])), (names.clone(), names));
    let last = statement["exec"]["histogram"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["le"], &last["count"]), (&Value::Null, &100.into()));
    assert_eq!(server.get("/statements?limit=0").await.json(), serde_json::json!([]));
    assert_eq!(server.get("/statements?order=nonsense").await.status, 400);
    assert_eq!(server.get("/statements?limit=-1").await.status, 400);
}

#[tokio::test]
async fn pools_nodes_and_slow_statements() {
    let server = server().await;
    let pools = server.get("/pools").await.json();
    assert_eq!((&pools[0]["sv_idle"], &pools[0]["nodes"][1]["sv_idle"]), (&8.into(), &4.into()));
    assert_eq!(pools[0]["nodes"][1]["node"], "replica:5432");
    let nodes = server.get("/nodes").await.json();
    assert_eq!((&nodes[1]["share"], &nodes[1]["lag_ms"]), (&75.0.into(), &12.0.into()));
    assert_eq!((&nodes[0]["role"], &nodes[2]["status"]), (&"primary".into(), &"down".into()));
    let slow = server.get("/slow?limit=10").await.json();
    assert_eq!((&slow[0]["level"], &slow[0]["duration_ms"]), (&"slow".into(), &150.25.into()));
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

#[tokio::test]
async fn sql_text_is_for_who_has_the_token() {
    let show_literals = |admin: &Admin| {
        let literal = SlowEntry {
            normalized: Some("select $1".into()),
            parameters: Some(vec![Some("s3cret value".into())]),
            advice: vec!["about 'literal'".into()],
            ..slow_entry("select 'literal'")
        };
        admin.stats.slow.record(literal);
    };
    let admin = fixture::admin(Instant::now());
    show_literals(&admin);
    let server = server_with(admin, Limits::default()).await;
    for path in ["/slow", "/statements"] {
        // Not so much as a part of a page fails for want of it: the figures are there.
        let without = server.get(path).await;
        assert!(without.status == 200 && !without.body.contains("select"), "{}", without.body);
        assert!(!without.body.contains("literal") && !without.body.contains("s3cret"), "{}", without.body);
        let (of, figure) = if path == "/slow" { ("statement", "duration_ms") } else { ("text", "calls") };
        assert!(without.json()[0][of].is_null() && without.json()[0][figure].is_number(), "{}", without.body);
        assert_eq!(server.request("GET", path, &bearer("wrong")).await.status, 401);
        assert!(server.request("GET", path, &bearer(TOKEN)).await.body.contains("select"));
        // What a proxy in between has asked for is not ours.
        assert_eq!(server.request("GET", path, "authorization: Basic YTpi\r\n").await.status, 200);
    }
    let all = server.request("GET", "/slow", &bearer(TOKEN)).await.json();
    assert_eq!((&all[0]["statement"], &all[0]["parameters"][0]), (&"select 'literal'".into(), &"s3cret value".into()));

    let admin = fixture::admin(Instant::now());
    admin.reconfigure(crate::config::Admin { http: None, users: Vec::new(), token: None });
    show_literals(&admin);
    let server = server_with(admin, Limits::default()).await;
    let slow = server.get("/slow").await;
    assert!(!slow.body.contains("literal") && !slow.body.contains("s3cret"), "{}", slow.body);
    let texts =
        [&slow.json()[0]["statement"], &slow.json()[1]["statement"]].map(|text| text.as_str().unwrap().to_owned());
    assert_eq!(texts, ["select $1", "select \"a\" from t where b = $1"]);
    assert!(server.get("/statements").await.body.contains("select"));
}

#[tokio::test]
async fn history_has_what_tick_kept() {
    let start = Instant::now();
    let admin = fixture::admin(start);
    for second in 0..11 {
        admin.tick(start + Duration::from_secs(second));
    }
    let server = server_with(admin, Limits::default()).await;
    let history = server.get("/history").await.json();
    assert_eq!(history.as_array().unwrap().len(), 3);
    assert_eq!(history[2]["uptime"], 10.0);
    assert_eq!(server.get("/history?minutes=x").await.status, 400);
}

#[tokio::test]
async fn health_says_why_not() {
    let server = server().await;
    assert_eq!(server.get("/livez").await.status, 200);
    let got = server.get("/readyz").await;
    assert_eq!((got.status, &got.json()["reason"]), (503, &"starting".into()));
    let ready = Sources { ready: Box::new(|| Ok(())), ..Sources::none() };
    let server = server_with(fixture::admin_of(Instant::now(), ready), Limits::default()).await;
    assert_eq!(server.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn metrics_speak_what_is_accepted() {
    let server = server().await;
    let plain = server.get("/metrics").await;
    assert!(plain.head.contains("content-type: text/plain; version=0.0.4"), "{}", plain.head);
    assert!(plain.body.contains("pgweir_queries_total{database=\"app\"} 100\n"));
    let open = server.request("GET", "/metrics", "accept: application/openmetrics-text\r\n").await;
    assert!(open.head.contains("application/openmetrics-text") && open.body.ends_with("# EOF\n"));
}

#[tokio::test]
async fn the_dashboard_is_one_page_without_foreign_parts() {
    let got = server().await.get("/").await;
    assert!(got.status == 200 && got.head.contains("text/html") && got.head.contains("content-security-policy"));
    for foreign in ["http://", "https://", "<link", "src=", "@import", "innerHTML", "url("] {
        assert!(!got.body.contains(foreign), "{foreign}");
    }
    for path in ["/stats", "/nodes", "/pools", "/statements", "/slow"] {
        assert!(got.body.contains(path), "{path} is not polled");
    }
    assert!(!got.body.contains("Promise.all"), "one part that fails takes the others with it");
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods() {
    let server = server().await;
    let got = server.get("/nonsense").await;
    assert!(got.status == 404 && got.json()["error"].as_str().unwrap().contains("/nonsense"));
    for later in ["/alerts", "/scaling", "/advice", "/events"] {
        let got = server.get(later).await;
        assert_eq!((got.status, got.json()), (404, serde_json::json!({"error": "not built yet"})));
    }
    let got = server.request("DELETE", "/stats", "").await;
    assert!(got.status == 405 && got.head.contains("allow: get, head"), "{}", got.head);
    let got = server.get("/reload").await;
    assert!(got.status == 405 && got.head.contains("allow: post"), "{}", got.head);
    let got = server.request("HEAD", "/stats", "").await;
    assert!(got.status == 200 && got.body.is_empty());
}

#[tokio::test]
async fn posts_need_the_token() {
    let server = server().await;
    let none = server.request("POST", "/reload", "").await;
    assert!(none.status == 401 && none.head.contains("www-authenticate: bearer"), "{}", none.head);
    for wrong in ["Bearer nonsense", "Bearer ", "Bearer", "Basic s3cret", TOKEN, "Bearer s3cretx"] {
        let got = server.request("POST", "/reload", &format!("authorization: {wrong}\r\n")).await;
        assert_eq!(got.status, 401, "{wrong}");
    }
    let good = format!("authorization: bearer {TOKEN}\r\n");
    let got = server.request("POST", "/reload", &good).await;
    assert_eq!((got.status, got.json()), (200, serde_json::json!({"done": "RELOAD"})));
    for (path, tag) in [("/drain", "DRAIN"), ("/quitquitquit", "QUIT"), ("/cache/evict?table=t", "EVICT CACHE")] {
        assert_eq!(server.request("POST", path, &good).await.json()["done"], tag);
    }
}

#[tokio::test]
async fn without_a_configured_token_posts_are_forbidden() {
    let admin = fixture::admin(Instant::now());
    admin.reconfigure(crate::config::Admin { http: None, users: Vec::new(), token: None });
    let server = server_with(admin, Limits::default()).await;
    assert_eq!(server.request("POST", "/reload", "authorization: Bearer s3cret\r\n").await.status, 403);
}

#[tokio::test]
async fn a_command_that_fails_says_so() {
    let server = server_with(fixture::admin_of(Instant::now(), Sources::none()), Limits::default()).await;
    let got = server.request("POST", "/drain", &format!("authorization: Bearer {TOKEN}\r\n")).await;
    assert_eq!((got.status, &got.json()["sqlstate"]), (501, &"0A000".into()));
}

#[tokio::test]
async fn bodies_are_bounded() {
    let server = server().await;
    let body = "x".repeat(MAX_BODY + 1);
    let got = server
        .raw(&format!(
            "POST /reload HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {TOKEN}\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await;
    assert_eq!(got.status, 413);
}

fn hasty() -> Limits {
    Limits { header_timeout: Duration::from_millis(50), ..Limits::default() }
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let server = server_with(fixture::admin(Instant::now()), hasty()).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /stats HTTP/1.1\r\nhost:").await.unwrap();
    assert!(closed(&mut stream).await);
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let server = server_with(fixture::admin(Instant::now()), hasty()).await;
    assert!(closed(&mut server.connect().await).await);
}

#[tokio::test]
async fn a_kept_connection_that_idles_is_closed() {
    let server = server_with(fixture::admin(Instant::now()), hasty()).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(closed(&mut stream).await);
}

#[tokio::test]
async fn connections_do_not_outlive_their_age() {
    let age = Duration::from_millis(50);
    let limits = Limits { max_age: age, header_timeout: Duration::from_secs(60), ..Limits::default() };
    let server = server_with(fixture::admin(Instant::now()), limits).await;
    assert!(closed(&mut server.connect().await).await);
}

#[tokio::test]
async fn one_connection_too_many_is_told_so_and_a_freed_place_is_used_again() {
    let limits = Limits { connections: 1, probes: 0, header_timeout: Duration::from_secs(60), ..Limits::default() };
    let server = server_with(fixture::admin(Instant::now()), limits).await;
    let mut first = server.connect().await;
    first.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    first.readable().await.unwrap();
    let mut second = server.connect().await;
    let mut text = String::new();
    second.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 503"), "{text}");
    drop(first);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut next = server.connect().await;
        let _ = next.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let mut text = String::new();
        if next.read_to_string(&mut text).await.is_ok() && text.starts_with("HTTP/1.1 200") {
            break;
        }
        assert!(Instant::now() < deadline, "the place was never freed");
    }
}

/// A kept connection's answer, as far as it came at once.
async fn ask(stream: &mut TcpStream, path: &str) -> String {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = Vec::new();
    while !text.windows(4).any(|end| end == b"\r\n\r\n") {
        assert!(timeout(Duration::from_secs(20), stream.read_buf(&mut text)).await.unwrap().unwrap() > 0);
    }
    String::from_utf8(text).unwrap().to_lowercase()
}

#[tokio::test]
async fn readers_never_take_the_places_of_probes() {
    let limits = Limits { connections: 4, probes: 1, header_timeout: Duration::from_secs(60), ..Limits::default() };
    let server = server_with(fixture::admin(Instant::now()), limits).await;
    let mut readers = [server.connect().await, server.connect().await];
    for reader in &mut readers {
        assert!(!ask(reader, "/stats").await.contains("connection: close"));
    }
    let _idle = server.connect().await;
    assert_eq!(server.get("/livez").await.status, 200);
    assert_eq!(server.get("/stats").await.status, 503);
    // Three of four: who asks again comes anew, so that others have their turn.
    assert!(ask(&mut readers[0], "/stats").await.contains("connection: close"));
    assert!(closed(&mut readers[0]).await);
}

#[tokio::test]
async fn shutdown_ends_serving() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin = Arc::new(fixture::admin(Instant::now()));
    timeout(Duration::from_secs(20), serve(listener, admin, Limits::default(), async {})).await.unwrap();
}
