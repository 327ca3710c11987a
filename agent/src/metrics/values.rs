//! From sums to numbers: which formula takes which sums.
//!
//! Invariant: a number is absent if its formula says so, or if a kind that it needs is not sensed.

use super::catalog::{GRAPHED, Metric};
use super::counts::Counts;
use super::formulas::{self, SECOND_NS};
use super::series::Slots;
use super::view::{CommandMetrics, Values};
use super::{Calls, KEPT_SECONDS};
use std::collections::BTreeMap;

/// Whether all that a metric needs is sensed.
pub(super) fn has(metric: Metric, sensed: u64) -> bool {
    metric.info().kinds & !sensed == 0
}

/// Every metric that comes of sums over a window.
pub(super) fn values(counts: &Counts, window_ns: u64, sensed: u64) -> Values {
    let mut values = Values::default();
    for metric in Metric::ALL {
        if has(*metric, sensed) {
            values.set(*metric, value(*metric, counts, window_ns));
        }
    }
    values
}

fn value(metric: Metric, counts: &Counts, window_ns: u64) -> Option<f64> {
    let rate = |count| formulas::rate(count, window_ns);
    let share = |part_ns| formulas::share(part_ns, window_ns);
    let share_us = |part_us: u64| formulas::share(part_us.saturating_mul(1000), window_ns);
    let count = |count| (window_ns > 0).then_some(count as f64);
    let same_node = counts.migrations.saturating_sub(counts.cross_node);
    match metric {
        Metric::Cpu => share(counts.on_ns),
        Metric::OffCpu => share(counts.off_ns),
        Metric::RunqP50 => formulas::quantile_seconds(&counts.runq, 0.5),
        Metric::RunqP99 => formulas::quantile_seconds(&counts.runq, 0.99),
        Metric::SwitchesVoluntary => rate(counts.voluntary),
        Metric::SwitchesInvoluntary => rate(counts.involuntary),
        Metric::SwitchesPerInference => {
            formulas::per_inference(counts.involuntary, counts.completed)
        }
        Metric::MigrationsCross => formulas::per_on_cpu_second(counts.cross_node, counts.on_ns),
        Metric::MigrationsSame => formulas::per_on_cpu_second(same_node, counts.on_ns),
        Metric::Syscalls => rate(counts.calls),
        Metric::SyscallsPerInference => formulas::per_inference(counts.calls, counts.completed),
        Metric::SyscallsWaiting => formulas::waiting_share(counts.calls, counts.waiting),
        Metric::Requests => rate(counts.requests),
        Metric::FirstByteP50 => formulas::quantile_seconds(&counts.first_byte, 0.5),
        Metric::FirstByteP99 => formulas::quantile_seconds(&counts.first_byte, 0.99),
        Metric::RequestTime => formulas::mean_seconds(counts.completed_ns, counts.completed),
        // None is over: perhaps because they are long.
        Metric::RequestsInFlight if counts.completed_ns == 0 && counts.requests > 0 => None,
        Metric::RequestsInFlight => share(counts.completed_ns),
        Metric::NetSent => rate(counts.sent_bytes),
        Metric::NetReceived => rate(counts.received_bytes),
        Metric::Retransmits => rate(counts.retransmits),
        Metric::PageFaults => rate(counts.faults),
        Metric::Maps => rate(counts.maps),
        Metric::MappedBytes => rate(counts.mapped_bytes),
        Metric::ReclaimStall => share(counts.reclaim_ns),
        Metric::OomVictims => count(counts.oom_victims),
        Metric::PressureCpu => share_us(counts.cpu_some_us),
        Metric::PressureMemory => share_us(counts.memory_some_us),
        Metric::PressureMemoryFull => share_us(counts.memory_full_us),
        Metric::PressureIo => share_us(counts.io_some_us),
        Metric::PressureIoFull => share_us(counts.io_full_us),
        Metric::GpuCalls => rate(counts.gpu_calls),
        Metric::GpuTime => share(counts.gpu_ns),
        Metric::GpuCallP50 => formulas::quantile_seconds(&counts.gpu_latency, 0.5),
        Metric::GpuCallP99 => formulas::quantile_seconds(&counts.gpu_latency, 0.99),
        Metric::GpuHold => share(counts.gpu_hold_ns),
        Metric::GpuContention => formulas::driver_contention(
            counts.contended_excess_ns,
            counts.contended_ns,
            counts.contended_calls,
        ),
        Metric::GpuErrors => count(counts.gpu_errors),
        Metric::CudaBlocked => share(counts.cuda_blocked_ns),
        Metric::CudaLaunches => rate(counts.cuda_launches),
        Metric::CudaFailedAllocs => count(counts.cuda_failed_allocs),
        // Not sums over the window: see `Models`.
        Metric::ModelReloads | Metric::ModelLoadTime => None,
    }
}

/// A point for each of the last [`KEPT_SECONDS`] seconds.
pub(super) fn graphs(
    slots: &Slots<Counts>,
    first_ns: u64,
    until_ns: u64,
    sensed: u64,
) -> BTreeMap<String, Vec<Option<f32>>> {
    let oldest_ns = until_ns.saturating_sub(KEPT_SECONDS * SECOND_NS);
    let seen: BTreeMap<u64, &Counts> = slots.between(oldest_ns, until_ns).collect();
    let nothing = Counts::default();
    let graphed = GRAPHED.iter().filter(|metric| has(**metric, sensed));
    graphed
        .map(|metric| {
            let points = (0..KEPT_SECONDS).map(|second| {
                let ahead_ns = (KEPT_SECONDS - second) * SECOND_NS;
                let at_ns = until_ns.checked_sub(ahead_ns)?;
                let counts = seen.get(&at_ns).copied().unwrap_or(&nothing);
                let value = value(*metric, counts, SECOND_NS).filter(|_| at_ns >= first_ns)?;
                Some(value as f32)
            });
            (metric.info().id.to_owned(), points.collect())
        })
        .collect()
}

/// Driver calls by command, most time first.
pub(super) fn commands(commands: &BTreeMap<(u32, u16), Slots<Calls>>) -> Vec<CommandMetrics> {
    let mut list: Vec<CommandMetrics> = commands
        .iter()
        .map(|((class, command), slots)| {
            let sums = slots.sum(0, u64::MAX);
            CommandMetrics {
                class: *class,
                device: String::new(),
                command: *command,
                name: String::new(),
                calls: sums.calls,
                time_s: sums.latency_ns as f64 / SECOND_NS as f64,
                excess_s: sums.excess_ns as f64 / SECOND_NS as f64,
            }
        })
        .collect();
    list.sort_by(|a, b| b.time_s.total_cmp(&a.time_s));
    list
}
