//! What the audit log can say: one variant a kind of record.
//!
//! Invariants: entries are data; each is complete enough to be read years later without the
//! agent. Kinds and fields are only ever added: a reader keeps what it does not know.
//! Nothing here touches the disk or the clock.

use palisade_core::{
    ActOutcome, Action, Decision, Effect, EffectId, Evidence, Lease, LeaseId, PolicyRef, Severity,
    Target, WorkloadId,
};
use serde::{Deserialize, Serialize};

/// One record of the log, without its place in the chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Entry {
    /// First record of a segment (an emergency segment has none). Written by the log itself.
    Segment {
        /// Random name of this log: the same in all of its segments.
        log: String,
        /// Number of records before this one.
        before: u64,
        /// Public key of the checkpoints, lower-case hex.
        key: String,
    },
    /// An agent began to write.
    Start {
        /// Its version.
        agent: String,
        /// Kernel release.
        kernel: String,
        /// SHA-256 of the configuration, lower-case hex.
        config_sha256: String,
        /// The policies in force.
        policies: Vec<PolicyRef>,
        /// What the sensors could attach, and how.
        sensors: serde_json::Value,
        /// What may never be acted on, one rule a line.
        protected: Vec<String>,
    },
    /// An agent ended in order.
    Stop {
        /// "signal 15", "fault: …".
        why: String,
    },
    /// Something happened to a policy.
    Policy {
        /// What.
        what: PolicyChange,
        /// Which. Unknown parts (a rejected file's version) are empty or 0.
        policy: PolicyRef,
        /// In words; for a rejection the whole error.
        detail: String,
    },
    /// The core answered a request.
    Decision {
        /// The request, its evidence and the answer.
        #[serde(flatten)]
        decision: Decision,
        /// Who the target was when it was decided.
        who: Identity,
    },
    /// An action or alert is about to be carried out.
    Intent {
        /// Joins it with its outcome; unique within an agent's run.
        effect: EffectId,
        /// The decision behind it.
        decision: u64,
        /// The policy's name.
        policy: String,
        /// What, after clamping.
        action: Action,
        /// On whom.
        target: Target,
        /// The cgroup that is acted on.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        workload: Option<WorkloadId>,
        /// Its path.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        cgroup: Option<String>,
        /// The lease that it begins or tightens.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        lease: Option<Lease>,
        /// For an alert: what people are told.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        alert: Option<AlertText>,
    },
    /// How an action or alert went, as observed.
    Outcome {
        /// Of which intent.
        effect: EffectId,
        /// How it went.
        outcome: ActOutcome,
    },
    /// A lease lasts longer.
    Renew {
        /// Which.
        lease: LeaseId,
        /// New end, `CLOCK_BOOTTIME` nanoseconds.
        until_ns: u64,
    },
    /// A containment is about to be undone.
    UndoIntent {
        /// Joins it with its outcome.
        effect: EffectId,
        /// What is undone.
        lease: Lease,
        /// "expired", "released", "policy gone", ….
        why: String,
    },
    /// How an undo went, as observed.
    UndoOutcome {
        /// Of which undo.
        effect: EffectId,
        /// Which lease.
        lease: LeaseId,
        /// How it went.
        outcome: ActOutcome,
    },
    /// Events were lost.
    Loss {
        /// Where: "ring buffer", "map full", "policy queue", ….
        source: String,
        /// How many.
        count: u64,
        /// The policy that missed them, where it is one's own queue.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        policy: Option<String>,
        /// Whose events they were, where known.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        workload: Option<WorkloadId>,
    },
    /// A sentence for people: faults of the log itself, operator commands.
    Note {
        /// The sentence.
        text: String,
    },
}

/// What can happen to a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyChange {
    /// Loaded for the first time.
    Loaded,
    /// A new file took over.
    Reloaded,
    /// A file was refused; the old one, if any, keeps running.
    Rejected,
    /// It trapped, overran its time or memory, or returned nonsense.
    Strike,
    /// Its instance was made anew.
    Restarted,
    /// The old file took over again.
    RolledBack,
    /// Too many strikes: it no longer runs.
    Ejected,
    /// Taken out by the operator.
    Unloaded,
}

/// Who a target was, for readers who cannot ask the host any more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Executable's path.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exe: Option<String>,
    /// The name that the process gives itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub comm: Option<String>,
    /// Path of its cgroup.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cgroup: Option<String>,
    /// Container id.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub container: Option<String>,
}

/// What an alert says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlertText {
    /// How urgent.
    pub severity: Severity,
    /// One sentence.
    pub reason: String,
    /// The numbers behind it.
    pub evidence: Vec<Evidence>,
}

impl Entry {
    /// The record that precedes (`Act`, `Alert`, `Undo`) or is (`Renew`) an effect. `None` for
    /// `Record`: a decision is written with its target's identity, as [`Entry::Decision`].
    pub fn before(effect: &Effect) -> Option<Self> {
        Some(match effect {
            Effect::Record { .. } => return None,
            Effect::Act {
                id,
                decision,
                policy,
                target,
                workload,
                cgroup,
                action,
                lease,
            } => Entry::Intent {
                effect: *id,
                decision: *decision,
                policy: policy.clone(),
                action: *action,
                target: *target,
                workload: *workload,
                cgroup: cgroup.clone(),
                lease: lease.clone(),
                alert: None,
            },
            Effect::Alert {
                id,
                decision,
                policy,
                target,
                cgroup,
                severity,
                reason,
                evidence,
            } => Entry::Intent {
                effect: *id,
                decision: *decision,
                policy: policy.clone(),
                action: Action::Alert,
                target: *target,
                workload: None,
                cgroup: cgroup.clone(),
                lease: None,
                alert: Some(AlertText {
                    severity: *severity,
                    reason: reason.clone(),
                    evidence: evidence.clone(),
                }),
            },
            Effect::Renew { lease, until_ns } => Entry::Renew {
                lease: *lease,
                until_ns: *until_ns,
            },
            Effect::Undo { id, lease, why } => Entry::UndoIntent {
                effect: *id,
                lease: lease.clone(),
                why: why.clone(),
            },
        })
    }

    /// The record that follows an effect. `None` for `Record` and `Renew`, which have no outcome.
    pub fn after(effect: &Effect, outcome: ActOutcome) -> Option<Self> {
        match effect {
            Effect::Record { .. } | Effect::Renew { .. } => None,
            Effect::Act { id, .. } | Effect::Alert { id, .. } => Some(Entry::Outcome {
                effect: *id,
                outcome,
            }),
            Effect::Undo { id, lease, .. } => Some(Entry::UndoOutcome {
                effect: *id,
                lease: lease.id,
                outcome,
            }),
        }
    }
}
