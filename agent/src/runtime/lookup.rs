//! Policies' questions, answered from the identity tables.

use crate::identity::Tables;
use crate::policy::{Facts, ProcessFacts, WorkloadFacts};
use palisade_core::{ProcessId, WorkloadId};

#[derive(Clone)]
pub(super) struct TableLookup(pub(super) Tables);

impl Facts for TableLookup {
    fn process_of(&self, process: ProcessId) -> Option<ProcessFacts> {
        let info = self.0.process(process)?;
        Some(ProcessFacts {
            parent: info.parent.map_or(0, |parent| parent.pid),
            comm: info.comm,
            exe: info.exe.unwrap_or_default(),
            workload: info.workload.map_or(0, |workload| workload.0),
        })
    }

    fn workload_of(&self, workload: WorkloadId) -> Option<WorkloadFacts> {
        let info = self.0.workload(workload)?;
        Some(WorkloadFacts {
            cgroup: info.cgroup,
            container: info.container,
        })
    }

    fn file_path(&self, device: u32, inode: u64) -> Option<String> {
        self.0.file_path(device, inode)
    }
}
