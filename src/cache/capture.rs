//! A reply on its way to the client, kept as it passes to become an entry.

use crate::cache::admit::Refusal;
use crate::cache::entry::{Entry, set_formats};
use crate::cache::key::Formats;
use crate::wire::scan;
use crate::wire::tag::backend;

/// The bytes that the client is sent, up to a bound.
#[derive(Debug, Default)]
pub struct Capture {
    bytes: Vec<u8>,
    max: usize,
}

/// Bytes beside the frames that are kept: completions, a second description.
const SLACK: usize = 8 * 1024;

impl Capture {
    /// `max`: bytes of the largest entry.
    pub fn new(max: usize) -> Capture {
        Capture { bytes: Vec::new(), max: max.saturating_add(SLACK) }
    }

    /// The next bytes, in any portions.
    ///
    /// # Errors
    /// They are too many: there will be no entry, and nobody need wait for one.
    #[inline]
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        if self.bytes.len() + bytes.len() > self.max {
            return Err(Refusal::TooLarge);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// The entry of a whole reply, ReadyForQuery included, whose rows have these formats.
    ///
    /// # Errors
    /// It is not the complete and plain result of one read.
    pub fn finish(self, formats: Formats<'_>) -> Result<Entry, Refusal> {
        Reply::default().read(&self.bytes, formats)
    }
}

/// Where the frames of a reply stand.
#[derive(Debug, Default)]
struct Reply<'a> {
    parameters: &'a [u8],
    description: &'a [u8],
    /// From the first row, or the CommandComplete, on.
    result: Option<usize>,
    complete: Option<usize>,
    count: u32,
}

impl<'a> Reply<'a> {
    fn read(mut self, bytes: &'a [u8], formats: Formats<'_>) -> Result<Entry, Refusal> {
        let mut at = 0;
        while at < bytes.len() {
            let Ok(Some((head, body))) = scan::frame(&bytes[at..]) else { return Err(Refusal::Incomplete) };
            let next = at + head.total;
            if self.complete.is_some() {
                match head.tag {
                    backend::CLOSE_COMPLETE => {}
                    backend::READY if body == b"I" && next == bytes.len() => return self.entry(bytes, formats),
                    _ => return Err(Refusal::Incomplete),
                }
            } else {
                self.note(head.tag, &bytes[at..next], at)?;
                if head.tag == backend::COMMAND_COMPLETE {
                    self.complete = Some(next);
                    // A tag of anything else is of no plain read; a count that differs, of no complete one.
                    if body != format!("SELECT {}\0", self.count).as_bytes() {
                        return Err(Refusal::Incomplete);
                    }
                }
            }
            at = next;
        }
        Err(Refusal::Incomplete)
    }

    fn note(&mut self, tag: u8, frame: &'a [u8], at: usize) -> Result<(), Refusal> {
        match tag {
            backend::DATA_ROW => {
                self.result.get_or_insert(at);
                self.count += 1;
            }
            backend::COMMAND_COMPLETE => drop(self.result.get_or_insert(at)),
            _ if self.result.is_some() => return Err(Refusal::Incomplete),
            backend::PARSE_COMPLETE | backend::BIND_COMPLETE => {}
            backend::PARAMETER_DESCRIPTION => self.parameters = frame,
            backend::ROW_DESCRIPTION => self.description = frame,
            _ => return Err(Refusal::Incomplete),
        }
        Ok(())
    }

    fn entry(self, bytes: &[u8], formats: Formats<'_>) -> Result<Entry, Refusal> {
        let (Some(from), Some(to)) = (self.result, self.complete) else { return Err(Refusal::Incomplete) };
        // That of a statement says text for all: which formats the rows have, the Bind says.
        let mut description = self.description.to_vec();
        if !description.is_empty() {
            set_formats(&mut description, formats).map_err(|_| Refusal::Incomplete)?;
        }
        Ok(Entry::new(self.parameters, &description, &bytes[from..to], self.count))
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;
    use crate::cache::entry::tests::{complete, description, row};
    use crate::cache::entry::{Needs, Part};

    const READY: &[u8] = b"Z\0\0\0\x05I";
    const PARSED: &[u8] = b"1\0\0\0\x04";
    const BOUND: &[u8] = b"2\0\0\0\x04";
    const PARAMETERS: &[u8] = b"t\0\0\0\x0a\0\x01\0\0\0\x17";

    fn capture(frames: &[&[u8]], formats: Formats<'_>) -> Result<Entry, Refusal> {
        let mut capture = Capture::new(10_000);
        frames.iter().try_for_each(|frame| capture.take(frame))?;
        capture.finish(formats)
    }

    fn simple(entry: &Entry) -> Vec<u8> {
        let mut out = BytesMut::new();
        entry.write(&[Part::Rows, Part::Result, Part::Ready], &mut out);
        out.to_vec()
    }

    #[test]
    fn a_simple_reply_is_given_again_as_it_came() {
        for rows in [vec![], vec![row(b"a")], vec![row(b"a"), row(b"")]] {
            let reply =
                [&description(&[0])[..], &rows.concat(), &complete(&format!("SELECT {}", rows.len())), READY].concat();
            let entry = capture(&[&reply], Formats::Text).unwrap();
            assert_eq!((simple(&entry), entry.rows()), (reply, rows.len() as u64));
        }
    }

    #[test]
    fn a_described_statement_tells_the_formats_of_no_portal() {
        let (row, complete) = (row(b"\0\0\0\x07"), complete("SELECT 1"));
        let frames = [PARSED, PARAMETERS, &description(&[0]), BOUND, &row, &complete, READY];
        let entry = capture(&frames, Formats::Binary).unwrap();
        assert!(entry.has(Needs { parameters: true, rows: true, limit: 0 }));
        assert_eq!(simple(&entry), [&description(&[1])[..], &row, &complete, READY].concat());
        let mut out = BytesMut::new();
        entry.write(&[Part::Statement], &mut out);
        assert_eq!(out, [PARAMETERS, &description(&[0])].concat());
    }

    #[test]
    fn what_is_not_one_complete_read_is_refused() {
        let (t, d, c) = (description(&[0]), row(b"a"), complete("SELECT 1"));
        let suspended: &[u8] = b"s\0\0\0\x04";
        let (in_block, failed): (&[u8], &[u8]) = (b"Z\0\0\0\x05T", b"E\0\0\0\x05\0");
        let cases: [&[&[u8]]; 12] = [
            &[],
            &[&t, &d, &c],
            &[&t, &d, &c, in_block],
            &[&t, &d, suspended, READY],
            &[&t, &d, failed, READY],
            &[&t, &d, &complete("SELECT 2"), READY],
            &[&t, &d, &complete("FETCH 1"), READY],
            &[&t, &d, &c, &t, &d, &c, READY],
            &[&t, &d, &c, READY, READY],
            &[&t, &d, &c, &READY[..4]],
            &[b"n\0\0\0\x04", &complete("SELECT 0"), READY],
            &[b"G\0\0\0\x07\0\0\0", &complete("COPY 0"), READY],
        ];
        for frames in cases {
            assert_eq!(capture(frames, Formats::Text), Err(Refusal::Incomplete), "{frames:?}");
        }
    }

    #[test]
    fn what_is_too_large_is_refused_at_once() {
        let mut capture = Capture::new(0);
        assert_eq!(capture.take(&[0; SLACK]), Ok(()));
        assert_eq!(capture.take(&[0]), Err(Refusal::TooLarge));
    }

    proptest! {
        #[test]
        fn no_reply_panics_and_portions_do_not_matter(
            bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(b'D'), Just(b'C'), any::<u8>()], 0..60),
            cut in 0usize..60,
        ) {
            let cut = cut.min(bytes.len());
            let whole = capture(&[&bytes], Formats::Text);
            prop_assert_eq!(whole, capture(&[&bytes[..cut], &bytes[cut..]], Formats::Text));
        }
    }
}
