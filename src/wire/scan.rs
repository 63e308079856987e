//! Bytes to frames: a five-byte header each, the body left alone. HOT.

use crate::error::Malformed;

/// Bytes of a frame's header: the tag and the length.
pub const HEADER: usize = 5;

/// The largest frame that Postgres takes (`PQ_LARGE_MESSAGE_LIMIT`, MaxAllocSize - 1), header included.
pub const MAX_FRAME: usize = 0x3fff_ffff;

/// The largest of the frames that carry no data (`PQ_SMALL_MESSAGE_LIMIT`).
pub const MAX_SMALL_FRAME: usize = 10_000;

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub tag: u8,
    /// Bytes of the whole frame, the header included.
    pub total: usize,
}

/// The header at the start of `buf`; `None` while it is not all there.
///
/// A length below 4 or above [`MAX_FRAME`] is an error: where frames end is lost.
#[inline]
pub fn head(buf: &[u8]) -> Result<Option<Head>, Malformed> {
    let [tag, a, b, c, d, ..] = *buf else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if !(4..MAX_FRAME).contains(&length) {
        return Err(Malformed("invalid message length"));
    }
    Ok(Some(Head { tag, total: length + 1 }))
}

/// The first frame of `buf` as header and body; `None` while it is not all there.
#[inline]
pub fn frame(buf: &[u8]) -> Result<Option<(Head, &[u8])>, Malformed> {
    let Some(head) = head(buf)? else { return Ok(None) };
    Ok(buf.get(HEADER..head.total).map(|body| (head, body)))
}

/// The whole frames with this tag at the start of `buf`: how many, and their bytes.
#[inline]
pub fn run(buf: &[u8], tag: u8) -> (u64, usize) {
    let (mut frames, mut at) = (0, 0);
    while let Ok(Some((head, _))) = frame(&buf[at..])
        && head.tag == tag
    {
        frames += 1;
        at += head.total;
    }
    (frames, at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds_frames_and_waits_for_the_rest() {
        assert_eq!(head(b"Z\0\0\0"), Ok(None));
        assert_eq!(head(b"Z\0\0\0\x05"), Ok(Some(Head { tag: b'Z', total: 6 })));
        assert_eq!(frame(b"Z\0\0\0\x05"), Ok(None));
        assert_eq!(frame(b"Z\0\0\0\x05IQ"), Ok(Some((Head { tag: b'Z', total: 6 }, &b"I"[..]))));
    }

    #[test]
    fn refuses_lengths_that_lose_the_place() {
        assert!(head(b"Q\0\0\0\x03").is_err());
        assert!(head(b"Q\xff\xff\xff\xff").is_err());
        assert!(head(b"Q\x40\0\0\0").is_err());
    }

    #[test]
    fn a_run_ends_at_another_tag_at_a_cut_and_at_a_length_that_cannot_be() {
        let rows = b"D\0\0\0\x05xD\0\0\0\x04";
        for rest in [&b""[..], b"C\0\0\0\x04", b"D\0\0", b"D\0\0\0\x06x", b"D\0\0\0\x03"] {
            assert_eq!(run(&[rows, rest].concat(), b'D'), (2, rows.len()), "{rest:?}");
        }
        assert_eq!(run(rows, b'd'), (0, 0));
    }

    proptest! {
        #[test]
        fn never_panics_and_never_reads_past_the_frame(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some((head, body))) = frame(&bytes) {
                prop_assert_eq!(body.len() + HEADER, head.total);
                prop_assert!(head.total <= bytes.len());
            }
        }
    }
}
