//! The event records that travel unchanged from the kernel programs to the policies.
//!
//! Invariants:
//! - A [`Record`] is 64 bytes of integers, without padding: the bytes that the kernel writes
//!   are the bytes that a policy reads.
//! - Kinds are append-only. A reader skips kinds that it does not know.
//! - Nothing here allocates, panics or knows about user space.
#![no_std]
#![forbid(unsafe_code)]

mod body;
mod cpu;
mod cuda;
mod family;
mod files;
mod gpu;
mod keys;
pub mod kind;
mod net;
mod quota;
mod reads;
mod suffix;

pub use body::{
    Absent, Body, Exec, Exit, Fork, GpuCall, GpuError, HISTOGRAM_BUCKETS, Histogram, Lost,
    MODEL_DIRECT, MapCall, ModelFile, OomVictim, SampleCompleted, SampleCpu, SampleCuda,
    SampleFaults, SampleGpu, SampleGpuCommand, SampleInference, SampleMaps, SampleNet,
    SamplePressure, SampleReads, SampleReclaim, SampleSched, SampleSyscalls,
};
pub use cpu::{CpuOffsets, MAX_CPUS, MAX_SYSCALLS, OomCause, Turn};
pub use cuda::{CudaCall, PciOffsets};
pub use family::{Added, CounterFamily, MAX_COUNTERS_BYTES, MAX_FAMILIES};
pub use files::{FilePath, NO_FD, PATH_DELETED, PATH_SLOTS, PATH_WHOLE, PathOffsets};
pub use gpu::{
    COMMAND_BITS, ENCODED_COMMAND_BITS, InFlight, LATENCY_BUCKETS, LatencyHistogram, MAX_RESIDENT,
    UNKNOWN_COMMAND, command_key, command_of, latency_bucket, latency_bucket_start,
};
pub use keys::{
    ANY_MINOR, Config, Counters, CountersKey, CpuLosses, CudaCounters, DeviceKey, DeviceRule,
    ExecOffsets, ExecutablePath, FaultCounters, FileKey, GpuCommandCounters, GpuCommandKey,
    GpuCounters, GpuCountersKey, GpuLatencyCounters, HistogramCounters, HistogramKey,
    LOSS_COUNTER_MAP, LOSS_HOOK_SKIPPED, LOSS_POLICY_QUEUE, LOSS_RING_BUFFER, LOSS_SOURCES,
    LOSS_STATE_MAP, MAX_CGROUP_DEPTH, MAX_DEVICE_CLASSES, MAX_MAJORS, MODEL_SUFFIX_BYTES,
    NetCounters, Offsets, PATH_BYTES, QUIET_NS, ReadCounters, ReadKey, ReclaimCounters,
    SyscallCounters, SyscallOffsets, Verdict, WATCH_GPU_USERS, WATCH_PIDS, WatchedPid,
};
pub use kind::Kind;
pub use net::{
    NetCall, NetOffsets, SOCKET_ANSWERING, SOCKET_CLIENT, SOCKET_IDLE, SOCKET_RECEIVING, Socket,
};
pub use quota::{
    QUOTA_COMMANDS, QUOTA_HISTOGRAMS, QUOTA_LATENCIES, QUOTA_READS, QUOTA_TABLES, QuotaKey,
    QuotaTaken,
};
pub use reads::{ReadFd, ReadFdKey, ReadOffsets};
pub use suffix::{NO_SUFFIX, Suffix, behind_the_dot};

/// Version of this record layout. A policy states the version it was built for; the agent
/// accepts every version up to its own.
pub const ABI_VERSION: u32 = 2;

/// Size of one record in bytes.
pub const RECORD_BYTES: usize = 64;

/// Size of one record in 64-bit words, the unit in which policies receive them.
pub const RECORD_WORDS: usize = RECORD_BYTES / 8;

/// The 40 bytes that every record starts with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Header {
    /// `CLOCK_BOOTTIME` in nanoseconds at which the event was seen.
    pub time_ns: u64,
    /// Workload: the kernfs id of the process's cgroup, 0 where it does not apply.
    pub workload: u64,
    /// Start of the process (thread group leader) in `CLOCK_BOOTTIME` nanoseconds.
    pub start_ns: u64,
    /// Process (thread group) id in the initial PID namespace.
    pub pid: u32,
    /// Thread id in the initial PID namespace.
    pub tid: u32,
    /// One of the constants of [`kind`].
    pub kind: u16,
    /// Bits whose meaning belongs to the kind.
    pub flags: u16,
    /// CPU on which the event was seen.
    pub cpu: u32,
}

/// One event: 64 bytes, little endian, 8-byte aligned.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Record {
    /// The common part.
    pub header: Header,
    /// 24 bytes that belong to the kind; see [`Body`].
    pub body: [u64; 3],
}

const _: () = {
    assert!(size_of::<Header>() == 40);
    assert!(size_of::<Record>() == RECORD_BYTES);
    assert!(align_of::<Record>() == 8);
    assert!(core::mem::offset_of!(Header, workload) == 8);
    assert!(core::mem::offset_of!(Header, start_ns) == 16);
    assert!(core::mem::offset_of!(Header, pid) == 24);
    assert!(core::mem::offset_of!(Header, tid) == 28);
    assert!(core::mem::offset_of!(Header, kind) == 32);
    assert!(core::mem::offset_of!(Header, flags) == 34);
    assert!(core::mem::offset_of!(Header, cpu) == 36);
    assert!(core::mem::offset_of!(Record, body) == 40);
};

impl Record {
    /// A record of `B`'s kind.
    pub fn new<B: Body>(mut header: Header, body: B) -> Self {
        header.kind = B::KIND;
        Self {
            header,
            body: bytemuck::cast(body),
        }
    }

    /// The body as `B`, if this record is of one of `B`'s kinds.
    pub fn get<B: Body>(&self) -> Option<B> {
        B::KINDS
            .contains(&self.header.kind)
            .then(|| bytemuck::cast(self.body))
    }

    /// The kind, if this version of the ABI knows it.
    pub fn kind(&self) -> Option<Kind> {
        Kind::from_raw(self.header.kind)
    }
}

/// Reads records in place from the words that a policy receives. `None` if the length is not
/// a whole number of records.
pub fn records(words: &[u64]) -> Option<&[Record]> {
    bytemuck::try_cast_slice(words).ok()
}

/// The words of a batch, in place.
pub fn words(records: &[Record]) -> &[u64] {
    bytemuck::cast_slice(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_records_are_the_same_bytes() {
        let body = GpuCall {
            latency_ns: 50_000_000,
            hold_ns: 7,
            device: 195 << 20,
            command: 0x2a,
        };
        let header = Header {
            time_ns: 1,
            pid: 2,
            tid: 3,
            cpu: 4,
            flags: 5,
            ..Header::default()
        };
        let mut record = Record::new(header, body);
        record.header.kind = kind::GPU_EXIT;
        let all = [record; 3];
        assert_eq!(words(&all).len(), 24);
        assert_eq!(records(words(&all)), Some(&all[..]));
        assert_eq!(record.get::<GpuCall>(), Some(body));
        assert_eq!(record.get::<Exec>(), None);
        assert_eq!(records(&[0; 7]), None);
    }

    #[test]
    fn every_kind_has_one_number_and_one_name() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_raw(*kind as u16), Some(*kind));
            assert_eq!(Kind::from_name(kind.name()), Some(*kind));
        }
        assert_eq!(Kind::from_raw(0), None);
        assert_eq!(Kind::from_raw(u16::MAX), None);
    }
}
