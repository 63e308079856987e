use crate::sql::classify::classify;
use crate::sql::fingerprint::{date_word, fingerprint, hints, normalize, traceparent};
use crate::sql::lex::{Lexer, Strings, Token};
use proptest::prelude::*;

/// Pieces of SQL, sound and broken, that make statements when thrown together.
fn piece() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "SELECT",
        "FROM",
        "WHERE",
        "INSERT",
        "INTO",
        "VALUES",
        "UPDATE",
        "SET",
        "DELETE",
        "WITH",
        "AS",
        "(",
        ")",
        "[",
        "]",
        ",",
        ";",
        ".",
        "::",
        ":=",
        "..",
        "*",
        "+",
        "-",
        "--",
        "/*",
        "*/",
        "\n",
        "\r",
        " ",
        "'",
        "\"",
        "''",
        "E'",
        "\\",
        "$$",
        "$a$",
        "$1",
        "1",
        "1.5e3",
        "0x",
        "now()",
        "nextval('s')",
        "t",
        "a",
        "f",
        "JOIN",
        "ON",
        "OR",
        "AND",
        "NOT",
        "IN",
        "CASE",
        "WHEN",
        "THEN",
        "END",
        "CAST",
        "EXPLAIN",
        "ANALYZE",
        "PREPARE",
        "DECLARE",
        "CURSOR",
        "FOR",
        "COPY",
        "TO",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT",
        "RELEASE",
        "RESET",
        "SHOW",
        "set_config",
        "'x'",
        "true",
        "é",
        "U&\"",
        "pgweir: replica",
        "traceparent='",
        "ARRAY",
        "LATERAL",
        "OPERATOR",
        "TABLE",
        "CREATE",
        "TEMP",
        "ATOMIC",
        "=",
        "%",
        "LIKE",
        "BETWEEN",
        "UNION",
        "ORDER BY",
        "GROUP BY",
        "LIMIT",
        "TIME ZONE",
        "ROLE",
        "LOCAL",
        "SESSION",
        "\0",
    ]);
    prop_oneof![8 => words.prop_map(str::to_owned), 1 => any::<String>()]
}

fn text() -> impl Strategy<Value = String> {
    (prop::collection::vec(piece(), 0..40), prop::sample::select(vec!["", " "])).prop_map(|(all, gap)| all.join(gap))
}

fn everything(text: &str) {
    classify(text);
    fingerprint(text);
    normalize(text);
    hints(text);
    traceparent(text);
    date_word(text.as_bytes());
}

fn tokens(bytes: &[u8], strings: Strings) -> Vec<Token> {
    Lexer::new(bytes, strings).collect()
}

/// A sound statement around a hole for white space at every place, with its literals.
fn rewritten(gaps: &[&str], upper: bool, literals: &[String], list: usize) -> String {
    let list = vec!["7"; list].join(",");
    let parts = [
        "select",
        "a",
        ",",
        &literals[0],
        "from",
        "t",
        "join",
        "u",
        "on",
        "t.x",
        "=",
        "u.x",
        "where",
        "b",
        "in",
        "(",
        &list,
        ")",
        "and",
        "lower",
        "(",
        "\"C\"",
        ")",
        "like",
        &literals[1],
        "limit",
        &literals[2],
    ];
    let mut text = String::new();
    for (at, part) in parts.iter().enumerate() {
        text.push_str(gaps[at % gaps.len()]);
        let word = part.chars().all(|c| c.is_ascii_lowercase() || c == '.');
        text.push_str(&if upper && word { part.to_uppercase() } else { (*part).to_owned() });
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_string_is_survived(text in any::<String>()) {
        everything(&text);
    }

    #[test]
    fn any_pieces_are_survived(text in text()) {
        everything(&text);
    }

    /// What a fingerprint may be shared for is what the facts of one text may be.
    #[test]
    fn both_know_what_literals_decide(text in text()) {
        prop_assert!(fingerprint(&text).by_literal || !classify(&text).by_literal, "{text}");
    }

    /// Texts of one fingerprint have one verdict.
    #[test]
    fn fingerprint_decides(text in text(), literal in "[a-z0-9 ]{0,6}") {
        let text = text.replace("'x'", "'").replace('\'', " ");
        let other = |literal: &str| format!("{text} 1 '{literal}' {text}");
        let (one, two) = (other("a"), other(&literal));
        let prints = (fingerprint(&one), fingerprint(&two));
        // a quote in the text may have taken the literal in
        if prints.0 == prints.1 && !prints.0.by_literal {
            let (one, two) = (classify(&one), classify(&two));
            prop_assert_eq!((one.primary, one.effects, one.transient), (two.primary, two.effects, two.transient));
        }
    }

    #[test]
    fn tokens_are_in_order_and_apart(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for strings in [Strings::Standard, Strings::Escapes] {
            let mut end = 0;
            for token in tokens(&bytes, strings) {
                prop_assert!(token.start >= end && token.end > token.start && token.end <= bytes.len());
                end = token.end;
            }
        }
    }

    /// What the tokens leave out is white space and comments alone, so nothing is skipped unread.
    #[test]
    fn nothing_is_lost_between_tokens(text in text()) {
        let mut lexer = Lexer::new(text.as_bytes(), Strings::Standard);
        let mut end = 0;
        for token in lexer.by_ref() {
            let between = &text[end..token.start];
            prop_assert!(
                between.trim().is_empty() || between.contains("--") || between.contains("/*"),
                "{between:?}"
            );
            end = token.end;
        }
    }

    /// A hazard stays one whatever stands around it in the statement.
    #[test]
    fn a_hazard_in_a_column_is_found(before in text(), after in text()) {
        let text = format!("SELECT {before} , nextval('s') , {after}");
        let hazard = text.find("nextval").unwrap();
        let mut lexer = Lexer::new(text.as_bytes(), Strings::Standard);
        // it may have come to stand in a comment or a string
        let seen = lexer.by_ref().any(|token| token.start == hazard && token.end == hazard + 7);
        if seen {
            prop_assert!(classify(&text).primary.is_some(), "{text}");
        }
    }

    #[test]
    fn fingerprint_sees_the_statement_alone(
        gaps in prop::collection::vec(prop::sample::select(vec![" ", "\n", "\t ", " /* x */ ", " -- y\n", " /*/**/*/ "]), 1..9),
        upper in any::<bool>(),
        literals in prop::collection::vec(prop_oneof!["[0-9]{1,8}", "'[a-z ]{0,9}'", Just("$3".to_owned()), Just("E'\\\\n'".to_owned())], 3),
        list in 1usize..20,
    ) {
        let plain = rewritten(&[" "], false, &["1".into(), "2".into(), "3".into()], 1);
        let other = rewritten(&gaps, upper, &literals, list);
        prop_assert_eq!(fingerprint(&plain).fingerprint, fingerprint(&other).fingerprint, "{}", other);
    }

    #[test]
    fn normalizing_twice_changes_nothing(gaps in prop::collection::vec(prop::sample::select(vec![" ", "\n", " /* x */ "]), 1..5)) {
        let text = rewritten(&gaps, false, &["1".into(), "'a'".into(), "3".into()], 1);
        let once = normalize(&text);
        prop_assert_eq!(&normalize(&once), &once);
        prop_assert_eq!(fingerprint(&once).fingerprint, fingerprint(&text).fingerprint);
    }

    #[test]
    fn normalized_text_shows_no_constant(secret in "[a-z]{6}[0-9]{6}", around in text()) {
        let text = format!("SELECT '{secret}' , {around}");
        prop_assert!(!normalize(&text).contains(&secret));
    }

    #[test]
    fn other_names_are_other_statements(one in "[a-z]{1,12}", other in "[a-z]{1,12}") {
        prop_assume!(one != other);
        let text = |name: &str| format!("SELECT 1 FROM {name}_");
        prop_assert_ne!(fingerprint(&text(&one)).fingerprint, fingerprint(&text(&other)).fingerprint);
    }
}
