//! Percentiles of a window of latencies.

use std::time::Duration;

/// Latencies of one window.
#[derive(Debug, Default)]
pub(crate) struct Window {
    micros: Vec<u64>,
}

impl Window {
    /// Adds one.
    pub(crate) fn add(&mut self, latency: Duration) {
        self.micros.push(latency.as_micros() as u64);
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.micros.len()
    }

    /// The percentiles asked for (per cent, nearest rank), microseconds; zeros where empty. Empties the window.
    pub(crate) fn take<const N: usize>(&mut self, percents: [u64; N]) -> [u64; N] {
        self.micros.sort_unstable();
        let count = self.micros.len() as u64;
        let result = percents.map(|percent| {
            let rank = (count * percent).div_ceil(100).max(1);
            self.micros.get(rank as usize - 1).copied().unwrap_or(0)
        });
        self.micros.clear();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let mut window = Window::default();
        (1..=200)
            .rev()
            .for_each(|ms| window.add(Duration::from_millis(ms)));
        assert_eq!(window.take([50, 99, 100]), [100_000, 198_000, 200_000]);
        assert_eq!(window.take([50, 99, 100]), [0, 0, 0]);
        window.add(Duration::from_micros(7));
        assert_eq!(window.take([1, 50, 100]), [7, 7, 7]);
    }
}
