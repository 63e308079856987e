//! Statements that want a database to themselves: `dropdb`, `RenameDatabase`, `movedb` and `createdb` (of its template)
//! in Postgres's `dbcommands.c` wait for those who are connected to it, and fail where they stay.

use super::view::View;

/// What CREATE DATABASE copies where it names no template.
const TEMPLATE: &str = "template1";

/// What the statement wants to itself; nothing where the spelling hides the name (`U&"…"`) or where it is a string, which
/// texts of one fingerprint need not share.
pub(super) fn wanted(view: View) -> Option<String> {
    if !view.is(1, "database") {
        return None;
    }
    let moves = |at| view.are(at, &["set", "tablespace"]) && view.name(at + 2).is_some() && !view.is(at + 2, "to");
    match view.name(0)?.as_str() {
        "create" => template(view, 3),
        "alter" if view.is(3, "rename") || moves(3) => view.name(2),
        "drop" => view.name(2 + 2 * usize::from(view.are(2, &["if", "exists"]))),
        _ => None,
    }
}

/// The template among the options from `at` (`createdb_opt_list` of the grammar).
fn template(view: View, at: usize) -> Option<String> {
    let mut at = at + usize::from(view.is(at, "with"));
    while let Some(option) = view.name(at) {
        at += 1 + usize::from(view.are(at, &["connection", "limit"]));
        at += usize::from(view.raw(at) == "=");
        if option == "template" && !view.is(at, "default") {
            return view.name(at);
        }
        at += 1 + usize::from(matches!(view.raw(at), "-" | "+"));
    }
    Some(TEMPLATE.to_owned())
}

#[cfg(test)]
mod tests {
    use crate::sql::classify::classify;

    fn wanted(text: &str) -> Option<String> {
        classify(text).alone_in
    }

    #[test]
    fn names_are_those_that_stand_in_their_place() {
        for (text, name) in [
            ("DROP DATABASE a", "a"),
            ("DROP DATABASE IF EXISTS A;", "a"),
            ("drop database \"A \"\"b\" WITH (FORCE)", "A \"b"),
            ("/* template1 */ ALTER DATABASE a RENAME TO b", "a"),
            ("ALTER DATABASE Rename SET TABLESPACE c", "rename"),
            ("CREATE DATABASE a", "template1"),
            ("CREATE DATABASE a TEMPLATE DEFAULT", "template1"),
            ("CREATE DATABASE a TEMPLATE B", "b"),
            ("CREATE DATABASE template WITH OWNER template ENCODING 'UTF8' TEMPLATE = \"B\"", "B"),
            ("CREATE DATABASE a CONNECTION LIMIT -1 TEMPLATE = b", "b"),
            ("CREATE DATABASE a CONNECTION LIMIT=5 template b", "b"),
            ("DROP DATABASE a; DROP DATABASE b", "a"),
        ] {
            assert_eq!(wanted(text).as_deref(), Some(name), "{text}");
        }
    }

    #[test]
    fn others_want_none() {
        for text in [
            "CREATE TABLE database (n int)",
            "DROP TABLE database",
            "SELECT 1 AS database",
            "COMMENT ON DATABASE a IS 'b'",
            "ALTER DATABASE a OWNER TO b",
            "ALTER DATABASE a SET tablespace TO b",
            "ALTER DATABASE a SET tablespace = b",
            "ALTER DATABASE a SET work_mem = 1",
            "ALTER DATABASE a RESET ALL",
            "ALTER DATABASE a",
            "DROP DATABASE",
            "DROP DATABASE U&\"a\"",
            "CREATE DATABASE a TEMPLATE 'b'",
            "CREATE DATABASE a TEMPLATE",
            // Not before its turn.
            "SELECT pg_sleep(9); DROP DATABASE a",
            "PREPARE p AS DROP DATABASE a",
        ] {
            assert_eq!(wanted(text), None, "{text}");
        }
    }
}
