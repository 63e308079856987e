//! TLS towards clients and towards servers, with real psql, real servers, and certificates of every kind.

mod support;
#[path = "net/certificates.rs"]
#[allow(dead_code)]
mod certificates;

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, OnceLock};

use certificates::{Authority, Directory, Pair};
use pgweir::demo::cluster::Cluster;
use pgweir::demo::sample;
use rustls::HandshakeKind;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use support::newcomer::Newcomer;
use support::{Builder, LIMIT, Pgweir, wait_until};

/// What one test needs on disk: an authority, and what it signed.
struct Files {
    directory: Directory,
    authority: Authority,
}

impl Files {
    fn new() -> Files {
        let files = Files { directory: Directory::new(), authority: Authority::new("trusted") };
        files.directory.write("ca.pem", &files.authority.certificate);
        let other = Authority::new("other");
        files.directory.write("other.pem", &other.certificate);
        files.pair("server", &files.authority.issue("localhost", &["localhost"]));
        files.pair("client", &files.authority.issue(sample::USER, &[]));
        files.pair("stranger", &other.issue(sample::USER, &[]));
        files
    }

    fn pair(&self, name: &str, pair: &Pair) {
        self.directory.write(&format!("{name}.crt"), &pair.certificate);
        let key = self.directory.write(&format!("{name}.key"), &pair.key);
        // libpq wants it so.
        std::fs::set_permissions(key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// pgweir with this mode towards clients.
    fn listening(&self, mode: &str) -> Builder {
        let builder = Pgweir::builder().cluster(support::cluster(), &[1]).set("listen.tls.mode", mode);
        let builder = builder.set("listen.tls.certificate", self.text("server.crt"));
        builder.set("listen.tls.private_key", self.text("server.key")).set("listen.tls.client_ca", self.text("ca.pem"))
    }
}

/// psql as the application, at "localhost", with these further parameters of the connection.
fn psql(pgweir: &Pgweir, parameters: &str, command: &str) -> Output {
    let (user, password, database) = (sample::USER, sample::PASSWORD, sample::DATABASE);
    let connection = format!(
        "host=localhost hostaddr=127.0.0.1 port={} user={user} password={password} dbname={database} {parameters}",
        pgweir.port()
    );
    pgweir.psql_output(&["-c", command, &connection])
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether such a client is let in, and by TLS.
#[track_caller]
fn let_in(pgweir: &Pgweir, parameters: &str) -> Option<bool> {
    // libpq looks for certificates in the home directory otherwise.
    let parameters = match parameters.contains("sslcert") {
        true => parameters.to_owned(),
        false => format!("sslcert=/nowhere sslkey=/nowhere {parameters}"),
    };
    let output = psql(pgweir, &parameters, "\\conninfo");
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).contains("SSL connection (protocol: TLSv1.3"))
}

#[test]
fn modes_towards_clients() {
    let files = Files::new();
    let (ca, other) = (files.text("ca.pem"), files.text("other.pem"));
    let client = |name: &str| {
        format!("sslcert={} sslkey={}", files.text(&format!("{name}.crt")), files.text(&format!("{name}.key")))
    };
    let verify = format!("sslmode=verify-full sslrootcert={ca}");
    let (plain, encrypted, refused) = (Some(false), Some(true), None);
    for (mode, expected) in [
        ("disable", [plain, plain, refused, refused, refused]),
        ("allow", [plain, encrypted, encrypted, encrypted, encrypted]),
        ("prefer", [plain, encrypted, encrypted, encrypted, encrypted]),
        ("require", [refused, encrypted, encrypted, encrypted, encrypted]),
        ("verify-ca", [refused, refused, refused, refused, encrypted]),
        ("verify-full", [refused, refused, refused, refused, encrypted]),
    ] {
        let pgweir = files.listening(mode).start();
        let certified = format!("{verify} {}", client("client"));
        let asked = ["sslmode=disable", "sslmode=prefer", "sslmode=require", &verify, &certified];
        let got = asked.map(|parameters| let_in(&pgweir, parameters));
        assert_eq!(got, expected, "{mode}");
        if mode == "require" {
            assert_eq!(let_in(&pgweir, &format!("sslmode=verify-ca sslrootcert={other}")), None);
            let told = stderr(&psql(&pgweir, "sslmode=disable", "SELECT 1"));
            assert!(told.contains("SSL connection is required"), "{told}");
        }
        if mode.starts_with("verify") {
            assert_eq!(let_in(&pgweir, &format!("{verify} {}", client("stranger"))), None, "{mode}");
        }
    }
}

/// A rule asks for the certificate alone; another person's certificate stands for the user where the map says so.
#[test]
fn a_certificate_is_a_login_where_a_rule_says_so() {
    let files = Files::new();
    files.pair("person", &files.authority.issue("some.person", &[]));
    files.pair("unknown", &files.authority.issue("nobody.here", &[]));
    let rule = "[[auth.rules]]\nconnection = \"hostssl\"\nmethod = \"cert\"\n";
    let own = files.listening("verify-ca").more(rule).start();
    let mapped = files.listening("verify-ca").more(&format!("{rule}map = [\"some.person=app\"]\n")).start();
    let log_in = |pgweir: &Pgweir, name: &str| {
        let certificate =
            format!("sslcert={} sslkey={}", files.text(&format!("{name}.crt")), files.text(&format!("{name}.key")));
        let connection = format!(
            "host=localhost hostaddr=127.0.0.1 port={} user=app dbname=app sslmode=require {certificate}",
            pgweir.port()
        );
        let output = pgweir.psql_output(&["-c", "SELECT current_user", &connection]);
        if output.status.success() { String::from_utf8(output.stdout).unwrap() } else { stderr(&output) }
    };
    assert_eq!(log_in(&own, "client").trim(), "app");
    assert_eq!(log_in(&mapped, "person").trim(), "app");
    // A name that the map does not have stands for itself.
    assert_eq!(log_in(&mapped, "client").trim(), "app");
    for (pgweir, name) in [(&own, "person"), (&own, "unknown"), (&mapped, "unknown")] {
        let error = log_in(pgweir, name);
        assert!(error.contains("certificate authentication failed for user \"app\""), "{name}: {error}");
    }
}

#[test]
fn channel_binding_proves_that_nobody_stands_between() {
    let files = Files::new();
    let pgweir = files.listening("prefer").start();
    let output = psql(&pgweir, "sslmode=require channel_binding=require", "SELECT current_user");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), sample::USER, "{}", stderr(&output));

    // A client that saw another certificate: somebody else's.
    let mut client = direct_tls(&pgweir, &files, true);
    client.end_point = Some(vec![7; 32]);
    client.startup(0, &[("user", sample::USER), ("database", sample::DATABASE)]);
    let told = client.authenticate(sample::USER, sample::PASSWORD).unwrap_err();
    assert_eq!(told[&'C'], "28000", "{told:?}");
}

type Tls = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

/// Begins with the handshake at once, as libpq 17's `sslnegotiation=direct` does.
fn direct_tls(pgweir: &Pgweir, files: &Files, names_the_protocol: bool) -> Newcomer<Tls> {
    direct_tls_by(pgweir, &client_config(files, names_the_protocol))
}

/// A client that knows what earlier connections by the same settings have left.
fn direct_tls_by(pgweir: &Pgweir, config: &Arc<rustls::ClientConfig>) -> Newcomer<Tls> {
    let name = ServerName::try_from("localhost").unwrap();
    let connection = rustls::ClientConnection::new(config.clone(), name).unwrap();
    let socket = Newcomer::connect(pgweir.port()).stream;
    Newcomer { stream: rustls::StreamOwned::new(connection, socket), end_point: None }
}

fn client_config(files: &Files, names_the_protocol: bool) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(files.path("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    if names_the_protocol {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Arc::new(config)
}

/// A second connection takes up the first one's session, until a reload.
#[test]
fn a_client_may_resume_its_tls_session_until_a_reload() {
    let files = Files::new();
    let builder = files.listening("require");
    let pgweir = builder.start();
    let config = client_config(&files, true);
    let kind = || {
        let mut client = direct_tls_by(&pgweir, &config);
        client.startup(0, &[("user", sample::USER), ("database", sample::DATABASE)]);
        client.authenticate(sample::USER, sample::PASSWORD).unwrap();
        assert_eq!(client.value("SELECT current_user"), sample::USER);
        client.stream.conn.handshake_kind()
    };
    assert_eq!(kind(), Some(HandshakeKind::Full));
    assert_eq!(kind(), Some(HandshakeKind::Resumed));
    assert_eq!(kind(), Some(HandshakeKind::Resumed));
    pgweir.reload(&builder);
    wait_until(LIMIT, "the reload", || pgweir.stderr().contains("configuration reloaded"));
    assert_eq!(kind(), Some(HandshakeKind::Full));
    assert_eq!(kind(), Some(HandshakeKind::Resumed));
}

#[test]
fn tls_may_begin_at_once_where_the_client_names_the_protocol() {
    let files = Files::new();
    let pgweir = files.listening("require").start();
    let parameters = [("user", sample::USER), ("database", sample::DATABASE)];
    let mut client = direct_tls(&pgweir, &files, true);
    client.startup(0, &parameters);
    client.authenticate(sample::USER, sample::PASSWORD).unwrap();
    assert_eq!(client.value("SELECT current_user"), sample::USER);

    let mut client = direct_tls(&pgweir, &files, true);
    client.send(&support::newcomer::opening(pgweir::wire::startup::SSL_REQUEST, &[]));
    assert_eq!(client.refused().unwrap()[&'C'], "0A000", "TLS within TLS");

    let mut client = direct_tls(&pgweir, &files, false);
    let mut startup = bytes::BytesMut::new();
    pgweir::wire::write::startup(&mut startup, 0, parameters);
    // It may fail in the writing already.
    let _ = std::io::Write::write_all(&mut client.stream, &startup);
    assert_eq!(client.frame(), None, "a client of who knows what");
}

#[test]
fn idle_clients_of_tls_are_put_to_rest_and_go_on() {
    let files = Files::new();
    let pgweir = files.listening("require").operator().start();
    let mut client = direct_tls(&pgweir, &files, true);
    client.startup(0, &[("user", sample::USER), ("database", sample::DATABASE)]);
    client.authenticate(sample::USER, sample::PASSWORD).unwrap();
    let rests = || pgweir.console("SHOW LISTS").number("list", "resting_clients", "items") == 1;
    for word in ["one", "another"] {
        wait_until(LIMIT, "a client at rest", rests);
        assert_eq!(client.value(&format!("SELECT '{word}'")), word);
    }
    wait_until(LIMIT, "a client at rest", rests);
    drop(client);
    wait_until(LIMIT, "its end", || !rests());
}

#[test]
fn passwords_may_pass_through_tls() {
    let files = Files::new();
    support::cluster().primary().psql("CREATE ROLE through LOGIN PASSWORD 'through-word'").unwrap();
    let pgweir = files.listening("prefer").passthrough("through").start();
    let login = |password: &str, mode: &str| {
        let connection = format!(
            "host=localhost port={} user=through password={password} dbname={} sslmode={mode}",
            pgweir.port(),
            sample::DATABASE
        );
        pgweir.psql_output(&["-c", "SELECT current_user", &connection])
    };
    assert_eq!(login("through-word", "require").stdout, b"through\n");
    assert!(stderr(&login("wrong", "require")).contains("password authentication failed for user \"through\""));
    assert!(stderr(&login("through-word", "disable")).contains("a password in clear needs TLS or a unix socket"));
    assert!(!pgweir.stderr().contains("through-word"));
}

#[test]
fn a_reload_takes_new_certificates_and_users_and_keeps_the_old_of_broken_ones() {
    let files = Files::new();
    let builder = files.listening("require");
    let pgweir = builder.start();
    let trusting = |authority: &str| format!("sslmode=verify-full sslrootcert={}", files.text(authority));
    let mut before = direct_tls(&pgweir, &files, true);
    before.startup(0, &[("user", sample::USER), ("database", sample::DATABASE)]);
    before.authenticate(sample::USER, sample::PASSWORD).unwrap();

    let next = Authority::new("next");
    files.directory.write("next.pem", &next.certificate);
    files.pair("server", &next.issue("localhost", &["localhost"]));
    assert_eq!(let_in(&pgweir, &trusting("ca.pem")), Some(true), "not before it is told to");
    support::cluster().primary().psql("CREATE ROLE late LOGIN PASSWORD 'late-word'").unwrap();
    pgweir.reload(&builder.clone().user("late", "late-word"));
    wait_until(LIMIT, "the new certificate", || let_in(&pgweir, &trusting("next.pem")) == Some(true));
    assert_eq!(let_in(&pgweir, &trusting("ca.pem")), None);
    let late = format!("user=late password=late-word {}", trusting("next.pem"));
    assert_eq!(let_in(&pgweir, &late), Some(true));

    files.directory.write("server.crt", "no certificate");
    pgweir.reload(&builder);
    wait_until(LIMIT, "the complaint", || pgweir.stderr().contains("the old configuration stays"));
    assert_eq!(let_in(&pgweir, &late), Some(true));
    assert_eq!(before.value("SELECT 'as before'"), "as before");
}

/// A server with TLS, its certificate made out to localhost.
fn encrypted_cluster() -> &'static (Files, Cluster) {
    static SHARED: OnceLock<(Files, Cluster)> = OnceLock::new();
    SHARED.get_or_init(|| {
        let files = Files::new();
        let cluster = Cluster::builder().tls(&files.path("server.crt"), &files.path("server.key")).start().unwrap();
        sample::install(cluster.primary()).unwrap();
        (files, cluster)
    })
}

/// pgweir with this mode towards the servers, which it finds at this host.
fn towards(host: &str, mode: &str, ca: Option<&Path>) -> Builder {
    let (_, cluster) = encrypted_cluster();
    let builder = Pgweir::builder().node_at(host, cluster.primary().port(), "primary", None).set("database.tls", mode);
    match ca {
        Some(path) => builder.set("database.ca", path.to_str().unwrap()),
        None => builder,
    }
}

const IS_ENCRYPTED: &str = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

#[test]
fn modes_towards_servers() {
    let (files, _) = encrypted_cluster();
    let ca = files.path("ca.pem");
    for (host, mode, ca, encrypted) in [
        ("127.0.0.1", "disable", None, "f"),
        ("127.0.0.1", "prefer", None, "t"),
        ("127.0.0.1", "require", None, "t"),
        ("127.0.0.1", "verify-ca", Some(&*ca), "t"),
        ("localhost", "verify-full", Some(&*ca), "t"),
    ] {
        let pgweir = towards(host, mode, ca).start();
        assert_eq!(pgweir.psql(IS_ENCRYPTED), encrypted, "{mode}");
    }
    let plain = Pgweir::builder().cluster(support::cluster(), &[1]).set("database.tls", "prefer").start();
    assert_eq!(plain.psql(IS_ENCRYPTED), "f");
}

#[test]
fn servers_that_cannot_be_trusted_are_not_logged_in_to() {
    let (files, _) = encrypted_cluster();
    let (ca, other) = (files.path("ca.pem"), files.path("other.pem"));
    for (host, mode, ca, why) in [
        ("127.0.0.1", "verify-ca", &other, "the certificate is not signed by a trusted authority"),
        ("localhost", "verify-full", &other, "the certificate is not signed by a trusted authority"),
        ("127.0.0.1", "verify-full", &ca, "the certificate is for CN=localhost, not for host 127.0.0.1"),
    ] {
        let pgweir = towards(host, mode, Some(ca)).set("pool.acquire_timeout", "300ms").start_unready();
        let output = pgweir.psql_output(&["-c", "SELECT 1", &pgweir.url()]);
        let told = stderr(&output);
        assert!(!output.status.success() && told.contains(why), "{mode}: {told}");
        assert_eq!(pgweir.get("/readyz").0, 503);
    }
    let plain = Pgweir::builder().cluster(support::cluster(), &[]).set("database.tls", "require");
    let pgweir = plain.set("pool.acquire_timeout", "300ms").start_unready();
    let told = stderr(&pgweir.psql_output(&["-c", "SELECT 1", &pgweir.url()]));
    assert!(told.contains("TLS is demanded, and the server does not offer it"), "{told}");
}

#[test]
fn a_reload_reads_the_servers_authority_anew_and_keeps_it_where_it_cannot() {
    let (files, cluster) = encrypted_cluster();
    let own = Files::new();
    let ca = own.directory.write("rotating.pem", &own.authority.certificate);
    let builder = towards("localhost", "verify-full", Some(&ca)).set("pool.acquire_timeout", "200ms");
    let pgweir = builder.start_unready();
    let ask = || pgweir.psql_output(&["-c", IS_ENCRYPTED, &pgweir.url()]);
    assert!(!ask().status.success(), "signed by somebody else");
    std::fs::copy(files.path("ca.pem"), &ca).unwrap();
    pgweir.reload(&builder);
    wait_until(LIMIT, "trust", || ask().stdout == b"t\n");
    own.directory.write("rotating.pem", "no certificate");
    pgweir.reload(&builder);
    wait_until(LIMIT, "the complaint", || pgweir.stderr().contains("the old configuration stays"));
    cluster.primary().psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'").unwrap();
    wait_until(LIMIT, "a new connection", || ask().stdout == b"t\n");
    assert!(!pgweir.stderr().contains("take effect with a restart"));
}
