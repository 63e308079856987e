//! The queue of what is owed.

use std::ops::{Deref, DerefMut};

use super::expect::Expect;

/// A queue of few entries, most often looked at in front: what was taken leaves its place empty until all are taken, so that
/// a look need not ask whether places have wrapped around, as a `VecDeque`'s must.
#[derive(Debug, Default)]
pub(super) struct Queue {
    places: Vec<Expect>,
    /// Of the front.
    head: usize,
}

impl Queue {
    pub(super) fn push(&mut self, expect: Expect) {
        if self.places.len() == self.places.capacity() && self.head > self.places.len() / 2 {
            self.places.drain(..self.head);
            self.head = 0;
        }
        self.places.push(expect);
    }

    pub(super) fn pop(&mut self) -> Option<Expect> {
        let front = std::mem::take(self.places.get_mut(self.head)?);
        self.head += 1;
        if self.head == self.places.len() {
            self.places.clear();
            self.head = 0;
        }
        Some(front)
    }

    pub(super) fn remove(&mut self, at: usize) -> Expect {
        self.places.remove(self.head + at)
    }

    /// Takes so many from the front.
    pub(super) fn take_front(&mut self, count: usize) -> Vec<Expect> {
        let taken = self.places.drain(self.head..self.head + count).collect();
        if self.is_empty() {
            self.places.clear();
            self.head = 0;
        }
        taken
    }

    #[inline]
    pub(super) fn front(&self) -> Option<&Expect> {
        self.places.get(self.head)
    }

    #[inline]
    pub(super) fn front_mut(&mut self) -> Option<&mut Expect> {
        self.places.get_mut(self.head)
    }
}

impl Deref for Queue {
    type Target = [Expect];

    fn deref(&self) -> &[Expect] {
        &self.places[self.head..]
    }
}

impl DerefMut for Queue {
    fn deref_mut(&mut self) -> &mut [Expect] {
        &mut self.places[self.head..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(at: usize) -> Expect {
        Expect::DescribedHere { parameters: at.to_be_bytes().into() }
    }

    fn marks(queue: &Queue) -> Vec<usize> {
        let mark = |expect: &Expect| match expect {
            Expect::DescribedHere { parameters } => usize::from_be_bytes((**parameters).try_into().unwrap()),
            other => panic!("{other:?}"),
        };
        queue.iter().map(mark).collect()
    }

    #[test]
    fn a_long_queue_is_served_in_order_and_does_not_grow_by_what_is_gone() {
        let mut queue = Queue::default();
        (0..10).for_each(|at| queue.push(marked(at)));
        for at in 10..1000 {
            queue.push(marked(at));
            queue.pop();
            assert_eq!(marks(&queue), (at - 9..=at).collect::<Vec<_>>());
        }
        assert!(queue.places.capacity() < 64, "{}", queue.places.capacity());
        queue.remove(3);
        assert_eq!(queue.take_front(4).len(), 4);
        assert_eq!(marks(&queue), [995, 996, 997, 998, 999]);
        assert_eq!(queue.take_front(5).len(), 5);
        assert_eq!((queue.is_empty(), queue.head, queue.pop().is_none()), (true, 0, true));
    }
}
