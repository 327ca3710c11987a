//! A slow leak: memory that is taken, written to and never given back.
//!
//! Must not take more than it was told, so that without a limit around it the host stays whole.

use crate::cpu::End;
use crate::place;
use anyhow::Result;
use clap::Args;
use serde_json::json;
use std::time::Duration;

/// Time between two pieces.
const STEP: Duration = Duration::from_millis(50);
const MIB: u64 = 1 << 20;

#[derive(Args, Debug)]
pub(crate) struct LeakArgs {
    /// How fast it leaks, MiB a second
    #[arg(long, default_value_t = 16)]
    mib_per_s: u64,
    /// How much it takes in all; then it rests with that
    #[arg(long)]
    at_most_mib: u64,
}

/// Leaks until it has taken all that it may, and keeps it until the end.
pub(crate) fn run(args: &LeakArgs, end: End) -> Result<()> {
    place::emit(&json!({ "event": "started", "pid": std::process::id() }))?;
    let most = args.at_most_mib.saturating_mul(MIB);
    let piece = args.mib_per_s.saturating_mul(MIB) / (1000 / STEP.as_millis() as u64);
    let mut taken = Vec::new();
    let mut bytes = 0;
    while !end.reached() {
        let next = piece.min(most - bytes);
        if next > 0 {
            // Not zeros: those would be pages that nobody has touched yet.
            taken.push(vec![1_u8; next as usize]);
            bytes += next;
        }
        end.sleep(STEP);
    }
    drop(taken);
    Ok(())
}
