//! What is over the commands' baselines, and what only takes long.

use super::*;
use palisade_policy_sdk::abi::SampleGpuCommand;
use palisade_policy_sdk::testing::absent;
use palisade_policy_sdk::{Kind, Level};

const COMMAND: u16 = 0x2a;

/// A process's calls of one command in one second: all but the last in milliseconds of it.
#[derive(Clone, Copy)]
struct Calls {
    proc: Proc,
    calls: u32,
    latency_ms: u64,
    hold_ms: u64,
    /// Over the baseline; `None`: nothing is told by command.
    excess_ms: Option<u64>,
    command: u16,
}

fn calls(proc: Proc, latency_ms: u64, hold_ms: u64, excess_ms: Option<u64>) -> Calls {
    Calls {
        proc,
        calls: 10,
        latency_ms,
        hold_ms,
        excess_ms,
        command: COMMAND,
    }
}

fn second_of(harness: &mut Harness<GpuContention>, loads: &[Calls]) -> Vec<Request> {
    let mut requests = Vec::new();
    for _ in 0..10 {
        harness.advance_ms(100);
        for load in loads {
            let calls = load.calls.div_ceil(10);
            let part = |ms: u64| ms * MS / 10;
            let (latency_ns, hold_ns) = (part(load.latency_ms), part(load.hold_ms));
            harness.push(load.proc.sample_gpu(0, calls, latency_ns, hold_ns));
            if let Some(excess_ms) = load.excess_ms {
                harness.push(load.proc.sample(SampleGpuCommand {
                    latency_ns,
                    excess_ns: part(excess_ms),
                    calls,
                    command: load.command,
                    class: 0,
                }));
            }
        }
        requests.extend(harness.deliver());
    }
    requests
}

fn seconds_of(harness: &mut Harness<GpuContention>, count: u32, loads: &[Calls]) -> Vec<Request> {
    (0..count).flat_map(|_| second_of(harness, loads)).collect()
}

/// A workload whose waits end often, and others whose waits last long: by design, all of them. To the queue of
/// one server, the first is served all the time and the others wait for it.
fn waits_by_design(excess_ms: Option<u64>) -> Vec<Calls> {
    let mut loads: Vec<Calls> = (0..3)
        .map(|n| {
            calls(
                Proc::new(200 + n, SERVICE + u64::from(n)),
                990,
                10,
                excess_ms,
            )
        })
        .collect();
    loads.push(calls(Proc::new(HOLDER, BATCH), 980, 960, excess_ms));
    loads
}

#[test]
fn calls_that_take_long_as_always_are_no_contention() {
    // A baseline is right to a fifth.
    for excess_ms in [1, 100, 200] {
        let requests = seconds_of(&mut policy(&[]), 20, &waits_by_design(Some(excess_ms)));
        assert_eq!(requests, [], "{excess_ms} ms over the baseline");
    }
    // Without the excess they cannot be told from contention.
    let requests = seconds_of(&mut policy(&[]), 4, &waits_by_design(None));
    assert_eq!(requests.len(), 2);
}

#[test]
fn waiting_over_the_baseline_is_contention() {
    let mut harness = policy(&[]);
    let loads = waits_by_design(Some(950));
    assert_eq!(seconds_of(&mut harness, 2, &loads), []);
    let requests = second_of(&mut harness, &loads);
    assert_eq!(requests.len(), 2, "{requests:#?}");
    assert_eq!(requests[0].target, Target::Workload(BATCH));
    assert_eq!(evidence(&requests[0], "driver time with a baseline"), 1.0);
    let share = evidence(&requests[0], "waiting share of the others");
    assert!((share - 950.0 / 990.0).abs() < 1e-6, "{share}");
}

#[test]
fn a_baseline_that_the_holder_made_itself_does_not_acquit_it() {
    // Nine calls in ten are the holder's: what the other waits for it is usual by now.
    let holder = |latency_ms| Calls {
        calls: 90,
        ..calls(Proc::new(HOLDER, BATCH), latency_ms, 960, Some(100))
    };
    let waiter = calls(Proc::new(1, SERVICE), 100, 4, Some(10));
    let requests = seconds_of(&mut policy(&[]), 4, &[holder(980), waiter]);
    assert_eq!(requests.len(), 2, "{requests:#?}");
    assert_eq!(requests[0].target, Target::Workload(BATCH));
    // Another command's baseline is not its doing.
    let command = COMMAND + 1;
    let other = Calls { command, ..waiter };
    assert_eq!(seconds_of(&mut policy(&[]), 20, &[holder(980), other]), []);
    // Four calls at a time, mostly in each other's shadow: that is how waits by design look.
    assert_eq!(
        seconds_of(&mut policy(&[]), 20, &[holder(3900), waiter]),
        []
    );
}

#[test]
fn slow_by_its_own_work_is_no_contention() {
    // Far over its baseline, but nobody was served meanwhile.
    let loads = [
        calls(Proc::new(1, SERVICE), 600, 590, Some(580)),
        calls(Proc::new(2, BATCH), 380, 370, Some(370)),
    ];
    assert_eq!(seconds_of(&mut policy(&[]), 20, &loads), []);
}

#[test]
fn a_command_without_a_baseline_counts_by_its_waiting() {
    let requests = seconds_of(&mut policy(&[]), 4, &waits_by_design(Some(0)));
    assert_eq!(requests.len(), 2, "{requests:#?}");
    assert_eq!(evidence(&requests[0], "driver time with a baseline"), 0.0);
    // One that has shown its baseline is known to have it, and not for ever.
    let mut harness = policy(&[]);
    assert_eq!(second_of(&mut harness, &waits_by_design(Some(100))), []);
    assert_eq!(seconds_of(&mut harness, 20, &waits_by_design(Some(0))), []);
    harness.advance_ms(600_000);
    let requests = seconds_of(&mut harness, 4, &waits_by_design(Some(0)));
    assert_eq!(requests.len(), 2, "the agent has forgotten it");
}

#[test]
fn what_cannot_be_had_is_said_once_and_judged_without() {
    let mut harness = policy(&[]);
    harness.push(absent(&[Kind::SampleGpuCommand]));
    harness.deliver();
    let logs = fake::take_logs();
    assert!(logs.len() == 1 && logs[0].0 == Level::Warn, "{logs:?}");
    assert_eq!(seconds(&mut harness, 4, &holder_and_waiters()).len(), 2);
    assert_eq!(fake::take_logs(), []);
    harness.push(absent(&[Kind::SampleGpu, Kind::SampleGpuCommand]));
    harness.deliver();
    assert_eq!(fake::take_logs()[0].0, Level::Error);
}

#[test]
fn commands_that_wait_by_design_are_left_out_on_both_sides() {
    let named = |word: &str| policy(&[("waiting_commands", word.into())]);
    // Waits of lengths that vary: most of them are over the 10th percentile.
    let uneven = waits_by_design(Some(900));
    assert_eq!(seconds_of(&mut policy(&[]), 4, &uneven).len(), 2);
    for word in ["0:0x2a", "1:7 0:42"] {
        assert_eq!(seconds_of(&mut named(word), 20, &uneven), [], "{word}");
    }
    // Whoever holds by another command is named all the same.
    let mut loads = uneven;
    loads.extend(waits_by_design(Some(900)).iter().map(|load| Calls {
        proc: Proc::new(load.proc.id.pid + 1000, load.proc.workload + 1000),
        command: 0x2b,
        ..*load
    }));
    let requests = seconds_of(&mut named("0:0x2a"), 4, &loads);
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0].target, Target::Workload(BATCH + 1000));
    for bad in ["42", "0:", "x:1", "0:0x10000", "0:1,0:2"] {
        let refused = Harness::<GpuContention>::with(&[("waiting_commands", bad.into())]);
        assert!(refused.is_err_and(|error| error.contains(bad)), "{bad}");
    }
}

#[test]
fn state_of_the_first_version_is_taken_over() {
    let mut harness = policy(&[]);
    assert_eq!(seconds(&mut harness, 3, &holder_and_waiters()).len(), 2);
    let mut state = harness.policy().checkpoint();
    // The only new field is the f64 before the last 46 bytes.
    let end = state.len() - 46;
    state.drain(end - 8..end);
    harness.restore(1, &state).expect("state of version 1");
    let after = seconds(&mut harness, 10, &holder_and_waiters());
    assert!(after.iter().all(|request| request.action != Action::Alert));
    assert!(throttles(&after) >= 2, "renewed");
    assert!(harness.restore(2, &state).is_err());
}
