//! What a fleet's leader says, and how: announcements of changes, by NOTIFY, and how far it has come, as its application_name.

use std::collections::HashSet;

use crate::cluster::changes::{Changed, Commit, Lsn, MAX_RELATIONS, Relation};
use crate::error::Malformed;
use crate::sql::Name;

/// What a leader is called by; another version of what is said here is another number.
const TITLE: &str = "pgweir fleet 1 ";

/// Postgres takes less than 8000 bytes, in the database's encoding, which may need more of them than ours.
const MAX_PAYLOAD: usize = 4_000;

/// How far the leader has come. It stands in `pg_stat_activity`, which nobody but its backend can write to, and saying it
/// writes no WAL: a system at rest comes to rest. Cut off at 63 bytes there, more than it can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Post {
    /// Of the last announcement that may have been made.
    pub number: u64,
    /// Whatever was committed up to here has been announced by then, and is visible.
    pub settled: Lsn,
}

impl Post {
    /// `beat` differs from that of the last one: it is alive.
    pub fn write(self, beat: bool) -> String {
        format!("{TITLE}{:x} {:x} {}", self.number, self.settled.0, u8::from(beat))
    }

    /// `None`: it is none, or one that another version has written.
    pub fn read(text: &str) -> Option<Post> {
        let mut parts = text.strip_prefix(TITLE)?.split(' ').map(|part| u64::from_str_radix(part, 16).ok());
        let (number, settled) = (parts.next()??, parts.next()??);
        parts.next()??;
        parts.next().is_none().then_some(Post { number, settled: Lsn(settled) })
    }
}

/// Commits that are announced together, as one.
#[derive(Debug, Default)]
pub struct Batch {
    /// Where the last of them ends.
    pub end: Lsn,
    relations: HashSet<Relation>,
    any: bool,
    /// One of them shows nothing.
    empty: bool,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.relations.is_empty() && !self.any && !self.empty
    }

    pub fn add(&mut self, commit: &Commit) {
        self.end = commit.end;
        self.empty |= commit.is_empty();
        match &commit.changed {
            Changed::These(relations) if !self.any => {
                self.any = relations.iter().any(is_lossy);
                self.relations.extend(relations.iter().cloned());
            }
            Changed::These(_) => {}
            Changed::Any => self.any = true,
        }
        self.any |= self.relations.len() > MAX_RELATIONS;
        if self.any {
            self.relations = HashSet::new();
        }
    }

    /// The payloads of announcements, numbered on from `last`.
    pub fn payloads(&self, last: u64) -> Vec<String> {
        let head = |n: usize| format!("{:x} {:x} ", last + n as u64, self.end.0);
        if self.any {
            return vec![head(1) + "*"];
        }
        // What shows nothing stands first, and for itself.
        let mut payloads = vec![head(1)];
        if self.empty && !self.relations.is_empty() {
            payloads.push(head(2));
        }
        for relation in &self.relations {
            let text = written(relation);
            if payloads.last().is_none_or(|payload| payload.len() + text.len() > MAX_PAYLOAD) {
                payloads.push(head(payloads.len() + 1));
            }
            payloads.last_mut().into_iter().for_each(|payload| payload.push_str(&text));
        }
        payloads
    }
}

/// Its name is no UTF-8, and would not come back as it was.
fn is_lossy(relation: &Relation) -> bool {
    let is_lossy = |name: &str| name.contains(char::REPLACEMENT_CHARACTER);
    match relation {
        Relation::Named(Name { schema, name }) => is_lossy(name) || schema.as_deref().is_some_and(is_lossy),
        Relation::Oid(_) => false,
    }
}

/// `#oid;`, or both names behind their lengths.
fn written(relation: &Relation) -> String {
    match relation {
        Relation::Oid(oid) => format!("#{oid};"),
        Relation::Named(Name { schema, name }) => {
            let schema = schema.as_deref().unwrap_or_default();
            format!("{}.{};{schema}{name}", schema.len(), name.len())
        }
    }
}

/// One announcement: these have changed, by commits of which the last ends there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    pub number: u64,
    pub commit: Commit,
}

impl Announcement {
    /// # Errors
    /// It is none, or one that another version has written.
    pub fn read(payload: &str) -> Result<Announcement, Malformed> {
        const BAD: Malformed = Malformed("an announcement that cannot be read");
        let mut parts = payload.splitn(3, ' ');
        let mut hex = || u64::from_str_radix(parts.next()?, 16).ok();
        let (number, end) = (hex().ok_or(BAD)?, Lsn(hex().ok_or(BAD)?));
        let mut rest = parts.next().ok_or(BAD)?;
        let changed = match rest {
            "*" => Changed::Any,
            _ => {
                let mut relations = Vec::new();
                while !rest.is_empty() {
                    let (relation, behind) = relation(rest).ok_or(BAD)?;
                    relations.push(relation);
                    rest = behind;
                }
                Changed::These(relations)
            }
        };
        Ok(Announcement { number, commit: Commit { end, changed } })
    }
}

/// The first relation, and what is behind it.
fn relation(text: &str) -> Option<(Relation, &str)> {
    let (head, rest) = text.split_once(';')?;
    if let Some(oid) = head.strip_prefix('#') {
        return Some((Relation::Oid(oid.parse().ok()?), rest));
    }
    let (schema, name) = head.split_once('.')?;
    let (schema, rest) = rest.split_at_checked(schema.parse().ok()?)?;
    let (name, rest) = rest.split_at_checked(name.parse().ok()?)?;
    let schema = (!schema.is_empty()).then(|| schema.to_owned());
    Some((Relation::Named(Name { schema, name: name.to_owned() }), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(schema: &str, name: &str) -> Relation {
        Relation::Named(Name { schema: Some(schema.into()), name: name.into() })
    }

    fn batch(relations: &[Relation]) -> Batch {
        let mut batch = Batch::default();
        batch.add(&Commit { end: Lsn(0x1f), changed: Changed::These(relations.to_vec()) });
        batch
    }

    fn read(payloads: &[String]) -> Vec<Announcement> {
        payloads.iter().map(|payload| Announcement::read(payload).unwrap()).collect()
    }

    #[test]
    fn a_post_comes_back_and_fits() {
        let post = Post { number: u64::MAX, settled: Lsn::MAX };
        assert!(post.write(true).len() < 64, "{}", post.write(true).len());
        for post in [post, Post::default(), Post { number: 10, settled: Lsn(0x2_0000_0010) }] {
            assert_eq!(Post::read(&post.write(false)), Some(post));
            assert_ne!(post.write(false), post.write(true));
        }
        let texts = ["", "pgweir changes", "pgweir fleet 2 1 1 0", "pgweir fleet 1 1 1", "pgweir fleet 1 1 x 0"];
        for text in texts {
            assert_eq!(Post::read(text), None, "{text}");
        }
        assert_eq!(Post::read("pgweir fleet 1 1 1 0 more"), None);
    }

    #[test]
    fn relations_come_back_whatever_they_are_called() {
        let relations = [named("public", "a b;c.d'\\"), named("s\u{1}", "\n#7;*"), named("Ä", "ß"), Relation::Oid(7)];
        let announcements = read(&batch(&relations).payloads(9));
        assert_eq!(announcements.len(), 1);
        assert_eq!((announcements[0].number, announcements[0].commit.end), (10, Lsn(0x1f)));
        let Changed::These(mut came) = announcements[0].commit.changed.clone() else { panic!() };
        came.sort_by_key(|relation| format!("{relation:?}"));
        let mut sent = relations.to_vec();
        sent.sort_by_key(|relation| format!("{relation:?}"));
        assert_eq!(came, sent);
    }

    #[test]
    fn many_relations_are_announced_in_parts_and_too_many_as_any() {
        let long = |n: usize| named(&"s".repeat(63), &format!("{n:063}"));
        let relations: Vec<_> = (0..MAX_RELATIONS).map(long).collect();
        let payloads = batch(&relations).payloads(0);
        assert!(payloads.iter().all(|payload| payload.len() < 8_000));
        let announcements = read(&payloads);
        let numbers: Vec<_> = announcements.iter().map(|announcement| announcement.number).collect();
        assert_eq!(numbers, (1..=payloads.len() as u64).collect::<Vec<_>>());
        let of = |a: &Announcement| match &a.commit.changed {
            Changed::These(relations) => relations.len(),
            Changed::Any => panic!(),
        };
        assert_eq!(announcements.iter().map(of).sum::<usize>(), MAX_RELATIONS);

        let mut batch = batch(&relations);
        batch.add(&Commit { end: Lsn(0x20), changed: Changed::These(vec![named("one", "more")]) });
        batch.add(&Commit { end: Lsn(0x21), changed: Changed::These(vec![named("and", "another")]) });
        assert_eq!(batch.payloads(0), ["1 21 *"]);
    }

    #[test]
    fn a_commit_that_shows_nothing_is_announced_for_itself() {
        let mut batch = batch(&[]);
        assert!(!batch.is_empty());
        assert_eq!(batch.payloads(0), ["1 1f "]);
        batch.add(&Commit { end: Lsn(0x20), changed: Changed::These(vec![Relation::Oid(7)]) });
        let announcements = read(&batch.payloads(0));
        assert!(announcements[0].commit.is_empty() && !announcements[1].commit.is_empty());
        assert_eq!(announcements.len(), 2);
    }

    #[test]
    fn a_name_that_is_no_text_is_any() {
        assert_eq!(batch(&[named("public", "a\u{fffd}")]).payloads(0), ["1 1f *"]);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let texts =
            ["", "1", "1 2", "x 2 *", "1 2 #7", "1 2 #x;", "1 2 1.9;ab", "1 2 1.1;", "1 2 nonsense", "1 2 1.1;é"];
        for text in texts {
            assert!(Announcement::read(text).is_err(), "{text}");
        }
    }
}
