//! One process holds a driver's lock while others wait for it: who holds is told from who waits.
//! And what such a long call makes possible to see: hooks that come and go around it.
//!
//! Invariant: without userfaultfd, which makes the holder slow, a test says `SKIPPED`.

use crate::support::*;
use palisade::sensors::{SensorOptions, WatchedDevice};
use palisade_abi::{GpuCall, Kind, SampleGpu, kind};
use palisade_core::WorkloadId;
use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// A page whose first touch takes as long as a thread of this process likes: a driver call that
/// writes to it is as slow, and holds meanwhile whatever lock the driver holds.
mod slow_page {
    use nix::{
        libc,
        sys::mman::{MapFlags, ProtFlags, mmap_anonymous},
    };
    use std::{
        ffi::c_void,
        num::NonZeroUsize,
        os::fd::{AsRawFd, FromRawFd, OwnedFd},
        ptr::NonNull,
        thread,
        time::Duration,
    };

    pub const BYTES: usize = 4096;
    /// `UFFD_API` and `UFFDIO_REGISTER_MODE_MISSING` of include/uapi/linux/userfaultfd.h.
    const API: u64 = 0xAA;
    const MISSING: u64 = 1;

    // The structures of that header, as words.
    nix::ioctl_readwrite!(api, 0xAA, 0x3F, [u64; 3]);
    nix::ioctl_readwrite!(register, 0xAA, 0x00, [u64; 4]);
    nix::ioctl_readwrite!(zero, 0xAA, 0x04, [u64; 4]);

    /// The page; `None` if userfaultfd is not permitted.
    pub fn new(delay: Duration) -> Option<NonNull<c_void>> {
        // SAFETY: the call has no preconditions; a good result is a descriptor of our own.
        let fd = unsafe {
            let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC);
            (fd >= 0).then(|| OwnedFd::from_raw_fd(fd as i32))?
        };
        let length = NonZeroUsize::new(BYTES)?;
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: fresh anonymous memory, handed out as an address only; the structures have the
        // sizes that the commands carry.
        let page = unsafe {
            let page = mmap_anonymous(None, length, both, MapFlags::MAP_PRIVATE).ok()?;
            api(fd.as_raw_fd(), &mut [API, 0, 0]).ok()?;
            let start = page.as_ptr() as u64;
            register(fd.as_raw_fd(), &mut [start, BYTES as u64, MISSING, 0]).ok()?;
            page
        };
        let start = page.as_ptr() as u64;
        thread::spawn(move || {
            let mut message = [0; 32];
            while nix::unistd::read(&fd, &mut message) == Ok(32) {
                thread::sleep(delay);
                // SAFETY: fills the page that was registered above.
                let _ = unsafe { zero(fd.as_raw_fd(), &mut [start, BYTES as u64, 0, 0]) };
            }
        });
        Some(page)
    }
}

/// One process holds the driver; five others wait for it in short calls of their own.
struct Contention {
    holder: Child,
    waiters: Vec<Child>,
}

const HOLD: Duration = Duration::from_millis(40);
const ROUNDS: u32 = 10;
/// Exit code of a holder that is not permitted userfaultfd.
pub const NOT_PERMITTED: i32 = 77;

/// Calls into the driver that take, and hold it, so long each.
pub fn hold_for(device: &OwnedFd, each: Duration, rounds: u32) -> i32 {
    let Some(page) = slow_page::new(each) else {
        return NOT_PERMITTED;
    };
    for _ in 0..rounds {
        // SAFETY: the kernel writes 8 bytes to the page, which nobody else looks at; giving it
        // back makes the next touch slow again.
        unsafe {
            nix::libc::ioctl(device.as_raw_fd(), nix::libc::TIOCGWINSZ, page.as_ptr());
            nix::libc::madvise(page.as_ptr(), slow_page::BYTES, nix::libc::MADV_DONTNEED);
        }
    }
    0
}

impl Contention {
    /// All of them share one pty, whose size is read under the pty's lock.
    fn new() -> Self {
        let device = Arc::new(ptmx());
        let held = device.clone();
        let holder = Child::new(move || hold_for(&held, HOLD, ROUNDS));
        let waiter = || {
            let device = device.clone();
            Child::new(move || {
                let end = Instant::now() + HOLD * ROUNDS;
                while Instant::now() < end {
                    ask_window_size(&device);
                    thread::sleep(Duration::from_millis(1));
                }
                0
            })
        };
        Self {
            holder,
            waiters: (0..5).map(|_| waiter()).collect(),
        }
    }

    fn start(&self) {
        self.holder.start();
        for waiter in &self.waiters {
            waiter.start();
        }
    }

    /// Whether it took place; not without userfaultfd.
    fn end(self) -> bool {
        self.holder.wait_done();
        for waiter in self.waiters {
            waiter.wait_done();
            assert_eq!(waiter.finish(), 0);
        }
        self.holder.finish() == 0
    }
}

/// Latency and hold time by process.
fn times(seen: &Seen) -> std::collections::BTreeMap<u32, (u64, u64)> {
    let mut times = std::collections::BTreeMap::new();
    for record in seen.of(kind::SAMPLE_GPU) {
        let sample: SampleGpu = record.get().expect("a sample");
        let (latency, hold) = times.entry(record.header.pid).or_default();
        *latency += sample.latency_ns;
        *hold += sample.hold_ns;
    }
    times
}

#[test]
fn with_one_holder_and_five_waiters_the_holder_holds_longest() {
    let name = "with_one_holder_and_five_waiters_the_holder_holds_longest";
    let Some(object) = object(name) else {
        return;
    };
    let (inside, holders) = (Cgroup::new(), Cgroup::new());
    let contention = Contention::new();
    let holder = contention.holder.pid.as_raw() as u32;
    holders.take(contention.holder.pid);
    for waiter in &contention.waiters {
        inside.take(waiter.pid);
    }
    let watch = Watch::new(object, options(&[&inside, &holders], &[Kind::SampleGpu]));
    contention.start();
    let mut in_call = false;
    let end = Instant::now() + HOLD * ROUNDS;
    while Instant::now() < end && !in_call {
        in_call = watch.view.in_call(WorkloadId(holders.id()));
        thread::sleep(Duration::from_millis(1));
    }
    if !contention.end() {
        eprintln!("SKIPPED {name}: userfaultfd is not permitted");
        return;
    }
    assert!(in_call, "the holder was seen inside its call");
    assert!(
        !watch.view.in_call(WorkloadId(holders.id())),
        "and not after it"
    );
    let seen = watch.stop();
    seen.assert_none_lost();
    let times = times(&seen);
    assert_eq!(times.len(), 6);
    let longest = times
        .iter()
        .max_by_key(|(_, (_, hold))| *hold)
        .map(|(pid, _)| *pid);
    assert_eq!(longest, Some(holder), "{times:?}");
}

#[test]
fn a_holder_out_of_sight_is_not_charged_to_those_who_wait_for_it() {
    let name = "a_holder_out_of_sight_is_not_charged_to_those_who_wait_for_it";
    let Some(object) = object(name) else {
        return;
    };
    let inside = Cgroup::new();
    let contention = Contention::new();
    for waiter in &contention.waiters {
        inside.take(waiter.pid);
    }
    let watch = Watch::new(object, options(&[&inside], &[Kind::SampleGpu]));
    contention.start();
    if !contention.end() {
        eprintln!("SKIPPED {name}: userfaultfd is not permitted");
        return;
    }
    let seen = watch.stop();
    seen.assert_none_lost_but_skipped(&[Kind::SampleGpu]);
    let times = times(&seen);
    assert_eq!(times.len(), 5, "the holder is not watched");
    let sum = times
        .values()
        .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert!(sum.1 < sum.0 / 2, "latency and hold: {sum:?}");
}

#[test]
fn a_flood_of_refused_calls_does_not_hide_a_holder() {
    let name = "a_flood_of_refused_calls_does_not_hide_a_holder";
    let Some(object) = object(name) else {
        return;
    };
    let inside = Cgroup::new();
    // The holder's own second thread floods, and so does a stranger.
    let holder = Child::new(|| {
        let (device, over) = (ptmx(), AtomicBool::new(false));
        thread::scope(|threads| {
            threads.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    ask_nonsense(&device);
                }
            });
            let code = hold_for(&device, HOLD, ROUNDS);
            over.store(true, Ordering::Relaxed);
            code
        })
    });
    let stranger = Child::new(|| {
        let (device, end) = (ptmx(), Instant::now() + HOLD * ROUNDS);
        while Instant::now() < end {
            ask_nonsense(&device);
        }
        0
    });
    inside.take(holder.pid);
    // Only the holder's calls are told one by one.
    let slow = WatchedDevice {
        slow: HOLD / 2,
        ..PTMX
    };
    let watch = Watch::new(
        object,
        SensorOptions {
            devices: vec![slow],
            ..options(&[&inside], &[Kind::GpuExit])
        },
    );
    holder.start();
    stranger.start();
    holder.wait_done();
    stranger.wait_done();
    assert_eq!(stranger.finish(), 0);
    if holder.finish() == NOT_PERMITTED {
        eprintln!("SKIPPED {name}: userfaultfd is not permitted");
        return;
    }
    let seen = watch.stop();
    let skipped = seen.assert_none_lost_but_skipped(&[Kind::GpuExit]);
    let calls: Vec<GpuCall> = seen.bodies(kind::GPU_EXIT);
    let held: Vec<&GpuCall> = calls
        .iter()
        .filter(|call| u64::from(call.command) == nix::libc::TIOCGWINSZ)
        .collect();
    assert!(!held.is_empty());
    let rounds = u64::from(ROUNDS);
    assert!((rounds.saturating_sub(skipped)..=rounds).contains(&(held.len() as u64)));
    for call in held {
        assert!(call.hold_ns >= call.latency_ns / 10 * 9, "{call:?}");
    }
}

#[test]
fn a_call_is_that_workload_s_which_is_watched_when_it_returns() {
    const LONG: Duration = Duration::from_secs(2);
    let name = "a_call_is_that_workload_s_which_is_watched_when_it_returns";
    let Some(object) = object(name) else {
        return;
    };
    let (stays, leaves) = (Cgroup::new(), Cgroup::new());
    let (old, new) = (Cgroup::new(), Cgroup::new());
    let holders = [(); 3].map(|()| Child::new(|| hold_for(&ptmx(), LONG, 1)));
    let [stayer, _, mover] = &holders;
    let first = [&stays, &leaves, &old];
    for (holder, cgroup) in holders.iter().zip(first) {
        cgroup.take(holder.pid);
    }
    let options = SensorOptions {
        devices: vec![WatchedDevice {
            slow: LONG / 2,
            ..PTMX
        }],
        ..options(&first, &[Kind::GpuExit])
    };
    let watch = Watch::new(object, options);
    holders.iter().for_each(Child::start);
    let end = Instant::now() + LONG / 2;
    let in_call = || first.map(|cgroup| watch.view.in_call(WorkloadId(cgroup.id())));
    while in_call() != [true; 3] && Instant::now() < end {
        thread::sleep(Duration::from_millis(1));
    }
    let began = in_call();
    new.take(mover.pid);
    watch.handle.set_scope(scope(&[&stays, &new]));
    watch.settle();
    holders.iter().for_each(Child::wait_done);
    let pids = [stayer, mover].map(|holder| holder.pid.as_raw() as u32);
    if holders.map(Child::finish).contains(&NOT_PERMITTED) {
        eprintln!("SKIPPED {name}: userfaultfd is not permitted");
        return;
    }
    assert_eq!(
        began, [true; 3],
        "all were in their call when the scope changed"
    );
    let seen = watch.stop();
    let calls = seen
        .of(kind::GPU_EXIT)
        .map(|it| (it.header.pid, it.header.workload));
    let mut calls: Vec<_> = calls.collect();
    calls.sort_unstable();
    let mut expected = [(pids[0], stays.id()), (pids[1], new.id())];
    expected.sort_unstable();
    assert_eq!(calls, expected);
}

#[test]
fn a_call_under_way_outlives_a_new_kind_and_not_the_hooks() {
    const LONG: Duration = Duration::from_secs(1);
    let name = "a_call_under_way_outlives_a_new_kind_and_not_the_hooks";
    let Some(object) = object(name) else {
        return;
    };
    let inside = Cgroup::new();
    let workload = WorkloadId(inside.id());
    let holders = [(); 2].map(|()| Child::new(|| hold_for(&ptmx(), LONG, 1)));
    for holder in &holders {
        inside.take(holder.pid);
    }
    let watch = Watch::new(object, options(&[&inside], &[Kind::SampleGpu]));
    let entered = || {
        let end = Instant::now() + LONG / 2;
        while !watch.view.in_call(workload) && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        watch.view.in_call(workload)
    };
    let [first, second] = holders;
    first.start();
    let in_call = entered();
    watch
        .handle
        .set_kinds(bits(&[Kind::SampleGpu, Kind::GpuExit]));
    watch.wait_kinds(&[Kind::SampleGpu, Kind::GpuExit]);
    let still_in_call = watch.view.in_call(workload);
    first.wait_done();
    if first.finish() == NOT_PERMITTED {
        eprintln!("SKIPPED {name}: userfaultfd is not permitted");
        return;
    }
    assert!(in_call && still_in_call);
    watch.settle();

    second.start();
    assert!(entered());
    watch.handle.set_kinds(0);
    watch.wait_kinds(&[]);
    assert!(!watch.view.in_call(workload), "nobody would see it return");
    second.wait_done();
    assert_eq!(second.finish(), 0);

    let seen = watch.stop();
    seen.assert_none_lost();
    let samples: Vec<SampleGpu> = seen.bodies(kind::SAMPLE_GPU);
    assert_eq!(samples.iter().map(|sample| sample.calls).sum::<u32>(), 1);
    assert_eq!(seen.count(kind::GPU_EXIT), 1);
}
