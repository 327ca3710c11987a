//! Driver calls by command: each one is counted under its command, and what it took over the
//! command's baseline is summed by the kernel.
//!
//! Invariant: the calls are made on a pty of the test's own, and change nothing.

use crate::{
    contention::{NOT_PERMITTED, hold_for},
    cpu::tell_costs,
    support::*,
};
use palisade_abi::{
    COMMAND_BITS, GpuCall, Kind, SampleGpuCommand, UNKNOWN_COMMAND, command_of, kind,
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
    let (inside, outside) = (Cgroup::new(), Cgroup::new());
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
    let (child, stranger) = (Child::new(work), Child::new(work));
    inside.take(child.pid);
    outside.take(stranger.pid);
    let (pid, workload) = (child.pid, inside.id());
    let watch = Watch::new(
        object,
        options(&[&inside], &[Kind::SampleGpuCommand, Kind::GpuExit]),
    );
    child.start();
    stranger.start();
    child.wait_done();
    stranger.wait_done();
    watch.settle();
    let handle = watch.handle.clone();
    let seen = watch.stop();
    tell_costs(&handle);
    assert_eq!((child.finish(), stranger.finish()), (0, 0));

    seen.assert_none_lost();
    seen.assert_from(pid, workload);
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
