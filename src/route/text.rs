//! The text of a statement, as a plan holds it.

use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use arrayvec::ArrayString;

/// Bytes that are held without memory of their own. With more of them, a plan would be too large for the short lists that glibc's
/// malloc puts back without looking at neighbours: 128 bytes with what it adds.
const SHORT: usize = 72;

/// Most texts that come once are short, and to allocate for each costs more than to copy it.
#[derive(Debug, Clone)]
pub enum Text {
    Short(ArrayString<SHORT>),
    Long(Arc<str>),
    /// The first part of a text that is too long to keep.
    Cut(Arc<str>),
}

impl Text {
    /// It is all there.
    pub fn is_whole(&self) -> bool {
        !matches!(self, Text::Cut(_))
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Text {
        ArrayString::from(text).map_or_else(|_| Text::Long(text.into()), Text::Short)
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Text::Short(text) => text,
            Text::Long(text) | Text::Cut(text) => text,
        }
    }
}

impl Hash for Text {
    /// Of its bytes alone.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.as_bytes());
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Text) -> bool {
        **self == **other
    }
}

impl Eq for Text {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_the_same_however_it_is_held() {
        for length in [0, 1, SHORT - 1, SHORT, SHORT + 1, 1000] {
            let text = "x".repeat(length);
            let held = Text::from(&*text);
            assert_eq!((&*held, held.is_whole()), (&*text, true));
            assert_eq!(matches!(held, Text::Short(_)), length <= SHORT);
            assert_eq!(held, Text::Long(text.into()));
        }
        assert!(!Text::Cut("x".into()).is_whole());
    }
}
