//! Looks at the metrics: an aggregator that is there while somebody asks, and a subscription with it.
//!
//! Invariants:
//! - Nothing is paid when nobody looks: [`LINGER`] after the last question the aggregator and its
//!   subscription are gone.
//! - The sensor thread never waits for an answer that is being made: what comes meanwhile waits in
//!   a short backlog, and is told as left out where that is full.

use super::{Shared, options::family};
use crate::batch::Batch;
use crate::boot_clock;
use crate::config::{Config, DeviceClass, ProcDevices};
use crate::metrics::commands::Family;
use crate::metrics::{Absent, KINDS, Metric, Metrics, Snapshot};
use crate::sensors::AttachReport;
use palisade_abi::Kind;
use palisade_core::{ProcessId, WorkloadId};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

/// How long after the last question the subscription is kept.
pub(super) const LINGER: Duration = Duration::from_secs(15);
/// Batches that wait while an answer is being made.
const BACKLOG: usize = 256;

/// Shared between the threads that feed and those that ask.
#[derive(Clone, Debug, Default)]
pub(crate) struct Looking(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Somebody looks. Read for every batch, so it is beside the lock.
    active: AtomicBool,
    asked_ns: AtomicU64,
    metrics: Mutex<Metrics>,
}

impl Looking {
    /// The kinds that looking needs now.
    pub(super) fn kinds(&self) -> u64 {
        if self.0.active.load(Ordering::Acquire) {
            KINDS
        } else {
            0
        }
    }

    /// Somebody asks at that time; whether nobody did before.
    fn asked(&self, now_ns: u64) -> bool {
        self.0.asked_ns.store(now_ns, Ordering::Release);
        // What was there belonged to an earlier look.
        let mut metrics = self.metrics();
        let first = !self.0.active.swap(true, Ordering::AcqRel);
        if first {
            *metrics = Metrics::new();
        }
        first
    }

    /// Nobody has asked for too long at that time: everything is given up. Whether it just was.
    fn expired(&self, now_ns: u64) -> bool {
        let asked_ns = self.0.asked_ns.load(Ordering::Acquire);
        let over = u128::from(now_ns.saturating_sub(asked_ns)) > LINGER.as_nanos();
        over && self.0.active.swap(false, Ordering::AcqRel)
    }

    fn metrics(&self) -> MutexGuard<'_, Metrics> {
        // Its sums stay whole through a panic elsewhere.
        self.0
            .metrics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a question: the numbers as of the last batch, with names. The first question begins
    /// the subscription and is answered with nothing.
    pub(super) fn look(&self, shared: &Shared, devices: &[DeviceName]) -> Snapshot {
        if self.asked(boot_clock::now_ns()) {
            shared.subscribe();
        }
        let report = shared
            .sensors
            .get()
            .map(crate::sensors::SensorHandle::report)
            .unwrap_or_default();
        let mut snapshot = {
            let mut metrics = self.metrics();
            for (device, inode) in metrics.files_without_size() {
                if let Some(file) = shared.tables.file(device, inode) {
                    metrics.set_file_size(device, inode, file.bytes);
                }
            }
            metrics.snapshot(report.kinds & !report.absent())
        };
        snapshot.absent = absent(&report);
        name(&mut snapshot, shared, devices);
        snapshot
    }
}

/// A device class as people know it.
#[derive(Clone, Debug)]
pub(super) struct DeviceName {
    pub name: String,
    pub family: Family,
}

/// The configured devices, in order of their classes.
pub(super) fn devices(config: &Config) -> Vec<DeviceName> {
    let drivers = ProcDevices::read().unwrap_or_default();
    let name = |device: &DeviceClass| DeviceName {
        name: device.name.clone(),
        family: family(device, &drivers),
    };
    config.devices.iter().map(name).collect()
}

/// Kinds that were asked for and cannot be had, as far as they matter to a metric.
fn absent(report: &AttachReport) -> Vec<Absent> {
    let lacking = report.absent();
    let kinds = Kind::ALL.iter().filter(|kind| lacking & kind.bit() != 0);
    let list = kinds.filter_map(|kind| {
        let metrics: Vec<String> = Metric::ALL
            .iter()
            .map(|metric| metric.info())
            .filter(|info| info.kinds & kind.bit() != 0)
            .map(|info| info.id.to_owned())
            .collect();
        let hooks = report.hooks.iter();
        let why = hooks
            .filter(|hook| hook.kinds & kind.bit() != 0 && hook.attached.is_none())
            .flat_map(|hook| &hook.failed)
            // The verifier's log belongs into `palisade doctor`.
            .map(|(place, error)| format!("{place}: {}", error.lines().next().unwrap_or_default()));
        (!metrics.is_empty()).then(|| Absent {
            kind: kind.name().to_owned(),
            metrics,
            why: why.collect::<Vec<_>>().join("; "),
        })
    });
    list.collect()
}

/// Fills in what the tables and the configuration know.
fn name(snapshot: &mut Snapshot, shared: &Shared, devices: &[DeviceName]) {
    for workload in &mut snapshot.workloads {
        if let Some(info) = shared.tables.workload(WorkloadId(workload.workload)) {
            workload.cgroup = info.cgroup;
            workload.container = info.container;
        }
        for process in &mut workload.processes {
            let id = ProcessId {
                pid: process.pid,
                start_ns: process.start_ns,
            };
            if let Some(info) = shared.tables.process(id) {
                process.comm = info.comm;
                process.exe = info.exe;
            }
        }
        for command in &mut workload.commands {
            let device = devices.get(command.class as usize);
            let family = device.map_or(Family::Unknown, |device| device.family);
            command.device = device.map(|device| device.name.clone()).unwrap_or_default();
            command.name = family.describe(command.command).into_owned();
        }
        for model in &mut workload.models {
            model.path = shared.tables.file_path(model.device, model.inode);
        }
    }
    for device in &mut snapshot.devices {
        if let Some(known) = devices.get(device.class as usize) {
            device.name.clone_from(&known.name);
        }
    }
}

/// The sensor thread's end.
#[derive(Debug, Default)]
pub(super) struct Feed {
    backlog: VecDeque<Batch>,
    /// Records that found no room in it.
    missed: u64,
}

impl Feed {
    /// Hands a batch on, if somebody looks. Whether the look is over: the subscription is to end.
    pub(super) fn batch(&mut self, looking: &Looking, batch: &Batch) -> bool {
        if !looking.0.active.load(Ordering::Acquire) {
            *self = Self::default();
            return false;
        }
        let mut metrics = match looking.0.metrics.try_lock() {
            Ok(metrics) => metrics,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                if self.backlog.len() >= BACKLOG
                    && let Some(oldest) = self.backlog.pop_front()
                {
                    self.missed += oldest.records.len() as u64;
                }
                self.backlog.push_back(batch.clone());
                return false;
            }
        };
        metrics.missed(std::mem::take(&mut self.missed));
        for batch in self.backlog.drain(..).chain([batch.clone()]) {
            metrics.observe(&batch.records, batch.now_ns, batch.window_end);
        }
        if looking.expired(batch.now_ns) {
            *metrics = Metrics::new();
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_abi::{Header, Record, SampleFaults};

    const S: u64 = 1_000_000_000;

    fn batch(now_ns: u64) -> Batch {
        let header = Header {
            workload: 7,
            pid: 1,
            ..Header::default()
        };
        let faults = SampleFaults {
            user: 1,
            ..SampleFaults::default()
        };
        Batch {
            seq: 0,
            now_ns,
            records: vec![Record::new(header, faults)].into(),
            window_end: true,
        }
    }

    fn workloads(looking: &Looking) -> usize {
        looking.metrics().snapshot(KINDS).workloads.len()
    }

    #[test]
    fn a_look_begins_with_a_question_and_ends_without_one() {
        let (looking, mut feed) = (Looking::default(), Feed::default());
        assert!(!feed.batch(&looking, &batch(S)));
        assert_eq!((looking.kinds(), workloads(&looking)), (0, 0));
        assert!(looking.asked(2 * S));
        assert!(!looking.asked(3 * S));
        assert_eq!(looking.kinds(), KINDS);
        assert!(!feed.batch(&looking, &batch(18 * S)));
        assert_eq!(workloads(&looking), 1);
        assert!(feed.batch(&looking, &batch(19 * S)));
        assert_eq!((looking.kinds(), workloads(&looking)), (0, 0));
        assert!(!feed.batch(&looking, &batch(20 * S)));
        assert!(looking.asked(21 * S));
        assert_eq!(workloads(&looking), 0);
    }

    #[test]
    fn what_comes_while_an_answer_is_made_is_taken_in_afterwards() {
        let (looking, mut feed) = (Looking::default(), Feed::default());
        looking.asked(S);
        let answering = looking.metrics();
        assert!(!feed.batch(&looking, &batch(S)));
        for _ in 0..2 * BACKLOG {
            feed.batch(&looking, &batch(S));
        }
        assert_eq!(feed.backlog.len(), BACKLOG);
        drop(answering);
        assert_eq!(workloads(&looking), 0);
        assert!(!feed.batch(&looking, &batch(2 * S)));
        assert_eq!((workloads(&looking), feed.backlog.len()), (1, 0));
        let left_out = looking.metrics().snapshot(KINDS).left_out;
        assert_eq!(left_out, BACKLOG as u64 + 1);
    }

    #[test]
    fn a_kind_that_cannot_be_had_names_its_metrics_and_why() {
        let hook = |name: &str, attached: Option<&str>| crate::sensors::HookReport {
            name: name.into(),
            kinds: Kind::SampleFaults.bit(),
            wanted: true,
            attached: attached.map(str::to_owned),
            optional: false,
            failed: vec![(format!("tracepoint:{name}"), "no\nlog".into())],
        };
        let mut report = AttachReport {
            kinds: KINDS,
            hooks: vec![hook("a", None), hook("b", Some("kprobe:b"))],
            ..AttachReport::default()
        };
        let list = absent(&report);
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].kind, "sample-faults");
        assert_eq!(list[0].metrics, ["page_faults"]);
        assert_eq!(list[0].why, "tracepoint:a: no");
        report.hooks.remove(0);
        assert_eq!(absent(&report), []);
    }
}
