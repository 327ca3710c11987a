//! Where a process is, when a window's samples put it in two workloads.

use super::learning::{Tree, nobody, sample};
use super::*;
use std::time::Instant;

/// A process, and what /proc says of it: where it is, and how often it was asked.
struct Moving {
    tree: Tree,
    process: ProcessId,
    asked: u32,
}

impl Moving {
    /// It executed something in `/a` in a batch before.
    fn in_a() -> Self {
        let moving = Self {
            tree: Tree::new(Limits::default()),
            process: nobody(1),
            asked: 0,
        };
        moving
            .tree
            .observe(&[exec(moving.process, moving.tree.a, b"x")]);
        moving
    }

    /// Where it is after a batch; by /proc it is in that workload, or is not at all.
    fn after(&mut self, records: &[Record], by_proc: Option<u64>) -> Option<u64> {
        let now = Instant::now();
        let look_at = |process| {
            self.asked += 1;
            Some(ProcessInfo {
                process,
                parent: None,
                comm: "x".into(),
                exe: Some("/bin/x".into()),
                workload: Some(WorkloadId(by_proc?)),
                exited_ns: None,
            })
        };
        self.tree.tables.observe_by(records, || now, look_at);
        self.tree.workload_of(self.process)
    }

    fn samples(&self, workloads: &[u64]) -> Vec<Record> {
        let of = |workload: &u64| sample(self.process, *workload);
        workloads.iter().map(of).collect()
    }
}

#[test]
fn proc_decides_where_a_process_is_in_whatever_order_its_samples_come() {
    for from_c in [false, true] {
        for order in ["ac", "ca", "acac", "caac"] {
            let mut moving = Moving::in_a();
            let (a, c) = (moving.tree.a, moving.tree.c);
            // It has moved to /b/c, or there and back.
            let (before, there) = if from_c { (c, a) } else { (a, c) };
            moving.tree.observe(&[exec(moving.process, before, b"x")]);
            let workloads: Vec<u64> = order
                .chars()
                .map(|one| if one == 'a' { a } else { c })
                .collect();
            let records = moving.samples(&workloads);
            assert_eq!(moving.after(&records, Some(there)), Some(there), "{order}");
            assert_eq!(moving.asked, 1, "{order}");
            assert!(moving.tree.cgroup_of(there).is_some(), "{order}");
        }
    }
}

#[test]
fn an_unknown_process_is_where_proc_says_too() {
    for order in [[0, 1], [1, 0]] {
        let mut moving = Moving::in_a();
        moving.process = nobody(2);
        let places = [moving.tree.a, moving.tree.c];
        let there = Some(moving.tree.c);
        let records = moving.samples(&order.map(|place| places[place]));
        assert_eq!(moving.after(&records, there), there);
        assert_eq!(moving.asked, 1);
    }
}

#[test]
fn what_proc_does_not_know_is_where_a_record_says_and_it_is_asked_once_a_batch() {
    let mut moving = Moving::in_a();
    let (a, c) = (moving.tree.a, moving.tree.c);
    let elsewhere = 1 << 60;
    let records = moving.samples(&[c, elsewhere, c, a, elsewhere, a]);
    assert_eq!(moving.after(&records, None), Some(a));
    assert_eq!(moving.asked, 1);
    let records = moving.samples(&[c]);
    assert_eq!(moving.after(&records, None), Some(c));
    assert_eq!(moving.asked, 2);
    // Nothing new: nobody is asked.
    assert_eq!(moving.after(&records, None), Some(c));
    assert_eq!(moving.asked, 2);
}

#[test]
fn a_workload_that_only_proc_told_of_is_named() {
    let mut moving = Moving::in_a();
    let (c, records) = (moving.tree.c, moving.samples(&[1 << 60]));
    assert_eq!(moving.after(&records, Some(c)), Some(c));
    assert_eq!(moving.tree.cgroup_of(c).as_deref(), Some("/b/c"));
}

#[test]
fn lifecycle_records_say_exactly_where_it_is() {
    let mut moving = Moving::in_a();
    let (a, c) = (moving.tree.a, moving.tree.c);
    let fork = |workload| Record::new(header(moving.process, workload, 2), Fork::default());
    let records = [fork(c), fork(a), fork(c)];
    assert_eq!(moving.after(&records, Some(a)), Some(c));
    // Only for its executable, which was not known yet.
    assert_eq!(std::mem::take(&mut moving.asked), 1);
    let records = [exec(moving.process, a, b"y")];
    assert_eq!(moving.after(&records, Some(c)), Some(a));
    assert_eq!(moving.asked, 0);
    // Where it ended, its last samples do not move it: not those of that batch, nor others.
    let mut records = vec![Record::new(header(moving.process, c, 3), Exit::default())];
    records.extend(moving.samples(&[c, a]));
    assert_eq!(moving.after(&records, None), Some(c));
    let records = moving.samples(&[a]);
    assert_eq!(moving.after(&records, None), Some(c));
    assert_eq!(moving.asked, 0);
}

#[test]
fn two_processes_that_take_turns_cost_a_look_up_each() {
    let tree = Tree::new(Limits::default());
    let pair = [nobody(1), nobody(2)];
    tree.observe(&pair.map(|process| exec(process, tree.a, b"x")));
    let uses = || tree.tables.read().processes.uses();
    let before = uses();
    let turns: Vec<Record> = (0..512).map(|n| sample(pair[n % 2], tree.a)).collect();
    tree.observe(&turns);
    assert_eq!(uses() - before, 2);
}
