//! Which events were lost lately, and about whom.
//!
//! Invariant: losses about a workload do not protect that workload; losses of unknown origin
//! count as losses about others.

use crate::WorkloadId;
use std::collections::BTreeMap;

/// Workloads told apart; losses beyond are kept as of unknown origin, which is the careful side.
const MAX_WORKLOADS: usize = 1_024;

#[derive(Clone, Copy, Debug)]
struct Burst {
    last_ns: u64,
    count: u64,
}

/// Losses within the window, by workload (`None`: unknown).
#[derive(Clone, Debug, Default)]
pub(crate) struct Losses(BTreeMap<Option<WorkloadId>, Burst>);

impl Losses {
    pub(crate) fn note(&mut self, workload: Option<WorkloadId>, count: u64, now_ns: u64) {
        if count == 0 {
            return;
        }
        let known = self.0.contains_key(&workload) || self.0.len() < MAX_WORKLOADS;
        let whose = if known { workload } else { None };
        let burst = self.0.entry(whose).or_insert(Burst {
            last_ns: now_ns,
            count: 0,
        });
        burst.last_ns = now_ns;
        burst.count = burst.count.saturating_add(count);
    }

    /// Records lost about others than `own`, in bursts that are not over for a whole window.
    pub(crate) fn about_others(&self, own: Option<WorkloadId>, now_ns: u64, window_ns: u64) -> u64 {
        self.0
            .iter()
            .filter(|(whose, _)| whose.is_none() || **whose != own)
            .filter(|(_, burst)| recent(burst, now_ns, window_ns))
            .fold(0, |sum, (_, burst)| sum.saturating_add(burst.count))
    }

    /// All records lost in bursts that still matter.
    pub(crate) fn total(&self, now_ns: u64, window_ns: u64) -> u64 {
        self.about_others(None, now_ns, window_ns)
    }

    pub(crate) fn prune(&mut self, now_ns: u64, window_ns: u64) {
        self.0.retain(|_, burst| recent(burst, now_ns, window_ns));
    }
}

fn recent(burst: &Burst, now_ns: u64, window_ns: u64) -> bool {
    now_ns.saturating_sub(burst.last_ns) < window_ns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_losses_give_no_immunity_and_unknown_ones_count() {
        let (own, other) = (Some(WorkloadId(1)), Some(WorkloadId(2)));
        let mut losses = Losses::default();
        losses.note(own, 1_000, 0);
        assert_eq!(losses.about_others(own, 1, 10), 0);
        assert_eq!(losses.about_others(other, 1, 10), 1_000);
        assert_eq!(losses.about_others(None, 1, 10), 1_000);
        losses.note(None, 5, 4);
        assert_eq!(losses.about_others(own, 13, 10), 5);
        assert_eq!(losses.about_others(None, 13, 10), 5);
        assert_eq!(losses.about_others(own, 14, 10), 0);
    }

    #[test]
    fn beyond_the_table_losses_are_of_unknown_origin() {
        let mut losses = Losses::default();
        for number in 0..2 * MAX_WORKLOADS as u64 {
            losses.note(Some(WorkloadId(number)), 1, 0);
        }
        assert_eq!(losses.0.len(), MAX_WORKLOADS + 1);
        let late = Some(WorkloadId(2 * MAX_WORKLOADS as u64 - 1));
        assert_eq!(losses.about_others(late, 0, 1), 2 * MAX_WORKLOADS as u64);
        losses.prune(1, 1);
        assert!(losses.0.is_empty());
    }
}
