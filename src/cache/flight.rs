//! One execution for many that ask the same at once.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use parking_lot::Mutex;

use crate::cache::entry::{Entry, Needs};
use crate::freshness::Lsn;

/// What was known when a read began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Began {
    pub at: Instant,
    /// The last change.
    pub number: u64,
    /// No statement misses what ends here in the WAL, or before.
    pub visible: Lsn,
    /// Everything that was committed by then was known.
    pub as_of: Instant,
}

/// A read under way, for those that wait for it.
#[derive(Debug)]
pub struct Flight {
    pub(super) began: Began,
    /// Which descriptions its reply will have.
    pub(super) brings: Needs,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Flying(Vec<Waker>),
    Landed(Arc<Entry>),
    Failed,
}

impl Flight {
    pub(super) fn new(began: Began, brings: Needs) -> Flight {
        Flight { began, brings, state: Mutex::new(State::Flying(Vec::new())) }
    }

    /// What came of it; `None`: nothing that can be shared.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Arc<Entry>>> {
        match &mut *self.state.lock() {
            State::Landed(entry) => Poll::Ready(Some(entry.clone())),
            State::Failed => Poll::Ready(None),
            State::Flying(waiting) => {
                if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                    waiting.push(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }

    /// It has ended; only its first end counts.
    pub(super) fn end(&self, result: Option<Arc<Entry>>) {
        let mut state = self.state.lock();
        if !matches!(*state, State::Flying(_)) {
            return;
        }
        let ended = result.map_or(State::Failed, State::Landed);
        let before = std::mem::replace(&mut *state, ended);
        drop(state);
        if let State::Flying(waiting) = before {
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    /// It will have what is needed, whatever the rows.
    pub(super) fn will_have(&self, needs: Needs) -> bool {
        (!needs.parameters || self.brings.parameters) && (!needs.rows || self.brings.rows)
    }
}
