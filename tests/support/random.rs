//! Random choices of schedules, which a seed repeats, and their settings by the environment.

#[derive(Debug, Clone)]
pub struct Random(pgweir::random::Random);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(pgweir::random::Random::new(seed))
    }

    /// From 0 to `n` - 1.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0.draw() % n
    }
}

/// A number by the variable of this name.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
