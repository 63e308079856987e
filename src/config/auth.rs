//! `[auth]`: users that are asked of a server, and rules of who may log in how.

use std::net::IpAddr;

use super::section::Section;
use super::{Auth, AuthMethod, AuthQuery, AuthRule, Network, RuleConnection, User};

const METHODS: [(&str, AuthMethod); 7] = [
    ("default", AuthMethod::Default),
    ("scram-sha-256", AuthMethod::Scram),
    ("md5", AuthMethod::Md5),
    ("password", AuthMethod::Password),
    ("cert", AuthMethod::Cert),
    ("trust", AuthMethod::Trust),
    ("reject", AuthMethod::Reject),
];

const CONNECTIONS: [(&str, RuleConnection); 5] = [
    ("any", RuleConnection::Any),
    ("local", RuleConnection::Local),
    ("host", RuleConnection::Host),
    ("hostssl", RuleConnection::HostSsl),
    ("hostnossl", RuleConnection::HostNoSsl),
];

pub(super) fn auth(s: &Section<'_, '_>, users: &[User]) -> Auth {
    let query = query(s, users);
    let rules = s.sections("rules").iter().map(rule).collect();
    Auth { query, rules }
}

fn query(s: &Section<'_, '_>, users: &[User]) -> Option<AuthQuery> {
    let sql = s.text_or_none("query");
    let user = s.text_or_none("query_user");
    let database = s.text_or_none("query_database");
    let sql = sql?;
    if !sql.contains("$1") {
        s.error("query", "does not ask for a user", "$1 stands for the name, as in \"… WHERE usename = $1\"");
    }
    let Some(user) = user else {
        s.missing("query_user", "one of [[users]] with a password, who may run the query");
        return None;
    };
    if !users.iter().any(|known| known.name == user && known.password.is_some()) {
        s.error("query_user", format_args!("names {user:?}, who is not among [[users]] with a password"), "");
    }
    Some(AuthQuery { sql, user, database })
}

fn rule(s: &Section<'_, '_>) -> AuthRule {
    let names = |key| Some(s.texts(key)).filter(|names| !names.is_empty());
    let all = || vec!["all".to_owned()];
    let address = s.text("address", "all");
    let network = match address.as_str() {
        "all" => None,
        text => {
            let network = parse_network(text);
            if network.is_none() {
                s.error("address", format_args!("is no network: {text:?}"), "write it like \"10.0.0.0/8\", or \"all\"");
            }
            network
        }
    };
    AuthRule {
        connection: s.choice("connection", RuleConnection::Any, &CONNECTIONS),
        databases: names("databases").unwrap_or_else(all),
        users: names("users").unwrap_or_else(all),
        network,
        method: s.choice("method", AuthMethod::Default, &METHODS),
        map: map(s),
    }
}

/// `certificate name=user` each.
fn map(s: &Section<'_, '_>) -> Vec<(String, String)> {
    let pair = |text: &String| {
        let pair = text.split_once('=').map(|(from, to)| (from.to_owned(), to.to_owned()));
        if pair.is_none() {
            s.error("map", format_args!("has no \"=\" in {text:?}"), "write it like \"common name=user\"");
        }
        pair
    };
    s.texts("map").iter().filter_map(pair).collect()
}

/// An address, or one with the length of its prefix.
fn parse_network(text: &str) -> Option<Network> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix.parse::<u8>().ok()?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.unwrap_or(bits);
    (prefix <= bits).then_some(Network { address, prefix })
}
