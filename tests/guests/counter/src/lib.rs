//! Counts records and checks that none is missing or seen twice.
//!
//! The test numbers the records it publishes: `header.time_ns` of the n-th record is n, from 1,
//! whatever its kind. The state (what was expected next, and all counts) is handed over at a
//! reload, so that a gap or a repetition across reloads shows. Every `report_every` batches it
//! asks for an alert on workload 1 whose evidence is `count`, `next`, `gaps`, `repeats`, `lost`,
//! `batches`, `ticks`, `restores`.

use palisade_policy_sdk::abi::Lost;
use palisade_policy_sdk::state::{Reader, Writer};
use palisade_policy_sdk::{Policy, Record, Request, Requests, Settings, Target};

const NAMES: [&str; 8] = [
    "count", "next", "gaps", "repeats", "lost", "batches", "ticks", "restores",
];

struct Counter {
    report_every: u64,
    /// In the order of [`NAMES`].
    counts: [u64; 8],
}

impl Policy for Counter {
    fn init(settings: &Settings) -> Result<Self, String> {
        let report_every = settings.integer_in("report_every", 1..=u64::MAX / 2)?;
        Ok(Self {
            report_every,
            counts: [0, 1, 0, 0, 0, 0, 0, 0],
        })
    }

    fn on_batch(&mut self, _: u64, records: &[Record], out: &mut Requests) {
        let [count, next, gaps, repeats, lost, batches, ..] = &mut self.counts;
        for record in records {
            if let Some(body) = record.get::<Lost>() {
                *lost += body.count;
                continue;
            }
            *count += 1;
            let number = record.header.time_ns;
            match number.checked_sub(*next) {
                Some(missed) => {
                    *gaps += missed;
                    *next = number + 1;
                }
                None => *repeats += 1,
            }
        }
        *batches += 1;
        if *batches % self.report_every == 0 {
            let report = Request::alert(Target::Workload(1)).reason("counted");
            out.push(
                NAMES
                    .iter()
                    .zip(self.counts)
                    .fold(report, |report, (name, value)| {
                        report.evidence(*name, value as f64, "count")
                    }),
            );
        }
    }

    fn on_tick(&mut self, _: u64, _: &mut Requests) {
        self.counts[6] += 1;
    }

    fn checkpoint(&self) -> Vec<u8> {
        let mut out = Writer::default();
        self.counts.iter().for_each(|count| out.u64(*count));
        out.into_bytes()
    }

    fn restore(&mut self, state_version: u32, state: &[u8]) -> Result<(), String> {
        if state_version != 1 {
            return Err(format!("state version {state_version} is unknown"));
        }
        let mut from = Reader::new(state);
        for count in &mut self.counts {
            *count = from.u64().ok_or("the state ends early")?;
        }
        self.counts[7] += 1;
        Ok(())
    }
}

palisade_policy_sdk::policy!(Counter, "policy.toml");
