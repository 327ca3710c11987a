//! The sensors on this very kernel: a known number of calls is made, exactly those are found, none
//! is lost, and nobody else's.
//!
//! Each test has a cgroup of its own and its own set of programs. Without root or eBPF a test says
//! `SKIPPED` and why.

#[path = "sensors_live/absent.rs"]
mod absent;
#[path = "sensors_live/contention.rs"]
mod contention;
#[path = "sensors_live/cpu.rs"]
mod cpu;
#[path = "sensors_live/cuda.rs"]
mod cuda;
#[path = "sensors_live/driver_calls.rs"]
mod driver_calls;
#[path = "sensors_live/gpu_commands.rs"]
mod gpu_commands;
#[path = "sensors_live/inference.rs"]
mod inference;
#[path = "sensors_live/io_uring.rs"]
mod io_uring;
#[path = "sensors_live/maps.rs"]
mod maps;
#[path = "sensors_live/memory.rs"]
mod memory;
#[path = "sensors_live/net.rs"]
mod net;
#[path = "sensors_live/opens.rs"]
mod opens;
#[path = "sensors_live/pairs.rs"]
mod pairs;
#[path = "sensors_live/places.rs"]
mod places;
#[path = "sensors_live/prepared.rs"]
mod prepared;
#[path = "sensors_live/pressure.rs"]
mod pressure;
#[path = "sensors_live/processes.rs"]
mod processes;
#[path = "sensors_live/quotas.rs"]
mod quotas;
#[path = "sensors_live/reads.rs"]
mod reads;
#[path = "sensors_live/reclaim.rs"]
mod reclaim;
#[path = "sensors_live/scope.rs"]
mod scope;
#[path = "sensors_live/support.rs"]
mod support;
#[path = "sensors_live/syscalls.rs"]
mod syscalls;
#[path = "sensors_live/tracing.rs"]
mod tracing;

use palisade::sensors::{Scope, SensorOptions};
use palisade_abi::{Kind, LOSS_RING_BUFFER, SampleGpu, kind};
use palisade_core::WorkloadId;
use std::sync::atomic::Ordering;
use support::*;

#[test]
fn nothing_is_attached_that_nobody_subscribed_to() {
    let Some(object) = object("nothing_is_attached_that_nobody_subscribed_to") else {
        return;
    };
    let inside = Cgroup::new();
    let watch = Watch::new(object, options(&[&inside], &[]));
    let attached = || -> Vec<String> {
        let hooks = watch.handle.report().hooks.into_iter();
        hooks
            .filter_map(|hook| hook.attached.map(|_| hook.name))
            .collect()
    };
    assert_eq!(attached(), [""; 0]);

    let call = || {
        let child = Child::new(|| ask_window_size(&ptmx()));
        inside.take(child.pid);
        assert_eq!(child.run(), 0);
    };
    call();
    watch.handle.set_kinds(bits(&[Kind::GpuExit]));
    watch.wait_kinds(&[Kind::GpuExit]);
    assert_eq!(attached(), ["process exit", "driver call"]);
    call();
    call();
    watch.handle.set_kinds(bits(&[Kind::Exec]));
    watch.wait_kinds(&[Kind::Exec]);
    assert_eq!(attached(), ["process exec"]);
    call();
    watch.handle.set_kinds(0);
    watch.wait_kinds(&[]);
    assert_eq!(attached(), [""; 0]);
    call();
    let handle = watch.handle.clone();
    let seen = watch.stop();
    assert_eq!(seen.count(kind::GPU_EXIT), 2);
    assert_eq!(seen.records.len(), 2);
    assert!(
        handle
            .report()
            .hooks
            .iter()
            .all(|hook| hook.attached.is_none())
    );
}

#[test]
fn the_scope_can_be_changed_while_watching() {
    let Some(object) = object("the_scope_can_be_changed_while_watching") else {
        return;
    };
    let (first, second) = (Cgroup::new(), Cgroup::new());
    let watch = Watch::new(object, options(&[&first], &[Kind::GpuExit]));
    let call_in = |cgroup: &Cgroup, times: i32| {
        let child = Child::new(move || {
            let device = ptmx();
            (0..times).map(|_| ask_window_size(&device)).sum()
        });
        cgroup.take(child.pid);
        assert_eq!(child.run(), 0);
    };
    call_in(&first, 3);
    call_in(&second, 5);
    watch
        .handle
        .set_scope(Scope::Cgroups(vec![WorkloadId(second.id())]));
    watch.settle();
    call_in(&first, 7);
    call_in(&second, 11);
    watch.handle.set_scope(Scope::All);
    watch.settle();
    call_in(&first, 13);
    call_in(&second, 17);
    let (first_id, second_id) = (first.id(), second.id());
    let seen = watch.stop();
    seen.assert_none_lost();
    let of = |id| {
        seen.of(kind::GPU_EXIT)
            .filter(|r| r.header.workload == id)
            .count()
    };
    assert_eq!((of(first_id), of(second_id)), (3 + 13, 11 + 17));
}

#[test]
fn every_record_is_delivered_or_told_as_lost() {
    const CALLS: u64 = 5000;
    let Some(object) = object("every_record_is_delivered_or_told_as_lost") else {
        return;
    };
    let inside = Cgroup::new();
    let child = Child::new(|| {
        let device = ptmx();
        (0..CALLS).map(|_| ask_window_size(&device)).sum()
    });
    let workload = inside.id();
    inside.take(child.pid);
    let watch = Watch::new(
        object,
        SensorOptions {
            ring_bytes: 4096,
            ..options(&[&inside], &[Kind::GpuExit, Kind::SampleGpu])
        },
    );
    // The sensor thread is held up in its first batch while the ring, of one page, overflows.
    watch.hold.store(true, Ordering::Release);
    assert_eq!(child.run(), 0);
    watch.hold.store(false, Ordering::Release);
    let seen = watch.stop();
    let delivered = seen.count(kind::GPU_EXIT) as u64;
    let lost = seen.lost(LOSS_RING_BUFFER);
    assert!(lost > 0);
    // A lost record may also be the child's end, which is recorded for the sensors' own sake.
    assert!(
        (CALLS..=CALLS + 1).contains(&(delivered + lost)),
        "{delivered} + {lost}"
    );
    assert!(
        seen.of(kind::LOST)
            .all(|record| record.header.workload == workload)
    );
    let samples: Vec<SampleGpu> = seen.bodies(kind::SAMPLE_GPU);
    assert_eq!(
        samples
            .iter()
            .map(|sample| u64::from(sample.calls))
            .sum::<u64>(),
        CALLS
    );
}

#[test]
fn entries_of_ended_processes_go_and_their_last_counts_are_told() {
    const PROCESSES: usize = 40;
    let Some(object) = object("entries_of_ended_processes_go_and_their_last_counts_are_told")
    else {
        return;
    };
    let inside = Cgroup::new();
    let watch = Watch::new(
        object,
        options(&[&inside], &[Kind::SampleGpu, Kind::SampleSched]),
    );
    for _ in 0..PROCESSES {
        let child = Child::new(|| {
            let device = ptmx();
            (0..3).map(|_| ask_window_size(&device)).sum()
        });
        inside.take(child.pid);
        assert_eq!(child.run(), 0);
    }
    for _ in 0..4 {
        watch.settle();
    }
    let tracked = watch.handle.stats().tracked;
    let seen = watch.stop();
    seen.assert_none_lost();
    let samples: Vec<SampleGpu> = seen.bodies(kind::SAMPLE_GPU);
    let calls: usize = samples.iter().map(|sample| sample.calls as usize).sum();
    assert_eq!(calls, 3 * PROCESSES);
    assert_eq!(tracked, 0);
    assert_eq!(seen.count(kind::EXIT), 0, "not subscribed to");
}
