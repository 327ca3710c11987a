//! The workload table: which cgroup a workload id is, and whose.
//!
//! Invariant: an entry's path led to a directory with exactly that inode when it was made; whoever
//! acts on a path checks the inode again. Reads directories, never writes.

use super::bounded::Bounded;
use super::container::{self, Runtime};
use super::layout::Layout;
use palisade_core::WorkloadId;
use std::fs;
use std::os::unix::fs::DirEntryExt;
use std::path::PathBuf;

/// Directories that one search looks at, at most.
const MAX_DIRECTORIES: usize = 65_536;
/// An id that was not found is not looked for again for so long.
const RETRY_NS: u64 = 10_000_000_000;

/// What is known of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadInfo {
    /// Path of its cgroup below the id hierarchy's mount.
    pub cgroup: String,
    /// Container id or name.
    pub container: Option<String>,
    /// What runs the container.
    pub runtime: Option<Runtime>,
    /// Kubernetes pod uid.
    pub pod: Option<String>,
    /// Innermost systemd service or scope.
    pub unit: Option<String>,
}

impl WorkloadInfo {
    /// From the path of a cgroup.
    pub fn of_cgroup(cgroup: String) -> Self {
        let names = container::names(&cgroup);
        Self {
            cgroup,
            container: names.container,
            runtime: names.runtime,
            pod: names.pod,
            unit: names.unit,
        }
    }
}

#[derive(Debug)]
pub(super) struct Workloads {
    entries: Bounded<WorkloadId, WorkloadInfo>,
    /// Ids that were not found, and when they may be looked for again.
    missing: Bounded<WorkloadId, u64>,
    pub(super) unresolved: u64,
}

impl Workloads {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            entries: Bounded::new(capacity),
            missing: Bounded::new(capacity),
            unresolved: 0,
        }
    }

    pub(super) fn get(&self, id: WorkloadId) -> Option<&WorkloadInfo> {
        self.entries.get(&id)
    }

    /// It is neither known nor was it missing a moment ago.
    pub(super) fn wanted(&self, id: WorkloadId, now_ns: u64) -> bool {
        id.0 != 0
            && self.entries.get(&id).is_none()
            && self
                .missing
                .get(&id)
                .is_none_or(|retry_ns| now_ns >= *retry_ns)
    }

    pub(super) fn put(&mut self, id: WorkloadId, cgroup: Option<String>, now_ns: u64) {
        if let Some(cgroup) = cgroup {
            self.missing.remove(&id);
            self.entries.insert(id, WorkloadInfo::of_cgroup(cgroup));
        } else {
            self.unresolved += 1;
            self.missing.insert(id, now_ns.saturating_add(RETRY_NS));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn evicted(&self) -> u64 {
        self.entries.evicted()
    }
}

/// The path of the cgroup with that id. First where `pid` is now (cheap, and nearly always
/// right), then everywhere.
pub(super) fn find(layout: &Layout, id: WorkloadId, pid: Option<u32>) -> Option<String> {
    if let Some(cgroup) = pid.and_then(|pid| layout.cgroup_of_pid(pid).ok())
        && is_at(layout, id, &cgroup)
    {
        return Some(cgroup);
    }
    search(layout, id)
}

/// Whether the cgroup at that path is the one with that id, now.
pub(super) fn is_at(layout: &Layout, id: WorkloadId, cgroup: &str) -> bool {
    layout.workload_id(cgroup).is_ok_and(|found| found == id)
}

fn search(layout: &Layout, id: WorkloadId) -> Option<String> {
    if is_at(layout, id, "/") {
        return Some("/".to_owned());
    }
    let mut pending: Vec<(PathBuf, String)> = vec![(layout.id_root.clone(), String::new())];
    let mut looked_at = 0;
    while let Some((dir, cgroup)) = pending.pop() {
        // A directory that goes away meanwhile is a cgroup that was removed.
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            looked_at += 1;
            // Names that are not UTF-8 cannot be told apart once lossy: leave them out.
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            let path = format!("{cgroup}/{name}");
            if entry.ino() == id.0 && is_at(layout, id, &path) {
                return Some(path);
            }
            pending.push((entry.path(), path));
        }
        if looked_at > MAX_DIRECTORIES {
            return None;
        }
    }
    None
}
