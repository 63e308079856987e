//! Bounds-checked readers of the bodies that pgweir looks into; all borrow, none copies.

use crate::error::Malformed;

/// Reads a message body from its start; every step fails rather than leave the body.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(body: &'a [u8]) -> Reader<'a> {
        Reader { rest: body }
    }

    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.rest.split_at_checked(n).ok_or(Malformed("insufficient data left in message"))?;
        self.rest = tail;
        Ok(head)
    }

    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.bytes(1)?[0])
    }

    pub fn i16(&mut self) -> Result<i16, Malformed> {
        let b = self.bytes(2)?;
        Ok(i16::from_be_bytes([b[0], b[1]]))
    }

    pub fn i32(&mut self) -> Result<i32, Malformed> {
        let b = self.bytes(4)?;
        Ok(i32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    /// A string ended by NUL, without it.
    pub fn cstr(&mut self) -> Result<&'a [u8], Malformed> {
        // As unnamed portals and statements are.
        if let Some((0, tail)) = self.rest.split_first() {
            self.rest = tail;
            return Ok(&[]);
        }
        let end = first_nul(self.rest).ok_or(Malformed("invalid string in message"))?;
        let s = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Ok(s)
    }

    /// A NUL-ended string that must be UTF-8.
    pub fn str(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.cstr()?).map_err(|_| Malformed("invalid string in message"))
    }
}

/// Where the first NUL stands. Most names and command tags are shorter than a call of memchr pays for.
fn first_nul(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const NEAR: usize = 16;
    let mut at = 0;
    while at < NEAR {
        let rest = bytes.get(at..)?;
        let Some(word) = rest.first_chunk() else { return Some(at + rest.iter().position(|byte| *byte == 0)?) };
        // Of eight bytes at once: 1 less, a NUL borrows into its top bit, and below the first one nothing is borrowed.
        let word = u64::from_le_bytes(*word);
        let nul = word.wrapping_sub(ONES) & !word & (ONES << 7);
        if nul != 0 {
            return Some(at + nul.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    Some(at + memchr::memchr(0, bytes.get(at..)?)?)
}

/// Parse: name, text, and the parameter types as they stand (count and OIDs).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parse<'a> {
    pub name: &'a [u8],
    pub text: &'a [u8],
    /// Int16 count, then Int32 each.
    pub types: &'a [u8],
}

/// Reads a Parse body whole; trailing bytes are malformed, as in Postgres (`pq_getmsgend`).
pub fn parse(body: &[u8]) -> Result<Parse<'_>, Malformed> {
    let mut r = Reader::new(body);
    let (name, text, types) = (r.cstr()?, r.cstr()?, r.rest());
    let count = r.i16()?;
    if count < 0 || r.rest().len() != count as usize * 4 {
        return Err(Malformed("invalid message format"));
    }
    Ok(Parse { name, text, types })
}

/// Bind's portal and statement names, from the start of its body; the body may be cut off behind them.
pub fn bind_names(body: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let mut r = Reader::new(body);
    Ok((r.cstr()?, r.cstr()?))
}

/// Describe and Close: `S` or `P`, and the name.
pub fn kind_and_name(body: &[u8]) -> Result<(u8, &[u8]), Malformed> {
    let mut r = Reader::new(body);
    let (kind, name) = (r.u8()?, r.cstr()?);
    if !r.is_empty() {
        return Err(Malformed("invalid message format"));
    }
    Ok((kind, name))
}

/// Execute's portal name.
pub fn execute_portal(body: &[u8]) -> Result<&[u8], Malformed> {
    let mut r = Reader::new(body);
    let portal = r.cstr()?;
    r.i32()?;
    if !r.is_empty() {
        return Err(Malformed("invalid message format"));
    }
    Ok(portal)
}

/// Query's text: the body up to its NUL, which must be its end.
pub fn query(body: &[u8]) -> Result<&[u8], Malformed> {
    match body.split_last() {
        Some((0, text)) if memchr::memchr(0, text).is_none() => Ok(text),
        _ => Err(Malformed("invalid message format")),
    }
}

/// NotificationResponse's process id and channel; the payload follows.
pub fn notification(body: &[u8]) -> Result<(i32, &[u8]), Malformed> {
    let mut r = Reader::new(body);
    Ok((r.i32()?, r.cstr()?))
}

/// Fields of an ErrorResponse or NoticeResponse that pgweir looks at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ErrorFields<'a> {
    /// The severity that is never translated (field V, or S of servers before 9.6).
    pub severity: &'a [u8],
    pub code: &'a [u8],
    pub message: &'a [u8],
    /// Empty where there is none.
    pub detail: &'a [u8],
    /// Empty where there is none.
    pub hint: &'a [u8],
    /// The function of Postgres's source that raised it; drivers rely on some. Empty where it is not told.
    pub routine: &'a [u8],
}

impl<'a> ErrorFields<'a> {
    pub fn read(body: &'a [u8]) -> Result<ErrorFields<'a>, Malformed> {
        let mut fields = ErrorFields::default();
        let mut r = Reader::new(body);
        loop {
            match r.u8()? {
                0 => return Ok(fields),
                b'V' => fields.severity = r.cstr()?,
                b'S' => {
                    let s = r.cstr()?;
                    if fields.severity.is_empty() {
                        fields.severity = s;
                    }
                }
                b'C' => fields.code = r.cstr()?,
                b'M' => fields.message = r.cstr()?,
                b'D' => fields.detail = r.cstr()?,
                b'H' => fields.hint = r.cstr()?,
                b'R' => fields.routine = r.cstr()?,
                _ => {
                    r.cstr()?;
                }
            }
        }
    }

    /// A prepared statement would give another result than it was described with.
    pub fn is_changed_result(&self) -> bool {
        self.code == b"0A000" && self.routine == b"RevalidateCachedQuery"
    }

    /// The server closes the connection behind this error.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity, b"FATAL" | b"PANIC")
    }

    pub fn code(&self) -> String {
        String::from_utf8_lossy(self.code).into_owned()
    }

    pub fn message(&self) -> String {
        String::from_utf8_lossy(self.message).into_owned()
    }
}

/// Rows that a CommandComplete tag counts: its last word where that is a number.
pub fn tag_rows(tag: &[u8]) -> u64 {
    let word = tag.rsplit(|&b| b == b' ').next().unwrap_or_default();
    word.iter().try_fold(0u64, |n, b| b.is_ascii_digit().then(|| n * 10 + u64::from(b - b'0'))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_well_formed_bodies() {
        assert_eq!(
            parse(b"s1\0select $1\0\0\x01\0\0\0\x17"),
            Ok(Parse { name: b"s1", text: b"select $1", types: b"\0\x01\0\0\0\x17" })
        );
        assert_eq!(bind_names(b"p\0s\0\0\0garbage"), Ok((&b"p"[..], &b"s"[..])));
        assert_eq!(kind_and_name(b"Ss1\0"), Ok((b'S', &b"s1"[..])));
        assert_eq!(query(b"select 1\0"), Ok(&b"select 1"[..]));
        assert_eq!(tag_rows(b"INSERT 0 12"), 12);
        assert_eq!(tag_rows(b"SELECT 3"), 3);
        assert_eq!(tag_rows(b"CREATE TABLE"), 0);
    }

    #[test]
    fn refuses_what_postgres_refuses() {
        assert!(parse(b"s1\0select 1").is_err());
        assert!(parse(b"s1\0select 1\0\0\x01").is_err());
        assert!(parse(b"s1\0select 1\0\0\0extra").is_err());
        assert!(query(b"select 1").is_err());
        assert!(query(b"select\x001\0").is_err());
        assert!(query(b"").is_err());
        assert!(kind_and_name(b"S").is_err());
    }

    #[test]
    fn reads_error_fields() {
        let e = ErrorFields::read(b"SFEHLER\0VERROR\0C42P01\0Mno such table\0\0").unwrap();
        assert_eq!((e.severity, e.code, e.message), (&b"ERROR"[..], &b"42P01"[..], &b"no such table"[..]));
        assert!(!e.is_fatal());
        assert!(ErrorFields::read(b"SERROR\0C42").is_err());
    }

    proptest! {
        #[test]
        fn the_first_nul_ends_a_string(body in proptest::collection::vec(prop_oneof![Just(0), Just(1), Just(0x80), any::<u8>()], 0..40)) {
            prop_assert_eq!(first_nul(&body), body.iter().position(|byte| *byte == 0));
            let full: Vec<u8> = body.iter().map(|byte| byte | 1).collect();
            prop_assert_eq!(first_nul(&full), None);
        }

        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = (parse(&body), bind_names(&body), kind_and_name(&body), execute_portal(&body), query(&body));
            let _ = ErrorFields::read(&body);
            tag_rows(&body);
        }
    }
}
