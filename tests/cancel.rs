//! Cancel requests: the right statement, that client's alone, or none.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use support::wire::{Frame, Frames, Login, Wire, cancel};
use support::{LIMIT, Pgweir, cluster, wait_until};

const ROUNDS: usize = 2000;

fn pgweir(pool: i64) -> Pgweir {
    Pgweir::builder().cluster(cluster(), &[]).set("pool.max", pool).start()
}

/// Whether a statement with this text runs on the primary.
fn runs(marker: &str) -> bool {
    let count = format!("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%{marker} */%'");
    // The asking statement is one of them.
    cluster().primary().psql(&count).unwrap() == "2"
}

fn errors(frames: &[Frame]) -> Vec<String> {
    frames.iter().filter(|f| f.tag == b'E').map(Frame::sqlstate).collect()
}

fn canceled(client: &mut Wire, marker: &str) {
    wait_until(LIMIT, "a statement to cancel", || runs(marker));
    client.cancel();
    assert_eq!(errors(&client.until(b'Z')), ["57014"]);
}

#[test]
fn the_running_statement_ends() {
    let pgweir = pgweir(2);
    let mut client = Wire::connect(pgweir.port());
    let mut bystander = Wire::connect(pgweir.port());
    let sleep = |marker: &str| format!("SELECT pg_sleep(100) /* {marker} */");
    bystander.send(&Frames::new().query(&sleep("bystander")));
    client.send(&Frames::new().query(&sleep("simple")));
    canceled(&mut client, "simple");
    assert_eq!(client.value("SELECT 1"), "1");

    // Of a pipeline, the segment it is in.
    let segment = Frames::new().run(&sleep("extended"), &[]).run("SELECT 'skipped'", &[]).sync();
    client.send(&segment.run("SELECT 'later'", &[]).sync());
    canceled(&mut client, "extended");
    assert_eq!(client.expect("12DCZ")[2].value(), "later");

    // In a transaction, which then has failed.
    client.query("BEGIN");
    client.send(&Frames::new().query(&sleep("block")));
    canceled(&mut client, "block");
    assert_eq!(errors(&client.query("SELECT 1")), ["25P02"]);
    client.query("ROLLBACK");

    // A COPY, which looks up when it has read something.
    client.query("CREATE TEMP TABLE cancelled (n int)");
    client.ask(&Frames::new().query("COPY cancelled FROM STDIN /* copy */"), "G");
    client.cancel();
    client.send(&Frames::new().copy_data(b"1\n").copy_data(b"2\n").copy_done());
    assert_eq!(errors(&client.until(b'Z')), ["57014"]);

    assert!(runs("bystander"));
    canceled(&mut bystander, "bystander");
}

#[test]
fn keys_of_both_protocol_versions() {
    let pgweir = pgweir(2);
    for (minor, length) in [(0, 4), (2, 32)] {
        let login = Login { minor, ..Login::default() };
        let mut client = Wire::log_in(pgweir.port(), &login);
        assert_eq!(client.secret.len(), length);
        client.send(&Frames::new().query(&format!("SELECT pg_sleep(100) /* version {minor} */")));
        wait_until(LIMIT, "a statement to cancel", || runs(&format!("version {minor}")));
        // Keys that are wrong, short or long cancel nothing.
        let mut wrong = client.secret.clone();
        wrong[length - 1] ^= 1;
        cancel(pgweir.port(), client.pid, &wrong);
        cancel(pgweir.port(), client.pid, &client.secret[..length - 1]);
        cancel(pgweir.port(), client.pid, &[&client.secret[..], b"\0"].concat());
        cancel(pgweir.port(), client.pid, b"");
        cancel(pgweir.port(), client.pid.wrapping_add(1), &client.secret);
        assert!(runs(&format!("version {minor}")));
        client.cancel();
        assert_eq!(errors(&client.until(b'Z')), ["57014"]);
    }
}

/// One that waits for a connection has nothing to cancel; nor has an idle one, or one that has gone.
#[test]
fn nothing_runs_nothing_is_cancelled() {
    let pgweir = pgweir(1);
    let mut holder = Wire::connect(pgweir.port());
    let mut waiting = Wire::connect(pgweir.port());
    let gone = Wire::connect(pgweir.port());
    let (pid, secret) = (gone.pid, gone.secret.clone());
    drop(gone);
    waiting.cancel();
    assert_eq!(waiting.value("SELECT 1"), "1");
    holder.query("BEGIN; SELECT 1");
    holder.cancel();
    waiting.send(&Frames::new().query("SELECT 'served'"));
    holder.send(&Frames::new().query("SELECT pg_sleep(100) /* holder */"));
    wait_until(LIMIT, "the holder's statement", || runs("holder"));
    cancel(pgweir.port(), pid, &secret);
    assert!(runs("holder"));
    holder.cancel();
    assert_eq!(errors(&holder.until(b'Z')), ["57014"]);
    holder.query("ROLLBACK");
    assert_eq!(waiting.expect("TDCZ")[1].value(), "served");
}

/// Two clients share the only connection; the requests of one, which never end, must never reach the other.
#[test]
fn a_cancel_never_hits_another_client() {
    let pgweir = pgweir(1);
    let port = pgweir.port();
    let done = AtomicBool::new(false);
    let mut victim = Wire::connect(port);
    let mut target = Wire::connect(port);
    let (pid, secret) = (target.pid, target.secret.clone());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    cancel(port, pid, &secret);
                }
            });
        }
        let targeted = scope.spawn(|| {
            let mut hit = 0;
            while !done.load(Ordering::Relaxed) {
                hit += errors(&target.query("SELECT sum(n) FROM generate_series(1, 2000) n")).len();
            }
            hit
        });
        for round in 0..ROUNDS {
            let seen = match round % 2 {
                0 => victim.query("SELECT sum(n) FROM generate_series(1, 2000) n"),
                _ => {
                    victim.send(&Frames::new().run("SELECT $1::int", &["1"]).sync());
                    victim.until(b'Z')
                }
            };
            let hit = errors(&seen);
            done.store(!hit.is_empty(), Ordering::Relaxed);
            assert!(hit.is_empty(), "round {round}: {seen:?}");
        }
        done.store(true, Ordering::Relaxed);
        assert!(targeted.join().unwrap() > 0, "no request ever reached the statement it was for");
    });
}
