//! What the live tests of the sensors share: a cgroup, a child that waits to be let go, running
//! sensors and what they delivered.
//!
//! Invariants: whatever is made here goes away on drop, also when a test panics; a gap between
//! batches, or a record from the future, fails the test that sees it.

use nix::{
    fcntl::{OFlag, open},
    sys::{
        stat::Mode,
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork, pipe, read, write},
};
use palisade::{
    batch::Batch,
    identity::layout::{Flavour, Layout},
    sensors::{InFlightView, Scope, SensorHandle, SensorOptions, Sensors, Sink, WatchedDevice},
};
use palisade_abi::{Body, COMMAND_BITS, FileKey, Kind, LOSS_HOOK_SKIPPED, Lost, Record, kind};
use palisade_core::WorkloadId;
pub use palisade_tests::PATIENCE;
use palisade_tests::cannot_run_live;
use std::{
    fs,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

pub const WINDOW: Duration = Duration::from_millis(50);
/// `/dev/ptmx`
pub const PTMX: WatchedDevice = WatchedDevice {
    class: 0,
    major: 5,
    minor: Some(2),
    slow: Duration::ZERO,
    command_bits: COMMAND_BITS,
};

/// The object, or `None` after a word on standard error where there is nothing to test.
pub fn object(test: &str) -> Option<&'static [u8]> {
    if let Some(why) = cannot_run_live() {
        eprintln!("SKIPPED {test}: {why}");
        return None;
    }
    palisade::ebpf_object::embedded()
}

fn layout() -> Layout {
    Layout::detect().expect("a cgroup hierarchy")
}

/// A cgroup of the test's own in the hierarchy whose directories name workloads, removed at the
/// end.
pub struct Cgroup(pub PathBuf);

impl Cgroup {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("palisade-test-{}-sensors{number}", std::process::id());
        let dir = layout().id_root.join(name);
        fs::create_dir(&dir).expect("cgroup");
        Self(dir)
    }

    pub fn below(&self, name: &str) -> Self {
        let dir = self.0.join(name);
        fs::create_dir(&dir).expect("cgroup");
        Self(dir)
    }

    pub fn id(&self) -> u64 {
        fs::metadata(&self.0).expect("cgroup").ino()
    }

    pub fn take(&self, pid: Pid) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("moved into the cgroup");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A forked child that waits for a word before it does `work`, and for another one after it.
pub struct Child {
    pub pid: Pid,
    go: OwnedFd,
    done: OwnedFd,
    reaped: bool,
}

impl Child {
    pub fn new(work: impl FnOnce() -> i32) -> Self {
        let (go_read, go) = pipe().expect("pipe");
        let (done, done_write) = pipe().expect("pipe");
        // SAFETY: counted system calls must come from a process in which nothing else runs, and
        // only `fork` makes one that shares no thread with the test. The child makes system calls
        // and ends with `_exit`; glibc keeps its allocator usable after a fork.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Parent { child } => Self {
                pid: child,
                go,
                done,
                reaped: false,
            },
            ForkResult::Child => {
                drop((go, done));
                let mut word = [0];
                let started = read(&go_read, &mut word) == Ok(1);
                let code = if started { work() } else { 99 };
                let _ = write(&done_write, &[1]);
                let _ = read(&go_read, &mut word);
                // SAFETY: as above; `exit` would run the test harness's handlers.
                unsafe { nix::libc::_exit(code) }
            }
        }
    }

    pub fn start(&self) {
        assert_eq!(write(&self.go, &[1]), Ok(1));
    }

    pub fn wait_done(&self) {
        assert_eq!(read(&self.done, &mut [0]), Ok(1), "the child died");
    }

    /// Lets it end; its exit code.
    pub fn finish(mut self) -> i32 {
        self.start();
        self.reaped = true;
        match waitpid(self.pid, None) {
            Ok(WaitStatus::Exited(_, code)) => code,
            other => panic!("child ended with {other:?}"),
        }
    }

    /// Waits for its end, whatever ends it.
    pub fn reap(mut self) -> WaitStatus {
        self.reaped = true;
        waitpid(self.pid, None).expect("a child")
    }

    pub fn run(self) -> i32 {
        self.start();
        self.wait_done();
        self.finish()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

#[derive(Default)]
pub struct Seen {
    pub records: Vec<Record>,
    /// Paths of model files, and who opened them.
    pub names: Vec<(FileKey, String, u32)>,
    /// Paths of executed programs, and who executed them.
    pub programs: Vec<(u32, String)>,
    windows: u64,
    next_seq: u64,
}

struct Collector {
    seen: Arc<Mutex<Seen>>,
    hold: Arc<AtomicBool>,
}

impl Sink for Collector {
    fn batch(&mut self, batch: Batch) {
        while self.hold.load(Ordering::Acquire) {
            thread::sleep(Duration::from_millis(1));
        }
        let mut seen = self.seen.lock().expect("lock");
        assert_eq!(batch.seq, seen.next_seq, "a gap between batches");
        assert!(batch.records.len() <= palisade::sensors::MAX_BATCH);
        assert!(
            batch
                .records
                .iter()
                .all(|record| record.header.time_ns <= batch.now_ns)
        );
        seen.next_seq += 1;
        seen.windows += u64::from(batch.window_end);
        seen.records.extend(batch.records.iter());
    }

    fn file_name(&mut self, key: FileKey, path: &str, pid: u32, _fd: u32, _bytes: u64) {
        self.seen
            .lock()
            .expect("lock")
            .names
            .push((key, path.to_owned(), pid));
    }

    fn executed(&mut self, record: &Record, path: &str) {
        let mut seen = self.seen.lock().expect("lock");
        seen.programs.push((record.header.pid, path.to_owned()));
    }
}

/// Running sensors.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    pub hold: Arc<AtomicBool>,
    pub handle: SensorHandle,
    pub view: InFlightView,
    thread: Option<JoinHandle<()>>,
}

pub fn scope(cgroups: &[&Cgroup]) -> Scope {
    Scope::Cgroups(cgroups.iter().map(|it| WorkloadId(it.id())).collect())
}

pub fn options(scope: &[&Cgroup], kinds: &[Kind]) -> SensorOptions {
    SensorOptions {
        scope: self::scope(scope),
        devices: vec![PTMX],
        kinds: bits(kinds),
        window: WINDOW,
        ring_bytes: 1 << 20,
        max_processes: 256,
        model_suffixes: vec![".safetensors".into(), "gguf".into()],
        model_min_bytes: 1 << 30,
        cgroup_v2: layout().flavour == Flavour::V2,
        nodes: None,
        pressure: Vec::new(),
        avoid: Vec::new(),
        cuda_library: None,
    }
}

pub fn bits(kinds: &[Kind]) -> u64 {
    kinds.iter().fold(0, |bits, kind| bits | kind.bit())
}

impl Watch {
    pub fn new(object: &[u8], options: SensorOptions) -> Self {
        let mut sensors = Sensors::load(object, options).unwrap_or_else(|error| panic!("{error}"));
        sensors
            .require_all()
            .unwrap_or_else(|error| panic!("{error}"));
        Self::of(sensors)
    }

    /// Runs sensors, whatever they could attach.
    pub fn of(sensors: Sensors) -> Self {
        let (handle, view) = (sensors.handle(), sensors.in_flight());
        let (seen, hold) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let mut sink = Collector {
            seen: seen.clone(),
            hold: hold.clone(),
        };
        let thread = thread::spawn(move || sensors.run(&mut sink).expect("sensors"));
        Self {
            seen,
            hold,
            handle,
            view,
            thread: Some(thread),
        }
    }

    /// Waits until two more windows have ended: whatever happened before has been delivered.
    pub fn settle(&self) {
        let windows = || self.seen.lock().expect("lock").windows;
        let (start, end) = (windows(), Instant::now() + PATIENCE);
        while windows() < start + 2 {
            assert!(Instant::now() < end, "no window ended");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Records delivered so far.
    pub fn so_far(&self) -> usize {
        self.seen.lock().expect("lock").records.len()
    }

    /// Waits until the report shows these kinds.
    pub fn wait_kinds(&self, kinds: &[Kind]) {
        let end = Instant::now() + PATIENCE;
        while self.handle.report().kinds & bits(kinds) != bits(kinds)
            || (kinds.is_empty() && self.handle.report().kinds != 0)
        {
            assert!(Instant::now() < end, "kinds were not changed");
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn stop(mut self) -> Seen {
        self.settle();
        self.handle.stop();
        self.thread
            .take()
            .expect("running")
            .join()
            .expect("sensor thread");
        std::mem::take(&mut *self.seen.lock().expect("lock"))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.hold.store(false, Ordering::Release);
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Seen {
    pub fn count(&self, kind: u16) -> usize {
        self.of(kind).count()
    }

    pub fn of(&self, kind: u16) -> impl Iterator<Item = &Record> {
        self.records
            .iter()
            .filter(move |record| record.header.kind == kind)
    }

    pub fn bodies<B: Body>(&self, kind: u16) -> Vec<B> {
        self.of(kind).filter_map(Record::get).collect()
    }

    /// Those of one workload.
    pub fn bodies_of<B: Body>(&self, kind: u16, workload: u64) -> Vec<B> {
        let records = self.of(kind).filter(|it| it.header.workload == workload);
        records.filter_map(Record::get).collect()
    }

    pub fn lost(&self, source: u32) -> u64 {
        let lost = self.bodies::<Lost>(kind::LOST).into_iter();
        lost.filter(|lost| lost.source == source)
            .map(|lost| lost.count)
            .sum()
    }

    pub fn assert_none_lost(&self) {
        assert_eq!(self.bodies::<Lost>(kind::LOST), [], "records were lost");
    }

    /// How often the kernel did not run a program for one of these kinds, none of which is a process's end. It
    /// does not say whose event that was.
    pub fn skipped(&self, kinds: &[Kind]) -> u64 {
        // At a process's end what was kept for the others is only cleared up.
        let feeds = |of: u64| of & bits(kinds) != 0 && of & Kind::Exit.bit() == 0;
        let lost = self.bodies::<Lost>(kind::LOST).into_iter();
        lost.filter(|lost| lost.source == LOSS_HOOK_SKIPPED && feeds(lost.kinds))
            .map(|lost| lost.count)
            .sum()
    }

    /// Nothing was lost but calls that the kernel did not run our programs for, which it counts; how often that
    /// was for these kinds.
    ///
    /// From 7.0 on that is frequent on an emulated processor (docs/kernels.md): presumably a program may be
    /// preempted there, and until it goes on, programs of others are skipped on its CPU.
    pub fn assert_none_lost_but_skipped(&self, kinds: &[Kind]) -> u64 {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("release");
        let major = release.split('.').next().and_then(|word| word.parse().ok());
        if major < Some(7) {
            self.assert_none_lost();
        }
        let others = self.bodies::<Lost>(kind::LOST).into_iter();
        let others = others.filter(|lost| lost.source != LOSS_HOOK_SKIPPED);
        assert_eq!(others.collect::<Vec<_>>(), [], "records were lost");
        self.skipped(kinds)
    }

    /// Every record is this process's, in this workload, with its true start.
    pub fn assert_from(&self, pid: Pid, workload: u64) {
        for record in self
            .records
            .iter()
            .filter(|record| record.header.kind != kind::LOST)
        {
            assert_eq!(record.header.pid, pid.as_raw() as u32, "{record:?}");
            assert_eq!(record.header.workload, workload, "{record:?}");
            assert_ne!(record.header.start_ns, 0);
        }
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

/// A driver call on `/dev/ptmx` that always works.
pub fn ask_window_size(fd: &OwnedFd) -> i32 {
    let mut size = [0_u16; 4];
    // SAFETY: the raw call is what is counted; `size` is as large as `struct winsize`.
    unsafe { nix::libc::ioctl(fd.as_raw_fd(), nix::libc::TIOCGWINSZ, size.as_mut_ptr()) }
}

/// A driver call that the driver refuses with ENOTTY.
pub fn ask_nonsense(fd: &OwnedFd) -> i32 {
    // SAFETY: no driver knows the command, so none looks at the argument.
    unsafe { nix::libc::ioctl(fd.as_raw_fd(), 0x7f7f, 0) }
}

pub fn ptmx() -> OwnedFd {
    open(
        "/dev/ptmx",
        OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .expect("/dev/ptmx")
}

pub fn null() -> OwnedFd {
    open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).expect("/dev/null")
}

/// A path as the kernel programs tell it: from the root of the mount namespace. A guest's tests run in a folder of it.
pub fn whole(path: &Path) -> String {
    let root = std::env::var_os("PALISADE_VM").map_or("", |_| "/host");
    format!("{root}{}", path.display())
}

/// Start of a process in clock ticks, from /proc.
pub fn start_ticks(pid: Pid) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let (_, rest) = stat.rsplit_once(')').expect("stat");
    rest.split_whitespace()
        .nth(19)
        .expect("field 22")
        .parse()
        .expect("number")
}
