//! The hub of one database, as sessions see it.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::backend::connect::Login;
use crate::cluster::Cluster;
use crate::config;
use crate::net::tls::Connector;
use crate::notify::mailbox::{Mailbox, Sender};
use crate::notify::task;
use crate::session::channels::Change;
use crate::stats::counters;

/// What sessions ask of the hub's task.
#[derive(Debug)]
pub(super) enum Command {
    Join {
        client: u64,
        login: Login,
        sender: Sender,
    },
    /// None at all: a fence.
    Change {
        client: u64,
        changes: Vec<Change>,
        fence: u64,
    },
    Leave {
        client: u64,
    },
}

/// What the task needs to reach the primary.
#[derive(Debug, Clone)]
pub struct Reach {
    pub cluster: Arc<Cluster>,
    pub tls: Connector,
    pub config: Arc<config::Pool>,
    pub counters: Arc<counters::Database>,
}

impl Reach {
    pub(super) fn reconnects(&self) -> &AtomicU64 {
        &self.counters.listen_reconnects
    }
}

/// Starts its task when the first client listens. The task ends with the hub.
#[derive(Debug)]
pub struct Hub {
    reach: Reach,
    control: Handle,
    commands: OnceLock<mpsc::UnboundedSender<Command>>,
}

impl Hub {
    pub fn new(reach: Reach, control: Handle) -> Hub {
        Hub { reach, control, commands: OnceLock::new() }
    }

    /// A mailbox for a client; the shared connection may be made with its login, since LISTEN asks for no privilege.
    pub fn join(&self, client: u64, login: Login) -> Mailbox {
        let commands = self.commands.get_or_init(|| {
            let (commands, given) = mpsc::unbounded_channel();
            self.control.spawn(task::run(self.reach.clone(), given));
            commands
        });
        let (mailbox, sender) = Mailbox::new(client, commands.clone());
        let _ = commands.send(Command::Join { client, login, sender });
        mailbox
    }
}
