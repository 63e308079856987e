//! Users that the configuration does not name: asked of a server by `auth.query`, and checked by the verifier that it
//! keeps for them.

use std::sync::Arc;
use std::time::Instant;

use crate::backend::connect::Login;
use crate::config::AuthQuery;
use crate::error::{Fault, sqlstate};
use crate::frontend::proxy::Proxy;
use crate::frontend::users::User;
use crate::pool::lease::Return;
use crate::session::parameters::literal;

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
        let database = self.database(database).ok_or_else(|| format!("no database \"{database}\" to ask"))?;
        let asker = self.user(&query.user).ok_or_else(|| format!("no user \"{}\" to ask as", query.user))?;
        let login = Login {
            user: asker.name.clone(),
            database: database.dbname.clone(),
            credentials: asker.credentials.clone(),
        };
        let node = database.cluster.preferred().ok_or("no server can be reached")?;
        let pool = database.pools.pool(&login, node);
        let timeout = pool.config.load().acquire_timeout;
        let mut lease = pool.checkout(worker).await.map_err(|refused| refused.fault(timeout).message)?;
        lease.begin();
        let rows = lease.query(&query.sql.replace("$1", &literal(name))).await.map_err(|e| e.to_string())?;
        lease.give_back(Instant::now(), Return::default());
        // As PgBouncer's: the name and the password, or the password alone.
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next_back()).flatten())
    }

    fn learn_user(&self, name: &str, secret: String) -> Result<Arc<User>, Fault> {
        self.users.learn(name, secret).map_err(|why| {
            tracing::error!(user = name, why, "auth.query gave no password that can be used");
            Fault::fatal(sqlstate::INVALID_PASSWORD, format!("password authentication failed for user \"{name}\""))
        })
    }
}
