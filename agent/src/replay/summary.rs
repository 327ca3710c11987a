//! What is in a recording, without any policy.

use crate::recording::{Entry, Identity, Origin, Reader};
use anyhow::{Context, Result};
use palisade_abi::{Kind, Lost};
use palisade_core::Input;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The contents of a recording, counted.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Where it comes from.
    pub origin: Origin,
    /// Bytes of whole chunks.
    pub bytes: u64,
    /// Chunks.
    pub chunks: u64,
    /// It was closed in order: nothing is missing at its end.
    pub ended: bool,
    /// Why not, if a chunk is torn.
    pub torn: Option<String>,
    /// Bytes that it may have at most, if it ended because it had reached them, before the run did.
    pub full: Option<u64>,
    /// Time of the first batch, `CLOCK_BOOTTIME` nanoseconds.
    pub first_ns: u64,
    /// Time of the last batch.
    pub last_ns: u64,
    /// Batches.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Records by the name of their kind, or its number where this agent has no name for it.
    pub kinds: BTreeMap<String, u64>,
    /// Records that the kernel could not deliver.
    pub lost_in_kernel: u64,
    /// Records that policies of the recorded run missed.
    pub lost_to_policies: u64,
    /// Records that are not in the recording because the disk was too slow.
    pub lost_to_recording: u64,
    /// What was learned about processes.
    pub processes: u64,
    /// What was learned about workloads.
    pub workloads: u64,
    /// What was learned about files.
    pub files: u64,
    /// Times that requests of a policy reached the core.
    pub orders: u64,
    /// Times that the core was told that time has passed.
    pub ticks: u64,
    /// Times that the core heard anything else.
    pub inputs: u64,
    /// What the core was told about targets, where it was news.
    pub facts: u64,
    /// Answers to policies' questions, where they were news.
    pub answers: u64,
    /// Entries other than batches that are not in the recording.
    pub notes_lost: u64,
}

/// Reads the recording in `path`.
pub fn summary(path: &Path) -> Result<Summary> {
    let context = || format!("cannot read {}", path.display());
    let mut reader = Reader::open(path).with_context(context)?;
    let mut summary = Summary {
        origin: reader.origin(),
        ..Summary::default()
    };
    let mut kinds: BTreeMap<u16, u64> = BTreeMap::new();
    for entry in reader.by_ref() {
        match entry {
            Ok(entry) => summary.count(&entry, &mut kinds),
            Err(error) if error.is_torn() => summary.torn = Some(error.to_string()),
            Err(error) => return Err(error).with_context(context),
        }
    }
    summary.bytes = reader.offset();
    summary.chunks = reader.chunks();
    summary.ended = reader.ended();
    for (kind, count) in kinds {
        *summary.kinds.entry(kind_name(kind)).or_default() += count;
    }
    Ok(summary)
}

/// A kind's name, or its number.
pub fn kind_name(kind: u16) -> String {
    Kind::from_raw(kind).map_or_else(|| kind.to_string(), |kind| kind.name().to_owned())
}

impl Summary {
    fn count(&mut self, entry: &Entry, kinds: &mut BTreeMap<u16, u64>) {
        match entry {
            Entry::Batch(batch) => {
                if self.batches == 0 {
                    self.first_ns = batch.now_ns;
                }
                self.last_ns = batch.now_ns;
                self.batches += 1;
                self.records += batch.records.len() as u64;
                for record in batch.records.iter() {
                    *kinds.entry(record.header.kind).or_default() += 1;
                    let lost = record.get::<Lost>().map_or(0, |lost| lost.count);
                    self.lost_in_kernel = self.lost_in_kernel.saturating_add(lost);
                }
            }
            Entry::Identity(Identity::Process { .. }) => self.processes += 1,
            Entry::Identity(Identity::Workload { .. }) => self.workloads += 1,
            Entry::Identity(Identity::File { .. }) => self.files += 1,
            Entry::Lost {
                policy, records, ..
            } => {
                let sum = match policy {
                    Some(_) => &mut self.lost_to_policies,
                    None => &mut self.lost_to_recording,
                };
                *sum = sum.saturating_add(*records);
            }
            Entry::Input { input, .. } => {
                self.inputs += 1;
                if let Input::Missed { count, .. } = input {
                    self.lost_to_policies = self.lost_to_policies.saturating_add(*count);
                }
            }
            Entry::Gap { notes } => self.notes_lost = self.notes_lost.saturating_add(*notes),
            Entry::Full { max_bytes } => self.full = Some(*max_bytes),
            Entry::Facts { .. } => self.facts += 1,
            Entry::Answer { .. } => self.answers += 1,
            // Counted when the policy is told.
            Entry::Dropped { .. } | Entry::Core(_) | Entry::Changed { .. } => {}
            Entry::Order { .. } => self.orders += 1,
            Entry::Tick { .. } => self.ticks += 1,
        }
    }
}
