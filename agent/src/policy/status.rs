//! What there is to know about each policy, for people.

use palisade_core::PolicyRef;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Whether a policy runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyState {
    /// It runs.
    Running,
    /// It runs, and the version before it is kept in case it crashes.
    Probation,
    /// It misbehaved too often; a reload revives it.
    Ejected,
}

/// One policy's state and numbers since it was loaded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyStatus {
    /// Name from the configuration.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// Version that runs.
    pub version: String,
    /// SHA-256 of the file that runs, lower-case hex.
    pub sha256: String,
    /// Generation that was asked for last.
    pub generation: u64,
    /// Generation that runs.
    pub running_generation: u64,
    /// Whether it runs.
    pub state: PolicyState,
    /// A new version is being compiled or waits for its turn.
    pub loading: bool,
    /// Kinds that it receives.
    pub kinds: Vec<String>,
    /// Last batch that it saw.
    pub last_batch: u64,
    /// Batches that it saw.
    pub batches: u64,
    /// Records that it saw.
    pub records: u64,
    /// Requests that it made.
    pub requests: u64,
    /// Calls into it.
    pub calls: u64,
    /// Time spent in them, nanoseconds.
    pub call_ns_total: u64,
    /// The longest, nanoseconds.
    pub call_ns_max: u64,
    /// Batches that wait for it.
    pub queue_batches: usize,
    /// Bytes of their records.
    pub queue_bytes: usize,
    /// Records that it did not get because its queue was full, or over which it crashed.
    pub lost: u64,
    /// Strikes.
    pub strikes: u64,
    /// Restarts after a crash.
    pub restarts: u64,
    /// Linear memory in use, bytes.
    pub memory_bytes: usize,
    /// The last thing that went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// The numbers that a policy's thread keeps up to date.
#[derive(Clone, Debug, Default)]
pub(super) struct Counters {
    pub last_batch: u64,
    pub batches: u64,
    pub records: u64,
    pub requests: u64,
    pub calls: u64,
    pub call_ns_total: u64,
    pub call_ns_max: u64,
    /// Records that crashes cost; the queue counts its own.
    pub lost: u64,
    pub strikes: u64,
    pub restarts: u64,
    pub memory_bytes: usize,
    pub last_error: Option<String>,
}

/// Where a policy's thread shows what runs and its numbers.
#[derive(Debug)]
pub(super) struct Board {
    shown: Mutex<Shown>,
}

/// What a [`Board`] shows.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub running: PolicyRef,
    pub state: PolicyState,
    pub counters: Counters,
}

impl Board {
    pub fn new(running: PolicyRef) -> Self {
        let counters = Counters::default();
        Self {
            shown: Mutex::new(Shown {
                running,
                state: PolicyState::Running,
                counters,
            }),
        }
    }

    pub fn set(&self, running: PolicyRef, state: PolicyState) {
        let mut shown = self.lock();
        shown.running = running;
        shown.state = state;
    }

    pub fn update(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut self.lock().counters);
    }

    pub fn look(&self) -> Shown {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        // No code that can panic runs under the lock.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
