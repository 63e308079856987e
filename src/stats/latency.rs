//! A latency distribution: HDR histogram of two significant digits, with exact count, sum and maximum.

use std::time::Duration;

use hdrhistogram::{Counter, Histogram};

use super::{micros, millis};

/// Longest time told apart, in microseconds; longer ones count as this long in percentiles.
const HIGHEST: u64 = 60_000_000;

/// Upper bounds of the buckets shown to people and to Prometheus, in microseconds. All are below the highest time
/// told apart, so that what lies beyond that is in no bucket but `+Inf`.
pub const BOUNDS: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    10_000_000, 30_000_000,
];

/// Times of one kind. Its buckets (10 KiB with `u32` counts) are allocated at the first time of a microsecond or
/// more, because most statements never wait and need none for their waits.
#[derive(Debug, Clone)]
pub struct Latency<C: Counter = u32> {
    histogram: Option<Histogram<C>>,
    /// Times below a microsecond.
    zeros: u64,
    sum: u64,
    max: u64,
}

impl<C: Counter> Default for Latency<C> {
    fn default() -> Self {
        Latency { histogram: None, zeros: 0, sum: 0, max: 0 }
    }
}

/// Figures of a [`Latency`], in microseconds; all 0 where nothing was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Summary {
    pub count: u64,
    pub sum: u64,
    pub mean: f64,
    pub p50: u64,
    pub p95: u64,
    pub p99: u64,
    pub max: u64,
}

impl<C: Counter> Latency<C> {
    /// Adds one time.
    pub fn record(&mut self, time: Duration) {
        let time = micros(time);
        self.sum = self.sum.saturating_add(time);
        self.max = self.max.max(time);
        if time == 0 {
            self.zeros += 1;
        } else {
            self.histogram.get_or_insert_with(new_histogram).saturating_record(time.min(HIGHEST));
        }
    }

    /// Adds all times of another.
    pub fn add<D: Counter + Into<C>>(&mut self, other: &Latency<D>) {
        self.zeros += other.zeros;
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
        if let Some(theirs) = &other.histogram {
            let ours = self.histogram.get_or_insert_with(new_histogram);
            for value in theirs.iter_recorded() {
                ours.saturating_record_n(value.value_iterated_to(), value.count_at_value().into());
            }
        }
    }

    /// Forgets all times and keeps the memory.
    pub fn clear(&mut self) {
        if let Some(histogram) = &mut self.histogram {
            histogram.clear();
        }
        (self.zeros, self.sum, self.max) = (0, 0, 0);
    }

    /// Bytes of the buckets.
    pub fn bytes(&self) -> usize {
        self.histogram.as_ref().map_or(0, |h| h.distinct_values() * size_of::<C>())
    }

    /// Number of times recorded.
    pub fn count(&self) -> u64 {
        self.zeros + self.histogram.as_ref().map_or(0, Histogram::len)
    }

    /// Sum of the times, in microseconds.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The mean, in microseconds.
    pub fn mean(&self) -> f64 {
        let count = self.count();
        if count == 0 { 0.0 } else { self.sum as f64 / count as f64 }
    }

    /// The time that the share `quantile` (0.0 ..= 1.0) of the times does not exceed, in microseconds, to 1 %.
    pub fn quantile(&self, quantile: f64) -> u64 {
        let Some(histogram) = self.histogram.as_ref().filter(|h| !h.is_empty()) else {
            return 0;
        };
        let rank = quantile * self.count() as f64;
        if rank <= self.zeros as f64 {
            return 0;
        }
        let value = histogram.value_at_quantile((rank - self.zeros as f64) / histogram.len() as f64);
        value.min(self.max)
    }

    /// All figures at once.
    pub fn summary(&self) -> Summary {
        Summary {
            count: self.count(),
            sum: self.sum,
            mean: self.mean(),
            p50: self.quantile(0.50),
            p95: self.quantile(0.95),
            p99: self.quantile(0.99),
            max: self.max,
        }
    }

    /// How many times are at most each of [`BOUNDS`]: cumulative, to the histogram's 1 %.
    pub fn cumulative(&self) -> [u64; BOUNDS.len()] {
        let mut counts = [self.zeros; BOUNDS.len()];
        let Some(histogram) = &self.histogram else {
            return counts;
        };
        let mut below = self.zeros;
        let mut values = histogram.iter_recorded().peekable();
        for (bound, count) in BOUNDS.iter().zip(&mut counts) {
            while let Some(value) = values.next_if(|v| histogram.lowest_equivalent(v.value_iterated_to()) <= *bound) {
                below += value.count_at_value().as_u64();
            }
            *count = below;
        }
        counts
    }
}

impl Summary {
    /// Microseconds to milliseconds, for JSON.
    pub fn ms(micros: u64) -> f64 {
        millis(micros as f64)
    }
}

fn new_histogram<C: Counter>() -> Histogram<C> {
    // constant arguments, within the limits that the constructor checks
    Histogram::new_with_bounds(1, HIGHEST, 2).expect("constant bounds are valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(times: &[u64]) -> Latency {
        let mut latency = Latency::default();
        for time in times {
            latency.record(Duration::from_micros(*time));
        }
        latency
    }

    #[test]
    fn percentiles_are_within_one_percent_of_the_exact_ones() {
        let times: Vec<u64> = (1..=10_000).collect();
        let summary = of(&times).summary();
        assert_eq!((summary.count, summary.sum, summary.max), (10_000, 50_005_000, 10_000));
        for (got, exact) in [(summary.p50, 5_000.0), (summary.p95, 9_500.0), (summary.p99, 9_900.0)] {
            assert!((got as f64 / exact - 1.0).abs() < 0.01, "{got} for {exact}");
        }
    }

    #[test]
    fn zeros_count_in_percentiles_and_need_no_buckets() {
        let mut latency = of(&[0; 90]);
        assert!(latency.histogram.is_none());
        assert_eq!(latency.summary(), Summary { count: 90, ..Summary::default() });
        for _ in 0..10 {
            latency.record(Duration::from_millis(1));
        }
        assert_eq!(latency.quantile(0.90), 0);
        assert_eq!(latency.quantile(0.91), 1_000);
        assert_eq!(latency.mean(), 100.0);
    }

    #[test]
    fn beyond_a_minute_saturates_but_max_and_mean_stay_exact() {
        let latency = of(&[90_000_000]);
        let summary = latency.summary();
        assert_eq!((summary.max, summary.mean), (90_000_000, 90_000_000.0));
        assert!(summary.p50 >= 60_000_000 && summary.p50 < 61_000_000, "{}", summary.p50);
    }

    #[test]
    fn cumulative_buckets_grow_and_hold_what_is_below_them() {
        let counts = of(&[0, 50, 100, 240, 3_000, 70_000_000]).cumulative();
        assert!(counts.is_sorted());
        assert_eq!(counts[..6], [3, 4, 4, 4, 4, 5]);
    }

    #[test]
    fn adding_is_recording_both_and_clearing_is_empty() {
        let mut a = of(&[1, 10, 0]);
        a.add(&of(&[100, 0]));
        assert_eq!(a.summary(), of(&[1, 10, 0, 100, 0]).summary());
        a.clear();
        assert_eq!(a.summary(), Summary::default());
    }
}
