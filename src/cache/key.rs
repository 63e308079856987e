//! What makes two reads the same: all that shapes a result, byte for byte.

use std::fmt::Write;

use crate::session::parameters::{HARMLESS, Settings};

/// What a server reports of a session (ParameterStatus) and shapes results: defaults of a role, a database or the
/// server's file show in it, which the session's own settings do not tell.
const REPORTED: [&str; 6] =
    ["DateStyle", "IntervalStyle", "TimeZone", "client_encoding", "search_path", "standard_conforming_strings"];

/// Whether a setting does not change what a read returns. Custom ones (`a.b`) may: functions and policies ask for them.
fn is_harmless(name: &str) -> bool {
    let harmless = name == "wal_compression" || HARMLESS.binary_search(&name).is_ok();
    // A session that hears of notices is not to be given the reply of one that does not.
    name.starts_with("pgweir.") || (harmless && name != "client_min_messages")
}

/// Who asks, and under which settings: the same for all reads of a session until one of its settings changes.
///
/// `reported` are the ParameterStatus values that the session began with.
pub fn environment<'a>(
    database: &str,
    user: &str,
    settings: &Settings,
    reported: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Box<[u8]> {
    let mut said = String::new();
    for (name, value) in settings.iter().filter(|(name, _)| !is_harmless(name)) {
        // Debug puts quotes around and escapes within: no value can look like the next name. Writing to a String has no
        // error.
        let _ = write!(said, "{name:?}={value:?};");
    }
    let mut status = String::new();
    for (name, value) in reported.into_iter().filter(|(name, _)| REPORTED.contains(name)) {
        let _ = write!(status, "{name}={value:?};");
    }
    let mut key = Vec::new();
    [database, user, &said, &status].iter().for_each(|part| push(&mut key, part.as_bytes()));
    key.into()
}

/// Formats in which a result is asked for, alike where Bind may say the same in several ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Formats<'a> {
    /// None said, or text for all.
    Text,
    Binary,
    /// One for each column, as they stand in the Bind: Int16 each. A wrong number of them is an error, so lists are never
    /// taken for one of the others.
    List(&'a [u8]),
}

impl<'a> Formats<'a> {
    /// From the Int16s behind the count in a Bind.
    pub fn read(codes: &'a [u8]) -> Formats<'a> {
        match codes {
            [] | [0, 0] => Formats::Text,
            [0, 1] => Formats::Binary,
            list => Formats::List(list),
        }
    }

    /// The format of a column, counted from 0.
    pub fn column(self, n: usize) -> [u8; 2] {
        match self {
            Formats::Text => [0, 0],
            Formats::Binary => [0, 1],
            Formats::List(codes) => codes.get(2 * n..2 * n + 2).map_or([0, 0], |code| [code[0], code[1]]),
        }
    }

    /// As they stand in a Bind, behind their count.
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Formats::Text => &[],
            Formats::Binary => &[0, 1],
            Formats::List(codes) => codes,
        }
    }
}

/// The statement's part of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read<'a> {
    pub text: &'a [u8],
    /// Parameter types as in a Parse, Int16 count and Int32 each; empty for a simple Query.
    pub types: &'a [u8],
    /// Formats and values of the parameters as in a Bind; empty for a simple Query.
    pub parameters: &'a [u8],
    pub formats: Formats<'a>,
}

/// A count of none: what a Parse or Bind without parameters says where a Query says nothing.
pub const NO_TYPES: &[u8] = &[0, 0];
/// The same of formats and values.
pub const NO_PARAMETERS: &[u8] = &[0, 0, 0, 0];

impl Read<'_> {
    /// The whole key, behind what [`environment`] has made.
    pub fn key(&self, environment: &[u8]) -> Vec<u8> {
        let types = if self.types == NO_TYPES { &[] } else { self.types };
        let parameters = if self.parameters == NO_PARAMETERS { &[] } else { self.parameters };
        let parts = [self.text, types, parameters, self.formats.bytes()];
        let length = environment.len() + parts.iter().map(|part| part.len() + 4).sum::<usize>();
        let mut key = Vec::with_capacity(length);
        key.extend_from_slice(environment);
        parts.iter().for_each(|part| push(&mut key, part));
        key
    }
}

/// With its length ahead: no two lists of parts give the same bytes.
fn push(key: &mut Vec<u8>, part: &[u8]) {
    key.extend_from_slice(&(part.len() as u32).to_be_bytes());
    key.extend_from_slice(part);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::parameters::Value;
    use proptest::prelude::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let mut settings = Settings::default();
        pairs.iter().for_each(|(name, value)| settings.set(name, Value::Flat((*value).into())));
        settings
    }

    fn of(settings: &Settings) -> Box<[u8]> {
        environment("db", "u", settings, [])
    }

    #[test]
    fn settings_that_may_shape_a_result_keep_reads_apart() {
        let plain = of(&Settings::default());
        for (name, value) in [
            ("search_path", "a"),
            ("extra_float_digits", "0"),
            ("role", "r"),
            ("timezone", "UTC"),
            ("my.tenant", "7"),
            ("pg_trgm.similarity_threshold", "0.1"),
            // what is kept has no notice: whoever hears of them may need one
            ("client_min_messages", "warning"),
        ] {
            assert_ne!(of(&settings(&[(name, value)])), plain, "{name}");
        }
        for name in ["application_name", "statement_timeout", "pgweir.cache"] {
            assert_eq!(of(&settings(&[(name, "1")])), plain, "{name}");
        }
        assert!(HARMLESS.is_sorted());
        assert_ne!(of(&settings(&[("a.b", "1\";\"c.d\"=2")])), of(&settings(&[("a.b", "1"), ("c.d", "2")])));
    }

    #[test]
    fn what_servers_report_keeps_reads_apart() {
        let none = Settings::default();
        let with = |pair| environment("db", "u", &none, [pair]);
        assert_ne!(with(("TimeZone", "UTC")), with(("TimeZone", "Europe/Paris")));
        assert_eq!(with(("application_name", "a")), with(("application_name", "b")));
        assert_ne!(environment("ab", "c", &none, []), environment("a", "bc", &none, []));
    }

    #[test]
    fn a_query_and_a_bind_without_parameters_are_the_same_read() {
        let text = b"select 1";
        let simple = Read { text, types: &[], parameters: &[], formats: Formats::Text };
        let bound = Read { text, types: &[0, 0], parameters: &[0, 0, 0, 0], formats: Formats::read(&[0, 0]) };
        assert_eq!(simple.key(b"e"), bound.key(b"e"));
        assert_ne!(simple.key(b"e"), Read { formats: Formats::Binary, ..simple }.key(b"e"));
        // Two formats for one column are an error, so they are no other way to say text.
        assert_ne!(simple.key(b"e"), Read { formats: Formats::read(&[0, 0, 0, 0]), ..simple }.key(b"e"));
    }

    proptest! {
        #[test]
        fn different_reads_have_different_keys(
            a in prop::collection::vec(prop::collection::vec(0u8..3, 0..6), 4),
            b in prop::collection::vec(prop::collection::vec(0u8..3, 0..6), 4),
        ) {
            let key = |parts: &[Vec<u8>]| {
                let formats = Formats::read(&parts[3]);
                Read { text: &parts[0], types: &parts[1], parameters: &parts[2], formats }.key(b"")
            };
            let canonical = |parts: &[Vec<u8>]| {
                let none = |part: &[u8], none: &[u8]| if part == none { Vec::new() } else { part.to_vec() };
                let formats = none(&parts[3], &[0, 0]);
                (parts[0].clone(), none(&parts[1], NO_TYPES), none(&parts[2], NO_PARAMETERS), formats)
            };
            prop_assert_eq!(key(&a) == key(&b), canonical(&a) == canonical(&b));
        }
    }
}
