//! The throw-away cluster keeps its promises: replicas follow, servers die and return, and nothing is left behind.

mod support;

use std::fs;
use std::path::Path;

use pgweir::demo::cluster::{Cluster, Scratch, Shutdown};
use support::processes::processes_of;
use support::{LIMIT, wait_until};

/// The System V segment that the lock file of a killed server names in its seventh line.
fn segment_of(data: &Path) -> String {
    let lock = fs::read_to_string(data.join("postmaster.pid")).unwrap();
    lock.lines().nth(6).unwrap().split_whitespace().nth(1).unwrap().to_owned()
}

fn segments() -> Vec<String> {
    let table = fs::read_to_string("/proc/sysvipc/shm").unwrap();
    table.lines().skip(1).map(|line| line.split_whitespace().nth(1).unwrap().to_owned()).collect()
}

#[test]
fn a_cluster_lives_dies_and_leaves_nothing() {
    let cluster = Cluster::builder().replicas(2).setting("log_statement", "all").start().unwrap();
    let folder = cluster.scratch().path().to_owned();
    let (primary, replicas) = (cluster.primary(), cluster.replicas());

    primary.psql("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").unwrap();
    cluster.wait_replayed(LIMIT).unwrap();
    for replica in replicas {
        assert_eq!(replica.psql("SELECT a FROM t").unwrap(), "1");
        let refused = replica.psql("INSERT INTO t VALUES (2)").unwrap_err().to_string();
        assert!(refused.contains("read-only transaction"), "{refused}");
    }
    let log = fs::read_to_string(replicas[1].log_path()).unwrap();
    assert!(log.contains("statement: SELECT a FROM t"), "{log}");

    // A committed row survives the primary's sudden death, on the same port.
    let port = primary.port();
    primary.psql("INSERT INTO t VALUES (3)").unwrap();
    primary.kill9();
    assert!(!primary.is_running() && primary.psql("SELECT 1").is_err());
    primary.start().unwrap();
    assert_eq!((primary.port(), primary.psql("SELECT count(*) FROM t").unwrap().as_str()), (port, "2"));

    // A paused server does not answer; nor does it keep `stop` from working.
    replicas[0].pause();
    assert!(replicas[0].is_running());
    replicas[0].resume();
    assert_eq!(replicas[0].psql("SELECT 1").unwrap(), "1");
    replicas[0].pause();
    replicas[0].stop(Shutdown::Immediate).unwrap();
    assert!(!replicas[0].is_running());
    replicas[0].start().unwrap();
    replicas[1].restart().unwrap();
    cluster.wait_replayed(LIMIT).unwrap();

    // Promotion; the other replica turns to the new primary.
    primary.stop(Shutdown::Fast).unwrap();
    replicas[0].promote().unwrap();
    replicas[1].follow(&replicas[0]).unwrap();
    replicas[0].psql("INSERT INTO t VALUES (4)").unwrap();
    wait_until(LIMIT, "the new primary's row on the other replica", || {
        replicas[1].psql("SELECT count(*) FROM t").unwrap() == "3"
    });

    replicas[1].kill9();
    let segment = segment_of(replicas[1].data_path());
    assert!(segments().contains(&segment));
    assert!(!processes_of(&folder).is_empty());
    drop(cluster);
    assert_eq!(processes_of(&folder), Vec::<String>::new());
    assert!(!folder.exists());
    assert!(!segments().contains(&segment), "the killed server's segment is still there");
}

#[test]
fn passwords_are_asked_for_over_tcp() {
    let cluster = Cluster::builder().start().unwrap();
    let connect = |url: &str| {
        let mut psql = cluster.programs().client("psql").unwrap();
        psql.args(["-XAtwq", "-c", "SELECT current_user", url]).output().unwrap()
    };
    let primary = cluster.primary();
    assert_eq!(connect(&primary.url("postgres")).stdout, b"postgres\n");
    let wrong = connect(&primary.url("postgres").replace(primary.password(), "wrong"));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("password authentication failed"));
}

#[test]
fn tls_is_offered_with_the_given_certificate() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = Scratch::create(None).unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let cluster = Cluster::builder().tls(&certificate, &key).start().unwrap();
    let url = cluster.primary().url("postgres").replace("127.0.0.1", "localhost");
    let verified = format!("{url}?sslmode=verify-full&sslrootcert={}&hostaddr=127.0.0.1", certificate.display());
    let mut psql = cluster.programs().client("psql").unwrap();
    let output =
        psql.args(["-XAtwq", "-c", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &verified]).output();
    let output = output.unwrap();
    assert_eq!(output.stdout, b"t\n", "{}", String::from_utf8_lossy(&output.stderr));
}

/// The environment belongs to the process, so the test that is told a wrong folder is a child.
#[test]
fn a_folder_without_postgres_is_an_error_and_no_reason_to_look_elsewhere() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "passwords_are_asked_for_over_tcp"])
        .env("PGWEIR_PG_BIN", "/nowhere")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("PGWEIR_PG_BIN=/nowhere has no initdb and postgres"), "{said}");
}

#[test]
fn a_start_that_fails_says_why_and_leaves_nothing() {
    let error = Cluster::builder().setting("no_such_setting", "1").start().unwrap_err().to_string();
    assert!(error.contains("unrecognized configuration parameter \"no_such_setting\""), "{error}");
    let folder = error.split_once("in file \"").and_then(|(_, rest)| rest.split_once("/primary/")).unwrap().0;
    assert!(folder.contains("pgweir-"));
    assert!(!Path::new(folder).exists());
}

/// Statics are not dropped and a killed process drops nothing: the keeper must do it. The test runs itself as a child,
/// which starts a cluster, reports the folder and is then killed.
#[test]
fn a_killed_owner_leaves_nothing() {
    const ROLE: &str = "PGWEIR_TEST_OWNER";
    if let Ok(report) = std::env::var(ROLE) {
        let cluster = Cluster::builder().replicas(1).start().unwrap();
        let path = cluster.scratch().path().to_str().unwrap().to_owned();
        fs::write(format!("{report}.part"), path).unwrap();
        fs::rename(format!("{report}.part"), report).unwrap();
        std::thread::park();
    }
    let report = std::env::temp_dir().join(format!("pgweir-test-owner-{}", std::process::id()));
    let mut owner = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_owner_leaves_nothing"])
        .env(ROLE, &report)
        .spawn()
        .unwrap();
    wait_until(LIMIT, "the owner's report", || report.exists());
    let folder = fs::read_to_string(&report).unwrap();
    fs::remove_file(&report).unwrap();
    assert!(!processes_of(Path::new(&folder)).is_empty());
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_until(LIMIT, "the folder's removal", || !Path::new(&folder).exists());
    // The keeper itself ends a moment behind that.
    wait_until(LIMIT, "the end of all its processes", || processes_of(Path::new(&folder)).is_empty());
}
