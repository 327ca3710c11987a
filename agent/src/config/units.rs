//! Durations and sizes as people write them: `"100ms"`, `"4MiB"`.
//!
//! Invariant: a number without a unit is refused, and nothing wraps or rounds to zero.

use std::time::Duration;

const DURATION_UNITS: &[(&str, u64)] = &[
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

const SIZE_UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Decimal and sloppy spellings that people try, and what to write instead.
const SIZE_MISTAKES: &[(&str, &str)] = &[
    ("k", "KiB"),
    ("kb", "KiB"),
    ("kib", "KiB"),
    ("m", "MiB"),
    ("mb", "MiB"),
    ("mib", "MiB"),
    ("g", "GiB"),
    ("gb", "GiB"),
    ("gib", "GiB"),
    ("t", "TiB"),
    ("tb", "TiB"),
    ("tib", "TiB"),
    ("b", "B"),
];

const DURATION_MISTAKES: &[(&str, &str)] = &[
    ("µs", "us"),
    ("sec", "s"),
    ("secs", "s"),
    ("second", "s"),
    ("seconds", "s"),
    ("msec", "ms"),
    ("millis", "ms"),
    ("min", "m"),
    ("mins", "m"),
    ("minute", "m"),
    ("minutes", "m"),
    ("hour", "h"),
    ("hours", "h"),
];

/// Why a text is not a duration or size, and what would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitError {
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub help: String,
}

/// Reads `"100ms"`, `"1.5s"`, `"2m"`, `"1h"`.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    scaled(
        text,
        "duration",
        DURATION_UNITS,
        DURATION_MISTAKES,
        "us, ms, s, m, h",
        "100ms",
    )
    .map(Duration::from_nanos)
}

/// Reads `"4MiB"`, `"512KiB"` as bytes.
pub fn size(text: &str) -> Result<u64, UnitError> {
    scaled(
        text,
        "size",
        SIZE_UNITS,
        SIZE_MISTAKES,
        "B, KiB, MiB, GiB, TiB",
        "4MiB",
    )
}

/// `1.5s`, `100ms`: the largest unit that gives a whole number.
pub fn show_duration(value: Duration) -> String {
    let nanos = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
    show(nanos, DURATION_UNITS).unwrap_or_else(|| format!("{nanos}ns"))
}

/// `4MiB`, `512KiB`: the largest unit that gives a whole number.
pub fn show_size(bytes: u64) -> String {
    show(bytes, SIZE_UNITS).unwrap_or_else(|| format!("{bytes}B"))
}

fn show(value: u64, units: &[(&str, u64)]) -> Option<String> {
    units
        .iter()
        .rev()
        .find(|(_, scale)| value >= *scale && value.is_multiple_of(*scale))
        .map(|(unit, scale)| format!("{}{unit}", value / scale))
}

fn scaled(
    text: &str,
    what: &str,
    units: &[(&str, u64)],
    mistakes: &[(&str, &str)],
    names: &str,
    example: &str,
) -> Result<u64, UnitError> {
    let fail = |message: String, help: String| Err(UnitError { message, help });
    let trimmed = text.trim();
    let split = trimmed
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let unit = unit.trim_start();
    if number.is_empty() {
        return fail(
            format!("\"{text}\" is not a {what}"),
            format!("a {what} is a number and a unit, like \"{example}\""),
        );
    }
    if unit.is_empty() {
        return fail(
            format!("\"{text}\" has no unit"),
            format!("add one of {names}, like \"{example}\""),
        );
    }
    let Some((_, scale)) = units.iter().find(|(name, _)| *name == unit) else {
        let lower = unit.to_lowercase();
        let help = mistakes
            .iter()
            .find(|(wrong, _)| *wrong == lower)
            .map_or_else(
                || format!("units are {names}"),
                |(_, right)| format!("write \"{number}{right}\" (units are {names})"),
            );
        return fail(format!("\"{unit}\" is not a unit of a {what}"), help);
    };
    let bad_number = || UnitError {
        message: format!("\"{number}\" is not a number, or too large"),
        help: format!("a {what} is a number and a unit, like \"{example}\""),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(*scale).ok_or_else(bad_number);
    }
    let (whole, fraction) = number.split_once('.').ok_or_else(bad_number)?;
    fractional(whole, fraction, *scale).ok_or_else(bad_number)
}

/// `whole.fraction * scale` in integers, so that "0.1s" is exactly 100 ms.
fn fractional(whole: &str, fraction: &str, scale: u64) -> Option<u64> {
    // Nine digits are nanoseconds of a second; more would be precision that nobody has.
    if fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let digits: u64 = fraction.parse().ok()?;
    let part = u128::from(digits) * u128::from(scale) / 10_u128.pow(fraction.len() as u32);
    whole
        .checked_mul(scale)?
        .checked_add(u64::try_from(part).ok()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations_are_exact() {
        for (text, nanos) in [
            ("100ms", 100_000_000),
            ("0.1s", 100_000_000),
            ("1.5 s", 1_500_000_000),
            ("2m", 120_000_000_000),
            ("1h", 3_600_000_000_000),
            ("250us", 250_000),
            ("0s", 0),
        ] {
            assert_eq!(
                duration(text).unwrap(),
                Duration::from_nanos(nanos),
                "{text}"
            );
        }
    }

    #[test]
    fn sizes_are_exact() {
        for (text, bytes) in [
            ("4MiB", 4 << 20),
            ("256 KiB", 256 << 10),
            ("1.5GiB", 3 << 29),
            ("17B", 17),
        ] {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn a_wrong_unit_is_named_with_the_right_one() {
        for (text, help) in [
            ("4MB", "write \"4MiB\""),
            ("4", "add one of B, KiB"),
            ("MiB", "a number and a unit"),
            ("4 parsecs", "units are B"),
            ("99999999999TiB", "a number and a unit"),
            ("1.2.3MiB", "a number and a unit"),
            ("-1MiB", "a number and a unit"),
            ("", "a number and a unit"),
            ("1.MiB", "a number and a unit"),
        ] {
            let error = size(text).unwrap_err();
            assert!(error.help.contains(help), "{text}: {error:?}");
        }
        let error = duration("10sec").unwrap_err();
        assert!(error.help.contains("write \"10s\""), "{error:?}");
        assert!(duration("10").unwrap_err().help.contains("us, ms"));
    }

    #[test]
    fn shown_values_read_back() {
        for nanos in [1_000, 100_000_000, 1_500_000_000, 60_000_000_000] {
            let value = Duration::from_nanos(nanos);
            assert_eq!(duration(&show_duration(value)).unwrap(), value);
        }
        assert_eq!(show_duration(Duration::from_secs(90)), "90s");
        assert_eq!(show_size(4 << 20), "4MiB");
        assert_eq!(show_size(0), "0B");
    }
}
