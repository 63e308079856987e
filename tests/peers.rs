//! Cancel requests among several pgweirs behind one address.

mod support;

use support::wire::{self, Frames, Wire};
use support::{LIMIT, Pgweir, cluster, logged, wait_until};

/// A pgweir of this id that knows another.
fn peer(id: i64, other: Option<(i64, u16)>) -> Pgweir {
    let builder = Pgweir::builder().cluster(cluster(), &[]).set("listen.peer_id", id);
    match other {
        Some((id, port)) => {
            builder.more(&format!("[[listen.peers]]\nid = {id}\naddress = \"127.0.0.1:{port}\"\n")).start()
        }
        None => builder.start(),
    }
}

#[test]
fn a_cancel_request_finds_its_client_through_the_wrong_pgweir() {
    let first = peer(1, None);
    let second = peer(2, Some((1, first.port())));
    let mut client = Wire::connect(first.port());
    client.send(&Frames::new().query("SELECT pg_sleep(300) /* asleep at the first */"));
    wait_until(LIMIT, "the statement runs", || logged(cluster().primary(), "asleep at the first") > 0);

    // Another secret, and a key of no pgweir that is known here: dropped without a word.
    wire::cancel(second.port(), client.pid, &[0; 4]);
    wire::cancel(second.port(), client.pid ^ (2 << 24), &client.secret);
    wire::cancel(second.port(), client.pid, &client.secret);
    let frames = client.until(b'Z');
    let error = frames.iter().find(|frame| frame.tag == b'E').expect("an error");
    assert_eq!(error.sqlstate(), "57014");
    assert_eq!(client.value("SELECT 1"), "1", "and the client goes on");
}
