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
mod baseline;
mod btf;
mod capabilities;
mod check;
mod constants;
mod counter_map;
mod cpu_offsets;
mod cuda;
mod devices;
mod drain;
mod families;
mod globals;
mod hooks;
mod in_flight;
mod kernel_version;
mod ladder;
mod links;
mod load;
mod losses;
mod map_batch;
mod net_offsets;
mod offsets;
mod path;
mod pids;
mod places;
mod pod;
mod preemption;
mod pressure;
mod program_info;
mod quotas;
mod reads_offsets;
mod registers;
mod run;
mod sweep;
mod tracefs;
mod under_way;
mod walks;
mod window;

pub use attach::{AttachReport, HookReport, ProgramRuns};
pub use btf::BtfError;
pub use capabilities::{Capabilities, capabilities};
pub use cuda::CudaError;
pub use in_flight::{InFlightView, sees_kernel_pids};
pub use kernel_version::{OLDEST_KERNEL, kernel_release, kernel_version};
pub use ladder::{Brief, SignalHook, SignalReport, kind_names};
pub use load::Sensors;
pub use offsets::Group;
pub use pids::{MAX_EXECUTABLE_PATH, MAX_EXECUTABLES};
pub use preemption::Preemption;
pub use run::{SensorHandle, SensorStats, Sink};
pub use tracefs::TracefsError;

use palisade_core::WorkloadId;
use std::{io, path::PathBuf, time::Duration};
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
    /// The same, and these processes wherever they are.
    CgroupsAnd(Vec<WorkloadId>, WatchedProcesses),
}

impl Scope {
    /// The watched cgroups, unless everybody is watched.
    fn cgroups(&self) -> &[WorkloadId] {
        match self {
            Scope::All => &[],
            Scope::Cgroups(ids) | Scope::CgroupsAnd(ids, _) => ids,
        }
    }

    /// Who is watched besides.
    fn processes(&self) -> &WatchedProcesses {
        const NOBODY: &WatchedProcesses = &WatchedProcesses {
            executables: Vec::new(),
            gpu_users: false,
        };
        match self {
            Scope::All | Scope::Cgroups(_) => NOBODY,
            Scope::CgroupsAnd(_, processes) => processes,
        }
    }
}

/// Processes that are watched whatever their cgroup, with the children that they make from then
/// on and whatever they execute later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchedProcesses {
    /// Whoever executes one of these, absolute paths of at most [`MAX_EXECUTABLE_PATH`] bytes: by
    /// this very path (in any container, and also as a script), or the same file by another.
    pub executables: Vec<PathBuf>,
    /// Whoever has a watched device open or calls its driver.
    pub gpu_users: bool,
}

impl WatchedProcesses {
    /// Whether it names nobody.
    pub fn is_empty(&self) -> bool {
        self.executables.is_empty() && !self.gpu_users
    }
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
    /// Low bits of a command word that are the command's number for this driver:
    /// [`palisade_abi::ENCODED_COMMAND_BITS`] or [`palisade_abi::COMMAND_BITS`].
    pub command_bits: u32,
}

/// What to sense.
#[derive(Clone, Debug)]
pub struct SensorOptions {
    /// Whose events.
    pub scope: Scope,
    /// Device classes, at most [`palisade_abi::MAX_DEVICE_CLASSES`].
    pub devices: Vec<WatchedDevice>,
    /// Bits of [`palisade_abi::Kind::bit`] that are wanted at first; for [`Sensors::prepare`], that probably will be.
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
    /// NUMA node of each CPU, by number; `None`: as sysfs says.
    pub nodes: Option<Vec<u32>>,
    /// Cgroups whose pressure is told, besides the host's: directories of the v2 tree.
    pub pressure: Vec<(WorkloadId, PathBuf)>,
    /// Ways of attaching that are left out where a hook has another one.
    pub avoid: Vec<Way>,
    /// CUDA's driver library; `None`: looked for in the usual places.
    pub cuda_library: Option<PathBuf>,
}

/// A way of attaching a program to the kernel or to a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Tracepoint with kernel types.
    Btf,
    /// Raw tracepoint.
    Raw,
    /// Return of a kernel function, with or without its entry, by trampoline.
    Fexit,
    /// Entry and return of a kernel function, by breakpoints.
    Kprobe,
    /// Tracepoint by name.
    Tracepoint,
    /// Function of a library, by breakpoint.
    Uprobe,
    /// Security hook.
    Lsm,
}

impl Way {
    /// Every way.
    pub const ALL: &'static [Way] = &[
        Way::Btf,
        Way::Raw,
        Way::Fexit,
        Way::Kprobe,
        Way::Tracepoint,
        Way::Uprobe,
        Way::Lsm,
    ];

    /// As people write it, and as reports begin a place with.
    pub const fn name(self) -> &'static str {
        match self {
            Way::Btf => "tp_btf",
            Way::Raw => "raw_tp",
            Way::Fexit => "fexit",
            Way::Kprobe => "kprobe",
            Way::Tracepoint => "tracepoint",
            Way::Uprobe => "uprobe",
            Way::Lsm => "lsm",
        }
    }

    /// The way of that name.
    pub fn from_name(name: &str) -> Option<Way> {
        Self::ALL.iter().copied().find(|way| way.name() == name)
    }
}

/// Why sensing is impossible, or partly so.
#[derive(Debug, Error)]
pub enum SensorError {
    /// Loading programs needs privileges.
    #[error("loading eBPF programs needs root, or CAP_BPF and CAP_PERFMON")]
    NotRoot,
    /// See [`OLDEST_KERNEL`].
    #[error("this kernel ({release}) is older than {}.{}", OLDEST_KERNEL.0, OLDEST_KERNEL.1)]
    TooOld {
        /// As `uname -r`.
        release: String,
    },
    /// The kernel interprets programs; it must compile them.
    #[error(
        "this kernel interprets eBPF programs; to have them compiled: sysctl net.core.bpf_jit_enable=1"
    )]
    NoJit,
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
    /// A program is attached, but no second descriptor of it could be had.
    #[error("no descriptor left for program {program}: {source}")]
    Descriptor {
        /// Program.
        program: String,
        /// The system call's answer.
        source: io::Error,
    },
    /// A program was loaded but could not be attached.
    #[error("program {program} cannot be attached: {detail}")]
    Attach {
        /// Program.
        program: String,
        /// Why.
        detail: String,
        /// The system call's answer, if it was one that refused.
        errno: Option<i32>,
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
    /// The options leave this way of attaching out.
    #[error("left out by the configuration ([sensors] avoid)")]
    Avoided,
    /// The kernel runs no programs at its security hooks.
    #[error(
        "bpf is not among the active security modules ({active}); the boot parameter lsm= names them"
    )]
    NoLsm {
        /// Those that are, or why they are unknown.
        active: String,
    },
    /// CUDA's library cannot be watched.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The options make no sense.
    #[error("{0}")]
    Options(String),
    /// Waiting for events failed.
    #[error("waiting for events: {0}")]
    Wait(#[source] io::Error),
}
