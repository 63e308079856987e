//! Protocol-level prepared statements: one name on servers for each distinct text and parameter types, one
//! namespace for each client, and for each server connection a record of what it holds.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;

use crate::route::plan::Plan;

/// A statement as servers know it.
#[derive(Debug)]
pub struct Statement {
    pub id: u64,
    /// Its name on servers.
    pub name: Box<[u8]>,
    pub text: Box<[u8]>,
    /// Parameter types as in a Parse: Int16 count, Int32 each.
    pub types: Box<[u8]>,
    pub plan: Arc<Plan>,
}

/// What the names of statements on servers begin with. The colon keeps it out of the way of names that drivers make.
pub const NAME_PREFIX: &str = "pgweir:";

/// The id of no statement, where it is not known which one is meant.
pub const UNKNOWN: u64 = u64::MAX;

/// Above this many statements, those that no client holds are forgotten.
const SWEEP_AT: usize = 10_000;

type Key = (Box<[u8]>, Box<[u8]>);

/// All statements of one database (of pgweir's configuration), shared by its clients.
#[derive(Debug, Default)]
pub struct Registry {
    statements: DashMap<Key, Arc<Statement>>,
    next: AtomicU64,
}

impl Registry {
    /// The statement of this text and these types; `plan` is asked for where it is new.
    pub fn statement(&self, text: &[u8], types: &[u8], plan: impl FnOnce() -> Arc<Plan>) -> Arc<Statement> {
        let key: Key = (text.into(), types.into());
        if let Some(found) = self.statements.get(&key) {
            return found.clone();
        }
        if self.statements.len() >= SWEEP_AT {
            self.statements.retain(|_, statement| Arc::strong_count(statement) > 1);
        }
        let plan = plan();
        let make = || {
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let name = format!("{NAME_PREFIX}{id:x}").into_bytes().into();
            Arc::new(Statement { id, name, text: text.into(), types: types.into(), plan })
        };
        self.statements.entry(key).or_insert_with(make).clone()
    }

    pub fn len(&self) -> usize {
        self.statements.len()
    }

    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }
}

/// One client's names. The empty name is the unnamed statement.
#[derive(Debug, Default)]
pub struct Names {
    unnamed: Option<Arc<Statement>>,
    named: HashMap<Box<[u8]>, Arc<Statement>>,
}

impl Names {
    pub fn find(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        if name.is_empty() { self.unnamed.as_ref() } else { self.named.get(name) }
    }

    /// Binds or unbinds a name; gives back what it stood for.
    pub fn replace(&mut self, name: &[u8], statement: Option<Arc<Statement>>) -> Option<Arc<Statement>> {
        match (name.is_empty(), statement) {
            (true, statement) => std::mem::replace(&mut self.unnamed, statement),
            (false, Some(statement)) => self.named.insert(name.into(), statement),
            (false, None) => self.named.remove(name),
        }
    }

    /// A message of a server that quotes a statement's name there, with the client's name in its place; `None` where
    /// there is none.
    pub fn as_client_says(&self, message: &[u8]) -> Option<Vec<u8>> {
        let quoted = [b"\"", NAME_PREFIX.as_bytes()].concat();
        let start = memchr::memmem::find(message, &quoted)? + 1;
        let end = start + memchr::memchr(b'"', &message[start..])?;
        let name = self.name_of(&message[start..end])?;
        Some([&message[..start], name, &message[end..]].concat())
    }

    /// The client's name for what goes by this name on servers.
    fn name_of(&self, there: &[u8]) -> Option<&[u8]> {
        if self.unnamed.as_ref().is_some_and(|s| *s.name == *there) {
            return Some(b"");
        }
        self.named.iter().find(|(_, s)| *s.name == *there).map(|(name, _)| &**name)
    }

    /// DEALLOCATE ALL, DISCARD ALL.
    pub fn clear(&mut self) {
        *self = Names::default();
    }

    pub fn len(&self) -> usize {
        self.named.len()
    }

    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }
}

/// What one server connection has prepared, least recently used first out.
#[derive(Debug, Default)]
pub struct Held {
    entries: HashMap<u64, Entry>,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    last_use: u64,
    statement: Arc<Statement>,
    /// An error has skipped a Parse or a Close of it: the server may or may not have it.
    doubtful: bool,
}

impl Held {
    /// True, and marked as used, where the connection has it for certain.
    pub fn touch(&mut self, id: u64) -> bool {
        self.clock += 1;
        match self.entries.get_mut(&id) {
            Some(entry) if !entry.doubtful => {
                entry.last_use = self.clock;
                true
            }
            _ => false,
        }
    }

    pub fn is_doubtful(&self, id: u64) -> bool {
        self.entries.get(&id).is_some_and(|entry| entry.doubtful)
    }

    /// Takes out the least recently used where `max` or more are held, to be closed; again until `None`.
    pub fn make_room(&mut self, max: usize) -> Option<Arc<Statement>> {
        if self.entries.len() < max.max(1) {
            return None;
        }
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.last_use).map(|(id, _)| *id)?;
        self.entries.remove(&oldest).map(|entry| entry.statement)
    }

    /// Notes a statement as prepared.
    pub fn insert(&mut self, statement: Arc<Statement>) {
        self.clock += 1;
        self.entries.insert(statement.id, Entry { last_use: self.clock, statement, doubtful: false });
    }

    /// Notes that the server may or may not have it.
    pub fn doubt(&mut self, statement: Arc<Statement>) {
        self.entries.insert(statement.id, Entry { last_use: self.clock, statement, doubtful: true });
    }

    pub fn remove(&mut self, id: u64) {
        self.entries.remove(&id);
    }

    pub fn clear(&mut self) {
        self.entries.clear();
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(registry: &Registry, text: &str) -> Arc<Statement> {
        registry.statement(text.as_bytes(), b"\0\0", || Arc::new(Plan::unknown()))
    }

    #[test]
    fn types_are_part_of_the_identity() {
        let registry = Registry::default();
        let a = statement(&registry, "select $1");
        let b = registry.statement(b"select $1", b"\0\x01\0\0\0\x17", || Arc::new(Plan::unknown()));
        assert!(Arc::ptr_eq(&a, &statement(&registry, "select $1")));
        assert_ne!(a.name, b.name);
        assert!(a.name.starts_with(NAME_PREFIX.as_bytes()));
    }

    #[test]
    fn names_are_one_clients_own() {
        let registry = Registry::default();
        let (a, b) = (statement(&registry, "a"), statement(&registry, "b"));
        let mut names = Names::default();
        assert!(names.replace(b"s", Some(a.clone())).is_none());
        assert!(names.replace(b"", Some(b.clone())).is_none());
        assert!(Arc::ptr_eq(names.find(b"s").unwrap(), &a) && Arc::ptr_eq(names.find(b"").unwrap(), &b));
        assert!(names.replace(b"s", None).is_some() && names.find(b"s").is_none());
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let registry = Registry::default();
        let s: Vec<_> = ["a", "b", "c"].iter().map(|t| statement(&registry, t)).collect();
        let mut held = Held::default();
        assert!(held.make_room(2).is_none());
        held.insert(s[0].clone());
        held.insert(s[1].clone());
        assert!(held.touch(s[0].id));
        assert_eq!(held.make_room(2).map(|e| e.id), Some(s[1].id));
        assert!(held.make_room(2).is_none());
        held.insert(s[2].clone());
        assert!(!held.touch(s[1].id));
        assert_eq!(held.len(), 2);
    }

    #[test]
    fn what_is_in_doubt_is_not_relied_on_and_not_forgotten() {
        let registry = Registry::default();
        let a = statement(&registry, "a");
        let mut held = Held::default();
        held.doubt(a.clone());
        assert!(!held.touch(a.id) && held.is_doubtful(a.id));
        held.insert(a.clone());
        assert!(held.touch(a.id) && !held.is_doubtful(a.id));
        held.doubt(a.clone());
        assert_eq!(held.make_room(1).map(|e| e.id), Some(a.id));
    }
}
