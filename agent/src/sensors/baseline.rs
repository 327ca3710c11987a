//! Baselines of driver calls: for each (device class, command) the 10th percentile of the latencies
//! of the last minute, over all processes of the host.
//!
//! Invariants:
//! - There is no baseline before [`ENOUGH`] calls were seen in one span; one that is there stays
//!   until there is a newer one, or until the command was not used for [`FORGET_NS`].
//! - A percentile lies in the bucket in which the true one lies: it is off by a fifth at most.

use super::{
    SensorError,
    load::take,
    pod::Plain,
    window::{Collect, Process, Told},
};
use aya::{
    Ebpf,
    maps::{Array, HashMap as KernelMap, MapData},
};
use palisade_abi::{Kind, LATENCY_BUCKETS, LatencyHistogram, latency_bucket_start};
use std::collections::{HashMap, VecDeque};

const SECOND: u64 = 1_000_000_000;
/// How often baselines are renewed, nanoseconds.
const EVERY_NS: u64 = SECOND;
/// The span is kept in slots of this length, nanoseconds.
const SLOT_NS: u64 = 5 * SECOND;
/// Slots of the span: one minute.
const SLOTS: u64 = 12;
/// Calls below which a percentile says nothing.
pub(super) const ENOUGH: u64 = 20;
/// A command that was not used for this long is forgotten, nanoseconds.
const FORGET_NS: u64 = 600 * SECOND;

type Counts = [u64; LATENCY_BUCKETS];

/// The kernel's histograms and its baselines, as one more family of counters.
pub(super) struct Baselines {
    latencies: KernelMap<MapData, u32, Plain<LatencyHistogram>>,
    baselines: KernelMap<MapData, u32, u64>,
    /// When a baseline changed last; until then the programs keep those that they looked up.
    renewed: Array<MapData, u64>,
    commands: HashMap<u32, Rolling>,
    due_ns: u64,
}

impl std::fmt::Debug for Baselines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Baselines")
            .field("commands", &self.commands.len())
            .finish_non_exhaustive()
    }
}

impl Baselines {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, SensorError> {
        Ok(Self {
            latencies: take(ebpf, "LATENCIES")?,
            baselines: take(ebpf, "BASELINES")?,
            renewed: take(ebpf, "BASELINES_AT")?,
            commands: HashMap::new(),
            due_ns: 0,
        })
    }

    fn renew(&mut self, now_ns: u64) {
        let mut changed = false;
        for (key, histogram) in self.latencies.iter().filter_map(Result::ok) {
            let rolling = self
                .commands
                .entry(key)
                .or_insert_with(|| Rolling::new(now_ns));
            if let Some(baseline) = rolling.renew(now_ns, &histogram.0.counts) {
                // A full map means no baseline for this command, which its samples show.
                let _ = self.baselines.insert(key, baseline, 0);
                changed = true;
            }
        }
        let (latencies, baselines) = (&mut self.latencies, &mut self.baselines);
        self.commands.retain(|key, rolling| {
            let keep = now_ns < rolling.used_ns + FORGET_NS;
            if !keep {
                // Already gone is just as good.
                let _ = latencies.remove(key);
                let _ = baselines.remove(key);
                changed = true;
            }
            keep
        });
        if changed {
            // It cannot fail: the array has this one entry.
            let _ = self.renewed.set(0, now_ns, 0);
        }
    }
}

impl Collect for Baselines {
    fn kinds(&self) -> u64 {
        Kind::SampleGpuCommand.bit()
    }

    fn collect(&mut self, _window: u64, told: &mut Told<'_>) {
        if told.now_ns >= self.due_ns {
            self.due_ns = told.now_ns + EVERY_NS;
            self.renew(told.now_ns);
        }
    }

    fn forget(&mut self, _window: u64, _due: &dyn Fn(Process) -> bool) {}

    fn len(&self) -> usize {
        0
    }
}

/// One command's latencies of the last minute.
struct Rolling {
    /// What the kernel's counters held when they were read last.
    total: Counts,
    /// When its last call was seen.
    used_ns: u64,
    /// Counts by slot, oldest first.
    slots: VecDeque<(u64, Counts)>,
    baseline: Option<u64>,
}

impl Rolling {
    fn new(now_ns: u64) -> Self {
        Self {
            total: [0; LATENCY_BUCKETS],
            used_ns: now_ns,
            slots: VecDeque::new(),
            baseline: None,
        }
    }

    /// Takes the kernel's counters; the baseline, if it changed.
    fn renew(&mut self, now_ns: u64, total: &Counts) -> Option<u64> {
        let slot = now_ns / SLOT_NS;
        while self.slots.front().is_some_and(|(at, _)| at + SLOTS <= slot) {
            self.slots.pop_front();
        }
        if *total != self.total {
            self.used_ns = now_ns;
            if self.slots.back().is_none_or(|(at, _)| *at != slot) {
                self.slots.push_back((slot, [0; LATENCY_BUCKETS]));
            }
            if let Some((_, counts)) = self.slots.back_mut() {
                for ((count, new), old) in counts.iter_mut().zip(total).zip(&self.total) {
                    *count += new.wrapping_sub(*old);
                }
            }
            self.total = *total;
        }
        let mut span = [0_u64; LATENCY_BUCKETS];
        for (_, counts) in &self.slots {
            for (sum, count) in span.iter_mut().zip(counts) {
                *sum += count;
            }
        }
        let renewed = tenth_percentile(&span)?;
        (self.baseline.replace(renewed) != Some(renewed)).then_some(renewed)
    }
}

/// The 10th percentile of a histogram, nanoseconds: the nearest rank, placed in its bucket as if
/// the bucket's values were spread evenly. `None` for fewer than [`ENOUGH`] values.
pub(super) fn tenth_percentile(counts: &Counts) -> Option<u64> {
    let all: u64 = counts.iter().sum();
    if all < ENOUGH {
        return None;
    }
    let rank = all.div_ceil(10);
    let mut below = 0;
    for (bucket, count) in counts.iter().enumerate() {
        if below + count < rank {
            below += count;
            continue;
        }
        let start = latency_bucket_start(bucket);
        let width = latency_bucket_start(bucket + 1) - start;
        let place = (rank - below) as f64 - 0.5;
        return Some(start + (width as f64 * place / *count as f64) as u64);
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use palisade_abi::latency_bucket;

    fn counts(latencies: impl IntoIterator<Item = u64>) -> Counts {
        let mut counts = [0; LATENCY_BUCKETS];
        for latency in latencies {
            counts[latency_bucket(latency)] += 1;
        }
        counts
    }

    #[test]
    fn the_percentile_needs_enough_calls_and_ignores_the_slow_ones() {
        assert_eq!(tenth_percentile(&counts([])), None);
        assert_eq!(tenth_percentile(&counts(vec![5000; 19])), None);
        let few_quick = (0..100).map(|n| if n < 15 { 1000 } else { 50_000_000 });
        let cases = [
            (counts(vec![5000; 20]), 5000),
            (counts(few_quick), 1000),
            (counts(vec![100; 1000]), 100),
            (counts(vec![10_000_000_000; 50]), 3_300_000_000),
        ];
        for (counts, near) in cases {
            let found = tenth_percentile(&counts).unwrap();
            assert_eq!(
                latency_bucket(found),
                latency_bucket(near),
                "{found} {near}"
            );
        }
    }

    /// Sequence of a linear congruential generator: reproducible, and good enough here.
    fn random(state: &mut u64) -> u64 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *state >> 33
    }

    #[test]
    fn the_percentile_lies_in_the_bucket_of_the_true_one() {
        let mut state = 7;
        for _ in 0..500 {
            let size = 20 + random(&mut state) % 400;
            let shift = 8 + random(&mut state) % 22;
            let mut latencies: Vec<u64> = (0..size)
                .map(|_| 1 + random(&mut state) % (1 << (1 + random(&mut state) % shift)))
                .collect();
            let found = tenth_percentile(&counts(latencies.iter().copied())).unwrap();
            latencies.sort_unstable();
            let exact = latencies[(size.div_ceil(10) - 1) as usize];
            assert_eq!(
                latency_bucket(found),
                latency_bucket(exact),
                "{latencies:?}"
            );
            assert!(exact < 256 || found.abs_diff(exact) <= exact / 4);
        }
    }

    #[test]
    fn a_baseline_follows_the_last_minute_and_stays_when_calls_stop() {
        let mut rolling = Rolling::new(0);
        let mut total = counts(vec![5000; 30]);
        let first = rolling.renew(SECOND, &total).unwrap();
        assert_eq!(latency_bucket(first), latency_bucket(5000));
        // The same counters again: nothing new to tell.
        assert_eq!(rolling.renew(2 * SECOND, &total), None);
        // A slow minute: as long as quick calls are a tenth of the span, they are the baseline.
        for at in 30..59 {
            total[latency_bucket(1_000_000)] += 5;
            let told = rolling.renew(at * SECOND, &total);
            assert!(told.is_none_or(|told| latency_bucket(told) == latency_bucket(5000)));
        }
        let later = rolling.renew(70 * SECOND, &total).unwrap();
        assert_eq!(latency_bucket(later), latency_bucket(1_000_000));
        // Nothing for an hour: too few calls in the span for another one.
        assert_eq!(rolling.renew(4000 * SECOND, &total), None);
        assert_eq!(rolling.baseline, Some(later));
        assert!(rolling.slots.is_empty());
        assert_eq!(rolling.used_ns, 58 * SECOND);
    }
}
