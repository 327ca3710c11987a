//! What is a loop, and what is not.

mod reads;

use crate::ReloadLoop;
use palisade_policy_sdk::host::WorkloadInfo;
use palisade_policy_sdk::testing::{Harness, Proc, endure, evidence, fake};
use palisade_policy_sdk::{Action, MS, Policy, Record, Request, Setting, Target};
use proptest::prelude::*;

const GIB: u64 = 1 << 30;
const DEVICE: u32 = 8 << 20 | 1;
const WORKLOAD: u64 = 7;

fn policy(settings: &[(&str, Setting)]) -> Harness<ReloadLoop> {
    Harness::with(settings).expect("these settings are fine")
}

/// Lets time pass with a tick every second.
fn wait(harness: &mut Harness<ReloadLoop>, seconds: u64) -> Vec<Request> {
    let second = |harness: &mut Harness<ReloadLoop>| {
        harness.advance_ms(1000);
        harness.tick()
    };
    (0..seconds).flat_map(|_| second(harness)).collect()
}

fn load_file(harness: &mut Harness<ReloadLoop>, proc: Proc, inode: u64) -> Vec<Request> {
    harness.push(proc.model_open(DEVICE, inode, 4 * GIB));
    harness.push(proc.model_map(DEVICE, inode, 4 * GIB));
    harness.deliver()
}

fn load(harness: &mut Harness<ReloadLoop>, proc: Proc) -> Vec<Request> {
    load_file(harness, proc, 42)
}

fn exit(harness: &mut Harness<ReloadLoop>, proc: Proc) -> Vec<Request> {
    harness.push(proc.exit(256));
    harness.deliver()
}

/// Runs a script of (seconds to wait before, what happens) and answers every request.
fn run(settings: &[(&str, Setting)], script: &[(u64, Step)]) -> Vec<Request> {
    let mut harness = policy(settings);
    let mut requests = Vec::new();
    for (seconds, step) in script {
        requests.extend(wait(&mut harness, *seconds));
        requests.extend(match step {
            Step::Load(pid) => load(&mut harness, Proc::new(*pid, WORKLOAD)),
            Step::Exit(pid) => exit(&mut harness, Proc::new(*pid, WORKLOAD)),
            Step::Record(record) => {
                harness.push(*record);
                harness.deliver()
            }
        });
    }
    requests
}

#[derive(Clone, Copy)]
enum Step {
    Load(u32),
    Exit(u32),
    Record(Record),
}
type Script = Vec<(u64, Step)>;
use Step::{Exit, Load, Record as Rec};

#[test]
fn one_process_that_loads_again_and_again_is_named_with_its_file() {
    let mut harness = policy(&[]);
    fake::set_file(DEVICE, 42, "/models/llama.safetensors");
    fake::set_workload(
        WORKLOAD,
        WorkloadInfo {
            cgroup: "/ml/srv".to_owned(),
            container: None,
        },
    );
    let proc = Proc::new(1, WORKLOAD);
    assert_eq!(load(&mut harness, proc), []);
    assert_eq!(wait(&mut harness, 31), []);
    assert_eq!(load(&mut harness, proc), []);
    assert_eq!(wait(&mut harness, 31), []);
    let requests = load(&mut harness, proc);
    let actions: Vec<Action> = requests.iter().map(|request| request.action).collect();
    assert_eq!(actions, [Action::Alert, Action::CpuQuota(250)]);
    for request in &requests {
        assert_eq!(request.target, Target::Workload(WORKLOAD));
        assert_eq!(
            request.reason,
            "/ml/srv loads /models/llama.safetensors again and again: 3 times in 62 s, 3.0 \
             for each process that uses it at a time"
        );
        assert_eq!(evidence(request, "churn"), 3.0);
        assert_eq!(evidence(request, "file size"), (4 * GIB) as f64);
    }
}

#[test]
fn loops_are_found_and_controls_stay_quiet() {
    let proc = Proc::new(1, WORKLOAD);
    let part = Rec(proc.model_map(DEVICE, 42, GIB));
    let small_open = Rec(proc.model_open(DEVICE, 42, 1 << 20));
    let small_map = Rec(proc.model_map(DEVICE, 42, 1 << 20));
    let open = Rec(proc.model_open(DEVICE, 42, 4 * GIB));
    let other_file = |inode| Rec(proc.model_map(DEVICE, inode, 4 * GIB));
    let cases: Vec<(&str, bool, Script)> = vec![
        ("a crash loop", true, {
            (1..4)
                .flat_map(|pid| [(20, Load(pid)), (20, Exit(pid))])
                .collect()
        }),
        (
            "a loop far quicker than the gap",
            true,
            (0..20).map(|_| (5, Load(1))).collect(),
        ),
        ("a loop in parts", true, {
            let mut script = vec![(0, open)];
            script.extend((0..12).map(|_| (10, part)));
            script
        }),
        ("four workers that all load again and again", true, {
            (0..5)
                .flat_map(|_| (1..5).map(|pid| (10, Load(pid))))
                .collect()
        }),
        ("four workers that load at the same time", false, {
            (1..5).map(|pid| (0, Load(pid))).collect()
        }),
        ("four workers that load twice at the same time", false, {
            (0..2)
                .flat_map(|_| (1..5).map(|pid| (1, Load(pid))))
                .collect()
        }),
        ("workers that start one after the other", false, {
            (1..9).map(|pid| (35, Load(pid))).collect()
        }),
        ("a rolling restart of four workers", false, {
            let start = (1..5).map(|pid| (35, Load(pid)));
            let restart = (1..5).flat_map(|pid| [(15, Exit(pid)), (20, Load(pid + 10))]);
            start.chain(restart).collect()
        }),
        (
            "two restarts",
            false,
            vec![(0, Load(1)), (40, Exit(1)), (1, Load(2))],
        ),
        ("a restart every six minutes", false, {
            (1..9)
                .flat_map(|pid| [(359, Load(pid)), (1, Exit(pid))])
                .collect()
        }),
        (
            "a loader that maps twice",
            false,
            (0..4).map(|_| (1, Load(1))).collect(),
        ),
        ("parts that do not make a whole", false, {
            let mut script = vec![(0, open)];
            script.extend((0..11).map(|_| (10, part)));
            script
        }),
        ("a small file", false, {
            (0..20)
                .flat_map(|_| [(20, small_open), (20, small_map)])
                .collect()
        }),
        (
            "openings without a map",
            false,
            (0..20).map(|_| (40, open)).collect(),
        ),
        (
            "files whose size is not known",
            false,
            (0..20).map(|_| (40, other_file(9))).collect(),
        ),
        ("processes that come and go without a model", false, {
            (0..500).map(|pid| (0, Exit(pid))).collect()
        }),
    ];
    for (name, wanted, script) in cases {
        let requests = run(&[], &script);
        assert_eq!(!requests.is_empty(), wanted, "{name}: {requests:#?}");
        let alerts = requests
            .iter()
            .filter(|request| request.action == Action::Alert)
            .count();
        assert_eq!(alerts, usize::from(wanted), "{name}: one alert an episode");
    }
}

#[test]
fn another_file_or_workload_is_another_matter() {
    let mut harness = policy(&[]);
    for n in 0..6 {
        assert_eq!(load_file(&mut harness, Proc::new(1, 1 + n % 3), 42), []);
        assert_eq!(load_file(&mut harness, Proc::new(1, 9), 50 + n % 3), []);
        wait(&mut harness, 40);
    }
}

#[test]
fn a_model_in_parts_is_one_episode() {
    let mut harness = policy(&[]);
    let mut requests = Vec::new();
    for _ in 0..4 {
        for inode in 1..10 {
            requests.extend(load_file(&mut harness, Proc::new(1, WORKLOAD), inode));
        }
        requests.extend(wait(&mut harness, 35));
    }
    let alerts = requests
        .iter()
        .filter(|request| request.action == Action::Alert)
        .count();
    assert_eq!(alerts, 1);
}

#[test]
fn a_throttle_is_renewed_at_the_pace_of_the_loop_and_then_let_go() {
    let mut harness = policy(&[]);
    let mut asked = Vec::new();
    for _ in 0..20 {
        let mut requests = load(&mut harness, Proc::new(1, WORKLOAD));
        requests.extend(wait(&mut harness, 35));
        if requests
            .iter()
            .any(|request| matches!(request.action, Action::CpuQuota(_)))
        {
            asked.push(harness.now_ns());
        }
    }
    let longest = asked
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .max()
        .expect("asked");
    assert!(longest < 60_000 * MS, "the lease never lapses: {longest}");
    assert!(
        !wait(&mut harness, 30).is_empty(),
        "a throttled loop is slower"
    );
    wait(&mut harness, 10);
    assert_eq!(wait(&mut harness, 1000), [], "let go");
}

#[test]
fn openings_count_where_asked_for() {
    let open = Rec(Proc::new(1, WORKLOAD).model_open(DEVICE, 42, 4 * GIB));
    let script: Script = (0..3).map(|_| (31, open)).collect();
    assert_eq!(run(&[("count_opens", true.into())], &script).len(), 2);
    // A loader that opens and maps does not count double.
    let script: Script = (0..2).map(|_| (31, Load(1))).collect();
    assert_eq!(run(&[("count_opens", true.into())], &script), []);
}

#[test]
fn settings_shorten_it_for_a_demonstration() {
    let settings = [
        ("min_gap_ms", 500.into()),
        ("min_file_mib", 0.into()),
        ("rung", "weight".into()),
    ];
    let script: Script = (0..3).map(|_| (1, Load(1))).collect();
    let requests = run(&settings, &script);
    assert_eq!(
        requests.last().map(|request| request.action),
        Some(Action::CpuWeight(25))
    );
    let alone = run(
        &[("min_gap_ms", 500.into()), ("rung", "alert".into())],
        &script,
    );
    assert_eq!(alone.len(), 1);
    let error =
        Harness::<ReloadLoop>::with(&[("horizon_ms", 50_000.into())]).expect_err("too short");
    assert!(error.contains("do not fit"), "{error}");
}

#[test]
fn an_unknown_workload_is_told_of_only() {
    let mut harness = policy(&[]);
    let mut requests = Vec::new();
    for _ in 0..6 {
        requests.extend(load(&mut harness, Proc::new(1, 0)));
        requests.extend(wait(&mut harness, 40));
    }
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].target, Target::Process(Proc::new(1, 0).id));
}

#[test]
fn a_reload_of_the_policy_forgets_nothing() {
    let mut harness = policy(&[]);
    for pid in 1..3 {
        load(&mut harness, Proc::new(pid, WORKLOAD));
        wait(&mut harness, 40);
        harness.reload().expect("its own state");
        exit(&mut harness, Proc::new(pid, WORKLOAD));
    }
    assert_eq!(load(&mut harness, Proc::new(3, WORKLOAD)).len(), 2);
    harness.reload().expect("its own state");
    wait(&mut harness, 40);
    let again = load(&mut harness, Proc::new(3, WORKLOAD));
    assert!(again.iter().all(|request| request.action != Action::Alert));
    let state = harness.policy().checkpoint();
    for cut in 1..state.len() {
        assert!(harness.restore(2, &state[..cut]).is_err(), "cut at {cut}");
    }
    assert!(harness.restore(3, &state).is_err());
}

#[test]
fn a_storm_of_files_and_readers_stays_bounded() {
    let mut harness = policy(&[("min_gap_ms", 1.into())]);
    for n in 0..20_000_u32 {
        harness.advance_ms(1);
        harness.push(Proc::new(n, u64::from(n % 7) + 1).model_open(
            DEVICE,
            u64::from(n % 600),
            GIB,
        ));
        harness.push(Proc::new(n, u64::from(n % 7) + 1).model_map(DEVICE, u64::from(n % 600), GIB));
        harness.deliver();
    }
    assert!(harness.policy().checkpoint().len() < 600_000);
}

#[test]
fn no_input_panics() {
    endure::<ReloadLoop>(
        &[
            ("min_gap_ms", 1.into()),
            ("min_file_mib", 0.into()),
            ("epochs", 2.into()),
        ],
        200,
    );
}

proptest! {
    /// However workers start within one gap, and however often each maps: no loop.
    #[test]
    fn a_start_is_no_loop(loads in prop::collection::vec((1..9_u32, 0..1000_u64), 1..40)) {
        let mut harness = policy(&[]);
        for (pid, pause_ms) in loads.into_iter().take(29) {
            harness.advance_ms(pause_ms);
            prop_assert_eq!(load(&mut harness, Proc::new(pid, WORKLOAD)), vec![]);
        }
    }
}
