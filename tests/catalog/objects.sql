CREATE EXTENSION tablefunc;
CREATE EXTENSION citext;
CREATE EXTENSION "uuid-ossp";
CREATE EXTENSION file_fdw;
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
CREATE FOREIGN TABLE public.f_table (line text) SERVER files OPTIONS (filename '/etc/hostname');
GRANT SELECT ON public.f_table TO app;
GRANT CREATE ON DATABASE app TO app;
-- needs a superuser
CREATE FUNCTION public.c_like() RETURNS bigint STABLE LANGUAGE internal AS 'pg_backend_pid';
CREATE TYPE public.graded AS (n int);
CREATE FUNCTION public.graded_cmp(a public.graded, b public.graded) RETURNS int LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock(8); RETURN a.n - b.n; END $$;
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY '{<,<=,=,>=,>}'::text[] LOOP
        EXECUTE format('CREATE FUNCTION public."graded_%1$s"(a public.graded, b public.graded) RETURNS boolean IMMUTABLE
            LANGUAGE sql AS ''SELECT a.n %1$s b.n''', name);
        EXECUTE format('CREATE OPERATOR public.%1$s (LEFTARG = public.graded, RIGHTARG = public.graded,
            FUNCTION = public."graded_%1$s")', name);
    END LOOP;
END $$;
CREATE OPERATOR CLASS public.graded_ops DEFAULT FOR TYPE public.graded USING btree AS
    OPERATOR 1 public.<, OPERATOR 2 public.<=, OPERATOR 3 public.=, OPERATOR 4 public.>=, OPERATOR 5 public.>,
    FUNCTION 1 public.graded_cmp(public.graded, public.graded);
CREATE TYPE public.weight AS ENUM ('light', 'heavy');
GRANT pg_read_server_files TO app;
GRANT USAGE ON TYPE public.weight TO app;
-- among the server's own
CREATE FUNCTION pg_catalog.tanh(text) RETURNS text LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION pg_catalog.own_passes(int) RETURNS boolean LANGUAGE sql AS 'SELECT pg_advisory_xact_lock(9) IS NOT NULL';
CREATE DOMAIN pg_catalog.own_domain AS int CHECK (pg_catalog.own_passes(VALUE));
CREATE FUNCTION public.named(pg_class) RETURNS text LANGUAGE sql AS 'SELECT $1.relname::text';
-- its body's "$user" is the owner
CREATE ROLE own;
GRANT own TO app;
CREATE SCHEMA own AUTHORIZATION own;
CREATE UNLOGGED TABLE own.owned (n int);
CREATE TABLE public.owned (n int);
GRANT SELECT ON public.owned TO app;
CREATE FUNCTION public.f_definer() RETURNS bigint STABLE SECURITY DEFINER LANGUAGE sql AS 'SELECT count(*) FROM owned';
CREATE FUNCTION public.f_as_own() RETURNS bigint STABLE SET role = own LANGUAGE sql AS 'SELECT count(*) FROM owned';
CREATE FUNCTION public.f_definer_tame(a int) RETURNS int STABLE SECURITY DEFINER LANGUAGE plpgsql AS
    $$ BEGIN IF a < 1 THEN RETURN 0; END IF; RETURN f_definer_tame(a - 1); END $$;
ALTER FUNCTION public.f_definer() OWNER TO own;
ALTER FUNCTION public.f_definer_tame(int) OWNER TO own;
ALTER TABLE own.owned OWNER TO own;
SET ROLE app;
CREATE SEQUENCE public.numbers;
CREATE TABLE public.plain (n int, s text, w public.weight);
INSERT INTO public.plain VALUES (1, 'a', 'light'), (2, 'b', 'heavy');
CREATE UNLOGGED TABLE public.u_table (n int);
CREATE TABLE public.parted (n int) PARTITION BY RANGE (n);
CREATE TABLE public.parted_1 PARTITION OF public.parted FOR VALUES FROM (0) TO (10);
CREATE TABLE public.mixed (n int) PARTITION BY RANGE (n);
CREATE TABLE public.mixed_1 PARTITION OF public.mixed FOR VALUES FROM (0) TO (10);
CREATE UNLOGGED TABLE public.mixed_2 PARTITION OF public.mixed FOR VALUES FROM (10) TO (20);
CREATE TABLE public.parent (n int);
CREATE UNLOGGED TABLE public.child () INHERITS (public.parent);

-- functions
CREATE FUNCTION public.f_volatile() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION public.f_stable() RETURNS int STABLE LANGUAGE sql AS 'SELECT n FROM public.plain WHERE n = 1';
CREATE FUNCTION public.f_immutable(a int, b int DEFAULT 2) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT a + b';
CREATE FUNCTION public.f_atomic(a int) RETURNS int STABLE
    BEGIN ATOMIC SELECT a + n FROM public.plain WHERE n = 1; END;
CREATE FUNCTION public.f_atomic_next() RETURNS bigint STABLE BEGIN ATOMIC SELECT nextval('public.numbers'); END;
CREATE FUNCTION public.f_plpgsql(a int) RETURNS int STABLE LANGUAGE plpgsql AS
    $$ DECLARE x int; BEGIN SELECT n INTO x FROM public.plain WHERE n = a; IF x > 0 THEN RETURN x; END IF; RETURN 0; END $$;
CREATE FUNCTION public.f_rows() RETURNS SETOF public.plain STABLE LANGUAGE sql AS 'SELECT * FROM public.plain';
CREATE FUNCTION public.f_variadic(VARIADIC a int[]) RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM unnest(a)';
CREATE FUNCTION public.f_lies_next() RETURNS bigint STABLE LANGUAGE sql AS $$ SELECT nextval('public.numbers') $$;
CREATE FUNCTION public.f_lies_lock() RETURNS int STABLE LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN 1; END $$;
CREATE FUNCTION public.f_lies_pid() RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT pg_backend_pid()';
CREATE FUNCTION public.f_lies_dynamic(q text) RETURNS int STABLE LANGUAGE plpgsql AS
    $$ DECLARE r int; BEGIN EXECUTE q INTO r; RETURN r; END $$;
CREATE FUNCTION public.f_calls_volatile() RETURNS int STABLE LANGUAGE sql AS 'SELECT public.f_volatile()';
CREATE FUNCTION public.f_deep_2() RETURNS int STABLE LANGUAGE plpgsql AS 'BEGIN RETURN public.f_lies_lock(); END';
CREATE FUNCTION public.f_deep_1() RETURNS int STABLE LANGUAGE sql AS 'SELECT public.f_deep_2()';
CREATE FUNCTION public.f_default(a bigint DEFAULT nextval('public.numbers')) RETURNS bigint STABLE
    LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION public.f_recursive(a int) RETURNS int STABLE LANGUAGE plpgsql AS
    $$ BEGIN IF a < 1 THEN RETURN 0; END IF; RETURN public.f_recursive(a - 1); END $$;
CREATE FUNCTION public.f_unlogged() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM public.u_table';
CREATE FUNCTION public.f_sequence() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT last_value FROM public.numbers';
CREATE FUNCTION public.f_activity() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM pg_stat_activity';
CREATE FUNCTION public.f_sets() RETURNS text STABLE LANGUAGE sql AS $$ SELECT set_config('app.x', 'y', false) $$;
CREATE FUNCTION public.f_over() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION public.f_over(a int) RETURNS int LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION public.f_over(a int, b int, c int DEFAULT 3) RETURNS int STABLE LANGUAGE sql AS 'SELECT a + b + c';
CREATE FUNCTION public.f_over(a int, b int, c int, d int, VARIADIC e int[]) RETURNS int LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION public.f_calls_over(a int) RETURNS int STABLE LANGUAGE plpgsql AS 'BEGIN RETURN f_over(a, 2); END';
CREATE FUNCTION public.f_calls_other_over(a int) RETURNS int STABLE LANGUAGE plpgsql AS 'BEGIN RETURN f_over(a); END';
CREATE FUNCTION public.f_any(VARIADIC a int[] DEFAULT '{}') RETURNS int STABLE LANGUAGE sql AS 'SELECT cardinality(a)';
CREATE FUNCTION public.f_atomic_setting() RETURNS text STABLE
    BEGIN ATOMIC SELECT current_setting('transaction_read_only'); END;
CREATE FUNCTION public.f_atomic_tenant() RETURNS text STABLE RETURN current_setting('app.tenant', true);
CREATE FUNCTION public.f_atomic_tenants() RETURNS bigint STABLE
    BEGIN ATOMIC SELECT 1; SELECT count(*) FROM public.plain WHERE s = current_setting('app.tenant', true); END;
CREATE FUNCTION public.f_default_setting(a text DEFAULT current_setting('transaction_read_only')) RETURNS text STABLE
    LANGUAGE sql AS 'SELECT a';
CREATE FUNCTION public.next(int) RETURNS int LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION public.f_calls_next() RETURNS int STABLE LANGUAGE plpgsql AS 'DECLARE x int; BEGIN x := next(1); RETURN x; END';
CREATE SCHEMA hidden;
CREATE SCHEMA tame;
CREATE SCHEMA shadow;
CREATE FUNCTION hidden.who() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION tame.who() RETURNS int STABLE LANGUAGE sql AS 'SELECT 2';
SET search_path = tame;
CREATE FUNCTION public.f_own_path() RETURNS int STABLE LANGUAGE sql SET search_path = hidden AS 'SELECT who()';
CREATE FUNCTION public.f_tame_path() RETURNS int STABLE LANGUAGE sql SET search_path = tame AS 'SELECT who()';
CREATE FUNCTION public.f_any_path() RETURNS int STABLE LANGUAGE sql AS 'SELECT who()';
SET search_path = public;

-- aggregates
CREATE FUNCTION public.add_up(bigint, int) RETURNS bigint IMMUTABLE LANGUAGE sql AS 'SELECT $1 + $2';
CREATE FUNCTION public.add_up_counting(bigint, int) RETURNS bigint LANGUAGE sql AS $$ SELECT $1 + nextval('public.numbers') $$;
CREATE AGGREGATE public.total (int) (SFUNC = public.add_up, STYPE = bigint, INITCOND = '0');
CREATE FUNCTION public.add_up_pairs(bigint, int, int) RETURNS bigint LANGUAGE sql AS 'SELECT $1 + $2 + $3';
CREATE AGGREGATE public.total (int, int) (SFUNC = public.add_up_pairs, STYPE = bigint, INITCOND = '0');
CREATE AGGREGATE public.total_counting (int) (SFUNC = public.add_up_counting, STYPE = bigint, INITCOND = '0');

-- names of the server's own
CREATE FUNCTION shadow.lower(text) RETURNS text LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION shadow.initcap(varchar) RETURNS text LANGUAGE sql AS 'SELECT $1::text';
CREATE FUNCTION shadow.plus(int, int) RETURNS int LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION shadow.pg_client_encoding() RETURNS name STABLE LANGUAGE sql AS $$ SELECT 'x'::name $$;
CREATE OPERATOR shadow.+ (LEFTARG = int, RIGHTARG = int, FUNCTION = shadow.plus);

-- operators
CREATE FUNCTION public.near(int, int) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT abs($1 - $2) < 2';
CREATE FUNCTION public.near_counting(int, int) RETURNS boolean LANGUAGE sql AS $$ SELECT nextval('public.numbers') > 0 $$;
CREATE OPERATOR public.~==~ (LEFTARG = int, RIGHTARG = int, FUNCTION = public.near);
CREATE OPERATOR public.~!!~ (LEFTARG = int, RIGHTARG = int, FUNCTION = public.near_counting);

-- types, casts, checks
CREATE DOMAIN public.positive AS int CHECK (VALUE > 0);
CREATE FUNCTION public.passes(int) RETURNS boolean LANGUAGE sql AS $$ SELECT nextval('public.numbers') > 0 $$;
CREATE DOMAIN public.counted AS int CHECK (public.passes(VALUE));
CREATE DOMAIN public.counted_more AS public.counted;
-- a call of this name with an int is a cast to the domain all the same
CREATE FUNCTION public.counted(text) RETURNS int STABLE LANGUAGE sql AS 'SELECT 1';
CREATE DOMAIN public.asking AS int CHECK (current_setting('transaction_read_only') = 'off');
CREATE TYPE public.pair AS (a int, b int);
CREATE TYPE public.pair_counted AS (a int, b public.counted);
CREATE TYPE public.odd_pair AS (a int, b int);
CREATE FUNCTION public.odd_pair_to_text(public.odd_pair) RETURNS text LANGUAGE sql AS $$ SELECT nextval('public.numbers')::text $$;
CREATE CAST (public.odd_pair AS text) WITH FUNCTION public.odd_pair_to_text(public.odd_pair) AS IMPLICIT;
CREATE TABLE public.with_odd (n int, p public.odd_pair);
CREATE FUNCTION public.pair_to_int(public.pair) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1.a';
CREATE CAST (public.pair AS int) WITH FUNCTION public.pair_to_int(public.pair);
CREATE TABLE public.with_pair (n int, p public.pair);
CREATE TYPE public.nest AS (p public.pair, n int);
CREATE TABLE public.with_counted (n int, p public.counted);
CREATE FUNCTION public.weight_eq(public.weight, text) RETURNS boolean LANGUAGE sql AS $$ SELECT nextval('public.numbers') > 0 $$;
CREATE TYPE public.colour AS ENUM ('red', 'blue');
CREATE TABLE public.coloured (n int, c public.colour);
CREATE FUNCTION public.colour_eq(public.colour, int) RETURNS boolean LANGUAGE sql AS $$ SELECT nextval('public.numbers') > 0 $$;
CREATE OPERATOR public.= (LEFTARG = public.colour, RIGHTARG = int, FUNCTION = public.colour_eq);
CREATE TABLE public.gradings (n int, g public.graded);
INSERT INTO public.gradings VALUES (1, ROW(1)), (2, ROW(0));

-- rows
CREATE TABLE public.labelled (n int);
CREATE FUNCTION public.label(public.labelled) RETURNS text LANGUAGE sql AS 'SELECT $1.n::text';
CREATE FUNCTION public.tag(public.labelled) RETURNS text STABLE LANGUAGE sql AS 'SELECT $1.n::text';
CREATE FUNCTION public.tag(public.labelled, int) RETURNS text LANGUAGE sql AS 'SELECT $1.n::text';
CREATE FUNCTION public.split(public.labelled) RETURNS public.pair LANGUAGE sql AS 'SELECT ROW($1.n, $1.n)::public.pair';
CREATE FUNCTION public.split(int) RETURNS public.pair LANGUAGE sql AS 'SELECT ROW($1, $1)::public.pair';
CREATE FUNCTION public.listed(int) RETURNS SETOF record LANGUAGE sql AS 'SELECT $1, $1';

-- views
CREATE VIEW public.v_plain AS SELECT n, lower(s) AS s FROM public.plain;
CREATE VIEW public.v_of_view AS SELECT v.n FROM public.v_plain AS v JOIN public.plain AS p USING (n);
CREATE VIEW public.v_volatile AS SELECT public.f_volatile() AS n;
CREATE VIEW public.v_next AS SELECT nextval('public.numbers') AS n;
CREATE VIEW public.v_lock AS SELECT pg_try_advisory_xact_lock(5) AS l;
CREATE VIEW public.v_deep AS SELECT * FROM (SELECT (SELECT count(*) FROM public.v_next) AS n) AS x;
CREATE VIEW public.v_operator AS SELECT n FROM public.plain WHERE n OPERATOR(public.~!!~) 1;
CREATE VIEW public.v_cast AS SELECT n::public.counted AS n FROM public.plain;
CREATE VIEW public.v_implicit AS SELECT length(p) AS n FROM public.with_odd;
CREATE VIEW public.v_aggregate AS SELECT public.total_counting(n) AS n FROM public.plain;
CREATE VIEW public.v_locking AS SELECT n FROM public.plain FOR UPDATE;
CREATE VIEW public.v_activity AS SELECT count(*) AS n FROM pg_stat_activity;
CREATE VIEW public.v_pid AS SELECT pg_backend_pid() AS n;
CREATE VIEW public.v_unlogged AS SELECT n FROM public.u_table;
CREATE VIEW public.v_read_only AS SELECT current_setting('transaction_read_only') AS n;
CREATE VIEW public.v_tenant AS SELECT n, current_setting('app.tenant', true) AS t FROM public.plain;
CREATE VIEW public.v_now AS SELECT now() - interval '1 day' AS since, random() AS r, current_date AS d;
CREATE VIEW public.v_foreign AS SELECT line FROM public.f_table;
CREATE VIEW public.v_lies AS SELECT public.f_lies_lock() AS n;
CREATE VIEW public.v_sequence AS SELECT last_value FROM public.numbers;
CREATE MATERIALIZED VIEW public.m_plain AS SELECT public.f_volatile() AS n;
CREATE UNLOGGED TABLE public.u_other (n int);

-- row-level security
CREATE TABLE public.secured (n int, owner text);
ALTER TABLE public.secured ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON public.secured USING (owner = current_setting('app.tenant', true));
CREATE TABLE public.secured_lock (n int);
ALTER TABLE public.secured_lock ENABLE ROW LEVEL SECURITY;
CREATE POLICY locked ON public.secured_lock USING (pg_try_advisory_xact_lock(n));
CREATE TABLE public.secured_write (n int);
ALTER TABLE public.secured_write ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON public.secured_write FOR INSERT WITH CHECK (public.f_volatile() > 0);
CREATE POLICY mine_too ON public.secured_write FOR SELECT USING (true);
CREATE TABLE public.secured_twice (n int);
ALTER TABLE public.secured_twice ENABLE ROW LEVEL SECURITY;
CREATE POLICY soft ON public.secured_twice USING (current_setting('app.tenant', true) IS NULL AND public.f_immutable(n) > 0);
CREATE POLICY hard ON public.secured_twice USING (current_setting('transaction_read_only') = 'off');
