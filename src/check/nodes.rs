//! The trial of each node: reached, encrypted as the configuration asks, logged in to, and asked what it is.

use std::time::Duration;

use super::{NodeTrial, Trials};
use crate::auth::{Credentials, LoginError, Secret};
use crate::backend::connect::{self, ConnectFailure, Login, ServerCredentials};
use crate::cluster::changes::publication;
use crate::config::{Config, Database, Node, NodeRole};
use crate::net::Connector;
use crate::shared;

/// The database that every server has, for a configuration that leaves the name to clients.
const ANY_DATABASE: &str = "postgres";

/// Tries every node of every database, all at the same time, in their order; and the shared store.
///
/// # Errors
/// The system gives no runtime.
pub fn try_nodes(config: &Config) -> std::io::Result<Trials> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(async {
        let mut trials = Vec::new();
        let publication = config.cache.followed_publication().map(str::to_owned);
        for database in &config.databases {
            let tls = Connector::new(database.tls, database.ca.as_deref()).map_err(|e| e.to_string());
            let login = login(config, database);
            for node in &database.nodes {
                let (node, tls, login) = (node.clone(), tls.clone(), login.clone());
                let name = format!("{}:{}", node.host, node.port);
                let (timeout, publication) = (database.pool.connection_timeout, publication.clone());
                let trial =
                    tokio::spawn(async move { try_node(&node, &tls?, &login?, timeout, publication.as_deref()).await });
                trials.push((database.name.clone(), name, trial));
            }
        }
        let store = match &config.cache.shared {
            Some(shared) => Some(shared::probe(shared).await),
            None => None,
        };
        let mut told = Vec::new();
        for (database, node, trial) in trials {
            let tried = trial.await.unwrap_or_else(|error| Err(error.to_string()));
            let (outcome, unpublished) = tried.map_or_else(|why| (Err(why), None), |(what, why)| (Ok(what), why));
            told.push(NodeTrial { database, node, outcome, unpublished });
        }
        Trials { nodes: told, store }
    }))
}

/// The first user whose password is known; else the first, who at least shows that the server answers.
pub fn login(config: &Config, database: &Database) -> Result<Login, String> {
    let credentials = |user: &crate::config::User| match user.password.as_ref().map(|p| Secret::parse(&p.0)) {
        Some(Ok(Secret::Plain(password))) => Some(Credentials::Plain(password)),
        Some(Ok(Secret::Md5(hash))) => Some(Credentials::Md5(hash)),
        _ => None,
    };
    let known = config.users.iter().find_map(|user| credentials(user).map(|found| (user, found)));
    let first = || config.users.first().map(|user| (user, Credentials::None));
    let (user, credentials) = known.or_else(first).ok_or("no user is configured to log in as")?;
    let name = match database.name.as_str() {
        "*" => ANY_DATABASE,
        name => name,
    };
    Ok(Login {
        user: user.name.as_str().into(),
        database: database.dbname.as_deref().unwrap_or(name).into(),
        credentials: ServerCredentials::new(credentials),
    })
}

/// What it is; and of a primary, why the publication is of no use.
async fn try_node(
    node: &Node,
    tls: &Connector,
    login: &Login,
    timeout: Duration,
    publication: Option<&str>,
) -> Result<(String, Option<String>), String> {
    let trial = async {
        match connect::connect(node, tls, login, timeout).await {
            Ok(mut connection) => {
                let version = connection.statuses.iter().find(|(name, _)| **name == *"server_version");
                let version = version.map(|(_, version)| format!(", PostgreSQL {version}")).unwrap_or_default();
                let encryption = connection.stream.tls_info().map(|tls| format!(", {tls}")).unwrap_or_default();
                let rows = connection.query("SELECT pg_catalog.pg_is_in_recovery()").await;
                let rows = rows.map_err(|error| error.to_string())?;
                let recovering = rows.first().and_then(|row| row.first()?.as_deref()) == Some("t");
                let unpublished = match publication.filter(|_| !recovering) {
                    Some(name) => publication::read(&mut connection, name).await.err().map(|cause| cause.to_string()),
                    None => None,
                };
                Box::new(connection).terminate().await;
                let role = role(node.role, recovering)?;
                Ok((format!("{role}{version}{encryption}, as {}", login.user), unpublished))
            }
            Err(ConnectFailure::Login(LoginError::Credentials(_))) if is_unknown(login) => {
                Ok(("answers; not logged in to, for no user's password is in the configuration".to_owned(), None))
            }
            Err(failure) => Err(failure.to_string()),
        }
    };
    // The connect and each answer have their own share.
    tokio::time::timeout(timeout * 2, trial).await.unwrap_or_else(|_| Err("timed out while logging in".to_owned()))
}

fn is_unknown(login: &Login) -> bool {
    matches!(login.credentials.current(), Credentials::None)
}

/// What the server is, if that fits what it is configured as.
fn role(configured: NodeRole, recovering: bool) -> Result<&'static str, String> {
    match (configured, recovering) {
        (NodeRole::Primary, true) => Err("configured as the primary, and is a standby".to_owned()),
        (NodeRole::Replica, false) => Err("configured as a replica, and is no standby".to_owned()),
        (_, true) => Ok("replica"),
        (_, false) => Ok("primary"),
    }
}
