//! The executor: one match over [`Effect`].
//!
//! Invariants:
//! - The journal has the containment before the cgroup has it; if the journal cannot be written,
//!   nothing is done ("no lease without an undo"). That holds for the freeze within a kill, too; a
//!   kill that cannot be journalled goes without it.
//! - It never loosens: where somebody else's value is at least as strict as the one asked for, that
//!   value stays, the outcome says so, and there is nothing to undo.
//! - A second act under a lease keeps the first original value. If somebody else changed the value in
//!   between, theirs stays and the outcome is a foreign change: two controllers must not fight.
//! - Nothing is squeezed or frozen while inside a watched driver call, so far as can be seen: a
//!   task may enter one in the microseconds between the last look and the write.
//! - Every wait has a bound (see [`ExecutorOptions`]).
//!
//! It must not judge an effect; gates are the core's. What is refused here is the second line:
//! root cgroups, PID 1, the agent and its ancestors.

use super::alert::{Alert, AlertCounts, AlertOptions, Alerts};
use super::cgroup::{CgroupDir, CgroupError, KnobHandle, Setting, Version, freezer_of};
use super::journal::{Entry, Journal};
use super::restore::{is_final, is_ours, outcome_of, restore};
use super::signal;
use crate::identity::layout::{Flavour, Layout};
use palisade_core::{
    ActOutcome, Action, Effect, Knob, Lease, LeaseId, Severity, Target, WorkloadId,
};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often the in-driver-call question is asked while waiting.
const DRIVER_LOOK: Duration = Duration::from_micros(200);

/// What the runtime tells the executor.
pub struct ExecutorOptions {
    /// Whether a task of the workload is inside a watched driver call right now.
    pub in_driver_call: Box<dyn Fn(WorkloadId) -> bool + Send>,
    /// Longest wait for the workload to leave driver calls.
    pub driver_call_wait: Duration,
    /// Longest wait for a freezer to have stopped all tasks; then it is thawed again.
    pub freeze_wait: Duration,
    /// How long to watch for a process to end after SIGTERM. It is not an error if it does not.
    pub terminate_wait: Duration,
    /// Longest wait for a killed workload to be empty.
    pub kill_wait: Duration,
    /// Where alerts go besides the log.
    pub alerts: AlertOptions,
}

impl Default for ExecutorOptions {
    fn default() -> Self {
        Self {
            in_driver_call: Box::new(|_| false),
            driver_call_wait: Duration::from_millis(250),
            freeze_wait: Duration::from_millis(500),
            terminate_wait: Duration::from_millis(200),
            kill_wait: Duration::from_secs(2),
            alerts: AlertOptions::default(),
        }
    }
}

impl fmt::Debug for ExecutorOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecutorOptions")
            .field("driver_call_wait", &self.driver_call_wait)
            .field("alerts", &self.alerts)
            .finish_non_exhaustive()
    }
}

/// Carries effects out, one at a time, blocking; lives on its own thread.
#[derive(Debug)]
pub struct Executor {
    layout: Layout,
    journal: Journal,
    options: ExecutorOptions,
    alerts: Alerts,
    /// Open directories of the leases in force.
    held: HashMap<LeaseId, KnobHandle>,
}

impl Executor {
    /// Starts the webhook's thread if there is a webhook.
    pub fn new(layout: Layout, journal: Journal, options: ExecutorOptions) -> Self {
        Self {
            layout,
            journal,
            alerts: Alerts::new(options.alerts.clone()),
            options,
            held: HashMap::new(),
        }
    }

    /// The journal, for status.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The webhook's counters.
    pub fn alert_counts(&self) -> Arc<AlertCounts> {
        self.alerts.counts()
    }

    /// Raises an alert that no request led to: a policy was refused or ejected.
    pub fn tell(&mut self, policy: &str, severity: Severity, text: &str) -> ActOutcome {
        self.alerts.raise(&Alert {
            effect: None,
            decision: None,
            policy,
            target: None,
            cgroup: None,
            severity,
            reason: text,
            evidence: &[],
        })
    }

    /// Carries out one effect and says what was observed. `None` for those that change nothing
    /// on the host (`Record`, `Renew`; the latter goes into the journal).
    pub fn perform(&mut self, effect: &Effect) -> Option<ActOutcome> {
        match effect {
            Effect::Record { .. } => None,
            Effect::Renew { lease, until_ns } => {
                if let Err(error) = self.journal.renew(*lease, *until_ns) {
                    // The keeper may step in early, which is the safe side.
                    tracing::error!(%error, lease = lease.0, "a renewal is not in the journal");
                }
                None
            }
            Effect::Alert {
                id,
                decision,
                policy,
                target,
                cgroup,
                severity,
                reason,
                evidence,
            } => Some(self.alerts.raise(&Alert {
                effect: Some(*id),
                decision: Some(*decision),
                policy,
                target: Some(*target),
                cgroup: cgroup.as_deref(),
                severity: *severity,
                reason,
                evidence,
            })),
            Effect::Act {
                policy,
                target,
                workload,
                cgroup,
                action,
                lease,
                ..
            } => Some(match (action, lease) {
                (Action::CpuQuota(value), Some(lease)) => {
                    self.contain(lease, Knob::CpuQuota, *value)
                }
                (Action::CpuWeight(value), Some(lease)) => {
                    self.contain(lease, Knob::CpuWeight, *value)
                }
                (Action::Freeze, Some(lease)) => self.contain(lease, Knob::Freeze, 1),
                (Action::Terminate, _) => self.terminate(*target, *workload),
                (Action::Kill, _) => self.kill(policy, *workload, cgroup.as_deref()),
                (Action::CpuQuota(_) | Action::CpuWeight(_) | Action::Freeze, None) => {
                    failed("a containment needs a lease")
                }
                (Action::Alert, _) => failed("an alert is an effect of its own"),
            }),
            Effect::Undo { lease, why, .. } => Some(self.undo(lease, why)),
        }
    }

    fn contain(&mut self, lease: &Lease, knob: Knob, value: u32) -> ActOutcome {
        self.try_contain(lease, knob, value)
            .unwrap_or_else(outcome_of)
    }

    fn try_contain(
        &mut self,
        lease: &Lease,
        knob: Knob,
        value: u32,
    ) -> Result<ActOutcome, CgroupError> {
        let handle = match self.held.remove(&lease.id) {
            Some(handle) => handle,
            None => self.handle(lease, knob)?,
        };
        let Some(asked) = Setting::asked(knob, value, handle.version) else {
            return Ok(failed(&format!("{value} is no value for {knob:?}")));
        };
        let current = handle.read()?;
        let Some(plan) = plan(self.journal.entry(lease.id), knob, current, asked) else {
            let found = handle.shown(&current);
            self.held.insert(lease.id, handle);
            return Ok(ActOutcome::ForeignChange { found });
        };
        if plan.set == current && !plan.ours {
            return Ok(ActOutcome::Done {
                observed: format!(
                    "{} (set by somebody else and at least as strict; left alone)",
                    handle.shown(&current)
                ),
                original: Some(handle.shown(&current)),
            });
        }
        let tighter = !current.at_least_as_strict_as(&plan.set);
        if tighter && knob != Knob::CpuWeight && !self.left_driver_calls(lease.workload) {
            if plan.ours {
                self.held.insert(lease.id, handle);
            }
            return Ok(ActOutcome::InDriverCall);
        }
        let entry = Entry {
            before: plan.ours.then(|| current.to_string()),
            ..entry(lease, &handle, plan.original, plan.set)
        };
        if let Err(error) = self.journal.intent(entry) {
            return Ok(failed(&format!("not done, because {error}")));
        }
        let wrong = if plan.set == current {
            None
        } else {
            match handle.set(&plan.set, self.options.freeze_wait) {
                Ok(found) if found == plan.set => None,
                Ok(found) => Some(CgroupError::Refused(format!(
                    "wrote {} but read {}",
                    handle.shown(&plan.set),
                    handle.shown(&found)
                ))),
                Err(CgroupError::Gone) => {
                    self.forget(lease.id, "gone");
                    return Ok(ActOutcome::Gone);
                }
                Err(error) => Some(error),
            }
        };
        if let Some(error) = wrong {
            return Ok(self.take_back(lease, handle, current, plan.ours, error));
        }
        let outcome = ActOutcome::Done {
            observed: handle.shown(&plan.set),
            original: Some(handle.shown(&plan.original)),
        };
        if plan.set == plan.original {
            self.forget(lease.id, "loosened to the original value");
        } else {
            self.confirm(lease.id, &plan.set);
            self.held.insert(lease.id, handle);
        }
        Ok(outcome)
    }

    /// After a write that failed or did not take: back to what was there before it.
    fn take_back(
        &mut self,
        lease: &Lease,
        handle: KnobHandle,
        before: Setting,
        was_ours: bool,
        error: CgroupError,
    ) -> ActOutcome {
        let back = match handle.read() {
            Ok(now) if now == before && !matches!(error, CgroupError::Timeout(_)) => true,
            _ => handle
                .set(&before, self.options.freeze_wait)
                .is_ok_and(|now| now == before),
        };
        let mut text = error.to_string();
        if back && was_ours {
            self.confirm(lease.id, &before);
            self.held.insert(lease.id, handle);
        } else if back {
            self.forget(lease.id, "not done");
        } else {
            // The intent stays in the journal: an undo, the keeper or the next start deals with it.
            text.push_str("; the value before could not be put back");
            self.held.insert(lease.id, handle);
        }
        failed(&text)
    }

    fn handle(&self, lease: &Lease, knob: Knob) -> Result<KnobHandle, CgroupError> {
        let workload = self.pin(lease.workload, &lease.cgroup)?;
        let (version, dir) = match knob {
            Knob::Freeze => freezer_of(&self.layout, &workload, &lease.cgroup)?,
            Knob::CpuQuota | Knob::CpuWeight => {
                if workload.is_root() {
                    return Err(CgroupError::Refused(
                        "the root cgroup is not a workload".to_owned(),
                    ));
                }
                let version = match self.layout.flavour {
                    Flavour::V2 => Version::V2,
                    Flavour::V1 | Flavour::Hybrid => Version::V1,
                };
                (version, workload)
            }
        };
        Ok(KnobHandle { dir, version, knob })
    }

    fn pin(&self, workload: WorkloadId, cgroup: &str) -> Result<CgroupDir, CgroupError> {
        CgroupDir::pin(&self.layout.id_dir(cgroup), workload.0)
    }

    fn left_driver_calls(&self, workload: WorkloadId) -> bool {
        let start = Instant::now();
        while (self.options.in_driver_call)(workload) {
            if start.elapsed() >= self.options.driver_call_wait {
                return false;
            }
            sleep(DRIVER_LOOK);
        }
        true
    }

    fn confirm(&mut self, lease: LeaseId, set: &Setting) {
        if let Err(error) = self.journal.held(lease, &set.to_string()) {
            // The intent is there, which is enough for an undo.
            tracing::error!(%error, lease = lease.0, "a lease is not confirmed in the journal");
        }
    }

    fn forget(&mut self, lease: LeaseId, how: &str) {
        self.held.remove(&lease);
        if self.journal.entry(lease).is_none() {
            return;
        }
        if let Err(error) = self.journal.undone(lease, how) {
            // It is looked at once more after the next start, and found to be as it was.
            tracing::error!(%error, lease = lease.0, "the end of a lease is not in the journal");
        }
    }

    fn undo(&mut self, lease: &Lease, why: &str) -> ActOutcome {
        let Some(entry) = self.journal.entry(lease.id) else {
            return ActOutcome::Done {
                observed: "nothing of ours is in force".to_owned(),
                original: None,
            };
        };
        let outcome = restore(entry, self.held.get(&lease.id));
        if is_final(&outcome) {
            self.forget(lease.id, why);
        }
        outcome
    }

    fn terminate(&self, target: Target, workload: Option<WorkloadId>) -> ActOutcome {
        match target {
            Target::Process(process) => {
                signal::terminate(&self.layout, process, workload, self.options.terminate_wait)
            }
            Target::Workload(_) => failed("SIGTERM goes to one process, not to a workload"),
        }
    }

    fn kill(
        &mut self,
        policy: &str,
        workload: Option<WorkloadId>,
        cgroup: Option<&str>,
    ) -> ActOutcome {
        let (Some(workload), Some(cgroup)) = (workload, cgroup) else {
            return failed("a kill needs the workload's cgroup");
        };
        let wait = self.options.kill_wait;
        let freeze = signal::freeze_of_kill(policy, workload, cgroup, wait);
        let result = self.pin(workload, cgroup).and_then(|dir| {
            let freezer = freezer_of(&self.layout, &dir, cgroup);
            signal::kill(&self.layout, &dir, cgroup, freezer, wait, |freezer| {
                journal_freeze(&mut self.journal, &freeze, freezer)
            })
        });
        let thawed = self.undo(&freeze, "the kill is over");
        if !is_final(&thawed) {
            // The intent stays in the journal: the keeper or the next start thaws it.
            tracing::error!(?thawed, cgroup, "not thawed after a kill");
        }
        result.unwrap_or_else(outcome_of)
    }
}

struct Plan {
    original: Setting,
    set: Setting,
    /// The value that is in force now is our own, under this lease.
    ours: bool,
}

/// What to set, given what the journal has about this lease and what is there now; `None` if
/// somebody else changed the value under the lease. Pure.
fn plan(entry: Option<&Entry>, knob: Knob, current: Setting, asked: Setting) -> Option<Plan> {
    let original = match entry {
        None => current,
        Some(entry) if is_ours(entry, &current) => Setting::parse(knob, &entry.original)?,
        Some(_) => return None,
    };
    let set = if original.at_least_as_strict_as(&asked) {
        original
    } else {
        asked
    };
    Some(Plan {
        original,
        set,
        ours: entry.is_some(),
    })
}

/// `false` if the freeze would have no undo.
fn journal_freeze(journal: &mut Journal, lease: &Lease, freezer: &KnobHandle) -> bool {
    let written = freezer
        .read()
        .map_err(|error| error.to_string())
        .map(|original| entry(lease, freezer, original, Setting::Frozen(true)))
        .and_then(|entry| journal.intent(entry).map_err(|error| error.to_string()));
    if let Err(error) = &written {
        tracing::warn!(%error, cgroup = lease.cgroup, "killed without being frozen first");
    }
    written.is_ok()
}

fn entry(lease: &Lease, handle: &KnobHandle, original: Setting, set: Setting) -> Entry {
    Entry {
        lease: lease.clone(),
        dir: handle.dir.path().to_owned(),
        inode: handle.dir.inode(),
        version: handle.version,
        original: original.to_string(),
        set: set.to_string(),
        before: None,
    }
}

fn failed(error: &str) -> ActOutcome {
    ActOutcome::Failed {
        error: error.to_owned(),
    }
}

#[cfg(test)]
#[path = "executor_tests.rs"]
mod tests;
