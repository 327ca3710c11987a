//! Adds up the driver calls that it sees and the losses that it is told. At every tick it asks for an alert
//! whose evidence is `records` and `lost`: together they must be all that was made.

use palisade_policy_sdk::abi::{Lost, kind};
use palisade_policy_sdk::{Policy, Record, Request, Requests, Settings, Target};

struct Tally {
    records: u64,
    lost: u64,
}

impl Policy for Tally {
    fn init(_: &Settings) -> Result<Self, String> {
        Ok(Self {
            records: 0,
            lost: 0,
        })
    }

    fn on_batch(&mut self, _: u64, records: &[Record], _: &mut Requests) {
        for record in records {
            match record.get::<Lost>() {
                Some(lost) => self.lost += lost.count,
                None => self.records += u64::from(record.header.kind == kind::GPU_EXIT),
            }
        }
    }

    fn on_tick(&mut self, _: u64, out: &mut Requests) {
        out.push(
            Request::alert(Target::Workload(1))
                .reason("added up")
                .evidence("records", self.records as f64, "count")
                .evidence("lost", self.lost as f64, "count"),
        );
    }
}

palisade_policy_sdk::policy!(Tally, "policy.toml");
