//! One change stream for a fleet of pgweirs before one database.
//!
//! Who gets the lock ([`seat`]) leads: it follows changes by a slot, announces them ([`announcer`]), and posts how far it has come.
//! The others follow ([`follower`]). What a follower promises is what a stream of its own would let it: it asks the
//! primary itself where the WAL ends, and has been told of everything up to there once the leader's post is as far. A leader
//! that stands still, for whatever reason, is therefore as good as none within the same time.
//!
//! Only changes are announced by NOTIFY, numbered, so that a missing one is noticed. Whoever sends false ones is not heard: the
//! server says which process an announcement is from. How far the leader is does not come by NOTIFY at all ([`notice::Post`]).

mod announcer;
mod desk;
mod follower;
mod member;
#[cfg(test)]
mod model;
mod notice;
mod seat;

use std::time::Duration;

use tokio::time::{Instant, sleep};

pub use announcer::{Announcer, Turn};

use crate::backend::connect::Login;
use crate::cluster::changes::fleet::follower::{End, Follower};
use crate::cluster::changes::fleet::seat::{Holder, Seat};
use crate::cluster::changes::stream::cause;
use crate::cluster::changes::task::{Follow, stream};
use crate::cluster::changes::{Cause, Event, Part};
use crate::cluster::node::Node;

/// Looks at who leads come so often while nobody can be followed.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Who has the lock has a stream by then, or others go on alone.
const BEGINNING: Duration = Duration::from_secs(30);

/// Who is alone looks for the fleet so often.
const REJOIN: Duration = Duration::from_secs(10);

/// Leads, follows, or goes alone, to the end of that.
pub async fn take_part(node: &Node, how: &Follow, login: &Login, tell: impl FnMut(Event)) -> Cause {
    part(node, how, login, tell).await.unwrap_or_else(|cause| cause)
}

async fn part(node: &Node, how: &Follow, login: &Login, mut tell: impl FnMut(Event)) -> Result<Cause, Cause> {
    let mut seat = seated(node, how, login).await?;
    let mut began = Instant::now();
    let why = loop {
        match looked(&mut seat).await? {
            None => {
                seat.unlisten().await?;
                tell(Event::Part(Part::Leader));
                return Ok(stream(node, how, login, Some(Announcer::new(seat)), tell).await);
            }
            Some(Holder::Nobody | Holder::Beginner) if began.elapsed() < BEGINNING => sleep(LOOK_AGAIN).await,
            Some(Holder::Nobody | Holder::Beginner) => break "the fleet's leader does not begin",
            Some(Holder::Other(why)) => break why,
            Some(Holder::Leader(leader)) => {
                tell(Event::Part(Part::Follower(leader.address)));
                tell(Event::Origin(seat.origin().await?));
                tell(Event::Publication(seat.publication().cloned()));
                let follower = Follower::new(seat, leader.backend.clone(), how).await?;
                match follower.run(&mut tell).await {
                    End::Altered => return Err(Cause::Altered),
                    End::Gone => return Err(Cause::Failed("the fleet's leader is gone".to_owned())),
                    End::Failed(error) => return Err(cause(error)),
                    End::Silent => tell(Event::Lost(Cause::Failed("the fleet's leader is silent".to_owned()))),
                }
                // It gives way to another, by the lock that ends with its connection.
                seat = seated(node, how, login).await?;
                if !seat.end(&leader.backend).await? {
                    break "the fleet's leader is silent, and cannot be ended";
                }
                began = Instant::now();
            }
        }
    };
    seat.unlisten().await?;
    tell(Event::Part(Part::Alone(why)));
    tokio::select! {
        cause = stream(node, how, login, None, tell) => Ok(cause),
        rejoins = rejoins(&mut seat) => rejoins.and(Err(Cause::Failed("the fleet can be joined again".to_owned()))),
    }
}

async fn seated(node: &Node, how: &Follow, login: &Login) -> Result<Seat, Cause> {
    let mut seat = Seat::open(node, how, login).await?;
    // Before the first look at what the leader posts: no announcement is missed then.
    seat.listen().await?;
    Ok(seat)
}

/// Who leads; `None`: this one, from now on.
async fn looked(seat: &mut Seat) -> Result<Option<Holder>, Cause> {
    if seat.lead().await? { Ok(None) } else { seat.holder().await.map(Some) }
}

/// Ends when the fleet's lead is free, or has been seen to be in good hands.
async fn rejoins(seat: &mut Seat) -> Result<(), Cause> {
    let mut last = None;
    loop {
        let holder = seat.holder().await?;
        let is_at_work = matches!(holder, Holder::Leader(_)) && last.as_ref().is_some_and(|last| *last != holder);
        if holder == Holder::Nobody || is_at_work {
            return Ok(());
        }
        last = Some(holder);
        sleep(REJOIN).await;
    }
}
