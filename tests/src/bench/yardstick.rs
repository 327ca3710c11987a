//! What a request costs in yardsticks: what the server does for itself before and after it, without a system call.
//!
//! A machine that is slowed down (by who else uses its cores) slows all work, but not all alike: arithmetic in a loop less
//! than a way through much code. So there is a yardstick of each, and their geometric mean is what a request is compared
//! with. docs/performance.md says what that was seen to be worth.

use super::stats::median;
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// One request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yardstick {
    /// What it cost: nanoseconds over the geometric mean of the two yardsticks.
    pub cost: f64,
    /// A run of the model, mean of before and after, nanoseconds.
    pub model_ns: f64,
    /// A way through much code, likewise.
    pub code_ns: f64,
}

impl FromStr for Yardstick {
    type Err = anyhow::Error;

    /// As the server's header says it: `COST MODEL_NS CODE_NS`.
    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split_whitespace().map(str::parse);
        match numbers.collect::<Result<Vec<f64>, _>>()?[..] {
            [cost, model_ns, code_ns] => Ok(Self {
                cost,
                model_ns,
                code_ns,
            }),
            _ => bail!("not three numbers: {text}"),
        }
    }
}

/// What a slice's requests cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InYardsticks {
    /// Trimmed mean over the requests; 0 where nothing is measured.
    pub cost: f64,
    /// Median run of the model, nanoseconds.
    pub model_ns: f64,
    /// Median way through much code, nanoseconds.
    pub code_ns: f64,
}

impl InYardsticks {
    /// Of one server's requests.
    pub fn of(requests: &[Yardstick]) -> Self {
        if requests.is_empty() {
            return Self::default();
        }
        let each = |of: fn(&Yardstick) -> f64| requests.iter().map(of).collect::<Vec<_>>();
        Self {
            cost: trimmed_mean(each(|it| it.cost)),
            model_ns: median(&each(|it| it.model_ns)),
            code_ns: median(&each(|it| it.code_ns)),
        }
    }

    /// Of servers that are measured each for itself: means.
    pub fn of_all(servers: &[Self]) -> Self {
        if servers.is_empty() {
            return Self::default();
        }
        let mean =
            |of: fn(&Self) -> f64| servers.iter().map(of).sum::<f64>() / servers.len() as f64;
        Self {
            cost: mean(|it| it.cost),
            model_ns: mean(|it| it.model_ns),
            code_ns: mean(|it| it.code_ns),
        }
    }

    /// Whether the server measured its requests.
    pub fn is_measured(&self) -> bool {
        self.cost > 0.0 && self.model_ns > 0.0 && self.code_ns > 0.0
    }

    /// Logarithm of the yardsticks' geometric mean.
    pub fn log_ns(&self) -> f64 {
        f64::midpoint(self.model_ns.ln(), self.code_ns.ln())
    }

    /// What a request takes of all CPUs, if a tracer's own processes leave this part of them.
    pub fn with_tracer(&self, left: f64) -> f64 {
        self.cost / left
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

    fn of(cost: f64, model_ns: f64) -> Yardstick {
        Yardstick {
            cost,
            model_ns,
            code_ns: 2.0 * model_ns,
        }
    }

    fn slice(cost: f64, model_ns: f64, code_ns: f64) -> InYardsticks {
        InYardsticks {
            cost,
            model_ns,
            code_ns,
        }
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} {expected}");
    }

    #[test]
    fn a_tenth_of_outliers_does_not_count() {
        let mut requests: Vec<_> = (0..18).map(|_| of(1.2, 100.0)).collect();
        requests.extend([of(9.0, 900.0), of(0.0, 1.0)]);
        let found = InYardsticks::of(&requests);
        near(found.cost, 1.2);
        near(found.model_ns, 100.0);
        near(found.code_ns, 200.0);
        assert_eq!(InYardsticks::of(&[]), InYardsticks::default());
    }

    #[test]
    fn a_cost_that_half_of_the_requests_have_is_seen_by_half() {
        let judge = |long: f64| {
            let requests: Vec<_> = (0..1000)
                .map(|at| of(if at % 2 == 0 { 1.0 } else { long }, 100.0))
                .collect();
            InYardsticks::of(&requests).cost
        };
        near(judge(1.5), 1.25);
        near(judge(1.52), 1.26);
    }

    #[test]
    fn servers_count_alike() {
        let both = InYardsticks::of_all(&[slice(1.0, 10.0, 40.0), slice(2.0, 30.0, 20.0)]);
        assert_eq!(both, slice(1.5, 20.0, 30.0));
        assert_eq!(InYardsticks::of_all(&[]), InYardsticks::default());
        near(both.with_tracer(0.75), 2.0);
    }

    #[test]
    fn what_has_no_yardstick_is_not_measured() {
        assert!(slice(1.0, 2.0, 3.0).is_measured());
        for bad in [
            slice(0.0, 2.0, 3.0),
            slice(1.0, 0.0, 3.0),
            slice(1.0, 2.0, 0.0),
        ] {
            assert!(!bad.is_measured(), "{bad:?}");
        }
    }

    #[test]
    fn a_header_s_value_is_read() {
        assert_eq!(
            "1.234567 145000 290000\r\n".parse::<Yardstick>().unwrap(),
            of(1.234_567, 145_000.0)
        );
        for bad in ["1.2 5", "1 2 3 4", "1 2 x", ""] {
            assert!(bad.parse::<Yardstick>().is_err(), "{bad}");
        }
    }
}
