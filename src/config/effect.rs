//! Keys that this version reads and does nothing with. Whoever sets one is told.

use toml::de::{DeTable, DeValue};

use super::diagnostic::Severity;
use super::env;
use super::file::{Walk, dotted};

/// A key, or a table with all that is in it; with `=value`, only that value of the key.
///
/// The feature that makes a key work deletes its row.
pub const NOT_IN_EFFECT: &[&str] = &["alerts", "scaling.rules", "statements.capture_plans"];

/// A key of the file that is no table.
struct Leaf<'t> {
    dotted: String,
    line: usize,
    value: &'t DeValue<'t>,
}

/// Notes each row of `rows` that the file touches, at its first line.
pub(super) fn note(walk: &Walk<'_>, root: &DeTable<'_>, rows: &[&str]) {
    let mut leaves = Vec::new();
    collect(walk, root, "", &mut leaves);
    leaves.sort_by_key(|leaf| leaf.line);
    for row in rows {
        let (key, value) = match row.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (*row, None),
        };
        let Some(leaf) = leaves.iter().find(|leaf| leaf.is_set_to(walk, key, value)) else {
            continue;
        };
        let message = match value {
            Some(value) => format!("{key} = {value:?} is not in effect yet"),
            None => format!("{key} is not in effect yet"),
        };
        let hint = "this version reads it and does nothing with it".to_owned();
        walk.report(Severity::Note, leaf.line, key, message, Some(hint));
    }
}

impl Leaf<'_> {
    fn is_set_to(&self, walk: &Walk<'_>, key: &str, value: Option<&str>) -> bool {
        let below = self.dotted.strip_prefix(key);
        if !below.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) {
            return false;
        }
        let text = match self.value {
            DeValue::String(raw) => env::expand(raw, walk.env).ok(),
            _ => None,
        };
        match value {
            Some(value) => text.as_deref() == Some(value),
            None => !self.is_off(text.as_deref()),
        }
    }

    /// Off is what happens anyhow, so it needs no note.
    fn is_off(&self, text: Option<&str>) -> bool {
        match self.value {
            DeValue::Boolean(on) => !on,
            DeValue::Array(items) => items.is_empty(),
            _ => text == Some(""),
        }
    }
}

fn collect<'t>(walk: &Walk<'_>, table: &'t DeTable<'t>, path: &str, leaves: &mut Vec<Leaf<'t>>) {
    // what is switched off needs no note for its other keys
    if matches!(table.get("enabled").map(|v| v.get_ref()), Some(DeValue::Boolean(false))) {
        return;
    }
    for (key, value) in table.iter() {
        let path = dotted(path, key.get_ref());
        match value.get_ref() {
            DeValue::Table(inner) => collect(walk, inner, &path, leaves),
            DeValue::Array(items) if items.iter().any(|item| item.get_ref().is_table()) => {
                for item in items.iter() {
                    if let DeValue::Table(inner) = item.get_ref() {
                        collect(walk, inner, &path, leaves);
                    }
                }
            }
            other => leaves.push(Leaf { dotted: path, line: walk.line_of(key), value: other }),
        }
    }
}
