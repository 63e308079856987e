//! psql, pgbench, pg_dump and pg_restore.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use pgweir::demo::cluster::{Programs, Server};
use pgweir::demo::sample;

use crate::interleaved::Interleaved;
use crate::support::{self, Pgweir};
use crate::{direct, direct_to, session_mode, transaction_mode};

fn tool(name: &str, arguments: &[&str]) -> Command {
    let mut command = Programs::find().unwrap().client(name).unwrap();
    command.args(arguments);
    command
}

/// What it printed; it must succeed.
fn run(mut command: Command) -> String {
    let output = command.output().unwrap();
    let printed = told(&output);
    assert!(output.status.success(), "{command:?}: {printed}");
    printed
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn primary() -> &'static Server {
    support::cluster().primary()
}

/// The same in both modes.
fn through(test: impl Fn(&Pgweir, &str)) {
    test(&session_mode(), "session");
    let pgweir = transaction_mode();
    let _other = Interleaved::with(&pgweir);
    test(&pgweir, "transaction");
}

/// A database of one test, which its name tells, served by the pgweir of the test as well.
fn database(name: &str) {
    primary().psql(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).unwrap();
    primary().psql(&format!("CREATE DATABASE {name} OWNER {}", sample::USER)).unwrap();
}

/// What a script of psql's prints: results, notices, errors with their SQLSTATE and place, descriptions.
fn psql(url: &str, script: &str) -> String {
    let mut psql = tool("psql", &["-Xaw", "-v", "VERBOSITY=verbose", "-v", "SHOW_CONTEXT=always", url, "-f"]);
    let output = psql.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drivers").join(script)).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    told(&output)
}

#[test]
fn psql_prints_the_same() {
    let wanted = psql(&direct(), "psql.sql");
    assert!(wanted.contains("22012") && wanted.contains("the end"), "{wanted}");
    through(|pgweir, mode| assert_eq!(psql(&pgweir.url(), "psql.sql"), wanted, "{mode} mode"));
}

const COUNT: &str = "\\set id random(1, 10)
BEGIN;
UPDATE counted SET n = n + 1 WHERE id = :id;
INSERT INTO counted VALUES (:id, 1) ON CONFLICT (id) DO UPDATE SET n = counted.n + 1;
COMMIT;
SELECT n FROM counted WHERE id = :id;
";

/// In each of pgbench's protocols, 32 clients at once, whose sums must agree in the end.
#[test]
fn pgbench_counts_right() {
    let counted = |sql: &str| primary().psql_in(sample::DATABASE, sql).unwrap();
    counted("SET ROLE app; CREATE TABLE counted (id int PRIMARY KEY, n int)");
    through(|pgweir, mode| {
        let script = |name: &str, text: &str| {
            let path = pgweir.folder().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let block = script("block", COUNT);
        // With -M prepared, pgbench's thread waits for each Parse with the transactions of its other clients open.
        for protocol in ["simple", "extended", "prepared"] {
            counted("TRUNCATE counted; INSERT INTO counted SELECT generate_series(1, 10), 0");
            let printed = pgweir.pgbench(&["-M", protocol, "-c", "32", "-j", "2", "-t", "15", "-f", &block]);
            assert!(printed.contains("actually processed: 480/480"), "{mode} mode, {protocol}: {printed}");
            assert_eq!(counted("SELECT sum(n) FROM counted"), "960", "{mode} mode, {protocol}");
        }
        // A connection for each transaction; statements one behind the other.
        pgweir.pgbench(&["-C", "-c", "10", "-t", "5", "-f", &block]);
        let pipeline =
            script("pipeline", "\\startpipeline\nSELECT 1;\nSELECT 2;\nSELECT n FROM counted;\n\\endpipeline\n");
        pgweir.pgbench(&["-M", "extended", "-c", "10", "-t", "20", "-f", &pipeline]);
    });
    counted("DROP TABLE counted");
}

/// The sample database by pg_dump, as it stands at the URL; without what tells of the moment.
fn dump(url: &str, arguments: &[&str]) -> String {
    let mut pg_dump = tool("pg_dump", arguments);
    let printed = run({
        pg_dump.args(["-t", "users", "-t", "evaluations", "-d", url]);
        pg_dump
    });
    // Newer ones guard the script with a random word.
    printed.lines().filter(|line| !line.contains("restrict")).collect::<Vec<_>>().join("\n")
}

#[test]
fn pg_dump_writes_the_same_and_psql_reads_it() {
    let wanted = dump(&direct(), &[]);
    through(|pgweir, mode| {
        let dumped = dump(&pgweir.url(), &[]);
        assert!(dumped == wanted, "{mode} mode: another dump");
        assert!(dump(&pgweir.url(), &["--inserts", "--serializable-deferrable"]).lines().count() > 50_000);
        // What the dump sets for its session stays with it.
        assert_eq!(pgweir.psql("SHOW search_path"), "\"$user\", public", "{mode} mode");
    });
}

/// pgweir for a database of the test's own.
fn pgweir_of(database: &str, mode: &str, max: i64) -> Pgweir {
    let more = format!(
        "[[databases]]\nname = \"{database}\"\ntls = \"disable\"\n[[databases.nodes]]\nhost = \"127.0.0.1\"\nport = {}\nrole = \"primary\"\n",
        primary().port()
    );
    crate::builder().set("pool.mode", mode).set("pool.max", max).more(&more).start()
}

fn url_to(pgweir: &Pgweir, database: &str) -> String {
    pgweir.url_of(sample::USER, sample::PASSWORD, database)
}

/// Dumped and restored through pgweir in each format, with as many connections as the tools want.
#[test]
fn what_is_dumped_and_restored_is_the_same() {
    let wanted = dump(&direct(), &[]);
    let folder = pgweir::demo::cluster::Scratch::create(None).unwrap();
    for (mode, max) in [("session", 10), ("transaction", 4)] {
        let name = format!("restored_{mode}");
        database(&name);
        let pgweir = pgweir_of(&name, mode, max);
        let other = Interleaved::with(&pgweir);
        let into = url_to(&pgweir, &name);
        let restored = |how: &str| {
            assert!(dump(&direct_to(&name), &[]) == wanted, "{mode} mode, {how}: another database");
            primary().psql_in(&name, "DROP TABLE evaluations, users").unwrap();
        };

        let plain = folder.path().join("plain.sql");
        std::fs::write(&plain, dump(&pgweir.url(), &[])).unwrap();
        let mut psql = tool("psql", &["-Xqw", "-v", "ON_ERROR_STOP=1", "-d", &into]);
        psql.stdin(Stdio::from(File::open(&plain).unwrap()));
        run(psql);
        restored("psql");

        let custom = folder.path().join(format!("{mode}.dump"));
        let tables = ["-t", "users", "-t", "evaluations"];
        let mut pg_dump = tool("pg_dump", &["-Fc", "-d", &pgweir.url(), "-f"]);
        pg_dump.arg(&custom).args(tables);
        run(pg_dump);
        let mut pg_restore = tool("pg_restore", &["--exit-on-error", "-j", "2", "-d", &into]);
        pg_restore.arg(&custom);
        run(pg_restore);
        restored("-Fc, -j 2");

        // Two workers read under the snapshot of a third connection.
        let parallel = folder.path().join(format!("{mode}.parallel"));
        let mut pg_dump = tool("pg_dump", &["-Fd", "-j", "2", "-d", &pgweir.url(), "-f"]);
        pg_dump.arg(&parallel).args(tables);
        run(pg_dump);
        let mut pg_restore = tool("pg_restore", &["--single-transaction", "-d", &into]);
        pg_restore.arg(&parallel);
        run(pg_restore);
        restored("-Fd, -j 2");
        drop(other);
        drop(pgweir);
        primary().psql(&format!("DROP DATABASE {name} WITH (FORCE)")).unwrap();
    }
}
