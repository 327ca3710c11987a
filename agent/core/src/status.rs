//! What the core holds, for people and for the control socket.
//!
//! Invariant: a snapshot, taken without changing anything; no name in it needs a look-up.

use crate::core::Core;
use crate::held::Phase;
use crate::{Lease, Mode, Power, Verdict};
use serde::Serialize;
use std::collections::BTreeMap;

/// The core at one instant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// Time of the last step, `CLOCK_BOOTTIME` nanoseconds.
    pub now_ns: u64,
    /// The kill switch is on.
    pub disarmed: bool,
    /// The audit log can be written.
    pub recordable: bool,
    /// Actions of all policies in the last minute.
    pub host_actions_last_minute: u32,
    /// The host's budget a minute.
    pub host_actions_per_minute: u32,
    /// Records lost in bursts that still matter.
    pub recently_lost: u64,
    /// Signals and kills without an outcome yet.
    pub strikes_in_flight: usize,
    /// Each policy that may ask.
    pub policies: Vec<PolicyStatus>,
    /// Each lease that is not closed.
    pub leases: Vec<LeaseStatus>,
    /// Decisions since the start, by verdict; refusals by gate as `refused.GATE`.
    pub decisions: BTreeMap<String, u64>,
}

/// One policy, as the core sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyStatus {
    /// Name from the configuration.
    pub name: String,
    /// Observe or enforce.
    pub mode: Mode,
    /// Strongest power granted.
    pub max_power: Power,
    /// Actions in the last minute.
    pub actions_last_minute: u32,
    /// Actions in the last minute that would have been, had it been allowed to act.
    pub observed_last_minute: u32,
    /// Alerts in the last minute.
    pub alerts_last_minute: u32,
    /// Its budget a minute, of actions and of alerts alike.
    pub actions_per_minute: u32,
    /// Decisions about it since the agent's start, by verdict.
    pub decisions: BTreeMap<String, u64>,
}

/// One lease, with what is in its way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LeaseStatus {
    /// The lease.
    #[serde(flatten)]
    pub lease: Lease,
    /// Where it is in its life.
    pub phase: Phase,
    /// Attempts to undo or loosen it that failed in a row.
    pub failures: u32,
    /// What the last one said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Policies whose decisions are counted apart; a configuration has far fewer.
const MAX_TALLIED: usize = 1_024;

/// Decisions, counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    all: BTreeMap<String, u64>,
    policies: BTreeMap<String, BTreeMap<String, u64>>,
}

impl Tally {
    pub(crate) fn count(&mut self, policy: &str, verdict: &Verdict) {
        let name = match verdict {
            Verdict::Refused { reason } => format!("refused.{}", reason.gate()),
            other => other.name().to_owned(),
        };
        if self.policies.len() < MAX_TALLIED || self.policies.contains_key(policy) {
            let counts = self.policies.entry(policy.to_owned()).or_default();
            let count = counts.entry(name.clone()).or_default();
            *count = count.saturating_add(1);
        }
        let count = self.all.entry(name).or_default();
        *count = count.saturating_add(1);
    }
}

pub(crate) fn of(core: &Core) -> Status {
    let now_ns = core.now_ns;
    let policies = core.policies.iter().map(|(name, (_, grant))| PolicyStatus {
        name: name.clone(),
        mode: grant.mode,
        max_power: grant.max_power,
        actions_last_minute: core.acts.last_minute(name, now_ns),
        observed_last_minute: core.shadow.last_minute(name, now_ns),
        alerts_last_minute: core.alerts.last_minute(name, now_ns),
        actions_per_minute: grant.actions_per_minute,
        decisions: core.tally.policies.get(name).cloned().unwrap_or_default(),
    });
    let leases = core.held.values().map(|held| {
        let (failures, last_error) = held.trouble();
        LeaseStatus {
            lease: held.lease.clone(),
            phase: held.phase(),
            failures,
            last_error: last_error.map(ToOwned::to_owned),
        }
    });
    Status {
        now_ns,
        disarmed: core.disarmed,
        recordable: core.recordable,
        host_actions_last_minute: core.acts.host_last_minute(now_ns),
        host_actions_per_minute: core.config.host_actions_per_minute,
        recently_lost: core.losses.total(now_ns, core.loss_window_ns()),
        strikes_in_flight: core.shots.len(),
        policies: policies.collect(),
        leases: leases.collect(),
        decisions: core.tally.all.clone(),
    }
}
