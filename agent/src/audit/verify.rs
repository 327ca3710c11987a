//! Checking a log from its first byte to its last, also while it is being written.
//!
//! Invariants: fail closed: what is not shown to be intact is not called intact. Streaming,
//! memory independent of the log's size. A place is named for every fault: file, line, record.
//! An unfinished last line is no fault: a writer is at work on it, or was cut off.

mod walk;

use super::AuditError;
use super::chain::Head;
use super::key::{Checking, PUBLIC_FILE};
use super::segment::{self, Lines};
use serde::Serialize;
use std::path::{Path, PathBuf};
use walk::Walk;

/// Records between two checkpoints at most; more without one is a fault.
pub const CHECKPOINT_RECORDS: u32 = 256;

/// What to check against.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// A head that was kept elsewhere: up to it, nothing may be changed or missing.
    pub head: Option<Head>,
    /// Public key of the checkpoints; the one beside the log if `None`.
    pub public_key: Option<PathBuf>,
    /// The log may begin later than record 1: old segments were moved away on purpose.
    pub allow_pruned: bool,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The verdict.
    pub status: Status,
    /// The first faults, in the order of the log.
    pub faults: Vec<Fault>,
    /// How many there are in all.
    pub fault_count: u64,
    /// First record.
    pub first_seq: u64,
    /// Last record, and its hash.
    pub head: Head,
    /// Whole records read.
    pub records: u64,
    /// Segments read.
    pub segments: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Checkpoints whose signature is right.
    pub checkpoints: u64,
    /// Last record that a right checkpoint covers; 0 for none.
    pub sealed_seq: u64,
    /// Bytes of an unfinished last line.
    pub unfinished_bytes: u64,
}

/// The verdict on a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "status")]
pub enum Status {
    /// Nothing was changed or cut: it ends with the head that was given.
    Intact,
    /// No fault, but whether something was cut or rewritten after this record cannot be told.
    Unanchored {
        /// Last record that a head or a checkpoint vouches for; 0 for none.
        after_seq: u64,
    },
    /// It was changed.
    Broken,
}

/// A fault, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// File name of the segment; empty if it is about the whole log.
    pub file: String,
    /// Line in it, from 1; 0 if it is about no line.
    pub line: u64,
    /// Record number that stands or should stand there.
    pub seq: u64,
    /// What is wrong, in words.
    pub what: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.file.is_empty() {
            return f.write_str(&self.what);
        }
        write!(
            f,
            "{} line {} (record {}): {}",
            self.file, self.line, self.seq, self.what
        )
    }
}

/// Checks the log in `dir`.
///
/// # Errors
/// If it cannot be read, or there is none. A log that reads but is damaged is no error: see
/// [`Report::status`].
pub fn verify(dir: &Path, options: &VerifyOptions) -> Result<Report, AuditError> {
    verify_with_progress(dir, options, &mut |_| {})
}

/// [`verify`], telling the number of bytes read so far every few thousand records.
pub fn verify_with_progress(
    dir: &Path,
    options: &VerifyOptions,
    progress: &mut dyn FnMut(u64),
) -> Result<Report, AuditError> {
    let beside = dir.join(PUBLIC_FILE);
    let key = match &options.public_key {
        Some(path) => Some(Checking::open(path)?),
        None if beside.exists() => Some(Checking::open(&beside)?),
        None => None,
    };
    let mut segments = segment::list(dir)?;
    let mut walk = Walk::new(options, key);
    let mut next = 0;
    while next < segments.len() {
        let segment = segments[next].clone();
        next += 1;
        let mut lines = Lines::open(&segment.path)?;
        walk.begin(&segment);
        let mut unfinished = walk.read(&segment, &mut lines, progress)?;
        if next == segments.len() {
            // Perhaps the writer went on to a new segment meanwhile: then this one is complete
            // now, and read to its end before the new one is.
            let known = segment.first;
            segments = segment::list(dir)?;
            next = segments
                .iter()
                .position(|s| s.first > known)
                .unwrap_or(segments.len());
            if next < segments.len() {
                unfinished = walk.read(&segment, &mut lines, progress)?;
            }
        }
        walk.report.segments += 1;
        walk.report.bytes += lines.offset;
        if unfinished > 0 {
            if next < segments.len() {
                walk.fault(
                    &segment,
                    lines.number + 1,
                    "it ends in the middle of a record".into(),
                );
            }
            walk.report.unfinished_bytes = unfinished;
        }
    }
    Ok(walk.finish(options))
}
