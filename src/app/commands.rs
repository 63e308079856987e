//! The console's commands, done on the running parts.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::Order;
use super::sources::all;
use crate::admin::CommandResult;
use crate::admin::command::{Command, CommandError, Shutdown};
use crate::cluster::node::Role;
use crate::config::settings::{self, SetError};
use crate::error::sqlstate;
use crate::frontend::client::{Activity, Client, Stop};
use crate::frontend::database::Database;
use crate::frontend::proxy::Proxy;
use crate::pool::registry::CONTROL;

/// How often a command that waits looks whether it is complete.
const POLL: Duration = Duration::from_millis(20);

/// KILL tells its operator after so long at most.
const KILL_WAIT: Duration = Duration::from_secs(5);

type Commands = Box<dyn Fn(Command) -> CommandResult + Send + Sync>;

pub(super) fn commands(proxy: &Arc<Proxy>, orders: mpsc::UnboundedSender<Order>) -> Commands {
    let proxy = proxy.clone();
    Box::new(move |command| {
        let done = {
            // Pools make connections on the control runtime, wherever the console's client lives.
            let _entered = proxy.control.enter();
            act(&proxy, &orders, &command)
        };
        let proxy = proxy.clone();
        Box::pin(async move {
            done?;
            completed(&proxy, &command).await;
            Ok(command.name().to_owned())
        })
    })
}

/// When the command has done what its operator waits for.
async fn completed(proxy: &Proxy, command: &Command) {
    match command {
        // As with PgBouncer: no server connection is left, so that the operator may go on with the server.
        Command::Pause(name) => wait(proxy, name, |database| database.pools.all().iter().all(|p| p.has_paused())).await,
        Command::WaitClose(name) => {
            let renewed = |database: &Database| database.pools.all().iter().all(|p| p.snapshot().stale == 0);
            wait(proxy, name, renewed).await;
        }
        Command::Kill(name) => {
            let gone = |database: &Database| {
                let client = |c: &Arc<Client>| c.database == database.name && c.stop_reason() == Stop::Killed;
                !proxy.clients.all().iter().any(client) && database.pools.all().iter().all(|p| p.has_paused())
            };
            // One that does not take its end is dropped later, by the time it has for that.
            let _ = tokio::time::timeout(KILL_WAIT, wait(proxy, name, gone)).await;
        }
        _ => {}
    }
}

async fn wait(proxy: &Proxy, name: &Option<String>, done: impl Fn(&Database) -> bool) {
    let databases = chosen(proxy, name.as_deref()).unwrap_or_default();
    while !databases.iter().all(|database| done(database)) {
        tokio::time::sleep(POLL).await;
    }
}

fn act(proxy: &Arc<Proxy>, orders: &mpsc::UnboundedSender<Order>, command: &Command) -> Result<(), CommandError> {
    let order = |order| orders.send(order).map_err(|_| unknown("the control loop has ended".to_owned()));
    match command {
        Command::Pause(name) => drop(pause(proxy, name.as_deref())?),
        Command::Resume(_) if proxy.closing.load(Ordering::Relaxed) => {
            return Err(CommandError {
                sqlstate: sqlstate::NOT_IN_PREREQUISITE_STATE,
                message: "pgweir is shutting down".to_owned(),
            });
        }
        Command::Resume(name) => {
            if name.is_none() {
                proxy.paused.store(false, Ordering::SeqCst);
            }
            chosen(proxy, name.as_deref())?.iter().for_each(|database| database.pools.resume());
        }
        Command::Reconnect(name) => {
            for database in chosen(proxy, name.as_deref())? {
                database.pools.all().iter().for_each(|pool| pool.reconnect(CONTROL));
            }
        }
        Command::Disable(name) => chosen(proxy, Some(name))?.iter().for_each(|database| database.disable(true)),
        Command::Enable(name) => chosen(proxy, Some(name))?.iter().for_each(|database| database.disable(false)),
        // Who comes anew waits for RESUME, as with PgBouncer.
        Command::Kill(name) => {
            for database in pause(proxy, name.as_deref())? {
                proxy.clients.all().iter().filter(|client| client.database == database.name).for_each(kill);
            }
        }
        // All of it is in the waiting.
        Command::WaitClose(name) => drop(chosen(proxy, name.as_deref())?),
        Command::KillClient(id) => {
            let all = proxy.clients.all();
            let found = all.iter().find(|c| c.id == *id);
            kill(found.ok_or_else(|| unknown(format!("no client has the id {id}")))?);
        }
        Command::EvictCache(table) => evict(proxy, table.as_deref())?,
        // Plans let go of their records first, which are then set back.
        Command::ResetStatements => all(proxy).iter().for_each(|database| database.plans.release_records()),
        Command::Eject(name) => set_ejected(proxy, name, true)?,
        Command::Admit(name) => set_ejected(proxy, name, false)?,
        Command::Reload => order(Order::Reload)?,
        Command::Drain => order(Order::Drain)?,
        Command::Quit | Command::Shutdown(Shutdown::WaitForClients) => order(Order::DrainWithoutEnd)?,
        Command::Shutdown(Shutdown::Immediate) => order(Order::Stop)?,
        Command::Shutdown(Shutdown::WaitForServers) => {
            order(Order::DrainWithoutEnd)?;
            pause(proxy, None)?;
            proxy.control.spawn(stop_without_servers(proxy.clone(), orders.clone()));
        }
        Command::Set { key, value } => set(proxy, key, value)?,
        other => return Err(CommandError::not_built(other.name())),
    }
    Ok(())
}

/// Until the file is read again, as with PgBouncer.
fn set(proxy: &Proxy, key: &str, value: &str) -> Result<(), CommandError> {
    let refused = |sqlstate, message| CommandError { sqlstate, message };
    let config = settings::set(&proxy.config.load(), key, value).map_err(|error| match error {
        SetError::Unknown => refused("42704", format!("unrecognized configuration parameter \"{key}\"")),
        SetError::Fixed => refused("55P02", format!("\"{key}\" is changed in the file alone")),
        SetError::Value(why) => unknown(why),
    })?;
    proxy.reload(config).map_err(unknown)
}

/// A node by its name, `host:port`, in all databases that have it.
fn set_ejected(proxy: &Proxy, name: &str, ejected: bool) -> Result<(), CommandError> {
    let databases = all(proxy);
    let of = |database: &Arc<Database>| {
        let nodes = database.cluster.nodes.iter().filter(|node| *node.name == *name);
        nodes.map(|node| (database.clone(), node.clone())).collect::<Vec<_>>()
    };
    let found: Vec<_> = databases.iter().flat_map(of).collect();
    if found.is_empty() {
        return Err(unknown(format!("no such node: {name}; SHOW NODES has their names")));
    }
    if ejected && found.iter().any(|(_, node)| node.role() == Role::Primary) {
        let message = format!("{name} is a primary, and writes have nowhere else to go");
        return Err(CommandError { sqlstate: sqlstate::NOT_IN_PREREQUISITE_STATE, message });
    }
    for (database, node) in found {
        node.set_ejected(ejected, Instant::now());
        database.pools.use_node(node.index, !ejected);
    }
    Ok(())
}

/// The databases that are paused by that.
fn pause(proxy: &Proxy, name: Option<&str>) -> Result<Vec<Arc<Database>>, CommandError> {
    if name.is_none() {
        proxy.paused.store(true, Ordering::SeqCst);
    }
    let databases = chosen(proxy, name)?;
    databases.iter().for_each(|database| database.pools.pause());
    Ok(databases)
}

/// SHUTDOWN WAIT_FOR_SERVERS: transactions end, and nobody waits for another.
async fn stop_without_servers(proxy: Arc<Proxy>, orders: mpsc::UnboundedSender<Order>) {
    let lent = || all(&proxy).iter().any(|database| database.pools.all().iter().any(|pool| !pool.has_paused()));
    while lent() {
        let waiting = |client: &&Arc<Client>| client.activity().0 == Activity::Waiting;
        proxy.clients.all().iter().filter(waiting).for_each(|client| client.stop(Stop::Shutdown));
        tokio::time::sleep(POLL).await;
    }
    // The loop that would take it may have ended.
    let _ = orders.send(Order::Stop);
}

/// From all databases that know the table; what is wrong with one of them does not keep it in the others.
fn evict(proxy: &Proxy, table: Option<&str>) -> Result<(), CommandError> {
    let (mut is_known, mut fault) = (table.is_none(), None);
    for database in all(proxy) {
        match database.evict(table) {
            Ok(found) => is_known |= found,
            Err(why) => fault = Some(why),
        }
    }
    match (fault, table) {
        (Some(why), _) => Err(unknown(why)),
        (None, Some(table)) if !is_known => {
            let message = format!("no database whose results are cached has a relation \"{table}\"");
            Err(CommandError { sqlstate: "42P01", message })
        }
        _ => Ok(()),
    }
}

fn kill(client: &Arc<Client>) {
    client.stop(Stop::Killed);
}

fn chosen(proxy: &Proxy, name: Option<&str>) -> Result<Vec<Arc<Database>>, CommandError> {
    match name {
        None => Ok(all(proxy)),
        Some(name) => {
            let found = proxy.databases.get(name).map(|entry| vec![entry.value().clone()]);
            found.ok_or_else(|| unknown(format!("no such database: {name}")))
        }
    }
}

fn unknown(message: String) -> CommandError {
    CommandError { sqlstate: "22023", message }
}
