//! What one process may take of the tables that are keyed finer than by process.
//!
//! Invariant: a process's quota is forgotten with its entries, after its end.

use super::{
    SensorError,
    counter_map::CounterMap,
    load::set_array,
    window::{Collect, Key, Process, Told},
};
use aya::Ebpf;
use palisade_abi::{
    Kind, QUOTA_COMMANDS, QUOTA_HISTOGRAMS, QUOTA_LATENCIES, QUOTA_READS, QUOTA_TABLES, QuotaKey,
    QuotaTaken,
};

/// A process gets this part of a table at most.
const PART: u32 = 16;
/// But never less than this many entries.
const LEAST: u32 = 16;
/// Of the 512 commands that have a baseline. It is for a process's life: nobody knows later whose
/// they were.
const LATENCIES: u32 = 128;

/// Sets the limits for tables with room for `processes` times so many entries each.
pub(super) fn limit(
    ebpf: &mut Ebpf,
    processes: u32,
    room: impl Fn(&str) -> u32,
) -> Result<(), SensorError> {
    let part = |map| {
        let entries = processes.saturating_mul(room(map));
        u64::from((entries / PART).max(LEAST))
    };
    let mut limits = [0; QUOTA_TABLES as usize];
    limits[QUOTA_COMMANDS as usize] = part("GPU_COMMANDS");
    limits[QUOTA_HISTOGRAMS as usize] = part("HISTOGRAMS");
    limits[QUOTA_READS as usize] = part("READS");
    limits[QUOTA_LATENCIES as usize] = u64::from(LATENCIES);
    set_array(ebpf, "QUOTA_LIMITS", limits)
}

impl Key for QuotaKey {
    fn process(&self) -> Process {
        (self.pid, self.start_ns)
    }

    fn workload(&self) -> u64 {
        0
    }
}

/// What processes have taken, as one more family: it makes no records.
#[derive(Debug)]
pub(super) struct Quotas(CounterMap<QuotaKey, QuotaTaken>);

impl Quotas {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, SensorError> {
        Ok(Self(CounterMap::new(ebpf, "QUOTAS")?))
    }
}

impl Collect for Quotas {
    fn kinds(&self) -> u64 {
        Kind::SampleGpuCommand.bit()
            | Kind::SampleRunq.bit()
            | Kind::SampleFirstByte.bit()
            | Kind::SampleReads.bit()
            | Kind::SampleGpuLatency.bit()
    }

    fn collect(&mut self, window: u64, told: &mut Told<'_>) {
        self.0.learn(window, told.added.as_ref());
    }

    fn forget(&mut self, window: u64, due: &dyn Fn(Process) -> bool) {
        self.0.forget(window, due);
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn unread(&self) -> u64 {
        self.0.unread()
    }
}
