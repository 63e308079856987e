//! Pipelines: many messages in flight, errors among them, and every way in which their bytes may be cut.

mod support;

use std::fs;
use std::io::Write;
use std::thread;

use pgweir::demo::sample::DATABASE;
use proptest::prelude::*;
use support::chopper::Chopper;
use support::differential::{Arena, Others, Step, play, step};
use support::wire::{Frames, Wire, tags};
use support::{LIMIT, Pgweir, wait_until};

fn frames() -> Frames {
    Frames::new()
}

/// What divides by zero when it runs, not when it is planned.
fn fails() -> Frames {
    frames().run("SELECT 1 / count(*) FROM (SELECT WHERE false) nothing", &[])
}

#[test]
fn each_sync_has_its_answer_in_order() {
    let arena = Arena::new();
    let mut many = frames().parse("s", "SELECT $1::int");
    for n in 0..300 {
        many = many.bind("", "s", &[&n.to_string()]).execute("", 0).sync();
        if n % 7 == 0 {
            many = many.then(&fails()).run("SELECT 'skipped'", &[]).sync();
        }
    }
    let mut client = Wire::connect(support::cluster().primary().port());
    client.send(&many.clone().query("SELECT 'last'"));
    let direct: Vec<_> = (0..300 + 43 + 1).flat_map(|_| client.until(b'Z')).collect();
    let expected: &'static str = tags(&direct).leak();
    arena.same(&[
        step(frames().sync().sync().sync(), "ZZZ"),
        step(many.clone().query("SELECT 'last'"), expected),
        step(frames().query("SELECT 1").query("SELECT 2").sync().query("SELECT 3"), "TDCZTDCZZTDCZ"),
    ]);
}

#[test]
fn a_flush_is_answered_at_once_and_ends_nothing() {
    let arena = Arena::new();
    let seen = "SELECT count(*) FROM flushed";
    arena.setup("CREATE TABLE flushed (n int); GRANT ALL ON flushed TO app");
    arena.same_after(
        "TRUNCATE flushed",
        &[
            step(frames().flush().sync(), "Z"),
            step(frames().run("INSERT INTO flushed VALUES (1)", &[]).flush(), "12C"),
            step(frames().run("INSERT INTO flushed VALUES (2)", &[]).flush(), "12C"),
            // Undone to the first of them.
            step(fails().flush(), "12E"),
            step(frames().run(seen, &[]).query("SELECT 'skipped'").flush().sync(), "Z"),
            step(frames().query(seen), "TDCZ"),
            // Preparing alone, in one go with what relies on it.
            step(frames().parse("s", "SELECT $1::int").describe(b'S', "s").flush(), "1tT"),
            step(frames().bind("", "s", &["1"]).execute("", 0).sync(), "2DCZ"),
            step(frames().parse("t", "SELEC").flush().bind("", "s", &["1"]).execute("", 0).sync(), "EZ"),
            step(frames().parse("t", "SELECT 1").flush().bind("", "t", &[]).execute("", 0).sync(), "12DCZ"),
            step(frames().parse("u", "SELEC").flush(), "E"),
            step(frames().run("INSERT INTO flushed VALUES (3)", &[]).flush(), ""),
            step(frames().sync().query(seen), "ZTDCZ"),
            step(frames().close(b'S', "t").flush().close(b'S', "t").sync(), "33Z"),
        ],
    );
}

/// An error or a notice reaches a client that has yet to say Sync or Flush, and waits for it.
#[test]
fn an_error_comes_before_the_sync() {
    let arena = Arena::new();
    let notice = frames().run("DO $$ BEGIN RAISE NOTICE 'n'; END $$", &[]);
    arena.same(&[
        step(frames().parse("u", "SELEC"), "E"),
        step(frames().run("SELECT 'skipped'", &[]).sync(), "Z"),
        step(fails(), "12E"),
        step(frames().sync().query("SELECT 1"), "ZTDCZ"),
        step(frames().describe(b'S', "missing"), "E"),
        step(frames().sync(), "Z"),
        step(notice.clone(), "12N"),
        step(fails(), "C12E"),
        step(frames().sync(), "Z"),
        step(
            frames().parse("s", "SELECT $1 / count(*) FROM (SELECT WHERE false) nothing").describe(b'S', "s").sync(),
            "1tTZ",
        ),
        step(frames().bind("", "s", &["1"]).execute("", 0), "2E"),
        step(frames().sync(), "Z"),
        step(frames().query("BEGIN"), "CZ"),
        step(notice, "12N"),
        step(frames().run("SELEC", &[]), "CE"),
        step(frames().sync().query("ROLLBACK"), "ZCZ"),
    ]);
}

/// A Query ends no segment that has failed: the server skips it, and waits for the Sync.
#[test]
fn a_query_behind_what_fails_is_skipped() {
    let skipped = || fails().query("SELECT 'skipped'");
    let unparsed = || frames().parse("", "SELEC").query("SELECT 'skipped'");
    Arena::new().same(&[
        step(skipped().sync().query("SELECT 1"), "12EZTDCZ"),
        step(skipped(), "12E"),
        step(frames().sync(), "Z"),
        step(unparsed().sync(), "EZ"),
        step(unparsed(), "E"),
        step(frames().query("SELECT 'skipped'").sync(), "Z"),
        step(frames().run("SELECT 2", &[]).query("SELECT 3"), "12DCTDCZ"),
    ]);
}

/// A client that says all it has to say, Terminate too, and only then reads.
#[test]
fn what_stands_before_terminate_is_answered() {
    let arena = Arena::new();
    let known = || frames().parse("", "SELECT $1::text || count(*) FROM pg_class WHERE false");
    let used = || known().bind("", "", &["known"]).execute("", 0).sync();
    for said in [used(), known().sync().close(b'S', "none").sync(), frames().query("SELECT 1"), frames().sync()] {
        let said = said.frame(b'X', b"");
        let answers = |port| {
            let mut client = Wire::connect(port);
            client.send(&said);
            client.rest()
        };
        let direct = answers(support::cluster().primary().port());
        assert!(!direct.is_empty());
        for (name, _, proxy) in arena.proxies() {
            for round in 0..3 {
                assert_eq!(answers(proxy.port()), direct, "with {name}, round {round}: {said:?}");
            }
        }
    }
}

/// Messages that wait for more of them end with their client.
#[test]
fn a_pause_ahead_of_the_sync_runs_what_is_there_and_commits_nothing() {
    let cluster = support::cluster();
    let sql = |text: &str| cluster.primary().psql_in(DATABASE, text).unwrap();
    sql("CREATE TABLE paused_insert (n int); GRANT ALL ON paused_insert TO app");
    let pgweir = Pgweir::builder().cluster(cluster, &[]).set("pool.max", 1).start();
    let mut client = Wire::connect(pgweir.port());
    client.send(&frames().run("INSERT INTO paused_insert VALUES (1)", &[]));
    wait_until(LIMIT, "what has come to run", || {
        sql("SELECT count(*) FROM pg_locks WHERE relation = 'paused_insert'::regclass AND mode = 'RowExclusiveLock'")
            == "1"
    });
    drop(client);
    let mut other = Wire::connect(pgweir.port());
    assert_eq!(other.value("SELECT count(*) FROM paused_insert"), "0");
}

#[test]
fn transactions_within_a_pipeline() {
    let arena = Arena::new();
    arena.setup("CREATE TABLE piped (n int PRIMARY KEY); GRANT ALL ON piped TO app");
    let insert = |n: &str| frames().run("INSERT INTO piped VALUES ($1)", &[n]);
    let sql = |text: &str| frames().run(text, &[]);
    let seen = || sql("SELECT count(*), max(n) FROM piped").sync();
    arena.same_after(
        "TRUNCATE piped",
        &[
            // One segment is one transaction.
            step(insert("1").then(&insert("2")).then(&insert("1")).then(&insert("3")).sync(), "12C12C12EZ"),
            step(seen(), "12DCZ"),
            step(sql("BEGIN").then(&insert("1")).then(&sql("COMMIT")).then(&insert("1")).sync(), "12C12C12C12EZ"),
            step(seen(), "12DCZ"),
            // Over segments, all in flight.
            step(sql("BEGIN").sync().then(&insert("2")).sync().then(&sql("ROLLBACK")).sync(), "12CZ12CZ12CZ"),
            step(
                sql("BEGIN").sync().then(&insert("1")).sync().then(&seen()).then(&sql("COMMIT")).sync(),
                "12CZ12EZEZ12CZ",
            ),
            step(seen(), "12DCZ"),
            step(frames().query("BEGIN").then(&fails()).sync().then(&seen()).query("ROLLBACK"), "CZ12EZEZCZ"),
            // A Query ends the segment that stands open before it.
            step(insert("5").query("SELECT 'simple'").then(&insert("5")).sync(), "12CTDCZ12EZ"),
            step(fails().query("SELECT 'skipped'").sync().query("SELECT 'not skipped'"), "12EZTDCZ"),
            step(seen(), "12DCZ"),
        ],
    );
}

#[test]
fn several_statements_in_one_query() {
    let arena = Arena::new();
    arena.setup("CREATE TABLE several (n int PRIMARY KEY); GRANT ALL ON several TO app");
    arena.same_after(
        "TRUNCATE several",
        &[
            step(frames().query(""), "IZ"),
            step(frames().query(" ; ;"), "IZ"),
            step(frames().run("", &[]).sync(), "12IZ"),
            step(frames().run("-- nothing", &[]).describe(b'P', "").sync(), "12InZ"),
            step(frames().query("SELECT 1; SELECT 2;; SELECT 3"), "TDCTDCTDCZ"),
            step(frames().query("BEGIN; INSERT INTO several VALUES (1); COMMIT"), "CCCZ"),
            step(frames().query("INSERT INTO several VALUES (2); SELECT 1/0; SELECT 'never'"), "CEZ"),
            step(frames().query("INSERT INTO several VALUES (3); COMMIT; INSERT INTO several VALUES (1)"), "CNCEZ"),
            step(frames().query("SELECT count(*) FROM several; BEGIN"), "TDCCZ"),
            step(frames().query("SELECT 1/0"), "EZ"),
            step(frames().query("SELECT 1; ROLLBACK"), "EZ"),
            step(frames().query("ROLLBACK; SELECT 1; BEGIN; SELECT 2"), "CTDCCTDCZ"),
            step(frames().query("COMMIT AND CHAIN"), "CZ"),
            step(frames().query("ROLLBACK; ROLLBACK"), "CNCZ"),
            step(frames().run("SELECT 1; SELECT 2", &[]).sync(), "EZ"),
        ],
    );
}

/// Megabytes on their way both ways: each side is read while the other is written.
#[test]
fn large_pipelines_do_not_lock_up() {
    let pgweir = Pgweir::builder().cluster(support::cluster(), &[1]).set("pool.max", 1).start();
    let mut client = Wire::connect(pgweir.port());
    let value = "v".repeat(150_000);
    let one = frames().run("SELECT $1", &[&value]);
    let (segment, open) = (one.clone().sync(), one.flush());
    let mut writer = client.stream.try_clone().unwrap();
    let writing = thread::spawn(move || {
        for _ in 0..100 {
            writer.write_all(segment.bytes()).unwrap();
        }
        // One segment larger than any buffer, answered by and by.
        for _ in 0..100 {
            writer.write_all(open.bytes()).unwrap();
        }
        writer.write_all(frames().sync().bytes()).unwrap();
    });
    for _ in 0..100 {
        client.expect("12DCZ");
    }
    for _ in 0..100 {
        assert_eq!(client.expect("12DC")[2].value(), value);
    }
    client.expect("Z");
    writing.join().unwrap();
}

/// A message too large to be held goes to its server as it comes. A client that stops in the middle of it keeps its
/// connection for as long as it stays, and leaves nothing behind.
#[test]
fn a_large_message_cut_short_ends_with_its_client() {
    let cluster = support::cluster();
    let pgweir =
        Pgweir::builder().cluster(cluster, &[]).set("pool.max", 1).set("pool.acquire_timeout", "500ms").start();
    let value = "v".repeat(2_000_000);
    let bind = frames().parse("", "SELECT length($1)").bind("", "", &[&value]).execute("", 0).sync();
    let query = frames().query(&format!("SELECT length('{value}')"));
    for large in [bind, query] {
        let mut other = Wire::connect(pgweir.port());
        let mut client = Wire::connect(pgweir.port());
        client.send_bytes(&large.bytes()[..1_500_000]);
        wait_until(LIMIT, "the connection's lease", || other.query("SELECT 1")[0].tag == b'E');
        drop(client);
        wait_until(LIMIT, "the connection", || other.query("SELECT 1")[0].tag == b'T');
        // Whole, though its rest is long in coming; a smaller one takes no connection until it is all there.
        let (all, small) = (large.bytes(), frames().query(&format!("SELECT '{}'", "s".repeat(200_000))));
        let mut client = Wire::connect(pgweir.port());
        client.send_bytes(&small.bytes()[..150_000]);
        assert_eq!(other.value("SELECT 1"), "1");
        client.send_bytes(&small.bytes()[150_000..]);
        client.expect("TDCZ");
        client.send_bytes(&all[..1_500_000]);
        client.send_bytes(&all[1_500_000..]);
        assert_eq!(client.until(b'Z').iter().find(|f| f.tag == b'D').map(|f| f.value()), Some("2000000".to_owned()));
    }
}

/// A result passes through; a client that does not read holds up its server, not pgweir's memory.
#[test]
fn a_result_is_never_held_whole() {
    let pgweir = Pgweir::builder().cluster(support::cluster(), &[]).start();
    let mut client = Wire::connect(pgweir.port());
    client.send(&frames().query("SELECT repeat('x', 1000000) /* held */ FROM generate_series(1, 80)"));
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%/* held */%' AND wait_event = 'ClientWrite'";
    wait_until(LIMIT, "a server that waits for its client", || {
        support::cluster().primary().psql(waiting).unwrap() == "1"
    });
    let status = fs::read_to_string(format!("/proc/{}/status", pgweir.pid().as_raw_nonzero())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 60_000, "{kib} KiB while 80 MB wait");
    assert_eq!(client.expect("TDCZ").iter().filter(|f| f.tag == b'D').count(), 80);
}

/// Every kind of message, and no state that another round would meet.
fn mixed() -> Vec<Step> {
    vec![
        step(frames().parse("s", "SELECT $1::text, 2").describe(b'S', "s").sync(), "1tTZ"),
        step(frames().bind("", "s", &["val"]).describe(b'P', "").execute("", 1).execute("", 0).sync(), "2TDsCZ"),
        step(frames().query("BEGIN; DO $$ BEGIN RAISE NOTICE 'n'; END $$").run("SELECT 1/0", &[]).sync(), "CNCZ1EZ"),
        step(frames().query("ROLLBACK").query("SELECT 'text'"), "CZTDCZ"),
        step(frames().run("COPY (SELECT 1, 'out') TO STDOUT", &[]).close(b'S', "s").flush(), "12HdcC3"),
        step(frames().close(b'P', "p").sync(), "3Z"),
        step(frames().call(1397, &[&(-5i32).to_be_bytes()]).query(""), "VZIZ"),
    ]
}

#[test]
fn messages_cut_anywhere() {
    let pgweir =
        Pgweir::builder().cluster(support::cluster(), &[1]).set("listen.workers", 1).set("pool.max", 2).start();
    let script = mixed();
    let whole: Vec<_> = play(pgweir.port(), Others::None, &script).concat();
    let all = script.iter().fold(frames(), |all, step| all.then(&step.frames));
    let expected = script.iter().map(|step| step.expected).collect::<String>();
    let mut client = Wire::connect(pgweir.port());
    // On the only worker: when it has its answer, what was sent before has been looked at.
    let mut barrier = Wire::connect(pgweir.port());
    for cut in 1..all.bytes().len() {
        client.send_bytes(&all.bytes()[..cut]);
        barrier.ask(&frames().sync(), "Z");
        client.send_bytes(&all.bytes()[cut..]);
        assert_eq!(client.expect(&expected), whole, "cut at {cut}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Both directions between pgweir and its server too, in pieces of a few bytes.
    #[test]
    fn replies_cut_anywhere(pieces in proptest::collection::vec(1usize..9, 1..20), pool in 1i64..3) {
        let direct = play(support::cluster().primary().port(), Others::None, &mixed());
        let chopper = Chopper::new(support::cluster().primary().port(), pieces);
        let through = Pgweir::builder().node(chopper.port, "primary", None).set("pool.max", pool).start();
        prop_assert_eq!(play(through.port(), Others::Intrude, &mixed()), direct);
    }
}
