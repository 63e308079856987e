use super::*;
use crate::admin::fixture;

/// Column names as PgBouncer has them, in its order.
const PGBOUNCER: &[(&str, &str)] = &[
    (
        "DATABASES",
        "name host port database force_user pool_size min_pool_size reserve_pool_size server_lifetime pool_mode \
         load_balance_hosts max_connections current_connections max_client_connections current_client_connections \
         paused disabled",
    ),
    (
        "POOLS",
        "database user cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active sv_active_cancel \
         sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us pool_mode load_balance_hosts",
    ),
    (
        "CLIENTS",
        "type user database replication state addr port local_addr local_port connect_time request_time wait wait_us \
         close_needed ptr link remote_pid tls application_name prepared_statements id",
    ),
    (
        "SERVERS",
        "type user database replication state addr port local_addr local_port connect_time request_time wait wait_us \
         close_needed ptr link remote_pid tls application_name prepared_statements id",
    ),
    (
        "SOCKETS",
        "type user database replication state addr port local_addr local_port connect_time request_time wait wait_us \
         close_needed ptr link remote_pid tls application_name prepared_statements id recv_pos pkt_pos pkt_remain \
         send_pos send_remain pkt_avail send_avail",
    ),
    (
        "STATS",
        "database total_server_assignment_count total_xact_count total_query_count total_received total_sent \
         total_xact_time total_query_time total_wait_time total_client_parse_count total_server_parse_count \
         total_bind_count total_client_login_count avg_server_assignment_count avg_xact_count avg_query_count avg_recv \
         avg_sent avg_xact_time avg_query_time avg_wait_time avg_client_parse_count avg_server_parse_count \
         avg_bind_count avg_client_login_count",
    ),
    (
        "STATS_TOTALS",
        "database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time query_time \
         wait_time client_parse_count server_parse_count bind_count client_login_count",
    ),
    (
        "STATS_AVERAGES",
        "database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time query_time \
         wait_time avg_client_parse_count avg_server_parse_count avg_bind_count client_login_count",
    ),
    ("TOTALS", "name value"),
    ("LISTS", "list items"),
    (
        "USERS",
        "name pool_size reserve_pool_size pool_mode max_user_connections current_connections \
         max_user_client_connections current_client_connections",
    ),
    ("CONFIG", "key value default changeable"),
    ("VERSION", "version"),
    ("STATE", "key value"),
    ("MEM", "name size used free memtotal"),
    (
        "FDS",
        "fd task user database addr port cancel link client_encoding std_strings datestyle timezone password \
         scram_client_key scram_server_key",
    ),
    ("DNS_HOSTS", "hostname ttl addrs"),
    ("DNS_ZONES", "zonename serial count"),
    ("PEERS", "peer_id host port pool_size"),
    ("PEER_POOLS", "peer_id cl_active_cancel_req cl_waiting_cancel_req sv_active_cancel sv_login"),
];

async fn answers(sql: &str) -> Vec<Answer> {
    let start = Instant::now();
    fixture::admin(start).answer(sql, start).await
}

async fn one(sql: &str) -> Answer {
    let mut answers = answers(sql).await;
    assert_eq!(answers.len(), 1, "{sql}");
    answers.remove(0)
}

/// Columns and rows of an answer, cell by name.
async fn table(sql: &str) -> (Vec<Column>, Vec<std::collections::HashMap<&'static str, Option<String>>>) {
    let Answer::Rows { columns, rows, tag } = one(sql).await else { panic!("{sql} has no rows") };
    assert_eq!(tag, "SHOW");
    let named = rows
        .into_iter()
        .map(|row| {
            assert_eq!(row.len(), columns.len(), "{sql}");
            columns.iter().map(|column| column.0).zip(row).collect()
        })
        .collect();
    (columns, named)
}

async fn sqlstate(sql: &str) -> (&'static str, String) {
    match one(sql).await {
        Answer::Error { sqlstate, message } => (sqlstate, message),
        other => panic!("{sql}: {other:?}"),
    }
}

#[tokio::test]
async fn columns_are_pgbouncers_with_ours_at_the_end() {
    for (name, expected) in PGBOUNCER {
        let (columns, _) = table(&format!("SHOW {name}")).await;
        let names: Vec<_> = columns.iter().map(|column| column.0).collect();
        let expected: Vec<_> = expected.split_whitespace().collect();
        assert_eq!(names[..expected.len()], expected, "{name}");
        let own: &[&str] = match *name {
            "CLIENTS" => &["pinned_by"],
            "SERVERS" => &["node"],
            "SOCKETS" => &["node", "pinned_by"],
            _ => &[],
        };
        assert_eq!(&names[expected.len()..], own, "{name}");
    }
}

#[tokio::test]
async fn every_name_that_help_gives_is_answered() {
    for name in SHOWS {
        assert!(matches!(one(&format!("show {name};")).await, Answer::Rows { .. }), "{name}");
    }
}

#[tokio::test]
async fn types_are_pgbouncers() {
    let of = |columns: &[Column], name| columns.iter().find(|column| column.0 == name).map(|column| column.1);
    let (pools, _) = table("SHOW POOLS").await;
    assert_eq!((of(&pools, "user"), of(&pools, "sv_idle")), (Some(25), Some(23)));
    let (stats, _) = table("SHOW STATS").await;
    assert_eq!((of(&stats, "database"), of(&stats, "total_query_count")), (Some(25), Some(1700)));
    let (hosts, _) = table("SHOW DNS_HOSTS").await;
    assert_eq!(of(&hosts, "ttl"), Some(20));
}

#[tokio::test]
async fn names_of_hosts_are_listed_once_with_where_they_lead() {
    let (_, rows) = table("SHOW DNS_HOSTS").await;
    assert_eq!(rows.len(), 1);
    let get = |name| rows[0][name].as_deref();
    assert_eq!((get("hostname"), get("addrs")), (Some("db.test"), Some("127.0.0.1")));
    let (_, lists) = table("SHOW LISTS").await;
    assert!(
        lists.iter().any(|row| row["list"].as_deref() == Some("dns_names") && row["items"].as_deref() == Some("1"))
    );
}

#[tokio::test]
async fn pools_of_several_nodes_are_one_row() {
    let (_, rows) = table("SHOW POOLS").await;
    assert_eq!(rows.len(), 1);
    let get = |name| rows[0][name].as_deref();
    assert_eq!((get("cl_active"), get("sv_idle")), (Some("20"), Some("8")));
    assert_eq!((get("maxwait"), get("maxwait_us")), (Some("1"), Some("250000")));
    assert_eq!((get("pool_mode"), get("load_balance_hosts")), (Some("transaction"), None));
}

#[tokio::test]
async fn values_are_those_of_the_sources() {
    let (_, clients) = table("SHOW CLIENTS").await;
    let get = |name| clients[0][name].as_deref();
    assert_eq!((get("type"), get("id"), get("ptr"), get("link")), (Some("C"), Some("16"), Some("0x10"), Some("0x11")));
    assert_eq!((get("connect_time"), get("pinned_by")), (Some("2026-01-15 10:00:00 UTC"), Some("temporary table")));
    let (_, stats) = table("SHOW STATS").await;
    assert_eq!(stats[0]["total_query_count"].as_deref(), Some("100"));
    assert_eq!(stats[0]["total_query_time"].as_deref(), Some("5050000"));
    assert_eq!(stats[0]["avg_query_time"].as_deref(), Some("50500"));
    let (_, lists) = table("SHOW LISTS").await;
    assert!(
        lists.iter().any(|row| row["list"].as_deref() == Some("used_clients") && row["items"].as_deref() == Some("24"))
    );
    let (_, databases) = table("SHOW DATABASES").await;
    assert_eq!((databases[0]["paused"].as_deref(), databases[0]["disabled"].as_deref()), (Some("0"), Some("1")));
    let (_, state) = table("SHOW STATE").await;
    assert_eq!(state[0]["value"].as_deref(), Some("yes"));
    let (_, mem) = table("SHOW MEM").await;
    assert_eq!((mem[0]["used"].as_deref(), mem[0]["free"].as_deref()), (Some("1"), Some("9")));
    assert_eq!(mem[0]["size"], mem[0]["memtotal"]);
    let (_, sockets) = table("SHOW SOCKETS").await;
    assert_eq!(sockets.len(), 2);
}

#[tokio::test]
async fn totals_are_of_all_databases() {
    let (_, rows) = table("SHOW TOTALS").await;
    let value = |name: &str| rows.iter().find(|row| row["name"].as_deref() == Some(name)).unwrap()["value"].clone();
    assert_eq!(rows.len(), 24);
    assert_eq!(
        (value("total_query_count").as_deref(), value("avg_query_count").as_deref()),
        (Some("100"), Some("100"))
    );
}

#[tokio::test]
async fn own_tables_show_nodes_statements_and_slow_ones() {
    let (_, nodes) = table("SHOW NODES").await;
    assert_eq!((nodes[1]["share"].as_deref(), nodes[1]["lag_ms"].as_deref()), (Some("75"), Some("12")));
    assert_eq!(
        (nodes[2]["status"].as_deref(), nodes[2]["reason"].as_deref()),
        (Some("down"), Some("connection refused"))
    );
    let (_, statements) = table("SHOW STATEMENTS").await;
    let get = |name| statements[0][name].as_deref();
    assert_eq!((get("fingerprint"), get("calls"), get("errors")), (Some("00000000000000ab"), Some("100"), Some("1")));
    assert_eq!((get("nodes"), get("mean"), get("max")), (Some("replica:5432=100"), Some("50.5"), Some("100")));
    let (_, slow) = table("SHOW SLOW").await;
    assert_eq!((slow.len(), slow[0]["duration_ms"].as_deref()), (1, Some("150.25")));
}

#[tokio::test]
async fn drivers_get_sensible_replies() {
    let complete = |tag: &str| Answer::Complete(tag.into());
    assert_eq!(one("SET extra_float_digits = 3").await, complete("SET"));
    assert_eq!(one("SET SESSION application_name TO 'x'").await, complete("SET"));
    assert_eq!(one("SET TIME ZONE 'UTC'").await, complete("SET"));
    assert_eq!(one("DISCARD ALL").await, complete("DISCARD ALL"));
    assert_eq!(one("").await, Answer::Empty);
    assert_eq!(one(" ; -- ping").await, Answer::Empty);
    let (columns, rows) = table("SHOW extra_float_digits").await;
    assert_eq!((columns[0], rows[0]["extra_float_digits"].as_deref()), (("extra_float_digits", 25), Some("1")));
    let (columns, _) = table("show transaction isolation level").await;
    assert_eq!(columns[0].0, "transaction_isolation");
    let expected =
        Answer::Rows { columns: vec![("?column?", 23)], rows: vec![vec![Some("1".into())]], tag: "SELECT 1".into() };
    assert_eq!(one("select 1;").await, expected);
    assert_eq!(answers("BEGIN; select 1; COMMIT").await.len(), 3);
}

#[tokio::test]
async fn commands_go_to_the_source_and_reset_is_done_here() {
    assert_eq!(one("PAUSE app").await, Answer::Complete("PAUSE".into()));
    assert_eq!(one("SET pool.max = 80").await, Answer::Complete("SET".into()));
    let start = Instant::now();
    let admin = fixture::admin(start);
    admin.answer("RESET STATEMENTS", start).await;
    let Answer::Rows { rows, .. } = admin.answer("SHOW STATEMENTS", start).await.remove(0) else { panic!() };
    assert!(rows.is_empty());
}

#[tokio::test]
async fn an_error_ends_the_string() {
    let answers = answers("select 1; nonsense; select 2").await;
    assert_eq!(answers.len(), 2);
    assert!(matches!(answers[1], Answer::Error { sqlstate: "42601", .. }));
}

#[tokio::test]
async fn errors_say_what_is_known_or_not_built() {
    for sql in ["nonsense", "SHOW nonsense", "select * from t", "select a b", "SHOW", "SELECT"] {
        let (state, message) = sqlstate(sql).await;
        assert_eq!(state, "42601", "{sql}");
        assert!(message.contains("POOLS") && message.contains("KILL_CLIENT"), "{message}");
    }
    assert_eq!(sqlstate("SHOW ALERTS").await.0, "0A000");
    assert_eq!(sqlstate("SHOW 'unterminated").await.0, "42601");
    let start = Instant::now();
    let bare = fixture::admin_of(start, crate::admin::Sources::none());
    let answer = bare.answer("PAUSE", start).await.remove(0);
    assert_eq!(answer, Answer::Error { sqlstate: "0A000", message: "PAUSE is not built yet".into() });
}

#[tokio::test]
async fn explain_route_takes_the_statement_as_it_is() {
    let Answer::Rows { rows, tag, .. } = one("explain  ROUTE /* pgweir: primary */ select ';' -- x\n;").await else {
        panic!()
    };
    assert_eq!(tag, "EXPLAIN");
    assert_eq!(rows[0][0].as_deref(), Some("about: /* pgweir: primary */ select ';' -- x"));
    assert_eq!(sqlstate("EXPLAIN ROUTE ;").await.0, "42601");
}
