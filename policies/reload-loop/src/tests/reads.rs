//! Loaders that read instead of mapping.

use super::*;
use palisade_policy_sdk::abi::SampleReads;
use palisade_policy_sdk::testing::absent;
use palisade_policy_sdk::{Kind, Level};

fn proc(pid: u32) -> Proc {
    Proc::new(pid, WORKLOAD)
}

fn open(pid: u32) -> Step {
    Rec(proc(pid).model_open_direct(DEVICE, 42, 4 * GIB))
}

fn map(pid: u32) -> Step {
    Rec(proc(pid).model_map(DEVICE, 42, 4 * GIB))
}

fn read(pid: u32, bytes: u64) -> Step {
    Rec(proc(pid).sample(SampleReads {
        inode: 42,
        bytes,
        device: DEVICE,
        reads: 1,
    }))
}

/// Opens the file and reads as much of it in eight windows, a second each.
fn load_by_reading(pid: u32, bytes: u64) -> Script {
    let mut script = vec![(0, open(pid))];
    script.extend((0..8).map(|_| (1, read(pid, bytes / 8))));
    script
}

fn times(count: u32, pause: u64, script: Script) -> Script {
    let mut all = Script::new();
    for _ in 0..count {
        all.extend(script.iter().copied());
        all.push((pause, read(99, 0)));
    }
    all
}

#[test]
fn reading_loops_are_found_and_other_readers_stay_quiet() {
    let whole = || load_by_reading(1, 4 * GIB);
    let cases: Vec<(&str, bool, Script)> = vec![
        ("a loop past the page cache", true, times(3, 25, whole())),
        ("a quick loop", true, times(12, 0, whole())),
        (
            "a loader that passes over the header",
            true,
            times(3, 25, load_by_reading(1, 4 * GIB - (200 << 20))),
        ),
        (
            "a crash loop",
            true,
            (1..4)
                .flat_map(|pid| {
                    let mut script = load_by_reading(pid, 4 * GIB);
                    script.push((30, Exit(pid)));
                    script
                })
                .collect(),
        ),
        (
            "a crash loop that reads within a window: its end is told before what it read",
            true,
            (1..4)
                .flat_map(|pid| [(30, open(pid)), (0, Exit(pid)), (0, read(pid, 4 * GIB))])
                .collect(),
        ),
        (
            "a crash loop whose reading ends with it",
            true,
            (1..4)
                .flat_map(|pid| {
                    let half = || read(pid, 2 * GIB);
                    [(30, open(pid)), (0, half()), (0, Exit(pid)), (0, half())]
                })
                .collect(),
        ),
        (
            "a crash loop with a descriptor that was handed down",
            true,
            (1..4)
                .flat_map(|pid| [(5, open(9)), (15, read(pid, 4 * GIB)), (15, Exit(pid))])
                .collect(),
        ),
        (
            "openings without reading",
            false,
            times(20, 40, vec![(0, open(1))]),
        ),
        (
            "half of it, opened anew each time",
            false,
            times(4, 40, load_by_reading(1, 2 * GIB)),
        ),
        (
            "a database that reads here and there",
            false,
            std::iter::once((0, open(1)))
                .chain((0..100).map(|_| (5, read(1, GIB))))
                .collect(),
        ),
        (
            "a map whose pages are read as well, slowly",
            false,
            times(
                2,
                10,
                vec![
                    (0, open(1)),
                    (0, map(1)),
                    (60, read(1, 2 * GIB)),
                    (60, read(1, 2 * GIB)),
                ],
            ),
        ),
        (
            "a sum that is checked before each of two starts",
            false,
            times(2, 120, {
                let mut script = whole();
                script.extend([(1, open(1)), (1, map(1))]);
                script
            }),
        ),
        (
            "four workers that read at the same time",
            false,
            (1..5)
                .flat_map(|pid| load_by_reading(pid, 4 * GIB))
                .collect(),
        ),
        (
            "workers that read one after the other",
            false,
            (1..9)
                .flat_map(|pid| times(1, 30, load_by_reading(pid, 4 * GIB)))
                .collect(),
        ),
        (
            "reads of a file whose opening was not seen",
            false,
            times(20, 40, vec![(0, read(1, 4 * GIB))]),
        ),
    ];
    for (name, wanted, script) in cases {
        let requests = run(&[], &script);
        let alerts = requests
            .iter()
            .filter(|request| request.action == Action::Alert)
            .count();
        assert_eq!(alerts, usize::from(wanted), "{name}: {requests:#?}");
        assert_eq!(!requests.is_empty(), wanted, "{name}");
    }
}

#[test]
fn a_reading_loop_is_named_at_its_third_load() {
    let mut script = times(2, 25, load_by_reading(1, 4 * GIB));
    assert_eq!(run(&[], &script), []);
    script.extend(load_by_reading(1, 4 * GIB));
    let requests = run(&[], &script);
    assert_eq!(requests.len(), 2, "{requests:#?}");
    assert_eq!(evidence(&requests[0], "loads"), 3.0);
    // All of it is asked for: at nine tenths of the third load it is none yet.
    let last = script.len() - 1;
    let all = [("whole_ratio", 1.0.into())];
    assert_eq!(run(&all, &script[..last]), []);
    assert_eq!(run(&all, &script).len(), 2);
}

#[test]
fn openings_that_count_are_not_counted_again_when_read() {
    // The read ends after the gap.
    let script = times(2, 10, vec![(0, open(1)), (40, read(1, 4 * GIB))]);
    assert_eq!(run(&[("count_opens", true.into())], &script), []);
}

#[test]
fn what_cannot_be_had_is_said_once() {
    let mut harness = policy(&[]);
    harness.push(absent(&[Kind::SampleReads]));
    assert_eq!(harness.deliver(), []);
    let logs = fake::take_logs();
    assert!(logs.len() == 1 && logs[0].0 == Level::Warn, "{logs:?}");
    assert!(logs[0].1.starts_with("sample-reads cannot be had"));
    harness.push(absent(&[]));
    assert_eq!(harness.deliver(), []);
    assert_eq!(fake::take_logs(), []);
}

#[test]
fn state_of_the_first_version_is_taken_over() {
    let mut harness = policy(&[]);
    for _ in 0..2 {
        load(&mut harness, proc(1));
        wait(&mut harness, 31);
    }
    let mut state = harness.policy().checkpoint();
    // New is the end of the only user of the only file, before the list of episodes (4 bytes).
    let end = state.len() - 4;
    state.drain(end - 9..end);
    harness.restore(1, &state).expect("state of version 1");
    assert_eq!(load(&mut harness, proc(1)).len(), 2);
    assert!(harness.restore(2, &state).is_err());
}
