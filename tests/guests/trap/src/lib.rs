//! Traps, where and when its settings say. Alerts once for each batch until then.

use palisade_policy_sdk::{Policy, Record, Request, Requests, Settings, Target};

struct Trap {
    after: u64,
    place: String,
    batches: u64,
}

fn trap() -> ! {
    panic!("this guest panics on purpose")
}

impl Trap {
    fn at(&self, place: &str) {
        if self.place == place && self.batches > self.after {
            trap();
        }
    }
}

impl Policy for Trap {
    fn init(settings: &Settings) -> Result<Self, String> {
        let place = settings.text("where")?.to_owned();
        if place == "init" {
            trap();
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
                .reason("not trapping yet")
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
            trap();
        }
        Ok(())
    }
}

palisade_policy_sdk::policy!(Trap, "policy.toml");
