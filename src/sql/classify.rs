//! A text to its [`Facts`]: statement by statement, by the first word and the tokens; the syntax tree adds which
//! relations are read.

use super::fingerprint::hints;
use super::lex::{Lexer, Strings, Token};
use super::view::View;
use super::{Call, Effect, Facts, Name, Reason, SetValue};
use super::{commands, relations, settings, tokens, tree};

/// Tokens beyond these are not looked at, which makes the text [`Reason::TooLong`].
const TOKENS: usize = 1 << 16;
/// Entries of a list of facts; more make the statement [`Reason::TooLong`].
const NAMES: usize = 256;

/// What the text is. Holds while standard_conforming_strings is on, or `backslash` is false.
pub fn classify(text: &str) -> Facts {
    let mut facts = gather(text);
    facts.hints = hints(text);
    facts.by_literal |= facts.hints != super::Hints::default();
    facts
}

/// What the body of a function in SQL does.
pub fn body(text: &str) -> Facts {
    gather(text)
}

/// The facts of all statements together.
fn gather(text: &str) -> Facts {
    let mut lexer = Lexer::new(text.as_bytes(), Strings::Standard);
    let tokens: Vec<Token> = lexer.by_ref().take(TOKENS).collect();
    let cut = tokens.len() == TOKENS && lexer.next().is_some();
    let mut notes = Notes::default();
    statements(&split(View { text, tokens: &tokens }), &mut notes);
    if lexer.unsure().is_some() {
        notes.facts.statements = notes.facts.statements.max(1);
        notes.unreadable();
    } else if cut {
        notes.too_long();
        notes.unknown();
    }
    let unsure = lexer.unsure().is_some();
    let mut facts = notes.into_facts();
    facts.backslash = lexer.backslash();
    facts.by_literal |= facts.backslash || unsure;
    facts
}

/// Notes what the statements of a string do. BEGIN READ ONLY and the COMMIT of it ask for nothing themselves.
fn statements(parts: &[View], notes: &mut Notes) {
    let is_block = is_read_only_block(parts);
    for (at, part) in parts.iter().enumerate() {
        let asked = notes.facts.primary;
        notes.facts.statements += 1;
        statement(*part, notes, 0);
        if is_block && (at == 0 || at + 1 == parts.len()) {
            notes.facts.primary = asked;
        }
    }
    // Nothing in between ends it, or goes back in it.
    notes.facts.is_block = is_block && notes.facts.control.len() == 2;
    if is_block && !notes.facts.is_block {
        notes.reason(Reason::Transaction);
    }
}

/// The first begins a READ ONLY block that a standby can run, and the last ends one.
fn is_read_only_block(parts: &[View]) -> bool {
    let control = |part: &View| {
        let mut notes = Notes::default();
        statement(*part, &mut notes, 0);
        notes.facts.control.pop()
    };
    let [first, _, .., last] = parts else { return false };
    first.is_any(0, &["begin", "start"])
        && control(first).is_some_and(|begin| begin.begins_plainly() && begin.says_read_only() == Some(true))
        && control(last).is_some_and(|end| end.ends())
}

/// The statements of a string. A `;` in brackets (rules) or between BEGIN ATOMIC and END (SQL functions) is inside.
fn split<'a>(whole: View<'a>) -> Vec<View<'a>> {
    let mut parts = Vec::new();
    let (mut start, mut depth, mut blocks) = (0, 0usize, 0usize);
    for at in 0..=whole.tokens.len() {
        let end = at == whole.tokens.len();
        if whole.punct(at, b'(') {
            depth += 1;
        } else if whole.punct(at, b')') {
            depth = depth.saturating_sub(1);
        } else if (whole.is(start, "create") && whole.are(at, &["begin", "atomic"]))
            || (blocks > 0 && whole.is(at, "case"))
        {
            blocks += 1;
        } else if blocks > 0 && whole.is(at, "end") {
            blocks -= 1;
        } else if end || (depth == 0 && blocks == 0 && whole.punct(at, b';')) {
            let tokens = whole.tokens.get(start..at).unwrap_or_default();
            if !tokens.is_empty() {
                parts.push(View { text: whole.text, tokens });
            }
            start = at + 1;
        }
    }
    parts
}

/// Notes what one statement does; `depth` counts statements around it (EXPLAIN, PREPARE, DECLARE, COPY).
pub(super) fn statement(view: View, notes: &mut Notes, depth: usize) {
    let query = view.is_any(0, &["select", "with", "values", "table"]) || view.punct(0, b'(');
    if query && settings::set_config(view, notes) {
        return;
    }
    if query || view.is_any(0, &["insert", "update", "delete", "merge"]) {
        self::query(view, notes);
    } else if depth > 2 || !commands::command(view, notes, depth) {
        notes.unreadable();
    }
}

/// A query or a change.
pub(super) fn query(view: View, notes: &mut Notes) {
    tokens::scan(view, notes);
    if view.source().len() > tree::TEXT_LENGTH {
        notes.too_long();
    }
    let mut names = Vec::new();
    relations::relations(view, |name| names.push(name));
    names.sort_unstable();
    names.dedup();
    match tree::relations(view) {
        // two readers that agree: sqlparser takes ONLY for a table, tokens take a common table for one
        Some(tree) if agree(&tree, &names, &notes.facts.written) => names = tree.names,
        tree => {
            notes.inexact = true;
            names.extend(tree.map(|tree| tree.names).unwrap_or_default());
        }
    }
    names.into_iter().for_each(|name| notes.relation(name));
}

/// Compares what the tree names with the sorted `tokens` and the tables written to.
fn agree(tree: &tree::Relations, tokens: &[Name], written: &[Name]) -> bool {
    let common = |name: &Name| name.schema.is_none() && tree.common_tables.binary_search(&name.name).is_ok();
    tree.names.iter().all(|name| tokens.binary_search(name).is_ok() || written.contains(name))
        && tokens.iter().all(|name| tree.names.binary_search(name).is_ok() || common(name))
}

/// Facts in the making.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) facts: Facts,
    /// The state of the session is unknown whatever the catalog says.
    unknown: bool,
    /// A name of which only the catalog may know something.
    pub(super) named: bool,
    /// Some relations may be missing, or more are there than are meant.
    pub(super) inexact: bool,
}

impl Notes {
    pub(super) fn into_facts(self) -> Facts {
        let Notes { mut facts, unknown, inexact, .. } = self;
        facts.relations_exact = !inexact;
        facts.unknown_by_name = facts.effects.contains(&Effect::Unknown) && !unknown;
        facts
    }

    /// The first reason stands, but one that the catalog could clear gives way.
    pub(super) fn reason(&mut self, reason: Reason) {
        let soft = |reason| matches!(reason, Reason::UnknownFunction | Reason::UnknownOperator);
        match self.facts.primary {
            Some(old) if !soft(old) || soft(reason) => {}
            _ => self.facts.primary = Some(reason),
        }
    }

    pub(super) fn effect(&mut self, effect: Effect) {
        if self.facts.effects.len() >= NAMES {
            self.unknown();
        } else {
            self.facts.effects.push(effect);
        }
    }

    /// The session may have changed in any way.
    pub(super) fn unknown(&mut self) {
        self.unknown = true;
        self.push_unknown();
    }

    /// Settings of the session change, of which neither names nor values are known.
    pub(super) fn sets_unseen(&mut self) {
        self.sets_unseen_value(String::new());
    }

    /// One setting of the session changes, or not; no name for one that is not known.
    pub(super) fn sets_unseen_value(&mut self, name: String) {
        self.unknown();
        let unseen = Effect::Set { name, value: SetValue::Opaque, local: false };
        if !self.facts.effects.contains(&unseen) {
            self.effect(unseen);
        }
    }

    pub(super) fn push_unknown(&mut self) {
        if !self.facts.effects.contains(&Effect::Unknown) {
            self.facts.effects.push(Effect::Unknown);
        }
    }

    /// Nothing is executed after all.
    pub(super) fn known(&mut self) {
        self.unknown = false;
    }

    /// Takes over what was noted of a statement inside this one.
    pub(super) fn absorb(&mut self, inside: Notes) {
        let facts = inside.facts;
        if let Some(reason) = facts.primary {
            self.reason(reason);
        }
        self.unknown |= inside.unknown;
        self.named |= inside.named;
        for effect in facts.effects {
            match effect {
                Effect::Unknown => self.push_unknown(),
                effect => self.effect(effect),
            }
        }
        facts.functions.into_iter().for_each(|call| self.function(call));
        facts.relations.into_iter().for_each(|name| self.relation(name));
        facts.written.into_iter().for_each(|name| self.written(name));
        for name in facts.attributes {
            self.attribute(name);
        }
        self.facts.operators.extend(facts.operators);
        self.facts.types.extend(facts.types);
        self.facts.transient |= facts.transient;
        self.facts.by_literal |= facts.by_literal;
        self.inexact |= inside.inexact;
    }

    /// A name of which only the catalog may know something.
    pub(super) fn unknown_name(&mut self, reason: Reason) {
        self.reason(reason);
        self.named = true;
        self.push_unknown();
    }

    pub(super) fn unreadable(&mut self) {
        self.reason(Reason::Unparsable);
        self.inexact = true;
        self.unknown();
    }

    pub(super) fn too_long(&mut self) {
        self.reason(Reason::TooLong);
        self.inexact = true;
    }

    pub(super) fn function(&mut self, call: Call) {
        if !add(&mut self.facts.functions, call) {
            self.too_long();
            self.unknown();
        }
    }

    pub(super) fn operator(&mut self, name: &str) {
        self.unknown_name(Reason::UnknownOperator);
        if !add(&mut self.facts.operators, name.to_owned()) {
            self.too_long();
            self.unknown();
        }
    }

    pub(super) fn type_use(&mut self, name: Name) {
        self.unknown_name(Reason::UnknownOperator);
        if !add(&mut self.facts.types, name) {
            self.too_long();
            self.unknown();
        }
    }

    pub(super) fn attribute(&mut self, name: String) {
        if !add(&mut self.facts.attributes, name) {
            self.too_long();
        }
    }

    pub(super) fn relation(&mut self, name: Name) {
        if !add(&mut self.facts.relations, name) {
            self.too_long();
        }
    }

    pub(super) fn written(&mut self, name: Name) {
        // A rule of this view calls set_config.
        if name.name == "pg_settings" {
            self.sets_unseen();
        }
        self.relation(name.clone());
        if !add(&mut self.facts.written, name) {
            self.too_long();
        }
    }
}

/// Adds what is not there yet; false where the list is full.
fn add<T: PartialEq>(list: &mut Vec<T>, entry: T) -> bool {
    if list.contains(&entry) {
        return true;
    }
    let room = list.len() < NAMES;
    if room {
        list.push(entry);
    }
    room
}
