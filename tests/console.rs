//! The admin console as operators and their tools use it: PgBouncer's columns, figures that match what was done.

mod support;

use pgweir::demo::sample::{DATABASE, PASSWORD, USER};
use support::client::{connect, spawn, wait};
use support::console::{OPERATOR, Table};
use support::{LIMIT, Pgweir, wait_until};
use tokio_postgres::SimpleQueryMessage;

fn pgweir() -> Pgweir {
    Pgweir::builder().cluster(support::cluster(), &[1, 2]).operator().start()
}

/// The names in PgBouncer 1.25's `admin.c` and `stats.c`; more may follow them.
const COLUMNS: &[(&str, &str)] = &[
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
        "STATS",
        "database total_server_assignment_count total_xact_count total_query_count total_received total_sent \
         total_xact_time total_query_time total_wait_time total_client_parse_count total_server_parse_count \
         total_bind_count",
    ),
    ("LISTS", "list items"),
    ("USERS", "name"),
    ("CONFIG", "key value default changeable"),
    ("VERSION", "version"),
    ("MEM", "name size used free memtotal"),
    ("STATE", "key value"),
];

#[test]
fn tables_begin_with_pgbouncers_columns() {
    let pgweir = pgweir();
    for (name, expected) in COLUMNS {
        let expected: Vec<&str> = expected.split_whitespace().collect();
        let columns = pgweir.console(&format!("SHOW {name}")).columns;
        assert_eq!(columns[..expected.len()], expected, "SHOW {name}");
    }
    assert!(pgweir.console("show version;").rows[0]["version"].starts_with("pgweir "));
}

/// `collector.go` of prometheus-community/pgbouncer_exporter: what it runs, and what it reads from the answers.
#[test]
fn the_exporter_of_pgbouncer_finds_what_it_asks_for() {
    let pgweir = pgweir();
    pgweir.psql("SELECT 1");
    let databases = pgweir.console("SHOW DATABASES");
    let database = databases.row("name", DATABASE);
    assert_eq!((&*database["pool_mode"], &*database["pool_size"], &*database["paused"]), ("transaction", "5", "0"));
    assert_eq!(database["port"], support::cluster().primary().port().to_string());
    let lists = pgweir.console("SHOW LISTS");
    let read = ["databases", "users", "pools", "free_clients", "used_clients", "login_clients", "free_servers"];
    for list in [&read[..], &["used_servers", "dns_names", "dns_zones", "dns_queries", "dns_pending"]].concat() {
        lists.number("list", list, "items");
    }
    let config = pgweir.console("SHOW CONFIG");
    for key in ["max_client_conn", "max_user_connections"] {
        config.number("key", key, "value");
    }
    assert_eq!(pgweir.console("SHOW STATS").column("database"), [DATABASE]);
    let numbers = ["cl_active", "cl_waiting", "sv_active", "sv_idle", "sv_used", "sv_tested", "sv_login", "maxwait"];
    for column in numbers {
        pgweir.console("SHOW POOLS").number("user", USER, column);
    }
}

#[test]
fn others_are_refused_with_28000() {
    let pgweir = pgweir();
    for database in ["pgweir", "pgbouncer"] {
        let refused = pgweir.psql_output(&["-c", "SHOW POOLS", &pgweir.url_of(USER, PASSWORD, database)]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains("may not use the admin console"), "{said}");
        // psql does not show the SQLSTATE of a failed login.
        let url = pgweir.url_of(USER, PASSWORD, database);
        let error = wait(tokio_postgres::connect(&url, tokio_postgres::NoTls)).map(drop).unwrap_err();
        assert_eq!(error.code().unwrap().code(), "28000");
        let operator = pgweir.url_of(OPERATOR, OPERATOR, database);
        assert!(pgweir.psql_output(&["-c", "SHOW VERSION", &operator]).status.success());
    }
    let wrong = pgweir.url_of(OPERATOR, "wrong", "pgweir");
    let error = wait(tokio_postgres::connect(&wrong, tokio_postgres::NoTls)).map(drop).unwrap_err();
    assert_eq!(error.code().unwrap().code(), "28P01");
}

#[test]
fn the_extended_protocol_is_refused_and_the_session_lives_on() {
    let pgweir = pgweir();
    let client = connect(&pgweir.console_url());
    for _ in 0..2 {
        let error = wait(client.query("SHOW POOLS", &[])).unwrap_err();
        assert_eq!(error.code().unwrap().code(), "0A000", "{error}");
        let rows = wait(client.simple_query("SHOW VERSION; SHOW STATE")).unwrap();
        let completed = rows.iter().filter(|m| matches!(m, SimpleQueryMessage::CommandComplete(_))).count();
        assert_eq!(completed, 2);
    }
    let error = wait(client.simple_query("DROP TABLE users")).unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42601");
    wait(client.simple_query("SHOW STATE")).unwrap();
}

#[test]
fn the_figures_of_show_stats_are_those_of_the_work_done() {
    let pgweir = Pgweir::builder().cluster(support::cluster(), &[]).operator().start();
    let client = connect(&pgweir.url());
    let before = stats(&pgweir);
    assert_eq!(before("total_client_login_count"), 1);
    let large = "x".repeat(100_000);
    // One statement, one transaction.
    wait(client.simple_query(&format!("SELECT '{large}'"))).unwrap();
    // Three statements, one transaction.
    for sql in ["BEGIN", "SELECT pg_sleep(0.05)", "COMMIT"] {
        wait(client.simple_query(sql)).unwrap();
    }
    // Parse, Describe, Sync are a segment without a statement; then two Binds.
    let statement = wait(client.prepare("SELECT $1::int")).unwrap();
    for n in [1, 2] {
        wait(client.query_one(&statement, &[&n])).unwrap();
    }
    // An error counts as well.
    wait(client.simple_query("SELECT 1/0")).unwrap_err();
    let after = stats(&pgweir);
    let gained = |name: &str| after(name) - before(name);
    assert_eq!(gained("total_query_count"), 7);
    assert_eq!(gained("total_xact_count"), 1 + 1 + 1 + 2 + 1);
    assert_eq!(gained("total_bind_count"), 2);
    assert_eq!(gained("total_client_parse_count"), 1);
    assert_eq!(gained("total_server_parse_count"), 1);
    assert!(gained("total_query_time") >= 50_000 && gained("total_xact_time") >= gained("total_query_time"));
    for name in ["total_received", "total_sent"] {
        let bytes = gained(name);
        assert!((100_000..110_000).contains(&bytes), "{name}: {bytes}");
    }
}

fn stats(pgweir: &Pgweir) -> impl Fn(&str) -> u64 + use<> {
    let row = pgweir.console("SHOW STATS").row("database", DATABASE).clone();
    move |name| row[name].parse().unwrap()
}

#[test]
fn waiting_clients_are_seen_and_their_wait_is_no_work() {
    let pgweir = Pgweir::builder().cluster(support::cluster(), &[]).operator().set("pool.max", 1).start();
    let (holder, waiter) = (connect(&pgweir.url()), connect(&pgweir.url()));
    wait(holder.simple_query("BEGIN; SELECT 1")).unwrap();
    let before = stats(&pgweir);
    let answer = spawn(async move { waiter.simple_query("SELECT 'waited'").await.map(drop) });
    let pool = || pgweir.console("SHOW POOLS");
    let of = |table: &Table, column: &str| table.number("user", USER, column);
    wait_until(LIMIT, "a waiting client with some wait", || {
        let table = pool();
        of(&table, "cl_waiting") == 1 && of(&table, "maxwait") * 1_000_000 + of(&table, "maxwait_us") > 200_000
    });
    let table = pool();
    assert_eq!((of(&table, "cl_active"), of(&table, "sv_active"), of(&table, "sv_idle")), (1, 1, 0));
    assert_eq!(pgweir.console("SHOW CLIENTS").column("state"), ["active", "waiting"]);
    assert_eq!(pgweir.json("/stats")["database"]["waiting"], 1);
    wait(holder.simple_query("COMMIT")).unwrap();
    wait(answer).unwrap().unwrap();
    let table = pool();
    assert_eq!((of(&table, "cl_waiting"), of(&table, "sv_active"), of(&table, "sv_idle")), (0, 0, 1));
    let after = stats(&pgweir);
    let waited = after("total_wait_time") - before("total_wait_time");
    assert!(waited >= 200_000, "{waited}");
    // The holder's transaction began before; the waiter's own took no part of the wait.
    let queries = after("total_query_time") - before("total_query_time");
    assert!(queries < waited, "{queries} of {waited}");
    let statements = pgweir.json("/statements");
    let waited = statement(&statements, "SELECT $1");
    assert!(waited["wait"]["max"].as_f64().unwrap() >= 200.0, "{waited}");
    assert!(waited["exec"]["max"].as_f64() < waited["wait"]["max"].as_f64(), "{waited}");
}

fn statement<'a>(statements: &'a serde_json::Value, text: &str) -> &'a serde_json::Value {
    let found = statements.as_array().unwrap().iter().find(|s| s["text"] == text);
    found.unwrap_or_else(|| panic!("no {text} in {statements:#}"))
}

#[test]
fn servers_are_those_that_postgres_knows() {
    let pgweir = pgweir();
    let clients: Vec<_> = (0..3).map(|_| connect(&pgweir.url())).collect();
    for client in &clients[..2] {
        wait(client.simple_query("BEGIN; SELECT 1")).unwrap();
    }
    wait(clients[2].simple_query("SELECT 1")).unwrap();
    let servers = pgweir.console("SHOW SERVERS");
    let primary = support::cluster().primary();
    let named = format!("127.0.0.1:{}", primary.port());
    for row in servers.rows.iter().filter(|row| row["node"] == named) {
        let sql = format!("SELECT state, usename, datname FROM pg_stat_activity WHERE pid = {}", row["remote_pid"]);
        let expected = match &*row["state"] {
            "active" => "idle in transaction|app|app",
            "idle" => "idle|app|app",
            other => panic!("{other}"),
        };
        assert_eq!(primary.psql(&sql).unwrap(), expected, "{row:?}");
        assert_eq!(row["port"], primary.port().to_string());
    }
    // What its client runs began behind its own beginning; so did the rest of one that has served.
    assert!(servers.rows.iter().all(|row| row["request_time"] >= row["connect_time"]), "{servers:#?}");
    let active: Vec<_> = servers.rows.iter().filter(|row| row["state"] == "active").collect();
    assert_eq!(active.len(), 2);
    // Clients and servers name each other.
    let shown = pgweir.console("SHOW CLIENTS");
    for server in active {
        assert_eq!(shown.row("ptr", &server["link"])["link"], server["ptr"]);
    }
    assert_eq!(shown.rows.iter().filter(|row| row["link"].is_empty()).count(), 1);
    let pools = pgweir.console("SHOW POOLS");
    assert_eq!(pools.number("user", USER, "sv_active"), 2);
    assert_eq!(pools.number("user", USER, "sv_idle") as usize, servers.rows.len() - 2);
    assert_eq!(pools.number("user", USER, "cl_active"), 3);
    assert_eq!(pgweir.console("SHOW LISTS").number("list", "used_servers", "items") as usize, servers.rows.len());
    assert_eq!(pgweir.console("SHOW LISTS").number("list", "used_clients", "items"), 3);
    assert_eq!(pgweir.console("SHOW DATABASES").number("name", DATABASE, "current_client_connections"), 3);
    drop(clients);
    wait_until(LIMIT, "no client left", || pgweir.console("SHOW CLIENTS").rows.is_empty());
}

#[test]
fn clients_show_what_they_hold_and_what_pins_them() {
    let pgweir = pgweir();
    let client = connect(&format!("{}?application_name=shop", pgweir.url()));
    let row = || pgweir.console("SHOW CLIENTS").row("user", USER).clone();
    assert_eq!((&*row()["application_name"], &*row()["prepared_statements"]), ("shop", "0"));
    let statements: Vec<_> = (0..3).map(|n| wait(client.prepare(&format!("SELECT {n}"))).unwrap()).collect();
    assert_eq!(row()["prepared_statements"], "3");
    // On their servers, too, under names that all clients share.
    let held = || {
        let servers = pgweir.console("SHOW SERVERS").rows;
        servers.iter().map(|row| row["prepared_statements"].parse::<u64>().unwrap()).sum::<u64>()
    };
    assert_eq!(held(), 3);
    drop(statements);
    // tokio-postgres closes them with its next message.
    wait(client.batch_execute("SET application_name = 'shop 2'; SELECT pg_advisory_lock(4711)")).unwrap();
    wait_until(LIMIT, "no statement left", || row()["prepared_statements"] == "0");
    assert_eq!((&*row()["application_name"], &*row()["pinned_by"]), ("shop 2", "advisory lock"));
    assert_ne!(row()["link"], "");
    let server = pgweir.console("SHOW SERVERS").row("ptr", &row()["link"]).clone();
    assert_eq!((&*server["application_name"], &*server["state"]), ("shop 2", "active"));
    wait(client.batch_execute("SELECT pg_advisory_unlock_all()")).unwrap();
    wait_until(LIMIT, "no pin left", || row()["pinned_by"].is_empty() && row()["link"].is_empty());
}

#[test]
fn set_holds_until_the_file_is_read_again() {
    let pgweir = pgweir();
    let size = || pgweir.console("SHOW DATABASES").number("name", DATABASE, "pool_size");
    pgweir.console("SET pool.max = 3");
    pgweir.console("SET statements.slow_threshold TO '7s'");
    let config = pgweir.console("SHOW CONFIG");
    let shown = |key: &str| {
        let row = config.row("key", key);
        (&*row["value"], &*row["default"], &*row["changeable"])
    };
    assert_eq!((size(), shown("pool.max")), (3, ("3", "50", "yes")));
    assert_eq!(shown("statements.slow_threshold"), ("7s", "100ms", "yes"));
    assert_eq!(shown("routing.freshness"), ("session", "session", "no"));
    assert_eq!(shown("admin.token").0, "********");
    assert!(!pgweir.stderr().contains("take effect with a restart"), "{}", pgweir.stderr());
    let console = connect(&pgweir.console_url());
    for (set, code) in [("routing.freshness = 'table'", "55P02"), ("pool.max = 0", "22023"), ("no.such = 1", "42704")] {
        let error = wait(console.simple_query(&format!("SET {set}"))).unwrap_err();
        assert_eq!(error.code().unwrap().code(), code, "{set}");
    }
    pgweir.console("RELOAD");
    wait_until(LIMIT, "the file's", || size() == 5);
}

#[test]
fn an_ejected_replica_serves_nothing_until_it_is_admitted() {
    let [primary, first, second] = [0, 1, 2].map(|at| support::cluster().servers().nth(at).unwrap().port());
    let others = format!(
        "[[databases]]\nname = \"*\"\ndbname = \"app\"\ntls = \"disable\"\nnodes = [\
         {{ host = \"127.0.0.1\", port = {primary}, role = \"primary\" }}, \
         {{ host = \"127.0.0.1\", port = {first}, role = \"replica\" }}]\n"
    );
    let builder = Pgweir::builder().cluster(support::cluster(), &[1, 1]).operator().set("pool.min", 1);
    let pgweir = builder.more(&others).start();
    let [primary, first, second] = [primary, first, second].map(|port| format!("127.0.0.1:{port}"));
    let client = connect(&pgweir.url());
    let in_database = |database: &str, node: &str, column: &str| {
        let shown = pgweir.console("SHOW NODES").rows;
        let row = shown.iter().find(|row| row["database"] == database && row["node"] == node);
        row.map(|row| row[column].clone()).unwrap()
    };
    let of = |node: &str, column: &str| in_database(DATABASE, node, column);
    let reads = |times: usize| {
        let before = of(&first, "queries").parse::<u64>().unwrap();
        (0..times).for_each(|_| drop(wait(client.simple_query("SELECT 1")).unwrap()));
        of(&first, "queries").parse::<u64>().unwrap() - before
    };
    assert_eq!(reads(20), 10);
    pgweir.console(&format!("EJECT {first}"));
    assert_eq!(
        (&*of(&first, "status"), &*of(&first, "reason"), &*of(&second, "status")),
        ("ejected", "by EJECT", "up")
    );
    assert_eq!(reads(20), 0);
    // So it is for a database that is made only now.
    drop(connect(&pgweir.url_of(USER, PASSWORD, "later")));
    assert_eq!(in_database("later", &first, "status"), "ejected");
    // Nor is it kept from what its operator wants to do with it.
    wait_until(LIMIT, "no connection to it", || of(&first, "connections") == "0");
    assert_eq!(pgweir.json("/stats")["database"]["nodesUp"], 3);
    pgweir.console(&format!("ADMIT {first}"));
    assert_eq!((&*of(&first, "status"), &*of(&first, "reason")), ("up", ""));
    wait_until(LIMIT, "its share", || reads(20) == 10);
    let console = connect(&pgweir.console_url());
    for (node, code) in [(&*primary, "55000"), ("nowhere:1", "22023")] {
        let command = format!("EJECT {node}");
        let error = wait(console.simple_query(&command)).unwrap_err();
        assert_eq!(error.code().unwrap().code(), code, "{command}");
    }
}

#[test]
fn killing_a_client_ends_it_alone() {
    let pgweir = pgweir();
    let (killed, other) = (connect(&pgweir.url()), connect(&pgweir.url()));
    let ids = pgweir.console("SHOW CLIENTS");
    let first = ids.rows.iter().map(|row| row["id"].parse::<u64>().unwrap()).min().unwrap();
    let console = connect(&pgweir.console_url());
    wait(console.simple_query(&format!("KILL_CLIENT {first}"))).unwrap();
    wait_until(LIMIT, "the killed client's end", || killed.is_closed());
    wait(other.simple_query("SELECT 1")).unwrap();
    let error = wait(console.simple_query("KILL_CLIENT 999999")).unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22023");
}
