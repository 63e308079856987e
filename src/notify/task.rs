//! The hub's task: one connection, kept while anyone listens, made again when it breaks.

use std::collections::VecDeque;
use std::fmt::Write;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::backend::connect::{self, Login};
use crate::backend::connection::{BackendError, Connection, ServerError};
use crate::notify::hub::{Command, Reach};
use crate::notify::members::Members;
use crate::notify::{Item, Notification};
use crate::session::channels::{Change, Channel};
use crate::wire::tag::backend;
use crate::wire::write;

/// How often the connection is looked at.
const TICK: Duration = Duration::from_secs(1);

/// A connection so long silent is asked for a sign of life.
const SILENCE: Duration = Duration::from_secs(10);

/// The longest pause between attempts to connect.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Clients get what the server sends as it is, so in the encoding of all but a few of them; nothing ends an idle
/// session.
const PREPARE: &str = "SET client_encoding = 'UTF8'; SET application_name = 'pgweir listen'; \
                       SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings \
                       WHERE name IN ('idle_session_timeout', 'statement_timeout')";

type Connecting = Pin<Box<dyn Future<Output = Result<(u16, Box<Connection>), String>> + Send>>;

/// The shared connection.
enum Link {
    /// Nobody listens.
    Down,
    /// Until the next attempt.
    Pause(Pin<Box<tokio::time::Sleep>>),
    Connecting(Connecting),
    Up {
        /// The node's index.
        node: u16,
        connection: Box<Connection>,
    },
}

enum Event {
    Command(Command),
    /// No hub is left to give commands.
    End,
    Retry,
    Connected(Result<(u16, Box<Connection>), String>),
    Frame(u8, BytesMut),
    Broken(String),
    Tick,
}

impl Link {
    async fn event(&mut self) -> Event {
        match self {
            Link::Down => pending().await,
            Link::Pause(sleep) => {
                sleep.await;
                Event::Retry
            }
            Link::Connecting(connecting) => Event::Connected(connecting.await),
            Link::Up { connection, .. } => match connection.receive().await {
                Ok((tag, body)) => Event::Frame(tag, body),
                Err(error) => Event::Broken(error.to_string()),
            },
        }
    }
}

/// What a ReadyForQuery of the shared connection is owed to.
enum Asked {
    Change(Pending),
    /// All channels, on a new connection.
    ListenAgain,
    /// Nobody's: an UNLISTEN, or a sign of life.
    Nothing,
}

/// A client's change on its way.
struct Pending {
    client: u64,
    changes: Vec<Change>,
    fence: u64,
    since: Instant,
}

struct Task {
    reach: Reach,
    members: Members,
    link: Link,
    /// In the order of the ReadyForQuery messages to come, with the time at which it was asked.
    asked: VecDeque<(Instant, Asked)>,
    /// Changes that wait for a connection.
    held: VecDeque<Pending>,
    /// Something was listened on by a connection that broke.
    lost: bool,
    /// Attempts to connect since the last that succeeded.
    attempts: usize,
    last_heard: Instant,
}

/// Serves until no hub is left.
pub(super) async fn run(reach: Reach, mut commands: mpsc::UnboundedReceiver<Command>) {
    let mut task = Task {
        reach,
        members: Members::default(),
        link: Link::Down,
        asked: VecDeque::new(),
        held: VecDeque::new(),
        lost: false,
        attempts: 0,
        last_heard: Instant::now(),
    };
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            command = commands.recv() => command.map_or(Event::End, Event::Command),
            event = task.link.event() => event,
            _ = tick.tick() => Event::Tick,
        };
        match event {
            Event::Command(command) => task.command(command),
            Event::End => return task.part().await,
            Event::Retry => task.connect(),
            Event::Connected(made) => task.connected(made),
            Event::Frame(tag, body) => task.frame(tag, body),
            Event::Broken(why) => task.broken(&why),
            Event::Tick => task.tick().await,
        }
        task.send().await;
    }
}

impl Task {
    fn command(&mut self, command: Command) {
        match command {
            Command::Join { client, login, sender } => self.members.join(client, login, sender),
            Command::Leave { client } => self.leave(client),
            Command::Change { client, changes, fence } => {
                let pending = Pending { client, changes, fence, since: Instant::now() };
                if matches!(self.link, Link::Up { .. }) {
                    return self.ask_change(pending);
                }
                if pending.changes.is_empty() {
                    // What is lost meanwhile is told when the connection is back.
                    return self.tell(client, Item::Fence(fence));
                }
                self.held.push_back(pending);
                if matches!(self.link, Link::Down) {
                    self.connect();
                }
            }
        }
    }

    /// Asks the server for a client's change. A channel that others listen on already is asked for as well: the answer
    /// is the fence.
    fn ask_change(&mut self, pending: Pending) {
        let channels = pending.changes.iter().filter_map(|change| match change {
            Change::Listen(channel) => Some(channel),
            Change::ListenAlone | Change::Unlisten(_) | Change::UnlistenAll => None,
        });
        let sql = said("LISTEN", channels);
        self.ask(&sql, Asked::Change(pending));
    }

    fn ask(&mut self, sql: &str, asked: Asked) {
        if let Link::Up { connection, .. } = &mut self.link {
            write::query(&mut connection.outbox, sql);
            self.asked.push_back((Instant::now(), asked));
        }
    }

    fn leave(&mut self, client: u64) {
        let left = self.members.leave(client);
        self.held.retain(|pending| pending.client != client);
        self.unlisten(left);
    }

    /// Channels that nobody listens on any more, unless somebody is about to.
    fn unlisten(&mut self, mut channels: Vec<Channel>) {
        let wanted = |channel: &Channel| {
            self.members.listens_on(channel)
                || self.asked.iter().any(|(_, asked)| match asked {
                    Asked::Change(pending) => pending.changes.contains(&Change::Listen(channel.clone())),
                    Asked::ListenAgain | Asked::Nothing => false,
                })
        };
        channels.retain(|channel| !wanted(channel));
        if !channels.is_empty() {
            self.ask(&said("UNLISTEN", channels.iter()), Asked::Nothing);
        }
    }

    fn tell(&mut self, client: u64, item: Item) {
        if !self.members.send(client, item) {
            self.give_up(client);
        }
    }

    /// Its mailbox closes.
    fn give_up(&mut self, client: u64) {
        tracing::warn!(client, "a client is too far behind with its notifications");
        self.leave(client);
    }

    fn frame(&mut self, tag: u8, body: BytesMut) {
        self.last_heard = Instant::now();
        match tag {
            backend::NOTIFICATION => match Notification::read(body.freeze()) {
                Ok(notification) => self.members.deliver(&notification).into_iter().for_each(|c| self.give_up(c)),
                Err(malformed) => self.broken(malformed.0),
            },
            backend::READY => {
                if let Some((_, asked)) = self.asked.pop_front() {
                    self.answered(asked);
                }
            }
            backend::ERROR => {
                let error = ServerError::read(&body).map_or_else(|m| m.0.to_owned(), |error| error.message);
                self.broken(&error);
            }
            _ => {}
        }
    }

    fn answered(&mut self, asked: Asked) {
        match asked {
            Asked::Change(Pending { client, changes, fence, .. }) => {
                let left = self.members.change(client, &changes);
                self.unlisten(left);
                self.tell(client, Item::Fence(fence));
            }
            Asked::ListenAgain => {
                self.attempts = 0;
                if std::mem::take(&mut self.lost) {
                    self.reach.reconnects().fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(database = %self.reach.cluster.database, "listening again; notifications may be lost");
                    self.members.tell_lost().into_iter().for_each(|client| self.give_up(client));
                }
            }
            Asked::Nothing => {}
        }
    }

    /// The connection is of no use any more: another one is made where anyone listens.
    fn broken(&mut self, why: &str) {
        tracing::warn!(database = %self.reach.cluster.database, why, "the connection that listens is lost");
        self.lost |= self.members.is_listening();
        let mut again = VecDeque::new();
        for (_, asked) in std::mem::take(&mut self.asked) {
            match asked {
                Asked::Change(pending) if pending.changes.is_empty() => {
                    self.tell(pending.client, Item::Fence(pending.fence));
                }
                Asked::Change(pending) => again.push_back(pending),
                Asked::ListenAgain | Asked::Nothing => {}
            }
        }
        again.append(&mut self.held);
        self.held = again;
        self.pause();
    }

    fn is_needed(&self) -> bool {
        self.members.is_listening() || !self.held.is_empty()
    }

    /// The first attempt comes at once, later ones further and further apart.
    fn pause(&mut self) {
        let first = self.reach.config.create_retry_interval;
        let doubled = u32::try_from(self.attempts).ok().and_then(|n| 1u32.checked_shl(n.saturating_sub(1)));
        let pause = match self.attempts {
            0 => Duration::ZERO,
            _ => first.saturating_mul(doubled.unwrap_or(u32::MAX)).min(MAX_PAUSE.max(first)),
        };
        self.link = Link::Pause(Box::pin(tokio::time::sleep(pause)));
    }

    fn connect(&mut self) {
        self.link = match self.members.login(self.attempts) {
            Some(login) if self.is_needed() => Link::Connecting(Box::pin(made(self.reach.clone(), login.clone()))),
            _ => Link::Down,
        };
        self.attempts += 1;
    }

    fn connected(&mut self, made: Result<(u16, Box<Connection>), String>) {
        match made {
            Ok((node, connection)) => {
                self.last_heard = Instant::now();
                self.link = Link::Up { node, connection };
                let sql = said("LISTEN", self.members.channels());
                self.ask(&sql, Asked::ListenAgain);
                std::mem::take(&mut self.held).into_iter().for_each(|pending| self.ask_change(pending));
            }
            Err(why) => {
                tracing::warn!(database = %self.reach.cluster.database, why, "cannot listen");
                self.pause();
                self.expire(&why);
            }
        }
    }

    /// Clients that have waited for their LISTEN long enough are told.
    fn expire(&mut self, why: &str) {
        let timeout = self.reach.config.acquire_timeout;
        let (expired, held) =
            std::mem::take(&mut self.held).into_iter().partition(|pending| pending.since.elapsed() >= timeout);
        self.held = held;
        let expired: VecDeque<Pending> = expired;
        for pending in expired {
            self.tell(pending.client, Item::Refused(why.to_owned()));
        }
    }

    async fn tick(&mut self) {
        let timeout = self.reach.config.connection_timeout.max(TICK);
        let Link::Up { node, connection } = &self.link else { return };
        let peer = connection.stream.peer();
        let primary = self.reach.cluster.primary();
        if primary.is_some_and(|primary| primary.index != *node || primary.has_left(peer)) {
            self.broken("another server is the primary now");
        } else if self.asked.front().is_some_and(|(since, _)| since.elapsed() > timeout)
            && self.last_heard.elapsed() > timeout
        {
            self.broken("it does not answer");
        } else if self.asked.is_empty() && !self.is_needed() {
            self.part().await;
        } else if self.asked.is_empty() && self.last_heard.elapsed() > SILENCE {
            self.ask("", Asked::Nothing);
        }
    }

    async fn part(&mut self) {
        if let Link::Up { connection, .. } = std::mem::replace(&mut self.link, Link::Down) {
            let _ = tokio::time::timeout(TICK, connection.terminate()).await;
        }
    }

    async fn send(&mut self) {
        let Link::Up { connection, .. } = &mut self.link else { return };
        if connection.outbox.is_empty() {
            return;
        }
        let sent = tokio::time::timeout(self.reach.config.connection_timeout, connection.send()).await;
        match sent.unwrap_or(Err(BackendError::Closed)) {
            Ok(()) => {}
            Err(error) => self.broken(&error.to_string()),
        }
    }
}

/// `LISTEN "a";LISTEN "b"`; nothing at all for no channel, which the server answers as well.
fn said<'a>(command: &str, channels: impl Iterator<Item = &'a Channel>) -> String {
    let mut sql = String::new();
    for channel in channels {
        // writing to a String cannot fail
        let _ = write!(sql, "{command} \"{}\";", channel.replace('"', "\"\""));
    }
    sql
}

/// A connection to the primary, ready to listen, and its node.
async fn made(reach: Reach, login: Login) -> Result<(u16, Box<Connection>), String> {
    let node = reach.cluster.primary().ok_or("no primary is known")?;
    let connecting = async {
        let _permit = node.connects.acquire().await;
        let timeout = reach.config.connection_timeout;
        let mut connection = connect::connect(&node.config, &reach.tls, &login, timeout).await?;
        connection.query(PREPARE).await?;
        Ok::<_, connect::ConnectFailure>(connection)
    };
    match tokio::time::timeout(reach.config.create_timeout, connecting).await {
        Ok(Ok(connection)) => Ok((node.index, Box::new(connection))),
        Ok(Err(failure)) => Err(failure.to_string()),
        Err(_) => Err("timed out while connecting".to_owned()),
    }
}
