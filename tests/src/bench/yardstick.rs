//! What a request costs in the server's own runs of the model, while the machine is at its full speed.
//!
//! A request is more than the model's run, and a machine that is slowed down (by who else uses its cores) slows the
//! one more than the other. So only requests count whose neighbouring runs were about as fast as any were so far. These
//! runs come right after another run, so that what tracing leaves in the caches hardly changes which are chosen.

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
    /// Trimmed mean over the requests at full speed (over all where there are none); 0 where nothing is measured.
    pub runs: f64,
    /// Part of the requests that were at full speed.
    pub at_speed: f64,
    /// Median of all runs, nanoseconds.
    pub run_ns: f64,
    /// Longest run that counted as at full speed, nanoseconds.
    pub full_speed_ns: f64,
}

impl InRuns {
    /// Of servers that are measured each for itself: means, and the least part at full speed.
    pub fn of_all(servers: &[InRuns]) -> InRuns {
        let mean =
            |of: fn(&InRuns) -> f64| servers.iter().map(of).sum::<f64>() / servers.len() as f64;
        if servers.is_empty() {
            return InRuns::default();
        }
        InRuns {
            runs: mean(|it| it.runs),
            at_speed: servers.iter().map(|it| it.at_speed).fold(1.0, f64::min),
            run_ns: mean(|it| it.run_ns),
            full_speed_ns: mean(|it| it.full_speed_ns),
        }
    }

    /// What a request takes of all CPUs, if a tracer's own processes leave this part of them.
    pub fn with_tracer(&self, left: f64) -> f64 {
        self.runs / left
    }
}

/// The full speed of one CPU, as far as it was seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Speed {
    fastest_ns: Option<f64>,
}

impl Speed {
    /// What these requests took.
    pub fn judge(&mut self, requests: &[Yardstick]) -> InRuns {
        if requests.is_empty() {
            return InRuns::default();
        }
        let times: Vec<f64> = requests.iter().map(|it| it.run_ns).collect();
        let now = quantile(&times, FASTEST);
        let fastest = self.fastest_ns.map_or(now, |fastest| fastest.min(now));
        self.fastest_ns = Some(fastest);
        let full_speed_ns = fastest * TOLERANCE;
        let at_speed = requests.iter().filter(|it| it.run_ns <= full_speed_ns);
        let mut runs: Vec<f64> = at_speed.map(|it| it.runs).collect();
        let part = runs.len() as f64 / requests.len() as f64;
        if runs.is_empty() {
            runs = requests.iter().map(|it| it.runs).collect();
        }
        InRuns {
            runs: trimmed_mean(runs),
            at_speed: part,
            run_ns: median(&times),
            full_speed_ns,
        }
    }
}

/// The mean without the smallest and the largest tenth.
fn trimmed_mean(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let cut = values.len() / 10;
    let kept = &values[cut..values.len() - cut];
    kept.iter().sum::<f64>() / kept.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(runs: f64, run_ns: f64) -> Yardstick {
        Yardstick { runs, run_ns }
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} {expected}");
    }

    #[test]
    fn requests_of_a_slow_machine_do_not_count() {
        let mut speed = Speed::default();
        let mut requests = vec![of(1.2, 100.0); 10];
        let all = speed.judge(&requests);
        near(all.runs, 1.2);
        near(all.at_speed, 1.0);
        requests.extend(vec![of(1.5, 106.0); 30]);
        let mixed = speed.judge(&requests);
        near(mixed.runs, 1.2);
        near(mixed.at_speed, 0.25);
        near(mixed.full_speed_ns, 105.0);
        near(mixed.run_ns, 106.0);
        let slow = speed.judge(&[of(1.4, 150.0), of(1.5, 150.0), of(1.6, 150.0)]);
        near(slow.runs, 1.5);
        near(slow.at_speed, 0.0);
        assert_eq!(speed.judge(&[]), InRuns::default());
    }

    #[test]
    fn a_cost_that_half_of_the_requests_have_is_seen_by_half() {
        let mut speed = Speed::default();
        let mut judge = |long: f64| {
            let requests: Vec<_> = (0..1000)
                .map(|at| of(if at % 2 == 0 { 1.0 } else { long }, 100.0))
                .collect();
            speed.judge(&requests).runs
        };
        near(judge(1.5), 1.25);
        near(judge(1.52), 1.26);
    }

    #[test]
    fn servers_count_alike_and_the_worst_speed_counts() {
        let one = InRuns {
            runs: 1.0,
            at_speed: 0.5,
            run_ns: 10.0,
            full_speed_ns: 12.0,
        };
        let other = InRuns {
            runs: 2.0,
            at_speed: 0.1,
            run_ns: 30.0,
            full_speed_ns: 14.0,
        };
        let both = InRuns {
            runs: 1.5,
            at_speed: 0.1,
            run_ns: 20.0,
            full_speed_ns: 13.0,
        };
        assert_eq!(InRuns::of_all(&[one, other]), both);
        assert_eq!(InRuns::of_all(&[]), InRuns::default());
        near(both.with_tracer(0.75), 2.0);
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
