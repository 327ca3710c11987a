use std::collections::VecDeque;

/// Sum over the last stretch of time, kept in buckets.
///
/// ```
/// use palisade_policy_sdk::stats::WindowSum;
/// let mut sum = WindowSum::new(1000, 10);
/// sum.add(0, 5.0);
/// sum.add(500, 7.0);
/// assert_eq!(sum.total(999), 12.0);
/// assert_eq!(sum.total(1050), 7.0);
/// ```
#[derive(Clone, Debug)]
pub struct WindowSum {
    bucket_ns: u64,
    buckets: usize,
    sums: VecDeque<(u64, f64)>,
}

impl WindowSum {
    /// A window of `window_ns`, moved on in steps of `window_ns / buckets` (1 to 1,024 buckets).
    pub fn new(window_ns: u64, buckets: usize) -> Self {
        let buckets = buckets.clamp(1, 1024);
        Self {
            bucket_ns: (window_ns / buckets as u64).max(1),
            buckets,
            sums: VecDeque::new(),
        }
    }

    /// Adds a value. One that is older than the window, or not finite, is ignored.
    pub fn add(&mut self, now_ns: u64, value: f64) {
        if !value.is_finite() {
            return;
        }
        let index = now_ns / self.bucket_ns;
        self.expire(index);
        match self.sums.back_mut() {
            Some((last, sum)) if *last == index => *sum += value,
            Some((last, _)) if *last > index => {
                if let Some((_, sum)) = self.sums.iter_mut().find(|(at, _)| *at == index) {
                    *sum += value;
                }
            }
            _ => self.sums.push_back((index, value)),
        }
    }

    /// The sum over the window that ends now.
    pub fn total(&mut self, now_ns: u64) -> f64 {
        self.expire(now_ns / self.bucket_ns);
        self.sums.iter().map(|(_, sum)| sum).sum()
    }

    /// Length of the window, nanoseconds.
    pub fn window_ns(&self) -> u64 {
        self.bucket_ns.saturating_mul(self.buckets as u64)
    }

    fn expire(&mut self, index: u64) {
        let first = index.saturating_sub(self.buckets as u64 - 1);
        while self.sums.front().is_some_and(|(at, _)| *at < first) {
            self.sums.pop_front();
        }
    }
}

/// Events a second over the last stretch of time.
#[derive(Clone, Debug)]
pub struct Rate {
    sum: WindowSum,
    since_ns: Option<u64>,
}

impl Rate {
    /// Measured over `window_ns`.
    pub fn new(window_ns: u64) -> Self {
        Self {
            sum: WindowSum::new(window_ns, 20),
            since_ns: None,
        }
    }

    /// Counts `count` events.
    pub fn add(&mut self, now_ns: u64, count: f64) {
        self.since_ns.get_or_insert(now_ns);
        self.sum.add(now_ns, count);
    }

    /// Events a second; `None` until a whole window has been seen.
    pub fn per_second(&mut self, now_ns: u64) -> Option<f64> {
        let window_ns = self.sum.window_ns();
        if now_ns.saturating_sub(self.since_ns?) < window_ns {
            return None;
        }
        Some(self.sum.total(now_ns) * 1e9 / window_ns as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_values_leave_and_late_ones_find_their_bucket() {
        let mut sum = WindowSum::new(100, 10);
        sum.add(5, 1.0);
        sum.add(55, 2.0);
        sum.add(7, 4.0);
        sum.add(30, 8.0);
        sum.add(60, f64::NAN);
        assert_eq!(sum.total(60), 7.0);
        assert_eq!(sum.total(100), 2.0);
        assert_eq!(sum.total(u64::MAX), 0.0);
    }

    #[test]
    fn a_rate_needs_a_whole_window() {
        let mut rate = Rate::new(1_000_000_000);
        assert_eq!(rate.per_second(0), None);
        for ms in 0..2000 {
            rate.add(ms * 1_000_000, 1.0);
        }
        let per_second = rate.per_second(1_999_000_000).unwrap_or_default();
        assert!((950.0..=1000.0).contains(&per_second), "{per_second}");
    }
}
