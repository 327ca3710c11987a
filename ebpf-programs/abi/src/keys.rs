//! Keys, values and globals of the maps that the kernel programs and the agent share.

use bytemuck::{Pod, Zeroable};

/// In [`DeviceKey::minor`]: every minor number of that major.
pub const ANY_MINOR: u32 = u32::MAX;
/// How many cgroups the kernel looks at for a watched root, from a task's own upwards. A bound is what
/// the verifier asks for; the answer is remembered, so a long way is gone once for a cgroup.
pub const MAX_CGROUP_DEPTH: u32 = 64;
/// Bytes of a model-file suffix without its dot, NUL padded.
pub const MODEL_SUFFIX_BYTES: usize = 16;
/// Time after a wake-up of the agent in which records are submitted without another one,
/// nanoseconds. The agent must look again on its own not sooner than this after it read the ring.
pub const QUIET_NS: u64 = 500_000;
/// Names of the places where records can be lost, by index.
pub const LOSS_SOURCES: &[&str] = &[
    "ring-buffer",
    "counter-map",
    "policy-queue",
    "state-map",
    "hook-skipped",
];
/// [`LOSS_SOURCES`]: the ring buffer had no room for a record.
pub const LOSS_RING_BUFFER: u32 = 0;
/// [`LOSS_SOURCES`]: no room for another process's counters.
pub const LOSS_COUNTER_MAP: u32 = 1;
/// [`LOSS_SOURCES`]: a policy was too slow for its queue. Counted in user space.
pub const LOSS_POLICY_QUEUE: u32 = 2;
/// [`LOSS_SOURCES`]: no room to remember a call or a wait until its end, or its end was missed.
pub const LOSS_STATE_MAP: u32 = 3;
/// [`LOSS_SOURCES`]: the kernel did not run a program because another one was under way on
/// that CPU (`recursion_misses`). Counted by the kernel, read in user space; whose is unknown.
pub const LOSS_HOOK_SKIPPED: u32 = 4;
/// [`Config::watch`]: processes in the map of watched processes, too.
pub const WATCH_PIDS: u32 = 1;
/// [`Config::watch`]: whoever calls a watched device's driver becomes a watched process.
pub const WATCH_GPU_USERS: u32 = 2;
/// Bytes of a path to an executable that are compared, with the NUL at its end.
pub const PATH_BYTES: usize = 128;
/// Device classes (`[[devices]]` entries) at once.
pub const MAX_DEVICE_CLASSES: u32 = 64;
/// Major numbers of devices: 12 bits of a kernel `dev_t`.
pub const MAX_MAJORS: u32 = 4096;

/// Key of the watched-device map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct DeviceKey {
    /// Major number.
    pub major: u32,
    /// Minor number or [`ANY_MINOR`].
    pub minor: u32,
}

/// Value of the watched-device map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DeviceRule {
    /// Index of the `[[devices]]` entry; devices of one class share a lock domain.
    pub class: u32,
    /// Low bits of a command word that are the command's number; see [`crate::command_of`].
    pub command_bits: u32,
    /// Raw `GPU_EXIT` records only for calls at least this long, nanoseconds.
    pub slow_ns: u64,
}

/// Key of the per-process counters.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct CountersKey {
    /// Start of the process, `CLOCK_BOOTTIME` nanoseconds.
    pub start_ns: u64,
    /// Workload (cgroup) in which the counts were made.
    pub workload: u64,
    /// Process id.
    pub pid: u32,
    /// Explicit padding.
    pub pad: u32,
}

/// Free-running per-CPU counters of one process. Never reset; differences are taken in user space.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Counters {
    /// See [`crate::SampleSched`].
    pub voluntary: u64,
    /// See [`crate::SampleSched`].
    pub involuntary: u64,
    /// See [`crate::SampleSched`].
    pub migrations: u64,
    /// See [`crate::SampleSched`].
    pub runq_waits: u64,
    /// See [`crate::SampleSched`].
    pub runq_ns: u64,
    /// See [`crate::SampleMaps`].
    pub maps: u64,
    /// See [`crate::SampleMaps`].
    pub unmaps: u64,
    /// See [`crate::SampleMaps`].
    pub mapped_bytes: u64,
    /// See [`crate::SampleMaps`].
    pub unmapped_bytes: u64,
    /// See [`crate::SampleCpu`].
    pub on_ns: u64,
    /// See [`crate::SampleCpu`].
    pub off_ns: u64,
    /// See [`crate::SampleCpu`].
    pub off_waits: u64,
    /// See [`crate::SampleCpu`].
    pub cross_node: u64,
}

/// Key of the histograms.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct HistogramKey {
    /// Start of the process, `CLOCK_BOOTTIME` nanoseconds.
    pub start_ns: u64,
    /// Workload (cgroup) in which the values were counted.
    pub workload: u64,
    /// Process id.
    pub pid: u32,
    /// Kind of the records that carry it.
    pub kind: u32,
}

/// Free-running histogram, per CPU; see [`crate::Histogram`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct HistogramCounters {
    /// One counter a bucket.
    pub counts: [u64; crate::HISTOGRAM_BUCKETS],
}

/// Free-running histogram of driver calls, shared between CPUs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct GpuLatencyCounters {
    /// By latency.
    pub histogram: HistogramCounters,
}

/// Free-running per-CPU counters; see [`crate::SampleFaults`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FaultCounters {
    /// See [`crate::SampleFaults`].
    pub user: u64,
    /// See [`crate::SampleFaults`].
    pub kernel: u64,
}

/// Free-running per-CPU counters; see [`crate::SampleSyscalls`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SyscallCounters {
    /// See [`crate::SampleSyscalls`].
    pub calls: u64,
    /// See [`crate::SampleSyscalls`].
    pub waiting: u64,
}

/// Free-running per-CPU counters; see [`crate::SampleReclaim`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ReclaimCounters {
    /// See [`crate::SampleReclaim`].
    pub direct_ns: u64,
    /// See [`crate::SampleReclaim`].
    pub memcg_ns: u64,
    /// See [`crate::SampleReclaim`].
    pub direct: u64,
    /// See [`crate::SampleReclaim`].
    pub memcg: u64,
}

/// Free-running per-CPU counters; see [`crate::SampleNet`] and [`crate::SampleInference`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NetCounters {
    /// See [`crate::SampleNet`].
    pub sent_bytes: u64,
    /// See [`crate::SampleNet`].
    pub received_bytes: u64,
    /// See [`crate::SampleNet`].
    pub sends: u64,
    /// See [`crate::SampleNet`].
    pub receives: u64,
    /// See [`crate::SampleInference`].
    pub requests: u64,
    /// See [`crate::SampleInference`].
    pub retransmits: u64,
    /// See [`crate::SampleInference`].
    pub first_byte_ns: u64,
    /// See [`crate::SampleInference`].
    pub whole_ns: u64,
    /// Requests in `whole_ns`.
    pub completed: u64,
}

/// Key of the driver-call counters by command.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct GpuCommandKey {
    /// Start of the process, `CLOCK_BOOTTIME` nanoseconds.
    pub start_ns: u64,
    /// Workload (cgroup) in which the calls were made.
    pub workload: u64,
    /// Process id.
    pub pid: u32,
    /// See [`crate::SampleGpuCommand`].
    pub command: u16,
    /// Device class.
    pub class: u16,
}

/// Free-running per-CPU counters; see [`crate::SampleGpuCommand`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct GpuCommandCounters {
    /// See [`crate::SampleGpuCommand`].
    pub calls: u64,
    /// See [`crate::SampleGpuCommand`].
    pub latency_ns: u64,
    /// See [`crate::SampleGpuCommand`].
    pub excess_ns: u64,
}

/// Key of the read counters.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct ReadKey {
    /// Start of the process, `CLOCK_BOOTTIME` nanoseconds.
    pub start_ns: u64,
    /// Workload (cgroup) in which the reads were made.
    pub workload: u64,
    /// Inode number.
    pub inode: u64,
    /// Process id.
    pub pid: u32,
    /// Device of the file system, kernel `dev_t`.
    pub device: u32,
}

/// Free-running per-CPU counters; see [`crate::SampleReads`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ReadCounters {
    /// See [`crate::SampleReads`].
    pub bytes: u64,
    /// See [`crate::SampleReads`].
    pub reads: u64,
}

/// Free-running per-CPU counters; see [`crate::SampleCuda`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CudaCounters {
    /// See [`crate::SampleCuda`].
    pub blocked_ns: u64,
    /// See [`crate::SampleCuda`].
    pub launches: u64,
    /// See [`crate::SampleCuda`].
    pub syncs: u64,
    /// See [`crate::SampleCuda`].
    pub copies: u64,
    /// See [`crate::SampleCuda`].
    pub failed_allocs: u64,
}

/// Key of the driver-call counters.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct GpuCountersKey {
    /// Start of the process, `CLOCK_BOOTTIME` nanoseconds.
    pub start_ns: u64,
    /// Workload (cgroup) in which the calls were made.
    pub workload: u64,
    /// Process id.
    pub pid: u32,
    /// Device class.
    pub class: u32,
}

/// Free-running per-CPU counters of one process on one device class.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct GpuCounters {
    /// See [`crate::SampleGpu`].
    pub calls: u64,
    /// See [`crate::SampleGpu`].
    pub latency_ns: u64,
    /// See [`crate::SampleGpu`].
    pub hold_ns: u64,
}

/// A file, as the kernel names it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FileKey {
    /// Inode number.
    pub inode: u64,
    /// Device of the file system, kernel `dev_t`.
    pub device: u32,
    /// Explicit padding.
    pub pad: u32,
}

/// Losses seen on one CPU for one workload, by [`LOSS_SOURCES`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CpuLosses {
    /// One counter a source; free-running.
    pub counts: [u64; 4],
}

/// Offsets of kernel structure members in bytes, read from BTF at start. Handed to the
/// programs as one global; a program whose offsets are unknown is not loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Offsets {
    /// `task_struct.files`
    pub task_files: u32,
    /// `files_struct.fdt`
    pub files_fdt: u32,
    /// `fdtable.fd`
    pub fdt_fd: u32,
    /// `fdtable.max_fds`
    pub fdt_max_fds: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `file.f_path` + `path.dentry`
    pub file_dentry: u32,
    /// `dentry.d_name` + `qstr.name`
    pub dentry_name: u32,
    /// `dentry.d_name` + `qstr.len`
    pub dentry_name_len: u32,
    /// `inode.i_rdev`
    pub inode_rdev: u32,
    /// `inode.i_mode`
    pub inode_mode: u32,
    /// `inode.i_size`
    pub inode_size: u32,
    /// `inode.i_ino`
    pub inode_ino: u32,
    /// `inode.i_sb`
    pub inode_sb: u32,
    /// `super_block.s_dev`
    pub sb_dev: u32,
    /// `task_struct.group_leader`
    pub task_leader: u32,
    /// `task_struct.start_boottime`
    pub task_start: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.pid`
    pub task_pid: u32,
    /// `task_struct.real_parent`
    pub task_parent: u32,
    /// `task_struct.cgroups`
    pub task_cgroups: u32,
    /// From `css_set` to the pointer that leads to the cgroup: `dfl_cgrp` on cgroup v2,
    /// `subsys[cpu_cgrp_id]` on v1 and hybrid.
    pub cset_entry: u32,
    /// 1 if `cset_entry` is a `cgroup_subsys_state` (v1), 0 if it is a `cgroup` (v2).
    pub cset_is_css: u32,
    /// `cgroup_subsys_state.cgroup`
    pub css_cgroup: u32,
    /// `cgroup_subsys_state.parent`
    pub css_parent: u32,
    /// `cgroup.self`
    pub cgroup_self: u32,
    /// `cgroup.kn`
    pub cgroup_kn: u32,
    /// `kernfs_node.id`
    pub kn_id: u32,
    /// `task_struct.exit_code`
    pub task_exit_code: u32,
    /// `task_struct.signal`
    pub task_signal: u32,
    /// `signal_struct.live`
    pub signal_live: u32,
    /// `signal_struct.group_exit_code`
    pub signal_group_exit_code: u32,
}

/// Switches of the kernel programs that change at run time, the only entry of an array map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Config {
    /// Bits of [`crate::Kind::bit`] of the records, raw and sampled, that are wanted.
    pub kinds: u64,
    /// Files at least this long are model files whatever their name, bytes.
    pub model_min_bytes: u64,
    /// Counts up with each change of the scope; older [`Verdict`]s are void.
    pub generation: u32,
    /// 1 if every workload is watched.
    pub scope_all: u32,
    /// The agent's process id, never watched.
    pub own_pid: u32,
    /// Who is watched beside the cgroups: [`WATCH_PIDS`], [`WATCH_GPU_USERS`].
    pub watch: u32,
}

/// A process that is watched whatever its cgroup, keyed by its id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct WatchedPid {
    /// Earliest start of the process that is meant, `CLOCK_BOOTTIME` nanoseconds.
    pub start_ns: u64,
    /// It started within this time, nanoseconds: 1 if the start is known exactly, a clock tick if
    /// it was read from /proc.
    pub within_ns: u64,
}

/// Path of an executable, NUL padded.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ExecutablePath {
    /// Its bytes and at least one NUL.
    pub bytes: [u8; PATH_BYTES],
}

/// Offsets for finding the executable of a process; see [`Offsets`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ExecOffsets {
    /// `task_struct.mm`
    pub task_mm: u32,
    /// `mm_struct.exe_file`
    pub mm_exe_file: u32,
    /// `linux_binprm.filename`
    pub bprm_filename: u32,
}

/// Whether a cgroup is watched, remembered by its id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Verdict {
    /// [`Config::generation`] under which it was found.
    pub generation: u32,
    /// 1 if it is, or lies below, a watched root.
    pub watched: u32,
}

/// Where the kernel keeps the arguments of a system call while the call is under way and at its
/// return: offsets in `pt_regs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SyscallOffsets {
    /// By argument.
    pub arguments: [u32; 6],
}

const _: () = {
    assert!(size_of::<CountersKey>() == 24);
    assert!(size_of::<GpuCountersKey>() == 24);
    assert!(size_of::<HistogramKey>() == 24);
    assert!(size_of::<GpuCommandKey>() == 24);
};
