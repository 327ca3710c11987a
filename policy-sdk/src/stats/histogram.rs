use crate::{Record, abi::Histogram};

/// Counts by powers of two: bucket 0 holds 0, bucket n holds 2ⁿ⁻¹ up to 2ⁿ − 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log2Histogram {
    buckets: [u64; 65],
    total: u64,
}

impl Default for Log2Histogram {
    fn default() -> Self {
        Self {
            buckets: [0; 65],
            total: 0,
        }
    }
}

impl Log2Histogram {
    /// Counts one value.
    pub fn add(&mut self, value: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        self.buckets[bucket] = self.buckets[bucket].saturating_add(1);
        self.total = self.total.saturating_add(1);
    }

    /// Adds a record of a histogram (`sample-runq`, `sample-first-byte`, `sample-gpu-latency`), in
    /// microseconds: bucket n of all of them means the same. `false` for any other record, which
    /// changes nothing. One window of a process (and device class, which
    /// [`Histogram::class`] tells) may come in up to four records, one for each part that is not zero.
    pub fn add_record(&mut self, record: &Record) -> bool {
        let Some(part) = record.get::<Histogram>() else {
            return false;
        };
        let first = Histogram::first_bucket(record.header.flags).min(self.buckets.len());
        for (bucket, count) in self.buckets[first..].iter_mut().zip(part.counts) {
            *bucket = bucket.saturating_add(u64::from(count));
            self.total = self.total.saturating_add(u64::from(count));
        }
        true
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The value below which `part` (0 to 1) of all values lie, at the upper end of its bucket:
    /// up to twice too high. `None` while empty.
    pub fn quantile(&self, part: f64) -> Option<u64> {
        let wanted = (part.clamp(0.0, 1.0) * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0_u64;
        self.buckets.iter().enumerate().find_map(|(bucket, count)| {
            seen = seen.saturating_add(*count);
            (*count > 0 && seen >= wanted)
                .then(|| u64::MAX.checked_shr(64 - bucket as u32).unwrap_or(0))
        })
    }

    /// How many times as high the 99th percentile is as the median; over 3 means a tail.
    pub fn tail_ratio(&self) -> Option<f64> {
        Some(self.quantile(0.99)? as f64 / self.quantile(0.5)?.max(1) as f64)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, abi::SampleCpu};

    #[test]
    fn parts_from_the_kernel_are_put_together() {
        let proc = crate::testing::Proc::new(1, 2);
        let mut histogram = Log2Histogram::default();
        // 10 values under 1 µs, 80 of 1 µs, 9 of 64 to 127 µs, 1 of at least 4.2 s.
        let low = proc.histogram(Kind::SampleRunq, 0, [10, 80, 0, 0, 0, 0]);
        let high = proc.histogram(Kind::SampleRunq, 6, [0, 9, 0, 0, 0, 0]);
        let last = proc.histogram(Kind::SampleRunq, 18, [0, 0, 0, 0, 0, 1]);
        assert!(histogram.add_record(&low) && histogram.add_record(&high));
        assert!(histogram.add_record(&last));
        assert!(!histogram.add_record(&proc.sample(SampleCpu::default())));
        assert_eq!(histogram.count(), 100);
        assert_eq!(histogram.quantile(0.1), Some(0));
        assert_eq!(histogram.quantile(0.9), Some(1));
        assert_eq!(histogram.quantile(0.99), Some(127));
        assert_eq!(histogram.quantile(1.0), Some((1 << 23) - 1));
        let calls = proc.gpu_latency(2, 6, [0, 9, 0, 0, 0, 0]);
        assert_eq!(Histogram::class(calls.header.flags), 2);
        let mut of_calls = Log2Histogram::default();
        assert!(of_calls.add_record(&calls));
        assert_eq!((of_calls.count(), of_calls.quantile(0.5)), (9, Some(127)));
        let mut nonsense = low;
        nonsense.header.flags = u16::MAX;
        assert!(histogram.add_record(&nonsense));
        assert_eq!(histogram.count(), 100);
    }

    #[test]
    fn quantiles_are_bucket_ends() {
        let mut histogram = Log2Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for _ in 0..98 {
            histogram.add(100);
        }
        histogram.add(0);
        histogram.add(u64::MAX);
        assert_eq!(histogram.quantile(0.0), Some(0));
        assert_eq!(histogram.quantile(0.5), Some(127));
        assert_eq!(histogram.quantile(1.0), Some(u64::MAX));
        assert_eq!(histogram.quantile(f64::NAN), Some(0));
        assert_eq!(histogram.tail_ratio(), Some(1.0));
        histogram.clear();
        assert_eq!(histogram.count(), 0);
    }
}
