//! What each policy asks of one lease, and until when.
//!
//! Invariants:
//! - The strictest ask that is still running wins; when it ends, the next strictest does.
//! - Every ask holds for its own time: a milder one does not end a stricter one early, a
//!   stricter one does not shorten a milder one that lasts longer.
//! - Smaller values are stricter, for every knob.

use crate::Target;

/// Asks of one policy kept apart; beyond, those in the middle are dropped, which loosens sooner.
const MAX_STEPS: usize = 4;

/// One ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) policy: String,
    pub(crate) value: u32,
    pub(crate) until_ns: u64,
    /// The decision that it follows from.
    pub(crate) decision: u64,
    /// On whom, as asked.
    pub(crate) target: Target,
}

/// The asks that hold one lease.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shares(Vec<Share>);

impl Shares {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the policy already holds it at this value or a stricter one.
    pub(crate) fn holds(&self, policy: &str, value: u32, now_ns: u64) -> bool {
        let runs = |share: &&Share| share.until_ns > now_ns;
        let mut running = self.0.iter().filter(runs);
        running.any(|share| share.policy == policy && share.value <= value)
    }

    /// Adds an ask; those of the same policy that it outlasts and outdoes make room.
    pub(crate) fn put(&mut self, new: Share) {
        let covered = |by: &Share, share: &Share| {
            by.policy == share.policy && by.value <= share.value && by.until_ns >= share.until_ns
        };
        if self.0.iter().any(|share| covered(share, &new)) {
            return;
        }
        self.0.retain(|share| !covered(&new, share));
        let policy = new.policy.clone();
        self.0.push(new);
        self.0
            .sort_by(|a, b| (a.value, &a.policy).cmp(&(b.value, &b.policy)));
        let mine = || {
            self.0
                .iter()
                .enumerate()
                .filter(|(_, share)| share.policy == policy)
        };
        if mine().count() > MAX_STEPS
            && let Some((middle, _)) = mine().nth(MAX_STEPS - 1)
        {
            self.0.remove(middle);
        }
    }

    /// Drops what has ended.
    pub(crate) fn expire(&mut self, now_ns: u64) {
        self.0.retain(|share| share.until_ns > now_ns);
    }

    /// The ask that decides the value; of equals, the one that lasts longest.
    pub(crate) fn strictest(&self) -> Option<&Share> {
        self.0
            .iter()
            .min_by_key(|share| (share.value, u64::MAX - share.until_ns))
    }

    /// The end of the last one.
    pub(crate) fn until_ns(&self) -> Option<u64> {
        self.0.iter().map(|share| share.until_ns).max()
    }

    /// The end of the first one.
    pub(crate) fn next_end_ns(&self) -> Option<u64> {
        self.0.iter().map(|share| share.until_ns).min()
    }

    /// The policies that ask, by name.
    pub(crate) fn owners(&self) -> Vec<String> {
        let mut owners: Vec<String> = self.0.iter().map(|share| share.policy.clone()).collect();
        owners.sort();
        owners.dedup();
        owners
    }

    /// Nobody holds it stricter than `value`: that could not be done.
    pub(crate) fn no_stricter_than(&mut self, value: u32) {
        for share in &mut self.0 {
            share.value = share.value.max(value);
        }
    }

    /// Fits the asks to new grants: `limits` gives a policy's strictest value and latest end, or
    /// nothing if it may not hold the lease any more.
    pub(crate) fn fit(&mut self, limits: impl Fn(&str) -> Option<(u32, u64)>) {
        self.0.retain_mut(|share| match limits(&share.policy) {
            Some((value, until_ns)) => {
                share.value = share.value.max(value);
                share.until_ns = share.until_ns.min(until_ns);
                true
            }
            None => false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WorkloadId;

    fn share(policy: &str, value: u32, until_ns: u64) -> Share {
        let target = Target::Workload(WorkloadId(1));
        Share {
            policy: policy.to_owned(),
            value,
            until_ns,
            decision: 0,
            target,
        }
    }

    fn values_over_time(mut shares: Shares, times: &[u64]) -> Vec<Option<u32>> {
        let at = |&now: &u64| {
            shares.expire(now);
            shares.strictest().map(|share| share.value)
        };
        times.iter().map(at).collect()
    }

    #[test]
    fn the_strictest_that_still_runs_wins() {
        let mut shares = Shares::default();
        shares.put(share("a", 200, 30));
        shares.put(share("b", 100, 10));
        shares.put(share("c", 300, 20));
        assert_eq!(shares.owners(), ["a", "b", "c"]);
        assert_eq!(
            (shares.next_end_ns(), shares.until_ns()),
            (Some(10), Some(30))
        );
        assert_eq!(
            values_over_time(shares, &[0, 10, 20, 30]),
            [Some(100), Some(200), Some(200), None]
        );
    }

    #[test]
    fn a_milder_ask_of_the_same_policy_waits_for_its_turn() {
        let mut shares = Shares::default();
        shares.put(share("a", 100, 10));
        shares.put(share("a", 300, 20));
        shares.put(share("a", 300, 15));
        assert!(
            shares.holds("a", 100, 9) && !shares.holds("a", 100, 10) && !shares.holds("b", 100, 9)
        );
        assert_eq!(shares.0.len(), 2);
        assert_eq!(
            values_over_time(shares.clone(), &[0, 10, 20]),
            [Some(100), Some(300), None]
        );
        shares.put(share("a", 100, 25));
        assert_eq!(shares.0.len(), 1);
    }

    #[test]
    fn a_policy_cannot_fill_the_memory_with_steps() {
        let mut shares = Shares::default();
        for step in 1..100 {
            shares.put(share("a", step, u64::from(step)));
        }
        assert_eq!(shares.0.len(), MAX_STEPS);
        assert_eq!(shares.strictest().map(|share| share.value), Some(1));
        assert_eq!(shares.until_ns(), Some(99));
    }
}
