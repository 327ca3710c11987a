//! What one process may take of a table.

use bytemuck::{Pod, Zeroable};

/// Tables of which a process may take a part only; indices into their limits.
pub const QUOTA_TABLES: u32 = 4;
/// [`QUOTA_TABLES`]: counters by command.
pub const QUOTA_COMMANDS: u32 = 0;
/// [`QUOTA_TABLES`]: histograms.
pub const QUOTA_HISTOGRAMS: u32 = 1;
/// [`QUOTA_TABLES`]: counters by file read.
pub const QUOTA_READS: u32 = 2;
/// [`QUOTA_TABLES`]: latencies by command, which all processes share.
pub const QUOTA_LATENCIES: u32 = 3;

/// What a process has taken of a table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct QuotaTaken {
    /// Entries that it made.
    pub entries: u64,
}

/// Key of the entries that a process made in a table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct QuotaKey {
    /// Start of the process, `CLOCK_BOOTTIME` nanoseconds.
    pub start_ns: u64,
    /// Process id.
    pub pid: u32,
    /// Which table: below [`QUOTA_TABLES`].
    pub table: u32,
}
