//! The estimator of paired runs: Hodges and Lehmann's, with the bounds of Wilcoxon's signed-rank test. Pure functions.
//!
//! It needs nothing of the noise but that a difference is as often too large as too small by the same amount. A coin
//! that decides which of both comes first makes that true whatever the machine does meanwhile: drift, bursts, stolen
//! time. One wild difference among many moves it little.

use super::stats::Mean;

/// A bound further than this from its estimate says nothing, percentage points.
pub const UNRESOLVED_OVER: f64 = 0.3;
/// Chance that the truth lies above an upper bound, or below a lower one.
const MISSED: f64 = 0.05;

/// A quotient's excess over one, in percent, with bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Differences that it comes from.
    pub count: usize,
    /// Hodges and Lehmann's estimate: the median of all pairs' means.
    pub centre: f64,
    /// One-sided lower 95 % bound; infinite where there are too few differences for one.
    pub lower: f64,
    /// One-sided upper 95 % bound.
    pub upper: f64,
    /// The mean and its bound, for comparison.
    pub mean: Mean,
}

impl Estimate {
    /// From logarithms of quotients; `None` without any, or where one is not finite.
    pub fn of(logs: &[f64]) -> Option<Self> {
        let mean = Mean::of(logs)?;
        let averages = walsh(logs);
        let (lower, upper) = bounds(&averages, logs.len(), MISSED);
        Some(Self {
            count: logs.len(),
            centre: percent(middle(&averages)),
            lower: percent(lower),
            upper: percent(upper),
            mean,
        })
    }

    /// From the estimate to the upper bound, percentage points.
    pub fn half_width(&self) -> f64 {
        self.upper - self.centre
    }

    /// Whether the runs tell it well enough.
    pub fn resolved(&self) -> bool {
        self.half_width() <= UNRESOLVED_OVER
    }

    /// Whether the two-sided interval of 90 % holds a value.
    pub fn holds(&self, value: f64) -> bool {
        self.lower <= value && value <= self.upper
    }
}

/// Both bounds, in percent, of which each is missed by that chance at most.
pub fn interval(logs: &[f64], missed: f64) -> (f64, f64) {
    let (lower, upper) = bounds(&walsh(logs), logs.len(), missed);
    (percent(lower), percent(upper))
}

/// A logarithm of a quotient as the quotient's excess over one, percent.
pub fn percent(log: f64) -> f64 {
    log.exp_m1() * 100.0
}

/// The means of every value with itself and each other, sorted.
fn walsh(values: &[f64]) -> Vec<f64> {
    let mut averages: Vec<f64> = values
        .iter()
        .enumerate()
        .flat_map(|(at, one)| {
            values[at..]
                .iter()
                .map(move |other| f64::midpoint(*one, *other))
        })
        .collect();
    averages.sort_by(f64::total_cmp);
    averages
}

fn middle(sorted: &[f64]) -> f64 {
    let upper = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[upper]
    } else {
        f64::midpoint(sorted[upper - 1], sorted[upper])
    }
}

fn bounds(averages: &[f64], values: usize, missed: f64) -> (f64, f64) {
    match critical(values, missed) {
        Some(left_out) => (averages[left_out], averages[averages.len() - 1 - left_out]),
        None => (f64::NEG_INFINITY, f64::INFINITY),
    }
}

/// The largest number that the sum of positive ranks among so many values does not exceed but by that chance; `None`
/// if even 0 comes more often.
fn critical(values: usize, missed: f64) -> Option<usize> {
    let most = values * (values + 1) / 2;
    let mut chances = vec![0.0; most + 1];
    chances[0] = 1.0;
    for rank in 1..=values {
        // Each rank counts or not, with the same chance.
        for sum in (0..=rank * (rank + 1) / 2).rev() {
            let with = if sum >= rank {
                chances[sum - rank]
            } else {
                0.0
            };
            chances[sum] = f64::midpoint(chances[sum], with);
        }
    }
    let mut reached = 0.0;
    let below = chances.iter().take_while(|chance| {
        reached += **chance;
        reached <= missed
    });
    below.count().checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::super::stats::Random;
    use super::*;

    #[test]
    fn critical_values_are_the_printed_table_s() {
        // Wilcoxon's table, one-sided 0.05 and 0.025.
        for (values, at_05, at_025) in [
            (5, Some(0), None),
            (6, Some(2), Some(0)),
            (10, Some(10), Some(8)),
            (20, Some(60), Some(52)),
            (30, Some(151), Some(137)),
            (50, Some(466), Some(434)),
        ] {
            assert_eq!(critical(values, 0.05), at_05, "{values}");
            assert_eq!(critical(values, 0.025), at_025, "{values}");
        }
        assert_eq!(critical(4, 0.05), None);
        assert_eq!(critical(0, 0.05), None);
    }

    #[test]
    fn an_estimate_by_hand() {
        // Means of pairs: 0, 1, 1.5, 2, 2.5, 3, 3, 3.5, 4, 4.5, 5, … of 0, 2, 3, 4, 6 hundredths; the middle one is 3.
        let found = Estimate::of(&[0.0, 0.02, 0.03, 0.04, 0.06]).expect("values");
        assert_eq!(found.count, 5);
        assert!((found.centre - percent(0.03)).abs() < 1e-9, "{found:?}");
        assert!((found.lower - 0.0).abs() < 1e-9, "{found:?}");
        assert!((found.upper - percent(0.06)).abs() < 1e-9, "{found:?}");
        assert!(found.holds(3.0) && !found.holds(-0.1) && !found.resolved());
    }

    #[test]
    fn one_wild_difference_moves_it_little_and_too_few_bound_nothing() {
        let mut logs = vec![0.0; 9];
        logs.push(1.0);
        let found = Estimate::of(&logs).expect("values");
        assert!(
            found.centre.abs() < 1e-9 && found.mean.mean > 10.0,
            "{found:?}"
        );
        let few = Estimate::of(&[0.01; 4]).expect("values");
        assert!(few.upper.is_infinite() && !few.resolved());
        assert!(Estimate::of(&[0.01; 5]).expect("values").resolved());
        assert_eq!(Estimate::of(&[]), None);
        assert_eq!(Estimate::of(&[0.1, f64::NAN]), None);
    }

    /// Differences of a true size with noise whose tails are long: a sixth of them ten times as noisy.
    fn noisy(random: &mut Random, count: usize, truth: f64) -> Vec<f64> {
        (0..count)
            .map(|_| {
                let wide = if random.unit() < 1.0 / 6.0 {
                    0.05
                } else {
                    0.005
                };
                truth + wide * random.normal()
            })
            .collect()
    }

    #[test]
    fn bounds_are_missed_as_seldom_as_they_say() {
        let mut random = Random::new(11);
        for (count, truth) in [(6, 0.0), (20, 0.008), (40, 0.008)] {
            let trials: u32 = 1_000;
            let (mut above, mut below) = (0, 0);
            for _ in 0..trials {
                let found = Estimate::of(&noisy(&mut random, count, truth)).expect("values");
                above += u32::from(percent(truth) > found.upper);
                below += u32::from(percent(truth) < found.lower);
            }
            // Five in a hundred at most, and three deviations of a thousand coins of that kind.
            for missed in [above, below] {
                assert!((20..=71).contains(&missed), "{count}: {missed} of {trials}");
            }
        }
    }

    #[test]
    fn with_long_tails_it_is_narrower_than_the_mean() {
        let mut random = Random::new(5);
        let narrower = (0..100)
            .filter(|_| {
                let found = Estimate::of(&noisy(&mut random, 40, 0.01)).expect("values");
                found.half_width() < found.mean.half_width()
            })
            .count();
        assert!(narrower > 90, "{narrower} of 100");
    }
}
