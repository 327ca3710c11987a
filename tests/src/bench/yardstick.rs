//! What a request costs in the server's own runs of the model, while the machine is at its full speed.
//!
//! A request is more than the model's run, and a machine that is slowed down (by who else uses its cores) slows the
//! one more than the other. So only requests count whose neighbouring runs were about as fast as any were: what is
//! chosen by these runs, which meet no hook, is chosen alike with tracing and without.

use super::stats::{median, quantile};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Of a slice's runs the fastest tenth is what the machine can do.
const FASTEST: f64 = 0.1;
/// Runs count as at full speed that took so much longer than the best slice's fastest tenth, at most.
const TOLERANCE: f64 = 1.05;

/// One request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yardstick {
    /// Time that it took, in runs.
    pub runs: f64,
    /// Mean time of the runs before and after it, nanoseconds.
    pub run_ns: f64,
}

impl FromStr for Yardstick {
    type Err = anyhow::Error;

    /// As the server's header says it: `RUNS NS`.
    fn from_str(text: &str) -> Result<Self> {
        let (runs, run_ns) = text.trim().split_once(' ').context("two numbers")?;
        Ok(Self {
            runs: runs.parse()?,
            run_ns: run_ns.parse()?,
        })
    }
}

/// What a slice's requests took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InRuns {
    /// Median over the requests at full speed, or over all where there are none; 0 where nothing is measured.
    pub runs: f64,
    /// Part of the requests that were at full speed.
    pub at_speed: f64,
}

/// The machine's full speed, as far as it was seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Speed {
    fastest_ns: Option<f64>,
}

impl Speed {
    /// What these requests took.
    pub fn median(&mut self, requests: &[Yardstick]) -> InRuns {
        if requests.is_empty() {
            return InRuns::default();
        }
        let times: Vec<f64> = requests.iter().map(|it| it.run_ns).collect();
        let now = quantile(&times, FASTEST);
        let fastest = self.fastest_ns.map_or(now, |fastest| fastest.min(now));
        self.fastest_ns = Some(fastest);
        let at_speed = requests
            .iter()
            .filter(|it| it.run_ns <= fastest * TOLERANCE);
        let mut runs: Vec<f64> = at_speed.map(|it| it.runs).collect();
        let part = runs.len() as f64 / requests.len() as f64;
        if runs.is_empty() {
            runs = requests.iter().map(|it| it.runs).collect();
        }
        InRuns {
            runs: median(&runs),
            at_speed: part,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(runs: f64, run_ns: f64) -> Yardstick {
        Yardstick { runs, run_ns }
    }

    #[test]
    fn requests_of_a_slow_machine_do_not_count() {
        let mut speed = Speed::default();
        let fast = vec![of(1.2, 100.0); 10];
        assert_eq!(
            speed.median(&fast),
            InRuns {
                runs: 1.2,
                at_speed: 1.0
            }
        );
        let mut mixed = fast.clone();
        mixed.extend(vec![of(1.5, 106.0); 30]);
        assert_eq!(
            speed.median(&mixed),
            InRuns {
                runs: 1.2,
                at_speed: 0.25
            }
        );
        let slow = [of(1.4, 150.0), of(1.5, 150.0), of(1.6, 150.0)];
        assert_eq!(
            speed.median(&slow),
            InRuns {
                runs: 1.5,
                at_speed: 0.0
            }
        );
        assert_eq!(speed.median(&[]), InRuns::default());
    }

    #[test]
    fn a_header_s_value_is_read() {
        assert_eq!(
            "1.234567 145000\r\n".parse::<Yardstick>().unwrap(),
            of(1.234_567, 145_000.0)
        );
        assert!("1.2".parse::<Yardstick>().is_err());
    }
}
