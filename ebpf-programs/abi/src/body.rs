//! What the 24 bytes behind the header mean, per kind.

use crate::kind;

/// Flag of a `MODEL_OPEN` record: opened with `O_DIRECT`.
pub const MODEL_DIRECT: u16 = 1;

/// A 24-byte body that belongs to one or more kinds.
pub trait Body: bytemuck::Pod {
    /// The kind that [`crate::Record::new`] gives it.
    const KIND: u16;
    /// All kinds with this body.
    const KINDS: &'static [u16];
}

macro_rules! body {
    ($(#[$doc:meta])* $name:ident: $first:ident $(, $more:ident)* {
        $($(#[$field_doc:meta])* $field:ident: $ty:ty,)*
    }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name { $($(#[$field_doc])* pub $field: $ty,)* }
        const _: () = assert!(size_of::<$name>() == 24);
        impl Body for $name {
            const KIND: u16 = kind::$first;
            const KINDS: &'static [u16] = &[kind::$first $(, kind::$more)*];
        }
    };
}

body! {
    /// Records that were made but never delivered. `header.workload` says whose (0: unknown).
    Lost: LOST {
        /// How many.
        count: u64,
        /// Index into [`crate::LOSS_SOURCES`].
        source: u32,
        /// Explicit padding.
        pad: u32,
        /// Bits of the kinds that are concerned ([`crate::Kind::bit`]); 0: not known, any.
        kinds: u64,
    }
}

body! {
    /// A process executed a new program.
    Exec: EXEC {
        /// Parent process id.
        parent: u32,
        /// Real user id.
        uid: u32,
        /// Name of the new program's first thread, NUL padded. A process can change it.
        comm: [u8; 16],
    }
}

body! {
    /// A process ended.
    Exit: EXIT {
        /// `wait` status: exit code in bits 8–15, signal in bits 0–6.
        code: u32,
        /// Explicit padding.
        pad: u32,
        /// Reserved, 0.
        reserved: [u64; 2],
    }
}

body! {
    /// A process forked (a new thread group, not a new thread).
    Fork: FORK {
        /// Process id of the child.
        child: u32,
        /// Explicit padding.
        pad: u32,
        /// Start of the child, `CLOCK_BOOTTIME` nanoseconds.
        child_start_ns: u64,
        /// Reserved, 0.
        reserved: u64,
    }
}

body! {
    /// A model file was opened or mapped. `MODEL_OPEN`: the header's flags have
    /// [`MODEL_DIRECT`] if the page cache is bypassed.
    ModelFile: MODEL_OPEN, MODEL_MAP {
        /// Inode number.
        inode: u64,
        /// `MODEL_OPEN`: size of the file. `MODEL_MAP`: bytes mapped.
        bytes: u64,
        /// Device of the file system, kernel `dev_t` (`major << 20 | minor`).
        device: u32,
        /// File descriptor; [`crate::NO_FD`] where the kernel does not tell it.
        fd: u32,
    }
}

body! {
    /// A memory map made or removed.
    MapCall: MMAP, MUNMAP {
        /// Start address.
        address: u64,
        /// Length in bytes, as asked for.
        bytes: u64,
        /// `MMAP`: the `MAP_*` flags. `MUNMAP`: 0.
        map_flags: u32,
        /// Explicit padding.
        pad: u32,
    }
}

body! {
    /// One driver call (ioctl) on a watched device. The header's flags hold the low 16 bits of
    /// the negated return value (an errno, 0 for success).
    GpuCall: GPU_EXIT, GPU_ENTER {
        /// Entry to return, nanoseconds. 0 at entry.
        latency_ns: u64,
        /// The part of the latency in which no other process's call on the same device class
        /// was being served first: return − max(entry, the class's previous return). What is
        /// left out is this call's own waiting. 0 at entry.
        hold_ns: u64,
        /// Device number of the file, kernel `dev_t` (`major << 20 | minor`).
        device: u32,
        /// The ioctl's command word.
        command: u32,
    }
}

body! {
    /// Scheduling of one process in one window.
    SampleSched: SAMPLE_SCHED {
        /// Switches where the task gave up the CPU.
        voluntary: u32,
        /// Switches where it was preempted.
        involuntary: u32,
        /// Moves to another CPU.
        migrations: u32,
        /// Waits on a run queue that ended in the window.
        runq_waits: u32,
        /// Sum of those waits, nanoseconds.
        runq_ns: u64,
    }
}

body! {
    /// Memory maps of one process in one window.
    SampleMaps: SAMPLE_MAPS {
        /// Successful `mmap` calls.
        maps: u32,
        /// Successful `munmap` calls.
        unmaps: u32,
        /// Bytes mapped.
        mapped_bytes: u64,
        /// Bytes unmapped.
        unmapped_bytes: u64,
    }
}

body! {
    /// Driver calls of one process on one device class in one window.
    SampleGpu: SAMPLE_GPU {
        /// Calls that returned in the window.
        calls: u32,
        /// Device class: index of the `[[devices]]` entry in the configuration.
        class: u32,
        /// Sum of latencies, nanoseconds.
        latency_ns: u64,
        /// Sum of hold times, nanoseconds; see [`GpuCall::hold_ns`].
        hold_ns: u64,
    }
}

/// Buckets of a [`Histogram`]: bucket 0 counts values under 1 µs, bucket `i` those from 2^(i−1)
/// to under 2^i µs, the last one everything from 2^22 µs (4.2 s) on.
pub const HISTOGRAM_BUCKETS: usize = 24;

body! {
    /// A part of a histogram over [`HISTOGRAM_BUCKETS`] powers of two. The low byte of the header's
    /// flags says which bucket `counts[0]` is; parts that are all zero are left out. The high byte is
    /// the device class for `SAMPLE_GPU_LATENCY`, and else 0.
    Histogram: SAMPLE_RUNQ, SAMPLE_FIRST_BYTE, SAMPLE_GPU_LATENCY {
        /// Values in six buckets, one after the other.
        counts: [u32; 6],
    }
}

impl Histogram {
    /// The header's flags for a part that begins with `bucket`, of a device class or 0.
    pub const fn flags(class: u32, bucket: usize) -> u16 {
        (class as u16 & 0xff) << 8 | (bucket as u16 & 0xff)
    }

    /// Which bucket `counts[0]` is, by the header's flags.
    pub const fn first_bucket(flags: u16) -> usize {
        (flags & 0xff) as usize
    }

    /// Device class of a `SAMPLE_GPU_LATENCY`, by the header's flags.
    pub const fn class(flags: u16) -> u32 {
        (flags >> 8) as u32
    }
}

const _: () = assert!(crate::MAX_DEVICE_CLASSES <= 1 << 8 && HISTOGRAM_BUCKETS <= 1 << 8);

body! {
    /// Kinds that cannot be had on this kernel.
    Absent: ABSENT {
        /// Bits of [`crate::Kind::bit`].
        kinds: u64,
        /// Reserved, 0.
        reserved: [u64; 2],
    }
}

body! {
    /// Time on and off the CPU of one process in one window, over all its threads. A stretch is
    /// counted in the window in which it ends.
    SampleCpu: SAMPLE_CPU {
        /// Time on a CPU, nanoseconds.
        on_ns: u64,
        /// Time off the CPU by the threads' own doing (asleep or blocked, not waiting on a run
        /// queue), nanoseconds.
        off_ns: u64,
        /// Stretches in `off_ns`.
        off_waits: u32,
        /// Moves to a CPU of another NUMA node. Those within a node: `migrations` of
        /// [`SampleSched`] less these.
        cross_node: u32,
    }
}

body! {
    /// Page faults of one process in one window.
    SampleFaults: SAMPLE_FAULTS {
        /// Taken in user mode.
        user: u64,
        /// Taken in kernel mode on behalf of the process (copies from and to user memory).
        kernel: u64,
        /// Reserved, 0.
        reserved: u64,
    }
}

body! {
    /// System calls of one process in one window, counted at entry.
    SampleSyscalls: SAMPLE_SYSCALLS {
        /// Calls that do work: all but the next.
        calls: u64,
        /// Calls that wait or yield: `sched_yield`, `futex`, `poll`, `select`, `epoll_wait`,
        /// `nanosleep` and their variants. A spinning server makes millions of them.
        waiting: u64,
        /// Reserved, 0.
        reserved: u64,
    }
}

body! {
    /// Memory reclaim that the threads of one process had to do themselves in one window.
    SampleReclaim: SAMPLE_RECLAIM {
        /// Time in direct reclaim (the host is short of memory), nanoseconds.
        direct_ns: u64,
        /// Time in reclaim for a cgroup's limit, nanoseconds.
        memcg_ns: u64,
        /// Stalls in `direct_ns`.
        direct: u32,
        /// Stalls in `memcg_ns`.
        memcg: u32,
    }
}

body! {
    /// A process that the kernel chose to kill for want of memory; the header is the victim's.
    OomVictim: OOM_VICTIM {
        /// Workload of the task whose allocation failed; 0 if unknown.
        by_workload: u64,
        /// Process id of that task; 0 if unknown.
        by_pid: u32,
        /// Explicit padding.
        pad: u32,
        /// Reserved, 0.
        reserved: u64,
    }
}

body! {
    /// Pressure stall times of one cgroup (`header.workload`; 0: the host) in one window, in
    /// microseconds, from its `*.pressure` files.
    SamplePressure: SAMPLE_PRESSURE {
        /// Some task waited for a CPU.
        cpu_some_us: u32,
        /// All tasks did.
        cpu_full_us: u32,
        /// Some task was stalled for want of memory.
        memory_some_us: u32,
        /// All tasks were.
        memory_full_us: u32,
        /// Some task waited for block I/O.
        io_some_us: u32,
        /// All tasks did.
        io_full_us: u32,
    }
}

body! {
    /// TCP traffic of one process in one window.
    SampleNet: SAMPLE_NET {
        /// Bytes handed to the kernel for sending.
        sent_bytes: u64,
        /// Bytes received from the kernel.
        received_bytes: u64,
        /// Successful sends.
        sends: u32,
        /// Successful receives.
        receives: u32,
    }
}

body! {
    /// Requests on the server sockets of one process in one window, as the kernel sees them: bytes
    /// received after the last send, then the first send. A request is counted when its answer
    /// begins, its whole time when the next request on the socket begins or the socket closes.
    SampleInference: SAMPLE_INFERENCE {
        /// Sum of the times from the last received bytes to the first sent ones, nanoseconds.
        first_byte_ns: u64,
        /// Sum of the times from the first received bytes to the last sent ones, nanoseconds, of
        /// requests that are over.
        whole_ns: u64,
        /// Requests whose answer began.
        requests: u32,
        /// Segments sent again, on any socket of the process.
        retransmits: u32,
    }
}

body! {
    /// Requests on the server sockets of one process that were found to be over in one window: when the
    /// next request on the socket began, or the socket was closed.
    SampleCompleted: SAMPLE_COMPLETED {
        /// Sum of the times from the first received bytes to the last sent ones, nanoseconds.
        whole_ns: u64,
        /// How many.
        requests: u64,
        /// 0.
        reserved: u64,
    }
}

body! {
    /// Driver calls of one process with one command in one window.
    SampleGpuCommand: SAMPLE_GPU_COMMAND {
        /// Sum of latencies, nanoseconds.
        latency_ns: u64,
        /// Sum of what each latency was over the baseline of its (class, command), nanoseconds;
        /// 0 while there is no baseline.
        excess_ns: u64,
        /// Calls that returned in the window.
        calls: u32,
        /// Command, see [`crate::command_of`]; [`crate::UNKNOWN_COMMAND`] where no call with it has
        /// succeeded yet.
        command: u16,
        /// Device class, as in [`SampleGpu`].
        class: u16,
    }
}

body! {
    /// Reads (`read`, `pread64`, `readv`, `preadv`) of one model file by one process in one window.
    SampleReads: SAMPLE_READS {
        /// Inode number.
        inode: u64,
        /// Bytes read.
        bytes: u64,
        /// Device of the file system, kernel `dev_t`.
        device: u32,
        /// Reads that returned bytes.
        reads: u32,
    }
}

body! {
    /// CUDA driver API calls of one process in one window.
    SampleCuda: SAMPLE_CUDA {
        /// Time blocked in synchronising and copying calls, nanoseconds.
        blocked_ns: u64,
        /// Kernel and graph launches.
        launches: u32,
        /// Synchronising calls that returned.
        syncs: u32,
        /// Copies that returned.
        copies: u32,
        /// Allocations that failed.
        failed_allocs: u32,
    }
}

body! {
    /// An error that the GPU driver reported. The header is that of the task during which it was
    /// reported, which need not be its cause.
    GpuError: GPU_ERROR {
        /// The driver's code (NVIDIA: the Xid).
        code: u32,
        /// PCI address: domain << 16 | bus << 8 | device << 3 | function; `u32::MAX` if unknown.
        pci: u32,
        /// Reserved, 0.
        reserved: [u64; 2],
    }
}
