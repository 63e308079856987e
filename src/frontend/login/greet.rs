//! From a proven user to the session: the settings of the startup packet, and what the client is told first.

use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;

use crate::backend::connect::Login;
use crate::backend::connection::BackendError;
use crate::cluster::node::Role;
use crate::config::PoolMode;
use crate::error::{Fault, sqlstate};
use crate::freshness::Seen;
use crate::frontend::client::{Entered, NewClient};
use crate::frontend::database::{Database, Statuses};
use crate::frontend::invalidation::Wrote;
use crate::frontend::io::MAX_WAITING;
use crate::frontend::login::{Failed, Opening};
use crate::frontend::rest::Rest;
use crate::frontend::session::{Leased, Session};
use crate::frontend::users::User;
use crate::net::Stream;
use crate::pool::checkout::Pool;
use crate::pool::lease::{Lease, Return};
use crate::session::datestyle;
use crate::session::environment::Environment;
use crate::session::parameters::{Parameters, Settings, Value};
use crate::session::prepared::Names;
use crate::wire::startup::{self, Startup};
use crate::wire::write;

impl Opening {
    /// The settings the client asks for, tried on a server; the ParameterStatus values, the cancel key, ReadyForQuery: to be sent by
    /// the session, so that nothing waits between the client's entry and the session that takes it off again.
    pub(super) async fn greet(
        &mut self,
        startup: Startup,
        database: Arc<Database>,
        login: Login,
        user: &User,
    ) -> Result<Parts, Failed> {
        let mode = user.mode_in(&database);
        let base = settings(&startup)?;
        let pools = database.pools_of(&login);
        let known = database.statuses(&login.user, &base).filter(|_| mode != PoolMode::Session);
        let (base, statuses, lease) = match known {
            Some((base, statuses)) => (base, statuses, None),
            None => {
                let (statuses, lease) = self.statuses(&database, &login, &pools, &base).await?;
                (base, statuses, Some(lease))
            }
        };
        // A session of its own has one connection from first to last; others give it back.
        let lease = match lease {
            Some(lease) if mode != PoolMode::Session || lease.pool.node.role() != Role::Primary => {
                lease.give_back(Instant::now(), Return::default());
                None
            }
            lease => lease,
        };
        let application_name = status(&statuses, "application_name").unwrap_or_default().to_owned();
        let new = NewClient {
            user: login.user.clone(),
            database: database.name.clone(),
            peer: self.stream.peer(),
            local: self.stream.local(),
            tls: self.stream.tls_info().map(|tls| format!("{}/{}", tls.version, tls.cipher)).unwrap_or_default(),
            key_length: if startup.agreed_minor() >= 2 { 32 } else { 4 },
            application_name,
            replication: "none",
            server_pid: lease.as_ref().map(|lease| lease.identity.pid),
        };
        let client = Entered::new(&self.proxy, new);
        let refuses_pins = user.refuses_pins_in(&database);
        let parts =
            Parts { client, database, login, pools, mode, refuses_pins, lease, base, statuses: statuses.clone() };
        for (name, value) in statuses.iter() {
            write::parameter_status(&mut self.outbox, name, value);
        }
        write::backend_key_data(&mut self.outbox, parts.client.pid, &parts.client.secret);
        write::ready(&mut self.outbox, b'I');
        parts.database.counters.at(self.worker.index).client_login();
        Ok(parts)
    }

    /// What a fresh session with these settings reports, and the connection that said so. Settings are proven on a server:
    /// what it refuses ends the login, as it would there.
    async fn statuses(
        &mut self,
        database: &Database,
        login: &Login,
        pools: &[Arc<Pool>],
        base: &Settings,
    ) -> Result<(Statuses, Lease), Failed> {
        let mut lease = tokio::select! {
            answer = database.any_lease(self.worker.index, pools) => answer?,
            gone = gone(&mut self.stream, &mut self.inbox) => return Err(gone),
        };
        let on_primary = lease.pool.node.role() == Role::Primary;
        let told_before = self.outbox.len();
        let limit = database.pools.config().create_timeout;
        match tokio::time::timeout(limit, say(&mut lease, base, &mut self.outbox)).await {
            Ok(Ok(())) => {}
            Ok(Err((error, is_unchanged))) => {
                if is_unchanged {
                    lease.give_back(Instant::now(), Return::default());
                }
                return Err(fatal(error));
            }
            Err(_) => return Err(Fault::fatal(sqlstate::CONNECTION_FAILURE, "the server does not answer").into()),
        }
        // Whichever node was asked, writes are taken.
        let told = |(name, value): &(Box<str>, Box<str>)| {
            let value = if **name == *"in_hot_standby" { "off".into() } else { value.clone() };
            (name.clone(), value)
        };
        let statuses: Statuses = lease.statuses.iter().map(told).collect();
        // A notice is owed to each client anew.
        if on_primary && self.outbox.len() == told_before {
            database.set_statuses(login.user.clone(), base.clone(), statuses.clone());
        }
        Ok((statuses, lease))
    }
}

/// Brings a connection to a client's own settings, with the notices that come of it. An error tells whether the connection is
/// as it was.
async fn say(lease: &mut Lease, base: &Settings, notices: &mut BytesMut) -> Result<(), (BackendError, bool)> {
    // What another client wished to be told is not this one's wish.
    if lease.settings != *base && lease.settings.value("client_min_messages").is_some() {
        lease.begin();
        lease.query("RESET client_min_messages").await.map_err(|error| (error, false))?;
        lease.settings.remove("client_min_messages");
    }
    for (n, sql) in to_be_said(&lease.settings, base).iter().enumerate() {
        lease.begin();
        if let Err(error) = lease.query_noticed(sql, notices).await {
            // What was refused has changed nothing: the connection is as it was, but for what came before.
            let is_unchanged = n == 0 && matches!(&error, BackendError::Server(e) if !e.fatal);
            return Err((error, is_unchanged));
        }
    }
    lease.settings = base.clone();
    Ok(())
}

/// Returns when the client is gone: its place in the queue is then given up. What it sends ahead is kept, within bounds.
async fn gone(stream: &mut Stream, inbox: &mut BytesMut) -> Failed {
    while inbox.len() < MAX_WAITING {
        match stream.read_buf(inbox).await {
            Ok(n) if n > 0 => {}
            _ => return Failed::Gone,
        }
    }
    std::future::pending().await
}

/// What a login has found out, for the session.
#[derive(Debug)]
pub(super) struct Parts {
    client: Entered,
    database: Arc<Database>,
    login: Login,
    pools: Vec<Arc<Pool>>,
    mode: PoolMode,
    refuses_pins: bool,
    /// In session mode.
    lease: Option<Lease>,
    base: Settings,
    statuses: Statuses,
}

impl Parts {
    pub(super) fn into_session(self, opening: Opening) -> Session {
        let Parts { client, database, login, pools, mode, refuses_pins, lease, base, statuses } = self;
        let environment = Environment::new(&login.user);
        let leased = lease.map(|mut lease| {
            lease.begin();
            lease.identity.serve(client.id);
            Leased::for_session(lease)
        });
        let seen = Seen::at_start(&database.cluster.last_write);
        let rest = Rest {
            proxy: opening.proxy,
            worker: opening.worker,
            client,
            database,
            login,
            pools,
            mode,
            refuses_pins,
            stream: opening.stream,
            inbox: opening.inbox,
            names: Names::default(),
            sql_names: Vec::new(),
            environment,
            asks_sequences: false,
            sent_apart: 0,
            parameters: Parameters::new(base),
            had_temporary: false,
            seen,
            wrote: Wrote::default(),
            unsettled: None,
            readable: is_readable(&statuses),
            greeting: statuses,
            told: Vec::new(),
        };
        Session { outbox: opening.outbox, leased, ..rest.wake() }
    }
}

/// The session settings of a startup packet: `options` first, then the parameters, as Postgres applies them.
fn settings(startup: &Startup) -> Result<Settings, Fault> {
    let mut settings = Settings::default();
    let options = startup.options.as_deref().map_or(Ok(Vec::new()), startup::options)?;
    for (name, value) in options.into_iter().chain(startup.parameters.iter().cloned()) {
        let mut value = Value::Flat(value);
        if name.eq_ignore_ascii_case(datestyle::NAME) {
            // One that cannot be read is the server's to refuse.
            value = datestyle::after(value.clone(), settings.value(datestyle::NAME)).unwrap_or(value);
        }
        settings.set(&name, value);
    }
    Ok(settings)
}

fn status<'a>(statuses: &'a [(Box<str>, Box<str>)], name: &str) -> Option<&'a str> {
    statuses.iter().find(|(n, _)| **n == *name).map(|(_, v)| &**v)
}

/// Encodings whose multi-byte characters may hold ASCII bytes, quotes and backslashes among them.
const UNSAFE_ENCODINGS: [&str; 7] = ["SJIS", "BIG5", "GBK", "UHC", "GB18030", "JOHAB", "SHIFT_JIS_2004"];

/// Texts of a session with these parameters read as pgweir reads them.
fn is_readable(statuses: &[(Box<str>, Box<str>)]) -> bool {
    let encoding = status(statuses, "client_encoding").unwrap_or("UTF8");
    status(statuses, "standard_conforming_strings") != Some("off") && !UNSAFE_ENCODINGS.contains(&encoding)
}

impl Session {
    /// After client_encoding or standard_conforming_strings has changed.
    pub fn note_readable(&mut self) {
        if let Some(leased) = &self.leased {
            self.readable = is_readable(&leased.lease.statuses);
        }
    }
}

/// A server's refusal of the client's own settings, as the client would see it there.
fn fatal(error: BackendError) -> Failed {
    Failed::Fault(match error {
        BackendError::Server(e) => e.into_fatal(),
        other => Fault::fatal(sqlstate::CONNECTION_FAILURE, other.to_string()),
    })
}

/// What a server must be told for a client that asks for `base`. Names that are cut there (`NAMEDATALEN`) are always
/// said, for the notice that comes of it.
fn to_be_said(actual: &Settings, base: &Settings) -> Vec<String> {
    const LONGEST_NAME: usize = 63;
    let is_long = |value: &Value| matches!(value, Value::Flat(text) if text.len() > LONGEST_NAME);
    match actual.difference(base) {
        said if said.is_empty() && base.iter().any(|(_, value)| is_long(value)) => Settings::default().difference(base),
        said => said,
    }
}
