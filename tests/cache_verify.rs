//! Answers from the cache that are compared with the primary's behind the client's back (`cache.verify`).

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use pgweir::demo::sample;
use support::wire::{Frames, Wire};
use support::{Builder, LIMIT, Pgweir, cluster, wait_until};

fn builder(invalidation: &str, verify: f64) -> Builder {
    Pgweir::builder()
        .cluster(cluster(), &[])
        .set("cache.enabled", true)
        .set("cache.invalidation", invalidation)
        .set("cache.verify", verify)
}

fn around(sql: &str) {
    cluster().primary().psql_in(sample::DATABASE, sql).unwrap();
}

fn table(name: &str) {
    around(&format!(
        "DROP TABLE IF EXISTS public.{name}; CREATE TABLE public.{name} (n int, t text); \
         INSERT INTO public.{name} VALUES (1, 'sesame'), (2, 'poppy'); GRANT ALL ON public.{name} TO app"
    ));
}

fn count(pgweir: &Pgweir, field: &str) -> u64 {
    pgweir.json("/cache")[0][field].as_u64().unwrap()
}

/// Asks until a count has risen that hits make rise.
fn ask_until_risen(pgweir: &Pgweir, field: &str, mut ask: impl FnMut()) {
    let before = count(pgweir, field);
    wait_until(LIMIT, field, || {
        ask();
        count(pgweir, field) > before
    });
}

#[test]
fn an_answer_that_is_not_the_primarys_is_counted_and_logged_without_values() {
    table("verified_ttl");
    let pgweir = builder("ttl", 1.0).start();
    let mut client = Wire::connect(pgweir.port());
    let sql = "/* pgweir: cache ttl=200s */ SELECT t FROM public.verified_ttl WHERE n = 1 AND t <> 'barley'";
    ask_until_risen(&pgweir, "verified", || drop(client.query(sql)));
    assert_eq!(count(&pgweir, "differences"), 0);
    around("UPDATE public.verified_ttl SET t = 'linseed' WHERE n = 1");
    ask_until_risen(&pgweir, "differences", || assert_eq!(client.value(sql), "sesame"));
    let said = pgweir.stderr();
    let line = said.lines().find(|line| line.contains("not what the primary says")).expect("a line in the log");
    let statements = pgweir.json("/statements").to_string();
    let fingerprint = line.split("\"fingerprint\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    assert!(statements.contains(fingerprint), "{line}");
    for value in ["sesame", "linseed", "barley"] {
        assert!(!said.contains(value), "{said}");
    }
    let metrics = pgweir.get("/metrics").1;
    let line = metrics.lines().find(|line| line.starts_with("pgweir_cache_differences_total{")).unwrap();
    assert!(!line.ends_with(" 0"), "{line}");
}

#[test]
fn an_error_of_the_read_is_a_difference() {
    table("verified_gone");
    let pgweir = builder("ttl", 1.0).start();
    let mut client = Wire::connect(pgweir.port());
    let sql = "/* pgweir: cache ttl=200s */ SELECT t FROM public.verified_gone WHERE n = 1";
    ask_until_risen(&pgweir, "verified", || drop(client.query(sql)));
    around("REVOKE ALL ON public.verified_gone FROM app");
    ask_until_risen(&pgweir, "differences", || assert_eq!(client.value(sql), "sesame"));
}

#[test]
fn it_is_read_again_as_the_session_would_read_it() {
    table("verified_alike");
    around(
        "DROP ROLE IF EXISTS verifier; CREATE ROLE verifier; GRANT verifier TO app; \
         DROP TABLE IF EXISTS public.verified_secret; CREATE TABLE public.verified_secret (at timestamptz, t text); \
         INSERT INTO public.verified_secret VALUES ('2020-01-01 00:00+00', 'sesame'); \
         GRANT SELECT ON public.verified_secret TO verifier",
    );
    let pgweir = builder("wal", 0.0).start();
    pgweir.reload(&builder("wal", 1.0));
    let mut client = Wire::connect(pgweir.port());
    for setting in ["SET TimeZone = 'Asia/Tokyo'", "SET search_path = public, pg_catalog", "SET ROLE verifier"] {
        client.query(setting);
    }
    let simple = Frames::new().query("SELECT at, t FROM verified_secret");
    let bound = |formats: &[i16]| {
        Frames::new()
            .parse("", "SELECT at, t FROM verified_secret WHERE t = $1")
            .bind_formats("", "", &[], &[Some(b"sesame")], formats)
            .describe(b'P', "")
            .execute("", 0)
            .sync()
    };
    for way in [simple, bound(&[0]), bound(&[1]), bound(&[1, 0])] {
        ask_until_risen(&pgweir, "verified", || {
            client.send(&way);
            assert!(client.until(b'Z').iter().any(|frame| frame.tag == b'D'));
        });
    }
    // The connection that was used is for everybody again as it was.
    let mut other = Wire::connect(pgweir.port());
    assert_eq!(other.value("/* pgweir: primary */ SHOW statement_timeout"), "0");
    assert_eq!(other.value("/* pgweir: primary */ SHOW default_transaction_read_only"), "off");
    assert_eq!(count(&pgweir, "differences"), 0);
}

#[test]
fn what_is_written_meanwhile_is_no_difference() {
    table("verified_busy");
    let pgweir = builder("wal", 1.0).start();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                around("UPDATE public.verified_busy SET t = t || '!' WHERE n = 1");
                around("ALTER TABLE public.verified_busy RENAME COLUMN n TO m");
                around("ALTER TABLE public.verified_busy RENAME COLUMN m TO n");
            }
        });
        let mut client = Wire::connect(pgweir.port());
        let sql = "SELECT * FROM public.verified_busy ORDER BY 1";
        for _ in 0..10 {
            ask_until_risen(&pgweir, "hits", || drop(client.query(sql)));
        }
        done.store(true, Ordering::Relaxed);
        ask_until_risen(&pgweir, "verified", || drop(client.query(sql)));
    });
    assert_eq!(count(&pgweir, "differences"), 0);
}

/// Here by what no stream can tell: words in rows that are read as moments.
#[test]
fn in_wal_too_a_difference_is_counted() {
    table("verified_words");
    around("UPDATE public.verified_words SET t = 'now'");
    let pgweir = builder("wal", 1.0).start();
    let mut client = Wire::connect(pgweir.port());
    ask_until_risen(&pgweir, "differences", || {
        drop(client.query("SELECT t::timestamptz FROM public.verified_words"));
    });
    assert!(pgweir.stderr().contains("not what the primary says"));
}
