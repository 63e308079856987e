use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use toml::de::{DeTable, DeValue};

use super::*;

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
        let at = rest
            .find(part)
            .unwrap_or_else(|| panic!("no {part:?} in {faults:?}"));
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
    assert_eq!(
        annotated.databases[0].nodes[0],
        minimal.databases[0].nodes[0]
    );
    assert_eq!(annotated.databases[0].nodes[1].weight, 1);
    assert_eq!(annotated.databases[0].tls, minimal.databases[0].tls);
    assert_eq!(annotated.users, minimal.users);
    assert_eq!(minimal.databases[0].dbname, None);
}

#[test]
fn the_annotated_file_has_every_known_key_and_no_other() {
    let mut written = BTreeSet::new();
    keys_of(
        DeTable::parse(ANNOTATED).unwrap().get_ref(),
        "",
        &mut written,
    );
    let mut known = known_keys();
    // for one database only "max" is shown; the rest are those of [pool]
    known.retain(|key| !key.starts_with("databases.pool.") || key == "databases.pool.max");
    assert_eq!(written, known);
}

#[test]
fn every_key_of_the_contract_is_known() {
    let contract = [
        (
            "listen",
            "address unix_socket_dir max_clients login_timeout shutdown_grace workers",
        ),
        ("listen.tls", "mode certificate private_key client_ca"),
        ("admin", "http users token"),
        (
            "pool",
            "mode min max idle_timeout connection_timeout acquire_timeout create_timeout \
             destroy_timeout reap_interval create_retry_interval max_lifetime unnamed_statements \
             prepared_statements statement_timeout idle_transaction_timeout",
        ),
        (
            "routing",
            "load_balancing failover freshness max_lag primary_reads probe_interval",
        ),
        (
            "cache",
            "enabled max_entries max_bytes max_entry_bytes ttl invalidation publication",
        ),
        (
            "statements",
            "max slow_threshold slow_log slow_log_parameters capture_plans",
        ),
        ("memory", "limit threshold"),
        (
            "alerts",
            "response_time error_rate cpu_usage memory_usage window webhook",
        ),
        ("scaling.rules", "name condition action cooldown"),
        ("databases", "name dbname tls ca"),
        ("databases.nodes", "host port role weight"),
        ("users", "name password"),
    ];
    let known = known_keys();
    for (section, keys) in contract {
        for key in keys.split_whitespace() {
            assert!(
                known.contains(&format!("{section}.{key}")),
                "{section}.{key}"
            );
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
    assert_eq!(
        (config.cache.max_bytes, config.cache.max_entry_bytes),
        (2 << 20, 1000)
    );
    assert_eq!(
        (config.alerts.error_rate, config.alerts.cpu_usage),
        (1.0, 99.5)
    );
    assert_eq!(config.statements.slow_log, SlowLog::Off);
    assert_eq!(config.admin.http, None);
    assert_eq!(config.admin.token, Some(Secret("t".into())));
    assert_eq!((config.listen.workers, config.memory.limit), (3, 2 << 30));
    assert!(!config.routing.failover);
}

#[test]
fn auto_is_what_the_container_has() {
    let container = Container {
        cpus: 3,
        memory: 123,
    };
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
    assert_eq!(
        config.users[0].password,
        Some(Secret("s3cret-value".into()))
    );
    assert!(!format!("{config:?}").contains("s3cret-value"));
}

// ---- faults ----

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    one_fault(
        &with("[pool]\n\nidle_timout = \"1s\""),
        &["t.toml:3: unknown key \"idle_timout\" in [pool]; did you mean \"idle_timeout\"?"],
    );
    one_fault(
        &with("[pol]"),
        &["t.toml:1: unknown key \"pol\"", "did you mean \"pool\"?"],
    );
    one_fault(
        &with("[pool]\nmax_lag = 1"),
        &["t.toml:2:", "\"max_lag\" belongs in [routing]"],
    );
    one_fault(
        &with("[cache]\nfoobar = 1"),
        &["t.toml:2:", "known are enabled, max_entries"],
    );
    one_fault(&with("\"\" = 1"), &["t.toml:1: unknown key \"\""]);
}

#[test]
fn lines_are_right_within_arrays_of_tables() {
    let text = "[[databases]]\nname = 'a'\n[[databases.nodes]]\nhost = 'h'\nrole = 'primary'\n\
                [[databases.nodes]]\nhost = 'r'\nrole = 'replica'\nwieght = 3\n\
                [[databases]]\nname = 'b'\n[[databases.nodes]]\nhost = 'h'\nrole = 'primry'\n\
                [[users]]\nname = 'u'\n[[users]]\npasswort = 'x'\n";
    let faults = refused(text);
    let starts = [
        "t.toml:9: unknown key \"wieght\" in [[databases.nodes]]",
        "t.toml:14:",
        "t.toml:17:",
        "t.toml:18:",
    ];
    assert_eq!(faults.len(), starts.len(), "{faults:#?}");
    for (fault, start) in faults.iter().zip(starts) {
        assert!(fault.starts_with(start), "{fault}");
    }
    assert!(faults[1].contains("did you mean \"primary\"?"));
    assert!(faults[2].contains("\"name\" is missing in [[users]]"));
}

#[test]
fn carriage_returns_do_not_move_lines() {
    one_fault(&with("[pool]\r\n\r\nmax = 0\r"), &["t.toml:3:"]);
}

#[test]
fn every_fault_is_told() {
    let faults = refused(&with(
        "[pool]\nmin = 9\nmax = 3\nreap_interval = 0\nmode = 7\n[routing]\nprobe_interval = \"0s\"\nmax_lag = \"10x\"\n",
    ));
    let lines: Vec<_> = faults
        .iter()
        .map(|f| f.split(':').nth(1).unwrap())
        .collect();
    assert_eq!(lines, ["2", "4", "5", "7", "8"], "{faults:#?}");
}

#[test]
fn single_faults() {
    let cases: &[(&str, &[&str])] = &[
        ("[pool]\nmin = 60", &[":2:", "\"min\"", "more than \"max\""]),
        ("[pool]\nmax = 3", &[":2:", "\"max\"", "less than \"min\""]),
        (
            "[pool]\nmax = \"3\"",
            &[":2:", "whole number", "without quotes"],
        ),
        ("[pool]\nmax = -1", &[":2:", "out of range: -1", "1 to"]),
        (
            "[pool]\nmax = 99999999999999999999999999999999999999999",
            &[":2:", "out of range"],
        ),
        (
            "[pool]\nidle_timeout = \"30\"",
            &[":2:", "has no unit", "30s"],
        ),
        ("[pool]\nidle_timeout = -30", &[":2:", "no duration"]),
        (
            "[pool]\nidle_timeout = [1]",
            &[":2:", "must be a duration, not an array"],
        ),
        (
            "[pool]\nmax_lifetime = \"9999h\"",
            &[":2:", "too long", "365 days"],
        ),
        (
            "pool = 5",
            &[":1:", "must be a table, not an integer", "[pool]"],
        ),
        ("[listen]\naddress = \"localhost\"", &[":2:", "has no port"]),
        (
            "[listen]\naddress = \"*:6432\"",
            &[":2:", "no name or address", "0.0.0.0"],
        ),
        (
            "[listen]\naddress = \"10.0.0.300:1\"",
            &[":2:", "no IPv4 address"],
        ),
        ("[listen]\naddress = \"h:66000\"", &[":2:", "65535"]),
        ("[listen]\nworkers = 0", &[":2:", "out of range"]),
        ("[listen]\nworkers = \"many\"", &[":2:", "whole number"]),
        ("[listen]\nmax_clients = true", &[":2:", "not true"]),
        (
            "[admin]\nhttp = \"localhost:9432\"",
            &[":2:", "no IP address", "127.0.0.1:9432"],
        ),
        ("[admin]\nhttp = \"127.0.0.1:6432\"", &[":2:", "[listen]"]),
        ("[admin]\nusers = \"app\"", &[":2:", "must be an array"]),
        (
            "[admin]\nusers = [\n\"app\",\n5]",
            &[":4:", "must hold strings, not an integer"],
        ),
        (
            "[admin]\ntoken = \"${NOPE}\"",
            &[":2:", "NOPE is not set", "set NOPE"],
        ),
        ("[routing]\nfailover = \"yes\"", &[":2:", "true or false"]),
        (
            "[routing]\nfreshness = \"sesion\"",
            &[":2:", "\"sesion\"", "did you mean \"session\"?"],
        ),
        (
            "[cache]\nenabled = false\nmax_entry_bytes = \"1GiB\"",
            &[":3:", "max_bytes"],
        ),
        (
            "[cache]\nenabled = false\nmax_bytes = \"64Mb\"",
            &[":3:", "unknown unit", "64MiB"],
        ),
        (
            "[cache]\nenabled = false\nmax_bytes = 0",
            &[":3:", "more than zero"],
        ),
        ("[memory]\nthreshold = 1.5", &[":2:", "out of range: 1.5"]),
        ("[memory]\nthreshold = nan", &[":2:", "out of range: nan"]),
        ("[memory]\nthreshold = 0.0", &[":2:", "more than zero"]),
        ("[memory]\nlimit = \"lots\"", &[":2:", "no size"]),
        ("[alerts]\nerror_rate = 101", &[":2:", "out of range: 101"]),
        ("[alerts]\nwebhook = \"example.org\"", &[":2:", "no URL"]),
        (
            "[[scaling.rules]]\nname = 'n'\naction = 'a'\ncondition = 'often'",
            &[":4:", "no comparison"],
        ),
        (
            "[[scaling.rules]]\nname = 'n'\naction = 'a'",
            &[":1:", "\"condition\" is missing"],
        ),
        ("[scaling]\nrules = 1", &[":2:", "must be an array"]),
        ("[scaling]\nrules = [1]", &[":2:", "must hold tables"]),
    ];
    for (more, parts) in cases {
        one_fault(&with(more), parts);
    }
}

#[test]
fn tls_needs_its_files() {
    let faults = refused(&with(
        "[listen.tls]\nmode = \"verify-full\"\ncertificate = \"\"",
    ));
    assert_eq!(faults.len(), 3, "{faults:#?}");
    assert!(
        faults.iter().any(|f| f.contains(":3: \"certificate\"")),
        "{faults:#?}"
    );
    assert!(
        faults
            .iter()
            .any(|f| f.contains(":1: \"client_ca\" is missing in [listen.tls]"))
    );
    let (_, said) = accepted(&with("[listen.tls]\ncertificate = \"c.pem\""));
    assert!(
        said[0].contains(":2: warning:") && said[0].contains("is not used"),
        "{said:?}"
    );
}

fn database(nodes: &str) -> String {
    format!("users = [{{ name = 'u' }}]\n[[databases]]\nname = 'a'\nnodes = [{nodes}]\n")
}

#[test]
fn nodes_must_make_sense() {
    let cases: &[(&str, &[&str])] = &[
        ("", &[":4:", "\"nodes\"", "is empty"]),
        (
            "{ host = 'h', role = 'replica' }",
            &[":4:", "has no primary", "auto"],
        ),
        (
            "{ host = 'h', role = 'primary' }, { host = 'i', role = 'primary' }",
            &[":4:", "second primary", "auto"],
        ),
        (
            "{ host = 'h', role = 'primary' }, { host = 'H', role = 'replica' }",
            &[":4:", "given twice: H port 5432"],
        ),
        ("{ host = 'h' }", &[":4:", "\"role\" is missing"]),
        ("{ role = 'primary' }", &[":4:", "\"host\" is missing"]),
        (
            "{ host = 'h:5432', role = 'primary' }",
            &[":4:", "colon", "\"port\""],
        ),
        (
            "{ host = 'postgres://h', role = 'primary' }",
            &[":4:", "is a URL"],
        ),
        ("{ host = '[::1]', role = 'primary' }", &[":4:", "brackets"]),
        (
            "{ host = 'a b', role = 'primary' }",
            &[":4:", "no name or address"],
        ),
        (
            "{ host = 'h', role = 'primary', port = 0 }",
            &[":4:", "\"port\"", "1 to 65535"],
        ),
        (
            "{ host = 'h', role = 'auto', weight = -1 }",
            &[":4:", "\"weight\"", "0 to"],
        ),
    ];
    for (nodes, parts) in cases {
        one_fault(&database(nodes), parts);
    }
    accepted(&database(
        "{ host = '::1', role = 'auto' }, { host = '::1', port = 1, role = 'auto' }",
    ));
}

#[test]
fn nodes_that_take_no_reads_are_warned_of() {
    let (_, said) = accepted(&database(
        "{ host = 'h', role = 'primary', weight = 2 }, { host = 'i', role = 'replica', weight = 0 }",
    ));
    assert!(
        said.iter().any(|d| d.contains("is not used for a primary")),
        "{said:?}"
    );
    assert!(
        said.iter().any(|d| d.contains("each has weight 0")),
        "{said:?}"
    );
    let lone = database("{ host = 'h', role = 'primary' }");
    let (_, said) = accepted(&format!("routing.primary_reads = 'never'\n{lone}"));
    assert!(said[0].contains("no replica"), "{said:?}");
}

#[test]
fn names_are_given_once() {
    let again = MINIMAL.replace("db-primary", "other");
    let faults = refused(&format!("{MINIMAL}{again}"));
    assert_eq!(faults.len(), 2, "{faults:#?}");
    assert!(faults[0].contains("\"name\" in [[databases]] is used twice: \"app\""));
    assert!(faults[1].contains("\"name\" in [[users]] is used twice: \"app\""));
    one_fault(
        &MINIMAL.replacen("\"app\"", "\"pgbouncer\"", 1),
        &["admin console"],
    );
}

#[test]
fn an_empty_file_lacks_a_database() {
    let faults = refused("");
    assert!(
        faults[0].starts_with("t.toml:1: \"databases\" is missing"),
        "{faults:?}"
    );
    refused("databases = []\nusers = []");
}

#[test]
fn passwords_are_checked_and_never_shown() {
    let user = |password: &str| MINIMAL.replace("\"${APP_DB_PASSWORD}\"", password);
    let key = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVowMTIzNDU=";
    accepted(&user(&format!("'SCRAM-SHA-256$4096:c2FsdA==${key}:{key}'")));
    accepted(&user("'md5 is how it begins'"));
    for broken in [
        "'SCRAM-SHA-256$4096:c2FsdA==$QUJD:QUJD'",
        "'SCRAM-SHA-256$hunter2'",
    ] {
        one_fault(&user(broken), &["begins like a SCRAM verifier"]);
        assert!(!refused(&user(broken))[0].contains("hunter2"));
    }
    one_fault(
        &user("12345"),
        &["\"password\" in [[users]] must be a string"],
    );
    assert!(!refused(&user("12345"))[0].contains("12345"));
    one_fault(&user("\"${EMPTY}\""), &["must not be empty"]);
    one_fault(
        &user("\"${UNSET_ONE}\""),
        &["t.toml:12: ", "UNSET_ONE is not set"],
    );
}

#[test]
fn an_environments_value_is_not_shown_in_a_fault() {
    one_fault(
        &with("[pool]\nmode = \"${APP_DB_PASSWORD}\""),
        &["cannot be \"${APP_DB_PASSWORD}\""],
    );
    let all = refused(&with("[pool]\nmode = \"${APP_DB_PASSWORD}\"")).join("\n");
    assert!(!all.contains("s3cret-value"), "{all}");
}

#[test]
fn broken_toml_does_not_hide_other_faults() {
    let faults = refused("[pool]\nmax = = 3\nmin = 'x'\n\n[cache\nttl = '1s'\n");
    assert!(
        faults.iter().any(|f| f.starts_with("t.toml:2: not TOML: ")),
        "{faults:#?}"
    );
    assert!(
        faults.iter().any(|f| f.starts_with("t.toml:3: \"min\"")),
        "{faults:#?}"
    );
    assert!(
        faults.iter().any(|f| f.starts_with("t.toml:5: not TOML: ")),
        "{faults:#?}"
    );
    assert!(
        !faults.iter().any(|f| f.contains("is missing")),
        "{faults:#?}"
    );
    let twice = refused(&with("[pool]\nmax = 1\nmax = 2"));
    assert!(
        twice
            .iter()
            .any(|f| f.starts_with("t.toml:3: not TOML: duplicate key")),
        "{twice:#?}"
    );
}

// ---- not in effect ----

fn notes(text: &str) -> Vec<Diagnostic> {
    let env = |name: &str| env(name);
    let (table, walk) = file::Walk::parse(text, "t.toml", &env);
    let rows = [
        "cache",
        "routing.freshness=table",
        "scaling.rules",
        "statements.capture_plans",
    ];
    effect::note(&walk, table.get_ref(), &rows);
    walk.finish().diagnostics
}

#[test]
fn a_key_without_effect_is_noted_where_it_is_first_set() {
    let notes = notes(
        "[cache]\nttl = '1s'\nmax_entries = 3\n[routing]\nfreshness = 'table'\n\
         [statements]\ncapture_plans = true\n[[scaling.rules]]\nname = 'x'\n",
    );
    let shown: Vec<_> = notes
        .iter()
        .map(|d| (d.severity, d.line, d.key.as_str()))
        .collect();
    assert_eq!(
        shown,
        [
            (Severity::Note, 2, "cache"),
            (Severity::Note, 5, "routing.freshness"),
            (Severity::Note, 7, "statements.capture_plans"),
            (Severity::Note, 9, "scaling.rules"),
        ]
    );
    assert!(
        notes[1]
            .to_string()
            .contains("routing.freshness = \"table\" is not in effect yet")
    );
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
    let lines: Vec<&'static str> = ANNOTATED
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .collect();
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
