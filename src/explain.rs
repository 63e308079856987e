//! `pgweir explain`: where a statement would run, and why, by the configuration's databases.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::Instant;

use serde_json::{Value, json};

use crate::backend::connect;
use crate::cache::admit::{self, Choice, InForce, Kept};
use crate::cache::rules::Rules;
use crate::catalog::path::{Scope, Setting};
use crate::catalog::publication::Publication;
use crate::check;
use crate::cluster::Cluster;
use crate::cluster::catalog;
use crate::cluster::changes::publication;
use crate::cluster::probe::Prober;
use crate::config::{Config, Database, Invalidation};
use crate::net::Connector;
use crate::route::explain::{self, Explanation};

/// Explains the statement in each database, as the configuration's first user would have it run. What could not be asked
/// is returned, a line each; the text alone is explained then.
///
/// # Errors
/// `out` does not take it, or the system gives no runtime.
pub fn explain(config: &Config, sql: &str, json: bool, out: &mut dyn Write) -> io::Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut told, mut faults) = (Vec::new(), Vec::new());
    for database in &config.databases {
        let (explanation, fault) = runtime.block_on(one(config, database, sql));
        faults
            .extend(fault.map(|why| format!("database \"{}\": the definitions cannot be read: {why}", database.name)));
        told.push((database.name.as_str(), explanation));
    }
    if json {
        let all: Vec<Value> = told.iter().map(|(database, explanation)| document(database, explanation)).collect();
        let document = if let [one] = all.as_slice() { one.clone() } else { Value::Array(all) };
        writeln!(out, "{document:#}")?;
        return Ok(faults);
    }
    for (database, explanation) in &told {
        writeln!(out, "database: {database}")?;
        for line in explanation.lines() {
            writeln!(out, "{line}")?;
        }
    }
    Ok(faults)
}

async fn one(config: &Config, database: &Database, sql: &str) -> (Explanation, Option<String>) {
    let (scope, fault) = match scope(config, database).await {
        Ok(scope) => (Some(scope), None),
        Err(why) => (None, Some(why)),
    };
    let (publication, fault) = match publication(config, database).await {
        Ok(publication) => (publication, fault),
        Err(why) => (None, fault.or(Some(why))),
    };
    let kept = kept(config, database, sql, scope.as_ref(), publication.as_ref());
    (explain::explain(sql, scope.as_ref(), kept.refused, kept.rules), fault)
}

/// Where what the configuration asks for is in force.
fn kept(
    config: &Config,
    database: &Database,
    sql: &str,
    scope: Option<&Scope>,
    publication: Option<&Publication>,
) -> Kept {
    if !config.cache.enabled {
        return Kept { refused: Some("disabled"), ..Kept::default() };
    }
    let choice = match config.cache.invalidation {
        Invalidation::Ttl => Choice::Named,
        Invalidation::Auto | Invalidation::Wal | Invalidation::Writes => Choice::Known,
    };
    let rules = Rules::new(&config.cache.rules, &database.name);
    admit::explain(sql, scope, InForce { choice: Some(choice), rules: rules.as_ref(), publication })
}

/// What names mean to the configuration's first user in a fresh session, read now.
///
/// # Errors
/// No node can be asked, or its answer not be understood.
pub async fn scope(config: &Config, database: &Database) -> Result<Scope, String> {
    let cluster = Cluster::new(database.name.as_str().into(), &database.nodes, &config.routing, Instant::now());
    let login = check::login(config, database)?;
    let user = login.user.clone();
    let tls = Connector::new(database.tls, database.ca.as_deref()).map_err(|e| e.to_string())?;
    let prober = Prober { login, others: VecDeque::new(), tls, timeout: database.pool.connection_timeout };
    catalog::read_once(&cluster, prober).await?;
    let catalog = cluster.definitions.snapshot().ok_or("there is no snapshot")?;
    Ok(catalog.scope(&Setting::Inherited, &user, &user))
}

/// That by which changes would be followed.
async fn publication(config: &Config, database: &Database) -> Result<Option<Publication>, String> {
    let Some(name) = config.cache.followed_publication() else { return Ok(None) };
    let login = check::login(config, database)?;
    let tls = Connector::new(database.tls, database.ca.as_deref()).map_err(|e| e.to_string())?;
    let mut found = Err("no node can be asked".to_owned());
    for node in &database.nodes {
        let connecting = connect::connect(node, &tls, &login, database.pool.connection_timeout);
        match connecting.await {
            Ok(mut connection) => {
                let read = publication::read(&mut connection, name).await;
                return read.map(Some).map_err(|cause| cause.to_string());
            }
            Err(failure) => found = Err(failure.to_string()),
        }
    }
    found
}

fn document(database: &str, explanation: &Explanation) -> Value {
    json!({
        "database": database,
        "node": explanation.node(),
        "reason": explanation.reason(),
        "cached": explanation.not_cached.is_none(),
        "not_cached": explanation.not_cached,
        "fingerprint": explanation.fingerprint.to_string(),
        "rules": explanation.rules,
        "via": explanation.via,
        "definitions": explanation.known,
    })
}
