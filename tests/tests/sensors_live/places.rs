//! Places of threads in the kernel's table of driver calls: more callers than places, and places that are given
//! back.
//!
//! Invariant: the tables are only read, and only those of this process.

use crate::support::*;
use nix::unistd::Pid;
use palisade_abi::{InFlight, Kind, MAX_RESIDENT, SampleGpu, kind};
use palisade_core::WorkloadId;
use std::{
    fs,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    sync::{Barrier, atomic::AtomicI32, atomic::Ordering},
    thread,
};

const LOOKUP: u32 = 1;
const NEXT_KEY: u32 = 4;

/// What `bpf(2)` takes to look at one element of a table.
#[repr(C)]
struct Ask {
    map: u64,
    key: u64,
    into: u64,
    flags: u64,
}

/// Whether the kernel answered.
fn ask<T>(map: &OwnedFd, command: u32, key: Option<&u64>, into: &mut T) -> bool {
    let ask = Ask {
        map: map.as_raw_fd() as u64,
        key: key.map_or(0, |key| std::ptr::from_ref(key) as u64),
        into: std::ptr::from_mut(into) as u64,
        flags: 0,
    };
    // SAFETY: `is_of_calls` has compared the sizes of key and value, of which `into` is one.
    let code = unsafe { nix::libc::syscall(nix::libc::SYS_bpf, command, &ask, size_of::<Ask>()) };
    code == 0
}

fn is_of_calls(map: &OwnedFd) -> bool {
    let path = format!("/proc/self/fdinfo/{}", map.as_raw_fd());
    let info = fs::read_to_string(path).unwrap_or_default();
    let is = |name: &str, number: usize| {
        let mut lines = info.lines().filter_map(|line| line.split_once(":\t"));
        lines.any(|(it, value)| it == name && value == number.to_string())
    };
    // A hash, as large as that of the calls.
    is("map_type", 1)
        && is("key_size", 8)
        && is("value_size", size_of::<InFlight>())
        && is("max_entries", 2 * MAX_RESIDENT as usize)
}

/// The places that a process's threads have, in every set of sensors here; of each whether it stays between calls.
fn places_of(pid: Pid) -> Vec<bool> {
    let mut places = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")
        .expect("descriptors")
        .flatten()
    {
        let name = entry.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // SAFETY: other tests may close it: then it is no table, or another one, which is asked of the duplicate.
        let Ok(map) = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned() else {
            continue;
        };
        if !is_of_calls(&map) {
            continue;
        }
        let (mut last, mut key) = (None, 0);
        // Entries that go meanwhile make the kernel start over.
        for _ in 0..4 * MAX_RESIDENT {
            if !ask(&map, NEXT_KEY, last.as_ref(), &mut key) {
                break;
            }
            let mut call = InFlight::default();
            if ask(&map, LOOKUP, Some(&key), &mut call) && call.pid == pid.as_raw() as u32 {
                places.push(call.resident != 0);
            }
            last = Some(key);
        }
    }
    places
}

#[test]
fn more_callers_than_have_a_place_of_their_own_are_counted_all_the_same() {
    const NAME: &str = "more_callers_than_have_a_place_of_their_own_are_counted_all_the_same";
    const CALLERS: usize = MAX_RESIDENT as usize + 200;
    const NO_THREADS: i32 = 77;
    let Some(object) = object(NAME) else {
        return;
    };
    let inside = Cgroup::new();
    let child = Child::new(|| {
        let (device, all) = (ptmx(), Barrier::new(CALLERS));
        let failed = AtomicI32::new(0);
        // Every thread is there until all have called; two calls each.
        thread::scope(|scope| {
            for _ in 0..CALLERS {
                let call = || {
                    let code = ask_window_size(&device);
                    all.wait();
                    failed.fetch_or(code | ask_window_size(&device), Ordering::Relaxed);
                };
                let thread = thread::Builder::new().stack_size(1 << 15);
                if thread.spawn_scoped(scope, call).is_err() {
                    // Those that wait would do so for ever.
                    // SAFETY: as at a child's end: nothing of the test's is to run.
                    unsafe { nix::libc::_exit(NO_THREADS) };
                }
            }
        });
        failed.into_inner()
    });
    inside.take(child.pid);
    let watch = Watch::new(object, options(&[&inside], &[Kind::SampleGpu]));
    let pid = child.pid;
    child.start();
    let code = child.finish();
    if code == NO_THREADS {
        eprintln!("SKIPPED {NAME}: {CALLERS} threads are too many here");
        return;
    }
    assert_eq!(code, 0);
    assert!(!watch.view.in_call(WorkloadId(inside.id())));
    assert!(places_of(pid).is_empty(), "of threads that ended");
    // They took all there are: whoever comes now gets one that was given back.
    let child = Child::new(|| ask_window_size(&ptmx()));
    inside.take(child.pid);
    child.start();
    child.wait_done();
    let places = places_of(child.pid);
    assert!(places.iter().any(|stays| *stays), "{places:?}");
    assert_eq!(child.finish(), 0);
    let seen = watch.stop();
    seen.assert_none_lost_but_skipped(&[Kind::SampleGpu]);
    let samples: Vec<SampleGpu> = seen.bodies(kind::SAMPLE_GPU);
    assert_eq!(
        samples.iter().map(|it| it.calls as usize).sum::<usize>(),
        2 * CALLERS + 1
    );
}
