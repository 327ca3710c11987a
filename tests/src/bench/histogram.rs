//! Latencies in buckets that grow with their values: each is at most 1/64 too wide.

/// Buckets for one doubling of the value.
const PER_DOUBLING: u64 = 64;
const BITS: u32 = PER_DOUBLING.trailing_zeros();

/// Counts of values, for quantiles.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    /// Counts one value.
    pub fn add(&mut self, value: u64) {
        let bucket = bucket(value);
        if bucket >= self.counts.len() {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += 1;
        self.total += 1;
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Histogram) {
        if other.counts.len() > self.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
    }

    /// Values counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The value below or at which that part of all values lies, a bucket's values taken as evenly spread over it;
    /// 0 of nothing.
    pub fn quantile(&self, part: f64) -> u64 {
        let wanted = (self.total as f64 * part).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            if seen + count >= wanted {
                let (low, high) = (begin(bucket), begin(bucket + 1));
                let before = (wanted - seen - 1) as f64 / *count as f64;
                return low + (high.saturating_sub(low) as f64 * before) as u64;
            }
            seen += count;
        }
        0
    }
}

fn bucket(value: u64) -> usize {
    if value < PER_DOUBLING {
        return value as usize;
    }
    let shift = value.ilog2() - BITS;
    (u64::from(shift + 1) * PER_DOUBLING + (value >> shift) - PER_DOUBLING) as usize
}

fn begin(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < PER_DOUBLING {
        return bucket;
    }
    let shift = bucket / PER_DOUBLING - 1;
    (bucket % PER_DOUBLING + PER_DOUBLING) << shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_begins_at_most_a_64th_below_its_values() {
        for value in (0..100_000).chain([1 << 40, (1 << 40) + 12_345, u64::MAX]) {
            let start = begin(bucket(value));
            assert!(
                start <= value && value - start <= value / PER_DOUBLING,
                "{value}: {start}"
            );
            assert_eq!(bucket(start), bucket(value));
        }
    }

    #[test]
    fn quantiles_of_a_hundred_values() {
        let mut low = Histogram::default();
        (1..=50).for_each(|value| low.add(value));
        let mut all = Histogram::default();
        (51..=100).for_each(|value| all.add(value));
        all.merge(&low);
        assert_eq!(all.total(), 100);
        assert_eq!((all.quantile(0.5), all.quantile(0.01)), (50, 1));
        assert_eq!(all.quantile(0.99), 99);
        all.add(1001);
        assert_eq!(all.quantile(1.0), 1000, "the begin of its bucket");
        let mut one_bucket = Histogram::default();
        (1008..1016).for_each(|value| one_bucket.add(value));
        assert_eq!(
            (one_bucket.quantile(0.5), one_bucket.quantile(1.0)),
            (1011, 1015)
        );
        assert_eq!(Histogram::default().quantile(0.99), 0);
    }
}
