// What `spin` and `trap` share: they go wrong where and when their settings say, each in its own way
// (`crate::fault`), and alert once for each batch until then.

use palisade_policy_sdk::{Policy, Record, Request, Requests, Settings, Target};

pub struct Faulty {
    after: u64,
    place: String,
    batches: u64,
}

impl Faulty {
    fn at(&self, place: &str) {
        if self.place == place && self.batches > self.after {
            crate::fault();
        }
    }
}

impl Policy for Faulty {
    fn init(settings: &Settings) -> Result<Self, String> {
        let place = settings.text("where")?.to_owned();
        if place == "init" {
            crate::fault();
        }
        Ok(Self {
            after: settings.integer_in("after", 0..=u64::MAX / 2)?,
            place,
            batches: 0,
        })
    }

    fn on_batch(&mut self, _: u64, records: &[Record], out: &mut Requests) {
        self.batches += 1;
        self.at("batch");
        out.push(
            Request::alert(Target::Workload(1))
                .reason("nothing is wrong yet")
                .evidence("records", records.len() as f64, "count"),
        );
    }

    fn on_tick(&mut self, _: u64, _: &mut Requests) {
        self.at("tick");
    }

    fn checkpoint(&self) -> Vec<u8> {
        self.at("checkpoint");
        vec![1]
    }

    fn restore(&mut self, _: u32, _: &[u8]) -> Result<(), String> {
        if self.place == "restore" {
            crate::fault();
        }
        Ok(())
    }
}
