//! Transaction blocks that have run nothing yet, and READ ONLY ones on a replica.
//!
//! As long as a block has run nothing it may be opened on any node, and anew elsewhere. One that is not READ ONLY is opened
//! on the primary, and is no matter here from its first statement on. A READ ONLY one is opened on the node that a read
//! would go to, and runs there to its end: its first statement is decided as a read outside of a transaction is, and tried
//! elsewhere where a replica fails. What comes later and is for the primary alone is refused, so that the client runs the
//! whole again, and then on the primary.

use std::sync::Arc;
use std::time::Instant;

use crate::error::{Fault, sqlstate};
use crate::frontend::batch::{Batch, Head};
use crate::frontend::client::Activity;
use crate::frontend::session::{Kept, Request, Session};
use crate::route::block::{self, Fit};
use crate::route::decide::{Demand, Target, Why};
use crate::route::plan::Plan;
use crate::session::environment;
use crate::session::pipeline::Expect;
use crate::sql::Reason;
use crate::wire::tag::frontend;
use crate::wire::{read, scan, write};

/// Statements ahead of the first that decides; with more of them the block stays where it is.
const MAX_PRELUDE: usize = 16;

/// One that is open, or about to be.
#[derive(Debug, Default)]
pub struct Block {
    /// Its BEGIN has succeeded, for all that the client knows.
    is_open: bool,
    begin: Option<Arc<Plan>>,
    /// Its BEGIN makes it READ ONLY.
    begins_to_read: bool,
    /// Its BEGIN is yet to be said to a server, whatever the client does.
    is_awaited: bool,
    /// … and for a statement that waits for that.
    is_asked: bool,
    /// What was said in it ahead of its first statement, and how many of these have been answered.
    prelude: Vec<Arc<Plan>>,
    answered: usize,
    /// Its first statement that decides. `None`: nothing has been run in it.
    first: Option<Arc<Plan>>,
    /// Names may mean something else in it than where it began.
    moves_names: bool,
    /// COMMIT or ROLLBACK is under way.
    ends: bool,
    /// … and the end of its segment: what follows is decided when that is answered.
    is_closing: bool,
    /// The frame that is passed on as it arrives is to be no server's.
    pub drops_rest: bool,
}

impl Block {
    /// What the client sends next waits until the block's end is answered.
    pub fn is_closing(&self) -> bool {
        self.is_closing
    }

    pub fn is_awaited(&self) -> bool {
        self.is_awaited
    }

    pub fn is_asked(&self) -> bool {
        self.is_asked
    }

    pub fn await_first(&mut self) {
        self.is_awaited = true;
    }

    /// The BEGIN that is to be said now.
    pub fn take_awaited(&mut self) -> Option<Arc<Plan>> {
        std::mem::take(&mut self.is_awaited).then(|| self.begin.clone()).flatten()
    }

    /// A replica may run it.
    fn reads(&self) -> bool {
        self.begins_to_read || self.prelude.iter().any(|plan| block::turns(&plan.facts))
    }

    /// The plan is said ahead of the first statement.
    fn is_undecided(&self, plan: &Plan) -> bool {
        self.first.is_none() && self.begin.is_some() && self.prelude.len() < MAX_PRELUDE && decides_nothing(plan)
    }

    /// A frame has been passed on.
    pub fn note_frame(&mut self, tag: u8) {
        self.is_closing = self.ends && matches!(tag, frontend::SYNC | frontend::QUERY | frontend::FUNCTION_CALL);
    }
}

impl Session {
    /// The session is in a block that its client believes to be open.
    pub fn is_in_block(&self) -> bool {
        self.block.as_ref().is_some_and(|block| block.is_open)
    }

    /// … in which nothing has been run.
    pub fn is_in_fresh_block(&self) -> bool {
        let fresh = self.block.as_ref().is_some_and(|block| block.is_open && block.first.is_none());
        fresh && self.status == b'T'
    }

    /// What a block in which nothing has been run asks for, whatever it is that stands next in it.
    ///
    /// # Errors
    /// The client breaks the protocol.
    pub(super) fn demand_of_block(&self) -> Result<Demand, Fault> {
        let Some(block) = self.block.as_ref().filter(|_| self.is_in_fresh_block()) else {
            return Ok(Demand::default());
        };
        let reads = block.reads();
        let primary = if reads || self.turns_block()? { None } else { Some(Reason::Transaction) };
        let hint = block.begin.as_ref().and_then(|begin| begin.facts.hints.route);
        Ok(Demand { in_block: true, read_only: reads, primary, hint, ..Demand::default() })
    }

    /// … and it began on no server.
    pub(super) fn is_untouched_block(&self) -> bool {
        self.leased.is_none() && self.is_in_fresh_block() && self.block.as_ref().is_some_and(|b| b.prelude.is_empty())
    }

    /// Nothing would be lost with the connection.
    pub fn may_leave_block(&self) -> bool {
        let asked = self.block.as_ref().is_some_and(|block| block.is_asked);
        let idle = self.pipeline.is_settled() || (self.pipeline.only_begins() && !asked);
        self.is_in_fresh_block() && idle && self.client_rest == 0 && self.server_rest == 0 && self.fails_over()
    }

    /// pgweir answers the BEGIN of a block by itself.
    pub(super) fn hold_block(&mut self, begin: &Arc<Plan>) {
        let begins_to_read = block::opens(&begin.facts, || self.parameters.defaults_to_read_only());
        let begin = Some(begin.clone());
        self.block = Some(Box::new(Block { begin, begins_to_read, ..Block::default() }));
    }

    /// The first messages in a block that is open on a server: they stay there, or the block leaves it. How many bytes it
    /// takes to tell, where they are not here yet.
    ///
    /// # Errors
    /// The client breaks the protocol.
    pub fn begin_in_block(&mut self) -> Result<Option<usize>, Fault> {
        if !self.pipeline.is_empty() {
            return Ok(Some(0));
        }
        match self.scan()? {
            Head::Wait(need) => return Ok(Some(need)),
            Head::Here(bytes) => self.answer(bytes),
            Head::Terminate => {}
            Head::Batch(batch) => {
                self.request = Request::new(Instant::now(), Why::InTransaction);
                let on_replica = self.leased.as_ref().is_some_and(|leased| leased.replica);
                match self.target(&batch) {
                    Target::Replica if on_replica => self.go_on_in_block(batch),
                    Target::Primary(_) if !on_replica => {
                        self.block = None;
                        self.begin_request();
                    }
                    _ => self.leave_fresh_block(),
                }
            }
        }
        Ok(None)
    }

    /// A string that ends a failed block and goes on behind it: as nothing is left of the block, it is run outside of it, and
    /// its first statement finds no transaction to end. True where it is so.
    ///
    /// # Errors
    /// The client breaks the protocol.
    pub fn leaves_failed_block(&mut self) -> Result<bool, Fault> {
        if self.status != b'E' || !self.is_in_block() || !self.pipeline.is_settled() || self.client_rest > 0 {
            return Ok(false);
        }
        let Some((head, body)) = scan::frame(&self.inbox)? else { return Ok(false) };
        if head.tag != frontend::QUERY {
            return Ok(false);
        }
        let plan = self.plan(read::query(body)?);
        let leaves = block::ends_first(&plan.facts, &plan.text);
        if leaves {
            self.leave_replica();
            self.give_up_block();
        }
        Ok(leaves)
    }

    fn go_on_in_block(&mut self, batch: Batch) {
        self.request.kept = Kept::Read;
        self.request.ends_own = batch.prepares_only && batch.end > 0;
        self.request.end = Some(batch.end);
        self.client.set_activity(Activity::Active, self.request.mark);
        self.settling = false;
        if let Some(leased) = &mut self.leased {
            leased.why = Why::InTransaction;
        }
    }

    /// Whether what stands next makes a block READ ONLY that a replica may then run.
    fn turns_block(&self) -> Result<bool, Fault> {
        let may_turn = |block: &Block| block.begin.as_ref().is_some_and(|begin| block::may_turn(&begin.facts));
        if !self.block.as_ref().is_some_and(|block| may_turn(block)) {
            return Ok(false);
        }
        let Some((head, body)) = scan::frame(&self.inbox)? else { return Ok(false) };
        let text = match head.tag {
            frontend::QUERY => read::query(body)?,
            frontend::PARSE => read::parse(body)?.text,
            _ => return Ok(false),
        };
        Ok(is_setting(text) && block::turns(&self.plan(text).facts))
    }

    /// Nothing has been run in it.
    fn leave_fresh_block(&mut self) {
        if let Some(leased) = &mut self.leased {
            leased.open = true;
        }
        self.give_back();
    }

    fn leave_replica(&mut self) {
        if let Some(leased) = &mut self.leased {
            (leased.open, leased.suspect) = (true, true);
        }
        self.give_back();
    }

    /// A batch is about to be sent: it opens a block on a replica, or the block that the client has begun is opened here.
    pub(super) fn open_block(&mut self, batch: &Batch, replica: bool) {
        if !self.is_in_block() {
            self.block = None;
        }
        if batch.demand.read_only {
            self.retries_block = false;
        }
        if batch.demand.read_only && self.block.is_none() {
            if replica {
                self.block = Some(Box::new(Block { begins_to_read: true, ..Block::default() }));
            }
            return;
        }
        self.say_opening();
        if !replica {
            self.block = None;
        }
    }

    /// Opens the block here, and lets what comes next wait for that: a statement, where it is `asked` for one.
    pub(super) fn begin_apart(&mut self, asked: bool) {
        self.say_opening();
        if let Some(block) = &mut self.block {
            block.is_asked = asked;
        }
        self.end_segment();
        let replica = self.leased.as_ref().is_some_and(|leased| leased.replica);
        if self.block.as_ref().is_some_and(|block| block.reads()) {
            self.retries_block = false;
            // It stays there.
            self.block.take_if(|_| !replica);
        }
    }

    fn say_opening(&mut self) {
        let (Some(block), Some(leased)) = (self.block.as_mut(), self.leased.as_mut()) else { return };
        let Some(begin) = &block.begin else { return };
        block.is_awaited = false;
        leased.lease.begin();
        write::execute(&mut leased.lease.outbox, &begin.text);
        leased.lease.unnamed = None;
        self.pipeline.push(Expect::Begin);
        // A Query ends what has no name by itself.
        if block.prelude.is_empty() && self.inbox.first() != Some(&frontend::QUERY) {
            write::close_unnamed(&mut leased.lease.outbox);
            (0..2).for_each(|_| self.pipeline.push(Expect::Close { shown: false, evicted: None, undo: None }));
        }
        for plan in &block.prelude {
            write::query(&mut leased.lease.outbox, &plan.text);
            self.pipeline.push(Expect::Replay);
        }
    }

    /// A statement is sent to the block's replica, by a Query or bound to a portal.
    pub(super) fn note_in_block(&mut self, plan: &Arc<Plan>, portal: Option<&[u8]>) {
        let Some(block) = &mut self.block else { return };
        if block.begin.is_none() && block::opens(&plan.facts, || self.parameters.defaults_to_read_only()) {
            block.begin = Some(plan.clone());
            return;
        }
        if self.status != b'E' && block.is_undecided(plan) {
            match portal {
                None => return block.prelude.push(plan.clone()),
                // At its Execute. What it has bound cannot be said again, nor can a portal be opened anew.
                Some(b"") if plan.facts.functions.is_empty() => return,
                Some(_) => {}
            }
        }
        block.ends |= block::ends(&plan.facts);
        block.moves_names |= block::moves_names(&plan.facts);
        block.first.get_or_insert_with(|| plan.clone());
    }

    /// What is bound to a portal is run.
    pub(super) fn note_executed_in_block(&mut self, plan: &Arc<Plan>) {
        if let Some(block) = self.block.as_mut().filter(|block| block.is_undecided(plan)) {
            block.prelude.push(plan.clone());
        }
    }

    /// Whether what a plan does is for the primary alone, and it is too late for the block to go there.
    pub(super) fn is_refused_in_block(&mut self, plan: &Plan) -> bool {
        let Some(block) = &self.block else { return false };
        // A failed transaction refuses it by itself.
        if self.status == b'E' && plan.facts.statements <= 1 && !block.ends {
            return false;
        }
        let moves_names = block.moves_names;
        if !moves_names {
            self.renew_scope();
        }
        let fit = block::fit(plan, self.sight.scope().filter(|_| !moves_names));
        let reason = match fit {
            Fit::Read | Fit::Ends => return false,
            // Behind the end, and so outside of the block.
            Fit::Alike if self.block.as_ref().is_some_and(|block| block.ends) => Reason::Transaction,
            Fit::Alike => return false,
            Fit::Primary(reason) => reason,
        };
        self.note_refused_in_block(reason, plan.asks_catalog());
        true
    }

    /// A call by OID in a block on a replica.
    pub(super) fn refuses_call(&mut self) -> bool {
        let refused = self.block.is_some() && self.status != b'E';
        if refused {
            self.note_refused_in_block(Reason::UnknownFunction, false);
        }
        refused
    }

    fn note_refused_in_block(&mut self, reason: Reason, by_catalog: bool) {
        self.retries_block = true;
        if let Some(first) = self.block.as_ref().and_then(|block| block.first.as_ref()) {
            first.note_blocked(self.sight.scope().filter(|_| by_catalog), reason);
        }
    }

    /// What is still to come of a refused message is not passed on.
    pub(super) fn drop_rest_in_block(&mut self) {
        if let Some(block) = &mut self.block {
            block.drops_rest = true;
        }
    }

    /// ReadyForQuery has come.
    pub(super) fn note_block_ready(&mut self, status: u8) {
        if let Some(block) = self.block.as_mut().filter(|_| self.pipeline.is_settled()) {
            if status == b'I' {
                self.block = None;
            } else {
                (block.is_open, block.ends, block.is_closing) = (true, false, false);
                block.answered = block.prelude.len();
            }
        }
    }

    /// What the block was about to run is said again.
    pub(super) fn say_again_in_block(&mut self) {
        match &mut self.block {
            Some(block) if block.is_open => {
                (block.first, block.ends, block.is_closing) = (None, false, false);
                block.prelude.truncate(block.answered);
            }
            _ => self.block = None,
        }
    }

    /// Nobody can take the block: it has failed, and is the client's to end.
    pub(super) fn fail_block(&mut self) {
        self.block = Some(Box::new(Block { is_open: true, ..Block::default() }));
        self.status = b'E';
    }

    /// Nothing is left of the block.
    pub(super) fn give_up_block(&mut self) {
        if self.block.take().is_some() {
            self.rolled_back();
            self.status = b'I';
            self.transaction_began = None;
        }
    }
}

/// It can be said again wherever the block is opened anew, and what comes behind it means what it would without it.
pub(super) fn decides_nothing(plan: &Plan) -> bool {
    plan.text.is_whole() && block::prepares(&plan.facts) && !environment::moves_texts(&plan.facts)
}

/// A look at its first words: whether the text sets something.
fn is_setting(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    let starts = |words: &&[u8]| text.get(..words.len()).is_some_and(|start| start.eq_ignore_ascii_case(words));
    [&b"set "[..], b"select set_config", b"select pg_catalog.set_config"].iter().any(starts)
}

/// What the client is told whose block has come to what a replica cannot do. Standbys raise this code for reasons of their
/// own: who reads there runs such a transaction again.
pub(super) fn refusal() -> Fault {
    let message = "this READ ONLY transaction runs on a replica, and the statement needs the primary";
    let hint = "Run the transaction again: it will run on the primary. \
                A comment /* pgweir: primary */ in its BEGIN sends it there at once.";
    Fault::error(sqlstate::SERIALIZATION_FAILURE, message).with_hint(hint)
}
