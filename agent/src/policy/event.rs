//! What the policy host tells the runtime, in order, through one channel.

use super::strikes::StrikeKind;
use palisade_core::{PolicyRef, Request};
use serde::Serialize;
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// Where events go. It is called on the policies' threads and must not block.
#[derive(Clone)]
pub struct Events(Arc<dyn Fn(PolicyEvent) + Send + Sync>);

impl Events {
    /// Hands every event to `take`.
    pub fn new(take: impl Fn(PolicyEvent) + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    pub(super) fn send(&self, event: PolicyEvent) {
        (self.0)(event);
    }
}

impl From<Sender<PolicyEvent>> for Events {
    /// Events that nobody receives any more are dropped.
    fn from(sender: Sender<PolicyEvent>) -> Self {
        Self::new(move |event| {
            let _ = sender.send(event);
        })
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

/// Something that a policy did or that happened to it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum PolicyEvent {
    /// It asks for actions. Never empty.
    Output {
        /// Who.
        policy: PolicyRef,
        /// Batch whose events led to it.
        batch: u64,
        /// Time of that batch, `CLOCK_BOOTTIME` nanoseconds.
        now_ns: u64,
        /// What it asks for, checked.
        requests: Vec<Request>,
    },
    /// It runs now: loaded, reloaded or revived. Precedes its first output.
    Loaded {
        /// Who.
        policy: PolicyRef,
        /// Whom it replaces.
        previous: Option<PolicyRef>,
        /// With which state it began.
        state: Handover,
        /// Last batch that the previous one saw.
        after_batch: u64,
    },
    /// A new version or new settings were refused; what ran before runs on.
    Rejected {
        /// Name from the configuration.
        name: String,
        /// Why.
        error: String,
    },
    /// It is gone.
    Unloaded {
        /// Who.
        policy: PolicyRef,
    },
    /// It misbehaved.
    Strike {
        /// Who.
        policy: PolicyRef,
        /// How.
        kind: StrikeKind,
        /// In words.
        detail: String,
        /// During which batch.
        batch: u64,
    },
    /// After a crash it runs again. Its state does not know of the batches from `from_seq` to
    /// `to_seq`, both included; what follows in the last one is given to it.
    Restarted {
        /// Who.
        policy: PolicyRef,
        /// With which state.
        state: Handover,
        /// First batch that its state does not know of.
        from_seq: u64,
        /// Last batch that its state does not know of.
        to_seq: u64,
    },
    /// A new version crashed in its probation; the version before it runs again, with the state
    /// that it had at the swap. It has not seen the batches from `from_seq` to `to_seq`, both
    /// included; there are none if `to_seq` is smaller.
    RolledBack {
        /// Who runs now.
        policy: PolicyRef,
        /// Who crashed.
        failed: PolicyRef,
        /// How.
        reason: String,
        /// First batch that it has not seen.
        from_seq: u64,
        /// Last batch that it has not seen.
        to_seq: u64,
    },
    /// It misbehaved too often and does not run any more. A reload revives it.
    Ejected {
        /// Who.
        policy: PolicyRef,
        /// Why.
        reason: String,
        /// During which batch.
        batch: u64,
    },
    /// It says something.
    Log {
        /// Who.
        policy: PolicyRef,
        /// How important.
        level: LogLevel,
        /// What.
        message: String,
        /// Lines dropped before this one because there were too many.
        suppressed: u64,
    },
    /// Records were not delivered: its queue was full, or it crashed over them. It is told too.
    Lost {
        /// Who.
        policy: PolicyRef,
        /// How many records that it subscribed to.
        records: u64,
        /// The batch before which they were, or in which it crashed.
        batch: u64,
    },
}

/// Where an instance's state came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Handover {
    /// It began anew.
    Fresh,
    /// The previous instance gave it, at the swap.
    Current,
    /// The previous instance could not give it any more: from its last checkpoint.
    Checkpoint,
}

/// How important a log line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// For the policy's author.
    Debug,
    /// Good to know.
    Info,
    /// Odd.
    Warn,
    /// Wrong.
    Error,
}
