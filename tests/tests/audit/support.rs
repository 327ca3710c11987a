//! A sample log, and what the tests do with its files.

use palisade::audit::{self, Audit, Entry, Head, Options, Report, Status, VerifyOptions};
use palisade_core::{
    ActOutcome, Action, Decision, EffectId, Evidence, Knob, Lease, LeaseId, PolicyRef, ProcessId,
    Reason, Request, Severity, Target, Verdict, WorkloadId,
};
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) fn policy() -> PolicyRef {
    PolicyRef {
        name: "gpu-contention".into(),
        version: "0.1.0".into(),
        sha256: "ab".repeat(32),
        generation: 1,
    }
}

pub(crate) fn decision(id: u64, pid: u32, verdict: Verdict) -> Entry {
    Entry::Decision {
        decision: Decision {
            id,
            batch: id * 3,
            policy: policy(),
            request: Request {
                target: Target::Process(ProcessId {
                    pid,
                    start_ns: 123_456_789_012_345,
                }),
                action: Action::CpuQuota(200),
                lease_ms: 5000,
                severity: Severity::Warning,
                reason: "holds the driver 8 times as long as all others".into(),
                evidence: vec![Evidence {
                    name: "hold".into(),
                    value: 812.5,
                    unit: "ms".into(),
                }],
            },
            verdict,
        },
        who: audit::Identity {
            exe: Some("/usr/bin/hog\n\u{1b}[31m".into()),
            comm: Some("hog".into()),
            cgroup: Some(format!("/ml/job-{pid}")),
            container: None,
        },
    }
}

pub(crate) fn lease(id: u64) -> Lease {
    Lease {
        id: LeaseId(id),
        workload: WorkloadId(77),
        cgroup: "/ml/job-42".into(),
        knob: Knob::CpuQuota,
        value: 200,
        owners: vec!["gpu-contention".into()],
        until_ns: 99,
    }
}

pub(crate) fn done(observed: &str) -> ActOutcome {
    ActOutcome::Done {
        observed: observed.into(),
        original: Some("max 100000".into()),
    }
}

pub(crate) fn start() -> Entry {
    Entry::Start {
        agent: "0.1.0".into(),
        kernel: "6.18".into(),
        config_sha256: "cd".repeat(32),
        policies: vec![policy()],
        sensors: serde_json::json!({ "sched": { "attached": "tracepoint" } }),
        protected: vec!["pid 1".into()],
    }
}

pub(crate) fn incident(audit: &Audit, id: u64) {
    let effect = EffectId(id);
    audit.append(decision(
        id,
        42,
        Verdict::Granted {
            effect,
            clamped: None,
        },
    ));
    audit.append(Entry::Intent {
        effect,
        decision: id,
        policy: "gpu-contention".into(),
        action: Action::CpuQuota(200),
        target: Target::Process(ProcessId {
            pid: 42,
            start_ns: 1,
        }),
        workload: Some(WorkloadId(77)),
        cgroup: Some("/ml/job-42".into()),
        lease: Some(lease(id)),
        alert: None,
    });
    audit.append(Entry::Outcome {
        effect,
        outcome: done("cpu.max 20000 100000"),
    });
    audit.append(Entry::Renew {
        lease: LeaseId(id),
        until_ns: 500,
    });
    let undo = EffectId(id + 1_000_000);
    audit.append(Entry::UndoIntent {
        effect: undo,
        lease: lease(id),
        why: "expired".into(),
    });
    audit.append(Entry::UndoOutcome {
        effect: undo,
        lease: LeaseId(id),
        outcome: done("cpu.max max 100000"),
    });
}

pub(crate) fn open(dir: &Path, options: Options) -> Audit {
    audit::open(dir, options).unwrap().0
}

pub(crate) fn small() -> Options {
    Options {
        segment_bytes: 4000,
        checkpoint_records: 8,
        reserve_bytes: 4096,
        ..Options::default()
    }
}

/// A log of several segments and checkpoints, closed in order; its head.
pub(crate) fn sample(dir: &Path) -> Head {
    let audit = open(dir, small());
    audit.append(start());
    for id in 1..=4 {
        incident(&audit, id);
        audit.append(decision(
            100 + id,
            7,
            Verdict::Refused {
                reason: Reason::OutOfScope,
            },
        ));
    }
    audit.append(Entry::Stop {
        why: "signal 15".into(),
    });
    audit.close().unwrap()
}

pub(crate) fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "jsonl"))
        .collect();
    files.sort();
    files
}

pub(crate) fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

pub(crate) fn put(path: &Path, lines: &[String]) {
    let text: String = lines
        .iter()
        .flat_map(|line| [line.as_str(), "\n"])
        .collect();
    fs::write(path, text).unwrap();
}

pub(crate) fn check(dir: &Path, head: Option<Head>) -> Report {
    audit::verify(
        dir,
        &VerifyOptions {
            head,
            ..VerifyOptions::default()
        },
    )
    .unwrap()
}

pub(crate) fn broken(dir: &Path, head: Option<Head>) -> audit::Fault {
    let report = check(dir, head);
    assert_eq!(report.status, Status::Broken, "{report:#?}");
    report.faults[0].clone()
}
