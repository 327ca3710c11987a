//! Recordings made by hand: a replay follows the recorded run as long as everything fits, and says where it does not.
#![allow(clippy::unwrap_used)] // a failed step ends the test

use palisade::batch::Batch;
use palisade::config::Config;
use palisade::policy::{EngineShared, NoLookup, PolicyEvent, Stepper};
use palisade::recording::{CoreStart, Entry, Origin, Writer, digest};
use palisade::replay::{Outcome, Speed, replay};
use palisade::runtime::options::policy_source;
use palisade_abi::{GpuCall, Header, Kind, Record};
use palisade_core::{
    Effect, Grant, Input, Member, PolicyRef, ProcessId, Target, TargetFacts, WorkloadId,
};
use palisade_tests::policy;
use std::path::PathBuf;
use std::sync::Arc;

const SECOND: u64 = 1_000_000_000;

/// A run of the guest that asks for a quota at each driver call, and what was recorded of it.
struct Recorded {
    dir: tempfile::TempDir,
    config: Config,
    reference: PolicyRef,
    grant: Grant,
    /// The version that recorded.
    agent: &'static str,
}

impl Recorded {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("palisade.toml");
        let text = format!(
            "state_dir = \"/nowhere/state\"\nrun_dir = \"/nowhere/run\"\n[watch]\ncgroups = [\"/ml\"]\n\
             [policies.react]\npath = {:?}\nmode = \"enforce\"\npower = \"signal\"\ncooldown = \"0s\"\n\
             settings = {{ action = \"quota\", lease-ms = 500 }}\n",
            policy("guests/react")
        );
        std::fs::write(&file, text).unwrap();
        let config = Config::load_for(&file, None).unwrap();
        let shared = EngineShared::new(Arc::new(NoLookup)).unwrap();
        let source = policy_source(&config.policies[0]);
        let reference = Stepper::new(&shared, &source, 1)
            .unwrap()
            .reference()
            .clone();
        let grant = config.policies[0].grant.clone();
        Self {
            dir,
            config,
            reference,
            grant,
            agent: env!("CARGO_PKG_VERSION"),
        }
    }

    /// The requests at that batch, which the policy was given, reached the core half a second after it.
    fn order(&self, batch: &Entry) -> Entry {
        let Entry::Batch(batch) = batch else { panic!() };
        let shared = EngineShared::new(Arc::new(NoLookup)).unwrap();
        let source = policy_source(&self.config.policies[0]);
        let events = Stepper::new(&shared, &source, 1).unwrap().step(batch, 0);
        let Some(PolicyEvent::Output { requests, .. }) = events.first() else {
            panic!("{events:?}");
        };
        Entry::Order {
            time_ns: batch.seq * SECOND + SECOND / 2,
            policy: "react".into(),
            seq: batch.seq,
            requests: requests.len() as u64,
            sha256: Some(digest(requests)),
        }
    }

    /// What comes before the first batch.
    fn start(&self) -> Vec<Entry> {
        let start = CoreStart {
            run_seed: 77,
            ..CoreStart::default()
        };
        let running = vec![(self.reference.clone(), self.grant.clone())];
        vec![
            Entry::Core(start),
            Entry::Input {
                time_ns: SECOND,
                input: Input::Policies(running),
            },
        ]
    }

    fn write(&self, entries: &[Entry]) -> PathBuf {
        let path = self.dir.path().join("run.arrows");
        let origin = Origin {
            config_sha256: self.config.digest.clone(),
            policies: vec!["react".into()],
            agent: self.agent.to_owned(),
            ..Origin::default()
        };
        let mut writer = Writer::create(&path, &origin).unwrap();
        for entry in entries {
            writer.write(entry).unwrap();
        }
        drop(writer.finish().unwrap());
        path
    }

    /// The outcome, and the verdict on each request as `batch verdict`.
    fn replay(&self, entries: &[Entry]) -> (Outcome, Vec<String>) {
        let mut verdicts = Vec::new();
        let outcome = replay(
            &self.write(entries),
            &self.config,
            Speed::Max,
            &mut |line| {
                if let Effect::Record { decision } = &line.effect {
                    verdicts.push(format!("{} {}", decision.batch, decision.verdict.name()));
                }
                Ok(())
            },
        );
        (outcome.unwrap(), verdicts)
    }
}

fn member() -> ProcessId {
    ProcessId {
        pid: 4000,
        start_ns: 5,
    }
}

/// A batch with a driver call in it.
fn call(seq: u64) -> Entry {
    call_of(seq, 0)
}

/// The same of a call that took as long.
fn call_of(seq: u64, latency_ns: u64) -> Entry {
    let header = Header {
        time_ns: seq * SECOND,
        workload: 7,
        pid: member().pid,
        start_ns: member().start_ns,
        ..Header::default()
    };
    let mut record = Record::new(
        header,
        GpuCall {
            latency_ns,
            ..GpuCall::default()
        },
    );
    record.header.kind = Kind::GpuExit as u16;
    Entry::Batch(Batch {
        seq,
        now_ns: seq * SECOND,
        records: [record].into(),
        window_end: false,
    })
}

fn facts(alive: bool) -> Entry {
    let member = Member {
        process: member(),
        exe: "/opt/serve".into(),
        kernel_thread: false,
    };
    Entry::Facts {
        target: Target::Workload(WorkloadId(7)),
        facts: TargetFacts {
            alive,
            detail: if alive { "" } else { "it was removed" }.into(),
            workload: Some(WorkloadId(7)),
            cgroup: Some("/ml/a".into()),
            watched: true,
            members: vec![member],
        },
    }
}

fn dropped(seq: u64) -> Entry {
    Entry::Dropped {
        policy: "react".into(),
        seq,
        records: 1,
    }
}

#[test]
fn a_run_is_followed_in_what_the_core_was_told_and_in_what_policies_missed() {
    let recorded = Recorded::new();
    let mut entries = recorded.start();
    entries.extend([
        call(2),
        // No room for it: the policy asks for nothing.
        call(3),
        dropped(3),
        facts(true),
        recorded.order(&call(2)),
        // Heard late, after the next batches.
        call(4),
        call(5),
        facts(false),
        recorded.order(&call(4)),
        Entry::Input {
            time_ns: 6 * SECOND,
            input: Input::Disarm(true),
        },
        facts(true),
        recorded.order(&call(5)),
    ]);
    let (outcome, verdicts) = recorded.replay(&entries);
    assert_eq!(verdicts, ["2 granted", "4 refused", "5 refused"]);
    assert_eq!(outcome.differs, Vec::<String>::new());
    assert_eq!(outcome.notes, Vec::<String>::new());
}

#[test]
fn what_does_not_fit_is_told() {
    let recorded = Recorded::new();
    let missing = |entries: Vec<Entry>, said: &str| {
        let mut all = recorded.start();
        all.extend(entries);
        let (outcome, _) = recorded.replay(&all);
        let told = outcome.differs.iter().chain(&outcome.notes);
        let told: Vec<&String> = told.collect();
        assert!(
            told.iter().any(|why| why.contains(said)),
            "{said}: {told:?}"
        );
    };
    let mut twice = recorded.order(&call(2));
    if let Entry::Order { requests, .. } = &mut twice {
        *requests = 2;
    }
    missing(vec![call(2), facts(true), twice], "asked for 2 thing(s)");
    missing(
        vec![call(2), facts(true), recorded.order(&call_of(2, 5))],
        "for others or for other reasons",
    );
    missing(vec![call(2), recorded.order(&call(2))], "did not ask about");
    missing(
        vec![call(2), call(3), facts(true), recorded.order(&call(3))],
        "asked 1 time(s)",
    );
    missing(vec![Entry::Gap { notes: 3 }], "lacks 3 notes");
    let full = Entry::Full { max_bytes: 1 << 30 };
    missing(vec![full], "ended before the run did");
    let struck = Entry::Changed {
        policy: "react".into(),
        what: "strike: deadline".into(),
    };
    missing(vec![struck], "not replayed: strike: deadline");
    let mut again = recorded.reference.clone();
    again.generation = 2;
    let reloaded = Input::Policies(vec![(again, recorded.grant.clone())]);
    missing(
        vec![Entry::Input {
            time_ns: 2 * SECOND,
            input: reloaded,
        }],
        "was reloaded",
    );
}

#[test]
fn a_recording_that_ends_before_the_run_is_followed_as_far_as_it_goes() {
    let recorded = Recorded::new();
    let mut entries = recorded.start();
    entries.extend([
        call(2),
        facts(true),
        recorded.order(&call(2)),
        // The core hears of the first of them behind the next.
        call(3),
        call(4),
        recorded.order(&call(4)),
    ]);
    let followed = |entries: &[Entry]| {
        let (outcome, verdicts) = recorded.replay(entries);
        assert_eq!(outcome.differs, Vec::<String>::new());
        assert_eq!(verdicts.len(), 2);
        outcome
    };
    let outcome = followed(&entries);
    assert!(!outcome.partial);
    assert_eq!(
        outcome.notes,
        ["policy 'react' asked 1 time(s) where the recorded run's core heard nothing"]
    );
    entries.push(Entry::Full { max_bytes: 1 << 30 });
    let outcome = followed(&entries);
    assert!(outcome.partial);
    let [full, unheard] = &outcome.notes[..] else {
        panic!("{:?}", outcome.notes);
    };
    assert!(full.contains("ended before the run did"), "{full}");
    assert_eq!(
        unheard,
        "policy 'react' asked 1 time(s) whose hearing may lie beyond the recording's end"
    );
}

#[test]
fn another_version_of_the_agent_is_told() {
    let mut recorded = Recorded::new();
    recorded.agent = "0.0.0";
    let mut entries = recorded.start();
    entries.extend([call(2), facts(true), recorded.order(&call(2))]);
    let (outcome, verdicts) = recorded.replay(&entries);
    assert_eq!(verdicts, ["2 granted"]);
    assert_eq!(outcome.differs.len(), 1, "{:?}", outcome.differs);
    assert!(outcome.differs[0].contains("was made by palisade 0.0.0"));
}

#[test]
fn another_configuration_or_policy_is_decided_anew_and_that_is_told() {
    let recorded = Recorded::new();
    let entries = |recorded: &Recorded| {
        let mut entries = recorded.start();
        entries.extend([call(2), facts(true), recorded.order(&call(2))]);
        entries
    };
    let differs = |recorded: &Recorded, entries: &[Entry], said: &str| {
        let (outcome, verdicts) = recorded.replay(entries);
        assert!(outcome.differs[0].contains(said), "{:?}", outcome.differs);
        assert_eq!(verdicts, ["2 granted"], "with the facts that are recorded");
    };
    let mut other = Recorded::new();
    other.reference.sha256 = "0".repeat(64);
    differs(&other, &entries(&other), "another file");
    let mut other = Recorded::new();
    let all = entries(&other);
    other.config.digest = "0".repeat(64);
    let path = recorded.write(&all);
    let mut lines = 0;
    let outcome = replay(&path, &other.config, Speed::Max, &mut |_| {
        lines += 1;
        Ok(())
    })
    .unwrap();
    assert!(
        outcome.differs[0].contains("configuration"),
        "{:?}",
        outcome.differs
    );
    assert!(lines >= 2, "the decision, and the end of its lease");
    // As one of version 1: nothing of the core.
    let (outcome, verdicts) = recorded.replay(&[call(2), recorded.order(&call(2))]);
    assert!(
        outcome.differs[0].contains("version 1"),
        "{:?}",
        outcome.differs
    );
    assert_eq!(verdicts, ["2 refused"], "nobody is known");
}
