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
mod observe;
mod proc;
mod processes;
mod search;
mod workloads;

pub use container::{Names, Runtime, names};
pub use facts::MAX_MEMBERS;
pub use files::{FileInfo, kernel_device};
pub use processes::ProcessInfo;
pub use workloads::WorkloadInfo;

use bounded::Bounded;
use layout::Layout;
use palisade_abi::{FileKey, Record};
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
    /// Searches for a workload id that found no cgroup, or were not made because too many waited.
    pub workloads_unresolved: u64,
    /// Walks through the tree of cgroups for what was found in no cheaper way.
    pub workload_walks: u64,
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
            self.resolve(workload, pid, 0);
        }
        Ok(())
    }

    /// What /proc says of a pid; of exactly `process` if given.
    fn look_at(&self, pid: u32, process: Option<ProcessId>) -> Option<ProcessInfo> {
        let layout = self.layout();
        let exe = proc::exe(pid);
        // One beyond the root of the agent's own cgroup namespace is not below the mount.
        let is_beyond = |cgroup: &String| cgroup == "/.." || cgroup.starts_with("/../");
        let cgroup = layout.cgroup_of_pid(pid).ok();
        let cgroup = cgroup.filter(|cgroup| !is_beyond(cgroup));
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

    fn remember_workload(&self, id: WorkloadId, cgroup: &str) {
        self.write().workloads.put(id, cgroup.to_owned());
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
            workload_walks: state.workloads.walks,
            files: state.files.len(),
            files_evicted: state.files.evicted(),
        }
    }
}

/// Whether a path that the kernel programs told goes up to the root.
fn is_whole(path: &str) -> bool {
    path.starts_with('/')
}

#[cfg(test)]
mod tests;
