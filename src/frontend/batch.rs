//! The client's messages up to where a node can be chosen: Query, Sync or Flush.

use std::time::Instant;

use crate::config::Freshness;
use crate::error::Fault;
use crate::frontend::block::decides_nothing;
use crate::frontend::io::MAX_WAITING;
use crate::frontend::session::{Scanned, Session, Unended};
use crate::frontend::tables::Floor;
use crate::route::decide::Demand;
use crate::route::plan::Plan;
use crate::sql::{Control, Fingerprint, Reason};
use crate::wire::tag::frontend;
use crate::wire::{read, scan};

/// A Query up to this size is looked into; a larger one goes to the primary unread.
pub const MAX_QUERY: usize = 1024 * 1024;

/// Messages that are looked at for whether they need a server at all.
const MAX_NAMES: usize = 32;

/// What stands at the head of the inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Nothing that can be acted upon; so many bytes are needed at least.
    Wait(usize),
    /// So many bytes that pgweir answers itself, without any server.
    Here(usize),
    Terminate,
    Batch(Batch),
}

/// Messages for one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Batch {
    /// Its bytes; what lies behind belongs to the next one.
    pub end: usize,
    pub demand: Demand,
    /// Only Parse, Describe and Close, ended by Flush: pgweir may end the segment itself, for nothing has run.
    pub prepares_only: bool,
    /// Opens a transaction block.
    pub begins: bool,
    /// There is a Parse in it.
    pub parses: bool,
    /// Something in it may commit, whatever becomes of the rest.
    pub commits: bool,
    /// What the tables that it reads ask for.
    pub floor: Floor,
    /// The statement, where it is one whose results are hardly ever asked for again.
    pub rare: Option<Fingerprint>,
}

impl Session {
    /// Looks at the messages of a client that holds no connection. Fills `scanned` for a batch.
    ///
    /// # Errors
    /// The client breaks the protocol.
    pub fn scan(&mut self) -> Result<Head, Fault> {
        let paused = std::mem::take(&mut self.unended) == Unended::Paused;
        self.scanned.clear();
        self.environment.settle(self.parameters.current(), false);
        self.settle_scope();
        let mut at = 0;
        let mut batch = Batch { demand: self.demand_of_block()?, prepares_only: true, ..Batch::default() };
        loop {
            let Some(head) = scan::head(&self.inbox[at..])? else {
                return Ok(self.cut_short(at, scan::HEADER, batch, paused));
            };
            check_size(head)?;
            if self.skipping && !matches!(head.tag, frontend::SYNC | frontend::TERMINATE) {
                return Ok(Head::Here(head.total));
            }
            let complete = self.inbox.len() - at >= head.total;
            let dropped = head.tag == frontend::COPY_DATA && at == 0;
            if !complete && !dropped {
                return Ok(self.cut_short(at, head.total, batch, paused));
            }
            let next = at + head.total;
            match head.tag {
                frontend::TERMINATE => {
                    self.terminating = true;
                    return Ok(Head::Terminate);
                }
                frontend::SYNC | frontend::FLUSH if batch.prepares_only && self.needs_no_server(at) => {
                    return Ok(Head::Here(next));
                }
                // The rest of a COPY that failed, or Syncs' worth of messages behind an error.
                frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL if at == 0 => {
                    return Ok(Head::Here(next));
                }
                frontend::SYNC => return Ok(Head::Batch(Batch { end: next, prepares_only: false, ..batch })),
                frontend::FLUSH => {
                    batch.demand.open = !batch.prepares_only;
                    return Ok(Head::Batch(Batch { end: next, ..batch }));
                }
                frontend::FUNCTION_CALL => {
                    // By OID, so of unknown effect.
                    batch.demand.add(Some(Reason::UnknownFunction), None);
                    return Ok(Head::Batch(Batch { end: next, prepares_only: false, ..batch }));
                }
                frontend::QUERY => {
                    let plan = self.plan(read::query(&self.inbox[at + scan::HEADER..next])?);
                    self.weigh(&plan, &mut batch);
                    self.scanned.push_back(Scanned::Query(plan));
                    // Behind an error it is skipped, and the segment goes on to its Sync.
                    batch.demand.open |= at > 0;
                    return Ok(Head::Batch(Batch { end: next, prepares_only: false, ..batch }));
                }
                tag => self.look_into(tag, at, next, &mut batch)?,
            }
            at = next;
        }
    }

    /// One message of the extended protocol.
    fn look_into(&mut self, tag: u8, at: usize, next: usize, batch: &mut Batch) -> Result<(), Fault> {
        let body = &self.inbox[at + scan::HEADER..next];
        match tag {
            frontend::PARSE => {
                let parse = read::parse(body)?;
                let statement = self.statement(parse.text, parse.types);
                self.weigh(&statement.plan, batch);
                batch.parses = true;
                self.scanned.push_back(Scanned::Parse(statement));
            }
            frontend::BIND => {
                let (_, name) = read::bind_names(body)?;
                if let Some(statement) = self.names.find(name) {
                    self.weigh(&statement.plan, batch);
                }
                batch.prepares_only = false;
            }
            frontend::DESCRIBE | frontend::CLOSE => {
                let (kind, name) = read::kind_and_name(body)?;
                if let (frontend::DESCRIBE, b'S', Some(statement)) = (tag, kind, self.names.find(name)) {
                    self.weigh(&statement.plan, batch);
                }
                batch.prepares_only &= kind == b'S';
            }
            frontend::EXECUTE => {
                read::execute_portal(body)?;
                batch.prepares_only = false;
            }
            frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL => batch.prepares_only = false,
            tag => return Err(unknown(tag)),
        }
        Ok(())
    }

    /// Adds a statement to what the batch asks for.
    pub(super) fn weigh(&self, plan: &Plan, batch: &mut Batch) {
        let mut primary = self.verdict(plan).primary;
        if batch.demand.is_of_block() {
            primary = primary.filter(|_| !decides_nothing(plan)).or_else(|| plan.blocked(self.scope()));
        }
        // What cannot be said again elsewhere opens no block on a replica.
        let defaults = || self.parameters.defaults_to_read_only();
        match plan.text.is_whole() {
            true => batch.demand.take(&plan.facts, primary, defaults),
            false => batch.demand.add(primary, plan.facts.hints.route),
        }
        if self.promise() == Freshness::Table {
            // What else a block will read is not known.
            let of_block = batch.demand.is_of_block();
            batch.floor = batch.floor.and(if of_block { Floor::Unknown } else { self.floor_of(plan) });
        }
        batch.commits |= plan.facts.may_commit();
        batch.rare = Some(plan.fingerprint).filter(|_| plan.is_rare());
        batch.begins |= plan.facts.control.iter().any(|c| matches!(c, Control::Begin { .. }));
    }

    /// What the last changes of its tables ask for.
    fn floor_of(&self, plan: &Plan) -> Floor {
        match plan.tables(self.scope()) {
            Some(tables) => self.database.tables.floor(&tables, Instant::now()),
            None => Floor::Unknown,
        }
    }

    /// The message at `at` is not all there. What does not fit is not waited for, nor is a client that pauses, as it may
    /// wait for an error: all of it goes to the primary, as it comes; a Parse alone must be whole.
    fn cut_short(&mut self, at: usize, total: usize, mut batch: Batch, paused: bool) -> Head {
        let tag = self.inbox.get(at).copied().unwrap_or(0);
        let fits = match tag {
            frontend::PARSE => true,
            frontend::QUERY => total <= MAX_QUERY,
            _ => at + total <= MAX_WAITING,
        };
        if !paused && (fits || self.inbox.len() < at + scan::HEADER) {
            if at > 0 && !self.needs_no_server(at) {
                self.unended = Unended::Waiting;
            }
            return Head::Wait(at + total);
        }
        batch.demand.open = true;
        batch.prepares_only = false;
        Head::Batch(Batch { end: 0, ..batch })
    }

    /// Only Closes of statements stand before `end`, for names are pgweir's own affair, and Parses of what a server has
    /// prepared before: they are prepared where they are used, so that nobody waits for a connection that others hold.
    fn needs_no_server(&self, end: usize) -> bool {
        if self.is_in_fresh_block() && !self.is_untouched_block() {
            return false;
        }
        let (mut at, mut parses) = (0, self.scanned.iter());
        // Whether these names are taken by now.
        let mut names: Vec<(&[u8], bool)> = Vec::new();
        while at < end {
            let Ok(Some((head, body))) = scan::frame(&self.inbox[at..]) else { return false };
            match head.tag {
                frontend::CLOSE => match read::kind_and_name(body) {
                    Ok((b'S', name)) => names.push((name, false)),
                    _ => return false,
                },
                frontend::PARSE => {
                    let (Ok(parse), Some(Scanned::Parse(statement))) = (read::parse(body), parses.next()) else {
                        return false;
                    };
                    let before = names.iter().rev().find(|(name, _)| *name == parse.name);
                    let taken = before.map_or_else(|| self.is_taken(parse.name), |(_, taken)| *taken);
                    let refused = taken && !parse.name.is_empty();
                    if refused || !self.is_prepared_later(parse.name, statement) || names.len() > MAX_NAMES {
                        return false;
                    }
                    names.push((parse.name, true));
                }
                _ => return false,
            }
            at += head.total;
        }
        true
    }
}

impl Batch {
    /// It is not known to read only.
    pub fn may_write(&self) -> bool {
        self.demand.primary.is_some() || self.demand.open || self.demand.is_of_block()
    }
}

/// The most that a frame may say of its length, by its tag, as Postgres bounds it (`SocketBackend`); 0: of no kind that a
/// client may send.
const LIMITS: [usize; 256] = {
    let kinds: [(&[u8], usize); 3] = [
        (&[frontend::SYNC, frontend::FLUSH], scan::HEADER - 1),
        (
            &[
                frontend::CLOSE,
                frontend::COPY_DONE,
                frontend::COPY_FAIL,
                frontend::DESCRIBE,
                frontend::EXECUTE,
                frontend::TERMINATE,
            ],
            scan::MAX_SMALL_FRAME,
        ),
        (
            &[frontend::BIND, frontend::COPY_DATA, frontend::FUNCTION_CALL, frontend::PARSE, frontend::QUERY],
            scan::MAX_FRAME,
        ),
    ];
    let (mut limits, mut kind) = ([0; 256], 0);
    while kind < kinds.len() {
        let (tags, limit) = kinds[kind];
        let mut at = 0;
        while at < tags.len() {
            limits[tags[at] as usize] = limit;
            at += 1;
        }
        kind += 1;
    }
    limits
};

/// Bounds a frame by its kind.
///
/// # Errors
/// Larger than its kind may be, or of no kind that a client may send.
#[inline]
pub fn check_size(head: scan::Head) -> Result<(), Fault> {
    match head.total - 1 <= LIMITS[usize::from(head.tag)] {
        true => Ok(()),
        false => Err(too_large(head.tag)),
    }
}

#[cold]
fn too_large(tag: u8) -> Fault {
    match tag {
        frontend::SYNC | frontend::FLUSH => Fault::protocol("invalid message format"),
        tag if LIMITS[usize::from(tag)] > 0 => Fault::protocol("invalid message length"),
        tag => unknown(tag),
    }
}

fn unknown(tag: u8) -> Fault {
    Fault::protocol(format!("invalid frontend message type {tag}"))
}
