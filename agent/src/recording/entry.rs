//! What a recording holds: one entry after another, in the order in which the agent heard of them.

use crate::batch::Batch;
use palisade_core::{ProcessId, WorkloadId};
use serde::Serialize;

/// What the identity tables learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// About a process.
    Process {
        /// Which.
        process: ProcessId,
        /// Pid of its parent; 0 if unknown.
        parent: u32,
        /// The name that it gives itself.
        comm: String,
        /// Executable's path; empty if unknown.
        exe: String,
        /// Its cgroup.
        workload: Option<WorkloadId>,
    },
    /// About a cgroup.
    Workload {
        /// Which.
        workload: WorkloadId,
        /// Its path below the hierarchy's mount point.
        cgroup: String,
        /// Container id.
        container: Option<String>,
    },
    /// About a file.
    File {
        /// Device, as records carry it.
        device: u32,
        /// Inode on it.
        inode: u64,
        /// Its path.
        path: String,
    },
}

/// One entry of a recording. Times are `CLOCK_BOOTTIME` nanoseconds.
#[derive(Clone, Debug)]
pub enum Entry {
    /// Records, as they were delivered.
    Batch(Batch),
    /// What the identity tables know from here on.
    Identity(Identity),
    /// The core was told that time has passed.
    Tick {
        /// When.
        time_ns: u64,
    },
    /// Records did not reach a policy.
    Lost {
        /// When the core heard of it.
        time_ns: u64,
        /// Whom; `None`: this recording, because its disk was too slow.
        policy: Option<String>,
        /// The batch before which they were, or in which the policy crashed.
        seq: u64,
        /// How many.
        records: u64,
    },
    /// Requests of a policy reached the core: these entries are in the order of their arrival.
    Order {
        /// When.
        time_ns: u64,
        /// Whose.
        policy: String,
        /// The batch that led to them.
        seq: u64,
        /// How many.
        requests: u64,
    },
}

/// Where a recording comes from. Kept in the schema's metadata, every key with `palisade.` before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// Version of the agent.
    pub agent: String,
    /// Version of the record layout.
    pub abi: u32,
    /// Boot of the host: times of different boots cannot be compared.
    pub boot_id: String,
    /// Release of the host's kernel.
    pub kernel: String,
    /// SHA-256 of the configuration.
    pub config_sha256: String,
    /// Sampling window, nanoseconds.
    pub window_ns: u64,
    /// `CLOCK_BOOTTIME` at the start, nanoseconds.
    pub started_ns: u64,
    /// The same moment in nanoseconds since 1970, UTC.
    pub started_unix_ns: u64,
    /// Names of the policies that ran, whose [`Entry::Order`] is kept.
    pub policies: Vec<String>,
}
