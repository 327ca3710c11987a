//! The life of one lease.
//!
//! ```text
//! asked ──> starting ──> in force ──> ending ──> closed
//!              │ first act not done      │ ^ undo failed: again, after a wait
//!              └──> closed               └─┘
//! ```
//!
//! Invariants:
//! - Effects are carried out in the order in which they were given, so an act that tightens may
//!   follow one whose outcome is not known. What loosens or undoes waits until every earlier
//!   outcome is known: whether there is something to undo depends on them.
//! - A lease that came into force ends with an undo, tried until it is done, found gone, or found
//!   to be changed by somebody else.
//! - A first act that failed is undone too: it may have been done in part. One that was not
//!   tried (target gone, inside a driver call) leaves nothing to undo.
//! - An effect without an outcome for [`OUTCOME_NS`] is taken to have been carried out, and the
//!   lease is undone: silence must not keep a containment alive.

use crate::numbers::Numbers;
use crate::retry::undo_wait_ns;
use crate::shares::{Share, Shares};
use crate::{ActOutcome, Action, Effect, EffectId, Knob, Lease, Target};

/// Longest wait for the outcome of an effect, nanoseconds.
pub(crate) const OUTCOME_NS: u64 = 60_000_000_000;

/// Why an effect was given.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Purpose {
    /// A policy of this name asked.
    Ask { policy: String },
    /// A stricter ask ended.
    Loosen,
    /// The lease ended.
    Undo,
}

#[derive(Clone, Debug)]
struct Flight {
    effect: EffectId,
    purpose: Purpose,
    value: u32,
    give_up_ns: u64,
}

/// Where a lease is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its first act has no outcome yet.
    Starting,
    /// The value is set.
    InForce,
    /// To be undone as soon as possible.
    Ending,
}

/// What the outcome of an effect means beyond the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// Nothing.
    Nothing,
    /// An act that this policy asked for was done.
    Worked,
    /// It was not done; `counts` tells a failure from bad luck.
    Failed { policy: String, counts: bool },
    /// Somebody else manages the value.
    Foreign,
}

/// A lease with all that is known about it.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) lease: Lease,
    pub(crate) shares: Shares,
    /// The value last seen to be set.
    confirmed: Option<u32>,
    /// An act failed while nothing was in force, perhaps half-way.
    unclear: bool,
    flights: Vec<Flight>,
    ending: Option<String>,
    failures: u32,
    retry_ns: u64,
    last_error: Option<String>,
    closed: bool,
}

impl Held {
    /// A lease that a policy asks for; [`Held::ask`] follows.
    pub(crate) fn new(lease: Lease) -> Self {
        Self {
            lease,
            shares: Shares::default(),
            confirmed: None,
            unclear: false,
            flights: Vec::new(),
            ending: None,
            failures: 0,
            retry_ns: 0,
            last_error: None,
            closed: false,
        }
    }

    /// A lease whose agent is gone.
    pub(crate) fn orphan(lease: Lease) -> Self {
        let confirmed = Some(lease.value);
        Self {
            confirmed,
            ending: Some("orphaned".to_owned()),
            ..Self::new(lease)
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        match (&self.ending, self.confirmed) {
            (Some(_), _) => Phase::Ending,
            (None, None) => Phase::Starting,
            (None, Some(_)) => Phase::InForce,
        }
    }

    pub(crate) fn closed(&self) -> bool {
        self.closed
    }

    /// Undos and loosenings that failed in a row, and what the last failure said.
    pub(crate) fn trouble(&self) -> (u32, Option<&str>) {
        (self.failures, self.last_error.as_deref())
    }

    /// When a request for the same knob may come again while this one ends.
    pub(crate) fn busy_until_ns(&self, now_ns: u64) -> u64 {
        let soon = now_ns.saturating_add(crate::retry::FIRST_NS);
        if self.flights.is_empty() {
            self.retry_ns.max(soon)
        } else {
            soon
        }
    }

    /// Ends the lease as soon as the outcomes so far are known. The first reason stays.
    pub(crate) fn end(&mut self, why: &str) {
        if self.ending.is_none() {
            self.ending = Some(why.to_owned());
            self.retry_ns = 0;
        }
    }

    /// Adds an ask that passed the gates. Gives an act if it makes the lease stricter than it
    /// is, or begins it.
    pub(crate) fn ask(
        &mut self,
        share: Share,
        numbers: &mut Numbers,
        now_ns: u64,
    ) -> Option<(EffectId, Effect)> {
        let begins = self.confirmed.is_none() && self.flights.is_empty();
        let tightens = share.value < self.lease.value;
        let (policy, target, decision) = (share.policy.clone(), share.target, share.decision);
        self.shares.put(share);
        if !begins && !tightens {
            self.refresh();
            return None;
        }
        if let Some(value) = self.shares.strictest().map(|strictest| strictest.value) {
            self.lease.value = value;
        }
        self.refresh();
        let purpose = Purpose::Ask {
            policy: policy.clone(),
        };
        let effect = self.take_off(purpose, numbers, now_ns);
        Some((effect, self.act(effect, decision, policy, target)))
    }

    /// Prolongs what the share's policy already holds.
    pub(crate) fn renew(&mut self, share: Share) {
        self.shares.put(share);
        self.refresh();
    }

    /// Does what time or an outcome made due.
    pub(crate) fn settle(&mut self, now_ns: u64, numbers: &mut Numbers, out: &mut Vec<Effect>) {
        self.give_up(now_ns);
        if self.closed || !self.flights.is_empty() {
            return;
        }
        if self.ending.is_none() {
            self.shares.expire(now_ns);
            if self.shares.is_empty() {
                self.end("expired");
            }
        }
        if self.ending.is_some() {
            if self.retry_ns <= now_ns {
                self.undo(now_ns, numbers, out);
            }
            return;
        }
        self.refresh();
        let Some(share) = self.shares.strictest().cloned() else {
            return;
        };
        if share.value <= self.lease.value {
            self.calm();
        } else if self.retry_ns <= now_ns {
            self.lease.value = share.value;
            let effect = self.take_off(Purpose::Loosen, numbers, now_ns);
            let target = Target::Workload(self.lease.workload);
            out.push(self.act(effect, share.decision, share.policy, target));
        }
    }

    /// Takes the outcome of an effect, if it is one of this lease's.
    pub(crate) fn outcome(
        &mut self,
        effect: EffectId,
        outcome: &ActOutcome,
        now_ns: u64,
    ) -> Option<Report> {
        let position = self
            .flights
            .iter()
            .position(|flight| flight.effect == effect)?;
        let flight = self.flights.remove(position);
        let report = match flight.purpose {
            Purpose::Undo => self.undo_outcome(outcome, now_ns),
            Purpose::Ask { policy } => {
                self.act_outcome(Some(policy), flight.value, outcome, now_ns)
            }
            Purpose::Loosen => self.act_outcome(None, flight.value, outcome, now_ns),
        };
        self.land();
        Some(report)
    }

    /// When [`Held::settle`] has something to do next.
    pub(crate) fn deadline_ns(&self) -> Option<u64> {
        if let Some(give_up_ns) = self.flights.iter().map(|flight| flight.give_up_ns).min() {
            return Some(give_up_ns);
        }
        if self.ending.is_some() {
            return Some(self.retry_ns);
        }
        let retry_ns = (self.retry_ns > 0).then_some(self.retry_ns);
        self.shares.next_end_ns().into_iter().chain(retry_ns).min()
    }

    fn undo_outcome(&mut self, outcome: &ActOutcome, now_ns: u64) -> Report {
        match outcome {
            ActOutcome::Done { .. } | ActOutcome::Gone => {
                self.closed = true;
                Report::Nothing
            }
            ActOutcome::ForeignChange { .. } => {
                self.closed = true;
                Report::Foreign
            }
            ActOutcome::InDriverCall => self.again("in a driver call", now_ns),
            ActOutcome::Failed { error } => self.again(error, now_ns),
        }
    }

    fn act_outcome(
        &mut self,
        asked_by: Option<String>,
        value: u32,
        outcome: &ActOutcome,
        now_ns: u64,
    ) -> Report {
        let failed = |counts| match asked_by.clone() {
            Some(policy) => Report::Failed { policy, counts },
            None => Report::Nothing,
        };
        match outcome {
            ActOutcome::Done { .. } => {
                self.confirmed = Some(value);
                self.unclear = false;
                self.calm();
                if asked_by.is_some() {
                    Report::Worked
                } else {
                    Report::Nothing
                }
            }
            ActOutcome::Gone => {
                self.end("target gone");
                failed(false)
            }
            ActOutcome::ForeignChange { .. } => {
                self.end("foreign change");
                Report::Foreign
            }
            ActOutcome::InDriverCall => {
                if asked_by.is_none() {
                    self.again("in a driver call", now_ns);
                }
                failed(false)
            }
            ActOutcome::Failed { error } => {
                if asked_by.is_none() {
                    self.again(error, now_ns);
                }
                self.unclear |= self.confirmed.is_none();
                failed(true)
            }
        }
    }

    /// All outcomes are known: what is in force is what was last seen to be set.
    fn land(&mut self) {
        if !self.flights.is_empty() {
            return;
        }
        match self.confirmed {
            None if self.unclear => self.end("act failed"),
            None => self.closed = true,
            Some(value) => {
                self.lease.value = value;
                self.shares.no_stricter_than(value);
            }
        }
    }

    /// Effects are carried out in order: where one is overdue, those behind it are stuck too.
    fn give_up(&mut self, now_ns: u64) {
        let overdue = |flight: &Flight| flight.give_up_ns <= now_ns;
        if !self.flights.iter().any(overdue) {
            return;
        }
        let last = self
            .flights
            .iter()
            .rev()
            .find(|flight| flight.purpose != Purpose::Undo);
        if let Some(value) = last.map(|flight| flight.value) {
            self.confirmed = Some(value);
        }
        self.flights.clear();
        self.end("no outcome");
        self.again("no outcome", now_ns);
        self.retry_ns = now_ns;
    }

    fn undo(&mut self, now_ns: u64, numbers: &mut Numbers, out: &mut Vec<Effect>) {
        let id = self.take_off(Purpose::Undo, numbers, now_ns);
        let why = self.ending.clone().unwrap_or_default();
        out.push(Effect::Undo {
            id,
            lease: self.lease.clone(),
            why,
        });
    }

    fn take_off(&mut self, purpose: Purpose, numbers: &mut Numbers, now_ns: u64) -> EffectId {
        let effect = numbers.effect();
        let give_up_ns = now_ns.saturating_add(OUTCOME_NS);
        self.flights.push(Flight {
            effect,
            purpose,
            value: self.lease.value,
            give_up_ns,
        });
        effect
    }

    fn act(&self, id: EffectId, decision: u64, policy: String, target: Target) -> Effect {
        let lease = self.lease.clone();
        let action = match lease.knob {
            Knob::CpuWeight => Action::CpuWeight(lease.value),
            Knob::CpuQuota => Action::CpuQuota(lease.value),
            Knob::Freeze => Action::Freeze,
        };
        Effect::Act {
            id,
            decision,
            policy,
            target,
            workload: Some(lease.workload),
            cgroup: Some(lease.cgroup.clone()),
            action,
            lease: Some(lease),
        }
    }

    fn again(&mut self, error: &str, now_ns: u64) -> Report {
        self.failures = self.failures.saturating_add(1);
        self.retry_ns = now_ns.saturating_add(undo_wait_ns(self.failures));
        self.last_error = Some(error.to_owned());
        Report::Nothing
    }

    fn calm(&mut self) {
        self.failures = 0;
        self.retry_ns = 0;
        self.last_error = None;
    }

    fn refresh(&mut self) {
        self.lease.owners = self.shares.owners();
        if let Some(until_ns) = self.shares.until_ns() {
            self.lease.until_ns = until_ns;
        }
    }
}
