//! What the demo has seen so far, from the service, the audit log and the cgroup files.
//!
//! Invariants: pure; times are since the demo's begin and come in from outside. What the audit
//! log says was set or put back counts only with the kernel's own value beside it.

use super::cgroups::Quota;
use super::screen::Tone;
use crate::audit::{Entry, PolicyChange};
use palisade_core::{ActOutcome, Action, Decision, EffectId, Evidence, Knob, Lease, Verdict};
use std::collections::BTreeMap;
use std::time::Duration;

/// One line of the service: a window of requests.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Window {
    pub(super) from: Duration,
    pub(super) to: Duration,
    pub(super) requests: u64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

/// What a policy said about a culprit when it asked for the throttle.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Finding {
    pub(super) at: Duration,
    /// Of its record in the audit log.
    pub(super) seq: u64,
    pub(super) policy: String,
    pub(super) reason: String,
}

/// A ceiling that the agent set.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Throttle {
    pub(super) at: Duration,
    /// What the audit log says, thousandths of one CPU.
    pub(super) permille: u32,
    /// What the cgroup file says.
    pub(super) found: Quota,
}

/// A ceiling that the agent took back.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Undo {
    pub(super) at: Duration,
    pub(super) why: String,
    /// What the cgroup file says.
    pub(super) found: Quota,
}

/// A workload that does harm, and what became of it.
#[derive(Clone, Debug)]
pub(super) struct Culprit {
    /// Of the workload, and of its cgroup.
    pub(super) name: &'static str,
    /// The policy that is to find it.
    pub(super) policy: &'static str,
    pub(super) cgroup: String,
    /// Its ceiling before the demo.
    pub(super) original: Quota,
    /// What the policy's reason must name, if anything.
    pub(super) must_name: Option<String>,
    pub(super) started: Option<Duration>,
    pub(super) stopped: Option<Duration>,
    pub(super) finding: Option<Finding>,
    pub(super) throttle: Option<Throttle>,
    pub(super) undo: Option<Undo>,
    /// When, and the CPU time used until then.
    pub(super) cpu: Vec<(Duration, Duration)>,
    /// The last refusal of a request about it.
    pub(super) refused: Option<String>,
}

impl Culprit {
    pub(super) fn new(
        name: &'static str,
        policy: &'static str,
        cgroup: String,
        original: Quota,
        must_name: Option<String>,
    ) -> Self {
        Self {
            name,
            policy,
            cgroup,
            original,
            must_name,
            started: None,
            stopped: None,
            finding: None,
            throttle: None,
            undo: None,
            cpu: Vec::new(),
            refused: None,
        }
    }

    /// While it ran unhindered.
    pub(super) fn free(&self) -> Option<(Duration, Duration)> {
        Some((self.started?, self.throttle.as_ref()?.at))
    }

    /// While it was throttled and still running.
    pub(super) fn held(&self) -> Option<(Duration, Duration)> {
        let end = self.stopped?;
        let end = self.undo.as_ref().map_or(end, |undo| undo.at.min(end));
        Some((self.throttle.as_ref()?.at, end))
    }

    /// Part of one CPU that it used in that time.
    pub(super) fn cpu_share(&self, from: Duration, to: Duration) -> Option<f64> {
        let first = self.cpu.iter().find(|(at, _)| *at >= from)?;
        let last = self.cpu.iter().rev().find(|(at, _)| *at <= to)?;
        let time = last.0.checked_sub(first.0).filter(|time| !time.is_zero())?;
        Some(last.1.saturating_sub(first.1).as_secs_f64() / time.as_secs_f64())
    }
}

/// Something to tell the person.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Told {
    pub(super) at: Duration,
    pub(super) who: String,
    pub(super) tone: Tone,
    pub(super) text: String,
}

/// Everything that was seen.
#[derive(Clone, Debug)]
pub(super) struct Case {
    /// `CLOCK_BOOTTIME` nanoseconds at the demo's begin.
    begin_ns: u64,
    /// cgroup of the service.
    service: String,
    pub(super) windows: Vec<Window>,
    pub(super) culprits: Vec<Culprit>,
    /// The agent has begun to write its log.
    pub(super) agent_started: bool,
    /// Policies that are loaded.
    pub(super) policies: Vec<String>,
    /// Events that the agent says it lost.
    pub(super) lost: u64,
    /// A containment that hit the service.
    pub(super) service_hit: Option<String>,
    acts: BTreeMap<EffectId, (usize, u32)>,
    undos: BTreeMap<EffectId, (usize, String)>,
    told: Vec<(String, &'static str, Option<usize>)>,
}

impl Case {
    pub(super) fn new(begin_ns: u64, service: String, culprits: Vec<Culprit>) -> Self {
        Self {
            begin_ns,
            service,
            windows: Vec::new(),
            culprits,
            agent_started: false,
            policies: Vec::new(),
            lost: 0,
            service_hit: None,
            acts: BTreeMap::new(),
            undos: BTreeMap::new(),
            told: Vec::new(),
        }
    }

    /// Takes in record `seq` of the audit log, written at `boot_ns` (`CLOCK_BOOTTIME`). `quota`
    /// asks the kernel for a workload's ceiling now.
    pub(super) fn hear(
        &mut self,
        seq: u64,
        boot_ns: u64,
        entry: &Entry,
        quota: impl Fn(&str) -> Quota,
    ) -> Option<Told> {
        let at = Duration::from_nanos(boot_ns.saturating_sub(self.begin_ns));
        let told = match entry {
            Entry::Start { policies, .. } => {
                self.agent_started = true;
                self.policies
                    .extend(policies.iter().map(|policy| policy.name.clone()));
                None
            }
            Entry::Policy {
                what,
                policy,
                detail,
            } => self.hear_policy(*what, &policy.name, detail),
            Entry::Decision { decision, who } => {
                let culprit = who
                    .cgroup
                    .as_deref()
                    .and_then(|cgroup| self.culprit(cgroup));
                self.hear_decision(at, seq, decision, culprit)
            }
            Entry::Intent {
                effect,
                action,
                lease: Some(lease),
                cgroup,
                ..
            } => {
                self.hear_intent(*effect, *action, lease, cgroup.as_deref());
                None
            }
            Entry::Outcome { effect, outcome } => self.hear_outcome(at, *effect, outcome, quota),
            Entry::UndoIntent { effect, lease, why } => {
                if let Some(index) = self.culprit(&lease.cgroup) {
                    self.undos.insert(*effect, (index, why.clone()));
                }
                None
            }
            Entry::UndoOutcome {
                effect, outcome, ..
            } => self.hear_undo(at, *effect, outcome, quota),
            Entry::Loss { source, count, .. } => {
                self.lost += count;
                Some((
                    "agent".to_owned(),
                    Tone::Bad,
                    format!("lost {count} events ({source})"),
                ))
            }
            _ => None,
        };
        told.map(|(who, tone, text)| Told {
            at,
            who,
            tone,
            text,
        })
    }

    /// Whose cgroup that is.
    fn culprit(&self, cgroup: &str) -> Option<usize> {
        self.culprits
            .iter()
            .position(|culprit| culprit.cgroup == cgroup)
    }

    fn hear_policy(&mut self, what: PolicyChange, name: &str, detail: &str) -> Option<Saying> {
        match what {
            PolicyChange::Loaded | PolicyChange::Reloaded => {
                self.policies.push(name.to_owned());
                None
            }
            PolicyChange::Unloaded => None,
            other => Some((name.to_owned(), Tone::Bad, format!("{other:?}: {detail}"))),
        }
    }

    fn hear_decision(
        &mut self,
        at: Duration,
        seq: u64,
        decision: &Decision,
        culprit: Option<usize>,
    ) -> Option<Saying> {
        let request = &decision.request;
        let policy = &decision.policy;
        let (what, tone) = match &decision.verdict {
            Verdict::Granted { .. } => ("granted", Tone::Loud),
            Verdict::Renewed { .. } => return None,
            Verdict::Observed => ("observed", Tone::Plain),
            Verdict::Refused { reason } => {
                if let Some(index) = culprit {
                    self.culprits[index].refused =
                        Some(format!("{} by {reason:?}", request.action));
                }
                return None;
            }
        };
        let granted = matches!(decision.verdict, Verdict::Granted { .. });
        if let Some(index) = culprit
            && granted
            && matches!(request.action, Action::CpuQuota(_))
            && self.culprits[index].finding.is_none()
        {
            self.culprits[index].finding = Some(Finding {
                at,
                seq,
                policy: policy.name.clone(),
                reason: request.reason.clone(),
            });
        }
        // A policy that goes on asking is news only once.
        let key = (policy.name.clone(), request.action.name(), culprit);
        if self.told.contains(&key) {
            return None;
        }
        self.told.push(key);
        // The sentence once; what follows for the same culprit is only what is done about it.
        let spoken = self.told.iter().any(|(name, action, whom)| {
            *name == policy.name && *action != request.action.name() && *whom == culprit
        });
        let text = if spoken {
            let evidence = evidence(&request.evidence);
            format!("asks for {} ({what}){evidence}", request.action)
        } else {
            format!("saw: {} → {} ({what})", request.reason, request.action)
        };
        Some((policy.name.clone(), tone, text))
    }

    fn hear_intent(
        &mut self,
        effect: EffectId,
        action: Action,
        lease: &Lease,
        cgroup: Option<&str>,
    ) {
        let cgroup = cgroup.unwrap_or(&lease.cgroup);
        if cgroup == self.service {
            self.service_hit = Some(action.to_string());
        }
        if let (Some(index), Knob::CpuQuota) = (self.culprit(cgroup), lease.knob) {
            self.acts.insert(effect, (index, lease.value));
        }
    }

    fn hear_outcome(
        &mut self,
        at: Duration,
        effect: EffectId,
        outcome: &ActOutcome,
        quota: impl Fn(&str) -> Quota,
    ) -> Option<Saying> {
        let (index, permille) = self.acts.remove(&effect)?;
        let culprit = &mut self.culprits[index];
        let ActOutcome::Done { observed, .. } = outcome else {
            let text = format!("throttling {} did not work: {outcome:?}", culprit.name);
            return Some(("agent".to_owned(), Tone::Bad, text));
        };
        let found = quota(culprit.name);
        let text = format!("throttled {}: {observed}", culprit.name);
        // A second throttle (after an undo) must be undone as well; the first one is measured.
        culprit.undo = None;
        culprit.throttle.get_or_insert(Throttle {
            at,
            permille,
            found,
        });
        Some(("agent".to_owned(), Tone::Good, text))
    }

    fn hear_undo(
        &mut self,
        at: Duration,
        effect: EffectId,
        outcome: &ActOutcome,
        quota: impl Fn(&str) -> Quota,
    ) -> Option<Saying> {
        let (index, why) = self.undos.remove(&effect)?;
        let culprit = &mut self.culprits[index];
        let ActOutcome::Done { observed, .. } = outcome else {
            let text = format!(
                "undoing the throttle of {} did not work: {outcome:?}",
                culprit.name
            );
            return Some(("agent".to_owned(), Tone::Bad, text));
        };
        let text = format!(
            "throttle of {} undone (lease {why}): {observed}",
            culprit.name
        );
        culprit.undo = Some(Undo {
            at,
            why,
            found: quota(culprit.name),
        });
        Some(("agent".to_owned(), Tone::Good, text))
    }
}

/// Who, how, what.
type Saying = (String, Tone, String);

/// Numbers shown on the screen; the audit log has all of them, the weightiest first.
const SHOWN_EVIDENCE: usize = 3;

fn evidence(evidence: &[Evidence]) -> String {
    if evidence.is_empty() {
        return String::new();
    }
    let parts: Vec<String> = evidence
        .iter()
        .take(SHOWN_EVIDENCE)
        .map(|one| {
            let digits = if one.value.fract() == 0.0 { 0 } else { 2 };
            let unit = if one.unit.is_empty() { "" } else { " " };
            format!("{} {:.digits$}{unit}{}", one.name, one.value, one.unit)
        })
        .collect();
    format!(" [{}]", parts.join(", "))
}
