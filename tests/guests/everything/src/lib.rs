//! Subscribes to every signal and adds up what it sees by kind.

use palisade_policy_sdk::{Policy, Record, Requests, Settings};

struct Everything {
    counts: [u64; 64],
}

impl Policy for Everything {
    fn init(_: &Settings) -> Result<Self, String> {
        Ok(Self { counts: [0; 64] })
    }

    fn on_batch(&mut self, _: u64, records: &[Record], _: &mut Requests) {
        for record in records {
            if let Some(count) = self.counts.get_mut(usize::from(record.header.kind)) {
                *count += 1;
            }
        }
    }

    fn checkpoint(&self) -> Vec<u8> {
        self.counts.iter().flat_map(|count| count.to_le_bytes()).collect()
    }
}

palisade_policy_sdk::policy!(Everything, "policy.toml");
