//! The life of a lease, with a simulated clock.

mod common;

use common::*;
use palisade_core::{
    ActOutcome, Action, Effect, EffectId, Grant, Input, Knob, Lease, LeaseId, Mode, Phase, Power,
    WorkloadId,
};

const QUOTA: Action = Action::CpuQuota(200);

fn foreign() -> ActOutcome {
    ActOutcome::ForeignChange {
        found: "max 100000".to_owned(),
    }
}

#[test]
fn an_expired_lease_is_undone_once_at_its_deadline() {
    let mut sim = Sim::new();
    let id = sim.ask_done("a", 7, QUOTA, 5_000);
    assert_eq!(sim.core.next_deadline(), Some(sim.now_ns + 5 * SECOND));
    assert_eq!(sim.tick_after(5 * SECOND - 1), []);
    let effects = sim.tick_after(1);
    let (effect, lease, why) = undo(&effects).expect("undone");
    assert_eq!((effects.len(), lease, why), (1, id, "expired"));
    assert_eq!(sim.tick_after(SECOND), []);
    assert_eq!(sim.outcome(effect, done()), []);
    assert_eq!(sim.core.leases().count(), 0);
    assert_eq!(sim.core.next_deadline(), None);
    assert_eq!(sim.tick_after(MINUTE), []);
}

#[test]
fn an_act_names_the_lease_that_it_begins() {
    let mut sim = Sim::new();
    let effects = sim.ask("a", 7, Action::Freeze, 5_000);
    let [
        Effect::Record { decision },
        Effect::Act {
            decision: of,
            lease,
            workload,
            cgroup,
            ..
        },
    ] = effects.as_slice()
    else {
        panic!("{effects:?}")
    };
    assert_eq!(*of, decision.id);
    assert_eq!(*workload, Some(WorkloadId(7)));
    assert_eq!(cgroup.as_deref(), Some("/ml/job-7"));
    let expected = Lease {
        id: LeaseId(7_000),
        workload: WorkloadId(7),
        cgroup: "/ml/job-7".to_owned(),
        knob: Knob::Freeze,
        value: 1,
        owners: vec!["a".to_owned()],
        until_ns: sim.now_ns + 5 * SECOND,
    };
    assert_eq!(lease.as_ref(), Some(&expected));
}

#[test]
fn a_repeated_ask_renews_without_cooldown_or_budget() {
    let limits = Grant {
        cooldown_ms: 60_000,
        actions_per_minute: 1,
        ..grant(Mode::Enforce)
    };
    let mut sim = Sim::with(config(), limits);
    let lease = sim.ask_done("a", 7, QUOTA, 5_000);
    for _ in 0..20 {
        sim.now_ns += 4 * SECOND;
        let until_ns = sim.now_ns + 5 * SECOND;
        let effects = sim.ask("a", 7, QUOTA, 5_000);
        assert_eq!(answer(&effects), "renewed");
        assert_eq!(effects[1..], [Effect::Renew { lease, until_ns }]);
        assert_eq!(sim.core.next_deadline(), Some(until_ns));
    }
}

#[test]
fn a_milder_ask_renews_and_takes_over_when_the_stricter_one_ends() {
    let mut sim = Sim::new();
    let id = sim.ask_done("a", 7, Action::CpuQuota(100), 5_000);
    sim.now_ns += SECOND;
    assert_eq!(
        answer(&sim.ask("a", 7, Action::CpuQuota(400), 10_000)),
        "renewed"
    );
    let effects = sim.tick_after(4 * SECOND);
    assert_eq!(action(&effects), Some(Action::CpuQuota(400)));
    let (effect, lease) = act(&effects).expect("loosened");
    assert_eq!((effects.len(), lease), (1, Some(id)));
    sim.outcome(effect, done());
    let effects = sim.tick_after(6 * SECOND);
    assert_eq!(
        undo(&effects).map(|(_, id, why)| (id, why)),
        Some((id, "expired"))
    );
}

#[test]
fn the_strictest_policy_wins_and_the_next_takes_over() {
    let mut sim = Sim::new();
    let id = sim.ask_done("a", 7, Action::CpuQuota(300), 20_000);
    let effects = sim.ask("b", 7, Action::CpuQuota(100), 5_000);
    assert_eq!(answer(&effects), "granted");
    assert_eq!(action(&effects), Some(Action::CpuQuota(100)));
    let (effect, lease) = act(&effects).expect("tightens");
    assert_eq!(lease, Some(id));
    sim.outcome(effect, done());
    let lease = sim.core.leases().next().expect("one");
    assert_eq!((lease.value, lease.owners.len()), (100, 2));
    assert_eq!(lease.until_ns, sim.now_ns + 20 * SECOND);

    let effects = sim.tick_after(5 * SECOND);
    assert_eq!(action(&effects), Some(Action::CpuQuota(300)));
    sim.outcome(act(&effects).expect("loosens").0, done());
    let lease = sim.core.leases().next().expect("one");
    assert_eq!(
        (lease.value, lease.owners.as_slice()),
        (300, &["a".to_owned()][..])
    );
}

#[test]
fn knobs_of_one_workload_are_leases_of_their_own() {
    let mut sim = Sim::new();
    let quota = sim.ask_done("a", 7, QUOTA, 5_000);
    let weight = sim.ask_done("a", 7, Action::CpuWeight(10), 6_000);
    let freeze = sim.ask_done("a", 7, Action::Freeze, 7_000);
    assert_eq!([quota, weight, freeze], [7_000, 7_001, 7_002].map(LeaseId));
}

#[test]
fn a_failed_first_act_leaves_no_lease_and_is_tried_again_later() {
    for outcome in [
        failed(),
        ActOutcome::Gone,
        ActOutcome::InDriverCall,
        foreign(),
    ] {
        let limits = Grant {
            cooldown_ms: 20_000,
            ..grant(Mode::Enforce)
        };
        let mut sim = Sim::with(config(), limits);
        let effects = sim.ask("a", 7, QUOTA, 5_000);
        let (effect, _) = act(&effects).expect("acts");
        let effects = sim.outcome(effect, outcome.clone());
        if outcome == failed() {
            // It may have been done in part.
            let (effect, _, why) = undo(&effects).expect("undo");
            assert_eq!(why, "act failed");
            assert_eq!(sim.outcome(effect, done()), []);
        } else {
            assert_eq!(effects, []);
        }
        assert_eq!(sim.core.leases().count(), 0, "{outcome:?}");
        assert_eq!(sim.core.next_deadline(), None);
        assert_eq!(answer(&sim.ask("a", 7, QUOTA, 5_000)), "cooldown");
        if outcome == foreign() {
            sim.now_ns += MINUTE;
        } else {
            sim.now_ns += SECOND;
        }
        assert_eq!(
            answer(&sim.ask("a", 7, QUOTA, 5_000)),
            "granted",
            "{outcome:?}"
        );
    }
}

#[test]
fn an_act_that_keeps_failing_is_tried_ever_more_rarely() {
    let mut sim = Sim::new();
    let mut attempts = 0;
    for _ in 0..600 {
        let effects = sim.ask("a", 7, QUOTA, 5_000);
        if let Some((effect, _)) = act(&effects) {
            attempts += 1;
            let effects = sim.outcome(effect, failed());
            sim.outcome(undo(&effects).expect("undo").0, done());
        }
        sim.now_ns += SECOND;
    }
    assert_eq!(
        attempts, 10,
        "at 0, 1, 3, 7, 15, 31, 63, 127, 255 and 511 s"
    );
}

#[test]
fn what_works_again_is_not_held_against_it() {
    let mut sim = Sim::new();
    for _ in 0..5 {
        let effects = sim.ask("a", 7, QUOTA, 5_000);
        let (effect, _) = act(&effects).expect("acts");
        let effects = sim.outcome(effect, failed());
        sim.outcome(undo(&effects).expect("undo").0, done());
        sim.now_ns += SECOND;
        sim.ask_done("a", 7, QUOTA, 5_000);
        let effects = sim.step(Input::Release(None));
        sim.outcome(undo(&effects).expect("undo").0, done());
    }
}

#[test]
fn a_kill_that_keeps_failing_does_not_loop() {
    let mut sim = Sim::new();
    let mut attempts = 0;
    for _ in 0..3_000 {
        let effects = sim.ask("a", 7, Action::Kill, 0);
        if let Some((effect, _)) = act(&effects) {
            attempts += 1;
            sim.outcome(effect, failed());
        }
        sim.now_ns += SECOND;
    }
    assert_eq!(attempts, 3);
}

#[test]
fn a_kill_without_an_outcome_counts_as_failed() {
    let mut sim = Sim::new();
    assert_eq!(answer(&sim.ask("a", 7, Action::Kill, 0)), "granted");
    sim.tick_after(MINUTE);
    assert_eq!(answer(&sim.ask("a", 7, Action::Kill, 0)), "cooldown");
}

#[test]
fn a_failed_tightening_keeps_what_is_in_force() {
    let mut sim = Sim::new();
    let id = sim.ask_done("a", 7, Action::CpuQuota(300), 20_000);
    let effects = sim.ask("b", 7, Action::CpuQuota(100), 10_000);
    let (effect, _) = act(&effects).expect("tightens");
    assert_eq!(sim.outcome(effect, failed()), []);
    let lease = sim.core.leases().next().expect("still there");
    assert_eq!((lease.id, lease.value), (id, 300));
    assert_eq!(
        answer(&sim.ask("b", 7, Action::CpuQuota(100), 10_000)),
        "cooldown"
    );
    sim.now_ns += SECOND;
    assert_eq!(
        answer(&sim.ask("b", 7, Action::CpuQuota(100), 10_000)),
        "granted"
    );
}

#[test]
fn a_failed_undo_is_retried_until_done_and_stays_visible() {
    let mut sim = Sim::new();
    let id = sim.ask_done("a", 7, QUOTA, 1_000);
    let mut effects = sim.tick_after(SECOND);
    for wait in [1, 2, 4, 8, 16, 30, 30] {
        let (effect, lease, why) = undo(&effects).expect("undo");
        assert_eq!((lease, why), (id, "expired"));
        assert_eq!(sim.outcome(effect, failed()), []);
        assert_eq!(sim.core.next_deadline(), Some(sim.now_ns + wait * SECOND));
        let status = sim.core.status();
        assert_eq!(status.leases[0].phase, Phase::Ending);
        assert_eq!(
            status.leases[0].last_error.as_deref(),
            Some("write cpu.max: EIO")
        );
        assert_eq!(answer(&sim.ask("a", 7, QUOTA, 1_000)), "cooldown");
        assert_eq!(sim.tick_after(wait * SECOND - 1), []);
        effects = sim.tick_after(1);
    }
    sim.outcome(undo(&effects).expect("undo").0, done());
    assert_eq!(sim.core.leases().count(), 0);
    assert_eq!(answer(&sim.ask("a", 7, QUOTA, 1_000)), "granted");
}

#[test]
fn an_undo_that_finds_nothing_or_a_foreign_value_closes_the_lease() {
    for (outcome, next) in [(ActOutcome::Gone, "granted"), (foreign(), "cooldown")] {
        let mut sim = Sim::new();
        sim.ask_done("a", 7, QUOTA, 1_000);
        let effects = sim.tick_after(SECOND);
        let (effect, ..) = undo(&effects).expect("undo");
        assert_eq!(sim.outcome(effect, outcome), []);
        assert_eq!(sim.core.leases().count(), 0);
        assert_eq!(sim.core.next_deadline(), None);
        assert_eq!(answer(&sim.ask("a", 7, QUOTA, 1_000)), next);
    }
}

#[test]
fn a_failed_loosening_is_retried_and_a_gone_target_is_undone() {
    let mut sim = Sim::new();
    sim.ask_done("a", 7, Action::CpuQuota(300), 60_000);
    sim.ask_done("b", 7, Action::CpuQuota(100), 1_000);
    let effects = sim.tick_after(SECOND);
    sim.outcome(act(&effects).expect("loosens").0, failed());
    assert_eq!(sim.core.leases().next().map(|lease| lease.value), Some(100));
    assert_eq!(sim.core.status().leases[0].failures, 1);
    let effects = sim.tick_after(SECOND);
    assert_eq!(action(&effects), Some(Action::CpuQuota(300)));
    sim.outcome(act(&effects).expect("loosens").0, done());
    let status = sim.core.status();
    assert_eq!(
        (status.leases[0].failures, status.leases[0].lease.value),
        (0, 300)
    );
    assert_eq!(
        sim.core.next_deadline(),
        Some(status.leases[0].lease.until_ns)
    );

    sim.ask_done("b", 7, Action::CpuQuota(100), 1_000);
    let effects = sim.tick_after(SECOND);
    let effects = sim.outcome(act(&effects).expect("loosens").0, ActOutcome::Gone);
    assert_eq!(undo(&effects).map(|(_, _, why)| why), Some("target gone"));
}

#[test]
fn an_undo_waits_for_the_outcome_of_the_act() {
    let mut sim = Sim::new();
    let effects = sim.ask("a", 7, QUOTA, 1_000);
    let (effect, _) = act(&effects).expect("acts");
    assert_eq!(sim.tick_after(2 * SECOND), []);
    let effects = sim.outcome(effect, done());
    assert_eq!(undo(&effects).map(|(_, _, why)| why), Some("expired"));

    let effects = sim.ask("a", 8, QUOTA, 1_000);
    let (effect, _) = act(&effects).expect("acts");
    assert_eq!(sim.step(Input::Disarm(true)), []);
    assert_eq!(sim.outcome(effect, ActOutcome::Gone), [], "nothing to undo");
}

#[test]
fn an_act_whose_outcome_never_comes_is_undone() {
    let mut sim = Sim::new();
    sim.ask("a", 7, QUOTA, 60_000);
    assert_eq!(sim.core.next_deadline(), Some(sim.now_ns + MINUTE));
    let effects = sim.tick_after(MINUTE);
    let (effect, _, why) = undo(&effects).expect("undo");
    assert_eq!(why, "no outcome");
    sim.outcome(effect, done());
    assert_eq!(sim.core.leases().count(), 0);
}

#[test]
fn outcomes_of_unknown_effects_are_ignored() {
    let mut sim = Sim::new();
    sim.ask_done("a", 7, QUOTA, 1_000);
    assert_eq!(sim.outcome(EffectId(99), failed()), []);
    assert_eq!(sim.outcome(EffectId(u64::MAX), ActOutcome::Gone), []);
    assert_eq!(sim.core.leases().count(), 1);
}

#[test]
fn disarming_undoes_every_lease() {
    let mut sim = Sim::new();
    sim.ask_done("a", 7, QUOTA, 60_000);
    sim.ask_done("b", 8, Action::Freeze, 60_000);
    let effects = sim.step(Input::Disarm(true));
    assert_eq!(effects.len(), 2);
    for effect in effects {
        let Effect::Undo { id, why, .. } = effect else {
            panic!("{effect:?}")
        };
        assert_eq!(why, "disarmed");
        sim.outcome(id, done());
    }
    assert_eq!(sim.core.leases().count(), 0);
    assert_eq!(answer(&sim.ask("a", 7, QUOTA, 1_000)), "disarmed");
}

#[test]
fn leases_of_policies_that_may_no_longer_hold_them_are_undone_or_loosened() {
    let observe = grant(Mode::Observe);
    let weak = Grant {
        max_power: Power::Alert,
        ..grant(Mode::Enforce)
    };
    for b in [None, Some(observe), Some(weak)] {
        let mut sim = Sim::new();
        sim.ask_done("a", 7, Action::CpuQuota(300), 60_000);
        sim.ask_done("b", 7, Action::CpuQuota(100), 60_000);
        let alone = sim.ask_done("b", 8, Action::CpuQuota(100), 60_000);
        let mut policies = vec![(policy("a"), grant(Mode::Enforce))];
        policies.extend(b.map(|grant| (policy("b"), grant)));
        let effects = sim.step(Input::Policies(policies));
        assert_eq!(action(&effects), Some(Action::CpuQuota(300)));
        let (_, lease, why) = undo(&effects).expect("undo");
        assert_eq!((lease, why, effects.len()), (alone, "policy gone", 2));
    }
}

#[test]
fn a_tighter_grant_shortens_and_loosens_what_is_held() {
    let mut sim = Sim::new();
    sim.ask_done("a", 7, Action::CpuQuota(100), 60_000);
    let tighter = Grant {
        max_lease_ms: 2_000,
        min_quota_permille: 500,
        ..grant(Mode::Enforce)
    };
    let effects = sim.step(Input::Policies(vec![(policy("a"), tighter)]));
    assert_eq!(action(&effects), Some(Action::CpuQuota(500)));
    sim.outcome(act(&effects).expect("loosens").0, done());
    assert_eq!(sim.core.next_deadline(), Some(sim.now_ns + 2 * SECOND));
}

#[test]
fn a_release_by_hand_undoes_and_starts_the_owners_cooldown_anew() {
    let limits = Grant {
        cooldown_ms: 10_000,
        ..grant(Mode::Enforce)
    };
    let mut sim = Sim::with(config(), limits);
    let id = sim.ask_done("a", 7, QUOTA, 60_000);
    sim.ask_done("b", 8, QUOTA, 60_000);
    sim.now_ns += 30 * SECOND;
    assert_eq!(sim.step(Input::Release(Some(LeaseId(1)))), []);
    let effects = sim.step(Input::Release(Some(id)));
    let (effect, lease, why) = undo(&effects).expect("undo");
    assert_eq!((lease, why, effects.len()), (id, "released", 1));
    sim.outcome(effect, done());
    sim.now_ns += 10 * SECOND - 1;
    assert_eq!(answer(&sim.ask("a", 7, QUOTA, 1_000)), "cooldown");
    assert_eq!(sim.step(Input::Release(None)).len(), 1);
}

#[test]
fn an_orphan_is_undone_at_once_and_keeps_its_number() {
    let mut sim = Sim::new();
    let orphan = Lease {
        id: LeaseId(7_000),
        workload: WorkloadId(7),
        cgroup: "/ml/job-7".to_owned(),
        knob: Knob::CpuQuota,
        value: 200,
        owners: vec!["gone".to_owned()],
        until_ns: 0,
    };
    let effects = sim.step(Input::Orphan(orphan.clone()));
    let (effect, lease, why) = undo(&effects).expect("undo");
    assert_eq!((lease, why), (LeaseId(7_000), "orphaned"));
    assert_eq!(sim.step(Input::Orphan(orphan)), [], "known already");
    assert_eq!(answer(&sim.ask("a", 7, QUOTA, 1_000)), "cooldown");
    assert_eq!(sim.ask_done("a", 8, QUOTA, 1_000), LeaseId(7_001));
    sim.outcome(effect, done());
    assert_eq!(answer(&sim.ask("a", 7, QUOTA, 1_000)), "granted");
}

#[test]
fn a_request_at_the_very_deadline_comes_too_late() {
    let mut sim = Sim::new();
    let id = sim.ask_done("a", 7, QUOTA, 1_000);
    sim.now_ns += SECOND;
    let effects = sim.ask("a", 7, QUOTA, 1_000);
    assert_eq!(undo(&effects[..1]).map(|(_, id, _)| id), Some(id));
    assert_eq!(answer(&effects[1..]), "cooldown");
}

#[test]
fn time_that_goes_backwards_stands_still() {
    let mut sim = Sim::new();
    sim.ask_done("a", 7, QUOTA, 1_000);
    let now_ns = sim.now_ns;
    sim.now_ns = 0;
    assert_eq!(sim.step(Input::Tick), []);
    sim.ask_done("a", 8, QUOTA, 1_000);
    assert_eq!(sim.core.next_deadline(), Some(now_ns + SECOND));
}
