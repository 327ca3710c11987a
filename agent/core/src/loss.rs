//! Which events were lost lately, and about whom.
//!
//! Invariants:
//! - Losses about a workload do not protect that workload; losses of unknown origin count as losses about others.
//! - What one policy missed concerns that policy's requests alone, and so does a program that the kernel skipped:
//!   it concerns the policies that its signal goes to, and nobody else's evidence has a hole.
//! - A skipped program is nobody's loss: it may have been the target's own event or a neighbour's that would have
//!   cleared it. So it holds back what cannot be undone, for as long as it goes on and a window more. It never holds
//!   back a containment: who causes it is held, and causes no more of it.

use crate::WorkloadId;
use std::collections::BTreeMap;

/// Workloads told apart; losses beyond are kept as of unknown origin, which is the careful side.
const MAX_WORKLOADS: usize = 1_024;

#[derive(Clone, Copy, Debug, Default)]
struct Burst {
    last_ns: u64,
    count: u64,
}

impl Burst {
    fn add(&mut self, count: u64, now_ns: u64) {
        self.last_ns = now_ns;
        self.count = self.count.saturating_add(count);
    }
}

/// Losses within the window.
#[derive(Clone, Debug, Default)]
pub(crate) struct Losses {
    /// Before any policy, by workload (`None`: unknown).
    common: BTreeMap<Option<WorkloadId>, Burst>,
    /// At one policy's queue, by its name. Bounded by the policies that there are.
    missed: BTreeMap<String, Burst>,
    /// By the kernel, of what one policy's evidence rests on; as above.
    skipped: BTreeMap<String, Burst>,
}

/// What is missing in the evidence about others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Records.
    pub(crate) records: u64,
    /// Runs of programs, whosoever events they were.
    pub(crate) skipped: u64,
}

impl Losses {
    pub(crate) fn note(&mut self, workload: Option<WorkloadId>, count: u64, now_ns: u64) {
        if count == 0 {
            return;
        }
        let known = self.common.contains_key(&workload) || self.common.len() < MAX_WORKLOADS;
        let whose = if known { workload } else { None };
        self.common.entry(whose).or_default().add(count, now_ns);
    }

    pub(crate) fn missed(&mut self, policy: String, count: u64, now_ns: u64) {
        if count > 0 {
            self.missed.entry(policy).or_default().add(count, now_ns);
        }
    }

    pub(crate) fn skipped(&mut self, policy: String, count: u64, now_ns: u64) {
        if count > 0 {
            self.skipped.entry(policy).or_default().add(count, now_ns);
        }
    }

    /// What was lost about others than `own`, as far as `policy` is concerned, in bursts that are not
    /// over for a whole window.
    pub(crate) fn about_others(
        &self,
        own: Option<WorkloadId>,
        policy: &str,
        now_ns: u64,
        window_ns: u64,
    ) -> Lost {
        let common = self
            .common
            .iter()
            .filter(|(whose, _)| whose.is_none() || **whose != own)
            .map(|(_, burst)| burst);
        Lost {
            records: sum(common.chain(self.missed.get(policy)), now_ns, window_ns),
            skipped: sum(self.skipped.get(policy).into_iter(), now_ns, window_ns),
        }
    }

    /// All records lost, and program runs skipped, in bursts that still matter.
    pub(crate) fn total(&self, now_ns: u64, window_ns: u64) -> u64 {
        let common = self.common.values().chain(self.missed.values());
        sum(common.chain(self.skipped.values()), now_ns, window_ns)
    }

    pub(crate) fn prune(&mut self, now_ns: u64, window_ns: u64) {
        self.common
            .retain(|_, burst| recent(burst, now_ns, window_ns));
        for of_policy in [&mut self.missed, &mut self.skipped] {
            of_policy.retain(|_, burst| recent(burst, now_ns, window_ns));
        }
    }
}

fn sum<'a>(bursts: impl Iterator<Item = &'a Burst>, now_ns: u64, window_ns: u64) -> u64 {
    bursts
        .filter(|burst| recent(burst, now_ns, window_ns))
        .fold(0, |sum, burst| sum.saturating_add(burst.count))
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
        assert_eq!(losses.about_others(own, "p", 1, 10).records, 0);
        assert_eq!(losses.about_others(other, "p", 1, 10).records, 1_000);
        assert_eq!(losses.about_others(None, "p", 1, 10).records, 1_000);
        losses.note(None, 5, 4);
        assert_eq!(losses.about_others(own, "p", 13, 10).records, 5);
        assert_eq!(losses.about_others(None, "p", 13, 10).records, 5);
        assert_eq!(losses.about_others(own, "p", 14, 10).records, 0);
    }

    #[test]
    fn what_one_policy_missed_concerns_nobody_else() {
        let mut losses = Losses::default();
        losses.missed("slow".into(), 7, 0);
        assert_eq!(losses.about_others(None, "slow", 1, 10).records, 7);
        assert_eq!(losses.about_others(None, "other", 1, 10).records, 0);
        assert_eq!(losses.total(1, 10), 7);
        losses.prune(10, 10);
        assert!(losses.missed.is_empty());
    }

    #[test]
    fn beyond_the_table_losses_are_of_unknown_origin() {
        let mut losses = Losses::default();
        for number in 0..2 * MAX_WORKLOADS as u64 {
            losses.note(Some(WorkloadId(number)), 1, 0);
        }
        assert_eq!(losses.common.len(), MAX_WORKLOADS + 1);
        let late = Some(WorkloadId(2 * MAX_WORKLOADS as u64 - 1));
        assert_eq!(
            losses.about_others(late, "p", 0, 1).records,
            2 * MAX_WORKLOADS as u64
        );
        losses.prune(1, 1);
        assert!(losses.common.is_empty());
    }
}
