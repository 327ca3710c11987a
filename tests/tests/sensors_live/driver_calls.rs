//! Driver calls: each one of a watched process is found with its times, and no other.
//!
//! Invariant: the calls are made on devices of every host, and change nothing there.

use crate::support::*;
use palisade::sensors::{Scope, SensorOptions, Sensors, WatchedDevice, Way};
use palisade_abi::{GpuCall, Kind, MapCall, SampleGpu, SampleMaps, kind};
use palisade_core::WorkloadId;
use std::{
    ptr,
    time::{Duration, Instant},
};

#[test]
fn driver_calls_are_found_exactly_and_only_of_watched_processes() {
    const CALLS: usize = 2000;
    let Some(object) = object("driver_calls_are_found_exactly_and_only_of_watched_processes")
    else {
        return;
    };
    let (inside, outside) = (Cgroup::new(), Cgroup::new());
    let nested = inside.below("nested");
    let kinds = [Kind::GpuEnter, Kind::GpuExit, Kind::SampleGpu];
    let work = || {
        let (device, other) = (ptmx(), null());
        for _ in 0..CALLS {
            if ask_window_size(&device) != 0 {
                return 1;
            }
            ask_nonsense(&other);
        }
        ask_nonsense(&device);
        ask_window_size_of_a_bad_descriptor();
        0
    };
    let (child, stranger) = (Child::new(work), Child::new(work));
    nested.take(child.pid);
    outside.take(stranger.pid);
    let (pid, ticks) = (child.pid, start_ticks(child.pid));

    let watch = Watch::new(object, options(&[&inside], &kinds));
    child.start();
    stranger.start();
    child.wait_done();
    stranger.wait_done();
    let seen = watch.stop();
    assert_eq!((child.finish(), stranger.finish()), (0, 0));

    seen.assert_none_lost();
    seen.assert_from(pid, nested.id());
    assert_eq!(seen.count(kind::GPU_ENTER), CALLS + 1);
    assert_eq!(seen.count(kind::GPU_EXIT), CALLS + 1);
    assert_eq!(seen.records[0].header.start_ns / 10_000_000, ticks);
    let calls: Vec<GpuCall> = seen.bodies(kind::GPU_EXIT);
    assert!(calls.iter().all(|call| call.device == 5 << 20 | 2));
    assert!(
        calls
            .iter()
            .all(|call| call.latency_ns > 0 && call.hold_ns <= call.latency_ns)
    );
    let named = calls
        .iter()
        .filter(|call| u64::from(call.command) == nix::libc::TIOCGWINSZ);
    assert_eq!(named.count(), CALLS);
    let refused: Vec<u16> = seen
        .of(kind::GPU_EXIT)
        .map(|r| r.header.flags)
        .filter(|flags| *flags != 0)
        .collect();
    assert_eq!(refused, [nix::libc::ENOTTY as u16]);
    let samples: Vec<SampleGpu> = seen.bodies(kind::SAMPLE_GPU);
    assert_eq!(
        samples
            .iter()
            .map(|sample| sample.calls as usize)
            .sum::<usize>(),
        CALLS + 1
    );
    let sum = |field: fn(&GpuCall) -> u64| calls.iter().map(field).sum::<u64>();
    assert_eq!(
        samples.iter().map(|s| s.latency_ns).sum::<u64>(),
        sum(|call| call.latency_ns)
    );
    assert_eq!(
        samples.iter().map(|s| s.hold_ns).sum::<u64>(),
        sum(|call| call.hold_ns)
    );
}

fn ask_window_size_of_a_bad_descriptor() {
    // SAFETY: the kernel refuses the descriptor before it looks at the argument.
    let _ = unsafe { nix::libc::ioctl(1_000_000, nix::libc::TIOCGWINSZ, 0) };
}

#[test]
fn fast_driver_calls_stay_out_of_the_raw_stream_and_in_the_samples() {
    const CALLS: usize = 500;
    let Some(object) = object("fast_driver_calls_stay_out_of_the_raw_stream_and_in_the_samples")
    else {
        return;
    };
    let inside = Cgroup::new();
    let child = Child::new(|| {
        let device = ptmx();
        (0..CALLS).map(|_| ask_window_size(&device)).sum()
    });
    inside.take(child.pid);
    let slow = WatchedDevice {
        minor: None,
        slow: Duration::from_hours(1),
        ..PTMX
    };
    let watch = Watch::new(
        object,
        SensorOptions {
            devices: vec![slow],
            ..options(&[&inside], &[Kind::GpuExit, Kind::SampleGpu])
        },
    );
    assert_eq!(child.run(), 0);
    let seen = watch.stop();
    seen.assert_none_lost();
    assert_eq!(seen.count(kind::GPU_EXIT), 0);
    let samples: Vec<SampleGpu> = seen.bodies(kind::SAMPLE_GPU);
    assert_eq!(
        samples
            .iter()
            .map(|sample| sample.calls as usize)
            .sum::<usize>(),
        CALLS
    );
}

#[test]
fn nobody_is_in_a_driver_call_when_all_calls_have_returned() {
    let Some(object) = object("nobody_is_in_a_driver_call_when_all_calls_have_returned") else {
        return;
    };
    let inside = Cgroup::new();
    let child = Child::new(|| ask_window_size(&ptmx()));
    inside.take(child.pid);
    let watch = Watch::new(object, options(&[&inside], &[Kind::SampleGpu]));
    assert_eq!(child.run(), 0);
    assert!(!watch.view.in_call(WorkloadId(inside.id())));
    watch.stop();
}

#[test]
fn a_storm_of_driver_calls_is_counted_to_the_last_one() {
    const CALLS: u32 = 100_000;
    let Some(object) = object("a_storm_of_driver_calls_is_counted_to_the_last_one") else {
        return;
    };
    for kinds in [
        &[Kind::SampleGpu][..],
        &[Kind::SampleGpu, Kind::SampleGpuCommand],
    ] {
        let inside = Cgroup::new();
        let child = Child::new(|| {
            let device = ptmx();
            let begun = Instant::now();
            let failed: i32 = (0..CALLS).map(|_| ask_window_size(&device)).sum();
            let each = begun.elapsed() / CALLS;
            eprintln!("MEASURED a driver call of nothing while it is watched: {each:?}");
            failed
        });
        inside.take(child.pid);
        let pid = child.pid.as_raw() as u32;
        // Everybody is watched, as by default.
        let watch = Watch::new(
            object,
            SensorOptions {
                scope: Scope::All,
                ..options(&[], kinds)
            },
        );
        assert_eq!(child.run(), 0);
        watch.settle();
        let handle = watch.handle.clone();
        let seen = watch.stop();
        tell_costs(&handle);
        seen.assert_none_lost_but_skipped(kinds);
        let samples = seen.of(kind::SAMPLE_GPU).filter(|it| it.header.pid == pid);
        let samples = samples.filter_map(palisade_abi::Record::get::<SampleGpu>);
        assert_eq!(samples.map(|sample| sample.calls).sum::<u32>(), CALLS);
    }
}

/// Calls and maps that work and others that do not, each so many times.
fn call_and_map(times: usize) -> i32 {
    const BYTES: usize = 2 * 4096;
    let (device, other) = (ptmx(), null());
    for _ in 0..times {
        if ask_window_size(&device) != 0 {
            return 1;
        }
        ask_nonsense(&device);
        ask_nonsense(&other);
        let (anonymous, private) = (nix::libc::MAP_ANONYMOUS, nix::libc::MAP_PRIVATE);
        // SAFETY: fresh memory of the child's own, which nobody uses; the second map and the
        // second unmap are refused by the kernel.
        let unmapped = unsafe {
            let map = |bytes| {
                nix::libc::mmap(
                    ptr::null_mut(),
                    bytes,
                    nix::libc::PROT_READ,
                    anonymous | private,
                    -1,
                    0,
                )
            };
            let address = map(BYTES);
            map(0);
            nix::libc::munmap(address.byte_add(1), BYTES);
            nix::libc::munmap(address, BYTES)
        };
        if unmapped != 0 {
            return 2;
        }
    }
    0
}

#[test]
fn every_way_of_watching_calls_and_maps_finds_the_same() {
    const NAME: &str = "every_way_of_watching_calls_and_maps_finds_the_same";
    const TIMES: usize = 500;
    let Some(object) = object(NAME) else {
        return;
    };
    for (way, avoid) in [
        (Way::Fexit, Vec::new()),
        (Way::Tracepoint, vec![Way::Fexit]),
    ] {
        let inside = Cgroup::new();
        let child = Child::new(|| call_and_map(TIMES));
        inside.take(child.pid);
        let kinds = [
            Kind::GpuEnter,
            Kind::GpuExit,
            Kind::SampleGpu,
            Kind::Mmap,
            Kind::Munmap,
            Kind::SampleMaps,
        ];
        let options = SensorOptions {
            avoid,
            ..options(&[&inside], &kinds)
        };
        let sensors = Sensors::load(object, options).unwrap_or_else(|error| panic!("{error}"));
        let report = sensors.report();
        assert_eq!(report.missing().count(), 0, "{report:?}");
        let hooks = report.hooks.iter();
        let mut hooks = hooks.filter(|it| ["driver call", "map", "unmap"].contains(&&*it.name));
        let other = hooks.find(|hook| {
            !hook
                .attached
                .as_ref()
                .is_some_and(|at| at.starts_with(way.name()))
        });
        if let Some(hook) = other {
            assert_eq!(way, Way::Fexit, "there is always the tracepoint: {hook:?}");
            // A stock kernel takes both.
            assert!(std::env::var_os("PALISADE_VM").is_none(), "{hook:?}");
            eprintln!(
                "SKIPPED a part of {NAME}: no {}: {:?}",
                way.name(),
                hook.failed
            );
            continue;
        }
        let watch = Watch::of(sensors);
        child.start();
        child.wait_done();
        watch.settle();
        let handle = watch.handle.clone();
        let seen = watch.stop();
        eprintln!("MEASURED by {}:", way.name());
        tell_costs(&handle);
        assert_eq!(child.finish(), 0);

        seen.assert_none_lost();
        for (kind, count) in [
            (kind::GPU_ENTER, 2 * TIMES),
            (kind::GPU_EXIT, 2 * TIMES),
            (kind::MMAP, TIMES),
            (kind::MUNMAP, TIMES),
        ] {
            assert_eq!(seen.count(kind), count, "{} {kind}", way.name());
        }
        let refused = seen.of(kind::GPU_EXIT).filter(|it| it.header.flags != 0);
        assert_eq!(refused.count(), TIMES);
        let calls: Vec<GpuCall> = seen.bodies(kind::GPU_EXIT);
        assert!(calls.iter().all(|call| call.hold_ns <= call.latency_ns));
        let (maps, unmaps): (Vec<MapCall>, Vec<MapCall>) =
            (seen.bodies(kind::MMAP), seen.bodies(kind::MUNMAP));
        for (map, unmap) in maps.iter().zip(&unmaps) {
            assert_eq!((map.address, map.bytes), (unmap.address, unmap.bytes));
        }
        let samples: Vec<SampleGpu> = seen.bodies(kind::SAMPLE_GPU);
        assert_eq!(
            samples.iter().map(|it| it.calls as usize).sum::<usize>(),
            2 * TIMES
        );
        let samples: Vec<SampleMaps> = seen.bodies(kind::SAMPLE_MAPS);
        let sum = |field: fn(&SampleMaps) -> u32| samples.iter().map(field).sum::<u32>() as usize;
        assert_eq!((sum(|it| it.maps), sum(|it| it.unmaps)), (TIMES, TIMES));
    }
}
