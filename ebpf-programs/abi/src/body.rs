//! What the 24 bytes behind the header mean, per kind.

use crate::kind;

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
        /// Reserved, 0.
        reserved: u64,
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
    /// A model file was opened or mapped.
    ModelFile: MODEL_OPEN, MODEL_MAP {
        /// Inode number.
        inode: u64,
        /// `MODEL_OPEN`: size of the file. `MODEL_MAP`: bytes mapped.
        bytes: u64,
        /// Device of the file system, kernel `dev_t` (`major << 20 | minor`).
        device: u32,
        /// File descriptor.
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
