//! `./x bench storm`: nothing is lost without being counted, and short-lived processes are known.
//!
//! Exit code 1 if an account is not exact: that is no matter of speed.

use anyhow::Result;
use palisade_tests::bench::{arguments::Arguments, identity, report, storm};
use palisade_tests::cannot_run_live;
use std::process::ExitCode;

const USAGE: &str =
    "storm [--seconds 30] [--per-second 200000] [--churn 2000] [--churn-seconds 10]";

fn main() -> Result<ExitCode> {
    let arguments =
        Arguments::of_process(&["seconds", "per-second", "churn", "churn-seconds"], USAGE)?;
    if let Some(why) = cannot_run_live() {
        println!("SKIPPED storm: {why}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}", report::machine());
    let defaults = storm::Storm::default();
    let normal = storm::Storm {
        per_second: arguments.value("per-second", defaults.per_second)?,
        seconds: arguments.value("seconds", defaults.seconds)?,
        ..defaults
    };
    let mut exact = true;
    // The second one cannot keep up, so that there are losses to count.
    let narrow = storm::Storm {
        per_second: normal.per_second * 5,
        ring: "64KiB",
        queue: 2,
        seconds: normal.seconds.min(5),
    };
    for (what, storm) in [
        ("as configured by default", &normal),
        ("with little room", &narrow),
    ] {
        println!(
            "\nstorm {what}: {} events/s from {} processes for {} s, ring buffer {}, policy queue {} batches",
            storm.per_second,
            storm::MAKERS,
            storm.seconds,
            storm.ring,
            storm.queue
        );
        let outcome = storm::run(storm)?;
        println!("{outcome}");
        println!(
            "delivered + counted losses = made: {}",
            if outcome.exact() { "yes" } else { "NO" }
        );
        exact &= outcome.exact();
    }
    let churn: u64 = arguments.value("churn", 2000)?;
    println!("\nidentity under {churn} short-lived processes a second");
    println!(
        "{}",
        identity::run(churn, arguments.value("churn-seconds", 10)?)?
    );
    Ok(if exact {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
