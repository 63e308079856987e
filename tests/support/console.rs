//! The admin console, asked by psql as its operator.

use std::collections::BTreeMap;

use super::http::TOKEN;
use super::{Builder, Pgweir};

pub const OPERATOR: &str = "operator";

/// A row by its columns' names.
pub type Row = BTreeMap<String, String>;

/// What SHOW answered.
#[derive(Debug)]
pub struct Table {
    pub columns: Vec<String>,
    pub rows: Vec<Row>,
}

impl Table {
    /// The only row whose `column` is `value`.
    pub fn row(&self, column: &str, value: &str) -> &Row {
        let found: Vec<_> = self.rows.iter().filter(|row| row[column] == value).collect();
        assert_eq!(found.len(), 1, "{column} = {value} in {self:#?}");
        found[0]
    }

    pub fn number(&self, column: &str, value: &str, of: &str) -> u64 {
        self.row(column, value)[of].parse().unwrap()
    }

    /// The values of a column, sorted.
    pub fn column(&self, name: &str) -> Vec<&str> {
        let mut values: Vec<_> = self.rows.iter().map(|row| &*row[name]).collect();
        values.sort_unstable();
        values
    }
}

impl Builder {
    /// With a user who may use the admin console, whose password is the name, and with [`TOKEN`].
    pub fn operator(self) -> Self {
        self.user(OPERATOR, OPERATOR).set("admin.users", vec![OPERATOR]).set("admin.token", TOKEN)
    }
}

impl Pgweir {
    pub fn console_url(&self) -> String {
        self.url_of(OPERATOR, OPERATOR, "pgweir")
    }

    /// The answer to one SHOW.
    pub fn console(&self, sql: &str) -> Table {
        const FIELD: &str = "\x1f";
        const RECORD: &str = "\x1e";
        let url = self.console_url();
        let format = ["-P", "tuples_only=off", "-P", "footer=off", "-F", FIELD, "-R", RECORD];
        let output = self.psql_output(&[&format[..], &["-c", sql, &url]].concat());
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        let printed = String::from_utf8(output.stdout).unwrap();
        let mut records = printed.strip_suffix('\n').unwrap_or(&printed).split(RECORD);
        let columns: Vec<String> = records.next().unwrap().split(FIELD).map(str::to_owned).collect();
        let rows = records.map(|r| columns.iter().cloned().zip(r.split(FIELD).map(str::to_owned)).collect());
        Table { rows: rows.collect(), columns }
    }
}
