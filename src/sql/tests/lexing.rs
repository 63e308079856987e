use crate::sql::lex::Kind::{self, *};
use crate::sql::lex::{Lexer, Strings, Unsure};

fn lex(text: &str, strings: Strings) -> (Vec<(Kind, &str)>, Option<Unsure>) {
    let mut lexer = Lexer::new(text.as_bytes(), strings);
    let tokens = lexer.by_ref().map(|token| (token.kind, text.get(token.start..token.end).unwrap())).collect();
    (tokens, lexer.unsure())
}

fn check(text: &str, expected: &[(Kind, &str)]) {
    assert_eq!(lex(text, Strings::Standard), (expected.to_vec(), None), "{text}");
}

#[test]
fn words() {
    check("select é_1$x", &[(Word, "select"), (Word, "é_1$x")]);
    check("\"a\"\"b\"c", &[(Quoted, "\"a\"\"b\""), (Word, "c")]);
    check("U&\"d\\0061t\" u&'x'", &[(UnicodeQuoted, "U&\"d\\0061t\""), (UnicodeString, "u&'x'")]);
    // not prefixes
    check("ae'x'", &[(Word, "ae"), (String, "'x'")]);
    check("u & 'x'", &[(Word, "u"), (Operator, "&"), (String, "'x'")]);
    check("a.b.*", &[(Word, "a"), (Punct, "."), (Word, "b"), (Punct, "."), (Operator, "*")]);
}

#[test]
fn strings() {
    check("'it''s' n'x' B'01' x'ff'", &[(String, "'it''s'"), (String, "n'x'"), (Bits, "B'01'"), (Bits, "x'ff'")]);
    check("E'a\\'b' 'a\\'", &[(Escaped, "E'a\\'b'"), (String, "'a\\'")]);
    check("E'\\\\' x", &[(Escaped, "E'\\\\'"), (Word, "x")]);
    // bit strings have no doubled quotes
    check("b'1''0'", &[(Bits, "b'1'"), (String, "'0'")]);
    // a line end between joins them, blanks do not, comments of a line are blanks
    check("'a'\n'b'", &[(String, "'a'\n'b'")]);
    check("'a' \r\t 'b'", &[(String, "'a' \r\t 'b'")]);
    check("'a' -- x\n 'b'", &[(String, "'a' -- x\n 'b'")]);
    check("'a' 'b'", &[(String, "'a'"), (String, "'b'")]);
    check("'a' /* x */\n'b'", &[(String, "'a'"), (String, "'b'")]);
    check("E'a'\n'\\'b'", &[(Escaped, "E'a'\n'\\'b'")]);
}

#[test]
fn backslashes() {
    let text = "'a\\' OR b --'";
    assert_eq!(lex(text, Strings::Standard).0, [(String, "'a\\'"), (Word, "OR"), (Word, "b")]);
    assert_eq!(lex(text, Strings::Escapes), (vec![(String, text)], None));
    let backslash = |text: &str| {
        let mut lexer = Lexer::new(text.as_bytes(), Strings::Standard);
        lexer.by_ref().count();
        lexer.backslash()
    };
    assert!(backslash("'\\d'") && backslash("N'\\'"));
    assert!(!backslash("E'\\d' \"\\\" $$\\$$ -- \\"));
}

#[test]
fn dollars() {
    check("$$a$b$$ $t$ $$ $t$ $1", &[(Dollar, "$$a$b$$"), (Dollar, "$t$ $$ $t$"), (Param, "$1")]);
    check("$é$'$é$", &[(Dollar, "$é$'$é$")]);
    // a dollar inside a word opens nothing
    check("a$b$c$b$", &[(Word, "a$b$c$b$")]);
    check("$a b$", &[(Other, "$"), (Word, "a"), (Word, "b$")]);
    check("$$a$$b", &[(Dollar, "$$a$$"), (Word, "b")]);
    check("$1+$22", &[(Param, "$1"), (Operator, "+"), (Param, "$22")]);
}

#[test]
fn numbers() {
    for number in ["1", "1.", "1.5", ".5", "1e10", "1.5E-3", "1e+3", "0x1F", "0b01", "0o17", "1_000", "1_0.0_1"] {
        check(number, &[(Number, number)]);
    }
    check("1..10", &[(Number, "1"), (Pair, ".."), (Number, "10")]);
    check("1.5.6", &[(Number, "1.5"), (Number, ".6")]);
    check("-1", &[(Operator, "-"), (Number, "1")]);
    check("a[1:2]", &[(Word, "a"), (Punct, "["), (Number, "1"), (Punct, ":"), (Number, "2"), (Punct, "]")]);
    for junk in ["1FROM", "1e", "1.5x", "0xZ", "1_", "$1a", "1é", "0b2x"] {
        assert_eq!(lex(junk, Strings::Standard).1, Some(Unsure::JunkAfterNumber), "{junk}");
    }
}

#[test]
fn operators() {
    check("a<=-1", &[(Word, "a"), (Operator, "<="), (Operator, "-"), (Number, "1")]);
    check("a=-+-1", &[(Word, "a"), (Operator, "="), (Operator, "-"), (Operator, "+"), (Operator, "-"), (Number, "1")]);
    check("a@-1", &[(Word, "a"), (Operator, "@-"), (Number, "1")]);
    check("a*--b\nc", &[(Word, "a"), (Operator, "*"), (Word, "c")]);
    check("a+/*b*/c", &[(Word, "a"), (Operator, "+"), (Word, "c")]);
    check("a@-/*b*/1", &[(Word, "a"), (Operator, "@-"), (Number, "1")]);
    check("a::b:=c", &[(Word, "a"), (Cast, "::"), (Word, "b"), (Pair, ":="), (Word, "c")]);
    check("a->>'b'", &[(Word, "a"), (Operator, "->>"), (String, "'b'")]);
    check(
        "a<>b!=c=>d",
        &[(Word, "a"), (Operator, "<>"), (Word, "b"), (Operator, "!="), (Word, "c"), (Operator, "=>"), (Word, "d")],
    );
    check("(*)", &[(Punct, "("), (Operator, "*"), (Punct, ")")]);
}

#[test]
fn comments() {
    check("a/* b /* c */ d */e", &[(Word, "a"), (Word, "e")]);
    check("a--b\rc", &[(Word, "a"), (Word, "c")]);
    check("a--b\nc", &[(Word, "a"), (Word, "c")]);
    check("/**/ /***/ /*/ */ a -- b", &[(Word, "a")]);
    check("a\x0b\x0c\tb", &[(Word, "a"), (Word, "b")]);
}

#[test]
fn ends_in_the_middle() {
    let cases = [
        ("'a", Unsure::UnterminatedQuote),
        ("'a''", Unsure::UnterminatedQuote),
        ("E'a\\'", Unsure::UnterminatedQuote),
        ("E'a\\", Unsure::UnterminatedQuote),
        ("'a'\n'b", Unsure::UnterminatedQuote),
        ("\"a", Unsure::UnterminatedQuote),
        ("\"a\"\"", Unsure::UnterminatedQuote),
        ("$a$ b", Unsure::UnterminatedQuote),
        ("$$", Unsure::UnterminatedQuote),
        ("b'1", Unsure::UnterminatedQuote),
        ("U&'a", Unsure::UnterminatedQuote),
        ("/* a", Unsure::UnterminatedComment),
        ("/* a /* b */", Unsure::UnterminatedComment),
        ("/*/", Unsure::UnterminatedComment),
        ("a\0b", Unsure::Nul),
    ];
    for (text, why) in cases {
        assert_eq!(lex(text, Strings::Standard).1, Some(why), "{text}");
    }
}
