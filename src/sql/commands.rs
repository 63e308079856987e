//! Statements that are no query: session commands, transaction control and utilities, read by their tokens, so that
//! values stay as they were written.

use super::block;
use super::classify::{Notes, query, statement};
use super::lex::Kind;
use super::settings;
use super::view::View;
use super::{Boundary, Control, Effect, Reason, databases};

/// Notes what the command does; false where its first word is none of Postgres's.
pub(super) fn command(view: View, notes: &mut Notes, depth: usize) -> bool {
    let Some(word) = view.name(0).filter(|_| view.kind(0) == Some(Kind::Word)) else { return false };
    if notes.facts.statements == 1 && depth == 0 {
        notes.facts.alone_in = databases::wanted(view);
    }
    match word.as_str() {
        "begin" | "start" | "commit" | "end" | "rollback" | "abort" | "savepoint" | "release" => {
            transaction(view, &word, notes);
        }
        "prepare" if view.is(1, "transaction") => control(notes, Control::PrepareTransaction),
        "set" => settings::set(view, notes),
        "reset" => settings::reset(view, notes),
        "show" => {
            notes.reason(Reason::Session);
            notes.facts.asks_node = !shows_session(view);
        }
        "discard" | "deallocate" | "listen" | "unlisten" | "close" | "execute" => session(view, &word, notes),
        "prepare" => prepare(view, notes, depth),
        "declare" => declare(view, notes, depth),
        "fetch" | "move" => {
            notes.reason(Reason::Session);
            notes.inexact = true;
        }
        "notify" => notes.reason(Reason::SideEffect),
        "load" => {
            notes.reason(Reason::Utility);
            notes.effect(Effect::Load);
        }
        "lock" => notes.reason(Reason::Lock),
        "do" | "call" => {
            notes.reason(Reason::Utility);
            notes.inexact = true;
            notes.unknown();
            if word == "do" {
                block::block(view.source(), notes);
            }
        }
        "vacuum" | "analyze" | "analyse" | "checkpoint" | "cluster" | "reindex" | "refresh" | "repack" | "wait" => {
            notes.reason(Reason::Utility);
            notes.inexact = true;
        }
        "explain" => explain(view, notes, depth),
        "copy" => copy(view, notes, depth),
        "truncate" => truncate(view, notes),
        "create" => create(view, notes),
        "alter" => alter(view, notes),
        "drop" | "grant" | "revoke" | "comment" | "security" | "reassign" | "import" => {
            notes.reason(Reason::Ddl);
            notes.inexact = true;
        }
        _ => return false,
    }
    true
}

fn control(notes: &mut Notes, control: Control) {
    notes.reason(Reason::Transaction);
    notes.facts.control.push(control);
}

/// Something the grammar does not have: the server refuses it, and nothing is concluded.
fn refuse(notes: &mut Notes) {
    notes.unreadable();
}

/// BEGIN … ROLLBACK TO, as in `TransactionStmt` of Postgres's grammar.
fn transaction(view: View, word: &str, notes: &mut Notes) {
    // WORK and TRANSACTION say nothing
    let next = 1 + usize::from(view.is_any(1, &["work", "transaction"]));
    let chain = view.are(next, &["and", "chain"]);
    let found = match word {
        "begin" | "start" => {
            let (read_only, serializable, deferrable) = modes(view.from(next));
            Some(Control::Begin { read_only, serializable, deferrable })
        }
        "commit" | "rollback" if view.is(1, "prepared") => Some(Control::FinishPrepared),
        "rollback" | "abort" if view.is(next, "to") => {
            view.name(next + 1 + usize::from(view.is(next + 1, "savepoint"))).map(Control::RollbackTo)
        }
        "commit" | "end" => Some(Control::Commit { chain }),
        "rollback" | "abort" => Some(Control::Rollback { chain }),
        "savepoint" => view.name(1).map(Control::Savepoint),
        _ => view.name(1 + usize::from(view.is(1, "savepoint"))).map(Control::Release),
    };
    notes.facts.boundary = boundary(view, word);
    match found {
        Some(found) => control(notes, found),
        None => refuse(notes),
    }
}

/// What the statement is where it has the words of the grammar and none besides.
fn boundary(view: View, word: &str) -> Option<Boundary> {
    let (boundary, optional) = match word {
        "begin" => (Boundary::Begin, &["work", "transaction"][..]),
        "start" => (Boundary::Start, &[][..]),
        "commit" | "end" => (Boundary::Commit, &["work", "transaction"][..]),
        "rollback" | "abort" => (Boundary::Rollback, &["work", "transaction"][..]),
        _ => return None,
    };
    let mut at = 1;
    if boundary == Boundary::Start && !view.is(at, "transaction") {
        return None;
    }
    at += usize::from(boundary == Boundary::Start || view.is_any(at, optional));
    if !boundary.begins() {
        at += if view.are(at, &["and", "no", "chain"]) { 3 } else { 0 };
        return (at == view.tokens.len()).then_some(boundary);
    }
    let mut comma = false;
    while at < view.tokens.len() {
        at += mode(view, at)?;
        comma = view.punct(at, b',');
        at += usize::from(comma);
    }
    (!comma).then_some(boundary)
}

/// The number of words of the mode that stands there.
fn mode(view: View, at: usize) -> Option<usize> {
    const MODES: [&[&str]; 8] = [
        &["read", "only"],
        &["read", "write"],
        &["deferrable"],
        &["not", "deferrable"],
        &["isolation", "level", "read", "committed"],
        &["isolation", "level", "read", "uncommitted"],
        &["isolation", "level", "repeatable", "read"],
        &["isolation", "level", "serializable"],
    ];
    MODES.iter().find(|mode| view.are(at, mode)).map(|mode| mode.len())
}

/// `SHOW` of what is the session's or its transaction's own, or the same on all nodes.
fn shows_session(view: View) -> bool {
    view.are(1, &["time", "zone"])
        || view.is(1, "transaction")
        || view.is_any(1, &["transaction_isolation", "transaction_read_only", "transaction_deferrable"])
        || view.punct(2, b'.')
        || view.name(1).is_some_and(|name| super::tokens::is_of_session(&name.to_ascii_lowercase()))
}

/// READ ONLY, ISOLATION LEVEL and DEFERRABLE; where one is said twice, the last counts.
pub(super) fn modes(view: View) -> (Option<bool>, Option<bool>, Option<bool>) {
    let (mut read_only, mut serializable, mut deferrable) = (None, None, None);
    for at in 0..view.tokens.len() {
        if view.is(at, "read") && view.is_any(at + 1, &["only", "write"]) {
            read_only = Some(view.is(at + 1, "only"));
        } else if view.are(at, &["isolation", "level"]) {
            serializable = Some(view.is(at + 2, "serializable"));
        } else if view.is(at, "deferrable") {
            deferrable = Some(!(at > 0 && view.is(at - 1, "not")));
        }
    }
    (read_only, serializable, deferrable)
}

fn session(view: View, word: &str, notes: &mut Notes) {
    notes.reason(Reason::Session);
    let all = |at| view.is(at, "all");
    let effect = match word {
        "discard" if all(1) => Some(Effect::DiscardAll),
        "discard" if view.is(1, "plans") => Some(Effect::DiscardPlans),
        "discard" if view.is_any(1, &["temp", "temporary"]) => Some(Effect::DiscardTemp),
        "discard" if view.is(1, "sequences") => Some(Effect::DiscardSequences),
        "deallocate" => {
            let at = 1 + usize::from(view.is(1, "prepare") && view.tokens.len() > 2);
            if all(at) {
                Some(Effect::Deallocate(None))
            } else {
                view.name(at).map(|name| Effect::Deallocate(Some(name)))
            }
        }
        "close" if all(1) => Some(Effect::Close(None)),
        "close" => view.name(1).map(|name| Effect::Close(Some(name))),
        "listen" => view.name(1).map(Effect::Listen),
        "unlisten" if view.kind(1) == Some(Kind::Operator) && view.raw(1) == "*" => Some(Effect::Unlisten(None)),
        "unlisten" => view.name(1).map(|name| Effect::Unlisten(Some(name))),
        "execute" => {
            // its arguments are expressions of their own
            super::tokens::scan(view.from(2), notes);
            notes.inexact = true;
            view.name(1).map(Effect::Execute)
        }
        _ => None,
    };
    match effect {
        Some(effect) => notes.effect(effect),
        None => refuse(notes),
    }
}

/// `PREPARE name [(types)] AS statement`. The effects of executing it are noted now, as unknown.
fn prepare(view: View, notes: &mut Notes, depth: usize) {
    notes.reason(Reason::Session);
    let Some(name) = view.name(1) else { return refuse(notes) };
    notes.effect(Effect::Prepare(name));
    let types = if view.punct(2, b'(') { view.closing(2) } else { Some(1) };
    match types.filter(|end| view.is(end + 1, "as")) {
        Some(end) => inner(view.from(end + 2), notes, depth),
        None => refuse(notes),
    }
}

/// `DECLARE name [BINARY …] CURSOR [{WITH | WITHOUT} HOLD] FOR query`. What the query does is the stronger reason.
fn declare(view: View, notes: &mut Notes, depth: usize) {
    let header = (2..view.tokens.len().min(12)).find(|&at| view.is(at, "for"));
    let (Some(name), Some(end)) = (view.name(1), header) else { return refuse(notes) };
    let hold = (2..end).any(|at| view.are(at, &["with", "hold"]));
    notes.effect(Effect::Declare { name, hold });
    inner(view.from(end + 1), notes, depth);
    notes.reason(Reason::Session);
}

/// Notes the facts of a statement inside another one; of its effects only that there are some.
fn inner(view: View, notes: &mut Notes, depth: usize) {
    let mut inside = Notes::default();
    statement(view, &mut inside, depth + 1);
    let effects = std::mem::take(&mut inside.facts.effects);
    notes.absorb(inside);
    match effects.as_slice() {
        [] => {}
        // perhaps by name alone, which `absorb` kept
        [Effect::Unknown] => notes.push_unknown(),
        _ => notes.unknown(),
    }
}

/// EXPLAIN runs its statement with ANALYZE, whatever value that option has: the last of several counts, and the
/// spellings of false are many.
fn explain(view: View, notes: &mut Notes, depth: usize) {
    let mut at = 1;
    let mut runs = false;
    if view.punct(1, b'(') && !view.is_any(2, &["select", "with", "values", "table"]) && !view.punct(2, b'(') {
        let Some(end) = view.closing(1) else { return refuse(notes) };
        runs = (2..end).any(|at| view.name(at).is_some_and(|name| name == "analyze" || name == "analyse"));
        at = end + 1;
    } else {
        while view.is_any(at, &["analyze", "analyse", "verbose"]) {
            runs |= !view.is(at, "verbose");
            at += 1;
        }
    }
    let mut inside = Notes::default();
    statement(view.from(at), &mut inside, depth + 1);
    // a plan is made of catalogs and statistics
    inside.facts.transient = true;
    if !runs && inside.facts.primary != Some(Reason::Unparsable) {
        let named = inside.named;
        // planning runs what is labelled immutable, so unknown names stay
        inside.facts.effects.retain(|effect| named && *effect == Effect::Unknown);
        inside.known();
    }
    inside.facts.control.clear();
    notes.absorb(inside);
}

/// COPY FROM writes; COPY TO reads, on the primary.
fn copy(view: View, notes: &mut Notes, depth: usize) {
    if view.punct(1, b'(') {
        let Some(end) = view.closing(1) else { return refuse(notes) };
        let part = View { text: view.text, tokens: view.tokens.get(2..end).unwrap_or_default() };
        inner(part, notes, depth);
        return notes.reason(Reason::Utility);
    }
    let at = 1 + usize::from(view.is(1, "binary"));
    let Some((name, end)) = view.qualified(at) else { return refuse(notes) };
    let end = if view.punct(end, b'(') { view.closing(end).map_or(end, |close| close + 1) } else { end };
    if view.is(end, "from") {
        notes.reason(Reason::Write);
        notes.written(name);
        if let Some(filter) = (end..view.tokens.len()).find(|&at| view.is(at, "where")) {
            super::tokens::scan(view.from(filter), notes);
        }
    } else {
        notes.reason(Reason::Utility);
        notes.relation(name);
    }
}

fn truncate(view: View, notes: &mut Notes) {
    notes.reason(Reason::Write);
    let mut at = 1 + usize::from(view.is(1, "table"));
    loop {
        at += usize::from(view.is(at, "only"));
        let Some((name, end)) = view.qualified(at) else { return refuse(notes) };
        notes.written(name);
        at = end + usize::from(view.raw(end) == "*");
        if !view.punct(at, b',') {
            break;
        }
        at += 1;
    }
    // with CASCADE other tables too
    notes.inexact |= at < view.tokens.len();
}

/// Only what is made with rows runs functions now; and temporary things stay with the session.
fn create(view: View, notes: &mut Notes) {
    notes.inexact = true;
    // `begin` may be a column and `atomic` its alias, and what follows a `;` then a statement of its own
    if (1..view.tokens.len()).any(|at| view.are(at, &["begin", "atomic"])) {
        notes.unknown();
    }
    let head = view.tokens.len().min(6);
    let mut kind = 1 + 2 * usize::from(view.are(1, &["or", "replace"]));
    kind += usize::from(view.is_any(kind, &["global", "local"]));
    let named = |at: usize| view.name(at + 1).is_some_and(|name| super::builtins::is_temporary_schema(&name));
    let in_schema = (0..head.max(8)).any(|at| named(at) && view.punct(at + 2, b'.'));
    if view.is_any(kind, &["temp", "temporary"]) || in_schema {
        notes.effect(Effect::Temporary);
        if (kind..view.tokens.len()).any(|at| view.are(at, &["on", "commit", "drop"])) {
            notes.effect(Effect::DroppedAtCommit);
        }
    }
    let at = |word| (1..head).any(|at| view.is(at, word));
    let begins = |at: usize| {
        let at = at + usize::from(view.punct(at, b'('));
        view.is_any(at, &["select", "with", "values", "table", "execute"]) || view.punct(at, b'(')
    };
    let mut depth = 0usize;
    let outside = |at: &usize| {
        depth = (depth + usize::from(view.punct(*at, b'('))).saturating_sub(usize::from(view.punct(*at, b')')));
        depth == 0
    };
    let body = (1..view.tokens.len()).filter(outside).find(|&at| view.is(at, "as") && begins(at + 1)).map(|at| at + 1);
    match body {
        Some(body) if at("table") => {
            notes.reason(Reason::Into);
            if view.is(body, "execute") {
                notes.unknown();
            }
            query(view.from(body), notes);
        }
        Some(body) if at("materialized") => {
            notes.reason(Reason::Ddl);
            query(view.from(body), notes);
        }
        _ => notes.reason(Reason::Ddl),
    }
}

/// ALTER TABLE may compute each row anew, by functions.
fn alter(view: View, notes: &mut Notes) {
    notes.inexact = true;
    notes.reason(Reason::Ddl);
    let computes = ["default", "using", "check", "generated", "expression"];
    if view.is(1, "table") && (2..view.tokens.len()).any(|at| view.is_any(at, &computes)) {
        super::tokens::scan(view.from(2), notes);
    }
}
