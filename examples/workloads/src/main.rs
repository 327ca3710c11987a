//! Loads that show, on any machine, what Palisade is for: a service, culprits, negative controls.
//!
//! Invariants:
//! - A workload dies with its parent and on SIGTERM; nothing of it stays behind.
//! - It runs in the cgroups and on the CPU that it was told, from before its `exec` on.
//! - Standard output carries JSON lines only, one event or measurement each.
//! - It touches only the device, file and cgroups named on its command line.

mod cpu;
mod device;
mod fault;
mod hog;
mod leak;
mod model;
mod place;
mod service;
mod stats;
mod stream;
mod waiter;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser, Debug)]
#[command(version, about = "Workloads for Palisade's demo and tests", long_about = None)]
struct Cli {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    load: Load,
}

/// Where a workload runs.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Place {
    /// Directory of a cgroup to join before anything else; once for each hierarchy
    #[arg(long = "join", value_name = "DIR", global = true)]
    join: Vec<PathBuf>,
    /// Run on this CPU only
    #[arg(long, value_name = "N", global = true)]
    cpu: Option<usize>,
    /// End after this many milliseconds (default: run until SIGTERM)
    #[arg(long, value_name = "MS", global = true)]
    for_ms: Option<u64>,
}

#[derive(Subcommand, Debug)]
enum Load {
    /// A well-behaved service: some CPU time and one device call a request; prints its latency
    Service(service::ServiceArgs),
    /// A culprit: burns CPU and holds the device's lock
    DeviceHog(hog::HogArgs),
    /// The half of `device-hog` that is to be throttled; started by it
    #[command(hide = true)]
    DeviceHogInner(hog::InnerArgs),
    /// Says whether this host lets `device-hog` work
    #[command(hide = true)]
    Probe,
    /// Becomes another program, which is told to end when the caller dies
    #[command(hide = true)]
    Exec(place::ExecArgs),
    /// A culprit: loads a model file over and over
    ReloadLoop(model::ReloadArgs),
    /// Negative control: several workers load one model once, at the same time, and keep it
    Loaders(model::LoadersArgs),
    /// Burns CPU and does nothing else
    Burn,
    /// Burns CPU and moves on to the next CPU over and over
    Hop(cpu::HopArgs),
    /// A culprit: takes memory and gives none back
    Leak(leak::LeakArgs),
    /// A server on loopback whose answers come token by token; prints its port
    Stream(stream::StreamArgs),
    /// Negative control: spins in `sched_yield`, as some inference servers do while they wait
    YieldSpinner,
    /// Negative control: asks the device a short question now and then, as monitors do
    Poller(device::PollerArgs),
    /// Negative control: device calls that wait by design and hold nothing
    Waiter(waiter::WaiterArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("palisade-workload: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    place::prepare()?;
    // The hog splits in two before it goes anywhere: its fault handler must stay outside.
    if let Load::DeviceHog(args) = &cli.load {
        return hog::run(args, &cli.place);
    }
    place::enter(&cli.place)?;
    let end = cpu::End::after(cli.place.for_ms);
    match &cli.load {
        Load::Service(args) => service::run(args, end),
        Load::DeviceHog(_) => Ok(()),
        Load::DeviceHogInner(args) => hog::run_inner(args, end),
        Load::Probe => fault::probe(),
        Load::Exec(args) => place::exec(args),
        Load::ReloadLoop(args) => model::run_reload(args, end),
        Load::Loaders(args) => model::run_loaders(args, end),
        Load::Burn => {
            cpu::burn_until(end);
            Ok(())
        }
        Load::Hop(args) => cpu::run_hop(args, end),
        Load::Leak(args) => leak::run(args, end),
        Load::Stream(args) => stream::run(args, end),
        Load::YieldSpinner => {
            cpu::yield_until(end);
            Ok(())
        }
        Load::Poller(args) => device::run_poller(args, end),
        Load::Waiter(args) => waiter::run(args, end),
    }
}
