//! What a server connection holds.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quick_cache::DefaultHashBuilder;

use super::Statement;

/// What one server connection has prepared, least recently used first out.
#[derive(Debug, Default)]
pub struct Held {
    entries: HashMap<u64, Entry, DefaultHashBuilder>,
    clock: u64,
    /// How many they are, for others to see.
    count: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Entry {
    last_use: u64,
    statement: Arc<Statement>,
    /// An error has skipped a Parse or a Close of it: the server may or may not have it.
    doubtful: bool,
}

impl Held {
    /// Nothing yet; `count` shows how many.
    pub fn counted(count: Arc<AtomicUsize>) -> Held {
        Held { count, ..Held::default() }
    }

    /// The connection has it, or may have it.
    pub fn has(&self, id: u64) -> bool {
        self.entries.contains_key(&id)
    }

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

    /// The server has it, or may have it, and it cannot be used.
    pub fn is_doubtful(&self, id: u64) -> bool {
        self.entries.get(&id).is_some_and(|entry| entry.doubtful)
    }

    /// Takes out the least recently used where `max` or more are held, to be closed; again until `None`.
    pub fn make_room(&mut self, max: usize) -> Option<Arc<Statement>> {
        if self.entries.len() < max.max(1) {
            return None;
        }
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.last_use).map(|(id, _)| *id)?;
        let gone = self.entries.remove(&oldest).map(|entry| entry.statement);
        self.tell();
        gone
    }

    /// Notes a statement as prepared.
    pub fn insert(&mut self, statement: Arc<Statement>) {
        self.clock += 1;
        self.entries.insert(statement.id, Entry { last_use: self.clock, statement, doubtful: false });
        self.tell();
    }

    /// Notes that the server may or may not have it.
    pub fn doubt(&mut self, statement: Arc<Statement>) {
        self.entries.insert(statement.id, Entry { last_use: self.clock, statement, doubtful: true });
        self.tell();
    }

    /// Notes that the server may or may not have any of them.
    pub fn doubt_all(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.doubtful = true);
    }

    pub fn remove(&mut self, id: u64) {
        self.entries.remove(&id);
        self.tell();
    }

    pub fn clear(&mut self) {
        self.entries.clear();
        self.tell();
    }

    fn tell(&self) {
        self.count.store(self.entries.len(), Ordering::Relaxed);
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
    use crate::session::prepared::Registry;
    use crate::session::prepared::tests::statement;

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
