//! The connection to the store: one, for all reads, watched by a task of its own.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use aws_lc_rs::rand;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Pipeline, RedisError};
use tokio::sync::{Notify, mpsc};
use tokio::time::{MissedTickBehavior, timeout};

use crate::cache::Landed;
use crate::cache::sealed::{Carried, EPOCH, Epoch, Seal};
use crate::config;
use crate::shared::place::{Name, Place};

/// Entries that wait to be stored, at most.
const QUEUE: usize = 64;
/// Stored with one round trip, at most.
const AT_ONCE: usize = 16;

/// For what no client waits for.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a store that nobody asks is looked at.
const BEAT: Duration = Duration::from_secs(1);
/// Pauses before it is tried again, doubled up to the longest; begun anew once it has been there for [`STEADY`].
const PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(5);
const STEADY: Duration = Duration::from_secs(10);

/// Requests on their way to the connection's task; more of them wait, within their own time.
const IN_FLIGHT: usize = 1024;

/// The store, as the process knows it.
pub struct Shared {
    client: Client,
    pub(super) seal: Seal,
    /// How long a read waits for it.
    pub(super) timeout: Duration,
    /// `None`: it is not asked.
    link: ArcSwapOption<Link>,
    /// Why it is not, or what else is wrong.
    why: Mutex<Option<String>>,
    wake: Notify,
    jobs: mpsc::Sender<Job>,
    waiting: Mutex<Option<mpsc::Receiver<Job>>>,
    places: Mutex<Vec<Weak<Place>>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The client knows the password.
        f.debug_struct("Shared").field("state", &self.state()).finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(super) struct Link(MultiplexedConnection);

/// How the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Reads ask it.
    pub is_up: bool,
    pub why: Option<String>,
}

/// What is to be written.
pub(super) enum Job {
    Store {
        place: Arc<Place>,
        name: Name,
        landed: Landed,
        epoch: Epoch,
    },
    /// The database has no epoch.
    Begin(Arc<str>),
}

impl Shared {
    /// Nothing is connected to before [`Shared::run`].
    ///
    /// # Errors
    /// The URL is none.
    pub fn new(config: &config::Shared) -> Result<Arc<Shared>, String> {
        let (jobs, waiting) = mpsc::channel(QUEUE);
        let secret = config.secret.as_ref().map_or("", |secret| &secret.0);
        Ok(Arc::new(Shared {
            client: Client::open(config.url.0.as_str()).map_err(|error| error.to_string())?,
            seal: Seal::new(secret)?,
            timeout: config.timeout,
            link: ArcSwapOption::empty(),
            why: Mutex::new(Some("it has not been reached yet".to_owned())),
            wake: Notify::new(),
            jobs,
            waiting: Mutex::new(Some(waiting)),
            places: Mutex::default(),
        }))
    }

    pub fn state(&self) -> State {
        State { is_up: self.is_up(), why: self.why.lock().clone() }
    }

    pub(super) fn is_up(&self) -> bool {
        self.link.load().is_some()
    }

    pub(super) fn add(&self, place: &Arc<Place>) {
        self.places.lock().push(Arc::downgrade(place));
    }

    /// There may be an eviction to write.
    pub(super) fn look(&self) {
        self.wake.notify_one();
    }

    /// False where the queue is full.
    pub(super) fn queue(&self, job: Job) -> bool {
        self.jobs.try_send(job).is_ok()
    }

    /// Asks within the time that a read may wait. A store that does not answer in it is asked by no one, until it does.
    pub(super) async fn ask<T: redis::FromRedisValue>(&self, pipe: &Pipeline) -> Option<T> {
        let link = self.link.load_full()?;
        let mut connection = link.0.clone();
        let why = match timeout(self.timeout, pipe.query_async(&mut connection)).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => error.to_string(),
            Err(_) => silent(self.timeout),
        };
        self.fail(&link, why);
        None
    }

    fn fail(&self, link: &Arc<Link>, why: String) {
        let before = self.link.compare_and_swap(link, None);
        if before.as_ref().is_some_and(|before| Arc::ptr_eq(before, link)) {
            tracing::warn!(why, "the shared store is not asked until it answers again");
            *self.why.lock() = Some(why);
            self.wake.notify_one();
        }
    }

    /// Connects, writes what is to be written, and connects anew, for as long as the process lives.
    pub async fn run(self: Arc<Self>) {
        let Some(mut waiting) = self.waiting.lock().take() else { return };
        let mut pause = PAUSE;
        loop {
            match self.connect().await {
                Ok(link) => {
                    let began = Instant::now();
                    self.link.store(Some(link.clone()));
                    *self.why.lock() = None;
                    tracing::info!("the shared store answers");
                    if let Err(why) = self.serve(&link, &mut waiting).await {
                        self.fail(&link, why);
                    }
                    pause = if began.elapsed() > STEADY { PAUSE } else { pause };
                }
                Err(why) => {
                    if self.why.lock().replace(why.clone()).as_ref() != Some(&why) {
                        tracing::warn!(why, "the shared store cannot be reached");
                    }
                }
            }
            // What has waited so long is not worth it.
            while waiting.try_recv().is_ok() {}
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// It is there, and answers in the time that reads wait.
    async fn connect(&self) -> Result<Arc<Link>, String> {
        let mut connection = connect(&self.client).await?;
        ping(&mut connection, self.timeout).await?;
        Ok(Arc::new(Link(connection)))
    }

    /// Ends where nobody asks over this link any more.
    async fn serve(&self, link: &Arc<Link>, waiting: &mut mpsc::Receiver<Job>) -> Result<(), String> {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut jobs = Vec::new();
        while self.link.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
            self.evict(link).await?;
            tokio::select! {
                _ = waiting.recv_many(&mut jobs, AT_ONCE) => self.write(link, &mut jobs).await?,
                () = self.wake.notified() => {}
                _ = beat.tick() => ping(&mut link.0.clone(), PATIENCE).await?,
            }
        }
        Ok(())
    }

    /// Puts a new epoch where an eviction asks for one.
    async fn evict(&self, link: &Link) -> Result<(), String> {
        let places: Vec<_> = {
            let mut places = self.places.lock();
            places.retain(|place| place.strong_count() > 0);
            places.iter().filter_map(Weak::upgrade).collect()
        };
        for place in places {
            let Some((name, eviction)) = place.owed_eviction() else { continue };
            let mut set = redis::cmd("SET");
            set.arg(&*name).arg(&random::<EPOCH>()?);
            within(PATIENCE, set.query_async::<()>(&mut link.0.clone())).await?;
            place.note_eviction(eviction);
        }
        Ok(())
    }

    async fn write(&self, link: &Link, jobs: &mut Vec<Job>) -> Result<(), String> {
        let mut pipe = redis::pipe();
        let mut stored = Vec::new();
        for job in jobs.drain(..) {
            match job {
                Job::Begin(name) => drop(pipe.cmd("SET").arg(&*name).arg(&random::<EPOCH>()?).ignore()),
                Job::Store { place, name, landed, epoch } => {
                    let left = landed.expires.saturating_duration_since(Instant::now()).as_millis() as u64;
                    let Landed { entry, as_of, ttl, .. } = landed;
                    let carried = Carried { as_of, lives: ttl, epoch, entry: (*entry).clone() };
                    let sealed = self.seal.close(&name.entry, &carried, random()?);
                    if let Some(sealed) = sealed.ok().filter(|_| left > 0) {
                        pipe.cmd("SET").arg(&*name.entry).arg(&sealed).arg("PX").arg(left).ignore();
                        stored.push((place, sealed.len()));
                    }
                }
            }
        }
        let mut connection = link.0.clone();
        match timeout(PATIENCE, pipe.query_async::<()>(&mut connection)).await.map_err(|_| silent(PATIENCE))? {
            Ok(()) => stored.iter().for_each(|(place, bytes)| place.note_stored(*bytes)),
            // A store that is full, or takes no writes, may be read all the same.
            Err(error) if error.code().is_some() => {
                stored.iter().for_each(|(place, _)| place.note_dropped());
                *self.why.lock() = Some(error.to_string());
            }
            Err(error) => return Err(error.to_string()),
        }
        Ok(())
    }
}

async fn connect(client: &Client) -> Result<MultiplexedConnection, String> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(PATIENCE))
        .set_response_timeout(None)
        .set_pipeline_buffer_size(IN_FLIGHT);
    // The handshake's own steps have no other bound.
    let connecting = client.get_multiplexed_async_connection_with_config(&config);
    within(PATIENCE * 2, connecting).await
}

async fn ping(connection: &mut MultiplexedConnection, time: Duration) -> Result<(), String> {
    within(time, redis::cmd("PING").query_async(connection)).await
}

async fn within<T>(time: Duration, asking: impl Future<Output = Result<T, RedisError>>) -> Result<T, String> {
    timeout(time, asking).await.map_err(|_| silent(time))?.map_err(|error| error.to_string())
}

fn silent(time: Duration) -> String {
    format!("it has not answered within {time:?}")
}

fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| "no randomness")?;
    Ok(bytes)
}

/// What is at the other end, for `pgweir check`.
///
/// # Errors
/// It is not to be reached, or does not let us in.
pub async fn probe(config: &config::Shared) -> Result<String, String> {
    let client = Client::open(config.url.0.as_str()).map_err(|error| error.to_string())?;
    let mut connection = connect(&client).await?;
    let began = Instant::now();
    ping(&mut connection, PATIENCE).await?;
    let took = began.elapsed();
    match took > config.timeout {
        true => Err(format!("answers after {took:.1?}, and reads wait {:?}", config.timeout)),
        false => Ok(format!("answers after {took:.1?}")),
    }
}
