//! Follows the changes of a database for as long as it lives: from its primary, and after a promotion from the next.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, sleep_until};

use crate::backend::connect::{self, ConnectFailure, Login};
use crate::backend::connection::{BackendError, Connection, ServerError};
use crate::cluster::Cluster;
use crate::cluster::changes::stream::{ChangeStream, Message, Received, cause, cause_of_failure};
use crate::cluster::changes::visible::{Snapshot, Unseen};
use crate::cluster::changes::{Cause, Changed, Commit, Event, Lsn, MAX_RELATIONS, Relation};
use crate::cluster::node::Node;
use crate::error::Malformed;
use crate::net::tls::Connector;
use crate::wire::read::Reader;
use crate::wire::tag::backend;
use crate::wire::write;

/// How often the server is told where we are, and asked where it is.
const TICK: Duration = Duration::from_secs(1);

/// Asked each [`TICK`] and silent for so long, the stream is given up.
const SILENCE: Duration = Duration::from_secs(10);

/// Running transactions are asked for so often at most.
const ASK_AGAIN: Duration = Duration::from_millis(5);

/// Pauses between attempts, doubled up to the longest; where somebody must do something first, the longest at once.
const PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(5);

const ASK: &str = "SELECT pg_catalog.pg_current_snapshot()";

/// Who follows, and how.
#[derive(Debug, Clone)]
pub struct Follow {
    pub login: Login,
    pub tls: Connector,
    /// For a connect.
    pub timeout: Duration,
    /// `None`: decoded by test_decoding, which shows all relations; else by pgoutput, which shows this publication's.
    pub publication: Option<String>,
}

/// Tells what changes until the cluster is gone. The same cause of a loss is told once.
pub async fn follow(cluster: Weak<Cluster>, how: Follow, tell: impl Fn(Event) + Send + Sync) {
    let (mut pause, mut last) = (PAUSE, None);
    while let Some(strong) = cluster.upgrade() {
        let mut changes = strong.changes();
        let primary = strong.primary().cloned();
        drop(strong);
        let mut was_whole = false;
        let cause = match primary {
            Some(node) => {
                let whole = |event: Event| {
                    was_whole |= matches!(event, Event::Whole { .. });
                    tell(event);
                };
                one(&cluster, &node, &how, whole).await
            }
            None => Cause::NoPrimary,
        };
        if was_whole {
            (pause, last) = (PAUSE, None);
        }
        let wait = if cause.passes() { pause } else { MAX_PAUSE };
        if last.as_ref() != Some(&cause) {
            tell(Event::Lost(cause.clone()));
            last = Some(cause);
        }
        pause = (pause * 2).min(MAX_PAUSE);
        // A new primary is tried at once.
        let _ = tokio::time::timeout(wait, changes.changed()).await;
    }
}

/// One stream from one node, to its end.
async fn one(cluster: &Weak<Cluster>, node: &Arc<Node>, how: &Follow, mut tell: impl FnMut(Event)) -> Cause {
    let opening = async {
        let observer = Observer::open(node, how).await?;
        let (stream, from) = ChangeStream::open(&node.config, how).await?;
        Ok((observer, stream, from))
    };
    let opened = tokio::select! {
        opened = opening => opened,
        cause = replaced(cluster, node) => Err(cause),
    };
    let (observer, stream, from) = match opened {
        Ok(opened) => opened,
        Err(cause) => return cause,
    };
    let mut following = Following::new(observer, stream, from);
    if let Err(error) = following.begin().await {
        return cause(error);
    }
    tell(Event::Whole { from });
    tokio::select! {
        error = following.run(tell) => cause(error),
        cause = replaced(cluster, node) => cause,
    }
}

/// Ends when the node is the primary no more.
async fn replaced(cluster: &Weak<Cluster>, node: &Node) -> Cause {
    loop {
        let Some(strong) = cluster.upgrade() else { return Cause::NoPrimary };
        let mut changes = strong.changes();
        let still = strong.primary().map(|primary| primary.index == node.index);
        drop(strong);
        match still {
            Some(true) => {}
            Some(false) => return Cause::Promotion,
            None => return Cause::NoPrimary,
        }
        // Also to see that the cluster is gone.
        let _ = tokio::time::timeout(TICK, changes.changed()).await;
    }
}

/// The plain connection that asks for running transactions.
struct Observer {
    connection: Connection,
    /// Since when an answer is owed.
    asked: Option<Instant>,
    answer: Option<Snapshot>,
    /// Not before.
    again: Instant,
}

impl Observer {
    async fn open(node: &Node, how: &Follow) -> Result<Observer, Cause> {
        let more = [("application_name", "pgweir changes")];
        let connecting = connect::connect_with(&node.config, &how.tls, &how.login, how.timeout, &more);
        let made = tokio::time::timeout(how.timeout * 2, connecting).await;
        let connection = made.unwrap_or(Err(ConnectFailure::Timeout)).map_err(cause_of_failure)?;
        Ok(Observer { connection, asked: None, answer: None, again: Instant::now() })
    }

    async fn ask(&mut self) -> Result<(), BackendError> {
        self.asked = Some(Instant::now());
        write::query(&mut self.connection.outbox, ASK);
        self.connection.send().await
    }

    /// The answer, once it is all there. Nothing is lost when the future is dropped.
    async fn answer(&mut self) -> Result<Snapshot, BackendError> {
        loop {
            match self.connection.receive().await? {
                (backend::DATA_ROW, body) => self.answer = Some(snapshot(&body)?),
                (backend::ERROR, body) => return Err(BackendError::Server(ServerError::read(&body)?)),
                (backend::READY, _) => {
                    self.asked = None;
                    self.again = Instant::now() + ASK_AGAIN;
                    return self.answer.take().ok_or(Malformed("no row of running transactions").into());
                }
                _ => {}
            }
        }
    }
}

fn snapshot(row: &[u8]) -> Result<Snapshot, Malformed> {
    let mut r = Reader::new(row);
    r.i16()?;
    let length = usize::try_from(r.i32()?).unwrap_or(0);
    let text = std::str::from_utf8(r.bytes(length)?).ok();
    text.and_then(|text| text.parse().ok()).ok_or(Malformed("running transactions"))
}

struct Following {
    observer: Observer,
    stream: ChangeStream,
    unseen: Unseen,
    /// The transaction that is being told.
    xid: u32,
    relations: HashSet<Relation>,
    too_many: bool,
    /// All up to here has been told.
    reached: Lsn,
    heard: Instant,
}

impl Following {
    fn new(observer: Observer, stream: ChangeStream, from: Lsn) -> Following {
        Following {
            observer,
            stream,
            unseen: Unseen::default(),
            xid: 0,
            relations: HashSet::new(),
            too_many: false,
            reached: from,
            heard: Instant::now(),
        }
    }

    /// Commits from before the stream may not be visible yet, and the stream does not tell which those are.
    async fn begin(&mut self) -> Result<(), BackendError> {
        self.observer.ask().await?;
        let snapshot = self.observer.answer().await?;
        self.unseen.add_all_of(self.reached, &snapshot);
        Ok(())
    }

    async fn run(&mut self, mut tell: impl FnMut(Event)) -> BackendError {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let ask = !self.unseen.is_empty() && self.observer.asked.is_none();
            let again = self.observer.again;
            let done = tokio::select! {
                received = self.stream.next() => match received {
                    Ok(received) => self.take(received, &mut tell).await,
                    Err(error) => Err(error),
                },
                answer = self.observer.answer(), if self.observer.asked.is_some() => answer.map(|snapshot| {
                    self.unseen.settle(&snapshot).map(Event::Visible).into_iter().for_each(&mut tell);
                }),
                () = sleep_until(again), if ask => self.observer.ask().await,
                _ = tick.tick() => self.tick().await,
            };
            if let Err(error) = done {
                return error;
            }
        }
    }

    async fn tick(&mut self) -> Result<(), BackendError> {
        let asked = self.observer.asked.map_or(Duration::ZERO, |asked| asked.elapsed());
        if self.heard.elapsed().max(asked) > SILENCE {
            return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the primary is silent").into());
        }
        self.stream.report(self.reached, true).await
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
                    tell(Event::Commit(Commit { end: at, changed }));
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
