//! Reads that follow one another faster than samples: now and then one waits for a sample, so that its session may leave
//! the node to which it is bound by what it has seen.

use std::time::{Duration, Instant};

use crate::cluster::Tried;
use crate::frontend::batch::Batch;
use crate::frontend::choice::Chosen;
use crate::frontend::session::Session;
use crate::route::decide::Why;

/// How long a session is bound to the primary, or to a replica, before it waits.
const BOUND_TO_PRIMARY: Duration = Duration::from_millis(100);
const BOUND_TO_REPLICA: Duration = Duration::from_millis(100);
/// How long it waits at most: for two samples, mostly much less.
const WAIT: Duration = Duration::from_millis(10);
/// Before it waits again where that has not helped.
const AGAIN: Duration = Duration::from_secs(1);

impl Session {
    /// Whether the read that was to go to `chosen` is to wait for a sample.
    pub fn is_unsettled(&mut self, chosen: &Chosen) -> bool {
        let bound = match chosen.why {
            _ if !chosen.passed_over => {
                self.unsettled = None;
                return false;
            }
            // It has only read so far, and the connections to where it did are younger than that.
            Why::Freshness if self.seen.is_of_replica() => return true,
            Why::Freshness => BOUND_TO_PRIMARY,
            Why::Read => BOUND_TO_REPLICA,
            _ => return false,
        };
        let now = self.request.mark;
        now >= *self.unsettled.get_or_insert(now + bound)
    }

    /// Waits shortly for more replicas to be known to be fresh enough than when `chosen` was.
    pub async fn wait_for_sample(&mut self, batch: &Batch, mut chosen: Chosen) -> Chosen {
        let mut samples = self.cluster().samples();
        let now = Instant::now();
        let deadline = now + WAIT;
        self.cluster().demand.urge(now);
        self.unsettled = Some(deadline + AGAIN);
        let dealt = chosen.why == Why::Read;
        while let Ok(Ok(())) = tokio::time::timeout_at(deadline.into(), samples.changed()).await {
            self.request.mark = Instant::now();
            // What was tried for naught may have been sampled since.
            let found = self.cluster().replicas(&self.need(), (self.tried, Tried::default()));
            if found.is_any_fresh() && !(dealt && found.is_any_stale()) {
                self.undeal(&chosen);
                chosen = self.choose(batch, Tried::default()).unwrap_or(chosen);
                self.unsettled = None;
                break;
            }
        }
        chosen
    }
}
