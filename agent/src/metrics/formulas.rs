//! The formulas of docs/metrics.md, one function each.
//!
//! Invariants: no state; no input panics; `None` means that the number would say nothing (its
//! denominator is too small), which is not the same as 0. A result is never infinite or NaN.

use palisade_abi::HISTOGRAM_BUCKETS;

/// Nanoseconds of a second.
pub const SECOND_NS: u64 = 1_000_000_000;
/// A counted denominator (requests, waits, calls) under this says nothing.
pub const MIN_COUNT: u64 = 5;
/// On-CPU time under this says nothing as a denominator: a few scheduler ticks.
pub const MIN_ON_CPU_NS: u64 = 5_000_000;
/// Driver calls have to take this share of a window, over all processes, for contention to count.
pub const MIN_DRIVER_SHARE: f64 = 0.01;
/// So many processes have to use a device for contention to count.
pub const MIN_DRIVER_USERS: usize = 2;

/// A histogram as the kernel programs keep it; see [`HISTOGRAM_BUCKETS`].
pub type Buckets = [u64; HISTOGRAM_BUCKETS];

/// `count` per second of a window. `None` without a window.
pub fn rate(count: u64, window_ns: u64) -> Option<f64> {
    (window_ns > 0).then(|| count as f64 * SECOND_NS as f64 / window_ns as f64)
}

/// `part_ns` as a share of a window. May pass 1 where several threads spend time at once. `None`
/// without a window.
pub fn share(part_ns: u64, window_ns: u64) -> Option<f64> {
    (window_ns > 0).then(|| part_ns as f64 / window_ns as f64)
}

/// `count` per completed request: system calls (inference syscall density), involuntary switches.
/// `None` with fewer than [`MIN_COUNT`] requests.
pub fn per_inference(count: u64, requests: u64) -> Option<f64> {
    (requests >= MIN_COUNT).then(|| count as f64 / requests as f64)
}

/// Share of the system calls that wait or yield, and so are left out of the density. `None` with
/// fewer than [`MIN_COUNT`] calls in all.
pub fn waiting_share(working: u64, waiting: u64) -> Option<f64> {
    let all = working.saturating_add(waiting);
    (all >= MIN_COUNT).then(|| waiting as f64 / all as f64)
}

/// Whether a window of a device counts for contention: its calls took at least
/// [`MIN_DRIVER_SHARE`] of it, and at least [`MIN_DRIVER_USERS`] processes made them.
pub fn contention_counts(latency_ns: u64, window_ns: u64, processes: usize) -> bool {
    processes >= MIN_DRIVER_USERS
        && share(latency_ns, window_ns).is_some_and(|share| share >= MIN_DRIVER_SHARE)
}

/// GPU driver contention: Σ max(0, Lᵢ − b) / Σ Lᵢ, in [0, 1]. `b` is the baseline of the call's
/// (device class, command); the kernel sums the excess over it. Sum only windows of which
/// [`contention_counts`] says so. `None` with fewer than [`MIN_COUNT`] calls in these windows.
pub fn driver_contention(excess_ns: u64, latency_ns: u64, calls: u64) -> Option<f64> {
    (calls >= MIN_COUNT && latency_ns > 0).then(|| (excess_ns as f64 / latency_ns as f64).min(1.0))
}

/// The culprit of contention: who held the device longest, not who waited. Of equals the first.
/// `None` if nobody held it.
pub fn culprit<T>(holders: impl IntoIterator<Item = (T, u64)>) -> Option<(T, u64)> {
    let mut largest: Option<(T, u64)> = None;
    for (who, hold_ns) in holders {
        if hold_ns > largest.as_ref().map_or(0, |(_, most)| *most) {
            largest = Some((who, hold_ns));
        }
    }
    largest
}

/// Map churn as reload equivalents: bytes of a model file mapped or read, over its size times the
/// distinct processes that did so. 1: each of them loaded it once. `None` if the size is unknown.
pub fn reload_equivalents(bytes: u64, size: u64, processes: usize) -> Option<f64> {
    (size > 0 && processes > 0).then(|| bytes as f64 / (size as f64 * processes as f64))
}

/// Thread migration rate: moves per second of on-CPU time. `None` under [`MIN_ON_CPU_NS`].
pub fn per_on_cpu_second(count: u64, on_cpu_ns: u64) -> Option<f64> {
    (on_cpu_ns >= MIN_ON_CPU_NS).then(|| count as f64 * SECOND_NS as f64 / on_cpu_ns as f64)
}

/// Mean of `count` times, seconds. `None` with fewer than [`MIN_COUNT`].
pub fn mean_seconds(sum_ns: u64, count: u64) -> Option<f64> {
    (count >= MIN_COUNT).then(|| sum_ns as f64 / count as f64 / SECOND_NS as f64)
}

/// Model load time: from the open to the last byte mapped or read, seconds.
pub fn load_seconds(opened_ns: u64, last_byte_ns: u64) -> f64 {
    last_byte_ns.saturating_sub(opened_ns) as f64 / SECOND_NS as f64
}

/// The `q` quantile (0 to 1) of a histogram over powers of two, seconds.
///
/// Finds the bucket in which the `q`·n-th value lies and goes as far into it, from its lower to
/// its upper bound in a straight line, as that value's place among the bucket's values: exact at
/// the bounds, at most a factor of 2 off between them. The last bucket has no upper bound: its
/// lower one is the answer, read as "at least". `None` with fewer than [`MIN_COUNT`] values.
pub fn quantile_seconds(buckets: &Buckets, q: f64) -> Option<f64> {
    let total = buckets
        .iter()
        .fold(0_u64, |sum, count| sum.saturating_add(*count));
    if total < MIN_COUNT {
        return None;
    }
    // `clamp` alone keeps NaN.
    let q = if q.is_nan() { 0.0 } else { q.clamp(0.0, 1.0) };
    let wanted = q * total as f64;
    let mut below = 0.0;
    let mut at = (HISTOGRAM_BUCKETS - 1, 0.0);
    for (index, count) in buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
        at = (index, ((wanted - below) / *count as f64).clamp(0.0, 1.0));
        below += *count as f64;
        if below >= wanted {
            break;
        }
    }
    let (index, part) = at;
    let (low, high) = bounds_us(index);
    let high = if index + 1 == HISTOGRAM_BUCKETS {
        low
    } else {
        high
    };
    Some((low + (high - low) * part) / 1e6)
}

/// Lower and upper bound of a bucket, microseconds.
fn bounds_us(index: usize) -> (f64, f64) {
    let high = (1_u64 << index) as f64;
    (if index == 0 { 0.0 } else { high / 2.0 }, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: Option<f64>, want: f64) {
        assert!(
            got.is_some_and(|v| (v - want).abs() < 1e-9),
            "{got:?} {want}"
        );
    }

    #[test]
    fn a_denominator_under_five_is_absent_and_not_zero() {
        assert_eq!(per_inference(100, 4), None);
        close(per_inference(100, 5), 20.0);
        close(per_inference(0, 5), 0.0);
        assert_eq!(waiting_share(2, 2), None);
        close(waiting_share(1, 4), 0.8);
        assert_eq!(mean_seconds(SECOND_NS, 4), None);
        close(mean_seconds(SECOND_NS, 5), 0.2);
        assert_eq!(per_on_cpu_second(3, MIN_ON_CPU_NS - 1), None);
        close(per_on_cpu_second(3, SECOND_NS / 2), 6.0);
        assert_eq!(rate(1, 0), None);
        close(rate(30, 60 * SECOND_NS), 0.5);
        assert_eq!(share(1, 0), None);
    }

    #[test]
    fn contention_needs_two_users_and_a_hundredth_of_the_window() {
        let hundredth = SECOND_NS / 100;
        assert!(contention_counts(hundredth, SECOND_NS, 2));
        assert!(!contention_counts(hundredth - 1, SECOND_NS, 2));
        assert!(!contention_counts(SECOND_NS, SECOND_NS, 1));
        assert!(!contention_counts(SECOND_NS, 0, 2));
        close(driver_contention(3, 4, 5), 0.75);
        close(driver_contention(9, 4, 5), 1.0);
        assert_eq!(driver_contention(3, 4, 4), None);
        assert_eq!(driver_contention(0, 0, 5), None);
    }

    #[test]
    fn the_culprit_is_the_largest_holder_and_of_equals_the_first() {
        assert_eq!(culprit([("a", 1), ("b", 5), ("c", 5)]), Some(("b", 5)));
        assert_eq!(culprit([("a", 0)]), None);
        assert_eq!(culprit::<u8>([]), None);
    }

    #[test]
    fn workers_that_load_once_each_are_one_reload_and_a_loop_is_many() {
        close(reload_equivalents(4 * 7, 7, 4), 1.0);
        close(reload_equivalents(5 * 7, 7, 1), 5.0);
        assert_eq!(reload_equivalents(7, 0, 1), None);
        assert_eq!(reload_equivalents(7, 7, 0), None);
    }

    #[test]
    fn quantiles_lie_in_their_bucket_and_grow_with_q() {
        let mut buckets = [0; HISTOGRAM_BUCKETS];
        assert_eq!(quantile_seconds(&buckets, 0.99), None);
        buckets[4] = 99; // 8 to 16 µs
        buckets[11] = 1; // 1 to 2 ms
        close(quantile_seconds(&buckets, 0.99), 16e-6);
        close(quantile_seconds(&buckets, 0.0), 8e-6);
        close(quantile_seconds(&buckets, 1.0), 2048e-6);
        let half = quantile_seconds(&buckets, 0.5);
        assert!(half.is_some_and(|v| v > 8e-6 && v < 16e-6), "{half:?}");
        buckets = [0; HISTOGRAM_BUCKETS];
        buckets[HISTOGRAM_BUCKETS - 1] = 9;
        close(quantile_seconds(&buckets, 0.5), 4.194_304);
        buckets[0] = u64::MAX;
        assert!(quantile_seconds(&buckets, f64::NAN).is_none_or(f64::is_finite));
    }
}
