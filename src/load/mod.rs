//! `pgweir load`: virtual users in stages, thresholds, and the search for the breaking point.
//!
//! The number of [`user`]s follows the [`stages`]; each takes turns of the [`script`] in a closed loop. A turn is all
//! statements of the script one after the other, and its latency is from the first byte sent to the last answer, the
//! thinking left out. What was measured is held against [`threshold`]s, and with `--find-breaking-point` [`search`]
//! raises the users until one breaks or throughput stops growing.

mod crowd;
mod progress;
mod record;
mod report;
mod script;
mod search;
mod stages;
mod target;
mod threshold;
mod user;

use std::fmt;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::cli::LoadArgs;
use crate::config::parse_duration;
use crate::demo::interrupt::Interrupt;
use crate::net::descriptors;
use crowd::Crowd;
use progress::Progress;
use record::Totals;
use report::{Measured, Report};
use script::Script;
use search::Search;
use stages::{Plan, Stage};
use target::{Environment, Target};
use threshold::Threshold;

/// How often the number of users is set anew while it changes.
const TICK: Duration = Duration::from_millis(50);
/// What turns under way have at the end before they are cut off.
const GRACE: Duration = Duration::from_secs(5);
/// The pause after each turn where none is given: the guide's.
const THINK: Duration = Duration::from_secs(1);
/// The script where none is given.
const SCRIPT: &str = "SELECT 1;";
/// Of a step of the search, where none is given.
const STEP: Duration = Duration::from_secs(10);
/// The part of a step in which its users come, and which is not measured.
const WARM_UP: u32 = 5;
/// Open files that are not users' sockets.
const OTHER_FILES: u64 = 64;

/// Why there was no load, or not to its end.
#[derive(Debug)]
pub enum Error {
    /// What was asked for makes no sense, or cannot be done here.
    Usage(String),
    Failed(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage(text) | Error::Failed(text) => f.write_str(text),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Failed(error.to_string())
    }
}

/// What the command line asks for, understood.
#[derive(Debug)]
struct Settings {
    target: Target,
    script: Script,
    think: Duration,
    /// None, where only the breaking point is asked for.
    stages: Vec<Stage>,
    thresholds: Vec<Threshold>,
    /// Seconds of a step of the search.
    search: Option<Duration>,
    json: bool,
}

impl Settings {
    fn read(args: &LoadArgs) -> Result<Settings, String> {
        let duration = |name, text: &Option<String>, usual| match text {
            Some(text) => parse_duration(text).map_err(|e| format!("{name} {text} {e}; expected a duration, as 500ms")),
            None => Ok(usual),
        };
        let script = match &args.script {
            Some(path) => {
                let name = path.display();
                let text = std::fs::read_to_string(path).map_err(|e| format!("--script {name}: {e}"))?;
                Script::parse(&text).map_err(|e| format!("--script {name}: {e}"))?
            }
            None => Script::parse(SCRIPT)?,
        };
        let thresholds = match &args.thresholds[..] {
            [] => threshold::USUAL.map(Threshold::parse).into_iter().collect::<Result<_, _>>()?,
            given => given.iter().map(|text| Threshold::parse(text)).collect::<Result<_, _>>()?,
        };
        let stages: Vec<Stage> = match &args.stages[..] {
            [] if args.find_breaking_point => Vec::new(),
            [] => stages::usual(),
            given => given.iter().map(|text| Stage::parse(text)).collect::<Result<_, _>>()?,
        };
        if !stages.is_empty() && stages.iter().all(|stage| stage.length.is_zero()) {
            return Err("--stage: all stages together last no time".into());
        }
        let step = duration("--step", &args.step, STEP)?;
        if step < Duration::from_millis(100) {
            return Err("--step: a step lasts at least 100ms".into());
        }
        Ok(Settings {
            target: Target::parse(&args.to, &Environment::read())?,
            script,
            think: duration("--think", &args.think, THINK)?,
            stages,
            thresholds,
            search: args.find_breaking_point.then_some(step),
            json: args.json,
        })
    }

    fn breaks(&self, measured: &Measured) -> Option<String> {
        let seconds = measured.length.as_secs_f64();
        let mut verdicts = self.thresholds.iter().map(|threshold| threshold.judge(&measured.totals, seconds));
        verdicts.find(|verdict| !verdict.kept).map(|verdict| verdict.to_string())
    }
}

/// Runs a load to its end, or to SIGINT or SIGTERM, and prints what it measured; a second signal ends it without that.
/// True: every threshold was kept in the stages.
///
/// # Errors
/// [`Error::Usage`] before anything is sent.
pub fn run(args: &LoadArgs) -> Result<bool, Error> {
    let settings = Settings::read(args).map_err(Error::Usage)?;
    let plan = Plan::new(0, settings.stages.clone());
    let limit = descriptors::raise_limit().map(|limit| limit.saturating_sub(OTHER_FILES));
    let most = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    if plan.most_users() > most {
        let wanted = plan.most_users();
        return Err(Error::Usage(format!(
            "{wanted} users need more open files than are allowed: ulimit -n says {most}"
        )));
    }
    let interrupt = Interrupt::install().map_err(|e| Error::Failed(e.to_string()))?;
    let crowd = Crowd::start(&settings.target, settings.script.clone(), settings.think, GRACE)?;
    let mut run = Run { settings: &settings, crowd, interrupt, progress: Progress::new(), interrupted: false };
    let stages = run.stages(&plan);
    let search = settings.search.map(|step| {
        // It goes on from the users of the stages, where those went well.
        let first = first_users(&settings, &plan, &stages);
        run.search(step, first, most.min(stages::MOST_USERS))
    });
    let report = run.finish(stages, search, &plan)?;
    say(&if settings.json { format!("{:#}\n", report.json()) } else { report.conclusion() });
    Ok(report.verdicts.iter().all(|verdict| verdict.kept))
}

fn first_users(settings: &Settings, plan: &Plan, stages: &[Measured]) -> usize {
    let total = total(stages, plan);
    if settings.breaks(&total).is_none() { plan.most_users() } else { 1 }
}

fn total(stages: &[Measured], plan: &Plan) -> Measured {
    let mut sum = Measured { users: (0, plan.most_users()), length: Duration::ZERO, totals: Totals::default() };
    for stage in stages {
        sum.length += stage.length;
        sum.totals.add(&stage.totals);
    }
    sum
}

/// A load under way.
struct Run<'a> {
    settings: &'a Settings,
    crowd: Crowd,
    interrupt: Interrupt,
    progress: Progress,
    interrupted: bool,
}

impl Run<'_> {
    /// Plays the stages; the last one's row is printed by [`Run::finish`], which waits for its turns, unless a search
    /// goes on.
    fn stages(&mut self, plan: &Plan) -> Vec<Measured> {
        let began = Instant::now();
        let (mut end, mut stages) = (Duration::ZERO, Vec::new());
        if !plan.stages().is_empty() {
            self.text(&format!("load on {}\n{}\n", self.settings.target.name(), report::head()));
        }
        for (at, stage) in plan.stages().iter().enumerate() {
            let stage_began = Instant::now();
            end += stage.length;
            self.wait(began, end, plan.length(), |elapsed| plan.users_at(elapsed));
            let measured = Measured { users: plan.ends(at), length: stage_began.elapsed(), totals: self.crowd.take() };
            stages.push(measured);
            if self.interrupted {
                break;
            }
            if at + 1 < plan.stages().len() || self.settings.search.is_some() {
                self.row(&report::stage_name(at, stage.length), &stages[at]);
            }
        }
        stages
    }

    /// Raises the users until something breaks.
    fn search(&mut self, step: Duration, first: usize, most: usize) -> (Vec<Measured>, Search) {
        let (mut search, mut steps) = (Search::new(first, most), Vec::new());
        if !self.interrupted {
            let target = self.settings.target.name();
            self.text(&format!("search for the breaking point of {target}\n{}\n", report::head()));
        }
        self.crowd.close();
        while let Some(users) = search.next().filter(|_| !self.interrupted) {
            // Those who leave finish their turns first: this step is not to be measured with their queue.
            self.crowd.set(users);
            self.wait_until(step.max(GRACE), |crowd| crowd.present() <= users);
            let (began, warm_up) = (Instant::now(), step / WARM_UP);
            self.wait(began, warm_up, step, |_| users);
            self.crowd.open();
            let measured_from = Instant::now();
            self.wait(began, step, step, |_| users);
            self.crowd.close();
            let (length, closed) = (measured_from.elapsed(), Instant::now());
            self.wait_until(step.max(GRACE), |crowd| crowd.under_way() == 0);
            if self.interrupted {
                break;
            }
            self.crowd.give_up(closed.elapsed());
            let measured = Measured { users: (users, users), length, totals: self.crowd.take() };
            search.tell(users, measured.throughput(), self.settings.breaks(&measured));
            self.row(&format!("step {}", steps.len() + 1), &measured);
            steps.push(measured);
        }
        (steps, search)
    }

    /// Until `end` of a plan that began then, or a signal; as many users as it says at each time.
    fn wait(&mut self, began: Instant, end: Duration, length: Duration, users: impl Fn(Duration) -> usize) {
        while !self.interrupted {
            let elapsed = began.elapsed();
            let Some(left) = end.checked_sub(elapsed).filter(|left| !left.is_zero()) else { return };
            let wanted = users(elapsed);
            self.crowd.set(wanted);
            let crowd = &self.crowd;
            self.progress.show(Instant::now(), || progress::line(elapsed, length, wanted, &crowd.look()));
            self.interrupted = self.interrupt.wait(left.min(TICK));
        }
    }

    /// So long at most, or to a signal; the users go on meanwhile.
    fn wait_until(&mut self, most: Duration, reached: impl Fn(&Crowd) -> bool) {
        let began = Instant::now();
        while !self.interrupted && began.elapsed() < most && !reached(&self.crowd) {
            self.interrupted = self.interrupt.wait(TICK);
        }
    }

    /// Ends the users, and sums up. The last stage is as long as its last turn took.
    fn finish(
        mut self,
        mut stages: Vec<Measured>,
        search: Option<(Vec<Measured>, Search)>,
        plan: &Plan,
    ) -> Result<Report, Error> {
        self.progress.clear();
        let ending = Instant::now();
        let rest = self.crowd.stop()?;
        if let Some(last) = stages.last_mut().filter(|_| search.is_none()) {
            last.totals.add(&rest);
            last.length += ending.elapsed();
        }
        if let (None, Some(last), false) = (&search, stages.last(), self.settings.json) {
            let at = stages.len() - 1;
            print_row(&report::stage_name(at, plan.stages()[at].length), last);
        }
        let total = total(&stages, plan);
        let seconds = total.length.as_secs_f64();
        let judged = self.settings.thresholds.iter().filter(|_| !stages.is_empty());
        let verdicts = judged.map(|threshold| threshold.judge(&total.totals, seconds)).collect();
        let target = self.settings.target.name();
        Ok(Report { target, stages, total, verdicts, search, interrupted: self.interrupted })
    }

    fn row(&mut self, name: &str, measured: &Measured) {
        self.progress.clear();
        if !self.settings.json {
            print_row(name, measured);
        }
    }

    fn text(&mut self, text: &str) {
        self.progress.clear();
        if !self.settings.json {
            say(text);
        }
    }
}

fn print_row(name: &str, measured: &Measured) {
    say(&format!("{}\n{}", report::row(name, measured), report::errors(&measured.totals)));
}

/// To standard output; when nobody reads any more, the exit code still tells.
fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
