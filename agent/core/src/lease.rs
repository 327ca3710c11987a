//! Leases: containments with an end.

use crate::{Power, WorkloadId};
use serde::{Deserialize, Serialize};

/// Number of a lease. Unique within a boot: built from the agent's start and a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub u64);

/// What a lease holds. One lease a workload and knob; several policies may share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Knob {
    /// Relative CPU weight.
    CpuWeight,
    /// CPU ceiling.
    CpuQuota,
    /// Freezer.
    Freeze,
}

impl Knob {
    /// The power that the operator must have granted for it.
    pub fn power(self) -> Power {
        match self {
            Knob::CpuWeight | Knob::CpuQuota => Power::Throttle,
            Knob::Freeze => Power::Freeze,
        }
    }
}

/// A containment in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its number.
    pub id: LeaseId,
    /// Whose cgroup.
    pub workload: WorkloadId,
    /// Its path below the hierarchy's mount point.
    pub cgroup: String,
    /// Which knob.
    pub knob: Knob,
    /// Value in force: weight, permille, or 1 for frozen.
    pub value: u32,
    /// The policies that ask for it.
    pub owners: Vec<String>,
    /// End, `CLOCK_BOOTTIME` nanoseconds.
    pub until_ns: u64,
}
