//! Exchanging policies while events flow.

use super::super::event::Handover;
use super::super::{LoadError, PolicyState};
use super::guest::{self, GOOD, Guest};
use super::*;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn a_reload_under_load_loses_nothing_and_repeats_nothing() {
    let mut bed = Bed::new();
    bed.load("p", &GOOD.build());
    let done = Arc::new(AtomicBool::new(false));
    let publisher = bed.engine.publisher();
    let flag = Arc::clone(&done);
    let source = std::thread::spawn(move || {
        let mut numbers = Numbers::default();
        while !flag.load(Ordering::Relaxed) {
            let now = numbers.seq * SECOND / 10;
            publisher.publish(&numbers.batch(97, now), |_, _| {});
            std::thread::sleep(Duration::from_micros(300));
        }
        numbers.next
    });
    for version in 2..12 {
        let version: &'static str = format!("{version}.0.0").leak();
        bed.write("p", &Guest { version, ..GOOD }.build());
        let reference = bed.engine.reload("p").unwrap();
        assert_eq!(reference.version, version);
    }
    done.store(true, Ordering::Relaxed);
    let published = source.join().unwrap();
    assert_eq!(bed.engine.status()[0].lost, 0);
    bed.until_count("p", published);
    let status = &bed.engine.status()[0];
    assert_eq!((status.generation, status.running_generation), (11, 11));
    assert_eq!(status.records, published);
    let loaded = bed.finish();
    let loaded: Vec<_> = loaded
        .iter()
        .filter_map(|event| match event {
            PolicyEvent::Loaded { policy, state, .. } => Some((policy.generation, *state)),
            _ => None,
        })
        .collect();
    assert_eq!(loaded.len(), 11);
    assert!(
        loaded[1..]
            .iter()
            .all(|(_, state)| *state == Handover::Current)
    );
}

#[test]
fn a_new_version_that_crashes_is_rolled_back_and_the_old_one_sees_what_crashed_it() {
    for misdeed in [guest::TRAP, guest::SPIN, guest::GARBAGE] {
        let mut bed = Bed::new();
        bed.load("p", &GOOD.build());
        let mut numbers = Numbers::default();
        bed.publish(&numbers.batch(10, SECOND));
        bed.write(
            "p",
            &Guest {
                version: "2.0.0",
                misdeed,
                ..GOOD
            }
            .build(),
        );
        bed.engine.reload("p").unwrap();
        assert_eq!(bed.engine.status()[0].state, PolicyState::Probation);
        bed.publish(&numbers.with(5, 2 * SECOND, poison));
        let (policy, failed, from, to) = bed.until("roll-back", |event| match event {
            PolicyEvent::RolledBack {
                policy,
                failed,
                from_seq,
                to_seq,
                ..
            } => Some((policy.clone(), failed.clone(), *from_seq, *to_seq)),
            _ => None,
        });
        assert_eq!((policy.generation, failed.generation), (1, 2));
        assert!(to < from, "the old version missed nothing");
        bed.publish(&numbers.batch(1, 3 * SECOND));
        bed.until_count("p", 16);
        let status = &bed.engine.status()[0];
        assert_eq!((status.generation, status.running_generation), (2, 1));
        assert_eq!(
            (status.version.as_str(), status.state),
            ("1.0.0", PolicyState::Running)
        );
    }
}

#[test]
fn after_a_roll_back_nothing_of_the_new_version_s_state_is_left() {
    let mut bed = Bed::new();
    let old = Guest {
        misdeed: guest::TRAP,
        ..GOOD
    };
    let new = Guest {
        version: "2.0.0",
        ..old.clone()
    };
    bed.load("p", &old.build());
    let mut numbers = Numbers::default();
    bed.publish(&numbers.batch(10, SECOND));
    bed.write("p", &new.build());
    bed.engine.reload("p").unwrap();
    bed.publish(&numbers.batch(10, 2 * SECOND));
    // The new version's checkpoint is due after this one.
    bed.publish(&numbers.batch(10, 9 * SECOND));
    // Both crash over this: the new one, then the old one to which it is given again.
    bed.publish(&numbers.with(1, 10 * SECOND, poison));
    let (policy, state, from, to) = bed.until("restart", |event| match event {
        PolicyEvent::Restarted {
            policy,
            state,
            from_seq,
            to_seq,
        } => Some((policy.generation, *state, *from_seq, *to_seq)),
        _ => None,
    });
    assert_eq!((policy, state, from, to), (1, Handover::Checkpoint, 2, 4));
    bed.publish(&numbers.batch(1, 11 * SECOND));
    let seen = bed.until("report", |event| report(event, "p"));
    // 10 of the state at the swap and this one; it sees the gap.
    assert_eq!(seen, (11, false));
}

#[test]
fn a_version_that_is_refused_leaves_no_subscription_behind() {
    let bed = Bed::new();
    bed.load("p", &GOOD.build());
    let kinds = || {
        (
            bed.engine.subscriptions(),
            bed.engine.status()[0].kinds.clone(),
        )
    };
    let before = kinds();
    let more = Guest {
        kinds: "\"exec\", \"exit\"",
        ..GOOD
    };
    let refusing = Guest {
        restore: "(return (call $no))",
        ..more.clone()
    };
    bed.write("p", &refusing.build());
    bed.engine.reload("p").unwrap_err();
    assert_eq!(kinds(), before);
    bed.write("p", &more.build());
    bed.engine.reload("p").unwrap();
    assert_eq!(kinds().1.len(), before.1.len() + 1);
    // Neither does one refused while the version before the running one is kept.
    bed.write("p", &refusing.build());
    bed.engine.reload("p").unwrap_err();
    assert_eq!(kinds().1.len(), before.1.len() + 1);
}

#[test]
fn after_probation_a_crash_is_a_restart() {
    let mut bed = Bed::new();
    bed.load("p", &GOOD.build());
    let mut numbers = Numbers::default();
    bed.publish(&numbers.batch(10, SECOND));
    bed.write(
        "p",
        &Guest {
            version: "2.0.0",
            misdeed: guest::TRAP,
            ..GOOD
        }
        .build(),
    );
    bed.engine.reload("p").unwrap();
    bed.publish(&numbers.batch(1, 2 * SECOND));
    bed.publish(&numbers.batch(1, 13 * SECOND));
    bed.publish(&numbers.with(1, 14 * SECOND, poison));
    let version = bed.until("restart", |event| match event {
        PolicyEvent::Restarted { policy, .. } => Some(policy.version.clone()),
        _ => None,
    });
    assert_eq!(version, "2.0.0");
}

#[test]
fn whatever_is_wrong_with_the_new_version_the_old_one_goes_on() {
    let mut bed = Bed::new();
    bed.load("p", &GOOD.build());
    let mut numbers = Numbers::default();
    bed.publish(&numbers.batch(3, SECOND));
    let broken = [
        b"broken".to_vec(),
        Guest {
            policy: "powers = [\"kill\"]",
            ..GOOD
        }
        .build(),
        Guest {
            init: guest::TRAP,
            ..GOOD
        }
        .build(),
        Guest {
            restore: guest::TRAP,
            ..GOOD
        }
        .build(),
        Guest {
            restore: "(return (call $no))",
            ..GOOD
        }
        .build(),
    ];
    for bytes in &broken {
        bed.write("p", bytes);
        let error = bed.engine.reload("p").unwrap_err();
        let told = bed.until("rejection", |event| match event {
            PolicyEvent::Rejected { error, .. } => Some(error.clone()),
            _ => None,
        });
        assert_eq!(told, error.to_string());
        bed.publish(&numbers.batch(1, SECOND));
    }
    bed.until_count("p", 8);
    let status = &bed.engine.status()[0];
    assert_eq!((status.generation, status.running_generation), (6, 1));
    assert!(
        status
            .last_error
            .as_deref()
            .is_some_and(|error| error.contains("counted"))
    );
}

#[test]
fn an_old_version_that_cannot_hand_over_does_not_block_the_new_one() {
    let mut bed = Bed::new();
    bed.load(
        "p",
        &Guest {
            checkpoint: guest::TRAP,
            ..GOOD
        }
        .build(),
    );
    let mut numbers = Numbers::default();
    bed.publish(&numbers.batch(3, SECOND));
    bed.write("p", &GOOD.build());
    bed.engine.reload("p").unwrap();
    let state = bed.until("load", |event| match event {
        PolicyEvent::Loaded { policy, state, .. } if policy.generation == 2 => Some(*state),
        _ => None,
    });
    assert_eq!(state, Handover::Fresh);
}

#[test]
fn settings_can_be_changed_by_a_reload() {
    let guest = Guest {
        tables: "[settings.n]\ntype = \"integer\"\ndefault = 1\nmax = 9",
        ..GOOD
    };
    let bed = Bed::new();
    bed.load("p", &guest.build());
    let mut source = bed.source("p");
    source.settings = toml::from_str("n = 10").unwrap();
    assert!(matches!(
        bed.engine.reload_with(source.clone()),
        Err(LoadError::Settings { .. })
    ));
    source.settings = toml::from_str("n = 9").unwrap();
    assert_eq!(bed.engine.reload_with(source).unwrap().generation, 3);
    // The bad settings are forgotten, the good ones kept.
    assert_eq!(bed.engine.reload("p").unwrap().generation, 4);
}

#[test]
fn changed_files_are_noticed_however_they_change() {
    let mut bed = Bed::new();
    bed.load("p", &GOOD.build());
    bed.engine.watch_files().unwrap();
    let mut numbers = Numbers::default();
    bed.publish(&numbers.batch(3, SECOND));
    let version = |bed: &mut Bed, wanted: &str| {
        bed.until(&format!("load of {wanted}"), |event| match event {
            PolicyEvent::Loaded { policy, .. } if policy.version == wanted => Some(()),
            _ => None,
        });
    };
    // Renamed over it.
    bed.write(
        "p",
        &Guest {
            version: "2.0.0",
            ..GOOD
        }
        .build(),
    );
    version(&mut bed, "2.0.0");
    // Written in place.
    let path = bed.folder.path().join("p");
    std::fs::write(
        &path,
        Guest {
            version: "3.0.0",
            ..GOOD
        }
        .build(),
    )
    .unwrap();
    version(&mut bed, "3.0.0");
    // Broken: told once, the old one goes on.
    std::fs::write(&path, b"broken").unwrap();
    bed.until("rejection", |event| {
        matches!(event, PolicyEvent::Rejected { .. }).then_some(())
    });
    bed.publish(&numbers.batch(3, SECOND));
    bed.until_count("p", 6);
    // Touched, not changed: nothing. A link to another file: that one.
    std::fs::write(&path, b"broken").unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("real.wasm");
    std::fs::write(
        &target,
        Guest {
            version: "4.0.0",
            ..GOOD
        }
        .build(),
    )
    .unwrap();
    let link = bed.folder.path().join("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    std::fs::rename(&link, &path).unwrap();
    version(&mut bed, "4.0.0");
    // And that one's folder is watched too.
    std::fs::write(
        &target,
        Guest {
            version: "5.0.0",
            ..GOOD
        }
        .build(),
    )
    .unwrap();
    version(&mut bed, "5.0.0");
    let events = bed.finish();
    let rejected = events
        .iter()
        .filter(|event| matches!(event, PolicyEvent::Rejected { .. }));
    assert_eq!(rejected.count(), 1);
}

#[test]
fn policies_of_the_engine_end_with_it() {
    let bed = Bed::new();
    bed.load("p", &GOOD.build());
    bed.engine.watch_files().unwrap();
    let (events, engine) = (bed.events, bed.engine);
    drop(engine);
    // The senders are gone: all threads have ended.
    assert!(matches!(
        events.iter().last(),
        Some(PolicyEvent::Unloaded { .. })
    ));
}
