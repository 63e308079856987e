-- What psql sends and prints, word for word the same at Postgres and through pgweir.
\set QUIET on
\pset null (null)
SELECT 1 AS one, NULL AS nothing, 'žluťoučký' AS text;
SELECT 1 \; SELECT 2 \; SELECT 3;
SELECT 1 / 0;
SELEC 1;
SELECT * FROM no_such_table;
SELECT id, name FROM users ORDER BY id LIMIT 3;
\d users
\d+ evaluations
\dt users
\dt evaluations
\df pg_catalog.upper
\dn public
\l app
\sf pg_catalog.pg_relation_size(regclass)
\encoding
BEGIN;
CREATE TABLE of_psql (id int PRIMARY KEY, note text);
\copy of_psql FROM PSTDIN WITH (FORMAT csv)
1,one
2,"two, with a comma"
\.
COPY of_psql FROM STDIN;
3	three
\.
COPY (SELECT * FROM of_psql ORDER BY id) TO STDOUT;
SAVEPOINT s;
INSERT INTO of_psql VALUES (1, 'again');
ROLLBACK TO s;
SELECT count(*) FROM of_psql;
\gdesc
SELECT * FROM of_psql ORDER BY id \gx
DECLARE c CURSOR FOR SELECT * FROM of_psql ORDER BY id;
FETCH 2 FROM c;
MOVE BACKWARD ALL FROM c;
FETCH 1 FROM c;
ROLLBACK;
\set ON_ERROR_ROLLBACK on
BEGIN;
SELECT 1 / 0;
SELECT 'still here' AS told;
COMMIT;
\set FETCH_COUNT 2
SELECT generate_series(1, 5) AS by_cursor;
\unset FETCH_COUNT
\set AUTOCOMMIT off
SELECT 1 AS in_a_transaction;
ROLLBACK;
\set AUTOCOMMIT on
PREPARE p (int) AS SELECT $1 * 2 AS doubled;
EXECUTE p (21);
DEALLOCATE p;
EXECUTE p (21);
SET search_path = pg_catalog;
SHOW search_path;
RESET search_path;
SHOW search_path;
CREATE TEMPORARY TABLE own (a int);
INSERT INTO own SELECT generate_series(1, 3);
SELECT sum(a) FROM own;
DROP TABLE own;
DO $$ BEGIN RAISE NOTICE 'a notice'; RAISE WARNING 'a warning' USING HINT = 'a hint', ERRCODE = 'P0042'; END $$;
SELECT format('SELECT %s AS generated', n) FROM generate_series(1, 2) AS n \gexec
SELECT 42 AS kept \gset
\echo :kept
\lo_list
LISTEN own;
UNLISTEN own;
SELECT xact_commit >= 0 AS counted FROM pg_stat_database WHERE datname = 'app';
EXPLAIN (COSTS off) SELECT * FROM users WHERE id = 1;
\echo the end
