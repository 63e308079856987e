//! What binds a session to one server connection: state that cannot be said again elsewhere.

use crate::sql::{Effect, Facts, Reason, SetValue};

/// Why a session is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    TemporaryTable,
    Prepare,
    HoldCursor,
    AdvisoryLock,
    Listen,
    Load,
    /// A session-level SET that cannot be repeated (FROM CURRENT, SESSION CHARACTERISTICS, …).
    Set,
    /// Sequence values of the session: currval and lastval.
    Sequence,
}

const ALL: [(Pin, &str); 8] = [
    (Pin::TemporaryTable, "temporary table"),
    (Pin::Prepare, "prepare"),
    (Pin::HoldCursor, "hold cursor"),
    (Pin::AdvisoryLock, "advisory lock"),
    (Pin::Listen, "listen"),
    (Pin::Load, "load"),
    (Pin::Set, "set"),
    (Pin::Sequence, "sequence"),
];

impl Pin {
    /// What a session would have that has run this statement, as far as the text tells.
    pub fn foreseen(facts: &Facts) -> Option<Pin> {
        // The words of a DO may be its comments. What it leaves behind a look at the session tells, but for LOAD and
        // custom parameters.
        let guessed = facts.primary == Some(Reason::Utility) && facts.effects.contains(&Effect::Unknown);
        // Of a string with its own COMMITs, of which some statement fails, it is not known what has counted.
        let mixed = facts.statements > 1 && !facts.control.is_empty();
        let mut lasting = 0;
        for effect in &facts.effects {
            match effect {
                Effect::Load => return Some(Pin::Load),
                Effect::Set { name, value, local: false }
                    if (name.is_empty() || name.contains('.')) && (mixed || *value == SetValue::Opaque) =>
                {
                    return Some(Pin::Set);
                }
                Effect::Configure { local, .. } if !local.is_true() => return Some(Pin::Set),
                _ if guessed => {}
                Effect::Prepare(_) => return Some(Pin::Prepare),
                Effect::Declare { hold: true, .. } => return Some(Pin::HoldCursor),
                Effect::AdvisoryLock => return Some(Pin::AdvisoryLock),
                Effect::Temporary if makes(facts) => lasting += 1,
                Effect::DroppedAtCommit => lasting -= 1,
                _ => {}
            }
        }
        (lasting > 0).then_some(Pin::TemporaryTable)
    }

    /// The cause, in the words of SHOW CLIENTS.
    pub fn name(self) -> &'static str {
        ALL.iter().find(|(pin, _)| *pin == self).map_or("", |(_, name)| name)
    }
}

/// It may make a table or the like: reading one that is there says `pg_temp` as well.
fn makes(facts: &Facts) -> bool {
    facts.statements > 1 || matches!(facts.primary, Some(Reason::Ddl | Reason::Into))
}

/// The set of pins that hold a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pins(u16);

impl Pins {
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn insert(&mut self, pin: Pin) {
        self.0 |= 1 << pin as u16;
    }

    pub fn contains(self, pin: Pin) -> bool {
        self.0 & (1 << pin as u16) != 0
    }

    pub fn remove(&mut self, pin: Pin) {
        self.0 &= !(1 << pin as u16);
    }

    pub fn clear(&mut self) {
        self.0 = 0;
    }

    pub fn bits(self) -> u16 {
        self.0
    }

    pub fn from_bits(bits: u16) -> Pins {
        Pins(bits)
    }

    /// The causes, for SHOW CLIENTS.
    pub fn causes(self) -> String {
        let held = ALL.iter().filter(|(pin, _)| self.contains(*pin));
        held.map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::classify::classify;

    #[test]
    fn foresees_what_will_hold() {
        let of = |sql: &str| Pin::foreseen(&classify(sql));
        for (sql, pin) in [
            ("CREATE TEMP TABLE t (n int)", Pin::TemporaryTable),
            ("CREATE VIEW pg_temp.v AS SELECT 1", Pin::TemporaryTable),
            ("SELECT 1 INTO TEMP t", Pin::TemporaryTable),
            ("SELECT 1; CREATE TEMP TABLE t (n int)", Pin::TemporaryTable),
            ("CREATE TEMP TABLE t (n int) ON COMMIT DROP; CREATE TEMP TABLE u (n int)", Pin::TemporaryTable),
            ("PREPARE p AS SELECT 1", Pin::Prepare),
            ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", Pin::HoldCursor),
            ("SELECT pg_try_advisory_lock(1)", Pin::AdvisoryLock),
            ("LOAD 'auto_explain'", Pin::Load),
            ("DO $$ BEGIN LOAD 'auto_explain'; END $$", Pin::Load),
            ("SET my.own FROM CURRENT", Pin::Set),
            ("DO $$ BEGIN PERFORM set_config('my.own', 'x', false); END $$", Pin::Set),
            ("BEGIN; SET my.own = 1; COMMIT", Pin::Set),
        ] {
            assert_eq!(of(sql), Some(pin), "{sql}");
        }
        for sql in [
            "CREATE TEMP TABLE t (n int) ON COMMIT DROP",
            "SELECT * FROM pg_temp.t",
            "DROP TABLE IF EXISTS pg_temp.t",
            "SELECT pg_advisory_xact_lock(1)",
            "BEGIN; SET LOCAL my.own = 1; COMMIT",
            "SET work_mem = '1MB'",
            "LISTEN news",
            "DO $$ BEGIN /* no temporary table */ END $$",
        ] {
            assert_eq!(of(sql), None, "{sql}");
        }
    }

    #[test]
    fn names_what_holds() {
        let mut pins = Pins::default();
        pins.insert(Pin::Listen);
        pins.insert(Pin::TemporaryTable);
        assert_eq!(pins.causes(), "temporary table, listen");
        pins.remove(Pin::TemporaryTable);
        assert_eq!((pins.causes(), Pins::from_bits(pins.bits())), ("listen".to_owned(), pins));
        pins.clear();
        assert!(pins.is_empty());
    }
}
