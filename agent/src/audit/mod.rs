//! The audit log: JSON Lines, hash-chained, one writer, verifiable while it is written.
//!
//! Invariants:
//! - Each line carries the SHA-256 of the bytes of the line before it ([`chain`]); numbers go up
//!   by one from 1; signed checkpoints come at least every 256 records and every minute.
//! - Appending never waits for the disk. What finds no room is counted, and the log says so.
//! - A record is on disk at most 100 ms after it was appended, or [`Audit::healthy`] is false.
//! - A crash at any instant leaves a chain that verifies; a torn last line is moved aside.
//! - A reader never trusts a byte: no panic and no unbounded memory on any file.
//!
//! This room must not decide anything about policies or targets, and must not be written to by
//! two processes (the directory is locked).

pub mod chain;
pub mod clock;
mod disk;
mod entry;
pub mod key;
mod log;
mod query;
mod recover;
mod segment;
mod story;
mod verify;
mod writer;

#[cfg(test)]
mod tests;

pub use chain::{Hash, Head};
pub use entry::{AlertText, Entry, Identity, PolicyChange};
pub use log::{Audit, Health};
pub use query::{Filter, Follow, Record, find, head, read};
pub use recover::{Recovery, Torn};
pub use segment::MAX_LINE;
pub use story::{Story, story};
pub use verify::{Fault, Report, Status, VerifyOptions, verify, verify_with_progress};

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Settings of the writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// A segment ends before it would exceed this size, bytes.
    pub segment_bytes: u64,
    /// Space set aside for when the disk is full, bytes; 0 for none.
    pub reserve_bytes: u64,
    /// Appended bytes that may wait for the disk; what exceeds it is dropped and counted.
    pub queue_bytes: usize,
    /// Longest time between a record and its fdatasync.
    pub commit_every: Duration,
    /// Records between checkpoints; at most 256, which `verify` counts on.
    pub checkpoint_records: u32,
    /// Longest time between checkpoints, idle or not.
    pub checkpoint_every: Duration,
    /// Time between attempts while the disk refuses.
    pub retry_every: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            reserve_bytes: 1 << 20,
            queue_bytes: 8 << 20,
            commit_every: Duration::from_millis(100),
            checkpoint_records: verify::CHECKPOINT_RECORDS,
            checkpoint_every: Duration::from_mins(1),
            retry_every: Duration::from_secs(1),
        }
    }
}

/// What can go wrong with a log.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A system call failed.
    #[error("cannot {verb} {path}: {source}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// There is no log there.
    #[error("no audit log in {dir}")]
    NoLog {
        /// Where.
        dir: PathBuf,
    },
    /// Another process writes this log.
    #[error("another agent is writing the audit log in {dir}")]
    Locked {
        /// Which.
        dir: PathBuf,
    },
    /// The checkpoint key cannot be used.
    #[error("the checkpoint key {path} cannot be used: {what}")]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// The queue is full, or the log is closed: the record was not taken.
    #[error("the audit log took no record: {0}")]
    NotTaken(String),
    /// The record was taken but is not known to be on disk.
    #[error("the audit log cannot be written: {0}")]
    NotDurable(String),
    /// There is no such record.
    #[error("no record {seq} in the audit log (it holds {first} to {last})")]
    NoRecord {
        /// Asked for.
        seq: u64,
        /// First one there.
        first: u64,
        /// Last one there.
        last: u64,
    },
}

impl AuditError {
    fn io(verb: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            verb,
            path: path.to_owned(),
            source,
        }
    }
}

/// Opens the log in `dir` (made if needed, mode 0700) for writing, mends a torn tail, and starts
/// its writer thread.
///
/// # Errors
/// [`AuditError::Locked`] if another process has it; [`AuditError::Key`] if the checkpoint key
/// is lost or damaged; [`AuditError::Io`] otherwise.
pub fn open(dir: &Path, options: Options) -> Result<(Audit, Recovery), AuditError> {
    log::open_on(dir, options, Box::new(disk::RealDisk))
}
