//! Alerts when one process causes more events in a second than expected.
//!
//! The smallest policy that keeps state per process: read it first. The benchmarks run it too,
//! in the sandbox and natively, because a counter per process is what most policies begin with.
#![deny(unsafe_code)]

use palisade_policy_sdk::{
    BoundedMap, Policy, ProcessId, Record, Request, Requests, SECOND, Settings, Target,
};

/// Processes counted at a time; beyond it the oldest are forgotten.
const PROCESSES: usize = 4096;

/// Counts of the second that is under way.
#[derive(Debug)]
pub struct EventRate {
    max_per_second: u64,
    second: u64,
    counts: BoundedMap<(u32, u64), u64>,
}

impl Policy for EventRate {
    fn init(settings: &Settings) -> Result<Self, String> {
        Ok(Self {
            max_per_second: settings.integer_in("max-per-second", 1..=1_000_000_000)?,
            second: 0,
            counts: BoundedMap::new(PROCESSES),
        })
    }

    fn on_batch(&mut self, now_ns: u64, records: &[Record], out: &mut Requests) {
        if now_ns / SECOND != self.second {
            self.second = now_ns / SECOND;
            self.counts.clear();
        }
        for record in records {
            let header = &record.header;
            let count = self
                .counts
                .get_or_insert_with((header.pid, header.start_ns), || 0);
            *count += 1;
            // Once a second and process: exactly when the limit is passed.
            if *count == self.max_per_second + 1 {
                out.push(
                    Request::alert(Target::Process(ProcessId::from(header)))
                        .reason(format!(
                            "Process {} causes more than {} events a second",
                            header.pid, self.max_per_second
                        ))
                        .evidence("events", *count as f64, "count"),
                );
            }
        }
    }
}

palisade_policy_sdk::policy!(EventRate, "policy.toml");

#[cfg(test)]
mod tests {
    use super::EventRate;
    use palisade_policy_sdk::testing::{Harness, Proc};

    #[test]
    fn alerts_once_when_the_limit_is_passed() {
        let mut harness = Harness::<EventRate>::with(&[("max-per-second", 2.into())]).unwrap();
        let proc = Proc::new(100, 7);
        for _ in 0..5 {
            harness.push(proc.mmap(0x1000, 4096));
        }
        assert_eq!(harness.deliver().len(), 1);
    }
}
