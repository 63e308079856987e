//! One table of the file, read key by key: each read gives the key's value or its default, and reports faults.
//!
//! A key that no read asked for is unknown, so the parser is its own list of known keys.

use std::cell::RefCell;
use std::fmt::Display;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Severity;
use super::file::{Expect, NamedFile, Walk, dotted, type_name};
use super::suggest::nearest;
use super::{Secret, env};

/// A table of the file, or one that the file leaves out.
pub(super) struct Section<'w, 't> {
    walk: &'w Walk<'w>,
    /// Dotted.
    path: String,
    /// As the file would write it: `[pool]`, `[[databases]]`.
    title: String,
    line: usize,
    table: Option<&'t DeTable<'t>>,
    asked: RefCell<Vec<&'static str>>,
}

/// A value that is one piece of text, as the file has it.
pub(super) struct Scalar {
    /// With the environment's values in it.
    pub(super) text: String,
    /// For messages: without the environment's values, which may be secret.
    pub(super) shown: String,
    pub(super) written: Written,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    Text,
    /// Text with `${…}` in it: may stand for a number or a boolean too.
    Expanded,
    Number,
    Boolean,
}

impl Drop for Section<'_, '_> {
    /// Whatever has not been asked for by now is unknown. Done here so that no section can forget to.
    fn drop(&mut self) {
        if let Some(table) = self.table {
            self.walk.note_unknown(&self.path, &self.title, table, &self.asked.borrow());
        }
    }
}

impl<'w, 't> Section<'w, 't> {
    pub(super) fn new(
        walk: &'w Walk<'w>,
        path: String,
        title: String,
        line: usize,
        table: Option<&'t DeTable<'t>>,
    ) -> Self {
        Section { walk, path, title, line, table, asked: RefCell::default() }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Where the key is, or else its table.
    pub(super) fn line_of(&self, key: &str) -> usize {
        self.table.and_then(|table| table.get(key)).map_or(self.line, |value| self.walk.line_of(value))
    }

    pub(super) fn error(&self, key: &str, complaint: impl Display, hint: impl Into<String>) {
        self.say(Severity::Error, self.line_of(key), key, complaint, hint);
    }

    pub(super) fn warning(&self, key: &str, complaint: impl Display, hint: impl Into<String>) {
        self.say(Severity::Warning, self.line_of(key), key, complaint, hint);
    }

    fn say(&self, severity: Severity, line: usize, key: &str, complaint: impl Display, hint: impl Into<String>) {
        let message = format!("{key:?} in {} {complaint}", self.title);
        let hint = Some(hint.into()).filter(|hint| !hint.is_empty());
        self.walk.report(severity, line, &dotted(&self.path, key), message, hint);
    }

    pub(super) fn missing(&self, key: &str, hint: impl Into<String>) {
        let message = format!("{key:?} is missing in {}", self.title);
        self.walk.report_absent(self.line, &dotted(&self.path, key), message, hint.into());
    }

    // ---- tables ----

    /// A table below this one; one that the file leaves out has the defaults.
    pub(super) fn section(&self, key: &'static str) -> Section<'w, 't> {
        let path = dotted(&self.path, key);
        let title = format!("[{path}]");
        let (line, table) = match self.value(key) {
            None => (self.line, None),
            Some(value) => match value.get_ref() {
                DeValue::Table(table) => (self.walk.line_of(value), Some(table)),
                other => {
                    let complaint = format_args!("must be a table, not {}", type_name(other));
                    self.error(key, complaint, format!("write {title} on a line of its own"));
                    (self.line, None)
                }
            },
        };
        Section::new(self.walk, path, title, line, table)
    }

    /// An array of tables below this one.
    pub(super) fn sections(&self, key: &'static str) -> Vec<Section<'w, 't>> {
        let path = dotted(&self.path, key);
        let title = format!("[[{path}]]");
        let hint = || format!("begin each with {title} on a line of its own");
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let DeValue::Array(items) = value.get_ref() else {
            let complaint = format_args!("must be an array, not {}", type_name(value.get_ref()));
            self.error(key, complaint, hint());
            return Vec::new();
        };
        let mut sections = Vec::new();
        for item in items.iter() {
            let line = self.walk.line_of(item);
            if let DeValue::Table(table) = item.get_ref() {
                let (path, title) = (path.clone(), title.clone());
                sections.push(Section::new(self.walk, path, title, line, Some(table)));
            } else {
                let complaint = format_args!("must hold tables, not {}", type_name(item.get_ref()));
                self.say(Severity::Error, line, key, complaint, hint());
            }
        }
        sections
    }

    /// [`Section::sections`], of which there must be one.
    pub(super) fn required_sections(&self, key: &'static str, hint: &str) -> Vec<Section<'w, 't>> {
        let sections = self.sections(key);
        match self.table.and_then(|table| table.get(key)).map(Spanned::get_ref) {
            None => self.missing(key, hint),
            Some(DeValue::Array(items)) if items.is_empty() => self.error(key, "is empty", hint),
            Some(_) => {}
        }
        sections
    }

    // ---- texts ----

    /// Any text; `""` where the file has a fault.
    pub(super) fn text(&self, key: &'static str, default: &str) -> String {
        self.text_if_set(key).unwrap_or_else(|| default.to_owned())
    }

    /// `None` when left out; may be `""`.
    pub(super) fn text_if_set(&self, key: &'static str) -> Option<String> {
        let scalar = self.scalar(key, "a string")?;
        if matches!(scalar.written, Written::Text | Written::Expanded) {
            return Some(scalar.text);
        }
        self.error(key, "must be a string", "put it in double quotes");
        None
    }

    /// A text for which left out and `""` both mean none.
    pub(super) fn text_or_none(&self, key: &'static str) -> Option<String> {
        self.text_if_set(key).filter(|text| !text.is_empty())
    }

    /// A text without which the table makes no sense; `None` when that was reported.
    pub(super) fn required_text(&self, key: &'static str, hint: &str) -> Option<String> {
        if !self.has(key) {
            self.asked(key);
            self.missing(key, hint);
            return None;
        }
        let text = self.text_if_set(key)?;
        if text.is_empty() {
            self.error(key, "must not be empty", hint);
            return None;
        }
        Some(text)
    }

    /// A text that no message repeats; `""` is a fault, because an unset variable often looks like that.
    pub(super) fn secret(&self, key: &'static str) -> Option<Secret> {
        let text = self.text_if_set(key)?;
        if text.is_empty() {
            self.error(key, "must not be empty", "leave the key out to have none");
            return None;
        }
        Some(Secret(text))
    }

    /// A path, with `""` for none; remembered so that it can be tried.
    pub(super) fn path(&self, key: &'static str, expect: Expect) -> Option<PathBuf> {
        let path = PathBuf::from(self.text_or_none(key)?);
        self.expect_at(key, path.clone(), expect);
        Some(path)
    }

    /// Remembers that `expect` must be at `path`.
    pub(super) fn expect_at(&self, key: &str, path: PathBuf, expect: Expect) {
        let (line, key) = (self.line_of(key), dotted(&self.path, key));
        self.walk.name_file(NamedFile { line, key, path, expect });
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, key: &'static str, default: T, words: &[(&str, T)]) -> T {
        let listed = || words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        let Some(scalar) = self.scalar(key, "a string") else {
            return default;
        };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == scalar.text) {
            return *value;
        }
        let hint = match nearest(&scalar.text, words.iter().map(|(word, _)| *word)) {
            Some(meant) => format!("did you mean {meant:?}? It may be {}", listed()),
            None => format!("it may be {}", listed()),
        };
        self.error(key, format_args!("cannot be {}", scalar.shown), hint);
        default
    }

    /// An array of texts.
    pub(super) fn texts(&self, key: &'static str) -> Vec<String> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let DeValue::Array(items) = value.get_ref() else {
            let complaint = format_args!("must be an array, not {}", type_name(value.get_ref()));
            self.error(key, complaint, "write [\"one\", \"two\"]");
            return Vec::new();
        };
        let mut texts = Vec::new();
        for item in items.iter() {
            let line = self.walk.line_of(item);
            match item.get_ref() {
                DeValue::String(raw) => texts.extend(self.expand(key, raw, line)),
                other => {
                    let complaint = format_args!("must hold strings, not {}", type_name(other));
                    self.say(Severity::Error, line, key, complaint, "put it in double quotes");
                }
            }
        }
        texts
    }

    // ---- values ----

    /// Whether the key is left out or says `"auto"`; to be asked before reading it as something else.
    pub(super) fn is_auto(&self, key: &'static str) -> bool {
        self.asked(key);
        match self.table.and_then(|table| table.get(key)).map(Spanned::get_ref) {
            None => true,
            Some(DeValue::String(text)) => env::expand(text, self.walk.env).is_ok_and(|text| text == "auto"),
            Some(_) => false,
        }
    }

    fn asked(&self, key: &'static str) {
        self.asked.borrow_mut().push(key);
        self.walk.know(dotted(&self.path, key));
    }

    fn value(&self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.asked(key);
        self.table?.get(key)
    }

    pub(super) fn scalar(&self, key: &'static str, expected: &str) -> Option<Scalar> {
        let value = self.value(key)?;
        let line = self.walk.line_of(value);
        let (text, shown, written) = match value.get_ref() {
            DeValue::String(raw) => {
                let written = if env::is_expandable(raw) { Written::Expanded } else { Written::Text };
                (self.expand(key, raw, line)?, format!("{raw:?}"), written)
            }
            DeValue::Integer(integer) => {
                let Ok(number) = i128::from_str_radix(integer.as_str(), integer.radix()) else {
                    self.error(key, format_args!("is out of range: {integer}"), "");
                    return None;
                };
                (number.to_string(), integer.to_string(), Written::Number)
            }
            DeValue::Float(float) => (float.to_string(), float.to_string(), Written::Number),
            DeValue::Boolean(truth) => (truth.to_string(), truth.to_string(), Written::Boolean),
            other => {
                let complaint = format_args!("must be {expected}, not {}", type_name(other));
                self.error(key, complaint, "");
                return None;
            }
        };
        Some(Scalar { text, shown, written })
    }

    fn expand(&self, key: &str, raw: &str, line: usize) -> Option<String> {
        let errors = match env::expand(raw, self.walk.env) {
            Ok(text) => return Some(text),
            Err(errors) => errors,
        };
        for error in errors {
            let hint = match &error {
                env::EnvError::Unset(name) => format!("set {name}, or write the value itself"),
                _ => "write ${NAME}, or $${ for the two characters themselves".to_owned(),
            };
            let complaint = format_args!("cannot be had: {error}");
            self.say(Severity::Error, line, key, complaint, hint);
        }
        None
    }
}
