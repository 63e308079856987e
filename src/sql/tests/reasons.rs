use crate::sql::Reason;
use crate::sql::classify::classify;

fn check(expected: Option<Reason>, statements: &[&str]) {
    let wrong: Vec<_> = statements
        .iter()
        .map(|text| (text, classify(text)))
        .filter(|(_, facts)| facts.primary != expected)
        .map(|(text, facts)| format!("{text}\n    {:?} {:?} {:?}", facts.primary, facts.functions, facts.effects))
        .collect();
    assert!(wrong.is_empty(), "not {expected:?}:\n{}", wrong.join("\n"));
}

/// Reads that any node may answer, with no effect on the session.
#[test]
fn plain_reads() {
    let reads = [
        "SELECT 1",
        "select 1;",
        ";;select 1;;",
        "/* a */ SELECT 1 -- b",
        "SELECT",
        "SELECT * FROM t",
        "SELECT * FROM public.t WHERE id = $1",
        "SELECT a.b, c FROM a JOIN b ON a.id = b.id LEFT JOIN (SELECT * FROM c) AS d USING (id)",
        "SELECT a FROM t LEFT JOIN u ON (t.x = u.x) WHERE t.a LIKE ('x' || $1) ORDER BY lower(b) LIMIT 10 OFFSET 5",
        "SELECT count(*), sum(a), avg(b) FROM t GROUP BY (c) HAVING count(*) > 1",
        "SELECT row_number() OVER (PARTITION BY a ORDER BY b), rank() OVER w FROM t WINDOW w AS (ORDER BY c)",
        "SELECT sum(x) FILTER (WHERE y > 0) FROM t",
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY x) FROM t",
        "WITH a AS (SELECT 1 AS x) SELECT * FROM a",
        "WITH a (x, y) AS (SELECT 1, 2), b(z) AS MATERIALIZED (VALUES (1)) SELECT * FROM a, b",
        "WITH RECURSIVE r(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM r WHERE n < 10) SELECT * FROM r",
        "WITH a AS NOT MATERIALIZED (SELECT 1) SELECT * FROM a",
        "VALUES (1, 'a'), (2, 'b')",
        "TABLE t",
        "(SELECT 1) UNION ALL (SELECT 2)",
        "SELECT 1 UNION SELECT 2 EXCEPT SELECT 3 INTERSECT SELECT 4",
        "SELECT CASE WHEN a THEN 'x' ELSE 'y' END FROM t",
        "SELECT CAST(a AS integer), b::text, c::numeric(10, 2), d::varchar(5)[], e::double precision FROM t",
        "SELECT CAST(a AS character varying(10)), b::timestamp(3) with time zone, '1'::pg_catalog.int4",
        "SELECT DATE '2020-01-01', INTERVAL '1 day', TIMESTAMP '2020-01-01 00:00', bool 't', interval(3) '1 second'",
        "SELECT COALESCE(a, b), NULLIF(a, b), GREATEST(a, b), LEAST(a, b) FROM t",
        "SELECT EXTRACT(year FROM ts), POSITION('a' IN b), SUBSTRING(a FROM 2 FOR 3), TRIM(BOTH 'x' FROM a) FROM t",
        "SELECT OVERLAY(a PLACING 'x' FROM 1), left(a, 3), right(a, 2) FROM t",
        "SELECT now(), current_timestamp, current_user, session_user, current_date",
        "SELECT ts AT TIME ZONE 'UTC' FROM t",
        "SELECT random(), gen_random_uuid(), clock_timestamp(), pg_sleep(1)",
        "SELECT pg_catalog.lower('A'), pg_catalog.now()",
        "SELECT current_setting('search_path'), version(), pg_typeof(1)",
        "SELECT current_setting('app.tenant', true)",
        "SELECT format('%s', a), to_char(now(), 'YYYY'), md5(a) FROM t",
        "SELECT * FROM generate_series(1, 10) g(i)",
        "SELECT * FROM generate_series(1, 10) AS g (i)",
        "SELECT * FROM unnest(ARRAY[1, 2]) WITH ORDINALITY AS u(a, n)",
        "SELECT * FROM json_to_recordset('[]') AS x(a int, b text)",
        "SELECT * FROM json_to_record('{}') AS (a int, b varchar(10))",
        "SELECT data->'a'->>'b', data #> '{a}', data @> '{}', data ? 'k', data ?| array['a'] FROM t",
        "SELECT a ~ 'x', a !~* 'y', a && b, a <@ b, a <-> b FROM t",
        "SELECT -1, +2, a % 2, 2 ^ 3, @ -5, |/ 25 FROM t",
        "SELECT a OPERATOR(pg_catalog.+) b FROM t",
        "SELECT to_tsvector('english', a) @@ plainto_tsquery('b') FROM t",
        "SELECT EXISTS (SELECT 1 FROM t), a = ANY ($1), a <> ALL (ARRAY[1]), a IN (1, 2), ROW(1, 2) = (3, 4)",
        "SELECT (t.x).*, t.arr[1], t.arr[1:2], ('a'::text).upper FROM t",
        "SELECT * FROM t TABLESAMPLE SYSTEM (10)",
        "SELECT * FROM t TABLESAMPLE bernoulli (10) REPEATABLE (1)",
        "SELECT DISTINCT ON (a) a, lower(b) FROM t ORDER BY a",
        "SELECT * FROM t FETCH FIRST 5 ROWS ONLY",
        "SELECT * FROM t FETCH FIRST (5) ROWS ONLY",
        "SELECT * FROM t FOR READ ONLY",
        "SELECT a FROM t GROUP BY GROUPING SETS ((a), ())",
        "SELECT a FROM t GROUP BY ROLLUP (a)",
        "SELECT a FROM t GROUP BY CUBE (a)",
        "SELECT oid, relname FROM pg_class WHERE relnamespace = 'public'::regnamespace",
        "SELECT * FROM pg_catalog.pg_type",
        "SELECT * FROM information_schema.tables",
        "SELECT obj_description(oid), pg_get_expr(a, b), format_type(c, d), pg_table_is_visible(e) FROM pg_attribute",
        "SELECT pg_relation_size('t'), pg_size_pretty(pg_total_relation_size('t')), pg_database_size('d')",
        "SELECT has_table_privilege('t', 'select'), pg_has_role('a', 'member')",
        "SELECT $$nextval('s')$$, $x$ FOR UPDATE $x$, 'INSERT INTO t', E'it\\'s; DELETE FROM t', \"nextval\" FROM t",
        "SELECT 'a' -- nextval('s')\n 'b'",
        "SELECT /* nextval('s') /* FOR UPDATE */ */ 1",
        "SELECT string_agg(a, ',' ORDER BY b), array_agg(DISTINCT c) FROM t",
        "SELECT lower(a) COLLATE \"C\" FROM t",
        "SELECT a IS DISTINCT FROM b, a BETWEEN 1 AND 2, a NOT LIKE ('x'), a ILIKE 'y' ESCAPE '!' FROM t",
        "SELECT (a, b) OVERLAPS (c, d) FROM t",
        "SELECT * FROM a NATURAL JOIN b CROSS JOIN (SELECT 1) c",
        "SELECT * FROM (a JOIN b ON true)",
        "SELECT * FROM a, LATERAL (SELECT * FROM b WHERE b.x = a.x) c",
        "SELECT * FROM ROWS FROM (generate_series(1, 2), generate_series(1, 3)) AS z(a, b)",
        "SELECT * FROM ONLY t",
        "SELECT make_interval(days => 10)",
        "SELECT concat(VARIADIC ARRAY['a', 'b'])",
        "SELECT 1.5e3, .5, 1., 0x1F, 1_000, b'01', x'ff', n'a', U&'\\0061'",
        "SELECT a.name, b.status, c.type, d.value FROM a, b, c, d",
        "EXPLAIN SELECT 1",
        "EXPLAIN ANALYZE SELECT * FROM t",
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT json) SELECT * FROM t",
        "EXPLAIN VERBOSE SELECT 1",
        "EXPLAIN (SELECT 1)",
        "",
        ";",
        "-- nothing",
    ];
    check(None, &reads);
    for text in reads {
        let facts = classify(text);
        assert!(!facts.unknown_by_name, "{text}");
        assert!(facts.effects.is_empty(), "{text}: {:?}", facts.effects);
        assert!(facts.control.is_empty(), "{text}: {:?}", facts.control);
    }
}

/// What drivers, object mappers and psql send.
#[test]
fn reads_of_the_wild() {
    check(
        None,
        &[
            "SELECT c.oid, n.nspname FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relname OPERATOR(pg_catalog.~) '^(t)$' COLLATE pg_catalog.default \
             AND pg_catalog.pg_table_is_visible(c.oid) ORDER BY 2, 3;",
            "SELECT a.attname, format_type(a.atttypid, a.atttypmod), pg_get_expr(d.adbin, d.adrelid), a.attnotnull, \
             (SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid, true) FROM pg_catalog.pg_attrdef d WHERE a.atthasdef) \
             FROM pg_attribute a LEFT JOIN pg_attrdef d ON a.attrelid = d.adrelid AND a.attnum = d.adnum \
             WHERE a.attrelid = '\"users\"'::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
            "SELECT c.relname, CASE WHEN c.relispartition THEN 'p' WHEN c.relkind IN ('m', 'v') THEN 'v' ELSE 't' END, \
             obj_description(c.oid, 'pg_class') FROM pg_catalog.pg_class c",
            "SELECT c.oid::pg_catalog.regclass::pg_catalog.text, t.typname::character varying FROM pg_class c, pg_type t",
            "SELECT t.typname, t.typelem FROM pg_type as t LEFT JOIN pg_range as r ON oid = rngtypid \
             WHERE t.typname IN ('int2', 'int4') OR t.typinput = 'array_in(cstring,oid,integer)'::regprocedure",
            "SELECT \"users\".* FROM \"users\" WHERE \"users\".\"id\" = $1 LIMIT $2",
            "SELECT 1 AS one FROM \"users\" WHERE \"users\".\"email\" = 'a' LIMIT 1 /*application:web,controller:x*/",
            "select u1_0.id,u1_0.name from users u1_0 where u1_0.id=$1 and u1_0.name like $2 escape '' order by u1_0.id asc",
            "SELECT \"t0\".\"id\" FROM \"public\".\"User\" AS \"t0\" WHERE 1=1 ORDER BY \"t0\".\"id\" ASC LIMIT $1 OFFSET $2",
            "SELECT COUNT(*) AS \"__count\" FROM (SELECT DISTINCT \"a\".\"id\" AS col1 FROM \"a\") subquery",
            "SELECT json_agg(row_to_json(t)) FROM (SELECT a, b FROM c) t",
            "SELECT COALESCE(json_agg(\"root\"), '[]') AS \"root\" FROM (SELECT row_to_json((SELECT \"e\" FROM (SELECT \"b\".\"id\" AS \"id\") AS \"e\")) AS \"root\" FROM b) AS x",
            "SELECT date_trunc('day', created_at) AS day, count(*) FROM x GROUP BY 1 ORDER BY day DESC NULLS LAST",
            "SELECT x.year, x.month, name, value, type, status, data, \"user\" FROM settings x ORDER BY name",
            "SELECT sum(x) OVER (ORDER BY y ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM t",
            "SELECT sum(x) OVER (w ROWS UNBOUNDED PRECEDING) FROM t WINDOW w AS (PARTITION BY z)",
            "SELECT * FROM a WHERE (a.x, a.y) IN ((1, 2), (3, 4)) AND NOT EXISTS (SELECT 1 FROM b WHERE b.x = a.x)",
            "SELECT now() - interval '1 day' * $1, INTERVAL '1' DAY, now() AT TIME ZONE 'utc'",
            "SELECT (a->>'y')::int, (data->>'k')::timestamptz, a #>> '{b,c}' FROM t WHERE (a->'z')::jsonb ? 'q'",
            "SELECT id FROM t ORDER BY array_position(ARRAY[1,2], id), CASE x WHEN 1 THEN (SELECT 2) END LIMIT ALL",
            "SELECT STRING_AGG(DISTINCT name, ', ' ORDER BY name), count(*) OVER () AS full_count FROM t",
            "SELECT * FROM unnest($1::int[], $2::text[]) AS u(id, name)",
            "SELECT * FROM users WHERE id = ANY($1::uuid[]) AND deleted_at IS NULL",
            "SELECT * FROM t WHERE tsv @@ websearch_to_tsquery('english', $1) ORDER BY ts_rank(tsv, to_tsquery($2)) DESC",
            "SELECT * FROM (VALUES (1, 'a'), (2, 'b')) AS v (id, name) JOIN t USING (id)",
            "SELECT exists(SELECT 1 FROM t), greatest(1, 2), \"left\".a FROM \"left\"",
            "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_.*' AND nspname NOT IN ('information_schema')",
            "SELECT version(), current_schema(), current_database(), current_setting('server_version_num')::integer",
            "SELECT extract(epoch from (now() - max(x)))::bigint FROM t HAVING max(x) IS NOT NULL",
            "SELECT bool_or(a) FILTER (WHERE b), every(c), mode() WITHIN GROUP (ORDER BY d) FROM t",
            "SELECT to_char(d, 'YYYY-MM'), width_bucket(x, 0, 10, 5), regexp_replace(a, '\\s+', ' ', 'g') FROM t",
            "SELECT lag(a, 1) OVER (PARTITION BY b ORDER BY c), first_value(a) OVER w FROM t WINDOW w AS (PARTITION BY b)",
        ],
    );
}

#[test]
fn writes() {
    check(
        Some(Reason::Write),
        &[
            "INSERT INTO t VALUES (1)",
            "insert into t (a, b) values ($1, $2) returning id",
            "INSERT INTO s.t AS x (a) SELECT a FROM u ON CONFLICT (a) DO UPDATE SET a = excluded.a",
            "UPDATE t SET a = 1 WHERE b = 2",
            "UPDATE ONLY t SET (a, b) = (1, 2)",
            "DELETE FROM t USING u WHERE t.a = u.a",
            "MERGE INTO t USING u ON t.a = u.a WHEN MATCHED THEN UPDATE SET b = 1 WHEN NOT MATCHED THEN INSERT (a) VALUES (1)",
            "WITH x AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM x",
            "WITH x AS (UPDATE t SET a = 1 RETURNING *) SELECT * FROM x",
            "WITH x (n) AS (UPDATE ONLY (t) SET a = 1 RETURNING a) TABLE x",
            "WITH x (n) AS (UPDATE s.t AS u SET (a, b) = (1, 2) RETURNING a) TABLE x",
            "WITH x (n) AS (UPDATE t * SET a = 1 RETURNING a), y (n) AS (DELETE FROM t RETURNING a) TABLE y",
            "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x",
            "WITH x AS (SELECT 1), y AS MATERIALIZED (DELETE FROM t RETURNING *) TABLE y",
            "WITH x AS (WITH z AS (SELECT 1) DELETE FROM t RETURNING *) SELECT 1",
            "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x",
            "WITH x AS (SELECT 1) DELETE FROM t",
            "SELECT * FROM (WITH x AS (/* */ UpDaTe t SET a = 1 RETURNING *) SELECT * FROM x) y",
            "WITH RECURSIVE a AS (SELECT 1) SEARCH DEPTH FIRST BY x SET y DELETE FROM t",
            "COPY t FROM STDIN",
            "COPY t (a, b) FROM '/tmp/x' WITH (FORMAT csv, DELIMITER ',')",
            "COPY (DELETE FROM t RETURNING *) TO STDOUT",
            "TRUNCATE t",
            "TRUNCATE TABLE ONLY a, b * RESTART IDENTITY CASCADE",
            "EXPLAIN INSERT INTO t VALUES (1)",
            "EXPLAIN ANALYZE DELETE FROM t",
            "EXPLAIN (ANALYZE off, ANALYZE on) UPDATE t SET a = 1",
            "EXPLAIN ANALYSE VERBOSE UPDATE t SET a = 1",
            "EXPLAIN WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x",
            "INSERT INTO t VALUES (nextval('s'))",
            "INSERT INTO t DEFAULT VALUES",
            "SELECT 1; DELETE FROM t",
        ],
    );
}

#[test]
fn locking_and_into() {
    check(
        Some(Reason::Locking),
        &[
            "SELECT * FROM t FOR UPDATE",
            "SELECT * FROM t FOR NO KEY UPDATE",
            "SELECT * FROM t FOR SHARE",
            "SELECT * FROM t FOR KEY SHARE",
            "SELECT * FROM t for/**/update OF t NOWAIT",
            "SELECT * FROM (SELECT * FROM t FOR UPDATE SKIP LOCKED) x",
            "WITH x AS (SELECT * FROM t FOR SHARE) SELECT * FROM x",
            "(SELECT * FROM t FOR UPDATE) UNION ALL SELECT 1",
            "SELECT * FROM t WHERE a IN (SELECT b FROM u FOR NO KEY UPDATE)",
            "EXPLAIN SELECT * FROM t FOR UPDATE",
            "TABLE t FOR UPDATE",
        ],
    );
    check(
        Some(Reason::Into),
        &[
            "SELECT * INTO u FROM t",
            "SELECT 1 INTO TEMP u",
            "SELECT a INTO UNLOGGED u FROM t",
            "WITH x AS (SELECT 1) SELECT * INTO u FROM x",
            "CREATE TABLE u AS SELECT * FROM t",
            "CREATE TABLE IF NOT EXISTS u (a, b) AS (SELECT 1, 2)",
            "CREATE UNLOGGED TABLE u AS TABLE t",
            "CREATE TABLE u AS VALUES (1)",
            "EXPLAIN CREATE TABLE u AS SELECT 1",
        ],
    );
}

#[test]
fn hazardous_functions() {
    check(
        Some(Reason::Sequence),
        &[
            "SELECT nextval('s')",
            "SELECT NextVal ('s')",
            "SELECT pg_catalog.nextval('s')",
            "SELECT \"pg_catalog\" . \"nextval\" ('s')",
            "SELECT currval('s'), 1",
            "SELECT lastval()",
            "SELECT setval('s', 1)",
            "SELECT * FROM t WHERE a = nextval('s')",
            "SELECT * FROM nextval('s')",
            "SELECT * FROM nextval('s') AS f(a)",
            "VALUES (nextval('s'))",
            "SELECT 1 LIMIT nextval('s')",
            "SELECT 1 ORDER BY nextval('s')",
            "SELECT nextval/* */\n('s')",
            "SELECT nextval --\r('s')",
            "SELECT DISTINCT ON (a) nextval('s') FROM t",
            "SELECT a OPERATOR(pg_catalog.+) nextval('s') FROM t",
            "SELECT CASE WHEN nextval('s') > 1 THEN 1 END",
            "SELECT (nextval('s'))::text",
            "SELECT count(*) FILTER (WHERE nextval('s') > 1) FROM t",
            "SELECT sum(1) OVER (ORDER BY nextval('s'))",
            "SELECT ARRAY[nextval('s')]",
            "SELECT ARRAY(SELECT nextval('s'))",
            "SELECT COALESCE(nextval('s'), 1)",
            "SELECT 1 FROM a JOIN b ON nextval('s') = 1",
            "SELECT concat(VARIADIC ARRAY[nextval('s')])",
            "SELECT make_interval(days => nextval('s')::int)",
            "SELECT 1 FROM t TABLESAMPLE system (nextval('s'))",
            "SELECT * FROM ROWS FROM (nextval('s')) x",
            "SELECT 1 GROUP BY nextval('s')",
            "SELECT 1 WHERE 'a' LIKE 'b' ESCAPE nextval('s')::text",
            "SELECT 'a' 'b', nextval('s')",
            "SELECT 'x\\', nextval('s') --'",
            "EXPLAIN ANALYZE SELECT nextval('s')",
            "SELECT last_value FROM s",
            "SELECT ('s'::regclass).nextval",
            // surely an alias, but why believe it
            "SELECT * FROM generate_series(1, 2) nextval (a)",
            "SELECT $1.\"nextval\"",
            "SELECT (ARRAY['s'::regclass])[1] . nextval",
            "SELECT s.last_value, is_called FROM s",
            "WITH x AS (SELECT nextval('s')) SELECT * FROM x",
            "SELECT pg_sequence_last_value('s')",
        ],
    );
    check(
        Some(Reason::Lock),
        &[
            "SELECT pg_advisory_lock(1)",
            "SELECT pg_try_advisory_lock(1, 2)",
            "SELECT pg_advisory_xact_lock(1)",
            "SELECT pg_advisory_unlock(1)",
            "SELECT pg_advisory_unlock_all()",
            "SELECT 1 WHERE pg_try_advisory_xact_lock(1)",
            "LOCK TABLE t",
            "LOCK t IN SHARE MODE",
        ],
    );
    check(
        Some(Reason::SideEffect),
        &[
            "SELECT current_setting('transaction_read_only')",
            "SELECT current_setting($1)",
            "SELECT pg_notify('a', 'b')",
            "NOTIFY a, 'b'",
            "SELECT txid_current()",
            "SELECT pg_current_xact_id()",
            "SELECT lo_create(0)",
            "SELECT lo_get(1)",
            "SELECT pg_backend_pid()",
            "SELECT pg_cancel_backend(1)",
            "SELECT pg_terminate_backend(1)",
            "SELECT pg_export_snapshot()",
            "SELECT pg_stat_reset()",
            "SELECT pg_stat_get_numscans(1)",
            "SELECT pg_switch_wal()",
            "SELECT pg_is_in_recovery()",
            "SELECT pg_last_wal_replay_lsn()",
            "SELECT inet_server_addr()",
            "SELECT pg_postmaster_start_time()",
            "SELECT query_to_xml('select 1', true, true, '')",
            "SELECT table_to_xml('t', true, true, '')",
            "SELECT * FROM ts_stat('SELECT v FROM t')",
            "SELECT setseed(0.5)",
            "SELECT * FROM pg_logical_slot_get_changes('s', NULL, NULL)",
            "SELECT pg_create_logical_replication_slot('a', 'b')",
            "SELECT pg_reload_conf()",
            "SELECT * FROM pg_ls_dir('.')",
        ],
    );
}

#[test]
fn unknown_names() {
    check(
        Some(Reason::UnknownFunction),
        &[
            "SELECT my_function(1)",
            "SELECT public.lower('a')",
            "SELECT \"Lower\"('a')",
            "SELECT * FROM my_function(1) x",
            "SELECT * FROM my_function(1) AS x(a int)",
            "SELECT * FROM a, my_function(a) AS (b int)",
            "SELECT dblink_exec('insert into t values (1)')",
            "SELECT * FROM dblink('a', 'b') AS x(a int)",
            "SELECT s.my_aggregate(a ORDER BY b) FROM t",
            "SELECT 1 WHERE my_function (1)",
            "SELECT uuid_generate_v4()",
            "SELECT DISTINCT ON (a) my_function(b) FROM t",
            "SELECT a OPERATOR(pg_catalog.+) my_function(1)",
            "SELECT over(1)",
            "SELECT filter(1)",
            "SELECT \"select\"(1)",
            "SELECT 1 FROM t TABLESAMPLE system_rows (10)",
            "SELECT join(1)",
            "SELECT (a).my_function FROM t",
            "SELECT a[1].my_function, $1.\"f\" FROM t",
        ],
    );
    check(
        Some(Reason::UnknownOperator),
        &[
            "SELECT a <=> b FROM t",
            "SELECT a === b",
            "SELECT a OPERATOR(public.+) b",
            "SELECT a OPERATOR(public.===) b",
            "SELECT a::mood FROM t",
            "SELECT CAST(a AS public.mood)",
            "SELECT CAST((SELECT b AS c) AS mood)",
            "SELECT mood 'happy'",
            "SELECT public.mood 'happy'",
            "SELECT 'a'::\"Mood\"",
            "SELECT ARRAY[1]::mood[]",
            "SELECT * FROM json_to_record('{}') AS x(a int, b mood)",
            "SELECT * FROM json_to_record('{}') AS (a mood)",
            "SELECT * FROM json_to_record('{}') x(a mood)",
            "SELECT a::public.int4",
        ],
    );
    // what the catalog can clear never hides what it cannot
    check(Some(Reason::Locking), &["SELECT my_function(a) FROM t FOR UPDATE"]);
    check(Some(Reason::Sequence), &["SELECT a <=> b, nextval('s')"]);
}

#[test]
fn several_statements_are_as_the_worst_of_them() {
    check(None, &["SELECT 1; SELECT 2", "TABLE a; TABLE b;", ";;SELECT 1;;"]);
    check(Some(Reason::UnknownFunction), &["SELECT f(1); SELECT 1", "SELECT 1; SELECT f(1)"]);
    check(Some(Reason::Locking), &["SELECT f(1); SELECT 1; SELECT 1 FROM t FOR UPDATE", "SELECT 1; TABLE t FOR SHARE"]);
    check(Some(Reason::Write), &["SELECT 1; INSERT INTO t VALUES (1)", "SELECT 1; SELECT 2; DELETE FROM t; SELECT 3"]);
    check(Some(Reason::Session), &["SELECT 1; SET a.b = 1", "SELECT 1; SHOW x; SELECT 2"]);
    check(Some(Reason::Transaction), &["SELECT 1; COMMIT", "SELECT 1; BEGIN"]);
}

#[test]
fn a_whole_read_only_block_is_as_what_it_runs() {
    let is_block = |sql: &str| classify(sql).is_block;
    let reads = [
        "BEGIN READ ONLY; SELECT 1; COMMIT",
        "START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; TABLE a; TABLE b; END;",
        "begin work read only;select 1;rollback",
        "BEGIN READ WRITE, READ ONLY; SELECT 1; ABORT",
    ];
    check(None, &reads);
    assert!(reads.iter().all(|sql| is_block(sql)));
    check(Some(Reason::UnknownFunction), &["BEGIN READ ONLY; SELECT f(1); COMMIT"]);
    check(Some(Reason::Lock), &["BEGIN READ ONLY; LOCK TABLE t; COMMIT"]);
    check(Some(Reason::Session), &["BEGIN READ ONLY; SET LOCAL a.b = 1; SELECT 1; COMMIT"]);
    check(Some(Reason::Write), &["BEGIN READ ONLY; SELECT 1; INSERT INTO t VALUES (1); COMMIT"]);
    let others = [
        "BEGIN; SELECT 1; COMMIT",
        "BEGIN READ WRITE; SELECT 1; COMMIT",
        "BEGIN READ ONLY; SELECT 1",
        "BEGIN READ ONLY; COMMIT",
        "BEGIN READ ONLY; SELECT 1; COMMIT AND CHAIN",
        "BEGIN READ ONLY; SELECT 1; COMMIT; SELECT 1",
        "BEGIN READ ONLY; SELECT 1; COMMIT; SELECT 1; COMMIT",
        "BEGIN READ ONLY; SELECT 1; SET TRANSACTION READ WRITE; COMMIT",
        "BEGIN READ ONLY; SAVEPOINT a; SELECT 1; COMMIT",
        "BEGIN READ ONLY; SELECT 1; ROLLBACK TO a",
        "BEGIN READ ONLY; SELECT 1; ROLLBACK PREPARED 'a'",
        "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY; SELECT 1; COMMIT",
        "BEGIN READ ONLY DEFERRABLE; SELECT 1; COMMIT",
        "SELECT 1; SELECT 2; COMMIT",
        "BEGIN READ ONLY; BEGIN READ WRITE; SELECT 1; COMMIT",
    ];
    check(Some(Reason::Transaction), &others);
    assert!(!others.iter().any(|sql| is_block(sql)));
}

#[test]
fn session_and_transaction() {
    check(
        Some(Reason::Session),
        &[
            "SET search_path = a, b",
            "SET LOCAL x.y TO 'z'",
            "RESET ALL",
            "SHOW search_path",
            "SHOW TRANSACTION ISOLATION LEVEL",
            "DISCARD ALL",
            "PREPARE p AS SELECT 1",
            "PREPARE p (int, text) AS SELECT $1",
            "EXECUTE p (1)",
            "EXPLAIN ANALYZE EXECUTE p",
            "EXPLAIN EXECUTE p",
            "DEALLOCATE p",
            "DECLARE c CURSOR FOR SELECT 1",
            "FETCH 5 FROM c",
            "MOVE NEXT c",
            "CLOSE c",
            "LISTEN a",
            "UNLISTEN *",
            "SELECT set_config('a.b', 'c', false)",
            "SELECT 1, set_config('a.b', 'c', false)",
            "SELECT * FROM t WHERE set_config('a.b', 'c', false) = 'c'",
            "SET CONSTRAINTS ALL DEFERRED",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "SET ROLE a",
        ],
    );
    check(
        Some(Reason::Transaction),
        &[
            "BEGIN",
            "begin work",
            "START TRANSACTION READ ONLY",
            "COMMIT",
            "END",
            "ABORT",
            "ROLLBACK AND CHAIN",
            "SAVEPOINT a",
            "RELEASE a",
            "ROLLBACK TO SAVEPOINT a",
            "PREPARE TRANSACTION 'x'",
            "COMMIT PREPARED 'x'",
            "ROLLBACK PREPARED 'x'",
            "SET TRANSACTION READ WRITE",
            "SET LOCAL TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "BEGIN; SELECT 1; COMMIT",
        ],
    );
}

#[test]
fn utilities_and_ddl() {
    check(
        Some(Reason::Utility),
        &[
            "DO $$ BEGIN END $$",
            "CALL p(1)",
            "VACUUM t",
            "ANALYZE t",
            "ANALYSE",
            "CHECKPOINT",
            "CLUSTER t",
            "REINDEX TABLE t",
            "REFRESH MATERIALIZED VIEW v",
            "LOAD 'x'",
            "COPY t TO STDOUT",
            "COPY (SELECT 1) TO STDOUT",
            "COPY BINARY t TO STDOUT",
        ],
    );
    check(Some(Reason::Sequence), &["COPY (SELECT nextval('s')) TO STDOUT"]);
    check(
        Some(Reason::Ddl),
        &[
            "CREATE TABLE t (a int DEFAULT nextval('s'), b numeric(10, 2), c int GENERATED ALWAYS AS ((a + 1)) STORED)",
            "CREATE TEMP TABLE t (a int)",
            "CREATE INDEX CONCURRENTLY i ON t (lower(a))",
            "CREATE VIEW v AS SELECT * FROM t",
            "CREATE MATERIALIZED VIEW v AS SELECT * FROM t",
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1; SELECT 2'",
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 1 END; END",
            "CREATE RULE r AS ON INSERT TO t DO (DELETE FROM u; DELETE FROM v)",
            "ALTER TABLE t ADD COLUMN a int DEFAULT 1",
            "ALTER SYSTEM SET x = 1",
            "DROP TABLE t",
            "GRANT SELECT ON t TO u",
            "REVOKE ALL ON t FROM u",
            "COMMENT ON TABLE t IS 'x'",
            "SECURITY LABEL ON TABLE t IS 'x'",
            "REASSIGN OWNED BY a TO b",
            "IMPORT FOREIGN SCHEMA a FROM SERVER b INTO c",
        ],
    );
}

#[test]
fn node_local_and_temporary() {
    check(
        Some(Reason::NodeLocal),
        &[
            "SELECT * FROM pg_stat_activity",
            "SELECT * FROM pg_catalog.pg_stat_user_tables",
            "SELECT * FROM \"pg_locks\"",
            "SELECT * FROM pg_settings",
            "SELECT * FROM pg_prepared_statements",
            "SELECT * FROM pg_cursors",
            "SELECT * FROM pg_replication_slots",
            "SELECT * FROM t, pg_statio_all_tables",
            "TABLE pg_locks",
            "SELECT * FROM pg_temp.t",
            "SELECT * FROM pg_temp_3.t",
            "SELECT * FROM pg_sequences",
        ],
    );
}

#[test]
fn unreadable() {
    check(
        Some(Reason::Unparsable),
        &[
            "SELECT 'abc",
            "SELECT \"abc",
            "SELECT $a$ abc $b$",
            "SELECT 1 /* /* */",
            "SELECT 1FROM t",
            "SELECT U&\"n\\0065xtval\"('s')",
            "SELECT a FROM U&\"x\" UESCAPE '!'",
            "SELEC 1",
            "foo",
            "1",
            "SELECT 1 \\ 2",
            "SELECT * FROM XMLTABLE('/a' PASSING x COLUMNS b mood)",
            "EXPLAIN",
            "EXPLAIN EXPLAIN EXPLAIN EXPLAIN EXPLAIN SELECT 1",
            "SAVEPOINT",
        ],
    );
    for text in ["SELECT 'abc", "PREPARE", "SET x", "DISCARD x", "LISTEN", "foo bar"] {
        let facts = classify(text);
        assert!(facts.primary.is_some(), "{text}");
        assert!(facts.effects.contains(&crate::sql::Effect::Unknown), "{text}");
        assert!(!facts.unknown_by_name, "{text}");
    }
}
