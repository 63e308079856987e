//! One client's notifications on their way from the hub to its session.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::sync::mpsc;

use crate::notify::Item;
use crate::notify::hub::Command;
use crate::session::channels::Change;

/// Bytes that may wait for one client; one that is further behind is given up.
pub const MAX_WAITING: usize = 4 * 1024 * 1024;

/// What an entry costs beside its bytes.
const ENTRY: usize = 128;

/// The hub's end.
#[derive(Debug)]
pub(super) struct Sender {
    items: mpsc::UnboundedSender<Item>,
    waiting: Arc<AtomicUsize>,
}

impl Sender {
    /// False where the client is too far behind, or gone.
    pub(super) fn send(&self, item: Item) -> bool {
        let size = size(&item);
        self.waiting.fetch_add(size, Ordering::Relaxed) + size <= MAX_WAITING && self.items.send(item).is_ok()
    }
}

/// The session's end. Dropping it tells the hub that the client is gone.
#[derive(Debug)]
pub struct Mailbox {
    client: u64,
    items: mpsc::UnboundedReceiver<Item>,
    waiting: Arc<AtomicUsize>,
    hub: mpsc::UnboundedSender<Command>,
    fences: u64,
}

impl Mailbox {
    pub(super) fn new(client: u64, hub: mpsc::UnboundedSender<Command>) -> (Mailbox, Sender) {
        let (sender, items) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        (Mailbox { client, items, waiting: waiting.clone(), hub, fences: 0 }, Sender { items: sender, waiting })
    }

    /// Asks for changes of what is listened on: they hold as soon as the fence of the number returned is here.
    pub fn change(&mut self, changes: Vec<Change>) -> u64 {
        self.fences += 1;
        // A hub that is gone has closed this mailbox, which its reader sees.
        let _ = self.hub.send(Command::Change { client: self.client, changes, fence: self.fences });
        self.fences
    }

    /// Asks for a fence; its number.
    pub fn fence(&mut self) -> u64 {
        self.change(Vec::new())
    }

    /// The next item; `None`: the hub has given this client up, for it is too far behind.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        self.items.poll_recv(cx)
    }

    /// An item is on its way to the client.
    pub fn delivered(&self, item: &Item) {
        self.waiting.fetch_sub(size(item), Ordering::Relaxed);
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        let _ = self.hub.send(Command::Leave { client: self.client });
    }
}

fn size(item: &Item) -> usize {
    match item {
        Item::Notification(notification) => notification.body.len() + ENTRY,
        Item::Fence(_) | Item::Lost | Item::Refused(_) => ENTRY,
    }
}
