//! Any bytes lex to tokens that are in order, apart and inside the text; other constants in a text's template make the
//! same statement.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::sql::fingerprint::fingerprint;
use pgweir::sql::lex::{Lexer, Strings};
use pgweir::sql::template::{self, template};

fuzz_target!(|text: &[u8]| {
    for strings in [Strings::Standard, Strings::Escapes] {
        let mut end = 0;
        for token in Lexer::new(text, strings) {
            assert!(token.start >= end && token.end > token.start && token.end <= text.len());
            end = token.end;
        }
    }
    let mut buffer = [0; template::LONGEST];
    // A quoted name may have what stands for constants elsewhere.
    let plain = std::str::from_utf8(text).ok().filter(|text| !text.contains(['\x01', '\x02']));
    if let (Some(text), Some(template)) = (plain, template(text, &mut buffer)) {
        let template = std::str::from_utf8(template).expect("whole characters of a text");
        let (one, other) = (fingerprint(text), fingerprint(&template.replace('\x01', "77").replace('\x02', "'v'")));
        assert_eq!(one.by_literal, other.by_literal);
        assert!(one.by_literal || one == other);
    }
});
