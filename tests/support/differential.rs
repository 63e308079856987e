//! The same messages sent to Postgres and through pgweir must bring the same replies, to the byte, whatever other
//! clients do on the same connections in between.

use pgweir::demo::cluster::Cluster;

use super::wire::{Frame, Frames, Wire};
use super::{Builder, LIMIT, Pgweir, cluster};

/// Messages, and the tags of the replies owed for them.
#[derive(Debug, Clone)]
pub struct Step {
    pub frames: Frames,
    pub expected: &'static str,
}

pub fn step(frames: Frames, expected: &'static str) -> Step {
    Step { frames, expected }
}

/// What other clients do between two steps of a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// Nothing: the script pins its connection.
    None,
    /// One uses the script's connection, and its names for statements of its own.
    Intrude,
    /// They hold the script's last connection, so that it gets another: a pool of two.
    Rotate,
}

/// Postgres itself, and pgweir in several configurations in front of it.
pub struct Arena {
    postgres: &'static Cluster,
    proxies: Vec<(&'static str, Others, Pgweir)>,
}

impl Arena {
    pub fn new() -> Arena {
        let primary = || base().cluster(cluster(), &[]);
        let forwarding = primary().set("pool.max", 1).set("pool.unnamed_statements", "forward");
        let replicas = base().cluster(cluster(), &[1, 2]).set("pool.max", 2);
        let proxies = vec![
            ("a pool of one", Others::Intrude, primary().set("pool.max", 1).start()),
            ("a pool of two", Others::Rotate, primary().set("pool.max", 2).start()),
            ("few statements", Others::Intrude, forwarding.clone().set("pool.prepared_statements", 2).start()),
            ("unnamed forwarded", Others::Rotate, forwarding.set("pool.max", 2).start()),
            ("replicas", Others::Rotate, replicas.start()),
        ];
        Arena { postgres: cluster(), proxies }
    }

    /// With what they are called, and what others do in them.
    pub fn proxies(&self) -> &[(&'static str, Others, Pgweir)] {
        &self.proxies
    }

    /// SQL for all the scripts, on the primary itself.
    pub fn setup(&self, sql: &str) -> &Self {
        let primary = self.postgres.primary();
        primary.psql_in(pgweir::demo::sample::DATABASE, sql).unwrap();
        self.postgres.wait_replayed(LIMIT).unwrap();
        self
    }

    /// Plays the script at Postgres and through each pgweir; `reset` is run on the primary before each.
    pub fn same_after(&self, reset: &str, script: &[Step]) {
        self.play_all(reset, script, false, told);
    }

    pub fn same(&self, script: &[Step]) {
        self.play_all("", script, false, told);
    }

    /// The same, where tables are made anew, whose numbers a RowDescription tells.
    pub fn same_but_tables_after(&self, reset: &str, script: &[Step]) {
        self.play_all(reset, script, false, told_but_tables);
    }

    /// The same for a script that keeps its connection between its steps.
    pub fn same_but_tables_pinned(&self, script: &[Step]) {
        self.play_all("", script, true, told_but_tables);
    }

    /// For a script that keeps its connection between its steps.
    pub fn same_pinned(&self, script: &[Step]) {
        self.play_all("", script, true, told);
    }

    fn play_all(&self, reset: &str, script: &[Step], pinned: bool, told: fn(&[Frame]) -> Vec<Frame>) {
        let reset = || {
            if !reset.is_empty() {
                self.setup(reset);
            }
        };
        reset();
        let direct = play(self.postgres.primary().port(), Others::None, script);
        for (name, others, proxy) in &self.proxies {
            reset();
            let others = if pinned { Others::None } else { *others };
            let through = play(proxy.port(), others, script);
            for (at, (direct, through)) in direct.iter().zip(&through).enumerate() {
                assert_eq!(told(through), told(direct), "with {name}, step {at}: {:?}", script[at]);
            }
        }
    }
}

/// The replies, save which lines of Postgres's source an error names: pgweir's own Parse may meet it before the
/// client's Bind does.
fn told(replies: &[Frame]) -> Vec<Frame> {
    let mut replies = replies.to_vec();
    for frame in replies.iter_mut().filter(|f| matches!(f.tag, b'E' | b'N')) {
        let fields = frame.body.split(|&b| b == 0).filter(|f| !matches!(f.first(), Some(b'L' | b'R')));
        frame.body = fields.collect::<Vec<_>>().join(&0);
    }
    replies
}

/// The same, save which column of which table each column of a result is.
fn told_but_tables(replies: &[Frame]) -> Vec<Frame> {
    let mut replies = told(replies);
    for Frame { body, .. } in replies.iter_mut().filter(|frame| frame.tag == b'T') {
        let mut at = 2;
        while let Some(end) = body[at..].iter().position(|&b| b == 0) {
            body[at + end + 1..at + end + 7].fill(0);
            at += end + 19;
        }
    }
    replies
}

fn base() -> Builder {
    Pgweir::builder().set("pool.acquire_timeout", "10s")
}

/// Plays a script to its end, where nothing may be left over; the replies of each step.
pub fn play(port: u16, others: Others, script: &[Step]) -> Vec<Vec<Frame>> {
    let mut client = Wire::connect(port);
    let mut between = Between::new(others, port);
    let mut replies = Vec::new();
    for Step { frames, expected } in script {
        client.send(frames);
        let reply = client.expect(expected);
        let outside = matches!(reply.last(), Some(Frame { tag: b'Z', body }) if body == b"I");
        replies.push(reply);
        if outside {
            between.act();
        }
    }
    client.send(&Frames::new().query("SELECT 'end'"));
    assert_eq!(client.expect("TDCZ")[1].value(), "end");
    replies
}

/// The other clients.
struct Between {
    others: Others,
    idle: Option<Wire>,
    holding: Option<Wire>,
}

impl Between {
    fn new(others: Others, port: u16) -> Between {
        let connect = |wanted| (others == wanted || others == Others::Rotate).then(|| Wire::connect(port));
        Between { others, idle: connect(Others::Intrude), holding: connect(Others::Rotate) }
    }

    fn act(&mut self) {
        match self.others {
            Others::None => {}
            Others::Intrude => intrude(self.idle.as_mut().unwrap()),
            Others::Rotate => {
                let mut next = self.idle.take().unwrap();
                intrude(&mut next);
                // Takes the connection given back last; the other comes free.
                next.ask(&Frames::new().query("BEGIN; SAVEPOINT held"), "CCZ");
                let mut last = self.holding.replace(next).unwrap();
                last.query("ROLLBACK");
                self.idle = Some(last);
            }
        }
    }
}

/// What leaves a trace for the next client where connections are shared carelessly.
fn intrude(wire: &mut Wire) {
    let mut frames = Frames::new().query("SET pgweir_test.who = 'intruder'").parse("", "SELECT 'intruder'");
    for name in ["s", "s1", "s2"] {
        frames = frames.close(b'S', name).parse(name, "SELECT 'intruder'").bind("", name, &[]).execute("", 0);
    }
    wire.ask(&frames.sync(), "CZ1312DC312DC312DCZ");
}
