//! Users that the configuration does not name: asked of a server by `auth.query`, and checked by the verifier that it
//! keeps for them.

use std::sync::Arc;
use std::time::Instant;

use crate::backend::connect::Login;
use crate::config::AuthQuery;
use crate::error::{Fault, sqlstate};
use crate::frontend::database::Database;
use crate::frontend::login::CONSOLE;
use crate::frontend::login::prove::Servers;
use crate::frontend::proxy::Proxy;
use crate::frontend::users::User;
use crate::pool::lease::Return;
use crate::session::parameters::{Settings, literal};

impl Proxy {
    /// The user of this name: of the configuration, else of the servers. `None`: there is none, or none that has a
    /// password.
    ///
    /// # Errors
    /// The query cannot be run: FATAL for the client, and the reason in the log.
    pub async fn find_user(&self, name: &str, database: &str, worker: usize) -> Result<Option<Arc<User>>, Fault> {
        if let Some(user) = self.user(name) {
            return Ok(Some(user));
        }
        let config = self.config.load_full();
        let Some(query) = &config.auth.query else { return Ok(None) };
        let secret = self.ask(query, name, database, worker).await.map_err(|why| {
            tracing::error!(user = name, why, "auth.query failed");
            Fault::fatal(sqlstate::CONNECTION_FAILURE, "the user's password cannot be looked up")
        })?;
        match secret {
            Some(secret) => Ok(Some(self.learn_user(name, secret)?)),
            None => Ok(None),
        }
    }

    /// The user's secret as the server keeps it.
    async fn ask(&self, query: &AuthQuery, name: &str, asked: &str, worker: usize) -> Result<Option<String>, String> {
        let database = query.database.as_deref().unwrap_or(asked);
        let servers = self.servers(database).filter(|_| !CONSOLE.contains(&database));
        let servers = servers.ok_or_else(|| format!("no database \"{database}\" to ask"))?;
        let asker = self.user(&query.user).ok_or_else(|| format!("no user \"{}\" to ask as", query.user))?;
        let login = Login {
            user: asker.name.clone(),
            database: servers.dbname.clone(),
            credentials: asker.credentials.clone(),
        };
        let sql = query.sql.replace("$1", &literal(name));
        let known = self.databases.get(database).map(|database| database.clone());
        let rows = match known {
            Some(database) => ask_pooled(&database, &login, &sql, worker).await?,
            // Who asks has proven nothing: no pools and probes are set up for it.
            None => self.ask_apart(&servers, &login, &sql).await?,
        };
        // As PgBouncer's: the name and the password, or the password alone.
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next_back()).flatten())
    }

    /// On a connection for this query alone, of which there is one at a time.
    async fn ask_apart(&self, servers: &Servers, login: &Login, sql: &str) -> Result<Rows, String> {
        let turn = self.proofs.entry((login.user.clone(), servers.entry.clone())).or_default().clone();
        let _turn = turn.lock().await;
        for node in servers.cluster.by_preference() {
            let Some(mut connection) = servers.reach(node, login).await.map_err(|fault| fault.message)? else {
                continue;
            };
            let rows = connection.query(sql).await.map_err(|error| error.to_string());
            tokio::spawn(tokio::time::timeout(servers.config.destroy_timeout, Box::new(connection).terminate()));
            return rows;
        }
        Err("no server can be reached".to_owned())
    }

    fn learn_user(&self, name: &str, secret: String) -> Result<Arc<User>, Fault> {
        self.users.learn(name, secret).map_err(|why| {
            tracing::error!(user = name, why, "auth.query gave no password that can be used");
            Fault::fatal(sqlstate::INVALID_PASSWORD, format!("password authentication failed for user \"{name}\""))
        })
    }
}

type Rows = Vec<Vec<Option<String>>>;

/// As a fresh session would: what the last one has set is not in force.
async fn ask_pooled(database: &Database, login: &Login, sql: &str, worker: usize) -> Result<Rows, String> {
    let pools = database.pools_of(login);
    let mut lease = database.any_lease(worker, &pools).await.map_err(|fault| fault.message)?;
    lease.begin();
    let fresh = Settings::default();
    for setting in lease.settings.difference(&fresh) {
        lease.query(&setting).await.map_err(|error| error.to_string())?;
    }
    lease.settings = fresh;
    let rows = lease.query(sql).await.map_err(|error| error.to_string())?;
    lease.give_back(Instant::now(), Return::default());
    Ok(rows)
}
