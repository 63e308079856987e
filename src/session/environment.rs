//! The settings under which a statement's text is read: what it means, and so which clients may share it.
//!
//! Names are looked up by search_path and role, literals read by DateStyle, TimeZone, string syntax and encoding, and
//! constants are folded when a statement is prepared. A statement is shared among clients whose settings agree in
//! everything that is not known to leave texts alone. Within a transaction that has changed definitions, and beside
//! temporary objects, texts have a meaning of the session's own.

use std::fmt::Write;
use std::sync::Arc;

use crate::session::parameters::{HARMLESS, Settings};
use crate::sql::settings::is_of_transaction;
use crate::sql::{Effect, Facts};

/// Whether a setting does not change what a text means; custom ones (`a.b`) and those of the transaction do not either.
fn is_harmless(name: &str) -> bool {
    name.contains('.')
        || is_of_transaction(name)
        || name == "extra_float_digits"
        || HARMLESS.binary_search(&name).is_ok()
}

/// One client's, kept in step with its settings.
#[derive(Debug)]
pub struct Environment {
    /// Whose schema `"$user"` is, and whose defaults count.
    user: Arc<str>,
    key: Arc<str>,
    of: Settings,
    /// Settings have changed in a way that is not followed, or not yet, or definitions have: until the session is at rest
    /// nothing is shared.
    apart: bool,
    /// … since it was last at rest: a transaction's end may take it back.
    moved: bool,
}

impl Environment {
    /// Of a session of this user without settings of its own.
    pub fn new(user: &str) -> Environment {
        let user: Arc<str> = format!("{user:?};").into();
        Environment { key: user.clone(), user, of: Settings::default(), apart: false, moved: false }
    }

    /// Equal keys: the same text means the same.
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// At rest, where all settings are known. `temporary`: the session has objects that no other has.
    pub fn settle(&mut self, settings: &Settings, temporary: bool) {
        self.moved = false;
        if temporary {
            return;
        }
        if !self.apart && self.of == *settings {
            return;
        }
        self.apart = false;
        self.of = settings.clone();
        let mut key = String::from(&*self.user);
        for (name, value) in settings.iter().filter(|(name, _)| !is_harmless(name)) {
            // Writing to a String has no error.
            let _ = write!(key, "{name}={value:?};");
        }
        self.key = key.into();
    }

    /// Settings are in the air.
    pub fn is_apart(&self) -> bool {
        self.apart
    }

    /// A statement is sent that may change settings: what follows is not shared with anyone, nor with what came before.
    /// `unseen`: it may change settings or definitions in ways that its effects do not say.
    pub fn note(&mut self, facts: &Facts, unseen: bool, unique: impl FnOnce() -> String) {
        let returns = self.moved && !facts.control.is_empty();
        let sets = facts.calls_any(&["set_config"]);
        if returns || sets || unseen || moves_texts(facts) {
            (self.apart, self.moved) = (true, true);
            self.key = unique().into();
        }
    }
}

/// It may change what texts mean.
pub fn moves_texts(facts: &Facts) -> bool {
    facts.effects.iter().any(changes)
}

/// It may change a setting that is not harmless, be it for the transaction alone, or what temporary objects hide.
fn changes(effect: &Effect) -> bool {
    match effect {
        Effect::Set { name, .. } => !is_harmless(name),
        Effect::Temporary | Effect::DiscardTemp => true,
        Effect::ResetAll | Effect::Role { .. } | Effect::DiscardAll | Effect::Execute(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::parameters::Value;
    use crate::sql::classify::classify;

    fn settings(name: &str, value: &str) -> Settings {
        let mut settings = Settings::default();
        settings.set(name, Value::Sql(value.into()));
        settings
    }

    #[test]
    fn texts_mean_the_same_under_settings_that_differ_in_nothing_that_matters() {
        let (mut a, mut b) = (Environment::new("u"), Environment::new("u"));
        a.settle(&settings("work_mem", "'1MB'"), false);
        b.settle(&settings("my.tenant", "7"), false);
        assert_eq!(a.key(), b.key());
        b.settle(&settings("search_path", "other"), false);
        assert_ne!(a.key(), b.key());
        assert_ne!(Environment::new("u").key(), Environment::new("other").key());
        assert!(HARMLESS.is_sorted());
    }

    #[test]
    fn nothing_is_shared_while_settings_are_in_the_air() {
        let mut environment = Environment::new("u");
        let mut n = 0;
        let mut note = |environment: &mut Environment, sql| {
            n += 1;
            let facts = classify(sql);
            let unseen = sql.starts_with("ALTER") || facts.effects.contains(&Effect::Unknown);
            environment.note(&facts, unseen, || n.to_string());
            environment.key().clone()
        };
        let rest = environment.key().clone();
        assert_eq!(note(&mut environment, "SET LOCAL work_mem = 1"), rest);
        let apart = note(&mut environment, "SET LOCAL search_path = x");
        assert_eq!(note(&mut environment, "SELECT 1"), apart);
        assert_ne!(note(&mut environment, "ROLLBACK TO a"), apart);
        environment.settle(&Settings::default(), false);
        assert_eq!(*environment.key(), rest);
        assert_ne!(note(&mut environment, "ALTER TABLE t ADD n int"), rest);
        environment.settle(&Settings::default(), false);
        assert_eq!(note(&mut environment, "COMMIT"), rest);
    }

    #[test]
    fn temporary_objects_keep_it_apart() {
        let mut environment = Environment::new("u");
        let rest = environment.key().clone();
        environment.note(&classify("CREATE TEMP TABLE t (n int)"), false, || "own".to_owned());
        environment.settle(&Settings::default(), true);
        environment.note(&classify("BEGIN"), false, || "begun".to_owned());
        assert_eq!(&**environment.key(), "own");
        environment.settle(&Settings::default(), false);
        assert_eq!(*environment.key(), rest);
    }
}
