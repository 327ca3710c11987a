//! The process table: who is who, for a grace period beyond their end.
//!
//! Invariant: keyed by pid *and* start; the start is compared as /proc shows it (clock ticks), so
//! that a process seeded from /proc and the same process in a record are one entry. No I/O here.

use super::bounded::Bounded;
use super::proc::Tick;
use palisade_core::{ProcessId, WorkloadId};
use std::collections::{HashMap, VecDeque};

/// What is known of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Who. The start is rounded down to a clock tick while only /proc has told of it.
    pub process: ProcessId,
    /// Its parent when it was last seen to fork or exec, if that is known.
    pub parent: Option<ProcessId>,
    /// Name of its first thread. It can change that itself: never decide by it.
    pub comm: String,
    /// Executable's path; only the end of it if it begins with `…/`. `None` for a kernel thread, or if
    /// it was gone too soon to tell.
    pub exe: Option<String>,
    /// Its cgroup when last seen.
    pub workload: Option<WorkloadId>,
    /// When it ended, `CLOCK_BOOTTIME` nanoseconds.
    pub exited_ns: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    pid: u32,
    ticks: u64,
}

/// What happened to a process, with all that had to be read for it.
#[derive(Debug)]
pub(super) enum Change {
    Seen(ProcessInfo),
    Exec {
        process: ProcessId,
        parent_pid: u32,
        comm: String,
        exe: Option<String>,
        workload: Option<WorkloadId>,
    },
    Fork {
        parent: ProcessId,
        child: ProcessId,
        workload: Option<WorkloadId>,
    },
    Exit {
        process: ProcessId,
        workload: Option<WorkloadId>,
        at_ns: u64,
    },
    /// A record says where it is now; news only of one that is known.
    Moved {
        process: ProcessId,
        workload: Option<WorkloadId>,
    },
}

#[derive(Debug)]
pub(super) struct Processes {
    tick: Tick,
    entries: Bounded<Key, ProcessInfo>,
    /// The latest start seen of each pid.
    current: HashMap<u32, u64>,
    /// Ends, oldest first; at most `capacity`.
    ended: VecDeque<(u64, Key)>,
    grace_ns: u64,
    capacity: usize,
}

impl Processes {
    pub(super) fn new(tick: Tick, capacity: usize, grace_ns: u64) -> Self {
        Self {
            tick,
            entries: Bounded::new(capacity),
            current: HashMap::new(),
            ended: VecDeque::new(),
            grace_ns,
            capacity,
        }
    }

    fn key(&self, process: ProcessId) -> Key {
        Key {
            pid: process.pid,
            ticks: self.tick.ticks(process.start_ns),
        }
    }

    pub(super) fn get(&self, process: ProcessId) -> Option<&ProcessInfo> {
        self.entries.get(&self.key(process))
    }

    /// The process that /proc shows with that start.
    pub(super) fn by_ticks(&self, pid: u32, ticks: u64) -> Option<&ProcessInfo> {
        self.entries.get(&Key { pid, ticks })
    }

    fn by_pid(&self, pid: u32) -> Option<ProcessId> {
        let ticks = *self.current.get(&pid)?;
        Some(self.entries.get(&Key { pid, ticks })?.process)
    }

    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Seen(info) => self.seen(info),
            Change::Exec {
                process,
                parent_pid,
                comm,
                exe,
                workload,
            } => {
                let known = self.get(process);
                let parent = known
                    .and_then(|info| info.parent)
                    .filter(|parent| parent.pid == parent_pid)
                    .or_else(|| self.by_pid(parent_pid));
                let workload = workload.or_else(|| self.get(process)?.workload);
                self.put(ProcessInfo {
                    process,
                    parent,
                    comm,
                    exe,
                    workload,
                    exited_ns: None,
                });
            }
            Change::Fork {
                parent,
                child,
                workload,
            } => {
                // Until it executes something else, a child is what its parent is.
                let like = self.get(parent);
                let info = ProcessInfo {
                    process: child,
                    parent: Some(parent),
                    comm: like.map(|info| info.comm.clone()).unwrap_or_default(),
                    exe: like.and_then(|info| info.exe.clone()),
                    workload,
                    exited_ns: None,
                };
                // Its own exec may have been drained from another CPU's buffer before.
                if self.get(child).is_none_or(|known| known.comm.is_empty()) {
                    self.put(info);
                }
            }
            Change::Exit {
                process,
                workload,
                at_ns,
            } => {
                let key = self.key(process);
                if let Some(info) = self.entries.get_mut(&key)
                    && info.exited_ns.is_none()
                {
                    info.workload = workload.or(info.workload);
                    info.exited_ns = Some(at_ns);
                    self.entries.demote(&key);
                    self.ended.push_back((at_ns, key));
                    self.bound_ended();
                }
            }
            Change::Moved { process, workload } => {
                let key = self.key(process);
                if let Some(info) = self.entries.get_mut(&key) {
                    info.process = process;
                    info.workload = workload.or(info.workload);
                }
            }
        }
    }

    /// What /proc said: fills gaps, and never overwrites what a record said more exactly.
    fn seen(&mut self, info: ProcessInfo) {
        let key = self.key(info.process);
        if let Some(known) = self.entries.get_mut(&key) {
            known.workload = info.workload.or(known.workload);
            known.exe = known.exe.take().or(info.exe);
            if info.process.start_ns != self.tick.nanos(key.ticks) {
                known.process = info.process;
            }
            return;
        }
        let parent = info.parent.and_then(|parent| self.by_pid(parent.pid));
        self.put(ProcessInfo { parent, ..info });
    }

    fn put(&mut self, info: ProcessInfo) {
        let key = self.key(info.process);
        let latest = self.current.entry(key.pid).or_insert(key.ticks);
        *latest = (*latest).max(key.ticks);
        self.entries.insert(key, info);
        if self.current.len() > 2 * self.capacity {
            let entries = &self.entries;
            self.current.retain(|pid, ticks| {
                entries.contains(&Key {
                    pid: *pid,
                    ticks: *ticks,
                })
            });
        }
    }

    /// More ends than there is room for are not remembered, however short ago: the oldest go.
    fn bound_ended(&mut self) {
        while self.ended.len() > self.capacity
            && let Some((_, key)) = self.ended.pop_front()
        {
            self.entries.evict(&key);
            self.forget_pid(key);
        }
    }

    fn forget_pid(&mut self, key: Key) {
        if self.current.get(&key.pid) == Some(&key.ticks) {
            self.current.remove(&key.pid);
        }
    }

    /// Forgets what ended more than the grace period ago.
    pub(super) fn purge(&mut self, now_ns: u64) {
        while let Some((at_ns, key)) = self.ended.front().copied() {
            if now_ns.saturating_sub(at_ns) < self.grace_ns {
                break;
            }
            self.ended.pop_front();
            self.entries.remove(&key);
            self.forget_pid(key);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn evicted(&self) -> u64 {
        self.entries.evicted()
    }
}

#[cfg(test)]
impl Processes {
    /// Ends that are remembered.
    pub(super) fn ends(&self) -> usize {
        self.ended.len()
    }

    /// Look-ups so far.
    pub(super) fn uses(&self) -> u64 {
        self.entries.uses()
    }
}
