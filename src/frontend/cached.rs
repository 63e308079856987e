//! Reads that the result cache answers, and replies that fill it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use bytes::Buf;

use crate::cache::admit::{self, Choice, Refusal};
use crate::cache::capture::Capture;
use crate::cache::entry::{Entry, Part};
use crate::cache::flight::Flight;
use crate::cache::key::{self, Formats, Read};
use crate::cache::request::{self, Request, Source};
use crate::cache::sealed::{Carried, Epoch};
use crate::cache::{Asked, Fill, LONGEST_WAIT, Reads, Results, Wanted};
use crate::catalog::sources::Targets;
use crate::cluster::Tried;
use crate::error::{Fault, sqlstate};
use crate::frontend::batch::Batch;
use crate::frontend::client::Stop;
use crate::frontend::invalidation::Cached;
use crate::frontend::io::MAX_WAITING;
use crate::frontend::serve::{End, stop_fault};
use crate::frontend::session::{Leased, Scanned, Session};
use crate::route::decide::Target;
use crate::route::plan::Plan;
use crate::session::parameters::Settings;
use crate::session::prepared::Statement;
use crate::shared::Name;
use crate::sql::{Control, Effect};
use crate::stats::CacheUse;

/// Longer keys are not looked up.
const MAX_KEY: usize = 64 * 1024;

/// Of a kept answer so much waits for its client at most: one that is larger is given piece by piece, as the client reads.
const PIECE: usize = 64 * 1024;

/// A reply on its way that is to be kept.
#[derive(Debug)]
pub struct Filling {
    plan: Arc<Plan>,
    fill: Fill,
    capture: Capture,
    /// Of the result, as the Bind says them.
    formats: Box<[u8]>,
    /// What it is found by in the second level.
    name: Option<Name>,
    /// It is to be stored there.
    epoch: Option<Epoch>,
    /// What it is known by where its statement's results are hardly ever asked for again.
    sight: Option<u64>,
}

/// What the keys of a session's reads have in common, while its settings stay.
#[derive(Debug, Default)]
pub struct Asker {
    of: Option<Settings>,
    /// The scope by which the sources of reads are known; 0: they are not.
    scope: u64,
    key: Box<[u8]>,
}

/// What the cache says to a batch.
#[derive(Debug)]
pub(super) enum Answer {
    Given,
    /// The same read runs already.
    Wait(Sought, Arc<Flight>),
    /// Another pgweir may have kept the answer.
    Seek(Sought),
    /// Kept, and too large to be given in one piece; with the instant by which it was read.
    Give(Sought, Arc<Entry>, Instant),
    Run,
}

/// The statement that a batch asks for.
#[derive(Debug)]
pub(super) struct Sought {
    pub plan: Arc<Plan>,
    /// `None` for a simple Query.
    pub statement: Option<Arc<Statement>>,
}

impl Session {
    /// Asks the cache for a batch. Where it is to run, its reply is kept if the cache wants it.
    pub(super) fn ask_cache(&mut self, batch: &Batch) -> Answer {
        self.filling = None;
        let Some(cached) = &self.database.cached else { return Answer::Run };
        // A retry, a client that listens, names that only the server knows: none of them is plain.
        let plain = batch.end > 0 && self.tried == Tried::default() && self.subscription.is_none();
        // A client that does not read what it has asked for is slowed down by a server.
        let reads = self.outbox.len() < MAX_WAITING;
        // It wants to see what another session has seen: that, the servers know.
        let asks_token = self.parameters.token().is_some();
        if !plain || !reads || asks_token || !self.sql_names.is_empty() || self.target(batch) != Target::Replica {
            return Answer::Run;
        }
        let sight = self.sight_of(cached, batch);
        if sight == Some(None) {
            self.request.cache = CacheUse::Unkept(Refusal::Once as u8);
            return Answer::Run;
        }
        let cached = cached.clone();
        let inbox = std::mem::take(&mut self.inbox);
        let replied = self.reply_to(&cached, &inbox[..batch.end]);
        self.inbox = inbox;
        match replied {
            Ok((sought, entry, read)) => {
                self.note_given(batch.end, &sought.plan, &entry, read);
                Answer::Given
            }
            Err(answer) => {
                if let Some(filling) = &mut self.filling {
                    filling.sight = sight.flatten();
                }
                answer
            }
        }
    }

    /// A first look, at a fraction of the cost of another: a read of a statement whose results are hardly ever asked for again
    /// goes past the cache (`Some(None)`) until it is. What is named is kept from the first time on.
    fn sight_of(&self, cached: &Cached, batch: &Batch) -> Option<Option<u64>> {
        let statement = batch.rare?;
        let named = || cached.ruled(statement, None).statement.ttl.is_some();
        if cached.mode().choice() != Some(Choice::Known) || self.parameters.is_uncached() || named() {
            return None;
        }
        let gist = request::gist(&self.inbox[..batch.end])?;
        Some(cached.results.sight(cached.id, &cached.counters, self.worker.index, (statement, gist)))
    }

    /// Writes the reply to a batch, and says what it was and by when that was read; or what is to be done.
    fn reply_to(&mut self, cached: &Arc<Cached>, batch: &[u8]) -> Result<(Sought, Arc<Entry>, Instant), Answer> {
        let read = Request::read(batch).ok_or(Refusal::Shape);
        let looked = read.and_then(|request| Ok((request, self.look_up(cached, &request)?)));
        let (request, (sought, asked)) = looked.map_err(|why| {
            cached.results.note_refusal(cached.id, why);
            self.request.cache = CacheUse::Refused(why as u8);
            Answer::Run
        })?;
        self.request.cache = CacheUse::Miss;
        match asked {
            Asked::Hit(entry, read) | Asked::Stale(entry, read) if entry.len() > PIECE => {
                Err(Answer::Give(sought, entry, read))
            }
            Asked::Hit(entry, read) | Asked::Stale(entry, read) if self.reply(&request, &sought, &entry) => {
                Ok((sought, entry, read))
            }
            Asked::Wait(flight) => Err(Answer::Wait(sought, flight)),
            Asked::Closed if self.filling.as_ref().is_some_and(|filling| filling.name.is_some()) => {
                Err(Answer::Seek(sought))
            }
            Asked::Hit(..) | Asked::Stale(..) | Asked::Fill(_) | Asked::Closed => Err(Answer::Run),
        }
    }

    /// Waits for the run of another that asks the same; true where the batch has its answer, if only that it was cancelled.
    pub(super) async fn share(&mut self, batch: &Batch, sought: Sought, flight: Arc<Flight>) -> Result<bool, End> {
        let landed = match self.wait_for_flight(&flight).await? {
            Ok(landed) => landed,
            Err(fault) => {
                self.refuse(*batch, &fault);
                return Ok(true);
            }
        };
        let given = match landed {
            Some(entry) => self.give(batch, &sought, &entry, Instant::now()).await?,
            None => false,
        };
        if let Some(cached) = &self.database.cached {
            match given {
                true => cached.results.note_shared(cached.id),
                false => cached.results.note_miss(cached.id),
            }
        }
        Ok(given)
    }

    /// Asks the second level, within its time; true where that has answered the batch.
    pub(super) async fn seek(&mut self, batch: &Batch, sought: Sought) -> Result<bool, End> {
        let (Some(cached), Some(filling)) = (self.database.cached.clone(), self.filling.take()) else {
            return Ok(false);
        };
        let Filling { plan, mut fill, capture, formats, name, sight, .. } = *filling;
        let (Some(place), Some(name)) = (&cached.shared, name) else { return Ok(false) };
        let fetched = self.meanwhile(place.fetch(&name, cached.results.max_entry_bytes())).await?;
        let epoch = fetched.as_ref().map(|fetched| fetched.epoch);
        let now = Instant::now();
        self.request.mark = now;
        if let Some((Carried { entry, as_of, .. }, age)) = fetched.and_then(|fetched| fetched.found) {
            match fill.adopt(entry, as_of, age, now) {
                Ok(entry) => {
                    place.note_hit();
                    return self.give(batch, &sought, &entry, now).await;
                }
                Err(refused) => {
                    let (unadopted, unfit) = *refused;
                    place.note_unfit(unfit);
                    fill = unadopted;
                }
            }
        }
        self.filling = Some(Box::new(Filling { plan, fill, capture, formats, name: Some(name), epoch, sight }));
        Ok(false)
    }

    fn look_up(&mut self, cached: &Arc<Cached>, request: &Request<'_>) -> Result<(Sought, Asked), Refusal> {
        let sought = self.sought(request).ok_or(Refusal::Shape)?;
        if self.parameters.is_uncached() {
            return Err(Refusal::Asked);
        }
        let choice = cached.mode().choice();
        // No stream tells of changes any more: a rule may allow what is left from before.
        if choice != Some(Choice::Known) && cached.wants_stream() && cached.has_rules() {
            let left = self.look_for(cached, (request, &sought), Choice::Known, Results::left);
            if let Ok(found @ Asked::Stale(..)) = left {
                return Ok((sought, found));
            }
        }
        if choice == Some(Choice::Known) && !self.knows_own_definitions() {
            return Err(Refusal::Unresolved);
        }
        let asked = self.look_for(cached, (request, &sought), choice.ok_or(Refusal::Closed)?, Results::ask)?;
        Ok((sought, asked))
    }

    fn look_for(
        &mut self,
        cached: &Arc<Cached>,
        (request, sought): (&Request<'_>, &Sought),
        choice: Choice,
        ask: fn(&Arc<Results>, &Wanted<'_>, Instant) -> Asked,
    ) -> Result<Asked, Refusal> {
        let (plan, scope) = (&sought.plan, self.scope());
        let ruled = cached.ruled(plan.fingerprint, scope.map(|scope| &*scope.catalog));
        let publication = cached.publication.load();
        let told_by = publication.as_deref().filter(|_| choice == Choice::Known);
        let sources = || match (plan.sources(scope)?, told_by, scope) {
            (sources, Some(told_by), Some(scope)) => Some(sources.told_by(told_by, &scope.catalog)),
            (sources, ..) => Some(sources),
        };
        let admitted = admit::admit(&plan.facts, choice, cached.ttl, &ruled, sources)?;
        if request.moves {
            return Err(Refusal::Transient);
        }
        // What names mean is another with other definitions.
        let by_names = choice == Choice::Known || admitted.reads != Reads::Anything;
        let scope = if by_names { scope.map_or(0, |scope| scope.id) } else { 0 };
        self.renew_asker(scope);
        let (text, types) = match (&request.source, &sought.statement) {
            (Source::Query(text), _) => (*text, &[][..]),
            (_, Some(statement)) => (&*statement.text, &*statement.types),
            _ => return Err(Refusal::Shape),
        };
        let read = Read { text, types, parameters: request.parameters, formats: request.formats };
        let key = read.key(&self.asker.key);
        if key.len() > MAX_KEY {
            return Err(Refusal::TooLarge);
        }
        let wanted = Wanted {
            database: cached.id,
            key: &key,
            needs: request.needs,
            brings: request.brings(),
            reads: admitted.reads,
            ttl: admitted.ttl,
            stale: admitted.stale,
            after: self.wrote.at,
        };
        let asked = ask(&cached.results, &wanted, self.request.started);
        if let Asked::Fill(fill) = asked {
            // Another stream has begun meanwhile.
            if publication.as_ref().map(Arc::as_ptr) != cached.publication.load().as_ref().map(Arc::as_ptr) {
                return Err(Refusal::Unpublished);
            }
            let most = cached.results.max_entry_bytes();
            // Memory is so short that there is no room for any.
            if most == 0 {
                return Err(Refusal::TooLarge);
            }
            let (formats, capture) = (request.formats.bytes().into(), Capture::new(most));
            if fill.is_behind() {
                cached.urge.now();
            }
            let name = self.shared_name(cached, &fill, &key);
            let plan = plan.clone();
            self.filling = Some(Box::new(Filling { plan, fill, capture, formats, name, epoch: None, sight: None }));
            return Ok(Asked::Closed);
        }
        match asked {
            Asked::Closed => return Err(Refusal::Closed),
            Asked::Hit(ref entry, _) => self.verify(cached, (&key, &read), entry, plan),
            _ => {}
        }
        Ok(asked)
    }

    /// Its scope has what this session defined out of sight, in a function for one.
    fn knows_own_definitions(&mut self) -> bool {
        let Some(wrote) = self.wrote.hidden else { return true };
        let definitions = &self.database.cluster.definitions;
        if !(definitions.have_all_by(wrote) && self.sight.is_of(definitions)) {
            definitions.urge();
            return false;
        }
        self.wrote.hidden = None;
        true
    }

    /// What a result is found by in the second level: by all that finds it here, and by what its scope is everywhere.
    fn shared_name(&self, cached: &Cached, fill: &Fill, key: &[u8]) -> Option<Name> {
        let (place, tables) = (cached.shared.as_ref()?, fill.shared_tables()?);
        let (asker, read) = key.split_at_checked(self.asker.key.len())?;
        let (asker, _) = asker.split_last_chunk::<{ size_of::<u64>() }>()?;
        place.name(self.scope()?, tables, &[asker, read])
    }

    /// The statement of a request; `None` where the server is to judge.
    pub(super) fn sought(&self, request: &Request<'_>) -> Option<Sought> {
        let statement = match (request.source, self.scanned.front()) {
            (Source::Query(_), Some(Scanned::Query(plan))) => {
                return Some(Sought { plan: plan.clone(), statement: None });
            }
            (Source::Parse(parse), Some(Scanned::Parse(statement))) => {
                let taken = !parse.name.is_empty() && self.names.find(parse.name).is_some();
                Some(statement).filter(|_| !taken)?
            }
            (Source::Name(name), None) => self.names.find(name)?,
            _ => return None,
        };
        // Its text was read under other settings.
        let same = statement.environment == *self.environment.key();
        same.then(|| Sought { plan: statement.plan.clone(), statement: Some(statement.clone()) })
    }

    fn renew_asker(&mut self, scope: u64) {
        let settings = self.parameters.current();
        if self.asker.of.as_ref() != Some(settings) || self.asker.scope != scope {
            let reported = self.greeting.iter().map(|(name, value)| (&**name, &**value));
            let key = key::environment(&self.database.name, &self.login.user, settings, reported);
            self.asker.key = [&key, &scope.to_be_bytes()[..]].concat().into();
            (self.asker.of, self.asker.scope) = (Some(settings.clone()), scope);
        }
    }

    /// Waits for another's run, within bounds. A fault is what Postgres would say of a statement of this session's own.
    async fn wait_for_flight(&mut self, flight: &Flight) -> Result<Result<Option<Arc<Entry>>, Fault>, End> {
        let own = self.parameters.current().statement_timeout().filter(|own| *own < LONGEST_WAIT);
        let client = self.client.clone();
        let landed = tokio::time::timeout(
            own.unwrap_or(LONGEST_WAIT),
            poll_fn(|cx| match client.is_cancelled() {
                true => Poll::Ready(Err("canceling statement due to user request")),
                false => flight.poll(cx).map(Ok),
            }),
        );
        client.begin_wait();
        let waited = self.meanwhile(landed).await;
        client.end_wait();
        let landed = match waited? {
            Ok(landed) => landed,
            Err(_) if own.is_some() => Err("canceling statement due to statement timeout"),
            Err(_) => Ok(None),
        };
        Ok(landed.map_err(|why| Fault::error(sqlstate::QUERY_CANCELED, why)))
    }

    /// Waits, and watches the client meanwhile.
    async fn meanwhile<T>(&mut self, awaited: impl Future<Output = T>) -> Result<T, End> {
        let mut awaited = pin!(awaited);
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(done) = awaited.as_mut().poll(cx) {
                    return Poll::Ready(Ok(done));
                }
                if self.client.nudged.poll(cx).is_pending() {
                    break;
                }
                if self.client.stop_reason() != Stop::None {
                    return Poll::Ready(Err(End::Fault(stop_fault(self.client.stop_reason()))));
                }
            }
            self.poll_waiting_client(cx).map(|()| Err(End::Client))
        })
        .await
    }

    /// Answers the batch with what was read by `read`; false where the entry lacks what this way of asking needs.
    pub(super) async fn give(
        &mut self,
        batch: &Batch,
        sought: &Sought,
        entry: &Entry,
        read: Instant,
    ) -> Result<bool, End> {
        let inbox = std::mem::take(&mut self.inbox);
        let request = Request::read(&inbox[..batch.end]).filter(|request| entry.has(request.needs));
        let parts: Option<Vec<Part>> = request.as_ref().map(|request| request.parts().to_vec());
        request.iter().for_each(|request| self.note_names(request, sought));
        self.inbox = inbox;
        let Some(parts) = parts else { return Ok(false) };
        for part in parts {
            if part != Part::Result {
                let before = self.outbox.len();
                entry.write_part(part, &mut self.outbox);
                self.request.bytes += (self.outbox.len() - before) as u64;
                continue;
            }
            for piece in entry.result().chunks(PIECE) {
                self.outbox.extend_from_slice(piece);
                self.request.bytes += piece.len() as u64;
                self.wait_for_room().await?;
            }
        }
        self.note_given(batch.end, &sought.plan, entry, read);
        Ok(true)
    }

    /// Until the client has taken all but a piece of what it is given, or is to be stopped: it cannot be told so in the midst of a frame.
    async fn wait_for_room(&mut self) -> Result<(), End> {
        let (gone, stopped) = poll_fn(|cx| {
            let sent = self.poll_send_client(cx);
            let stopped = self.client.stop_reason() != Stop::None;
            match sent {
                Poll::Ready(sent) => Poll::Ready((sent.is_err(), stopped)),
                Poll::Pending if self.outbox.len() < PIECE || stopped => Poll::Ready((false, stopped)),
                Poll::Pending => {
                    while self.client.nudged.poll(cx).is_ready() {
                        if self.client.stop_reason() != Stop::None {
                            return Poll::Ready((false, true));
                        }
                    }
                    Poll::Pending
                }
            }
        })
        .await;
        if stopped {
            // To be heard once the answer is whole.
            self.client.nudge();
        }
        if gone { Err(End::Client) } else { Ok(()) }
    }

    /// Writes the reply, unless the entry lacks what this way of asking needs.
    fn reply(&mut self, request: &Request<'_>, sought: &Sought, entry: &Entry) -> bool {
        if !entry.has(request.needs) {
            return false;
        }
        let before = self.outbox.len();
        entry.write(request.parts(), self.worker.buffers.make_room(&mut self.outbox));
        self.request.bytes = (self.outbox.len() - before) as u64;
        self.note_names(request, sought);
        true
    }

    /// What a request that pgweir answers does to the client's names.
    pub(super) fn note_names(&mut self, request: &Request<'_>, sought: &Sought) {
        match request.source {
            // A simple Query ends the unnamed statement.
            Source::Query(_) => drop(self.names.replace(b"", None)),
            Source::Parse(parse) => drop(self.names.replace(parse.name, sought.statement.clone())),
            Source::Name(_) => {}
        }
        if let Some(name) = request.closes {
            self.names.replace(name, None);
        }
    }

    /// The batch up to `end` has its reply.
    fn note_given(&mut self, end: usize, plan: &Arc<Plan>, entry: &Entry, read: Instant) {
        self.inbox.advance(end);
        self.worker.buffers.give_back(&mut self.inbox);
        // A replica that has less would be a step back.
        self.seen.kept(read);
        self.request.rows = entry.rows();
        self.request.cache = CacheUse::Hit;
        plan.reuse().note_hit();
        self.record(plan);
        self.counters().transaction(self.request.mark.saturating_duration_since(self.request.started));
    }

    /// The read runs on this connection: a replica's answer is kept only where it has all that is known to have changed.
    pub(super) fn fill_from(&mut self, leased: &Leased) {
        let Some(filling) = &self.filling else { return };
        let sample = leased.lease.pool.node.sample();
        // A server process that has started anew since it was looked at may have fallen back.
        let sampled = sample.asked.is_some_and(|asked| leased.lease.created <= asked);
        if leased.replica && !(sampled && filling.fill.may_come_from(&sample)) {
            self.cluster().demand.urge(self.request.mark);
            self.refuse_fill(Refusal::Lagging);
        }
    }

    /// The reply has something that no kept one may have.
    pub(super) fn spoil_fill(&mut self) {
        self.refuse_fill(Refusal::Incomplete);
    }

    /// Nobody need wait any longer: the reply is not kept.
    fn refuse_fill(&mut self, why: Refusal) {
        if let (Some(filling), Some(cached)) = (self.filling.take(), &self.database.cached) {
            note_refused(cached, &filling.plan, why, self.worker.index);
        }
    }

    /// The next bytes of the reply.
    #[inline]
    pub(super) fn fill(&mut self, bytes: &[u8]) {
        if let Some(filling) = &mut self.filling
            && let Err(why) = filling.capture.take(bytes)
        {
            self.refuse_fill(why);
        }
    }

    /// The reply is complete.
    pub(super) fn land_fill(&mut self) {
        let Some(filling) = self.filling.take() else { return };
        let Filling { plan, fill, capture, formats, name, epoch, sight } = *filling;
        let Some(cached) = &self.database.cached else { return };
        match capture.finish(Formats::read(&formats)).and_then(|entry| fill.land(entry)) {
            Ok(landed) => {
                plan.reuse().note_kept();
                sight.iter().for_each(|sight| cached.results.note_kept(*sight));
                if let (Some(place), Some(name), Some(epoch), Some(landed)) = (&cached.shared, name, epoch, landed) {
                    place.store(name, epoch, landed);
                }
            }
            Err(why) => note_refused(cached, &plan, why, self.worker.index),
        }
    }

    /// A write is about to be sent; `opaque`: it may do anything.
    pub(super) fn note_targets(&mut self, plan: &Plan, opaque: bool) {
        if self.database.cached.is_some() {
            let targets = plan.targets(self.scope());
            // Who holds a connection may know older definitions.
            let current = self.sight.is_of(&self.database.cluster.definitions);
            self.written.note(targets.map(|targets| Targets { alone: targets.alone && current, ..targets }));
            let executes = plan.facts.effects.iter().any(|effect| matches!(effect, Effect::Execute(_)));
            // … what another session has defined.
            let shows = plan.facts.control.contains(&Control::FinishPrepared);
            if opaque || executes || shows {
                self.written.note_hidden();
            }
        }
    }

    /// Something that this session wrote is committed, perhaps: it is given no answer from before it any more.
    pub(super) fn invalidate(&mut self) {
        self.invalidate_by(Instant::now());
    }

    /// The same where it is committed by then, or not at all.
    pub(super) fn invalidate_by(&mut self, by: Instant) {
        if let Some(cached) = &self.database.cached {
            cached.note_write(&self.written, by);
            self.wrote.at = Some(Instant::now());
            if self.written.hides_definitions() {
                self.wrote.hidden = self.wrote.at;
            }
        }
    }
}

/// The result of a read that runs is not kept.
fn note_refused(cached: &Cached, plan: &Plan, why: Refusal, worker: usize) {
    cached.results.note_refusal(cached.id, why);
    plan.record.note_refused(worker, why as u8);
}
