//! The channels a client listens on: LISTEN and UNLISTEN take effect at commit, and are undone by ROLLBACK and by
//! ROLLBACK TO (`async.c`, `AtCommit_Notify` and `AtSubAbort_Notify`).

use std::collections::BTreeSet;
use std::sync::Arc;

/// A channel's name: unquoted, folded, and cut as Postgres cuts identifiers.
pub type Channel = Arc<str>;

/// One change of what is listened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Listen(Channel),
    /// A LISTEN that only the connection it ran on can serve.
    ListenAlone,
    Unlisten(Channel),
    UnlistenAll,
}

impl Change {
    /// Makes the change in a set of channels.
    pub fn make(&self, channels: &mut BTreeSet<Channel>) {
        match self {
            Change::Listen(channel) => drop(channels.insert(channel.clone())),
            Change::Unlisten(channel) => drop(channels.remove(channel)),
            Change::UnlistenAll => channels.clear(),
            Change::ListenAlone => {}
        }
    }
}

/// The channels of one client, through its transactions.
#[derive(Debug, Default)]
pub struct Channels {
    /// What is listened on, as far as commits have been taken.
    active: BTreeSet<Channel>,
    /// A connection of its own listens for the client, until it unlistens all.
    alone: bool,
    /// Changes of committed transactions that have not been taken yet.
    due: Vec<Change>,
    /// Changes of the open transaction.
    pending: Vec<Change>,
    /// How many of those there were at each savepoint.
    saved: Vec<(String, usize)>,
}

impl Channels {
    pub fn is_listening(&self) -> bool {
        !self.active.is_empty()
    }

    pub fn listens_on(&self, channel: &str) -> bool {
        self.active.contains(channel)
    }

    /// The open transaction has changed what is listened on.
    pub fn is_changing(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Nothing is listened on, and nothing of it under way.
    pub fn is_unused(&self) -> bool {
        let Channels { active, alone, due, pending, saved } = self;
        !alone && active.is_empty() && due.is_empty() && pending.is_empty() && saved.is_empty()
    }

    /// The client needs the connection that listens for it.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// Whether its connection listens, or may do so, whatever becomes of the transaction.
    pub fn set_alone(&mut self, alone: bool) {
        self.alone = alone;
    }

    pub fn change(&mut self, change: Change) {
        self.pending.push(change);
    }

    pub fn commit(&mut self) {
        for change in &self.pending {
            match change {
                Change::ListenAlone => self.alone = true,
                Change::UnlistenAll => self.alone = false,
                Change::Listen(_) | Change::Unlisten(_) => {}
            }
        }
        self.due.append(&mut self.pending);
        self.saved.clear();
    }

    pub fn rollback(&mut self) {
        self.pending.clear();
        self.saved.clear();
    }

    pub fn savepoint(&mut self, name: &str) {
        self.saved.push((name.to_owned(), self.pending.len()));
    }

    /// Undoes what came after the savepoint and keeps the savepoint.
    pub fn rollback_to(&mut self, name: &str) {
        if let Some(at) = self.position(name) {
            self.pending.truncate(self.saved[at].1);
            self.saved.truncate(at + 1);
        }
    }

    pub fn release(&mut self, name: &str) {
        if let Some(at) = self.position(name) {
            self.saved.truncate(at);
        }
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.saved.iter().rposition(|(known, _)| known == name)
    }

    /// The committed changes, in their order, that alter anything: from here on they hold.
    pub fn take(&mut self) -> Vec<Change> {
        let due = std::mem::take(&mut self.due);
        let alters = |change: &Change, active: &BTreeSet<Channel>| match change {
            Change::Listen(channel) => !active.contains(channel),
            Change::Unlisten(channel) => active.contains(channel),
            Change::UnlistenAll => !active.is_empty(),
            Change::ListenAlone => false,
        };
        due.into_iter()
            .filter(|change| {
                let alters = alters(change, &self.active);
                change.make(&mut self.active);
                alters
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(name: &str) -> Change {
        Change::Listen(name.into())
    }

    fn listen(channels: &mut Channels, name: &str) {
        channels.change(listening(name));
    }

    #[test]
    fn takes_effect_at_commit_in_order() {
        let mut channels = Channels::default();
        listen(&mut channels, "a");
        assert!(!channels.is_listening() && channels.take().is_empty());
        channels.change(Change::UnlistenAll);
        listen(&mut channels, "b");
        channels.commit();
        assert_eq!(channels.take(), [listening("a"), Change::UnlistenAll, listening("b")]);
        assert!(channels.listens_on("b") && !channels.listens_on("a"));
    }

    #[test]
    fn what_alters_nothing_is_not_passed_on() {
        let mut channels = Channels::default();
        for change in [Change::UnlistenAll, Change::Unlisten("a".into()), listening("a"), listening("a")] {
            channels.change(change);
        }
        channels.commit();
        assert_eq!(channels.take(), [listening("a")]);
    }

    #[test]
    fn a_connection_of_its_own_is_needed_until_a_committed_unlisten() {
        let mut channels = Channels::default();
        channels.change(Change::ListenAlone);
        assert!(!channels.is_alone());
        channels.commit();
        channels.change(Change::UnlistenAll);
        channels.rollback();
        assert!(channels.is_alone() && channels.take().is_empty());
        channels.change(Change::UnlistenAll);
        channels.commit();
        assert!(!channels.is_alone());
    }

    #[test]
    fn rollbacks_undo() {
        let mut channels = Channels::default();
        listen(&mut channels, "a");
        channels.rollback();
        listen(&mut channels, "b");
        channels.savepoint("s");
        listen(&mut channels, "c");
        channels.savepoint("t");
        listen(&mut channels, "d");
        channels.rollback_to("s");
        listen(&mut channels, "e");
        channels.release("s");
        channels.rollback_to("s");
        channels.commit();
        assert_eq!(channels.take(), [listening("b"), listening("e")]);
    }
}
