//! The relations of a read by tokens alone, for texts that the syntax tree does not cover: never too few. Names of
//! common tables, and what stands behind `EXTRACT (… FROM`, are among them.

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
}

/// Every relation that `view` may read.
pub(super) fn relations(view: View, mut found: impl FnMut(Name)) {
    let mut levels = vec![Level::default()];
    let mut at = 0;
    while at < view.tokens.len() {
        let Some(level) = levels.last_mut() else { return };
        match view.kind(at) {
            Some(Kind::Word | Kind::Quoted) => {
                if level.item && !view.is_any(at, &["only", "lateral"]) {
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
                let inner = Level { from: level.item, item: level.item };
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

/// A name that can be a relation's, and where it ends.
fn item(view: View, at: usize) -> Option<(Name, usize)> {
    let reserved = view.kind(at) == Some(Kind::Word)
        && matches!(keyword(&view.name(at)?), Some(Keyword::Reserved | Keyword::Column | Keyword::Function));
    if reserved { None } else { view.qualified(at) }
}

fn word(view: View, at: usize, level: &mut Level) {
    if view.is_any(at, &["from", "using"]) {
        *level = Level { from: true, item: true };
    } else if view.is_any(at, &["join", "table"]) {
        level.item = true;
    } else if view.is_any(
        at,
        &["select", "where", "group", "having", "window", "order", "limit", "union", "intersect", "except", "set"],
    ) {
        level.from = false;
    }
}
