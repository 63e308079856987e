//! SET, RESET and set_config: which parameter gets which value, in words that can be said again.

use super::classify::Notes;
use super::commands::modes;
use super::lex::Kind;
use super::view::View;
use super::{Control, Effect, Name, Reason, SetValue};

/// `SET [SESSION | LOCAL] …` (`VariableSetStmt` of Postgres's grammar).
pub(super) fn set(view: View, notes: &mut Notes) {
    notes.facts.by_literal = true;
    if view.is(1, "constraints") {
        // ends with the transaction, which stays on its server
        return notes.reason(Reason::Session);
    }
    let local = view.is(1, "local");
    // SET SESSION AUTHORIZATION and SET SESSION CHARACTERISTICS have the word for themselves
    let scoped =
        local || (view.is(1, "session") && !view.is_any(2, &["authorization", "characteristics"]) && !assigns(view, 2));
    let view = view.from(1 + usize::from(scoped));
    if view.is(0, "transaction") && !assigns(view, 1) {
        let (read_only, serializable, _) = modes(view);
        notes.reason(Reason::Transaction);
        notes.facts.control.push(Control::SetTransaction { read_only, serializable });
        return;
    }
    notes.reason(Reason::Session);
    match effect(view, local) {
        Some(effect) => notes.effect(effect),
        None => notes.unreadable(),
    }
}

fn assigns(view: View, at: usize) -> bool {
    view.is(at, "to") || (view.kind(at) == Some(Kind::Operator) && view.raw(at) == "=") || view.punct(at, b'.')
}

fn effect(view: View, local: bool) -> Option<Effect> {
    let set = |name: &str, value| Some(Effect::Set { name: name.to_owned(), value, local });
    if !assigns(view, 1) && !view.are(1, &["from", "current"]) {
        if view.is(0, "session") && view.is(1, "characteristics") {
            return Some(Effect::SessionCharacteristics);
        }
        if view.is(0, "session") && view.is(1, "authorization") {
            return Some(role(view, 2, true, local));
        }
        if view.is(0, "role") {
            return Some(role(view, 1, false, local));
        }
        if view.is(0, "time") && view.is(1, "zone") {
            return set("timezone", time_zone(view.from(2))?);
        }
        if view.is(0, "names") {
            let value = if view.tokens.len() == 1 { SetValue::Default } else { value(view.from(1))? };
            return set("client_encoding", value);
        }
        if view.is(0, "schema") {
            return set("search_path", value(view.from(1))?);
        }
        if view.is(0, "xml") && view.is(1, "option") {
            return set("xmloption", value(view.from(2))?);
        }
        return None;
    }
    let (name, end) = parameter(view)?;
    if view.are(end, &["from", "current"]) {
        return Some(assignment(name, SetValue::Opaque, local));
    }
    if !assigns(view, end) {
        return None;
    }
    Some(assignment(name, value(view.from(end + 1))?, local))
}

/// `a` or `a.b`, in lower case: parameters are not told apart by case.
fn parameter(view: View) -> Option<(String, usize)> {
    let mut name = view.name(0)?;
    let mut end = 1;
    while view.punct(end, b'.') {
        name = format!("{name}.{}", view.name(end + 1)?);
        end += 2;
    }
    Some((name.to_ascii_lowercase(), end))
}

/// The tokens as written: DEFAULT, or constants and words with commas between.
fn value(view: View) -> Option<SetValue> {
    if view.tokens.len() == 1 && view.is(0, "default") {
        return Some(SetValue::Default);
    }
    (!view.tokens.is_empty()).then(|| SetValue::Sql(view.source().to_owned()))
}

/// LOCAL is the default; an INTERVAL cannot be said behind `timezone =`.
fn time_zone(view: View) -> Option<SetValue> {
    if view.is(0, "local") {
        return Some(SetValue::Default);
    }
    if view.is(0, "interval") {
        return Some(SetValue::Opaque);
    }
    value(view)
}

fn role(view: View, at: usize, session_authorization: bool, local: bool) -> Effect {
    let none = view.is(at, if session_authorization { "default" } else { "none" });
    let value = (!none).then(|| view.from(at).source().to_owned());
    Effect::Role { session_authorization, value, local }
}

/// `role` and `session_authorization` are parameters as well.
fn assignment(name: String, value: SetValue, local: bool) -> Effect {
    let session_authorization = name == "session_authorization";
    if !session_authorization && name != "role" {
        return Effect::Set { name, value, local };
    }
    let value = match value {
        SetValue::Sql(text) => Some(text).filter(|text| {
            session_authorization || !matches!(text.trim_matches('\'').to_ascii_lowercase().as_str(), "none")
        }),
        SetValue::Default => None,
        SetValue::Opaque => return Effect::Set { name, value, local },
    };
    Effect::Role { session_authorization, value, local }
}

/// `RESET …` (`VariableResetStmt`).
pub(super) fn reset(view: View, notes: &mut Notes) {
    notes.reason(Reason::Session);
    let view = view.from(1);
    let default = |name: &str| Effect::Set { name: name.to_owned(), value: SetValue::Default, local: false };
    let effect = if view.tokens.len() == 1 && view.is(0, "all") {
        Some(Effect::ResetAll)
    } else if view.are(0, &["time", "zone"]) {
        Some(default("timezone"))
    } else if view.are(0, &["transaction", "isolation", "level"]) {
        Some(default("transaction_isolation"))
    } else if view.are(0, &["session", "authorization"]) {
        Some(Effect::Role { session_authorization: true, value: None, local: false })
    } else {
        parameter(view)
            .filter(|(_, end)| *end == view.tokens.len())
            .map(|(name, _)| assignment(name, SetValue::Default, false))
    };
    match effect {
        Some(effect) => notes.effect(effect),
        None => notes.unreadable(),
    }
}

/// `SELECT set_config('name', value, local) [AS label], …` and nothing else. False where the query is another one.
pub(super) fn set_config(view: View, notes: &mut Notes) -> bool {
    if !view.is(0, "select") {
        return false;
    }
    let mut at = 1;
    let mut effects = Vec::new();
    while at < view.tokens.len() {
        let Some((effect, end)) = one_set_config(view, at) else { return false };
        effects.push(effect);
        at = end;
        if view.is(at, "as") && view.name(at + 1).is_some() {
            at += 2;
        }
        if at < view.tokens.len() {
            if !view.punct(at, b',') || at + 1 == view.tokens.len() {
                return false;
            }
            at += 1;
        }
    }
    if effects.is_empty() {
        return false;
    }
    notes.reason(Reason::Session);
    notes.facts.by_literal = true;
    notes.facts.transient = true;
    notes.function(Name { schema: None, name: "set_config".to_owned() });
    effects.into_iter().for_each(|effect| notes.effect(effect));
    true
}

fn one_set_config(view: View, at: usize) -> Option<(Effect, usize)> {
    let (function, open) = view.qualified(at)?;
    let built_in = function.schema.as_deref().is_none_or(|schema| schema == "pg_catalog");
    let commas = view.punct(open + 2, b',') && view.punct(open + 4, b',') && view.punct(open + 6, b')');
    if !(built_in && function.name == "set_config" && view.punct(open, b'(') && commas) {
        return None;
    }
    let name = view.string(open + 1)?.to_ascii_lowercase();
    let local = match view.string(open + 5).or_else(|| view.name(open + 5))?.as_str() {
        "t" | "true" => true,
        "f" | "false" => false,
        _ => return None,
    };
    let value = match view.kind(open + 3)? {
        Kind::Word if view.is(open + 3, "null") => SetValue::Default,
        Kind::Param => SetValue::Opaque,
        kind if kind.is_literal() => configured(view, open + 3, &name),
        _ => return None,
    };
    Some((assignment(name, value, local), open + 7))
}

/// Parameters whose value is a list of names, each quoted by SET (`GUC_LIST_QUOTE`).
const LISTS: [&str; 5] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
];

/// The text of a value as SET says it: a list of names becomes several constants.
fn configured(view: View, at: usize, name: &str) -> SetValue {
    if !LISTS.contains(&name) {
        return match view.kind(at) {
            Some(Kind::String | Kind::Escaped | Kind::Dollar) => SetValue::Sql(view.raw(at).to_owned()),
            _ => SetValue::Opaque,
        };
    }
    let Some(list) = view.string(at) else { return SetValue::Opaque };
    let mut parts = Vec::new();
    for part in list.split(',') {
        let part = part.trim();
        let quoted = part.len() > 2 && part.starts_with('"') && part.ends_with('"');
        let inner = if quoted { part.trim_matches('"').to_owned() } else { part.to_ascii_lowercase() };
        // an empty list cannot be said by SET; quotes and commas inside names are left alone
        if inner.is_empty() || inner.contains(['"', '\'', '\\']) || inner.contains(char::is_whitespace) {
            return SetValue::Opaque;
        }
        parts.push(format!("'{inner}'"));
    }
    SetValue::Sql(parts.join(", "))
}
