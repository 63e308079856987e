//! The `a=value,b=value` text of SCRAM messages, read from untrusted bytes.

/// What is left of a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Attributes(message)
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of the next attribute, which must be `name` (`read_attr_value`).
    pub(super) fn value(&mut self, name: u8) -> Result<&'a [u8], String> {
        match self.0.first() {
            Some(&found) if found == name => self.any().map(|(_, value)| value),
            found => Err(format!("Attribute \"{}\" is expected, not {}.", char::from(name), shown(found))),
        }
    }

    /// The next attribute, whatever its name (`read_any_attr`).
    pub(super) fn any(&mut self) -> Result<(u8, &'a [u8]), String> {
        let name = match self.0.first() {
            Some(&name) if name.is_ascii_alphabetic() => name,
            found => return Err(format!("An attribute is expected, not {}.", shown(found))),
        };
        match self.0.get(1) {
            Some(b'=') => {}
            found => {
                return Err(format!("\"=\" is expected behind \"{}\", not {}.", char::from(name), shown(found)));
            }
        }
        let value = &self.0[2..];
        let end = memchr::memchr(b',', value).unwrap_or(value.len());
        self.0 = value.get(end + 1..).unwrap_or_default();
        Ok((name, &value[..end]))
    }

    /// Takes `byte` off the front.
    pub(super) fn expect(&mut self, byte: u8) -> Result<(), String> {
        match self.0.split_first() {
            Some((&found, rest)) if found == byte => {
                self.0 = rest;
                Ok(())
            }
            _ => Err(format!("\"{}\" is expected, not {}.", char::from(byte), shown(self.0.first()))),
        }
    }
}

/// One byte of a peer's message, fit for an error text (`sanitize_char`).
pub(super) fn shown(byte: Option<&u8>) -> String {
    match byte {
        None => "the end of the message".into(),
        Some(&c) if c.is_ascii_graphic() => format!("\"{}\"", char::from(c)),
        Some(c) => format!("0x{c:02x}"),
    }
}
