//! Whether the results of a statement that are kept are asked for again.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Results kept before anything is concluded from them.
const ENOUGH: u32 = 256;
/// Of so many, one is to be asked for again.
const WORTH: u32 = 16;

/// How many results of a statement were kept lately, and how often one of them was an answer. Counts that race may be
/// off by a few.
#[derive(Debug, Default)]
pub struct Reuse {
    kept: AtomicU32,
    hits: AtomicU32,
}

impl Reuse {
    /// One more is kept.
    pub fn note_kept(&self) {
        let kept = self.kept.fetch_add(1, Relaxed) + 1;
        if kept >= 4 * ENOUGH {
            // What was long ago counts for less.
            self.hits.store(self.hits.load(Relaxed) / 2, Relaxed);
            self.kept.store(kept / 2, Relaxed);
        }
    }

    /// A kept one is an answer. No more are counted than were kept: they would tell nothing new.
    #[inline]
    pub fn note_hit(&self) {
        if self.hits.load(Relaxed) < self.kept.load(Relaxed) {
            self.hits.fetch_add(1, Relaxed);
        }
    }

    /// Hardly any of them is asked for again.
    pub fn is_rare(&self) -> bool {
        let kept = self.kept.load(Relaxed);
        kept >= ENOUGH && self.hits.load(Relaxed) < kept / WORTH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(kept: u32, hits: u32) -> Reuse {
        let reuse = Reuse::default();
        (0..kept).for_each(|_| reuse.note_kept());
        (0..hits).for_each(|_| reuse.note_hit());
        reuse
    }

    #[test]
    fn nothing_is_concluded_from_a_few() {
        assert!(!after(ENOUGH - 1, 0).is_rare());
        assert!(after(ENOUGH, 0).is_rare());
    }

    #[test]
    fn a_sixteenth_is_enough() {
        assert!(after(ENOUGH, ENOUGH / WORTH - 1).is_rare());
        assert!(!after(ENOUGH, ENOUGH / WORTH).is_rare());
    }

    #[test]
    fn what_is_asked_for_again_of_late_outweighs_what_was_not() {
        let reuse = after(100 * ENOUGH, 0);
        assert!(reuse.is_rare());
        (0..4 * ENOUGH / WORTH).for_each(|_| reuse.note_hit());
        assert!(!reuse.is_rare());
        (0..100 * ENOUGH).for_each(|_| reuse.note_kept());
        assert!(reuse.is_rare());
    }
}
