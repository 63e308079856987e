//! Who listens on what.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::backend::connect::Login;
use crate::notify::mailbox::Sender;
use crate::notify::{Item, Notification};
use crate::session::channels::{Change, Channel};

#[derive(Debug)]
struct Member {
    login: Login,
    sender: Sender,
    channels: BTreeSet<Channel>,
}

/// The clients of the hub, and for each channel those that listen on it.
#[derive(Debug, Default)]
pub(super) struct Members {
    members: BTreeMap<u64, Member>,
    listeners: HashMap<Channel, BTreeSet<u64>>,
}

impl Members {
    pub(super) fn join(&mut self, client: u64, login: Login, sender: Sender) {
        self.members.insert(client, Member { login, sender, channels: BTreeSet::new() });
    }

    /// Changes what a client listens on; the channels that nobody is left for.
    pub(super) fn change(&mut self, client: u64, changes: &[Change]) -> Vec<Channel> {
        let Some(member) = self.members.get_mut(&client) else { return Vec::new() };
        let before = member.channels.clone();
        changes.iter().for_each(|change| change.make(&mut member.channels));
        for channel in member.channels.difference(&before) {
            self.listeners.entry(channel.clone()).or_default().insert(client);
        }
        let left: Vec<_> = before.difference(&member.channels).cloned().collect();
        self.unlist(client, left)
    }

    /// Forgets a client; the channels that nobody is left for.
    pub(super) fn leave(&mut self, client: u64) -> Vec<Channel> {
        let Some(member) = self.members.remove(&client) else { return Vec::new() };
        self.unlist(client, member.channels.into_iter().collect())
    }

    fn unlist(&mut self, client: u64, mut channels: Vec<Channel>) -> Vec<Channel> {
        channels.retain(|channel| {
            let Some(listeners) = self.listeners.get_mut(channel) else { return true };
            listeners.remove(&client);
            let empty = listeners.is_empty();
            if empty {
                self.listeners.remove(channel);
            }
            empty
        });
        channels
    }

    /// Puts an item into a client's mailbox; false where the client is to be given up.
    pub(super) fn send(&self, client: u64, item: Item) -> bool {
        self.members.get(&client).is_none_or(|member| member.sender.send(item))
    }

    /// Puts a notification into the mailboxes of all who listen; those that are to be given up.
    pub(super) fn deliver(&self, notification: &Notification) -> Vec<u64> {
        let listeners = self.listeners.get(&notification.channel).into_iter().flatten();
        listeners.copied().filter(|client| !self.send(*client, Item::Notification(notification.clone()))).collect()
    }

    /// Tells all who listen that something may be lost; those that are to be given up.
    pub(super) fn tell_lost(&self) -> Vec<u64> {
        let listening = self.members.iter().filter(|(_, member)| !member.channels.is_empty());
        listening.map(|(client, _)| *client).filter(|client| !self.send(*client, Item::Lost)).collect()
    }

    pub(super) fn channels(&self) -> impl Iterator<Item = &Channel> {
        self.listeners.keys()
    }

    pub(super) fn listens_on(&self, channel: &Channel) -> bool {
        self.listeners.contains_key(channel)
    }

    pub(super) fn is_listening(&self) -> bool {
        !self.listeners.is_empty()
    }

    /// Some client's login, another one at each try.
    pub(super) fn login(&self, attempt: usize) -> Option<&Login> {
        let n = attempt.checked_rem(self.members.len())?;
        self.members.values().nth(n).map(|member| &member.login)
    }
}
