//! Entries in the order in which they came, with room to take one out of the middle.

/// The place of a node in its [`Slab`].
pub type Index = u32;

const NONE: Index = Index::MAX;

/// Nodes at fixed places, each linked into one [`Queue`].
#[derive(Debug)]
pub struct Slab<T> {
    nodes: Vec<Node<T>>,
    free: Vec<Index>,
}

#[derive(Debug)]
struct Node<T> {
    value: Option<T>,
    older: Index,
    newer: Index,
}

/// The ends of a chain of nodes.
#[derive(Debug, Clone, Copy)]
pub struct Queue {
    oldest: Index,
    newest: Index,
    len: usize,
}

impl Default for Queue {
    fn default() -> Queue {
        Queue { oldest: NONE, newest: NONE, len: 0 }
    }
}

impl Queue {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn oldest(&self) -> Option<Index> {
        (self.oldest != NONE).then_some(self.oldest)
    }
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab { nodes: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub fn value(&self, index: Index) -> Option<&T> {
        self.nodes.get(index as usize)?.value.as_ref()
    }

    pub fn value_mut(&mut self, index: Index) -> Option<&mut T> {
        self.nodes.get_mut(index as usize)?.value.as_mut()
    }

    /// Places that are there, taken or not.
    pub fn room(&self) -> usize {
        self.nodes.capacity()
    }

    /// Moves the values of these queues, which are all, together, and gives back the rest of the room. All indexes change.
    pub fn compact(&mut self, queues: [&mut Queue; 2]) {
        let len = queues.iter().map(|queue| queue.len).sum();
        let mut old = std::mem::replace(self, Slab { nodes: Vec::with_capacity(len), free: Vec::new() });
        for queue in queues {
            let mut at = std::mem::take(queue).oldest;
            while let Some(node) = old.nodes.get_mut(at as usize) {
                at = node.newer;
                if let Some(value) = node.value.take() {
                    self.push(queue, value);
                }
            }
        }
    }

    pub fn indexes(&self) -> std::ops::Range<Index> {
        0..self.nodes.len() as Index
    }

    /// Puts a value at the new end of `queue`.
    pub fn push(&mut self, queue: &mut Queue, value: T) -> Index {
        let node = Node { value: Some(value), older: NONE, newer: NONE };
        let index = match self.free.pop() {
            Some(index) => {
                self.nodes[index as usize] = node;
                index
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as Index
            }
        };
        self.link(queue, index);
        index
    }

    /// Takes a value out of the queue it is in.
    pub fn remove(&mut self, queue: &mut Queue, index: Index) -> Option<T> {
        let value = self.nodes.get_mut(index as usize)?.value.take()?;
        self.unlink(queue, index);
        self.free.push(index);
        Some(value)
    }

    /// From anywhere in `from` to the new end of `to`.
    pub fn transfer(&mut self, from: &mut Queue, to: &mut Queue, index: Index) {
        self.unlink(from, index);
        self.link(to, index);
    }

    /// From anywhere in `queue` to its new end.
    pub fn renew(&mut self, queue: &mut Queue, index: Index) {
        self.unlink(queue, index);
        self.link(queue, index);
    }

    fn link(&mut self, queue: &mut Queue, index: Index) {
        let node = &mut self.nodes[index as usize];
        (node.older, node.newer) = (queue.newest, NONE);
        match queue.newest {
            NONE => queue.oldest = index,
            newest => self.nodes[newest as usize].newer = index,
        }
        queue.newest = index;
        queue.len += 1;
    }

    fn unlink(&mut self, queue: &mut Queue, index: Index) {
        let Node { older, newer, .. } = self.nodes[index as usize];
        match older {
            NONE => queue.oldest = newer,
            older => self.nodes[older as usize].newer = newer,
        }
        match newer {
            NONE => queue.newest = older,
            newer => self.nodes[newer as usize].older = older,
        }
        queue.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Push(bool),
        Remove(usize),
        Transfer(usize),
        Renew(usize),
        Compact,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            any::<bool>().prop_map(Step::Push),
            (0usize..20).prop_map(Step::Remove),
            (0usize..20).prop_map(Step::Transfer),
            (0usize..20).prop_map(Step::Renew),
            Just(Step::Compact),
        ]
    }

    fn order(slab: &Slab<u32>, queue: &Queue) -> Vec<u32> {
        let mut found = Vec::new();
        let mut at = queue.oldest;
        while at != NONE {
            found.push(*slab.value(at).unwrap());
            at = slab.nodes[at as usize].newer;
        }
        found
    }

    proptest! {
        #[test]
        fn two_queues_are_as_two_lists(steps in prop::collection::vec(step(), 0..60)) {
            let (mut slab, mut queues) = (Slab::default(), [Queue::default(), Queue::default()]);
            let mut model: [VecDeque<(Index, u32)>; 2] = Default::default();
            for (n, step) in steps.into_iter().enumerate() {
                let [first, second] = &mut queues;
                match step {
                    Step::Push(to) => {
                        let value = n as u32;
                        let index = slab.push(if to { second } else { first }, value);
                        model[usize::from(to)].push_back((index, value));
                    }
                    Step::Remove(at) => if let Some((index, value)) = model[0].remove(at) {
                        prop_assert_eq!(slab.remove(first, index), Some(value));
                    },
                    Step::Transfer(at) => if let Some(node) = model[0].remove(at) {
                        slab.transfer(first, second, node.0);
                        model[1].push_back(node);
                    },
                    Step::Renew(at) => if let Some(node) = model[0].remove(at) {
                        slab.renew(first, node.0);
                        model[0].push_back(node);
                    },
                    Step::Compact => {
                        slab.compact([first, second]);
                        model.iter_mut().flatten().zip(slab.indexes()).for_each(|(node, index)| node.0 = index);
                        prop_assert!(slab.indexes().all(|index| slab.value(index).is_some()));
                    }
                }
                for (queue, list) in queues.iter().zip(&model) {
                    prop_assert_eq!(order(&slab, queue), list.iter().map(|node| node.1).collect::<Vec<_>>());
                    prop_assert_eq!((queue.len(), queue.oldest()), (list.len(), list.front().map(|node| node.0)));
                }
            }
        }
    }
}
