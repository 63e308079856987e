//! Where a load goes: a connection URL.

use std::path::PathBuf;
use std::time::Duration;

use crate::auth::{Credentials, Password};
use crate::backend::connect::{self, ConnectFailure, Login, ServerCredentials};
use crate::backend::connection::Connection;
use crate::config::{Node, NodeRole, TlsMode};
use crate::net::Connector;

/// The server's port where the URL has none: Postgres's.
const PORT: u16 = 5432;
/// A login that takes longer has failed. As long as a pool's `acquire_timeout`, so that a full one has its say.
const LOGIN_LIMIT: Duration = Duration::from_secs(60);

/// A server, and who logs in to it. One for all users, so that they share the keys of SCRAM and the sessions of TLS.
#[derive(Debug, Clone)]
pub struct Target {
    node: Node,
    tls: Connector,
    login: Login,
    application_name: String,
}

/// What libpq takes from the environment.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `PGPASSWORD`
    pub password: Option<String>,
    /// `PGUSER`, or who runs this.
    pub user: Option<String>,
}

impl Environment {
    pub fn read() -> Environment {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Environment { password: variable("PGPASSWORD"), user: variable("PGUSER").or_else(|| variable("USER")) }
    }
}

/// The parts of a URL as they are written, decoded.
#[derive(Debug, Default)]
struct Parts {
    user: Option<String>,
    password: Option<String>,
    host: String,
    port: Option<u16>,
    database: Option<String>,
    sslmode: Option<TlsMode>,
    sslrootcert: Option<PathBuf>,
    application_name: Option<String>,
}

impl Target {
    /// Reads `postgres://user:password@host:port/database?sslmode=…`.
    ///
    /// # Errors
    /// What is wrong with it, for a person.
    pub fn parse(url: &str, environment: &Environment) -> Result<Target, String> {
        let parts = Parts::parse(url)
            .map_err(|why| format!("--to: {why}; expected postgres://user:password@host:port/database"))?;
        let user = parts.user.or_else(|| environment.user.clone()).ok_or("--to names no user")?;
        let password = parts.password.or_else(|| environment.password.clone());
        let credentials = match password {
            Some(password) => Credentials::Plain(Password::new(password)),
            None => Credentials::None,
        };
        let mode = parts.sslmode.unwrap_or(TlsMode::Prefer);
        let tls = Connector::new(mode, parts.sslrootcert.as_deref()).map_err(|e| format!("--to: {e}"))?;
        Ok(Target {
            node: Node { host: parts.host, port: parts.port.unwrap_or(PORT), role: NodeRole::Auto, weight: 1 },
            tls,
            login: Login {
                database: parts.database.as_deref().unwrap_or(&user).into(),
                user: user.into(),
                credentials: ServerCredentials::new(credentials),
            },
            application_name: parts.application_name.unwrap_or_else(|| "pgweir load".into()),
        })
    }

    /// Without the password.
    pub fn name(&self) -> String {
        format!("{}@{}:{}/{}", self.login.user, self.node.host, self.node.port, self.login.database)
    }

    /// A logged-in connection.
    ///
    /// # Errors
    /// Why there is none; [`ConnectFailure::Timeout`] after a minute.
    pub async fn connect(&self) -> Result<Connection, ConnectFailure> {
        let more = [("application_name", self.application_name.as_str())];
        let connecting = connect::connect_with(&self.node, &self.tls, &self.login, LOGIN_LIMIT, &more);
        tokio::time::timeout(LOGIN_LIMIT, connecting).await.map_err(|_| ConnectFailure::Timeout)?
    }
}

impl Parts {
    fn parse(url: &str) -> Result<Parts, String> {
        let rest = ["postgres://", "postgresql://"].iter().find_map(|scheme| url.strip_prefix(scheme));
        let rest = rest.ok_or("it does not begin with postgres://")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (userinfo, address) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = userinfo.split_once(':').map_or((userinfo, None), |(user, pw)| (user, Some(pw)));
        let some = |text: &str| Ok::<_, String>(Some(decode(text)?).filter(|text| !text.is_empty()));
        let (host, port) = address_of(address)?;
        let mut parts = Parts {
            user: some(user)?,
            password: password.map(decode).transpose()?,
            host,
            port,
            database: some(database)?,
            ..Parts::default()
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| format!("{pair} has no value"))?;
            parts.set(key, decode(value)?)?;
        }
        if parts.host.is_empty() {
            return Err("it names no host".into());
        }
        Ok(parts)
    }

    fn set(&mut self, key: &str, value: String) -> Result<(), String> {
        match key {
            "host" => self.host = value,
            "port" => self.port = Some(value.parse().map_err(|_| format!("{value} is no port"))?),
            "user" => self.user = Some(value),
            "password" => self.password = Some(value),
            "dbname" => self.database = Some(value),
            "application_name" => self.application_name = Some(value),
            "sslrootcert" => self.sslrootcert = Some(value.into()),
            "sslmode" => self.sslmode = Some(mode(&value)?),
            _ => return Err(format!("{key} is not known here")),
        }
        Ok(())
    }
}

fn mode(value: &str) -> Result<TlsMode, String> {
    Ok(match value {
        "disable" => TlsMode::Disable,
        "allow" => TlsMode::Allow,
        "prefer" => TlsMode::Prefer,
        "require" => TlsMode::Require,
        "verify-ca" => TlsMode::VerifyCa,
        "verify-full" => TlsMode::VerifyFull,
        _ => return Err(format!("{value} is no sslmode")),
    })
}

/// Host and port; an IPv6 address stands in brackets (RFC 3986, section 3.2.2).
fn address_of(text: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => text.rsplit_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    if host.contains(',') {
        return Err("it names several hosts".into());
    }
    let number = |port: &str| port.parse().map_err(|_| format!("{port} is no port"));
    let port = port.filter(|port| !port.is_empty()).map(number).transpose()?;
    Ok((decode(host)?, port))
}

/// Percent-encoded bytes as what they stand for (RFC 3986, section 2.1).
fn decode(text: &str) -> Result<String, String> {
    let wrong = || format!("{text} is not percent-encoded text");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        (rest, bytes) = match (first, behind) {
            (b'%', [high, low, behind @ ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16).ok_or_else(wrong);
                // two digits below 16 make a byte
                bytes.push((digit(*high)? * 16 + digit(*low)?) as u8);
                (behind, bytes)
            }
            (b'%', _) => return Err(wrong()),
            _ => {
                bytes.push(*first);
                (behind, bytes)
            }
        };
    }
    match String::from_utf8(bytes) {
        Ok(decoded) if !decoded.contains('\0') => Ok(decoded),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(url: &str) -> Result<String, String> {
        let environment = Environment { password: None, user: Some("me".into()) };
        Target::parse(url, &environment).map(|target| target.name())
    }

    #[test]
    fn urls_are_read_as_libpq_reads_them() {
        for (url, expected) in [
            ("postgres://app:s%40cret@db:6432/shop", "app@db:6432/shop"),
            ("postgresql://app@db/shop?sslmode=disable", "app@db:5432/shop"),
            ("postgres://db", "me@db:5432/me"),
            ("postgres://db:1/", "me@db:1/me"),
            ("postgres://u@[::1]:6432/d", "u@::1:6432/d"),
            ("postgres:///d?host=/run/postgresql&port=6432&user=u", "u@/run/postgresql:6432/d"),
            ("postgres://u@%2Frun%2Fpostgresql/d", "u@/run/postgresql:5432/d"),
        ] {
            assert_eq!(name(url).as_deref(), Ok(expected), "{url}");
        }
        let parts = Parts::parse("postgres://u:a%3Ab%25@h/d?application_name=x%20y").unwrap();
        assert_eq!((parts.password.as_deref(), parts.application_name.as_deref()), (Some("a:b%"), Some("x y")));
    }

    #[test]
    fn what_is_no_url_is_said_without_its_password() {
        for (url, why) in [
            ("localhost:5432", "does not begin with postgres://"),
            ("postgres:///d", "no host"),
            ("postgres://h:port/d", "port is no port"),
            ("postgres://h:70000/d", "70000 is no port"),
            ("postgres://a,b/d", "several hosts"),
            ("postgres://h/d?sslmode=always", "no sslmode"),
            ("postgres://h/d?options=x", "options is not known"),
            ("postgres://h/d?sslmode", "no value"),
            ("postgres://h/%zz", "percent-encoded"),
            ("postgres://h/%00", "percent-encoded"),
        ] {
            let error = name(url).unwrap_err();
            assert!(error.starts_with("--to: ") && error.contains(why), "{error}");
        }
        assert!(!name("postgres://u:secret@h:port/d").unwrap_err().contains("secret"));
        let nobody = Target::parse("postgres://h/d", &Environment::default()).unwrap_err();
        assert!(nobody.contains("no user"), "{nobody}");
    }
}
