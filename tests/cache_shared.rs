//! The cache's second level: what one pgweir has read, another need not, and no answer is older or another's for that, whatever becomes
//! of the store.

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pgweir::cache::MOST_BEHIND;
use pgweir::demo::cluster::{Cluster, Scratch, free_port};
use pgweir::demo::sample;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use redis::Commands;
use rustix::process::Signal;
use support::wire::{Frames, Login, Wire};
use support::{Builder, Gate, LIMIT, Mode, Pgweir, Store, logged, wait_until};

fn cluster() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| {
        let cluster = Cluster::builder().setting("log_statement", "all").start().unwrap();
        sample::install(cluster.primary()).unwrap();
        cluster
    })
}

/// Reads wait for the store for as long as a busy machine may need.
fn builder(url: &str) -> Builder {
    let builder = Pgweir::builder().cluster(cluster(), &[]);
    let builder = builder.set("cache.enabled", true).set("cache.invalidation", "wal").set("cache.max_entries", 10_000);
    builder.set("cache.shared", url).set("cache.shared_timeout", "5s")
}

/// Its changes are followed, and the store answers.
fn start(builder: &Builder) -> Pgweir {
    let pgweir = builder.start();
    wait_until(LIMIT, "the stream", || pgweir.cache()["mode"] == "wal");
    wait_until(LIMIT, "the store", || is_up(&pgweir));
    pgweir
}

fn is_up(pgweir: &Pgweir) -> bool {
    pgweir.cache()["shared_store"]["state"] == "up"
}

fn figure(pgweir: &Pgweir, name: &str) -> u64 {
    pgweir.cache()["shared_store"][name].as_u64().unwrap()
}

fn refused(pgweir: &Pgweir, reason: &str) -> u64 {
    pgweir.cache()["shared_store"]["refused"][reason].as_u64().unwrap()
}

/// As the superuser, past every pgweir.
fn around(sql: &str) -> String {
    cluster().primary().psql_in(sample::DATABASE, sql).unwrap().trim().to_owned()
}

fn table(name: &str) {
    around(&format!(
        "CREATE TABLE {name} (n int, t text); INSERT INTO {name} VALUES (1, 'one'); GRANT ALL ON {name} TO app"
    ));
}

/// For what may not come at all: not every read asks the store, right behind a start for one.
fn wait_a_moment_for(condition: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    while !condition() {
        if began.elapsed() > Duration::from_millis(500) {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

/// Has `one` read a text and put the result into the store: the text, of the many that `text` makes.
fn stored(one: (&Pgweir, &mut Wire), text: impl Fn(usize) -> String) -> String {
    static NUMBERS: AtomicUsize = AtomicUsize::new(0);
    let mut sql = String::new();
    wait_until(LIMIT, "an entry in the store", || {
        sql = text(NUMBERS.fetch_add(1, Ordering::Relaxed));
        let before = figure(one.0, "stored");
        one.1.query(&sql);
        wait_a_moment_for(|| figure(one.0, "stored") > before)
    });
    sql
}

/// Has `two` find what `one` has read: the text, and the answer.
fn found(one: (&Pgweir, &mut Wire), two: (&Pgweir, &mut Wire), text: impl Fn(usize) -> String) -> (String, String) {
    let mut answer = (String::new(), String::new());
    wait_until(LIMIT, "a hit in the store", || {
        let sql = stored((one.0, &mut *one.1), &text);
        let before = figure(two.0, "hits");
        answer = (two.1.value(&sql), sql);
        figure(two.0, "hits") > before
    });
    (answer.1, answer.0)
}

#[test]
fn what_one_has_read_another_need_not() {
    table("found");
    let store = Store::start();
    let (a, b) = (start(&builder(&store.url())), start(&builder(&store.url())));
    let (mut one, mut two) = (Wire::connect(a.port()), Wire::connect(b.port()));
    let text = |n: usize| format!("SELECT t, n FROM found WHERE n < 10 /* found {n}. */");
    let (sql, answer) = found((&a, &mut one), (&b, &mut two), text);
    assert_eq!((answer.as_str(), logged(cluster().primary(), &sql)), ("one", 1));
    // Byte for byte, described as by a server, and from then on kept here, until definitions change (other tests do that).
    wait_until(LIMIT, "a hit", || {
        let hits = b.cache()["hits"].as_u64();
        assert_eq!(one.query(&sql), two.query(&sql));
        b.cache()["hits"].as_u64() > hits
    });
    // By the extended protocol as well.
    let run = |n: usize| format!("SELECT t FROM found WHERE n = $1 /* found {n}. */");
    let mut n = 0;
    wait_until(LIMIT, "a hit in the store", || {
        n += 1;
        let (before, stored) = (figure(&b, "hits"), figure(&a, "stored"));
        let frames = Frames::new().run(&run(n), &["1"]).sync();
        let first = one.ask(&frames, "12DCZ");
        wait_a_moment_for(|| figure(&a, "stored") > stored);
        assert_eq!(two.ask(&frames, "12DCZ"), first);
        figure(&b, "hits") > before
    });
    let metrics = b.get("/metrics").1;
    assert!(metrics.contains("pgweir_cache_store_up{database=\"app\"} 1"), "{metrics}");
}

#[test]
fn a_change_by_anybody_is_seen_by_all_within_the_bound() {
    table("changed");
    let store = Store::start();
    let pgweirs = [start(&builder(&store.url())), start(&builder(&store.url()))];
    let mut clients = pgweirs.each_ref().map(|pgweir| Wire::connect(pgweir.port()));
    let mut writer = Wire::connect(pgweirs[0].port());
    for n in 2..40 {
        let update = format!("UPDATE changed SET n = {n}");
        if n % 2 == 0 {
            drop(around(&update))
        } else {
            drop(writer.query(&update))
        }
        let told = Instant::now();
        if n % 2 == 1 {
            // Who wrote sees it, whatever others have put into the store.
            assert_eq!(writer.value("SELECT n FROM changed"), n.to_string());
        }
        for client in &mut clients {
            wait_until(LIMIT, "the change", || {
                let asked = Instant::now();
                let sees = client.value("SELECT n FROM changed") == n.to_string();
                assert!(sees || asked - told < MOST_BEHIND, "{n} was written {:?} before", asked - told);
                sees
            });
        }
    }
}

#[test]
fn what_changed_before_one_began_makes_an_entry_old() {
    table("earlier");
    let store = Store::start();
    let a = start(&builder(&store.url()));
    let mut one = Wire::connect(a.port());
    let sql = stored((&a, &mut one), |n| format!("SELECT t FROM earlier /* {n} */"));
    // Nobody is told of what happens now.
    a.signal(Signal::STOP);
    around("UPDATE earlier SET t = 'two'");
    let b = start(&builder(&store.url()));
    let mut two = Wire::connect(b.port());
    wait_until(LIMIT, "the entry", || {
        assert_eq!(two.value(&sql), "two");
        refused(&b, "old") + b.cache()["hits"].as_u64().unwrap() > 0
    });
    a.signal(Signal::CONT);
    wait_until(LIMIT, "the change", || one.value(&sql) == "two");
}

/// Each answers as if there were no store, and what is there again is used again.
fn lives_without(store: &mut Store, one_name: &str, away: impl FnOnce(&mut Store), back: impl FnOnce(&mut Store)) {
    table(one_name);
    let gate = Gate::new(store.port);
    let url = format!("redis://127.0.0.1:{}", gate.port);
    let (a, b) = (start(&builder(&url)), start(&builder(&url)));
    let (mut one, mut two) = (Wire::connect(a.port()), Wire::connect(b.port()));
    let text = |n: usize| format!("SELECT t FROM {one_name} /* {n} */");
    found((&a, &mut one), (&b, &mut two), text);
    away(store);
    let failed = figure(&a, "failed");
    for n in 0..20 {
        assert_eq!(one.value(&text(1_000_000 + n)), "one");
    }
    // Only the first of them asked, if any did before it was known to be away.
    wait_until(LIMIT, "the store is away", || !is_up(&a) && !is_up(&b));
    assert!(figure(&a, "failed") <= failed + 1, "{} and {failed}", figure(&a, "failed"));
    assert!(!a.cache()["shared_store"]["reason"].as_str().unwrap().is_empty());
    back(store);
    wait_until(LIMIT, "the store is back", || is_up(&a) && is_up(&b));
    found((&a, &mut one), (&b, &mut two), text);
}

#[test]
fn a_store_that_is_killed_harms_nobody() {
    lives_without(&mut Store::start(), "killed", Store::kill, Store::restart);
}

#[test]
fn a_store_that_stands_still_harms_nobody() {
    let stop = |store: &mut Store| store.signal(Signal::STOP);
    lives_without(&mut Store::start(), "stopped", stop, |store| store.signal(Signal::CONT));
}

#[test]
fn a_slow_store_is_not_waited_for() {
    table("slow");
    let store = Store::start();
    let gate = Gate::new(store.port);
    let url = format!("redis://127.0.0.1:{}", gate.port);
    let pgweir = start(&builder(&url).set("cache.shared_timeout", "200ms"));
    let mut client = Wire::connect(pgweir.port());
    stored((&pgweir, &mut client), |n| format!("SELECT t FROM slow /* {n} */"));
    gate.set(Mode::Slow(Duration::from_secs(2)));
    let (mut n, failed) = (0, figure(&pgweir, "failed"));
    wait_until(LIMIT, "the store is too slow", || {
        n += 1;
        assert_eq!(client.value(&format!("SELECT t FROM slow /* anew {n} */")), "one");
        !is_up(&pgweir)
    });
    for n in 0..20 {
        assert_eq!(client.value(&format!("SELECT t FROM slow /* without {n} */")), "one");
    }
    assert!(!is_up(&pgweir) && figure(&pgweir, "failed") <= failed + 1);
    gate.set(Mode::Open);
    wait_until(LIMIT, "the store is quick again", || is_up(&pgweir));
}

#[test]
fn what_is_no_entry_is_refused() {
    table("garbage");
    let store = Store::start();
    let (a, b) = (start(&builder(&store.url())), start(&builder(&store.url())));
    let (mut one, mut two) = (Wire::connect(a.port()), Wire::connect(b.port()));
    let mut connection = store.connection(&store.url());
    // Each of them, whole.
    let other = stored((&a, &mut one), |n| format!("SELECT n FROM garbage /* other {n} */"));
    assert_eq!(two.value(&other), "1");
    let others: Vec<Vec<u8>> = store.keys().iter().map(|key| connection.get(key).unwrap()).collect();
    type Spoil = fn(&[u8], &[Vec<u8>]) -> Vec<u8>;
    let spoils: [Spoil; 5] = [
        |_, _| b"garbage".to_vec(),
        |value, _| value[..value.len() / 2].to_vec(),
        |value, _| [value, b"more"].concat(),
        |value, _| value.iter().map(|byte| byte ^ 0x10).collect(),
        |_, others| others.iter().max_by_key(|other| other.len()).unwrap().clone(),
    ];
    for spoil in spoils {
        let broken = refused(&b, "broken");
        wait_until(LIMIT, "a broken entry", || {
            let before = store.keys();
            let sql = stored((&a, &mut one), |n| format!("SELECT t FROM garbage /* {n} */"));
            for key in store.keys().iter().filter(|key| !before.contains(key)) {
                let value: Vec<u8> = connection.get(key).unwrap();
                let left: i64 = connection.pttl(key).unwrap();
                let _: () = connection.pset_ex(key, spoil(&value, &others), left as u64).unwrap();
            }
            assert_eq!(two.value(&sql), "one");
            refused(&b, "broken") > broken
        });
    }
    // Of another type, and of a size that nobody wants: an error, and no answer of it.
    let before = store.keys();
    let sql = stored((&a, &mut one), |n| format!("SELECT t FROM garbage /* list {n} */"));
    for key in store.keys().iter().filter(|key| !before.contains(key)) {
        let _: () = connection.del(key).unwrap();
        let _: () = connection.lpush(key, "x").unwrap();
    }
    assert_eq!(two.value(&sql), "one");
    wait_until(LIMIT, "the store is asked again", || is_up(&b));
    let before = store.keys();
    let sql = stored((&a, &mut one), |n| format!("SELECT t FROM garbage /* large {n} */"));
    for key in store.keys().iter().filter(|key| !before.contains(key)) {
        let _: () = connection.set(key, vec![7u8; 8 << 20]).unwrap();
    }
    assert_eq!(two.value(&sql), "one");
    // The epoch as well.
    store.flush();
    let text = |n: usize| format!("SELECT t FROM garbage /* flushed {n} */");
    found((&a, &mut one), (&b, &mut two), text);
    for key in store.keys() {
        let _: () = connection.set(key, "short").unwrap();
    }
    found((&a, &mut one), (&b, &mut two), text);
}

#[test]
fn only_with_the_secret_anything_is_shared_or_read() {
    table("sealed");
    around("UPDATE sealed SET t = 'a value that stands out'");
    let store = Store::start();
    let keyed = |secret: &str| start(&builder(&store.url()).set("cache.shared_secret", secret));
    let (a, b, other) = (keyed("one"), keyed("one"), keyed("another"));
    let (mut one, mut two, mut third) = (Wire::connect(a.port()), Wire::connect(b.port()), Wire::connect(other.port()));
    let text = |n: usize| format!("SELECT t FROM sealed /* {n} */");
    let (sql, _) = found((&a, &mut one), (&b, &mut two), text);
    assert_eq!(third.value(&sql), "a value that stands out");
    assert_eq!(figure(&other, "hits"), 0);
    let mut connection = store.connection(&store.url());
    for key in store.keys() {
        let value: Vec<u8> = connection.get(&key).unwrap();
        assert!(!value.windows(9).any(|bytes| bytes == b"stands ou"), "{key}");
    }
}

#[test]
fn a_password_that_is_wrong_is_said_and_not_repeated() {
    let store = Store::start_with("user weir on >right ~pgweir:* +@all\nuser default off");
    let url = |password: &str| format!("redis://weir:{password}@127.0.0.1:{}/3", store.port);
    table("password");
    let pgweir = builder(&url("wrong")).start();
    wait_until(LIMIT, "a reason", || {
        let reason = pgweir.cache()["shared_store"]["reason"].as_str().unwrap_or_default().to_owned();
        reason.contains("authentication") || reason.contains("WRONGPASS")
    });
    let mut client = Wire::connect(pgweir.port());
    assert_eq!(client.value("SELECT t FROM password"), "one");
    assert!(!pgweir.stderr().contains("wrong:") && !pgweir.stderr().contains(":wrong"), "{}", pgweir.stderr());
    let (a, b) = (start(&builder(&url("right"))), start(&builder(&url("right"))));
    let (mut one, mut two) = (Wire::connect(a.port()), Wire::connect(b.port()));
    found((&a, &mut one), (&b, &mut two), |n| format!("SELECT t FROM password /* {n} */"));
    assert!(!a.stderr().contains("right"), "{}", a.stderr());
}

#[test]
fn what_is_evicted_is_no_answer_anywhere() {
    table("evicted");
    let store = Store::start();
    let builder = builder(&store.url()).set("admin.users", vec![toml::Value::from("app")]);
    let [a, b, c] = [(); 3].map(|()| start(&builder));
    let [mut one, mut two, mut three] = [&a, &b, &c].map(|pgweir| Wire::connect(pgweir.port()));
    let mut console = Wire::log_in(b.port(), &Login { database: "pgweir", ..Login::default() });
    let text = |n: usize| format!("SELECT t FROM evicted /* {n}. */");
    let (sql, _) = found((&a, &mut one), (&b, &mut two), text);
    let (hits, runs) = (figure(&b, "hits"), logged(cluster().primary(), &sql));
    for n in 1..10 {
        console.query("EVICT CACHE");
        assert_eq!(two.value(&sql), "one");
        assert_eq!((figure(&b, "hits"), logged(cluster().primary(), &sql)), (hits, runs + n));
    }
    let mut connection = store.connection(&store.url());
    let mut epoch = || {
        let values: Vec<Vec<u8>> = store.keys().iter().map(|key| connection.get(key).unwrap()).collect();
        values.into_iter().find(|value| value.len() == 16)
    };
    wait_until(LIMIT, "an evicted entry", || {
        let sql = stored((&a, &mut one), text);
        let (before, refusals, hits) = (epoch(), refused(&c, "evicted"), figure(&c, "hits"));
        console.query("EVICT CACHE evicted");
        wait_until(LIMIT, "another epoch", || epoch() != before);
        assert_eq!((three.value(&sql).as_str(), figure(&c, "hits")), ("one", hits));
        refused(&c, "evicted") > refusals
    });
    found((&a, &mut one), (&b, &mut two), text);
}

#[test]
fn neither_users_nor_roles_nor_settings_share() {
    around(
        "CREATE ROLE shared_other LOGIN PASSWORD 'other'; CREATE ROLE shared_role; GRANT shared_role TO app; \
         CREATE SCHEMA shared_a; CREATE TABLE shared_a.place AS SELECT 'a' AS t; \
         CREATE SCHEMA shared_b; CREATE TABLE shared_b.place AS SELECT 'b' AS t; \
         CREATE TABLE shared_moment AS SELECT '2020-01-01 00:00+00'::timestamptz AS at; \
         GRANT USAGE ON SCHEMA shared_a, shared_b TO app; GRANT SELECT ON shared_a.place, shared_b.place, shared_moment TO app",
    );
    table("owned");
    let store = Store::start();
    let builder = builder(&store.url()).user("shared_other", "other");
    let (a, b) = (start(&builder), start(&builder));
    let (mut one, mut two) = (Wire::connect(a.port()), Wire::connect(b.port()));
    let (sql, _) = found((&a, &mut one), (&b, &mut two), |n| format!("SELECT t FROM owned /* {n} */"));
    let other = Login { user: "shared_other", password: "other", ..Login::default() };
    let mut stranger = Wire::log_in(b.port(), &other);
    let is_refused =
        |client: &mut Wire| client.query(&sql).iter().any(|frame| frame.tag == b'E' && frame.sqlstate() == "42501");
    assert!(is_refused(&mut stranger));
    two.query("SET ROLE shared_role");
    assert!(is_refused(&mut two));
    two.query("RESET ROLE");
    assert_eq!(two.value(&sql), "one");
    for (setting, text, expected) in [
        ("search_path", "SELECT t FROM place", [("shared_a", "a"), ("shared_b", "b")]),
        (
            "TimeZone",
            "SELECT at FROM public.shared_moment",
            [("UTC", "2020-01-01 00:00:00+00"), ("Asia/Tokyo", "2020-01-01 09:00:00+09")],
        ),
    ] {
        for round in 0..4 {
            let (value, answer) = expected[round % 2];
            for (pgweir, client) in [(&a, &mut one), (&b, &mut two)] {
                client.query(&format!("SET {setting} = '{value}'"));
                wait_until(LIMIT, "an answer that is kept", || {
                    let before = pgweir.cache()["hits"].as_u64();
                    assert_eq!(client.value(text), answer, "{setting} {value}");
                    pgweir.cache()["hits"].as_u64() > before
                });
            }
        }
    }
}

#[test]
fn many_who_ask_at_once_ask_the_store_once() {
    table("crowd");
    let store = Store::start();
    let gate = Gate::new(store.port);
    let a = start(&builder(&store.url()));
    let b = start(&builder(&format!("redis://127.0.0.1:{}", gate.port)).set("cache.shared_timeout", "20s"));
    let mut one = Wire::connect(a.port());
    let mut crowd: Vec<_> = (0..8).map(|_| Wire::connect(b.port())).collect();
    wait_until(LIMIT, "one hit", || {
        let sql = stored((&a, &mut one), |n| format!("SELECT t FROM crowd /* {n} */"));
        gate.set(Mode::Slow(Duration::from_millis(300)));
        let before = (figure(&b, "hits"), figure(&b, "misses") + figure(&b, "failed"), refused(&b, "old"));
        crowd.iter_mut().for_each(|client| client.send(&Frames::new().query(&sql)));
        for client in &mut crowd {
            assert!(client.until(b'Z').iter().any(|frame| frame.tag == b'D' && frame.value() == "one"));
        }
        gate.set(Mode::Open);
        let hits = figure(&b, "hits") - before.0;
        assert!(hits <= 1, "{hits}");
        hits == 1
    });
}

#[test]
fn definitions_that_change_part_what_is_shared() {
    table("defined");
    around("GRANT CREATE ON SCHEMA public TO app");
    let store = Store::start();
    let (a, b) = (start(&builder(&store.url())), start(&builder(&store.url())));
    let (mut one, mut two) = (Wire::connect(a.port()), Wire::connect(b.port()));
    one.query("CREATE VIEW defined_view AS SELECT t FROM defined");
    let mut sql = String::new();
    wait_until(LIMIT, "a hit in the store", || {
        let before = figure(&b, "hits");
        sql = stored((&a, &mut one), |n| format!("SELECT t FROM defined_view /* {n} */"));
        let sees = two.value(&sql) == "one";
        sees && figure(&b, "hits") > before
    });
    one.query("CREATE OR REPLACE VIEW defined_view AS SELECT t || '!' AS t FROM defined");
    assert_eq!(one.value(&sql), "one!");
    // The other learns of it in its own time; from then on nothing from before comes back.
    wait_until(LIMIT, "the view", || two.value(&sql) == "one!");
    for n in 0..50 {
        assert_eq!(two.value(&format!("SELECT t FROM defined_view /* anew {n} */")), "one!");
        assert_eq!((one.value(&sql), two.value(&sql)), ("one!".to_owned(), "one!".to_owned()));
    }
}

/// What `pgweir check` says of a store, and whether it accepts the configuration; it trusts these certificates.
fn check(url: &str, trusted: &Path) -> (bool, String) {
    let folder = Scratch::create(None).unwrap();
    let file = folder.path().join("pgweir.toml");
    std::fs::write(&file, builder(url).toml(free_port().unwrap(), free_port().unwrap(), folder.path())).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgweir"));
    command.args(["check", "--config", file.to_str().unwrap()]).env("SSL_CERT_FILE", trusted);
    let output = command.output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_store_is_reached_by_tls_where_its_certificate_is_trusted() {
    let folder = Scratch::create(None).unwrap();
    let path = |name: &str| folder.path().join(name);
    let (key, authority_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(path("ca.pem"), authority.self_signed(&authority_key).unwrap().pem()).unwrap();
    let other_key = KeyPair::generate().unwrap();
    std::fs::write(path("other.pem"), authority.self_signed(&other_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    std::fs::write(path("server.pem"), certificate.pem()).unwrap();
    std::fs::write(path("server.key"), key.serialize_pem()).unwrap();
    let [server, key, ca] = ["server.pem", "server.key", "ca.pem"].map(|name| path(name).display().to_string());
    let store = Store::start_with(&format!(
        "port 0\ntls-port PORT\ntls-cert-file {server}\ntls-key-file {key}\ntls-ca-cert-file {ca}\ntls-auth-clients no"
    ));
    let url = |host: &str| format!("rediss://{host}:{}", store.port);
    let (_, said) = check(&url("localhost"), &path("ca.pem"));
    assert!(said.contains("\ncache.shared: ok: answers after "), "{said}");
    for (host, trusted) in [("localhost", "other.pem"), ("127.0.0.1", "ca.pem")] {
        let (_, said) = check(&url(host), &path(trusted));
        assert!(said.contains("\ncache.shared: warning: ") && said.contains("certificate"), "{said}");
    }
}

#[test]
fn check_says_how_the_store_is() {
    let store = Store::start_with("requirepass right");
    let check = |url: &str| check(url, Path::new(""));
    let url = |password: &str| format!("redis://:{password}@127.0.0.1:{}", store.port);
    let (accepted, said) = check(&url("right"));
    assert!(accepted && said.contains("\ncache.shared: ok: answers after "), "{said}");
    let (accepted, said) = check(&url("wrong-one"));
    assert!(accepted && said.contains("\ncache.shared: warning: reads do without it: "), "{said}");
    assert!(!said.contains("wrong-one"), "{said}");
    for url in ["http://:hidden@127.0.0.1", "redis://:hidden@", "redis://:hidden@h/x", "rediss://:hidden@h/#insecure"] {
        let (accepted, said) = check(url);
        assert!(!accepted && said.contains("\"shared\" in [cache]") && !said.contains("hidden"), "{url}: {said}");
    }
}
