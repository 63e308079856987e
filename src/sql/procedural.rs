//! What a body in PL/pgSQL may do, by its words: enough to tell that it only reads. Anything put together at run time
//! makes it unknown.

use super::classify::Notes;
use super::lex::{Kind, Lexer, Strings, Token};
use super::view::View;
use super::{Facts, Name, Reason, builtins, relations, tokens};

/// More is not looked at.
const TOKENS: usize = 1 << 14;

/// Words that are no function before a bracket, unless an expression must stand there.
const BEFORE_BRACKETS: [&str; 25] = [
    "array",
    "assert",
    "by",
    "elsif",
    "elseif",
    "exit",
    "filter",
    "foreach",
    "if",
    "in",
    "loop",
    "materialized",
    "of",
    "over",
    "perform",
    "raise",
    "return",
    "sets",
    "slice",
    "then",
    "using",
    "values",
    "when",
    "while",
    "within",
];

/// Words that are no type before a string, unless an expression must stand there.
const BEFORE_STRINGS: [&str; 12] = [
    "assert",
    "debug",
    "elsif",
    "exception",
    "info",
    "log",
    "notice",
    "perform",
    "raise",
    "return",
    "sqlstate",
    "warning",
];

/// Words behind which a statement begins; so it does behind `;`.
const OPENERS: [&str; 4] = ["begin", "then", "else", "loop"];

/// First words of statements that do more than read.
#[rustfmt::skip]
const COMMANDS: [&str; 50] = [
    "abort", "alter", "analyse", "analyze", "call", "checkpoint", "cluster", "comment", "commit", "copy", "create",
    "deallocate", "delete", "discard", "do", "drop", "execute", "explain", "grant", "import", "insert", "listen",
    "load", "lock", "merge", "notify", "prepare", "reassign", "refresh", "reindex", "release", "repack", "reset",
    "revoke", "rollback", "savepoint", "security", "set", "show", "start", "truncate", "unlisten", "update",
    "vacuum", "wait", "alias", "database", "session", "transaction", "work",
];

/// The word at `at` and the bracket behind it are no call.
pub(super) fn precedes_bracket(view: View, at: usize) -> bool {
    let pair = |word, behind: &[&str]| view.is(at, word) && at > 0 && view.is_any(at - 1, behind);
    pair("next", &["return", "fetch"])
        || pair("query", &["return"])
        || pair("notice", &["raise"])
        || (view.is_any(at, &BEFORE_BRACKETS) && !is_inside(view, at))
}

/// The word at `at` is no type of the string behind it.
pub(super) fn precedes_string(view: View, at: usize) -> bool {
    view.is_any(at, &BEFORE_STRINGS) && !is_inside(view, at)
}

/// An expression, or more of one, must stand at `at`.
fn is_inside(view: View, at: usize) -> bool {
    let Some(before) = at.checked_sub(1) else { return false };
    match view.kind(before) {
        // but for the label of a loop
        Some(Kind::Operator) => view.raw(before) != ">>",
        Some(Kind::Pair) => true,
        _ => view.punct(before, b'(') || view.punct(before, b','),
    }
}

/// The facts of a body. Relations are never exact: variables and cursors may be among them.
pub fn body(text: &str) -> Facts {
    let mut lexer = Lexer::new(text.as_bytes(), Strings::Standard);
    let tokens: Vec<Token> = lexer.by_ref().take(TOKENS).collect();
    let cut = tokens.len() == TOKENS && lexer.next().is_some();
    let mut notes = Notes::default();
    let view = View { text, tokens: &tokens };
    if cut || lexer.unsure().is_some() || lexer.backslash() {
        notes.unreadable();
    } else {
        tokens::scan_procedural(view, &mut notes);
        relations::relations(view, |name| notes.relation(name));
        statements(view, &mut notes);
    }
    notes.inexact = true;
    notes.into_facts()
}

/// Looks at the first words of statements, and at the types of variables.
fn statements(view: View, notes: &mut Notes) {
    let mut declaring = false;
    for at in 0..view.tokens.len() {
        if view.is(at, "execute") {
            notes.reason(Reason::UnknownFunction);
            notes.unknown();
        }
        let begins = match at.checked_sub(1) {
            None => true,
            Some(before) => {
                view.punct(before, b';')
                    || view.is_any(before, &OPENERS)
                    || view.is(before, "declare")
                    || (view.kind(before) == Some(Kind::Operator) && view.raw(before) == ">>")
            }
        };
        if view.is(at, "declare") {
            declaring = true;
        } else if view.is(at, "begin") {
            declaring = false;
        } else if begins && declaring {
            variable(view, at, notes);
        } else if begins && view.is_any(at, &COMMANDS) {
            notes.reason(Reason::Utility);
            notes.unknown();
        }
    }
}

/// `name [CONSTANT] type …`: a domain checks what is put into it.
fn variable(view: View, at: usize, notes: &mut Notes) {
    let at = at + 1 + usize::from(view.is(at + 1, "constant"));
    if view.is_any(at, &["alias", "cursor", "no", "scroll"]) {
        return;
    }
    let Some((name, end)) = view.qualified(at) else { return };
    let copied = view.kind(end) == Some(Kind::Operator) && view.raw(end).starts_with('%');
    if !copied {
        type_use(name, notes);
    }
}

fn type_use(name: Name, notes: &mut Notes) {
    let built_in = name.schema.as_deref().is_none_or(|schema| schema == "pg_catalog");
    if !(built_in && builtins::is_type(&name.name)) {
        notes.type_use(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_told_from_the_rest() {
        let reads = [
            "BEGIN RETURN a + 1; END",
            "DECLARE n int; r record; t users%ROWTYPE; BEGIN SELECT count(*) INTO n FROM users; RETURN n; END",
            "BEGIN RETURN QUERY SELECT id FROM users WHERE name = lower(p); END;",
            "BEGIN IF (a > 1) THEN RETURN left('abc', 2); ELSIF (a < 0) THEN RAISE NOTICE 'x %', a; END IF; RETURN ''; END",
            "BEGIN RETURN NEXT (a); RETURN QUERY (SELECT 1); RAISE NOTICE ('x'); <<top>> IF (a) THEN PERFORM (b); END IF; END",
            "DECLARE i int := 0; BEGIN FOR i IN 1..3 LOOP i := i + length('x'); END LOOP; RETURN i; END",
            "BEGIN PERFORM 1 FROM users; RETURN FOUND; EXCEPTION WHEN OTHERS THEN RETURN NULL; END",
            "<<top>> BEGIN RETURN CASE WHEN a THEN 1 ELSE 2 END; END",
        ];
        for text in reads {
            let facts = body(text);
            assert_eq!((facts.primary, facts.effects.len()), (None, 0), "{text}");
        }
        let others = [
            "BEGIN INSERT INTO t VALUES (1); RETURN 1; END",
            "BEGIN IF a THEN UPDATE t SET a = 1; END IF; RETURN 1; END",
            "BEGIN PERFORM nextval('s'); RETURN 1; END",
            "BEGIN RETURN nextval('s'); END",
            "DECLARE a bigint := pg_advisory_lock(1); BEGIN RETURN a; END",
            "BEGIN EXECUTE 'delete from t'; END",
            "BEGIN RETURN QUERY EXECUTE q; END",
            "BEGIN FOR r IN EXECUTE q LOOP RETURN r.a; END LOOP; END",
            "BEGIN CREATE TEMP TABLE t (a int); RETURN 1; END",
            "BEGIN LOCK TABLE t; RETURN 1; END",
            "BEGIN SELECT a INTO b FROM t FOR UPDATE; RETURN b; END",
            "BEGIN SET work_mem = '1MB'; RETURN 1; END",
            "BEGIN PERFORM set_config('a.b', 'c', false); RETURN 1; END",
            "BEGIN IF true THEN NOTIFY x; END IF; RETURN 1; END",
            "<<top>> BEGIN CALL p(); END",
            "BEGIN RETURN pg_backend_pid(); END",
            "BEGIN RETURN 'unfinished",
        ];
        for text in others {
            assert!(body(text).primary.is_some(), "{text}");
        }
    }

    #[test]
    fn names_for_the_catalog() {
        let facts = body("DECLARE a public.mood; b app.email := f(1); BEGIN RETURN app.g(a) <=> b::other; END");
        let name = |schema: Option<&str>, name: &str| Name { schema: schema.map(Into::into), name: name.into() };
        let functions: Vec<_> = facts.functions.iter().map(|call| call.function.clone()).collect();
        assert_eq!(functions, [name(None, "f"), name(Some("app"), "g")]);
        assert!(
            facts.types.contains(&name(Some("public"), "mood")) && facts.types.contains(&name(Some("app"), "email"))
        );
        assert!(facts.types.contains(&name(None, "other")) && facts.operators == ["<=>"]);
        assert!(
            facts.unknown_by_name && matches!(facts.primary, Some(Reason::UnknownFunction | Reason::UnknownOperator))
        );
        assert!(!body("BEGIN EXECUTE q; RETURN f(1); END").unknown_by_name);
    }

    #[test]
    fn words_of_the_language_are_names_in_an_expression() {
        for name in ["next", "query", "notice", "filter", "slice", "over"] {
            let facts = body(&format!("DECLARE x int; BEGIN x := {name}(1); RETURN x; END"));
            assert!(facts.calls_any(&[name]), "{name}");
        }
        assert_eq!(body("BEGIN RETURN a || log 'x'; END").types.len(), 1);
        assert_eq!(body("BEGIN RAISE LOG 'x'; RAISE INFO 'y'; RETURN 'z'; END").types, []);
    }
}
