//! Driver calls by command: each one is counted under its command, and what it took over the
//! command's baseline is summed by the kernel.
//!
//! Invariant: the calls are made on a pty of the test's own, and change nothing.

use crate::{
    contention::{NOT_PERMITTED, hold_for},
    pairs::beside_a_stranger,
    support::*,
};
use palisade::sensors::{SensorOptions, WatchedDevice};
use palisade_abi::{
    COMMAND_BITS, GpuCall, HISTOGRAM_BUCKETS, Histogram, Kind, SampleGpuCommand, UNKNOWN_COMMAND,
    command_of, kind,
};
use std::{os::fd::AsRawFd, thread, time::Duration};

const TIOCGWINSZ: u16 = nix::libc::TIOCGWINSZ as u16;
/// `_IOR('T', 0x30, unsigned int)`: an encoded command word, without direction and size.
const TIOCGPTN: u16 = nix::libc::TIOCGPTN as u16;

fn ask_pty_number(fd: &std::os::fd::OwnedFd) -> i32 {
    let mut number = 0_u32;
    // SAFETY: the raw call is what is counted; the driver writes one `unsigned int`.
    unsafe { nix::libc::ioctl(fd.as_raw_fd(), nix::libc::TIOCGPTN, &raw mut number) }
}

fn of(samples: &[SampleGpuCommand], command: u16) -> SampleGpuCommand {
    let mut sum = SampleGpuCommand {
        command,
        ..SampleGpuCommand::default()
    };
    for sample in samples.iter().filter(|sample| sample.command == command) {
        assert_eq!(sample.class, 0);
        sum.calls += sample.calls;
        sum.latency_ns += sample.latency_ns;
        sum.excess_ns += sample.excess_ns;
    }
    sum
}

#[test]
fn driver_calls_are_counted_by_command_and_refused_ones_together() {
    let Some(object) = object("driver_calls_are_counted_by_command_and_refused_ones_together")
    else {
        return;
    };
    let work = || {
        let device = ptmx();
        let mut code = 0;
        for round in 0..300 {
            code += ask_window_size(&device);
            if round % 3 == 0 {
                code += ask_pty_number(&device);
            }
            if round % 30 == 0 {
                ask_nonsense(&device);
            }
        }
        code
    };
    let options = options(&[], &[Kind::SampleGpuCommand, Kind::GpuExit]);
    let seen = beside_a_stranger(object, options, work);
    let samples: Vec<SampleGpuCommand> = seen.bodies(kind::SAMPLE_GPU_COMMAND);
    let calls: Vec<GpuCall> = seen.bodies(kind::GPU_EXIT);
    for (command, count) in [(TIOCGWINSZ, 300), (TIOCGPTN, 100), (UNKNOWN_COMMAND, 10)] {
        let sum = of(&samples, command);
        let latency_ns: u64 = calls
            .iter()
            .filter(|call| match command_of(call.command, COMMAND_BITS) {
                TIOCGWINSZ => command == TIOCGWINSZ,
                TIOCGPTN => command == TIOCGPTN,
                _ => command == UNKNOWN_COMMAND,
            })
            .map(|call| call.latency_ns)
            .sum();
        assert_eq!(
            (sum.calls, sum.latency_ns),
            (count, latency_ns),
            "{command:#x}"
        );
    }
    assert_eq!(samples.iter().map(|sample| sample.calls).sum::<u32>(), 410);
}

#[test]
fn the_excess_is_what_calls_took_over_the_baseline_and_nothing_before_there_is_one() {
    const NAME: &str =
        "the_excess_is_what_calls_took_over_the_baseline_and_nothing_before_there_is_one";
    const QUICK: usize = 400;
    let Some(object) = object(NAME) else {
        return;
    };
    let (inside, outside) = (Cgroup::new(), Cgroup::new());
    let watch = Watch::new(
        object,
        options(&[&inside], &[Kind::SampleGpuCommand, Kind::GpuExit]),
    );
    // Slow calls before anything is known are not in excess of anything.
    let run = |cgroup: &Cgroup, child: Child| {
        cgroup.take(child.pid);
        child.run()
    };
    let slow = |rounds| Child::new(move || hold_for(&ptmx(), Duration::from_millis(20), rounds));
    if run(&inside, slow(3)) == NOT_PERMITTED {
        eprintln!("SKIPPED {NAME}: userfaultfd is not permitted");
        return;
    }
    watch.settle();
    // An unwatched process has its say in the baseline, which is renewed once a second.
    let quick = Child::new(|| {
        let device = ptmx();
        (0..QUICK).map(|_| ask_window_size(&device)).sum()
    });
    assert_eq!(run(&outside, quick), 0);
    thread::sleep(Duration::from_millis(1500));
    watch.settle();
    assert_eq!(run(&inside, slow(5)), 0);
    let seen = watch.stop();

    seen.assert_none_lost();
    let calls: Vec<GpuCall> = seen.bodies(kind::GPU_EXIT);
    let calls: Vec<&GpuCall> = calls
        .iter()
        .filter(|call| command_of(call.command, COMMAND_BITS) == TIOCGWINSZ)
        .collect();
    assert_eq!(calls.len(), 8);
    let samples: Vec<SampleGpuCommand> = seen.bodies(kind::SAMPLE_GPU_COMMAND);
    let sum = of(&samples, TIOCGWINSZ);
    assert_eq!(sum.calls, 8);
    let late: u64 = calls[3..].iter().map(|call| call.latency_ns).sum();
    // 400 of 403 calls took microseconds, so the 10th percentile is below a millisecond whatever
    // else this machine is doing.
    assert!(
        sum.excess_ns <= late && sum.excess_ns >= late - 5_000_000,
        "{sum:?} of {late}"
    );
}

/// The bucket that a latency belongs into, by the definition.
fn bucket(latency_ns: u64) -> usize {
    let us = latency_ns / 1000;
    us.checked_ilog2()
        .map_or(0, |log| log as usize + 1)
        .min(HISTOGRAM_BUCKETS - 1)
}

#[test]
fn every_driver_call_is_in_the_bucket_of_its_latency_and_class() {
    const NAME: &str = "every_driver_call_is_in_the_bucket_of_its_latency_and_class";
    const CLASS: u32 = 5;
    const SLOW: Duration = Duration::from_millis(20);
    let Some(object) = object(NAME) else {
        return;
    };
    let inside = Cgroup::new();
    let child = Child::new(|| {
        let device = ptmx();
        for round in 0..200 {
            if round % 20 == 0 {
                ask_nonsense(&device);
            } else {
                ask_window_size(&device);
            }
        }
        hold_for(&device, SLOW, 4)
    });
    inside.take(child.pid);
    let (pid, workload) = (child.pid, inside.id());
    let devices = vec![WatchedDevice {
        class: CLASS,
        ..PTMX
    }];
    let watch = Watch::new(
        object,
        SensorOptions {
            devices,
            ..options(&[&inside], &[Kind::SampleGpuLatency, Kind::GpuExit])
        },
    );
    child.start();
    child.wait_done();
    watch.settle();
    let handle = watch.handle.clone();
    let seen = watch.stop();
    tell_costs(&handle);
    if child.finish() == NOT_PERMITTED {
        eprintln!("SKIPPED {NAME}: userfaultfd is not permitted");
        return;
    }
    seen.assert_none_lost();
    seen.assert_from(pid, workload);

    let mut expected = [0_u64; HISTOGRAM_BUCKETS];
    for call in seen.bodies::<GpuCall>(kind::GPU_EXIT) {
        expected[bucket(call.latency_ns)] += 1;
    }
    let mut counted = [0_u64; HISTOGRAM_BUCKETS];
    for record in seen.of(kind::SAMPLE_GPU_LATENCY) {
        let part: Histogram = record.get().expect("a part");
        assert_eq!(Histogram::class(record.header.flags), CLASS);
        let first = Histogram::first_bucket(record.header.flags);
        for (count, more) in counted[first..].iter_mut().zip(part.counts) {
            *count += u64::from(more);
        }
    }
    assert_eq!(counted, expected);
    assert_eq!(counted.iter().sum::<u64>(), 204, "{counted:?}");
    // 2^14 to 2^15 µs, or later on a slow machine.
    assert_eq!(bucket(SLOW.as_nanos() as u64), 15);
    assert!(counted[15..].iter().sum::<u64>() >= 4, "{counted:?}");
}

#[test]
fn a_histogram_of_driver_calls_begins_with_its_subscription() {
    const CALLS: u32 = 50;
    let Some(object) = object("a_histogram_of_driver_calls_begins_with_its_subscription") else {
        return;
    };
    let inside = Cgroup::new();
    let calls = || {
        let device = ptmx();
        (0..CALLS).map(|_| ask_window_size(&device)).sum::<i32>()
    };
    let (before, after) = (Child::new(calls), Child::new(calls));
    inside.take(before.pid);
    inside.take(after.pid);
    let watch = Watch::new(object, options(&[&inside], &[Kind::SampleGpu]));
    assert_eq!(before.run(), 0);
    watch.settle();
    let both = [Kind::SampleGpu, Kind::SampleGpuLatency];
    watch.handle.set_kinds(bits(&both));
    watch.wait_kinds(&both);
    let pid = after.pid.as_raw() as u32;
    assert_eq!(after.run(), 0);
    let seen = watch.stop();
    seen.assert_none_lost();
    let mut records = seen.of(kind::SAMPLE_GPU_LATENCY);
    assert!(records.all(|record| record.header.pid == pid));
    let parts: Vec<Histogram> = seen.bodies(kind::SAMPLE_GPU_LATENCY);
    let counted: u32 = parts.iter().flat_map(|part| part.counts).sum();
    assert_eq!(counted, CALLS);
}
