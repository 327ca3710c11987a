//! The hostile guests that are built with the SDK, beside the one that counts.
//!
//! `PALISADE_GUESTS` names the folder with their components.

use super::super::{LoadError, check};
use super::*;
use palisade_core::Evidence;

/// What the counter says of itself.
fn counted(event: &PolicyEvent) -> Option<Vec<Evidence>> {
    let PolicyEvent::Output {
        policy, requests, ..
    } = event
    else {
        return None;
    };
    (policy.name == "counter").then(|| requests.last().map(|last| last.evidence.clone()))?
}

fn value(evidence: &[Evidence], name: &str) -> f64 {
    evidence
        .iter()
        .find(|piece| piece.name == name)
        .unwrap()
        .value
}

fn folder(test: &str) -> Option<std::path::PathBuf> {
    let folder = std::env::var_os("PALISADE_GUESTS").map(std::path::PathBuf::from);
    if folder.is_none() {
        eprintln!("SKIPPED {test}: PALISADE_GUESTS does not name the folder of built guests");
    }
    folder
}

#[test]
fn built_hostile_guests_do_not_disturb_the_counter() {
    let Some(folder) = folder("built_hostile_guests_do_not_disturb_the_counter") else {
        return;
    };
    let mut bed = Bed::new();
    for name in ["counter", "flood", "garbage", "grow", "spin", "trap"] {
        let mut source = source(name, &folder.join(format!("{name}.wasm")));
        source.max_power = Power::Kill;
        bed.engine.load(source).unwrap();
    }
    let mut numbers = Numbers::default();
    for tick in 0..500 {
        // It may ask 256 times a second.
        bed.publish(&numbers.batch(7, SECOND + tick * SECOND / 100));
        std::thread::sleep(Duration::from_micros(200));
    }
    bed.until("full count", |event| {
        let evidence = counted(event)?;
        assert_eq!(
            (value(&evidence, "gaps"), value(&evidence, "repeats")),
            (0.0, 0.0)
        );
        (value(&evidence, "count") >= 3500.0).then_some(())
    });
    for name in ["flood", "garbage", "spin", "trap"] {
        bed.until_ejected(name);
    }
    assert!(!bed.seen.iter().any(|event| matches!(
        event,
        PolicyEvent::Strike { policy, .. } if policy.name == "counter"
    )));
}

#[test]
fn a_built_component_for_another_world_is_refused() {
    let Some(folder) = folder("a_built_component_for_another_world_is_refused") else {
        return;
    };
    let error = check(&source("p", &folder.join("other-world.wasm"))).unwrap_err();
    assert!(matches!(error, LoadError::World { .. }), "{error}");
}
