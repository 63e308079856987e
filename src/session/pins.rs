//! What binds a session to one server connection: state that cannot be said again elsewhere.

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
