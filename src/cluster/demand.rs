//! Who waits for samples, and who writes: both decide how much is known of where the nodes are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::freshness::TICK;

/// Between the two samples that come as soon as somebody waits: together they say whether the primary stands still.
const PAIR: Duration = Duration::from_millis(2);

/// Reads that a sooner sample would serve better. Probes come each [`TICK`] while there are any.
#[derive(Debug)]
pub struct Demand {
    epoch: Instant,
    /// When one was last seen, in microseconds since `epoch`.
    last: AtomicU64,
    /// Counts the times at which demand rose after a quiet time.
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
        if !std::mem::replace(&mut self.paired, true) {
            return tokio::time::sleep(PAIR).await;
        }
        if self.demand.is_fresh() {
            return tokio::time::sleep(TICK.min(interval)).await;
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            risen = self.rises.changed() => match risen {
                Ok(()) => self.paired = false,
                Err(_) => std::future::pending().await,
            },
        }
    }
}

/// Sessions of this pgweir that may be writing. While there are any, the primary's position may move at any moment.
#[derive(Debug)]
pub struct Writers {
    epoch: Instant,
    now: AtomicU32,
    /// When one last began or ended, in microseconds since `epoch`, rounded up; 0: never.
    last: AtomicU64,
}

impl Writers {
    pub fn new(epoch: Instant) -> Writers {
        Writers { epoch, now: AtomicU32::new(0), last: AtomicU64::new(0) }
    }

    pub fn are_at_work(&self) -> bool {
        self.now.load(Ordering::SeqCst) > 0
    }

    pub fn last(&self) -> Option<Instant> {
        let last = self.last.load(Ordering::SeqCst);
        (last != 0).then(|| self.epoch + Duration::from_micros(last))
    }

    fn note(&self) {
        let now = Instant::now().saturating_duration_since(self.epoch).as_micros() as u64 + 1;
        self.last.fetch_max(now, Ordering::SeqCst);
    }
}

/// A transaction that may write, from the first such statement to its end.
#[derive(Debug)]
pub struct Writing(Arc<Writers>);

impl Writing {
    pub fn new(writers: &Arc<Writers>) -> Writing {
        writers.now.fetch_add(1, Ordering::SeqCst);
        Writing(writers.clone())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        // In this order: whoever sees none at work sees when the last one ended.
        self.0.note();
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_is_at_work_until_it_is_dropped_and_leaves_its_time() {
        let writers = Arc::new(Writers::new(Instant::now()));
        assert!(!writers.are_at_work() && writers.last().is_none());
        let writing = [Writing::new(&writers), Writing::new(&writers)];
        assert!(writers.are_at_work());
        let before = Instant::now();
        drop(writing);
        assert!(!writers.are_at_work() && writers.last().is_some_and(|last| last >= before));
    }

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
