//! What the tables learn from records.
//!
//! Invariants, for this runs on the sensor thread for every record of every batch:
//! - A record of the same process in the same workload as the record before costs a comparison; any other that
//!   says nothing new two look-ups in memory.
//! - /proc is asked at most once a batch about each process, and once about where it and a workload are.
//! - The tree of cgroups is walked at most once a batch, at its end, and not during the rest after a walk
//!   ([`super::search`]): meanwhile ids stay unresolved, and wait for the next walk.

use super::processes::Change;
use super::{Tables, search};
use palisade_abi::{Exec, Fork, Header, Record, kind};
use palisade_core::{ProcessId, WorkloadId};
use std::collections::{HashMap, HashSet};
use std::time::Instant;

impl Tables {
    /// Takes in what records say about processes and workloads: every kind tells of one that is new or has moved.
    pub fn observe(&self, records: &[Record]) {
        self.observe_by(records, Instant::now);
    }

    /// The same by a given clock, which tells how long walks take.
    pub(super) fn observe_by(&self, records: &[Record], mut clock: impl FnMut() -> Instant) {
        let mut lesson = Lesson::new(self);
        for record in records {
            lesson.take(record);
        }
        let Lesson { changes, .. } = lesson;
        if !changes.is_empty() {
            let newest = records.iter().map(|record| record.header.time_ns).max();
            let mut state = self.write();
            for change in changes {
                state.processes.apply(change);
            }
            state.processes.purge(newest.unwrap_or(0));
        }
        self.walk(&mut clock);
    }

    /// Looks for all ids that wait, unless it is too early for that.
    fn walk(&self, clock: &mut impl FnMut() -> Instant) {
        if !self.read().workloads.is_waited_for() {
            return;
        }
        let begun = clock();
        let asked = self.write().workloads.begin_walk(begun);
        if asked.is_empty() {
            return;
        }
        let ids: Vec<WorkloadId> = asked.keys().copied().collect();
        let found = search::walk(self.layout(), &ids);
        let mut state = self.write();
        state.workloads.end_walk(asked, found, begun, clock());
    }

    /// Names a workload that is new: after the cgroup of `pid`, which a record said is in it (0: of none), or the
    /// next walk.
    pub(super) fn resolve(&self, id: Option<WorkloadId>, pid: u32, now_ns: u64) {
        let Some(id) = id else { return };
        if !self.read().workloads.wanted(id, now_ns) {
            return;
        }
        let cgroup = Some(pid).filter(|pid| *pid != 0);
        let cgroup = cgroup.and_then(|pid| search::at_pid(self.layout(), id, pid));
        let workloads = &mut self.write().workloads;
        match cgroup {
            Some(cgroup) => workloads.put(id, cgroup),
            None => workloads.wait_for(id, now_ns),
        }
    }
}

/// What one batch has told so far.
struct Lesson<'a> {
    tables: &'a Tables,
    changes: Vec<Change>,
    /// Whose the record before was, and where.
    last: Option<(ProcessId, Option<WorkloadId>)>,
    /// Of whom the table need not be asked: there is a change of them, or /proc does not know them.
    settled: HashMap<ProcessId, Option<WorkloadId>>,
    /// Which workloads were asked for, and by a record of which process.
    tried: HashSet<(WorkloadId, u32)>,
}

impl<'a> Lesson<'a> {
    fn new(tables: &'a Tables) -> Self {
        Self {
            tables,
            changes: Vec::new(),
            last: None,
            settled: HashMap::new(),
            tried: HashSet::new(),
        }
    }

    fn take(&mut self, record: &Record) {
        let header = &record.header;
        let process = ProcessId {
            pid: header.pid,
            start_ns: header.start_ns,
        };
        let workload = Some(WorkloadId(header.workload)).filter(|id| id.0 != 0);
        let anew = self.last != Some((process, workload));
        match header.kind {
            // One a window for each workload that anything was lost of, up to thousands, many of them over by
            // then: nobody asks for their names on account of a loss, and what else they do names them.
            kind::LOST => return,
            kind::EXEC => {
                if let Some(exec) = record.get::<Exec>() {
                    self.changes.push(Change::Exec {
                        process,
                        parent_pid: exec.parent,
                        comm: text(&exec.comm),
                        exe: self.tables.exe_of(process, header.time_ns),
                        workload,
                    });
                    self.settled.insert(process, workload);
                }
            }
            kind::FORK => {
                if anew {
                    // Before the child, which is what its parent is.
                    self.touch(process, workload);
                }
                if let Some(fork) = record.get::<Fork>() {
                    let child = ProcessId {
                        pid: fork.child,
                        start_ns: fork.child_start_ns,
                    };
                    self.changes.push(Change::Fork {
                        parent: process,
                        child,
                        workload,
                    });
                    self.settled.insert(child, workload);
                }
            }
            // /proc has nothing more to say of it.
            kind::EXIT => {
                self.changes.push(Change::Exit {
                    process,
                    workload,
                    at_ns: header.time_ns,
                });
            }
            _ if anew => self.touch(process, workload),
            _ => {}
        }
        self.last = Some((process, workload));
        if anew {
            self.resolve(workload, header);
        }
    }

    /// A process that was seen at work: news only if it is unknown or has moved.
    fn touch(&mut self, process: ProcessId, workload: Option<WorkloadId>) {
        if process.pid == 0 {
            return;
        }
        let (before, is_whole) = match self.settled.get(&process) {
            Some(before) => (Some(*before), true),
            None => match self.tables.read().processes.get(process) {
                Some(info) => (Some(info.workload), info.exe.is_some()),
                None => (None, false),
            },
        };
        if before.is_some_and(|before| workload.is_none() || before == workload) {
            return;
        }
        let seen = (!is_whole)
            .then(|| self.tables.look_at(process.pid, Some(process)))
            .flatten();
        self.changes.push(match seen {
            Some(mut info) => {
                info.workload = workload.or(info.workload);
                Change::Seen(info)
            }
            None => Change::Moved { process, workload },
        });
        self.settled.insert(process, workload);
    }

    fn resolve(&mut self, workload: Option<WorkloadId>, header: &Header) {
        let Some(id) = workload else { return };
        if self.tried.insert((id, header.pid)) {
            self.tables.resolve(workload, header.pid, header.time_ns);
        }
    }
}

/// NUL-padded kernel text, lossy.
fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
