//! Which commands the kernel has a baseline for.
//!
//! A sample does not say so: its excess is 0 both without a baseline and where no call was over it. But
//! nine calls in ten are over a 10th percentile, so a command that has one shows it soon.

use palisade_policy_sdk::abi::SampleGpuCommand;
use palisade_policy_sdk::{BoundedMap, SECOND};

/// Commands that can have a baseline at a time, and how long the agent keeps one that is not used.
const MAX_COMMANDS: usize = 512;
const KEPT_NS: u64 = 600 * SECOND;

/// When commands, by (class, command), were last over their baselines.
#[derive(Debug)]
pub(crate) struct Baselines(BoundedMap<(u16, u16), u64>);

impl Default for Baselines {
    fn default() -> Self {
        Self(BoundedMap::new(MAX_COMMANDS))
    }
}

impl Baselines {
    /// Whether the sample's command has a baseline.
    pub(crate) fn of(&mut self, sample: &SampleGpuCommand, now_ns: u64) -> bool {
        let key = (sample.class, sample.command);
        if sample.excess_ns > 0 {
            *self.0.get_or_insert_with(key, || now_ns) = now_ns;
            return true;
        }
        let seen = self.0.get(&key);
        seen.is_some_and(|seen_ns| now_ns.saturating_sub(*seen_ns) < KEPT_NS)
    }
}
