//! What a leader has to say, and when: one thing after another, what comes meanwhile together.

use crate::cluster::changes::fleet::notice::{Batch, Post};
use crate::cluster::changes::{Commit, Lsn};

/// To be said in one transaction. The post is read by others as soon as it is said, the payloads once that is committed: so
/// who reads a post before it listens has missed none but what the post counts.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    pub post: String,
    pub payloads: Vec<String>,
}

#[derive(Debug, Default)]
pub struct Desk {
    /// Not announced yet.
    batch: Batch,
    /// All that ends up to here has been announced.
    announced: Lsn,
    /// All that ends up to here has been told, and is visible.
    settled: Lsn,
    /// What is said just now: up to where it announces, if it does.
    saying: Option<Option<Lsn>>,
    post: Post,
    beat: bool,
    /// Nothing new, and yet a sign of life is due.
    beats: bool,
}

impl Desk {
    pub fn note(&mut self, commit: &Commit) {
        self.batch.add(commit);
    }

    pub fn settle(&mut self, settled: Lsn) {
        self.settled = self.settled.max(settled);
    }

    /// The primary has written up to there. Who has not posted that far shows that it is alive.
    pub fn beat(&mut self, end: Lsn) {
        self.beats = self.post.settled < end;
    }

    /// Who reads a post may rely on it once it has the announcements that it counts.
    fn postable(&self) -> Lsn {
        if self.batch.is_empty() { self.settled } else { self.settled.min(self.announced) }
    }

    pub fn is_saying(&self) -> bool {
        self.saying.is_some()
    }

    pub fn is_due(&self) -> bool {
        !self.is_saying() && (!self.batch.is_empty() || self.beats || self.postable() > self.post.settled)
    }

    pub fn say(&mut self) -> Said {
        let settled = self.postable().max(self.post.settled);
        let batch = std::mem::take(&mut self.batch);
        let payloads = if batch.is_empty() { Vec::new() } else { batch.payloads(self.post.number) };
        self.post = Post { number: self.post.number + payloads.len() as u64, settled };
        self.saying = Some((!payloads.is_empty()).then_some(batch.end));
        self.beat = !self.beat;
        self.beats = false;
        Said { post: self.post.write(self.beat), payloads }
    }

    /// It is committed; whether it was an announcement.
    pub fn is_said(&mut self) -> bool {
        let announced = self.saying.take().flatten();
        self.announced = self.announced.max(announced.unwrap_or_default());
        announced.is_some()
    }
}
