//! What a session has set follows it from connection to connection, and reaches no other client.

use crate::support::differential::{Arena, step};
use crate::support::wire::{Frames, Login, Wire};
use crate::support::{Pgweir, cluster};

fn frames() -> Frames {
    Frames::new()
}

/// Parse, Bind and Execute with parameter types and formats.
fn bound(sql: &str, oids: &[u32], formats: &[i16], values: &[Option<&[u8]>]) -> Frames {
    frames().parse_typed("", sql, oids).bind_formats("", "", formats, values, &[]).execute("", 0).sync()
}

#[test]
fn set_config_of_bound_values_follows_its_client() {
    let arena = Arena::new();
    let show = |name: &str| step(frames().query(&format!("SELECT current_setting('{name}', true)")), "TDCZ");
    let all = "SELECT set_config($1, $2, $3)";
    arena.same(&[
        step(frames().run("SELECT set_config('my.own', $1, false)", &["it's mine"]).sync(), "12DCZ"),
        show("my.own"),
        step(bound(all, &[], &[], &[Some(b"My.Other"), Some(b"a"), Some(b"f")]), "12DCZ"),
        show("my.other"),
        step(bound(all, &[25, 1043, 16], &[1], &[Some(b"work_mem"), Some(b"7MB"), Some(b"\0")]), "12DCZ"),
        show("work_mem"),
        step(bound(all, &[], &[], &[Some(b"search_path"), Some(b"\"$user\", pg_catalog"), None]), "12DCZ"),
        show("search_path"),
        // Local to the transaction, and one that was not to be.
        step(bound(all, &[], &[], &[Some(b"my.own"), Some(b"for now"), Some(b"t")]), "12DCZ"),
        show("my.own"),
        step(frames().query("BEGIN"), "CZ"),
        step(frames().run("SELECT set_config('my.own', $1, false)", &["undone"]).sync(), "12DCZ"),
        show("my.own"),
        step(frames().query("ROLLBACK"), "CZ"),
        show("my.own"),
        step(frames().parse("s", "SELECT set_config('work_mem', $1, false)").sync(), "1Z"),
        step(frames().bind("", "s", &["8MB"]).execute("", 0).bind("", "s", &["9MB"]).execute("", 0).sync(), "2DC2DCZ"),
        show("work_mem"),
        step(bound("SELECT set_config('work_mem', $1, false)", &[], &[], &[None]), "12DCZ"),
        show("work_mem"),
    ]);
}

/// A client that sets a value it binds keeps no connection: more clients than connections do so at once.
#[test]
fn set_config_of_bound_values_pins_nobody() {
    let pgweir = Pgweir::builder().cluster(cluster(), &[]).set("pool.max", 1).start();
    let mut clients: Vec<_> = (0..5).map(|_| Wire::connect(pgweir.port())).collect();
    for round in 0..2 {
        for (n, client) in clients.iter_mut().enumerate() {
            let value = format!("{round} {n}");
            client.ask(&frames().run("SELECT set_config('my.own', $1, false)", &[&value]).sync(), "12DCZ");
        }
        for (n, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.value("SELECT current_setting('my.own')"), format!("{round} {n}"));
        }
    }
    // Nor does one that cannot be followed, where the server tells of it.
    let jit = "SELECT current_setting('jit') AS cur, set_config('jit', 'off', false) AS new";
    for client in &mut clients {
        client.query(jit);
    }
    assert_eq!(clients[0].value("SHOW jit"), "off");
    let mut next = Wire::connect(pgweir.port());
    assert_eq!(next.value("SHOW jit"), "on");
}

/// A function that is called by its number does what it does by its name.
#[test]
fn what_a_function_call_sets_follows_its_client() {
    const SET_CONFIG: u32 = 2078;
    let arena = Arena::new();
    let show = |value| step(frames().query(value), "TDCZ");
    arena.same(&[
        step(frames().call(SET_CONFIG, &[b"work_mem", b"7MB", b"\0"]), "VZ"),
        show("SHOW work_mem"),
        step(frames().query("BEGIN"), "CZ"),
        step(frames().call(SET_CONFIG, &[b"work_mem", b"8MB", b"\0"]), "VZ"),
        show("SHOW work_mem"),
        step(frames().query("ROLLBACK"), "CZ"),
        show("SHOW work_mem"),
    ]);
}

/// What drivers say to a connection that they take back into their own pools.
#[test]
fn reset_strings_of_drivers() {
    let probe = || {
        let sql = "SELECT current_setting('work_mem'), current_setting('TimeZone'),
            (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
            (SELECT count(*) FROM pg_cursors WHERE is_holdable), (SELECT count(*) FROM pg_listening_channels())";
        step(frames().query(sql), "TDCZ")
    };
    let mut script = Vec::new();
    for (reset, replies) in [
        ("SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL", "TDCCCCSZ"),
        ("DISCARD ALL", "CSZ"),
        ("RESET ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); CLOSE ALL", "CCTDCCSZ"),
    ] {
        script.extend([
            step(frames().query("SET work_mem = '7MB'; SET TimeZone = 'Asia/Tokyo'"), "CCSZ"),
            step(frames().query("SELECT pg_advisory_lock(7)"), "TDCZ"),
            step(frames().query("BEGIN; DECLARE h CURSOR WITH HOLD FOR SELECT 1; COMMIT"), "CCCZ"),
            step(frames().query("LISTEN news"), "CZ"),
            step(frames().query(reset), replies),
            probe(),
            step(frames().query("SELECT 1"), "TDCZ"),
            probe(),
        ]);
    }
    Arena::new().same_pinned(&script);
}

/// Reports come with each change, and only then, whichever connection it is made on.
#[test]
fn parameter_status_follows_every_change() {
    Arena::new().same(&[
        step(frames().query("SET TimeZone = 'asia/tokyo'"), "CSZ"),
        step(frames().query("SET TimeZone = 'Asia/Tokyo'"), "CZ"),
        step(frames().run("SET application_name = 'mine'", &[]).run("SET DateStyle = german", &[]).sync(), "12C12CSSZ"),
        step(frames().query("SHOW TimeZone; SHOW DateStyle"), "TDCTDCZ"),
        step(frames().query("BEGIN; SET TimeZone = 'UTC'"), "CCSZ"),
        step(frames().query("ROLLBACK"), "CSZ"),
        step(frames().query("SELECT set_config('IntervalStyle', 'iso_8601', false)"), "TDCSZ"),
        step(frames().query("RESET ALL"), "CSSSSZ"),
        step(frames().query("SELECT 1"), "TDCZ"),
    ]);
}

/// DateStyle is two settings in one: a SET of one of them keeps the other, whatever the connection had.
#[test]
fn half_a_datestyle_keeps_the_other_half() {
    let arena = Arena::new();
    let show = || step(frames().query("SELECT current_setting('DateStyle'), date '1999-01-18'"), "TDCZ");
    let set = |sql: &str, expected| step(frames().query(sql), expected);
    arena.same(&[
        set("SET DateStyle TO sql", "CSZ"),
        set("SET DateStyle TO dmy", "CSZ"),
        show(),
        set("SET DateStyle = iso", "CSZ"),
        show(),
        set("SET DateStyle = 'us'", "CSZ"),
        show(),
        step(bound("SELECT set_config('datestyle', $1, false)", &[], &[], &[Some(b"YMD")]), "12DCSZ"),
        show(),
        set("BEGIN; SET DateStyle = german", "CCSZ"),
        show(),
        set("ROLLBACK", "CSZ"),
        show(),
        set("SET DateStyle = E'\\x73ql'", "CSZ"),
        show(),
        set("SET DateStyle = postgres, \"default\"", "CSZ"),
        show(),
        set("RESET DateStyle", "CSZ"),
        set("SET DateStyle = ymd", "CSZ"),
        show(),
    ]);
    // Nor does a half at the login take the other from whom it meets on the connection.
    let pgweir = Pgweir::builder().cluster(cluster(), &[]).set("pool.max", 1).start();
    let mut other = Wire::connect(pgweir.port());
    for (startup, expected) in [("ymd", "ISO, YMD"), ("sql", "SQL, MDY")] {
        let mut client =
            Wire::log_in(pgweir.port(), &Login { parameters: &[("DateStyle", startup)], ..Login::default() });
        for _ in 0..2 {
            other.query("SET DateStyle = 'Postgres, DMY'");
            assert_eq!(client.value("SHOW DateStyle"), expected);
        }
    }
}

/// What a setting names may be found by another setting.
#[test]
fn settings_are_said_again_in_an_order_that_works() {
    let arena = Arena::new();
    arena.setup(
        "CREATE SCHEMA said_again; GRANT USAGE ON SCHEMA said_again TO PUBLIC; \
         CREATE TEXT SEARCH CONFIGURATION said_again.own (COPY = simple)",
    );
    let show = || step(frames().query("SHOW default_text_search_config; SELECT to_tsvector('the')"), "TDCTDCZ");
    arena.same(&[
        step(frames().query("SET search_path = said_again"), "CZ"),
        step(frames().query("SET default_text_search_config = own"), "CZ"),
        show(),
        step(frames().query("SET search_path = public"), "CZ"),
        show(),
        show(),
    ]);
}

/// As many rows as were asked for: the server does not say that the statement is done.
#[test]
fn set_config_behind_a_row_limit_follows_its_client() {
    let pgweir = Pgweir::builder().cluster(cluster(), &[]).set("pool.max", 1).start();
    let (mut client, mut other) = (Wire::connect(pgweir.port()), Wire::connect(pgweir.port()));
    let set =
        frames().parse("", "SELECT set_config('my.tenant', $1, false)").bind("", "", &["own"]).execute("", 1).sync();
    client.ask(&set, "12DsZ");
    assert_eq!(other.value("SELECT coalesce(current_setting('my.tenant', true), '')"), "");
    assert_eq!(client.value("SELECT current_setting('my.tenant')"), "own");
}

/// A value is read as its client said it, whatever another client has left on the connection.
#[test]
fn values_are_said_again_under_their_own_encoding_and_syntax() {
    let pgweir = Pgweir::builder().cluster(cluster(), &[]).set("pool.max", 1).start();
    let (mut client, mut other) = (Wire::connect(pgweir.port()), Wire::connect(pgweir.port()));
    client.query("SET my.name = 'José'");
    client.query(r"SET my.path = 'C:\t\'");
    for left in ["client_encoding = latin1", "client_encoding = sjis", "standard_conforming_strings = off"] {
        other.query(&format!("SET {left}"));
        assert_eq!(client.value("SELECT current_setting('my.name')"), "José", "{left}");
        assert_eq!(client.value("SELECT current_setting('my.path')"), r"C:\t\", "{left}");
        assert_eq!(
            other.value(&format!("SHOW {}", left.split(' ').next().unwrap())).to_lowercase(),
            left.rsplit(' ').next().unwrap()
        );
        other.query("DISCARD ALL");
    }
    client.query("SET standard_conforming_strings = off");
    other.query("SET standard_conforming_strings = off");
    assert_eq!(client.value("SELECT current_setting('my.path')"), r"C:\t\");
}

#[test]
fn a_copy_behind_a_reset_is_not_waited_for() {
    let login = Login { parameters: &[("search_path", "public")], ..Login::default() };
    for mode in ["transaction", "session"] {
        let pgweir = Pgweir::builder().cluster(cluster(), &[]).set("pool.mode", mode).start();
        let mut client = Wire::log_in(pgweir.port(), &login);
        client.query("CREATE TEMP TABLE copied (n int)");
        client.send(&frames().query("RESET search_path; COPY copied FROM STDIN; SELECT count(*) FROM copied"));
        client.until(b'G');
        client.ask(&frames().copy_data(b"1\n").copy_done(), "CTDCZ");
    }
}

#[test]
fn a_failed_transaction_is_chained_with_its_settings() {
    Arena::new().same(&[
        step(frames().query("BEGIN"), "CZ"),
        step(frames().query("SELECT 1/0"), "EZ"),
        step(frames().query("COMMIT AND CHAIN"), "CZ"),
        step(frames().query("SET work_mem = '64MB'"), "CZ"),
        step(frames().query("ROLLBACK"), "CZ"),
        step(frames().query("SHOW work_mem"), "TDCZ"),
        step(frames().query("SET work_mem = '64MB'"), "CZ"),
        step(frames().query("SHOW work_mem"), "TDCZ"),
    ]);
}

/// Made where no text says so.
#[test]
fn temporary_objects_made_out_of_sight_stay_with_their_client() {
    let pgweir = Pgweir::builder().cluster(cluster(), &[]).set("pool.max", 2).start();
    let mut client = Wire::connect(pgweir.port());
    let mut other = Wire::connect(pgweir.port());
    for (make, read) in [
        ("DO $$ BEGIN EXECUTE 'CREATE TE' || 'MP TABLE hidden_t AS SELECT 1 AS n'; END $$", "SELECT n FROM hidden_t"),
        ("DO $$ BEGIN CREATE TEMP VIEW hidden_v AS SELECT 1 AS n; END $$", "SELECT n FROM hidden_v"),
        ("DO $$ BEGIN EXECUTE 'CREATE TYPE pg_te' || 'mp.hidden_y AS (n int)'; END $$", "SELECT (ROW(1)::hidden_y).n"),
        ("CREATE FUNCTION pg_temp.hidden_f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "SELECT pg_temp.hidden_f()"),
    ] {
        client.query(make);
        for _ in 0..3 {
            assert_eq!(client.value(read), "1", "{make}");
            other.query("BEGIN; SELECT 1");
            assert_eq!(other.query(read)[0].tag, b'E', "{make}");
            assert_eq!(client.value(read), "1", "{make}");
            other.query("ROLLBACK");
        }
    }
}
