//! Who is told of changes by a leader, and looks after how far that one is.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::backend::connection::{BackendError, Connection, ServerError};
use crate::cluster::changes::fleet::member::Member;
use crate::cluster::changes::fleet::notice::{Announcement, Post};
use crate::cluster::changes::fleet::seat::{Backend, Seat};
use crate::cluster::changes::task::{Follow, SILENCE, TICK, end_of_record, silence};
use crate::cluster::changes::{Cause, Event, Lsn, Urge, publication};
use crate::error::Malformed;
use crate::wire::read::{self, Reader};
use crate::wire::tag::backend;
use crate::wire::write;

/// The pause before the leader's post is read again while it is behind; doubled up to [`TICK`].
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// An announcement that the leader has posted is here sooner.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why there is no following any more.
#[derive(Debug)]
pub enum End {
    /// The leader's connection is no more, or what it says cannot be understood.
    Gone,
    /// The leader does not go on.
    Silent,
    /// The publication is not any more what the leader began with.
    Altered,
    /// Announcements are missing, or the follower's own connection has failed.
    Failed(BackendError),
}

impl From<BackendError> for End {
    fn from(error: BackendError) -> End {
        End::Failed(error)
    }
}

impl From<Malformed> for End {
    fn from(malformed: Malformed) -> End {
        End::Failed(malformed.into())
    }
}

#[derive(Debug)]
pub struct Follower {
    connection: Connection,
    leader: Backend,
    question: String,
    /// Of the publication.
    state: Option<u64>,
    /// Once it has seen what the leader posts: from then on it is told of all changes.
    member: Option<Member>,
    asked: Option<Instant>,
    /// The leader is there, by the answer that is under way.
    is_seen: bool,
    pause: Duration,
    again: Instant,
    urge: Urge,
    /// Somebody waits, or something has changed, since it last asked.
    hurried: bool,
    /// What the leader last posted, and since when it stands although there is more.
    last: (String, Instant),
    /// Since when it lacks an announcement.
    lacks: Option<Instant>,
}

impl Follower {
    /// `seat` listens already.
    ///
    /// # Errors
    /// Its connection is of no use any more.
    pub async fn new(mut seat: Seat, leader: Backend, how: &Follow) -> Result<Follower, Cause> {
        // The post first: what is announced by then is in the WAL before the end that is told with it.
        let columns = "pg_catalog.pg_current_wal_insert_lsn(), application_name";
        let from = format!(
            " FROM pg_catalog.pg_stat_get_activity({}) WHERE usesysid = {} AND backend_start::text = '{}'",
            leader.pid,
            seat.role(),
            leader.started
        );
        let question = seat.question(columns, &from, how.publication.as_deref()).await?;
        Ok(Follower {
            state: seat.publication().map(|publication| publication.state),
            connection: seat.into_connection(),
            leader,
            question,
            member: None,
            asked: None,
            is_seen: false,
            pause: LOOK_AGAIN,
            again: Instant::now(),
            urge: how.urge.clone(),
            hurried: false,
            last: (String::new(), Instant::now()),
            lacks: None,
        })
    }

    pub async fn run(mut self, mut tell: impl FnMut(Event)) -> End {
        loop {
            let urge = self.urge.clone();
            let deadline = self.asked.map(|asked| asked + SILENCE);
            let done = tokio::select! {
                frame = self.connection.receive() => match frame {
                    Ok((tag, body)) => self.take(tag, &body, &mut tell),
                    Err(error) => Err(error.into()),
                },
                () = urge.notified(), if !self.hurried => {
                    self.hurry();
                    Ok(())
                }
                () = sleep_until(self.again), if self.asked.is_none() => self.ask().await,
                () = sleep_until(deadline.unwrap_or(self.again)), if deadline.is_some() => Err(silence().into()),
            };
            if let Err(end) = done {
                return end;
            }
            self.settle(&mut tell);
        }
    }

    /// There is something to look for.
    fn hurry(&mut self) {
        self.hurried = true;
        self.again = self.again.min(Instant::now() + LOOK_AGAIN);
    }

    async fn ask(&mut self) -> Result<(), End> {
        self.hurried = false;
        self.is_seen = false;
        self.asked = Some(Instant::now());
        write::query(&mut self.connection.outbox, &self.question);
        Ok(self.connection.send().await?)
    }

    fn take(&mut self, tag: u8, body: &[u8], tell: &mut impl FnMut(Event)) -> Result<(), End> {
        match tag {
            backend::NOTIFICATION => self.notified(body, tell)?,
            backend::DATA_ROW => self.posted(body, tell)?,
            backend::ERROR => return Err(BackendError::Server(ServerError::read(body)?).into()),
            backend::READY if self.is_seen => return self.answered(),
            backend::READY => return Err(End::Gone),
            _ => {}
        }
        Ok(())
    }

    /// Whatever had been announced by the time of the question came before this (`ProcessNotifyInterrupt`), or all but.
    fn answered(&mut self) -> Result<(), End> {
        let now = Instant::now();
        self.asked = None;
        let (wait, next) = match () {
            () if self.hurried => (LOOK_AGAIN, LOOK_AGAIN * 2),
            () if self.member.as_ref().is_some_and(Member::waits) => (self.pause, (self.pause * 2).min(TICK)),
            () => (TICK, LOOK_AGAIN),
        };
        (self.again, self.pause) = (now + wait, next);
        self.lacks = if self.member.as_ref().is_some_and(Member::lacks) { self.lacks.or(Some(now)) } else { None };
        if self.lacks.is_some_and(|since| now - since > PATIENCE) {
            return Err(gap());
        }
        if now - self.last.1 > SILENCE { Err(End::Silent) } else { Ok(()) }
    }

    fn notified(&mut self, body: &[u8], tell: &mut impl FnMut(Event)) -> Result<(), End> {
        let (pid, channel) = read::notification(body)?;
        // Anybody may send on any channel.
        if pid != self.leader.pid {
            return Ok(());
        }
        // What came before the first post is counted in it.
        let Some(member) = &mut self.member else { return Ok(()) };
        let payload = Reader::new(&body[size_of::<i32>() + channel.len() + 1..]).str()?;
        if let Some(commit) = member.announced(Announcement::read(payload)?).map_err(|_| gap())? {
            tell(Event::Commit(commit));
            self.hurry();
        }
        Ok(())
    }

    fn posted(&mut self, row: &[u8], tell: &mut impl FnMut(Event)) -> Result<(), End> {
        const BAD: Malformed = Malformed("the leader's post and the end of the WAL");
        let mut r = Reader::new(row);
        let columns = r.i16()?;
        let mut text = || {
            let length = usize::try_from(r.i32()?).unwrap_or(0);
            std::str::from_utf8(r.bytes(length)?).map_err(|_| BAD)
        };
        let (end, name) = (text()?.parse::<Lsn>().map_err(|()| BAD)?, text()?);
        let state = if columns > 2 { publication::state(text()?) } else { None };
        if state != self.state {
            return Err(End::Altered);
        }
        let (post, end) = (Post::read(name).ok_or(End::Gone)?, end_of_record(end));
        let asked = self.asked.ok_or(BAD)?;
        self.is_seen = true;
        let member = self.member.get_or_insert_with(|| {
            tell(Event::Whole { from: end });
            Member::new(post)
        });
        member.posted(post, end, asked.into_std());
        if self.last.0 != name || end <= post.settled {
            self.last = (name.to_owned(), Instant::now());
        }
        Ok(())
    }

    fn settle(&mut self, tell: &mut impl FnMut(Event)) {
        let (visible, told) = self.member.as_mut().map(Member::settle).unwrap_or_default();
        visible.map(Event::Visible).into_iter().for_each(&mut *tell);
        told.map(Event::Told).into_iter().for_each(&mut *tell);
    }
}

fn gap() -> End {
    Malformed("an announcement is missing").into()
}
