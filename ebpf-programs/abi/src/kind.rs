//! The kinds of record. Append-only: a number, once given, keeps its meaning for ever.

/// Records were lost before they could be delivered; body [`crate::Lost`].
pub const LOST: u16 = 1;
/// A process executed a new program; body [`crate::Exec`]. The kernel sends the executable's path
/// ([`crate::FilePath`]) behind it, for the agent's process table.
pub const EXEC: u16 = 2;
/// A process ended (its last thread); body [`crate::Exit`].
pub const EXIT: u16 = 3;
/// A process forked; the header is the parent's; body [`crate::Fork`].
pub const FORK: u16 = 4;
/// A model file was opened; body [`crate::ModelFile`].
pub const MODEL_OPEN: u16 = 5;
/// A model file was mapped; body [`crate::ModelFile`] with the mapped length in `bytes`.
pub const MODEL_MAP: u16 = 6;
/// Any successful `mmap`; body [`crate::MapCall`]. A frequent kind: prefer `SAMPLE_MAPS`.
pub const MMAP: u16 = 7;
/// Any successful `munmap`; body [`crate::MapCall`]. A frequent kind: prefer `SAMPLE_MAPS`.
pub const MUNMAP: u16 = 8;
/// A watched device's ioctl was entered; body [`crate::GpuCall`], times 0. A frequent kind.
pub const GPU_ENTER: u16 = 9;
/// A watched device's ioctl returned; body [`crate::GpuCall`]. A frequent kind: prefer
/// `SAMPLE_GPU`, or a threshold.
pub const GPU_EXIT: u16 = 10;
/// Scheduling of one process in one window; body [`crate::SampleSched`].
pub const SAMPLE_SCHED: u16 = 11;
/// Memory maps of one process in one window; body [`crate::SampleMaps`].
pub const SAMPLE_MAPS: u16 = 12;
/// Driver calls of one process on one device class in one window; body [`crate::SampleGpu`].
pub const SAMPLE_GPU: u16 = 13;
/// Path of a file seen by `MODEL_OPEN`; several slots ([`crate::FilePath`]); for the agent's file table
/// only.
pub const FILE_NAME: u16 = 14;
/// Records of some kinds cannot be had on this kernel; body [`crate::Absent`]. Told to every policy that
/// subscribed to one of them, at its load and when that changes.
pub const ABSENT: u16 = 15;
/// Waits of one process on a run queue in one window, as a histogram; body [`crate::Histogram`].
pub const SAMPLE_RUNQ: u16 = 16;
/// Time on and off the CPU of one process in one window; body [`crate::SampleCpu`].
pub const SAMPLE_CPU: u16 = 17;
/// Page faults of one process in one window; body [`crate::SampleFaults`].
pub const SAMPLE_FAULTS: u16 = 18;
/// System calls of one process in one window; body [`crate::SampleSyscalls`].
pub const SAMPLE_SYSCALLS: u16 = 19;
/// Stalls of one process in memory reclaim in one window; body [`crate::SampleReclaim`].
pub const SAMPLE_RECLAIM: u16 = 20;
/// The kernel chose a process to kill for want of memory; body [`crate::OomVictim`].
pub const OOM_VICTIM: u16 = 21;
/// Pressure stall times of one cgroup in one window; body [`crate::SamplePressure`].
pub const SAMPLE_PRESSURE: u16 = 22;
/// TCP traffic of one process in one window; body [`crate::SampleNet`].
pub const SAMPLE_NET: u16 = 23;
/// Requests that one process answered on server sockets in one window; body
/// [`crate::SampleInference`].
pub const SAMPLE_INFERENCE: u16 = 24;
/// Times from a request's last received bytes to the first sent ones, as a histogram; body
/// [`crate::Histogram`].
pub const SAMPLE_FIRST_BYTE: u16 = 25;
/// Driver calls of one process by command in one window; body [`crate::SampleGpuCommand`].
pub const SAMPLE_GPU_COMMAND: u16 = 26;
/// Reads of one model file by one process in one window; body [`crate::SampleReads`].
pub const SAMPLE_READS: u16 = 27;
/// CUDA driver API calls of one process in one window; body [`crate::SampleCuda`].
pub const SAMPLE_CUDA: u16 = 28;
/// The GPU driver reported an error (NVIDIA: Xid); body [`crate::GpuError`].
pub const GPU_ERROR: u16 = 29;
/// Latencies of one process's driver calls on one device class in one window, as a histogram; body
/// [`crate::Histogram`], device class in the flags.
pub const SAMPLE_GPU_LATENCY: u16 = 30;
/// Requests of one process on server sockets that were found to be over in one window; body
/// [`crate::SampleCompleted`].
pub const SAMPLE_COMPLETED: u16 = 31;

/// A kind that this version of the ABI knows, for `match` and for names in manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Kind {
    /// See [`LOST`].
    Lost = LOST,
    /// See [`EXEC`].
    Exec = EXEC,
    /// See [`EXIT`].
    Exit = EXIT,
    /// See [`FORK`].
    Fork = FORK,
    /// See [`MODEL_OPEN`].
    ModelOpen = MODEL_OPEN,
    /// See [`MODEL_MAP`].
    ModelMap = MODEL_MAP,
    /// See [`MMAP`].
    Mmap = MMAP,
    /// See [`MUNMAP`].
    Munmap = MUNMAP,
    /// See [`GPU_ENTER`].
    GpuEnter = GPU_ENTER,
    /// See [`GPU_EXIT`].
    GpuExit = GPU_EXIT,
    /// See [`SAMPLE_SCHED`].
    SampleSched = SAMPLE_SCHED,
    /// See [`SAMPLE_MAPS`].
    SampleMaps = SAMPLE_MAPS,
    /// See [`SAMPLE_GPU`].
    SampleGpu = SAMPLE_GPU,
    /// See [`FILE_NAME`].
    FileName = FILE_NAME,
    /// See [`ABSENT`].
    Absent = ABSENT,
    /// See [`SAMPLE_RUNQ`].
    SampleRunq = SAMPLE_RUNQ,
    /// See [`SAMPLE_CPU`].
    SampleCpu = SAMPLE_CPU,
    /// See [`SAMPLE_FAULTS`].
    SampleFaults = SAMPLE_FAULTS,
    /// See [`SAMPLE_SYSCALLS`].
    SampleSyscalls = SAMPLE_SYSCALLS,
    /// See [`SAMPLE_RECLAIM`].
    SampleReclaim = SAMPLE_RECLAIM,
    /// See [`OOM_VICTIM`].
    OomVictim = OOM_VICTIM,
    /// See [`SAMPLE_PRESSURE`].
    SamplePressure = SAMPLE_PRESSURE,
    /// See [`SAMPLE_NET`].
    SampleNet = SAMPLE_NET,
    /// See [`SAMPLE_INFERENCE`].
    SampleInference = SAMPLE_INFERENCE,
    /// See [`SAMPLE_FIRST_BYTE`].
    SampleFirstByte = SAMPLE_FIRST_BYTE,
    /// See [`SAMPLE_GPU_COMMAND`].
    SampleGpuCommand = SAMPLE_GPU_COMMAND,
    /// See [`SAMPLE_READS`].
    SampleReads = SAMPLE_READS,
    /// See [`SAMPLE_CUDA`].
    SampleCuda = SAMPLE_CUDA,
    /// See [`GPU_ERROR`].
    GpuError = GPU_ERROR,
    /// See [`SAMPLE_GPU_LATENCY`].
    SampleGpuLatency = SAMPLE_GPU_LATENCY,
    /// See [`SAMPLE_COMPLETED`].
    SampleCompleted = SAMPLE_COMPLETED,
}

impl Kind {
    /// Every kind, in order of its number.
    pub const ALL: &'static [Kind] = &[
        Kind::Lost,
        Kind::Exec,
        Kind::Exit,
        Kind::Fork,
        Kind::ModelOpen,
        Kind::ModelMap,
        Kind::Mmap,
        Kind::Munmap,
        Kind::GpuEnter,
        Kind::GpuExit,
        Kind::SampleSched,
        Kind::SampleMaps,
        Kind::SampleGpu,
        Kind::FileName,
        Kind::Absent,
        Kind::SampleRunq,
        Kind::SampleCpu,
        Kind::SampleFaults,
        Kind::SampleSyscalls,
        Kind::SampleReclaim,
        Kind::OomVictim,
        Kind::SamplePressure,
        Kind::SampleNet,
        Kind::SampleInference,
        Kind::SampleFirstByte,
        Kind::SampleGpuCommand,
        Kind::SampleReads,
        Kind::SampleCuda,
        Kind::GpuError,
        Kind::SampleGpuLatency,
        Kind::SampleCompleted,
    ];

    /// The kind of that number.
    pub fn from_raw(raw: u16) -> Option<Kind> {
        Self::ALL.iter().copied().find(|kind| *kind as u16 == raw)
    }

    /// The kind of that name, as written in a policy's manifest.
    pub fn from_name(name: &str) -> Option<Kind> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// The name, as written in a policy's manifest and shown to people.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Lost => "lost",
            Kind::Exec => "exec",
            Kind::Exit => "exit",
            Kind::Fork => "fork",
            Kind::ModelOpen => "model-open",
            Kind::ModelMap => "model-map",
            Kind::Mmap => "mmap",
            Kind::Munmap => "munmap",
            Kind::GpuEnter => "gpu-enter",
            Kind::GpuExit => "gpu-exit",
            Kind::SampleSched => "sample-sched",
            Kind::SampleMaps => "sample-maps",
            Kind::SampleGpu => "sample-gpu",
            Kind::FileName => "file-name",
            Kind::Absent => "absent",
            Kind::SampleRunq => "sample-runq",
            Kind::SampleCpu => "sample-cpu",
            Kind::SampleFaults => "sample-faults",
            Kind::SampleSyscalls => "sample-syscalls",
            Kind::SampleReclaim => "sample-reclaim",
            Kind::OomVictim => "oom-victim",
            Kind::SamplePressure => "sample-pressure",
            Kind::SampleNet => "sample-net",
            Kind::SampleInference => "sample-inference",
            Kind::SampleFirstByte => "sample-first-byte",
            Kind::SampleGpuCommand => "sample-gpu-command",
            Kind::SampleReads => "sample-reads",
            Kind::SampleCuda => "sample-cuda",
            Kind::GpuError => "gpu-error",
            Kind::SampleGpuLatency => "sample-gpu-latency",
            Kind::SampleCompleted => "sample-completed",
        }
    }

    /// The version of the ABI that brought this kind: what a policy that subscribes to it has to say.
    pub const fn since(self) -> u32 {
        if self as u16 <= FILE_NAME { 1 } else { 2 }
    }

    /// The bit that stands for this kind in a subscription mask.
    pub const fn bit(self) -> u64 {
        1 << (self as u16)
    }
}
