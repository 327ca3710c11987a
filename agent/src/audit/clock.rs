//! Wall-clock time, for the edge of the log and for people.
//!
//! Invariants: times are UTC; a formatted time parses back to itself. Nothing here orders
//! records: only their sequence numbers do (a wall clock may be set back).

use std::time::{SystemTime, UNIX_EPOCH};

const NS: u64 = 1_000_000_000;
const DAY: u64 = 86_400;

/// The wall clock, nanoseconds since 1970 (0 for a clock set before that).
pub fn wall_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// RFC 3339 in UTC with microseconds: `2026-11-22T23:30:39.000001Z`.
pub fn rfc3339(wall_ns: u64) -> String {
    let seconds = wall_ns / NS;
    let (year, month, day) = civil(seconds / DAY);
    let rest = seconds % DAY;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60,
        wall_ns % NS / 1000
    )
}

/// Nanoseconds since 1970 of an RFC 3339 time with any offset; also of a date alone, and of
/// a time without an offset, which is taken as UTC. `None` if it is none of these.
pub fn parse_rfc3339(text: &str) -> Option<u64> {
    let text = text.trim();
    let date = text.get(..10)?;
    let mut parts = date.split('-');
    let (year, month, day) = (
        number(parts.next()?)?,
        number(parts.next()?)?,
        number(parts.next()?)?,
    );
    if date.len() != 10 || parts.next().is_some() || !(1970..=2500).contains(&year) {
        return None;
    }
    if !(1..=12).contains(&month) || day < 1 || day > month_days(year, month) {
        return None;
    }
    let days = days_from_civil(year, month, day);
    let rest = &text[10..];
    if rest.is_empty() {
        return Some(days * DAY * NS);
    }
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let split = rest.find(['Z', 'z', '+', '-']).unwrap_or(rest.len());
    let (clock, zone) = rest.split_at(split);
    let (whole, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut parts = whole.split(':');
    let (hour, minute) = (number(parts.next()?)?, number(parts.next()?)?);
    let second = parts.next().map_or(Some(0), number)?;
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    if fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let fraction_ns = number(fraction)? * 10u64.pow(9 - fraction.len() as u32);
    let local = ((days * DAY + hour * 3600 + minute * 60 + second) * NS) + fraction_ns;
    match zone {
        "" | "Z" | "z" => Some(local),
        _ => {
            let (hours, minutes) = zone.get(1..)?.split_once(':')?;
            let offset = (number(hours)? * 3600 + number(minutes)? * 60).checked_mul(NS)?;
            if zone.starts_with('+') {
                local.checked_sub(offset)
            } else {
                local.checked_add(offset)
            }
        }
    }
}

/// A point in time as people type it: RFC 3339, "2h ago", "10m", "90 s ago", "1h30m",
/// "now". Nanoseconds since 1970.
pub fn parse_when(text: &str, now_ns: u64) -> Result<u64, String> {
    let words = text.trim();
    if words.eq_ignore_ascii_case("now") {
        return Ok(now_ns);
    }
    if let Some(time) = parse_rfc3339(words) {
        return Ok(time);
    }
    let span = words.strip_suffix("ago").unwrap_or(words).trim();
    parse_span(span)
        .map(|ago| now_ns.saturating_sub(ago))
        .ok_or_else(|| {
            format!("\"{text}\" is no time: try \"10m\", \"2h ago\" or 2026-11-22T23:30:00Z")
        })
}

fn parse_span(text: &str) -> Option<u64> {
    let mut total = 0u64;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count = number(&rest[..digits])?;
        rest = rest[digits..].trim_start();
        let end = rest
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(rest.len());
        let unit = match rest[..end].to_ascii_lowercase().as_str() {
            "ms" => NS / 1000,
            "s" | "sec" | "secs" | "second" | "seconds" => NS,
            "m" | "min" | "mins" | "minute" | "minutes" => 60 * NS,
            "h" | "hour" | "hours" => 3600 * NS,
            "d" | "day" | "days" => DAY * NS,
            "w" | "week" | "weeks" => 7 * DAY * NS,
            _ => return None,
        };
        total = total.checked_add(count.checked_mul(unit)?)?;
        rest = rest[end..].trim_start();
    }
    Some(total)
}

fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

fn leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn month_days(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

// Both directions after Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year / 400;
    let of_era = year % 400;
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times_format_and_parse() {
        for (ns, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400 * NS, "2000-02-29T00:00:00.000000Z"),
            (
                1_795_390_239 * NS + 123_456_000,
                "2026-11-22T23:30:39.123456Z",
            ),
            (4_102_444_799 * NS, "2099-12-31T23:59:59.000000Z"),
        ] {
            assert_eq!(rfc3339(ns), text);
            assert_eq!(parse_rfc3339(text), Some(ns));
        }
    }

    #[test]
    fn offsets_dates_and_nonsense() {
        let noon = parse_rfc3339("2026-11-22T12:00:00Z");
        assert!(noon.is_some());
        assert_eq!(parse_rfc3339("2026-11-22T14:00:00+02:00"), noon);
        assert_eq!(parse_rfc3339("2026-11-22 12:00"), noon);
        assert_eq!(
            parse_rfc3339("2026-11-22"),
            noon.map(|n| n - 12 * 3600 * NS)
        );
        for bad in [
            "",
            "2026",
            "2026-13-01",
            "2026-02-30",
            "2026-11-22Tnoon",
            "2026-11-22T25:00:00Z",
            "ä026-11-22",
        ] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }

    #[test]
    fn people_may_type_spans() {
        let now = 1_000_000 * NS;
        for (text, ago) in [
            ("10m", 600),
            ("2h ago", 7200),
            ("90 s ago", 90),
            ("1h30m", 5400),
            ("2 days ago", 172_800),
        ] {
            assert_eq!(parse_when(text, now), Ok(now - ago * NS), "{text}");
        }
        assert_eq!(parse_when("now", now), Ok(now));
        for bad in ["", "ago", "yesterday", "10", "10 parsecs", "-5m"] {
            assert!(parse_when(bad, now).is_err(), "{bad}");
        }
    }
}
