//! The console's commands: the words of a statement, and what they ask for.

use std::fmt;

/// Something to be done, asked for on the console or over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Of one database, or of all.
    Pause(Option<String>),
    Resume(Option<String>),
    Disable(String),
    Enable(String),
    Reconnect(Option<String>),
    Kill(Option<String>),
    KillClient(u64),
    Reload,
    Suspend,
    WaitClose(Option<String>),
    Set {
        key: String,
        value: String,
    },
    Shutdown(Shutdown),
    /// As SIGTERM does.
    Drain,
    /// Ends the process with exit code 0, once its clients are done.
    Quit,
    /// Of one table, or all.
    EvictCache(Option<String>),
    ResetStatements,
    Eject(String),
    Admit(String),
}

/// What SHUTDOWN waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    Immediate,
    WaitForServers,
    WaitForClients,
}

/// Why a command was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandError {
    pub sqlstate: &'static str,
    pub message: String,
}

impl CommandError {
    /// Bad words (42601).
    pub fn syntax(message: impl Into<String>) -> CommandError {
        CommandError { sqlstate: "42601", message: message.into() }
    }

    /// Promised, but not there yet (0A000).
    pub fn not_built(what: &str) -> CommandError {
        CommandError { sqlstate: "0A000", message: format!("{what} is not built yet") }
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.sqlstate)
    }
}

impl std::error::Error for CommandError {}

/// The commands, for HELP and error messages.
pub const COMMANDS: &[&str] = &[
    "PAUSE [db]",
    "RESUME [db]",
    "DISABLE db",
    "ENABLE db",
    "RECONNECT [db]",
    "KILL [db]",
    "KILL_CLIENT id",
    "RELOAD",
    "SUSPEND",
    "WAIT_CLOSE [db]",
    "SET key = value",
    "SHUTDOWN [WAIT_FOR_SERVERS | WAIT_FOR_CLIENTS]",
    "EVICT CACHE [table]",
    "RESET STATEMENTS",
    "EJECT node",
    "ADMIT node",
    "EXPLAIN ROUTE sql",
];

impl Command {
    /// Its first words.
    pub fn name(&self) -> &'static str {
        match self {
            Command::Pause(_) => "PAUSE",
            Command::Resume(_) => "RESUME",
            Command::Disable(_) => "DISABLE",
            Command::Enable(_) => "ENABLE",
            Command::Reconnect(_) => "RECONNECT",
            Command::Kill(_) => "KILL",
            Command::KillClient(_) => "KILL_CLIENT",
            Command::Reload => "RELOAD",
            Command::Suspend => "SUSPEND",
            Command::WaitClose(_) => "WAIT_CLOSE",
            Command::Set { .. } => "SET",
            Command::Shutdown(_) => "SHUTDOWN",
            Command::Drain => "DRAIN",
            Command::Quit => "QUIT",
            Command::EvictCache(_) => "EVICT CACHE",
            Command::ResetStatements => "RESET STATEMENTS",
            Command::Eject(_) => "EJECT",
            Command::Admit(_) => "ADMIT",
        }
    }

    /// `None`: the first word is no command's.
    ///
    /// # Errors
    /// 42601 where what follows the first word is not what the command takes.
    pub fn parse(words: &[Token]) -> Option<Result<Command, CommandError>> {
        let (first, rest) = words.split_first()?;
        let verb = first.keyword()?;
        Some(match verb.as_str() {
            "pause" => optional(rest).map(Command::Pause),
            "resume" => optional(rest).map(Command::Resume),
            "disable" => required(rest, "a database").map(Command::Disable),
            "enable" => required(rest, "a database").map(Command::Enable),
            "reconnect" => optional(rest).map(Command::Reconnect),
            "kill" => optional(rest).map(Command::Kill),
            "kill_client" => required(rest, "a client's id").and_then(|id| {
                let id = id.parse().map_err(|_| CommandError::syntax(format!("{id:?} is no client's id")))?;
                Ok(Command::KillClient(id))
            }),
            "reload" => none(rest).map(|()| Command::Reload),
            "suspend" => none(rest).map(|()| Command::Suspend),
            "wait_close" => optional(rest).map(Command::WaitClose),
            "set" => set(rest),
            "shutdown" => shutdown(rest),
            "evict" => match rest {
                [word, rest @ ..] if word.is("cache") => optional(rest).map(Command::EvictCache),
                _ => Err(CommandError::syntax("EVICT takes: CACHE [table]")),
            },
            "reset" => match rest {
                [word] if word.is("statements") => Ok(Command::ResetStatements),
                _ => return None,
            },
            "eject" => required(rest, "a node").map(Command::Eject),
            "admit" => required(rest, "a node").map(Command::Admit),
            _ => return None,
        })
    }
}

fn none(rest: &[Token]) -> Result<(), CommandError> {
    if rest.is_empty() { Ok(()) } else { Err(CommandError::syntax("this command takes nothing")) }
}

/// One name, or none. Names such as `host:5432` or `public.t` come as several tokens.
fn optional(rest: &[Token]) -> Result<Option<String>, CommandError> {
    match rest {
        [] => Ok(None),
        [one] => Ok(Some(one.text().to_owned())),
        [Token::Word(_) | Token::Quoted(_), ..] if !rest.windows(2).any(|w| w[0].is_name() && w[1].is_name()) => {
            Ok(Some(rest.iter().map(Token::text).collect()))
        }
        _ => Err(CommandError::syntax("this command takes one name")),
    }
}

fn required(rest: &[Token], what: &str) -> Result<String, CommandError> {
    optional(rest)?.ok_or_else(|| CommandError::syntax(format!("{what} is required")))
}

/// `key = value`, `key TO value`; keys may have a dot.
fn set(rest: &[Token]) -> Result<Command, CommandError> {
    let wrong = || CommandError::syntax("SET takes: key = value");
    let at = rest.iter().position(|t| t.is("to") || *t == Token::Symbol("=".into())).ok_or_else(wrong)?;
    let (key, value) = (&rest[..at], &rest[at + 1..]);
    if key.is_empty() || value.is_empty() {
        return Err(wrong());
    }
    let key = key.iter().map(Token::text).collect::<String>().to_lowercase();
    Ok(Command::Set { key, value: value.iter().map(Token::text).collect() })
}

fn shutdown(rest: &[Token]) -> Result<Command, CommandError> {
    Ok(Command::Shutdown(match rest {
        [] => Shutdown::Immediate,
        [word] if word.is("wait_for_servers") => Shutdown::WaitForServers,
        [word] if word.is("wait_for_clients") => Shutdown::WaitForClients,
        _ => {
            return Err(CommandError::syntax("SHUTDOWN takes: WAIT_FOR_SERVERS or WAIT_FOR_CLIENTS"));
        }
    }))
}

/// One token of the console's small language.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// As written.
    Word(String),
    /// `"…"`, unquoted.
    Quoted(String),
    /// `'…'`, unquoted.
    Literal(String),
    Symbol(String),
}

impl Token {
    /// The unquoted word in lower case.
    pub fn keyword(&self) -> Option<String> {
        match self {
            Token::Word(word) => Some(word.to_lowercase()),
            _ => None,
        }
    }

    /// Is it this unquoted word (given in lower case)?
    pub fn is(&self, keyword: &str) -> bool {
        matches!(self, Token::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    /// Without quotes.
    pub fn text(&self) -> &str {
        match self {
            Token::Word(text) | Token::Quoted(text) | Token::Literal(text) | Token::Symbol(text) => text,
        }
    }

    fn is_name(&self) -> bool {
        !matches!(self, Token::Symbol(_))
    }
}

/// The statements of a string, as tokens; comments are left out and empty statements too.
///
/// # Errors
/// 42601: a quote or comment that does not end.
pub fn statements(sql: &str) -> Result<Vec<Vec<Token>>, CommandError> {
    let mut all = vec![Vec::new()];
    let mut rest = sql.trim_start();
    while let Some(c) = rest.chars().next() {
        let taken = match c {
            ';' => {
                all.push(Vec::new());
                1
            }
            '-' if rest.starts_with("--") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => comment(rest)?,
            _ => {
                let (token, taken) = token(rest, c)?;
                if let Some(statement) = all.last_mut() {
                    statement.push(token);
                }
                taken
            }
        };
        rest = rest[taken..].trim_start();
    }
    all.retain(|statement| !statement.is_empty());
    Ok(all)
}

fn token(rest: &str, c: char) -> Result<(Token, usize), CommandError> {
    match c {
        '\'' => quoted(rest, c).map(|(text, taken)| (Token::Literal(text), taken)),
        '"' => quoted(rest, c).map(|(text, taken)| (Token::Quoted(text), taken)),
        c if is_word(c) => {
            let word = &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())];
            let word = word.split_once("--").map_or(word, |(word, _comment)| word);
            Ok((Token::Word(word.to_owned()), word.len()))
        }
        c => Ok((Token::Symbol(c.to_string()), c.len_utf8())),
    }
}

/// Hyphens belong to words here, because names of hosts have them.
fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '$' | '-')
}

/// A quote doubled inside stands for one.
fn quoted(rest: &str, quote: char) -> Result<(String, usize), CommandError> {
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c != quote {
            text.push(c);
        } else if chars.next_if(|(_, next)| *next == quote).is_some() {
            text.push(quote);
        } else {
            return Ok((text, at + 1));
        }
    }
    Err(CommandError::syntax(format!("unterminated {quote}")))
}

/// Length of a comment, nested ones included, as Postgres has them.
fn comment(rest: &str) -> Result<usize, CommandError> {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let step = if rest[at..].starts_with("/*") {
            depth += 1;
            2
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            2
        } else {
            rest[at..].chars().next().map_or(1, char::len_utf8)
        };
        at += step;
        if depth == 0 {
            return Ok(at);
        }
    }
    Err(CommandError::syntax("unterminated comment"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(sql: &str) -> Option<Result<Command, CommandError>> {
        Command::parse(&statements(sql).unwrap()[0])
    }

    fn command(sql: &str) -> Command {
        parse(sql).unwrap().unwrap()
    }

    #[test]
    fn commands_with_and_without_a_name() {
        assert_eq!(command("PAUSE"), Command::Pause(None));
        assert_eq!(command("pause app;"), Command::Pause(Some("app".into())));
        assert_eq!(command("Pause \"My \"\"App\""), Command::Pause(Some("My \"App".into())));
        assert_eq!(command("kill_client 42"), Command::KillClient(42));
        assert_eq!(command("SHUTDOWN WAIT_FOR_CLIENTS"), Command::Shutdown(Shutdown::WaitForClients));
        assert_eq!(command("EJECT db-replica.local:5432"), Command::Eject("db-replica.local:5432".into()));
        assert_eq!(command("evict cache public.users"), Command::EvictCache(Some("public.users".into())));
        assert_eq!(command("RESET STATEMENTS"), Command::ResetStatements);
    }

    #[test]
    fn set_in_its_forms() {
        let expected = |key: &str, value: &str| Command::Set { key: key.into(), value: value.into() };
        assert_eq!(command("SET extra_float_digits = 3"), expected("extra_float_digits", "3"));
        assert_eq!(command("set Pool.Max to '80'"), expected("pool.max", "80"));
        assert_eq!(command("set x = -1.5"), expected("x", "-1.5"));
        assert!(parse("set x").unwrap().is_err());
        assert!(parse("set = 3").unwrap().is_err());
    }

    #[test]
    fn wrong_words_are_errors_and_other_verbs_are_none() {
        for bad in ["DISABLE", "KILL_CLIENT x", "RELOAD now", "PAUSE a b", "SHUTDOWN fast", "EVICT"] {
            assert_eq!(parse(bad).unwrap().unwrap_err().sqlstate, "42601", "{bad}");
        }
        for other in ["SHOW STATS", "select 1", "RESET ALL", "\"pause\""] {
            assert!(parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn statements_are_split_outside_of_quotes_and_comments() {
        let all = statements("/* a; /* b */ ; */ show x; -- c;\n;set a = 'b;''c'; ").unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[1].last(), Some(&Token::Literal("b;'c".into())));
        assert!(statements(" ; -- nothing").unwrap().is_empty());
        assert_eq!(statements("reload--now").unwrap(), [[Token::Word("reload".into())]]);
        for bad in ["'a", "\"a", "/* a /* */"] {
            assert!(statements(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn any_text_is_taken_without_a_panic() {
        for text in ["é", "'é", "/*é", "/*é*/", "--é", "\u{0}", "a\u{2028}b", "*/", "$1", "\"\"", "''"] {
            let _ = statements(text).map(|all| all.first().map(|s| Command::parse(s)));
        }
    }
}
