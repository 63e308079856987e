//! Asking each node, each `probe_interval`, whether it serves, what it is, and how far it is in the WAL.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::backend::connect::{self, Login};
use crate::backend::connection::{BackendError, Connection};
use crate::cluster::node::{Node, Role};
use crate::cluster::{Cluster, stay_away};
use crate::freshness::{Lsn, Sample};
use crate::net::names::is_name;
use crate::net::tls::Connector;

/// The insert position covers commits that are not flushed yet (synchronous_commit = off). The timeline of a primary is that
/// of its WAL files; of a standby the control file knows the one it has replayed, some time after it has come to it, and
/// who may see it knows the one that it receives.
const ASK: &str = "SELECT pg_catalog.pg_is_in_recovery(), CASE WHEN pg_catalog.pg_is_in_recovery() \
                   THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_insert_lsn() END, \
                   CASE WHEN NOT pg_catalog.pg_is_in_recovery() \
                   THEN pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()) END, \
                   GREATEST(c.timeline_id, r.min_recovery_end_timeline) \
                   FROM pg_catalog.pg_control_checkpoint() AS c, pg_catalog.pg_control_recovery() AS r";

/// A node's name is looked up each so many intervals.
const LOOKUPS: u32 = 5;

/// How nodes are asked.
#[derive(Debug, Clone)]
pub struct Prober {
    pub login: Login,
    /// Who else may be let in, in turn.
    pub others: VecDeque<Login>,
    pub tls: Connector,
    /// For the connect and for each answer.
    pub timeout: Duration,
}

impl Prober {
    /// A node has refused the login: next time it is another's turn.
    pub fn pass(&mut self) {
        if let Some(next) = self.others.pop_front() {
            self.others.push_back(std::mem::replace(&mut self.login, next));
        }
    }
}

/// What a node said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answer {
    asked: Instant,
    in_recovery: bool,
    position: Option<Lsn>,
    timeline: Option<u32>,
}

/// Why a node gave none.
#[derive(Debug)]
enum Unwell {
    Failed(String),
    /// It was given the time, and nothing came.
    Silent(&'static str),
}

impl From<String> for Unwell {
    fn from(why: String) -> Unwell {
        Unwell::Failed(why)
    }
}

/// Probes one node until its cluster is gone.
pub async fn watch(cluster: Weak<Cluster>, node: Arc<Node>, mut prober: Prober) {
    let mut connection = None;
    let started = cluster.upgrade().map(|cluster| (cluster.demand.pace(), cluster.vacancies()));
    let Some((mut pace, mut vacancies)) = started else { return };
    let mut looked_up = None;
    while let Some(cluster) = cluster.upgrade() {
        let due = cluster.routing.probe_interval * LOOKUPS;
        if is_name(&node.config.host) && looked_up.is_none_or(|at: Instant| at.elapsed() >= due) {
            // Whoever answers names slowly delays no probe.
            tokio::spawn(look_up(node.clone(), prober.clone()));
            looked_up = Some(Instant::now());
        }
        connection.take_if(|open: &mut Connection| node.has_left(open.stream.peer()));
        round(&cluster, &node, &mut prober, &mut connection).await;
        let interval = cluster.routing.probe_interval;
        drop(cluster);
        let known = node.is_up() && connection.is_some();
        let pause = async {
            match known {
                true => pace.pause(interval).await,
                false => tokio::time::sleep(interval).await,
            }
        };
        tokio::select! {
            () = pause => {}
            _ = vacancies.changed() => {
                connection = None;
                stay_away(&mut vacancies).await;
            }
        }
    }
}

/// Where its name leads to now. What cannot be looked up stays where it was.
async fn look_up(node: Arc<Node>, prober: Prober) {
    let looking = prober.tls.names().addresses(&node.config.host, node.config.port);
    match tokio::time::timeout(prober.timeout, looking).await {
        Ok(Ok(found)) => node.note_lookup(&found.iter().map(|address| address.ip()).collect::<Vec<_>>()),
        Ok(Err(error)) => tracing::debug!(node = %node.name, %error, "the node's name cannot be looked up"),
        Err(_) => tracing::debug!(node = %node.name, "the lookup of the node's name takes too long"),
    }
}

/// One probe of one node. A kept connection that fails is tried once more afresh: the server may have closed it for
/// reasons of its own.
pub async fn round(cluster: &Cluster, node: &Arc<Node>, prober: &mut Prober, connection: &mut Option<Connection>) {
    let had_one = connection.is_some();
    let mut answer = ask(node, prober, connection).await;
    if matches!(answer, Err(Unwell::Failed(_))) && had_one {
        answer = ask(node, prober, connection).await;
    }
    match answer {
        Ok(answer) => {
            node.note_probe(answer.is_none());
            if answer.is_none() {
                prober.pass();
            }
            if let Some(answer) = answer {
                answer.timeline.into_iter().for_each(|timeline| node.note_timeline(timeline));
                node.note_role(answer.in_recovery);
                cluster.note(node, &answer);
            }
            node.admit(Instant::now());
        }
        Err(Unwell::Failed(why)) => node.eject(&why),
        Err(Unwell::Silent(when)) => node.eject_silent(when),
    }
}

async fn ask(node: &Node, prober: &Prober, connection: &mut Option<Connection>) -> Result<Option<Answer>, Unwell> {
    let mut open = match connection.take() {
        Some(open) => open,
        None => {
            let connecting = connect::connect(&node.config, &prober.tls, &prober.login, prober.timeout);
            let made = tokio::time::timeout(prober.timeout * 2, connecting).await;
            match made {
                Ok(Ok(open)) => open,
                // It answers, so it serves; that the probe's own login is refused is said, and is no fault of the node.
                Ok(Err(failure)) if !failure.is_node_fault() => {
                    tracing::debug!(node = %node.name, %failure, "the probe cannot log in");
                    return Ok(None);
                }
                Ok(Err(failure)) => return Err(failure.to_string().into()),
                Err(_) => return Err(Unwell::Silent("timed out while connecting")),
            }
        }
    };
    let asked = Instant::now();
    let rows = tokio::time::timeout(prober.timeout, open.query(ASK)).await;
    let answer = match rows {
        Ok(Ok(rows)) => read(asked, &rows).ok_or_else(|| "an answer that is none".to_owned())?,
        Ok(Err(BackendError::Server(e))) if !e.fatal => return Err(e.message.into()),
        Ok(Err(error)) => return Err(error.to_string().into()),
        Err(_) => return Err(Unwell::Silent("timed out while answering")),
    };
    node.note_answered(asked.elapsed());
    *connection = Some(open);
    Ok(Some(answer))
}

fn read(asked: Instant, rows: &[Vec<Option<String>>]) -> Option<Answer> {
    let [row] = rows else { return None };
    let in_recovery = row.first()?.as_deref()? == "t";
    let position = row.get(1)?.as_deref().and_then(|text| text.parse().ok());
    // The name of a WAL file begins with eight hexadecimal digits of the timeline.
    let timeline = match row.get(2)?.as_deref() {
        Some(name) => u32::from_str_radix(name.get(..8)?, 16).ok(),
        None => row.get(3)?.as_deref().and_then(|timeline| timeline.parse().ok()),
    };
    Some(Answer { asked, in_recovery, position, timeline })
}

impl Cluster {
    fn note(&self, node: &Node, answer: &Answer) {
        let Some(position) = answer.position else { return };
        let mut positions = self.positions.lock();
        if answer.in_recovery {
            let (sample, lag) = positions.replica(answer.asked, position, answer.timeline, Instant::now());
            node.note_sample(sample, lag);
            self.samples.send_modify(|count| *count += 1);
        } else if self.primary().is_some_and(|primary| primary.index == node.index) {
            positions.note_primary(answer.asked, position, answer.timeline.unwrap_or(0));
            let sample = Sample { asked: Some(answer.asked), position, proven: true, until: Some(answer.asked) };
            node.note_sample(sample, Some(Duration::ZERO));
            let replicas = self.nodes.iter().filter(|other| other.role() == Role::Replica);
            replicas.for_each(|replica| replica.note_written(answer.asked, position));
        }
    }
}
