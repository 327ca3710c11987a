//! The sensor thread: waits, drains, closes windows.
//!
//! Invariants:
//! - No polling while nothing happens: it sleeps in `ppoll` until the kernel has a record, somebody
//!   asks for something, or the window ends. After a record it looks once more by itself, because
//!   the kernel does not wake it for what follows within [`QUIET_NS`].
//! - Batches are numbered without gaps; a record is in exactly one of them.

use super::{
    MAX_BATCH, Scope, SensorError, Sensors,
    attach::{AttachReport, ProgramRuns},
    drain::{Entry, decode},
    load::possible_cpus,
    losses::Losses,
    pids::own_start_ns,
    window::{Told, Windows},
};
use crate::batch::Batch;
use crate::boot_clock;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        time::TimeSpec,
    },
};
use palisade_abi::{Absent, FileKey, Header, Kind, LOSS_SOURCES, QUIET_NS, RECORD_BYTES, Record};
use palisade_core::WorkloadId;
use serde::Serialize;
use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::AsFd,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Where the sensors deliver to. Called on the sensor thread: it must not block.
pub trait Sink {
    /// Records, oldest first.
    fn batch(&mut self, batch: Batch);
    /// The file that a later `MODEL_OPEN` or `MODEL_MAP` is about: its path as the kernel tells it, from
    /// the root or, beginning with `…/`, only the end of it, and the descriptor under which it could
    /// be looked up ([`palisade_abi::NO_FD`]: unknown).
    fn file_name(&mut self, key: FileKey, name: &str, pid: u32, fd: u32, bytes: u64);
    /// The path, in the same form, of the program that a later `EXEC` record is about.
    fn executed(&mut self, _record: &Record, _path: &str) {}
}

/// Numbers about the sensors themselves.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SensorStats {
    /// From the start of the agent's process (to a clock tick) to the first batch that was not
    /// empty, nanoseconds.
    pub first_records_ns: Option<u64>,
    /// Batches delivered.
    pub batches: u64,
    /// Records delivered, samples included.
    pub records: u64,
    /// Windows closed.
    pub windows: u64,
    /// File names delivered.
    pub file_names: u64,
    /// Ring-buffer entries that made no sense.
    pub malformed: u64,
    /// Entries kept of the counter maps.
    pub tracked: usize,
    /// How often a map could not be read to its end: what it counts is told late, or not at all if that goes on.
    pub unread: u64,
    /// Records lost since the start, by [`LOSS_SOURCES`].
    pub lost: BTreeMap<&'static str, u64>,
    /// What the kernel counts about each attached program.
    pub programs: Vec<ProgramRuns>,
}

#[derive(Debug)]
enum Command {
    Kinds(u64),
    Scope(Scope),
    Pressure(Vec<(WorkloadId, PathBuf)>),
}

/// What the sensor thread shares with its handles.
#[derive(Debug)]
pub(super) struct Shared {
    wake: EventFd,
    stop: AtomicBool,
    commands: Mutex<VecDeque<Command>>,
    report: Mutex<AttachReport>,
    stats: Mutex<SensorStats>,
    /// Batches that a full ring buffer makes.
    ring_batches: u32,
}

impl Shared {
    pub(super) fn new(ring_bytes: u32) -> Result<Self, SensorError> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| SensorError::Wait(errno.into()))?;
        Ok(Self {
            wake,
            stop: AtomicBool::new(false),
            commands: Mutex::default(),
            report: Mutex::default(),
            stats: Mutex::default(),
            ring_batches: ring_bytes / (RECORD_BYTES * MAX_BATCH) as u32 + 1,
        })
    }

    pub(super) fn set_report(&self, report: AttachReport) {
        *lock(&self.report) = report;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that panics is called under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Changes and stops the sensors from any thread.
#[derive(Clone, Debug)]
pub struct SensorHandle {
    shared: Arc<Shared>,
}

impl SensorHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Asks for exactly these kinds (bits of [`Kind::bit`]). Takes effect within the sensor
    /// thread's next turn; [`SensorHandle::report`] shows it.
    pub fn set_kinds(&self, kinds: u64) {
        self.command(Command::Kinds(kinds));
    }

    /// Changes whose events are recorded, in the same way.
    pub fn set_scope(&self, scope: Scope) {
        self.command(Command::Scope(scope));
    }

    /// Changes the cgroups whose pressure is told, in the same way.
    pub fn set_pressure(&self, groups: Vec<(WorkloadId, PathBuf)>) {
        self.command(Command::Pressure(groups));
    }

    /// Ends [`Sensors::run`] after a last window.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
    }

    /// What is attached, and why something is not.
    pub fn report(&self) -> AttachReport {
        lock(&self.shared.report).clone()
    }

    /// The numbers as of the last window's end.
    pub fn stats(&self) -> SensorStats {
        lock(&self.shared.stats).clone()
    }

    fn command(&self, command: Command) {
        lock(&self.shared.commands).push_back(command);
        self.wake();
    }

    fn wake(&self) {
        // It fails only if the counter is about to overflow: then the thread is awake already.
        let _ = self.shared.wake.write(1);
    }
}

struct Turn<'a> {
    sink: &'a mut dyn Sink,
    seq: u64,
    /// Bits of the kinds that were told to be absent.
    absent: u64,
    /// They are to be told anew.
    tell_absent: bool,
    /// The ring was not empty since the last sleep.
    read_some: bool,
    windows: Windows,
    losses: Losses,
    counts: Counts,
}

/// What the thread counts itself.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    first_records_ns: Option<u64>,
    batches: u64,
    records: u64,
    windows: u64,
    file_names: u64,
    malformed: u64,
}

impl SensorStats {
    /// As of a window's end. The map is changed and not made anew: it comes ten times a second.
    fn update(
        &mut self,
        counts: Counts,
        state: &Windows,
        losses: &Losses,
        programs: Vec<ProgramRuns>,
    ) {
        let Counts {
            first_records_ns,
            batches,
            records,
            windows,
            file_names,
            malformed,
        } = counts;
        self.first_records_ns = first_records_ns;
        self.batches = batches;
        self.records = records;
        self.windows = windows;
        self.file_names = file_names;
        self.malformed = malformed;
        self.tracked = state.tracked();
        self.unread = state.unread() + losses.unread();
        let lost = LOSS_SOURCES.iter().copied().zip(losses.totals());
        self.lost.extend(lost);
        self.programs = programs;
    }
}

impl Sensors {
    /// Delivers to `sink` until [`SensorHandle::stop`]. Ends with a last window, everything
    /// detached. Fails only if waiting fails.
    pub fn run(mut self, sink: &mut dyn Sink) -> Result<(), SensorError> {
        let window = u64::try_from(self.window.as_nanos()).unwrap_or(u64::MAX);
        let mut turn = Turn {
            sink,
            seq: 0,
            absent: 0,
            tell_absent: true,
            read_some: false,
            windows: Windows::new(std::mem::take(&mut self.families)),
            losses: Losses::new(possible_cpus()?),
            counts: Counts::default(),
        };
        let mut deadline = boot_clock::now_ns() + window;
        loop {
            self.obey(&mut turn);
            let stop = self.shared.stop.load(Ordering::Acquire);
            let more = self.deliver_raw(&mut turn);
            let now = boot_clock::now_ns();
            if stop || now >= deadline {
                self.close_window(&mut turn);
                // Late by whole windows: they are skipped, not made up for in a burst.
                deadline += window * (1 + now.saturating_sub(deadline) / window);
            }
            if stop {
                self.hooks.detach(&mut self.ebpf, 0);
                self.under_way.forget_between(self.hooked, 0)?;
                self.shared.set_report(self.hooks.report());
                return Ok(());
            }
            if !more {
                let quiet = std::mem::take(&mut turn.read_some);
                self.wait(deadline, quiet)?;
            }
        }
    }

    fn obey(&mut self, turn: &mut Turn<'_>) {
        loop {
            // The lock is not held while programs are attached.
            let Some(command) = lock(&self.shared.commands).pop_front() else {
                return;
            };
            // What was recorded under the old terms is delivered under them; at most what the ring
            // holds by now.
            let mut batches = self.shared.ring_batches;
            while self.deliver_raw(turn) && batches > 0 {
                batches -= 1;
            }
            let result = match &command {
                Command::Kinds(kinds) => {
                    turn.tell_absent = true;
                    self.apply_kinds(*kinds)
                }
                Command::Scope(scope) => self.apply_scope(scope),
                Command::Pressure(groups) => {
                    self.pressure.set(groups.clone());
                    Ok(())
                }
            };
            if let Err(error) = result {
                tracing::error!(?command, %error, "the sensors could not be changed");
            }
        }
    }

    /// Sleeps until the deadline at most. `quiet`: for [`QUIET_NS`], and the ring does not end it.
    fn wait(&self, deadline: u64, quiet: bool) -> Result<(), SensorError> {
        let left = deadline.saturating_sub(boot_clock::now_ns());
        let mut fds = [
            PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.ring.as_fd(), PollFlags::POLLIN),
        ];
        let (fds, left) = if quiet {
            (&mut fds[..1], left.min(QUIET_NS))
        } else {
            (&mut fds[..], left)
        };
        match ppoll(
            fds,
            Some(TimeSpec::from_duration(Duration::from_nanos(left))),
            None,
        ) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(SensorError::Wait(errno.into())),
        }
        if fds[0].any() != Some(false) {
            // It cannot block, and nobody else reads it.
            let _ = self.shared.wake.read();
        }
        Ok(())
    }

    /// Delivers at most one batch of raw records; whether there may be more.
    fn deliver_raw(&mut self, turn: &mut Turn<'_>) -> bool {
        let mut records = Vec::new();
        let full = self.drain(turn, &mut records);
        if !records.is_empty() {
            turn.deliver(records, false);
        }
        full
    }

    /// Takes out records until the ring is empty or the batch full.
    fn drain(&mut self, turn: &mut Turn<'_>, records: &mut Vec<Record>) -> bool {
        let room = MAX_BATCH.saturating_sub(records.len());
        // Names and records that nobody asked for count too: a flood of them must not keep the
        // thread from closing the window.
        for _ in 0..room {
            let Some(item) = self.ring.next() else {
                return false;
            };
            turn.read_some = true;
            match decode(&item) {
                Entry::Record(record) => {
                    if record.header.kind == Kind::Exit as u16 {
                        turn.windows
                            .ended((record.header.pid, record.header.start_ns));
                        self.pids.ended(record.header.pid, record.header.start_ns);
                    }
                    if wants(self.wanted, &record) {
                        records.push(record);
                    }
                }
                Entry::Executed { record, path } => {
                    if wants(self.wanted, &record) {
                        if let Some(path) = path {
                            turn.sink.executed(&record, &path);
                        }
                        records.push(record);
                    }
                }
                Entry::Name {
                    key,
                    name,
                    pid,
                    fd,
                    bytes,
                } => {
                    turn.counts.file_names += 1;
                    turn.sink.file_name(key, &name, pid, fd, bytes);
                }
                Entry::Malformed => turn.counts.malformed += 1,
            }
        }
        true
    }

    fn close_window(&mut self, turn: &mut Turn<'_>) {
        let mut records = Vec::new();
        // What is in the ring happened before the window's end. Under a flood, what comes while it
        // is emptied belongs to the next window.
        let mut batches = self.shared.ring_batches;
        while self.drain(turn, &mut records) && batches > 0 {
            turn.deliver(std::mem::take(&mut records), false);
            batches -= 1;
        }
        let now_ns = boot_clock::now_ns();
        turn.windows.collect(&mut Told {
            now_ns,
            wanted: self.wanted,
            added: self.maps.added.get(&0, 0).ok().map(|added| added.0),
            records: &mut records,
        });
        if self.wanted & Kind::SamplePressure.bit() == 0 {
            self.pressure.pause();
        } else {
            self.pressure.collect(now_ns, &mut records);
        }
        // With the window that a skipped run is missing from: nothing may be decided on it before that is known.
        let runs = self.hooks.runs();
        turn.losses
            .collect(&mut self.maps.losses, &runs, now_ns, &mut records);
        records.extend(self.tell_absent(turn, now_ns));
        turn.deliver(records, true);

        turn.windows.finish();
        turn.counts.windows += 1;
        lock(&self.shared.stats).update(turn.counts, &turn.windows, &turn.losses, runs);
    }
}

impl Sensors {
    /// A record of what cannot be had, if that was not told since the kinds were set last. Only
    /// then can it change.
    fn tell_absent(&self, turn: &mut Turn<'_>, now_ns: u64) -> Option<Record> {
        if !turn.tell_absent || self.wanted & Kind::Absent.bit() == 0 {
            return None;
        }
        turn.tell_absent = false;
        let kinds = self.hooks.report().absent() & self.wanted;
        let before = std::mem::replace(&mut turn.absent, kinds);
        let header = Header {
            time_ns: now_ns,
            ..Header::default()
        };
        let body = Absent {
            kinds,
            reserved: [0; 2],
        };
        (kinds | before != 0).then(|| Record::new(header, body))
    }
}

fn wants(kinds: u64, record: &Record) -> bool {
    record.kind().is_some_and(|kind| kinds & kind.bit() != 0)
}

impl Turn<'_> {
    /// Delivers records in batches of [`MAX_BATCH`]; the last one closes the window, if asked.
    fn deliver(&mut self, mut records: Vec<Record>, window_end: bool) {
        // CPUs reserve their slots in another order than they read the clock.
        records.sort_by_key(|record| record.header.time_ns);
        let newest = records.last().map_or(0, |record| record.header.time_ns);
        let now_ns = boot_clock::now_ns().max(newest);
        if self.counts.first_records_ns.is_none() && !records.is_empty() {
            self.counts.first_records_ns = own_start_ns().map(|start| now_ns.saturating_sub(start));
        }
        let parts = records.len().div_ceil(MAX_BATCH).max(1);
        for part in 0..parts {
            let end = records.len().min((part + 1) * MAX_BATCH);
            let slice = &records[part * MAX_BATCH..end];
            self.counts.records += slice.len() as u64;
            self.counts.batches += 1;
            self.sink.batch(Batch {
                seq: self.seq,
                now_ns,
                records: slice.into(),
                window_end: window_end && part + 1 == parts,
            });
            self.seq += 1;
        }
    }
}
