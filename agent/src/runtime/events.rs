//! What the core thread does with what policies do and what happens to them.
//!
//! Invariant: everything that changes who may ask is told to the core before the next request is heard.

use super::judge::Judge;
use crate::audit::{Entry, PolicyChange};
use crate::policy::PolicyEvent;
use palisade_core::{Input, PolicyOutput, PolicyRef, Request};
use std::collections::BTreeMap;

impl Judge {
    pub(super) fn policy(&mut self, event: PolicyEvent) {
        match event {
            PolicyEvent::Output {
                policy,
                batch,
                requests,
                ..
            } => {
                self.shared.intake.taken();
                // Looking at a target reads /proc: once a target, however often it is named.
                let mut known = BTreeMap::new();
                let requests = requests
                    .into_iter()
                    .map(|request: Request| {
                        let target = request.target;
                        let look = || self.shared.tables.facts(&target, &self.shared.scope);
                        let facts = known.entry(target).or_insert_with(look).clone();
                        (request, facts)
                    })
                    .collect();
                self.step(Input::Requests(PolicyOutput {
                    policy,
                    batch,
                    requests,
                }));
            }
            PolicyEvent::Loaded {
                policy,
                previous,
                state,
                after_batch,
            } => {
                let what = if previous.is_some() {
                    PolicyChange::Reloaded
                } else {
                    PolicyChange::Loaded
                };
                let detail = format!("state {}, after batch {after_batch}", word(state));
                self.changed(what, policy.clone(), detail);
                self.running.insert(policy.name.clone(), policy);
                self.policies();
            }
            PolicyEvent::RolledBack {
                policy,
                failed,
                reason,
                from_seq,
                to_seq,
            } => {
                let missed = to_seq
                    .saturating_sub(from_seq)
                    .saturating_add(u64::from(to_seq >= from_seq));
                let detail = format!(
                    "generation {} crashed in its probation: {reason}; {missed} batch(es) not seen",
                    failed.generation
                );
                self.changed(PolicyChange::RolledBack, policy.clone(), detail);
                self.running.insert(policy.name.clone(), policy);
                self.policies();
            }
            PolicyEvent::Rejected { name, error } => {
                self.alarm(
                    &name,
                    format!("a changed policy was refused, the old one goes on: {error}"),
                );
                let policy = PolicyRef {
                    name,
                    version: String::new(),
                    sha256: String::new(),
                    generation: 0,
                };
                self.changed(PolicyChange::Rejected, policy, error);
            }
            PolicyEvent::Unloaded { policy } => {
                self.running.remove(&policy.name);
                self.changed(PolicyChange::Unloaded, policy, String::new());
                self.policies();
            }
            PolicyEvent::Strike {
                policy,
                kind,
                detail,
                batch,
            } => {
                self.changed(
                    PolicyChange::Strike,
                    policy,
                    format!("{}: {detail} (batch {batch})", word(kind)),
                );
            }
            PolicyEvent::Restarted {
                policy,
                state,
                from_seq,
                to_seq,
            } => {
                let detail = format!(
                    "state {}; it does not know of batches {from_seq} to {to_seq}",
                    word(state)
                );
                self.changed(PolicyChange::Restarted, policy, detail);
            }
            PolicyEvent::Ejected {
                policy,
                reason,
                batch,
            } => {
                let name = &policy.name;
                self.alarm(
                    name,
                    format!("the policy was ejected: {reason}; fix its file, or run: palisade policy reload {name}"),
                );
                self.running.remove(&policy.name);
                self.changed(
                    PolicyChange::Ejected,
                    policy,
                    format!("{reason} (batch {batch})"),
                );
                self.policies();
            }
            PolicyEvent::Log {
                policy,
                level,
                message,
                suppressed,
            } => {
                tracing::info!(policy = %policy.name, ?level, suppressed, "{message}");
            }
            PolicyEvent::Lost {
                policy,
                records,
                batch,
            } => {
                tracing::warn!(policy = %policy.name, records, batch, "records did not reach the policy: its queue was full, or it crashed over them");
                self.shared.audit.append(Entry::Loss {
                    source: "policy".to_owned(),
                    count: records,
                    policy: Some(policy.name.clone()),
                    workload: None,
                });
                self.step(Input::Missed {
                    policy: policy.name,
                    count: records,
                });
            }
        }
    }

    fn changed(&self, what: PolicyChange, policy: PolicyRef, detail: String) {
        if let (Some(notes), true) = (&self.notes, of_an_instance(what)) {
            notes.changed(&policy.name, format!("{}: {detail}", word(what)));
        }
        self.shared.audit.append(Entry::Policy {
            what,
            policy,
            detail,
        });
    }

    /// Tells the core who runs, and the sensors what is subscribed to.
    fn policies(&mut self) {
        let policies = self
            .running
            .values()
            .filter_map(|policy| Some((policy.clone(), self.grants.get(&policy.name)?.clone())))
            .collect();
        self.step(Input::Policies(policies));
        self.shared.subscribe();
    }
}

/// Whether a policy sees or asks other things after that than one instance that plays all through: also one that was refused
/// has asked while it began. What else there is the core hears, as policies that run or do not.
fn of_an_instance(what: PolicyChange) -> bool {
    matches!(
        what,
        PolicyChange::Rejected | PolicyChange::Strike | PolicyChange::Restarted
    )
}

/// A unit variant's name, as JSON has it.
fn word(value: impl serde::Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| Some(value.as_str()?.to_owned()))
        .unwrap_or_default()
}
