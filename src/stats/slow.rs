//! One slow statement, as a value and as a line of JSON.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::{micros, millis};
use crate::sql::Fingerprint;

/// One slow statement; serialized, it is a line of the log, field by field.
#[derive(Debug, Clone, Serialize)]
pub struct SlowEntry {
    #[serde(serialize_with = "timestamp")]
    pub ts: Timestamp,
    pub level: Level,
    pub database: String,
    pub user: String,
    pub application_name: String,
    /// Address and port.
    pub client: String,
    #[serde(serialize_with = "fingerprint")]
    pub fingerprint: Fingerprint,
    /// Literals folded out, unless `statements.slow_log_parameters` asks for them.
    pub statement: String,
    /// The same without its literals, where it shows them: for those who may not see them.
    #[serde(skip)]
    pub normalized: Option<String>,
    /// The bound values; only where `statements.slow_log_parameters` asks for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Vec<Option<String>>>,
    #[serde(rename = "duration_ms", serialize_with = "milliseconds")]
    pub duration: Duration,
    #[serde(rename = "wait_ms", serialize_with = "milliseconds")]
    pub wait: Duration,
    #[serde(rename = "execute_ms", serialize_with = "milliseconds")]
    pub execute: Duration,
    pub rows: u64,
    pub bytes: u64,
    /// `None`: no server ran it.
    pub node: Option<String>,
    pub role: Option<String>,
    pub cached: bool,
    pub route_reason: String,
    /// Within an explicit transaction.
    pub transaction: bool,
    /// SQLSTATE.
    pub error: Option<String>,
    /// W3C trace context, from a sqlcommenter comment.
    pub traceparent: Option<String>,
    /// EXPLAIN (FORMAT JSON), where captured.
    pub plan: Option<serde_json::Value>,
    pub advice: Vec<String>,
}

/// The `level` of a line.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Slow,
}

impl SlowEntry {
    /// Memory of the entry, plan and advice by their length as text.
    pub fn bytes(&self) -> usize {
        size_of::<SlowEntry>() + self.to_json_line().len()
    }

    /// The same for those who may not see literals; a plan and advice may have them as well.
    pub fn without_literals(&self) -> SlowEntry {
        let entry = self.clone();
        match &self.normalized {
            None => entry,
            Some(text) => {
                let (statement, advice) = (text.clone(), Vec::new());
                SlowEntry { statement, normalized: None, parameters: None, plan: None, advice, ..entry }
            }
        }
    }

    /// The line, without its newline.
    pub fn to_json_line(&self) -> String {
        // cannot fail: no maps with keys other than strings, and writing to memory
        serde_json::to_string(self).unwrap_or_default()
    }
}

fn timestamp<S: Serializer>(ts: &Timestamp, out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(&rfc3339(*ts))
}

/// RFC 3339 in UTC with milliseconds.
pub fn rfc3339(ts: Timestamp) -> impl std::fmt::Display {
    ts.strftime("%Y-%m-%dT%H:%M:%S.%3fZ")
}

fn fingerprint<S: Serializer>(value: &Fingerprint, out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(value)
}

fn milliseconds<S: Serializer>(value: &Duration, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_f64(millis(micros(*value) as f64))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn entry(statement: &str) -> SlowEntry {
        SlowEntry {
            ts: "2026-01-15T10:00:00.5Z".parse().unwrap(),
            level: Level::Slow,
            database: "app".into(),
            user: "alice".into(),
            application_name: "shop".into(),
            client: "127.0.0.1:50000".into(),
            fingerprint: Fingerprint(0xab),
            statement: statement.into(),
            normalized: None,
            parameters: None,
            duration: Duration::from_micros(150_250),
            wait: Duration::from_micros(250),
            execute: Duration::from_millis(150),
            rows: 3,
            bytes: 120,
            node: Some("replica-1:5432".into()),
            role: Some("replica".into()),
            cached: false,
            route_reason: "read".into(),
            transaction: false,
            error: None,
            traceparent: None,
            plan: None,
            advice: Vec::new(),
        }
    }

    #[test]
    fn the_line_is_the_contract() {
        assert_eq!(
            entry("select \"a\"\n from t where b = $1").to_json_line(),
            concat!(
                r#"{"ts":"2026-01-15T10:00:00.500Z","level":"slow","database":"app","user":"alice","#,
                r#""application_name":"shop","client":"127.0.0.1:50000","fingerprint":"00000000000000ab","#,
                r#""statement":"select \"a\"\n from t where b = $1","duration_ms":150.25,"wait_ms":0.25,"#,
                r#""execute_ms":150.0,"rows":3,"bytes":120,"node":"replica-1:5432","role":"replica","#,
                r#""cached":false,"route_reason":"read","transaction":false,"error":null,"#,
                r#""traceparent":null,"plan":null,"advice":[]}"#
            )
        );
    }
}
