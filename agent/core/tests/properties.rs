//! Random histories against the core's invariants; the witness in `common/host.rs` checks each
//! step.

mod common;
#[path = "common/host.rs"]
mod host;

use common::*;
use host::Host;
use palisade_core::{
    ActOutcome, Action, CoreConfig, Effect, Grant, Input, Knob, Lease, LeaseId, Mode, PolicyOutput,
    Power, Request, Target, TargetFacts, WorkloadId,
};
use proptest::prelude::*;

const POLICIES: [&str; 3] = ["a", "b", "o"];

/// Something that happens.
#[derive(Clone, Debug)]
enum Event {
    Ask(&'static str, Vec<(Request, TargetFacts)>),
    Answer(ActOutcome),
    Input(Input),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        1 => Just(Action::Alert),
        2 => prop::sample::select(vec![0, 1, 10, 20_000]).prop_map(Action::CpuWeight),
        4 => prop::sample::select(vec![0, 30, 100, 400]).prop_map(Action::CpuQuota),
        2 => Just(Action::Freeze),
        1 => Just(Action::Terminate),
        1 => Just(Action::Kill),
    ]
}

fn target_facts(number: u64) -> impl Strategy<Value = TargetFacts> {
    let protected = {
        let mut mixed = facts(number);
        mixed.members.push(member(40, "/usr/sbin/sshd"));
        mixed
    };
    prop_oneof![
        12 => Just(facts(number)),
        1 => Just(protected),
        1 => Just(TargetFacts { watched: false, ..facts(number) }),
        1 => Just(TargetFacts { alive: false, ..facts(number) }),
        1 => Just(TargetFacts { cgroup: Some("/".to_owned()), ..facts(number) }),
        1 => Just(TargetFacts { workload: None, ..facts(number) }),
    ]
}

fn ask() -> impl Strategy<Value = (Request, TargetFacts)> {
    let lease_ms = prop::sample::select(vec![0, 100, 700, 3_000, 20_000, u32::MAX]);
    (0_u64..4, any::<bool>(), action(), lease_ms).prop_flat_map(|(number, by_pid, action, ms)| {
        let target = if by_pid {
            Target::Process(process(1_000 + number as u32))
        } else {
            workload(number)
        };
        target_facts(number).prop_map(move |facts| (request(target, action, ms), facts))
    })
}

fn answered() -> impl Strategy<Value = ActOutcome> {
    let foreign = ActOutcome::ForeignChange {
        found: "7".to_owned(),
    };
    prop_oneof![
        8 => Just(done()),
        2 => Just(failed()),
        1 => Just(ActOutcome::Gone),
        1 => Just(ActOutcome::InDriverCall),
        1 => Just(foreign),
    ]
}

fn policies() -> impl Strategy<Value = Input> {
    let granted = (
        prop::sample::select(vec![Mode::Enforce, Mode::Enforce, Mode::Observe]),
        prop::sample::select(vec![Power::Alert, Power::Throttle, Power::Kill]),
        prop::sample::select(vec![0, 500, 5_000]),
        prop::sample::select(vec![1, 4, 20]),
    );
    let granted = granted.prop_map(|(mode, max_power, cooldown_ms, actions_per_minute)| Grant {
        mode,
        max_power,
        cooldown_ms,
        actions_per_minute,
        max_lease_ms: 10_000,
        min_quota_permille: 50,
    });
    let some = prop::collection::vec(prop::option::weighted(0.8, granted), POLICIES.len());
    some.prop_map(|grants| {
        let named = POLICIES.iter().zip(grants);
        let loaded = named.filter_map(|(name, grant)| Some((policy(name), grant?)));
        Input::Policies(loaded.collect())
    })
}

fn input() -> impl Strategy<Value = Input> {
    let lost = (prop::option::of((0_u64..4).prop_map(WorkloadId)), 0_u64..3);
    let release = prop::option::of((0_u64..9).prop_map(LeaseId));
    prop_oneof![
        8 => Just(Input::Tick),
        2 => lost.prop_map(|(workload, count)| Input::Lost { workload, count }),
        1 => (prop::sample::select(POLICIES.to_vec()), 0_u64..3)
            .prop_map(|(policy, count)| Input::Skipped { policy: policy.to_owned(), count }),
        1 => any::<bool>().prop_map(Input::Disarm),
        1 => any::<bool>().prop_map(Input::Recordable),
        1 => release.prop_map(Input::Release),
        1 => policies(),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let asks = prop::collection::vec(ask(), 1..4);
    prop_oneof![
        4 => (prop::sample::select(&POLICIES[..]), asks).prop_map(|(who, asks)| Event::Ask(who, asks)),
        4 => answered().prop_map(Event::Answer),
        2 => input().prop_map(Event::Input),
    ]
}

/// Milliseconds until the next event: often none, sometimes long.
fn pause() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => Just(0_u64),
        4 => 1_u64..400,
        2 => 400_u64..5_000,
        1 => 5_000_u64..70_000,
    ]
}

/// Whether time jumps over deadlines or a tick comes at each, as the runtime has it.
fn live_through(host: &mut Host, pause_ms: u64, event: Event, ticks: bool) {
    let at_ns = host.now_ns + pause_ms * MS;
    while let (true, Some(deadline_ns)) = (ticks, host.core.next_deadline())
        && deadline_ns <= at_ns
    {
        host.now_ns = deadline_ns;
        host.step(Input::Tick);
    }
    host.now_ns = at_ns;
    match event {
        Event::Ask(who, requests) => host.step(Input::Requests(PolicyOutput {
            policy: policy(who),
            batch: 1,
            requests,
        })),
        Event::Answer(outcome) => {
            host.answer(outcome);
        }
        Event::Input(input) => host.step(input),
    }
}

fn orphan(number: u64) -> Lease {
    Lease {
        id: LeaseId(number),
        workload: WorkloadId(number),
        cgroup: format!("/ml/job-{number}"),
        knob: Knob::CpuQuota,
        value: 100,
        owners: vec!["gone".to_owned()],
        until_ns: 5,
    }
}

fn host(grants: Input, orphans: u64) -> Host {
    let mut host = Host::new(CoreConfig {
        host_actions_per_minute: 25,
        loss_window_ms: 2_000,
        max_leases: 5,
        disarmed: false,
    });
    for number in 0..orphans {
        host.step(Input::Orphan(orphan(number)));
    }
    host.step(grants);
    host
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_keep_every_invariant(
        grants in policies(),
        orphans in 0_u64..3,
        ticks: bool,
        events in prop::collection::vec((pause(), event()), 1..120),
    ) {
        let mut host = host(grants, orphans);
        for (pause_ms, event) in events {
            live_through(&mut host, pause_ms, event, ticks);
        }
        host.wind_down();
    }

    #[test]
    fn the_same_inputs_give_the_same_effects_also_by_way_of_json(
        grants in policies(),
        events in prop::collection::vec((pause(), event()), 1..60),
    ) {
        let mut first = host(grants, 1);
        for (pause_ms, event) in events {
            live_through(&mut first, pause_ms, event, true);
        }
        let config = CoreConfig {
            host_actions_per_minute: 25,
            loss_window_ms: 2_000,
            max_leases: 5,
            disarmed: false,
        };
        let mut second = palisade_core::Core::new(config, protect(), 1);
        for ((now_ns, input), expected) in first.inputs.iter().zip(&first.outputs) {
            let text = serde_json::to_string(input).expect("writes");
            let input: Input = serde_json::from_str(&text).expect("reads");
            let effects = second.step(*now_ns, input);
            prop_assert_eq!(&effects, expected);
            let text = serde_json::to_string(&effects).expect("writes");
            let read: Vec<Effect> = serde_json::from_str(&text).expect("reads");
            prop_assert_eq!(&effects, &read);
        }
    }

    #[test]
    fn extreme_numbers_do_not_panic(
        steps in prop::collection::vec((any::<u64>(), extreme()), 1..60),
    ) {
        let config = CoreConfig {
            host_actions_per_minute: u32::MAX,
            loss_window_ms: u64::MAX,
            max_leases: u32::MAX,
            disarmed: false,
        };
        let mut core = palisade_core::Core::new(config, protect(), u64::MAX);
        let grant = Grant {
            cooldown_ms: u64::MAX,
            actions_per_minute: u32::MAX,
            max_lease_ms: u32::MAX,
            min_quota_permille: u32::MAX,
            ..grant(Mode::Enforce)
        };
        core.step(0, Input::Policies(vec![(policy("a"), grant)]));
        for (now_ns, input) in steps {
            core.step(now_ns, input);
            let _ = (core.next_deadline(), core.status());
        }
    }
}

fn extreme() -> impl Strategy<Value = Input> {
    let number = || prop::sample::select(vec![0, 1, u64::MAX]);
    let short = || prop::sample::select(vec![0, 1, u32::MAX]);
    let any_action = prop_oneof![
        short().prop_map(Action::CpuWeight),
        short().prop_map(Action::CpuQuota),
        Just(Action::Freeze),
        Just(Action::Kill),
        Just(Action::Alert),
    ];
    let asks = (number(), any_action, short()).prop_map(|(number, action, lease_ms)| {
        let facts = TargetFacts {
            members: vec![member(2, "/x")],
            ..facts(number)
        };
        Input::Requests(PolicyOutput {
            policy: policy("a"),
            batch: number,
            requests: vec![(request(workload(number), action, lease_ms), facts)],
        })
    });
    let outcome = ((0_u64..20), answered()).prop_map(|(effect, outcome)| Input::Outcome {
        effect: palisade_core::EffectId(effect),
        outcome,
    });
    let lost = (prop::option::of(number()), number());
    prop_oneof![
        4 => asks,
        3 => outcome,
        1 => lost.prop_map(|(workload, count)| Input::Lost { workload: workload.map(WorkloadId), count }),
        1 => number().prop_map(|number| Input::Orphan(Lease { id: LeaseId(number), ..orphan(0) })),
        1 => prop::option::of(number()).prop_map(|id| Input::Release(id.map(LeaseId))),
        1 => Just(Input::Tick),
    ]
}
