//! From a request to a verdict.
//!
//! Invariants:
//! - Every request yields exactly one recorded decision, which precedes the effect that follows
//!   from it.
//! - A policy that observes passes the same gates, against books of its own; nothing follows but
//!   alerts, which are delivered in either mode because they act on nobody.
//! - Nothing is booked before the last gate is passed.

use crate::account::Account;
use crate::core::{Core, Shot, cooldown_ns};
use crate::gates::{self, Circumstances, Containment, Step};
use crate::held::{Held, Phase};
use crate::loss::Lost;
use crate::retry::Key;
use crate::shares::Share;
use crate::{
    Decision, Effect, Evidence, Grant, Lease, Mode, PolicyOutput, Reason, Request, Target,
    TargetFacts, Verdict,
};

/// A request with all that is decided about it together.
struct Ask<'a> {
    policy: &'a str,
    grant: &'a Grant,
    decision: u64,
    request: &'a Request,
    facts: &'a TargetFacts,
}

/// A verdict that is no refusal, with the effect that follows.
type Answer = Result<(Verdict, Option<Effect>), Reason>;

impl Core {
    pub(crate) fn requests(&mut self, output: PolicyOutput, out: &mut Vec<Effect>) {
        let PolicyOutput {
            policy,
            batch,
            requests,
        } = output;
        let grant = self
            .policies
            .get(&policy.name)
            .map(|(_, grant)| grant.clone());
        for (request, facts) in requests {
            let id = self.numbers.decision();
            let answer = match &grant {
                Some(grant) => {
                    let (request, facts) = (&request, &facts);
                    self.judge(&Ask {
                        policy: &policy.name,
                        grant,
                        decision: id,
                        request,
                        facts,
                    })
                }
                None => Err(Reason::Invalid {
                    detail: "the policy is not loaded".to_owned(),
                }),
            };
            let (verdict, effect) =
                answer.unwrap_or_else(|reason| (Verdict::Refused { reason }, None));
            self.tally.count(&policy.name, &verdict);
            let policy = policy.clone();
            let decision = Decision {
                id,
                batch,
                policy,
                request,
                verdict,
            };
            out.push(Effect::Record { decision });
            out.extend(effect);
        }
    }

    fn judge(&mut self, ask: &Ask<'_>) -> Answer {
        match (
            gates::request(&self.protect, ask.grant, ask.request, ask.facts)?,
            ask.grant.mode,
        ) {
            (Step::Alert, _) => self.alert(ask),
            (Step::Contain(what), Mode::Enforce) => self.contain(ask, what),
            (Step::Contain(what), Mode::Observe) => self.observe_contain(ask, &what),
            (Step::Strike { target }, Mode::Enforce) => self.strike(ask, target),
            (Step::Strike { target }, Mode::Observe) => {
                let mut around = self.around(&self.shadow, ask, target);
                self.final_gates(&mut around, ask);
                gates::circumstances(around)?;
                self.shadow.charge(ask.policy, self.now_ns);
                self.shadow
                    .cool(ask.policy, target, self.now_ns, cooldown_ns(ask.grant));
                Ok((Verdict::Observed, None))
            }
        }
    }

    fn alert(&mut self, ask: &Ask<'_>) -> Answer {
        let (policy, now_ns) = (ask.policy, self.now_ns);
        let (target, severity) = (ask.request.target, ask.request.severity);
        if let Some(until_ns) = self.quiet.until(policy, target, severity, now_ns) {
            self.quiet.hold_back(policy, target);
            return Err(Reason::Cooldown { until_ns });
        }
        if let Err(reason) = self.budget(&self.alerts, ask) {
            self.quiet.hold_back(policy, target);
            return Err(reason);
        }
        self.alerts.charge(policy, now_ns);
        let quiet_ns = cooldown_ns(ask.grant);
        let held_back = self
            .quiet
            .delivered(policy, target, severity, now_ns, quiet_ns);
        let mut evidence = ask.request.evidence.clone();
        if held_back > 0 {
            evidence.push(Evidence {
                name: "held back since the last alert".to_owned(),
                value: held_back as f64,
                unit: "alerts".to_owned(),
            });
        }
        let id = self.numbers.effect();
        let effect = Effect::Alert {
            id,
            decision: ask.decision,
            policy: policy.to_owned(),
            target,
            cgroup: ask.facts.cgroup.clone(),
            severity,
            reason: ask.request.reason.clone(),
            evidence,
        };
        Ok((
            Verdict::Granted {
                effect: id,
                clamped: None,
            },
            Some(effect),
        ))
    }

    fn contain(&mut self, ask: &Ask<'_>, what: Containment) -> Answer {
        let now_ns = self.now_ns;
        let on_knob =
            |held: &&Held| held.lease.workload == what.workload && held.lease.knob == what.knob;
        let ending = self
            .held
            .values()
            .filter(on_knob)
            .find(|held| held.phase() == Phase::Ending);
        let busy_until_ns = ending.map(|held| held.busy_until_ns(now_ns));
        let active = self
            .held
            .values()
            .filter(on_knob)
            .find(|held| held.phase() != Phase::Ending);
        let active = active.map(|held| held.lease.id);
        if let Some(held) = active.and_then(|id| self.held.get_mut(&id))
            && held.shares.holds(ask.policy, what.value, now_ns)
        {
            held.renew(share(ask, &what, now_ns));
            return Ok(renewed(&held.lease));
        }

        let target = Target::Workload(what.workload);
        let mut around = self.around(&self.acts, ask, target);
        let failing = self
            .backoff
            .waiting(Key::Knob(what.workload, what.knob), now_ns);
        around.cooling_until_ns = around
            .cooling_until_ns
            .into_iter()
            .chain(failing)
            .chain(busy_until_ns)
            .max();
        around.leases = active
            .is_none()
            .then_some((self.held.len(), self.config.max_leases));
        gates::circumstances(around)?;

        self.book(ask, target);
        let id = active.unwrap_or_else(|| self.numbers.lease(|id| self.held.contains_key(&id)));
        let share = share(ask, &what, now_ns);
        let lease = Lease {
            id,
            workload: what.workload,
            cgroup: what.cgroup,
            knob: what.knob,
            value: what.value,
            owners: Vec::new(),
            until_ns: share.until_ns,
        };
        let held = self.held.entry(id).or_insert_with(|| Held::new(lease));
        match held.ask(share, &mut self.numbers, now_ns) {
            Some((effect, act)) => Ok((
                Verdict::Granted {
                    effect,
                    clamped: what.clamped,
                },
                Some(act),
            )),
            None => Ok(renewed(&held.lease)),
        }
    }

    fn observe_contain(&mut self, ask: &Ask<'_>, what: &Containment) -> Answer {
        let key = (what.workload, what.knob);
        let known = self.shadow_leases.get(&key);
        if !known.is_some_and(|shares| shares.holds(ask.policy, what.value, self.now_ns)) {
            let target = Target::Workload(what.workload);
            let mut around = self.around(&self.shadow, ask, target);
            let leases = self.held.len().saturating_add(self.shadow_leases.len());
            around.leases = known.is_none().then_some((leases, self.config.max_leases));
            gates::circumstances(around)?;
            self.shadow.charge(ask.policy, self.now_ns);
            self.shadow
                .cool(ask.policy, target, self.now_ns, cooldown_ns(ask.grant));
        }
        let share = share(ask, what, self.now_ns);
        self.shadow_leases.entry(key).or_default().put(share);
        Ok((Verdict::Observed, None))
    }

    fn strike(&mut self, ask: &Ask<'_>, target: Target) -> Answer {
        let mut around = self.around(&self.acts, ask, target);
        let failing = self.backoff.waiting(Key::Strike(target), self.now_ns);
        around.cooling_until_ns = around.cooling_until_ns.into_iter().chain(failing).max();
        self.final_gates(&mut around, ask);
        gates::circumstances(around)?;

        self.book(ask, target);
        let id = self.numbers.effect();
        let shot = Shot {
            policy: ask.policy.to_owned(),
            target,
            give_up_ns: self.give_up_ns(),
        };
        self.shots.insert(id, shot);
        let effect = Effect::Act {
            id,
            decision: ask.decision,
            policy: ask.policy.to_owned(),
            target: ask.request.target,
            workload: ask.facts.workload,
            cgroup: ask.facts.cgroup.clone(),
            action: ask.request.action,
            lease: None,
        };
        Ok((
            Verdict::Granted {
                effect: id,
                clamped: None,
            },
            Some(effect),
        ))
    }

    fn around(&self, account: &Account, ask: &Ask<'_>, target: Target) -> Circumstances {
        Circumstances {
            cooling_until_ns: account.cooling(ask.policy, target, self.now_ns),
            budget: self.budget(account, ask),
            leases: None,
            lost: Lost::default(),
            unrecordable: false,
            disarmed: self.disarmed,
        }
    }

    /// What is looked at only where there is no way back.
    fn final_gates(&self, around: &mut Circumstances, ask: &Ask<'_>) {
        let own = ask.facts.workload;
        around.lost = self
            .losses
            .about_others(own, ask.policy, self.now_ns, self.loss_window_ns());
        around.unrecordable = !self.recordable;
    }

    fn budget(&self, account: &Account, ask: &Ask<'_>) -> Result<(), Reason> {
        let host = self.config.host_actions_per_minute;
        account.budget(ask.policy, ask.grant.actions_per_minute, host, self.now_ns)
    }

    fn book(&mut self, ask: &Ask<'_>, target: Target) {
        self.acts.charge(ask.policy, self.now_ns);
        self.acts
            .cool(ask.policy, target, self.now_ns, cooldown_ns(ask.grant));
        // Policies that observe would have shared the host's budget with this one.
        self.shadow.charge_host(self.now_ns);
    }
}

fn share(ask: &Ask<'_>, what: &Containment, now_ns: u64) -> Share {
    Share {
        policy: ask.policy.to_owned(),
        value: what.value,
        until_ns: now_ns.saturating_add(what.lease_ns),
        decision: ask.decision,
        target: ask.request.target,
    }
}

fn renewed(lease: &Lease) -> (Verdict, Option<Effect>) {
    let (lease, until_ns) = (lease.id, lease.until_ns);
    (
        Verdict::Renewed { until_ns },
        Some(Effect::Renew { lease, until_ns }),
    )
}
