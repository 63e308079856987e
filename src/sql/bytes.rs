//! What each byte can begin, for the lexer: one look-up in a table.

pub(super) const SPACE: u8 = 0;
pub(super) const WORD: u8 = 1;
pub(super) const DIGIT: u8 = 2;
pub(super) const OPERATOR: u8 = 3;
/// Operator characters after which an operator may end in `+` or `-`.
pub(super) const ODD_OPERATOR: u8 = 4;
pub(super) const SINGLE: u8 = 5;
pub(super) const DOT: u8 = 6;
pub(super) const COLON: u8 = 7;
pub(super) const QUOTE: u8 = 8;
pub(super) const DOUBLE: u8 = 9;
pub(super) const DOLLAR: u8 = 10;
pub(super) const NUL: u8 = 11;
pub(super) const OTHER: u8 = 12;

const fn class(byte: u8) -> u8 {
    match byte {
        b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => SPACE,
        b'A'..=b'Z' | b'a'..=b'z' | b'_' | 0x80..=0xff => WORD,
        b'0'..=b'9' => DIGIT,
        b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' => ODD_OPERATOR,
        b'+' | b'-' | b'*' | b'/' | b'%' | b'<' | b'>' | b'=' => OPERATOR,
        b',' | b'(' | b')' | b'[' | b']' | b';' => SINGLE,
        b'.' => DOT,
        b':' => COLON,
        b'\'' => QUOTE,
        b'"' => DOUBLE,
        b'$' => DOLLAR,
        0 => NUL,
        _ => OTHER,
    }
}

static CLASS: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = class(byte as u8);
        byte += 1;
    }
    table
};

pub(super) fn class_of(byte: u8) -> u8 {
    CLASS[usize::from(byte)]
}

pub(super) fn is_word_part(byte: u8) -> bool {
    matches!(class_of(byte), WORD | DIGIT | DOLLAR)
}
