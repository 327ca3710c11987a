//! Policies that only observe, and alerts.

mod common;

use common::*;
use palisade_core::{
    Action, CoreConfig, Effect, Grant, Input, Mode, Reason, Severity, TargetFacts, Verdict,
};

const QUOTA: Action = Action::CpuQuota(200);

/// The answers to the same asks, by a policy of either mode.
fn answers(who: &str, script: &[(u64, u64, Action)]) -> Vec<&'static str> {
    let limits = Grant {
        cooldown_ms: 10_000,
        actions_per_minute: 3,
        ..grant(Mode::Enforce)
    };
    let host = CoreConfig {
        max_leases: 2,
        ..config()
    };
    let mut sim = Sim::with(host, limits);
    let mut answers = Vec::new();
    for &(wait_ns, number, action) in script {
        for effect in sim.tick_after(wait_ns) {
            let (Effect::Act { id, .. } | Effect::Undo { id, .. }) = effect else {
                continue;
            };
            sim.outcome(id, done());
        }
        let effects = sim.ask(who, number, action, 5_000);
        if let Some((effect, _)) = act(&effects) {
            assert_ne!(who, "o", "who observes never acts");
            sim.outcome(effect, done());
        }
        answers.push(answer(&effects));
    }
    answers
}

#[test]
fn what_is_observed_is_what_would_have_been_done() {
    let script = [
        (0, 1, QUOTA),
        (SECOND, 1, QUOTA),
        (SECOND, 1, Action::CpuQuota(100)),
        (SECOND, 2, QUOTA),
        (SECOND, 3, QUOTA),
        (10 * SECOND, 1, QUOTA),
        (10 * SECOND, 4, Action::Kill),
        (40 * SECOND, 4, Action::Kill),
        (SECOND, 4, Action::Kill),
    ];
    let enforced = answers("a", &script);
    let observed = answers("o", &script);
    let expected = [
        "granted",
        "renewed",
        "cooldown",
        "granted",
        "lease_limit",
        "granted",
        "budget",
        "granted",
        "cooldown",
    ];
    assert_eq!(enforced, expected);
    let shadow = expected.map(|answer| match answer {
        "granted" | "renewed" => "observed",
        refused => refused,
    });
    assert_eq!(observed, shadow);
}

#[test]
fn observing_costs_those_who_enforce_nothing() {
    let host = CoreConfig {
        host_actions_per_minute: 1,
        max_leases: 1,
        ..config()
    };
    let mut sim = Sim::with(host, grant(Mode::Enforce));
    assert_eq!(answer(&sim.ask("o", 1, QUOTA, 5_000)), "observed");
    assert_eq!(answer(&sim.ask("o", 1, Action::Freeze, 5_000)), "budget");
    assert_eq!(answer(&sim.ask("a", 1, QUOTA, 5_000)), "granted");
    assert_eq!(answer(&sim.ask("a", 1, Action::Kill, 0)), "budget");
}

#[test]
fn the_action_of_another_counts_in_the_books_of_who_observes() {
    let host = CoreConfig {
        host_actions_per_minute: 1,
        ..config()
    };
    let mut sim = Sim::with(host, grant(Mode::Enforce));
    assert_eq!(answer(&sim.ask("a", 1, QUOTA, 5_000)), "granted");
    assert_eq!(answer(&sim.ask("o", 2, QUOTA, 5_000)), "budget");
}

#[test]
fn alerts_are_delivered_in_either_mode() {
    for who in ["a", "o"] {
        let effects = Sim::new().ask(who, 7, Action::Alert, 0);
        let [
            Effect::Record { decision },
            Effect::Alert {
                id,
                decision: of,
                policy,
                cgroup,
                ..
            },
        ] = effects.as_slice()
        else {
            panic!("{effects:?}")
        };
        let granted = Verdict::Granted {
            effect: *id,
            clamped: None,
        };
        assert_eq!((&decision.verdict, *of), (&granted, decision.id));
        assert_eq!(
            (policy.as_str(), cgroup.as_deref()),
            (who, Some("/ml/job-7"))
        );
    }
}

#[test]
fn an_alert_may_tell_of_the_dead_and_of_the_protected() {
    let dead = TargetFacts::default();
    let mut protected = facts(7);
    protected.members.push(member(1, "/sbin/init"));
    for facts in [dead, protected] {
        let request = request(workload(7), Action::Alert, 0);
        assert_eq!(answer(&Sim::new().ask_with("a", request, facts)), "granted");
    }
}

#[test]
fn the_same_alert_is_held_back_and_counted() {
    let limits = Grant {
        cooldown_ms: 10_000,
        ..grant(Mode::Enforce)
    };
    let mut sim = Sim::with(config(), limits);
    let until_ns = sim.now_ns + 10 * SECOND;
    assert_eq!(answer(&sim.ask("a", 7, Action::Alert, 0)), "granted");
    for _ in 0..3 {
        sim.now_ns += SECOND;
        let effects = sim.ask("a", 7, Action::Alert, 0);
        assert_eq!(refusal(&effects), Some(&Reason::Cooldown { until_ns }));
    }
    assert_eq!(answer(&sim.ask("a", 8, Action::Alert, 0)), "granted");
    assert_eq!(answer(&sim.ask("b", 7, Action::Alert, 0)), "granted");
    sim.now_ns = until_ns;
    let effects = sim.ask("a", 7, Action::Alert, 0);
    let Some(Effect::Alert { evidence, .. }) = effects.get(1) else {
        panic!("{effects:?}")
    };
    assert_eq!(evidence.len(), 1);
    assert_eq!(
        (evidence[0].value, evidence[0].unit.as_str()),
        (3.0, "alerts")
    );
    assert!(decision(&effects).request.evidence.is_empty());
}

#[test]
fn a_more_severe_alert_is_not_held_back() {
    let limits = Grant {
        cooldown_ms: 10_000,
        ..grant(Mode::Enforce)
    };
    let mut sim = Sim::with(config(), limits);
    sim.ask("a", 7, Action::Alert, 0);
    let mut worse = request(workload(7), Action::Alert, 0);
    worse.severity = Severity::Critical;
    assert_eq!(
        answer(&sim.ask_with("a", worse.clone(), facts(7))),
        "granted"
    );
    assert_eq!(answer(&sim.ask_with("a", worse, facts(7))), "cooldown");
}

#[test]
fn alerts_have_a_budget_of_their_own() {
    let limits = Grant {
        actions_per_minute: 2,
        ..grant(Mode::Enforce)
    };
    let mut sim = Sim::with(config(), limits);
    for (number, expected) in [(1, "granted"), (2, "granted"), (3, "budget")] {
        assert_eq!(answer(&sim.ask("a", number, Action::Alert, 0)), expected);
    }
    assert_eq!(answer(&sim.ask("a", 1, QUOTA, 5_000)), "granted");
    assert_eq!(answer(&sim.ask("a", 2, QUOTA, 5_000)), "granted");
    assert_eq!(answer(&sim.ask("a", 3, QUOTA, 5_000)), "budget");
}

#[test]
fn a_policy_set_to_observe_leaves_no_shadow_when_it_enforces() {
    let mut sim = Sim::new();
    assert_eq!(answer(&sim.ask("o", 7, QUOTA, 5_000)), "observed");
    sim.step(Input::Policies(vec![(policy("o"), grant(Mode::Enforce))]));
    assert_eq!(answer(&sim.ask("o", 7, QUOTA, 5_000)), "granted");
}

#[test]
fn the_status_counts_decisions_by_policy_and_gate() {
    let mut sim = Sim::new();
    sim.ask_done("a", 7, QUOTA, 5_000);
    sim.ask("a", 7, QUOTA, 5_000);
    sim.ask("o", 7, QUOTA, 5_000);
    sim.ask("a", 7, Action::CpuQuota(0), 5_000);
    let status = sim.core.status();
    assert_eq!(status.host_actions_last_minute, 1);
    assert_eq!(status.policies.len(), 3);
    assert_eq!(status.policies[0].actions_last_minute, 1);
    assert_eq!(status.policies[2].observed_last_minute, 1);
    let counts = serde_json::to_value(&status.decisions).expect("serializes");
    let expected = serde_json::json!({
        "granted": 1, "renewed": 1, "observed": 1, "refused.invalid": 1
    });
    assert_eq!(counts, expected);
    let lease = &serde_json::to_value(&status).expect("serializes")["leases"][0];
    assert_eq!(
        (&lease["phase"], &lease["value"]),
        (&"in_force".into(), &200.into())
    );
}
