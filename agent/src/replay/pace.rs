//! How fast a recording is played.

use std::str::FromStr;
use std::time::{Duration, Instant};

/// Times the speed of the recorded run, at most and at least.
const BOUNDS: std::ops::RangeInclusive<f64> = 0.001..=1e6;

/// How fast.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Speed {
    /// As fast as the policies go.
    #[default]
    Max,
    /// That many times as fast as it was.
    Times(f64),
}

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Speed::Max);
        }
        let number = text
            .strip_suffix('x')
            .and_then(|number| number.parse().ok());
        number
            .filter(|times| BOUNDS.contains(times))
            .map(Speed::Times)
            .ok_or_else(|| "it must be max, 1x (real time), 10x, 0.5x".to_owned())
    }
}

/// Keeps that speed. The only clock of a replay; it has no say in what is decided.
#[derive(Debug)]
pub(super) struct Pace {
    speed: Speed,
    began: Option<(Instant, u64)>,
}

impl Pace {
    pub(super) fn new(speed: Speed) -> Self {
        Self { speed, began: None }
    }

    /// Sleeps until it is that time of the recording, nanoseconds.
    pub(super) fn wait_for(&mut self, now_ns: u64) {
        let Speed::Times(times) = self.speed else {
            return;
        };
        let (began, first_ns) = *self.began.get_or_insert((Instant::now(), now_ns));
        let due = Duration::from_secs_f64(now_ns.saturating_sub(first_ns) as f64 / 1e9 / times);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_read_as_people_write_them() {
        assert_eq!("max".parse(), Ok(Speed::Max));
        assert_eq!("1x".parse(), Ok(Speed::Times(1.0)));
        assert_eq!("0.5x".parse(), Ok(Speed::Times(0.5)));
        for wrong in ["", "x", "10", "0x", "-1x", "NaNx", "infx", "1e9x", "fast"] {
            assert!(wrong.parse::<Speed>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_pace_waits_for_its_time_and_not_twice() {
        let mut pace = Pace::new(Speed::Times(1000.0));
        let began = Instant::now();
        pace.wait_for(5_000_000_000);
        pace.wait_for(10_000_000_000);
        let waited = began.elapsed();
        assert!(waited >= Duration::from_millis(5), "{waited:?}");
        pace.wait_for(0);
        Pace::new(Speed::Max).wait_for(u64::MAX);
    }
}
