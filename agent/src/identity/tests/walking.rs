//! A walk through the tree of cgroups goes in slices.

use super::learning::{Tree, nobody, sample};
use super::*;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Beyond every inode of a tree.
const UNKNOWN: u64 = 1 << 60;

/// A tree with more cgroups than a slice gets through, by a clock that is looked at at every step.
struct Wide {
    tree: Tree,
    ids: Vec<u64>,
    now: Instant,
}

impl Wide {
    fn new() -> Self {
        let tree = Tree::new(Limits::default());
        let mut ids = Vec::new();
        for n in 0..60 {
            let path = format!("/wide/{n}/below");
            std::fs::create_dir_all(tree.dir.path().join(&path[1..])).unwrap();
            ids.push(tree.tables.layout().workload_id(&path).unwrap().0);
        }
        Self {
            tree,
            ids,
            now: Instant::now(),
        }
    }

    /// Each look at the clock takes a millisecond: ten make a slice. How many there were.
    fn observe(&mut self, records: &[Record]) -> u32 {
        let mut looks = 0;
        let now = &mut self.now;
        self.tree.observe_at(records, || {
            looks += 1;
            *now += Duration::from_millis(1);
            *now
        });
        looks
    }

    fn found(&self) -> usize {
        let named = |id: &&u64| self.tree.cgroup_of(**id).is_some();
        self.ids.iter().filter(named).count()
    }

    fn stats(&self) -> (u64, u64) {
        let stats = self.tree.tables.stats();
        (stats.workload_walks, stats.workloads_unresolved)
    }

    /// Batches without records until that many walks are over; none takes longer than a slice.
    fn until_walks(&mut self, walks: u64) -> u32 {
        for batches in 0..100_000 {
            if self.stats().0 == walks {
                return batches;
            }
            let looks = self.observe(&[]);
            // When it begins, after each step, and when it ends.
            assert!(looks <= 12, "{looks}");
        }
        unreachable!("no walk ends");
    }
}

#[test]
fn a_walk_in_slices_finds_all_there_is_and_calls_nothing_missing_before_its_end() {
    let mut wide = Wide::new();
    let mut records: Vec<Record> = (0..60)
        .map(|n| sample(nobody(n as u32), wide.ids[n]))
        .collect();
    records.push(sample(nobody(60), UNKNOWN));
    wide.observe(&records);
    let mut found = BTreeSet::new();
    while wide.stats().0 == 0 {
        assert_eq!(wide.stats().1, 0, "missing before the end");
        found.insert(wide.found());
        // All ask again in every batch, and wait.
        let looks = wide.observe(&records);
        assert!(looks <= 12, "{looks}");
    }
    assert!(found.len() > 5, "it found them bit by bit: {found:?}");
    assert_eq!((wide.found(), wide.stats()), (60, (1, 1)));
    let below = wide.tree.cgroup_of(wide.ids[7]);
    assert_eq!(below.as_deref(), Some("/wide/7/below"));
    // Asking meanwhile did not make another walk.
    wide.now += Duration::from_secs(5000);
    wide.observe(&[]);
    assert_eq!(wide.stats(), (1, 1));
}

#[test]
fn after_a_walk_there_is_a_rest_of_twenty_times_all_of_its_slices() {
    let mut wide = Wide::new();
    let mut looks = wide.observe(&[sample(nobody(1), UNKNOWN)]);
    let mut batches = 1;
    while wide.stats().0 == 0 {
        // What lies between the slices does not count.
        wide.now += Duration::from_secs(1);
        looks += wide.observe(&[]);
        batches += 1;
    }
    assert!(batches > 10, "{batches}");
    let worked = looks - batches;
    let ended = wide.now;
    let rested = ended + Duration::from_millis(1) * worked * 20;
    let mut before = wide.now;
    let mut looks = wide.observe(&[sample(nobody(2), UNKNOWN + 1)]);
    while looks == 1 {
        before = wide.now;
        looks = wide.observe(&[]);
    }
    assert_eq!(before + Duration::from_millis(1), rested);
}

#[test]
fn what_is_asked_for_during_a_walk_is_met_on_its_way_or_left_to_the_next() {
    let mut wide = Wide::new();
    wide.observe(&[sample(nobody(1), UNKNOWN)]);
    wide.observe(&[]);
    assert_eq!((wide.found(), wide.stats()), (0, (0, 0)));
    // Most of them still lie on its way; another one is nowhere.
    let mut records: Vec<Record> = (0..60)
        .map(|n| sample(nobody(n as u32), wide.ids[n]))
        .collect();
    records.push(sample(nobody(61), UNKNOWN + 1));
    wide.observe(&records);
    wide.until_walks(1);
    assert!(wide.found() > 30, "{}", wide.found());
    // Only what it was to look for from its beginning is missing.
    assert_eq!(wide.stats(), (1, 1));
    wide.until_walks(2);
    assert_eq!((wide.found(), wide.stats()), (60, (2, 2)));
}

#[test]
fn a_walk_ends_when_all_that_it_looked_for_were_found_otherwise() {
    let mut wide = Wide::new();
    let id = WorkloadId(UNKNOWN);
    wide.observe(&[sample(nobody(1), UNKNOWN)]);
    wide.tree.tables.remember_workload(id, "/elsewhere");
    wide.observe(&[]);
    assert_eq!(wide.stats(), (1, 0));
    // Nothing is left to do.
    assert_eq!(wide.observe(&[]), 0);
}
