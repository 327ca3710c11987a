//! `./x bench hooks`: what each hook's programs cost, in nanoseconds a run.
//!
//! Apart from the other benchmarks, because counting the time of programs (`BPF_ENABLE_STATS`) costs time itself: about
//! as much as the cheapest program takes. It is on while this runs, and goes off with it.

use anyhow::{Context, Result, bail};
use aya::sys::{Stats, enable_stats};
use palisade_abi::Kind;
use palisade_tests::bench::arguments::Arguments;
use palisade_tests::bench::loads::Load;
use palisade_tests::bench::report;
use palisade_tests::bench::tracers::configuration;
use palisade_tests::bench::watched::Watched;
use palisade_tests::{PATIENCE, TestCgroup, cannot_run_live};
use std::process::ExitCode;

const USAGE: &str = "hooks [--seconds 3]";
/// Each works for the given seconds, one after the other: together they come by at the hooks of every host.
const LOADS: [&[&str]; 4] = [
    &["calls", "0"],
    &["switches", "2"],
    &["connections", "2"],
    &["churn", "500"],
];

fn main() -> Result<ExitCode> {
    let arguments = Arguments::of_process(&["seconds"], USAGE)?;
    if let Some(why) = cannot_run_live() {
        println!("SKIPPED hooks: {why}");
        return Ok(ExitCode::SUCCESS);
    }
    let seconds: f64 = arguments.value("seconds", 3.0)?;
    println!("{}", report::machine());
    let others = report::tracing();
    if !others.is_empty() {
        bail!("others trace this machine: {}", others.join(", "));
    }
    let _counted_while_open = enable_stats(Stats::RunTime).context("BPF_ENABLE_STATS")?;
    // CUDA's library has hooks of its own, and every user of it would pay.
    let kinds = Kind::ALL.iter().fold(0, |bits, kind| bits | kind.bit()) & !Kind::SampleCuda.bit();
    let watched = Watched::start(&configuration(false), kinds)?;
    for load in LOADS {
        let cgroup = TestCgroup::new("hooks")?;
        let seconds = seconds.to_string();
        let words: Vec<&str> = load.iter().copied().chain([seconds.as_str()]).collect();
        let mut running = Load::start(&cgroup, &words)?;
        running.go()?;
        running.made()?;
        running.finish()?;
    }
    watched.settle(PATIENCE)?;
    let report = watched.handle.report();
    println!(
        "{:<26} {:>10} {:>8}  attached to",
        "hook", "runs", "ns each"
    );
    for hook in watched.handle.stats().programs {
        let attached = report.hooks.iter().find(|one| one.name == hook.hook);
        let place = attached.and_then(|one| one.attached.as_deref());
        let each = hook.run_ns.checked_div(hook.runs);
        println!(
            "{:<26} {:>10} {:>8}  {}",
            hook.hook,
            hook.runs,
            each.map_or_else(|| "-".to_owned(), |each| each.to_string()),
            place.unwrap_or("-")
        );
    }
    println!(
        "\nA run: of one program; a hook at a call's entry and return has two. With every signal on, the whole host watched, and \
         the time that\ncounting itself takes. `-`: nothing came by."
    );
    Ok(ExitCode::SUCCESS)
}
