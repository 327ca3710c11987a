//! Families of counters: which map a counter lies in, by number, so that the agent need not read the
//! maps that are empty.

use crate::{
    Counters, CudaCounters, FaultCounters, GpuCommandCounters, GpuCounters, GpuLatencyCounters,
    HistogramCounters, NetCounters, QuotaTaken, ReadCounters, ReclaimCounters, SyscallCounters,
};
use bytemuck::{Pod, Zeroable};

/// Families that there is room for.
pub const MAX_FAMILIES: usize = 16;

/// The value of a map of counters, which is the only one with that value.
pub trait CounterFamily: Pod {
    /// Its number, below [`MAX_FAMILIES`].
    const FAMILY: usize;
}

/// Bytes that a value of counters has at most.
pub const MAX_COUNTERS_BYTES: usize = 768;

macro_rules! families {
    ($($number:literal: $counters:ty),* $(,)?) => {
        $(impl CounterFamily for $counters {
            const FAMILY: usize = $number;
        }
        const _: () = assert!(size_of::<$counters>() <= MAX_COUNTERS_BYTES);)*
        const _: () = assert!([$($number),*].len() <= MAX_FAMILIES);
    };
}
families! {
    0: Counters,
    1: GpuCounters,
    2: HistogramCounters,
    3: FaultCounters,
    4: SyscallCounters,
    5: ReclaimCounters,
    6: NetCounters,
    7: GpuCommandCounters,
    8: ReadCounters,
    9: CudaCounters,
    10: GpuLatencyCounters,
    11: QuotaTaken,
}

/// Entries that the kernel programs made, by family: free-running.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Added {
    /// By [`CounterFamily::FAMILY`].
    pub counts: [u64; MAX_FAMILIES],
}
