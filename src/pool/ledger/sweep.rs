//! What happens to a pool from outside its traffic: reaping, reload, PAUSE, RESUME, RECONNECT, the end.

use std::time::Instant;

use super::{Creates, Idle, Ledger, Limits, State};

/// Connections to close, and connections to make in their stead.
#[derive(Debug)]
#[must_use]
pub struct Sweep<C> {
    pub close: Vec<C>,
    pub create: Creates,
}

/// What a closed pool leaves: connections to close, and waiters to refuse, oldest first.
#[derive(Debug)]
#[must_use]
pub struct Closed<C, W> {
    pub close: Vec<C>,
    pub refuse: Vec<W>,
}

impl<C, W> Ledger<C, W> {
    /// The regular round, each `reap_interval`.
    ///
    /// Closes idle connections at the end of their life, those near it whose successor is there, and those above `min` that were
    /// idle for `idle_timeout`. Asks for what is missing: up to `min`, successors of those near their end, and
    /// one for each waiter.
    pub fn reap(&mut self, now: Instant) -> Sweep<C> {
        let replaced = self.has_successor(now);
        let mut close = self.remove_idle(|idle| {
            let life = &idle.held.life;
            life.is_over(now) || (life.is_due(now) && replaced)
        });

        let idle_timeout = self.limits.idle_timeout;
        let mut spare = self.staying(now).saturating_sub(self.limits.min);
        close.extend(self.remove_idle(|idle| {
            let expired = now.saturating_duration_since(idle.since) >= idle_timeout;
            let remove = spare > 0 && expired;
            spare -= usize::from(remove);
            remove
        }));

        let wanted = self.stock(now).max(self.active());
        let missing = wanted.saturating_sub(self.staying(now) + self.creating);
        let create = self.ask(now, missing);
        Sweep { close, create }
    }

    /// Removes the idle connections that `dead` recognises: the server closed them, or their node is gone.
    pub fn lost(&mut self, now: Instant, mut dead: impl FnMut(&mut C) -> bool) -> Sweep<C> {
        let close = self.remove_idle(|idle| dead(&mut idle.held.connection));
        let create = self.ask(now, self.below_min(now));
        Sweep { close, create }
    }

    /// Removes all idle connections above `min`, coldest first, to give memory back.
    pub fn trim(&mut self) -> Vec<C> {
        let mut spare = self.lives.len().saturating_sub(self.limits.min);
        self.remove_coldest(&mut spare)
    }

    /// Takes new settings. Connections that exist keep the lifetime they were given.
    pub fn reconfigure(&mut self, now: Instant, limits: Limits) -> Sweep<C> {
        self.limits = limits;
        self.backoff.set_interval(limits.create_retry_interval);
        let mut surplus = self.total().saturating_sub(limits.max);
        let close = self.remove_coldest(&mut surplus);
        let create = self.ask(now, self.below_min(now));
        Sweep { close, create }
    }

    /// RECONNECT: closes what is idle now, and everything else made or begun before this moment when it is given back.
    pub fn reconnect(&mut self, now: Instant) -> Sweep<C> {
        self.generation += 1;
        self.lost(now, |_| true)
    }

    /// Somebody wants the database to himself: as RECONNECT, and until `until` only those who wait get connections.
    pub fn vacate(&mut self, now: Instant, until: Instant) -> Sweep<C> {
        self.vacant_until = Some(until);
        self.reconnect(now)
    }

    /// Nobody wants it to himself any more.
    pub fn occupy(&mut self, now: Instant) -> Creates {
        self.vacant_until = None;
        self.ask(now, self.below_min(now))
    }

    /// PAUSE: nothing is handed out and nothing is made; connections given back are closed; waiters wait.
    ///
    /// Returns the idle connections to close. The pause is complete when [`is_empty`](Self::is_empty).
    pub fn pause(&mut self) -> Vec<C> {
        if self.state == State::Open {
            self.state = State::Paused;
        }
        self.remove_idle(|_| true)
    }

    /// RESUME: serves waiters again, and asks for connections for them.
    pub fn resume(&mut self, now: Instant) -> Creates {
        if self.state == State::Paused {
            self.state = State::Open;
        }
        self.ask(now, self.below_min(now))
    }

    /// Ends the pool for good. Connections in use are closed when they are given back.
    pub fn close(&mut self) -> Closed<C, W> {
        self.state = State::Closed;
        Closed { close: self.remove_idle(|_| true), refuse: self.dismiss_waiters() }
    }

    /// True if no connection is open and none is being made.
    pub fn is_empty(&self) -> bool {
        self.total() == 0
    }

    /// Those that need no successor: far from their end, or past it and in use, where one made in advance could wait for
    /// hours (a client in session mode keeps its connection as long as it likes).
    fn staying(&self, now: Instant) -> usize {
        self.lives.iter().filter(|life| !life.is_due(now) || life.is_over(now)).count()
    }

    fn remove_coldest(&mut self, count: &mut usize) -> Vec<C> {
        self.remove_idle(|_| {
            let remove = *count > 0;
            *count -= usize::from(remove);
            remove
        })
    }

    /// Takes idle connections out of the books, coldest first.
    fn remove_idle(&mut self, mut remove: impl FnMut(&mut Idle<C>) -> bool) -> Vec<C> {
        let mut removed = Vec::new();
        let mut index = 0;
        while let Some(idle) = self.idle.get_mut(index) {
            if !remove(idle) {
                index += 1;
            } else if let Some(Idle { held, .. }) = self.idle.remove(index) {
                removed.push(self.forget(held));
            }
        }
        removed
    }
}
