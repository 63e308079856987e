//! What has come once, so that what never comes again costs no place.

use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicU8, Ordering};

use quick_cache::DefaultHashBuilder;

/// Keys that have come, as long as none of the same slot has come since. Of two keys of one slot, one in 255 is taken for the
/// other. What is noted in different lanes is apart, and lies in one line of memory.
///
/// A slot is a byte: where keys come at random, each look finds another line, and how far away that is, is most of what it costs.
#[derive(Debug)]
pub struct Sighted<const LANES: usize = 1> {
    hasher: DefaultHashBuilder,
    /// As many as a power of two.
    slots: Box<[[AtomicU8; LANES]]>,
}

impl<const LANES: usize> Sighted<LANES> {
    /// With so many slots at least, of a byte for each lane.
    pub fn new(slots: usize) -> Self {
        let slot = |_| [const { AtomicU8::new(0) }; LANES];
        Sighted { hasher: DefaultHashBuilder::default(), slots: (0..slots.next_power_of_two()).map(slot).collect() }
    }

    pub fn hash(&self, key: impl Hash) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Notes the key; whether it has come before.
    pub fn again(&self, key: impl Hash) -> bool {
        self.note(self.hash(key), 0)
    }

    /// The same of the key of this hash. Of two that come at once, each may be the first.
    pub fn note(&self, hash: u64, lane: usize) -> bool {
        let (slot, tag) = self.place(hash);
        let known = slot[lane].load(Ordering::Relaxed) == tag;
        if !known {
            slot[lane].store(tag, Ordering::Relaxed);
        }
        known
    }

    /// Whether it has come before.
    pub fn has(&self, hash: u64, lane: usize) -> bool {
        let (slot, tag) = self.place(hash);
        slot[lane].load(Ordering::Relaxed) == tag
    }

    fn place(&self, hash: u64) -> (&[AtomicU8; LANES], u8) {
        // 0 stands for none.
        (&self.slots[hash as usize & (self.slots.len() - 1)], ((hash >> 32) as u8).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_until_another_takes_its_slot() {
        let one = Sighted::<2>::new(1);
        let a = one.hash("a");
        assert!(!one.has(a, 0) && !one.again("a"));
        assert!(one.has(a, 0) && one.note(a, 0) && !one.has(a, 1) && !one.note(a, 1));
        assert!(!one.again("b"));
        assert!(!one.has(a, 0) && !one.note(a, 0) && one.has(a, 1));
    }
}
