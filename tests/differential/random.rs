//! Random choices that a seed repeats.

#[derive(Debug, Clone)]
pub struct Random(pgweir::random::Random);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(pgweir::random::Random::new(seed))
    }

    /// From 0 to `n` - 1.
    pub fn below(&mut self, n: usize) -> usize {
        (self.0.draw() % n as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }
}
