//! The core thread: everything that the decision core hears and says passes here, in one order.
//!
//! Invariants: only this thread steps the core; an intent is appended before its effect is handed
//! to the act thread, and is on disk before an irreversible one is; every effect that was handed over comes
//! back as an outcome. It holds no rule of its own: what to grant is the core's.

use super::act_thread::Job;
use super::reel::Told;
use super::tape::Notes;
use super::{Shared, losses};
use crate::audit::{Entry, Identity};
use crate::boot_clock;
use crate::policy::PolicyEvent;
use palisade_core::{
    ActOutcome, Core, Decision, Effect, Grant, Input, PolicyRef, Reason, Target, Verdict,
    WorkloadId,
};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::Duration;

/// Longest sleep of the core thread, so that the audit log's health is looked at.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How long a stop waits for the leases to be undone. What is held then is left to the keeper, which
/// is not dismissed while anything is held.
const STOP_PATIENCE_NS: u64 = 5_000_000_000;

/// What the core thread can be told.
#[derive(Debug)]
pub(super) enum Message {
    /// A policy did something.
    Policy(PolicyEvent),
    /// An effect was carried out.
    Outcome(Box<Effect>, ActOutcome),
    /// Records were lost before they reached a policy.
    Lost {
        workload: u64,
        count: u64,
        source: &'static str,
        /// Of which kinds; 0: not known.
        kinds: u64,
    },
    /// The operator turned the kill switch.
    Disarm(bool, SyncSender<Result<String, String>>),
    /// The operator releases leases.
    Release(
        Option<palisade_core::LeaseId>,
        SyncSender<Result<String, String>>,
    ),
    /// Somebody wants to know.
    Status(SyncSender<serde_json::Value>),
    /// The agent is to end.
    Stop(String),
}

/// The core thread's state.
pub(super) struct Judge {
    core: Core,
    pub(super) shared: Shared,
    pub(super) grants: BTreeMap<String, Grant>,
    pub(super) running: BTreeMap<String, PolicyRef>,
    act: Sender<Job>,
    recordable: bool,
    /// Effects that were handed over and have not come back as an outcome.
    under_way: u64,
    /// Effects that were held back because their intent could not be recorded.
    not_done: Vec<(Effect, ActOutcome)>,
    /// What a recording is told of the core's inputs.
    pub(super) notes: Option<Notes>,
    /// What the audit log was told about that recording.
    told: Told,
}

impl Judge {
    pub(super) fn new(
        core: Core,
        shared: Shared,
        grants: BTreeMap<String, Grant>,
        act: Sender<Job>,
        notes: Option<Notes>,
    ) -> Self {
        Self {
            core,
            shared,
            grants,
            running: BTreeMap::new(),
            act,
            recordable: true,
            under_way: 0,
            not_done: Vec::new(),
            notes,
            told: Told::default(),
        }
    }

    /// Runs until it is told to stop and the leases are undone, or patience ends. Answers what the audit log was
    /// told about the recording.
    pub(super) fn run(
        mut self,
        orphans: Vec<palisade_core::Lease>,
        messages: &Receiver<Message>,
    ) -> Told {
        for lease in orphans {
            self.step(Input::Orphan(lease));
        }
        let mut stopping: Option<u64> = None;
        loop {
            let now = boot_clock::now_ns();
            let done = self.under_way == 0 && self.core.leases().next().is_none();
            if stopping.is_some_and(|until| now >= until || done) {
                return self.told;
            }
            let next = self.core.next_deadline().map_or(LONGEST_WAIT, |at| {
                Duration::from_nanos(at.saturating_sub(now))
            });
            let wait = if stopping.is_some() {
                Duration::from_millis(5)
            } else {
                next.min(LONGEST_WAIT)
            };
            match messages.recv_timeout(wait) {
                Ok(Message::Stop(why)) => {
                    self.shared.audit.append(Entry::Note {
                        text: format!("stopping: {why}; undoing every lease"),
                    });
                    stopping = Some(boot_clock::now_ns().saturating_add(STOP_PATIENCE_NS));
                    self.step(Input::Release(None));
                }
                Ok(message) => self.hear(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.told,
            }
            let dropped = self.shared.intake.dropped();
            if dropped > 0 {
                let text = format!(
                    "{dropped} output(s) of policies were dropped: the core could not keep up"
                );
                tracing::error!("{text}");
                self.shared.audit.append(Entry::Note { text });
            }
            if let Some(reel) = &self.shared.reel {
                reel.tell(&mut self.told, &self.shared.audit);
            }
            let healthy = self.shared.audit.healthy();
            if healthy != self.recordable {
                self.recordable = healthy;
                self.step(Input::Recordable(healthy));
            }
            if self
                .core
                .next_deadline()
                .is_some_and(|at| at <= boot_clock::now_ns())
            {
                self.step(Input::Tick);
            }
        }
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Policy(event) => self.policy(event),
            Message::Outcome(effect, outcome) => {
                self.under_way = self.under_way.saturating_sub(1);
                if let Some(id) = effect_id(&effect) {
                    if let Some(entry) = Entry::after(&effect, outcome.clone()) {
                        self.shared.audit.append(entry);
                    }
                    self.step(Input::Outcome {
                        effect: id,
                        outcome,
                    });
                }
            }
            Message::Lost {
                workload,
                count,
                source,
                kinds,
            } => {
                self.shared.audit.append(Entry::Loss {
                    source: source.to_owned(),
                    count,
                    policy: None,
                    workload: (workload != 0).then_some(WorkloadId(workload)),
                });
                let all = || self.running.keys().cloned().collect();
                let of = |kinds| {
                    let engine = self.shared.engine.get();
                    engine.map_or_else(all, |engine| engine.subscribers(kinds))
                };
                for input in losses::told(workload, count, kinds, all, of) {
                    self.step(input);
                }
            }
            Message::Disarm(on, reply) => {
                let text = if on {
                    "disarmed by the operator: every lease is undone, nothing is acted on"
                } else {
                    "armed by the operator"
                };
                self.shared.audit.append(Entry::Note {
                    text: text.to_owned(),
                });
                self.step(Input::Disarm(on));
                // Good news only once it is certain to outlast the agent.
                let answer = match self.shared.marker.set(on) {
                    Ok(()) => Ok(text.to_owned()),
                    Err(error) => Err(format!(
                        "{text}; but a restart will not know of it: {error}"
                    )),
                };
                let _ = reply.try_send(answer);
            }
            Message::Release(lease, reply) => {
                let held = self
                    .core
                    .leases()
                    .filter(|held| lease.is_none_or(|id| id == held.id))
                    .count();
                self.step(Input::Release(lease));
                let answer = match lease {
                    Some(id) if held == 0 => Err(format!("there is no lease {}", id.0)),
                    _ => Ok(format!("{held} lease(s) released")),
                };
                let _ = reply.try_send(answer);
            }
            Message::Status(reply) => {
                let _ = reply.try_send(serde_json::json!(self.core.status()));
            }
            Message::Stop(_) => {}
        }
    }

    pub(super) fn step(&mut self, input: Input) {
        let now_ns = boot_clock::now_ns();
        if let Some(notes) = &mut self.notes {
            notes.heard(now_ns, &input);
        }
        for effect in self.core.step(now_ns, input) {
            self.carry_out(effect);
        }
        // Only now, so that the effects of one step keep their order.
        for (effect, outcome) in std::mem::take(&mut self.not_done) {
            self.under_way += 1;
            self.hear(Message::Outcome(Box::new(effect), outcome));
        }
    }

    /// Tells people about something that no policy asked for.
    pub(super) fn alarm(&self, policy: &str, text: String) {
        let tell = Job::Tell {
            policy: policy.to_owned(),
            text,
        };
        if self.act.send(tell).is_err() {
            tracing::error!("the act thread has ended: an alert was not sent");
        }
    }

    /// Records the intent, then hands the effect over.
    fn carry_out(&mut self, effect: Effect) {
        if let Effect::Record { decision } = effect {
            tell(&decision);
            let who = self.identity(&decision.request.target);
            self.shared.audit.append(Entry::Decision { decision, who });
            return;
        }
        let irreversible = matches!(&effect, Effect::Act { action, .. } if action.irreversible());
        if let Some(entry) = Entry::before(&effect) {
            if irreversible {
                if let Err(error) = self.shared.audit.append_durable(entry) {
                    let outcome = ActOutcome::Failed {
                        error: format!(
                            "not done, because its intent could not be recorded: {error}"
                        ),
                    };
                    self.not_done.push((effect, outcome));
                    return;
                }
            } else {
                self.shared.audit.append(entry);
            }
        }
        // Only a renewal has no outcome to wait for.
        let answered = effect_id(&effect).is_some();
        self.under_way += u64::from(answered);
        if self.act.send(Job::Effect(effect)).is_err() {
            tracing::error!("the act thread has ended; the keeper undoes what is in force");
        }
    }

    fn identity(&self, target: &Target) -> Identity {
        let process = match target {
            Target::Process(process) => self.shared.tables.process(*process),
            Target::Workload(_) => None,
        };
        let workload = match target {
            Target::Workload(workload) => Some(*workload),
            Target::Process(_) => process.as_ref().and_then(|info| info.workload),
        };
        let workload = workload.and_then(|workload| self.shared.tables.workload(workload));
        Identity {
            exe: process.as_ref().and_then(|info| info.exe.clone()),
            comm: process.map(|info| info.comm),
            cgroup: workload.as_ref().map(|info| info.cgroup.clone()),
            container: workload.and_then(|info| info.container),
        }
    }
}

/// One log line for a decision that people should see as it happens.
fn tell(decision: &Decision) {
    let Decision {
        policy,
        request,
        verdict,
        ..
    } = decision;
    let (name, reason, action) = (&policy.name, &request.reason, request.action);
    match verdict {
        Verdict::Granted { .. } => tracing::warn!(policy = %name, %action, "granted: {reason}"),
        Verdict::Observed => {
            tracing::info!(policy = %name, %action, "observed, not done: {reason}");
        }
        Verdict::Refused {
            reason: Reason::Cooldown { .. },
        }
        | Verdict::Renewed { .. } => {
            tracing::debug!(policy = %name, %action, "{verdict:?}");
        }
        Verdict::Refused { reason: gate } => {
            tracing::info!(policy = %name, %action, ?gate, "refused: {reason}");
        }
    }
}

fn effect_id(effect: &Effect) -> Option<palisade_core::EffectId> {
    match effect {
        Effect::Act { id, .. } | Effect::Alert { id, .. } | Effect::Undo { id, .. } => Some(*id),
        Effect::Record { .. } | Effect::Renew { .. } => None,
    }
}
