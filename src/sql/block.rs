//! What the code of a DO leaves behind in the session, by its words. SQL that it puts together at run time is not seen.

use super::Effect;
use super::classify::Notes;
use super::functions::{self, Class};

/// Words behind which a statement of PL/pgSQL begins.
const OPENERS: [&str; 5] = ["begin", "then", "else", "loop", "do"];

/// Notes what the words of a code block may do. Strings in it count as code, since EXECUTE runs them; so more may be noted
/// than is done.
pub(super) fn block(code: &str, notes: &mut Notes) {
    // The code is a literal.
    notes.facts.by_literal = true;
    let lower = code.to_ascii_lowercase();
    let mut before = (0, "");
    for (at, word) in words(&lower) {
        let between = lower.get(before.0..at).unwrap_or_default().trim();
        let opens = between.ends_with([';', '\'', '$']) || (between.is_empty() && OPENERS.contains(&before.1));
        note(word, opens, notes);
        before = (at + word.len(), word);
    }
}

fn note(word: &str, opens: bool, notes: &mut Notes) {
    let effect = match word {
        "set_config" | "pg_settings" => return notes.sets_unseen(),
        "set" | "reset" if opens => return notes.sets_unseen(),
        "temp" | "temporary" | "pg_temp" => Effect::Temporary,
        "load" if opens => Effect::Load,
        "prepare" if opens => Effect::Prepare(String::new()),
        "hold" => Effect::Declare { name: String::new(), hold: true },
        _ if functions::class(word) == Some(Class::SessionLock) => Effect::AdvisoryLock,
        _ => return,
    };
    if !notes.facts.effects.contains(&effect) {
        notes.effect(effect);
    }
}

/// Runs of letters, digits and `_`, each with its place.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut rest = 0;
    std::iter::from_fn(move || {
        let start = rest + text.get(rest..)?.find(is_word)?;
        let tail = text.get(start..)?;
        let end = start + tail.find(|c| !is_word(c)).unwrap_or(tail.len());
        rest = end;
        Some((start, text.get(start..end)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::SetValue;

    fn effects(code: &str) -> Vec<Effect> {
        let mut notes = Notes::default();
        block(code, &mut notes);
        notes.facts.effects.into_iter().filter(|effect| *effect != Effect::Unknown).collect()
    }

    #[test]
    fn finds_what_outlives_the_block() {
        let set = Effect::Set { name: String::new(), value: SetValue::Opaque, local: false };
        for (code, effect) in [
            ("DO $$ BEGIN PERFORM set_config('a.b', 'c', false); END $$", set.clone()),
            ("DO $x$ BEGIN SET work_mem = '7MB'; END $x$", set.clone()),
            ("DO $$ BEGIN IF true THEN RESET work_mem; END IF; END $$", set.clone()),
            ("DO $$ BEGIN EXECUTE 'SET a.b = 1'; END $$", set),
            ("DO $$ BEGIN CREATE TEMP TABLE t (n int); END $$", Effect::Temporary),
            ("DO $$ BEGIN PERFORM pg_try_advisory_lock(1); END $$", Effect::AdvisoryLock),
            ("DO 'BEGIN LOAD ''x''; END'", Effect::Load),
        ] {
            assert_eq!(effects(code), [effect], "{code}");
        }
    }

    #[test]
    fn finds_nothing_in_changes_of_tables() {
        for code in [
            "DO $$ BEGIN UPDATE t SET a = 1; DELETE FROM temps; END $$",
            "DO $$ DECLARE n int; BEGIN SELECT 1 INTO n; PERFORM pg_advisory_xact_lock(1); END $$",
            "DO $$ BEGIN ALTER TABLE t ALTER a SET NOT NULL; END $$",
            "DO",
            "DO $$é$$",
        ] {
            assert_eq!(effects(code), [], "{code}");
        }
    }
}
