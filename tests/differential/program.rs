//! One client's program: groups of messages, each sent at once and answered before the next.

use crate::random::Random;
use crate::statements as sql;
use crate::support::wire::Frames;

/// When the answer to a group is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// So many ReadyForQuery.
    Ready(usize),
    /// So many completed messages, or an error: the group ends in Flush.
    Flushed(usize),
}

#[derive(Debug, Clone)]
pub struct Group {
    /// For people.
    pub says: String,
    pub frames: Frames,
    pub until: Until,
}

#[derive(Debug, Clone)]
pub struct Program {
    /// As whom it logs in.
    pub superuser: bool,
    pub startup: Vec<(&'static str, String)>,
    pub groups: Vec<Group>,
}

/// Names of protocol-level and SQL-level statements: some in common, for they share one namespace.
const NAMES: [&str; 4] = ["", "s1", "s2", "p1"];
/// Messages of a group that only prepares.
const PREPARED: usize = 3;
const PORTALS: [&str; 3] = ["", "c1", "c2"];

impl Program {
    /// The program of the client whose schema, roles and keys bear this name.
    pub fn generate(random: &mut Random, who: &str) -> Program {
        let mut startup = vec![("search_path", format!("{who}, public"))];
        if random.one_in(2) {
            startup.push(random.pick(&[
                ("application_name", "diff".to_owned()),
                ("options", "-c work_mem=3MB -c my.first=one".to_owned()),
                ("DateStyle", "German".to_owned()),
                ("extra_float_digits", "0".to_owned()),
            ]));
        }
        let superuser = random.one_in(4);
        let length = 8 + random.below(16);
        let mut maker = Maker { random, who, superuser };
        let groups = (0..length).flat_map(|_| maker.groups()).collect();
        Program { superuser, startup, groups }
    }
}

impl Program {
    /// The same, and behind each of its groups a read several times: what is kept of it answers the next.
    pub fn read_again(&mut self, random: &mut Random) {
        let again = |group: Group| {
            let text = random.pick(sql::READS);
            let reads = [simple(text), unnamed(text), simple(text), unnamed(text)];
            let is_at_rest = matches!(group.until, Until::Ready(_));
            std::iter::once(group).chain(reads.into_iter().filter(move |_| is_at_rest))
        };
        self.groups = std::mem::take(&mut self.groups).into_iter().flat_map(again).collect();
    }
}

struct Maker<'a> {
    random: &'a mut Random,
    who: &'a str,
    superuser: bool,
}

impl Maker<'_> {
    fn groups(&mut self) -> Vec<Group> {
        let group = self.group();
        // pgweir ends a segment in which the client only prepares (docs/compatibility.md).
        match group.until {
            Until::Flushed(PREPARED) => {
                let sync = Group { says: "Sync".to_owned(), frames: Frames::new().sync(), until: Until::Ready(1) };
                vec![group, sync]
            }
            _ => vec![group],
        }
    }

    fn group(&mut self) -> Group {
        match self.random.below(20) {
            0..=8 => {
                let text = self.text();
                simple(&text)
            }
            9..=12 => self.extended(),
            13 => self.several(),
            14 => self.pipeline(),
            15 => self.portal(),
            16 => self.flushed(),
            17 => self.altered(),
            18 => self.copy(),
            _ => self.probe(),
        }
    }

    fn text(&mut self) -> String {
        sql::statement(self.random, self.who, self.superuser)
    }

    /// What the client can see of its session.
    fn probe(&mut self) -> Group {
        match self.random.below(3) {
            0 => simple(sql::PROBE),
            1 => unnamed(sql::PROBE),
            _ => simple(&sql::show(self.random)),
        }
    }

    /// Several statements in one string.
    fn several(&mut self) -> Group {
        let count = 2 + self.random.below(3);
        let texts: Vec<_> = (0..count).map(|_| self.text_for_several()).collect();
        simple(&texts.join("; "))
    }

    /// Within one string a RESET, also by EXECUTE, shows the server's value, and names are taken for unchanged where it
    /// fails (docs/compatibility.md).
    fn text_for_several(&mut self) -> String {
        let suits = |text: &String| !sql::is_reset(text) && !sql::is_of_names(text) && !sql::is_by_name(text);
        std::iter::repeat_with(|| self.text()).find(suits).unwrap_or_default()
    }

    /// Messages of one statement, whole or in part: a Bind may name what is not there.
    fn extended(&mut self) -> Group {
        let (frames, says) = self.parts();
        Group { says: format!("{says}; Sync"), frames: frames.sync(), until: Until::Ready(1) }
    }

    fn parts(&mut self) -> (Frames, String) {
        let name = self.random.pick(&NAMES);
        let portal = self.random.pick(&PORTALS);
        let (text, values) = self.parameterized();
        let run = |frames: Frames, values: &[&str]| {
            frames.bind(portal, name, values).describe(b'P', portal).execute(portal, 0)
        };
        match self.random.below(8) {
            0 => (Frames::new().parse(name, &text), format!("Parse {name:?} {text}")),
            1 => (Frames::new().close(b'S', name), format!("Close {name:?}")),
            2 => (Frames::new().describe(b'S', name), format!("Describe {name:?}")),
            3 | 4 => (run(Frames::new(), &values), format!("Bind {portal:?} {name:?} {values:?}; Describe; Execute")),
            5 => {
                let frames = Frames::new().close(b'S', name).parse(name, &text).describe(b'S', name);
                (frames, format!("Close {name:?}; Parse {name:?} {text}; Describe"))
            }
            _ => {
                let frames = run(Frames::new().close(b'S', name).parse(name, &text), &values);
                (
                    frames,
                    format!("Close {name:?}; Parse {name:?} {text}; Bind {portal:?} {values:?}; Describe; Execute"),
                )
            }
        }
    }

    /// A text for Parse, and values that fit it.
    fn parameterized(&mut self) -> (String, Vec<&'static str>) {
        if self.random.one_in(2) {
            return (self.text(), Vec::new());
        }
        let (text, values) = self.random.pick(sql::PARAMETERIZED);
        (text.to_owned(), values.to_vec())
    }

    /// Several segments at once, perhaps with simple queries between.
    fn pipeline(&mut self) -> Group {
        let (mut all, mut told, mut readies) = (Frames::new(), Vec::new(), 0);
        for _ in 0..2 + self.random.below(4) {
            if self.random.one_in(6) {
                // Behind an error the server would skip it.
                let text = self.text();
                all = all.sync().query(&text);
                told.push(format!("Sync; Query {text}"));
                readies += 2;
                continue;
            }
            let (frames, says) = self.parts();
            all = all.then(&frames);
            let resets = sql::is_reset(&says);
            told.push(says);
            if resets || self.random.one_in(2) {
                all = all.sync();
                told.push("Sync".to_owned());
                readies += 1;
            }
        }
        Group { says: told.join("; ") + "; Sync", frames: all.sync(), until: Until::Ready(readies + 1) }
    }

    /// A portal read in pieces, within a transaction or beyond its end.
    fn portal(&mut self) -> Group {
        let portal = self.random.pick(&PORTALS);
        let limit = self.random.below(4) as i32;
        let mut frames = Frames::new();
        let mut told = Vec::new();
        let (inside, synced) = (self.random.one_in(2), self.random.one_in(2));
        // PostgreSQL 15 crashes where the Bind is refused in a failed transaction and the portal is that of the simple Query
        // which failed: `exec_execute_message` reads that one's statements, which are freed.
        let portal = if synced && portal.is_empty() { "c1" } else { portal };
        if inside {
            frames = frames.run("BEGIN", &[]);
            told.push("BEGIN".to_owned());
        }
        frames = frames.parse("", "SELECT id, v FROM t ORDER BY id").bind(portal, "", &[]).execute(portal, limit);
        told.push(format!("Parse SELECT; Bind {portal:?}; Execute {limit}"));
        let mut readies = 1;
        if synced {
            frames = frames.sync();
            told.push("Sync".to_owned());
            readies += 1;
        }
        frames = frames.execute(portal, 2).close(b'P', portal).execute(portal, 0).sync();
        told.push(format!("Execute {portal:?} 2; Close; Execute; Sync"));
        if inside {
            frames = frames.query("ROLLBACK");
            told.push("ROLLBACK".to_owned());
            readies += 1;
        }
        Group { says: told.join("; "), frames, until: Until::Ready(readies) }
    }

    /// Messages that are answered before the segment ends; the next groups belong to it.
    fn flushed(&mut self) -> Group {
        let name = self.random.pick(&NAMES);
        let (text, values) = self.parameterized();
        let frames = Frames::new().close(b'S', name).parse(name, &text).describe(b'S', name);
        let says = format!("Close {name:?}; Parse {name:?} {text}; Describe");
        // What follows a RESET in its segment shows the server's value (docs/compatibility.md).
        if self.random.one_in(2) || sql::is_reset(&text) {
            return Group { says: format!("{says}; Flush"), frames: frames.flush(), until: Until::Flushed(PREPARED) };
        }
        let frames = frames.bind("", name, &values).execute("", 0).flush();
        Group { says: format!("{says}; Bind {values:?}; Execute; Flush"), frames, until: Until::Flushed(5) }
    }

    /// A table changes its columns' types under a statement that is then prepared again.
    fn altered(&mut self) -> Group {
        let name = self.random.pick(&NAMES);
        let kind = self.random.pick(&["integer", "bigint", "text"]);
        let again = |frames: Frames| {
            let frames = frames.close(b'S', name).parse(name, "SELECT id, x FROM u ORDER BY id").describe(b'S', name);
            frames.bind("", name, &[]).execute("", 0).sync()
        };
        let alter = format!("ALTER TABLE u ALTER COLUMN x TYPE {kind} USING x::{kind}");
        let frames = again(again(Frames::new()).query(&alter));
        let says = format!("prepare {name:?}, SELECT FROM u; {alter}; the same again");
        Group { says, frames, until: Until::Ready(3) }
    }

    fn copy(&mut self) -> Group {
        let (text, data): (&str, &[u8]) = self.random.pick(&[
            ("COPY t (id, v) FROM STDIN", &b"101\tone\n102\ttwo\n"[..]),
            ("COPY t (id, v) FROM STDIN", &b"1\tdouble\n"[..]),
            ("COPY t (id, v) FROM STDIN (FORMAT csv)", &b"x,bad\n"[..]),
            ("COPY (SELECT id, v FROM t ORDER BY id) TO STDOUT", &b""[..]),
        ]);
        let shown = data.escape_ascii();
        let feed = |frames: Frames, ends_well: bool| match (data.is_empty(), ends_well) {
            (true, _) => frames,
            (_, true) => frames.copy_data(data).copy_done(),
            (_, false) => frames.copy_data(data).copy_fail("no more"),
        };
        let ends_well = !self.random.one_in(4);
        let end = if ends_well { "CopyDone" } else { "CopyFail" };
        if self.random.one_in(2) {
            let frames = feed(Frames::new().query(text), ends_well);
            return Group { says: format!("{text} {shown} {end}"), frames, until: Until::Ready(1) };
        }
        let frames = feed(Frames::new().run(text, &[]), ends_well).sync();
        Group { says: format!("extended {text} {shown} {end}; Sync"), frames, until: Until::Ready(1) }
    }
}

fn simple(text: &str) -> Group {
    Group { says: text.to_owned(), frames: Frames::new().query(text), until: Until::Ready(1) }
}

fn unnamed(text: &str) -> Group {
    let frames = Frames::new().parse("", text).bind("", "", &[]).describe(b'P', "").execute("", 0).sync();
    Group { says: format!("extended {text}"), frames, until: Until::Ready(1) }
}
