//! Who waits for samples, which come the sooner for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::freshness::TICK;

/// Between the two samples that come as soon as somebody waits: what the first says of the primary, a replica has mostly
/// replayed by the second. Also the least time between any two.
const PAIR: Duration = Duration::from_millis(2);

/// Reads that a sooner sample would serve better. Probes come each [`TICK`] while there are any.
#[derive(Debug)]
pub struct Demand {
    epoch: Instant,
    /// When one was last seen, in microseconds since `epoch`.
    last: AtomicU64,
    /// Counts the times at which somebody began to wait.
    rises: watch::Sender<u64>,
}

impl Demand {
    pub fn new(epoch: Instant) -> Demand {
        Demand { epoch, last: AtomicU64::new(0), rises: watch::Sender::new(0) }
    }

    fn micros(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_micros() as u64
    }

    /// A read at `now` would be served better by a new sample.
    pub fn raise(&self, now: Instant) {
        let (now, tick) = (self.micros(now).max(1), TICK.as_micros() as u64);
        let last = self.last.load(Ordering::Relaxed);
        // Many reads raise it at once: the line is written seldom.
        if now.saturating_sub(last) < tick / 4 && last != 0 {
            return;
        }
        self.last.store(now, Ordering::Relaxed);
        if last == 0 || now.saturating_sub(last) > 2 * tick {
            self.rises.send_modify(|count| *count += 1);
        }
    }

    /// A read at `now` waits for the next sample.
    pub fn urge(&self, now: Instant) {
        self.last.store(self.micros(now).max(1), Ordering::Relaxed);
        self.rises.send_modify(|count| *count += 1);
    }

    /// For the pauses of one node's probes.
    pub fn pace(self: &Arc<Demand>) -> Pace {
        Pace { rises: self.rises.subscribe(), demand: self.clone(), paired: true }
    }

    fn is_fresh(&self) -> bool {
        let last = self.last.load(Ordering::Relaxed);
        let age = self.micros(Instant::now()).saturating_sub(last);
        last != 0 && age <= 2 * TICK.as_micros() as u64
    }
}

/// The pauses between one node's probes.
#[derive(Debug)]
pub struct Pace {
    demand: Arc<Demand>,
    rises: watch::Receiver<u64>,
    /// The second sample of the first pair has been taken, or need not be.
    paired: bool,
}

impl Pace {
    /// Waits until the next probe of a node that answers is due: `interval`, or sooner while there is demand.
    pub async fn pause(&mut self, interval: Duration) {
        // However many urge.
        tokio::time::sleep(PAIR.min(interval)).await;
        if !std::mem::replace(&mut self.paired, true) {
            return;
        }
        let pause = if self.demand.is_fresh() { TICK.min(interval) } else { interval };
        tokio::select! {
            () = tokio::time::sleep(pause.saturating_sub(PAIR)) => {}
            risen = self.rises.changed() => match risen {
                Ok(()) => self.paired = false,
                Err(_) => std::future::pending().await,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn probes_come_sooner_once_reads_wait() {
        let demand = Arc::new(Demand::new(Instant::now()));
        let mut pace = demand.pace();
        let waiting = tokio::spawn(async move {
            let day = Duration::from_secs(24 * 60 * 60);
            // The first sample, its pair, and those that follow while there is demand.
            for _ in 0..3 {
                pace.pause(day).await;
            }
        });
        while !waiting.is_finished() {
            demand.raise(Instant::now());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        waiting.await.unwrap();
    }
}
