//! Builders and a simulated clock for the core's tests.
#![allow(dead_code, reason = "each test file uses its own part")]

use palisade_core::{
    ActOutcome, Action, Core, CoreConfig, Decision, Effect, EffectId, Grant, Input, LeaseId,
    Member, Mode, PolicyOutput, PolicyRef, Power, ProcessId, ProtectList, Reason, Request,
    Severity, Target, TargetFacts, Verdict, WorkloadId,
};

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000 * MS;
pub const MINUTE: u64 = 60 * SECOND;
/// The agent's own pid in these tests.
pub const AGENT: u32 = 900;

pub fn config() -> CoreConfig {
    CoreConfig {
        host_actions_per_minute: 100,
        loss_window_ms: 10_000,
        max_leases: 8,
        disarmed: false,
    }
}

pub fn grant(mode: Mode) -> Grant {
    Grant {
        mode,
        max_power: Power::Kill,
        cooldown_ms: 0,
        actions_per_minute: 50,
        max_lease_ms: 60_000,
        min_quota_permille: 50,
    }
}

pub fn policy(name: &str) -> PolicyRef {
    PolicyRef {
        name: name.to_owned(),
        version: "1.0.0".to_owned(),
        sha256: "ab".repeat(32),
        generation: 1,
    }
}

pub fn protect() -> ProtectList {
    ProtectList::new(&[AGENT, 1], Some("/usr/local/bin/palisade"))
}

pub fn workload(number: u64) -> Target {
    Target::Workload(WorkloadId(number))
}

pub fn process(pid: u32) -> ProcessId {
    ProcessId {
        pid,
        start_ns: u64::from(pid) * SECOND,
    }
}

pub fn member(pid: u32, exe: &str) -> Member {
    Member {
        process: process(pid),
        exe: exe.to_owned(),
        kernel_thread: false,
    }
}

/// Facts about a workload of one harmless process, whose pid is its number plus 1,000.
pub fn facts(number: u64) -> TargetFacts {
    TargetFacts {
        alive: true,
        detail: String::new(),
        workload: Some(WorkloadId(number)),
        cgroup: Some(format!("/ml/job-{number}")),
        watched: true,
        members: vec![member(
            1_000_u32.wrapping_add(number as u32),
            "/opt/train/python3",
        )],
    }
}

pub fn request(target: Target, action: Action, lease_ms: u32) -> Request {
    Request {
        target,
        action,
        lease_ms,
        severity: Severity::Warning,
        reason: "held the driver for 80 % of the window".to_owned(),
        evidence: Vec::new(),
    }
}

pub fn done() -> ActOutcome {
    ActOutcome::Done {
        observed: "read back".to_owned(),
        original: None,
    }
}

pub fn failed() -> ActOutcome {
    ActOutcome::Failed {
        error: "write cpu.max: EIO".to_owned(),
    }
}

/// A core with a clock that the test sets.
pub struct Sim {
    pub core: Core,
    pub now_ns: u64,
}

impl Sim {
    /// Policies `a` and `b` that enforce, and `o` that observes.
    pub fn new() -> Self {
        Self::with(config(), grant(Mode::Enforce))
    }

    pub fn with(config: CoreConfig, enforcing: Grant) -> Self {
        let core = Core::new(config, protect(), 7_000);
        let observing = Grant {
            mode: Mode::Observe,
            ..enforcing.clone()
        };
        let mut sim = Self {
            core,
            now_ns: 1_000 * SECOND,
        };
        sim.step(Input::Policies(vec![
            (policy("a"), enforcing.clone()),
            (policy("b"), enforcing),
            (policy("o"), observing),
        ]));
        sim
    }

    pub fn step(&mut self, input: Input) -> Vec<Effect> {
        self.core.step(self.now_ns, input)
    }

    pub fn tick_after(&mut self, ns: u64) -> Vec<Effect> {
        self.now_ns += ns;
        self.step(Input::Tick)
    }

    pub fn ask_with(&mut self, who: &str, request: Request, facts: TargetFacts) -> Vec<Effect> {
        self.step(Input::Requests(PolicyOutput {
            policy: policy(who),
            batch: 1,
            requests: vec![(request, facts)],
        }))
    }

    /// Asks about a harmless workload.
    pub fn ask(&mut self, who: &str, number: u64, action: Action, lease_ms: u32) -> Vec<Effect> {
        self.ask_with(
            who,
            request(workload(number), action, lease_ms),
            facts(number),
        )
    }

    pub fn outcome(&mut self, effect: EffectId, outcome: ActOutcome) -> Vec<Effect> {
        self.step(Input::Outcome { effect, outcome })
    }

    /// Asks and answers the act with `Done`; panics if there is none.
    pub fn ask_done(&mut self, who: &str, number: u64, action: Action, lease_ms: u32) -> LeaseId {
        let effects = self.ask(who, number, action, lease_ms);
        let (effect, lease) = act(&effects).expect("acts");
        assert_eq!(self.outcome(effect, done()), []);
        lease.unwrap_or(LeaseId(0))
    }
}

/// The only decision among the effects.
pub fn decision(effects: &[Effect]) -> &Decision {
    let mut decisions = effects.iter().filter_map(|effect| match effect {
        Effect::Record { decision } => Some(decision),
        _ => None,
    });
    let decision = decisions.next().expect("a decision");
    assert_eq!(decisions.next(), None, "one decision a request");
    decision
}

pub fn verdict(effects: &[Effect]) -> &Verdict {
    &decision(effects).verdict
}

pub fn refusal(effects: &[Effect]) -> Option<&Reason> {
    match verdict(effects) {
        Verdict::Refused { reason } => {
            let last = effects.last();
            assert!(
                matches!(last, Some(Effect::Record { .. })),
                "nothing follows"
            );
            Some(reason)
        }
        _ => None,
    }
}

/// The gate that refused, or the verdict's name.
pub fn answer(effects: &[Effect]) -> &'static str {
    refusal(effects).map_or_else(|| verdict(effects).name(), Reason::gate)
}

/// The first act among the effects, with its lease.
pub fn act(effects: &[Effect]) -> Option<(EffectId, Option<LeaseId>)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Act { id, lease, .. } => Some((*id, lease.as_ref().map(|lease| lease.id))),
        _ => None,
    })
}

/// The action of the first act among the effects.
pub fn action(effects: &[Effect]) -> Option<Action> {
    effects.iter().find_map(|effect| match effect {
        Effect::Act { action, .. } => Some(*action),
        _ => None,
    })
}

/// The first undo among the effects, with its lease and why.
pub fn undo(effects: &[Effect]) -> Option<(EffectId, LeaseId, &str)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Undo { id, lease, why } => Some((*id, lease.id, why.as_str())),
        _ => None,
    })
}
