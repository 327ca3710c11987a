//! The live look at a target, just before the core decides about it.
//!
//! Invariant: what is answered was read from /proc and cgroupfs now, not remembered; a process
//! whose start time does not fit, or a cgroup whose inode does not, is not alive. If the members
//! cannot all be told, the target is not alive either: an action must not hit the unseen.

use super::layout::Layout;
use super::proc::{self, Stat};
use super::search;
use super::{ScopeRoots, Tables};
use palisade_core::{Member, ProcessId, Target, TargetFacts, WorkloadId};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Processes of one target, at most.
pub const MAX_MEMBERS: usize = 4096;
/// Directories below one target, at most.
const MAX_DESCENDANTS: usize = 1024;

/// The facts about a target, now.
pub(super) fn facts(tables: &Tables, target: &Target, scope: &ScopeRoots) -> TargetFacts {
    let found = match target {
        Target::Process(process) => of_process(tables, *process),
        Target::Workload(id) => of_workload(tables, *id),
    };
    let result = found.and_then(|(id, cgroup)| {
        let members = members(tables, &cgroup)?;
        // The cgroup may have been replaced by another of the same name meanwhile.
        if !search::is_at(tables.layout(), id, &cgroup) {
            return Err(format!("cgroup {cgroup} was removed"));
        }
        Ok((id, cgroup, members))
    });
    match result {
        Ok((id, cgroup, members)) => TargetFacts {
            alive: true,
            detail: String::new(),
            workload: Some(id),
            watched: scope.covers(&cgroup),
            cgroup: Some(cgroup),
            members,
        },
        Err(detail) => TargetFacts {
            detail,
            ..TargetFacts::default()
        },
    }
}

fn of_process(tables: &Tables, process: ProcessId) -> Result<(WorkloadId, String), String> {
    let layout = tables.layout();
    let pid = process.pid;
    let cgroup = layout.cgroup_of_pid(pid);
    let id = cgroup
        .as_ref()
        .ok()
        .map(|cgroup| layout.workload_id(cgroup));
    // Afterwards: what was read above was this process's only if it still is the one.
    proc::verify(process, tables.tick())?;
    let cgroup = cgroup.map_err(|error| format!("/proc/{pid}/cgroup: {error}"))?;
    match id {
        Some(Ok(id)) => Ok((id, cgroup)),
        _ => Err(format!("no such cgroup: {cgroup} of pid {pid}")),
    }
}

fn of_workload(tables: &Tables, id: WorkloadId) -> Result<(WorkloadId, String), String> {
    let layout = tables.layout();
    let known = tables.workload(id).map(|info| info.cgroup);
    known
        .filter(|cgroup| search::is_at(layout, id, cgroup))
        .or_else(|| {
            let cgroup = search::find(layout, id)?;
            tables.remember_workload(id, &cgroup);
            Some(cgroup)
        })
        .map(|cgroup| (id, cgroup))
        .ok_or_else(|| format!("no such cgroup (id {})", id.0))
}

/// Every process in a cgroup and below it.
fn members(tables: &Tables, cgroup: &str) -> Result<Vec<Member>, String> {
    let mut members = Vec::new();
    for pid in pids_below(tables.layout(), cgroup)? {
        let exe = proc::exe(pid);
        // Read last, so that the executable is this process's. One that has gone is no member.
        let stat = match Stat::read(pid) {
            Ok(stat) if stat.ended() => continue,
            Ok(stat) => stat,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(format!("cgroup {cgroup}: /proc/{pid}/stat: {error}")),
        };
        members.push(Member {
            process: tables.exact(pid, stat.start_ticks),
            exe: exe.unwrap_or_default(),
            kernel_thread: stat.kernel_thread,
        });
    }
    Ok(members)
}

fn pids_below(layout: &Layout, cgroup: &str) -> Result<Vec<u32>, String> {
    let mut pids = HashSet::new();
    let mut pending: Vec<PathBuf> = vec![layout.id_dir(cgroup)];
    let mut directories = 0;
    while let Some(dir) = pending.pop() {
        directories += 1;
        let below_top = directories > 1;
        let failed = |error| format!("cgroup {cgroup}: {}: {error}", dir.display());
        let procs = match fs::read_to_string(dir.join("cgroup.procs")) {
            Ok(procs) => procs,
            // A descendant that was removed, or a threaded one, whose processes its parent lists.
            Err(error) if below_top && is_passing(&error) => continue,
            Err(error) => return Err(failed(error)),
        };
        for line in procs.lines() {
            match line.parse() {
                // Whatever is done to the cgroup would be done to it as well.
                Ok(0) => {
                    return Err(format!(
                        "cgroup {cgroup}: it holds a process that cannot be seen from here (outside \
                         the agent's PID namespace; run the agent in the host's)"
                    ));
                }
                Ok(pid) => pids.insert(pid),
                Err(_) => return Err(format!("cgroup {cgroup}: {line:?} is not a process")),
            };
        }
        match directories_in(&dir) {
            Ok(below) => pending.extend(below),
            Err(error) if below_top && is_passing(&error) => {}
            Err(error) => return Err(failed(error)),
        }
        if pids.len() > MAX_MEMBERS || directories > MAX_DESCENDANTS {
            return Err(format!(
                "cgroup {cgroup} has more than {MAX_MEMBERS} processes or {MAX_DESCENDANTS} \
                 cgroups below it: too many to check them all"
            ));
        }
    }
    let mut pids: Vec<u32> = pids.into_iter().collect();
    pids.sort_unstable();
    Ok(pids)
}

fn directories_in(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // One whose kind cannot be told is for the next read to tell.
        if entry.file_type().map_or(true, |kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP)
    )
}

/// A process that ended between opening and reading is ESRCH.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::SRCH)
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::identity::layout::Flavour;

    /// What is found in a made-up tree whose top is /ml: (cgroup, its `cgroup.procs`).
    fn found(tree: &[(&str, &str)]) -> Result<Vec<u32>, String> {
        let root = tempfile::tempdir().unwrap();
        for (cgroup, procs) in tree {
            let dir = root.path().join(cgroup);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("cgroup.procs"), procs).unwrap();
        }
        let layout = Layout {
            flavour: Flavour::V2,
            id_root: root.path().to_owned(),
            controllers: std::collections::BTreeMap::new(),
            unified: Some(root.path().to_owned()),
        };
        fs::create_dir_all(root.path().join("ml/removed")).unwrap();
        pids_below(&layout, "/ml")
    }

    #[test]
    fn the_processes_below_are_told_and_a_removed_cgroup_has_none() {
        let tree = [("ml", "7\n3\n"), ("ml/a/b", "5\n"), ("ml/a", "")];
        assert_eq!(found(&tree), Ok(vec![3, 5, 7]));
    }

    #[test]
    fn a_process_that_cannot_be_seen_makes_the_list_an_error() {
        for tree in [
            [("ml", "0\n"), ("ml/a", "")],
            [("ml", "7\n"), ("ml/a", "5\n0\n")],
        ] {
            let error = found(&tree).unwrap_err();
            assert!(error.contains("cannot be seen from here"), "{error}");
        }
    }

    #[test]
    fn a_list_that_cannot_be_read_is_an_error() {
        found(&[("ml", "7\n"), ("ml/a", "what\n")]).unwrap_err();
        // The top has no list; below, a folder is in the list's place.
        found(&[]).unwrap_err();
        let error = found(&[("ml", "7\n"), ("ml/a/cgroup.procs", "")]).unwrap_err();
        assert!(error.contains("ml/a"), "{error}");
    }
}
