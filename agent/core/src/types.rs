//! The words of the domain: who, what, how much, and why.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// Id in the initial PID namespace.
    pub pid: u32,
    /// Start, `CLOCK_BOOTTIME` nanoseconds (/proc shows it in clock ticks, rounded down).
    pub start_ns: u64,
}

/// The kernfs id of a cgroup: in the v2 hierarchy, or in v1's `cpu` hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkloadId(pub u64);

/// On whom to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// One process; containments act on its workload.
    Process(ProcessId),
    /// A cgroup.
    Workload(WorkloadId),
}

/// What a policy asks for, mildest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Tell people.
    Alert,
    /// Relative CPU weight on the cgroup v2 scale, 1–10,000 (default 100).
    CpuWeight(u32),
    /// Ceiling on CPU time in thousandths of one CPU.
    CpuQuota(u32),
    /// Stop the workload's tasks until the lease ends.
    Freeze,
    /// SIGTERM to the process.
    Terminate,
    /// SIGKILL to every process of the workload.
    Kill,
}

impl Action {
    /// The power that the operator must have granted for it.
    pub fn power(self) -> Power {
        match self {
            Action::Alert => Power::Alert,
            Action::CpuWeight(_) | Action::CpuQuota(_) => Power::Throttle,
            Action::Freeze => Power::Freeze,
            Action::Terminate => Power::Signal,
            Action::Kill => Power::Kill,
        }
    }

    /// Whether there is no way back.
    pub fn irreversible(self) -> bool {
        matches!(self, Action::Terminate | Action::Kill)
    }

    /// Short name, as in the audit log's `action` filter.
    pub fn name(self) -> &'static str {
        match self {
            Action::Alert => "alert",
            Action::CpuWeight(_) => "cpu_weight",
            Action::CpuQuota(_) => "cpu_quota",
            Action::Freeze => "freeze",
            Action::Terminate => "terminate",
            Action::Kill => "kill",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::CpuWeight(weight) => write!(f, "cpu weight {weight}"),
            Action::CpuQuota(permille) => {
                write!(
                    f,
                    "cpu quota {}.{} % of one CPU",
                    permille / 10,
                    permille % 10
                )
            }
            other => f.write_str(other.name()),
        }
    }
}

/// What an operator grants to a policy. A later one includes the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// Raise alerts.
    Alert,
    /// CPU weight and quota.
    Throttle,
    /// Stop tasks for a while.
    Freeze,
    /// SIGTERM.
    Signal,
    /// SIGKILL of a whole workload.
    Kill,
}

/// Whether a policy's requests are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Record what would have been done.
    #[default]
    Observe,
    /// Do it.
    Enforce,
}

/// How much a person should care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Look at it today.
    Warning,
    /// Look at it now.
    Critical,
}

/// One number that speaks for a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// What was measured.
    pub name: String,
    /// The measurement. One that is no finite number is written as text, which JSON can hold.
    #[serde(with = "crate::number")]
    pub value: f64,
    /// Its unit.
    pub unit: String,
}

/// What a policy asks for. Already bounded in size by the policy host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// On whom.
    pub target: Target,
    /// What.
    pub action: Action,
    /// How long a containment is to last unless renewed, milliseconds.
    pub lease_ms: u32,
    /// How urgent.
    pub severity: Severity,
    /// One sentence for the operator.
    pub reason: String,
    /// The numbers behind it.
    pub evidence: Vec<Evidence>,
}

/// Exactly which policy spoke.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PolicyRef {
    /// Name from the configuration (unique).
    pub name: String,
    /// Version from the manifest.
    pub version: String,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
    /// Counts up with each (re)load of this policy.
    pub generation: u64,
}

/// What the operator's configuration gives to one policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grant {
    /// Observe or enforce.
    pub mode: Mode,
    /// The strongest power.
    pub max_power: Power,
    /// Shortest time between two actions of this policy on one target, milliseconds. Renewals of
    /// a lease are not new actions.
    pub cooldown_ms: u64,
    /// Actions of this policy a minute (alerts have their own, equal, budget).
    pub actions_per_minute: u32,
    /// Longest lease, milliseconds; longer asks are clamped.
    pub max_lease_ms: u32,
    /// Lowest quota, thousandths of a CPU; harsher asks are clamped.
    pub min_quota_permille: u32,
}

/// What the operator's configuration gives to the host as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CoreConfig {
    /// Actions of all policies a minute.
    pub host_actions_per_minute: u32,
    /// After a loss, irreversible actions are refused for this long, milliseconds.
    pub loss_window_ms: u64,
    /// Leases at once on the whole host.
    pub max_leases: u32,
    /// The kill switch: nothing is acted on, leases are undone.
    pub disarmed: bool,
}

/// Number of an effect; joins an intent with its outcome. Unique within an agent's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EffectId(pub u64);

/// The core's answer to one request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum Verdict {
    /// It is being done; `clamped` says what was made milder.
    Granted {
        /// The effect that carries it out.
        effect: EffectId,
        /// In words, what the operator's limits changed.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        clamped: Option<String>,
    },
    /// A lease that is already in force was prolonged.
    Renewed {
        /// New end, `CLOCK_BOOTTIME` nanoseconds.
        until_ns: u64,
    },
    /// It would have been granted, but the policy only observes.
    Observed,
    /// It was not done.
    Refused {
        /// Why.
        reason: Reason,
    },
}

impl Verdict {
    /// Its name, as in the audit log.
    pub fn name(&self) -> &'static str {
        match self {
            Verdict::Granted { .. } => "granted",
            Verdict::Renewed { .. } => "renewed",
            Verdict::Observed => "observed",
            Verdict::Refused { .. } => "refused",
        }
    }
}

/// Why a request was refused, one variant a gate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "gate")]
pub enum Reason {
    /// The target is gone, or the pid belongs to another process now.
    Identity {
        /// What was found instead.
        detail: String,
    },
    /// The target is protected.
    Protected {
        /// By which rule.
        rule: String,
    },
    /// The target is outside the watched scope.
    OutOfScope,
    /// The operator did not grant that power.
    Power {
        /// Asked for.
        needs: Power,
        /// Granted.
        granted: Power,
    },
    /// The request makes no sense (a quota of 0, a weight out of range).
    Invalid {
        /// What is wrong with it.
        detail: String,
    },
    /// This policy acted on this target a moment ago.
    Cooldown {
        /// When it may again, `CLOCK_BOOTTIME` nanoseconds.
        until_ns: u64,
    },
    /// A budget is spent.
    Budget {
        /// "policy" or "host".
        scope: String,
        /// Its size a minute.
        per_minute: u32,
    },
    /// Too many leases at once.
    LeaseLimit {
        /// The limit.
        limit: u32,
    },
    /// Events about others were lost in the window and the action cannot be undone.
    Lossy {
        /// How many.
        lost: u64,
        /// Of these: runs of programs that the kernel skipped, whosoever events they were.
        #[serde(default)]
        skipped: u64,
    },
    /// The kill switch is on.
    Disarmed,
    /// The audit log cannot be written and the action cannot be undone.
    Unrecordable,
}

impl Reason {
    /// The gate's name, as in the audit log.
    pub fn gate(&self) -> &'static str {
        match self {
            Reason::Identity { .. } => "identity",
            Reason::Protected { .. } => "protected",
            Reason::OutOfScope => "out_of_scope",
            Reason::Power { .. } => "power",
            Reason::Invalid { .. } => "invalid",
            Reason::Cooldown { .. } => "cooldown",
            Reason::Budget { .. } => "budget",
            Reason::LeaseLimit { .. } => "lease_limit",
            Reason::Lossy { .. } => "lossy",
            Reason::Disarmed => "disarmed",
            Reason::Unrecordable => "unrecordable",
        }
    }
}

/// One decision, complete enough to be explained from the audit log alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Counts up; unique within an agent's run.
    pub id: u64,
    /// Batch whose events led to it.
    pub batch: u64,
    /// Who asked.
    pub policy: PolicyRef,
    /// What was asked for.
    pub request: Request,
    /// The answer.
    #[serde(flatten)]
    pub verdict: Verdict,
}
