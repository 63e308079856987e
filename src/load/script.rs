//! The script of a turn: statements, and variables drawn anew in each turn.
//!
//! ```sql
//! \set id random(1, 100000)
//! SELECT abalance FROM pgbench_accounts WHERE aid = :id;
//! ```
//!
//! A line that begins with `\set NAME` gives a variable a whole number: one written out, that of another variable, or
//! `random(LOW, HIGH)` with both ends included, evenly. `:NAME` stands for it in the statements behind, as in pgbench
//! also within quotes; `::` is a cast, and a name that no line sets stays as it is. Statements end with `;` and are
//! sent one by one.

use std::fmt::Write;
use std::ops::Range;

use crate::random::Random;
use crate::sql::lex::{Lexer, Strings};

/// A script, ready to be run any number of times.
#[derive(Debug, Clone)]
pub struct Script {
    steps: Vec<Step>,
    variables: usize,
}

#[derive(Debug, Clone)]
enum Step {
    Set(usize, Expression),
    Statement(Vec<Piece>),
}

#[derive(Debug, Clone)]
enum Piece {
    Text(String),
    Variable(usize),
}

#[derive(Debug, Clone, Copy)]
enum Operand {
    Number(i64),
    Variable(usize),
}

#[derive(Debug, Clone, Copy)]
enum Expression {
    Is(Operand),
    Random(Operand, Operand),
}

/// Both ends included; where they are the wrong way round, `low`.
fn between(random: &mut Random, low: i64, high: i64) -> i64 {
    let span = (i128::from(high) - i128::from(low) + 1).max(1);
    // below `span`, so the sum lies between the two
    let drawn = (u128::from(random.draw()) * span.unsigned_abs()) >> 64;
    (i128::from(low) + drawn as i128) as i64
}

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// What is wrong, with its line.
    pub fn parse(text: &str) -> Result<Script, String> {
        let mut reading = Reading::default();
        for (at, line) in text.lines().enumerate() {
            // Only between statements: behind an open quote or half a statement a backslash is SQL's.
            match line.trim_start().strip_prefix('\\').filter(|_| reading.is_between()) {
                Some(command) => reading.command(command).map_err(|why| format!("line {}: {why}", at + 1))?,
                None => reading.sql(line),
            }
        }
        reading.finish()
    }

    /// Draws the variables of one turn; its statements, in their order, into `out`.
    pub fn turn(&self, random: &mut Random, out: &mut Vec<String>) {
        let mut values = vec![0; self.variables];
        out.clear();
        for step in &self.steps {
            match step {
                Step::Set(variable, expression) => values[*variable] = expression.value(&values, random),
                Step::Statement(pieces) => out.push(render(pieces, &values)),
            }
        }
    }
}

fn render(pieces: &[Piece], values: &[i64]) -> String {
    let mut text = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(literal) => text.push_str(literal),
            // Writing to a String does not fail.
            Piece::Variable(variable) => drop(write!(text, "{}", values[*variable])),
        }
    }
    text
}

impl Expression {
    fn value(self, values: &[i64], random: &mut Random) -> i64 {
        let of = |operand| match operand {
            Operand::Number(number) => number,
            Operand::Variable(variable) => values[variable],
        };
        match self {
            Expression::Is(operand) => of(operand),
            Expression::Random(low, high) => between(random, of(low), of(high)),
        }
    }
}

/// A script half read.
#[derive(Debug, Default)]
struct Reading {
    steps: Vec<Step>,
    /// The variables set so far; each set line makes its own, so that a later one leaves earlier statements alone.
    names: Vec<String>,
    /// SQL behind the last whole statement.
    pending: String,
}

impl Reading {
    fn is_between(&self) -> bool {
        is_blank(&self.pending) && !ends_inside(&self.pending)
    }

    fn sql(&mut self, line: &str) {
        self.pending += line;
        self.pending.push('\n');
        while let Some(statement) = first_statement(&self.pending) {
            let text = self.pending[statement.clone()].to_owned();
            self.pending.drain(..=statement.end);
            self.push(&text);
        }
    }

    /// An empty statement is left out.
    fn push(&mut self, text: &str) {
        if !is_blank(text) {
            let pieces = self.pieces(text.trim());
            self.steps.push(Step::Statement(pieces));
        }
    }

    fn finish(mut self) -> Result<Script, String> {
        if ends_inside(&self.pending) {
            return Err("the last statement ends inside a quote or comment".into());
        }
        let rest = std::mem::take(&mut self.pending);
        self.push(&rest);
        if !self.steps.iter().any(|step| matches!(step, Step::Statement(_))) {
            return Err("there is no statement".into());
        }
        Ok(Script { steps: self.steps, variables: self.names.len() })
    }

    fn command(&mut self, line: &str) -> Result<(), String> {
        let rest = line.strip_prefix("set ").ok_or_else(|| format!("\\{line}: the only command is \\set"))?;
        let (name, expression) = rest.trim().split_once(char::is_whitespace).ok_or("\\set needs a name and a value")?;
        if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') || !name.bytes().all(is_name_byte) {
            return Err(format!("{name} is no name for a variable: letters, digits and _"));
        }
        let expression = self.expression(expression.trim())?;
        self.names.push(name.to_owned());
        self.steps.push(Step::Set(self.names.len() - 1, expression));
        Ok(())
    }

    fn expression(&self, text: &str) -> Result<Expression, String> {
        let Some(inner) = text.strip_prefix("random(").and_then(|rest| rest.strip_suffix(')')) else {
            return Ok(Expression::Is(self.operand(text)?));
        };
        let (low, high) = inner.split_once(',').ok_or("random needs two ends: random(1, 100)")?;
        let (low, high) = (self.operand(low.trim())?, self.operand(high.trim())?);
        match (low, high) {
            (Operand::Number(a), Operand::Number(b)) if a > b => Err(format!("random({a}, {b}): {a} is above {b}")),
            _ => Ok(Expression::Random(low, high)),
        }
    }

    fn operand(&self, text: &str) -> Result<Operand, String> {
        if let Some(name) = text.strip_prefix(':') {
            let variable = self.variable(name).ok_or_else(|| format!("{name} is not set above"))?;
            return Ok(Operand::Variable(variable));
        }
        let number = text.parse().map_err(|_| format!("{text} is no whole number, :variable or random(low, high)"))?;
        Ok(Operand::Number(number))
    }

    fn variable(&self, name: &str) -> Option<usize> {
        self.names.iter().rposition(|known| known == name)
    }

    fn pieces(&self, text: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let (mut plain, mut from) = (0, 0);
        while let Some(colon) = text[from..].find(':').map(|at| from + at) {
            let rest = &text[colon + 1..];
            let length = rest.bytes().take_while(|&b| is_name_byte(b)).count();
            // The second colon of a cast is not the start of a variable.
            let is_cast = rest.starts_with(':');
            from = colon + if is_cast { 2 } else { 1 };
            if let Some(variable) = self.variable(&rest[..length]).filter(|_| !is_cast) {
                pieces.push(Piece::Text(text[plain..colon].to_owned()));
                pieces.push(Piece::Variable(variable));
                from = colon + 1 + length;
                plain = from;
            }
        }
        pieces.push(Piece::Text(text[plain..].to_owned()));
        pieces
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The text up to its first semicolon outside quotes, comments and parentheses (which rules have around several
/// commands), as psql splits.
fn first_statement(text: &str) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let mut depth = 0usize;
    for token in Lexer::new(bytes, Strings::Standard) {
        if token.is(bytes, b'(') {
            depth += 1;
        } else if token.is(bytes, b')') {
            depth = depth.saturating_sub(1);
        } else if token.is(bytes, b';') && depth == 0 {
            return Some(0..token.start);
        }
    }
    None
}

fn is_blank(text: &str) -> bool {
    Lexer::new(text.as_bytes(), Strings::Standard).next().is_none()
}

fn ends_inside(text: &str) -> bool {
    let mut lexer = Lexer::new(text.as_bytes(), Strings::Standard);
    while lexer.next().is_some() {}
    lexer.unsure().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statements(text: &str) -> Vec<String> {
        let mut out = Vec::new();
        Script::parse(text).unwrap().turn(&mut Random::new(1), &mut out);
        out
    }

    #[test]
    fn statements_end_at_semicolons() {
        assert_eq!(statements("SELECT 1"), ["SELECT 1"]);
        assert_eq!(
            statements("BEGIN; SELECT ';' -- no; end\n, $$;$$;;\n /* ; */ COMMIT;\n-- the end\n"),
            ["BEGIN", "SELECT ';' -- no; end\n, $$;$$", "/* ; */ COMMIT"]
        );
        assert_eq!(statements("SELECT 1;\nSELECT\n 2;"), ["SELECT 1", "SELECT\n 2"]);
    }

    #[test]
    fn variables_are_replaced_behind_their_line() {
        assert_eq!(
            statements(
                "SELECT :a;\n\\set a 4\n\\set b :a\nSELECT :a, ':b', :a::int, 12:30, :c, x[:a:9];\n\\set a 5\nSELECT :a"
            ),
            ["SELECT :a", "SELECT 4, '4', 4::int, 12:30, :c, x[4:9]", "SELECT 5"]
        );
        // A prefix of a name is another name.
        assert_eq!(statements("\\set a 1\n\\set ab 2\nSELECT :ab:a"), ["SELECT 21"]);
    }

    #[test]
    fn draws_are_within_both_ends_and_reach_them() {
        let script = Script::parse("\\set x random(-1, 1)\n\\set y random(7, :x)\nSELECT :x").unwrap();
        let (mut random, mut out) = (Random::new(7), Vec::new());
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            script.turn(&mut random, &mut out);
            seen.insert(out[0].clone());
        }
        assert_eq!(Vec::from_iter(seen), ["SELECT -1", "SELECT 0", "SELECT 1"]);
        let mut widest = Random::new(3);
        let drawn: Vec<i64> = (0..100).map(|_| between(&mut widest, i64::MIN, i64::MAX)).collect();
        assert!(drawn.iter().any(|&n| n < 0) && drawn.iter().any(|&n| n > 0));
    }

    #[test]
    fn a_backslash_within_a_statement_is_sql() {
        assert_eq!(statements("SELECT '\n\\set a 1\n'"), ["SELECT '\n\\set a 1\n'"]);
    }

    #[test]
    fn what_is_no_script_is_said() {
        for (text, why) in [
            ("", "no statement"),
            ("-- nothing\n;;", "no statement"),
            ("\\set a 1", "no statement"),
            ("SELECT 1;\n\\sleep 5", "line 2: \\sleep 5: the only command"),
            ("\\set a", "line 1: \\set needs"),
            ("\\set 1a 5\nSELECT 1", "no name"),
            ("\\set a random(5)\nSELECT 1", "two ends"),
            ("\\set a random(5, 1)\nSELECT 1", "above"),
            ("\\set a random(1, :n)\nSELECT 1", "n is not set"),
            ("\\set a 1 + 1\nSELECT 1", "no whole number"),
            ("SELECT 'open", "ends inside"),
            ("SELECT 1; /* open", "ends inside"),
        ] {
            let error = Script::parse(text).unwrap_err();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
