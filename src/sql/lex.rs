//! Tokens, as Postgres's own scanner (`src/backend/parser/scan.l`) reads them. No allocation, no panic on any bytes.
//!
//! Where server versions disagree (`1FROM`) or the text ends inside something, the lexer stops and
//! [`Lexer::unsure`] says why: nothing may then be concluded from the rest.

use super::bytes::{
    COLON, DIGIT, DOLLAR, DOT, DOUBLE, NUL, ODD_OPERATOR, OPERATOR, QUOTE, SINGLE, SPACE, WORD, class_of, is_word_part,
};
use memchr::{memchr, memchr2};

/// How `'…'` reads: the parameter standard_conforming_strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strings {
    /// `on`: a backslash is itself.
    #[default]
    Standard,
    /// `off`: a backslash escapes, as in `E'…'`.
    Escapes,
}

/// The class of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An unquoted identifier or a keyword.
    Word,
    /// `"…"`
    Quoted,
    /// `U&"…"`
    UnicodeQuoted,
    /// `'…'` or `N'…'`
    String,
    /// `E'…'`
    Escaped,
    /// `U&'…'`
    UnicodeString,
    /// `$tag$…$tag$`
    Dollar,
    /// `B'…'` or `X'…'`
    Bits,
    /// `$1`
    Param,
    Number,
    /// Any operator of the operator characters, single-character ones included.
    Operator,
    /// `::`
    Cast,
    /// `..` or `:=`
    Pair,
    /// One of `, ( ) [ ] . ; :`
    Punct,
    /// A byte with no meaning in SQL; the server answers with a syntax error.
    Other,
}

impl Kind {
    /// A constant whose value the fingerprint leaves out.
    pub fn is_literal(self) -> bool {
        matches!(self, Kind::String | Kind::Escaped | Kind::UnicodeString | Kind::Dollar | Kind::Bits | Kind::Number)
    }
}

/// One token: its class and its place in the text, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    pub kind: Kind,
    pub start: usize,
    pub end: usize,
}

impl Token {
    /// The bytes of the token, quotes included.
    pub fn bytes<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        text.get(self.start..self.end).unwrap_or_default()
    }

    /// True for the one-byte token `byte`.
    pub fn is(&self, text: &[u8], byte: u8) -> bool {
        self.kind == Kind::Punct && text.get(self.start) == Some(&byte)
    }

    /// True for the unquoted word `word`, which is given in lower case.
    pub fn is_word(&self, text: &[u8], word: &str) -> bool {
        self.kind == Kind::Word && self.bytes(text).eq_ignore_ascii_case(word.as_bytes())
    }
}

/// Why the lexer stopped before the end of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unsure {
    /// The text ends inside a string, a quoted identifier or a dollar quote.
    UnterminatedQuote,
    /// The text ends inside `/* …`.
    UnterminatedComment,
    /// Digits run into a word: an error since Postgres 15, two tokens before it.
    JunkAfterNumber,
    /// A NUL, which cannot be in a text sent to Postgres.
    Nul,
}

/// Reads the tokens of one text, white space and comments left out. A copy reads ahead.
#[derive(Debug, Clone, Copy)]
pub struct Lexer<'a> {
    text: &'a [u8],
    pos: usize,
    strings: Strings,
    backslash: bool,
    comments: bool,
    unsure: Option<Unsure>,
}

impl<'a> Lexer<'a> {
    pub fn new(text: &'a [u8], strings: Strings) -> Self {
        Self { text, pos: 0, strings, backslash: false, comments: false, unsure: None }
    }

    /// Set once the text could not be read to its end.
    pub fn unsure(&self) -> Option<Unsure> {
        self.unsure
    }

    /// A plain `'…'` so far held a backslash: the text reads otherwise under the other [`Strings`].
    pub fn backslash(&self) -> bool {
        self.backslash
    }

    /// There was a comment so far.
    pub fn comments(&self) -> bool {
        self.comments
    }

    /// Where reading goes on: the end of the last token.
    pub fn position(&self) -> usize {
        self.pos
    }

    fn peek(&self, ahead: usize) -> u8 {
        self.text.get(self.pos + ahead).copied().unwrap_or(0)
    }

    fn rest(&self) -> &'a [u8] {
        self.text.get(self.pos..).unwrap_or_default()
    }

    fn stop(&mut self, why: Unsure) -> Option<Kind> {
        self.unsure = Some(why);
        self.pos = self.text.len();
        None
    }

    /// Skips white space and comments. False at the end or where a comment does not close.
    fn skip_trivia(&mut self) -> bool {
        loop {
            let Some(&byte) = self.text.get(self.pos) else { return false };
            match byte {
                _ if class_of(byte) == SPACE => self.pos += 1,
                b'-' if self.peek(1) == b'-' => self.line_comment(),
                b'/' if self.peek(1) == b'*' => {
                    if !self.block_comment() {
                        self.stop(Unsure::UnterminatedComment);
                        return false;
                    }
                }
                _ => return true,
            }
        }
    }

    /// `--` runs to a line feed or a carriage return, which is left.
    fn line_comment(&mut self) {
        self.comments = true;
        self.pos += memchr2(b'\n', b'\r', self.rest()).unwrap_or(self.rest().len());
    }

    /// Block comments nest. False where it does not close.
    fn block_comment(&mut self) -> bool {
        self.comments = true;
        let mut depth = 0usize;
        loop {
            let Some(found) = memchr2(b'*', b'/', self.rest()) else { return false };
            self.pos += found;
            match (self.peek(0), self.peek(1)) {
                (b'/', b'*') => depth += 1,
                (b'*', b'/') => depth -= 1,
                _ => {
                    self.pos += 1;
                    continue;
                }
            }
            self.pos += 2;
            if depth == 0 {
                return true;
            }
        }
    }

    fn scan(&mut self) -> Option<Kind> {
        match class_of(self.peek(0)) {
            WORD => self.word(),
            DIGIT => self.number(),
            OPERATOR | ODD_OPERATOR => Some(self.operator()),
            SINGLE => self.punct(),
            DOT => match self.peek(1) {
                b'.' => self.advance(2, Kind::Pair),
                b'0'..=b'9' => self.number(),
                _ => self.punct(),
            },
            COLON => match self.peek(1) {
                b':' => self.advance(2, Kind::Cast),
                b'=' => self.advance(2, Kind::Pair),
                _ => self.punct(),
            },
            QUOTE => self.string(0, Kind::String),
            DOUBLE => self.quoted(0, Kind::Quoted),
            DOLLAR => self.dollar(),
            NUL => self.stop(Unsure::Nul),
            _ => self.advance(1, Kind::Other),
        }
    }

    fn advance(&mut self, bytes: usize, kind: Kind) -> Option<Kind> {
        self.pos += bytes;
        Some(kind)
    }

    fn punct(&mut self) -> Option<Kind> {
        self.advance(1, Kind::Punct)
    }

    fn word(&mut self) -> Option<Kind> {
        match (self.peek(0) | 0x20, self.peek(1), self.peek(2)) {
            (b'e', b'\'', _) => return self.string(1, Kind::Escaped),
            (b'n', b'\'', _) => return self.string(1, Kind::String),
            (b'b' | b'x', b'\'', _) => return self.string(1, Kind::Bits),
            (b'u', b'&', b'\'') => return self.string(2, Kind::UnicodeString),
            (b'u', b'&', b'"') => return self.quoted(2, Kind::UnicodeQuoted),
            _ => {}
        }
        let rest = self.rest();
        self.pos += rest.iter().position(|&b| !is_word_part(b)).unwrap_or(rest.len());
        Some(Kind::Word)
    }

    fn digits(&mut self) {
        while self.peek(0).is_ascii_digit() || (self.peek(0) == b'_' && self.peek(1).is_ascii_digit()) {
            self.pos += 1;
        }
    }

    /// Decimal, hexadecimal, octal and binary numbers with `_` between digits (16), fractions and exponents.
    fn number(&mut self) -> Option<Kind> {
        let based = match (self.peek(0), self.peek(1) | 0x20) {
            (b'0', b'x') => Some(u8::is_ascii_hexdigit as fn(&u8) -> bool),
            (b'0', b'o') => Some((|b| matches!(b, b'0'..=b'7')) as fn(&u8) -> bool),
            (b'0', b'b') => Some((|b| matches!(b, b'0' | b'1')) as fn(&u8) -> bool),
            _ => None,
        };
        if let Some(digit) = based {
            self.pos += 2;
            while digit(&self.peek(0)) || (self.peek(0) == b'_' && digit(&self.peek(1))) {
                self.pos += 1;
            }
        } else {
            self.digits();
            // `1..10` is a number and `..`
            if self.peek(0) == b'.' && self.peek(1) != b'.' {
                self.pos += 1;
                self.digits();
            }
            if self.peek(0) | 0x20 == b'e' {
                let sign = usize::from(matches!(self.peek(1), b'+' | b'-'));
                if self.peek(1 + sign).is_ascii_digit() {
                    self.pos += 1 + sign;
                    self.digits();
                }
            }
        }
        if class_of(self.peek(0)) == WORD {
            return self.stop(Unsure::JunkAfterNumber);
        }
        Some(Kind::Number)
    }

    /// The longest run of operator characters that holds no comment start; a trailing `+` or `-` stays only behind
    /// one of the characters that no SQL-standard operator has.
    fn operator(&mut self) -> Kind {
        let rest = self.rest();
        let mut end = 0;
        let mut odd = false;
        while let Some(&byte) = rest.get(end) {
            match class_of(byte) {
                ODD_OPERATOR => odd = true,
                OPERATOR => odd |= byte == b'%',
                _ => break,
            }
            let next = rest.get(end + 1);
            if end > 0 && ((byte == b'-' && next == Some(&b'-')) || (byte == b'/' && next == Some(&b'*'))) {
                break;
            }
            end += 1;
        }
        let run = rest.get(..end).unwrap_or_default();
        // `odd` may have come from the run alone, never from behind a comment start: the loop broke before it
        while end > 1 && !odd && matches!(run.get(end - 1), Some(b'+' | b'-')) {
            end -= 1;
        }
        self.pos += end.max(1);
        Kind::Operator
    }

    /// A string whose opening quote is `prefix` bytes ahead, with its continuations on later lines.
    fn string(&mut self, prefix: usize, kind: Kind) -> Option<Kind> {
        let escapes = kind == Kind::Escaped || (kind == Kind::String && self.strings == Strings::Escapes);
        let doubling = kind != Kind::Bits;
        self.pos += prefix + 1;
        loop {
            let found = match kind {
                Kind::String | Kind::Escaped => memchr2(b'\'', b'\\', self.rest()),
                _ => memchr(b'\'', self.rest()),
            };
            let Some(found) = found else { return self.stop(Unsure::UnterminatedQuote) };
            self.pos += found;
            if self.peek(0) == b'\\' {
                self.backslash |= kind == Kind::String;
                self.pos += if escapes { 2 } else { 1 };
            } else if doubling && self.peek(1) == b'\'' {
                self.pos += 2;
            } else {
                self.pos += 1;
                match self.continuation() {
                    Some(next) => self.pos = next,
                    None => return Some(kind),
                }
            }
        }
    }

    /// Behind a closing quote: where the string goes on, if white space with a line end and then a quote follow.
    /// Line comments count as white space there, block comments do not.
    fn continuation(&self) -> Option<usize> {
        let mut ahead = *self;
        let mut newline = false;
        loop {
            match ahead.text.get(ahead.pos)? {
                b'\n' | b'\r' => newline = true,
                b' ' | b'\t' | 0x0b | 0x0c => {}
                b'-' if ahead.peek(1) == b'-' => {
                    ahead.line_comment();
                    continue;
                }
                b'\'' if newline => return Some(ahead.pos + 1),
                _ => return None,
            }
            ahead.pos += 1;
        }
    }

    fn quoted(&mut self, prefix: usize, kind: Kind) -> Option<Kind> {
        self.pos += prefix + 1;
        loop {
            let Some(found) = memchr(b'"', self.rest()) else { return self.stop(Unsure::UnterminatedQuote) };
            self.pos += found + 1;
            if self.peek(0) != b'"' {
                return Some(kind);
            }
            self.pos += 1;
        }
    }

    /// `$1`, `$tag$…$tag$`, or a stray `$`.
    fn dollar(&mut self) -> Option<Kind> {
        if self.peek(1).is_ascii_digit() {
            self.pos += 1;
            while self.peek(0).is_ascii_digit() {
                self.pos += 1;
            }
            return match class_of(self.peek(0)) {
                WORD => self.stop(Unsure::JunkAfterNumber),
                _ => Some(Kind::Param),
            };
        }
        let mut tag = 1;
        while matches!(class_of(self.peek(tag)), WORD | DIGIT) {
            tag += 1;
        }
        if self.peek(tag) != b'$' {
            return self.advance(1, Kind::Other);
        }
        let rest = self.rest();
        let (delimiter, body) = rest.split_at((tag + 1).min(rest.len()));
        match memchr::memmem::find(body, delimiter) {
            Some(found) => self.advance(delimiter.len() + found + delimiter.len(), Kind::Dollar),
            None => self.stop(Unsure::UnterminatedQuote),
        }
    }
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        let before = self.pos;
        if !self.skip_trivia() {
            // the end of the last token stays readable as `position`
            if self.unsure.is_none() {
                self.pos = before;
            }
            return None;
        }
        let start = self.pos;
        let kind = self.scan()?;
        // a backslash as the last byte may have stepped over the end
        if self.pos > self.text.len() {
            self.stop(Unsure::UnterminatedQuote);
            return None;
        }
        Some(Token { kind, start, end: self.pos })
    }
}

/// The comments of a stretch of text that holds nothing else, each without its marks.
pub(super) fn comments(mut trivia: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let start = memchr2(b'-', b'/', trivia)?;
        let mut lexer = Lexer::new(trivia.get(start..)?, Strings::Standard);
        let (body, end) = match (lexer.peek(0), lexer.peek(1)) {
            (b'-', b'-') => {
                lexer.line_comment();
                (start + 2..start + lexer.pos, start + lexer.pos)
            }
            (b'/', b'*') if lexer.block_comment() => (start + 2..start + lexer.pos - 2, start + lexer.pos),
            _ => return None,
        };
        let comment = trivia.get(body)?;
        trivia = trivia.get(end..)?;
        Some(comment)
    })
}
