//! Processes: forks, execs, exits and turns on the CPU agree with what the kernel itself counts.
//!
//! Invariant: only processes that the test started are looked at.

use crate::{
    contention::{NOT_PERMITTED, hold_for},
    cpu::{own_cpus, schedstat_at_rest, stay_on},
    support::*,
};
use nix::{
    libc,
    sys::{
        signal::{
            SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction,
        },
        timer::{Expiration, Timer, TimerSetTimeFlags},
        wait::{WaitStatus, waitpid},
    },
    time::ClockId,
    unistd::{ForkResult, Pid, fork, gettid},
};
use palisade::sensors::{SensorOptions, Way};
use palisade_abi::{Exec, Exit, Fork, Kind, Record, SampleSched, kind};
use std::{
    fs, hint,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

#[test]
fn forks_execs_and_exits_are_found_exactly() {
    const CHILDREN: usize = 30;
    let Some(object) = object("forks_execs_and_exits_are_found_exactly") else {
        return;
    };
    let inside = Cgroup::new();
    let child = Child::new(|| {
        for number in 0..CHILDREN {
            // SAFETY: the child has one thread and its children only make system calls.
            match unsafe { fork() } {
                Ok(ForkResult::Parent { child }) => {
                    let expected = if number % 2 == 0 { 0 } else { 7 };
                    if waitpid(child, None) != Ok(WaitStatus::Exited(child, expected)) {
                        return 1;
                    }
                }
                Ok(ForkResult::Child) => {
                    if number % 2 == 0 {
                        let _ = nix::unistd::execv(c"/bin/true", &[c"true"]);
                    }
                    // SAFETY: nothing to clean up, and the harness's handlers must not run.
                    unsafe { nix::libc::_exit(7) }
                }
                Err(_) => return 2,
            }
        }
        0
    });
    let (pid, workload) = (child.pid.as_raw() as u32, inside.id());
    inside.take(child.pid);
    let watch = Watch::new(
        object,
        options(&[&inside], &[Kind::Exec, Kind::Exit, Kind::Fork]),
    );
    assert_eq!(child.run(), 0);
    let seen = watch.stop();

    seen.assert_none_lost();
    assert!(
        seen.records
            .iter()
            .all(|record| record.header.workload == workload)
    );
    let forks: Vec<(u32, Fork)> = seen
        .of(kind::FORK)
        .filter_map(|r| Some((r.header.pid, r.get()?)))
        .collect();
    assert_eq!(forks.len(), CHILDREN);
    assert!(forks.iter().all(|(parent, _)| *parent == pid));
    let execs: Vec<Exec> = seen.bodies(kind::EXEC);
    assert_eq!(execs.len(), CHILDREN / 2);
    assert!(
        execs
            .iter()
            .all(|e| e.parent == pid && e.uid == 0 && e.comm.starts_with(b"true\0"))
    );
    let exits: Vec<(u32, u64, u32)> = seen
        .of(kind::EXIT)
        .filter_map(|r| Some((r.header.pid, r.header.start_ns, r.get::<Exit>()?.code)))
        .collect();
    assert_eq!(exits.len(), CHILDREN + 1);
    assert_eq!(
        exits.iter().filter(|(_, _, code)| *code == 7 << 8).count(),
        CHILDREN / 2
    );
    for (_, fork) in forks {
        let ends = exits
            .iter()
            .filter(|end| (end.0, end.1) == (fork.child, fork.child_start_ns));
        assert_eq!(ends.count(), 1);
    }
}

#[test]
fn threads_are_no_processes() {
    const ROUNDS: usize = 10;
    let Some(object) = object("threads_are_no_processes") else {
        return;
    };
    let inside = Cgroup::new();
    let watch = Watch::new(
        object,
        options(&[&inside], &[Kind::Exec, Kind::Exit, Kind::Fork]),
    );
    for round in 0..ROUNDS {
        let status = Command::new("/bin/sh")
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(inside.0.join("cgroup.procs"))
            .arg(palisade_tests::binaries().join("target"))
            .args(["threads", if round % 2 == 0 { "any" } else { "leader" }])
            .stdout(std::process::Stdio::null())
            .status()
            .expect("this test");
        assert_eq!(status.code(), Some(5));
    }
    let seen = watch.stop();
    seen.assert_none_lost();
    assert_eq!(seen.count(kind::FORK), 0);
    assert_eq!(seen.count(kind::EXEC), ROUNDS);
    let exits: Vec<Exit> = seen.bodies(kind::EXIT);
    assert_eq!(exits.len(), ROUNDS);
    assert!(exits.iter().all(|exit| exit.code == 5 << 8), "{exits:?}");
}

/// Folders of a process's threads in /proc.
fn threads(pid: Pid) -> impl Iterator<Item = PathBuf> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    threads.map(|thread| thread.expect("a thread").path())
}

/// Voluntary and involuntary switches of a process's threads as the kernel itself counts them.
fn switches(pid: Pid) -> (u64, u64) {
    threads(pid).fold((0, 0), |sum, thread| {
        let of = switches_of(&thread);
        (sum.0 + of.0, sum.1 + of.1)
    })
}

/// The same of one thread, by its folder.
fn switches_of(thread: &Path) -> (u64, u64) {
    let status = fs::read_to_string(thread.join("status")).expect("status");
    let value = |name: &str| -> u64 {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect("a line");
        line.trim().parse().expect("number")
    };
    (
        value("voluntary_ctxt_switches:"),
        value("nonvoluntary_ctxt_switches:"),
    )
}

/// Waits until the process sleeps and its counts stand still: one that waits for a CPU on a busy
/// machine stands still too, but in the middle of a turn.
pub fn switches_at_rest(pid: Pid) -> (u64, u64) {
    let sleeps = || {
        threads(pid).all(|thread| {
            let stat = fs::read_to_string(thread.join("stat")).expect("stat");
            stat.contains(") S ")
        })
    };
    let end = Instant::now() + PATIENCE;
    let mut before = switches(pid);
    loop {
        thread::sleep(Duration::from_millis(20));
        let now = switches(pid);
        if now == before && sleeps() {
            return now;
        }
        assert!(Instant::now() < end, "the child does not come to rest");
        before = now;
    }
}

/// Voluntary and involuntary switches of a process as they were told.
pub fn switches_told(seen: &Seen, pid: Pid) -> (u64, u64) {
    seen.of(kind::SAMPLE_SCHED)
        .filter(|record| record.header.pid == pid.as_raw() as u32)
        .filter_map(Record::get::<SampleSched>)
        .fold((0, 0), |sum, sample| {
            (
                sum.0 + u64::from(sample.voluntary),
                sum.1 + u64::from(sample.involuntary),
            )
        })
}

#[test]
fn switches_agree_with_the_kernels_own_count() {
    let Some(object) = object("switches_agree_with_the_kernels_own_count") else {
        return;
    };
    let inside = Cgroup::new();
    let work = || {
        let both = nix::sched::sched_getaffinity(Pid::from_raw(0));
        for round in 0..60 {
            thread::sleep(Duration::from_millis(1));
            for _ in 0..50 {
                let _ = nix::sched::sched_yield();
            }
            // Back and forth, where there is more than one CPU to go to.
            let cpu = (0..nix::sched::CpuSet::count())
                .filter(|cpu| both.as_ref().is_ok_and(|set| set.is_set(*cpu) == Ok(true)))
                .nth(round % 2);
            if let Some(cpu) = cpu {
                let mut set = nix::sched::CpuSet::new();
                let _ = set.set(cpu);
                let _ = nix::sched::sched_setaffinity(Pid::from_raw(0), &set);
            }
            let busy = Instant::now();
            while busy.elapsed() < Duration::from_micros(500) {}
        }
        0
    };
    // Two of them on the same CPUs, so that there is somebody to wait for.
    let (child, rival) = (Child::new(work), Child::new(work));
    inside.take(child.pid);
    inside.take(rival.pid);
    let watch = Watch::new(object, options(&[&inside], &[Kind::SampleSched]));
    let (before, stat_before) = (switches_at_rest(child.pid), schedstat_at_rest(child.pid));
    child.start();
    rival.start();
    child.wait_done();
    rival.wait_done();
    let (after, stat_after) = (switches_at_rest(child.pid), schedstat_at_rest(child.pid));
    let pid = child.pid.as_raw() as u32;
    let seen = watch.stop();
    assert_eq!((child.finish(), rival.finish()), (0, 0));

    seen.assert_none_lost();
    let samples: Vec<SampleSched> = seen
        .of(kind::SAMPLE_SCHED)
        .filter(|record| record.header.pid == pid)
        .filter_map(Record::get)
        .collect();
    let sum = |field: fn(&SampleSched) -> u64| samples.iter().map(field).sum::<u64>();
    assert_eq!(sum(|s| u64::from(s.voluntary)), after.0 - before.0);
    assert_eq!(sum(|s| u64::from(s.involuntary)), after.1 - before.1);
    let waits = sum(|s| u64::from(s.runq_waits));
    // Not as many as turns: a thread that is preempted on its way to sleep has no wait noted. The
    // first turn that is seen to end is where counting begins.
    assert_eq!(waits + 1, stat_after[2] - stat_before[2]);
    // All of them may be of no length, where the two never meet on a CPU. To the nanosecond: `cpu.rs`.
    assert!(sum(|s| s.runq_ns) <= stat_after[1] - stat_before[1]);
    if thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1) {
        assert!(sum(|s| u64::from(s.migrations)) >= 30);
    }
}

/// Interrupts the calling thread again and again until it is dropped.
fn alarm(every: Duration) -> nix::Result<Timer> {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing, which is safe at any time.
    unsafe { sigaction(Signal::SIGALRM, &action) }?;
    let event = SigEvent::new(SigevNotify::SigevThreadId {
        signal: Signal::SIGALRM,
        thread_id: gettid().as_raw(),
        si_value: 0,
    });
    let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, event)?;
    timer.set(
        Expiration::Interval(every.into()),
        TimerSetTimeFlags::empty(),
    )?;
    Ok(timer)
}

#[test]
fn a_sleep_that_a_pending_signal_forbids_counts_as_the_kernel_counts_it() {
    // Shorter than what passes for rest: the thread that brings the pages sleeps for as long.
    const HOLD: Duration = Duration::from_millis(12);
    const ROUNDS: u32 = 30;
    let name = "a_sleep_that_a_pending_signal_forbids_counts_as_the_kernel_counts_it";
    let Some(object) = object(name) else {
        return;
    };
    let cpu = own_cpus()[0];
    for avoid in [Vec::new(), vec![Way::Btf]] {
        let inside = Cgroup::new();
        // It waits in the kernel for a page that comes late. That wait goes on after a signal, which
        // is not taken before the call's end: from then on the thread calls the scheduler in
        // order to sleep, is not allowed to, and stays runnable. Before Linux 6.15 the hook is told the
        // state in which it meant to sleep: there a rule that goes by the state alone would pass, too.
        let child = Child::new(|| {
            let device = ptmx();
            stay_on(cpu);
            match alarm(HOLD / 4) {
                Ok(_alarm) => hold_for(&device, HOLD, ROUNDS),
                Err(_) => 1,
            }
        });
        // Somebody to switch to.
        let rival = Child::new(|| {
            stay_on(cpu);
            loop {
                hint::spin_loop();
            }
        });
        inside.take(child.pid);
        let options = SensorOptions {
            avoid,
            ..options(&[&inside], &[Kind::SampleSched, Kind::SampleCpu])
        };
        let watch = Watch::new(object, options);
        let own_thread = PathBuf::from(format!("/proc/{0}/task/{0}", child.pid));
        let before = switches_at_rest(child.pid);
        let own_before = switches_of(&own_thread);
        rival.start();
        child.start();
        child.wait_done();
        drop(rival);
        let after = switches_at_rest(child.pid);
        let own = switches_of(&own_thread).0 - own_before.0;
        let pid = child.pid;
        let seen = watch.stop();
        match child.finish() {
            0 => {}
            NOT_PERMITTED => {
                eprintln!("SKIPPED {name}: userfaultfd is not permitted");
                return;
            }
            code => panic!("the child ended with {code}"),
        }
        seen.assert_none_lost();
        let expected = (after.0 - before.0, after.1 - before.1);
        assert_eq!(switches_told(&seen, pid), expected);
        eprintln!(
            "MEASURED switches with signals pending: {expected:?}, {own} of the thread's own"
        );
        // Without signals it is one switch a round and one more: 31. With them it was 62 and 63 in a guest
        // with Linux 6.1, 123 to 155 on Linux 6.18.
        let met = own.saturating_sub(u64::from(ROUNDS) + 1);
        assert!(
            met >= u64::from(ROUNDS) / 2,
            "signals were met {met} times on the way to sleep"
        );
    }
}
