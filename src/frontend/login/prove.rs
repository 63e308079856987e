//! What only a server can tell, by a login of its own ahead of the session: that a password is right, and that a database is
//! there.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Mutex;

use crate::auth::{Credentials, Password};
use crate::backend::connect::{self, Login, ServerCredentials};
use crate::backend::connection::Connection;
use crate::cluster::Cluster;
use crate::cluster::node::Node;
use crate::config;
use crate::error::{Fault, sqlstate};
use crate::frontend::proxy::Proxy;
use crate::net::Connector;

/// The servers of a database that is set up, or that may come to be.
#[derive(Debug)]
pub struct Servers {
    /// The database, as clients ask for it.
    pub name: Arc<str>,
    /// As the servers know it.
    pub dbname: Arc<str>,
    /// What the configuration calls it: `*`, where that stands for it.
    pub entry: Arc<str>,
    pub cluster: Arc<Cluster>,
    pub tls: Connector,
    pub config: Arc<config::Pool>,
}

impl Proxy {
    /// Logs in to a server where the password that is `given` must be shown to be right, or nobody has been let into the
    /// database before. Of one user, one such login at a time: who waits for it may need none any more.
    ///
    /// # Errors
    /// FATAL: the server refuses, in its own words, or none is reached: for a password at once, else within `acquire_timeout`.
    pub async fn prove(&self, servers: &Servers, login: &Login, given: Option<&Password>) -> Result<(), Fault> {
        let patience = if given.is_some() { Default::default() } else { servers.config.acquire_timeout };
        let end = Instant::now() + patience;
        while !self.try_nodes(servers, login, given).await? {
            if Instant::now() >= end {
                return Err(Fault::fatal(sqlstate::CANNOT_CONNECT_NOW, "no server can be reached"));
            }
            tokio::time::sleep(servers.config.create_retry_interval).await;
        }
        Ok(())
    }

    /// True: it is shown. False: no node could be asked.
    async fn try_nodes(&self, servers: &Servers, login: &Login, given: Option<&Password>) -> Result<bool, Fault> {
        let is_shown = || {
            let is_right = given.is_none_or(|password| login.credentials.is_proven(password, Instant::now()));
            is_right && self.databases.contains_key(&servers.name)
        };
        if is_shown() {
            return Ok(true);
        }
        let turn = self.proofs.entry((login.user.clone(), servers.entry.clone())).or_default().clone();
        let _turn = turn.lock().await;
        if is_shown() {
            return Ok(true);
        }
        let credentials = match given {
            Some(password) => ServerCredentials::new(Credentials::Plain(password.clone())),
            None => login.credentials.clone(),
        };
        let trial = Login { credentials, ..login.clone() };
        for node in servers.cluster.by_preference() {
            let Some(connection) = servers.reach(node, &trial).await? else { continue };
            let farewell = servers.config.destroy_timeout;
            tokio::spawn(tokio::time::timeout(farewell, Box::new(connection).terminate()));
            if let Some(password) = given {
                login.credentials.prove(password.clone(), Instant::now());
            }
            return Ok(true);
        }
        Ok(false)
    }
}

/// Whose turn it is, of one user at the servers of one entry of the configuration.
pub type Turn = Arc<Mutex<()>>;

impl Servers {
    /// A connection of its own to a node; `None` where the node does not serve.
    ///
    /// # Errors
    /// FATAL: what the node says to this login.
    pub async fn reach(&self, node: &Node, login: &Login) -> Result<Option<Connection>, Fault> {
        let attempt = async {
            // As many at a time as for pools: never closed.
            let _permit = node.connects.acquire().await;
            connect::connect(&node.config, &self.tls, login, self.config.connection_timeout).await
        };
        match tokio::time::timeout(self.config.create_timeout, attempt).await {
            Ok(Ok(connection)) => return Ok(Some(connection)),
            Ok(Err(failure)) => match failure.answer() {
                Some(fault) => return Err(fault),
                None => tracing::warn!(node = %node.name, %failure, "a login cannot be tried"),
            },
            Err(_) => tracing::warn!(node = %node.name, "a login cannot be tried in time"),
        }
        Ok(None)
    }
}
