//! The core of a replay, and the order in which it hears things.
//!
//! Invariants: time never goes back; what a policy asks for is heard when the recording says that it
//! reached the core, and at once where the recording says nothing about that policy.

use super::recorded::Recorded;
use super::{Grants, Line, Outcome};
use crate::batch::Batch;
use crate::config::Config;
use crate::policy::PolicyEvent;
use crate::recording::Entry;
use anyhow::Result;
use palisade_abi::Lost;
use palisade_core::{ActOutcome, Core, Effect, Input, PolicyOutput, WorkloadId};
use std::collections::{BTreeMap, VecDeque};

/// Batches after which requests are heard although the recorded run had none at that place: its
/// policy was another version, or they were dropped.
const PATIENCE: u64 = 64;

/// Requests that wait for their turn.
struct Waiting {
    now_ns: u64,
    output: PolicyOutput,
}

pub(super) struct Player<'a> {
    core: Core,
    grants: Grants,
    /// Policies whose requests' order is in the recording.
    ordered: Vec<String>,
    waiting: VecDeque<Waiting>,
    /// Records that the recorded run lost, by policy; `None`: on the way to the disk.
    missing: BTreeMap<Option<String>, u64>,
    config: &'a Config,
    tables: &'a Recorded,
    each: &'a mut dyn FnMut(&Line) -> Result<()>,
    failure: Option<anyhow::Error>,
    outcome: Outcome,
    first_ns: u64,
    now_ns: u64,
    seen: bool,
}

impl<'a> Player<'a> {
    pub(super) fn new(
        core: Core,
        grants: Grants,
        ordered: Vec<String>,
        config: &'a Config,
        tables: &'a Recorded,
        each: &'a mut dyn FnMut(&Line) -> Result<()>,
    ) -> Self {
        Self {
            core,
            grants,
            ordered,
            waiting: VecDeque::new(),
            missing: BTreeMap::new(),
            config,
            tables,
            each,
            failure: None,
            outcome: Outcome::default(),
            first_ns: 0,
            now_ns: 0,
            seen: false,
        }
    }

    /// Tells the core who may ask.
    pub(super) fn begin(&mut self) {
        self.step(0, Input::Policies(self.grants.clone()));
    }

    /// A batch is about to be given to the policies.
    pub(super) fn batch(&mut self, batch: &Batch) {
        if !self.seen {
            (self.seen, self.first_ns) = (true, batch.now_ns);
        }
        self.until(batch.now_ns);
        self.outcome.batches += 1;
        self.outcome.records += batch.records.len() as u64;
        while let Some(first) = self.waiting.front()
            && first.output.batch.saturating_add(PATIENCE) < batch.seq
        {
            self.next_waiting(batch.now_ns);
        }
        for record in batch.records.iter() {
            if let Some(lost) = record.get::<Lost>() {
                let workload =
                    (record.header.workload != 0).then_some(WorkloadId(record.header.workload));
                let count = lost.count;
                self.step(batch.now_ns, Input::Lost { workload, count });
            }
        }
    }

    /// Something else that the recorded run's core heard of.
    pub(super) fn entry(&mut self, entry: Entry) {
        match entry {
            Entry::Tick { time_ns } => {
                self.until(time_ns);
                self.step(time_ns, Input::Tick);
            }
            Entry::Order {
                time_ns,
                policy,
                seq,
                ..
            } => {
                self.until(time_ns);
                let due = |waiting: &Waiting| {
                    waiting.output.policy.name == policy && waiting.output.batch <= seq
                };
                while let Some(at) = self.waiting.iter().position(due) {
                    if let Some(waiting) = self.waiting.remove(at) {
                        self.step(time_ns, Input::Requests(waiting.output));
                    }
                }
            }
            Entry::Lost {
                time_ns,
                policy,
                records,
                ..
            } => {
                let sum = self.missing.entry(policy.clone()).or_default();
                *sum = sum.saturating_add(records);
                if let Some(policy) = policy {
                    let count = records;
                    self.step(time_ns, Input::Missed { policy, count });
                }
            }
            Entry::Batch(_) | Entry::Identity(_) => {}
        }
    }

    /// A policy did something.
    pub(super) fn hear(&mut self, now_ns: u64, event: PolicyEvent) {
        match event {
            PolicyEvent::Output {
                policy,
                batch,
                requests,
                ..
            } => {
                let requests = requests.into_iter().map(|request| {
                    let facts = self.tables.facts(&request.target, &self.config.watch.scope);
                    (request, facts)
                });
                let output = PolicyOutput {
                    policy,
                    batch,
                    requests: requests.collect(),
                };
                if self.ordered.contains(&output.policy.name) {
                    self.waiting.push_back(Waiting { now_ns, output });
                } else {
                    self.step(now_ns, Input::Requests(output));
                }
            }
            PolicyEvent::Strike {
                policy,
                detail,
                batch,
                ..
            } => {
                self.note(format!(
                    "policy '{}' was struck at batch {batch}: {detail}",
                    policy.name
                ));
            }
            PolicyEvent::Ejected {
                policy,
                reason,
                batch,
            } => {
                self.note(format!(
                    "policy '{}' was ejected at batch {batch}: {reason}",
                    policy.name
                ));
                self.grants.retain(|(other, _)| other.name != policy.name);
                self.step(now_ns, Input::Policies(self.grants.clone()));
            }
            PolicyEvent::Lost {
                policy, records, ..
            } => {
                let missed = Input::Missed {
                    policy: policy.name,
                    count: records,
                };
                self.step(now_ns, missed);
            }
            // One instance plays all through: it is not loaded, reloaded or rolled back here.
            PolicyEvent::Loaded { .. }
            | PolicyEvent::Rejected { .. }
            | PolicyEvent::Unloaded { .. }
            | PolicyEvent::Restarted { .. }
            | PolicyEvent::RolledBack { .. }
            | PolicyEvent::Log { .. } => {}
        }
    }

    pub(super) fn note(&mut self, text: String) {
        self.outcome.notes.push(text);
    }

    /// Whether the lines can still be handed over.
    pub(super) fn failed(&mut self) -> Result<()> {
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Hears what still waits, and lets what is held end by itself.
    pub(super) fn end(mut self) -> Result<Outcome> {
        while !self.waiting.is_empty() {
            self.next_waiting(self.now_ns);
        }
        self.until(u64::MAX);
        self.failed()?;
        for (policy, records) in std::mem::take(&mut self.missing) {
            self.note(match policy {
                None => format!("the recording lacks {records} records: its disk was too slow"),
                Some(policy) => format!(
                    "in the recorded run policy '{policy}' missed {records} records; here it saw them"
                ),
            });
        }
        Ok(self.outcome)
    }

    fn next_waiting(&mut self, now_ns: u64) {
        if let Some(waiting) = self.waiting.pop_front() {
            self.step(now_ns.max(waiting.now_ns), Input::Requests(waiting.output));
        }
    }

    fn step(&mut self, now_ns: u64, input: Input) {
        self.now_ns = self.now_ns.max(now_ns);
        let now_ns = self.now_ns;
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for effect in self.core.step(now_ns, input) {
                if let Effect::Act { id, .. } | Effect::Alert { id, .. } | Effect::Undo { id, .. } =
                    &effect
                {
                    let outcome = ActOutcome::Done {
                        observed: "replayed".to_owned(),
                        original: None,
                    };
                    inputs.push_back(Input::Outcome {
                        effect: *id,
                        outcome,
                    });
                }
                if matches!(effect, Effect::Record { .. } | Effect::Undo { .. }) {
                    self.outcome.decisions += 1;
                    let line = Line {
                        time_ns: now_ns,
                        since_ns: now_ns.saturating_sub(self.first_ns),
                        effect,
                    };
                    if self.failure.is_none() {
                        self.failure = (self.each)(&line).err();
                    }
                }
            }
        }
    }

    /// Lets the deadlines pass that lie before `now_ns`.
    fn until(&mut self, now_ns: u64) {
        while let Some(at) = self.core.next_deadline().filter(|at| *at < now_ns) {
            self.step(at, Input::Tick);
        }
    }
}
