use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use toml::de::{DeTable, DeValue};

use super::*;

mod faults;

const ANNOTATED: &str = include_str!("../../conf/pgweir.toml");
const MINIMAL: &str = include_str!("../../conf/minimal.toml");

fn env(name: &str) -> Option<String> {
    match name {
        "APP_DB_PASSWORD" => Some("s3cret-value".into()),
        "POOL_MAX" => Some("7".into()),
        "EMPTY" => Some(String::new()),
        _ => None,
    }
}

fn parse(text: &str) -> Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>> {
    Config::parse(text, "t.toml", &env)
}

/// The minimal file with `more` before it.
fn with(more: &str) -> String {
    format!("{more}\n{MINIMAL}")
}

#[track_caller]
fn accepted(text: &str) -> (Config, Vec<String>) {
    let (config, said) = parse(text).expect("accepted");
    (config, said.iter().map(ToString::to_string).collect())
}

#[track_caller]
fn refused(text: &str) -> Vec<String> {
    let all = parse(text).expect_err("refused");
    all.iter().map(ToString::to_string).collect()
}

/// Asserts that the one error in `text` has these parts, in this order.
#[track_caller]
fn one_fault(text: &str, parts: &[&str]) {
    let mut faults = refused(text);
    faults.retain(|fault| !fault.contains(": note: "));
    assert_eq!(faults.len(), 1, "{faults:#?}");
    let mut rest = faults[0].as_str();
    for part in parts {
        let at = rest.find(part).unwrap_or_else(|| panic!("no {part:?} in {faults:?}"));
        rest = &rest[at + part.len()..];
    }
}

/// The dotted keys of a file, tables included.
fn keys_of(table: &DeTable<'_>, path: &str, keys: &mut BTreeSet<String>) {
    for (key, value) in table.iter() {
        let path = file::dotted(path, key.get_ref());
        match value.get_ref() {
            DeValue::Table(inner) => keys_of(inner, &path, keys),
            DeValue::Array(items) => {
                for item in items.iter() {
                    if let DeValue::Table(inner) = item.get_ref() {
                        keys_of(inner, &path, keys);
                    }
                }
            }
            _ => {}
        }
        keys.insert(path);
    }
}

// ---- the two files ----

#[test]
fn the_annotated_file_shows_the_defaults() {
    let (annotated, _) = accepted(ANNOTATED);
    let (minimal, said) = accepted(MINIMAL);
    assert_eq!(said, [""; 0]);
    assert_eq!(annotated.listen, minimal.listen);
    assert_eq!(annotated.admin, minimal.admin);
    assert_eq!(annotated.routing, minimal.routing);
    assert_eq!(annotated.cache, minimal.cache);
    assert_eq!(annotated.statements, minimal.statements);
    assert_eq!(annotated.memory, minimal.memory);
    assert_eq!(annotated.alerts, minimal.alerts);
    assert_eq!(annotated.scaling, minimal.scaling);
    assert_eq!(annotated.databases[0].pool, minimal.databases[0].pool);
    assert_eq!(annotated.databases[0].nodes[0], minimal.databases[0].nodes[0]);
    assert_eq!(annotated.databases[0].nodes[1].weight, 1);
    assert_eq!(annotated.databases[0].tls, minimal.databases[0].tls);
    assert_eq!(annotated.users, minimal.users);
    assert_eq!(annotated.auth, minimal.auth);
    assert_eq!(minimal.databases[0].dbname, None);
}

#[test]
fn the_annotated_file_has_every_known_key_and_no_other() {
    let mut written = BTreeSet::new();
    keys_of(DeTable::parse(ANNOTATED).unwrap().get_ref(), "", &mut written);
    let mut known = known_keys();
    // for one database only "max" is shown; the rest are those of [pool]
    known.retain(|key| !key.starts_with("databases.pool.") || key == "databases.pool.max");
    // peers and rules are shown in comments: by default there are none
    let in_comments = ["listen.peers", "auth.rules", "cache.rules"];
    known.retain(|key| !in_comments.iter().any(|shown| key.starts_with(shown)));
    assert_eq!(written, known);
}

#[test]
fn every_key_of_the_contract_is_known() {
    let contract = [
        ("listen", "address unix_socket_dir max_clients login_timeout shutdown_grace workers"),
        ("listen.tls", "mode certificate private_key client_ca"),
        ("admin", "http users token"),
        (
            "pool",
            "mode min max idle_timeout connection_timeout acquire_timeout create_timeout \
             destroy_timeout reap_interval create_retry_interval max_lifetime unnamed_statements \
             prepared_statements statement_timeout idle_transaction_timeout",
        ),
        ("routing", "load_balancing failover freshness max_lag primary_reads probe_interval"),
        (
            "cache",
            "enabled max_entries max_bytes max_entry_bytes ttl invalidation publication verify fleet shared \
             shared_timeout shared_secret",
        ),
        ("cache.rules", "database table fingerprint never ttl stale"),
        ("statements", "max slow_threshold slow_log slow_log_parameters capture_plans"),
        ("memory", "limit threshold"),
        ("alerts", "response_time error_rate cpu_usage memory_usage window webhook"),
        ("scaling.rules", "name condition action cooldown"),
        ("databases", "name dbname tls ca"),
        ("databases.nodes", "host port role weight"),
        ("users", "name password"),
    ];
    let known = known_keys();
    for (section, keys) in contract {
        for key in keys.split_whitespace() {
            assert!(known.contains(&format!("{section}.{key}")), "{section}.{key}");
        }
    }
    for key in known.iter().filter_map(|key| key.strip_prefix("pool.")) {
        assert!(known.contains(&format!("databases.pool.{key}")), "{key}");
    }
}

#[test]
fn each_row_of_not_in_effect_is_a_key() {
    let known = known_keys();
    for row in NOT_IN_EFFECT {
        let key = row.split('=').next().unwrap();
        assert!(known.contains(key), "{row}");
    }
}

// ---- values ----

#[test]
fn values_are_read_in_each_spelling() {
    let (config, _) = accepted(&with(
        "[pool]\nmode = \"session\"\nmin = 0\nmax = 0x10\nidle_timeout = 1500\nmax_lifetime = '5m'\n\
         [cache]\nmax_bytes = 2097152\nmax_entry_bytes = \"1kB\"\n\
         [alerts]\nerror_rate = 1\ncpu_usage = 99.5\n\
         [statements]\nslow_log = \"\"\n[admin]\nhttp = \"\"\nusers = [\"app\"]\ntoken = \"t\"\n\
         [listen]\nworkers = 3\naddress = \"[::1]:7000\"\n[memory]\nlimit = \"2GiB\"\n[routing]\nfailover = false\n",
    ));
    let pool = &config.databases[0].pool;
    assert_eq!((pool.mode, pool.min, pool.max), (PoolMode::Session, 0, 16));
    assert_eq!(pool.idle_timeout, Duration::from_millis(1500));
    assert_eq!(pool.max_lifetime, Duration::from_secs(300));
    assert_eq!((config.cache.max_bytes, config.cache.max_entry_bytes), (2 << 20, 1000));
    assert_eq!((config.alerts.error_rate, config.alerts.cpu_usage), (1.0, 99.5));
    assert_eq!(config.statements.slow_log, SlowLog::Off);
    assert_eq!(config.admin.http, None);
    assert_eq!(config.admin.token, Some(Secret("t".into())));
    assert_eq!((config.listen.workers, config.memory.limit), (3, 2 << 30));
    assert!(!config.routing.failover);
}

#[test]
fn auto_is_what_the_container_has() {
    let container = Container { cpus: 3, memory: 123 };
    for more in ["", "listen.workers = \"auto\"\nmemory.limit = \"auto\"\n"] {
        let (parsed, _) = resolve::resolve(&with(more), "t.toml", &env, &container);
        let (config, _) = parsed.unwrap();
        assert_eq!((config.listen.workers, config.memory.limit), (3, 123));
    }
}

#[test]
fn a_database_lays_its_pool_over_the_common_one() {
    let (config, _) = accepted(
        "pool = { min = 2, max = 9 }\nusers = [{ name = 'u' }]\n\
         [[databases]]\nname = 'a'\npool = { max = 20, mode = 'session' }\nnodes = [{ host = 'h', role = 'auto' }]\n\
         [[databases]]\nname = '*'\nnodes = [{ host = '/run/pg', role = 'primary' }]\n",
    );
    let [a, b] = [&config.databases[0].pool, &config.databases[1].pool];
    assert_eq!((a.min, a.max, a.mode), (2, 20, PoolMode::Session));
    assert_eq!((b.min, b.max, b.mode), (2, 9, PoolMode::Transaction));
    assert_eq!(config.users[0].password, None);
}

#[test]
fn the_environment_reaches_strings_and_numbers() {
    let (config, _) = accepted(&with("[pool]\nmin = 1\nmax = \"${POOL_MAX}\"\n"));
    assert_eq!(config.databases[0].pool.max, 7);
    assert_eq!(config.users[0].password, Some(Secret("s3cret-value".into())));
    assert!(!format!("{config:?}").contains("s3cret-value"));
}

// ---- not in effect ----

fn notes(text: &str) -> Vec<Diagnostic> {
    let env = |name: &str| env(name);
    let (table, walk) = file::Walk::parse(text, "t.toml", &env);
    let rows = ["cache", "routing.freshness=table", "scaling.rules", "statements.capture_plans"];
    effect::note(&walk, table.get_ref(), &rows);
    walk.finish().diagnostics
}

#[test]
fn a_key_without_effect_is_noted_where_it_is_first_set() {
    let notes = notes(
        "[cache]\nttl = '1s'\nmax_entries = 3\n[routing]\nfreshness = 'table'\n\
         [statements]\ncapture_plans = true\n[[scaling.rules]]\nname = 'x'\n",
    );
    let shown: Vec<_> = notes.iter().map(|d| (d.severity, d.line, d.key.as_str())).collect();
    assert_eq!(
        shown,
        [
            (Severity::Note, 2, "cache"),
            (Severity::Note, 5, "routing.freshness"),
            (Severity::Note, 7, "statements.capture_plans"),
            (Severity::Note, 9, "scaling.rules"),
        ]
    );
    assert!(notes[1].to_string().contains("routing.freshness = \"table\" is not in effect yet"));
}

#[test]
fn what_is_off_anyhow_is_not_noted() {
    assert_eq!(notes(""), []);
    assert_eq!(
        notes(
            "scaling.rules = []\n[cache]\nenabled = false\nttl = '1s'\n[routing]\nfreshness = 'session'\n\
             [statements]\ncapture_plans = false\n"
        ),
        []
    );
}

// ---- any text ----

/// Texts that are nearly a configuration: lines of the annotated file, some cut, mixed with noise.
fn nearly_toml() -> impl Strategy<Value = String> {
    let lines: Vec<&'static str> =
        ANNOTATED.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    let line = prop_oneof![
        6 => prop::sample::select(lines.clone()).prop_map(str::to_owned),
        2 => (prop::sample::select(lines), any::<prop::sample::Index>()).prop_map(|(line, at)| {
            line.chars().take(at.index(line.chars().count())).collect()
        }),
        1 => "[a-z_.]{1,12} ?= ?[-0-9\"'\\[\\]{}a-z$.]{0,16}",
        1 => any::<String>(),
    ];
    prop::collection::vec(line, 0..30).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn no_text_panics_and_every_finding_has_a_line(text in prop_oneof![nearly_toml(), any::<String>()]) {
        let last = text.split('\n').count();
        let said = match parse(&text) {
            Ok((_, said)) => said,
            Err(said) => {
                prop_assert!(said.iter().any(|d| d.severity == Severity::Error));
                said
            }
        };
        for d in said {
            prop_assert!(d.line > 0 && d.line <= last, "{d}");
        }
    }

    #[test]
    fn a_fault_keeps_its_line_below_any_comment(comments in prop::collection::vec("#[ -~é]{0,20}", 0..20)) {
        let before: String = comments.iter().map(|c| format!("{c}\n")).collect();
        let faults = refused(&format!("{before}[pool]\nmxa = 1\n{MINIMAL}"));
        prop_assert!(faults[0].starts_with(&format!("t.toml:{}: ", comments.len() + 2)), "{faults:?}");
    }
}
