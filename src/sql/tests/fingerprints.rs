use crate::sql::classify::classify;
use crate::sql::fingerprint::{date_word, fingerprint, hints, normalize, traceparent};
use crate::sql::{Hints, RouteHint};

fn same(texts: &[&str]) {
    let all: Vec<_> = texts.iter().map(|text| fingerprint(text).fingerprint).collect();
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{texts:#?} {all:?}");
}

#[test]
fn what_does_not_matter() {
    same(&[
        "SELECT a FROM t WHERE b = 1",
        "select  A\n from T where B=2.5 ;",
        "SELECT a FROM t WHERE b = $1",
        "/* x */ SELECT a /* y */ FROM t -- z\n WHERE b = 'it''s'",
        ";SELECT a FROM t WHERE b = $$x$$;;",
        "SELECT a FROM t WHERE b = E'\\n'",
        "SELECT a FROM t WHERE b = x'ff'",
    ]);
    same(&[
        "SELECT * FROM t WHERE a IN (1)",
        "SELECT * FROM t WHERE a IN (1, 2, 3)",
        "SELECT * FROM t WHERE a IN ($1, $2)",
        "SELECT * FROM t WHERE a in ( 'a' , -2, NULL, true )",
    ]);
    same(&["SELECT ARRAY[1]", "SELECT ARRAY [1, 2, $3]"]);
    same(&[
        "INSERT INTO t VALUES (1, 'a')",
        "INSERT INTO t VALUES (1, 'a'), (2, 'b'), ($1, $2)",
        "INSERT INTO t VALUES (1, 'a'), (2, 'b');",
    ]);
    same(&[
        "INSERT INTO t VALUES (1, now(), f((2))) ON CONFLICT DO NOTHING",
        "INSERT INTO t VALUES (1, now(), f((2))), (3, NOW ( ), f((4))) ON CONFLICT DO NOTHING",
    ]);
    same(&["SELECT 1; SELECT 2", "select 1;; select 3;"]);
}

#[test]
fn what_matters() {
    let texts = [
        "SELECT a FROM t",
        "SELECT b FROM t",
        "SELECT \"a\" FROM t",
        "SELECT \"A\" FROM t",
        "SELECT a FROM t WHERE b = 1",
        "SELECT a FROM t WHERE b = -1",
        "SELECT a FROM t WHERE b = 1::text",
        "SELECT a FROM t WHERE b <> 1",
        "SELECT a FROM t WHERE b IN (1, c)",
        "SELECT a FROM t WHERE b IN (1, d)",
        "SELECT a FROM t WHERE b IN (SELECT 1)",
        "SELECT a FROM t WHERE b NOT IN (1)",
        "SELECT f(1)",
        "SELECT f(1, 2)",
        "SELECT f(1, 2, 3)",
        "INSERT INTO t VALUES (1)",
        "INSERT INTO t VALUES (1, 2)",
        "INSERT INTO t VALUES (1, 2), (f(3), 4)",
        "INSERT INTO t VALUES (1, 2), (f(3), 4), (1, 2)",
        "SELECT 1; SELECT 1",
        "SELECT 1 SELECT 1",
        "SELECT 'a",
        "SELECT 'b",
        "SELECT ab",
        "SELECT a b",
        "SELECT a.b",
        "",
    ];
    for (at, one) in texts.iter().enumerate() {
        for other in texts.iter().skip(at + 1) {
            assert_ne!(fingerprint(one).fingerprint, fingerprint(other).fingerprint, "{one} | {other}");
        }
    }
}

#[test]
fn literals_that_decide() {
    for text in [
        "SET a = 1",
        "SELECT 1; set a = 1",
        "SELECT set_config('a', 'b', true)",
        "SELECT \"set_config\"('a', 'b', true)",
        "/* pgweir: primary */ SELECT 1",
        "SELECT 'now'::timestamp",
        "SELECT ' TOMORROW 12:00'::timestamp",
        "SELECT * FROM t WHERE a IN (1, 'yesterday')",
        "INSERT INTO t VALUES (1), ('today')",
        "SELECT '\\d'",
        "SELECT E'n\\x6fw'::timestamp",
        "SELECT 'abc",
    ] {
        assert!(fingerprint(text).by_literal, "{text}");
    }
    for text in [
        "UPDATE t SET a = 1",
        "SELECT 'pgweir:'",
        "SELECT 'known'",
        "SELECT 'just now'",
        "SELECT /* x */ 'a', $1",
        "SELECT 'to'",
    ] {
        let by_literal = fingerprint(text).by_literal;
        assert_eq!(by_literal, text.contains("just now"), "{text}");
    }
    for (word, is_one) in
        [("NOW", true), ("2020 today", true), ("now5", true), ("5now", true), ("(now)", true), ("_now", true)]
            .into_iter()
            .chain([("2020-01-01", false), ("snow", false), ("nowhere", false), ("todays", false), ("", false)])
    {
        assert_eq!(date_word(word.as_bytes()), is_one, "{word}");
    }
    // What it skips, Postgres does not count; what is longer, it refuses.
    let behind = |before: &str| format!("{before}now");
    for (text, is_one) in
        [(behind(&" ".repeat(500)), true), (behind(&"(".repeat(500)), true), (behind(&"n ".repeat(200)), false)]
    {
        assert_eq!(date_word(text.as_bytes()), is_one, "{text}");
    }
}

#[test]
fn normalized() {
    let cases = [
        ("SELECT  a ,\n 'x' FROM t -- c\n WHERE b = 1.5;", "SELECT a , $1 FROM t WHERE b = $2"),
        ("SELECT $2, 'a', $1", "SELECT $2, $3, $1"),
        ("SELECT * FROM t WHERE a IN (1, 2, 3) AND b IN (4)", "SELECT * FROM t WHERE a IN ($1, ...) AND b IN ($2)"),
        ("INSERT INTO t VALUES (1, 'a'), (2, 'b') RETURNING a", "INSERT INTO t VALUES ($1, $2), ... RETURNING a"),
        ("SELECT ARRAY[1,2]", "SELECT ARRAY[$1, ...]"),
        ("/* x */ SELECT \"A\", b::int4", "SELECT \"A\", b::int4"),
        ("ALTER ROLE a PASSWORD 'secret'", "ALTER ROLE a PASSWORD $1"),
        ("SELECT a, 'secret", "SELECT a, ..."),
        ("SELECT 1; SELECT 2;", "SELECT $1; SELECT $2"),
        ("", ""),
    ];
    for (text, expected) in cases {
        assert_eq!(normalize(text), expected, "{text}");
    }
}

#[test]
fn hints_in_comments() {
    let route = |route| Hints { route: Some(route), ..Hints::default() };
    let cases = [
        ("/* pgweir: primary */ SELECT 1", route(RouteHint::Primary)),
        ("/*pgweir:replica*/ SELECT 1", route(RouteHint::Replica)),
        ("SELECT 1 /* pgweir: replica */", route(RouteHint::Replica)),
        ("SELECT 1; -- pgweir: replica", route(RouteHint::Replica)),
        ("SELECT 1 /* pgweir: replica */ ;", route(RouteHint::Replica)),
        ("/* a */ -- b\n /* pgweir: primary */ SELECT 1", route(RouteHint::Primary)),
        ("/* pgweir: replica */ SELECT 1 /* pgweir: primary */", route(RouteHint::Primary)),
        ("/* pgweir: primary */ SELECT 1 /* pgweir: replica */", route(RouteHint::Primary)),
        ("SELECT 1 /* pgweir: nocache */", Hints { no_cache: true, ..Hints::default() }),
        ("SELECT 1 /* pgweir: cache ttl=5s */", Hints { cache_ttl_ms: Some(5000), ..Hints::default() }),
        (
            "SELECT 1 /* pgweir: cache ttl=250ms, replica */",
            Hints { cache_ttl_ms: Some(250), ..route(RouteHint::Replica) },
        ),
        ("SELECT 1 /* pgweir: cache ttl=2min */", Hints { cache_ttl_ms: Some(120_000), ..Hints::default() }),
        // nowhere else, and nothing that is not one
        ("SELECT /* pgweir: primary */ 1", Hints::default()),
        ("SELECT '/* pgweir: primary */'", Hints::default()),
        ("SELECT 1 -- '/* pgweir: primary */", Hints::default()),
        ("SELECT 1 /* pgweir: cache ttl=soon */", Hints::default()),
        ("SELECT 1 /* pgweir: cache ttl=99999999999999999999s */", Hints::default()),
        ("SELECT 1 /* pgweir: sideways */", Hints::default()),
        ("SELECT 1 /* not pgweir: primary */", Hints::default()),
    ];
    for (text, expected) in cases {
        assert_eq!(hints(text), expected, "{text}");
    }
}

#[test]
fn trace_context() {
    let id = "00-5bd66ef5095369c7b0d1f8f4bd33716a-c532cb4098ac3dd2-01";
    let found = format!("SELECT 1 /*action='%2Fx',traceparent='{id}',tracestate='a%3D1'*/;");
    assert_eq!(traceparent(&found), Some(id));
    assert_eq!(traceparent(&format!("/*traceparent='{id}'*/ SELECT 1")), Some(id));
    for text in [
        format!("SELECT '/*traceparent=''{id}''*/'"),
        format!("SELECT 1 /*traceparent='{}'*/", id.to_uppercase()),
        "SELECT 1 /*traceparent='00-1'*/".to_owned(),
        "SELECT 1 /*traceparent='é'*/".to_owned(),
        "SELECT 1".to_owned(),
    ] {
        assert_eq!(traceparent(&text), None, "{text}");
    }
}

/// With a number it is a syntax error, whose facts are kept all the same.
#[test]
fn what_shares_a_fingerprint_names_the_same_types() {
    for name in ["dom", "s.dom", "\"Dom\"", "value", "first", "rows", "key", "version", "zone", "escape"] {
        let types = |constant: &str| {
            let text = format!("SELECT {name} {constant}");
            (fingerprint(&text).fingerprint, classify(&text).types)
        };
        let expected = types("'x'");
        assert_eq!(expected.1.len(), 1, "{name}");
        for constant in ["1", "B'1'", "$1", "E'x'", "$$x$$"] {
            assert_eq!(types(constant), expected, "{name} {constant}");
        }
    }
    let none = [
        "SELECT a FROM t GROUP BY 1 ORDER BY 1 LIMIT 1 OFFSET 1",
        "SELECT a FROM t ORDER BY a FETCH FIRST 1 ROWS ONLY",
        "SELECT a FROM t FETCH NEXT $1 ROWS WITH TIES",
        "SELECT sum(a) OVER (PARTITION BY 1 ORDER BY a ROWS 1 PRECEDING) FROM t",
        "SELECT sum(a) OVER (w RANGE BETWEEN 1 PRECEDING AND 2 FOLLOWING) FROM t WINDOW w AS (ORDER BY a GROUPS 1 PRECEDING)",
        "SELECT JSON_OBJECT(KEY $1 VALUE 2), JSON_OBJECT('a' VALUE 1)",
        "SELECT a AT TIME ZONE $1, a LIKE 'b' ESCAPE $2, substring(a FROM 1 FOR 2), CASE WHEN 1 = 1 THEN 2 ELSE 3 END FROM t",
        "SELECT a AT TIME ZONE 'UTC', a LIKE ('b') ESCAPE 'c', U&'d!0061t' UESCAPE '!', xmlroot(x, VERSION '1.0') FROM t",
        "SELECT xmlparse(CONTENT 'x'), xmlparse(DOCUMENT $1), xmlexists('/a' PASSING 'b')",
        "SELECT a FROM t WHERE a BETWEEN SYMMETRIC 1 AND 2 AND NOT 1 = 2 OR a IN (1, 2) AND a IS DISTINCT FROM 3",
    ];
    for text in none {
        assert_eq!(classify(text).types, [], "{text}");
    }
}
