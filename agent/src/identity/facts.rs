//! The live look at a target, just before the core decides about it.
//!
//! Invariant: what is answered was read from /proc and cgroupfs now, not remembered; a process
//! whose start time does not fit, or a cgroup whose inode does not, is not alive. If the members
//! cannot all be told, the target is not alive either: an action must not hit the unseen.

use super::layout::Layout;
use super::proc::{self, Stat};
use super::workloads;
use super::{ScopeRoots, Tables};
use palisade_core::{Member, ProcessId, Target, TargetFacts, WorkloadId};
use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::PathBuf;

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
        if !workloads::is_at(tables.layout(), id, &cgroup) {
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
        .filter(|cgroup| workloads::is_at(layout, id, cgroup))
        .or_else(|| {
            let cgroup = workloads::find(layout, id, None)?;
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
        if let Some(member) = member(tables, pid) {
            members.push(member);
        }
    }
    Ok(members)
}

fn member(tables: &Tables, pid: u32) -> Option<Member> {
    let exe = proc::exe(pid);
    // Read last, so that the executable is this process's. One that has gone is no member.
    let stat = Stat::read(pid).ok().filter(|stat| !stat.ended())?;
    Some(Member {
        process: tables.exact(pid, stat.start_ticks),
        exe: exe.unwrap_or_default(),
        kernel_thread: stat.kernel_thread,
    })
}

fn pids_below(layout: &Layout, cgroup: &str) -> Result<Vec<u32>, String> {
    let mut pids = HashSet::new();
    let mut pending: Vec<PathBuf> = vec![layout.id_dir(cgroup)];
    let mut directories = 0;
    while let Some(dir) = pending.pop() {
        directories += 1;
        let below_top = directories > 1;
        let procs = match fs::read_to_string(dir.join("cgroup.procs")) {
            Ok(procs) => procs,
            // A descendant that was removed, or a threaded one, whose processes its parent lists.
            Err(error) if below_top && is_passing(&error) => continue,
            Err(error) => return Err(format!("cgroup {cgroup}: {error}")),
        };
        // 0 stands for a process outside this PID namespace: nothing that could be addressed.
        pids.extend(
            procs
                .lines()
                .filter_map(|line| line.parse::<u32>().ok())
                .filter(|pid| *pid != 0),
        );
        let entries = fs::read_dir(&dir).map(|entries| entries.flatten().collect::<Vec<_>>());
        for entry in entries.unwrap_or_default() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(entry.path());
            }
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

fn is_passing(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    error.kind() == io::ErrorKind::NotFound
        || code == Some(rustix::io::Errno::NODEV.raw_os_error())
        || code == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error())
}
