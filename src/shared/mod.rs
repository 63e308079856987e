//! The second level of the result cache: a Redis or Valkey in which several pgweirs find what one of them has read.
//!
//! # When an entry is right
//!
//! What a pgweir stores carries a position in the WAL up to which it reflects every commit to the tables it reads
//! ([`crate::cache::sealed::Carried::as_of`]). Who finds it takes it only where it has been told of no later change of those tables,
//! by its own change stream: its own promise then holds, whatever the other knew. All that has no position keeps the store out: a
//! session whose own write has not been told of yet, a write that passed through and has not, a stream that is behind.
//!
//! What an entry is found by ([`place::Place::name`]) has, beside the whole key of the process's own cache: in whose history positions
//! are, the digest of the definitions, the path that names are looked up along, and the tables. Other definitions are other names.
//!
//! # When the store is slow, or gone
//!
//! A read asks within a short time, then runs as if there were no store; so do all that come after it, until the store has
//! answered in that time again to who looks after it ([`link::Shared::run`]). What is to be stored waits in a short queue, and
//! goes nowhere where that is full.
//!
//! # When entries are evicted
//!
//! Each entry carries what the store held as the database's epoch when its run began. EVICT CACHE puts another there, and until
//! the store has taken it, this pgweir does not ask.

mod link;
mod place;

pub use link::{Shared, State, probe};
pub use place::{Fetched, Figures, Name, Place};
