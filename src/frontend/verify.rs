//! Hits of the result cache that are read again on the primary, behind the client's back, to see whether they are right.
//!
//! The client has its answer before, and waits for nothing. The second read runs as the same user with the session's own
//! settings, on a connection that nobody wants: one at a time in a database, and only where the pool has another, or
//! room for one. Another result counts as a difference only once everything that was committed by its end is known, and
//! the entry still stands: whatever changed it meanwhile would have taken it out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::BufMut;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::backend::connection::{BackendError, ServerError};
use crate::cache::admit::Refusal;
use crate::cache::capture::Capture;
use crate::cache::entry::Entry;
use crate::cache::key::{Formats, Read};
use crate::cluster::catalog::Definitions;
use crate::frontend::invalidation::Cached;
use crate::frontend::session::Session;
use crate::pool::checkout::Pool;
use crate::pool::lease::{Lease, Return};
use crate::random::Random;
use crate::route::plan::Plan;
use crate::session::parameters::{Settings, Value};
use crate::wire::tag::{backend, frontend};
use crate::wire::write;

/// What the second read may take; the server ends it.
const MOST_TIME: &str = "5s";

/// What a connection may take for all of it.
const LONGEST: Duration = Duration::from_secs(10);

/// How long a difference waits for proof that nothing has changed.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Whether a hit is to be verified.
#[derive(Debug)]
pub struct Verifying {
    /// Of 2^64; 0: none.
    share: AtomicU64,
    draws: AtomicU64,
    /// One at a time.
    turn: Arc<Semaphore>,
}

impl Verifying {
    pub fn new(share: f64) -> Verifying {
        let verifying =
            Verifying { share: AtomicU64::new(0), draws: AtomicU64::new(0), turn: Arc::new(Semaphore::new(1)) };
        verifying.set_share(share);
        verifying
    }

    /// 0.0 ..= 1.0
    pub fn set_share(&self, share: f64) {
        // 2^64 is rounded down to what there is.
        self.share.store((share * 2f64.powi(64)) as u64, Ordering::Relaxed);
    }

    #[inline]
    fn is_off(&self) -> bool {
        self.share.load(Ordering::Relaxed) == 0
    }

    /// This hit's turn, where it has one.
    fn take(&self) -> Option<OwnedSemaphorePermit> {
        let drawn = Random::new(self.draws.fetch_add(1, Ordering::Relaxed)).draw();
        if drawn > self.share.load(Ordering::Relaxed) {
            return None;
        }
        self.turn.clone().try_acquire_owned().ok()
    }
}

/// What was answered, and how to ask for it again.
struct Check {
    cached: Arc<Cached>,
    definitions: Arc<Definitions>,
    plan: Arc<Plan>,
    key: Box<[u8]>,
    entry: Arc<Entry>,
    text: Box<[u8]>,
    types: Box<[u8]>,
    parameters: Box<[u8]>,
    formats: Box<[u8]>,
    settings: Settings,
    _turn: OwnedSemaphorePermit,
}

/// What the primary says.
enum Said {
    This(Box<Entry>),
    /// What no cached answer is.
    Other,
    /// It cannot say now.
    Nothing,
}

impl Session {
    /// An entry is about to be given as the answer to a read.
    #[inline]
    pub(super) fn verify(
        &self,
        cached: &Arc<Cached>,
        (key, read): (&[u8], &Read<'_>),
        entry: &Arc<Entry>,
        plan: &Arc<Plan>,
    ) {
        if !cached.verifying.is_off() {
            self.verify_some(cached, (key, read), entry, plan);
        }
    }

    fn verify_some(&self, cached: &Arc<Cached>, (key, read): (&[u8], &Read<'_>), entry: &Arc<Entry>, plan: &Arc<Plan>) {
        let Some(turn) = cached.verifying.take() else { return };
        let Some(primary) = self.cluster().primary() else { return };
        let pool = &self.pools[usize::from(primary.index)];
        if !has_another(pool) {
            return;
        }
        let Some(lease) = pool.try_checkout(self.worker.index, self.request.mark) else { return };
        let mut settings = self.parameters.current().clone();
        // Neither shapes a result.
        settings.set("statement_timeout", Value::Flat(MOST_TIME.to_owned()));
        settings.set("default_transaction_read_only", Value::Flat("on".to_owned()));
        let check = Check {
            cached: cached.clone(),
            definitions: self.cluster().definitions.clone(),
            plan: plan.clone(),
            key: key.into(),
            entry: entry.clone(),
            text: read.text.into(),
            types: read.types.into(),
            parameters: read.parameters.into(),
            formats: read.formats.bytes().into(),
            settings,
            _turn: turn,
        };
        tokio::spawn(check.run(lease));
    }
}

/// Whoever comes next need not wait for the connection that is taken.
fn has_another(pool: &Pool) -> bool {
    let snapshot = pool.snapshot();
    let room = snapshot.active + snapshot.idle + snapshot.creating < pool.config.load().max;
    snapshot.waiting == 0 && !snapshot.paused && (snapshot.idle > 1 || room)
}

impl Check {
    async fn run(self, lease: Lease) {
        let generation = self.generation();
        let read = tokio::time::timeout(LONGEST, self.read_again(lease));
        let Ok(Ok(said)) = read.await else { return };
        let rows = match &said {
            Said::Nothing => return,
            Said::This(fresh) if self.entry.says_the_same_as(fresh) => {
                return self.cached.results.note_verified(self.cached.id, false);
            }
            Said::This(fresh) => Some(fresh.rows()),
            Said::Other => None,
        };
        if !self.still_stands(generation).await {
            return;
        }
        self.cached.results.note_verified(self.cached.id, true);
        tracing::warn!(
            database = &*self.cached.database,
            fingerprint = %self.plan.fingerprint,
            cached_rows = self.entry.rows(),
            primary_rows = rows,
            "an answer from the cache is not what the primary says"
        );
    }

    /// Of the definitions that are known.
    fn generation(&self) -> Option<u64> {
        self.definitions.latest().map(|catalog| catalog.generation)
    }

    async fn read_again(&self, mut lease: Lease) -> Result<Said, BackendError> {
        let before = lease.settings.clone();
        lease.begin();
        lease.unnamed = None;
        change_settings(&mut lease, &self.settings).await?;
        let said = self.ask(&mut lease).await?;
        change_settings(&mut lease, &before).await?;
        if lease.inbox.is_empty() {
            lease.give_back(Instant::now(), Return::default());
        }
        Ok(said)
    }

    /// With what no simple Query has, its parameters' description, so that it can be compared with any other's.
    async fn ask(&self, lease: &mut Lease) -> Result<Said, BackendError> {
        let or_none = |bytes: &[u8], none: &'static [u8]| if bytes.is_empty() { none.to_vec() } else { bytes.to_vec() };
        write::parse(&mut lease.outbox, b"", &self.text, &or_none(&self.types, &[0, 0]));
        write::of_statement(&mut lease.outbox, frontend::DESCRIBE, b"");
        write::frame(&mut lease.outbox, frontend::BIND, |out| {
            // Neither portal nor statement has a name.
            out.put_slice(&[0, 0]);
            out.put_slice(&or_none(&self.parameters, &[0, 0, 0, 0]));
            out.put_u16((self.formats.len() / 2) as u16);
            out.put_slice(&self.formats);
        });
        write::frame(&mut lease.outbox, frontend::EXECUTE, |out| out.put_slice(&[0, 0, 0, 0, 0]));
        write::sync(&mut lease.outbox);
        lease.send().await?;
        let mut capture = Capture::new(self.cached.results.max_entry_bytes());
        let (mut failed, mut captured) = (None, Ok(()));
        loop {
            let (tag, body) = lease.receive().await?;
            match tag {
                backend::NOTICE => continue,
                backend::PARAMETER_STATUS => lease.note_status(&body)?,
                backend::ERROR => {
                    let error = ServerError::read(&body)?;
                    if error.fatal {
                        return Err(BackendError::Server(error));
                    }
                    failed = Some(error);
                }
                _ => {
                    let mut head = [tag, 0, 0, 0, 0];
                    head[1..].copy_from_slice(&(body.len() as u32 + 4).to_be_bytes());
                    captured = captured.and_then(|()| capture.take(&head)).and_then(|()| capture.take(&body));
                }
            }
            if tag == backend::READY {
                break;
            }
        }
        Ok(match (failed, captured.and_then(|()| capture.finish(Formats::read(&self.formats)))) {
            (Some(error), _) => {
                if is_of_the_read(&error.code) {
                    Said::Other
                } else {
                    Said::Nothing
                }
            }
            (None, Ok(fresh)) => Said::This(Box::new(fresh)),
            (None, Err(Refusal::TooLarge)) => Said::Other,
            (None, Err(_)) => Said::Nothing,
        })
    }

    /// Nothing has changed what was answered, so that it should be what the primary said just now.
    async fn still_stands(&self, generation: Option<u64>) -> bool {
        let Cached { results, id, urge, .. } = &*self.cached;
        let ended = Instant::now();
        loop {
            let now = Instant::now();
            let late = now.saturating_duration_since(ended) > PATIENCE;
            if late || self.generation() != generation || !results.holds(&self.key, &self.entry, now) {
                return false;
            }
            // Where nobody can read the definitions, nobody relies on them.
            let defined = self.definitions.figures().verified.is_none_or(|at| at > ended);
            if defined && results.knows_all_by(*id, ended, now) {
                // What is known by now has taken the entry out by now.
                return self.generation() == generation && results.holds(&self.key, &self.entry, now);
            }
            urge.now();
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

async fn change_settings(lease: &mut Lease, to: &Settings) -> Result<(), BackendError> {
    for sql in lease.settings.difference(to) {
        lease.query(&sql).await?;
    }
    lease.settings = to.clone();
    Ok(())
}

/// The error comes of what was read or of the right to read it, not of the server's being busy or going away
/// (documentation, "PostgreSQL Error Codes").
fn is_of_the_read(code: &str) -> bool {
    ["21", "22", "42"].iter().any(|class| code.starts_with(class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_that_of_the_draws() {
        let taken = |share: f64| {
            let verifying = Verifying::new(share);
            (0..10_000).filter(|_| verifying.take().is_some()).count()
        };
        assert!(Verifying::new(0.0).is_off() && !Verifying::new(1e-9).is_off());
        assert_eq!(taken(1.0), 10_000);
        let hundredth = taken(0.01);
        assert!((50..200).contains(&hundredth), "{hundredth}");
    }

    #[test]
    fn one_is_verified_at_a_time() {
        let verifying = Verifying::new(1.0);
        let turn = verifying.take();
        assert!(turn.is_some() && verifying.take().is_none());
        drop(turn);
        assert!(verifying.take().is_some());
    }

    #[test]
    fn a_server_that_is_busy_says_nothing_of_the_read() {
        assert!(is_of_the_read("42P01") && is_of_the_read("22012"));
        assert!(!is_of_the_read("57014") && !is_of_the_read("40P01") && !is_of_the_read("53300"));
    }
}
