//! Reads of a [`Section`] that give numbers: booleans, counts, durations and sizes, each within its bounds.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::section::{Section, Written};
use super::units;

impl Section<'_, '_> {
    pub(super) fn boolean(&self, key: &'static str, default: bool) -> bool {
        let Some(scalar) = self.scalar(key, "true or false") else {
            return default;
        };
        match (scalar.written, scalar.text.as_str()) {
            (Written::Boolean | Written::Expanded, "true") => return true,
            (Written::Boolean | Written::Expanded, "false") => return false,
            _ => {}
        }
        let complaint = format_args!("must be true or false, not {}", scalar.shown);
        self.error(key, complaint, "write it without quotes");
        default
    }

    /// A whole number within `range`.
    pub(super) fn integer(&self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let Some(scalar) = self.scalar(key, "a whole number") else {
            return default;
        };
        let number = match scalar.written {
            Written::Number | Written::Expanded => scalar.text.parse::<i128>().ok(),
            Written::Text | Written::Boolean => None,
        };
        let Some(number) = number else {
            let quoted = scalar.written == Written::Text && scalar.text.parse::<i128>().is_ok();
            let hint = if quoted { "write it without quotes" } else { "" };
            self.error(key, format_args!("must be a whole number, not {}", scalar.shown), hint);
            return default;
        };
        match u64::try_from(number).ok().filter(|number| range.contains(number)) {
            Some(number) => number,
            None => {
                let shown = &scalar.shown;
                self.error(key, format_args!("is out of range: {shown}"), allowed(&range));
                default
            }
        }
    }

    /// [`Section::integer`] for counts.
    pub(super) fn count(&self, key: &'static str, default: usize, least: u64) -> usize {
        let number = self.integer(key, default as u64, least..=u64::from(u32::MAX));
        usize::try_from(number).unwrap_or(default)
    }

    /// Any number within `range`.
    pub(super) fn number(&self, key: &'static str, default: f64, range: RangeInclusive<f64>) -> f64 {
        let Some(scalar) = self.scalar(key, "a number") else {
            return default;
        };
        let number = match scalar.written {
            Written::Number | Written::Expanded => scalar.text.parse::<f64>().ok(),
            Written::Text | Written::Boolean => None,
        };
        match number {
            Some(number) if range.contains(&number) => number,
            Some(_) => {
                let shown = &scalar.shown;
                self.error(key, format_args!("is out of range: {shown}"), allowed(&range));
                default
            }
            None => {
                let complaint = format_args!("must be a number, not {}", scalar.shown);
                self.error(key, complaint, "write it without quotes");
                default
            }
        }
    }

    /// A duration; a bare integer is milliseconds. Zero is a fault unless `zero` says what it means here.
    pub(super) fn duration(&self, key: &'static str, default: Duration, zero: Zero) -> Duration {
        const HINT: &str = "write it like \"200ms\", \"30s\", \"5m\" or \"1h\"";
        let Some(scalar) = self.scalar(key, "a duration") else {
            return default;
        };
        let parsed = match scalar.written {
            Written::Number => match scalar.text.parse() {
                Ok(millis) => units::duration_from_millis(millis),
                Err(_) => Err(units::UnitError::NoNumber),
            },
            _ => units::parse_duration(&scalar.text),
        };
        match parsed {
            Ok(duration) if duration.is_zero() && zero == Zero::Refused => {
                self.error(key, "must be longer than zero", HINT);
                default
            }
            Ok(duration) => duration,
            Err(units::UnitError::TooLarge) => {
                let complaint = format_args!("is too long a duration: {}", scalar.shown);
                self.error(key, complaint, "at most 365 days");
                default
            }
            Err(why) => {
                self.error(key, format_args!("is no duration: {} {why}", scalar.shown), HINT);
                default
            }
        }
    }

    /// A size in bytes, at least 1; a bare integer is bytes.
    pub(super) fn size(&self, key: &'static str, default: u64) -> u64 {
        const HINT: &str = "write it like \"512KiB\", \"64MiB\" or \"1GiB\"";
        let Some(scalar) = self.scalar(key, "a size") else {
            return default;
        };
        match units::parse_size(&scalar.text) {
            Ok(0) => {
                self.error(key, "must be more than zero", HINT);
                default
            }
            Ok(size) => size,
            Err(why) => {
                self.error(key, format_args!("is no size: {} {why}", scalar.shown), HINT);
                default
            }
        }
    }
}

/// Whether a duration of zero has a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Zero {
    Allowed,
    Refused,
}

fn allowed<T: Display>(range: &RangeInclusive<T>) -> String {
    format!("{} to {} are allowed", range.start(), range.end())
}
