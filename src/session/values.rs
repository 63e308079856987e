//! The values of a Bind as the slow-query log shows them, where it is asked to.

use std::fmt::Write;

use crate::error::Malformed;
use crate::wire::read::Reader;

/// Bytes shown of one value, and of all values of one Bind.
const MAX_VALUE: usize = 1024;
const MAX_ALL: usize = 8 * 1024;

/// Text as it is, binary as `\x` and hex digits, `None` for NULL; beyond the bounds `…`.
pub type Values = Vec<Option<String>>;

/// Reads what stands in a Bind behind the names of its portal and statement.
///
/// # Errors
/// The message is cut short.
pub fn values(body: &[u8]) -> Result<Values, Malformed> {
    let mut r = Reader::new(body);
    let count = r.i16()? as u16;
    let formats = (0..count).map(|_| r.i16()).collect::<Result<Vec<_>, _>>()?;
    // One format stands for all; none for text.
    let binary = |n: usize| formats.get(n).or_else(|| formats.first().filter(|_| formats.len() == 1)) == Some(&1);
    let mut shown = 0;
    let mut values = Values::new();
    for n in 0..usize::from(r.i16()? as u16) {
        if shown > MAX_ALL {
            values.push(Some("…".to_owned()));
            break;
        }
        let Ok(length) = usize::try_from(r.i32()?) else {
            values.push(None);
            continue;
        };
        let value = show(r.bytes(length)?, binary(n));
        shown += value.len();
        values.push(Some(value));
    }
    Ok(values)
}

fn show(value: &[u8], binary: bool) -> String {
    let cut = &value[..value.len().min(MAX_VALUE)];
    let mut text = match binary {
        false => String::from_utf8_lossy(cut).into_owned(),
        true => cut.iter().fold("\\x".to_owned(), |mut hex, byte| {
            // Writing to a String does not fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        }),
    };
    if cut.len() < value.len() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(formats: &[i16], given: &[Option<&[u8]>]) -> Vec<u8> {
        let mut body = (formats.len() as i16).to_be_bytes().to_vec();
        formats.iter().for_each(|f| body.extend(f.to_be_bytes()));
        body.extend((given.len() as i16).to_be_bytes());
        for value in given {
            body.extend(value.map_or(-1, |v| v.len() as i32).to_be_bytes());
            body.extend(value.unwrap_or_default());
        }
        body
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn formats_are_none_one_or_one_each() {
        let given: &[Option<&[u8]>] = &[Some(b"a"), None, Some(b"\x01\xff")];
        let text = values(&bound(&[], &[Some(b"a"), None])).unwrap();
        assert_eq!(text, [some("a"), None]);
        assert_eq!(values(&bound(&[1], given)).unwrap(), [some("\\x61"), None, some("\\x01ff")]);
        assert_eq!(values(&bound(&[0, 0, 1], given)).unwrap(), [some("a"), None, some("\\x01ff")]);
    }

    #[test]
    fn the_cost_is_bounded() {
        let large = vec![b'x'; 10_000];
        let shown = values(&bound(&[], &[Some(&large[..]); 100])).unwrap();
        assert!(shown[0].as_ref().unwrap().ends_with('…'));
        assert!(shown.len() < 20 && shown.last().unwrap() == &some("…"), "{}", shown.len());
    }

    #[test]
    fn a_body_cut_short_is_malformed() {
        let body = bound(&[1], &[Some(b"abc")]);
        for end in 0..body.len() {
            assert!(values(&body[..end]).is_err());
        }
    }
}
