//! SET, RESET and set_config: which parameter gets which value, in words that can be said again.

use super::classify::Notes;
use super::commands::modes;
use super::lex::Kind;
use super::view::View;
use super::{Argument, Call, Control, Effect, Name, Reason, SetValue};

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
    let none = if session_authorization { view.is(at, "default") } else { is_none(view.from(at).source()) };
    let value = (!none).then(|| view.from(at).source().to_owned());
    Effect::Role { session_authorization, value, local }
}

/// NONE, whether as a word or in quotes: the server looks at the value alone (`check_role`).
fn is_none(value: &str) -> bool {
    value.eq_ignore_ascii_case("none") || matches!(value, "'none'" | "\"none\"")
}

/// `role` and `session_authorization` are parameters as well.
fn assignment(name: String, value: SetValue, local: bool) -> Effect {
    let session_authorization = name == "session_authorization";
    if !session_authorization && name != "role" {
        return Effect::Set { name, value, local };
    }
    let value = match value {
        SetValue::Sql(text) => Some(text).filter(|text| session_authorization || !is_none(text)),
        SetValue::Flat(text) if session_authorization || text != "none" => {
            Some(format!("'{}'", text.replace('\'', "''")))
        }
        SetValue::Flat(_) | SetValue::Default => None,
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

/// `SELECT set_config(name, value, local) [AS label], …` and nothing else. False where the query is another one.
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
    let function = Name { schema: None, name: "set_config".to_owned() };
    notes.function(Call { function, arguments: None });
    effects.into_iter().for_each(|effect| notes.effect(effect));
    true
}

fn one_set_config(view: View, at: usize) -> Option<(Effect, usize)> {
    let (function, open) = view.qualified(at)?;
    let built_in = function.schema.as_deref().is_none_or(|schema| schema == "pg_catalog");
    if !(built_in && function.name == "set_config" && view.punct(open, b'(')) {
        return None;
    }
    let (name, at) = argument(view, open + 1, b',')?;
    let unread = |at| view.kind(at).is_some_and(Kind::is_literal) && view.punct(at + 1, b',');
    let (value, at) = match argument(view, at, b',') {
        Some((value, at)) => (Some(value), at),
        None if unread(at) => (None, at + 2),
        None => return None,
    };
    let (local, end) = argument(view, at, b')')?;
    let is_local = match &local {
        Argument::Text(text) => Some(truth(text.as_bytes())?),
        Argument::Null => Some(false),
        Argument::Parameter(_) => None,
    };
    let effect = match (name, value, is_local) {
        (Argument::Text(name), Some(Argument::Text(text)), Some(local)) => {
            assignment(name.to_ascii_lowercase(), SetValue::Flat(text), local)
        }
        (Argument::Text(name), Some(Argument::Null), Some(local)) => {
            assignment(name.to_ascii_lowercase(), SetValue::Default, local)
        }
        (Argument::Text(name), None, Some(local)) => {
            let name = name.to_ascii_lowercase();
            let value = configured(view, at - 2, &name);
            assignment(name, value, local)
        }
        (name, Some(value), _) => Effect::Configure { name, value, local },
        (_, None, _) => return None,
    };
    Some((effect, end))
}

/// Parameters of the open transaction alone, however they are set.
pub fn is_of_transaction(name: &str) -> bool {
    matches!(name, "transaction_isolation" | "transaction_read_only" | "transaction_deferrable")
}

/// A boolean's text in its usual spellings (`parse_bool`).
pub fn truth(text: &[u8]) -> Option<bool> {
    match text.to_ascii_lowercase().as_slice() {
        b"t" | b"true" | b"on" | b"yes" | b"1" => Some(true),
        b"f" | b"false" | b"off" | b"no" | b"0" => Some(false),
        _ => None,
    }
}

/// A plain string, a truth value, NULL or a parameter, cast to a type that leaves it as it is or to none, and where the
/// next one begins behind `end`.
fn argument(view: View, at: usize, end: u8) -> Option<(Argument, usize)> {
    let argument = match view.kind(at)? {
        Kind::String => Argument::Text(view.string(at)?),
        Kind::Word if view.is(at, "null") => Argument::Null,
        Kind::Word if view.is_any(at, &["true", "false"]) => Argument::Text(view.name(at)?),
        Kind::Param => Argument::Parameter(view.raw(at).strip_prefix('$')?.parse().ok()?),
        _ => return None,
    };
    let cast = view.kind(at + 1) == Some(Kind::Cast);
    let plain = cast && view.is_any(at + 2, &["text", "varchar", "boolean", "bool"]);
    let next = at + if plain { 3 } else { 1 };
    view.punct(next, end).then_some((argument, next + 1))
}

/// Parameters whose value is a list of names, each quoted by SET (`GUC_LIST_QUOTE`).
const LISTS: [&str; 5] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
];

/// A constant in another form than a plain string, as SET says it.
fn configured(view: View, at: usize, name: &str) -> SetValue {
    match view.kind(at) {
        Some(Kind::Escaped | Kind::Dollar) if !LISTS.contains(&name) => SetValue::Sql(view.raw(at).to_owned()),
        _ => SetValue::Opaque,
    }
}
