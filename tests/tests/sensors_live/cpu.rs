//! The CPU: turns, waits and times agree with the scheduler's own accounts.
//!
//! Invariant: only processes that the test started are looked at.

use crate::support::*;
use nix::unistd::Pid;
use palisade::sensors::{SensorOptions, Way};
use palisade_abi::{Histogram, Kind, Record, SampleCpu, SampleSched, kind};
use std::{
    fs, hint,
    os::fd::OwnedFd,
    thread,
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

/// Where a child waits while the test looks at it.
pub struct Gate(OwnedFd);

/// A gate and what opens it.
pub fn gate() -> (Gate, OwnedFd) {
    let (wait, open) = nix::unistd::pipe().expect("pipe");
    (Gate(wait), open)
}

impl Gate {
    pub fn pass(&self) {
        let _ = nix::unistd::read(&self.0, &mut [0]);
    }
}

pub fn open_gate(gate: &OwnedFd) {
    assert_eq!(nix::unistd::write(gate, &[1]), Ok(1));
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

pub fn stay_on(cpu: usize) -> bool {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).is_ok() && nix::sched::sched_setaffinity(Pid::from_raw(0), &set).is_ok()
}

/// The CPUs that this process may use.
pub fn own_cpus() -> Vec<usize> {
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
    compare_with_the_scheduler(object, Vec::new());
}

#[test]
fn without_kernel_types_the_times_are_the_same() {
    let Some(object) = object("without_kernel_types_the_times_are_the_same") else {
        return;
    };
    compare_with_the_scheduler(object, vec![Way::Btf]);
}

fn compare_with_the_scheduler(object: &[u8], avoid: Vec<Way>) {
    const NAPS: u32 = 100;
    const NAP: Duration = Duration::from_millis(2);
    let inside = Cgroup::new();
    let cpu = own_cpus()[0];
    let work = |gate: Gate| {
        move || {
            stay_on(cpu);
            // Time to look: what comes after it is compared.
            gate.pass();
            for _ in 0..NAPS {
                burn(Duration::from_micros(300));
                let _ = nix::sched::sched_yield();
                thread::sleep(NAP);
            }
            0
        }
    };
    let ((first, open_first), (second, open_second)) = (gate(), gate());
    // Two on one CPU, so that there is somebody to wait for.
    let (child, rival) = (Child::new(work(first)), Child::new(work(second)));
    inside.take(child.pid);
    inside.take(rival.pid);
    let kinds = [Kind::SampleSched, Kind::SampleRunq, Kind::SampleCpu];
    let options = SensorOptions {
        avoid,
        ..options(&[&inside], &kinds)
    };
    let watch = Watch::new(object, options);
    let began = Instant::now();
    child.start();
    rival.start();
    let before = schedstat_at_rest(child.pid);
    watch.settle();
    let skip = watch.so_far();
    open_gate(&open_first);
    open_gate(&open_second);
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

    // It slept at both moments: each stretch off the CPU began with a voluntary switch. What is
    // neither on, off nor waiting is interrupts and what a hypervisor stole.
    let slept: u64 = times.iter().map(|s| u64::from(s.off_waits)).sum();
    let voluntary: u64 = sched.iter().map(|s| u64::from(s.voluntary)).sum();
    assert_eq!(slept, voluntary);
    let off: u64 = times.iter().map(|s| s.off_ns).sum();
    let most = whole + Duration::from_millis(10);
    assert!(
        off > 0 && off + on + waited <= most.as_nanos() as u64,
        "{off}"
    );
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
    // Two CPUs, on two nodes or on one, whatever the hardware says.
    let told = |second_on: u32| {
        let mut nodes = vec![0; first.max(second) + 1];
        nodes[second] = second_on;
        Some(nodes)
    };
    let mut cases = vec![(told(1), MOVES), (told(0), 0)];
    if std::env::var_os("PALISADE_VM").is_some() {
        // A guest has two nodes with a CPU each.
        cases.push((None, MOVES));
    }
    for (nodes, expected) in cases {
        let inside = Cgroup::new();
        let (gate, open) = gate();
        let child = Child::new(move || {
            // Where it was before is chance; so it goes there first.
            stay_on(first);
            gate.pass();
            for round in 0..MOVES {
                stay_on(if round % 2 == 0 { second } else { first });
            }
            0
        });
        inside.take(child.pid);
        let watch = Watch::new(
            object,
            SensorOptions {
                nodes,
                ..options(&[&inside], &[Kind::SampleSched, Kind::SampleCpu])
            },
        );
        child.start();
        schedstat_at_rest(child.pid);
        watch.settle();
        let skip = watch.so_far();
        open_gate(&open);
        child.wait_done();
        let mut seen = watch.stop();
        assert_eq!(child.finish(), 0);
        seen.assert_none_lost();
        seen.records.drain(..skip);
        let crossed = seen.bodies::<SampleCpu>(kind::SAMPLE_CPU);
        let moved = seen.bodies::<SampleSched>(kind::SAMPLE_SCHED);
        assert_eq!(moved.iter().map(|s| s.migrations).sum::<u32>(), MOVES);
        assert_eq!(crossed.iter().map(|s| s.cross_node).sum::<u32>(), expected);
    }
}
