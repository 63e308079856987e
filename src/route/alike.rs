//! Texts that differ from an earlier one in their constants alone, found by comparing them with its template.
//!
//! An application that puts its values into its texts says the same few over and over. To compare costs a quarter of
//! what it costs to make a text's own template and to look that up.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::sql::template::Pattern;

/// Sets of templates, chosen by how a text begins, and templates in each.
const SETS: usize = 64;
const WAYS: usize = 4;

/// Of the templates that a set has not, one in so many is noted: where there are more than it has room for, to note each would
/// cost more than it saves.
const SPARING: u8 = 16;

/// Bytes that choose the set.
const BEGINNING: usize = 16;

/// The templates of late, with what is known of each; a newer one takes the place of an older.
#[derive(Debug)]
pub struct Alike<T> {
    sets: Box<[Mutex<Set<T>>]>,
    /// Of each set, whether texts that begin so come once: seldom written, so apart from what is.
    once: [AtomicBool; SETS],
}

#[derive(Debug)]
struct Set<T> {
    ways: [Option<(Pattern, T)>; WAYS],
    next: usize,
    /// Texts that were found to be alike; it wraps.
    found: u8,
    /// Templates that were not there; it wraps.
    missed: u8,
}

impl<T> Default for Alike<T> {
    fn default() -> Alike<T> {
        let empty = || Mutex::new(Set { ways: [const { None }; WAYS], next: 0, found: 0, missed: 0 });
        Alike { sets: (0..SETS).map(|_| empty()).collect(), once: [const { AtomicBool::new(false) }; SETS] }
    }
}

impl<T: Clone> Alike<T> {
    /// What is known of texts with the template of this one, and how many were found so, in the lowest bits; `None` also
    /// where another worker is looking.
    pub fn find(&self, text: &[u8]) -> Option<(T, u8)> {
        let mut set = self.sets[place(text)?].try_lock()?;
        let known =
            set.ways.iter().flatten().find(|(pattern, _)| pattern.fits(text)).map(|(_, known)| known.clone())?;
        set.found = set.found.wrapping_add(1);
        Some((known, set.found))
    }

    /// Notes what is known of texts with this template.
    pub fn note(&self, template: &[u8], known: &T) {
        let Some(mut set) = place(template).and_then(|place| self.sets[place].try_lock()) else { return };
        set.missed = set.missed.wrapping_add(1);
        if set.missed % SPARING != 1 {
            return;
        }
        // A constant at the beginning would choose another set each time; and without any, the text itself is looked up.
        let suits = |pattern: &Pattern| pattern.first().is_some_and(|first| first >= BEGINNING);
        let Some(pattern) = Pattern::new(template).filter(suits) else { return };
        let place = set.next;
        set.next = (place + 1) % WAYS;
        set.ways[place] = Some((pattern, known.clone()));
    }

    /// Forgets what is known of texts with the template of this one.
    pub fn forget(&self, text: &[u8]) {
        let Some(mut set) = place(text).map(|place| self.sets[place].lock()) else { return };
        let fits = |way: &&mut Option<(Pattern, T)>| way.as_ref().is_some_and(|(pattern, _)| pattern.fits(text));
        set.ways.iter_mut().filter(fits).for_each(|way| *way = None);
    }

    /// Forgets all of it.
    pub fn clear(&self) {
        self.sets.iter().for_each(|set| set.lock().ways = [const { None }; WAYS]);
    }

    /// Texts that begin as this one come once, as far as was noted last.
    pub fn come_once(&self, text: &[u8]) -> bool {
        place(text).is_some_and(|place| self.once[place].load(Ordering::Relaxed))
    }

    pub fn note_once(&self, text: &[u8], once: bool) {
        if let Some(place) = place(text)
            && self.once[place].load(Ordering::Relaxed) != once
        {
            self.once[place].store(once, Ordering::Relaxed);
        }
    }
}

/// The set of the texts that begin as this one; none where it is too short.
fn place(text: &[u8]) -> Option<usize> {
    let (beginning, _) = text.split_first_chunk::<BEGINNING>()?;
    let beginning = u128::from_le_bytes(*beginning);
    let mixed = (beginning as u64 ^ (beginning >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Some((mixed >> 32) as usize % SETS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::template::{LONGEST, template};

    fn find(alike: &Alike<u32>, text: &str) -> Option<u32> {
        alike.find(text.as_bytes()).map(|(known, _)| known)
    }

    fn note(alike: &Alike<u32>, text: &str, known: u32) {
        let mut buffer = [0; LONGEST];
        let template = template(text.as_bytes(), &mut buffer).expect("a template");
        (0..SPARING).for_each(|_| alike.note(template, &known));
    }

    #[test]
    fn other_constants_are_no_other_text() {
        let alike = Alike::default();
        note(&alike, "select a from t where b = 1 and c = 'x'", 1);
        note(&alike, "select a from t where b = 1", 2);
        assert_eq!(find(&alike, "select a from t where b = 4711 and c = ''"), Some(1));
        assert_eq!(find(&alike, "select a from t where b = 4711"), Some(2));
        for other in ["select a from t where b = 'x'", "select a from t where b = 1;", "select a from t where b = 1.5"]
        {
            assert_eq!(find(&alike, other), None, "{other}");
        }
    }

    #[test]
    fn newer_ones_take_the_place_of_older_ones() {
        let alike = Alike::default();
        let text = |n: u32| format!("select a, b, c from t{n} where a = 1");
        (0..=WAYS as u32).for_each(|n| note(&alike, &text(n), n));
        let found: Vec<_> = (0..=WAYS as u32).map(|n| find(&alike, &text(n))).collect();
        assert_eq!(found, [None, Some(1), Some(2), Some(3), Some(4)]);
    }

    #[test]
    fn a_constant_at_the_beginning_is_not_noted() {
        let alike = Alike::default();
        note(&alike, "select f(1), g() from t", 1);
        assert_eq!(find(&alike, "select f(1), g() from t"), None);
        assert_eq!(find(&alike, "select 1"), None);
    }

    #[test]
    fn a_text_without_constants_is_not_noted() {
        let alike = Alike::default();
        note(&alike, "select a from t where b = $1", 1);
        assert_eq!(find(&alike, "select a from t where b = $1"), None);
    }
}
