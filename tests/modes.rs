//! Session and statement mode: what sets them apart from transaction mode, of a database and of a user.

mod support;

use pgweir::demo::sample;
use support::{LIMIT, Pgweir, Raw, Role, wait_until};

const SYNC: u8 = b'S';
const FLUSH: u8 = b'H';

/// A pool of so many connections to the primary; the replicas are there to be avoided.
fn pgweir(mode: &str, connections: i64) -> Pgweir {
    let builder = Pgweir::builder().cluster(support::cluster(), &[1, 1]).set("pool.mode", mode);
    builder.set("pool.max", connections).operator().start()
}

fn client(pgweir: &Pgweir) -> Raw {
    Raw::connect(pgweir.port(), sample::USER)
}

/// A Parse under a name, without parameters.
fn parse(name: &str, sql: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"].concat()
}

/// A Bind of a statement to the unnamed portal.
fn bind(name: &str) -> Vec<u8> {
    [b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"].concat()
}

const EXECUTE: &[u8] = b"\0\0\0\0\0";

#[test]
fn a_session_keeps_one_connection_and_knows_its_pid() {
    let pgweir = pgweir("session", 2);
    let mut first = client(&pgweir);
    let mut second = client(&pgweir);
    for client in [&mut first, &mut second] {
        for _ in 0..3 {
            let pid = client.pid.to_string();
            assert_eq!(client.value("SELECT pg_backend_pid()"), pid);
        }
        assert_eq!(client.value("SELECT pg_is_in_recovery()"), "f");
    }
    assert_ne!(first.pid, second.pid);
}

#[test]
fn a_session_that_ends_leaves_nothing_to_the_next() {
    let pgweir = pgweir("session", 1);
    let mut first = client(&pgweir);
    for sql in [
        "CREATE TEMPORARY TABLE left_behind (n int)",
        "SET application_name = 'left behind'",
        "SELECT pg_advisory_lock(424242)",
        "PREPARE left_behind AS SELECT 1",
        "LISTEN left_behind",
    ] {
        first.run(sql);
    }
    first.frame(b'P', &parse("by_protocol", "SELECT 2")).frame(SYNC, b"").flush().until_ready();
    let pid = first.pid;
    drop(first);
    let mut second = client(&pgweir);
    assert_eq!(second.pid, pid, "the same connection");
    for (sql, expected) in [
        ("SELECT to_regclass('left_behind') IS NULL", "t"),
        ("SHOW application_name", ""),
        ("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 424242", "0"),
        ("SELECT count(*) FROM pg_prepared_statements", "0"),
        ("SELECT count(*) FROM pg_listening_channels()", "0"),
    ] {
        assert_eq!(second.value(sql), expected, "{sql}");
    }
}

/// `pool.reset = "close"`: nor does a process leave what no reset takes from it.
#[test]
fn a_session_may_have_a_process_of_its_own() {
    let reset = |how| {
        let builder = Pgweir::builder().cluster(support::cluster(), &[1, 1]).set("pool.mode", "session");
        builder.set("pool.max", 1).set("pool.reset", how).operator().start()
    };
    let leave = "SET modes.trace = 'behind'; CREATE TEMPORARY TABLE left_behind (n int); DO 'BEGIN END'";
    let left = "SELECT (pg_my_temp_schema() <> 0, current_setting('modes.trace', true) IS NOT NULL,
                EXISTS (SELECT FROM pg_settings WHERE name LIKE 'plpgsql.%'))";
    for (how, same, leaves) in [("discard", true, "(t,t,t)"), ("close", false, "(f,f,f)")] {
        let pgweir = reset(how);
        let mut first = client(&pgweir);
        first.run(leave);
        let pid = first.pid;
        drop(first);
        let mut second = client(&pgweir);
        assert_eq!(second.pid == pid, same, "{how}");
        assert_eq!(second.value(left), leaves, "{how}");
    }
}

#[test]
fn sql_and_protocol_share_the_names_of_statements() {
    let pgweir = pgweir("session", 1);
    let mut client = client(&pgweir);
    client.frame(b'P', &parse("by_protocol", "SELECT 11")).frame(SYNC, b"").flush().until_ready();
    assert_eq!(client.value("EXECUTE by_protocol"), "11");
    assert_eq!(client.value("SELECT name FROM pg_prepared_statements"), "by_protocol");
    client.run("PREPARE by_sql AS SELECT 12");
    let row = client.frame(b'B', &bind("by_sql")).frame(b'E', EXECUTE).frame(SYNC, b"").flush().until(b'D');
    assert!(row.ends_with(b"12"));
    client.until_ready();
    for name in ["by_sql", "by_protocol"] {
        let code = client.frame(b'P', &parse(name, "SELECT 1")).frame(SYNC, b"").flush().until_error();
        assert_eq!(code, "42P05", "{name}");
        client.until_ready();
    }
    client.run("DEALLOCATE by_protocol");
    assert_eq!(client.frame(b'B', &bind("by_protocol")).frame(SYNC, b"").flush().until_error(), "26000");
    client.until_ready();
    // The name is free again, for both.
    client.frame(b'P', &parse("by_protocol", "SELECT 13")).frame(SYNC, b"").flush().until_ready();
    assert_eq!(client.value("EXECUTE by_protocol"), "13");
    client.frame(b'C', b"Sby_protocol\0").frame(SYNC, b"").flush().until(b'3');
    client.until_ready();
    assert_eq!(client.query("EXECUTE by_protocol").flush().until_error(), "26000");
}

#[test]
fn cancel_reaches_the_session_that_has_the_key() {
    let pgweir = pgweir("session", 2);
    let mut first = client(&pgweir);
    let mut second = client(&pgweir);
    for client in [&mut first, &mut second] {
        client.query("SELECT /* to be cancelled */ pg_sleep(60)").flush();
    }
    let running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%to be cancelled%60)'";
    let primary = support::cluster().primary();
    wait_until(LIMIT, "both to run", || primary.psql(running).unwrap() == "2");
    first.cancel();
    assert_eq!(first.until_error(), "57014");
    first.until_ready();
    assert_eq!(primary.psql(running).unwrap(), "1");
    second.cancel();
    assert_eq!(second.until_error(), "57014");
}

#[test]
fn a_session_listens_by_itself() {
    let pgweir = pgweir("session", 2);
    let mut listener = client(&pgweir);
    let mut notifier = client(&pgweir);
    listener.run("LISTEN in_session");
    assert_eq!(listener.value("SELECT pg_listening_channels()"), "in_session");
    for (by_itself, pid) in [(true, listener.pid), (false, notifier.pid)] {
        let sender = if by_itself { &mut listener } else { &mut notifier };
        sender.query("NOTIFY in_session, 'x'").flush();
        if !by_itself {
            sender.until_ready();
        }
        assert_eq!(listener.until(b'A')[..4], pid.to_be_bytes());
        if by_itself {
            listener.until_ready();
        }
    }
}

#[test]
fn a_backend_that_is_terminated_ends_its_session_with_its_own_words() {
    let pgweir = pgweir("session", 1);
    let mut client = client(&pgweir);
    support::cluster().primary().psql(&format!("SELECT pg_terminate_backend({})", client.pid)).unwrap();
    assert_eq!(client.until_closed().as_deref(), Some("57P01"));
    let mut next = self::client(&pgweir);
    assert_eq!(next.value("SELECT 1"), "1");
}

#[test]
fn a_full_pool_has_the_next_session_wait_for_one_to_end() {
    let pgweir = pgweir("session", 1);
    let first = client(&pgweir);
    let waiter = std::thread::spawn({
        let port = pgweir.port();
        move || Raw::connect(port, sample::USER).pid
    });
    let waiting = || pgweir.console("SHOW POOLS").rows.iter().any(|row| row["maxwait_us"] != "0");
    wait_until(LIMIT, "the second login to wait", waiting);
    let pid = first.pid;
    drop(first);
    assert_eq!(waiter.join().unwrap(), pid);
}

#[test]
fn a_users_mode_wins_over_its_databases() {
    let primary = support::cluster().primary();
    let roles = ["mode_session", "mode_statement", "mode_default"].map(|name| Role::create(primary, name));
    let builder = Pgweir::builder().cluster(support::cluster(), &[1]).set("pool.mode", "transaction");
    let builder = builder.operator().user_with(roles[0].name, "pool_mode", "session");
    let builder = builder.user_with(roles[1].name, "pool_mode", "statement").user_with(roles[2].name, "pool_mode", "");
    let pgweir = builder.set("pool.max", 2).start();
    let mut clients = roles.map(|role| Raw::connect(pgweir.port(), role.name));
    assert_eq!(clients[0].value("SELECT pg_backend_pid()"), clients[0].pid.to_string());
    assert_eq!(clients[1].query("BEGIN").flush().until_error(), "0A000");
    assert_eq!(clients[2].run("BEGIN"), b'T');
    for (table, column) in [("USERS", "name"), ("POOLS", "user")] {
        let rows = pgweir.console(&format!("SHOW {table}")).rows;
        for (role, mode) in roles.iter().zip(["session", "statement", "transaction"]) {
            let row = rows.iter().find(|row| row[column] == role.name).unwrap();
            let shown = row["pool_mode"].as_str();
            // Of a user without one, SHOW USERS says nothing.
            assert!(shown == mode || (mode == "transaction" && table == "USERS" && shown.is_empty()), "{row:?}");
        }
    }
}

#[test]
fn statement_mode_refuses_transaction_blocks_and_goes_on() {
    let pgweir = pgweir("statement", 1);
    let mut client = client(&pgweir);
    let mut other = self::client(&pgweir);
    for sql in ["BEGIN", "START TRANSACTION READ ONLY", "SELECT 1; BEGIN; SELECT 2", "/* hidden */ begin work"] {
        assert_eq!(client.query(sql).flush().until_error(), "0A000", "{sql}");
        assert_eq!(client.until_ready(), b'I');
        assert_eq!(client.value("SELECT 5"), "5");
        assert_eq!(other.value("SELECT 6"), "6");
    }
    assert_eq!(client.execute("SELECT 1").execute("BEGIN").frame(SYNC, b"").flush().until_error(), "0A000");
    assert_eq!(client.until_ready(), b'I');
    // A pipeline is one implicit transaction, which is none of the client's making.
    client.execute("SELECT 1").execute("SELECT 2").frame(SYNC, b"").flush().until_ready();
    client.run("SET application_name = 'kept'");
    assert_eq!(client.value("SHOW application_name"), "kept");
}

#[test]
fn statement_mode_ends_a_client_that_begins_a_block_out_of_sight() {
    let pgweir = pgweir("statement", 1);
    let mut behind_a_flush = client(&pgweir);
    behind_a_flush.execute("SELECT 1").frame(FLUSH, b"").flush().until(b'C');
    behind_a_flush.execute("BEGIN").frame(SYNC, b"").flush();
    assert_eq!(behind_a_flush.until_closed().as_deref(), Some("0A000"));
    let mut pinned = client(&pgweir);
    pinned.run("CREATE TEMPORARY TABLE pinning (n int)");
    assert_eq!(pinned.query("BEGIN").flush().until_closed().as_deref(), Some("0A000"));
    let mut next = client(&pgweir);
    assert_eq!(next.value("SELECT to_regclass('pinning') IS NULL"), "t");
}
