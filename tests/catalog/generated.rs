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
];

const UNSAFE_INTS: &[&str] = &[
    "f_volatile()",
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

const UNSAFE_SOURCES: &[&str] = &["v_next", "u_table", "mixed", "parent", "secured_lock", "v_cast", "v_lies", "v_deep"];

fn is_unsafe(sql: &str) -> bool {
    UNSAFE_INTS.iter().any(|piece| sql.contains(piece))
        || UNSAFE_SOURCES.iter().any(|source| sql.contains(&format!("{source} AS t")))
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
        let sql = match self.below(8) {
            0 => format!("EXPLAIN (ANALYZE, COSTS off) {query}"),
            1 => format!("-- lead\n{query};"),
            2 => format!("/* a /* b */ c */ ({query})"),
            _ => query,
        };
        if self.below(4) == 0 {
            return (self.mutated(&sql), None);
        }
        let safe = !is_unsafe(&sql);
        (sql, Some(safe))
    }

    /// One column, of int.
    fn query(&mut self, depth: usize) -> String {
        let (int, other) = (self.int(depth), self.bool(depth));
        match self.below(if depth == 0 { 2 } else { 11 }) {
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
        match self.below(8) {
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
                    self.pick(&["FOR UPDATE ", "'", "\"", "::", "U&\"x\" ", "--", "/*", "$$", ";", "INTO "]),
                ),
            }
            if words.is_empty() {
                words.push("SELECT ");
            }
        }
        words.concat()
    }
}
