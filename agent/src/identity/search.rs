//! Finding the cgroups with given ids: by a process in it, or by walking the whole tree, rarely.
//!
//! Invariants:
//! - One walk answers for all ids that were asked for when it began. It finds what is asked for later if that
//!   lies on the rest of its way, and says of nothing else that it is missing.
//! - A walk goes in slices, one a batch and [`SLICE`] long, so that no batch waits long for it.
//! - After a walk its thread rests from walking, [`REST`] times as long as all of its slices took, however many
//!   ids there are.

use super::layout::Layout;
use palisade_core::WorkloadId;
use std::collections::{HashMap, HashSet};
use std::fs::{self, ReadDir};
use std::os::unix::fs::DirEntryExt;
use std::time::{Duration, Instant};

/// Directories that one walk looks at, at most.
const MAX_DIRECTORIES: usize = 65_536;
/// How long a walk goes on in one batch; the look at one more entry of a directory comes on top.
pub(super) const SLICE: Duration = Duration::from_millis(10);
/// A walk is followed by a rest of so many times its length: less than a twentieth of the sensor thread.
const REST: u32 = 20;

/// When the next walk may be.
#[derive(Debug, Default)]
pub(super) struct Pace {
    rested: Option<Instant>,
}

impl Pace {
    pub(super) fn may_walk(&self, now: Instant) -> bool {
        self.rested.is_none_or(|rested| now >= rested)
    }

    /// A walk that took so long in all is over.
    pub(super) fn walked(&mut self, took: Duration, ended: Instant) {
        self.rested = ended.checked_add(took.saturating_mul(REST));
    }
}

/// Where `pid` is now, if that is the cgroup with that id: cheap, and nearly always right.
pub(super) fn at_pid(layout: &Layout, id: WorkloadId, pid: u32) -> Option<String> {
    let cgroup = layout.cgroup_of_pid(pid).ok()?;
    is_at(layout, id, &cgroup).then_some(cgroup)
}

/// Whether the cgroup at that path is the one with that id, now.
pub(super) fn is_at(layout: &Layout, id: WorkloadId, cgroup: &str) -> bool {
    layout.workload_id(cgroup).is_ok_and(|found| found == id)
}

/// The path of the cgroup with that id, by a walk of its own in one go: not for the sensor thread.
pub(super) fn find(layout: &Layout, id: WorkloadId) -> Option<String> {
    Walk::new()
        .go_on(layout, HashSet::from([id]), || false)
        .remove(&id)
}

/// A walk through the tree of cgroups, as far as it has come.
#[derive(Debug)]
pub(super) struct Walk {
    /// The cgroups whose directories are still to be read.
    pending: Vec<String>,
    /// The one that is being read.
    reading: Option<(ReadDir, String)>,
    /// Directories that it may still look at.
    left: usize,
    /// How long its slices took together.
    worked: Duration,
}

impl Walk {
    pub(super) fn new() -> Self {
        Self {
            pending: vec![String::new()],
            reading: None,
            left: MAX_DIRECTORIES,
            worked: Duration::ZERO,
        }
    }

    /// It has been everywhere, or as far as it may go.
    pub(super) fn is_over(&self) -> bool {
        self.pending.is_empty() && self.reading.is_none()
    }

    /// A slice took from `begun` to `ended`.
    pub(super) fn worked(&mut self, begun: Instant, ended: Instant) {
        self.worked += ended.saturating_duration_since(begun);
    }

    /// How long all slices took.
    pub(super) fn took(&self) -> Duration {
        self.worked
    }

    /// Goes on until it has had `enough`, is over, or has met all of the ids. One step it takes in any
    /// case. Gives the paths of those cgroups that it met.
    pub(super) fn go_on(
        &mut self,
        layout: &Layout,
        mut ids: HashSet<WorkloadId>,
        mut enough: impl FnMut() -> bool,
    ) -> HashMap<WorkloadId, String> {
        let mut found = HashMap::new();
        while !ids.is_empty() && self.step(layout, &mut ids, &mut found) && !enough() {}
        found
    }

    /// Opens a directory, or looks at one more entry of the one that is open; false if there is neither.
    fn step(
        &mut self,
        layout: &Layout,
        ids: &mut HashSet<WorkloadId>,
        found: &mut HashMap<WorkloadId, String>,
    ) -> bool {
        let Some((entries, cgroup)) = &mut self.reading else {
            let Some(cgroup) = self.pending.pop() else {
                return false;
            };
            if cgroup.is_empty()
                && let Ok(root) = layout.workload_id("/")
                && ids.remove(&root)
            {
                found.insert(root, "/".to_owned());
            }
            // A directory that went away meanwhile is a cgroup that was removed.
            self.reading = fs::read_dir(layout.id_dir(&cgroup))
                .ok()
                .map(|entries| (entries, cgroup));
            return true;
        };
        let Some(Ok(entry)) = entries.next() else {
            self.reading = None;
            return true;
        };
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            return true;
        }
        // Names that are not UTF-8 cannot be told apart once lossy: leave them out.
        if let Some(name) = entry.file_name().to_str() {
            let path = format!("{cgroup}/{name}");
            let id = WorkloadId(entry.ino());
            if ids.contains(&id) && is_at(layout, id, &path) {
                ids.remove(&id);
                found.insert(id, path.clone());
            }
            self.pending.push(path);
        }
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.pending.clear();
            self.reading = None;
        }
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_is_followed_by_a_rest_of_twenty_times_its_length() {
        let begun = Instant::now();
        let mut pace = Pace::default();
        assert!(pace.may_walk(begun));
        let ended = begun + Duration::from_millis(30);
        // It took less than it lasted, for there were other things to do between its slices.
        pace.walked(Duration::from_millis(3), ended);
        assert!(!pace.may_walk(ended));
        assert!(!pace.may_walk(ended + Duration::from_millis(59)));
        assert!(pace.may_walk(ended + Duration::from_millis(60)));
        // A clock that stands still asks for no rest, one that goes back for none either.
        let mut walk = Walk::new();
        walk.worked(ended, begun);
        pace.walked(walk.took(), begun);
        assert!(pace.may_walk(begun));
    }

    #[test]
    fn a_walk_ends_in_the_midst_of_a_directory_when_it_has_looked_at_as_many_as_it_may() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..20 {
            std::fs::create_dir(dir.path().join(format!("{n}"))).unwrap();
        }
        let layout = Layout {
            flavour: super::super::layout::Flavour::V2,
            id_root: dir.path().to_owned(),
            controllers: std::collections::BTreeMap::new(),
            unified: None,
        };
        let ids: HashSet<WorkloadId> = (0..20)
            .map(|n| layout.workload_id(&format!("/{n}")).unwrap())
            .collect();
        let walk = |left| {
            let mut walk = Walk {
                left,
                ..Walk::new()
            };
            let found = walk.go_on(&layout, ids.clone(), || false);
            assert!(walk.is_over() || found.len() == 20);
            found.len()
        };
        assert_eq!((walk(1), walk(7), walk(MAX_DIRECTORIES)), (1, 7, 20));
    }
}
