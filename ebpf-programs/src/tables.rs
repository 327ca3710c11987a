//! The maps and globals that the programs share with the agent.
//!
//! The agent finds them by these names and sets the sizes of some at load time.

use aya_ebpf::{
    Global,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuHashMap, RingBuf},
};
use palisade_abi::{
    Added, Config, Counters, CountersKey, CpuLosses, CudaCounters, DeviceKey, DeviceRule,
    FaultCounters, FileKey, GpuCommandCounters, GpuCommandKey, GpuCounters, GpuCountersKey,
    GpuLatencyCounters, HistogramCounters, HistogramKey, InFlight, MAX_COUNTERS_BYTES,
    MAX_DEVICE_CLASSES, MAX_MAJORS, MAX_RESIDENT, MODEL_SUFFIX_BYTES, NetCounters, Offsets,
    ReadCounters, ReadKey, ReclaimCounters, SyscallCounters, Verdict,
};

/// Raw records and `FILE_NAME` entries. Resized by the agent.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// The only entry: when the agent was woken last, `CLOCK_BOOTTIME` nanoseconds.
#[map]
pub static LAST_WAKE: Array<u64> = Array::with_max_entries(1, 0);

/// The only entry: switches that change at run time.
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// Roots of the watched cgroups, by id. Written by the agent.
#[map]
pub static ROOTS: HashMap<u64, u32> = HashMap::with_max_entries(1024, 0);

/// Cached answers of the filter, by cgroup id. An entry pushed out is found again.
#[map]
pub static VERDICTS: LruHashMap<u64, Verdict> = LruHashMap::with_max_entries(8192, 0);

/// Watched devices. Written by the agent.
#[map]
pub static DEVICES: HashMap<DeviceKey, DeviceRule> = HashMap::with_max_entries(256, 0);

/// A bit for each major number that a watched device has. Written by the agent.
#[map]
pub static MAJORS: Array<u64> = Array::with_max_entries(MAX_MAJORS / 64, 0);

/// Of a map that programs may only read (`BPF_F_RDONLY_PROG`).
const READ_ONLY: u32 = 1 << 7;

/// The only entry: zeros.
#[map]
pub static NOTHING: Array<[u64; MAX_COUNTERS_BYTES / 8]> = Array::with_max_entries(1, READ_ONLY);

/// Driver calls of every process on the host, by thread: those under way, and the last ones of
/// [`RESIDENTS`].
#[map]
pub static IN_FLIGHT: HashMap<u64, InFlight> = HashMap::with_max_entries(2 * MAX_RESIDENT, 0);

/// How many threads have an entry that stays between their calls: first what the programs counted, then
/// how many of these the agent removed because their process was gone.
#[map]
pub static RESIDENTS: Array<u64> = Array::with_max_entries(2, 0);

/// The only entry: calls of watched threads whose return was not seen.
#[map]
pub static MISSED_RETURNS: Array<u64> = Array::with_max_entries(1, 0);

/// Per device class, the time of the last return of any process's call.
#[map]
pub static LAST_RETURN: Array<u64> = Array::with_max_entries(MAX_DEVICE_CLASSES, 0);

/// Only as many entries as are used take memory. From Linux 6.1 on the kernel has an allocator for
/// that which any hook may call. What must not fail when memory is short is allocated beforehand.
pub const ON_DEMAND: u32 = 1; // BPF_F_NO_PREALLOC

/// The only entry: how many entries were made of each family's map; see `palisade_abi::CounterFamily`.
#[map]
pub static ADDED: Array<Added> = Array::with_max_entries(1, 0);

/// Counters per process. Resized by the agent.
#[map]
pub static COUNTERS: PerCpuHashMap<CountersKey, Counters> =
    PerCpuHashMap::with_max_entries(4096, ON_DEMAND);

/// Driver-call counters per process and device class. Resized by the agent.
#[map]
pub static GPU_COUNTERS: PerCpuHashMap<GpuCountersKey, GpuCounters> =
    PerCpuHashMap::with_max_entries(4096, ON_DEMAND);

/// Histograms of driver calls per process and device class, which all CPUs share: one a CPU would be
/// 25 KB an entry on 128 of them. Resized by the agent.
#[map]
pub static GPU_LATENCIES: HashMap<GpuCountersKey, GpuLatencyCounters> =
    HashMap::with_max_entries(16_384, ON_DEMAND);

/// Histograms per process and kind. Resized by the agent, like the next ones.
#[map]
pub static HISTOGRAMS: PerCpuHashMap<HistogramKey, HistogramCounters> =
    PerCpuHashMap::with_max_entries(8192, ON_DEMAND);

/// Page faults per process.
#[map]
pub static FAULTS: PerCpuHashMap<CountersKey, FaultCounters> =
    PerCpuHashMap::with_max_entries(4096, ON_DEMAND);

/// System calls per process.
#[map]
pub static SYSCALLS: PerCpuHashMap<CountersKey, SyscallCounters> =
    PerCpuHashMap::with_max_entries(4096, ON_DEMAND);

/// Reclaim stalls per process.
#[map]
pub static RECLAIM: PerCpuHashMap<CountersKey, ReclaimCounters> =
    PerCpuHashMap::with_max_entries(4096, ON_DEMAND);

/// TCP traffic and requests per process.
#[map]
pub static NET: PerCpuHashMap<CountersKey, NetCounters> =
    PerCpuHashMap::with_max_entries(4096, ON_DEMAND);

/// Driver calls per process, device class and command.
#[map]
pub static GPU_COMMANDS: PerCpuHashMap<GpuCommandKey, GpuCommandCounters> =
    PerCpuHashMap::with_max_entries(16_384, ON_DEMAND);

/// Reads of model files per process and file.
#[map]
pub static READS: PerCpuHashMap<ReadKey, ReadCounters> =
    PerCpuHashMap::with_max_entries(4096, ON_DEMAND);

/// CUDA calls per process.
#[map]
pub static CUDA: PerCpuHashMap<CountersKey, CudaCounters> =
    PerCpuHashMap::with_max_entries(4096, ON_DEMAND);

/// Losses per workload. The agent makes the entry of workload 0, which takes what finds no room.
#[map]
pub static LOSSES: PerCpuHashMap<u64, CpuLosses> = PerCpuHashMap::with_max_entries(2048, 0);

/// Suffixes of model files: without the dot, aligned to the end, NULs in front.
#[map]
pub static SUFFIXES: HashMap<[u8; MODEL_SUFFIX_BYTES], u32> = HashMap::with_max_entries(64, 0);

/// Model files whose name was already told. Once pushed out, a name is told again.
#[map]
pub static NAMED: LruHashMap<FileKey, u32> = LruHashMap::with_max_entries(4096, 0);

/// Processes whose end was told, by pid and start: two last threads may end at the same time,
/// and before Linux 6.16 the hook does not say which one was the last.
#[map]
pub static ENDED: LruHashMap<[u64; 2], u32> = LruHashMap::with_max_entries(4096, 0);

/// Offsets of kernel structure members.
#[unsafe(no_mangle)]
pub static OFFSETS: Global<Offsets> = Global::new(Offsets {
    task_files: 0,
    files_fdt: 0,
    fdt_fd: 0,
    fdt_max_fds: 0,
    file_inode: 0,
    file_dentry: 0,
    dentry_name: 0,
    dentry_name_len: 0,
    inode_rdev: 0,
    inode_mode: 0,
    inode_size: 0,
    inode_ino: 0,
    inode_sb: 0,
    sb_dev: 0,
    task_leader: 0,
    task_start: 0,
    task_tgid: 0,
    task_pid: 0,
    task_parent: 0,
    task_cgroups: 0,
    cset_entry: 0,
    cset_is_css: 0,
    css_cgroup: 0,
    css_parent: 0,
    cgroup_self: 0,
    cgroup_kn: 0,
    kn_id: 0,
    task_exit_code: 0,
    task_signal: 0,
    signal_live: 0,
    signal_group_exit_code: 0,
});

/// One member of [`OFFSETS`]. The verifier knows the frozen value, so it costs one instruction.
macro_rules! offset {
    ($member:ident) => {{
        let table = (&raw const $crate::tables::OFFSETS).cast::<palisade_abi::Offsets>();
        // SAFETY: `Global` is transparent over an initialised `Offsets`; the volatile read keeps
        // the compiler from using the zeros above instead of what the agent put there.
        unsafe { core::ptr::read_volatile(&raw const (*table).$member) as usize }
    }};
}
pub(crate) use offset;
