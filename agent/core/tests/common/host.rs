//! A simulated host: an executor that carries effects out in order and answers late, and a
//! witness that checks every effect against what it knows independently of the core.

use crate::common::*;
use palisade_core::{
    ActOutcome, Action, Core, CoreConfig, Decision, Effect, EffectId, Grant, Input, LeaseId, Mode,
    PolicyRef, Request, TargetFacts, Verdict, WorkloadId,
};
use palisade_core::{Knob, Lease};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Longest wait for an outcome, as the core documents it.
const OUTCOME_NS: u64 = MINUTE;

/// An act or undo that waits for its turn.
struct Waiting {
    effect: Effect,
    since_ns: u64,
}

/// What a policy may count on: the knob is held at this value or stricter until then.
struct Promise {
    policy: String,
    value: u32,
    until_ns: u64,
}

/// The host and its witness.
pub struct Host {
    pub core: Core,
    pub now_ns: u64,
    /// Everything that went in and came out, for comparison with a second run.
    pub inputs: Vec<(u64, Input)>,
    pub outputs: Vec<Vec<Effect>>,
    config: CoreConfig,
    grants: BTreeMap<String, Grant>,
    queue: VecDeque<Waiting>,
    kernel: BTreeMap<(WorkloadId, Knob), u32>,
    promises: BTreeMap<(WorkloadId, Knob), Vec<Promise>>,
    /// An act under the lease failed, so that not every promise is kept any more.
    uncertain: BTreeSet<(WorkloadId, Knob)>,
    decisions: BTreeMap<u64, (Decision, TargetFacts)>,
    numbers: BTreeSet<(&'static str, u64)>,
    last_value: BTreeMap<LeaseId, u32>,
    granted: BTreeMap<(bool, String), Vec<u64>>,
    losses: Vec<(u64, Option<WorkloadId>)>,
    recordable: bool,
    disarmed: bool,
    orphans: usize,
    in_force: BTreeSet<LeaseId>,
    closings: BTreeMap<LeaseId, usize>,
    /// The core stopped waiting for an outcome, so that an undo may be given twice.
    gave_up: bool,
}

impl Host {
    pub fn new(config: CoreConfig) -> Self {
        Self {
            core: Core::new(config.clone(), protect(), 1),
            now_ns: SECOND,
            inputs: Vec::new(),
            outputs: Vec::new(),
            disarmed: config.disarmed,
            config,
            grants: BTreeMap::new(),
            queue: VecDeque::new(),
            kernel: BTreeMap::new(),
            promises: BTreeMap::new(),
            uncertain: BTreeSet::new(),
            decisions: BTreeMap::new(),
            numbers: BTreeSet::new(),
            last_value: BTreeMap::new(),
            granted: BTreeMap::new(),
            losses: Vec::new(),
            recordable: true,
            orphans: 0,
            in_force: BTreeSet::new(),
            closings: BTreeMap::new(),
            gave_up: false,
        }
    }

    pub fn step(&mut self, input: Input) {
        self.notice_silence();
        self.inputs.push((self.now_ns, input.clone()));
        let mut asked: VecDeque<(Request, TargetFacts)> = VecDeque::new();
        match &input {
            Input::Policies(policies) => {
                let named =
                    |(policy, grant): &(PolicyRef, Grant)| (policy.name.clone(), grant.clone());
                self.grants = policies.iter().map(named).collect();
                let grants = &self.grants;
                for ((_, knob), promises) in &mut self.promises {
                    promises.retain(|promise| {
                        let grant = grants.get(&promise.policy);
                        let enforces = |grant: &Grant| grant.mode == Mode::Enforce;
                        grant
                            .is_some_and(|grant| enforces(grant) && grant.max_power >= knob.power())
                    });
                }
            }
            Input::Requests(output) => asked.extend(output.requests.iter().cloned()),
            Input::Lost { workload, count } if *count > 0 => {
                self.losses.push((self.now_ns, *workload));
            }
            Input::Disarm(on) => self.disarmed = *on,
            Input::Recordable(on) => self.recordable = *on,
            Input::Orphan(lease) => {
                self.orphans += 1;
                self.in_force.insert(lease.id);
            }
            _ => {}
        }
        let effects = self.core.step(self.now_ns, input);
        for effect in &effects {
            self.witness(effect, &mut asked);
        }
        assert!(asked.is_empty(), "every request is decided");
        let late = self.core.next_deadline().filter(|&at| at <= self.now_ns);
        assert_eq!(late, None, "what is due is done");
        let leases = self.core.leases().count();
        assert!(leases <= self.config.max_leases as usize + self.orphans);
        self.outputs.push(effects);
        self.check_promises();
    }

    /// Carries out the effect that waits longest.
    pub fn answer(&mut self, outcome: ActOutcome) -> bool {
        self.notice_silence();
        let Some(Waiting { effect, .. }) = self.queue.pop_front() else {
            return false;
        };
        let worked = matches!(outcome, ActOutcome::Done { .. });
        let id = match effect {
            Effect::Act {
                id,
                lease: Some(lease),
                ..
            } => {
                if worked {
                    self.kernel
                        .insert((lease.workload, lease.knob), lease.value);
                    self.in_force.insert(lease.id);
                } else {
                    self.promises.remove(&(lease.workload, lease.knob));
                    self.uncertain.insert((lease.workload, lease.knob));
                }
                id
            }
            Effect::Act { id, .. } => id,
            Effect::Undo { id, lease, .. } => {
                if worked || matches!(outcome, ActOutcome::Gone | ActOutcome::ForeignChange { .. })
                {
                    self.kernel.remove(&(lease.workload, lease.knob));
                    *self.closings.entry(lease.id).or_default() += 1;
                }
                id
            }
            other => panic!("not for the executor: {other:?}"),
        };
        self.step(Input::Outcome {
            effect: id,
            outcome,
        });
        true
    }

    /// Lets all time pass and everything work: nothing may be left.
    pub fn wind_down(&mut self) {
        for _ in 0..10_000 {
            if self.answer(done()) {
                continue;
            }
            let Some(deadline_ns) = self.core.next_deadline() else {
                break;
            };
            self.now_ns = self.now_ns.max(deadline_ns);
            self.step(Input::Tick);
        }
        assert_eq!(self.core.leases().count(), 0, "every lease ends");
        assert_eq!(self.kernel, BTreeMap::new(), "nothing stays changed");
        for lease in &self.in_force {
            let closings = self.closings.get(lease).copied().unwrap_or(0);
            assert!(closings >= 1, "{lease:?} was in force and never undone");
            assert!(
                self.gave_up || closings == 1,
                "{lease:?} was undone {closings} times"
            );
        }
    }

    fn notice_silence(&mut self) {
        let now_ns = self.now_ns;
        let waits_long = |waiting: &Waiting| now_ns - waiting.since_ns >= OUTCOME_NS;
        self.gave_up |= self.queue.iter().any(waits_long);
    }

    fn witness(&mut self, effect: &Effect, asked: &mut VecDeque<(Request, TargetFacts)>) {
        match effect {
            Effect::Record { decision } => {
                let (request, facts) = asked.pop_front().expect("a decision for a request");
                assert_eq!(decision.request, request, "in the order of the requests");
                self.unique("decision", decision.id);
                self.budgets(decision);
                self.promise(decision, &facts);
                self.decisions
                    .insert(decision.id, (decision.clone(), facts));
            }
            Effect::Act {
                id,
                decision,
                policy,
                action,
                lease,
                ..
            } => {
                self.unique("effect", id.0);
                self.act(*id, *decision, policy, *action, lease.as_ref());
                self.enqueue(effect);
            }
            Effect::Alert { id, decision, .. } => {
                self.unique("effect", id.0);
                let (decision, _) = &self.decisions[decision];
                let granted = Verdict::Granted {
                    effect: *id,
                    clamped: None,
                };
                assert_eq!(decision.verdict, granted);
                assert_eq!(decision.request.action, Action::Alert);
            }
            Effect::Undo { id, lease, .. } => {
                self.unique("effect", id.0);
                self.undo(lease);
                self.enqueue(effect);
            }
            Effect::Renew { until_ns, .. } => assert!(*until_ns > self.now_ns),
        }
    }

    fn act(
        &mut self,
        id: EffectId,
        decision: u64,
        policy: &str,
        action: Action,
        lease: Option<&Lease>,
    ) {
        let (decision, facts) = self.decisions.get(&decision).expect("recorded before");
        assert_eq!(decision.policy.name, policy);
        assert!(facts.alive && facts.watched, "the target was vouched for");
        let protection = protect().check(&decision.request.target, facts);
        assert_eq!(protection, None, "nothing protected is acted on");
        let grant = self.grants.get(policy).expect("loaded");
        assert_eq!(grant.mode, Mode::Enforce, "who observes never acts");
        assert!(grant.max_power >= action.power());
        assert!(!self.disarmed);
        match &decision.verdict {
            Verdict::Granted { effect, .. } if *effect == id => {}
            Verdict::Granted { .. } | Verdict::Renewed { .. } => {
                let lease = lease.expect("only a lease acts twice");
                let before = self.last_value[&lease.id];
                assert!(lease.value >= before, "only loosening follows later");
            }
            other => panic!("{other:?} is no leave to act"),
        }
        if let Some(lease) = lease {
            self.last_value.insert(lease.id, lease.value);
            assert!(lease.until_ns > self.now_ns, "a lease has an end ahead");
        }
        if action.irreversible() {
            let window_ns = self.config.loss_window_ms * MS;
            let lossy = self.losses.iter().any(|(at_ns, whose)| {
                self.now_ns - at_ns < window_ns && (whose.is_none() || *whose != facts.workload)
            });
            assert!(!lossy, "nothing irreversible in a lossy window");
            assert!(self.recordable, "nothing irreversible without a record");
        }
    }

    fn undo(&mut self, lease: &Lease) {
        let acts = self.queue.iter().filter(|waiting| match &waiting.effect {
            Effect::Act {
                lease: Some(of), ..
            } => of.id == lease.id,
            _ => false,
        });
        // Of silence the core makes an end: the first that is overdue speaks for those behind it.
        let oldest_ns = acts.map(|waiting| waiting.since_ns).min();
        let unknown = oldest_ns.is_some_and(|since_ns| self.now_ns - since_ns < OUTCOME_NS);
        assert!(!unknown, "an undo waits for the outcome of the act");
        self.promises.remove(&(lease.workload, lease.knob));
        self.uncertain.remove(&(lease.workload, lease.knob));
    }

    fn enqueue(&mut self, effect: &Effect) {
        let (effect, since_ns) = (effect.clone(), self.now_ns);
        self.queue.push_back(Waiting { effect, since_ns });
    }

    fn unique(&mut self, sort: &'static str, number: u64) {
        assert!(self.numbers.insert((sort, number)), "{sort} {number} twice");
    }

    fn budgets(&mut self, decision: &Decision) {
        if !matches!(decision.verdict, Verdict::Granted { .. }) {
            return;
        }
        let alert = decision.request.action == Action::Alert;
        let name = &decision.policy.name;
        let per_minute = self.grants[name].actions_per_minute as usize;
        let now_ns = self.now_ns;
        let recent = |stamps: &Vec<u64>| stamps.iter().filter(|&&at| now_ns - at < MINUTE).count();
        let mine = self.granted.entry((alert, name.clone())).or_default();
        mine.push(now_ns);
        assert!(recent(mine) <= per_minute, "the policy's budget holds");
        let all = self.granted.iter().filter(|((of, _), _)| *of == alert);
        let all: usize = all.map(|(_, stamps)| recent(stamps)).sum();
        assert!(
            all <= self.config.host_actions_per_minute as usize,
            "the host's budget holds"
        );
    }

    fn promise(&mut self, decision: &Decision, facts: &TargetFacts) {
        if !matches!(
            decision.verdict,
            Verdict::Granted { .. } | Verdict::Renewed { .. }
        ) {
            return;
        }
        let grant = &self.grants[&decision.policy.name];
        let (knob, value) = match decision.request.action {
            Action::CpuWeight(weight) => (Knob::CpuWeight, weight),
            Action::CpuQuota(quota) => (Knob::CpuQuota, quota.max(grant.min_quota_permille)),
            Action::Freeze => (Knob::Freeze, 1),
            _ => return,
        };
        let lease_ms = decision.request.lease_ms.min(grant.max_lease_ms);
        let workload = facts.workload.expect("a workload");
        self.promises
            .entry((workload, knob))
            .or_default()
            .push(Promise {
                policy: decision.policy.name.clone(),
                value,
                until_ns: self.now_ns + u64::from(lease_ms) * MS,
            });
    }

    /// With all outcomes known, the kernel holds the strictest promise, and nothing stricter.
    fn check_promises(&mut self) {
        let now_ns = self.now_ns;
        for (key, promises) in &mut self.promises {
            promises.retain(|promise| promise.until_ns > now_ns);
            let on_key = |lease: &&Lease| (lease.workload, lease.knob) == *key;
            let waiting = self.queue.iter().any(|waiting| match &waiting.effect {
                Effect::Act {
                    lease: Some(lease), ..
                }
                | Effect::Undo { lease, .. } => on_key(&lease),
                _ => false,
            });
            let strictest = promises.iter().min_by_key(|promise| promise.value);
            if let (false, Some(strictest)) = (waiting, strictest) {
                let (value, policy) = (strictest.value, &strictest.policy);
                let held = self.kernel.get(key).copied().unwrap_or(u32::MAX);
                assert!(
                    held <= value,
                    "{key:?} is {held}, {policy} asked for {value}"
                );
                if !self.uncertain.contains(key) {
                    assert_eq!(held, value, "{key:?} is stricter than {policy} asked for");
                }
            }
        }
    }
}
