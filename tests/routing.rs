//! Where statements run, read off the servers' own logs: each statement carries a marker that is looked up there.

mod support;

use std::fs;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use pgweir::demo::cluster::Cluster;
use pgweir::demo::sample;
use serde_json::Value;
use support::sessions::{block_on, column, connect, sqlstate, value, wait_for};
use support::{LIMIT, Pgweir, logged, wait_until};
use tokio_postgres::Client;

const WEIGHTS: [i64; 3] = [1, 1, 2];

fn start(replicas: usize) -> Cluster {
    let cluster = Cluster::builder().replicas(replicas).setting("log_statement", "all").start().unwrap();
    sample::install(cluster.primary()).unwrap();
    cluster.wait_replayed(LIMIT).unwrap();
    cluster
}

/// A primary and three replicas; nobody stops or stalls them.
fn cluster() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| start(3))
}

fn pgweir() -> Pgweir {
    Pgweir::builder().cluster(cluster(), &WEIGHTS).start()
}

/// How often statements with the marker ran on each server: the primary, then the replicas.
fn runs(cluster: &Cluster, marker: &str) -> Vec<usize> {
    cluster.servers().map(|server| logged(server, marker)).collect()
}

/// Replicas whose replay the tests stop, one test at a time.
struct Stalling {
    cluster: MutexGuard<'static, Cluster>,
}

impl Stalling {
    fn new() -> Self {
        static SHARED: OnceLock<Mutex<Cluster>> = OnceLock::new();
        let cluster = SHARED.get_or_init(|| Mutex::new(start(2))).lock().unwrap_or_else(PoisonError::into_inner);
        cluster.primary().psql_in(sample::DATABASE, "CREATE TABLE IF NOT EXISTS public.seen (n int)").unwrap();
        cluster.primary().psql_in(sample::DATABASE, "ALTER TABLE public.seen OWNER TO app").unwrap();
        cluster.wait_replayed(LIMIT).unwrap();
        Stalling { cluster }
    }

    fn stall(&self, replica: usize) {
        let replica = &self.cluster.replicas()[replica];
        replica.psql("SELECT pg_wal_replay_pause()").unwrap();
        wait_until(LIMIT, "replay to stop", || {
            replica.psql("SELECT pg_get_wal_replay_pause_state()").unwrap() == "paused"
        });
    }

    fn go_on(&self, replica: usize) {
        self.cluster.replicas()[replica].psql("SELECT pg_wal_replay_resume()").unwrap();
    }

    fn pgweir(&self, settings: &[(&str, &str)]) -> Pgweir {
        let builder = Pgweir::builder().cluster(&self.cluster, &[1, 1]);
        settings.iter().fold(builder, |builder, (key, value)| builder.set(key, *value)).start()
    }

    fn runs(&self, marker: &str) -> Vec<usize> {
        runs(&self.cluster, marker)
    }
}

impl Drop for Stalling {
    fn drop(&mut self) {
        (0..self.cluster.replicas().len()).for_each(|replica| self.go_on(replica));
    }
}

// ---- shares ----------------------------------------------------------------------------------------------------

#[test]
fn reads_of_one_client_spread_by_weight_in_every_protocol() {
    let pgweir = Pgweir::builder().cluster(cluster(), &WEIGHTS).set("routing.freshness", "eventual").start();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        for _ in 0..40 {
            value(&client, "SELECT name FROM users WHERE id = 7 /* share-simple */").await;
        }
        for _ in 0..40 {
            let sql = "SELECT name FROM users WHERE id = $1 /* share-extended */";
            client.query(sql, &[&7i64]).await.unwrap();
        }
        let prepared = client.prepare("SELECT name FROM users WHERE id = $1 /* share-prepared */").await.unwrap();
        for _ in 0..40 {
            client.query(&prepared, &[&7i64]).await.unwrap();
        }
    });
    // Each of the 40 extended queries prepares first, which takes a turn of its own and is not logged.
    for (marker, tolerance) in [("share-simple", 2), ("share-extended", 10), ("share-prepared", 2)] {
        assert_shares(&runs(cluster(), marker), 40, tolerance);
    }
}

#[test]
fn reads_of_many_clients_spread_by_weight_in_every_protocol() {
    // Other tests write meanwhile: a session whose reads follow one another faster than samples stays on its node otherwise.
    let pgweir = Pgweir::builder().cluster(cluster(), &WEIGHTS).set("routing.freshness", "eventual").start();
    for mode in ["simple", "extended", "prepared"] {
        let script = pgweir.folder().join(mode);
        let sql = format!("\\set id random(1, 1000)\nSELECT name AS bench_{mode} FROM users WHERE id = :id;\n");
        fs::write(&script, sql).unwrap();
        pgweir.pgbench(&["-M", mode, "-c", "8", "-j", "2", "-t", "50", "-f", script.to_str().unwrap()]);
        assert_shares(&runs(cluster(), &format!("bench_{mode}")), 400, 20);
    }
}

/// The weights are 1, 1, 2 and the primary takes no reads.
fn assert_shares(runs: &[usize], total: usize, tolerance: usize) {
    assert_eq!((runs[0], runs.iter().sum::<usize>()), (0, total), "{runs:?}");
    for (run, share) in runs[1..].iter().zip([total / 4, total / 4, total / 2]) {
        assert!(run.abs_diff(share) <= tolerance, "{runs:?}, expected {share} ± {tolerance}");
    }
}

// ---- the table of statements -----------------------------------------------------------------------------------

/// Plain reads: a replica runs them.
const READS: &[&str] = &[
    "SELECT 1",
    "select id, name from users where id = 3",
    "SELECT count(*) FROM evaluations WHERE score > 90",
    "SELECT u.name, e.score FROM users u JOIN evaluations e ON u.id = e.user_id WHERE e.score = 100 LIMIT 1",
    "WITH best AS (SELECT user_id, max(score) AS m FROM evaluations GROUP BY 1) SELECT m FROM best LIMIT 1",
    "WITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t WHERE n < 5) SELECT sum(n) FROM t",
    "SELECT now() - interval '1 day', lower('A'), length('abc')",
    "SELECT avg(score) OVER (PARTITION BY user_id) FROM evaluations WHERE user_id = 5 LIMIT 1",
    "SELECT name FROM users WHERE id IN (SELECT user_id FROM evaluations WHERE score = 99) LIMIT 1",
    "SELECT 1 UNION SELECT 2 EXCEPT SELECT 3",
    "VALUES (1), (2)",
    "TABLE users LIMIT 1",
    "SELECT pg_sleep(0)",
    "SELECT random() < 2",
    "SELECT generate_series(1, 3)",
    "SELECT 'insert into users', $$for update$$, \"name\" FROM users LIMIT 1",
    "SELECT '{\"a\": 1}'::jsonb ->> 'a', ARRAY[1, 2] && ARRAY[2], 'abc' ~ 'b'",
    "EXPLAIN SELECT * FROM users WHERE id = 1",
    "SELECT coalesce(feedback, 'none'), CASE WHEN score > 50 THEN 1 END FROM evaluations LIMIT 1",
    "SELECT /*+ hint */ id FROM users ORDER BY id DESC FETCH FIRST 2 ROWS ONLY",
    "SELECT string_agg(name, ',' ORDER BY id) FROM users WHERE id < 4",
    "START TRANSACTION READ ONLY",
    "SELECT 1; SELECT count(*) FROM users",
    // what only looks like a hazard
    "SELECT 1 -- nextval('kept_id')\n",
    "SELECT 1 /* a /* nextval('kept_id') */ FOR UPDATE */",
    "SELECT $x$ nextval('kept_id') $$ $x$",
    "SELECT 'it''s nextval(''kept_id'')'",
    "SELECT E'\\', nextval(\\'kept_id\\')'",
    "SELECT name AS \"for update\" FROM users AS \"insert\" LIMIT 1",
    "BEGIN READ ONLY; SELECT count(*) FROM users; COMMIT",
    "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY",
    "SELECT date_trunc('month', created_at), percentile_cont(0.5) WITHIN GROUP (ORDER BY score) FROM evaluations GROUP BY 1 LIMIT 1",
];

/// Anything else, and whatever is not understood: the primary alone. Some fail there, as they are meant to.
const NOT_READS: &[&str] = &[
    // writes
    "INSERT INTO kept (n) VALUES (1)",
    "UPDATE kept SET n = n",
    "DELETE FROM kept WHERE n < 0",
    "MERGE INTO kept USING (SELECT 1 AS n) s ON kept.n = s.n WHEN MATCHED THEN DO NOTHING",
    "INSERT INTO kept (n) SELECT score FROM evaluations WHERE false RETURNING n",
    "INSERT INTO kept (n) VALUES (1) ON CONFLICT DO NOTHING",
    "TRUNCATE kept",
    "WITH w AS (INSERT INTO kept (n) VALUES (2) RETURNING n) SELECT * FROM w",
    "WITH w AS (UPDATE kept SET n = 3 RETURNING n) SELECT count(*) FROM w",
    "WITH w AS (DELETE FROM kept WHERE n = 9 RETURNING n) SELECT (SELECT count(*) FROM w)",
    "SELECT * FROM kept WHERE n IN (SELECT n FROM (WITH d AS (SELECT 1 AS n) SELECT n FROM d) x) FOR UPDATE",
    // definitions
    "CREATE TABLE made (n int)",
    "CREATE INDEX ON made (n)",
    "ALTER TABLE made ADD COLUMN m int",
    "DROP TABLE made",
    "COMMENT ON TABLE kept IS 'kept'",
    "GRANT SELECT ON kept TO PUBLIC",
    "CREATE TABLE made2 AS SELECT 1 AS n",
    "SELECT 1 AS n INTO made3",
    "WITH a AS (SELECT 1 AS n) SELECT n INTO made4 FROM a",
    "CREATE VIEW seen_view AS SELECT 1 AS n",
    "CREATE OR REPLACE FUNCTION one() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1'",
    // locks
    "SELECT id FROM users WHERE id = 1 FOR UPDATE",
    "SELECT id FROM users WHERE id = 1 FOR NO KEY UPDATE",
    "SELECT id FROM users WHERE id = 1 FOR SHARE",
    "SELECT id FROM users WHERE id = 1 FOR KEY SHARE",
    "SELECT id FROM users WHERE id = 1 FOR UPDATE OF users SKIP LOCKED",
    "SELECT * FROM (SELECT id FROM users WHERE id = 1 FOR SHARE) locked",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT pg_try_advisory_lock(1)",
    "SELECT 1 FROM users WHERE id = 1 AND pg_try_advisory_xact_lock(2)",
    "SELECT pg_advisory_unlock_all()",
    // functions
    "SELECT act_too()",
    "SELECT public.act_too() FROM users LIMIT 1",
    "SELECT made_nowhere()",
    "SELECT nextval('kept_id')",
    "SELECT setval('kept_id', 5)",
    "SELECT last_value FROM kept_id",
    "SELECT pg_notify('channel', 'text')",
    "SELECT txid_current()",
    "SELECT pg_backend_pid()",
    "SELECT pg_current_wal_lsn()",
    "SELECT lo_creat(-1)",
    "SELECT set_config('application_name', 'x', false)",
    "SELECT query_to_xml('SELECT 1', true, true, '')",
    "SELECT U&\"n\\0065xtval\"('kept_id')",
    "SELECT 1 -- one\r, nextval('kept_id')",
    "SELECT 1 /* a /* b */ */, nextval('kept_id')",
    "SELECT $x$ $$ $x$, nextval('kept_id')",
    "SELECT E'\\'', nextval('kept_id')",
    "SELECT ('kept_id'::regclass).nextval",
    "VALUES (1), (nextval('kept_id'))",
    "EXPLAIN ANALYZE EXECUTE nothing",
    // the session and the node
    "SELECT count(*) FROM pg_stat_activity",
    "SELECT count(*) FROM pg_locks",
    "SHOW work_mem",
    "SET work_mem = '5MB'",
    "LISTEN channel",
    "PREPARE p AS SELECT 1",
    "CREATE TEMP TABLE mine (n int)",
    "DISCARD ALL",
    // transactions, strings of several statements, utilities
    "BEGIN",
    "START TRANSACTION",
    "BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY",
    "BEGIN READ ONLY DEFERRABLE",
    "SET TRANSACTION READ ONLY",
    "BEGIN READ ONLY; SELECT 1",
    "BEGIN; INSERT INTO kept (n) VALUES (4); COMMIT",
    "SELECT 1; INSERT INTO kept (n) VALUES (5)",
    "SELECT 1; SELECT count(*) FROM users FOR UPDATE",
    "BEGIN READ ONLY; SELECT pg_advisory_xact_lock(4); COMMIT",
    "DO $$ BEGIN PERFORM 1; END $$",
    "CALL act()",
    "ANALYZE kept",
    "VACUUM kept",
    "LOCK TABLE kept",
    "EXPLAIN ANALYZE INSERT INTO kept (n) VALUES (6)",
    "EXPLAIN (ANALYZE off, ANALYZE on) DELETE FROM kept",
    "EXPLAIN (ANALYSE) SELECT nextval('kept_id')",
    // not understood
    "SELEC 1",
    "SELECT 1 +* FROM",
    "SELECT 1 FROM users WHERE name = 'open",
    "SELECT 1 OPERATOR(public.@@@) 2",
    "SELECT 'x'::no_such_type",
];

const TABLES: &str = "
    SET ROLE app;
    CREATE TABLE kept (n int);
    CREATE SEQUENCE kept_id;
    CREATE PROCEDURE act() LANGUAGE sql AS 'INSERT INTO kept (n) VALUES (7)';
    CREATE FUNCTION act_too() RETURNS int LANGUAGE sql AS 'SELECT 8';";

#[test]
fn each_statement_runs_where_it_must() {
    cluster().primary().psql_in(sample::DATABASE, TABLES).unwrap();
    cluster().wait_replayed(LIMIT).unwrap();
    let pgweir = pgweir();
    let mut wrong = Vec::new();
    block_on(async {
        for (expected, list) in [("replica", READS), ("primary", NOT_READS)] {
            for (number, sql) in list.iter().enumerate() {
                let marker = format!("table-{expected}-{number}-end");
                run_both_ways(&pgweir, sql, &marker).await;
                let runs = runs(cluster(), &marker);
                let (primary, replicas) = (runs[0], runs[1..].iter().sum::<usize>());
                let right =
                    if expected == "primary" { primary > 0 && replicas == 0 } else { primary == 0 && replicas > 0 };
                if !right {
                    wrong.push(format!("{sql}: {primary} times on the primary, {replicas} times on replicas"));
                }
            }
        }
    });
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// By the simple protocol and, where the statement can be one of it, by the extended; each in a session of its own. The
/// marker is behind the text, since DDL is logged by its first line alone. A BEGIN comes with what follows.
async fn run_both_ways(pgweir: &Pgweir, sql: &str, marker: &str) {
    let marked = format!("{sql} /* {marker} */");
    let client = connect(&pgweir.url()).await;
    // What fails, fails on the right server.
    let _ = client.simple_query(&marked).await;
    let _ = client.simple_query("SELECT").await;
    let client = connect(&pgweir.url()).await;
    let _ = client.query(&marked, &[]).await;
    let _ = client.simple_query("SELECT").await;
}

#[test]
fn copy_runs_on_the_primary_both_ways() {
    let pgweir = pgweir();
    let psql = |sql: &str, input: &str| {
        let file = pgweir.folder().join("rows");
        fs::write(&file, input).unwrap();
        let script = pgweir.folder().join("script");
        fs::write(&script, sql.replace("FILE", file.to_str().unwrap())).unwrap();
        let output = pgweir.psql_output(&["-f", script.to_str().unwrap(), &pgweir.url()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    psql("CREATE TABLE copied (n int);\n\\copy copied (n) FROM FILE", "1\n2\n3\n");
    assert_eq!(psql("\\copy (SELECT n AS copy_out FROM copied ORDER BY 1) TO STDOUT", ""), "1\n2\n3\n");
    assert_eq!(runs(cluster(), "copied ( n ) FROM STDIN"), [1, 0, 0, 0]);
    assert_eq!(runs(cluster(), "copy_out"), [1, 0, 0, 0]);
}

#[test]
fn a_transaction_stays_on_the_primary_to_its_end() {
    let pgweir = pgweir();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        for sql in ["BEGIN", "SELECT 1 /* tx-read */", "SAVEPOINT a", "SELECT 2 /* tx-read */", "ROLLBACK"] {
            client.simple_query(sql).await.unwrap();
        }
        for sql in ["BEGIN", "SELECT 1/0 /* tx-read */", "SELECT 3 /* tx-read */", "COMMIT", "SELECT 4 /* tx-after */"]
        {
            let _ = client.simple_query(sql).await;
        }
    });
    assert_eq!(runs(cluster(), "statement: SELECT 4 /* tx-after */")[0], 0);
    let read = runs(cluster(), "tx-read");
    assert!(read[0] > 0 && read[1..] == [0, 0, 0], "{read:?}");
}

/// One Sync is one implicit transaction: pgbench sends the whole pipeline before it.
#[test]
fn a_pipeline_with_a_write_is_one_transaction_on_the_primary() {
    let pgweir = pgweir();
    pgweir.psql("CREATE TABLE piped (id xid8)");
    for mode in ["extended", "prepared"] {
        let script = pgweir.folder().join(mode);
        let sql = format!(
            "\\startpipeline\nSELECT 1 AS pipe_{mode};\nINSERT INTO piped SELECT pg_current_xact_id();\n\
             SELECT 2 AS pipe_{mode};\nINSERT INTO piped SELECT pg_current_xact_id();\n\\endpipeline\n"
        );
        fs::write(&script, sql).unwrap();
        pgweir.pgbench(&["-M", mode, "-c", "2", "-t", "10", "-f", script.to_str().unwrap()]);
        assert_eq!(runs(cluster(), &format!("pipe_{mode}")), [40, 0, 0, 0]);
    }
    assert_eq!(pgweir.psql("/* pgweir: primary */ SELECT count(*), count(DISTINCT id) FROM piped"), "80|40");
}

#[test]
fn a_pipeline_of_reads_runs_on_one_replica() {
    let pgweir = pgweir();
    let script = pgweir.folder().join("reads");
    fs::write(&script, "\\startpipeline\nSELECT 1 AS pair_a;\nSELECT 2 AS pair_b;\n\\endpipeline\n").unwrap();
    pgweir.pgbench(&["-M", "extended", "-c", "1", "-t", "20", "-f", script.to_str().unwrap()]);
    assert_eq!(runs(cluster(), "pair_a"), [0, 5, 5, 10]);
    assert_eq!(runs(cluster(), "pair_b"), [0, 5, 5, 10]);
}

// ---- hints -----------------------------------------------------------------------------------------------------

#[test]
fn hints_send_reads_and_never_a_write() {
    cluster().primary().psql_in(sample::DATABASE, "SET ROLE app; CREATE TABLE hinted (n int)").unwrap();
    cluster().wait_replayed(LIMIT).unwrap();
    let pgweir = pgweir();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        for sql in [
            "/* pgweir: primary */ SELECT 1 /* hint-to-primary */",
            "SELECT 1 /* hint-to-primary */ /* pgweir: primary */",
            "/* pgweir: replica */ SELECT 1 /* hint-to-replica */",
            "/* pgweir: replica */ INSERT INTO hinted VALUES (1) /* hint-write */",
            "/* pgweir: replica */ SELECT n FROM hinted FOR UPDATE /* hint-write */",
        ] {
            client.simple_query(sql).await.unwrap();
            client.query(sql, &[]).await.unwrap();
        }
    });
    assert_eq!(runs(cluster(), "hint-to-primary"), [4, 0, 0, 0]);
    assert_eq!(runs(cluster(), "hint-to-replica")[0], 0);
    assert_eq!(runs(cluster(), "hint-write"), [4, 0, 0, 0]);
}

#[test]
fn the_session_routes_as_pgweir_route_says() {
    let pgweir = pgweir();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        let read = async |marker: &str| {
            for _ in 0..4 {
                value(&client, &format!("SELECT 1 /* {marker} */")).await;
            }
        };
        client.simple_query("SET pgweir.route = 'primary'").await.unwrap();
        read("route-primary").await;
        client.simple_query("SET pgweir.route TO replica").await.unwrap();
        read("route-replica").await;
        client.simple_query("SET pgweir.route = 'primary'; ").await.unwrap();
        client.simple_query("RESET pgweir.route").await.unwrap();
        read("route-reset").await;
        client.simple_query("BEGIN").await.unwrap();
        client.simple_query("SET pgweir.route = 'primary'").await.unwrap();
        client.simple_query("ROLLBACK").await.unwrap();
        read("route-rolled-back").await;
        client.simple_query("SET pgweir.route = 'primary'").await.unwrap();
        client.simple_query("DISCARD ALL").await.unwrap();
        read("route-discarded").await;

        let client = connect(&format!("{}?options=-c%20pgweir.route%3Dprimary", pgweir.url())).await;
        value(&client, "SELECT 1 /* route-startup */").await;
        client.simple_query("SET pgweir.route = 'replica'").await.unwrap();
        client.simple_query("RESET ALL").await.unwrap();
        value(&client, "SELECT 1 /* route-startup */").await;
    });
    assert_eq!(runs(cluster(), "route-primary"), [4, 0, 0, 0]);
    assert_eq!(runs(cluster(), "route-startup"), [2, 0, 0, 0]);
    for marker in ["route-replica", "route-reset", "route-rolled-back", "route-discarded"] {
        assert_eq!(runs(cluster(), marker)[0], 0, "{marker}");
    }
}

// ---- what only the standby knows -------------------------------------------------------------------------------

/// A view that only reads…
const HARMLESS: &str = "
    SET ROLE app;
    CREATE TABLE noted (n int);
    CREATE FUNCTION note() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1';
    CREATE VIEW noting AS SELECT note() AS n;";

/// … until its function is replaced, elsewhere, by one that writes.
const REPLACED: &str = "
    SET ROLE app;
    CREATE OR REPLACE FUNCTION note() RETURNS int VOLATILE LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO noted VALUES (1); RETURN (SELECT count(*) FROM noted); END $$";

#[test]
fn a_write_behind_a_view_is_retried_on_the_primary_and_remembered() {
    cluster().primary().psql_in(sample::DATABASE, HARMLESS).unwrap();
    // Its picture of the database stays as it is.
    let pgweir = Pgweir::builder().cluster(cluster(), &WEIGHTS).set("routing.probe_interval", "1h").start();
    cluster().primary().psql_in(sample::DATABASE, REPLACED).unwrap();
    cluster().wait_replayed(LIMIT).unwrap();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        for done in 1..=10 {
            value(&client, "SELECT n FROM noting /* hidden-write */").await;
            // The session's own write, though its text is a read's.
            let seen = value(&client, "SELECT count(*) FROM noted").await;
            assert_eq!(seen, done.to_string());
        }
        // Another session, which need not see them: this one's reads are now kept to where its writes are.
        let client = connect(&pgweir.url()).await;
        client.simple_query("SET pgweir.freshness = 'eventual'").await.unwrap();
        for _ in 0..4 {
            client.query("SELECT n, 1 FROM noting /* hidden-extended */", &[]).await.unwrap();
        }
    });
    for (marker, times) in [("hidden-write", 10), ("hidden-extended", 4)] {
        let runs = runs(cluster(), marker);
        // A standby that refuses logs the statement twice: as it comes, and with the error.
        let refused: usize = runs[1..].iter().sum();
        assert!(runs[0] == times && (1..=2).contains(&refused), "{marker}: {runs:?}");
    }
}

/// Views that only read until their functions are replaced, elsewhere, by what a standby refuses: an unlogged table (0A000),
/// the primary's position (55000), a lock (55000).
const REFUSED: [(&str, &str); 3] = [
    ("unlogged", "RETURN (SELECT count(*) FROM refused_rows)"),
    ("position", "RETURN (SELECT pg_current_wal_lsn() IS NOT NULL)::int - 1"),
    ("locked", "LOCK TABLE refused_kept IN SHARE ROW EXCLUSIVE MODE; RETURN 0"),
];

#[test]
fn what_no_standby_can_run_is_retried_on_the_primary_and_remembered() {
    let psql = |sql: &str| cluster().primary().psql_in(sample::DATABASE, sql).unwrap();
    psql("SET ROLE app; CREATE UNLOGGED TABLE refused_rows (n int); CREATE TABLE refused_kept (n int)");
    for (name, _) in REFUSED {
        psql(&format!(
            "SET ROLE app; CREATE FUNCTION refused_{name}() RETURNS int STABLE LANGUAGE sql AS 'SELECT 0'; \
             CREATE VIEW refusing_{name} AS SELECT refused_{name}() AS n"
        ));
    }
    // Its picture of the database stays as it is.
    let pgweir = Pgweir::builder().cluster(cluster(), &WEIGHTS).set("routing.probe_interval", "1h").start();
    for (name, body) in REFUSED {
        psql(&format!(
            "SET ROLE app; CREATE OR REPLACE FUNCTION refused_{name}() RETURNS int VOLATILE LANGUAGE plpgsql AS \
             $$ BEGIN {body}; END $$"
        ));
    }
    cluster().wait_replayed(LIMIT).unwrap();
    block_on(async {
        for (name, _) in REFUSED {
            let read = format!("SELECT n FROM refusing_{name}");
            // The second is another with each literal.
            for sql in
                [format!("{read} /* refused-{name}-end */"), format!("{read} WHERE 'now' > '' /* now-{name}-end */")]
            {
                // One's reads are kept to where its writes are, another's too unless it need not see them.
                let client = connect(&pgweir.url()).await;
                client.simple_query("SET pgweir.freshness = 'eventual'").await.unwrap();
                for _ in 0..6 {
                    assert_eq!(value(&client, &sql).await, "0");
                }
            }
        }
    });
    for (name, _) in REFUSED {
        for marker in [format!("refused-{name}-end"), format!("now-{name}-end")] {
            let runs = runs(cluster(), &marker);
            // A standby that refuses logs the statement twice: as it comes, and with the error.
            let refused: usize = runs[1..].iter().sum();
            assert!(runs[0] == 6 && (1..=2).contains(&refused), "{marker}: {runs:?}");
        }
    }
}

/// Rows have come, so that the client gets the error: once.
#[test]
fn what_no_standby_can_run_is_remembered_however_late_it_shows() {
    let psql = |sql: &str| cluster().primary().psql_in(sample::DATABASE, sql).unwrap();
    psql(
        "SET ROLE app; CREATE TABLE late_rows (n int); \
          CREATE FUNCTION late(n int) RETURNS int STABLE LANGUAGE sql AS 'SELECT n'; CREATE VIEW later AS \
          SELECT late(n) AS n FROM generate_series(1, 50000) AS n",
    );
    let pgweir = Pgweir::builder().cluster(cluster(), &WEIGHTS).set("routing.probe_interval", "1h").start();
    psql(
        "SET ROLE app; CREATE OR REPLACE FUNCTION late(n int) RETURNS int VOLATILE LANGUAGE plpgsql AS \
          $$ BEGIN IF n = 50000 THEN INSERT INTO late_rows VALUES (n); END IF; RETURN n; END $$",
    );
    cluster().wait_replayed(LIMIT).unwrap();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        client.simple_query("SET pgweir.freshness = 'eventual'").await.unwrap();
        let sql = "SELECT n FROM later";
        assert_eq!(sqlstate(&column(&client, sql).await.unwrap_err()), "25006");
        for _ in 0..3 {
            assert_eq!(column(&client, sql).await.unwrap().len(), 50_000);
        }
    });
}

/// Nor is a table missing that a standby has yet to be told of.
#[test]
fn what_a_standby_does_not_know_yet_the_primary_is_asked() {
    let cluster = Cluster::builder().replicas(1).setting("log_statement", "all").start().unwrap();
    sample::install(cluster.primary()).unwrap();
    cluster.wait_replayed(LIMIT).unwrap();
    let replica = &cluster.replicas()[0];
    let pgweir = Pgweir::builder().cluster(&cluster, &[1]).set("routing.probe_interval", "50ms").start();
    replica.psql("SELECT pg_wal_replay_pause()").unwrap();
    let sql = "SET ROLE app; CREATE TABLE newborn (n int); INSERT INTO newborn VALUES (1); \
               ALTER TABLE users ADD COLUMN newborn int DEFAULT 2";
    cluster.primary().psql_in(sample::DATABASE, sql).unwrap();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        client.simple_query("SET pgweir.freshness = 'eventual'").await.unwrap();
        for (n, sql) in
            ["SELECT n FROM newborn /* born-0 */", "SELECT max(newborn) FROM users /* born-1 */"].iter().enumerate()
        {
            wait_for("the replica to be asked", async || {
                assert_eq!(value(&client, sql).await, (n + 1).to_string());
                logged(replica, &format!("born-{n}")) > 0
            })
            .await;
        }
        let error = column(&client, "SELECT nothing FROM users").await.unwrap_err();
        assert_eq!(sqlstate(&error), "42703");
    });
}

#[test]
fn sessions_that_a_standby_cannot_serve_use_the_primary() {
    let pgweir = pgweir();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        client.simple_query("SET default_transaction_isolation = 'serializable'").await.unwrap();
        for _ in 0..4 {
            assert_eq!(value(&client, "SELECT 1 /* serializable */").await, "1");
            client.query("SELECT 1 /* serializable */", &[]).await.unwrap();
        }
        let client =
            connect(&format!("{}?options=-c%20default_transaction_isolation%3Dserializable", pgweir.url())).await;
        assert_eq!(value(&client, "SELECT 1 /* serializable */").await, "1");
        let client = connect(&pgweir.url()).await;
        client.simple_query("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE").await.unwrap();
        assert_eq!(value(&client, "SELECT 1 /* serializable */").await, "1");
    });
}

#[test]
fn an_error_of_a_read_is_the_servers_own_and_is_told_once() {
    let pgweir = pgweir();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        let error = column(&client, "SELECT 1/0 /* told-once */").await.unwrap_err();
        assert_eq!(sqlstate(&error), "22012");
        let error = client.query("SELECT 1/0 /* told-once-extended */", &[]).await.unwrap_err();
        assert_eq!(sqlstate(&error), "22012");
        assert_eq!(value(&client, "SELECT 1").await, "1");
    });
    assert_eq!(runs(cluster(), "told-once")[0], 0);
}

// ---- freshness -------------------------------------------------------------------------------------------------

/// Writes a new number and reads it back, over and over: never an older one.
async fn write_and_read(client: &Client, times: i32, marker: &str) {
    for n in 0..times {
        client.simple_query(&format!("UPDATE seen SET n = {n}")).await.unwrap();
        assert_eq!(value(client, &format!("SELECT n FROM seen /* {marker} */")).await, n.to_string());
        let row = client.query_one(&format!("SELECT n FROM seen /* {marker} */"), &[]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), n);
    }
}

#[test]
fn a_session_reads_its_own_writes_whatever_the_replicas_lack() {
    let stalling = Stalling::new();
    let pgweir = stalling.pgweir(&[("routing.probe_interval", "50ms")]);
    pgweir.psql("TRUNCATE seen; INSERT INTO seen VALUES (-1)");
    stalling.cluster.wait_replayed(LIMIT).unwrap();
    stalling.stall(0);
    block_on(async {
        let client = connect(&pgweir.url()).await;
        write_and_read(&client, 30, "own-write").await;
        assert_eq!(stalling.runs("own-write")[1], 0, "a read on the replica that lacks the write");
        // The other replica replays, and then takes this session's reads again.
        let mut n = 0;
        wait_for("reads to return to the replica", async || {
            n += 1;
            let marker = format!("back-{n}-end");
            assert_eq!(value(&client, &format!("SELECT n FROM seen /* {marker} */")).await, "29");
            let runs = stalling.runs(&marker);
            assert_eq!(runs[1], 0);
            runs[2] == 1
        })
        .await;
        stalling.go_on(0);
        wait_for("reads to return to the replica", async || {
            n += 1;
            let marker = format!("back-{n}-end");
            assert_eq!(value(&client, &format!("SELECT n FROM seen /* {marker} */")).await, "29");
            stalling.runs(&marker)[1] == 1
        })
        .await;
    });
}

#[test]
fn a_session_reads_what_its_transactions_wrote() {
    let stalling = Stalling::new();
    let pgweir = stalling.pgweir(&[]);
    pgweir.psql("TRUNCATE seen; INSERT INTO seen VALUES (0)");
    stalling.cluster.wait_replayed(LIMIT).unwrap();
    (0..2).for_each(|replica| stalling.stall(replica));
    block_on(async {
        let mut written = 0;
        for writes in [
            vec!["BEGIN", "UPDATE seen SET n = n + 1", "COMMIT"],
            vec!["BEGIN; UPDATE seen SET n = n + 1; COMMIT"],
            vec!["DO $$ BEGIN UPDATE seen SET n = n + 1; END $$"],
            vec!["WITH w AS (UPDATE seen SET n = n + 1 RETURNING n) SELECT n FROM w"],
            vec!["PREPARE w AS UPDATE seen SET n = n + 1", "EXECUTE w", "DEALLOCATE ALL"],
            vec!["BEGIN", "SAVEPOINT a", "UPDATE seen SET n = n + 1", "RELEASE a", "COMMIT AND CHAIN", "ROLLBACK"],
        ] {
            let client = connect(&pgweir.url()).await;
            for sql in &writes {
                client.simple_query(sql).await.unwrap();
            }
            written += 1;
            assert_eq!(value(&client, "SELECT n FROM seen").await, written.to_string(), "{writes:?}");
        }
    });
}

#[test]
fn eventual_freshness_reads_what_a_replica_has() {
    let stalling = Stalling::new();
    let pgweir = stalling.pgweir(&[("routing.freshness", "eventual")]);
    pgweir.psql("TRUNCATE seen; INSERT INTO seen VALUES (0)");
    stalling.cluster.wait_replayed(LIMIT).unwrap();
    (0..2).for_each(|replica| stalling.stall(replica));
    block_on(async {
        let client = connect(&pgweir.url()).await;
        client.simple_query("UPDATE seen SET n = 1").await.unwrap();
        for _ in 0..4 {
            assert_eq!(value(&client, "SELECT n FROM seen /* eventual */").await, "0");
        }
        assert_eq!(value(&client, "/* pgweir: primary */ SELECT n FROM seen").await, "1");
    });
    assert_eq!(stalling.runs("eventual"), [0, 2, 2]);
}

#[test]
fn a_replica_beyond_max_lag_leaves_the_rotation_and_returns() {
    let stalling = Stalling::new();
    let pgweir = stalling.pgweir(&[
        ("routing.max_lag", "300ms"),
        ("routing.freshness", "eventual"),
        ("routing.probe_interval", "50ms"),
    ]);
    let replica = &stalling.cluster.replicas()[0];
    stalling.stall(0);
    pgweir.psql("TRUNCATE seen; INSERT INTO seen VALUES (0)");
    wait_until(LIMIT, "the stalled replica to lag", || pgweir.node(replica)["status"] == "lagging");
    assert!(pgweir.node(replica)["lag_ms"].as_f64().unwrap() >= 300.0);
    block_on(async {
        let client = connect(&pgweir.url()).await;
        for _ in 0..6 {
            value(&client, "SELECT n FROM seen /* lagging */").await;
        }
        assert_eq!(stalling.runs("lagging"), [0, 0, 6]);
        stalling.go_on(0);
        wait_until(LIMIT, "the replica to catch up", || pgweir.node(replica)["status"] == "up");
        for _ in 0..6 {
            value(&client, "SELECT n FROM seen /* caught-up */").await;
        }
        assert_eq!(stalling.runs("caught-up"), [0, 3, 3]);
    });
}

// ---- reads on the primary --------------------------------------------------------------------------------------

#[test]
fn the_primary_takes_its_share_of_reads_where_it_is_asked_to() {
    let pgweir = Pgweir::builder().cluster(cluster(), &WEIGHTS).set("routing.primary_reads", "always").start();
    block_on(async {
        let client = connect(&pgweir.url()).await;
        for _ in 0..20 {
            value(&client, "SELECT 1 /* primary-too */").await;
        }
    });
    assert_eq!(runs(cluster(), "primary-too"), [4, 4, 4, 8]);
}

#[test]
fn without_replicas_in_the_file_the_primary_reads_unless_never() {
    for (reads, expected) in [("fallback", Ok("1".to_owned())), ("always", Ok("1".to_owned())), ("never", Err("08001"))]
    {
        let pgweir = Pgweir::builder().cluster(cluster(), &[]).set("routing.primary_reads", reads).start();
        block_on(async {
            let client = connect(&pgweir.url()).await;
            let got = column(&client, "SELECT 1").await;
            assert_eq!(got.as_ref().map(|rows| rows[0].clone()).map_err(sqlstate), expected, "{reads}");
            client.simple_query("SET work_mem = '4MB'").await.unwrap();
        });
    }
}

/// The standby's error may be the standby's alone, so the primary is asked too, unless it is to serve no reads.
#[test]
fn an_error_that_may_be_the_standbys_is_the_primarys_or_the_standbys_own() {
    let table = "SET ROLE app; CREATE MATERIALIZED VIEW empty AS SELECT 1 AS n WITH NO DATA";
    cluster().primary().psql_in(sample::DATABASE, table).unwrap();
    cluster().wait_replayed(LIMIT).unwrap();
    for (reads, on_primary) in [("fallback", true), ("never", false)] {
        let pgweir = Pgweir::builder().cluster(cluster(), &WEIGHTS).set("routing.primary_reads", reads).start();
        block_on(async {
            let client = connect(&pgweir.url()).await;
            let error = column(&client, &format!("SELECT n FROM empty /* empty-{reads} */")).await.unwrap_err();
            assert_eq!(sqlstate(&error), "55000", "{reads}");
            assert_eq!(value(&client, "SELECT 1").await, "1");
        });
        assert_eq!(runs(cluster(), &format!("statement: SELECT n FROM empty /* empty-{reads}"))[0] > 0, on_primary);
    }
}

// ---- what is told of nodes -------------------------------------------------------------------------------------

#[test]
fn nodes_are_listed_with_role_weight_and_state() {
    let pgweir = Pgweir::builder().cluster(cluster(), &WEIGHTS).set("admin.users", vec!["postgres"]).start();
    wait_until(LIMIT, "the replicas' lag to be known", || {
        let told = |entry: Value| entry["lag_ms"].is_number() && entry["lag_bytes"].is_number();
        cluster().replicas().iter().all(|replica| told(pgweir.node(replica)))
    });
    let primary = pgweir.node(cluster().primary());
    assert!(primary["probe_ms"].is_number() && primary["lag_bytes"].is_null());
    let written = || cluster().primary().psql("SELECT pg_current_wal_lsn()").unwrap();
    wait_until(LIMIT, "the primary's position", || pgweir.node(cluster().primary())["lsn"] == written().trim());
    assert_eq!((&primary["role"], &primary["status"]), (&"primary".into(), &"up".into()));
    for (replica, weight) in cluster().replicas().iter().zip(WEIGHTS) {
        let entry = pgweir.node(replica);
        assert_eq!(
            (&entry["role"], &entry["status"], &entry["weight"]),
            (&"replica".into(), &"up".into(), &weight.into())
        );
    }
    let url = pgweir.url_of("postgres", cluster().primary().password(), "pgweir");
    let shown = pgweir.psql_output(&["-c", "SHOW NODES", &url]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    for server in cluster().servers() {
        let line = shown.lines().find(|line| line.contains(&format!("127.0.0.1:{}", server.port())));
        assert!(line.is_some_and(|line| line.contains("|up|")), "{shown}");
    }
}
