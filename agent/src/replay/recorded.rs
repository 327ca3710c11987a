//! The identity tables of a replay: what the recording says, and nothing of this host.
//!
//! Invariant: a process that has ended is no target and no member of one; who asks who it was is answered for as
//! long as in a run.

use crate::batch::Batch;
use crate::identity::{Limits, ScopeRoots};
use crate::policy::{Facts, ProcessFacts, WorkloadFacts};
use crate::recording::Identity;
use palisade_abi::kind;
use palisade_core::{Member, ProcessId, Target, TargetFacts, WorkloadId};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The identities of a recording.
#[derive(Clone, Default)]
pub(super) struct Recorded(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    processes: BTreeMap<ProcessId, ProcessFacts>,
    /// Who has ended and is remembered for a while, with the time of the end.
    ended: BTreeMap<ProcessId, u64>,
    /// The same, oldest first.
    ends: VecDeque<(u64, ProcessId)>,
    /// What the recorded run's core was last told about each target: kept to the end, for the run may have used it after the
    /// target's.
    told: HashMap<Target, Told>,
    workloads: BTreeMap<WorkloadId, WorkloadFacts>,
    files: BTreeMap<(u32, u64), String>,
}

struct Told {
    facts: TargetFacts,
    /// It ended longer ago than anybody remembers.
    forgotten: bool,
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

    /// Takes note of who ended, and forgets those whose end is long ago.
    pub(super) fn observe(&self, batch: &Batch) {
        let mut known = self.lock();
        for record in batch.records.iter() {
            if record.header.kind == kind::EXIT {
                let process = ProcessId {
                    pid: record.header.pid,
                    start_ns: record.header.start_ns,
                };
                let at_ns = record.header.time_ns;
                known.ended.insert(process, at_ns);
                known.ends.push_back((at_ns, process));
            }
        }
        let grace_ns = Limits::default().grace_ns;
        while let Some((at_ns, process)) = known.ends.front().copied()
            && batch.now_ns.saturating_sub(at_ns) > grace_ns
        {
            known.ends.pop_front();
            known.ended.remove(&process);
            known.processes.remove(&process);
            if let Some(told) = known.told.get_mut(&Target::Process(process)) {
                told.forgotten = true;
            }
        }
    }

    /// Takes in what the recorded run's core was told about a target.
    pub(super) fn tell(&self, target: Target, facts: TargetFacts) {
        let told = Told {
            facts,
            forgotten: false,
        };
        self.lock().told.insert(target, told);
    }

    /// What the recorded run's core was told about a target, as it was.
    pub(super) fn told(&self, target: &Target) -> Option<TargetFacts> {
        self.lock().told.get(target).map(|told| told.facts.clone())
    }

    /// What a core that decides anew is told about a target: what the recorded run's was told, without those who have
    /// ended since; else what the tables know.
    pub(super) fn facts(&self, target: &Target, scope: &ScopeRoots) -> TargetFacts {
        let known = self.lock();
        let gone = matches!(target, Target::Process(process) if known.ended.contains_key(process));
        let told = known.told.get(target).filter(|told| !told.forgotten);
        if let Some(told) = told.filter(|told| told.facts.alive && !gone) {
            let mut facts = told.facts.clone();
            facts
                .members
                .retain(|member| !known.ended.contains_key(&member.process));
            facts.watched = facts
                .cgroup
                .as_ref()
                .is_some_and(|cgroup| scope.covers(cgroup));
            return facts;
        }
        let (alive, workload) = match target {
            Target::Process(process) => {
                let info = known
                    .processes
                    .get(process)
                    .filter(|_| !known.ended.contains_key(process));
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
                Some(WorkloadId(info.workload)) == workload && !known.ended.contains_key(process)
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

impl Facts for Recorded {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use palisade_abi::{Exit, Header, Record};

    #[test]
    fn facts_about_the_ended_are_kept_for_who_follows_and_not_for_who_decides_anew() {
        let process = ProcessId {
            pid: 7,
            start_ns: 5,
        };
        let target = Target::Process(process);
        let recorded = Recorded::default();
        let facts = TargetFacts {
            alive: true,
            ..TargetFacts::default()
        };
        recorded.tell(target, facts.clone());
        let scope = ScopeRoots::All;
        assert!(recorded.facts(&target, &scope).alive);
        let header = Header {
            pid: process.pid,
            start_ns: process.start_ns,
            time_ns: 10,
            ..Header::default()
        };
        let end = Record::new(header, Exit::default());
        let grace_ns = Limits::default().grace_ns;
        for (now_ns, records) in [(10, vec![end]), (12 + grace_ns, Vec::new())] {
            recorded.observe(&Batch {
                seq: 1,
                now_ns,
                records: records.into(),
                window_end: false,
            });
            assert_eq!(recorded.told(&target), Some(facts.clone()), "at {now_ns}");
            assert!(!recorded.facts(&target, &scope).alive, "at {now_ns}");
        }
    }
}
