//! A strict reader of the Prometheus text format 0.0.4: what it refuses, a scraper might.

use std::collections::{BTreeMap, BTreeSet};

/// Values by name and labels: `name{a="x",b="y"}`, the labels in their order.
#[derive(Debug)]
pub struct Samples(BTreeMap<String, f64>);

impl Samples {
    /// Reads a page whole; panics at the first fault.
    pub fn read(page: &str) -> Samples {
        assert!(page.ends_with('\n'), "the last line has no end");
        let mut samples = BTreeMap::new();
        let mut families = BTreeSet::new();
        let mut family: Option<(String, String)> = None;
        let mut helped = String::new();
        for line in page.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                helped = help.split_once(' ').expect("a help text").0.to_owned();
                family = None;
            } else if let Some(typed) = line.strip_prefix("# TYPE ") {
                let (name, kind) = typed.split_once(' ').expect("a type");
                assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{line}");
                assert_eq!(name, helped, "TYPE without its HELP");
                assert!(families.insert(name.to_owned()), "{name} comes twice");
                family = Some((name.to_owned(), kind.to_owned()));
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line:?}"));
                let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line:?}"));
                let (family, kind) = family.as_ref().unwrap_or_else(|| panic!("no TYPE before {line}"));
                check_series(series, family, kind);
                assert!(kind == "gauge" || value >= 0.0, "{line}");
                assert!(samples.insert(series.to_owned(), value).is_none(), "{series} comes twice");
            }
        }
        let samples = Samples(samples);
        samples.check_histograms();
        samples
    }

    /// The sum of the series of this name whose labels hold all of `labels`, each as `a="x"`.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let of_name = self.0.iter().filter(|(series, _)| series.split('{').next() == Some(name));
        let found: Vec<_> = of_name.filter(|(series, _)| labels.iter().all(|label| series.contains(label))).collect();
        assert!(!found.is_empty(), "no {name} with {labels:?}");
        found.iter().map(|(_, value)| **value).sum()
    }

    /// Buckets grow, and the last one is the count.
    fn check_histograms(&self) {
        let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for (series, count) in &self.0 {
            let Some((name, labels)) = series.split_once("_bucket{") else { continue };
            let (others, bound) = labels.rsplit_once("le=\"").expect("a bucket's bound is its last label");
            let bound = bound.strip_suffix("\"}").unwrap().parse().unwrap();
            let others = others.trim_end_matches(',');
            let labels = if others.is_empty() { String::new() } else { format!("{{{others}}}") };
            buckets.entry(format!("{name}\n{labels}")).or_default().push((bound, *count));
        }
        for (key, mut of_one) in buckets {
            let (name, labels) = key.split_once('\n').unwrap();
            of_one.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(of_one.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{name}{labels}: {of_one:?}");
            let (bound, all) = of_one.last().unwrap();
            assert!(bound.is_infinite(), "{name}{labels} has no bucket without bound");
            assert_eq!(self.0[&format!("{name}_count{labels}")], *all, "{name}{labels}");
            assert!(self.0.contains_key(&format!("{name}_sum{labels}")), "{name}{labels}");
        }
    }
}

fn check_series(series: &str, family: &str, kind: &str) {
    let (name, labels) = series.split_once('{').map_or((series, ""), |(name, labels)| {
        (name, labels.strip_suffix('}').unwrap_or_else(|| panic!("open labels: {series}")))
    });
    let legal = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    assert!(legal(name) && name.starts_with("pgweir_"), "{series}");
    let belongs = match kind {
        "histogram" => ["_bucket", "_sum", "_count"].iter().any(|suffix| name.strip_suffix(suffix) == Some(family)),
        "counter" => name == family && name.ends_with("_total"),
        _ => name == family,
    };
    assert!(belongs, "{series} under the {kind} {family}");
    let mut rest = labels;
    while !rest.is_empty() {
        let (label, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("{series}"));
        assert!(legal(label), "{series}");
        let end = end_of_value(value).unwrap_or_else(|| panic!("{series}"));
        rest = value[end + 1..].strip_prefix(',').unwrap_or_else(|| {
            assert_eq!(value.len(), end + 1, "{series}");
            ""
        });
    }
}

/// The closing quote; within, a backslash may stand before itself, a quote and `n` only.
fn end_of_value(value: &str) -> Option<usize> {
    let mut bytes = value.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Some(at),
            b'\\' => assert!(matches!(bytes.next()?.1, b'\\' | b'"' | b'n'), "{value}"),
            _ => {}
        }
    }
    None
}
