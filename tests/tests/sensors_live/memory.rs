//! Memory: page faults agree with `getrusage`, victims of a cgroup at its limit are told.
//!
//! Invariants: the limits are those of cgroups that the test made; only its own children are killed.

use crate::{
    cpu::{gate, open_gate, schedstat_at_rest},
    support::*,
};
use nix::{libc, sys::wait::WaitStatus, unistd::Pid};
use palisade::identity::layout::Layout;
use palisade_abi::{Kind, OomVictim, SampleFaults, kind};
use std::{
    fs,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

const PAGE: usize = 4096;

/// Fresh anonymous memory, without huge pages.
pub fn fresh(pages: usize) -> *mut u8 {
    // SAFETY: fresh memory, handed out as an address only.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            pages * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        libc::madvise(at, pages * PAGE, libc::MADV_NOHUGEPAGE);
        at.cast()
    }
}

pub fn touch(at: *mut u8, pages: usize) {
    for page in 0..pages {
        // SAFETY: within what `fresh` mapped.
        unsafe { at.add(page * PAGE).write_volatile(1) };
    }
}

/// Page faults of a sleeping process, minor and major, as `getrusage` counts them.
fn faults_at_rest(pid: Pid) -> u64 {
    schedstat_at_rest(pid);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let (_, rest) = stat.rsplit_once(')').expect("stat");
    let field = |number: usize| -> u64 {
        let word = rest.split_whitespace().nth(number - 3).expect("a field");
        word.parse().expect("a number")
    };
    field(10) + field(12)
}

#[test]
fn page_faults_are_counted_exactly_by_the_mode_they_were_taken_in() {
    let Some(object) = object("page_faults_are_counted_exactly_by_the_mode_they_were_taken_in")
    else {
        return;
    };
    const TOUCHED: usize = 700;
    const COPIED: usize = 300;
    let inside = Cgroup::new();
    let (gate, open) = gate();
    // Everything that the child touches besides is touched before: it makes the same steps twice,
    // and only the second time is compared.
    let child = Child::new(move || {
        let zero = fs::File::open("/dev/zero").expect("/dev/zero");
        for round in 0..2 {
            if round == 1 {
                gate.pass();
            }
            let (touched, copied) = (fresh(TOUCHED), fresh(COPIED));
            touch(touched, TOUCHED);
            // SAFETY: `copied` is as long.
            let room = unsafe { std::slice::from_raw_parts_mut(copied, COPIED * PAGE) };
            if (&zero).read_exact(room).is_err() {
                return 1;
            }
        }
        0
    });
    inside.take(child.pid);
    let watch = Watch::new(object, options(&[&inside], &[Kind::SampleFaults]));
    child.start();
    let before = faults_at_rest(child.pid);
    watch.settle();
    let skip = watch.so_far();
    open_gate(&open);
    child.wait_done();
    let made = faults_at_rest(child.pid) - before;
    let pid = child.pid;
    let handle = watch.handle.clone();
    let mut seen = watch.stop();
    assert_eq!(child.finish(), 0);
    tell_costs(&handle);
    seen.assert_none_lost();
    seen.assert_from(pid, inside.id());
    seen.records.drain(..skip);
    let samples: Vec<SampleFaults> = seen.bodies(kind::SAMPLE_FAULTS);
    let user: u64 = samples.iter().map(|s| s.user).sum();
    let kernel: u64 = samples.iter().map(|s| s.kernel).sum();
    assert_eq!(user + kernel, made);
    // Seldom one more: the kernel may take a page of the program away meanwhile.
    let (touched, copied) = (TOUCHED as u64, COPIED as u64);
    assert!((touched..touched + 10).contains(&user), "{user}");
    assert!((copied..copied + 10).contains(&kernel), "{kernel}");
}

/// A memory cgroup of the test's own.
pub struct Limited(pub PathBuf);

impl Limited {
    /// `None` where there is no controller. `file` is the limit on v2; v1 has one only.
    pub fn new(file: &str, bytes: u64) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let layout = Layout::detect().ok()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("/palisade-test-{}-memory{number}", std::process::id());
        let dir = layout.controller_dir("memory", &name)?;
        fs::create_dir(&dir).ok()?;
        let this = Self(dir);
        let set = |file: &str| fs::write(this.0.join(file), bytes.to_string());
        set(file).or_else(|_| set("memory.limit_in_bytes")).ok()?;
        // Without it the excess would go to swap, where there is some.
        let _ = fs::write(this.0.join("memory.swap.max"), "0");
        let _ = fs::write(this.0.join("memory.swappiness"), "0");
        Some(this)
    }

    fn take(&self, pid: Pid) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("moved into the cgroup");
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let end = Instant::now() + PATIENCE;
        while fs::remove_dir(&self.0).is_err() && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Puts the child into the limited cgroup, and into `inside` where that is another hierarchy.
pub fn limit(inside: &Cgroup, limited: &Limited, pid: Pid) -> u64 {
    inside.take(pid);
    limited.take(pid);
    let layout = Layout::detect().expect("a cgroup hierarchy");
    if limited.0.starts_with(&layout.id_root) {
        fs::metadata(&limited.0).expect("cgroup").ino()
    } else {
        inside.id()
    }
}

#[test]
fn one_victim_is_told_for_one_that_the_kernel_killed() {
    let name = "one_victim_is_told_for_one_that_the_kernel_killed";
    let Some(object) = object(name) else {
        return;
    };
    let Some(limited) = Limited::new("memory.max", 16 << 20) else {
        eprintln!("SKIPPED {name}: no memory controller");
        return;
    };
    let inside = Cgroup::new();
    let child = Child::new(|| {
        let pages = (64 << 20) / PAGE;
        touch(fresh(pages), pages);
        0
    });
    let pid = child.pid;
    let workload = limit(&inside, &limited, pid);
    let start = start_ticks(pid);
    let mut options = options(&[&inside], &[Kind::OomVictim, Kind::Exit]);
    options.scope = palisade::sensors::Scope::Cgroups(vec![palisade_core::WorkloadId(workload)]);
    let watch = Watch::new(object, options);
    child.start();
    // Not reaped before its end was seen, so that its pid stays its own.
    assert_eq!(
        child.reap(),
        WaitStatus::Signaled(pid, nix::sys::signal::Signal::SIGKILL, false)
    );
    let handle = watch.handle.clone();
    let seen = watch.stop();
    tell_costs(&handle);
    seen.assert_none_lost();
    seen.assert_from(pid, workload);
    let victims: Vec<_> = seen.of(kind::OOM_VICTIM).collect();
    assert_eq!(victims.len(), 1);
    let hz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    let hz = hz.ok().flatten().expect("CLK_TCK") as u64;
    assert_eq!(victims[0].header.start_ns / (1_000_000_000 / hz), start);
    let body: OomVictim = victims[0].get().expect("a victim");
    // The victim itself asked for the memory.
    assert_eq!(
        (body.by_pid, body.by_workload),
        (pid.as_raw() as u32, workload)
    );
    assert_eq!(seen.count(kind::EXIT), 1);
}
