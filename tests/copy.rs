//! COPY in both directions and both protocols, done, given up and failed at every point.

mod support;

use std::sync::{Mutex, MutexGuard, PoisonError};

use pgweir::demo::sample;
use support::differential::{Arena, step};
use support::wire::{Frame, Frames, Wire};
use support::{LIMIT, Pgweir, wait_until};

const IN: &str = "COPY copied FROM STDIN";
const COUNT: &str = "SELECT count(*), max(n), max(length(note)) FROM copied";

fn frames() -> Frames {
    Frames::new()
}

/// Tests take turns at the tables.
fn arena() -> (MutexGuard<'static, ()>, Arena) {
    static TABLES: Mutex<()> = Mutex::new(());
    let turn = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
    let arena = Arena::new();
    arena.setup(
        "DROP TABLE IF EXISTS copied, guarded;
         CREATE TABLE copied (n int, note text);
         CREATE TABLE guarded (n int);
         GRANT ALL ON copied, guarded TO app;
         CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$;
         CREATE TRIGGER guard BEFORE INSERT ON guarded EXECUTE FUNCTION refuse()",
    );
    (turn, arena)
}

fn count() -> Frames {
    frames().query(COUNT)
}

#[test]
fn copy_in_by_simple_query() {
    let (_turn, arena) = arena();
    arena.same_after(
        "TRUNCATE copied",
        &[
            step(frames().query(IN), "G"),
            step(frames().copy_data(b"1\tone\n2\t\\N\n").copy_data(b"3\tthr").copy_data(b"ee\n").copy_done(), "CZ"),
            step(count(), "TDCZ"),
            // All at once; Flush and Sync mean nothing in between.
            step(frames().query(IN).copy_data(b"4\tfour\n").flush().sync().copy_done(), "GCZ"),
            step(frames().query("COPY copied FROM STDIN (FORMAT csv, HEADER)"), "G"),
            step(frames().copy_data(b"n,note\n5,\"a, \"\"b\"\"\"\n").copy_done(), "CZ"),
            step(frames().query("COPY copied FROM STDIN; SELECT 'next'; COPY copied FROM STDIN"), "G"),
            step(frames().copy_data(b"6\t6\n").copy_done(), "CTDCG"),
            step(frames().copy_data(b"7\t7\n").copy_done(), "CZ"),
            step(count(), "TDCZ"),
            // Nothing but an end.
            step(frames().query(IN).copy_done(), "GCZ"),
            step(frames().copy_data(b"stray").copy_done().copy_fail("stray").query("SELECT 1"), "TDCZ"),
        ],
    );
}

#[test]
fn binary_copy_in_and_out() {
    let mut binary = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    binary.extend(b"\0\x02\0\0\0\x04\0\0\0\x2a\0\0\0\x01x\0\x02\0\0\0\x04\0\0\0\x2b\xff\xff\xff\xff\xff\xff");
    let (_turn, arena) = arena();
    arena.same_after(
        "TRUNCATE copied",
        &[
            step(frames().query("COPY copied FROM STDIN (FORMAT binary)"), "G"),
            step(frames().copy_data(&binary[..20]).copy_data(&binary[20..]).copy_done(), "CZ"),
            step(frames().query("COPY copied TO STDOUT (FORMAT binary)"), "HdcCZ"),
            step(frames().run("COPY copied TO STDOUT (FORMAT binary)", &[]).sync(), "12HdcCZ"),
            step(frames().query("COPY copied FROM STDIN (FORMAT binary)").copy_data(b"not so").copy_done(), "GEZ"),
        ],
    );
}

#[test]
fn copy_out() {
    let (_turn, arena) = arena();
    arena.same(&[
        step(frames().query("COPY (SELECT n, repeat('o', n) FROM generate_series(1, 50) n) TO STDOUT"), "HdcCZ"),
        step(frames().query("COPY (SELECT 1 WHERE false) TO STDOUT"), "HcCZ"),
        step(frames().query("COPY (SELECT repeat('l', 3000000) FROM generate_series(1, 2)) TO STDOUT"), "HdcCZ"),
        step(frames().query("COPY (SELECT 1/(100 - n) FROM generate_series(1, 200) n) TO STDOUT (FORMAT csv)"), "HdEZ"),
        step(frames().query("SELECT 1; COPY (SELECT 2) TO STDOUT; SELECT 3"), "TDCHdcCTDCZ"),
        step(
            frames()
                .run("SELECT 1", &[])
                .run("COPY (SELECT 1/(100 - n) FROM generate_series(1, 200) n) TO STDOUT", &[])
                .run("SELECT 'skipped'", &[])
                .sync()
                .run("COPY (SELECT 4) TO STDOUT", &[])
                .run("SELECT 5", &[])
                .sync(),
            "12DC12HdEZ12HdcC12DCZ",
        ),
        step(frames().query("COPY nothing TO STDOUT"), "EZ"),
        step(frames().query("BEGIN; COPY (SELECT 1) TO STDOUT"), "CHdcCZ"),
        step(frames().query("ROLLBACK"), "CZ"),
    ]);
}

#[test]
fn copy_in_given_up_or_refused_by_simple_query() {
    let (_turn, arena) = arena();
    arena.same_after(
        "TRUNCATE copied",
        &[
            step(frames().query(IN).copy_data(b"1\tone\n"), "G"),
            step(frames().copy_fail("changed my mind"), "EZ"),
            step(frames().query(IN).copy_fail("at once"), "GEZ"),
            // The rest of what was under way means nothing.
            step(frames().query(IN), "G"),
            step(frames().copy_data(b"wrong\tx\n"), "EZ"),
            step(frames().copy_data(b"2\ttwo\n").copy_data(&[b'x'; 100_000]).copy_done().query("SELECT 1"), "TDCZ"),
            step(frames().query(IN).copy_data(b"wrong\n").copy_data(b"3\t3\n").copy_done().query(COUNT), "GEZTDCZ"),
            step(frames().query("COPY guarded FROM STDIN").copy_data(b"1\n").copy_done(), "GEZ"),
            step(frames().query("BEGIN"), "CZ"),
            step(frames().query(IN).copy_data(b"4\tfour\n").copy_done(), "GCZ"),
            step(frames().query(IN).copy_data(b"wrong\n").copy_done(), "GEZ"),
            step(frames().copy_data(b"stray").copy_done().query("SELECT 1"), "EZ"),
            step(frames().query("ROLLBACK"), "CZ"),
            step(frames().query("COPY nothing FROM STDIN").copy_data(b"1\n").copy_done(), "EZ"),
            step(count(), "TDCZ"),
        ],
    );
}

#[test]
fn copy_in_by_the_extended_protocol() {
    let begin = || frames().run(IN, &[]);
    let (_turn, arena) = arena();
    arena.same_after(
        "TRUNCATE copied",
        &[
            // The Sync behind Execute is taken for part of the COPY.
            step(begin().sync(), "12G"),
            step(frames().copy_data(b"1\tone\n").copy_done().sync(), "CZ"),
            step(begin().flush(), "12G"),
            step(frames().copy_data(b"2\ttwo\n").copy_done().flush(), "C"),
            step(frames().run("SELECT 'in the same segment'", &[]).sync(), "12DCZ"),
            step(begin().copy_data(b"3\tthree\n").copy_done().sync(), "12GCZ"),
            step(begin().sync().copy_data(b"4\t4\n").sync().copy_data(b"5\t5\n").copy_done().sync(), "12GCZ"),
            step(
                frames()
                    .run("SELECT 1", &[])
                    .then(&begin())
                    .copy_data(b"6\t6\n")
                    .copy_done()
                    .run("SELECT 2", &[])
                    .sync(),
                "12DC12GC12DCZ",
            ),
            step(count(), "TDCZ"),
        ],
    );
}

#[test]
fn copy_in_given_up_or_refused_by_the_extended_protocol() {
    let begin = || frames().run(IN, &[]);
    let skipped = || frames().run("INSERT INTO copied VALUES (99)", &[]);
    let (_turn, arena) = arena();
    arena.same_after(
        "TRUNCATE copied",
        &[
            step(begin().sync(), "12G"),
            step(frames().copy_fail("changed my mind").sync(), "EZ"),
            step(begin().copy_data(b"1\tone\n").copy_fail("no").then(&skipped()).sync(), "12GEZ"),
            // A Sync that came before the error was part of the COPY: all is skipped to the next.
            step(begin().sync(), "12G"),
            step(frames().copy_data(b"wrong\n"), "E"),
            step(frames().copy_data(b"2\ttwo\n").copy_data(&[b'x'; 100_000]).copy_done().then(&skipped()), ""),
            step(frames().query(COUNT).sync(), "Z"),
            step(count(), "TDCZ"),
            step(begin().flush(), "12G"),
            step(frames().copy_data(b"wrong\n").copy_done().then(&skipped()).sync(), "EZ"),
            step(begin().copy_data(b"wrong\n").copy_data(b"3\t3\n").copy_done().sync().then(&count()), "12GEZTDCZ"),
            // Refused before it has read anything, so that the Sync behind Execute counts.
            step(frames().run("COPY guarded FROM STDIN", &[]).sync(), "12GEZ"),
            step(frames().run("COPY guarded FROM STDIN", &[]).copy_data(b"1\n").copy_done().sync(), "12GEZ"),
            step(frames().run("COPY nothing FROM STDIN", &[]).copy_data(b"1\n").copy_done().sync(), "12EZ"),
            step(frames().query("BEGIN"), "CZ"),
            step(begin().sync(), "12G"),
            step(frames().copy_fail("in a transaction").sync(), "EZ"),
            step(frames().query("ROLLBACK").query(COUNT), "CZTDCZ"),
        ],
    );
}

#[test]
fn copies_larger_than_any_buffer() {
    let lines: Vec<_> = (0..2500).map(|n| format!("{n}\t{}\n", "l".repeat(n))).collect();
    let text = lines.concat();
    let by = |size: usize| text.as_bytes().chunks(size).fold(frames(), Frames::copy_data);
    let (_turn, arena) = arena();
    arena.same_after(
        "TRUNCATE copied",
        &[
            step(frames().query(IN).then(&by(2_000_000)).copy_done(), "GCZ"),
            step(frames().query(IN).then(&by(9_999)).copy_done(), "GCZ"),
            step(frames().run(IN, &[]).sync().then(&by(70_000)).copy_done().sync(), "12GCZ"),
            step(count(), "TDCZ"),
            step(frames().query("COPY (SELECT * FROM copied ORDER BY n) TO STDOUT"), "HdcCZ"),
            step(frames().query(IN).then(&by(100_000)).copy_data(b"wrong\n").then(&by(100_000)).copy_done(), "GEZ"),
            step(count(), "TDCZ"),
        ],
    );
}

/// A client that says Terminate where CopyData is due has left, before the server asks for it as well as after.
#[test]
fn a_client_that_takes_leave_in_a_copy() {
    let setup = "CREATE TABLE left_alone (n int); GRANT ALL ON left_alone TO app";
    support::cluster().primary().psql_in(sample::DATABASE, setup).unwrap();
    for mode in ["transaction", "session"] {
        let builder = Pgweir::builder().cluster(support::cluster(), &[]).set("pool.max", 1).set("pool.mode", mode);
        let pgweir = builder.start();
        let begun = [
            frames().query("COPY left_alone FROM STDIN"),
            frames().query("COPY left_alone FROM STDIN").copy_data(b"1\n"),
            frames().query("BEGIN; COPY left_alone FROM STDIN; SELECT 1"),
            frames().run("COPY left_alone FROM STDIN", &[]).flush(),
            frames().run("COPY left_alone FROM STDIN", &[]).sync(),
        ];
        for frames in begun {
            for at_once in [true, false] {
                let mut client = Wire::connect(pgweir.port());
                let leave = self::frames().frame(b'X', b"");
                if at_once {
                    client.send(&frames.clone().then(&leave));
                } else {
                    client.send(&frames);
                    client.until(b'G');
                    client.send(&leave);
                }
                let mut next = Wire::connect(pgweir.port());
                assert_eq!(next.value("SELECT count(*) FROM left_alone"), "0");
                drop((client, next));
            }
        }
    }
}

/// A client that goes in the middle of a COPY leaves nothing behind, and the connection serves the next.
#[test]
fn a_client_that_vanishes_in_a_copy() {
    let setup = "CREATE TABLE abandoned (n int); GRANT ALL ON abandoned TO app";
    support::cluster().primary().psql_in(sample::DATABASE, setup).unwrap();
    let pgweir = Pgweir::builder().cluster(support::cluster(), &[]).set("pool.max", 1).start();
    let begun = [
        frames().query("COPY abandoned FROM STDIN").copy_data(b"1\n"),
        frames().run("COPY abandoned FROM STDIN", &[]).sync().copy_data(b"1\n"),
        frames().run("INSERT INTO abandoned VALUES (2)", &[]).run("COPY abandoned FROM STDIN", &[]).flush(),
        frames().query("BEGIN; COPY abandoned FROM STDIN"),
        // In the middle of a frame.
        frames().query("COPY abandoned FROM STDIN").raw(b"d\0\0\xff\xff1\n"),
    ];
    for frames in begun {
        let mut client = Wire::connect(pgweir.port());
        client.send(&frames);
        client.until(b'G');
        drop(client);
        let mut next = Wire::connect(pgweir.port());
        assert_eq!(next.value("SELECT count(*) FROM abandoned"), "0");
    }
    let mut reader = Wire::connect(pgweir.port());
    reader.send(&frames().query("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 1000000)) TO STDOUT"));
    reader.until(b'd');
    drop(reader);
    let mut next = Wire::connect(pgweir.port());
    assert_eq!(next.value("SELECT count(*) FROM abandoned"), "0");
    let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY (SELECT repeat%'";
    wait_until(LIMIT, "the end of the abandoned COPY", || support::cluster().primary().psql(running).unwrap() == "0");
}

/// A Sync within a COPY by Query is ignored; behind a line that ends it, each has its ReadyForQuery.
#[test]
fn syncs_around_the_end_of_a_failed_copy() {
    let bad = || frames().query(IN).copy_data(b"bad\n");
    let good = || frames().query(IN).copy_data(b"1\tone\n");
    let (_turn, arena) = arena();
    arena.same_after(
        "TRUNCATE copied",
        &[
            step(bad().sync(), "GEZZ"),
            step(frames().query("SELECT 1"), "TDCZ"),
            step(bad().sync().query("SELECT 2"), "GEZZTDCZ"),
            step(bad().sync().run("SELECT 3", &[]).sync(), "GEZZ12DCZ"),
            step(bad().sync().copy_data(b"1\tone\n").sync().copy_done().sync(), "GEZZZZ"),
            step(good().sync().copy_data(b"bad\n").copy_done().sync().query("SELECT 4"), "GEZZTDCZ"),
            step(good().sync().copy_data(b"bad\n"), "GEZ"),
            step(good().sync().copy_data(b"bad\n").sync().sync(), "GEZZZ"),
            step(good().sync().sync().copy_done().query("SELECT 5"), "GCZTDCZ"),
            step(good().sync().copy_fail("no"), "GEZ"),
            step(good().sync().copy_fail("no").sync(), "GEZZ"),
            // Within a line, the COPY goes on reading.
            step(frames().query(IN).copy_data(b"ba").sync().copy_data(b"d\n").sync(), "GEZZ"),
            step(frames().query("BEGIN"), "CZ"),
            step(bad().sync().sync(), "GEZZZ"),
            step(frames().query("ROLLBACK"), "CZ"),
            step(count(), "TDCZ"),
        ],
    );
}

/// What is no part of a COPY ends the connection, as the server has lost the thread.
#[test]
fn other_messages_within_a_copy_end_the_connection() {
    let (_turn, arena) = arena();
    let play = |port: u16, frames: &Frames| {
        let mut client = Wire::connect(port);
        client.send(frames);
        let codes = |rest: Vec<Frame>| rest.iter().map(|f| (f.tag, f.sqlstate(), f.field(b'M'))).collect::<Vec<_>>();
        let rest = client.rest();
        codes(rest.into_iter().filter(|frame| frame.tag == b'E').collect())
    };
    for within in [
        frames().query(IN).copy_data(b"1\tone\n").query("SELECT 1"),
        frames().query(IN).query("SELECT 1").copy_done(),
        frames().run(IN, &[]).copy_data(b"1\tone\n").run("SELECT 1", &[]).sync(),
        frames().run(IN, &[]).sync().query("SELECT 1").sync(),
    ] {
        let direct = play(support::cluster().primary().port(), &within);
        assert_eq!(direct.len(), 2, "{direct:?}");
        for (name, _, proxy) in arena.proxies() {
            assert_eq!(play(proxy.port(), &within), direct, "with {name}: {within:?}");
            assert_eq!(Wire::connect(proxy.port()).value("SELECT 'next'"), "next");
        }
    }
}
