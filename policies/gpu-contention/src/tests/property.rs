//! Any input.

use super::*;
use palisade_policy_sdk::abi::Header;
use proptest::prelude::*;

fn any_record() -> impl Strategy<Value = Record> {
    let numbers = prop_oneof![0..4_u64, any::<u64>(), Just(u64::MAX)];
    (prop::array::uniform6(numbers), 0..16_u16, 0..4_u32).prop_map(|(n, kind, pid)| {
        let header = Header {
            time_ns: n[0],
            workload: n[1] % 3,
            start_ns: n[2],
            pid,
            kind,
            ..Header::default()
        };
        Record {
            header,
            body: [n[3], n[4], n[5]],
        }
    })
}

proptest! {
    #[test]
    fn no_input_panics(
        batches in prop::collection::vec((any::<u64>(), prop::collection::vec(any_record(), 0..20)), 0..20),
        state in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut harness = policy(&[("sustain", 1.into()), ("min_busy_ratio", 0.0.into())]);
        let _ = harness.restore(1, &state);
        for (now_ns, batch) in batches {
            harness.deliver_raw(now_ns, &batch);
            harness.reload().expect("a policy takes over its own state");
        }
    }

    /// Whatever the loads are: the accused workload never holds less than another one.
    #[test]
    fn no_waiter_is_accused(loads in prop::collection::vec((1..40_u32, 1..6_u64, 0..1000_u64, 0..1000_u64), 1..12)) {
        let loads: Vec<Load> = loads.into_iter().enumerate().map(|(n, (calls, workload, latency, hold))| {
            (Proc::new(n as u32 + 1, workload), calls, latency.max(hold), hold)
        }).collect();
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
}
