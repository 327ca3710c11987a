//! Sensors: from kernel hooks to batches of records.
//!
//! Invariants:
//! - Programs are attached while, and only while, a wanted kind needs them.
//! - Every record that was made and could not be delivered is told as a `LOST` record, by
//!   workload and place.
//! - Bytes from the kernel never panic the agent.
//!
//! This room must not judge what it sees, look anything up in /proc for a record's sake, or act.

mod attach;
mod btf;
mod capabilities;
mod drain;
mod families;
mod hooks;
mod in_flight;
mod load;
mod losses;
mod map_batch;
mod offsets;
mod pod;
mod run;
mod tracefs;
mod window;

pub use attach::{AttachReport, HookReport, ProgramRuns};
pub use btf::BtfError;
pub use capabilities::{Capabilities, capabilities};
pub use in_flight::InFlightView;
pub use load::Sensors;
pub use offsets::Group;
pub use run::{SensorHandle, SensorStats, Sink};
pub use tracefs::TracefsError;

use palisade_core::WorkloadId;
use std::{io, time::Duration};
use thiserror::Error;

/// Records in one batch, at most.
pub const MAX_BATCH: usize = 512;
/// Bytes of a model-file suffix without its dot, at most: with the dot it has to fit the 16 bytes
/// that the kernel compares.
pub const MAX_SUFFIX: usize = palisade_abi::MODEL_SUFFIX_BYTES - 1;
/// Watched cgroups, at most; the size of the kernel's map.
pub const MAX_ROOTS: usize = 1024;

/// Whose events are recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everybody's but the agent's own.
    All,
    /// Processes in these cgroups and below.
    Cgroups(Vec<WorkloadId>),
}

/// A character device whose driver calls are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedDevice {
    /// Class: devices of one class share a driver lock.
    pub class: u32,
    /// Major number.
    pub major: u32,
    /// Minor number; `None`: all of that major.
    pub minor: Option<u32>,
    /// Raw `GPU_EXIT` records only for calls at least this long.
    pub slow: Duration,
}

/// What to sense.
#[derive(Clone, Debug)]
pub struct SensorOptions {
    /// Whose events.
    pub scope: Scope,
    /// Device classes, at most [`palisade_abi::MAX_DEVICE_CLASSES`].
    pub devices: Vec<WatchedDevice>,
    /// Bits of [`palisade_abi::Kind::bit`] that are wanted at first.
    pub kinds: u64,
    /// Length of a sampling window.
    pub window: Duration,
    /// Size of the ring buffer; rounded up to a power of two of at least one page.
    pub ring_bytes: u32,
    /// Processes whose counters are kept at once.
    pub max_processes: u32,
    /// Suffixes of model files, with or without the dot.
    pub model_suffixes: Vec<String>,
    /// Files at least this long are model files whatever their name, bytes.
    pub model_min_bytes: u64,
    /// Workloads are named by the v2 hierarchy; else by v1's `cpu` (also on hybrid hosts).
    pub cgroup_v2: bool,
}

/// Why sensing is impossible, or partly so.
#[derive(Debug, Error)]
pub enum SensorError {
    /// Loading programs needs privileges.
    #[error("loading eBPF programs needs root, or CAP_BPF and CAP_PERFMON")]
    NotRoot,
    /// The kernel was built without type information.
    #[error("this kernel has no BTF ({path}: {source}); it needs CONFIG_DEBUG_INFO_BTF=y")]
    NoBtf {
        /// Where it should be.
        path: &'static str,
        /// What reading it answered.
        source: io::Error,
    },
    /// The kernel's type information cannot be read.
    #[error("the kernel's BTF cannot be read: {0}")]
    BadBtf(#[from] BtfError),
    /// `bpf(2)` is refused although the privileges are there: lockdown, seccomp, a container.
    #[error("the kernel refuses bpf(2): {source} (kernel lockdown, seccomp or a container?)")]
    Refused {
        /// The system call's answer.
        source: io::Error,
    },
    /// A structure member that a program reads does not exist in this kernel.
    #[error("this kernel's BTF has no {member}")]
    OffsetMissing {
        /// `structure.member`
        member: String,
    },
    /// The eBPF object is not one of ours, or damaged.
    #[error("the eBPF object cannot be used: {detail}")]
    Object {
        /// What is wrong with it.
        detail: String,
    },
    /// The verifier did not accept a program.
    #[error("the kernel's verifier refuses program {program}: {source}\n{log}")]
    Verifier {
        /// Program.
        program: String,
        /// The system call's answer.
        source: io::Error,
        /// The last lines of its log.
        log: String,
    },
    /// A program was loaded but could not be attached.
    #[error("program {program} cannot be attached: {detail}")]
    Attach {
        /// Program.
        program: String,
        /// Why.
        detail: String,
    },
    /// tracefs, or a tracepoint in it, cannot be used.
    #[error(transparent)]
    Tracefs(TracefsError),
    /// A map operation failed.
    #[error("map {map}: {detail}")]
    Map {
        /// Map.
        map: &'static str,
        /// Why.
        detail: String,
    },
    /// The options make no sense.
    #[error("{0}")]
    Options(String),
    /// Waiting for events failed.
    #[error("waiting for events: {0}")]
    Wait(#[source] io::Error),
}

/// `CLOCK_BOOTTIME`, nanoseconds: the time of all records.
pub fn boot_now_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    })
}
