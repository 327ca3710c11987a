//! Runs for ever, where and when its settings say.

#[path = "../../faulty.rs"]
mod faulty;

fn fault() -> ! {
    let mut n = 0_u64;
    loop {
        n = std::hint::black_box(n.wrapping_add(1));
    }
}

palisade_policy_sdk::policy!(faulty::Faulty, "policy.toml");
