//! Any bytes lex to tokens that are in order, apart and inside the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::sql::lex::{Lexer, Strings};

fuzz_target!(|text: &[u8]| {
    for strings in [Strings::Standard, Strings::Escapes] {
        let mut end = 0;
        for token in Lexer::new(text, strings) {
            assert!(token.start >= end && token.end > token.start && token.end <= text.len());
            end = token.end;
        }
    }
});
