//! Budgets and cooldowns: who did how much, when, and on whom.
//!
//! Invariants:
//! - In any 60 seconds no policy has more actions than its budget, nor the host more than its own.
//! - Keyed by the policy's configured name, so that a reload clears nothing.
//! - Bounded: entries go when they no longer matter, and tables have a size.

use crate::{Reason, Target};
use std::collections::{BTreeMap, VecDeque};

/// Length of the window that budgets are counted in, nanoseconds.
const WINDOW_NS: u64 = 60_000_000_000;

/// The largest budget a minute that is kept count of; larger ones are held to this.
const MAX_PER_MINUTE: u32 = 60_000;

/// Cooldowns kept at once. The one that ends first makes room.
const MAX_COOLDOWNS: usize = 16_384;

/// When things were done, within the last window.
#[derive(Clone, Debug, Default)]
struct Stamps(VecDeque<u64>);

impl Stamps {
    fn count(&self, now_ns: u64) -> u32 {
        let past = self
            .0
            .partition_point(|&stamp| now_ns.saturating_sub(stamp) >= WINDOW_NS);
        u32::try_from(self.0.len().saturating_sub(past)).unwrap_or(u32::MAX)
    }

    fn has_room(&self, now_ns: u64, per_minute: u32) -> bool {
        self.count(now_ns) < per_minute.min(MAX_PER_MINUTE)
    }

    fn add(&mut self, now_ns: u64) {
        self.prune(now_ns);
        self.0.push_back(now_ns);
    }

    fn prune(&mut self, now_ns: u64) {
        while self
            .0
            .front()
            .is_some_and(|&stamp| now_ns.saturating_sub(stamp) >= WINDOW_NS)
        {
            self.0.pop_front();
        }
    }
}

/// One set of books: for actions, for what would have been done, or for alerts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    host: Stamps,
    policies: BTreeMap<String, Stamps>,
    cooldowns: BTreeMap<(Target, String), u64>,
}

impl Account {
    /// When the policy may act on the target again, if not now.
    pub(crate) fn cooling(&self, policy: &str, target: Target, now_ns: u64) -> Option<u64> {
        let until_ns = *self.cooldowns.get(&(target, policy.to_owned()))?;
        (until_ns > now_ns).then_some(until_ns)
    }

    /// Whether the budgets have room for one more.
    pub(crate) fn budget(
        &self,
        policy: &str,
        per_minute: u32,
        host_per_minute: u32,
        now_ns: u64,
    ) -> Result<(), Reason> {
        let policy_has_room = match self.policies.get(policy) {
            Some(stamps) => stamps.has_room(now_ns, per_minute),
            None => per_minute > 0,
        };
        if !policy_has_room {
            return Err(Reason::Budget {
                scope: "policy".to_owned(),
                per_minute,
            });
        }
        if !self.host.has_room(now_ns, host_per_minute) {
            return Err(Reason::Budget {
                scope: "host".to_owned(),
                per_minute: host_per_minute,
            });
        }
        Ok(())
    }

    /// Books one action of the policy.
    pub(crate) fn charge(&mut self, policy: &str, now_ns: u64) {
        self.host.add(now_ns);
        self.policies
            .entry(policy.to_owned())
            .or_default()
            .add(now_ns);
    }

    /// Books one action against the host alone.
    pub(crate) fn charge_host(&mut self, now_ns: u64) {
        self.host.add(now_ns);
    }

    /// Starts a cooldown.
    pub(crate) fn cool(&mut self, policy: &str, target: Target, now_ns: u64, cooldown_ns: u64) {
        if cooldown_ns == 0 {
            return;
        }
        if self.cooldowns.len() >= MAX_COOLDOWNS {
            let first = self.cooldowns.iter().min_by_key(|(_, until)| **until);
            if let Some(key) = first.map(|(key, _)| key.clone()) {
                self.cooldowns.remove(&key);
            }
        }
        let until_ns = now_ns.saturating_add(cooldown_ns);
        self.cooldowns.insert((target, policy.to_owned()), until_ns);
    }

    /// Ends a cooldown early: the action that it followed came to nothing.
    pub(crate) fn warm(&mut self, policy: &str, target: Target) {
        self.cooldowns.remove(&(target, policy.to_owned()));
    }

    /// Forgets what no longer matters.
    pub(crate) fn prune(&mut self, now_ns: u64) {
        self.host.prune(now_ns);
        self.policies.retain(|_, stamps| {
            stamps.prune(now_ns);
            !stamps.0.is_empty()
        });
        self.cooldowns.retain(|_, until_ns| *until_ns > now_ns);
    }

    /// Actions of the policy in the last minute.
    pub(crate) fn last_minute(&self, policy: &str, now_ns: u64) -> u32 {
        self.policies
            .get(policy)
            .map_or(0, |stamps| stamps.count(now_ns))
    }

    /// Actions of all policies in the last minute.
    pub(crate) fn host_last_minute(&self, now_ns: u64) -> u32 {
        self.host.count(now_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WorkloadId;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_budget_refills_one_minute_after_each_action() {
        let mut account = Account::default();
        for at in [0, 10 * SECOND] {
            assert_eq!(account.budget("p", 2, 9, at), Ok(()));
            account.charge("p", at);
        }
        assert!(account.budget("p", 2, 9, 60 * SECOND - 1).is_err());
        assert_eq!(account.budget("p", 2, 9, 60 * SECOND), Ok(()));
        account.charge("p", 60 * SECOND);
        assert!(account.budget("p", 2, 9, 70 * SECOND - 1).is_err());
        assert_eq!(account.budget("p", 2, 9, 70 * SECOND), Ok(()));
    }

    #[test]
    fn the_host_budget_spans_policies() {
        let mut account = Account::default();
        account.charge("a", 0);
        account.charge("b", 0);
        let refused = Reason::Budget {
            scope: "host".to_owned(),
            per_minute: 2,
        };
        assert_eq!(account.budget("c", 5, 2, 1), Err(refused));
    }

    #[test]
    fn tables_stay_bounded_and_empty_themselves() {
        let mut account = Account::default();
        for number in 0..MAX_COOLDOWNS as u64 + 100 {
            account.charge("p", number);
            account.cool("p", Target::Workload(WorkloadId(number)), number, 1_000_000);
        }
        assert_eq!(account.cooldowns.len(), MAX_COOLDOWNS);
        assert_eq!(
            account.cooling("p", Target::Workload(WorkloadId(0)), 1),
            None
        );
        account.prune(2 * WINDOW_NS);
        assert_eq!(account.cooldowns.len(), 0);
        assert!(account.policies.is_empty() && account.host.0.is_empty());
    }
}
