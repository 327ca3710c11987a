//! What a request must pass before it becomes an effect.
//!
//! The gates, in order; the first that refuses gives the reason:
//!
//! | # | gate       | refuses when                                                       | alerts |
//! |---|------------|--------------------------------------------------------------------|--------|
//! | 1 | identity   | the target is gone, is another one now, or cannot be examined      | pass   |
//! | 2 | protected  | one process of the target, or its cgroup, is protected             | pass   |
//! | 3 | scope      | the target is outside the watched scope                            | if alive |
//! | 4 | power      | the operator did not grant it                                      | yes    |
//! | 5 | valid      | the request makes no sense                                         | yes    |
//! | 6 | cooldown   | the policy acted on the target a moment ago, or it just failed     | own    |
//! | 7 | budget     | the policy's or the host's actions of the last minute are used up  | own    |
//! | 8 | leases     | a new lease would be one too many                                  | –      |
//! | 9 | loss       | it cannot be undone and events about others were lost lately       | –      |
//! | 10 | record    | it cannot be undone and the audit log cannot be written            | –      |
//! | 11 | disarmed  | the kill switch is on                                              | pass   |
//!
//! Renewing a lease passes 1–5 only. An alert acts on nobody, so that it may tell of what is
//! dead or protected.
//!
//! Invariant: no gate has an effect; what an action costs is booked by the core after the last.

use crate::loss::Lost;
use crate::{Action, Grant, Knob, ProtectList, Reason, Request, Target, TargetFacts, WorkloadId};

/// Shortest lease that can be asked for, milliseconds: one window of samples.
pub const MIN_LEASE_MS: u32 = 100;

/// Strongest and weakest CPU weight, as in cgroup v2's `cpu.weight`.
const WEIGHTS: std::ops::RangeInclusive<u32> = 1..=10_000;

/// Largest quota that can be asked for, thousandths of a CPU (Linux is built for up to 8,192).
const MAX_QUOTA_PERMILLE: u32 = 8_192_000;

/// What a request comes to, after clamping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Tell people.
    Alert,
    /// Hold a knob for a while.
    Contain(Containment),
    /// What cannot be undone.
    Strike {
        /// What is hit: the process for SIGTERM, the workload for SIGKILL.
        target: Target,
    },
}

/// A knob to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Containment {
    pub(crate) workload: WorkloadId,
    pub(crate) cgroup: String,
    pub(crate) knob: Knob,
    pub(crate) value: u32,
    pub(crate) lease_ns: u64,
    pub(crate) clamped: Option<String>,
}

/// Gates 1 to 5: they look at nothing but the request and its target.
pub(crate) fn request(
    protect: &ProtectList,
    grant: &Grant,
    request: &Request,
    facts: &TargetFacts,
) -> Result<Step, Reason> {
    if request.action == Action::Alert {
        if facts.alive && !facts.watched {
            return Err(Reason::OutOfScope);
        }
    } else {
        identity(request, facts)?;
        if let Some(protection) = protect.check(&request.target, facts) {
            return Err(Reason::Protected {
                rule: protection.rule,
            });
        }
        if !facts.watched {
            return Err(Reason::OutOfScope);
        }
    }
    power(grant, request.action)?;
    valid(grant, request, facts)
}

fn identity(request: &Request, facts: &TargetFacts) -> Result<(), Reason> {
    let refuse = |detail: &str| {
        Err(Reason::Identity {
            detail: detail.to_owned(),
        })
    };
    if !facts.alive {
        return refuse(&facts.detail);
    }
    if facts.members.is_empty() {
        return refuse("no process of the target is known, so none can be checked");
    }
    match request.target {
        // By pid alone: start times from /proc are rounded, and `alive` vouches for them.
        Target::Process(process)
            if !facts
                .members
                .iter()
                .any(|member| member.process.pid == process.pid) =>
        {
            refuse("the process is not among the target's members")
        }
        Target::Workload(workload) if facts.workload != Some(workload) => {
            refuse("the facts are about another workload")
        }
        _ if request.action == Action::Terminate => Ok(()),
        _ if facts.workload.is_none() || facts.cgroup.is_none() => {
            refuse("the target's cgroup is not known")
        }
        _ => Ok(()),
    }
}

fn power(grant: &Grant, action: Action) -> Result<(), Reason> {
    let (needs, granted) = (action.power(), grant.max_power);
    if needs > granted {
        return Err(Reason::Power { needs, granted });
    }
    Ok(())
}

fn valid(grant: &Grant, request: &Request, facts: &TargetFacts) -> Result<Step, Reason> {
    let refuse = |detail: String| Err(Reason::Invalid { detail });
    if let Some(evidence) = request
        .evidence
        .iter()
        .find(|evidence| !evidence.value.is_finite())
    {
        return refuse(format!(
            "evidence {:?} is not a finite number",
            evidence.name
        ));
    }
    match request.action {
        Action::Alert => Ok(Step::Alert),
        Action::CpuWeight(weight) if !WEIGHTS.contains(&weight) => {
            refuse(format!("cpu weight {weight} is not within 1–10000"))
        }
        Action::CpuWeight(weight) => contain(grant, request, facts, Knob::CpuWeight, weight),
        Action::CpuQuota(0) => refuse("a cpu quota of 0 is a freeze without an end".to_owned()),
        Action::CpuQuota(permille) if permille > MAX_QUOTA_PERMILLE => refuse(format!(
            "a cpu quota of {permille} thousandths of a CPU limits nothing"
        )),
        Action::CpuQuota(permille) => contain(grant, request, facts, Knob::CpuQuota, permille),
        Action::Freeze => contain(grant, request, facts, Knob::Freeze, 1),
        Action::Terminate => match request.target {
            Target::Process(_) => Ok(Step::Strike {
                target: request.target,
            }),
            Target::Workload(_) => refuse("SIGTERM goes to one process".to_owned()),
        },
        Action::Kill => match facts.workload {
            Some(workload) => Ok(Step::Strike {
                target: Target::Workload(workload),
            }),
            None => refuse("the target's cgroup is not known".to_owned()),
        },
    }
}

fn contain(
    grant: &Grant,
    request: &Request,
    facts: &TargetFacts,
    knob: Knob,
    asked: u32,
) -> Result<Step, Reason> {
    let refuse = |detail: String| Err(Reason::Invalid { detail });
    let (Some(workload), Some(cgroup)) = (facts.workload, facts.cgroup.clone()) else {
        return refuse("the target's cgroup is not known".to_owned());
    };
    if request.lease_ms < MIN_LEASE_MS {
        let lease_ms = request.lease_ms;
        return refuse(format!(
            "a lease of {lease_ms} ms is shorter than {MIN_LEASE_MS} ms"
        ));
    }
    let mut clamps = Vec::new();
    let lease_ms = request.lease_ms.min(grant.max_lease_ms);
    if lease_ms == 0 {
        return refuse("the operator allows this policy no leases".to_owned());
    }
    if lease_ms < request.lease_ms {
        clamps.push(format!("lease {} ms to {lease_ms} ms", request.lease_ms));
    }
    let value = strictest_value(grant, knob).max(asked);
    if value > asked {
        clamps.push(format!("quota {asked} to {value} thousandths of a CPU"));
    }
    Ok(Step::Contain(Containment {
        workload,
        cgroup,
        knob,
        value,
        lease_ns: u64::from(lease_ms).saturating_mul(1_000_000),
        clamped: (!clamps.is_empty()).then(|| clamps.join(", ")),
    }))
}

/// The strictest value that the operator allows to the policy.
pub(crate) fn strictest_value(grant: &Grant, knob: Knob) -> u32 {
    match knob {
        Knob::CpuQuota => grant.min_quota_permille,
        Knob::CpuWeight | Knob::Freeze => 0,
    }
}

/// What gates 6 to 11 look at, gathered by the core.
#[derive(Clone, Debug)]
pub(crate) struct Circumstances {
    /// End of the cooldown or of the wait after a failure, if one is running.
    pub(crate) cooling_until_ns: Option<u64>,
    /// The refusal of a budget, if it is used up.
    pub(crate) budget: Result<(), Reason>,
    /// Leases at present and the limit, if this would be a new one.
    pub(crate) leases: Option<(usize, u32)>,
    /// Records lost about others, if the action cannot be undone.
    pub(crate) lost: Lost,
    /// The action cannot be undone and could not be recorded.
    pub(crate) unrecordable: bool,
    /// The kill switch.
    pub(crate) disarmed: bool,
}

/// Gates 6 to 11.
pub(crate) fn circumstances(around: Circumstances) -> Result<(), Reason> {
    if let Some(until_ns) = around.cooling_until_ns {
        return Err(Reason::Cooldown { until_ns });
    }
    around.budget?;
    if let Some((leases, limit)) = around.leases
        && leases >= limit as usize
    {
        return Err(Reason::LeaseLimit { limit });
    }
    let Lost { records, skipped } = around.lost;
    let lost = records.saturating_add(skipped);
    if lost > 0 {
        return Err(Reason::Lossy { lost, skipped });
    }
    if around.unrecordable {
        return Err(Reason::Unrecordable);
    }
    if around.disarmed {
        return Err(Reason::Disarmed);
    }
    Ok(())
}
