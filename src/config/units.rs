//! Durations ("200ms", "1h") and sizes ("64MiB") as people write them.

use std::fmt;
use std::time::Duration;

/// No duration may be longer: a year is beyond every use, and it keeps sums with an `Instant` from overflowing.
pub const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Why a text is no duration or size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitError {
    NoNumber,
    NoUnit,
    UnknownUnit,
    TooLarge,
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UnitError::NoNumber => "does not begin with a whole number",
            UnitError::NoUnit => "has no unit",
            UnitError::UnknownUnit => "has an unknown unit",
            UnitError::TooLarge => "is too large",
        })
    }
}

/// Reads `<whole number><unit>`, the unit one of us, ms, s, m (or min), h, d; zero needs no unit.
///
/// A number without a unit is refused: `"30"` in quotes is more often a slip than 30 ms.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let (number, unit) = split(text)?;
    let per_unit = match unit {
        "us" | "µs" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" | "min" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        "" if number == 0 => 0,
        "" => return Err(UnitError::NoUnit),
        _ => return Err(UnitError::UnknownUnit),
    };
    let micros = number.checked_mul(per_unit).ok_or(UnitError::TooLarge)?;
    within_longest(Duration::from_micros(micros))
}

/// A bare integer in the file is milliseconds.
pub fn duration_from_millis(millis: u64) -> Result<Duration, UnitError> {
    within_longest(Duration::from_millis(millis))
}

fn within_longest(duration: Duration) -> Result<Duration, UnitError> {
    if duration > LONGEST { Err(UnitError::TooLarge) } else { Ok(duration) }
}

/// Reads `<whole number><unit>` as bytes: KiB, MiB, GiB, TiB are powers of 1024 and kB, MB, GB, TB of 1000;
/// B, or no unit, is bytes.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = split(text)?;
    let per_unit: u64 = match unit {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(UnitError::UnknownUnit),
    };
    number.checked_mul(per_unit).ok_or(UnitError::TooLarge)
}

fn split(text: &str) -> Result<(u64, &str), UnitError> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(UnitError::NoNumber);
    }
    // all digits, so the only way to fail is to be too large
    let number = number.parse().map_err(|_| UnitError::TooLarge)?;
    Ok((number, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let cases = [
            ("200ms", Ok(Duration::from_millis(200))),
            ("30s", Ok(Duration::from_secs(30))),
            ("5m", Ok(Duration::from_secs(300))),
            ("5min", Ok(Duration::from_secs(300))),
            ("1h", Ok(Duration::from_secs(3600))),
            ("7d", Ok(Duration::from_secs(7 * 86_400))),
            ("500us", Ok(Duration::from_micros(500))),
            (" 30 s ", Ok(Duration::from_secs(30))),
            ("0s", Ok(Duration::ZERO)),
            ("0", Ok(Duration::ZERO)),
            ("365d", Ok(LONGEST)),
            ("366d", Err(UnitError::TooLarge)),
            ("99999999999999999999s", Err(UnitError::TooLarge)),
            ("18446744073709551615h", Err(UnitError::TooLarge)),
            ("30", Err(UnitError::NoUnit)),
            ("-1s", Err(UnitError::NoNumber)),
            ("1.5s", Err(UnitError::UnknownUnit)),
            ("1S", Err(UnitError::UnknownUnit)),
            ("", Err(UnitError::NoNumber)),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_duration(text), expected, "{text:?}");
        }
        assert_eq!(duration_from_millis(1500), Ok(Duration::from_millis(1500)));
        assert_eq!(duration_from_millis(u64::MAX), Err(UnitError::TooLarge));
    }

    #[test]
    fn sizes() {
        let cases = [
            ("64MiB", Ok(64 << 20)),
            ("1GiB", Ok(1 << 30)),
            ("2KiB", Ok(2048)),
            ("2kB", Ok(2000)),
            ("3MB", Ok(3_000_000)),
            ("1GB", Ok(1_000_000_000)),
            ("10 B", Ok(10)),
            ("512", Ok(512)),
            ("17000000TiB", Err(UnitError::TooLarge)),
            ("1Mb", Err(UnitError::UnknownUnit)),
            ("MiB", Err(UnitError::NoNumber)),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_size(text), expected, "{text:?}");
        }
    }
}
