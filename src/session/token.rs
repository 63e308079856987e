//! The causal token of a session, `pgweir.lsn`: said by SHOW, taken by SET. The server's own session knows nothing of it,
//! so that some texts go to it in other words.

use crate::freshness::Lsn;
use crate::sql::{Effect, Facts, Reason, SetValue};

/// Longer texts are none of these.
const MAX_TEXT: usize = 128;

/// All that the session has seen lies at or before this position: on the primary what is written now, in a transaction on a
/// replica what is replayed there.
const SHOW: &str = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
                    ELSE pg_catalog.pg_current_wal_insert_lsn() END::pg_catalog.text AS \"pgweir.lsn\"";

/// What goes to the server instead of a text with these facts; `None`: the text itself.
pub fn in_other_words(text: &[u8], facts: &Facts) -> Option<String> {
    if text.len() > MAX_TEXT || facts.statements != 1 || facts.primary != Some(Reason::Session) {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    let mut words = text.trim_end_matches([' ', '\t', '\r', '\n', ';']).split_ascii_whitespace();
    let mut next_is = |word: &str| words.next().is_some_and(|next| next.eq_ignore_ascii_case(word));
    if next_is("show") && next_is("pgweir.lsn") && words.next().is_none() {
        return Some(SHOW.to_owned());
    }
    let bad = facts.effects.iter().find_map(|effect| match effect {
        Effect::Set { name, value: SetValue::Sql(value), .. } if name == "pgweir.lsn" => refused(value),
        _ => None,
    })?;
    // As the server answers a bad value of a parameter of its own, and so that an open transaction fails with it.
    let message = format!("invalid value for parameter \"pgweir.lsn\": \"{bad}\"").replace('\'', "''");
    Some(format!(
        "DO $pgweir$ BEGIN RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = '{message}'; END $pgweir$"
    ))
}

/// What stands behind `SET pgweir.lsn =`, where it is no position, without what the message cannot hold.
fn refused(value: &str) -> Option<String> {
    let value = value.trim().trim_matches('\'');
    let empty = value.is_empty();
    (!empty && value.parse::<Lsn>().is_err()).then(|| value.replace(['\\', '$'], "?"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql;

    fn said(text: &str) -> Option<String> {
        in_other_words(text.as_bytes(), &sql::classify::classify(text))
    }

    #[test]
    fn show_is_a_question_of_the_position() {
        for text in ["SHOW pgweir.lsn", " show\tPGWEIR.LSN ; "] {
            assert!(said(text).is_some_and(|sql| sql.starts_with("SELECT CASE")), "{text}");
        }
        for text in ["SHOW work_mem", "SHOW pgweir.route", "SHOW pgweir.lsn x", "SELECT 1", "SHOW pgweir.lsn; SELECT 1"]
        {
            assert_eq!(said(text), None, "{text}");
        }
    }

    #[test]
    fn a_bad_position_is_refused_and_a_good_one_is_not() {
        for value in ["'0/16B3748'", "'0/0'", "''", "DEFAULT"] {
            assert_eq!(said(&format!("SET pgweir.lsn = {value}")), None, "{value}");
        }
        for value in ["'x'", "'1'", "'0/16B3748/1'", "5", "'0/G'", "'a''b'", "'$pgweir$'"] {
            let sql = said(&format!("SET pgweir.lsn TO {value}")).unwrap_or_else(|| panic!("{value}"));
            assert!(sql.contains("invalid_parameter_value") && sql.matches("$pgweir$").count() == 2, "{sql}");
        }
    }
}
