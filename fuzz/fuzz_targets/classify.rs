//! Any text is classified; what a call of nextval in it cannot be is a read for a replica.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::sql::classify::classify;
use pgweir::sql::fingerprint::{fingerprint, hints, normalize, traceparent};
use pgweir::sql::lex::{Lexer, Strings};

fuzz_target!(|text: &str| {
    let facts = classify(text);
    hints(text);
    traceparent(text);
    normalize(text);
    fingerprint(text);
    let bytes = text.as_bytes();
    let tokens: Vec<_> = Lexer::new(bytes, Strings::Standard).collect();
    let calls = tokens.windows(2).any(|pair| pair[0].is_word(bytes, "nextval") && pair[1].is(bytes, b'('));
    assert!(!calls || facts.primary.is_some(), "{text}");
});
