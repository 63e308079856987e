//! One complete result, and the replies that can be made of it.

use bytes::{BufMut, BytesMut};

use crate::cache::key::Formats;
use crate::error::Malformed;
use crate::wire::read::Reader;
use crate::wire::tag::backend;
use crate::wire::{scan, write};

/// A part of a reply, in the order of the client's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    ParseComplete,
    /// ParameterDescription and RowDescription: of a statement, whose formats are not known yet.
    Statement,
    BindComplete,
    /// RowDescription with the formats asked for: of a portal, and of a simple Query.
    Rows,
    /// The rows and CommandComplete.
    Result,
    CloseComplete,
    Ready,
}

/// What an entry must have beside its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// The parameters' description.
    pub parameters: bool,
    /// The rows' description.
    pub rows: bool,
    /// Fewer rows than this: at so many, a server would suspend the portal. 0: any number.
    pub limit: u32,
}

/// A result as its server sent it, the descriptions included where some run of it has brought them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// ParameterDescription, RowDescription, DataRows, CommandComplete.
    frames: Box<[u8]>,
    parameters: usize,
    /// Where the RowDescription ends.
    description: usize,
    count: u32,
}

impl Entry {
    /// From whole frames; a description that is not known is empty. `description` is of the portal, with its formats.
    pub fn new(parameters: &[u8], description: &[u8], result: &[u8], count: u32) -> Entry {
        let frames = [parameters, description, result].concat().into();
        Entry { frames, parameters: parameters.len(), description: parameters.len() + description.len(), count }
    }

    /// For another process: the lengths of the two descriptions, the number of rows, and the frames.
    pub(super) fn to_parts(&self) -> ([u32; 3], &[u8]) {
        ([self.parameters as u32, (self.description - self.parameters) as u32, self.count], &self.frames)
    }

    /// From what another process has made of one. Its frames are looked at one by one: whatever they say, no client's connection
    /// falls out of step by them.
    ///
    /// # Errors
    /// They are no entry's.
    pub(super) fn from_parts([parameters, description, count]: [u32; 3], frames: &[u8]) -> Result<Entry, Malformed> {
        const BAD: Malformed = Malformed("what is shared is no entry");
        let (parameters, rest) = frames.split_at_checked(parameters as usize).ok_or(BAD)?;
        let (description, result) = rest.split_at_checked(description as usize).ok_or(BAD)?;
        let is_one = |frame: &[u8], tag| tags(frame).is_ok_and(|tags| tags == [tag]);
        let is_described = || set_formats(&mut description.to_vec(), Formats::Text).is_ok();
        let fits = (parameters.is_empty() || is_one(parameters, backend::PARAMETER_DESCRIPTION))
            && (description.is_empty() || is_one(description, backend::ROW_DESCRIPTION) && is_described());
        if !fits {
            return Err(BAD);
        }
        match tags(result)?.split_last() {
            Some((&backend::COMMAND_COMPLETE, rows))
                if rows.len() == count as usize && rows.iter().all(|tag| *tag == backend::DATA_ROW) => {}
            _ => return Err(BAD),
        }
        Ok(Entry::new(parameters, description, result, count))
    }

    fn parameters(&self) -> &[u8] {
        &self.frames[..self.parameters]
    }

    fn description(&self) -> &[u8] {
        &self.frames[self.parameters..self.description]
    }

    /// What [`Part::Result`] writes.
    pub fn result(&self) -> &[u8] {
        &self.frames[self.description..]
    }

    pub fn rows(&self) -> u64 {
        u64::from(self.count)
    }

    /// Bytes of the frames that are kept.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub fn has(&self, needs: Needs) -> bool {
        (!needs.parameters || self.parameters > 0)
            && (!needs.rows || self.description > self.parameters)
            && (needs.limit == 0 || self.count < needs.limit)
    }

    /// This result with the descriptions of `before`, an entry of the same key, where it has none itself. Definitions may have changed
    /// between the two: one of other columns is left out.
    pub fn completed_by(self, before: &Entry) -> Entry {
        let first = self.result().first().filter(|tag| **tag == backend::DATA_ROW).and_then(|_| columns(self.result()));
        if first.is_some() && first != columns(before.description()) {
            return self;
        }
        let choose = |own: &'_ [u8], other: &'_ [u8]| if own.is_empty() { other.to_vec() } else { own.to_vec() };
        let parameters = choose(self.parameters(), before.parameters());
        let description = choose(self.description(), before.description());
        match (parameters.len(), description.len()) == (self.parameters, self.description - self.parameters) {
            true => self,
            false => Entry::new(&parameters, &description, self.result(), self.count),
        }
    }

    /// The same rows in any order, and no description that differs. Which order they have a statement need not say.
    pub fn says_the_same_as(&self, other: &Entry) -> bool {
        let agree = |own: &[u8], other: &[u8]| own.is_empty() || other.is_empty() || own == other;
        agree(self.parameters(), other.parameters())
            && agree(self.description(), other.description())
            && (self.result() == other.result() || sorted(self.result()) == sorted(other.result()))
    }

    /// Writes the reply to a request that [`Entry::has`] what it needs.
    pub fn write(&self, parts: &[Part], out: &mut BytesMut) {
        // In one piece, but where the columns are described twice.
        out.reserve(self.frames.len() + parts.len() * SHORT);
        parts.iter().for_each(|part| self.write_part(*part, out));
    }

    /// One part of such a reply.
    #[inline]
    pub fn write_part(&self, part: Part, out: &mut BytesMut) {
        match part {
            Part::ParseComplete => write::parse_complete(out),
            Part::BindComplete => out.put_slice(&[backend::BIND_COMPLETE, 0, 0, 0, 4]),
            Part::CloseComplete => write::close_complete(out),
            Part::Statement => {
                out.put_slice(self.parameters());
                let start = out.len();
                out.put_slice(self.description());
                // It was read when it came in.
                let _ = set_formats(&mut out[start..], Formats::Text);
            }
            Part::Rows => out.put_slice(self.description()),
            Part::Result => out.put_slice(self.result()),
            Part::Ready => write::ready(out, b'I'),
        }
    }
}

/// How many columns a DataRow or a RowDescription has.
fn columns(frame: &[u8]) -> Option<&[u8]> {
    frame.get(scan::HEADER..scan::HEADER + size_of::<i16>())
}

/// The longest message that is not kept: ReadyForQuery.
const SHORT: usize = scan::HEADER + 1;

/// Those of whole frames.
fn tags(mut frames: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut tags = Vec::new();
    while !frames.is_empty() {
        let (head, _) = scan::frame(frames)?.ok_or(Malformed("half a frame"))?;
        tags.push(head.tag);
        frames = &frames[head.total..];
    }
    Ok(tags)
}

/// Frames by their bytes.
fn sorted(mut frames: &[u8]) -> Vec<&[u8]> {
    let mut sorted = Vec::new();
    while let Ok(Some((head, _))) = scan::frame(frames) {
        let (frame, rest) = frames.split_at(head.total);
        sorted.push(frame);
        frames = rest;
    }
    sorted.sort_unstable();
    sorted
}

/// Sets the format of each column in a RowDescription (protocol documentation, "Message Formats").
///
/// # Errors
/// It is no RowDescription.
pub(super) fn set_formats(frame: &mut [u8], formats: Formats<'_>) -> Result<(), Malformed> {
    let body = frame.get(scan::HEADER..).unwrap_or_default();
    let whole = body.len();
    let mut places = Vec::new();
    let mut r = Reader::new(body);
    for _ in 0..r.i16()? as u16 {
        r.cstr()?;
        // Table, column, type, its length and modifier.
        r.bytes(4 + 2 + 4 + 2 + 4)?;
        places.push(scan::HEADER + whole - r.rest().len());
        r.i16()?;
    }
    if !r.is_empty() {
        return Err(Malformed("invalid row description"));
    }
    for (n, at) in places.into_iter().enumerate() {
        frame[at..at + 2].copy_from_slice(&formats.column(n));
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A RowDescription of columns with these formats.
    pub fn description(formats: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        write::frame(&mut out, backend::ROW_DESCRIPTION, |out| {
            out.put_i16(formats.len() as i16);
            for (n, format) in formats.iter().enumerate() {
                out.put_slice(format!("c{n}\0").as_bytes());
                out.put_slice(&[0, 0, 0, 9, 0, 1, 0, 0, 0, 23, 0, 4, 255, 255, 255, 255, 0, *format]);
            }
        });
        out.to_vec()
    }

    pub fn row(value: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        write::frame(&mut out, backend::DATA_ROW, |out| {
            out.put_i16(1);
            out.put_i32(value.len() as i32);
            out.put_slice(value);
        });
        out.to_vec()
    }

    pub fn complete(tag: &str) -> Vec<u8> {
        let mut out = BytesMut::new();
        write::command_complete(&mut out, tag);
        out.to_vec()
    }

    #[test]
    fn one_entry_answers_every_way_of_asking() {
        let parameters = [backend::PARAMETER_DESCRIPTION, 0, 0, 0, 6, 0, 0];
        let result = [row(b"7"), complete("SELECT 1")].concat();
        let entry = Entry::new(&parameters, &description(&[1]), &result, 1);
        let reply = |parts: &[Part]| {
            let mut out = BytesMut::new();
            entry.write(parts, &mut out);
            out.to_vec()
        };
        let ready = b"Z\0\0\0\x05I";
        let simple = [&description(&[1])[..], &result, ready].concat();
        assert_eq!(reply(&[Part::Rows, Part::Result, Part::Ready]), simple);
        let all = [
            &b"1\0\0\0\x04"[..],
            &parameters,
            &description(&[0]),
            b"2\0\0\0\x04",
            &description(&[1]),
            &result,
            b"3\0\0\0\x04",
            ready,
        ];
        let parts = [
            Part::ParseComplete,
            Part::Statement,
            Part::BindComplete,
            Part::Rows,
            Part::Result,
            Part::CloseComplete,
            Part::Ready,
        ];
        assert_eq!(reply(&parts), all.concat());
    }

    #[test]
    fn an_entry_knows_what_it_lacks() {
        let result = [row(b"7"), complete("SELECT 1")].concat();
        let bare = Entry::new(&[], &[], &result, 1);
        let rows = Needs { rows: true, ..Needs::default() };
        assert!(bare.has(Needs::default()) && !bare.has(rows));
        let described = bare.clone().completed_by(&Entry::new(&[], &description(&[0]), &result, 1));
        assert!(described.has(rows) && !described.has(Needs { parameters: true, ..rows }));
        // That of another shape is none of its own.
        let wider = bare.clone().completed_by(&Entry::new(&[], &description(&[0, 0]), &result, 1));
        assert!(!wider.has(rows));
        // As many rows as the limit: the server does not know yet that there are no more.
        assert!(described.has(Needs { limit: 2, ..rows }) && !described.has(Needs { limit: 1, ..rows }));
    }

    #[test]
    fn formats_are_set_column_by_column() {
        let mut frame = description(&[0, 0, 0]);
        set_formats(&mut frame, Formats::List(&[0, 1, 0, 0, 0, 1])).unwrap();
        assert_eq!(frame, description(&[1, 0, 1]));
        set_formats(&mut frame, Formats::Binary).unwrap();
        assert_eq!(frame, description(&[1, 1, 1]));
        let cut = frame.len() - 3;
        assert!(set_formats(&mut frame[..cut], Formats::Text).is_err());
    }
}
