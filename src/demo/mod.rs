//! `pgweir demo`: a throw-away cluster, sample data, a load, and pgweir in between, shown live.
//!
//! [`cluster`] is also what the integration tests run against.

pub mod error;

pub mod cluster;
pub mod http;
pub mod sample;
pub mod screen;

pub(crate) mod interrupt;
mod load;
mod proxy;

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use cluster::Cluster;
use error::Error;
use interrupt::Interrupt;
use load::Load;
use proxy::{Ports, Proxy, Reserved, WEIGHTS, slow_log};

const SCREEN_INTERVAL: Duration = Duration::from_secs(1);
const LINE_INTERVAL: Duration = Duration::from_secs(5);
const REPLAY_LIMIT: Duration = Duration::from_secs(60);
/// Cursor to the top left, then erase to the end (ECMA-48: CUP, ED).
const CLEAR: &str = "\x1b[H\x1b[J";

/// The command line's options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Leave the cluster running at the end.
    pub keep: bool,
    /// Where pgweir listens; `None`: 6432, or a free port if that is taken.
    pub port: Option<u16>,
}

/// Runs the demo until SIGINT or SIGTERM, then removes everything (except a cluster to keep).
///
/// # Errors
/// [`Error::Missing`] if PostgreSQL or pgbench is not installed; [`Error::Failed`] if a part does not start or ends.
pub fn run(options: Options) -> Result<(), Error> {
    let interrupt = Interrupt::install()?;
    let reserved = Reserved::choose(options.port)?;
    for surprise in reserved.ports.surprises(options.port) {
        say(&surprise)?;
    }
    say("starting a primary and three replicas …")?;
    let cluster = Cluster::builder().replicas(WEIGHTS.len()).start()?;
    if !interrupt.wait(Duration::ZERO) {
        say("making sample data …")?;
        sample::install(cluster.primary())?;
        cluster.wait_replayed(REPLAY_LIMIT)?;
        say("starting pgweir and a load …")?;
        serve(&cluster, reserved, &interrupt)?;
    }
    if options.keep { keep(cluster) } else { say("removing everything …") }
}

/// pgweir and the load, until a signal.
fn serve(cluster: &Cluster, reserved: Reserved, interrupt: &Interrupt) -> Result<(), Error> {
    let ports = reserved.ports;
    let mut proxy = Proxy::start(cluster, reserved)?;
    let mut load = Load::start(cluster.programs(), cluster.scratch(), ports.sql)?;
    let addresses = addresses(cluster, &proxy);
    let live = io::stdout().is_terminal();
    if !live {
        say(&addresses)?;
    }
    loop {
        proxy.check()?;
        load.tend(Instant::now())?;
        let reading = proxy.read();
        let restarts = match load.restarts() {
            0 => String::new(),
            count => format!("load restarted after errors: {count}\n"),
        };
        if live {
            say(&format!("{CLEAR}{addresses}\n{}\n{restarts}Ctrl-C ends the demo.", reading.screen()))?;
        } else {
            say(&format!("{}  {}", reading.line(), restarts.trim_end()))?;
        }
        if interrupt.wait(if live { SCREEN_INTERVAL } else { LINE_INTERVAL }) {
            return Ok(());
        }
    }
}

fn addresses(cluster: &Cluster, proxy: &Proxy) -> String {
    let Ports { sql, admin } = proxy.ports();
    let (user, password, database) = (sample::USER, sample::PASSWORD, sample::DATABASE);
    let url = format!("postgresql://{user}:{password}@{}:{sql}", cluster::HOST);
    let http = format!("http://{}:{admin}", cluster::HOST);
    format!(
        "\
psql '{url}/{database}'          as an application
psql '{url}/pgweir' -c 'SHOW POOLS'    the admin console
{http}/                      the dashboard
curl {http}/stats            also /nodes /statements /slow /metrics
slow-query log   {slow}
configuration    {config}
pgweir's log     {log}
",
        slow = slow_log(cluster.scratch().path()).display(),
        config = proxy.config().display(),
        log = proxy.log().display(),
    )
}

fn keep(cluster: Cluster) -> Result<(), Error> {
    let mut text = String::from("the cluster stays:\n");
    for server in cluster.servers() {
        text += &format!("{:<10} {}\n", server.name(), server.url(sample::DATABASE));
    }
    let folder = cluster.scratch().path().display().to_string();
    text += &format!(
        "\
in front of it again:  pgweir run --config {folder}/pgweir.toml
to end it:             for d in {folder}/*/postmaster.pid; do kill -INT $(head -n 1 $d); done; sleep 2; rm -r {folder}"
    );
    let said = say(&text);
    cluster.keep();
    said
}

/// As `println!`, without its panic when nobody reads any more.
fn say(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(Error::io("cannot print"))
}
