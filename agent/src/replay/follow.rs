//! A replay that follows the recorded run: the core hears what it heard then, at the same times and in the same order.
//!
//! Invariants: what policies ask for comes from the policies, all else (facts about targets, outcomes, time, losses,
//! operators' commands) from the recording; where the two do not fit, the outcome says so.

use super::Outcome;
use super::desk::Desk;
use super::recorded::Recorded;
use super::seat::{Output, Seat};
use crate::batch::Batch;
use crate::recording::Entry;
use anyhow::Result;
use palisade_core::{Input, PolicyOutput, PolicyRef, TargetFacts};
use std::collections::BTreeMap;

/// Differences that are told one by one.
const TOLD: usize = 8;
/// The version that replays.
const AGENT: &str = env!("CARGO_PKG_VERSION");

pub(super) struct Follow<'a> {
    desk: Desk<'a>,
    seats: BTreeMap<String, Seat>,
    /// Who ran at this point of the recorded run.
    running: BTreeMap<String, PolicyRef>,
    tables: &'a Recorded,
    differences: usize,
}

impl<'a> Follow<'a> {
    pub(super) fn new(desk: Desk<'a>, seats: Vec<Seat>, tables: &'a Recorded) -> Self {
        let named = |seat: Seat| (seat.reference().name.clone(), seat);
        Self {
            desk,
            seats: seats.into_iter().map(named).collect(),
            running: BTreeMap::new(),
            tables,
            differences: 0,
        }
    }

    pub(super) fn desk(&mut self) -> &mut Desk<'a> {
        &mut self.desk
    }

    /// Another version of the agent may judge, or word requests, in another way.
    pub(super) fn recorded_by(&mut self, agent: &str) {
        if agent != AGENT {
            self.differ(format!(
                "the recording was made by palisade {agent}, this is {AGENT}"
            ));
        }
    }

    /// A batch was published to the policies.
    pub(super) fn batch(&mut self, batch: &Batch) {
        self.desk.count(batch);
        for seat in self.seats.values_mut() {
            seat.offer(batch);
            self.desk.notes(seat.take_notes());
        }
    }

    /// Anything else.
    pub(super) fn entry(&mut self, entry: Entry) {
        match entry {
            Entry::Tick { time_ns } => self.step(time_ns, Input::Tick),
            Entry::Input { time_ns, input } => {
                if let Input::Policies(policies) = &input {
                    self.policies(policies.iter().map(|(policy, _)| policy));
                }
                self.step(time_ns, input);
            }
            Entry::Order {
                time_ns,
                policy,
                seq,
                requests,
                sha256,
            } => {
                if let Some((output, policy)) = self.output(&policy, seq, requests, sha256) {
                    self.order(time_ns, policy, output);
                }
            }
            Entry::Facts { target, facts } => self.tables.tell(target, facts),
            Entry::Dropped {
                policy,
                seq,
                records,
            } => {
                let known = self.seats.get_mut(&policy);
                if !known.is_some_and(|seat| seat.dropped(seq, records)) {
                    self.differ(format!(
                        "policy '{policy}' had no room for batch {seq}, which does not concern it here"
                    ));
                }
            }
            Entry::Changed { policy, what } => self.differ(format!(
                "in the run something happened to policy '{policy}' that is not replayed: {what}"
            )),
            Entry::Gap { notes } => self.differ(format!(
                "the recording lacks {notes} notes of what the core or policies were told"
            )),
            Entry::Lost { records, .. } => {
                self.differ(format!("the recording lacks {records} records"));
            }
            // Heard by those who answer the policies, or told by whoever reads the recording.
            Entry::Answer { .. }
            | Entry::Batch(_)
            | Entry::Identity(_)
            | Entry::Full { .. }
            | Entry::Core(_) => {}
        }
    }

    /// `partial`: the recording ends before the run did.
    pub(super) fn end(mut self, partial: bool) -> Result<Outcome> {
        let what = if partial {
            "whose hearing may lie beyond the recording's end"
        } else {
            "where the recorded run's core heard nothing"
        };
        for (name, seat) in &self.seats {
            let unheard = seat.unheard();
            if unheard > 0 {
                self.desk
                    .notes([format!("policy '{name}' asked {unheard} time(s) {what}")]);
            }
        }
        if let Some(more) = self.differences.checked_sub(TOLD).filter(|more| *more > 0) {
            self.desk.differs([format!("and {more} more")]);
        }
        self.desk.end()
    }

    /// Others run from here on.
    fn policies<'p>(&mut self, policies: impl Iterator<Item = &'p PolicyRef>) {
        let now: BTreeMap<_, _> = policies
            .map(|policy| (policy.name.clone(), policy.clone()))
            .collect();
        for (name, policy) in &now {
            let before = self.running.get(name);
            if before.is_some_and(|before| before.generation != policy.generation) {
                self.differ(format!(
                    "policy '{name}' was reloaded (generation {}), which is not replayed",
                    policy.generation
                ));
            }
        }
        self.running = now;
    }

    /// What that policy asks for here where it asked for so many things, and the policy as it ran then.
    fn output(
        &mut self,
        policy: &str,
        batch: u64,
        requests: u64,
        sha256: Option<String>,
    ) -> Option<(Output, PolicyRef)> {
        let seat = self.seats.get_mut(policy);
        let output = seat.and_then(|seat| {
            let output = seat.output(batch, requests, sha256.as_deref());
            self.desk.notes(seat.take_notes());
            output.map(|(output, same)| (output, same, seat.reference().clone()))
        });
        let Some((output, same, reference)) = output else {
            self.differ(format!(
                "at batch {batch} policy '{policy}' asked for {requests} thing(s) that it does not ask for here"
            ));
            return None;
        };
        if !same {
            self.differ(format!(
                "at batch {batch} policy '{policy}' asked for the same number of things, but for others or for \
                 other reasons than here"
            ));
        }
        // With the generation that it had then.
        Some((
            output,
            self.running.get(policy).cloned().unwrap_or(reference),
        ))
    }

    fn order(&mut self, time_ns: u64, policy: PolicyRef, output: Output) {
        let batch = output.batch;
        let mut unknown = 0_u64;
        let with_facts = output.requests.into_iter().map(|request| {
            let facts = self.tables.told(&request.target).unwrap_or_else(|| {
                unknown += 1;
                TargetFacts {
                    detail: "not in the recording".to_owned(),
                    ..TargetFacts::default()
                }
            });
            (request, facts)
        });
        let requests = with_facts.collect();
        if unknown > 0 {
            self.differ(format!(
                "at batch {batch} policy '{}' asks about {unknown} target(s) that it did not ask about",
                policy.name
            ));
        }
        let output = PolicyOutput {
            policy,
            batch,
            requests,
        };
        self.step(time_ns, Input::Requests(output));
    }

    fn step(&mut self, time_ns: u64, input: Input) {
        // What becomes of the effects is in the recording.
        let _ = self.desk.step(time_ns, input);
    }

    fn differ(&mut self, why: String) {
        self.differences += 1;
        if self.differences <= TOLD {
            self.desk.differs([why]);
        }
    }
}
