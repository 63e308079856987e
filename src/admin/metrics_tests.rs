use std::collections::{BTreeMap, HashSet};

use super::*;
use crate::admin::fixture;

fn page(format: Format) -> String {
    let start = Instant::now();
    exposition(&fixture::admin(start), format, start)
}

/// Name, labels, value of a sample line.
type Parsed = (String, BTreeMap<String, String>, f64);

/// A strict reader of one line, by the text format's grammar.
fn parse(line: &str) -> Parsed {
    let name_end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(name_end);
    assert!(name.starts_with("pgweir_") && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{line}");
    let mut labels = BTreeMap::new();
    while let Some(label) = rest.strip_prefix(['{', ',']) {
        let (key, value) = label.split_once("=\"").unwrap();
        let (mut text, mut chars) = (String::new(), value.char_indices());
        let end = loop {
            match chars.next().expect("a closing quote") {
                (at, '"') => break at,
                (_, '\\') => text.push(match chars.next().unwrap().1 {
                    'n' => '\n',
                    c => c,
                }),
                (_, c) => text.push(c),
            }
        };
        assert!(labels.insert(key.to_owned(), text).is_none(), "{line}");
        rest = &value[end + 1..];
    }
    let value = rest.strip_prefix('}').unwrap_or(rest).strip_prefix(' ').unwrap();
    (name.to_owned(), labels, value.parse().unwrap_or_else(|_| panic!("{line}")))
}

fn samples(page: &str) -> Vec<Parsed> {
    page.lines().filter(|line| !line.starts_with('#')).map(parse).collect()
}

fn value(samples: &[Parsed], name: &str, labels: &[(&str, &str)]) -> f64 {
    let found: Vec<_> = samples
        .iter()
        .filter(|s| s.0 == name && labels.iter().all(|(k, v)| s.1.get(*k).map(String::as_str) == Some(*v)))
        .collect();
    assert_eq!(found.len(), 1, "{name} {labels:?}");
    found[0].2
}

#[test]
fn each_family_has_help_and_type_once_and_its_samples_follow() {
    let page = page(Format::Prometheus);
    let mut seen = HashSet::new();
    let mut family = String::new();
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap();
            assert!(!text.is_empty() && seen.insert(name.to_owned()), "{name} twice");
            let kind = lines.next().unwrap();
            assert!(kind.starts_with(&format!("# TYPE {name} ")), "{kind}");
            assert_eq!(kind.ends_with(" counter"), name.ends_with("_total"), "{kind}");
            family = name.to_owned();
        } else {
            let name = parse(line).0;
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            assert!(name == family || base == Some(&*family), "{name} within {family}");
        }
    }
    assert!(seen.len() > 30);
    let samples = samples(&page);
    let distinct: HashSet<_> = samples.iter().map(|s| format!("{}{:?}", s.0, s.1)).collect();
    assert_eq!(distinct.len(), samples.len(), "a series twice");
}

#[test]
fn values_are_in_base_units() {
    let samples = samples(&page(Format::Prometheus));
    assert_eq!(value(&samples, "pgweir_queries_total", &[("database", "app")]), 100.0);
    assert_eq!(value(&samples, "pgweir_query_time_seconds_total", &[("database", "app")]), 5.05);
    assert_eq!(value(&samples, "pgweir_query_errors_total", &[("fault", "server")]), 1.0);
    assert_eq!(value(&samples, "pgweir_slow_statements_total", &[]), 1.0);
    assert_eq!(value(&samples, "pgweir_node_up", &[("node", "gone:5432")]), 0.0);
    // A promotion ends no other series than this one.
    let roles: Vec<_> = samples.iter().filter(|s| s.1.contains_key("role")).map(|s| (&*s.0, &*s.1["role"])).collect();
    assert_eq!(roles, ["primary", "replica", "replica"].map(|role| ("pgweir_node_info", role)));
    assert_eq!(value(&samples, "pgweir_node_lag_seconds", &[("node", "replica:5432")]), 0.012);
    let idle = [("node", "replica:5432"), ("state", "idle"), ("user", "alice")];
    assert_eq!(value(&samples, "pgweir_pool_servers", &idle), 4.0);
    assert_eq!(value(&samples, "pgweir_pool_max_wait_seconds", &[("node", "primary:5432")]), 1.25);
    assert_eq!(value(&samples, "pgweir_clients", &[]), 24.0);
}

#[test]
fn histograms_are_cumulative_and_complete() {
    let samples = samples(&page(Format::Prometheus));
    for (name, labels) in [
        ("pgweir_query_duration_seconds", vec![]),
        ("pgweir_statement_duration_seconds", vec![("fingerprint", "00000000000000ab"), ("database", "app")]),
    ] {
        let buckets: Vec<_> = samples.iter().filter(|s| s.0 == format!("{name}_bucket")).collect();
        let bounds: Vec<f64> = buckets.iter().map(|s| s.1["le"].parse().unwrap()).collect();
        assert!(bounds.is_sorted() && bounds.last() == Some(&f64::INFINITY), "{bounds:?}");
        assert!(buckets.iter().map(|s| s.2).is_sorted(), "{name}");
        assert_eq!(buckets.last().unwrap().2, 100.0);
        let at = |le: f64| buckets[bounds.iter().position(|b| *b == le).unwrap()].2;
        assert_eq!((at(0.0005), at(0.005), at(0.05), at(0.1)), (0.0, 5.0, 50.0, 100.0));
        assert_eq!(value(&samples, &format!("{name}_count"), &labels), 100.0);
        assert_eq!(value(&samples, &format!("{name}_sum"), &labels), 5.05);
    }
}

#[test]
fn open_metrics_names_families_without_total_and_ends() {
    let page = page(Format::OpenMetrics);
    assert!(page.ends_with("# EOF\n"));
    assert!(page.contains("# TYPE pgweir_queries counter\n"));
    assert!(page.contains("\npgweir_queries_total{database=\"app\"} 100\n"));
    assert!(page.contains("le=\"1.0\"") && page.contains("le=\"0.0005\"") && !page.contains("le=\"1\""));
    assert!(!page.lines().any(|line| line.starts_with("# TYPE") && line.contains("_total")));
    assert_eq!(
        Format::accepted(Some("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")),
        Format::OpenMetrics
    );
    assert_eq!(Format::accepted(Some("*/*")), Format::Prometheus);
    assert_eq!(Format::accepted(None), Format::Prometheus);
}

#[test]
fn labels_are_escaped() {
    let mut page = Exposition::new(Format::Prometheus);
    page.family(Kind::Gauge, "pgweir_x", "a\\b\nc");
    let hard = "a\"b\\c\nd{},=é";
    page.sample(&[("user", hard)], 1);
    assert!(page.out.starts_with("# HELP pgweir_x a\\\\b\\nc\n"), "{}", page.out);
    assert_eq!(samples(&page.out)[0].1["user"], hard);
}
