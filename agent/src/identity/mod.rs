//! Who and what the numbers in records are: processes, workloads (cgroups), files.
//!
//! Invariants:
//! - Look-ups for policies ([`Tables::process`], [`Tables::workload`], [`Tables::file_path`]) are
//!   answered from memory: no I/O beyond a lock.
//! - [`Tables::facts`] is the opposite: read live, for the decision core.
//! - Every table is bounded; what is dropped is counted.
//! - Nothing here signals, moves, creates or changes a process or cgroup.

mod bounded;
pub mod container;
mod facts;
mod files;
pub mod layout;
mod proc;
mod processes;
mod workloads;

pub use container::{Names, Runtime, names};
pub use facts::MAX_MEMBERS;
pub use files::{FileInfo, kernel_device};
pub use processes::ProcessInfo;
pub use workloads::WorkloadInfo;

use bounded::Bounded;
use layout::Layout;
use palisade_abi::{Exec, FileKey, Fork, Record, kind};
use palisade_core::{ProcessId, Target, TargetFacts, WorkloadId};
use proc::{Stat, Tick};
use processes::{Change, Processes};
use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use workloads::Workloads;

/// Which cgroups are watched.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScopeRoots {
    /// All.
    All,
    /// These and all below them; paths begin with `/` and do not end with it.
    Below(Vec<String>),
}

impl ScopeRoots {
    /// Whether a cgroup is watched.
    pub fn covers(&self, cgroup: &str) -> bool {
        let below = |root: &String| {
            root == "/"
                || cgroup
                    .strip_prefix(root.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        match self {
            ScopeRoots::All => true,
            ScopeRoots::Below(roots) => roots.iter().any(below),
        }
    }
}

/// Sizes of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Processes.
    pub processes: usize,
    /// Workloads.
    pub workloads: usize,
    /// Files.
    pub files: usize,
    /// How long a process is remembered after its end, nanoseconds.
    pub grace_ns: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            processes: 16_384,
            workloads: 4096,
            files: 16_384,
            grace_ns: 30_000_000_000,
        }
    }
}

/// How full the tables are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    /// Processes known.
    pub processes: usize,
    /// Processes dropped to make room.
    pub processes_evicted: u64,
    /// Workloads known.
    pub workloads: usize,
    /// Workloads dropped to make room.
    pub workloads_evicted: u64,
    /// Searches for a workload id that found no cgroup.
    pub workloads_unresolved: u64,
    /// Files known.
    pub files: usize,
    /// Files dropped to make room.
    pub files_evicted: u64,
}

/// Paths of programs that are kept for `EXEC` records still to come: those of two batches.
const EXECUTED_AHEAD: usize = 1024;

/// The tables; clones share them.
#[derive(Clone, Debug)]
pub struct Tables(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    layout: Layout,
    tick: Tick,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    processes: Processes,
    workloads: Workloads,
    files: Bounded<(u32, u64), FileInfo>,
    /// Paths of programs whose `EXEC` records are yet to come, by process id and time.
    executed: Bounded<(u32, u64), String>,
}

impl Tables {
    /// Empty tables for a host with those hierarchies.
    pub fn new(layout: Layout, limits: Limits) -> Self {
        let tick = Tick::of_host();
        Self(Arc::new(Inner {
            layout,
            tick,
            state: RwLock::new(State {
                processes: Processes::new(tick, limits.processes, limits.grace_ns),
                workloads: Workloads::new(limits.workloads),
                files: Bounded::new(limits.files),
                executed: Bounded::new(EXECUTED_AHEAD),
            }),
        }))
    }

    /// The hierarchies.
    pub fn layout(&self) -> &Layout {
        &self.0.layout
    }

    fn tick(&self) -> Tick {
        self.0.tick
    }

    // A panic while holding the lock leaves whole entries behind: the tables stay usable.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters every process that runs now. Call it after the sensors are attached, so that none
    /// falls between.
    pub fn seed_from_proc(&self) -> io::Result<()> {
        let mut pids = proc::pids()?;
        // Parents mostly have the lower number: they are known when their children come.
        pids.sort_unstable();
        for pid in pids {
            let Some(info) = self.look_at(pid, None) else {
                continue;
            };
            let workload = info.workload;
            self.write().processes.apply(Change::Seen(info));
            self.resolve(workload, Some(pid), 0);
        }
        Ok(())
    }

    /// Takes in what records say about processes and workloads. Frequent raw kinds are passed
    /// over: the samples of the same window say the same.
    pub fn observe(&self, records: &[Record]) {
        let mut changes = Vec::new();
        let mut now_ns = 0;
        for record in records {
            let header = &record.header;
            now_ns = now_ns.max(header.time_ns);
            let process = ProcessId {
                pid: header.pid,
                start_ns: header.start_ns,
            };
            let workload = Some(WorkloadId(header.workload)).filter(|id| id.0 != 0);
            let change = match header.kind {
                kind::EXEC => record.get::<Exec>().map(|exec| Change::Exec {
                    process,
                    parent_pid: exec.parent,
                    comm: text(&exec.comm),
                    exe: self.exe_of(process, header.time_ns),
                    workload,
                }),
                kind::FORK => record.get::<Fork>().map(|fork| Change::Fork {
                    parent: process,
                    child: ProcessId {
                        pid: fork.child,
                        start_ns: fork.child_start_ns,
                    },
                    workload,
                }),
                kind::EXIT => Some(Change::Exit {
                    process,
                    at_ns: header.time_ns,
                }),
                kind::SAMPLE_SCHED | kind::SAMPLE_MAPS | kind::SAMPLE_GPU | kind::MODEL_OPEN => {
                    self.touch(process, workload)
                }
                _ => continue,
            };
            changes.extend(change);
            self.resolve(workload, Some(header.pid), header.time_ns);
        }
        if changes.is_empty() {
            return;
        }
        let mut state = self.write();
        for change in changes {
            state.processes.apply(change);
        }
        state.processes.purge(now_ns);
    }

    /// A process that was seen at work: news only if it is unknown or has moved.
    fn touch(&self, process: ProcessId, workload: Option<WorkloadId>) -> Option<Change> {
        if process.pid == 0 {
            return None;
        }
        let known = self.read().processes.get(process).map(|info| info.workload);
        match known {
            Some(before) if workload.is_none() || before == workload => return None,
            _ => {}
        }
        let mut info = self.look_at(process.pid, Some(process))?;
        info.workload = workload.or(info.workload);
        Some(Change::Seen(info))
    }

    /// What /proc says of a pid; of exactly `process` if given.
    fn look_at(&self, pid: u32, process: Option<ProcessId>) -> Option<ProcessInfo> {
        let layout = self.layout();
        let exe = proc::exe(pid);
        let cgroup = layout.cgroup_of_pid(pid).ok();
        let workload = cgroup.and_then(|cgroup| layout.workload_id(&cgroup).ok());
        let stat = Stat::read(pid).ok().filter(|stat| !stat.ended())?;
        if process.is_some_and(|process| self.tick().ticks(process.start_ns) != stat.start_ticks) {
            return None;
        }
        Some(ProcessInfo {
            process: process.unwrap_or(ProcessId {
                pid,
                start_ns: self.tick().nanos(stat.start_ticks),
            }),
            // Its start is looked up in the table.
            parent: Some(ProcessId {
                pid: stat.parent,
                start_ns: 0,
            }),
            comm: stat.comm,
            exe,
            workload,
            exited_ns: None,
        })
    }

    /// The executable of exactly that process since `time_ns`: as the kernel told it with the record, else
    /// from /proc, unless it is gone or another by now.
    fn exe_of(&self, process: ProcessId, time_ns: u64) -> Option<String> {
        let told = self.write().executed.remove(&(process.pid, time_ns));
        if told.as_deref().is_some_and(is_whole) {
            return told;
        }
        let exe = proc::exe(process.pid).filter(|_| proc::verify(process, self.tick()).is_ok());
        exe.or(told)
    }

    /// Takes in the path of the program that an `EXEC` record still to come is about; see
    /// [`ProcessInfo::exe`].
    pub fn executed(&self, record: &Record, path: &str) {
        let at = (record.header.pid, record.header.time_ns);
        self.write().executed.insert(at, path.to_owned());
    }

    fn resolve(&self, id: Option<WorkloadId>, pid: Option<u32>, now_ns: u64) {
        let Some(id) = id else { return };
        if self.read().workloads.wanted(id, now_ns) {
            let cgroup = workloads::find(self.layout(), id, pid);
            self.write().workloads.put(id, cgroup, now_ns);
        }
    }

    fn remember_workload(&self, id: WorkloadId, cgroup: &str) {
        self.write().workloads.put(id, Some(cgroup.to_owned()), 0);
    }

    /// With its start as exact as it is known.
    fn exact(&self, pid: u32, start_ticks: u64) -> ProcessId {
        let known = self
            .read()
            .processes
            .by_ticks(pid, start_ticks)
            .map(|info| info.process);
        known.unwrap_or(ProcessId {
            pid,
            start_ns: self.tick().nanos(start_ticks),
        })
    }

    /// Takes in a file's path as the kernel saw it when `pid` opened it as `fd`. If that is only its end, its
    /// whole path is looked for while the descriptor lasts.
    pub fn file_named(&self, key: FileKey, name: &str, pid: u32, fd: u32, bytes: u64) {
        let info = files::identify(key, name, pid, fd, bytes);
        let mut state = self.write();
        let at = (key.device, key.inode);
        // A path that was checked is not given up for a bare name.
        if let Some(known) = state.files.get_mut(&at)
            && known.verified
            && !info.verified
        {
            known.bytes = bytes;
            return;
        }
        state.files.insert(at, info);
    }

    /// From the table: a process, for a grace period also after its end.
    pub fn process(&self, process: ProcessId) -> Option<ProcessInfo> {
        self.read().processes.get(process).cloned()
    }

    /// From the table: a workload.
    pub fn workload(&self, id: WorkloadId) -> Option<WorkloadInfo> {
        self.read().workloads.get(id).cloned()
    }

    /// From the table: a file. `device` is the kernel's `dev_t` (`major << 20 | minor`).
    pub fn file(&self, device: u32, inode: u64) -> Option<FileInfo> {
        self.read().files.get(&(device, inode)).cloned()
    }

    /// From the table: the path of a file, or its bare name.
    pub fn file_path(&self, device: u32, inode: u64) -> Option<String> {
        self.read()
            .files
            .get(&(device, inode))
            .map(|file| file.path.clone())
    }

    /// Looks at a target as it is now: /proc and cgroupfs are read. Takes 50–100 µs a member
    /// on a busy machine.
    pub fn facts(&self, target: &Target, scope: &ScopeRoots) -> TargetFacts {
        facts::facts(self, target, scope)
    }

    /// How full the tables are.
    pub fn stats(&self) -> Stats {
        let state = self.read();
        Stats {
            processes: state.processes.len(),
            processes_evicted: state.processes.evicted(),
            workloads: state.workloads.len(),
            workloads_evicted: state.workloads.evicted(),
            workloads_unresolved: state.workloads.unresolved,
            files: state.files.len(),
            files_evicted: state.files.evicted(),
        }
    }
}

/// Whether a path that the kernel programs told goes up to the root.
fn is_whole(path: &str) -> bool {
    path.starts_with('/')
}

/// NUL-padded kernel text, lossy.
fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests;
