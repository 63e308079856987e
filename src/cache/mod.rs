//! Results that are kept, to answer the same read again without a server.
//!
//! # What is kept
//!
//! An [`entry::Entry`] holds the frames of one complete result as the server sent them: the rows, the CommandComplete,
//! and the descriptions where the run that filled it brought any. What differs by the way of asking (ParseComplete,
//! which description is wanted and in which formats, ReadyForQuery) is not kept but written anew for each reply, so a
//! simple Query and a Parse, Bind, Describe, Execute share an entry where they ask the same. [`request`] reads what a
//! batch of messages asks; a batch of any other shape goes past the cache.
//!
//! # What finds it
//!
//! The [`key`] is made of exact bytes: database, user, every setting of the session that is not known to leave results
//! alone, text, parameter types, formats and values, result formats. Nothing in it is hashed away, so two different
//! reads never meet.
//!
//! # What may be kept
//!
//! [`admit`] refuses by a closed list of reasons. A text that looks at the clock, the session or chance is never kept;
//! what its relations and functions are, the catalog must say ([`crate::catalog::sources`]). Where nothing tells of changes,
//! only those reads are kept that the operator has named with a time to live (`/* pgweir: cache ttl=5s */`), and then any
//! write counts as a change of what they read.
//!
//! # When it is right
//!
//! Each change that becomes known, by a write that passes through or by the change stream, gets the next number
//! ([`changes`]). A fill notes the number at its start, before its statement is sent, and is refused at its end
//! where something it reads has changed since: a read that straddles a commit is not stored behind the
//! invalidation. A replica's answer is kept only where it had replayed the last change of what it reads. Changes that pass
//! through are noted before the client whose write it was is told of its success. Reads in a transaction, or on a
//! connection that is held, never come here.
//!
//! A change stream tells of a commit before other sessions see it, and of what was acknowledged a moment late. So a fill
//! is refused also where a change that was told was not yet known to be visible when it began; a session that has
//! written is answered from here only once the stream has told of all that was committed by then; and while the stream
//! is behind by more than [`MOST_BEHIND`], nobody is.
//!
//! # Many at once
//!
//! The first of several identical reads runs, the others wait for its result ([`flight`]), unless something that it
//! reads has changed since it began. If it fails, or brings nothing that can be kept, each goes on for itself.
//!
//! # How much
//!
//! [`store`] holds the hard bounds, entries and bytes, overhead included, and evicts as S3-FIFO does (Yang et al., SOSP
//! 2023): what is asked once goes through a small queue and does not push out what is asked often. Where hardly any result
//! of a statement is asked for again ([`crate::route::reuse`]), the first read of its kind is not even kept.

pub mod admit;
pub mod capture;
mod changes;
pub mod entry;
pub mod flight;
pub mod key;
mod queue;
pub mod request;
mod results;
pub mod rules;
pub mod sealed;
mod store;

#[cfg(test)]
mod model;
#[cfg(test)]
mod model_shared;

pub use changes::{Change, Changes, Mark, Reads, Table};
pub use results::{
    Asked, Counters, Counts, DatabaseId, Fill, INVALIDATIONS, Invalidation, LONGEST_WAIT, Landed, Limits, MOST_BEHIND,
    Results, UNFIT, Unfit, Wanted,
};
