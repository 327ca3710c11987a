//! Traps, where and when its settings say.

#[path = "../../faulty.rs"]
mod faulty;

fn fault() -> ! {
    panic!("this guest panics on purpose")
}

palisade_policy_sdk::policy!(faulty::Faulty, "policy.toml");
