//! What is owed for each message.

use std::sync::Arc;

use crate::route::plan::Plan;
use crate::session::pins::Pin;
use crate::session::prepared::Statement;
use crate::session::values::Values;

/// A change of a client's statement names that an error takes back.
#[derive(Debug, Clone)]
pub struct Undo {
    pub name: Box<[u8]>,
    pub previous: Option<Arc<Statement>>,
    /// It stood for a statement of SQL's PREPARE.
    pub of_sql: bool,
}

/// Why a statement that fails was sent in a statement's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It would have pinned the client.
    Pin(Pin),
    /// It is for the primary, within a READ ONLY block on a replica.
    OnReplica,
}

/// One owed reply.
#[derive(Debug, Default)]
pub enum Expect {
    /// A Parse that went to the server; not shown where pgweir prepares again on its own.
    Parse {
        statement: Option<Arc<Statement>>,
        shown: bool,
        undo: Option<Undo>,
        /// Prepared ahead of the client's Describe of this statement, which tells its parameters even where it fails.
        describes: Option<Arc<Statement>>,
    },
    /// A Describe of pgweir's own, behind each Parse of a statement.
    Description {
        statement: Arc<Statement>,
        /// The client's name in its Parse; `None` where pgweir prepares on its own.
        parsed: Option<Box<[u8]>>,
        /// The body of the ParameterDescription, once it has come.
        parameters: Option<Box<[u8]>>,
    },
    /// A Bind or Describe of a statement whose result has changed, in whose place something that fails was sent: the
    /// client is given the error that Postgres has for this.
    Changed {
        /// Its Describe is answered so far.
        describes: Option<Arc<Statement>>,
        plan: Arc<Plan>,
    },
    /// A Parse that pgweir answers: the server has the statement.
    ParsedHere {
        undo: Option<Undo>,
    },
    Bind {
        /// The client's name of the statement; `None`: the unnamed one.
        name: Option<Arc<[u8]>>,
        statement: Option<Arc<Statement>>,
        /// Another statement that fails stands for it.
        refused: Option<Refused>,
    },
    Describe {
        /// As with Bind; of a portal neither.
        name: Option<Arc<[u8]>>,
        statement: Option<Arc<Statement>>,
    },
    Execute {
        plan: Option<Arc<Plan>>,
        /// What was bound, where the slow-query log is to show it.
        values: Option<Arc<Values>>,
        /// Of the names that it deallocates.
        undo: Vec<Undo>,
    },
    Close {
        shown: bool,
        /// What pgweir closes on its own to make room.
        evicted: Option<Arc<Statement>>,
        /// The client's own of a name that SQL's PREPARE has made.
        undo: Option<Undo>,
    },
    /// A Close of a statement: names are pgweir's own affair.
    ClosedHere {
        undo: Option<Undo>,
    },
    /// A Describe that pgweir answers: these parameters and no rows.
    DescribedHere {
        parameters: Box<[u8]>,
    },
    Sync {
        shown: bool,
    },
    Query {
        plan: Option<Arc<Plan>>,
        /// As with Bind.
        refused: Option<Refused>,
    },
    /// The BEGIN of a block that pgweir has answered to its client before, by Parse, Bind and Execute.
    Begin,
    /// Statements of pgweir's own ahead of the client's (the parameters' difference).
    Replay,
    /// A statement named for the client's SQL ahead of it, and a Sync; its error, if any, is not shown.
    Aside,
    /// A question of pgweir's own behind the client's: what the session has become.
    Survey,
    Function,
    /// CopyDone or CopyFail: no reply of its own; it tells which Syncs a COPY swallows.
    #[default]
    CopyEnd,
}

impl Expect {
    /// The client's name in its Bind or Describe, and the statement that it stood for.
    pub fn named(&self) -> Option<(&[u8], &Arc<Statement>)> {
        match self {
            Expect::Bind { name, statement, .. } | Expect::Describe { name, statement } => {
                Some((name.as_deref().unwrap_or_default(), statement.as_ref()?))
            }
            _ => None,
        }
    }

    /// The statement whose failure an error in this place is, and what was bound.
    pub fn statement(&self) -> Option<(Arc<Plan>, Option<Arc<Values>>)> {
        let (plan, values) = match self {
            Expect::Execute { plan, values, .. } => (plan.as_ref()?, values.clone()),
            Expect::Query { plan, .. } => (plan.as_ref()?, None),
            Expect::Changed { plan, .. } => (plan, None),
            Expect::Parse { statement, .. } | Expect::Bind { statement, .. } => (&statement.as_ref()?.plan, None),
            _ => return None,
        };
        Some((plan.clone(), values))
    }

    /// With its ReadyForQuery, what stands before has been done or skipped for good.
    pub(super) fn ends_segment(&self) -> bool {
        matches!(self, Expect::Sync { .. } | Expect::Query { .. } | Expect::Function)
    }

    pub(super) fn undo(&self) -> &[Undo] {
        match self {
            Expect::Parse { undo, .. }
            | Expect::Close { undo, .. }
            | Expect::ParsedHere { undo }
            | Expect::ClosedHere { undo } => undo.as_slice(),
            Expect::Execute { undo, .. } => undo,
            _ => &[],
        }
    }

    pub(super) fn undo_mut(&mut self) -> &mut [Undo] {
        match self {
            Expect::Parse { undo, .. }
            | Expect::Close { undo, .. }
            | Expect::ParsedHere { undo }
            | Expect::ClosedHere { undo } => undo.as_mut_slice(),
            Expect::Execute { undo, .. } => undo,
            _ => &mut [],
        }
    }
}
