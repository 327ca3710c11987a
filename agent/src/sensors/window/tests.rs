//! Differences, and when entries go.
#![allow(clippy::unwrap_used)]
use super::*;
use palisade_abi::{Counters, CountersKey, SampleMaps, SampleSched};

/// One process's key.
pub(in crate::sensors) fn key(pid: u32) -> CountersKey {
    CountersKey {
        pid,
        start_ns: 5,
        workload: 9,
        pad: 0,
    }
}

fn maps(maps: u64) -> Counters {
    Counters {
        maps,
        ..Counters::default()
    }
}

#[test]
fn a_difference_is_told_once() {
    let mut table: Table<CountersKey, Counters> = Table::new();
    assert_eq!(table.observe(key(1), maps(3), 0), Some(maps(3)));
    assert_eq!(table.observe(key(1), maps(3), 1), None);
    assert_eq!(table.observe(key(1), maps(10), 2), Some(maps(7)));
}

/// A family that keeps processes and nothing else.
#[derive(Debug)]
struct Fake(std::sync::Arc<std::sync::Mutex<Vec<Process>>>);

impl Collect for Fake {
    fn kinds(&self) -> u64 {
        0
    }
    fn collect(&mut self, _: u64, _: &mut Told<'_>) {}
    fn forget(&mut self, _: u64, due: &dyn Fn(Process) -> bool) {
        self.0.lock().unwrap().retain(|process| !due(*process));
    }
    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

#[test]
fn an_ended_process_keeps_its_entry_for_the_grace_period() {
    let kept = std::sync::Arc::new(std::sync::Mutex::new(vec![(1, 5), (2, 5)]));
    let mut windows = Windows::new(vec![Box::new(Fake(kept.clone()))]);
    windows.ended((1, 5));
    windows.ended((2, 6)); // another process that had the pid 2
    windows.finish();
    windows.finish();
    assert_eq!(windows.tracked(), 2);
    windows.finish();
    assert_eq!(*kept.lock().unwrap(), [(2, 5)]);
    assert!(windows.ending.is_empty());
}

#[test]
fn an_entry_made_again_by_a_late_event_counts_from_nothing() {
    let mut table: Table<CountersKey, Counters> = Table::new();
    table.observe(key(1), maps(5), 0);
    assert_eq!(table.ended(&|process| process == (1, 5)), [key(1)]);
    assert_eq!(table.observe(key(1), maps(2), 3), Some(maps(2)));
}

#[test]
fn samples_that_nobody_wants_or_that_are_empty_are_not_told() {
    let mut records = Vec::new();
    let mut told = Told {
        now_ns: 7,
        wanted: Kind::SampleMaps.bit(),
        added: None,
        records: &mut records,
    };
    told.tell(&key(1), Kind::SampleMaps, SampleMaps::default());
    told.tell(
        &key(1),
        Kind::SampleSched,
        SampleSched {
            voluntary: 1,
            ..SampleSched::default()
        },
    );
    assert!(told.records.is_empty());
    let body = SampleMaps {
        maps: 1,
        ..SampleMaps::default()
    };
    told.tell(&key(1), Kind::SampleMaps, body);
    assert_eq!(records[0].get::<SampleMaps>(), Some(body));
    assert_eq!((records[0].header.pid, records[0].header.workload), (1, 9));
}

#[test]
fn an_idle_entry_goes_only_if_its_process_is_gone() {
    let mut table: Table<CountersKey, Counters> = Table::new();
    table.observe(key(1), maps(1), 0);
    table.observe(key(2), maps(1), 0);
    let alive = |process: Process| process.0 == 1;
    assert_eq!(table.idle(IDLE_WINDOWS - 1, &alive), []);
    assert_eq!(table.idle(IDLE_WINDOWS, &alive), [key(2)]);
    assert_eq!(table.seen.len(), 1);
}

#[test]
fn the_longer_an_entry_is_idle_the_seldomer_it_is_looked_up() {
    let mut table: Table<CountersKey, Counters> = Table::new();
    table.observe(key(1), maps(1), 0);
    let looks = std::cell::RefCell::new(Vec::new());
    let look = |table: &mut Table<CountersKey, Counters>, window| {
        let alive = |_| {
            looks.borrow_mut().push(window);
            true
        };
        assert_eq!(table.idle(window, &alive), []);
    };
    for window in 0..600 {
        look(&mut table, window);
    }
    table.observe(key(1), maps(2), 600);
    for window in 600..700 {
        look(&mut table, window);
    }
    assert_eq!(looks.into_inner(), [64, 128, 256, 512, 664]);
}

#[test]
fn liveness_compares_the_start_too() {
    let own = std::process::id();
    assert!(!is_alive((own, 1)));
    assert!(!is_alive((u32::MAX, 1)));
}
