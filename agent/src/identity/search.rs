//! Finding the cgroups with given ids: by a process in it, or by walking the whole tree, rarely.
//!
//! Invariants:
//! - One walk answers for all ids that are asked for by then.
//! - After a walk its thread rests from walking: at most one part in [`REST`] + 1 of its time goes into them,
//!   however many ids there are.

use super::layout::Layout;
use palisade_core::WorkloadId;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::DirEntryExt;
use std::path::PathBuf;
use std::time::Instant;

/// Directories that one walk looks at, at most.
const MAX_DIRECTORIES: usize = 65_536;
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

    /// A walk took from `begun` to `ended`.
    pub(super) fn walked(&mut self, begun: Instant, ended: Instant) {
        let took = ended.saturating_duration_since(begun);
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

/// The paths of those of the cgroups that there are, in one walk.
pub(super) fn walk(layout: &Layout, ids: &[WorkloadId]) -> HashMap<WorkloadId, String> {
    let mut left: HashSet<WorkloadId> = ids.iter().copied().collect();
    let mut found = HashMap::new();
    if let Ok(root) = layout.workload_id("/")
        && left.remove(&root)
    {
        found.insert(root, "/".to_owned());
    }
    let mut pending: Vec<(PathBuf, String)> = vec![(layout.id_root.clone(), String::new())];
    let mut looked_at = 0;
    while let Some((dir, cgroup)) = pending.pop() {
        if left.is_empty() || looked_at > MAX_DIRECTORIES {
            break;
        }
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
            let id = WorkloadId(entry.ino());
            if left.contains(&id) && is_at(layout, id, &path) {
                left.remove(&id);
                found.insert(id, path.clone());
            }
            pending.push((entry.path(), path));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_walk_is_followed_by_a_rest_of_twenty_times_its_length() {
        let begun = Instant::now();
        let mut pace = Pace::default();
        assert!(pace.may_walk(begun));
        let ended = begun + Duration::from_millis(3);
        pace.walked(begun, ended);
        assert!(!pace.may_walk(ended));
        assert!(!pace.may_walk(ended + Duration::from_millis(59)));
        assert!(pace.may_walk(ended + Duration::from_millis(60)));
        // A clock that stands still asks for no rest, one that goes back for none either.
        pace.walked(ended, begun);
        assert!(pace.may_walk(begun));
    }
}
