//! What a batch of a client's messages asks for, where it asks for one read and nothing else.

use crate::cache::entry::{Needs, Part};
use crate::cache::key::Formats;
use crate::error::Malformed;
use crate::sql::fingerprint::names_moment;
use crate::wire::tag::frontend;
use crate::wire::{read, scan};

/// Replies of one batch.
const MOST_PARTS: usize = 8;

/// Where the statement's text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    Query(&'a [u8]),
    Parse(read::Parse<'a>),
    /// In a statement of this name, parsed earlier.
    Name(&'a [u8]),
}

/// One read, asked for by a simple Query, or by one Bind and one Execute up to a Sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    pub source: Source<'a>,
    /// As in the Bind: formats and values.
    pub parameters: &'a [u8],
    pub formats: Formats<'a>,
    /// One of the values may be read as a moment that moves (`now`).
    pub moves: bool,
    /// The statement that a Close behind the Execute names.
    pub closes: Option<&'a [u8]>,
    pub needs: Needs,
    parts: [Part; MOST_PARTS],
    len: usize,
}

impl<'a> Request<'a> {
    /// Reads the messages of a whole batch; `None` where they ask for anything else, or in an order of which the server
    /// is to judge.
    pub fn read(batch: &'a [u8]) -> Option<Request<'a>> {
        let (head, body) = scan::frame(batch).ok()??;
        if head.tag == frontend::QUERY {
            let text = read::query(body).ok().filter(|_| head.total == batch.len())?;
            let mut request = Request::new(Source::Query(text));
            [Part::Rows, Part::Result, Part::Ready].into_iter().try_for_each(|part| request.push(part))?;
            request.needs.rows = true;
            return Some(request);
        }
        Extended::read(batch)
    }

    fn new(source: Source<'a>) -> Request<'a> {
        Request {
            source,
            parameters: &[],
            formats: Formats::Text,
            moves: false,
            closes: None,
            needs: Needs::default(),
            parts: [Part::Ready; MOST_PARTS],
            len: 0,
        }
    }

    /// What the reply is made of, in its order.
    pub fn parts(&self) -> &[Part] {
        &self.parts[..self.len]
    }

    /// Which descriptions its reply has.
    pub fn brings(&self) -> Needs {
        Needs { limit: 0, ..self.needs }
    }

    fn push(&mut self, part: Part) -> Option<()> {
        *self.parts.get_mut(self.len)? = part;
        self.len += 1;
        Some(())
    }
}

/// What tells a batch from others of its statement, whatever names the client has given: the text, and what is bound. `None`:
/// nothing is run, or it cannot be read.
pub fn gist(batch: &[u8]) -> Option<(&[u8], &[u8])> {
    let (mut text, mut rest) = (&[][..], batch);
    loop {
        let (head, body) = scan::frame(rest).ok()??;
        match head.tag {
            frontend::QUERY => return Some((body, &[])),
            frontend::PARSE => text = read::parse(body).ok()?.text,
            frontend::BIND => {
                let (portal, name) = read::bind_names(body).ok()?;
                return Some((text, &body[portal.len() + name.len() + 2..]));
            }
            _ => {}
        }
        rest = &rest[head.total..];
    }
}

/// Messages of the extended protocol, as far as they have been read.
struct Extended<'a> {
    request: Request<'a>,
    parsed: bool,
    described: Option<&'a [u8]>,
    portal: Option<&'a [u8]>,
    executed: bool,
}

impl<'a> Extended<'a> {
    fn read(batch: &'a [u8]) -> Option<Request<'a>> {
        let mut extended = Extended {
            request: Request::new(Source::Name(b"")),
            parsed: false,
            described: None,
            portal: None,
            executed: false,
        };
        let mut rest = batch;
        loop {
            let (head, body) = scan::frame(rest).ok()??;
            rest = &rest[head.total..];
            if head.tag == frontend::SYNC {
                extended.request.push(Part::Ready)?;
                return Some(extended.request).filter(|_| rest.is_empty() && extended.executed);
            }
            extended.message(head.tag, body)?;
        }
    }

    /// The name of the statement that is bound or parsed.
    fn name(&self) -> &'a [u8] {
        match self.request.source {
            Source::Parse(parse) => parse.name,
            Source::Name(name) | Source::Query(name) => name,
        }
    }

    fn message(&mut self, tag: u8, body: &'a [u8]) -> Option<()> {
        match (tag, self.portal, self.executed) {
            (frontend::PARSE, None, _) if !self.parsed && self.described.is_none() => {
                self.request.source = Source::Parse(read::parse(body).ok()?);
                self.parsed = true;
                self.request.push(Part::ParseComplete)
            }
            (frontend::BIND, None, _) => self.bind(body),
            (frontend::DESCRIBE, portal, false) => match (read::kind_and_name(body).ok()?, portal) {
                ((b'S', name), _) => {
                    let bound = self.parsed || portal.is_some();
                    if self.described.is_some() || (bound && name != self.name()) {
                        return None;
                    }
                    self.described = Some(name);
                    (self.request.needs.parameters, self.request.needs.rows) = (true, true);
                    self.request.push(Part::Statement)
                }
                ((b'P', name), Some(portal)) if name == portal => {
                    self.request.needs.rows = true;
                    self.request.push(Part::Rows)
                }
                _ => None,
            },
            (frontend::EXECUTE, Some(portal), false) => {
                let name = read::execute_portal(body).ok().filter(|name| *name == portal)?;
                let limit = read::Reader::new(&body[name.len() + 1..]).i32().ok()?;
                // None, or less than none, is no limit (`exec_execute_message`).
                self.request.needs.limit = limit.max(0) as u32;
                self.executed = true;
                self.request.push(Part::Result)
            }
            (frontend::CLOSE, Some(portal), true) => match read::kind_and_name(body).ok()? {
                (b'S', name) if self.request.closes.is_none() => {
                    self.request.closes = Some(name);
                    self.request.push(Part::CloseComplete)
                }
                (b'P', name) if name == portal => self.request.push(Part::CloseComplete),
                _ => None,
            },
            _ => None,
        }
    }

    fn bind(&mut self, body: &'a [u8]) -> Option<()> {
        let (portal, name) = read::bind_names(body).ok()?;
        if self.parsed && name != self.name() || self.described.is_some_and(|described| described != name) {
            return None;
        }
        let bound = &body[portal.len() + name.len() + 2..];
        let (parameters, moves) = parameters(bound).ok()?;
        let mut r = read::Reader::new(&bound[parameters.len()..]);
        let count = r.i16().ok()? as u16;
        let codes = r.rest();
        if codes.len() != 2 * usize::from(count) {
            return None;
        }
        if !self.parsed {
            self.request.source = Source::Name(name);
        }
        self.request.parameters = parameters;
        self.request.formats = Formats::read(codes);
        self.request.moves = moves;
        self.portal = Some(portal);
        self.request.push(Part::BindComplete)
    }
}

/// The part of a Bind that says the parameters, and whether one of them may name a moment that moves.
fn parameters(bound: &[u8]) -> Result<(&[u8], bool), Malformed> {
    let mut r = read::Reader::new(bound);
    let formats = usize::from(r.i16()? as u16);
    r.bytes(2 * formats)?;
    let mut moves = false;
    for _ in 0..r.i16()? as u16 {
        // Negative is NULL.
        if let Ok(length) = usize::try_from(r.i32()?) {
            moves |= names_moment(r.bytes(length)?);
        }
    }
    Ok((&bound[..bound.len() - r.rest().len()], moves))
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};
    use proptest::prelude::*;

    use super::*;
    use crate::wire::write;

    fn parse(name: &str, text: &str) -> Vec<u8> {
        let mut out = BytesMut::new();
        write::parse(&mut out, name.as_bytes(), text.as_bytes(), &[0, 0]);
        out.to_vec()
    }

    fn bind(portal: &str, name: &str, values: &[&str], formats: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        write::frame(&mut out, frontend::BIND, |out| {
            out.put_slice(format!("{portal}\0{name}\0\0\0").as_bytes());
            out.put_i16(values.len() as i16);
            for value in values {
                out.put_i32(value.len() as i32);
                out.put_slice(value.as_bytes());
            }
            out.put_i16(formats.len() as i16);
            formats.iter().for_each(|format| out.put_i16(i16::from(*format)));
        });
        out.to_vec()
    }

    fn named(tag: u8, kind: u8, name: &str) -> Vec<u8> {
        let mut out = BytesMut::new();
        write::frame(&mut out, tag, |out| out.put_slice(format!("{}{name}\0", kind as char).as_bytes()));
        out.to_vec()
    }

    fn execute(portal: &str, limit: i32) -> Vec<u8> {
        let mut out = BytesMut::new();
        write::frame(&mut out, frontend::EXECUTE, |out| {
            out.put_slice(format!("{portal}\0").as_bytes());
            out.put_i32(limit);
        });
        out.to_vec()
    }

    const SYNC: &[u8] = b"S\0\0\0\x04";
    const FLUSH: &[u8] = b"H\0\0\0\x04";
    const D: u8 = frontend::DESCRIBE;
    const C: u8 = frontend::CLOSE;

    fn query(text: &str) -> Vec<u8> {
        let mut out = BytesMut::new();
        write::query(&mut out, text);
        out.to_vec()
    }

    #[test]
    fn reads_a_query() {
        let batch = query("select 1");
        let request = Request::read(&batch).unwrap();
        assert_eq!(request.source, Source::Query(b"select 1"));
        assert_eq!(request.parts(), [Part::Rows, Part::Result, Part::Ready]);
        assert_eq!(request.needs, Needs { rows: true, ..Needs::default() });
    }

    #[test]
    fn reads_one_execution_with_all_that_may_stand_around_it() {
        let batch = [
            parse("s", "select $1"),
            named(D, b'S', "s"),
            bind("p", "s", &["7"], &[1]),
            named(D, b'P', "p"),
            execute("p", 5),
            named(C, b'P', "p"),
            named(C, b'S', "s"),
            SYNC.to_vec(),
        ];
        let batch = batch.concat();
        let request = Request::read(&batch).unwrap();
        let Source::Parse(parsed) = request.source else { panic!() };
        assert_eq!((parsed.name, parsed.text), (&b"s"[..], &b"select $1"[..]));
        assert_eq!((request.parameters, request.formats), (&b"\0\0\0\x01\0\0\0\x017"[..], Formats::Binary));
        assert_eq!(request.needs, Needs { parameters: true, rows: true, limit: 5 });
        assert_eq!((request.closes, request.moves), (Some(&b"s"[..]), false));
        let parts = [
            Part::ParseComplete,
            Part::Statement,
            Part::BindComplete,
            Part::Rows,
            Part::Result,
            Part::CloseComplete,
            Part::CloseComplete,
            Part::Ready,
        ];
        assert_eq!(request.parts(), parts);
    }

    #[test]
    fn reads_the_execution_of_a_known_name() {
        let batch = [bind("", "s", &[], &[]), execute("", -1), SYNC.to_vec()].concat();
        let request = Request::read(&batch).unwrap();
        assert_eq!((request.source, request.needs), (Source::Name(b"s"), Needs::default()));
        assert_eq!(request.parts(), [Part::BindComplete, Part::Result, Part::Ready]);
        let moving = [bind("", "s", &["7", " NOW "], &[]), execute("", 0), SYNC.to_vec()].concat();
        assert!(Request::read(&moving).unwrap().moves);
    }

    #[test]
    fn anything_else_is_left_to_the_server() {
        let (p, b, e) = (parse("", "select 1"), bind("", "", &[], &[]), execute("", 0));
        let (s, f) = (SYNC.to_vec(), FLUSH.to_vec());
        let bad_bind = |cut: usize| {
            let mut frame = bind("", "", &["a"], &[0, 1]);
            frame.truncate(frame.len() - cut);
            let length = (frame.len() - 1) as u32;
            frame[1..5].copy_from_slice(&length.to_be_bytes());
            frame
        };
        let cases: Vec<Vec<Vec<u8>>> = vec![
            vec![query("select 1"), query("select 1")],
            vec![query("select 1"), s.clone()],
            vec![s.clone()],
            vec![p.clone(), s.clone()],
            vec![p.clone(), b.clone(), s.clone()],
            vec![p.clone(), b.clone(), e.clone()],
            vec![p.clone(), b.clone(), e.clone(), f.clone()],
            vec![p.clone(), b.clone(), f, e.clone(), s.clone()],
            vec![p.clone(), b.clone(), e.clone(), e.clone(), s.clone()],
            vec![p.clone(), b.clone(), e.clone(), s.clone(), s.clone()],
            vec![p.clone(), p.clone(), b.clone(), e.clone(), s.clone()],
            vec![b.clone(), p.clone(), e.clone(), s.clone()],
            vec![p.clone(), bind("", "other", &[], &[]), e.clone(), s.clone()],
            vec![p.clone(), b.clone(), execute("other", 0), s.clone()],
            vec![p.clone(), named(D, b'S', "other"), b.clone(), e.clone(), s.clone()],
            vec![named(D, b'S', "other"), b.clone(), e.clone(), s.clone()],
            vec![named(D, b'S', ""), p.clone(), b.clone(), e.clone(), s.clone()],
            vec![p.clone(), named(D, b'P', ""), b.clone(), e.clone(), s.clone()],
            vec![named(C, b'S', ""), b.clone(), e.clone(), s.clone()],
            vec![p.clone(), b.clone(), named(C, b'P', ""), e.clone(), s.clone()],
            vec![p.clone(), b.clone(), e.clone(), named(C, b'P', "other"), s.clone()],
            vec![p.clone(), bad_bind(1), e.clone(), s.clone()],
            vec![p.clone(), bad_bind(2), e.clone(), s.clone()],
            vec![p.clone(), bad_bind(9), e.clone(), s.clone()],
            vec![p, b, e, b"E\0\0\0\x04".to_vec(), s],
        ];
        for (n, case) in cases.into_iter().enumerate() {
            assert_eq!(Request::read(&case.concat()), None, "{n}");
        }
    }

    #[test]
    fn the_gist_of_a_batch_is_what_it_says_beside_names() {
        let bound = |name: &str, value: &str| {
            let describe = named(D, b'P', "");
            [bind("", name, &[value], &[1]), describe, execute("", 0), SYNC.to_vec()].concat()
        };
        let parsed = |text: &str| [parse("", text), bound("", "7")].concat();
        assert!(gist(&bound("s", "7")).is_some());
        assert_eq!(gist(&bound("s", "7")), gist(&bound("other", "7")));
        assert_ne!(gist(&bound("s", "7")), gist(&bound("s", "8")));
        assert_ne!(gist(&parsed("select 1")), gist(&parsed("select 2")));
        assert_ne!(gist(&query("select 1")), gist(&query("select 2")));
        assert_eq!(gist(&[parse("", "select 1"), SYNC.to_vec()].concat()), None);
    }

    proptest! {
        #[test]
        fn no_batch_panics(order in prop::collection::vec(0usize..7, 0..9), cut in 0usize..200) {
            let messages = [
                parse("", "select 1"),
                bind("", "", &["a"], &[1]),
                named(D, b'S', ""),
                named(D, b'P', ""),
                execute("", 1),
                named(C, b'S', ""),
                SYNC.to_vec(),
            ];
            let batch: Vec<u8> = order.iter().flat_map(|n| messages[*n].clone()).collect();
            let whole = Request::read(&batch);
            gist(&batch[..cut.min(batch.len())]);
            // Cut short, it is never taken for another request.
            let cut = &batch[..cut.min(batch.len())];
            prop_assert!(cut.len() == batch.len() || Request::read(cut).is_none() || whole.is_none());
        }
    }
}
