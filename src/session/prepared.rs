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
    /// Under which settings the text was read: [`crate::session::environment::Environment::key`].
    pub environment: Arc<str>,
    pub plan: Arc<Plan>,
}

/// What the names of statements on servers begin with. The colon keeps it out of the way of names that drivers make.
pub const NAME_PREFIX: &str = "pgweir:";

/// The id of no statement, where it is not known which one is meant.
pub const UNKNOWN: u64 = u64::MAX;

/// Above this many statements, those that no client holds are forgotten.
const SWEEP_AT: usize = 10_000;

type Key = (Box<[u8]>, Box<[u8]>, Arc<str>);

/// All statements of one database (of pgweir's configuration), shared by its clients.
#[derive(Debug, Default)]
pub struct Registry {
    statements: DashMap<Key, Arc<Statement>>,
    next: AtomicU64,
    /// Counts the times that definitions have changed: what was prepared before may have another meaning now.
    definitions: AtomicU64,
}

impl Registry {
    /// Tables, functions or the like have changed.
    pub fn definitions_changed(&self) {
        self.definitions.fetch_add(1, Ordering::Relaxed);
    }

    pub fn definitions(&self) -> u64 {
        self.definitions.load(Ordering::Relaxed)
    }

    /// The statement of this text and these types in this environment; `plan` is asked for where it is new.
    pub fn statement(
        &self,
        text: &[u8],
        types: &[u8],
        environment: &Arc<str>,
        plan: impl FnOnce() -> Arc<Plan>,
    ) -> Arc<Statement> {
        let key: Key = (text.into(), types.into(), environment.clone());
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
            let (text, types, environment) = (text.into(), types.into(), environment.clone());
            Arc::new(Statement { id, name, text, types, environment, plan })
        };
        self.statements.entry(key).or_insert_with(make).clone()
    }

    /// What the text of this plan stands for has changed: prepared again, it gets another name on servers, so that no
    /// connection answers with what it knew before. Clients keep what they have.
    pub fn forget(&self, plan: &Arc<Plan>) {
        self.statements.retain(|_, statement| !Arc::ptr_eq(&statement.plan, plan));
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
    named: HashMap<Arc<[u8]>, Arc<Statement>>,
}

impl Names {
    pub fn find(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        if name.is_empty() { self.unnamed.as_ref() } else { self.named.get(name) }
    }

    /// A name that the client has made, to be kept beside what is owed for it.
    pub fn shared(&self, name: &[u8]) -> Option<Arc<[u8]>> {
        self.named.get_key_value(name).map(|(name, _)| name.clone())
    }

    /// Binds or unbinds a name; gives back what it stood for.
    pub fn replace(&mut self, name: &[u8], statement: Option<Arc<Statement>>) -> Option<Arc<Statement>> {
        match (name.is_empty(), statement) {
            (true, statement) => std::mem::replace(&mut self.unnamed, statement),
            (false, Some(statement)) => self.named.insert(name.into(), statement),
            (false, None) => self.named.remove(name),
        }
    }

    pub fn named(&self) -> impl Iterator<Item = &[u8]> {
        self.named.keys().map(|name| &**name)
    }

    /// DEALLOCATE ALL, DISCARD ALL: the unnamed statement stays.
    pub fn clear_named(&mut self) {
        self.named.clear();
    }

    pub fn len(&self) -> usize {
        self.named.len()
    }

    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }
}

/// A message of a server that quotes a statement's name there, with the client's name in its place; `None` where it
/// quotes none.
pub fn as_client_says(message: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let quoted = [b"\"", NAME_PREFIX.as_bytes()].concat();
    let start = memchr::memmem::find(message, &quoted)? + 1;
    let end = start + memchr::memchr(b'"', &message[start..])?;
    Some([&message[..start], name, &message[end..]].concat())
}

/// What one server connection has prepared, least recently used first out.
#[derive(Debug, Default)]
pub struct Held {
    entries: HashMap<u64, Entry>,
    clock: u64,
    /// [`Registry::definitions`] as they were when the entries were last looked at.
    definitions: u64,
}

#[derive(Debug)]
struct Entry {
    last_use: u64,
    statement: Arc<Statement>,
    /// An error has skipped a Parse or a Close of it: the server may or may not have it.
    doubtful: bool,
    /// It was prepared before definitions changed.
    outdated: bool,
}

impl Held {
    /// Where definitions have changed since, what is held is closed and prepared again before it is used.
    pub fn renew(&mut self, definitions: u64) {
        if self.definitions != definitions {
            self.definitions = definitions;
            self.outdate();
        }
    }

    /// What is held may have another meaning now.
    pub fn outdate(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.outdated = true);
    }

    /// The connection has it for certain, if out of date.
    pub fn has(&self, id: u64) -> bool {
        self.entries.get(&id).is_some_and(|entry| !entry.doubtful)
    }

    /// True, and marked as used, where the connection has it for certain.
    pub fn touch(&mut self, id: u64) -> bool {
        self.clock += 1;
        match self.entries.get_mut(&id) {
            Some(entry) if !entry.doubtful && !entry.outdated => {
                entry.last_use = self.clock;
                true
            }
            _ => false,
        }
    }

    /// The server has it, or may have it, and it cannot be used.
    pub fn is_doubtful(&self, id: u64) -> bool {
        self.entries.get(&id).is_some_and(|entry| entry.doubtful || entry.outdated)
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
        self.entries.insert(statement.id, Entry { last_use: self.clock, statement, doubtful: false, outdated: false });
    }

    /// Notes that the server may or may not have it.
    pub fn doubt(&mut self, statement: Arc<Statement>) {
        self.entries.insert(statement.id, Entry { last_use: self.clock, statement, doubtful: true, outdated: false });
    }

    /// Notes that the server may or may not have any of them.
    pub fn doubt_all(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.doubtful = true);
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
        registry.statement(text.as_bytes(), b"\0\0", &"".into(), || Arc::new(Plan::unknown()))
    }

    #[test]
    fn types_are_part_of_the_identity() {
        let registry = Registry::default();
        let a = statement(&registry, "select $1");
        let b = registry.statement(b"select $1", b"\0\x01\0\0\0\x17", &"".into(), || Arc::new(Plan::unknown()));
        assert!(Arc::ptr_eq(&a, &statement(&registry, "select $1")));
        assert_ne!(a.name, b.name);
        assert!(a.name.starts_with(NAME_PREFIX.as_bytes()));
    }

    #[test]
    fn what_is_forgotten_is_made_anew() {
        let registry = Registry::default();
        let (a, b) = (statement(&registry, "a"), statement(&registry, "b"));
        registry.forget(&a.plan);
        assert_ne!(statement(&registry, "a").name, a.name);
        assert!(Arc::ptr_eq(&statement(&registry, "b"), &b));
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
