//! What has come once, so that what never comes again costs no place.

use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicU32, Ordering};

use quick_cache::DefaultHashBuilder;

/// Keys that have come, as long as none of the same slot has come since. Two keys of one hash are taken for the same.
#[derive(Debug)]
pub struct Sighted {
    hasher: DefaultHashBuilder,
    tags: Box<[AtomicU32]>,
}

impl Sighted {
    /// With so many slots, of four bytes each.
    pub fn new(slots: usize) -> Sighted {
        Sighted { hasher: DefaultHashBuilder::default(), tags: (0..slots.max(1)).map(|_| AtomicU32::new(0)).collect() }
    }

    pub fn hash(&self, key: impl Hash) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Notes the key; whether it has come before.
    pub fn again(&self, key: impl Hash) -> bool {
        self.note(self.hash(key))
    }

    /// The same of the key of this hash.
    pub fn note(&self, hash: u64) -> bool {
        let (slot, tag) = self.place(hash);
        slot.swap(tag, Ordering::Relaxed) == tag
    }

    /// Whether it has come before.
    pub fn has(&self, hash: u64) -> bool {
        let (slot, tag) = self.place(hash);
        slot.load(Ordering::Relaxed) == tag
    }

    fn place(&self, hash: u64) -> (&AtomicU32, u32) {
        // 0 stands for none.
        (&self.tags[hash as usize % self.tags.len()], (hash >> 32) as u32 | 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_until_another_takes_its_slot() {
        let one = Sighted::new(1);
        let a = one.hash("a");
        assert!(!one.has(a) && !one.again("a"));
        assert!(one.has(a) && one.note(a));
        assert!(!one.again("b"));
        assert!(!one.has(a) && !one.note(a));
    }
}
