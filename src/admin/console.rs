//! The admin console: answers to simple queries on the databases `pgweir` and `pgbouncer`.
//!
//! SHOW is PgBouncer's, column by column. What drivers say on their own (SET, SHOW of a parameter, `select 1`) gets
//! a sensible answer, so that any client can be used.

use std::time::Instant;

use super::Admin;
use super::columns::{Column, INT4, TEXT};
use super::command::{COMMANDS, Command, CommandError, Token, statements};
use super::show::{self, LATER, SHOWS};

/// The answer to one statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// RowDescription, DataRow each, CommandComplete.
    Rows { columns: Vec<Column>, rows: Vec<Vec<Option<String>>>, tag: String },
    /// CommandComplete.
    Complete(String),
    /// ErrorResponse; nothing of the string is done after it.
    Error { sqlstate: &'static str, message: String },
    /// EmptyQueryResponse.
    Empty,
}

impl From<CommandError> for Answer {
    fn from(error: CommandError) -> Answer {
        Answer::Error { sqlstate: error.sqlstate, message: error.message }
    }
}

/// Parameters that drivers read and set of themselves. Setting one is answered and changes nothing.
const DRIVER_PARAMETERS: &[(&str, &str)] = &[
    ("application_name", ""),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("client_min_messages", "notice"),
    ("datestyle", "ISO, MDY"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("extra_float_digits", "1"),
    ("idle_in_transaction_session_timeout", "0"),
    ("integer_datetimes", "on"),
    ("intervalstyle", "postgres"),
    ("lock_timeout", "0"),
    ("search_path", "\"$user\", public"),
    ("server_encoding", "UTF8"),
    ("standard_conforming_strings", "on"),
    ("statement_timeout", "0"),
    ("timezone", "UTC"),
    ("transaction_isolation", "read committed"),
];

impl Admin {
    /// Answers a Query message: one answer for each statement, up to the first error.
    pub async fn answer(&self, sql: &str, now: Instant) -> Vec<Answer> {
        if let Some(route) = explained(sql) {
            return vec![self.explain_route(route)];
        }
        let statements = match statements(sql) {
            Ok(statements) if statements.is_empty() => return vec![Answer::Empty],
            Ok(statements) => statements,
            Err(error) => return vec![error.into()],
        };
        let mut answers = Vec::with_capacity(statements.len());
        for statement in &statements {
            let answer = self.statement(statement, now).await;
            let failed = matches!(answer, Answer::Error { .. });
            answers.push(answer);
            if failed {
                break;
            }
        }
        answers
    }

    async fn statement(&self, words: &[Token], now: Instant) -> Answer {
        if let Some(answer) = self.show(words, now).or_else(|| driver_statement(words)) {
            return answer;
        }
        match Command::parse(words) {
            Some(Ok(command)) => self.command(command).await.map_or_else(Answer::from, Answer::Complete),
            Some(Err(error)) => error.into(),
            None => unknown(words),
        }
    }

    /// Does a command: here where statistics alone are concerned, else where the source leads.
    ///
    /// # Errors
    /// The source's.
    pub(super) async fn command(&self, command: Command) -> Result<String, CommandError> {
        tracing::info!(command = command.name(), "admin command");
        match command {
            Command::ResetStatements => {
                (self.sources.command)(command).await?;
                self.stats.statements.reset();
                Ok("RESET STATEMENTS".into())
            }
            command => (self.sources.command)(command).await,
        }
    }

    /// SHOW name, and PgBouncer's SELECT name. `None`: it is neither.
    fn show(&self, words: &[Token], now: Instant) -> Option<Answer> {
        let (first, rest) = words.split_first()?;
        if !(first.is("show") || first.is("select") && rest.len() == 1) {
            return None;
        }
        let name = rest.iter().map(Token::text).collect::<Vec<_>>().join("_").to_lowercase();
        if name == "help" {
            return Some(help());
        }
        if let Some(table) = show::table(self, &name, now) {
            return Some(rows(table.columns, table.rows));
        }
        if LATER.iter().any(|later| later.eq_ignore_ascii_case(&name)) {
            return Some(CommandError::not_built(&format!("SHOW {}", name.to_uppercase())).into());
        }
        if first.is("select") {
            return None;
        }
        let parameter = parameter(&name).map(|(name, value)| rows(vec![(name, TEXT)], vec![vec![Some(value.into())]]));
        Some(parameter.unwrap_or_else(|| unknown(words)))
    }

    fn explain_route(&self, sql: &str) -> Answer {
        match (self.sources.explain_route)(sql) {
            Ok(lines) => {
                let lines = lines.into_iter().map(|line| vec![Some(line)]).collect();
                let columns = vec![("ROUTE", TEXT)];
                Answer::Rows { columns, rows: lines, tag: "EXPLAIN".into() }
            }
            Err(error) => error.into(),
        }
    }
}

fn rows(columns: Vec<Column>, rows: Vec<Vec<Option<String>>>) -> Answer {
    Answer::Rows { columns, rows, tag: "SHOW".into() }
}

/// The statement behind EXPLAIN ROUTE, untouched: it is not of the console's language.
fn explained(sql: &str) -> Option<&str> {
    let rest = keyword(sql.trim_start(), "explain")?;
    let rest = keyword(rest, "route")?;
    let rest = rest.trim_end().trim_end_matches(';').trim_end();
    (!rest.is_empty()).then_some(rest)
}

fn keyword<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(word.len())?;
    (head.eq_ignore_ascii_case(word) && rest.starts_with(char::is_whitespace)).then(|| rest.trim_start())
}

/// By the name as SHOW has it, where `TIME ZONE` and `TRANSACTION ISOLATION LEVEL` come as words.
fn parameter(name: &str) -> Option<(&'static str, &'static str)> {
    let name = match name {
        "time_zone" => "timezone",
        "transaction_isolation_level" => "transaction_isolation",
        name => name,
    };
    DRIVER_PARAMETERS.iter().copied().find(|(known, _)| *known == name)
}

/// What drivers and their pools send unasked.
fn driver_statement(words: &[Token]) -> Option<Answer> {
    let (first, rest) = words.split_first()?;
    let verb = first.keyword()?;
    let tag = match (verb.as_str(), rest) {
        ("select", _) => return selected(rest),
        ("set", rest) => {
            let scoped = rest.first()?.is("session") || rest.first()?.is("local");
            let key = rest.get(usize::from(scoped))?.text().to_lowercase();
            let ignored = parameter(&key).is_some()
                || matches!(key.as_str(), "time" | "names" | "characteristics" | "transaction");
            ignored.then_some("SET")?
        }
        ("reset", [name]) if name.is("all") || parameter(&name.text().to_lowercase()).is_some() => "RESET",
        ("discard", [what]) if what.is("all") => "DISCARD ALL",
        ("begin", _) => "BEGIN",
        ("start", [what, ..]) if what.is("transaction") => "START TRANSACTION",
        ("commit" | "end", []) => "COMMIT",
        ("rollback" | "abort", []) => "ROLLBACK",
        ("deallocate", _) => "DEALLOCATE",
        ("unlisten", _) => "UNLISTEN",
        ("close", _) => "CLOSE CURSOR",
        _ => return None,
    };
    Some(Answer::Complete(tag.into()))
}

/// A probe such as `select 1`, `select version()`.
fn selected(list: &[Token]) -> Option<Answer> {
    let (column, value) = match list {
        [Token::Word(number)] if number.parse::<i32>().is_ok() => (("?column?", INT4), number.clone()),
        [Token::Literal(text)] => (("?column?", TEXT), text.clone()),
        [name, Token::Symbol(open), Token::Symbol(close)] if name.is("version") && open == "(" && close == ")" => {
            (("version", TEXT), concat!("pgweir ", env!("CARGO_PKG_VERSION")).to_owned())
        }
        _ => return None,
    };
    let rows = vec![vec![Some(value)]];
    Some(Answer::Rows { columns: vec![column], rows, tag: "SELECT 1".into() })
}

fn unknown(words: &[Token]) -> Answer {
    let said: String = words.iter().map(Token::text).collect::<Vec<_>>().join(" ").chars().take(80).collect();
    let known = format!("SHOW {}; {}", SHOWS.join("|"), COMMANDS.join("; "));
    CommandError::syntax(format!("the admin console does not know {said:?}; it knows: {known}")).into()
}

fn help() -> Answer {
    let shows = SHOWS.iter().map(|name| format!("SHOW {name}"));
    let commands = COMMANDS.iter().map(|command| (*command).to_owned());
    let lines = shows.chain(commands).map(|line| vec![Some(line)]).collect();
    rows(vec![("command", TEXT)], lines)
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
