//! A role of a test's own, so that its server connections can be told from those of other tests.

use pgweir::demo::cluster::Server;
use pgweir::demo::sample;

use super::{LIMIT, Pgweir, wait_until};

/// A login role with the application's privileges, whose password is its name.
#[derive(Debug, Clone, Copy)]
pub struct Role<'a> {
    pub name: &'a str,
    server: &'a Server,
}

impl<'a> Role<'a> {
    pub fn create(server: &'a Server, name: &'a str) -> Role<'a> {
        let role = format!("CREATE ROLE {name} LOGIN PASSWORD '{name}'; GRANT {} TO {name}", sample::USER);
        server.psql(&role).unwrap();
        Role { name, server }
    }

    /// A URL of this role, through pgweir.
    pub fn url(&self, pgweir: &Pgweir) -> String {
        pgweir.url_of(self.name, self.name, sample::DATABASE)
    }

    /// One column of its rows of pg_stat_activity, in the order of their pids.
    pub fn activity(&self, column: &str) -> Vec<String> {
        self.activity_where(column, "true")
    }

    /// … of those for which the condition holds.
    pub fn activity_where(&self, column: &str, condition: &str) -> Vec<String> {
        let sql = format!(
            "SELECT {column} FROM pg_stat_activity WHERE usename = '{}' AND backend_type = 'client backend' \
             AND ({condition}) ORDER BY pid",
            self.name
        );
        self.server.psql(&sql).unwrap().lines().map(str::to_owned).collect()
    }

    /// Its server connections, by pid.
    pub fn pids(&self) -> Vec<String> {
        self.activity("pid")
    }

    /// Waits until it has so many server connections.
    pub fn wait_for(&self, count: usize) {
        wait_until(LIMIT, &format!("{count} server connections of {}", self.name), || self.pids().len() == count);
    }

    /// SQL in the sample database, past pgweir.
    pub fn directly(&self, sql: &str) -> String {
        self.server.psql_in(sample::DATABASE, sql).unwrap()
    }
}
