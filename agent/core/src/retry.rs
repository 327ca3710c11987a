//! How long to leave alone what did not work.
//!
//! Invariant: a failing action never loops. Waits double up to a cap; what cannot be undone is
//! tried at most [`STRIKES`] times before the longest wait.

use crate::{Knob, Target, WorkloadId};
use std::collections::BTreeMap;

/// First wait after a failed containment or undo, nanoseconds.
pub(crate) const FIRST_NS: u64 = 1_000_000_000;

/// Longest wait between attempts at an undo: something in force must not linger.
const UNDO_CAP_NS: u64 = 30_000_000_000;

/// Longest wait between attempts at a containment.
const CONTAIN_CAP_NS: u64 = 300_000_000_000;

/// First wait after a failed signal or kill.
const STRIKE_FIRST_NS: u64 = 30_000_000_000;

/// Failed signals or kills on one target before the longest wait.
const STRIKES: u32 = 3;

/// That longest wait, nanoseconds (one hour).
const STRIKE_CAP_NS: u64 = 3_600_000_000_000;

/// Wait after somebody else was found to manage the same value.
pub(crate) const FOREIGN_NS: u64 = 60_000_000_000;

/// How long a failure is remembered after its wait, so that the next one waits longer.
const MEMORY_NS: u64 = 600_000_000_000;

/// Failures kept at once. The one that ends first makes room.
const MAX_ENTRIES: usize = 4_096;

/// What did not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    /// Setting this knob of this workload.
    Knob(WorkloadId, Knob),
    /// Signalling or killing this target.
    Strike(Target),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    failures: u32,
    until_ns: u64,
}

/// What did not work lately.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backoff(BTreeMap<Key, Entry>);

impl Backoff {
    /// When it may be tried again, if not now.
    pub(crate) fn waiting(&self, key: Key, now_ns: u64) -> Option<u64> {
        self.0
            .get(&key)
            .map(|entry| entry.until_ns)
            .filter(|&until_ns| until_ns > now_ns)
    }

    pub(crate) fn failed(&mut self, key: Key, now_ns: u64) {
        let failures = self
            .0
            .get(&key)
            .map_or(0, |entry| entry.failures)
            .saturating_add(1);
        let wait_ns = match key {
            Key::Knob(..) => doubled(FIRST_NS, failures, CONTAIN_CAP_NS),
            Key::Strike(_) if failures >= STRIKES => STRIKE_CAP_NS,
            Key::Strike(_) => doubled(STRIKE_FIRST_NS, failures, STRIKE_CAP_NS),
        };
        self.insert(
            key,
            Entry {
                failures,
                until_ns: now_ns.saturating_add(wait_ns),
            },
        );
    }

    /// Leaves it alone for a while without counting a failure.
    pub(crate) fn wait(&mut self, key: Key, now_ns: u64, wait_ns: u64) {
        let failures = self.0.get(&key).map_or(0, |entry| entry.failures);
        self.insert(
            key,
            Entry {
                failures,
                until_ns: now_ns.saturating_add(wait_ns),
            },
        );
    }

    pub(crate) fn worked(&mut self, key: Key) {
        self.0.remove(&key);
    }

    pub(crate) fn prune(&mut self, now_ns: u64) {
        self.0
            .retain(|_, entry| entry.until_ns.saturating_add(MEMORY_NS) > now_ns);
    }

    fn insert(&mut self, key: Key, entry: Entry) {
        if self.0.len() >= MAX_ENTRIES && !self.0.contains_key(&key) {
            let first = self.0.iter().min_by_key(|(_, entry)| entry.until_ns);
            if let Some(key) = first.map(|(key, _)| *key) {
                self.0.remove(&key);
            }
        }
        self.0.insert(key, entry);
    }
}

/// The wait before the next attempt at an undo.
pub(crate) fn undo_wait_ns(failures: u32) -> u64 {
    doubled(FIRST_NS, failures, UNDO_CAP_NS)
}

/// `first`, doubled with each failure after the first, at most `cap`.
fn doubled(first_ns: u64, failures: u32, cap_ns: u64) -> u64 {
    let factor = 1_u64
        .checked_shl(failures.saturating_sub(1))
        .unwrap_or(u64::MAX);
    first_ns.saturating_mul(factor).min(cap_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap() {
        let seconds = |failures| undo_wait_ns(failures) / 1_000_000_000;
        assert_eq!(
            [1, 2, 3, 5, 6, 64, u32::MAX].map(seconds),
            [1, 2, 4, 16, 30, 30, 30]
        );
    }

    #[test]
    fn a_kill_that_keeps_failing_is_given_up_for_an_hour() {
        let key = Key::Strike(Target::Workload(WorkloadId(1)));
        let mut backoff = Backoff::default();
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..4 {
            backoff.failed(key, now);
            let until = backoff.waiting(key, now).expect("waits");
            waits.push((until - now) / 1_000_000_000);
            now = until;
            backoff.prune(now);
        }
        assert_eq!(waits, [30, 60, 3_600, 3_600]);
    }

    #[test]
    fn failures_are_forgotten_and_bounded() {
        let mut backoff = Backoff::default();
        for number in 0..MAX_ENTRIES as u64 + 100 {
            backoff.failed(Key::Knob(WorkloadId(number), Knob::Freeze), number);
        }
        assert_eq!(backoff.0.len(), MAX_ENTRIES);
        backoff.prune(u64::MAX);
        assert!(backoff.0.is_empty());
    }
}
