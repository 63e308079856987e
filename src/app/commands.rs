//! The console's commands, done on the running parts.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::Order;
use super::sources::all;
use crate::admin::CommandResult;
use crate::admin::command::{Command, CommandError, Shutdown};
use crate::frontend::client::{Client, Stop};
use crate::frontend::database::Database;
use crate::frontend::proxy::Proxy;
use crate::pool::registry::CONTROL;

/// How often a PAUSE looks whether it is complete.
const PAUSE_POLL: Duration = Duration::from_millis(20);

type Commands = Box<dyn Fn(Command) -> CommandResult + Send + Sync>;

pub(super) fn commands(proxy: &Arc<Proxy>, orders: mpsc::UnboundedSender<Order>) -> Commands {
    let proxy = proxy.clone();
    Box::new(move |command| {
        let done = {
            // Pools make connections on the control runtime, wherever the console's client lives.
            let _entered = proxy.control.enter();
            act(&proxy, &orders, &command)
        };
        let paused = match &command {
            Command::Pause(name) => chosen(&proxy, name.as_deref()).unwrap_or_default(),
            _ => Vec::new(),
        };
        Box::pin(async move {
            done?;
            for database in paused {
                wait_paused(&database).await;
            }
            Ok(command.name().to_owned())
        })
    })
}

/// PAUSE returns when no server connection is left, as PgBouncer's does, so that the operator may go on with the server.
async fn wait_paused(database: &Database) {
    while !database.pools.all().iter().all(|pool| pool.has_paused()) {
        tokio::time::sleep(PAUSE_POLL).await;
    }
}

fn act(proxy: &Arc<Proxy>, orders: &mpsc::UnboundedSender<Order>, command: &Command) -> Result<(), CommandError> {
    let order = |order| orders.send(order).map_err(|_| unknown("the control loop has ended".to_owned()));
    match command {
        Command::Pause(name) => chosen(proxy, name.as_deref())?.iter().for_each(|database| database.pools.pause()),
        Command::Resume(name) => chosen(proxy, name.as_deref())?.iter().for_each(|database| database.pools.resume()),
        Command::Reconnect(name) => {
            for database in chosen(proxy, name.as_deref())? {
                database.pools.all().iter().for_each(|pool| pool.reconnect(CONTROL));
            }
        }
        Command::KillClient(id) => {
            let all = proxy.clients.all();
            let found = all.iter().find(|c| c.id == *id);
            kill(found.ok_or_else(|| unknown(format!("no client has the id {id}")))?);
        }
        Command::EvictCache(table) => {
            for database in chosen(proxy, None)? {
                database.evict(table.as_deref()).map_err(unknown)?;
            }
        }
        // Plans let go of their records first, which are then set back.
        Command::ResetStatements => all(proxy).iter().for_each(|database| database.plans.release_records()),
        Command::Reload => order(Order::Reload)?,
        Command::Drain => order(Order::Drain)?,
        Command::Quit | Command::Shutdown(Shutdown::WaitForClients) => order(Order::DrainWithoutEnd)?,
        Command::Shutdown(Shutdown::Immediate) => order(Order::Stop)?,
        other => return Err(CommandError::not_built(other.name())),
    }
    Ok(())
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
