//! Device classes: who uses a driver, for how long, and whether its seconds count for contention.
//!
//! A second counts by all watched processes of the host together; what it counts for is each
//! workload's own calls. So a second is judged only when it is over, and its calls wait until then.
//!
//! Invariants: at most [`MAX_DEVICE_CLASSES`] classes, [`MAX_HOLDERS`] holders a class and
//! [`MAX_PENDING`] sums that wait; what finds no room is left out of the device's numbers and counted.

use super::formulas::{self, SECOND_NS};
use super::series::{Slots, Tally};
use super::view::{Culprit, DeviceMetrics};
use super::{Calls, KEPT_SECONDS, Owner, PROCESS_SLOT_NS, PROCESS_SLOTS};
use palisade_abi::{MAX_DEVICE_CLASSES, Record, SampleGpu, SampleGpuCommand};
use std::collections::{BTreeMap, BTreeSet};

/// Processes whose hold times are kept, a class.
const MAX_HOLDERS: usize = 128;
/// Processes and classes of one second.
const MAX_PENDING: usize = 2048;
/// Users of a class in one second that are told apart.
const MAX_USERS: usize = 64;

/// Calls of one process on one class in a second that counted.
pub(super) struct Contended {
    pub owner: Owner,
    pub second_ns: u64,
    pub calls: Calls,
}

#[derive(Clone, Debug, Default)]
struct DeviceSums {
    latency_ns: u64,
    /// Of the seconds in which contention counts.
    contended: Calls,
    /// Most users in one second.
    users: u64,
}

impl Tally for DeviceSums {
    fn add(&mut self, other: &Self) {
        self.latency_ns = self.latency_ns.saturating_add(other.latency_ns);
        self.contended.add(&other.contended);
        self.users = self.users.max(other.users);
    }
}

#[derive(Clone, Debug)]
struct Device {
    seconds: Slots<DeviceSums>,
    holders: BTreeMap<Owner, Slots<u64>>,
    users: BTreeSet<Owner>,
    /// Latency of the second that runs, as the commands' samples and as the class's tell it.
    by_command_ns: u64,
    by_class_ns: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Devices {
    devices: BTreeMap<u32, Device>,
    pending: BTreeMap<(u32, Owner), Calls>,
    /// The second that runs.
    second: u64,
    pub(super) left_out: u64,
}

impl Devices {
    /// Takes in a driver sample.
    pub(super) fn observe(&mut self, owner: Owner, record: &Record, now_ns: u64) {
        let (class, calls) = match (record.get::<SampleGpu>(), record.get::<SampleGpuCommand>()) {
            (Some(sample), _) => (sample.class, sample.calls),
            (_, Some(sample)) => (u32::from(sample.class), sample.calls),
            _ => return,
        };
        if class >= MAX_DEVICE_CLASSES {
            self.left_out += 1;
            return;
        }
        let device = self.devices.entry(class).or_insert_with(|| Device {
            seconds: Slots::new(SECOND_NS, KEPT_SECONDS),
            holders: BTreeMap::new(),
            users: BTreeSet::new(),
            by_command_ns: 0,
            by_class_ns: 0,
        });
        if calls > 0 && device.users.len() < MAX_USERS {
            device.users.insert(owner);
        }
        if let Some(sample) = record.get::<SampleGpu>() {
            device.by_class_ns = device.by_class_ns.saturating_add(sample.latency_ns);
            if device.holders.len() >= MAX_HOLDERS && !device.holders.contains_key(&owner) {
                self.left_out += 1;
                return;
            }
            let held = device
                .holders
                .entry(owner)
                .or_insert_with(|| Slots::new(PROCESS_SLOT_NS, PROCESS_SLOTS));
            if let Some(hold_ns) = held.at(now_ns) {
                hold_ns.add(&sample.hold_ns);
            }
        } else if let Some(sample) = record.get::<SampleGpuCommand>() {
            device.by_command_ns = device.by_command_ns.saturating_add(sample.latency_ns);
            let key = (class, owner);
            if self.pending.len() >= MAX_PENDING && !self.pending.contains_key(&key) {
                self.left_out += 1;
                return;
            }
            let sums = self.pending.entry(key).or_default();
            sums.add(&Calls::of(&sample));
        }
    }

    /// Judges the second that has run, if it is over; hands back the calls that count.
    pub(super) fn advance(&mut self, now_ns: u64) -> Vec<Contended> {
        let second = now_ns / SECOND_NS;
        if second <= self.second {
            return Vec::new();
        }
        let second_ns = self.second.saturating_mul(SECOND_NS);
        self.second = second;
        let pending = std::mem::take(&mut self.pending);
        let mut counting = BTreeSet::new();
        for (class, device) in &mut self.devices {
            let latency_ns = device.by_command_ns.max(device.by_class_ns);
            let users = device.users.len();
            let counts = formulas::contention_counts(latency_ns, SECOND_NS, users);
            if users > 0
                && let Some(sums) = device.seconds.at(second_ns)
            {
                sums.add(&DeviceSums {
                    latency_ns,
                    users: users as u64,
                    ..DeviceSums::default()
                });
            }
            if counts {
                counting.insert(*class);
            }
            device.users.clear();
            (device.by_command_ns, device.by_class_ns) = (0, 0);
        }
        let counted = pending
            .into_iter()
            .filter(|((class, _), _)| counting.contains(class));
        counted
            .map(|((class, owner), calls)| {
                if let Some(sums) = self
                    .devices
                    .get_mut(&class)
                    .and_then(|device| device.seconds.at(second_ns))
                {
                    sums.contended.add(&calls);
                }
                Contended {
                    owner,
                    second_ns,
                    calls,
                }
            })
            .collect()
    }

    /// Forgets what is too old.
    pub(super) fn tidy(&mut self, now_ns: u64) {
        self.devices.retain(|_, device| {
            device.seconds.advance(now_ns);
            device.holders.retain(|_, held| {
                held.advance(now_ns);
                held.len() > 0
            });
            device.seconds.len() + device.holders.len() + device.users.len() > 0
        });
    }

    /// The numbers of every class that was used.
    pub(super) fn view(&self, from_ns: u64, until_ns: u64) -> Vec<DeviceMetrics> {
        let window_ns = until_ns.saturating_sub(from_ns);
        self.devices
            .iter()
            .map(|(class, device)| {
                let sums = device.seconds.sum(from_ns, until_ns);
                let holders = device
                    .holders
                    .iter()
                    .map(|(owner, held)| (owner, held.sum(0, u64::MAX)));
                let culprit =
                    formulas::culprit(holders).map(|((workload, process), hold_ns)| Culprit {
                        workload: *workload,
                        pid: process.pid,
                        start_ns: process.start_ns,
                        hold_s: hold_ns as f64 / SECOND_NS as f64,
                    });
                DeviceMetrics {
                    class: *class,
                    name: String::new(),
                    busy: formulas::share(sums.latency_ns, window_ns),
                    users: sums.users,
                    contention: formulas::driver_contention(
                        sums.contended.excess_ns,
                        sums.contended.latency_ns,
                        sums.contended.calls,
                    ),
                    culprit,
                }
            })
            .collect()
    }
}
