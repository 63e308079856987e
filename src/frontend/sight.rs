//! What a session's names mean: the snapshot of its database's definitions, along its search_path.

use crate::catalog::judge::Verdict;
use crate::catalog::path::{self, Scope, Setting};
use crate::cluster::catalog::Definitions;
use crate::frontend::session::Session;
use crate::route::plan::Plan;
use crate::session::parameters::{Settings, Value};

/// The scope of a session, kept in step with snapshots and settings.
#[derive(Debug, Default)]
pub struct Sight {
    /// `None`: no snapshot holds now.
    scope: Option<Scope>,
    /// Of the definitions.
    version: Option<u64>,
    of: Settings,
}

impl Sight {
    pub fn scope(&self) -> Option<&Scope> {
        self.scope.as_ref()
    }

    /// The definitions have not changed since.
    pub fn is_of(&self, definitions: &Definitions) -> bool {
        self.version == Some(definitions.version())
    }
}

impl Session {
    /// Within a transaction that has changed nothing of what names mean: by the definitions of now, where there are any.
    pub fn renew_scope(&mut self) {
        let definitions = &self.database.cluster.definitions;
        if !self.sight.is_of(definitions) && definitions.snapshot().is_some() {
            self.settle_scope();
        }
    }

    /// At rest, where all settings are known.
    pub fn settle_scope(&mut self) {
        let definitions = &self.database.cluster.definitions;
        let version = definitions.version();
        let settings = self.parameters.current();
        if self.sight.version == Some(version) && self.sight.of == *settings {
            return;
        }
        let scope = definitions.snapshot().map(|catalog| {
            let login = &*self.login.user;
            let role =
                ["role", "session_authorization"].into_iter().find_map(|name| path::role(&setting(settings, name)));
            catalog.scope(&setting(settings, "search_path"), login, role.as_deref().unwrap_or(login))
        });
        self.sight = Sight { scope, version: Some(version), of: settings.clone() };
    }

    /// Where a statement may run, and what it may leave behind. While settings are in the air, nothing is known of what
    /// its names mean.
    pub fn verdict(&self, plan: &Plan) -> Verdict {
        plan.verdict(self.scope())
    }

    /// What its names mean, where that is known.
    pub fn scope(&self) -> Option<&Scope> {
        self.sight.scope.as_ref().filter(|_| !self.environment.is_apart())
    }
}

fn setting(settings: &Settings, name: &str) -> Setting {
    match settings.value(name) {
        None => Setting::Inherited,
        Some(Value::Flat(value)) => Setting::Flat(value.clone()),
        Some(Value::Sql(value)) => Setting::Sql(value.clone()),
    }
}
