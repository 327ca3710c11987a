//! Answers nonsense: every field of a request at its worst, one after the other.
#![cfg(target_arch = "wasm32")]

use palisade_policy_sdk::bindings::palisade::policy::types::{
    Action, Evidence, Process, Severity, Target,
};
use palisade_policy_sdk::bindings::{self, Guest, Request, Setting};
use std::cell::Cell;

thread_local! {
    static HUGE: Cell<usize> = const { Cell::new(0) };
}

struct Garbage;

fn plain() -> Request {
    Request {
        target: Target::Workload(1),
        action: Action::Alert,
        lease_ms: 1000,
        severity: Severity::Info,
        reason: "plain".to_owned(),
        evidence: Vec::new(),
    }
}

fn evidence(value: f64) -> Evidence {
    Evidence {
        name: "odd".to_owned(),
        value,
        unit: "ratio".to_owned(),
    }
}

impl Guest for Garbage {
    fn init(settings: Vec<(String, Setting)>) -> Result<(), String> {
        match settings.iter().find(|(name, _)| name == "huge") {
            Some((_, Setting::Integer(value))) => HUGE.set(*value as usize),
            _ => return Err("`huge` is missing".to_owned()),
        }
        Ok(())
    }

    fn on_batch(_: u64, _: Vec<u64>) -> Vec<Request> {
        let huge = "\u{1b}[2J\n\"\0é".repeat(HUGE.get() / 10);
        vec![
            Request {
                action: Action::CpuQuota(0),
                ..plain()
            },
            Request {
                action: Action::CpuQuota(u32::MAX),
                ..plain()
            },
            Request {
                action: Action::CpuWeight(0),
                ..plain()
            },
            Request {
                action: Action::CpuWeight(u32::MAX),
                ..plain()
            },
            Request {
                action: Action::Freeze,
                lease_ms: 0,
                ..plain()
            },
            Request {
                action: Action::Freeze,
                lease_ms: u32::MAX,
                ..plain()
            },
            Request {
                target: Target::Workload(0),
                action: Action::Kill,
                ..plain()
            },
            Request {
                target: Target::Workload(u64::MAX),
                action: Action::Kill,
                ..plain()
            },
            Request {
                target: Target::Process(Process {
                    pid: 0,
                    start_ns: 0,
                }),
                action: Action::Terminate,
                ..plain()
            },
            Request {
                target: Target::Process(Process {
                    pid: 1,
                    start_ns: 0,
                }),
                action: Action::Terminate,
                ..plain()
            },
            Request {
                target: Target::Process(Process {
                    pid: u32::MAX,
                    start_ns: u64::MAX,
                }),
                action: Action::Terminate,
                ..plain()
            },
            Request {
                evidence: [
                    f64::NAN,
                    -f64::NAN,
                    f64::INFINITY,
                    f64::NEG_INFINITY,
                    -0.0,
                    f64::MAX,
                ]
                .map(evidence)
                .into(),
                ..plain()
            },
            Request {
                evidence: (0..10_000).map(|n| evidence(f64::from(n))).collect(),
                ..plain()
            },
            Request {
                reason: String::new(),
                ..plain()
            },
            Request {
                reason: huge.clone(),
                ..plain()
            },
            Request {
                evidence: vec![Evidence {
                    name: huge.clone(),
                    value: 1.0,
                    unit: huge,
                }],
                ..plain()
            },
        ]
    }

    fn on_tick(_: u64) -> Vec<Request> {
        Self::on_batch(0, Vec::new())
    }

    fn checkpoint() -> Vec<u8> {
        b"garbage".to_vec()
    }

    fn restore(_: u32, state: Vec<u8>) -> Result<(), String> {
        Err(format!("no use for {} bytes\u{1b}[2J", state.len()))
    }
}

palisade_policy_sdk::embed_manifest!("policy.toml");
bindings::export!(Garbage with_types_in palisade_policy_sdk::bindings);
