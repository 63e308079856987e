use crate::sql::classify::classify;
use crate::sql::fingerprint::{fingerprint, hints, normalize, traceparent};
use crate::sql::{Effect, Facts, Reason};
use std::time::{Duration, Instant};

/// All of sql/ on a thread with little stack; an overflow would abort the test run.
fn on_small_stack(text: String) -> Facts {
    let run = move || {
        let facts = classify(&text);
        fingerprint(&text);
        normalize(&text);
        hints(&text);
        traceparent(&text);
        facts
    };
    std::thread::Builder::new().stack_size(512 * 1024).spawn(run).unwrap().join().unwrap()
}

#[test]
fn long_statements() {
    let cases = [
        (format!("SELECT * FROM t{}", " JOIN t".repeat(500)), None),
        (format!("SELECT * FROM t{}", " JOIN t".repeat(2_000)), None),
        (format!("SELECT * FROM t{}", " JOIN t ON true".repeat(100_000)), Some(Reason::TooLong)),
        (format!("SELECT 1 WHERE a{}", " OR a".repeat(3_000)), None),
        (format!("SELECT 1 WHERE a{}", " OR a".repeat(30_000)), Some(Reason::TooLong)),
        (format!("SELECT {}1{}", "(".repeat(10_000), ")".repeat(10_000)), None),
        (format!("SELECT {}1{}", "(".repeat(100_000), ")".repeat(100_000)), Some(Reason::TooLong)),
        (format!("SELECT a{}", "+a".repeat(16_000)), None),
        (format!("SELECT a{}", "::int".repeat(6_000)), None),
        (format!("SELECT {}a", "NOT ".repeat(8_000)), None),
        (format!("SELECT {}1", "- ".repeat(16_000)), None),
        (format!("SELECT 1{}", " UNION SELECT 1".repeat(2_000)), None),
        (format!("SELECT a{}", ".a".repeat(16_000)), None),
        (format!("SELECT {}1{}", "CASE WHEN a THEN ".repeat(1_000), " END".repeat(1_000)), None),
        (format!("{}SELECT 1", "EXPLAIN ".repeat(10_000)), Some(Reason::Unparsable)),
        (format!("SELECT 1{}", ";SELECT 1".repeat(20_000)), None),
        (format!("INSERT INTO t VALUES {}(1)", "(1, 2),".repeat(20_000)), Some(Reason::Write)),
        (format!("SELECT {}", "VALUES ((".repeat(10_000)), Some(Reason::TooLong)),
        (format!("SELECT {}", "f(".repeat(15_000)), Some(Reason::UnknownFunction)),
        (format!("SELECT {}", "a IN (".repeat(5_000)), None),
        (format!("{}1", "SELECT 'a".repeat(3)), Some(Reason::Unparsable)),
    ];
    for (text, expected) in cases {
        let start = text.chars().take(60).collect::<String>();
        assert_eq!(on_small_stack(text).primary, expected, "{start}");
    }
}

#[test]
fn long_changes_are_known() {
    let rows =
        |count: usize| format!("INSERT INTO t (a, b) VALUES {}(1, lower('x'))", "(1, lower('x')),".repeat(count));
    let facts = classify(&rows(4_000));
    assert_eq!((facts.primary, facts.effects, facts.relations.len()), (Some(Reason::Write), vec![], 1));
    // beyond what is looked at
    let facts = classify(&rows(40_000));
    assert_eq!((facts.primary, facts.effects), (Some(Reason::Write), vec![Effect::Unknown]));
    // a hazard at the end of a long read
    let text = format!("SELECT 1 WHERE a IN ({}1) AND nextval('s') = 1", "1,".repeat(17_000));
    assert_eq!(classify(&text).primary, Some(Reason::Sequence));
}

#[test]
fn nothing_takes_exponential_time() {
    let nests = [
        ("SELECT * FROM ", "(", "t", ")"),
        ("SELECT * FROM ", "(a JOIN ", "t", " ON true)"),
        ("SELECT * FROM ", "(SELECT * FROM ", "t", ") x"),
        ("SELECT * FROM ", "((SELECT * FROM ", "t", "))"),
        ("SELECT * FROM ", "LATERAL (SELECT * FROM ", "t", ") x"),
        ("SELECT ", "(", "1", ")"),
        ("SELECT ", "(1, ", "1", ")"),
        ("SELECT ", "lower(", "1", ")"),
        ("SELECT ", "lower(a => ", "1", ")"),
        ("SELECT ", "CASE WHEN a THEN ", "1", " END"),
        ("SELECT ", "ARRAY[", "1", "]"),
        ("SELECT ", "a[", "1", "]"),
        ("SELECT ", "(SELECT ", "1", ")"),
        ("SELECT ", "a IN (", "1", ")"),
        ("SELECT ", "EXISTS (SELECT ", "1", ")"),
        ("SELECT ", "CAST(", "1", " AS int)"),
        ("SELECT ", "EXTRACT(year FROM ", "1", ")"),
        ("SELECT ", "SUBSTRING(", "1", " FROM 1)"),
        ("SELECT ", "sum(1) OVER (ORDER BY ", "1", ")"),
        ("SELECT ", "INTERVAL (", "1", ")"),
        ("SELECT ", "POSITION(a IN (", "1", "))"),
        ("SELECT ", "a = ANY (", "1", ")"),
        ("SELECT ", "a BETWEEN (", "1", ") AND 2"),
        ("SELECT ", "(VALUES (", "1", "))"),
        ("SELECT ", "(a, b) -> (", "1", ")"),
        ("SELECT 1 GROUP BY ", "(", "a", ")"),
        ("SELECT 1 GROUP BY ", "ROLLUP (", "a", ")"),
        ("", "(SELECT 1 UNION ", "SELECT 1", ")"),
        ("", "(", "SELECT 1", ")"),
        ("", "WITH a AS (", "SELECT 1", ") SELECT 1"),
        ("INSERT INTO t ", "(", "SELECT 1", ")"),
        ("INSERT INTO t ", "VALUES (", "1", ")"),
        ("SELECT ", "(", "", ""),
        ("SELECT * FROM ", "(", "", ""),
        ("SELECT ", "lower(", "", ""),
        ("SELECT ", "CASE ", "", ""),
        ("SELECT ", "[", "", ""),
    ];
    for (start, open, middle, close) in nests {
        for depth in [8, 24, 48, 200] {
            let text = format!("{start}{}{middle}{}", open.repeat(depth), close.repeat(depth));
            let begun = Instant::now();
            classify(&text);
            normalize(&text);
            // a debug build needs a few milliseconds
            assert!(begun.elapsed() < Duration::from_secs(2), "{text}");
        }
    }
}
