//! LISTEN for all clients of a database over one connection to its primary.
//!
//! A client's own LISTEN runs on the connection it has leased, for its errors and its place in the transaction; what it
//! brings about at commit is asked of the [`hub::Hub`]. The hub's task ([`task`]) listens on the union of all channels
//! and puts each notification in the [`mailbox::Mailbox`] of each client that listens on its channel.
//!
//! A *fence* is a round trip on the shared connection: Postgres signals the listeners of a notification before its
//! sender's COMMIT returns, and a backend reads its queue before each ReadyForQuery (`ProcessNotifyInterrupt`). So what
//! was committed before a fence was asked for lies in the mailbox ahead of it.

pub mod hub;
pub mod mailbox;
mod members;
mod task;

use bytes::Bytes;

use crate::error::Malformed;
use crate::session::channels::Channel;
use crate::wire::read;

/// A NotificationResponse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// Of the server process that ran NOTIFY.
    pub pid: i32,
    pub channel: Channel,
    /// The message's body, shared by all who get it.
    pub body: Bytes,
}

impl Notification {
    fn read(body: Bytes) -> Result<Notification, Malformed> {
        let (pid, channel) = read::notification(&body)?;
        Ok(Notification { pid, channel: String::from_utf8_lossy(channel).into(), body })
    }
}

/// What a client finds in its mailbox.
#[derive(Debug, Clone)]
pub enum Item {
    Notification(Notification),
    /// The answer to [`mailbox::Mailbox::fence`] or [`mailbox::Mailbox::change`] of this number.
    Fence(u64),
    /// The shared connection was lost and made again: notifications may be missing here.
    Lost,
    /// A LISTEN cannot be kept: the shared connection cannot be made, for this reason.
    Refused(String),
}
