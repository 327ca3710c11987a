//! Each gate, alone and in its order.

mod common;

use common::*;
use palisade_core::{
    Action, CoreConfig, Evidence, Grant, Input, Mode, Power, Reason, Severity, Target, TargetFacts,
    WorkloadId,
};

const QUOTA: Action = Action::CpuQuota(200);

#[test]
fn a_target_that_cannot_be_vouched_for_is_refused() {
    let dead = TargetFacts {
        detail: "pid 1007 started later".to_owned(),
        ..TargetFacts::default()
    };
    let nobody = TargetFacts {
        members: Vec::new(),
        ..facts(7)
    };
    let another = facts(8);
    let unplaced = TargetFacts {
        workload: None,
        ..facts(7)
    };
    let pathless = TargetFacts {
        cgroup: None,
        ..facts(7)
    };
    let of_process = Target::Process(process(1_007));
    let stranger = Target::Process(process(1_999));
    for (target, action, facts, refused) in [
        (workload(7), QUOTA, dead.clone(), true),
        (workload(7), QUOTA, nobody.clone(), true),
        (workload(7), QUOTA, another, true),
        (workload(7), QUOTA, unplaced.clone(), true),
        (workload(7), QUOTA, pathless.clone(), true),
        (of_process, QUOTA, unplaced.clone(), true),
        (of_process, Action::Kill, pathless, true),
        (stranger, Action::Terminate, facts(7), true),
        (of_process, Action::Terminate, nobody, true),
        (of_process, Action::Terminate, unplaced, false),
        (of_process, QUOTA, facts(7), false),
        (workload(7), QUOTA, facts(7), false),
        (of_process, Action::Alert, dead, false),
    ] {
        let effects = Sim::new().ask_with("a", request(target, action, 1_000), facts.clone());
        let expected = if refused { "identity" } else { "granted" };
        assert_eq!(
            answer(&effects),
            expected,
            "{target:?} {action:?} {facts:?}"
        );
    }
}

#[test]
fn the_refusal_of_a_gone_target_says_what_is_there_instead() {
    let gone = TargetFacts {
        detail: "pid 1007 started later".to_owned(),
        ..TargetFacts::default()
    };
    let effects = Sim::new().ask_with("a", request(workload(7), QUOTA, 1_000), gone);
    let detail = "pid 1007 started later".to_owned();
    assert_eq!(refusal(&effects), Some(&Reason::Identity { detail }));
}

#[test]
fn one_protected_member_vetoes_all_but_alerts() {
    let mut mixed = facts(7);
    mixed
        .members
        .push(member(50, "/usr/bin/containerd-shim-runc-v2"));
    for (action, expected) in [
        (QUOTA, "protected"),
        (Action::CpuWeight(10), "protected"),
        (Action::Freeze, "protected"),
        (Action::Kill, "protected"),
        (Action::Alert, "granted"),
    ] {
        let effects = Sim::new().ask_with("a", request(workload(7), action, 1_000), mixed.clone());
        assert_eq!(answer(&effects), expected, "{action}");
    }
}

#[test]
fn unwatched_workloads_are_left_alone() {
    let unwatched = TargetFacts {
        watched: false,
        ..facts(7)
    };
    for action in [QUOTA, Action::Kill, Action::Alert] {
        let request = request(workload(7), action, 1_000);
        let effects = Sim::new().ask_with("a", request, unwatched.clone());
        assert_eq!(refusal(&effects), Some(&Reason::OutOfScope), "{action}");
    }
}

#[test]
fn every_action_needs_its_power() {
    let powers = [
        Power::Alert,
        Power::Throttle,
        Power::Freeze,
        Power::Signal,
        Power::Kill,
    ];
    for granted in powers {
        for action in [
            Action::Alert,
            Action::CpuWeight(10),
            QUOTA,
            Action::Freeze,
            Action::Terminate,
            Action::Kill,
        ] {
            let grant = Grant {
                max_power: granted,
                ..grant(Mode::Enforce)
            };
            let request = request(Target::Process(process(1_007)), action, 1_000);
            let effects = Sim::with(config(), grant).ask_with("a", request, facts(7));
            let needs = action.power();
            if needs <= granted {
                assert_eq!(answer(&effects), "granted", "{action} with {granted:?}");
            } else {
                assert_eq!(refusal(&effects), Some(&Reason::Power { needs, granted }));
            }
        }
    }
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let of_process = Target::Process(process(1_007));
    for (target, action, lease_ms, expected) in [
        (workload(7), Action::CpuQuota(0), 1_000, "invalid"),
        (workload(7), Action::CpuQuota(8_192_001), 1_000, "invalid"),
        (workload(7), Action::CpuQuota(8_192_000), 1_000, "granted"),
        (workload(7), Action::CpuWeight(0), 1_000, "invalid"),
        (workload(7), Action::CpuWeight(10_001), 1_000, "invalid"),
        (workload(7), Action::CpuWeight(1), 1_000, "granted"),
        (workload(7), Action::CpuWeight(10_000), 1_000, "granted"),
        (workload(7), Action::Freeze, 0, "invalid"),
        (workload(7), Action::Freeze, 99, "invalid"),
        (workload(7), Action::Freeze, 100, "granted"),
        (workload(7), Action::Terminate, 0, "invalid"),
        (of_process, Action::Terminate, 0, "granted"),
        (of_process, Action::Kill, 0, "granted"),
        (workload(7), Action::Kill, 0, "granted"),
    ] {
        let effects = Sim::new().ask_with("a", request(target, action, lease_ms), facts(7));
        assert_eq!(
            answer(&effects),
            expected,
            "{target:?} {action:?} {lease_ms}"
        );
    }
}

#[test]
fn evidence_must_be_finite() {
    for (value, expected) in [
        (f64::NAN, "invalid"),
        (f64::INFINITY, "invalid"),
        (1.5, "granted"),
    ] {
        let mut request = request(workload(7), Action::Alert, 0);
        let (name, unit) = ("hold".to_owned(), "ms".to_owned());
        request.evidence.push(Evidence { name, value, unit });
        let effects = Sim::new().ask_with("a", request, facts(7));
        assert_eq!(answer(&effects), expected, "{value}");
    }
}

#[test]
fn a_policy_that_is_not_loaded_is_refused() {
    let effects = Sim::new().ask("stranger", 7, Action::Alert, 0);
    assert_eq!(answer(&effects), "invalid");
}

#[test]
fn harsher_asks_than_allowed_are_clamped_and_say_so() {
    let limits = Grant {
        max_lease_ms: 5_000,
        min_quota_permille: 100,
        ..grant(Mode::Enforce)
    };
    let mut sim = Sim::with(config(), limits);
    let effects = sim.ask("a", 7, Action::CpuQuota(20), 60_000);
    assert_eq!(action(&effects), Some(Action::CpuQuota(100)));
    let until_ns = sim.core.leases().next().map(|lease| lease.until_ns);
    assert_eq!(until_ns, Some(sim.now_ns + 5 * SECOND));
    let palisade_core::Verdict::Granted { clamped, .. } = verdict(&effects) else {
        panic!("{effects:?}")
    };
    let expected = "lease 60000 ms to 5000 ms, quota 20 to 100 thousandths of a CPU";
    assert_eq!(clamped.as_deref(), Some(expected));
}

#[test]
fn the_cooldown_is_per_policy_and_target() {
    let limits = Grant {
        cooldown_ms: 15_000,
        ..grant(Mode::Enforce)
    };
    let mut sim = Sim::with(config(), limits);
    sim.ask_done("a", 7, QUOTA, 1_000);
    let until_ns = sim.now_ns + 15 * SECOND;
    for (who, number, action, expected) in [
        ("a", 7, Action::CpuWeight(10), "cooldown"),
        ("a", 7, Action::CpuQuota(100), "cooldown"),
        ("a", 7, QUOTA, "renewed"),
        ("a", 8, QUOTA, "granted"),
        ("b", 7, Action::CpuWeight(10), "granted"),
    ] {
        assert_eq!(
            answer(&sim.ask(who, number, action, 1_000)),
            expected,
            "{who}"
        );
    }
    sim.now_ns = until_ns - 1;
    let effects = sim.ask("a", 7, Action::Kill, 0);
    assert_eq!(refusal(&effects), Some(&Reason::Cooldown { until_ns }));
    sim.now_ns = until_ns;
    assert_eq!(answer(&sim.ask("a", 7, Action::Kill, 0)), "granted");
}

#[test]
fn budgets_of_policy_and_host_hold_over_a_sliding_minute() {
    let limits = Grant {
        actions_per_minute: 2,
        ..grant(Mode::Enforce)
    };
    let host = CoreConfig {
        host_actions_per_minute: 3,
        ..config()
    };
    let mut sim = Sim::with(host, limits);
    sim.ask_done("a", 1, QUOTA, 60_000);
    sim.now_ns += 10 * SECOND;
    sim.ask_done("a", 2, QUOTA, 60_000);
    let budget = |scope: &str, per_minute| Reason::Budget {
        scope: scope.to_owned(),
        per_minute,
    };
    let effects = sim.ask("a", 3, QUOTA, 60_000);
    assert_eq!(refusal(&effects), Some(&budget("policy", 2)));
    sim.ask_done("b", 3, QUOTA, 60_000);
    let effects = sim.ask("b", 4, QUOTA, 60_000);
    assert_eq!(refusal(&effects), Some(&budget("host", 3)));
    sim.now_ns += 50 * SECOND - 1;
    assert_eq!(answer(&sim.ask("a", 4, QUOTA, 60_000)), "budget");
    sim.now_ns += 1;
    assert_eq!(answer(&sim.ask("a", 4, QUOTA, 60_000)), "granted");
}

#[test]
fn a_reload_clears_neither_budget_nor_cooldown() {
    let limits = Grant {
        actions_per_minute: 1,
        cooldown_ms: 30_000,
        ..grant(Mode::Enforce)
    };
    let mut sim = Sim::with(config(), limits.clone());
    sim.ask_done("a", 1, QUOTA, 60_000);
    sim.step(Input::Policies(Vec::new()));
    let mut reloaded = policy("a");
    reloaded.generation = 2;
    sim.step(Input::Policies(vec![(reloaded, limits)]));
    assert_eq!(
        answer(&sim.ask("a", 1, Action::CpuWeight(5), 60_000)),
        "cooldown"
    );
    assert_eq!(answer(&sim.ask("a", 2, QUOTA, 60_000)), "budget");
}

#[test]
fn leases_are_limited_and_joining_one_is_not_a_new_one() {
    let host = CoreConfig {
        max_leases: 1,
        ..config()
    };
    let mut sim = Sim::with(host, grant(Mode::Enforce));
    sim.ask_done("a", 1, QUOTA, 60_000);
    let effects = sim.ask("a", 2, QUOTA, 60_000);
    assert_eq!(refusal(&effects), Some(&Reason::LeaseLimit { limit: 1 }));
    assert_eq!(answer(&sim.ask("b", 1, QUOTA, 60_000)), "renewed");
    assert_eq!(answer(&sim.ask("a", 2, Action::Kill, 0)), "granted");
}

#[test]
fn losses_about_others_stop_what_cannot_be_undone() {
    let (own, other) = (Some(WorkloadId(7)), Some(WorkloadId(8)));
    for (lost, action, expected) in [
        (own, Action::Kill, "granted"),
        (other, Action::Kill, "lossy"),
        (None, Action::Kill, "lossy"),
        (other, Action::Terminate, "lossy"),
        (own, Action::Terminate, "granted"),
        (other, Action::Freeze, "granted"),
        (None, QUOTA, "granted"),
    ] {
        let mut sim = Sim::new();
        let (workload, count) = (lost, 5);
        sim.step(Input::Lost { workload, count });
        sim.now_ns += 10 * SECOND - 1;
        let asked = request(Target::Process(process(1_007)), action, 1_000);
        let effects = sim.ask_with("a", asked.clone(), facts(7));
        assert_eq!(answer(&effects), expected, "{lost:?} {action}");
        sim.now_ns += 1;
        if expected == "lossy" {
            assert_eq!(
                refusal(&effects),
                Some(&Reason::Lossy {
                    lost: 5,
                    skipped: 0
                })
            );
            assert_eq!(answer(&sim.ask_with("a", asked, facts(7))), "granted");
        }
    }
}

/// A program that the kernel skipped: (whose evidence rests on it, who asks, for what) and the answer.
#[test]
fn a_skipped_program_stops_what_cannot_be_undone_of_those_whose_evidence_it_is() {
    for (concerned, asks, action, expected) in [
        // Nobody is ended on evidence with a hole.
        ("a", "a", Action::Kill, "lossy"),
        ("a", "a", Action::Terminate, "lossy"),
        // Others' evidence has none.
        ("b", "a", Action::Kill, "granted"),
        ("b", "a", Action::Terminate, "granted"),
        // Whoever causes it is held all the same.
        ("a", "a", Action::Freeze, "granted"),
        ("a", "a", QUOTA, "granted"),
        ("a", "a", Action::CpuWeight(1), "granted"),
        ("a", "a", Action::Alert, "granted"),
    ] {
        for mode in [Mode::Enforce, Mode::Observe] {
            let mut sim = Sim::with(config(), grant(mode));
            let (policy, count) = (concerned.to_owned(), 3);
            sim.step(Input::Skipped { policy, count });
            let asked = request(Target::Process(process(1_007)), action, 1_000);
            let effects = sim.ask_with(asks, asked, facts(7));
            let expected = match (expected, mode, action) {
                ("granted", Mode::Observe, action) if action != Action::Alert => "observed",
                _ => expected,
            };
            assert_eq!(
                answer(&effects),
                expected,
                "{concerned}, {asks} {action} {mode:?}"
            );
            if expected == "lossy" {
                let (lost, skipped) = (3, 3);
                assert_eq!(refusal(&effects), Some(&Reason::Lossy { lost, skipped }));
            }
        }
    }
}

#[test]
fn who_causes_skipped_programs_gains_a_window_and_no_immunity() {
    let mut sim = Sim::new();
    let skip = |sim: &mut Sim| {
        let (policy, count) = ("a".to_owned(), 1_000);
        sim.step(Input::Skipped { policy, count });
    };
    // It goes on for as long as the target runs, and so does the refusal.
    for _ in 0..5 {
        skip(&mut sim);
        sim.now_ns += 9 * SECOND;
        assert_eq!(answer(&sim.ask("a", 7, Action::Kill, 0)), "lossy");
    }
    // Frozen, it causes none any more: a window later it can be ended.
    sim.ask_done("a", 7, Action::Freeze, 60_000);
    sim.now_ns += SECOND - 1;
    assert_eq!(answer(&sim.ask("a", 7, Action::Kill, 0)), "lossy");
    sim.now_ns += 1;
    assert_eq!(answer(&sim.ask("a", 7, Action::Kill, 0)), "granted");
}

#[test]
fn without_a_log_nothing_irreversible_is_done() {
    let mut sim = Sim::new();
    sim.step(Input::Recordable(false));
    assert_eq!(answer(&sim.ask("a", 7, Action::Kill, 0)), "unrecordable");
    assert_eq!(answer(&sim.ask("a", 7, Action::Freeze, 1_000)), "granted");
    assert_eq!(answer(&sim.ask("a", 7, Action::Alert, 0)), "granted");
    sim.step(Input::Recordable(true));
    assert_eq!(answer(&sim.ask("a", 7, Action::Kill, 0)), "granted");
}

#[test]
fn disarmed_only_alerts_pass_in_either_mode() {
    let host = CoreConfig {
        disarmed: true,
        ..config()
    };
    let mut sim = Sim::with(host, grant(Mode::Enforce));
    for who in ["a", "o"] {
        for (action, expected) in [
            (QUOTA, "disarmed"),
            (Action::Kill, "disarmed"),
            (Action::Alert, "granted"),
        ] {
            assert_eq!(
                answer(&sim.ask(who, 7, action, 1_000)),
                expected,
                "{who} {action}"
            );
        }
    }
    sim.step(Input::Disarm(false));
    assert_eq!(answer(&sim.ask("a", 7, QUOTA, 1_000)), "granted");
}

/// Everything is wrong with a request; mending one thing after another walks through the gates.
#[test]
fn the_first_gate_in_order_gives_the_reason() {
    let closed = Grant {
        max_power: Power::Alert,
        cooldown_ms: 1_000,
        actions_per_minute: 1,
        ..grant(Mode::Enforce)
    };
    let host = CoreConfig {
        host_actions_per_minute: 1,
        ..config()
    };
    let mut sim = Sim::with(host, closed.clone());
    let open = |grant: Grant| Input::Policies(vec![(policy("a"), grant)]);
    let mut kill = request(Target::Process(process(1_007)), Action::Kill, 0);
    let (name, unit) = ("hold".to_owned(), "ms".to_owned());
    kill.evidence.push(Evidence {
        name,
        value: f64::NAN,
        unit,
    });
    let mut bad = TargetFacts {
        alive: false,
        watched: false,
        ..facts(7)
    };
    bad.members.push(member(AGENT, "/usr/local/bin/palisade"));

    // Use up cooldown and budgets first.
    let power = Grant {
        max_power: Power::Kill,
        ..closed.clone()
    };
    sim.step(open(power.clone()));
    sim.ask_done("a", 7, QUOTA, 60_000);
    sim.step(open(closed));
    let (workload, count) = (None, 1);
    sim.step(Input::Lost { workload, count });
    sim.step(Input::Recordable(false));
    sim.step(Input::Disarm(true));

    let gate = |sim: &mut Sim, kill: &palisade_core::Request, bad: &TargetFacts| {
        answer(&sim.ask_with("a", kill.clone(), bad.clone()))
    };
    assert_eq!(gate(&mut sim, &kill, &bad), "identity");
    bad.alive = true;
    assert_eq!(gate(&mut sim, &kill, &bad), "protected");
    bad.members.pop();
    assert_eq!(gate(&mut sim, &kill, &bad), "out_of_scope");
    bad.watched = true;
    assert_eq!(gate(&mut sim, &kill, &bad), "power");
    sim.step(open(power.clone()));
    assert_eq!(gate(&mut sim, &kill, &bad), "invalid");
    kill.evidence.clear();
    assert_eq!(gate(&mut sim, &kill, &bad), "cooldown");
    sim.now_ns += SECOND;
    assert_eq!(gate(&mut sim, &kill, &bad), "budget");
    sim.now_ns += MINUTE;
    let (workload, count) = (None, 1);
    sim.step(Input::Lost { workload, count });
    assert_eq!(gate(&mut sim, &kill, &bad), "lossy");
    sim.now_ns += 10 * SECOND;
    assert_eq!(gate(&mut sim, &kill, &bad), "unrecordable");
    sim.step(Input::Recordable(true));
    assert_eq!(gate(&mut sim, &kill, &bad), "disarmed");
    sim.step(Input::Disarm(false));
    assert_eq!(gate(&mut sim, &kill, &bad), "granted");
    assert_eq!(Severity::Warning, kill.severity);
}
