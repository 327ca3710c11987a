//! A replay that decides anew: another configuration, other policies, or a recording that does not say enough to follow it.
//!
//! Invariants: time never goes back; what a policy asks for is heard when the recording says that it
//! reached the core, and at once where the recording says nothing about that policy; every effect is answered as done.

use super::desk::Desk;
use super::recorded::Recorded;
use super::seat::{Seat, in_words};
use super::{Grants, Outcome};
use crate::batch::Batch;
use crate::config::Config;
use crate::policy::PolicyEvent;
use crate::recording::Entry;
use crate::runtime::losses;
use anyhow::Result;
use palisade_abi::Lost;
use palisade_core::{ActOutcome, Effect, Input, PolicyOutput, PolicyRef, Request};
use std::collections::{BTreeMap, VecDeque};

/// Batches after which requests are heard although the recorded run had none at that place: its
/// policy was another version, or they were dropped.
const PATIENCE: u64 = 64;

/// Requests that wait for their turn.
struct Waiting {
    now_ns: u64,
    policy: PolicyRef,
    batch: u64,
    requests: Vec<Request>,
}

pub(super) struct Anew<'a> {
    desk: Desk<'a>,
    seats: Vec<Seat>,
    grants: Grants,
    /// Policies whose requests' order is in the recording.
    ordered: Vec<String>,
    waiting: VecDeque<Waiting>,
    /// Records that the recorded run lost, by policy; `None`: on the way to the disk.
    missing: BTreeMap<Option<String>, u64>,
    config: &'a Config,
    tables: &'a Recorded,
}

impl<'a> Anew<'a> {
    /// Tells the core who may ask.
    pub(super) fn new(
        desk: Desk<'a>,
        seats: Vec<Seat>,
        grants: Grants,
        ordered: Vec<String>,
        config: &'a Config,
        tables: &'a Recorded,
    ) -> Self {
        let mut this = Self {
            desk,
            seats,
            grants,
            ordered,
            waiting: VecDeque::new(),
            missing: BTreeMap::new(),
            config,
            tables,
        };
        this.step(0, Input::Policies(this.grants.clone()));
        this
    }

    /// Gives a batch to the core and to the policies.
    pub(super) fn batch(&mut self, batch: &Batch) {
        self.desk.count(batch);
        self.until(batch.now_ns);
        while let Some(first) = self.waiting.front()
            && first.batch.saturating_add(PATIENCE) < batch.seq
        {
            self.next_waiting(batch.now_ns);
        }
        for record in batch.records.iter() {
            if let Some(lost) = record.get::<Lost>() {
                self.lost(batch.now_ns, record.header.workload, lost);
            }
        }
        let mut events = Vec::new();
        for seat in &mut self.seats {
            events.extend(seat.step(batch));
        }
        for event in events {
            self.hear(batch.now_ns, event);
        }
    }

    /// The core hears of a loss as in a run.
    fn lost(&mut self, now_ns: u64, workload: u64, lost: Lost) {
        let name = |seat: &Seat| seat.reference().name.clone();
        let all = || self.seats.iter().map(name).collect();
        let of = |kinds| {
            let concerned = self.seats.iter().filter(|seat| seat.mask() & kinds != 0);
            concerned.map(name).collect()
        };
        for input in losses::told(workload, lost.count, lost.kinds, all, of) {
            self.step(now_ns, input);
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
                let due = |waiting: &Waiting| waiting.policy.name == policy && waiting.batch <= seq;
                while let Some(at) = self.waiting.iter().position(due) {
                    if let Some(waiting) = self.waiting.remove(at) {
                        self.requests(time_ns, waiting);
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
            Entry::Input {
                time_ns,
                input: missed @ Input::Missed { .. },
            } => self.step(time_ns, missed),
            // Of the other things that the recorded core heard, some follow from its own decisions; operators'
            // commands are none of the policies'.
            Entry::Input { .. }
            | Entry::Core(_)
            | Entry::Dropped { .. }
            | Entry::Gap { .. }
            | Entry::Changed { .. } => {}
            Entry::Facts { target, facts } => self.tables.tell(target, facts),
            Entry::Answer { answer, .. } => {
                if let Some(identity) = answer {
                    self.tables.learn(identity);
                }
            }
            Entry::Batch(_) | Entry::Identity(_) | Entry::Full { .. } => {}
        }
    }

    /// A policy did something.
    fn hear(&mut self, now_ns: u64, event: PolicyEvent) {
        match event {
            PolicyEvent::Output {
                policy,
                batch,
                requests,
                ..
            } => {
                let waiting = Waiting {
                    now_ns,
                    policy,
                    batch,
                    requests,
                };
                if self.ordered.contains(&waiting.policy.name) {
                    self.waiting.push_back(waiting);
                } else {
                    self.requests(now_ns, waiting);
                }
            }
            event @ PolicyEvent::Strike { .. } => self.desk.notes(in_words(&event)),
            PolicyEvent::Ejected { ref policy, .. } => {
                self.desk.notes(in_words(&event));
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

    /// Hears what still waits, and lets what is held end by itself.
    pub(super) fn end(mut self) -> Result<Outcome> {
        while !self.waiting.is_empty() {
            self.next_waiting(self.desk.now_ns());
        }
        self.until(u64::MAX);
        for (policy, records) in std::mem::take(&mut self.missing) {
            self.desk.notes([match policy {
                None => format!("the recording lacks {records} records: its disk was too slow"),
                Some(policy) => format!(
                    "in the recorded run policy '{policy}' missed {records} records; here it saw them"
                ),
            }]);
        }
        self.desk.end()
    }

    pub(super) fn desk(&mut self) -> &mut Desk<'a> {
        &mut self.desk
    }

    fn next_waiting(&mut self, now_ns: u64) {
        if let Some(waiting) = self.waiting.pop_front() {
            self.requests(now_ns.max(waiting.now_ns), waiting);
        }
    }

    /// The core hears them, with the facts as they are then.
    fn requests(&mut self, now_ns: u64, waiting: Waiting) {
        let Waiting {
            policy,
            batch,
            requests,
            ..
        } = waiting;
        let scope = &self.config.watch.scope;
        let with_facts = |request: Request| {
            let facts = self.tables.facts(&request.target, scope);
            (request, facts)
        };
        let requests = requests.into_iter().map(with_facts).collect();
        let output = PolicyOutput {
            policy,
            batch,
            requests,
        };
        self.step(now_ns, Input::Requests(output));
    }

    fn step(&mut self, now_ns: u64, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for effect in self.desk.step(now_ns, input) {
                if let Effect::Act { id, .. } | Effect::Alert { id, .. } | Effect::Undo { id, .. } =
                    effect
                {
                    let outcome = ActOutcome::Done {
                        observed: "replayed".to_owned(),
                        original: None,
                    };
                    inputs.push_back(Input::Outcome {
                        effect: id,
                        outcome,
                    });
                }
            }
        }
    }

    /// Lets the deadlines pass that lie before `now_ns`.
    fn until(&mut self, now_ns: u64) {
        while let Some(at) = self.desk.deadline().filter(|at| *at < now_ns) {
            self.step(at, Input::Tick);
        }
    }
}
