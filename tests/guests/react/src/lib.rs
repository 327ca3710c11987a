//! Asks for an action on each driver call, at once: for measuring the reaction time, and for tests
//! that need one certain request.

use palisade_policy_sdk::abi::GpuCall;
use palisade_policy_sdk::{Policy, ProcessId, Record, Request, Requests, Settings, Target};

struct React {
    quota: bool,
    lease_ms: u32,
}

impl Policy for React {
    fn init(settings: &Settings) -> Result<Self, String> {
        Ok(Self {
            quota: settings.text("action")? == "quota",
            lease_ms: settings.integer_in("lease-ms", 1..=60_000)?,
        })
    }

    fn on_batch(&mut self, _: u64, records: &[Record], out: &mut Requests) {
        for record in records {
            let Some(call) = record.get::<GpuCall>() else {
                continue;
            };
            let request = if self.quota {
                Request::cpu_quota(Target::Workload(record.header.workload), 100)
                    .lease_ms(self.lease_ms)
            } else {
                Request::terminate(ProcessId::from(&record.header))
            };
            out.push(request.reason("A driver call was made").evidence(
                "latency",
                call.latency_ns as f64,
                "ns",
            ));
        }
    }
}

palisade_policy_sdk::policy!(React, "policy.toml");
