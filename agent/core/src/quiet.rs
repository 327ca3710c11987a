//! Alerts that were delivered, so that the same one is not repeated at once.
//!
//! Invariant: an alert that is held back is counted, and the count travels with the next one
//! that is delivered.

use crate::{Severity, Target};
use std::collections::BTreeMap;

/// Alerts remembered at once. The one that ends first makes room.
const MAX_ENTRIES: usize = 8_192;

/// How long the count of what was held back waits for the next alert, nanoseconds.
const MEMORY_NS: u64 = 600_000_000_000;

#[derive(Clone, Copy, Debug)]
struct Entry {
    until_ns: u64,
    severity: Severity,
    held_back: u64,
}

/// Alerts delivered lately, by policy and target.
#[derive(Clone, Debug, Default)]
pub(crate) struct Quiet(BTreeMap<(Target, String), Entry>);

impl Quiet {
    /// When this alert may be repeated, if not now. A more severe one may at once.
    pub(crate) fn until(
        &self,
        policy: &str,
        target: Target,
        severity: Severity,
        now_ns: u64,
    ) -> Option<u64> {
        let entry = self.0.get(&(target, policy.to_owned()))?;
        (entry.until_ns > now_ns && severity <= entry.severity).then_some(entry.until_ns)
    }

    /// Counts an alert that was held back.
    pub(crate) fn hold_back(&mut self, policy: &str, target: Target) {
        if let Some(entry) = self.0.get_mut(&(target, policy.to_owned())) {
            entry.held_back = entry.held_back.saturating_add(1);
        }
    }

    /// Notes a delivery; returns how many were held back since the one before.
    pub(crate) fn delivered(
        &mut self,
        policy: &str,
        target: Target,
        severity: Severity,
        now_ns: u64,
        quiet_ns: u64,
    ) -> u64 {
        let key = (target, policy.to_owned());
        let held_back = self.0.remove(&key).map_or(0, |entry| entry.held_back);
        if quiet_ns > 0 {
            if self.0.len() >= MAX_ENTRIES {
                let first = self.0.iter().min_by_key(|(_, entry)| entry.until_ns);
                if let Some(first) = first.map(|(key, _)| key.clone()) {
                    self.0.remove(&first);
                }
            }
            let until_ns = now_ns.saturating_add(quiet_ns);
            self.0.insert(
                key,
                Entry {
                    until_ns,
                    severity,
                    held_back: 0,
                },
            );
        }
        held_back
    }

    pub(crate) fn prune(&mut self, now_ns: u64) {
        self.0.retain(|_, entry| {
            let memory_ns = if entry.held_back > 0 { MEMORY_NS } else { 0 };
            entry.until_ns.saturating_add(memory_ns) > now_ns
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WorkloadId;

    const WHO: Target = Target::Workload(WorkloadId(1));

    #[test]
    fn what_was_held_back_is_told_with_the_next_alert() {
        let mut quiet = Quiet::default();
        assert_eq!(quiet.delivered("p", WHO, Severity::Warning, 0, 10), 0);
        assert_eq!(quiet.until("p", WHO, Severity::Warning, 9), Some(10));
        quiet.hold_back("p", WHO);
        quiet.hold_back("p", WHO);
        quiet.prune(10);
        assert_eq!(quiet.until("p", WHO, Severity::Warning, 10), None);
        assert_eq!(quiet.delivered("p", WHO, Severity::Warning, 10, 10), 2);
        quiet.prune(20);
        assert!(quiet.0.is_empty());
    }

    #[test]
    fn a_more_severe_alert_and_another_policy_are_not_held_back() {
        let mut quiet = Quiet::default();
        quiet.delivered("p", WHO, Severity::Warning, 0, 10);
        assert_eq!(quiet.until("p", WHO, Severity::Critical, 1), None);
        assert_eq!(quiet.until("p", WHO, Severity::Info, 1), Some(10));
        assert_eq!(quiet.until("q", WHO, Severity::Info, 1), None);
    }
}
