//! What is in a recording's file, counted as its chunks are written.
//!
//! Invariant: a batch is counted when its chunk is, so that what is said to be in the file is there.

use crate::batch::Batch;
use std::collections::BTreeMap;

/// Counts of a chunk, or of all chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) chunks: u64,
    pub(super) batches: u64,
    /// Records in them.
    pub(super) records: u64,
    /// The same by kind.
    pub(super) kinds: BTreeMap<u16, u64>,
}

impl Tally {
    /// Counts a batch.
    pub(super) fn count(&mut self, batch: &Batch) {
        self.batches += 1;
        self.records += batch.records.len() as u64;
        for record in batch.records.iter() {
            *self.kinds.entry(record.header.kind).or_default() += 1;
        }
    }

    /// Counts a chunk with that in it.
    pub(super) fn add_chunk(&mut self, chunk: Tally) {
        self.chunks += 1;
        self.batches += chunk.batches;
        self.records += chunk.records;
        for (kind, count) in chunk.kinds {
            *self.kinds.entry(kind).or_default() += count;
        }
    }
}
