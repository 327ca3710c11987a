//! Metrics: from records to the numbers that people look at, per workload and process.
//!
//! The window is 1 s, reported over the last [`KEPT_SECONDS`] whole seconds; every number, its unit and
//! its formula is in docs/metrics.md.
//!
//! Invariants:
//! - Event time only: the time is that of the batches. No clock, no I/O, no look-ups; names are
//!   filled in by whoever asks.
//! - No input panics, and memory is bounded by the `MAX_*` constants: what is pushed out or finds no
//!   room is counted in [`Snapshot::left_out`].
//! - Absent is not 0: a number is missing where its denominator is too small to say anything, and
//!   where a kind that it needs is not sensed.
//!
//! This room must not judge a number, and knows neither policies nor sensors.

mod catalog;
pub mod commands;
mod counts;
mod devices;
pub mod formulas;
mod models;
mod series;
mod values;
mod view;

pub use catalog::{GRAPHED, Info, KINDS, Metric};
pub use models::RELOAD_WINDOW_NS;
pub use view::{
    Absent, CommandMetrics, Culprit, DeviceMetrics, ModelMetrics, ProcessMetrics, Snapshot, Values,
    WorkloadMetrics,
};

use counts::Counts;
use devices::Devices;
use formulas::SECOND_NS;
use models::Models;
use palisade_abi::{Kind, ModelFile, Record, SampleGpuCommand, SampleReads, kind};
use palisade_core::ProcessId;
use series::{Slots, Tally};
use std::collections::BTreeMap;
use values::{commands, graphs, has, values};

/// Seconds that are reported over.
pub const KEPT_SECONDS: u64 = 60;
/// Workloads that are kept; beyond it the one that did nothing for the longest time goes.
pub const MAX_WORKLOADS: usize = 256;
/// Processes that are kept, of all workloads together; beyond it those that did nothing for the
/// longest time go.
pub const MAX_PROCESSES: usize = 1024;
/// Driver commands that are told apart, a workload.
pub const MAX_COMMANDS: usize = 48;

/// Processes and commands are kept in coarser slots.
const PROCESS_SLOT_NS: u64 = 10 * SECOND_NS;
const PROCESS_SLOTS: u64 = 5;
/// Processes that go at once when there is no room: looking for them costs a walk over all.
const PUSHED_OUT: usize = MAX_PROCESSES / 8;

/// A process in the workload that it was in.
type Owner = (u64, ProcessId);

#[derive(Clone, Debug)]
struct Workload {
    slots: Slots<Counts>,
    commands: BTreeMap<(u32, u16), Slots<Calls>>,
    /// Its pressure files told something: without that, no record may also mean that nobody reads them.
    pressure: bool,
    changed_ns: u64,
}

#[derive(Clone, Debug)]
struct Process {
    slots: Slots<Counts>,
    changed_ns: u64,
}

#[derive(Clone, Debug, Default)]
struct Calls {
    calls: u64,
    latency_ns: u64,
    excess_ns: u64,
}

impl Calls {
    fn of(sample: &SampleGpuCommand) -> Self {
        Self {
            calls: sample.calls.into(),
            latency_ns: sample.latency_ns,
            excess_ns: sample.excess_ns,
        }
    }
}

impl Tally for Calls {
    fn add(&mut self, other: &Self) {
        self.calls.add(&other.calls);
        self.latency_ns.add(&other.latency_ns);
        self.excess_ns.add(&other.excess_ns);
    }
}

/// Sums up records; see the module.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    started_ns: Option<u64>,
    now_ns: u64,
    tidied_ns: u64,
    workloads: BTreeMap<u64, Workload>,
    processes: BTreeMap<Owner, Process>,
    devices: Devices,
    models: Models,
    left_out: u64,
}

impl Metrics {
    /// Nothing was seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in a batch: its records, its time, and whether it ends a sampling window. Records of
    /// other kinds than [`KINDS`] are passed over, but for CUDA's samples and losses.
    pub fn observe(&mut self, records: &[Record], now_ns: u64, window_end: bool) {
        self.now_ns = self.now_ns.max(now_ns);
        self.started_ns.get_or_insert(self.now_ns);
        self.settle();
        for record in records {
            self.record(record);
        }
        if window_end && self.now_ns.saturating_sub(self.tidied_ns) >= SECOND_NS {
            self.tidied_ns = self.now_ns;
            self.tidy();
        }
    }

    /// Says that so many records did not get here.
    pub fn missed(&mut self, records: u64) {
        self.left_out = self.left_out.saturating_add(records);
    }

    /// Files of which no open has told the size: for [`Metrics::set_file_size`].
    pub fn files_without_size(&self) -> Vec<(u32, u64)> {
        self.models.without_size().collect()
    }

    /// Says the size of a file, bytes.
    pub fn set_file_size(&mut self, device: u32, inode: u64, bytes: u64) {
        self.models.set_size(device, inode, bytes);
    }

    /// The numbers as of the last batch. `sensed` are the kinds ([`Kind::bit`]) that are to be had:
    /// metrics that need others are absent. Names are left empty.
    pub fn snapshot(&self, sensed: u64) -> Snapshot {
        let until_ns = self.now_ns / SECOND_NS * SECOND_NS;
        let started_ns = self.started_ns.unwrap_or(self.now_ns);
        // The first second was not seen whole.
        let first_ns = started_ns.div_ceil(SECOND_NS).saturating_mul(SECOND_NS);
        let from_ns = until_ns
            .saturating_sub(KEPT_SECONDS * SECOND_NS)
            .max(first_ns);
        let window_ns = until_ns.saturating_sub(from_ns);
        let workloads = self.workloads.iter().map(|(id, workload)| {
            let counts = workload.slots.sum(from_ns, until_ns);
            let sensed = if workload.pressure {
                sensed
            } else {
                sensed & !Kind::SamplePressure.bit()
            };
            let models = self.models.view(*id);
            let mut values = values(&counts, window_ns, sensed);
            if has(Metric::ModelReloads, sensed) {
                let most = models.iter().filter_map(|model| model.reloads);
                values.set(Metric::ModelReloads, most.reduce(f64::max));
            }
            if has(Metric::ModelLoadTime, sensed) {
                values.set(Metric::ModelLoadTime, self.models.load_seconds(*id));
            }
            WorkloadMetrics {
                workload: *id,
                values,
                lost: counts.lost,
                graphs: graphs(&workload.slots, first_ns, until_ns, sensed),
                processes: self.processes_of(*id, started_ns, sensed),
                commands: commands(&workload.commands),
                models,
                ..WorkloadMetrics::default()
            }
        });
        Snapshot {
            now_ns: self.now_ns,
            window_s: window_ns / SECOND_NS,
            observed_s: self.now_ns.saturating_sub(started_ns) / SECOND_NS,
            workloads: workloads.collect(),
            devices: self.devices.view(from_ns, until_ns),
            absent: Vec::new(),
            left_out: self
                .left_out
                .saturating_add(self.devices.left_out)
                .saturating_add(self.models.left_out),
        }
    }

    fn processes_of(&self, workload: u64, started_ns: u64, sensed: u64) -> Vec<ProcessMetrics> {
        let all = ProcessId {
            pid: 0,
            start_ns: 0,
        }..=ProcessId {
            pid: u32::MAX,
            start_ns: u64::MAX,
        };
        // The slot that runs counts too: so the window is 50 to 60 s long.
        let oldest_ns = (self.now_ns / PROCESS_SLOT_NS)
            .saturating_sub(PROCESS_SLOTS)
            .saturating_mul(PROCESS_SLOT_NS);
        let window_ns = self.now_ns.saturating_sub(oldest_ns.max(started_ns));
        // Pressure belongs to cgroups.
        let sensed = sensed & !Kind::SamplePressure.bit();
        self.processes
            .range((workload, *all.start())..=(workload, *all.end()))
            .map(|((_, process), entry)| {
                let counts = entry.slots.sum(oldest_ns, u64::MAX);
                ProcessMetrics {
                    pid: process.pid,
                    start_ns: process.start_ns,
                    values: values(&counts, window_ns, sensed),
                    ..ProcessMetrics::default()
                }
            })
            .collect()
    }

    fn record(&mut self, record: &Record) {
        let header = &record.header;
        let process = ProcessId {
            pid: header.pid,
            start_ns: header.start_ns,
        };
        let owner = (header.workload, process);
        self.model(owner, record);
        let mut counts = Counts::default();
        if !counts.absorb(record) {
            return;
        }
        let now_ns = self.now_ns;
        let workload = self.workload(header.workload);
        workload.changed_ns = now_ns;
        workload.pressure |= header.kind == kind::SAMPLE_PRESSURE;
        if let Some(slot) = workload.slots.at(now_ns) {
            slot.add(&counts);
        }
        if let Some(sample) = record.get::<SampleGpuCommand>() {
            let key = (u32::from(sample.class), sample.command);
            if workload.commands.len() < MAX_COMMANDS || workload.commands.contains_key(&key) {
                let slots = workload
                    .commands
                    .entry(key)
                    .or_insert_with(|| Slots::new(PROCESS_SLOT_NS, PROCESS_SLOTS));
                if let Some(slot) = slots.at(now_ns) {
                    slot.add(&Calls::of(&sample));
                }
            } else {
                self.left_out += 1;
            }
        }
        let of_cgroup = matches!(header.kind, kind::SAMPLE_PRESSURE | kind::LOST);
        if of_cgroup || process.pid == 0 {
            return;
        }
        self.devices.observe(owner, record, now_ns);
        let entry = self.process(owner);
        entry.changed_ns = now_ns;
        if let Some(slot) = entry.slots.at(now_ns) {
            slot.add(&counts);
        }
    }

    /// Opens, maps and reads of model files.
    fn model(&mut self, owner: Owner, record: &Record) {
        let (workload, process) = owner;
        let time_ns = record.header.time_ns.min(self.now_ns);
        if let Some(file) = record.get::<ModelFile>() {
            let key = (workload, file.device, file.inode);
            if record.header.kind == kind::MODEL_OPEN {
                self.models.opened(key, process, file.bytes, time_ns);
            } else {
                self.models.took(key, process, file.bytes, time_ns);
            }
        } else if let Some(sample) = record.get::<SampleReads>() {
            let key = (workload, sample.device, sample.inode);
            self.models.took(key, process, sample.bytes, time_ns);
        } else {
            return;
        }
        // It is listed although nothing else may be counted of it.
        let now_ns = self.now_ns;
        self.workload(workload).changed_ns = now_ns;
    }

    fn workload(&mut self, id: u64) -> &mut Workload {
        if self.workloads.len() >= MAX_WORKLOADS && !self.workloads.contains_key(&id) {
            let oldest = self.workloads.iter().min_by_key(|(_, w)| w.changed_ns);
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                self.workloads.remove(&oldest);
                self.left_out += 1;
            }
        }
        self.workloads.entry(id).or_insert_with(|| Workload {
            slots: Slots::new(SECOND_NS, KEPT_SECONDS),
            commands: BTreeMap::new(),
            pressure: false,
            changed_ns: 0,
        })
    }

    fn process(&mut self, owner: Owner) -> &mut Process {
        if self.processes.len() >= MAX_PROCESSES && !self.processes.contains_key(&owner) {
            let mut by_age: Vec<(u64, Owner)> = self
                .processes
                .iter()
                .map(|(owner, process)| (process.changed_ns, *owner))
                .collect();
            by_age.sort_unstable();
            for (_, oldest) in by_age.iter().take(PUSHED_OUT) {
                self.processes.remove(oldest);
            }
            self.left_out += PUSHED_OUT as u64;
        }
        self.processes.entry(owner).or_insert_with(|| Process {
            slots: Slots::new(PROCESS_SLOT_NS, PROCESS_SLOTS),
            changed_ns: 0,
        })
    }

    /// Books the driver calls of a second that is over, if it counts for contention.
    fn settle(&mut self) {
        for contended in self.devices.advance(self.now_ns) {
            let counts = Counts {
                contended_calls: contended.calls.calls,
                contended_ns: contended.calls.latency_ns,
                contended_excess_ns: contended.calls.excess_ns,
                ..Counts::default()
            };
            let workload = self.workloads.get_mut(&contended.owner.0);
            if let Some(slot) = workload.and_then(|w| w.slots.at(contended.second_ns)) {
                slot.add(&counts);
            }
            let process = self.processes.get_mut(&contended.owner);
            if let Some(slot) = process.and_then(|p| p.slots.at(contended.second_ns)) {
                slot.add(&counts);
            }
        }
    }

    /// Forgets what did nothing for as long as is reported.
    fn tidy(&mut self) {
        let now_ns = self.now_ns;
        self.processes.retain(|_, process| {
            process.slots.advance(now_ns);
            process.slots.len() > 0
        });
        self.models.tidy(now_ns);
        let models = &self.models;
        self.workloads.retain(|id, workload| {
            workload.slots.advance(now_ns);
            workload.commands.retain(|_, slots| {
                slots.advance(now_ns);
                slots.len() > 0
            });
            workload.slots.len() > 0 || models.has(*id)
        });
        self.devices.tidy(now_ns);
    }
}

#[cfg(test)]
mod tests;
