//! The relations of a statement by tokens alone: never too few for a read. Names of common tables are among them.
//!
//! This checks what the syntax tree says, and stands in where there is none.

use super::Name;
use super::keywords::{Keyword, keyword};
use super::lex::Kind;
use super::view::View;

/// One level of brackets.
#[derive(Clone, Copy, Default)]
struct Level {
    /// Inside FROM, where a comma leads to another item.
    from: bool,
    /// The next token begins an item.
    item: bool,
    /// In the brackets of a function whose grammar has FROM: `EXTRACT (year FROM x)`.
    syntax: bool,
}

/// Every relation that `view` may read.
pub(super) fn relations(view: View, mut found: impl FnMut(Name)) {
    let mut levels = vec![Level::default()];
    let mut at = 0;
    while at < view.tokens.len() {
        let Some(level) = levels.last_mut() else { return };
        match view.kind(at) {
            Some(Kind::Word | Kind::Quoted) => {
                let prefix = view.is_any(at, &["only", "lateral"]) || view.are(at, &["rows", "from"]);
                if level.item && !prefix {
                    level.item = false;
                    if let Some((name, end)) = item(view, at) {
                        if !view.punct(end, b'(') {
                            found(name);
                        }
                        at = end;
                        continue;
                    }
                }
                word(view, at, level);
            }
            Some(Kind::Punct) if view.punct(at, b'(') => {
                // a join in brackets, or a query, which opens its own FROM
                let syntax = at > 0 && view.is_any(at - 1, &["extract", "substring", "trim", "overlay", "position"]);
                let inner = Level { from: level.item, item: level.item, syntax };
                level.item = false;
                levels.push(inner);
            }
            Some(Kind::Punct) if view.punct(at, b')') => {
                if levels.len() > 1 {
                    levels.pop();
                }
            }
            Some(Kind::Punct) if view.punct(at, b',') => level.item = level.from,
            _ => level.item = false,
        }
        at += 1;
    }
}

/// A name that can be a relation's (`ColId`), and where it ends.
fn item(view: View, at: usize) -> Option<(Name, usize)> {
    let reserved = view.kind(at) == Some(Kind::Word)
        && matches!(keyword(&view.name(at)?), Some(Keyword::Reserved | Keyword::Function));
    if reserved { None } else { view.qualified(at) }
}

fn word(view: View, at: usize, level: &mut Level) {
    let distinct = || at > 1 && view.is(at - 1, "distinct") && view.is_any(at - 2, &["is", "not"]);
    if view.is(at, "from") {
        if !level.syntax && !distinct() {
            (level.from, level.item) = (true, true);
        }
    } else if view.is(at, "using") {
        // the columns of a join are in brackets
        if !view.punct(at + 1, b'(') {
            (level.from, level.item) = (true, true);
        }
    } else if view.is_any(at, &["join", "table"]) {
        level.item = true;
    } else if ends_from(view, at) {
        level.from = false;
        level.syntax &= !view.is(at, "select");
    }
}

/// Whether FROM ends here. Too long a list brings names that are none; too short a one would lose some. So WHEN, which is
/// CASE's too, ends none, and SET, which may be a column's name, only that of MERGE and ON CONFLICT.
fn ends_from(view: View, at: usize) -> bool {
    let dotted = at > 0 && view.punct(at - 1, b'.');
    !dotted && (view.is_any(at, &CLAUSES) || (view.is(at, "set") && at > 0 && view.is(at - 1, "update")))
}

/// Reserved words that no expression outside brackets has.
const CLAUSES: [&str; 14] = [
    "select",
    "where",
    "group",
    "having",
    "window",
    "order",
    "limit",
    "offset",
    "fetch",
    "for",
    "union",
    "intersect",
    "except",
    "returning",
];
