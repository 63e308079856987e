//! A fleet in small steps that come in any order: nothing is believed too early, and all comes to rest.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::cluster::changes::fleet::desk::{Desk, Said};
use crate::cluster::changes::fleet::member::{Gap, Member};
use crate::cluster::changes::fleet::notice::{Announcement, Post};
use crate::cluster::changes::{Changed, Commit, Lsn, Relation};
use crate::random::Random;

fn below(random: &mut Random, bound: u64) -> u64 {
    random.draw() % bound
}

/// The primary: where its WAL ends, its commits of rows and whether they are visible, and what the leader has posted.
#[derive(Default)]
struct Primary {
    end: u64,
    commits: Vec<(u64, bool)>,
    post: String,
}

impl Primary {
    fn visible(&self, up_to: u64) -> bool {
        self.commits.iter().all(|(end, visible)| *end > up_to || *visible)
    }
}

#[derive(Default)]
struct Leader {
    desk: Desk,
    /// It has read the WAL up to there.
    read: u64,
    said: Option<Said>,
}

impl Leader {
    fn read(&mut self, primary: &Primary, up_to: u64) {
        for (end, _) in primary.commits.iter().filter(|(end, _)| (self.read + 1..=up_to).contains(end)) {
            let changed = Changed::These(vec![Relation::Oid(*end as u32)]);
            self.desk.note(&Commit { end: Lsn(*end), changed });
        }
        self.read = up_to;
    }

    fn settle(&mut self, primary: &Primary) {
        let unseen = primary.commits.iter().find(|(end, visible)| !visible && *end <= self.read);
        self.desk.settle(Lsn(unseen.map_or(self.read, |(end, _)| end - 1)));
    }

    fn say(&mut self, primary: &mut Primary) {
        if self.desk.is_due() {
            let said = self.desk.say();
            primary.post = said.post.clone();
            self.said = Some(said);
        }
    }

    /// What it says is committed, and told to all who listen.
    fn said(&mut self, primary: &mut Primary, members: &mut [Follower]) {
        let Some(said) = self.said.take() else { return };
        primary.end += u64::from(!said.payloads.is_empty());
        for member in members {
            member.queue.extend(said.payloads.iter().cloned());
        }
        self.desk.is_said();
    }
}

/// From its LISTEN on.
#[derive(Default)]
struct Follower {
    queue: VecDeque<String>,
    member: Option<Member>,
    from: Option<u64>,
    told: HashSet<u64>,
    /// Ends of the WAL, in the order in which they were asked for.
    asked: Vec<u64>,
}

impl Follower {
    fn knows(&self, primary: &Primary, up_to: u64) -> bool {
        let from = self.from.unwrap_or(0);
        primary.commits.iter().all(|(end, _)| *end > up_to || *end <= from || self.told.contains(end))
    }

    fn hear(&mut self) -> Result<(), Gap> {
        let Some(payload) = self.queue.pop_front() else { return Ok(()) };
        let Some(member) = &mut self.member else { return Ok(()) };
        let commit = member.announced(Announcement::read(&payload).unwrap())?;
        let Some(Commit { changed: Changed::These(relations), .. }) = commit else { return Ok(()) };
        self.told.extend(relations.iter().map(|relation| match relation {
            Relation::Oid(oid) => u64::from(*oid),
            Relation::Named(_) => panic!(),
        }));
        Ok(())
    }

    fn ask(&mut self, primary: &Primary, start: Instant) {
        let Some(post) = Post::read(&primary.post) else { return };
        self.from.get_or_insert(primary.end);
        let member = self.member.get_or_insert_with(|| Member::new(post));
        let asked = start + Duration::from_secs(self.asked.len() as u64);
        self.asked.push(primary.end);
        member.posted(post, Lsn(primary.end), asked);
    }

    /// The end of the WAL up to which it takes itself for whole.
    fn settle(&mut self, primary: &Primary, start: Instant) -> Option<u64> {
        let (visible, told) = self.member.as_mut()?.settle();
        let told = told.map(|asked| self.asked[(asked - start).as_secs() as usize]);
        for up_to in visible.map(|end| end.0).into_iter().chain(told) {
            assert!(primary.visible(up_to), "{up_to} is not visible");
            assert!(self.knows(primary, up_to), "{up_to} has not been told");
        }
        told
    }
}

#[test]
fn nobody_believes_to_be_whole_who_is_not_and_all_comes_to_rest() {
    let start = Instant::now();
    let (mut whole, mut gaps) = (0, 0);
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let (mut primary, mut leader) = (Primary::default(), Leader::default());
        let mut members: Vec<Follower> = (0..3).map(|_| Follower::default()).collect();
        for _ in 0..400 {
            let one = below(&mut random, 3) as usize;
            match below(&mut random, 16) {
                0 | 1 => {
                    primary.end += 1;
                    primary.commits.push((primary.end, false));
                }
                2 => primary.end += 1,
                3..=5 => {
                    let hidden: Vec<_> = (0..primary.commits.len()).filter(|n| !primary.commits[*n].1).collect();
                    if !hidden.is_empty() {
                        primary.commits[hidden[below(&mut random, hidden.len() as u64) as usize]].1 = true;
                    }
                }
                6 | 7 => leader.read(&primary, leader.read + below(&mut random, primary.end - leader.read + 1)),
                8 => leader.settle(&primary),
                9 => leader.say(&mut primary),
                10 => leader.said(&mut primary, &mut members),
                11..=13 => members[one].ask(&primary, start),
                // One in a while is lost, or it begins anew.
                _ if below(&mut random, 40) == 0 => drop(members[one].queue.pop_front()),
                _ if below(&mut random, 40) == 0 => members[one] = Follower::default(),
                _ => {
                    if members[one].hear() == Err(Gap) {
                        gaps += 1;
                        members[one] = Follower::default();
                    }
                }
            }
            let told = members.iter_mut().filter_map(|member| member.settle(&primary, start));
            whole += told.count();
        }
        // Nobody writes any more.
        primary.commits.iter_mut().for_each(|commit| commit.1 = true);
        let mut rounds = 0;
        while leader.read < primary.end || leader.desk.is_due() || leader.said.is_some() {
            rounds += 1;
            assert!(rounds < 10, "it does not come to rest");
            leader.read(&primary, primary.end);
            leader.settle(&primary);
            leader.say(&mut primary);
            leader.said(&mut primary, &mut members);
        }
        for member in &mut members {
            while !member.queue.is_empty() {
                if member.hear() == Err(Gap) {
                    *member = Follower::default();
                }
            }
            member.ask(&primary, start);
            let told = member.settle(&primary, start);
            // What was lost last shows by the post alone.
            let lacks = member.member.as_ref().is_some_and(Member::lacks);
            assert!(lacks || told == Some(primary.end), "{told:?} of {}", primary.end);
        }
    }
    assert!(whole > 1_000 && gaps > 10, "{whole} {gaps}");
}

#[test]
fn a_leader_that_stands_still_is_believed_for_what_it_had_told() {
    let (mut primary, mut leader, start) = (Primary::default(), Leader::default(), Instant::now());
    leader.desk.beat(Lsn(1));
    leader.say(&mut primary);
    leader.said(&mut primary, &mut []);
    let mut member = Follower::default();
    member.ask(&primary, start);
    assert_eq!(member.settle(&primary, start), Some(0));
    primary.end += 1;
    for _ in 0..200 {
        member.ask(&primary, start);
        assert_eq!(member.settle(&primary, start), None);
    }
    leader.read(&primary, 1);
    leader.settle(&primary);
    leader.say(&mut primary);
    member.ask(&primary, start);
    assert_eq!(member.settle(&primary, start), Some(1));
}
