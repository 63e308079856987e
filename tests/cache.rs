//! The result cache: whatever it answers, a server would have answered, byte for byte, and nothing that a session wrote
//! is ever missing. What shows that an answer was kept: a change behind pgweir's back is not seen yet.

mod support;

use support::wire::{Frames, Wire};
use support::{Builder, LIMIT, Pgweir, cluster, wait_until};

fn builder() -> Builder {
    Pgweir::builder().cluster(cluster(), &[]).set("cache.enabled", true).set("cache.invalidation", "ttl")
}

/// Named reads are kept.
fn pgweir() -> Pgweir {
    builder().start()
}

/// A table of one row for one test.
fn table(name: &str) -> String {
    let primary = cluster().primary();
    let sql = format!(
        "DROP TABLE IF EXISTS public.{name}; CREATE TABLE public.{name} (n int, t text); \
         INSERT INTO public.{name} VALUES (1, 'one'), (2, 'two'); GRANT ALL ON public.{name} TO app"
    );
    primary.psql_in(pgweir::demo::sample::DATABASE, &sql).unwrap();
    name.to_owned()
}

/// Changes a table behind pgweir's back.
fn change(table: &str) {
    let sql = format!("UPDATE public.{table} SET t = t || '!'");
    cluster().primary().psql_in(pgweir::demo::sample::DATABASE, &sql).unwrap();
}

const HINT: &str = "/* pgweir: cache ttl=200s */";

/// From now on the read is kept: what a table just made is, the catalog's snapshot must first have learnt.
fn warm(pgweir: &Pgweir, client: &mut Wire, sql: &str) {
    wait_until(LIMIT, "a hit", || {
        client.query(sql);
        pgweir.json("/stats")["database"]["cacheHitRate"].as_f64().is_some_and(|rate| rate > 0.0)
    });
}

fn read(table: &str) -> String {
    format!("{HINT} SELECT t FROM public.{table} WHERE n = 1")
}

#[test]
fn a_named_read_is_kept_until_something_is_written() {
    let (pgweir, table) = (pgweir(), table("kept"));
    let mut one = Wire::connect(pgweir.port());
    let mut two = Wire::connect(pgweir.port());
    warm(&pgweir, &mut one, &read(&table));
    change(&table);
    assert_eq!((one.value(&read(&table)), two.value(&read(&table))), ("one".into(), "one".into()));
    two.query(&format!("UPDATE public.{table} SET n = 3 WHERE n = 2"));
    assert_eq!((two.value(&read(&table)), one.value(&read(&table))), ("one!".into(), "one!".into()));
    // Its own write is seen at once, a rolled back one never.
    two.query(&format!("UPDATE public.{table} SET t = 'mine'"));
    assert_eq!(two.value(&read(&table)), "mine");
    two.query("BEGIN");
    two.query(&format!("UPDATE public.{table} SET t = 'undone'"));
    assert_eq!((two.value(&read(&table)), one.value(&read(&table))), ("undone".into(), "mine".into()));
    two.query("ROLLBACK");
    assert_eq!(two.value(&read(&table)), "mine");
}

#[test]
fn only_what_is_named_and_only_at_rest() {
    let (pgweir, table) = (pgweir(), table("named"));
    let mut client = Wire::connect(pgweir.port());
    let plain = format!("SELECT t FROM public.{table} WHERE n = 1");
    assert_eq!(client.value(&plain), "one");
    warm(&pgweir, &mut client, &read(&table));
    change(&table);
    assert_eq!((client.value(&plain), client.value(&read(&table))), ("one!".into(), "one".into()));
    client.query("BEGIN READ ONLY");
    assert_eq!(client.value(&read(&table)), "one!");
    client.query("COMMIT");
    client.query("SET pgweir.cache = 'off'");
    assert_eq!(client.value(&read(&table)), "one!");
    client.query("SET pgweir.cache = 'on'");
    assert_eq!(client.value(&read(&table)), "one");
    // Another setting that may shape results is another read.
    client.query("SET extra_float_digits = 0");
    assert_eq!(client.value(&read(&table)), "one!");
}

/// All the ways to ask for one read, by what they would leave behind: each runs on its own.
fn ways(sql: &str) -> Vec<Frames> {
    let bound = |formats: &[i16], limit| {
        Frames::new()
            .parse("", sql)
            .bind_formats("", "", &[], &[], formats)
            .describe(b'P', "")
            .execute("", limit)
            .sync()
    };
    vec![
        Frames::new().query(sql),
        Frames::new().parse("", sql).bind("", "", &[]).execute("", 0).sync(),
        bound(&[], 0),
        bound(&[0], 0),
        bound(&[1], 0),
        bound(&[1, 0], 0),
        bound(&[1], 3),
        bound(&[1], 2),
        bound(&[], 1),
        bound(&[0, 0, 0], 0),
        Frames::new().parse("s", sql).describe(b'S', "s").bind("p", "s", &[]).execute("p", 0).close(b'S', "s").sync(),
        Frames::new().parse("", sql).describe(b'S', "").bind_formats("", "", &[], &[], &[1]).execute("", 0).sync(),
        Frames::new().parse("", sql).bind("", "", &[]).describe(b'P', "").execute("", 0).close(b'P', "").sync(),
    ]
}

#[test]
fn a_kept_answer_is_what_the_server_would_send_however_it_is_asked_for() {
    let (pgweir, table) = (pgweir(), table("shapes"));
    let rows = format!("{HINT} SELECT n, t FROM public.{table} ORDER BY n");
    let none = format!("{HINT} SELECT n, t FROM public.{table} WHERE false");
    for sql in [rows, none] {
        let mut direct = Wire::connect(cluster().primary().port());
        let expected: Vec<_> = ways(&sql).iter().map(|way| frames(&mut direct, way)).collect();
        let mut client = Wire::connect(pgweir.port());
        warm(&pgweir, &mut client, &sql);
        // In each order of two, so that each fills what the other then asks for.
        for first in 0..expected.len() {
            for second in 0..expected.len() {
                client.query(&format!("UPDATE public.{table} SET n = n"));
                for way in [first, second, second] {
                    let came = frames(&mut client, &ways(&sql)[way]);
                    assert_eq!(came, expected[way], "{sql}: {way}, in {first} then {second}");
                }
            }
        }
    }
    let hits = pgweir.json("/stats")["database"]["cacheHitRate"].as_f64().unwrap();
    assert!(hits > 10.0, "{hits}");
    // By a statement of an earlier batch, with values bound in either format.
    let parsed = Frames::new().parse_typed("s", &format!("{HINT} SELECT n, t FROM public.{table} WHERE n = $1"), &[23]);
    let bound = |format: i16, value: &[u8], results: &[i16]| {
        let bind = Frames::new().bind_formats("", "s", &[format], &[Some(value)], results);
        bind.describe(b'P', "").execute("", 0).sync()
    };
    let ways =
        [bound(0, b"2", &[]), bound(1, &[0, 0, 0, 2], &[1]), bound(0, b"7", &[0]), bound(1, &[0, 0, 0, 1], &[0, 1])];
    let (mut direct, mut client) = (Wire::connect(cluster().primary().port()), Wire::connect(pgweir.port()));
    [&mut direct, &mut client].into_iter().for_each(|wire| drop(wire.ask(&parsed.clone().sync(), "1Z")));
    for way in ways {
        let (expected, before) = (frames(&mut direct, &way), pgweir.cache()["hits"].as_u64());
        (0..2).for_each(|_| assert_eq!(frames(&mut client, &way), expected));
        assert!(pgweir.cache()["hits"].as_u64() > before);
    }
}

fn frames(wire: &mut Wire, way: &Frames) -> Vec<(u8, Vec<u8>)> {
    wire.send(way);
    let came = wire.until(b'Z');
    // The detail of an error names lines of the server's source.
    came.into_iter()
        .map(|frame| (frame.tag, if frame.tag == b'E' { Vec::new() } else { frame.body.to_vec() }))
        .collect()
}

#[test]
fn a_reload_says_what_it_does_not_take_over() {
    let pgweir = pgweir();
    let reloaded = |times| pgweir.stderr().matches("configuration reloaded").count() == times;
    pgweir.reload(&builder().set("cache.max_bytes", "32MiB").set("cache.verify", 0.5));
    wait_until(LIMIT, "the reload", || reloaded(1));
    assert!(!pgweir.stderr().contains("take effect with a restart"));
    pgweir.reload(&builder().set("cache.ttl", "7s"));
    wait_until(LIMIT, "the other reload", || reloaded(2));
    assert!(pgweir.stderr().contains("take effect with a restart"));
}

/// Each has its own copy of no more than a piece.
#[test]
fn a_large_answer_is_given_as_its_client_reads() {
    // More than sockets hold.
    const SIZE: usize = 12 << 20;
    let pgweir = builder().set("cache.max_entry_bytes", "16MiB").start();
    let mut client = Wire::connect(pgweir.port());
    let sql = format!("{HINT} SELECT n, repeat('x', {SIZE}) FROM generate_series(1, 1) AS n");
    pgweir.warm(&mut client, &sql);
    let way = Frames::new().parse("", &sql).bind("", "", &[]).describe(b'P', "").execute("", 0).sync();
    let expected = frames(&mut client, &way);
    let resident = || pgweir.json("/stats")["memory"]["resident"].as_u64().unwrap();
    let (before, hits) = (resident(), pgweir.cache()["hits"].as_u64().unwrap());
    let mut slow: Vec<_> = (0..12).map(|_| Wire::connect(pgweir.port())).collect();
    slow.iter_mut().for_each(|client| client.send(&way));
    // Until all of them have been looked up, some of it has come to each.
    slow.iter().for_each(|client| assert!(client.stream.peek(&mut [0; 1]).unwrap() > 0));
    let grown = resident().saturating_sub(before);
    assert!(grown < (slow.len() * SIZE / 2) as u64, "{grown} bytes");
    for client in &mut slow {
        let came: Vec<_> = client.until(b'Z').into_iter().map(|frame| (frame.tag, frame.body.to_vec())).collect();
        assert!(came == expected);
    }
    assert_eq!(pgweir.cache()["hits"], hits + slow.len() as u64);
    // One that is gone in the midst of it, and one that is sent away.
    slow[0].send(&way);
    slow.remove(0);
    assert!(frames(&mut slow[0], &way) == expected);
}
