//! A statement's tokens with the few questions that classifying asks of them.

use super::Name;
use super::lex::{Kind, Token};

/// The tokens of one statement or of the inner part of one, without its `;`.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) text: &'a str,
    pub(super) tokens: &'a [Token],
}

/// Longer lists of arguments are not counted.
const ARGUMENTS: usize = 128;
/// `NAMEDATALEN - 1`: longer identifiers are cut by the server.
const NAME_LENGTH: usize = 63;

impl<'a> View<'a> {
    pub(super) fn get(&self, at: usize) -> Option<Token> {
        self.tokens.get(at).copied()
    }

    pub(super) fn kind(&self, at: usize) -> Option<Kind> {
        self.get(at).map(|token| token.kind)
    }

    /// The text of a token, quotes included.
    pub(super) fn raw(&self, at: usize) -> &'a str {
        self.get(at).and_then(|token| self.text.get(token.start..token.end)).unwrap_or_default()
    }

    /// True for the unquoted word `word`, given in lower case.
    pub(super) fn is(&self, at: usize, word: &str) -> bool {
        self.get(at).is_some_and(|token| token.is_word(self.text.as_bytes(), word))
    }

    pub(super) fn is_any(&self, at: usize, words: &[&str]) -> bool {
        words.iter().any(|word| self.is(at, word))
    }

    pub(super) fn punct(&self, at: usize, byte: u8) -> bool {
        self.get(at).is_some_and(|token| token.is(self.text.as_bytes(), byte))
    }

    /// True for words in this order from `at`.
    pub(super) fn are(&self, at: usize, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(offset, word)| self.is(at + offset, word))
    }

    /// What is left from `at`.
    pub(super) fn from(&self, at: usize) -> View<'a> {
        View { text: self.text, tokens: self.tokens.get(at..).unwrap_or_default() }
    }

    /// The text of the tokens `from..to`, as written.
    pub(super) fn slice(&self, from: usize, to: usize) -> &'a str {
        match (self.get(from), to.checked_sub(1).and_then(|last| self.get(last))) {
            (Some(first), Some(last)) if from < to => self.text.get(first.start..last.end).unwrap_or_default(),
            _ => "",
        }
    }

    /// The whole text, as written.
    pub(super) fn source(&self) -> &'a str {
        self.slice(0, self.tokens.len())
    }

    /// The identifier at `at` as the server stores it; `None` for anything else and for `U&"…"`.
    pub(super) fn name(&self, at: usize) -> Option<String> {
        let raw = self.raw(at);
        let mut name = match self.kind(at)? {
            // bytes beyond ASCII stay, as in a server whose encoding is UTF-8
            Kind::Word => raw.to_ascii_lowercase(),
            Kind::Quoted => raw.get(1..raw.len().saturating_sub(1))?.replace("\"\"", "\""),
            _ => return None,
        };
        if name.len() > NAME_LENGTH {
            let end = (0..=NAME_LENGTH).rev().find(|&at| name.is_char_boundary(at)).unwrap_or(0);
            name.truncate(end);
        }
        Some(name)
    }

    /// A name with up to two qualifiers from `at`, and where it ends. The database's name is dropped.
    pub(super) fn qualified(&self, at: usize) -> Option<(Name, usize)> {
        let mut parts = vec![self.name(at)?];
        let mut end = at + 1;
        while parts.len() < 3 && self.punct(end, b'.') {
            parts.push(self.name(end + 1)?);
            end += 2;
        }
        let name = parts.pop()?;
        Some((Name { schema: parts.pop(), name }, end))
    }

    /// The value of a plain string constant, `None` where it holds escapes or goes on over lines.
    pub(super) fn string(&self, at: usize) -> Option<String> {
        if self.kind(at)? != Kind::String {
            return None;
        }
        let inner = self.raw(at).strip_prefix('\'')?.strip_suffix('\'')?;
        let value = inner.replace("''", "\u{0}");
        (!value.contains(['\'', '\\'])).then(|| value.replace('\u{0}', "'"))
    }

    /// How many arguments a call has whose bracket opens at `open`; `None` where that is not certain.
    pub(super) fn arguments(&self, open: usize) -> Option<u16> {
        let (mut depth, mut commas, mut ordered) = (0usize, 0, false);
        for at in open + 1..open + ARGUMENTS {
            let outside = depth == 0;
            if self.punct(at, b'(') || self.punct(at, b'[') {
                depth += 1;
            } else if outside && self.punct(at, b')') {
                let none = at == open + 1 || (at == open + 2 && self.raw(open + 1) == "*");
                // the arguments of an ordered-set aggregate go on behind it
                let whole = !self.is(at + 1, "within");
                return whole.then_some(if none { 0 } else { commas + 1 });
            } else if self.punct(at, b')') || self.punct(at, b']') {
                depth = depth.checked_sub(1)?;
            } else if outside && self.punct(at, b',') {
                commas += u16::from(!ordered);
            } else if outside && self.is(at, "variadic") {
                return None;
            } else if outside && self.are(at, &["order", "by"]) && !self.punct(at - 1, b'.') {
                ordered = true;
            }
        }
        None
    }

    /// Where the bracket that opens at `open` closes.
    pub(super) fn closing(&self, open: usize) -> Option<usize> {
        let mut depth = 0usize;
        for at in open..self.tokens.len() {
            if self.punct(at, b'(') {
                depth += 1;
            } else if self.punct(at, b')') {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at);
                }
            }
        }
        None
    }
}
