//! Cancel requests among several pgweirs behind one address.

mod support;

use support::wire::{self, Frames, Login, Wire};
use support::{LIMIT, Pgweir, cluster, logged, wait_until};

/// A pgweir of this id that knows another.
fn peer(id: i64, mode: &str, other: Option<(i64, u16)>) -> Pgweir {
    let builder = Pgweir::builder().cluster(cluster(), &[]).set("listen.peer_id", id).set("pool.mode", mode);
    match other {
        Some((id, port)) => {
            builder.more(&format!("[[listen.peers]]\nid = {id}\naddress = \"127.0.0.1:{port}\"\n")).start()
        }
        None => builder.start(),
    }
}

#[test]
fn a_cancel_request_finds_its_client_through_the_wrong_pgweir() {
    for mode in ["transaction", "session"] {
        let first = peer(1, mode, None);
        let second = peer(2, mode, Some((1, first.port())));
        for minor in [0, 2] {
            let mut client = Wire::log_in(first.port(), &Login { minor, ..Login::default() });
            if mode == "session" {
                assert_eq!(client.value("SELECT pg_backend_pid()"), client.pid.to_string(), "the server's own");
            }
            let marker = format!("asleep in {mode} mode by 3.{minor}");
            client.send(&Frames::new().query(&format!("SELECT pg_sleep(300) /* {marker} */")));
            wait_until(LIMIT, "the statement runs", || logged(cluster().primary(), &marker) > 0);

            // Another secret, and a key of no pgweir that is known here: dropped without a word.
            let mut wrong = client.secret.clone();
            wrong.iter_mut().skip(1).for_each(|byte| *byte ^= 1);
            wire::cancel(second.port(), client.pid, &wrong);
            wire::cancel(second.port(), client.pid ^ (2 << 24), &client.secret);
            wire::cancel(second.port(), client.pid, &client.secret);
            let frames = client.until(b'Z');
            let error = frames.iter().find(|frame| frame.tag == b'E').expect("an error");
            assert_eq!(error.sqlstate(), "57014");
            assert_eq!(client.value("SELECT 1"), "1", "and the client goes on");
        }
    }
}
