//! Any bytes that a change stream could bring are a message or a fault; what is cut off never tells of other relations than the whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::cluster::changes::{binary, text};

fuzz_target!(|input: (&[u8], u16)| {
    let (bytes, cut) = input;
    let cut = &bytes[..bytes.len().min(cut.into())];
    if let (Ok(part), Ok(whole)) = (binary::read(cut), binary::read(bytes)) {
        assert_eq!(part, whole);
    }
    // Several of one transaction: one that says the same as the last is told shorter.
    let mut reader = text::Reader::default();
    for line in bytes.split(|byte| *byte == b'\n') {
        let whole = text::Reader::default().read(line);
        assert_eq!(reader.read(line).is_ok(), whole.is_ok());
    }
    if let (Ok(part), Ok(whole)) = (text::Reader::default().read(cut), text::Reader::default().read(bytes)) {
        assert!(part == whole || cut.starts_with(b"BEGIN"));
    }
});
