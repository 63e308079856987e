//! The demo's load: several pgbench processes, as an application's parts would be.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::cluster::{HOST, Programs, Scratch, end, living};
use super::error::Error;
use super::sample::{self, Script};

const RESTART_AFTER: Duration = Duration::from_secs(1);
const END_LIMIT: Duration = Duration::from_secs(2);

/// One pgbench process.
#[derive(Debug)]
struct Stream {
    name: &'static str,
    /// pgbench's `-M`.
    protocol: &'static str,
    clients: u32,
    /// Scripts a second over all clients.
    rate: f64,
    /// With pgbench's weights.
    scripts: &'static [(Script, u32)],
}

/// Modest, so that the demo runs on a laptop's two cores.
const STREAMS: &[Stream] = &[
    Stream {
        name: "pages",
        protocol: "simple",
        clients: 6,
        rate: 120.0,
        scripts: &[(sample::RECENT, 6), (sample::PROFILE, 3), (sample::HISTORY, 1)],
    },
    Stream {
        name: "api",
        protocol: "prepared",
        clients: 6,
        rate: 180.0,
        scripts: &[(sample::RECENT, 4), (sample::PROFILE, 4), (sample::HISTORY, 2)],
    },
    Stream {
        name: "writes",
        protocol: "extended",
        clients: 2,
        rate: 20.0,
        scripts: &[(sample::EVALUATE, 3), (sample::RENAME, 1)],
    },
    Stream {
        name: "reports",
        protocol: "simple",
        clients: 2,
        rate: 0.5,
        scripts: &[(sample::REPORT, 1), (sample::WAIT, 1)],
    },
];

/// The running load; ends with its value.
#[derive(Debug)]
pub struct Load<'a> {
    programs: &'a Programs,
    scratch: &'a Scratch,
    port: u16,
    running: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    stream: &'static Stream,
    child: Option<Child>,
    ended: Option<Instant>,
    restarts: u32,
}

impl<'a> Load<'a> {
    /// Starts all streams against pgweir at `port` of 127.0.0.1.
    ///
    /// # Errors
    /// When pgbench is missing or a script cannot be written.
    pub fn start(programs: &'a Programs, scratch: &'a Scratch, port: u16) -> Result<Self, Error> {
        let mut load = Load { programs, scratch, port, running: Vec::new() };
        for stream in STREAMS {
            let child = Some(load.spawn(stream)?);
            load.running.push(Running { stream, child, ended: None, restarts: 0 });
        }
        Ok(load)
    }

    /// Starts again what ended: pgbench gives up a client at its first error, for example when a server is killed to
    /// see what happens.
    ///
    /// # Errors
    /// When pgbench cannot be started.
    pub fn tend(&mut self, now: Instant) -> Result<(), Error> {
        for index in 0..self.running.len() {
            let running = &mut self.running[index];
            if living(&mut running.child).is_some() {
                continue;
            }
            let ended = *running.ended.get_or_insert(now);
            if now.duration_since(ended) < RESTART_AFTER {
                continue;
            }
            let child = self.spawn(self.running[index].stream)?;
            let running = &mut self.running[index];
            *running =
                Running { stream: running.stream, child: Some(child), ended: None, restarts: running.restarts + 1 };
        }
        Ok(())
    }

    /// How often streams ended and were started again.
    pub fn restarts(&self) -> u32 {
        self.running.iter().map(|running| running.restarts).sum()
    }

    fn spawn(&self, stream: &Stream) -> Result<Child, Error> {
        let mut command = self.programs.client("pgbench")?;
        let (clients, rate) = (stream.clients.to_string(), stream.rate.to_string());
        command.args(["-n", "-h", HOST, "-p", &self.port.to_string(), "-U", sample::USER]);
        command.args(["-M", stream.protocol, "-c", &clients, "-j", "1", "-R", &rate, "-T", "10000000"]);
        for (script, weight) in stream.scripts {
            command.arg("-f").arg(format!("{}@{weight}", self.script(script)?.display()));
        }
        let log = File::create(self.scratch.path().join(format!("load-{}.log", stream.name)));
        let log = log.map_err(Error::io("cannot make pgbench's log"))?;
        let stdout = log.try_clone().map_err(Error::io("cannot share pgbench's log"))?;
        command.arg(sample::DATABASE).env("PGPASSWORD", sample::PASSWORD).stdout(stdout).stderr(log);
        let child = command.process_group(0).spawn().map_err(Error::io("cannot start pgbench"))?;
        self.scratch.watch(&format!("load-{}", stream.name), child.id())?;
        Ok(child)
    }

    fn script(&self, script: &Script) -> Result<PathBuf, Error> {
        let path = self.scratch.path().join(format!("{}.sql", script.name));
        fs::write(&path, script.text).map_err(Error::io("cannot write a script"))?;
        Ok(path)
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        for running in &mut self.running {
            if !end(&mut running.child, Signal::TERM, END_LIMIT) {
                end(&mut running.child, Signal::KILL, END_LIMIT);
            }
        }
    }
}
