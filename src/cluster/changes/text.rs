//! The output of test_decoding: a line of text for each message, of which only the head is looked at.

use std::borrow::Cow;

use crate::cluster::changes::Relation;
use crate::cluster::changes::stream::Message;
use crate::error::Malformed;
use crate::sql::Name;

/// Reads messages; remembers the last relation, as changes of one relation mostly come in runs.
#[derive(Debug, Default)]
pub struct Reader {
    /// The head of the last change, up to and with the colon behind the relations.
    last: Vec<u8>,
}

impl Reader {
    /// One message, of which `line` is the beginning at least.
    ///
    /// # Errors
    /// It is none that test_decoding writes, or what is there of it ends within its relations.
    pub fn read(&mut self, line: &[u8]) -> Result<Message, Malformed> {
        if let Some(list) = line.strip_prefix(b"table ") {
            if !self.last.is_empty() && line.starts_with(&self.last) {
                return Ok(Message::SameAgain);
            }
            let (relations, length) = relations(list)?;
            self.last = line[..b"table ".len() + length].to_vec();
            return Ok(Message::Change(relations));
        }
        let (word, rest) = line.split_at(line.iter().position(|b| *b == b' ').unwrap_or(line.len()));
        match word {
            b"BEGIN" => {
                self.last.clear();
                let xid = std::str::from_utf8(rest).ok().and_then(|xid| xid.trim().parse().ok());
                Ok(Message::Begin { xid: xid.ok_or(Malformed("a BEGIN without its transaction"))? })
            }
            b"COMMIT" => Ok(Message::Commit),
            b"message:" => Ok(Message::Other),
            _ => Err(Malformed("unknown output of test_decoding")),
        }
    }
}

/// `schema.name[, schema.name…]:` as a list, with its length.
fn relations(list: &[u8]) -> Result<(Vec<Relation>, usize), Malformed> {
    let (mut relations, mut at) = (Vec::new(), 0);
    loop {
        let (schema, next) = identifier(list, at)?;
        expect(list, next, b".")?;
        let (name, next) = identifier(list, next + 1)?;
        relations.push(Relation::Named(Name { schema: Some(schema), name }));
        if list[next..].starts_with(b", ") {
            at = next + 2;
            continue;
        }
        expect(list, next, b":")?;
        return Ok((relations, next + 1));
    }
}

fn expect(list: &[u8], at: usize, what: &[u8]) -> Result<(), Malformed> {
    if list[at..].starts_with(what) { Ok(()) } else { Err(Malformed("a relation's name in the change stream")) }
}

/// An identifier as `quote_identifier` writes it, and where it ends.
fn identifier(list: &[u8], at: usize) -> Result<(String, usize), Malformed> {
    const CUT: Malformed = Malformed("a relation's name in the change stream");
    let text = |bytes: &[u8]| match String::from_utf8_lossy(bytes) {
        Cow::Borrowed(text) => text.to_owned(),
        Cow::Owned(text) => text,
    };
    if list.get(at) != Some(&b'"') {
        let length = list[at..].iter().position(|b| !(b.is_ascii_alphanumeric() || *b == b'_')).ok_or(CUT)?;
        return if length == 0 { Err(CUT) } else { Ok((text(&list[at..at + length]), at + length)) };
    }
    let (mut name, mut at) = (Vec::new(), at + 1);
    loop {
        match (list.get(at), list.get(at + 1)) {
            (Some(b'"'), Some(b'"')) => {
                name.push(b'"');
                at += 2;
            }
            (Some(b'"'), Some(_)) => return Ok((text(&name), at + 1)),
            (Some(byte), Some(_)) => {
                name.push(*byte);
                at += 1;
            }
            _ => return Err(CUT),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(names: &[(&str, &str)]) -> Message {
        let named = |(schema, name): &(&str, &str)| {
            Relation::Named(Name { schema: Some((*schema).into()), name: (*name).into() })
        };
        Message::Change(names.iter().map(named).collect())
    }

    #[test]
    fn reads_what_test_decoding_writes() {
        let mut reader = Reader::default();
        let mut read = |line: &str| reader.read(line.as_bytes());
        assert_eq!(read("BEGIN 4294967295"), Ok(Message::Begin { xid: u32::MAX }));
        assert_eq!(read("table public.t: INSERT: id[integer]:1"), Ok(change(&[("public", "t")])));
        assert_eq!(read("table public.t: UPDATE: id[integer]:1"), Ok(Message::SameAgain));
        assert_eq!(read("table public.tt: DELETE: (no-tuple-data)"), Ok(change(&[("public", "tt")])));
        assert_eq!(
            read("table public.t, \"O\"\"dd: INSERT:\".\"a.b, c\": TRUNCATE: (no-flags)"),
            Ok(change(&[("public", "t"), ("O\"dd: INSERT:", "a.b, c")]))
        );
        assert_eq!(read("message: transactional: 1 prefix: x, sz: 1 content:y"), Ok(Message::Other));
        assert_eq!(read("COMMIT 4294967295"), Ok(Message::Commit));
    }

    #[test]
    fn a_run_ends_with_its_transaction() {
        let mut reader = Reader::default();
        let line = b"table public.t: INSERT: id[integer]:1";
        assert_eq!(reader.read(line), Ok(change(&[("public", "t")])));
        assert_eq!(reader.read(b"BEGIN 1"), Ok(Message::Begin { xid: 1 }));
        assert_eq!(reader.read(line), Ok(change(&[("public", "t")])));
    }

    #[test]
    fn what_cannot_be_read_is_an_error_wherever_it_is_cut() {
        let line = b"table \"a\"\"b\".c, d.e:";
        for end in 0..line.len() {
            assert!(Reader::default().read(&line[..end]).is_err(), "{end}");
        }
        for line in ["", "BEGIN", "BEGIN x", "ROLLBACK 1", "table .a: x", "table a..b: x", "table a.b", "table \"\""] {
            assert!(Reader::default().read(line.as_bytes()).is_err(), "{line}");
        }
    }
}
