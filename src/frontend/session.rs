//! The state of one client's session: its socket, what it is owed, what serves it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use smallvec::SmallVec;
use tokio::time::Sleep;

use crate::backend::connect::Login;
use crate::cluster::Tried;
use crate::config::PoolMode;
use crate::freshness::Seen;
use crate::frontend::block::Block;
use crate::frontend::cached::{Asker, Filling};
use crate::frontend::client::Entered;
use crate::frontend::database::{Database, Statuses};
use crate::frontend::invalidation::{Written, Wrote};
use crate::frontend::leases::InLine;
use crate::frontend::names::runs_by_name;
use crate::frontend::notifications::Subscription;
use crate::frontend::proxy::Proxy;
use crate::frontend::sight::Sight;
use crate::frontend::statements::Fresh;
use crate::frontend::survey::Survey;
use crate::frontend::tables::Floor;
use crate::frontend::vacancy::Leaving;
use crate::net::Stream;
use crate::net::buffers::Buffers;
use crate::pool::checkout::Pool;
use crate::pool::lease::Lease;
use crate::route::decide::Why;
use crate::route::plan::Plan;
use crate::session::channels::Channels;
use crate::session::environment::Environment;
use crate::session::parameters::Parameters;
use crate::session::pins::Pins;
use crate::session::pipeline::{Pipeline, Undo};
use crate::session::prepared::{Names, Statement};
use crate::session::token::in_other_words;
use crate::session::values::Values;
use crate::stats::CacheUse;
use crate::stats::counters::Counters;

/// One thread that serves clients.
#[derive(Debug)]
pub struct Worker {
    pub index: usize,
    pub buffers: Buffers,
}

/// A leased connection and why the client has it.
#[derive(Debug)]
pub struct Leased {
    pub lease: Lease,
    pub why: Why,
    /// On a node that takes reads only: nothing may follow but what was decided for it.
    pub replica: bool,
    /// State may have changed out of sight: reset before the next client has it.
    pub suspect: bool,
    /// … and SQL-level prepared statements may be among it.
    pub prepared: bool,
    /// It is given back in a transaction.
    pub open: bool,
    /// What the session is, settings and pins, only the server knows: asked when it is at rest.
    pub unsure: bool,
    /// What it has drawn from sequences is the client's own, or nothing.
    pub drew: bool,
    /// Protocol-level statements that the connection knows by the client's own names too.
    pub named: Vec<Box<[u8]>>,
    /// Prepared for the client's next message, which waits for its description.
    pub fresh: Option<Fresh>,
    /// Notifications of this connection's process are the client's own: those of earlier clients have been delivered.
    pub fenced: bool,
}

impl Leased {
    /// A connection that its client has done nothing with yet.
    pub fn new(lease: Lease, why: Why, replica: bool) -> Leased {
        Leased {
            lease,
            why,
            replica,
            suspect: false,
            unsure: false,
            drew: false,
            named: Vec::new(),
            fresh: None,
            prepared: false,
            open: false,
            fenced: false,
        }
    }

    /// A connection that serves one client from its login to its end.
    pub fn for_session(lease: Lease) -> Leased {
        // Of an earlier client's draws nothing is left there.
        Leased {
            suspect: true,
            drew: true,
            prepared: true,
            fenced: true,
            ..Leased::new(lease, Why::SessionMode, false)
        }
    }
}

/// What a scan of the client's messages has found, for their translation: in their order.
#[derive(Debug)]
pub enum Scanned {
    Query(Arc<Plan>),
    Parse(Arc<Statement>),
}

/// Whether whole messages stand in the inbox of a client without a connection, and no Query, Sync or Flush behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unended {
    #[default]
    No,
    Waiting,
    /// Nothing more has come for a while: a server would have run them by now.
    Paused,
}

/// A portal and what it runs.
#[derive(Debug)]
pub struct Portal {
    pub name: Box<[u8]>,
    pub plan: Arc<Plan>,
    /// Where the slow-query log is to show them.
    pub values: Option<Arc<Values>>,
}

/// Why a request may be said again, as long as nothing of the answer has reached the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    No,
    /// It relies on a statement that pgweir has taken for prepared: nothing has run where the server refuses that.
    Anew,
    /// It only reads: another node may answer.
    Read,
}

/// The request under way: from the first message sent to the last ReadyForQuery owed.
#[derive(Debug)]
pub struct Request {
    pub started: Instant,
    /// For a server connection; counted once, with the first statement.
    pub wait: Duration,
    /// When the statement now running began.
    pub mark: Instant,
    /// Its messages stay at the head of the inbox for as long as they may be said again.
    pub kept: Kept,
    /// Bytes of them that have been sent; what is not kept is consumed.
    pub sent: usize,
    /// Where it ends in the inbox, if what follows must wait for it; `None` again when all of it is sent.
    pub end: Option<usize>,
    /// pgweir ends its segment.
    pub ends_own: bool,
    /// The names it has changed, for as long as it is kept.
    pub undo: SmallVec<[Undo; 1]>,
    pub why: Why,
    /// Of the statement now running.
    pub rows: u64,
    pub bytes: u64,
    pub error: Option<[u8; 5]>,
    /// Rows of the portal's part now sent; a part that ends in PortalSuspended has no tag to say them.
    pub part: u64,
    pub values: Option<Arc<Values>>,
    pub cache: CacheUse,
    /// What the tables that it reads ask for.
    pub floor: Floor,
}

impl Request {
    pub fn new(now: Instant, why: Why) -> Request {
        Request {
            started: now,
            wait: Duration::ZERO,
            mark: now,
            kept: Kept::No,
            sent: 0,
            end: None,
            ends_own: false,
            undo: SmallVec::new(),
            why,
            rows: 0,
            bytes: 0,
            error: None,
            part: 0,
            values: None,
            cache: CacheUse::NotAsked,
            floor: Floor::None,
        }
    }
}

#[derive(Debug)]
pub struct Session {
    pub proxy: Arc<Proxy>,
    pub worker: Arc<Worker>,
    pub client: Entered,
    pub database: Arc<Database>,
    pub login: Login,
    /// By node index.
    pub pools: Vec<Arc<Pool>>,
    pub mode: PoolMode,
    /// `pool.pin`: it may have nothing that would pin it.
    pub refuses_pins: bool,

    pub stream: Stream,
    /// Received from the client and not yet consumed.
    pub inbox: BytesMut,
    /// To be sent to the client.
    pub outbox: BytesMut,
    /// Bytes still to come of a client's frame that is passed on as it arrives.
    pub client_rest: usize,
    /// Once the server has taken what was sent, there is more to do: messages of the client wait in the inbox, or
    /// nothing is owed any more.
    pub held_back: bool,
    /// Bytes still to come of a server's frame that is passed on as it arrives.
    pub server_rest: usize,

    pub leased: Option<Leased>,
    /// What stands at the head of the inbox waits for one.
    pub line: Option<InLine>,
    pub pipeline: Pipeline,
    /// A block that has run nothing yet, or a READ ONLY one on a replica.
    pub block: Option<Box<Block>>,
    /// When a block that has been begun lazily is to begin; kept for the next one.
    pub due: Option<Pin<Box<Sleep>>>,
    /// A READ ONLY one has come to what needed the primary: the next one begins there.
    pub retries_block: bool,
    pub request: Request,
    /// The reply under way is to be kept.
    pub filling: Option<Box<Filling>>,
    pub asker: Asker,
    /// Nodes on which the request at the head of the inbox has failed.
    pub tried: Tried,
    /// A server has ended without a word while it ran.
    pub died: bool,
    /// When it first failed on the primary.
    pub primary_failed: Option<Instant>,
    pub scanned: VecDeque<Scanned>,
    pub unended: Unended,

    pub names: Names,
    /// Names of SQL's PREPARE.
    pub sql_names: Vec<String>,
    pub environment: Environment,
    pub sight: Sight,
    /// It has asked for currval or lastval.
    pub asks_sequences: bool,
    /// What follows depends on how a statement under way ends: behind a RESET the client's startup values are said
    /// again, and PREPARE or DEALLOCATE change its names.
    pub settling: bool,
    /// Definitions (tables, functions) may have changed in the open transaction.
    pub defining: bool,
    /// Numbers the environments of this client that nobody shares.
    pub sent_apart: u64,
    /// The open portals; the unnamed one first and mostly alone.
    pub portals: Vec<Portal>,
    pub parameters: Parameters,
    pub pins: Pins,
    /// What the client listens on over the shared connection.
    pub channels: Channels,
    /// Since it first listened.
    pub subscription: Option<Box<Subscription>>,
    /// While it is under way.
    pub survey: Option<Box<Survey>>,
    /// The status byte of the last ReadyForQuery.
    pub status: u8,
    /// A BEGIN may be among the segments in flight.
    pub opens_block: bool,
    /// An error came since the last ReadyForQuery.
    pub failed: bool,
    /// The body of the error of what pgweir said ahead of the Query under way.
    pub aside_error: Option<Box<[u8]>>,
    /// The client's messages are skipped up to its Sync.
    pub skipping: bool,
    /// The client has said Terminate, behind what is still owed to it.
    pub terminating: bool,
    /// It has, or had, temporary objects of its own.
    pub had_temporary: bool,
    /// The open transaction has made some.
    pub makes_temporary: bool,
    /// Something of the open transaction may have written.
    pub writing: bool,
    /// Something of it may have read.
    pub reading: bool,
    pub seen: Seen,
    /// When it last wrote something, perhaps; known where results are cached.
    pub wrote: Wrote,
    /// What it writes in the transaction that is under way.
    pub written: Written,
    /// Its reads have gone to the primary for want of a replica known to be fresh enough; when it is to wait for a sample.
    pub unsettled: Option<Instant>,
    /// The ParameterStatus values that the client began with: those to which RESET returns.
    pub greeting: Statuses,
    /// Values of startup parameters that the client was told since.
    pub told: Vec<(Box<str>, Box<str>)>,
    /// ParameterStatus values that the client was told since the last ReadyForQuery.
    pub reported: Vec<(Box<str>, Box<str>)>,
    /// The client's encoding and string syntax are read as Postgres reads them.
    pub readable: bool,
    /// The time at which the open transaction began.
    pub transaction_began: Option<Instant>,
    /// The statement under way wants a database to itself.
    pub leaving: Option<Leaving>,
}

impl Session {
    /// The connection that serves the client now has nothing more to do with it.
    pub fn is_at_rest(&self) -> bool {
        self.status == b'I' && self.pipeline.is_settled() && self.client_rest == 0 && self.server_rest == 0
    }

    /// Its connection stays with it between transactions.
    pub fn keeps_lease(&self) -> bool {
        !self.pins.is_empty() || self.mode == PoolMode::Session
    }

    pub fn counters(&self) -> &Counters {
        self.database.counters.at(self.worker.index)
    }

    /// The plan of a statement's text.
    pub fn plan(&self, text: &[u8]) -> Arc<Plan> {
        if self.readable { self.database.plans.plan(text) } else { self.database.plans.opaque() }
    }

    /// The statement of a Parse. What runs by name means what the client's names stand for now.
    pub fn statement(&self, text: &[u8], types: &[u8]) -> Arc<Statement> {
        let (statements, environment) = (&self.database.statements, self.environment.key());
        let found = statements.statement(text, types, environment, || self.plan(text));
        if let Some(other) = in_other_words(text, &found.plan.facts) {
            return statements.statement(other.as_bytes(), types, environment, || found.plan.clone());
        }
        if !runs_by_name(&found.plan.facts) {
            return found;
        }
        let own = format!("{environment}{}:{}", self.client.id, self.names.version());
        statements.statement(text, types, &own.into(), || found.plan.clone())
    }
}
