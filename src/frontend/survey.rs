//! A question of pgweir's own to a server at rest: what has the session there become?
//!
//! A text does not tell what a DO block, a function or a failed string of statements has left behind, nor whether a
//! DROP has ended the last temporary table. The server knows. It is asked behind the client's ReadyForQuery, so that
//! the client waits only where its next statement follows at once. Custom parameters (`a.b`) do not show in
//! pg_settings; what may have set one without its name in sight pins the session.

use std::collections::BTreeMap;

use crate::error::Malformed;
use crate::frontend::session::Session;
use crate::session::parameters::{Settings, Value};
use crate::session::pins::Pin;
use crate::session::pipeline::Expect;
use crate::wire::{read::Reader, write};

/// Names are qualified, operators too: the session's search_path must not lead them elsewhere.
const QUESTION: &str = "\
    SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE relnamespace OPERATOR(pg_catalog.=) temp) \
    OR EXISTS (SELECT FROM pg_catalog.pg_proc WHERE pronamespace OPERATOR(pg_catalog.=) temp) \
    OR EXISTS (SELECT FROM pg_catalog.pg_type WHERE typnamespace OPERATOR(pg_catalog.=) temp), \
    EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE from_sql), \
    EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable), \
    EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory'::text \
    AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()), \
    pg_catalog.current_setting('session_authorization'), pg_catalog.current_setting('role') \
    FROM pg_catalog.pg_my_temp_schema() AS temp; \
    SELECT name, setting FROM pg_catalog.pg_settings WHERE source OPERATOR(pg_catalog.=) 'session'::text \
    AND name OPERATOR(pg_catalog.<>) ALL (\
    ARRAY['transaction_isolation', 'transaction_read_only', 'transaction_deferrable']::text[]); \
    SELECT pg_catalog.pg_listening_channels()";

/// The pins that the first row decides, in its order.
const PINS: [Pin; 4] = [Pin::TemporaryTable, Pin::Prepare, Pin::HoldCursor, Pin::AdvisoryLock];

/// The answer as far as it has come.
#[derive(Debug, Default)]
pub struct Survey {
    pins: Option<[bool; PINS.len()]>,
    session_authorization: String,
    role: String,
    settings: BTreeMap<String, String>,
    channels: Vec<String>,
    failed: bool,
}

impl Session {
    /// Asks where something is unsure; false where nothing is.
    pub fn survey(&mut self) -> bool {
        let Some(leased) = self.leased.as_mut().filter(|leased| leased.unsure) else { return false };
        leased.unsure = false;
        self.survey = Some(Box::default());
        leased.lease.begin();
        leased.lease.unnamed = None;
        write::query(&mut leased.lease.outbox, QUESTION);
        self.pipeline.push(Expect::Survey);
        true
    }

    /// One row of the answer.
    pub fn note_survey(&mut self, row: &[u8]) -> Result<(), Malformed> {
        self.survey.get_or_insert_default().note(row)
    }

    /// The server refuses to say.
    pub fn fail_survey(&mut self) {
        self.survey.get_or_insert_default().failed = true;
    }

    /// The answer is complete: from now on it is what the session is.
    pub fn finish_survey(&mut self) {
        let survey = *self.survey.take().unwrap_or_default();
        let Some(leased) = &mut self.leased else { return };
        match survey.pins.filter(|_| !survey.failed) {
            // Not known, so not to be said again elsewhere.
            None => self.pins.insert(Pin::Set),
            Some(pins) => {
                for (pin, held) in PINS.into_iter().zip(pins) {
                    if held { self.pins.insert(pin) } else { self.pins.remove(pin) }
                }
                // Made where no text told of it, as at Effect::Temporary.
                if self.pins.contains(Pin::TemporaryTable) && !std::mem::replace(&mut self.had_temporary, true) {
                    leased.lease.held.doubt_all();
                }
                // A LISTEN that no text told of: only the connection it ran on listens.
                let hidden = survey.channels.iter().any(|channel| !self.channels.listens_on(channel));
                self.channels.set_alone(hidden);
                if hidden {
                    self.pins.insert(Pin::Listen)
                } else {
                    self.pins.remove(Pin::Listen)
                }
                let there = survey.settings(&leased.lease.settings, &self.login.user);
                let wanted = with_pending(&there, &leased.lease.settings, self.parameters.current());
                leased.lease.settings = there;
                self.parameters.learn(wanted);
            }
        }
    }
}

impl Survey {
    fn note(&mut self, row: &[u8]) -> Result<(), Malformed> {
        let mut r = Reader::new(row);
        let columns = r.i16()?;
        let mut values = Vec::with_capacity(PINS.len() + 2);
        for _ in 0..columns {
            let length = usize::try_from(r.i32()?).unwrap_or(0);
            match std::str::from_utf8(r.bytes(length)?) {
                Ok(value) => values.push(value),
                Err(_) => self.failed = true,
            }
        }
        match values[..] {
            [channel] => self.channels.push(channel.to_owned()),
            [name, setting] => drop(self.settings.insert(name.to_ascii_lowercase(), setting.to_owned())),
            [a, b, c, d, session_authorization, role] => {
                self.pins = Some([a, b, c, d].map(|held| held == "t"));
                self.session_authorization = session_authorization.to_owned();
                self.role = role.to_owned();
            }
            _ => self.failed = true,
        }
        Ok(())
    }

    /// What the session has set: as the server says it, and custom parameters as they are known.
    fn settings(self, known: &Settings, user: &str) -> Settings {
        let mut settings = Settings::default();
        for (name, value) in known.iter().filter(|(name, _)| name.contains('.')) {
            settings.set(name, value.clone());
        }
        for (name, value) in self.settings {
            settings.set(&name, Value::Flat(value));
        }
        if self.session_authorization != user {
            settings.set("session_authorization", Value::Flat(self.session_authorization));
        }
        if self.role != "none" {
            settings.set("role", Value::Flat(self.role));
        }
        settings
    }
}

/// What is `there`, with what was still to be said before the next statement: after a RESET, the client's own startup
/// values.
fn with_pending(there: &Settings, actual: &Settings, current: &Settings) -> Settings {
    let mut wanted = there.clone();
    for (name, value) in current.iter().filter(|(name, value)| actual.value(name) != Some(value)) {
        wanted.set(name, value.clone());
    }
    for (name, _) in actual.iter().filter(|(name, _)| current.value(name).is_none()) {
        wanted.remove(name);
    }
    wanted
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    fn row(values: &[&str]) -> Vec<u8> {
        let mut out = BytesMut::new();
        write::data_row(&mut out, values.iter().map(|v| Some(*v)));
        out[5..].to_vec()
    }

    #[test]
    fn rows_are_told_apart_by_their_width() {
        let mut survey = Survey::default();
        survey.note(&row(&["t", "f", "f", "t", "app", "reader"])).unwrap();
        survey.note(&row(&["DateStyle", "ISO, DMY"])).unwrap();
        assert_eq!(survey.pins, Some([true, false, false, true]));
        assert_eq!((survey.role.as_str(), survey.settings["datestyle"].as_str()), ("reader", "ISO, DMY"));
        survey.note(&row(&["news"])).unwrap();
        assert_eq!(survey.channels, ["news"]);
        assert!(!survey.failed);
        survey.note(&row(&["what", "is", "this"])).unwrap();
        assert!(survey.failed);
    }
}
