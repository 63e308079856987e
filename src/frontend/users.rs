//! Users: those of `[[users]]`, and those that `auth.query` has found.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use dashmap::DashMap;

use crate::auth::{Credentials, Method, Secret, Verifier};
use crate::backend::connect::ServerCredentials;
use crate::config::{self, PinPolicy, PoolMode};
use crate::frontend::database::Database;

/// A user of `[[users]]`, or one that `auth.query` has found.
#[derive(Debug)]
pub struct User {
    pub name: Arc<str>,
    /// `None`: the client's own password is passed through.
    secret: Option<Arc<Secret>>,
    /// Made of a plain password at the first login, and kept: it costs PBKDF2.
    verifier: OnceLock<Option<Arc<Verifier>>>,
    pub credentials: Arc<ServerCredentials>,
    /// `None`: the database's.
    pub mode: Option<PoolMode>,
    /// `None`: the database's.
    pin: Option<PinPolicy>,
    /// May have replication connections passed through.
    pub replication: bool,
}

impl User {
    /// `before`: the same user that this one replaces. Changes nothing: see [`User::take_over`].
    fn new(config: &config::User, before: Option<&User>, credentials: Arc<ServerCredentials>) -> Result<User, String> {
        let secret = config.password.as_ref().map(|p| Secret::parse(&p.0)).transpose();
        let secret = secret.map_err(|e| format!("the password of user \"{}\": {e}", config.name))?.map(Arc::new);
        Ok(User {
            name: config.name.as_str().into(),
            // Its salt stays: those that nobody has, which are shown for unknown names, stay too.
            verifier: before
                .filter(|before| before.secret == secret)
                .map_or_else(OnceLock::new, |b| b.verifier.clone()),
            secret,
            credentials,
            mode: config.pool_mode,
            pin: config.pool_pin,
            replication: config.replication,
        })
    }

    /// Its pools go on with its password; what a login has taught of an unchanged secret stays.
    fn take_over(&self, before: Option<&User>) {
        if before.is_some_and(|before| before.secret == self.secret) {
            return;
        }
        self.credentials.replace(match self.secret.as_deref() {
            Some(Secret::Plain(password)) => Credentials::Plain(password.clone()),
            Some(Secret::Md5(hash)) => Credentials::Md5(hash.clone()),
            Some(Secret::Scram(_)) | None => Credentials::None,
        });
    }

    /// How its clients have their connections in a database.
    pub fn mode_in(&self, database: &Database) -> PoolMode {
        self.mode.unwrap_or(database.pools.config().mode)
    }

    /// Whether its clients there get an error for what would pin them. In session mode nothing does.
    pub fn refuses_pins_in(&self, database: &Database) -> bool {
        let policy = self.pin.unwrap_or(database.pools.config().pin);
        policy == PinPolicy::Refuse && self.mode_in(database) != PoolMode::Session
    }

    /// How a client that says it is this user is asked for proof.
    pub fn method(&self) -> Method {
        match self.secret.as_ref() {
            None => Method::Passthrough,
            Some(secret) if matches!(**secret, Secret::Md5(_)) => Method::Md5(Some(secret.clone())),
            Some(secret) => Method::Scram(self.verifier(secret)),
        }
    }

    /// By SCRAM and nothing else; an md5 hash does not serve it.
    pub fn scram(&self) -> Method {
        match self.method() {
            method @ Method::Scram(_) => method,
            _ => Method::Scram(None),
        }
    }

    /// By md5, or by SCRAM for a verifier, as Postgres takes its `md5`.
    pub fn md5(&self) -> Method {
        match self.secret.as_ref() {
            Some(secret) if !matches!(**secret, Secret::Scram(_)) => Method::Md5(Some(secret.clone())),
            _ => self.scram(),
        }
    }

    /// By the password in clear, checked here where there is a secret, else by a server.
    pub fn cleartext(&self) -> Method {
        match self.secret.as_ref() {
            Some(secret) => Method::Cleartext(Some(secret.clone())),
            None => Method::Passthrough,
        }
    }

    fn verifier(&self, secret: &Secret) -> Option<Arc<Verifier>> {
        let make = || {
            let mut salt = [0; 16];
            aws_lc_rs::rand::fill(&mut salt).ok()?;
            secret.verifier(salt).map(Arc::new)
        };
        self.verifier.get_or_init(make).clone()
    }

    /// Its password is configured, no hash of it: there is nothing that its clients could show.
    pub fn has_password(&self) -> bool {
        matches!(self.secret.as_deref(), Some(Secret::Plain(_)))
    }

    /// Can be logged in to servers before any client has come.
    pub fn is_known(&self) -> bool {
        matches!(self.secret.as_deref(), Some(Secret::Plain(_) | Secret::Md5(_)))
    }
}

/// Users of the configuration by their names.
pub type Configured = HashMap<Arc<str>, Arc<User>>;

#[derive(Debug, Default)]
pub struct Users {
    configured: ArcSwap<Configured>,
    queried: DashMap<Arc<str>, Arc<User>>,
    /// One of each name, wherever its user is known from, and while it is not: its pools hold on to it.
    credentials: DashMap<Arc<str>, Arc<ServerCredentials>>,
}

impl Users {
    /// # Errors
    /// A password is a verifier that is none.
    pub fn new(config: &[config::User]) -> Result<Users, String> {
        let users = Users::default();
        users.take(users.read(config)?);
        Ok(users)
    }

    /// One of the configuration.
    pub fn configured(&self, name: &str) -> Option<Arc<User>> {
        self.configured.load().get(name).cloned()
    }

    /// Those of the configuration, by name.
    pub fn all(&self) -> Vec<Arc<User>> {
        let mut users: Vec<_> = self.configured.load().values().cloned().collect();
        users.sort_by(|a, b| a.name.cmp(&b.name));
        users
    }

    /// Still known, from wherever.
    pub fn has(&self, name: &str) -> bool {
        self.configured.load().contains_key(name) || self.queried.contains_key(name)
    }

    /// Those of a configuration that may come to be taken. Changes nothing.
    ///
    /// # Errors
    /// A password is a verifier that is none.
    pub fn read(&self, config: &[config::User]) -> Result<Configured, String> {
        let before = self.configured.load();
        let user = |config: &config::User| {
            let before = before.get(&*config.name).map(|user| &**user);
            User::new(config, before, self.credentials(&config.name)).map(|user| (user.name.clone(), Arc::new(user)))
        };
        config.iter().map(user).collect()
    }

    pub fn take(&self, users: Configured) {
        let before = self.configured.load();
        for (name, user) in &users {
            user.take_over(before.get(name).map(|user| &**user));
            self.queried.remove(name);
        }
        self.configured.store(Arc::new(users));
    }

    /// One that a server knows by this secret. One for all its logins, so that its pools last from one to the next.
    ///
    /// # Errors
    /// It is a verifier that is none.
    pub fn learn(&self, name: &str, secret: String) -> Result<Arc<User>, String> {
        let config = config::User { password: Some(config::Secret(secret)), ..config::User::named(name) };
        let before = self.queried.get(name).map(|user| user.clone());
        let user = Arc::new(User::new(&config, before.as_deref(), self.credentials(name))?);
        user.take_over(before.as_deref());
        self.queried.insert(user.name.clone(), user.clone());
        Ok(user)
    }

    fn credentials(&self, name: &str) -> Arc<ServerCredentials> {
        self.credentials.entry(name.into()).or_insert_with(|| ServerCredentials::new(Credentials::None)).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Password;

    fn config(password: &str) -> [config::User; 1] {
        [config::User { password: Some(config::Secret(password.to_owned())), ..config::User::named("app") }]
    }

    fn salt(users: &Users) -> Arc<Verifier> {
        match users.configured("app").unwrap().method() {
            Method::Scram(Some(verifier)) => verifier,
            method => panic!("{method:?}"),
        }
    }

    /// One that changed with each reload would tell a user there is from one there is not.
    #[test]
    fn a_reload_leaves_the_salt_of_a_password_that_stays() {
        let users = Users::new(&config("same")).unwrap();
        let before = salt(&users);
        users.take(users.read(&config("same")).unwrap());
        assert_eq!(salt(&users), before);
        users.take(users.read(&config("other")).unwrap());
        assert_ne!(salt(&users), before);
    }

    #[test]
    fn pools_go_on_with_the_password_of_who_comes_back() {
        let is = |credentials: &ServerCredentials, word: &str| match credentials.current() {
            Credentials::Plain(password) => password == Password::new(word),
            _ => false,
        };
        let users = Users::new(&config("first")).unwrap();
        let credentials = users.configured("app").unwrap().credentials.clone();
        let read = users.read(&config("second")).unwrap();
        assert!(is(&credentials, "first"), "nothing is taken yet");
        users.take(read);
        assert!(is(&credentials, "second"));
        users.take(Configured::new());
        assert!(!users.has("app") && is(&credentials, "second"));
        users.learn("app", "third".into()).unwrap();
        assert!(users.has("app") && is(&credentials, "third"));
        users.take(users.read(&config("fourth")).unwrap());
        assert!(is(&credentials, "fourth"));
        users.take(Configured::new());
        assert!(!users.has("app"));
        users.learn("app", "third".into()).unwrap();
        assert!(is(&credentials, "third"));
    }
}
