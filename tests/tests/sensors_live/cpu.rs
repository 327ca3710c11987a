//! The CPU: turns, waits and times agree with the scheduler's own accounts, system calls with what
//! the test made.
//!
//! Invariant: only processes that the test started are looked at.

use crate::support::*;
use nix::{libc, unistd::Pid};
use palisade::sensors::{SensorHandle, SensorOptions};
use palisade_abi::{Histogram, Kind, Record, SampleCpu, SampleSched, SampleSyscalls, kind};
use std::{
    fs, hint, thread,
    time::{Duration, Instant},
};

/// What the kernel says of a single-threaded process in `/proc/PID/schedstat`: time on a CPU, time
/// spent waiting for one, nanoseconds; times it got one.
fn schedstat(pid: Pid) -> [u64; 3] {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("schedstat");
    let mut words = text.split_whitespace().map(str::parse);
    [(); 3].map(|()| words.next().expect("three numbers").expect("a number"))
}

/// The same once it sleeps and its numbers stand still.
pub fn schedstat_at_rest(pid: Pid) -> [u64; 3] {
    let end = Instant::now() + PATIENCE;
    let mut before = schedstat(pid);
    loop {
        thread::sleep(Duration::from_millis(20));
        let now = schedstat(pid);
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
        if now == before && stat.contains(") S ") {
            return now;
        }
        assert!(Instant::now() < end, "the child does not come to rest");
        before = now;
    }
}

/// Says what each hook cost, where the kernel counts it (`kernel.bpf_stats_enabled`).
pub fn tell_costs(handle: &SensorHandle) {
    for program in handle.stats().programs {
        if let Some(each) = program.run_ns.checked_div(program.runs)
            && each != 0
        {
            let (hook, runs) = (program.hook, program.runs);
            eprintln!("MEASURED {hook}: {each} ns in each of {runs} runs");
        }
    }
}

fn burn(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        hint::spin_loop();
    }
}

/// What the calling thread has used of the CPU.
fn own_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map_or(Duration::ZERO, Duration::from)
}

fn stay_on(cpu: usize) -> bool {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).is_ok() && nix::sched::sched_setaffinity(Pid::from_raw(0), &set).is_ok()
}

/// The CPUs that this process may use.
fn own_cpus() -> Vec<usize> {
    let set = nix::sched::sched_getaffinity(Pid::from_raw(0)).expect("affinity");
    (0..nix::sched::CpuSet::count())
        .filter(|cpu| set.is_set(*cpu) == Ok(true))
        .collect()
}

fn bodies_of<B: palisade_abi::Body>(seen: &Seen, kind: u16, pid: Pid) -> Vec<B> {
    seen.of(kind)
        .filter(|record| record.header.pid == pid.as_raw() as u32)
        .filter_map(Record::get)
        .collect()
}

#[test]
fn turns_waits_and_times_are_the_schedulers_own() {
    let Some(object) = object("turns_waits_and_times_are_the_schedulers_own") else {
        return;
    };
    const NAPS: u32 = 100;
    const NAP: Duration = Duration::from_millis(2);
    let inside = Cgroup::new();
    let cpu = own_cpus()[0];
    let work = move || {
        stay_on(cpu);
        // Time to look: what comes after it is compared.
        thread::sleep(Duration::from_millis(500));
        for _ in 0..NAPS {
            burn(Duration::from_micros(300));
            let _ = nix::sched::sched_yield();
            thread::sleep(NAP);
        }
        0
    };
    // Two on one CPU, so that there is somebody to wait for.
    let (child, rival) = (Child::new(work), Child::new(work));
    inside.take(child.pid);
    inside.take(rival.pid);
    let kinds = [Kind::SampleSched, Kind::SampleRunq, Kind::SampleCpu];
    let watch = Watch::new(object, options(&[&inside], &kinds));
    child.start();
    rival.start();
    thread::sleep(Duration::from_millis(200));
    let before = schedstat_at_rest(child.pid);
    watch.settle();
    let skip = watch.so_far();
    let began = Instant::now();
    child.wait_done();
    rival.wait_done();
    let after = schedstat_at_rest(child.pid);
    let whole = began.elapsed();
    let pid = child.pid;
    let runs = watch.handle.clone();
    let mut seen = watch.stop();
    assert_eq!((child.finish(), rival.finish()), (0, 0));
    seen.assert_none_lost();
    seen.records.drain(..skip);
    tell_costs(&runs);

    let sched: Vec<SampleSched> = bodies_of(&seen, kind::SAMPLE_SCHED, pid);
    let times: Vec<SampleCpu> = bodies_of(&seen, kind::SAMPLE_CPU, pid);
    let waits: u64 = sched.iter().map(|s| u64::from(s.runq_waits)).sum();
    let waited: u64 = sched.iter().map(|s| s.runq_ns).sum();
    let on: u64 = times.iter().map(|s| s.on_ns).sum();
    // Between two moments of rest, the samples are exactly the scheduler's differences.
    assert_eq!([on, waited, waits], [0, 1, 2].map(|i| after[i] - before[i]));
    let buckets: u64 = bodies_of::<Histogram>(&seen, kind::SAMPLE_RUNQ, pid)
        .iter()
        .flat_map(|part| part.counts)
        .map(u64::from)
        .sum();
    assert_eq!(buckets, waits);

    // Every nap is a stretch off the CPU of at least its length; what is neither on, off nor
    // waiting is interrupts and what a hypervisor stole.
    let naps: u64 = times.iter().map(|s| u64::from(s.off_waits)).sum();
    let off: u64 = times.iter().map(|s| s.off_ns).sum();
    assert!(naps >= u64::from(NAPS), "{naps}");
    assert!(off >= u64::from(NAPS) * NAP.as_nanos() as u64, "{off}");
    assert!(off + on + waited <= whole.as_nanos() as u64 + 500_000_000);
    assert!(sched.iter().all(|s| s.migrations == 0));
    assert!(times.iter().all(|s| s.cross_node == 0));
}

#[test]
fn a_thread_is_counted_from_its_first_turn_to_its_last() {
    let Some(object) = object("a_thread_is_counted_from_its_first_turn_to_its_last") else {
        return;
    };
    const THREADS: usize = 8;
    const EACH: Duration = Duration::from_millis(5);
    let inside = Cgroup::new();
    let child = Child::new(|| {
        // The process's own thread only waits.
        let threads: Vec<_> = (0..THREADS)
            .map(|_| thread::spawn(|| while own_time() < EACH {}))
            .collect();
        let ended = threads.into_iter().filter_map(|t| t.join().ok()).count();
        i32::from(ended != THREADS)
    });
    inside.take(child.pid);
    let watch = Watch::new(object, options(&[&inside], &[Kind::SampleCpu]));
    assert_eq!(child.run(), 0);
    let seen = watch.stop();
    seen.assert_none_lost();
    let on: u64 = seen
        .bodies::<SampleCpu>(kind::SAMPLE_CPU)
        .iter()
        .map(|s| s.on_ns)
        .sum();
    assert!(on >= THREADS as u64 * EACH.as_nanos() as u64, "{on}");
}

#[test]
fn moves_between_nodes_are_told_from_moves_within_one() {
    let name = "moves_between_nodes_are_told_from_moves_within_one";
    let Some(object) = object(name) else {
        return;
    };
    const MOVES: u32 = 40;
    let cpus = own_cpus();
    let [first, second, ..] = cpus[..] else {
        eprintln!("SKIPPED {name}: one CPU");
        return;
    };
    for (apart, expected) in [(true, MOVES), (false, 0)] {
        // Two CPUs, on two nodes or on one, whatever the hardware says.
        let mut nodes = vec![0; first.max(second) + 1];
        nodes[second] = u32::from(apart);
        let inside = Cgroup::new();
        let child = Child::new(move || {
            for round in 0..=MOVES {
                stay_on(if round % 2 == 0 { first } else { second });
            }
            0
        });
        // Where it is before the first move is chance; so it is put there first.
        let mut set = nix::sched::CpuSet::new();
        set.set(first).expect("a CPU");
        nix::sched::sched_setaffinity(child.pid, &set).expect("pinned");
        inside.take(child.pid);
        let watch = Watch::new(
            object,
            SensorOptions {
                nodes: Some(nodes),
                ..options(&[&inside], &[Kind::SampleSched, Kind::SampleCpu])
            },
        );
        assert_eq!(child.run(), 0);
        let seen = watch.stop();
        seen.assert_none_lost();
        let crossed = seen.bodies::<SampleCpu>(kind::SAMPLE_CPU);
        let moved = seen.bodies::<SampleSched>(kind::SAMPLE_SCHED);
        assert_eq!(moved.iter().map(|s| s.migrations).sum::<u32>(), MOVES);
        assert_eq!(crossed.iter().map(|s| s.cross_node).sum::<u32>(), expected);
    }
}

#[test]
fn system_calls_are_counted_exactly_and_waiting_ones_apart() {
    let Some(object) = object("system_calls_are_counted_exactly_and_waiting_ones_apart") else {
        return;
    };
    const WORK: u64 = 1000;
    let inside = Cgroup::new();
    /// The calls that wait, each with arguments with which it returns at once.
    fn wait_once() -> u64 {
        let none = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let none = &raw const none;
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        let event = &raw mut event;
        let mut word = 0_u32;
        // SAFETY: the raw calls are what is counted; each gets a zero time, an empty set or a
        // descriptor that is none, and writes at most to the locals above.
        unsafe {
            libc::syscall(libc::SYS_sched_yield);
            libc::syscall(libc::SYS_futex, &raw mut word, libc::FUTEX_WAKE, 1);
            libc::syscall(libc::SYS_futex_waitv, 0, 0, 0, 0, 0);
            libc::syscall(libc::SYS_ppoll, 0, 0, none, 0, 0);
            libc::syscall(libc::SYS_pselect6, 0, 0, 0, 0, none, 0);
            libc::syscall(libc::SYS_epoll_pwait, -1, event, 1, 0, 0, 0);
            libc::syscall(libc::SYS_epoll_pwait2, -1, event, 1, none, 0, 0);
            libc::syscall(libc::SYS_nanosleep, none, 0);
            libc::syscall(libc::SYS_clock_nanosleep, libc::CLOCK_MONOTONIC, 0, none, 0);
        }
        let mut calls = 9;
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        unsafe {
            let mut time = libc::timeval {
                tv_sec: 0,
                tv_usec: 0,
            };
            libc::syscall(libc::SYS_poll, 0, 0, 0);
            libc::syscall(libc::SYS_select, 0, 0, 0, 0, &raw mut time);
            libc::syscall(libc::SYS_epoll_wait, -1, event, 1, 0);
            calls += 3;
        }
        calls
    }
    let waits = wait_once() * 10;
    let child = Child::new(|| {
        for _ in 0..WORK {
            // SAFETY: a call without effect.
            unsafe { libc::syscall(libc::SYS_getppid) };
        }
        for _ in 0..10 {
            wait_once();
        }
        0
    });
    let pid = child.pid;
    inside.take(pid);
    let watch = Watch::new(object, options(&[&inside], &[Kind::SampleSyscalls]));
    child.start();
    child.wait_done();
    let runs = watch.handle.clone();
    let seen = watch.stop();
    assert_eq!(child.finish(), 0);
    seen.assert_none_lost();
    tell_costs(&runs);
    seen.assert_from(pid, inside.id());
    let samples: Vec<SampleSyscalls> = seen.bodies(kind::SAMPLE_SYSCALLS);
    // Two more than the loops made: the write that says `done`, and the read after it. The read
    // before them was entered before the sensors came.
    assert_eq!(samples.iter().map(|s| s.calls).sum::<u64>(), WORK + 2);
    assert_eq!(samples.iter().map(|s| s.waiting).sum::<u64>(), waits);
}
