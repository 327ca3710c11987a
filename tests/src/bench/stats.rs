//! Means, medians, slopes and seeded chance: pure functions.

use super::signed_rank::percent;

/// Quantile 0.95 of Student's t distribution by degrees of freedom, from 1.
const T95: [f64; 30] = [
    6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771,
    1.761, 1.753, 1.746, 1.740, 1.734, 1.729, 1.725, 1.721, 1.717, 1.714, 1.711, 1.708, 1.706,
    1.703, 1.701, 1.699, 1.697,
];
/// The same of the normal distribution.
const Z95: f64 = 1.644_854;

/// Quantile 0.95 of Student's t distribution; infinite for no degree of freedom.
pub fn t95(degrees: usize) -> f64 {
    match degrees {
        0 => f64::INFINITY,
        1..=30 => T95[degrees - 1],
        // Cornish and Fisher's expansion: right to 0.0002 from here on.
        _ => {
            let n = degrees as f64;
            let z = Z95;
            z + (z.powi(3) + z) / (4.0 * n)
                + (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * n * n)
        }
    }
}

/// A geometric mean of quotients as its excess over one, with the bound of Student's t distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    /// Percent.
    pub mean: f64,
    /// One-sided upper 95 % bound, percent; infinite of fewer than two.
    pub upper: f64,
}

impl Mean {
    /// From logarithms of quotients; `None` without any, or where one is not finite.
    pub fn of(logs: &[f64]) -> Option<Self> {
        if logs.is_empty() || logs.iter().any(|log| !log.is_finite()) {
            return None;
        }
        let count = logs.len() as f64;
        let mean = logs.iter().sum::<f64>() / count;
        let upper = if logs.len() < 2 {
            f64::INFINITY
        } else {
            let squares: f64 = logs.iter().map(|log| (log - mean).powi(2)).sum();
            let deviation = (squares / (count - 1.0)).sqrt();
            mean + t95(logs.len() - 1) * deviation / count.sqrt()
        };
        Some(Self {
            mean: percent(mean),
            upper: percent(upper),
        })
    }

    /// From the mean to the bound, percentage points.
    pub fn half_width(&self) -> f64 {
        self.upper - self.mean
    }
}

/// The value below which that part of the values lies; of nothing NaN.
pub fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() as f64 * part) as usize;
    sorted
        .get(at)
        .or(sorted.last())
        .copied()
        .unwrap_or(f64::NAN)
}

/// The middle value; NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let upper = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[upper],
        _ => f64::midpoint(values[upper - 1], values[upper]),
    }
}

/// Slope of a straight line through the points, by least squares; 0 for fewer than two.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / count;
    let above: f64 = points
        .iter()
        .map(|(x, y)| (x - mean_x) * (y - mean_y))
        .sum();
    let below: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    if below > 0.0 { above / below } else { 0.0 }
}

/// A seeded generator (SplitMix64): the same order of runs for the same seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to 1, without 1.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number of the normal distribution with mean 0 and deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Puts the items into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = (self.next_u64() % (last as u64 + 1)) as usize;
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quantile_is_the_table_s() {
        // Values of the printed tables.
        for (degrees, expected) in [
            (1, 6.314),
            (9, 1.833),
            (30, 1.697),
            (40, 1.684),
            (60, 1.671),
            (120, 1.658),
        ] {
            assert!(
                (t95(degrees) - expected).abs() < 0.0006,
                "{degrees}: {}",
                t95(degrees)
            );
        }
        assert!(t95(0).is_infinite());
        assert!((t95(1_000_000) - Z95).abs() < 1e-5);
    }

    #[test]
    fn a_bound_by_hand() {
        // Logs 0.00, 0.01, 0.02: mean 0.01, deviation 0.01, bound 0.01 + 2.92 · 0.01 / √3 = 0.026859.
        let found = Mean::of(&[0.0, 0.01, 0.02]).expect("values");
        assert!((found.mean - 1.005_017).abs() < 1e-5, "{found:?}");
        assert!((found.upper - 2.722_250).abs() < 1e-3, "{found:?}");
        assert!(Mean::of(&[0.02; 5]).expect("values").half_width().abs() < 1e-9);
        assert!(Mean::of(&[0.02]).expect("a value").upper.is_infinite());
        assert_eq!(Mean::of(&[]), None);
        assert_eq!(Mean::of(&[0.1, f64::NAN]), None);
    }

    #[test]
    fn chance_has_the_moments_that_it_says() {
        let mut random = Random::new(3);
        let count = 10_000;
        let (mut units, mut normals, mut squares) = (0.0, 0.0, 0.0);
        for _ in 0..count {
            let (unit, normal) = (random.unit(), random.normal());
            assert!((0.0..1.0).contains(&unit) && normal.is_finite());
            units += unit;
            normals += normal;
            squares += normal * normal;
        }
        let count = f64::from(count);
        assert!((units / count - 0.5).abs() < 0.02);
        assert!((normals / count).abs() < 0.05 && (squares / count - 1.0).abs() < 0.06);
    }

    #[test]
    fn medians_and_slopes() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
        assert!((slope(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]) - 2.0).abs() < 1e-12);
        assert_eq!(slope(&[(1.0, 1.0)]), 0.0);
    }

    #[test]
    fn a_shuffle_keeps_the_items_and_follows_its_seed() {
        let shuffled = |seed| {
            let mut items: Vec<u32> = (0..20).collect();
            Random::new(seed).shuffle(&mut items);
            items
        };
        assert_eq!(shuffled(7), shuffled(7));
        assert_ne!(shuffled(7), shuffled(8));
        let mut sorted = shuffled(7);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..20).collect::<Vec<_>>());
    }
}
