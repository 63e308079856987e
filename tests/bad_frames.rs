//! What breaks the protocol after the login ends that client with 08P01, and harms nobody else.

mod support;

use std::io::Write;
use std::sync::OnceLock;

use proptest::prelude::*;
use support::wire::{Frame, Frames, Wire};
use support::{LIMIT, Pgweir, cluster, wait_until};

fn pgweir() -> Pgweir {
    Pgweir::builder().cluster(cluster(), &[]).set("pool.max", 1).set("pool.acquire_timeout", "10s").start()
}

/// Frames by which a client is told of its fault; Postgres itself closes without a word where a length is impossible.
fn ended(client: &mut Wire, what: &str) {
    let frames = client.rest();
    let last = frames.iter().rev().find(|f| f.tag == b'E').unwrap_or_else(|| panic!("{what}: {frames:?}"));
    assert_eq!(last.sqlstate(), "08P01", "{what}");
}

fn frames() -> Frames {
    Frames::new()
}

/// Bytes after which no server could tell where the next message begins, or of a kind that no client sends.
fn lost() -> Vec<(&'static str, Frames)> {
    vec![
        ("unknown type", frames().frame(b'!', b"what")),
        ("type of a server", frames().frame(b'Z', b"I")),
        ("zero type", frames().frame(0, b"")),
        ("a password too late", frames().frame(b'p', b"secret\0")),
        ("length 0", frames().raw(b"Q\0\0\0\0")),
        ("length 3", frames().raw(b"Q\0\0\0\x03")),
        ("negative length", frames().raw(b"Q\xff\xff\xff\xff")),
        ("length over 1 GB", frames().raw(b"d\x40\0\0\0")),
        ("large Sync", frames().frame(b'S', &[0; 10_001])),
        ("large Describe", frames().describe(b'S', &"n".repeat(20_000))),
        ("large Execute", frames().execute(&"n".repeat(20_000), 0)),
        ("large Close", frames().raw(b"C\0\0\xff\xffS")),
    ]
}

/// Whole frames with bodies that are not.
fn malformed() -> Vec<(&'static str, Frames)> {
    vec![
        ("empty Query", frames().frame(b'Q', b"")),
        ("Query without NUL", frames().frame(b'Q', b"SELECT 1")),
        ("Query with NUL inside", frames().frame(b'Q', b"SELECT\x001\0")),
        ("empty Parse", frames().frame(b'P', b"").sync()),
        ("Parse without text", frames().frame(b'P', b"s\0").sync()),
        ("Parse without NUL", frames().frame(b'P', b"s\0SELECT 1").sync()),
        ("Parse without types", frames().frame(b'P', b"s\0SELECT 1\0").sync()),
        ("Parse of too few types", frames().frame(b'P', b"s\0SELECT 1\0\0\x02\0\0\0\x17").sync()),
        ("Parse with a rest", frames().frame(b'P', b"s\0SELECT 1\0\0\0rest").sync()),
        ("empty Bind", frames().frame(b'B', b"").sync()),
        ("Bind without names", frames().frame(b'B', b"portal").sync()),
        ("Bind without formats", frames().parse("", "SELECT 1").frame(b'B', b"\0\0").sync()),
        ("Bind without values", frames().parse("", "SELECT $1").frame(b'B', b"\0\0\0\0\0\x01").sync()),
        ("Bind of a cut value", frames().parse("", "SELECT $1").frame(b'B', b"\0\0\0\0\0\x01\0\0\0\x09x").sync()),
        ("Bind with a rest", frames().parse("", "SELECT 1").frame(b'B', b"\0\0\0\0\0\0\0\0rest").sync()),
        ("empty Describe", frames().frame(b'D', b"").sync()),
        ("Describe without NUL", frames().frame(b'D', b"Sname").sync()),
        ("Describe of neither", frames().frame(b'D', b"Xname\0").sync()),
        ("Describe with a rest", frames().frame(b'D', b"Sname\0rest").sync()),
        ("Close without a kind", frames().frame(b'C', b"").sync()),
        ("Close of neither", frames().frame(b'C', b"Xname\0").sync()),
        ("Execute without count", frames().frame(b'E', b"\0").sync()),
        ("Execute with a rest", frames().frame(b'E', b"\0\0\0\0\0rest").sync()),
        ("empty FunctionCall", frames().frame(b'F', b"")),
        ("cut FunctionCall", frames().frame(b'F', b"\0\0\x05\x75\0\x01\0\x01\0\x01\0\0\0\x09x")),
        ("Sync with a body", frames().frame(b'S', b"rest")),
        ("Flush with a body", frames().frame(b'H', b"rest").sync()),
        ("CopyFail without NUL in a COPY", frames().query("COPY pg_temp.t FROM STDIN").frame(b'f', b"why")),
    ]
}

#[test]
fn a_client_that_loses_the_thread_is_ended() {
    let pgweir = pgweir();
    let mut other = Wire::connect(pgweir.port());
    for (what, bad) in lost() {
        // Alone, within a transaction, and with answers still owed.
        for before in ["", "BEGIN", "SELECT pg_sleep(0.01)"] {
            let mut client = Wire::connect(pgweir.port());
            let start = if before.is_empty() { frames() } else { frames().query(before) };
            client.send(&start.then(&bad));
            ended(&mut client, what);
            assert_eq!(other.value("SELECT 'unharmed'"), "unharmed", "{what} after {before:?}");
        }
    }
}

/// Postgres answers these with an error and goes on; pgweir may end the client instead, with the same SQLSTATE.
#[test]
fn a_malformed_body_is_refused_as_postgres_does() {
    let pgweir = pgweir();
    let mut other = Wire::connect(pgweir.port());
    for (what, bad) in malformed() {
        let code = |port| {
            let mut client = Wire::connect(port);
            client.send(&bad.clone().query("SELECT 'after'").frame(b'X', b""));
            let frames = client.rest();
            let first = frames.iter().find(|f| f.tag == b'E');
            first.map_or_else(|| format!("none in {frames:?}"), Frame::sqlstate)
        };
        let direct = code(cluster().primary().port());
        assert_eq!(code(pgweir.port()), direct, "{what}");
        assert_eq!(other.value("SELECT 'unharmed'"), "unharmed", "{what}");
    }
}

/// A frame that never ends costs its client and nobody else.
#[test]
fn unfinished_frames_hold_nothing() {
    let pgweir = pgweir();
    let unfinished = [&b"Q"[..], b"Q\0\0", b"Q\0\0\x10\0SEL", b"P\0\x10\0\0s\0", b"d\x20\0\0\0xx", b"S\0\0"];
    let held: Vec<_> = unfinished
        .iter()
        .map(|bytes| {
            let mut client = Wire::connect(pgweir.port());
            client.send_bytes(bytes);
            client
        })
        .collect();
    let mut other = Wire::connect(pgweir.port());
    assert_eq!(other.value("SELECT 'unharmed'"), "unharmed");
    drop(held);
    wait_until(LIMIT, "the last of the unfinished clients", || {
        let clients = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
        cluster().primary().psql(clients).unwrap().parse::<u32>().unwrap() < 20
    });
    assert_eq!(other.value("SELECT 'unharmed'"), "unharmed");
}

/// One pgweir for all cases of the property.
fn shared() -> (u16, &'static Pgweir) {
    static SHARED: OnceLock<Pgweir> = OnceLock::new();
    let pgweir = SHARED.get_or_init(pgweir);
    (pgweir.port(), pgweir)
}

/// Bytes that are mostly frames of known types, with bodies that make some sense.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let body = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        Just(b"\0SELECT 1\0\0\0".to_vec()),
        Just(b"BEGIN\0".to_vec()),
        Just(b"S\0".to_vec()),
        Just(b"\0\0\0\0\0\0\0\0".to_vec()),
        Just(b"\0\0\0\0\0".to_vec()),
        Just(Vec::new()),
    ];
    let tag = prop_oneof![4 => proptest::sample::select(&b"QPBDECSHFXdcf"[..]), 1 => any::<u8>()];
    let frame = (tag, body, prop_oneof![9 => Just(0i32), 1 => -5..50i32]).prop_map(|(tag, body, off)| {
        let length = (body.len() as i32 + 4 + off).to_be_bytes();
        [&[tag], &length[..], &body].concat()
    });
    proptest::collection::vec(frame, 1..12).prop_map(|frames| frames.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_harm_nobody_else(bytes in bytes()) {
        let (port, pgweir) = shared();
        let mut client = Wire::connect(port);
        // It may have been ended before it has said all.
        let _ = client.stream.write_all(&bytes);
        drop(client);
        let mut other = Wire::connect(port);
        other.send(&frames().query("SELECT 'unharmed'").run("SELECT $1", &["unharmed"]).sync());
        let replies = other.expect("TDCZ12DCZ");
        let values: Vec<_> = replies.iter().filter(|f| f.tag == b'D').map(Frame::value).collect();
        prop_assert_eq!(values, ["unharmed", "unharmed"]);
        prop_assert!(!pgweir.stderr().contains("panicked"));
    }
}
