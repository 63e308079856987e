//! Raw TOML with its line numbers, and the list of everything found wrong with it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Severity};
use super::section::Section;
use super::suggest::nearest;

/// One walk through a file: the sections report to it.
///
/// Interior mutability lets nested sections be open at the same time.
pub(super) struct Walk<'e> {
    file: &'e str,
    line_starts: Vec<usize>,
    pub(super) env: &'e dyn Fn(&str) -> Option<String>,
    /// Lines with broken TOML: what is read from them is guesswork, and what is missing may stand there.
    broken_lines: BTreeSet<usize>,
    found: RefCell<Vec<Diagnostic>>,
    unknown: RefCell<Vec<Unknown>>,
    /// Each dotted key that was asked for.
    known: RefCell<BTreeSet<String>>,
    named: RefCell<Vec<NamedFile>>,
}

/// A key that no one asked for; judged when all known keys have been seen.
struct Unknown {
    line: usize,
    /// Dotted, empty for the top level.
    section: String,
    title: String,
    key: String,
    siblings: Vec<&'static str>,
}

/// A path that the file names, to be tried by whoever may touch the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamedFile {
    pub line: usize,
    pub key: String,
    pub path: PathBuf,
    pub expect: Expect,
}

/// What must be at a [`NamedFile`]'s path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    ReadableFile,
    Directory,
    /// The file itself may be made later.
    ParentDirectory,
}

/// What a walk leaves behind.
pub(super) struct Findings {
    /// By line.
    pub diagnostics: Vec<Diagnostic>,
    pub named: Vec<NamedFile>,
    /// Each dotted key that was asked for.
    pub known: BTreeSet<String>,
}

impl<'e> Walk<'e> {
    /// Parses `text`, keeping what can be read of a broken file so that its other faults are found as well.
    pub(super) fn parse<'t>(
        text: &'t str,
        file: &'e str,
        env: &'e dyn Fn(&str) -> Option<String>,
    ) -> (Spanned<DeTable<'t>>, Walk<'e>) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut walk = Walk {
            file,
            line_starts: std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect(),
            env,
            broken_lines: BTreeSet::new(),
            found: RefCell::default(),
            unknown: RefCell::default(),
            known: RefCell::default(),
            named: RefCell::default(),
        };
        for error in errors {
            let line = error.span().map_or(1, |span| walk.line_at(span.start));
            walk.report(Severity::Error, line, "", format!("not TOML: {}", error.message()), None);
            walk.broken_lines.insert(line);
        }
        (table, walk)
    }

    pub(super) fn line_at(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|&start| start <= offset).max(1)
    }

    pub(super) fn line_of<T>(&self, spanned: &Spanned<T>) -> usize {
        self.line_at(spanned.span().start)
    }

    /// The top level.
    pub(super) fn root<'w, 't>(&'w self, table: &'t DeTable<'t>) -> Section<'w, 't> {
        Section::new(self, String::new(), "the top level".to_owned(), 1, Some(table))
    }

    pub(super) fn report(&self, severity: Severity, line: usize, key: &str, message: String, hint: Option<String>) {
        if self.broken_lines.contains(&line) {
            return;
        }
        let (file, key) = (self.file.to_owned(), key.to_owned());
        self.found.borrow_mut().push(Diagnostic { severity, file, line, key, message, hint });
    }

    /// Reports that something is absent, unless it may be in a part of the file that could not be read.
    pub(super) fn report_absent(&self, line: usize, key: &str, message: String, hint: String) {
        if self.broken_lines.is_empty() {
            self.report(Severity::Error, line, key, message, Some(hint));
        }
    }

    pub(super) fn know(&self, dotted: String) {
        self.known.borrow_mut().insert(dotted);
    }

    pub(super) fn name_file(&self, named: NamedFile) {
        self.named.borrow_mut().push(named);
    }

    /// Takes note of the keys of `table` that are not among `siblings`, the keys that belong there.
    pub(super) fn note_unknown(&self, section: &str, title: &str, table: &DeTable<'_>, siblings: &[&'static str]) {
        for (key, _) in table.iter() {
            let name: &str = key.get_ref();
            if !siblings.contains(&name) {
                self.unknown.borrow_mut().push(Unknown {
                    line: self.line_of(key),
                    section: section.to_owned(),
                    title: title.to_owned(),
                    key: name.to_owned(),
                    siblings: siblings.to_vec(),
                });
            }
        }
    }

    pub(super) fn finish(self) -> Findings {
        let known = self.known.borrow().clone();
        for unknown in self.unknown.take() {
            let hint = unknown.hint(&known);
            let message = format!("unknown key {:?} in {}", unknown.key, unknown.title);
            let key = dotted(&unknown.section, &unknown.key);
            self.report(Severity::Error, unknown.line, &key, message, Some(hint));
        }
        let mut diagnostics = self.found.into_inner();
        // stable: faults of one line stay in the order in which they were found
        diagnostics.sort_by_key(|d| d.line);
        Findings { diagnostics, named: self.named.into_inner(), known }
    }
}

impl Unknown {
    fn hint(&self, known: &BTreeSet<String>) -> String {
        if let Some(meant) = nearest(&self.key, self.siblings.iter().copied()) {
            return format!("did you mean {meant:?}?");
        }
        let elsewhere = known.iter().find_map(|dotted| {
            let (section, key) = dotted.rsplit_once('.')?;
            (key == self.key).then_some(section)
        });
        match elsewhere {
            Some(section) => format!("{:?} belongs in [{section}]", self.key),
            None => format!("known are {}", self.siblings.join(", ")),
        }
    }
}

/// `key` of the section with the dotted path `section`.
pub(super) fn dotted(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

/// What a value is, in words.
pub(super) fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
