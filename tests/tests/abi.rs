//! A policy that was built for an earlier version of the record ABI loads and works, also beside kinds that it cannot know.
#![allow(clippy::unwrap_used)] // a failed step ends the test

use palisade::batch::Batch;
use palisade::policy::{Engine, EngineOptions, Limits, NoLookup, PolicyEvent, PolicySource, check};
use palisade_abi::{Header, MapCall, Record, SampleReads};
use palisade_core::Power;
use palisade_tests::PATIENCE;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Instant;

/// Of `tests/fixtures/abi-1.wasm`: whoever builds it anew would test nothing.
const FROZEN: &str = "e88ed0bfeb4b883f2258ac82855cb91cc495af381ce6d791c52a05ac6f001afc";
/// Events of one process in a second that are still normal to it.
const LIMIT: usize = 5;

fn source() -> PolicySource {
    PolicySource {
        name: "event-rate".to_owned(),
        path: Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/abi-1.wasm"),
        settings: format!("max-per-second = {LIMIT}").parse().unwrap(),
        max_power: Power::Alert,
        limits: Limits::default(),
    }
}

#[test]
fn a_policy_of_the_first_version_loads_and_works() {
    assert_eq!(check(&source()).unwrap().abi, 1);
    let (events, inbox) = mpsc::channel();
    let engine = Engine::new(EngineOptions::default(), Arc::new(NoLookup), events).unwrap();
    assert_eq!(engine.load(source()).unwrap().sha256, FROZEN);
    let header = Header {
        time_ns: 1,
        workload: 1,
        start_ns: 1,
        pid: 7,
        ..Header::default()
    };
    let map = Record::new(header, MapCall::default());
    let mut unknown = map;
    unknown.header.kind = 60;
    // One too many of what it counts, among kinds of later versions.
    let mut records = vec![Record::new(header, SampleReads::default()), unknown];
    records.resize(records.len() + LIMIT + 1, map);
    let batch = Batch {
        seq: 1,
        now_ns: 1_000_000_000,
        records: records.into(),
        window_end: true,
    };
    let full = |policy: &str, _| panic!("{policy} has room for one batch");
    engine.publisher().publish(&batch, full);
    let until = Instant::now() + PATIENCE;
    let request = loop {
        let left = until.saturating_duration_since(Instant::now());
        match inbox.recv_timeout(left).unwrap() {
            PolicyEvent::Output { mut requests, .. } => break requests.pop().unwrap(),
            event @ PolicyEvent::Strike { .. } => panic!("it did nothing wrong: {event:?}"),
            _ => {}
        }
    };
    engine.shutdown();
    assert_eq!(
        request.reason,
        "Process 7 causes more than 5 events a second"
    );
    assert_eq!(request.evidence[0].value, (LIMIT + 1) as f64);
}
