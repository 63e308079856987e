//! The virtual users, over as many threads as the machine has processors.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::record::Totals;
use super::script::Script;
use super::target::Target;
use super::user::{self, Crew, Present};

/// All users. What they do is counted until it is taken.
#[derive(Debug)]
pub struct Crowd {
    threads: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    crew: Arc<Crew>,
    wanted: mpsc::UnboundedSender<usize>,
    running: JoinHandle<()>,
}

impl Crowd {
    /// Starts the threads, without a user yet. At the end turns under way have `grace` to finish.
    ///
    /// # Errors
    /// The system gives no thread, or no randomness.
    pub fn start(target: &Target, script: Script, think: Duration, grace: Duration) -> io::Result<Crowd> {
        let script = Arc::new(script);
        let count = thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..count).map(|_| {
            let crew = Arc::new(Crew::new(target.clone(), script.clone(), think));
            let (wanted, receiver) = mpsc::unbounded_channel();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (own, seed) = (crew.clone(), draw()?);
            let tend = move || runtime.block_on(tend(own, receiver, seed, grace));
            let running = thread::Builder::new().name("load".into()).spawn(tend)?;
            Ok(Thread { crew, wanted, running })
        });
        Ok(Crowd { threads: threads.collect::<io::Result<_>>()? })
    }

    /// So many users from now on.
    pub fn set(&self, users: usize) {
        let count = self.threads.len();
        for (at, thread) in self.threads.iter().enumerate() {
            // The first threads have the users that do not divide evenly. A thread that is gone has panicked, which
            // joining it will tell.
            let _ = thread.wanted.send(users / count + usize::from(at < users % count));
        }
    }

    /// What was counted since the last call.
    pub fn take(&self) -> Totals {
        self.sum(|crew, sum| sum.add(&crew.take()))
    }

    /// The same, and it stays.
    pub fn look(&self) -> Totals {
        self.sum(Crew::add_to)
    }

    /// Begins a window: from now on what begins now or later is counted, and nothing else.
    pub fn open(&self) {
        self.threads.iter().for_each(|thread| thread.crew.open());
    }

    /// Ends the window: what began in it is counted when it ends.
    pub fn close(&self) {
        self.threads.iter().for_each(|thread| thread.crew.close());
    }

    /// Turns of the window that have not ended.
    pub fn under_way(&self) -> u64 {
        self.threads.iter().map(|thread| thread.crew.under_way()).sum()
    }

    /// Counts those as failed.
    pub fn give_up(&self, late: Duration) {
        self.threads.iter().for_each(|thread| thread.crew.give_up(late));
    }

    /// Users that are there, also those who are only finishing their turn.
    pub fn present(&self) -> usize {
        self.threads.iter().map(|thread| thread.crew.present()).sum()
    }

    fn sum(&self, add: impl Fn(&Crew, &mut Totals)) -> Totals {
        let mut sum = Totals::default();
        self.threads.iter().for_each(|thread| add(&thread.crew, &mut sum));
        sum
    }

    /// Ends all users, and returns when the last is gone; what was counted meanwhile.
    ///
    /// # Errors
    /// A thread has panicked.
    pub fn stop(self) -> io::Result<Totals> {
        let mut sum = Totals::default();
        let (crews, running): (Vec<_>, Vec<_>) =
            self.threads.into_iter().map(|thread| (thread.crew, thread.running)).unzip();
        for running in running {
            running.join().map_err(|_| io::Error::other("a thread of the load has panicked"))?;
        }
        crews.iter().for_each(|crew| sum.add(&crew.take()));
        Ok(sum)
    }
}

fn draw() -> io::Result<u64> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| io::Error::other("the system gives no randomness"))?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Keeps as many users as are wanted; the last to come are the first to go.
async fn tend(crew: Arc<Crew>, mut wanted: mpsc::UnboundedReceiver<usize>, seed: u64, grace: Duration) {
    let mut users: Vec<oneshot::Sender<()>> = Vec::new();
    let (alive, mut all_gone) = mpsc::channel(1);
    let mut born = 0u64;
    while let Some(count) = wanted.recv().await {
        users.truncate(count);
        while users.len() < count {
            let (sender, stop) = oneshot::channel();
            users.push(sender);
            born += 1;
            let present = Present::new(crew.clone(), alive.clone());
            tokio::spawn(user::run(present, stop, seed.wrapping_add(born)));
        }
    }
    drop((users, alive));
    // Nothing is ever sent: it ends when the last user has dropped its sender.
    let _ = tokio::time::timeout(grace, all_gone.recv()).await;
}
