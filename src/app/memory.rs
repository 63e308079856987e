//! Memory that runs short: caches give theirs back, the oldest first, and idle connections above `pool.min` are closed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::sources::all;
use crate::frontend::proxy::{Proxy, limits};
use crate::stats::process::Usage;

/// How often memory is looked at.
const EACH: Duration = Duration::from_secs(1);

/// Below so much of the threshold, the cache may grow again.
const CALM: f64 = 0.9;

/// What the cache may have, as a part of what the configuration lets it have: it loses, and regains, so much at a time at
/// least.
const STEPS: u64 = 16;

pub(super) async fn watch(proxy: Arc<Proxy>) {
    let mut interval = tokio::time::interval(EACH);
    let mut pressure = Pressure::default();
    loop {
        interval.tick().await;
        let config = proxy.config.load_full();
        let usage = proxy.stats.process.usage(Instant::now());
        let limit = config.memory.limit;
        let threshold = (limit as f64 * config.memory.threshold) as u64;
        let was = pressure.is_on();
        let used = used(&usage, limit);
        let (cached, most) = (proxy.results.bytes(), config.cache.max_bytes);
        if pressure.step(used, threshold, cached, most) {
            all(&proxy).iter().flat_map(|database| database.pools.all()).for_each(|pool| pool.trim());
        }
        let mut limits = limits(&config.cache);
        // What would go beyond the threshold until the next look is not kept.
        limits.max_bytes = (most - pressure.withheld.min(most)).min(cached + threshold.saturating_sub(used));
        proxy.results.set_limits(limits);
        match (was, pressure.is_on()) {
            (false, true) => tracing::warn!(used, threshold, "memory runs short: the cache gives back what it has"),
            (true, false) => tracing::info!(used, threshold, "the cache may have all its memory again"),
            _ => {}
        }
    }
}

/// Bytes in use of what is limited: of the container where the limit is its own, else of this process.
fn used(usage: &Usage, limit: u64) -> u64 {
    if usage.contained && limit == usage.memory_total { usage.memory_used } else { usage.resident }
}

/// How much the cache must do without.
#[derive(Debug, Default)]
struct Pressure {
    /// Of the bytes that the configuration lets it have.
    withheld: u64,
}

impl Pressure {
    fn is_on(&self) -> bool {
        self.withheld > 0
    }

    /// Looks at memory; true where it runs short. `cached`: bytes in the cache, which may have `most`.
    fn step(&mut self, used: u64, threshold: u64, cached: u64, most: u64) -> bool {
        let step = (most / STEPS).max(1);
        if used > threshold {
            let left = cached.saturating_sub((used - threshold).max(step));
            self.withheld = self.withheld.max(most.saturating_sub(left));
            return true;
        }
        if (used as f64) < CALM * threshold as f64 {
            self.withheld = self.withheld.saturating_sub(step);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_gives_back_what_is_too_much_and_regains_it_in_steps() {
        let mut pressure = Pressure::default();
        assert!(!pressure.step(80, 80, 16, 32) && !pressure.is_on());
        assert!(pressure.step(90, 80, 16, 32));
        assert_eq!(pressure.withheld, 32 - 6);
        // What was freed has not helped: others have it.
        assert!(pressure.step(90, 80, 6, 32));
        assert_eq!(pressure.withheld, 32);
        // Neither short nor calm.
        assert!(!pressure.step(75, 80, 0, 32) && pressure.withheld == 32);
        (0..15).for_each(|_| assert!(!pressure.step(70, 80, 0, 32) && pressure.is_on()));
        assert!(!pressure.step(70, 80, 0, 32) && !pressure.is_on());
    }

    #[test]
    fn it_ends_at_nothing_and_never_below() {
        let mut pressure = Pressure::default();
        for _ in 0..3 {
            assert!(pressure.step(u64::MAX, 1, 5, 1 << 20));
        }
        assert_eq!(pressure.withheld, 1 << 20);
    }
}
