//! What is refused or warned of, with the line and the hint.

use super::*;

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    one_fault(
        &with("[pool]\n\nidle_timout = \"1s\""),
        &["t.toml:3: unknown key \"idle_timout\" in [pool]; did you mean \"idle_timeout\"?"],
    );
    one_fault(&with("[pol]"), &["t.toml:1: unknown key \"pol\"", "did you mean \"pool\"?"]);
    one_fault(&with("[pool]\nmax_lag = 1"), &["t.toml:2:", "\"max_lag\" belongs in [routing]"]);
    one_fault(&with("[cache]\nfoobar = 1"), &["t.toml:2:", "known are enabled, max_entries"]);
    one_fault(&with("\"\" = 1"), &["t.toml:1: unknown key \"\""]);
}

#[test]
fn lines_are_right_within_arrays_of_tables() {
    let text = "[[databases]]\nname = 'a'\n[[databases.nodes]]\nhost = 'h'\nrole = 'primary'\n\
                [[databases.nodes]]\nhost = 'r'\nrole = 'replica'\nwieght = 3\n\
                [[databases]]\nname = 'b'\n[[databases.nodes]]\nhost = 'h'\nrole = 'primry'\n\
                [[users]]\nname = 'u'\n[[users]]\npasswort = 'x'\n";
    let faults = refused(text);
    let starts = ["t.toml:9: unknown key \"wieght\" in [[databases.nodes]]", "t.toml:14:", "t.toml:17:", "t.toml:18:"];
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
    let lines: Vec<_> = faults.iter().map(|f| f.split(':').nth(1).unwrap()).collect();
    assert_eq!(lines, ["2", "4", "5", "7", "8"], "{faults:#?}");
}

#[test]
fn single_faults() {
    let cases: &[(&str, &[&str])] = &[
        ("[pool]\nmin = 60", &[":2:", "\"min\"", "more than \"max\""]),
        ("[pool]\nmax = 3", &[":2:", "\"max\"", "less than \"min\""]),
        ("[pool]\nmax = \"3\"", &[":2:", "whole number", "without quotes"]),
        ("[pool]\nmax = -1", &[":2:", "out of range: -1", "1 to"]),
        ("[pool]\nmax = 99999999999999999999999999999999999999999", &[":2:", "out of range"]),
        ("[pool]\nidle_timeout = \"30\"", &[":2:", "has no unit", "30s"]),
        ("[pool]\nidle_timeout = -30", &[":2:", "no duration"]),
        ("[pool]\nidle_timeout = [1]", &[":2:", "must be a duration, not an array"]),
        ("[pool]\nmax_lifetime = \"9999h\"", &[":2:", "too long", "365 days"]),
        ("pool = 5", &[":1:", "must be a table, not an integer", "[pool]"]),
        ("[listen]\naddress = \"localhost\"", &[":2:", "has no port"]),
        ("[listen]\naddress = \"*:6432\"", &[":2:", "no name or address", "0.0.0.0"]),
        ("[listen]\naddress = \"10.0.0.300:1\"", &[":2:", "no IPv4 address"]),
        ("[listen]\naddress = \"h:66000\"", &[":2:", "65535"]),
        ("[listen]\nworkers = 0", &[":2:", "out of range"]),
        ("[[listen.peers]]\nid = 2\naddress = \"h:1\"", &["peer_id"]),
        ("[listen]\npeer_id = 1\n[[listen.peers]]\nid = 2\naddress = \"h\"", &[":5:", "has no port"]),
        ("[listen]\npeer_id = 128", &[":2:", "out of range"]),
        ("[listen]\nworkers = \"many\"", &[":2:", "whole number"]),
        ("[listen]\nmax_clients = true", &[":2:", "not true"]),
        ("[admin]\nhttp = \"localhost:9432\"", &[":2:", "no IP address", "127.0.0.1:9432"]),
        ("[admin]\nhttp = \"127.0.0.1:6432\"", &[":2:", "[listen]"]),
        ("[admin]\nusers = \"app\"", &[":2:", "must be an array"]),
        ("[admin]\nusers = [\n\"app\",\n5]", &[":4:", "must hold strings, not an integer"]),
        ("[admin]\ntoken = \"${NOPE}\"", &[":2:", "NOPE is not set", "set NOPE"]),
        ("[routing]\nfailover = \"yes\"", &[":2:", "true or false"]),
        ("[routing]\nfreshness = \"sesion\"", &[":2:", "\"sesion\"", "did you mean \"session\"?"]),
        ("[cache]\nenabled = false\nmax_entry_bytes = \"1GiB\"", &[":3:", "max_bytes"]),
        ("[cache]\nenabled = false\nmax_bytes = \"64Mb\"", &[":3:", "unknown unit", "64MiB"]),
        ("[cache]\nenabled = false\nmax_bytes = 0", &[":3:", "more than zero"]),
        ("[cache]\nverify = 1.5", &[":2:", "out of range: 1.5", "0 to 1 are allowed"]),
        ("[cache]\nverify = -0.01", &[":2:", "out of range: -0.01"]),
        ("[cache]\nverify = nan", &[":2:", "out of range: nan"]),
        ("[cache]\nverify = \"1%\"", &[":2:", "must be a number"]),
        ("[[cache.rules]]\nnever = true", &[":1:", "\"table\" is missing", "fingerprint"]),
        ("[[cache.rules]]\ntable = 'a.b'", &[":1:", "\"never\" is missing", "at least one"]),
        ("[[cache.rules]]\ntable = 'a.b'\nnever = false", &["at least one"]),
        ("[[cache.rules]]\ntable = 'b'\nnever = true", &[":2:", "cannot be \"b\"", "public.orders"]),
        ("[[cache.rules]]\ntable = 'a.'\nnever = true", &[":2:", "cannot be"]),
        ("[[cache.rules]]\ntable = 'a.\"b\"'\nnever = true", &[":2:", "as the catalog has them"]),
        ("[[cache.rules]]\ntable = 7\nnever = true", &[":2:", "must be a string"]),
        ("[[cache.rules]]\nfingerprint = 'fe'\nnever = true", &[":2:", "16 hexadecimal digits"]),
        ("[[cache.rules]]\nfingerprint = '+123456789abcdef'\nnever = true", &[":2:", "16 hexadecimal digits"]),
        ("[[cache.rules]]\ntable = 'a.b'\nfingerprint = '0123456789abcdef'\nttl = 1", &[":3:", "two rules"]),
        ("[[cache.rules]]\ntable = 'a.b'\nnever = true\nttl = '1s'", &[":4:", "contradicts \"never\""]),
        ("[[cache.rules]]\ntable = 'a.b'\nttl = '0s'", &[":3:", "longer than zero"]),
        ("[[cache.rules]]\ntable = 'a.b'\nttl = '1s'\nstale = '2s'", &[":4:", "longer than a result is kept"]),
        ("[cache]\nttl = '1s'\n[[cache.rules]]\ntable = 'a.b'\nstale = '2s'", &[":5:", "longer than a result is kept"]),
        ("cache.rules = [{ table = 'a.b', ttl = 1 }, { table = 'a.b', stale = 1 }]", &[":1:", "has a rule already"]),
        ("[[cache.rules]]\ntable = 'a.b'\nnever = true\nstael = 1", &[":4:", "did you mean \"stale\"?"]),
        ("[memory]\nthreshold = 1.5", &[":2:", "out of range: 1.5"]),
        ("[memory]\nthreshold = nan", &[":2:", "out of range: nan"]),
        ("[memory]\nthreshold = 0.0", &[":2:", "more than zero"]),
        ("[memory]\nlimit = \"lots\"", &[":2:", "no size"]),
        ("[alerts]\nerror_rate = 101", &[":2:", "out of range: 101"]),
        ("[alerts]\nwebhook = \"example.org\"", &[":2:", "no URL"]),
        ("[[scaling.rules]]\nname = 'n'\naction = 'a'\ncondition = 'often'", &[":4:", "no comparison"]),
        ("[[scaling.rules]]\nname = 'n'\naction = 'a'", &[":1:", "\"condition\" is missing"]),
        ("[scaling]\nrules = 1", &[":2:", "must be an array"]),
        ("[scaling]\nrules = [1]", &[":2:", "must hold tables"]),
    ];
    for (more, parts) in cases {
        one_fault(&with(more), parts);
    }
}

#[test]
fn tls_needs_its_files() {
    let faults = refused(&with("[listen.tls]\nmode = \"verify-full\"\ncertificate = \"\""));
    assert_eq!(faults.len(), 3, "{faults:#?}");
    assert!(faults.iter().any(|f| f.contains(":3: \"certificate\"")), "{faults:#?}");
    assert!(faults.iter().any(|f| f.contains(":1: \"client_ca\" is missing in [listen.tls]")));
    let (_, said) = accepted(&with("[listen.tls]\ncertificate = \"c.pem\""));
    assert!(said[0].contains(":2: warning:") && said[0].contains("is not used"), "{said:?}");
}

fn database(nodes: &str) -> String {
    format!("users = [{{ name = 'u' }}]\n[[databases]]\nname = 'a'\nnodes = [{nodes}]\n")
}

#[test]
fn nodes_must_make_sense() {
    let cases: &[(&str, &[&str])] = &[
        ("", &[":4:", "\"nodes\"", "is empty"]),
        ("{ host = 'h', role = 'replica' }", &[":4:", "has no primary", "auto"]),
        ("{ host = 'h', role = 'primary' }, { host = 'i', role = 'primary' }", &[":4:", "second primary", "auto"]),
        ("{ host = 'h', role = 'primary' }, { host = 'H', role = 'replica' }", &[":4:", "given twice: H port 5432"]),
        ("{ host = 'h' }", &[":4:", "\"role\" is missing"]),
        ("{ role = 'primary' }", &[":4:", "\"host\" is missing"]),
        ("{ host = 'h:5432', role = 'primary' }", &[":4:", "colon", "\"port\""]),
        ("{ host = 'postgres://h', role = 'primary' }", &[":4:", "is a URL"]),
        ("{ host = '[::1]', role = 'primary' }", &[":4:", "brackets"]),
        ("{ host = 'a b', role = 'primary' }", &[":4:", "no name or address"]),
        ("{ host = 'h', role = 'primary', port = 0 }", &[":4:", "\"port\"", "1 to 65535"]),
        ("{ host = 'h', role = 'auto', weight = -1 }", &[":4:", "\"weight\"", "0 to"]),
    ];
    for (nodes, parts) in cases {
        one_fault(&database(nodes), parts);
    }
    accepted(&database("{ host = '::1', role = 'auto' }, { host = '::1', port = 1, role = 'auto' }"));
}

#[test]
fn nodes_that_take_no_reads_are_warned_of() {
    let (_, said) = accepted(&database(
        "{ host = 'h', role = 'primary', weight = 2 }, { host = 'i', role = 'replica', weight = 0 }",
    ));
    assert!(said.iter().any(|d| d.contains("is not used for a primary")), "{said:?}");
    assert!(said.iter().any(|d| d.contains("each has weight 0")), "{said:?}");
    let lone = database("{ host = 'h', role = 'primary' }");
    let (_, said) = accepted(&format!("routing.primary_reads = 'never'\n{lone}"));
    assert!(said[0].contains("no replica"), "{said:?}");
}

#[test]
fn admins_whom_nobody_can_ask_are_warned_of() {
    let about = |text: String| accepted(&text).1.into_iter().filter(|d| d.contains("admin console")).count();
    let lacking = MINIMAL.lines().filter(|line| !line.starts_with("password")).collect::<Vec<_>>().join("\n");
    let admin = "admin.users = ['app']\n";
    assert_eq!(about(format!("{admin}{MINIMAL}")), 0);
    assert_eq!(about(format!("{admin}{lacking}")), 1);
    assert_eq!(about(format!("auth.rules = [{{ method = 'cert' }}]\n{admin}{lacking}")), 0);
}

#[test]
fn names_are_given_once() {
    let again = MINIMAL.replace("db-primary", "other");
    let faults = refused(&format!("{MINIMAL}{again}"));
    assert_eq!(faults.len(), 2, "{faults:#?}");
    assert!(faults[0].contains("\"name\" in [[databases]] is used twice: \"app\""));
    assert!(faults[1].contains("\"name\" in [[users]] is used twice: \"app\""));
    one_fault(&MINIMAL.replacen("\"app\"", "\"pgbouncer\"", 1), &["admin console"]);
}

#[test]
fn an_empty_file_lacks_a_database() {
    let faults = refused("");
    assert!(faults[0].starts_with("t.toml:1: \"databases\" is missing"), "{faults:?}");
    refused("databases = []\nusers = []");
}

#[test]
fn passwords_are_checked_and_never_shown() {
    let user = |password: &str| MINIMAL.replace("\"${APP_DB_PASSWORD}\"", password);
    let key = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVowMTIzNDU=";
    accepted(&user(&format!("'SCRAM-SHA-256$4096:c2FsdA==${key}:{key}'")));
    accepted(&user("'md5 is how it begins'"));
    for broken in ["'SCRAM-SHA-256$4096:c2FsdA==$QUJD:QUJD'", "'SCRAM-SHA-256$hunter2'"] {
        one_fault(&user(broken), &["begins like a SCRAM verifier"]);
        assert!(!refused(&user(broken))[0].contains("hunter2"));
    }
    one_fault(&user("12345"), &["\"password\" in [[users]] must be a string"]);
    assert!(!refused(&user("12345"))[0].contains("12345"));
    one_fault(&user("\"${EMPTY}\""), &["must not be empty"]);
    one_fault(&user("\"${UNSET_ONE}\""), &["t.toml:12: ", "UNSET_ONE is not set"]);
}

#[test]
fn an_environments_value_is_not_shown_in_a_fault() {
    one_fault(&with("[pool]\nmode = \"${APP_DB_PASSWORD}\""), &["cannot be \"${APP_DB_PASSWORD}\""]);
    let all = refused(&with("[pool]\nmode = \"${APP_DB_PASSWORD}\"")).join("\n");
    assert!(!all.contains("s3cret-value"), "{all}");
}

#[test]
fn broken_toml_does_not_hide_other_faults() {
    let faults = refused("[pool]\nmax = = 3\nmin = 'x'\n\n[cache\nttl = '1s'\n");
    assert!(faults.iter().any(|f| f.starts_with("t.toml:2: not TOML: ")), "{faults:#?}");
    assert!(faults.iter().any(|f| f.starts_with("t.toml:3: \"min\"")), "{faults:#?}");
    assert!(faults.iter().any(|f| f.starts_with("t.toml:5: not TOML: ")), "{faults:#?}");
    assert!(!faults.iter().any(|f| f.contains("is missing")), "{faults:#?}");
    let twice = refused(&with("[pool]\nmax = 1\nmax = 2"));
    assert!(twice.iter().any(|f| f.starts_with("t.toml:3: not TOML: duplicate key")), "{twice:#?}");
}
