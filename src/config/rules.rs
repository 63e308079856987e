//! `[[cache.rules]]`: what becomes of results by the tables that they follow from, or by their statement.

use std::time::Duration;

use super::number::Zero;
use super::section::Section;
use super::{CacheRule, Database, RuledBy, Terms};

const TABLE: &str = "write it with its schema, like \"public.orders\", both as the catalog has them";

/// `longest`: how long any result is kept.
pub(super) fn rules(cache: &Section<'_, '_>, longest: Duration, databases: &[Database]) -> Vec<CacheRule> {
    let mut rules: Vec<CacheRule> = Vec::new();
    for s in cache.sections("rules") {
        let database = s.text_or_none("database");
        if let Some(name) = &database
            && !databases.iter().any(|known| known.name == *name || known.name == "*")
        {
            s.warning("database", format_args!("names {name:?}, which is not among [[databases]]"), "");
        }
        let (of, terms) = (target(&s), terms(&s, longest));
        let Some(of) = of else { continue };
        if rules.iter().any(|rule| rule.database == database && rule.of == of) {
            let key = if s.has("table") { "table" } else { "fingerprint" };
            s.error(key, "has a rule already", "say all of it in one");
            continue;
        }
        rules.push(CacheRule { database, of, terms });
    }
    rules
}

fn target(s: &Section<'_, '_>) -> Option<RuledBy> {
    match (s.text_if_set("table"), s.text_if_set("fingerprint")) {
        (Some(_), Some(_)) => s.error("fingerprint", "stands beside \"table\"", "make two rules of it"),
        (Some(table), None) => return named(s, &table),
        (None, Some(digits)) => return printed(s, &digits),
        // Of another type, it has been told.
        (None, None) if s.has("table") || s.has("fingerprint") => {}
        (None, None) => s.missing("table", "a rule is for a table, or for a statement by its \"fingerprint\""),
    }
    None
}

fn named(s: &Section<'_, '_>, table: &str) -> Option<RuledBy> {
    let parts = table.split_once('.').filter(|(schema, name)| !schema.is_empty() && !name.is_empty());
    match parts.filter(|_| !table.contains('"')) {
        Some((schema, name)) => Some(RuledBy::Table { schema: schema.to_owned(), name: name.to_owned() }),
        None => {
            s.error("table", format_args!("cannot be {table:?}"), TABLE);
            None
        }
    }
}

fn printed(s: &Section<'_, '_>, digits: &str) -> Option<RuledBy> {
    let is_hex = digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parsed = u64::from_str_radix(digits, 16).ok().filter(|_| is_hex);
    if parsed.is_none() {
        let hint = "it has 16 hexadecimal digits, as SHOW STATEMENTS and the slow-query log print it";
        s.error("fingerprint", format_args!("cannot be {digits:?}"), hint);
    }
    parsed.map(RuledBy::Fingerprint)
}

fn terms(s: &Section<'_, '_>, longest: Duration) -> Terms {
    let never = s.boolean("never", false);
    // No rule can say zero.
    let time = |key| Some(s.duration(key, Duration::ZERO, Zero::Refused)).filter(|time| !time.is_zero());
    let (ttl, stale) = (time("ttl"), time("stale"));
    for key in ["ttl", "stale"].into_iter().filter(|key| never && s.has(key)) {
        s.error(key, "contradicts \"never\"", "what is not kept has no age");
    }
    if !never && !s.has("ttl") && !s.has("stale") {
        s.missing("never", "a rule says at least one of \"never = true\", \"ttl\" and \"stale\"");
    }
    if ttl.is_some_and(|ttl| ttl > longest) {
        s.warning("ttl", "is longer than that of [cache], which counts for all", "");
    }
    let lives = ttl.map_or(longest, |ttl| ttl.min(longest));
    if stale.is_some_and(|stale| stale > lives) {
        s.error("stale", "is longer than a result is kept", "it is at most \"ttl\", here and in [cache]");
    }
    Terms { never, ttl, stale }
}
