//! A short storm of events: what was made is delivered or counted as lost, exactly, for each workload.
#![allow(clippy::unwrap_used)] // a failed step ends the test

use palisade_tests::bench::{identity, storm};
use palisade_tests::{live_or_skip, soak};

fn seconds() -> u64 {
    if soak() { 30 } else { 2 }
}

#[test]
fn what_a_storm_makes_is_delivered_or_counted_as_lost() {
    live_or_skip!("what_a_storm_makes_is_delivered_or_counted_as_lost");
    let outcome = storm::run(&storm::Storm {
        seconds: seconds(),
        ..storm::Storm::default()
    })
    .unwrap();
    eprintln!("MEASURED storm:\n{outcome}");
    assert!(outcome.made() > 0);
    assert!(outcome.exact(), "{outcome}");
}

#[test]
fn a_storm_that_finds_no_room_is_accounted_for_to_the_last_event() {
    live_or_skip!("a_storm_that_finds_no_room_is_accounted_for_to_the_last_event");
    let outcome = storm::run(&storm::Storm {
        // More than fits between two wake-ups of the consumer.
        per_second: 400_000,
        seconds: seconds(),
        ring: "64KiB",
        queue: 2,
    })
    .unwrap();
    eprintln!("MEASURED storm with little room:\n{outcome}");
    // Without a loss nothing would be shown.
    assert!(outcome.policy.lost > 0, "{outcome}");
    assert!(outcome.exact(), "{outcome}");
}

#[test]
fn short_lived_processes_are_known_or_counted() {
    live_or_skip!("short_lived_processes_are_known_or_counted");
    let outcome = identity::run(2000, seconds()).unwrap();
    eprintln!("MEASURED short-lived processes:\n{outcome}");
    let bound = palisade::identity::Limits::default().processes;
    assert!(
        outcome.most <= bound,
        "{} processes in the table",
        outcome.most
    );
    // A loss is counted without its kind: with losses, only bounds are known.
    assert!(outcome.execs.all <= outcome.made.made, "{outcome}");
    assert!(
        outcome.execs.all + outcome.lost >= outcome.made.made,
        "{outcome}"
    );
    // Whoever executed a program is in the table when that is delivered: the record itself says who it is.
    assert_eq!(outcome.execs.unknown, 0, "{outcome}");
    assert_eq!(outcome.execs.resolved, outcome.execs.all, "{outcome}");
    // The kernel tells the path with the record: nobody is gone too soon.
    assert_eq!(outcome.execs.with_path, outcome.execs.all, "{outcome}");
}
