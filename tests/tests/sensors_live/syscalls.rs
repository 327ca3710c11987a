//! System calls: exactly those that the test made, waiting ones apart.
//!
//! Invariant: each call is made directly, not through a library that may make others.

use crate::support::*;
use nix::libc;
use palisade_abi::{Kind, SampleSyscalls, kind};

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
    let skipped = seen.assert_none_lost_but_skipped(&[Kind::SampleSyscalls]);
    tell_costs(&runs);
    seen.assert_from(pid, inside.id());
    let samples: Vec<SampleSyscalls> = seen.bodies(kind::SAMPLE_SYSCALLS);
    // Two more than the loops made: the write that says `done`, and the read after it. The read
    // before them was entered before the sensors came.
    let calls: u64 = samples.iter().map(|s| s.calls).sum();
    let waiting: u64 = samples.iter().map(|s| s.waiting).sum();
    let most = WORK + 2;
    assert!(
        (most - skipped.min(most)..=most).contains(&calls),
        "{calls}"
    );
    assert!(
        (waits - skipped.min(waits)..=waits).contains(&waiting),
        "{waiting}"
    );
    assert!(calls + waiting + skipped >= most + waits);
}
