//! Notifications on their way to the client.
//!
//! They are delivered as Postgres delivers them: at once to an idle session, otherwise when its transaction ends, ahead of
//! ReadyForQuery. A ReadyForQuery is held until what the transaction brought about is in effect: its LISTENs hold on the
//! shared connection, its own notifications have come back, and so have those that others sent before it.

use std::collections::VecDeque;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{BufMut, BytesMut};

use crate::config::PoolMode;
use crate::error::{Fault, Malformed, sqlstate};
use crate::frontend::batch::Batch;
use crate::frontend::session::{Leased, Session};
use crate::notify::mailbox::Mailbox;
use crate::notify::{Item, Notification};
use crate::session::channels::Change;
use crate::session::pins::Pin;
use crate::sql::{Effect, Facts};
use crate::wire::tag::backend;
use crate::wire::{read, scan, write};

/// A session's end of the shared connection.
#[derive(Debug)]
pub struct Subscription {
    mailbox: Mailbox,
    /// Taken out of the mailbox, and not on its way to the client yet.
    received: VecDeque<Item>,
    /// The fence that a ReadyForQuery is held for.
    awaited: Option<u64>,
    /// It is here: the ReadyForQuery may pass.
    passed: bool,
}

impl Subscription {
    /// The ReadyForQuery that comes now has been held; said once.
    pub(super) fn resumes(&mut self) -> bool {
        std::mem::take(&mut self.passed)
    }

    fn has(&self, fence: u64) -> bool {
        // Fences come last: whoever waits for one adds nothing behind it.
        self.received.iter().rev().any(|item| matches!(item, Item::Fence(n) if *n == fence))
    }
}

impl Session {
    /// Before a text with LISTEN is sent: the connection it runs on will listen as well. And before the COMMIT of one.
    pub(super) fn note_listen(&mut self, facts: &Facts, leased: &mut Leased) {
        let listens = facts.effects.iter().any(|effect| matches!(effect, Effect::Listen(_)));
        let commits = !facts.control.is_empty() && self.channels.is_changing();
        // A NOTIFY on its way behind it is not to run before the shared connection listens.
        self.settling |= (listens || commits) && self.mode != PoolMode::Session;
        if !listens {
            return;
        }
        leased.suspect = true;
        if is_mixed(facts) {
            self.channels.set_alone(true);
        }
        if self.needs_own_listener(facts, leased) {
            self.pins.insert(Pin::Listen);
        }
    }

    /// The shared connection cannot listen for the client: it has another encoding, or it is not known what of a string
    /// with its own COMMITs has held where a later statement of it fails.
    pub(super) fn needs_own_listener(&self, facts: &Facts, leased: &Leased) -> bool {
        let listens = facts.effects.iter().any(|effect| matches!(effect, Effect::Listen(_)));
        let status = || leased.lease.statuses.iter().find(|(name, _)| **name == *"client_encoding");
        listens && (is_mixed(facts) || status().is_some_and(|(_, encoding)| **encoding != *"UTF8"))
    }

    /// LISTEN or UNLISTEN has succeeded: it takes effect at commit.
    pub(super) fn change_channels(&mut self, change: Change) {
        let alone = self.mode == PoolMode::Session || self.pins.contains(Pin::Listen);
        self.channels.change(match change {
            Change::Listen(_) if alone => Change::ListenAlone,
            change => change,
        });
    }

    /// At the ReadyForQuery that ends a transaction: whether it is to be held.
    pub(super) fn holds_ready(&mut self) -> bool {
        match self.failed {
            true => self.channels.rollback(),
            false => self.channels.commit(),
        }
        match self.channels.is_alone() {
            true => self.pins.insert(Pin::Listen),
            false => self.pins.remove(Pin::Listen),
        }
        // Whatever the transaction was: what others notified of before it began is to be there.
        let listening = self.channels.is_listening();
        let changes = self.channels.take();
        if changes.is_empty() && !listening {
            return false;
        }
        if !changes.is_empty() {
            // What was committed before is not notified of: the session's reads must see it.
            self.seen.on_primary(Instant::now());
        }
        let subscription = self.subscription.get_or_insert_with(|| {
            let mailbox = self.database.hub.join(self.client.id, self.login.clone());
            Box::new(Subscription { mailbox, received: VecDeque::new(), awaited: None, passed: false })
        });
        subscription.awaited = Some(subscription.mailbox.change(changes));
        true
    }

    /// A ReadyForQuery is being held: what stands before it waits too.
    pub(super) fn is_holding(&self) -> bool {
        self.subscription.as_ref().is_some_and(|subscription| subscription.awaited.is_some())
    }

    /// Takes what is in the mailbox; true where a held ReadyForQuery may pass now.
    ///
    /// # Errors
    /// The client is to be told why it cannot go on.
    pub(super) fn poll_mailbox(&mut self, cx: &mut Context<'_>) -> Result<bool, Fault> {
        let Some(subscription) = &mut self.subscription else { return Ok(false) };
        while let Poll::Ready(item) = subscription.mailbox.poll_next(cx) {
            subscription.received.push_back(item.ok_or_else(too_far_behind)?);
        }
        let Some(fence) = subscription.awaited else { return Ok(false) };
        if let Some(Item::Refused(why)) = subscription.received.back() {
            return Err(cannot_listen(why));
        }
        if !subscription.has(fence) {
            return Ok(false);
        }
        subscription.awaited = None;
        subscription.passed = true;
        self.deliver();
        Ok(true)
    }

    /// Between transactions what has been received goes to a client that has read all so far; true where that was
    /// something.
    pub(super) fn deliver_if_idle(&mut self) -> bool {
        if self.subscription.is_some() && self.is_at_rest() {
            self.deliver();
        }
        !self.outbox.is_empty()
    }

    /// Puts what has been received into the outbox.
    pub(super) fn deliver(&mut self) {
        let Some(subscription) = &mut self.subscription else { return };
        let own = self.leased.as_ref().filter(|leased| leased.fenced).map(|leased| leased.lease.identity.pid);
        for item in subscription.received.drain(..) {
            subscription.mailbox.delivered(&item);
            match item {
                Item::Notification(notification) if self.channels.listens_on(&notification.channel) => {
                    let pid = if own == Some(notification.pid) { self.client.pid } else { notification.pid };
                    say(&mut self.outbox, &notification, pid);
                    // What it tells of is to be seen by the reads that follow.
                    self.seen.on_primary(Instant::now());
                }
                Item::Lost => write::notice(&mut self.outbox, "WARNING", &lost()),
                Item::Notification(_) | Item::Fence(_) | Item::Refused(_) => {}
            }
        }
    }

    /// Before a client that listens runs anything but a read: what its server connection has notified of for earlier
    /// clients is delivered, so that what comes from there later is the client's own.
    ///
    /// # Errors
    /// The client is to be told why it cannot go on.
    pub(super) async fn fence_before(&mut self, batch: &Batch) -> Result<(), Fault> {
        if self.awaits_fence(batch)
            && let Some(subscription) = &mut self.subscription
        {
            let fence = subscription.mailbox.fence();
            while !subscription.has(fence) {
                let item = std::future::poll_fn(|cx| subscription.mailbox.poll_next(cx)).await;
                subscription.received.push_back(item.ok_or_else(too_far_behind)?);
            }
            self.deliver();
        }
        Ok(())
    }

    /// Whether [`Session::fence_before`] has anything to wait for.
    pub(super) fn awaits_fence(&self, batch: &Batch) -> bool {
        batch.may_write() && self.channels.is_listening()
    }

    /// A NotificationResponse on the client's own connection, at `at` in what it has sent; whether it is passed on. It
    /// is, unless the shared connection brings it: to a session that listens by itself, and of the transaction that
    /// itself began to listen.
    pub(super) fn pass_notification(&mut self, head: scan::Head, frame: &mut [u8]) -> Result<bool, Malformed> {
        debug_assert_eq!(head.tag, backend::NOTIFICATION);
        let (pid, channel) = read::notification(&frame[scan::HEADER..])?;
        let elsewhere = std::str::from_utf8(channel).is_ok_and(|channel| self.channels.listens_on(channel));
        if self.leased.as_ref().is_some_and(|leased| leased.lease.identity.pid == pid) {
            frame[scan::HEADER..scan::HEADER + 4].copy_from_slice(&self.client.pid.to_be_bytes());
        }
        Ok(!elsewhere)
    }
}

fn is_mixed(facts: &Facts) -> bool {
    facts.statements > 1 && !facts.control.is_empty()
}

fn say(out: &mut BytesMut, notification: &Notification, pid: i32) {
    write::frame(out, backend::NOTIFICATION, |body| {
        body.put_i32(pid);
        body.put_slice(notification.body.get(4..).unwrap_or_default());
    });
}

fn lost() -> Fault {
    Fault::error(sqlstate::WARNING, "notifications may have been lost")
        .with_detail("The server connection that listens for this client was lost and has been made again.")
}

fn too_far_behind() -> Fault {
    Fault::fatal(sqlstate::PROGRAM_LIMIT_EXCEEDED, "too many notifications are waiting for this client")
        .with_hint("A client that listens must keep reading, and must not stay in a transaction for long.")
}

fn cannot_listen(why: &str) -> Fault {
    Fault::fatal(sqlstate::CONNECTION_FAILURE, "no server connection can be made to listen on").with_detail(why)
}
