//! How a client is asked who it is: by the rules of `[auth]`, and by what its user's secret allows.

use crate::auth::{Method, rules};
use crate::config::{AuthMethod, AuthRule};
use crate::error::{Fault, sqlstate};
use crate::frontend::users::User;
use crate::net::{Peer, Stream};
use crate::wire::startup::Startup;

/// The rule that lets a login try, before anything is done about its user; `None`: there are no rules.
///
/// # Errors
/// A rule rejects it, or none allows it (28000).
pub fn rule<'r>(rules: &'r [AuthRule], stream: &Stream, startup: &Startup) -> Result<Option<&'r AuthRule>, Fault> {
    if rules.is_empty() {
        return Ok(None);
    }
    let login = rules::Login {
        address: match stream.peer() {
            Peer::Tcp(address) => Some(address.ip()),
            Peer::Unix => None,
        },
        tls: stream.is_tls(),
        database: &startup.database,
        user: &startup.user,
    };
    match rules::find(rules, &login) {
        None => Err(refused("no rule allows", stream, startup)),
        Some(rule) if rule.method == AuthMethod::Reject => Err(refused("a rule rejects", stream, startup)),
        found => Ok(found),
    }
}

/// The method for a login under a rule.
///
/// # Errors
/// The certificate is not the user's, or there is no such user to be trusted (28000).
pub fn method(
    rule: Option<&AuthRule>,
    stream: &Stream,
    startup: &Startup,
    user: Option<&User>,
) -> Result<Method, Fault> {
    // Nobody is told that a user is not known.
    let by_secret = || user.map_or(Method::Scram(None), User::method);
    let Some(rule) = rule else { return Ok(by_secret()) };
    match rule.method {
        AuthMethod::Default => Ok(by_secret()),
        AuthMethod::Scram => Ok(user.map_or(Method::Scram(None), User::scram)),
        AuthMethod::Md5 => Ok(user.map_or(Method::Md5(None), User::md5)),
        AuthMethod::Password => Ok(user.map_or(Method::Cleartext(None), User::cleartext)),
        AuthMethod::Reject => Err(refused("a rule rejects", stream, startup)),
        AuthMethod::Trust if user.is_some() => Ok(Method::Trust),
        AuthMethod::Cert if user.is_some() && is_certified(rule, stream, &startup.user) => Ok(Method::Trust),
        AuthMethod::Cert => {
            Err(not_authorized(format!("certificate authentication failed for user \"{}\"", startup.user)))
        }
        AuthMethod::Trust => Err(not_authorized(format!("role \"{}\" does not exist", startup.user))),
    }
}

/// The client has shown a certificate, which TLS has verified, of this user.
fn is_certified(rule: &AuthRule, stream: &Stream, user: &str) -> bool {
    let Some(name) = stream.tls_info().and_then(|tls| tls.peer_name.as_deref()) else { return false };
    let mut mapped = rule.map.iter().filter(|(from, _)| from == name).peekable();
    match mapped.peek() {
        Some(_) => mapped.any(|(_, to)| to == user),
        None => name == user,
    }
}

fn refused(what: &str, stream: &Stream, startup: &Startup) -> Fault {
    let from = match stream.peer() {
        Peer::Tcp(address) => format!("host \"{}\"", address.ip()),
        Peer::Unix => "the unix socket".to_owned(),
    };
    let tls = if stream.is_tls() { "encryption" } else { "no encryption" };
    let Startup { user, database, .. } = startup;
    not_authorized(format!("{what} {from}, user \"{user}\", database \"{database}\", {tls}"))
}

fn not_authorized(message: String) -> Fault {
    Fault::fatal(sqlstate::INVALID_AUTHORIZATION, message)
}
