//! The workload table: which cgroup a workload id is, and whose.
//!
//! Invariant: an entry's path led to a directory with exactly that inode when it was made; whoever
//! acts on a path checks the inode again. No I/O here.

use super::bounded::Bounded;
use super::container::{self, Runtime};
use super::search::{Pace, Walk};
use palisade_core::WorkloadId;
use std::collections::{HashMap, HashSet};
use std::time::Instant;

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
    /// Ids that the next walk is to look for, and when they were asked for last.
    waiting: HashMap<WorkloadId, u64>,
    /// Ids that waited when the walk that is under way began. Not empty means that it is.
    looked_for: HashMap<WorkloadId, u64>,
    /// That walk, but while it does a slice.
    walk: Option<Walk>,
    capacity: usize,
    pace: Pace,
    pub(super) unresolved: u64,
    pub(super) walks: u64,
}

impl Workloads {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            entries: Bounded::new(capacity),
            missing: Bounded::new(capacity),
            waiting: HashMap::new(),
            looked_for: HashMap::new(),
            walk: None,
            capacity,
            pace: Pace::default(),
            unresolved: 0,
            walks: 0,
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

    pub(super) fn put(&mut self, id: WorkloadId, cgroup: String) {
        self.missing.remove(&id);
        self.waiting.remove(&id);
        self.looked_for.remove(&id);
        self.entries.insert(id, WorkloadInfo::of_cgroup(cgroup));
    }

    /// Leaves it to the walk that looks for it, else to the next one. Where too many wait, it is asked for again
    /// with its next record.
    pub(super) fn wait_for(&mut self, id: WorkloadId, now_ns: u64) {
        if let Some(asked_ns) = self.looked_for.get_mut(&id) {
            *asked_ns = now_ns;
        } else if self.waiting.len() < self.capacity || self.waiting.contains_key(&id) {
            self.waiting.insert(id, now_ns);
        } else {
            self.unresolved += 1;
        }
    }

    /// There is something to walk for, or a walk to end.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty() || self.walk.is_some()
    }

    /// The walk to go on with, or to begin, and all ids that it may meet; none during a rest.
    pub(super) fn take_walk(&mut self, now: Instant) -> Option<(Walk, HashSet<WorkloadId>)> {
        if self.looked_for.is_empty() {
            if let Some(walk) = self.walk.take() {
                // All were found by their processes meanwhile.
                self.end_walk(&walk, now);
            }
            if self.waiting.is_empty() || !self.pace.may_walk(now) {
                return None;
            }
            self.looked_for = std::mem::take(&mut self.waiting);
            self.walk = Some(Walk::new());
        }
        let walk = self.walk.take()?;
        let ids = self.looked_for.keys().chain(self.waiting.keys());
        Some((walk, ids.copied().collect()))
    }

    /// After a slice, with what it has found.
    pub(super) fn put_walk(
        &mut self,
        walk: Walk,
        found: HashMap<WorkloadId, String>,
        now: Instant,
    ) {
        for (id, cgroup) in found {
            self.put(id, cgroup);
        }
        if walk.is_over() || self.looked_for.is_empty() {
            self.end_walk(&walk, now);
        } else {
            self.walk = Some(walk);
        }
    }

    /// What it was to look for and has not found is missing.
    fn end_walk(&mut self, walk: &Walk, now: Instant) {
        self.walks += 1;
        self.pace.walked(walk.took(), now);
        for (id, asked_ns) in std::mem::take(&mut self.looked_for) {
            self.unresolved += 1;
            self.missing.insert(id, asked_ns.saturating_add(RETRY_NS));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn evicted(&self) -> u64 {
        self.entries.evicted()
    }
}
