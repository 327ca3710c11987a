//! An instance on its own: deterministic, split, bounded.

use super::super::{
    Compiled, EngineShared, Instance, MAX_RECORDS_PER_CALL, NoLookup, Stepper, StrikeKind,
};
use super::guest::{self, GOOD, Guest};
use super::*;
use palisade_abi::{Lost, PATH_SLOTS, kind};

fn instance(guest: &Guest) -> Instance {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.wasm");
    std::fs::write(&path, guest.build()).unwrap();
    let shared = EngineShared::new(Arc::new(NoLookup)).unwrap();
    let compiled = Compiled::load(&shared, &path, 1 << 20).unwrap();
    Instance::new(&shared, "x", &compiled, &[], &source("x", &path).limits).unwrap()
}

fn misdeed(misdeed: &'static str) -> (usize, super::super::Strike) {
    let mut instance = instance(&Guest { misdeed, ..GOOD });
    let delivery = instance.deliver(&Numbers::default().with(1, 1, poison), 0, 0);
    assert_eq!(delivery.strikes.len(), 1, "{delivery:?}");
    (delivery.requests.len(), delivery.strikes[0].clone())
}

#[test]
fn large_batches_are_split_and_seen_once() {
    let mut instance = instance(&GOOD);
    let mut numbers = Numbers::default();
    let delivery = instance.deliver(&numbers.batch(MAX_RECORDS_PER_CALL * 2 + 1, 5), 0, 0);
    assert_eq!(delivery.requests.len(), 3);
    assert_eq!(delivery.records, MAX_RECORDS_PER_CALL as u64 * 2 + 1);
    assert_eq!(instance.stats().calls, 3);
    let last = delivery.requests.last().unwrap();
    assert_eq!(
        last.target,
        palisade_core::Target::Workload(palisade_core::WorkloadId(1025))
    );
    assert_eq!(last.severity, palisade_core::Severity::Info);
    assert_eq!(last.reason, "counted");
}

#[test]
fn only_subscribed_records_are_seen_and_names_are_skipped() {
    let mut instance = instance(&GOOD);
    let mut numbers = Numbers::default();
    let mut records = Vec::new();
    let mut name = numbered(99);
    name.header.kind = kind::FILE_NAME;
    records.push(name);
    // The slots of a name are any bytes: also ones that look like a record.
    records.extend([numbered(77); PATH_SLOTS - 1]);
    let mut foreign = numbered(5);
    foreign.header.kind = 60_000;
    records.push(foreign);
    records.extend(numbers.batch(2, 1).records.iter());
    let batch = Batch {
        seq: 1,
        now_ns: 1,
        records: records.into(),
        window_end: true,
    };
    let delivery = instance.deliver(&batch, 0, 0);
    assert_eq!((delivery.records, delivery.requests.len()), (2, 1));
    assert_eq!(delivery.requests[0].severity, palisade_core::Severity::Info);
}

#[test]
fn a_window_without_records_is_a_tick_and_losses_come_first() {
    let mut instance = instance(&GOOD);
    let mut batch = Batch {
        seq: 1,
        now_ns: 1,
        records: [].into(),
        window_end: false,
    };
    assert_eq!(
        instance.deliver(&batch, 0, 0),
        super::super::Delivery::default()
    );
    assert_eq!(instance.stats().calls, 0);
    batch.window_end = true;
    instance.deliver(&batch, 0, 0);
    assert_eq!(instance.stats().calls, 1);
    // The counter skips it, but is called with it.
    assert_eq!(instance.deliver(&batch, 7, 0).records, 1);
    assert_eq!(Lost::default().source, 0);
}

#[test]
fn the_same_batches_give_the_same_requests() {
    let run = || {
        let mut instance = instance(&GOOD);
        let mut numbers = Numbers::default();
        let batches = (1..20).map(|size| numbers.batch(size * 50, size as u64));
        batches
            .map(|batch| instance.deliver(&batch, 0, 0))
            .collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

#[test]
fn each_misdeed_is_the_right_strike() {
    for (guest, kind, fatal, requests) in [
        (guest::TRAP, StrikeKind::Trap, true, 0),
        (guest::SPIN, StrikeKind::Deadline, true, 0),
        (guest::GROW, StrikeKind::Memory, true, 0),
        (guest::GARBAGE, StrikeKind::Nonsense, true, 0),
        (guest::AMPLIFY, StrikeKind::OverLimit, true, 0),
        (guest::FLOOD, StrikeKind::OverLimit, false, 64),
        (guest::NONSENSE, StrikeKind::Nonsense, false, 0),
        (guest::KILL, StrikeKind::Nonsense, false, 0),
    ] {
        let (count, strike) = misdeed(guest);
        assert_eq!(
            (strike.kind, strike.fatal, count),
            (kind, fatal, requests),
            "{strike}"
        );
    }
}

#[test]
fn asking_for_too_much_over_many_calls_is_cut_and_struck() {
    let mut instance = instance(&Guest {
        misdeed: guest::MANY,
        ..GOOD
    });
    let mut numbers = Numbers::default();
    let mut second = |now_ns| {
        let batches: Vec<_> = (0..1000).map(|_| numbers.with(1, now_ns, poison)).collect();
        let deliveries = batches.iter().map(|batch| instance.deliver(batch, 0, 0));
        let (requests, strikes): (Vec<_>, Vec<_>) = deliveries
            .map(|delivery| (delivery.requests.len(), delivery.strikes))
            .unzip();
        (requests.iter().sum::<usize>(), strikes.concat())
    };
    for now_ns in [SECOND, 2 * SECOND] {
        let (requests, strikes) = second(now_ns);
        assert_eq!((requests, strikes.len()), (256, 1), "{strikes:?}");
        assert_eq!(
            (strikes[0].kind, strikes[0].fatal),
            (StrikeKind::OverLimit, false)
        );
        assert!(strikes[0].detail.contains("too many requests"));
    }
}

#[test]
fn state_goes_from_one_instance_to_another() {
    let mut numbers = Numbers::default();
    let mut one = instance(&GOOD);
    one.deliver(&numbers.batch(10, 1), 0, 0);
    let state = one.checkpoint(2).unwrap();
    let mut other = instance(&GOOD);
    other.restore(3, 1, &state).unwrap().unwrap();
    let delivery = other.deliver(&numbers.batch(1, 4), 0, 0);
    let target = palisade_core::Target::Workload(palisade_core::WorkloadId(11));
    assert_eq!(delivery.requests[0].target, target);
    assert_eq!(delivery.requests[0].severity, palisade_core::Severity::Info);
}

fn trapping_stepper() -> Stepper {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.wasm");
    let guest = Guest {
        misdeed: guest::TRAP,
        ..GOOD
    };
    std::fs::write(&path, guest.build()).unwrap();
    let shared = EngineShared::new(Arc::new(NoLookup)).unwrap();
    Stepper::new(&shared, &source("p", &path), 1).unwrap()
}

/// The records that were lost, and what the guest said of those that it saw, call by call.
fn lost_and_seen(events: &[PolicyEvent]) -> (Vec<u64>, Vec<u64>) {
    let lost = events.iter().filter_map(|event| match event {
        PolicyEvent::Lost { records, .. } => Some(*records),
        _ => None,
    });
    let seen = events.iter().filter_map(|event| match event {
        PolicyEvent::Output { requests, .. } => Some(requests),
        _ => None,
    });
    let seen = seen.flatten().map(|request| match request.target {
        palisade_core::Target::Workload(count) => count.0,
        palisade_core::Target::Process(_) => 0,
    });
    (lost.collect(), seen.collect())
}

#[test]
fn after_a_crash_the_rest_of_the_batch_is_given_and_the_crashing_call_told_as_lost() {
    const CALL: u64 = MAX_RECORDS_PER_CALL as u64;
    let mut stepper = trapping_stepper();
    let mut numbers = Numbers::default();
    let make = |number| match number {
        5 => poison(5),
        other => numbered(other),
    };
    let events = stepper.step(&numbers.with(2 * MAX_RECORDS_PER_CALL, 1, make), 0);
    // The record that tells of the loss takes the place of one that it sees.
    assert_eq!(lost_and_seen(&events), (vec![CALL], vec![CALL - 1, CALL]));
    let restarted = |event: &PolicyEvent| matches!(event, PolicyEvent::Restarted { .. });
    assert!(events.iter().any(restarted));
}

#[test]
fn a_crash_at_the_end_of_a_batch_is_told_with_the_next_one() {
    let mut stepper = trapping_stepper();
    let mut numbers = Numbers::default();
    let events = stepper.step(&numbers.with(3, 1, poison), 7);
    assert_eq!(lost_and_seen(&events), (vec![7, 3], vec![]));
    let events = stepper.step(&numbers.batch(MAX_RECORDS_PER_CALL, 2), 0);
    let call = MAX_RECORDS_PER_CALL as u64;
    assert_eq!(lost_and_seen(&events), (vec![], vec![call - 1, call]));
}

#[test]
fn a_policy_driven_by_hand_behaves_as_in_the_agent() {
    let run = || {
        let mut stepper = trapping_stepper();
        let mut numbers = Numbers::default();
        let mut events = stepper.step(&numbers.batch(3, SECOND), 0);
        for _ in 0..5 {
            events.extend(stepper.step(&numbers.with(1, SECOND, poison), 2));
        }
        events
    };
    let events = run();
    let count = |pick: fn(&PolicyEvent) -> bool| events.iter().filter(|event| pick(event)).count();
    assert_eq!(
        count(|event| matches!(event, PolicyEvent::Restarted { .. })),
        3
    );
    assert_eq!(
        count(|event| matches!(event, PolicyEvent::Lost { records: 2, .. })),
        4
    );
    assert!(matches!(events.last(), Some(PolicyEvent::Ejected { .. })));
    assert_eq!(events, run());
}
