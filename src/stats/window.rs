//! What the application has felt in the last ten seconds, and latencies since the start.
//!
//! Each worker has a shard of ten slots, one a second. Figures are over the nine whole seconds and the running
//! one, so they show a request at once; rates divide by exactly that span.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::latency::Latency;
use super::{CacheUse, Outcome};

/// Slots, one a second.
const SLOTS: u64 = 10;

/// One ended request of a client.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// From the client's bytes to the last byte of the answer, the wait for a connection included.
    pub elapsed: Duration,
    pub outcome: Outcome,
    pub cache: CacheUse,
    pub slow: bool,
}

/// The window, and what it has counted since the start.
#[derive(Debug)]
pub struct Window {
    start: Instant,
    shards: Box<[Mutex<Shard>]>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    slots: [Slot; SLOTS as usize],
    /// What the slots held before they were used again.
    earlier: (Counts, Latency<u64>),
}

#[derive(Debug, Default)]
struct Slot {
    second: u64,
    counts: Counts,
    latency: Latency,
}

/// Plain counts of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub requests: u64,
    pub client_faults: u64,
    pub server_faults: u64,
    pub slow: u64,
    pub cache_hits: u64,
    pub cache_misses: u64,
}

/// The figures of the window. Times in milliseconds, rates in percent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    pub requests: u64,
    pub slow: u64,
    /// Requests a second.
    pub throughput: f64,
    pub mean: f64,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    /// Share of requests that ended in an error, whoever's fault.
    pub error_rate: f64,
    /// Share of requests without a fault of servers or of pgweir; 100 where there were none.
    pub availability: f64,
    /// Share of answers from the cache among the requests that it was asked for; 0 where there were none.
    pub cache_hit_rate: f64,
}

impl Counts {
    fn count(&mut self, request: &Request) {
        self.requests += 1;
        match request.outcome {
            Outcome::Done => {}
            Outcome::ClientFault => self.client_faults += 1,
            Outcome::ServerFault => self.server_faults += 1,
        }
        match request.cache {
            CacheUse::NotAsked | CacheUse::Refused(_) => {}
            CacheUse::Hit => self.cache_hits += 1,
            CacheUse::Miss | CacheUse::Unkept(_) => self.cache_misses += 1,
        }
        self.slow += u64::from(request.slow);
    }

    fn add(&mut self, other: &Counts) {
        self.requests += other.requests;
        self.client_faults += other.client_faults;
        self.server_faults += other.server_faults;
        self.slow += other.slow;
        self.cache_hits += other.cache_hits;
        self.cache_misses += other.cache_misses;
    }
}

impl Window {
    /// An empty window of `workers` shards.
    pub fn new(workers: usize, start: Instant) -> Window {
        Window { start, shards: (0..workers.max(1)).map(|_| Mutex::default()).collect() }
    }

    /// Counts a request that ended at `now`. The lock is the worker's own: only a reader ever contends.
    pub fn record(&self, worker: usize, now: Instant, request: &Request) {
        let second = self.second(now);
        let mut shard = self.shards.get(worker).unwrap_or(&self.shards[0]).lock();
        let Shard { slots, earlier: (counts, latency) } = &mut *shard;
        let slot = &mut slots[(second % SLOTS) as usize];
        if slot.second < second {
            slot.second = second;
            counts.add(&std::mem::take(&mut slot.counts));
            latency.add(&slot.latency);
            slot.latency.clear();
        }
        slot.counts.count(request);
        slot.latency.record(request.elapsed);
    }

    /// The figures at `now`.
    pub fn figures(&self, now: Instant) -> Figures {
        let second = self.second(now);
        let oldest = second.saturating_sub(SLOTS - 1);
        let mut counts = Counts::default();
        let mut latency = Latency::<u32>::default();
        for shard in &self.shards {
            let shard = shard.lock();
            for slot in shard.slots.iter().filter(|slot| slot.second >= oldest && slot.second <= second) {
                counts.add(&slot.counts);
                latency.add(&slot.latency);
            }
        }
        // a second at least: a process just started has not seen a thousand requests a second yet
        let since_oldest = now.saturating_duration_since(self.start).as_secs_f64() - oldest as f64;
        let times = latency.summary();
        let percent = |part: u64, whole: u64| {
            if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
        };
        Figures {
            requests: counts.requests,
            slow: counts.slow,
            throughput: counts.requests as f64 / since_oldest.max(1.0),
            mean: times.mean / 1e3,
            p50: times.p50 as f64 / 1e3,
            p95: times.p95 as f64 / 1e3,
            p99: times.p99 as f64 / 1e3,
            error_rate: percent(counts.client_faults + counts.server_faults, counts.requests),
            availability: 100.0 - percent(counts.server_faults, counts.requests),
            cache_hit_rate: percent(counts.cache_hits, counts.cache_hits + counts.cache_misses),
        }
    }

    /// Counts and latencies since the start, over all workers.
    pub fn since_start(&self) -> (Counts, Latency<u64>) {
        let mut counts = Counts::default();
        let mut latency = Latency::default();
        for shard in &self.shards {
            let shard = shard.lock();
            counts.add(&shard.earlier.0);
            latency.add(&shard.earlier.1);
            for slot in &shard.slots {
                counts.add(&slot.counts);
                latency.add(&slot.latency);
            }
        }
        (counts, latency)
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(elapsed_ms: u64) -> Request {
        let elapsed = Duration::from_millis(elapsed_ms);
        Request { elapsed, outcome: Outcome::Done, cache: CacheUse::NotAsked, slow: false }
    }

    fn at(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn throughput_is_over_the_seconds_seen() {
        let start = Instant::now();
        let window = Window::new(2, start);
        for n in 0..200u32 {
            window.record(n as usize, at(start, f64::from(n) * 0.1), &request(2));
        }
        // 20.0 s: seconds 11 … 20, of which the last has just begun
        let figures = window.figures(at(start, 19.95));
        assert_eq!(figures.requests, 100);
        assert!((figures.throughput - 10.05).abs() < 0.01, "{}", figures.throughput);
        assert_eq!(figures.mean, 2.0);
    }

    #[test]
    fn the_first_second_does_not_exaggerate() {
        let start = Instant::now();
        let window = Window::new(1, start);
        window.record(0, at(start, 0.001), &request(1));
        assert_eq!(window.figures(at(start, 0.002)).throughput, 1.0);
    }

    #[test]
    fn old_seconds_leave_and_their_slots_are_used_again() {
        let start = Instant::now();
        let window = Window::new(1, start);
        window.record(0, at(start, 1.5), &request(50));
        assert_eq!(window.figures(at(start, 10.9)).requests, 1);
        assert_eq!(window.figures(at(start, 11.0)).requests, 0);
        window.record(0, at(start, 11.5), &request(7));
        let figures = window.figures(at(start, 11.6));
        assert_eq!((figures.requests, figures.mean), (1, 7.0));
        let (counts, latency) = window.since_start();
        assert_eq!((counts.requests, latency.count()), (2, 2));
    }

    #[test]
    fn a_late_record_of_an_older_second_does_not_wipe_the_newer() {
        let start = Instant::now();
        let window = Window::new(1, start);
        window.record(0, at(start, 12.1), &request(1));
        window.record(0, at(start, 2.1), &request(1));
        assert_eq!(window.figures(at(start, 12.2)).requests, 2);
    }

    #[test]
    fn rates_tell_faults_apart() {
        let start = Instant::now();
        let window = Window::new(1, start);
        for n in 0..100 {
            let outcome = match n {
                0..4 => Outcome::ClientFault,
                4 => Outcome::ServerFault,
                _ => Outcome::Done,
            };
            let cache = match n {
                0..30 => CacheUse::Hit,
                30..40 => CacheUse::Miss,
                _ => CacheUse::NotAsked,
            };
            window.record(0, start, &Request { outcome, cache, slow: n < 3, ..request(n + 1) });
        }
        let figures = window.figures(start);
        assert_eq!((figures.error_rate, figures.availability), (5.0, 99.0));
        assert_eq!((figures.cache_hit_rate, figures.slow), (75.0, 3));
        assert!((figures.p95 - 95.0).abs() < 1.0, "{}", figures.p95);
    }

    #[test]
    fn without_requests_nothing_has_failed() {
        let start = Instant::now();
        let figures = Window::new(1, start).figures(start);
        assert_eq!((figures.availability, figures.error_rate, figures.p99), (100.0, 0.0, 0.0));
        assert_eq!(figures.cache_hit_rate, 0.0);
    }
}
