//! Inputs, effects and decisions as JSON: recordings and the audit log keep them.

mod common;

use common::*;
use palisade_core::{
    ActOutcome, Action, Decision, Effect, EffectId, Evidence, Input, Power, Reason, Target,
    Verdict, WorkloadId,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::fmt::Debug;

fn same_after_json<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) -> Value {
    let text = serde_json::to_string(value).expect("writes");
    let read: T = serde_json::from_str(&text).expect("reads");
    assert_eq!(&read, value, "{text}");
    // Audit lines go through a tree of values as well.
    let tree: Value = serde_json::from_str(&text).expect("is JSON");
    assert_eq!(
        &serde_json::from_value::<T>(tree.clone()).expect("reads"),
        value
    );
    tree
}

fn decided(verdict: Verdict) -> Decision {
    let mut request = request(Target::Process(process(7)), Action::CpuQuota(200), 5_000);
    request.evidence.push(Evidence {
        name: "hold".to_owned(),
        value: 0.75,
        unit: "s/s".to_owned(),
    });
    Decision {
        id: u64::MAX,
        batch: 12,
        policy: policy("a"),
        request,
        verdict,
    }
}

#[test]
fn every_verdict_and_reason_lies_flat_in_its_decision() {
    let reasons = [
        Reason::Identity {
            detail: "gone".to_owned(),
        },
        Reason::Protected {
            rule: "pid 1".to_owned(),
        },
        Reason::OutOfScope,
        Reason::Power {
            needs: Power::Kill,
            granted: Power::Alert,
        },
        Reason::Invalid {
            detail: "quota 0".to_owned(),
        },
        Reason::Cooldown { until_ns: u64::MAX },
        Reason::Budget {
            scope: "host".to_owned(),
            per_minute: 3,
        },
        Reason::LeaseLimit { limit: 8 },
        Reason::Lossy {
            lost: 9,
            skipped: 0,
        },
        Reason::Lossy {
            lost: 9,
            skipped: 4,
        },
        Reason::Disarmed,
        Reason::Unrecordable,
    ];
    for reason in reasons {
        let gate = reason.gate();
        let tree = same_after_json(&decided(Verdict::Refused { reason }));
        assert_eq!(
            (&tree["verdict"], &tree["reason"]["gate"]),
            (&json!("refused"), &json!(gate))
        );
    }
    for verdict in [
        Verdict::Granted {
            effect: EffectId(5),
            clamped: None,
        },
        Verdict::Granted {
            effect: EffectId(5),
            clamped: Some("lease 9 ms to 5 ms".to_owned()),
        },
        Verdict::Renewed { until_ns: u64::MAX },
        Verdict::Observed,
    ] {
        let name = verdict.name();
        assert_eq!(same_after_json(&decided(verdict))["verdict"], json!(name));
    }
}

#[test]
fn a_recorded_decision_reads_like_this() {
    let decision = decided(Verdict::Granted {
        effect: EffectId(5),
        clamped: None,
    });
    let tree = same_after_json(&Effect::Record { decision });
    let expected = json!({
        "effect": "record",
        "decision": {
            "id": u64::MAX,
            "batch": 12,
            "policy": {
                "name": "a", "version": "1.0.0", "sha256": "ab".repeat(32), "generation": 1,
            },
            "request": {
                "target": { "process": { "pid": 7, "start_ns": 7_000_000_000_u64 } },
                "action": { "cpu_quota": 200 },
                "lease_ms": 5_000,
                "severity": "warning",
                "reason": "held the driver for 80 % of the window",
                "evidence": [{ "name": "hold", "value": 0.75, "unit": "s/s" }],
            },
            "verdict": "granted",
            "effect": 5,
        },
    });
    assert_eq!(tree, expected);
}

#[test]
fn every_outcome_survives() {
    for outcome in [
        done(),
        failed(),
        ActOutcome::Gone,
        ActOutcome::InDriverCall,
        ActOutcome::Done {
            observed: "cpu.max 20000 100000".to_owned(),
            original: Some("max 100000".to_owned()),
        },
        ActOutcome::ForeignChange {
            found: "5000 100000".to_owned(),
        },
    ] {
        let effect = EffectId(3);
        same_after_json(&Input::Outcome { effect, outcome });
    }
}

#[test]
fn every_other_input_survives() {
    let lease = {
        let mut sim = Sim::new();
        sim.ask_done("a", 7, Action::Freeze, 5_000);
        sim.core.leases().next().cloned().expect("one")
    };
    for input in [
        Input::Policies(vec![(policy("a"), grant(palisade_core::Mode::Enforce))]),
        Input::Lost {
            workload: Some(WorkloadId(u64::MAX)),
            count: 1,
        },
        Input::Lost {
            workload: None,
            count: u64::MAX,
        },
        Input::Disarm(true),
        Input::Recordable(false),
        Input::Orphan(lease.clone()),
        Input::Release(None),
        Input::Release(Some(lease.id)),
        Input::Tick,
    ] {
        same_after_json(&input);
    }
}

#[test]
fn numbers_that_json_cannot_hold_survive_as_text() {
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut decision = decided(Verdict::Observed);
        decision.request.evidence[0].value = value;
        let text = serde_json::to_string(&decision).expect("writes");
        let read: Decision = serde_json::from_str(&text).expect("reads");
        assert_eq!(
            read.request.evidence[0].value.to_bits(),
            value.to_bits(),
            "{text}"
        );
    }
}
