//! Policies that misbehave, beside one that does not.

use super::super::event::Handover;
use super::super::{PolicyState, StrikeKind};
use super::guest::{self, GOOD, Guest};
use super::*;

#[test]
fn the_good_policy_sees_everything_beside_each_hostile_one() {
    for misdeed in [
        guest::SPIN,
        guest::TRAP,
        guest::GROW,
        guest::GARBAGE,
        guest::FLOOD,
    ] {
        let mut bed = Bed::new();
        bed.load("good", &GOOD.build());
        bed.load("bad", &Guest { misdeed, ..GOOD }.build());
        let mut numbers = Numbers::default();
        for _ in 0..100 {
            bed.publish(&numbers.with(3, SECOND, poison));
        }
        bed.until_count("good", 300);
        bed.until_ejected("bad");
        let status = bed.engine.status();
        let bad = &status[0];
        assert_eq!(
            (bad.name.as_str(), bad.state),
            ("bad", PolicyState::Ejected)
        );
        assert_eq!(bad.strikes, 4);
        assert_eq!(status[1].strikes, 0);
        assert_eq!(status[1].records, 300);
        let strikes = bed.finish();
        let strikes = strikes
            .iter()
            .filter(|event| matches!(event, PolicyEvent::Strike { .. }));
        assert_eq!(strikes.count(), 4);
    }
}

#[test]
fn a_crashed_policy_goes_on_from_its_last_checkpoint() {
    let mut bed = Bed::new();
    bed.load(
        "p",
        &Guest {
            misdeed: guest::TRAP,
            ..GOOD
        }
        .build(),
    );
    let mut numbers = Numbers::default();
    // The checkpoint is due after the second of these, five seconds later.
    bed.publish(&numbers.batch(10, SECOND));
    bed.publish(&numbers.batch(10, 7 * SECOND));
    bed.publish(&numbers.batch(10, 8 * SECOND));
    bed.publish(&numbers.with(1, 9 * SECOND, poison));
    let (state, from, to) = bed.until("restart", |event| match event {
        PolicyEvent::Restarted {
            state,
            from_seq,
            to_seq,
            ..
        } => Some((*state, *from_seq, *to_seq)),
        _ => None,
    });
    assert_eq!((state, from, to), (Handover::Checkpoint, 3, 4));
    bed.publish(&numbers.batch(1, 10 * SECOND));
    let seen = bed.until("report", |event| report(event, "p"));
    // 20 of the checkpoint and this one; it sees the gap.
    assert_eq!(seen, (21, false));
    assert_eq!(bed.engine.status()[0].restarts, 1);
}

#[test]
fn a_crash_before_any_checkpoint_begins_anew_and_says_what_is_forgotten() {
    let mut bed = Bed::new();
    bed.load(
        "p",
        &Guest {
            misdeed: guest::TRAP,
            ..GOOD
        }
        .build(),
    );
    let mut numbers = Numbers { seq: 41, next: 0 };
    bed.publish(&numbers.batch(1, SECOND));
    bed.publish(&numbers.with(1, SECOND, poison));
    let gap = bed.until("restart", |event| match event {
        PolicyEvent::Restarted {
            state,
            from_seq,
            to_seq,
            ..
        } => Some((*state, *from_seq, *to_seq)),
        _ => None,
    });
    assert_eq!(gap, (Handover::Fresh, 42, 43));
}

#[test]
fn strikes_far_apart_do_not_eject() {
    let mut bed = Bed::new();
    bed.load(
        "p",
        &Guest {
            misdeed: guest::NONSENSE,
            ..GOOD
        }
        .build(),
    );
    let mut numbers = Numbers::default();
    for minute in 0..10 {
        bed.publish(&numbers.with(1, minute * 61 * SECOND, poison));
    }
    bed.publish(&numbers.batch(1, 3600 * SECOND));
    bed.until_count("p", 11);
    let status = &bed.engine.status()[0];
    assert_eq!((status.strikes, status.state), (10, PolicyState::Running));
}

#[test]
fn a_reload_revives_an_ejected_policy() {
    let mut bed = Bed::new();
    bed.load(
        "p",
        &Guest {
            misdeed: guest::TRAP,
            ..GOOD
        }
        .build(),
    );
    let mut numbers = Numbers::default();
    for _ in 0..10 {
        bed.publish(&numbers.with(1, SECOND, poison));
    }
    bed.until_ejected("p");
    bed.write("p", &GOOD.build());
    assert_eq!(bed.engine.reload("p").unwrap().generation, 2);
    let mut numbers = Numbers::default();
    bed.publish(&numbers.batch(5, 2 * SECOND));
    bed.until_count("p", 5);
    assert_eq!(bed.engine.status()[0].state, PolicyState::Running);
}

#[test]
fn a_policy_that_cannot_keep_up_is_told_what_it_missed() {
    let mut bed = Bed::new();
    bed.write(
        "p",
        &Guest {
            misdeed: guest::SPIN,
            ..GOOD
        }
        .build(),
    );
    let mut source = bed.source("p");
    source.limits.queue_batches = 4;
    source.limits.call_deadline = Duration::from_millis(200);
    bed.engine.load(source).unwrap();
    let mut numbers = Numbers::default();
    bed.publish(&numbers.with(1, SECOND, poison));
    for _ in 0..20 {
        bed.publish(&numbers.batch(2, SECOND));
    }
    bed.until("strike", |event| match event {
        PolicyEvent::Strike { kind, .. } => (*kind == StrikeKind::Deadline).then_some(()),
        _ => None,
    });
    while bed.engine.status()[0].queue_batches > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    bed.publish(&numbers.batch(2, SECOND));
    let mut lost = |what| {
        bed.until(what, |event| match event {
            PolicyEvent::Lost { records, .. } => Some(*records),
            _ => None,
        })
    };
    assert_eq!(lost("loss of what it crashed over"), 1);
    let told = lost("loss of what found no room");
    assert_eq!(told + 1, bed.engine.status()[0].lost);
    // 20 batches of 2, of which 3 or 4 found room beside the poison or behind it.
    assert!((32..=34).contains(&told), "{told}");
}

#[test]
fn a_checkpoint_beyond_its_limit_is_a_strike() {
    let big = "(i32.store (i32.const 1024) (i32.const 0))
        (i32.store (i32.const 1028) (i32.const 200000)) (return (i32.const 1024))";
    let mut bed = Bed::new();
    bed.write(
        "p",
        &Guest {
            checkpoint: big,
            ..GOOD
        }
        .build(),
    );
    let mut source = bed.source("p");
    source.limits.checkpoint_bytes = 100_000;
    bed.engine.load(source).unwrap();
    let mut numbers = Numbers::default();
    bed.publish(&numbers.batch(1, SECOND));
    bed.publish(&numbers.batch(1, 10 * SECOND));
    bed.until("strike", |event| match event {
        PolicyEvent::Strike { kind, .. } => (*kind == StrikeKind::OverLimit).then_some(()),
        _ => None,
    });
}
