//! What a client's names stand for.

use std::collections::HashMap;
use std::sync::Arc;

use quick_cache::DefaultHashBuilder;

use super::{NAME_PREFIX, Statement};

/// A name that a client has made, shared with what is owed for it.
pub type Name = Arc<[u8]>;

/// One client's names. The empty name is the unnamed statement.
#[derive(Debug, Default)]
pub struct Names {
    unnamed: Option<Arc<Statement>>,
    named: HashMap<Name, Arc<Statement>, DefaultHashBuilder>,
    /// Those that pgweir has said are prepared, without asking a server, and that no server has confirmed since.
    unproven: Vec<Box<[u8]>>,
    version: u64,
}

impl Names {
    pub fn find(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        if name.is_empty() { self.unnamed.as_ref() } else { self.named.get(name) }
    }

    /// The statement together with its name; the unnamed one has none.
    pub fn entry(&self, name: &[u8]) -> Option<(Option<&Name>, &Arc<Statement>)> {
        match name.is_empty() {
            true => self.unnamed.as_ref().map(|statement| (None, statement)),
            false => self.named.get_key_value(name).map(|(name, statement)| (Some(name), statement)),
        }
    }

    /// Binds or unbinds a name; gives back what it stood for.
    pub fn replace(&mut self, name: &[u8], statement: Option<Arc<Statement>>) -> Option<Arc<Statement>> {
        self.version += 1;
        self.prove(name);
        match (name.is_empty(), statement) {
            (true, statement) => std::mem::replace(&mut self.unnamed, statement),
            (false, Some(statement)) => self.named.insert(name.into(), statement),
            (false, None) => self.named.remove(name),
        }
    }

    /// A number that is another whenever a name may stand for something else.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// A name of SQL's own has come or gone.
    pub fn changed_by_sql(&mut self) {
        self.version += 1;
    }

    /// The client was told that the name is prepared by what is remembered: definitions may have changed before it
    /// said Parse.
    pub fn doubt(&mut self, name: &[u8]) {
        self.unproven.push(name.into());
    }

    /// A server has said that the name's statement is as it was.
    pub fn prove(&mut self, name: &[u8]) {
        if !self.unproven.is_empty() {
            self.unproven.retain(|unproven| **unproven != *name);
        }
    }

    pub fn has_unproven(&self) -> bool {
        !self.unproven.is_empty()
    }

    /// The client knows for certain what the name stands for: a server has said so, or definitions have changed since.
    pub fn is_proven(&self, name: &[u8]) -> bool {
        !self.unproven.iter().any(|unproven| **unproven == *name)
            || self.find(name).is_some_and(|statement| statement.is_superseded())
    }

    pub fn named(&self) -> impl Iterator<Item = &[u8]> {
        self.named.keys().map(|name| &**name)
    }

    /// DEALLOCATE ALL, DISCARD ALL: the unnamed statement stays.
    pub fn clear_named(&mut self) {
        self.version += 1;
        self.unproven.retain(|name| name.is_empty());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::prepared::Registry;
    use crate::session::prepared::tests::statement;

    #[test]
    fn names_are_one_clients_own() {
        let registry = Registry::default();
        let (a, b) = (statement(&registry, "a"), statement(&registry, "b"));
        let mut names = Names::default();
        assert!(names.replace(b"s", Some(a.clone())).is_none());
        assert!(names.replace(b"", Some(b.clone())).is_none());
        assert!(Arc::ptr_eq(names.find(b"s").unwrap(), &a) && Arc::ptr_eq(names.find(b"").unwrap(), &b));
        names.doubt(b"s");
        assert!(!names.is_proven(b"s") && names.is_proven(b""));
        assert!(names.replace(b"s", None).is_some() && names.find(b"s").is_none());
        assert!(names.is_proven(b"s"));
    }
}
