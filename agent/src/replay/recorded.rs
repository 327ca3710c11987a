//! The identity tables of a replay: what the recording says, and nothing of this host.

use crate::identity::ScopeRoots;
use crate::policy::{Lookup, ProcessFacts, WorkloadFacts};
use crate::recording::Identity;
use palisade_abi::kind;
use palisade_core::{Member, ProcessId, Target, TargetFacts, WorkloadId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The identities of a recording.
#[derive(Clone, Default)]
pub(super) struct Recorded(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    processes: BTreeMap<ProcessId, ProcessFacts>,
    ended: BTreeSet<ProcessId>,
    workloads: BTreeMap<WorkloadId, WorkloadFacts>,
    files: BTreeMap<(u32, u64), String>,
}

impl Recorded {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what the tables of the recorded run learned.
    pub(super) fn learn(&self, identity: Identity) {
        let mut known = self.lock();
        match identity {
            Identity::Process {
                process,
                parent,
                comm,
                exe,
                workload,
            } => {
                let workload = workload.map_or(0, |workload| workload.0);
                known.processes.insert(
                    process,
                    ProcessFacts {
                        parent,
                        comm,
                        exe,
                        workload,
                    },
                );
            }
            Identity::Workload {
                workload,
                cgroup,
                container,
            } => {
                known
                    .workloads
                    .insert(workload, WorkloadFacts { cgroup, container });
            }
            Identity::File {
                device,
                inode,
                path,
            } => {
                known.files.insert((device, inode), path);
            }
        }
    }

    /// Takes note of who ended.
    pub(super) fn observe(&self, records: &[palisade_abi::Record]) {
        let mut known = self.lock();
        for record in records
            .iter()
            .filter(|record| record.header.kind == kind::EXIT)
        {
            known.ended.insert(ProcessId {
                pid: record.header.pid,
                start_ns: record.header.start_ns,
            });
        }
    }

    /// What the core asks about a target.
    pub(super) fn facts(&self, target: &Target, scope: &ScopeRoots) -> TargetFacts {
        let known = self.lock();
        let (alive, workload) = match target {
            Target::Process(process) => {
                let info = known
                    .processes
                    .get(process)
                    .filter(|_| !known.ended.contains(process));
                (info.is_some(), info.map(|info| WorkloadId(info.workload)))
            }
            Target::Workload(workload) => (known.workloads.contains_key(workload), Some(*workload)),
        };
        let cgroup = workload
            .and_then(|workload| known.workloads.get(&workload))
            .map(|info| info.cgroup.clone());
        let members = known
            .processes
            .iter()
            .filter(|(process, info)| {
                Some(WorkloadId(info.workload)) == workload && !known.ended.contains(process)
            })
            .map(|(process, info)| Member {
                process: *process,
                exe: info.exe.clone(),
                kernel_thread: false,
            })
            .collect();
        let watched = cgroup.as_ref().is_some_and(|cgroup| scope.covers(cgroup));
        let detail = if alive {
            String::new()
        } else {
            "not in the recording, or ended before".to_owned()
        };
        TargetFacts {
            alive,
            detail,
            workload,
            cgroup,
            watched,
            members,
        }
    }
}

impl Lookup for Recorded {
    fn process_of(&self, process: ProcessId) -> Option<ProcessFacts> {
        self.lock().processes.get(&process).cloned()
    }

    fn workload_of(&self, workload: WorkloadId) -> Option<WorkloadFacts> {
        self.lock().workloads.get(&workload).cloned()
    }

    fn file_path(&self, device: u32, inode: u64) -> Option<String> {
        self.lock().files.get(&(device, inode)).cloned()
    }
}
