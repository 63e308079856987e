//! What a follower knows of its leader: which announcements it has, and up to where that makes it whole.

use std::collections::VecDeque;
use std::time::Instant;

use crate::cluster::changes::fleet::notice::{Announcement, Post};
use crate::cluster::changes::task::MAX_AWAITED;
use crate::cluster::changes::{Commit, Lsn};

/// An announcement is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap;

#[derive(Debug)]
pub struct Member {
    /// Of the last announcement that came, or that need not come.
    heard: u64,
    /// The last that the leader has posted.
    post: Post,
    /// All that was committed up to here has come, and is visible.
    reached: Lsn,
    /// Ends of the WAL with the instants at which they were asked for, oldest first.
    awaited: VecDeque<(Lsn, Instant)>,
}

impl Member {
    /// By the post that was read first. What was announced by then, the follower must see where it begins.
    pub fn new(post: Post) -> Member {
        Member { heard: post.number, post, reached: Lsn(0), awaited: VecDeque::new() }
    }

    /// # Errors
    /// Another must have come before.
    pub fn announced(&mut self, announcement: Announcement) -> Result<Option<Commit>, Gap> {
        match announcement.number.checked_sub(self.heard) {
            // From before it listened.
            None | Some(0) => Ok(None),
            Some(1) => {
                self.heard = announcement.number;
                Ok(Some(announcement.commit))
            }
            Some(_) => Err(Gap),
        }
    }

    /// The leader has posted this, and the WAL ended at `end`, or before, when both were asked for.
    pub fn posted(&mut self, post: Post, end: Lsn, asked: Instant) {
        self.post = post;
        if self.awaited.len() < MAX_AWAITED {
            self.awaited.push_back((end, asked));
        }
    }

    /// Something that the leader has posted to be announced is not here yet.
    pub fn lacks(&self) -> bool {
        self.heard < self.post.number
    }

    /// More has been written than the leader has told of.
    pub fn waits(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// Up to where no statement misses anything, and by when everything has been told, where it is more than before.
    pub fn settle(&mut self) -> (Option<Lsn>, Option<Instant>) {
        let is_more = !self.lacks() && self.post.settled > self.reached;
        if is_more {
            self.reached = self.post.settled;
        }
        let count = self.awaited.iter().take_while(|(end, _)| *end <= self.reached).count();
        let told = self.awaited.drain(..count).next_back().map(|(_, asked)| asked);
        (is_more.then_some(self.reached), told)
    }
}
