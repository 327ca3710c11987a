#![allow(clippy::unwrap_used)]

use super::*;
use palisade_abi::{
    Header, Histogram, Lost, SampleCompleted, SampleCpu, SampleFaults, SampleGpu, SampleInference,
    SamplePressure, SampleSched, SampleSyscalls,
};
use proptest::prelude::*;

const ALL: u64 = u64::MAX;
const S: u64 = SECOND_NS;

fn header(workload: u64, pid: u32) -> Header {
    Header {
        workload,
        pid,
        start_ns: 1,
        ..Header::default()
    }
}

fn value_of(snapshot: &Snapshot, workload: u64, metric: Metric) -> Option<f64> {
    let found = snapshot.workloads.iter().find(|w| w.workload == workload);
    found.unwrap().values.get(metric)
}

/// So many requests that are over.
fn completed(header: Header, requests: u64, whole_ns: u64) -> Record {
    let sample = SampleCompleted {
        requests,
        whole_ns,
        reserved: 0,
    };
    Record::new(header, sample)
}

/// Feeds `each` in every second from the 10th to the 14th, then lets the 15th begin.
fn five_seconds(each: &[Record]) -> Snapshot {
    let mut metrics = Metrics::new();
    metrics.observe(&[], 10 * S, true);
    for second in 10..15 {
        metrics.observe(each, second * S + S / 2, true);
    }
    metrics.observe(&[], 15 * S, true);
    metrics.snapshot(ALL)
}

#[test]
fn rates_and_ratios_are_over_the_whole_seconds_that_were_seen() {
    let h = header(7, 1);
    let snapshot = five_seconds(&[
        Record::new(
            h,
            SampleSched {
                involuntary: 30,
                voluntary: 2,
                migrations: 5,
                ..SampleSched::default()
            },
        ),
        Record::new(
            h,
            SampleCpu {
                on_ns: S / 2,
                cross_node: 1,
                ..SampleCpu::default()
            },
        ),
        Record::new(
            h,
            SampleSyscalls {
                calls: 80,
                waiting: 20,
                reserved: 0,
            },
        ),
        Record::new(
            h,
            SampleInference {
                requests: 2,
                ..SampleInference::default()
            },
        ),
        completed(h, 2, S),
        Record::new(
            h,
            SampleFaults {
                user: 3,
                kernel: 1,
                reserved: 0,
            },
        ),
        Record::new(
            header(7, 0),
            SamplePressure {
                memory_some_us: 100_000,
                ..SamplePressure::default()
            },
        ),
    ]);
    assert_eq!(snapshot.window_s, 5);
    let expected = [
        (Metric::Cpu, Some(0.5)),
        (Metric::SwitchesInvoluntary, Some(30.0)),
        (Metric::SwitchesPerInference, Some(15.0)),
        (Metric::SyscallsPerInference, Some(40.0)),
        (Metric::SyscallsWaiting, Some(0.2)),
        (Metric::MigrationsCross, Some(2.0)),
        (Metric::MigrationsSame, Some(8.0)),
        (Metric::RequestTime, Some(0.5)),
        (Metric::RequestsInFlight, Some(1.0)),
        (Metric::PageFaults, Some(4.0)),
        (Metric::PressureMemory, Some(0.1)),
        (Metric::Maps, Some(0.0)),
        (Metric::GpuContention, None),
        (Metric::RunqP99, None),
        (Metric::ModelReloads, None),
    ];
    for (metric, value) in expected {
        assert_eq!(value_of(&snapshot, 7, metric), value, "{metric:?}");
    }
    let workload = &snapshot.workloads[0];
    let points = &workload.graphs["cpu"];
    assert_eq!(points.len(), 60);
    assert_eq!(points[54], None);
    assert_eq!(points[55..], [Some(0.5); 5]);
    assert_eq!(workload.processes.len(), 1);
    let process = &workload.processes[0];
    assert_eq!(process.values.get(Metric::Cpu), Some(0.5));
    assert_eq!(process.values.get(Metric::PressureMemory), None);
}

#[test]
fn what_is_not_sensed_is_absent() {
    let sample = SampleCpu {
        on_ns: S,
        ..SampleCpu::default()
    };
    let mut metrics = Metrics::new();
    metrics.observe(&[], S, true);
    metrics.observe(&[Record::new(header(7, 1), sample)], S + 1, true);
    metrics.observe(&[], 2 * S, true);
    let snapshot = metrics.snapshot(Kind::SampleCpu.bit());
    assert_eq!(value_of(&snapshot, 7, Metric::Cpu), Some(1.0));
    assert_eq!(value_of(&snapshot, 7, Metric::PageFaults), None);
    // Its pressure files told nothing: perhaps nobody reads them.
    assert_eq!(
        value_of(&metrics.snapshot(ALL), 7, Metric::PressureCpu),
        None
    );
    assert_eq!(snapshot.workloads[0].graphs.len(), 1);
}

fn driver(workload: u64, pid: u32, latency_ns: u64, excess_ns: u64, hold_ns: u64) -> [Record; 2] {
    let h = header(workload, pid);
    [
        Record::new(
            h,
            SampleGpu {
                calls: 1,
                class: 0,
                latency_ns,
                hold_ns,
            },
        ),
        Record::new(
            h,
            SampleGpuCommand {
                latency_ns,
                excess_ns,
                calls: 1,
                command: 0x2a,
                class: 0,
            },
        ),
    ]
}

#[test]
fn contention_names_the_holder_and_not_the_waiter() {
    let waiter = driver(1, 10, S / 2, S / 4, S / 100);
    let holder = driver(2, 20, S / 2, 0, S / 2);
    let snapshot = five_seconds(&[waiter, holder].concat());
    assert_eq!(value_of(&snapshot, 1, Metric::GpuContention), Some(0.5));
    assert_eq!(value_of(&snapshot, 2, Metric::GpuContention), Some(0.0));
    let device = &snapshot.devices[0];
    assert_eq!((device.users, device.contention), (2, Some(0.25)));
    let culprit = device.culprit.as_ref().unwrap();
    assert_eq!((culprit.workload, culprit.pid), (2, 20));
    let command = &snapshot.workloads[0].commands[0];
    assert_eq!((command.command, command.calls), (0x2a, 5));
    assert_eq!((command.time_s, command.excess_s), (2.5, 1.25));
}

#[test]
fn contention_of_fewer_than_five_calls_is_absent() {
    let after = |seconds: u64| {
        let mut metrics = Metrics::new();
        metrics.observe(&[], 10 * S, true);
        let waiter = driver(1, 10, S / 2, S / 4, 0);
        let holder = driver(2, 20, S / 2, 0, S / 2);
        for second in 10..10 + seconds {
            let both = [waiter, holder].concat();
            metrics.observe(&both, second * S + S / 2, true);
        }
        metrics.observe(&[], (10 + seconds) * S, true);
        metrics.snapshot(ALL)
    };
    // One call a second by each.
    let (four, five) = (after(4), after(5));
    assert_eq!(value_of(&four, 1, Metric::GpuContention), None);
    assert_eq!(value_of(&five, 1, Metric::GpuContention), Some(0.5));
    // The device has both processes' calls.
    assert_eq!(after(2).devices[0].contention, None);
    assert_eq!(after(3).devices[0].contention, Some(0.25));
}

#[test]
fn one_user_alone_or_an_idle_device_is_no_contention() {
    let alone = five_seconds(&driver(1, 10, S / 2, S / 4, 0));
    assert_eq!(value_of(&alone, 1, Metric::GpuContention), None);
    assert_eq!(value_of(&alone, 1, Metric::GpuTime), Some(0.5));
    let little = [driver(1, 10, 1000, 500, 0), driver(2, 20, 1000, 500, 0)].concat();
    let idle = five_seconds(&little);
    assert_eq!(value_of(&idle, 1, Metric::GpuContention), None);
}

#[test]
fn latencies_of_driver_calls_are_over_all_devices_of_a_workload() {
    let calls = |class, counts| {
        let mut record = Record::new(header(7, 1), Histogram { counts });
        record.header.kind = kind::SAMPLE_GPU_LATENCY;
        record.header.flags = Histogram::flags(class, 12);
        record
    };
    // 2 to 4 ms on one device, 16 to 32 ms on the other.
    let each = [calls(0, [4, 0, 0, 0, 0, 0]), calls(3, [0, 0, 0, 1, 0, 0])];
    let snapshot = five_seconds(&each);
    let p50 = value_of(&snapshot, 7, Metric::GpuCallP50).unwrap();
    let p99 = value_of(&snapshot, 7, Metric::GpuCallP99).unwrap();
    assert!((2.048e-3..4.096e-3).contains(&p50), "{p50}");
    assert!((16.384e-3..32.768e-3).contains(&p99), "{p99}");
    assert_eq!(value_of(&snapshot, 7, Metric::RunqP99), None);

    let mut metrics = Metrics::new();
    metrics.observe(&[], 10 * S, true);
    metrics.observe(&[calls(0, [4, 0, 0, 0, 0, 0])], 10 * S + 1, true);
    metrics.observe(&[], 11 * S, true);
    assert_eq!(
        value_of(&metrics.snapshot(ALL), 7, Metric::GpuCallP99),
        None
    );
}

#[test]
fn numbers_per_request_are_over_those_that_are_over() {
    let began = SampleInference {
        requests: 100,
        ..SampleInference::default()
    };
    let switches = SampleSched {
        involuntary: 6,
        ..SampleSched::default()
    };
    let h = header(7, 1);
    let of = |over| {
        five_seconds(&[
            Record::new(h, began),
            Record::new(h, switches),
            completed(h, over, S),
        ])
    };
    let one = of(1);
    assert_eq!(value_of(&one, 7, Metric::Requests), Some(100.0));
    assert_eq!(value_of(&one, 7, Metric::RequestTime), Some(1.0));
    assert_eq!(value_of(&one, 7, Metric::SwitchesPerInference), Some(6.0));
    assert_eq!(value_of(&of(0), 7, Metric::RequestTime), None);
}

#[test]
fn requests_in_flight_are_absent_while_none_is_over() {
    let answering = |over, whole_ns| {
        let sample = SampleInference {
            requests: 1,
            ..SampleInference::default()
        };
        let h = header(7, 1);
        let snapshot = five_seconds(&[Record::new(h, sample), completed(h, over, whole_ns)]);
        value_of(&snapshot, 7, Metric::RequestsInFlight)
    };
    assert_eq!(answering(0, 0), None);
    // Each lasts 3 s and one begins every second.
    assert_eq!(answering(1, 3 * S), Some(3.0));
}

#[test]
fn reloads_and_load_times_come_of_opens_maps_and_reads() {
    let mut metrics = Metrics::new();
    metrics.observe(&[], 10 * S, true);
    let file = |bytes| ModelFile {
        inode: 5,
        bytes,
        device: 8,
        fd: 3,
    };
    let mut open = Record::new(header(7, 1), file(100));
    open.header.time_ns = 11 * S;
    let reads = SampleReads {
        inode: 5,
        bytes: 60,
        device: 8,
        reads: 1,
    };
    let mut read = Record::new(header(7, 1), reads);
    read.header.time_ns = 12 * S;
    let mut map = Record::new(header(7, 1), file(40));
    map.header.kind = kind::MODEL_MAP;
    map.header.time_ns = 13 * S;
    metrics.observe(&[open, read, map], 14 * S, true);
    let snapshot = metrics.snapshot(ALL);
    assert_eq!(value_of(&snapshot, 7, Metric::ModelReloads), Some(1.0));
    assert_eq!(value_of(&snapshot, 7, Metric::ModelLoadTime), Some(2.0));
    assert_eq!(snapshot.workloads[0].models[0].bytes, 100);
}

#[test]
fn what_did_nothing_for_a_minute_is_forgotten() {
    let mut metrics = Metrics::new();
    let sample = SampleFaults {
        user: 1,
        ..SampleFaults::default()
    };
    metrics.observe(&[Record::new(header(7, 1), sample)], 10 * S, true);
    metrics.observe(&driver(8, 2, S, S, S), 10 * S, true);
    for second in 11..=75 {
        metrics.observe(&[], second * S, true);
    }
    assert!(metrics.workloads.is_empty() && metrics.processes.is_empty());
    assert!(metrics.snapshot(ALL).devices.is_empty());
}

#[test]
fn tables_stay_within_their_bounds_and_count_what_they_drop() {
    let mut metrics = Metrics::new();
    for turn in 0..4000_u32 {
        let now = 10 * S + u64::from(turn) * 1_000_000;
        let workload = u64::from(turn % 700);
        let mut records = driver(workload, turn, 5, 5, 5).to_vec();
        records[1].body[2] |= u64::from(turn) << 32;
        let file = ModelFile {
            inode: u64::from(turn),
            bytes: 1,
            device: 1,
            fd: 1,
        };
        records.push(Record::new(header(workload, turn), file));
        metrics.observe(&records, now, turn % 10 == 0);
        assert!(metrics.workloads.len() <= MAX_WORKLOADS);
        assert!(metrics.processes.len() <= MAX_PROCESSES);
        let commands = metrics.workloads.values().map(|w| w.commands.len());
        assert!(commands.max() <= Some(MAX_COMMANDS));
    }
    assert!(metrics.snapshot(ALL).left_out > 2000);
}

#[test]
fn the_documentation_has_a_row_for_every_metric() {
    let text = include_str!("../../../docs/metrics.md");
    for metric in Metric::ALL {
        let info = metric.info();
        let row = text
            .lines()
            .find(|line| line.starts_with(&format!("| `{}` |", info.id)))
            .unwrap_or_else(|| panic!("docs/metrics.md has no row for {}", info.id));
        assert!(row.contains(&format!("`{}`", info.name)), "{row}");
        assert!(
            row.contains(&format!("| {} |", info.unit)),
            "{row} {}",
            info.unit
        );
        if let Some((key, value)) = info.attribute {
            assert!(row.contains(&format!("`{key}={value}`")), "{row}");
        }
        for kind in Kind::ALL.iter().filter(|k| info.kinds & k.bit() != 0) {
            assert!(row.contains(kind.name()), "{row} {}", kind.name());
        }
    }
}

#[test]
fn ids_are_unique_and_read_back() {
    for metric in Metric::ALL {
        assert_eq!(Metric::from_id(metric.info().id), Some(*metric));
    }
    assert_eq!(Metric::from_id("nothing"), None);
    assert!(
        GRAPHED
            .iter()
            .all(|metric| metric.info().kinds & !KINDS == 0)
    );
}

fn any_record() -> impl Strategy<Value = Record> {
    let kind = prop_oneof![0_u16..32, any::<u16>()];
    let id = prop_oneof![0_u64..6, any::<u64>()];
    (
        kind,
        id,
        any::<u16>(),
        0_u32..9,
        any::<[u64; 3]>(),
        any::<u64>(),
    )
        .prop_map(|(kind, workload, flags, pid, body, time_ns)| Record {
            header: Header {
                kind,
                workload,
                flags,
                pid,
                time_ns,
                start_ns: workload,
                ..Header::default()
            },
            body,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_input_panics_and_every_number_is_finite(
        batches in prop::collection::vec(
            (prop::collection::vec(any_record(), 0..40), prop_oneof![0_u64..200_000_000_000, any::<u64>()], any::<bool>()),
            1..20,
        ),
        sensed in any::<u64>(),
    ) {
        let mut metrics = Metrics::new();
        for (records, now_ns, window_end) in batches {
            metrics.observe(&records, now_ns, window_end);
            for (device, inode) in metrics.files_without_size() {
                metrics.set_file_size(device, inode, now_ns);
            }
        }
        let snapshot = metrics.snapshot(sensed);
        for workload in &snapshot.workloads {
            for metric in Metric::ALL {
                let value = workload.values.get(*metric);
                prop_assert!(value.is_none_or(|v| v.is_finite() && v >= 0.0), "{metric:?} {value:?}");
            }
        }
        let text = serde_json::to_string(&snapshot).unwrap();
        prop_assert!(serde_json::from_str::<Snapshot>(&text).is_ok());
    }

    #[test]
    fn sums_equal_what_was_fed(
        fed in prop::collection::vec((0_u64..5, 1_u32..9, 0_u32..1000, 0_u64..50, any::<bool>()), 1..300),
    ) {
        // In order of time, within a minute.
        let mut fed = fed;
        fed.sort_by_key(|(_, _, _, second, _)| *second);
        let mut metrics = Metrics::new();
        metrics.observe(&[], 100 * S, true);
        for (workload, pid, count, second, window_end) in &fed {
            let h = header(*workload, *pid);
            let records = [
                Record::new(h, SampleSched { involuntary: *count, ..SampleSched::default() }),
                Record::new(h, Histogram { counts: [*count; 6] }),
                Record::new(h, Lost { count: 2, ..Lost::default() }),
            ];
            metrics.observe(&records, (100 + second) * S + 7, *window_end);
        }
        metrics.observe(&[], 151 * S, true);
        let snapshot = metrics.snapshot(ALL);
        for workload in 0..5 {
            let mine = || fed.iter().filter(|(id, ..)| *id == workload);
            let sum: u64 = mine().map(|(_, _, count, ..)| u64::from(*count)).sum();
            let found = snapshot.workloads.iter().find(|w| w.workload == workload);
            prop_assert_eq!(found.is_some(), mine().count() > 0);
            let Some(found) = found else { continue };
            prop_assert_eq!(found.lost, 2 * mine().count() as u64);
            let slots = &metrics.workloads[&workload].slots;
            let kept = slots.sum(0, u64::MAX);
            prop_assert_eq!(kept.involuntary, sum);
            prop_assert_eq!(kept.runq.iter().sum::<u64>(), 6 * sum);
            let of_processes: u64 = metrics.processes.iter()
                .filter(|((id, _), _)| *id == workload)
                .map(|(_, process)| process.slots.sum(0, u64::MAX).involuntary)
                .sum();
            prop_assert_eq!(of_processes, sum);
            let rate = found.values.get(Metric::SwitchesInvoluntary).unwrap();
            prop_assert!((rate * 51.0 - sum as f64).abs() <= sum as f64 * 1e-5, "{} {}", rate, sum);
        }
    }
}
