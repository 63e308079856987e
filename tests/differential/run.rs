//! Runs programs both ways, compares what came back, and shrinks what differs.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use pgweir::demo::cluster::SUPERUSER;
use pgweir::demo::sample;

use crate::program::{Group, Program, Until};
use crate::random::Random;
use crate::statements;
use crate::support::wire::{Frame, Frames, Login, Wire};
use crate::support::{self, Pgweir};

/// The clients of a pair; their schemas bear these names.
const CLIENTS: [&str; 2] = ["alpha", "beta"];

/// Enough to see what is wrong.
const MAX_DIFFERENCES: usize = 3;

/// Longer than any step takes, on a busy machine; a step that hangs is a difference.
const STUCK: Duration = Duration::from_secs(3);

/// The two ways to the same server: a database each, so that both start from the same rows.
pub struct Bench {
    pgweir: Pgweir,
    direct: String,
    replicas: bool,
    cached: bool,
}

/// One client's connection, how far its program is, and what came back for each group.
struct Client<'p> {
    wire: Wire,
    program: &'p Program,
    at: usize,
    seen: Seen,
    /// An error came since the last ReadyForQuery, and the server skips to Sync.
    skipping: bool,
}

/// What came back: for the login, then for each group; notifications apart, for they come when they come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    groups: Vec<Vec<String>>,
    notifications: Vec<String>,
}

impl Bench {
    pub fn start(name: &str, weights: &[i64], cached: bool) -> Bench {
        let (direct, proxied) = (format!("diff_direct_{name}"), format!("diff_pgweir_{name}"));
        let primary = support::cluster().primary();
        let role = "DO $$BEGIN CREATE ROLE diff_reader; GRANT diff_reader TO app; EXCEPTION WHEN duplicate_object \
                    OR unique_violation THEN END$$";
        primary.psql(role).unwrap();
        for database in [&direct, &proxied] {
            primary.psql(&format!("CREATE DATABASE {database} OWNER app")).unwrap();
        }
        support::cluster().wait_replayed(support::LIMIT).unwrap();
        // Three connections for two clients and the one that makes connections change hands: nobody ever waits.
        let pgweir = Pgweir::builder()
            .cluster(support::cluster(), weights)
            .set("pool.max", 3)
            .set("database.dbname", proxied.as_str())
            .set("cache.enabled", cached)
            .start();
        Bench { pgweir, direct, replicas: !weights.is_empty(), cached }
    }

    /// Answers that came from memory.
    pub fn hits(&self) -> u64 {
        self.pgweir.cache()["hits"].as_u64().unwrap()
    }

    /// Runs the pairs of programs of these seeds both ways; panics with the shrunk programs where they differ.
    pub fn compare(&self, seeds: impl IntoIterator<Item = u64>) {
        let differences = seeds.into_iter().filter_map(|seed| self.difference(seed));
        let differences: Vec<_> = differences.take(MAX_DIFFERENCES).collect();
        assert!(differences.is_empty(), "{}", differences.join("\n\n"));
    }

    /// What differs between the two ways, by the fewest groups that still do.
    fn difference(&self, seed: u64) -> Option<String> {
        let mut random = Random::new(seed);
        let mut programs: Vec<_> = CLIENTS.map(|who| Program::generate(&mut random, who)).into();
        if self.cached {
            programs.iter_mut().for_each(|program| program.read_again(&mut random));
        }
        let mut report = self.differs(seed, &programs)?;
        self.shrink(seed, programs, &mut report);
        Some(format!("seed {seed}: pgweir and Postgres differ\n{report}"))
    }

    /// Leaves out groups for as long as the difference stays.
    fn shrink(&self, seed: u64, mut programs: Vec<Program>, report: &mut String) {
        for client in 0..programs.len() {
            let mut at = 0;
            while at < programs[client].groups.len() {
                let mut fewer = programs.clone();
                fewer[client].groups.remove(at);
                match self.differs(seed, &fewer) {
                    Some(shorter) => (programs, *report) = (fewer, shorter),
                    None => at += 1,
                }
            }
        }
    }

    fn differs(&self, seed: u64, programs: &[Program]) -> Option<String> {
        let port = support::cluster().primary().port();
        let direct: Vec<_> = programs
            .iter()
            .zip(CLIENTS)
            .map(|(program, who)| {
                prepare(&Login { database: &self.direct, ..superuser() }, port, who);
                let mut client = Client::log_in(program, port, &self.direct);
                while client.step() {}
                client.finish(0)
            })
            .collect();
        let proxied = self.interleaved(seed, programs, &direct);
        let (direct, proxied): (Vec<_>, Vec<_>) = programs
            .iter()
            .zip(direct)
            .zip(proxied)
            .map(|((p, direct), proxied)| comparable(p, direct, proxied))
            .unzip();
        let report: Vec<_> = (0..programs.len())
            .filter(|&i| direct[i] != proxied[i])
            .map(|i| report(CLIENTS[i], &programs[i], &direct[i], &proxied[i]))
            .collect();
        if report.is_empty() {
            return None;
        }
        let others = (0..programs.len()).filter(|&i| direct[i] == proxied[i] && !programs[i].groups.is_empty());
        let others = others.map(|i| told(CLIENTS[i], &programs[i]));
        Some(report.into_iter().chain(others).collect::<Vec<_>>().join("\n"))
    }

    fn interleaved(&self, seed: u64, programs: &[Program], direct: &[Seen]) -> Vec<Seen> {
        let (port, mut random) = (self.pgweir.port(), Random::new(!seed));
        let database = sample::DATABASE;
        for who in CLIENTS {
            prepare(&Login { database, ..superuser() }, port, who);
        }
        if self.replicas {
            // A session sees its own writes at once, and these were others'.
            support::cluster().wait_replayed(support::LIMIT).unwrap();
        }
        let mut rotator = Wire::log_in(port, &Login { database, ..superuser() });
        if self.cached {
            // Not before the tables that were just made are known.
            self.pgweir.warm(&mut rotator, "SELECT count(*) FROM alpha.t, beta.t");
        }
        let mut holds = false;
        let mut clients: Vec<_> = programs.iter().map(|program| Client::log_in(program, port, database)).collect();
        loop {
            let unfinished: Vec<_> = (0..clients.len()).filter(|&i| !clients[i].is_finished()).collect();
            if unfinished.is_empty() {
                break;
            }
            if random.one_in(3) {
                // The connection used last is taken away, or put back on top.
                rotator.query(if holds { "COMMIT" } else { "BEGIN; SELECT 1" });
                holds = !holds;
            }
            clients[random.pick(&unfinished)].step();
        }
        clients.into_iter().zip(direct).map(|(client, direct)| client.finish(direct.notifications.len())).collect()
    }
}

/// What differs by what docs/compatibility.md says: from there on the two go different ways.
fn comparable(program: &Program, mut direct: Seen, mut proxied: Seen) -> (Seen, Seen) {
    // A statement that the connection does not have is prepared first: in a failed transaction it cannot be, and a fault
    // of its text comes before one of what is bound.
    let other_fault = |theirs: &str, ours: &str| theirs.starts_with("E C=08P01") && ours.starts_with("E ");
    // EXECUTE of what the protocol has prepared gives the columns of now, and a fault of its text comes before one of what
    // it is given.
    let of_now = |theirs: &str, ours: &str| {
        (theirs.starts_with("E C=0A000") && ours.starts_with("T "))
            || (theirs.starts_with("E C=42601")
                && theirs.contains("wrong number of parameters")
                && ours.starts_with("E "))
    };
    let by_name = |at: usize| at.checked_sub(1).is_some_and(|at| statements::is_by_name(&program.groups[at].says));
    // A READ ONLY block that is too late for the primary is to be run again.
    let is_again = |ours: &str| ours.starts_with("E C=40001") && ours.contains("this READ ONLY transaction runs on");
    let parts = |(at, (theirs, ours)): (usize, (&Vec<String>, &Vec<String>))| {
        let differing = theirs.iter().zip(ours).find(|(a, b)| a != b);
        differing.is_some_and(|(theirs, ours)| {
            ours.starts_with("E C=25P02")
                || other_fault(theirs, ours)
                || (by_name(at) && of_now(theirs, ours))
                || is_again(ours)
        })
    };
    if let Some(at) = direct.groups.iter().zip(&proxied.groups).enumerate().position(parts) {
        direct.groups.truncate(at);
        proxied.groups.truncate(at);
    }
    (direct, proxied)
}

fn superuser() -> Login<'static> {
    Login { user: SUPERUSER, password: support::cluster().primary().password(), ..Login::default() }
}

/// The client's own tables as at the start.
fn prepare(login: &Login<'_>, port: u16, who: &str) {
    let mut wire = Wire::log_in(port, login);
    wire.query("SET lock_timeout = '5s'");
    let frames = wire.query(&statements::schema(who));
    let activity = || {
        std::thread::sleep(STUCK);
        let sql = "SELECT pid, datname, usename, state, wait_event, left(query, 60), pg_blocking_pids(pid) FROM pg_stat_activity WHERE datname LIKE 'diff%'";
        support::cluster().primary().psql(sql).unwrap()
    };
    assert!(frames.iter().all(|f| f.tag != b'E'), "{frames:?}\n{}", activity());
}

impl<'p> Client<'p> {
    fn log_in(program: &'p Program, port: u16, database: &str) -> Client<'p> {
        let parameters: Vec<_> = program.startup.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let who = if program.superuser { superuser() } else { Login::default() };
        let wire = Wire::log_in(port, &Login { database, parameters: &parameters, ..who });
        wire.stream.set_read_timeout(Some(STUCK)).unwrap();
        let greeting = wire.greeting.iter().filter(|f| f.tag != b'K').map(plain).collect();
        let seen = Seen { groups: vec![greeting], notifications: Vec::new() };
        Client { wire, program, at: 0, seen, skipping: false }
    }

    fn is_finished(&self) -> bool {
        self.at >= self.program.groups.len()
    }

    /// Sends the next group and reads its answer; false where there is none.
    fn step(&mut self) -> bool {
        let Some(group) = self.program.groups.get(self.at) else { return false };
        self.at += 1;
        let answer = catch_unwind(AssertUnwindSafe(|| self.exchange(group)));
        self.seen.groups.push(answer.unwrap_or_else(|_| {
            // Nothing more can be had from it.
            self.at = self.program.groups.len();
            vec!["(stuck or closed)".to_owned()]
        }));
        true
    }

    fn exchange(&mut self, group: &Group) -> Vec<String> {
        let (mut readies, mut completed) = match group.until {
            Until::Ready(n) => (n, 0),
            Until::Flushed(n) => (0, n),
        };
        if self.skipping {
            // Behind an error a simple Query would be skipped too.
            self.wire.send(&Frames::new().sync());
            readies += 1;
        }
        self.wire.send(&group.frames);
        let mut frames = Vec::new();
        while readies > 0 || completed > 0 {
            let frame = self.wire.frame();
            match frame.tag {
                b'Z' => {
                    self.skipping = false;
                    readies -= 1;
                }
                b'E' => {
                    self.skipping = true;
                    completed = 0;
                }
                b'1' | b'2' | b'3' | b'n' | b'T' | b'C' | b'I' | b's' => completed = completed.saturating_sub(1),
                _ => {}
            }
            if frame.tag == b'A' {
                self.seen.notifications.push(plain(&frame));
            } else {
                frames.push(plain(&frame));
            }
        }
        // The order of reports that come together says nothing.
        let is_report = |frame: &String| frame.starts_with("S ");
        frames.chunk_by_mut(|a, b| is_report(a) && is_report(b)).for_each(<[String]>::sort);
        frames
    }

    /// What was seen, with as many notifications as there must be.
    fn finish(mut self, notifications: usize) -> Seen {
        while self.seen.notifications.len() < notifications {
            let next = catch_unwind(AssertUnwindSafe(|| self.wire.frame()));
            let Ok(frame) = next else { break };
            self.seen.notifications.push(plain(&frame));
        }
        self.seen
    }
}

/// A message as text, with what differs from run to run left out.
fn plain(frame: &Frame) -> String {
    let tag = char::from(frame.tag);
    match frame.tag {
        b'E' | b'N' => {
            let fields: BTreeMap<_, _> = "SVCMDHPpqWstcdn".bytes().map(|f| (char::from(f), frame.field(f))).collect();
            let fields = fields.into_iter().filter(|(_, text)| !text.is_empty());
            format!("{tag} {}", fields.map(|(f, text)| format!("{f}={text}")).collect::<Vec<_>>().join(" "))
        }
        // Behind the pid.
        b'A' => format!("A {}", frame.body[4..].escape_ascii()),
        b'T' => format!("T {}", columns(&frame.body)),
        b'D' => format!("D {}", values(&frame.body)),
        _ => format!("{tag} {}", frame.body.escape_ascii()),
    }
}

/// Names, types and formats of a RowDescription; tables are numbered anew in each database.
fn columns(body: &[u8]) -> String {
    let mut rest = &body[2..];
    let mut columns = Vec::new();
    while let Some(end) = rest.iter().position(|&b| b == 0) {
        let (name, tail) = rest.split_at(end);
        let (fixed, tail) = tail[1..].split_at(18);
        let of_table = fixed[..4] != [0; 4];
        columns.push(format!("{}({of_table}, {})", name.escape_ascii(), fixed[4..].escape_ascii()));
        rest = tail;
    }
    columns.join(" ")
}

/// The values of a DataRow.
fn values(body: &[u8]) -> String {
    let mut rest = &body[2..];
    let mut values = Vec::new();
    while let Some((length, tail)) = rest.split_at_checked(4) {
        let length = i32::from_be_bytes(length.try_into().unwrap());
        let (value, tail) = tail.split_at(usize::try_from(length).unwrap_or(0));
        values.push(if length < 0 { "NULL".to_owned() } else { value.escape_ascii().to_string() });
        rest = tail;
    }
    values.join("|")
}

fn told(who: &str, program: &Program) -> String {
    let groups = program.groups.iter().map(|group| format!("  {}", group.says));
    let head = format!("--- {who}, superuser {}, {:?}", program.superuser, program.startup);
    std::iter::once(head).chain(groups).collect::<Vec<_>>().join("\n")
}

/// The program with both answers where they differ.
fn report(who: &str, program: &Program, direct: &Seen, proxied: &Seen) -> String {
    let mut lines = vec![format!("--- {who}, superuser {}, {:?}", program.superuser, program.startup)];
    let login = std::iter::once("(login)");
    let nothing = Vec::new();
    for (at, says) in login.chain(program.groups.iter().map(|g| g.says.as_str())).enumerate() {
        lines.push(format!("  {}", says.replace(statements::PROBE, "PROBE")));
        let [ours, theirs] = [proxied, direct].map(|seen| seen.groups.get(at).unwrap_or(&nothing));
        if ours != theirs {
            let same = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
            lines.extend(theirs.iter().skip(same).map(|line| format!("      postgres  {line}")));
            lines.extend(ours.iter().skip(same).map(|line| format!("      pgweir    {line}")));
            lines.push("      …".to_owned());
            break;
        }
    }
    if direct.notifications != proxied.notifications {
        lines.push(format!(
            "  notifications: {:?}\n  through pgweir: {:?}",
            direct.notifications, proxied.notifications
        ));
    }
    lines.join("\n")
}
