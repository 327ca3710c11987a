//! Asks for more, and logs more, than anyone may. Written against the bindings, because the
//! SDK would stop it.
#![cfg(target_arch = "wasm32")]

use palisade_policy_sdk::bindings::palisade::policy::{host, types};
use palisade_policy_sdk::bindings::{self, Guest, Request, Setting};
use std::cell::Cell;

thread_local! {
    static SIZES: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

struct Flood;

impl Guest for Flood {
    fn init(settings: Vec<(String, Setting)>) -> Result<(), String> {
        let size = |wanted: &str| match settings.iter().find(|(name, _)| name == wanted) {
            Some((_, Setting::Integer(value))) => Ok(*value as usize),
            _ => Err(format!("`{wanted}` is missing")),
        };
        SIZES.set((size("requests")?, size("logs")?));
        Ok(())
    }

    fn on_batch(_: u64, _: Vec<u64>) -> Vec<Request> {
        let (requests, logs) = SIZES.get();
        for n in 0..logs {
            host::log(types::Level::Error, &format!("line {n} of a flood"));
        }
        (0..requests)
            .map(|n| Request {
                target: types::Target::Workload(n as u64),
                action: types::Action::Kill,
                lease_ms: u32::MAX,
                severity: types::Severity::Critical,
                reason: "flood".to_owned(),
                evidence: Vec::new(),
            })
            .collect()
    }

    fn on_tick(_: u64) -> Vec<Request> {
        Self::on_batch(0, Vec::new())
    }

    fn checkpoint() -> Vec<u8> {
        vec![0; 64 << 20]
    }

    fn restore(_: u32, _: Vec<u8>) -> Result<(), String> {
        Ok(())
    }
}

palisade_policy_sdk::embed_manifest!("policy.toml");
bindings::export!(Flood with_types_in palisade_policy_sdk::bindings);
