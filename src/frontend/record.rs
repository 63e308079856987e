//! What is counted of each statement as it ends, and the line in the slow-query log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::frontend::session::{Scanned, Session};
use crate::route::plan::Plan;
use crate::session::pipeline::Expect;
use crate::session::values::Values;
use crate::stats::slow::{Level, SlowEntry};
use crate::stats::{CacheUse, Outcome, Sample};
use crate::wire::tag::frontend;
use crate::wire::{read, scan};

impl Session {
    /// Counts the statement that has ended now; when that is.
    pub fn record(&mut self, plan: &Arc<Plan>) -> Instant {
        let now = Instant::now();
        let is_write = self.verdict(plan).primary.is_some();
        self.leaving = None;
        let request = &mut self.request;
        let outcome = match &request.error {
            None => Outcome::Done,
            Some(code) if is_server_fault(code) => Outcome::ServerFault,
            Some(_) => Outcome::ClientFault,
        };
        let leased = self.leased.as_ref();
        let sample = Sample {
            wait: std::mem::take(&mut request.wait),
            execute: now.saturating_duration_since(request.mark),
            rows: std::mem::take(&mut request.rows),
            bytes: std::mem::take(&mut request.bytes),
            outcome,
            // Of this statement alone: what follows in the same write is not asked of the cache.
            cache: std::mem::replace(&mut request.cache, CacheUse::NotAsked),
            node: leased.map(|l| l.lease.pool.node.index),
            is_write,
        };
        request.mark = now;
        if let Some(leased) = leased {
            let node = leased.lease.pool.node.index;
            self.database.tally.ran(self.worker.index, node, sample.is_write);
        }
        let error = request.error.take();
        let values = request.values.take();
        request.part = 0;
        let counters = self.database.counters.at(self.worker.index);
        if self.proxy.stats.record(self.worker.index, now, &plan.record, counters, &sample) {
            self.log_slow(plan, &sample, error, values);
        }
        now
    }

    /// Counts the statement that the server's error belongs to: the one whose message it answers. That of a simple
    /// Query is counted at its end, which does not come behind a fatal error.
    pub fn record_error(&mut self, code: Option<[u8; 5]>, fatal: bool) {
        let Some(front) = self.pipeline.front() else { return };
        if matches!(front, Expect::Query { .. }) && !fatal {
            self.request.error = code;
        } else if let Some((plan, values)) = front.statement() {
            self.record_failed(plan, values, code);
        }
    }

    /// Counts the statement that runs and whose end will not be seen.
    pub fn record_broken_off(&mut self, code: &str) {
        if let Some((plan, values)) = self.pipeline.running() {
            self.record_failed(plan, values, code.as_bytes().try_into().ok());
        }
    }

    /// The plan of the first statement that runs in the scanned messages.
    pub fn scanned_plan(&self, end: usize) -> Option<Arc<Plan>> {
        match self.scanned.front() {
            Some(Scanned::Query(plan)) => return Some(plan.clone()),
            Some(Scanned::Parse(statement)) => return Some(statement.plan.clone()),
            None => {}
        }
        let mut rest = &self.inbox[..end.min(self.inbox.len())];
        while let Ok(Some((head, body))) = scan::frame(rest) {
            if head.tag == frontend::BIND {
                let (_, name) = read::bind_names(body).ok()?;
                return self.names.find(name).map(|statement| statement.plan.clone());
            }
            rest = &rest[head.total..];
        }
        None
    }

    fn record_failed(&mut self, plan: Arc<Plan>, values: Option<Arc<Values>>, code: Option<[u8; 5]>) {
        self.request.values = values;
        self.request.error = code;
        self.record(&plan);
    }

    fn log_slow(&self, plan: &Plan, sample: &Sample, error: Option<[u8; 5]>, values: Option<Arc<Values>>) {
        let shows = self.proxy.stats.shows_parameters();
        let leased = self.leased.as_ref();
        let node = leased.map(|l| &l.lease.pool.node);
        self.proxy.stats.slow.record(SlowEntry {
            ts: jiff::Timestamp::now(),
            level: Level::Slow,
            database: self.database.name.to_string(),
            user: self.login.user.to_string(),
            application_name: self.client.application_name.lock().clone(),
            client: self.client.peer.to_string(),
            fingerprint: plan.fingerprint,
            statement: if shows { plan.text.to_string() } else { plan.normalized() },
            normalized: shows.then(|| plan.normalized()),
            parameters: values.filter(|_| shows).map(Arc::unwrap_or_clone),
            duration: sample.elapsed(),
            wait: sample.wait,
            execute: sample.execute,
            rows: sample.rows,
            bytes: sample.bytes,
            node: node.map(|n| n.name.to_string()),
            role: node.map(|n| n.role().as_str().to_owned()),
            cached: sample.cache == CacheUse::Hit,
            route_reason: leased.map_or("", |l| l.why.as_str()).to_owned(),
            transaction: self.status != b'I' || self.transaction_began.is_some(),
            error: error.map(|code| String::from_utf8_lossy(&code).into_owned()),
            traceparent: plan.traceparent.as_deref().map(str::to_owned),
            plan: None,
            advice: Vec::new(),
        });
    }

    /// A wait for a connection has ended, one way or the other.
    pub fn waited(&mut self, wait: Duration, assigned: bool) {
        self.request.wait += wait;
        match assigned {
            true => self.counters().server_assigned(wait),
            false => self.counters().wait_abandoned(wait),
        }
    }
}

/// Classes of SQLSTATE that speak of the server's state, not of the statement: connection, resources, intervention,
/// system and internal errors.
fn is_server_fault(code: &[u8; 5]) -> bool {
    matches!(&code[..2], b"08" | b"53" | b"57" | b"58" | b"XX") && code != b"57014"
}
