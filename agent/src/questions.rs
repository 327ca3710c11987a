//! Policies' questions, answered in a recording's terms: for the runtime, which keeps the answers, and for a replay,
//! which gives them again.
//!
//! Invariant: what [`look_up`] finds and [`AnsweredBy`] tells is what the tables said, no more and no less.

use crate::policy::{Facts, ProcessFacts, WorkloadFacts};
use crate::recording::{Identity, Question};
use palisade_core::{ProcessId, WorkloadId};

/// What this function says.
pub(crate) struct AnsweredBy<F>(pub(crate) F);

impl<F: Fn(Question) -> Option<Identity> + Send + Sync> Facts for AnsweredBy<F> {
    fn process_of(&self, process: ProcessId) -> Option<ProcessFacts> {
        match (self.0)(Question::Process(process))? {
            Identity::Process {
                parent,
                comm,
                exe,
                workload,
                ..
            } => Some(ProcessFacts {
                parent,
                comm,
                exe,
                workload: workload.map_or(0, |workload| workload.0),
            }),
            _ => None,
        }
    }

    fn workload_of(&self, workload: WorkloadId) -> Option<WorkloadFacts> {
        match (self.0)(Question::Workload(workload))? {
            Identity::Workload {
                cgroup, container, ..
            } => Some(WorkloadFacts { cgroup, container }),
            _ => None,
        }
    }

    fn file_path(&self, device: u32, inode: u64) -> Option<String> {
        match (self.0)(Question::File { device, inode })? {
            Identity::File { path, .. } => Some(path),
            _ => None,
        }
    }
}

/// What the tables answer.
pub(crate) fn look_up(tables: &dyn Facts, question: Question) -> Option<Identity> {
    match question {
        Question::Process(process) => {
            let facts = tables.process_of(process)?;
            Some(Identity::Process {
                process,
                parent: facts.parent,
                comm: facts.comm,
                exe: facts.exe,
                workload: (facts.workload != 0).then_some(WorkloadId(facts.workload)),
            })
        }
        Question::Workload(workload) => {
            let WorkloadFacts { cgroup, container } = tables.workload_of(workload)?;
            Some(Identity::Workload {
                workload,
                cgroup,
                container,
            })
        }
        Question::File { device, inode } => {
            let path = tables.file_path(device, inode)?;
            Some(Identity::File {
                device,
                inode,
                path,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_looked_up_is_what_was_told() {
        let process = ProcessId {
            pid: 7,
            start_ns: 5,
        };
        let (of_process, of_workload) = (
            Question::Process(process),
            Question::Workload(WorkloadId(9)),
        );
        let of_file = Question::File {
            device: 1,
            inode: 2,
        };
        for workload in [None, Some(WorkloadId(9))] {
            let said = [
                Identity::Process {
                    process,
                    parent: 1,
                    comm: "name".to_owned(),
                    exe: "/program".to_owned(),
                    workload,
                },
                Identity::Workload {
                    workload: WorkloadId(9),
                    cgroup: "/group".to_owned(),
                    container: workload.map(|_| "container".to_owned()),
                },
                Identity::File {
                    device: 1,
                    inode: 2,
                    path: "/file".to_owned(),
                },
            ];
            for (question, said) in [of_process, of_workload, of_file].into_iter().zip(said) {
                let tables = AnsweredBy(|asked| (asked == question).then(|| said.clone()));
                for asked in [of_process, of_workload, of_file] {
                    let expected = (asked == question).then_some(&said);
                    assert_eq!(look_up(&tables, asked).as_ref(), expected);
                }
            }
        }
    }
}
