//! A client's prepared statements on the connection that serves it: prepared where they are missing, and never other
//! than the client knows them.
//!
//! Postgres refuses to run a statement whose result has changed since it was prepared. Prepared anew on another
//! connection it would run, so each is described where it is prepared, and what the client does with it waits for that.
//! A Parse of the client's own needs no wait: it takes definitions as they are.

use std::borrow::Cow;
use std::sync::Arc;

use crate::config::PoolMode;
use crate::error::Malformed;
use crate::frontend::names::runs_by_name;
use crate::frontend::session::{Kept, Leased, Scanned, Session};
use crate::route::plan::Plan;
use crate::session::pipeline::{Expect, Undo};
use crate::session::prepared::{Description, NAME_PREFIX, Name, Statement, UNKNOWN};
use crate::sql::Control;
use crate::wire::tag::frontend;
use crate::wire::{read, write};

/// What the connection has for a client's name.
#[derive(Debug)]
pub enum OnServer {
    /// The client has no such statement: the server is to say so.
    Missing,
    /// As the client knows it, as far as is known.
    Same(Arc<Statement>),
    /// Its result is another than the client knows.
    Changed(Arc<Statement>),
}

/// A copy that was prepared for the message that stands next.
#[derive(Debug)]
pub struct Fresh {
    /// The id of the statement that the message names.
    of: u64,
    statement: Arc<Statement>,
    /// The connection has this one, which may be described wrongly.
    instead_of: Option<Arc<Statement>>,
}

impl Session {
    pub(super) fn forward_parse(&mut self, parse: read::Parse<'_>, leased: &mut Leased) {
        self.counters().client_parse();
        let statement = match self.scanned.pop_front() {
            Some(Scanned::Parse(s)) if s.environment == *self.environment.key() && s.is_current() => s,
            _ => self.statement(parse.text, parse.types),
        };
        let parse = read::Parse { text: &statement.text, ..parse };
        self.leave_ahead(&statement.plan, leased);
        self.forget_sequences(&statement.plan.facts, leased);
        let taken = self.is_taken(parse.name);
        if !parse.name.is_empty() && taken && !self.keeps_names() {
            return self.forward_duplicate(parse, leased);
        }
        let previous = self.names.replace(parse.name, Some(statement.clone()));
        let undo = Undo { name: parse.name.into(), previous, of_sql: false };
        let undo = Some(self.keep_undo(undo));
        if self.keeps_names() {
            write::parse(&mut leased.lease.outbox, parse.name, parse.text, parse.types);
            self.pipeline.push(Expect::Parse { statement: None, shown: true, undo, describes: None });
        } else if parse.name.is_empty() && self.forwards_unnamed() {
            self.name_for_parse(&statement.plan.facts, leased);
            leased.lease.unnamed = Some(statement.id);
            write::parse(&mut leased.lease.outbox, b"", parse.text, parse.types);
            self.pipeline.push(Expect::Parse { statement: None, shown: true, undo, describes: None });
            if statement.description().is_none() {
                self.describe_there(&statement, b"", Some(parse.name), leased);
            }
        } else if self.may_answer_parse(&statement.plan) && self.has_for_certain(&statement, leased) {
            self.names.doubt(parse.name);
            self.pipeline.push(Expect::ParsedHere { undo });
        } else {
            self.prepare(&statement, &parse, undo, leased);
        }
    }

    pub(super) fn is_taken(&self, name: &[u8]) -> bool {
        self.names.find(name).is_some() || self.is_of_sql(name)
    }

    /// A server has prepared and described it: a client that is in no transaction may be told so at once, and it is
    /// prepared where it is used.
    pub(super) fn is_prepared_later(&self, name: &[u8], statement: &Statement) -> bool {
        let forwarded = name.is_empty() && self.forwards_unnamed();
        !forwarded && statement.description().is_some() && !runs_by_name(&statement.plan.facts)
    }

    /// The server has the statement whatever becomes of the segments in flight.
    fn has_for_certain(&self, statement: &Statement, leased: &mut Leased) -> bool {
        leased.lease.held.touch(statement.id) && !self.pipeline.is_statement_uncertain(statement.id)
    }

    /// In a failed transaction the server refuses a Parse of anything but its end, and a text that runs by name has
    /// another description once the name stands for something else.
    fn may_answer_parse(&self, plan: &Plan) -> bool {
        let may_fail = self.pipeline.in_flight() && (self.status == b'T' || self.opens_block);
        let control = &plan.facts.control;
        let ends = !control.is_empty() && control.iter().all(Control::ends_failed);
        let may_be_refused = (self.status == b'E' || may_fail) && !ends;
        !may_be_refused && !runs_by_name(&plan.facts)
    }

    /// What an error takes back; kept apart as well while the whole batch may be said again.
    pub(super) fn keep_undo(&mut self, undo: Undo) -> Undo {
        if self.request.kept != Kept::No {
            self.request.undo.push(undo.clone());
        }
        undo
    }

    /// The name is taken: the server itself is to say so (42P05), in its place in the order.
    fn forward_duplicate(&mut self, parse: read::Parse<'_>, leased: &mut Leased) {
        self.name_on_server(parse.name, false, leased);
        let out = &mut leased.lease.outbox;
        write::parse(out, parse.name, parse.text, parse.types);
        self.pipeline.push(Expect::Parse { statement: None, shown: true, undo: None, describes: None });
    }

    /// Passes on a client's Parse, under the statement's name on servers.
    fn prepare(
        &mut self,
        statement: &Arc<Statement>,
        parse: &read::Parse<'_>,
        undo: Option<Undo>,
        leased: &mut Leased,
    ) {
        self.make_way(statement, leased);
        write::parse(&mut leased.lease.outbox, &statement.name, &statement.text, &statement.types);
        let statement = statement.clone();
        self.pipeline.push(Expect::Parse { statement: Some(statement.clone()), shown: true, undo, describes: None });
        self.describe_there(&statement, &statement.name, Some(parse.name), leased);
    }

    /// A statement is about to be prepared: the least recently used are closed beyond the bound. Where the server may
    /// have it already, it is closed first: a Close never fails.
    fn make_way(&mut self, statement: &Arc<Statement>, leased: &mut Leased) {
        self.counters().server_parse();
        self.name_for_parse(&statement.plan.facts, leased);
        let max = leased.lease.pool.config.load().prepared_statements;
        let held = &mut leased.lease.held;
        let known = held.touch(statement.id) || held.is_doubtful(statement.id);
        if known || self.pipeline.is_statement_uncertain(statement.id) {
            held.remove(statement.id);
            self.close_on_server(statement, leased);
        }
        while let Some(evicted) = leased.lease.held.make_room(max) {
            self.close_on_server(&evicted, leased);
        }
        leased.lease.held.insert(statement.clone());
    }

    fn close_on_server(&mut self, statement: &Arc<Statement>, leased: &mut Leased) {
        write::of_statement(&mut leased.lease.outbox, frontend::CLOSE, &statement.name);
        self.pipeline.push(Expect::Close { shown: false, evicted: Some(statement.clone()), undo: None });
    }

    fn describe_there(&mut self, statement: &Arc<Statement>, name: &[u8], parsed: Option<&[u8]>, leased: &mut Leased) {
        write::of_statement(&mut leased.lease.outbox, frontend::DESCRIBE, name);
        let (statement, parsed) = (statement.clone(), parsed.map(Box::from));
        self.pipeline.push(Expect::Description { statement, parsed, parameters: None });
    }

    /// Sees to it that the connection has what a Bind or a Describe (`describes`) names, as the client knows it; false
    /// while its server has yet to say.
    pub(super) fn provide(&mut self, name: &[u8], describes: bool, leased: &mut Leased) -> bool {
        let Some(known) = self.names.find(name) else { return true };
        if describes && self.without_rows(name).is_some() {
            return true;
        }
        let proven = self.names.is_proven(name);
        if self.is_there(name, known, leased) {
            return !proven || self.is_described(known.id, name, leased);
        }
        let known = known.clone();
        if let Some(fresh) = leased.fresh.take_if(|fresh| fresh.of == known.id)
            && self.is_there(name, &fresh.statement, leased)
        {
            if self.is_described(fresh.statement.id, name, leased) {
                self.compare(name, &known, fresh, leased);
                return true;
            }
            leased.fresh = Some(fresh);
            return false;
        }
        let (mut now, mut instead_of) = (self.as_of_now(&known), None);
        if self.is_there(name, &now, leased) {
            if proven && !self.is_described(now.id, name, leased) {
                return false;
            }
            if known.is_like(&now) || !proven {
                self.rebind(name, now);
                return true;
            }
            // So it was described once; what it is now only the server can tell.
            let copy = self.database.statements.apart(&now);
            instead_of = Some(std::mem::replace(&mut now, copy));
        }
        self.prepare_again(name, &now, describes.then(|| known.clone()), leased);
        leased.fresh = Some(Fresh { of: known.id, statement: now, instead_of });
        false
    }

    /// What was prepared for this message is described: it is what the client knows, or that is to be refused.
    fn compare(&mut self, name: &[u8], known: &Statement, fresh: Fresh, leased: &mut Leased) {
        let Fresh { statement, instead_of, .. } = fresh;
        if let Some(outdated) = instead_of.as_ref().filter(|other| !other.is_like(&statement)) {
            self.database.statements.outdate(outdated);
        }
        if known.is_like(&statement) || !self.names.is_proven(name) {
            self.rebind(name, statement);
        } else if instead_of.is_some() {
            // Nobody else has use for it.
            leased.lease.held.remove(statement.id);
            self.close_on_server(&statement, leased);
        }
    }

    /// The parameters of a statement that gives no rows: no change of definitions gives it any, and Postgres describes it
    /// without looking at them (`exec_describe_statement_message`).
    pub(super) fn without_rows(&self, name: &[u8]) -> Option<&[u8]> {
        let known = self.names.find(name).filter(|_| self.names.is_proven(name))?;
        let description = known.description().filter(|known| known.is_without_rows())?;
        Some(&description.parameters)
    }

    /// The client's name stands for another copy of what it knows.
    fn rebind(&mut self, name: &[u8], statement: Arc<Statement>) {
        let proven = self.names.is_proven(name);
        self.names.replace(name, Some(statement));
        if !proven {
            self.names.doubt(name);
        }
    }

    /// No description of it is still to come; where one is, the server is to say it now.
    fn is_described(&self, id: u64, name: &[u8], leased: &mut Leased) -> bool {
        let soon = self.pipeline.is_described_soon(id, name);
        if soon {
            write::flush(&mut leased.lease.outbox);
        }
        !soon
    }

    fn is_there(&self, name: &[u8], statement: &Statement, leased: &mut Leased) -> bool {
        match name.is_empty() && self.forwards_unnamed() {
            true => leased.lease.unnamed == Some(statement.id) && !self.pipeline.is_unnamed_uncertain(),
            false => self.has_for_certain(statement, leased),
        }
    }

    /// The statement as it would be parsed now: its text is read under the settings of now, its parameters are what
    /// they were.
    fn as_of_now(&self, known: &Arc<Statement>) -> Arc<Statement> {
        match known.is_current() && known.environment == *self.environment.key() {
            true => known.clone(),
            false => self.statement(&known.text, &known.types_for_copy()),
        }
    }

    /// Prepares a statement ahead of what the client does with it, and has the server say at once what became of it.
    fn prepare_again(
        &mut self,
        name: &[u8],
        statement: &Arc<Statement>,
        describes: Option<Arc<Statement>>,
        leased: &mut Leased,
    ) {
        self.leave_ahead(&statement.plan, leased);
        let unnamed = name.is_empty() && self.forwards_unnamed();
        let there: &[u8] = if unnamed { b"" } else { &statement.name };
        let expected = if unnamed {
            self.name_for_parse(&statement.plan.facts, leased);
            leased.lease.unnamed = Some(statement.id);
            None
        } else {
            self.make_way(statement, leased);
            Some(statement.clone())
        };
        write::parse(&mut leased.lease.outbox, there, &statement.text, &statement.types_for_copy());
        self.pipeline.push(Expect::Parse { statement: expected, shown: false, undo: None, describes });
        self.describe_there(statement, there, None, leased);
        write::flush(&mut leased.lease.outbox);
    }

    /// What stands on the server for a client's name, once [`Session::provide`] has seen to it.
    pub(super) fn standing(&self, name: &[u8], leased: &mut Leased) -> (OnServer, Option<Name>) {
        let Some((name, statement)) = self.names.entry(name) else { return (OnServer::Missing, None) };
        let there = match self.keeps_names() || self.is_there(name.map_or(b"", |name| name), statement, leased) {
            true => OnServer::Same(statement.clone()),
            false => OnServer::Changed(statement.clone()),
        };
        (there, name.cloned())
    }

    /// The name to use on the server. One that the client has not made goes as it is, to be missing there too; in
    /// forward mode another client's unnamed statement must not stand in for it. What has changed is to fail as well.
    pub(super) fn name_there<'a>(&mut self, name: &'a [u8], there: &'a OnServer, leased: &mut Leased) -> Cow<'a, [u8]> {
        match there {
            _ if self.keeps_names() => name.into(),
            OnServer::Same(_) if name.is_empty() && self.forwards_unnamed() => Cow::default(),
            OnServer::Same(statement) => (&*statement.name).into(),
            OnServer::Changed(_) => [NAME_PREFIX.as_bytes(), b"?"].concat().into(),
            OnServer::Missing if name.is_empty() => {
                if leased.lease.unnamed.take().is_some() {
                    write::of_statement(&mut leased.lease.outbox, frontend::CLOSE, b"");
                    self.pipeline.push(Expect::Close { shown: false, evicted: None, undo: None });
                }
                Cow::default()
            }
            OnServer::Missing if name.starts_with(NAME_PREFIX.as_bytes()) => [name, b"?"].concat().into(),
            OnServer::Missing => name.into(),
        }
    }

    /// A RowDescription or NoData (`None`) has come.
    ///
    /// # Errors
    /// The server breaks the protocol.
    pub(super) fn described(&mut self, row: Option<&[u8]>) -> Result<(), Malformed> {
        match self.pipeline.front() {
            Some(Expect::Description { .. }) => self.learn(row),
            Some(Expect::Describe { .. }) => {
                self.prove();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The body of a ParameterDescription that pgweir has asked for.
    pub(super) fn note_parameters(&mut self, body: &[u8]) {
        if let Some(Expect::Description { parameters, .. }) = self.pipeline.front_mut() {
            *parameters = Some(body.into());
        }
    }

    /// A server has described a copy of a statement: `row` is the body of its RowDescription. Where other copies are
    /// described otherwise, definitions have changed out of sight, and this is another statement.
    fn learn(&mut self, row: Option<&[u8]>) -> Result<(), Malformed> {
        let Some(Expect::Description { statement, parsed, parameters }) = self.pipeline.front_mut() else {
            return Ok(());
        };
        let described = Description::new(&parameters.take().unwrap_or_default(), row)?;
        let (statement, parsed) = (statement.clone(), parsed.take());
        if statement.describe(&described) {
            return Ok(());
        }
        let statements = &self.database.statements;
        statements.outdate(&statement);
        let Statement { text, types, environment, plan, .. } = &*statement;
        let now = statements.statement(text, types, environment, || plan.clone());
        now.describe(&described);
        if let Some(leased) = &mut self.leased {
            match leased.lease.held.has(statement.id) {
                true => leased.lease.held.doubt(statement.clone()),
                false => leased.lease.unnamed = Some(UNKNOWN),
            }
        }
        if let Some(name) = parsed
            && self.names.find(&name).is_some_and(|known| Arc::ptr_eq(known, &statement))
        {
            self.names.replace(&name, Some(now));
        }
        Ok(())
    }

    /// A server has taken a Bind or a Describe of what the front of the pipeline names.
    pub(super) fn prove(&mut self) {
        if !self.names.has_unproven() {
            return;
        }
        let Some((name, statement)) = self.pipeline.front().and_then(Expect::named) else { return };
        if self.names.find(name).is_some_and(|known| Arc::ptr_eq(known, statement)) {
            let name: Box<[u8]> = name.into();
            self.names.prove(&name);
        }
    }

    /// The connection is the client's alone: its statements have the names it gave them, for SQL to use as well.
    pub(super) fn keeps_names(&self) -> bool {
        self.mode == PoolMode::Session
    }

    /// A server has the statement without a name: a Query would take it away.
    pub(super) fn is_unnamed_there(&self, name: &[u8]) -> bool {
        name.is_empty() && (self.keeps_names() || self.forwards_unnamed())
    }

    fn forwards_unnamed(&self) -> bool {
        self.database.pools.forwards_unnamed()
    }
}
