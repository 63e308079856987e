//! Which relations each commit changed, whoever made it: one logical replication stream from a database's primary.
//!
//! The slot is temporary, so nothing is kept on the primary for a pgweir that is gone. What a stream tells is a sequence
//! of [`Event`]s: from [`Event::Whole`] on every commit is told, in the order of the WAL, until [`Event::Lost`].
//!
//! A commit is streamed as soon as its record is flushed, which is *before* other sessions see it: its backend has yet to
//! leave the list of running transactions, and waits for synchronous standbys first (`RecordTransactionCommit`). A read
//! that begins after the commit was told may therefore still miss it. So the running transactions of the primary
//! are asked for after each commit ([`visible`]), and [`Event::Visible`] says from when on no read can miss it. The same question
//! tells where the primary's WAL ends, so that it is known up to when everything has been told ([`Event::Told`]), four times a
//! second at least, and at once where someone waits for it ([`Urge`]).
//!
//! Where the stream is that of a publication, all this is so for the tables that it covers ([`Event::Publication`]); others change
//! untold, and so do empty transactions, from Postgres 15 on.
//!
//! Changes of definitions are not streamed. A transaction that changes nothing but catalogs shows as an empty one, and is
//! told as [`Commit::empty`]; one that changes rows too shows its rows alone. Whoever relies on definitions looks at the
//! catalog besides.

pub mod binary;
mod fleet;
mod origin;
pub mod publication;
mod stream;
mod task;
pub mod text;
mod visible;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

pub use crate::freshness::Lsn;
pub use task::{Follow, Urge, follow};

use crate::catalog::publication::Publication;
use crate::sql::Name;

/// Relations kept apart in one commit; with more of them the commit is told as one that changed any.
const MAX_RELATIONS: usize = 1_000;

/// A relation as the stream names it, at the time of the change; of a partitioned table the partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Relation {
    /// Always with its schema.
    Named(Name),
    Oid(u32),
}

/// What one transaction changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Just behind its commit record: a server that has replayed to here shows it.
    pub end: Lsn,
    pub changed: Changed,
}

/// Relations of one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// In no order; empty: no rows, so definitions probably.
    These(Vec<Relation>),
    /// Too many to tell.
    Any,
}

impl Commit {
    /// Nothing was changed that the stream shows: definitions probably.
    pub fn is_empty(&self) -> bool {
        matches!(&self.changed, Changed::These(relations) if relations.is_empty())
    }
}

/// Why there is no stream; the closed list of the log and `/cache`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// `wal_level` is below `logical`.
    WalLevel,
    /// The user lacks REPLICATION, or pg_hba.conf does not let it in.
    Refused(String),
    /// All slots or WAL senders are taken.
    Exhausted(String),
    /// The database has no primary now.
    NoPrimary,
    /// The primary is another node now.
    Promotion,
    /// A statement wants the database to itself.
    Left,
    /// The publication is not there, or does not tell all kinds of changes.
    Publication(String),
    /// The publication tells of other tables than when the stream began.
    Altered,
    /// The connection failed, or what came over it cannot be read.
    Failed(String),
}

impl Cause {
    /// It may end soon without anybody doing something about it.
    pub fn passes(&self) -> bool {
        !matches!(self, Cause::WalLevel | Cause::Refused(_) | Cause::Exhausted(_) | Cause::Publication(_))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::WalLevel => f.write_str("the primary's wal_level is not \"logical\""),
            Cause::Refused(why) | Cause::Exhausted(why) | Cause::Failed(why) | Cause::Publication(why) => {
                f.write_str(why)
            }
            Cause::NoPrimary => f.write_str("the database has no primary now"),
            Cause::Promotion => f.write_str("another node is the primary now"),
            Cause::Left => f.write_str("a statement wants the database to itself"),
            Cause::Altered => f.write_str("the publication has been altered"),
        }
    }
}

/// How a pgweir comes to know of changes where there may be a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// By its own stream, and it tells the others.
    Leader,
    /// By what the one at this address tells.
    Follower(String),
    /// By its own stream, for itself, for this reason.
    Alone(&'static str),
}

impl Part {
    pub fn as_str(&self) -> &'static str {
        match self {
            Part::Leader => "leader",
            Part::Follower(_) => "follower",
            Part::Alone(_) => "alone",
        }
    }
}

/// What the stream tells, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Comes before [`Event::Whole`], where there may be a fleet.
    Part(Part),
    /// Comes before [`Event::Whole`]: in whose history all positions are, in one word that every pgweir before this database would
    /// say; `None`: the server does not tell.
    Origin(Option<Box<str>>),
    /// Comes before [`Event::Whole`]: changes of the tables that this covers are told, and perhaps of others; `None`: those of all.
    Publication(Option<Arc<Publication>>),
    /// From now on every commit that ends behind `from` is told. What ended before it is visible on the primary; a
    /// replica shows it once it has replayed to `from`.
    Whole {
        from: Lsn,
    },
    Commit(Commit),
    /// All commits that end at or before this position have been told.
    Reached(Lsn),
    /// No statement that begins on the primary after this can miss a commit that ends at or before this position.
    Visible(Lsn),
    /// Every commit of which anybody was told before this instant has been told here, and is visible.
    Told(Instant),
    /// Commits may be missed from here on, until the next [`Event::Whole`].
    Lost(Cause),
}
