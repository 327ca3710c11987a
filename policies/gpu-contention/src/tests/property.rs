//! Any input.

use super::*;
use palisade_policy_sdk::abi::SampleGpuCommand;
use palisade_policy_sdk::testing::endure;
use proptest::prelude::*;

#[test]
fn no_input_panics() {
    endure::<GpuContention>(
        &[
            ("sustain", 1.into()),
            ("min_busy_ratio", 0.0.into()),
            ("contention_ratio", 0.0.into()),
            ("waiting_commands", "1:1".into()),
        ],
        500,
    );
}

/// Loads of one second: calls, workload, two times of which the larger is the latency, and the excess.
fn any_loads() -> impl Strategy<Value = Vec<(Load, u64)>> {
    let load = (1..40_u32, 1..6_u64, 0..1000_u64, 0..1000_u64, 0..1000_u64);
    prop::collection::vec(load, 1..12).prop_map(|loads| {
        let load = |(n, (calls, workload, latency, hold, excess)): (usize, (_, _, u64, _, u64))| {
            let latency = latency.max(hold);
            let proc = Proc::new(n as u32 + 1, workload);
            ((proc, calls, latency, hold), excess.min(latency))
        };
        loads.into_iter().enumerate().map(load).collect()
    })
}

proptest! {
    /// Whatever the loads are: the accused workload never holds less than another one.
    #[test]
    fn no_waiter_is_accused(loads in any_loads()) {
        let loads: Vec<Load> = loads.into_iter().map(|(load, _)| load).collect();
        let held = |workload: u64| -> u64 {
            loads.iter().filter(|load| load.0.workload == workload).map(|load| load.3 / 10 * 10).sum()
        };
        for request in seconds(&mut policy(&[]), 4, &loads) {
            let Target::Workload(accused) = request.target else { panic!("{request:?}") };
            for other in 1..6 {
                prop_assert!(held(accused) + 120 >= held(other), "{accused} for {other}: {loads:?}");
            }
        }
    }

    /// What is told by command can acquit, but not accuse.
    #[test]
    fn a_baseline_accuses_nobody(loads in any_loads()) {
        let mut harness = policy(&[]);
        let mut accused = Vec::new();
        for _ in 0..40 {
            harness.advance_ms(100);
            for ((proc, calls, latency, hold), excess) in &loads {
                let (calls, latency_ns) = (calls.div_ceil(10), latency * MS / 10);
                harness.push(proc.sample_gpu(0, calls, latency_ns, hold * MS / 10));
                harness.push(proc.sample(SampleGpuCommand {
                    latency_ns,
                    excess_ns: excess * MS / 10,
                    calls,
                    command: proc.id.pid as u16,
                    class: 0,
                }));
            }
            accused.extend(harness.deliver().into_iter().map(|request| request.target));
        }
        let loads: Vec<Load> = loads.into_iter().map(|(load, _)| load).collect();
        let without: Vec<Target> = seconds(&mut policy(&[]), 4, &loads)
            .into_iter()
            .map(|request| request.target)
            .collect();
        prop_assert!(accused.iter().all(|target| without.contains(target)), "{accused:?}, {without:?}");
    }
}
