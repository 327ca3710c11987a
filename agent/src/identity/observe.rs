//! What the tables learn from records.
//!
//! Invariants, for this runs on the sensor thread for every record of every batch:
//! - What a batch has told of a process in a workload, it can tell again for one look-up in memory, but for
//!   forks, execs and exits. The first time costs a few look-ups if it says nothing new.
//! - All samples of a window have the time of its end and come in no order that means anything. Where they put a
//!   process elsewhere, /proc decides, for the rest of the batch; if it knows nothing, the record does.
//! - /proc is asked at most once a batch about each process (and once with each exec), and once about where it
//!   and a workload are.
//! - The tree of cgroups is walked for a short slice a batch at most, at its end, and not during the rest after a
//!   walk ([`super::search`]): meanwhile ids stay unresolved, and wait for the walk.

use super::processes::Change;
use super::{ProcessInfo, Tables, search};
use palisade_abi::{Exec, Fork, Record, kind};
use palisade_core::{ProcessId, WorkloadId};
use std::collections::{HashMap, HashSet};
use std::time::Instant;

impl Tables {
    /// Takes in what records say about processes and workloads: every kind tells of one that is new or has moved.
    pub fn observe(&self, records: &[Record]) {
        self.observe_by(records, Instant::now, |process| {
            self.look_at(process.pid, Some(process))
        });
    }

    /// The same by a given clock, which tells how long walks take, and with what /proc says of exactly a process.
    pub(super) fn observe_by(
        &self,
        records: &[Record],
        mut clock: impl FnMut() -> Instant,
        mut look_at: impl FnMut(ProcessId) -> Option<ProcessInfo>,
    ) {
        let mut lesson = Lesson::new(self, &mut look_at);
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

    /// Looks for all ids that wait, for a slice, unless it is too early for that.
    fn walk(&self, clock: &mut impl FnMut() -> Instant) {
        if !self.read().workloads.is_waited_for() {
            return;
        }
        let begun = clock();
        let taken = self.write().workloads.take_walk(begun);
        let Some((mut walk, ids)) = taken else { return };
        // Without the lock: whoever looks something up does not wait for it.
        let found = walk.go_on(self.layout(), ids, || {
            clock().saturating_duration_since(begun) >= search::SLICE
        });
        let ended = clock();
        walk.worked(begun, ended);
        self.write().workloads.put_walk(walk, found, ended);
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

/// How a record tells where its process was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// At the record's own time.
    Exactly,
    /// At some time of a window.
    InWindow,
}

/// What one batch has told so far.
struct Lesson<'a> {
    tables: &'a Tables,
    look_at: &'a mut dyn FnMut(ProcessId) -> Option<ProcessInfo>,
    changes: Vec<Change>,
    /// Whose its records were, and where; and where /proc said that they are.
    told: HashSet<(ProcessId, Option<WorkloadId>)>,
    /// Of whom the table need not be asked: there is a change of them, or /proc does not know them.
    settled: HashMap<ProcessId, Option<WorkloadId>>,
    /// Where they are by /proc, which is not asked again, or ended by their last record, which it does not know.
    answers: HashMap<ProcessId, Option<WorkloadId>>,
}

impl<'a> Lesson<'a> {
    fn new(
        tables: &'a Tables,
        look_at: &'a mut dyn FnMut(ProcessId) -> Option<ProcessInfo>,
    ) -> Self {
        Self {
            tables,
            look_at,
            changes: Vec::new(),
            told: HashSet::new(),
            settled: HashMap::new(),
            answers: HashMap::new(),
        }
    }

    fn take(&mut self, record: &Record) {
        let header = &record.header;
        // One a window for each workload that anything was lost of, up to thousands, many of them over by
        // then: nobody asks for their names on account of a loss, and what else they do names them.
        if header.kind == kind::LOST {
            return;
        }
        let process = ProcessId {
            pid: header.pid,
            start_ns: header.start_ns,
        };
        let workload = Some(WorkloadId(header.workload)).filter(|id| id.0 != 0);
        let anew = self.told.insert((process, workload));
        match header.kind {
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
                // Before the child, which is what its parent is.
                self.touch(process, workload, Told::Exactly, header.time_ns);
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
                // Nor do the samples of its last window.
                if workload.is_some() {
                    self.answers.insert(process, workload);
                }
            }
            _ if anew => self.touch(process, workload, Told::InWindow, header.time_ns),
            _ => {}
        }
        if anew {
            self.tables.resolve(workload, header.pid, header.time_ns);
        }
    }

    /// A process that was seen at work: news only if it is unknown or has moved.
    fn touch(
        &mut self,
        process: ProcessId,
        workload: Option<WorkloadId>,
        told: Told,
        time_ns: u64,
    ) {
        if process.pid == 0 {
            return;
        }
        let (before, is_whole) = match self.settled.get(&process) {
            Some(before) => (Some(*before), true),
            None => match self.tables.read().processes.get(process) {
                // Where it ended is told exactly: the samples of its last window do not move it.
                Some(info)
                    if told == Told::InWindow
                        && info.exited_ns.is_some()
                        && info.workload.is_some() =>
                {
                    return;
                }
                Some(info) => (Some(info.workload), info.exe.is_some()),
                None => (None, false),
            },
        };
        if before.is_some_and(|before| workload.is_none() || before == workload) {
            return;
        }
        let (seen, there) = match self.answers.get(&process) {
            Some(there) => (None, *there),
            None if is_whole && told == Told::Exactly => (None, None),
            None => self.ask(process),
        };
        let now = match told {
            Told::Exactly => workload.or(there),
            Told::InWindow => there.or(workload),
        };
        if now != workload && self.told.insert((process, now)) {
            self.tables.resolve(now, process.pid, time_ns);
        }
        if is_whole && before == Some(now) {
            return;
        }
        self.changes.push(match seen {
            Some(info) => Change::Seen(ProcessInfo {
                workload: now,
                ..info
            }),
            None => Change::Moved {
                process,
                workload: now,
            },
        });
        self.settled.insert(process, now);
    }

    /// What /proc says of it, and where it is by that.
    fn ask(&mut self, process: ProcessId) -> (Option<ProcessInfo>, Option<WorkloadId>) {
        let seen = (self.look_at)(process);
        let there = seen.as_ref().and_then(|info| info.workload);
        self.answers.insert(process, there);
        (seen, there)
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
