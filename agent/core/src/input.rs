//! What goes into the core and what comes out.

use crate::{
    Action, Decision, EffectId, Evidence, Grant, Lease, LeaseId, PolicyRef, ProcessId, Request,
    Severity, Target, WorkloadId,
};
use serde::{Deserialize, Serialize};

/// What the identity tables say about a target at the moment of the request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetFacts {
    /// The process or cgroup exists and is the one that is meant.
    pub alive: bool,
    /// What is there instead, for the refusal.
    pub detail: String,
    /// The cgroup that containments act on.
    pub workload: Option<WorkloadId>,
    /// Its path below the hierarchy's mount point.
    pub cgroup: Option<String>,
    /// Inside the watched scope.
    pub watched: bool,
    /// All processes that an action would hit, with what protects are matched on.
    pub members: Vec<Member>,
}

/// A process that an action would hit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Who.
    pub process: ProcessId,
    /// Executable's path; empty for a kernel thread.
    pub exe: String,
    /// It has no memory of its own.
    pub kernel_thread: bool,
}

/// The requests of one policy for one batch, with the facts about each target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyOutput {
    /// Who.
    pub policy: PolicyRef,
    /// Number of the batch that was judged.
    pub batch: u64,
    /// Each request with the facts about its target.
    pub requests: Vec<(Request, TargetFacts)>,
}

/// Everything that can happen to the core.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// The policies that may ask, with what they are granted. Leases of policies that are gone
    /// are undone.
    Policies(Vec<(PolicyRef, Grant)>),
    /// A policy asks.
    Requests(PolicyOutput),
    /// What became of an effect.
    Outcome {
        /// Which.
        effect: EffectId,
        /// How it went.
        outcome: ActOutcome,
    },
    /// Records were lost.
    Lost {
        /// Whose; `None` if unknown.
        workload: Option<WorkloadId>,
        /// How many.
        count: u64,
    },
    /// Records did not reach one policy, whose own queue was full. Others were not concerned.
    Missed {
        /// Which policy.
        policy: String,
        /// How many records.
        count: u64,
    },
    /// The kernel did not run programs that one policy's evidence rests on. Whose events those were is unknown.
    Skipped {
        /// Which policy.
        policy: String,
        /// How many runs.
        count: u64,
    },
    /// The kill switch.
    Disarm(bool),
    /// Whether the audit log can be written.
    Recordable(bool),
    /// A lease found in the journal at start, whose agent is gone: undone at once.
    Orphan(Lease),
    /// Undo a lease (or all) by hand.
    Release(Option<LeaseId>),
    /// Time passed.
    Tick,
}

/// How an effect went, as observed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "result")]
pub enum ActOutcome {
    /// Done, and seen to be done.
    Done {
        /// What was read back ("cpu.max 20000 100000", "process gone after 3 ms").
        observed: String,
        /// The value before, for an undo.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        original: Option<String>,
    },
    /// The target was gone.
    Gone,
    /// Put off because the target was inside a watched driver call all the while.
    InDriverCall,
    /// On undo: somebody else had changed the value; it was left alone.
    ForeignChange {
        /// What was found.
        found: String,
    },
    /// It failed.
    Failed {
        /// Which system call or file, and why.
        error: String,
    },
}

/// What the runtime is to do. Carried out in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "effect")]
pub enum Effect {
    /// Write the decision to the audit log. Precedes its `Act` and `Alert`.
    Record {
        /// The decision.
        decision: Decision,
    },
    /// Carry out an action; its intent is recorded first.
    Act {
        /// Its number.
        id: EffectId,
        /// The decision that it follows from.
        decision: u64,
        /// Who asked.
        policy: String,
        /// On whom, as asked.
        target: Target,
        /// The cgroup for containments and for `Kill`.
        workload: Option<WorkloadId>,
        /// Its path, for people and for the journal.
        cgroup: Option<String>,
        /// What, after clamping.
        action: Action,
        /// The lease that this begins, tightens or loosens; `None` for signals.
        lease: Option<Lease>,
    },
    /// Tell people; its intent is recorded first.
    Alert {
        /// Its number.
        id: EffectId,
        /// The decision that it follows from.
        decision: u64,
        /// Who says so.
        policy: String,
        /// About whom.
        target: Target,
        /// The cgroup's path, where known.
        cgroup: Option<String>,
        /// How urgent.
        severity: Severity,
        /// One sentence.
        reason: String,
        /// The numbers behind it.
        evidence: Vec<Evidence>,
    },
    /// A lease lasts longer now.
    Renew {
        /// Which.
        lease: LeaseId,
        /// New end, `CLOCK_BOOTTIME` nanoseconds.
        until_ns: u64,
    },
    /// Put back what a lease changed, unless somebody else changed it since.
    Undo {
        /// Its number.
        id: EffectId,
        /// The lease.
        lease: Lease,
        /// "expired", "released", "policy gone", "disarmed", "orphaned", "target gone",
        /// "foreign change", "act failed", "no outcome".
        why: String,
    },
}
