//! Requests that are said again: after which errors, where, and how.

use std::time::{Duration, Instant};

use crate::cluster::Tried;
use crate::config::{PoolMode, PrimaryReads};
use crate::frontend::batch::Batch;
use crate::frontend::serve::End;
use crate::frontend::session::{Kept, Session};
use crate::pool::lease::Lease;
use crate::session::pipeline::Expect;
use crate::wire::read::ErrorFields;

/// Where a read is said again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// On any other node that may answer.
    Elsewhere,
    /// No standby can serve it as the session is.
    OnPrimary,
    /// Anywhere: it was refused for a statement that is prepared anew.
    Anew,
    /// No standby can run it, for it writes or the like: on the primary, where its like go from now on.
    Write,
}

impl Again {
    /// For the errors that a standby gives and the primary may not.
    pub fn after(error: &ErrorFields) -> Option<Again> {
        match error.code {
            b"25006" => Some(Again::Write),
            b"55000" | b"0A000" if is_of_statement(error.routine) => Some(Again::Write),
            // Cancelled for what replay needs (also as a deadlock with it), or not serving yet.
            b"40001" | b"40P01" | b"57P03" => Some(Again::Elsewhere),
            // Serializable transactions, and what is no matter of the standby.
            b"55000" | b"0A000" => Some(Again::OnPrimary),
            // Names that it may not know yet: those of relations, columns, functions, types and schemas.
            b"42P01" | b"42703" | b"42883" | b"42704" | b"3F000" => Some(Again::OnPrimary),
            _ => None,
        }
    }
}

/// What raises "cannot access temporary or unlogged relations during recovery", "cannot acquire lock mode … while recovery is
/// in progress" and "recovery is in progress" (`plancat.c`, `lock.c`, `xlogfuncs.c`): no standby runs such a statement,
/// whatever the session. Messages may be translated.
fn is_of_statement(routine: &[u8]) -> bool {
    const ROUTINES: [&[u8]; 9] = [
        b"get_relation_info",
        b"LockAcquireExtended",
        b"pg_current_wal_lsn",
        b"pg_current_wal_insert_lsn",
        b"pg_current_wal_flush_lsn",
        b"pg_walfile_name",
        b"pg_walfile_name_offset",
        b"pg_switch_wal",
        b"pg_create_restore_point",
    ];
    ROUTINES.contains(&routine)
}

/// The idle connections of a server that ends fail so soon one after the other.
const ENDING: Duration = Duration::from_secs(1);

impl Session {
    /// A read on the primary that is said elsewhere, or to the next primary, should this one end. Once, for the read may be
    /// what ends it; but an idle connection of before may be just about to end too.
    pub(super) fn outlives_primary(&self, batch: &Batch, lease: &Lease) -> bool {
        let once = !self.tried.contains(lease.pool.node.index) || self.ends_with_primary(lease);
        once && self.cluster().nodes.len() > 1
            && self.fails_over()
            && self.mode != PoolMode::Session
            && batch.demand.is_read()
    }

    /// The primary has ended under this read a moment ago, and so does a connection of before.
    fn ends_with_primary(&self, lease: &Lease) -> bool {
        self.primary_failed.is_some_and(|failed| lease.created < failed && failed.elapsed() < ENDING)
    }

    /// A server process that ends without a word may have been brought down by what it ran: that is run once more, and not
    /// on one node after the other.
    pub(super) fn may_outlive(&self) -> bool {
        let of_primary = self.leased.as_ref().filter(|leased| !leased.replica);
        !self.died || of_primary.is_some_and(|leased| self.ends_with_primary(&leased.lease))
    }

    /// A read that failed on one node may be tried on another.
    pub fn may_say_again(&self, again: Again) -> bool {
        match again {
            Again::Elsewhere => self.fails_over(),
            // Where no read may, the server's own error says more than that nobody serves it.
            Again::OnPrimary => self.block.is_some() || self.cluster().routing.primary_reads != PrimaryReads::Never,
            Again::Write | Again::Anew => true,
        }
    }

    /// No standby runs the statement that has failed, nor its like.
    pub(super) fn note_refused_by_standby(&self) {
        if let Some((plan, _)) = self.pipeline.front().and_then(Expect::statement) {
            self.database.plans.note_refusal(&plan, self.scope());
        }
    }

    /// A request of which nothing has reached the client is said again, a read elsewhere, silently: its bytes are still
    /// at the head of the inbox.
    pub(super) fn retry(&mut self, why: &str, again: Again) -> Option<End> {
        let Some(leased) = &self.leased else { return None };
        let node = &leased.lease.pool.node;
        tracing::info!(node = %node.name, why, "a read is tried elsewhere");
        match again {
            Again::Elsewhere => {
                if !leased.replica && !self.tried.contains(node.index) {
                    self.primary_failed = Some(Instant::now());
                }
                self.tried.insert(node.index);
            }
            Again::OnPrimary | Again::Write => self.tried = Tried::all(),
            Again::Anew => {}
        }
        // Names that the batch has bound or closed are bound and closed again.
        self.pipeline.abandon();
        for undo in std::mem::take(&mut self.request.undo).into_iter().rev() {
            self.restore_name(undo);
        }
        self.drop_lease();
        self.say_again_in_block();
        self.failed = false;
        (self.request.kept, self.request.sent, self.request.end) = (Kept::No, 0, None);
        self.server_rest = 0;
        None
    }
}
