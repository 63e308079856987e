//! A text with its constants blanked out, found in one pass and without reading tokens.
//!
//! Two texts with one template have the same tokens up to the values of constants that decide nothing, and so the same
//! [`fingerprint`](super::fingerprint::fingerprint), unless that goes by literals for both; the reverse is not so. Only what is certain at a glance is blanked,
//! and a text that would need the lexer's whole knowledge has no template.

use memchr::{memchr, memchr2};

use super::bytes::{COLON, DIGIT, DOLLAR, DOT, ODD_OPERATOR, SINGLE, SPACE, WORD, class_of};
use super::fingerprint::date_word;

/// Longest text that has a template, in bytes.
pub const LONGEST: usize = 1024;

/// What stands for a number and for a string. No token begins with these bytes, and a text that holds them has no
/// template, but in a quoted name, where they stay what they are.
const NUMBER: u8 = 1;
const STRING: u8 = 2;

/// Room for a template.
pub type Buffer = [u8; LONGEST];

/// The template of a text; `None` for one that is too long, or holds a comment, an escape, a dollar quote, a constant
/// that may decide what the statement means, or anything odd.
pub fn template<'a>(text: &[u8], buffer: &'a mut Buffer) -> Option<&'a [u8]> {
    if text.len() > LONGEST {
        return None;
    }
    let mut out = Writer { text, copied: 0, buffer, length: 0 };
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let class = class_of(byte);
        if matches!(class, SPACE | WORD | SINGLE | DOT | COLON | ODD_OPERATOR) {
            at += 1;
            continue;
        }
        let before = text.get(at.wrapping_sub(1)).copied().unwrap_or(b' ');
        let next = text.get(at + 1).copied().unwrap_or(b' ');
        at = match (byte, class) {
            (_, DIGIT) => {
                let end = at + digits(text.get(at..)?);
                let behind = text.get(end).copied().unwrap_or(b' ');
                // Part of a word, a fraction, an exponent or another base: as it stands.
                let whole = !matches!(class_of(before), WORD | DIGIT | DOLLAR | DOT);
                if whole && !matches!(class_of(behind), WORD | DOLLAR | DOT) {
                    out.blank(at, end, NUMBER);
                }
                end
            }
            (b'\'', _) => {
                // Behind a letter or `&` it may be of another kind.
                if matches!(class_of(before), WORD | DIGIT | DOLLAR) || before == b'&' {
                    return None;
                }
                let end = string(text, at)?;
                out.blank(at, end, STRING);
                end
            }
            (b'"', _) => at + 2 + memchr(b'"', text.get(at + 1..)?)?,
            (b'$', _) if next.is_ascii_digit() => at + 1 + digits(text.get(at + 1..)?),
            (b'-', _) if next != b'-' => at + 1,
            (b'/', _) if next != b'*' => at + 1,
            (b'+' | b'*' | b'%' | b'<' | b'>' | b'=', _) => at + 1,
            _ => return None,
        };
    }
    Some(out.finish())
}

/// A template to compare texts with.
#[derive(Debug)]
pub struct Pattern {
    template: Box<[u8]>,
    /// Where in it a mark stands for a constant.
    marks: Box<[u16]>,
}

impl Pattern {
    /// `None` for a template in which a quoted name holds what marks are made of.
    pub fn new(template: &[u8]) -> Option<Pattern> {
        let (mut marks, mut quoted) = (Vec::new(), false);
        for (at, byte) in template.iter().enumerate() {
            match byte {
                b'"' => quoted = !quoted,
                &(NUMBER | STRING) if quoted => return None,
                &(NUMBER | STRING) => marks.push(u16::try_from(at).ok()?),
                _ => {}
            }
        }
        Some(Pattern { template: template.into(), marks: marks.into() })
    }

    /// Where its first constant stands.
    pub fn first(&self) -> Option<usize> {
        self.marks.first().copied().map(usize::from)
    }

    /// The text's own template is this one.
    pub fn fits(&self, text: &[u8]) -> bool {
        text.len() <= LONGEST && self.rest_behind(text).is_some_and(|(there, here)| there == here)
    }

    /// What is left of the template and of the text behind the last constant.
    ///
    /// What stands around a constant is equal in both, so it is a constant in both.
    fn rest_behind<'t>(&self, text: &'t [u8]) -> Option<(&[u8], &'t [u8])> {
        let (mut from, mut at) = (0, 0);
        for mark in &self.marks {
            let mark = usize::from(*mark);
            let literal = self.template.get(from..mark)?;
            let rest = text.get(at..)?.strip_prefix(literal)?;
            let start = at + literal.len();
            at = match self.template.get(mark)? {
                &NUMBER => start + Some(digits(rest)).filter(|digits| *digits > 0)?,
                _ if rest.first() == Some(&b'\'') => string(text, start)?,
                _ => return None,
            };
            from = mark + 1;
        }
        Some((self.template.get(from..)?, text.get(at..)?))
    }
}

/// How many digits a text begins with.
fn digits(text: &[u8]) -> usize {
    text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len())
}

/// The end of the string that begins at `start`, if it is all of it and decides nothing.
fn string(text: &[u8], start: usize) -> Option<usize> {
    let body = text.get(start + 1..)?;
    let length = memchr2(b'\'', b'\\', body)?;
    let (inside, behind) = body.split_at_checked(length)?;
    // A quote behind it would double it, or go on with it on the next line.
    let next = behind.iter().skip(1).find(|byte| class_of(**byte) != SPACE);
    let closes = behind.first() == Some(&b'\'') && next != Some(&b'\'');
    (closes && !date_word(inside)).then_some(start + length + 2)
}

struct Writer<'t, 'b> {
    text: &'t [u8],
    /// The text up to here is in the template.
    copied: usize,
    buffer: &'b mut Buffer,
    length: usize,
}

impl<'b> Writer<'_, 'b> {
    /// Puts `mark` in the place of the constant between `start` and `end`.
    fn blank(&mut self, start: usize, end: usize, mark: u8) {
        self.copy(start);
        // A constant has a byte at least, so that there is room wherever the text has room.
        if let Some(place) = self.buffer.get_mut(self.length) {
            *place = mark;
            self.length += 1;
        }
        self.copied = end;
    }

    fn copy(&mut self, end: usize) {
        let part = self.text.get(self.copied..end).unwrap_or_default();
        if let Some(place) = self.buffer.get_mut(self.length..self.length + part.len()) {
            place.copy_from_slice(part);
            self.length += part.len();
        }
    }

    fn finish(mut self) -> &'b [u8] {
        self.copy(self.text.len());
        self.buffer.get(..self.length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::sql::fingerprint::fingerprint;

    fn of(text: &str) -> Option<Vec<u8>> {
        template(text.as_bytes(), &mut [0; LONGEST]).map(<[u8]>::to_vec)
    }

    #[test]
    fn constants_alone_are_blanked() {
        let same = [
            ("SELECT a FROM t WHERE a = 1;", "SELECT a FROM t WHERE a = 4711;"),
            ("select '' , 7", "select 'a b' , 0"),
            ("select a1, \"b 2\", 3", "select a1, \"b 2\", 4"),
            ("select f(1,2), -3 + 4", "select f(5,66), -77 + 8"),
            ("select x::int4 = 5", "select x::int4 = 6"),
        ];
        for (one, other) in same {
            assert!(of(one).is_some() && of(one) == of(other), "{one}");
        }
        let apart = [
            ("select 1", "select  1"),
            ("select a1", "select a2"),
            ("select \"a 1\"", "select \"a 2\""),
            ("select 1.5", "select 2.5"),
            ("select 1e5", "select 2e5"),
            ("select $1", "select $2"),
            ("select 1", "select '1'"),
            ("select a$1", "select a$2"),
        ];
        for (one, other) in apart {
            assert!(of(one).is_some() && of(one) != of(other), "{one}");
        }
    }

    #[test]
    fn what_needs_a_second_look_has_none() {
        let odd = [
            "select 'it''s'",
            "select 'a\\b'",
            "select E'a'",
            "select n'a'",
            "select b'0'",
            "select U&'a'",
            "select 'a'\n'b'",
            "select 'a' 'b'",
            "select 'now'",
            "select 'Today 12:00'",
            "select 1 -- x",
            "select 1 /* x */",
            "select $$a$$",
            "select $a$a$a$",
            "select 'a",
            "select \"a",
            "select \u{1}",
            "select \u{2} \0",
            "select \\",
        ];
        for text in odd {
            assert_eq!(of(text), None, "{text}");
        }
        assert_eq!(of(&"1".repeat(LONGEST)).as_deref(), Some(&[NUMBER][..]));
        assert_eq!(of(&"1".repeat(LONGEST + 1)), None);
    }

    /// Texts of pieces that mean something to the lexer, put together at random, against the fingerprint itself.
    #[test]
    fn one_template_means_one_fingerprint() {
        const PIECES: [&str; 46] = [
            "select",
            " ",
            "a",
            "E",
            "U&",
            "n",
            "1",
            "0",
            "23",
            ".",
            "e",
            "x",
            "_",
            "$",
            "'",
            "''",
            "'v'",
            "'now'",
            "\"",
            "\"q\"",
            "-",
            "--",
            "/",
            "*",
            "/*",
            "*/",
            "+",
            "::",
            ":",
            ",",
            "(",
            ")",
            "in (",
            "[",
            "]",
            ";",
            "\n",
            "values (",
            "set ",
            "\\",
            "&",
            "é",
            "array[",
            "null",
            "set_config(",
            "$1",
        ];
        let mut random = Random::new(7);
        let mut below = |n: usize| random.draw() as usize % n;
        let mut seen = std::collections::HashMap::new();
        let mut patterns: Vec<(Vec<u8>, Pattern)> = Vec::new();
        let (mut compared, mut fitted) = (0, 0);
        for _ in 0..800_000 {
            let text: String = (0..1 + below(9)).map(|_| PIECES[below(PIECES.len())]).collect();
            let own = of(&text);
            for (template, pattern) in &patterns {
                let fits = pattern.fits(text.as_bytes());
                assert_eq!(fits, own.as_ref() == Some(template), "{text:?} and {template:?}");
                fitted += u32::from(fits);
            }
            let Some(template) = own else { continue };
            if let Some(pattern) = Pattern::new(&template).filter(|_| below(1000) == 0) {
                patterns.truncate(30);
                patterns.insert(0, (template.clone(), pattern));
            }
            let found = fingerprint(&text);
            let (first, of_first) = seen.entry(template).or_insert_with(|| (text.clone(), found));
            compared += u32::from(*first != text);
            assert_eq!(found.by_literal, of_first.by_literal, "{first:?} and {text:?}");
            assert!(found.by_literal || found == *of_first, "{first:?} and {text:?}");
        }
        assert!(compared > 10_000 && fitted > 10_000, "{compared} {fitted}");
    }
}
