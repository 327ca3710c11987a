//! Takes memory without end, and uses it.

use palisade_policy_sdk::{Policy, Record, Requests, Settings};

struct Grow {
    after: u64,
    step: usize,
    batches: u64,
    taken: Vec<Vec<u8>>,
}

impl Policy for Grow {
    fn init(settings: &Settings) -> Result<Self, String> {
        Ok(Self {
            after: settings.integer_in("after", 0..=u64::MAX / 2)?,
            step: settings.integer_in("step", 1..=1_u32 << 30)? as usize,
            batches: 0,
            taken: Vec::new(),
        })
    }

    fn on_batch(&mut self, _: u64, _: &[Record], _: &mut Requests) {
        self.batches += 1;
        while self.batches > self.after {
            self.taken.push(vec![1; self.step]);
        }
    }
}

palisade_policy_sdk::policy!(Grow, "policy.toml");
