//! The unit in which events travel: records that were drained together.

use palisade_abi::Record;
use std::sync::Arc;

/// Records drained in one go, oldest first.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Counts up by one, without gaps, in the order of delivery.
    pub seq: u64,
    /// `CLOCK_BOOTTIME` nanoseconds at the drain; not before any record of the batch.
    pub now_ns: u64,
    /// The records, shared between the policies.
    pub records: Arc<[Record]>,
    /// The batch closes a sampling window: it holds that window's `Sample` records.
    pub window_end: bool,
}
