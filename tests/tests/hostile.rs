//! With one hostile policy beside it, another sees every event, once, and in order.
#![allow(clippy::unwrap_used)] // a failed step ends the test

use palisade::batch::Batch;
use palisade::policy::{Engine, EngineOptions, Limits, NoLookup, PolicyEvent, PolicySource};
use palisade_abi::{Exit, Header, Record};
use palisade_core::{Power, Request};
use palisade_tests::{PATIENCE, binaries, policy, soak};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

const BATCHES: u64 = 400;
const RECORDS: u64 = 64;

fn source(guest: &str, settings: &str) -> PolicySource {
    PolicySource {
        name: guest.to_owned(),
        path: policy(&format!("guests/{guest}")),
        settings: settings.parse().unwrap(),
        max_power: Power::Kill,
        limits: Limits::default(),
    }
}

/// The n-th record, from 1, has time n: that is what the `counter` guest checks.
fn batch(seq: u64) -> Batch {
    let record = |n: u64| {
        Record::new(
            Header {
                time_ns: (seq - 1) * RECORDS + n,
                workload: 1,
                pid: 1,
                ..Header::default()
            },
            Exit::default(),
        )
    };
    // 10 ms of event time a batch.
    Batch {
        seq,
        now_ns: seq * 10_000_000,
        records: (1..=RECORDS).map(record).collect(),
        window_end: seq.is_multiple_of(10),
    }
}

fn evidence(request: &Request, name: &str) -> u64 {
    request
        .evidence
        .iter()
        .find(|one| one.name == name)
        .map(|one| one.value as u64)
        .unwrap()
}

/// Publishes everything beside a hostile guest; returns the counter's last report and what happened to the other.
fn beside(hostile: &str, settings: &str) -> (Request, Vec<PolicyEvent>) {
    let batches = BATCHES * if soak() { 50 } else { 1 };
    let (events, inbox) = mpsc::channel();
    let engine = Engine::new(EngineOptions::default(), Arc::new(NoLookup), events).unwrap();
    engine
        .load(source("counter", &format!("report_every = {batches}")))
        .unwrap();
    engine.load(source(hostile, settings)).unwrap();
    let publisher = engine.publisher();
    for seq in 1..=batches {
        publisher.publish(&batch(seq), |_, _| {});
        if seq.is_multiple_of(100) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let (mut report, mut others) = (None, Vec::new());
    let until = Instant::now() + PATIENCE;
    while let Ok(event) = inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
        match event {
            PolicyEvent::Output {
                policy,
                mut requests,
                ..
            } if policy.name == "counter" => report = requests.pop(),
            PolicyEvent::Strike { .. }
            | PolicyEvent::Ejected { .. }
            | PolicyEvent::Output { .. } => others.push(event),
            _ => {}
        }
        if report.is_some()
            && others
                .iter()
                .any(|event| matches!(event, PolicyEvent::Ejected { .. }))
        {
            break;
        }
    }
    engine.shutdown();
    (
        report.expect("the counter reports after its last batch"),
        others,
    )
}

fn unharmed(hostile: &str, settings: &str) {
    let (report, others) = beside(hostile, settings);
    let expected = BATCHES * if soak() { 50 } else { 1 } * RECORDS;
    assert_eq!(evidence(&report, "count"), expected, "beside {hostile}");
    for nothing in ["gaps", "repeats", "lost", "restores"] {
        assert_eq!(evidence(&report, nothing), 0, "{nothing} beside {hostile}");
    }
    let strikes = others
        .iter()
        .filter(
            |event| matches!(event, PolicyEvent::Strike { policy, .. } if policy.name == hostile),
        )
        .count();
    assert!(strikes > 0, "{hostile} is struck: {others:?}");
    assert!(
        others.iter().any(
            |event| matches!(event, PolicyEvent::Ejected { policy, .. } if policy.name == hostile)
        ),
        "{hostile} is ejected in the end: {others:?}"
    );
    assert!(
        !others.iter().any(
            |event| matches!(event, PolicyEvent::Strike { policy, .. } if policy.name == "counter")
        ),
        "the counter did nothing wrong"
    );
}

#[test]
fn a_policy_that_spins_harms_nobody() {
    unharmed("spin", "");
}

#[test]
fn a_policy_that_traps_harms_nobody() {
    unharmed("trap", "");
}

#[test]
fn a_policy_that_grows_harms_nobody() {
    unharmed("grow", "");
}

#[test]
fn a_policy_that_returns_nonsense_harms_nobody() {
    unharmed("garbage", "");
}

#[test]
fn a_policy_that_floods_requests_harms_nobody() {
    unharmed("flood", "");
}

/// The agent compiles in a process of its own: the same policy runs, and the same is said of a broken one.
#[test]
fn a_compiler_in_another_process_answers_as_the_one_in_this_does() {
    let load = |compiler, source: PolicySource| -> Result<u64, String> {
        let (events, inbox) = mpsc::channel();
        let options = EngineOptions {
            compiler,
            ..EngineOptions::default()
        };
        let engine = Engine::new(options, Arc::new(NoLookup), events).unwrap();
        engine.load(source).map_err(|error| error.to_string())?;
        let publisher = engine.publisher();
        (1..=10).for_each(|seq| publisher.publish(&batch(seq), |_, _| {}));
        let mut events = std::iter::from_fn(|| inbox.recv_timeout(PATIENCE).ok());
        let output = events.find_map(|event| match event {
            PolicyEvent::Output { requests, .. } => Some(requests),
            _ => None,
        });
        let requests = output.ok_or("no output")?;
        Ok(evidence(&requests[0], "count"))
    };
    let both = |source: PolicySource| {
        let apart = load(Some(binaries().join("palisade")), source.clone());
        assert_eq!(apart, load(None, source));
        apart
    };
    assert_eq!(
        both(source("counter", "report_every = 10")),
        Ok(10 * RECORDS)
    );

    let dir = tempfile::tempdir().unwrap();
    let mut broken = source("counter", "");
    let mut bytes = std::fs::read(&broken.path).unwrap();
    // One more section: the export `x` of the function 9,999, which there is not.
    bytes.extend([0x0b, 8, 1, 0, 1, b'x', 1, 0x8f, 0x4e, 0]);
    broken.path = dir.path().join("broken.wasm");
    std::fs::write(&broken.path, bytes).unwrap();
    let why = both(broken).unwrap_err();
    assert!(why.contains("unknown function 9999"), "{why}");
}
