//! What the tokens of a query or of a change say, whatever its syntax tree: every call, operator, cast and clause
//! that matters shows in them, so that nothing rests on a parser that is not Postgres's.

use super::builtins;
use super::classify::Notes;
use super::fingerprint::date_word;
use super::functions::{self, Class};
use super::keywords::{Keyword, keyword};
use super::lex::Kind;
use super::view::View;
use super::{Call, Effect, Name, Reason};

/// Parameters that a session sets, or that all nodes of a cluster share: current_setting gives the same on each.
const OF_THE_SESSION: [&str; 17] = [
    "application_name",
    "bytea_output",
    "client_encoding",
    "client_min_messages",
    "datestyle",
    "default_transaction_isolation",
    "extra_float_digits",
    "integer_datetimes",
    "intervalstyle",
    "lock_timeout",
    "search_path",
    "server_encoding",
    "server_version",
    "server_version_num",
    "standard_conforming_strings",
    "statement_timeout",
    "timezone",
];

/// A parameter of [`OF_THE_SESSION`], or a custom one.
pub(super) fn is_of_session(name: &str) -> bool {
    name.contains('.') || OF_THE_SESSION.contains(&name)
}

/// Reads all tokens of `view` and notes what they mean.
pub(super) fn scan(view: View, notes: &mut Notes) {
    run(view, notes, false);
}

/// The same of code in PL/pgSQL: INTO names variables, and each name before a bracket is taken for a call.
pub(super) fn scan_procedural(view: View, notes: &mut Notes) {
    run(view, notes, true);
}

fn run(view: View, notes: &mut Notes, procedural: bool) {
    let mut scan = Scan {
        view,
        notes,
        procedural,
        depth: 0,
        opened: Vec::new(),
        closed: 0,
        casts: Vec::new(),
        definitions: Vec::new(),
        of_value: None,
        name_ends: 0,
        written: false,
    };
    let mut at = 0;
    while at < view.tokens.len() {
        at = scan.token(at);
    }
}

struct Scan<'a, 'n> {
    view: View<'a>,
    notes: &'n mut Notes,
    procedural: bool,
    depth: usize,
    /// Where the brackets now open begin, and where the one closed last began.
    opened: Vec<usize>,
    closed: usize,
    /// Depths inside `CAST (`, where AS stands before a type.
    casts: Vec<usize>,
    /// Depths inside `AS t (column type, …)`.
    definitions: Vec<usize>,
    /// The last name that is looked for in a value: one in brackets, of an array, a parameter, or of such a name.
    of_value: Option<usize>,
    /// Behind the name of a table written to: what stands in brackets there is its columns.
    name_ends: usize,
    /// INSERT, UPDATE, DELETE or MERGE was seen.
    written: bool,
}

impl Scan<'_, '_> {
    /// Reads the token at `at`; returns the next to read.
    fn token(&mut self, at: usize) -> usize {
        let Some(kind) = self.view.kind(at) else { return at + 1 };
        match kind {
            Kind::Word | Kind::Quoted => return self.word(at),
            Kind::Operator if !builtins::is_operator(self.view.raw(at)) => {
                self.notes.operator(self.view.raw(at));
            }
            Kind::Cast => return self.type_name(at + 1),
            Kind::Punct => return self.punct(at),
            // its spelling hides the name
            Kind::UnicodeQuoted | Kind::Other => self.notes.unreadable(),
            Kind::String | Kind::Escaped | Kind::UnicodeString | Kind::Dollar
                if date_word(self.view.raw(at).as_bytes()) =>
            {
                self.notes.facts.transient = true;
                self.notes.facts.by_literal = true;
            }
            _ => {}
        }
        at + 1
    }

    fn punct(&mut self, at: usize) -> usize {
        if self.view.punct(at, b'(') {
            self.depth += 1;
            self.opened.push(at);
            if self.opens_definitions(at) {
                self.definitions.push(self.depth);
                return self.type_name(at + 2);
            }
        } else if self.view.punct(at, b')') {
            self.casts.pop_if(|depth| *depth == self.depth);
            self.definitions.pop_if(|depth| *depth == self.depth);
            self.depth = self.depth.saturating_sub(1);
            self.closed = self.opened.pop().unwrap_or(0);
        } else if self.view.punct(at, b',') && self.definitions.last() == Some(&self.depth) {
            return self.type_name(at + 2);
        }
        at + 1
    }

    /// `AS (name type` or `AS t (name type`, also without AS.
    fn opens_definitions(&self, open: usize) -> bool {
        let view = self.view;
        let not_names = [Keyword::Reserved, Keyword::Column, Keyword::Function];
        let alias = |at| view.is(at, "as") || (view.name(at).is_some() && !is_keyword(view, at, &not_names));
        let behind_alias = open.checked_sub(1).is_some_and(alias);
        let clash =
            ["rows", "range", "groups", "is", "like", "ilike", "similar", "isnull", "notnull", "between", "operator"];
        behind_alias
            && view.name(open + 1).is_some()
            && !is_keyword(view, open + 1, &[Keyword::Reserved])
            && !view.are(open + 1, &["partition", "by"])
            && !self.begins_statement(open + 1)
            && view.name(open + 2).is_some()
            && !is_keyword(view, open + 2, &[Keyword::Reserved])
            && !view.is_any(open + 2, &clash)
            && !self.is_call(open - 1)
    }

    fn word(&mut self, at: usize) -> usize {
        let view = self.view;
        let unquoted = view.kind(at) == Some(Kind::Word);
        let dotted = at > 0 && view.punct(at - 1, b'.');
        let Some(name) = view.name(at) else { return at + 1 };
        if dotted && at > 1 && (self.of_value == Some(at - 2) || view.name(at - 2).is_none()) {
            self.of_value = Some(at);
        }
        if unquoted && !dotted {
            self.clause(at, &name);
            if matches!(name.as_str(), "cast" | "treat" | "xmlserialize") && view.punct(at + 1, b'(') {
                self.casts.push(self.depth + 1);
            }
            if name == "as" && self.casts.last() == Some(&self.depth) {
                return self.type_name(at + 1);
            }
        }
        if view.punct(at + 1, b'(') {
            // an alias with a hazardous name is taken for the function
            if self.is_call(at) || (!dotted && is_hazard(&name)) {
                self.call(at, name);
            }
        } else if view.punct(at + 1, b'.') {
            if builtins::is_temporary_schema(&name) {
                self.notes.reason(Reason::NodeLocal);
                self.notes.effect(Effect::Temporary);
            }
            if self.of_value == Some(at) {
                self.attribute(at, name);
            }
        } else {
            self.plain(at, name, dotted);
        }
        at + 1
    }

    /// A name that is neither called nor a qualifier.
    fn plain(&mut self, at: usize, name: String, dotted: bool) {
        if builtins::is_node_local(&name) {
            self.notes.reason(Reason::NodeLocal);
        }
        if builtins::is_sequence_column(&name) {
            self.notes.reason(Reason::Sequence);
        }
        // locks, and updates that are rolled back, move them without changing the row
        self.notes.facts.transient |= matches!(name.as_str(), "xmax" | "cmin" | "cmax");
        if self.types_constant(at) {
            let schema = if dotted { at.checked_sub(2).and_then(|at| self.view.name(at)) } else { None };
            self.type_use(Name { schema, name });
        } else if dotted {
            self.attribute(at, name);
        }
    }

    /// `type 'constant'`. With a number it is an error, but its fingerprint is that with a string.
    fn types_constant(&self, at: usize) -> bool {
        match self.view.kind(at + 1) {
            Some(Kind::String | Kind::Escaped | Kind::UnicodeString | Kind::Dollar) => !self.precedes_strings(at),
            Some(Kind::Number | Kind::Bits | Kind::Param) => {
                !(self.procedural || self.precedes_strings(at) || self.precedes_numbers(at))
            }
            _ => false,
        }
    }

    /// `GROUP BY 1`, `FETCH FIRST 1 ROWS`, `ROWS 1 PRECEDING`, `JSON_OBJECT (KEY $1 VALUE 1)`.
    fn precedes_numbers(&self, at: usize) -> bool {
        let view = self.view;
        let behind = |words: &[&str]| at > 0 && view.is_any(at - 1, words);
        (view.is(at, "by") && behind(&["group", "order", "partition"]))
            || (view.is_any(at, &["first", "next"]) && behind(&["fetch"]))
            || (view.is_any(at, &["rows", "range", "groups"]) && view.is_any(at + 2, &["preceding", "following"]))
            || (view.is(at, "key") && view.is(at + 2, "value"))
            || (view.is(at, "value") && at > 0 && self.ends_operand(at - 1))
    }

    /// `value.name` calls a function of one argument where the value has no such field: Postgres's
    /// `ParseFuncOrColumn` for any expression in brackets, and for the alias of a row.
    fn attribute(&mut self, at: usize, name: String) {
        let of_alias = self.of_value != Some(at);
        match functions::class(&name) {
            Some(class) if !class.is_harmless() => self.class(class),
            Some(class) if !of_alias => self.class(class),
            None if !of_alias => {
                let function = Name { schema: None, name: name.clone() };
                self.notes.function(Call { function, arguments: Some(1) });
                self.notes.unknown_name(Reason::UnknownFunction);
            }
            _ => {}
        }
        self.notes.attribute(name);
    }

    /// A word of the grammar behind which a string constant may stand.
    fn precedes_strings(&self, at: usize) -> bool {
        let view = self.view;
        let inside = self.opened.last().and_then(|open| open.checked_sub(1));
        is_keyword(view, at, &[Keyword::Reserved, Keyword::Column, Keyword::Function])
            || (view.is_any(at, &["escape", "uescape", "passing"]) && at > 0 && self.ends_operand(at - 1))
            || (view.is(at, "zone") && at > 0 && view.is(at - 1, "time"))
            || (view.is(at, "version") && inside.is_some_and(|name| view.is(name, "xmlroot")))
            || (view.is_any(at, &["content", "document"])
                && inside.is_some_and(|name| view.is_any(name, &["xmlparse", "xmlserialize"])))
            || (self.procedural && super::procedural::precedes_string(view, at))
    }

    /// Unquoted words that open a clause or stand for a value.
    fn clause(&mut self, at: usize, word: &str) {
        let view = self.view;
        match word {
            "into" if !(self.procedural || self.written && self.name_ends > at) => {
                self.notes.reason(Reason::Into);
                if view.is_any(at + 1, &["temp", "temporary", "local", "global"]) {
                    self.notes.effect(Effect::Temporary);
                }
            }
            "insert" | "merge" if view.is(at + 1, "into") => self.writes(at + 2),
            "delete" if view.is(at + 1, "from") => self.writes(at + 2),
            "update" if at > 0 && view.is_any(at - 1, &["for", "key"]) => {
                self.notes.reason(Reason::Locking);
            }
            "update" if !(at > 0 && view.is(at - 1, "do")) => self.writes(at + 1),
            "for" if view.is_any(at + 1, &["update", "share", "no", "key"]) => self.notes.reason(Reason::Locking),
            "operator"
                if view.punct(at + 1, b'(')
                    && !view.is(at + 2, "pg_catalog")
                    && view.kind(at + 2) != Some(Kind::Operator) =>
            {
                self.notes.operator(view.slice(at, at + 6));
            }
            // their columns have types in places of their own
            "xmltable" | "json_table" if view.punct(at + 1, b'(') => self.notes.unreadable(),
            "current_date" | "current_time" | "current_timestamp" | "localtime" | "localtimestamp" | "current_role"
            | "current_user" | "session_user" | "system_user" | "user" | "current_catalog" | "current_schema"
            | "tablesample" => self.notes.facts.transient = true,
            _ => {}
        }
    }

    /// A change whose table is named at `at`.
    fn writes(&mut self, at: usize) {
        self.written = true;
        self.notes.reason(Reason::Write);
        let at = at + usize::from(self.view.is(at, "only"));
        // MERGE … THEN UPDATE SET names none
        if self.view.is(at, "set") {
            return;
        }
        if let Some((name, end)) = self.view.qualified(at) {
            self.name_ends = end;
            self.notes.written(name);
        }
    }

    /// Whether the name before an opening bracket calls a function. What precedes it tells: an operand, a closing
    /// bracket or AS cannot stand before an expression.
    fn is_call(&self, at: usize) -> bool {
        let view = self.view;
        if self.written && at + 1 == self.name_ends {
            return false;
        }
        let Some(before) = at.checked_sub(1) else { return view.kind(at) == Some(Kind::Quoted) };
        if view.punct(before, b'.') {
            return true;
        }
        let own = own_keyword(view, at);
        if self.procedural {
            return match own {
                Some(Keyword::Reserved | Keyword::Column) => false,
                Some(Keyword::Function) => functions::class(&view.name(at).unwrap_or_default()).is_some(),
                _ => !super::procedural::precedes_bracket(view, at),
            };
        }
        match own {
            Some(Keyword::Reserved | Keyword::Column) => return false,
            Some(Keyword::Function)
                if !view.is_any(at, &["left", "right", "overlaps", "collation", "current_schema"]) =>
            {
                return self.opens_expression(before) && !view.is(before, "not");
            }
            _ => {}
        }
        if view.is(before, "as") || self.ends_operand(before) || self.names_common_table(at) || self.names_operator(at)
        {
            return false;
        }
        let pair = |word, behind: &[&str]| view.is(at, word) && view.is_any(before, behind);
        let clause = pair("by", &["group", "order", "partition"])
            || pair("sets", &["grouping"])
            || pair("zone", &["time"])
            || pair("materialized", &["as", "not"])
            || pair("cube", &["by"])
            || pair("rollup", &["by"])
            || pair("conflict", &["on"])
            || pair("varying", &["character", "char", "bit", "nchar"])
            || pair("first", &["fetch"])
            || pair("next", &["fetch"])
            || (self.written && (view.is(at, "set") || pair("insert", &["then"])));
        !clause
    }

    /// `OPERATOR(+)` or `OPERATOR(schema.+)`, whatever stands before it: END of a CASE for one.
    fn names_operator(&self, at: usize) -> bool {
        let name = at + 2 + 2 * usize::from(self.view.punct(at + 3, b'.'));
        let is_name = self.view.kind(name) == Some(Kind::Operator) && self.view.punct(name + 1, b')');
        is_name && self.view.is(at, "operator")
    }

    /// A token behind which a new expression may begin.
    fn opens_expression(&self, at: usize) -> bool {
        match self.view.kind(at) {
            Some(Kind::Operator | Kind::Pair | Kind::Punct) => !self.ends_operand(at),
            Some(Kind::Word) => matches!(own_keyword(self.view, at), Some(Keyword::Reserved | Keyword::Column)),
            _ => false,
        }
    }

    /// A token that ends an operand, or an alias: no expression can begin behind it.
    fn ends_operand(&self, at: usize) -> bool {
        match self.view.kind(at) {
            Some(Kind::Word) => own_keyword(self.view, at).is_none(),
            Some(Kind::Punct) => self.view.punct(at, b']') || (self.view.punct(at, b')') && !self.closed_a_clause()),
            Some(Kind::Operator | Kind::Cast | Kind::Pair | Kind::Other) | None => false,
            Some(_) => true,
        }
    }

    /// The bracket closed last was `DISTINCT ON (…)`, `OPERATOR(…)` or `RETURNING WITH (…)`: an expression follows.
    fn closed_a_clause(&self) -> bool {
        let before = |back| self.closed.checked_sub(back).unwrap_or(usize::MAX);
        self.view.is(before(1), "operator")
            || (self.view.is(before(1), "on") && self.view.is(before(2), "distinct"))
            || (self.view.is(before(1), "with") && self.view.is(before(2), "returning"))
    }

    /// `WITH name (columns) AS (SELECT`: a list of names, then AS, then a statement.
    fn names_common_table(&self, at: usize) -> bool {
        let view = self.view;
        let Some(before) = at.checked_sub(1) else { return false };
        if !(view.is_any(before, &["with", "recursive"]) || view.punct(before, b',')) {
            return false;
        }
        let mut next = at + 2;
        loop {
            if view.name(next).is_none() {
                return false;
            }
            if view.punct(next + 1, b')') {
                break;
            }
            if !view.punct(next + 1, b',') {
                return false;
            }
            next += 2;
        }
        next += 2;
        if !view.is(next, "as") {
            return false;
        }
        next += 1;
        next += usize::from(view.is(next, "not"));
        next += usize::from(view.is(next, "materialized"));
        view.punct(next, b'(') && (self.begins_statement(next + 1) || view.punct(next + 1, b'('))
    }

    /// A statement where there might be columns with their types, which may have a name like `update`.
    fn begins_statement(&self, at: usize) -> bool {
        let view = self.view;
        let changes = || {
            let behind = view.qualified(at + 1).map_or(at, |(_, end)| end);
            let of_column = [b',', b')', b'[', b'('].iter().any(|byte| view.punct(behind, *byte));
            view.is(at + 1, "only") || !of_column
        };
        view.is_any(at, &["select", "with", "table"])
            || (view.is(at, "values") && view.punct(at + 1, b'('))
            || view.are(at, &["delete", "from"])
            || view.are(at, &["insert", "into"])
            || view.are(at, &["merge", "into"])
            || (view.is(at, "update") && changes())
    }

    fn call(&mut self, at: usize, name: String) {
        let schema = match at.checked_sub(2) {
            Some(before) if self.view.punct(at - 1, b'.') => match self.view.name(before) {
                Some(schema) => Some(schema),
                None => return self.notes.unreadable(),
            },
            _ => None,
        };
        let built_in = schema.as_deref().is_none_or(|schema| schema == "pg_catalog");
        let class = if built_in { functions::class(&name) } else { None };
        let reads_setting = name == "current_setting";
        self.notes.function(Call { function: Name { schema, name }, arguments: self.view.arguments(at + 1) });
        match class {
            Some(Class::SetConfig) => self.set_config(at),
            Some(class) if reads_setting => self.current_setting(at, class),
            Some(class) => self.class(class),
            None => self.notes.unknown_name(Reason::UnknownFunction),
        }
    }

    /// A custom parameter is the session's own, some others too; the rest may be another on each node
    /// (transaction_read_only, max_connections).
    fn current_setting(&mut self, at: usize, class: Class) {
        self.notes.facts.by_literal = true;
        let name = self.view.string(at + 2).map(|name| name.to_ascii_lowercase());
        let own = name.is_some_and(|name| is_of_session(&name));
        self.class(if own { class } else { Class::SideEffect });
    }

    /// set_config somewhere in a query: whether and how often it is called cannot be told, unless it is local to the
    /// transaction; the server tells of all but custom parameters.
    fn set_config(&mut self, at: usize) {
        self.notes.reason(Reason::Session);
        self.notes.facts.by_literal = true;
        self.notes.facts.transient = true;
        let view = self.view;
        let last = view.closing(at + 1).and_then(|end| end.checked_sub(1)).filter(|&last| last > at + 2);
        let local = last.is_some_and(|last| view.punct(last - 1, b',') && view.is(last, "true"));
        if local {
            return;
        }
        let name = view.string(at + 2).filter(|name| !name.contains('.') && view.punct(at + 3, b','));
        match name {
            Some(name) => self.notes.sets_unseen_value(name.to_ascii_lowercase()),
            None => self.notes.sets_unseen(),
        }
    }

    fn class(&mut self, class: Class) {
        self.notes.facts.transient |= !class.is_cacheable();
        match class {
            Class::Immutable | Class::Stable | Class::Transient | Class::VolatileHarmless => {}
            Class::Sequence => self.notes.reason(Reason::Sequence),
            Class::Lock => self.notes.reason(Reason::Lock),
            Class::SideEffect => self.notes.reason(Reason::SideEffect),
            Class::SessionLock => {
                self.notes.reason(Reason::Lock);
                self.notes.effect(Effect::AdvisoryLock);
            }
            Class::UnlockAll => {
                self.notes.reason(Reason::Lock);
                self.notes.effect(Effect::AdvisoryUnlockAll);
            }
            Class::SetConfig | Class::Opaque => {
                self.notes.reason(Reason::SideEffect);
                self.notes.unknown();
            }
        }
    }

    /// Reads the name of a type at `at`; returns what follows.
    fn type_name(&mut self, at: usize) -> usize {
        let view = self.view;
        let Some((name, mut end)) = view.qualified(at + usize::from(view.is(at, "setof"))) else { return at };
        // Whether its zone has summer time, is asked of today.
        let is_zoned = |name: &str| match name {
            "time" => view.is(if view.punct(end, b'(') { end + 3 } else { end }, "with"),
            _ => name == "timetz",
        };
        self.notes.facts.transient |= is_zoned(&name.name);
        self.type_use(name);
        // the later words of the SQL standard's spellings, before their lengths in brackets
        for word in ["character", "char", "varying", "precision"] {
            end += usize::from(view.is(end, word));
        }
        end
    }

    fn type_use(&mut self, name: Name) {
        let built_in = name.schema.as_deref().is_none_or(|schema| schema == "pg_catalog");
        if !(built_in && builtins::is_type(&name.name)) {
            self.notes.type_use(name);
        }
    }
}

fn is_hazard(name: &str) -> bool {
    functions::class(name).is_some_and(|class| !class.is_harmless())
}

fn own_keyword(view: View, at: usize) -> Option<Keyword> {
    match view.kind(at) {
        Some(Kind::Word) => keyword(&view.name(at)?),
        _ => None,
    }
}

fn is_keyword(view: View, at: usize, kinds: &[Keyword]) -> bool {
    own_keyword(view, at).is_some_and(|found| kinds.contains(&found))
}
