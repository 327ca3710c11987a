/// Exponentially weighted mean and variance.
///
/// ```
/// use palisade_policy_sdk::stats::Ewma;
/// let mut usual = Ewma::new(0.2);
/// for value in [10.0, 11.0, 9.0, 10.0, 11.0, 9.0, 10.0] {
///     usual.add(value);
/// }
/// assert!(usual.score(10.5).abs() < 3.0 && usual.score(30.0) > 3.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ewma {
    weight: f64,
    mean: f64,
    variance: f64,
    count: u64,
}

impl Ewma {
    /// `weight` is the share of a new value, above 0 up to 1; 0.2 is a good start.
    pub fn new(weight: f64) -> Self {
        let weight = if weight > 0.0 && weight <= 1.0 {
            weight
        } else {
            0.2
        };
        Self {
            weight,
            mean: 0.0,
            variance: 0.0,
            count: 0,
        }
    }

    /// Learns a value.
    pub fn add(&mut self, value: f64) {
        if !value.is_finite() {
            return;
        }
        self.count = self.count.saturating_add(1);
        if self.count == 1 {
            self.mean = value;
            return;
        }
        let difference = value - self.mean;
        let step = self.weight * difference;
        self.mean += step;
        self.variance = (1.0 - self.weight) * (self.variance + difference * step);
        if !self.mean.is_finite() || !self.variance.is_finite() {
            *self = Self::new(self.weight);
        }
    }

    /// The mean; 0 before the first value.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// The standard deviation.
    pub fn deviation(&self) -> f64 {
        self.variance.sqrt()
    }

    /// Values learned. Do not trust a baseline below about 30.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many standard deviations a value lies above the mean (below: negative). The deviation
    /// counts as at least a thousandth of the mean, so that a constant past does not make every
    /// change infinite.
    pub fn score(&self, value: f64) -> f64 {
        let floor = (self.mean.abs() / 1000.0).max(f64::MIN_POSITIVE);
        let score = (value - self.mean) / self.deviation().max(floor);
        if score.is_nan() { 0.0 } else { score }
    }
}

/// Median and median absolute deviation of the last 64 values: for values with outliers.
#[derive(Clone, Debug, PartialEq)]
pub struct MedianRing {
    ring: [f64; Self::SIZE],
    length: usize,
    next: usize,
}

impl Default for MedianRing {
    fn default() -> Self {
        Self {
            ring: [0.0; Self::SIZE],
            length: 0,
            next: 0,
        }
    }
}

impl MedianRing {
    /// Values that it holds.
    pub const SIZE: usize = 64;

    /// Learns a value; the oldest goes.
    pub fn add(&mut self, value: f64) {
        if value.is_finite() {
            self.ring[self.next] = value;
            self.next = (self.next + 1) % Self::SIZE;
            self.length = (self.length + 1).min(Self::SIZE);
        }
    }

    /// Values held.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The median of the values held.
    pub fn median(&self) -> Option<f64> {
        let mut values = self.ring;
        median(&mut values[..self.length])
    }

    /// Median of the distances from the median.
    pub fn mad(&self) -> Option<f64> {
        let middle = self.median()?;
        let mut values = self.ring;
        for value in &mut values[..self.length] {
            *value = (*value - middle).abs();
        }
        median(&mut values[..self.length])
    }

    /// The robust score 0.6745·(x − median)/MAD; beyond ±3.5 is an outlier. `None` below 8 values.
    pub fn score(&self, value: f64) -> Option<f64> {
        if self.length < 8 {
            return None;
        }
        let middle = self.median()?;
        let spread = self
            .mad()?
            .max(middle.abs() / 1000.0)
            .max(f64::MIN_POSITIVE);
        let score = 0.6745 * (value - middle) / spread;
        Some(if score.is_nan() { 0.0 } else { score })
    }
}

fn median(values: &mut [f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values[middle];
    let median = if values.len() % 2 == 1 {
        upper
    } else {
        f64::midpoint(values[middle - 1], upper)
    };
    Some(median)
}

/// One-sided cumulative sum: notices a small rise that lasts.
///
/// ```
/// use palisade_policy_sdk::stats::Cusum;
/// let mut drift = Cusum::new(0.5, 5.0);
/// assert!(!(0..100).any(|n| drift.add(f64::from(n % 2) - 0.5)));
/// assert!((0..11).any(|_| drift.add(1.0)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cusum {
    slack: f64,
    limit: f64,
    sum: f64,
}

impl Cusum {
    /// In standard deviations: a rise of less than `slack` (usually 0.5) is ignored, and `limit`
    /// (usually 4 to 5) is where the alarm is.
    pub fn new(slack: f64, limit: f64) -> Self {
        Self {
            slack,
            limit,
            sum: 0.0,
        }
    }

    /// Adds how many standard deviations a value lies above its baseline ([`Ewma::score`]).
    /// Answers whether the alarm is on.
    pub fn add(&mut self, score: f64) -> bool {
        if score.is_finite() {
            self.sum = (self.sum + score - self.slack).clamp(0.0, 2.0 * self.limit.max(0.0));
        }
        self.sum > self.limit
    }

    /// The sum.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// Starts anew.
    pub fn reset(&mut self) {
        self.sum = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outlier_does_not_move_the_median() {
        let mut ring = MedianRing::default();
        assert_eq!((ring.median(), ring.score(1.0)), (None, None));
        for n in 0..100 {
            ring.add(if n % 10 == 0 {
                1e9
            } else {
                10.0 + f64::from(n % 3)
            });
        }
        assert_eq!(ring.len(), MedianRing::SIZE);
        assert_eq!(ring.median(), Some(11.0));
        assert!(ring.score(12.0).is_some_and(|score| score.abs() < 3.5));
        assert!(ring.score(30.0).is_some_and(|score| score > 3.5));
    }

    #[test]
    fn a_constant_past_gives_finite_scores() {
        let mut usual = Ewma::new(0.2);
        let mut ring = MedianRing::default();
        for _ in 0..50 {
            usual.add(0.0);
            ring.add(0.0);
        }
        assert_eq!(usual.score(0.0), 0.0);
        assert_eq!(ring.score(0.0), Some(0.0));
        usual.add(f64::INFINITY);
        assert_eq!(usual.count(), 50);
        for _ in 0..4 {
            usual.add(f64::MAX);
            usual.add(f64::MIN);
        }
        assert!(usual.mean().is_finite() && usual.deviation().is_finite());
    }

    #[test]
    fn a_cusum_recovers_after_a_long_alarm() {
        let mut drift = Cusum::new(0.5, 5.0);
        for _ in 0..1000 {
            drift.add(10.0);
        }
        assert!(drift.add(f64::NAN));
        assert!((0..11).any(|_| !drift.add(-0.5)));
    }
}
