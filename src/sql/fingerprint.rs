//! What makes two texts the same statement, and what a comment around one says.
//!
//! The fingerprint is SipHash-1-3 over the tokens: white space, comments, a closing `;`, the case of unquoted words
//! and the values of literals are out; `IN (…)` and `ARRAY[…]` lists of constants count as one of any length, and
//! so do rows of VALUES that look alike.

use super::hash::Hasher;
use super::lex::{self, Kind, Lexer, Strings, Token};
use super::{Fingerprint, Hints, RouteHint};
use memchr::memmem;

/// The result of [`fingerprint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprinted {
    pub fingerprint: Fingerprint,
    /// What is known of another text of this fingerprint may not hold for this one: SET, set_config, a hint, a date
    /// word, a backslash in a plain string, or a text that cannot be read to its end.
    pub by_literal: bool,
    /// There is a comment in it.
    pub comments: bool,
}

/// The identity of a statement.
pub fn fingerprint(text: &str) -> Fingerprinted {
    let text = text.as_bytes();
    let mut folds = Folds::new(text, true);
    let mut hasher = Hasher::new();
    let mut by_literal = false;
    let mut separator = false;
    let mut first = true;
    while let Some(piece) = folds.next() {
        if let Piece::Token(token) = piece {
            if token.is(text, b';') {
                // a string may open and close with them
                separator = !first;
                continue;
            }
            by_literal |= (first || separator) && token.is_word(text, "set");
        }
        if std::mem::take(&mut separator) {
            hasher.write(b";\0");
        }
        first = false;
        feed(&mut hasher, piece, text);
    }
    let lexer = folds.lexer;
    if lexer.unsure().is_some() {
        hasher.write(text.get(folds.end..).unwrap_or_default());
    }
    by_literal |= folds.by_literal || lexer.unsure().is_some() || lexer.backslash();
    let comments = lexer.comments();
    by_literal |= comments && memmem::find(text, b"pgweir").is_some();
    Fingerprinted { fingerprint: Fingerprint(hasher.finish()), by_literal, comments }
}

/// A token whose value, not shape alone, decides what the statement does.
fn decides(token: Token, text: &[u8]) -> bool {
    let bytes = token.bytes(text);
    match token.kind {
        Kind::Word => bytes.len() == 10 && bytes.eq_ignore_ascii_case(b"set_config"),
        Kind::Quoted => bytes == b"\"set_config\"",
        Kind::String | Kind::Escaped | Kind::UnicodeString | Kind::Dollar => date_word(bytes),
        _ => false,
    }
}

/// Letters and digits of the longest text that Postgres reads as a date or time: `MAXDATELEN`, and a NUL for each of
/// `MAXDATEFIELDS` (`src/include/utils/datetime.h`). Blanks, and punctuation that is of no use, it skips without counting them.
const DATE_LENGTH: usize = 128 + 25;

/// True where a constant may mean another moment each time it is read (`'now'`, `'tomorrow 12:00'`). Takes quotes and
/// escapes as they come; errs towards true.
pub fn date_word(value: &[u8]) -> bool {
    // escapes and continuation lines could spell a word in pieces
    let pieces = || value.contains(&b'\\') || value.contains(&b'\n') || value.contains(&b'\r');
    may_be_date(value) && (pieces() || names_moment(value))
}

fn may_be_date(value: &[u8]) -> bool {
    value.len() <= DATE_LENGTH || value.iter().filter(|byte| byte.is_ascii_alphanumeric()).nth(DATE_LENGTH).is_none()
}

/// The same of a value that stands for itself, as a bound one does.
pub fn names_moment(value: &[u8]) -> bool {
    value.windows(3).enumerate().any(|(at, start)| match [start[0] | 0x20, start[1] | 0x20, start[2] | 0x20] {
        [b'n', b'o', b'w'] => is_word(value, at, b"now"),
        [b't', b'o', b'd'] => is_word(value, at, b"today"),
        [b't', b'o', b'm'] => is_word(value, at, b"tomorrow"),
        [b'y', b'e', b's'] => is_word(value, at, b"yesterday"),
        _ => false,
    }) && may_be_date(value)
}

/// A field of letters ends where there is no further one (`ParseDateTime` in `src/backend/utils/adt/datetime.c`).
fn is_word(value: &[u8], at: usize, word: &[u8]) -> bool {
    let (before, found) = value.split_at(at);
    let apart = |byte: Option<&u8>| !byte.is_some_and(u8::is_ascii_alphabetic);
    let is_it = found.get(..word.len()).is_some_and(|found| found.eq_ignore_ascii_case(word));
    is_it && apart(before.last()) && apart(found.get(word.len()))
}

/// A readable text of the statement without its constants, as pg_stat_statements shows it: `$n` for each (counted on
/// from the highest parameter), comments out, white space to one blank. A text that ends inside a quote is cut
/// before it, so that nothing of a constant can show.
pub fn normalize(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut next = highest_parameter(bytes) + 1;
    let mut out = String::with_capacity(text.len().min(4096));
    let mut folds = Folds::new(bytes, true);
    let mut end = 0;
    let mut separators = 0;
    while let Some(piece) = folds.next() {
        let (start, shown) = match piece {
            Piece::Token(token) if token.is(bytes, b';') => {
                separators += usize::from(!out.is_empty());
                end = token.end;
                continue;
            }
            Piece::Token(token) | Piece::List { first: token, .. } => (token.start, token),
            Piece::MoreRows => {
                out.push_str(", ...");
                end = folds.end;
                continue;
            }
        };
        if std::mem::take(&mut separators) > 0 {
            out.push_str("; ");
        } else if start > end && !out.is_empty() {
            out.push(' ');
        }
        if shown.kind.is_literal() {
            out.push_str(&format!("${next}"));
            next += 1;
        } else {
            out.push_str(text.get(shown.start..shown.end).unwrap_or("?"));
        }
        if let Piece::List { many: true, .. } = piece {
            out.push_str(", ...");
        }
        end = folds.end;
    }
    if folds.lexer.unsure().is_some() {
        out.push_str(" ...");
    }
    out
}

fn highest_parameter(text: &[u8]) -> u64 {
    let params = Lexer::new(text, Strings::Standard).filter(|token| token.kind == Kind::Param);
    params
        .filter_map(|token| std::str::from_utf8(token.bytes(text).get(1..)?).ok()?.parse::<u32>().ok())
        .max()
        .map_or(0, u64::from)
}

/// What the leading and trailing comments ask for. Where two disagree on the route, the primary wins.
pub fn hints(text: &str) -> Hints {
    let mut hints = Hints::default();
    // cheap, and nearly always the end of it
    if memmem::find(text.as_bytes(), b"pgweir").is_none() {
        return hints;
    }
    for comment in outer_comments(text.as_bytes()) {
        let Ok(comment) = std::str::from_utf8(comment) else { continue };
        let Some(wishes) = comment.trim().strip_prefix("pgweir:") else { continue };
        for wish in wishes.split([',', ';']) {
            let words: Vec<&str> = wish.split_whitespace().collect();
            match words.as_slice() {
                ["primary"] => hints.route = Some(RouteHint::Primary),
                ["replica"] => hints.route = hints.route.or(Some(RouteHint::Replica)),
                ["nocache"] => hints.no_cache = true,
                ["cache", ttl] => {
                    hints.cache_ttl_ms = ttl.strip_prefix("ttl=").and_then(milliseconds).or(hints.cache_ttl_ms);
                }
                _ => {}
            }
        }
    }
    hints
}

/// `250ms`, `5s`, `2min` or `2m`, `1h`.
fn milliseconds(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// The W3C trace context of a sqlcommenter comment, before or behind the statement: 55 characters
/// `00-<trace>-<span>-<flags>`. <https://google.github.io/sqlcommenter/spec/>
pub fn traceparent(text: &str) -> Option<&str> {
    memmem::find(text.as_bytes(), b"traceparent")?;
    outer_comments(text.as_bytes()).find_map(|comment| {
        let comment = std::str::from_utf8(comment).ok()?;
        let (_, value) = comment.split_once("traceparent=")?;
        let value = value.strip_prefix('\'').unwrap_or(value);
        let value = value.get(..55)?;
        let shape = |(at, byte): (usize, u8)| match at {
            2 | 35 | 52 => byte == b'-',
            _ => byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase(),
        };
        value.bytes().enumerate().all(shape).then_some(value)
    })
}

/// The comments before the first token and behind the last one (or before a closing `;`).
fn outer_comments(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut lexer = Lexer::new(text, Strings::Standard);
    let mut first = None;
    let mut last = 0;
    for token in lexer.by_ref().filter(|token| !token.is(text, b';')) {
        first.get_or_insert(token.start);
        last = token.end;
    }
    let leading = text.get(..first.unwrap_or(0)).unwrap_or_default();
    let trailing = if lexer.unsure().is_none() { text.get(last..).unwrap_or_default() } else { &[] };
    lex::comments(leading).chain(lex::comments(trailing))
}

/// A token, or what stands for many.
#[derive(Clone, Copy)]
enum Piece {
    Token(Token),
    /// The inside of a list of constants.
    List {
        first: Token,
        many: bool,
    },
    /// Rows of VALUES that look like the one before.
    MoreRows,
}

/// The pieces of a text with its lists folded.
struct Folds<'a> {
    text: &'a [u8],
    lexer: Lexer<'a>,
    /// The end of the last piece.
    end: usize,
    before: Option<Token>,
    depth: usize,
    /// The shape of the row that is open or just closed, and the depth around it.
    row: Option<(usize, u64)>,
    fold_rows: bool,
    /// A token so far, of a folded list or row too, [`decides`].
    by_literal: bool,
}

/// Rows deeper than this are not folded: each level reads its rows once more.
const ROW_DEPTH: usize = 4;

impl<'a> Folds<'a> {
    fn new(text: &'a [u8], fold_rows: bool) -> Self {
        let lexer = Lexer::new(text, Strings::Standard);
        Self { text, lexer, end: 0, before: None, depth: 0, row: None, fold_rows, by_literal: false }
    }

    fn next(&mut self) -> Option<Piece> {
        if let Some(piece) = self.before.and_then(|before| self.fold_after(before)) {
            self.before = None;
            self.end = self.lexer.position();
            return Some(piece);
        }
        let token = self.lexer.next()?;
        let text = self.text;
        self.by_literal |= decides(token, text);
        let opens_list = match token.kind {
            Kind::Punct => match text.get(token.start) {
                Some(b'(') => {
                    self.depth += 1;
                    self.before.is_some_and(|word| word.is_word(text, "in"))
                }
                Some(b'[') => self.before.is_some_and(|word| word.is_word(text, "array")),
                Some(b')') => {
                    self.depth = self.depth.saturating_sub(1);
                    self.row.is_some_and(|(depth, _)| depth == self.depth)
                }
                _ => false,
            },
            Kind::Word if self.fold_rows && self.depth <= ROW_DEPTH && token.is_word(text, "values") => {
                self.row = self.row_shape(self.lexer).map(|(shape, _)| (self.depth, shape));
                false
            }
            _ => false,
        };
        // what the next call looks at: the word before a bracket, or a bracket behind which something may fold
        self.before = (opens_list || token.kind == Kind::Word).then_some(token);
        self.end = token.end;
        Some(Piece::Token(token))
    }

    fn fold_after(&mut self, before: Token) -> Option<Piece> {
        match self.text.get(before.start) {
            Some(b'(') => self.constants(b')'),
            Some(b'[') => self.constants(b']'),
            Some(b')') => self.rows(),
            _ => None,
        }
    }

    /// Constants and commas up to `close`, which stays.
    fn constants(&mut self, close: u8) -> Option<Piece> {
        let mut ahead = self.lexer;
        let mut first = None;
        let mut many = false;
        loop {
            let mut token = ahead.next()?;
            if token.kind == Kind::Operator && matches!(token.bytes(self.text), b"-" | b"+") {
                token = ahead.next()?;
            }
            let constant = token.kind.is_literal() || token.kind == Kind::Param;
            let word = ["null", "true", "false"].iter().any(|word| token.is_word(self.text, word));
            if !(constant || word) {
                return None;
            }
            self.by_literal |= decides(token, self.text);
            first.get_or_insert(token);
            let here = ahead;
            let token = ahead.next()?;
            if token.is(self.text, close) {
                self.lexer = here;
                return Some(Piece::List { first: first?, many });
            }
            if !token.is(self.text, b',') {
                return None;
            }
            many = true;
        }
    }

    /// Skips the rows that follow and have the shape of the one just closed.
    fn rows(&mut self) -> Option<Piece> {
        let (depth, shape) = self.row?;
        let mut folded = false;
        loop {
            let mut ahead = self.lexer;
            if !ahead.next().is_some_and(|token| token.is(self.text, b',')) {
                self.row = None;
                break;
            }
            match self.row_shape(ahead) {
                Some((found, behind)) if found == shape => self.lexer = behind,
                other => {
                    self.row = other.map(|(found, _)| (depth, found));
                    break;
                }
            }
            folded = true;
        }
        folded.then_some(Piece::MoreRows)
    }

    /// The hash of a bracketed row and the place behind it.
    fn row_shape(&mut self, lexer: Lexer<'a>) -> Option<(u64, Lexer<'a>)> {
        let mut inner = Folds { lexer, before: None, depth: 0, row: None, fold_rows: false, ..*self };
        let mut hasher = Hasher::new();
        loop {
            let piece = inner.next()?;
            feed(&mut hasher, piece, self.text);
            match piece {
                Piece::Token(token) if inner.depth == 0 => {
                    self.by_literal |= inner.by_literal;
                    return token.is(self.text, b')').then(|| (hasher.finish(), inner.lexer));
                }
                _ => {}
            }
        }
    }
}

/// Every piece ends in a NUL, which no text holds, so that no two sequences of pieces give the same bytes.
fn feed(hasher: &mut Hasher, piece: Piece, text: &[u8]) {
    match piece {
        Piece::Token(token) if token.kind == Kind::Param || token.kind.is_literal() => hasher.byte(b'$'),
        Piece::Token(token) if token.kind == Kind::Word => hasher.write_folded(token.bytes(text)),
        Piece::Token(token) => hasher.write(token.bytes(text)),
        Piece::List { .. } => hasher.write(b"$,"),
        Piece::MoreRows => return,
    }
    hasher.byte(0);
}
