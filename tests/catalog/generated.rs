//! Statements made by a grammar over the objects of `objects.sql`: well-typed, so that a label holds, then some of them
//! mutated, which takes the label away.

use pgweir::random::Random;

/// The same seed, the same statements.
pub struct Generator {
    random: Random,
    /// Pieces that a standby must not run may be put in.
    tainting: bool,
}

const SAFE_INTS: &[&str] = &[
    "1",
    "-7",
    "0 * 3",
    "f_stable()",
    "public.f_immutable(2)",
    "f_immutable(1, 2)",
    "f_atomic(1)",
    "f_plpgsql(1)",
    "f_recursive(2)",
    "f_over()",
    "f_over(1, f_over(2, 3, 4))",
    "(SELECT total(n ORDER BY n, s) FROM plain)::int",
    "tame.who()",
    "2::positive::int",
    "length('abc'::text)",
    "(SELECT count(*)::int FROM v_plain)",
    "(SELECT max(n) FROM m_plain)",
    "abs(-3)",
    "extract(year FROM date '2020-01-01')::int",
    "octet_length($$x$$)",
    "(ARRAY[1, 2, 3])[2]",
    "coalesce(NULL, 4)",
    "least(1, 2)",
    "nullif(3, 4)",
    "CASE WHEN true THEN 1 ELSE 2 END",
    "position('b' IN 'abc')",
    "CAST('5' AS int)",
    "(SELECT sum(x)::int FROM generate_series(1, 3) AS g(x))",
    "f_immutable(b => 3, a => 1)",
    "f_immutable(a := 1)",
    "f_variadic(VARIADIC ARRAY[1, 2])::int",
    "int4 '6'",
    "int '7'",
    "(ARRAY[[1, 2], [3, 4]])[1][2]",
    "cardinality((ARRAY[1, 2, 3])[2:3])",
    "(ROW(1, 2)::pair).a",
    "('(1,2)'::pair)::int",
    "date_part('day', interval '3 days')::int",
    "((timestamptz '2020-01-01 00:00+00' AT TIME ZONE 'UTC')::date - date '2019-12-31')",
    "char_length(U&'d\\0061t' COLLATE \"C\")",
    "substring('12345' FROM 2 FOR 1)::int",
    "overlay('105' PLACING '2' FROM 2 FOR 1)::int",
    "length(trim(BOTH 'x' FROM 'xax'))",
    "(jsonb '{\"a\": [1, 2]}' #>> '{a,0}')::int",
    "(jsonb '{\"a\": 4}' -> 'a')::int",
    "(jsonb '{\"a\": 4}')['a']::int",
    "bit_length(B'1010' || X'F')",
    "(- (+ 4))",
    "(2 ^ 3)::int",
    "@ -5",
    "(5 % 3 << 1 | 2)",
    "(current_date - current_date)",
    "(SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY x) FROM generate_series(1, 3) AS x)",
    "(SELECT count(*)::int FROM ROWS FROM (generate_series(1, 2), unnest(ARRAY[1])) WITH ORDINALITY AS z(a, b, c))",
    "(SELECT count(DISTINCT n)::int FROM plain WHERE s SIMILAR TO '[a-c]')",
    "(SELECT length(string_agg(s, ',' ORDER BY s DESC, n)) FROM plain)",
    "(SELECT count(*)::int FROM plain TABLESAMPLE bernoulli (50) REPEATABLE (3))",
    "(SELECT count(*)::int FROM plain NATURAL JOIN v_plain)",
    "(SELECT count(*)::int FROM plain AS a FULL JOIN parted AS b USING (n) AS j)",
    "(SELECT count(*)::int FROM plain WHERE n OPERATOR(pg_catalog.+) CASE WHEN true THEN 1 END OPERATOR(public.~==~) 1)",
    "(SELECT count(*)::int FROM json_to_recordset('[{\"a\": 1}]') AS r(a int))",
    "(SELECT n FROM labelled AS l WHERE l.tag = 'x' UNION SELECT 3 LIMIT 1)",
];

const UNSAFE_INTS: &[&str] = &[
    "f_volatile()",
    "f_over(1)",
    "f_over(f_over(1, 2))",
    "(SELECT total(n, n ORDER BY n) FROM plain)::int",
    "nextval('public.numbers')::int",
    "f_lies_next()::int",
    "f_lies_lock()",
    "f_lies_pid()",
    "f_calls_volatile()",
    "f_deep_1()",
    "f_default()::int",
    "f_unlogged()::int",
    "f_sequence()::int",
    "hidden.who()",
    "pg_backend_pid()",
    "1::counted",
    "CAST(1 AS counted_more)",
    "(SELECT n FROM v_next)::int",
    "(SELECT max(n) FROM v_operator)",
    "(SELECT count(*) FROM u_table)::int",
    "(SELECT last_value FROM numbers)::int",
    "\"f_volatile\"()",
    "public . f_volatile /* x */ ()",
    "f_own_path()",
    "(SELECT n FROM v_volatile)",
    "(SELECT count(*)::int FROM mixed)",
    "txid_current()::text::int",
    "(pg_catalog.nextval('public.numbers'))::int",
    "(SELECT total_counting(n) FROM plain)::int",
    "f_activity()::int",
    "(SELECT count(*)::int FROM pg_stat_activity)",
    "(SELECT count(*)::int FROM v_locking)",
    "(SELECT count(*)::int FROM f_table)",
    "(SELECT n FROM v_pid)",
    "pg_catalog . \"nextval\" ('public.numbers')::int",
    "U&\"n\\0065xtval\"('public.numbers')::int",
    "('public.numbers'::regclass).nextval::int",
    "(SELECT count(*)::int FROM ROWS FROM (f_volatile(), generate_series(1, 2)))",
    "f_default(DEFAULT => 1)::int",
    "(SELECT label(l)::int FROM labelled AS l)",
    "(SELECT l.label::int FROM labelled AS l)",
    "(SELECT (l).label::int FROM labelled l)",
    "(ARRAY[1]::counted[])[1]",
    "counted '3'",
    "(SELECT x.y FROM (SELECT f_volatile() AS y) AS x)",
    "(TABLE v_next)::int",
    "lo_creat(-1)::int",
    "(SELECT n FROM plain LIMIT 1 FOR NO KEY UPDATE OF plain SKIP LOCKED)",
    "pg_notify('x', 'y')::text::int",
    "length(currval('public.numbers')::text)",
    "pg_sequence_last_value('public.numbers')::int",
    "length(query_to_xml('SELECT 1', true, false, '')::text)",
    "ts_stat('SELECT 1')::text::int",
    "inet_server_port()",
    "(SELECT count(*)::int FROM pg_locks)",
    "pg_try_advisory_lock(9)::int",
    "length(pg_current_wal_lsn()::text)",
    "length(set_config('app.z', 'y', true))",
    "1 OPERATOR ( public . ~!!~ ) 2 :: int",
];

const SOURCES: &[&str] = &[
    "plain",
    "public.plain",
    "v_plain",
    "v_of_view",
    "f_rows()",
    "parted",
    "secured",
    "ONLY plain",
    "v_tenant",
    "with_pair",
    "(SELECT n FROM plain) ",
    "(VALUES (1), (2))",
];

const UNSAFE_SOURCES: &[&str] = &[
    "v_next",
    "u_table",
    "mixed",
    "parent",
    "secured_lock",
    "v_cast",
    "v_lies",
    "v_deep",
    "numbers",
    "public . \"u_table\"",
    "ONLY (u_table)",
    "v_unlogged",
];

/// Around a query, what a standby must not run.
const UNSAFE_FRAMES: &[&str] = &[
    "{} FOR UPDATE",
    "{} FOR KEY SHARE NOWAIT",
    "SELECT x INTO made FROM ({}) AS q(x)",
    "SELECT x INTO TEMP made FROM ({}) AS q(x)",
    "CREATE TABLE made AS {}",
    "WITH w AS (DELETE FROM plain WHERE false RETURNING n) {}",
    "WITH w AS MATERIALIZED (UPDATE plain SET n = n WHERE false RETURNING n) SELECT n FROM w UNION ALL ({})",
    "WITH a AS (WITH b AS (INSERT INTO plain (n) SELECT 1 WHERE false RETURNING n) SELECT n FROM b) {}",
    "WITH w AS (MERGE INTO plain USING (SELECT 1 AS m) s ON false WHEN NOT MATCHED THEN DO NOTHING RETURNING 1) {}",
    "EXPLAIN ANALYZE INSERT INTO plain (n) {}",
    "EXPLAIN (VERBOSE, ANALYSE off, ANALYZE) CREATE TABLE made AS {}",
    "INSERT INTO plain (n) {}",
    "UPDATE plain SET n = q.x FROM ({}) AS q(x) WHERE false",
    "COPY ({}) TO STDOUT",
    "DECLARE c CURSOR FOR {}",
    "PREPARE p AS {}",
    "DO $$ BEGIN PERFORM ({}); END $$",
    "SELECT 1; DELETE FROM plain WHERE false; {}",
    "BEGIN READ ONLY; {}",
    "BEGIN READ ONLY; LOCK TABLE plain; {}; COMMIT",
    "BEGIN; {}; COMMIT",
];

/// Around a query, what a standby may run as well.
const SAFE_FRAMES: &[&str] = &[
    "EXPLAIN (ANALYZE, COSTS off) {}",
    "EXPLAIN (FORMAT json) {}",
    "-- lead\n{};",
    "/* a /* b */ c */ ({})",
    "SELECT 1; {}",
    "{}; TABLE plain;",
    "BEGIN READ ONLY; {}; COMMIT",
    "START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; {}; ROLLBACK",
    "SELECT * FROM ({}) AS o(x) ORDER BY 1 NULLS FIRST OFFSET 0 ROWS FETCH FIRST 2 ROWS ONLY",
    "SELECT o.* FROM ({}) o (x) ORDER BY 1 USING < FETCH NEXT ROW WITH TIES",
];

fn is_unsafe(sql: &str) -> bool {
    UNSAFE_INTS.iter().any(|piece| sql.contains(piece))
        || UNSAFE_SOURCES.iter().any(|source| sql.contains(&format!(" {source} AS t")))
}

impl Generator {
    pub fn new(seed: u64) -> Self {
        Generator { random: Random::new(seed), tainting: false }
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.random.draw() % bound as u64) as usize
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }

    /// A statement, and whether a standby may run it; `None`: nobody knows.
    pub fn statement(&mut self) -> (String, Option<bool>) {
        self.tainting = self.below(2) == 0;
        let query = self.query(3);
        let framed = self.tainting && self.below(6) == 0;
        let frame = match self.below(3) {
            _ if framed => self.pick(UNSAFE_FRAMES),
            0 => self.pick(SAFE_FRAMES),
            _ => "{}",
        };
        let sql = frame.replace("{}", &query);
        if self.below(4) == 0 {
            return (self.mutated(&sql), None);
        }
        let safe = !framed && !is_unsafe(&sql);
        (sql, Some(safe))
    }

    /// One column, of int.
    fn query(&mut self, depth: usize) -> String {
        let (int, other) = (self.int(depth), self.bool(depth));
        match self.below(if depth == 0 { 2 } else { 20 }) {
            0 => format!("SELECT {int} AS n"),
            1 => format!("VALUES ({int}), (2)"),
            2 => format!("SELECT {int} AS n FROM {} WHERE {other}", self.source(depth)),
            3 => format!("SELECT {int} UNION ALL ({})", self.query(depth - 1)),
            4 => format!(
                "WITH c AS (SELECT {int} AS n), d AS MATERIALIZED ({}) SELECT c.n FROM c, d",
                self.query(depth - 1)
            ),
            5 => format!(
                "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT r.n + 1 FROM r WHERE r.n < 3) SELECT {int} FROM r"
            ),
            6 => format!("SELECT max({int}) OVER (PARTITION BY t.n) FROM {} ORDER BY 1 LIMIT 3", self.source(depth)),
            7 => format!(
                "SELECT t.n FROM {}, LATERAL (SELECT {int} AS m) AS l GROUP BY t.n HAVING {other}",
                self.source(depth)
            ),
            8 => format!(
                "SELECT x FROM ({}) AS q(x) WHERE EXISTS (SELECT FROM plain WHERE {other})",
                self.query(depth - 1)
            ),
            9 => format!("SELECT DISTINCT ON (t.n) {int} FROM {} LEFT JOIN plain AS p ON {other}", self.source(depth)),
            10 => format!("SELECT {int} INTERSECT ALL ({}) EXCEPT SELECT 3", self.query(depth - 1)),
            11 => format!("SELECT t.n FROM {} GROUP BY GROUPING SETS ((t.n), ()) HAVING {other}", self.source(depth)),
            12 => format!("SELECT count(*)::int FROM {} GROUP BY CUBE (t.n), ROLLUP (t.n + {int})", self.source(depth)),
            13 => format!(
                "SELECT first_value({int}) OVER w FROM {} WINDOW w AS (ORDER BY t.n ROWS BETWEEN 1 PRECEDING AND CURRENT ROW EXCLUDE TIES)",
                self.source(depth)
            ),
            14 => format!(
                "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 3) \
                 SEARCH DEPTH FIRST BY n SET o CYCLE n SET c USING p SELECT {int} FROM r"
            ),
            15 => format!(
                "SELECT v.x FROM (VALUES ({int}, 'a'), (2, NULL)) AS v(x, y) WHERE {other} ORDER BY v.y COLLATE \"C\""
            ),
            16 => format!(
                "SELECT n FROM plain CROSS JOIN LATERAL f_immutable({int}, 1) AS f(m) RIGHT JOIN {} USING (n)",
                self.source(depth)
            ),
            17 => format!("SELECT (ARRAY(({})))[1]", self.query(depth - 1)),
            18 => format!("SELECT ALL {int} FROM {} LIMIT abs({int}) OFFSET 0", self.source(depth)),
            _ => format!("SELECT count(*) FILTER (WHERE {other})::int FROM {}", self.source(depth)),
        }
    }

    /// Something in FROM, called t, with a column n.
    fn source(&mut self, depth: usize) -> String {
        if self.tainting && self.below(8) == 0 {
            return format!("{} AS t", self.pick(UNSAFE_SOURCES));
        }
        match self.below(6) {
            0 if depth > 0 => format!("({}) AS t(n)", self.query(depth - 1)),
            _ => match self.pick(SOURCES) {
                source if source.starts_with("(VALUES") => format!("{source} AS t(n)"),
                source => format!("{source} AS t"),
            },
        }
    }

    fn int(&mut self, depth: usize) -> String {
        if self.tainting && self.below(10) == 0 {
            return self.pick(UNSAFE_INTS).to_owned();
        }
        if depth == 0 {
            return self.pick(SAFE_INTS).to_owned();
        }
        match self.below(7) {
            0 => format!("({} + {})", self.int(depth - 1), self.int(depth - 1)),
            1 => format!("CASE WHEN {} THEN {} ELSE 0 END", self.bool(depth - 1), self.int(depth - 1)),
            2 => format!("(SELECT min(x) FROM ({}) AS s(x))", self.query(depth - 1)),
            3 => format!("coalesce({}, {})", self.int(depth - 1), self.int(depth - 1)),
            4 => format!("f_immutable({})", self.int(depth - 1)),
            _ => self.pick(SAFE_INTS).to_owned(),
        }
    }

    fn bool(&mut self, depth: usize) -> String {
        if depth == 0 {
            return "true".to_owned();
        }
        let int = self.int(depth - 1);
        match self.below(16) {
            8 => format!("{int} NOT BETWEEN SYMMETRIC 5 AND 1"),
            9 => format!("{int} <> ALL ({})", self.query(depth - 1)),
            10 => format!("({int}, 1) IN (SELECT n, 1 FROM plain)"),
            11 => format!("({int} IS NOT NULL) IS NOT UNKNOWN"),
            12 => "(date '2020-01-01', interval '1 day') OVERLAPS (date '2020-02-01', date '2020-03-01')".to_owned(),
            13 => format!("({int})::text ILIKE '1%' ESCAPE '!' AND 'x' NOT SIMILAR TO 'y'"),
            14 => format!("NOT EXISTS ({})", self.query(depth - 1)),
            15 => format!("{int} OPERATOR(pg_catalog.=) 1 OR 'a' IS NFC NORMALIZED"),
            0 => format!("{int} BETWEEN 0 AND 100"),
            1 => format!("{int} IN (1, 2, 3)"),
            2 => format!("NOT ({int} = 3)"),
            3 => format!("{int} ~==~ 1"),
            4 => format!("{int} IS DISTINCT FROM 2"),
            5 => format!("{int} = ANY (ARRAY[1, 2])"),
            6 => "lower('A') LIKE 'a%' AND 'abc' ~ '^a'".to_owned(),
            _ => format!("ROW({int}, 1) < ROW(5, 2)"),
        }
    }

    /// Words taken out, doubled or exchanged.
    fn mutated(&mut self, sql: &str) -> String {
        let mut words: Vec<&str> = sql.split_inclusive([' ', '(', ')', ',']).collect();
        for _ in 0..1 + self.below(3) {
            let (at, other) = (self.below(words.len()), self.below(words.len()));
            match self.below(4) {
                0 => drop(words.remove(at)),
                1 => words.insert(at, words[other]),
                2 => words.swap(at, other),
                _ => words.insert(
                    at,
                    self.pick(&[
                        "FOR UPDATE ",
                        "'",
                        "\"",
                        "::",
                        "U&\"x\" ",
                        "--",
                        "/*",
                        "$$",
                        ";",
                        "INTO ",
                        "E'\\' ",
                        "\r",
                        "(",
                        ")",
                        "$1 ",
                        ".nextval ",
                        "COMMIT; ",
                        "BEGIN READ ONLY; ",
                        "AS MATERIALIZED ",
                        "VARIADIC ",
                        "::counted ",
                        "TABLE ",
                    ]),
                ),
            }
            if words.is_empty() {
                words.push("SELECT ");
            }
        }
        words.concat()
    }
}
