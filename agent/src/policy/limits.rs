//! What a policy may use. Every bound of this room has its name here.

use serde::Serialize;
use std::time::Duration;
use wasmtime::ResourceLimiter;

/// Records given to a policy in one call; larger batches are split.
pub const RECORDS_PER_CALL: usize = 512;
/// Requests that one call may return; the rest is dropped.
pub const REQUESTS_PER_CALL: usize = 64;
/// Pieces of evidence in one request; the rest is dropped.
pub const EVIDENCE_PER_REQUEST: usize = 16;
/// Bytes of a string that a policy gives (reason, evidence, log line); longer ones are cut.
pub const STRING_BYTES: usize = 512;
/// Longest lease that a policy can ask for, milliseconds (a day); longer ones are cut. The
/// operator's own limit is lower.
pub const LEASE_MS: u32 = 24 * 60 * 60 * 1000;
/// Largest CPU ceiling that makes sense, thousandths of one CPU: more CPUs than Linux supports.
pub const QUOTA_PERMILLE: u32 = 8_192_000;
/// Bytes that one call may hand to the host (requests, log lines): a little above what the
/// bounds on requests, evidence and strings add up to.
pub const OUTPUT_BYTES: usize = 2 << 20;
/// Core instances in one policy: `wit-component` makes two to four.
const INSTANCES: usize = 16;
/// Tables in one policy.
const TABLES: usize = 8;
/// Linear memories in one policy. Their sum is bounded by [`Limits::memory_bytes`].
const MEMORIES: usize = 4;

/// Bounds on one policy, the operator's to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Size of the policy's file, bytes.
    pub file_bytes: u64,
    /// Linear memory of the policy, bytes.
    pub memory_bytes: usize,
    /// Elements of each of its tables.
    pub table_elements: usize,
    /// CPU time of one call.
    pub call_deadline: Duration,
    /// CPU time of `init`, instantiation included.
    pub init_deadline: Duration,
    /// Batches waiting for the policy.
    pub queue_batches: usize,
    /// Bytes of the records of those batches.
    pub queue_bytes: usize,
    /// Log lines a second of event time.
    pub log_lines_per_second: u32,
    /// Requests a second of event time. Four full calls; a policy that has something to say at
    /// each window's end needs a few.
    pub requests_per_second: u32,
    /// Bytes of those requests a second of event time.
    pub request_bytes_per_second: usize,
    /// Event time between two checkpoints.
    pub checkpoint_every: Duration,
    /// Size of a checkpoint, bytes.
    pub checkpoint_bytes: usize,
    /// Strikes within `strike_window` that are forgiven; one more ejects.
    pub strikes: usize,
    /// Event time after which a strike is forgotten.
    pub strike_window: Duration,
    /// Event time after a reload in which a crash brings the old version back.
    pub probation: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file_bytes: 8 << 20,
            memory_bytes: 16 << 20,
            table_elements: 10_000,
            call_deadline: Duration::from_millis(20),
            init_deadline: Duration::from_millis(500),
            queue_batches: 1024,
            queue_bytes: 32 << 20,
            log_lines_per_second: 20,
            requests_per_second: 256,
            request_bytes_per_second: 1 << 20,
            checkpoint_every: Duration::from_secs(5),
            checkpoint_bytes: 1 << 20,
            strikes: 3,
            strike_window: Duration::from_mins(1),
            probation: Duration::from_secs(10),
        }
    }
}

/// Counts a store's memory and refuses what goes beyond the limit, with a trap: a guest that
/// went on after a failed allocation would be in a state that nobody tested.
#[derive(Debug)]
pub struct Limiter {
    memory_limit: usize,
    table_limit: usize,
    memory: usize,
    refused: Option<String>,
}

impl Limiter {
    /// A limiter for one store.
    pub fn new(limits: &Limits) -> Self {
        Self {
            memory_limit: limits.memory_bytes,
            table_limit: limits.table_elements,
            memory: 0,
            refused: None,
        }
    }

    /// Linear memory in use, bytes.
    pub fn memory_bytes(&self) -> usize {
        self.memory
    }

    /// What was refused, if something was.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    fn refuse(&mut self, what: String) -> wasmtime::Error {
        self.refused = Some(what.clone());
        wasmtime::Error::msg(what)
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.memory.saturating_add(desired.saturating_sub(current));
        if total > self.memory_limit {
            let limit = self.memory_limit;
            return Err(self.refuse(format!("{total} bytes of memory, the limit is {limit}")));
        }
        self.memory = total;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(self.refuse(format!("memory could not grow: {error}")))
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired > self.table_limit {
            let limit = self.table_limit;
            return Err(self.refuse(format!("{desired} table elements, the limit is {limit}")));
        }
        Ok(true)
    }

    fn instances(&self) -> usize {
        INSTANCES
    }

    fn tables(&self) -> usize {
        TABLES
    }

    fn memories(&self) -> usize {
        MEMORIES
    }
}
