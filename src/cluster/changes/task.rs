//! Follows the changes of a database for as long as it lives: from its primary, and after a promotion from the next.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};

use crate::backend::connect::{self, ConnectFailure, Login};
use crate::backend::connection::{BackendError, Connection, ServerError};
use crate::catalog::publication::Publication;
use crate::cluster::changes::fleet::{self, Announcer, Turn};
use crate::cluster::changes::origin::origin;
use crate::cluster::changes::stream::{ChangeStream, Message, Received, cause, cause_of_failure};
use crate::cluster::changes::visible::{Snapshot, Unseen};
use crate::cluster::changes::{Cause, Changed, Commit, Event, Lsn, MAX_RELATIONS, Relation, publication};
use crate::cluster::node::Node;
use crate::cluster::{Cluster, stay_away};
use crate::error::Malformed;
use crate::net::tls::Connector;
use crate::wire::read::Reader;
use crate::wire::tag::backend;
use crate::wire::write;

/// How often the server is told where we are, and asked where it is.
pub(super) const TICK: Duration = Duration::from_millis(250);

/// Asked each [`TICK`] and silent for so long, the stream is given up.
pub(super) const SILENCE: Duration = Duration::from_secs(10);

/// Running transactions and the WAL's end are asked for so often at most.
const ASK_AGAIN: Duration = Duration::from_millis(5);

/// Pauses between attempts, doubled up to the longest.
const PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// The pause where somebody must do something first: each attempt is a line in the server's log.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the question looks at a publication besides, this part of the time goes into its answers at most.
const ASK_SHARE: u32 = 20;

const ASK: &str = "pg_catalog.pg_current_snapshot(), pg_catalog.pg_current_wal_insert_lsn()";

/// By which pgweir's own connections show in `pg_stat_activity`.
pub(super) const NAME: &str = "pgweir changes";

/// Ends of the WAL that the stream has yet to reach; while there are more, no new ones are noted.
pub(super) const MAX_AWAITED: usize = 64;

/// Where a page of the WAL begins behind its header (`XLogBytePosToRecPtr`): the end of a record there is the page's start.
const PAGE: u64 = 8192;
const HEADERS: [u64; 2] = [24, 40];

/// Someone waits for [`Event::Told`].
#[derive(Debug, Clone, Default)]
pub struct Urge(Arc<Notify>);

impl Urge {
    pub fn now(&self) {
        self.0.notify_one();
    }

    pub(super) async fn notified(&self) {
        self.0.notified().await;
    }
}

/// Who follows, and how.
#[derive(Debug, Clone)]
pub struct Follow {
    /// Each is tried: not all need have the right to.
    pub logins: Vec<Login>,
    pub tls: Connector,
    /// For a connect.
    pub timeout: Duration,
    /// `None`: decoded by test_decoding, which shows all relations; else by pgoutput, which shows this one's.
    pub publication: Option<String>,
    pub urge: Urge,
    /// Among several that follow the same changes, one does, and tells the others.
    pub fleet: bool,
}

/// Tells what changes until the cluster is gone. The same cause of a loss is told once.
pub async fn follow(cluster: Weak<Cluster>, how: Follow, tell: impl Fn(Event) + Send + Sync) {
    let (mut pause, mut last) = (PAUSE, None);
    while let Some(strong) = cluster.upgrade() {
        let (mut changes, mut vacancies) = (strong.changes(), strong.vacancies());
        let primary = strong.primary().cloned();
        drop(strong);
        stay_away(&mut vacancies).await;
        let mut was_whole = false;
        let cause = match primary {
            Some(node) => {
                let whole = |event: Event| {
                    was_whole |= matches!(event, Event::Whole { .. });
                    tell(event);
                };
                tokio::select! {
                    cause = any(&cluster, &node, &how, whole) => cause,
                    Ok(()) = vacancies.changed() => Cause::Left,
                }
            }
            None => Cause::NoPrimary,
        };
        if was_whole {
            (pause, last) = (PAUSE, None);
        }
        // What one login has lost, another may still be let.
        let wait = if cause.passes() || was_whole { pause } else { PATIENCE };
        if last.as_ref() != Some(&cause) {
            tell(Event::Lost(cause.clone()));
            last = Some(cause);
        }
        if last == Some(Cause::Left) {
            continue;
        }
        pause = (pause * 2).min(MAX_PAUSE);
        // A new primary is tried at once.
        let _ = tokio::time::timeout(wait, changes.changed()).await;
    }
}

/// One stream from one node by the first login that it lets, to its end.
async fn any(cluster: &Weak<Cluster>, node: &Arc<Node>, how: &Follow, mut tell: impl FnMut(Event)) -> Cause {
    let mut refused = Cause::Refused("no user of the configuration can log in".to_owned());
    for login in &how.logins {
        let mut was_whole = false;
        let tell = |event: Event| {
            was_whole |= matches!(event, Event::Whole { .. });
            tell(event);
        };
        match one(cluster, node, (how, login), tell).await {
            // The loss of a stream is told before there is another.
            Cause::Refused(why) if !was_whole => refused = Cause::Refused(why),
            cause => return cause,
        }
    }
    refused
}

async fn one(
    cluster: &Weak<Cluster>,
    node: &Arc<Node>,
    (how, login): (&Follow, &Login),
    tell: impl FnMut(Event),
) -> Cause {
    let following = async {
        match how.fleet {
            true => fleet::take_part(node, how, login, tell).await,
            false => stream(node, how, login, None, tell).await,
        }
    };
    tokio::select! {
        cause = following => cause,
        cause = replaced(cluster, node) => cause,
    }
}

/// A stream of one's own, to its end; with an announcer, for others too.
pub(super) async fn stream(
    node: &Node,
    how: &Follow,
    login: &Login,
    announcer: Option<Announcer>,
    mut tell: impl FnMut(Event),
) -> Cause {
    let opening = async {
        // The publication is looked at before the slot is made, and with each answer since.
        let mut observer = Observer::open(node, how, login).await?;
        let publication = observer.publication.clone();
        if announcer.as_ref().is_some_and(|announcer| announcer.publication() != publication.as_deref()) {
            return Err(Cause::Altered);
        }
        let origin = origin(&mut observer.connection).await.map_err(cause)?;
        let (stream, from) = ChangeStream::open(&node.config, how, login).await?;
        let mut following = Following::new(observer, stream, from, how.urge.clone(), announcer);
        following.begin().await.map_err(cause)?;
        Ok((following, origin, publication))
    };
    match opening.await {
        Ok((mut following, origin, publication)) => {
            tell(Event::Origin(origin));
            tell(Event::Publication(publication));
            tell(Event::Whole { from: following.reached });
            following.run(tell).await
        }
        Err(cause) => cause,
    }
}

/// Ends when the node is the primary no more.
async fn replaced(cluster: &Weak<Cluster>, node: &Node) -> Cause {
    let moves = node.moves();
    loop {
        let Some(strong) = cluster.upgrade() else { return Cause::NoPrimary };
        let mut changes = strong.changes();
        let still = strong.primary().map(|primary| primary.index == node.index);
        drop(strong);
        match still {
            Some(true) if node.moves() == moves => {}
            // Its name may lead to another server.
            Some(_) => return Cause::Promotion,
            None => return Cause::NoPrimary,
        }
        // Also to see that the cluster is gone.
        let _ = tokio::time::timeout(TICK, changes.changed()).await;
    }
}

/// The plain connection that asks for running transactions.
struct Observer {
    connection: Connection,
    question: String,
    publication: Option<Arc<Publication>>,
    /// Since when an answer is owed.
    asked: Option<Instant>,
    answer: Option<Answer>,
    /// Not before.
    again: Instant,
}

impl Observer {
    async fn open(node: &Node, how: &Follow, login: &Login) -> Result<Observer, Cause> {
        let more = [("application_name", NAME)];
        let connecting = connect::connect_with(&node.config, &how.tls, login, how.timeout, &more);
        let made = tokio::time::timeout(how.timeout * 2, connecting).await;
        let mut connection = made.unwrap_or(Err(ConnectFailure::Timeout)).map_err(cause_of_failure)?;
        let question = publication::question(&mut connection, (ASK, ""), how.publication.as_deref()).await?;
        let publication = match &how.publication {
            Some(name) => Some(Arc::new(publication::read(&mut connection, name).await?)),
            None => None,
        };
        Ok(Observer { connection, question, publication, asked: None, answer: None, again: Instant::now() })
    }

    async fn ask(&mut self) -> Result<(), BackendError> {
        self.asked = Some(Instant::now());
        write::query(&mut self.connection.outbox, &self.question);
        self.connection.send().await
    }

    /// The answer, once it is all there. Nothing is lost when the future is dropped.
    async fn answer(&mut self) -> Result<Answer, BackendError> {
        loop {
            match self.connection.receive().await? {
                (backend::DATA_ROW, body) => self.answer = Some(answer(&body, self.asked)?),
                (backend::ERROR, body) => return Err(BackendError::Server(ServerError::read(&body)?)),
                (backend::READY, _) => {
                    let now = Instant::now();
                    let took = self.asked.take().map_or(Duration::ZERO, |asked| now - asked);
                    let share = if self.publication.is_some() { took * ASK_SHARE } else { ASK_AGAIN };
                    self.again = now + share.clamp(ASK_AGAIN, TICK / 2);
                    return self.answer.take().ok_or(Malformed("no row of running transactions").into());
                }
                _ => {}
            }
        }
    }
}

/// What the primary says of itself.
#[derive(Debug)]
struct Answer {
    asked: Instant,
    running: Snapshot,
    /// All that was committed when it was asked ends here, or before.
    end: Lsn,
    /// Of the publication.
    state: Option<u64>,
}

fn answer(row: &[u8], asked: Option<Instant>) -> Result<Answer, Malformed> {
    const BAD: Malformed = Malformed("running transactions and the end of the WAL");
    let mut r = Reader::new(row);
    let columns = r.i16()?;
    let mut text = || {
        let length = usize::try_from(r.i32()?).unwrap_or(0);
        std::str::from_utf8(r.bytes(length)?).map_err(|_| BAD)
    };
    let (running, end) = (text()?.parse().map_err(|()| BAD)?, text()?.parse().map_err(|()| BAD)?);
    let state = if columns > 2 { publication::state(text()?) } else { None };
    Ok(Answer { asked: asked.ok_or(BAD)?, running, end: end_of_record(end), state })
}

/// The insert position names where the next record will begin, which behind a page's end is past the next page's header.
pub(super) fn end_of_record(insert: Lsn) -> Lsn {
    let within = insert.0 % PAGE;
    if HEADERS.contains(&within) { Lsn(insert.0 - within) } else { insert }
}

struct Following {
    observer: Observer,
    /// Of the publication, when the stream began.
    state: Option<u64>,
    stream: ChangeStream,
    unseen: Unseen,
    /// The transaction that is being told.
    xid: u32,
    relations: HashSet<Relation>,
    too_many: bool,
    /// All up to here has been told.
    reached: Lsn,
    heard: Instant,
    /// Ends of the WAL with the instants at which they were asked for, oldest first.
    awaited: VecDeque<(Lsn, Instant)>,
    urge: Urge,
    urged: bool,
    /// All that ended up to here when the running transactions were last asked for is visible.
    visible: Lsn,
    /// Where the WAL ended by the last answer.
    end: Lsn,
    announcer: Option<Announcer>,
}

impl Following {
    fn new(observer: Observer, stream: ChangeStream, from: Lsn, urge: Urge, announcer: Option<Announcer>) -> Following {
        Following {
            state: observer.publication.as_ref().map(|publication| publication.state),
            observer,
            stream,
            unseen: Unseen::default(),
            xid: 0,
            relations: HashSet::new(),
            too_many: false,
            reached: from,
            heard: Instant::now(),
            awaited: VecDeque::new(),
            urge,
            urged: false,
            visible: Lsn(0),
            end: Lsn(0),
            announcer,
        }
    }

    /// Commits from before the stream may not be visible yet, and the stream does not tell which those are: they are older
    /// than a transaction that begins now.
    async fn begin(&mut self) -> Result<(), BackendError> {
        let rows = self.observer.connection.query("SELECT pg_catalog.pg_current_xact_id()").await?;
        let next = rows.first().and_then(|row| row.first()?.as_deref()?.parse::<u64>().ok());
        self.unseen.add_all_before(self.reached, next.ok_or(Malformed("no number of a transaction"))? as u32);
        Ok(())
    }

    async fn run(&mut self, mut tell: impl FnMut(Event)) -> Cause {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let ask = (self.urged || !self.unseen.is_empty()) && self.observer.asked.is_none();
            let again = self.observer.again;
            let urge = self.urge.clone();
            let done = tokio::select! {
                received = self.stream.next() => match received {
                    Ok(received) => self.take(received, &mut tell).await,
                    Err(error) => Err(error),
                },
                answer = self.observer.answer(), if self.observer.asked.is_some() => match answer {
                    // What was published is so no more, or there is more of it.
                    Ok(answer) if answer.state != self.state => return Cause::Altered,
                    Ok(answer) => self.answered(&answer, &mut tell).await,
                    Err(error) => Err(error),
                },
                () = urge.notified(), if !self.urged => {
                    self.urged = true;
                    Ok(())
                }
                () = sleep_until(again), if ask => self.ask().await,
                turn = turn(&mut self.announcer) => match turn {
                    Ok(turn) => self.turned(turn).await,
                    Err(error) => Err(error),
                },
                _ = tick.tick() => self.tick().await,
            };
            if let Err(error) = done {
                return cause(error);
            }
            self.settle(&mut tell);
        }
    }

    async fn tick(&mut self) -> Result<(), BackendError> {
        let asked = self.observer.asked.map_or(Duration::ZERO, |asked| asked.elapsed());
        let owed = self.announcer.as_ref().map_or(Duration::ZERO, Announcer::owed);
        if self.heard.elapsed().max(asked).max(owed) > SILENCE {
            return Err(silence());
        }
        self.urged = true;
        self.announcer.iter_mut().for_each(|announcer| announcer.desk.beat(self.end));
        self.stream.report(self.reached, true).await
    }

    async fn turned(&mut self, turn: Turn) -> Result<(), BackendError> {
        match (turn, &mut self.announcer) {
            (Turn::Due, Some(announcer)) => announcer.say().await?,
            // The others look at the WAL's end as soon as they are told.
            (Turn::Announced, _) => self.urged = true,
            _ => {}
        }
        Ok(())
    }

    async fn ask(&mut self) -> Result<(), BackendError> {
        self.urged = false;
        self.observer.ask().await
    }

    async fn answered(&mut self, answer: &Answer, tell: &mut impl FnMut(Event)) -> Result<(), BackendError> {
        if let Some(visible) = self.unseen.settle(&answer.running) {
            self.visible = visible;
            tell(Event::Visible(visible));
        }
        self.end = answer.end;
        if self.awaited.len() < MAX_AWAITED {
            self.awaited.push_back((answer.end, answer.asked));
        }
        // What is no commit is not told of unless it is asked for.
        if answer.end > self.reached { self.stream.report(self.reached, true).await } else { Ok(()) }
    }

    /// Up to when all is told and visible.
    fn settle(&mut self, tell: &mut impl FnMut(Event)) {
        let is_told = |end: Lsn| end <= self.reached && !self.unseen.reaches_into(end);
        let count = self.awaited.iter().take_while(|(end, _)| is_told(*end)).count();
        let told = self.awaited.drain(..count).next_back().map(|(_, asked)| asked);
        told.into_iter().for_each(|asked| tell(Event::Told(asked.into_std())));
        let settled = if self.unseen.is_empty() { self.reached } else { self.visible };
        self.announcer.iter_mut().for_each(|announcer| announcer.desk.settle(settled));
    }

    async fn take(&mut self, received: Received, tell: &mut impl FnMut(Event)) -> Result<(), BackendError> {
        self.heard = Instant::now();
        match received {
            Received::KeepAlive { end, reply } => {
                if end > self.reached {
                    self.reached = end;
                    tell(Event::Reached(end));
                }
                if reply {
                    self.stream.report(self.reached, false).await?;
                }
            }
            Received::Data { at, message } => match message {
                Message::Begin { xid } => self.xid = xid,
                Message::Change(relations) => self.note(relations),
                Message::AnyChange => self.too_many = true,
                Message::Commit => {
                    let relations = std::mem::take(&mut self.relations).into_iter().collect();
                    let changed =
                        if std::mem::take(&mut self.too_many) { Changed::Any } else { Changed::These(relations) };
                    self.reached = at;
                    self.unseen.add(at, self.xid);
                    let commit = Commit { end: at, changed };
                    self.announcer.iter_mut().for_each(|announcer| announcer.desk.note(&commit));
                    tell(Event::Commit(commit));
                    tell(Event::Reached(at));
                }
                Message::SameAgain | Message::Other => {}
            },
        }
        Ok(())
    }

    fn note(&mut self, relations: Vec<Relation>) {
        if !self.too_many {
            self.relations.extend(relations);
        }
        if self.relations.len() > MAX_RELATIONS {
            self.too_many = true;
            self.relations = HashSet::new();
        }
    }
}

/// It has not answered within [`SILENCE`].
pub(super) fn silence() -> BackendError {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "the primary is silent").into()
}

async fn turn(announcer: &mut Option<Announcer>) -> Result<Turn, BackendError> {
    match announcer {
        Some(announcer) => announcer.turn().await,
        None => std::future::pending().await,
    }
}
