//! What a statement's text says, without asking any server.
//!
//! `lex` reads tokens exactly as Postgres does; `fingerprint` folds literals out of them; `classify` turns a
//! text into [`Facts`]; `functions` is what is known of built-in functions. Unsure always means: primary, and state of
//! the session unknown.
//!
//! The verdict rests on tokens alone, because Postgres's grammar lets every call, operator, cast and clause that
//! matters be seen in them, and no other parser reads Postgres's language whole. sqlparser's tree adds which relations
//! are read, and counts as exact only where the tokens agree.
//!
//! What a text cannot tell, and the catalog does ([`crate::catalog`]): views and the functions behind them, a user's
//! function or operator that shadows or overloads a built-in name, volatile code behind casts and policies, and functions
//! called by attribute notation on a row (`alias.name`, see [`Facts::attributes`]). What triggers do, nobody tells. INSERT, UPDATE, DELETE, MERGE and COPY
//! count as leaving the session as it was, whatever their triggers do; so do nextval and setval, though currval is
//! the session's.

mod block;
pub(crate) mod builtins;
mod bytes;
pub mod classify;
mod commands;
mod databases;
pub mod fingerprint;
pub mod functions;
mod hash;
mod keywords;
pub mod lex;
pub mod procedural;
mod relations;
pub mod settings;
pub mod template;
mod tokens;
mod tree;
mod view;

#[cfg(test)]
mod tests;

use std::fmt;

/// What one Query string, or the text of one Parse, is. Never borrowed from the text; small.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Number of statements in the string; 0 is an empty query.
    pub statements: usize,
    /// Why it must run on the primary; `None`: a plain read that any fresh enough node may answer.
    pub primary: Option<Reason>,
    /// Transaction control in the order of the statements (usually none or one).
    pub control: Vec<Control>,
    /// Several statements that are a READ ONLY block as a whole, from BEGIN to COMMIT.
    pub is_block: bool,
    /// Its last statement that begins or ends a block in words which Postgres takes for certain.
    pub boundary: Option<Boundary>,
    /// What it does to the session, in the order of the statements; empty: proven to leave it as it was.
    pub effects: Vec<Effect>,
    /// Relations named, as written (folded to lower case where unquoted), CTE names left out.
    pub relations: Vec<Name>,
    /// Functions called, as written and folded.
    pub functions: Vec<Call>,
    pub hints: Hints,
    /// True where the decision depends on a literal (SET, set_config, hints): not shared by fingerprint.
    pub by_literal: bool,
    /// Those of `relations` that are written to.
    pub written: Vec<Name>,
    /// `relations` is exact. False: it may hold names of common tables or columns too, or (not a read) lack some.
    pub relations_exact: bool,
    /// Names behind a dot that are not called: columns, but `row.name` may also call a function by attribute notation.
    pub attributes: Vec<String>,
    /// Operators that are not Postgres's own; with none among them but those the catalog knows,
    /// [`Reason::UnknownOperator`] falls.
    pub operators: Vec<String>,
    /// Types of casts and typed constants that are not Postgres's own; as with `operators`.
    pub types: Vec<Name>,
    /// The result may change while the rows do not: clock, chance, session, catalogs, EXPLAIN. Never cached.
    pub transient: bool,
    /// [`Effect::Unknown`] stands only for functions, operators and types that the catalog may know to be harmless.
    pub unknown_by_name: bool,
    /// The database that the statement, the first of its string, wants to itself: it fails while others are connected to it.
    pub alone_in: Option<String>,
    /// SHOW of a parameter that may be another on each node.
    pub asks_node: bool,
    /// A plain string holds a backslash: where standard_conforming_strings is off, nothing here holds.
    pub backslash: bool,
}

impl Facts {
    /// It does something to its session.
    pub fn is_felt(&self) -> bool {
        !(self.effects.is_empty() && self.control.is_empty())
    }

    /// Where it may run is left to the catalog.
    pub fn is_open(&self) -> bool {
        matches!(self.primary, None | Some(Reason::UnknownFunction | Reason::UnknownOperator))
            && (self.unknown_by_name || !self.effects.contains(&Effect::Unknown))
    }

    /// What comes behind it in a pipeline may fail without undoing it: it ends a transaction, or may commit within, as
    /// procedures do and what cannot run in a transaction block.
    pub fn may_commit(&self) -> bool {
        use Reason::{Ddl, TooLong, Transaction, Unparsable, Utility};
        !self.control.is_empty() || matches!(self.primary, Some(Ddl | Transaction | Utility | Unparsable | TooLong))
    }

    /// It calls a function of such a name, in whatever schema.
    pub fn calls_any(&self, names: &[&str]) -> bool {
        self.functions.iter().any(|call| names.contains(&call.function.name.as_str()))
    }

    /// It calls currval or lastval: what the session itself has drawn.
    pub fn asks_sequences(&self) -> bool {
        self.calls_any(&["currval", "lastval"])
    }
}

/// A possibly schema-qualified name, unquoted and case-folded as Postgres would.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    pub schema: Option<String>,
    pub name: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{schema}.")?;
        }
        f.write_str(&self.name)
    }
}

/// A function as it is called.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Call {
    pub function: Name,
    /// How many arguments it is given; `None`: not known.
    pub arguments: Option<u16>,
}

/// The closed list of reasons for the primary that a text can give, and those of the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// INSERT, UPDATE, DELETE, MERGE, COPY FROM, wherever it stands.
    Write,
    Ddl,
    /// FOR UPDATE / NO KEY UPDATE / SHARE / KEY SHARE.
    Locking,
    /// SELECT INTO, CREATE TABLE AS.
    Into,
    /// nextval, currval, lastval, setval, or a read of a sequence.
    Sequence,
    /// Advisory locks, LOCK TABLE.
    Lock,
    /// A function of which nothing harmless is known.
    UnknownFunction,
    /// A known function with an effect or an answer of its own session or node (pg_notify, txid_current, pg_backend_pid…).
    SideEffect,
    /// An operator or cast of which nothing is known.
    UnknownOperator,
    /// SET, SHOW, DISCARD, PREPARE, EXECUTE, LISTEN, cursors: bound to the session.
    Session,
    /// BEGIN … COMMIT and savepoints.
    Transaction,
    /// DO, CALL, VACUUM, ANALYZE, CHECKPOINT and other utility statements.
    Utility,
    /// A relation whose content is the node's own (pg_stat_activity, pg_locks…) or temporary.
    NodeLocal,
    /// The text does not parse, or lexes differently by server settings.
    Unparsable,
    /// Longer or deeper than is looked at.
    TooLong,
    /// A foreign table, perhaps behind a view or as a partition.
    Foreign,
    /// An unlogged relation, which a standby has not.
    Unlogged,
    /// What the catalog says of its names is not known, or not any more.
    Catalog,
}

impl Reason {
    pub const ALL: [Reason; 18] = [
        Reason::Write,
        Reason::Ddl,
        Reason::Locking,
        Reason::Into,
        Reason::Sequence,
        Reason::Lock,
        Reason::UnknownFunction,
        Reason::SideEffect,
        Reason::UnknownOperator,
        Reason::Session,
        Reason::Transaction,
        Reason::Utility,
        Reason::NodeLocal,
        Reason::Unparsable,
        Reason::TooLong,
        Reason::Foreign,
        Reason::Unlogged,
        Reason::Catalog,
    ];

    /// The name in logs, metrics and EXPLAIN ROUTE.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Write => "write",
            Reason::Ddl => "ddl",
            Reason::Locking => "locking",
            Reason::Into => "into",
            Reason::Sequence => "sequence",
            Reason::Lock => "lock",
            Reason::UnknownFunction => "unknown_function",
            Reason::SideEffect => "side_effect",
            Reason::UnknownOperator => "unknown_operator",
            Reason::Session => "session",
            Reason::Transaction => "transaction",
            Reason::Utility => "utility",
            Reason::NodeLocal => "node_local",
            Reason::Unparsable => "unparsable",
            Reason::TooLong => "too_long",
            Reason::Foreign => "foreign_table",
            Reason::Unlogged => "unlogged",
            Reason::Catalog => "catalog",
        }
    }
}

/// Transaction control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// BEGIN, START TRANSACTION; `None`: not said.
    Begin {
        read_only: Option<bool>,
        serializable: Option<bool>,
        deferrable: Option<bool>,
    },
    /// SET TRANSACTION.
    SetTransaction {
        read_only: Option<bool>,
        serializable: Option<bool>,
    },
    Commit {
        chain: bool,
    },
    Rollback {
        chain: bool,
    },
    Savepoint(String),
    RollbackTo(String),
    Release(String),
    PrepareTransaction,
    /// COMMIT PREPARED, ROLLBACK PREPARED.
    FinishPrepared,
}

impl Control {
    /// It begins a block that a standby runs if it is READ ONLY: no standby runs a SERIALIZABLE one, and only such a one can
    /// be DEFERRABLE.
    pub fn begins_plainly(&self) -> bool {
        let Control::Begin { serializable, deferrable, .. } = *self else { return false };
        serializable != Some(true) && deferrable != Some(true)
    }

    /// What a BEGIN or a SET TRANSACTION says of it.
    pub fn says_read_only(&self) -> Option<bool> {
        match *self {
            Control::Begin { read_only, .. } | Control::SetTransaction { read_only, .. } => read_only,
            _ => None,
        }
    }

    /// It ends a block, and begins no other.
    pub fn ends(&self) -> bool {
        matches!(self, Control::Commit { chain: false } | Control::Rollback { chain: false })
    }

    /// Postgres takes it in a failed transaction (`IsTransactionExitStmt`).
    pub fn ends_failed(&self) -> bool {
        use Control::{Commit, PrepareTransaction, Rollback, RollbackTo};
        matches!(self, Commit { .. } | Rollback { .. } | RollbackTo(_) | PrepareTransaction)
    }
}

/// What begins or ends a block, as its CommandComplete says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boundary {
    Begin,
    Start,
    Commit,
    Rollback,
}

impl Boundary {
    pub fn tag(self) -> &'static str {
        match self {
            Boundary::Begin => "BEGIN",
            Boundary::Start => "START TRANSACTION",
            Boundary::Commit => "COMMIT",
            Boundary::Rollback => "ROLLBACK",
        }
    }

    pub fn begins(self) -> bool {
        matches!(self, Boundary::Begin | Boundary::Start)
    }
}

/// What a statement does to the state of its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// SET [SESSION | LOCAL] name = value; also SET TIME ZONE (`timezone`), SET NAMES (`client_encoding`),
    /// and set_config with literal arguments as the whole select list.
    Set {
        name: String,
        value: SetValue,
        local: bool,
    },
    /// set_config with bound arguments: which setting gets which value, the Bind tells.
    Configure {
        name: Argument,
        value: Argument,
        local: Argument,
    },
    /// RESET ALL.
    ResetAll,
    /// SET SESSION CHARACTERISTICS AS TRANSACTION.
    SessionCharacteristics,
    /// SET ROLE, RESET ROLE, SET SESSION AUTHORIZATION …: raw text of the value; `None` = NONE / DEFAULT / RESET.
    Role {
        session_authorization: bool,
        value: Option<String>,
        local: bool,
    },
    DiscardAll,
    DiscardPlans,
    DiscardTemp,
    DiscardSequences,
    /// SQL-level PREPARE / EXECUTE / DEALLOCATE (`None` = ALL).
    Prepare(String),
    Execute(String),
    Deallocate(Option<String>),
    Listen(String),
    /// `None` = `*`.
    Unlisten(Option<String>),
    Declare {
        name: String,
        hold: bool,
    },
    /// CLOSE; `None` = ALL.
    Close(Option<String>),
    /// CREATE TEMP …, SELECT INTO TEMP, or a name in pg_temp.
    Temporary,
    /// … of which this one says ON COMMIT DROP.
    DroppedAtCommit,
    /// pg_advisory_lock and kin of session scope; `unlock_all` for pg_advisory_unlock_all.
    AdvisoryLock,
    AdvisoryUnlockAll,
    Load,
    /// DO, CALL, functions of which nothing is known: may have changed anything.
    Unknown,
}

/// One argument of set_config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    Text(String),
    Null,
    /// `$n`, counted from 1.
    Parameter(u16),
}

impl Argument {
    /// It says true in the text itself.
    pub fn is_true(&self) -> bool {
        matches!(self, Argument::Text(text) if settings::truth(text.as_bytes()) == Some(true))
    }
}

/// The right-hand side of a SET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetValue {
    /// The flat string that set_config takes.
    Flat(String),
    /// As written, ready to stand behind `SET name =`, quotes included.
    Sql(String),
    /// DEFAULT, or RESET name.
    Default,
    /// FROM CURRENT, or anything whose text cannot be said again elsewhere.
    Opaque,
}

/// Hints in leading or trailing comments: `/* pgweir: primary */` and kin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hints {
    pub route: Option<RouteHint>,
    pub no_cache: bool,
    /// `cache ttl=5s`, in milliseconds.
    pub cache_ttl_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteHint {
    Primary,
    Replica,
}

/// Identity of a statement with its literals folded out: the same for every literal and every length of an IN list.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub u64);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
