//! What the tables learn from batches of records, and what that costs.

use super::*;
use palisade_abi::{Kind, SampleInference};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// A tree that looks like cgroups, with one workload at `/a` and one at `/b/c`.
pub(super) struct Tree {
    pub(super) dir: tempfile::TempDir,
    pub(super) tables: Tables,
    pub(super) a: u64,
    pub(super) c: u64,
}

impl Tree {
    pub(super) fn new(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a")).unwrap();
        std::fs::create_dir_all(dir.path().join("b/c")).unwrap();
        let layout = Layout {
            flavour: layout::Flavour::V2,
            id_root: dir.path().to_owned(),
            controllers: std::collections::BTreeMap::new(),
            unified: Some(dir.path().to_owned()),
        };
        let id = |cgroup| layout.workload_id(cgroup).unwrap().0;
        let (a, c) = (id("/a"), id("/b/c"));
        Self {
            dir,
            tables: Tables::new(layout, limits),
            a,
            c,
        }
    }

    /// By a clock that stands still: no walk is cut into slices or followed by a rest.
    pub(super) fn observe(&self, records: &[Record]) {
        let now = Instant::now();
        self.observe_at(records, || now);
    }

    /// /proc knows all of a process but its place in this tree.
    pub(super) fn observe_at(&self, records: &[Record], clock: impl FnMut() -> Instant) {
        self.tables.observe_by(records, clock, |process| {
            let info = self.tables.look_at(process.pid, Some(process))?;
            Some(ProcessInfo {
                workload: None,
                ..info
            })
        });
    }

    pub(super) fn workload_of(&self, process: ProcessId) -> Option<u64> {
        Some(self.tables.process(process)?.workload?.0)
    }

    pub(super) fn cgroup_of(&self, workload: u64) -> Option<String> {
        let info = self.tables.workload(WorkloadId(workload))?;
        Some(info.cgroup)
    }
}

/// A process that cannot be.
pub(super) fn nobody(n: u32) -> ProcessId {
    ProcessId {
        pid: (1 << 30) + n,
        start_ns: 1,
    }
}

fn of_kind(kind: Kind, mut header: Header) -> Record {
    header.kind = kind as u16;
    Record {
        header,
        body: [0; 3],
    }
}

pub(super) fn sample(process: ProcessId, workload: u64) -> Record {
    Record::new(header(process, workload, 5), SampleInference::default())
}

#[test]
fn every_kind_names_its_process_and_workload_and_tells_where_it_has_moved() {
    let child = Own::sleeper();
    for kind in Kind::ALL.iter().copied().filter(|kind| *kind != Kind::Lost) {
        let tree = Tree::new(Limits::default());
        let process = id_of(&tree.tables, child.pid());
        tree.observe(&[of_kind(kind, header(process, tree.a, 1))]);
        assert_eq!(tree.cgroup_of(tree.a).as_deref(), Some("/a"), "{kind:?}");
        let known = tree.tables.process(process);
        // Of one that is unknown, its end says nothing.
        assert_eq!(known.is_some(), kind != Kind::Exit, "{kind:?}");
        tree.observe(&[exec(process, tree.a, b"x")]);
        tree.observe(&[of_kind(kind, header(process, tree.c, 3))]);
        let workload = tree.tables.process(process).unwrap().workload;
        assert_eq!(workload, Some(WorkloadId(tree.c)), "{kind:?}");
        assert_eq!(tree.cgroup_of(tree.c).as_deref(), Some("/b/c"), "{kind:?}");
    }
}

#[test]
fn records_of_a_cgroup_alone_name_it_unless_they_tell_losses() {
    let none = ProcessId {
        pid: 0,
        start_ns: 0,
    };
    for (kind, named) in [(Kind::SamplePressure, true), (Kind::Lost, false)] {
        let tree = Tree::new(Limits::default());
        tree.observe(&[of_kind(kind, header(none, tree.c, 1))]);
        assert_eq!(tree.cgroup_of(tree.c).is_some(), named, "{kind:?}");
        assert_eq!(tree.tables.stats().processes, 0);
    }
}

#[test]
fn a_child_of_a_parent_not_known_before_is_what_its_parent_is() {
    let tree = Tree::new(Limits::default());
    let parent = Own::sleeper();
    let process = id_of(&tree.tables, parent.pid());
    let fork = Fork {
        child: nobody(1).pid,
        child_start_ns: nobody(1).start_ns,
        ..Fork::default()
    };
    tree.observe(&[Record::new(header(process, tree.a, 2), fork)]);
    let child = tree.tables.process(nobody(1)).unwrap();
    assert_eq!(child.comm, "sleep");
    // It was forked into another cgroup.
    tree.observe(&[sample(nobody(1), tree.c)]);
    let child = tree.tables.process(nobody(1)).unwrap();
    assert_eq!(child.workload, Some(WorkloadId(tree.c)));
    assert_eq!(child.comm, "sleep");
}

#[test]
fn records_of_the_same_process_in_a_row_cost_one_look_up() {
    let tree = Tree::new(Limits::default());
    let child = Own::sleeper();
    let process = id_of(&tree.tables, child.pid());
    tree.observe(&[sample(process, tree.a)]);
    let uses = || tree.tables.read().processes.uses();
    let before = uses();
    tree.observe(&vec![sample(process, tree.a); 512]);
    assert_eq!(uses() - before, 1);
}

#[test]
fn a_thousand_unknown_workloads_cause_one_walk_and_the_next_comes_after_a_rest() {
    let tree = Tree::new(Limits::default());
    // Each look at it takes so long: a walk takes less than a slice.
    let looks = Cell::new(0);
    let mut now = Instant::now();
    let mut clock = || {
        now += Duration::from_micros(100);
        looks.set(looks.get() + 1);
        now
    };
    // Beyond every inode of the tree.
    let unknown = |n: u32| sample(nobody(n), (1 << 60) + u64::from(n));
    let mut records: Vec<Record> = (0..1000).map(unknown).collect();
    records.push(sample(nobody(1000), tree.a));
    tree.observe_at(&records, &mut clock);
    let stats = tree.tables.stats();
    assert_eq!(
        (stats.workload_walks, stats.workloads_unresolved),
        (1, 1000)
    );
    assert_eq!(tree.cgroup_of(tree.a).as_deref(), Some("/a"));
    // What was missing is not looked for, and what is new waits: for twenty times the walk.
    records.push(sample(nobody(1001), tree.c));
    tree.observe_at(&records, &mut clock);
    let took = looks.get() - 2;
    for n in 2..20 * took {
        tree.observe_at(&[unknown(1000 + n)], &mut clock);
    }
    assert_eq!(tree.tables.stats().workload_walks, 1);
    assert_eq!(tree.cgroup_of(tree.c), None);
    // Once rested, any batch will do.
    tree.observe_at(&[], &mut clock);
    let stats = tree.tables.stats();
    assert_eq!(stats.workload_walks, 2);
    assert_eq!(
        stats.workloads_unresolved,
        u64::from(1000 + 20 * took - 2),
        "in {took} looks"
    );
    assert_eq!(tree.cgroup_of(tree.c).as_deref(), Some("/b/c"));
}

#[test]
fn what_waits_for_a_walk_is_bounded_and_what_found_no_room_is_asked_for_again() {
    let tree = Tree::new(Limits {
        workloads: 8,
        ..Limits::default()
    });
    let mut records: Vec<Record> = (0..8)
        .map(|n| sample(nobody(n), (1 << 60) + u64::from(n)))
        .collect();
    records.push(sample(nobody(8), tree.a));
    tree.observe(&records);
    assert_eq!(tree.tables.stats().workloads_unresolved, 9);
    assert_eq!(tree.cgroup_of(tree.a), None);
    tree.observe(&[sample(nobody(8), tree.a)]);
    assert_eq!(tree.cgroup_of(tree.a).as_deref(), Some("/a"));
}

#[test]
fn ends_within_the_grace_are_remembered_up_to_the_capacity() {
    let tree = Tree::new(Limits {
        processes: 64,
        grace_ns: 1 << 60,
        ..Limits::default()
    });
    let alive = Own::sleeper();
    let alive = id_of(&tree.tables, alive.pid());
    for n in 0..5000 {
        let process = nobody(n);
        // It stays in use, and so in the table.
        tree.observe(&[
            exec(alive, 0, b"x"),
            exec(process, 0, b"x"),
            Record::new(header(process, 0, u64::from(n)), Exit::default()),
        ]);
        let state = tree.tables.read();
        assert!(state.processes.ends() <= 64 && state.processes.len() <= 64);
    }
    let stats = tree.tables.stats();
    assert_eq!(stats.processes_evicted + stats.processes as u64, 5001);
    assert!(tree.tables.process(alive).is_some());
    assert!(tree.tables.process(nobody(0)).is_none());
    assert!(
        tree.tables
            .process(nobody(4999))
            .unwrap()
            .exited_ns
            .is_some()
    );
}

#[test]
fn an_ended_process_goes_before_one_alive_also_when_its_last_samples_come_after_its_end() {
    let tree = Tree::new(Limits {
        processes: 16,
        grace_ns: 1 << 60,
        ..Limits::default()
    });
    let (alive, ended) = (nobody(0), nobody(1));
    tree.observe(&[exec(alive, tree.a, b"alive"), exec(ended, tree.a, b"ended")]);
    tree.observe(&[Record::new(header(ended, tree.a, 3), Exit::default())]);
    tree.observe(&[sample(ended, tree.a)]);
    for n in 2..17 {
        tree.observe(&[exec(nobody(n), tree.a, b"x")]);
    }
    // One sixteenth goes at once.
    assert_eq!(tree.tables.stats().processes_evicted, 1);
    assert!(tree.tables.process(ended).is_none());
    assert!(tree.tables.process(alive).is_some());
}
