//! The claim checker on scripted runs: a good one holds, and each way to fail is named.
#![allow(clippy::unwrap_used)]

use super::case::{Case, Culprit, Window};
use super::cgroups::Quota;
use super::claims::{self, Claim};
use super::story;
use crate::audit::{Entry, Identity, Record};
use palisade_core::{
    ActOutcome, Action, Decision, EffectId, Evidence, Knob, Lease, LeaseId, PolicyRef, ProcessId,
    Reason, Request, Severity, Target, Verdict, WorkloadId,
};
use std::time::Duration;

const BEGIN_NS: u64 = 5_000_000_000_000;
const MODEL: &str = "demo-model.safetensors";

fn quota(permille: Option<u32>) -> Quota {
    let text = permille.map_or("max 100000".into(), |value| {
        format!("{} 100000", value * 100)
    });
    Quota { text, permille }
}

fn lease(name: &str) -> Lease {
    Lease {
        id: LeaseId(7),
        workload: WorkloadId(42),
        cgroup: format!("/d/{name}"),
        knob: Knob::CpuQuota,
        value: 50,
        owners: vec!["gpu-contention".into()],
        until_ns: 0,
    }
}

fn decision(policy: &str, name: &str, reason: &str, verdict: Verdict) -> Entry {
    Entry::Decision {
        decision: Decision {
            id: 1,
            batch: 9,
            policy: PolicyRef {
                name: policy.into(),
                version: "0.1.0".into(),
                sha256: "00".into(),
                generation: 1,
            },
            request: Request {
                target: Target::Process(ProcessId {
                    pid: 3,
                    start_ns: 4,
                }),
                action: Action::CpuQuota(50),
                lease_ms: 3000,
                severity: Severity::Warning,
                reason: reason.into(),
                evidence: vec![Evidence {
                    name: "held".into(),
                    value: 1.5,
                    unit: "s".into(),
                }],
            },
            verdict,
        },
        who: Identity {
            cgroup: Some(format!("/d/{name}")),
            ..Identity::default()
        },
    }
}

fn intent(effect: u64, cgroup: &str) -> Entry {
    Entry::Intent {
        effect: EffectId(effect),
        decision: 1,
        policy: "gpu-contention".into(),
        action: Action::CpuQuota(50),
        target: Target::Workload(WorkloadId(42)),
        workload: Some(WorkloadId(42)),
        cgroup: Some(cgroup.into()),
        lease: Some(Lease {
            cgroup: cgroup.into(),
            ..lease("device-hog")
        }),
        alert: None,
    }
}

fn done() -> ActOutcome {
    ActOutcome::Done {
        observed: "cpu.max 5000 100000".into(),
        original: None,
    }
}

/// What may go differently in a scripted run.
#[derive(Clone)]
struct Script {
    /// p99 while healthy, while the hog runs, and while it is throttled.
    p99: [f64; 3],
    /// CPU share of the culprits, free and throttled.
    share: [f64; 2],
    /// What the cgroup file says when the throttle is read, and after the undo.
    found: [Option<u32>; 2],
    decides: bool,
    undoes: bool,
    loader_reason: &'static str,
    hits_service: bool,
}

const GOOD: Script = Script {
    p99: [1.0, 45.0, 2.0],
    share: [0.6, 0.05],
    found: [Some(50), None],
    decides: true,
    undoes: true,
    loader_reason: "reads /var/tmp/x/demo-model.safetensors over and over",
    hits_service: false,
};

/// Plays a script: healthy to 4 s; the hog from 4 s, throttled at 7 s, stopped at 11 s; the
/// loader from 12 s, throttled at 15 s, stopped at 19 s; each undone 3 s after it stopped.
fn play(script: &Script) -> Case {
    let culprit = |name, policy, must_name| {
        Culprit::new(name, policy, format!("/d/{name}"), quota(None), must_name)
    };
    let mut case = Case::new(
        BEGIN_NS,
        "/d/service".into(),
        vec![
            culprit("device-hog", "gpu-contention", None),
            culprit("reload-loop", "reload-loop", Some(MODEL.into())),
        ],
    );
    for (index, start) in [4_u64, 12].into_iter().enumerate() {
        case.culprits[index].started = Some(Duration::from_secs(start));
        case.culprits[index].stopped = Some(Duration::from_secs(start + 7));
        let mut used = Duration::ZERO;
        for ms in (start * 1000..(start + 7) * 1000).step_by(200) {
            case.culprits[index]
                .cpu
                .push((Duration::from_millis(ms), used));
            let share = script.share[usize::from(ms >= (start + 3) * 1000)];
            used += Duration::from_millis(200).mul_f64(share);
        }
    }
    for ms in (0..22_000).step_by(500) {
        let p99_ms = match ms {
            4_000..7_000 => script.p99[1],
            7_000..11_000 => script.p99[2],
            _ => script.p99[0],
        };
        let (from, to) = (Duration::from_millis(ms), Duration::from_millis(ms + 500));
        case.windows.push(Window {
            from,
            to,
            requests: 100,
            p50_ms: 0.9,
            p99_ms,
        });
    }
    let mut log: Vec<(u64, Entry)> = Vec::new();
    for (effect, start, policy, name, reason) in [
        (1, 4, "gpu-contention", "device-hog", "holds the device"),
        (3, 12, "reload-loop", "reload-loop", script.loader_reason),
    ] {
        let effect_id = EffectId(effect);
        let verdict = if script.decides {
            Verdict::Granted {
                effect: effect_id,
                clamped: None,
            }
        } else {
            Verdict::Refused {
                reason: Reason::OutOfScope,
            }
        };
        log.push((start + 3, decision(policy, name, reason, verdict)));
        if script.decides {
            log.push((start + 3, intent(effect, &format!("/d/{name}"))));
            log.push((
                start + 3,
                Entry::Outcome {
                    effect: effect_id,
                    outcome: done(),
                },
            ));
        }
        if script.undoes {
            let effect = EffectId(effect + 1);
            let undo = Entry::UndoIntent {
                effect,
                lease: lease(name),
                why: "expired".into(),
            };
            log.push((start + 10, undo));
            log.push((
                start + 10,
                Entry::UndoOutcome {
                    effect,
                    lease: LeaseId(7),
                    outcome: done(),
                },
            ));
        }
    }
    if script.hits_service {
        log.push((16, intent(9, "/d/service")));
    }
    for (seq, (second, entry)) in log.iter().enumerate() {
        let undo = matches!(entry, Entry::UndoOutcome { .. });
        let found = quota(script.found[usize::from(undo)]);
        case.hear(
            seq as u64 + 1,
            BEGIN_NS + second * 1_000_000_000,
            entry,
            |_| found.clone(),
        );
    }
    case
}

fn failed(claims: &[Claim]) -> Vec<&str> {
    claims
        .iter()
        .filter(|one| one.result.is_err())
        .map(|one| one.what.as_str())
        .collect()
}

#[test]
fn a_good_run_holds_every_claim() {
    let claims = claims::check(&play(&GOOD));
    assert_eq!(failed(&claims), Vec::<&str>::new(), "{claims:#?}");
    let text = |start: &str| {
        claims
            .iter()
            .find(|one| one.what.starts_with(start))
            .unwrap()
            .result
            .clone()
            .unwrap()
    };
    assert_eq!(text("device-hog raised"), "p99 1.0 ms → 45 ms");
    assert_eq!(text("throttling device-hog"), "p99 45 ms → 2.0 ms");
    assert_eq!(text("gpu-contention found"), "after 3.0 s, audit record 1");
    assert!(text("reload-loop found").ends_with(&format!("which names {MODEL}")));
    assert_eq!(
        text("the kernel held device-hog"),
        "cgroup file max 100000 → 5000 100000, used 60 % → 5.0 % of one CPU"
    );
}

#[test]
fn each_way_to_fail_is_named() {
    let table: [(&str, Script, &[&str]); 9] = [
        (
            "no rise",
            Script {
                p99: [1.0, 2.0, 1.0],
                ..GOOD
            },
            &["raised", "brought"],
        ),
        (
            "no recovery",
            Script {
                p99: [1.0, 45.0, 40.0],
                ..GOOD
            },
            &["brought"],
        ),
        (
            "cpu not held",
            Script {
                share: [0.6, 0.3],
                ..GOOD
            },
            &["held device", "held reload"],
        ),
        (
            "an idle culprit",
            Script {
                share: [0.05, 0.05],
                ..GOOD
            },
            &["held device", "held reload"],
        ),
        (
            "file unchanged",
            Script {
                found: [None, None],
                ..GOOD
            },
            &["held device", "held reload"],
        ),
        (
            "file not restored",
            Script {
                found: [Some(50); 2],
                ..GOOD
            },
            &["undone", "undone"],
        ),
        (
            "no undo",
            Script {
                undoes: false,
                ..GOOD
            },
            &["undone", "undone"],
        ),
        (
            "no model",
            Script {
                loader_reason: "too many loads",
                ..GOOD
            },
            &["reload-loop found"],
        ),
        (
            "service hit",
            Script {
                hits_service: true,
                ..GOOD
            },
            &["never acted on"],
        ),
    ];
    for (name, script, expected) in table {
        let claims = claims::check(&play(&script));
        let failed = failed(&claims);
        assert_eq!(failed.len(), expected.len(), "{name}: {claims:#?}");
        for word in expected {
            assert!(
                failed.iter().any(|what| what.contains(word)),
                "{name}: {failed:?}"
            );
        }
    }
}

#[test]
fn a_refusal_is_told_with_its_reason() {
    let claims = claims::check(&play(&Script {
        decides: false,
        undoes: false,
        ..GOOD
    }));
    let found = claims
        .iter()
        .find(|one| one.what == "gpu-contention found device-hog")
        .unwrap();
    assert!(
        found.result.as_ref().unwrap_err().contains("OutOfScope"),
        "{found:?}"
    );
}

#[test]
fn nothing_seen_is_nothing_claimed() {
    let case = Case::new(
        0,
        "/d/service".into(),
        play(&GOOD)
            .culprits
            .into_iter()
            .map(|one| {
                Culprit::new(
                    one.name,
                    one.policy,
                    one.cgroup,
                    one.original,
                    one.must_name,
                )
            })
            .collect(),
    );
    // All but "the service itself was never acted on".
    let claims = claims::check(&case);
    assert_eq!(failed(&claims).len(), claims.len() - 1, "{claims:#?}");
}

#[test]
fn a_policy_that_keeps_asking_is_told_once() {
    let mut case = play(&GOOD);
    let again = |policy| {
        let verdict = Verdict::Granted {
            effect: EffectId(20),
            clamped: None,
        };
        decision(policy, "device-hog", "again", verdict)
    };
    assert!(
        case.hear(90, BEGIN_NS, &again("gpu-contention"), |_| quota(None))
            .is_none()
    );
    let told = case
        .hear(91, BEGIN_NS, &again("another"), |_| quota(None))
        .unwrap();
    assert_eq!(
        told.text,
        "saw: again → cpu quota 5.0 % of one CPU (granted)"
    );
}

#[test]
fn a_throttle_that_comes_back_must_be_undone_again() {
    let mut case = play(&GOOD);
    case.hear(90, BEGIN_NS, &intent(30, "/d/device-hog"), |_| quota(None));
    let outcome = Entry::Outcome {
        effect: EffectId(30),
        outcome: done(),
    };
    case.hear(91, BEGIN_NS, &outcome, |_| quota(Some(50)));
    assert_eq!(
        failed(&claims::check(&case)),
        ["the throttle of device-hog was undone"]
    );
}

#[test]
fn the_story_counts_renewals_and_shows_the_rest() {
    let record = |seq: u64, entry: &Entry| {
        let mut value = serde_json::to_value(entry).unwrap();
        let place = serde_json::json!({
            "v": 1, "seq": seq, "time": "2026-01-02T03:04:05.678Z", "boot_ns": 1, "prev": "",
        });
        value
            .as_object_mut()
            .unwrap()
            .extend(place.as_object().unwrap().clone());
        Record::parse(value.to_string().as_bytes()).unwrap()
    };
    let granted = Verdict::Granted {
        effect: EffectId(1),
        clamped: None,
    };
    let undo = Entry::UndoIntent {
        effect: EffectId(2),
        lease: lease("device-hog"),
        why: "expired".into(),
    };
    let records = [
        record(1, &decision("gpu-contention", "device-hog", "r", granted)),
        record(2, &intent(1, "/d/device-hog")),
        record(
            3,
            &Entry::Outcome {
                effect: EffectId(1),
                outcome: done(),
            },
        ),
        record(
            4,
            &Entry::Renew {
                lease: LeaseId(7),
                until_ns: 1,
            },
        ),
        record(
            5,
            &Entry::Renew {
                lease: LeaseId(7),
                until_ns: 2,
            },
        ),
        record(6, &undo),
    ];
    assert_eq!(
        story::lines(&records),
        [
            "#1   03:04:05.678  decision  gpu-contention 0.1.0 on /d/device-hog: cpu quota 5.0 % of one CPU",
            "#2   03:04:05.678  intent    cpu quota 5.0 % of one CPU on /d/device-hog",
            "#3   03:04:05.678  outcome   done: cpu.max 5000 100000",
            "…  renewed 2 times while the policy kept asking",
            "#6   03:04:05.678  undo      lease 7 on /d/device-hog: expired",
        ]
    );
}
