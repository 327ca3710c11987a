//! Who is a culprit, and who is not.

mod course;
mod excess;
mod property;

use crate::GpuContention;
use palisade_policy_sdk::host::{ProcessInfo, WorkloadInfo};
use palisade_policy_sdk::testing::{Harness, Proc, evidence, fake};
use palisade_policy_sdk::{Action, MS, Policy, Request, SECOND, Setting, Severity, Target};

/// A process's driver calls in one second: calls, latency and hold in milliseconds.
type Load = (Proc, u32, u64, u64);

const HOLDER: u32 = 100;
const BATCH: u64 = 7;
const SERVICE: u64 = 8;

fn holder() -> Load {
    (Proc::new(HOLDER, BATCH), 18, 940, 920)
}

fn waiters(count: u32) -> Vec<Load> {
    (0..count)
        .map(|n| (Proc::new(200 + n, SERVICE + u64::from(n)), 10, 950, 10))
        .collect()
}

fn holder_and_waiters() -> Vec<Load> {
    let mut loads = waiters(5);
    loads.push(holder());
    loads
}

fn policy(settings: &[(&str, Setting)]) -> Harness<GpuContention> {
    Harness::with(settings).expect("these settings are fine")
}

/// One second in ten sampling windows of 100 ms, as the agent delivers them.
fn second(harness: &mut Harness<GpuContention>, loads: &[Load]) -> Vec<Request> {
    let mut requests = Vec::new();
    for _ in 0..10 {
        harness.advance_ms(100);
        for (proc, calls, latency_ms, hold_ms) in loads {
            let calls = calls.div_ceil(10);
            harness.push(proc.sample_gpu(0, calls, latency_ms * MS / 10, hold_ms * MS / 10));
        }
        requests.extend(if loads.is_empty() {
            harness.tick()
        } else {
            harness.deliver()
        });
    }
    requests
}

fn seconds(harness: &mut Harness<GpuContention>, count: u32, loads: &[Load]) -> Vec<Request> {
    (0..count).flat_map(|_| second(harness, loads)).collect()
}

fn throttles(requests: &[Request]) -> usize {
    requests
        .iter()
        .filter(|request| request.action != Action::Alert)
        .count()
}

#[test]
fn one_holder_and_five_waiters_name_the_holder() {
    let mut harness = policy(&[]);
    let batch = Proc::new(HOLDER, BATCH);
    let exe = "/usr/bin/trainer".to_owned();
    fake::set_process(
        batch.id,
        ProcessInfo {
            exe,
            ..ProcessInfo::default()
        },
    );
    fake::set_workload(
        BATCH,
        WorkloadInfo {
            cgroup: "/ml/batch".to_owned(),
            container: None,
        },
    );
    let requests = seconds(&mut harness, 4, &holder_and_waiters());
    assert_eq!(requests.len(), 2, "{requests:#?}");
    assert_eq!(requests[0].action, Action::Alert);
    assert_eq!(requests[1].action, Action::CpuQuota(100));
    for request in &requests {
        assert_eq!(request.target, Target::Workload(BATCH));
        assert!(
            request
                .reason
                .starts_with("trainer (pid 100) of /ml/batch held the driver"),
            "{}",
            request.reason
        );
        assert!(request.reason.contains("5 processes of other workloads"));
        assert!(evidence(request, "waiting share of the others") > 0.98);
        assert!(evidence(request, "culprit's share of all hold") > 0.9);
    }
}

#[test]
fn nothing_is_asked_for_before_the_contention_lasted() {
    for sustain in 1..5 {
        let mut harness = policy(&[("sustain", sustain.into())]);
        let before = (0..sustain).map(|_| second(&mut harness, &holder_and_waiters()));
        let asked: Vec<usize> = before.map(|requests| requests.len()).collect();
        // The window begins with the first sample, a sampling window late.
        assert_eq!(asked.iter().sum::<usize>(), 0, "{asked:?}");
        assert_eq!(second(&mut harness, &holder_and_waiters()).len(), 2);
    }
}

#[test]
fn a_calm_window_interrupts_the_streak_and_a_silent_one_does_not() {
    // Two contended seconds touch three windows.
    let mut harness = policy(&[("sustain", 4.into())]);
    for _ in 0..5 {
        assert!(seconds(&mut harness, 2, &holder_and_waiters()).is_empty());
        assert!(seconds(&mut harness, 2, &[(Proc::new(1, 1), 5, 1, 1)]).is_empty());
    }
    // Calls longer than a window return in every third one.
    let mut harness = policy(&[("sustain", 3.into())]);
    let mut requests = Vec::new();
    for _ in 0..6 {
        harness.advance_ms(2500);
        for (proc, ..) in waiters(3) {
            harness.push(proc.sample_gpu(0, 1, 2500 * MS, MS));
        }
        harness.push(holder().0.sample_gpu(0, 1, 2500 * MS, 2499 * MS));
        requests.extend(harness.deliver());
        harness.advance_ms(1000);
        requests.extend(harness.tick());
    }
    assert!(
        requests
            .iter()
            .any(|request| request.action == Action::CpuQuota(100))
    );
    assert!(
        requests
            .iter()
            .all(|request| request.target == Target::Workload(BATCH))
    );
}

/// A second in which the driver is only asked short things, or nothing.
fn calm() -> [Load; 1] {
    [(Proc::new(1, 1), 5, 1, 1)]
}

/// One second in which calls of `held_ms` return for which others waited `waited_ms`.
fn long_calls_return(
    harness: &mut Harness<GpuContention>,
    held_ms: u64,
    waited_ms: u64,
) -> Vec<Request> {
    harness.advance_ms(500);
    for (proc, ..) in waiters(3) {
        harness.push(proc.sample_gpu(0, 1, waited_ms * MS, MS));
    }
    harness.push(holder().0.sample_gpu(0, 1, held_ms * MS, held_ms * MS));
    let mut requests = harness.deliver();
    harness.advance_ms(500);
    requests.extend(harness.tick());
    requests
}

#[test]
fn a_holder_of_very_long_calls_is_named() {
    for between in [&[][..], &calm()] {
        for sustain in [2, 20] {
            let mut harness = policy(&[("sustain", sustain.into())]);
            let mut requests = Vec::new();
            for _ in 0..6 {
                requests.extend(seconds(&mut harness, 9, between));
                requests.extend(long_calls_return(&mut harness, 10_000, 10_000));
            }
            let (alerts, asks): (Vec<_>, Vec<_>) = requests
                .iter()
                .partition(|request| request.action == Action::Alert);
            assert_eq!(alerts.len(), 1, "one episode: {requests:#?}");
            assert!(!asks.is_empty());
            let reason = &alerts[0].reason;
            assert!(reason.contains("for 100 % of 10.0 s"), "{reason}");
            let held = |request: &&Request| request.target == Target::Workload(BATCH);
            assert!(requests.iter().all(|request| held(&request)));
        }
    }
}

#[test]
fn a_long_call_counts_for_the_time_that_others_waited() {
    let mut harness = policy(&[]);
    for _ in 0..6 {
        let mut requests = seconds(&mut harness, 9, &calm());
        requests.extend(long_calls_return(&mut harness, 10_000, 300));
        assert_eq!(requests, []);
    }
}

#[test]
fn negative_controls_stay_quiet() {
    let service = Proc::new(1, SERVICE);
    let other = Proc::new(2, BATCH);
    let third = Proc::new(3, 9);
    let ranks = |latency, hold| -> Vec<Load> {
        (0..4)
            .map(|n| (Proc::new(50 + n, SERVICE), 100, latency, hold))
            .collect()
    };
    let controls: Vec<(&str, Vec<Load>)> = vec![
        ("nobody", vec![]),
        (
            "one process that keeps the driver busy",
            vec![(service, 500, 990, 990)],
        ),
        (
            "one process with waiting threads of its own",
            vec![(service, 500, 3900, 990)],
        ),
        (
            "two that do not touch each other",
            vec![(service, 100, 300, 300), (other, 100, 300, 300)],
        ),
        (
            "two equals that wait for each other",
            vec![(service, 20, 980, 490), (other, 20, 980, 490)],
        ),
        (
            "three equals",
            vec![
                (service, 20, 990, 330),
                (other, 20, 990, 330),
                (third, 20, 990, 330),
            ],
        ),
        (
            "a poller beside a busy service",
            vec![(service, 500, 400, 400), (other, 1, 6, 1)],
        ),
        (
            "a poller that the service hardly feels",
            vec![(service, 500, 204, 200), (other, 1, 4, 4)],
        ),
        (
            "a waiter without waiting",
            vec![holder(), (service, 10, 20, 20)],
        ),
        ("ranks of one job that load a model", ranks(980, 245)),
        ("ranks of one job, one in front", {
            let mut loads = ranks(980, 10);
            loads.push((Proc::new(60, SERVICE), 100, 980, 900));
            loads
        }),
        (
            "waiters whose holder is not seen",
            vec![
                (service, 10, 950, 10),
                (other, 10, 950, 40),
                (third, 10, 950, 5),
            ],
        ),
        (
            "processes without finished calls",
            vec![(service, 0, 950, 10), (other, 0, 950, 900)],
        ),
    ];
    for (name, loads) in controls {
        let requests = seconds(&mut policy(&[]), 20, &loads);
        assert!(requests.is_empty(), "{name}: {requests:#?}");
    }
}

#[test]
fn a_monitor_that_waits_is_no_victim_but_can_be_a_culprit() {
    let monitor = Proc::new(30, 3);
    let known = |harness: &mut Harness<GpuContention>, exe: &str, loads: &[Load]| {
        let exe = exe.to_owned();
        fake::set_process(
            monitor.id,
            ProcessInfo {
                exe,
                ..ProcessInfo::default()
            },
        );
        seconds(harness, 5, loads)
    };
    let waits: &[Load] = &[holder(), (monitor, 40, 900, 40)];
    assert!(known(&mut policy(&[]), "/usr/bin/nvtop", waits).is_empty());
    assert_eq!(known(&mut policy(&[]), "/usr/bin/server", waits).len(), 2);
    let holds: &[Load] = &[
        (monitor, 40, 900, 900),
        (Proc::new(1, SERVICE), 20, 900, 20),
    ];
    assert_eq!(known(&mut policy(&[]), "/usr/bin/nvtop", holds).len(), 2);
    // Another waiter beside the monitor still counts.
    let both: &[Load] = &[
        holder(),
        (monitor, 40, 900, 40),
        (Proc::new(1, SERVICE), 9, 900, 20),
    ];
    let requests = known(&mut policy(&[]), "/usr/bin/nvtop", both);
    assert_eq!(evidence(&requests[0], "others waiting"), 1.0);
}

#[test]
fn one_workload_that_waits_for_itself_is_told_of_at_most() {
    let mut loads: Vec<Load> = (0..4)
        .map(|n| (Proc::new(50 + n, SERVICE), 10, 980, 10))
        .collect();
    loads.push((Proc::new(60, SERVICE), 100, 980, 900));
    let requests = seconds(&mut policy(&[("within_workload", true.into())]), 20, &loads);
    assert_eq!(requests.len(), 1, "{requests:#?}");
    assert_eq!(requests[0].severity, Severity::Info);
    assert!(
        requests[0].reason.contains("4 of the same workload"),
        "{}",
        requests[0].reason
    );
}

#[test]
fn ranks_of_one_job_are_one_culprit() {
    // Each rank holds less than the busiest waiter; together they hold most.
    let mut loads: Vec<Load> = (0..8)
        .map(|n| (Proc::new(50 + n, BATCH), 20, 900, 110))
        .collect();
    loads.push((Proc::new(1, SERVICE), 20, 900, 115));
    let requests = seconds(&mut policy(&[]), 4, &loads);
    assert_eq!(requests.len(), 2);
    assert!(
        requests
            .iter()
            .all(|request| request.target == Target::Workload(BATCH))
    );
}

#[test]
fn rungs_of_the_ladder() {
    for (rung, wanted) in [
        ("alert", None),
        ("weight", Some(Action::CpuWeight(10))),
        ("quota", Some(Action::CpuQuota(100))),
    ] {
        let requests = seconds(
            &mut policy(&[("rung", rung.into())]),
            20,
            &holder_and_waiters(),
        );
        let alerts = requests
            .iter()
            .filter(|request| request.action == Action::Alert)
            .count();
        assert_eq!(alerts, 1, "one alert an episode");
        let asked = requests
            .iter()
            .map(|request| request.action)
            .find(|a| *a != Action::Alert);
        assert_eq!(asked, wanted);
    }
    assert!(Harness::<GpuContention>::with(&[("rung", "kill".into())]).is_err());
}

#[test]
fn classes_are_judged_apart() {
    // Holder on class 0, waiters on class 1: they do not share a lock.
    let mut harness = policy(&[]);
    let mut requests = Vec::new();
    for _ in 0..100 {
        harness.advance_ms(100);
        harness.push(holder().0.sample_gpu(0, 2, 94 * MS, 92 * MS));
        for (proc, ..) in waiters(3) {
            harness.push(proc.sample_gpu(1, 1, 95 * MS, MS));
        }
        requests.extend(harness.deliver());
    }
    assert_eq!(requests, []);
}

#[test]
fn losses_while_it_was_judged_are_told() {
    let mut harness = policy(&[]);
    second(&mut harness, &holder_and_waiters());
    harness.push(Proc::new(1, 0).lost(12, 2));
    let requests = seconds(&mut harness, 3, &holder_and_waiters());
    assert_eq!(requests[0].target, Target::Workload(BATCH));
    assert_eq!(evidence(&requests[0], "records lost"), 12.0);
}

#[test]
fn an_unknown_workload_is_told_of_only() {
    let mut loads = waiters(5);
    loads.push((Proc::new(HOLDER, 0), 18, 940, 920));
    let requests = seconds(&mut policy(&[]), 20, &loads);
    assert_eq!(requests.len(), 1, "{requests:#?}");
    assert_eq!(requests[0].target, Target::Process(Proc::new(HOLDER, 0).id));
}

#[test]
fn a_storm_of_processes_stays_bounded() {
    let mut harness = policy(&[]);
    for burst in 0..20_u32 {
        harness.advance_ms(100);
        for n in 0..2000 {
            let pid = burst * 2000 + n + 1;
            harness.push(Proc::new(pid, u64::from(pid)).sample_gpu(pid, 1, 1000, 10));
        }
        harness.deliver();
    }
    assert!(harness.policy().checkpoint().len() < 4096);
}
