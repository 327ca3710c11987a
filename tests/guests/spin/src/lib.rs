//! Runs for ever, where and when its settings say. Alerts once for each batch until then.

use palisade_policy_sdk::{Policy, Record, Request, Requests, Settings, Target};

struct Spin {
    after: u64,
    place: String,
    batches: u64,
}

fn spin() -> ! {
    let mut n = 0_u64;
    loop {
        n = std::hint::black_box(n.wrapping_add(1));
    }
}

impl Spin {
    fn at(&self, place: &str) {
        if self.place == place && self.batches > self.after {
            spin();
        }
    }
}

impl Policy for Spin {
    fn init(settings: &Settings) -> Result<Self, String> {
        let place = settings.text("where")?.to_owned();
        if place == "init" {
            spin();
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
                .reason("not spinning yet")
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
            spin();
        }
        Ok(())
    }
}

palisade_policy_sdk::policy!(Spin, "policy.toml");
