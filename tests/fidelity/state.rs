//! What a session has set follows it from connection to connection, and reaches no other client.

use crate::support::differential::{Arena, step};
use crate::support::wire::{Frames, Wire};
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
