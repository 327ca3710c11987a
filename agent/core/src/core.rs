//! The state machine.
//!
//! Order of a step: what time made due (leases that ended, retries), then the input, then what
//! the input made due. A request at the very nanosecond at which its lease ends comes too late.
//!
//! Time that goes backwards is taken to stand still. `Input::Orphan` belongs before the first
//! `Input::Requests`.

use crate::account::Account;
use crate::held::{Held, OUTCOME_NS, Report};
use crate::loss::Losses;
use crate::numbers::Numbers;
use crate::quiet::Quiet;
use crate::retry::{Backoff, FIRST_NS, FOREIGN_NS, Key};
use crate::shares::Shares;
use crate::status::{self, Status, Tally};
use crate::{
    ActOutcome, CoreConfig, Effect, EffectId, Grant, Input, Knob, Lease, LeaseId, Mode, PolicyRef,
    ProtectList, Target, WorkloadId, gates,
};
use std::collections::BTreeMap;

/// Time between two clean-ups of the tables, nanoseconds.
const PRUNE_NS: u64 = 1_000_000_000;

/// A signal or kill whose outcome is not known yet.
#[derive(Clone, Debug)]
pub(crate) struct Shot {
    pub(crate) policy: String,
    pub(crate) target: Target,
    pub(crate) give_up_ns: u64,
}

/// Decides what is done, from requests, time and outcomes alone.
#[derive(Clone, Debug)]
pub struct Core {
    pub(crate) config: CoreConfig,
    pub(crate) protect: ProtectList,
    pub(crate) now_ns: u64,
    pub(crate) numbers: Numbers,
    pub(crate) policies: BTreeMap<String, (PolicyRef, Grant)>,
    pub(crate) disarmed: bool,
    pub(crate) recordable: bool,
    /// Actions that were carried out.
    pub(crate) acts: Account,
    /// Actions that would have been, had the policies that observe been allowed to act.
    pub(crate) shadow: Account,
    /// Alerts, of policies in either mode.
    pub(crate) alerts: Account,
    pub(crate) quiet: Quiet,
    pub(crate) backoff: Backoff,
    pub(crate) losses: Losses,
    pub(crate) held: BTreeMap<LeaseId, Held>,
    pub(crate) shadow_leases: BTreeMap<(WorkloadId, Knob), Shares>,
    pub(crate) shots: BTreeMap<EffectId, Shot>,
    pub(crate) tally: Tally,
    next_prune_ns: u64,
}

impl Core {
    /// `run_seed` is the first lease number; the agent's start in `CLOCK_BOOTTIME` nanoseconds
    /// keeps numbers apart from those of earlier runs within a boot.
    pub fn new(config: CoreConfig, protect: ProtectList, run_seed: u64) -> Self {
        let disarmed = config.disarmed;
        Self {
            config,
            protect,
            now_ns: 0,
            numbers: Numbers::new(run_seed),
            policies: BTreeMap::new(),
            disarmed,
            recordable: true,
            acts: Account::default(),
            shadow: Account::default(),
            alerts: Account::default(),
            quiet: Quiet::default(),
            backoff: Backoff::default(),
            losses: Losses::default(),
            held: BTreeMap::new(),
            shadow_leases: BTreeMap::new(),
            shots: BTreeMap::new(),
            tally: Tally::default(),
            next_prune_ns: 0,
        }
    }

    /// Takes one input at `now_ns` (`CLOCK_BOOTTIME` nanoseconds). The effects are to be carried
    /// out in order, and each `Act` and `Undo` answered with an `Input::Outcome`.
    pub fn step(&mut self, now_ns: u64, input: Input) -> Vec<Effect> {
        self.now_ns = self.now_ns.max(now_ns);
        let mut out = Vec::new();
        self.settle(&mut out);
        match input {
            Input::Policies(policies) => self.set_policies(policies),
            Input::Requests(output) => self.requests(output, &mut out),
            Input::Outcome { effect, outcome } => self.outcome(effect, &outcome),
            Input::Lost { workload, count } => self.losses.note(workload, count, self.now_ns),
            Input::Missed { policy, count } => self.losses.missed(policy, count, self.now_ns),
            Input::Skipped { policy, count } => self.losses.skipped(policy, count, self.now_ns),
            Input::Disarm(disarmed) => self.disarm(disarmed),
            Input::Recordable(recordable) => self.recordable = recordable,
            Input::Orphan(lease) => self.orphan(lease),
            Input::Release(lease) => self.release(lease),
            Input::Tick => {}
        }
        self.settle(&mut out);
        self.prune();
        out
    }

    /// When the next `Input::Tick` is needed, `CLOCK_BOOTTIME` nanoseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        self.held.values().filter_map(Held::deadline_ns).min()
    }

    /// All leases that are not closed, by number.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.held.values().map(|held| &held.lease)
    }

    /// What the core holds at present, for people.
    pub fn status(&self) -> Status {
        status::of(self)
    }

    fn settle(&mut self, out: &mut Vec<Effect>) {
        for held in self.held.values_mut() {
            held.settle(self.now_ns, &mut self.numbers, out);
        }
        self.held.retain(|_, held| !held.closed());
        self.shadow_leases.retain(|_, shares| {
            shares.expire(self.now_ns);
            !shares.is_empty()
        });
    }

    fn set_policies(&mut self, policies: Vec<(PolicyRef, Grant)>) {
        let named = |(policy, grant): (PolicyRef, Grant)| (policy.name.clone(), (policy, grant));
        self.policies = policies.into_iter().map(named).collect();
        let (now_ns, policies) = (self.now_ns, &self.policies);
        let limits = |knob: Knob, mode: Mode| {
            move |policy: &str| {
                let (_, grant) = policies.get(policy)?;
                let lease_ns = u64::from(grant.max_lease_ms).saturating_mul(1_000_000);
                let may = grant.mode == mode && grant.max_power >= knob.power();
                let strictest = gates::strictest_value(grant, knob);
                may.then_some((strictest, now_ns.saturating_add(lease_ns)))
            }
        };
        for held in self.held.values_mut() {
            held.shares.fit(limits(held.lease.knob, Mode::Enforce));
            if held.shares.is_empty() {
                held.end("policy gone");
            }
        }
        for ((_, knob), shares) in &mut self.shadow_leases {
            shares.fit(limits(*knob, Mode::Observe));
        }
    }

    fn outcome(&mut self, effect: EffectId, outcome: &ActOutcome) {
        if let Some(shot) = self.shots.remove(&effect) {
            self.shot_outcome(&shot, outcome);
            return;
        }
        let now_ns = self.now_ns;
        let reported = self.held.values_mut().find_map(|held| {
            let report = held.outcome(effect, outcome, now_ns)?;
            Some((report, held.lease.workload, held.lease.knob))
        });
        let Some((report, workload, knob)) = reported else {
            return;
        };
        let key = Key::Knob(workload, knob);
        match report {
            Report::Nothing => {}
            Report::Worked => self.backoff.worked(key),
            Report::Failed { policy, counts } => {
                self.acts.warm(&policy, Target::Workload(workload));
                if counts {
                    self.backoff.failed(key, now_ns);
                } else {
                    self.backoff.wait(key, now_ns, FIRST_NS);
                }
            }
            Report::Foreign => self.backoff.wait(key, now_ns, FOREIGN_NS),
        }
    }

    fn shot_outcome(&mut self, shot: &Shot, outcome: &ActOutcome) {
        let key = Key::Strike(shot.target);
        match outcome {
            ActOutcome::Done { .. } | ActOutcome::Gone => self.backoff.worked(key),
            ActOutcome::InDriverCall => {
                self.acts.warm(&shot.policy, shot.target);
                self.backoff.wait(key, self.now_ns, FIRST_NS);
            }
            ActOutcome::ForeignChange { .. } | ActOutcome::Failed { .. } => {
                self.backoff.failed(key, self.now_ns);
            }
        }
    }

    fn disarm(&mut self, disarmed: bool) {
        self.disarmed = disarmed;
        if disarmed {
            self.held.values_mut().for_each(|held| held.end("disarmed"));
            self.shadow_leases.clear();
        }
    }

    fn orphan(&mut self, lease: Lease) {
        self.numbers.seen(lease.id);
        self.held
            .entry(lease.id)
            .or_insert_with(|| Held::orphan(lease));
    }

    /// Ends leases by hand. Their owners' cooldowns start anew, so that they do not come back at
    /// once.
    fn release(&mut self, which: Option<LeaseId>) {
        let matching = |held: &&mut Held| which.is_none_or(|id| held.lease.id == id);
        for held in self.held.values_mut().filter(matching) {
            held.end("released");
            let target = Target::Workload(held.lease.workload);
            for owner in &held.lease.owners {
                if let Some((_, grant)) = self.policies.get(owner) {
                    self.acts
                        .cool(owner, target, self.now_ns, cooldown_ns(grant));
                }
            }
        }
    }

    fn prune(&mut self) {
        let now_ns = self.now_ns;
        if now_ns < self.next_prune_ns {
            return;
        }
        self.next_prune_ns = now_ns.saturating_add(PRUNE_NS);
        for account in [&mut self.acts, &mut self.shadow, &mut self.alerts] {
            account.prune(now_ns);
        }
        self.quiet.prune(now_ns);
        let backoff = &mut self.backoff;
        self.shots.retain(|_, shot| {
            let waits = shot.give_up_ns > now_ns;
            if !waits {
                backoff.failed(Key::Strike(shot.target), now_ns);
            }
            waits
        });
        self.backoff.prune(now_ns);
        self.losses.prune(now_ns, self.loss_window_ns());
    }

    pub(crate) fn loss_window_ns(&self) -> u64 {
        self.config.loss_window_ms.saturating_mul(1_000_000)
    }

    pub(crate) fn give_up_ns(&self) -> u64 {
        self.now_ns.saturating_add(OUTCOME_NS)
    }
}

pub(crate) fn cooldown_ns(grant: &Grant) -> u64 {
    grant.cooldown_ms.saturating_mul(1_000_000)
}
